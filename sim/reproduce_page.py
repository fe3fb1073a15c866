"""The text of ``docs/reproduce.md``, and what stands below a paper's table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from sim.progress import track
from sim.reproduce import COLUMNS, Outcome, Reproduction, claim_rows, paper_names, reproduce
from spec.system import Evidence

HEADER = """\
# reproduce

What publications claim beside what their published numbers give here. Written by `make reproduce-page`; do
not edit. `tests/test_reproduce.py` compares it with the presets. `expertbank reproduce PAPER` prints one
paper's table, `--json` everything; `expertbank system` runs these systems on any model and routing.

No constant is fitted to a claim. Every number of `spec/papers/`, `spec/systems/`, `spec/engines/` and
`spec/links/` has its evidence and its source in the file, or is marked `assumed` and has a range. Inputs
were declared before they were computed with, and were not revised afterwards; the claims themselves were
known by then. A claim outside its band is a result, and its cause is named where it is known.

*Modelled*: with every input as declared. *Ratio*: modelled over published. *Interval*: the least and the
largest result over sourced inputs: each alone at the ends of its range, and all at the ends that make the
result smaller, or larger. Assumed inputs are not in it, but in the sweep below each table, where each input
is alone at the ends of its range. *Band*: within so many percent of the published figure; `interval`: the
published figure lies in the interval, which is `not a test` if it leaves the modelled figure by more than
25 % either way; `open`: not judged, since inputs that decide it are unknown. *Inside*: whether the band is
met, in `--json` `within_band`, which is null for what is open or not a test; where what is modelled is a
bound (`bound_holds`), whether the published figure keeps it; `not run` and why, below the table, for figures
of which nothing is modelled. *Evidence*: where the
published figure was read: P the paper's text, A its abstract, C released code, N a third party, S the
survey, D derived from such. *Confidence*: in the test. A paper's *grade* says whether its inputs are known.
"""


def remarks(result: Reproduction) -> list[str]:
    """Return the lines below a paper's table: causes, sweeps, what the survey says otherwise."""
    lines = [f"{name}: not run: {reason}" for name, reason in result.not_run.items()]
    lines += [f"{outcome.name}: {outcome.claim.cause}" for outcome in result.outcomes if outcome.claim.cause]
    assumed = [_sweep(outcome, assumed=True) for outcome in result.outcomes]
    lines += [line for line in assumed if line]
    lines += [
        f"the survey: {entry.survey}; the paper: {entry.paper} ({entry.source})"
        for entry in result.paper.misreadings.values()
    ]
    return lines


def _sweep(outcome: Outcome, *, assumed: bool) -> str:
    parts = [
        f"{effect.name} {effect.quantity.least:g} to {effect.quantity.most:g}:"
        f" {effect.low:.3g} to {effect.high:.3g}"
        for effect in outcome.effects
        if (effect.quantity.evidence is Evidence.ASSUMED) == assumed
    ]
    return (
        f"{outcome.name} over {'assumed' if assumed else 'sourced'} inputs: {'; '.join(parts)}"
        if parts
        else ""
    )


def page() -> str:
    """Return the text of ``docs/reproduce.md``."""
    return "\n".join([HEADER, *(section(reproduce(name)) for name in track(paper_names()))])


def section(result: Reproduction) -> str:
    """Return a paper's part of the page."""
    paper = result.paper
    parts = [f"## {paper.name}\n", f"{paper.title}. Grade: {paper.grade}. {paper.note}\n"]
    parts.append(_table(COLUMNS, claim_rows(result)))
    what = [
        f"- `{outcome.name}`: {outcome.claim.what} ({outcome.claim.source})." for outcome in result.outcomes
    ]
    what += [f"- `{name}`: {paper.claims[name].what}; {reason}." for name, reason in result.not_run.items()]
    parts.append("\n".join(what) + "\n")
    causes = [f"- `{o.name}`: {o.claim.cause}." for o in result.outcomes if o.claim.cause]
    if causes:
        parts.append("What may lie behind differences:\n\n" + "\n".join(causes) + "\n")
    rows = [
        (
            f"`{effect.name}`",
            effect.quantity.evidence.value,
            f"{effect.quantity.least:g} to {effect.quantity.most:g}",
            outcome.name,
            f"{effect.low:.3g} to {effect.high:.3g}",
        )
        for outcome in result.outcomes
        for effect in outcome.effects
    ]
    if rows:
        parts.append("What moves the results:\n")
        parts.append(_table(("input", "evidence", "from", "claim", "result"), sorted(rows)))
    if paper.misreadings:
        parts.append("What the survey says, and the paper:\n")
        entries = [(e.survey, e.paper, e.source) for e in paper.misreadings.values()]
        parts.append(_table(("survey", "paper", "read in"), entries))
    return "\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
