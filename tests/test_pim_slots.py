"""Where a channel's time went: all of it is told, and by the right name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.cli import main
from sim.commands import reports
from sim.pim import ChannelCycles, ChannelShape, Column, channel_cycles
from sim.pim_slots import JOB_SEEN, SLOTS, ChannelTrace, mac_slots
from spec.banks import CommandTiming
from spec.design import RegisterPath
from spec.load import load_design
from tests.test_pim import DRAM, PIM, config_of, full_size, random_case

DATA = Path(__file__).parent / "data"
TINY_PIM = Path(__file__).parent / "tiny_pim.toml"
LARGE = {"d_model": 64, "d_hidden": 32}


def run(config, jobs: list[int], *, late: int = 0) -> tuple[ChannelCycles, dict[str, int]]:
    """Return a channel's run of jobs of expert 0 with so many tokens, and where its time went.

    ``late``: cycles by which the last job's entries come later than the others'.
    """
    banks = config.banks
    last = np.concatenate([np.arange(size) == size - 1 for size in jobs])
    arrivals = np.full(len(last), 10)
    arrivals[len(last) - jobs[-1] :] += late
    shared = np.zeros(len(last), dtype=bool)
    times = channel_cycles(ChannelShape(banks=banks), shared, last, arrivals, first_refresh=150)
    return times, slots_of(banks, times, shared.astype(int), last)


def slots_of(banks, times: ChannelCycles, experts, last) -> dict[str, int]:
    trace = ChannelTrace.of(banks, experts, last, times.i, times.rows, times.columns)
    start, end = int(times.i[0]), int(times.o[-1]) + 1
    slots = mac_slots(banks, trace, start, end)
    assert tuple(slots) == SLOTS == reports.SLOTS
    assert all(count >= 0 for count in slots.values()), slots
    assert sum(slots.values()) == end - start
    assert slots["mac"] == times.count(Column.MAC) * CommandTiming.of(banks.pim).mac_gap
    return slots


@pytest.mark.parametrize("seed", range(16))
def test_all_cycles_of_random_channels_are_told(seed: int) -> None:
    case = random_case(seed)
    banks = case.config.banks
    experts = np.concatenate([np.full(size, expert) for expert, size in case.jobs])
    last = np.concatenate([np.arange(size) == size - 1 for _, size in case.jobs])
    shape = ChannelShape(banks=banks)
    arrivals = np.arange(len(last)) * 7
    times = channel_cycles(
        shape, experts == case.config.num_experts, last, arrivals, first_refresh=case.first_refresh
    )
    slots = slots_of(banks, times, experts, last)
    assert slots["other"] <= 0.02 * sum(slots.values()), slots
    if not banks.pim.refresh:
        assert slots["refresh"] == 0


def test_a_job_that_comes_late_is_waited_for() -> None:
    """What is lost is lost to jobs, cycle by cycle; the other job is as before."""
    config = config_of(replace(PIM, refresh=False), **LARGE)
    (at_once, slots), (later, late_slots) = (run(config, [2, 2], late=late) for late in (0, 6000))
    lost = int(later.o[-1] - at_once.o[-1])
    assert lost > 1000
    assert slots["jobs"] == 1 + JOB_SEEN  # from the first of two entries on
    # At the jobs' border other waits begin and end elsewhere.
    rest = sum(late_slots[name] - slots[name] for name in ("row", "inputs", "results"))
    assert late_slots["jobs"] - slots["jobs"] == lost - rest
    assert abs(rest) < 100
    assert late_slots["mac"] == slots["mac"]


def test_lanes_that_take_longer_than_a_burst_are_named() -> None:
    """Of each tile tokens x mac_cycles - tCCD_L, but where a row or a block's end hides it."""
    pim = replace(PIM, refresh=False, tokens_per_burst=2, mac_cycles=10)
    config = config_of(pim, **LARGE)
    _, slots = run(config, [2])
    _, fast = run(config_of(replace(pim, mac_cycles=1), **LARGE), [2])
    tiles = config.banks.image.routed.num_tiles
    per_tile = 2 * 10 - CommandTiming.of(pim).mac_gap
    assert fast["lanes"] == 0
    assert 0.5 * tiles * per_tile < slots["lanes"] < tiles * per_tile


