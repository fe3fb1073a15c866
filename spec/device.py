"""A DRAM with MAC units as published, or as designed here: what a matrix-vector product on it needs to know.

It is one description for all of them: where the units lie, how wide they are, what registers and commands
they have, and in which schedule a product runs on them. Unlike :class:`spec.design.DesignSpec` it has no
gate, dispatcher or combiner around it; one channel of it is hardware where the schedule has some.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from spec.design import RegisterPath
from spec.dram import DramSpec
from spec.energy import EnergyTable
from spec.errors import InputError, require, require_range


class UnitLevel(StrEnum):
    """What a MAC unit lies at: all the banks below it share it."""

    BANK = "bank"
    BANK_PAIR = "bank_pair"
    BANK_GROUP = "bank_group"
    LOGIC_DIE = "logic_die"
    CONTROLLER = "controller"
    """Beside the memory controller, behind the DRAM's own data pins."""


class Schedule(StrEnum):
    """How a matrix-vector product becomes commands; ``docs/pim-gemv.md``.

    ``BARRIER``: a published kernel: barriers between groups of accesses, inputs as writes on the data bus.
    ``STREAMED``: this project's: rows open in the idle banks, inputs arrive during MACs.
    ``LOCKSTEP``: a MAC reads a burst of each of a set of banks, inputs come from a buffer that all share.
    ``PINS``: weights are read as any data are, through the pins of all banks in turn.
    ``NONE``: of this device only the numbers are known, and no schedule is modelled.
    """

    BARRIER = "barrier"
    STREAMED = "streamed"
    LOCKSTEP = "lockstep"
    PINS = "pins"
    NONE = "none"


SLACK = 32
"""Cycles for commands that are in each other's way."""


@dataclass(frozen=True, kw_only=True)
class PartSpec(DramSpec):
    """The DRAM of a device, by its publisher's numbers: none of the standards of ``spec/dram``."""

    PRESET_FOLDER: ClassVar[str] = "parts"


