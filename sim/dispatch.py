"""When the dispatcher transfers each beat: a recurrence over transfers, derived from ``rtl.dispatch``.

Exact, as equal arrays of handshake cycles, for any arrivals at ``i`` and any ready patterns of
``o_expect`` and of every unit's output (``tests/test_dispatch.py``). Nothing of the hardware is left
out; ``capacity`` and ``placement`` act through the streams of :mod:`golden.dispatch_streams`.

The recurrence, max-plus over transfers (all constants below are registers between two stages)::

    i[n]      = max(arrival[n], i[n-1] + 1, write[n-1], drained[window - 2] + 1)
    write[n]  = max(i[n] + 1, room of the o_expect register if n ends its token)
    pick[q]   = max(write[close of its window] + 1, head[q-1], end of the window before + 1)
    head[q]   = max(pick[q] + 1, first[q-1])          read of head and tail
    first[q]  = max(head[q] + 1, entry[last of q-1])  read of the first entry
    entry[e]  = max(entry[e-1] + 1 or first[q] + 1, room of the unit's output register)
    drained   = entry[last of the window]             both windows closed: i waits for this

A stream register holds two beats: a beat enters at the earliest one cycle after the second beat
before it left, and leaves at the earliest one cycle after it entered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from golden.dispatch_streams import DispatchStreams
from sim.streams import ALWAYS, NEVER, Spans, taken
from spec.errors import require

IntArray = NDArray[np.int64]

REGISTER_CYCLES = 1
"""From entering a stream register to its output."""
REGISTER_BEATS = 2
"""Beats that a stream register holds."""
WRITE_CYCLES = 1
"""From a beat's transfer to its write into the queues (read of tail and count)."""
CLOSE_CYCLES = 1
"""From the write that closes a window to the earliest choice of a queue (state of the window)."""
PICK_CYCLES = 1
"""From the choice of a queue to the read of its head and tail (register of the choice)."""
HEAD_CYCLES = 1
"""From the read of head and tail to the read of the first entry (RAM)."""
ENTRY_CYCLES = 1
"""From the read of an entry to its beat (RAM); the next entry is read while the beat leaves."""
REOPEN_CYCLES = 1
"""From the last entry of a window (or its choice, if it has none) to room for a new window."""

EXPECT_LATENCY = WRITE_CYCLES + REGISTER_CYCLES
"""From a token's last beat to ``o_expect``."""
LATENCY = WRITE_CYCLES + CLOSE_CYCLES + PICK_CYCLES + HEAD_CYCLES + ENTRY_CYCLES + REGISTER_CYCLES
"""From the beat that closes a window to its first entry."""

WRITE, PICKED, HEAD, FIRST, LEAVE = range(5)
WALKER_TIMES = 5
"""What the walker remembers: the last write; the last queue's choice and reads; the last entry read."""


@dataclass(frozen=True)
class DispatchCycles:
    """Handshake cycles of each stream; cycle 0 is the first clock edge after reset.

    Attributes
    ----------
    i : (tokens * top_k,) int64
    o_expect : (tokens,) int64
    entries : (entries,) int64, transfers in order of service over all units.
    units : per unit, the cycles of its output: ``entries`` of that unit.
    """

    i: IntArray
    o_expect: IntArray
    entries: IntArray
    units: tuple[IntArray, ...]


def dispatch_cycles(
    streams: DispatchStreams,
    arrivals: ArrayLike,
    *,
    expect_ready: Spans = ALWAYS,
    unit_ready: list[Spans] | None = None,
) -> DispatchCycles:
    """Return the handshake cycles of every stream of the dispatcher.

    Parameters
    ----------
    streams : the beats, from :func:`golden.dispatch_streams.dispatch_streams`.
    arrivals : (tokens * top_k,) cycle from which each beat of ``i`` is offered.
    expect_ready, unit_ready : readiness of ``o_expect`` and of each unit's output, from
        :func:`sim.streams.readiness`.
    """
    num_tokens = streams.window.size
    num_units = streams.num_units
    beats = np.asarray(arrivals, dtype=np.int64)
    require(
        beats.shape == (num_tokens * streams.top_k,),
        f"must have one cycle for each of {num_tokens * streams.top_k} beats, not shape {beats.shape}",
        key="arrivals",
    )
    of_units = [ALWAYS] * num_units if unit_ready is None else unit_ready
    require(
        len(of_units) == num_units,
        f"must have a pattern for each of {num_units} units, not {len(of_units)}",
        key="unit_ready",
    )
    model = DispatchModel(streams, expect_ready, of_units)
    for window in range(streams.num_windows):
        model.fill(window, beats[model.assignments_of(window)])
        model.serve(window)
    units = tuple(model.entries[streams.of_unit(unit)] for unit in range(num_units))
    return DispatchCycles(i=model.i, o_expect=model.o_expect, entries=model.entries, units=units)


