"""Replay the commands of a product against the table of DRAM constraints, and its inputs against its MACs.

:func:`check_log` knows neither schedule; :func:`check_inputs` knows the order of inputs and MACs in ours.

Every constraint is a row of :data:`spec.dram.CONSTRAINTS`: "at least so many cycles from each A to the next B
of the same bank, bank group, channel". A MAC is a read, a command to all even or odd banks is one to each.
Commands are as long as a cycle each. What is not in that table is said here: one command per cycle and bus,
states of banks, refreshes in time, and the registers that MACs read (on the register path alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.gemv import lockstep
from sim.gemv.commands import EVEN, FAR, NO_BANK, ODD, Kind, Log, PowerLimits, bus_slots, limited
from sim.gemv.streamed import Layout
from spec.dram import PROTOCOLS, Command, Constraint, DramSpec, Level, constraints_of
from spec.program import LEAVE_ROW

Ints = NDArray[np.int64]
AS_COMMAND = {
    Command.ACT: (Kind.ACT,),
    Command.PRE: (Kind.PRE,),
    Command.RD: (Kind.MAC, Kind.RD),
    Command.WR: (Kind.WR,),
    Command.REF: (Kind.REF,),
}
ROW_BUS = (Kind.ACT, Kind.PRE, Kind.REF, Kind.OTHER_REF)
BEFORE_REFRESH = ("tRP before REF", "tRC before REF")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a schedule promises beside the table.

    Attributes
    ----------
    one_bus : row and column commands share a bus.
    stand_in : in a command to all even (odd) banks the controller sees the first even (odd) one alone.
    refresh_waits : REF waits tRP after PRE; the published kernel's does not.
    postponed : cycles that a refresh may be late.
    register_path : register accesses take a column slot and nothing else; otherwise they are on the data bus.
    refresh : there are refreshes.
    sets : banks of each command to a set; none: the even, and the odd ones.
    widths : commands are as long as their protocol has them; otherwise a cycle.
    mac_open : cycles from ACT to MAC, where that is more than to a read.
    """

    one_bus: bool = False
    stand_in: bool = False
    refresh_waits: bool = True
    postponed: int = 0
    register_path: bool = True
    refresh: bool = True
    sets: tuple[tuple[int, ...], ...] = ()
    widths: bool = False
    mac_open: int = 0


