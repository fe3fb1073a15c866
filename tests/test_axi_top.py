"""A top with AXI ports, the dispatcher's, in amaranth.sim: corners of what is told and taken.

With others' masters, and of the accelerators and the gate: ``tests/bench/test_axi_bench.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.sim import Simulator

from rtl.axi import dispatch_top
from rtl.axi.lite import OKAY
from spec.registers import BUS_REGISTERS
from tests.test_axi_clocks import DESIGN, MODEL, PATIENCE, Master

ERRORS = next(register for register in BUS_REGISTERS if register.name == "ERRORS")


def error(name: str) -> int:
    return next(field.mask for field in ERRORS.fields if field.name == name)


def run(session: Callable[[Master], Any]) -> None:
    """Run a master's session at the dispatcher's top, whose outputs are taken at once."""
    top = dispatch_top(MODEL, DESIGN)
    simulator = Simulator(top)
    simulator.add_clock(1e-8)

    async def bench(ctx):
        ctx.set(top.o.ready, 1)
        ctx.set(top.o_expect.ready, 1)
        await session(Master(ctx, top, "sync"))

    simulator.add_testbench(bench)
    simulator.run()


async def wait(master: Master, cycles: int = PATIENCE // 2) -> None:
    for _ in range(cycles):
        await master.cycle()


def test_a_token_that_ends_with_its_first_beat_is_the_one_that_is_named():
    async def session(master):
        await master.start()
        # The second token has one beat of two; it is filled up with zeros.
        await master.send([(2, 0x3F20, 0), (0, 0x3EC0, 0), (1, 0x3F40, 1)])
        await wait(master)
        assert await master.access("ERRORS") == (OKAY, error("short_token"))
        assert await master.access("ERROR_TOKEN") == (OKAY, 1)
        marks = {(expert, weight): user for expert, weight, _, user in master.outputs}
        assert marks == {(2, 0x3F20): 0, (0, 0x3EC0): 0, (1, 0x3F40): 1, (0, 0): 1}

    run(session)
