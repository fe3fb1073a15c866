"""The tops with AXI ports under somebody else's masters, sinks and memory, with pauses on every channel.

That they held something up on every one is asserted at the end of a run. What runs is in
:mod:`tests.bench.axi_in_simulator`; here is which, how often, on which builds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtl.axi.top import COUNT_BITS
from sim.dram_check import ACT, PRE, PRE_ALL, REF
from sim.rtlsim import top_component
from spec.banks import BankGeometry
from spec.design import DeepBlock
from spec.registers import Top
from tests.bench.axi_cores import CORES, KINDS, Kind
from tests.bench.axi_pim import SinceReset
from tests.bench.runner import BenchError, CocotbBuild, build, build_exported

MODULE = "tests.bench.axi_in_simulator"


ONE_CLOCK = (10_000, 10_000)
"""Periods of the clocks, inside and of the ports, in ps; whole even ns, as the simulators are built."""
OFTEN = (Top.GATE,)
"""Of which the first seed is not in the long run alone: it reads as the layers do, whose builds and runs take
several times as long."""
TWO_CLOCKS = [(6_000, 14_000), (14_000, 6_000), (34_000, 6_000), (6_000, 38_000), (100_000, 102_000)]


FEW_BITS = 10
"""With which a top's counts begin anew in a bench: no place of theirs is too far for it."""


def top(
    name: Top, *, two_clocks: bool = False, deep: bool = False, count_bits: int = COUNT_BITS
) -> CocotbBuild:
    model, design, block = CORES[name]
    if deep:
        design = replace(design, deep=tuple(DeepBlock))
    component = top_component(model, design, block, two_clocks=two_clocks, count_bits=count_bits)
    stem = f"{name}{'_deep' * deep}_axi{'_two_clocks' * two_clocks}"
    return build(stem, component, config=(model, design, block, two_clocks, count_bits))


def run(
    rtl: CocotbBuild,
    name: Top,
    seed: int,
    kind: Kind = Kind.USUAL,
    *,
    periods: tuple[int, int] = ONE_CLOCK,
    statics: Mapping[str, int] | None = None,
    power_up: int | None = None,
    count_bits: int = COUNT_BITS,
) -> list[str]:
    """Run the scenarios of a kind; return which ran, with the seeds of their pauses.

    ``statics``: what ports hold that the bench does not know; ``power_up``: another seed than ``seed`` of
    what registers hold before the first reset; ``count_bits``: how far the top counts.
    """
    job = (name, seed, kind, periods, dict(statics or {}), False, count_bits)
    done, _ = rtl.run_module(MODULE, job, seed=seed if power_up is None else power_up)
    return done


