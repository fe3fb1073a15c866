"""When the dispatcher transfers each beat, and which unit serves each job: a recurrence over transfers.

Derived from ``rtl.dispatch``. Exact, as equal arrays of handshake cycles, for any arrivals at ``i``, any
ready patterns of ``o_expect`` and of every unit's output, and any cycles in which units give back what
they hold (``tests/test_dispatch.py``, ``tests/test_dispatch_units.py``). Nothing of the hardware is left
out; capacity, its rule and the policy act through the streams of :mod:`golden.dispatch_streams`.

The recurrence, max-plus over transfers (all constants below are registers between two stages)::

    i[n]      = max(arrival[n], i[n-1] + 1, write[n-1], drained[window - 2] + 1)
    write[n]  = max(i[n] + 1, room of the o_expect register if n ends its token)
    pick[q]   = max(write[close of its window] + 1 (deep: 2), head[q-1], the choice before + 1)
    head[q]   = max(pick[q] + 1, first[q-1])          read of head and tail
    first[q]  = max(head[q] + 1, entry[last of q-1])  read of the first entry
    entry[e]  = max(entry[e-1] + 1 or first[q] + 1, room of the unit's output register (deep: the register
                    before it))
    drained   = entry[last of the window]             both windows closed: i waits for this

One unit serves the jobs as they stand in the streams. Of several units those are available that hold
fewer unfinished jobs than they can; in the first cycle from ``pick`` on in which an available unit may
serve some job, the first such job of the older closed window is chosen, else of the younger one, and
of its available units the one with the fewest unfinished entries.

Where the capacity's rule needs a whole window, ``i`` is the input of the stage that decides, and what
it gives takes the place of ``i`` above::

    i[n]      = max(arrival[n], i[n-1] + 1, start[window - 1] + 1)
    start[w]  = max(i[last of w] + 1, given[last of w-1] + 1)
    given[n]  = from max(start[w] + 3 + assignments of w, given[n-1] + 1) on

and where the weights are made of what is kept, ``given`` starts so much later as that takes.

A stream register holds two beats: a beat enters at the earliest one cycle after the second beat
before it left, and leaves at the earliest one cycle after it entered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from golden.dispatch_streams import DispatchStreams
from sim.compiled import compiled
from sim.gating import PRODUCT_AND_ROUND, inverse_cycles
from sim.streams import ALWAYS, NEVER, Cycles, Spans, taken
from spec.design import Pipeline
from spec.errors import require, require_range
from spec.gate_plan import GatePlan

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

REGISTER_CYCLES = 1
"""From entering a stream register to its output."""
REGISTER_BEATS = 2
"""Beats that a stream register holds."""
WRITE_CYCLES = 1
"""From a beat's transfer to its write into the queues (read of tail and count)."""
CLOSE_CYCLES, DEEP_CLOSE_CYCLES = 1, 2
"""From the decision that closes a window to the earliest choice of a queue: (the write's register,) state of
the window."""
PICK_CYCLES = 1
"""From the choice of a queue to the read of its head and tail (register of the choice)."""
HEAD_CYCLES = 1
"""From the read of head and tail to the read of the first entry (RAM)."""
ENTRY_CYCLES = 1
"""From the read of an entry to its beat (RAM); the next entry is read while the beat leaves."""
STAGE_CYCLES = 1
"""Deep only: from an entry's beat to the unit's stream register, by a pair of registers like it."""
REOPEN_CYCLES = 1
"""From the last entry of a window (or its choice, if it has none) to room for a new window."""
RETIRE_CYCLES = 1
"""From a unit's pulse to the earliest choice that counts with it."""
START_CYCLES = 1
"""From the beat that closes a window (or the last one given of the window before) to its decision."""
DECIDE_CYCLES = 3
"""From the start of a decision to the first beat given, beside one cycle per assignment."""

EXPECT_LATENCY = WRITE_CYCLES + REGISTER_CYCLES
"""From a token's last beat to ``o_expect``."""
LATENCY = WRITE_CYCLES + CLOSE_CYCLES + PICK_CYCLES + HEAD_CYCLES + ENTRY_CYCLES + REGISTER_CYCLES
"""From the beat that closes a window to its first entry."""
DEEP_LATENCY = LATENCY + DEEP_CLOSE_CYCLES - CLOSE_CYCLES + STAGE_CYCLES

