"""A DRAM standard as data: organisation and timing of one channel. Validated here, once.

Timings are in clock cycles (tCK), named as in the standards without their ``t`` or ``n``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from spec.errors import require, require_range


@dataclass(frozen=True, kw_only=True)
class DramTiming:
    """Least distances between commands, in tCK.

    Attributes
    ----------
    burst : data-bus cycles of one column access (BL / 2).
    cl, cwl : column command to first data, read and write.
    rcd_rd, rcd_wr : ACT to column command of the same bank.
    rp, ras, rc : PRE to ACT, ACT to PRE, ACT to ACT of the same bank.
    rtp, wr : read to PRE; end of write data to PRE.
    ccd_s, ccd_l : column to column command, other and same bank group.
    wtr_s, wtr_l : end of write data to read, other and same bank group.
    rtw_gap : cycles that the data bus stays idle between read data and write data.
    rrd_s, rrd_l, faw : ACT to ACT of other banks; window of at most four ACTs.
    rfc, refi : REF to the next command; interval between refreshes.
    """

    burst: int
    cl: int
    cwl: int
    rcd_rd: int
    rcd_wr: int
    rp: int
    ras: int
    rc: int
    rtp: int
    wr: int
    ccd_s: int
    ccd_l: int
    wtr_s: int
    wtr_l: int
    rtw_gap: int
    rrd_s: int
    rrd_l: int
    faw: int
    rfc: int
    refi: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_range(field.name, getattr(self, field.name), 1, 1 << 20)
        for low, high in (("ccd_s", "ccd_l"), ("rrd_s", "rrd_l"), ("wtr_s", "wtr_l"), ("burst", "ccd_s")):
            require(
                getattr(self, low) <= getattr(self, high),
                f"must be at least {low}={getattr(self, low)}, not {getattr(self, high)}",
                key=high,
            )
        require(
            self.rc >= self.ras + self.rp,
            f"must be at least ras + rp = {self.ras} + {self.rp}, not {self.rc}",
            key="rc",
        )
        require(
            self.ras >= self.rcd_rd + self.rtp,
            f"must be at least rcd_rd + rtp = {self.rcd_rd} + {self.rtp}, not {self.ras}",
            key="ras",
        )
        require(self.rfc >= self.rp, f"must be at least rp={self.rp}, not {self.rfc}", key="rfc")
        require(self.rfc < self.refi, f"must be below refi={self.refi}, not {self.rfc}", key="rfc")
        busy = self.rp + self.rfc + self.ras + self.rp
        require(
            self.refi > busy,
            f"must be above rp + rfc + ras + rp = {busy}, or nothing runs between refreshes, not {self.refi}",
            key="refi",
        )

    @property
    def read_to_write(self) -> int:
        """Read command to write command: the write data follows the read data on one bus."""
        return max(self.cl + self.burst + self.rtw_gap - self.cwl, self.ccd_l)

    @property
    def write_to_read(self) -> int:
        """Write command to read command of the same bank group."""
        return self.cwl + self.burst + self.wtr_l


@dataclass(frozen=True, kw_only=True)
class DramSpec:
    """One channel of a DRAM standard, or one pseudo-channel where the standard has them.

    Attributes
    ----------
    bank_groups, banks_per_group, rows : of the (pseudo-)channel.
    row_bytes : bytes of an open row.
    burst_bytes : bytes of one column access, per bank.
    clock_ps : tCK in picoseconds.
    all_bank_exempt : an ACT of all banks at once is not counted against ``rrd`` and ``faw``; the
        power delivery is sized for it. Without it banks are opened one by one.
    """

    PRESET_FOLDER: ClassVar[str] = "dram"

    name: str
    bank_groups: int
    banks_per_group: int
    rows: int
    row_bytes: int
    burst_bytes: int
    clock_ps: int
    timing: DramTiming
    all_bank_exempt: bool = True

    def __post_init__(self) -> None:
        for key in ("bank_groups", "banks_per_group", "row_bytes", "burst_bytes"):
            value = getattr(self, key)
            require(value >= 1 and value & (value - 1) == 0, f"must be a power of two, not {value}", key=key)
        require_range("rows", self.rows, 1, 1 << 20)
        require_range("banks_per_group", self.num_banks, 1, 64)
        require_range("clock_ps", self.clock_ps, 1, 1_000_000)
        require_range("burst_bytes", self.burst_bytes, 2, 256)
        require(
            self.burst_bytes <= self.row_bytes <= 1 << 14,
            f"must be in burst_bytes={self.burst_bytes}..{1 << 14}, not {self.row_bytes}",
            key="row_bytes",
        )

    @property
    def num_banks(self) -> int:
        """Banks of the channel."""
        return self.bank_groups * self.banks_per_group

    @property
    def bursts_per_row(self) -> int:
        """Column accesses of an open row."""
        return self.row_bytes // self.burst_bytes
