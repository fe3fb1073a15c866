"""When the combiner transfers each beat: a recurrence over transfers, derived from ``rtl.combine``.

Exact, as equal arrays of handshake cycles, for any arrivals at both inputs and any ready pattern of
the output (``tests/test_combine.py``), as long as the environment keeps the block's contract.

The recurrence, max-plus over transfers::

    i[n]      = max(arrival[n], i[n-1] + 1, accept[n-2] + 1)         two-beat register
    accept[n] = max(i[n] + 1, accept[n-1] + 1, accept[same sums before] + 4)
    full[t]   = max(accept[last beats of token t]) + 8               its sums are written
    queue[t]  = max(i_expect[t] + 1, queue[t-1] + 1, read[last of t-2])
    take[t]   = max(queue[t] + 1, read[last of t-1])
    read[b]   = max(take[t] + 1, full[t], read[b-1] + 1, enter[b-1])
    enter[b]  = max(read[b] + 1, o[b-2] + 1)                         two-beat register
    o[b]      = next ready cycle from max(enter[b] + 1, o[b-1] + 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from sim.streams import ALWAYS, Cycles, taken
from spec.errors import require
from spec.geometry import ACCUMULATE_DISTANCE

REGISTER_CYCLES = 1
"""Through a stream register."""
REGISTER_BEATS = 2
"""Beats that a stream register holds."""
ADD_CYCLES = 8
"""From taking a beat to its sums being written, and seen: product 5, accumulator 3."""
READ_CYCLES = 1
"""From the read of sums to their beat."""
QUEUE_CYCLES = 2
"""Through the queue of announced tokens: RAM 1, output register 1."""
TAKE_CYCLES = 1
"""From the queue to the earliest read of the token's sums: its count is read."""

LATENCY = REGISTER_CYCLES + ADD_CYCLES + READ_CYCLES + REGISTER_CYCLES
"""From the last beat of a token's last contribution to its first beat at ``o``."""
EXPECT_LATENCY = QUEUE_CYCLES + TAKE_CYCLES + READ_CYCLES + REGISTER_CYCLES
"""From ``i_expect`` to the token's first beat at ``o``, if its contributions are in."""
FREED_LATENCY = 1
"""From a token's last beat at ``o`` to ``freed``."""


@dataclass(frozen=True)
class CombineCycles:
    """Handshake cycles of each stream; cycle 0 is the first clock edge after reset.

    Attributes
    ----------
    i : (beats,) int64
    i_expect : (tokens,) int64
    o : (tokens * words,) int64
    freed : (tokens,) int64, the pulse of each token.
    """

    i: Cycles
    i_expect: Cycles
    o: Cycles
    freed: Cycles


def combine_cycles(
    beat_tokens: ArrayLike,
    arrivals: ArrayLike,
    expect_arrivals: ArrayLike,
    *,
    num_slots: int,
    words: int,
    ready: Cycles = ALWAYS,
) -> CombineCycles:
    """Return the handshake cycles of every stream of the combiner.

    Parameters
    ----------
    beat_tokens : (beats,) token (numbered from 0) of each beat of ``i``; each token's beats go through
        its words again and again.
    arrivals, expect_arrivals : (beats,), (tokens,) cycle from which each beat is offered.
    num_slots, words : as in the combiner's configuration.
    ready : readiness of ``o``, from :func:`sim.streams.next_ready`.

    Raises
    ------
    spec.errors.InputError : shapes that do not fit each other.
    """
    tokens = np.asarray(beat_tokens, dtype=np.int64)
    beats = np.asarray(arrivals, dtype=np.int64)
    expects = np.asarray(expect_arrivals, dtype=np.int64)
    require(
        beats.shape == tokens.shape,
        f"must have one cycle for each of {tokens.size} beats, not shape {beats.shape}",
        key="arrivals",
    )
    per_token = np.bincount(tokens, minlength=expects.size)
    require(
        per_token.size == expects.size and not np.any(per_token % words),
        f"must give each of {expects.size} tokens whole contributions of {words} beats",
        key="beat_tokens",
    )
    i, full = _add(tokens, beats, expects.size, num_slots, words)
    i_expect, o = _emit(full, expects, num_slots, words, ready)
    return CombineCycles(i=i, i_expect=i_expect, o=o, freed=o[words - 1 :: words] + FREED_LATENCY)


@njit(cache=True)
def _add(
    tokens: Cycles, arrivals: Cycles, num_tokens: int, num_slots: int, words: int
) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i``, and when each token's sums are complete (0 without contributions)."""
    never = -(1 << 40)
    i = np.empty(tokens.size, np.int64)
    full = np.zeros(num_tokens, np.int64)
    word = np.zeros(num_tokens, np.int64)
    touched = np.full((num_slots, words), never)
    entered = accept = accept_before = np.int64(never)
    for n in range(tokens.size):
        token = tokens[n]
        slot = token % num_slots
        entered = max(arrivals[n], entered + 1, accept_before + 1, np.int64(0))
        i[n] = entered
        accept_before = accept
        accept = max(
            entered + REGISTER_CYCLES, accept + 1, touched[slot, word[token]] + ACCUMULATE_DISTANCE
        )
        touched[slot, word[token]] = accept
        word[token] += 1
        if word[token] == words:
            word[token] = 0
            full[token] = accept + ADD_CYCLES
    return i, full


@njit(cache=True)
def _emit(
    full: Cycles, arrivals: Cycles, num_slots: int, words: int, ready: Cycles
) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i_expect`` and ``o``."""
    never = -(1 << 40)
    i_expect = np.empty(full.size, np.int64)
    o = np.empty(full.size * words, np.int64)
    queue = np.empty(full.size, np.int64)  # a token goes from the queue's RAM to its output register
    last_in = take = read = enter = np.int64(never)
    for token in range(full.size):
        last_in = max(arrivals[token], last_in + 1, np.int64(0))
        if token >= num_slots:
            last_in = max(last_in, queue[token - num_slots] + 1)
        i_expect[token] = last_in
        # The output register is free when the token before goes on to the emitter.
        queue[token] = max(last_in + 1, take)
        if token:
            queue[token] = max(queue[token], queue[token - 1] + 1)
        take = max(queue[token] + QUEUE_CYCLES - 1, read)
        read = max(take + TAKE_CYCLES, full[token])
        for word in range(words):
            beat = token * words + word
            if word:
                read += 1
            read = max(read, enter)
            enter = read + READ_CYCLES
            if beat >= REGISTER_BEATS:
                enter = max(enter, o[beat - REGISTER_BEATS] + 1)
            shown = enter + REGISTER_CYCLES
            if beat:
                shown = max(shown, o[beat - 1] + 1)
            o[beat] = taken(shown, ready)
    return i_expect, o
