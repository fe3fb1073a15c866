"""A DRAM channel and its controller, compiled: from requests to the tick of every command.

The controller is first-ready, oldest-first with open rows, as Ramulator 2.1's for reads
(github.com/CMU-SAFARI/ramulator2 at c5b1c3a4): a queue of reads in order of arrival, shared by the
pseudo-channels; in each tick and on each command bus the oldest request whose command may issue, RD, ACT or
PRE alike. A request that has opened its row leaves the queue and reads it before anything else; further
requests to that row protect nothing. A refresh that is due stops the queue until its REF has issued.
``docs/dram.md`` states all rules.

How far commands must be apart comes from the table in :mod:`spec.dram` alone, compiled into rows of integers
(:class:`Rules`). Each issued command pushes the earliest ticks of those that follow it at its bank, bank
group and scope. Time jumps from event to event: where nothing issues and nothing can enter the queue, to the
least tick in which anything may.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros
from numpy.typing import NDArray

from sim.compiled import depends_on
from spec.dram import EDGE_PAIRS, PROTOCOLS, Command, DramSpec, constraints, constraints_of

Ints = NDArray[np.int64]

NUM_COMMANDS = len(Command)
ACT, PRE, PRE_ALL, RD, WR, REF, REF_BANK, ACT_2, CAS = (int(command) for command in Command)
FAR = 1 << 60
ROW_SHIFT, COLUMN_SHIFT = 20, 1
"""A request's key: row, column in bursts, and bit 0 for a write."""
COLUMN_MASK = (1 << (ROW_SHIFT - COLUMN_SHIFT)) - 1

MAX_QUEUE = 64
"""Places of the queue are bits of a word."""
ALL_BUT_SIGN = (1 << 63) - 1
QUEUE = 32
LOG_FIELDS = 5
"""Of a command: tick, command, bank, row, column; -1 where it has none.

Banks are numbered through the channel; a command to all banks of a scope has the first one's number.
"""
NEED_REQUESTS, LOG_FULL, DONE, OVERRUN = range(4)
MOST_PER_TICK = 2
# What a run keeps between calls, besides arrays.
(
    CLOCK,
    ACCEPTED,
    SERVED,
    QUEUED,
    OPENED,
    NEXT_RAISE,
    RAISED_FIRST,
    RAISED_COUNT,
    NEXT_BANK,
    FREE_ROW,
    FREE_COLUMN,
    PAIR_TICK,
    PAIR_SCOPE,
    PAIR_BANK,
    ACT_2_BANK,
    ACT_2_DUE,
    CLOCK_RUNS_TO,
    READ_NEXT,
    READ_FROM,
    LAST_TICK,
    NUM_SCALARS,
) = range(21)
RING = 256
"""Places for refreshes that are raised and not yet issued."""
FROM_OPENED, FROM_QUEUE = 0, 1
Q_BANK, Q_KEY, Q_ARRIVAL, Q_READY, Q_NEED = range(5)
"""Of a queued request: bank, key, arrival number, a tick before which it cannot issue, what it needs."""
NEED_RD, NEED_WR, NEED_ACT, NEED_PRE = range(4)
NUM_NEEDS = 4
"""A need's number is :data:`NUM_NEEDS` x scope + one of the four."""
HELD = -1
"""The bank's row is another one, and the request that has opened it has not read it yet."""


class RefreshMode(StrEnum):
    """What is refreshed at a time."""

    NONE = "none"
    ALL_BANK = "all-bank"
    PER_BANK = "per-bank"


class RowPolicy(StrEnum):
    """When a row is closed: for a waiting request to another one, or as soon as none waits for it."""

    OPEN = "open"
    CLOSED = "closed"


def banks_per_interval(dram: DramSpec) -> int:
    """Return how many banks are refreshed in an interval of ``refi_pb``, so that each is within ``refi``."""
    banks = dram.pseudo_channels * dram.num_banks
    return max(1, round(banks * dram.timing.refi_pb / dram.timing.refi))


