"""The families' gates against float: margins, derived bounds, and a link that says what does not hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import golden.gating_bf16
import sim.claims.agreement
import sim.gate_alone
from golden.agreement import (
    SCORE_ERRORS,
    choice_bound,
    choice_margins,
    logit_bound,
    selection_keys,
    weight_bound,
)
from golden.formats import bf16_decode, bf16_encode
from golden.functions import FIXED_MAX
from golden.gating import Routing, normalise, route, score, select
from golden.gating_bf16 import RoutingBf16, route_bf16, selection_bias_fixed
from golden.gating_bf16 import select as select_bf16
from sim.claims.agreement import CHUNK, FamilyGate, Gate, GateBench, compare, family_gates, link_of
from sim.claims.links import LINKS
from sim.gate_alone import GateOperands, GateRun, gate_job, run_gate
from spec.families import family_names
from spec.gate_plan import GatePlan
from spec.geometry import GateGeometry
from spec.load import load_design, load_model
from spec.model import GatingSpec, GroupMask, GroupScore, Normalise, Score
from tests.bench.runner import build
from tests.bench.test_gating_bench import GEOMETRIES

VECTORS = Path("tests/data")
DESIGN = load_design("fpga")
GATINGS = {
    "softmax": GatingSpec(num_experts=12, top_k=3),
    "softmax of biased logits": GatingSpec(
        num_experts=12, top_k=3, logit_bias=True, normalise=Normalise.NONE
    ),
    "softmax and bias": GatingSpec(num_experts=12, top_k=3, selection_bias=True),
    "softmax in groups": GatingSpec(
        num_experts=12,
        top_k=3,
        num_groups=4,
        topk_groups=2,
        group_score=GroupScore.MAX,
        group_mask=GroupMask.ZERO,
    ),
    "sums of softmax": GatingSpec(num_experts=12, top_k=3, num_groups=4, topk_groups=2),
    "sigmoid": GatingSpec(num_experts=12, top_k=3, score=Score.SIGMOID),
    "sigmoid in groups": GatingSpec(
        num_experts=12, top_k=3, score=Score.SIGMOID, selection_bias=True, num_groups=4, topk_groups=2
    ),
    "losers at zero": GatingSpec(
        num_experts=12,
        top_k=3,
        score=Score.SIGMOID,
        selection_bias=True,
        num_groups=4,
        topk_groups=2,
        group_mask=GroupMask.ZERO,
    ),
    "sqrt softplus": GatingSpec(num_experts=12, top_k=3, score=Score.SQRT_SOFTPLUS, selection_bias=True),
    "logits": GatingSpec(num_experts=12, top_k=3, score=Score.NONE, normalise=Normalise.NONE),
    "all": GatingSpec(num_experts=4, top_k=4),
}


# Margins and bounds.


def plain_margins(gating: GatingSpec, keys: list[float]) -> tuple[float, float]:
    """Return one token's distances to other experts and other groups, step by step."""
    size = gating.group_size
    groups = [keys[start : start + size] for start in range(0, len(keys), size)]
    between_groups = np.inf
    if gating.grouped:
        counted = 2 if gating.group_score is GroupScore.TOP2_SUM else 1
        ranks = [sum(sorted(group)[-counted:]) for group in groups]
        order = sorted(range(len(groups)), key=lambda group: -ranks[group])
        last, first_out = order[gating.topk_groups - 1], order[gating.topk_groups]
        between_groups = ranks[last] - ranks[first_out]
        at_zero = gating.group_mask is GroupMask.ZERO and not (
            gating.score is Score.SOFTMAX and GatePlan(gating).ranked_by_logit
        )
        for group in order[gating.topk_groups :]:
            groups[group] = [0.0 if at_zero else -np.inf] * size
    ranked = sorted((key for group in groups for key in group), reverse=True)
    k = gating.top_k
    return (ranked[k - 1] - ranked[k] if k < len(ranked) else np.inf), between_groups


