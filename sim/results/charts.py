"""Geometry of a page's pictures: plain numbers that the template writes as SVG.

Strips and maps have no text of their own and are stretched by the browser; what is shown of a run does not
grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.activity import Activity
from sim.results.roofline import Roofline
from sim.results.rows import expert_name
from sim.streams import Cycles, Spans, size

LEVELS = 10
"""Shades of a strip or a map."""
BINS = 400
"""Pieces of a strip."""
MOST_JOBS = 300
"""Jobs of a unit that are drawn one by one."""
MAP_COLUMNS = 32
"""Experts in a row of the map of a single layer."""
MOST_TITLES = 4096
"""Cells of a map that each have a text of their own."""


@dataclass(frozen=True)
class Cell:
    """A rectangle of a strip or map: place, size, shade ``0..LEVELS``, what it says when pointed at."""

    x: float
    y: float
    width: float
    level: int
    title: str | None = None


@dataclass(frozen=True)
class Strip:
    """A row of a timeline over ``width`` units."""

    name: str
    width: float
    cells: Sequence[Cell]
    jobs: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A map of counts.

    Attributes
    ----------
    title, columns, rows : what it shows, along both axes.
    labels : of its rows, or none.
    low, high : least and greatest count.
    axes : in words.
    """

    title: str
    columns: int
    rows: int
    labels: Sequence[str]
    cells: Sequence[Cell]
    low: int
    high: int
    axes: str


def shares(spans: Spans, start: int, cycles: int, bins: int = BINS) -> NDArray[np.float64]:
    """Return for each of ``bins`` equal parts of a run which share of it is in a set of cycles."""
    edges = start + cycles * np.arange(bins + 1) / bins
    if not len(spans):
        return np.zeros(bins)
    lengths = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(lengths)
    upto = np.interp(edges, spans.ravel(), np.stack([ends - lengths, ends], axis=1).ravel())
    part: NDArray[np.float64] = np.diff(upto) * bins / cycles
    return part


def strip(name: str, spans: Spans, start: int, cycles: int, gaps: int = 0) -> Strip:
    """Return a row whose shades are shares of the cycles below them, without ``gaps`` of the spans."""
    part = shares(spans, start, cycles) * (1 - gaps / max(size(spans), 1))
    levels = np.clip(np.ceil(part * LEVELS - 1e-9), 0, LEVELS).astype(np.int64)
    begins, ends = _runs(levels)
    cells = [
        Cell(float(begin), 0.0, float(end - begin), int(levels[begin]))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        if levels[begin]
    ]
    return Strip(name, BINS, cells)


def timeline(activity: Activity, num_experts: int, unit_name: str) -> list[Strip]:
    """Return a row for each block and for each unit; a unit's has its jobs where they are few."""
    rows = [
        strip(name, block.spans, activity.start, activity.cycles, block.gaps)
        for name, block in activity.blocks.items()
    ]
    jobs = activity.jobs
    for unit, spans in enumerate(activity.units):
        mine = jobs.unit == unit
        name = f"{unit_name} {unit}" if len(activity.units) > 1 else f"{unit_name}, jobs"
        if not mine.any() or int(mine.sum()) > MOST_JOBS:
            rows.append(strip(name, spans, activity.start, activity.cycles))
            continue
        columns = (
            jobs.layer,
            jobs.expert,
            jobs.tokens,
            jobs.start - activity.start,
            jobs.end - activity.start,
        )
        cells = []
        for place, (layer, expert, tokens, start, end) in enumerate(
            np.stack([column[mine] for column in columns], axis=1).tolist()
        ):
            of_layer = f"layer {layer}, " if len(activity.tokens) > 1 else ""
            title = (
                f"{of_layer}expert {expert_name(expert, num_experts)}: {tokens} tokens,"
                f" cycles {start:,} to {end - 1:,}"
            )
            scale = BINS / activity.cycles
            cells.append(
                Cell(round(start * scale, 3), 0.0, round((end - start) * scale, 3), 1 + place % 2, title)
            )
        rows.append(Strip(name, BINS, cells, jobs=True))
    return rows


def expert_map(tokens: NDArray[np.int64], num_experts: int) -> HeatMap:
    """Return tokens per expert: layers down, experts across; of one layer rows of 32 experts."""
    layers, experts = tokens.shape
    names = [expert_name(expert, num_experts) for expert in range(experts)]
    if layers > 1:
        columns = experts
        places = [(layer, expert) for layer in range(layers) for expert in range(experts)]
        labels = [str(layer) for layer in range(layers)]
        texts = [f"layer {layer}, expert {names[expert]}" for layer, expert in places]
    else:
        columns = min(experts, MAP_COLUMNS)
        places = [divmod(expert, columns) for expert in range(experts)]
        labels = []
        texts = [f"expert {name}" for name in names]
    return _heat_map(
        "tokens per expert",
        columns,
        places,
        labels,
        [f"{text}: {{}} tokens" for text in texts],
        tokens.ravel(),
        axes=f"across: experts {names[0]} to {names[-1]}"
        + (f"; down: layers 0 to {layers - 1}" if layers > 1 else f", {columns} in a row"),
    )


def command_map(counts: dict[str, NDArray[np.int64]]) -> HeatMap | None:
    """Return commands per channel: names down, channels across; each name has shades of its own."""
    shown = {name: of for name, of in counts.items() if of.any()}
    if not shown:
        return None
    table = np.stack(list(shown.values()))
    places = [(row, column) for row in range(table.shape[0]) for column in range(table.shape[1])]
    texts = [f"channel {column}: {{}} {list(shown)[row]}" for row, column in places]
    return _heat_map(
        "commands per channel",
        table.shape[1],
        places,
        list(shown),
        texts,
        table.ravel(),
        by_row=True,
        axes=f"across: {table.shape[1]} channels; the shades are of each row",
    )


