"""The pictures of the AXI ports: what stands at the ports of a top, cycle by cycle, in a run.

``axi_lite`` and ``axi_packets`` are the dispatcher's top, ``axi_reads`` the guard at the read port of the
others. ``python -m tests.wavedrom_pages`` writes them beside those of the streams (``docs/streams/``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from rtl.axi import dispatch_top
from rtl.axi.reads import ReadGuard
from spec.registers import BUS_REGISTERS, REGISTERS, Top
from tests.bench.axi_cores import CORES

RESPONSES = ("OKAY", "EXOKAY", "SLVERR", "DECERR")


@dataclass(frozen=True)
class Row:
    """A line of a picture: its name, the signal, its valid if it has one; ``names`` of its values."""

    name: str
    signal: Callable[[Any], Any]
    valid: Callable[[Any], Any] | None = None
    names: Sequence[str] = ()


@dataclass(frozen=True)
class AxiPicture:
    """A run of a component and what is shown of it, by group.

    ``before`` and ``steps`` say what the ports that it does not drive are set to in which cycle; the picture
    is of the latter.
    """

    title: str
    make: Callable[[], wiring.Component]
    groups: Mapping[str, Sequence[Row]]
    steps: Mapping[int, Mapping[str, int]]
    cycles: int
    before: Mapping[int, Mapping[str, int]]


def _channel(prefix: str, channel: str, **payload: Sequence[str]) -> list[Row]:
    """Return the rows of a channel of the AXI4-Lite port."""

    def port(name: str) -> Callable[[Any], Any]:
        return lambda dut: getattr(dut, f"{prefix}_{channel}{name}")

    rows = [Row(f"{channel}{name}", port(name)) for name in ("valid", "ready")]
    return rows + [
        Row(f"{channel}{name}", port(name), port("valid"), names) for name, names in payload.items()
    ]


def _stream(port: str, *fields: str, **names: Sequence[str]) -> list[Row]:
    """Return the rows of a stream: handshake, then fields of its payload."""

    def of(name: str) -> Callable[[Any], Any]:
        return lambda dut: getattr(getattr(dut, port), name)

    def field(name: str) -> Callable[[Any], Any]:
        return lambda dut: getattr(getattr(dut, port).payload, name)

    rows = [Row(name, of(name)) for name in ("valid", "ready")]
    return rows + [Row(name, field(name), of("valid"), names.get(name, ())) for name in fields]


def _write(address: int, value: int) -> dict[str, int]:
    return {
        "s_axi_awaddr": address,
        "s_axi_awvalid": 1,
        "s_axi_wdata": value,
        "s_axi_wstrb": 15,
        "s_axi_wvalid": 1,
    }


WRITTEN = {"s_axi_awvalid": 0, "s_axi_wvalid": 0}
BATCH_TOKENS = next(entry.address for entry in BUS_REGISTERS if entry.name == "BATCH_TOKENS")
START = {
    0: {"s_axi_bready": 1, "s_axi_rready": 1, "o.ready": 1, "o_expect.ready": 1},
    1: _write(REGISTERS["CONTROL"], 1),
    2: WRITTEN,
    12: {},
}
"""Tokens are taken after a load, also where there is nothing to load."""


def _beat(expert: int, weight: int, last: int = 0) -> dict[str, int]:
    return {"i.valid": 1, "i.payload.expert": expert, "i.payload.weight": weight, "i.payload.last": last}


@cache
def _dispatcher() -> tuple:
    return CORES[Top.DISPATCH][:2]


AXI_PICTURES = {
    "axi_lite": AxiPicture(
        "AXI4-Lite: BATCH_TOKENS is written and read, its response waits; IDENTITY is not for writing",
        lambda: dispatch_top(*_dispatcher()),
        {
            "write": [
                *_channel("s_axi", "aw", addr=()),
                *_channel("s_axi", "w", data=()),
                *_channel("s_axi", "b", resp=RESPONSES),
            ],
            "read": [*_channel("s_axi", "ar", addr=()), *_channel("s_axi", "r", data=(), resp=RESPONSES)],
        },
        {
            0: {"s_axi_bready": 0, "s_axi_rready": 1, **_write(BATCH_TOKENS, 2)},
            1: WRITTEN,
            6: {"s_axi_bready": 1, "s_axi_araddr": BATCH_TOKENS, "s_axi_arvalid": 1},
            7: {"s_axi_arvalid": 0},
            11: _write(REGISTERS["IDENTITY"], 5),
            12: WRITTEN,
        },
        18,
        {},
    ),
    "axi_packets": AxiPicture(
        "AXI4-Stream: a packet of two tokens, then one that ends inside its token: filled up, marked, halted",
        lambda: dispatch_top(*_dispatcher()),
        {
            "s_axis": _stream("i", "expert", "weight", "last"),
            "m_axis": [
                *_stream("o", "expert", "slot", "weight", "last"),
                Row("user", lambda dut: dut.m_axis_tuser, lambda dut: dut.o.valid),
            ],
        },
        {
            0: _beat(2, 0x3F20),
            1: _beat(0, 0x3EC0),
            2: _beat(1, 0x3F40),
            3: _beat(2, 0x3E80, 1),
            4: _beat(4, 0x3F00, 1),
            5: _beat(3, 0x3F80),
            12: {"o.ready": 0},
            14: {"o.ready": 1},
        },
        22,
        START,
    ),
    "axi_reads": AxiPicture(
        "AXI4 reads: two bursts of two beats, an error in the first; the second ends early and is filled up",
        lambda: ReadGuard(16, 2, 2),
        {
            "m_axi AR": _stream("o_ar", "addr"),
            "m_axi R": _stream("i_r", "data", "last", "resp", resp=RESPONSES),
            "core": _stream("o_r", "data", "last"),
        },
        {
            0: {"i_ar.valid": 1, "i_ar.payload.addr": 0x1000, "o_ar.ready": 0, "o_r.ready": 1},
            1: {"i_ar.payload.addr": 0x1004},
            2: {"i_ar.valid": 0, "o_ar.ready": 1},
            5: {"i_r.valid": 1, "i_r.payload.data": 0x3F80, "i_r.payload.resp": 2},
            6: {"i_r.payload.data": 0xBF00, "i_r.payload.resp": 0, "i_r.payload.last": 1},
            7: {"i_r.payload.data": 0x3E80},
            8: {"i_r.valid": 0},
        },
        11,
        {},
    ),
}


def axi_source(one: AxiPicture) -> dict[str, Any]:
    """Return WaveDrom's source of a run."""
    from tests.wavedrom_pages import row_of

    dut = one.make()
    rows = [row for group in one.groups.values() for row in group]
    seen: list[list[int | None]] = []

    def signal(name: str) -> Any:
        value = dut
        for part in name.split("."):
            value = getattr(value, part)
        return value

    async def bench(ctx: Any) -> None:
        for steps, cycles in ((one.before, max(one.before, default=-1) + 1), (one.steps, one.cycles)):
            seen.clear()
            for cycle in range(cycles):
                for name, value in steps.get(cycle, {}).items():
                    ctx.set(signal(name), value)
                shown = [row.valid is None or ctx.get(row.valid(dut)) for row in rows]
                values = [int(ctx.get(Value.cast(row.signal(dut)))) for row in rows]
                seen.append([value if there else None for value, there in zip(values, shown, strict=True)])
                await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    lines: list[Any] = [{"name": "aclk", "wave": "p" + "." * (one.cycles - 1)}]
    columns = iter(zip(*seen, strict=True))
    for group, members in one.groups.items():
        drawn = []
        for row in members:
            values, width = next(columns), len(Value.cast(row.signal(dut)))
            if row.names:
                line = row_of(row.name, values, 2)
                line["data"] = [row.names[int(value)] for value in line["data"]]
            else:
                # Addresses in hexadecimal, whatever their width.
                line = row_of(row.name, values, max(width, 16) if row.name.endswith("addr") else width)
            drawn.append(line)
        lines.append([group, *drawn])
    return {"signal": lines, "config": {"hscale": 2}, "head": {"text": one.title, "tick": 0}}
