"""Plan and run an engine alone; what both engines have in common."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from golden.checkpoint import CheckpointLayer
from golden.expert import ffn
from golden.expert_int8 import ActivationScales, hidden_peak, scale_for
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.layer_bf16 import pack_expert
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.accelerator import Report, float_error, load_compiled
from sim.alone.expert import ExpertAlone
from sim.alone.pim import PimAlone
from sim.alone.plan import EngineAlone, Operands, Plan, Totals
from sim.divergence import differing_bits, first_divergence, with_waveform
from sim.dram_trace import trace_text
from sim.energy import Energy, energy_of
from sim.flips import NO_FLIPS, Flips, flip_problems, secded_of
from sim.rtlsim import DEFAULT_ROOT, RunResult, Waveform
from sim.toolchain import write_atomically
from sim.waves import write_views
from sim.workload import check_image, is_vector, scaled_model
from spec.design import DesignSpec, Engine
from spec.errors import require

ENGINES: dict[Engine, type[EngineAlone]] = {Engine.FPGA: ExpertAlone, Engine.PIM: PimAlone}


def run_experts(
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
) -> Report:
    """Run every token through each of the first ``num_experts`` experts, one job per expert.

    See :func:`plan_experts` and :func:`run_plan`.
    """
    alone = plan_experts(name, design, num_experts, num_tokens, divisor, engine=engine)
    return run_plan(alone, engine=engine, seed=seed, waves=waves, root=root, progress=progress)


def plan_experts(
    name: str,
    design: DesignSpec,
    num_experts: int,
    num_tokens: int | None,
    divisor: int,
    *,
    engine: str,
    own_layer: CheckpointLayer | None = None,
) -> EngineAlone:
    """Return what will run; :class:`InputError` for what does not fit.

    ``name`` is a vector (its own weights and first tokens; all that fit a window by default) or a
    model, divided by ``divisor``, with seeded weights and tokens (one by default). ``own_layer`` is where
    the weights are read instead.
    """
    vector = read_vector(Path(name)) if is_vector(name) else None
    if own_layer is not None:
        model = own_layer.model
    else:
        model = scaled_model(name, divisor) if vector is None else vector.model
    if vector is not None:
        given = len(vector.flat_tokens)
        default = min(design.window_tokens, given)
        require(
            (num_tokens or 0) <= given, f"must be in 1..{given} for {name}, not {num_tokens}", key="tokens"
        )
    else:
        default = 1
    plan = Plan(model, design, num_experts, default if num_tokens is None else num_tokens, vector, own_layer)
    alone = ENGINES[design.engine](plan)
    if engine != "model":
        check_image(alone.weight_bytes)
    return alone


def run_plan(
    alone: EngineAlone,
    *,
    engine: str,
    seed: int,
    waves: Path | None = None,
    trace: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Callable[[str], None] = lambda _text: None,
    flips: Flips = NO_FLIPS,
) -> Report:
    """Run a plan by the cycle model, the Verilog, or both, and compare.

    ``waves`` and differences as in :func:`sim.accelerator.run_layer`; ``trace`` and ``flips`` as in
    :func:`sim.pim_report.run_pim_layer`.
    """
    plan = alone.plan
    load_compiled()
    started = time.perf_counter()
    modelled = alone.modelled()
    report = _report(alone, engine, modelled, time.perf_counter() - started)
    if engine == "model":
        return report

    progress("drawing weights and tokens, computing golden results")
    started = time.perf_counter()
    operands = operands_of(plan, seed)
    report.wall_s += time.perf_counter() - started
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = alone.build(root, trace=waves is not None)
    spec = alone.job(rtl, operands)
    words = alone.flip(spec, flips, seed) if isinstance(alone, PimAlone) and alone.banks.pim.secded else None
    progress(f"running {plan.num_tokens} tokens through {plan.num_experts} experts in Verilog")
    vcd = Waveform.of_run(waves / alone.waveform_name) if waves else None
    views = partial(write_views, model=plan.model, design=plan.design)
    started = time.perf_counter()
    result = rtl.run(spec, vcd=vcd)
    report.wall_s += time.perf_counter() - started
    _add_run(report, alone, result)
    report.reference = _compare_with_float(plan, operands)
    checks = alone.checks(rtl, operands, result, cycles=engine == "both")
    report.mismatches = differing_bits(checks[0])
    problems = list(result.violations)
    if isinstance(alone, PimAlone):
        if trace is not None:
            write_atomically(trace, trace_text(alone.banks.pim, [alone.commands(result)]))
        rules = alone.violations(result)
        report.dram_rules_broken = len(rules)
        problems += [f"channel 0: {violation}" for violation in rules]
        if words is not None:
            planted, counts = alone.flips_seen(spec, result, words)
            report.secded = secded_of(planted, counts)
            problems += flip_problems(planted, counts, report.mismatches)
            if flips.double:
                # What differs then is no divergence.
                checks[0] = dataclasses.replace(checks[0], payloads=None)
    problems += [result.timeout] if result.timeout else []
    found = first_divergence(checks)
    if found is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(found, rtl, spec, root / "waves", views=views)
    elif problems:
        report.divergence = "; ".join(problems)
    if vcd:
        report.waveform = str(vcd.path)
        views(vcd.path)
    return report


def operands_of(plan: Plan, seed: int) -> Operands:
    """Return the vector's weights and tokens, or seeded ones (a folder's weights), with golden's results."""
    if plan.vector is not None:
        tokens = bf16_encode(plan.vector.flat_tokens[: plan.num_tokens])
        return _operands(plan, plan.vector.weights, tokens)
    experts = range(plan.num_experts)
    if plan.own_layer is not None:
        weights = plan.own_layer.read(experts)
    else:
        weights = random_weights(plan.model, seed, experts=experts)
    return _operands(plan, weights, bf16_encode(random_tokens(plan.model, plan.num_tokens, seed)))


