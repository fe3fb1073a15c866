"""One description of the registers: page, C header, Python constants, SystemRDL and hardware say the same."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.sim import Simulator
from systemrdl import RDLCompiler
from systemrdl.node import FieldNode, RegNode

from rtl.axi.lite import DECERR, OKAY, SLVERR, AddressDecoder
from rtl.axi.registers import RegisterBlock, member_of
from sim import register_map as files
from spec.registers import (
    BUS_PAGE,
    CORE_REGISTERS,
    COUNTERS,
    REGISTERS,
    Access,
    Field,
    Register,
    Top,
    counter_address,
    register_map,
)

MAPS = [(top, int8) for top in Top for int8 in (False, True)]
PAGE = Path(__file__).parent.parent / "docs" / "registers.md"


def constants(registers, top: str = "") -> dict[str, int]:
    """Return the constants that header and module must hold, written a second time from the description.

    ``top``: how values after reset begin in a header, so that those of two tops go together.
    """
    found = {}
    for register in registers:
        found[register.name] = register.address
        if register.reset:
            found[f"{top}{register.name}_RESET"] = register.reset
        for field in register.fields:
            if field.name != "value":
                stem = f"{register.name}_{field.name.upper()}"
                found[f"{stem}_LSB"] = field.low
                found[f"{stem}_MASK"] = sum(1 << bit for bit in range(field.low, field.low + field.width))
    return found


def test_page_is_what_the_description_says():
    assert PAGE.read_text() == files.page(), "run make registers-page"


def test_the_page_says_which_tops_have_a_register():
    rows = re.findall(r"^\| 0x(\w+) \| \w+ \| [^|]* \| ([^|]*) \|", PAGE.read_text(), re.M)
    for address, tops in rows:
        has = [
            top
            for top in Top
            if any(one.address == int(address, 16) for one in register_map(top, int8=True, secded=True))
        ]
        told = re.split(r" \(", tops.strip())[0]
        assert told == ("all" if len(has) == len(Top) else ", ".join(has)), address
    assert len(rows) > 40


def test_page_tells_a_change(monkeypatch):
    changed = [
        replace(register, address=0x7FC) if register.name == "ERRORS" else register
        for register in files.whole_map()
    ]
    monkeypatch.setattr(files, "whole_map", lambda: tuple(changed))
    assert PAGE.read_text() != files.page()


@pytest.mark.parametrize("top", Top)
def test_python_constants(top):
    names: dict[str, int] = {}
    exec(files.python_constants(register_map(top, int8=True), "x"), names)
    found = {name: value for name, value in names.items() if name.isupper()}
    assert found == constants(register_map(top, int8=True))


def test_c_header_compiles_and_says_the_same(tmp_path):
    registers = files.whole_map()
    wanted = constants(registers, "X_")
    (tmp_path / "eb.h").write_text(files.c_header(registers, "x"))
    for top in Top:
        # Of a design with several tops: all headers in one file.
        (tmp_path / f"{top}.h").write_text(
            files.c_header(register_map(top, secded=top is Top.PIM), f"{top}_axi")
        )
    lines = "".join(f'    printf("{name} %lu\\n", (unsigned long)EB_{name});\n' for name in wanted)
    twice = '#include "eb.h"\n#include "eb.h"\n#include <stdio.h>\n'
    twice += "".join(f'#include "{top}.h"\n' for top in Top)
    (tmp_path / "main.c").write_text(f"{twice}int main(void) {{\n{lines}    return 0;\n}}\n")
    command = [
        "g++",
        "-x",
        "c",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "main.c",
        "-o",
        "main",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    shown = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    assert {name: int(value) for name, value in map(str.split, shown.splitlines())} == wanted


def compiled(text: str, path: Path) -> dict[str, RegNode]:
    """Return the registers of an address map by name, as the SystemRDL compiler read them."""
    path.write_text(text)
    compiler = RDLCompiler()
    compiler.compile_file(str(path))
    top = compiler.elaborate().top
    return {node.inst_name: node for node in top.children() if isinstance(node, RegNode)}


SOFTWARE = {
    Access.READ: (True, False),
    Access.WRITE: (False, True),
    Access.READ_WRITE: (True, True),
    Access.CLEAR: (True, True),
}


def test_what_a_top_holds_after_reset_is_its_own():
    held = {
        (register.name, top): register.reset
        for top in Top
        for register in register_map(top, int8=top is Top.FPGA, secded=top is Top.PIM)
    }
    assert {top: held["BUS_ID", top] for top in Top} == {
        Top.FPGA: 0x1001,
        Top.PIM: 0x2101,
        Top.GATE: 0x201,
        Top.DISPATCH: 0x301,
    }
    assert {top: held["STATUS", top] for top in Top} == {top: int(top is Top.DISPATCH) for top in Top}


@pytest.mark.parametrize(("top", "int8"), MAPS)
def test_system_rdl(tmp_path, top, int8):
    registers = register_map(top, int8=int8)
    nodes = compiled(files.system_rdl(registers, "eb_top"), tmp_path / "eb.rdl")
    assert {name: node.absolute_address for name, node in nodes.items()} == {
        register.name: register.address for register in registers
    }
    for register in registers:
        fields = {field.inst_name: field for field in nodes[register.name].fields()}
        assert {
            name: (node.low, node.width, node.get_property("reset")) for name, node in fields.items()
        } == {field.name: (field.low, field.width, field.reset) for field in register.fields}
        for field in register.fields:
            node: FieldNode = fields[field.name]
            assert (node.is_sw_readable, node.is_sw_writable) == SOFTWARE[register.access]
            assert node.get_property("singlepulse") == field.pulse
            assert (node.get_property("onwrite") is not None) == (register.access is Access.CLEAR)


def answered(registers, component: AddressDecoder, *, locked: int, recovering: int, wdata: int):
    """Return the responses to a write and a read of every word of the port's 4 KiB, a cycle later."""
    found = {}

    async def bench(ctx):
        ctx.set(component.locked, locked)
        ctx.set(component.recovering, recovering)
        ctx.set(component.wdata, wdata)
        for address in range(0, 1 << 12, 4):
            ctx.set(component.addr, address)
            await ctx.tick()
            found[address] = (ctx.get(component.write_response), ctx.get(component.read_response))

    simulator = Simulator(component)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def expected(registers, *, locked: int, recovering: int, wdata: int):
    """Return the same from the description."""
    found = dict.fromkeys(range(0, 1 << 12, 4), (DECERR, DECERR))
    for register in registers:
        refused = register.access is Access.READ or (locked and register.locked)
        refused |= bool(locked and any(wdata & field.mask for field in register.fields if field.locked))
        refused |= bool(recovering and register.address < BUS_PAGE)
        found[register.address] = (SLVERR if refused else OKAY, OKAY)
    return found


