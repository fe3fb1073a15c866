"""The expert engine alone, the gate bypassed: the first N experts of a model, at any size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.expert import ffn
from golden.expert_int8 import ActivationScales, hidden_peak, scale_for
from golden.formats import BF16_ONE, Bits16, bf16_decode, bf16_encode
from golden.layer_bf16 import layer_image, pack_expert
from golden.vectors import Vector, read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.accelerator import Report, float_error, load_compiled, token_beats
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.expert import EngineShape, ExpertCycles, ExpertJobs, ExpertModel, expert_cycles
from sim.rtlsim import (
    DEFAULT_ROOT,
    Build,
    ReadMemory,
    RunResult,
    RunSpec,
    Sink,
    Source,
    Trace,
    Waveform,
    build,
    expert_component,
)
from sim.streams import Cycles
from sim.workload import check_image, is_vector, scaled_model
from spec.design import DesignSpec, Format
from spec.errors import require
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.model import ModelSpec


@dataclass(frozen=True)
class Plan:
    """Every one of ``num_tokens`` tokens goes to each of the first ``num_experts`` experts, a job each."""

    model: ModelSpec
    design: DesignSpec
    num_experts: int
    num_tokens: int

    def __post_init__(self) -> None:
        limit, window = self.model.gating.num_experts, self.design.window_tokens
        require(
            1 <= self.num_experts <= limit, f"must be in 1..{limit}, not {self.num_experts}", key="experts"
        )
        require(
            1 <= self.num_tokens <= window,
            f"must be in 1..{window} (one window) with --experts, not {self.num_tokens}",
            key="tokens",
        )

    @property
    def image(self) -> ImageGeometry:
        """The weight image's geometry."""
        return ImageGeometry.of(self.model, self.design)

    @property
    def shape(self) -> EngineShape:
        """The engine's geometry."""
        return EngineShape.of_design(self.image, self.design)

    @property
    def experts(self) -> NDArray[np.int64]:
        """Expert of each job entry."""
        return np.repeat(np.arange(self.num_experts), self.num_tokens)

    @property
    def slots(self) -> NDArray[np.int64]:
        """Token of each job entry, which is also its slot in the token store."""
        return np.tile(np.arange(self.num_tokens), self.num_experts)

    @property
    def last(self) -> NDArray[np.bool_]:
        """Whether a job entry is the last of its job."""
        ends: NDArray[np.bool_] = self.slots == self.num_tokens - 1
        return ends

    @property
    def arrivals(self) -> Cycles:
        """Cycle in which each job entry is offered: when all tokens are in the store."""
        loaded = self.num_tokens * self.image.gate.input_beats + 2
        return np.full(len(self.experts), loaded, dtype=np.int64)

    @property
    def shared(self) -> NDArray[np.bool_]:
        """Whether a job entry's expert is the shared one: never."""
        return np.zeros(len(self.experts), dtype=np.bool_)

    def jobs(self) -> ExpertJobs:
        """Return the cycle model's answer."""
        model = ExpertModel(self.shape, self.design.memory.latency_cycles)
        return model.run(self.shared, self.last, self.arrivals)

    def times(self) -> ExpertCycles:
        """Return the cycle model's answer, beat by beat."""
        return expert_cycles(
            self.shape,
            self.shared,
            self.last,
            self.arrivals,
            latency=self.design.memory.latency_cycles,
        )


@dataclass(frozen=True, eq=False)
class Operands:
    """What the engine computes with, and what comes out.

    Attributes
    ----------
    weights : the layer's, with the plan's experts at least.
    tokens : (tokens, d_model) bf16 patterns.
    results : (experts, tokens, d_model) bf16 patterns, golden.
    scales : of the tokens and of the experts' hidden activations, None in bf16.
    """

    weights: LayerWeights
    tokens: Bits16
    results: Bits16
    scales: ActivationScales | None


def run_experts(*arguments: Any, **options: Any) -> Report:
    """Run every token through each of the first experts, one job per expert; see :func:`prepare`."""
    return prepare(*arguments, **options)()


