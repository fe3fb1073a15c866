"""What a sweep's file says: its front, what each axis does, and the best of each pair of values.

The file is read some rows at a time, so that memory does not grow with the points; only the front does with
its own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sim.sweep.space import Axis, Space
from sim.sweep.store import as_cell, read_batches

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_LEVELS = 24
"""Values, or ranges of values, of an axis that are told apart."""
MAX_ERRORS = 5
DENSITY = 48
"""Cells of the picture of all points, each way."""


@dataclass(frozen=True)
class Levels:
    """The values of an axis, or ranges of them where they are many.

    Attributes
    ----------
    names : of each level.
    edges : (levels + 1,) of a continuous axis.
    places : level of each of the axis's values.
    column, cells : column of the file in which the values are told apart, and how it holds each.
    """

    axis: Axis
    names: Sequence[str]
    column: str
    edges: FloatArray | None = None
    places: IntArray | None = None
    cells: pa.Array | None = None

    @classmethod
    def of(cls, axis: Axis, schema: pa.Schema) -> Levels:
        """Return the levels of an axis."""
        if axis.continuous:
            edges = (
                np.geomspace(axis.low, axis.high, MAX_LEVELS // 2 + 1)
                if axis.log
                else np.linspace(axis.low, axis.high, MAX_LEVELS // 2 + 1)
            )
            names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges.tolist())]
            return cls(axis, names, axis.names[0], edges=edges)
        count = len(axis.values)
        # Of fields that change together one that differs everywhere, if there is one.
        differ = [len({repr(shown[place]) for shown in axis.shown}) for place in range(len(axis.names))]
        place = int(np.argmax(differ))
        column = axis.names[place]
        kind = schema.field(column).type
        cells = pa.array([as_cell(shown[place], kind) for shown in axis.shown], kind)
        levels = min(count, MAX_LEVELS)
        places = np.arange(count) * levels // count
        names = []
        for level in range(levels):
            own = [axis.shown[value][place] for value in np.flatnonzero(places == level)]
            names.append(_text(own[0]) if len(own) == 1 else f"{_text(own[0])} to {_text(own[-1])}")
        return cls(axis, names, column, places=places, cells=cells)

    @property
    def name(self) -> str:
        """The axis's fields."""
        return ", ".join(self.axis.names)

    def in_batch(self, batch: pa.RecordBatch) -> IntArray:
        """Return (rows,) level of each row."""
        values = batch.column(self.column)
        if self.edges is not None:
            found = np.searchsorted(self.edges, values.to_numpy(zero_copy_only=False), side="right") - 1
            return np.asarray(np.clip(found, 0, len(self.names) - 1), np.int64)
        assert self.places is not None
        index = np.asarray(pc.index_in(values, value_set=self.cells), np.int64)
        levels: IntArray = self.places[index]
        return levels


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class Effect:
    """What an axis does to an objective: sums over the points of each of its levels."""

    count: FloatArray
    total: FloatArray

    def add(self, levels: IntArray, values: FloatArray) -> None:
        """Take more points."""
        size = len(self.count)
        self.count += np.bincount(levels, minlength=size)
        self.total += np.bincount(levels, values, minlength=size)

    def means(self) -> FloatArray:
        """Return (levels,) mean of the points of each, not a number where there is none."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / np.where(self.count, self.count, np.nan))


@dataclass
class Spread:
    """An objective over all points; logarithms where all of them are above 0."""

    sense: str
    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def log(self) -> bool:
        """Whether the objective is looked at by its logarithm: all values are above 0, and differ."""
        return self.low > 0 and self.high > self.low

    def add(self, values: FloatArray) -> None:
        """Take more values, for the range."""
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def scaled(self, values: FloatArray) -> FloatArray:
        """Return values, or their logarithms."""
        return np.log(values) if self.log else values

    def add_scaled(self, values: FloatArray) -> None:
        """Take more scaled values, for mean and variance (Chan's update: no difference of large sums)."""
        if not len(values):
            return
        mean, squares, count = float(values.mean()), float(((values - values.mean()) ** 2).sum()), len(values)
        both = self.count + count
        self.squares += squares + (mean - self.mean) ** 2 * self.count * count / both
        self.mean += (mean - self.mean) * count / both
        self.count = both


@dataclass(frozen=True)
class Map:
    """The best value of an objective for each pair of levels of two axes; not a number where no point is."""

    objective: str
    down: Levels
    across: Levels
    best: FloatArray


@dataclass(frozen=True)
class Density:
    """How many points lie where, over two objectives."""

    x: str
    y: str
    counts: IntArray


@dataclass
class Findings:
    """What a sweep came to.

    Attributes
    ----------
    points, failed, errors : rows, those with an error, the first of these with their numbers.
    front : rows that no other row beats in all objectives, best first in the first objective.
    spreads : of each objective.
    shares : (axes, objectives), of an objective's variance what an axis explains alone.
    means : axis, objective -> (levels,) scaled means.
    """

    space: Space
    levels: Sequence[Levels]
    spreads: Mapping[str, Spread]
    points: int = 0
    failed: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)
    front: list[dict[str, Any]] = field(default_factory=list)
    shares: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    means: dict[tuple[int, str], FloatArray] = field(default_factory=dict)
    maps: list[Map] = field(default_factory=list)
    densities: list[Density] = field(default_factory=list)


