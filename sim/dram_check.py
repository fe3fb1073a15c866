"""Check a channel's command trace against its DRAM, rule by rule; knows nothing of how it was made.

Every rule is stated on the commands as they stand on the buses: "at least n cycles from each A to the
next B of the same bank", n by the table of :mod:`spec.dram`. Nothing is shared with the command engine or its
model but that table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec.banks import COLUMN_KIND_BITS, ROW_KIND_BITS, BankGeometry
from spec.design import BankMode, PimDesign, RegisterPath
from spec.dram import Command, Level, all_groups, clocks_between

Ints = NDArray[np.int64]
ACT, PRE, PRE_ALL, REF = 1, 2, 3, 4
MAC, WRITE, READ = 1, 2, 3
FAR = 1 << 60
COMMANDS = {
    "ACT": (ACT, False),
    "PRE": (PRE, False),
    "PREA": (PRE_ALL, False),
    "REF": (REF, False),
    "MAC": (MAC, True),
    "WR": (WRITE, True),
    "RD": (READ, True),
}
"""Kind of each command, and whether it is on the column bus."""


@dataclass(frozen=True)
class Commands:
    """Commands of one run, each array ordered by cycle.

    Attributes
    ----------
    rows, columns : (n, 5) int64: cycle, kind (:class:`sim.pim.Row`, :class:`sim.pim.Column`), side, unit, and
        the row of an ACT or the column of a MAC, which no rule looks at.
    """

    rows: Ints
    columns: Ints

    def of(self, kind: int, *, column: bool = False) -> Ints:
        """Return the commands of one kind: (n, 3) cycle, side, unit."""
        commands = self.columns if column else self.rows
        chosen: Ints = commands[commands[:, 1] == kind][:, [0, 2, 3]]
        return chosen

    def before(self, end: int) -> Commands:
        """Return the commands of cycles below ``end``."""
        return Commands(self.rows[self.rows[:, 0] < end], self.columns[self.columns[:, 0] < end])

    def counts(self) -> dict[str, int]:
        """Return how often each of :data:`COMMANDS` was issued."""
        return {name: len(self.of(kind, column=column)) for name, (kind, column) in COMMANDS.items()}


def commands_seen(
    banks: BankGeometry,
    rows: tuple[Ints, NDArray[np.uint64]],
    columns: tuple[Ints, NDArray[np.uint64]],
) -> Commands:
    """Return the commands of a run from what its buses showed: cycles and values of each."""
    bits = banks.field_bits

    def decode(seen: tuple[Ints, NDArray[np.uint64]], kind_bits: int, address: str) -> Ints:
        cycles, values = seen
        fields = [cycles]
        start = 0
        for width in (kind_bits, bits["side"], bits["unit"], bits[address]):
            fields.append(((values >> np.uint64(start)) & np.uint64((1 << width) - 1)).astype(np.int64))
            start += width
        return np.stack(fields, axis=1)

    return Commands(decode(rows, ROW_KIND_BITS, "row"), decode(columns, COLUMN_KIND_BITS, "column"))


def refreshes_due(pim: PimDesign, first: int, end: int) -> Ints:
    """Return the cycles in 0..``end`` - 1 in which a refresh falls due.

    ``first`` : the first one after reset, counted from cycle 0 of the run; negative for one before it.
    """
    if not pim.refresh:
        return np.zeros(0, dtype=np.int64)
    interval = pim.dram.timing.refi
    return np.arange(first % interval if first < 0 else first, end, interval, dtype=np.int64)


@dataclass(frozen=True)
class Violation:
    """A broken rule: its name, the cycle of the command that breaks it, the distance it had and needs."""

    rule: str
    cycle: int
    distance: int
    least: int

    def __str__(self) -> str:
        return f"{self.rule}: {self.distance} cycles before cycle {self.cycle}, at least {self.least}"


def check_commands(
    pim: PimDesign, commands: Commands, *, first_refresh: int | None = None
) -> list[Violation]:
    """Return the violations of a trace, at most one per rule and bank.

    Parameters
    ----------
    first_refresh : cycle on the bus in which the first refresh is due; by default that of the first REF, but
        not more than a refresh interval after the first command.
    """
    timing, dram = pim.dram.timing, pim.dram
    ccd_l = clocks_between(dram, Command.RD, Command.RD, Level.BANK_GROUP)
    single = pim.bank_mode is BankMode.SINGLE_BANK
    acts_single = pim.opens_singly
    act, pre = commands.of(ACT), commands.of(PRE)
    mac = commands.of(MAC, column=True)
    pre_all, ref = commands.of(PRE_ALL)[:, 0], commands.of(REF)[:, 0]
    found: list[Violation] = []

    def rule(name: str, first: Ints, then: Ints, least: int) -> None:
        broken = _too_near(first, then, least)
        if broken is not None:
            found.append(Violation(name, *broken, least))

    def each(name: str, cycles: Ints, least: int) -> None:
        near = np.flatnonzero(np.diff(cycles) < least)
        if near.size:
            found.append(Violation(name, int(cycles[near[0] + 1]), int(np.diff(cycles)[near[0]]), least))

    def of_bank(before: Command, after: Command) -> int:
        return clocks_between(dram, before, after, Level.BANK)

    for name, bus in (("row bus", commands.rows), ("column bus", commands.columns)):
        each(f"one command per cycle on the {name}", bus[:, 0], 1)

    # Rules of one bank. Where all units' banks are opened together one of them stands for all.
    for side in range(pim.banks_per_unit):
        for unit in range(pim.units if acts_single else 1):
            opened = _of_bank(act, side, unit if acts_single else None)
            closed = np.sort(np.concatenate([_of_bank(pre, side, unit if single else None), pre_all]))
            used = _of_bank(mac, side, unit if single else None)
            where = f"bank {unit} of side {side}"
            rule(f"tRCD, {where}", opened, used, of_bank(Command.ACT, Command.RD))
            rule(f"tRAS, {where}", opened, closed, of_bank(Command.ACT, Command.PRE))
            each(f"tRC, {where}", opened, of_bank(Command.ACT, Command.ACT))
            rule(f"tRP, {where}", closed, opened, of_bank(Command.PRE, Command.ACT))
            rule(f"tRTP, {where}", used, closed, of_bank(Command.RD, Command.PRE))
            found += _states(opened, closed, used, ref, where)

    # Rules between banks.
    group = _bank_group(pim, act)
    if acts_single:
        each("tRRD_S", act[:, 0], clocks_between(dram, Command.ACT, Command.ACT, Level.SCOPE))
        rrd_l = clocks_between(dram, Command.ACT, Command.ACT, Level.BANK_GROUP)
        for number in range(dram.bank_groups):
            here = act[group == number][:, 0]
            each(f"tRRD_L, bank group {number}", here, rrd_l)
        faw = clocks_between(dram, Command.ACT, Command.ACT, Level.SCOPE, window=4)
        if len(act) > 4:
            window = act[4:, 0] - act[:-4, 0]
            if window.min() < faw:
                worst = int(window.argmin())
                found.append(Violation("tFAW", int(act[worst + 4, 0]), int(window[worst]), faw))
    group = _bank_group(pim, mac)
    if single:
        each("tCCD_S", mac[:, 0], clocks_between(dram, Command.RD, Command.RD, Level.SCOPE))
        for number in range(dram.bank_groups):
            here = mac[group == number][:, 0]
            each(f"tCCD_L, bank group {number}", here, ccd_l)
    else:
        each("tCCD_L", mac[:, 0], ccd_l)
    if pim.register_path is RegisterPath.SHARED:
        # Register accesses are bursts on the data bus, from or to all bank groups.
        write, read = (commands.of(kind, column=True)[:, 0] for kind in (WRITE, READ))
        to_read = all_groups(dram, Command.WR, Command.RD)
        to_write = max(all_groups(dram, Command.RD, Command.WR), ccd_l)
        reads = np.sort(np.concatenate([mac[:, 0], read]))
        each("tCCD_L, register writes", write, all_groups(dram, Command.WR, Command.WR))
        each("tCCD_L, register reads", read, ccd_l)
        rule("tCCD_L, MAC to register read", mac[:, 0], read, ccd_l)
        rule("tCCD_L, register read to MAC", read, mac[:, 0], ccd_l)
        rule("tWTR_L", write, reads, to_read)
        rule("read to write", reads, write, to_write)

    # Refresh.
    if pim.refresh:
        everything = np.sort(np.concatenate([commands.rows[:, 0], commands.columns[:, 0]]))
        later = everything[~np.isin(everything, ref)]
        rule("tRFC", ref, later, clocks_between(dram, Command.REF, Command.ACT, Level.SCOPE))
        before_ref = clocks_between(dram, Command.PRE_ALL, Command.REF, Level.SCOPE)
        rule("tRP before REF", np.sort(np.concatenate([pre[:, 0], pre_all])), ref, before_ref)
        if first_refresh is None:
            latest = int(everything[0]) + timing.refi if everything.size else FAR
            first_refresh = min(int(ref[0]), latest) if len(ref) else latest
        due = np.arange(len(ref)) * timing.refi + first_refresh
        late = np.flatnonzero(ref > due)
        if late.size:
            number = int(late[0])
            found.append(Violation("refresh in time", int(ref[number]), int(ref[number] - due[number]), 0))
        end = int(everything[-1]) if everything.size else 0
        missing = due[-1] + timing.refi if len(ref) else first_refresh
        if missing < end:
            found.append(Violation("refresh in time", end, end - int(missing), 0))
    return found


def tiles_read(banks: BankGeometry, commands: Commands) -> Ints:
    """Return the tile that each MAC command reads, told from its column and the row that is open: (MACs,).

    That is all that a DRAM sees. -1 where a bank has had no ACT, or the units' open rows differ.
    """
    pim = banks.pim
    acts = commands.rows[commands.rows[:, 1] == ACT]
    macs = commands.columns[commands.columns[:, 1] == MAC]
    rows = np.full(len(macs), -1, dtype=np.int64)
    # One ACT of a whole side stands for all of its units.
    units = pim.units if pim.opens_singly else 1
    for side in range(pim.banks_per_unit):
        of_side = macs[:, 2] == side
        here = macs[of_side]
        opened = np.empty((units, len(here)), dtype=np.int64)
        for unit in range(units):
            mine = acts[(acts[:, 2] == side) & (acts[:, 3] == unit)]
            known = np.concatenate([[-1], mine[:, 4]])
            opened[unit] = known[np.searchsorted(mine[:, 0], here[:, 0])]
        if pim.bank_mode is BankMode.SINGLE_BANK:
            rows[of_side] = opened[here[:, 3], np.arange(len(here))]
        else:
            rows[of_side] = np.where((opened == opened[0]).all(axis=0), opened[0], -1)
    visit = rows * banks.sides + macs[:, 2]
    return np.where(rows < 0, -1, visit * banks.bursts_per_row + macs[:, 4])


def bursts_read(banks: BankGeometry, commands: Commands, num_bursts: int) -> Ints:
    """Return how often each of a channel's first bursts of all units is read, by MACs from cycle 0 on.

    Where units compute one by one, a burst is read once by each of them; that counts as once.
    """
    inside = Commands(commands.rows, commands.columns[commands.columns[:, 0] >= 0])
    tiles = tiles_read(banks, inside)
    steps = banks.pim.units if banks.pim.bank_mode is BankMode.SINGLE_BANK else 1
    counts: Ints = np.bincount(tiles[tiles >= 0], minlength=num_bursts) // steps
    return counts


def bursts_of(banks: BankGeometry, bases: dict[int, int], experts: Ints) -> Ints:
    """Return the numbers of the bursts of a channel's experts, of those among ``experts`` that it holds."""
    places = [
        bases[expert] * banks.bursts_per_row + np.arange(banks.kind(expert).num_tiles)
        for expert in map(int, experts)
        if expert in bases
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *places])


