"""Driver of the tops with AXI ports: the sequences of register accesses, over whatever carries them.

The driver knows registers, not buses. It talks through three small interfaces, which a bench implements
over simulated AXI and a board over a memory map and a DMA engine::

    driver = Driver(MappedRegisters("/dev/uio0"), memory, streams)
    driver.identify()
    driver.load_pack(read_pack("packed"))
    outputs = driver.batch(beats)

The sequences are those of ``docs/axi.md``, which is enough to write them in another language;
``tests/test_driver.py`` holds the two equal.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from spec.registers import (
    BUS_REGISTERS,
    BUS_VERSION,
    COUNTERS,
    ECC_COUNTERS,
    IDENTITY,
    Register,
    Top,
    counter_address,
    field_of,
    register_map,
    top_counters,
)

if TYPE_CHECKING:
    from sim.pack import Packed

ATTEMPTS = 1_000_000
"""Reads of a register that is waited for."""


class BusError(Exception):
    """A register access that was answered with an error."""

    def __init__(self, address: int, response: int, *, write: bool) -> None:
        self.address, self.response, self.write = address, response, write
        super().__init__(
            f"{'write to' if write else 'read of'} 0x{address:03X} was answered with"
            f" {RESPONSES.get(response, response)}"
        )


class DriverError(Exception):
    """What the hardware said, or did not say in time."""


RESPONSES = {1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}


class Registers(Protocol):
    """32-bit accesses to the AXI4-Lite port, one after the other; :class:`BusError` where one is refused."""

    def read32(self, address: int) -> int:
        """Return a register."""

    def write32(self, address: int, value: int) -> None:
        """Write a register, and return when it is written."""


class Memory(Protocol):
    """What the AXI4 read master sees."""

    def write(self, address: int, content: bytes) -> None:
        """Write bytes that the read master sees from then on."""


class Streams(Protocol):
    """The stream ports: a packet of beats in, a packet out. Payloads are unsigned integers."""

    def send(self, beats: Sequence[int]) -> None:
        """Send a packet; may return before it is taken."""

    def receive(self) -> Packet:
        """Return the next packet, and wait for it."""


@dataclass(frozen=True)
class Packet:
    """An output packet; ``marks``: ``m_axis_tuser`` of each beat, set where it may be wrong."""

    beats: list[int]
    marks: list[int]


class Step(Protocol):
    """What a register is told: ``op`` is ``write``, or ``wait`` until its bits ``mask`` are ``value``."""

    @property
    def op(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def mask(self) -> int | None: ...


@dataclass(frozen=True)
class Access:
    """A :class:`Step`."""

    op: str
    address: int
    value: int
    mask: int | None = None


class Driver:
    """A top with AXI ports, by its registers.

    Parameters
    ----------
    registers, memory, streams : how to reach it; ``memory`` and ``streams`` only where they are used.
    attempts : reads of a register that is waited for before :class:`DriverError`.
    """

    def __init__(
        self,
        registers: Registers,
        memory: Memory | None = None,
        streams: Streams | None = None,
        *,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.registers = registers
        self.memory = memory
        self.streams = streams
        self.attempts = attempts
        self.top = Top.FPGA
        self.int8 = self.secded = False

    def identify(self) -> Top:
        """Return which top this is; raises :class:`DriverError` if it is none that this driver knows."""
        identity = self.read("IDENTITY")
        if identity != IDENTITY:
            raise DriverError(f"IDENTITY must be 0x{IDENTITY:08X}, not 0x{identity:08X}")
        found = self.read_fields("BUS_ID")
        if found["version"] != BUS_VERSION:
            raise DriverError(f"BUS_ID.version must be {BUS_VERSION}, not {found['version']}")
        if found["top"] >= len(Top):
            raise DriverError(f"BUS_ID.top must be below {len(Top)}, not {found['top']}")
        self.top = list(Top)[found["top"]]
        self.int8, self.secded = bool(found["int8"]), bool(found["secded"])
        return self.top

    def configure(self, steps: Iterable[Step]) -> None:
        """Do register steps in order: those of a map that ``expertbank pack`` wrote, or :meth:`start`."""
        for step in steps:
            if step.op == "write":
                self.registers.write32(step.address, step.value)
            else:
                self._wait(step.address, 0xFFFF_FFFF if step.mask is None else step.mask, step.value)

    def load(self, address: int, image: bytes, steps: Iterable[Step] | None = None) -> None:
        """Write a weight image to memory, then configure: by default :meth:`start` of its page."""
        if self.memory is None:
            raise DriverError("has no memory to write an image to")
        self.memory.write(address, image)
        self.configure(self.start(address) if steps is None else steps)

    def load_pack(self, packed: Packed) -> None:
        """Load what ``expertbank pack`` wrote: the image behind the read master, then the register steps.

        Storage of a near-memory design's channels is not behind this port: whoever has it fills it first.
        """
        for entry in packed.map.files:
            if entry.memory == "m_axi":
                self.load(entry.address, packed.image(entry.memory).tobytes(), ())
        self.configure(packed.map.registers)

    def start(self, address: int, capacity: int = 0, policy: int = 0) -> Iterator[Access]:
        """Yield the steps that make a bf16 top ready for tokens: its page, its limits, the router loaded."""
        available = {register.name: register for register in register_map(self.top)}
        values = {"IMAGE_PAGE": address >> 12, "CAPACITY": capacity, "POLICY": policy}
        for name, value in values.items():
            if name in available:
                yield Access("write", available[name].address, value)
        control, status = available["CONTROL"], available["STATUS"]
        fields = {field.name: field.mask for field in (*control.fields, *status.fields)}
        yield Access("write", control.address, fields["load"] | fields["clear"])
        yield Access("wait", status.address, fields["loaded"], fields["loaded"])

    def batch(self, beats: Sequence[int]) -> Packet:
        """Send a batch of tokens and return its outputs, which may hold marks: see :meth:`errors`."""
        if self.streams is None:
            raise DriverError("has no streams to send a batch through")
        self.streams.send(beats)
        return self.streams.receive()

    def errors(self) -> set[str]:
        """Return the fields of ERRORS that are set."""
        return {name for name, value in self.read_fields("ERRORS").items() if value}

    def failed_read(self) -> int:
        """Return the address of the first beat that was read with an error."""
        return self.read("ERROR_READ_LOW") | self.read("ERROR_READ_HIGH") << 32

    def wait_until_drained(self) -> None:
        """Wait until every token that was taken has come out."""
        busy = field_of(BUS_REGISTERS, "BUS_STATUS", "busy").mask
        self._wait(self._address("BUS_STATUS"), busy, 0)

    def recover(self, *, discard_rest: bool = False) -> None:
        """Reset the core and clear ERRORS; afterwards the same steps as after power-up are due.

        Call :meth:`wait_until_drained` first where what is inside is wanted, and go on taking output packets:
        one that is cut is closed. ``discard_rest``: the source of an input packet that is open
        (BUS_STATUS.packet_open) will still send the rest of it, which is then thrown away; without it, it
        must have been reset, and send nothing until this returns.
        """
        word = field_of(BUS_REGISTERS, "BUS_CONTROL", "recover").mask
        if discard_rest:
            word |= field_of(BUS_REGISTERS, "BUS_CONTROL", "discard_rest").mask
        self.registers.write32(self._address("BUS_CONTROL"), word)
        recovering = field_of(BUS_REGISTERS, "BUS_STATUS", "recovering").mask
        self._wait(self._address("BUS_STATUS"), recovering, 0)
        events = sum(field.mask for field in self._register("IRQ_STATUS").fields)
        self.registers.write32(self._address("IRQ_STATUS"), events)

    def enable_interrupts(self, *names: str) -> None:
        """Let these events (``done``, ``error``, ``loaded``), and no others, raise ``irq``."""
        word = sum(field_of(BUS_REGISTERS, "IRQ_ENABLE", name).mask for name in names)
        self.registers.write32(self._address("IRQ_ENABLE"), word)

    def acknowledge(self) -> set[str]:
        """Return which events happened, and clear these."""
        word = self.read("IRQ_STATUS")
        self.registers.write32(self._address("IRQ_STATUS"), word)
        return {field.name for field in self._register("IRQ_STATUS").fields if word & field.mask}

    def counters(self) -> dict[str, int]:
        """Return the performance counters of this top; read them while nothing runs."""
        found = {}
        for name in (*COUNTERS, *ECC_COUNTERS):
            if name in top_counters(self.top, secded=self.secded):
                address = counter_address(name)
                low, high = self.registers.read32(address), self.registers.read32(address + 4)
                found[name] = low | high << 32
        return found

    def read(self, name: str) -> int:
        """Return a register by its name."""
        return self.registers.read32(self._address(name))

    def write(self, name: str, value: int) -> None:
        """Write a register by its name."""
        self.registers.write32(self._address(name), value)

    def read_fields(self, name: str) -> dict[str, int]:
        """Return a register's fields by their names."""
        word = self.read(name)
        return {field.name: (word & field.mask) >> field.low for field in self._register(name).fields}

    def _register(self, name: str) -> Register:
        return next(register for register in register_map(self.top, int8=self.int8) if register.name == name)

    def _address(self, name: str) -> int:
        return self._register(name).address

    def _wait(self, address: int, mask: int, value: int) -> None:
        word = 0
        for _ in range(self.attempts):
            word = self.registers.read32(address)
            if word & mask == value:
                return
        raise DriverError(
            f"0x{address:03X} & 0x{mask:X} must become 0x{value:X}, but was 0x{word & mask:X}"
            f" {self.attempts} times"
        )


