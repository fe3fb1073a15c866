"""A top with AXI ports, the dispatcher's, in amaranth.sim: corners of what is told and taken.

With others' masters, and of the accelerators and the gate: ``tests/bench/test_axi_bench.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from amaranth.lib import data
from amaranth.sim import Simulator

from rtl.axi import AxiTwoClocks, dispatch_top
from rtl.axi.alone import DispatchAlone, GateAlone
from rtl.axi.clocks import STREAM_DEPTH
from rtl.axi.lite import DECERR, OKAY, SLVERR
from rtl.axi.packets import PacketMarker
from spec.design import DeepBlock
from spec.model import CapacityRule, GatingSpec
from spec.registers import BUS_REGISTERS, CONTROL_LOAD, REGISTERS, Top
from tests.bench.axi_cores import CORES
from tests.test_axi_clocks import ADDRESSES, DESIGN, MODEL, PATIENCE, Master


def mask(register: str, field: str) -> int:
    [fields] = [known.fields for known in BUS_REGISTERS if known.name == register]
    return next(known.mask for known in fields if known.name == field)


PACKET_OPEN = mask("BUS_STATUS", "packet_open")
PACKET_STATUS = PACKET_OPEN | mask("BUS_STATUS", "busy") | mask("BUS_STATUS", "halted")


def run(session: Callable[[Master], Any], *, two_clocks: bool = False) -> None:
    """Run a master's session at the dispatcher's top, whose outputs are taken at once."""
    top: Any = dispatch_top(MODEL, DESIGN, waiting_beats=STREAM_DEPTH if two_clocks else 0)
    if two_clocks:
        top = AxiTwoClocks(top)
    simulator = Simulator(top)
    simulator.add_clock(1e-8)
    if two_clocks:
        simulator.add_clock(1.5e-8, domain="bus")

    async def bench(ctx):
        ctx.set(top.o.ready, 1)
        ctx.set(top.o_expect.ready, 1)
        await session(Master(ctx, top, "bus" if two_clocks else "sync"))

    simulator.add_testbench(bench)
    simulator.run()


async def wait(master: Master, cycles: int = PATIENCE // 2) -> None:
    for _ in range(cycles):
        await master.cycle()


@pytest.mark.parametrize("two_clocks", [False, True])
def test_a_token_that_ends_with_its_first_beat_is_the_one_that_is_named(two_clocks):
    async def session(master):
        await master.start()
        # The second token has one beat of two; it is filled up with zeros.
        await master.send([(2, 0x3F20, 0), (0, 0x3EC0, 0), (1, 0x3F40, 1)])
        await wait(master)
        assert await master.access("ERRORS") == (OKAY, mask("ERRORS", "short_token"))
        assert await master.access("ERROR_TOKEN") == (OKAY, 1)
        marks = {(expert, weight): user for expert, weight, _, user in master.outputs}
        assert marks == {(2, 0x3F20): 0, (0, 0x3EC0): 0, (1, 0x3F40): 1, (0, 0): 1}

    run(session, two_clocks=two_clocks)


def test_no_token_is_taken_before_a_load_and_settings_keep_while_a_packet_is_open():
    async def session(master):
        # Two beats stand in the registers at the port, and stay there.
        await master.send([(2, 0x3F20, 0)])
        assert master.ctx.get(master.dut.i.ready) == 1
        await master.send([(0, 0x3EC0, 0)])
        await wait(master)
        assert master.ctx.get(master.dut.i.ready) == 0
        assert await master.access("TOKENS_IN") == (OKAY, 0)
        assert (await master.access("CAPACITY", 3))[0] == OKAY
        await master.start()
        await master.send([(1, 0x3F40, 0), (2, 0x3E80, 0)] * (DESIGN.window_tokens - 1))
        await wait(master)
        assert await master.access("TOKENS_IN") == (OKAY, DESIGN.window_tokens)
        # A whole window has been served: nothing is inside, and the packet is open between two tokens.
        assert (await master.access("BUS_STATUS"))[1] & PACKET_STATUS == PACKET_OPEN
        assert (await master.access("CAPACITY", 1))[0] == SLVERR
        assert await master.access("CAPACITY") == (OKAY, 3)

    run(session)


def test_an_access_refused_during_recovery_is_told():
    """What was refused before it is forgotten; what is refused while it lasts is found behind it."""

    async def session(master):
        await master.start()
        assert (await master.access(0xFFC))[0] == DECERR
        assert await master.access("ERRORS") == (OKAY, mask("ERRORS", "illegal_read"))
        assert (await master.access("BUS_CONTROL", 1))[0] == OKAY
        assert (await master.access("CAPACITY", 3))[0] == SLVERR
        await wait(master)
        assert await master.access("ERRORS") == (OKAY, mask("ERRORS", "illegal_write"))
        assert await master.access("ERROR_REGISTER") == (OKAY, ADDRESSES["CAPACITY"])
        assert (await master.access("IRQ_STATUS"))[1] & mask("IRQ_STATUS", "error")
        await master.recover()
        assert await master.access("ERRORS") == (OKAY, 0)

    run(session)


def test_no_error_of_a_packet_that_is_given_up_stays():
    """A token that is too short, in every cycle around the one in which recovery starts."""

    async def session(master, cycle):
        ctx, top = master.ctx, master.dut
        await master.start()
        ctx.set(top.i.payload, {"expert": 2, "weight": 0x3F20, "last": 1})
        ctx.set(top.s_axi_awaddr, ADDRESSES["BUS_CONTROL"])
        ctx.set(top.s_axi_wdata, 1)
        ctx.set(top.s_axi_wstrb, 15)
        ctx.set(top.s_axi_bready, 1)
        for now in range(40):
            # All of it is taken in the cycle in which it is offered.
            ctx.set(top.i.valid, int(now == cycle))
            ctx.set(top.s_axi_awvalid, int(now == 4))
            ctx.set(top.s_axi_wvalid, int(now == 4))
            await master.cycle()
        assert await master.access("ERRORS") == (OKAY, 0), f"offered in cycle {cycle}"

    for cycle in range(2, 9):
        run(lambda master, cycle=cycle: session(master, cycle))


@pytest.mark.parametrize("rest_comes", [False, True])
def test_recovery_while_the_rest_of_a_long_packet_is_thrown_away(rest_comes):
    """The next packet is whole, whether the source sends the rest or gives the packet up."""

    async def session(master):
        await master.start()
        assert (await master.access("BATCH_TOKENS", 1))[0] == OKAY
        await master.send([(2, 0x3F20, 0), (0, 0x3EC0, 0), (1, 0x3F40, 0)])
        await wait(master)
        assert await master.access("ERRORS") == (OKAY, mask("ERRORS", "long_packet"))
        assert (await master.access("BUS_STATUS"))[1] & PACKET_STATUS == PACKET_OPEN
        how = mask("BUS_CONTROL", "recover") | rest_comes * mask("BUS_CONTROL", "discard_rest")
        assert (await master.access("BUS_CONTROL", how))[0] == OKAY
        await wait(master, 40)
        if rest_comes:
            await master.send([(1, 0x3E00, 0), (2, 0x3E00, 0), (1, 0x3E00, 1)])
        await master.start()
        master.outputs.clear()
        await master.send([(0, 0x3F60, 0), (2, 0x3E80, 1)])
        await wait(master)
        assert [entry[:2] for entry in master.outputs] == [(0, 0x3F60), (2, 0x3E80)]
        assert await master.access("ERRORS") == (OKAY, 0)
        assert await master.access("DISCARDED") == (OKAY, 4 if rest_comes else 1)

    run(session)


DONE = mask("IRQ_STATUS", "done")


@pytest.mark.parametrize("two_clocks", [False, True])
def test_done_is_told_when_nothing_of_what_was_sent_is_left(two_clocks):
    """Not when an open packet's tokens are served while its source pauses."""

    async def session(master):
        await master.start()
        await master.access("IRQ_STATUS", DONE)
        await master.send([(1, 0x3F40, 0), (2, 0x3E80, 0)] * DESIGN.window_tokens)
        await wait(master)
        assert (await master.access("BUS_STATUS"))[1] & PACKET_STATUS == PACKET_OPEN
        assert len(master.outputs) == 2 * DESIGN.window_tokens
        assert not (await master.access("IRQ_STATUS"))[1] & DONE
        await master.send([(1, 0x3F40, 0), (2, 0x3E80, 1)])
        await wait(master)
        assert (await master.access("IRQ_STATUS"))[1] & DONE
        await master.access("IRQ_STATUS", DONE)
        # Batches of one token each, one right behind the other.
        await master.send([(1, 0x3F40, 0), (2, 0x3E80, 1)] * 6)
        await wait(master)
        assert (await master.access("IRQ_STATUS"))[1] & DONE

    run(session, two_clocks=two_clocks)


