"""Command programs in hardware: every command in the model's cycle, every result golden's bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from rtl.gemv import ChannelConfig, ProgramChannel
from sim.divergence import first_divergence
from sim.gemv.commands import PowerLimits, Product
from sim.gemv.program import (
    COLUMN_KINDS,
    ROW_KINDS,
    bus_check,
    commands_seen,
    operands,
    program_of,
    share_of,
)
from sim.gemv.report import DEFAULT, Options, run_gemv
from sim.rtlsim import Trace
from spec.device import PimDevice
from spec.load import load_device
from spec.program import first_cycle

MOST_CYCLES = 60_000


def tiny(name: str) -> PimDevice:
    """Return a device with 2 units of 4 lanes; registers, timings and bursts of a row stay."""
    device = load_device(name)
    dram = replace(device.timed, bank_groups=2, banks_per_group=2, rows=1024, burst_bytes=8, row_bytes=32 * 8)
    return replace(device, units=2, lanes=4, dram=dram)


DEVICES = {name: tiny(name) for name in ("hbm2-pim", "hbm2-pim-quad", "hbm2-pim-samsung")}


class Seen:
    """What a run in ``amaranth.sim`` showed."""

    def __init__(self) -> None:
        self.row: list[tuple[int, int]] = []
        self.column: list[tuple[int, int]] = []
        self.results: list[list[int]] = []
        self.cycles = -1
        self.late = False
        self.counts = (0, 0)


def simulate(
    config: ChannelConfig, program: list[int], inputs: np.ndarray, image: np.ndarray, dut=None
) -> Seen:
    """Run a program on a channel, its memories around it."""
    dut = dut or ProgramChannel(config)
    seen = Seen()
    words = [int.from_bytes(row.tobytes(), "little") for row in inputs]
    bursts = [int.from_bytes(row.tobytes(), "little") for row in image]

    async def bench(ctx):
        ctx.set(dut.start, 1)
        coming: dict[int, int] = {}
        for cycle in range(MOST_CYCLES):
            ctx.set(dut.mem_data, coming.pop(cycle, 0))
            for bus, port in ((seen.row, dut.o_row), (seen.column, dut.o_column)):
                value = ctx.get(port.as_value())
                if value & 7:
                    bus.append((cycle, value))
            if ctx.get(dut.o.valid):
                seen.results.append([ctx.get(one) & 0xFFFFFFFF for one in dut.o.payload.data])
            if ctx.get(dut.done):
                seen.cycles = cycle - first_cycle(config.device)
                break
            wanted = []
            if ctx.get(dut.prog_en):
                wanted.append((dut.prog_data, program[ctx.get(dut.prog_addr)]))
            if ctx.get(dut.x_en):
                wanted.append((dut.x_data, words[ctx.get(dut.x_addr)]))
            if ctx.get(dut.mem_en):
                coming[cycle + config.storage_cycles] = bursts[ctx.get(dut.mem_addr.as_value())]
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
        [bus_check("o_row", ROW_KINDS, log, run.log), bus_check("o_column", COLUMN_KINDS, log, run.log)]
    )
    if found:
        return found.message
    if (seen.cycles, seen.late) != (run.cycles, False):
        return f"ends in cycle {seen.cycles}, not {run.cycles}; late: {seen.late}"
    wrong = np.argwhere(np.array(seen.results, dtype=np.uint32) != results.view(np.uint32))
    return f"result {wrong[0].tolist()} of {len(results)}" if len(wrong) else ""


def run(name: str, product: Product, options: Options = DEFAULT, *, seed: int = 0, channel: int = 0) -> str:
    """Run a channel's part of a product; return the first difference, or nothing."""
    device = DEVICES[name]
    share = share_of(device, product, options, *operands(product, seed), channel)
    seen = simulate(
        ChannelConfig(device=device),
        program_of(device, product, options),
        share.input_image(),
        share.bank_image(),
    )
    return differences(device, product, options, seen, share.results)


@pytest.mark.parametrize("name", ["hbm2-pim", "hbm2-pim-samsung"])
def test_every_command_and_every_bit(name):
    """Two passes or tiles, a ragged last burst, two items, a refresh of each rank."""
    assert run(name, Product(rows=20, cols=170, channels=1, batch=2)) == ""


def drawn(name: str, rng: np.random.Generator) -> tuple[Product, Options, int]:
    """Draw a product, how it is run, and a channel of it."""
    channels = int(rng.choice([1, 2, 6]))
    tokens = DEVICES[name].tokens_per_burst
    product = Product(
        rows=int(rng.integers(1, 1 + 25 * channels)),
        cols=int(rng.integers(1, 300)),
        channels=channels,
        batch=int(rng.choice([1, 2, 4])) if tokens > 1 else int(rng.choice([1, 1, 2, 3])),
    )
    limits = PowerLimits(
        mac_gap=int(rng.choice([1, 6])), act_gap=int(rng.choice([1, 40])), hot=bool(rng.random() < 0.5)
    )
    return product, Options(limits=limits, refresh=bool(rng.random() < 0.9)), int(rng.integers(channels))


@pytest.mark.parametrize("name", list(DEVICES))
@pytest.mark.parametrize("seed", range(1))
def test_random_products(name, seed):
    product, options, channel = drawn(name, np.random.default_rng([len(name), seed]))
    found = run(name, product, options, seed=seed, channel=channel)
    assert found == "", (seed, product, options, channel)


@pytest.mark.long
@pytest.mark.parametrize("name", list(DEVICES))
@pytest.mark.parametrize("seed", range(1, 40))
def test_many_random_products(name, seed):
    product, options, channel = drawn(name, np.random.default_rng([len(name), seed]))
    found = run(name, product, options, seed=seed, channel=channel)
    assert found == "", (seed, product, options, channel)
