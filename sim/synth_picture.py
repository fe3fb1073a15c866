"""The gate's cells over experts and choices as a picture. Imports matplotlib: imported where one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

from sim.toolchain import write_atomically

CURVES = {"lut": "LUT4", "ff": "flip-flops"}


def draw_gates(
    over_experts: Mapping[int, Mapping[str, Any]],
    over_choices: Mapping[int, Mapping[str, Any]],
    fixed: tuple[int, int],
    file: Path,
) -> None:
    """Write an SVG of what gates cost: over their experts, and over how many of them are chosen.

    Parameters
    ----------
    over_experts, over_choices : number to the result of ``expertbank synth``, of which LUT4 and flip-flops
        are drawn.
    fixed : choices of the first, experts of the second.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    top_k, experts = fixed
    sides: Sequence[tuple[Mapping[int, Mapping[str, Any]], str, str]] = (
        (over_experts, "experts", f"{top_k} chosen"),
        (over_choices, "chosen", f"of {experts} experts"),
    )
    for axes, (results, of, title) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        numbers = sorted(results)
        for kind, label in CURVES.items():
            axes.plot(numbers, [results[number][kind] for number in numbers], marker="o", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.set(xlabel=of, title=title)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="cells")
    # Behind all curves: a limit that is set ends the scaling to what is drawn.
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].legend()
    text = io.StringIO()
    # Text as text, identifiers of no chance: the same picture is the same file.
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "synthesis"})
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # Its lines end with blanks, which the house's text does not.
    write_atomically(file, "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
