"""``expertbank verilog``: the Verilog of an accelerator for a model."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json
from spec.design import Format

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_SCALE = 64


@click.command("verilog")
@click.option("--design", "design_name", default="fpga", show_default=True, help="Preset or TOML.")
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True, help="As in 'sim'.")
@click.option("--scale", help=f"'full' or a divisor of the model's widths (default: {DEFAULT_SCALE}).")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@json_option
def command(
    design_name: str, model_name: str, scale: str | None, number_format: str | None, out: Path, as_json: bool
) -> int:
    """Write an accelerator's Verilog, one module per distinct block, and its file list to a folder."""
    from golden.vectors import read_vector
    from sim import workload
    from sim.rtlsim import write_layer
    from spec.load import load_design

    design = load_design(design_name, number_format)
    vector = workload.is_vector(model_name)
    divisor = workload.parse_scale(scale, DEFAULT_SCALE, vector=vector)
    model = read_vector(Path(model_name)).model if vector else workload.scaled_model(model_name, divisor)
    files = write_layer(model, design, f"{design.name.replace('-', '_')}", out)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            click.echo(str(file))
    return 0