Service = Callable[[int, int, Cycles], int]
"""A model of the units: (unit, job, cycles in which the unit took the job's entries) -> cycle in which it
tells that the job is done. Jobs are numbered as in the streams."""


@dataclass(frozen=True)
class Units:
    """Several units, as in the dispatcher's configuration.

    Attributes
    ----------
    num_units : how many.
    placement : (experts,) bitmap of the units that may serve each expert, the shared one last.
    jobs : jobs that a unit holds.
    """

    num_units: int
    placement: IntArray
    jobs: int = 2


@dataclass(frozen=True)
class DispatchCycles:
    """Handshake cycles of each stream; cycle 0 is the first clock edge after reset.

    Attributes
    ----------
    i : (tokens * top_k,) int64
    o_expect : (tokens,) int64
    entries : (entries,) int64, the transfer of each entry, entries as in the streams.
    job_order : (jobs,) int64, the jobs in order of service.
    job_unit : (jobs,) int64, the unit of each job, jobs as in the streams.
    unit_entries : per unit, the entries that it takes, in order.
    opened : (windows,) int64, first cycle in which a beat of the window may be taken at ``i``.
    """

    i: IntArray
    o_expect: IntArray
    entries: IntArray
    job_order: IntArray
    job_unit: IntArray
    unit_entries: tuple[IntArray, ...]
    opened: IntArray

    @property
    def units(self) -> tuple[IntArray, ...]:
        """Per unit, the cycles of its output."""
        return tuple(self.entries[entries] for entries in self.unit_entries)


def dispatch_cycles(
    streams: DispatchStreams,
    arrivals: ArrayLike,
    *,
    expect_ready: Spans = ALWAYS,
    unit_ready: Sequence[Spans] | None = None,
    units: Units | None = None,
    retired: Sequence[ArrayLike] | Service = (),
    pipeline: Pipeline = Pipeline.SHORT,
) -> DispatchCycles:
    """Return the handshake cycles of every stream of the dispatcher, and the units of the jobs.

    Parameters
    ----------
    streams : the beats, from :func:`golden.dispatch_streams.dispatch_streams`.
    arrivals : (tokens * top_k,) cycle from which each beat of ``i`` is offered.
    expect_ready, unit_ready : readiness of ``o_expect`` and of each unit's output, from
        :func:`sim.streams.readiness`.
    units : several units; None: one.
    retired : with several units, for each the ascending cycles of its pulses ``retired``, or a model that
        is asked job by job, in order of service.
    pipeline : how the dispatcher's arithmetic is cut.

    Raises
    ------
    spec.errors.InputError : arguments that do not fit each other; units that never give back what they
        hold although jobs wait.
    """
    num_tokens = streams.window.size
    beats = np.asarray(arrivals, dtype=np.int64)
    require(
        beats.shape == (num_tokens * streams.top_k,),
        f"must have one cycle for each of {num_tokens * streams.top_k} beats, not shape {beats.shape}",
        key="arrivals",
    )
    model = DispatchModel(streams, expect_ready, unit_ready, units, retired, pipeline)
    model.offer(streams.num_windows, beats)
    model.run()
    return model.cycles()


