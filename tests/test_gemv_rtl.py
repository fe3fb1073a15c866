"""Command programs in hardware: every command in the model's cycle, every result golden's bits."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from golden.secded import CLEAN, COLUMNS, CORRECTED, DATA_BITS, MASKS, UNCORRECTED, decode, encode, stored
from rtl.export import LINT_WAIVERS
from rtl.gemv import ChannelConfig, ProgramChannel
from rtl.gemv import barrier as barrier_engine
from rtl.gemv import streamed as streamed_engine
from rtl.gemv.layouts import column_layout, row_layout
from rtl.gemv.sequencer import PLACE_BITS, Sequencer
from rtl.secded import CorrectWord
from rtl.stream import connect_stream
from sim.cli import main
from sim.divergence import first_divergence
from sim.flips import Flips, flip_words
from sim.gemv import streamed
from sim.gemv.area import Cost, costs, variants
from sim.gemv.commands import EVEN, NO_LIMITS, Kind, PowerLimits, Product, timings
from sim.gemv.program import (
    COLUMN_KINDS,
    ROW_KINDS,
    Job,
    RtlRun,
    bus_check,
    commands_seen,
    flipped,
    operands,
    program_of,
    share_of,
)
from sim.gemv.report import DEFAULT, Options, run_gemv
from sim.rtlsim import Trace
from sim.toolchain import verilator_command
from spec.device import PimDevice, Schedule
from spec.dram import Command
from spec.errors import InputError
from spec.files import PRESETS
from spec.load import load_device
from spec.program import ALL, WORD_BITS, Additions, Op, first_cycle, word, words

MOST_CYCLES = 60_000


def tiny(name: str) -> PimDevice:
    """Return a device with 2 units of 4 lanes; registers, timings and bursts of a row stay."""
    device = load_device(name)
    dram = replace(device.timed, bank_groups=2, banks_per_group=2, rows=1024, burst_bytes=8, row_bytes=32 * 8)
    return replace(device, units=2, lanes=4, dram=dram)


DEVICES = {name: tiny(name) for name in ("hbm2-pim", "hbm2-pim-quad", "hbm2-pim-samsung")}


class EngineAlone(wiring.Component):
    """A channel without its units: commands alone."""

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "prog_en": Out(1),
                "prog_addr": Out(PLACE_BITS),
                "prog_data": In(WORD_BITS),
                "o_row": Out(row_layout(config)),
                "o_column": Out(column_layout(config)),
                "done": Out(1),
                "late": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        streamed = self.config.device.schedule is Schedule.STREAMED
        make = streamed_engine.StreamedEngine if streamed else barrier_engine.BarrierEngine
        m.submodules.engine = engine = make(self.config)
        m.submodules.sequencer = sequencer = Sequencer()
        connect_stream(m, sequencer.o, engine.i)
        m.d.comb += [
            sequencer.start.eq(self.start),
            engine.start.eq(self.start),
            self.prog_en.eq(sequencer.prog_en),
            self.prog_addr.eq(sequencer.prog_addr),
            sequencer.prog_data.eq(self.prog_data),
            self.o_row.eq(engine.o_row),
            self.o_column.eq(engine.o_column.command),
            self.done.eq(engine.done),
            self.late.eq(engine.late),
        ]
        return m


class Seen:
    """What a run in ``amaranth.sim`` showed."""

    def __init__(self) -> None:
        self.row: list[tuple[int, int]] = []
        self.column: list[tuple[int, int]] = []
        self.results: list[list[int]] = []
        self.checks: list[list[int]] = []
        self.cycles = -1
        self.late = False
        self.counts = (0, 0)


def simulate(
    config: ChannelConfig,
    program: list[int],
    inputs: np.ndarray,
    image: np.ndarray,
    dut=None,
    most: int = MOST_CYCLES,
) -> Seen:
    """Run a program on a channel, its memories around it."""
    dut, units = dut or ProgramChannel(config), dut is None
    seen = Seen()
    given = [int.from_bytes(row.tobytes(), "little") for row in inputs]
    bursts = [int.from_bytes(row.tobytes(), "little") for row in image]

    async def bench(ctx):
        ctx.set(dut.start, 1)
        coming: dict[int, int] = {}
        for cycle in range(most):
            for bus, port in ((seen.row, dut.o_row), (seen.column, dut.o_column)):
                value = ctx.get(port.as_value())
                if value & 7:
                    bus.append((cycle, value))
            if units and ctx.get(dut.o.valid):
                found = [ctx.get(one) for one in dut.o.payload.data]
                seen.results.append([one & 0xFFFFFFFF for one in found])
                seen.checks.append([one >> 32 for one in found])
            if ctx.get(dut.done):
                seen.cycles = cycle - first_cycle(config.device)
                break
            wanted = []
            if ctx.get(dut.prog_en):
                wanted.append((dut.prog_data, program[ctx.get(dut.prog_addr)]))
            if units:
                if ctx.get(dut.x_en):
                    wanted.append((dut.x_data, given[ctx.get(dut.x_addr)]))
                if ctx.get(dut.mem_en):
                    coming[cycle + config.storage_cycles] = bursts[ctx.get(dut.mem_addr.as_value())]
                wanted.append((dut.mem_data, coming.pop(cycle + 1, 0)))
            await ctx.tick()
            for port, value in wanted:
                ctx.set(port, value)
        seen.late = bool(ctx.get(dut.late))
        if config.secded:
            seen.counts = (ctx.get(dut.corrected), ctx.get(dut.uncorrected))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def differences(
    device: PimDevice, product: Product, options: Options, seen: Seen, results: np.ndarray
) -> str:
    """Return the first difference from the model and golden, or nothing."""

    def trace(bus):
        pairs = np.array(bus, dtype=np.int64).reshape(-1, 2)
        return Trace(pairs[:, 0], pairs[:, 1:].astype(np.uint64))

    run = run_gemv(device, product, options, log=True)
    log = commands_seen(device, trace(seen.row), trace(seen.column))
    found = first_divergence(
        [
            bus_check(device, "o_row", ROW_KINDS, log, run.log),
            bus_check(device, "o_column", COLUMN_KINDS, log, run.log),
        ]
    )
    if found:
        return found.message
    if (seen.cycles, seen.late) != (run.cycles, False):
        return f"ends in cycle {seen.cycles}, not {run.cycles}; late: {seen.late}"
    got = np.array(seen.results, dtype=np.uint32).reshape(-1, results.shape[1])
    if len(got) != len(results):
        return f"{len(got)} bursts of results, not {len(results)}"
    wrong = np.argwhere(got != results.view(np.uint32))
    return f"result {wrong[0].tolist()} of {len(results)}" if len(wrong) else ""


def run(name: str, product: Product, options: Options = DEFAULT, *, seed: int = 0, channel: int = 0) -> str:
    """Run a channel's part of a product; return the first difference, or nothing."""
    device = DEVICES[name]
    share = share_of(device, product, options, *operands(product, seed), channel)
    seen = simulate(
        ChannelConfig(device=device, additions=options.additions.in_hardware),
        program_of(device, product, options),
        share.input_image(),
        share.bank_image(),
    )
    return differences(device, product, options, seen, share.results)


