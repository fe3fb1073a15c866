"""Run a workload on the near-memory accelerator: golden, cycle model, exported Verilog; compare all three."""

from __future__ import annotations

import dataclasses
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.dispatch_streams import dispatch_streams
from golden.layer_bf16 import LayerBf16
from sim.accelerator import (
    Progress,
    Report,
    compare_with_float,
    counters_of,
    cycles_apart,
    routing_report,
    seen_assignments,
    token_beats,
)
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.pim import ChannelTotals
from sim.pim_layer import (
    PimRun,
    PimShape,
    PimTimes,
    active_cycles,
    block_checks,
    first_refreshes,
    pim_cycles,
    pim_job,
    seen_times,
)
from sim.routing import IntArray
from sim.rtlsim import DEFAULT_ROOT, Build, Waveform, build, layer_component
from sim.streams import Cycles
from sim.workload import Workload
from spec.banks import BankGeometry
from spec.design import DesignSpec
from spec.load import load_design, load_model
from spec.model import ModelSpec
from spec.registers import PROBE_EXPERT, PROBE_WEIGHT

BLOCKS = ("gating", "dispatch", "pim", "combine")


def _shape(
    model: ModelSpec, design: DesignSpec, ids: IntArray, batch_lengths: list[int] | None = None
) -> PimShape:
    """Return the shape of a layer with the experts one after the other on the channels."""
    banks = BankGeometry.of(model, design)
    streams = dispatch_streams(
        ids,
        np.zeros(ids.shape, dtype=np.uint16),
        num_experts=model.gating.num_experts,
        window_tokens=design.window_tokens,
        batch_lengths=batch_lengths,
        capacity=model.expert_capacity,
        capacity_rule=model.capacity_rule,
        shared=banks.image.shared is not None,
        policy=design.policy,
    )
    return PimShape(banks, design, streams, banks.round_robin())


@cache
def load_compiled() -> None:
    """Load the model's compiled code: set-up, not part of the time of the run that comes first."""
    model, design = load_model("mixtral-8x7b").scaled(64), load_design("pim")
    shape = _shape(model, design, np.arange(model.gating.top_k)[None])
    pim_cycles(shape, _arrivals(shape.banks, 1), first_refreshes(shape.banks))


def run_pim_model(
    model: ModelSpec, design: DesignSpec, ids: IntArray, routing: str, batch_lengths: list[int] | None = None
) -> Report:
    """Return the cycle model's answer for a routing; no weights, no Verilog."""
    shape = _shape(model, design, ids, batch_lengths)
    load_compiled()
    started = time.perf_counter()
    times, channels = pim_cycles(shape, _arrivals(shape.banks, len(ids)), first_refreshes(shape.banks))
    wall = time.perf_counter() - started
    report = _report(
        model, shape, "model", wall, routing_report(routing, ids, model.gating.num_experts, None)
    )
    _add_model(report, shape, times, channels)
    for name, count in active_cycles(shape, times, times.unit_entries).items():
        report.blocks[name]["model"] = count
    return report


def run_pim_layer(
    workload: Workload,
    design: DesignSpec,
    *,
    engine: str,
    routing: str,
    seed: int = 1,
    waves: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = lambda _text: None,
    placement: list[list[int]] | None = None,
    arrivals: Cycles | None = None,
    output_ready: NDArray[np.bool_] | None = None,
) -> Report:
    """Run a workload with weights on the ``rtl`` engine, or on ``both``, and compare.

    Compared are bits with golden, every block's transfers and every DRAM command with the block models,
    the layer's cycles with the model composed of them (unless arrivals or readiness are given), and all
    commands with the DRAM's rules. ``waves`` and differences as in :func:`sim.accelerator.run_layer`.

    Parameters
    ----------
    placement : channels of each expert, by default :meth:`spec.banks.BankGeometry.round_robin`.
    arrivals, output_ready : as in :func:`sim.pim_layer.pim_job`.
    """
    model = workload.model
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = build_pim_layer(model, design, root, trace=waves is not None)
    load_compiled()
    banks = BankGeometry.of(model, design)
    beats = token_beats(banks.image, design, workload.tokens, workload.batch_lengths)
    placed = banks.round_robin() if placement is None else placement
    banks, golden, spec = pim_job(
        workload, design, beats, placement=placed, arrivals=arrivals, output_ready=output_ready
    )
    progress(f"running {len(workload.tokens)} tokens through the Verilog")
    vcd = Waveform.of_run(waves / f"{model.name}_{design.name}.vcd") if waves else None
    started = time.perf_counter()
    result = rtl.run(spec, seed=seed, vcd=vcd)
    run = PimRun(workload, design, banks, golden, spec, result)
    shape = PimShape(banks, design, golden.streams, placed)
    wall = time.perf_counter() - started
    report = _report(
        model,
        shape,
        engine,
        wall,
        routing_report(routing, golden.routing.ids, model.gating.num_experts, workload.target_ids),
    )
    progress("comparing")
    report.counters = counters_of(result.reads)
    report.simulated_cycles_per_second = result.cycles_per_second
    report.reference = compare_with_float(workload, golden)
    payloads = _payload_checks(run, golden)
    report.mismatches = sum(_differing_bits(check) for check in payloads)
    seen = seen_times(run)
    checks = list(payloads)
    if engine == "both":
        found, expected = block_checks(run, shape, seen)
        checks += found
        if expected is not None:
            _add_run(report, shape, seen, expected)
        if arrivals is None and output_ready is None:
            started = time.perf_counter()
            times, channels = pim_cycles(
                shape, _arrivals(banks, len(workload.tokens)), first_refreshes(banks)
            )
            report.wall_s += time.perf_counter() - started
            _add_model(report, shape, times, channels)
    if result.timeout is None and len(seen.output.taken):
        report.cycles["rtl"] = seen.cycles
        report.seconds = seen.cycles / design.clock_hz
    rules = [f"channel {channel}: {violation}" for channel, violation in run.violations()]
    problems = [*result.violations, *rules, *([result.timeout] if result.timeout else [])]
    divergence = first_divergence(checks)
    if divergence is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(divergence, rtl, spec, root / "waves", seed=seed)
    elif problems:
        report.divergence = "; ".join(problems)
    else:
        report.divergence = cycles_apart(report)
    report.waveform = str(vcd.path) if vcd else None
    report.notes.append(f"DRAM rules broken: {len(rules)}")
    return report


