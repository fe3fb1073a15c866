"""A layer's top with AXI ports in the native bench: registers over AXI4-Lite, packets in and out.

What ``docs/axi.md`` tells software to do is done cycle by cycle at the ports, and the outputs are compared
with golden. Inside are the cores that :mod:`sim.accelerator` and :mod:`sim.pim_report` compare with the cycle
models; here they stand behind ports, so that no block's cycles are seen and no model is asked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from golden.layer_bf16 import LayerBf16
from sim import layer, pim_report
from sim.accelerator import (
    Progress,
    Report,
    compare_with_float,
    counters_read,
    layer_job,
    output_payloads,
    routing_report,
    token_beats,
    use_of,
)
from sim.divergence import PortCheck, differing_bits, first_divergence, with_waveform
from sim.layer import LayerShape
from sim.pack import RegisterStep, register_steps
from sim.pim_layer import PimShape, pim_job
from sim.rtlsim import (
    DEFAULT_ROOT,
    Build,
    Read,
    RunResult,
    RunSpec,
    Set,
    Step,
    Wait,
    Waveform,
    build,
    top_component,
)
from sim.waves import write_views
from sim.workload import Workload
from spec.design import DesignSpec
from spec.geometry import ImageGeometry
from spec.layout import Placement
from spec.model import ModelSpec
from spec.registers import (
    BUS_REGISTERS,
    STATUS_LOADED,
    Register,
    counter_address,
    counters_of,
    field_of,
)

ALL_STROBES = 15
TOLD = ("ERRORS", "TOKENS_IN", "TOKENS_OUT")
"""Registers of the bus' page that are read behind the last output."""
LOADED = field_of(BUS_REGISTERS, "IRQ_STATUS", "loaded").mask


def lite_write(address: int, value: int) -> list[Step]:
    """Return the steps of a register write at an AXI4-Lite port that is idle; its response is read."""
    offered = {"s_axi_awaddr": address, "s_axi_awvalid": 1}
    offered |= {"s_axi_wdata": value, "s_axi_wstrb": ALL_STROBES, "s_axi_wvalid": 1}
    return [Set(offered), Wait("s_axi_bvalid"), Read("s_axi_bresp"), Set({"s_axi_bready": 1})]


def lite_read(address: int) -> list[Step]:
    """Return the steps of a register read at an AXI4-Lite port that is idle: response, then value."""
    return [
        Set({"s_axi_araddr": address, "s_axi_arvalid": 1}),
        Wait("s_axi_rvalid"),
        Read("s_axi_rresp"),
        Read("s_axi_rdata"),
        Set({"s_axi_rready": 1}),
    ]


@dataclass(frozen=True)
class AxiJob:
    """What is done at the ports of a layer's top, what golden expects, and where experts lie (``pim``)."""

    golden: LayerBf16
    spec: RunSpec
    shape: LayerShape | PimShape
    writes: int


def axi_job(workload: Workload, design: DesignSpec, placement: Placement | None = None) -> AxiJob:
    """Return the native bench's job of a layer's top.

    The same tokens, memories and settings as at the plain ports. The interrupt tells when the router is
    loaded; counters are cleared before the first token. ``placement``: of a near-memory design's experts.
    """
    shape: LayerShape | PimShape
    if design.pim is None:
        shape, golden, spec = layer_job(workload, design)
    else:
        image = ImageGeometry.of(workload.model, design)
        beats = token_beats(image, design, workload.tokens, workload.batch_lengths)
        banks, golden, spec = pim_job(workload, design, beats, placement=placement)
        placed = banks.round_robin() if placement is None else placement
        shape = PimShape(banks, design, golden.streams, placed)
    prologue = list(_settings(register_steps(spec.prologue)))
    addresses = [_bus(name).address for name in TOLD]
    addresses += [counter_address(name) + offset for name in counters_of(design) for offset in (0, 4)]
    spec = dataclasses.replace(
        spec,
        prologue=prologue,
        epilogue=[step for address in addresses for step in lite_read(address)],
        probes=["m_axis_tuser"],
    )
    return AxiJob(golden, spec, shape, writes=sum(isinstance(step, Read) for step in prologue))


def _settings(steps: Iterator[RegisterStep]) -> Iterator[Step]:
    """Yield the accesses of a layer's settings; what is waited for but the load is left out: refreshes."""
    yield from lite_write(_bus("IRQ_ENABLE").address, LOADED)
    for step in steps:
        if step.op == "write":
            yield from lite_write(step.address, step.value)
        elif step.mask == 1 << STATUS_LOADED:
            yield Wait("irq", timeout=1 << 30)
            yield from lite_write(_bus("IRQ_STATUS").address, LOADED)


def _bus(name: str) -> Register:
    return next(register for register in BUS_REGISTERS if register.name == name)


