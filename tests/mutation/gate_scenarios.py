"""What only mutants need of the gate: keys that nearly tie, weights next to a tie, routers begun anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from golden.formats import BF16_BIAS, BF16_ONE, bf16_encode, dot
from golden.functions import (
    FRACTION_BITS,
    LOG2E,
    MAX_SHIFT,
    ONE,
    SCALE_BITS,
    SCORE_BITS,
    exp_negative,
    fixed_from_f32,
    floor_log2,
    reciprocal,
    score_from,
)
from golden.gating_bf16 import (
    inverse_of,
    scale_fixed,
    scores_fixed,
    select,
    select_bits,
    selection_bias_fixed,
)
from spec.geometry import GateGeometry
from spec.model import GatingSpec, Score
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_gating_bench import Load, image_beats, random_load, routing_of, scenario
from tests.mutation import operands
from tests.mutation.traffic import edges, under_traffic

TOKENS = 8
CANDIDATES = 4096
"""Tokens of which the nearest to a tie are taken."""


def with_bias(geometry: GateGeometry, rng: np.random.Generator, router, tokens) -> Load:
    """Return a load with a random bias."""
    return Load(router, rng.standard_normal(geometry.gating.num_experts).astype(np.float32), tokens)


def cancelling(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Products that take each other back: the logit is what is left of the low places."""
    x = operands.near_one(rng, geometry.d_model)
    top = operands.tops(rng)
    router = operands.cancelling(rng, x, geometry.gating.num_experts, top=top, below=26)
    return with_bias(geometry, rng, router, operands.companions(rng, x, TOKENS))