def bank_map(reads: NDArray[np.int64], bank_groups: int) -> HeatMap | None:
    """Return bursts that MACs read from each bank: channels down, banks across, group after group."""
    if not reads.size:
        return None
    channels, banks = reads.shape
    # Bank b is bank b / groups of group b mod groups.
    order = np.argsort(np.arange(banks) % bank_groups, kind="stable")
    places = [(channel, place) for channel in range(channels) for place in range(banks)]
    texts = [
        f"channel {channel}, bank group {bank % bank_groups}, bank {bank // bank_groups}: {{}} bursts"
        for channel in range(channels)
        for bank in order.tolist()
    ]
    return _heat_map(
        "bursts read by MACs, per bank",
        banks,
        places,
        [f"channel {channel}" for channel in range(channels)],
        texts,
        reads[:, order].ravel(),
        axes=f"across: {banks} banks in {bank_groups} bank groups",
    )


def _heat_map(
    title: str,
    columns: int,
    places: Sequence[tuple[int, int]],
    labels: Sequence[str],
    texts: Sequence[str],
    values: NDArray[np.int64],
    *,
    by_row: bool = False,
    axes: str = "",
) -> HeatMap:
    rows = 1 + max(row for row, _ in places)
    highest = np.full(len(values), values.max(initial=0))
    if by_row:
        highest = values.reshape(rows, columns).max(axis=1).repeat(columns)
    levels = np.ceil(LEVELS * values / np.maximum(highest, 1)).astype(np.int64).tolist()
    titled = len(values) <= MOST_TITLES
    cells = [
        Cell(float(column), float(row), 1.0, level, text.format(f"{value:,}") if titled else None)
        for (row, column), level, text, value in zip(places, levels, texts, values.tolist(), strict=True)
    ]
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return HeatMap(title, columns, rows, labels, cells, low, high, axes)


def _runs(values: NDArray[np.int64]) -> tuple[Cycles, Cycles]:
    """Return where runs of equal values begin and end."""
    changes = np.flatnonzero(np.diff(values)) + 1
    return np.concatenate([[0], changes]), np.concatenate([changes, [len(values)]])


@dataclass(frozen=True)
class RooflineChart:
    """Both axes are logarithmic.

    Attributes
    ----------
    roofs : per run, corners of its roof.
    points : per run, where it is; None where no weight was read.
    x_ticks, y_ticks : place and text.
    """

    width: int
    height: int
    left: int
    bottom: int
    roofs: Sequence[str]
    points: Sequence[tuple[float, float] | None]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def roofline_chart(rooflines: Sequence[Roofline]) -> RooflineChart:
    """Return the picture of several runs under their roofs."""
    width, height, left, bottom, margin = 640, 360, 70, 40, 12
    intensities = [one.intensity for one in rooflines if one.intensity]
    xs = [one.ridge for one in rooflines] + intensities
    x_low, x_high = math.floor(math.log10(min(xs)) - 0.3), math.ceil(math.log10(max(xs)) + 0.3)
    tops = [one.peak_macs for one in rooflines]
    lows = [min(one.macs, one.peak_bytes * 10**x_low) for one in rooflines if one.macs]
    y_high = math.ceil(math.log10(max(tops)) + 0.1)
    y_low = math.floor(math.log10(min(lows or tops)))

    def x(value: float) -> float:
        return round(left + (math.log10(value) - x_low) / (x_high - x_low) * (width - left - margin), 1)

    def y(value: float) -> float:
        part = (math.log10(value) - y_low) / (y_high - y_low)
        return round(height - bottom - part * (height - bottom - margin), 1)

    roofs = []
    for one in rooflines:
        start = min(max(10.0**x_low, 10.0**y_low / one.peak_bytes), one.ridge)
        corners = [
            (start, one.peak_bytes * start),
            (one.ridge, one.peak_macs),
            (10.0**x_high, one.peak_macs),
        ]
        roofs.append(" ".join(f"{x(a)},{y(b)}" for a, b in corners))
    points = [(x(one.intensity), y(one.macs)) if one.intensity else None for one in rooflines]
    return RooflineChart(
        width=width,
        height=height,
        left=left,
        bottom=bottom,
        roofs=roofs,
        points=points,
        x_ticks=[(x(10.0**power), _power(power)) for power in range(x_low, x_high + 1)],
        y_ticks=[(y(10.0**power), _power(power - 9)) for power in range(y_low, y_high + 1)],
    )


def _power(power: int) -> str:
    return f"{10.0**power:g}"


@dataclass(frozen=True)
class ErrorBar:
    """A figure's range as shares of it, 0 being the figure itself.

    Attributes
    ----------
    name, text : of what, and what its ends are.
    low, high : least and most that it may be off; None where nothing says.
    """

    name: str
    text: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ErrorBars:
    """Rows over a common scale from ``-width`` to ``width``, both shares."""

    width: float
    bars: Sequence[ErrorBar]

    def place(self, share: float) -> float:
        """Return a place of 0 to 100 across the picture."""
        return round(50 + 50 * share / self.width, 2)


def error_bars(bars: Sequence[ErrorBar]) -> ErrorBars:
    """Return the picture of error bars, as wide as the widest."""
    ends = [abs(end) for bar in bars for end in (bar.low, bar.high) if end is not None]
    return ErrorBars(1.1 * max([*ends, 0.05]), bars)