OFTEN = Options(limits=PowerLimits(hot=True))
"""Refreshes twice as often: short runs meet some."""
SMALL = {
    "hbm2-pim": Product(rows=20, cols=100, channels=1, batch=2),
    "hbm2-pim-samsung": Product(rows=17, cols=70, channels=1, batch=1),
}
"""Two passes or tiles, a ragged last burst; refreshes of both ranks."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_command_and_every_bit(name):
    assert run(name, SMALL[name], OFTEN) == ""


def drawn(name: str, rng: np.random.Generator) -> tuple[Product, Options, int]:
    """Draw a product, how it is run, and a channel of it."""
    channels = int(rng.choice([1, 2, 6]))
    tokens = DEVICES[name].tokens_per_burst
    product = Product(
        rows=int(rng.integers(1, 1 + 20 * channels)),
        cols=int(rng.integers(1, 200)),
        channels=channels,
        batch=int(rng.integers(1, 2 * tokens + 2)) if tokens > 1 else int(rng.choice([1, 1, 2, 3])),
    )
    limits = PowerLimits(
        mac_gap=int(rng.choice([1, 6])), act_gap=int(rng.choice([1, 40])), hot=bool(rng.random() < 0.7)
    )
    return product, Options(limits=limits, refresh=bool(rng.random() < 0.9)), int(rng.integers(channels))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_random_products(name):
    """One each; more in ``test_many_random_products``."""
    product, options, channel = drawn(name, np.random.default_rng([len(name), 0]))
    found = run(name, product, options, channel=channel)
    assert found == "", (product, options, channel)


@pytest.mark.slow
@pytest.mark.parametrize(
    "product",
    [
        Product(rows=2, cols=800, channels=1, batch=4),
        Product(rows=2, cols=4, channels=1, batch=40),
    ],
)
def test_the_planner_stays_ahead(product):
    """Four inputs for each MAC, whose writes want every column slot; items of one MAC each."""
    device = DEVICES["hbm2-pim-quad"]
    config = ChannelConfig(device=device)
    memories = np.zeros((0, 1)), np.zeros((0, 1))
    seen = simulate(config, program_of(device, product, OFTEN), *memories, EngineAlone(config))
    assert differences(device, product, OFTEN, seen, np.zeros((0, 1), np.float32)) == ""


@pytest.mark.long
@pytest.mark.parametrize("name", list(DEVICES))
@pytest.mark.parametrize("seed", range(1, 40))
def test_many_random_products(name, seed):
    product, options, channel = drawn(name, np.random.default_rng([len(name), seed]))
    found = run(name, product, options, seed=seed, channel=channel)
    assert found == "", (seed, product, options, channel)


NOTHING = Additions(prefetch=False, register_path=False, split=False, unpadded=False)
LESS = {
    "prefetch": replace(ALL, prefetch=False),
    "register-path": replace(ALL, register_path=False),
    "unpadded": replace(ALL, unpadded=False),
    "split": replace(ALL, split=False),
    "none": NOTHING,
}
"""Hardware and model without an addition, and without all of them."""


def run_commands(product: Product, options: Options, *, hardware: Additions) -> str:
    """Run the commands of a product of `hbm2-pim` alone, with some additions in hardware."""
    device = DEVICES["hbm2-pim"]
    config = ChannelConfig(device=device, additions=hardware.in_hardware)
    memories = np.zeros((0, 1)), np.zeros((0, 1))
    seen = simulate(config, program_of(device, product, options), *memories, EngineAlone(config))
    return differences(device, product, options, seen, np.zeros((0, 1), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LESS)[:3])
def test_a_channel_without_an_addition(name):
    """Every command in the cycle of the ablated model: two passes, a refresh."""
    product, options = Product(rows=19, cols=70, channels=1), replace(OFTEN, additions=LESS[name])
    assert run_commands(product, options, hardware=LESS[name]) == ""


def test_a_channel_with_none_of_the_additions_computes_the_same():
    """Every bit too: inputs come over the data bus, as many at once as there are registers."""
    product = Product(rows=3, cols=70, channels=1)
    assert run("hbm2-pim", product, replace(OFTEN, additions=NOTHING)) == ""


@pytest.mark.parametrize("name", ["prefetch", "register-path"])
def test_a_channel_with_an_addition_is_not_one_without(name):
    """Ten rows of inputs, so that the other side's are opened; the model leaves out what the hardware has."""
    product, options = Product(rows=2, cols=140, channels=1), replace(DEFAULT, additions=LESS[name])
    found = run_commands(product, options, hardware=ALL)
    assert re.match(r"gemv\.o_(row|column): transfer \d+: cycle model \d+, rtl \d+", found), found


