"""Products on devices that describe themselves: sets of banks in lockstep, and cores behind the pins."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim.claims.memory import attacc_cycles
from sim.cli import main
from sim.gemv import lockstep, pins
from sim.gemv.check import check_sums
from sim.gemv.commands import EVEN, Kind, PowerLimits, Product, limited
from sim.gemv.energy import gemv_counts
from sim.gemv.report import Options, Run, run_gemv
from spec.design import RegisterPath
from spec.device import PimDevice, Schedule
from spec.errors import InputError
from spec.files import PRESETS
from spec.load import load_design, load_device, load_sources, preset_names

DEVICES = [load_device(name) for name in preset_names("devices")]
LOCKSTEP = [device for device in DEVICES if device.schedule is Schedule.LOCKSTEP]
MONDE = load_device("monde")
BIG = Product(rows=4096, cols=4096, channels=32)
SHAPE = ["--channels", "32", "--rows", "4096", "--cols", "4096"]
NAMES = {"argvalues": LOCKSTEP, "ids": lambda device: device.name}


def products(seed: int, count: int) -> list[Product]:
    """Draw shapes: one channel and many, tiny and ragged, some with several items."""
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    return [
        Product(
            rows=int(rng.integers(1, 1 + int(rng.choice([3, 200, 3000])))),
            cols=int(rng.integers(1, 1 + int(rng.choice([20, 700, 5000])))),
            channels=int(rng.choice([1, 1, 3, 4, 12, 32])),
            batch=int(rng.choice([1, 1, 2, 3, 9, 21])),
        )
        for _ in range(count)
    ]


def test_the_devices_are_those_of_the_field():
    assert {device.name for device in LOCKSTEP} == {
        "attacc",
        "duplex",
        "duplex-bank-group-pim",
        "duplex-bank-pim",
        "gddr6-aim",
        "lpddr5-pim",
    }
    assert MONDE.schedule is Schedule.PINS
    for device in [*LOCKSTEP, MONDE]:
        sources = load_sources("devices", device.name)
        # What the schedule is made of is graded apart from what is published.
        assert sources["schedule"]["grade"] == "D"
        assumed = {key for key, entry in sources.items() if entry["source"].startswith("assumed")}
        assert all(sources[key]["grade"] == "D" for key in assumed)


def shapes_of(device: PimDevice, seed: int, count: int) -> list[tuple[Product, Options]]:
    rng = np.random.default_rng(seed)
    drawn = []
    for product in products(seed, count):
        limits = PowerLimits(
            mac_gap=int(rng.choice([1, 1, 9])),
            act_gap=int(rng.choice([1, 1, 60])),
            hot=bool(rng.random() < 0.2),
        )
        drawn.append((product, Options(limits=limits, refresh=bool(rng.random() < 0.85))))
    return drawn


@pytest.mark.parametrize("device", **NAMES)
def test_no_rule_is_broken(device):
    """Random shapes, limits, refreshes; with a log and without the same commands."""
    for product, options in shapes_of(device, 41, 25):
        check_run(run_gemv(device, product, options, log=True))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300, 340))
@pytest.mark.parametrize("device", **NAMES)
def test_wide_sweep(device, seed):
    for product, options in shapes_of(device, seed, 20):
        check_run(run_gemv(device, product, options, log=True))


def check_run(run: Run) -> None:
    where = (run.product, run.options)
    assert [str(one) for one in run.check()] == [], where
    counts = np.bincount(run.log[:, 1], minlength=len(Kind))
    assert counts.tolist() == run.counts.tolist(), where
    device, product = run.device, run.product
    layout = lockstep.layout(device, product, run.options.limits)
    # All weights are there, and each burst is read once for each group of tokens.
    held = layout.outputs * layout.bursts * device.banks_per_mac * device.burst_elements
    assert held * product.channels >= product.rows * product.cols
    groups = -(-product.batch // layout.tokens)
    assert counts[Kind.MAC] == groups * layout.outputs * layout.bursts
    macs = run.log[run.log[:, 1] == Kind.MAC]
    places, reads = np.unique(macs[:, 2:], axis=0, return_counts=True)
    bursts = layout.outputs * layout.bursts
    assert len(places) == -(-bursts // device.timed.bursts_per_row)
    assert (reads % groups == 0).all()
    assert run.cycles > run.log[-1, 0]


def test_a_device_written_by_a_user_runs_too(tmp_path):
    """Other banks, lanes, buffers and paths than any preset's: the schedule reads the description."""
    rng = np.random.default_rng(5)
    base = load_device("duplex")
    for _ in range(30):
        banks = int(rng.choice([4, 8, 16]))
        tokens = int(rng.choice([1, 2, 4]))
        device = replace(
            base,
            banks_per_mac=banks,
            units=int(rng.choice([1, 2, 4])),
            lanes=int(rng.choice([8, 64, 512])),
            mac_cycles=int(rng.choice([1, 3])),
            mac_open_cycles=int(rng.choice([0, 41])),
            element_bits=int(rng.choice([4, 8, 16])),
            result_bits=int(rng.choice([16, 32])),
            tokens_per_burst=tokens,
            output_registers=int(rng.choice([tokens, 16])),
            buffer_bytes=32 * tokens * int(rng.choice([1, 3, 40])),
            register_path=RegisterPath(str(rng.choice(["own", "shared"]))),
            dram=replace(base.dram, all_bank_exempt=bool(rng.random() < 0.5)),
        )
        for product, options in shapes_of(device, int(rng.integers(1000)), 2):
            check_run(run_gemv(device, product, options, log=True))


