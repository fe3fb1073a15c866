# amaranth: UnusedElaboratable=no
# (some constructors raise here, and some components are asked for their latency only)
"""Stream register, queue, delay line, checked connection."""

from __future__ import annotations

import re

import numpy as np
import pytest
from amaranth import Module, ResetInserter, Signal, signed, unsigned
from amaranth.lib import data, stream

from rtl.fifo import StreamFifo
from rtl.ram import DelayLine
from rtl.stream import StreamPair, StreamRegister, connect_stream
from tests.bfm import (
    Sink,
    Source,
    run_pipeline,
    run_streams,
)
from tests.block_bench import (
    TRAFFIC,
    arrivals_of,
    pattern_of,
    ready_in,
)

WIDTH = 12
PARTS = {
    "register": (lambda: StreamRegister(unsigned(WIDTH)), 2, StreamRegister.LATENCY),
    "pair": (lambda: StreamPair(unsigned(WIDTH)), 2, StreamPair.LATENCY),
    **{
        f"queue of {depth}": (
            lambda depth=depth: StreamFifo(unsigned(WIDTH), depth),
            depth + 1,
            StreamFifo.LATENCY,
        )
        for depth in (1, 2, 8)
    },
}


def flow(dut, values, arrivals, ready, **options):
    return run_streams(dut, {"i": Source(values, arrivals)}, {"o": Sink(len(values), ready)}, **options)


@pytest.mark.parametrize("stalls", TRAFFIC)
@pytest.mark.parametrize("gaps", TRAFFIC)
@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_lost_or_reordered(part, gaps, stalls):
    seed = 3 * TRAFFIC.index(gaps) + TRAFFIC.index(stalls)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << WIDTH, 150).tolist()
    ready = ready_in(pattern_of(rng, stalls))
    traces = flow(PARTS[part][0](), values, arrivals_of(rng, gaps, 150).tolist(), ready)
    assert traces["o"].payloads == values, f"{part}, seed {seed}"


@pytest.mark.parametrize("part", PARTS)
def test_latency_and_one_beat_per_cycle(part):
    make, _, latency = PARTS[part]
    traces = flow(make(), range(40), [0] * 40, lambda _cycle: True)
    if part != "queue of 1":  # its one row is written and read in turn
        assert traces["i"].cycles.tolist() == list(range(40))
        assert traces["o"].cycles.tolist() == [latency + n for n in range(40)]
    else:
        assert traces["o"].cycles[0] == latency


@pytest.mark.parametrize("part", PARTS)
def test_capacity(part):
    """While nothing is taken, it holds exactly what it says; then everything comes out in a row."""
    make, capacity, _ = PARTS[part]
    traces = flow(make(), range(30), [0] * 30, lambda cycle: cycle >= 50)
    assert np.count_nonzero(traces["i"].cycles < 50) == capacity
    first = traces["o"].cycles[:capacity]
    assert first.tolist() == list(range(50, 50 + capacity))


@pytest.mark.parametrize("part", PARTS)
def test_reset_empties_it(part):
    reset = Signal()
    dut = PARTS[part][0]()

    async def fill_and_reset(ctx):
        ctx.set(dut.o.ready, 0)
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, 0xBAD)
        for _ in range(12):
            await ctx.tick()
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.i.valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        assert ctx.get(dut.i.ready)
        assert not ctx.get(dut.o.valid)

    traces = flow(
        ResetInserter(reset)(dut), range(20), [0] * 20, lambda _cycle: True, prologue=fill_and_reset
    )
    assert traces["o"].payloads == list(range(20))


@pytest.mark.parametrize("depth", [0, 3, -2])
def test_queue_depth_rule(depth):
    with pytest.raises(ValueError, match=f"^depth must be a power of two, not {depth}$"):
        StreamFifo(unsigned(8), depth)


def test_register_outputs_do_not_depend_on_inputs_of_the_cycle():
    """``ready`` and ``valid`` come from registers: they move at edges only."""
    from amaranth.sim import Simulator

    dut = StreamRegister(unsigned(8))

    async def bench(ctx):
        rng = np.random.default_rng(0)
        for _ in range(100):
            before = ctx.get(dut.i.ready), ctx.get(dut.o.valid)
            ctx.set(dut.i.valid, int(rng.integers(2)))
            ctx.set(dut.o.ready, int(rng.integers(2)))
            await ctx.delay(1e-9)
            assert (ctx.get(dut.i.ready), ctx.get(dut.o.valid)) == before
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


PACKET = data.StructLayout({"data": unsigned(8), "last": unsigned(1)})
OTHER = data.StructLayout({"data": unsigned(8), "first": unsigned(1)})


@pytest.mark.parametrize(
    ("src", "dst"),
    [(unsigned(8), signed(8)), (unsigned(8), unsigned(9)), (PACKET, OTHER), (PACKET, unsigned(9))],
)
def test_connect_stream_compares_shapes(src, dst):
    ends = [stream.Signature(shape).create() for shape in (src, dst)]
    message = re.escape(f"stream payloads differ: {src!r} and {dst!r}")
    with pytest.raises(TypeError, match=f"^{message}$"):
        connect_stream(Module(), *ends)


@pytest.mark.parametrize("shape", [unsigned(8), signed(8), PACKET])
def test_connect_stream_accepts_equal_shapes(shape):
    connect_stream(Module(), stream.Signature(shape).create(), stream.Signature(shape).create())


@pytest.mark.parametrize("cycles", [2, 3, 4, 9])
def test_delay_line(cycles):
    values = np.random.default_rng(cycles).integers(0, 1 << WIDTH, 60).tolist()
    got = run_pipeline(DelayLine(unsigned(WIDTH), cycles), {"i": values}, ["o"], cycles)["o"]
    assert got.tolist() == values


@pytest.mark.parametrize("cycles", [0, 1])
def test_delay_line_rule(cycles):
    with pytest.raises(ValueError, match=f"^cycles must be at least 2, not {cycles}$"):
        DelayLine(unsigned(4), cycles)
