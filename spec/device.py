"""A DRAM with MAC units as published, or as designed here: what a matrix-vector product on it needs to know.

It is one description for all of them: where the units lie, how wide they are, what registers and commands
they have, and in which schedule a product runs on them. Unlike :class:`spec.design.DesignSpec` it has no
gate, dispatcher or combiner around it, and no Verilog.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from spec.dram import DramSpec
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
    ``NONE``: of this device only the numbers are known, and no schedule is modelled.
    """

    BARRIER = "barrier"
    STREAMED = "streamed"
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
    clock_hz : of ``mac_cycles``; with a ``dram`` it is the DRAM's.
    mac_cycles : cycles from one MAC of a unit to its next.
    tokens_per_burst : tokens that may share a burst of weights; each takes ``mac_cycles``.
    input_registers, output_registers : bursts that a unit holds of inputs and of partial sums; 0 if unknown.
    buffer_bytes : of a unit's (or, at the controller, the device's) buffer; 0 where there are only registers.
    internal_bytes_per_s : of one device, that its units can read; 0 if unknown.
    commands : names of what the device adds to a DRAM's commands, in one string.
    schedule : how a matrix-vector product runs; ``BARRIER`` and ``STREAMED`` need a ``dram``.
    dram : a (pseudo-)channel; a preset's name in TOML.
    """

    PRESET_FOLDER: ClassVar[str] = "devices"

    name: str
    level: UnitLevel
    channels: int
    units: int
    lanes: int
    clock_hz: float
    mac_cycles: int
    tokens_per_burst: int = 1
    input_registers: int = 0
    output_registers: int = 0
    buffer_bytes: int = 0
    internal_bytes_per_s: float = 0.0
    commands: str = ""
    schedule: Schedule = Schedule.NONE
    dram: PartSpec | None = None

    def __post_init__(self) -> None:
        require_range("channels", self.channels, 1, 4096)
        require_range("units", self.units, 1, 64)
        require_range("lanes", self.lanes, 1, 4096)
        require(self.clock_hz > 0, f"must be positive, not {self.clock_hz:g}", key="clock_hz")
        require_range("mac_cycles", self.mac_cycles, 1, 64)
        require_range("tokens_per_burst", self.tokens_per_burst, 1, 64)
        for key in ("input_registers", "output_registers"):
            require_range(key, getattr(self, key), 0, 64)
        require_range("buffer_bytes", self.buffer_bytes, 0, 1 << 30)
        require(
            self.internal_bytes_per_s >= 0,
            f"must not be negative, not {self.internal_bytes_per_s:g}",
            key="internal_bytes_per_s",
        )
        if self.schedule is not Schedule.NONE:
            self._check_schedule()

    def _check_schedule(self) -> None:
        require(self.dram is not None, f"must be given for schedule {self.schedule}", key="dram")
        assert self.dram is not None
        require(
            self.level is UnitLevel.BANK_PAIR,
            f"must be bank_pair for schedule {self.schedule}, not {self.level}",
            key="level",
        )
        require(
            2 * self.units == self.dram.num_banks,
            f"must be {self.dram.num_banks // 2}, one for two of {self.dram.num_banks} banks,"
            f" not {self.units}",
            key="units",
        )
        require(
            2 * self.lanes == self.dram.burst_bytes,
            f"must be {self.dram.burst_bytes // 2}, the 16-bit numbers of a burst, not {self.lanes}",
            key="lanes",
        )
        for key in ("input_registers", "output_registers"):
            require_range(key, getattr(self, key), 2, 64)
        if self.schedule is Schedule.BARRIER:
            for key in ("mac_cycles", "tokens_per_burst"):
                most = self.dram.timing.ccd_l if key == "mac_cycles" else 1
                require_range(key, getattr(self, key), 1, most)
        timing = self.dram.timing
        write = timing.rcd_wr + timing.cwl + timing.burst + timing.wr
        least = 2 * (timing.rfc + max(timing.ras, write) + 2 * timing.rp + SLACK)
        require(
            timing.refi >= least,
            f"must be at least {least}, or hot there is no time for a write between refreshes,"
            f" not {timing.refi}",
            key="dram.timing.refi",
        )
        most = min(self.input_registers, self.output_registers)
        require(
            self.tokens_per_burst <= most // 2 or self.tokens_per_burst == 1,
            f"must be at most {most // 2}, half of the registers, not {self.tokens_per_burst}",
            key="tokens_per_burst",
        )

    @property
    def timed(self) -> PartSpec:
        """The DRAM of a device with a schedule; :class:`InputError` for one without."""
        if self.schedule is Schedule.NONE or self.dram is None:
            raise InputError(f"has no command schedule: {self.name!r}", key="design")
        return self.dram

    @property
    def macs_per_s(self) -> float:
        """Multiply-accumulates of one device in a second, at most."""
        return self.channels * self.units * self.lanes * self.clock_hz / self.mac_cycles
