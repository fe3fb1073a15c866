# amaranth: UnusedElaboratable=no
# (a top that the constructor refuses is never elaborated)
"""A top whose AXI ports run on another clock: the same accesses and packets, at odd ratios of the clocks.

The dispatcher's, in amaranth.sim; with others' masters: ``tests/bench/test_axi_bench.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amaranth.sim import Simulator

from rtl.axi import AxiTwoClocks, dispatch_top
from rtl.axi.clocks import STREAM_DEPTH
from rtl.axi.lite import DECERR, OKAY, SLVERR
from spec.registers import BUS_REGISTERS, CONTROL_LOAD, REGISTERS, STATUS_LOADED, Top
from tests.bench.axi_cores import CORES

MODEL, DESIGN, _ = CORES[Top.DISPATCH]
ADDRESSES = {**REGISTERS, **{register.name: register.address for register in BUS_REGISTERS}}
BUS_STATUS = next(register for register in BUS_REGISTERS if register.name == "BUS_STATUS")
UNIT = 1e-14
RATIOS = [(3000, 7000), (7000, 3000), (1000, 9000), (9000, 1000), (10000, 10010)]
"""Periods of the clock inside and of that of the ports."""
PATIENCE = 400


class Master:
    """What is at the other end of the ports, in the domain of the ports."""

    def __init__(self, ctx: Any, dut: Any, domain: str) -> None:
        self.ctx, self.dut, self.domain = ctx, dut, domain
        self.outputs: list[tuple[int, int, int, int]] = []

    async def cycle(self) -> None:
        """Let a cycle pass; an entry that is taken in it is noted."""
        ctx, port = self.ctx, self.dut.o
        if ctx.get(port.valid) and ctx.get(port.ready):
            beat = ctx.get(port.payload)
            self.outputs.append((beat.expert, beat.weight, beat.last, ctx.get(self.dut.m_axis_tuser)))
        await ctx.tick(self.domain)

    async def until(self, condition: Any) -> None:
        """Let cycles pass until a signal is 1, that one included."""
        for _ in range(PATIENCE):
            done = self.ctx.get(condition)
            await self.cycle()
            if done:
                return
        raise AssertionError(f"{condition!r} is not 1 in {PATIENCE} cycles")

    async def access(self, register: str | int, value: int | None = None) -> tuple[int, int]:
        """Write or read a register; return response and what was read."""
        ctx, dut = self.ctx, self.dut
        address = ADDRESSES[register] if isinstance(register, str) else register
        kinds = ("ar",) if value is None else ("aw", "w")
        ctx.set(dut.s_axi_wdata, value or 0)
        ctx.set(dut.s_axi_wstrb, 15)
        for kind in kinds:
            if kind != "w":
                ctx.set(getattr(dut, f"s_axi_{kind}addr"), address)
            ctx.set(getattr(dut, f"s_axi_{kind}valid"), 1)
            await self.until(getattr(dut, f"s_axi_{kind}ready"))
            ctx.set(getattr(dut, f"s_axi_{kind}valid"), 0)
        answer = "r" if value is None else "b"
        ctx.set(getattr(dut, f"s_axi_{answer}ready"), 1)
        while not ctx.get(getattr(dut, f"s_axi_{answer}valid")):
            await self.cycle()
        seen = ctx.get(getattr(dut, f"s_axi_{answer}resp")), ctx.get(dut.s_axi_rdata)
        await self.cycle()
        ctx.set(getattr(dut, f"s_axi_{answer}ready"), 0)
        return seen

    async def send(self, beats: list[tuple[int, int, int]]) -> None:
        """Send beats: expert, weight, last."""
        ctx, port = self.ctx, self.dut.i
        for expert, weight, last in beats:
            ctx.set(port.payload, {"expert": expert, "weight": weight, "last": last})
            ctx.set(port.valid, 1)
            await self.until(port.ready)
        ctx.set(port.valid, 0)

    async def start(self) -> None:
        """Load (there is nothing to load), so that tokens are taken."""
        assert (await self.access("CONTROL", 1 << CONTROL_LOAD))[0] == OKAY
        for _ in range(PATIENCE):
            _, status = await self.access("STATUS")
            if status >> STATUS_LOADED & 1:
                return
        raise AssertionError("is not loaded")

    async def recover(self) -> None:
        """Recover as is documented, without waiting for the rest of a packet."""
        recovering = next(field for field in BUS_STATUS.fields if field.name == "recovering").mask
        assert (await self.access("BUS_CONTROL", 1))[0] == OKAY
        for _ in range(PATIENCE):
            _, status = await self.access("BUS_STATUS")
            if not status & recovering:
                break
        else:
            raise AssertionError("recovers for ever")
        assert (await self.access("IRQ_STATUS", 7))[0] == OKAY


async def session(master: Master) -> dict[str, Any]:
    """Return what a board sees: accesses, a packet, an error with recovery, a packet that is given up."""
    ctx, dut = master.ctx, master.dut
    seen: dict[str, Any] = {}
    ctx.set(dut.o.ready, 1)
    ctx.set(dut.o_expect.ready, 1)
    seen["illegal write"], _ = await master.access("IDENTITY", 1)
    seen["unmapped"], _ = await master.access(0xFFC)
    seen["identity"] = await master.access("IDENTITY")
    await master.recover()
    await master.start()
    assert (await master.access("IRQ_STATUS", 7))[0] == OKAY
    seen["irq"] = ctx.get(dut.irq)
    assert (await master.access("IRQ_ENABLE", 7))[0] == OKAY
    await master.send([(2, 0x3F20, 0), (0, 0x3EC0, 0), (1, 0x3F40, 0), (2, 0x3E80, 1)])
    for _ in range(PATIENCE // 2):
        await master.cycle()
    seen["done"] = ctx.get(dut.irq)
    seen["packet"] = list(master.outputs)
    master.outputs.clear()
    # An output that is not taken, so that beats pile up to the port; the rest of the packet never comes.
    ctx.set(dut.o.ready, 0)
    sent = 0
    for _ in range(PATIENCE):
        ctx.set(dut.i.payload, {"expert": sent % 2, "weight": sent, "last": 0})
        ctx.set(dut.i.valid, 1)
        sent += ctx.get(dut.i.ready)
        await master.cycle()
    ctx.set(dut.i.valid, 0)
    piled = sent
    ctx.set(dut.o.ready, 1)
    await master.recover()
    for _ in range(20):
        await master.cycle()
    master.outputs.clear()
    await master.start()
    await master.send([(1, 0x4000, 0), (0, 0x4040, 1)])
    for _ in range(PATIENCE // 2):
        await master.cycle()
    seen["after"] = list(master.outputs)
    seen["tokens"] = (await master.access("TOKENS_IN"))[1]
    seen["errors"] = (await master.access("ERRORS"))[1]
    assert piled > 8
    return seen


def run(dut: Any, periods: tuple[int, int] | None) -> dict[str, Any]:
    """Return what :func:`session` sees."""
    simulator = Simulator(dut)
    simulator.add_clock((periods[0] if periods else 10_000) * UNIT, domain="sync")
    if periods:
        simulator.add_clock(periods[1] * UNIT, phase=periods[1] * 0.73 * UNIT, domain="bus")
    found: dict[str, Any] = {}

    async def bench(ctx: Any) -> None:
        found.update(await session(Master(ctx, dut, "bus" if periods else "sync")))

    simulator.add_testbench(bench)
    simulator.run()
    return found


WANTED = {
    "illegal write": SLVERR,
    "unmapped": DECERR,
    "identity": (OKAY, 0x45423031),
    "irq": 0,
    "done": 1,
    "packet": [(0, 0x3EC0, 1, 0), (1, 0x3F40, 1, 0), (2, 0x3F20, 0, 0), (2, 0x3E80, 1, 0)],
    "after": [(0, 0x4040, 1, 0), (1, 0x4000, 1, 0)],
    "tokens": 1,
    "errors": 0,
}


@pytest.mark.parametrize(
    "periods", [None, *RATIOS[:2], *(pytest.param(r, marks=pytest.mark.long) for r in RATIOS[2:])]
)
def test_ports_on_another_clock_do_the_same(periods):
    """None: on one clock, which is what the others have to do too."""
    depth = 0 if periods is None else STREAM_DEPTH
    top = dispatch_top(MODEL, DESIGN, waiting_beats=depth)
    assert run(top if periods is None else AxiTwoClocks(top), periods) == WANTED


def test_a_recovery_that_is_too_short_for_the_crossing_is_seen():
    top = dispatch_top(MODEL, DESIGN, waiting_beats=STREAM_DEPTH)
    dut = AxiTwoClocks(top)
    top.waiting_beats = 0
    seen = run(dut, (7000, 3000))
    assert seen["after"] != WANTED["after"] or seen["errors"]


def test_a_top_that_does_not_wait_for_the_crossing_is_refused():
    with pytest.raises(ValueError, match=r"^waiting_beats must be at least 16, not 0$"):
        AxiTwoClocks(SimpleNamespace(waiting_beats=0))