class DispatchModel:
    """The dispatcher's times; :func:`dispatch_cycles` for windows whose arrivals become known one by one.

    With one unit a window goes through by :meth:`fill`, :meth:`foresee` and :meth:`serve`: filling it
    needs only the windows before the last one to be served, so a caller may find out in between when the
    output of the last one has room. Parameters as in :func:`dispatch_cycles`.

    Attributes
    ----------
    i, o_expect, entries : cycles as in :class:`DispatchCycles`.
    offered : (entries,) first cycle in which each entry is offered.
    plan, state : for who goes on with :func:`fill_window` and :func:`serve_jobs` itself.
    """

    def __init__(
        self,
        streams: DispatchStreams,
        expect_ready: Spans = ALWAYS,
        unit_ready: Sequence[Spans] | None = None,
        units: Units | None = None,
        retired: Sequence[ArrayLike] | Service = (),
        pipeline: Pipeline = Pipeline.SHORT,
    ) -> None:
        num_units = 1 if units is None else units.num_units
        of_units = [ALWAYS] * num_units if unit_ready is None else unit_ready
        require(
            len(of_units) == num_units,
            f"must have a pattern for each of {num_units} units, not {len(of_units)}",
            key="unit_ready",
        )
        self.plan = _plan(streams, [expect_ready, *of_units], units, pipeline is Pipeline.DEEP)
        self.state = _start(self.plan, () if callable(retired) else retired)
        self._service = retired if callable(retired) else None
        self.i, self.o_expect = self.state.i, self.state.o_expect
        self.entries, self.offered = self.state.entries, self.state.offered

    def tokens_of(self, window: int) -> slice:
        """Return the tokens that belong to a window."""
        return slice(int(self.plan.windows[window]), int(self.plan.windows[window + 1]))

    def assignments_of(self, window: int) -> slice:
        """Return the beats of ``i`` that belong to a window."""
        tokens, top_k = self.tokens_of(window), self.plan.top_k
        return slice(tokens.start * top_k, tokens.stop * top_k)

    def entries_of(self, window: int) -> slice:
        """Return the entries that belong to a window."""
        first, end = self.plan.job_bounds[self.plan.window_jobs[window : window + 2]].tolist()
        return slice(first, end)

    def opened(self, window: int) -> int:
        """Return the first cycle in which a beat of the window, the next one to be filled, may be taken."""
        return int(self.state.opened[window])

    def offer(self, end: int, arrivals: IntArray) -> None:
        """Tell when the next windows' beats of ``i`` are offered, up to window ``end - 1``."""
        offered = self.state.now[OFFERED]
        first = self.plan.windows[offered] * self.plan.top_k
        self.state.arrivals[first : first + arrivals.size] = arrivals
        self.state.now[OFFERED] = end

    def fill(self, window: int, arrivals: IntArray) -> None:
        """Take the next window's beats, offered from these cycles on."""
        self.offer(window + 1, arrivals)
        fill_window(self.plan, self.state)

    def serve(self, window: int, rooms: IntArray | None = None) -> None:
        """Give a filled window's entries, each not before its cycle in ``rooms``."""
        if rooms is not None:
            self.state.rooms[self.entries_of(window)] = rooms
        self.run()

    def foresee(self, window: int) -> IntArray:
        """Return when a filled window's entries would be given if nothing held them up; serve none."""
        state, jobs = self.state, slice(*self.plan.window_jobs[window : window + 2].tolist())
        now, left = state.now.copy(), state.left.copy()
        self.run()
        state.now[:], state.left[:] = now, left
        state.served[jobs] = False
        state.first_left[window % 2] = jobs.start
        state.jobs_left[window] = jobs.stop - jobs.start
        state.room[window + 2] = NEVER
        return self.entries[self.entries_of(window)].copy()

    def run(self) -> None:
        """Serve all windows whose beats are offered."""
        while True:
            job = serve_jobs(self.plan, self.state, self._service is not None, 1 << 60)
            if job < 0 or self._service is None:
                break
            _ask(self.plan, self.state, job, self._service)
        require(job != _STUCK, "must let every unit give back what it holds while jobs wait", key="retired")

    def cycles(self) -> DispatchCycles:
        """Return the cycles, once all windows are served."""
        plan, state = self.plan, self.state
        picked = state.job_order
        return DispatchCycles(
            i=state.i,
            o_expect=state.o_expect,
            entries=state.entries,
            job_order=picked,
            job_unit=state.job_unit,
            unit_entries=tuple(
                _entries_of(picked[state.job_unit[picked] == unit], plan.job_bounds)
                for unit in range(plan.num_units)
            ),
            opened=state.opened[: plan.windows.size - 1],
        )


