"""When a merger of contributions takes and gives each beat: a recurrence over transfers.

Derived from ``rtl.merge``. Exact, as equal arrays of handshake cycles and the same order of beats, for any
arrivals at the inputs and any ready pattern of the output (``tests/test_merge.py``).

The recurrence: a beat enters its input's register of two beats; in each cycle in which the output's
register has room the next input after the last one that has a beat gives it. ::

    i[u][n]   = max(arrival[u][n], i[u][n-1] + 1, given[u][n-2] + 1)
    shown     = max(i[u][n] + 1, given[u][n-1] + 1)
    given[m]  = first cycle from max(given[m-1] + 1, o[m-2] + 1) on in which some beat is shown
    o[m]      = next ready cycle from max(given[m] + 1, o[m-1] + 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from sim.streams import ALWAYS, NEVER, Cycles, Spans, taken

REGISTER_CYCLES = 1
"""Through a stream register."""
LATENCY = 2 * REGISTER_CYCLES
"""From a beat's transfer at its input to that at the output."""


@dataclass(frozen=True)
class MergeCycles:
    """Handshake cycles of each stream; cycle 0 is the first clock edge after reset.

    Attributes
    ----------
    i : per input (beats,) int64.
    o : (all beats,) int64.
    source, number : (all beats,) int64, the input of each beat at ``o`` and its number there.
    """

    i: tuple[Cycles, ...]
    o: Cycles
    source: Cycles
    number: Cycles


def merge_cycles(arrivals: Sequence[ArrayLike], *, ready: Spans = ALWAYS) -> MergeCycles:
    """Return the handshake cycles of every stream of a merger, and whose beats come when.

    Parameters
    ----------
    arrivals : per input, the cycle from which each beat is offered.
    ready : readiness of ``o``, from :func:`sim.streams.readiness`.
    """
    per_input = [np.asarray(cycles, dtype=np.int64) for cycles in arrivals]
    bounds = np.cumsum([0] + [cycles.size for cycles in per_input])
    i, o, source, number = _merge(np.concatenate(per_input), bounds, ready)
    return MergeCycles(tuple(np.split(i, bounds[1:-1])), o, source, number)


@njit(cache=True)
def _merge(arrivals: Cycles, bounds: Cycles, ready: Spans) -> tuple[Cycles, Cycles, Cycles, Cycles]:
    """Run the recurrence; input ``u`` has beats ``bounds[u]..bounds[u+1]-1`` of ``arrivals``."""
    num_inputs, total = bounds.size - 1, arrivals.size
    i = np.empty(total, np.int64)
    o = np.empty(total, np.int64)
    source = np.empty(total, np.int64)
    number = np.empty(total, np.int64)
    gone = np.zeros(num_inputs, np.int64)  # beats given
    shown = np.full(num_inputs, np.int64(1) << 60)  # when the next one can be given
    for u in range(num_inputs):
        for n in range(bounds[u], min(bounds[u] + 2, bounds[u + 1])):
            i[n] = max(arrivals[n], 0)
            if n > bounds[u]:
                i[n] = max(i[n], i[n - 1] + 1)
        if bounds[u] < bounds[u + 1]:
            shown[u] = i[bounds[u]] + REGISTER_CYCLES
    turn = 0
    given = np.int64(NEVER)
    for m in range(total):
        cycle = max(given + 1, shown.min())
        if m >= 2:
            cycle = max(cycle, o[m - 2] + 1)
        chosen = -1
        for step in range(num_inputs):
            u = (turn + step) % num_inputs
            if chosen < 0 and shown[u] <= cycle:
                chosen = u
        given = cycle
        turn = (chosen + 1) % num_inputs
        source[m] = chosen
        number[m] = gone[chosen]
        left = given + REGISTER_CYCLES
        if m:
            left = max(left, o[m - 1] + 1)
        o[m] = taken(left, ready)
        # Room in the input's register for the beat after the next one.
        gone[chosen] += 1
        n = bounds[chosen] + gone[chosen]
        if n + 1 < bounds[chosen + 1]:
            i[n + 1] = max(arrivals[n + 1], i[n] + 1, given + 1)
        shown[chosen] = np.int64(1) << 60
        if n < bounds[chosen + 1]:
            shown[chosen] = max(i[n] + REGISTER_CYCLES, given + 1)
    return i, o, source, number