@pytest.mark.long
@pytest.mark.parametrize("name", list(LESS))
@pytest.mark.parametrize("seed", range(20))
def test_many_random_products_without_an_addition(name, seed):
    product, options, channel = drawn("hbm2-pim", np.random.default_rng([len(name), seed, 1]))
    options = replace(options, additions=LESS[name])
    if seed < 3:
        found = run("hbm2-pim", product, options, seed=seed, channel=channel)
    else:
        found = run_commands(product, options, hardware=LESS[name])
    assert found == "", (seed, product, options, channel)


@pytest.mark.long
def test_the_page_has_the_cells_of_the_additions():
    """Synthesised anew, unless the Verilog is what it was."""
    page = (Path(__file__).parents[1] / "docs" / "pim-gemv.md").read_text()
    found = costs(load_device("hbm2-pim"))
    names = {"all": "everything"} | {
        f"without {name}": f"without `{name.replace('_', '-')}`"
        for name in ("prefetch", "register_path", "unpadded")
    }
    for name, cost in found.items():
        row = f"| {names.get(name, name)} | {cost.flip_flops} | {cost.gates} | {cost.um2:.0f} |"
        less = found["all"] - cost
        saved = " | | |" if name == "all" else f" {less.flip_flops} | {less.gates} | {less.um2:.0f} |"
        assert row + saved in page