def tiles_needed(banks: BankGeometry, bases: dict[int, int], experts: Ints, last: NDArray[np.bool_]) -> Ints:
    """Return the tiles that a channel's jobs read, one for each MAC command, in order.

    Each group of a job's tokens reads all tiles of its expert once, one after the other; where units compute
    one by one, each tile is read by one unit after the other.

    Parameters
    ----------
    bases : first visit of each expert (:meth:`spec.banks.BankGeometry.bases`).
    experts, last : (entries,) expert of each of the channel's entries, and whether it ends its job.
    """
    pim = banks.pim
    steps = pim.units if pim.bank_mode is BankMode.SINGLE_BANK else 1
    ends = np.flatnonzero(last)
    tokens = np.diff(np.concatenate([[-1], ends]))
    group = np.repeat(experts[ends], -(-tokens // pim.tokens_per_burst))
    known, where = np.unique(group, return_inverse=True)
    first = np.array([bases[int(expert)] * banks.bursts_per_row for expert in known], dtype=np.int64)
    tiles = np.array([banks.kind(int(expert)).num_tiles for expert in known], dtype=np.int64)
    macs = tiles[where] * steps
    place = np.arange(macs.sum()) - np.repeat(np.cumsum(macs) - macs, macs)
    needed: Ints = np.repeat(first[where], macs) + place // steps
    return needed


def _of_bank(commands: Ints, side: int, unit: int | None) -> Ints:
    mine = commands[:, 1] == side
    if unit is not None:
        mine &= commands[:, 2] == unit
    cycles: Ints = commands[mine][:, 0]
    return cycles


def _bank_group(pim: PimDesign, commands: Ints) -> Ints:
    """Return each command's bank group: neighbouring units lie in different groups."""
    group: Ints = (commands[:, 1] * pim.units + commands[:, 2]) % pim.dram.bank_groups
    return group


def _too_near(first: Ints, then: Ints, least: int) -> tuple[int, int] | None:
    """Return (cycle, distance) of the first ``then`` less than ``least`` cycles after a ``first``."""
    if not first.size or not then.size:
        return None
    before = np.searchsorted(first, then, side="right")
    known = before > 0
    distance = np.where(known, then - first[np.maximum(before, 1) - 1], FAR)
    broken = np.flatnonzero(distance < least)
    return (int(then[broken[0]]), int(distance[broken[0]])) if broken.size else None


def _states(opened: Ints, closed: Ints, used: Ints, ref: Ints, where: str) -> list[Violation]:
    """Return uses of a closed bank, ACTs of an open one, refreshes of an open one."""

    def is_open(cycles: Ints) -> NDArray[np.bool_]:
        last_open = np.searchsorted(opened, cycles)
        last_close = np.searchsorted(closed, cycles)
        when_opened = np.where(last_open > 0, opened[np.maximum(last_open, 1) - 1], -1) if opened.size else -1
        when_closed = (
            np.where(last_close > 0, closed[np.maximum(last_close, 1) - 1], -1) if closed.size else -1
        )
        state: NDArray[np.bool_] = np.asarray(
            np.broadcast_to(np.greater(when_opened, when_closed), cycles.shape)
        )
        return state

    found = []
    for name, cycles, wanted in (
        ("MAC in an open row", used, True),
        ("ACT of a closed bank", opened, False),
        ("REF of closed banks", ref, False),
    ):
        wrong = np.flatnonzero(is_open(cycles) != wanted)
        if wrong.size:
            found.append(Violation(f"{name}, {where}", int(cycles[wrong[0]]), 0, 0))
    return found
