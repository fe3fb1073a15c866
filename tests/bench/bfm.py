"""What drives and watches the ports of exported Verilog inside the simulator, through cocotb.

One cycle is one rising edge of ``aclk``: at the edge everybody samples what the wires were before it,
then drives what they are in the next cycle. The clock runs on its own; cycle 0 is the first edge after
reset (and after the prologue). The rules of arrivals, ready patterns and latencies are those of
:class:`sim.rtlsim.RunSpec`, written a second time, independently of the native bench.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from cocotb.clock import Clock
from cocotb.handle import ValueObjectBase
from cocotb.triggers import RisingEdge
from cocotb.utils import get_sim_time

from sim.rtlsim import (
    BankMemory,
    MemoryTrace,
    Read,
    ReadMemory,
    RunResult,
    RunSpec,
    Sink,
    Source,
    Step,
    Trace,
    Wait,
)

CLOCK_NS = 10
MAX_VIOLATIONS = 20


class Wires:
    """The ports of the top by name; writes only what changes, which is most of the speed."""

    def __init__(self, dut: Any, ports: Sequence[Mapping[str, Any]]) -> None:
        self._handles: dict[str, ValueObjectBase] = {
            port["name"]: getattr(dut, port["name"]) for port in ports
        }
        self._driven: dict[str, int] = {}
        self.widths = {port["name"]: int(port["width"]) for port in ports}
        self.inputs = [
            port["name"]
            for port in ports
            if port["direction"] == "input" and port["name"] not in ("aclk", "aresetn")
        ]

    def get(self, port: str) -> int:
        """Return the port's value."""
        return int(self._handles[port].value)

    def set(self, port: str, value: int) -> None:
        """Drive an input from now on."""
        if self._driven.get(port) != value:
            self._handles[port].value = value
            self._driven[port] = value

    def driven(self, port: str) -> int:
        """Return what an input is driven with."""
        return self._driven[port]


@dataclass(frozen=True)
class BenchResult(RunResult):
    """What a run showed, and ``waiting``: the cycles in which each sink's stream was valid and not ready."""

    waiting: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Violations:
    """Broken rules, as sentences; at most ``MAX_VIOLATIONS``."""

    texts: list[str] = field(default_factory=list)
    cycle: int = 0
    running: bool = False

    def add(self, name: str, what: str) -> None:
        """Note that ``name`` did ``what`` in this cycle."""
        if len(self.texts) < MAX_VIOLATIONS:
            where = "" if self.running else " (outside the run)"
            self.texts.append(f"{name}: {what} in cycle {self.cycle}{where}")


class StreamRules:
    """Checks of a stream that the device drives: valid and payload stay until the beat is taken."""

    def __init__(self, name: str, violations: Violations) -> None:
        self.name = name
        self.violations = violations
        self._held: tuple[int, ...] | None = None

    def watch(self, payload: tuple[int, ...] | None, ready: bool) -> None:
        """See a cycle in which the device offers ``payload`` (None: not valid)."""
        if self._held is not None:
            if payload is None:
                self.violations.add(self.name, "valid fell before the beat was taken")
            elif payload != self._held:
                self.violations.add(self.name, "payload changed before the beat was taken")
        self._held = None if ready else payload


class StreamPorts:
    """Names of a stream's ports, and its payload as one integer, ``last`` topmost."""

    def __init__(self, wires: Wires, entry: Mapping[str, Any]) -> None:
        prefix = entry["prefix"]
        self.wires = wires
        self.data, self.valid, self.ready = (f"{prefix}_t{port}" for port in ("data", "valid", "ready"))
        self.last = f"{prefix}_tlast" if entry["last"] else None
        self.data_bits = entry["data_bits"]
        self.bits = self.data_bits + entry["last"]

    def put(self, payload: int) -> None:
        """Drive ``tdata`` and ``tlast``."""
        self.wires.set(self.data, payload & ((1 << self.data_bits) - 1))
        if self.last:
            self.wires.set(self.last, payload >> self.data_bits)

    def payload(self) -> int:
        """Return what ``tdata`` and ``tlast`` carry."""
        last = self.wires.get(self.last) if self.last else 0
        return self.wires.get(self.data) | last << self.data_bits


