"""``expertbank designs``: the presets of hardware designs, with RTL and without."""

from __future__ import annotations

import click

from sim.commands.output import json_option, print_json, print_table
from spec.device import PimDevice, Schedule
from spec.load import design_names, load_design, load_device, preset_names


@click.command("designs")
@json_option
def command(as_json: bool) -> int:
    """List the design presets: accelerators, and devices for 'pim gemv' or for their numbers alone."""
    names = design_names()
    if as_json:
        print_json({"names": names})
        return 0
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
