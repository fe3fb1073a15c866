"""``expertbank designs``: the presets of hardware designs."""

from __future__ import annotations

import click

from sim.commands.output import json_option, print_json, print_table
from spec.load import load_design, preset_names


@click.command("designs")
@json_option
def command(as_json: bool) -> int:
    """List the design presets."""
    names = preset_names("designs")
    if as_json:
        print_json({"names": names})
        return 0
    rows = []
    for name in names:
        design = load_design(name)
        rows.append(
            (
                name,
                design.engine,
                design.gate.lanes,
                f"{design.tile.rows} x {design.tile.cols}",
                design.memory.width_bits,
                design.memory.latency_cycles,
                f"{design.clock_hz / 1e6:g}",
            )
        )
    print_table(
        ("name", "engine", "gate lanes", "array", "memory bits", "memory latency (cycles)", "clock (MHz)"),
        rows,
    )
    return 0