def run_logged(
    rtl: CocotbBuild, name: Top, seed: int, kind: Kind, coverage: Path
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Run as :func:`run`; return the log of the ports, too, and leave Verilator's counts in ``coverage``."""
    job = (name, seed, kind, ONE_CLOCK, {}, True, COUNT_BITS)
    return rtl.run_module(MODULE, job, seed=seed, coverage=coverage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=[] if seed == 1 and name in OFTEN else pytest.mark.long)
        for name in CORES
        for seed in range(1, 20)
    ],
)
def test_top(name, seed):
    """Prints the seed of what fails, and every scenario that ran with the seeds of its pauses."""
    print(f"{name}, seed {seed}")
    print(run(top(name), name, seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", [Top.GATE, Top.DISPATCH, Top.FPGA])
def test_top_with_deep_pipelines(name, seed):
    """The same from outside."""
    print(f"{name}, deep, seed {seed}")
    print(run(top(name, deep=True), name, seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 20))
@pytest.mark.parametrize("name", [name for name in CORES if Kind.MEMORY_GOES_ON in KINDS[name]])
def test_top_is_reset_while_the_memory_goes_on(name, seed):
    print(f"{name}, seed {seed}")
    print(run(top(name), name, seed, Kind.MEMORY_GOES_ON))


@pytest.mark.long
@pytest.mark.parametrize("periods", TWO_CLOCKS)
@pytest.mark.parametrize("name", [Top.GATE, Top.DISPATCH, Top.FPGA, Top.PIM])
def test_top_with_ports_on_another_clock(name, periods):
    seed = sum(periods)
    print(f"{name}, periods {periods} ps, seed {seed}")
    rtl = top(name, two_clocks=True)
    done = run(rtl, name, seed, periods=periods, power_up=1)
    if Kind.MEMORY_GOES_ON in KINDS[name]:
        done += run(rtl, name, seed, Kind.MEMORY_GOES_ON, periods=periods, power_up=1)
    print(done)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_no_burst_is_answered_rightly(seed):
    """Of the array, which reads while tokens are inside."""
    print(f"seed {seed}")
    print(run(top(Top.FPGA), Top.FPGA, seed, Kind.EVERY_BURST))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", [name for name in CORES if Kind.MANY in KINDS[name]])
@pytest.mark.parametrize("count_bits", [COUNT_BITS, FEW_BITS])
def test_packets_of_very_many_beats(name, seed, count_bits):
    print(f"{name}, seed {seed}, {count_bits} bits")
    print(run(top(name, count_bits=count_bits), name, seed, Kind.MANY, count_bits=count_bits))


BEFORE = [(401, REF), (500, ACT)]
"""Row commands before a recovery: refreshes fall due every 400 cycles, and a bank is open."""
ACROSS = {
    "goes on": ([(796, PRE_ALL), (801, REF), (830, ACT), (860, PRE), (1201, REF)], []),
    "the refresh timer began anew": (
        [(596, PRE_ALL), (931, REF)],
        [
            "refresh in time: 130 cycles before cycle 931, at least 0",
            "refreshes in cycles [931] that are not due, none in [801, 1201]",
        ],
    ),
    "the open bank is forgotten at an ACT": (
        [(600, ACT), (796, PRE_ALL), (801, REF), (1201, REF)],
        ["ACT of a closed bank, bank 0 of side 0: 0 cycles before cycle 600, at least 0"],
    ),
    "the open bank is forgotten at a refresh": (
        [(801, REF), (1201, REF)],
        ["REF of closed banks, bank 0 of side 0: 0 cycles before cycle 801, at least 0"],
    ),
    "a refresh too many": (
        [(596, PRE_ALL), (700, REF), (801, REF), (1201, REF)],
        ["refreshes in cycles [700] that are not due, none in []"],
    ),
    "a refresh behind the last command is left out": (
        [(796, PRE_ALL), (801, REF)],
        ["refreshes in cycles [] that are not due, none in [1201]"],
    ),
}


@pytest.mark.parametrize("behind", ACROSS)
def test_dram_rules_hold_across_a_recovery(behind):
    model, design, _ = CORES[Top.PIM]
    rows, wanted = ACROSS[behind]
    # Of bank 0, row 0 a command is its kind.
    trace = SinceReset([BEFORE + rows], [[]], cycles=1300, recoveries=[520])
    banks = BankGeometry.unplaced(model, design)
    assert trace.violations(banks) == [f"channel 0: {text}" for text in wanted]
    assert trace.recovered_while_open(banks) == 1


BROKEN = {
    "a read waits for all writes": (
        "can_write & ~(can_read & read_next)",
        "can_write",
        "a read waits, and another write is answered",
    ),
    "a write waits for all reads": (
        "can_read & read_next",
        "can_read",
        "a write waits, and another read is answered",
    ),
    "data of a write is taken when it is valid no more": (
        "wdata_next = wdata;",
        "wdata_next = s_axi_wdata;",
        "works",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("bug", BROKEN)
def test_a_port_that_is_broken_is_seen(bug, tmp_path):
    """Turns are watched, and idle channels carry noise."""
    old, new, message = BROKEN[bug]
    folder = shutil.copytree(top(Top.DISPATCH).directory, tmp_path / "wrong")
    verilog = folder / "eb_dispatch_axi.v"
    text = verilog.read_text()
    assert text.count(old) == 1, f"{old!r} must be in the Verilog once"
    verilog.write_text(text.replace(old, new))
    with pytest.raises(BenchError, match=message):
        run(build_exported(folder, "dispatch_axi", root=tmp_path), Top.DISPATCH, 1)
