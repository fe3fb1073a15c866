"""Run a workload on an accelerator: golden, cycle model, exported Verilog; compare all three."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.dispatch_streams import DispatchStreams
from golden.expert_int8 import ActivationScales
from golden.experts import calibrate
from golden.formats import Bits16, bf16_decode
from golden.gating_bf16 import RoutingBf16
from golden.layer_bf16 import LayerBf16, layer_bf16, layer_image, layer_streams
from sim.activity import Activity
from sim.divergence import PortCheck, differing_bits, first_divergence, with_waveform
from sim.energy import Energy, energy_of, fpga_counts
from sim.layer import (
    BLOCKS,
    LayerCycles,
    LayerShape,
    LayerTimes,
    StreamTimes,
    active_cycles,
    block_times,
    layer_activity,
    layer_cycles,
    seen_activity,
)
from sim.routing import IntArray
from sim.rtlsim import (
    DEFAULT_ROOT,
    Build,
    ReadMemory,
    RunResult,
    RunSpec,
    Set,
    Sink,
    Source,
    Step,
    Trace,
    Waveform,
    build,
    layer_component,
    reg_read,
    reg_wait,
    reg_write,
)
from sim.streams import Cycles, spans_of
from sim.waves import write_views
from sim.workload import Workload
from spec.design import DesignSpec
from spec.geometry import ImageGeometry
from spec.load import load_design, load_model
from spec.model import ModelSpec
from spec.registers import (
    CONTROL_CLEAR,
    CONTROL_LOAD,
    EXPERT_BITS,
    POLICIES,
    PROBE,
    PROBE_EXPERT,
    PROBE_WAIT_TILE,
    PROBE_WEIGHT,
    REGISTERS,
    STATUS_LOADED,
    capacity_word,
    counter_address,
    counters_of,
)

Progress = Callable[[str], None]

BLOCK_PORTS = {
    "tokens": ("gating", "i"),
    "assignments": ("gating", "o"),
    "assignments (sink)": ("dispatch", "i"),
    "expects": ("dispatch", "o_expect"),
    "expects (sink)": ("combine", "i_expect"),
    "entries": ("dispatch", "o"),
    "entries (sink)": ("expert", "i"),
    "addresses": ("expert", "o_ar"),
    "beats": ("expert", "i_r"),
    "contributions": ("expert", "o"),
    "contributions (sink)": ("combine", "i"),
    "output": ("combine", "o"),
}


@dataclass(kw_only=True)
class Report:
    """Result of a run; the names of the command line's JSON. What was not run is None.

    ``activity``: when the parts of a layer work, where it was asked for; no part of the JSON.
    ``dram``, of a near-memory run: ``commands`` of all channels by name, ``refreshes`` that fell due and
    that were issued in that very cycle, ``violations`` of the DRAM's rules.
    ``secded``, of a run of the Verilog whose banks hold check bits: words with bits ``planted`` and
    ``planted_double``, words read that were ``corrected`` and ``uncorrected``.
    """

    model: str
    design: str
    format: str
    engine: str
    tokens: int
    d_model: int
    d_expert: int
    experts: int
    top_k: int
    cycles: dict[str, int | None]
    blocks: dict[str, dict[str, int | None]]
    mismatches: int | None
    seconds: float
    utilisation: dict[str, float]
    dropped: int
    wall_s: float
    routing: dict[str, Any]
    energy: Energy | None = None
    counters: dict[str, int] | None = None
    dram: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    simulated_cycles_per_second: float | None = None
    dram_rules_broken: int | None = None
    secded: dict[str, int] | None = None
    layout: dict[str, Any] | None = None
    mac_slots: dict[str, int] | None = None
    divergence: str | None = None
    waveform: str | None = None
    notes: list[str] = field(default_factory=list)
    activity: Activity | None = field(default=None, repr=False)

    @property
    def energy_j(self) -> float | None:
        """Energy in all, in joules; None where it was not counted."""
        return None if self.energy is None else self.energy.total

    @property
    def agreed(self) -> bool:
        """Whether everything that was compared is equal (the layer's own cycles within 1 %)."""
        return self.divergence is None and not self.mismatches

    def as_json(self) -> dict[str, Any]:
        """Return the report as the contract's JSON object: every block of a layer, also those not run."""
        engine = "pim" if "pim" in self.blocks else "expert"
        not_run = {"model": None, "rtl": None}
        values = dataclasses.asdict(dataclasses.replace(self, activity=None))
        del values["activity"]
        return {
            **values,
            "energy_j": self.energy_j,
            "energy": None if self.energy is None else self.energy.as_json(),
            "blocks": {
                name: self.blocks.get(name, not_run) for name in ("gating", "dispatch", engine, "combine")
            },
        }

    @property
    def difference_from_reference(self) -> str | None:
        """Return a sentence about tokens that choose other experts than the reference's, if there are any."""
        if self.reference is None or self.reference["first_token_with_other_experts"] is None:
            return None
        others = self.tokens - self.reference["tokens_with_same_experts"]
        return (
            f"{others} of {self.tokens} tokens go to other experts than in {self.reference['name']},"
            f" first token {self.reference['first_token_with_other_experts']}"
        )


def routing_report(name: str, ids: IntArray, num_experts: int, target: IntArray | None) -> dict[str, Any]:
    """Return the load that was asked for beside the one that came out."""
    load = np.bincount(ids.ravel(), minlength=num_experts)
    report: dict[str, Any] = {
        "requested": name,
        "experts_used": int((load > 0).sum()),
        "max_load": int(load.max()),
        "mean_load": float(load.mean()),
    }
    if target is not None:
        wanted = np.bincount(target.ravel(), minlength=num_experts)
        same = (np.sort(ids, axis=1) == np.sort(target, axis=1)).all(axis=1)
        report["requested_max_load"] = int(wanted.max())
        report["tokens_as_requested"] = float(same.mean())
    return report


@cache
def load_compiled() -> None:
    """Load the models' compiled code: set-up, not part of the time of the run that comes first."""
    model, design = load_model("mixtral-8x7b").scaled(64), load_design("fpga")
    layer_cycles(layer_shape(model, design, np.arange(model.gating.top_k)[None]), np.zeros(1, np.int64))


def run_model(
    model: ModelSpec,
    design: DesignSpec,
    ids: IntArray,
    routing: str,
    batch_lengths: list[int] | None = None,
    *,
    record: bool = False,
) -> Report:
    """Return the cycle model's answer for a routing; no weights, no Verilog.

    ``record``: whether the report tells when what works (``activity``).
    """
    shape = layer_shape(model, design, ids, batch_lengths)
    load_compiled()
    started = time.perf_counter()
    modelled = layer_cycles(shape, np.zeros(len(ids), dtype=np.int64))
    wall = time.perf_counter() - started
    report = _report(
        model,
        design,
        "model",
        shape,
        modelled,
        None,
        wall,
        routing_report(routing, ids, model.gating.num_experts, None),
    )
    if record:
        report.activity = layer_activity(shape, modelled)
    return report


def layer_shape(
    model: ModelSpec, design: DesignSpec, ids: IntArray, batch_lengths: list[int] | None = None
) -> LayerShape:
    """Return a model's layer on a design, for tokens that go to the experts ``ids`` (tokens, k)."""
    image = ImageGeometry.of(model, design)
    return LayerShape(image, design, streams_of(model, image, design, ids, batch_lengths))


def streams_of(
    model: ModelSpec,
    image: ImageGeometry,
    design: DesignSpec,
    ids: IntArray,
    batch_lengths: list[int] | None = None,
) -> DispatchStreams:
    """Return what the dispatcher makes of tokens that go to the experts ``ids`` (tokens, k), weights 0."""
    nothing = np.zeros(ids.shape, dtype=np.int64)
    return layer_streams(
        model,
        image,
        RoutingBf16(ids, nothing.astype(np.uint16), nothing, scores=nothing),
        window_tokens=design.window_tokens,
        batch_lengths=batch_lengths,
        policy=design.policy,
    )


def build_layer(
    model: ModelSpec, design: DesignSpec, root: Path = DEFAULT_ROOT, *, trace: bool = False
) -> Build:
    """Return the compiled bench of a layer's exported Verilog; builds are cached by content."""
    # The hardware does not depend on the names of presets or on how many layers there are.
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    return build(
        "layer",
        layer_component(model, design),
        config=(anonymous, design.hardware),
        trace=trace,
        root=root,
    )


@dataclass(frozen=True)
class LayerRun:
    """A layer's run of the Verilog: the job, what came back, and what golden and model expect."""

    workload: Workload
    design: DesignSpec
    shape: LayerShape
    golden: LayerBf16
    spec: RunSpec
    result: RunResult
    seen: LayerTimes
    assignments: Trace
    counters: dict[str, int]


def scales_of(workload: Workload, design: DesignSpec) -> ActivationScales | None:
    """Return the scales that experts in an integer format get for a workload's tokens; None in others."""
    if not design.format.integer:
        return None
    return calibrate(workload.model, workload.weights, bf16_decode(workload.tokens))


def scale_steps(scales: ActivationScales | None) -> list[Step]:
    """Return the register writes of the scales, none in bf16."""
    if scales is None:
        return []
    return [
        reg_write(REGISTERS["SCALE_X"], scales.x.word),
        reg_write(REGISTERS["SCALE_H"], scales.hidden.word),
    ]


def setup_steps(
    model: ModelSpec,
    design: DesignSpec,
    batch_lengths: Sequence[int],
    scales: ActivationScales | None,
    *,
    page: int = 0,
    placement: Sequence[Step] = (),
) -> list[Step]:
    """Return the register steps from reset to the first token: settings, then the router is loaded.

    ``page``: 4 KiB page at which the weight image lies; ``placement``: where a near-memory design's experts
    lie.
    """
    loaded = 1 << STATUS_LOADED
    capacity = capacity_word(
        model.capacity_for(list(batch_lengths)), max(batch_lengths), key=model.capacity_key
    )
    return [
        reg_write(REGISTERS["IMAGE_PAGE"], page),
        reg_write(REGISTERS["CAPACITY"], capacity),
        reg_write(REGISTERS["POLICY"], POLICIES.index(design.policy)),
        *scale_steps(scales),
        *placement,
        reg_write(REGISTERS["CONTROL"], 1 << CONTROL_LOAD),
        reg_wait(REGISTERS["STATUS"], loaded, loaded, 1 << 30),
    ]


def layer_job(
    workload: Workload,
    design: DesignSpec,
    *,
    arrivals: Cycles | None = None,
    output_ready: NDArray[np.bool_] | None = None,
    max_cycles: int | None = None,
) -> tuple[LayerShape, LayerBf16, RunSpec]:
    """Return shape, golden result and the native bench's job of a workload."""
    model = workload.model
    image = ImageGeometry.of(model, design)
    scales = scales_of(workload, design)
    golden = layer_bf16(
        model,
        image,
        workload.weights,
        workload.tokens,
        window_tokens=design.window_tokens,
        batch_lengths=workload.batch_lengths,
        policy=design.policy,
        scales=scales,
    )
    shape = LayerShape(image, design, golden.streams)
    num_tokens = len(workload.tokens)
    beats = token_beats(image, design, workload.tokens, workload.batch_lengths)
    offered = np.zeros(len(beats), dtype=np.int64) if arrivals is None else arrivals
    spec = RunSpec(
        sources={"i": Source(beats, offered)},
        sinks={"o": Sink(num_tokens * shape.engine.words, output_ready)},
        memories={
            "o_ar": ReadMemory(
                layer_image(model, image, workload.weights, scales=scales),
                latency=design.memory.latency_cycles,
                max_outstanding=256,
            )
        },
        prologue=[
            *setup_steps(model, design, workload.batch_lengths, scales),
            reg_write(REGISTERS["CONTROL"], 1 << CONTROL_CLEAR),
            # The counters are cleared in the cycle after the write; no event may fall into it.
            Set({"reg_addr": REGISTERS["STATUS"]}),
        ],
        epilogue=counter_steps(design),
        probes=["probe"],
        max_cycles=max_cycles or 1 << 40,
    )
    return shape, golden, spec


def token_beats(
    image: ImageGeometry, design: DesignSpec, tokens: Bits16, batch_lengths: list[int]
) -> NDArray[np.uint64]:
    """Return the input stream's payloads of a layer; see :func:`input_payloads`."""
    return input_payloads(design.stream_lanes, image.gate.input_beats, tokens, batch_lengths)


def input_payloads(lanes: int, beats: int, tokens: Bits16, batch_lengths: list[int]) -> NDArray[np.uint64]:
    """Return the payloads of ``beats`` beats a token: ``lanes`` elements, then ``last`` of the batch."""
    elements = np.zeros((len(tokens), beats * lanes), dtype=np.uint16)
    elements[:, : tokens.shape[1]] = tokens
    last = np.zeros((len(tokens), beats), dtype=np.uint16)
    last[np.cumsum(batch_lengths) - 1, -1] = 1
    words = -(-(lanes + 1) // 4) * 4
    payloads = np.zeros((len(tokens) * beats, words), dtype=np.uint16)
    payloads[:, :lanes] = elements.reshape(-1, lanes)
    payloads[:, lanes] = last.ravel()
    return payloads.view(np.uint64)


def output_payloads(lanes: int, golden: LayerBf16, batch_lengths: list[int]) -> NDArray[np.uint64]:
    """Return the output stream's payloads that golden expects, ``lanes`` elements a beat."""
    num_tokens, d_model = golden.output.shape
    words = -(-d_model // lanes)
    elements = np.zeros((num_tokens, words * lanes), dtype=np.uint16)
    elements[:, :d_model] = golden.output
    last = np.zeros((num_tokens, words), dtype=np.uint16)
    last[np.cumsum(batch_lengths) - 1, -1] = 1
    width = -(-(lanes + 1) // 4) * 4
    payloads = np.zeros((num_tokens * words, width), dtype=np.uint16)
    payloads[:, :lanes] = elements.reshape(-1, lanes)
    payloads[:, lanes] = last.ravel()
    return payloads.view(np.uint64)


def run_rtl(
    rtl: Build,
    workload: Workload,
    design: DesignSpec,
    *,
    seed: int = 1,
    vcd: Waveform | None = None,
    **job: Any,
) -> LayerRun:
    """Run a workload through a layer's Verilog; ``job`` goes to :func:`layer_job`."""
    shape, golden, spec = layer_job(workload, design, **job)
    result = rtl.run(spec, seed=seed, vcd=vcd)
    cycles, values = result.probes["probe"]
    return LayerRun(
        workload=workload,
        design=design,
        shape=shape,
        golden=golden,
        spec=spec,
        result=result,
        seen=seen_times(cycles, values),
        assignments=seen_assignments(cycles, values),
        counters=counters_read(design, result.reads),
    )


def seen_times(cycles: Cycles, values: NDArray[np.uint64]) -> LayerTimes:
    """Return the times of the streams that the layer's ``probe`` showed.

    A beat is offered from the first cycle of its waiting on. Parameters as in
    :attr:`sim.rtlsim.RunResult.probes`; addresses and beats of the prologue are not in it.
    """

    def at(bit: int) -> Cycles:
        found: Cycles = cycles[(values >> np.uint64(bit)) & np.uint64(1) == 1]
        return found

    streams = {}
    for index, name in enumerate(PROBE):
        taken, waits = at(2 * index), at(2 * index + 1)
        before = np.searchsorted(waits, taken)
        count = np.diff(np.concatenate([[0], before]))
        streams[name] = StreamTimes(taken - count, taken)
    return LayerTimes(streams, spans_of(at(PROBE_WAIT_TILE)))


def seen_assignments(cycles: Cycles, values: NDArray[np.uint64]) -> Trace:
    """Return the assignments that passed the probe: their cycles, experts and weights."""
    passed = values >> np.uint64(2 * PROBE.index("assignments")) & np.uint64(1) == 1
    mask = np.uint64((1 << (EXPERT_BITS + 16)) - 1)
    payloads = (values[passed] >> np.uint64(PROBE_EXPERT)) & mask
    return Trace(cycles[passed], payloads.reshape(-1, 1))


def counter_steps(design: DesignSpec) -> list[Step]:
    """Return the register reads of a design's counters."""
    return [reg_read(counter_address(name) + offset) for name in counters_of(design) for offset in (0, 4)]


def counters_read(design: DesignSpec, reads: list[int]) -> dict[str, int]:
    """Return the counters by name from the words that :func:`counter_steps` read."""
    pairs = zip(reads[::2], reads[1::2], strict=True)
    return {name: low | high << 32 for name, (low, high) in zip(counters_of(design), pairs, strict=True)}


def checks(run: LayerRun, *, cycles: bool = True) -> list[PortCheck]:
    """Return every comparison of a run: payloads with golden, cycles with the block models."""
    golden = run.golden
    ids = golden.routing.ids.ravel().astype(np.uint64)
    weights = golden.routing.weights.ravel().astype(np.uint64)
    found = [
        PortCheck(
            "gating",
            "o",
            run.assignments,
            payloads=ids | weights << np.uint64(PROBE_WEIGHT - PROBE_EXPERT),
        ),
        PortCheck(
            "combine",
            "o",
            run.result.streams["o"],
            payloads=output_payloads(run.design.tile.act_lanes, golden, run.workload.batch_lengths),
        ),
    ]
    return found + cycle_checks(run.shape, run.seen) if cycles else found


def cycle_checks(shape: LayerShape, seen: LayerTimes) -> list[PortCheck]:
    """Return the comparisons of each block with its model, given the arrivals seen at the block's ports.

    None where beats are missing: a model cannot be asked about half a run.
    """
    if not complete(shape, seen):
        return []
    expected, _ = block_times(shape, seen)
    found = []
    for name, (block, port) in BLOCK_PORTS.items():
        taken = seen.streams[name.removesuffix(" (sink)")].taken
        found.append(PortCheck(block, port, Trace.of_cycles(taken), cycles=expected[name]))
    return found


def complete(shape: LayerShape, seen: LayerTimes) -> bool:
    """Whether every beat of the streams came."""
    streams, num_tokens = shape.streams, len(shape.streams.window)
    counts = {
        "tokens": num_tokens * shape.image.gate.input_beats,
        "assignments": streams.ids.size,
        "expects": num_tokens,
        "entries": len(streams.entry_token),
        "contributions": len(streams.entry_token) * shape.engine.words,
        "output": num_tokens * shape.engine.words,
    }
    return all(len(seen.streams[name].taken) == count for name, count in counts.items())


def mismatches(run: LayerRun) -> int:
    """Return the differing bits over selected ids, weights and outputs; a missing beat counts whole."""
    return sum(differing_bits(check) for check in checks(run, cycles=False))


def run_layer(
    workload: Workload,
    design: DesignSpec,
    *,
    engine: str,
    routing: str,
    seed: int = 1,
    waves: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = lambda _text: None,
    record: bool = False,
) -> Report:
    """Run a workload with weights on the ``rtl`` engine, or on ``both``, and compare.

    With ``waves`` a VCD of the run (:meth:`sim.rtlsim.Waveform.of_run`) is left in that folder, and beside it
    what viewers show of it (:func:`sim.waves.write_views`), with ``record`` the report tells when what
    worked in the Verilog (``activity``). On a difference the report's ``divergence`` names the first one and
    a waveform around it.
    """
    model = workload.model
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = build_layer(model, design, root, trace=waves is not None)
    load_compiled()
    progress(f"running {len(workload.tokens)} tokens through the Verilog")
    vcd = Waveform.of_run(waves / f"{model.name}.vcd") if waves else None
    views = partial(write_views, model=model, design=design)
    started = time.perf_counter()
    run = run_rtl(rtl, workload, design, seed=seed, vcd=vcd)
    modelled = layer_cycles(run.shape, np.zeros(len(workload.tokens), dtype=np.int64))
    wall = time.perf_counter() - started
    ids = run.golden.routing.ids
    report = _report(
        model,
        design,
        engine,
        run.shape,
        modelled if engine == "both" else None,
        run,
        wall,
        routing_report(routing, ids, model.gating.num_experts, workload.target_ids),
    )
    report.reference = compare_with_float(workload, run.golden)
    if record and complete(run.shape, run.seen):
        report.activity = seen_activity(run.shape, run.seen)
    progress("comparing")
    report.mismatches = mismatches(run)
    problems = [*run.result.violations, *([run.result.timeout] if run.result.timeout else [])]
    found = first_divergence(checks(run, cycles=engine == "both"))
    if found is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(found, rtl, run.spec, root / "waves", seed=seed, views=views)
    elif problems:
        report.divergence = "; ".join(problems)
    else:
        report.divergence = cycles_apart(report)
    if vcd:
        report.waveform = str(vcd.path)
        views(vcd.path)
    return report


def cycles_apart(report: Report) -> str | None:
    """Return a sentence if the layer's model and Verilog are more than 1 % apart."""
    model, rtl = report.cycles["model"], report.cycles["rtl"]
    if model is not None and rtl is not None and abs(model - rtl) > 0.01 * rtl:
        return f"layer: cycles: model {model}, rtl {rtl}: more than 1 % apart"
    return None


def compare_with_float(workload: Workload, golden: LayerBf16) -> dict[str, Any]:
    """Return how far the result is from the float reference, and whether the sets agree.

    Errors are those of the tokens with the same experts.
    """
    ids = np.where(golden.streams.kept, golden.routing.ids, -1)
    wanted = np.where(workload.reference_kept, workload.reference_ids, -1)
    same = (np.sort(ids, axis=1) == np.sort(wanted, axis=1)).all(axis=1)
    deviation = float(workload.reference.std())
    return {
        "name": workload.reference_name,
        "tokens_with_same_experts": int(same.sum()),
        "first_token_with_other_experts": None if same.all() else int(np.argmin(same)),
        **float_error(golden.output[same], workload.reference[same], deviation, golden.scales),
    }


def float_error(
    result: Bits16,
    reference: NDArray[np.float64],
    deviation: float,
    scales: ActivationScales | None,
) -> dict[str, Any]:
    """Return the error of bf16 patterns against a float reference of the same shape.

    The largest and the mean one in deviations, and the root of the sum of squares over that of the
    reference; None where that is no finite number. In int8 also the scales.
    """
    error = np.abs(bf16_decode(result).astype(np.float64) - reference)
    ok = error.size > 0 and deviation > 0 and bool(np.isfinite(error).all())
    norm = float(np.linalg.norm(reference))
    return {
        "max_error_over_std": float(error.max() / deviation) if ok else None,
        "mean_error_over_std": float(error.mean() / deviation) if ok else None,
        "relative_error": float(np.linalg.norm(error) / norm) if ok and norm else None,
        "scales": None if scales is None else {"x": scales.x.value, "hidden": scales.hidden.value},
    }


def _report(
    model: ModelSpec,
    design: DesignSpec,
    engine: str,
    shape: LayerShape,
    modelled: LayerCycles | None,
    run: LayerRun | None,
    wall: float,
    routing: dict[str, Any],
) -> Report:
    blocks: dict[str, dict[str, int | None]] = {name: {"model": None, "rtl": None} for name in BLOCKS}
    cycles: dict[str, int | None] = {"model": None, "rtl": None}
    fires = beats = 0
    if modelled is not None:
        cycles["model"] = modelled.cycles
        fires, beats = modelled.fires, modelled.read_beats
        for name, count in modelled.active.items():
            blocks[name]["model"] = count
    if run is not None:
        fires, beats = run.counters["mac_active"], run.counters["read_beats"]
        if complete(run.shape, run.seen):
            cycles["rtl"] = run.seen.cycles
            waits = {name: stream.waits for name, stream in run.seen.streams.items()}
            taken = {name: stream.taken for name, stream in run.seen.streams.items()}
            for name, count in active_cycles(shape, taken, waits, run.seen.wait_tile).items():
                blocks[name]["rtl"] = count
            if modelled is not None:
                # A block's model is compared at the arrivals that the block saw.
                expected, wait_tile = block_times(shape, run.seen)
                for name, count in active_cycles(shape, expected, waits, wait_tile).items():
                    blocks[name]["model"] = count
    total = cycles["rtl"] if cycles["rtl"] is not None else cycles["model"]
    utilisation, energy = use_of(shape, fires=fires, read_beats=beats, cycles=total or 0)
    return Report(
        model=model.name,
        design=design.name,
        format=design.format,
        engine=engine,
        tokens=len(shape.streams.window),
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles=cycles,
        blocks=blocks,
        mismatches=None,
        seconds=(total or 0) / design.clock_hz,
        energy=energy,
        utilisation=utilisation,
        dropped=shape.streams.dropped,
        wall_s=wall,
        routing=routing,
        counters=run.counters if run is not None else None,
        simulated_cycles_per_second=run.result.cycles_per_second if run is not None else None,
    )


def use_of(
    shape: LayerShape, *, fires: int, read_beats: int, cycles: int
) -> tuple[dict[str, float], Energy | None]:
    """Return the shares of MAC slots and of the weight port's cycles that were used, and the energy."""
    design, energy = shape.design, None
    if design.energy is not None and cycles:
        counts = fpga_counts(shape.image, design, shape.streams, fires=fires, read_beats=read_beats)
        energy = energy_of(design.energy, counts, cycles / design.clock_hz)
    shares = {"mac": fires, "bandwidth": read_beats}
    return {name: count / cycles if cycles else 0.0 for name, count in shares.items()}, energy