def test_cells_and_their_area():
    """By hand; a cell that nobody knows the size of is an error."""
    cost = Cost.of({"$_DFF_P_": 2, "$_NAND_": 3, "$_NOT_": 1})
    assert (cost.flip_flops, cost.gates) == (2, 4)
    assert cost.um2 == pytest.approx(2 * 4.522 + 3 * 0.798 + 0.532)
    assert (cost - Cost.of({"$_DFF_P_": 1})) == Cost(1, 4, cost.um2 - 4.522)
    with pytest.raises(KeyError):
        Cost.of({"$_LATCH_": 1})
    assert list(variants(load_device("hbm2-pim"))) == [
        "all",
        "without prefetch",
        "without register_path",
        "without unpadded",
        "with none",
    ]
    with pytest.raises(InputError, match=r"^additions: is of schedule streamed, which duplex has not$"):
        variants(load_device("duplex"))


class Wrong(ChannelConfig):
    """A channel whose table of constraints has a distance too short."""

    between_what: tuple[Command, Command]

    def between(self, before, after, *levels):
        return super().between(before, after, *levels) - ((before, after) == self.between_what)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("hbm2-pim", Command.ACT, Command.RD),
        ("hbm2-pim", Command.WR, Command.PRE),
        ("hbm2-pim-samsung", Command.PRE, Command.ACT),
        ("hbm2-pim-samsung", Command.RD, Command.WR),
    ],
)
def test_a_constraint_too_short_is_seen(name, before, after):
    """One cycle too few between two commands: the first command behind is named, with both cycles."""
    device = DEVICES[name]
    product = Product(rows=2, cols=8, channels=1)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    config = Wrong(device=device)
    object.__setattr__(config, "between_what", (before, after))
    program = program_of(device, product, DEFAULT)
    seen = simulate(config, program, share.input_image(), share.bank_image())
    found = differences(device, product, DEFAULT, seen, share.results)
    assert re.match(r"gemv\.o_(row|column): transfer \d+: cycle model \d+, rtl \d+; payload equal", found), (
        found
    )


def test_a_weight_too_many_is_seen():
    """A flipped bit of the banks is a wrong result."""
    device, product = DEVICES["hbm2-pim"], Product(rows=2, cols=8, channels=1)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    image = share.bank_image()
    image[0, 1] ^= 0x40
    program = program_of(device, product, DEFAULT)
    seen = simulate(ChannelConfig(device=device), program, share.input_image(), image)
    assert differences(device, product, DEFAULT, seen, share.results) == "result [0, 0] of 1"


@pytest.mark.parametrize("name", SMALL)
def test_an_engine_that_is_late_says_so(name, monkeypatch):
    """Started without time to get ahead, the planner and the loader of groups miss cycles and tell it."""
    monkeypatch.setattr(streamed_engine, "STREAMED_LEAD", 4)
    monkeypatch.setattr(barrier_engine, "lead", lambda _device: 4)
    device, product = DEVICES[name], Product(rows=2, cols=8, channels=1)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    program = program_of(device, product, DEFAULT)
    seen = simulate(ChannelConfig(device=device), program, share.input_image(), share.bank_image(), most=400)
    assert seen.late


@pytest.mark.slow
def test_the_published_figures_hold_for_the_engines():
    """Commands alone, of the devices as they are: 1408 x 2048 and 512 x 512 on 64 channels."""
    for name, product, cycles in (
        ("hbm2-pim", Product(rows=1408, cols=2048, channels=64), 1631),
        ("hbm2-pim-samsung", Product(rows=512, cols=512, channels=64), 1867),
    ):
        device = load_device(name)
        config = ChannelConfig(device=device)
        seen = simulate(
            config, program_of(device, product, DEFAULT), *(np.zeros((0, 1)),) * 2, EngineAlone(config)
        )
        assert differences(device, product, DEFAULT, seen, np.zeros((0, 1), np.float32)) == ""
        assert seen.cycles == cycles