@pytest.mark.parametrize("name", GATINGS)
def test_margins_are_those_of_a_plain_loop(name):
    gating = GATINGS[name]
    keys = np.random.default_rng(0).standard_normal((50, gating.num_experts))
    experts, groups = choice_margins(gating, keys)
    for token in range(len(keys)):
        want = plain_margins(gating, keys[token].tolist())
        assert (experts[token], groups[token]) == pytest.approx(want)


@pytest.mark.parametrize("name", [name for name in GATINGS if name != "all"])
def test_logits_that_differ_change_only_near_ties(name):
    """Any logits within the error of the float ones; and the bound is no wider than it need be."""
    gating = GATINGS[name]
    rng = np.random.default_rng(1)
    error = 0.05  # beside which what the tables do is nothing
    logits = rng.standard_normal((4000, gating.num_experts))
    bias = 0.1 * rng.standard_normal(gating.num_experts) if gating.selection_bias else None
    off = logits + error * rng.choice([-1.0, 1.0], logits.shape)
    chosen = [np.sort(select(gating, score(gating.score, z), bias), axis=1) for z in (logits, off)]
    other = (chosen[0] != chosen[1]).any(axis=1)
    margins = choice_margins(gating, selection_keys(gating, logits[other], bias))
    bounds = choice_bound(gating, logits[other], np.full(int(other.sum()), error))
    over = np.minimum(margins[0] / bounds[0], margins[1] / bounds[1])
    assert other.sum() > 100
    assert over.max() <= 1
    assert over.max() > (
        0.5 if gating.score is not Score.SOFTMAX or GatePlan(gating).ranked_by_logit else 0.1
    )


@pytest.mark.parametrize("d_model", [5, 64])
@pytest.mark.parametrize("cols", [1, 16])
@pytest.mark.parametrize("name", ["softmax", "softmax of biased logits"])
def test_logits_keep_their_bound(name, cols, d_model):
    gating = dataclasses.replace(GATINGS[name], num_experts=40)
    rng = np.random.default_rng(d_model)
    router, tokens = (bf16_encode(rng.standard_normal((count, d_model))) for count in (40, 500))
    bias = 10 * rng.standard_normal(40).astype(np.float32) if gating.logit_bias else None
    ours = route_bf16(gating, router, tokens, cols, bias)
    real = route(gating, bf16_decode(router), bf16_decode(tokens), bias)
    bound = logit_bound(bf16_decode(router), bf16_decode(tokens), cols, bias)
    over = np.abs(ours.logits / 2.0**20 - real.logits).max(axis=1) / bound
    assert 1e-3 < over.max() <= 1


def test_a_score_without_a_stated_error_is_excused_none(monkeypatch):
    assert set(SCORE_ERRORS) == set(Score)
    gating = GatingSpec(num_experts=4, top_k=2, score=Score.SQRT_SOFTPLUS)
    logits = np.zeros((1, 4))
    assert choice_bound(gating, logits, np.ones(1))[0][0] > 0.6
    monkeypatch.delitem(SCORE_ERRORS, Score.SQRT_SOFTPLUS)
    assert choice_bound(gating, logits, np.ones(1))[0][0] < 1e-6


def test_weights_are_compared_by_expert():
    """The order of two choices does not count, nor the weights of tokens with other experts."""
    ours = RoutingBf16(
        ids=np.array([[3, 1], [0, 2]]),
        weights=bf16_encode(np.array([[0.5, 0.25], [1.0, 1.0]])),
        logits=np.zeros((2, 4), np.int64),
    )
    real = Routing(
        logits=np.zeros((2, 4)),
        ids=np.array([[1, 3], [0, 1]]),
        scores=np.zeros((2, 2)),
        weights=np.array([[0.25, 0.4], [7.0, 7.0]]),
    )
    same, error = compare(ours, real)
    assert same.tolist() == [True, False]
    assert error == pytest.approx(np.array([[0.0, 0.25]]))
    with_shared = dataclasses.replace(ours, shared=bf16_encode(np.array([0.5, 1.0])))
    error = compare(with_shared, real, np.array([1.0, 5.0]))[1]
    assert error == pytest.approx(np.array([[0.0, 0.25, 0.5]]))


