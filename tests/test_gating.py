"""The gate: hardware against golden bit for bit, against its cycle model cycle for cycle."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from amaranth import ResetInserter, Signal
from amaranth.back import rtlil
from amaranth.hdl import Fragment

import golden.gating
import rtl.fifo
import rtl.gating.norm
import rtl.gating.product
import rtl.gating.scores
import rtl.gating.selection
import rtl.gating.shared
import rtl.gating.softmax
import rtl.gating.standard
import rtl.gating.topk
import rtl.gating.weights
import sim.gating
from golden.formats import BF16_ONE, Bits16, bf16_decode, bf16_encode
from golden.gating import normalise as normalise_kept
from golden.gating import route, standardise
from golden.gating_bf16 import (
    RoutingBf16,
    epsilon_fixed,
    kept_weights,
    route_bf16,
    scale_fixed,
    score_words,
    select,
    selection_bias_fixed,
    standardised,
)
from golden.image import router_image
from rtl.gating import Gate, assignment_layout, given_score_bits, token_layout
from rtl.gating.topk import SortedList
from sim.streams import readiness
from spec.design import Pipeline
from spec.gate_plan import GatePlan
from spec.geometry import GateGeometry, ceil_div
from spec.load import load_design, load_model
from spec.model import Epsilon, GatingSpec, GroupMask, GroupScore, Normalise, Score
from tests.bfm import (
    Sink,
    Source,
    Trace,
    pack,
    run_pipeline,
    run_streams,
)
from tests.block_bench import (
    DIVERGED,
    TRAFFIC,
    arrivals_of,
    bits_of,
    check_stream,
    pattern_of,
    plant_bug,
    ready_in,
)


@dataclass(frozen=True)
class Case:
    """One run; ``seed`` gives router, tokens, arrivals and patterns.

    ``data``: ``normal``, ``ties`` (all tokens and logits equal), ``repeats`` (few distinct router rows),
    ``negbias`` (all selection biases far below zero), ``low`` (every other token's sigmoids are all zero),
    ``extreme`` (saturating logits),
    ``patterns`` (arbitrary bf16 patterns, infinities and NaNs among them).
    """

    geometry: GateGeometry
    num_tokens: int
    data: str = "normal"
    gaps: str = "none"
    stalls: str = "none"
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What a run should give and has given."""

    routing: RoutingBf16
    model: sim.gating.GateCycles
    beats: list[int]
    expected: list[int]
    traces: dict[str, Trace]
    bias: np.ndarray | None
    gate: Gate


@dataclass(frozen=True)
class Operands:
    """Router, biases and tokens of a case."""

    router: Bits16
    tokens: Bits16
    bias: np.ndarray | None
    image: np.ndarray
    routing: RoutingBf16
    shared_gate: Bits16 | None


def operands_of(case: Case, rng) -> Operands:
    geometry = case.geometry
    gating, d_model = geometry.gating, geometry.d_model
    shape = (gating.num_experts, d_model)
    router = bf16_encode(rng.standard_normal(shape))
    tokens = bf16_encode(rng.standard_normal((case.num_tokens, d_model)) * 2)
    bias = None
    if geometry.has_bias:
        bias = rng.standard_normal(gating.num_experts).astype(np.float32)
    if case.data == "ties":
        router[:], tokens[:] = router[:1], tokens[:1]
        bias = None if bias is None else np.full_like(bias, bias[0])
    elif case.data == "repeats":
        router = router[rng.integers(0, min(2, gating.num_experts), gating.num_experts)]
        bias = None if bias is None else np.zeros_like(bias)
    elif case.data == "negbias":
        bias = (-3 - 4 * rng.random(gating.num_experts)).astype(np.float32)
    elif case.data == "low":
        router = bf16_encode(-64 - np.abs(rng.standard_normal(shape)))
        values = bf16_decode(tokens)
        values[::2] = 1 + np.abs(values[::2])
        values[1::2] /= 64
        tokens = bf16_encode(values)
    elif case.data == "extreme":
        tokens = bf16_encode(bf16_decode(tokens) * np.exp2(rng.integers(0, 20, tokens.shape)))
        bias = None if bias is None else bias * np.float32(1000)
    elif case.data == "patterns":
        tokens = rng.integers(0, 1 << 16, tokens.shape).astype(np.uint16)
        router = np.where(rng.random(shape) < 0.1, rng.integers(0, 1 << 16, shape), router).astype(np.uint16)
    logit_bias = bias if gating.logit_bias else None
    selection_bias = bias if gating.selection_bias else None
    if geometry.num_biases == 2:
        logit_bias = rng.permutation(bias)
    shared_gate = None
    if geometry.shared_gate:
        shared_gate = bf16_encode(rng.standard_normal((1, d_model)) * rng.choice([0.1, 1, 30]))
    image = router_image(geometry, router, logit_bias, selection_bias, shared_gate)
    return Operands(
        router=router,
        tokens=tokens,
        bias=bias,
        image=image.reshape(-1, geometry.load_elements),
        routing=route_bf16(
            gating,
            router,
            tokens,
            geometry.cols,
            logit_bias,
            selection_bias,
            shared_gate=shared_gate,
            gives_scores=geometry.gives_scores,
        ),
        shared_gate=shared_gate,
    )


def input_beats(case: Case, tokens: Bits16, ends_batch: np.ndarray, rng) -> list[int]:
    """Return the beats of the tokens; elements beyond d_model carry noise, NaNs among it."""
    geometry = case.geometry
    layout = token_layout(geometry.stream_lanes)
    padded = rng.integers(0, 1 << 16, (case.num_tokens, geometry.input_beats * geometry.stream_lanes))
    padded[rng.random(padded.shape) < 0.5] = 0x7FC0
    padded[:, : geometry.d_model] = tokens
    beats = []
    for token, elements in enumerate(padded.reshape(case.num_tokens, geometry.input_beats, -1)):
        for n, beat in enumerate(elements):
            # Only the flag on a token's last beat matters.
            last = ends_batch[token] if n == geometry.input_beats - 1 else rng.integers(2)
            beats.append(bits_of(layout, last=last) | pack(beat))
    return beats


def expected_beats(case: Case, routing: RoutingBf16, ends_batch: np.ndarray) -> list[int]:
    top_k = case.geometry.gating.top_k
    layout = assignment_layout(
        case.geometry.gating.num_experts,
        shared_gate=case.geometry.shared_gate,
        score_bits=given_score_bits(case.geometry),
    )
    words = None if routing.scores is None else score_words(case.geometry.gating, routing.scores)
    return [
        bits_of(
            layout,
            **({} if routing.shared is None else {"shared": routing.shared[token]}),
            **({} if words is None else {"score": int(words[token, n])}),
            expert=routing.ids[token, n],
            weight=routing.weights[token, n],
            last=n == top_k - 1,
            last_token=ends_batch[token],
        )
        for token in range(case.num_tokens)
        for n in range(top_k)
    ]


async def load_router(ctx, dut: Gate, image: np.ndarray, gap: int = 0) -> None:
    """Send a router's image, ``gap`` idle cycles before each beat."""
    assert not ctx.get(dut.loaded)
    for beat in image:
        for _ in range(gap):
            await ctx.tick()
        ctx.set(dut.i_load.payload, pack(beat))
        ctx.set(dut.i_load.valid, 1)
        await ctx.tick().until(dut.i_load.ready)
        ctx.set(dut.i_load.valid, 0)
    assert ctx.get(dut.loaded)
    assert not ctx.get(dut.i_load.ready)


def run_case(case: Case, *, before=None) -> Run:
    """Run a case in ``amaranth.sim``, the router loaded first.

    ``before(ctx, dut, reset)`` runs before that and leaves the block waiting for a router.
    """
    geometry = case.geometry
    top_k = geometry.gating.top_k
    rng = np.random.default_rng(case.seed)
    operands = operands_of(case, rng)
    assert len(operands.image) == geometry.load_beats
    ends_batch = rng.random(case.num_tokens) < 0.3
    beats = input_beats(case, operands.tokens, ends_batch, rng)
    arrivals = arrivals_of(rng, case.gaps, len(beats))
    pattern = pattern_of(rng, case.stalls)
    model = sim.gating.gate_cycles(geometry, arrivals, readiness(pattern))
    dut = Gate(geometry)
    reset = Signal()

    async def prologue(ctx):
        if before is not None:
            await before(ctx, dut, reset)
        await load_router(ctx, dut, operands.image, gap=case.seed % 2)

    traces = run_streams(
        ResetInserter(reset)(dut),
        {"i": Source(beats, arrivals.tolist())},
        {"o": Sink(case.num_tokens * top_k, ready_in(pattern))},
        prologue=prologue,
        max_cycles=200 + int(model.o[-1]),
    )
    return Run(
        routing=operands.routing,
        model=model,
        beats=beats,
        expected=expected_beats(case, operands.routing, ends_batch),
        traces=traces,
        bias=operands.bias,
        gate=dut,
    )


def check(case: Case, run: Run) -> None:
    """Compare both streams with golden and with the model; name the first divergence."""
    for name, payloads, cycles in (("i", run.beats, run.model.i), ("o", run.expected, run.model.o)):
        check_stream("gating", name, run.traces[name], payloads, cycles, case)


def random_gating(rng) -> GatingSpec:
    """Draw from all terms of the algebra that the hardware has."""
    num_groups = int(rng.choice([1, 2, 3, 4]))
    group_size = int(rng.integers(2, 7)) if num_groups > 1 else int(rng.integers(1, 25))
    topk_groups = int(rng.integers(1, num_groups + 1))
    bias = rng.choice(["none", "logit", "selection", "both"])
    return GatingSpec(
        num_experts=num_groups * group_size,
        top_k=int(rng.integers(1, min(topk_groups * group_size, 16) + 1)),
        score=Score(rng.choice(list(Score))),
        weight_score=rng.choice([None, None, *Score]),
        logit_bias=bool(bias in ("logit", "both")),
        selection_bias=bool(bias in ("selection", "both")),
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=GroupScore(rng.choice(list(GroupScore))),
        group_mask=GroupMask(rng.choice(list(GroupMask))),
        normalise=Normalise(rng.choice(list(Normalise))),
        epsilon=float(rng.choice([0.0, 1e-20, 1e-6, 2.0**-23, 0.3, 1.0])),
        epsilon_rule=Epsilon(rng.choice(list(Epsilon))),
        norm_order=float(rng.choice([1.0, 2.0, 0.25, 3.5, 64.0])),
        scale=float(rng.choice([1.0, 2.5, 2.446, 1000.0, 1e-4])),
    )


def random_case(seed: int) -> Case:
    """Return a random case; every parameter over its whole range."""
    rng = np.random.default_rng(seed)
    gating = random_gating(rng)
    logits_per_cycle, stream_lanes = int(rng.choice([1, 2, 4])), int(rng.choice([1, 2, 4]))
    lanes = logits_per_cycle * stream_lanes * int(rng.choice([1, 2]))
    d_model = int(rng.integers(1, 13))
    if seed % 4 == 3 and d_model <= lanes // 3:
        logits_per_cycle = 3
    geometry = GateGeometry(
        gating=gating,
        d_model=d_model,
        lanes=lanes,
        logits_per_cycle=logits_per_cycle,
        stream_lanes=stream_lanes,
        load_elements=int(rng.choice([n for n in (1, 2, 4, 8) if lanes % n == 0])),
    )
    kinds = ["normal", "normal", "normal", "repeats", "extreme", "patterns"]
    return Case(
        geometry=geometry,
        num_tokens=int(rng.integers(2, 9)),
        data=str(rng.choice(kinds)),
        gaps=TRAFFIC[seed % 3],
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


def check_random(seed: int) -> None:
    case = random_case(seed)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


@pytest.mark.parametrize("seed", range(10))
def test_random(seed):
    check_random(seed)


def deep(case: Case) -> Case:
    """Return a case whose gate has deep pipelines."""
    return replace(case, geometry=replace(case.geometry, pipeline=Pipeline.DEEP))


def check_deep(case: Case) -> None:
    """Check a case with deep pipelines: bits of golden, cycles of the model."""
    case = deep(case)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 60))])