def of_any_size(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """One product for each logit, of any exponents: below, in and beyond the range of both formats."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    tokens = operands.any_size(rng, TOKENS, d_model)
    router = operands.one_of(rng, num_experts, d_model, operands.any_size(rng, num_experts))
    return with_bias(geometry, rng, router, tokens)


def given_logits(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Each input is a logit, of any size that the functions tell apart."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    tokens = operands.patterns(rng, rng.integers(BF16_BIAS - 21, BF16_BIAS + 7, (TOKENS, d_model)))
    return with_bias(geometry, rng, operands.ones(num_experts, d_model), tokens)


def one_extreme(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """One special value or limit among the tokens, or in the router, or in both."""
    load = random_load(geometry, rng)
    where = int(rng.integers(3))
    router = operands.with_extreme(rng, load.router) if where != 1 else load.router
    tokens = operands.with_extreme(rng, load.tokens) if where != 0 else load.tokens
    return replace(load, router=router, tokens=tokens)


def two_infinities(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Two infinite products in every sum, of one sign or of both."""
    load = random_load(geometry, rng)
    if rng.random() < 0.5:
        return replace(load, router=operands.with_two_infinities(rng, load.router))
    x, router = operands.infinity_and_its_number(rng, geometry.d_model, len(load.router))
    return replace(load, router=router, tokens=x[None])


def nearly_equal_rows(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """All experts are the first one but for a small weight: their order hangs on the last places."""
    x = operands.near_one(rng, geometry.d_model)
    row = operands.cancelling(rng, x, 1, top=int(rng.integers(-2, 4)), below=20)
    router = np.repeat(row, geometry.gating.num_experts, axis=0)
    place = int(rng.integers(geometry.d_model))
    exponent = np.full(len(router), BF16_BIAS - int(rng.integers(8, 22)))
    router[:, place] = operands.patterns(rng, exponent)
    return Load(router, np.zeros(len(router), dtype=np.float32), operands.companions(rng, x, TOKENS, most=3))


def nearly_equal_keys(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """The bias makes a token's keys equal but for a last place or two, alone or in pairs of a group."""
    gating = geometry.gating
    load = given_logits(geometry, rng)
    kind, top = rng.random(), int(rng.integers(-6, 16))
    if kind < 0.5:
        x = operands.near_one(rng, geometry.d_model)
        below = int(rng.integers(8, 40))
        router = operands.cancelling(rng, x, gating.num_experts, top=top, below=below)
        load = replace(load, router=router, tokens=x[None])
    elif kind < 0.65:
        x = operands.near_one(rng, geometry.d_model)
        places = rng.permutation(34)[: gating.num_experts]
        router, _ = operands.left_over(rng, x, geometry.cols, places, top)
        load = replace(load, router=router, tokens=x[None])
    elif kind < 0.85:
        x = operands.tied_inputs(rng, geometry.d_model, geometry.cols)
        router = operands.tied(rng, x, gating.num_experts, geometry.cols, top)
        load = replace(load, router=router, tokens=x[None])
    return with_equal_keys(geometry, rng, load.router, load.tokens[:1])


def with_equal_keys(geometry: GateGeometry, rng: np.random.Generator, router, token) -> Load:
    """Return a load of one token, twice, with the bias that makes its keys equal but for a last place."""
    gating = geometry.gating
    logits = fixed_from_f32(dot(token, router, geometry.cols))
    places = select_bits(gating)
    keys = scores_fixed(gating.score, logits)[0] >> (SCORE_BITS - places)
    wanted = int(rng.integers(-(1 << 24), 1 << 24)) + rng.integers(-1, 2, gating.num_experts)
    # Of a group the first are as much above as the second are below: the sum of two is what it was.
    apart = int(rng.choice([0, 1, 1 << int(rng.integers(1, 20))]))
    wanted += apart * np.tile([1, -1, -3], gating.num_experts)[: gating.num_experts]
    bias = (wanted - keys) / (1 << places)
    return Load(router, bias.astype(np.float32), np.repeat(token, 2, axis=0))


def keys_at_ties(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Keys that hang on one rounding at, or next to, a tie: of the first burst, or by the second."""
    num_experts, d_model, cols = geometry.gating.num_experts, geometry.d_model, geometry.cols
    # From 4 on a last place of the sum is one of the logit.
    top = int(rng.integers(4, 12))
    if rng.random() < 0.5:
        x = operands.tied_by_burst_inputs(rng, d_model, cols)
        router = operands.tied_by_burst(rng, x, num_experts, cols, top)
    else:
        x = operands.tied_at_once_inputs(rng, d_model, cols)
        router = operands.tied_at_once(rng, x, num_experts, cols, top)
    return with_equal_keys(geometry, rng, router, x[None])


def three_products(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two lots of three significands of 8 bits whose products are 2**17 together."""
    numbers = np.arange(128, 256)
    while True:
        a = rng.choice(numbers, 3)
        rest = (1 << 17) - a[0] * numbers[:, None] - a[1] * numbers
        found = np.argwhere((rest % a[2] == 0) & (rest >= 128 * a[2]) & (rest < 256 * a[2]))
        if len(found):
            i, j = rng.choice(found)
            return a, np.array([numbers[i], numbers[j], rest[i, j] // a[2]])


def broken_ties(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Keys that hang on one place alone, next to the half that is added to a large sum and then left over."""
    num_experts, cols = geometry.gating.num_experts, geometry.cols
    top = int(rng.integers(4, 12))
    half, one = BF16_BIAS + top - 24, BF16_BIAS << 7
    large = operands.patterns(rng, np.full(num_experts, BF16_BIAS + top)) & ~np.uint16(operands.SIGN)
    last = np.where(rng.random(num_experts) < 0.5, np.uint16((BF16_BIAS + top - 23) << 7), 0)
    x = np.full(geometry.d_model, one, dtype=np.uint16)
    router = np.zeros((num_experts, geometry.d_model), dtype=np.uint16)
    # The half, and what breaks its tie, come after the large number or before it.
    first, second = (0, cols) if rng.random() < 0.5 else (cols, 0)
    router[:, first], router[:, first + 1] = large, last
    if rng.random() < 0.5:
        # A sum that needs all places of a burst's.
        lowest = 25
        ours, theirs = three_products(rng)
        x[second + 1 : second + 4] = one | ours - 128
        router[:, second + 1 : second + 4] = (half - 3) << 7 | theirs - 128
    else:
        lowest = 22
        router[:, second + 1] = half << 7
    below = np.where(rng.random(num_experts) < 0.5, rng.integers(1, 27, num_experts), lowest)
    router[:, second] = half - below << 7 | rng.integers(0, 2, num_experts) << 15
    router[:, 2 * cols], router[:, 2 * cols + 1] = large ^ operands.SIGN, last ^ operands.SIGN
    router ^= (rng.integers(0, 2, (num_experts, 1)) << 15).astype(np.uint16)
    return with_equal_keys(geometry, rng, router, x[None])


def far_apart(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Products in one burst whose exponents are further apart than any two numbers."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    tokens = operands.patterns(rng, np.full((TOKENS, d_model), 1))
    router = operands.patterns(rng, rng.integers(1, 4, (num_experts, d_model)))
    tokens[:, ::2] = BF16_ONE
    router[:, ::2] = 0
    router[:, 0] = operands.patterns(rng, np.full(num_experts, BF16_BIAS + int(rng.integers(5, 9))))
    return with_bias(geometry, rng, router, tokens)


def infinite_products(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Infinities times numbers whose exponents are one bit away from that of zero, or of infinity."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    tokens = operands.a_bit_from_special(rng, TOKENS, d_model)
    router = operands.a_bit_from_special(rng, num_experts, d_model)
    for row in tokens if rng.random() < 0.5 else router:
        row[rng.integers(d_model)] = 0x7F80 | rng.integers(0, 2) << 15
    return with_bias(geometry, rng, router, tokens)


PIECES = 3
"""Numbers of bf16 whose sum is any one of fp32."""
NO_SCORE = -(1 << 25)
"""A logit whose sigmoid, or exponential, is 0."""
DRAWS = 32


def exact(
    geometry: GateGeometry, rng: np.random.Generator, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a router and tokens with these ``(tokens, experts)`` logits, integers of 24 significant bits.

    There can be one token for each ``PIECES`` places; a token has its own, which are drawn.
    """
    places = rng.permutation(geometry.d_model)[: PIECES * len(logits)].reshape(len(logits), PIECES)
    tokens = np.zeros((len(logits), geometry.d_model), dtype=np.uint16)
    router = np.zeros((logits.shape[1], geometry.d_model), dtype=np.uint16)
    for token, wanted, mine in zip(tokens, logits, places, strict=True):
        token[mine] = BF16_ONE
        left = np.abs(wanted)
        for place in mine:
            below = np.maximum(floor_log2(np.maximum(left, 1)) - 7, 0)
            piece = left >> below << below
            router[:, place] = bf16_encode((np.sign(wanted) * piece / ONE).astype(np.float32))
            left = left - piece
    return router, tokens


def scores_of(gating: GatingSpec, logits: np.ndarray) -> np.ndarray:
    """Return sigmoids of logits; of a softmax exponentials of logits whose largest is 0."""
    if gating.score is Score.SOFTMAX:
        return score_from(*exp_negative(-logits))
    return scores_fixed(gating.score, logits)


def logits_of(gating: GatingSpec, scores: np.ndarray) -> np.ndarray:
    """Return logits whose scores are nearest to these."""
    share = (np.clip(scores, 0, (1 << SCORE_BITS) - 1) + 0.5) / (1 << SCORE_BITS)
    softmax = gating.score is Score.SOFTMAX
    about = np.rint(np.log(share if softmax else share / (1 - share)) * ONE).astype(np.int64)
    # Their relative error is 1.1e-5, a dozen of a logit's places.
    near = about[..., None] + np.arange(-24, 25)
    if softmax:
        near = np.minimum(near, 0)
    best = np.abs(scores_of(gating, near) - scores[..., None]).argmin(axis=-1)
    found = np.take_along_axis(near, best[..., None], axis=-1)[..., 0]
    return np.where(scores <= 0, NO_SCORE, found)


def split(gating: GatingSpec, rng: np.random.Generator, total: int, parts: int) -> tuple[np.ndarray, int]:
    """Return logits of so many scores, and what their sum is: ``total``, or little more, where drawn."""
    shares = rng.random((DRAWS, parts)) ** 2
    wanted = (shares / shares.sum(axis=1, keepdims=True) * total).astype(np.int64)
    logits = logits_of(gating, wanted)
    scores = scores_of(gating, logits)
    logits[:, -1] = logits_of(gating, total - scores[:, :-1].sum(axis=1))
    sums = scores_of(gating, logits).sum(axis=1)
    best = np.where(sums < total, np.iinfo(np.int64).max, sums).argmin()
    return logits[best], int(sums[best])


def of_chosen(geometry: GateGeometry, rng: np.random.Generator, chosen: list[np.ndarray]) -> Load:
    """Return a load whose tokens choose the same experts, with these logits; others' scores are 0."""
    gating = geometry.gating
    bias = (10 * rng.standard_normal(gating.num_experts)).astype(np.float32)
    none = np.full((1, gating.num_experts), NO_SCORE)
    # Their scores only make chosen ones, and their groups, larger.
    ids = select(gating, none, selection_bias_fixed(gating, bias)).ids[0]
    logits = np.repeat(none, len(chosen), axis=0)
    logits[:, ids] = [rng.permutation(row) for row in chosen]
    router, tokens = exact(geometry, rng, logits)
    return Load(router, bias, tokens)


def sums_of_one_bit(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Chosen scores whose sums are powers of two, or three places more at most: each leading place alone."""
    gating = geometry.gating
    most = SCORE_BITS + floor_log2(np.array(gating.top_k)).item()
    places = rng.permutation(most)[: geometry.d_model // PIECES]
    totals = (1 << places) + rng.integers(0, 4, len(places))
    return of_chosen(geometry, rng, [split(gating, rng, int(total), gating.top_k)[0] for total in totals])


def full(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Products of one sign as large as they can be at their exponent."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    signs = (rng.integers(0, 2, (num_experts, 1)) << 15).astype(np.uint16)
    router = operands.full(rng, num_experts, d_model, top=-5) ^ signs
    return with_bias(geometry, rng, router, operands.full(rng, TOKENS, d_model))


def left_over(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Large products taken back and small ones, whose order is that of the experts."""
    x = operands.near_one(rng, geometry.d_model)
    places = rng.integers(0, 24, geometry.gating.num_experts)
    router, alone = operands.left_over(rng, x, geometry.cols, places, int(rng.integers(0, 8)))
    bias = np.zeros(len(router), dtype=np.float32)
    return Load(router, bias, operands.fading(x, alone, TOKENS))


def lane_bias(geometry: GateGeometry, rng: np.random.Generator) -> np.ndarray:
    """Return a bias with which a token's experts come from one lane, where it has as many."""
    lane = int(rng.integers(geometry.logits_per_cycle))
    bias = rng.standard_normal(geometry.gating.num_experts).astype(np.float32)
    places = [geometry.output_at(row, lane) for row in range(geometry.num_rows)]
    bias[[place for place in places if place is not None]] += 10
    return bias


def chosen_scores(geometry: GateGeometry, load: Load) -> np.ndarray:
    """Return the scores of each token's chosen experts, of which the weights are shares."""
    routing = routing_of(geometry, load)
    logits = np.take_along_axis(routing.logits, routing.ids.astype(np.int64), axis=1)
    if geometry.gating.score is Score.SOFTMAX:
        logits = logits - logits.max(axis=1, keepdims=True)
    return scores_of(geometry.gating, logits)


def nearly_rounded(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Of many tokens those with a weight next to the middle between two bf16 numbers."""
    gating = geometry.gating
    spread = float(rng.choice([0.5, 2.0, 6.0]))
    router = bf16_encode(rng.standard_normal((gating.num_experts, geometry.d_model)))
    bias = lane_bias(geometry, rng)
    if rng.random() < 0.5:
        bias = rng.standard_normal(gating.num_experts).astype(np.float32)
    tokens = bf16_encode(spread * rng.standard_normal((CANDIDATES, geometry.d_model)))
    if rng.random() < 0.5:
        # Small scores: all logits are far below zero.
        tokens[:, 0], router[:, 0] = BF16_ONE, bf16_encode(-rng.uniform(6, 18, 1))[0]
    scores = chosen_scores(geometry, Load(router, bias, tokens))
    inverse, _ = inverse_of(scores.sum(axis=1), scale_fixed(gating.scale)[0])
    from_tie = operands.from_tie(scores * inverse[:, None]).min(axis=1)
    return Load(router, bias, tokens[np.argsort(from_tie, kind="stable")[:TOKENS]])


def of_one_bit() -> np.ndarray:
    """Return the logits below 0 whose exponentials are powers of two, as distances."""
    # A power's fraction is 0 where a logit's place is near enough.
    d = -(-(np.arange(MAX_SHIFT) << (2 * FRACTION_BITS)) // LOG2E)
    return d[((d * LOG2E) >> FRACTION_BITS) % ONE == 0]


def at_a_carry(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return so many distances whose product with log2(e) is next to a carry out of what is cut off."""
    d = rng.integers(0, 8 * ONE, (count, CANDIDATES))
    low = d * LOG2E % ONE
    wanted = 1 << rng.integers(6, 17, (count, 1))
    nearest = np.abs(np.minimum(low, ONE - low) - wanted).argmin(axis=1)
    return np.take_along_axis(d, nearest[:, None], axis=1)[:, 0]


def scores_of_one_bit(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Logits whose exponentials are powers of two, or next to one, at keys that are equal but for them."""
    num_experts = geometry.gating.num_experts
    d = of_one_bit()
    small = int(rng.integers(0, len(d)))
    logits = -rng.choice(d[small:], num_experts) + rng.choice([-1, 0, 0, 0], num_experts)
    router, tokens = exact(geometry, rng, logits[None])
    return with_equal_keys(geometry, rng, router, tokens)


def exponents_at_a_carry(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Logits whose product with log2(e) is next to a carry out of what is cut off; keys are nearly equal."""
    num_experts = geometry.gating.num_experts
    logits = at_a_carry(rng, num_experts)
    router, tokens = exact(geometry, rng, (logits * rng.choice([-1, 1], num_experts))[None])
    return with_equal_keys(geometry, rng, router, tokens)


def faint(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Scores of a few last places and one bias, none or the lowest: experts and groups tie, or nearly do."""
    gating = geometry.gating
    tokens, most = geometry.d_model // PIECES, 1 << int(rng.integers(2, 6))
    scores = rng.integers(0, most, (tokens, gating.num_experts)) << (SCORE_BITS - select_bits(gating))
    router, inputs = exact(geometry, rng, logits_of(gating, scores))
    return Load(router, np.full(gating.num_experts, rng.choice([0, -1e30]), dtype=np.float32), inputs)


@cache
def _mantissas(scale: int) -> tuple[np.ndarray, ...]:
    """Return mantissas of sums, those of their inverses, how many zeros these end in, and what inverts them.

    That is modulo 2**64, and without the zeros.
    """
    sums = np.arange(ONE, 2 * ONE, dtype=np.int64)
    inverses = (reciprocal(sums) * scale >> SCALE_BITS).astype(np.uint64)
    zeros = floor_log2((inverses & -inverses).astype(np.int64)).astype(np.uint64)
    odd = inverses >> zeros
    # Newton: 3 places are right at first, then twice as many each time.
    result = odd.copy()
    for _ in range(5):
        result *= 2 - odd * result
    return sums, inverses, zeros, result


def beside_a_tie(scale: int, half: int, beside: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a sum's mantissa and a score whose product is a tie, but for one place below it.

    The product with the sum's inverse has 8 places above ``half``, the last of them 0, a 1 there, and of all
    others only ``beside``; ``None``: it is a tie.
    """
    sums, inverses, zeros, inverted = _mantissas(scale)
    below = 0 if beside is None else 1 << beside
    modulus = np.uint64((1 << (half + 2)) - 1) >> zeros
    scores = (np.uint64((1 << half) + below) >> zeros) * inverted & modulus
    found = (scores < 1 << SCORE_BITS) & (scores * inverses >> np.uint64(half + 8) == 1)
    found &= zeros <= (half if beside is None else beside)
    return sums[found], scores[found].astype(np.int64)


def one_place_beside_a_tie(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Weights that are rounded up by one place alone, anywhere below a tie; and ties."""
    gating = geometry.gating
    scale = scale_fixed(gating.scale)[0]
    tokens: list[np.ndarray] = []
    while len(tokens) < geometry.d_model // PIECES:
        half = int(rng.integers(24, 44))
        mantissas, scores = beside_a_tie(scale, half, None if rng.random() < 0.1 else int(rng.integers(half)))
        logits = logits_of(gating, scores)
        for n in np.flatnonzero(scores_fixed(gating.score, logits) == scores)[:4].tolist():
            score = int(scores[n])
            # The sum's places below its mantissa are free.
            least = max(FRACTION_BITS, score.bit_length())
            place = int(rng.integers(least, max(least + 1, SCORE_BITS + 1))) - FRACTION_BITS
            rest = (int(mantissas[n]) << place) - score
            others, total = split(gating, rng, rest, gating.top_k - 1)
            if 0 <= total - rest < 1 << place:
                tokens.append(np.append(logits[n], others))
                break
    return of_chosen(geometry, rng, tokens)


Maker = Callable[[GateGeometry, np.random.Generator], Load]
ANY_SCORE: dict[Maker, int] = {
    cancelling: 16,
    of_any_size: 8,
    given_logits: 8,
    one_extreme: 12,
    two_infinities: 6,
    nearly_equal_rows: 8,
    left_over: 16,
    full: 6,
    nearly_rounded: 24,
    infinite_products: 12,
}
LOADS: dict[Maker, int] = {
    **ANY_SCORE,
    nearly_equal_keys: 120,
    keys_at_ties: 48,
    sums_of_one_bit: 32,
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


def scenarios_of(geometry: GateGeometry, seed: int, loads: Mapping[Maker, int]) -> list[Scenario]:
    """Return so many runs of each kind of load, and what depends on none."""
    kinds = [*mixes(seed), *edges(seed)]
    rng = np.random.default_rng([seed, len(kinds)])
    found = under_traffic(
        loads,
        kinds,
        rng,
        lambda name, load, traffic: scenario(name, geometry, [load(geometry, rng)], traffic),
    )
    for traffic in kinds:
        load = random_load(geometry, rng)
        beats = len(image_beats(geometry, load))
        begun = rng.integers(1, beats + 1, 3).tolist()
        found.append(scenario(f"router begun anew, {traffic.label}", geometry, [load], traffic, begun=begun))
        many = replace(load, tokens=bf16_encode(rng.standard_normal((40, geometry.d_model))))
        whole = scenario(f"many tokens, {traffic.label}", geometry, [many], traffic)
        found += [whole, whole.cut(rng), whole.cut(rng)]
    return found
