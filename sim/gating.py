"""Cycle model of the gate, derived from ``rtl/gating``.

Everything between the launch of a token's product and the output queue is a pipeline of constant
latency, so three things can make a token wait: its own beats, the products of the tokens before, and
the credits that promise room in the output queue. Exact under any arrivals and any output stalls,
once the router is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.compiled import compiled
from sim.streams import ALWAYS, Cycles, Spans, taken
from spec.design import Pipeline
from spec.gate_plan import GatePlan
from spec.geometry import GateGeometry, ceil_div
from spec.model import Score

PRODUCT_PIPELINE = 9
"""Address to logit: RAM 1, burst 5, accumulator 3."""
DEEP_PRODUCT_PIPELINE = 17
"""The same, deep: RAM 1, register 1, burst 8, accumulator 7; and the stages of the burst's two trees."""
STORE_PIPELINE = 1
"""Address to logit where the banks computed it: RAM 1."""
TO_FIXED, DEEP_TO_FIXED = 1, 3
"""Logit to fixed point; deep: distances 1, magnitude 1, sign 1."""
FUNCTIONS = {Score.SIGMOID: 7, Score.SQRT_SOFTPLUS: 14}
"""From a logit to its score; a logit is one, and shares take longer."""
DEEP_SIGMOID = 18
"""Magnitude 1, exp 8, shift 1, sum 1, reciprocal 4, product 3."""
PLACED_SCORE = 1
"""Deep only: a sigmoid's mantissa is shifted before the bias is added."""
STANDARDISE = 19
"""Beside the rows of three passes: row sum 1, sum 1, centred 1; row's largest 1, largest 1, position 1,
cut 1; square 1, row sum 1, sum 1, logarithm 4, exp2 2, factor 1, product 1, shift 1."""
KEY = 1
"""Score to key, its bias added."""
GROUP_RANK = 4
TOPK, DEEP_TOPK = 3, 4
"""List 1 (2), queue 1, choice 1."""
EXP_SCORE, DEEP_EXP_SCORE = 5, 10
"""Subtract 1, exp 3 (deep 8), shift 1."""
INVERSE, DEEP_INVERSE = 4, 10
"""Leading zeros and shift 1 (3), reciprocal 2 (4), factor 1 (3)."""
TOTAL_TAIL, DEEP_TOTAL_TAIL = 6, 12
"""From the row after the last one: subtract 1, exp 3 (8), (shift 1), row sum 1, total 1."""
SHARE, DEEP_SHARE = 1, 3
"""Product with the inverse."""
NORM = 18
"""From the last score, with k cycles more: logarithm 4, below 1, power 1, exp2 2, sum 1, logarithm 4, root 1,
total's logarithm 1, exp2 2, total 1."""
PRODUCT_AND_ROUND, DEEP_PRODUCT_AND_ROUND = 2, 9
"""Product 1 (factors beside the multipliers 1, product 3), rounding 1 (leading zeros 2, shift 1, what lies
below 1, rounding 1)."""
QUEUE = 2
SHARED_GATE = 11
"""Of the shared expert's gate: fixed point 1, sigmoid 7, rounded 1, queue 2."""


@dataclass(frozen=True)
class Stages:
    """Cycles of the gate's parts, as its pipelines are cut."""

    product: int
    to_fixed: int
    functions: dict[Score, int]
    placed_score: int
    topk: int
    exp_score: int
    inverse: int
    total_tail: int
    share: int
    product_and_round: int


def stages(geometry: GateGeometry) -> Stages:
    """Return the cycles of a gate's parts."""
    deep = geometry.pipeline is Pipeline.DEEP
    product = DEEP_PRODUCT_PIPELINE + burst_trees(geometry.cols) if deep else PRODUCT_PIPELINE
    return Stages(
        product=STORE_PIPELINE if geometry.banked else product,
        to_fixed=DEEP_TO_FIXED if deep else TO_FIXED,
        functions=FUNCTIONS | {Score.SIGMOID: DEEP_SIGMOID} if deep else FUNCTIONS,
        placed_score=PLACED_SCORE if deep and geometry.gating.score is Score.SIGMOID else 0,
        topk=DEEP_TOPK if deep else TOPK,
        exp_score=DEEP_EXP_SCORE if deep else EXP_SCORE,
        inverse=DEEP_INVERSE if deep else INVERSE,
        total_tail=DEEP_TOTAL_TAIL if deep else TOTAL_TAIL,
        share=DEEP_SHARE if deep else SHARE,
        product_and_round=DEEP_PRODUCT_AND_ROUND if deep else PRODUCT_AND_ROUND,
    )


def burst_trees(cols: int) -> int:
    """Return the stages of a deep burst's trees: a level of the largest exponent in each, two of the sum."""
    levels = (cols - 1).bit_length()
    return max(1, levels) + max(1, ceil_div(levels, 2))


