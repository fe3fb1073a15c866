"""``expertbank check``: the float golden layer against vectors of Hugging Face blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sim.check import check_folder
from sim.commands.output import json_option, print_json, print_table


@click.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def command(folder: Path, as_json: bool) -> int:
    """Compare the golden layer with every *.npz vector in DIR.

    A case is ok if it selects the same experts, its combine weights are within 1e-6 and its outputs
    within 1e-5 of the outputs' standard deviation. A file that is malformed, contradicts itself or
    is of an unknown family is a failed case with its reason.

    Exit status: 0 all cases are ok, 1 some failed, 2 DIR cannot be read or holds no .npz file.
    """
    cases = check_folder(folder)
    failed = [case for case in cases if not case.ok]
    if as_json:
        print_json(
            {
                "passed": len(cases) - len(failed),
                "failed": len(failed),
                "cases": [dataclasses.asdict(case) for case in cases],
            }
        )
    else:
        print_table(
            ("file", "family", "combine max abs err", "output rel err", "ok"),
            [
                (
                    case.file,
                    case.family or "?",
                    _number(case.combine_max_abs_err),
                    _number(case.output_rel_err),
                    "ok" if case.ok else "FAILED",
                )
                for case in cases
            ],
        )
        for case in failed:
            click.echo(f"{case.file}: {case.reason}")
        click.echo(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
