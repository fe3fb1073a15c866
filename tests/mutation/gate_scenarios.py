"""What only mutants need of the gate: keys that nearly tie, weights next to a tie, routers begun anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from golden.formats import BF16_BIAS, BF16_ONE, bf16_encode, dot
from golden.functions import SCORE_BITS, fixed_from_f32
from golden.gating_bf16 import inverse_of, route_bf16, scale_fixed, scores_fixed, select_bits
from spec.geometry import GateGeometry
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_gating_bench import Load, image_beats, random_load, scenario
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
    token = load.tokens[:1]
    logits = fixed_from_f32(dot(token, load.router, geometry.cols))
    scores = scores_fixed(gating.score, logits)[0] >> (SCORE_BITS - select_bits(gating))
    wanted = int(rng.integers(-(1 << 24), 1 << 24)) + rng.integers(-1, 2, gating.num_experts)
    # Of a group the first are as much above as the second are below: the sum of two is what it was.
    apart = int(rng.choice([0, 1, 1 << int(rng.integers(1, 20))]))
    wanted += apart * np.tile([1, -1, -3], gating.num_experts)[: gating.num_experts]
    bias = (wanted - scores) / (1 << select_bits(gating))
    return Load(load.router, bias.astype(np.float32), np.repeat(token, 2, axis=0))


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
    routing = route_bf16(gating, router, tokens, geometry.cols, selection_bias=bias, gives_scores=True)
    assert routing.scores is not None
    total = routing.scores.sum(axis=1)
    inverse, _ = inverse_of(total, scale_fixed(gating.scale)[0])
    from_tie = operands.from_tie(routing.scores * inverse[:, None]).min(axis=1)
    return Load(router, bias, tokens[np.argsort(from_tie, kind="stable")[:TOKENS]])


LOADS = {
    cancelling: 16,
    of_any_size: 8,
    given_logits: 8,
    one_extreme: 12,
    two_infinities: 6,
    nearly_equal_rows: 8,
    left_over: 16,
    full: 6,
    nearly_equal_keys: 120,
    nearly_rounded: 24,
}
"""How many of each kind."""


def scenarios(geometry: GateGeometry, seed: int) -> list[Scenario]:
    """Return loads whose last places show, routers begun anew, resets at any time, a sink at its edges."""
    kinds = [*mixes(seed), *edges(seed)]
    rng = np.random.default_rng([seed, len(kinds)])
    found = under_traffic(
        LOADS,
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
