"""A channel's engine against Ramulator's figures, and tick by tick against a controller in plain Python."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sim.dram import stream
from sim.dram.engine import COLUMN_SHIFT, ROW_SHIFT, Channel, RefreshMode, RowPolicy
from sim.dram.patterns import PATTERNS, make_pattern
from sim.dram.stream import Requests, Run, pattern_requests, run_requests
from sim.dram_check import Commands, check_commands
from spec.banks import CommandTiming
from spec.design import BankMode, RegisterPath
from spec.dram import Command, DramSpec, constraints, constraints_of
from spec.errors import InputError
from spec.load import load_design, load_dram, preset_names
from tests.dram_naive import NaiveChannel, Request

REFERENCE = json.loads((Path(__file__).parent / "data" / "dram_streams.json").read_text())
STANDARDS = preset_names("dram")
REFERENCED = list(REFERENCE["tables"])
ALL_BANK, PER_BANK, NONE = RefreshMode.ALL_BANK, RefreshMode.PER_BANK, RefreshMode.NONE


def mode(refresh: bool) -> RefreshMode:
    return ALL_BANK if refresh else NONE


def run_pattern(name: str, pattern: str, total: int, **options) -> Run:
    dram = load_dram(name)
    return run_requests(dram, pattern_requests(dram, pattern, total), **options)


# The reference.


@pytest.mark.parametrize(
    "point",
    REFERENCE["points"],
    ids=lambda point: "-".join(str(point[key]) for key in ("standard", "pattern", "refresh")),
)
def test_the_cycle_count_is_ramulators(point) -> None:
    run = run_pattern(point["standard"], point["pattern"], point["requests"], refresh=mode(point["refresh"]))
    assert (run.cycles, run.served) == (point["cycles"], point["served"])
    assert run.requests == point["requests"]
    assert run.bandwidth_fraction == pytest.approx(point["bandwidth_fraction"], abs=5.1e-5)
    assert run.broken == []


FIELDS = {
    "cl": "nCL", "cwl": "nCWL", "rp": "nRP", "ras": "nRAS", "rc": "nRC", "wr": "nWR", "ccd_s": "nCCDS",
    "ccd_l": "nCCDL", "wtr_s": "nWTRS", "wtr_l": "nWTRL", "rrd_s": "nRRDS", "rrd_l": "nRRDL", "faw": "nFAW",
    "refi": "nREFI", "rfc": "nRFC nRFCab", "rtp": "nRTP nRTPL", "burst": "nBL nBL_min",
    "rcd_rd": "nRCD nRCDRD", "rcd_wr": "nRCD nRCDWR",
    "ccd_s_wr": "nCCDS_WR", "ccd_l_wr": "nCCDL_WR", "ppd": "nPPD", "rp_ab": "nRPab", "aad": "nAAD",
    "wck_post": "nWCKPST", "rfc_pb": "nRFCpb", "refi_pb": "nREFIpb", "rref_d": "nRREFD",
    "pbr_to_pbr": "nPBR2PBR", "pbr_to_act": "nPBR2ACT",
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCED)
def test_a_preset_is_the_table_of_the_reference(name: str) -> None:
    dram, table = load_dram(name), REFERENCE["tables"][name]
    for field, theirs in FIELDS.items():
        known = [table["timing"][key] for key in theirs.split() if key in table["timing"]]
        assert getattr(dram.timing, field) == (known[0] if known else 0), field
    organisation = table["organisation"]
    assert dram.clock_ps == table["timing"]["tCK_ps"]
    assert dram.pseudo_channels == organisation.get("pseudochannel", 1)
    assert (dram.bank_groups, dram.banks_per_group) == (organisation["bankgroup"], organisation["bank"])
    assert dram.rows == organisation["row"]
    assert dram.row_bytes == organisation["column"] * organisation["channel_width"] // 8
    assert dram.bursts_per_row == organisation["column"] // table["prefetch"]


def test_bounds_of_streams_are_reached() -> None:
    """Row thrash: the row cycle. Random: four ACTs in tFAW, or HBM2's row bus, 3 slots for ACT and PRE."""
    for name in STANDARDS:
        timing = load_dram(name).timing
        run = run_pattern(name, "rowthrash", 500, refresh=NONE)
        assert run.cycles_per_request == pytest.approx(max(timing.rc, timing.ras + timing.rp), rel=0.005)
    for name in ("ddr4-2400", "ddr4-3200"):
        run = run_pattern(name, "random", 4000, refresh=NONE)
        assert run.cycles_per_request == pytest.approx(load_dram(name).timing.faw / 4, rel=0.005)
    assert run_pattern("hbm2-2000", "random", 4000, refresh=NONE).cycles_per_request == pytest.approx(
        3, rel=0.005
    )


