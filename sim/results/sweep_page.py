"""A sweep's results as one HTML page that needs nothing else: front, what each axis does, heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sim.results.charts import LEVELS, Cell
from sim.results.page import Bar, Line, Part
from sim.sweep.findings import DENSITY, Density, Findings, Map, Spread, share

TEMPLATE = "sweep.html"
MAX_FRONT = 200
"""Rows of the front that are shown."""
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 640, 360, 80, 40, 12
TICKS = 4


@dataclass(frozen=True)
class Chart:
    """All points over two objectives, as shades, and the front as circles."""

    title: str
    x_name: str
    y_name: str
    cells: Sequence[Cell]
    points: Sequence[tuple[float, float, str]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = BOTTOM
    top: int = MARGIN
    cell_height: float = (HEIGHT - BOTTOM - MARGIN) / DENSITY


@dataclass(frozen=True)
class EffectView:
    """How much of an objective each axis explains."""

    objective: str
    text: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class LevelTable:
    """Mean of each objective for each value of an axis, over its mean."""

    name: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class MapView:
    """A heat map, with texts along both axes."""

    title: str
    columns: int
    rows: int
    labels: Sequence[str]
    across: Sequence[str]
    cells: Sequence[Cell]


def sweep_page_text(found: Findings, asked: Mapping[str, str]) -> str:
    """Return the page; ``asked``: what the sweep was of, by names."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    space = found.space
    objectives = list(space.objectives)
    columns = ["point", *space.names, *objectives]
    shown = found.front[:MAX_FRONT]
    senses = ", ".join(f"{name} ({sense})" for name, sense in space.objectives.items())
    return environment.get_template(TEMPLATE).render(
        title=f"Sweep {space.name}",
        subject=f"{found.points:,} points, {found.failed:,} of them failed; objectives: {senses}",
        asked=asked,
        errors=found.errors,
        charts=[chart(found, density) for density in found.densities],
        front_text=f"{len(found.front):,} points that no other is at least as good as in all objectives"
        + (f"; the first {MAX_FRONT} of them:" if len(found.front) > MAX_FRONT else ":"),
        front_columns=columns,
        front_rows=[[number(row[name]) for name in columns] for row in shown],
        effects=effects(found) if len(found.shares) else [],
        objectives=objectives,
        tables=tables(found) if len(found.shares) else [],
        maps=[map_view(found.spreads[one.objective], one) for one in found.maps],
        levels=LEVELS,
    )


def number(value: Any) -> str:
    """Return a value as the page shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def chart(found: Findings, density: Density) -> Chart:
    """Return the picture of all points over two objectives."""
    x_spread, y_spread = found.spreads[density.x], found.spreads[density.y]
    wide, high = WIDTH - LEFT - MARGIN, HEIGHT - BOTTOM - MARGIN
    most = math.log1p(density.counts.max(initial=0)) or 1.0
    cells = [
        Cell(
            LEFT + column * wide / DENSITY,
            MARGIN + (DENSITY - 1 - row) * high / DENSITY,
            wide / DENSITY,
            max(1, math.ceil(LEVELS * math.log1p(density.counts[row, column]) / most)),
        )
        for row, column in np.argwhere(density.counts).tolist()
    ]

    def x(values: Sequence[float]) -> list[float]:
        return [round(LEFT + one * wide, 1) for one in share(x_spread, np.array(values)).tolist()]

    def y(values: Sequence[float]) -> list[float]:
        return [round(MARGIN + (1 - one) * high, 1) for one in share(y_spread, np.array(values)).tolist()]

    front = found.front[:MAX_FRONT]
    texts = [
        f"point {row['point']}: "
        + ", ".join(f"{name} {number(row[name])}" for name in found.space.objectives)
        for row in front
    ]
    places = zip(x([row[density.x] for row in front]), y([row[density.y] for row in front]), strict=True)
    return Chart(
        title=f"{density.y} over {density.x}: darker where more points are; circles are the front",
        x_name=density.x,
        y_name=density.y,
        cells=cells,
        points=[(a, b, text) for (a, b), text in zip(places, texts, strict=True)],
        x_ticks=list(zip(x(ticks(x_spread)), map(number, ticks(x_spread)), strict=True)),
        y_ticks=list(zip(y(ticks(y_spread)), map(number, ticks(y_spread)), strict=True)),
    )


def ticks(spread: Spread) -> list[float]:
    """Return values along an objective, evenly on its axis."""
    if spread.high <= spread.low:
        return [spread.low]
    make = np.geomspace if spread.log else np.linspace
    return [float(value) for value in make(spread.low, spread.high, TICKS + 1)]


def effects(found: Findings) -> list[EffectView]:
    """Return for each objective how much of its variance each axis explains alone, most first."""
    views = []
    for place, name in enumerate(found.space.objectives):
        shares = found.shares[:, place]
        parts = [
            Part(found.levels[axis].name, f"{shares[axis]:.1%}", float(shares[axis]), place)
            for axis in np.argsort(-shares, kind="stable")
        ]
        spread = found.spreads[name]
        scale = "of the variance of its logarithm" if spread.log else "of its variance"
        views.append(
            EffectView(
                name,
                f"{number(spread.low)} to {number(spread.high)}; what the axes explain {scale}, each alone"
                " (the rest is how they act together):",
                [Bar(f"{part.name}: {part.value}", [part]) for part in parts],
            )
        )
    return views


def tables(found: Findings) -> list[LevelTable]:
    """Return for each axis the means of its values over that of all points."""
    result = []
    for axis, levels in enumerate(found.levels):
        lines = []
        for level, name in enumerate(levels.names):
            values = []
            for objective, spread in found.spreads.items():
                mean = found.means[axis, objective][level]
                if math.isnan(mean):
                    values.append("-")
                elif spread.log:
                    values.append(f"{math.exp(mean - spread.mean):.3g} x")
                else:
                    values.append(number(float(mean)))
            lines.append(Line(name, values))
        result.append(
            LevelTable(
                f"{levels.name}: means by its values, over the mean of all (x) where they are logarithmic",
                lines,
            )
        )
    return result


def map_view(spread: Spread, one: Map) -> MapView:
    """Return the heat map of a pair of axes: the better, the darker."""
    cells = []
    flat = share(spread, one.best.ravel())
    for place, (value, part) in enumerate(zip(one.best.ravel().tolist(), flat.tolist(), strict=True)):
        row, column = divmod(place, one.best.shape[1])
        if math.isnan(value):
            continue
        good = 1.0 - part if spread.sense == "min" else part
        place_text = f"{one.down.name} {one.down.names[row]}, {one.across.name} {one.across.names[column]}"
        cells.append(
            Cell(
                float(column),
                float(row),
                1.0,
                max(1, math.ceil(LEVELS * good)),
                f"{place_text}: {number(value)}",
            )
        )
    return MapView(
        f"{one.objective}, {spread.sense} over all else: {one.down.name} down, {one.across.name} across",
        len(one.across.names),
        len(one.down.names),
        one.down.names,
        one.across.names,
        cells,
    )
