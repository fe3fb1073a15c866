"""Rows that experts compute: what a fixed capacity drops, and what padding adds.

Experts compute one after another on one engine, by a roofline. An expert with no rows is not started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.system.comparison import Comparison, Result, Steps
from sim.system.costs import IntArray, Roofline
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
}
"""To (layers, experts) int64 rows; ``one-hot`` also multiplies tokens with a mask to place them, and
``one-by-one`` reads an expert's weights for each of its tokens."""

SPECIAL = ("one-hot", "one-by-one")
"""Those whose time is not that of their rows alone."""

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
        results[name] = Result(
            float(times),
            float(engine.experts(kept, steps.expert).sum()),
            {
                "dropped_share": float(1 - kept.sum() / counts.sum()),
                "padding_share": float(1 - kept.sum() / computed.sum()),
            },
        )
    return Comparison("dispatch", title, BASELINE, results, BOUND)
