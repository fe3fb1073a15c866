"""Matrix-vector products on devices: the published kernel's cycles, this project's schedule, the checker."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import bench
from sim.cli import main
from sim.gemv import barrier, streamed
from sim.gemv.check import BARRIER, STREAMED, check_inputs, check_log
from sim.gemv.commands import EVEN, ODD, Kind, PowerLimits, Product, timings
from sim.gemv.report import Options, ablation, added_area_um2, added_bits, end_to_end, run_gemv
from spec.errors import InputError
from spec.files import PRESETS
from spec.load import design_names, load_device, load_sources, preset_names
from spec.program import Additions
from tests import barrier_reference

POINTS = json.loads((Path(__file__).parent / "data" / "pim_hbm2_gemv.json").read_text())["points"]
SAMSUNG, OURS, QUAD = (load_device(name) for name in ("hbm2-pim-samsung", "hbm2-pim", "hbm2-pim-quad"))
DRAM = OURS.timed
T = DRAM.timing
BIG = Product(rows=4096, cols=4096, channels=64)
OLMOE = Product(rows=1408, cols=2048, channels=64)


def products(seed: int, count: int, most: int = 3000) -> list[Product]:
    """Draw shapes: few and many channels, ragged, some with several items."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        channels = int(rng.choice([1, 2, 4, 6, 16, 64]))
        rows = int(rng.integers(1, 1 + 40 * channels * int(rng.choice([1, 4]))))
        drawn.append(
            Product(
                rows=rows,
                cols=int(rng.integers(1, most)),
                channels=channels,
                batch=int(rng.choice([1, 1, 2, 3, 5])),
            )
        )
    return drawn


def limits_of(rng: np.random.Generator) -> PowerLimits:
    return PowerLimits(
        mac_gap=int(rng.choice([1, 6])), act_gap=int(rng.choice([1, 20])), hot=bool(rng.random() < 0.3)
    )


def test_the_published_kernels_cycles():
    """All 16 points exactly; in that of 1024 x 1024 on one channel a row opens while a refresh is due."""
    assert len(POINTS) == 16
    for point in POINTS:
        shape = {name: point[name] for name in ("rows", "cols", "channels", "batch")}
        assert run_gemv(SAMSUNG, Product(**shape)).cycles == point["cycles"], shape


def test_the_published_kernels_commands():
    """Cycles read in a trace of the kernel, which stamps row commands 1 later, column commands 2 later."""
    log = run_gemv(SAMSUNG, Product(rows=64, cols=256, channels=1), Options(refresh=False), log=True).log
    stamped = log[:, 0] + np.where(np.isin(log[:, 1], (Kind.ACT, Kind.PRE)), 1, 2)

    def cycles(kind: Kind, bank: int, row: int) -> list[int]:
        return stamped[(log[:, 1] == kind) & (log[:, 2] == bank) & (log[:, 3] == row)].tolist()

    registers = barrier.REGISTER_ROW
    assert cycles(Kind.ACT, 9, barrier.MODE_ROW) == [107]  # all-bank mode
    program, *inputs = cycles(Kind.WR, ODD, registers)
    assert program == 157
    assert inputs == [*range(172, 201, 4), *range(516, 545, 4)]
    assert cycles(Kind.WR, EVEN, registers) == [168, 943]  # PIM mode and back
    assert cycles(Kind.ACT, EVEN, 0) + cycles(Kind.ACT, EVEN, 1) == [207, 362]
    assert cycles(Kind.MAC, EVEN, 0) + cycles(Kind.MAC, EVEN, 1) == [*range(222, 347, 4), *range(377, 502, 4)]
    assert cycles(Kind.PRE, EVEN, 0) == [348]
    assert cycles(Kind.PRE, ODD, registers)[-1] == 569
    assert cycles(Kind.ACT, ODD, 0) == [583]
    assert cycles(Kind.WR, ODD, barrier.RESULT_ROW) == [*range(904, 933, 4)]
    assert cycles(Kind.PRE, ODD, barrier.LEAVE_ROW) == [1029]  # single-bank mode


