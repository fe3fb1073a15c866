"""The measured part of ``docs/synthesis.md``: its designs are some, its rows say what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import sim.synth_page
from sim.cli import main
from sim.marked import marked
from sim.synth_page import GATES, MARK, OPERANDS, PAPERS, PICTURE, TABLES, draw, write_page

PAGE = Path(__file__).parent.parent / "docs" / "synthesis.md"
DESIGNS = [design for table in TABLES for design in table.designs]
ROUTED = {
    "lut": 10, "ff": 20, "dsp": 4, "bram": 1, "fmax_mhz": 51.26, "fmax_of_seeds": [50.0, 51.26, 53.0],
    "critical": {
        "source": "core.core.product.s3_sum_0_TRELLIS_FF_Q_1",
        "sink": "core.core.topk.best$DPRAM_COMB3",
        "delay_ns": 19.51, "logic_ns": 6.84, "cells": 9,
    },
    "exceeded": [],
}  # fmt: skip
COUNTED = {**ROUTED, "fmax_mhz": None, "fmax_of_seeds": [], "critical": None}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_declared_design_is_one(design, monkeypatch, capsys):
    """Up to the point where it would be synthesised."""
    monkeypatch.setattr("sim.synth.export_block", lambda *_, **__: (PAGE.parent, "name"))
    monkeypatch.setattr("sim.synth.export_channel", lambda *_, **__: (PAGE.parent, "name"))

    def reached(*_, **options):
        raise ArithmeticError(options["family"])

    monkeypatch.setattr("sim.synth.synthesise", reached)
    with pytest.raises(ArithmeticError, match=r"^(ecp5|xc7)$"):
        main(["synth", *design.split(), "--json"])
    assert capsys.readouterr().out == ""


def test_the_page_says_what_was_measured(monkeypatch, tmp_path):
    large = {**COUNTED, "exceeded": ["300 of 156 DSP"]}
    found = {DESIGNS[0]: ROUTED, DESIGNS[1]: large}
    monkeypatch.setattr(sim.synth_page, "_run", lambda design: found.get(design, COUNTED))
    monkeypatch.setattr(sim.synth_page, "commit_of_sources", lambda: "abc")
    page = tmp_path / "page.md"
    page.write_text(f"above\n<!-- {MARK} -->\nold\n<!-- /{MARK} -->\nbelow\n")
    write_page(page)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `expertbank")]
    assert rows[0] == (
        f"| `expertbank synth {DESIGNS[0]}` | 10 | 20 | 4 | 1 | 51.3 (median of 50.0, 51.3, 53.0) |"
        " `product.s3_sum_0` to `topk.best`, 19.5 ns, 6.8 of them logic | abc |"
    )
    assert rows[1].endswith("| 10 | 20 | 4 | 1 | - | not routed: 300 of 156 DSP | abc |")
    assert len(rows) == len(DESIGNS)
    # 512 operations of 16 x 16 MACs over 4 DSPs; UbiMoE's throughput over DSPs and clock.
    assert "| int8 x int8 | 512 | 4 | 128.000 | this page |" in text
    assert "| UbiMoE, ZCU102 | W16A32 | 323 | 1850 | 0.175 |" in text
    assert text.count(" DSPs |") == 1
    assert all(f"| {name} | " in text for name, *_ in PAPERS)
    assert f"]({PICTURE})" in text
    assert (tmp_path / PICTURE).is_file()


def test_some_rows_are_measured_anew_and_the_others_stay(monkeypatch, tmp_path, capsys):
    """As they are, with the commit of their time; the sums over rows are of both."""
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {MARK} -->\n<!-- /{MARK} -->\n")
    monkeypatch.setattr(sim.synth_page, "_run", lambda _design: ROUTED)
    monkeypatch.setattr(sim.synth_page, "commit_of_sources", lambda: "old")
    write_page(page)
    before = page.read_text().splitlines()
    ran = []

    def run(design):
        ran.append(design)
        return {**COUNTED, "dsp": 8}

    monkeypatch.setattr(sim.synth_page, "_run", run)
    monkeypatch.setattr(sim.synth_page, "commit_of_sources", lambda: "new")
    assert main(["synth", "--page", str(page), "--only", "multiplier=dual", "--only", "hbm2-pim"]) == 0
    assert sorted(ran) == sorted(one for one in DESIGNS if "multiplier=dual" in one or "hbm2-pim" in one)
    after = page.read_text().splitlines()
    assert len(before) == len(after)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [line for line in changed if "| `expertbank" in line] == [
        f"| `expertbank synth {design}` | 10 | 20 | 8 | 1 | - |  | new |"
        for design in DESIGNS
        if design in ran
    ]
    densities = [line for line in changed if "this page" in line]
    assert len(changed) == len(ran) + len(densities)
    assert len(densities) == 2 * len(OPERANDS)
    assert all("`multiplier = dual`" in line and "| 8 | 64.000 |" in line for line in densities)
    assert main(["synth", "--page", str(page), "--only", "nowhere"]) == 2
    assert capsys.readouterr().err.endswith("expertbank: only: is in no row's options: 'nowhere'\n")
    assert page.read_text().splitlines() == after
    # A row that is not understood is not lost: nothing is written.
    page.write_text("\n".join(after).replace(" | old |", " |") + "\n")
    kept = page.read_text()
    assert main(["synth", "--page", str(page), "--only", "hbm2-pim"]) == 2
    assert "page: must have the columns that --page writes, not '| `expertbank" in capsys.readouterr().err
    assert page.read_text() == kept
    assert main(["synth", "--design", "gate", "--only", "gate"]) == 2
    assert capsys.readouterr().err == "expertbank: only: is for --page\n"


def test_an_interrupted_page_says_what_it_lacks(monkeypatch, tmp_path):
    def run(design):
        if "--no-route" not in design and "xc7" not in design:
            raise KeyboardInterrupt
        return COUNTED

    monkeypatch.setattr(sim.synth_page, "_run", run)
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {MARK} -->\n<!-- /{MARK} -->\n")
    with pytest.raises(KeyboardInterrupt):
        write_page(page)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `expertbank")]
    assert len(rows) == len(DESIGNS)
    counted = ["--no-route" in design or "xc7" in design for design in DESIGNS]
    assert [not row.endswith("| not run yet | - |") for row in rows] == counted
    assert 0 < sum(counted) < len(DESIGNS)


def test_a_page_without_marks_is_refused_before_anything_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sim.synth_page, "_run", lambda design: pytest.fail("it ran"))
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    assert main(["synth", "--page", str(page)]) == 2
    assert capsys.readouterr().err == (
        f"expertbank: {page}: must have the marks <!-- {MARK} --> and <!-- /{MARK} --> once, in order\n"
    )
    assert main(["synth", "--page", str(page), "--seeds", "2"]) == 2
    assert capsys.readouterr().err == "expertbank: page: takes no other option but --only\n"


def test_the_committed_page_has_a_row_for_each_design():
    _, between, _ = marked(PAGE.read_text(), MARK, file=PAGE)
    rows = [line.split("`")[1] for line in between.splitlines() if line.startswith("| `expertbank")]
    assert rows == [f"expertbank synth {design}" for design in DESIGNS]


CURVE = re.compile(
    r'<path d="(M [^"]*)" clip-path="[^"]*" style="fill: none; stroke: #\w+; stroke-width: 1\.5'
)
POINT = re.compile(r"[ML] ([\d.-]+) ([\d.-]+)")
DRAWN_WITHIN = 0.1
"""Points of 1/72 inch: how exactly a curve is drawn."""


def committed_gates() -> dict[str, dict[str, int]]:
    """Return LUT4 and flip-flops of the gates' rows on the committed page."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `expertbank")]
    found = {row[0].split("`")[1].removeprefix("expertbank synth "): row for row in rows}
    return {design: {"lut": int(found[design][1]), "ff": int(found[design][2])} for design in GATES}


