"""The parts of the tops with AXI ports, each alone; and that their tests see what is wrong.

The tops themselves: ``tests/bench/test_axi_bench.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from rtl.axi import packets, reads
from rtl.axi.lite import DECERR, OKAY, SLVERR, AxiLite
from rtl.axi.packets import PacketGuard, PacketMarker
from rtl.axi.reads import ReadGuard
from rtl.gating import token_layout
from sim.cli import main
from spec.registers import BUS_PAGE, LAYERS, REGISTERS, Top
from tests.block_bench import mutated_module
from tests.test_export import lint
from tests.verilog2005 import faults_of_export

MOST = 700


def simulate(component: wiring.Component, bench: Callable[[Any], Any]) -> None:
    simulator = Simulator(component)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


# AXI4-Lite


def accesses(lite: AxiLite, rng: np.random.Generator, busy: float) -> list[str]:
    """Return what went wrong with random accesses under random pauses: words are what was written.

    Address 0x40 is refused with SLVERR, 0x80 and above with DECERR.
    """
    wrong: list[str] = []
    model: dict[int, int] = {}

    def response(address: int) -> int:
        return DECERR if address >= 0x80 else SLVERR if address == 0x40 else OKAY

    async def bench(ctx):
        memory: dict[int, int] = {}
        pending: dict[str, Any] = {}
        read_model = 0
        held: dict[str, tuple[int, ...] | None] = {"b": None, "r": None}
        done = {"b": 0, "r": 0}
        rdata = 0
        for _ in range(MOST):
            # A master that starts one write and one read at a time, its parts in any order.
            # Those at the same time are of different words: which comes first is not said.
            if "write" not in pending and rng.random() > busy:
                address, strobe = int(rng.integers(0, 20)) * 8, int(rng.choice([15, 15, 3]))
                address += 4 * (pending.get("read", 4) % 8 == 0)
                value = int(rng.integers(1 << 32))
                pending["write"] = (address, value, strobe)
                pending["aw"] = pending["w"] = True
            if "read" not in pending and rng.random() > busy:
                address = int(rng.integers(0, 20)) * 8
                pending["read"] = address + 4 * (pending.get("write", (4,))[0] % 8 == 0)
                pending["ar"] = True
            ctx.set(lite.s_axi_awvalid, int("aw" in pending and (rng.random() > busy or pending["aw"] == 2)))
            ctx.set(lite.s_axi_wvalid, int("w" in pending and (rng.random() > busy or pending["w"] == 2)))
            ctx.set(lite.s_axi_arvalid, int("ar" in pending and (rng.random() > busy or pending["ar"] == 2)))
            for name, port in (("aw", "awvalid"), ("w", "wvalid"), ("ar", "arvalid")):
                if ctx.get(getattr(lite, f"s_axi_{port}")):
                    pending[name] = 2
            if "write" in pending:
                address, value, strobe = pending["write"]
                ctx.set(lite.s_axi_awaddr, address)
                ctx.set(lite.s_axi_wdata, value)
                ctx.set(lite.s_axi_wstrb, strobe)
            if "read" in pending:
                ctx.set(lite.s_axi_araddr, pending["read"])
            ctx.set(lite.s_axi_bready, int(rng.random() > busy))
            ctx.set(lite.s_axi_rready, int(rng.random() > busy))
            # The registers behind the port.
            address = ctx.get(lite.addr)
            ctx.set(lite.rdata, rdata)
            ctx.set(lite.write_response, response(address))
            ctx.set(lite.read_response, response(address))
            rdata = memory.get(address, 0)
            if ctx.get(lite.we):
                memory[address] = ctx.get(lite.wdata)
            if ctx.get(lite.polls) and address != REGISTERS["STATUS"]:
                wrong.append(f"polls {address:#x}")
            for name, port in (("aw", "aw"), ("w", "w"), ("ar", "ar")):
                valid, ready = getattr(lite, f"s_axi_{port}valid"), getattr(lite, f"s_axi_{port}ready")
                if ctx.get(valid) and ctx.get(ready):
                    pending.pop(name)
            b = (ctx.get(lite.s_axi_bresp),) if ctx.get(lite.s_axi_bvalid) else None
            r = (ctx.get(lite.s_axi_rresp), ctx.get(lite.s_axi_rdata)) if ctx.get(lite.s_axi_rvalid) else None
            for name, seen in (("b", b), ("r", r)):
                if held[name] is not None and seen != held[name]:
                    wrong.append(f"{name} changed")
                held[name] = seen
            if b is not None and ctx.get(lite.s_axi_bready):
                address, value, strobe = pending.pop("write")
                expected = response(address) if strobe == 15 else SLVERR
                if b != (expected,):
                    wrong.append(f"write to {address:#x}: {b}")
                if expected == OKAY:
                    model[address] = value
                held["b"], done["b"] = None, done["b"] + 1
            if r is not None and ctx.get(lite.s_axi_rready):
                address = pending.pop("read")
                read_model = model.get(address, 0) if response(address) == OKAY else 0
                if r != (response(address), read_model):
                    wrong.append(f"read of {address:#x}: {r}, expected {read_model:#x}")
                held["r"], done["r"] = None, done["r"] + 1
            await ctx.tick()
        if min(done.values()) < 30:
            wrong.append(f"only {done}")
        if memory != model and "write" not in pending:
            wrong.append("what was written differs")

    simulate(lite, bench)
    return wrong


@pytest.mark.parametrize("busy", [0.0, 0.5, 0.8])
def test_lite_under_pauses(busy):
    seed = int(busy * 10)
    print(f"seed {seed}")
    assert accesses(AxiLite(), np.random.default_rng(seed), busy) == []


class Forgetful(AxiLite):
    """An error: a write that is refused is done all the same."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.right = right = AxiLite()
        for name, member in self.signature.members.items():
            mine, its = getattr(self, name), getattr(right, name)
            if name != "we":
                m.d.comb += its.eq(mine) if member.flow == wiring.In else mine.eq(its)
        m.d.comb += self.we.eq(right.we | right.refused_write)
        return m


