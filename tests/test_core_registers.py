"""All words of each core's register page, at its port: reset values, what is kept, what is not there.

Against :mod:`spec.registers`. Of the port's decoder and of the bus' page: ``tests/test_registers.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from rtl.axi import DispatchAlone, GateAlone
from sim.rtlsim import layer_component
from spec.design import Format
from spec.model import CapacityRule
from spec.registers import (
    BUS_PAGE,
    REGISTERS,
    STATUS_BUSY,
    Access,
    Register,
    Top,
    register_map,
)
from tests.bench.axi_cores import CORES

PATTERNS = (0xA5A5_5A5A, 0x5A5A_A5A5)
"""Each bit once 0 and once 1; both without ``load`` and ``clear`` where they are the bits of CONTROL."""


def core_of(top: Top, *, int8: bool = False, secded: bool = False):
    """Return a top's core, small, and its part of the map."""
    model, design, block = CORES[top]
    design = replace(design, format=Format.INT8) if int8 else design
    design = design.with_secded() if secded else design
    if block is None:
        core = layer_component(model, design)()
    else:
        core = {Top.GATE: GateAlone, Top.DISPATCH: DispatchAlone}[block](model, design)
    registers = register_map(top, int8=int8, secded=secded)
    return core, [register for register in registers if register.address < BUS_PAGE]


def differences(core, page: Sequence[Register]) -> list[str]:
    """Return what the register port shows otherwise than the description says."""
    known = {register.address: register for register in page}
    found = []

    def expect(when: str, address: int, seen: int, wanted: int) -> None:
        if seen != wanted:
            name = known[address].name if address in known else "nothing"
            found.append(f"{when}: {address:#04x} ({name}) is {seen:#x}, not {wanted:#x}")

    async def bench(ctx):
        async def read(address):
            ctx.set(core.reg_addr, address)
            await ctx.tick()
            return ctx.get(core.reg_rdata)

        async def write(address, value):
            ctx.set(core.reg_addr, address)
            ctx.set(core.reg_wdata, value)
            ctx.set(core.reg_we, 1)
            await ctx.tick()
            ctx.set(core.reg_we, 0)

        words = range(0, BUS_PAGE, 4)
        holds = {address: known[address].reset if address in known else 0 for address in words}
        for address in words:
            expect("after reset", address, await read(address), holds[address])
        for pattern in PATTERNS:
            for address in words:
                await write(address, 0 if address == REGISTERS["CONTROL"] else pattern)
                register = known.get(address)
                if register is not None and register.access is Access.READ_WRITE:
                    holds[address] = pattern & sum(field.mask for field in register.fields)
            for address in words:
                expect(f"after {pattern:#x}", address, await read(address), holds[address])
        # Last, since it starts what it starts: it reads as 0 whatever is written.
        await write(REGISTERS["CONTROL"], 0xFFFF_FFFF)
        expect("after a load", REGISTERS["CONTROL"], await read(REGISTERS["CONTROL"]), 0)

    simulator = Simulator(core)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return found


@pytest.mark.parametrize(
    ("top", "kinds"),
    [
        pytest.param(Top.FPGA, {}, marks=pytest.mark.slow),
        pytest.param(Top.PIM, {"int8": True, "secded": True}, marks=pytest.mark.slow),
        pytest.param(Top.GATE, {}, marks=pytest.mark.slow),
        (Top.DISPATCH, {}),
    ],
)
def test_every_word_of_the_page_is_what_the_description_says(top, kinds):
    core, page = core_of(top, **kinds)
    assert differences(core, page) == []


@pytest.mark.parametrize("window_tokens", [1, 2])
def test_a_dispatcher_with_tokens_inside_is_busy(window_tokens):
    """In every cycle, however many wait: its counter was too narrow where windows are decided at once."""
    model, design, _ = CORES[Top.DISPATCH]
    model = replace(model, expert_capacity=1, capacity_rule=CapacityRule.GSHARD)
    core = DispatchAlone(model, replace(design, window_tokens=window_tokens))
    begun, idle = 0, []

    async def bench(ctx):
        nonlocal begun
        ctx.set(core.reg_addr, REGISTERS["STATUS"])
        ctx.set(core.i.valid, 1)
        for beat in range(100):
            ctx.set(core.i.payload.expert, beat % model.gating.top_k)
            ctx.set(core.i.payload.last, 1)
            taken = ctx.get(core.i.ready)
            busy = ctx.get(core.reg_rdata) >> STATUS_BUSY & 1
            if begun and beat > 2 and not busy:
                idle.append(beat)
            await ctx.tick()
            begun += taken

    simulator = Simulator(core)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert begun > 4 * model.gating.top_k
    assert not idle


class Page(wiring.Component):
    """Two registers, the second of which may be wrong: its reset value, whether it is kept or read."""

    def __init__(self, *, reset: int = 7, kept: bool = True, shown: bool = True, more: bool = False) -> None:
        self.kinds = SimpleNamespace(reset=reset, kept=kept, shown=shown, more=more)
        super().__init__({"reg_addr": In(8), "reg_wdata": In(32), "reg_we": In(1), "reg_rdata": Out(32)})

    def elaborate(self, platform):
        m = Module()
        mode = Signal(32, init=self.kinds.reset)
        m.d.sync += self.reg_rdata.eq(0)
        with m.If((self.reg_addr == 0x0C) & self.kinds.shown | (self.reg_addr == 0xFC) & self.kinds.more):
            m.d.sync += self.reg_rdata.eq(mode)
        with m.If(self.reg_we & (self.reg_addr == 0x0C) & self.kinds.kept):
            m.d.sync += mode.eq(self.reg_wdata)
        return m


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, None),
        ({"reset": 6}, "after reset: 0x0c (MODE) is 0x6, not 0x7"),
        ({"kept": False}, "after 0xa5a55a5a: 0x0c (MODE) is 0x7, not 0xa5a55a5a"),
        ({"shown": False}, "after reset: 0x0c (MODE) is 0x0, not 0x7"),
        ({"more": True}, "after reset: 0xfc (nothing) is 0x7, not 0x0"),
    ],
)
def test_another_page_is_seen(wrong, message):
    field = replace(register_map(Top.FPGA)[0].fields[0], reset=7)
    mode = Register(name="MODE", address=0x0C, access=Access.READ_WRITE, meaning="", fields=(field,))
    found = differences(Page(**wrong), [mode])
    assert found[:1] == ([] if message is None else [message])
    # And what is kept where it may only be read, or not be read at all.
    for access in (Access.READ, Access.WRITE):
        other = replace(mode, access=access)
        assert differences(Page(), [other])
