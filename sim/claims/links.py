"""The links of the chain, each measured by a function; :data:`LINKS` lists them in order.

A link to come is one more function from a measurement to a link, and a row of the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.error_bound import output_error_bound
from golden.formats import bf16_decode
from golden.layer import layer
from golden.layer_bf16 import layer_bf16
from sim.check import COMBINE_TOLERANCE, OUTPUT_TOLERANCE, check_folder
from sim.claims.measurement import PRESETS, SCALE, Measurement, Run
from sim.claims.page import Claim, Link, Table
from sim.gating import gate_cycles
from sim.layer import BLOCKS
from sim.workload import Workload, vector_workload
from spec.design import DesignSpec
from spec.geometry import GateGeometry, ImageGeometry, ceil_div
from spec.load import load_model

HOW_FLOAT = """\
Layers recorded from the classes of `transformers` (float32) against `golden.layer` (float64): combine
weights, outputs, and which experts were selected and kept. The bounds are those of `expertbank check`;
that of the weights is times max(1, largest weight). *std*: the standard deviation of the layer's outputs."""
HOW_FORMATS = """\
`golden.layer` (float64) against `golden.layer_bf16` (bf16, fp32 accumulators, tables), on the same bf16
tokens and weights. The bound of each output is derived, no constant fitted: every rounding from token to
output is followed with magnitudes (`golden/error_bound.py`, [numbers.md](numbers.md)). *std* is the
standard deviation of the layer's outputs."""
HOW_RTL = f"""\
Selected experts, combine weights and outputs, bit for bit, of the accelerator `fpga` in Verilator; of an
expert alone the outputs. `/ {SCALE}` is `--scale {SCALE}`: widths divided by {SCALE}; experts, groups and k
as they are."""
HOW_BLOCKS = """\
Each block's model is given the arrivals and the ready patterns recorded at its ports; every handshake at
every port between the blocks must fall into the cycle that it says. Numbers are the cycles in which a
block holds work and is neither starved nor blocked: RTL (model minus RTL)."""
HOW_LAYER = """\
Cycles from the first input beat to the last output beat. The model is composed of the block models alone
and sees nothing of the run."""
HOW_THROUGHPUT = """\
Utilisation of an expert alone counts from its first job entry to its last output beat, the memory's first
latency included; its matrices are 16 x 56 array tiles. The cycles are the model's; link `blocks` has the
same runs in Verilog. The gate's tokens wait at its door; needed are
max(ceil(E x d_model / lanes), ceil(E / logits per cycle), k, ceil(d_model / stream lanes)) cycles a token."""
LAYER_BOUND = 0.01
"""Largest relative difference between a layer's cycles in RTL and in the model."""
MAC_BOUND, PORT_BOUND = 0.95, 0.90
GATE_TOKENS = 12
"""Enough that several are inside at once, and their buffers come round."""


def float_link(measurement: Measurement) -> Link:
    """Hugging Face's recorded layers against the float golden layer."""
    cases = check_folder(measurement.vectors)
    command = f"expertbank check {measurement.vectors}"
    combine = max(_or_infinite(case.combine_max_abs_err) for case in cases)
    output = max(_or_infinite(case.output_rel_err) for case in cases)
    families = len({case.family for case in cases})
    failed = sum(not case.ok for case in cases)
    return Link(
        name="float",
        title="Hugging Face against golden in float",
        how=HOW_FLOAT,
        claims=[
            Claim(
                text=f"layers recorded from Hugging Face, {families} families: float golden fails",
                measured=f"{failed} of {len(cases)}",
                bound="0",
                command=command,
                ok=failed == 0,
                headline=True,
            ),
            Claim(
                text="largest error of a combine weight",
                measured=_error(combine),
                bound=f"{COMBINE_TOLERANCE:.0e}",
                command=command,
                # Each case has its own bound; see its row.
                ok=failed == 0,
            ),
            Claim(
                text="their outputs: largest error over std",
                measured=_error(output),
                bound=f"{OUTPUT_TOLERANCE:.0e}",
                command=command,
                ok=output <= OUTPUT_TOLERANCE,
                headline=True,
            ),
        ],
        tables=[
            Table(
                (
                    "vector",
                    "family",
                    "combine weights, largest error",
                    "outputs, largest error over std",
                    "ok",
                ),
                [
                    (
                        case.file,
                        case.family or "?",
                        _error(_or_infinite(case.combine_max_abs_err)),
                        _error(_or_infinite(case.output_rel_err)),
                        "yes" if case.ok else f"NO: {case.reason}",
                    )
                    for case in cases
                ],
            )
        ],
    )