def _numbers(batch: pa.RecordBatch, name: str) -> FloatArray:
    return np.asarray(batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _rows(
    file: Path, objectives: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, FloatArray]]:
    """Yield rows, those of them with all objectives, and these (rows, objectives)."""
    for batch in read_batches([file]):
        values = np.stack([_numbers(batch, name) for name in objectives], axis=1)
        whole = np.isfinite(values).all(axis=1)
        yield batch, batch.filter(pa.array(whole)), values[whole]


def find(space: Space, file: Path, *, pictures: bool = True) -> Findings:
    """Return what a sweep's file says; ``pictures``: with what each axis does, maps and densities."""
    from pyarrow.parquet import read_schema

    objectives = list(space.objectives)
    signs = np.array([1.0 if sense == "min" else -1.0 for sense in space.objectives.values()])
    levels = [Levels.of(axis, read_schema(file)) for axis in space.axes]
    found = Findings(space, levels, {name: Spread(sense) for name, sense in space.objectives.items()})
    best = np.zeros((0, len(objectives)))
    for batch, whole, values in _rows(file, objectives):
        found.points += batch.num_rows
        wrong = batch.filter(pc.is_valid(batch.column("error")))
        found.failed += wrong.num_rows
        for row in wrong.slice(0, MAX_ERRORS - len(found.errors)).select(["point", "error"]).to_pylist():
            found.errors.append((row["point"], row["error"]))
        for place, name in enumerate(objectives):
            found.spreads[name].add(values[:, place])
        best, kept, new = not_beaten(best, signs * values)
        found.front = [found.front[place] for place in kept] + whole.take(
            pa.array(new, pa.int64())
        ).to_pylist()
    order = np.lexsort(best.T[::-1])
    found.front = [found.front[place] for place in order]
    if pictures and found.points > found.failed:
        _add_effects(found, file, objectives)
        _add_pictures(found, file, objectives)
    return found


def not_beaten(front: FloatArray, values: FloatArray) -> tuple[FloatArray, list[int], list[int]]:
    """Return the front of a front and further values, and which rows of both it has.

    A row is beaten by one that is at most as large everywhere; of equal ones the first stays.

    Parameters
    ----------
    front, values : (rows, objectives), less is better.
    """
    alive = np.ones(len(values), bool)
    for one in front:
        alive &= (values < one).any(axis=1)
    places = np.flatnonzero(alive)
    # In this order a row can only be beaten by an earlier one.
    places = places[np.lexsort((places, *values[places].T[::-1]))]
    chosen: list[int] = []
    while len(places):
        first = places[0]
        chosen.append(int(first))
        places = places[(values[places] < values[first]).any(axis=1)]
    new = values[chosen]
    kept = [place for place, one in enumerate(front) if not (new <= one).all(axis=1).any()]
    return np.concatenate([front[kept], new]), kept, chosen


def _add_effects(found: Findings, file: Path, objectives: Sequence[str]) -> None:
    effects = [
        {name: Effect(np.zeros(len(one.names)), np.zeros(len(one.names))) for name in objectives}
        for one in found.levels
    ]
    for _, whole, values in _rows(file, objectives):
        scaled = {name: found.spreads[name].scaled(values[:, place]) for place, name in enumerate(objectives)}
        for name, numbers in scaled.items():
            found.spreads[name].add_scaled(numbers)
        for one, of in zip(found.levels, effects, strict=True):
            places = one.in_batch(whole)
            for name, numbers in scaled.items():
                of[name].add(places, numbers)
    found.shares = np.zeros((len(found.levels), len(objectives)))
    for axis, of in enumerate(effects):
        for place, name in enumerate(objectives):
            spread, means = found.spreads[name], of[name].means()
            found.means[axis, name] = means
            between = np.nansum(of[name].count * (means - spread.mean) ** 2)
            found.shares[axis, place] = min(between / spread.squares, 1.0) if spread.squares > 0 else 0.0


def _add_pictures(found: Findings, file: Path, objectives: Sequence[str]) -> None:
    """Add a map of each objective over the two axes that explain most of it, and densities."""
    for place, name in enumerate(objectives):
        order = np.argsort(-found.shares[:, place], kind="stable")
        varied = [int(axis) for axis in order if len(found.levels[axis].names) > 1][:2]
        if len(varied) == 2:
            down, across = (found.levels[axis] for axis in varied)
            empty = np.full((len(down.names), len(across.names)), np.inf)
            found.maps.append(Map(name, down, across, empty))
    for name in objectives[1:]:
        found.densities.append(Density(objectives[0], name, np.zeros((DENSITY, DENSITY), np.int64)))
    for _, whole, values in _rows(file, objectives):
        by_name = {name: values[:, place] for place, name in enumerate(objectives)}
        for one in found.maps:
            sign = 1.0 if found.spreads[one.objective].sense == "min" else -1.0
            at = (one.down.in_batch(whole), one.across.in_batch(whole))
            np.minimum.at(one.best, at, sign * by_name[one.objective])
        for density in found.densities:
            places = [
                np.minimum(
                    (share(found.spreads[name], by_name[name]) * DENSITY).astype(np.int64), DENSITY - 1
                )
                for name in (density.y, density.x)
            ]
            np.add.at(density.counts, tuple(places), 1)
    for one in found.maps:
        one.best[np.isinf(one.best)] = np.nan
        if found.spreads[one.objective].sense == "max":
            one.best[:] *= -1.0


def share(spread: Spread, values: FloatArray) -> FloatArray:
    """Return where values lie between the least (0) and the greatest (1) of all."""
    low, high = spread.scaled(np.array([spread.low, spread.high]))
    if high <= low:
        return np.full(len(values), 0.5)
    part: FloatArray = np.clip((spread.scaled(values) - low) / (high - low), 0.0, 1.0)
    return part