def test_every_step_of_the_way_is_hidden_that_can_be():
    """Cycles against what bounds them: MACs and refreshes, of one set also the rows that it opens."""
    for device in LOCKSTEP:
        D = dict(zip(lockstep.DISTANCES, lockstep.distances(device, PowerLimits()).tolist(), strict=True))
        run = run_gemv(device, BIG)
        macs, rows, refreshes = (int(run.counts[kind]) for kind in (Kind.MAC, Kind.ACT, Kind.REF))
        bound = macs * D["mac_gap"]
        lost = D["pre_to_ref"] + D["ref_to_any"] + D["act_to_mac"]
        if device.banks_per_mac == device.timed.num_banks:
            bound += (rows - refreshes) * (D["mac_to_pre"] + D["pre_to_act"] + D["act_to_mac"] - D["mac_gap"])
        bound += refreshes * lost
        assert bound <= run.cycles < 1.07 * bound, device.name


def test_tokens_that_share_a_burst_save_reads_and_logic_pim_takes_eight_for_one():
    duplex = load_device("duplex")
    one, eight, nine = (run_gemv(duplex, replace(BIG, batch=batch)) for batch in (1, 8, 9))
    assert one.commands["MAC"] == eight.commands["MAC"] == nine.commands["MAC"] // 2
    assert eight.cycles < 1.1 * one.cycles
    assert nine.cycles > 1.9 * one.cycles
    assert eight.utilisation > 7 * one.utilisation
    bank = load_device("duplex-bank-pim")
    batch = [run_gemv(bank, replace(BIG, batch=batch)).cycles for batch in (1, 8)]
    assert batch[1] > 7 * batch[0]
    # Which is why Logic-PIM, a third as fast for one token, is the faster one for eight.
    assert one.cycles > 2.5 * batch[0] and eight.cycles < batch[1] / 2


ATTACC = json.loads((Path(__file__).parent / "data" / "attacc_attention.json").read_text())


def test_attaccs_all_bank_macs_cost_what_its_simulator_says():
    """Cycles for a MAC more, with rows, refreshes and power budget; not what an attention has beside."""
    published, ours = attacc_cycles(ATTACC)
    assert published == pytest.approx(8.09, abs=0.01)
    assert ours == pytest.approx(published, rel=0.03)
    # Every pair of the lengths says so within what a half-used row is worth.
    points, share = ATTACC["points"], ATTACC["heads_of_the_busiest_channel"] / ATTACC["heads"]
    for first, last in pairwise(points):
        one = (last["cycles"] - first["cycles"]) / (share * (last["mac"] - first["mac"]))
        assert ours == pytest.approx(one, rel=0.08)


