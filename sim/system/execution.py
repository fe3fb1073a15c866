"""Rows that experts compute: what a fixed capacity drops, and what padding adds.

Experts compute one after another on one engine, by a roofline. An expert with no rows is not started. Or they
compute beside each other, each on tiles of its own, with these tiles' share of the engine's operations and
bandwidth (:data:`BESIDE`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from sim.system.comparison import Comparison, Result, Steps
from sim.system.costs import FloatArray, IntArray, Roofline
from spec.errors import require, require_range

BASELINE = "largest"
BOUND = "the rows of tokens that are kept, and no others"
OPERATIONS = 2
"""A multiplication and its addition."""


@dataclass(frozen=True)
class Rows:
    """What is to be computed, and the numbers that policies take.

    Attributes
    ----------
    counts : (layers, experts) tokens.
    capacity_factor : over an even share of the tokens.
    block : rows that are computed together.
    """

    counts: IntArray
    capacity_factor: float = 1.25
    block: int = 128

    def __post_init__(self) -> None:
        require(
            0 < self.capacity_factor <= 1024,
            f"must be above 0 and at most 1024, not {self.capacity_factor:g}",
            key="capacity-factor",
        )
        require_range("block", self.block, 1, 1 << 16)


def capacity(rows: Rows) -> IntArray:
    """Every expert has the same number of rows; tokens beyond are dropped (GShard, Switch, fairseq)."""
    even = rows.counts.sum(axis=1, keepdims=True) / rows.counts.shape[1]
    return np.broadcast_to(np.ceil(rows.capacity_factor * even).astype(np.int64), rows.counts.shape)


def largest(rows: Rows) -> IntArray:
    """Every expert has the rows of the one with most: nothing is dropped (Tutel, DeepSpeed without drop)."""
    return np.broadcast_to(rows.counts.max(axis=1, keepdims=True), rows.counts.shape)


def blocks(rows: Rows) -> IntArray:
    """Each expert has whole blocks (MegaBlocks: 128 rows; vLLM's aligned blocks: 16 and more)."""
    return -(-rows.counts // rows.block) * rows.block


def sizes(rows: Rows) -> IntArray:
    """Each expert has the rows of the next larger of few kernels, powers of two (Adyna's sampled kernels)."""
    return np.where(rows.counts > 0, 1 << np.ceil(np.log2(np.maximum(rows.counts, 1))).astype(np.int64), 0)


def grouped(rows: Rows) -> IntArray:
    """Each expert has its tokens' rows (grouped products)."""
    return rows.counts


EXECUTIONS: dict[str, Callable[[Rows], IntArray]] = {
    "capacity": capacity,
    "one-hot": capacity,
    "largest": largest,
    "blocks": blocks,
    "sizes": sizes,
    "grouped": grouped,
    "one-by-one": grouped,
    "in-order": grouped,
    "out-of-order": grouped,
    "tiles": grouped,
}
"""To (layers, experts) int64 rows; ``one-hot`` also multiplies tokens with a mask to place them, and
``one-by-one`` reads an expert's weights for each of its tokens."""

BESIDE = ("in-order", "out-of-order", "tiles")
"""Those whose experts have tiles of their own: ``in-order`` and ``out-of-order`` (Space-Mate) equally many,
``tiles`` (Adyna) by the loads of the steps before."""

SPECIAL = ("one-hot", "one-by-one", *BESIDE)
"""Those whose time is not that of their rows alone."""

TILES = 16
"""Tiles of the engine for each expert that there is: a choice of this project."""


def by_load(times: FloatArray) -> FloatArray:
    """Return the share of the tiles that each expert has in each step, by its time in all steps before.

    ``times``: (layers, steps, experts). Each expert has one tile at least; in the first step all as many.
    """
    experts = times.shape[2]
    before = times.cumsum(axis=1) - times
    total = before.sum(axis=2, keepdims=True)
    wanted = np.where(total > 0, before / np.where(total > 0, total, 1.0), 1 / experts)
    wanted = wanted * (TILES - 1) * experts
    tiles = 1 + np.floor(wanted).astype(np.int64)
    # What rounding leaves goes where most was cut off.
    left = TILES * experts - tiles.sum(axis=2, keepdims=True)
    rank = np.argsort(np.argsort(np.floor(wanted) - wanted, axis=2, kind="stable"), axis=2)
    shares: FloatArray = (tiles + (rank < left)) / (TILES * experts)
    return shares


@njit(cache=True)
def in_order(ids: IntArray, row_s: FloatArray) -> FloatArray:
    """Return the seconds of layers whose tokens begin in their order, each once all its experts are free.

    Parameters
    ----------
    ids : (layers, tokens, k) experts; numbers that ``row_s`` has not compute nothing.
    row_s : (layers, experts) seconds of a token's row.
    """
    layers, tokens, k = ids.shape
    end = np.zeros(layers)
    for layer in range(layers):
        free = np.zeros(row_s.shape[1])
        begin = 0.0
        for token in range(tokens):
            for place in range(k):
                expert = ids[layer, token, place]
                if expert < row_s.shape[1]:
                    begin = max(begin, free[expert])
            for place in range(k):
                expert = ids[layer, token, place]
                if expert < row_s.shape[1]:
                    free[expert] = begin + row_s[layer, expert]
        end[layer] = free.max()
    return end


def beside(name: str, engine: Roofline, steps: Steps, num_ffn: int) -> float:
    """Return the seconds of all steps where each expert has tiles of its own."""
    counts = steps.counts[:, :, :num_ffn]
    times = engine.experts(counts.reshape(-1, num_ffn), steps.expert).reshape(counts.shape)
    if name == "tiles":
        return float((times / by_load(times)).max(axis=2).sum())
    times = times * num_ffn
    if name == "out-of-order":
        return float(times.max(axis=2).sum())
    rows = (times / np.maximum(counts, 1)).reshape(-1, num_ffn)
    ids = steps.ids.reshape(-1, *steps.ids.shape[2:])
    return float(in_order(ids, rows).sum())


POLICIES = tuple(EXECUTIONS)


def compare(
    engine: Roofline,
    title: str,
    steps: Steps,
    num_ffn: int,
    *,
    capacity_factor: float = 1.25,
    block: int = 128,
) -> Comparison:
    """Run all policies on every layer of every step."""
    counts = steps.in_time[:, :num_ffn]
    rows = Rows(counts, capacity_factor, block)
    tokens = steps.ids.shape[2]
    results = {}
    for name, policy in EXECUTIONS.items():
        computed = policy(rows)
        kept = np.minimum(counts, computed)
        times = engine.experts(computed, steps.expert).sum()
        if name == "one-by-one":
            times = (counts * engine.experts(np.ones_like(counts), steps.expert)).sum()
        if name == "one-hot":
            # Tokens x (experts x capacity) x d_model, to place them and once more to combine results.
            times += 2 * OPERATIONS * tokens * steps.expert.d_model * computed.sum() / engine.flops
        if name in BESIDE:
            times = beside(name, engine, steps, num_ffn)
        results[name] = Result(
            float(times),
            float(engine.experts(kept, steps.expert).sum()),
            {
                "dropped_share": float(1 - kept.sum() / counts.sum()),
                "padding_share": float(1 - kept.sum() / computed.sum()),
            },
        )
    return Comparison("dispatch", title, BASELINE, results, BOUND)