def test_a_refused_write_that_is_done_is_seen():
    assert accesses(Forgetful(), np.random.default_rng(5), 0.5) != []


def test_lite_takes_the_cycles_that_the_page_says():
    """Address and data in cycle 0: written in 3, answered in 4; so is a read, beside a write in 7."""
    lite = AxiLite()
    seen = {}

    async def bench(ctx):
        for both in (True, False):
            ctx.set(lite.s_axi_wstrb, 15)
            for port in ("awvalid", "wvalid") if both else ():
                ctx.set(getattr(lite, f"s_axi_{port}"), 1)
            ctx.set(lite.s_axi_arvalid, 1)
            for cycle in range(8):
                for port in ("bvalid", "rvalid"):
                    if ctx.get(getattr(lite, f"s_axi_{port}")):
                        seen.setdefault((both, port), cycle)
                if ctx.get(lite.we):
                    seen[both, "we"] = cycle
                await ctx.tick()
                for port in ("awvalid", "wvalid", "arvalid"):
                    ctx.set(getattr(lite, f"s_axi_{port}"), 0)
                ctx.set(lite.s_axi_bready, 1)
                ctx.set(lite.s_axi_rready, 1)

    simulate(lite, bench)
    assert seen == {(True, "we"): 3, (True, "bvalid"): 4, (True, "rvalid"): 7, (False, "rvalid"): 4}


@pytest.mark.parametrize(("before", "order"), [("w", "rw"), ("r", "wr")])
def test_accesses_that_come_together_take_turns(before, order):
    """The kind that was not served last goes first."""
    lite = AxiLite()
    requests = {"w": ("awvalid", "wvalid"), "r": ("arvalid",)}
    served = ""

    async def bench(ctx):
        nonlocal served
        ctx.set(lite.s_axi_wstrb, 15)
        ctx.set(lite.s_axi_bready, 1)
        ctx.set(lite.s_axi_rready, 1)
        for kinds in (before, "wr"):
            ports = [getattr(lite, f"s_axi_{name}") for kind in kinds for name in requests[kind]]
            for port in ports:
                ctx.set(port, 1)
            await ctx.tick()
            for port in ports:
                ctx.set(port, 0)
            for _ in range(10):
                served += "w" * ctx.get(lite.s_axi_bvalid) + "r" * ctx.get(lite.s_axi_rvalid)
                await ctx.tick()

    simulate(lite, bench)
    assert served == before + order


# Packets

TOKEN_BEATS = 3


