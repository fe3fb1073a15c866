"""The links to the hardware: golden, cycle models and the DRAM's rules against the exported Verilog."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sim.accelerator import Report
from sim.claims.measurement import DEEP, SCALE, Measurement, Run
from sim.claims.page import Claim, Link, Table
from sim.dram_check import COMMANDS

HOW_RTL = f"""\
Selected experts, combine weights and outputs, bit for bit, of both accelerators in Verilator, with experts
in bf16 and in int8, on `fpga` and on `pim-small`, whose units are few and built in a minute, with weights
stored in fp8, MXFP4 and int4, and the presets on `{DEEP}`, whose pipelines are deep; of an expert alone the
outputs. Of every family that the hardware has the first recorded layer runs on `fpga`, of six families all on
both accelerators; `spec/hardware.py` refuses the others. `/ {SCALE}` is `--scale {SCALE}`: widths divided by
{SCALE}; experts, groups and k as they are."""
HOW_BLOCKS = """\
Each block's model is given the arrivals and the ready patterns recorded at its ports; every handshake at
every port between the blocks must fall into the cycle that it says, of a near-memory channel every DRAM
command too. Numbers are the cycles in which a block holds work and is neither starved nor blocked: RTL
(model minus RTL). *experts*: `expert` of `fpga` and `fpga-ecp5`, all channels `pim` of `pim`."""
HOW_LAYER = """\
Cycles from the first input beat to the last output beat. The model is composed of the block models alone
and sees nothing of the run. *System*: the same layer's time on the systems `fpga` and `pim` of
`expertbank system`, each the accelerator alone, for the same experts, in cycles of its clock: of presets in
bf16. It comes from the same block models, through the system's own way of spans and seconds
([system.md](system.md))."""
HOW_DRAM = """\
Every command on the buses of every channel in the near-memory runs of link `rtl`, read by
`sim/dram_check.py`, which shares nothing with command engine and model but the DRAM's numbers, and asserts
every constraint. A refresh falls due every tREFI from a cycle after reset that the design fixes; *in time*
is one that stands on the bus in that very cycle. ACT and PRE count once where one command goes to all
banks of a side; PREA is the precharge of everything before a refresh. WR and RD are accesses to the
units' registers."""
COLUMNS = {
    "gating": ("gating",),
    "dispatch": ("dispatch",),
    "experts": ("expert", "pim"),
    "combine": ("combine",),
}
"""Columns of the table of blocks, and which block is in each."""
LAYER_BOUND = 0.01
"""Largest relative difference between a layer's cycles in RTL and in the model."""


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
                text=f"Verilog against golden, {_by_design(runs)}: bits that differ",
                measured=f"{differing:,} of {bits:,}",
                bound="0",
                command="make claims",
                ok=differing == 0,
                headline=True,
            )
        ],
        tables=[
            Table(
                ("run", "on", "tokens", "bits compared", "differing", "reproduce with"),
                [
                    (
                        run.name,
                        run.on,
                        str(run.report.tokens),
                        f"{run.bits:,}",
                        "?" if run.report.mismatches is None else f"{run.report.mismatches:,}",
                        f"`{run.command}`",
                    )
                    for run in runs
                ],
            ),
            Table(
                ("recorded layer that is not run", "terms that the hardware lacks"),
                [
                    (name, ", ".join(f"`{term}`" for term in terms))
                    for name, terms in measurement.refused.items()
                ],
            ),
        ],
    )


def blocks_link(measurement: Measurement) -> Link:
    """The exported Verilog against the cycle models of its blocks."""
    runs = [*measurement.layers, *measurement.experts]
    diverged = [run for run in runs if run.report.divergence is not None]
    differences = [run.block_difference(block) for run in runs for block in run.report.blocks]
    missing = differences.count(None)
    largest = max((abs(one) for one in differences if one is not None), default=0)

    def cell(run: Run, *names: str) -> str:
        block = next((name for name in names if name in run.report.blocks), None)
        if block is None:
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
                ("run", "on", *COLUMNS, "handshakes equal"),
                [
                    (
                        run.name,
                        run.on,
                        *(cell(run, *names) for names in COLUMNS.values()),
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
    systems = [run.system_difference for run in runs if run.system_difference is not None]
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
            ),
            Claim(
                text=f"largest difference of a system's time, Verilog against `expertbank system`,"
                f" {len(systems)} layers",
                measured=f"{max(systems, default=float('inf')):.2%}",
                bound=f"{LAYER_BOUND:.0%}",
                command="make claims",
                ok=bool(systems) and max(systems) <= LAYER_BOUND,
            ),
        ],
        tables=[
            Table(
                ("run", "on", "tokens", "RTL", "model", "difference", "system", "difference of it"),
                [
                    (
                        run.name,
                        run.on,
                        str(run.report.tokens),
                        _cycles(run.report.cycles["rtl"]),
                        _cycles(run.report.cycles["model"]),
                        f"{run.layer_difference:.2%}",
                        "-" if run.system_cycles is None else f"{run.system_cycles:,}",
                        "-" if run.system_difference is None else f"{run.system_difference:.2%}",
                    )
                    for run in runs
                ],
            )
        ],
    )


def dram_link(measurement: Measurement) -> Link:
    """The DRAM's rules against the commands of the near-memory runs."""
    runs = [run for run in measurement.layers if run.report.dram is not None]
    total: Counter[str] = Counter()
    for run in runs:
        total.update(_dram(run.report)["commands"])
    broken = [one for run in runs for one in _dram(run.report)["violations"]]
    due, in_time = (sum(_dram(run.report)["refreshes"][name] for run in runs) for name in ("due", "in_time"))
    return Link(
        name="dram",
        title="the DRAM's rules against the commands of the near-memory runs",
        how=HOW_DRAM,
        claims=[
            Claim(
                text=f"DRAM rules broken in {len(runs)} near-memory runs, by an independent checker",
                measured=f"{len(broken)} in {total.total():,} commands",
                bound="0",
                command="make claims",
                ok=bool(runs) and not broken,
                headline=True,
            ),
            Claim(
                text="refreshes in the very cycle in which they fall due",
                measured=f"{in_time:,} of {due:,} due, {total['REF']:,} issued",
                bound="all, and no other",
                command="make claims",
                ok=0 < due == in_time == total["REF"],
                headline=True,
            ),
        ],
        tables=[
            Table(
                ("run", "on", *COMMANDS, "refreshes in time", "rules broken"),
                [
                    (
                        run.name,
                        run.on,
                        *(f"{_dram(run.report)['commands'][name]:,}" for name in COMMANDS),
                        "{in_time} of {due}".format(**_dram(run.report)["refreshes"]),
                        "; ".join(_dram(run.report)["violations"]) or "0",
                    )
                    for run in runs
                ],
            )
        ],
    )


def _dram(report: Report) -> dict[str, Any]:
    assert report.dram is not None
    return report.dram


def _by_design(runs: list[Run]) -> str:
    """Return how many runs there are on each design: ``3 runs on fpga bf16, 1 on pim int8``."""
    counts = Counter(run.on for run in runs)
    (on, count), *others = counts.items()
    first = f"{count} run{'' if count == 1 else 's'} on {on}"
    return ", ".join([first, *(f"{count} on {on}" for on, count in others)])


def _count(mismatches: int | None, bits: int) -> int:
    """What was not compared counts as differing."""
    return bits if mismatches is None else mismatches


def _cycles(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
