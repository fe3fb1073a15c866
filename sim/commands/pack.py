"""``expertbank pack``: a layer's weights as the memories of a board hold them, with their map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sim.commands.output import json_option, print_json
from spec.design import Engine, Format
from spec.errors import InputError, require, require_range


@click.command("pack")
@click.option(
    "--model", "model_name", required=True, help="Preset, TOML, config.json, vector .npz or folder."
)
@click.option(
    "--design",
    "design_name",
    default="fpga",
    show_default=True,
    help="Preset or TOML; 'gate': that of 'verilog --bus axi', the router alone.",
)
@click.option("--scale", help="'full' or a divisor of the model's widths (default: full).")
@click.option("--layer", help="A folder's layer, by its number; see docs/weights.md.")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of a preset's weights, as in 'sim'.")
@click.option(
    "--tokens", type=int, help="Of a batch, for capacities, and scales of int8, w4a8 (default: as in 'sim')."
)
@click.option("--routing", "routing_name", default="uniform", show_default=True, help="Of tokens for scales.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A .npy file of (tokens, d_model) numbers: scales of int8 and w4a8 are those of these tokens.",
)
@click.option("--layout", type=click.Path(path_type=Path), help="TOML of where a pim design's experts lie.")
@click.option("--hold", help="Only these experts in a pim design's banks: 0,3,8-11 (default: all).")
@click.option("--address", default="0", show_default=True, help="Of the image in memory: a multiple of 4096.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
@json_option
def command(
    model_name: str,
    design_name: str,
    scale: str | None,
    layer: str | None,
    number_format: str | None,
    seed: int,
    tokens: int | None,
    routing_name: str,
    calibration: Path | None,
    layout: Path | None,
    hold: str | None,
    address: str,
    out: Path,
    as_json: bool,
) -> int:
    """Write a layer's weight image, or a near-memory design's channels, and map.json into a folder.

    The map has where what lies, checksums, and the register writes that start the layer: docs/pack.md.
    """
    from golden.weights import check_seed
    from sim import workload
    from sim.pack import layer_source, pack
    from sim.routing import parse_routing, shape_of
    from sim.synth import small_block
    from spec.banks import BankGeometry
    from spec.layout import load_layout
    from spec.load import is_folder, load_design, load_model
    from spec.registers import Top

    require(design_name != Top.DISPATCH, "must not be 'dispatch', which loads nothing", key="design")
    gate_alone = design_name == Top.GATE
    if gate_alone:
        rule = f"must be bf16 for {design_name!r}, not {number_format}"
        require(number_format in (None, Format.BF16), rule, key="format")
        _, design = small_block()
    else:
        design = load_design(design_name, number_format)
    check_seed(seed)
    if tokens is not None:
        require_range("tokens", tokens, 1, 1 << 20)
    vector, folder = workload.is_vector(model_name), is_folder(model_name)
    divisor = workload.parse_scale(scale, 1, vector=vector, folder=folder)
    shape = None if vector else shape_of(load_model(model_name))
    source = layer_source(
        model_name,
        design,
        divisor=divisor,
        layer=layer,
        seed=seed,
        tokens=tokens,
        routing=parse_routing(routing_name, shape),
        calibration=calibration,
    )
    for key, value in (("layout", layout), ("hold", hold)):
        require(
            value is None or design.engine is Engine.PIM,
            f"is for engine pim, not for design {design_name if gate_alone else design.name}",
            key=key,
        )
    placement = None
    if layout is not None:
        require(hold is None, "cannot be combined with --layout", key="hold")
        placement = load_layout(layout, BankGeometry.unplaced(source.model, design))
    elif hold is not None:
        placement = BankGeometry.unplaced(source.model, design).hold(_numbers(hold))
    packed = pack(
        source.model,
        design,
        source.supply,
        out,
        batch_lengths=source.batch_lengths,
        scales=source.scales,
        placement=placement,
        address=_address(address),
        layer=source.label,
        gate_alone=gate_alone,
        progress=lambda text: click.echo(text, err=True),
    )
    files = [str(out / entry.file) for entry in packed.map.files]
    if as_json:
        print_json(
            {
                "files": [*files, str(out / "map.json")],
                "bytes": sum(entry.bytes for entry in packed.map.files),
                "registers": len(packed.map.registers),
            }
        )
    else:
        for name, entry in zip(files, packed.map.files, strict=True):
            click.echo(f"{name}: {entry.bytes} bytes for {entry.memory}, sha256 {entry.sha256}")
        click.echo(f"{out / 'map.json'}: {len(packed.map.registers)} register steps")
    return 0


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise InputError(
            f"must be a whole number such as 0x10000000, not {text!r:.80}", key="address"
        ) from None


def _numbers(text: str) -> Sequence[int]:
    """Return the numbers of ``0,3,8-11``."""
    found: list[int] = []
    for part in text.split(","):
        ends = part.split("-")
        ok = len(ends) <= 2 and all(end.isascii() and end.isdecimal() and len(end) <= 6 for end in ends)
        require(ok, f"must be numbers and ranges such as 0,3,8-11, not {text!r:.80}", key="hold")
        low, high = int(ends[0]), int(ends[-1])
        require(low <= high, f"must have ranges from low to high, not {part!r:.80}", key="hold")
        found.extend(range(low, high + 1))
    return found
