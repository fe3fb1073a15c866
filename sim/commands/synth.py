"""``expertbank synth``: what an accelerator or a block of it costs on an FPGA."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sim.commands.output import json_option, print_json, print_table
from sim.commands.verilog import AXI, DEFAULT_MODEL, DEFAULT_SCALE, PLAIN
from spec.design import DesignSpec, Format, Pipeline

if TYPE_CHECKING:
    from spec.model import ModelSpec


@click.command("synth")
@click.option(
    "--design",
    "design_name",
    default="gate",
    show_default=True,
    help="Preset or TOML; 'gate', 'dispatch', 'selection': that alone, 16 experts, 2 chosen, bf16.",
)
@click.option("--model", "model_name", help=f"As in 'sim' (default: {DEFAULT_MODEL}).")
@click.option("--scale", help=f"'full' or a divisor of the model's widths (default: {DEFAULT_SCALE}).")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Another value of a field of the design, as in 'array.rows=8'; may be given several times.",
)
@click.option("--experts", type=int, help="Of 'gate', 'dispatch' and 'selection' (default: 16).")
@click.option("--top-k", type=int, help="Choices of these (default: 2).")
@click.option(
    "--pipeline",
    type=click.Choice([kind.value for kind in Pipeline]),
    help="Of these: how deep their arithmetic is cut (default: short).",
)
@click.option(
    "--bus",
    type=click.Choice([PLAIN, AXI]),
    default=PLAIN,
    show_default=True,
    help="As in 'verilog': a layer, 'gate' or 'dispatch' behind AXI ports.",
)
@click.option("--block", help="Only that block of the design: gate, dispatch, combine, expert, channel.")
@click.option("--family", default="ecp5", show_default=True, help="ecp5, or xc7: cells only.")
@click.option("--seeds", type=int, default=1, show_default=True, help="Placements; the median counts.")
@click.option("--clock", "clock_mhz", type=float, default=100.0, show_default=True, help="MHz to aim at.")
@click.option("--placer", default="heap", show_default=True, help="nextpnr's: heap, static.")
@click.option("--no-route", is_flag=True, help="Count cells only.")
@click.option(
    "--page",
    "page_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the declared list of designs between the marks of this page (docs/synthesis.md).",
)
@click.option(
    "--only",
    multiple=True,
    metavar="TEXT",
    help="Of the page: only rows whose options have this text; the others stay. May be given several times.",
)
@json_option
def command(
    design_name: str,
    model_name: str | None,
    scale: str | None,
    number_format: str | None,
    settings: tuple[str, ...],
    experts: int | None,
    top_k: int | None,
    pipeline: str | None,
    bus: str,
    block: str | None,
    family: str,
    seeds: int,
    clock_mhz: float,
    placer: str,
    no_route: bool,
    page_file: Path | None,
    only: tuple[str, ...],
    as_json: bool,
) -> int:
    """Count LUTs, flip-flops, multipliers and block RAMs with Yosys; place and route with nextpnr-ecp5.

    Routed for an LFE5U-85F, speed grade 6. Minutes for a block; results are kept in build/cache.
    """
    from sim import synth
    from spec.errors import require
    from spec.load import is_device, load_device

    if page_file is not None:
        from sim.synth_page import write_page

        context = click.get_current_context()
        for option in context.params:
            default = context.get_parameter_source(option) is ParameterSource.DEFAULT
            require(
                default or option in ("page_file", "only"), "takes no other option but --only", key="page"
            )
        write_page(page_file, only)
        return 0
    require(not only, "is for --page", key="only")
    if design_name not in synth.SMALL:
        for value, key in ((experts, "experts"), (top_k, "top-k"), (pipeline, "pipeline")):
            require(value is None, f"is for {', '.join(synth.SMALL)}, not for {design_name!r}", key=key)
    if is_device(design_name):
        for given, key in (
            (model_name, "model"),
            (scale, "scale"),
            (number_format, "format"),
            (block, "block"),
            (settings or None, "set"),
            (None if bus == PLAIN else bus, "bus"),
        ):
            require(given is None, f"needs an accelerator, not {design_name!r}, a device", key=key)
        directory, name = synth.export_channel(load_device(design_name))
        block, model_name = "channel", None
    else:
        model, design, block = _layer(
            design_name,
            model_name,
            scale,
            number_format,
            block,
            settings=settings,
            experts=experts,
            top_k=top_k,
            pipeline=Pipeline(pipeline or Pipeline.SHORT),
        )
        directory, name = synth.export_block(model, design, block, axi=bus == AXI)
        model_name = model.name
    result = synth.synthesise(
        directory,
        name,
        family=family,
        seeds=seeds,
        route=not no_route,
        clock_mhz=clock_mhz,
        placer=placer,
    )
    if as_json:
        print_json(
            {"design": design_name, "block": block, "model": model_name, "family": family, **asdict(result)}
        )
        return 0
    fmax = "-" if result.fmax_mhz is None else f"{result.fmax_mhz:.1f}"
    print_table(
        ("design", "block", "LUT", "FF", "DSP", "BRAM", "Fmax (MHz)"),
        [(design_name, block or "layer", result.lut, result.ff, result.dsp, result.bram, fmax)],
    )
    if result.exceeded:
        click.echo(f"not routed: {synth.DEVICE} is too small for {', '.join(result.exceeded)}")
    if result.critical is not None:
        path = result.critical
        click.echo(
            f"critical path on {synth.DEVICE}: {path.delay_ns:.1f} ns, {path.logic_ns:.1f} of them logic, "
            f"{path.cells} cells"
        )
        click.echo(f"  from {path.source}")
        click.echo(f"  to   {path.sink}")
    return 0


def _layer(
    design_name: str,
    model_name: str | None,
    scale: str | None,
    number_format: str | None,
    block: str | None,
    *,
    settings: tuple[str, ...],
    experts: int | None,
    top_k: int | None,
    pipeline: Pipeline,
) -> tuple[ModelSpec, DesignSpec, str | None]:
    """Return the model and design that the options name, and which block of them, None for the layer."""
    from sim import synth
    from sim.workload import hardware_model
    from spec.errors import require, require_range
    from spec.load import load_design

    small = design_name in synth.SMALL
    if small:
        require(block is None, f"is for a whole design, not for {design_name!r}, a block", key="block")
        rule = f"must be bf16 for {design_name!r}, not {number_format}"
        require(number_format in (None, Format.BF16), rule, key="format")
        block = design_name
        count = synth.SMALL_EXPERTS if experts is None else experts
        require_range("experts", count, 2, 512)
        chosen = synth.SMALL_TOP_K if top_k is None else top_k
        require_range("top-k", chosen, 1, min(count, 32))
        model, design = synth.small_block(count, chosen, pipeline)
        design = with_settings(design, settings)
        if model_name is None:
            require(scale is None, f"needs a model: {design_name!r} has a size of its own", key="scale")
            return model, design, block
    else:
        design = with_settings(load_design(design_name), settings, number_format)
    model, _ = hardware_model(model_name or DEFAULT_MODEL, scale, DEFAULT_SCALE)
    return model, design, block


def with_settings(
    design: DesignSpec, settings: tuple[str, ...], number_format: str | None = None
) -> DesignSpec:
    """Return a design with other values of fields, ``FIELD=VALUE`` each, and another format, all at once.

    A value is read as TOML where it is some, else as text. Raises :class:`InputError` for what is none, or
    breaks a rule of the design.
    """
    from spec.errors import require
    from spec.fields import field_type, field_value, with_fields

    changes: dict[str, Any] = {}
    if number_format is not None and design.format != number_format:
        changes = {"format": Format(number_format), "group": None}
    for setting in settings:
        name, found, text = setting.partition("=")
        require(bool(found), f"must be FIELD=VALUE, not {setting!r}", key="set")
        require(name not in changes, f"sets {name!r} twice", key="set")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        changes[name] = field_value(field_type(DesignSpec, name, "set"), value, name)
    return with_fields(design, changes, "set") if changes else design