@dataclass(frozen=True)
class FormatErrors:
    """Errors of one layer's outputs in the hardware's formats, over the deviation of the float outputs.

    Attributes
    ----------
    same, tokens : tokens with the same experts, and all; errors are those of the same ones.
    error, bound : each output's error and its derived bound.
    """

    same: int
    tokens: int
    error: NDArray[np.float64]
    bound: NDArray[np.float64]

    @property
    def over_bound(self) -> float:
        """Largest error over its bound; a token whose assignments were all dropped has a bound of 0."""
        exact = self.bound == 0
        if (self.error[exact] > 0).any():
            return float("inf")
        return float((self.error / np.where(exact, 1.0, self.bound)).max(initial=0.0))


def format_errors(work: Workload, design: DesignSpec) -> FormatErrors:
    """Compute a layer in float and in the hardware's formats."""
    image = ImageGeometry.of(work.model, design)
    values = bf16_decode(work.tokens)
    real = layer(work.model, work.weights, values, work.batch_lengths, design.window_tokens)
    ours = layer_bf16(
        work.model,
        image,
        work.weights,
        work.tokens,
        window_tokens=design.window_tokens,
        batch_lengths=work.batch_lengths,
    )
    sets = (
        np.sort(np.where(kept, ids, -1), axis=1)
        for ids, kept in ((ours.routing.ids, ours.streams.kept), (real.ids, real.kept))
    )
    same = np.equal(*sets).all(axis=1)
    deviation = real.output.std()
    bound = output_error_bound(work.model, image, work.weights, values, real)
    error = np.abs(bf16_decode(ours.output) - real.output)
    return FormatErrors(int(same.sum()), len(same), error[same] / deviation, bound[same] / deviation)


def formats_link(measurement: Measurement) -> Link:
    """Golden in float against golden in the hardware's number formats."""
    layers = {name: format_errors(work, measurement.design) for name, _, work in measurement.workloads}
    tokens = sum(one.tokens for one in layers.values())
    others = tokens - sum(one.same for one in layers.values())
    over_bound = max(one.over_bound for one in layers.values())
    largest, largest_bound, mean, mean_bound = (
        max(float(value) for value in values)
        for values in zip(
            *(
                (one.error.max(), one.bound.max(), one.error.mean(), one.bound.mean())
                for one in layers.values()
                if one.same
            ),
            strict=True,
        )
    )
    command = "expertbank claims --only formats"
    return Link(
        name="formats",
        title="golden in float against golden in the hardware's number formats",
        how=HOW_FORMATS,
        claims=[
            Claim(
                text="tokens that select other experts in bf16 than in float",
                measured=f"{others} of {tokens}",
                bound="0",
                command=command,
                ok=others == 0,
                headline=True,
            ),
            Claim(
                text="bf16 against float: largest error of an output over its derived bound",
                measured=f"{over_bound:.3f}",
                bound="1",
                command=command,
                ok=over_bound <= 1,
                headline=True,
            ),
            Claim(
                text="largest error of an output over std",
                measured=f"{largest:.4f}",
                bound=f"{largest_bound:.2f}, derived",
                command=command,
                ok=largest <= largest_bound,
            ),
            Claim(
                text="largest mean error of a layer's outputs over std",
                measured=f"{mean:.4f}",
                bound=f"{mean_bound:.3f}, derived",
                command=command,
                ok=mean <= mean_bound,
            ),
        ],
        tables=[
            Table(
                ("layer", "same experts", "largest error", "mean error", "largest error over bound"),
                [
                    (
                        name,
                        f"{one.same} of {one.tokens}",
                        f"{one.error.max():.4f}" if one.same else "-",
                        f"{one.error.mean():.4f}" if one.same else "-",
                        f"{one.over_bound:.3f}",
                    )
                    for name, one in layers.items()
                ],
            )
        ],
    )


def rtl_link(measurement: Measurement) -> Link:
    """Golden in the hardware's formats against the exported Verilog."""
    runs = [*measurement.layers, *measurement.experts]
    differing = sum(_count(run.report.mismatches, run.bits) for run in runs)
    bits = sum(run.bits for run in runs)
    return Link(
        name="rtl",
        title="golden in the hardware's number formats against the exported Verilog",
        how=HOW_RTL,
        claims=[
            Claim(
                text=f"Verilog against bf16 golden, {len(runs)} runs: bits that differ",
                measured=f"{differing:,} of {bits:,}",
                bound="0",
                command="make claims",
                ok=differing == 0,
                headline=True,
            )
        ],
        tables=[
            Table(
                ("run", "tokens", "bits compared", "differing", "reproduce with"),
                [
                    (
                        run.name,
                        str(run.report.tokens),
                        f"{run.bits:,}",
                        "?" if run.report.mismatches is None else f"{run.report.mismatches:,}",
                        f"`{run.command}`",
                    )
                    for run in runs
                ],
            )
        ],
    )


