"""``expertbank bench``: speeds and utilisation, measured."""

from __future__ import annotations

import click

from sim.commands.output import json_option, print_json, print_table
from sim.progress import tell

SCALE = 64


@click.command("bench")
@click.option(
    "--model", "model_name", default="mixtral-8x7b", show_default=True, help=f"Preset, at scale {SCALE}."
)
@click.option("--tokens", type=click.IntRange(1, 1 << 16), default=256, show_default=True)
@click.option("--cold-build", is_flag=True, help="Also build from nothing, in a folder of its own.")
@json_option
def command(model_name: str, tokens: int, cold_build: bool, as_json: bool) -> int:
    """Measure simulation speed and build time of a layer, the model's own time, utilisation.

    Also of the near-memory design: a channel alone and the layer, in bf16 and int8.

    `make bench` adds cocotb and amaranth.sim and writes docs/benchmarks.md. The exit status does not
    depend on the figures: they are the machine's.
    """
    from sim import bench
    from sim.rtlsim import DEFAULT_ROOT
    from spec.hardware import check_hardware
    from spec.load import load_design, load_model

    where = bench.machine()
    design = load_design("fpga")
    check_hardware(load_model(model_name).scaled(SCALE))  # before anything is told
    _, figures = bench.measure(
        model_name, SCALE, tokens, design, DEFAULT_ROOT, cold=cold_build, progress=tell("bench")
    )
    if as_json:
        print_json(bench.as_json(figures, where))
    else:
        rows = [(f"{figure.group}: {figure.name}", figure.text, figure.goal) for figure in figures]
        print_table(("figure", "measured", "goal"), rows)
    return 0
