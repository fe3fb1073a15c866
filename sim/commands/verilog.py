"""``expertbank verilog``: the Verilog of an accelerator for a model, or of a device's channel."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from sim.commands.output import json_option, print_json
from spec.design import Format
from spec.errors import require

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_SCALE = 64


@click.command("verilog")
@click.option("--design", "design_name", default="fpga", show_default=True, help="Preset or TOML.")
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True, help="As in 'sim'.")
@click.option("--scale", help=f"'full' or a divisor of the model's widths (default: {DEFAULT_SCALE}).")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option("--secded", is_flag=True, help="The banks hold 8 check bits with 64 of data.")
@click.option("--two-clocks", is_flag=True, help="Streams and memory port on a clock of their own, bus_aclk.")
@click.option(
    "--bench", "bench_tokens", type=int, help="Tokens of the self-checking bench, 0 for none (default: 8)."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@json_option
def command(
    design_name: str,
    model_name: str,
    scale: str | None,
    number_format: str | None,
    secded: bool,
    two_clocks: bool,
    bench_tokens: int | None,
    out: Path,
    as_json: bool,
) -> int:
    """Write an accelerator's Verilog, one module per distinct block, and its file list to a folder.

    Beside it FuseSoC's expertbank.core, constraints, an example top for ECP5 and, of a layer, a bench that
    checks itself (docs/verilog.md). Of a device with a command schedule it is a channel that runs command
    programs, of all products.
    """
    from sim.handover import hand_over, layer_bench
    from spec.load import is_device

    if is_device(design_name):
        require(not two_clocks, f"needs an accelerator, not {design_name!r}, a device", key="two-clocks")
        require(bench_tokens is None, f"needs an accelerator, not {design_name!r}, a device", key="bench")
        files = hand_over(lambda folder: _write_device(design_name, secded, folder), out)
    else:
        bench = layer_bench(
            model_name, design_name, scale or str(DEFAULT_SCALE), number_format, bench_tokens, secded=secded
        )
        files = hand_over(
            lambda folder: _write_accelerator(
                design_name, model_name, scale, number_format, folder, secded=secded, two_clocks=two_clocks
            ),
            out,
            bench,
        )
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            click.echo(str(file))
    return 0


def _write_accelerator(
    design_name: str,
    model_name: str,
    scale: str | None,
    number_format: str | None,
    out: Path,
    *,
    secded: bool,
    two_clocks: bool,
) -> list[Path]:
    from sim.rtlsim import write_layer
    from sim.workload import hardware_model
    from spec.load import load_design

    design = load_design(design_name, number_format)
    design = design.with_secded() if secded else design
    model, _ = hardware_model(model_name, scale, DEFAULT_SCALE)
    name = design.name.replace("-", "_") + ("_two_clocks" if two_clocks else "")
    return write_layer(model, design, name, out, two_clocks=two_clocks)


def _write_device(design_name: str, secded: bool, out: Path) -> list[Path]:
    from sim.rtlsim import write_channel
    from spec.load import load_device

    context = click.get_current_context()
    for option, key in (("model_name", "model"), ("scale", "scale"), ("number_format", "format")):
        given = context.get_parameter_source(option) is not ParameterSource.DEFAULT
        require(not given, f"needs an accelerator, not {design_name!r}, a device", key=key)
    device = load_device(design_name)
    return write_channel(device, device.name.replace("-", "_"), out, secded=secded)
