"""Inputs that only mutants need of the gate: what is said of them, held against golden."""

from __future__ import annotations

import numpy as np

from golden.formats import dot
from golden.functions import (
    FRACTION_BITS,
    LOG2E,
    ONE,
    SCORE_BITS,
    exp_negative,
    fixed_from_f32,
    floor_log2,
)
from golden.gating_bf16 import (
    inverse_of,
    scale_fixed,
    scores_fixed,
    select_bits,
)
from spec.model import GatingSpec
from tests.bench.test_gating_bench import GEOMETRIES, Load
from tests.mutation import gate_scenarios, softmax_scenarios
from tests.mutation.gate_scenarios import chosen_scores, scores_of
from tests.mutation.run import SOFTMAX_GATE

GEOMETRY = GEOMETRIES["sigmoid"]
GATING = GEOMETRY.gating


def logits_of(load: Load) -> np.ndarray:
    """Return the fixed-point logits of a load."""
    return fixed_from_f32(dot(load.tokens, load.router, GEOMETRY.cols))


def test_logits_are_what_is_asked_for():
    rng = np.random.default_rng(1)
    wanted = rng.integers(-(1 << 24) + 1, 1 << 24, (4, GATING.num_experts)) >> rng.integers(0, 24, (4, 1))
    router, tokens = gate_scenarios.exact(GEOMETRY, rng, wanted)
    found = logits_of(Load(router, np.zeros(GATING.num_experts, dtype=np.float32), tokens))
    assert found.tolist() == wanted.tolist()


def test_sums_of_one_bit_have_each_leading_place_and_nothing_behind_it():
    rng = np.random.default_rng(1)
    sums = np.concatenate(
        [
            chosen_scores(GEOMETRY, gate_scenarios.sums_of_one_bit(GEOMETRY, rng)).sum(axis=1)
            for _ in range(64)
        ]
    )
    places = floor_log2(sums)
    alone = sums - (1 << places) <= 3
    assert set(places[alone].tolist()) >= set(range(SCORE_BITS - 1))


def test_scores_of_one_bit_have_exponentials_that_are_powers_of_two_where_selection_sees_them():
    rng = np.random.default_rng(1)
    shifts = set()
    for _ in range(24):
        logits = logits_of(gate_scenarios.scores_of_one_bit(GEOMETRY, rng))[0]
        mantissas, found = exp_negative(np.abs(logits))
        shifts |= set(found[(mantissas == ONE) & (logits < 0)].tolist())
    # From 21 on one plus the exponential is 1; at 24 the logit has a place too many.
    assert shifts >= {20, 21, 23}


def test_exponents_at_a_carry_are_next_to_one_on_either_side():
    rng = np.random.default_rng(1)
    low = np.concatenate(
        [
            np.abs(logits_of(gate_scenarios.exponents_at_a_carry(GEOMETRY, rng))[0]) * LOG2E % ONE
            for _ in range(60)
        ]
    )
    near = np.minimum(low, ONE - low)
    assert near.max() < 1 << 17
    assert set(floor_log2(near[near > 0]).tolist()) >= set(range(8, 17))
    assert 0.3 < np.mean(low == near) < 0.7


def test_faint_scores_are_a_few_last_places_of_a_key():
    rng = np.random.default_rng(1)
    unit = 1 << (SCORE_BITS - select_bits(GATING))
    keys = np.stack(
        [
            scores_fixed(GATING.score, logits_of(gate_scenarios.faint(GEOMETRY, rng))) // unit
            for _ in range(24)
        ]
    )
    assert keys.max() < 33
    assert set(keys.reshape(-1).tolist()) >= set(range(16))


def rounded_by(scores: np.ndarray, gating: GatingSpec) -> set[int]:
    """Return the one place beside a tie that each token has in a weight; -1: it is a tie."""
    inverse, _ = inverse_of(scores.sum(axis=1), scale_fixed(gating.scale)[0])
    products = scores * inverse[:, None]
    half = floor_log2(products) - 8
    even_and_half = products >> half & 0b11 == 0b01
    rest = products & ((1 << half) - 1)
    one = even_and_half & (rest & (rest - 1) == 0)
    assert one.any(axis=1).all()
    return {bits.bit_length() - 1 for bits in rest[one].tolist()}


def test_weights_are_rounded_by_one_place_alone():
    rng = np.random.default_rng(1)
    places: set[int] = set()
    for _ in range(60):
        places |= rounded_by(
            chosen_scores(GEOMETRY, gate_scenarios.one_place_beside_a_tie(GEOMETRY, rng)), GATING
        )
    assert places >= {-1, *range(FRACTION_BITS)}


# A gate with a softmax over the chosen experts


def test_of_a_softmax_the_largest_score_is_one_and_the_chosen_are_those_that_are_asked_for():
    rng = np.random.default_rng(1)
    chosen = [-rng.integers(0, 1 << 24, SOFTMAX_GATE.gating.top_k - 1) for _ in range(4)]
    scores = chosen_scores(SOFTMAX_GATE, softmax_scenarios.of_chosen(SOFTMAX_GATE, rng, chosen))
    assert (scores[:, 0] == 1 << SCORE_BITS).all()
    wanted = [sorted(scores_of(SOFTMAX_GATE.gating, row).tolist(), reverse=True) for row in chosen]
    assert scores[:, 1:].tolist() == wanted


def test_sums_of_a_softmax_have_each_place_alone_behind_the_first():
    rng = np.random.default_rng(1)
    rests = np.concatenate(
        [
            chosen_scores(SOFTMAX_GATE, softmax_scenarios.sums_of_two_bits(SOFTMAX_GATE, rng)).sum(axis=1)
            for _ in range(64)
        ]
    ) - (1 << SCORE_BITS)
    places = floor_log2(rests)
    alone = rests - (1 << places) <= 3
    assert set(places[alone].tolist()) >= set(range(SCORE_BITS - 1))


def test_weights_of_a_softmax_are_rounded_by_one_place_alone():
    rng = np.random.default_rng(1)
    places: set[int] = set()
    for _ in range(60):
        places |= rounded_by(
            chosen_scores(SOFTMAX_GATE, softmax_scenarios.one_place_beside_a_tie(SOFTMAX_GATE, rng)),
            SOFTMAX_GATE.gating,
        )
    assert places >= {-1, *range(FRACTION_BITS)}
