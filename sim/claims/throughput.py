"""What gate, expert engine and near-memory channel do per cycle, by their cycle models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np

from sim.claims.measurement import PRESETS, Measurement
from sim.claims.page import Claim, Link, Table
from sim.gating import gate_cycles
from sim.pim import ChannelShape, Column, channel_cycles
from sim.pim_slots import SLOTS, ChannelTrace, mac_slots
from spec.banks import BankGeometry, CommandTiming
from spec.design import PLAIN_FORMATS, DesignSpec, Format
from spec.geometry import GateGeometry, ImageGeometry, ceil_div
from spec.load import load_design, load_model

HOW_THROUGHPUT = """\
Utilisation of an expert alone counts from its first job entry to its last output beat, the memory's first
latency included; its matrices are 16 x 56 array tiles. The cycles are the model's; link `blocks` has the
same runs in Verilog. The gate's tokens wait at its door; needed are
max(ceil(E x d_model / lanes), ceil(E / logits per cycle), k, ceil(d_model / stream lanes)) cycles a token,
E the experts and one more where the shared expert has a gate.

A near-memory channel alone computes one expert for one group of tokens. Cycles from its first
to its last MAC by what they were for, as [pim.md](pim.md) tells them apart: the MACs themselves, refresh,
closing and opening rows, and what the DRAM does not ask for: busy lanes, results, inputs, other. *Of what
DRAM leaves*: MACs over all cycles but those of refresh and rows."""
MAC_BOUND, PORT_BOUND = 0.95, 0.90
CHANNEL_BOUND = 0.90
"""Of the cycles that DRAM timing and refresh leave to a channel's MACs."""
MIN_ROWS = 8
"""Rows per bank of the smallest matrix for which that is claimed."""
GATE_TOKENS = 12
"""Enough that several are inside at once, and their buffers come round."""
SHOWN = tuple(name for name in SLOTS if name != "jobs")
"""From first to last MAC of one job none waits for a job."""
CHANNEL_MODELS = (("deepseek-v3", 1, 1), ("mixtral-8x7b", 16, 8), ("qwen3-30b-a3b", 3, 1))
"""Models, their scale, and that with weights of four bits, which have as many rows in larger matrices."""
CHANNELS = tuple(
    (model, large if number_format.bits < 8 else scale, number_format, banks, tokens)
    for model, scale, large in CHANNEL_MODELS
    for number_format in PLAIN_FORMATS
    for banks in (1, 2)
    for tokens in (1, 4)
)
"""Model, its scale, format, banks per unit, tokens of the group."""


def throughput_link(measurement: Measurement) -> Link:
    """What gate and expert engine do per cycle, by their cycle models."""
    design = measurement.design
    covering, single = (
        measurement.expert_alone(tokens, "model") for tokens in (measurement.covering_tokens, 1)
    )
    mac, port = covering.report.utilisation["mac"], single.report.utilisation["bandwidth"]
    uses = [channel_use(*channel) for channel in CHANNELS]
    least = min(use.of_what_is_left for use in uses)
    rows = []
    excess = 0
    recorded = {name: work.model for name, work in measurement.recorded.items()}
    for name, model in ({name: load_model(name) for name in PRESETS} | recorded).items():
        geometry = GateGeometry.of(model, design)
        interval, needed = gate_interval(geometry), needed_interval(geometry, design)
        excess = max(excess, interval - needed)
        rows.append((name, f"{interval:,}", f"{needed:,}"))
    return Link(
        name="throughput",
        title="what gate and expert engine do per cycle",
        how=HOW_THROUGHPUT,
        claims=[
            Claim(
                text=f"MAC slots used by an expert whose {covering.report.tokens} tokens cover a tile's load",
                measured=f"{mac:.1%}",
                bound=f"at least {MAC_BOUND:.0%}",
                command=covering.command,
                ok=mac >= MAC_BOUND,
                headline=True,
            ),
            Claim(
                text="weight port used by an expert with one token,"
                f" {design.memory.latency_cycles} cycles of latency",
                measured=f"{port:.1%}",
                bound=f"at least {PORT_BOUND:.0%}",
                command=single.command,
                ok=port >= PORT_BOUND,
                headline=True,
            ),
            Claim(
                text=f"cycles per token of the gate above need, {len(PRESETS)} presets in full size and"
                f" {len(recorded)} recorded layers",
                measured=str(excess),
                bound="0",
                command="expertbank claims --only throughput",
                ok=excess <= 0,
            ),
            Claim(
                text=f"MAC slots used by a channel of banks, of what DRAM leaves, {len(uses)} configurations",
                measured=f"at least {least:.1%}",
                bound=f"at least {CHANNEL_BOUND:.0%}",
                command="expertbank claims --only throughput",
                ok=least >= CHANNEL_BOUND and min(use.rows for use in uses) >= MIN_ROWS,
                headline=True,
            ),
        ],
        tables=[Table(("gate of", "cycles per token", "needed"), rows), _channel_table(uses)],
    )


