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
from sim.streams import ALWAYS, Cycles, taken
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
    expect_ready: Cycles = ALWAYS,
    unit_ready: list[Cycles] | None = None,
) -> DispatchCycles:
    """Return the handshake cycles of every stream of the dispatcher.

    Parameters
    ----------
    streams : the beats, from :func:`golden.dispatch_streams.dispatch_streams`.
    arrivals : (tokens * top_k,) cycle from which each beat of ``i`` is offered.
    expect_ready, unit_ready : readiness of ``o_expect`` and of each unit's output, from
        :func:`sim.streams.next_ready`.
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
    readies = [expect_ready, *of_units]
    windows = np.arange(streams.num_windows + 1)
    i, o_expect, entries = _transfers(
        beats,
        streams.top_k,
        np.searchsorted(streams.window, windows),
        np.searchsorted(streams.entry_window, windows),
        streams.entry_unit,
        streams.entry_last,
        num_units,
        np.concatenate(readies),
        np.cumsum([0] + [ready.size for ready in readies]),
    )
    units = tuple(entries[streams.of_unit(unit)] for unit in range(num_units))
    return DispatchCycles(i=i, o_expect=o_expect, entries=entries, units=units)


@njit(cache=True)
def _transfers(
    arrivals: IntArray,
    top_k: int,
    window_tokens: IntArray,
    window_entries: IntArray,
    entry_unit: IntArray,
    entry_last: NDArray[np.bool_],
    num_units: int,
    readies: IntArray,
    bounds: IntArray,
) -> tuple[IntArray, IntArray, IntArray]:
    """Run the recurrence, window by window: fill, then serve.

    Window ``w`` holds tokens ``window_tokens[w:w+2]`` and entries ``window_entries[w:w+2]``; filling it
    needs only the windows before ``w - 1`` to be served. The readiness of stream ``n`` (0: o_expect,
    1 + unit) is ``readies[bounds[n]:bounds[n+1]]``.
    """
    never = -(1 << 40)
    i = np.empty(arrivals.size, np.int64)
    o_expect = np.empty(window_tokens[-1], np.int64)
    entries = np.empty(entry_unit.size, np.int64)
    left = np.full((num_units, REGISTER_BEATS), never)  # last beats out of each unit's register
    drained = np.full(window_tokens.size + 1, never)  # of window w at w + 2
    write = never
    head = never
    first = never
    leave = never
    picked = never
    for window in range(window_tokens.size - 1):
        # Fill.
        for token in range(window_tokens[window], window_tokens[window + 1]):
            for n in range(token * top_k, (token + 1) * top_k):
                cycle = max(arrivals[n], write, drained[window] + REOPEN_CYCLES, 0)
                i[n] = max(cycle, i[n - 1] + 1) if n else cycle
                write = i[n] + WRITE_CYCLES
            if token >= REGISTER_BEATS:
                write = max(write, o_expect[token - REGISTER_BEATS] + 1)
            shown = write + REGISTER_CYCLES
            if token:
                shown = max(shown, o_expect[token - 1] + 1)
            o_expect[token] = taken(shown, readies[: bounds[1]])

        # Serve.
        picked = max(write + CLOSE_CYCLES, picked + 1)
        if window_entries[window] == window_entries[window + 1]:
            drained[window + 2] = picked
        for entry in range(window_entries[window], window_entries[window + 1]):
            begins = entry == window_entries[window] or entry_last[entry - 1]
            if begins:
                picked = max(picked, head)
                head = max(picked + PICK_CYCLES, first)
                first = max(head + HEAD_CYCLES, leave)
                read = first
            else:
                read = leave
            unit = entry_unit[entry]
            leave = max(read + ENTRY_CYCLES, left[unit, 0] + 1)
            shown = max(leave + REGISTER_CYCLES, left[unit, 1] + 1)
            entries[entry] = taken(shown, readies[bounds[unit + 1] : bounds[unit + 2]])
            left[unit, 0] = left[unit, 1]
            left[unit, 1] = entries[entry]
            drained[window + 2] = leave
    return i, o_expect, entries