def test_a_program_is_short():
    """Loops: it does not grow with the product."""
    for name, most in (("hbm2-pim", 37), ("hbm2-pim-samsung", 62)):
        device = load_device(name)
        for product in (
            Product(rows=4096, cols=4096, channels=64),
            Product(rows=700, cols=4999, channels=2, batch=7),
        ):
            assert len(program_of(device, product, DEFAULT)) <= most


def test_words_of_a_program():
    assert word(Op.LOOP, count=3) == 1 | 3 << 4
    assert words([word(Op.PASS, outputs=5)]).tolist() == [[12 | 5 << 4, 0, 0, 0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"^outputs of PASS must be in 0\.\.127, not 128$"):
        word(Op.PASS, outputs=128)
    with pytest.raises(ValueError, match=r"^row of WRITE must be in -131072\.\.131071, not -131073$"):
        word(Op.WRITE, row=-131073)
    with pytest.raises(ValueError, match=r"^CLOSE has no field row$"):
        word(Op.CLOSE, row=1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "hbm2-pim",
            {"output_registers": 64},
            "output_registers: must be at most 32 in Verilog, the bursts of a row, not 64",
        ),
        (
            "hbm2-pim-samsung",
            {"input_registers": 16},
            "input_registers: must be 8, as must output_registers, for schedule barrier, not 16 and 8",
        ),
        (
            "hbm2-pim-quad",
            {"mac_cycles": 3},
            "dram.timing: must leave 27 cycles from a MAC to its result, not 22",
        ),
    ],
)
def test_what_the_hardware_cannot(name, change, message):
    with pytest.raises(InputError) as error:
        ChannelConfig(device=replace(load_device(name), **change))
    assert str(error.value) == message


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 3])
def test_a_last_group_of_fewer_tokens(batch):
    """It reads the weights as stored for the full groups; a batch below a group has its own order."""
    product = Product(rows=22, cols=72, channels=1, batch=batch)
    layout = streamed.layout(
        DEVICES["hbm2-pim-quad"], product, timings(load_device("hbm2-pim").timed, NO_LIMITS)
    )
    assert layout.tokens == 4
    assert run("hbm2-pim-quad", product, OFTEN) == ""


# SECDED


def test_the_code():
    """Hsiao's: columns of odd weight, all different; every check covers 26 bits of data."""
    assert len(set(COLUMNS)) == DATA_BITS
    assert {column.bit_count() for column in COLUMNS} == {3, 5}
    assert {mask.bit_count() for mask in MASKS} == {26}


def _bit(number: int) -> tuple[np.uint64, np.uint8]:
    """Return the flips of data and of checks that are bit ``number`` of 72."""
    data = np.uint64(1 << number) if number < DATA_BITS else np.uint64(0)
    return data, np.uint8(0 if number < DATA_BITS else 1 << (number - DATA_BITS))


def test_every_flip_and_every_pair_of_flips():
    """All 72 single and 2556 double flips, of random words and of those of equal bits."""
    words_ = np.random.default_rng(1).integers(0, 1 << 64, 64, dtype=np.uint64)
    words_[:2] = 0, (1 << 64) - 1
    checks = encode(words_)
    data, status = decode(words_, checks)
    assert (data == words_).all() and (status == CLEAN).all()
    flips = [_bit(number) for number in range(72)]
    for data_flip, check_flip in flips:
        data, status = decode(words_ ^ data_flip, checks ^ check_flip)
        assert (data == words_).all() and (status == CORRECTED).all()
    for one, other in itertools.combinations(flips, 2):
        as_came = words_ ^ one[0] ^ other[0]
        data, status = decode(as_came, checks ^ one[1] ^ other[1])
        assert (data == as_came).all() and (status == UNCORRECTED).all()


