"""Check a channel's command log: every constraint, every bus, every refresh; nothing of the engine is used.

The rules are the rows of the table in :mod:`spec.dram`, each as it stands there: between the last tick of a
command and the last tick of one that follows it at the same bank, bank group or scope lie at least so many
clocks. What is no distance between two commands is in :data:`STATE_RULES`. The checker looks back from each
command; the engine pushes ahead of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.compiled import depends_on
from spec.dram import EDGE_PAIRS, PROTOCOLS, Command, DramSpec, constraints, constraints_of

Ints = NDArray[np.int64]
NUM_COMMANDS = len(Command)
ACT, PRE, PRE_ALL, RD, WR, REF, REF_BANK, ACT_2, CAS = (int(command) for command in Command)
DEPTH = 4
NEVER = -(1 << 60)

STATE_RULES = (
    "commands in order of time",
    "one command at a time on a bus",
    "the half of the clock",
    "ACT of a closed bank",
    "RD and WR in the open row",
    "REF of closed banks",
    "one burst at a time on the data bus",
    "ACT-2 behind its ACT-1",
    "CAS before RD and WR",
    "refresh in time",
)
ORDER, BUS, HALF, CLOSED, OPEN, REFRESHED, DATA, SECOND_ACT, WRITE_CLOCK, IN_TIME = range(len(STATE_RULES))
(LAST_TICK, FREE_ROW, FREE_COLUMN, PAIR_TICK, PAIR_SCOPE, PAIR_BANK, FIRST_BANK, FIRST_TICK, RUNS_TO,
 CAS_TICK, NUM_SCALARS) = range(11)  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """A rule that is broken ``count`` times; the tick of the first time, the distance it had and needs.

    For a rule that is no distance, ``distance`` and ``least`` are what the rule compares, in ticks or counts.
    """

    rule: str
    count: int
    tick: int
    distance: int
    least: int

    def __str__(self) -> str:
        return (
            f"{self.rule}: broken {self.count} times, first at tick {self.tick}: {self.distance}, at least"
            f" {self.least}"
        )


class Checker:
    """The rules of a standard, and what is known of a log so far.

    Parameters
    ----------
    interval_clocks : between refreshes of a scope, or of ``banks_at_once`` banks in turn; 0 without refresh.
    banks_at_once : 0 where all banks of a scope are refreshed at once.
    """

    def __init__(self, dram: DramSpec, *, interval_clocks: int, banks_at_once: int = 0) -> None:
        self.dram = dram
        protocol, timing = PROTOCOLS[dram.protocol], dram.timing
        ticks = protocol.ticks_per_clock
        self.ticks = ticks
        constraints = constraints_of(dram)
        self.names = [row.name for row in constraints] + list(STATE_RULES)
        table = sorted(
            (int(after), int(row.level), int(before), ticks * row.clocks(timing), row.window - 1, number)
            for number, row in enumerate(constraints)
            for before in row.preceding
            for after in row.following
        )
        self.table = np.array(table, dtype=np.int64)
        self.start = np.searchsorted(self.table[:, 0], np.arange(NUM_COMMANDS + 1)).astype(np.int64)
        self.widths = np.array([protocol.width(command) for command in Command], dtype=np.int64)
        self.interval = ticks * interval_clocks
        self.facts = np.array(
            [
                dram.banks_per_group,
                dram.num_banks,
                int(protocol.row_bus),
                int(protocol.split_act),
                ticks * timing.cl,
                ticks * timing.cwl,
                ticks * timing.burst,
                ticks * timing.aad,
                ticks * timing.wck_post,
                banks_at_once,
                len(constraints),
            ],
            dtype=np.int64,
        )
        self.rising = np.array([int(command in protocol.rising_only) for command in Command], dtype=np.int64)
        self.halves = bool(protocol.rising_only)
        self.pairs = np.array([dict(EDGE_PAIRS).get(command, 0) for command in Command], dtype=np.int64)
        scopes, banks = dram.pseudo_channels, dram.pseudo_channels * dram.num_banks
        self.nodes = (banks, banks + scopes * dram.bank_groups)
        num_nodes = self.nodes[1] + scopes
        self.past = np.full((num_nodes * NUM_COMMANDS, DEPTH), NEVER, dtype=np.int64)
        self.rows = np.full(banks, -1, dtype=np.int64)
        self.data_free = np.zeros(scopes, dtype=np.int64)
        self.refreshes = np.zeros(scopes, dtype=np.int64)
        self.scalars = np.zeros(NUM_SCALARS, dtype=np.int64)
        self.scalars[[PAIR_TICK, FIRST_BANK, CAS_TICK]] = -1
        self.found = np.zeros((len(self.names), 4), dtype=np.int64)

    def check(self, log: Ints) -> None:
        """Go on with the next commands of the log: (commands, 5), see :data:`sim.dram.engine.LOG_FIELDS`."""
        _check(
            log, self.table, self.start, self.widths, self.interval, self.facts, self.rising, self.halves,
            self.pairs, self.nodes[0], self.nodes[1], self.past, self.rows, self.data_free, self.refreshes,
            self.scalars, self.found,
        )  # fmt: skip

    def finish(self, tick: int) -> list[Broken]:
        """Return what is broken in a log that ends with ``tick``; a refresh may be under way."""
        if self.interval:
            at_once = int(self.facts[9])
            slack = POSTPONED if at_once else 1
            for done in self.refreshes[:1] if at_once else self.refreshes:
                overdue = tick - (int(done) // max(1, at_once) + 1 + slack) * self.interval
                if overdue >= 0:
                    _break(self.found, int(self.facts[10]) + IN_TIME, tick, -overdue, 1)
        return [
            Broken(name, *(int(value) for value in row))
            for name, row in zip(self.names, self.found, strict=True)
            if row[0]
        ]


POSTPONED = 8
"""Intervals that the refresh of a bank may wait; that of all banks must be done before the next is due."""


@njit(cache=True)
def _break(found: Ints, rule: int, tick: int, distance: int, least: int) -> None:
    if found[rule, 0] == 0:
        found[rule, 1], found[rule, 2], found[rule, 3] = tick, distance, least
    found[rule, 0] += 1


@depends_on(constraints)
@njit(cache=True)
def _check(
    log: Ints,
    table: Ints,
    start: Ints,
    widths: Ints,
    interval: int,
    facts: Ints,
    rising: Ints,
    halves: bool,
    pairs: Ints,
    first_group: int,
    first_scope: int,
    past: Ints,
    rows: Ints,
    data_free: Ints,
    refreshes: Ints,
    scalars: Ints,
    found: Ints,
) -> None:
    """Check commands one by one, looking back from each."""
    per_group, per_scope, two_buses, split = facts[0], facts[1], facts[2], facts[3]
    read_latency, write_latency, burst, second_act, clock_post = (
        facts[4],
        facts[5],
        facts[6],
        facts[7],
        facts[8],
    )
    at_once, state = facts[9], facts[10]
    nodes = np.zeros(3, dtype=np.int64)
    for number in range(log.shape[0]):
        tick, command, bank, row = log[number, 0], log[number, 1], log[number, 2], log[number, 3]
        end = tick + widths[command] - 1
        scope = bank // per_scope
        to_scope = command in (PRE_ALL, REF)
        column = command in (RD, WR)
        nodes[0], nodes[1], nodes[2] = bank, first_group + bank // per_group, first_scope + scope
        # Distances.
        for rule in range(start[command], start[command + 1]):
            before = past[nodes[table[rule, 1]] * NUM_COMMANDS + table[rule, 2], table[rule, 4]]
            if end - before < table[rule, 3]:
                _break(found, table[rule, 5], tick, end - before, table[rule, 3])
        for level in range(2 if to_scope else 0, 3):
            place = nodes[level] * NUM_COMMANDS + command
            for depth in range(DEPTH - 1, 0, -1):
                past[place, depth] = past[place, depth - 1]
            past[place, 0] = end
        # Buses.
        if tick < scalars[LAST_TICK]:
            _break(found, state + ORDER, tick, tick - scalars[LAST_TICK], 0)
        scalars[LAST_TICK] = tick
        bus = FREE_COLUMN if two_buses and column else FREE_ROW
        if tick < scalars[bus]:
            _break(found, state + BUS, tick, tick - scalars[bus], 0)
        scalars[bus] = end + 1
        if halves:
            if tick & 1:
                if pairs[command]:
                    scalars[PAIR_TICK], scalars[PAIR_SCOPE] = tick + pairs[command], scope
                    scalars[PAIR_BANK] = -1 if to_scope else bank
            else:
                paired = tick == scalars[PAIR_TICK] and scope == scalars[PAIR_SCOPE]
                if rising[command] or (paired and (to_scope or scalars[PAIR_BANK] in (-1, bank))):
                    _break(found, state + HALF, tick, 0, 1)
        if column:
            begin = end + (read_latency if command == RD else write_latency)
            if begin < data_free[scope]:
                _break(found, state + DATA, tick, begin - data_free[scope], 0)
            data_free[scope] = begin + burst
        # Two commands for one.
        if split:
            waits = scalars[FIRST_BANK]
            if command == ACT_2:
                if waits != bank or tick - scalars[FIRST_TICK] > second_act:
                    _break(found, state + SECOND_ACT, tick, scalars[FIRST_TICK] + second_act - tick, 0)
                scalars[FIRST_BANK] = -1
            elif waits >= 0 and (
                command == ACT
                or (bank == waits and command != CAS)
                or (to_scope and waits // per_scope == scope)
            ):
                _break(found, state + SECOND_ACT, tick, -1, 0)
            if command == ACT:
                scalars[FIRST_BANK], scalars[FIRST_TICK] = bank, tick
            if command == CAS:
                scalars[CAS_TICK] = tick
            if column:
                if tick >= scalars[RUNS_TO] and scalars[CAS_TICK] != tick - 1:
                    _break(found, state + WRITE_CLOCK, tick, scalars[RUNS_TO] - tick, 1)
                latency = read_latency if command == RD else write_latency
                scalars[RUNS_TO] = max(scalars[RUNS_TO], tick + latency + burst + clock_post)
        # Rows.
        if command == ACT:
            if rows[bank] >= 0:
                _break(found, state + CLOSED, tick, 0, 1)
            rows[bank] = row
            # Nothing is opened while the refresh of all is due: none is postponed.
            due = (refreshes[scope] + 1) * interval
            if interval and not at_once and tick >= due:
                _break(found, state + IN_TIME, tick, due - tick, 1)
        elif column and rows[bank] != row:
            _break(found, state + OPEN, tick, 0, 1)
        elif command == PRE:
            rows[bank] = -1
        elif command == PRE_ALL:
            for other in range(scope * per_scope, (scope + 1) * per_scope):
                rows[other] = -1
        elif command in (REF, REF_BANK):
            first = scope * per_scope if to_scope else bank
            for other in range(first, first + (per_scope if to_scope else 1)):
                if rows[other] >= 0:
                    _break(found, state + REFRESHED, tick, 0, 1)
            # The n-th is due at n intervals, and done before the next but so many is.
            counter = 0 if at_once else scope
            due = (refreshes[counter] // max(1, at_once) + 1) * interval
            late = due + interval * (POSTPONED if at_once else 1)
            turn = refreshes[counter] % rows.shape[0]
            refreshes[counter] += 1
            if interval == 0 or tick < due or tick >= late or (at_once > 0) != (command == REF_BANK):
                _break(found, state + IN_TIME, tick, tick - due, 0)
            elif at_once and turn != bank:
                _break(found, state + IN_TIME, tick, bank, turn)
