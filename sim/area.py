"""Area of a design: its multipliers, registers and memories, times a table of what one of each takes.

Counted are the MACs of engine, gate and combiner; the registers that hold tiles of weights; the memories that
grow with the design or the model. The bits of those memories are the ones of the Verilog: the test holds them
against its instances, of which these are all but a few percent. Not counted, because nothing here has figures
that hold for all designs: control, queues, the selection, activation functions, wires, pads, and the DRAM.

The table is one of 45 nm, its MACs counted in the Verilog of the expert engine. Units that lie in a DRAM are
made in its process: their range is wider by :data:`LOW_SCALE` and :data:`HIGH_SCALE`. ``docs/sweep.md`` says
where the figures come from.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sim.gemv.report import HIGH_SCALE, LOW_SCALE
from spec.area import AreaTable
from spec.design import DeepBlock, DesignSpec, Engine, Multiplier
from spec.device import PimDevice, UnitLevel
from spec.geometry import ImageGeometry, ceil_div
from spec.load import load_area
from spec.model import ModelSpec

TABLE = "cells-45nm"
SUM_BITS, BF16_BITS = 32, 16
MM2 = 1e-6
"""Square millimetres of a square micrometre."""
MACS = ("mac_bf16", "mac_bf16_deep", "mac_int8", "mac_int8_dual")
ENGINE_MEMORIES = ("tokens", "hidden", "accumulators", "groups", "inputs")
"""Memories of an array or a channel; the others are the gate's and the combiner's."""
IN_DRAM = (UnitLevel.BANK, UnitLevel.BANK_PAIR, UnitLevel.BANK_GROUP)


@dataclass(frozen=True)
class Area:
    """An area in square millimetres, with what it would be at the ends of all figures' ranges.

    ``counts``: how many there are of what the table has figures for.
    """

    total: float
    low: float
    high: float
    counts: dict[str, int]


@functools.cache
def _table() -> AreaTable:
    return load_area(TABLE)


def area_of(table: AreaTable, counts: dict[str, int], *, in_dram: bool = False) -> Area:
    """Return what is counted takes; ``in_dram``: it is made in a DRAM's process."""

    def total(end: str) -> float:
        return MM2 * sum(count * float(getattr(getattr(table, name), end)) for name, count in counts.items())

    low, high = (LOW_SCALE, HIGH_SCALE) if in_dram else (1.0, 1.0)
    return Area(total("value"), low * total("low"), high * total("high"), counts)


@functools.lru_cache(maxsize=256)
def layer_area(model: ModelSpec, design: DesignSpec) -> Area:
    """Return the area of an accelerator for a model; :class:`InputError` where the two do not go together.

    Of engine ``pim`` gate and combiner are counted as if they lay beside the lanes, in the same process.
    """
    image = ImageGeometry.of(model, design)
    engines = 1 if design.pim is None else design.pim.channels
    counts = dict.fromkeys(MACS, 0)
    for name, count in _engine_counts(image, design).items():
        counts[name] = engines * count
    gate_lanes = 0 if image.gate.banked else design.gate.lanes
    counts["mac_bf16_deep" if DeepBlock.GATE in design.deep else "mac_bf16"] += gate_lanes
    counts["mac_bf16"] += design.tile.act_lanes
    counts["memory_bit"] = sum(_memory_bits(image, model, design).values())
    return area_of(_table(), counts, in_dram=design.engine is Engine.PIM)


def _engine_counts(image: ImageGeometry, design: DesignSpec) -> dict[str, int]:
    """Return what an array, or a channel's lanes, have of MACs and of registers of tiles."""
    kind = "mac_int8" if design.format.integer else "mac_bf16"
    if design.format.integer and design.array is not None and design.array.multiplier is Multiplier.DUAL:
        kind = "mac_int8_dual"
    # An array has two tiles, one of them being filled; a channel's lanes have the one they work on.
    tiles = 1 if design.engine is Engine.PIM else 2
    return {
        kind: design.tile.rows * design.tile.cols,
        "register_bit": tiles * 8 * image.routed.tile_bytes,
    }


