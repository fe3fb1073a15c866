"""``expertbank verilog``: the Verilog of an accelerator for a model, of a block, or of a device's channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sim.commands.output import json_option, print_json
from spec.design import DesignSpec, Format, Pipeline
from spec.errors import require
from spec.registers import ALONE, Top

if TYPE_CHECKING:
    from spec.device import PimDevice
    from spec.model import ModelSpec

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_SCALE = 64
PLAIN, AXI = "plain", "axi"


@click.command("verilog")
@click.option(
    "--design",
    "design_name",
    default="fpga",
    show_default=True,
    help="Preset or TOML; with '--bus axi' also 'gate' and 'dispatch', that block alone.",
)
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True, help="As in 'sim'.")
@click.option(
    "--scale",
    help=f"'full' or a divisor of the model's widths (default: {DEFAULT_SCALE}; a vector and a folder have"
    " their own size).",
)
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
@click.option(
    "--pipeline",
    type=click.Choice([kind.value for kind in Pipeline]),
    help="Of 'gate' and 'dispatch': how deep their arithmetic is cut (default: short; docs/synthesis.md).",
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
    pipeline: str | None,
    secded: bool,
    two_clocks: bool,
    bench_tokens: int | None,
    out: Path,
    as_json: bool,
) -> int:
    """Write an accelerator's Verilog, one module per distinct block, and its file list to a folder.

    Beside it FuseSoC's expertbank.core, constraints, an example top for ECP5 and a bench that checks itself
    (docs/verilog.md). Of a device with a command schedule it is a channel that runs command programs, of all
    products, without a bench. With '--bus axi' the registers are there as C header, Python constants and
    SystemRDL, too (docs/axi.md).
    """
    from sim.handover import axi_bench, hand_over, layer_bench
    from sim.rtlsim import stem_of, write_channel, write_layer, write_top
    from spec.load import is_device

    rule = f"is for {' and '.join(ALONE)}, not for {design_name!r}"
    require(pipeline is None or design_name in ALONE, rule, key="pipeline")
    if is_device(design_name):
        require(not two_clocks, f"needs an accelerator, not {design_name!r}, a device", key="two-clocks")
        require(bench_tokens is None, f"needs an accelerator, not {design_name!r}, a device", key="bench")
        require(bus == PLAIN, f"must be {PLAIN} for {design_name!r}, a device, not {bus}", key="bus")
        device = _device(design_name)
        name = stem_of(device.name)
        files = hand_over(
            lambda folder: write_channel(device, name, folder, secded=secded), out, device.clock_hz
        )
    elif bus == AXI:
        if design_name in ALONE:
            require(not secded, f"needs a near-memory design, not {design_name!r}", key="secded")
            depth = Pipeline(pipeline or Pipeline.SHORT)
            model, design = _small(design_name, model_name, scale, number_format, depth)
            block, name = Top(design_name), design_name + ("_deep" if design.deep else "")
        else:
            model, design = _accelerator(design_name, model_name, scale, number_format, secded=secded)
            block, name = None, stem_of(design.name)
        given = model_name if block is None or _model_is_given() else None
        bench = axi_bench(model, design, block, given, bench_tokens)
        files = hand_over(
            lambda folder: write_top(model, design, block, name, folder, two_clocks=two_clocks),
            out,
            design.clock_hz,
            bench,
        )
    else:
        require(design_name not in ALONE, f"needs '--bus {AXI}' for {design_name!r}, a block", key="design")
        model, design = _accelerator(design_name, model_name, scale, number_format, secded=secded)
        layer = layer_bench(model_name, model, design, bench_tokens)
        name = stem_of(design.name) + ("_two_clocks" if two_clocks else "")
        files = hand_over(
            lambda folder: write_layer(model, design, name, folder, two_clocks=two_clocks),
            out,
            design.clock_hz,
            layer,
        )
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            click.echo(str(file))
    return 0


def _accelerator(
    design_name: str, model_name: str, scale: str | None, number_format: str | None, *, secded: bool
) -> tuple[ModelSpec, DesignSpec]:
    """Return the model and the design that the options name."""
    from sim.workload import hardware_model
    from spec.load import load_design

    design = load_design(design_name, number_format)
    model, _ = hardware_model(model_name, scale, DEFAULT_SCALE)
    return model, design.with_secded() if secded else design


def _small(
    design_name: str, model_name: str, scale: str | None, number_format: str | None, pipeline: Pipeline
) -> tuple[ModelSpec, DesignSpec]:
    """Return those of a block alone, of its own size unless a model is named."""
    from sim.synth import small_block
    from sim.workload import hardware_model

    rule = f"must be bf16 for {design_name!r}, not {number_format}"
    require(number_format in (None, Format.BF16), rule, key="format")
    model, design = small_block(pipeline=pipeline)
    if _model_is_given():
        model, _ = hardware_model(model_name, scale, DEFAULT_SCALE)
    else:
        require(scale is None, f"needs a model: {design_name!r} has a size of its own", key="scale")
    return model, design


def _model_is_given() -> bool:
    source = click.get_current_context().get_parameter_source("model_name")
    return source is not ParameterSource.DEFAULT


def _device(name: str) -> PimDevice:
    """Return a device, of which nothing else can be chosen."""
    from spec.load import load_device

    context = click.get_current_context()
    for option, key in (("model_name", "model"), ("scale", "scale"), ("number_format", "format")):
        given = context.get_parameter_source(option) is not ParameterSource.DEFAULT
        require(not given, f"needs an accelerator, not {name!r}, a device", key=key)
    return load_device(name)
