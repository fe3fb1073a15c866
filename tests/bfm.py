"""Drive and watch streams in ``amaranth.sim``: arrival cycles in, handshake cycles out.

Cycle 0 is the first clock edge after reset. A driver offers transfer ``n`` from cycle ``arrivals[n]``
on, once transfer ``n - 1`` is done; a sink is ready in the cycles that its pattern says, whatever
the device does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.hdl import ClockDomain, Elaboratable, Module, Value
from amaranth.sim import Simulator


@dataclass(frozen=True)
class Trace:
    """Transfers of one stream: the cycle and the payload (as an unsigned integer) of each."""

    cycles: np.ndarray
    payloads: list[int]


@dataclass(frozen=True)
class Source:
    """Payloads of an input stream (unsigned integers) and the cycle from which each is offered."""

    payloads: Sequence[int]
    arrivals: Sequence[int]


@dataclass(frozen=True)
class Sink:
    """An output stream: transfers to wait for, and whether it is ready in a cycle (always, by default)."""

    count: int
    ready: Callable[[int], bool] = lambda _cycle: True


class WithReset(Elaboratable):
    """A device and the reset of its domain, which a bench sets; ``ResetInserter`` resets less.

    It has the device's members.
    """

    def __init__(self, dut, reset) -> None:
        self.dut = dut
        self.reset = reset

    def __getattr__(self, name: str):
        return getattr(self.dut, name)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.d.comb += sync.rst.eq(self.reset)
        m.submodules.dut = self.dut
        return m


def run_streams(
    dut,
    sources: Mapping[str, Source],
    sinks: Mapping[str, Sink],
    *,
    statics: Mapping[str, int] | None = None,
    inputs: Mapping[str, Callable[[int, Mapping[str, Sequence[tuple[int, int]]]], int]] | None = None,
    prologue: Callable[[Any], Awaitable[None]] | None = None,
    monitors: Sequence[Callable[[Any], Awaitable[None]]] = (),
    settle: int = 16,
    max_cycles: int = 100_000,
    vcd: str | None = None,
) -> dict[str, Trace]:
    """Run ``dut`` until every stream has carried what it should, then ``settle`` cycles more.

    Checks the stream rules on every output (valid and payload stay until accepted), that no sink
    gets more than its count, and that everything was delivered. Returns a trace per stream.
    ``prologue`` runs before cycle 0 and leaves every input stream idle; ``monitors`` run all along.
    ``inputs`` says for each cycle what plain inputs are: functions of the cycle and of the transfers
    (cycle, payload) of each stream in the cycles before.
    """
    traces: dict[str, Trace] = {}

    async def bench(ctx):
        in_names, out_names = list(sources), list(sinks)
        ports = {name: getattr(dut, name) for name in (*in_names, *out_names)}
        for name, value in (statics or {}).items():
            ctx.set(Value.cast(getattr(dut, name)), value)
        if prologue is not None:
            await prologue(ctx)
        sent = dict.fromkeys(in_names, 0)
        got: dict[str, list[tuple[int, int]]] = {name: [] for name in ports}
        held: dict[str, int | None] = dict.fromkeys(out_names)
        watched = [ports[name].ready for name in in_names]
        for name in out_names:
            watched += [ports[name].valid, Value.cast(ports[name].payload)]
        offered = dict.fromkeys(in_names, False)
        left = settle
        for cycle in range(max_cycles):
            for name in in_names:
                source, n = sources[name], sent[name]
                offer = bool(n < len(source.payloads) and cycle >= source.arrivals[n])
                if offer:
                    ctx.set(Value.cast(ports[name].payload), source.payloads[n])
                if offer != offered[name]:
                    ctx.set(ports[name].valid, offer)
                    offered[name] = offer
            for name, value in (inputs or {}).items():
                ctx.set(getattr(dut, name), value(cycle, got))
            readies = {}
            for name in out_names:
                readies[name] = sinks[name].ready(cycle)
                ctx.set(ports[name].ready, readies[name])
            sampled = (await ctx.tick().sample(*watched))[2:]
            for name, ready in zip(in_names, sampled, strict=False):
                if offered[name] and ready:
                    got[name].append((cycle, sources[name].payloads[sent[name]]))
                    sent[name] += 1
            outs = sampled[len(in_names) :]
            for position, name in enumerate(out_names):
                valid, payload = outs[2 * position : 2 * position + 2]
                if held[name] is not None:
                    assert valid, f"{name}: valid fell in cycle {cycle} before the beat was taken"
                    assert payload == held[name], f"{name}: payload changed in cycle {cycle} while waiting"
                held[name] = int(payload) if valid and not readies[name] else None
                if valid and readies[name]:
                    got[name].append((cycle, int(payload)))
                    assert len(got[name]) <= sinks[name].count, f"{name}: extra beat in cycle {cycle}"
            done = all(sent[name] == len(sources[name].payloads) for name in in_names)
            if done and all(len(got[name]) == sinks[name].count for name in out_names):
                left -= 1
                if left < 0:
                    break
        else:
            counts = {name: len(beats) for name, beats in got.items()}
            raise AssertionError(f"not finished after {max_cycles} cycles: {counts}")
        for name, beats in got.items():
            traces[name] = Trace(
                np.array([cycle for cycle, _ in beats], dtype=np.int64), [value for _, value in beats]
            )

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    for monitor in monitors:
        simulator.add_testbench(monitor, background=True)
    if vcd is None:
        simulator.run()
    else:
        with simulator.write_vcd(vcd):
            simulator.run()
    return traces


def random_ready(seed: int, probability: float) -> Callable[[int], bool]:
    """Return a ready pattern that is a seeded function of the cycle alone."""
    pattern = np.random.default_rng(seed).random(1 << 16) < probability
    return lambda cycle: bool(pattern[cycle & 0xFFFF])


def random_arrivals(rng: np.random.Generator, count: int, gap: float) -> np.ndarray:
    """Return ``count`` ascending arrival cycles with mean gap ``gap`` (0: all at once), in bursts."""
    if gap == 0:
        return np.zeros(count, dtype=np.int64)
    gaps = rng.geometric(1 / (1 + gap), size=count) - 1
    gaps[rng.random(count) < 0.5] = 0
    return np.cumsum(gaps).astype(np.int64)


def pack(elements: Sequence[int] | np.ndarray, bits: int = 16) -> int:
    """Return elements as one unsigned integer, the first in the lowest bits."""
    value = 0
    for n, element in enumerate(elements):
        value |= int(element) << (bits * n)
    return value


def run_pipeline(
    dut, inputs: Mapping[str, Sequence[int] | np.ndarray], outputs: Sequence[str], latency: int
) -> dict[str, np.ndarray]:
    """Feed a pipeline one set of operands per cycle; return what stands ``latency`` cycles later.

    Inputs are integers (negative ones for signed members); results are int64 arrays of what the
    members hold, structures as unsigned integers. Operands are gone after their cycle: other ones
    stand there, so that a pipeline that needs them longer fails.
    """
    columns = {name: [int(value) for value in values] for name, values in inputs.items()}
    count = len(next(iter(columns.values())))
    results: dict[str, list[int]] = {name: [] for name in outputs}
    watched = [Value.cast(getattr(dut, name)) for name in outputs]
    driven = {name: Value.cast(getattr(dut, name)) for name in columns}

    async def bench(ctx):
        for cycle in range(count + latency):
            for name, signal in driven.items():
                ctx.set(signal, columns[name][cycle % count])
            if latency == 0:
                await ctx.delay(1e-9)
                sampled = [ctx.get(value) for value in watched]
            else:
                sampled = (await ctx.tick().sample(*watched))[2:]
            if cycle >= latency:
                for name, value in zip(outputs, sampled, strict=True):
                    results[name].append(int(value))

    simulator = Simulator(dut)
    if latency:
        simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return {name: np.array(values, dtype=np.int64) for name, values in results.items()}


@dataclass
class ReadMemory:
    """An AXI4 read memory: bursts in order, no gaps inside. :meth:`run` is a monitor of a bench.

    A burst's first beat is offered ``latency + extra[n]`` cycles after its address was taken, or in the
    cycle after the beat before it. Cycles count from the last reset, as those of the streams do.

    Attributes
    ----------
    ar, r : streams of the device under test (payloads ``addr``; ``data``, ``resp``, ``last``).
    image : what the memory holds from byte ``base`` on, as 16-bit elements; reads elsewhere fail.
    extra : cycles added to the latency of each burst, repeated.
    ready : readiness of the address channel, a function of the cycle.
    reset : signal that empties the memory's queue, or None.
    error_beat : number of the beat that answers with SLVERR, or None.
    addresses, ar_cycles, r_cycles : what happened.
    """

    ar: Any
    r: Any
    image: np.ndarray
    burst_beats: int
    latency: int
    base: int = 0
    extra: Sequence[int] = (0,)
    ready: Callable[[int], bool] = lambda _cycle: True
    reset: Any = None
    error_beat: int | None = None
    addresses: list[int] = field(default_factory=list)
    ar_cycles: list[int] = field(default_factory=list)
    r_cycles: list[int] = field(default_factory=list)

    def _beat(self, address: int) -> int:
        elements = len(self.r.payload.data) // 16
        start = (address - self.base) // 2
        assert 0 <= start <= self.image.size - elements, f"read of address {address:#x} outside the image"
        return pack(self.image[start : start + elements])

    async def run(self, ctx) -> None:
        """Answer reads until the simulation ends."""
        beat_bytes = len(self.r.payload.data) // 8
        in_reset = self.reset if self.reset is not None else self.r.ready
        queue: list[tuple[int, int]] = []
        cycle, place, offered, held = 0, 0, False, None
        while True:
            if not offered and queue and cycle >= queue[0][1]:
                error = len(self.r_cycles) == self.error_beat
                ctx.set(
                    self.r.payload,
                    {
                        "data": self._beat(queue[0][0] + place * beat_bytes),
                        "resp": 2 if error else 0,
                        "last": int(place == self.burst_beats - 1),
                    },
                )
                ctx.set(self.r.valid, 1)
                offered = True
            ready = self.ready(cycle)
            ctx.set(self.ar.ready, ready)
            *_, asked, address, taken, reset = await ctx.tick().sample(
                self.ar.valid, self.ar.payload.addr, self.r.ready, in_reset
            )
            if self.reset is not None and reset:
                queue, cycle, place, offered, held = [], 0, 0, False, None
                for log in (self.addresses, self.ar_cycles, self.r_cycles):
                    log.clear()
                ctx.set(self.r.valid, 0)
                continue
            if held is not None:
                assert asked and address == held, f"address withdrawn or changed in cycle {cycle}"
            held = address if asked and not ready else None
            if offered and taken:
                self.r_cycles.append(cycle)
                place, offered = place + 1, False
                ctx.set(self.r.valid, 0)
                if place == self.burst_beats:
                    place = 0
                    queue.pop(0)
            if asked and ready:
                self.addresses.append(address)
                self.ar_cycles.append(cycle)
                extra = self.extra[(len(self.addresses) - 1) % len(self.extra)]
                queue.append((address, cycle + self.latency + extra))
            cycle += 1


@dataclass
class BankStorage:
    """The banks behind a channel's ``mem`` ports: whole tiles, ``latency`` cycles after the request.

    ``tiles``: (depth, bytes of a tile) uint8, in the order of their addresses. ``run`` is a monitor
    for :func:`run_streams`.
    """

    dut: Any
    tiles: np.ndarray
    latency: int

    async def run(self, ctx) -> None:
        """Answer every request; in all other cycles the data is noise."""
        under_way: list[int | None] = [None] * (self.latency - 1)
        contents = [int.from_bytes(tile.tobytes(), "little") for tile in self.tiles]
        noise = int.from_bytes(b"\xa5" * self.tiles.shape[1], "little")
        async for _, _, units, address in ctx.tick().sample(self.dut.mem_en, Value.cast(self.dut.mem_addr)):
            under_way.append(int(address) if units else None)
            answer = under_way.pop(0)
            ctx.set(self.dut.mem_data, noise if answer is None else contents[answer])
