"""What commands a DRAM has, on which buses, and how far apart they must be: one table for all standards.

The table is all that the event engine (:mod:`sim.dram.engine`) and the checker of its command logs
(:mod:`sim.dram.checker`) have in common. Both read it; neither holds a constraint of its own.

Distances are nominal, in clocks (tCK), from the last tick of a command to the last tick of the next: a
command of several ticks takes effect with its last one. A tick is a clock, but half a clock in HBM3.
Source: the timing tables of Ramulator 2.1 (github.com/CMU-SAFARI/ramulator2 at c5b1c3a4), which follow JEDEC
JESD79-4, JESD79-5, JESD209-5, JESD250, JESD235 and JESD238.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import IntEnum

from spec.dram.standard import DramSpec, DramTiming, Protocol


class Command(IntEnum):
    """Commands that a constraint can name. ACT is ACT-1 in LPDDR5, whose ACT-2 and CAS have none."""

    ACT = 0
    PRE = 1
    PRE_ALL = 2
    RD = 3
    WR = 4
    REF = 5
    REF_BANK = 6
    ACT_2 = 7
    CAS = 8


class Level(IntEnum):
    """What two commands must share for a constraint to hold between them."""

    BANK = 0
    BANK_GROUP = 1
    SCOPE = 2
    """The rank (DDR4, DDR5, LPDDR5), the channel (GDDR6), the pseudo-channel (HBM2, HBM3)."""


@dataclass(frozen=True)
class ProtocolRules:
    """What a protocol's buses and commands are like.

    Attributes
    ----------
    levels : of an address, as Ramulator names them.
    ticks_per_clock : command slots in a clock.
    row_bus : commands to rows (ACT, PRE, REF) have a bus of their own beside that of RD and WR.
    widths : ticks that a command holds its bus, where it is not 1.
    rising_only : commands that may only start in a clock's first half, an odd tick. The others may start in
        the second half too, with restrictions after a row command in the first (:data:`EDGE_PAIRS`).
    split_act : ACT is two commands, ACT-1 and ACT-2; a RD needs a CAS before it unless the write clock runs.
    """

    levels: tuple[str, ...]
    ticks_per_clock: int = 1
    row_bus: bool = False
    widths: tuple[tuple[Command, int], ...] = ()
    rising_only: tuple[Command, ...] = ()
    split_act: bool = False

    def width(self, command: Command) -> int:
        """Return the ticks that a command holds its bus."""
        return dict(self.widths).get(command, 1)


EDGE_PAIRS = (
    (Command.ACT, 3),
    (Command.PRE, 1),
    (Command.PRE_ALL, 1),
    (Command.REF, 1),
    (Command.REF_BANK, 1),
)
"""Ticks from a row command in a clock's first half to the second half that it restricts: there, only one
bank of the same pseudo-channel may be precharged, another one, and none after a command to all banks."""

_A, _P, _PA, _RD, _WR, _REF, _REFB = tuple(Command)[:7]
_RANKED = ("Channel", "Rank", "BankGroup", "Bank", "Row", "Column")
PROTOCOLS = {
    Protocol.DDR4: ProtocolRules(_RANKED),
    Protocol.DDR5: ProtocolRules(_RANKED, widths=((_A, 2), (_RD, 2), (_WR, 2))),
    Protocol.LPDDR5: ProtocolRules(_RANKED, split_act=True),
    Protocol.GDDR6: ProtocolRules(("Channel", "BankGroup", "Bank", "Row", "Column")),
    Protocol.HBM2: ProtocolRules(
        ("Channel", "PseudoChannel", "BankGroup", "Bank", "Row", "Column"), row_bus=True, widths=((_A, 2),)
    ),
    Protocol.HBM3: ProtocolRules(
        ("Channel", "PseudoChannel", "Sid", "BankGroup", "Bank", "Row", "Column"),
        ticks_per_clock=2,
        row_bus=True,
        widths=((_A, 3), (_RD, 2), (_WR, 2)),
        rising_only=(_A, _RD, _WR, _REF, _REFB),
    ),
}


@dataclass(frozen=True)
class Constraint:
    """A row of the table: ``latency`` from a preceding command to a following one at the same place.

    Attributes
    ----------
    name : as in the standards.
    level : both commands are in the same one of these.
    preceding, following : any of these, and any of those.
    latency : in clocks; timings of :class:`spec.dram.DramTiming`, sums, differences and maxima of them.
        A row whose latency is 0 in a standard is none of its constraints.
    window : the preceding command is the last but ``window`` - 1 of its kind.
    only, but : protocols that have the row; that do not.
    """

    name: str
    level: Level
    preceding: tuple[Command, ...]
    following: tuple[Command, ...]
    latency: str
    window: int = 1
    only: tuple[Protocol, ...] = ()
    but: tuple[Protocol, ...] = ()

    def clocks(self, timing: DramTiming) -> int:
        """Return the latency in clocks."""
        return _evaluate(ast.parse(self.latency, mode="eval").body, timing)

    def applies(self, dram: DramSpec) -> bool:
        """Whether the standard has this constraint."""
        return (
            (not self.only or dram.protocol in self.only)
            and dram.protocol not in self.but
            and self.clocks(dram.timing) > 0
        )


_BANK, _GROUP, _SCOPE = tuple(Level)
_GDDR6 = (Protocol.GDDR6,)
CONSTRAINTS = (
    # A bank's row.
    Constraint("tRCD", _BANK, (_A,), (_RD,), "rcd_rd"),
    Constraint("tRCDWR", _BANK, (_A,), (_WR,), "rcd_wr"),
    Constraint("tRC", _BANK, (_A,), (_A,), "rc"),
    Constraint("tRAS", _BANK, (_A,), (_P,), "ras"),
    Constraint("tRAS, all banks", _SCOPE, (_A,), (_PA,), "ras"),
    Constraint("tRP", _BANK, (_P,), (_A,), "rp"),
    Constraint("tRP, all banks", _SCOPE, (_PA,), (_A,), "rp_all"),
    Constraint("tRTP", _BANK, (_RD,), (_P,), "rtp"),
    Constraint("tRTP, all banks", _SCOPE, (_RD,), (_PA,), "rtp"),
    Constraint("tWR", _BANK, (_WR,), (_P,), "cwl + burst + wr"),
    Constraint("tWR, all banks", _SCOPE, (_WR,), (_PA,), "cwl + burst + wr"),
    # Rows of several banks.
    Constraint("tRRD_L", _GROUP, (_A,), (_A,), "rrd_l"),
    Constraint("tRRD_S", _SCOPE, (_A,), (_A,), "rrd_s"),
    Constraint("tFAW", _SCOPE, (_A,), (_A,), "faw", window=4),
    Constraint("tPPD", _SCOPE, (_P, _PA), (_P, _PA), "ppd"),
    # Column commands and their data.
    Constraint("tCCD_S", _SCOPE, (_RD,), (_RD,), "max(ccd_s, burst)"),
    Constraint("tCCD_L", _GROUP, (_RD,), (_RD,), "ccd_l"),
    Constraint("tCCD_S, writes", _SCOPE, (_WR,), (_WR,), "max(ccd_s_write, burst)"),
    Constraint("tCCD_L, writes", _GROUP, (_WR,), (_WR,), "ccd_l_write"),
    Constraint("tRTW", _SCOPE, (_RD,), (_WR,), "max(cl + burst + rtw_gap - cwl, ccd_s)"),
    Constraint("tWTR_S", _SCOPE, (_WR,), (_RD,), "cwl + burst + wtr_s"),
    Constraint("tWTR_L", _GROUP, (_WR,), (_RD,), "cwl + burst + wtr_l"),
    # Refresh of all banks.
    Constraint("tRC before REF", _SCOPE, (_A,), (_REF,), "rc"),
    Constraint("tRP before REF", _SCOPE, (_P, _PA), (_REF,), "rp", but=_GDDR6),
    Constraint("tRP before REF", _SCOPE, (_PA,), (_REF,), "rp", only=_GDDR6),
    Constraint("tRFC", _SCOPE, (_REF,), (_A, _PA), "rfc", but=_GDDR6),
    Constraint("tRFC", _SCOPE, (_REF,), (_A, _P, _PA, _RD, _WR, _REF), "rfc", only=_GDDR6),
    # Refresh of one bank.
    Constraint("tRFCpb", _BANK, (_REFB,), (_A, _REFB), "rfc_pb"),
    Constraint("tRFCpb before PREA", _SCOPE, (_REFB,), (_PA,), "rfc_pb"),
    Constraint("tRREFD", _SCOPE, (_REFB,), (_REFB,), "refresh_to_refresh"),
    Constraint("tRREFD before ACT", _SCOPE, (_REFB,), (_A,), "refresh_to_act"),
    Constraint("tRC before REFpb", _BANK, (_A,), (_REFB,), "rc"),
    Constraint("tRRD before REFpb", _SCOPE, (_A,), (_REFB,), "rrd_s"),
    Constraint("tRP before REFpb", _BANK, (_P,), (_REFB,), "rp"),
    Constraint("tRP before REFpb, all banks", _SCOPE, (_PA,), (_REFB,), "rp_all"),
)


def constraints_of(dram: DramSpec) -> tuple[Constraint, ...]:
    """Return the rows of the table that a standard has."""
    return tuple(row for row in CONSTRAINTS if row.applies(dram))


def clocks_between(dram: DramSpec, before: Command, after: Command, level: Level, window: int = 1) -> int:
    """Return the nominal clocks from a command to another one at the same place of a level; 0: any."""
    return max(
        (
            row.clocks(dram.timing)
            for row in constraints_of(dram)
            if row.level is level
            and row.window == window
            and before in row.preceding
            and after in row.following
        ),
        default=0,
    )


def all_groups(dram: DramSpec, before: Command, after: Command) -> int:
    """Return the nominal clocks between column commands each of which goes to all bank groups."""
    return max(clocks_between(dram, before, after, level) for level in (Level.BANK_GROUP, Level.SCOPE))


def _evaluate(node: ast.expr, timing: DramTiming) -> int:
    if isinstance(node, ast.Name):
        return int(getattr(timing, node.id))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        left, right = _evaluate(node.left, timing), _evaluate(node.right, timing)
        return left + right if isinstance(node.op, ast.Add) else left - right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "max":
        return max(_evaluate(argument, timing) for argument in node.args)
    raise ValueError(f"a latency is made of timings, +, - and max, not of {ast.unparse(node)}")
