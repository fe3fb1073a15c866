"""Worked examples as a new user runs them: what they print, write and read is what docs/examples.md shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "examples.md").read_text()
SHOWN = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```\n\n!\[[^\]]*\]\(examples/(\w+)\.svg\)", PAGE, re.S)
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")


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