BARRIER = Rules(one_bus=True, stand_in=True, refresh_waits=False, postponed=155)
"""The published kernel's: it refreshes once no bank is open. Its rows open meanwhile, each before the one
before it may close: in the longest chain results (due from behind the last MAC on: 43 cycles to their last
write), the mode's row, inputs (78 cycles to their last write: PRE and ACT of their bank, writes), weights (1
cycle to ACT, tRAS to PRE). They close together and REF is next, 155 cycles from when it was due."""
STREAMED = Rules()


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name, the cycle of the command that breaks it, the distance it had and needs."""

    rule: str
    cycle: int
    distance: int
    least: int

    def __str__(self) -> str:
        return f"{self.rule}: {self.distance} cycles before cycle {self.cycle}, at least {self.least}"


def check_log(dram: DramSpec, log: Log, rules: Rules, limits: PowerLimits | None = None) -> list[Violation]:
    """Return the violations of a log, at most one per rule and bank."""
    limits = limits or PowerLimits()
    dram = limited(dram, limits)
    found: list[Violation] = []
    kinds = log[:, 1]
    row_bus = np.isin(kinds, ROW_BUS)
    buses = (
        {"the bus": log} if rules.one_bus else {"the row bus": log[row_bus], "the column bus": log[~row_bus]}
    )
    for name, commands in buses.items():
        found += _slots(f"one command per cycle on {name}", dram, commands, rules)
    for row in constraints_of(dram):
        if rules.refresh_waits or row.name not in BEFORE_REFRESH:
            found += _constraint(dram, log, row, rules)
    all_bank = log[:, 2] >= EVEN
    for name, kind, least in (("MACs", Kind.MAC, limits.mac_gap), ("ACTs", Kind.ACT, limits.act_gap)):
        found += _spaced(f"all-bank {name}", log[all_bank & (kinds == kind), 0], least)
    for bank in range(dram.num_banks):
        mine = _of_bank(log, bank, rules)
        found += _states(log[mine | (kinds == Kind.REF)], bank)
        if rules.mac_open:
            opened, read = log[mine & (kinds == Kind.ACT), 0], log[mine & (kinds == Kind.MAC), 0]
            found += _distances(f"ACT to MAC, bank {bank}", opened, read, rules.mac_open, 1)
    if rules.refresh:
        found += _refreshes(dram, log, rules.postponed)
    return found


def check_inputs(
    log: Log, layout: Layout, batch: int, per_unit: int, entries: int, row_bursts: int
) -> list[Violation]:
    """Return MACs that read a burst out of turn, or an input register before its write or after a later one.

    The order of MACs, results and register writes is that of :mod:`sim.gemv.streamed`; two writes before the
    inputs and one behind them are of other registers. Commands take effect in their order. Only for logs
    with the register path: without it register writes are writes on the data bus, whose inputs are not
    checked.

    Weights are stored once: all groups of tokens run in the passes of the first, read the same rows in the
    same order, and write the results of a pass behind its last MAC.
    """
    mac_lines = log[log[:, 1] == Kind.MAC]
    macs = mac_lines[:, 0]
    results = log[(log[:, 1] == Kind.WR) & (log[:, 2] >= EVEN) & (log[:, 3] != LEAVE_ROW), 0]
    writes = log[log[:, 1] == Kind.REG, 0][2:-1]
    found: list[Violation] = []
    groups = [min(layout.tokens, batch - start) for start in range(0, batch, layout.tokens)]
    count = -(-layout.outputs // (per_unit // groups[0]))
    passes = [layout.outputs // count + (number < layout.outputs % count) for number in range(count)]
    needed = (len(groups) * layout.outputs * layout.bursts, batch * count * layout.bursts)
    if (len(macs), len(writes)) != needed:
        return [Violation("MACs and inputs of the layout", 0, len(macs) + len(writes), sum(needed))]
    stored = np.tile(_stored(passes, layout.bursts, row_bursts), (len(groups), 1))
    wrong = np.flatnonzero((mac_lines[:, 2:] != stored).any(axis=1))
    if wrong.size:
        found.append(Violation("burst where it is stored", int(macs[wrong[0]]), 0, 0))
    mac = write = 0
    for sharing in groups:
        for here in passes:
            burst = np.arange(layout.bursts)
            first = macs[mac + burst * here]
            last = macs[mac + burst * here + here - 1]
            came = writes[write : write + layout.bursts * sharing].reshape(layout.bursts, sharing)
            depth = entries // sharing
            late = np.flatnonzero(came[:, -1] >= first)
            early = np.flatnonzero(came[depth:, 0] <= last[:-depth]) if depth < layout.bursts else late[:0]
            if late.size:
                found.append(Violation("input there", int(first[late[0]]), 0, 1))
            if early.size:
                found.append(Violation("input not replaced", int(last[early[0]]), 0, 1))
            mac += layout.bursts * here
            write += layout.bursts * sharing
            until = macs[mac] if mac < len(macs) else FAR
            behind = int(np.diff(np.searchsorted(results, (macs[mac - 1], until)))[0])
            if behind != here * sharing:
                found.append(Violation("results of a pass", int(macs[mac - 1]), behind, here * sharing))
    return found


def _stored(passes: list[int], bursts: int, row_bursts: int) -> Ints:
    """Return bank and row of every burst of a unit in the order of use; (bursts, 2).

    Rows of the even and the odd banks follow each other; a pass that ends with a row stays on its side.
    """
    places: list[Ints] = []
    rows, side, column = np.zeros(2, dtype=np.int64), 0, 0
    for here in passes:
        step = (column + np.arange(here * bursts)) // row_bursts
        on = (side + step) % 2
        places.append(np.stack([EVEN + on, rows[on] + step // 2], axis=1))
        full, column = divmod(column + here * bursts, row_bursts)
        rows[side] += (full + 1) // 2
        rows[1 - side] += full // 2
        side = int(on[-1])
    return np.concatenate(places)


def check_sums(
    log: Log,
    layout: lockstep.Layout,
    batch: int,
    per_set: int,
    results: int,
    num_sets: int,
    row_bursts: int,
    *,
    shared: bool,
) -> list[Violation]:
    """Return MACs of sets in lockstep that read a wrong burst or input, or sums that are not read in time.

    The order of MACs, inputs and sums is that of :mod:`sim.gemv.lockstep`. A MAC comes behind the write of
    its input, a write behind the last MAC that reads what it replaces in the buffer, the reads of sums
    behind the last MAC of them. On the data bus the sums of some outputs are read before the next ones'
    MACs; else before those of the next but one. Weights are stored once: all groups of tokens have the chunks
    and the outputs at once of the first, and read the same rows in the same order.

    Parameters
    ----------
    per_set : banks of a set. results : sums that a read returns. shared : registers are on the data bus.
    num_sets : sets of a channel. row_bursts : bursts of a row.
    """
    macs, writes, reads = (log[log[:, 1] == kind, 0] for kind in (Kind.MAC, Kind.REG, Kind.RD))
    found: list[Violation] = []
    used: list[Ints] = []  # of each input burst, in the order of their writes: first and last MAC
    mac = read = 0
    ends: list[int] = []  # reads that are done before the MACs of some outputs begin
    places = log[log[:, 1] == Kind.MAC, 2:]
    row = np.arange(len(places)) % (layout.outputs * layout.bursts) // row_bursts
    stored = np.stack([EVEN + row % num_sets, row // num_sets], axis=1)
    wrong = np.flatnonzero((places != stored).any(axis=1))
    if wrong.size:
        found.append(Violation("burst where it is stored", int(macs[wrong[0]]), 0, 0))
    shared_by = min(layout.tokens, batch)
    chunk, sums = layout.entries // shared_by, max(1, layout.sums // shared_by)
    for start in range(0, batch, layout.tokens):
        sharing = min(layout.tokens, batch - start)
        for base in range(0, layout.bursts, chunk):
            bursts = np.arange(min(chunk, layout.bursts - base))
            first_mac = mac
            for output in range(0, layout.outputs, sums):
                here = min(sums, layout.outputs - output)
                begin = mac + bursts * here
                if mac + len(bursts) * here > len(macs):
                    return [Violation("MACs of the layout", 0, len(macs), mac + len(bursts) * here)]
                waits_for = ends[-1] if shared and ends else ends[-2] if len(ends) > 1 else 0
                if waits_for > len(reads) or (waits_for and reads[waits_for - 1] >= macs[mac]):
                    found.append(Violation("sums read before the next", int(macs[mac]), 0, 1))
                mac += len(bursts) * here
                count = -(-per_set * here * sharing // results)
                if read + count > len(reads) or reads[read] <= macs[mac - 1]:
                    found.append(Violation("sums read behind their last MAC", int(macs[mac - 1]), 0, 1))
                read += count
                ends.append(read)
            first = np.arange(first_mac, first_mac + len(bursts) * min(sums, layout.outputs))
            first = macs[first[:: min(sums, layout.outputs)]]
            used.append(np.repeat(np.stack([first, macs[begin + here - 1]], axis=1), sharing, axis=0))
    if (mac, read, batch * layout.bursts) != (len(macs), len(reads), len(writes)):
        return [Violation("MACs, sums and inputs of the layout", 0, len(macs), mac)]
    first, last = np.concatenate(used).T
    held = layout.entries
    early = writes[held:] <= last[:-held] if held < len(writes) else np.zeros(0, dtype=np.bool_)
    for name, late, cycles in (
        ("input there", writes >= first, first),
        ("input not replaced", early, writes[held:]),
    ):
        where = np.flatnonzero(late)
        if where.size:
            found.append(Violation(name, int(cycles[where[0]]), 0, 1))
    return found


def _of_bank(log: Log, bank: int, rules: Rules) -> NDArray[np.bool_]:
    mine: NDArray[np.bool_] = log[:, 2] == bank
    if rules.sets:
        [place] = [number for number, banks in enumerate(rules.sets) if bank in banks]
        mine |= log[:, 2] == EVEN + place
    elif not rules.stand_in or bank < 2:
        mine = mine | (log[:, 2] == (ODD if bank % 2 else EVEN))
    return mine


def _constraint(dram: DramSpec, log: Log, row: Constraint, rules: Rules) -> list[Violation]:
    """Return where a row of the table is broken."""
    registers = (log[:, 1] == Kind.RD) & (log[:, 2] == NO_BANK)
    ticks, last = _last_ticks(dram, log, rules)

    def chosen(commands: tuple[Command, ...]) -> NDArray[np.bool_]:
        kinds: list[int] = [kind for command in commands for kind in AS_COMMAND.get(command, ())]
        if Command.WR in commands and not rules.register_path:
            kinds.append(Kind.REG)
        mine: NDArray[np.bool_] = np.isin(log[:, 1], kinds)
        return mine & ~registers if rules.register_path else mine

    before, after = chosen(row.preceding), chosen(row.following)
    if (
        row.preceding == row.following == (Command.ACT,)
        and row.level is not Level.BANK
        and dram.all_bank_exempt
    ):
        before = after = before & (log[:, 2] < EVEN)
    least = ticks * row.clocks(dram.timing)
    if row.level is Level.SCOPE:
        return _distances(row.name, last[before], last[after], least, row.window)
    found: list[Violation] = []
    members = dram.banks_per_group if row.level is Level.BANK_GROUP else 1
    for place in range(dram.num_banks // members):
        mine = np.zeros(len(log), dtype=np.bool_)
        for bank in range(place * members, (place + 1) * members):
            mine |= _of_bank(log, bank, rules)
        if row.level is Level.BANK_GROUP:
            mine |= (log[:, 1] == Kind.REG) | registers  # on the data bus they go to all units
        where = "bank group" if row.level is Level.BANK_GROUP else "bank"
        found += _distances(
            f"{row.name}, {where} {place}", last[before & mine], last[after & mine], least, row.window
        )
    return found


AS_KIND = {kind: command for command, kinds in AS_COMMAND.items() for kind in kinds} | {Kind.REG: Command.WR}
"""What a command of a log is on its bus."""


def _last_ticks(dram: DramSpec, log: Log, rules: Rules) -> tuple[int, Ints]:
    """Return the ticks of a cycle, and each command's last one."""
    cycles: Ints = log[:, 0]
    if not rules.widths:
        return 1, cycles
    protocol = PROTOCOLS[dram.protocol]
    ticks = protocol.ticks_per_clock
    width = np.ones(len(Kind), dtype=np.int64)
    for kind, command in AS_KIND.items():
        width[kind] = protocol.width(command)
    return ticks, ticks * cycles + width[log[:, 1]] - 1


