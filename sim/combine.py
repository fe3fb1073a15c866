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

With deep pipelines, where ``leave[n]`` is when a beat leaves the register; it is ``accept[n]`` unless a token
has fewer words than the distance of 11::

    i[n]        = max(arrival[n], i[n-1] + 1, leave[n-2] + 1)
    leave[n]    = max(i[n] + 1, leave[n-1] + 1, accept[n-1])
    accept[n]   = max(leave[n] + 1, accept[n-1] + 1, accept[same sums before] + 11)
    written[t]  = max(accept[last beats of token t]) + 17
    complete[t] = max(written[t], i_expect[t] + 5, complete[t-1] + 4, read[last beat of t-1])
    read[b]     = max(read[b-1] + 1, complete[t] + 1, o[b-6] + 1)
    o[b]        = next ready cycle from max(o[b-1] + 1, read[b] + 5)

``complete`` is when a token goes from the place where it is checked to the one that is read. With 4 words and
more the next one is there in time and the output, stalled or not, leaves no gap, as above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from sim.compiled import compiled
from sim.streams import ALWAYS, NEVER, Cycles, Spans, later, taken
from spec.design import Pipeline
from spec.errors import require
from spec.geometry import ACCUMULATE_DISTANCE, DEEP_ACCUMULATE_DISTANCE

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

DEEP_ADD_CYCLES = 17
"""The same with deep pipelines: product 10, accumulator 7."""
DEEP_DISTANCE = DEEP_ACCUMULATE_DISTANCE + 2
"""Between two beats for the same sums: one register more on the way to the addition than elsewhere, and no
row is read in the cycle in which it is written."""
SPACE_CYCLES = 1
"""Through the place where beats wait for the sums of those before them, where that can be."""
CHECK_CYCLES = 4
"""From a token in the queue to its first read, and from a token to the next: taken 1, count read 1,
compared 1, passed on 1."""
SEND_CYCLES = 5
"""From the read of sums to their beat: RAM 1, registers 2, rounding 1, register 1."""
SENT_BEATS = 6
"""Beats between the read and the output: one of each, and a second one of the last."""


def is_spaced(pipeline: Pipeline, words: int) -> bool:
    """Return whether beats have a place to wait for the sums of those before them."""
    return pipeline is Pipeline.DEEP and words < DEEP_DISTANCE


def latency(pipeline: Pipeline, words: int) -> int:
    """Return the cycles from the last beat of a token's last contribution to its first beat at ``o``."""
    if pipeline is not Pipeline.DEEP:
        return LATENCY
    spaces = SPACE_CYCLES * is_spaced(pipeline, words)
    return REGISTER_CYCLES + spaces + DEEP_ADD_CYCLES + READ_CYCLES + SEND_CYCLES


def expect_latency(pipeline: Pipeline) -> int:
    """Return the cycles from ``i_expect`` to the token's first beat at ``o``, if its contributions are in."""
    return QUEUE_CYCLES + CHECK_CYCLES + SEND_CYCLES if pipeline is Pipeline.DEEP else EXPECT_LATENCY


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
    pipeline: Pipeline = Pipeline.SHORT,
) -> CombineCycles:
    """Return the handshake cycles of every stream of the combiner.

    Parameters
    ----------
    beat_tokens : (beats,) token (numbered from 0) of each beat of ``i``; each token's beats go through
        its words again and again.
    arrivals, expect_arrivals : (beats,), (tokens,) cycle from which each beat is offered.
    num_slots, words : as in the combiner's configuration.
    ready : readiness of ``o``, from :func:`sim.streams.readiness`.
    pipeline : of the combiner's arithmetic.

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
    deep = pipeline is Pipeline.DEEP
    i, written = _add(tokens, beats, expects.size, num_slots, words, deep)
    i_expect, o = (_send if deep else _emit)(written, expects, words, ready)
    return CombineCycles(i=i, i_expect=i_expect, o=o, freed=o[words - 1 :: words] + FREED_LATENCY)


class Sender(NamedTuple):
    """How far the combiner is with sending tokens.

    Attributes
    ----------
    at : the last token's ``i_expect``; if deep, when it was passed on to be read, and its last read.
    sent : the last SENT_BEATS beats at ``o``.
    """

    at: Cycles
    sent: Cycles


@njit(cache=True)
def new_sender() -> Sender:
    """Return a sender that has had no token."""
    sender = Sender(np.full(3, NEVER), np.full(SENT_BEATS, NEVER))
    sender.at[0] = sender.sent[-1] = -1
    return sender


def token_outputs(
    last_beats: Cycles,
    expect_arrivals: Cycles,
    words: int,
    sender: Sender,
    *,
    ready: Spans = ALWAYS,
    pipeline: Pipeline = Pipeline.SHORT,
) -> tuple[Cycles, Cycles, Cycles]:
    """Return the cycles of ``i_expect`` and of each token's first and last beats at ``o``.

    The other beats take every ready cycle between these two. For beats of the same sums that are at least
    ``ACCUMULATE_DISTANCE`` (if deep ``DEEP_DISTANCE``) apart, so that no beat waits for sums.

    Parameters
    ----------
    last_beats : (tokens,) cycle of the last beat of each token's last contribution.
    expect_arrivals : (tokens,) cycle from which each token's announcement is offered.
    sender : from :func:`new_sender`; goes on with these tokens.
    ready : readiness of ``o``.
    pipeline : of the combiner's arithmetic.
    """
    i_expect, first, last = (np.empty_like(last_beats) for _ in range(3))
    waits = latency(pipeline, words), expect_latency(pipeline)
    gaps = pipeline is Pipeline.DEEP and words < CHECK_CYCLES
    _token_outputs(last_beats, expect_arrivals, words, sender, ready, waits, gaps, i_expect, first, last)
    return i_expect, first, last


@njit(cache=True)
def _token_outputs(
    last_beats: Cycles,
    expect_arrivals: Cycles,
    words: int,
    sender: Sender,
    ready: Spans,
    waits: tuple[int, int],
    gaps: bool,
    i_expect: Cycles,
    first: Cycles,
    last: Cycles,
) -> None:
    """Fill the last three."""
    beats = np.empty(words, np.int64)
    for token in range(last_beats.size):
        expected = max(expect_arrivals[token], sender.at[0] + 1)
        sender.at[0] = i_expect[token] = expected
        if gaps:
            written = last_beats[token] + waits[0] - READ_CYCLES - SEND_CYCLES
            send_token(sender, written, expected, ready, beats)
            first[token], last[token] = beats[0], beats[-1]
        else:
            shown = max(last_beats[token] + waits[0], expected + waits[1])
            first[token] = taken(max(shown, sender.sent[-1] + 1), ready)
            sender.sent[-1] = last[token] = later(first[token], words - 1, ready)


@njit(cache=True)
def send_token(sender: Sender, written: int, expected: int, ready: Spans, beats: Cycles) -> None:
    """Fill the cycles of a token's ``beats`` at ``o``, with deep pipelines."""
    _, passed, read = sender.at
    checked = max(expected + QUEUE_CYCLES + CHECK_CYCLES - 1, passed + CHECK_CYCLES)
    passed = max(checked, written, read)
    sender.at[1] = read = passed
    for n in range(beats.size):
        read = max(read, sender.sent[0]) + 1
        beats[n] = taken(max(read + SEND_CYCLES, sender.sent[-1] + 1), ready)
        sender.sent[:-1] = sender.sent[1:]
        sender.sent[-1] = beats[n]
    sender.at[2] = read