def build_axi_layer(
    model: ModelSpec, design: DesignSpec, root: Path = DEFAULT_ROOT, *, trace: bool = False
) -> Build:
    """Return the compiled bench of a layer's top with AXI ports; builds are cached by content."""
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    component = top_component(model, design)
    return build("layer_axi", component, config=(anonymous, design.hardware, "axi"), trace=trace, root=root)


def run_axi_layer(
    workload: Workload,
    design: DesignSpec,
    *,
    routing: str,
    placement: Placement | None = None,
    seed: int = 1,
    waves: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = lambda _text: None,
) -> Report:
    """Run a workload through the exported Verilog of a layer's top with AXI ports.

    Compared are the outputs with golden; every answer of a register, ERRORS, the counters of tokens and the
    marks of outputs have to be without error. ``waves`` as in :func:`sim.accelerator.run_layer`, with the
    register writes and the loading of the router before the first token.
    """
    model = workload.model
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = build_axi_layer(model, design, root, trace=waves is not None)
    job = axi_job(workload, design, placement)
    name = model.name if design.pim is None else f"{model.name}_{design.name}"
    vcd = dataclasses.replace(Waveform.of_run(waves / f"{name}_axi.vcd"), first=-1) if waves else None
    views = partial(write_views, model=model, design=design)
    progress(f"running {len(workload.tokens)} tokens through the Verilog")
    started = time.perf_counter()
    result = rtl.run(job.spec, seed=seed, vcd=vcd)
    report = _report(workload, design, job, result, routing)
    report.wall_s = time.perf_counter() - started
    report.reference = compare_with_float(workload, job.golden)
    outputs = output_payloads(design.tile.act_lanes, job.golden, workload.batch_lengths)
    check = PortCheck("layer", "o", result.streams["o"], payloads=outputs)
    report.mismatches = differing_bits(check)
    found = first_divergence([check])
    if found is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(found, rtl, job.spec, root / "waves", seed=seed, views=views)
    else:
        report.divergence = "; ".join(_problems(job, result, len(workload.tokens))) or None
    if vcd:
        report.waveform = str(vcd.path)
        views(vcd.path)
    return report


def _problems(job: AxiJob, result: RunResult, num_tokens: int) -> list[str]:
    """Return what is wrong beside the outputs: rules of a port, refused accesses, marks, errors, tokens."""
    problems = [*result.violations, *([result.timeout] if result.timeout else [])]
    if result.timeout is not None:
        return problems
    responses = [*result.reads[: job.writes], *result.reads[job.writes :: 2]]
    if any(responses):
        problems.append(f"s_axi: {np.count_nonzero(responses)} accesses were refused")
    marked = len(result.probes["m_axis_tuser"][0])
    if marked:
        problems.append(f"m_axis: marked in {marked} cycles")
    wanted = {"ERRORS": 0, "TOKENS_IN": num_tokens, "TOKENS_OUT": num_tokens}
    for (name, want), seen in zip(wanted.items(), result.reads[job.writes + 1 :: 2], strict=False):
        if seen != want:
            problems.append(f"{name} is {seen}, not {want}")
    return problems


def _report(workload: Workload, design: DesignSpec, job: AxiJob, result: RunResult, routing: str) -> Report:
    model, ids = workload.model, job.golden.routing.ids
    blocks = layer.BLOCKS if design.pim is None else pim_report.BLOCKS
    report = Report(
        model=model.name,
        design=design.name,
        format=design.format,
        engine="rtl",
        tokens=len(workload.tokens),
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles={"model": None, "rtl": None},
        blocks={name: {"model": None, "rtl": None} for name in blocks},
        mismatches=None,
        seconds=0.0,
        utilisation={"mac": 0.0, "bandwidth": 0.0},
        dropped=job.golden.streams.dropped,
        wall_s=0.0,
        routing=routing_report(routing, ids, model.gating.num_experts, workload.target_ids),
        simulated_cycles_per_second=result.cycles_per_second,
        notes=["through AXI ports: blocks' cycles are seen at the plain ports alone (--bus plain)"],
    )
    if result.timeout is not None:
        return report
    cycles = int(result.streams["o"].cycles[-1] - result.streams["i"].cycles[0]) + 1
    report.cycles["rtl"] = cycles
    report.seconds = cycles / design.clock_hz
    told = result.reads[job.writes + 1 :: 2]
    report.counters = counters = counters_read(design, told[len(TOLD) :])
    if isinstance(job.shape, PimShape):
        pim_report.add_use(report, job.shape, cycles, counters)
    else:
        fires, beats = counters["mac_active"], counters["read_beats"]
        report.utilisation, report.energy = use_of(job.shape, fires=fires, read_beats=beats, cycles=cycles)
    return report