def _slots(name: str, dram: DramSpec, log: Log, rules: Rules) -> list[Violation]:
    """Return the first command whose cycles of a bus another one has."""
    if not rules.widths:
        return _spaced(name, log[:, 0], 1)
    before, behind = np.zeros(len(Kind), dtype=np.int64), np.zeros(len(Kind), dtype=np.int64)
    slots = bus_slots(dram)
    for kind, command in AS_KIND.items():
        # A MAC moves no data over the pins.
        before[kind], behind[kind] = slots[command] if kind != Kind.MAC else (0, slots[command][1])
    first, last = log[:, 0] - before[log[:, 1]], log[:, 0] + behind[log[:, 1]]
    near = np.flatnonzero(first[1:] <= last[:-1])
    if not near.size:
        return []
    place = near[0]
    return [Violation(name, int(log[place + 1, 0]), int(first[place + 1] - last[place]), 1)]


def _distances(name: str, before: Ints, after: Ints, least: int, window: int) -> list[Violation]:
    """Return the first of ``after`` that is too near to the last but ``window`` - 1 of ``before``.

    A command is not before itself.
    """
    place = np.searchsorted(before, after, side="left") - window
    known = place >= 0
    if not known.any():
        return []
    distance = after[known] - before[place[known]]
    near = np.flatnonzero(distance < least)
    return [Violation(name, int(after[known][near[0]]), int(distance[near[0]]), least)] if near.size else []