def latency(geometry: GateGeometry) -> int:
    """Return the cycles from a token's launch to its first assignment being valid on the output."""
    if not geometry.shared_gate:
        return _latency(geometry)
    # The weight of the shared expert has to be there too.
    product = geometry.product_cycles + stages(geometry).product
    return max(_latency(geometry), product + SHARED_GATE)


def _latency(geometry: GateGeometry) -> int:
    """Return the same as far as the experts go."""
    gating, part = geometry.gating, stages(geometry)
    # From the last row that holds experts; a shared expert's gate may have one behind it.
    cycles = geometry.product_cycles - (geometry.num_rows - geometry.expert_rows)
    cycles += part.product
    # A prototype's rows are a token's for all but the queue, where choices wait for the token's last one.
    own = geometry.of_prototype
    cycles += part.to_fixed + _selection_score(own)
    if gating.logit_deviation:
        cycles += 3 * (geometry.expert_rows - 1) + STANDARDISE
    if gating.grouped:
        cycles += geometry.expert_rows - 1 + GROUP_RANK
    if gating.num_prototypes > 1:
        cycles += own.gating.top_k - 1
    return cycles + part.topk + _weight(own) + part.product_and_round + QUEUE


def _selection_score(geometry: GateGeometry) -> int:
    """Return the cycles from a row of fixed-point logits to its candidates."""
    plan, rows, part = geometry.plan, geometry.expert_rows, stages(geometry)
    if plan.ranked_by_logit:
        return 0
    if plan.shares_first:
        # The rows wait for the largest logit, then their exponentials for the inverse of their sum.
        return rows + part.total_tail + rows - 1 + part.inverse + part.share + KEY
    return part.functions.get(geometry.gating.score, 0) + part.placed_score + KEY


def _weight(geometry: GateGeometry) -> int:
    """Return the cycles from a token's first choice to the factors of its weight."""
    plan, part = geometry.plan, stages(geometry)
    cycles = 0
    if plan.exponentials:
        cycles = part.exp_score
        if plan.totals_softmax:
            behind = geometry.expert_rows + part.total_tail + part.inverse
            cycles += max(0, behind - part.topk - part.exp_score)
        if plan.shares_of_chosen:
            cycles += part.share
    elif not plan.carries_score:
        cycles = part.functions.get(plan.weight_score, 0)
        # The sigmoid's mantissa and shift become a score.
        cycles += 1 if plan.weight_score is Score.SIGMOID else 0
    return cycles + inverse_cycles(plan, part.inverse)


def inverse_cycles(plan: GatePlan, inverse: int = INVERSE) -> int:
    """Return the cycles that a score waits for the inverse of the sum or norm of its token's."""
    top_k = plan.gating.top_k
    if plan.normalises_by_norm:
        return 2 * top_k - 1 + NORM + inverse + 1
    return top_k + inverse + 1 if plan.normalises_by_sum else 0


def num_credits(geometry: GateGeometry) -> int:
    """Return how many tokens may be between launch and output."""
    in_flight = latency(geometry) + geometry.gating.top_k + 1
    return ceil_div(in_flight, geometry.of_experts.interval) + 1


@dataclass(frozen=True)
class GateCycles:
    """Handshake cycles: ``i`` (tokens * input_beats,), ``launch`` (tokens,), ``o`` (tokens * k,)."""

    i: Cycles
    launch: Cycles
    o: Cycles


def gate_cycles(geometry: GateGeometry, arrivals: Cycles, ready: Spans = ALWAYS) -> GateCycles:
    """Return when the gate takes its beats and gives its assignments.

    Parameters
    ----------
    arrivals : (tokens * input_beats,) first cycle in which each beat is offered, ascending.
    ready : readiness of the output, from :func:`sim.streams.readiness`.
    """
    steps = np.arange(geometry.input_beats)
    offered = np.asarray(arrivals, dtype=np.int64).reshape(-1, len(steps)) - steps
    model = GateModel(geometry, len(offered))
    model.run(offered.max(axis=1), ready=ready)
    return GateCycles(model.beats_in(np.asarray(arrivals, dtype=np.int64)), model.launch, model.o)


@dataclass(frozen=True)
class BankedGateCycles:
    """``launch`` (tokens,), ``freed`` (groups,) and the handshake cycles ``o`` (tokens * k,)."""

    launch: Cycles
    freed: Cycles
    o: Cycles


def banked_gate_cycles(
    geometry: GateGeometry, logits: Cycles, group_ends: Cycles, ready: Spans = ALWAYS
) -> BankedGateCycles:
    """Return what the gate does with logits that the banks compute.

    Parameters
    ----------
    logits : (tokens,) cycle in which the last of each token's logits comes, ascending.
    group_ends : (groups,) last token of each group.
    ready : readiness of the output.
    """
    launch = np.empty(len(logits), dtype=np.int64)
    o = np.empty(len(logits) * geometry.gating.top_k, dtype=np.int64)
    _launch(
        np.asarray(logits, dtype=np.int64),
        ready,
        geometry.gating.top_k,
        geometry.interval,
        latency(geometry),
        num_credits(geometry),
        launch,
        o,
    )
    return BankedGateCycles(launch, launch[group_ends] + geometry.product_cycles, o)


