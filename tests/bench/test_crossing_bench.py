"""A crossing between two clocks, under cocotb; what runs is :mod:`tests.bench.crossing_in_simulator`."""

from __future__ import annotations

import pytest

from rtl.crossing import StreamCrossing
from tests.bench.runner import BenchError, LoggedBench, build
from tests.test_crossing import Broken

MODULE = "tests.bench.crossing_in_simulator"
DEPTH, WIDTH = 8, 16


def crossing(kind: type[StreamCrossing] = StreamCrossing) -> StreamCrossing:
    """Return a crossing from the clock of the ports to that inside."""
    made = kind(WIDTH, DEPTH, from_domain="bus", to_domain="sync")
    made.clock_domains = ("bus",)
    return made


BENCH = LoggedBench(MODULE, (DEPTH, WIDTH))
run, run_logged = BENCH.run, BENCH.run_logged


@pytest.mark.long
@pytest.mark.parametrize("seed", [1])
def test_crossing(seed):
    print(f"seed {seed}")
    done = run(build("crossing", crossing, config=(DEPTH, WIDTH)), seed)
    print(*done, sep="\n")
    assert done


@pytest.mark.long
def test_a_crossing_that_loses_beats_is_seen():
    with pytest.raises(BenchError, match=r"seed 1, clocks .*, edge \d+: ready is not True"):
        run(build("crossing", lambda: crossing(Broken), config=(DEPTH, WIDTH, "broken")), 1)