def test_random_deep(seed):
    check_deep(random_case(seed))


@pytest.mark.parametrize("kind", ["shared_gate", "scored", "standard", "prototype"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 12))])
def test_random_deep_terms(kind, seed):
    check_deep(globals()[f"{kind}_case"](seed))


def shared_gate_case(seed: int) -> Case:
    """Return a random case whose shared expert has a gate."""
    case = random_case(seed)
    return replace(case, geometry=replace(case.geometry, shared_gate=True))


@pytest.mark.parametrize(
    "seed",
    [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in [*range(4, 8), *range(2000, 2200)])],
)
def test_random_shared_gates(seed):
    case = shared_gate_case(seed)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


def scored_case(seed: int) -> Case:
    """Return a random case whose assignments carry their scores, beside a shared expert's gate or not."""
    case = random_case(seed + 100)
    return replace(case, geometry=replace(case.geometry, gives_scores=True, shared_gate=seed % 3 == 0))


@pytest.mark.parametrize(
    "seed",
    [*range(8), *(pytest.param(n, marks=pytest.mark.long) for n in [*range(8, 12), *range(3000, 3200)])],
)
def test_random_scores(seed):
    case = scored_case(seed)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


def test_random_scores_reach_every_kind_of_score():
    plans = [scored_case(seed).geometry.plan for seed in range(12)]
    assert {plan.weight_score for plan in plans} == set(Score)
    for name in ("carries_score", "shares_of_chosen", "signed"):
        assert {getattr(plan, name) for plan in plans} == {True, False}, name


@pytest.mark.parametrize("kind", Score)
@pytest.mark.parametrize("normalise", [Normalise.SUM, Normalise.P_NORM])
def test_weights_of_the_kept(kind, normalise):
    """Against float, with any of a token's choices dropped; a dropped one has none."""
    rng = np.random.default_rng(5)
    gating = gating_of(6, 3, score=kind, normalise=normalise, norm_order=2.0, scale=0.8)
    router, tokens = (bf16_encode(rng.standard_normal((count, 16))) for count in (6, 400))
    ours = route_bf16(gating, router, tokens, 16, gives_scores=True)
    real = route(gating, bf16_decode(router), bf16_decode(tokens))
    same = (ours.ids == real.ids).all(axis=1)
    assert same.mean() > 0.99
    assert ours.scores is not None
    relative = np.abs(ours.scores / 2.0**30 - real.scores)[same] / np.maximum(np.abs(real.scores[same]), 2e-2)
    assert relative.max() < 1e-4
    kept = rng.random(ours.ids.shape) < 0.6
    weights = bf16_decode(kept_weights(gating, ours.scores, kept)).astype(np.float64)
    assert not weights[~kept].any()
    wanted = np.where(kept, normalise_kept(gating, real.scores, kept), 0.0)
    # Logits of both signs may all but cancel in their sum.
    total = np.abs(np.where(kept, real.scores, 0.0).sum(axis=1))
    clear = same & (total > 0.05)
    assert clear.sum() > 150
    np.testing.assert_allclose(weights[clear], wanted[clear], rtol=2**-8 + 2e-3, atol=1e-4)
    everyone = kept_weights(gating, ours.scores, np.ones_like(kept))
    np.testing.assert_allclose(bf16_decode(everyone)[clear], bf16_decode(ours.weights)[clear], rtol=2**-7)


def standard_case(seed: int) -> Case:
    """Return a random case whose logits are standardised over the experts."""
    case = random_case(seed + 600)
    gating = case.geometry.gating
    while gating.num_experts == 1:
        seed += 1000
        gating = random_case(seed + 600).geometry.gating
    deviation = float(np.random.default_rng(seed).choice([1.0, 0.01, 7.3]))
    gating = replace(gating, logit_deviation=deviation)
    geometry = replace(case.geometry, gating=gating, shared_gate=seed % 4 == 1)
    return replace(case, geometry=geometry)


@pytest.mark.parametrize(
    "seed",
    [*range(7), *(pytest.param(n, marks=pytest.mark.long) for n in [*range(7, 12), *range(5000, 5200)])],
)
def test_random_standardised_logits(seed):
    case = standard_case(seed)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


@pytest.mark.parametrize("deviation", [1.0, 0.01, 40.0])
@pytest.mark.parametrize("num_experts", [1, 2, 16, 60, 512])
def test_standardised_logits_against_float(num_experts, deviation):
    """Any spread from 2^-14 to the saturated logits, far from a mean of 0 too; equal logits are 0."""
    gating = gating_of(num_experts, 1, logit_deviation=deviation)
    rng = np.random.default_rng(7)
    spread = np.exp2(rng.uniform(-14, 9, (400, 1)))
    real = rng.standard_normal((400, num_experts)) * spread + rng.uniform(-500, 500, (400, 1))
    logits = np.clip(np.trunc(real * 2**20), 1 - 2**31, 2**31 - 1).astype(np.int64)
    logits[:4] = [[0], [5], [2**31 - 1], [1 - 2**31]]
    wanted = standardise(logits.astype(np.float64), deviation)
    ours = standardised(gating, logits) / 2.0**20
    largest = max(deviation * num_experts**0.5, 2.0**-20)
    assert np.abs(ours - wanted).max() <= 1.2e-5 * largest + 2.0**-20
    assert not ours[:4].any()


PLANTED_IN_STANDARDISE = {
    "sum of the last row": ("combine(running, values)", "values"),
    "sum of two tokens": ("Mux(first, values,", "Mux(0, values,"),
    "absent experts": ("Mux(self.present[n], self.logits[n], 0)", "self.logits[n]"),
    "absent experts centred": (
        "Mux(waited[32 * lanes + n], logit * num_experts - total, 0)",
        "logit * 5 - total",
    ),
    "sign lost": ("magnitude.eq(Mux(one < 0, -one, one))", "magnitude.eq(one)"),
    "a row too early": ("rows - 1 + 3 + self.of_root", "rows - 2 + 3 + self.of_root"),
    "no root": ("log.o >> 1", "log.o >> 0"),
    "other deviation": ("exp.shift - exponent", "exp.shift"),
}


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=[pytest.mark.long] * (n % 3 > 0))
        for n, bug in enumerate(PLANTED_IN_STANDARDISE)
    ],
)
def test_bug_planted_in_standardised_logits_is_found(monkeypatch, bug):
    gating = gating_of(5, 2, logit_deviation=3.0)
    geometry = GateGeometry(
        gating=gating,
        d_model=3,
        lanes=4,
        logits_per_cycle=2,
        stream_lanes=1,
        load_elements=1,
        shared_gate=True,
    )
    case = Case(geometry=geometry, num_tokens=5, seed=2)
    check(case, run_case(case))
    plant_bug(monkeypatch, rtl.gating.standard, *PLANTED_IN_STANDARDISE[bug])
    with pytest.raises(DIVERGED):
        check(case, run_case(case))


