"""The checker of a channel's commands: it finds a planted violation of each rule, and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.dram.checker import STATE_RULES, Checker
from sim.dram.engine import RefreshMode
from sim.dram.stream import make_checker, pattern_requests, run_requests
from spec.dram import CONSTRAINTS, PROTOCOLS, Command, Constraint, DramSpec, Level, constraints_of
from spec.errors import InputError
from spec.load import load_dram, preset_names

ACT, PRE, PREA, RD, WR, REF, REFB, ACT2, CAS = Command
TO_SCOPE = (PREA, REF)
STANDARDS = preset_names("dram")
ROWS = [
    pytest.param(name, row, before, after, id=f"{name}-{row.name}-{before.name}-{after.name}")
    for name in STANDARDS
    for row in constraints_of(load_dram(name))
    for before in row.preceding
    for after in row.following
]


def broken(
    dram: DramSpec, commands: list[tuple[int, ...]], refresh: RefreshMode = RefreshMode.NONE
) -> list[str]:
    """Return the rules that a log of (tick, command, bank), with row and column where they count, breaks."""
    checker = make_checker(dram, refresh)
    log = np.array([(*one, -1, -1)[:5] for one in commands], dtype=np.int64)
    checker.check(log)
    return [one.rule for one in checker.finish(int(log[-1, 0]))]


def other_place(dram: DramSpec, level: Level) -> tuple[int, int | None]:
    """Return a bank that shares no more than ``level`` with bank 0, and one that does not share that."""
    groups, per_group, scope = dram.bank_groups, dram.banks_per_group, dram.num_banks
    assert groups > 1
    if level is Level.BANK:
        return 0, 1
    if level is Level.BANK_GROUP:
        return 1, per_group
    return per_group, scope if dram.pseudo_channels > 1 else None


@pytest.mark.parametrize(("name", "row", "before", "after"), ROWS)
def test_each_row_of_the_table_is_checked(
    name: str, row: Constraint, before: Command, after: Command
) -> None:
    """One tick too near breaks it, the distance itself does not, nor does a command at another place."""
    dram = load_dram(name)
    protocol = PROTOCOLS[dram.protocol]
    least = (
        protocol.ticks_per_clock * row.clocks(dram.timing) + protocol.width(before) - protocol.width(after)
    )
    here, elsewhere = other_place(dram, row.level)
    start = 1001
    # With a window the first of so many counts; the others lie close behind it.
    first = [(start + number, before, 0) for number in range(row.window)]

    def then(distance: int, bank: int) -> list[str]:
        bank = bank // dram.num_banks * dram.num_banks if after in TO_SCOPE else bank
        log = sorted([*first, (start + distance, after, bank)], key=lambda one: one[0])
        return broken(dram, log)

    assert row.name in then(least - 1, here)
    assert row.name not in then(least, here)
    if elsewhere is not None:
        assert row.name not in then(least - 1, elsewhere)
    if row.window > 1:
        first.pop()
        assert row.name not in then(least - 1, here)


def test_names_tell_rows_apart() -> None:
    for name in STANDARDS:
        names = [row.name for row in constraints_of(load_dram(name))]
        assert len(set(names)) == len(names)
    used = {row.name for name in STANDARDS for row in constraints_of(load_dram(name))}
    assert used == {row.name for row in CONSTRAINTS}


def test_latencies_are_made_of_timings() -> None:
    timing = load_dram("hbm2-2000").timing
    assert Constraint("x", Level.BANK, (ACT,), (RD,), "max(rcd_rd + rp - burst, rc)").clocks(timing) == max(
        timing.rcd_rd + timing.rp - timing.burst, timing.rc
    )
    for latency in ("rc * 2", "min(rc, ras)", "-rc", "3"):
        with pytest.raises(ValueError, match=r"^a latency is made of timings, \+, - and max, not of "):
            Constraint("x", Level.BANK, (ACT,), (RD,), latency).clocks(timing)


# What is no distance in the table.

DDR4, HBM2, HBM3, LPDDR5, DDR5 = (
    load_dram(name) for name in ("ddr4-3200", "hbm2-2000", "hbm3-6400", "lpddr5-6400", "ddr5-4800")
)
REFI, LATE = DDR4.timing.refi, 2 * DDR4.timing.refi
PLANTED = {
    "earlier than the one before": (DDR4, [(5, PRE, 0), (4, PRE, 1)], "commands in order of time"),
    "two in a tick": (DDR4, [(5, ACT, 0, 1), (5, PRE, 4)], "one command at a time on a bus"),
    "behind half a command": (DDR5, [(5, ACT, 0, 1), (6, PRE, 4)], "one command at a time on a bus"),
    "two reads in a tick": (HBM2, [(5, RD, 0, 1, 0), (5, RD, 16, 1, 0)], "one command at a time on a bus"),
    "behind half a row command": (HBM2, [(5, ACT, 0, 1), (6, PRE, 16)], "one command at a time on a bus"),
    "ACT in the second half": (HBM3, [(4, ACT, 0, 1)], "the half of the clock"),
    "RD in the second half": (HBM3, [(4, RD, 0, 1, 0)], "the half of the clock"),
    "REF in the second half": (HBM3, [(4, REF, 0)], "the half of the clock"),
    "PRE of the bank just opened": (HBM3, [(5, ACT, 3, 1), (8, PRE, 3)], "the half of the clock"),
    "PREA behind PRE": (HBM3, [(5, PRE, 3), (6, PREA, 0)], "the half of the clock"),
    "PRE behind PREA": (HBM3, [(5, PREA, 0), (6, PRE, 3)], "the half of the clock"),
    "PRE behind REF": (HBM3, [(5, REF, 16), (6, PRE, 17)], "the half of the clock"),
    "open bank": (DDR4, [(5, ACT, 3, 1), (500, ACT, 3, 1)], "ACT of a closed bank"),
    "never opened": (DDR4, [(5, RD, 3, 1, 0)], "RD and WR in the open row"),
    "another row": (DDR4, [(5, ACT, 3, 1), (50, RD, 3, 2, 0)], "RD and WR in the open row"),
    "closed again": (DDR4, [(5, ACT, 3, 1), (90, PRE, 3), (95, WR, 3, 1, 0)], "RD and WR in the open row"),
    "closed with all": (DDR4, [(5, ACT, 3, 1), (90, PREA, 0), (95, RD, 3, 1, 0)], STATE_RULES[4]),
    "REF of an open bank": (DDR4, [(5, ACT, 3, 1), (500, REF, 0)], "REF of closed banks"),
    "REFpb of an open bank": (HBM2, [(5, ACT, 3, 1), (500, REFB, 3)], "REF of closed banks"),
    "data collides": (DDR4, [(5, RD, 0, 0, 0), (8, RD, 8, 0, 0)], "one burst at a time on the data bus"),
    "data of a write collides": (
        DDR4,
        [(5, RD, 0, 0, 0), (10, WR, 8, 0, 0)],
        "one burst at a time on the data bus",
    ),
    "ACT-2 of another bank": (LPDDR5, [(5, ACT, 0, 1), (6, ACT2, 1)], "ACT-2 behind its ACT-1"),
    "ACT-2 too late": (LPDDR5, [(5, ACT, 0, 1), (14, ACT2, 0)], "ACT-2 behind its ACT-1"),
    "two ACT-1": (LPDDR5, [(5, ACT, 0, 1), (9, ACT, 4, 1)], "ACT-2 behind its ACT-1"),
    "RD before ACT-2": (LPDDR5, [(5, ACT, 0, 1), (9, RD, 0, 1, 0)], "ACT-2 behind its ACT-1"),
    "PRE before ACT-2": (LPDDR5, [(5, ACT, 0, 1), (9, PRE, 0)], "ACT-2 behind its ACT-1"),
    "PREA before ACT-2": (LPDDR5, [(5, ACT, 4, 1), (9, PREA, 0)], "ACT-2 behind its ACT-1"),
    "RD without CAS": (LPDDR5, [(50, RD, 0, 1, 0)], "CAS before RD and WR"),
    "CAS too early": (LPDDR5, [(48, CAS, 0), (50, RD, 0, 1, 0)], "CAS before RD and WR"),
    "the clock has stopped": (
        LPDDR5,
        [(49, CAS, 0), (50, RD, 0, 1, 0), (70, RD, 0, 1, 0)],
        "CAS before RD and WR",
    ),
}  # fmt: skip
SOUND = {
    "one after the other": (DDR4, [(5, ACT, 0, 1), (6, PRE, 4)]),
    "behind a command of two ticks": (DDR5, [(5, ACT, 0, 1), (7, PRE, 4)]),
    "two buses": (HBM2, [(5, ACT, 0, 1), (25, ACT, 4, 1), (25, RD, 0, 1, 0)]),
    "PRE of another bank": (HBM3, [(5, ACT, 3, 1), (8, PRE, 2)]),
    "PRE of the other pseudo-channel": (HBM3, [(5, PREA, 0), (6, PREA, 16)]),
    "PRE in any second half": (HBM3, [(5, ACT, 3, 1), (10, PRE, 2)]),
    "ACT-2 in time": (LPDDR5, [(5, ACT, 0, 1), (13, ACT2, 0)]),
    "other commands before ACT-2": (LPDDR5, [(5, ACT, 0, 1), (7, PRE, 4), (9, ACT2, 0)]),
    "CAS": (LPDDR5, [(5, ACT, 0, 1), (6, ACT2, 0), (49, CAS, 0), (50, RD, 0, 1, 0), (69, RD, 0, 1, 0)]),
}


@pytest.mark.parametrize(("dram", "log", "rule"), PLANTED.values(), ids=PLANTED.keys())
def test_each_other_rule_is_checked(dram: DramSpec, log: list[tuple[int, ...]], rule: str) -> None:
    assert rule in STATE_RULES
    assert rule in broken(dram, log)


def test_each_other_rule_has_a_planted_violation() -> None:
    assert {rule for _, _, rule in PLANTED.values()} | {"refresh in time"} == set(STATE_RULES)


@pytest.mark.parametrize(("dram", "log"), SOUND.values(), ids=SOUND.keys())
def test_a_sound_log_breaks_nothing(dram: DramSpec, log: list[tuple[int, ...]]) -> None:
    assert broken(dram, log) == []


REFRESHES = {
    "in time": ([(REFI, REF, 0), (LATE + 500, REF, 0), (3 * REFI, PREA, 0)], False),
    "under way": ([(REFI, REF, 0), (2 * LATE - REFI - 1, PREA, 0)], False),
    "one is missing": ([(REFI, REF, 0), (3 * REFI, PREA, 0)], True),
    "none": ([(LATE, PREA, 0)], True),
    "too early": ([(REFI - 1, REF, 0)], True),
    "one too many": ([(REFI, REF, 0), (REFI + 700, REF, 0)], True),
    "too late": ([(LATE, REF, 0)], True),
    "one bank": ([(REFI, REFB, 0)], True),
    "a row is opened before": ([(REFI, ACT, 0, 1), (REFI + 100, PRE, 0), (REFI + 200, REF, 0)], True),
    "a row is opened just in time": (
        [(REFI - 1, ACT, 0, 1), (REFI + 100, PRE, 0), (REFI + 200, REF, 0)],
        False,
    ),
}


@pytest.mark.parametrize(("log", "wrong"), REFRESHES.values(), ids=REFRESHES.keys())
def test_refreshes_are_counted(log: list[tuple[int, ...]], wrong: bool) -> None:
    assert ("refresh in time" in broken(DDR4, log, RefreshMode.ALL_BANK)) is wrong


def test_each_pseudo_channel_is_refreshed() -> None:
    refi = HBM2.timing.refi
    both = [(refi, REF, 0), (refi + 1, REF, 16), (2 * refi, PREA, 0)]
    assert broken(HBM2, both, RefreshMode.ALL_BANK) == []
    assert broken(HBM2, [both[0], both[2]], RefreshMode.ALL_BANK) == ["refresh in time"]


def test_banks_are_refreshed_in_turn() -> None:
    step = HBM2.timing.refi_pb
    turns = [(step * (number + 1), REFB, number) for number in range(32)]
    turns.append((step * 33, REFB, 0))
    assert broken(HBM2, turns, RefreshMode.PER_BANK) == []
    swapped = [*turns[:4], (turns[4][0], REFB, 5), *turns[5:]]
    # The bank that is refreshed twice in a row has not recovered, either.
    assert broken(HBM2, swapped, RefreshMode.PER_BANK) == ["tRFCpb", "refresh in time"]
    assert broken(HBM2, [*turns[:9], (step * 19, PREA, 0)], RefreshMode.PER_BANK) == ["refresh in time"]


def test_no_refresh_is_expected_where_there_is_none() -> None:
    assert broken(DDR4, [(REFI, REF, 0)]) == ["refresh in time"]


def test_only_some_standards_refresh_single_banks() -> None:
    message = (
        "refresh: must be all-bank or none for ddr4-3200, whose banks are not refreshed one by one;"
        " not per-bank"
    )
    with pytest.raises(InputError, match=rf"^{message}$"):
        make_checker(DDR4, RefreshMode.PER_BANK)


# Logs of the engine, spoiled.


@pytest.mark.parametrize("name", STANDARDS)
def test_a_spoiled_log_is_seen(name: str) -> None:
    """A command one tick too early, left out, doubled, sent elsewhere."""
    dram = load_dram(name)
    parts: list = []
    run = run_requests(
        dram, pattern_requests(dram, "random", 3000), sinks=(lambda log: parts.append(log.copy()),)
    )
    log = np.concatenate(parts)

    def violations(changed: np.ndarray) -> int:
        checker: Checker = make_checker(dram, RefreshMode.ALL_BANK)
        checker.check(np.ascontiguousarray(changed))
        return sum(one.count for one in checker.finish(run.ticks))

    assert violations(log) == 0
    kinds = log[:, 1]
    for kind in (ACT, RD, PRE, PREA, REF):
        chosen = np.flatnonzero(kinds == kind)[len(kinds[kinds == kind]) // 2]
        without = np.delete(log, chosen, axis=0)
        if kind is not RD:  # a read that is left out is nothing to the DRAM
            assert violations(without) > 0, kind
        assert violations(np.insert(log, chosen, log[chosen], axis=0)) > 0, kind
    # Every read whose ACT came as late as tRCD allows.
    acts = {}
    for place, (tick, kind, bank, _, _) in enumerate(log.tolist()):
        if kind == ACT:
            acts[bank] = (tick, place)
        if kind == RD and bank in acts and place > 200:
            protocol = PROTOCOLS[dram.protocol]
            least = protocol.ticks_per_clock * dram.timing.rcd_rd + protocol.width(ACT) - protocol.width(RD)
            ticks = protocol.ticks_per_clock
            if tick - acts[bank][0] == least + least % ticks:
                early = log.copy()
                early[place, 0] -= ticks
                assert violations(early[np.argsort(early[:, 0], kind="stable")]) > 0
                break
    else:
        pytest.fail("no read as early as it may be")


def test_a_faster_dram_breaks_the_slower_ones_rules() -> None:
    """One timing less in the engine's standard is seen by the checker of the true one."""
    for name, field in (
        ("ddr4-3200", "faw"),
        ("hbm3-6400", "rcd_rd"),
        ("lpddr5-6400", "ppd"),
        ("ddr5-4800", "rfc"),
    ):
        dram = load_dram(name)
        timing = dram.timing
        fast = replace(dram, timing=replace(timing, **{field: getattr(timing, field) - 1}))
        checker = make_checker(dram, RefreshMode.ALL_BANK)
        run = run_requests(fast, pattern_requests(fast, "random", 6000), check=False, sinks=(checker.check,))
        assert [one.rule for one in checker.finish(run.ticks)] != []