@dataclass(frozen=True)
class Rules:
    """A standard as the compiled loops read it; times in ticks.

    Attributes
    ----------
    ticks : of a clock.
    interval : between refreshes; 0 without.
    options : (OPTIONS,) int64, the switches of :func:`_run`.
    widths : (commands,) ticks that a command holds its bus.
    pairs : (commands,) ticks from a row command to the second half of a clock that it restricts.
    offsets : (3, banks) where a bank's, its group's and its scope's earliest ticks begin.
    start, rows : (rows, 4) level, following command, latency, window of each row of the table, in order of
        the preceding command, those of command c in ``start[c]`` .. ``start[c + 1]`` - 1. ``latency`` counts
        from first tick to first tick.
    """

    ticks: int
    interval: int
    options: Ints
    widths: Ints
    pairs: Ints
    offsets: Ints
    start: Ints
    rows: Ints

    @classmethod
    def of(
        cls,
        dram: DramSpec,
        *,
        refresh: RefreshMode = RefreshMode.ALL_BANK,
        policy: RowPolicy = RowPolicy.OPEN,
        queue: int = QUEUE,
        drain: bool = False,
    ) -> Rules:
        """Compile a standard's rules and the controller's options."""
        protocol, timing = PROTOCOLS[dram.protocol], dram.timing
        ticks = protocol.ticks_per_clock
        widths = np.array([protocol.width(command) for command in Command], dtype=np.int64)
        rows = sorted(
            (
                int(before),
                int(row.level),
                int(after),
                # Distances are from last tick to last tick; the engine has first ticks.
                ticks * row.clocks(timing) + int(widths[before]) - int(widths[after]),
                row.window,
            )
            for row in constraints_of(dram)
            for before in row.preceding
            for after in row.following
        )
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        scopes, per_scope = dram.pseudo_channels, dram.num_banks
        banks = np.arange(scopes * per_scope)
        groups = scopes * dram.bank_groups
        offsets = np.stack([
            banks,
            len(banks) + banks // dram.banks_per_group,
            len(banks) + groups + banks // per_scope,
        ])  # fmt: skip
        interval = {
            RefreshMode.NONE: 0,
            RefreshMode.ALL_BANK: timing.refi,
            RefreshMode.PER_BANK: timing.refi_pb,
        }[refresh]
        split = protocol.split_act
        options = [
            per_scope,
            int(protocol.row_bus),
            int(bool(protocol.rising_only)),
            int(split),
            ticks * timing.aad,
            ticks * (timing.cl + timing.burst + timing.wck_post),
            ticks * (timing.cwl + timing.burst + timing.wck_post),
            banks_per_interval(dram) if refresh is RefreshMode.PER_BANK else 0,
            int(policy is RowPolicy.CLOSED),
            queue,
            int(drain),
        ]
        return cls(
            ticks=ticks,
            interval=ticks * interval,
            options=np.array(options, dtype=np.int64),
            widths=widths,
            pairs=np.array([dict(EDGE_PAIRS).get(command, 0) for command in Command], dtype=np.int64),
            offsets=NUM_COMMANDS * offsets,
            start=np.searchsorted(table[:, 0], np.arange(NUM_COMMANDS + 1)).astype(np.int64),
            rows=table[:, 1:].copy(),
        )


class Channel:
    """A channel in the middle of a run: everything that its controller remembers.

    Parameters
    ----------
    total : requests that will be offered, at least 1.
    log_length : commands that a log holds before they are taken away.
    """

    def __init__(self, rules: Rules, total: int, log_length: int = 1 << 16) -> None:
        self.rules = rules
        self.total = total
        banks = rules.offsets.shape[1]
        nodes = int(rules.offsets.max()) // NUM_COMMANDS + 1
        self.scalars = np.zeros(NUM_SCALARS, dtype=np.int64)
        self.scalars[NEXT_RAISE] = rules.interval or FAR
        self.scalars[[PAIR_TICK, ACT_2_BANK, READ_NEXT]] = -1
        # Timings start satisfied, banks closed.
        self.earliest = np.zeros(nodes * NUM_COMMANDS, dtype=np.int64)
        self.recent = np.zeros((len(rules.rows) * nodes, int(rules.rows[:, 3].max()) + 1), dtype=np.int64)
        self.open_row = np.full(banks, -1, dtype=np.int64)
        self.bank_state = np.zeros((2, banks), dtype=np.int64)
        self.queue = np.zeros((5, MAX_QUEUE), dtype=np.int64)
        # Of each bank: requests to it, as bits of their places in the queue.
        self.waiting = np.zeros(banks, dtype=np.int64)
        # Of each need: requests as bits, a tick before which none can issue; the latter once more as scratch.
        self.needs = np.zeros((3, NUM_NEEDS * banks), dtype=np.int64)
        self.opened = np.zeros((3, banks + 1), dtype=np.int64)
        self.raised = np.zeros(RING, dtype=np.int64)
        self.counts = np.zeros(NUM_COMMANDS, dtype=np.int64)
        self.log = np.zeros((log_length, LOG_FIELDS), dtype=np.int64)

    def run(self, banks: Ints, keys: Ints, arrivals: Ints, first: int) -> tuple[int, int, int]:
        """Go on until requests run out, the log is full, the run is done, or too many refreshes wait.

        ``banks``, ``keys``, ``arrivals`` : (requests,) the next ones, of which the first ``first`` were taken
        in earlier calls. Returns status, requests taken, commands in the log, which begins anew.
        """
        rules = self.rules
        status, taken, logged = _run(
            rules.options, rules.interval, rules.widths, rules.pairs, rules.offsets, rules.start, rules.rows,
            self.scalars, self.earliest, self.recent, self.open_row,
            self.bank_state, self.queue, self.waiting, self.needs, self.opened, self.raised, self.counts,
            self.log,
            banks, keys, arrivals, first, self.total,
        )  # fmt: skip
        return int(status), int(taken), int(logged)

    def scalar(self, which: int) -> int:
        """Return one of the scalars."""
        return int(self.scalars[which])


