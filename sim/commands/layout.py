"""``expertbank layout``: where a model's experts lie in the channels of a near-memory design."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json
from spec.design import Engine, Format
from spec.errors import InputError, require_range


@click.command("layout")
@click.option("--model", "model_name", required=True, help="As in 'sim'.")
@click.option("--design", "design_name", default="pim", show_default=True, help="Preset or TOML.")
@click.option("--scale", help="'full' or a divisor of the model's widths (default: full).")
@click.option(
    "--format", "number_format", type=click.Choice([kind.value for kind in Format]), help="As in 'sim'."
)
@click.option("--replicas", type=int, help="Channels that hold each expert (default: 1).")
@click.option("--layout", "given", type=click.Path(path_type=Path), help="Check this file and show its rows.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the layout to this file.")
@json_option
def command(
    model_name: str,
    design_name: str,
    scale: str | None,
    number_format: str | None,
    replicas: int | None,
    given: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Print or write the channels and bank rows of each expert, as 'sim --layout' reads them.

    The default is round robin: expert e in channel e modulo their number, the shared expert in all.
    Edit the file to move experts or to add replicas.
    """
    from sim.toolchain import check_parent, write_atomically
    from sim.workload import hardware_model
    from spec.banks import BankGeometry
    from spec.layout import layout_text, load_layout, rows_of, rows_used
    from spec.load import load_design

    design = load_design(design_name, number_format)
    if design.engine is not Engine.PIM or design.pim is None:
        raise InputError(f"must have engine pim, which design {design.name} has not", key="design")
    model, divisor = hardware_model(model_name, scale, 1)
    if replicas is not None:
        require_range("replicas", replicas, 1, design.pim.channels)
        if given is not None:
            raise InputError("cannot be combined with --layout", key="replicas")
    if out is not None:
        check_parent(out, "out")
    banks = BankGeometry.unplaced(model, design)
    if given is None:
        placement = banks.round_robin(replicas or 1)
        banks.check_fit(placement)
    else:
        placement = load_layout(given, banks)
    title = model.name if divisor == 1 else f"{model.name} at scale {divisor}"
    text = layout_text(placement, banks, f"{title} on {design.name} in {design.format}")
    if out is not None:
        write_atomically(out, text)
    if as_json:
        bases = banks.bases(placement)
        has_shared = banks.image.shared is not None
        print_json(
            {
                "channels": placement[: banks.num_experts],
                "shared": placement[-1] if has_shared else None,
                "first_rows": [
                    [bases[channel][expert] // banks.sides for channel in channels]
                    for expert, channels in enumerate(placement)
                ],
                "expert_rows": [rows_of(expert, banks) for expert in range(len(placement))],
                "rows": rows_used(placement, banks),
                "rows_per_bank": banks.pim.dram.rows,
                "file": None if out is None else str(out),
            }
        )
    else:
        click.echo(str(out) if out is not None else text, nl=out is not None)
    return 0