class DispatchModel:
    """The dispatcher's times, window by window: fill, then serve.

    Filling a window needs only the windows before the last one to be served, so a caller may find out
    in between when the outputs of the last one have room.

    Attributes
    ----------
    i, o_expect, entries : cycles as in :class:`DispatchCycles`.
    offered : (entries,) first cycle in which each entry is offered.
    """

    def __init__(
        self,
        streams: DispatchStreams,
        expect_ready: Spans = ALWAYS,
        unit_ready: list[Spans] | None = None,
    ) -> None:
        readies = [expect_ready, *(unit_ready or [ALWAYS] * streams.num_units)]
        windows = np.arange(streams.num_windows + 1)
        self.streams = streams
        self._window_tokens = np.searchsorted(streams.window, windows)
        self._window_entries = np.searchsorted(streams.entry_window, windows)
        self.i = np.empty(streams.window.size * streams.top_k, np.int64)
        self.o_expect = np.empty(streams.window.size, np.int64)
        self.entries = np.empty(streams.entry_unit.size, np.int64)
        self.offered = np.empty(streams.entry_unit.size, np.int64)
        self._readies = np.concatenate(readies)
        self._bounds = np.cumsum([0] + [len(ready) for ready in readies])
        self._walker = np.full(WALKER_TIMES, NEVER)
        self._left = np.full((streams.num_units, REGISTER_BEATS), NEVER)
        self._drained = np.full(streams.num_windows + 2, NEVER)

    def tokens_of(self, window: int) -> slice:
        """Return the tokens that belong to a window."""
        return slice(int(self._window_tokens[window]), int(self._window_tokens[window + 1]))

    def assignments_of(self, window: int) -> slice:
        """Return the beats of ``i`` that belong to a window."""
        tokens, top_k = self.tokens_of(window), self.streams.top_k
        return slice(tokens.start * top_k, tokens.stop * top_k)

    def entries_of(self, window: int) -> slice:
        """Return the entries that belong to a window."""
        return slice(int(self._window_entries[window]), int(self._window_entries[window + 1]))

    def room(self, window: int) -> int:
        """Return the first cycle in which an empty window can take the beats of this one."""
        return max(0, int(self._drained[window]) + REOPEN_CYCLES)

    def fill(self, window: int, arrivals: IntArray) -> None:
        """Take a window's beats, offered from these cycles on."""
        _fill(
            self.assignments_of(window).start,
            arrivals,
            self.room(window),
            self.streams.top_k,
            self._readies[: self._bounds[1]],
            self._walker,
            self.i,
            self.o_expect,
        )

    def serve(self, window: int, rooms: IntArray | None = None) -> None:
        """Give a filled window's entries, each not before its cycle in ``rooms``."""
        entries = self.entries_of(window)
        self._drained[window + 2] = _serve(
            entries.start,
            np.zeros(entries.stop - entries.start, np.int64) if rooms is None else rooms,
            self.streams.entry_unit,
            self.streams.entry_last,
            self._readies,
            self._bounds,
            self._walker,
            self._left,
            self.offered,
            self.entries,
        )

    def foresee(self, window: int) -> IntArray:
        """Return when a filled window's entries would be given if nothing held them up; serve none."""
        before = self._walker.copy(), self._left.copy()
        self.serve(window)
        self._walker, self._left = before
        return self.entries[self.entries_of(window)].copy()


@njit(cache=True)
def _fill(
    first: int,
    arrivals: IntArray,
    room: int,
    top_k: int,
    expect_ready: Spans,
    walker: IntArray,
    i: IntArray,
    o_expect: IntArray,
) -> None:
    """Fill ``i`` from beat ``first`` on, a token's first one, and ``o_expect``."""
    write = walker[WRITE]
    for n in range(first, first + arrivals.size):
        cycle = max(arrivals[n - first], write, room)
        i[n] = max(cycle, i[n - 1] + 1) if n else cycle
        write = i[n] + WRITE_CYCLES
        if (n + 1) % top_k == 0:
            token = n // top_k
            if token >= REGISTER_BEATS:
                write = max(write, o_expect[token - REGISTER_BEATS] + 1)
            shown = write + REGISTER_CYCLES
            if token:
                shown = max(shown, o_expect[token - 1] + 1)
            o_expect[token] = taken(shown, expect_ready)
    walker[WRITE] = write


@njit(cache=True)
def _serve(
    first: int,
    rooms: IntArray,
    entry_unit: IntArray,
    entry_last: NDArray[np.bool_],
    readies: Spans,
    bounds: IntArray,
    walker: IntArray,
    left: IntArray,
    offered: IntArray,
    entries: IntArray,
) -> int:
    """Fill ``offered`` and ``entries`` of a window; return when it is drained.

    The readiness of unit ``n`` is ``readies[bounds[n + 1] : bounds[n + 2]]``; ``left`` holds the cycles
    of the last beats out of each unit's register.
    """
    picked = drained = max(walker[WRITE] + CLOSE_CYCLES, walker[PICKED] + 1)
    head, begins, leave = walker[HEAD], walker[FIRST], walker[LEAVE]
    for entry in range(first, first + rooms.size):
        if entry == first or entry_last[entry - 1]:
            picked = max(picked, head)
            head = max(picked + PICK_CYCLES, begins)
            begins = max(head + HEAD_CYCLES, leave)
            read = begins
        else:
            read = leave
        unit = entry_unit[entry]
        leave = drained = max(read + ENTRY_CYCLES, left[unit, 0] + 1)
        offered[entry] = max(leave + REGISTER_CYCLES, left[unit, 1] + 1)
        cycle = max(offered[entry], rooms[entry - first])
        entries[entry] = taken(cycle, readies[bounds[unit + 1] : bounds[unit + 2]])
        left[unit, 0] = left[unit, 1]
        left[unit, 1] = entries[entry]
    walker[PICKED], walker[HEAD], walker[FIRST], walker[LEAVE] = picked, head, begins, leave
    return int(drained)