class GateModel:
    """The gate's times, a run of tokens after the other: each token's follow from those before it.

    Attributes
    ----------
    last_in : (tokens,) cycle in which each token's last beat is taken.
    launch : (tokens,) first cycle of its product.
    o : (tokens * k,) cycles of its assignments.
    """

    def __init__(self, geometry: GateGeometry, num_tokens: int) -> None:
        self.geometry = geometry
        # What the recurrence needs of it, once: windows are many.
        self.sizes = (
            geometry.input_beats,
            geometry.gating.top_k,
            geometry.product_cycles,
            geometry.interval,
            latency(geometry),
            num_credits(geometry),
            geometry.num_token_buffers,
        )
        self.last_in = np.empty(num_tokens, dtype=np.int64)
        self.launch = np.empty(num_tokens, dtype=np.int64)
        self.o = np.empty(num_tokens * geometry.gating.top_k, dtype=np.int64)
        self.num_done = 0

    def run(self, arrivals: Cycles, *, room: int = 0, ready: Spans = ALWAYS) -> None:
        """Give the next tokens their times.

        Parameters
        ----------
        arrivals : (n,) cycle from which each token's beats are offered, one per cycle. Where beats come
            later than that, the largest of each beat's cycle minus its number says the same.
        room : first cycle in which the output may take an assignment of these tokens.
        ready : readiness of the output.
        """
        walk_tokens(
            self.num_done,
            arrivals,
            room,
            ready,
            self.sizes,
            self.last_in,
            self.launch,
            self.o,
        )
        self.num_done += len(arrivals)

    def beats_in(self, arrivals: Cycles) -> Cycles:
        """Return when the beats, offered from these cycles on, were taken, once all tokens were."""
        geometry = self.geometry
        steps = np.arange(geometry.input_beats)
        offered = arrivals.reshape(-1, len(steps)) - steps
        first = np.concatenate([[0], self.last_in + 1])[: len(offered)]
        buffers = geometry.num_token_buffers
        freed = self.launch[:-buffers] + geometry.product_cycles + 1
        first[buffers:] = np.maximum(first[buffers:], freed)
        i: Cycles = np.maximum.accumulate(np.maximum(offered, first[:, None]), axis=1) + steps
        return i.ravel()

    @property
    def o_offered(self) -> Cycles:
        """First cycle in which each assignment is offered."""
        top_k = self.geometry.gating.top_k
        computed = (self.launch[:, None] + latency(self.geometry) + np.arange(top_k)).ravel()
        offered: Cycles = np.maximum(computed, np.concatenate([[0], self.o + 1])[: len(computed)])
        return offered


@compiled
def walk_tokens(
    first: int,
    arrivals: Cycles,
    room: int,
    ready: Spans,
    sizes: tuple[int, int, int, int, int, int, int],
    last_in: Cycles,
    launch: Cycles,
    o: Cycles,
) -> None:
    """Fill ``last_in``, ``launch`` and ``o`` of the tokens from ``first`` on."""
    beats, top_k, product, interval, latency, num_credits, num_buffers = sizes
    for token in range(first, first + len(arrivals)):
        begin = max(arrivals[token - first], last_in[token - 1] + 1 if token else 0)
        # A buffer is free the cycle after the last address of the token that it held.
        if token >= num_buffers:
            begin = max(begin, launch[token - num_buffers] + product + 1)
        last_in[token] = begin + beats - 1
        start = last_in[token] + 1
        if token:
            start = max(start, launch[token - 1] + interval)
        if token >= num_credits:
            start = max(start, o[(token - num_credits) * top_k + top_k - 1] + 1)
        # While another product is under way, whole intervals after its launch.
        if token and start < launch[token - 1] + product:
            on_interval = start + (launch[token - 1] - start) % interval
            start = min(on_interval, launch[token - 1] + product)
        launch[token] = start
        for slot in range(token * top_k, (token + 1) * top_k):
            offered = start + latency + slot - token * top_k
            if slot:
                offered = max(offered, o[slot - 1] + 1)
            o[slot] = taken(max(offered, room), ready)


@compiled
def _launch(
    logits: Cycles,
    ready: Spans,
    top_k: int,
    interval: int,
    latency: int,
    num_credits: int,
    launch: Cycles,
    o: Cycles,
) -> None:
    """Fill ``launch`` and ``o`` of a gate whose tokens come as logits."""
    for token in range(len(logits)):
        start = logits[token] + 1
        if token:
            start = max(start, launch[token - 1] + interval)
        if token >= num_credits:
            start = max(start, o[(token - num_credits) * top_k + top_k - 1] + 1)
        launch[token] = start
        for slot in range(token * top_k, (token + 1) * top_k):
            offered = start + latency + slot - token * top_k
            if slot:
                offered = max(offered, o[slot - 1] + 1)
            o[slot] = taken(offered, ready)
