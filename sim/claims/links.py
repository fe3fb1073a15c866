"""The links of the chain in order. A link to come is one more function and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.claims.agreement import families_link
from sim.claims.benches import benches_link
from sim.claims.hardware import blocks_link, dram_link, layer_link, rtl_link
from sim.claims.measurement import Measurement
from sim.claims.memory import memory_link
from sim.claims.numbers import float_link, formats_link, int8_link
from sim.claims.page import Link
from sim.claims.programs import programs_link
from sim.claims.throughput import throughput_link


@dataclass(frozen=True)
class Producer:
    """A link's name, what measures it, and whether that runs Verilog (minutes where it is not built yet)."""

    name: str
    measure: Callable[[Measurement], Link]
    needs_verilog: bool = False


LINKS = (
    Producer("float", float_link),
    Producer("formats", formats_link),
    Producer("int8", int8_link),
    Producer("families", families_link, needs_verilog=True),
    Producer("rtl", rtl_link, needs_verilog=True),
    Producer("blocks", blocks_link, needs_verilog=True),
    Producer("layer", layer_link, needs_verilog=True),
    Producer("dram", dram_link, needs_verilog=True),
    Producer("memory", memory_link),
    Producer("programs", programs_link, needs_verilog=True),
    Producer("throughput", throughput_link),
    Producer("benches", benches_link),
)