def test_what_recovery_throws_away_is_not_done():
    async def session(master):
        await master.start()
        await master.access("IRQ_STATUS", DONE)
        await master.send([(1, 0x3F40, 0)])
        await wait(master)
        assert (await master.access("BUS_STATUS"))[1] & mask("BUS_STATUS", "busy")
        assert (await master.access("BUS_CONTROL", mask("BUS_CONTROL", "recover")))[0] == OKAY
        await wait(master)
        assert not (await master.access("IRQ_STATUS"))[1] & DONE

    run(session)


def test_a_packet_that_recovery_closes_is_not_done():
    marker = PacketMarker(data.StructLayout({"data": 4, "last": 1}))
    simulator = Simulator(marker)
    simulator.add_clock(1e-8)
    done = []

    async def bench(ctx):
        ctx.set(marker.o.ready, 1)
        # A packet of one beat, one that is open, and its end by recovery.
        for valid, last, recovering in ((1, 1, 0), (1, 0, 0), *[(0, 0, 1)] * 4):
            ctx.set(marker.i.valid, valid)
            ctx.set(marker.i.payload.last, last)
            ctx.set(marker.recovering, recovering)
            taken = ctx.get(marker.o.valid)
            done.append((taken, taken and ctx.get(marker.o.payload.last), ctx.get(marker.done)))
            await ctx.tick()

    simulator.add_testbench(bench)
    simulator.run()
    assert [beat for beat in done if beat[0]] == [(1, 1, 1), (1, 0, 0), (1, 1, 0)]


