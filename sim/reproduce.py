"""A paper's claims beside what is modelled: nominal, interval over sourced inputs, sweep over all inputs.

* *Nominal*: every input as declared.
* *Sweep*: one input at an end of its range, and no other, for each input.
* *Interval*: the least and the largest result over sourced inputs: nominal, their sweeps, and two corners, in
  which each sourced input is at the end of its range that by itself makes the result smaller, or larger.

``within_band`` is True or False for a claim judged by percent or interval; None for an open one, and for an
interval wider than 25 % of its nominal either way, which is labelled ``not a test``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.papers import model_of, replay_of
from spec.files import preset_names
from spec.load import load_paper
from spec.paper import WIDE, Bound, Claim, Judged, PaperSpec
from spec.system import Evidence, Quantity, nominal, quantities, with_changed

NOT_A_TEST = "not a test"
NOT_TAKEN = ("outside", "exchange", "memory_j_per_bit", "flop_j", "j_per_bit", "area_mm2")
"""Numbers of engines, links and systems that ``expertbank system`` takes, and no paper's model: each of these
has its own model of what is beside experts, of energy and of area."""
SHOWN_EFFECT = 0.005
"""Effects of inputs below this share of a result are left out of its sweep."""


@dataclass(frozen=True)
class Effect:
    """What one input does: a claim's result with the input at its low and at its high end."""

    name: str
    quantity: Quantity
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """A claim and what is modelled of it.

    Attributes
    ----------
    modelled : nominal.
    interval : over sourced inputs.
    effects : of inputs that move it, largest first.
    """

    name: str
    claim: Claim
    modelled: float
    interval: tuple[float, float]
    effects: tuple[Effect, ...]

    @property
    def ratio(self) -> float:
        """Modelled over published."""
        return self.modelled / self.claim.published

    @property
    def wide(self) -> bool:
        """Whether the interval leaves the nominal by more than 25 % either way."""
        low, high = self.interval
        return low < self.modelled * (1 - WIDE) or high > self.modelled * (1 + WIDE)

    @property
    def label(self) -> str:
        """``not a test`` for an interval that is too wide to be one, ``open`` for an open claim."""
        if self.claim.judged is Judged.OPEN:
            return "open"
        return NOT_A_TEST if self.claim.judged is Judged.INTERVAL and self.wide else ""

    @property
    def bound_holds(self) -> bool | None:
        """Whether the published figure lies on the bound's allowed side; None where nothing is a bound."""
        if self.claim.bound is None:
            return None
        return (self.ratio <= 1) if self.claim.bound is Bound.LOWER else (self.ratio >= 1)

    @property
    def within_band(self) -> bool | None:
        """Whether the claim's band is met; None where there is none."""
        claim = self.claim
        if self.label:
            return None
        if claim.judged is Judged.INTERVAL:
            return self.interval[0] <= claim.published <= self.interval[1]
        near = abs(self.ratio - 1) <= claim.percent / 100
        return near and (claim.above is None or self.modelled > claim.above)

    @property
    def band(self) -> str:
        """The band in words."""
        claim = self.claim
        if claim.judged is Judged.PERCENT:
            more = "" if claim.above is None else f", above {claim.above:g}"
            return f"{claim.percent:g} %{more}"
        return str(claim.judged)


@dataclass(frozen=True)
class Reproduction:
    """A paper's outcomes; claims that were not run, and why; the inputs."""

    paper: PaperSpec
    outcomes: tuple[Outcome, ...]
    not_run: dict[str, str]
    inputs: dict[str, Quantity]


def paper_names() -> list[str]:
    """Return the papers that can be reproduced."""
    return preset_names(PaperSpec.PRESET_FOLDER)


def reproduce(
    name: str, files: Path | None = None, *, begin: Callable[[PaperSpec], None] | None = None
) -> Reproduction:
    """Run a paper's model; :class:`spec.errors.InputError` for an unknown paper or bad files.

    ``files``: the user's copy of files that a paper's authors have released, for claims that need them.
    ``begin``: called with the paper once it and the files are taken, before a model that may need seconds.
    """
    paper = load_paper(name)
    model, values = model_of(paper.name), nominal(paper)
    inputs = {name: quantity for name, quantity in quantities(paper) if _is_taken(name)}
    replayed = replay_of(paper.name)(paper, values, files) if files is not None else {}
    if begin is not None:
        begin(paper)
    central = model(paper, values)
    runs: dict[str, tuple[Quantity, dict[str, float], dict[str, float]]] = {}
    for key, quantity in inputs.items():
        if quantity.swept:
            low, high = (
                model(paper, with_changed(values, {key: end})) if end != quantity.value else central
                for end in (quantity.least, quantity.most)
            )
            runs[key] = (quantity, low, high)
    not_run = {
        key: "needs the authors' files: --files DIR"
        for key, claim in paper.claims.items()
        if claim.needs_files
    }
    not_run |= {key: claim.unmodelled for key, claim in paper.claims.items() if claim.unmodelled}
    corners: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}

    def corner(ends: dict[str, float]) -> dict[str, float]:
        key = tuple(sorted(ends.items()))
        if len(ends) == 1:  # the sweep has it
            [(name, end)] = ends.items()
            quantity, low, high = runs[name]
            return {quantity.value: central, quantity.least: low, quantity.most: high}[end]
        if key not in corners:
            corners[key] = model(paper, with_changed(values, ends))
        return corners[key]

    outcomes = [
        _outcome(key, claim, central, runs, corner) for key, claim in paper.claims.items() if key in central
    ]
    for key, result in replayed.items():
        outcomes.append(Outcome(key, paper.claims[key], result, (result, result), ()))
        del not_run[key]
    return Reproduction(paper, tuple(outcomes), not_run, inputs)


