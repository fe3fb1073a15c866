"""What the schedules of a matrix-vector product have in common: commands, logs, timings as arrays."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.compiled import depends_on
from spec import program
from spec.dram import DramSpec
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


ACT, PRE, MAC, RD, WR, REG, REF, OTHER_REF = (int(kind) for kind in Kind)
EVEN, ODD = 64, 65
"""Banks of a command to all even, or all odd, banks at once; others are single banks."""
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