def test_a_word_is_corrected_in_hardware():
    """All single flips and a sample of the double ones, as golden has them."""
    rng = np.random.default_rng(2)
    pairs = [tuple(rng.choice(72, 2, replace=False).tolist()) for _ in range(40)]
    cases = [(), *((number,) for number in range(72)), *pairs]
    dut = CorrectWord()

    async def bench(ctx):
        for case in cases:
            data = rng.integers(0, 1 << 64, 1, dtype=np.uint64)
            check = encode(data)
            for number in case:
                data, check = data ^ _bit(number)[0], check ^ _bit(number)[1]
            ctx.set(dut.data, int(data[0]))
            ctx.set(dut.check, int(check[0]))
            await ctx.tick()
            word_, status = decode(data, check)
            seen = (ctx.get(dut.o), ctx.get(dut.one_flip), ctx.get(dut.two_flips))
            assert seen == (word_[0], status[0] == CORRECTED, status[0] == UNCORRECTED), case

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.slow
def test_flips_in_the_banks_are_corrected_and_counted():
    """Single flips change no result; a double one is counted, and its word read as it came."""
    device = DEVICES["hbm2-pim"]
    config, product = ChannelConfig(device=device, secded=True), Product(rows=6, cols=40, channels=1, batch=2)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    program, clean = program_of(device, product, DEFAULT), share.bank_image(secded=True)
    assert clean.shape[1] == 2 * 9
    read = share.reads.reshape(-1)  # 3 x 10 bursts of a unit, of which it reads each for every item
    assert read.tolist() == [2] * 30 + [0] * 34
    image, planted = flipped(clean, read, device, 7, 0, seed=3)
    assert planted == Flips(single=7, corrected=14)
    assert (image[:30] != clean[:30]).sum() == 7 and (image[30:] == clean[30:]).all()
    seen = simulate(config, program, share.input_image(), image)
    assert differences(device, product, DEFAULT, seen, share.results) == ""
    assert seen.counts == (14, 0)
    image, planted = flipped(clean, read, device, 2, 3, seed=3)
    assert planted == Flips(single=2, double=3, corrected=4, uncorrected=6)
    assert np.bitwise_count(image ^ clean).sum() == 2 + 2 * 3
    seen = simulate(config, program, share.input_image(), image)
    assert seen.counts == (4, 6)
    assert re.match(r"result \[", differences(device, product, DEFAULT, seen, share.results))


@pytest.mark.parametrize("name", DEVICES)
def test_bits_are_flipped_in_every_word_that_is_read_and_in_no_other(name):
    """As many words as are read can be asked for, and no more; which are read, the model's commands say."""
    device, product = DEVICES[name], Product(rows=20, cols=300, channels=1, batch=5)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    run_ = run_gemv(device, product, log=True)
    macs = run_.log[run_.log[:, 1] == Kind.MAC]
    of_row = np.zeros(share.reads.shape[:2], dtype=np.int64)
    np.add.at(of_row, (macs[:, 3], macs[:, 2] - EVEN), 1)
    assert share.reads.sum(axis=2).tolist() == of_row.tolist()
    clean, units = share.bank_image(secded=True), device.units
    most = int((share.reads > 0).sum()) * units
    image, planted = flipped(clean, share.reads, device, most - 1, 1, seed=1)
    assert (planted.single, planted.double) == (most - 1, 1)
    assert planted.corrected + planted.uncorrected == share.reads.sum() * units
    words_ = image.reshape(len(image), units, -1) != clean.reshape(len(image), units, -1)
    assert (words_.any(axis=2).all(axis=1) == (share.reads.reshape(-1) > 0)).all()
    for single, double, key, with_ in (
        (most + 1, 0, "flips", ""),
        (0, most + 1, "double_flips", ""),
        (most, 1, "flips", " with --double-flips"),
    ):
        with pytest.raises(InputError) as error:
            flipped(clean, share.reads, device, single, double, seed=1)
        assert str(error.value) == f"{key}: must be at most {most}, the words read,{with_} not {most + 1}"


def test_flips_reach_every_bit_of_a_word():
    """All 72, check bits too: of those the data stay; a single flip is corrected, two are told."""
    device = DEVICES["hbm2-pim"]
    data = np.random.default_rng(2).integers(0, 256, (2048, device.units, 16), dtype=np.uint8)
    clean = stored(data).reshape(len(data), -1)
    image = clean.copy()
    found = flip_words([image], [np.arange(2048)], units=device.units, single=3000, double=900, seed=4)
    lines = image.reshape(2048, device.units, 18)
    words, checks = np.ascontiguousarray(lines[..., :16]).view("<u8"), lines[..., 16:]
    flips = np.bitwise_count(image ^ clean).reshape(2048, device.units, 18)
    per_word = flips[..., :16].reshape(2048, device.units, 2, 8).sum(axis=-1) + flips[..., 16:]
    corrected, status = decode(words, checks)
    assert (status == np.array([0, CORRECTED, UNCORRECTED])[per_word]).all()
    assert ((per_word == 1).sum(), (per_word == 2).sum()) == (found.single, 900) == (3000, 900)
    assert (corrected == np.ascontiguousarray(data).view("<u8"))[per_word < 2].all()
    bits = np.unpackbits((image ^ clean).reshape(-1, 18), axis=1, bitorder="little").sum(axis=0)
    assert (bits > 0).all() and len(bits) == 2 * 72


