"""What a claims page is made of, and its text.

A *claim* is one measured value with its bound; a *link* is a step of the chain of trust, with its
claims and the tables behind them. The text depends on what was measured alone: no dates, no speeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from spec.errors import require

HEADER = """\
# Claims

What is claimed of this repository, measured. Written by `make claims`; do not edit. Tests make the links
that need no Verilog anew and compare them with this page (`tests/test_claims.py`); `make test-long` makes all
of it anew. Speeds are in [benchmarks.md](benchmarks.md).

"""
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
SUMMARY = ("link", "claim", "measured", "bound", "holds", "reproduce with")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement: what, how much, within which bound, and the command that measures it again.

    ``headline``: README shows it.
    """

    text: str
    measured: str
    bound: str
    command: str
    ok: bool
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts under column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A step of the chain.

    Attributes
    ----------
    name : short, what ``--only`` takes.
    title : between what and what.
    how : what is compared and what the bound is, one paragraph.
    """

    name: str
    title: str
    how: str
    claims: Sequence[Claim]
    tables: Sequence[Table] = field(default_factory=tuple)


def page(links: Sequence[Link]) -> str:
    """Return the page as Markdown."""
    sections = [section(link) for link in links]
    rows = [row for link in links for row in summary_rows(link)]
    return HEADER + "\n".join([*markdown_head(SUMMARY), *rows, "", *sections])


def page_with(links: Sequence[Link], before: str) -> str:
    """Return a page on which these links are measured anew; the others stay as they are.

    Raises
    ------
    InputError
        A page that lacks one of them.
    """
    head, *sections = SECTION.split(before)
    for link in links:
        places = [n for n, text in enumerate(sections) if text.startswith(f"## {link.name}: ")]
        mine = [line for line in head.splitlines() if line.startswith(f"| {link.name} | ")]
        require(len(places) == 1 and bool(mine), f"must be on the page: {link.name!r}", key="only")
        last = places[0] == len(sections) - 1
        sections[places[0]] = section(link) + ("" if last else "\n")
        old, new = ("".join(f"{row}\n" for row in rows) for rows in (mine, summary_rows(link)))
        head = head.replace(old, new)
    return head + "".join(sections)


def headlines(links: Sequence[Link]) -> list[str]:
    """Return the table of README, in lines."""
    rows = [row for link in links for row in headline_rows(link)]
    return ["", *markdown_head(("claim", "measured", "bound")), *rows, ""]


def headline_rows(link: Link) -> list[str]:
    """Return the rows of README's table that are a link's."""
    return [
        markdown_row((claim.text, claim.measured + ("" if claim.ok else " (**NO**)"), claim.bound))
        for claim in link.claims
        if claim.headline
    ]


def headlines_with(links: Sequence[Link], before: str, page: str) -> list[str]:
    """Return README's table with these links measured anew: ``before`` as it is, beside this page.

    Raises
    ------
    InputError
        Rows of a link that are not where the page has them.
    """
    for link in links:
        mine = [line for line in page.splitlines() if line.startswith(f"| {link.name} | ")]
        texts = {line.split(" | ")[1] for line in mine}
        old = [line for line in before.splitlines() if line.removeprefix("| ").split(" | ")[0] in texts]
        new = headline_rows(link)
        require(
            len(old) == len(new), f"must have the rows of {link.name!r} that its page has", key="headlines"
        )
        if new:
            before = before.replace("\n".join(old), "\n".join(new))
    return before.splitlines()


def section(link: Link) -> str:
    """Return a link's section."""
    lines = [f"## {link.name}: {link.title}", "", link.how, ""]
    for table in link.tables:
        lines += [*markdown_head(table.columns), *map(markdown_row, table.rows), ""]
    return "\n".join(lines)


def summary_rows(link: Link) -> list[str]:
    """Return the rows of the page's first table that are a link's."""
    return [
        markdown_row(
            (
                link.name,
                claim.text,
                claim.measured,
                claim.bound,
                "yes" if claim.ok else "**NO**",
                f"`{claim.command}`",
            )
        )
        for claim in link.claims
    ]


def markdown_head(columns: Sequence[str]) -> list[str]:
    """Return the two lines above a table's rows."""
    return [markdown_row(columns), "|" + "---|" * len(columns)]


def markdown_row(cells: Sequence[str]) -> str:
    """Return a table's row."""
    return f"| {' | '.join(cells)} |"