def most_inside(core: GateAlone | DispatchAlone, held: str) -> int:
    """Return how many tokens have begun when no more do, with an output that is never taken."""
    last = core.token_beats - 1
    burst = core.loader.burst_beats if isinstance(core, GateAlone) else 0
    begun = 0

    async def bench(ctx):
        nonlocal begun
        for name in core.signature.members:
            if name in ("o", "o_expect"):
                ctx.set(getattr(core, name).ready, int(name != held))
        ctx.set(core.reg_addr, REGISTERS["CONTROL"])
        ctx.set(core.reg_wdata, 1 << CONTROL_LOAD)
        ctx.set(core.reg_we, 1)
        await ctx.tick()
        ctx.set(core.reg_we, 0)
        if burst:
            # The router's image: zeros.
            ctx.set(core.o_ar.ready, 1)
            for _ in range(core.loader.bursts):
                while not ctx.get(core.o_ar.valid):
                    await ctx.tick()
                await ctx.tick()
                ctx.set(core.i_r.valid, 1)
                for beat in range(burst):
                    ctx.set(core.i_r.payload.last, int(beat == burst - 1))
                    while not ctx.get(core.i_r.ready):
                        await ctx.tick()
                    await ctx.tick()
                ctx.set(core.i_r.valid, 0)
        ctx.set(core.i.valid, 1)
        beat = waits = 0
        while waits < PATIENCE:
            if not burst:
                ctx.set(core.i.payload.expert, beat)
            taken = ctx.get(core.i.ready)
            begun += taken and beat == 0
            beat = (beat + taken) % (last + 1)
            waits = 0 if taken else waits + 1
            await ctx.tick()
            assert begun < 10 * PATIENCE, "takes tokens for ever"

    simulator = Simulator(core)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return begun


DEEP = [(), tuple(DeepBlock)]


@pytest.mark.parametrize("deep", DEEP)
@pytest.mark.parametrize("top", [Top.GATE, Top.FPGA])
def test_the_gate_holds_as_many_tokens_as_it_says(top, deep):
    """Its count of them has no bit more."""
    model, design, _ = CORES[top]
    if top is Top.FPGA:
        # Many logits, few of them chosen: products last longer than what is behind them.
        model = replace(model, gating=GatingSpec(num_experts=32, top_k=1), d_shared=0)
    core = GateAlone(model, replace(design, deep=deep))
    assert most_inside(core, "o") == core.most_tokens


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("deep", DEEP)
@pytest.mark.parametrize("rule", CapacityRule)
def test_the_dispatcher_holds_no_more_tokens_than_it_says(rule, deep, window):
    model = replace(MODEL, capacity_rule=rule, expert_capacity=2)
    core = DispatchAlone(model, replace(DESIGN, deep=deep, window_tokens=window))
    least = window if core.dispatch.config.decides else 1
    for held in ("o", "o_expect"):
        assert least <= most_inside(core, held) <= core.most_tokens
