"""Sets of cycles as spans and trains, against sets of cycles."""

from __future__ import annotations

import numpy as np
import pytest

from sim.streams import (
    ALWAYS,
    NONE,
    common,
    common_with_trains,
    expanded,
    later,
    readiness,
    size,
    spans_of,
    taken,
    union,
    without,
)


def cycles_in(spans: np.ndarray) -> list[int]:
    """Return the cycles of spans, which must be sorted and must not touch."""
    assert spans.dtype == np.int64
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans[1:, 0] > spans[:-1, 1]).all()
    return [cycle for start, end in spans.tolist() for cycle in range(start, end)]


def random_intervals(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    starts = rng.integers(0, 200, int(rng.integers(0, 30)))
    return starts, starts + rng.integers(-2, 12, starts.size)


@pytest.mark.parametrize("seed", range(50))
def test_spans_are_sets_of_cycles(seed):
    rng = np.random.default_rng(seed)
    (a_starts, a_ends), (b_starts, b_ends) = random_intervals(rng), random_intervals(rng)
    a, b = union(a_starts, a_ends), union(b_starts, b_ends)
    want = {n for start, end in zip(a_starts, a_ends, strict=True) for n in range(start, end)}
    other = set(cycles_in(b))
    assert cycles_in(a) == sorted(want)
    assert size(a) == len(want)
    assert common(a, b) == len(want & other)
    assert cycles_in(without(a, b)) == sorted(want - other)
    np.testing.assert_array_equal(spans_of(np.array(sorted(want), dtype=np.int64)), a)


@pytest.mark.parametrize("seed", range(50))
def test_readiness_is_the_pattern(seed):
    rng = np.random.default_rng(seed)
    pattern = np.append(rng.random(int(rng.integers(0, 60))) < rng.random(), True)
    ready = readiness(pattern)
    for cycle in range(pattern.size + 3):
        open_from = [*(cycle + np.flatnonzero(pattern[cycle:])), *range(max(cycle, pattern.size), 99)]
        assert taken(cycle, ready) == open_from[0]
        assert [later(open_from[0], beats, ready) for beats in range(9)] == open_from[:9]


def test_nothing_waits_for_a_sink_that_is_always_ready():
    np.testing.assert_array_equal(readiness(None), ALWAYS)
    np.testing.assert_array_equal(readiness(np.ones(9, dtype=bool)), ALWAYS)
    assert taken(5, ALWAYS) == 5
    assert size(NONE) == common(NONE, NONE) == 0


@pytest.mark.parametrize("seed", range(50))
def test_trains_are_sets_of_cycles(seed):
    """Trains may be interleaved."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5, 6)
    period = length + rng.integers(0, 20, 6)
    trains = np.stack([rng.integers(0, 100, 6), length, period, rng.integers(1, 9, 6)], axis=1)
    want = [
        start + n * period + offset
        for start, length, period, count in trains.tolist()
        for n in range(count)
        for offset in range(length)
    ]
    assert expanded(trains).tolist() == sorted(want)
    spans = union(*random_intervals(rng))
    inside = set(cycles_in(spans))
    assert common_with_trains(trains, spans) == sum(cycle in inside for cycle in want)