def passed(
    guard: PacketGuard,
    beats: list[tuple[int, int]],
    actions: dict[int, dict[str, int]],
    seed: int,
    not_before: dict[int, int] | None = None,
):
    """Return the beats that the core got and how many were thrown away.

    ``actions``: values of inputs from a cycle on. Beats are offered, and taken, in half of the cycles, beat
    ``n`` from ``not_before[n]`` on.
    """
    rng = np.random.default_rng(seed)
    got: list[tuple[int, int]] = []
    discarded = 0

    async def bench(ctx):
        nonlocal discarded
        ctx.set(guard.admit, 1)
        offered, held = 0, False
        for cycle in range(300):
            for name, value in actions.get(cycle, {}).items():
                ctx.set(getattr(guard, name), value)
            due = (not_before or {}).get(offered, 0) <= cycle
            held = held or (offered < len(beats) and due and rng.random() < 0.5)
            ctx.set(guard.i.valid, int(held))
            if held:
                ctx.set(guard.i.payload.data[0], beats[offered][0])
                ctx.set(guard.i.payload.last, beats[offered][1])
            ctx.set(guard.o.ready, int(rng.random() < 0.5))
            if ctx.get(guard.o.valid) and ctx.get(guard.o.ready):
                got.append((ctx.get(guard.o.payload.data[0]), ctx.get(guard.o.payload.last)))
            discarded += ctx.get(guard.discarded)
            if held and ctx.get(guard.i.ready):
                offered, held = offered + 1, False
            await ctx.tick()

    simulate(guard, bench)
    return got, discarded


def packet(first: int, beats: int) -> list[tuple[int, int]]:
    return [(first + n, int(n == beats - 1)) for n in range(beats)]


def recover(cycle: int, discard_rest: int) -> dict[int, dict[str, int]]:
    return {
        cycle: {"recover": 1, "discard_rest": discard_rest},
        cycle + 1: {"recover": 0, "recovering": 1},
        cycle + 10: {"recovering": 0},
    }


def guard() -> PacketGuard:
    return PacketGuard(token_layout(1), TOKEN_BEATS)


@pytest.mark.parametrize("seed", range(2))
def test_packets_of_whole_tokens_pass(seed):
    beats = packet(1, 6) + packet(21, 3) + packet(31, 9)
    assert passed(guard(), beats, {}, seed) == (beats, 0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cut", [1, 2])
def test_a_short_token_is_filled_up(seed, cut):
    got, _ = passed(guard(), packet(1, 3 + cut) + packet(21, 3), {}, seed)
    filled = [(4, 0), (5 if cut == 2 else 0, 0), (0, 1)]
    assert got == [(1, 0), (2, 0), (3, 0), *filled]
    got, _ = passed(guard(), packet(1, 3 + cut) + packet(21, 3), recover(100, 0), seed)
    assert got == [(1, 0), (2, 0), (3, 0), *filled, *packet(21, 3)]


@pytest.mark.parametrize("seed", range(2))
def test_the_rest_of_an_open_packet_is_discarded_to_its_end(seed):
    """Nothing of the core is there any more: it was reset with tokens inside."""
    beats = packet(1, 60) + packet(101, 6)
    got, discarded = passed(guard(), beats, recover(30, 1), seed)
    inside = len(got) - 6
    assert got == beats[:inside] + packet(101, 6)
    assert discarded == 60 - inside


@pytest.mark.parametrize("seed", range(2))
def test_an_open_packet_whose_source_was_reset_is_flushed(seed):
    """What waits in the register at the port goes; what comes after recovery is a new packet."""
    beats = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), *packet(11, 3)]
    actions = {35: {"admit": 0}} | recover(60, 0) | {71: {"admit": 1}}
    got, discarded = passed(guard(), beats, actions, seed, not_before={3: 40, 5: 80})
    assert got == [*beats[:3], *packet(11, 3)]
    assert discarded == 2


@pytest.mark.parametrize("seed", range(2))
def test_tokens_are_counted_anew_behind_recovery(seed):
    """A packet of two tokens is given up behind its first one; the next one is whole."""
    actions = {0: {"batch_tokens": 2}} | recover(60, 0)
    got, discarded = passed(guard(), [*packet(1, 6)[:3], *packet(11, 6)], actions, seed, not_before={3: 80})
    assert got == [(1, 0), (2, 0), (3, 0), *packet(11, 6)]
    assert discarded == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_failed_read_halts_behind_the_packet(seed):
    failed = {20: {"read_failed": 1}}
    got, _ = passed(guard(), packet(1, 30) + packet(101, 6), failed, seed)
    assert got == packet(1, 30)
    again = failed | recover(200, 0) | {202: {"read_failed": 0}}
    got, _ = passed(guard(), packet(1, 30) + packet(101, 6), again, seed)
    assert got == packet(1, 30) + packet(101, 6), "recovery leaves it halted"


