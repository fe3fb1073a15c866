"""``expertbank models``: the presets of models."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table, write_page
from spec.load import preset_names


@click.command("models")
@click.option(
    "--page",
    "page_file",
    type=click.Path(path_type=Path),
    help="Write the catalogue with its published figures, sources' grades and differences to this file.",
)
@json_option
def command(page_file: Path | None, as_json: bool) -> int:
    """List the model presets."""
    from sim import catalogue

    if page_file is not None:
        text = catalogue.page()
        write_page(page_file, text)
    if as_json:
        print_json({"names": preset_names("models")})
    elif page_file is None:
        print_table(catalogue.LIST_COLUMNS, catalogue.model_rows())
    return 0
