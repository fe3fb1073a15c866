"""Cycle model of the gate, derived from ``rtl/gating``.

Everything between the launch of a token's product and the output queue is a pipeline of constant
latency, so three things can make a token wait: its own beats, the product of the token before, and
the credits that promise room in the output queue. Exact under any arrivals and any output stalls,
once the router is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from sim.streams import ALWAYS, Cycles, taken
from spec.geometry import GateGeometry, ceil_div
from spec.model import Normalise, Score

PRODUCT_PIPELINE = 9
"""Address to logit: RAM 1, burst 5, accumulator 3."""
TO_FIXED = 1
SIGMOID = 8
"""Sigmoid 7, biased key 1."""
GROUP_RANK = 4
TOPK = 3
EXP_SCORE = 5
"""Subtract 1, exp 3, shift 1."""
INVERSE = 4
TOTAL_TAIL = 6
"""From the row after the last one: subtract 1, exp 3, row sum 1, total 1."""
PRODUCT_AND_ROUND = 2
QUEUE = 2
TOKEN_BUFFERS = 2


def latency(geometry: GateGeometry) -> int:
    """Return the cycles from a token's launch to its first assignment being valid on the output."""
    gating = geometry.gating
    softmax = gating.score is Score.SOFTMAX
    cycles = geometry.product_cycles + PRODUCT_PIPELINE + TO_FIXED + (0 if softmax else SIGMOID)
    if gating.grouped:
        cycles += geometry.num_rows - 1 + GROUP_RANK
    score = EXP_SCORE if softmax else 0
    cycles += TOPK + score
    if gating.normalise is Normalise.SUM:
        cycles += gating.top_k + INVERSE + 1
    elif softmax:
        cycles += max(0, geometry.num_rows + TOTAL_TAIL + INVERSE - TOPK - score)
    return cycles + PRODUCT_AND_ROUND + QUEUE


def num_credits(geometry: GateGeometry) -> int:
    """Return how many tokens may be between launch and output."""
    return ceil_div(latency(geometry) + geometry.gating.top_k + 1, geometry.interval) + 1


@dataclass(frozen=True)
class GateCycles:
    """Handshake cycles: ``i`` (tokens * input_beats,), ``launch`` (tokens,), ``o`` (tokens * k,)."""

    i: Cycles
    launch: Cycles
    o: Cycles


def gate_cycles(geometry: GateGeometry, arrivals: Cycles, ready: Cycles = ALWAYS) -> GateCycles:
    """Return when the gate takes its beats and gives its assignments.

    Parameters
    ----------
    arrivals : (tokens * input_beats,) first cycle in which each beat is offered, ascending.
    ready : readiness of the output, from :func:`sim.streams.next_ready`.
    """
    return GateCycles(
        *_walk(
            np.ascontiguousarray(arrivals, dtype=np.int64),
            ready,
            geometry.input_beats,
            geometry.gating.top_k,
            geometry.product_cycles,
            geometry.interval,
            latency(geometry),
            num_credits(geometry),
        )
    )


@njit(cache=True)
def _walk(
    arrivals: Cycles,
    ready: Cycles,
    beats: int,
    top_k: int,
    product: int,
    interval: int,
    latency: int,
    num_credits: int,
) -> tuple[Cycles, Cycles, Cycles]:
    tokens = len(arrivals) // beats
    i = np.empty(tokens * beats, dtype=np.int64)
    launch = np.empty(tokens, dtype=np.int64)
    o = np.empty(tokens * top_k, dtype=np.int64)
    last_in = last_out = np.int64(-1)
    for token in range(tokens):
        # A buffer is free the cycle after the last address of the token that it held.
        free = launch[token - TOKEN_BUFFERS] + product + 1 if token >= TOKEN_BUFFERS else np.int64(0)
        for beat in range(beats):
            last_in = max(arrivals[token * beats + beat], last_in + 1, free)
            i[token * beats + beat] = last_in
        start = last_in + 1
        if token > 0:
            start = max(start, launch[token - 1] + interval)
        if token >= num_credits:
            start = max(start, o[(token - num_credits) * top_k + top_k - 1] + 1)
        launch[token] = start
        for slot in range(top_k):
            last_out = taken(max(start + latency + slot, last_out + 1), ready)
            o[token * top_k + slot] = last_out
    return i, launch, o