@pytest.mark.parametrize(("gap", "published"), [(6, 9), (4, 16)])
def test_attaccs_bandwidth_beside_that_of_the_pins(gap, published):
    """Published are 9 times the pins' within the power budget and 16 without, the latter before any row."""
    device = replace(load_device("attacc"), mac_gap=gap)
    run = run_gemv(device, Product(rows=32 * 500, cols=512, channels=1), Options(refresh=False))
    times = run.counts[Kind.MAC] * device.banks_per_mac * device.timed.timing.burst / run.cycles
    in_a_row = device.banks_per_mac * device.timed.timing.burst / max(gap, device.timed.timing.ccd_l)
    assert (times if gap == 6 else in_a_row) == pytest.approx(published, rel=0.03)
    assert times < in_a_row


def run_of(name: str, product: Product = BIG, options: Options | None = None) -> Run:
    return run_gemv(load_device(name), product, options or Options(), log=True)


def moved(run: Run, kind: Kind, number: int, by: int) -> set[str]:
    """Return the rules that are broken when one command of a kind comes some cycles later."""
    log = run.log.copy()
    log[np.flatnonzero(log[:, 1] == kind)[number], 0] += by
    return {one.rule for one in replace(run, log=log[np.lexsort((log[:, 1], log[:, 0]))]).check()}


def test_planted_violations_are_found():
    """Rules that only these schedules have; those of the table are planted in test_pim_gemv."""
    aim = run_of("gddr6-aim", replace(BIG, batch=2))
    assert "ACT to MAC, bank 15" in moved(aim, Kind.ACT, 3, 1)
    assert "sums read before the next" in moved(aim, Kind.RD, 4, 300)
    assert "sums read behind their last MAC" in moved(aim, Kind.RD, 4, -60)
    assert "input there" in moved(aim, Kind.REG, 63, 300)
    assert "input not replaced" in moved(aim, Kind.REG, 64, -3000)
    logic = run_of("duplex", replace(BIG, batch=16))
    # HBM3's ACT is a clock and a half, whose end counts, and keeps the row bus for two clocks.
    assert moved(logic, Kind.ACT, 3, -1) >= {"tRRD_S"}
    assert "tRCD, bank 13" in moved(logic, Kind.ACT, 7, 100)
    acts = logic.log[logic.log[:, 1] == Kind.ACT, 0]
    closings = np.flatnonzero(logic.log[:, 1] == Kind.PRE)
    after = int(acts[np.searchsorted(acts, logic.log[closings[2], 0])] + 1 - logic.log[closings[2], 0])
    assert "one command per cycle on the row bus" in moved(logic, Kind.PRE, 2, after)
    assert "input not replaced" in moved(logic, Kind.REG, 300, -900)
    phone = run_of("lpddr5-pim")
    # The second half of ACT, and CAS in front of an access that crosses the pins.
    assert "one command per cycle on the bus" in moved(phone, Kind.MAC, 40, 1) | moved(phone, Kind.ACT, 9, 1)
    gaps = run_of("attacc")
    assert "all-bank MACs" in moved(gaps, Kind.MAC, 40, -1)
    for run in (aim, logic, phone, gaps):
        assert run.check() == []
        for kind in (Kind.MAC, Kind.REG, Kind.RD):
            log = np.delete(run.log, np.flatnonzero(run.log[:, 1] == kind)[-1], axis=0)
            assert replace(run, log=log).check() != [], kind


def test_a_slot_that_cas_needs_is_not_anothers():
    phone = run_of("lpddr5-pim")
    log = phone.log.copy()
    log = np.delete(log, np.flatnonzero(log[:, 1] == Kind.REG)[1:], axis=0)
    write = np.flatnonzero(log[:, 1] == Kind.REG)[0]
    act = log[np.flatnonzero(log[:, 1] == Kind.ACT)[0], 0]
    for cycle, clash in ((act + 1, True), (act + 2, True), (act + 3, False), (act + 4, True)):
        log[write, 0] = cycle  # at 2 its CAS is in the slot of ACT-2, at 4 there is the next ACT
        found = replace(phone, log=log[np.lexsort((log[:, 1], log[:, 0]))]).check()
        assert ("one command per cycle on the bus" in {one.rule for one in found}) is clash, cycle