def _as_reference(log: np.ndarray) -> list[tuple[int, str, int]]:
    first = {EVEN: 0, ODD: 1, -1: -1}
    return [
        (cycle, Kind(kind).name, first.get(bank, bank))
        for cycle, kind, bank, _ in log.tolist()
        if kind != Kind.OTHER_REF
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_is_that_of_a_naive_simulation(seed):
    """Every command in its cycle, as a simulation that looks at each cycle has it."""
    for product in products(seed, 3, most=1200):
        shape = (product.rows, product.cols, product.channels, product.batch)
        refresh = seed % 4 != 3
        end, commands = barrier_reference.run(*shape, refresh=refresh)
        run = run_gemv(SAMSUNG, product, Options(refresh=refresh), log=True)
        assert run.cycles == end, product
        named = [
            (cycle, name, -1 if bank is None else 4 * bank[0] + bank[1]) for cycle, name, bank, _ in commands
        ]
        assert _as_reference(run.log) == named, product


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_wide_sweep(seed):
    """The kernel against the naive simulation, our schedules against the table, on many more shapes."""
    for product in products(seed, 4):
        shape = (product.rows, product.cols, product.channels, product.batch)
        assert run_gemv(SAMSUNG, product).cycles == barrier_reference.run(*shape)[0], product
        for device in (OURS, QUAD):
            assert run_gemv(device, product, log=True).check() == [], product
        for gap in (1, 6, 20):
            limits = PowerLimits(mac_gap=gap, act_gap=int(gap > 1) * seed % 50 + 1, hot=seed % 2 == 0)
            assert run_gemv(SAMSUNG, product, Options(limits=limits), log=True).check() == [], product


def test_our_schedule_reaches_its_goals():
    """Against the published kernel's 13166 and 6970 cycles; a sketch reached 9147 and 1640."""
    assert run_gemv(OURS, BIG).cycles == 9134
    assert run_gemv(OURS, OLMOE).cycles == 1631
    assert run_gemv(SAMSUNG, OLMOE).cycles == pytest.approx(6970, rel=0.01)


def test_four_tokens_cost_little_more_than_one_on_four_times_the_macs():
    cycles = [run_gemv(QUAD, replace(BIG, batch=batch)).cycles for batch in (1, 2, 4, 8)]
    assert cycles == [9134, 9190, 9308, 18870]
    # On the same MACs a token more is a kernel more.
    assert run_gemv(OURS, replace(BIG, batch=4)).cycles == 36574


@pytest.mark.parametrize("device", [OURS, QUAD], ids=lambda device: device.name)
def test_the_layout_is_nearly_the_fastest_there_is(device):
    """Against the cycles of every layout; also where the batch is no multiple of the tokens of a burst."""
    scale = timings(DRAM, PowerLimits())
    none = np.zeros((0, 4), dtype=np.int64)

    def cycles(where: streamed.Layout, batch: int) -> int:
        return streamed._run(device, scale, where, batch, True, Additions(), none)[0]

    rng = np.random.default_rng(31)
    ragged = Product(rows=5142, cols=56, channels=3, batch=5)
    drawn = [replace(one, batch=int(rng.integers(1, 10))) for one in products(31, 60)]
    excess = []
    for product in [ragged, *drawn, *(replace(one, cols=1 + one.cols // 30) for one in drawn)]:
        per_slice = device.units * product.channels
        inputs = -(-product.cols // device.lanes)
        choices = [
            streamed.Layout(
                slices=slices,
                outputs=-(-product.rows * slices // per_slice),
                bursts=-(-inputs // slices),
                tokens=tokens,
            )
            for slices in range(1, product.channels + 1)
            if product.channels % slices == 0
            for tokens in (1, 2, 4)
            if tokens <= device.tokens_per_burst
        ]
        chosen = streamed.layout(device, product, scale)
        assert chosen in choices
        fastest = min(cycles(choice, product.batch) for choice in choices)
        excess.append(cycles(chosen, product.batch) / fastest - 1)
    assert excess[0] == 0
    assert max(excess) < 0.03 and np.mean(excess) < 0.001
    if device is QUAD:
        # The last token runs in the passes of two outputs that the weights are stored for.
        assert run_gemv(device, ragged).cycles == 18891


@pytest.mark.parametrize("device", [SAMSUNG, OURS, QUAD], ids=lambda device: device.name)
def test_no_rule_is_broken(device):
    """Random shapes, limits of power and heat, parts of the schedule left out; with a log and without."""
    rng = np.random.default_rng(7)
    for product in products(11, 40):
        additions = Additions()
        if device is not SAMSUNG and rng.random() < 0.5:
            choices = rng.random(4) < 0.7
            additions = Additions(
                **dict(zip(Additions.__dataclass_fields__, map(bool, choices), strict=True))
            )
        options = Options(limits=limits_of(rng), refresh=bool(rng.random() < 0.9), additions=additions)
        run = run_gemv(device, product, options, log=True)
        assert [str(one) for one in run.check()] == [], (product, options)
        counts = np.bincount(run.log[:, 1], minlength=len(Kind))
        assert counts.tolist() == run.counts.tolist()
        assert run.cycles > run.log[-1, 0]


def test_every_burst_is_read_once_for_each_group_of_tokens():
    for device in (OURS, QUAD):
        for product in products(5, 20):
            run = run_gemv(device, product, log=True)
            layout = streamed.layout(device, product, timings(DRAM, PowerLimits()))
            groups = -(-product.batch // layout.tokens)
            macs = run.log[run.log[:, 1] == Kind.MAC]
            places, reads = np.unique(macs[:, 2:], axis=0, return_counts=True)
            assert reads.sum() == groups * layout.outputs * layout.bursts
            bursts = layout.outputs * layout.bursts
            assert sorted(reads, reverse=True)[: bursts // 32] == [32 * groups] * (bursts // 32)
            assert len(places) == -(-bursts // 32)
            held = layout.outputs * layout.bursts * device.units * product.channels * device.lanes
            assert held >= product.rows * product.cols


def test_results_of_a_batch_need_rows_in_our_schedule_alone():
    """The published kernel writes all results to a row; ours refuses what does not fit, also among many."""
    product = Product(rows=119000, cols=1000, channels=1, batch=8)
    shapes = np.array([[product.rows, product.cols, product.channels, product.batch]])
    for refused in (
        lambda: run_gemv(OURS, product),
        lambda: streamed.many(OURS, shapes, timings(DRAM, PowerLimits())),
    ):
        with pytest.raises(InputError, match=r"^batch: with its results behind the weights needs 17663 rows"):
            refused()
    run_gemv(OURS, replace(product, batch=4))
    with pytest.raises(InputError, match=r"^rows: times cols needs 32768 rows of each bank"):
        streamed.many(OURS, np.array([[1 << 18, 1 << 10, 1, 1]]), timings(DRAM, PowerLimits()))
    log = run_gemv(SAMSUNG, Product(rows=200, cols=40, channels=1, batch=3), log=True).log
    results = log[(log[:, 1] == Kind.WR) & (log[:, 3] == barrier.RESULT_ROW)]
    assert len(results) == 8 * 4 * 3 and set(results[:, 2]) == {ODD}


def test_refreshes_are_issued_when_due():
    for product in products(3, 20):
        log = run_gemv(OURS, product, log=True).log
        ref = log[log[:, 1] == Kind.REF, 0]
        due = np.arange(T.refi // 2, log[-1, 0], T.refi)
        assert ref.tolist() == due.tolist()


def test_how_late_a_refresh_of_the_published_kernel_may_be():
    """Rows open while a refresh waits for others to close; the allowed delay has a cycle to spare."""
    product = Product(rows=707, cols=100, channels=1, batch=5)
    limits = PowerLimits(mac_gap=20)
    log = run_gemv(SAMSUNG, product, Options(limits=limits), log=True).log
    assert check_log(DRAM, log, BARRIER, limits) == []
    assert check_log(DRAM, log, replace(BARRIER, postponed=154), limits) == []
    [found] = check_log(DRAM, log, replace(BARRIER, postponed=153), limits)
    assert (found.rule, found.distance) == ("refresh when due", 154)
    # Ordinary traffic opens nothing meanwhile: its refreshes are not put off by the whole of it.
    cycles = [
        barrier.ordinary_cycles(
            SAMSUNG, timings(DRAM, PowerLimits()), write=True, bursts=512, start=0, refresh=refresh
        )
        for refresh in (True, False)
    ]
    assert cycles[0] - cycles[1] > 2 * T.rfc


def spoiled(log: np.ndarray, kind: Kind, number: int, by: int) -> np.ndarray:
    """Return a log in which one command of a kind comes some cycles earlier."""
    log = log.copy()
    log[np.flatnonzero(log[:, 1] == kind)[number], 0] -= by
    return log[np.lexsort((log[:, 1], log[:, 0]))]


def line(cycle: int, kind: Kind, bank: int, row: int = 5) -> tuple[int, int, int, int]:
    return (cycle, kind, bank, row)


ACT, PRE, MAC, RD, WR, REG, REF = (
    Kind.ACT,
    Kind.PRE,
    Kind.MAC,
    Kind.RD,
    Kind.WR,
    Kind.REG,
    Kind.REF,
)
TO_PRE, TO_READ = T.cwl + T.burst + T.wr, T.cwl + T.burst + T.wtr_l
PLANTED = {
    "tRCD, bank 0": [line(0, ACT, EVEN), line(T.rcd_rd - 1, MAC, EVEN)],
    "tRCDWR, bank 1": [line(0, ACT, ODD), line(T.rcd_wr - 1, WR, ODD)],
    "tRC, bank 3": [line(0, ACT, 3), line(T.rc - T.rp - 1, PRE, 3), line(T.rc - 1, ACT, 3)],
    "tRAS, bank 2": [line(0, ACT, EVEN), line(T.ras - 1, PRE, EVEN)],
    "tRP, bank 5": [line(0, ACT, ODD), line(90, PRE, ODD), line(90 + T.rp - 1, ACT, ODD)],
    "tRTP, bank 4": [line(0, ACT, EVEN), line(80, MAC, EVEN), line(80 + T.rtp - 1, PRE, EVEN)],
    "tWR, bank 4": [line(0, ACT, EVEN), line(80, WR, EVEN), line(80 + TO_PRE - 1, PRE, EVEN)],
    "tRRD_S": [line(0, ACT, 0), line(T.rrd_s - 1, ACT, 4)],
    "tRRD_L, bank group 1": [line(0, ACT, 4), line(T.rrd_l - 1, ACT, 5)],
    "tFAW": [line(3 * number + (number == 4), ACT, 4 * number % 13) for number in range(5)],
    "tCCD_S": [line(0, ACT, 0), line(4, ACT, 4), line(40, RD, 0), line(40 + T.ccd_s - 1, RD, 4)],
    "tCCD_L, bank group 3": [line(0, ACT, ODD), line(40, MAC, ODD), line(40 + T.ccd_l - 1, MAC, ODD)],
    "tCCD_S, writes": [line(0, ACT, 0), line(4, ACT, 4), line(40, WR, 0), line(40 + T.ccd_s - 1, WR, 4)],
    "tCCD_L, writes, bank group 0": [
        line(0, ACT, EVEN),
        line(40, WR, EVEN),
        line(40 + T.ccd_l - 1, WR, EVEN),
    ],
    "tRTW": [line(0, ACT, EVEN), line(40, MAC, EVEN), line(40 + T.read_to_write - 1, WR, EVEN)],
    "tWTR_S": [line(0, ACT, 0), line(4, ACT, 4), line(40, WR, 0), line(40 + TO_READ - 6, RD, 4)],
    "tWTR_L, bank group 2": [line(0, ACT, ODD), line(40, WR, ODD), line(40 + TO_READ - 1, MAC, ODD)],
    "tRC before REF": [line(1950 - T.rc + 1, ACT, EVEN), line(1949, PRE, EVEN), line(1950, REF, -1)],
    "tRP before REF": [line(0, ACT, EVEN), line(1950 - T.rp + 1, PRE, EVEN), line(1950, REF, -1)],
    "tRFC": [line(1950, REF, -1), line(1950 + T.rfc - 1, ACT, EVEN)],
    "one command per cycle on the row bus": [line(0, ACT, EVEN), line(0, ACT, ODD)],
    "one command per cycle on the column bus": [line(0, ACT, EVEN), line(40, MAC, EVEN), line(40, REG, -1)],
    "access to the open row, bank 6": [line(0, ACT, EVEN), line(40, MAC, EVEN, 6)],
    "ACT of a closed bank, bank 1": [line(0, ACT, ODD), line(90, ACT, ODD)],
    "REF of closed banks, bank 0": [line(0, ACT, EVEN), line(1950, REF, -1)],
    "refresh when due": [line(0, ACT, EVEN), line(80, PRE, EVEN), line(1951, REF, -1)],
    "all-bank MACs": [line(0, ACT, EVEN), line(40, MAC, EVEN), line(45, MAC, EVEN)],
    "all-bank ACTs": [line(0, ACT, EVEN), line(19, ACT, ODD)],
}
LIMITS = PowerLimits(mac_gap=6, act_gap=20)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name):
    limits = LIMITS if name.startswith("all-bank") else PowerLimits()
    found = check_log(DRAM, np.array(PLANTED[name], dtype=np.int64), STREAMED, limits)
    assert name in {one.rule for one in found}


def test_a_cycle_later_the_same_is_legal():
    for name in (
        "tRCD, bank 0",
        "tRP, bank 5",
        "tWR, bank 4",
        "tCCD_L, bank group 3",
        "tWTR_L, bank group 2",
    ):
        log = np.array(PLANTED[name], dtype=np.int64)
        log[-1, 0] += 1
        assert check_log(DRAM, log, STREAMED) == []


def test_spoiled_logs_are_found_out():
    """Logs of real runs with one command moved: whatever is moved breaks some rule."""
    run = run_gemv(OURS, OLMOE, log=True)
    layout = streamed.layout(OURS, OLMOE, timings(DRAM, PowerLimits()))
    for kind, number, by in (
        (MAC, 100, 1),
        (MAC, 0, 1),
        (WR, 6, 1),
        (ACT, 5, 1),
        (PRE, 5, 1),
        (REG, 30, 200),
    ):
        log = spoiled(run.log, kind, number, by)
        found = check_log(DRAM, log, STREAMED) + check_inputs(log, layout, 1, 8, 8, 32)
        assert found, kind
    samsung = run_gemv(SAMSUNG, Product(rows=64, cols=1024, channels=1), log=True)
    for kind, number in ((MAC, 10), (WR, 20), (ACT, 25), (PRE, 30), (REF, 0)):
        by = 40 if kind == REF else 1
        assert check_log(DRAM, spoiled(samsung.log, kind, number, by), BARRIER), kind
    # Without refreshes' leave to be late and to follow PRE at once, the published kernel breaks the table.
    rules = {
        one.rule for one in check_log(DRAM, samsung.log, replace(BARRIER, postponed=0, refresh_waits=True))
    }
    assert rules == {"tRP before REF", "refresh when due"}


def test_an_input_that_comes_too_late_or_too_early_is_found():
    run = run_gemv(OURS, Product(rows=512, cols=1024, channels=64), log=True)
    layout = streamed.layout(OURS, run.product, timings(DRAM, PowerLimits()))
    writes = np.flatnonzero(run.log[:, 1] == REG)
    for by, rule in ((40, "input there"), (-40, "input not replaced")):
        log = run.log.copy()
        log[writes[20:-1], 0] += by
        log = log[np.lexsort((log[:, 1], log[:, 0]))]
        found = check_inputs(log, layout, 1, 8, 8, 32)
        assert rule in {one.rule for one in found}
    [found] = check_inputs(run.log[:-200], layout, 1, 8, 8, 32)
    assert found.rule == "MACs and inputs of the layout"


def test_bursts_read_in_another_order_than_stored_are_found():
    """Weights are stored once: passes of the full groups' outputs, also for a last group of fewer tokens."""
    product = Product(rows=192, cols=320, channels=1, batch=5)
    layout = streamed.layout(QUAD, product, timings(DRAM, PowerLimits()))
    assert (layout.tokens, layout.outputs, layout.bursts) == (4, 24, 20)

    def rules(log: np.ndarray) -> set[str]:
        return {one.rule for one in check_inputs(log, layout, 5, 8, 8, DRAM.bursts_per_row)}

    log = run_gemv(QUAD, product, log=True).log
    assert rules(log) == set()
    # A token alone has passes of 8 outputs: behind four tokens it reads what is stored for passes of two.
    four, alone = (run_gemv(QUAD, replace(product, batch=batch), log=True).log for batch in (4, 1))
    behind = alone[np.flatnonzero(alone[:, 1] == REG)[2] :].copy()
    behind[:, 0] += four[-1, 0]
    before = np.delete(four, np.flatnonzero(four[:, 1] == REG)[-1], axis=0)
    assert rules(np.concatenate([before, behind])) == {"MACs and inputs of the layout"}
    # The right number of everything, but a row before another, or a result before its pass has ended.
    macs = np.flatnonzero(log[:, 1] == MAC)
    for first, other in ((0, 32), (32, 64), (480, 512), (600, 700)):
        swapped = log.copy()
        swapped[macs[[first, other]], 2:] = swapped[macs[[other, first]], 2:]
        assert rules(swapped) == {"burst where it is stored"}
    early = log.copy()
    results = np.flatnonzero((log[:, 1] == WR) & (log[:, 2] >= EVEN))
    early[results[8], 0] = log[macs[41], 0] + 1  # the second pass' first, behind the first pass' last
    assert rules(early[np.lexsort((early[:, 1], early[:, 0]))]) == {"results of a pass"}


def test_inputs_are_checked_on_the_register_path_alone():
    """What ``--check`` does not do, as the docs say: without the path a late input is not found out."""
    for path, rules in ((True, {"input there"}), (False, set())):
        options = Options(additions=Additions(register_path=path))
        run = run_gemv(OURS, Product(rows=512, cols=1024, channels=64), options, log=True)
        writes = np.flatnonzero(run.log[:, 1] == REG)
        log = run.log.copy()
        if path:
            log[writes[20:-1], 0] += 40
        else:
            log[writes[-1], :] = (log[-1, 0] + 60, REG, -1, -1)
        late = replace(run, log=log[np.lexsort((log[:, 1], log[:, 0]))])
        assert {one.rule for one in late.check() if one.rule.startswith("input")} == rules


@pytest.mark.parametrize("device", [SAMSUNG, OURS, QUAD], ids=lambda device: device.name)
def test_many_at_once_are_as_one_by_one(device):
    drawn = [*products(21, 60), BIG, OLMOE, replace(BIG, batch=4)]
    shapes = np.array([[one.rows, one.cols, one.channels, one.batch] for one in drawn])
    module = barrier if device is SAMSUNG else streamed
    for limits in (PowerLimits(), PowerLimits(mac_gap=6, act_gap=20, hot=True)):
        together = module.many(device, shapes, timings(DRAM, limits))
        alone = [run_gemv(device, one, Options(limits=limits), log=True).cycles for one in drawn]
        assert together.tolist() == alone


def test_the_benchs_figures(monkeypatch):
    """Alone and among many the same cycles; how fast is what ``make bench`` measures."""
    monkeypatch.setattr(bench, "GEMV_SHAPES", 20)
    figures = bench.gemv_figures()
    assert [figure.unit for figure in figures] == ["us"] * 4
    assert "13,166 cycles" in figures[0].how and "9,134 cycles" in figures[3].how


def test_what_each_addition_is_worth():
    assert ablation(OURS, BIG) == {
        "all": 9134,
        "without prefetch": 11055,
        "without register_path": 11292,
        "without split": 9134,
        "without unpadded": 9134,
        "with none": 12416,
        "without refresh": 8377,
    }
    parts = ablation(OURS, OLMOE)
    assert parts["all"] < min(
        value for name, value in parts.items() if "refresh" not in name and name != "all"
    )


def test_what_each_addition_costs():
    """Of a channel: 16384 rows, 8 entries of 256 bits, 32 columns; the pins bring a burst in 2 cycles."""
    assert added_bits(OURS) == {"prefetch": 15, "register_path": 3 + 4 * 256, "split": 0, "unpadded": 11}
    areas = added_area_um2(OURS)
    assert areas["split"] == {"value": 0, "low": 0, "high": 0}
    for name, bits in added_bits(OURS).items():
        assert areas[name]["value"] == pytest.approx(bits * 6.916)
    assert areas["prefetch"]["low"] == pytest.approx(15 * 6.916 / 5.0625)
    assert areas["prefetch"]["high"] == pytest.approx(15 * 6.916 * 2)


def test_what_surrounds_a_kernel():
    for device in (SAMSUNG, OURS):
        run = run_gemv(device, BIG)
        parts = end_to_end(run, interruptions=3)
        names = ("kernel", "mode_switches", "read_back", "reduction")
        assert parts["total"] == sum(parts[name] for name in names)
        assert parts["mode_switches"] % 3 == 0 and parts["mode_switches"] > 0
        # 64 results of 32 bytes a channel; at half the data bus' rate at least.
        assert 2 * 64 < parts["read_back"] < 4 * 64
        assert parts["placement"] > 2 * 4096 * 4096 // 64 // 16
        slow = end_to_end(run, adders=1)
        assert slow["reduction"] > parts["reduction"]


def test_read_back_waits_for_the_banks_to_close():
    """A kernel's commands and those of reading its results keep the table's distances together."""
    scale = timings(DRAM, PowerLimits())
    rules = replace(STREAMED, refresh_waits=False, refresh=False)
    for product in [BIG, *products(41, 30)]:
        run = run_gemv(OURS, product, log=True)
        results = streamed.layout(OURS, product, scale).outputs * product.batch
        read = np.full((1 << 14, 4), -1, dtype=np.int64)
        cycles = barrier.ordinary_cycles(
            OURS, scale, write=False, bursts=results, start=run.cycles, closed=run.cycles - 1, log=read
        )
        assert end_to_end(run)["read_back"] == cycles
        joined = np.concatenate([run.log, read[read[:, 0] >= 0]])
        assert [str(one) for one in check_log(DRAM, joined, rules)] == [], product
    # 205 where the banks are long closed; the first ACT is 13 cycles later here.
    start = run_gemv(OURS, BIG).cycles
    assert barrier.ordinary_cycles(OURS, scale, write=False, bursts=8, start=start) == 205
    assert end_to_end(run_gemv(OURS, BIG))["read_back"] == 218


def test_limits_slow_a_product_down():
    for device in (SAMSUNG, OURS):
        cycles = run_gemv(device, BIG).cycles
        for limits in (PowerLimits(mac_gap=6), PowerLimits(act_gap=400), PowerLimits(hot=True)):
            assert run_gemv(device, BIG, Options(limits=limits)).cycles > cycles


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    status = main(["pim", "gemv", *arguments, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, json.loads(captured.out)


SHAPE = ["--channels", "64", "--rows", "4096", "--cols", "4096", "--batch", "1"]


def test_the_command(capsys, tmp_path):
    status, result = run_json(capsys, "--design", "hbm2-pim", *SHAPE, "--check", "--end-to-end", "--ablation")
    assert status == 0
    assert (result["cycles"], result["macs"], result["violations"]) == (9134, 4096 * 4096, 0)
    assert result["commands"] == {"ACT": 73, "PRE": 71, "MAC": 2048, "WR": 273, "REF": 2, "RD": 0}
    assert result["utilisation"] == pytest.approx(8192 / 9134)
    assert result["end_to_end"]["kernel"] == result["ablation"]["all"] == 9134
    file = tmp_path / "log.csv"
    assert main(["pim", "gemv", "--design", "hbm2-pim-samsung", *SHAPE, "--log", str(file)]) == 0
    lines = file.read_text().splitlines()
    assert lines[:2] == ["cycle,command,bank,row", "1,ACT,0,-5"]
    assert sum(text.split(",")[1] == "MAC" for text in lines) == 2048
    assert "13166" in capsys.readouterr().out


def test_a_device_is_no_accelerator(capsys):
    """Commands that need a layer refuse it in one line."""
    rule = (
        r"design: must be an accelerator with RTL \(fpga, fpga-deep, fpga-ecp5, pim, pim-small\),"
        " not 'hbm2-pim', a device for 'pim gemv'"
    )
    for arguments in (
        ["sim", "--model", "mixtral-8x7b", "--tokens", "1", "--engine", "model"],
        ["layout", "--model", "mixtral-8x7b"],
    ):
        assert main([*arguments, "--design", "hbm2-pim"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(rf"expertbank: {rule}\n", captured.err)


MISTAKES = {
    "no rows": (["--rows", "0"], r"rows: must be in 1\.\.1048576, not 0"),
    "negative cols": (["--cols", "-3"], r"cols: must be in 1\.\.1048576, not -3"),
    "no channel": (["--channels", "0"], r"channels: must be in 1\.\.4096, not 0"),
    "no item": (["--batch", "0"], r"batch: must be in 1\.\.4096, not 0"),
    "not a number": (["--rows", "many"], r"Invalid value for '--rows': 'many' is not a valid integer\."),
    "too large": (
        ["--rows", "1048576", "--cols", "1048576"],
        r"rows: times cols needs \d+ rows of each bank, which has 16384",
    ),
    "too many results": (
        ["--channels", "1", "--rows", "8000", "--cols", "1000", "--batch", "700"],
        r"batch: with its results behind the weights needs 17279 rows of each bank, which has 16384",
    ),
    "unknown design": (
        ["--design", "hbm9"],
        r"design: is neither a preset \(.*hbm2-pim, .*\) nor a \.toml file: 'hbm9'",
    ),
    "an accelerator": (
        ["--design", "pim"],
        r"design: must be a device for 'pim gemv' \(.*hbm2-pim, .*\), not 'pim', an accelerator with RTL",
    ),
    "gap": (["--mac-gap", "0"], r"mac_gap: must be in 1\.\.1024, not 0"),
    "adders": (["--adders", "0", "--end-to-end"], r"adders: must be in 1\.\.65536, not 0"),
    "adders of nothing": (["--adders", "0"], "adders: needs --end-to-end"),
    "interruptions of nothing": (["--interruptions", "5"], "interruptions: needs --end-to-end"),
    "interruptions": (
        ["--interruptions", "-1", "--end-to-end"],
        r"interruptions: must be in 0\.\.1048576, not -1",
    ),
    "of another schedule": (
        ["--design", "hbm2-pim-samsung", "--without", "split"],
        "without: is of schedule streamed, which hbm2-pim-samsung has not",
    ),
    "ablation of another schedule": (
        ["--design", "hbm2-pim-samsung", "--ablation"],
        "ablation: is of schedule streamed, which hbm2-pim-samsung has not",
    ),
    "no such folder": (
        ["--log", "/nowhere/log.csv"],
        "/nowhere/log.csv: log: is in a folder that does not exist",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert main(["pim", "gemv", "--design", "hbm2-pim", *SHAPE, *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", captured.err)


PEAKS = {
    "duplex": 21.3e12,
    "duplex-bank-group-pim": 21.3e12,
    "gddr6-aim": 1.024e12,
    "lpddr5-pim": 102.4e9,
    "monde": 2.048e12,
}
"""Operations per second of a device as published; two to a MAC."""


def test_devices_as_published():
    """Fixed names are listed; rates are the published ones; every number has a source."""
    assert {"fpga", "pim", "hbm2-pim-samsung", "hbm2-pim", "hbm2-pim-quad", "duplex"} <= set(design_names())
    for name, peak in PEAKS.items():
        assert 2 * load_device(name).macs_per_s == pytest.approx(peak, rel=0.005)
    # Logic-PIM reads a byte for 8 operations, its rival at the banks for one.
    logic, bank = load_device("duplex"), load_device("duplex-bank-pim")
    assert 2 * logic.macs_per_s / logic.internal_bytes_per_s == pytest.approx(8, rel=0.005)
    assert 2 * bank.macs_per_s / bank.internal_bytes_per_s == pytest.approx(1, rel=0.005)
    assert bank.internal_bytes_per_s / logic.internal_bytes_per_s == 4
    for name in preset_names("devices"):
        assert load_sources("devices", name)["*"]["grade"] in "ABCD"
        assert load_device(name).name == name


def test_a_device_without_a_schedule_runs_no_product(capsys, tmp_path):
    text = (PRESETS / "devices" / "duplex.toml").read_text()
    file = tmp_path / "d.toml"
    file.write_text(text.replace('schedule = "lockstep"', 'schedule = "none"'))
    assert main(["pim", "gemv", "--design", str(file), *SHAPE]) == 2
    captured = capsys.readouterr()
    assert captured.err == "expertbank: design: has no command schedule: 'duplex'\n"


EDITS = {
    "level": (
        'level = "bank_pair"',
        'level = "bank"',
        "level: must be bank_pair for schedule streamed, not bank",
    ),
    "units": ("units = 8", "units = 4", "units: must be 8, one for two of 16 banks, not 4"),
    "lanes": ("lanes = 16", "lanes = 32", "lanes: must be 16, the 16-bit numbers of a burst, not 32"),
    "no DRAM": ('dram = "hbm2-pim"', "", "dram: must be given for schedule streamed"),
    "registers": ("input_registers = 8", "input_registers = 1", "input_registers: must be in 2..64, not 1"),
    "tokens": (
        "tokens_per_burst = 4",
        "tokens_per_burst = 8",
        "tokens_per_burst: must be at most 4, half of the registers, not 8",
    ),
    "clock": ("clock_hz = 1e9", "clock_hz = -1.0", "clock_hz: must be positive, not -1"),
    "unknown key": ("units = 8", "units = 8\ncolour = 1", None),
    "schedule": (
        'schedule = "streamed"',
        'schedule = "fast"',
        "schedule: must be one of barrier, streamed, lockstep, pins, none, not 'fast'",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), EDITS.values(), ids=EDITS.keys())
def test_an_impossible_device(tmp_path, old, new, message):
    text = (PRESETS / "devices" / "hbm2-pim-quad.toml").read_text()
    assert text.count(old) == 1
    file = tmp_path / "d.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(InputError) as error:
        load_device(str(file))
    assert str(error.value).startswith(f"{file}: {message or 'colour: unknown key; known are '}")
    assert message is None or str(error.value) == f"{file}: {message}"


def test_a_dram_without_time_between_refreshes(tmp_path):
    """The least interval that is allowed still lets all schedules end, hot and slowed down."""
    part, device = (
        (PRESETS / place).read_text() for place in ("parts/hbm2-pim.toml", "devices/hbm2-pim.toml")
    )
    (tmp_path / "part.toml").write_text(part.replace("refi = 3900", "refi = 891"))
    file = tmp_path / "d.toml"
    file.write_text(device.replace('dram = "hbm2-pim"', f'dram = "{tmp_path}/part.toml"'))
    rule = "must be at least 892, or hot there is no time for a write between refreshes, not 891"
    with pytest.raises(InputError) as error:
        load_device(str(file))
    assert str(error.value) == f"{file}: dram.timing.refi: {rule}"
    (tmp_path / "part.toml").write_text(part.replace("refi = 3900", "refi = 892"))
    limits = PowerLimits(mac_gap=6, act_gap=20, hot=True)
    for schedule in ("streamed", "barrier"):
        file.write_text(file.read_text().replace('schedule = "streamed"', f'schedule = "{schedule}"'))
        for product in products(2, 5, most=600):
            run = run_gemv(load_device(str(file)), product, Options(limits=limits), log=True)
            if schedule == "streamed":
                assert run.check() == []