def build_pim_layer(
    model: ModelSpec, design: DesignSpec, root: Path = DEFAULT_ROOT, *, trace: bool = False
) -> Build:
    """Return the compiled bench of a layer's exported Verilog; builds are cached by content."""
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    config = (anonymous, dataclasses.replace(design, name="design"))
    return build("layer", layer_component(model, design), config=config, trace=trace, root=root)


def _arrivals(banks: BankGeometry, num_tokens: int) -> Cycles:
    return np.zeros(num_tokens * banks.image.gate.input_beats, dtype=np.int64)


def _payload_checks(run: PimRun, golden: LayerBf16) -> list[PortCheck]:
    """Return the comparisons of assignments and outputs with golden."""
    ids = golden.routing.ids.ravel().astype(np.uint64)
    weights = golden.routing.weights.ravel().astype(np.uint64)
    lanes = run.design.tile.act_lanes
    num_tokens, d_model = golden.output.shape
    words = -(-d_model // lanes)
    elements = np.zeros((num_tokens, words * lanes), dtype=np.uint16)
    elements[:, :d_model] = golden.output
    payloads = np.zeros((num_tokens * words, -(-(lanes + 1) // 4) * 4), dtype=np.uint16)
    payloads[:, :lanes] = elements.reshape(-1, lanes)
    payloads[np.cumsum(run.workload.batch_lengths) * words - 1, lanes] = 1
    return [
        PortCheck(
            "gating",
            "o",
            seen_assignments(*run.result.probes["probe"]),
            payloads=ids | weights << np.uint64(PROBE_WEIGHT - PROBE_EXPERT),
        ),
        PortCheck("combine", "o", run.result.streams["o"], payloads=payloads.view(np.uint64)),
    ]


def _differing_bits(check: PortCheck) -> int:
    """Return the bits in which the payloads differ; a missing or extra beat counts whole."""
    expected = np.asarray(check.payloads, dtype=np.uint64)
    expected = expected.reshape(len(expected), -1)
    seen = check.seen.payloads
    common, words = min(len(expected), len(seen)), min(expected.shape[1], seen.shape[1])
    differing = int(np.bitwise_count(expected[:common, :words] ^ seen[:common, :words]).sum())
    return differing + 64 * int(words) * abs(len(expected) - len(seen))


def _report(model: ModelSpec, shape: PimShape, engine: str, wall: float, routing: dict[str, Any]) -> Report:
    return Report(
        model=model.name,
        design=shape.design.name,
        format=shape.design.format,
        engine=engine,
        tokens=len(shape.streams.window),
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles={"model": None, "rtl": None},
        blocks={name: {"model": None, "rtl": None} for name in BLOCKS},
        mismatches=None,
        seconds=0.0,
        energy_j=None,
        utilisation={"mac": 0.0, "bandwidth": 0.0},
        dropped=shape.streams.dropped,
        wall_s=wall,
        routing=routing,
    )


def _add_model(report: Report, shape: PimShape, times: PimTimes, channels: list[ChannelTotals]) -> None:
    """Put the composed model's cycles into the report, and how well it uses lanes and column slots."""
    cycles, pim = times.cycles, shape.banks.pim
    report.cycles["model"] = cycles
    report.seconds = cycles / shape.design.clock_hz
    slots = dict.fromkeys(("mac", "refresh", "row", "other"), 0)
    for channel in channels:
        for name, count in channel.mac_slots.items():
            slots[name] += count
    fires = sum(channel.fires for channel in channels)
    report.utilisation = {
        "mac": fires * pim.mac_cycles / (cycles * pim.channels),
        "bandwidth": slots["mac"] / (cycles * pim.channels),
    }
    total = sum(slots.values()) or 1
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in slots.items())
    report.notes.append(f"from first to last MAC of each channel: {shares}")


def _add_run(report: Report, shape: PimShape, seen: PimTimes, expected: PimTimes) -> None:
    """Put each block's own cycles into the report: as seen, and as its model has them."""
    for side, times in (("rtl", seen), ("model", expected)):
        for name, count in active_cycles(shape, times, expected.unit_entries).items():
            report.blocks[name][side] = count