@pytest.mark.parametrize(("top", "int8"), [(Top.FPGA, False), (Top.PIM, True), (Top.DISPATCH, False)])
@pytest.mark.parametrize(
    "state",
    [
        {"locked": 0, "recovering": 0, "wdata": 3},
        {"locked": 1, "recovering": 0, "wdata": 1},
        {"locked": 1, "recovering": 0, "wdata": 2},
        {"locked": 1, "recovering": 1, "wdata": 2},
    ],
)
def test_decoder_answers_every_address(top, int8, state):
    registers = register_map(top, int8=int8)
    assert answered(registers, AddressDecoder(registers), **state) == expected(registers, **state)


def test_another_decoder_is_seen():
    registers = register_map(Top.FPGA)
    wrong = [
        replace(register, access=Access.READ_WRITE) if register.name == "ERRORS" else register
        for register in registers
    ]
    state = {"locked": 0, "recovering": 0, "wdata": 0}
    assert answered(registers, AddressDecoder(wrong), **state) != expected(registers, **state)


EXAMPLE = (
    Register(
        name="MODE",
        address=0x100,
        access=Access.READ_WRITE,
        meaning="",
        fields=(Field(name="fast", width=1, reset=1), Field(name="depth", low=4, width=8, reset=0x5A)),
    ),
    Register(
        name="START",
        address=0x104,
        access=Access.WRITE,
        meaning="",
        fields=(Field(name="go", low=3, width=1, pulse=True),),
    ),
    Register(
        name="EVENTS",
        address=0x108,
        access=Access.CLEAR,
        meaning="",
        fields=(Field(name="a", width=1), Field(name="b", low=8, width=2)),
    ),
    Register(
        name="LEVEL",
        address=0x10C,
        access=Access.READ,
        meaning="",
        fields=(Field(name="now", low=8, width=4),),
    ),
    Register(name="KIND", address=0x110, access=Access.READ, meaning=""),
)