@njit(cache=True, inline="always")
def _issue(
    command: int,
    bank: int,
    tick: int,
    earliest: Ints,
    recent: Ints,
    offsets: Ints,
    start: Ints,
    rows_after: Ints,
) -> None:
    """Push the earliest ticks of all commands that the table has after this one."""
    nodes = earliest.shape[0] // NUM_COMMANDS
    for row in range(start[command], start[command + 1]):
        node = offsets[rows_after[row, 0], bank]
        when = tick + rows_after[row, 2]
        window = rows_after[row, 3]
        if window > 1:
            # The next but `window` - 1 counts from this one, the next from the oldest of the last `window`.
            ring = row * nodes + node // NUM_COMMANDS
            place = recent[ring, window]
            recent[ring, place] = when
            place = place + 1 if place + 1 < window else 0
            recent[ring, window] = place
            when = recent[ring, place]
        earliest[node + rows_after[row, 1]] = max(earliest[node + rows_after[row, 1]], when)


@njit(cache=True, inline="always")
def _ready(command: int, bank: int, earliest: Ints, offsets: Ints) -> int:
    """Return the earliest tick of a command to a bank."""
    own = earliest[offsets[0, bank] + command]
    ready: int = max(own, earliest[offsets[1, bank] + command], earliest[offsets[2, bank] + command])
    return ready


@njit(cache=True, inline="always")
def _edge(
    tick: int, command: int, bank: int, scope: int, pair_tick: int, pair_scope: int, pair_bank: int
) -> int:
    """Return the first tick from ``tick`` on in whose half of the clock a command may start (HBM3)."""
    if tick & 1:
        return tick
    if command not in (PRE, PRE_ALL):
        return tick + 1
    if (
        tick == pair_tick
        and scope == pair_scope
        and (command == PRE_ALL or pair_bank < 0 or pair_bank == bank)
    ):
        return tick + 1
    return tick


@njit(cache=True, inline="always")
def _command_of(need: int) -> int:
    return RD if need == NEED_RD else WR if need == NEED_WR else ACT if need == NEED_ACT else PRE


@njit(cache=True, inline="always")
def _classify(
    place: int,
    queue: Ints,
    needs: Ints,
    open_row: Ints,
    bank_state: Ints,
    earliest: Ints,
    offsets: Ints,
    per_scope: int,
) -> None:
    """Find out what a request needs, and when it may have it at the earliest."""
    bank, key = queue[Q_BANK, place], queue[Q_KEY, place]
    row = open_row[bank]
    if row < 0:
        need = NEED_ACT
    elif row == key >> ROW_SHIFT:
        need = HELD if bank_state[1, bank] else NEED_WR if key & 1 else NEED_RD
    else:
        need = HELD if bank_state[0, bank] else NEED_PRE
    if need == HELD:
        queue[Q_NEED, place], queue[Q_READY, place] = HELD, FAR
        return
    number = bank // per_scope * NUM_NEEDS + need
    ready = _ready(_command_of(need), bank, earliest, offsets)
    queue[Q_NEED, place], queue[Q_READY, place] = number, ready
    needs[1, number] = min(needs[1, number], ready) if needs[0, number] else ready
    needs[0, number] |= np.int64(1) << place