class StreamDriver:
    """Offers beat ``n`` from its arrival cycle on, once the one before was taken."""

    def __init__(self, ports: StreamPorts, source: Source) -> None:
        self.ports = ports
        self.payloads = _integers(source.payloads)
        arrivals = np.zeros(len(self.payloads)) if source.arrivals is None else np.asarray(source.arrivals)
        self.arrivals = [int(value) for value in arrivals]
        self.cycles: list[int] = []
        self._offered = False

    @property
    def done(self) -> bool:
        """Whether every beat was taken."""
        return len(self.cycles) == len(self.payloads)

    def drive(self, cycle: int) -> None:
        """Offer a beat in ``cycle`` if one is due."""
        if self._offered:
            return
        beat = len(self.cycles)
        self._offered = beat < len(self.payloads) and self.arrivals[beat] <= cycle
        if self._offered:
            self.ports.put(self.payloads[beat])
        self.ports.wires.set(self.ports.valid, int(self._offered))

    def sample(self, cycle: int) -> None:
        """See whether the beat was taken in ``cycle``."""
        if self._offered and self.ports.wires.get(self.ports.ready):
            self.cycles.append(cycle)
            self._offered = False

    def stop(self) -> None:
        """Offer nothing any more."""
        self.ports.wires.set(self.ports.valid, 0)

    def trace(self) -> Trace:
        """Return the transfers."""
        return _trace(self.cycles, self.payloads[: len(self.cycles)], self.ports.bits)


class StreamSink:
    """Ready in the cycles that its pattern says; notes and checks what the device offers."""

    def __init__(self, name: str, ports: StreamPorts, sink: Sink, violations: Violations) -> None:
        self.ports = ports
        self.count = sink.count
        self.pattern = _pattern(name, sink.ready)
        self.rules = StreamRules(name, violations)
        self.cycles: list[int] = []
        self.payloads: list[int] = []
        self.waiting: list[int] = []
        self._ready = False

    @property
    def done(self) -> bool:
        """Whether every wanted beat came."""
        return len(self.cycles) >= (self.count or 0)

    def drive(self, cycle: int) -> None:
        """Be ready in ``cycle`` or not."""
        self._ready = self.pattern[cycle % len(self.pattern)]
        self.ports.wires.set(self.ports.ready, int(self._ready))

    def sample(self, cycle: int) -> None:
        """Take a beat, or see one wait."""
        valid = self.ports.wires.get(self.ports.valid)
        payload = self.ports.payload() if valid else None
        self.rules.watch(None if payload is None else (payload,), self._ready)
        if payload is not None and not self._ready and self.rules.violations.running:
            self.waiting.append(cycle)
        if payload is not None and self._ready:
            self.cycles.append(cycle)
            self.payloads.append(payload)
            if self.count is not None and len(self.cycles) > self.count:
                self.rules.violations.add(self.rules.name, "extra beat")

    def stop(self) -> None:
        """Take nothing any more."""
        self._ready = False
        self.ports.wires.set(self.ports.ready, 0)

    def trace(self) -> Trace:
        """Return the transfers."""
        return _trace(self.cycles, self.payloads, self.ports.bits)


@dataclass
class _Burst:
    addr: int
    beats: int
    due: int
    done: int = 0


