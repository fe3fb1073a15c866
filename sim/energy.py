"""Energy of a run: how often what costs something happened, times a table of what it costs.

Counted are the events of the hardware's blocks; ``docs/energy.md`` has the definition of each. The counts
that depend on time (MAC slots, weight beats, DRAM commands) come from the Verilog's counters where it ran,
else from the cycle model; the others follow from the streams between the blocks. A count of 0 asks nothing
of the table; one above 0 whose figure the table lacks is an error.

Not counted, because no source has figures: clock trees and control, wires on chip, and leakage of logic
beside a DRAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from golden.dispatch_streams import DispatchStreams
from spec.banks import CommandTiming
from spec.design import DesignSpec
from spec.energy import COMPONENTS, POWERS, EnergyTable
from spec.geometry import ImageGeometry, ceil_div

PICO, MILLI = 1e-12, 1e-3
SUM_BITS = 32
"""An fp32 or int32 sum."""
ELEMENT_BITS = 16
"""A bf16 element of a token, of the router, or of a result on its way out of the banks."""

BANKS_AT_A_BANK = 2
"""Lanes that one bank or a pair of banks share lie beside them."""

COMMANDS = ("activates", "mac_commands", "register_writes", "register_reads")
"""Performance counters of commands that cost energy."""
OUTSIDE_THE_ENGINE = ("mac_bf16", "compare", "sram_bit", "link_bit")
"""Events of gate, token store, combiner and streams."""

Counts = dict[str, float]
"""Events by the names of :class:`spec.energy.EnergyTable`."""


@dataclass(frozen=True)
class Energy:
    """Energy of a run in joules.

    Attributes
    ----------
    table : name of the table.
    components : by :data:`spec.energy.COMPONENTS`; they add up to the total.
    low, high : the total if every figure were at the low, at the high end of its range.
    counts : events.
    """

    table: str
    components: dict[str, float]
    low: float
    high: float
    counts: Counts

    @property
    def total(self) -> float:
        """All components together."""
        return sum(self.components.values())

    def as_json(self) -> dict[str, object]:
        """Return the object of a report's ``energy``."""
        return {
            "table": self.table,
            "components_j": self.components,
            "low_j": self.low,
            "high_j": self.high,
            "counts": self.counts,
        }

    def __add__(self, other: Energy) -> Energy:
        """Return the energy of two runs with one table."""
        assert self.table == other.table
        return Energy(
            self.table,
            _sum(self.components, other.components),
            self.low + other.low,
            self.high + other.high,
            _sum(self.counts, other.counts),
        )


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def joules_text(joules: float) -> str:
    """Return an energy with four digits, in a unit that leaves at most three of them before the point."""
    for unit, name in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ")):
        if joules >= unit:
            return f"{joules / unit:.4g} {name}"
    return f"{joules / 1e-9:.4g} nJ"


def energy_of(table: EnergyTable, counts: Counts, seconds: float) -> Energy:
    """Return what events cost, and the powers over a time.

    Parameters
    ----------
    counts : events; for a figure that is a power, how many of what draws it.
    seconds : how long.

    Raises :class:`InputError` where the table lacks the figure of an event that happened.
    """
    components: dict[str, float] = {}
    low = high = 0.0
    for name, count in counts.items():
        if not count:
            continue
        figure = table.figure(name)
        unit = count * (MILLI * seconds if name in POWERS else PICO)
        component = COMPONENTS[name]
        components[component] = components.get(component, 0.0) + figure.value * unit
        low += figure.low * unit
        high += figure.high * unit
    return Energy(table.name, components, low, high, counts)


def check_table(design: DesignSpec) -> None:
    """Raise :class:`InputError` if a design's table lacks a figure that its runs need."""
    if design.energy is None:
        return
    if design.pim is None:
        counts = fpga_engine_counts(design, fires=1, read_beats=1, hidden_values=1)
    else:
        counts = pim_engine_counts(
            design, fires=1, commands=dict.fromkeys(COMMANDS, 1), cycles=1, hidden_values=1
        )
    for name in (*counts, *OUTSIDE_THE_ENGINE):
        design.energy.figure(name)


def fpga_counts(
    image: ImageGeometry, design: DesignSpec, streams: DispatchStreams, *, fires: int, read_beats: int
) -> Counts:
    """Return the events of a layer on an ``fpga`` design; parameters as in :func:`fpga_engine_counts`."""
    engine = fpga_engine_counts(
        design, fires=fires, read_beats=read_beats, hidden_values=_hidden_values(image, streams)
    )
    return _sum(engine, _other_counts(image, streams, design))


def fpga_engine_counts(design: DesignSpec, *, fires: int, read_beats: int, hidden_values: int) -> Counts:
    """Return the events of an ``fpga`` engine and its memory.

    Parameters
    ----------
    fires : MAC slots used.
    read_beats : beats read from the weight memory.
    hidden_values : values that go through the activation.
    """
    weight_bits = float(read_beats * design.memory.width_bits)
    counts = _mac_counts(design, fires, hidden_values)
    # Weights are written into a tile buffer and read from it once.
    counts["sram_bit"] += 2 * weight_bits
    return counts | {
        "memory_bit": weight_bits,
        "memory_background": 1.0,
        "memory_refresh": 1.0,
        "logic_static": 1.0,
    }