# The families' gates.


def test_every_family_has_a_gate_or_a_reason():
    families = family_gates(VECTORS, DESIGN)
    # M6-T has no row, and prototypes, which no row has.
    assert [one.family for one in families] == [*family_names(), "m6-t-100b"]
    for one in families:
        assert one.gate is not None or any(term.startswith("gating.") for term in one.lacking), one.family
    gates = {one.family: one.gate for one in families if one.gate is not None}
    assert gates["deepseek_v3"].source == "deepseek-v3"  # the one with groups
    assert gates["afmoe"].source == "afmoe_s0"  # no preset
    assert gates["aria"].geometry == gates["jetmoe"].geometry
    assert gates["skywork"].model.gating.logit_deviation > 0
    assert gates["m6-t-100b"].model.gating.num_prototypes == 2
    # Whatever else the layer has: the gate is the model's own.
    model = load_model("deepseek-v3")
    assert gates["deepseek_v3"].model.gating == model.gating
    assert (gates["deepseek_v3"].model.d_model, gates["mixtral"].model.d_model) == (32, 64)


def test_a_term_that_the_hardware_gets_is_measured_by_itself(monkeypatch):
    """All follows from spec/hardware.py: a term that is lacking no more leaves no family out."""
    monkeypatch.setattr(sim.claims.agreement, "lacking_terms", lambda _model: [])
    found = family_gates(VECTORS, DESIGN)
    assert [one.family for one in found if one.gate is None] == []
    monkeypatch.setattr(sim.claims.agreement, "lacking_terms", lambda _model: ["gating.score"])
    none = family_gates(VECTORS, DESIGN)
    assert all(one.gate is None and one.lacking == ("gating.score",) for one in none)


@pytest.fixture(scope="module")
def bench() -> GateBench:
    return GateBench.of(Gate.of("deepseek_v3_s0", load_model("moonlight-16b-a3b"), DESIGN))


def test_agreement_of_a_gate(bench: GateBench):
    found = bench.agreement(4 * CHUNK)
    assert found.tokens == 4 * CHUNK
    assert found.tokens - 4 <= found.same <= found.tokens
    assert found.margin_over_bound <= 1
    assert 2.0**-9 < found.weight_error < 0.0041
    assert 0.001 < found.mean_weight_error < 0.002
    assert 0.5 < found.weight_over_bound <= 1
    # Each chunk is drawn on its own: more tokens are other tokens.
    assert not np.array_equal(bench.tokens(0), bench.tokens(1))
    assert np.array_equal(bench.tokens(1), bench.tokens(1))


def test_the_gate_of_a_shared_expert_is_compared(monkeypatch: pytest.MonkeyPatch):
    gate = GateBench.of(Gate.of("qwen2_moe", load_model("qwen1.5-moe-a2.7b"), DESIGN))
    assert gate.gate.geometry.shared_gate
    assert gate.hardware(gate.tokens(0)).shared is not None
    assert gate.agreement(CHUNK).weight_over_bound <= 1
    right = golden.gating_bf16.shared_weight
    monkeypatch.setattr(golden.gating_bf16, "shared_weight", lambda logits: right(logits + (1 << 15)))
    assert gate.agreement(CHUNK).weight_over_bound > 2


def run_of(**changes) -> GateRun:
    return dataclasses.replace(GateRun(2048, 9000, 1000, 0, None), **changes)


def failing(bench: GateBench, agreement, run: GateRun) -> list[tuple[str, str]]:
    users = [FamilyGate("deepseek_v3", bench.gate, ())]
    families = [*users, FamilyGate("phimoe", None, ("gating.selection",))]
    link = link_of(families, [(users, bench.gate, agreement, run)])
    return [(claim.text.partition(":")[0], claim.measured) for claim in link.claims if not claim.ok]