def prepare(
    name: str,
    design: DesignSpec,
    num_experts: int,
    num_tokens: int | None,
    divisor: int,
    *,
    engine: str,
    seed: int,
    waves: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Callable[[str], None] = lambda _text: None,
) -> Callable[[], Report]:
    """Return what runs every token through each of the first ``num_experts`` experts, one job per expert.

    ``name`` is a vector (its own weights and first tokens; all that fit a window by default) or a
    model, divided by ``divisor``, with seeded weights and tokens (one by default). ``waves`` and
    differences as in :func:`sim.accelerator.run_layer`. Raises :class:`InputError` for what does not fit.
    """
    vector = read_vector(Path(name)) if is_vector(name) else None
    model = scaled_model(name, divisor) if vector is None else vector.model
    if vector is not None:
        given = len(vector.flat_tokens)
        default = min(design.window_tokens, given)
        require(
            (num_tokens or 0) <= given, f"must be in 1..{given} for {name}, not {num_tokens}", key="tokens"
        )
    else:
        default = 1
    plan = Plan(model, design, num_experts, default if num_tokens is None else num_tokens)
    image = plan.image
    if engine != "model":
        check_image(image.expert_page(num_experts) * PAGE_BYTES)
    return lambda: _run(plan, vector, engine=engine, seed=seed, waves=waves, root=root, progress=progress)


def _run(
    plan: Plan,
    vector: Vector | None,
    *,
    engine: str,
    seed: int,
    waves: Path | None,
    root: Path,
    progress: Callable[[str], None],
) -> Report:
    model, design, num_experts = plan.model, plan.design, plan.num_experts
    load_compiled()
    started = time.perf_counter()
    jobs = plan.jobs()
    report = _report(plan, engine, jobs, time.perf_counter() - started)
    if engine == "model":
        return report

    progress("drawing weights and tokens, computing golden results")
    started = time.perf_counter()
    if vector is not None:
        operands = _operands(plan, vector.weights, bf16_encode(vector.flat_tokens[: plan.num_tokens]))
    else:
        weights = random_weights(model, seed, experts=range(num_experts))
        operands = _operands(plan, weights, bf16_encode(random_tokens(model, plan.num_tokens, seed)))
    report.wall_s += time.perf_counter() - started
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = build_expert(model, design, root, trace=waves is not None)
    spec = _job(plan, rtl, operands)
    progress(f"running {plan.num_tokens} tokens through {num_experts} experts in Verilog")
    vcd = Waveform.of_run(waves / f"{model.name}_experts.vcd") if waves else None
    started = time.perf_counter()
    result = rtl.run(spec, vcd=vcd)
    report.wall_s += time.perf_counter() - started
    _add_run(report, plan, result)
    report.reference = _compare_with_float(plan, operands)
    checks = _checks(plan, rtl, operands, result, plan.times() if engine == "both" else None)
    report.mismatches = _differing_bits(checks[0])
    found = first_divergence(checks)
    problems = [*result.violations, *([result.timeout] if result.timeout else [])]
    if found is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(found, rtl, spec, root / "waves")
    elif problems:
        report.divergence = "; ".join(problems)
    report.waveform = str(vcd.path) if vcd else None
    return report


def build_expert(
    model: ModelSpec, design: DesignSpec, root: Path = DEFAULT_ROOT, *, trace: bool = False
) -> Build:
    """Return the compiled bench of an expert engine's exported Verilog; builds are cached by content."""
    # The hardware does not depend on the names of presets or on how many layers there are.
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    config = (anonymous, dataclasses.replace(design, name="design"))
    return build("expert", expert_component(model, design), config=config, trace=trace, root=root)


def _operands(plan: Plan, weights: LayerWeights, tokens: Bits16) -> Operands:
    scales = _calibrate(plan, weights, tokens) if plan.design.format is Format.INT8 else None
    results = [
        pack_expert(plan.image, weights, expert, scales).outputs(tokens) for expert in range(plan.num_experts)
    ]
    return Operands(weights, tokens, np.stack(results), scales)


def _calibrate(plan: Plan, weights: LayerWeights, tokens: Bits16) -> ActivationScales:
    """Return the scales of the plan's experts, each of which meets all tokens."""
    x = bf16_decode(tokens)
    peak = max(hidden_peak(plan.model.ffn, weights.expert(expert), x) for expert in range(plan.num_experts))
    return ActivationScales(scale_for(float(np.abs(x).max())), scale_for(peak))


def _job(plan: Plan, rtl: Build, operands: Operands) -> RunSpec:
    """Return the native bench's job: tokens into the store, then every expert's entries."""
    image, memory, scales = plan.image, plan.design.memory, operands.scales
    entries = rtl.pack("i", expert=plan.experts, slot=plan.slots, weight=BF16_ONE, last=plan.last)
    return RunSpec(
        sources={
            "i_token": Source(token_beats(image, plan.design, operands.tokens, [plan.num_tokens])),
            "i": Source(entries, plan.arrivals),
        },
        sinks={"o": Sink(len(entries) * plan.shape.words)},
        memories={
            "o_ar": ReadMemory(
                layer_image(plan.model, image, operands.weights, range(plan.num_experts), scales=scales),
                latency=memory.latency_cycles,
                max_outstanding=256,
            )
        },
        statics={} if scales is None else {"scale_x": scales.x.word, "scale_h": scales.hidden.word},
        probes=["fire"],
        max_cycles=1 << 40,
    )