def _operands(plan: Plan, weights: LayerWeights, tokens: Bits16) -> Operands:
    scales = _calibrate(plan, weights, tokens) if plan.design.format.integer else None
    results = [
        pack_expert(plan.image, weights, expert, scales).outputs(tokens) for expert in range(plan.num_experts)
    ]
    return Operands(weights, tokens, np.stack(results), scales)


def _calibrate(plan: Plan, weights: LayerWeights, tokens: Bits16) -> ActivationScales:
    """Return the scales of the plan's experts, each of which meets all tokens."""
    x = bf16_decode(tokens)
    peak = max(hidden_peak(plan.model.ffn, weights.expert(expert), x) for expert in range(plan.num_experts))
    return ActivationScales(scale_for(float(np.abs(x).max())), scale_for(peak))


def _report(alone: EngineAlone, engine: str, totals: Totals, wall_s: float) -> Report:
    """Return the report of the cycle model's run; without its cycles for engine ``rtl``."""
    plan, model = alone.plan, alone.plan.model
    modelled = None if engine == "rtl" else totals.cycles
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
        blocks={alone.BLOCK: {"model": modelled, "rtl": None}},
        mismatches=None,
        seconds=totals.cycles / plan.design.clock_hz,
        energy=_energy(alone, totals),
        utilisation={"mac": totals.mac, "bandwidth": totals.bandwidth},
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
        mac_slots=totals.mac_slots,
    )


def _add_run(report: Report, alone: EngineAlone, result: RunResult) -> None:
    """Put what the Verilog showed in the place of what the model says."""
    report.simulated_cycles_per_second = result.cycles_per_second
    if result.timeout is not None:
        return
    totals = alone.seen(result)
    report.cycles["rtl"] = report.blocks[alone.BLOCK]["rtl"] = totals.cycles
    report.seconds = totals.cycles / alone.plan.design.clock_hz
    report.utilisation = {"mac": totals.mac, "bandwidth": totals.bandwidth}
    report.mac_slots = totals.mac_slots
    report.energy = _energy(alone, totals)


def _energy(alone: EngineAlone, totals: Totals) -> Energy | None:
    """Return the energy of the engine alone; None where the design has no table."""
    design = alone.plan.design
    if design.energy is None:
        return None
    return energy_of(design.energy, totals.counts, totals.cycles / design.clock_hz)


def _compare_with_float(plan: Plan, operands: Operands) -> dict[str, object]:
    """Return how far the results are from those in float, in deviations of these."""
    x = bf16_decode(operands.tokens)
    reference = np.stack(
        [ffn(plan.model.ffn, x=x, **vars(operands.weights.expert(n))) for n in range(plan.num_experts)]
    )
    return {
        "name": "float golden",
        "tokens_with_same_experts": None,
        "first_token_with_other_experts": None,
        **float_error(operands.results, reference, float(reference.std()), operands.scales),
    }
