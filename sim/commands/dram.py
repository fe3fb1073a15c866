"""``expertbank dram``: DRAM standards, and checks of command traces."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table
from spec.design import Engine
from spec.errors import InputError
from spec.load import load_design, load_dram, preset_names

SHOWN = 20


@click.group("dram")
def command() -> None:
    """DRAM standards, and checks of command traces."""


@command.command("list")
@json_option
def list_command(as_json: bool) -> int:
    """List the presets of DRAM standards."""
    names = preset_names("dram")
    if as_json:
        print_json({"names": names})
        return 0
    rows = []
    for name in names:
        dram = load_dram(name)
        size = dram.num_banks * dram.rows * dram.row_bytes
        rows.append(
            (name, dram.bank_groups, dram.num_banks, dram.rows, dram.row_bytes, size >> 20, dram.clock_ps)
        )
    print_table(("name", "bank groups", "banks", "rows", "row (bytes)", "size (MiB)", "clock (ps)"), rows)
    return 0


@command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--design", "design_name", default="pim", show_default=True, help="Whose channels; preset or TOML."
)
@click.option("--standard", help="DRAM to check against (default: the design's); preset or TOML.")
@json_option
def check_command(file: Path, design_name: str, standard: str | None, as_json: bool) -> int:
    """Check the commands in a trace (of 'sim --trace') against every rule of the DRAM.

    Exit status 1 if a rule is broken; at most one violation is told per channel, rule and bank.
    """
    from sim.dram_check import check_commands
    from sim.dram_trace import COLUMN_COMMANDS, COMMANDS, ROW_COMMANDS, read_trace

    design = load_design(design_name)
    if design.engine is not Engine.PIM or design.pim is None:
        raise InputError(f"must have engine pim, which design {design.name} has not", key="design")
    pim = design.pim if standard is None else replace(design.pim, dram=load_dram(standard))
    channels = read_trace(file, pim)
    found = sorted(
        ((number, one) for number, seen in enumerate(channels) for one in check_commands(pim, seen)),
        key=lambda pair: (pair[1].cycle, pair[0]),
    )
    counts: Counter[str] = Counter()
    for seen in channels:
        for names, bus in ((ROW_COMMANDS, seen.rows), (COLUMN_COMMANDS, seen.columns)):
            counts.update({name: int((bus[:, 1] == kind).sum()) for name, kind in names.items()})
    if as_json:
        violations = [{"channel": number, **asdict(one)} for number, one in found]
        print_json(
            {
                "standard": pim.dram.name,
                "commands": {name: counts[name] for name in COMMANDS},
                "violations": len(violations),
                "first_violations": violations[:SHOWN],
            }
        )
    else:
        click.echo(", ".join(f"{name} {counts[name]}" for name in COMMANDS))
        for number, one in found[:SHOWN]:
            click.echo(f"channel {number}: {one}")
        click.echo(f"rules of {pim.dram.name} broken: {len(found)}")
    return 1 if found else 0