@njit(cache=True, inline="always")
def _wake(
    bank: int,
    queue: Ints,
    waiting: Ints,
    needs: Ints,
    open_row: Ints,
    bank_state: Ints,
    earliest: Ints,
    offsets: Ints,
    per_scope: int,
) -> None:
    """Look again at the requests to a bank whose state has changed."""
    places = waiting[bank]
    while places:
        place = trailing_zeros(places)
        places &= places - 1
        number = queue[Q_NEED, place]
        if number != HELD:
            needs[0, number] &= ~(np.int64(1) << place)
        _classify(place, queue, needs, open_row, bank_state, earliest, offsets, per_scope)


@njit(cache=True, inline="always")
def _leave(place: int, queue: Ints, queued: int, waiting: Ints, needs: Ints, num_needs: int) -> None:
    """Take a request out of the queue; the later ones move up."""
    number = queue[Q_NEED, place]
    if number != HELD:
        needs[0, number] &= ~(np.int64(1) << place)
    waiting[queue[Q_BANK, place]] &= ~(np.int64(1) << place)
    below = (np.int64(1) << place) - 1
    above = ~below & ALL_BUT_SIGN
    for number in range(num_needs):
        needs[0, number] = (needs[0, number] & below) | (needs[0, number] >> 1 & above)
    for bank in range(waiting.shape[0]):
        waiting[bank] = (waiting[bank] & below) | (waiting[bank] >> 1 & above)
    for field in range(5):
        for later in range(place, queued - 1):
            queue[field, later] = queue[field, later + 1]


@njit(cache=True, inline="always")
def _pick(
    clock: int,
    columns: bool,
    rows: bool,
    queue: Ints,
    needs: Ints,
    earliest: Ints,
    offsets: Ints,
    per_scope: int,
    scopes: int,
    halves: bool,
    act_2_bank: int,
    closed_bank: int,
    pair_tick: int,
    pair_scope: int,
    pair_bank: int,
) -> tuple[int, int]:
    """Return place and command of the oldest request that may issue in this tick; -1 if there is none.

    A need is looked at only if one of its requests may be ready; readiness only moves further away until
    the request's bank is opened or closed, which :func:`_wake` sees.
    """
    candidates = np.int64(0)
    looked_at = np.int64(0)
    first = NEED_RD if columns else NEED_ACT
    last = NEED_PRE if rows else NEED_WR
    if halves and clock & 1 == 0:
        first = NEED_PRE
    for scope in range(scopes):
        for need in range(first, last + 1):
            number = scope * NUM_NEEDS + need
            if needs[0, number] == 0 or needs[1, number] > clock:
                continue
            if earliest[offsets[2, scope * per_scope] + _command_of(need)] > clock:
                continue
            if need == NEED_ACT and act_2_bank >= 0:
                continue
            candidates |= needs[0, number]
            looked_at |= np.int64(1) << number
            needs[2, number] = FAR
    while candidates:
        place = trailing_zeros(candidates)
        candidates &= candidates - 1
        number = queue[Q_NEED, place]
        ready = queue[Q_READY, place]
        if ready <= clock:
            bank = queue[Q_BANK, place]
            command = _command_of(number % NUM_NEEDS)
            ready = _ready(command, bank, earliest, offsets)
            if halves and command == PRE:
                ready = _edge(
                    max(ready, clock), command, bank, bank // per_scope, pair_tick, pair_scope, pair_bank
                )
            if ready <= clock and bank != closed_bank:
                return place, command
            queue[Q_READY, place] = ready
        needs[2, number] = min(needs[2, number], ready)
    for number in range(scopes * NUM_NEEDS):
        if looked_at >> number & 1:
            needs[1, number] = needs[2, number]
    return -1, 0


