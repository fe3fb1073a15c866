"""What a trace's routing is like: load, entropy, variation, unique experts of a batch, reuse distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.routing.trace import NO_EXPERT, IntArray, Trace

TOKENS_AT_A_TIME = 512
MAP_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of one layer of a trace; E experts.

    Attributes
    ----------
    layer, num_tokens, assignments : the layer's number, tokens recorded in it, their experts in all.
    load : (E,) assignments of each expert.
    entropy_bits : of the shares of load; log2(E) if all are equal.
    variation : standard deviation of the load over its mean.
    unique : (batches,) different experts of each batch of consecutive tokens, a last partial one left out
        unless it is the only one.
    reuse : (E,) how many assignments have reuse distance d: the number of other experts that the tokens
        between the expert's last token and this one went to.
    first_uses : assignments of an expert that was not used before.
    """

    layer: int
    num_tokens: int
    assignments: int
    load: IntArray
    entropy_bits: float
    variation: float
    unique: IntArray
    reuse: IntArray
    first_uses: int


def statistics_of(trace: Trace, index: int, batch: int) -> LayerStatistics:
    """Return the statistics of the ``index``-th layer, in batches of ``batch`` tokens."""
    rows = trace.ids[index]
    rows = rows[(rows != NO_EXPERT).any(axis=1)]
    load = np.bincount(rows[rows != NO_EXPERT], minlength=trace.num_experts).astype(np.int64)
    reuse, first_uses = reuse_distances(rows, trace.num_experts)
    return LayerStatistics(
        layer=int(trace.layers[index]),
        num_tokens=len(rows),
        assignments=int(load.sum()),
        load=load,
        entropy_bits=entropy_bits(load),
        variation=variation(load),
        unique=unique_experts(rows, trace.num_experts, batch),
        reuse=reuse,
        first_uses=first_uses,
    )


def entropy_bits(load: IntArray) -> float:
    """Return the entropy of the shares of a load, in bits; 0 for no load at all."""
    there = load[load > 0]
    if not len(there):
        return 0.0
    shares = there / there.sum()
    # The sum of one share of 1 is -0.0 otherwise.
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def variation(load: IntArray) -> float:
    """Return the coefficient of variation of a load: deviation (of all experts) over mean."""
    mean = float(load.mean())
    return float(load.std() / mean) if mean else 0.0


def unique_experts(rows: NDArray[np.int32], num_experts: int, batch: int) -> IntArray:
    """Return how many different experts each batch of consecutive (tokens, k) rows has."""
    batches = max(1, len(rows) // batch)
    unique = np.empty(batches, np.int64)
    at_a_time = max(1, MAP_BYTES // num_experts)
    for start in range(0, batches, at_a_time):
        end = min(start + at_a_time, batches)
        some = rows[start * batch : end * batch]
        token, slot = np.nonzero(some != NO_EXPERT)
        used = np.zeros((end - start, num_experts), np.bool_)
        used[token // batch, some[token, slot]] = True
        unique[start:end] = used.sum(axis=1)
    return unique


def expected_unique(num_experts: int, top_k: int, batch: int) -> float:
    """Return the expected number of different experts of ``batch`` tokens under uniform routing.

    E (1 - (1 - k/E)^B): each token has a given expert with probability k/E, with group limits too, since all
    groups are alike.
    """
    return float(num_experts * (1.0 - (1.0 - top_k / num_experts) ** batch))


def reuse_distances(rows: NDArray[np.int32], num_experts: int) -> tuple[IntArray, int]:
    """Return (E,) how many assignments have each reuse distance, and how many are first uses.

    The distance is that of :class:`LayerStatistics`: experts of the tokens strictly between count once each.
    """
    counts = np.zeros(num_experts, np.int64)
    first_uses = 0
    last = np.full(num_experts, -1, np.int64)
    for start in range(0, len(rows), TOKENS_AT_A_TIME):
        some = rows[start : start + TOKENS_AT_A_TIME]
        token, slot = np.nonzero(some != NO_EXPERT)
        expert = some[token, slot]
        # before[t]: each expert's last use before token t of these.
        before = np.empty((len(some) + 1, num_experts), np.int64)
        before[0] = last
        before[1:] = -1
        before[token + 1, expert] = start + token
        np.maximum.accumulate(before, axis=0, out=before)
        last = before[-1].copy()
        previous = before[token, expert]
        again = previous >= 0
        first_uses += int((~again).sum())
        # Sorted, the experts used later than one are those behind its place.
        ordered = np.sort(before[:-1], axis=1)
        later = _used_later(ordered, token[again], previous[again])
        counts += np.bincount(later, minlength=num_experts)
    return counts, first_uses


def _used_later(ordered: IntArray, token: IntArray, previous: IntArray) -> IntArray:
    """Return how many values of row ``token`` of ``ordered``, ascending, are above ``previous``."""
    # Rows are made one ascending list by an offset that no value reaches.
    num_rows, width = ordered.shape
    stride = int(ordered.max()) + 2
    flat = (ordered + 1 + stride * np.arange(num_rows)[:, None]).ravel()
    place = np.searchsorted(flat, previous + 1 + stride * token, side="right")
    later: IntArray = (token + 1) * width - place
    return later


def percentile(counts: IntArray, share: float) -> int | None:
    """Return the smallest distance that at least ``share`` of the counted ones do not exceed."""
    total = int(counts.sum())
    if not total:
        return None
    return int(np.searchsorted(np.cumsum(counts), share * total))


def as_json(found: LayerStatistics, num_experts: int) -> dict[str, object]:
    """Return a layer's statistics for a report."""
    mean_load = found.assignments / num_experts
    distances = np.arange(num_experts)
    reuses = int(found.reuse.sum())
    return {
        "layer": found.layer,
        "tokens": found.num_tokens,
        "assignments": found.assignments,
        "load": found.load.tolist(),
        "experts_used": int((found.load > 0).sum()),
        "max_over_mean": float(found.load.max() / mean_load) if mean_load else None,
        "entropy_bits": found.entropy_bits,
        "coefficient_of_variation": found.variation,
        "unique_experts": {
            "batches": len(found.unique),
            "mean": float(found.unique.mean()),
            "min": int(found.unique.min()),
            "max": int(found.unique.max()),
        },
        "reuse_distance": {
            "first_uses": found.first_uses,
            "reuses": reuses,
            "mean": float((found.reuse * distances).sum() / reuses) if reuses else None,
            "median": percentile(found.reuse, 0.5),
            "p90": percentile(found.reuse, 0.9),
            "max": int(np.flatnonzero(found.reuse)[-1]) if reuses else None,
            "counts": found.reuse.tolist(),
        },
    }