# The naive controller.


def random_requests(dram: DramSpec, count: int, rng: random.Random) -> list[Request]:
    """Return reads that hit rows again with a random likelihood."""
    locality, found = rng.random(), []
    for _ in range(count):
        column = rng.randrange(dram.bursts_per_row)
        if found and rng.random() < locality:
            found.append(Request(found[-1].bank, found[-1].row, column))
        else:
            bank = rng.randrange(dram.pseudo_channels * dram.num_banks)
            found.append(Request(bank, rng.randrange(rng.choice([2, 8, dram.rows])), column))
    return found


def as_requests(reads: list[Request]) -> Requests:
    def fill(first: int, banks, keys) -> None:
        for place, read in enumerate(reads[first : first + len(banks)]):
            banks[place] = read.bank
            keys[place] = read.row << ROW_SHIFT | read.column << COLUMN_SHIFT

    return Requests(len(reads), fill)


def logged(dram: DramSpec, requests: Requests, **options) -> tuple[Run, list[tuple[int, str, int, int, int]]]:
    """Run requests; return the run and its commands."""
    parts: list = []
    run = run_requests(dram, requests, sinks=(lambda log: parts.append(log.copy()),), **options)
    names = {Command.PRE_ALL: "PREA"}
    log = np.concatenate(parts)
    return run, [
        (tick, names.get(Command(command), Command(command).name), bank, row, column)
        for tick, command, bank, row, column in log.tolist()
    ]


def compare_with_naive(name: str, seed: int, count: int) -> None:
    """Every command, in every tick; refreshes come often enough to be met."""
    rng = random.Random(f"{name} {seed}")
    dram = load_dram(name)
    timing = dram.timing
    if rng.random() < 0.8:
        least = timing.rfc + timing.ras + 2 * timing.rp
        dram = replace(dram, timing=replace(timing, refi=least + rng.randrange(1, 600)))
    reads = random_requests(dram, count, rng)
    refresh, queue = rng.random() < 0.8, rng.choice([1, 4, 8, 32, 32, 64, 64])
    naive = NaiveChannel(dram, refresh=refresh, queue_size=queue)
    expected = naive.run(reads)
    run, commands = logged(dram, as_requests(reads), refresh=mode(refresh), queue=queue)
    assert commands == naive.log
    assert (run.ticks, run.served) == expected
    assert run.broken == []


@pytest.mark.parametrize("name", STANDARDS)
@pytest.mark.parametrize("seed", range(2))
def test_commands_are_those_of_a_naive_controller(name: str, seed: int) -> None:
    compare_with_naive(name, seed, 120)


@pytest.mark.long
@pytest.mark.parametrize("name", STANDARDS)
@pytest.mark.parametrize("seed", range(100, 130))
def test_commands_are_those_of_a_naive_controller_always(name: str, seed: int) -> None:
    compare_with_naive(name, seed, 600)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_those_of_a_naive_controller(pattern: str) -> None:
    for name in ("gddr6-14000", "hbm3-6400"):
        dram = load_dram(name)
        count = 40 if pattern == "rowthrash" else 150
        banks, keys = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        make_pattern(dram, pattern)(0, banks, keys)
        reads = [
            Request(bank, key >> ROW_SHIFT, key >> COLUMN_SHIFT & 0x7FFFF)
            for bank, key in zip(banks.tolist(), keys.tolist(), strict=True)
        ]
        naive = NaiveChannel(dram, refresh=True)
        expected = naive.run(reads)
        run = run_pattern(name, pattern, count)
        assert (run.ticks, run.served) == expected


@pytest.mark.parametrize("name", STANDARDS)
def test_other_random_streams_are_those_of_a_naive_controller(name: str) -> None:
    """Other seeds and odd numbers of requests, also one and as many as the queue has places and one more."""
    dram = load_dram(name)
    for seed, count in ((0, 1), (1, 31), (7, 32), (2**64 - 1, 33), (99, 257)):
        banks, keys = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        make_pattern(dram, "random", seed)(0, banks, keys)
        reads = [
            Request(bank, key >> ROW_SHIFT, key >> COLUMN_SHIFT & 0x7FFFF)
            for bank, key in zip(banks.tolist(), keys.tolist(), strict=True)
        ]
        refresh = bool(seed % 2)
        run = run_requests(dram, pattern_requests(dram, "random", count, seed), refresh=mode(refresh))
        assert (run.ticks, run.served) == NaiveChannel(dram, refresh=refresh).run(reads), (seed, count)
        assert run.broken == []