def blocks_link(measurement: Measurement) -> Link:
    """The exported Verilog against the cycle models of its blocks."""
    runs = [*measurement.layers, *measurement.experts]
    diverged = [run for run in runs if run.report.divergence is not None]
    differences = [run.block_difference(block) for run in runs for block in run.report.blocks]
    missing = differences.count(None)
    largest = max((abs(one) for one in differences if one is not None), default=0)

    def cell(run: Run, block: str) -> str:
        if block not in run.report.blocks:
            return "-"
        difference = run.block_difference(block)
        return "?" if difference is None else f"{run.report.blocks[block]['rtl']:,} ({difference:+,})"

    return Link(
        name="blocks",
        title="the exported Verilog against the cycle models of its blocks",
        how=HOW_BLOCKS,
        claims=[
            Claim(
                text="runs with a handshake in another cycle than its block's model says",
                measured=f"{len(diverged)} of {len(runs)}",
                bound="0",
                command="make claims",
                ok=not diverged,
                headline=True,
            ),
            Claim(
                text="largest difference of a block's cycles",
                measured=f"{largest:,}" + (f", {missing} unknown" if missing else ""),
                bound="0",
                command="make claims",
                ok=largest == 0 and not missing,
            ),
        ],
        tables=[
            Table(
                ("run", *BLOCKS, "handshakes equal"),
                [
                    (
                        run.name,
                        *(cell(run, block) for block in BLOCKS),
                        "yes" if run.report.divergence is None else f"NO: {run.report.divergence}",
                    )
                    for run in runs
                ],
            )
        ],
    )


def layer_link(measurement: Measurement) -> Link:
    """The exported Verilog against the layer's cycle model, composed of the block models alone."""
    runs = measurement.layers
    largest = max(run.layer_difference for run in runs)
    return Link(
        name="layer",
        title="the exported Verilog against the layer's cycle model",
        how=HOW_LAYER,
        claims=[
            Claim(
                text="largest difference of a layer's cycles, Verilog against model",
                measured=f"{largest:.2%}",
                bound=f"{LAYER_BOUND:.0%}",
                command="make claims",
                ok=largest <= LAYER_BOUND,
                headline=True,
            )
        ],
        tables=[
            Table(
                ("run", "tokens", "RTL", "model", "difference"),
                [
                    (
                        run.name,
                        str(run.report.tokens),
                        _cycles(run.report.cycles["rtl"]),
                        _cycles(run.report.cycles["model"]),
                        f"{run.layer_difference:.2%}",
                    )
                    for run in runs
                ],
            )
        ],
    )


def throughput_link(measurement: Measurement) -> Link:
    """What gate and expert engine do per cycle, by their cycle models."""
    design = measurement.design
    covering, single = (
        measurement.expert_alone(tokens, "model") for tokens in (measurement.covering_tokens, 1)
    )
    mac, port = covering.report.utilisation["mac"], single.report.utilisation["bandwidth"]
    rows = []
    excess = 0
    recorded = [(path.stem, vector_workload(str(path), None).model) for path in measurement.vector_paths]
    for name, model in [(name, load_model(name)) for name in PRESETS] + recorded:
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
        ],
        tables=[Table(("gate of", "cycles per token", "needed"), rows)],
    )


def gate_interval(geometry: GateGeometry) -> int:
    """Return the cycles from token to token of a gate that is never kept waiting."""
    beats = np.zeros(GATE_TOKENS * geometry.input_beats, dtype=np.int64)
    first = gate_cycles(geometry, beats).o[:: geometry.gating.top_k]
    return int(np.diff(first).max())


def needed_interval(geometry: GateGeometry, design: DesignSpec) -> int:
    """Return the cycles per token that MACs, logits per cycle, input and output allow at best."""
    gating = geometry.gating
    return max(
        ceil_div(gating.num_experts * geometry.d_model, design.gate.lanes),
        ceil_div(gating.num_experts, design.gate.logits_per_cycle),
        gating.top_k,
        ceil_div(geometry.d_model, design.stream_lanes),
    )


@dataclass(frozen=True)
class Producer:
    """A link's name, what measures it, and whether that runs Verilog (minutes where it is not built yet)."""

    name: str
    measure: Callable[[Measurement], Link]
    needs_verilog: bool = False


LINKS = (
    Producer("float", float_link),
    Producer("formats", formats_link),
    Producer("rtl", rtl_link, needs_verilog=True),
    Producer("blocks", blocks_link, needs_verilog=True),
    Producer("layer", layer_link, needs_verilog=True),
    Producer("throughput", throughput_link),
)


def _count(mismatches: int | None, bits: int) -> int:
    """What was not compared counts as differing."""
    return bits if mismatches is None else mismatches


def _or_infinite(value: float | None) -> float:
    return float("inf") if value is None else value


def _error(value: float) -> str:
    return f"{value:.2e}"


def _cycles(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