@dataclass(frozen=True, kw_only=True)
class PimDevice:
    """MAC units at a DRAM's banks, bank groups, logic die or controller.

    Attributes
    ----------
    level : where a unit lies.
    channels : (pseudo-)channels of one device: a stack, a chip.
    units : units of a channel.
    lanes : MACs of a unit that work in the same cycle.
    clock_hz : of ``mac_cycles``; with a DRAM it is the DRAM's.
    mac_cycles : cycles that a unit's lanes need for a MAC each.
    mac_gap : least cycles from a MAC command to the next in the device's power budget; 1 is no limit.
    mac_open_cycles : from ACT to MAC, where that is more than to a read; 0 where it is not.
    mode_cycles : to enter the units' mode, and again to leave it, where no other accesses do that.
    banks_per_mac : banks of a channel that one MAC command reads, a burst each (``LOCKSTEP``).
    element_bits : of a weight.
    result_bits : of a sum that is read from a unit.
    tokens_per_burst : tokens that may share a burst of weights.
    input_registers, output_registers : bursts that a unit holds of inputs and of partial sums; for
        ``LOCKSTEP`` sums that it holds for each of its banks; 0 if unknown.
    buffer_bytes : of a unit's (or, at the controller, the device's) buffer; 0 where there are only registers.
    register_path : how inputs reach the units and results leave them.
    internal_bytes_per_s : of one device, that its units can read; 0 if unknown.
    commands : names of what the device adds to a DRAM's commands, in one string.
    schedule : how a matrix-vector product runs; all but ``NONE`` need a ``dram`` or a ``standard``.
    dram : a (pseudo-)channel as the device's publisher has it; a preset's name in TOML.
    standard : a channel of one of the DRAM standards, in its place.
    energy : what a product's events cost; without it no energy is counted.
    """

    PRESET_FOLDER: ClassVar[str] = "devices"

    name: str
    level: UnitLevel
    channels: int
    units: int
    lanes: int
    clock_hz: float
    mac_cycles: int
    mac_gap: int = 1
    mac_open_cycles: int = 0
    mode_cycles: int = 0
    banks_per_mac: int = 0
    element_bits: int = 16
    result_bits: int = 16
    tokens_per_burst: int = 1
    input_registers: int = 0
    output_registers: int = 0
    buffer_bytes: int = 0
    register_path: RegisterPath = RegisterPath.SHARED
    internal_bytes_per_s: float = 0.0
    commands: str = ""
    schedule: Schedule = Schedule.NONE
    dram: PartSpec | None = None
    standard: DramSpec | None = None
    energy: EnergyTable | None = None

    def __post_init__(self) -> None:
        require_range("channels", self.channels, 1, 4096)
        require_range("units", self.units, 1, 64)
        require_range("lanes", self.lanes, 1, 4096)
        require(self.clock_hz > 0, f"must be positive, not {self.clock_hz:g}", key="clock_hz")
        require_range("mac_cycles", self.mac_cycles, 1, 64)
        require_range("mac_gap", self.mac_gap, 1, 1 << 10)
        require_range("mac_open_cycles", self.mac_open_cycles, 0, 1 << 10)
        require_range("mode_cycles", self.mode_cycles, 0, 1 << 10)
        require_range("banks_per_mac", self.banks_per_mac, 0, 64)
        for key in ("element_bits", "result_bits"):
            require(
                getattr(self, key) in (4, 8, 16, 32),
                f"must be 4, 8, 16 or 32, not {getattr(self, key)}",
                key=key,
            )
        require_range("tokens_per_burst", self.tokens_per_burst, 1, 64)
        for key in ("input_registers", "output_registers"):
            require_range(key, getattr(self, key), 0, 64)
        require_range("buffer_bytes", self.buffer_bytes, 0, 1 << 30)
        require(
            self.internal_bytes_per_s >= 0,
            f"must not be negative, not {self.internal_bytes_per_s:g}",
            key="internal_bytes_per_s",
        )
        if self.schedule is Schedule.NONE:
            return
        require(
            self.dram is not None or self.standard is not None,
            f"must be given for schedule {self.schedule}",
            key="dram",
        )
        require(self.dram is None or self.standard is None, "must not be given beside dram", key="standard")
        if self.schedule is Schedule.LOCKSTEP:
            self._check_lockstep(self.timed)
        elif self.schedule is not Schedule.PINS:
            self._check_pairs(self.timed)

    def _check_pairs(self, dram: DramSpec) -> None:
        """Check what the schedules on pairs of banks need."""
        require(
            self.level is UnitLevel.BANK_PAIR,
            f"must be bank_pair for schedule {self.schedule}, not {self.level}",
            key="level",
        )
        require(
            2 * self.units == dram.num_banks,
            f"must be {dram.num_banks // 2}, one for two of {dram.num_banks} banks, not {self.units}",
            key="units",
        )
        require(
            2 * self.lanes == dram.burst_bytes,
            f"must be {dram.burst_bytes // 2}, the 16-bit numbers of a burst, not {self.lanes}",
            key="lanes",
        )
        for key in ("input_registers", "output_registers"):
            require_range(key, getattr(self, key), 2, 64)
        if self.schedule is Schedule.BARRIER:
            for key in ("mac_cycles", "tokens_per_burst"):
                most = dram.timing.ccd_l if key == "mac_cycles" else 1
                require_range(key, getattr(self, key), 1, most)
        timing = dram.timing
        write = timing.rcd_wr + timing.cwl + timing.burst + timing.wr
        self._check_interval(dram, timing.rfc + max(timing.ras, write) + 2 * timing.rp + SLACK, "a write")
        most = min(self.input_registers, self.output_registers)
        require(
            self.tokens_per_burst <= most // 2 or self.tokens_per_burst == 1,
            f"must be at most {most // 2}, half of the registers, not {self.tokens_per_burst}",
            key="tokens_per_burst",
        )

    def _check_lockstep(self, dram: DramSpec) -> None:
        """Check what sets of banks in lockstep need."""
        count = self.banks_per_mac
        require(
            count > 0 and count % dram.bank_groups == 0 and dram.num_banks % count == 0,
            f"must divide {dram.num_banks} banks and take as many of each of {dram.bank_groups} bank groups,"
            f" not {count}",
            key="banks_per_mac",
        )
        require(
            count % self.units == 0,
            f"must divide the {count} banks of a MAC, not {self.units}",
            key="units",
        )
        require(
            self.element_bits <= 8 * dram.burst_bytes,
            f"must be at most a burst's {8 * dram.burst_bytes} bits, not {self.element_bits}",
            key="element_bits",
        )
        require_range("output_registers", self.output_registers, self.tokens_per_burst, 64)
        least = self.tokens_per_burst * dram.burst_bytes
        require(
            self.buffer_bytes >= least,
            f"must be at least {least}, a burst of inputs for each token of a burst, not {self.buffer_bytes}",
            key="buffer_bytes",
        )
        timing = dram.timing
        # Banks that are not opened at once, behind others of the same window.
        one_by_one = timing.faw + (count - 1) * max(timing.rrd_l, -(-timing.faw // 4))
        series = 0 if dram.all_bank_exempt else one_by_one
        use = max(timing.ras, self.mac_open_cycles + timing.rtp)
        self._check_interval(dram, timing.rfc + series + use + 2 * timing.rp + SLACK, "a row")

    def _check_interval(self, dram: DramSpec, busy: int, what: str) -> None:
        """Require that between refreshes that are due twice as often there is time for something."""
        require(
            dram.timing.refi >= 2 * busy,
            f"must be at least {2 * busy}, or hot there is no time for {what} between refreshes,"
            f" not {dram.timing.refi}",
            key="dram.timing.refi",
        )

    @property
    def timed(self) -> DramSpec:
        """The DRAM of a device with a schedule; :class:`InputError` for one without."""
        dram = self.standard if self.dram is None else self.dram
        if self.schedule is Schedule.NONE or dram is None:
            raise InputError(f"has no command schedule: {self.name!r}", key="design")
        return dram

    @property
    def burst_elements(self) -> int:
        """Weights of a burst."""
        return 8 * self.timed.burst_bytes // self.element_bits

    @property
    def macs_per_s(self) -> float:
        """Multiply-accumulates of one device in a second, at most."""
        return self.channels * self.units * self.lanes * self.clock_hz / self.mac_cycles

    def mac_step(self, tokens: int) -> int:
        """Return the cycles that a MAC command, or a burst at the pins, keeps a channel's lanes busy."""
        weights = max(self.banks_per_mac, 1) * self.burst_elements
        return -(-weights * tokens // (self.units * self.lanes)) * self.mac_cycles
