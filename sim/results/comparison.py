"""Runs beside each other: those of the page, and earlier ones from the JSON that they printed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.accelerator import Report
from spec.errors import InputError
from spec.files import read_text

LONGEST_NAME = 300
BLOCKS = ("gating", "dispatch", "expert", "pim", "combine")
FIGURES = {
    "time, us": "{:,.1f}",
    "cycles, Verilog": "{:,.0f}",
    "cycles, model": "{:,.0f}",
    **{f"cycles of {block}": "{:,.0f}" for block in BLOCKS},
    "energy, uJ": "{:,.4g}",
    "MAC utilisation": "{:.1%}",
    "bandwidth of weights used": "{:.1%}",
    "assignments dropped": "{:,.0f}",
}
"""What runs are compared by, and how it is written."""


@dataclass(frozen=True)
class Run:
    """A run's name, and its figures by the names of :data:`FIGURES`; None for what was not run."""

    name: str
    figures: Mapping[str, float | None]

    @classmethod
    def of(cls, report: Report | Mapping[str, Any], words: str = "") -> Run:
        """Return the run of a report, or of its JSON object with the same keys."""
        run = report.as_json() if isinstance(report, Report) else report
        cycles, blocks, joules = run["cycles"], run["blocks"], run["energy_j"]

        def of_block(name: str) -> float | None:
            pair = blocks.get(name, {"rtl": None, "model": None})
            value: float | None = pair["model"] if pair["rtl"] is None else pair["rtl"]
            return value

        figures = {
            "time, us": _micro(run["seconds"]),
            "cycles, Verilog": cycles["rtl"],
            "cycles, model": cycles["model"],
            **{f"cycles of {name}": of_block(name) for name in BLOCKS},
            "energy, uJ": None if joules is None else _micro(joules),
            "MAC utilisation": run["utilisation"]["mac"],
            "bandwidth of weights used": run["utilisation"]["bandwidth"],
            "assignments dropped": run["dropped"],
        }
        _check(figures)
        of = f"{run['model']}, {run['tokens']} tokens, routing {run['routing']['requested']}"
        return cls(f"{words}{run['design']} ({run['format']}): {of}"[:LONGEST_NAME], figures)


def _micro(value: Any) -> float:
    _check({"": value})
    return float(value) * 1e6


def _check(figures: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless figures are numbers, at least 0, or None."""
    for name, value in figures.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value >= 0):
            raise ValueError(name)


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a file that ``sim --json`` printed; :class:`InputError` for any other."""
    try:
        found = json.loads(read_text(path))
        runs = found.get("designs", [found])
        read = [Run.of(run, "earlier: ") for run in runs]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise error.at(file=path, key="compare") from None
        rule = "must be what 'sim --json' printed: one JSON object"
        raise InputError(rule, file=path, key="compare") from None
    if not read:
        raise InputError("holds no run", file=path, key="compare")
    return read


def compared(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return of each figure the first run's, and each other one's with its ratio; empty for a single run."""
    if len(runs) < 2:
        return []
    rows = []
    for name, form in FIGURES.items():
        values = [run.figures[name] for run in runs]
        if all(value is None for value in values):
            continue
        first = values[0]
        texts = ["-" if value is None else form.format(value) for value in values]
        for place, value in enumerate(values[1:], 1):
            if value is not None and first:
                texts[place] += f" (x {value / first:.3g})"
        rows.append((name, texts))
    return rows