def gate_interval(geometry: GateGeometry) -> int:
    """Return the cycles from token to token of a gate that is never kept waiting."""
    beats = np.zeros(GATE_TOKENS * geometry.input_beats, dtype=np.int64)
    first = gate_cycles(geometry, beats).o[:: geometry.gating.top_k]
    return int(np.diff(first).max())


def needed_interval(geometry: GateGeometry, design: DesignSpec) -> int:
    """Return the cycles per token that MACs, logits per cycle, input and output allow at best."""
    # The gate of a shared expert is one logit more.
    logits = geometry.gating.num_experts + geometry.shared_gate
    return max(
        ceil_div(logits * geometry.d_model, design.gate.lanes),
        ceil_div(logits, design.gate.logits_per_cycle),
        geometry.gating.top_k,
        ceil_div(geometry.d_model, design.stream_lanes),
    )


@dataclass(frozen=True)
class ChannelUse:
    """Where a channel's cycles went, from its first MAC command to its last one's end.

    Attributes
    ----------
    cycles : all of them; ``slots`` by what they were for (:data:`sim.pim_slots.SLOTS`).
    rows : rows per bank of the expert's smallest matrix.
    """

    cycles: int
    slots: dict[str, int]
    rows: int

    @property
    def of_what_is_left(self) -> float:
        """MACs over what DRAM timing and refresh leave."""
        return self.slots["mac"] / (self.cycles - self.slots["refresh"] - self.slots["row"])


@cache
def channel_use(
    model_name: str, scale: int, number_format: Format, banks_per_unit: int, tokens: int
) -> ChannelUse:
    """Return what a channel of design ``pim`` does for one expert and one group of tokens."""
    design = load_design("pim", number_format)
    assert design.pim is not None
    pim = dataclasses.replace(design.pim, banks_per_unit=banks_per_unit)
    design = dataclasses.replace(design, pim=pim)
    # One expert is run: the others need not fit.
    banks = BankGeometry(image=ImageGeometry.of(load_model(model_name).scaled(scale), design), pim=pim)
    timing = CommandTiming.of(pim)
    last = np.arange(tokens) == tokens - 1
    run = channel_cycles(
        ChannelShape(banks=banks),
        np.zeros(tokens, dtype=np.bool_),
        last,
        np.zeros(tokens, dtype=np.int64),
        first_refresh=timing.refi,
    )
    experts = np.zeros(tokens, dtype=np.int64)
    trace = ChannelTrace.of(banks, experts, last, run.i, run.rows, run.columns)
    macs = run.columns[run.columns[:, 1] == Column.MAC, 0]
    slots = mac_slots(banks, trace, int(macs[0]), int(macs[-1]) + timing.mac_gap)
    kind = banks.image.routed
    tiles = min(kind.hidden_blocks * kind.in_tiles, kind.out_blocks * kind.hidden_tiles)
    return ChannelUse(sum(slots.values()), slots, tiles // (banks.bursts_per_row * banks.sides))


def _channel_table(uses: list[ChannelUse]) -> Table:
    return Table(
        (
            "channel with an expert of",
            "format",
            "banks per unit",
            "tokens",
            "rows per bank",
            "cycles",
            *SHOWN,
            "MACs of what DRAM leaves",
        ),
        [
            (
                model if scale == 1 else f"{model} / {scale}",
                number_format,
                str(banks),
                str(tokens),
                f"{use.rows:,}",
                f"{use.cycles:,}",
                *(f"{use.slots[name] / use.cycles:.2%}" for name in SHOWN),
                f"{use.of_what_is_left:.2%}",
            )
            for (model, scale, number_format, banks, tokens), use in zip(CHANNELS, uses, strict=True)
        ],
    )