def test_refreshes_and_rows_are_named() -> None:
    timing = DRAM.timing
    config = config_of(PIM, **LARGE)
    times, slots = run(config, [2])
    _, without = run(config_of(replace(PIM, refresh=False), **LARGE), [2])
    refreshes = int((times.rows[:, 1] == 4).sum())
    assert without["refresh"] == 0
    assert refreshes > 2
    assert (
        refreshes * timing.rfc * 0.5
        < slots["refresh"]
        < refreshes * (timing.rfc + timing.rc + 2 * timing.ras)
    )
    # From a row's last MAC to the next one's first: tRTP, tRP, tRCD, decisions, beyond the gap.
    visits = config.banks.visits(config.banks.image.routed)
    least = timing.rtp + timing.rp + timing.rcd_rd - CommandTiming.of(PIM).mac_gap
    assert (visits - 1) * least <= without["row"] <= visits * (least + 3)


def test_a_refresh_under_way_at_the_start_is_named() -> None:
    """It lets nobody in: the first row opens behind it."""
    rare = replace(DRAM, timing=replace(DRAM.timing, refi=5000))
    config = config_of(replace(PIM, dram=rare), d_model=9, d_hidden=7)
    shape, last, none = ChannelShape(banks=config.banks), np.array([True]), np.array([False])
    arrival, rfc = np.array([0]), DRAM.timing.rfc
    during = channel_cycles(shape, none, last, arrival, first_refresh=-4)
    after = channel_cycles(shape, none, last, arrival, first_refresh=-rfc)
    assert during.rows[0, 0] < 0
    slots, calm = (slots_of(config.banks, times, np.array([0]), last) for times in (during, after))
    assert calm["refresh"] == 0
    assert rfc - 10 < slots["refresh"] <= rfc + DRAM.timing.rcd_rd


def test_a_shared_register_path_makes_inputs_and_results_dearer() -> None:
    small = {"d_model": 9, "d_hidden": 7}
    _, own = run(config_of(PIM, **small), [2, 2])
    _, shared = run(config_of(replace(PIM, register_path=RegisterPath.SHARED), **small), [2, 2])
    assert shared["inputs"] + shared["results"] > own["inputs"] + own["results"] > 0


def test_a_large_expert_waits_for_the_dram_alone() -> None:
    """As ``test_mac_slots_are_busy_whenever_the_dram_allows`` says, by the same numbers."""
    shape = full_size("mixtral-8x7b", 16, load_design("pim").pim)
    last = np.arange(4) == 3
    times = channel_cycles(shape, last & False, last, np.zeros(4, dtype=np.int64), first_refresh=3900)
    slots = slots_of(shape.banks, times, np.zeros(4, dtype=int), last)
    coarse = times.mac_slots(CommandTiming.of(shape.banks.pim))
    assert slots["mac"] == coarse["mac"]
    assert slots["refresh"] == pytest.approx(coarse["refresh"], rel=0.02)
    assert slots["row"] == pytest.approx(coarse["row"], rel=0.02)
    rest = sum(slots[name] for name in ("jobs", "lanes", "results", "inputs", "other"))
    assert rest < 0.01 * slots["mac"]


def test_a_channel_without_a_job_waits_for_jobs() -> None:
    config = config_of(PIM)
    none = np.zeros((0, 3), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    trace = ChannelTrace.of(config.banks, empty, empty.astype(bool), empty, none, none)
    slots = mac_slots(config.banks, trace, 5, 105)
    assert slots == dict.fromkeys(SLOTS, 0) | {"jobs": 100}


@pytest.mark.slow
def test_the_verilog_says_what_the_model_says(capsys, tmp_path) -> None:
    """Told from the commands that the Verilog's buses showed; and the shares add up to all channels' time."""
    design = tmp_path / "two.toml"
    design.write_text(TINY_PIM.read_text().replace("channels = 1", "channels = 2"))
    seen = {}
    for engine in ("both", "model", "rtl"):
        arguments = ["--model", str(DATA / "deepseek_v3_s0.npz"), "--design", str(design)]
        assert main(["sim", *arguments, "--engine", engine, "--json"]) == 0
        seen[engine] = json.loads(capsys.readouterr().out)
    slots = seen["both"]["mac_slots"]
    assert slots == seen["model"]["mac_slots"]
    assert sum(slots.values()) == 2 * seen["both"]["cycles"]["rtl"]
    assert seen["rtl"]["mac_slots"] is None
    for engine in ("both", "rtl"):
        assert seen[engine]["utilisation"] == seen["model"]["utilisation"]
    assert slots["mac"] / sum(slots.values()) == pytest.approx(seen["model"]["utilisation"]["bandwidth"])