def prototype_case(seed: int) -> Case:
    """Return a random case whose experts are prototypes, on as few rows as their choices need, or more."""
    rng = np.random.default_rng(seed + 300)
    case = random_case(seed + 300)
    geometry = case.geometry
    prototypes, chosen = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    own = max(chosen, int(rng.integers(1, 12)))
    gating = GatingSpec(
        num_experts=prototypes * own,
        top_k=prototypes * chosen,
        num_prototypes=prototypes,
        score=list(Score)[seed % 4],
        weight_score=list(Score)[seed // 4 % 4] if seed % 3 == 0 else None,
        logit_bias=bool(rng.integers(2)),
        normalise=Normalise.NONE,
        scale=float(rng.choice([1.0, 2.5])),
    )
    geometry = replace(
        geometry, gating=gating, gives_scores=seed % 5 == 0, shared_gate=seed % 6 == 1, logits_per_cycle=1
    )
    lanes = [n for n in (4, 2, 1) if geometry.lanes % n == 0]
    choices = [
        replace(geometry, logits_per_cycle=n)
        for n in lanes
        if geometry.lanes // n % geometry.stream_lanes == 0
    ]
    return replace(case, geometry=next(choice for choice in choices if choice.prototypes_fit))


@pytest.mark.parametrize(
    "seed",
    [*range(5), *(pytest.param(n, marks=pytest.mark.long) for n in [*range(5, 16), *range(4000, 4200)])],
)
def test_random_prototypes(seed):
    """Each prototype has a softmax and a top-k of its own; assignments leave in consecutive cycles."""
    case = prototype_case(seed)
    run = run_case(case)
    check(case, run)
    assert run.gate.latency == sim.gating.latency(case.geometry), str(case)
    assert run.gate.credits == sim.gating.num_credits(case.geometry), str(case)


def test_random_prototypes_reach_everything():
    geometries = [prototype_case(seed).geometry for seed in range(16)]
    rows = {geometry.rows_per_group - geometry.gating.of_prototype.top_k for geometry in geometries}
    assert 0 in rows and max(rows) > 2
    assert {geometry.logits_per_cycle for geometry in geometries} >= {1, 2}
    assert {geometry.of_prototype.plan.totals_softmax for geometry in geometries} == {True, False}


PLANTED_IN_PROTOTYPES = {
    "a cycle late": (
        rtl.gating.selection,
        'StreamFifo.LATENCY - 1, "entered"',
        'StreamFifo.LATENCY, "entered"',
    ),
    "experts of the first": (rtl.gating.selection, "base.eq(base + own.num_experts)", "base.eq(base)"),
    "ends with the first": (
        rtl.gating.selection,
        "last.eq(o.last & (number == gating.num_prototypes - 1))",
        "last.eq(o.last)",
    ),
    "incomplete tokens": (
        rtl.gating.selection,
        "self.o.valid.eq(queue.o.valid & (complete != 0))",
        "self.o.valid.eq(queue.o.valid)",
    ),
    "one softmax": (rtl.gating.selection, "SoftmaxTotal(own,", "SoftmaxTotal(geometry,"),
    "model: first choice of the last": (sim.gating, "cycles += own.gating.top_k - 1", "cycles += 0"),
}


@pytest.mark.parametrize("bug", PLANTED_IN_PROTOTYPES)
def test_bug_planted_in_prototypes_is_found(monkeypatch, bug):
    gating = gating_of(8, 4, num_prototypes=2, normalise=Normalise.NONE)
    geometry = GateGeometry(
        gating=gating, d_model=3, lanes=4, logits_per_cycle=2, stream_lanes=1, load_elements=1
    )
    case = Case(geometry=geometry, num_tokens=4, seed=2)
    check(case, run_case(case))
    plant_bug(monkeypatch, *PLANTED_IN_PROTOTYPES[bug])
    with pytest.raises(DIVERGED):
        check(case, run_case(case))


@pytest.mark.parametrize("score", [Score.SOFTMAX, Score.SIGMOID])
def test_prototypes_against_float(score):
    gating = gating_of(24, 6, num_prototypes=3, score=score, normalise=Normalise.NONE)
    rng = np.random.default_rng(8)
    router, tokens = (bf16_encode(rng.standard_normal((count, 32)) / 3) for count in (24, 500))
    ours, real = (
        route_bf16(gating, router, tokens, 16),
        route(gating, bf16_decode(router), bf16_decode(tokens)),
    )
    same = (ours.ids == real.ids).all(axis=1)
    assert same.mean() > 0.99
    assert (ours.ids.reshape(-1, 3, 2) // 8 == np.arange(3)[:, None]).all()
    np.testing.assert_allclose(bf16_decode(ours.weights[same]), real.weights[same], rtol=2**-8 + 1e-4)


def test_random_shared_gates_reach_a_free_lane_and_a_row_of_their_own():
    geometries = [shared_gate_case(seed).geometry for seed in range(8)]
    assert {geometry.num_rows - geometry.expert_rows for geometry in geometries} == {0, 1}
    assert {geometry.num_groups > 1 for geometry in geometries} == {False, True}


def test_the_shared_gates_weight_is_a_sigmoid():
    """Against float, within the rounding to bf16 and the error of the sigmoid."""
    rng = np.random.default_rng(5)
    router, gate, tokens = (
        bf16_encode(rng.standard_normal(shape)) for shape in ((4, 32), (1, 32), (200, 32))
    )
    weights = route_bf16(gating_of(4, 2), router, tokens, 16, shared_gate=gate).shared
    real = 1 / (1 + np.exp(-(bf16_decode(tokens).astype(float) @ bf16_decode(gate).astype(float).T)[:, 0]))
    assert (np.abs(bf16_decode(weights) - real) <= real * 2.0**-8 + 1.2e-5).all()
    assert real.min() < 0.01 < 0.99 < real.max()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_random_wide(seed):
    check_random(seed)


def gating_of(num_experts: int, top_k: int, **changes) -> GatingSpec:
    return GatingSpec(num_experts=num_experts, top_k=top_k, **changes)


SIGMOID = {"score": Score.SIGMOID}
BIASED = {**SIGMOID, "selection_bias": True}
ERNIE = {"selection_bias": True, "epsilon": 1e-12, "epsilon_rule": Epsilon.CLAMPED}
LLAMA4 = {"score": Score.NONE, "weight_score": Score.SIGMOID, "normalise": Normalise.NONE}
DEEPSEEK_V2 = {
    "num_groups": 3,
    "topk_groups": 2,
    "group_score": GroupScore.MAX,
    "group_mask": GroupMask.ZERO,
    "normalise": Normalise.NONE,
    "scale": 16.0,
}
DEEPSEEK_V4 = {"score": Score.SQRT_SOFTPLUS, "selection_bias": True, "epsilon": 1e-20, "scale": 1.5}
"""Gatings of families, but for their sizes."""


def small(gating: GatingSpec, **changes) -> Case:
    """Return a case over this gating: 2 logits a cycle, 2 inputs each, 5 inputs."""
    geometry = GateGeometry(
        gating=gating,
        d_model=changes.pop("d_model", 5),
        lanes=changes.pop("lanes", 4),
        logits_per_cycle=changes.pop("logits_per_cycle", 2),
        stream_lanes=changes.pop("stream_lanes", 2),
        load_elements=changes.pop("load_elements", 2),
    )
    return Case(geometry=geometry, num_tokens=changes.pop("num_tokens", 6), seed=7, **changes)


CORNERS = {
    "ties_softmax": small(gating_of(9, 4), data="ties"),
    "ties_sigmoid_biased": small(gating_of(9, 4, **BIASED), data="ties"),
    "ties_between_groups": small(gating_of(12, 4, num_groups=4, topk_groups=2, **BIASED), data="ties"),
    "ties_k_1": small(gating_of(7, 1), data="ties"),
    "ties_k_equals_num_experts": small(gating_of(7, 7), data="ties"),
    "k_1": small(gating_of(6, 1, normalise=Normalise.NONE)),
    "k_equals_num_experts": small(gating_of(6, 6)),
    "k_16": small(gating_of(16, 16)),
    "k_16_of_40_sigmoid": small(gating_of(40, 16, **SIGMOID), num_tokens=4),
    "one_expert": small(gating_of(1, 1), logits_per_cycle=1, lanes=2),
    "one_expert_sigmoid_in_wide_rows": small(gating_of(1, 1, **SIGMOID)),
    "one_input": small(gating_of(5, 2), d_model=1),
    "negative_biased_scores": small(
        gating_of(8, 3, num_groups=4, topk_groups=2, **BIASED), data="negbias", num_tokens=12
    ),
    "negative_biased_scores_no_groups": small(gating_of(8, 3, **BIASED), data="negbias"),
    "group_of_exactly_k_experts": small(gating_of(12, 3, num_groups=4, topk_groups=1, **BIASED)),
    "groups_of_one_by_maximum": small(
        gating_of(6, 2, num_groups=6, topk_groups=2, group_score=GroupScore.MAX, **SIGMOID)
    ),
    "saturated_logits_softmax": small(gating_of(6, 3), data="extreme", num_tokens=10),
    "saturated_logits_all": small(gating_of(6, 3, normalise=Normalise.NONE), data="extreme", num_tokens=10),
    "vanishing_sigmoids": small(gating_of(6, 3, **SIGMOID), data="low", num_tokens=10),
    "saturated_logits_sigmoid": small(gating_of(6, 3, **SIGMOID), data="extreme", num_tokens=10),
    "infinities_and_nans_softmax": small(gating_of(6, 3), data="patterns", num_tokens=16),
    "infinities_and_nans_all": small(
        gating_of(6, 3, normalise=Normalise.NONE), data="patterns", num_tokens=16
    ),
    "infinities_and_nans_sigmoid": small(
        gating_of(6, 3, num_groups=3, topk_groups=2, **BIASED), data="patterns", num_tokens=16
    ),
    "one_row_of_many_steps": small(gating_of(2, 1, logit_bias=True), d_model=9),
    "one_row_of_one_step": small(gating_of(2, 1, normalise=Normalise.NONE), d_model=2, num_tokens=12),
    "products_of_several_tokens_at_once": small(gating_of(4, 2), d_model=7, num_tokens=12),
    "products_at_once_selection_longer": small(gating_of(6, 5), d_model=3, num_tokens=12),
    "three_logits_per_cycle_all_inputs_at_once": small(
        gating_of(9, 4, num_groups=3, topk_groups=2, **BIASED), lanes=16, logits_per_cycle=3
    ),
    "three_logits_per_cycle_groups_share_rows": small(
        gating_of(10, 4, num_groups=2, topk_groups=1, **BIASED), lanes=16, logits_per_cycle=3
    ),
    "input_longer_than_the_product": small(gating_of(2, 1, **SIGMOID), d_model=9, lanes=8, num_tokens=12),
    "groups_share_rows": small(gating_of(15, 4, num_groups=5, topk_groups=3, **BIASED), num_tokens=12),
    "groups_share_rows_ties": small(gating_of(9, 4, num_groups=3, topk_groups=2, **BIASED), data="ties"),
    "groups_share_rows_by_maximum": small(
        gating_of(10, 3, num_groups=2, topk_groups=1, group_score=GroupScore.MAX, **SIGMOID),
        lanes=8,
        logits_per_cycle=4,
    ),
    "llama4": small(gating_of(8, 1, **LLAMA4)),
    "weights_of_another_score": small(gating_of(9, 3, weight_score=Score.SQRT_SOFTPLUS, **BIASED)),
    "softmax_of_choices_by_sigmoid": small(
        gating_of(9, 3, weight_score=Score.SOFTMAX, normalise=Normalise.NONE, **BIASED), num_tokens=12
    ),
    "softmax_of_choices_by_sigmoid_one_row": small(
        gating_of(2, 1, weight_score=Score.SOFTMAX, normalise=Normalise.NONE, **BIASED),
        d_model=2,
        num_tokens=12,
    ),
    "softmax_with_bias": small(gating_of(9, 3, **ERNIE), num_tokens=12),
    "softmax_with_bias_one_row": small(gating_of(2, 1, **ERNIE), d_model=2, num_tokens=12),
    "softmax_with_bias_low_shares": small(gating_of(8, 3, **ERNIE), data="negbias"),
    "ties_softmax_biased_k_4": small(gating_of(9, 4, **ERNIE), data="ties"),
    "ties_sqrt_softplus": small(gating_of(9, 4, **DEEPSEEK_V4), data="ties"),
    "ties_logits": small(gating_of(9, 4, score=Score.NONE), data="ties"),
    "deepseek_v2": small(gating_of(12, 4, **DEEPSEEK_V2), num_tokens=12),
    "softmax_groups_by_sum": small(
        gating_of(12, 4, num_groups=3, topk_groups=2, normalise=Normalise.NONE), num_tokens=12
    ),
    "softmax_groups_by_sum_of_logits": small(
        gating_of(
            12,
            4,
            num_groups=3,
            topk_groups=1,
            score=Score.NONE,
            weight_score=Score.SOFTMAX,
            normalise=Normalise.NONE,
        ),
        num_tokens=24,
    ),
    "losers_at_zero_beat_negative_scores": small(
        gating_of(8, 3, num_groups=4, topk_groups=2, group_mask=GroupMask.ZERO, **BIASED),
        data="negbias",
        num_tokens=12,
    ),
    "losing_logits_at_zero": small(
        gating_of(12, 5, num_groups=4, topk_groups=2, group_mask=GroupMask.ZERO, score=Score.NONE)
    ),
    "losing_softmax_of_logits_at_zero": small(
        gating_of(
            12,
            5,
            num_groups=3,
            topk_groups=2,
            group_mask=GroupMask.ZERO,
            score=Score.NONE,
            weight_score=Score.SOFTMAX,
        )
    ),
    "deepseek_v4": small(gating_of(9, 3, **DEEPSEEK_V4), num_tokens=12),
    "saturated_sqrt_softplus": small(gating_of(9, 3, **DEEPSEEK_V4), data="extreme"),
    "vanishing_sqrt_softplus": small(gating_of(6, 3, score=Score.SQRT_SOFTPLUS), data="low"),
    "weights_are_logits": small(
        gating_of(9, 3, score=Score.NONE, normalise=Normalise.NONE, scale=100.0), num_tokens=12
    ),
    "sums_of_logits_with_either_sign": small(gating_of(5, 5, score=Score.NONE, epsilon=0.3), num_tokens=16),
    "saturated_logits_none": small(gating_of(6, 3, score=Score.NONE), data="extreme", num_tokens=10),
    "nllb": small(gating_of(9, 2, epsilon=2.0**-23, epsilon_rule=Epsilon.CLAMPED), num_tokens=12),
    "large_least_denominator": small(
        gating_of(9, 2, epsilon=0.6, epsilon_rule=Epsilon.CLAMPED), num_tokens=12
    ),
    "large_epsilon_sees_shares": small(gating_of(9, 2, epsilon=1.0), num_tokens=12),
    "p_norm_k_1": small(gating_of(6, 1, normalise=Normalise.P_NORM, norm_order=2.0), num_tokens=12),
    "p_norm_k_16": small(
        gating_of(16, 16, normalise=Normalise.P_NORM, norm_order=3.0, **SIGMOID), d_model=2, num_tokens=10
    ),
    "p_norm_of_logits": small(
        gating_of(9, 3, normalise=Normalise.P_NORM, norm_order=2.0, epsilon=0.3, score=Score.NONE)
    ),
    "p_norm_of_nothing": small(
        gating_of(6, 3, normalise=Normalise.P_NORM, norm_order=2.0, **SIGMOID), data="low", num_tokens=10
    ),
    "infinities_and_nans_shares": small(gating_of(6, 3, **ERNIE), data="patterns", num_tokens=16),
    "infinities_and_nans_none": small(gating_of(6, 3, score=Score.NONE), data="patterns", num_tokens=16),
    "logit_bias": small(gating_of(6, 2, logit_bias=True)),
    "both_biases": small(gating_of(9, 2, logit_bias=True, **BIASED), num_tokens=12),
    "both_biases_and_shares": small(gating_of(9, 2, logit_bias=True, **ERNIE), num_tokens=12),
    "logit_bias_wider_than_a_beat": small(
        gating_of(8, 2, logit_bias=True), logits_per_cycle=4, lanes=8, load_elements=1
    ),
}


@pytest.mark.parametrize(
    ("name", "traffic"),
    [(name, TRAFFIC[n % 3]) for n, name in enumerate(CORNERS)]
    + [
        pytest.param(name, TRAFFIC[(n + shift) % 3], marks=pytest.mark.long)
        for n, name in enumerate(CORNERS)
        for shift in (1, 2)
    ],
)
def test_corner(name, traffic):
    case = replace(CORNERS[name], stalls=traffic, gaps=traffic)
    run = run_case(case)
    check(case, run)
    gating, ids = case.geometry.gating, run.routing.ids
    if name.startswith("ties"):
        assert ids.tolist() == [list(range(gating.top_k))] * case.num_tokens
    if name.startswith("ties") and gating.normalise is Normalise.SUM and gating.top_k == 4:
        assert len(np.unique(run.routing.weights)) == 1
    if name.startswith("negative"):
        assert (run.bias < -1).all(), "the corner was not reached: a sigmoid is at most 1"
    if name.startswith("saturated"):
        assert (np.abs(run.routing.logits) == (1 << 31) - 1).any(), "the corner was not reached"
    if name in ("vanishing_sigmoids", "vanishing_sqrt_softplus", "p_norm_of_nothing"):
        assert not run.routing.weights[::2].any()
        assert run.routing.weights[1::2].any(axis=1).all()
    if name == "losers_at_zero_beat_negative_scores":
        winners = replace(gating, group_mask=GroupMask.MINUS_INFINITY)
        others = select(winners, run.routing.logits, selection_bias_fixed(gating, run.bias)).ids
        assert not (ids[:, :, None] == others[:, None]).any()
    if name == "losing_logits_at_zero":
        assert (run.routing.weights >> 15).any() and not (run.routing.weights >> 15).all()
    if name == "one_expert":
        assert (run.routing.weights == BF16_ONE).all()


def test_nan_is_chosen_last():
    """A token with a NaN gives equal lowest logits: the first experts, equal weights, no NaN."""
    case = replace(small(gating_of(6, 2)), num_tokens=2)
    tokens = np.full((2, 5), 0x7FC0, dtype=np.uint16)
    router = bf16_encode(np.random.default_rng(0).standard_normal((6, 5)))
    routing = route_bf16(case.geometry.gating, router, tokens, case.geometry.cols)
    assert routing.ids.tolist() == [[0, 1]] * 2
    assert (bf16_decode(routing.weights) == 0.5).all()
    # One bad row of the router is never chosen while others are left.
    router[1, 0] = 0x7FC0
    tokens = bf16_encode(np.random.default_rng(1).standard_normal((20, 5)))
    assert not (route_bf16(case.geometry.gating, router, tokens, 2).ids == 1).any()


# Latency and throughput.

LATENCY_CASES = {
    "softmax": small(gating_of(6, 3)),
    "softmax of all": small(gating_of(6, 3, normalise=Normalise.NONE)),
    "softmax of all, many rows": small(gating_of(40, 3, normalise=Normalise.NONE)),
    "sigmoid": small(gating_of(6, 3, normalise=Normalise.NONE, **SIGMOID)),
    "sigmoid normalised": small(gating_of(6, 3, **BIASED)),
    "groups": small(gating_of(12, 3, num_groups=3, topk_groups=2, **BIASED)),
    "selection longer than the product": small(gating_of(16, 16), d_model=2, lanes=8, logits_per_cycle=4),
    "shares first": small(gating_of(12, 3, **ERNIE)),
    "shares of the chosen": small(gating_of(12, 3, epsilon=0.5)),
    "sqrt-softplus": small(gating_of(6, 3, **DEEPSEEK_V4)),
    "sigmoid of the chosen": small(gating_of(6, 1, **LLAMA4)),
    "logits": small(gating_of(6, 3, score=Score.NONE)),
    "norm": small(gating_of(6, 3, normalise=Normalise.P_NORM, norm_order=2.0)),
}


@pytest.mark.parametrize("name", LATENCY_CASES)
def test_latency_is_as_stated(name):
    """From the launch (the cycle after the last input beat) to the first assignment; then one per cycle."""
    case = replace(LATENCY_CASES[name], num_tokens=1)
    run = run_case(case)
    gate = run.gate
    assert gate.latency == sim.gating.latency(case.geometry)
    assert gate.credits == sim.gating.num_credits(case.geometry)
    launch = int(run.traces["i"].cycles[-1]) + 1
    top_k = case.geometry.gating.top_k
    first = launch + gate.latency
    assert run.traces["o"].cycles.tolist() == list(range(first, first + top_k)), str(case)


@pytest.mark.parametrize("name", LATENCY_CASES)
def test_deep_latency_is_the_models(name):
    """Sums of parts on both sides; runs of every part are in the random cases."""
    geometry = deep(LATENCY_CASES[name]).geometry
    gate = Gate(geometry)
    Fragment.get(gate, None)
    assert (gate.latency, gate.credits) == (sim.gating.latency(geometry), sim.gating.num_credits(geometry))


def test_latency_by_parts():
    """The table of docs/gating.md: 16 rows, 4 steps of inputs, k = 8."""
    parts = {"product": 64 + 9, "fixed": 1, "top-k": 3, "weight": 2, "queue": 2}

    def of(**changes) -> int:
        changes = {"num_experts": 32, "top_k": 8, **changes}
        return sim.gating.latency(small(GatingSpec(**changes), d_model=8).geometry)

    common = sum(parts.values())
    none = {"normalise": Normalise.NONE}
    assert of(**none, **SIGMOID) == common + 8
    assert of(**SIGMOID) == common + 8 + (8 + 5)
    assert of(num_groups=4, topk_groups=2, **SIGMOID) == common + 8 + (15 + 4) + (8 + 5)
    assert of() == common + 5 + (8 + 5)
    assert of(**none) == common + 5 + (16 + 2)
    # Terms that not every gate has.
    logits = {"score": Score.NONE}
    assert of(**logits, **none) == common
    assert of(**logits, **none, selection_bias=True) == common + 1
    assert of(**logits, **none, weight_score=Score.SIGMOID) == common + 8
    assert of(**logits, **none, weight_score=Score.SQRT_SOFTPLUS) == common + 14
    assert of(**none, score=Score.SQRT_SOFTPLUS) == common + 15
    assert of(**none, selection_bias=True) == common + 2 * 16 + 11
    assert of(epsilon=0.1) == common + 5 + (16 + 2) + 1 + (8 + 5)
    assert of(normalise=Normalise.P_NORM) == of()
    assert of(normalise=Normalise.P_NORM, norm_order=2.0) == common + 5 + (2 * 8 + 22)


INTERVALS = {
    "product": (small(gating_of(8, 2), d_model=8), True),
    "groups": (small(gating_of(16, 4, num_groups=4, topk_groups=2, **BIASED), d_model=4), True),
    "groups share rows": (small(gating_of(12, 4, num_groups=4, topk_groups=2, **BIASED), d_model=4), True),
    "selection": (
        small(gating_of(16, 16), d_model=2, lanes=8, logits_per_cycle=4, stream_lanes=2, load_elements=8),
        True,
    ),
    "one step": (small(gating_of(32, 4), d_model=2), True),
    "one row": (small(gating_of(2, 1), d_model=6), True),
    "one row of one step": (small(gating_of(2, 1), d_model=2), True),
    "two rows": (small(gating_of(4, 1), d_model=8), True),
    "three rows": (small(gating_of(6, 2), d_model=10), True),
    "few rows, selection": (small(gating_of(8, 7), d_model=6, lanes=8, logits_per_cycle=4), True),
    "input": (small(gating_of(2, 1), d_model=12, lanes=8), True),
    "odd d_model": (small(gating_of(8, 2), d_model=7), False),
    "odd num_experts": (small(gating_of(7, 2), d_model=8), False),
    "groups smaller than a row": (
        small(gating_of(8, 1, num_groups=4, topk_groups=2, **BIASED), d_model=2, lanes=8, logits_per_cycle=4),
        False,
    ),
}


def stated_interval(geometry: GateGeometry, logits_per_cycle: int) -> int:
    """Return the bound on the initiation interval: MACs, logits of the design, selection, input."""
    gating = geometry.gating
    return max(
        ceil_div(gating.num_experts * geometry.d_model, geometry.lanes),
        ceil_div(gating.num_experts, logits_per_cycle),
        gating.top_k,
        geometry.input_beats,
    )


@pytest.mark.parametrize("name", INTERVALS)
def test_initiation_interval(name):
    """With tokens waiting and the output taken, one token per ``interval`` cycles: the stated bound."""
    case, whole = INTERVALS[name]
    case = replace(case, num_tokens=9)
    geometry = case.geometry
    run = run_case(case)
    check(case, run)
    firsts = run.traces["o"].cycles[:: geometry.gating.top_k]
    assert (np.diff(firsts) == geometry.interval).all(), f"{case}: {np.diff(firsts)}"
    bound = stated_interval(geometry, geometry.logits_per_cycle)
    assert geometry.interval == bound if whole else geometry.interval > bound


def random_gate(rng, num_experts: int, d_model: int) -> GateGeometry:
    """Return the gate of a small model on the ``fpga`` design, grouped every other time."""
    groups = int(rng.choice([n for n in (2, 3, 4, 8) if num_experts % n == 0 and num_experts > n] or [1]))
    sizes = {"num_groups": groups, "topk_groups": 1, **SIGMOID} if rng.random() < 0.5 else {"num_groups": 1}
    top_k = int(rng.integers(1, min(8, num_experts // sizes["num_groups"]) + 1))
    gating = gating_of(num_experts, top_k, **sizes)
    return GateGeometry.of(replace(load_model("mixtral-8x7b"), gating=gating, d_model=d_model), FPGA)


FPGA = load_design("fpga")
SHAPES = {
    "multiples of 64": lambda rng: (int(rng.integers(1, 65)), 64 * int(rng.integers(1, 17))),
    "multiples of 16": lambda rng: (int(rng.integers(1, 65)), 16 * int(rng.integers(1, 17))),
    "any": lambda rng: (int(rng.integers(1, 65)), int(rng.integers(1, 257))),
}


def above_the_bound(name: str) -> np.ndarray:
    """Return by how much, relatively, the intervals of 400 random gates are above the stated bound.

    Each is measured by the cycle model, which the hardware equals, and is the formula of docs/gating.md.
    """
    rng = np.random.default_rng(11)
    above = []
    for _ in range(400):
        num_experts, d_model = SHAPES[name](rng)
        geometry = random_gate(rng, num_experts, d_model)
        top_k = geometry.gating.top_k
        arrivals = np.zeros(24 * geometry.input_beats, dtype=np.int64)
        firsts = sim.gating.gate_cycles(geometry, arrivals).o[::top_k]
        assert (np.diff(firsts) == geometry.interval).all(), f"{geometry}: {np.diff(firsts)}"
        groups, group = geometry.num_groups, geometry.experts_per_group
        products = []
        for logits in {4, 2, 1, min(4, 64 // d_model) or 1}:
            rows = groups if group < logits else ceil_div(num_experts, logits)
            products.append(rows * ceil_div(d_model, 64 // logits))
        assert geometry.interval == max(min(products), top_k, geometry.input_beats), str(geometry)
        above.append(geometry.interval / stated_interval(geometry, FPGA.gate.logits_per_cycle) - 1)
    return np.array(above)


@pytest.mark.parametrize("name", SHAPES)
def test_interval_of_random_gates(name):
    """Whole steps of inputs meet the bound; the others miss it by what docs/gating.md says."""
    above = above_the_bound(name)
    assert name != "multiples of 64" or not above.any()
    row = f"| {name} | {np.mean(above > 0):.0%} | {above.mean():.1%} | {above.max():.0%} |"
    page = (Path(__file__).parent.parent / "docs" / "gating.md").read_text(encoding="utf-8")
    assert row in page, f"docs/gating.md: no row {row}"


# Reset and another router.


async def work_then_reset(ctx, dut: Gate, reset, cycles: int, rng) -> None:
    """Keep the gate busy with another router and other tokens, then reset it."""
    await load_router(
        ctx, dut, rng.integers(0, 1 << 16, (dut.geometry.load_beats, dut.geometry.load_elements))
    )
    for _ in range(cycles):
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, {"data": rng.integers(0, 1 << 16, dut.geometry.stream_lanes).tolist()})
        ctx.set(dut.o.ready, int(rng.random() < 0.5))
        await ctx.tick()
    ctx.set(dut.i.valid, 0)
    ctx.set(reset, 1)
    await ctx.tick()
    ctx.set(reset, 0)


@pytest.mark.parametrize("kind", ["groups", pytest.param("softmax of all", marks=pytest.mark.long)])
@pytest.mark.parametrize("moment", ["first beats", "product", "selection", "output"])
def test_reset_in_the_middle(kind, moment):
    case = replace(LATENCY_CASES[kind], num_tokens=3, stalls="half")
    latency = sim.gating.latency(case.geometry)
    first_launch = case.geometry.input_beats
    cycles = (
        first_launch
        + {"first beats": -1, "product": 3, "selection": latency - 8, "output": latency + 2}[moment]
    )
    rng = np.random.default_rng(5)
    seen = []

    async def before(ctx, dut, reset):
        await work_then_reset(ctx, dut, reset, cycles, rng)
        seen.append(ctx.get(dut.o.valid))

    check(case, run_case(case, before=before))
    assert seen == [0]


@pytest.mark.parametrize("cycles", [0, 3, 20])
def test_reset_while_loading(cycles):
    """Half a router, a reset: the next image starts from its first beat again."""
    case = LATENCY_CASES["groups"]

    async def before(ctx, dut, reset):
        ctx.set(dut.i_load.valid, 1)
        ctx.set(dut.i_load.payload, 0x1234)
        for _ in range(cycles):
            await ctx.tick()
        ctx.set(dut.i_load.valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)

    check(case, run_case(case, before=before))


@pytest.mark.parametrize("kind", ["softmax", "groups"])
@pytest.mark.parametrize("part", [0.4, 1.0])
def test_another_router_by_load_start(kind, part):
    """``load_start`` takes a new image, after a whole one or in the middle of one."""
    case = LATENCY_CASES[kind]
    rng = np.random.default_rng(9)

    async def before(ctx, dut, _reset):
        geometry = dut.geometry
        image = rng.integers(0, 1 << 16, (geometry.load_beats, geometry.load_elements))
        if part == 1.0:
            await load_router(ctx, dut, image)
        else:
            ctx.set(dut.i_load.valid, 1)
            for beat in image[: int(part * len(image))]:
                ctx.set(dut.i_load.payload, pack(beat))
                await ctx.tick()
            ctx.set(dut.i_load.valid, 0)
        ctx.set(dut.load_start, 1)
        await ctx.tick()
        ctx.set(dut.load_start, 0)

    check(case, run_case(case, before=before))


def test_tokens_wait_for_the_router():
    """Tokens offered while the router is loaded are taken into the buffers and routed afterwards."""
    case = replace(LATENCY_CASES["softmax"], num_tokens=4)
    geometry = case.geometry
    rng = np.random.default_rng(case.seed)
    operands = operands_of(case, rng)
    ends_batch = np.zeros(case.num_tokens, dtype=bool)
    beats = input_beats(case, operands.tokens, ends_batch, rng)
    traces = run_streams(
        Gate(geometry),
        {
            "i": Source(beats, [0] * len(beats)),
            "i_load": Source([pack(beat) for beat in operands.image], [0] * geometry.load_beats),
        },
        {"o": Sink(case.num_tokens * geometry.gating.top_k)},
    )
    assert traces["o"].payloads == expected_beats(case, operands.routing, ends_batch)
    assert traces["i_load"].cycles.tolist() == list(range(geometry.load_beats))
    assert (traces["i"].cycles[: 2 * geometry.input_beats] < geometry.load_beats).all()
    assert traces["o"].cycles[0] == geometry.load_beats + sim.gating.latency(geometry)


# Golden in the hardware's numbers against golden in float.

FLOAT_WEIGHT_ERROR = 2.0**-8 + 2.0e-5
"""bf16 rounds to 2**-8; the tables of exp or sigmoid and of the reciprocal add less than 2e-5."""
LOGIT_ERROR = 4e-6
"""Truncation to 20 fraction bits, guard bits and fp32 roundings, at logits of some units."""


def distance_to_a_tie(gating: GatingSpec, keys: np.ndarray) -> np.ndarray:
    """Return how near each token is to another choice: of experts, and of groups."""
    near = np.full(len(keys), np.inf)
    if gating.grouped:
        groups = np.sort(keys.reshape(len(keys), gating.num_groups, -1), axis=-1)
        best = np.sort(groups[..., -2:].sum(-1), axis=-1)
        near = best[:, -gating.topk_groups] - best[:, -gating.topk_groups - 1]
        order = np.argsort(groups[..., -2:].sum(-1), axis=-1)[:, : gating.num_groups - gating.topk_groups]
        masked = keys.reshape(len(keys), gating.num_groups, -1).copy()
        np.put_along_axis(masked, order[..., None], -np.inf, axis=1)
        keys = masked.reshape(len(keys), -1)
    ranked = np.sort(keys, axis=-1)
    return np.minimum(near, ranked[:, -gating.top_k] - ranked[:, -gating.top_k - 1])


@pytest.mark.parametrize(
    "preset", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b", "switch-base-128"]
)
def test_against_float(preset):
    """Choices differ only where float is within the logits' error of a tie; weights by bf16's rounding."""
    model = load_model(preset).scaled(16)
    gating, d_model = model.gating, model.d_model
    rng = np.random.default_rng(0)
    router = bf16_encode(rng.standard_normal((gating.num_experts, d_model)) / np.sqrt(d_model))
    tokens = bf16_encode(rng.standard_normal((96, d_model)))
    bias = (rng.standard_normal(gating.num_experts) * 0.1).astype(np.float32)
    logit_bias = bias if gating.logit_bias else None
    selection_bias = bias if gating.selection_bias else None
    ours = route_bf16(gating, router, tokens, 16, logit_bias, selection_bias)
    real = route(gating, bf16_decode(router), bf16_decode(tokens), logit_bias, selection_bias)
    logit_error = np.abs(ours.logits / 2.0**20 - real.logits).max()
    assert logit_error < LOGIT_ERROR, f"{preset}: {logit_error}"

    same = (np.sort(ours.ids, axis=1) == np.sort(real.ids, axis=1)).all(axis=1)
    keys = real.logits
    if gating.score is Score.SIGMOID:
        keys = 1 / (1 + np.exp(-real.logits)) + (0 if selection_bias is None else selection_bias)
    near = distance_to_a_tie(gating, keys)
    # Sigmoid scores add 5.9e-6 of the table and 2**-24; a group's score is the sum of two.
    bound = 2 * LOGIT_ERROR if gating.score is Score.SOFTMAX else 4 * (LOGIT_ERROR + 6e-6)
    assert same[near > bound].all(), f"{preset}: {np.flatnonzero(~same)}, {near[~same]}"
    assert np.mean(near > bound) >= 0.98, f"{preset}: too many near ties to say anything"

    # Weights by expert: two chosen logits closer than the error may stand in the other order.
    errors = []
    for token in np.flatnonzero(same):
        want = dict(zip(real.ids[token].tolist(), real.weights[token].tolist(), strict=True))
        got = zip(ours.ids[token].tolist(), bf16_decode(ours.weights[token]).tolist(), strict=True)
        errors += [abs(weight / want[expert] - 1) for expert, weight in got]
    print(f"{preset}: same set {same.mean():.4f}, logits {logit_error:.1e}, weights {max(errors):.5f}")
    assert max(errors) <= FLOAT_WEIGHT_ERROR, f"{preset}: {max(errors)}"


def key_error(kind: Score, scores: np.ndarray) -> np.ndarray:
    """Return how far a selection score may be from that in float: the table's error and the last place."""
    if kind is Score.SOFTMAX:
        return 3e-5 * scores + 2.0**-28
    table = {Score.SIGMOID: 6e-6, Score.SQRT_SOFTPLUS: 3e-6, Score.NONE: 0.0}[kind]
    return table * np.maximum(np.abs(scores), 1) + 2.0**-24


def check_against_float(seed: int) -> tuple[float, float]:
    """Compare a random gating with float, from the same logits on.

    Choices may differ where selection scores are within their error of a tie; weights by bf16's rounding,
    the scores' errors and what those make of the denominator. Returns the shares of tokens that were sure
    of their groups and of weights that were well conditioned.
    """
    rng = np.random.default_rng(seed)
    gating = random_gating(rng)
    fixed = np.round(rng.normal(0, rng.choice([0.5, 2, 6]), (64, gating.num_experts)) * 2**20).astype(
        np.int64
    )
    logits = fixed / 2.0**20
    bias = rng.standard_normal(gating.num_experts) * 0.2 if gating.selection_bias else None
    ours = select(gating, fixed, None if bias is None else selection_bias_fixed(gating, bias))

    scores = golden.gating.score(gating.score, logits)
    keys = scores + (0 if bias is None else bias)
    error = key_error(gating.score, scores).max(axis=1)
    sure = np.ones(len(keys), dtype=bool)
    if gating.grouped:
        groups = np.sort(keys.reshape(len(keys), gating.num_groups, -1), axis=-1)
        ranks = groups[..., -1] + (groups[..., -2] if gating.group_score is GroupScore.TOP2_SUM else 0)
        ranks = np.sort(ranks, axis=-1)
        sure = ranks[:, -gating.topk_groups] - ranks[:, -gating.topk_groups - 1] > 4 * error
        loser = -np.inf if gating.group_mask is GroupMask.MINUS_INFINITY else 0.0
        keys = np.where(golden.gating.group_mask(gating, keys), keys, loser)
    chosen = np.take_along_axis(keys, ours.ids, axis=1).min(axis=1)
    np.put_along_axis(keys, ours.ids, -np.inf, axis=1)
    assert (chosen - keys.max(axis=1) > -2 * error)[sure].all(), f"seed {seed}: {gating}"

    selected = np.take_along_axis(
        golden.gating.score(gating.weight_score or gating.score, logits), ours.ids, axis=1
    )
    real = golden.gating.normalise(gating, selected)
    score_error = 3e-5 * np.abs(selected) + 2.0**-29
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = 2.0**-8 + 2.0**-14 + score_error / np.abs(selected)
        if gating.normalise is not Normalise.NONE:
            total = np.abs(selected * gating.scale / real)
            moved = score_error
            if gating.normalise is Normalise.P_NORM:
                # Derivative of the norm: orders below 1 feel the smallest scores most, as far as it says it.
                moved = score_error * (total / np.abs(selected)) ** max(0, 1 - gating.norm_order)
                if gating.norm_order < 1:
                    moved[score_error > 0.1 * np.abs(selected)] = np.inf
            bound = bound + (moved.sum(axis=1, keepdims=True) + 2.0**-30) / total + 2e-5
        well = (bound < 0.1) & (real != 0) & sure[:, None]
        errors = np.abs(bf16_decode(ours.weights) / real - 1)
    assert (errors <= bound)[well].all(), f"seed {seed}: {gating}"
    return float(sure.mean()), float(well.mean())


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(200, 2000, 200))]
)
def test_terms_against_float(first):
    """All terms of the algebra: what is not compared is a small part."""
    shares = np.array([check_against_float(seed) for seed in range(first, first + 200)])
    assert shares.mean(axis=0).min() > 0.97, shares.mean(axis=0)


def test_shares_of_many_experts_are_told_apart():
    """512 equal shares of 2**-9 but for logits 4e-6 apart: keys of 28 fraction bits follow them.

    The resolution is 2**-28 of 1, that is 2**-19 of such a share; equal ones are ties.
    """
    gating = gating_of(512, 16, selection_bias=True)
    step = 8  # of 2**-20: a share's 2**-9 changes by 4 of its last places
    logits = np.zeros((1, 512), dtype=np.int64)
    logits[0, 100:116] = step * (1 + np.arange(16))
    ids = select(gating, logits, np.zeros(512, dtype=np.int64)).ids[0]
    assert sorted(ids.tolist()) == list(range(100, 116))
    logits[0] = 0
    assert select(gating, logits, np.zeros(512, dtype=np.int64)).ids[0].tolist() == list(range(16))
    # A bias of one last place breaks the tie, a bias is exact from 2**-29 of itself on.
    one = np.zeros(512)
    one[300] = 2.0**-28
    assert select(gating, logits, selection_bias_fixed(gating, one)).ids[0, 0] == 300


def test_epsilon_that_is_nothing():
    """The plan's question and the rounded number say the same."""
    for epsilon in (0.0, 1e-20, 2.0**-31, np.nextafter(2.0**-31, 1), 1e-6, 1.0):
        assert GatePlan(gating_of(2, 1, epsilon=epsilon)).has_epsilon == (epsilon_fixed(epsilon) != 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 0.2, 0.25, 1.0, 2.446, 16.0, 63.9, 64.0, 1000.0, 65535.0])
def test_scale_as_stated(scale):
    mantissa, power = scale_fixed(scale)
    assert mantissa < 1 << 20
    assert abs(mantissa * 2.0 ** (power - 14) / scale - 1) <= (2.0**-13 if scale < 1 else 2.0**-15)


# What a configuration does not use is not there.


@functools.cache
def netlist_of(gating: GatingSpec) -> tuple[set[str], int]:
    """Return the modules of a gate behind its product, and how many cells they have before synthesis."""
    selection = rtl.gating.selection.Selection(small(gating).geometry, 1)
    text = rtlil.convert(selection, emit_src=False)
    names = re.findall(r"^module \\top\.([^\s$]+)(?:\$\d+)?$", text, flags=re.MULTILINE)
    return set(names), text.count("\n  cell ")


PARTS = {
    "mixtral": (gating_of(8, 2), {"weights.exp"}),
    "softmax of all": (gating_of(8, 2, normalise=Normalise.NONE), {"weights.exp", "total"}),
    "deepseek v3": (
        gating_of(8, 2, num_groups=4, topk_groups=2, **BIASED),
        {"scores.sigmoid_0", "scores.sigmoid_1", "groups"},
    ),
    "llama4": (gating_of(8, 1, **LLAMA4), {"weights.sigmoid"}),
    "logits": (gating_of(8, 2, score=Score.NONE), set()),
    "deepseek v2": (gating_of(12, 2, **DEEPSEEK_V2), {"weights.exp", "total", "groups"}),
    "ernie": (gating_of(8, 2, **ERNIE), {"scores.shares"}),
    "deepseek v4": (gating_of(8, 2, **DEEPSEEK_V4), {"scores.sqrt_softplus_0", "scores.sqrt_softplus_1"}),
    "norm of order 1": (gating_of(8, 2, normalise=Normalise.P_NORM), {"weights.exp"}),
    "norm": (gating_of(8, 2, normalise=Normalise.P_NORM, norm_order=2.0), {"weights.exp", "weights.norm"}),
    "nllb": (gating_of(8, 2, epsilon=1e-6), {"weights.exp", "weights.total_inverse", "total"}),
    "softmax of a choice by sigmoid": (
        gating_of(8, 2, weight_score=Score.SOFTMAX, **BIASED),
        {"scores.sigmoid_0", "scores.sigmoid_1", "weights.exp", "largest"},
    ),
}
OPTIONAL = re.compile(
    r"weights\.(exp|sigmoid|sqrt_softplus|norm|total_inverse)|scores\.(\w+_\d|shares)|total|largest|groups"
)


@pytest.mark.parametrize("name", PARTS)
def test_only_what_is_used_is_there(name):
    """No group logic, no function, no sum over all experts but in the gates that need it."""
    gating, parts = PARTS[name]
    assert {part for part in netlist_of(gating)[0] if OPTIONAL.fullmatch(part)} == parts


def test_terms_cost_what_they_add():
    """Each term makes the gate's netlist larger than without it."""
    names = ("logits", "mixtral", "softmax of all", "ernie", "norm of order 1", "nllb", "norm")
    size = {name: netlist_of(PARTS[name][0])[1] for name in names}
    assert size["logits"] < size["mixtral"] < size["softmax of all"] < size["ernie"]
    assert size["mixtral"] == size["norm of order 1"] < size["nllb"]
    assert size["mixtral"] < size["norm"]
    assert netlist_of(gating_of(8, 2, **SIGMOID))[1] < netlist_of(gating_of(8, 2, **BIASED))[1]


# The checks themselves must fail where hardware or model is wrong.

PLANTED = {
    "ties to the highest index": (rtl.gating.topk, "Cat(~head.payload", "Cat(head.payload"),
    "list not in order of arrival": (
        rtl.gating.topk,
        "(~kept | (self.key > entry.key))",
        "(~kept | (self.key >= entry.key))",
    ),
    "stale candidates": (rtl.gating.topk, "kept = entry.valid & ~self.clear", "kept = entry.valid"),
    "groups by the best only": (
        rtl.gating.scores,
        "ranked.key.eq(s2_best + s2_second if top2_sum else s2_best)",
        "ranked.key.eq(s2_best)",
    ),
    "mask of the token before": (
        rtl.gating.scores,
        's3_last = delay(m, s2_last, 1, "s3_last", control=True)',
        's3_last = delay(m, s2_last, 2, "s3_last", control=True)',
    ),
    "bias of the row before": (
        rtl.gating.scores,
        "self.latency - 2",
        "self.latency - 1",
    ),
    "inputs beyond d_model": (rtl.gating.product, "Mux(partial, 0, ram", "Mux(0, 0, ram"),
    "accumulators not cleared": (rtl.gating.product, "Mux(first_beat, initial,", "Mux(0, initial,"),
    "buffer freed too early": (
        rtl.gating.product,
        "self.release.eq(busy & last_word)",
        "self.release.eq(self.launch)",
    ),
    "tokens that overlap share accumulators": (
        rtl.gating.product,
        "sets = geometry.num_token_buffers if",
        "sets = 1 if",
    ),
    "launched between two intervals": (
        rtl.gating.product,
        "to_interval.eq(interval - 1),",
        "to_interval.eq(interval - 2),",
    ),
    "launched before the last one's end": (
        rtl.gating.product,
        "to_end.eq(under_way - 1),",
        "to_end.eq(under_way - 2),",
    ),
    "bursts of one row too close": (
        rtl.gating.product,
        "distance = geometry.beat_distance",
        "distance = geometry.beat_distance - 1",
    ),
    "begin of a group forgotten": (
        rtl.gating.scores,
        "best_two(walk.of_next_group)",
        "best_two(Const(0, 2))",
    ),
    "next group with the mask of this one": (
        rtl.gating.scores,
        "Mux(walk.of_next_group[lane], walk.group + 1",
        "Mux(walk.of_next_group[lane], walk.group",
    ),
    "group runs on into the next": (rtl.gating.scores, "lane.valid & ~other", "lane.valid | other"),
    "one cycle lost between tokens": (
        rtl.gating.product,
        "Mux(busy, last_word & (rest == 0), resting <= 1)",
        "Mux(busy, 0, resting <= 1)",
    ),
    "sum without its last score": (rtl.gating.weights, "valid & last, 1 + inverse", "valid & last, inverse"),
    "inverse of the token before": (
        rtl.gating.weights,
        "top_k + self.inverse_latency + 1",
        "top_k + self.inverse_latency",
    ),
    "end of batch": (rtl.gating.selection, "lasts.bit_select(read, 1)),", "lasts.bit_select(write, 1)),"),
    "too few credits": (rtl.gating.selection, "self.geometry.interval) + 1", "self.geometry.interval)"),
    "queue one cycle late": (rtl.fifo, "(~valid | self.o.ready)", "~valid"),
    "model: latency": (sim.gating, "PRODUCT_PIPELINE = 9", "PRODUCT_PIPELINE = 8"),
    "model: buffers": (sim.gating, "buffers = geometry.num_token_buffers", "buffers = 3"),
    "model: launched in any cycle": (sim.gating, "(launch[token - 1] - start) % interval", "0"),
    "model: credits": (
        sim.gating,
        "top_k - 1] + 1)\n        # While",
        "top_k - 1])\n        # While",
    ),
}


def revealing_cases() -> list[Case]:
    """Return what every planted bug shows in: groups, ties, odd d_model, few rows, stalls."""
    gating = gating_of(12, 3, num_groups=3, topk_groups=2, **BIASED)
    return [
        small(gating, num_tokens=4),
        small(gating, num_tokens=2, data="ties"),
        small(gating, num_tokens=12, stalls="bursts"),
        # Products of several tokens at once, which come a little too slowly; groups share rows.
        small(
            gating_of(6, 2, num_groups=2, topk_groups=1, **BIASED),
            stream_lanes=1,
            num_tokens=8,
            gaps="bursts",
        ),
    ]


def check_revealing_cases() -> None:
    for case in revealing_cases():
        check(case, run_case(case))


def test_unbroken_source_passes(monkeypatch):
    line = "class RouterProduct(wiring.Component):"
    plant_bug(monkeypatch, rtl.gating.product, line, line)
    check_revealing_cases()


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.long] * (n % 4 > 0)) for n, bug in enumerate(PLANTED)]
)
def test_planted_bug_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED[bug])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_revealing_cases()