def test_what_agrees_holds_and_what_is_missing_is_named(bench: GateBench):
    agreement = bench.agreement(CHUNK)
    assert failing(bench, agreement, run_of()) == []
    users = [FamilyGate("deepseek_v3", bench.gate, ()), FamilyGate("glm4_moe", bench.gate, ("d_latent",))]
    families = [*users, FamilyGate("phimoe", None, ("gating.selection",))]
    link = link_of(families, [(users, bench.gate, agreement, run_of())])
    assert link.claims[0].text.startswith("gates of 2 of 3 families (1 different ones), 1,024 tokens each")
    (shared, refused), (verilog,) = (table.rows for table in link.tables)
    assert shared[:4] == ("deepseek_v3, glm4_moe", "deepseek_v3_s0", "64, 6", "64")
    assert shared[-1] == "glm4_moe: `d_latent`"
    assert (refused[0], refused[1], refused[-1]) == ("phimoe", "not in hardware", "`gating.selection`")
    assert len(refused) == len(shared) == len(link.tables[0].columns)
    assert verilog == ("deepseek_v3, glm4_moe", "deepseek_v3_s0", "2,048", "9,000", "1,000", "0", "yes")


WRONG = {
    "least share": ("gates of 1 of 2 families (1 different ones), 1,024 tokens each", "90.0391%"),
    "margin": ("the others are near ties", "1.500"),
    "weight": ("largest relative error of a weight, over its derived bound", "0.00390, 1.100"),
}


@pytest.mark.parametrize("what", WRONG)
def test_numbers_that_are_too_far_off_fail(bench: GateBench, what: str):
    changes = {
        "least share": {"same": 922},
        "margin": {"same": 1023, "margin": 1e-3, "margin_over_bound": 1.5},
        "weight": {"weight_error": 0.0039, "weight_over_bound": 1.1},
    }[what]
    agreement = dataclasses.replace(bench.agreement(CHUNK), **changes)
    assert failing(bench, agreement, run_of()) == [WRONG[what]]


def test_verilog_that_differs_fails(bench: GateBench):
    agreement = bench.agreement(CHUNK)
    text = "their Verilog, 2,048 tokens each"
    assert failing(bench, agreement, run_of(differing=3)) == [(text, "3 of 1,000")]
    cycles = "gates with a handshake in another cycle than the model says"
    assert failing(bench, agreement, run_of(divergence="gating.o: late")) == [(cycles, "1 of 1")]


def test_a_wrong_choice_is_no_near_tie(bench: GateBench, monkeypatch: pytest.MonkeyPatch):
    """Golden that is wrong in hardware's numbers, here in its biases, is far from any tie."""
    right = golden.gating_bf16.selection_bias_fixed
    monkeypatch.setattr(golden.gating_bf16, "selection_bias_fixed", lambda *given: -right(*given))
    found = bench.agreement(CHUNK)
    assert found.same < CHUNK
    assert found.margin_over_bound > 100


def test_wrong_weights_are_beyond_their_bound(bench: GateBench, monkeypatch: pytest.MonkeyPatch):
    right = golden.gating_bf16.scale_fixed
    monkeypatch.setattr(golden.gating_bf16, "scale_fixed", lambda scale: right(1.01 * scale))
    found = bench.agreement(CHUNK)
    assert found.weight_error > 0.009
    assert found.weight_over_bound > 2


def test_the_link_is_on_the_page():
    assert [one.needs_verilog for one in LINKS if one.name == "families"] == [True]


# The gate alone in Verilog, with the builds of tests/bench/test_gating_bench.py.