def pim_counts(
    image: ImageGeometry,
    design: DesignSpec,
    streams: DispatchStreams,
    *,
    fires: int,
    commands: Mapping[str, int],
    cycles: int,
) -> Counts:
    """Return the events of a layer on a ``pim`` design; parameters as in :func:`pim_engine_counts`."""
    engine = pim_engine_counts(
        design,
        fires=fires,
        commands=commands,
        cycles=cycles,
        hidden_values=_hidden_values(image, streams),
    )
    return _sum(engine, _other_counts(image, streams, design))


def pim_engine_counts(
    design: DesignSpec, *, fires: int, commands: Mapping[str, int], cycles: int, hidden_values: int
) -> Counts:
    """Return the events of a ``pim`` engine and its banks.

    Parameters
    ----------
    fires : tokens that met a tile, all channels.
    commands : of all channels, by the names of :data:`COMMANDS`.
    cycles : how long the run took; a channel is refreshed all the time, wherever in the interval it began.
    hidden_values : values that go through the activation.
    """
    pim = design.pim
    assert pim is not None
    timing = CommandTiming.of(pim)
    burst_bits = 8 * pim.dram.burst_bytes
    read_bits = float(commands["mac_commands"] * pim.units // timing.mac_steps * 8 * pim.stored_burst_bytes)
    if pim.banks_per_unit <= BANKS_AT_A_BANK:
        path, register_path = "dram_bank_bit", "dram_register_bit"
    elif pim.banks_per_unit <= pim.dram.banks_per_group:
        path, register_path = "dram_bank_group_bit", "dram_group_register_bit"
    else:
        path, register_path = "dram_logic_die_bit", "dram_die_register_bit"
    # A write brings a burst to all units at once, a read an element of each.
    register_bits = commands["register_writes"] * burst_bits
    register_bits += commands["register_reads"] * pim.units * ELEMENT_BITS
    return _mac_counts(design, fires, hidden_values) | {
        "dram_activate": float(commands["activates"] * pim.units // timing.act_steps),
        "dram_cell_bit": read_bits,
        path: read_bits,
        register_path: float(register_bits),
        "dram_refresh": pim.channels * cycles / timing.refi if timing.refi else 0.0,
        "dram_background": float(pim.channels),
    }


def _mac_counts(design: DesignSpec, fires: int, hidden_values: int) -> Counts:
    """Return the events at an engine's MACs, its activation and the memories of both."""
    # (In a grouped format what scales and totals take, once a group, is not counted.)
    tile, bits = design.tile, design.format.operand_bits
    mac = "mac_int8" if design.format.integer else "mac_bf16"
    # Per slot: its inputs, and for each row a sum read and written. Hidden values are written once.
    sram = fires * (tile.cols * bits + 2 * tile.rows * SUM_BITS) + hidden_values * bits
    return {
        mac: float(fires * tile.rows * tile.cols),
        "activation": float(hidden_values),
        "sram_bit": float(sram),
    }


def _hidden_values(image: ImageGeometry, streams: DispatchStreams) -> int:
    """Return how many values go through the activation."""
    is_shared = streams.entry_expert == image.num_experts
    shared = int(np.count_nonzero(is_shared))
    width = 0 if image.shared is None else image.shared.d_hidden
    return (len(is_shared) - shared) * image.routed.d_hidden + shared * width


def _weighted_inputs(image: ImageGeometry, streams: DispatchStreams, design: DesignSpec) -> int:
    """Return how many inputs are multiplied with a weight: as often as they are read for the lanes."""
    is_shared = streams.entry_expert == image.num_experts
    inputs = 0
    for kind, entries in ((image.routed, ~is_shared), (image.shared, is_shared)):
        if kind is not None:
            if design.pim is None:
                # For every tile.
                reads = kind.hidden_blocks * kind.num_up_matrices * kind.in_tiles * kind.cols
            else:
                # Once, for the registers.
                at_once = design.pim.load_lanes(design.format)
                reads = ceil_div(kind.d_model, at_once) * at_once
            inputs += int(np.count_nonzero(entries)) * reads
    return inputs


def _other_counts(image: ImageGeometry, streams: DispatchStreams, design: DesignSpec) -> Counts:
    """Return the events outside the engine: gate, token store, combiner, streams of tokens."""
    gate, d_model = image.gate, image.routed.d_model
    tokens, elements = len(streams.window), len(streams.entry_token) * d_model
    # With the router in the banks its products are among the engine's slots.
    products = 0 if gate.banked else tokens * gate.product_cycles * gate.lanes
    sram = products * ELEMENT_BITS  # the router
    sram += tokens * d_model * ELEMENT_BITS  # the store of tokens, written once
    sram += (2 * elements + tokens * d_model) * SUM_BITS  # the combiner's sums
    if image.gate.gating.num_identity_experts:
        # The combiner's own store of tokens, written and read once; a product for each sum's start.
        sram += 2 * tokens * d_model * ELEMENT_BITS
        products += tokens * d_model
    if image.output_bias:
        sram += tokens * d_model * SUM_BITS
    if image.weighted_inputs:
        products += _weighted_inputs(image, streams, design)
    return {
        "mac_bf16": float(products + elements),
        "compare": float(tokens * gate.gating.num_experts * gate.gating.top_k),
        "sram_bit": float(sram),
        "link_bit": float(2 * tokens * d_model * ELEMENT_BITS),
    }