class Plan(NamedTuple):
    """What is given.

    Window ``w`` has tokens ``windows[w:w+2]`` and jobs ``window_jobs[w:w+2]``, job ``q`` has entries
    ``job_bounds[q:q+2]``; the readiness of stream ``n`` (0: o_expect, 1 + unit) is
    ``readies[ready_bounds[n]:ready_bounds[n+1]]``.
    """

    top_k: int
    decide_cycles: int  # beside one per assignment; 0 where nothing is decided window by window
    deep: bool
    windows: IntArray
    window_jobs: IntArray
    job_bounds: IntArray
    job_units: NDArray[np.uint64]
    readies: Spans
    ready_bounds: IntArray
    num_units: int
    unit_jobs: int


class State(NamedTuple):
    """What has happened up to now, and what is known of it beforehand; ``now`` holds the scalars below."""

    now: IntArray
    arrivals: IntArray  # per beat of `i`, of the windows offered
    rooms: IntArray  # per entry, first cycle in which it may be taken
    i: IntArray
    o_expect: IntArray
    entries: IntArray
    offered: IntArray
    job_order: IntArray
    job_unit: IntArray
    served: BoolArray
    jobs_left: IntArray  # per window
    first_left: IntArray  # (2, num_units) of an even and an odd window, see _first_servable
    room: IntArray  # per window, first cycle in which there are queues for it, or NEVER
    opened: IntArray  # per window, first cycle in which `i` takes it: `room`, if nothing is decided
    closed: IntArray  # per window, first cycle in which its queues may be chosen
    left: IntArray  # (num_units, REGISTER_BEATS) last beats out of each unit's register
    unit_jobs: IntArray  # jobs that each unit holds
    unit_entries: IntArray
    unit_lengths: IntArray  # (num_units, jobs) entries of each
    pulses: IntArray  # (num_units, most) cycles of `retired`
    num_pulses: IntArray
    seen_pulses: IntArray


# Scalars of the state: counts, then cycles; the last ones of when two entries left the pair of registers.
OFFERED, FILLED, OLDEST, PICKS = range(4)
_PICKED, _HEAD, _FIRST, _LEAVE, _WRITE, _TAKEN, _STARTED, NEXT_CHOICE = range(4, 12)
_STAGED, _STAGED_LAST, _SCALARS = range(12, 15)
_DONE, _STUCK = -1, -2


def _plan(streams: DispatchStreams, readies: Sequence[Spans], units: Units | None, deep: bool) -> Plan:
    windows = np.arange(streams.num_windows + 1)
    job_bounds = streams.job_bounds
    experts = streams.entry_expert[job_bounds[:-1]]
    return Plan(
        top_k=streams.top_k,
        decide_cycles=decide_cycles(streams),
        deep=deep,
        windows=np.searchsorted(streams.window, windows),
        window_jobs=np.searchsorted(streams.entry_window[job_bounds[:-1]], windows),
        job_bounds=job_bounds,
        job_units=np.ones(experts.size, dtype=np.uint64) if units is None else _placed(experts, units),
        readies=np.concatenate(readies),
        ready_bounds=np.cumsum([0] + [len(ready) for ready in readies]),
        num_units=1 if units is None else units.num_units,
        unit_jobs=0 if units is None else units.jobs,
    )


def decide_cycles(streams: DispatchStreams) -> int:
    """Return the cycles from a decision's start to the first beat given, beside one per assignment, or 0."""
    if not streams.decides:
        return 0
    gating = streams.kept_gating
    if gating is None:
        return DECIDE_CYCLES
    # A score's read, the inverse of its token's total, product and rounding.
    return DECIDE_CYCLES + 1 + inverse_cycles(GatePlan(gating)) + PRODUCT_AND_ROUND


def _placed(experts: IntArray, units: Units) -> NDArray[np.uint64]:
    """Return the units that may serve each job."""
    require_range("num_units", units.num_units, 1, 64)
    require_range("jobs", units.jobs, 1, 16)
    placement = np.asarray(units.placement).astype(np.uint64)
    needed = int(experts.max(initial=-1)) + 1
    require(
        placement.size >= needed,
        f"must name the units of each of {needed} experts, not {placement.size}",
        key="placement",
    )
    placed: NDArray[np.uint64] = placement[experts]
    known = np.uint64((1 << units.num_units) - 1)
    for expert, of_expert in zip(experts.tolist(), placed.tolist(), strict=True):
        require(
            0 < of_expert <= known,
            f"must be a set of some of {units.num_units} units for expert {expert}, not {of_expert:#x}",
            key="placement",
        )
    return placed