def operands_of(geometry: GateGeometry, num_tokens: int) -> GateOperands:
    rng = np.random.default_rng(4)
    gating = geometry.gating
    router, tokens = (
        bf16_encode(rng.standard_normal((count, geometry.d_model)))
        for count in (gating.num_experts, num_tokens)
    )
    bias = rng.standard_normal(gating.num_experts).astype(np.float32)
    biases = (bias if gating.logit_bias else None, bias if gating.selection_bias else None)
    routing = route_bf16(gating, router, tokens, geometry.cols, *biases)
    return GateOperands(geometry, router, *biases, None, tokens, routing)


def built(name: str):
    from rtl.gating import Gate as Hardware

    geometry = GEOMETRIES[name]
    return build(f"gating_{name}", lambda: Hardware(geometry), config=geometry)


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gate_alone_is_bit_and_cycle_equal(name, tmp_path):
    geometry = GEOMETRIES[name]
    run = run_gate(built(name), operands_of(geometry, 60), seed=3, waves=tmp_path)
    index_bits = max(1, (geometry.gating.num_experts - 1).bit_length())
    bits = 60 * geometry.gating.top_k * (index_bits + 18)
    assert run == GateRun(60, run.cycles, bits, 0, None)
    assert run.cycles > 60 * geometry.interval


@pytest.mark.slow
def test_a_wrong_bit_and_a_wrong_cycle_of_the_gate_are_named(tmp_path, monkeypatch):
    rtl = built("sigmoid")
    monkeypatch.setattr(sim.gate_alone, "with_waveform", lambda found, *_, **__: found.message)
    operands = operands_of(GEOMETRIES["sigmoid"], 40)
    operands.routing.weights[25, 1] ^= 1
    run = run_gate(rtl, operands, seed=3, waves=tmp_path)
    assert run.differing == 1
    assert run.divergence is not None
    assert run.divergence.startswith("gating.o: transfer 21: ")
    operands.routing.weights[25, 1] ^= 1
    right = sim.gate_alone.gate_cycles

    def late(*arguments):
        times = right(*arguments)
        times.o[8:] += 1
        return times

    monkeypatch.setattr(sim.gate_alone, "gate_cycles", late)
    run = run_gate(rtl, operands, seed=3, waves=tmp_path)
    assert run.differing == 0
    assert run.divergence is not None
    assert run.divergence.startswith("gating.o: transfer 8: ")


@pytest.mark.slow
def test_a_run_with_gaps_waits_for_tokens_and_for_the_output():
    """Both happen, or the second half of a run would show no more than the first."""
    geometry, rtl = GEOMETRIES["sigmoid"], built("sigmoid")
    operands = operands_of(geometry, 200)
    plain = gate_job(rtl, operands)
    gaps = gate_job(rtl, operands, np.random.default_rng(3))
    assert (np.diff(plain.model.launch)[20:] == geometry.interval).all()
    between = np.diff(gaps.model.launch)
    assert (between == geometry.interval).any()
    assert (between > 2 * geometry.interval).any()
    pattern = np.asarray(gaps.spec.sinks["o"].ready)
    assert pattern[gaps.model.o].all()
    assert 0.2 < pattern[: gaps.model.o[-1]].mean() < 0.8
    assert len(pattern) > gaps.model.o[-1]
    slots = np.diff(gaps.model.o.reshape(200, -1), axis=1)
    assert (slots > 1).any()


# Weights of hostile logits.

