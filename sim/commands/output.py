"""What every command's output has in common: ``--json``, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spec.errors import InputError

PIPE_COLUMNS = 200

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to stdout and nothing else there."
)


class _Tables(Console):
    """Leaves it to the command line what is done where nobody reads on; rich exits with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object; a value that JSON has no word for is an error, not a NaN."""
    click.echo(json.dumps(result, allow_nan=False))


def write_page(file: Path, text: str) -> None:
    """Write a page of the documents; :class:`InputError`, of the option ``page``, if it cannot be."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=file, key="page") from None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column's text left, everything else right."""
    table = Table(box=None, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) for value in row))
    console = _Tables(highlight=False)
    if not console.is_terminal:
        # A pipe has no width; a table cut at 80 columns would lose numbers there.
        console.width = PIPE_COLUMNS
    console.print(table)
