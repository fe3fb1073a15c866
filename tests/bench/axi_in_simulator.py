"""Scenarios of the tops with AXI ports, inside the simulator: a board's driver over AXI models of others.

A scenario is a plain function. It runs beside the simulation (cocotb's ``bridge``), so that register
accesses are made by :class:`sim.driver.Driver` itself, as on a board; masters, sinks and memory are those of
cocotbext-axi, with random pauses on every channel, drawn anew with each reset. A run in which the pauses of
some channel held nothing up fails. Monitors of ours watch what the top drives.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiRamRead,
    AxiReadBus,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from cocotbext.axi.axi_channels import AxiRTransaction
from cocotbext.axi.stream import StreamSource

from golden.layer_bf16 import layer_bf16, layer_image
from golden.weights import random_tokens, random_weights
from rtl.axi.clocks import STREAM_DEPTH
from rtl.axi.top import COUNT_BITS, RESET_CYCLES
from rtl.expert.layouts import PAGE_BITS
from sim.driver import BusError, Driver, Packet
from sim.pack import pack, read_pack
from sim.pim_layer import placement_steps
from spec.banks import BankGeometry
from spec.geometry import PAGE_BYTES, ImageGeometry, ceil_div
from spec.registers import (
    BUS_REGISTERS,
    CAPACITY_BITS,
    CORE_REGISTERS,
    LAYERS,
    REGISTERS,
    Access,
    Top,
    field_of,
    register_map,
)
from tests.bench.axi_cores import CORES, Kind
from tests.bench.axi_pim import BankPorts, CommandBuses, pim_image
from tests.bench.in_simulator import JOB, RESULTS
from tests.bench.test_layer_bench import bf16_bits

IMAGE_PAGE = 3
SLVERR, DECERR = 2, 3
BUS_CONTROL = next(register.address for register in BUS_REGISTERS if register.name == "BUS_CONTROL")
RECOVER = field_of(BUS_REGISTERS, "BUS_CONTROL", "recover").mask
LAST_ADDRESS = 0xFFC
MOST_RECOVERIES = 20
"""Of which two meet an open bank, one a packet that is open."""
PATIENCE, LITTLE_PATIENCE = 2_000, 500
"""Reads of a register after which what has not come will not; of a block alone on one clock."""
MOST_CYCLES = 100_000
"""Cycles that no scenario takes."""

Beats = list[tuple[int, int]]
"""Payloads and ``last`` of output beats."""


NEVER = 1 / 16
"""How often a channel does not pause at all from one reset to the next."""
SETTLED = 3
"""Cycles that a sink's ``ready`` follows its pauses by, at most."""


def pauses(rng: np.random.Generator) -> Iterator[bool]:
    """Yield whether a channel pauses: at random, for long, or, seldom, never."""
    never, for_long = rng.random() < NEVER, rng.random() < 0.5
    while True:
        if never:
            yield False
        elif for_long:
            length = int(rng.geometric(1 / 8))
            pausing = bool(rng.random() < 0.5)
            for _ in range(length):
                yield pausing
        else:
            yield bool(rng.random() < 0.5)


class Channel:
    """A channel that the bench drives an end of: when it pauses, and how long that held something up.

    It is the pause generator of its model, which asks it in every cycle, and stays that: what is drawn anew,
    held and let go is inside.

    Attributes
    ----------
    asked : cycles in which the model asked.
    stalled : cycles in which a drawn pause, not a hold or a full queue, kept a beat waiting, at least; 0 on a
        channel that never pauses.
    """

    def __init__(self, name: str, model: Any, reset: Any) -> None:
        self.name, self.model, self.reset = name, model, reset
        bus = model.bus
        self.valid, self.ready = (
            (bus.tvalid, bus.tready) if hasattr(bus, "tvalid") else (model.valid, model.ready)
        )
        self.sends = isinstance(model, AxiStreamSource | StreamSource)
        self.asked = self.stalled = 0
        self._drawn: Iterator[bool] = repeat(False)
        self._held: float = 0
        self._flows = False
        self._recent = [False] * SETTLED
        self._since_other = 0
        model.set_pause_generator(self)

    def draw(self, rng: np.random.Generator) -> None:
        """Begin other pauses; what is held stays so."""
        self._drawn = pauses(rng)

    def hold(self, cycles: float = math.inf) -> None:
        """Pause for so many cycles, or until :meth:`let_go`; the drawn pauses go on behind it."""
        self._held = cycles

    def flow(self) -> None:
        """Do not pause, until :meth:`let_go`."""
        self._flows = True

    def let_go(self) -> None:
        """Pause as drawn again."""
        self._held, self._flows = 0, False

    @property
    def held(self) -> bool:
        """Whether it does not pause as drawn."""
        return self._held > 0 or self._flows

    def __iter__(self) -> Channel:
        return self

    def __next__(self) -> bool:
        """Return whether to pause from now on; signals are still those of the cycle that ends here."""
        self.asked += 1
        if self._held:
            self._held -= 1
            self._since_other, self._recent = 0, [False] * SETTLED
            return True
        pausing = next(self._drawn) and not self._flows
        self._since_other = 0 if self.model.full() else self._since_other + 1
        self.stalled += self._stalls(pausing)
        self._recent = [pausing, *self._recent[:-1]]
        return pausing

    def _stalls(self, pausing: bool) -> bool:
        """Return whether a pause keeps a beat waiting."""
        if self.sends:
            # A beat that was queued in this cycle, or that goes now, does not wait.
            waits = pausing and self._recent[0] and not self.model.idle() and not int(self.valid.value)
        else:
            # What ``ready`` follows may still be a hold, or a queue that was full.
            waits = any(self._recent) and self._since_other > SETTLED
            waits = waits and int(self.valid.value) and not int(self.ready.value)
        return bool(waits and int(self.reset.value))


class Core:
    """What a core computes: batches of tokens, as beats in and as beats out.

    ``count_bits`` : how far its top counts.
    """

    def __init__(self, name: Top, seed: int, count_bits: int = COUNT_BITS) -> None:
        self.name = name
        self.count_bits = count_bits
        self.seeds = [seed, list(Top).index(name)]
        self.model, self.design, _ = CORES[name]
        self.rng = np.random.default_rng(self.seeds)
        self.capacity = 0
        self.image = ImageGeometry.of(self.model, self.design)
        self.weights = random_weights(self.model, seed)
        self.banks = BankGeometry.unplaced(self.model, self.design) if name is Top.PIM else None
        lanes, k = self.design.stream_lanes, self.model.gating.top_k
        self.expert_bits = (self.model.gating.num_experts - 1).bit_length()
        self.token_beats = k if name is Top.DISPATCH else self.image.gate.input_beats
        self.output_beats = (
            k if name is Top.GATE else ceil_div(self.model.d_model, self.design.tile.act_lanes)
        )
        self.padded = np.zeros((0, self.token_beats * lanes), np.uint16)

    def memory(self) -> bytes:
        """Return what the read master sees, whole pages: the image from page ``IMAGE_PAGE`` on."""
        if self.name is Top.DISPATCH:
            return b""
        image = layer_image(self.model, self.image, self.weights)
        # Beyond the image too: bursts are whole.
        whole = bytes(IMAGE_PAGE * PAGE_BYTES) + image.tobytes() + bytes(PAGE_BYTES)
        return whole + bytes(-len(whole) % PAGE_BYTES)

    def tokens(self, count: int) -> np.ndarray:
        """Return random tokens: (count, d_model) patterns, or for the dispatcher (count, k) assignments."""
        if self.name is Top.DISPATCH:
            ids = np.stack(
                [
                    self.rng.choice(self.model.gating.num_experts, self.token_beats, replace=False)
                    for _ in range(count)
                ]
            )
            weights = self.rng.integers(1, 1 << 16, ids.shape)
            return ids | weights << self.expert_bits
        return bf16_bits(random_tokens(self.model, count, int(self.rng.integers(1 << 30))))

    def counted(self, number: int) -> int:
        """Return what a counter of the top holds that has counted so many."""
        return number % (1 << self.count_bits)

    @property
    def most_tokens(self) -> int:
        """Of a batch: many where a token is soon served, so that counters reach more bits; 2**n - 1."""
        return 1023 if self.name is Top.DISPATCH else 6

    def beats(self, tokens: np.ndarray) -> list[int]:
        """Return a batch's input beats."""
        if self.name is Top.DISPATCH:
            return tokens.ravel().tolist()
        lanes = self.design.stream_lanes
        padded = np.zeros((len(tokens), self.token_beats * lanes), np.uint16)
        padded[:, : tokens.shape[1]] = tokens
        return [int.from_bytes(beat.astype("<u2").tobytes(), "little") for beat in padded.reshape(-1, lanes)]

    def cut(self, tokens: np.ndarray, beats: int) -> np.ndarray:
        """Return the tokens with all behind so many input beats zero."""
        width = 1 if self.name is Top.DISPATCH else self.design.stream_lanes
        shape = tokens.shape
        whole = np.zeros((shape[0], self.token_beats * width), tokens.dtype)
        whole[:, : shape[1]] = tokens
        flat = whole.ravel()
        flat[beats * width :] = 0
        return flat.reshape(whole.shape)[:, : shape[1]]

    def outputs(self, batches: list[np.ndarray]) -> Beats:
        """Return the output beats of batches that follow each other from reset on."""
        lengths = [len(batch) for batch in batches]
        tokens = np.concatenate(batches)
        ends = set((np.cumsum(lengths) - 1).tolist())
        if self.name is Top.DISPATCH:
            return self._entries(tokens, lengths)
        golden = layer_bf16(
            self.model,
            self.image,
            self.weights,
            tokens,
            window_tokens=self.design.window_tokens,
            batch_lengths=lengths,
        )
        found: Beats = []
        if self.name is Top.GATE:
            routing = golden.routing
            for token, (ids, weights) in enumerate(zip(routing.ids, routing.weights, strict=True)):
                for n, (expert, weight) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
                    last = token in ends and n == len(ids) - 1
                    found.append((expert | weight << self.expert_bits, int(last)))
            return found
        lanes = self.design.tile.act_lanes
        padded = np.zeros((len(tokens), self.output_beats * lanes), np.uint16)
        padded[:, : self.model.d_model] = golden.output
        for token, elements in enumerate(padded):
            for n, beat in enumerate(elements.reshape(-1, lanes)):
                last = token in ends and n == self.output_beats - 1
                found.append((int.from_bytes(beat.astype("<u2").tobytes(), "little"), int(last)))
        return found

    def kept(self, tokens: np.ndarray, lengths: list[int]) -> list[list[int]]:
        """Return each token's assignments that its expert has a place for, token by token. Written anew."""
        found: list[list[int]] = []
        for batch in np.split(tokens, np.cumsum(lengths)[:-1]):
            places: dict[int, int] = {}
            for token in batch.tolist():
                found.append([])
                for word in token:
                    expert = word & ((1 << self.expert_bits) - 1)
                    places[expert] = places.get(expert, 0) + 1
                    if not self.capacity or places[expert] <= self.capacity:
                        found[-1].append(word)
        return found

    def _entries(self, tokens: np.ndarray, lengths: list[int]) -> Beats:
        """Return the entries of windows: each expert's tokens in order, experts ascending. Written anew."""
        window_tokens, found, start = self.design.window_tokens, [], 0
        slots = 2 * window_tokens
        slot_bits = (slots - 1).bit_length()
        served_bits = self.model.gating.num_experts.bit_length()
        kept = self.kept(tokens, lengths)
        for length in lengths:
            for first in range(start, start + length, window_tokens):
                window = range(first, min(first + window_tokens, start + length))
                for expert in range(self.model.gating.num_experts):
                    job = [
                        expert
                        | token % slots << served_bits
                        | word >> self.expert_bits << served_bits + slot_bits
                        for token in window
                        for word in kept[token]
                        if word & ((1 << self.expert_bits) - 1) == expert
                    ]
                    found += [(entry, int(n == len(job) - 1)) for n, entry in enumerate(job)]
            start += length
        return found