def test_results_carry_check_bits():
    device = DEVICES["hbm2-pim"]
    config, product = ChannelConfig(device=device, secded=True), Product(rows=2, cols=8, channels=1)
    share = share_of(device, product, DEFAULT, *operands(product, 0), 0)
    program = program_of(device, product, DEFAULT)
    seen = simulate(config, program, share.input_image(), share.bank_image(secded=True))
    expected = encode(share.results.view(np.uint32).astype(np.uint64))
    assert seen.checks == expected.tolist()


# The exported Verilog


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "shape", "cycles"),
    [
        ("hbm2-pim", (4096, 4096), 9134),
        ("hbm2-pim", (1408, 2048), 1631),
        ("hbm2-pim-samsung", (4096, 4096), 13166),
        ("hbm2-pim-samsung", (1408, 2048), 6970),
    ],
)
def test_the_reference_figures_hold_for_the_verilog(name, shape, cycles, capsys):
    """A channel's share of 64, native: cycles, every command, every bit."""
    rows, cols = map(str, shape)
    arguments = ["--channels", "64", "--rows", rows, "--cols", cols, "--engine", "both", "--json"]
    assert main(["pim", "gemv", "--design", name, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    rtl = result["rtl"]
    assert (result["cycles"], rtl["cycles"], rtl["mismatches"]) == (cycles, cycles, 0)


def test_a_run_that_ends_elsewhere_is_told():
    """The same commands and results, but another end, or a command that missed its cycle."""
    model = run_gemv(DEVICES["hbm2-pim"], Product(rows=2, cols=8, channels=1))
    check = bus_check(DEVICES["hbm2-pim"], "o_row", ROW_KINDS, model.log, model.log)

    def told(cycles: int, late: bool) -> str:
        job = Job(model, None, None, None)
        run = RtlRun(model, cycles, late, 0, model.log, [check], None, job)
        return run.divergence(None, Path())

    end = model.cycles
    assert told(end, False) == ""
    assert told(end + 1, False) == f"gemv: done in cycle {end + 1}, model {end}; late: False"
    assert told(end, True) == f"gemv: done in cycle {end}, model {end}; late: True"


def test_counts_that_are_not_those_of_the_flips_are_told():
    device = DEVICES["hbm2-pim"]
    model = run_gemv(device, Product(rows=2, cols=8, channels=1))
    check = bus_check(device, "o_row", ROW_KINDS, model.log, model.log)
    job = Job(model, None, None, Flips(single=7, double=2, corrected=14, uncorrected=4))

    def told(corrected: int, uncorrected: int, *, cycles: bool) -> str:
        counts = (corrected, uncorrected)
        run = RtlRun(model, model.cycles, False, 0, model.log, [check, check], None, job, *counts)
        return run.divergence(None, Path(), cycles=cycles)

    for cycles in (True, False):
        assert told(14, 4, cycles=cycles) == ""
        assert told(13, 4, cycles=cycles) == "gemv: corrected 13 words, of those planted 14 are read"
        assert told(14, 0, cycles=cycles) == "gemv: uncorrected 0 words, of those planted 4 are read"


@pytest.mark.long
def test_flips_in_the_verilog(capsys):
    """Single flips change nothing; double ones are counted, and the results differ."""
    shape = ["--channels", "64", "--rows", "512", "--cols", "512", "--batch", "2"]
    arguments = ["pim", "gemv", "--design", "hbm2-pim", *shape, "--engine", "both", "--secded", "--json"]
    assert main([*arguments, "--flips", "9"]) == 0
    rtl = json.loads(capsys.readouterr().out)["rtl"]
    names = ("planted", "planted_double", "corrected", "uncorrected", "mismatches")
    assert [rtl[name] for name in names] == [9, 0, 18, 0, 0]
    assert main([*arguments, "--flips", "9", "--double-flips", "5"]) == 1
    rtl = json.loads(capsys.readouterr().out)["rtl"]
    assert [rtl[name] for name in names[:-1]] == [9, 5, 18, 10]
    assert rtl["mismatches"] > 0 and rtl["divergence"].startswith("gemv.o: ")


MISTAKES = {
    "seed": (["--seed", "1"], "seed: needs --engine rtl or both"),
    "channel": (["--engine", "rtl", "--channel", "2"], "channel: must be in 0..1, not 2"),
    "flips": (["--engine", "rtl", "--flips", "2"], "flips: needs --secded"),
    "double flips": (["--engine", "rtl", "--double-flips", "2"], "double_flips: needs --secded"),
    "double flips of nothing": (["--double-flips", "2"], "double_flips: needs --engine rtl or both"),
    "negative flips": (
        ["--engine", "rtl", "--secded", "--flips", "-1"],
        "flips: must be in 0..1048576, not -1",
    ),
    "more flips than words": (
        ["--engine", "both", "--secded", "--flips", "33"],
        "flips: must be at most 32, the words read, not 33",
    ),
    "a design without hardware": (
        ["--design", "gddr6-aim", "--engine", "both"],
        "schedule: must be barrier or streamed in Verilog, not lockstep",
    ),
    "pins": (
        ["--design", "monde", "--engine", "rtl"],
        "schedule: must be barrier or streamed in Verilog, not pins",
    ),
    "padded tiles of several tokens": (
        ["--design", "hbm2-pim-quad", "--engine", "rtl", "--without", "unpadded"],
        "without: must leave 'unpadded' in where 4 tokens share a burst in Verilog",
    ),
    "without what the kernel has not": (
        ["--design", "hbm2-pim-samsung", "--engine", "rtl", "--without", "prefetch"],
        "without: is of schedule streamed, which hbm2-pim-samsung has not",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_input(arguments, message, capsys):
    shape = ["--channels", "2", "--rows", "8", "--cols", "8"]
    assert main(["pim", "gemv", "--design", "hbm2-pim", *shape, *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"expertbank: {message}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("hbm2-pim", ["--secded"]), ("hbm2-pim-samsung", [])])
def test_a_devices_verilog(preset, options, tmp_path, capsys):
    """A channel of a device's file, without a warning; what it has no use for is refused."""
    part, device = (
        (PRESETS / place).read_text() for place in ("parts/hbm2-pim.toml", f"devices/{preset}.toml")
    )
    for old, new in (
        ("bank_groups = 4", "bank_groups = 2"),
        ("banks_per_group = 4", "banks_per_group = 2"),
        ("row_bytes = 1024", "row_bytes = 256"),
        ("burst_bytes = 32", "burst_bytes = 8"),
    ):
        assert part.count(old) == 1
        part = part.replace(old, new)
    (tmp_path / "part.toml").write_text(part)
    for old, new in (
        (f'name = "{preset}"', 'name = "small-one"'),
        ("units = 8", "units = 2"),
        ("lanes = 16", "lanes = 4"),
        ('dram = "hbm2-pim"', f'dram = "{tmp_path}/part.toml"'),
    ):
        assert device.count(old) == 1
        device = device.replace(old, new)
    (tmp_path / "d.toml").write_text(device)
    place = tmp_path / "out"
    arguments = ["verilog", "--design", str(tmp_path / "d.toml"), *options]
    assert main([*arguments, "--out", str(place), "--json"]) == 0
    names = ["eb_small_one.v", "eb_ram.v", "small_one.f", "small_one.ports.json"]
    assert json.loads(capsys.readouterr().out)["files"][:4] == [str(place / name) for name in names]
    waivers = [f"-Wno-{kind}" for kind in LINT_WAIVERS]
    command, environment = verilator_command("--lint-only", "-Wall", *waivers, "--top-module", "eb_small_one")
    done = subprocess.run(
        [*command, "--default-language", "1364-2005", "-f", "small_one.f"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for arguments, message in (
        (["--design", "hbm2-pim", "--scale", "3"], "scale: needs an accelerator, not 'hbm2-pim', a device"),
        (["--design", "gddr6-aim"], "schedule: must be barrier or streamed in Verilog, not lockstep"),
        (["--design", "fpga", "--secded"], "secded: needs a design with banks, not fpga"),
    ):
        assert main(["verilog", *arguments, "--out", str(tmp_path / "no")]) == 2
        assert capsys.readouterr().err == f"expertbank: {message}\n"
    assert not (tmp_path / "no").exists()