@pytest.mark.parametrize(
    ("count", "beats", "expected", "thrown"),
    [
        (2, packet(1, 6) + packet(21, 6), packet(1, 6) + packet(21, 6), 0),
        (2, packet(1, 3) + packet(21, 6), packet(1, 3), 0),
        (1, packet(1, 8) + packet(21, 3), packet(1, 3), 5),
    ],
)
def test_packets_of_a_length(count, beats, expected, thrown):
    assert passed(guard(), beats, {0: {"batch_tokens": count}}, 1) == (expected, thrown)


PLANTED = {
    "a short token is not filled up": (
        "m.d.sync += state.eq(InputState.FILL)",
        "m.d.sync += state.eq(InputState.HALTED)",
        packet(1, 4),
        {},
    ),
    "the rest of a long packet is let in": (
        "m.d.sync += state.eq(InputState.DISCARD)",
        "m.d.sync += state.eq(InputState.PASS)",
        packet(1, 8),
        {0: {"batch_tokens": 1}},
    ),
    "recovery leaves it halted": (
        " & ~o.valid & ~self.recovering):",
        " & ~o.valid):",
        packet(1, 30) + packet(101, 6),
        {20: {"read_failed": 1}} | recover(200, 0) | {202: {"read_failed": 0}},
    ),
    "the end of a batch is where the packet says, not where it has to be": (
        "o.payload.last.eq(ends_token & (i.payload.last | counted_out))",
        "o.payload.last.eq(ends_token & i.payload.last)",
        packet(1, 8),
        {0: {"batch_tokens": 1}},
    ),
}


