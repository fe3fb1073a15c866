"""``expertbank reproduce``: what a paper claims beside what its published numbers give here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json, print_table, write_page
from spec.errors import InputError

if TYPE_CHECKING:
    from spec.paper import PaperSpec


@click.command("reproduce")
@click.argument("paper", required=False)
@click.option(
    "--files",
    type=click.Path(path_type=Path),
    help="A copy of the files that the paper's authors have released; dynande.",
)
@click.option(
    "--page",
    "page_file",
    type=click.Path(path_type=Path),
    help="Write all papers' tables to this file, instead of a paper.",
)
@json_option
def command(paper: str | None, files: Path | None, page_file: Path | None, as_json: bool) -> int:
    """Compare PAPER's claims with a model of its published numbers, none of them fitted.

    Exit status 0 whenever it ran: a claim outside its band is a result. What the columns mean:
    docs/reproduce.md.
    """
    from sim import reproduce, reproduce_page

    if (paper is None) == (page_file is None):
        known = ", ".join(reproduce.paper_names())
        raise InputError(f"must be one of {known}, or left out for --page", key="paper")
    if page_file is not None:
        text = reproduce_page.page()
        write_page(page_file, text)
        if as_json:
            print_json({"papers": reproduce.paper_names()})
        return 0
    assert paper is not None
    result = reproduce.reproduce(paper, files, begin=None if as_json else _print_title)
    if as_json:
        print_json(reproduce.as_json(result))
        return 0
    print_table(reproduce.COLUMNS, reproduce.claim_rows(result))
    for line in reproduce_page.remarks(result):
        print(line)
    return 0


def _print_title(paper: PaperSpec) -> None:
    print(f"{paper.title}; graded {paper.grade}", flush=True)