WEIGHTS = {
    "softmax": GatingSpec(num_experts=16, top_k=4, normalise=Normalise.SUM),
    "softmax of all": GatingSpec(num_experts=16, top_k=4, normalise=Normalise.NONE),
    "biased shares": GatingSpec(num_experts=16, top_k=4, selection_bias=True, normalise=Normalise.SUM),
    "biased shares, not normalised": GatingSpec(
        num_experts=16, top_k=4, selection_bias=True, normalise=Normalise.NONE, scale=16.0
    ),
    "epsilon": GatingSpec(num_experts=16, top_k=4, normalise=Normalise.SUM, epsilon=1e-3),
    "sigmoid": GatingSpec(num_experts=16, top_k=4, score=Score.SIGMOID, normalise=Normalise.SUM, scale=0.3),
    "sigmoid, biased": GatingSpec(
        num_experts=16, top_k=4, score=Score.SIGMOID, selection_bias=True, normalise=Normalise.SUM
    ),
    "sigmoid, not normalised": GatingSpec(
        num_experts=16, top_k=4, score=Score.SIGMOID, normalise=Normalise.NONE
    ),
    "sqrt softplus": GatingSpec(
        num_experts=16, top_k=4, score=Score.SQRT_SOFTPLUS, selection_bias=True, normalise=Normalise.SUM
    ),
    "softmax of the chosen": GatingSpec(
        num_experts=16, top_k=4, score=Score.NONE, weight_score=Score.SOFTMAX, normalise=Normalise.SUM
    ),
    "logits": GatingSpec(num_experts=16, top_k=4, score=Score.NONE, normalise=Normalise.NONE),
    "logits over their sum": GatingSpec(num_experts=16, top_k=4, score=Score.NONE, normalise=Normalise.SUM),
    "norm": GatingSpec(
        num_experts=16, top_k=4, score=Score.SIGMOID, normalise=Normalise.P_NORM, norm_order=2.0
    ),
}  # fmt: skip


def hostile_logits(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Return (tokens, 16) logits with 20 fraction bits."""
    plain = rng.standard_normal((2000, 16))
    logits = {
        "normal": plain,
        "wide": 12 * plain,
        "very wide": 900 * plain,
        "ties": np.rint(2 * plain),
        "equal": np.repeat(3 * plain[:, :1], 16, axis=1),
        "far below": plain - 18,
        "two levels": np.where(plain > 0.5, 10.0, -10.0) + plain / 1000,
    }[kind]
    return np.rint(logits * 2.0**20) / 2.0**20


@pytest.mark.parametrize("kind", ["normal", "wide", "very wide", "ties", "equal", "far below", "two levels"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_bound_holds_for_hostile_logits(name, kind):
    """The hardware's logits are off by up to an error; scores next to nothing, sums of logits next to 0."""
    gating, rng = WEIGHTS[name], np.random.default_rng(11)
    logits, error = hostile_logits(rng, kind), 2.0**-12
    moved = logits + error * rng.choice([-1.0, 0.0, 1.0], logits.shape)
    bias = None
    if gating.selection_bias:
        # Chooses experts whose scores are small.
        bias = np.linspace(0, 4, 16)
    fixed = None if bias is None else selection_bias_fixed(gating, bias)
    integers = np.clip(np.rint(moved * 2.0**20), -FIXED_MAX, FIXED_MAX).astype(np.int64)
    ours = select_bf16(gating, integers, fixed)
    scores = score(gating.score, logits)
    weight_scores = score(gating.weight_score, logits) if gating.weight_score else scores
    wanted = normalise(gating, np.take_along_axis(weight_scores, ours.ids, axis=1))
    bound = weight_bound(gating, logits, ours.ids, wanted, np.full(len(logits), error))
    off = np.abs(bf16_decode(ours.weights).astype(np.float64) - wanted)
    assert (off <= bound * np.maximum(np.abs(wanted), np.finfo(np.float64).tiny)).all()
    if kind == "normal" and "logits" not in name:
        # As close as it was where scores are not small.
        assert np.median(bound) <= 1.05 * (np.expm1(2 * error) + 2.0**-8 + 1e-4)


def test_weight_bound_covers_the_rounding():
    gating = WEIGHTS["softmax"]
    logits = np.random.default_rng(12).standard_normal((50, 16))
    ids = select(gating, logits, None)
    weights = normalise(gating, np.take_along_axis(score(Score.SOFTMAX, logits), ids, axis=1))
    assert weight_bound(gating, logits, ids, weights, np.zeros(50)) == pytest.approx(2.0**-8, rel=0.02)