def _is_taken(name: str) -> bool:
    """Whether an input's name is one of those that a paper's model takes."""
    return not (name.startswith("systems.") and set(NOT_TAKEN).intersection(name.split(".")))


def _outcome(
    name: str,
    claim: Claim,
    central: Mapping[str, float],
    runs: Mapping[str, tuple[Quantity, dict[str, float], dict[str, float]]],
    corner: Callable[[dict[str, float]], dict[str, float]],
) -> Outcome:
    modelled = central[name]
    effects = [Effect(key, quantity, low[name], high[name]) for key, (quantity, low, high) in runs.items()]
    sourced = [effect for effect in effects if effect.quantity.evidence is not Evidence.ASSUMED]
    ends = [modelled, *(end for effect in sourced for end in (effect.low, effect.high))]
    for lowest in (True, False):
        changes = {}
        for effect in sourced:
            if effect.low == effect.high == modelled:
                continue
            results = (effect.low, modelled, effect.high)
            best = (min if lowest else max)(results)
            quantity = effect.quantity
            changes[effect.name] = (quantity.least, quantity.value, quantity.most)[results.index(best)]
        ends.append(corner(changes)[name] if changes else modelled)
    effects.sort(key=lambda effect: -abs(effect.high - effect.low))
    shown = [
        effect
        for effect in effects
        if max(abs(effect.low - modelled), abs(effect.high - modelled)) >= SHOWN_EFFECT * modelled
    ]
    return Outcome(name, claim, modelled, (min(ends), max(ends)), tuple(shown))


def as_json(result: Reproduction) -> dict[str, Any]:
    """Return what ``expertbank reproduce --json`` prints."""
    paper = result.paper
    return {
        "paper": paper.name,
        "title": paper.title,
        "claims": [
            {
                "name": outcome.name,
                "what": outcome.claim.what,
                "published": outcome.claim.published,
                "modelled": outcome.modelled,
                "ratio": outcome.ratio,
                "grade": paper.grade.value,
                "evidence": outcome.claim.evidence.value,
                "source": outcome.claim.source,
                "within_band": outcome.within_band,
                "band": outcome.band,
                "confidence": outcome.claim.confidence.value,
                "interval": list(outcome.interval),
                "label": outcome.label,
                "bound_holds": outcome.bound_holds,
                "cause": outcome.claim.cause,
                "sweep": [
                    {"input": effect.name, "low": effect.low, "high": effect.high}
                    for effect in outcome.effects
                ],
            }
            for outcome in result.outcomes
        ],
        "not_run": [
            {"name": name, "published": paper.claims[name].published, "reason": reason}
            for name, reason in result.not_run.items()
        ],
        "misreadings": [
            {"name": name, "survey": entry.survey, "paper": entry.paper, "source": entry.source}
            for name, entry in paper.misreadings.items()
        ],
        "note": paper.note,
        "inputs": [
            {
                "name": name,
                "value": quantity.value,
                "low": quantity.least,
                "high": quantity.most,
                "evidence": quantity.evidence.value,
                "source": quantity.source,
            }
            for name, quantity in result.inputs.items()
        ],
    }


COLUMNS = ("claim", "published", "modelled", "ratio", "interval", "band", "inside", "evidence", "confidence")


def claim_rows(result: Reproduction) -> list[tuple[str, ...]]:
    """Return a row of ``COLUMNS`` for each claim."""
    rows: list[tuple[str, ...]] = []
    for outcome in result.outcomes:
        inside = {True: "yes", False: "no", None: outcome.label}[outcome.within_band]
        inside += {True: ", bound holds", False: ", bound broken", None: ""}[outcome.bound_holds]
        low, high = outcome.interval
        rows.append(
            (
                outcome.name,
                _number(outcome.claim.published),
                _number(outcome.modelled),
                f"{outcome.ratio:.3f}",
                f"{_number(low)} to {_number(high)}",
                outcome.band,
                inside,
                outcome.claim.evidence.value,
                outcome.claim.confidence.value,
            )
        )
    for name in result.not_run:
        claim = result.paper.claims[name]
        rows.append(
            (
                name,
                _number(claim.published),
                "-",
                "-",
                "-",
                "-",
                "not run",
                claim.evidence.value,
                claim.confidence.value,
            )
        )
    return rows


def _number(value: float) -> str:
    return f"{value:.4g}"
