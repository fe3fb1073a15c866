"""Cycles of a stream's transfers, sets of cycles, readiness: shared by the block models.

A cycle is an int64; arrays of handshake cycles are what models return. A set of cycles is *spans*:
an ``(n, 2)`` array of half-open intervals, sorted, neither overlapping nor touching; its cost is that
of events, not of cycles. A sink's readiness is a function of the cycle alone, given as the spans in
which it is *not* ready (:func:`readiness`).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.compiled import compiled

Cycles = NDArray[np.int64]
Spans = NDArray[np.int64]
NONE: Spans = np.zeros((0, 2), dtype=np.int64)
"""No cycle."""
ALWAYS: Spans = NONE
"""Readiness of a sink that is always ready."""
NEVER = -(1 << 40)
"""A cycle before all others: when something happened that did not."""


def readiness(pattern: NDArray[np.bool_] | None) -> Spans:
    """Return the readiness of a sink that is ready in the cycles in which ``pattern`` is true.

    ``None`` means always. The pattern must end ready; beyond its end the sink stays ready.
    """
    return NONE if pattern is None else spans_of(np.flatnonzero(~pattern))


def spans_of(cycles: Cycles) -> Spans:
    """Return ascending cycles as spans."""
    return union(cycles, cycles + 1)


def union(starts: Cycles, ends: Cycles) -> Spans:
    """Return the union of the half-open intervals ``starts..ends - 1``, in any order; some may be empty."""
    starts, ends = (np.ascontiguousarray(cycles, dtype=np.int64) for cycles in (starts, ends))
    if (starts[1:] < starts[:-1]).any():
        # Mostly a few ascending streams one behind the other, which a stable sort merges.
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
    spans: Spans = _union(starts, ends)
    return spans


@njit(cache=True)
def _union(starts: Cycles, ends: Cycles) -> Spans:
    """Return the same of intervals in ascending order."""
    spans = np.empty((len(starts), 2), dtype=np.int64)
    last = -1
    for n in range(len(starts)):
        if ends[n] <= starts[n]:
            continue
        if last >= 0 and starts[n] <= spans[last, 1]:
            spans[last, 1] = max(spans[last, 1], ends[n])
        else:
            last += 1
            spans[last, 0], spans[last, 1] = starts[n], ends[n]
    return spans[: last + 1].copy()


def size(spans: Spans) -> int:
    """Return the number of cycles of a set."""
    return int((spans[:, 1] - spans[:, 0]).sum())


@njit(cache=True)
def common(a: Spans, b: Spans) -> int:
    """Return the number of cycles that two sets have in common."""
    total = n = 0
    for row in range(len(a)):
        while n < len(b) and b[n, 1] <= a[row, 0]:
            n += 1
        # The last of these may reach into the next span of a.
        other = n
        while other < len(b) and b[other, 0] < a[row, 1]:
            total += min(a[row, 1], b[other, 1]) - max(a[row, 0], b[other, 0])
            other += 1
    return total


def without(a: Spans, b: Spans) -> Spans:
    """Return the cycles of a set that are not in another one."""
    if not len(a) or not len(b):
        return a
    # What is between two spans of a, before and after them, or in b, leaves these.
    beyond = np.concatenate([a, b])
    lowest, highest = beyond[:, 0].min() - 1, beyond[:, 1].max() + 1
    outside = union(
        np.concatenate([[lowest], a[:, 1], b[:, 0]]), np.concatenate([a[:, 0], [highest], b[:, 1]])
    )
    return np.stack([outside[:-1, 1], outside[1:, 0]], axis=1)


@compiled
def taken(cycle: int, ready: Spans) -> int:
    """Return the cycle in which a beat that is valid from ``cycle`` on is taken."""
    if len(ready) == 0 or cycle >= ready[-1, 1]:
        return cycle
    span = _ending_after(cycle, ready)
    return int(ready[span, 1]) if ready[span, 0] <= cycle else cycle


@compiled
def later(cycle: int, beats: int, ready: Spans) -> int:
    """Return the cycle of the beat that is ``beats`` after one taken in ``cycle``; none waits to be valid."""
    end = cycle + beats
    span = _ending_after(cycle, ready)
    while span < len(ready) and ready[span, 0] <= end:
        end += ready[span, 1] - ready[span, 0]
        span += 1
    return end


@compiled
def _ending_after(cycle: int, spans: Spans) -> int:
    """Return the first span that ends after a cycle."""
    low, high = 0, len(spans)
    while low < high:
        middle = (low + high) // 2
        if spans[middle, 1] <= cycle:
            low = middle + 1
        else:
            high = middle
    return low


Trains = NDArray[np.int64]
"""Rows (start, length, period, count): ``count`` times ``length`` cycles, ``period`` apart."""


def expanded(trains: Trains) -> Cycles:
    """Return the cycles of all trains, ascending."""
    start, length, period, count = trains.T
    spans = start.repeat(count) + period.repeat(count) * _counters(count)
    lengths = length.repeat(count)
    cycles: Cycles = np.sort(spans.repeat(lengths) + _counters(lengths))
    return cycles


def train_spans(trains: Trains, closed: int = 0) -> Spans:
    """Return the cycles of all trains as spans; gaps of a train of ``closed`` cycles at most are closed."""
    start, length, period, count = trains.T
    whole = period - length <= closed
    length = np.where(whole, (count - 1) * period + length, length)
    count = np.where(whole, np.minimum(count, 1), count)
    starts = start.repeat(count) + period.repeat(count) * _counters(count)
    return union(starts, starts + length.repeat(count))


def without_gaps(spans: Spans, closed: int) -> Spans:
    """Return a set of cycles with those between its spans where they are ``closed`` at most."""
    if not len(spans):
        return spans
    apart = spans[1:, 0] - spans[:-1, 1] > closed
    starts = np.concatenate([spans[:1, 0], spans[1:, 0][apart]])
    ends = np.concatenate([spans[:-1, 1][apart], spans[-1:, 1]])
    return np.stack([starts, ends], axis=1)


def _counters(counts: Cycles) -> Cycles:
    """Return 0..count - 1 for each count, one after the other."""
    counter: Cycles = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return counter


@njit(cache=True)
def common_with_trains(trains: Trains, spans: Spans) -> int:
    """Return how many cycles of the trains are in a set."""
    total = 0
    for row in range(len(trains)):
        start, length, period, count = trains[row, 0], trains[row, 1], trains[row, 2], trains[row, 3]
        end = start + (count - 1) * period + length
        span = _ending_after(start, spans)
        while span < len(spans) and spans[span, 0] < end:
            for edge, sign in ((min(spans[span, 1], end), 1), (max(spans[span, 0], start), -1)):
                whole = (edge - start) // period
                rest = edge - start - whole * period
                total += sign * (whole * length + min(rest, length))
            span += 1
    return total
