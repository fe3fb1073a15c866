"""When the combiner transfers each beat: a recurrence over transfers, derived from ``rtl.combine``.

Exact, as equal arrays of handshake cycles, for any arrivals at both inputs and any ready pattern of
the output (``tests/test_combine.py``), as long as the environment keeps the block's contract.

The recurrence, max-plus over transfers::

    i[n]        = max(arrival[n], i[n-1] + 1, accept[n-2] + 1)         two-beat register
    accept[n]   = max(i[n] + 1, accept[n-1] + 1, accept[same sums before] + 4)
    written[t]  = max(accept[last beats of token t]) + 8
    i_expect[t] = max(arrival[t], i_expect[t-1] + 1)
    o[b]        = next ready cycle from max(o[b-1] + 1, written[t] + 2, i_expect[t] + 5)

An output that stalls fills what lies before it (two beats of the register, one of the RAM), but
never leaves a gap behind, so nothing of that shows at the ports; the queue of announced tokens has
room for all that the contract allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from sim.compiled import compiled
from sim.streams import ALWAYS, NEVER, Cycles, Spans, later, taken
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
    ready: Spans = ALWAYS,
) -> CombineCycles:
    """Return the handshake cycles of every stream of the combiner.

    Parameters
    ----------
    beat_tokens : (beats,) token (numbered from 0) of each beat of ``i``; each token's beats go through
        its words again and again.
    arrivals, expect_arrivals : (beats,), (tokens,) cycle from which each beat is offered.
    num_slots, words : as in the combiner's configuration.
    ready : readiness of ``o``, from :func:`sim.streams.readiness`.

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
    i, written = _add(tokens, beats, expects.size, num_slots, words)
    i_expect, o = _emit(written, expects, words, ready)
    return CombineCycles(i=i, i_expect=i_expect, o=o, freed=o[words - 1 :: words] + FREED_LATENCY)


def token_outputs(
    last_beats: Cycles,
    expect_arrivals: Cycles,
    words: int,
    *,
    ready: Spans = ALWAYS,
    after: int = -1,
    expect_after: int = -1,
) -> tuple[Cycles, Cycles, Cycles]:
    """Return the cycles of ``i_expect`` and of each token's first and last beats at ``o``.

    The other beats take every ready cycle between these two. For beats of the same sums that are at least
    ``ACCUMULATE_DISTANCE`` apart, so that each beat is accepted the cycle after it came.

    Parameters
    ----------
    last_beats : (tokens,) cycle of the last beat of each token's last contribution.
    expect_arrivals : (tokens,) cycle from which each token's announcement is offered.
    ready : readiness of ``o``.
    after, expect_after : cycles of the beats at ``o`` and ``i_expect`` before these tokens'.
    """
    i_expect, first, last = (np.empty_like(last_beats) for _ in range(3))
    _token_outputs(last_beats, expect_arrivals, words, ready, after, expect_after, i_expect, first, last)
    return i_expect, first, last


@njit(cache=True)
def _token_outputs(
    last_beats: Cycles,
    expect_arrivals: Cycles,
    words: int,
    ready: Spans,
    after: int,
    expect_after: int,
    i_expect: Cycles,
    first: Cycles,
    last: Cycles,
) -> None:
    """Fill the last three."""
    for token in range(last_beats.size):
        expect_after = max(expect_arrivals[token], expect_after + 1)
        i_expect[token] = expect_after
        written = last_beats[token] + REGISTER_CYCLES + ADD_CYCLES
        shown = max(written + READ_CYCLES + REGISTER_CYCLES, expect_after + EXPECT_LATENCY)
        first[token] = taken(max(shown, after + 1), ready)
        after = later(first[token], words - 1, ready)
        last[token] = after


class Adder(NamedTuple):
    """What beats have done to the sums.

    Attributes
    ----------
    at : when the last beat was taken, when it and the one before were accepted.
    touched : (slots, words) when each sum was last read.
    word : (tokens,) next word of each token's contribution.
    written : (tokens,) when each token's last sums are written (0 without any).
    """

    at: Cycles
    touched: Cycles
    word: Cycles
    written: Cycles


@njit(cache=True)
def new_adder(num_tokens: int, num_slots: int, words: int) -> Adder:
    """Return an adder that has had no beat."""
    none = np.zeros(num_tokens, np.int64)
    return Adder(np.full(3, NEVER), np.full((num_slots, words), NEVER), none, none.copy())


@compiled
def add(adder: Adder, token: int, arrival: int) -> int:
    """Return when the next beat, of this token and offered from ``arrival`` on, is taken."""
    num_slots, words = adder.touched.shape
    slot, word = token % num_slots, adder.word[token]
    entered, accept, accept_before = adder.at
    entered = max(np.int64(arrival), entered + 1, accept_before + 1, np.int64(0))
    accept_before = accept
    accept = max(entered + REGISTER_CYCLES, accept + 1, adder.touched[slot, word] + ACCUMULATE_DISTANCE)
    adder.at[0], adder.at[1], adder.at[2] = entered, accept, accept_before
    adder.touched[slot, word] = accept
    adder.word[token] += 1
    if adder.word[token] == words:
        adder.word[token] = 0
        adder.written[token] = accept + ADD_CYCLES
    return int(entered)


@njit(cache=True)
def _add(
    tokens: Cycles, arrivals: Cycles, num_tokens: int, num_slots: int, words: int
) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i``, and when each token's last sums are written (0 without any)."""
    i = np.empty(tokens.size, np.int64)
    adder = new_adder(num_tokens, num_slots, words)
    for n in range(tokens.size):
        i[n] = add(adder, tokens[n], arrivals[n])
    return i, adder.written


@njit(cache=True)
def _emit(written: Cycles, arrivals: Cycles, words: int, ready: Spans) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i_expect`` and ``o``."""
    i_expect = np.empty(written.size, np.int64)
    o = np.empty(written.size * words, np.int64)
    for token in range(written.size):
        i_expect[token] = max(arrivals[token], i_expect[token - 1] + 1 if token else 0)
        emit_token(token, written[token], i_expect[token], words, ready, o)
    return i_expect, o


@compiled
def emit_token(token: int, written: int, expected: int, words: int, ready: Spans, o: Cycles) -> None:
    """Fill the cycles of ``o`` of a token that was announced in cycle ``expected``."""
    shown = max(written + READ_CYCLES + REGISTER_CYCLES, expected + EXPECT_LATENCY)
    for n in range(token * words, (token + 1) * words):
        o[n] = taken(max(shown, o[n - 1] + 1 if n else 0), ready)