class AxiReadMemory:
    """Memory behind an AXI4 read master, with the exact latency of the cycle contract.

    The first beat of a burst is offered ``latency`` (+ ``extra``) cycles after its address was
    accepted, then one beat a cycle (+ ``gaps``), bursts in order. Our own, as cocotbext-axi's memory
    answers when its coroutines come round to it: its latency is no parameter.
    """

    def __init__(
        self,
        name: str,
        wires: Wires,
        master: Mapping[str, Any],
        memory: ReadMemory,
        violations: Violations,
    ) -> None:
        self.name, self.wires, self.prefix = name, wires, master["prefix"]
        self.beat_bytes = master["data_bits"] // 8
        image = memory.image
        # An array is copied, since bytes are what a beat is read from.
        self.image = image.tobytes() if isinstance(image, np.ndarray) else image.read_bytes()
        self.base = memory.base
        self.latency, self.max_outstanding = memory.latency, memory.max_outstanding
        self.extra = _repeated(memory.extra)
        self.gaps = _repeated(memory.gaps)
        self.pattern = _pattern(name, memory.ready)
        self.responses = _repeated(memory.responses)
        self.rules = StreamRules(name, violations)
        self.ar_cycles: list[int] = []
        self.ar_addrs: list[int] = []
        self.r_cycles: list[int] = []
        self._bursts: deque[_Burst] = deque()
        self._free_at = -(1 << 40)
        self._offered = self._accepting = False

    def _port(self, channel: str) -> str:
        return f"{self.prefix}_{channel}"

    def drive(self, now: int, cycle: int | None) -> None:
        """Accept an address or not; offer a beat if one is due.

        ``now`` counts from reset on; ``cycle`` is None outside the run.
        """
        self._accepting = len(self._bursts) < self.max_outstanding
        if cycle is not None:
            self._accepting &= self.pattern[cycle % len(self.pattern)]
        self.wires.set(self._port("arready"), int(self._accepting))
        if self._offered:
            return
        burst = self._bursts[0] if self._bursts else None
        self._offered = burst is not None and now >= burst.due and now >= self._free_at
        self.wires.set(self._port("rvalid"), int(self._offered))
        if burst is None or not self._offered:
            return
        start = burst.addr + burst.done * self.beat_bytes - self.base
        beat = self.image[start : start + self.beat_bytes] if start >= 0 else bytes(self.beat_bytes)
        if len(beat) < self.beat_bytes:
            beat = bytes(self.beat_bytes)
            self.rules.violations.add(self.name, "read beyond the memory image")
        self.wires.set(self._port("rdata"), int.from_bytes(beat, "little"))
        self.wires.set(self._port("rlast"), int(burst.done + 1 == burst.beats))
        self.wires.set(self._port("rresp"), self.responses[len(self.r_cycles) % len(self.responses)])

    def sample(self, now: int) -> None:
        """See a beat taken and an address accepted."""
        if self._offered and self.wires.get(self._port("rready")):
            self._offered = False
            self._free_at = now + 1 + self.gaps[len(self.r_cycles) % len(self.gaps)]
            self.r_cycles.append(now)
            self._bursts[0].done += 1
            if self._bursts[0].done == self._bursts[0].beats:
                self._bursts.popleft()
        address = None
        if self.wires.get(self._port("arvalid")):
            address = (self.wires.get(self._port("araddr")), self.wires.get(self._port("arlen")))
        self.rules.watch(address, self._accepting)
        if address is not None and self._accepting:
            self._accept(now, address[0], address[1] + 1)

    def _accept(self, now: int, addr: int, beats: int) -> None:
        if addr % self.beat_bytes:
            self.rules.violations.add(self.name, "unaligned burst")
        if addr % 4096 + beats * self.beat_bytes > 4096:
            self.rules.violations.add(self.name, "burst across 4 KiB")
        due = now + self.latency + self.extra[len(self.ar_cycles) % len(self.extra)]
        self._bursts.append(_Burst(addr, beats, due))
        self.ar_cycles.append(now)
        self.ar_addrs.append(addr)

    def trace(self, zero: int) -> MemoryTrace:
        """Return the transfers; cycle 0 was ``zero`` cycles after reset."""
        return MemoryTrace(
            np.array(self.ar_cycles, dtype=np.int64) - zero,
            np.array(self.ar_addrs, dtype=np.uint64),
            np.array(self.r_cycles, dtype=np.int64) - zero,
        )


class Banks:
    """Weight banks: what is asked for in a cycle stands at the data port ``latency`` cycles later, only."""

    def __init__(self, name: str, wires: Wires, banks: BankMemory, violations: Violations) -> None:
        self.name, self.wires, self.violations, self.latency = name, wires, violations, banks.latency
        image = banks.image
        self.image = image.tobytes() if isinstance(image, np.ndarray) else image.read_bytes()
        self.tile_bytes = wires.widths[f"{name}_data"] // 8
        # A tile may be longer, in whole words of 32 bits.
        self.pitch = image.shape[1] if isinstance(image, np.ndarray) else self.tile_bytes
        self._due: dict[int, int] = {}

    def drive(self, now: int) -> None:
        """Drive the data of this cycle."""
        address = self._due.pop(now, None)
        data = b"\xa5" * self.tile_bytes
        if address is not None:
            data = self.image[address * self.pitch :][: self.tile_bytes]
            if len(data) < self.tile_bytes:
                self.violations.add(self.name, "read beyond the banks' image")
        self.wires.set(f"{self.name}_data", int.from_bytes(data, "little"))

    def sample(self, now: int) -> None:
        """Take a request."""
        if self.wires.get(f"{self.name}_en"):
            self._due[now + self.latency] = self.wires.get(f"{self.name}_addr")