LOGGED = {
    "s_axi_aw": ("addr",),
    "s_axi_w": ("data", "strb"),
    "s_axi_b": ("resp",),
    "s_axi_ar": ("addr",),
    "s_axi_r": ("resp",),
    "s_axis_t": ("last",),
    "m_axis_t": ("last", "user"),
    "m_axi_ar": ("len",),
    "m_axi_r": ("resp", "last"),
}
"""Channels of a log, with what of them it has beside ``valid`` and ``ready``."""
DRIVEN = {
    "s_axi_aw": ("addr",),
    "s_axi_w": ("data", "strb"),
    "s_axi_ar": ("addr",),
    "s_axis_t": ("data", "last"),
    "m_axi_r": ("data", "resp", "last"),
}
"""Channels whose payloads the bench drives."""


class PortLog:
    """What the signals of :data:`LOGGED` held, and the interrupt, at every clock edge."""

    def __init__(self, dut: Any) -> None:
        self.clock, reset = clock_of_ports(dut)
        names = ["irq"]
        for channel, more in LOGGED.items():
            if hasattr(dut, f"{channel}valid"):
                names += [f"{channel}{part}" for part in ("valid", "ready", *more)]
        self.signals = {"aresetn": reset, **{name: getattr(dut, name) for name in names}}
        self.rows: list[list[int]] = []
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        signals = list(self.signals.values())
        while True:
            await RisingEdge(self.clock)
            self.rows.append([int(signal.value) for signal in signals])

    def columns(self) -> dict[str, np.ndarray]:
        """Return the values of each signal, one for each edge."""
        return dict(zip(self.signals, np.array(self.rows, dtype=np.uint64).T, strict=True))


def clock_of_ports(dut: Any) -> tuple[Any, Any]:
    """Return the clock and reset of a top's AXI ports."""
    return (dut.bus_aclk, dut.bus_aresetn) if hasattr(dut, "bus_aclk") else (dut.aclk, dut.aresetn)


class Rules:
    """Watches a channel that the top drives: valid and payload stay until ready, but for reset.

    Attributes
    ----------
    transfers, last : how many there were, and the payload of the last one.
    offered, taken : the edges at which the last one was there first, and at which it was taken.
    """

    def __init__(self, dut: Any, valid: str, ready: str, payload: list[str]) -> None:
        self.dut, self.names = dut, (valid, ready, *payload)
        self.clock, self.reset = clock_of_ports(dut)
        self.broken: list[str] = []
        self.transfers = 0
        self.last: tuple[int, ...] = ()
        self.now = self.offered = self.taken = 0
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        valid, ready, *payload = (getattr(self.dut, name) for name in self.names)
        held, in_reset = None, False
        while True:
            await RisingEdge(self.clock)
            self.now += 1
            if not int(self.reset.value):
                # From the second edge on (IHI 0022, A3.1.2).
                if in_reset and int(valid.value):
                    self.broken.append(f"{self.names[0]} is 1 in a reset")
                held, in_reset = None, True
                continue
            in_reset = False
            seen = tuple(int(part.value) for part in payload) if int(valid.value) else None
            if held is None and seen is not None:
                self.offered = self.now
            if held is not None and seen != held:
                self.broken.append(f"{self.names[0]}: {held} became {seen} before it was taken")
            taken = seen is not None and int(ready.value)
            if taken:
                self.transfers, self.last, self.taken = self.transfers + 1, seen, self.now
            held = None if taken else seen


class Turns:
    """Watches that reads and writes take turns: of two that wait, the one is answered that was not before.

    An access is chosen three cycles before its answer is there, if it is held as a whole then and the answer
    before its own has been taken. Between two clocks queues stand before and behind the registers, whose
    turns nobody sees at the ports.
    """

    CHOSEN = 3

    def __init__(self, dut: Any) -> None:
        self.broken: list[str] = []
        self.clock, self.reset = clock_of_ports(dut)
        ports = [f"{kind}{sign}" for kind in ("aw", "w", "b", "ar", "r") for sign in ("valid", "ready")]
        self.signals = [getattr(dut, f"s_axi_{port}") for port in ports]
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        parts = {"write": {"aw", "w"}, "read": {"ar"}}
        while True:
            # From a reset on: what is held of each access, what waited in the last cycles, who was answered.
            held = {kind: set[str]() for kind in parts}
            waited: list[dict[str, bool]] = []
            before, stays = "", dict.fromkeys(parts, False)
            await RisingEdge(self.clock)
            while int(self.reset.value):
                aw, awr, w, wr, b, br, ar, arr, r, rr = (int(signal.value) for signal in self.signals)
                moves = {"aw": aw and awr, "w": w and wr, "ar": ar and arr}
                valid, ready = {"write": b, "read": r}, {"write": br, "read": rr}
                for kind, other in (("write", "read"), ("read", "write")):
                    if not valid[kind] or stays[kind]:
                        continue
                    held[kind].clear()
                    if len(waited) == self.CHOSEN and waited[0][other] and before == kind:
                        self.broken.append(f"s_axi: a {other} waits, and another {kind} is answered")
                    before = kind
                waiting = {kind: held[kind] == parts[kind] and not valid[kind] for kind in parts}
                waited = [*waited, waiting][-self.CHOSEN :]
                stays = {kind: bool(valid[kind] and not ready[kind]) for kind in parts}
                for kind, names in parts.items():
                    held[kind] |= {name for name in names if moves[name]}
                await RisingEdge(self.clock)


class Noise:
    """Puts noise on what the bench's models drive beside a ``valid`` that is 0: nobody may look at it then.

    They write behind a rising edge, this behind the falling one.
    """

    def __init__(self, dut: Any, rng: np.random.Generator) -> None:
        self.clock, _ = clock_of_ports(dut)
        self.rng = rng
        self.channels = []
        for channel, parts in DRIVEN.items():
            if hasattr(dut, f"{channel}valid"):
                signals = [getattr(dut, f"{channel}{part}") for part in parts]
                self.channels.append((getattr(dut, f"{channel}valid"), signals))
        cocotb.start_soon(self._drive())

    async def _drive(self) -> None:
        fresh = [False] * len(self.channels)
        while True:
            await FallingEdge(self.clock)
            for n, (valid, signals) in enumerate(self.channels):
                # Once behind each transfer.
                idle = not int(valid.value)
                if idle and not fresh[n]:
                    for signal in signals:
                        noise = self.rng.bytes(ceil_div(len(signal), 8))
                        signal.value = int.from_bytes(noise, "little") >> -len(signal) % 8
                fresh[n] = idle