@functools.lru_cache(maxsize=256)
def engine_area(model: ModelSpec, design: DesignSpec, units: int) -> Area:
    """Return the area of so many engines of a design, each an array or a channel, without what routes.

    Raises :class:`InputError` where model and design do not go together.
    """
    image, near = ImageGeometry.of(model, design), design.engine is Engine.PIM
    memories = _memory_bits(image, model, design)
    counts = _engine_counts(image, design) | {
        "memory_bit": sum(memories[name] for name in ENGINE_MEMORIES if name in memories)
    }
    return area_of(_table(), {name: units * count for name, count in counts.items()}, in_dram=near)


def memory_bits(model: ModelSpec, design: DesignSpec) -> dict[str, int]:
    """Return the bits of an accelerator's memories: a copy for each read port, as the hardware has them."""
    return _memory_bits(ImageGeometry.of(model, design), model, design)


def _memory_bits(image: ImageGeometry, model: ModelSpec, design: DesignSpec) -> dict[str, int]:
    routed, gate, tile = image.routed, image.gate, design.tile
    slots, window = 2 * design.window_tokens, design.window_tokens
    engines, together = 1, window
    if design.pim is not None:
        engines, together = design.pim.channels, min(design.pim.tokens_per_burst, max(2, window))
    kinds = [routed] if image.shared is None else [routed, image.shared]
    token_words = ceil_div(routed.d_model, routed.cols)
    hidden_words = max(ceil_div(kind.hidden_blocks * kind.rows, kind.cols) for kind in kinds)
    stored_bits = BF16_BITS if image.weighted_inputs else routed.element_bits
    word = routed.cols * routed.element_bits
    row_sums = routed.rows * SUM_BITS
    places = max(2, together)
    found = {
        "tokens": engines * routed.cols * stored_bits * slots * token_words,
        "hidden": engines * word * together * hidden_words,
        # Two halves that take turns, and a copy for each of two readers.
        "accumulators": engines * routed.num_up_matrices * 2 * row_sums * 2 * places,
    }
    if routed.group_tiles > 1 and routed.format.grouped:
        found["groups"] = engines * row_sums * places
    if design.pim is not None:
        found["inputs"] = engines * word * together * token_words
    if not gate.banked:
        beats = 1 << max(1, (gate.num_beats - 1).bit_length())
        beat = ceil_div(gate.cols, gate.stream_lanes) * gate.stream_lanes * BF16_BITS
        found["router"] = gate.lanes * BF16_BITS * gate.num_words
        found["gate_tokens"] = beat * gate.num_token_buffers * beats
        found["logits"] = SUM_BITS * gate.logits_per_cycle * gate.num_rows
        biases = gate.num_biases * gate.bias_row_beats * gate.load_elements * BF16_BITS
        found["biases"] = biases * gate.num_rows
    words = ceil_div(model.d_model, tile.act_lanes)
    if engines == 1:
        found["sums"] = 2 * SUM_BITS * tile.act_lanes * slots * words
    else:
        contributions = model.gating.top_k + (image.shared is not None)
        found["contributions"] = BF16_BITS * tile.act_lanes * slots * contributions * words
        found["weights"] = BF16_BITS * slots * contributions
    if model.gating.num_identity_experts:
        width = max(tile.act_lanes, design.stream_lanes)
        found["starts"] = BF16_BITS * width * slots * ceil_div(model.d_model, width)
    return found


def device_area(device: PimDevice, channels: int) -> Area | None:
    """Return the area of the units of some channels of a device; None where its registers are not known.

    Weights of other than 8 or 16 bits have no figure either.
    """
    kind = {8: "mac_int8", 16: "mac_bf16"}.get(device.element_bits)
    burst_bits = 0 if device.dram is None and device.standard is None else 8 * device.timed.burst_bytes
    bits = (device.input_registers + device.output_registers) * burst_bits
    if kind is None or not (bits or device.buffer_bytes):
        return None
    units = channels * device.units
    # At a controller the buffer is the device's, and so many of its channels' share counts.
    buffers = channels / device.channels if device.level is UnitLevel.CONTROLLER else units
    counts = {
        kind: units * device.lanes,
        "register_bit": units * bits,
        "memory_bit": round(8 * device.buffer_bytes * buffers),
    }
    return area_of(_table(), counts, in_dram=device.level in IN_DRAM)