def _start(plan: Plan, retired: Sequence[ArrayLike]) -> State:
    num_windows, num_jobs = plan.windows.size - 1, plan.job_units.size
    pulses = [np.asarray(cycles, dtype=np.int64) for cycles in retired]
    num_units = plan.num_units
    wanted = num_units if plan.unit_jobs else 0
    require(
        len(pulses) in (0, wanted),
        f"must have cycles for each of {wanted} units that give back what they hold, not {len(pulses)}",
        key="retired",
    )
    # A model of the units adds a pulse for each job.
    table = np.zeros((num_units, max([num_jobs, *(cycles.size for cycles in pulses)])), np.int64)
    for row, cycles in zip(table, pulses, strict=False):
        row[: cycles.size] = cycles
    now = np.full(_SCALARS, NEVER)
    now[[OFFERED, FILLED, OLDEST, PICKS]] = 0
    num_assignments, num_entries = plan.windows[-1] * plan.top_k, plan.job_bounds[-1]
    room = np.full(num_windows + 2, NEVER)
    room[:2] = 0
    return State(
        now=now,
        arrivals=np.empty(num_assignments, np.int64),
        rooms=np.zeros(num_entries, np.int64),
        i=np.empty(num_assignments, np.int64),
        o_expect=np.empty(plan.windows[-1], np.int64),
        entries=np.empty(num_entries, np.int64),
        offered=np.empty(num_entries, np.int64),
        job_order=np.empty(num_jobs, np.int64),
        job_unit=np.zeros(num_jobs, np.int64),
        served=np.zeros(num_jobs, np.bool_),
        jobs_left=np.diff(plan.window_jobs),
        first_left=np.zeros((2, num_units), np.int64),
        room=room,
        opened=np.zeros(num_windows + 1, np.int64) if plan.decide_cycles else room,
        closed=np.full(num_windows, NEVER),
        left=np.full((num_units, REGISTER_BEATS), NEVER),
        unit_jobs=np.zeros(num_units, np.int64),
        unit_entries=np.zeros(num_units, np.int64),
        unit_lengths=np.zeros((num_units, max(1, plan.unit_jobs)), np.int64),
        pulses=table,
        num_pulses=np.array([cycles.size for cycles in pulses] or [0] * num_units, dtype=np.int64),
        seen_pulses=np.zeros(num_units, np.int64),
    )


def _ask(plan: Plan, state: State, job: int, service: Service) -> None:
    """Ask the units' model when the job is done."""
    unit = int(state.job_unit[job])
    entries = state.entries[plan.job_bounds[job] : plan.job_bounds[job + 1]]
    cycle = service(unit, job, entries)
    known = state.num_pulses[unit]
    before = state.pulses[unit, known - 1] if known else -1
    require(
        cycle > max(before, entries[-1]),
        f"must be after the entries of job {job} and unit {unit}'s job before, not in cycle {cycle}",
        key="retired",
    )
    state.pulses[unit, known] = cycle
    state.num_pulses[unit] += 1


def _entries_of(jobs: IntArray, bounds: IntArray) -> IntArray:
    """Return the numbers of the jobs' entries, job after job."""
    lengths = bounds[jobs + 1] - bounds[jobs]
    before = np.cumsum(lengths) - lengths
    entries: IntArray = np.arange(lengths.sum()) + np.repeat(bounds[jobs] - before, lengths)
    return entries


