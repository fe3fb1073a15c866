"""The reader of coverage.dat, and cover points that a run can miss."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from sim.rtlsim import RunSpec, Source, Trace
from tests.bench.scenarios import Scenario
from tests.coverage.dat import read
from tests.coverage.points import POINTS, streak, together, waits
from tests.coverage.run import Covered, page

DAT = (
    "# SystemC::Coverage-3\n"
    "C '\x01f\x02a.v\x01l\x027\x01n\x023\x01page\x02v_line/top\x01o\x02if\x01h\x02top.x' 0\n"
    "C '\x01f\x02a.v\x01l\x027\x01n\x023\x01page\x02v_line/top\x01o\x02if\x01h\x02top.y' 5\n"
    "C '\x01f\x02a.v\x01l\x029\x01n\x023\x01page\x02v_toggle/top\x01o\x02q[0]:0->1\x01h\x02top.x' 0\n"
)


def test_instances_of_a_module_are_one_point(tmp_path):
    (tmp_path / "coverage.dat").write_text(DAT)
    counts = read([tmp_path / "coverage.dat"])
    assert (counts["line"].hit, counts["line"].total) == (1, 1)
    assert counts["toggle"].missed == ["top:9:3:q[0]:0->1"]


def result_of(**streams) -> SimpleNamespace:
    return SimpleNamespace(
        streams={
            name: Trace(np.array(cycles, dtype=np.int64), np.zeros((len(cycles), 1), dtype=np.uint64))
            for name, cycles in streams.items()
        }
    )


def test_points_tell_runs_apart():
    run = Scenario("any", RunSpec(sources={"i": Source([0, 0, 0], [0, 1, 5])}))
    assert not waits("i")(run, result_of(i=[0, 1, 5]))
    assert waits("i")(run, result_of(i=[0, 1, 6]))
    assert not waits("i", 2)(run, result_of(i=[0, 1, 6]))
    assert together("i", "o")(run, result_of(i=[0, 1, 5], o=[5]))
    assert not together("i", "o")(run, result_of(i=[0, 1, 5], o=[2]))
    assert streak("i", 2)(run, result_of(i=[0, 1, 5]))
    assert not streak("i", 3)(run, result_of(i=[0, 1, 5]))


def test_page_counts_what_was_met():
    text = page([Covered("dispatch", 3, {}, {"a": 2, "b": 0}, 1.0)], "abc")
    assert "| dispatch | 3 |" in text and "| 1 of 2 | 1 | abc |" in text and "a (2); b (0)" in text


def test_every_block_has_a_reset_among_its_corners():
    assert all("reset in mid-work" in points for points in POINTS.values())
