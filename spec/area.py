"""What logic takes on a chip: areas of a process, each with a range and a source.

A table is data (``spec/area/*.toml``); a missing figure is an error, as in :mod:`spec.energy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.energy import Figure


@dataclass(frozen=True, kw_only=True)
class AreaTable:
    """Areas in square micrometres.

    Attributes
    ----------
    mac_bf16, mac_int8 : a multiplier and its adder, as the energies of the same names count.
    mac_bf16_deep : the gate's with a deep pipeline.
    mac_int8_dual : half a multiplier that makes two products, and an adder.
    register_bit : a flip-flop and what chooses its next value.
    memory_bit : a bit of a memory on chip, with its share of decoders and ports.
    """

    PRESET_FOLDER: ClassVar[str] = "area"

    name: str
    mac_bf16: Figure
    mac_bf16_deep: Figure
    mac_int8: Figure
    mac_int8_dual: Figure
    register_bit: Figure
    memory_bit: Figure
