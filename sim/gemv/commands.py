"""What the schedules of a matrix-vector product have in common: commands, logs, timings as arrays."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.compiled import depends_on
from spec import program
from spec.dram import PROTOCOLS, Command, DramSpec, Level, clocks_between
from spec.errors import require, require_range

Log = NDArray[np.int64]
"""(commands, 4): cycle, :class:`Kind`, bank, row; ordered by cycle."""


class Kind(IntEnum):
    """A command of a log."""

    ACT = 0
    PRE = 1
    MAC = 2
    RD = 3
    WR = 4
    REG = 5
    """A register write on a path of its own."""
    REF = 6
    OTHER_REF = 7
    """A refresh of the channel's other rank; here it only takes a command slot."""
    PRE_ALL = 8
    ACT_2 = 9
    """The second half of ACT, where it is two commands (LPDDR5)."""
    CAS = 10
    """Starts the write clock before a read (LPDDR5)."""


ACT, PRE, MAC, RD, WR, REG, REF, OTHER_REF, PRE_ALL, ACT_2, CAS = (int(kind) for kind in Kind)
EVEN, ODD = 64, 65
"""Banks of a command to all banks of a set at once, :data:`EVEN` plus the set's number; others are single
banks. On pairs of banks the sets are all even and all odd ones."""
NO_BANK = -1
FAR = 1 << 60
NUM_KINDS = len(Kind)
TIMINGS = (
    "rcd_rd",
    "rcd_wr",
    "rp",
    "ras",
    "rc",
    "rtp",
    "write_to_pre",
    "read_to_write",
    "write_to_read_s",
    "write_to_read_l",
    "ccd_s",
    "ccd_l",
    "rrd_s",
    "rrd_l",
    "faw",
    "rfc",
    "refi",
    "read_latency",
    "mac_gap",
    "act_gap",
)
"""What :func:`timings` returns, in this order."""
(
    RCD_RD,
    RCD_WR,
    RP,
    RAS,
    RC,
    RTP,
    WRITE_TO_PRE,
    READ_TO_WRITE,
    WRITE_TO_READ_S,
    WRITE_TO_READ_L,
    CCD_S,
    CCD_L,
    RRD_S,
    RRD_L,
    FAW,
    RFC,
    REFI,
    READ_LATENCY,
    MAC_GAP,
    ACT_GAP,
) = range(len(TIMINGS))


def compiled(function: Any) -> Any:
    """Compile a function, and again when its file has changed, or one whose constants go into it."""
    return depends_on(sys.modules[__name__], program)(njit(cache=True)(function))


@dataclass(frozen=True, kw_only=True)
class PowerLimits:
    """What keeps a device within its power and temperature.

    Attributes
    ----------
    mac_gap, act_gap : least cycles from an all-bank MAC, ACT to the next; 1 is no limit.
    hot : refreshes are due twice as often, as DRAMs ask for above 85 degrees Celsius.
    """

    mac_gap: int = 1
    act_gap: int = 1
    hot: bool = False

    def __post_init__(self) -> None:
        require_range("mac_gap", self.mac_gap, 1, 1 << 10)
        require_range("act_gap", self.act_gap, 1, 1 << 10)


NO_LIMITS = PowerLimits()


def limited(dram: DramSpec, limits: PowerLimits) -> DramSpec:
    """Return the DRAM with the refresh interval that the limits ask for."""
    if not limits.hot:
        return dram
    return replace(dram, timing=replace(dram.timing, refi=dram.timing.refi // 2))


def timings(dram: DramSpec, limits: PowerLimits) -> NDArray[np.int64]:
    """Return :data:`TIMINGS` in tCK; distances from command to command.

    The read latency is to the last data and two cycles more, of which one is the command's own.
    """
    timing = limited(dram, limits).timing
    values = {
        **{name: getattr(timing, name) for name in TIMINGS if hasattr(timing, name)},
        "write_to_pre": timing.cwl + timing.burst + timing.wr,
        "write_to_read_s": timing.cwl + timing.burst + timing.wtr_s,
        "write_to_read_l": timing.cwl + timing.burst + timing.wtr_l,
        "read_latency": timing.cl + timing.burst + 2,
        "mac_gap": max(timing.ccd_l, limits.mac_gap),
        "act_gap": limits.act_gap,
    }
    return np.array([values[name] for name in TIMINGS], dtype=np.int64)


def first_to_first(dram: DramSpec, before: Command, after: Command, level: Level, window: int = 1) -> int:
    """Return the whole clocks from a command's first tick to another's that the table asks for; 0: any.

    The table counts from last tick to last tick; a clock has one tick or two.
    """
    clocks = clocks_between(dram, before, after, level, window)
    if not clocks:
        return 0
    protocol = PROTOCOLS[dram.protocol]
    ticks = protocol.ticks_per_clock
    return -(-(ticks * clocks + protocol.width(before) - protocol.width(after)) // ticks)


def bus_slots(dram: DramSpec) -> Mapping[Command, tuple[int, int]]:
    """Return the clocks before its own and behind it that a command keeps its bus.

    Where ACT is two commands the second follows the first at once, and CAS goes in front of every access
    whose data cross the pins.
    """
    protocol = PROTOCOLS[dram.protocol]
    behind = {command: -(-protocol.width(command) // protocol.ticks_per_clock) - 1 for command in Command}
    split = int(protocol.split_act)
    slots = {command: (0, clocks) for command, clocks in behind.items()}
    return {
        **slots,
        Command.ACT: (0, max(split, behind[Command.ACT])),
        Command.RD: (split, behind[Command.RD]),
        Command.WR: (split, behind[Command.WR]),
    }


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix-vector product: ``batch`` vectors of ``cols`` numbers with one matrix of ``rows`` rows.

    ``channels`` channels compute it together, in step.
    """

    rows: int
    cols: int
    channels: int
    batch: int = 1

    def __post_init__(self) -> None:
        require_range("rows", self.rows, 1, 1 << 20)
        require_range("cols", self.cols, 1, 1 << 20)
        require_range("channels", self.channels, 1, 4096)
        require_range("batch", self.batch, 1, 1 << 12)

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the product needs."""
        return self.rows * self.cols * self.batch


def require_rows(needed: int, dram: DramSpec, *, results: bool = False) -> None:
    """Raise :class:`spec.errors.InputError` unless so many rows lie in a bank of the DRAM.

    results : the weights fit, and rows of results, which grow with the batch, are among those needed.
    """
    rule = f"needs {needed} rows of each bank, which has {dram.rows}"
    if results:
        require(needed <= dram.rows, f"with its results behind the weights {rule}", key="batch")
    require(needed <= dram.rows, f"times cols {rule}", key="rows")
