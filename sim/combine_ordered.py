"""When the combiner that adds in the order of ranks transfers each beat: a recurrence over transfers.

Derived from ``rtl.combine_ordered``. Exact, as equal arrays of handshake cycles, for any arrivals at both
inputs and any ready pattern of the output (``tests/test_combine_ordered.py``), as long as the environment
keeps the block's contract.

The recurrence, max-plus over transfers and over groups of ``ACCUMULATE_DISTANCE`` words::

    i[n]        = max(arrival[n], i[n-1] + 1)
    i_expect[t] = max(arrival[t], i_expect[t-1] + 1)
    begin[g]    = max(begin[g-1] + cycles[g-1], o[words before g - 13] + 1), and for a token's first one
                  max(i[last beats of token t]) + 3, i_expect[t] + 3
    cycles[g]   = 4 * max(1, contributions of its token)
    o[b]        = next ready cycle from max(o[b-1] + 1, begin[g] + cycles[g] - 4 + place in g + 11)

The queue of announced tokens has room for all that the contract allows; ``i`` is always taken.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from sim.combine import FREED_LATENCY, CombineCycles
from sim.compiled import compiled
from sim.streams import ALWAYS, Cycles, Spans, taken
from spec.errors import require
from spec.geometry import ACCUMULATE_DISTANCE

STORE_CYCLES = 3
"""From a contribution's last beat to its token being complete: register 1, count read 1 and written 1."""
ANNOUNCE_CYCLES = 3
"""From ``i_expect`` to the earliest read of the token's words: queue 2, its count is read 1."""
RESULT_CYCLES = 11
"""From the read of a word's last rank to its beat: RAM 1, product 5, sum 3, queue 2."""
ROOM = 16
"""Results on their way, from the read to the output."""

LATENCY = STORE_CYCLES + RESULT_CYCLES
"""From the last beat of a token's only contribution to its first beat at ``o``."""
EXPECT_LATENCY = ANNOUNCE_CYCLES + RESULT_CYCLES
"""From ``i_expect`` to the token's first beat at ``o``, if its contributions (one or none) are in."""


def ordered_cycles(
    beat_tokens: ArrayLike,
    beat_last: ArrayLike,
    arrivals: ArrayLike,
    expect_arrivals: ArrayLike,
    *,
    words: int,
    ready: Spans = ALWAYS,
) -> CombineCycles:
    """Return the handshake cycles of every stream of the combiner.

    Parameters
    ----------
    beat_tokens : (beats,) token (numbered from 0) of each beat of ``i``.
    beat_last : (beats,) bool, the beat is the last one of its contribution.
    arrivals, expect_arrivals : (beats,), (tokens,) cycle from which each beat is offered.
    words : as in the combiner's configuration.
    ready : readiness of ``o``, from :func:`sim.streams.readiness`.

    Raises
    ------
    spec.errors.InputError : shapes that do not fit each other.
    """
    tokens = np.asarray(beat_tokens, dtype=np.int64)
    last = np.asarray(beat_last, dtype=np.bool_)
    beats = np.asarray(arrivals, dtype=np.int64)
    expects = np.asarray(expect_arrivals, dtype=np.int64)
    for key, values in (("arrivals", beats), ("beat_last", last)):
        require(
            values.shape == tokens.shape,
            f"must have one value for each of {tokens.size} beats, not shape {values.shape}",
            key=key,
        )
    per_token = np.bincount(tokens, minlength=expects.size)
    counts = np.bincount(tokens[last], minlength=expects.size)
    require(
        per_token.size == expects.size and np.array_equal(per_token, counts * words),
        f"must give each of {expects.size} tokens whole contributions of {words} beats",
        key="beat_tokens",
    )
    i = _one_per_cycle(beats)
    i_expect = _one_per_cycle(expects)
    complete = np.zeros(expects.size, np.int64)
    np.maximum.at(complete, tokens[last], i[last] + STORE_CYCLES)
    o = _read(np.maximum(complete, i_expect + ANNOUNCE_CYCLES), counts, words, ready)
    return CombineCycles(i=i, i_expect=i_expect, o=o, freed=o[words - 1 :: words] + FREED_LATENCY)


def _one_per_cycle(arrivals: Cycles) -> Cycles:
    """Return when beats are taken by what is always ready."""
    place = np.arange(arrivals.size)
    cycles: Cycles = np.maximum.accumulate(np.maximum(arrivals, 0) - place) + place
    return cycles


@njit(cache=True)
def _read(begins: Cycles, counts: NDArray[np.int64], words: int, ready: Spans) -> Cycles:
    """Return the cycles of ``o``; ``begins``: first cycle in which each token's words may be read."""
    o = np.empty(counts.size * words, np.int64)
    free = np.int64(0)
    for token in range(counts.size):
        free = read_token(token, max(free, begins[token]), counts[token], words, ready, o)
    return o


@compiled
def read_token(token: int, begin: int, contributions: int, words: int, ready: Spans, o: Cycles) -> int:
    """Fill the cycles of ``o`` of a token read from ``begin`` on; return when the next one may be read."""
    ranks = max(contributions, 1)
    for word in range(0, words, ACCUMULATE_DISTANCE):
        first = token * words + word
        over = first - (ROOM - ACCUMULATE_DISTANCE) - 1
        if over >= 0:
            begin = max(begin, o[over] + 1)
        begin += (ranks - 1) * ACCUMULATE_DISTANCE
        for n in range(first, token * words + min(word + ACCUMULATE_DISTANCE, words)):
            shown = begin + n - first + RESULT_CYCLES
            o[n] = taken(max(shown, o[n - 1] + 1) if n else shown, ready)
        begin += ACCUMULATE_DISTANCE
    return begin
