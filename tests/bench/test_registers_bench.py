"""The registers of the cores, alone, under cocotb; what runs is :mod:`tests.bench.registers_in_simulator`."""

from __future__ import annotations

import pytest

from rtl.registers import RegisterFile
from tests.bench.runner import LoggedBench, build

MODULE = "tests.bench.registers_in_simulator"
EVENT_BITS = 60
"""So many events of a cycle that counters are soon full."""


def registers() -> RegisterFile:
    """Return registers with all that a layer can have."""
    most = (1 << EVENT_BITS) - 1
    return RegisterFile(most, scales=True, flips=most)


BENCH = LoggedBench(MODULE, (EVENT_BITS,))
run, run_logged = BENCH.run, BENCH.run_logged


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_registers(seed):
    print(f"seed {seed}")
    assert run(build("registers", registers, config=EVENT_BITS), seed)
