"""The claims of what the benches see: read from the pages that measured it; a goal that is missed is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sim.claims import benches
from sim.claims.benches import benches_link, table_of
from spec.errors import InputError

COVERAGE = """# coverage

| block | scenarios | lines | branches | toggles | corners | seconds | commit |
|---|---|---|---|---|---|---|---|
| a | 3 | 99 of 100 (99.0%) | 1 of 2 (50.0%) | 960 of 1000 (96.0%) | 4 of 4 | 5 | abc |
| b | 3 | 100 of 100 (100.0%) | 2 of 2 (100.0%) | 1000 of 1000 (100.0%) | {corners} of 5 | 5 | def |
"""
MUTATION = """# mutation

| block | mutants | seed | detected | equivalent | neither | score | scenarios | seconds | commit |
|---|---|---|---|---|---|---|---|---|---|
| a | 20 | 1 | 19 | 1 | 0 | 100.0% | 9 | 7 | abc |
| b | 20 | 1 | 18 | 0 | 2 | {score} | 9 | 7 | abc |

| netlist | scenarios | power-ups | agree | seconds | commit |
|---|---|---|---|---|---|
| a | 9 | 3 | yes | 2 | abc |
| layer | 9 | 3 | {agree} | 2 | abc |
"""


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Return what writes both pages with some of their cells."""
    monkeypatch.setattr(benches, "FOLDER", tmp_path)

    def write(corners: int = 5, score: str = "95.0%", agree: str = "yes") -> None:
        (tmp_path / "coverage.md").write_text(COVERAGE.format(corners=corners))
        (tmp_path / "mutation.md").write_text(MUTATION.format(score=score, agree=agree))

    return write


def test_figures_are_those_of_the_pages(pages):
    pages()
    link = benches_link(None)
    assert all(claim.ok for claim in link.claims)
    assert [claim.measured for claim in link.claims] == [
        "9 of 9 (100.0%)",
        "199 of 200 (99.5%)",
        "1,960 of 2,000 (98.0%)",
        "2 of 2",
    ]
    assert link.claims[0].text.endswith("(`docs/coverage.md`, at abc, def)")
    assert link.claims[3].text.endswith("(`docs/mutation.md`, at abc)")
    assert link.tables[0].rows[1] == ("b", "20", "1", "18", "0", "2", "95.0%", "abc")
    assert link.how.endswith("All reach 95%.")


def test_what_is_missed_is_told(pages):
    pages(corners=4, score="90.0%", agree="**NO**")
    link = benches_link(None)
    assert [claim.ok for claim in link.claims] == [False, True, True, False]
    assert link.how.endswith("The goal of 95% is missed by b 90.0% (seed 1).")


def test_a_page_that_has_not_the_table_is_refused(pages, tmp_path):
    pages()
    with pytest.raises(
        InputError, match=f"^{re.escape(str(tmp_path / 'coverage.md'))}: .*has no such table$"
    ):
        table_of(tmp_path / "coverage.md", "netlist")
    (tmp_path / "mutation.md").write_text("| block | a |\n|---|---|\n| 1 |\n")
    with pytest.raises(InputError, match=r"has 1 cells in a row of 2$"):
        table_of(tmp_path / "mutation.md", "block")
    with pytest.raises(InputError, match=r"cannot be read: No such file or directory$"):
        table_of(Path(tmp_path / "none.md"), "block")