class Adder(NamedTuple):
    """What beats have done to the sums.

    Attributes
    ----------
    at : when the last beat was taken, when it and the one before left the register, when it was accepted.
    touched : (slots, words) when each sum was last read.
    word : (tokens,) next word of each token's contribution.
    written : (tokens,) when each token's last sums are written (0 without any).
    deep : its pipelines are.
    """

    at: Cycles
    touched: Cycles
    word: Cycles
    written: Cycles
    deep: bool


@njit(cache=True)
def new_adder(num_tokens: int, num_slots: int, words: int, deep: bool = False) -> Adder:
    """Return an adder that has had no beat."""
    none = np.zeros(num_tokens, np.int64)
    return Adder(np.full(4, NEVER), np.full((num_slots, words), NEVER), none, none.copy(), deep)


@compiled
def add(adder: Adder, token: int, arrival: int) -> int:
    """Return when the next beat, of this token and offered from ``arrival`` on, is taken."""
    num_slots, words = adder.touched.shape
    slot, word = token % num_slots, adder.word[token]
    entered, left, left_before, accept = adder.at
    entered = max(np.int64(arrival), entered + 1, left_before + 1, np.int64(0))
    free = adder.touched[slot, word] + (DEEP_DISTANCE if adder.deep else ACCUMULATE_DISTANCE)
    left_before = left
    left = max(entered + REGISTER_CYCLES, left + 1)
    if adder.deep and words < DEEP_DISTANCE:
        left = max(left, accept)
        accept = max(left + SPACE_CYCLES, accept + 1, free)
    else:
        left = accept = max(left, free)
    adder.at[0], adder.at[1], adder.at[2], adder.at[3] = entered, left, left_before, accept
    adder.touched[slot, word] = accept
    adder.word[token] += 1
    if adder.word[token] == words:
        adder.word[token] = 0
        adder.written[token] = accept + (DEEP_ADD_CYCLES if adder.deep else ADD_CYCLES)
    return int(entered)


@njit(cache=True)
def _add(
    tokens: Cycles, arrivals: Cycles, num_tokens: int, num_slots: int, words: int, deep: bool
) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i``, and when each token's last sums are written (0 without any)."""
    i = np.empty(tokens.size, np.int64)
    adder = new_adder(num_tokens, num_slots, words, deep)
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


@njit(cache=True)
def _send(written: Cycles, arrivals: Cycles, words: int, ready: Spans) -> tuple[Cycles, Cycles]:
    """Return the cycles of ``i_expect`` and ``o`` with deep pipelines."""
    i_expect = np.empty(written.size, np.int64)
    o = np.empty(written.size * words, np.int64)
    sender = new_sender()
    for token in range(written.size):
        i_expect[token] = max(arrivals[token], i_expect[token - 1] + 1 if token else 0)
        send_token(sender, written[token], i_expect[token], ready, o[token * words : (token + 1) * words])
    return i_expect, o
