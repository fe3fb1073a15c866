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
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from sim.compiled import compiled
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
    merger = new_merger(num_inputs)
    for m in range(total):
        for u in range(num_inputs):
            while bounds[u] + merger.entered[u] < bounds[u + 1] and has_room(merger, u):
                n = bounds[u] + merger.entered[u]
                i[n] = enter(merger, u, arrivals[n])
        cycle = next_given(merger)
        u = give(merger, cycle)
        source[m] = u
        number[m] = merger.given[u] - 1
        o[m] = leave(merger, cycle, ready)
    return i, o, source, number


class Merger(NamedTuple):
    """What is inside.

    Attributes
    ----------
    entered, given : per input, beats that came in, and those that went on from its register.
    inside : (inputs, 2) when those in it came in: beat n at n % 2.
    last_in : per input, when its last beat came in.
    last_given, last_given_2 : per input, when the last beat given and the one before were given.
    at : the input whose turn it is, cycle of the last beat given, of the last one out and the one before.
    """

    entered: Cycles
    given: Cycles
    inside: Cycles
    last_in: Cycles
    last_given: Cycles
    last_given_2: Cycles
    at: Cycles


_TURN, _LAST_GIVEN, _OUT, _OUT_2 = range(4)


@njit(cache=True)
def new_merger(num_inputs: int) -> Merger:
    """Return an empty merger."""
    none, before = np.zeros(num_inputs, np.int64), np.full(num_inputs, NEVER)
    at = np.full(4, NEVER)
    at[_TURN] = 0
    inside = np.zeros((num_inputs, 2), np.int64)
    return Merger(none, none.copy(), inside, before, before.copy(), before.copy(), at)


@compiled
def has_room(merger: Merger, u: int) -> bool:
    """Whether it is known when the next beat can enter an input's register, which holds two."""
    return bool(merger.entered[u] < merger.given[u] + 2)


@compiled
def enter(merger: Merger, u: int, arrival: int) -> int:
    """Return when an input takes its next beat, offered from ``arrival`` on; there must be room."""
    n = merger.entered[u]
    # The beat two before this one is the last one given, or the one before that.
    given = merger.last_given[u] if n > merger.given[u] else merger.last_given_2[u]
    cycle = max(np.int64(arrival), merger.last_in[u] + 1, given + 1, np.int64(0))
    merger.last_in[u] = cycle
    merger.inside[u, n % 2] = cycle
    merger.entered[u] += 1
    return int(cycle)


@compiled
def next_given(merger: Merger) -> int:
    """Return when the next beat would be given, of those inside; beyond all cycles if there is none."""
    first = np.int64(1) << 60
    for u in range(merger.entered.size):
        first = min(first, _shown(merger, u))
    return int(max(first, merger.at[_LAST_GIVEN] + 1, merger.at[_OUT_2] + 1))


@compiled
def _shown(merger: Merger, u: int) -> np.int64:
    """Return when an input's first beat can be given."""
    n = merger.given[u]
    if n == merger.entered[u]:
        return np.int64(1) << 60
    return max(merger.inside[u, n % 2] + REGISTER_CYCLES, merger.last_given[u] + 1)


@compiled
def give(merger: Merger, cycle: int) -> int:
    """Give the next beat in this cycle (:func:`next_given`); return the input that it is from."""
    num_inputs = merger.entered.size
    u = merger.at[_TURN]
    while _shown(merger, u) > cycle:
        u = (u + 1) % num_inputs
    merger.at[_TURN] = (u + 1) % num_inputs
    merger.at[_LAST_GIVEN] = cycle
    merger.given[u] += 1
    merger.last_given_2[u] = merger.last_given[u]
    merger.last_given[u] = cycle
    return int(u)


@compiled
def leave(merger: Merger, given: int, ready: Spans) -> int:
    """Return when the beat given in this cycle leaves the output's register."""
    cycle = taken(max(given + REGISTER_CYCLES, merger.at[_OUT] + 1), ready)
    merger.at[_OUT_2] = merger.at[_OUT]
    merger.at[_OUT] = cycle
    return int(cycle)
