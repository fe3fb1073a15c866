"""What only mutants need of a gate with a softmax over the chosen experts (:mod:`.gate_scenarios` of others).

Keys are logits. Of the scores one is always 1, that of the largest logit, and no bias comes between keys
and scores: loads state the chosen logits, of which the largest is 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from golden.formats import BF16_ONE, bf16_encode, dot
from golden.functions import FRACTION_BITS, ONE, SCORE_BITS
from golden.gating_bf16 import scale_fixed
from spec.geometry import GateGeometry
from tests.bench.scenarios import Scenario
from tests.bench.test_gating_bench import Load
from tests.mutation import gate_scenarios
from tests.mutation.gate_scenarios import (
    ANY_SCORE,
    NO_SCORE,
    PIECES,
    Maker,
    at_a_carry,
    beside_a_tie,
    exact,
    far_apart,
    logits_of,
    of_one_bit,
    scenarios_of,
    scores_of,
    split,
)

FIRST = 1 << SCORE_BITS
"""The largest logit's score."""


def of_chosen(geometry: GateGeometry, rng: np.random.Generator, chosen: list[np.ndarray]) -> Load:
    """Return a load whose tokens choose so many logits of these beside one of 0; others' scores are 0."""
    num_experts = geometry.gating.num_experts
    logits = np.full((len(chosen), num_experts), NO_SCORE)
    for token, row in zip(logits, chosen, strict=True):
        token[rng.permutation(num_experts)[: len(row) + 1]] = np.append(row, 0)
    router, tokens = exact(geometry, rng, logits)
    return Load(router, np.zeros(num_experts, dtype=np.float32), tokens)


def _each_token(geometry: GateGeometry) -> range:
    return range(geometry.d_model // PIECES)


def _with_equal_logits(geometry: GateGeometry, rng: np.random.Generator, of_selection_bias: Maker) -> Load:
    """Return a load whose logits are equal but for a last place, as its keys are with a selection bias.

    The last burst makes them so, without a rounding of its own.
    """
    before = geometry.d_model - geometry.cols
    load = of_selection_bias(replace(geometry, d_model=before), rng)
    logits = dot(load.tokens, load.router, geometry.cols)[0].astype(np.float64)
    # Where a logit is at home, most often.
    wanted = np.median(logits).clip(-7, 7) + rng.integers(-1, 2, len(logits)) / ONE
    pieces = np.zeros((len(logits), geometry.cols), dtype=np.uint16)
    left = np.where(np.isfinite(logits), wanted - logits, 0)
    for place in range(PIECES):
        top = np.exp2(np.floor(np.log2(np.maximum(np.abs(left), 2.0**-60))) - 7)
        piece = np.trunc(left / top) * top
        pieces[:, place] = bf16_encode(piece.astype(np.float32))
        left = left - piece
    ones = np.full((len(load.tokens), geometry.cols), BF16_ONE, dtype=np.uint16)
    return Load(
        np.concatenate([load.router, pieces], axis=1),
        np.zeros(len(logits), dtype=np.float32),
        np.concatenate([load.tokens, ones], axis=1),
    )


def nearly_equal_keys(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """As of a selection bias."""
    return _with_equal_logits(geometry, rng, gate_scenarios.nearly_equal_keys)


def keys_at_ties(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """As of a selection bias."""
    return _with_equal_logits(geometry, rng, gate_scenarios.keys_at_ties)


def broken_ties(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """As of a selection bias."""
    return _with_equal_logits(geometry, rng, gate_scenarios.broken_ties)


def sums_of_two_bits(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Sums of the largest score and one place, or three last places more at most."""
    gating = geometry.gating
    rests = (1 << rng.permutation(SCORE_BITS + 1)) + rng.integers(0, 4, SCORE_BITS + 1)
    rests = rests[: len(_each_token(geometry))].tolist()
    return of_chosen(geometry, rng, [split(gating, rng, rest, gating.top_k - 1)[0] for rest in rests])


def scores_of_one_bit(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Logits whose exponentials are powers of two, or next to one."""
    d = of_one_bit()
    count = geometry.gating.top_k - 1
    small = int(rng.integers(0, len(d)))
    return of_chosen(
        geometry,
        rng,
        [
            np.minimum(rng.choice([-1, 0, 0, 0, 1], count) - rng.choice(d[small:], count), 0)
            for _ in _each_token(geometry)
        ],
    )


def exponents_at_a_carry(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Logits whose product with log2(e) is next to a carry out of what is cut off."""
    count = geometry.gating.top_k - 1
    return of_chosen(geometry, rng, [-at_a_carry(rng, count) for _ in _each_token(geometry)])


def one_place_beside_a_tie(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Weights that are rounded up by one place alone, anywhere below a tie; and ties."""
    gating = geometry.gating
    scale = scale_fixed(gating.scale)[0]
    others = gating.top_k - 2
    tokens: list[np.ndarray] = []
    while len(tokens) < len(_each_token(geometry)):
        half = int(rng.integers(24, 44))
        mantissas, scores = beside_a_tie(scale, half, None if rng.random() < 0.1 else int(rng.integers(half)))
        logits = logits_of(gating, scores)
        # The sum's places below its mantissa are free.
        place = SCORE_BITS - FRACTION_BITS + int(rng.integers(0, 2))
        rests = (mantissas << place) - FIRST - scores
        usable = (scores_of(gating, logits) == scores) & (rests >= 0) & (rests <= others * FIRST)
        for n in np.flatnonzero(usable)[:4].tolist():
            rest = int(rests[n])
            found, total = split(gating, rng, rest, others)
            if 0 <= total - rest < 1 << place:
                tokens.append(np.append(logits[n], found))
                break
    return of_chosen(geometry, rng, tokens)


def faint(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Logits of a few last places: experts tie, or nearly do."""
    tokens, most = len(_each_token(geometry)), 1 << int(rng.integers(1, 6))
    router, inputs = exact(geometry, rng, rng.integers(-most, most, (tokens, geometry.gating.num_experts)))
    return Load(router, np.zeros(len(router), dtype=np.float32), inputs)


LOADS: dict[Maker, int] = {
    **ANY_SCORE,
    nearly_equal_keys: 120,
    keys_at_ties: 64,
    sums_of_two_bits: 32,
    scores_of_one_bit: 24,
    one_place_beside_a_tie: 60,
    exponents_at_a_carry: 60,
    faint: 24,
    broken_ties: 60,
    far_apart: 8,
}
"""How many of each kind."""


def scenarios(geometry: GateGeometry, seed: int) -> list[Scenario]:
    """Return loads whose last places show, routers begun anew, resets at any time, a sink at its edges."""
    return scenarios_of(geometry, seed, LOADS)
