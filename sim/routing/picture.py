"""A trace's statistics as one picture. Imports matplotlib, so it is imported where a picture is drawn."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.routing.statistics import LayerStatistics, expected_unique, unique_experts
from sim.routing.trace import NO_EXPERT, Trace

MAX_BATCH = 1024


def picture(trace: Trace, found: list[LayerStatistics], title: str) -> bytes:
    """Return a PNG: load of each expert, its sorted shares, unique experts by batch size, reuse distance."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    # Names of files are the user's: a dollar sign in them is no formula.
    figure.suptitle(title.replace("$", r"\$"))
    axes = figure.subplots(2, 2)
    _draw_load(figure, axes[0, 0], found)
    _draw_shares(axes[0, 1], found)
    _draw_unique(axes[1, 0], trace, found)
    _draw_reuse(axes[1, 1], found)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _draw_load(figure: Figure, axes: Axes, found: list[LayerStatistics]) -> None:
    """Draw bars of one layer, else a map of layers x experts."""
    axes.set_xlabel("expert")
    if len(found) == 1:
        axes.bar(np.arange(len(found[0].load)), found[0].load, width=1.0)
        axes.set_ylabel("assignments")
        axes.set_title(f"load, layer {found[0].layer}")
        return
    image = axes.imshow(
        np.stack([one.load for one in found]), aspect="auto", interpolation="nearest", origin="lower"
    )
    axes.set_ylabel("layer")
    every = -(-len(found) // 12)
    axes.set_yticks(range(0, len(found), every), [str(one.layer) for one in found[::every]])
    axes.set_title("load")
    figure.colorbar(image, ax=axes, label="assignments")


def _draw_shares(axes: Axes, found: list[LayerStatistics]) -> None:
    for one in found:
        shares = np.sort(one.load)[::-1] / max(one.assignments, 1)
        axes.plot(np.arange(1, len(shares) + 1), np.cumsum(shares), alpha=_alpha(found))
    number = len(found[0].load)
    axes.plot([0, number], [0, 1], "k--", linewidth=0.8, label="equal")
    axes.set(xlabel="experts, most used first", ylabel="share of all assignments", title="share of load")
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")


def _draw_unique(axes: Axes, trace: Trace, found: list[LayerStatistics]) -> None:
    most = min(one.num_tokens for one in found)
    sizes = [1 << power for power in range(MAX_BATCH.bit_length()) if 1 << power <= most]
    for one in found:
        rows = trace.ids[trace.index_of(one.layer)]
        rows = rows[(rows != NO_EXPERT).any(axis=1)]
        means = [unique_experts(rows, trace.num_experts, size).mean() for size in sizes]
        axes.plot(sizes, means, marker=".", alpha=_alpha(found))
    expected = [expected_unique(trace.num_experts, trace.top_k, size) for size in sizes]
    axes.plot(sizes, expected, "k--", linewidth=0.8, label="uniform, expected")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of a batch", ylabel="different experts", title="unique experts")
    axes.legend(loc="lower right")


def _draw_reuse(axes: Axes, found: list[LayerStatistics]) -> None:
    for one in found:
        total = int(one.reuse.sum()) + one.first_uses
        axes.plot(np.cumsum(one.reuse) / max(total, 1), alpha=_alpha(found))
    axes.set(
        xlabel="reuse distance (other experts between)",
        ylabel="share of assignments up to it",
        title="reuse distance",
    )
    axes.set_ylim(0, 1.02)


def _alpha(found: list[LayerStatistics]) -> float:
    return max(0.2, 1.0 / len(found))