@depends_on(constraints)
@njit(cache=True)
def _run(
    options: Ints,
    interval: int,
    widths: Ints,
    pairs: Ints,
    offsets: Ints,
    start: Ints,
    rows_after: Ints,
    scalars: Ints,
    earliest: Ints,
    recent: Ints,
    open_row: Ints,
    bank_state: Ints,
    queue: Ints,
    waiting: Ints,
    needs: Ints,
    opened: Ints,
    raised: Ints,
    counts: Ints,
    log: Ints,
    banks: Ints,
    keys: Ints,
    arrivals: Ints,
    first: int,
    total: int,
) -> tuple[int, int, int]:
    """Run until requests run out, the log is full or the run is done: see :meth:`Channel.run`.

    ``bank_state`` : of each bank, whether a request has opened it and not read; whether ACT-2 is missing.
    ``queue`` : in order of arrival; ``waiting``, ``needs`` : see :class:`Channel`. ``opened`` : bank, key,
    arrival number of the requests that have opened a row, in order of arrival.
    """
    per_scope, two_buses, halves, split = options[0], options[1] != 0, options[2] != 0, options[3] != 0
    act_2_after, read_clock, write_clock = options[4], options[5], options[6]
    banks_at_once, closing, size, drain = options[7], options[8] != 0, options[9], options[10] != 0
    by_bank, num_banks = banks_at_once > 0, open_row.shape[0]
    scopes = num_banks // per_scope
    clock, accepted = scalars[CLOCK], scalars[ACCEPTED]
    queued, num_opened = scalars[QUEUED], scalars[OPENED]
    taken, logged, have = first, 0, banks.shape[0]
    served, last_tick = scalars[SERVED], scalars[LAST_TICK]
    next_raise, raised_first, raised_count = scalars[NEXT_RAISE], scalars[RAISED_FIRST], scalars[RAISED_COUNT]
    next_bank, free_row, free_column = scalars[NEXT_BANK], scalars[FREE_ROW], scalars[FREE_COLUMN]
    pair_tick, pair_scope, pair_bank = scalars[PAIR_TICK], scalars[PAIR_SCOPE], scalars[PAIR_BANK]
    act_2_bank, act_2_due, runs_to = scalars[ACT_2_BANK], scalars[ACT_2_DUE], scalars[CLOCK_RUNS_TO]
    read_next, read_from = scalars[READ_NEXT], scalars[READ_FROM]
    opened_next = 0  # a tick before which none of the opened can be read
    status = DONE
    while True:
        if logged + MOST_PER_TICK > log.shape[0]:
            status = LOG_FULL
            break
        # A request is offered, and taken if there is room.
        waits_for = FAR
        if accepted < total and queued < size:
            if taken == have:
                status = NEED_REQUESTS
                break
            waits_for = arrivals[taken] if arrivals.shape[0] else 0
            if waits_for <= clock:
                queue[Q_BANK, queued], queue[Q_KEY, queued] = banks[taken], keys[taken]
                queue[Q_ARRIVAL, queued] = accepted
                waiting[banks[taken]] |= np.int64(1) << queued
                _classify(queued, queue, needs, open_row, bank_state, earliest, offsets, per_scope)
                queued += 1
                taken += 1
                accepted += 1
                waits_for = clock + 1
        if accepted == total:
            if not drain or (queued == 0 and num_opened == 0):
                break
            if waits_for == clock + 1:
                waits_for = FAR
        clock += 1
        # Refreshes fall due.
        if clock == next_raise:
            next_raise += interval
            if raised_count + max(banks_at_once, scopes) > RING:
                status = OVERRUN  # they fall due faster than they can be issued
                break
            if by_bank:
                for _ in range(banks_at_once):
                    raised[(raised_first + raised_count) % RING] = next_bank
                    next_bank = (next_bank + 1) % num_banks
                    raised_count += 1
            else:
                for scope in range(scopes):
                    raised[(raised_first + raised_count) % RING] = scope * per_scope
                    raised_count += 1
        quiet = True
        for turn in range(2 if two_buses else 1):
            columns = turn == 0
            rows = turn == 1 or not two_buses
            command = -1
            bank, place, source = 0, -1, FROM_QUEUE
            bus_free = clock >= (free_column if two_buses and columns else free_row)
            if split and read_next >= 0:
                # The read behind the CAS of the last tick.
                place, source = read_next, read_from
                read_next = -1
                key = opened[1, place] if source == FROM_OPENED else queue[Q_KEY, place]
                command = WR if key & 1 else RD
            elif split and act_2_bank >= 0 and clock >= act_2_due:
                command = ACT_2
            elif bus_free:
                if columns and opened_next <= clock and not (halves and clock & 1 == 0):
                    opened_next = FAR
                    for number in range(num_opened):
                        kind = WR if opened[1, number] & 1 else RD
                        ready = _ready(kind, opened[0, number], earliest, offsets)
                        opened_next = min(opened_next, ready)
                        if ready <= clock:
                            command, place, source = kind, number, FROM_OPENED
                            break
                closed_bank = -1
                if command < 0 and raised_count > 0:
                    bank = raised[raised_first]
                    if rows:
                        wanted, ready = _refresh(
                            bank, by_bank, per_scope, open_row, bank_state, earliest, offsets
                        )
                        if halves and ready < FAR:
                            ready = _edge(
                                max(ready, clock),
                                wanted,
                                bank,
                                bank // per_scope,
                                pair_tick,
                                pair_scope,
                                pair_bank,
                            )
                        if ready <= clock:
                            command = wanted
                    closed_bank = bank if by_bank else num_banks
                if command < 0 and closed_bank < num_banks:
                    place, kind = _pick(
                        clock, columns, rows, queue, needs, earliest, offsets, per_scope, scopes, halves,
                        act_2_bank, closed_bank, pair_tick, pair_scope, pair_bank,
                    )  # fmt: skip
                    if place >= 0:
                        command = kind
                if command < 0 and closing and rows and closed_bank < 0:
                    for idle in range(num_banks):
                        if _unused(idle, queue, queued, open_row, bank_state):
                            ready = _ready(PRE, idle, earliest, offsets)
                            if halves:
                                ready = _edge(
                                    max(ready, clock),
                                    PRE,
                                    idle,
                                    idle // per_scope,
                                    pair_tick,
                                    pair_scope,
                                    pair_bank,
                                )
                            if ready <= clock:
                                command, bank, place = PRE, idle, -1
                                break
                if split:
                    if (command in (RD, WR)) and clock >= runs_to:
                        if act_2_bank >= 0 and act_2_due <= clock + 1:
                            command = ACT_2
                        else:
                            read_next, read_from = place, source
                            command = CAS
                    elif command < 0 and act_2_bank >= 0:
                        command = ACT_2
            if command < 0:
                continue
            # Issue it.
            quiet = False
            key = -1
            if command == ACT_2:
                bank = act_2_bank
                act_2_bank = -1
                bank_state[1, bank] = 0
            elif command == CAS:
                bank = opened[0, place] if source == FROM_OPENED else queue[Q_BANK, place]
            elif place >= 0:
                if source == FROM_OPENED:
                    bank, key = opened[0, place], opened[1, place]
                else:
                    bank, key = queue[Q_BANK, place], queue[Q_KEY, place]
            row_shown, column_shown = -1, -1
            scope = bank // per_scope
            if command in (RD, WR):
                row_shown, column_shown = key >> ROW_SHIFT, (key >> COLUMN_SHIFT) & COLUMN_MASK
                served += 1
                runs = read_clock if command == RD else write_clock
                runs_to = max(runs_to, clock + runs)
                if source == FROM_OPENED:
                    opened_next = 0
                    num_opened -= 1
                    for field in range(3):
                        for number in range(place, num_opened):
                            opened[field, number] = opened[field, number + 1]
                    bank_state[0, bank] = 0
            elif command == ACT:
                row_shown = key >> ROW_SHIFT
                open_row[bank] = row_shown
                bank_state[0, bank] = 1
                arrival = queue[Q_ARRIVAL, place]
                number = num_opened
                while number > 0 and opened[2, number - 1] > arrival:
                    for field in range(3):
                        opened[field, number] = opened[field, number - 1]
                    number -= 1
                opened[0, number], opened[1, number], opened[2, number] = bank, key, arrival
                num_opened += 1
                opened_next = 0
                if split:
                    bank_state[1, bank] = 1
                    act_2_bank, act_2_due = bank, clock + act_2_after
            elif command == PRE:
                open_row[bank] = -1
            elif command == PRE_ALL:
                for other in range(scope * per_scope, (scope + 1) * per_scope):
                    open_row[other] = -1
            elif command in (REF, REF_BANK):
                raised_first = (raised_first + 1) % RING
                raised_count -= 1
            if place >= 0 and source == FROM_QUEUE and (command in (RD, WR, ACT)):
                _leave(place, queue, queued, waiting, needs, scopes * NUM_NEEDS)
                queued -= 1
            if halves and clock & 1 and pairs[command]:
                pair_tick = clock + pairs[command]
                pair_scope = scope
                pair_bank = -1 if command in (PRE_ALL, REF) else bank
            _issue(command, bank, clock, earliest, recent, offsets, start, rows_after)
            if command not in (CAS, REF) and not (source == FROM_QUEUE and command == RD):
                # Whoever waits for this bank, or this scope, needs something else now.
                first_bank, last_bank = bank, bank + 1
                if command == PRE_ALL:
                    first_bank, last_bank = scope * per_scope, (scope + 1) * per_scope
                for other in range(first_bank, last_bank):
                    _wake(other, queue, waiting, needs, open_row, bank_state, earliest, offsets, per_scope)
            if two_buses and (command in (RD, WR)):
                free_column = clock + widths[command]
            else:
                free_row = clock + widths[command]
            counts[command] += 1
            log[logged, 0], log[logged, 1], log[logged, 2] = clock, command, bank
            log[logged, 3], log[logged, 4] = row_shown, column_shown
            logged += 1
        if not quiet:
            last_tick = clock
        elif accepted == total or queued == size or waits_for > clock:
            # Nothing changes before the least of these.
            event = next_raise
            if queued < size and accepted < total:
                event = min(event, waits_for + 1)
            if num_opened:
                event = min(event, opened_next)
            look = True
            if raised_count > 0:
                bank = raised[raised_first]
                _, ready = _refresh(bank, by_bank, per_scope, open_row, bank_state, earliest, offsets)
                event = min(event, ready)
                look = by_bank
            if look:
                least = FAR
                for scope in range(scopes):
                    node = offsets[2, scope * per_scope]
                    for need in range(NUM_NEEDS):
                        number = scope * NUM_NEEDS + need
                        if needs[0, number]:
                            ready = max(needs[1, number], earliest[node + _command_of(need)])
                            least = min(least, ready if need == NEED_PRE or not halves else ready | 1)
                event = min(event, max(least, min(free_row, free_column) if two_buses else free_row))
                if closing:
                    for idle in range(num_banks):
                        if _unused(idle, queue, queued, open_row, bank_state):
                            event = min(event, _ready(PRE, idle, earliest, offsets))
            clock = max(clock, event - 1)
    scalars[CLOCK], scalars[ACCEPTED], scalars[QUEUED], scalars[OPENED] = clock, accepted, queued, num_opened
    scalars[SERVED], scalars[LAST_TICK] = served, last_tick
    scalars[NEXT_RAISE], scalars[RAISED_FIRST], scalars[RAISED_COUNT] = next_raise, raised_first, raised_count
    scalars[NEXT_BANK], scalars[FREE_ROW], scalars[FREE_COLUMN] = next_bank, free_row, free_column
    scalars[PAIR_TICK], scalars[PAIR_SCOPE], scalars[PAIR_BANK] = pair_tick, pair_scope, pair_bank
    scalars[ACT_2_BANK], scalars[ACT_2_DUE], scalars[CLOCK_RUNS_TO] = act_2_bank, act_2_due, runs_to
    scalars[READ_NEXT], scalars[READ_FROM] = read_next, read_from
    return status, taken, logged