@compiled
def serve_jobs(plan: Plan, state: State, one_job: bool, known: int) -> int:
    """Serve jobs of the windows offered, filling them as room comes.

    Return the job if only one is wanted, or _DONE, _STUCK. Nothing is chosen after cycle ``known``: all
    pulses before it are known. ``now[NEXT_CHOICE]`` is then the cycle of the next choice if no other pulse
    comes and no other window is closed before.
    """
    # Looking an array up in a tuple costs as much as a step of the recurrence: once is enough.
    now, room, closed, served, left = state.now, state.room, state.closed, state.served, state.left
    jobs_left, rooms, offered, entries = state.jobs_left, state.rooms, state.offered, state.entries
    job_order, job_unit, first_left = state.job_order, state.job_unit, state.first_left
    unit_jobs, unit_entries, unit_lengths = state.unit_jobs, state.unit_entries, state.unit_lengths
    pulses, num_pulses, seen_pulses = state.pulses, state.num_pulses, state.seen_pulses
    window_jobs, job_bounds, job_units = plan.window_jobs, plan.job_bounds, plan.job_units
    readies, ready_bounds, most_jobs = plan.readies, plan.ready_bounds, plan.unit_jobs
    forever = np.int64(1) << 60
    now[NEXT_CHOICE] = forever
    while now[OLDEST] < now[OFFERED]:
        while now[FILLED] < now[OFFERED] and room[now[FILLED]] != NEVER:
            fill_window(plan, state)
        oldest = now[OLDEST]
        if room[oldest + 2] != NEVER:
            now[OLDEST] += 1
            continue
        cycle = max(closed[oldest], now[_PICKED] + 1)
        if jobs_left[oldest] == 0:
            room[oldest + 2] = cycle + REOPEN_CYCLES
            now[_PICKED] = cycle
            continue

        # The first cycle in which some job can be given to a unit.
        cycle = max(cycle, now[_HEAD])
        younger = oldest + 1
        while True:
            if cycle > known:
                now[NEXT_CHOICE] = cycle
                return _STUCK
            _see_pulses(cycle, pulses, num_pulses, seen_pulses, unit_jobs, unit_entries, unit_lengths)
            free = _free_units(unit_jobs, most_jobs)
            window = oldest
            job = _first_servable(window_jobs[younger], first_left[oldest % 2], served, job_units, free)
            if job < 0 and younger < now[FILLED] and closed[younger] <= cycle:
                window = younger
                end = window_jobs[younger + 1]
                job = _first_servable(end, first_left[younger % 2], served, job_units, free)
            if job >= 0:
                break
            later = forever
            for unit in range(num_pulses.size):
                if seen_pulses[unit] < num_pulses[unit]:
                    later = min(later, pulses[unit, seen_pulses[unit]] + RETIRE_CYCLES)
            if younger < now[FILLED] and closed[younger] > cycle:
                later = min(later, closed[younger])
            if later == forever:
                return _STUCK
            cycle = later

        unit = _least(job_units[job] & free, unit_entries)
        # What comes back in this very cycle was not there yet for the choice, nor is the job there for it.
        _see_pulses(cycle + 1, pulses, num_pulses, seen_pulses, unit_jobs, unit_entries, unit_lengths)
        if most_jobs:
            length = job_bounds[job + 1] - job_bounds[job]
            unit_lengths[unit, unit_jobs[unit]] = length
            unit_jobs[unit] += 1
            unit_entries[unit] += length
        served[job] = True
        job_unit[job] = unit
        job_order[now[PICKS]] = job
        now[PICKS] += 1
        now[_PICKED] = cycle

        now[_HEAD] = max(cycle + PICK_CYCLES, now[_FIRST])
        now[_FIRST] = max(now[_HEAD] + HEAD_CYCLES, now[_LEAVE])
        read = now[_FIRST]
        ready = readies[ready_bounds[unit + 1] : ready_bounds[unit + 2]]
        for entry in range(job_bounds[job], job_bounds[job + 1]):
            if plan.deep:
                read = max(read + ENTRY_CYCLES, now[_STAGED] + 1)
                enters = max(read + STAGE_CYCLES, now[_STAGED_LAST] + 1, left[unit, 0] + 1)
                now[_STAGED] = now[_STAGED_LAST]
                now[_STAGED_LAST] = enters
            else:
                read = max(read + ENTRY_CYCLES, left[unit, 0] + 1)
                enters = read
            offered[entry] = max(enters + REGISTER_CYCLES, left[unit, 1] + 1)
            entries[entry] = taken(max(offered[entry], rooms[entry]), ready)
            left[unit, 0] = left[unit, 1]
            left[unit, 1] = entries[entry]
        now[_LEAVE] = read
        jobs_left[window] -= 1
        if jobs_left[window] == 0:
            room[window + 2] = read + REOPEN_CYCLES
        if one_job:
            return int(job)
    return _DONE