# Patterns.


@pytest.mark.parametrize("name", STANDARDS)
def test_patterns_are_as_described(name: str) -> None:
    """Each, written out once more."""
    dram = load_dram(name)
    channels, groups, per_group = dram.pseudo_channels, dram.bank_groups, dram.banks_per_group
    columns, rows = dram.bursts_per_row, dram.rows
    x = 12345

    def draw(size: int) -> int:
        nonlocal x
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        return (x >> 33) % size

    count = 2 * channels * groups * per_group * columns + 50
    seen = {}
    for pattern in PATTERNS:
        banks, keys = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        fill = make_pattern(dram, pattern)
        for first in range(0, count, 1000):  # in parts
            fill(first, banks[first : first + 1000], keys[first : first + 1000])
        seen[pattern] = list(
            zip(banks.tolist(), (keys >> 20).tolist(), (keys >> 1 & 0x7FFFF).tolist(), strict=True)
        )
    for k in [*range(300), count // 2 - 1, count // 2, count - 1]:
        channel, group = k % channels, k // channels % groups
        bank = k // channels // groups % per_group
        column = k // channels // groups // per_group % columns
        row = k // channels // groups // per_group // columns
        assert seen["seq_bankfast"][k] == ((channel * groups + group) * per_group + bank, row, column)
        column, rest = k % columns, k // columns
        channel, group, bank = (
            rest % channels,
            rest // channels % groups,
            rest // channels // groups % per_group,
        )
        row = rest // channels // groups // per_group
        assert seen["seq_colfast"][k] == ((channel * groups + group) * per_group + bank, row, column)
        assert seen["rowthrash"][k] == (0, k % rows, 0)
    ranked = name.startswith(("ddr", "lpddr", "hbm3"))
    for k in range(300):
        channel = draw(channels) if name.startswith("hbm") else 0
        group = draw(groups)
        if ranked:
            draw(1)
        bank, row, column = draw(per_group), draw(rows), draw(columns)
        assert seen["random"][k] == ((channel * groups + group) * per_group + bank, row, column)


# Parts, options.


@pytest.mark.parametrize("name", ["ddr5-4800", "hbm3-6400", "lpddr5-6400"])
def test_parts_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests come in parts and the log is taken away in parts."""
    dram = load_dram(name)
    whole = logged(dram, pattern_requests(dram, "random", 700))
    monkeypatch.setattr(stream, "CHUNK", 7)
    monkeypatch.setattr(stream, "Channel", partial(Channel, log_length=3))
    parts = logged(dram, pattern_requests(dram, "random", 700))
    assert whole[1] == parts[1]
    assert whole[0].ticks == parts[0].ticks


REFRESHES = [
    (name, refresh)
    for name in STANDARDS
    for refresh in RefreshMode
    if refresh is not PER_BANK or load_dram(name).timing.refi_pb
]
"""How each standard is refreshed; not all refresh their banks one by one."""


@pytest.mark.parametrize("policy", RowPolicy)
@pytest.mark.parametrize(("name", "refresh"), REFRESHES)
def test_every_option_keeps_the_rules(name: str, refresh: RefreshMode, policy: RowPolicy) -> None:
    """Reads and writes, with rows that are hit again, until all are served."""
    dram = load_dram(name)
    rng = random.Random(3)
    reads = random_requests(dram, 1500, rng)
    writes = [rng.random() < 0.4 for _ in reads]

    def fill(first: int, banks, keys) -> None:
        as_requests(reads).fill(first, banks, keys)
        keys |= np.array(writes[first : first + len(keys)], dtype=np.int64)

    run, commands = logged(dram, Requests(len(reads), fill), refresh=refresh, policy=policy, drain=True)
    assert run.broken == []
    assert run.served == len(reads) == run.commands["RD"] + run.commands["WR"]
    assert run.commands["WR"] == sum(writes)
    read = sorted((bank, row, column) for _, what, bank, row, column in commands if what in ("RD", "WR"))
    assert read == sorted((request.bank, request.row, request.column) for request in reads)
    clocks = run.ticks // run.ticks_per_clock
    if refresh is ALL_BANK:
        assert abs(run.commands["REF"] - dram.pseudo_channels * (clocks // dram.timing.refi)) <= 2
    if refresh is PER_BANK:
        due = clocks * dram.pseudo_channels * dram.num_banks / dram.timing.refi
        assert run.commands["REF_BANK"] == pytest.approx(due, rel=0.02, abs=3)


def test_refreshes_that_leave_no_time_are_refused() -> None:
    """A run would have no end."""
    dram = load_dram("hbm2-2000")
    dram = replace(dram, timing=replace(dram.timing, refi_pb=2))
    message = r"^refresh: leaves no time between refreshes: 256 of hbm2-2000 wait at tick \d+$"
    with pytest.raises(InputError, match=message):
        run_requests(dram, pattern_requests(dram, "random", 10**6), refresh=PER_BANK)


def test_a_closed_row_helps_random_streams_and_not_those_that_hit() -> None:
    """HBM3's precharges share the row bus: closed early they are out of the way."""
    cycles = {
        (pattern, policy): run_pattern("lpddr5-6400", pattern, 3000, policy=policy).cycles
        for pattern in ("random", "rowthrash")
        for policy in RowPolicy
    }
    assert cycles["random", RowPolicy.CLOSED] < cycles["random", RowPolicy.OPEN]
    assert cycles["rowthrash", RowPolicy.CLOSED] == cycles["rowthrash", RowPolicy.OPEN]


def test_requests_arrive_when_they_say() -> None:
    """A request that comes after the queue is empty waits for its own ACT alone."""
    dram = load_dram("ddr4-3200")
    arrivals = np.array([0, 5000, 5000], dtype=np.int64)
    reads = as_requests([Request(0, 1, 2), Request(5, 1, 2), Request(0, 1, 3)])
    run, commands = logged(dram, replace(reads, arrivals=arrivals), refresh=NONE, drain=True)
    rcd = dram.timing.rcd_rd
    assert commands == [
        (1, "ACT", 0, 1, -1),
        (1 + rcd, "RD", 0, 1, 2),
        (5001, "ACT", 5, 1, -1),
        (5002, "RD", 0, 1, 3),
        (5001 + rcd, "RD", 5, 1, 2),
    ]
    assert run.ticks == 5001 + rcd


def test_a_near_memory_channel_reads_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its distances are the timings of its standard, and follow a row that changes."""
    pim = load_design("pim").pim
    timing, distances = pim.dram.timing, CommandTiming.of(pim)
    assert (distances.rcd, distances.rp, distances.ras) == (timing.rcd_rd, timing.rp, timing.ras)
    assert (distances.rc, distances.rtp, distances.rfc) == (timing.rc, timing.rtp, timing.rfc)
    assert (distances.mac_gap, distances.act_gap) == (timing.ccd_l, 1)
    single = CommandTiming.of(replace(pim, bank_mode=BankMode.SINGLE_BANK))
    assert (single.mac_gap, single.act_gap) == (timing.ccd_s, max(timing.rrd_s, -(-timing.faw // 4)))
    shared = replace(pim, register_path=RegisterPath.SHARED)
    turned = CommandTiming.of(shared)
    assert turned.mac_to_write == turned.read_to_write == timing.read_to_write
    assert turned.write_to_mac == turned.write_to_read == timing.write_to_read
    assert turned.write_to_write == turned.read_to_read == turned.mac_to_read == timing.ccd_l
    latencies = {
        "tRCD": "rcd_rd + burst",
        "tRTW": "cl + burst + rtw_gap",
        "tWTR_L": "cwl + wtr_l + rp",
        "tCCD_L, writes": "ccd_l_write + burst",
    }
    changed = [replace(row, latency=latencies.get(row.name, row.latency)) for row in constraints.CONSTRAINTS]
    monkeypatch.setattr(constraints, "CONSTRAINTS", changed)
    CommandTiming.of.cache_clear()
    try:
        assert CommandTiming.of(pim).rcd == timing.rcd_rd + timing.burst
        turned = CommandTiming.of(shared)
        assert turned.mac_to_write == turned.read_to_write == timing.cl + timing.burst + timing.rtw_gap
        assert turned.write_to_mac == turned.write_to_read == timing.cwl + timing.wtr_l + timing.rp
        assert turned.write_to_write == timing.ccd_l + timing.burst
    finally:
        CommandTiming.of.cache_clear()


def test_register_writes_are_as_far_apart_as_the_standards_writes() -> None:
    """DDR5's are further apart than its reads: the channel and its checker have it from the table."""
    pim = load_design("pim").pim
    for name in STANDARDS:
        dram = replace(load_dram(name), pseudo_channels=1)
        shared = replace(pim, dram=dram, register_path=RegisterPath.SHARED)
        assert CommandTiming.of(shared).write_to_write == max(
            dram.timing.ccd_l_write, dram.timing.ccd_s_write
        ), name
    assert load_dram("ddr5-4800").timing.ccd_l_write > load_dram("ddr5-4800").timing.ccd_l


def test_the_checker_of_a_near_memory_channel_reads_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table that asks for more makes a sound trace a broken one."""
    pim = replace(load_design("pim").pim, register_path=RegisterPath.SHARED, refresh=False)
    timing = CommandTiming.of(pim)
    rows = np.array([(0, 1, 0, 0), (timing.rcd + timing.read_to_write + timing.write_to_mac + 99, 2, 0, 0)])
    mac, write = timing.rcd, timing.rcd + timing.mac_to_write
    columns = np.array([(mac, 1, 0, 0), (write, 2, 0, 0), (write + timing.write_to_mac, 1, 0, 0)])
    commands = Commands(rows, columns)
    assert check_commands(pim, commands) == []
    for name, rule in (("tRCD", "tRCD"), ("tRTW", "read to write"), ("tWTR_L", "tWTR_L")):
        changed = [
            replace(row, latency=f"{row.latency} + burst") if row.name == name else row
            for row in constraints.CONSTRAINTS
        ]
        with monkeypatch.context() as patch:
            patch.setattr(constraints, "CONSTRAINTS", changed)
            found = {one.rule.split(",")[0] for one in check_commands(pim, commands)}
        assert found == {rule}


# The page.

PAGE = (Path(__file__).parent.parent / "docs" / "dram.md").read_text()


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of a section's table on the page, without its head."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_has_every_standard_of_the_reference() -> None:
    assert {row[0] for row in rows_of("Measured")} == set(REFERENCED) <= set(STANDARDS)


def test_the_page_has_every_row_of_the_table() -> None:
    shown = [row[:6] for row in rows_of("Constraints")]
    assert shown == [
        [
            row.name,
            row.level.name.lower().replace("_", " "),
            ", ".join(command.name for command in row.preceding),
            ", ".join(command.name for command in row.following),
            f"`{row.latency}`",
            str(row.window),
        ]
        for row in constraints.CONSTRAINTS
    ]


@pytest.mark.parametrize("name", REFERENCED)
def test_the_pages_figures_are_measured(name: str) -> None:
    shown = [row for row in rows_of("Measured") if row[0] == name]
    assert [row[1] for row in shown] == ["all-bank", "none"]
    for _, refresh, *cells in shown:
        for pattern, cell in zip(PATTERNS, cells, strict=True):
            total = 2000 if pattern == "rowthrash" else 20000
            run = run_pattern(name, pattern, total, refresh=RefreshMode(refresh))
            assert cell == f"{run.cycles} / {run.cycles_per_request:.4f}"
            assert run.broken == []


# The engine has no distance but the table's.

BINDING = {
    "tRCD": ("ddr4-3200", "random"),
    "tRC": ("hbm3-6400", "random"),
    "tRAS": ("ddr4-3200", "rowthrash"),
    "tRAS, all banks": ("ddr5-4800", "random"),
    "tRP": ("gddr6-14000", "rowthrash"),
    "tRTP": ("hbm2-2000", "seq_bankfast"),
    "tRTP, all banks": ("ddr4-3200", "seq_colfast"),
    "tRRD_L": ("ddr4-2400", "random"),
    "tRRD_S": ("ddr4-3200", "random"),
    "tFAW": ("ddr4-3200", "random"),
    "tPPD": ("lpddr5-6400", "random"),
    "tCCD_S": ("ddr5-4800", "seq_bankfast"),
    "tCCD_L": ("gddr6-14000", "seq_bankfast"),
    "tRC before REF": ("hbm3-6400", "random"),
    "tRP before REF": ("hbm2-2000", "seq_bankfast"),
    "tRFC": ("hbm2-2000", "seq_bankfast"),
}
"""Rows that streams of reads come up against; test_dram_rules.py plants violations of all."""


@pytest.mark.parametrize("row", BINDING)
def test_an_engine_without_a_row_breaks_it(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken out of the table is missing in the engine, and its checker, built before, sees it."""
    name, pattern = BINDING[row]
    dram = load_dram(name)
    checker = stream.make_checker(dram, ALL_BANK)
    others = [other for other in constraints.CONSTRAINTS if other.name != row]
    assert len(others) < len(constraints.CONSTRAINTS)
    monkeypatch.setattr(constraints, "CONSTRAINTS", others)
    assert row not in [other.name for other in constraints_of(dram)]
    run = run_requests(dram, pattern_requests(dram, pattern, 6000), check=False, sinks=(checker.check,))
    assert row in [broken.rule for broken in checker.finish(run.ticks)]