def test_sums_of_the_checker_and_of_the_schedule_are_counted_apart():
    run = run_of("attacc", Product(rows=300, cols=900, channels=1, batch=2))
    layout = lockstep.layout(run.device, run.product, PowerLimits())
    assert check_sums(run.log, layout, 2, 32, 16, 1, 32, shared=False) == []
    for other in (replace(layout, bursts=layout.bursts + 1), replace(layout, sums=4)):
        assert check_sums(run.log, other, 2, 32, 16, 1, 32, shared=False)


def test_bursts_read_in_another_order_than_stored_are_found():
    """Weights are stored once: a last group of fewer tokens has the chunks and outputs of the full ones."""
    duplex = load_device("duplex")
    product = Product(rows=80, cols=1040, channels=1, batch=11)
    layout = lockstep.layout(duplex, product, PowerLimits())
    # Eight tokens: chunks of 32 bursts, 8 outputs at once; three alone: of 65 and 10, all there are.
    assert (layout.tokens, layout.outputs, layout.bursts) == (8, 10, 65)
    assert (layout.entries, layout.sums) == (256, 64)

    def rules(log: np.ndarray) -> set[str]:
        found = check_sums(log, layout, 11, 8, 16, 2, duplex.timed.bursts_per_row, shared=False)
        return {one.rule for one in found}

    both, eight, three = (
        run_gemv(duplex, replace(product, batch=batch), log=True).log for batch in (11, 8, 3)
    )
    assert rules(both) == set()
    behind = three.copy()
    behind[:, 0] += eight[-1, 0]
    assert rules(np.concatenate([eight, behind])) == {"MACs, sums and inputs of the layout"}
    macs = np.flatnonzero(both[:, 1] == Kind.MAC)
    for first, other in ((0, 32), (31, 64), (650, 682), (700, 800)):
        swapped = both.copy()
        swapped[macs[[first, other]], 2:] = swapped[macs[[other, first]], 2:]
        assert rules(swapped) == {"burst where it is stored"}


def test_sums_of_a_last_group_are_those_of_the_full_ones_chunks():
    """Three chunks for each of 11 tokens: the host adds two sums more than there are results."""
    product = Product(rows=80, cols=1040, channels=1, batch=11)
    run = run_gemv(load_device("duplex"), product)
    assert gemv_counts(run)["host_add"] == 2 * 80 * 11
    # Reads of 16 sums of 8 banks: of 8 and of 2 outputs, for 8 and for 3 tokens.
    assert run.commands["RD"] == 3 * 8 * (8 + 2) * (8 + 3) // 16


# Cores behind the pins.