@compiled
def fill_window(plan: Plan, state: State) -> None:
    """Take the next window's assignments."""
    now, top_k, decided = state.now, plan.top_k, plan.decide_cycles > 0
    arrivals, i, o_expect = state.arrivals, state.i, state.o_expect
    ready = plan.readies[: plan.ready_bounds[1]]
    window = now[FILLED]
    first, end = plan.windows[window], plan.windows[window + 1]
    room = state.room[window]
    given = np.int64(NEVER)
    if decided:
        entered = i[first * top_k - 1] if first else np.int64(NEVER)
        for n in range(first * top_k, end * top_k):
            entered = max(arrivals[n], entered + 1, state.opened[window])
            i[n] = entered
        now[_STARTED] = max(entered, now[_TAKEN]) + START_CYCLES
        state.opened[window + 1] = now[_STARTED] + 1
        given = now[_STARTED] + plan.decide_cycles + (end - first) * top_k
    write = now[_WRITE]
    enters = now[_TAKEN]
    for token in range(first, end):
        for n in range(token * top_k, (token + 1) * top_k):
            enters = max(given if decided else arrivals[n], write, room, enters + 1)
            if not decided:
                i[n] = enters
            write = enters + WRITE_CYCLES
        if token >= REGISTER_BEATS:
            write = max(write, o_expect[token - REGISTER_BEATS] + 1)
        shown = write + REGISTER_CYCLES
        if token:
            shown = max(shown, o_expect[token - 1] + 1)
        o_expect[token] = taken(shown, ready)
    now[_WRITE] = write
    now[_TAKEN] = enters
    now[FILLED] = window + 1
    state.first_left[window % 2] = plan.window_jobs[window]
    state.closed[window] = write + (DEEP_CLOSE_CYCLES if plan.deep else CLOSE_CYCLES)


@compiled
def _see_pulses(
    cycle: int,
    pulses: IntArray,
    num_pulses: IntArray,
    seen_pulses: IntArray,
    unit_jobs: IntArray,
    unit_entries: IntArray,
    unit_lengths: IntArray,
) -> None:
    """Count with what units gave back before ``cycle``; a unit without a job has nothing to give back."""
    for unit in range(num_pulses.size):
        while seen_pulses[unit] < num_pulses[unit] and pulses[unit, seen_pulses[unit]] < cycle:
            seen_pulses[unit] += 1
            if unit_jobs[unit]:
                unit_jobs[unit] -= 1
                unit_entries[unit] -= unit_lengths[unit, 0]
                for n in range(unit_jobs[unit]):
                    unit_lengths[unit, n] = unit_lengths[unit, n + 1]


@compiled
def _free_units(unit_jobs: IntArray, most_jobs: int) -> np.uint64:
    """Return the set of units that can take a job; with one unit, which is not counted, always that one."""
    free = np.uint64(0)
    for unit in range(unit_jobs.size):
        if most_jobs == 0 or unit_jobs[unit] < most_jobs:
            free |= np.uint64(1) << np.uint64(unit)
    return free


@compiled
def _first_servable(
    end: int, first_left: IntArray, served: BoolArray, job_units: NDArray[np.uint64], free: np.uint64
) -> int:
    """Return the first job before ``end`` that is not served and that a free unit may serve, or -1.

    ``first_left`` : per unit, the job before which it has none to serve; moved on.
    """
    first = end
    for unit in range(first_left.size):
        bit = np.uint64(1) << np.uint64(unit)
        if free & bit:
            job = first_left[unit]
            while job < end and (served[job] or not job_units[job] & bit):
                job += 1
            first_left[unit] = job
            first = min(first, job)
    return int(first) if first < end else -1


@compiled
def _least(units: np.uint64, unit_entries: IntArray) -> int:
    """Return the unit of the set with the fewest entries, the lowest of equals."""
    least = -1
    for unit in range(unit_entries.size):
        if units >> np.uint64(unit) & np.uint64(1) and (
            least < 0 or unit_entries[unit] < unit_entries[least]
        ):
            least = unit
    return least