class MappedRegisters:
    """Registers through a memory map: a UIO device, or /dev/mem from ``offset`` on.

    A refused access is a bus error of the processor there (on Linux SIGBUS), not :class:`BusError`.
    """

    SIZE = 1 << 12

    def __init__(self, path: Path | str, offset: int = 0) -> None:
        handle = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            self._map = mmap.mmap(handle, self.SIZE, offset=offset)
        finally:
            os.close(handle)
        # Elements of a view are read and written whole, as the registers need it.
        self._words = memoryview(self._map).cast("I")

    def read32(self, address: int) -> int:
        """Return a register."""
        return self._words[address // 4]

    def write32(self, address: int, value: int) -> None:
        """Write a register."""
        self._words[address // 4] = value

    def close(self) -> None:
        """Give the map back."""
        self._words.release()
        self._map.close()

    def __enter__(self) -> MappedRegisters:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class MappedMemory:
    """Memory that the read master sees, through a memory map: ``base`` is where its address 0 lies."""

    def __init__(self, path: Path | str, base: int = 0) -> None:
        self.path, self.base = path, base

    def write(self, address: int, content: bytes) -> None:
        """Write bytes; they are in memory when this returns.

        A device (``/dev/mem``, a UIO map) is written through, as ``O_SYNC`` asks: it has nothing to flush,
        and Linux refuses to.
        """
        with self._mapped(self.base + address, len(content)) as (memory, start):
            memory[start : start + len(content)] = content
            if stat.S_ISREG(Path(self.path).stat().st_mode):
                memory.flush()

    @contextmanager
    def _mapped(self, address: int, size: int) -> Iterator[tuple[mmap.mmap, int]]:
        start = address % mmap.ALLOCATIONGRANULARITY
        handle = os.open(self.path, os.O_RDWR | os.O_SYNC)
        try:
            memory = mmap.mmap(handle, start + size, offset=address - start)
        finally:
            os.close(handle)
        with memory:
            yield memory, start