class Phase:
    """One run from reset to the last beat."""

    def __init__(self, dut: Any, wires: Wires, description: Mapping[str, Any], spec: RunSpec) -> None:
        self.dut, self.wires, self.spec = dut, wires, spec
        self.violations = Violations()
        streams = {entry["name"]: StreamPorts(wires, entry) for entry in description["streams"]}
        masters = {entry["ar"]: entry for entry in description["axi_reads"]}
        self.drivers = {name: StreamDriver(streams[name], source) for name, source in spec.sources.items()}
        self.sinks = {
            name: StreamSink(name, streams[name], sink, self.violations) for name, sink in spec.sinks.items()
        }
        self.memories = {
            name: AxiReadMemory(name, wires, masters[name], memory, self.violations)
            for name, memory in spec.memories.items()
        }
        self.banks = [Banks(name, wires, banks, self.violations) for name, banks in spec.banks.items()]
        self.probes: dict[str, list[tuple[int, int]]] = {name: [] for name in spec.probes}
        self.reads: list[int] = []
        self.now = 0  # cycles since reset
        self.zero = 0  # of these before cycle 0
        self._running = False
        self._writes = deque(sorted(spec.writes, key=lambda write: write[0]))

    @property
    def cycle(self) -> int:
        """The cycle that the next edge ends."""
        return self.now - self.zero

    async def run(self) -> BenchResult:
        """Reset, prologue, streams, epilogue."""
        started = perf_counter()
        await self._reset()
        timeout = await self._steps("prologue", self.spec.prologue)
        self.zero = self.now
        zero_ns = int(get_sim_time("ns"))
        cycles = 0
        if timeout is None:
            cycles, timeout = await self._streams()
        if timeout is None:
            timeout = await self._steps("epilogue", self.spec.epilogue)
        seconds = perf_counter() - started
        return BenchResult(
            cycles=cycles,
            since_reset=self.zero,
            streams={name: stream.trace() for name, stream in {**self.drivers, **self.sinks}.items()},
            memories={name: memory.trace(self.zero) for name, memory in self.memories.items()},
            probes={name: _probe(seen) for name, seen in self.probes.items()},
            reads=self.reads,
            timeout=timeout,
            violations=self.violations.texts,
            cycles_per_second=(self.spec.reset_cycles + self.now) / seconds,
            zero_ns=zero_ns,
            waiting={name: np.array(sink.waiting, dtype=np.int64) for name, sink in self.sinks.items()},
        )

    async def _reset(self) -> None:
        for port in self.wires.inputs:
            self.wires.set(port, self.spec.statics.get(port, 0))
        self.wires.set("aresetn", 0)
        for _ in range(self.spec.reset_cycles):
            await RisingEdge(self.dut.aclk)
        self.wires.set("aresetn", 1)

    async def _tick(self) -> None:
        """Do a cycle: drive what it carries, sample at the edge that ends it."""
        self.violations.cycle, self.violations.running = self.cycle, self._running
        if self._running:
            while self._writes and self._writes[0][0] <= self.cycle:
                _, port, value = self._writes.popleft()
                self.wires.set(port, value)
            for stream in (*self.drivers.values(), *self.sinks.values()):
                stream.drive(self.cycle)
        for memory in self.memories.values():
            memory.drive(self.now, self.cycle if self._running else None)
        for banks in self.banks:
            banks.drive(self.now)
        await RisingEdge(self.dut.aclk)
        for driver in self.drivers.values():
            driver.sample(self.cycle)
        for sink in self.sinks.values():
            sink.sample(self.cycle)
        for memory in self.memories.values():
            memory.sample(self.now)
        for banks in self.banks:
            banks.sample(self.now)
        if self._running:
            for name, seen in self.probes.items():
                if value := self.wires.get(name):
                    seen.append((self.cycle, value))
        self.now += 1

    async def _streams(self) -> tuple[int, str | None]:
        """Run the streams; return the cycles up to the last wanted transfer, and what was missing."""
        spec = self.spec
        streams = (*self.drivers.values(), *self.sinks.values())
        finished = None
        reached = spec.until is None
        self._running = True
        while self.cycle != spec.stop_cycle:
            if finished is None and reached and all(stream.done for stream in streams):
                finished = self.cycle
            if finished is not None and self.cycle >= finished + spec.settle:
                break
            if finished is None and self.cycle >= spec.max_cycles:
                self._running = False
                return self.cycle, self._missing()
            await self._tick()
            reached = reached or bool(self.wires.get(str(spec.until)))
        self._running = False
        for stream in streams:
            stream.stop()
        return self.cycle if finished is None else finished, None

    async def _steps(self, when: str, steps: Sequence[Step]) -> str | None:
        """Do register steps; return the one that timed out, as a sentence."""
        for index, step in enumerate(steps):
            former = {port: self.wires.driven(port) for port in step.values}
            for port, value in step.values.items():
                self.wires.set(port, value)
            await self._tick()
            met = not isinstance(step, Wait)
            for _ in range(step.timeout if isinstance(step, Wait) else 0):
                await self._tick()
                met = self.wires.get(step.port) & step.mask == step.value & step.mask
                if met:
                    break
            for port, value in former.items():
                self.wires.set(port, value)
            if isinstance(step, Read):
                await self._tick()
                self.reads.append(self.wires.get(step.port))
            if isinstance(step, Wait) and not met:
                test = f"{step.port} & {step.mask:#x} == {step.value:#x}"
                return f"{when} step {index}: {test} not within {step.timeout} cycles"
        return None

    def _missing(self) -> str:
        missing = [
            f"{name} has {len(driver.payloads) - len(driver.cycles)} beats to send"
            for name, driver in self.drivers.items()
            if not driver.done
        ]
        missing += [
            f"{name} lacks {(sink.count or 0) - len(sink.cycles)} of {sink.count} beats"
            for name, sink in self.sinks.items()
            if not sink.done
        ]
        missing = missing or [f"{self.spec.until} stayed 0"]
        return f"not finished after {self.cycle} cycles: {', '.join(missing)}"