PLANTED_IN_DEEP = {
    "router before its tokens": (
        rtl.gating.product,
        'router.data, registers, "router',
        'router.data, 0, "router',
    ),
    "room in the buffer before": (rtl.gating.product, "Mux(filled, free(following(", "Mux(filled, free(("),
    "one word too few": (rtl.gating.product, "self.word == words - 2", "self.word == words - 3"),
    "two credits are none": (rtl.gating.selection, "(credits > 1)", "(credits > 2)"),
    "position of the token before": (
        rtl.gating.weights,
        'delay(m, position, cut, "part',
        'delay(m, position, 0 * cut, "part',
    ),
    "compared with the entry that moves away": (
        rtl.gating.topk,
        "Mux(above[n - 1], larger[n - 1], was_larger)",
        "Mux(above[n - 1], larger[n], was_larger)",
    ),
    "compared with nothing on its way": (
        rtl.gating.topk,
        "inserted, was_larger = new.valid, larger_than_new",
        "inserted, was_larger = new.valid, 1",
    ),
    "an equal one on its way goes behind": (
        rtl.gating.topk,
        "larger_than_new.eq(self.key > new.key)",
        "larger_than_new.eq(self.key >= new.key)",
    ),
    "cleared entries count": (
        rtl.gating.topk,
        "entry.valid & ~(insert & clear), larger[n]",
        "entry.valid, larger[n]",
    ),
    "inverse without its register": (
        rtl.gating.weights,
        'delay(m, mantissa, beside, "mantissa',
        'delay(m, mantissa, 0, "mantissa',
    ),
    "model: deep list": (sim.gating, "TOPK, DEEP_TOPK = 3, 4", "TOPK, DEEP_TOPK = 3, 3"),
    "model: deep product": (sim.gating, "DEEP_PRODUCT_PIPELINE = 17", "DEEP_PRODUCT_PIPELINE = 16"),
    "model: deep trees": (sim.gating, "max(1, levels) +", "levels +"),
    "model: deep inverse": (sim.gating, "DEEP_INVERSE = 4, 10", "DEEP_INVERSE = 4, 9"),
}