def _spaced(name: str, cycles: Ints, least: int) -> list[Violation]:
    if least <= 0:
        return []
    near = np.flatnonzero(np.diff(cycles) < least)
    if not near.size:
        return []
    return [Violation(name, int(cycles[near[0] + 1]), int(np.diff(cycles)[near[0]]), least)]


def _states(log: Log, bank: int) -> list[Violation]:
    """Return the first access to a row that is not open, ACT of an open bank, refresh of an open one."""
    changes = np.isin(log[:, 1], (Kind.ACT, Kind.PRE))
    # What the bank was before each command: the last ACT or PRE, if any.
    index = np.where(changes, np.arange(len(log)), -1)
    last = np.concatenate([[-1], np.maximum.accumulate(index)[:-1]]) if len(log) else index
    was_open = (last >= 0) & (log[last, 1] == Kind.ACT)
    open_row = log[last, 3]
    column = np.isin(log[:, 1], (Kind.MAC, Kind.RD, Kind.WR))
    found = []
    for name, wrong in (
        ("access to the open row", column & ~(was_open & (open_row == log[:, 3]))),
        ("ACT of a closed bank", (log[:, 1] == Kind.ACT) & was_open),
        ("REF of closed banks", (log[:, 1] == Kind.REF) & was_open),
    ):
        where = np.flatnonzero(wrong)
        if where.size:
            found.append(Violation(f"{name}, bank {bank}", int(log[where[0], 0]), 0, 0))
    return found


def _refreshes(dram: DramSpec, log: Log, postponed: int) -> list[Violation]:
    """Return the first refresh that is early or late; the first is due half an interval after cycle 0."""
    interval = dram.timing.refi
    ref = log[log[:, 1] == Kind.REF, 0]
    end = int(log[-1, 0]) if len(log) else 0
    due = np.arange(interval // 2, max(end + 1, interval * (len(ref) + 1)), interval)
    late = ref - due[: len(ref)]
    wrong = np.flatnonzero((late < 0) | (late > postponed))
    if wrong.size:
        return [Violation("refresh when due", int(ref[wrong[0]]), int(late[wrong[0]]), postponed)]
    if len(ref) < len(due) and due[len(ref)] + postponed < end:
        return [Violation("refresh when due", end, end - int(due[len(ref)]), postponed)]
    return []