@pytest.mark.parametrize(("old", "new", "beats", "actions"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_of_the_packets_is_seen(monkeypatch, old, new, beats, actions):
    wrong = mutated_module(monkeypatch, packets, old, new)
    right_ = passed(guard(), beats, actions, 0)
    assert passed(wrong.PacketGuard(token_layout(1), TOKEN_BEATS), beats, actions, 0) != right_


def test_a_cut_output_packet_is_closed_with_a_mark():
    marker = PacketMarker(token_layout(1))
    seen = []

    async def bench(ctx):
        ctx.set(marker.i.valid, 1)
        ctx.set(marker.i.payload.data[0], 7)
        for cycle in range(40):
            # The sink stands still for a while: what is offered stays.
            ctx.set(marker.o.ready, int(cycle > 20))
            ctx.set(marker.recovering, int(5 <= cycle < 35))
            ctx.set(marker.i.valid, int(cycle < 30))
            if ctx.get(marker.o.valid) and ctx.get(marker.o.ready):
                beat = marker.o.payload
                seen.append((ctx.get(beat.data[0]), ctx.get(beat.last), ctx.get(marker.user)))
            await ctx.tick()

    simulate(marker, bench)
    assert seen == [(7, 0, 0), (7, 0, 0), (0, 1, 1)]


# Reads

BURST = 4


def read(guard_: ReadGuard, answer: Callable[[int, int], list[tuple[int, int, int]]], seed: int):
    """Return the beats that a core of five bursts got, and the events that were seen.

    ``answer``: what the memory gives for a burst: data, resp, last of each beat.
    """
    rng = np.random.default_rng(seed)
    got, events = [], set()

    async def bench(ctx):
        asked, queue, held = 0, [], False
        for _ in range(250):
            ctx.set(guard_.i_ar.valid, int(asked < 5))
            ctx.set(guard_.i_ar.payload.addr, 0x1000 + asked * 32)
            ctx.set(guard_.o_ar.ready, int(rng.random() < 0.5))
            ctx.set(guard_.o_r.ready, int(rng.random() < 0.5))
            held = held or (bool(queue) and rng.random() < 0.5)
            ctx.set(guard_.i_r.valid, int(held))
            if held:
                data, resp, last = queue[0]
                ctx.set(guard_.i_r.payload.data, data)
                ctx.set(guard_.i_r.payload.resp, resp)
                ctx.set(guard_.i_r.payload.last, last)
            if ctx.get(guard_.o_r.valid) and ctx.get(guard_.o_r.ready):
                got.append((ctx.get(guard_.o_r.payload.data), ctx.get(guard_.o_r.payload.last)))
            for event in ("slverr", "decerr", "wrong_last", "unexpected"):
                if ctx.get(getattr(guard_, event)):
                    events.add((event, ctx.get(guard_.address)))
            if ctx.get(guard_.i_ar.ready) and asked < 5:
                asked += 1
            if ctx.get(guard_.o_ar.valid) and ctx.get(guard_.o_ar.ready):
                address = ctx.get(guard_.o_ar.payload.addr)
                queue += answer((address - 0x1000) // 32, address)
            if held and ctx.get(guard_.i_r.ready):
                queue, held = queue[1:], False
            await ctx.tick()

    simulate(guard_, bench)
    return got, events


def right(burst: int, _address: int) -> list[tuple[int, int, int]]:
    return [(16 * burst + n + 1, 0, int(n == BURST - 1)) for n in range(BURST)]


EXPECTED = [(16 * burst + n + 1, int(n == BURST - 1)) for burst in range(5) for n in range(BURST)]


@pytest.mark.parametrize("seed", range(2))
def test_reads_pass(seed):
    assert read(ReadGuard(64, BURST, 4), right, seed) == (EXPECTED, set())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("beats", [1, 3, 6])
def test_a_burst_of_another_length_is_made_right(seed, beats):
    """Too short: zeros; too long: cut off; the bursts behind it are whole."""

    def answer(burst, address):
        if burst != 2:
            return right(burst, address)
        return [(33 + n, 0, int(n == beats - 1)) for n in range(beats)]

    got, events = read(ReadGuard(64, BURST, 4), answer, seed)
    expected = list(EXPECTED)
    for n in range(beats, BURST):
        expected[2 * BURST + n] = (0, int(n == BURST - 1))
    assert got == expected
    wrong_beat = min(beats, BURST) - 1
    assert events == {("wrong_last", 0x1000 + 2 * 32 + 8 * wrong_beat)}


@pytest.mark.parametrize(("resp", "event"), [(1, "slverr"), (2, "slverr"), (3, "decerr")])
def test_an_error_is_told_with_its_address(resp, event):
    def answer(burst, address):
        beats = right(burst, address)
        return [(beats[0][0], resp, 0), *beats[1:]] if burst == 3 else beats

    assert read(ReadGuard(64, BURST, 4), answer, 1) == (EXPECTED, {(event, 0x1000 + 3 * 32)})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.o_r.payload.last.eq(ends)", "self.o_r.payload.last.eq(self.i_r.payload.last)"),
        ("m.d.sync += [over.eq(ends), fill.eq(~ends)]", "m.d.sync += over.eq(ends)"),
        ("m.d.sync += [over.eq(ends), fill.eq(~ends)]", "m.d.sync += fill.eq(~ends)"),
        ("addresses.o.payload.addr + beat * (self.beat_bits // 8)", "addresses.o.payload.addr"),
    ],
)
def test_a_planted_bug_of_the_reads_is_seen(monkeypatch, old, new):
    wrong = mutated_module(monkeypatch, reads, old, new).ReadGuard

    def seen(kind) -> list[Any]:
        found = []
        for beats in (2, 6):

            def answer(burst, address, beats=beats):
                if burst != 2:
                    return right(burst, address)
                return [(33 + n, 0, int(n == beats - 1)) for n in range(beats)]

            found.append(read(kind(64, BURST, 4), answer, 1))
        return found

    assert seen(wrong) != seen(ReadGuard)


def test_recovery_waits_for_reads_in_flight():
    """Three bursts asked for, none answered: idle only when the last has come; the core gets nothing."""
    component = ReadGuard(64, BURST, 4)
    idle, got = [], []

    async def bench(ctx):
        ctx.set(component.o_ar.ready, 1)
        ctx.set(component.o_r.ready, 1)
        ctx.set(component.i_ar.valid, 1)
        await ctx.tick().repeat(3)
        ctx.set(component.i_ar.valid, 0)
        ctx.set(component.recovering, 1)
        await ctx.tick().repeat(3)
        assert ctx.get(component.reads) == 3
        ctx.set(component.i_r.valid, 1)
        for beat in range(3 * BURST):
            ctx.set(component.i_r.payload.last, int(beat % BURST == BURST - 1))
            idle.append(ctx.get(component.idle))
            got.append(ctx.get(component.o_r.valid))
            assert ctx.get(component.i_r.ready)
            await ctx.tick()
        ctx.set(component.i_r.valid, 0)
        assert ctx.get(component.idle)
        # And a late one that nobody asked for is taken and told.
        ctx.set(component.i_r.valid, 1)
        assert ctx.get(component.i_r.ready)
        assert ctx.get(component.unexpected)

    simulate(component, bench)
    assert not any(idle)
    assert not any(got)


# The export


@pytest.mark.parametrize(
    "design", [Top.DISPATCH, *(pytest.param(top, marks=pytest.mark.long) for top in (*LAYERS, Top.GATE))]
)
def test_exported_tops_are_clean_and_have_their_registers(tmp_path, capsys, design):
    assert main(["verilog", "--bus", "axi", "--design", design, "--out", str(tmp_path), "--json"]) == 0
    files = {Path(file).name for file in json.loads(capsys.readouterr().out)["files"]}
    name = f"{design}_axi"
    assert files >= {f"eb_{name}.v", f"{name}.h", f"{name}_registers.py", f"{name}.rdl", "expertbank.core"}
    assert {path.name for path in tmp_path.rglob("*")} >= files
    assert f"#define EB_BUS_CONTROL 0x{BUS_PAGE + 4:03X}u" in (tmp_path / f"{name}.h").read_text()
    assert lint(tmp_path, name) == ""
    assert faults_of_export(tmp_path, name) == []
    text = (tmp_path / f"eb_{name}.v").read_text()
    ports = {"s_axi_awaddr", "s_axi_rresp", "s_axis_tlast", "m_axis_tuser", "irq"}
    ports |= set() if design is Top.DISPATCH else {"m_axi_araddr", "m_axi_rresp", "m_axi_arid"}
    assert ports <= set(re.findall(r"\w+", text[: text.index(");")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--design", "hbm2-pim"], "bus: must be plain for 'hbm2-pim', a device, not axi"),
        (["--bench", "-1"], "bench: must be in 0..65536, not -1"),
        (["--design", "gate", "--bench", "65537"], "bench: must be in 0..65536, not 65537"),
        (["--design", "gate", "--scale", "4"], "scale: needs a model: 'gate' has a size of its own"),
        (["--design", "gate", "--format", "int8"], "format: must be bf16 for 'gate', not int8"),
        (["--design", "dispatch", "--secded"], "secded: needs a near-memory design, not 'dispatch'"),
        (["--secded"], "secded: needs a design with banks, not fpga"),
        (["--bus", "plain", "--design", "gate"], "design: needs '--bus axi' for 'gate', a block"),
        (["--pipeline", "deep"], "pipeline: is for gate and dispatch, not for 'fpga'"),
    ],
)
def test_what_no_top_has_is_refused(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["verilog", "--bus", "axi", *arguments, "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"expertbank: {message}\n"
    assert not out.exists() or not any(out.iterdir())


def test_a_block_with_deep_pipelines_is_exported(tmp_path):
    """What is routed above 125 MHz (docs/synthesis.md): another circuit with the same ports and registers."""
    for pipeline in ("short", "deep"):
        arguments = ["--design", "dispatch", "--pipeline", pipeline, "--out", str(tmp_path / pipeline)]
        assert main(["verilog", "--bus", "axi", *arguments]) == 0
    assert lint(tmp_path / "deep", "dispatch_deep_axi") == ""
    short, deep = (tmp_path / "short/dispatch_axi", tmp_path / "deep/dispatch_deep_axi")
    ports = [json.loads(Path(f"{stem}.ports.json").read_text())["ports"] for stem in (short, deep)]
    assert ports[0] == ports[1]
    text = Path(f"{short}.h").read_text()
    assert text.replace("DISPATCH_AXI", "DISPATCH_DEEP_AXI").replace("dispatch_axi", "dispatch_deep_axi") == (
        Path(f"{deep}.h").read_text()
    )
    assert deep.with_name("eb_dispatch_deep_axi.v").stat().st_size > 1.02 * (
        short.with_name("eb_dispatch_axi.v").stat().st_size
    )


def test_constraints_ask_for_the_clock_of_the_design(tmp_path):
    """Of a top with AXI ports too, for which no bench is written."""
    text = (Path(__file__).parent / "tiny_pim.toml").read_text()
    assert "clock_hz = 1e9\n" in text
    design = tmp_path / "tiny.toml"
    design.write_text(text)
    arguments = ["--model", str(Path(__file__).parent / "data/mixtral_s0.npz"), "--design", str(design)]
    assert main(["verilog", "--bus", "axi", *arguments, "--out", str(tmp_path / "out")]) == 0
    [constraints] = (tmp_path / "out").glob("*_axi.xdc")
    assert "set period 1.000\n" in constraints.read_text()


def test_a_block_without_a_top_is_one_line(tmp_path, capsys):
    """``synth`` has it as a design, ``verilog`` has not."""
    assert main(["verilog", "--bus", "axi", "--design", "selection", "--out", str(tmp_path / "out")]) == 2
    line = r"expertbank: design: is neither a preset \([^)]*\) nor a \.toml file: 'selection'\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_top_on_two_clocks_is_clean_and_its_clocks_are_told_apart(tmp_path, capsys):
    arguments = ["--design", "dispatch", "--two-clocks", "--out", str(tmp_path)]
    assert main(["verilog", "--bus", "axi", *arguments, "--json"]) == 0
    files = {Path(file).name for file in json.loads(capsys.readouterr().out)["files"]}
    name = "dispatch_axi_two_clocks"
    assert files >= {f"eb_{name}.v", f"{name}.h", f"{name}.xdc", f"{name}.lpf"}
    assert lint(tmp_path, name) == ""
    # The example top too: both clocks are the board's, none comes out of its shift register.
    board = (tmp_path / f"eb_{name}_ecp5.v").read_text()
    assert ".aclk(clk_25mhz),\n    .bus_aclk(clk_25mhz),\n" in board
    (tmp_path / f"{name}_ecp5.f").write_text((tmp_path / f"{name}.f").read_text() + f"eb_{name}_ecp5.v\n")
    assert lint(tmp_path, f"{name}_ecp5") == ""
    assert faults_of_export(tmp_path, name) == []
    constraints = (tmp_path / f"{name}.xdc").read_text()
    limits = re.findall(
        r"^set_max_delay -datapath_only -from \[get_clocks (\w+)\] -to \[get_clocks (\w+)\] \$period$",
        constraints,
        re.M,
    )
    assert sorted(limits) == [("aclk", "bus_aclk"), ("bus_aclk", "aclk")]
    assert "set_clock_groups" not in constraints
    assert 'FREQUENCY PORT "bus_aclk" 100 MHZ;\n' in (tmp_path / f"{name}.lpf").read_text()
    # Both flip-flops of each synchroniser, and no others, are kept together.
    text = (tmp_path / f"eb_{name}.v").read_text()
    [pattern] = re.findall(
        r"^set_property ASYNC_REG TRUE \[get_cells -hierarchical -regexp \{(.*)\}\]$", constraints, re.M
    )
    modules = re.findall(r"^module (\w+)(.*?)^endmodule", text, re.M | re.S)
    marked = {
        module: re.findall(r"\w+", " ".join(registers))
        for module, body in modules
        if (
            registers := [
                reg
                for reg in re.findall(r"^  reg (?:\[.*?\] )?(\w+)", body, re.M)
                if re.fullmatch(pattern, f"x/{reg}_reg[0]")
            ]
        )
    }
    assert marked and all(sorted(registers) == ["stage0", "stage1"] for registers in marked.values())
    assert [module for module in marked if not module.endswith("_cdc")] == [f"eb_{name}_irq_synchroniser"]
    # Every port of the top is of one of the clocks, as the constraints sort them.
    ports = set(re.findall(r"\w+", text[text.index("(") : text.index(");")]))
    of_bus, of_core = re.findall(r'NAME [=!]~ "(\S+)"', constraints)
    on_bus = {port for port in ports if re.fullmatch(of_bus, port)}
    on_core = {port for port in ports if not re.fullmatch(of_core, port)}
    assert on_bus | on_core | {"aclk", "bus_aclk"} == ports
    assert on_core == {"aresetn"}
