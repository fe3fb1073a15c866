"""The checker of command traces: silent on the model's, and it finds every planted violation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.dram_check import (
    ACT,
    MAC,
    PRE,
    PRE_ALL,
    READ,
    REF,
    WRITE,
    Commands,
    check_commands,
    refreshes_due,
    tiles_needed,
    tiles_read,
)
from spec.design import BankMode, PimDesign, RegisterPath
from tests.test_pim import DRAM, PIM, config_of

ALL = PIM
SINGLE = replace(PIM, bank_mode=BankMode.SINGLE_BANK)
SHARED = replace(PIM, register_path=RegisterPath.SHARED)
T = DRAM.timing


def trace(rows, columns=()) -> Commands:
    return Commands(
        np.array(rows, dtype=np.int64).reshape(-1, 4), np.array(columns, dtype=np.int64).reshape(-1, 4)
    )


def rules(pim: PimDesign, rows, columns=(), **options) -> set[str]:
    found = check_commands(pim, trace(rows, columns), **options)
    return {violation.rule.split(",")[0] for violation in found}


def row(cycle, kind, side=0, unit=0):
    return (cycle, kind, side, unit)


ONE_UNIT = replace(PIM, banks_per_unit=4, act_lanes=1)
"""Each ACT opens one bank; no flag exempts it."""
PLANTED = {
    "tRCD": (ALL, [row(0, ACT)], [row(T.rcd_rd - 1, MAC)]),
    "tRAS": (ALL, [row(0, ACT), row(T.ras - 1, PRE)], []),
    "tRC": (ALL, [row(0, ACT), row(T.ras, PRE), row(T.rc - 1, ACT)], []),
    "tRP": (ALL, [row(0, ACT), row(20, PRE), row(20 + T.rp - 1, ACT)], []),
    "tRTP": (ALL, [row(0, ACT), row(20 + T.rtp - 1, PRE)], [row(20, MAC)]),
    "tRRD_S": (SINGLE, [row(0, ACT), row(T.rrd_s - 1, ACT, 0, 1)], []),
    "tRRD_L": (SINGLE, [row(0, ACT), row(T.rrd_l - 1, ACT, 0, 2)], []),
    "tFAW": (
        replace(SINGLE, dram=replace(DRAM, banks_per_group=4, burst_bytes=16)),
        [row(n * T.rrd_s + (n == 4), ACT, 0, n) for n in range(5)],
        [],
    ),
    "tCCD_S": (SINGLE, [row(0, ACT), row(2, ACT, 0, 1)], [row(20, MAC), row(20 + T.ccd_s - 1, MAC, 0, 1)]),
    "tCCD_L": (ALL, [row(0, ACT)], [row(20, MAC), row(20 + T.ccd_l - 1, MAC)]),
    "tWTR_L": (SHARED, [], [row(0, WRITE), row(T.cwl + T.burst + T.wtr_l - 1, READ)]),
    "read to write": (SHARED, [], [row(0, READ), row(T.cl + T.burst + T.rtw_gap - T.cwl - 1, WRITE)]),
    "tRFC": (ALL, [row(0, REF), row(T.rfc - 1, ACT)], []),
    "tRP before REF": (ALL, [row(0, ACT), row(20, PRE_ALL), row(20 + T.rp - 1, REF)], []),
    "refresh in time": (ALL, [row(0, REF), row(T.refi + 1, REF)], []),
    "MAC in an open row": (ALL, [row(0, ACT), row(20, PRE)], [row(30, MAC)]),
    "ACT of a closed bank": (ALL, [row(0, ACT), row(30, ACT)], []),
    "REF of closed banks": (ALL, [row(0, ACT), row(30, REF)], []),
    "one command per cycle on the row bus": (
        replace(ALL, banks_per_unit=2, act_lanes=1),
        [row(0, ACT), row(0, ACT, 1)],
        [],
    ),
    "one command per cycle on the column bus": (ALL, [], [row(0, WRITE), row(0, READ)]),
}


def test_tiles_are_told_from_rows_and_columns():
    """Tile = (row * sides + side) * bursts of a row + column; -1 where there is no one open row."""
    banks = config_of(replace(PIM, banks_per_unit=2)).banks
    assert banks.bursts_per_row == 4
    acts = [(0, ACT, 0, 0, 3), (1, ACT, 1, 0, 5), (40, ACT, 0, 0, 7)]
    macs = [(20, MAC, 0, 0, 1), (24, MAC, 1, 0, 2), (60, MAC, 0, 0, 0), (64, MAC, 1, 0, 3)]
    assert tiles_read(banks, wide(acts, macs)).tolist() == [25, 46, 56, 47]
    assert tiles_read(banks, wide(acts[1:2], macs)).tolist() == [-1, 46, -1, 47]
    singly = config_of(replace(PIM, dram=replace(DRAM, all_bank_exempt=False))).banks
    series = [(unit, ACT, 0, unit, 6) for unit in range(4)]
    mac = [(20, MAC, 0, 0, 2)]
    assert tiles_read(singly, wide(series, mac)).tolist() == [26]
    assert tiles_read(singly, wide([*series[:3], (3, ACT, 0, 3, 5)], mac)).tolist() == [-1]
    assert tiles_read(singly, wide(series[:3], mac)).tolist() == [-1]
    single = config_of(SINGLE).banks
    mixed = [(unit, ACT, 0, unit, unit) for unit in range(4)]
    steps = [(20 + 2 * unit, MAC, 0, unit, 1) for unit in range(4)]
    assert tiles_read(single, wide(mixed, steps)).tolist() == [1, 5, 9, 13]


def wide(rows, columns) -> Commands:
    """Return commands with addresses."""
    return Commands(np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))


def test_tiles_that_jobs_need():
    """Once for each group of tokens, in a job's order; one unit after the other where they compute so."""
    banks = config_of(PIM, d_model=4, d_hidden=4).banks
    count = banks.kind(0).num_tiles
    one, other = np.arange(count), banks.bursts_per_row * 5 + np.arange(count)
    experts, last = np.array([0, 0, 0, 1]), np.array([False, False, True, True])
    bases = {0: 0, 1: 5}
    needed = tiles_needed(banks, bases, experts, last)
    assert needed.tolist() == [*one, *one, *other]
    single = config_of(SINGLE, d_model=4, d_hidden=4).banks
    assert tiles_needed(single, bases, experts, last).tolist() == np.repeat(needed, 4).tolist()