def check_list(pipeline: Pipeline, seed: int, insertions: int = 400) -> None:
    """Compare a list of the best with sorting, on keys of two bits: ties, gaps, invalid ones, restarts."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 6))
    ranked = SortedList(key_bits=2, payload_bits=9, size=size, pipeline=pipeline)
    inputs = {
        "insert": rng.random(insertions) < 0.8,
        "clear": rng.random(insertions) < 0.15,
        "valid": rng.random(insertions) < 0.8,
        "key": rng.integers(0, 4, insertions),
        "payload": np.arange(insertions),
    }
    found = run_pipeline(ranked, inputs, ["entries"], latency=ranked.latency)["entries"]
    best: list[tuple[int, int]] = []
    for n, entries in enumerate(found.tolist()):
        insert, clear, valid, key, payload = (int(inputs[name][n]) for name in inputs)
        if insert:
            best = [] if clear else best
            best = sorted([*best, *[(key, payload)] * valid], key=lambda entry: -entry[0])[:size]
        words = [entries >> 12 * place & 0xFFF for place in range(size)]
        held = [(word >> 9 & 3, word & 0x1FF) for word in words if word >> 11]
        assert held == best, f"seed {seed}, {size} entries, insertion {n}"


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 60))])
@pytest.mark.parametrize("pipeline", Pipeline)
def test_a_list_of_the_best_is_sorted(pipeline, seed):
    check_list(pipeline, seed)


def check_deep_cases() -> None:
    """Check what the planted bugs show in: lists, few rows, one input, stalls, weights from exponentials."""
    for seed in range(3):
        check_list(Pipeline.DEEP, seed)
    for case in (
        small(gating_of(6, 3), num_tokens=6, stalls="bursts"),
        small(gating_of(8, 8), d_model=2, lanes=8, logits_per_cycle=4, num_tokens=8, stalls="half"),
        small(gating_of(40, 3), num_tokens=6, stalls="bursts"),
        small(
            gating_of(6, 2, normalise=Normalise.NONE), d_model=1, lanes=2, logits_per_cycle=2, stream_lanes=1
        ),
    ):
        check_deep(case)


def test_unbroken_deep_source_passes():
    check_deep_cases()


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=[pytest.mark.long] * (n > 0)) for n, bug in enumerate(PLANTED_IN_DEEP)],
)
def test_planted_bug_in_deep_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED_IN_DEEP[bug])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_deep_cases()


# Bugs in terms that not every gate has, each with a corner that shows it.
PLANTED_IN_TERMS = {
    "shares with the inverse of the token before": (
        rtl.gating.softmax,
        "self.geometry.num_rows - 1 + behind",
        "self.geometry.num_rows - 2 + behind",
        "softmax_with_bias",
    ),
    "shares of lanes without an expert": (
        rtl.gating.scores,
        "shares.i.lanes[lane].valid.eq(walk.present[lane])",
        "shares.i.lanes[lane].valid.eq(1)",
        "softmax_with_bias",
    ),
    "payload of the row before": (
        rtl.gating.scores,
        "Cat(*logits), self.latency - self.fixed_latency",
        "Cat(*logits), self.latency - self.fixed_latency + 1",
        "weights_of_another_score",
    ),
    "losers keep their scores": (
        rtl.gating.scores,
        "Mux(mask.bit_select(group, 1), key, zero)",
        "Mux(1, key, zero)",
        "losers_at_zero_beat_negative_scores",
    ),
    "largest logit of the winners alone": (
        rtl.gating.scores,
        "[self.o_all.eq(wait.o),",
        "[self.o_all.eq(self.o),",
        "softmax_groups_by_sum_of_logits",
    ),
    "largest logit of the token behind": (
        rtl.gating.selection,
        "TopK.latency_of(weights.pipeline) - 1",
        "TopK.latency_of(weights.pipeline) - 2",
        "softmax_of_choices_by_sigmoid_one_row",
    ),
    "clamped and added": (
        rtl.gating.weights,
        "epsilon if gating.epsilon_rule is Epsilon.ADDED else 0",
        "epsilon",
        "large_least_denominator",
    ),
    "epsilon of the exponentials": (
        rtl.gating.softmax,
        "places.eq(position - SCORE_BITS)",
        "places.eq(0)",
        "large_epsilon_sees_shares",
    ),
    "sign of the sum forgotten": (
        rtl.gating.weights,
        "sign = tags_q[-1] ^ ",
        "sign = tags_q[-1] & ~",
        "sums_of_logits_with_either_sign",
    ),
    "scale beyond its format": (
        rtl.gating.weights,
        "places = scale_power + ",
        "places = 0 + ",
        "weights_are_logits",
    ),
    "norm with the powers of the token before": (
        rtl.gating.norm,
        "Mux(term_first, 0, powers)",
        "powers",
        "p_norm_of_logits",
    ),
    "norm with another token's largest": (
        rtl.gating.norm,
        "top_k + Log2.LATENCY + 1",
        "Log2.LATENCY + 1",
        "p_norm_k_16",
    ),
    "model: shares": (
        sim.gating,
        "rows + part.total_tail + rows - 1 +",
        "rows + part.total_tail + rows +",
        "softmax_with_bias",
    ),
    "model: norm": (sim.gating, "2 * top_k - 1 + NORM", "2 * top_k + NORM", "p_norm_k_1"),
}


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.long] * (n % 2)) for n, bug in enumerate(PLANTED_IN_TERMS)]
)
def test_planted_bug_in_a_term_is_found(monkeypatch, bug):
    *planted, name = PLANTED_IN_TERMS[bug]
    plant_bug(monkeypatch, *planted)
    case = CORNERS[name]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(case, run_case(case))


SHARED_GATE = {
    "a weight given away too early": (
        rtl.gating.shared,
        "self.o.valid & self.o.ready & self.o.payload.last",
        "self.o.valid & self.o.ready",
    ),
    "the gate among the experts": (rtl.gating.shared, "row.valid & ~row.last", "row.valid"),
    "another lane": (
        rtl.gating.shared,
        "row.logits[geometry.shared_gate_lane]",
        "row.logits[geometry.shared_gate_lane ^ 1]",
    ),
    "model: counted from the gate's row": (
        sim.gating,
        "geometry.product_cycles - (geometry.num_rows - geometry.expert_rows)",
        "geometry.product_cycles",
    ),
}


def check_shared_gates() -> None:
    """Run a gate in a row of its own, and one in a lane that was free."""
    for num_experts in (8, 7):
        case = small(gating_of(num_experts, 2), num_tokens=3, stalls="half")
        case = replace(case, geometry=replace(case.geometry, shared_gate=True))
        check(case, run_case(case))


def test_small_shared_gates():
    check_shared_gates()


@pytest.mark.parametrize("bug", SHARED_GATE)
def test_bug_planted_in_the_shared_gate_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *SHARED_GATE[bug])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_shared_gates()


def test_divergence_is_named(monkeypatch):
    case = revealing_cases()[0]
    plant_bug(monkeypatch, *PLANTED["one cycle lost between tokens"])
    run = run_case(case)
    message = "gating i: beat 9: rtl in cycle 41, model 40; Case(geometry=GateGeometry("
    with pytest.raises(pytest.fail.Exception, match=f"^{re.escape(message)}.*seed=7"):
        check(case, run)


def test_documented_figures():
    """Figures of the table in docs/gating.md, recomputed."""
    page = (Path(__file__).parent.parent / "docs" / "gating.md").read_text(encoding="utf-8")
    for preset in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b", "switch-base-128"):
        geometry = fpga_geometry(preset)
        row = f"| `{preset}` | {geometry.interval} | {sim.gating.latency(geometry)} |"
        assert row in page, f"docs/gating.md: no row {row}"


def fpga_geometry(preset: str) -> GateGeometry:
    return GateGeometry.of(load_model(preset), load_design("fpga"))
