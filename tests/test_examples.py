"""Worked examples as a new user runs them: what they print, write and read is what docs/examples.md shows."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "examples.md").read_text()
SHOWN = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```\n\n!\[[^\]]*\]\(examples/(\w+)\.svg\)", PAGE, re.S)
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
CURVE = re.compile(
    r'<path d="(M [^"]*)" clip-path="[^"]*" style="fill: none; stroke(?:-dasharray: [^;]*;'
    r" stroke-dashoffset: [^;]*; stroke)?: #\w+; stroke-width: 1\.5"
)
POINT = re.compile(r"[ML] ([\d.-]+) ([\d.-]+)")
# Of each picture: whether both axes are logarithmic; for each pair of axes the columns of the printed table
# that its curves show, x and y. Rows that begin with a name are a curve each, the others all curves.
SHOWS = {
    "choose_pim_level": (True, [[(0, 1), (0, 3), (0, 5)]]),
    "size_fpga_array": (True, [[(0, 1), (0, 2), (0, 3), (0, 4)]]),
    "replay_trace": (False, [[(1, 3)], [(1, 5)]]),
}
DRAWN_WITHIN = 0.3
"""Points of 1/72 inch: how exactly a curve is drawn."""


def run(script: Path, folder: Path) -> str:
    """Return what a script prints, run alone in a folder."""
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def table(printed: str) -> dict[str, list[list[str]]]:
    """Return the numbers of the rows of a printed table, as text, by the name before them."""
    found: dict[str, list[list[str]]] = {}
    for line in printed.splitlines():
        row = re.fullmatch(r"(|[a-z ]*[a-z] {2,})(\d+ {2,}\d.*)", line)
        if row is not None:
            found.setdefault(row[1].strip(), []).append(re.findall(r"\d+\.?\d*", row[2]))
    return found


def check_curves(name: str, printed: str, svg: str) -> None:
    """Hold a picture's curves against the numbers printed: one scale for x and one for y of each axes."""
    logarithmic, of_axes = SHOWS[name]
    rows = list(table(printed).values())
    curves = [np.array(POINT.findall(path), float) for path in CURVE.findall(svg)]
    assert len(curves) == len(rows) * sum(map(len, of_axes))
    for columns in of_axes:
        shown, curves = curves[: len(rows) * len(columns)], curves[len(rows) * len(columns) :]
        for coordinate in (0, 1):
            texts = [row[pair[coordinate]] for of_name in rows for pair in columns for row in of_name]
            places = np.concatenate(shown)[:, coordinate]
            values = np.array(texts, float)
            # The printed numbers are rounded.
            half = np.array([0.5 * 10 ** -len(text.partition(".")[2]) * ("." in text) for text in texts])
            if logarithmic:
                values, half = np.log(values), half / values
            weight = 1 / (half + half.max() / 10 + 1e-9)
            scale, zero = np.polyfit(values, places, 1, w=weight)
            assert math.copysign(1, scale) == (1, -1)[coordinate]
            off = np.abs(scale * values + zero - places) - 2 * abs(scale) * half
            assert off.max() < DRAWN_WITHIN, f"{name}, {'xy'[coordinate]} of {texts[int(off.argmax())]}"


def test_every_script_is_on_the_page() -> None:
    names = {name for *_, name in SHOWN} | {"draw_trace"}
    assert names == {path.stem for path in EXAMPLES.glob("*.py")} and len(SHOWN) == 3


@pytest.mark.parametrize(("code", "printed", "name"), SHOWN, ids=[name for *_, name in SHOWN])
def test_an_example(code: str, printed: str, name: str, tmp_path: Path) -> None:
    script = EXAMPLES / f"{name}.py"
    assert script.read_text() == code
    assert run(script, tmp_path) == printed
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.svg"]
    # Its words and numbers; how curves are written is the library's.
    drawn, kept = (TEXT.findall((folder / f"{name}.svg").read_text()) for folder in (tmp_path, EXAMPLES))
    assert drawn == kept and drawn
    for folder in (tmp_path, EXAMPLES):
        check_curves(name, printed, (folder / f"{name}.svg").read_text())


@pytest.mark.parametrize(("printed", "name"), [one[1:] for one in SHOWN], ids=[name for *_, name in SHOWN])
def test_a_curve_that_does_not_show_what_is_printed_is_seen(printed: str, name: str) -> None:
    """A point that is drawn 3 points higher, two curves in each other's place."""
    svg = (EXAMPLES / f"{name}.svg").read_text()
    paths = CURVE.findall(svg)
    x, y = POINT.findall(paths[-1])[-1]
    moved = paths[-1].replace(f"{x} {y}", f"{x} {float(y) - 3}")
    for wrong in (svg.replace(paths[-1], moved), svg.replace(paths[0], "M 0").replace(paths[1], paths[0])):
        with pytest.raises((AssertionError, ValueError)):
            check_curves(name, printed, wrong)


def test_the_trace_is_drawn_by_seed(tmp_path: Path) -> None:
    assert run(EXAMPLES / "draw_trace.py", tmp_path) == ""
    assert (tmp_path / "requests.csv").read_bytes() == (EXAMPLES / "requests.csv").read_bytes()


def test_examples_use_what_is_public() -> None:
    """Names that docs/api.md has, and nothing of the modules behind them."""
    api = (ROOT / "docs" / "api.md").read_text()
    for *_, name in SHOWN:
        for module, names in re.findall(
            r"^from (sim[\w.]*) import (.*)$", (EXAMPLES / f"{name}.py").read_text(), re.M
        ):
            assert module in ("sim", "sim.points"), name
            for used in names.split(", "):
                assert re.search(rf"`(sim\.points\.)?{used}[`(]", api), used
