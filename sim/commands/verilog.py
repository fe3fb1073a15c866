"""``expertbank verilog``: the Verilog of an accelerator for a model, of a block, or of a device's channel."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from sim.commands.output import json_option, print_json
from spec.design import Format
from spec.errors import require
from spec.registers import Top

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_SCALE = 64
PLAIN, AXI = "plain", "axi"
ALONE = (Top.GATE, Top.DISPATCH)
"""Blocks that have a top with AXI ports."""


@click.command("verilog")
@click.option(
    "--design",
    "design_name",
    default="fpga",
    show_default=True,
    help="Preset or TOML; with '--bus axi' also 'gate' and 'dispatch', that block alone.",
)
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True, help="As in 'sim'.")
@click.option("--scale", help=f"'full' or a divisor of the model's widths (default: {DEFAULT_SCALE}).")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option(
    "--bus",
    type=click.Choice([PLAIN, AXI]),
    default=PLAIN,
    show_default=True,
    help="Registers at a plain port, or AXI4-Lite with errors, recovery and an interrupt (docs/axi.md).",
)
@click.option("--secded", is_flag=True, help="The banks hold 8 check bits with 64 of data.")
@click.option(
    "--two-clocks",
    is_flag=True,
    help="Streams and memory port on a clock of their own, bus_aclk; with '--bus axi' all AXI ports.",
)
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
    bus: str,
    secded: bool,
    two_clocks: bool,
    bench_tokens: int | None,
    out: Path,
    as_json: bool,
) -> int:
    """Write an accelerator's Verilog, one module per distinct block, and its file list to a folder.

    Beside it FuseSoC's expertbank.core, constraints, an example top for ECP5 and, of a layer, a bench that
    checks itself (docs/verilog.md). Of a device with a command schedule it is a channel that runs command
    programs, of all products. With '--bus axi' there is no bench, but the registers as C header, Python
    constants and SystemRDL (docs/axi.md).
    """
    from sim.handover import hand_over, layer_bench
    from spec.load import is_device

    if is_device(design_name):
        require(not two_clocks, f"needs an accelerator, not {design_name!r}, a device", key="two-clocks")
        require(bench_tokens is None, f"needs an accelerator, not {design_name!r}, a device", key="bench")
        require(bus == PLAIN, f"must be {PLAIN} for {design_name!r}, a device, not {bus}", key="bus")
        files = hand_over(lambda folder: _write_device(design_name, secded, folder), out)
    elif bus == AXI:
        require(not bench_tokens, f"is for '--bus {PLAIN}', not {bus}", key="bench")
        files = hand_over(
            lambda folder: _write_axi(
                design_name, model_name, scale, number_format, folder, secded=secded, two_clocks=two_clocks
            ),
            out,
        )
    else:
        require(design_name not in ALONE, f"needs '--bus {AXI}' for {design_name!r}, a block", key="design")
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


def _write_axi(
    design_name: str,
    model_name: str,
    scale: str | None,
    number_format: str | None,
    out: Path,
    *,
    secded: bool,
    two_clocks: bool,
) -> list[Path]:
    from sim.rtlsim import write_top
    from sim.synth import small_block
    from sim.workload import hardware_model
    from spec.load import load_design

    if design_name not in ALONE:
        design = load_design(design_name, number_format)
        design = design.with_secded() if secded else design
        model, _ = hardware_model(model_name, scale, DEFAULT_SCALE)
        return write_top(model, design, None, design.name.replace("-", "_"), out, two_clocks=two_clocks)
    require(not secded, f"needs a near-memory design, not {design_name!r}", key="secded")
    model, design = small_block()
    rule = f"must be bf16 for {design_name!r}, not {number_format}"
    require(number_format in (None, Format.BF16), rule, key="format")
    context = click.get_current_context()
    if context.get_parameter_source("model_name") is not ParameterSource.DEFAULT:
        model, _ = hardware_model(model_name, scale, DEFAULT_SCALE)
    else:
        require(scale is None, f"needs a model: {design_name!r} has a size of its own", key="scale")
    return write_top(model, design, Top(design_name), design_name, out, two_clocks=two_clocks)


def _write_device(design_name: str, secded: bool, out: Path) -> list[Path]:
    from sim.rtlsim import write_channel
    from spec.load import load_device

    context = click.get_current_context()
    for option, key in (("model_name", "model"), ("scale", "scale"), ("number_format", "format")):
        given = context.get_parameter_source(option) is not ParameterSource.DEFAULT
        require(not given, f"needs an accelerator, not {design_name!r}, a device", key=key)
    device = load_device(design_name)
    return write_channel(device, device.name.replace("-", "_"), out, secded=secded)