async def run_phases(
    dut: Any, description: Mapping[str, Any], phases: Sequence[RunSpec]
) -> list[BenchResult]:
    """Start the clock and run ``phases``, each from a reset."""
    wires = Wires(dut, description["ports"])
    Clock(dut.aclk, CLOCK_NS, unit="ns").start(start_high=False)
    return [await Phase(dut, wires, description, spec).run() for spec in phases]


def _pattern(name: str, ready: Any) -> list[bool]:
    pattern = [True] if ready is None else [bool(value) for value in np.asarray(ready)]
    if not any(pattern):
        raise ValueError(f"{name}: ready pattern is never ready")
    return pattern


def _repeated(values: Any) -> list[int]:
    return [0] if values is None or not np.size(values) else [int(value) for value in np.asarray(values)]


def _integers(payloads: Any) -> list[int]:
    """Return payloads, integers or rows of words, lowest first, as integers."""
    if isinstance(payloads, np.ndarray) and payloads.ndim == 2:
        rows = np.ascontiguousarray(payloads, dtype="<u8")
        return [int.from_bytes(row.tobytes(), "little") for row in rows]
    return [int(value) for value in payloads]


def _trace(cycles: Sequence[int], payloads: Sequence[int], bits: int) -> Trace:
    words = (bits + 63) // 64
    raw = b"".join(payload.to_bytes(8 * words, "little") for payload in payloads)
    return Trace(np.array(cycles, dtype=np.int64), np.frombuffer(raw, dtype="<u8").reshape(-1, words))


def _probe(seen: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([cycle for cycle, _ in seen], dtype=np.int64),
        np.array([value for _, value in seen], dtype=np.uint64),
    )
