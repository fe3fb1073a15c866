"""What the benches of the blocks reach and see, from the pages of the commands that measure it.

Mutants and coverage are measured by tools beside the tests (``make mutate``, ``make coverage``), which
``sim`` does not import; each row of their pages says at which commit, and so does this link.
"""

from __future__ import annotations

import re
from pathlib import Path

from sim.claims.measurement import Measurement
from sim.claims.page import Claim, Link, Table
from spec.errors import InputError

FOLDER = Path("docs")
GOAL = 0.95
"""Share of the mutants that are not proved equivalent which a bench should detect."""
SHARE = re.compile(r"(\d+) of (\d+)")
MUTANT_COLUMNS = (
    "block",
    "mutants",
    "seed",
    "detected",
    "proved equivalent",
    "neither",
    "score",
    "commit",
)
Rows = list[dict[str, str]]


def benches_link(_measurement: Measurement) -> Link:
    """Return the link of what ``docs/coverage.md`` and ``docs/mutation.md`` say."""
    covered = table_of(FOLDER / "coverage.md", "block")
    mutants = table_of(FOLDER / "mutation.md", "block")
    netlists = table_of(FOLDER / "mutation.md", "netlist")
    corners = _summed(covered, "corners")
    lines, toggles = _summed(covered, "lines"), _summed(covered, "toggles")
    agree = sum(row["agree"] == "yes" for row in netlists)
    below = [
        f"{row['block']} {row['score']} (seed {row['seed']})"
        for row in mutants
        if float(row["score"].rstrip("%")) < 100 * GOAL
    ]
    goal = f"The goal of {GOAL:.0%} is missed by {', '.join(below)}." if below else f"All reach {GOAL:.0%}."
    of_coverage = f"`docs/coverage.md`, {_commits(covered)}"
    return Link(
        name="benches",
        title="changes of the hardware against what the blocks' benches see",
        how="Read from the pages of the commands that measure it, each row at the commit that it names, not"
        " measured by `make claims`: lines, toggles and corners by name that the cocotb benches reach"
        " (`docs/coverage.md`), netlists of Yosys with random initial registers under the same benches, and"
        f" mutants of them (`docs/mutation.md`, where survivors are listed). {goal}",
        claims=[
            Claim(
                text=f"corners by name that the benches of {len(covered)} blocks and tops meet"
                f" ({of_coverage})",
                measured=_share(corners),
                bound="all",
                command="make coverage",
                ok=corners[0] == corners[1] > 0,
            ),
            Claim(
                text=f"lines of these blocks' Verilog that they reach ({of_coverage})",
                measured=_share(lines),
                bound="at least 99%",
                command="make coverage",
                ok=lines[0] >= 0.99 * lines[1] > 0,
            ),
            Claim(
                text=f"bits of signals that they see toggle ({of_coverage})",
                measured=_share(toggles),
                bound="at least 95%",
                command="make coverage",
                ok=toggles[0] >= 0.95 * toggles[1] > 0,
            ),
            Claim(
                text="netlists with random initial registers on which all of a bench agrees"
                f" (`docs/mutation.md`, {_commits(netlists)})",
                measured=f"{agree} of {len(netlists)}",
                bound="all",
                command="make mutate",
                ok=agree == len(netlists) > 0,
            ),
        ],
        tables=[
            Table(
                MUTANT_COLUMNS,
                [tuple(row[column.removeprefix("proved ")] for column in MUTANT_COLUMNS) for row in mutants],
            )
        ],
    )


def table_of(page: Path, first: str) -> Rows:
    """Return a page's first table whose first column is ``first``, each row by its columns' names.

    Raises :class:`spec.errors.InputError` if the page is not there or has no such table.
    """
    try:
        lines = iter(page.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=page) from None
    header = next((line for line in lines if line.startswith(f"| {first} |")), None)
    if header is None or not next(lines, "").startswith("|---"):
        raise InputError("has no such table", file=page, key=first)
    names, found = _cells(header), []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = _cells(line)
        if len(cells) != len(names):
            raise InputError(f"has {len(cells)} cells in a row of {len(names)}", file=page, key=first)
        found.append(dict(zip(names, cells, strict=True)))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _summed(rows: Rows, column: str) -> tuple[int, int]:
    """Return the sums of what is reached and of what there is."""
    pairs = [SHARE.match(row[column]) for row in rows]
    assert all(pairs), column
    return sum(int(pair[1]) for pair in pairs if pair), sum(int(pair[2]) for pair in pairs if pair)


def _share(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} of {pair[1]:,} ({pair[0] / pair[1]:.1%})"


def _commits(rows: Rows) -> str:
    """Return at which commits rows were measured."""
    commits = sorted({row["commit"] for row in rows})
    return f"at {', '.join(commits)}"
