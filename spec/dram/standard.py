"""A DRAM standard as data: organisation and timing of one channel. Validated here, once.

Timings are in clock cycles (tCK), named as in the standards without their ``t`` or ``n``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from spec.errors import require, require_range


class Protocol(StrEnum):
    """Whose commands, buses and constraints a DRAM has (:data:`spec.dram.PROTOCOLS`)."""

    DDR4 = "ddr4"
    DDR5 = "ddr5"
    LPDDR5 = "lpddr5"
    GDDR6 = "gddr6"
    HBM2 = "hbm2"
    HBM3 = "hbm3"


OPTIONAL_TIMINGS = (
    "ccd_s_wr",
    "ccd_l_wr",
    "ppd",
    "rp_ab",
    "aad",
    "wck_post",
    "rfc_pb",
    "refi_pb",
    "rref_d",
    "pbr_to_pbr",
    "pbr_to_act",
)


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
    ccd_s_wr, ccd_l_wr : as ``ccd_s`` and ``ccd_l``, write to write, where a standard has others.
    ppd : PRE to PRE, any banks.
    rp_ab : PRE of all banks to ACT, where it is not ``rp``.
    aad : ACT-1 to ACT-2, at most (LPDDR5).
    wck_post : cycles that the write clock runs on after read data (LPDDR5).
    rfc_pb, refi_pb : refresh of one bank, and the interval between two of them.
    rref_d : refresh of one bank to that of another, and to ACT of another.
    pbr_to_pbr, pbr_to_act : the same two, where they differ (LPDDR5).

    Those of :data:`OPTIONAL_TIMINGS` are 0 where a standard has them not.
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
    ccd_s_wr: int = 0
    ccd_l_wr: int = 0
    ppd: int = 0
    rp_ab: int = 0
    aad: int = 0
    wck_post: int = 0
    rfc_pb: int = 0
    refi_pb: int = 0
    rref_d: int = 0
    pbr_to_pbr: int = 0
    pbr_to_act: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = 0 if field.name in OPTIONAL_TIMINGS else 1
            require_range(field.name, getattr(self, field.name), least, 1 << 20)
        for low, high in (("ccd_s", "ccd_l"), ("rrd_s", "rrd_l"), ("wtr_s", "wtr_l"), ("burst", "ccd_s")):
            require(
                getattr(self, low) <= getattr(self, high),
                f"must be at least {low}={getattr(self, low)}, not {getattr(self, high)}",
                key=high,
            )
        # Each is a time rounded up to whole clocks: the sum of two may be one above the third.
        require(
            self.rc >= self.ras + self.rp - 1,
            f"must be at least ras + rp - 1 = {self.ras} + {self.rp} - 1, not {self.rc}",
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

    @property
    def rp_all(self) -> int:
        """PRE of all banks to ACT."""
        return self.rp_ab or self.rp

    @property
    def ccd_s_write(self) -> int:
        """Write to write, other bank group."""
        return self.ccd_s_wr or self.ccd_s

    @property
    def ccd_l_write(self) -> int:
        """Write to write, same bank group."""
        return self.ccd_l_wr or self.ccd_l

    @property
    def refresh_to_refresh(self) -> int:
        """Refresh of one bank to that of another."""
        return self.pbr_to_pbr or self.rref_d

    @property
    def refresh_to_act(self) -> int:
        """Refresh of one bank to ACT of another."""
        return self.pbr_to_act or self.rref_d


MAX_PSEUDO_CHANNELS = 2


@dataclass(frozen=True, kw_only=True)
class DramSpec:
    """One channel of a DRAM standard: its pseudo-channels, where it has them, are alike.

    One rank, one stack. A near-memory channel (:class:`spec.design.PimDesign`) is one pseudo-channel.

    Attributes
    ----------
    protocol : which commands, buses and constraints.
    pseudo_channels : that share the channel's command buses.
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
    protocol: Protocol = Protocol.HBM2
    pseudo_channels: int = 1

    def __post_init__(self) -> None:
        for key in ("pseudo_channels", "bank_groups", "banks_per_group", "row_bytes", "burst_bytes"):
            value = getattr(self, key)
            require(value >= 1 and value & (value - 1) == 0, f"must be a power of two, not {value}", key=key)
        require_range("rows", self.rows, 1, 1 << 20)
        require_range("banks_per_group", self.num_banks, 1, 64)
        most = MAX_PSEUDO_CHANNELS if self.protocol in (Protocol.HBM2, Protocol.HBM3) else 1
        require_range("pseudo_channels", self.pseudo_channels, 1, most)
        if self.protocol is Protocol.LPDDR5:
            require_range("timing.aad", self.timing.aad, 1, self.timing.rcd_rd)
        require_range("clock_ps", self.clock_ps, 1, 1_000_000)
        require_range("burst_bytes", self.burst_bytes, 2, 256)
        require(
            self.burst_bytes <= self.row_bytes <= 1 << 14,
            f"must be in burst_bytes={self.burst_bytes}..{1 << 14}, not {self.row_bytes}",
            key="row_bytes",
        )

    @property
    def num_banks(self) -> int:
        """Banks of a (pseudo-)channel."""
        return self.bank_groups * self.banks_per_group

    @property
    def bursts_per_row(self) -> int:
        """Column accesses of an open row."""
        return self.row_bytes // self.burst_bytes