def check_curves(svg: str, gates: dict[str, dict[str, int]]) -> None:
    """Hold a picture's curves against rows: over experts and over choices, first LUT4, then flip-flops."""
    sides = [
        [(int(re.search(rf"--{option} (\d+)", design)[1]), design) for design in gates if fixed in design]
        for option, fixed in (("experts", "--top-k 2"), ("top-k", "--experts 64"))
    ]
    curves = [np.array(POINT.findall(path), float) for path in CURVE.findall(svg)]
    assert len(curves) == 4
    wanted = [
        [(n, gates[design][kind]) for n, design in sorted(side)] for side in sides for kind in ("lut", "ff")
    ]
    values = np.array([cells for curve in wanted for _, cells in curve], float)
    heights = np.concatenate(curves)[:, 1]
    scale, zero = np.polyfit(values, heights, 1)
    assert scale < 0, "more cells are drawn lower"
    assert np.abs(scale * values + zero - heights).max() < DRAWN_WITHIN, "cells"
    for curve, points in zip(curves, wanted, strict=True):
        numbers = np.log2([number for number, _ in points])
        scale, zero = np.polyfit(numbers, curve[:, 0], 1)
        assert scale > 0
        assert np.abs(scale * numbers + zero - curve[:, 0]).max() < DRAWN_WITHIN, "numbers"


def test_the_picture_of_the_gates_is_of_the_pages_rows(tmp_path):
    """The committed one, and one of other rows; the page shows it."""
    gates = committed_gates()
    check_curves((PAGE.parent / PICTURE).read_text(), gates)
    assert f"]({PICTURE})\n" in PAGE.read_text()
    others = {design: {"lut": 100 * n * n + 7, "ff": 50 + 9 * n**3} for n, design in enumerate(GATES)}
    draw(others, tmp_path / PICTURE)
    text = (tmp_path / PICTURE).read_text()
    check_curves(text, others)
    draw(others, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
    for number, kind in ((2, "lut"), (5, "ff")):
        wrong = {**others, GATES[number]: {**others[GATES[number]], kind: 900}}
        with pytest.raises(AssertionError, match="cells"):
            check_curves(text, wrong)