def test_the_banks_of_a_single_unit_are_opened_one_by_one():
    acts = [row(0, ACT), row(T.rrd_s - 1, ACT, 1)]
    assert rules(ONE_UNIT, acts) == {"tRRD_S"}
    assert rules(replace(ONE_UNIT, banks_per_unit=2), acts) == set()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    pim, rows, columns = PLANTED[name]
    assert name in rules(pim, rows, columns)


@pytest.mark.parametrize("name", sorted(set(PLANTED) & {"tRCD", "tRP", "tRTP", "tRRD_S", "tCCD_S", "tCCD_L"}))
def test_the_least_distance_is_legal(name: str) -> None:
    """One cycle more, and the rule holds: the checker is not stricter than the standard."""
    pim, rows, columns = PLANTED[name]
    later = [*columns[:-1], (columns[-1][0] + 1, *columns[-1][1:])] if len(columns) else []
    if name in ("tRCD", "tCCD_S", "tCCD_L"):
        assert name not in rules(pim, rows, later)
    else:
        last = rows[-1]
        assert name not in rules(pim, [*rows[:-1], (last[0] + 1, *last[1:])], columns)


def test_a_missing_refresh_is_found() -> None:
    assert "refresh in time" in rules(ALL, [row(0, REF), row(3 * T.refi, ACT)])
    assert "refresh in time" in rules(ALL, [row(50, ACT)], first_refresh=10)
    assert not rules(ALL, [row(50, ACT)], first_refresh=60)


def test_a_trace_without_any_refresh_is_found() -> None:
    """The first one is due a refresh interval after the first command, if nobody says when."""
    late = [row(0, ACT), row(100, PRE), row(T.refi, REF), row(2 * T.refi, ACT)]
    assert "refresh in time" in rules(ALL, [row(0, ACT), row(T.refi + 1, PRE)])
    assert "refresh in time" in rules(ALL, [*late[:2], row(T.refi + 1, REF)])
    assert "refresh in time" not in rules(ALL, late)


def test_refreshes_that_fall_due() -> None:
    for first in range(-2 * T.refi, T.refi):
        due = refreshes_due(ALL, first, 3 * T.refi)
        assert due.tolist() == [n for n in range(3 * T.refi) if n >= first and (n - first) % T.refi == 0]
    assert not len(refreshes_due(replace(ALL, refresh=False), 0, 1000))


def test_commands_are_counted() -> None:
    commands = trace([row(0, ACT), row(30, PRE_ALL), row(50, REF)], [row(9, MAC), row(13, MAC)])
    counts = {"ACT": 1, "PRE": 0, "PREA": 1, "REF": 1, "MAC": 2, "WR": 0, "RD": 0}
    assert commands.counts() == commands.before(51).counts() == counts
    assert commands.before(50).counts() == counts | {"REF": 0}
    assert commands.before(13).counts() == counts | {"PREA": 0, "REF": 0, "MAC": 1}