@njit(cache=True)
def _refresh(
    bank: int, by_bank: bool, per_scope: int, open_row: Ints, bank_state: Ints, earliest: Ints, offsets: Ints
) -> tuple[int, int]:
    """Return the command that the first raised refresh needs, and its earliest tick; FAR if it may not."""
    first, last = bank, bank + 1
    if not by_bank:
        first = bank // per_scope * per_scope
        last = first + per_scope
    is_open, held = False, False
    for other in range(first, last):
        is_open |= open_row[other] >= 0
        held |= bank_state[0, other] != 0
    if held:
        return PRE_ALL, FAR
    if by_bank:
        wanted = PRE if is_open else REF_BANK
        return wanted, _ready(wanted, bank, earliest, offsets)
    wanted = PRE_ALL if is_open else REF
    return wanted, earliest[offsets[2, bank] + wanted]


@njit(cache=True)
def _unused(bank: int, queue: Ints, queued: int, open_row: Ints, bank_state: Ints) -> bool:
    """Whether a bank's row is open and no request wants it."""
    if open_row[bank] < 0 or bank_state[0, bank]:
        return False
    for place in range(queued):
        if queue[Q_BANK, place] == bank and queue[Q_KEY, place] >> ROW_SHIFT == open_row[bank]:
            return False
    return True
