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


def rows_on(page: str, name: str) -> list[str]:
    """Return a link's rows of a page's first table; raise :class:`InputError` where the page lacks it."""
    head, *sections = SECTION.split(page)
    rows = [line for line in head.splitlines() if line.startswith(f"| {name} | ")]
    there = sum(text.startswith(f"## {name}: ") for text in sections) == 1
    require(there and bool(rows), f"must be on the page: {name!r}", key="only")
    return rows


def page_with(links: Sequence[Link], before: str) -> str:
    """Return a page on which these links, which it has, are measured anew; the others stay as they are."""
    head, *sections = SECTION.split(before)
    for link in links:
        old, new = (
            "".join(f"{row}\n" for row in rows) for rows in (rows_on(before, link.name), summary_rows(link))
        )
        head = head.replace(old, new)
        (place,) = (n for n, text in enumerate(sections) if text.startswith(f"## {link.name}: "))
        last = place == len(sections) - 1
        sections[place] = section(link) + ("" if last else "\n")
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
        texts = {line.split(" | ")[1] for line in rows_on(page, link.name)}
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
