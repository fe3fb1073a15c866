"""What an event costs: energies in picojoules, powers in milliwatts, each with a range and a source.

A table is data (``spec/energy/*.toml``). What it lacks it does not have for nothing: asking for a missing
figure is an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from spec.errors import InputError, require

LARGEST = 1e9


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure and the range in which its sources lie.

    Attributes
    ----------
    value : what is counted with.
    low, high : the least and the greatest figure that a source has, or that is thought possible.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        require(
            0 < self.value <= LARGEST,
            f"must be above 0 and at most {LARGEST:g}, not {self.value}",
            key="value",
        )
        require(
            0 < self.low <= self.value,
            f"must be above 0 and at most value={self.value}, not {self.low}",
            key="low",
        )
        require(
            self.value <= self.high <= LARGEST,
            f"must be at least value={self.value} and at most {LARGEST:g}, not {self.high}",
            key="high",
        )


@dataclass(frozen=True, kw_only=True)
class EnergyTable:
    """Energy of each kind of event (picojoules), and powers (milliwatts) of what costs all the time.

    None: the table has no such figure.

    Attributes
    ----------
    mac_bf16, mac_int8 : a multiplication and its addition into an fp32 or int32 sum.
    activation : one value through the activation function and its product with the other matrix's.
    compare : one 32-bit comparison of the selection.
    sram_bit : a bit read from or written to a memory on chip.
    link_bit : a bit of a token between host and accelerator.
    logic_static : power of the configured logic when nothing switches.
    memory_bit : a bit read from the external memory, with its share of activates and its pins.
    memory_background, memory_refresh : power of the external memory with an open row, and of its refreshes.
    dram_activate : opening and closing one row of one bank.
    dram_cell_bit : a bit read from an open row to the bank's column decoder.
    dram_bank_bit, dram_bank_group_bit, dram_logic_die_bit : from there to lanes at the bank, at the bank
        group, on the logic die.
    dram_pin_bit : from there over the pins to a controller.
    dram_register_bit : a bit of an input or a result between the channel's controller and the banks' lanes.
    dram_group_register_bit, dram_die_register_bit : the same to lanes at a bank group, to lanes on the
        controller's own die.
    dram_refresh : one all-bank refresh of a channel.
    dram_background : power of a channel with open rows.
    host_add : an addition of two sums on the host.
    """

    PRESET_FOLDER: ClassVar[str] = "energy"

    name: str
    mac_bf16: Figure | None = None
    mac_int8: Figure | None = None
    activation: Figure | None = None
    compare: Figure | None = None
    sram_bit: Figure | None = None
    link_bit: Figure | None = None
    logic_static: Figure | None = None
    memory_bit: Figure | None = None
    memory_background: Figure | None = None
    memory_refresh: Figure | None = None
    dram_activate: Figure | None = None
    dram_cell_bit: Figure | None = None
    dram_bank_bit: Figure | None = None
    dram_bank_group_bit: Figure | None = None
    dram_logic_die_bit: Figure | None = None
    dram_pin_bit: Figure | None = None
    dram_register_bit: Figure | None = None
    dram_group_register_bit: Figure | None = None
    dram_die_register_bit: Figure | None = None
    dram_refresh: Figure | None = None
    dram_background: Figure | None = None
    host_add: Figure | None = None

    def figure(self, name: str) -> Figure:
        """Return a figure; :class:`InputError` where the table has none."""
        found = getattr(self, name)
        if found is None:
            raise InputError(
                f"is missing in table {self.name}, and the run has such events", key=f"energy.{name}"
            )
        assert isinstance(found, Figure)
        return found


FIGURES = tuple(field.name for field in dataclasses.fields(EnergyTable) if field.name != "name")
POWERS = ("logic_static", "memory_background", "memory_refresh", "dram_background")
"""Figures in milliwatts; the others are picojoules for each event."""
COMPONENTS = {
    "mac_bf16": "mac",
    "mac_int8": "mac",
    "activation": "logic",
    "compare": "logic",
    "sram_bit": "sram",
    "link_bit": "link",
    "logic_static": "static",
    "memory_bit": "memory",
    "memory_background": "memory_background",
    "memory_refresh": "memory_refresh",
    "dram_activate": "dram_core",
    "dram_cell_bit": "dram_core",
    "dram_bank_bit": "dram_path",
    "dram_bank_group_bit": "dram_path",
    "dram_logic_die_bit": "dram_path",
    "dram_pin_bit": "dram_path",
    "dram_register_bit": "dram_path",
    "dram_group_register_bit": "dram_path",
    "dram_die_register_bit": "dram_path",
    "dram_refresh": "dram_refresh",
    "dram_background": "dram_background",
    "host_add": "host",
}
"""Component of a report that a figure's events belong to."""
