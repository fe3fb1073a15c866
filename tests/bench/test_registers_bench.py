"""The registers of the cores, alone, under cocotb; what runs is :mod:`tests.bench.registers_in_simulator`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rtl.registers import RegisterFile
from tests.bench.runner import CocotbBuild, build

MODULE = "tests.bench.registers_in_simulator"
EVENT_BITS = 60
"""So many events of a cycle that counters are soon full."""


def registers() -> RegisterFile:
    """Return registers with all that a layer can have."""
    most = (1 << EVENT_BITS) - 1
    return RegisterFile(most, scales=True, flips=most)


def run(
    rtl: CocotbBuild, seed: int, *, statics: Mapping[str, int] | None = None, power_up: int | None = None
) -> list[str]:
    """Run random inputs; return what ran. Parameters as of :func:`tests.bench.test_axi_bench.run`."""
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
    job = (seed, EVENT_BITS, dict(statics or {}))
    seed = seed if power_up is None else power_up
    return rtl.run_module(MODULE, job, seed=seed, coverage=coverage)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_registers(seed):
    print(f"seed {seed}")
    assert run(build("registers", registers, config=EVENT_BITS), seed)
