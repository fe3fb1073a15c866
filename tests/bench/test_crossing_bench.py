"""A crossing between two clocks, under cocotb; what runs is :mod:`tests.bench.crossing_in_simulator`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rtl.crossing import StreamCrossing
from tests.bench.runner import BenchError, CocotbBuild, build
from tests.test_crossing import Broken

MODULE = "tests.bench.crossing_in_simulator"
DEPTH, WIDTH = 8, 16


def crossing(kind: type[StreamCrossing] = StreamCrossing) -> StreamCrossing:
    """Return a crossing from the clock of the ports to that inside."""
    made = kind(WIDTH, DEPTH, from_domain="bus", to_domain="sync")
    made.clock_domains = ("bus",)
    return made


def run(
    rtl: CocotbBuild, seed: int, *, statics: Mapping[str, int] | None = None, power_up: int | None = None
) -> list[str]:
    """Run all clocks and traffic; return what ran. Parameters: :func:`tests.bench.test_axi_bench.run`."""
    done, _ = run_logged(rtl, seed, statics=statics, power_up=power_up)
    return done


def run_logged(
    rtl: CocotbBuild,
    seed: int,
    *,
    statics: Mapping[str, int] | None = None,
    power_up: int | None = None,
    coverage: Path | None = None,
) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """Run as :func:`run`; return the logs of the ports, too, and leave Verilator's counts in ``coverage``."""
    job = (seed, DEPTH, WIDTH, dict(statics or {}))
    seed = seed if power_up is None else power_up
    return rtl.run_module(MODULE, job, seed=seed, coverage=coverage)


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