def _expected(plan: Plan, rtl: Build, results: Bits16) -> NDArray[np.uint64]:
    """Return the beats that golden expects: per expert and block of array rows, every token's words."""
    lanes, words = plan.design.tile.act_lanes, plan.shape.words
    elements = np.zeros((*results.shape[:2], words * lanes), dtype=np.uint16)
    elements[..., : results.shape[2]] = results
    beats = elements.reshape(plan.num_experts, plan.num_tokens, words, lanes)
    token, word = plan.shape.output_order(np.array([plan.num_tokens]))
    return rtl.pack(
        "o",
        slot=np.tile(token, plan.num_experts),
        word=np.tile(word, plan.num_experts),
        weight=BF16_ONE,
        data=beats[:, token, word].reshape(-1, lanes),
        last=np.tile(word == words - 1, plan.num_experts),
    )


def _checks(
    plan: Plan, rtl: Build, operands: Operands, result: RunResult, times: ExpertCycles | None
) -> list[PortCheck]:
    """Return the comparisons: the results with golden, and all ports with the model if there are times."""
    seen, memory = result.streams["o"], result.memories["o_ar"]
    payloads = _expected(plan, rtl, operands.results)
    if times is None:
        return [PortCheck("expert", "o", seen, payloads=payloads, fields=rtl.fields("o"))]
    return [
        PortCheck("expert", "o", seen, payloads=payloads, cycles=times.o, fields=rtl.fields("o")),
        PortCheck("expert", "i", result.streams["i"], cycles=times.i),
        PortCheck("expert", "o_ar", Trace.of_cycles(memory.ar_cycles), cycles=times.ar),
        PortCheck("expert", "i_r", Trace.of_cycles(memory.r_cycles), cycles=times.r),
    ]


def _differing_bits(check: PortCheck) -> int:
    """Return the bits in which the payloads differ; a missing or extra beat counts whole."""
    expected, seen = np.asarray(check.payloads, dtype=np.uint64), check.seen.payloads
    common = min(len(expected), len(seen))
    differing = int(np.bitwise_count(expected[:common] ^ seen[:common]).sum())
    return differing + 64 * int(expected.shape[1]) * abs(len(expected) - len(seen))


def _report(plan: Plan, engine: str, jobs: ExpertJobs, wall_s: float) -> Report:
    """Return the report of the cycle model's run; without its cycles for engine ``rtl``."""
    cycles = int(jobs.results[-1] - jobs.i[0]) + 1
    modelled = None if engine == "rtl" else cycles
    model = plan.model
    return Report(
        model=model.name,
        design=plan.design.name,
        format=plan.design.format,
        engine=engine,
        tokens=plan.num_tokens,
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles={"model": modelled, "rtl": None},
        blocks={"expert": {"model": modelled, "rtl": None}},
        mismatches=None,
        seconds=cycles / plan.design.clock_hz,
        energy_j=None,
        utilisation={"mac": jobs.fires / cycles, "bandwidth": jobs.read_beats / cycles},
        dropped=0,
        wall_s=wall_s,
        routing={
            "requested": "all tokens to each expert",
            "experts_used": plan.num_experts,
            "max_load": plan.num_tokens,
        },
        notes=[
            "the gate, the dispatcher and the combiner are bypassed; cycles from first entry to last beat"
        ],
    )


def _add_run(report: Report, plan: Plan, result: RunResult) -> None:
    """Put what the Verilog showed in the place of what the model says."""
    report.simulated_cycles_per_second = result.cycles_per_second
    if result.timeout is not None:
        return
    cycles = int(result.streams["o"].cycles[-1] - result.streams["i"].cycles[0]) + 1
    report.cycles["rtl"] = report.blocks["expert"]["rtl"] = cycles
    report.seconds = cycles / plan.design.clock_hz
    report.utilisation = {
        "mac": len(result.probes["fire"][0]) / cycles,
        "bandwidth": len(result.memories["o_ar"].r_cycles) / cycles,
    }


def _compare_with_float(plan: Plan, operands: Operands) -> dict[str, object]:
    """Return how far the results are from those in float, in deviations of these."""
    x = bf16_decode(operands.tokens)
    reference = np.stack(
        [ffn(plan.model.ffn, x=x, **vars(operands.weights.expert(n))) for n in range(plan.num_experts)]
    )
    return {
        "name": "float golden",
        "tokens_with_same_experts": None,
        **float_error(operands.results, reference, float(reference.std()), operands.scales),
    }
