"""``expertbank designs``: the presets of hardware designs, with RTL and without."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table, write_page
from spec.device import PimDevice, Schedule
from spec.load import design_names, load_design, load_device, preset_names


@click.command("designs")
@click.option(
    "--page",
    "page_file",
    type=click.Path(path_type=Path),
    help="Write the page of what a design's and a model's TOML may say to this file.",
)
@json_option
def command(page_file: Path | None, as_json: bool) -> int:
    """List the design presets: accelerators, and devices for 'pim gemv' or for their numbers alone."""
    if page_file is not None:
        from sim import designs_page

        write_page(page_file, designs_page.page())
    names = design_names()
    if as_json:
        print_json({"names": names})
    elif page_file is None:
        devices = set(preset_names(PimDevice.PRESET_FOLDER))
        rows = [_device(name) if name in devices else _accelerator(name) for name in names]
        print_table(("name", "kind", "MACs", "at", "schedule", "clock (MHz)", "RTL"), rows)
    return 0


def _accelerator(name: str) -> tuple[object, ...]:
    design = load_design(name)
    tile = design.tile
    return (name, design.engine, f"{tile.rows} x {tile.cols}", "-", "-", f"{design.clock_hz / 1e6:g}", "yes")


def _device(name: str) -> tuple[object, ...]:
    device = load_device(name)
    macs = f"{device.channels} x {device.units} x {device.lanes}"
    rtl = "yes" if device.schedule in (Schedule.BARRIER, Schedule.STREAMED) else "no"
    return (name, "device", macs, device.level, device.schedule, f"{device.clock_hz / 1e6:g}", rtl)