def test_monde_reads_as_fast_as_its_pins():
    """A published FPGA of the kind reaches 95.5 % of its pins; here refreshes are the most that is lost."""
    run = run_gemv(MONDE, replace(BIG, channels=40))
    bursts = -(-4096 * 4096 // 16 // 40)
    assert run.commands["MAC"] == run.counts[Kind.MAC] == bursts
    assert 0.9 < bursts * MONDE.timed.timing.burst / run.cycles < 1
    assert run.commands["WR"] == run.commands["RD"] == 0
    # Four tokens at the rate of the pins, eight at that of the lanes.
    four, eight = (run_gemv(MONDE, replace(BIG, channels=40, batch=batch)) for batch in (4, 8))
    assert four.cycles == pytest.approx(run.cycles, rel=0.001)
    assert four.commands["MAC"] == bursts
    assert eight.commands["MAC"] == bursts and eight.cycles == pytest.approx(2 * bursts * 2, rel=0.01)
    more = run_gemv(MONDE, replace(BIG, channels=40, batch=128))
    assert more.commands["MAC"] == 2 * bursts


@pytest.mark.parametrize("seed", range(3))
def test_mondes_commands_break_no_rule(seed):
    for product, options in shapes_of(MONDE, seed, 6):
        run = run_gemv(
            MONDE, product, replace(options, limits=replace(options.limits, mac_gap=1, act_gap=1)), log=True
        )
        assert [str(one) for one in run.check()] == [], (product, options)
        assert np.bincount(run.log[:, 1], minlength=len(Kind)).tolist() == run.counts.tolist()


def test_spoiled_logs_of_monde_are_found_out():
    run = run_gemv(MONDE, Product(rows=512, cols=4096, channels=4), log=True)
    assert run.check() == []
    for kind, number in ((Kind.MAC, 50), (Kind.ACT, 3), (Kind.PRE_ALL, 0), (Kind.REF, 0), (Kind.ACT_2, 2)):
        log = run.log.copy()
        log[np.flatnonzero(log[:, 1] == kind)[number], 0] -= 20
        log = log[np.argsort(log[:, 0], kind="stable")]
        dram = limited(MONDE.timed, PowerLimits())
        assert pins.check(dram, log, refresh=True), kind


# The command line.


def test_devices_from_the_command_line(capsys, tmp_path):
    for name in [device.name for device in LOCKSTEP] + ["monde"]:
        log = tmp_path / f"{name}.csv"
        assert main(["pim", "gemv", "--design", name, *SHAPE, "--check", "--log", str(log), "--json"]) == 0, (
            name
        )
        result = json.loads(capsys.readouterr().out)
        assert result["macs"] == 4096 * 4096 and result["violations"] == 0
        assert {"ACT", "PRE", "MAC", "WR", "REF"} <= set(result["commands"])
        assert 0 < result["utilisation"] <= 1
        lines = log.read_text().splitlines()
        assert lines[0] == "cycle,command,bank,row"
        assert sum(",MAC," in line for line in lines) == result["commands"]["MAC"]
    assert re.search(r"^\d+,MAC,set1,0$", (tmp_path / "duplex.csv").read_text(), re.MULTILINE)


MISTAKES = {
    "without": (
        ["--design", "duplex", "--without", "prefetch"],
        "without: is of schedule streamed, which duplex has not",
    ),
    "ablation": (
        ["--design", "monde", "--ablation"],
        "ablation: is of schedule streamed, which monde has not",
    ),
    "ablation of sets": (
        ["--design", "attacc", "--ablation"],
        "ablation: is of schedule streamed, which attacc has not",
    ),
    "end to end": (
        ["--design", "attacc", "--end-to-end"],
        "end_to_end: is of schedules barrier and streamed, which attacc has not",
    ),
    "gap": (["--design", "monde", "--mac-gap", "2"], "mac_gap: is of all-bank commands, which monde has not"),
    "act": (["--design", "monde", "--act-gap", "2"], "act_gap: is of all-bank commands, which monde has not"),
    "size": (
        ["--design", "gddr6-aim", "--rows", "100000", "--cols", "1000000", "--channels", "1"],
        "rows: times cols needs 6103516 rows of each bank, which has 16384",
    ),
    "pins": (
        ["--design", "monde", "--rows", "100000", "--cols", "1000000", "--channels", "1"],
        "rows: times cols needs 6103516 rows of each bank, which has 32768",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert main(["pim", "gemv", *SHAPE, *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"expertbank: {message}\n"


def test_duplex_has_no_rtl():
    with pytest.raises(InputError) as error:
        load_design("duplex")
    presets = "fpga, fpga-deep, fpga-ecp5, pim, pim-small"
    rule = f"must be an accelerator with RTL ({presets}), not 'duplex', a device for 'pim gemv'"
    assert str(error.value) == f"design: {rule}"


EDITS = {
    "banks": (
        "banks_per_mac = 16",
        "banks_per_mac = 6",
        "banks_per_mac: must divide 16 banks and take as many of each of 4 bank groups, not 6",
    ),
    "no banks": (
        "banks_per_mac = 16",
        "",
        "banks_per_mac: must divide 16 banks and take as many of each of 4 bank groups, not 0",
    ),
    "units": ("units = 16", "units = 12", "units: must divide the 16 banks of a MAC, not 12"),
    "registers": (
        "output_registers = 1",
        "output_registers = 0",
        "output_registers: must be in 1..64, not 0",
    ),
    "buffer": (
        "buffer_bytes = 2048",
        "buffer_bytes = 16",
        "buffer_bytes: must be at least 32, a burst of inputs for each token of a burst, not 16",
    ),
    "bits": ("lanes = 16", "lanes = 16\nelement_bits = 12", "element_bits: must be 4, 8, 16 or 32, not 12"),
    "path": (
        'register_path = "shared"',
        'register_path = "fast"',
        "register_path: must be one of shared, own, not 'fast'",
    ),
    "both": (
        'dram = "gddr6-aim"',
        'dram = "gddr6-aim"\nstandard = "gddr6-14000"',
        "standard: must not be given beside dram",
    ),
    "no DRAM": ('dram = "gddr6-aim"', "", "dram: must be given for schedule lockstep"),
    "gap": ("lanes = 16", "lanes = 16\nmac_gap = 0", "mac_gap: must be in 1..1024, not 0"),
}


@pytest.mark.parametrize(("old", "new", "message"), EDITS.values(), ids=EDITS.keys())
def test_an_impossible_device(tmp_path, old, new, message):
    text = (PRESETS / "devices" / "gddr6-aim.toml").read_text()
    assert text.count(f"\n{old}\n") == 1
    file = tmp_path / "d.toml"
    file.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
    with pytest.raises(InputError) as error:
        load_device(str(file))
    assert str(error.value) == f"{file}: {message}"


def test_a_device_with_too_little_time_between_refreshes(tmp_path):
    """The least interval that is allowed still lets a product end, hot and slowed down."""
    for name, least in (("gddr6-aim", 748), ("duplex", 1360)):
        device = load_device(name)
        slow = replace(device.dram, timing=replace(device.dram.timing, refi=least))
        with pytest.raises(InputError) as error:
            replace(device, dram=replace(slow, timing=replace(slow.timing, refi=least - 1)))
        rule = f"must be at least {least}, or hot there is no time for a row between refreshes"
        assert str(error.value) == f"dram.timing.refi: {rule}, not {least - 1}"
        limits = PowerLimits(mac_gap=9, act_gap=20, hot=True)
        for product in products(6, 4):
            run = run_gemv(replace(device, dram=slow), product, Options(limits=limits), log=True)
            assert run.check() == []


def test_sets_of_banks():
    """Neighbouring banks of every bank group; those opened one behind the other lie in different groups."""
    bundles = lockstep.sets_of(load_device("duplex").timed, 8)
    assert bundles.tolist() == [[0, 4, 8, 12, 1, 5, 9, 13], [2, 6, 10, 14, 3, 7, 11, 15]]
    assert sorted(lockstep.sets_of(load_device("attacc").timed, 32)[0]) == list(range(32))
    log = run_of("duplex", Product(rows=64, cols=64, channels=1)).log
    assert set(log[log[:, 1] == Kind.ACT, 2]) <= set(range(16))
    assert set(log[log[:, 1] == Kind.MAC, 2]) <= {EVEN, EVEN + 1}


def test_the_docs_have_these_cycles():
    text = (Path(__file__).parent.parent / "docs" / "pim-gemv.md").read_text()
    for device in [*LOCKSTEP, MONDE]:
        [row] = re.findall(rf"^\| `{device.name}` \| (\d.*) \|$", text, re.MULTILINE)
        cells = row.split(" | ")
        for batch, shown in ((1, cells[:3]), (8, cells[3:])):
            run = run_gemv(device, replace(BIG, batch=batch))
            microseconds = run.cycles * device.timed.clock_ps * 1e-6
            assert shown == [str(run.cycles), f"{microseconds:.1f}", f"{100 * run.utilisation:.1f} %"], device