def test_block_of_registers_has_every_kind_of_access():
    block = RegisterBlock(EXAMPLE, {"kind": 0xCAFE})

    async def bench(ctx):
        async def write(address, value):
            ctx.set(block.addr, address)
            ctx.set(block.wdata, value)
            ctx.set(block.we, 1)
            await ctx.tick()
            ctx.set(block.we, 0)

        async def read(address):
            ctx.set(block.addr, address)
            await ctx.tick()
            return ctx.get(block.rdata)

        # Reset values, storage, bits outside of fields.
        assert await read(0x100) == 0x5A1
        await write(0x100, 0xFFFF_FFFF)
        assert await read(0x100) == 0xFF1
        assert (ctx.get(block.mode_fast), ctx.get(block.mode_depth)) == (1, 0xFF)
        # One cycle of a pulse, which reads as 0.
        await write(0x104, 1 << 3)
        assert ctx.get(block.start_go) == 1
        await ctx.tick()
        assert ctx.get(block.start_go) == 0
        assert await read(0x104) == 0
        # An event stays until 1 is written to it, and one in the cycle of the clear stays too.
        ctx.set(block.events_a_set, 1)
        ctx.set(block.events_b_set, 0b10)
        await ctx.tick()
        ctx.set(block.events_a_set, 0)
        ctx.set(block.events_b_set, 0)
        await write(0x108, 0x100)
        assert await read(0x108) == 0x201
        ctx.set(block.events_b_set, 0b10)
        await write(0x108, 0x201)
        ctx.set(block.events_b_set, 0)
        assert await read(0x108) == 0x200
        ctx.set(block.level_now, 9)
        await write(0x10C, 0xFFFF_FFFF)
        assert await read(0x10C) == 0x900
        assert await read(0x110) == 0xCAFE
        assert await read(0x114) == 0

    simulator = Simulator(block)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert member_of(EXAMPLE[4], EXAMPLE[4].fields[0]) == "kind"


def test_names_that_the_plain_port_has_lead_to_the_same_addresses():
    for top, int8 in MAPS:
        addresses = {register.name: register.address for register in register_map(top, int8=int8)}
        assert len(set(addresses.values())) == len(addresses)
        assert list(addresses.values()) == sorted(addresses.values())
        for name in addresses.keys() & REGISTERS.keys():
            assert addresses[name] == REGISTERS[name]
    layer = {register.name: register.address for register in register_map(Top.PIM, int8=True)}
    assert layer.keys() >= {register.name for register in CORE_REGISTERS}
    for name in COUNTERS:
        assert layer[f"{name.upper()}_LOW"] == counter_address(name)
        assert layer[f"{name.upper()}_HIGH"] == counter_address(name) + 4


def exactly(message: str) -> str:
    return rf"\A{re.escape(message)}\Z"


def test_impossible_registers():
    with pytest.raises(ValueError, match=exactly("a: bits must lie in 0..31, not 30..33")):
        Field(name="a", low=30, width=4)
    with pytest.raises(ValueError, match=exactly("a: reset must have at most 2 bits, not 4")):
        Field(name="a", width=2, reset=4)
    with pytest.raises(ValueError, match=exactly("A: address must be a multiple of 4, not 0x6")):
        Register(name="A", address=6, access=Access.READ, meaning="")
    overlapping = (Field(name="a", width=2), Field(name="b", low=1, width=1))
    with pytest.raises(ValueError, match=exactly("A: fields must ascend and not overlap, as b does")):
        Register(name="A", address=4, access=Access.READ, meaning="", fields=overlapping)


def test_keywords_of_python_and_c_are_not_used():
    for register in files.whole_map():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", register.name)
        for field in register.fields:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)