class Bench:
    """A top with everything around it; what scenarios use is blocking.

    ``slower``: its clock, of two the one by which cycles are counted; ``crossing``: beats that outputs may
    wait in between the clocks.
    """

    def __init__(self, dut: Any, core: Core, slower: Any, *, keep_memory: bool = False) -> None:
        self.dut, self.core, self.rng, self.slower = dut, core, core.rng, slower
        clock, reset = clock_of_ports(dut)
        self.crossing = 0 if clock is dut.aclk else STREAM_DEPTH
        around = {"reset": reset, "reset_active_level": False}
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), clock, **around)
        # A beat is one element of a frame.
        of_stream = {**around, "byte_lanes": 1}
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), clock, **of_stream)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), clock, **of_stream)
        self.expect = None
        models = {
            "s_axi_aw": self.lite.write_if.aw_channel,
            "s_axi_w": self.lite.write_if.w_channel,
            "s_axi_b": self.lite.write_if.b_channel,
            "s_axi_ar": self.lite.read_if.ar_channel,
            "s_axi_r": self.lite.read_if.r_channel,
            "s_axis": self.source,
            "m_axis": self.sink,
        }
        of_output = ["m_axis_tdata", "m_axis_tlast", "m_axis_tuser"]
        self.outputs = Rules(dut, "m_axis_tvalid", "m_axis_tready", of_output)
        # Of somebody else's source; its times are wanted.
        self.inputs = Rules(dut, "s_axis_tvalid", "s_axis_tready", [])
        self.rules = [
            Rules(dut, "s_axi_bvalid", "s_axi_bready", ["s_axi_bresp"]),
            Rules(dut, "s_axi_rvalid", "s_axi_rready", ["s_axi_rresp", "s_axi_rdata"]),
            self.outputs,
        ]
        if not self.crossing:
            self.rules.append(Turns(dut))
        Noise(dut, np.random.default_rng([*core.seeds, 0, 0]))
        self.commands = CommandBuses(dut, core.banks) if core.banks else None
        self.memory = None
        if core.name is Top.DISPATCH:
            bus = AxiStreamBus.from_prefix(dut, "m_axis_expect")
            self.expect = AxiStreamSink(bus, clock, **of_stream)
            models["m_axis_expect"] = self.expect
            names = ["m_axis_expect_tdata"]
            self.rules.append(Rules(dut, "m_axis_expect_tvalid", "m_axis_expect_tready", names))
        else:
            # A memory that is not reset goes on answering.
            of_memory = {} if keep_memory else around
            content = bytearray(core.memory())
            self.memory = AxiRamRead(
                AxiReadBus.from_prefix(dut, "m_axi"), clock, **of_memory, size=len(content), mem=content
            )
            self.reads = 0
            self.change: Callable[[int, Any], list[Any]] = lambda _beat, beat: [beat]
            self._meddle(self.memory.r_channel)
            models |= {"m_axi_ar": self.memory.ar_channel, "m_axi_r": self.memory.r_channel}
            names = ["m_axi_araddr", "m_axi_arlen", "m_axi_arsize", "m_axi_arburst"]
            self.rules.append(Rules(dut, "m_axi_arvalid", "m_axi_arready", names))
        self.channels = {name: Channel(name, model, reset) for name, model in models.items()}
        self.draws = 0
        self.patience = PATIENCE if self.crossing or core.name in LAYERS else LITTLE_PATIENCE
        self.driver = Driver(self, self, self, attempts=self.patience)

    def _meddle(self, channel: Any) -> None:
        """Let scenarios change beats on their way: ``change(n, beat)`` gives what comes for beat n."""
        send = channel.send

        async def changed(beat: Any) -> None:
            number, self.reads = self.reads, self.reads + 1
            for other in self.change(number, beat):
                await send(other)

        channel.send = changed

    # What the driver needs.

    @resume
    async def read32(self, address: int) -> int:
        """Return a register."""
        answer = await self.lite.read(address, 4)
        if answer.resp:
            raise BusError(address, int(answer.resp), write=False)
        return int.from_bytes(answer.data, "little")

    def write32(self, address: int, value: int) -> None:
        """Write a register."""
        self.put(address, value.to_bytes(4, "little"))

    @resume
    async def put(self, address: int, content: bytes) -> None:
        """Write bytes of a register."""
        answer = await self.lite.write(address, content)
        if answer.resp:
            raise BusError(address, int(answer.resp), write=True)
        if self.commands is not None and address == BUS_CONTROL and content[0] & RECOVER:
            self.commands.recovers()

    @resume
    async def read_and_write(self, address: int, other: int, value: int) -> tuple[Any, Any]:
        """Read a register while another one is written; return both answers."""
        asked = cocotb.start_soon(self.lite.read(address, 4))
        answer = await self.lite.write(other, value.to_bytes(4, "little"))
        return await asked, answer

    @resume
    async def access_all(
        self, reads: list[int], writes: list[int], value: int = 0
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Ask for all at once: read words, and write one to each of some.

        Returns the responses with what was read, and the responses to the writes.
        """
        content = value.to_bytes(4, "little")
        asked = [cocotb.start_soon(self.lite.read(address, 4)) for address in reads]
        written = [cocotb.start_soon(self.lite.write(address, content)) for address in writes]
        answers = [await task for task in asked]
        return (
            [(int(answer.resp), int.from_bytes(answer.data, "little")) for answer in answers],
            [int((await task).resp) for task in written],
        )

    def write(self, address: int, content: bytes) -> None:
        """Write to memory, which comes again and again, as its model reads it."""
        self.memory.write(address % len(self.memory.mem), content)

    @resume
    async def send(self, beats: list[int]) -> None:
        """Queue a packet."""
        await self.source.send(AxiStreamFrame(list(beats)))

    @resume
    async def receive(self) -> Packet:
        """Take a packet."""
        frame = await self.sink.recv(compact=False)
        users = frame.tuser if isinstance(frame.tuser, list) else [frame.tuser] * len(frame.tdata)
        return Packet(list(frame.tdata), [int(user) for user in users])

    # What scenarios need.

    def leave_answers(self) -> None:
        """Have a read and a write answered that nobody takes, until the next reset, which gives them up."""
        answers = [self.channels["s_axi_b"], self.channels["s_axi_r"]]
        for channel in answers:
            channel.hold()
        self._ask()
        while not (int(self.dut.s_axi_bvalid.value) and int(self.dut.s_axi_rvalid.value)):
            self.wait(1)
        for channel in answers:
            # Longer than the reset takes.
            channel.hold(20)

    @resume
    async def _ask(self) -> None:
        """Ask for a read and a write that are not waited for."""
        cocotb.start_soon(self.lite.read(REGISTERS["STATUS"], 4))
        cocotb.start_soon(self.lite.write(BUS_CONTROL, bytes(4)))

    @resume
    async def unasked(self) -> None:
        """Give a beat of memory that nobody has asked for."""
        await self.memory.r_channel.send(AxiRTransaction(rid=0, rdata=0x5A5A, rresp=0, rlast=1))

    @resume
    async def wait(self, cycles: int) -> None:
        """Let cycles pass."""
        await ClockCycles(self.slower, cycles)

    def until(self, field: str) -> None:
        """Wait until BUS_STATUS has this field set."""
        while not self.driver.read_fields("BUS_STATUS")[field]:
            pass

    def until_sent(self) -> None:
        """Wait until all packets have gone in."""
        while not self.source.idle():
            self.wait(10)

    def until_output(self, before: int) -> None:
        """Wait until more beats have come out than ``before``."""
        while self.outputs.transfers == before:
            self.wait(1)

    def until_offered(self, before: int) -> None:
        """Wait until an output beat is offered that was not yet at the edge ``before``."""
        while self.outputs.offered == before:
            self.wait(1)

    def settle(self) -> None:
        """Let come out what is on its way, however long outputs pause; no packet may stay open."""
        offers = [self.dut.m_axis_tvalid] + ([self.dut.m_axis_expect_tvalid] if self.expect else [])
        quiet = 0
        for _ in range(self.patience):
            quiet = quiet + 1 if self.sink.idle() and not any(int(offer.value) for offer in offers) else 0
            if quiet == 5:
                return
            self.wait(10)
        raise AssertionError("an output packet stays open" if not self.sink.idle() else "outputs do not end")

    @resume
    async def reset(self) -> None:
        """Reset everything; from then on every channel pauses otherwise."""
        self.draw_pauses()
        for reset in (self.dut.aresetn, clock_of_ports(self.dut)[1]):
            reset.value = 0
        await ClockCycles(self.slower, 4)
        for reset in (self.dut.aresetn, clock_of_ports(self.dut)[1]):
            reset.value = 1
        await ClockCycles(self.slower, 2)

    def hold(self, *, holding: bool) -> None:
        """Take no output, so that tokens stay inside; or take it again, with the pauses from before."""
        sink = self.channels["m_axis"]
        if holding:
            sink.hold()
        else:
            sink.let_go()

    def draw_pauses(self) -> None:
        """Begin other pauses on every channel."""
        self.draws += 1
        for number, channel in enumerate(self.channels.values()):
            channel.draw(np.random.default_rng([*self.core.seeds, self.draws, number]))

    def irq(self) -> int:
        """Return the interrupt's level."""
        return int(self.dut.irq.value)

    def place_image(self) -> int:
        """Choose where the image lies from now on; return its address."""
        pages = max(1, len(self.core.memory()) // PAGE_BYTES)
        self.page = IMAGE_PAGE + pages * int(self.rng.integers((1 << PAGE_BITS) // pages - 1))
        return self.page * PAGE_BYTES

    def start(self, capacity: int = 0) -> None:
        """Make the core ready for tokens."""
        assert self.driver.identify() is self.core.name
        self.core.capacity = capacity
        steps = list(self.driver.start(self.place_image(), capacity))
        if self.core.banks is not None:
            banks = self.core.banks
            places = placement_steps(banks, banks.round_robin())
            for step in places:
                self.driver.registers.write32(step.values["reg_addr"], step.values["reg_wdata"])
        self.driver.configure(steps)
        if self.core.name is Top.GATE:
            # Whatever the memory does: whole bursts, and no beat besides.
            bursts = ceil_div(self.core.image.load_beats, self.core.design.memory.burst_beats)
            assert self.driver.counters()["read_beats"] == bursts * self.core.design.memory.burst_beats

    def take(self, count: int) -> tuple[Beats, list[int]]:
        """Return so many packets' beats, and their marks."""
        beats: Beats = []
        marks: list[int] = []
        for _ in range(count):
            packet = self.receive()
            ends = [0] * (len(packet.beats) - 1) + [1]
            beats += list(zip(packet.beats, ends, strict=True))
            marks += packet.marks
        return beats, marks

    def run(self, batches: list[np.ndarray]) -> None:
        """Send batches to a core that was just made ready; all has to come out right."""
        expected = self.core.outputs(batches)
        for batch in batches:
            self.send(self.core.beats(batch))
        beats, marks = self.take(sum(last for _, last in expected))
        same(beats, expected)
        assert not any(marks)
        self.drained()
        if self.expect is not None:
            self._expectations(batches)

    def drained(self) -> None:
        """Wait until all that was taken has come out; the core says so, too."""
        self.driver.wait_until_drained()
        assert self.driver.read_fields("STATUS")["busy"] == 0, "the core stays busy"

    def _expectations(self, batches: list[np.ndarray]) -> None:
        """See each token's slot and how many entries it has, after those of runs that were cut."""
        slots = 2 * self.core.design.window_tokens
        slot_bits, k = (slots - 1).bit_length(), self.core.token_beats
        ends = np.cumsum([len(batch) for batch in batches]) - 1
        kept = self.core.kept(np.concatenate(batches), [len(batch) for batch in batches])
        wanted = [
            n % slots | len(words) << slot_bits | int(n in ends) << slot_bits + k.bit_length()
            for n, words in enumerate(kept)
        ]
        found: list[int] = []
        self.settle()
        while not self.expect.empty():
            found += self.expect.recv_nowait(compact=False).tdata
        assert found[-len(wanted) :] == wanted, f"expectations {found}, expected {wanted}"

    def batches(self, count: int) -> list[np.ndarray]:
        """Return batches of random lengths, of more than a window too."""
        most = 2 * self.core.design.window_tokens + 2
        return [self.core.tokens(int(self.rng.integers(1, most))) for _ in range(count)]

    def receive_all(self) -> None:
        """Take the packets that have come out; what they hold does not matter."""
        while not self.sink.empty():
            self.receive()

    def recovered(self, **how: bool) -> None:
        """Recover by the documented sequence, and see that all is as after power-up."""
        self.driver.recover(**how)
        assert self.driver.errors() == set()
        assert self.driver.read("TOKENS_IN") == self.driver.read("TOKENS_OUT") == 0
        self.driver.acknowledge()
        self.start()
        assert "loaded" in self.driver.acknowledge(), "loading after a recovery is not told"

    def check(self) -> None:
        """Raise on a broken rule of a channel or of the DRAM, and on a channel that has lost its pauses."""
        broken = [text for rules in self.rules for text in rules.broken]
        assert not broken, broken[:3]
        held = [channel.name for channel in self.channels.values() if channel.held]
        assert not held, f"still held: {', '.join(held)}"
        # All ask by the same edges, of which this may be one.
        most = max(channel.asked for channel in self.channels.values())
        lost = [channel.name for channel in self.channels.values() if channel.asked < most - 1]
        assert not lost, f"has lost its pauses: {', '.join(lost)}"
        if self.commands is not None:
            self.commands.check()

    def stalled(self) -> dict[str, int]:
        """Return for how many cycles pauses have held each channel up."""
        return {channel.name: channel.stalled for channel in self.channels.values()}


def same(beats: Beats, expected: Beats) -> None:
    """Compare beats; say which is the first that differs."""
    for n, (got, want) in enumerate(zip(beats, expected, strict=False)):
        assert got == want, f"beat {n} is {got[0]:#x} last {got[1]}, expected {want[0]:#x} last {want[1]}"
    assert len(beats) == len(expected), f"{len(beats)} beats, expected {len(expected)}"


def same_until_cut(beats: Beats, marks: list[int], expected: Beats) -> None:
    """Compare beats with those of a run that may have been cut: then the last one is zeros, marked."""
    whole = len(beats)
    if beats and beats != expected[:whole]:
        whole -= 1
        closing = (*beats[-1], marks[-1])
        assert closing == (0, 1, 1), f"closed with {closing}, expected (0, 1, 1)"
    same(beats[:whole], expected[:whole])
    assert not any(marks[:whole])


def refused(access: Callable[[], object], response: int) -> None:
    """See an access refused with a response."""
    try:
        access()
    except BusError as error:
        seen = error.response
    else:
        seen = 0
    assert seen == response, f"answered with {seen}, expected {response}"


# The scenarios


def works(bench: Bench) -> None:
    """Batches, bits against golden, counters, the interrupts of loading and of each batch.

    What a layer is loaded with is what ``expertbank pack`` wrote.
    """
    driver, core = bench.driver, bench.core
    if core.name in LAYERS:
        bench.write(0, bytes(len(core.memory())))
        assert driver.identify() is core.name
        with tempfile.TemporaryDirectory(prefix="expertbank-") as folder:
            pack(
                core.model,
                core.design,
                lambda _experts: core.weights,
                Path(folder),
                batch_lengths=[1],
                address=bench.place_image(),
            )
            driver.load_pack(read_pack(Path(folder)))
    else:
        bench.start()
    assert driver.acknowledge() == {"loaded"}
    for names in (("loaded", "done", "error"), ("done",)):
        driver.enable_interrupts(*names)
        bench.wait(2)
        assert bench.irq() == 0
    batches = bench.batches(int(bench.rng.integers(2, 4)))
    bench.run(batches)
    bench.wait(3)
    assert bench.irq() == 1
    driver.enable_interrupts("loaded", "error")
    bench.wait(3)
    assert bench.irq() == 0
    driver.enable_interrupts("done")
    assert driver.acknowledge() == {"done"}
    bench.wait(3)
    assert bench.irq() == 0
    tokens = sum(map(len, batches))
    assert driver.read("TOKENS_IN") == driver.read("TOKENS_OUT") == tokens
    counters = driver.counters()
    assert counters["tokens_in"] == counters["tokens_out"] == tokens
    assert counters["assignments"] == tokens * bench.core.model.gating.top_k
    stalls = {name: count for name, count in counters.items() if name.startswith("stall_")}
    assert all(count <= counters["cycles"] for count in stalls.values()), counters
    assert driver.errors() == set()
    assert driver.read_fields("BUS_STATUS")["halted"] == 0
    for register in register_map(core.name):
        if register.access.readable:
            other = ~sum(entry.mask for entry in register.fields)
            assert bench.read32(register.address) & other == 0, f"{register.name}: bits that are no field"


def one_token(bench: Bench) -> None:
    """``cycles`` counts from the beat that goes into the block, behind its registers, to the last one out."""
    driver, core = bench.driver, bench.core
    bench.start()
    channels = [
        bench.channels[name] for name in ("s_axis", "m_axis", "m_axis_expect") if name in bench.channels
    ]
    for channel in channels:
        channel.flow()
    token = core.tokens(1)
    beats = core.beats(token)
    bench.send(beats)
    bench.take(sum(last for _, last in core.outputs([token])))
    driver.wait_until_drained()
    for channel in channels:
        channel.let_go()
    registers = 1 if core.name is Top.DISPATCH else 2
    inside = (bench.outputs.offered - 1) - (bench.inputs.taken - len(beats) + 1 + registers) + 1
    counters = driver.counters()
    # Ports on another clock have other cycles, and may be too slow for outputs.
    if not bench.crossing:
        assert counters["cycles"] == inside
        assert counters["stall_input"] == counters["stall_output"] == 0
    bench.recovered()


def capacity_drops(bench: Bench) -> None:
    """CAPACITY counts with all its bits: assignments beyond it are dropped, none where it is not reached."""
    for bit in (None, *range(3, CAPACITY_BITS)):
        bench.driver.recover()
        bench.start(int(bench.rng.integers(1, 3)) if bit is None else 1 + (1 << bit))
        batches = [bench.core.tokens(8 if bit is None else 4)]
        bench.run(batches)
        kept = sum(map(len, bench.core.kept(batches[0], [len(batches[0])])))
        dropped = bench.driver.counters()["dropped"]
        assert dropped == batches[0].size - kept
        assert bool(dropped) is (bit is None)
    bench.recovered()


def holds_what_is_written(bench: Bench) -> None:
    """Every bit of every register that is read and written, while nothing runs."""
    driver, rng = bench.driver, bench.rng
    bench.start()
    kept = [register for register in register_map(bench.core.name) if register.access is Access.READ_WRITE]
    before = {register.address: bench.read32(register.address) for register in kept}
    for _ in range(3):
        values = {register.address: int(rng.integers(1 << 32)) for register in kept}
        for address, value in values.items():
            bench.write32(address, value)
        for register in kept:
            mask = sum(entry.mask for entry in register.fields)
            seen = bench.read32(register.address)
            assert seen == values[register.address] & mask, f"{register.name} is {seen:#x}"
    for address, value in before.items():
        bench.write32(address, value)
    assert driver.errors() == set()
    bench.recovered()


def illegal_accesses(bench: Bench) -> None:
    """What may not be written or is not there is refused, told, and harms nothing that runs."""
    driver = bench.driver
    bench.start()
    driver.acknowledge()
    driver.enable_interrupts("error")
    # More than window and crossing hold: tokens stay inside while no output is taken.
    batch = bench.core.tokens(2 * bench.core.design.window_tokens + bench.crossing)
    expected = bench.core.outputs([batch])
    bench.hold(holding=True)
    bench.send(bench.core.beats(batch))
    bench.until("busy")
    # BATCH_TOKENS and the start of a load are locked while a token is inside.
    refused(lambda: driver.write("BATCH_TOKENS", 5), SLVERR)
    bench.wait(3)
    assert bench.irq() == 1
    first = next(entry.address for entry in BUS_REGISTERS if entry.name == "BATCH_TOKENS")
    assert driver.read("ERROR_REGISTER") == first
    assert driver.errors() == {"illegal_write"}
    refused(lambda: driver.write("CONTROL", 1), SLVERR)
    refused(lambda: driver.write("ERRORS", 0xFFFF_FFFF), SLVERR)
    refused(lambda: driver.write("IDENTITY", 0), SLVERR)
    refused(lambda: bench.write32(0xFFC, 0), DECERR)
    refused(lambda: bench.write32(REGISTERS["SCALE_X"], 0), DECERR)
    refused(lambda: bench.put(0x114, b"\x01"), SLVERR)
    refused(lambda: bench.read32(0x3C), DECERR)
    _locked(bench)
    assert driver.errors() == {"illegal_write", "illegal_read"}
    assert driver.read("ERROR_REGISTER") == first
    bench.hold(holding=False)
    assert driver.read("BATCH_TOKENS") == 0
    assert driver.read("CONTROL") == driver.read("BUS_CONTROL") == 0
    beats, marks = bench.take(sum(last for _, last in expected))
    same(beats, expected)
    assert not any(marks)
    driver.wait_until_drained()
    assert "error" in driver.acknowledge()
    bench.wait(3)
    assert bench.irq() == 0
    bench.recovered()
    bench.run(bench.batches(1))


def _locked(bench: Bench) -> None:
    """While a token is inside, every register refuses what may not be written, and keeps what it has."""
    registers = register_map(bench.core.name)
    holds = {
        register.address: bench.read32(register.address)
        for register in registers
        if register.access is Access.READ_WRITE
    }
    for register in registers:
        locked = sum(entry.mask for entry in register.fields if entry.locked)
        if not register.access.writable or register.locked or locked:
            word = locked or int(bench.rng.integers(1 << 32))
            refused(lambda at=register.address, word=word: bench.write32(at, word), SLVERR)
    for address, value in holds.items():
        assert bench.read32(address) == value, f"register {address:#x} was written"


def _wrong_packet(
    bench: Bench, good: np.ndarray, seen: np.ndarray, beats: list[int], error: str, padded: bool
) -> None:
    """Send a good batch, a wrong packet that the core sees as ``seen``, and one that has to wait."""
    driver, core = bench.driver, bench.core
    driver.acknowledge()
    driver.enable_interrupts("error")
    bench.send(core.beats(good))
    bench.send(beats)
    after = core.tokens(len(good))
    bench.send(core.beats(after))
    expected = core.outputs([good, seen])
    got, marks = bench.take(sum(last for _, last in expected))
    same(got, expected)
    bench.drained()
    assert driver.errors() == {error}
    assert bench.irq() == 1
    number = len(good) + len(seen) - 1
    assert driver.read("ERROR_TOKEN") == core.counted(number)
    assert driver.read("TOKENS_IN") == driver.read("TOKENS_OUT") == core.counted(number + 1)
    # The rest of a long packet may still be on its way.
    while not (status := driver.read_fields("BUS_STATUS"))["halted"]:
        pass
    assert status["busy"] == 0
    # Marked are the outputs of the token that was filled up, and no others but what still waited in its slot.
    must, may = marked_of(core, expected, number, padded)
    assert all(marks[n] for n in must)
    assert {n for n, mark in enumerate(marks) if mark} <= must | may
    # Nothing is taken any more; what waits is not lost.
    bench.wait(200)
    assert driver.read("TOKENS_IN") == core.counted(number + 1)
    assert bench.sink.empty()
    bench.recovered()
    expected = core.outputs([after])
    got, marks = bench.take(sum(last for _, last in expected))
    same(got, expected)
    assert not any(marks)
    driver.wait_until_drained()
    bench.driver.write("BATCH_TOKENS", 0)


def marked_of(core: Core, expected: Beats, number: int, padded: bool) -> tuple[set[int], set[int]]:
    """Return which output beats are marked where token ``number`` was filled up, and which others may be.

    The dispatcher's are known by their slot, of whose token before some may still wait inside.
    """
    if not padded:
        return set(), set()
    if core.name is not Top.DISPATCH:
        return set(range(len(expected) - core.output_beats, len(expected))), set()
    slots = 2 * core.design.window_tokens
    served_bits = core.model.gating.num_experts.bit_length()
    of_slot = [
        n for n, (beat, _) in enumerate(expected) if beat >> served_bits & (slots - 1) == number % slots
    ]
    k = core.token_beats
    return set(of_slot[-k:]), set(of_slot[-2 * k : -k])


def short_token(bench: Bench) -> None:
    """``tlast`` inside a token: it is filled up, ends its batch, and its outputs are marked."""
    core, rng = bench.core, bench.rng
    bench.start()
    count = int(rng.integers(1, core.most_tokens))
    # Of many tokens each bit of ERROR_TOKEN is set in one of both.
    counts = [count, core.most_tokens ^ count, 1, 2] if core.name is Top.DISPATCH else [count]
    for tokens in counts:
        good, bad = core.tokens(tokens), core.tokens(int(rng.integers(1, 6)))
        beats = (len(bad) - 1) * core.token_beats + int(rng.integers(1, core.token_beats))
        _wrong_packet(bench, good, core.cut(bad, beats), core.beats(bad)[:beats], "short_token", True)
        bench.recovered()


def short_token_at_a_full_port(bench: Bench) -> None:
    """A token that was filled up, all by itself, while no output is taken: right and marked, every beat."""
    core, rng = bench.core, bench.rng
    for _ in range(2):
        bench.start()
        token, beats = core.tokens(1), int(rng.integers(1, core.token_beats))
        expected = core.outputs([core.cut(token, beats)])
        before = bench.outputs.offered
        bench.hold(holding=True)
        bench.send(core.beats(token)[:beats])
        bench.until_offered(before)
        bench.wait(100)
        bench.hold(holding=False)
        got, marks = bench.take(sum(last for _, last in expected))
        same(got, expected)
        assert all(marks)
        bench.drained()
        assert bench.driver.errors() == {"short_token"}
        bench.recovered()


def short_packet(bench: Bench) -> None:
    """Fewer tokens than BATCH_TOKENS."""
    core, rng = bench.core, bench.rng
    bench.start()
    count = int(rng.integers(2, 7))
    bench.driver.write("BATCH_TOKENS", count)
    good, bad = core.tokens(count), core.tokens(int(rng.integers(1, count)))
    _wrong_packet(bench, good, bad, core.beats(bad), "short_packet", False)


def long_packet(bench: Bench) -> None:
    """More tokens than BATCH_TOKENS: those end the batch, the rest is discarded."""
    core, rng = bench.core, bench.rng
    bench.start()
    for count in (1, 2, int(rng.integers(3, 6))):
        bench.driver.write("BATCH_TOKENS", count)
        good, bad = core.tokens(count), core.tokens(count)
        rest = int(rng.integers(1, 3 * core.token_beats))
        discarded = bench.driver.read("DISCARDED")
        _wrong_packet(bench, good, bad, core.beats(bad) + [0] * rest, "long_packet", False)
        assert bench.driver.read("DISCARDED") == discarded + rest
        bench.recovered()


def many_discarded(bench: Bench) -> None:
    """A packet with so many beats too many that DISCARDED, and what it is added up by, has long carries."""
    core, rng, source = bench.core, bench.rng, bench.channels["s_axis"]
    bench.start()
    bench.driver.write("BATCH_TOKENS", 1)
    good, bad = core.tokens(1), core.tokens(1)
    rest = int(rng.integers(1 << 14, 1 << 15))
    source.flow()
    _wrong_packet(bench, good, bad, core.beats(bad) + [0] * rest, "long_packet", False)
    source.let_go()
    assert bench.driver.read("DISCARDED") == core.counted(rest)
    bench.recovered()


def many_tokens(bench: Bench) -> None:
    """Packets of hundreds of tokens: as many as BATCH_TOKENS says, and too few; as many as it counts."""
    core, rng = bench.core, bench.rng
    bench.start()
    # Of what is behind the first two tokens every place up to 512 is set in one of both.
    count = 2 + int(rng.integers(514, 1022))
    for tokens in (count, 2 + (count - 2 ^ 511)):
        bench.driver.write("BATCH_TOKENS", tokens)
        bench.run([core.tokens(tokens)])
        bench.recovered()
    bench.driver.write("BATCH_TOKENS", count)
    good, bad = core.tokens(count), core.tokens(int(rng.integers(64, count)))
    _wrong_packet(bench, good, bad, core.beats(bad), "short_packet", False)
    bench.recovered()


def far_limit(bench: Bench) -> None:
    """BATCH_TOKENS counts with all its bits: a packet is too short by a power of two of tokens."""
    driver, core, rng = bench.driver, bench.core, bench.rng
    bits = [rng.integers(2, 16), rng.integers(16, 32)] if core.name in LAYERS else range(2, core.count_bits)
    # The power alone, and with others below it.
    for bit, count in [(int(bit), count) for bit in bits for count in (0, int(rng.integers(1, 5)))]:
        bench.start()
        driver.write("BATCH_TOKENS", count + (1 << bit))
        tokens = core.tokens(max(1, count + int(rng.integers(2))))
        expected = core.outputs([tokens])
        bench.send(core.beats(tokens))
        got, marks = bench.take(sum(last for _, last in expected))
        same(got, expected)
        assert not any(marks)
        driver.wait_until_drained()
        assert driver.errors() == {"short_packet"}, f"bit {bit} of BATCH_TOKENS"
        assert driver.read("TOKENS_IN") == len(tokens)
        driver.recover()
        driver.write("BATCH_TOKENS", 0)
    bench.recovered()


def finish_rest(bench: Bench) -> None:
    """Let through what is left of packets after a recovery, whatever it is; then recover, and all works."""
    driver = bench.driver
    bench.until_sent()
    driver.wait_until_drained()
    bench.settle()
    bench.receive_all()
    driver.recover()
    bench.start()
    bench.run(bench.batches(1))


def recover_from_an_open_packet(bench: Bench) -> None:
    """Without ``discard_rest`` what comes meanwhile is thrown away, for 8 cycles at least."""
    driver, core = bench.driver, bench.core
    source, sink = bench.channels["s_axis"], bench.channels["m_axis"]
    bench.start()
    # More than comes in until the register is written.
    bench.send(core.beats(core.tokens(max(60, min(300, core.most_tokens)) + bench.crossing)))
    bench.until("packet_open")
    discarded = driver.read("DISCARDED")
    source.flow()
    sink.flow()
    driver.recover()
    discarded = driver.read("DISCARDED") - discarded
    source.let_go()
    sink.let_go()
    assert not bench.source.idle(), "the packet ended too early"
    # Through slow ports fewer come in that time.
    assert bench.crossing or discarded >= RESET_CYCLES, f"{discarded} beats thrown away"
    bench.start()
    bench.receive_all()
    finish_rest(bench)


def into_standstill(bench: Bench) -> None:
    """Take no output until all that holds tokens is full; a packet is open, and waits at the door."""
    core = bench.core
    bench.start()
    bench.hold(holding=True)
    # More than windows, deep pipelines and crossings hold; through a layer they take long.
    windows = 4 if core.name in LAYERS else 16
    bench.send(core.beats(core.tokens(windows * core.design.window_tokens + bench.crossing)))
    bench.until("packet_open")
    bench.wait(int(bench.rng.integers(1, 500)))


def all_places_taken(bench: Bench) -> None:
    """Of the dispatcher: two windows inside as a whole, behind a token whose entries wait at the port."""
    driver, core = bench.driver, bench.core
    bench.start()
    window = core.design.window_tokens
    batches = [core.tokens(count) for count in (1, window, window)]
    expected = core.outputs(batches)
    bench.hold(holding=True)
    for batch in batches:
        bench.send(core.beats(batch))
    bench.until_sent()
    bench.wait(200)
    # All of them are announced.
    assert driver.read("TOKENS_OUT") == 1 + 2 * window
    if not bench.crossing:
        # Which has room for some of them.
        assert driver.read_fields("BUS_STATUS")["busy"] == 1
        refused(lambda: driver.write("POLICY", 1), SLVERR)
    bench.hold(holding=False)
    got, marks = bench.take(sum(last for _, last in expected))
    same(got, expected)
    assert not any(marks)
    bench.drained()
    bench.recovered()


def done_is_told(bench: Bench) -> None:
    """Of a packet that waits at the port: ``done`` comes with its last beat, not with one before it."""
    driver, core = bench.driver, bench.core
    bench.start()
    driver.enable_interrupts("done")
    for _ in range(3):
        token = core.tokens(1)
        expected = core.outputs([token])
        driver.acknowledge()
        offered = bench.outputs.offered
        bench.hold(holding=True)
        bench.send(core.beats(token))
        bench.until_offered(offered)
        # Time for all that stands there to come behind the beat that waits.
        bench.wait(100)
        # At the dispatcher when all is behind it; between two clocks a whole packet finds room.
        assert bench.irq() == (core.name is Top.DISPATCH or bench.crossing > 0)
        bench.hold(holding=False)
        got, _ = bench.take(sum(last for _, last in expected))
        assert [last for _, last in got] == [last for _, last in expected]
        bench.drained()
        assert driver.acknowledge() == {"done"}
    bench.recovered()


def unasked_beat(bench: Bench) -> None:
    """A beat of memory that nobody asked for, in the middle of a packet, which goes on to its end."""
    driver, core = bench.driver, bench.core
    bench.start()
    batch, after = core.tokens(4 * core.design.window_tokens), core.tokens(2)
    expected = core.outputs([batch])
    offered = bench.outputs.offered
    bench.hold(holding=True)
    bench.send(core.beats(batch))
    bench.until_offered(offered)
    bench.unasked()
    for _ in range(bench.patience):
        if driver.errors():
            break
    assert driver.errors() == {"read_unexpected"}
    bench.hold(holding=False)
    got, marks = bench.take(1)
    same(got, expected)
    # What stood at the port was not marked any more.
    assert not any(marks[:1])
    assert all(marks[8 + bench.crossing :])
    bench.drained()
    assert driver.read_fields("BUS_STATUS")["halted"] == 1
    bench.send(core.beats(after))
    bench.wait(200)
    assert driver.read("TOKENS_IN") == len(batch)
    bench.recovered()
    got, marks = bench.take(1)
    same(got, core.outputs([after]))
    assert not any(marks)


def stalls_are_counted(bench: Bench) -> None:
    """Of a block alone: every cycle in which its output waits, and its input behind it."""
    driver, waited = bench.driver, int(bench.rng.integers(20, 60))
    into_standstill(bench)
    for name in ("stall_output", "stall_input"):
        for _ in range(bench.patience):
            before = driver.counters()[name]
            if before:
                break
        assert before, f"{name} counts nothing"
        bench.wait(waited)
        assert driver.counters()[name] - before >= waited, name
    bench.hold(holding=False)
    bench.until_sent()
    bench.settle()
    bench.receive_all()
    driver.wait_until_drained()
    bench.recovered()


def recover_when_the_source_was_reset(bench: Bench) -> None:
    """Nothing is left of a packet whose source was reset in its middle."""
    into_standstill(bench)
    bench.source.assert_reset()
    bench.source.clear()
    bench.hold(holding=False)
    bench.recovered()
    bench.settle()
    bench.receive_all()
    bench.run(bench.batches(1))


def unknown_addresses(bench: Bench) -> None:
    """ERROR_REGISTER names the first access that was refused, with all bits of its address."""
    driver, rng = bench.driver, bench.rng
    known = {register.address for register in register_map(bench.core.name, int8=True, secded=True)}
    free = [address for address in range(0, LAST_ADDRESS + 1, 4) if address not in known]
    for address in rng.choice(free, 8, replace=False).tolist():
        reads = bool(rng.integers(2))
        if reads:
            refused(lambda address=address: bench.read32(address), DECERR)
        else:
            refused(lambda address=address: bench.write32(address, 0), DECERR)
        other = int(rng.choice(free))
        refused(lambda other=other: bench.read32(other), DECERR)
        assert driver.errors() == {"illegal_read"} | (set() if reads else {"illegal_write"})
        assert driver.read("ERROR_REGISTER") == address
        driver.recover()
    bench.recovered()


def into_flight(bench: Bench, *, gives: bool) -> Beats:
    """Have tokens inside, of a packet that may still come in; outputs, if it ``gives`` some, stand still.

    Returns what comes out if nothing happens.
    """
    core, rng = bench.core, bench.rng
    bench.start()
    before = bench.outputs.transfers
    # Through a layer they take long; through a block alone all of fewer had come in before anything happens.
    of_block = max(64, min(300, core.most_tokens))
    tokens = core.tokens(2 * core.design.window_tokens + 3 if core.name in LAYERS else of_block)
    bench.send(core.beats(tokens))
    if gives:
        bench.until_output(before)
        more = bench.outputs.transfers + int(rng.integers(20))
        for _ in range(200):
            if bench.outputs.transfers >= more and not bench.outputs.last[1]:
                break
            bench.wait(1)
        bench.channels["m_axis"].hold(int(rng.integers(200, 400)))
    else:
        bench.wait(int(rng.integers(1, 1500 if core.name in LAYERS else 200)))
    return core.outputs([tokens])


def recover_in_flight(bench: Bench) -> None:
    """Recovery at any time: reads are waited for, the output packet is closed, then all works."""
    for gives in (False, True, *(True,) * (3 if bench.core.name is Top.DISPATCH else 0)):
        expected = into_flight(bench, gives=gives)
        bench.driver.recover(discard_rest=True)
        # What had begun to come out before was closed: no packet is open.
        bench.settle()
        came, marks = bench.take(bench.sink.count())
        same_until_cut(came, marks, expected)
        bench.start()
        bench.until_sent()
        bench.settle()
        bench.receive_all()
        assert bench.driver.errors() == set()
        # The packet may have come whole only after recovery, and is then a packet like any other.
        finish_rest(bench)
        bench.driver.recover()


def recover_while_banks_are_open(bench: Bench) -> None:
    """The DRAM knows of no recovery: its rules hold across it, checked at the end of the scenario."""
    core, commands = bench.core, bench.commands
    bench.start()
    before = commands.recovered_while_open()
    for _ in range(MOST_RECOVERIES):
        bench.send(core.beats(core.tokens(core.design.window_tokens)))
        while not commands.opened():
            bench.wait(1)
        # Registers are slow: what was opened may be closed again by then.
        bench.recovered(discard_rest=True)
        if commands.recovered_while_open() > before + 1:
            break
    else:
        # Through slow ports each may come too late.
        assert bench.crossing, f"{MOST_RECOVERIES} recoveries met an open bank once at most"
    finish_rest(bench)


def recover_while_nothing_moves(bench: Bench) -> None:
    """Memory and sink stand still: recovery waits for bursts in flight and the closing beat, then ends."""
    for _ in range(MOST_RECOVERIES):
        waited = _recover_at_standstill(bench)
        # Whether a packet of the dispatcher's, which are short, is open then is chance.
        if waited or bench.core.name in LAYERS:
            break
    else:
        raise AssertionError(f"{MOST_RECOVERIES} recoveries met no open packet")


def _recover_at_standstill(bench: Bench) -> bool:
    """Recover while nothing can move; return whether recovery had to wait."""
    driver = bench.driver
    into_standstill(bench)
    if bench.core.name not in LAYERS:
        # With a packet that has begun to come out, which recovery has to close.
        before = bench.outputs.transfers
        bench.hold(holding=False)
        bench.until_output(before)
        bench.hold(holding=True)
    stuck = [] if bench.memory is None else [bench.channels["m_axi_ar"], bench.channels["m_axi_r"]]
    for channel in stuck:
        channel.hold()
    fields = ("recover", "discard_rest")
    driver.acknowledge()
    driver.write("BUS_CONTROL", sum(field_of(BUS_REGISTERS, "BUS_CONTROL", field).mask for field in fields))
    bench.wait(200)
    status = driver.read_fields("BUS_STATUS")
    assert status["recovering"] or not status["reads"], status
    if status["recovering"]:
        # The core's registers are not there; those of the ports are.
        refused(lambda: driver.write("CONTROL", 0), SLVERR)
        driver.enable_interrupts("error")
    for channel in stuck:
        channel.let_go()
    bench.hold(holding=False)
    for _ in range(bench.patience):
        if not driver.read_fields("BUS_STATUS")["recovering"]:
            break
    else:
        raise AssertionError("recovers for ever")
    bench.until_sent()
    bench.settle()
    bench.receive_all()
    assert driver.errors() == ({"illegal_write"} if status["recovering"] else set())
    assert driver.read("TOKENS_IN") == 0
    # What recovery has thrown away, and the beat that closes a packet, is no batch that is done.
    assert "done" not in driver.acknowledge()
    driver.recover()
    bench.start()
    bench.run(bench.batches(1))
    return bool(status["recovering"])


def reset_in_flight(bench: Bench) -> None:
    """``aresetn`` at any time, for all that is around too."""
    for gives in (False, True):
        into_flight(bench, gives=gives)
        bench.leave_answers()
        bench.reset()
        for register in register_map(bench.core.name):
            # Banks are refreshed from the reset on.
            if register.access.readable and not register.name.startswith("REFRESHES"):
                holds = register.reset
                if register.name == "IRQ_STATUS" and bench.core.name is Top.DISPATCH:
                    # There is nothing to load, so the event is as old as the reset.
                    holds |= field_of(BUS_REGISTERS, "IRQ_STATUS", "loaded").mask
                seen = bench.read32(register.address)
                if bench.core.name is Top.PIM and register.name == "STATUS":
                    seen &= ~field_of(CORE_REGISTERS, "STATUS", "refreshing").mask
                assert seen == holds, f"{register.name} is {seen:#x} after reset, not {holds:#x}"
        bench.channels["m_axis"].let_go()
        bench.receive_all()
        bench.source.clear()
    bench.start()
    bench.run(bench.batches(1))


def both_at_once(bench: Bench) -> None:
    """Reads and writes at the same time: each is answered as it would be alone."""
    driver, rng = bench.driver, bench.rng
    address = {entry.name: entry.address for entry in BUS_REGISTERS}
    writes = {"BATCH_TOKENS": 0xFFFF_FFFF, "IRQ_ENABLE": field_of(BUS_REGISTERS, "IRQ_ENABLE", "done").mask}
    holds = {name: driver.read(name) for name in writes}
    for _ in range(10):
        name, asked = (str(rng.choice(list(writes))) for _ in range(2))
        value = int(rng.integers(1 << 32)) & writes[name]
        answer, response = bench.read_and_write(address[asked], address[name], value)
        assert not answer.resp and not response.resp
        seen = int.from_bytes(answer.data, "little")
        # Of the same register either value.
        assert seen in ({value, holds[asked]} if asked == name else {holds[asked]}), (asked, name, seen)
        holds[name] = value
        assert {name: driver.read(name) for name in writes} == holds
    # Several, before the first is answered.
    responses = {"BATCH_TOKENS": 0, "BUS_ID": SLVERR, "nothing": DECERR}
    names = [str(name) for name in rng.choice(list(responses), 8)]
    places = [address.get(name, LAST_ADDRESS) for name in names]
    assert bench.access_all([], places, 5) == ([], [responses[name] for name in names])
    driver.recover()
    if "BATCH_TOKENS" in names:
        assert driver.read("BATCH_TOKENS") == 5
    holds["BATCH_TOKENS"] = driver.read("BATCH_TOKENS")
    names = [str(name) for name in rng.choice([*holds, "nothing"], 8)]
    places = [address.get(name, LAST_ADDRESS) for name in names]
    wanted = [(DECERR, 0) if name == "nothing" else (0, holds[name]) for name in names]
    assert bench.access_all(places, []) == (wanted, [])
    driver.recover()
    # Both without a pause, so that both wait, of which one has its turn (`Turns`).
    lite = [channel for name, channel in bench.channels.items() if name.startswith("s_axi_")]
    for channel in lite:
        channel.flow()
    for count in (1, 8):
        for of_reads, of_writes in ((count, 8), (8, count)):
            place, word = address["BATCH_TOKENS"], holds["BATCH_TOKENS"]
            asked, told = bench.access_all([place] * of_reads, [place] * of_writes, word)
            assert asked == [(0, word)] * of_reads
            assert told == [0] * of_writes
    for channel in lite:
        channel.let_go()
    answer, response = bench.read_and_write(LAST_ADDRESS, address["BUS_ID"], 0)
    assert (answer.resp, response.resp) == (DECERR, SLVERR)
    assert driver.errors() == {"illegal_read", "illegal_write"}
    assert driver.read("ERROR_REGISTER") in (LAST_ADDRESS, address["BUS_ID"])
    for name in writes:
        driver.write(name, 0)
    bench.recovered()


def read_error(bench: Bench) -> None:
    """A beat with SLVERR or DECERR: told, with its address; what may be wrong is marked."""
    rng = bench.rng
    bench.start()
    response = int(rng.choice([SLVERR, DECERR]))
    wrong_at = bench.reads + int(rng.integers(1, 40))

    def change(number: int, beat: Any) -> list[Any]:
        if number == wrong_at:
            beat.rresp = response
            beat.rdata = 0x5A5A
        return [beat]

    bench.change = change
    _with_wrong_reads(bench, {"read_slverr" if response == SLVERR else "read_decerr"})


def _with_wrong_reads(bench: Bench, errors: set[str]) -> None:
    """Send two packets, of which the first meets the error; see marks, halt, recovery."""
    driver, core = bench.driver, bench.core
    batch, after = core.tokens(core.design.window_tokens + 1), core.tokens(2)
    expected = core.outputs([batch])
    bench.send(core.beats(batch))
    got, marks = bench.take(1)
    assert len(got) == len(expected)
    wrong = [n for n, (one, other) in enumerate(zip(got, expected, strict=True)) if one != other]
    assert all(marks[n] for n in wrong), f"beats {wrong} are wrong, marked {marks}"
    bench.drained()
    assert driver.errors() == errors
    assert driver.read_fields("BUS_STATUS")["halted"] == 1
    if errors != {"read_unexpected"}:
        page = driver.failed_read() >> 12
        assert bench.page <= page < bench.page + len(core.memory()) // PAGE_BYTES
    bench.send(core.beats(after))
    bench.wait(200)
    assert driver.read("TOKENS_IN") == len(batch)
    bench.change = lambda _number, beat: [beat]
    bench.recovered()
    expected = core.outputs([after])
    got, marks = bench.take(1)
    same(got, expected)
    assert not any(marks)


def _loaded_wrongly(bench: Bench, error: str) -> int:
    """Load with an error, see no token get in, recover, see it compute; return which byte was told."""
    driver, core = bench.driver, bench.core
    bench.start()
    assert driver.errors() == {error}
    # What the guard puts in the place of beats that are missing has no error of its own.
    assert driver.read_fields("STATUS")["read_error"] == (error != "read_last")
    address = driver.failed_read()
    token = core.tokens(1)
    bench.send(core.beats(token))
    bench.wait(200)
    assert driver.read("TOKENS_IN") == 0
    bench.change = lambda _number, beat: [beat]
    place = address - bench.page * PAGE_BYTES
    bench.recovered()
    got, marks = bench.take(1)
    same(got, core.outputs([token]))
    assert not any(marks)
    driver.wait_until_drained()
    driver.recover()
    return place


def read_error_while_loading(bench: Bench) -> None:
    """No token gets in behind a router that was read with an error; recovery loads it anew."""
    image, beat_bytes = bench.core.image, bench.core.design.memory.beat_bytes
    for response, error in ((SLVERR, "read_slverr"), (DECERR, "read_decerr")):
        place = int(bench.rng.integers(image.load_beats))
        wrong_at = bench.reads + place
        bench.change = lambda number, beat, at=wrong_at, wrong=response: [
            _with(beat, rresp=wrong if number == at else beat.rresp)
        ]
        assert _loaded_wrongly(bench, error) == place * beat_bytes


def wrong_last_while_loading(bench: Bench) -> None:
    """A burst of the router ends too early, or too late."""
    memory = bench.core.design.memory
    bursts = ceil_div(bench.core.image.load_beats, memory.burst_beats)
    # Told is the beat whose ``rlast`` is wrong: the first one, or the last.
    for wrong, beat in ((shorter, 0), (longer, memory.burst_beats - 1)):
        burst = in_burst(bench, wrong, most=bursts)
        place = _loaded_wrongly(bench, "read_last")
        assert place == (burst * memory.burst_beats + beat) * memory.beat_bytes


def in_burst(bench: Bench, wrong: Callable[[int, Any], list[Any]], *, most: int = 8) -> int:
    """Let ``wrong(n, beat)`` change the beats of one of the next ``most`` bursts; none is under way.

    Returns which.
    """
    skip = int(bench.rng.integers(most))
    burst, place = 0, 0

    def change(_number: int, beat: Any) -> list[Any]:
        nonlocal burst, place
        here = (burst, place)
        burst, place = (burst + 1, 0) if beat.rlast else (burst, place + 1)
        return wrong(here[1], beat) if here[0] == skip else [beat]

    bench.change = change
    return skip


def early_last(bench: Bench) -> None:
    """``rlast`` too early: the rest of the burst is zeros, and nothing hangs."""
    bench.start()
    in_burst(bench, shorter)
    _with_wrong_reads(bench, {"read_last"})


def shorter(place: int, beat: Any) -> list[Any]:
    """Return a burst's first beat as its last one, and no others."""
    return [] if place else [_with(beat, rlast=1)]


def longer(_place: int, beat: Any) -> list[Any]:
    """Return a beat, and two more behind the last one of a burst."""
    if not beat.rlast:
        return [beat]
    more = [_with(type(beat)(), rid=0, rdata=1, rresp=0, rlast=end) for end in (0, 1)]
    return [_with(beat, rlast=0), *more]


def late_last(bench: Bench) -> None:
    """``rlast`` too late: what is more than the burst is thrown away."""
    bench.start()
    in_burst(bench, longer)
    _with_wrong_reads(bench, {"read_last"})


def errors_in_every_burst(bench: Bench) -> None:
    """Each beat of each burst with an error, of both kinds by turns; all outputs come, all of them marked."""
    bench.start()
    bench.change = lambda number, beat: [_with(beat, rresp=(SLVERR, DECERR)[number % 2], rdata=number)]
    _with_wrong_reads(bench, {"read_slverr", "read_decerr"})


def every_burst_too_short(bench: Bench) -> None:
    """Each burst ends with its first beat."""
    bench.start()
    begins = True

    def change(_number: int, beat: Any) -> list[Any]:
        nonlocal begins
        shown, begins = begins, bool(beat.rlast)
        return [_with(beat, rlast=1)] if shown else []

    bench.change = change
    _with_wrong_reads(bench, {"read_last"})


def every_burst_too_long(bench: Bench) -> None:
    """Each burst has two beats more than was asked for."""
    bench.start()
    bench.change = longer
    _with_wrong_reads(bench, {"read_last"})


def _with(beat: Any, **fields: int) -> Any:
    for name, value in fields.items():
        setattr(beat, name, value)
    return beat


def recover_while_loading(bench: Bench) -> None:
    """The router is loaded anew behind a recovery in the middle of its load."""
    driver = bench.driver
    bench.start()
    beats = bench.channels["m_axi_r"]
    beats.hold()
    driver.write("CONTROL", 1)
    bench.until("reads")
    # Settings keep meanwhile.
    assert driver.read_fields("BUS_STATUS")["loading"] == 1
    refused(lambda: driver.write("BATCH_TOKENS", 5), SLVERR)
    refused(lambda: driver.write("CONTROL", 1), SLVERR)
    assert driver.read("BATCH_TOKENS") == 0
    # Registers are slow: what it holds then goes on while the recovery lasts.
    beats.hold(int(bench.rng.integers(1, 200)))
    bench.recovered()
    bench.run(bench.batches(1))


def reset_but_for_memory(bench: Bench) -> None:
    """``aresetn`` while reads are in flight that are answered afterwards: these are thrown away and told."""
    driver, core = bench.driver, bench.core
    bench.start()
    # So that there are some when the status has been read, however slowly.
    bench.channels["m_axi_r"].hold()
    if core.name is not Top.FPGA:
        # These read nothing but the router.
        driver.write("CONTROL", 1)
    else:
        bench.send(core.beats(core.tokens(core.design.window_tokens)))
    bench.until("reads")
    bench.wait(int(bench.rng.integers(1, 30)))
    bench.channels["m_axi_r"].hold(20)
    bench.reset()
    bench.source.clear()
    bench.wait(200)
    assert driver.errors() <= {"read_unexpected"}
    assert driver.counters()["read_beats"] == 0, "the core is given beats that it did not ask for"
    bench.receive_all()
    bench.recovered()
    bench.run(bench.batches(1))


GENERAL = [
    works,
    holds_what_is_written,
    illegal_accesses,
    short_token,
    short_token_at_a_full_port,
    short_packet,
    long_packet,
    far_limit,
    unknown_addresses,
    both_at_once,
    recover_in_flight,
    recover_from_an_open_packet,
    recover_when_the_source_was_reset,
    recover_while_nothing_moves,
    reset_in_flight,
    done_is_told,
]
READING = [read_error, early_last, late_last]


def scenarios_of(name: Top, kind: Kind) -> list[Callable[[Bench], None]]:
    """Return what is done to a top."""
    if kind is Kind.MEMORY_GOES_ON:
        return [reset_but_for_memory] * 3
    if kind is Kind.MANY:
        return [many_discarded, many_tokens, many_tokens]
    if kind is Kind.EVERY_BURST:
        return [errors_in_every_burst, every_burst_too_short, every_burst_too_long]
    found = list(GENERAL)
    if name is Top.FPGA:
        found += READING
    if name not in LAYERS:
        found += [one_token, stalls_are_counted]
    if name is Top.DISPATCH:
        found += [capacity_drops, all_places_taken]
    if name is Top.PIM:
        found.append(recover_while_banks_are_open)
    if name is not Top.DISPATCH:
        found += [read_error_while_loading, wrong_last_while_loading, recover_while_loading]
    if name in (Top.GATE, Top.PIM):
        # While the array's reads are in flight any beat is one of theirs.
        found.append(unasked_beat)
    return found


@cocotb.test()
async def run_job(dut: Any) -> None:
    """Run every scenario, each from a reset with other pauses.

    The job names the top, the seed, which scenarios, the periods of both clocks in ps, what ports hold that
    the bench does not know, whether a log of the ports is wanted, and how far the top counts. The result:
    lines that tell which scenarios ran, the seeds of their pauses, and the cycles that these held each
    channel up; and the log's columns, if any.
    """
    for noisy in ("cocotb", "cocotbext"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    job = Path(os.environ[JOB])
    name, seed, kind, (period, bus_period), statics, logs, count_bits = pickle.loads(job.read_bytes())
    for port, value in statics.items():
        getattr(dut, port).value = value
    core = Core(name, seed, count_bits)
    bus, bus_reset = clock_of_ports(dut)
    dut.aresetn.value = bus_reset.value = 0
    cocotb.start_soon(Clock(dut.aclk, period, "ps").start())
    if bus is not dut.aclk:
        cocotb.start_soon(Clock(bus, bus_period, "ps").start())
    slower = bus if bus_period > period else dut.aclk
    most = MOST_CYCLES * max(period, bus_period)
    bench = Bench(dut, core, slower, keep_memory=kind is Kind.MEMORY_GOES_ON)
    log = PortLog(dut) if logs else None
    banks = BankPorts(dut, core.banks, pim_image(core.banks, core.weights)) if core.banks else None
    assert banks is None or banks.width
    done = []
    for scenario in scenarios_of(name, kind):
        before = bench.stalled()
        said = f"{scenario.__name__}, pauses from seed {[*core.seeds, bench.draws + 1]} on"
        print(said, flush=True)
        await with_timeout(cocotb.start_soon(bridge(_run)(bench, scenario)), most, "ps")
        counts = {name: count - before[name] for name, count in bench.stalled().items()}
        done.append(f"{said}; cycles stalled: {counts}")
        print(done[-1], flush=True)
    if bench.commands is not None:
        # Of the last reset, to the last cycle.
        bench.commands.check()
    free = [name for name, count in bench.stalled().items() if not count]
    assert not free, f"{name}, seed {seed}: no pause held anything up on {', '.join(free)} in the whole run"
    job.with_name(RESULTS).write_bytes(pickle.dumps((done, log.columns() if log else {})))


def _run(bench: Bench, scenario: Callable[[Bench], None]) -> None:
    bench.reset()
    try:
        scenario(bench)
        bench.check()
    except Exception as error:
        raise AssertionError(f"{bench.core.name}, {scenario.__name__}: {error!r}") from error
