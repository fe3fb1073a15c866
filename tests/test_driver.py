"""The driver: sequences as docs/axi.md has them, a memory map, and what it refuses to wait for."""

from __future__ import annotations

import errno
import mmap
import re
import stat
from collections import deque
from pathlib import Path

import pytest

from golden.weights import random_weights
from sim.driver import Access, BusError, Driver, DriverError, MappedMemory, MappedRegisters, Packet
from sim.pack import pack, read_pack
from spec.registers import (
    BUS_REGISTERS,
    BUS_VERSION,
    ECC_COUNTERS,
    IDENTITY,
    Top,
    counter_address,
    field_of,
    register_map,
)
from tests.bench.axi_cores import CORES

PAGE = (Path(__file__).parent.parent / "docs" / "axi.md").read_text()
NAMES = {register.address: register.name for register in register_map(Top.FPGA)}
ADDRESSES = {name: address for address, name in NAMES.items()}


class Recorder:
    """Registers that answer what they are told to, and note each access; waits take three reads."""

    def __init__(self, **values: int) -> None:
        self.accesses: list[tuple[str, str, int]] = []
        self.values = {"IDENTITY": IDENTITY, "BUS_ID": BUS_VERSION, **values}
        self.later: dict[str, deque[int]] = {}
        self.memory: dict[int, bytes] = {}

    def read32(self, address: int) -> int:
        name = NAMES[address]
        queue = self.later.get(name)
        value = queue.popleft() if queue else self.values.get(name, 0)
        if self.accesses[-1:] != [("read", name, 0)]:
            self.accesses.append(("read", name, 0))
        return value

    def write32(self, address: int, value: int) -> None:
        self.accesses.append(("write", NAMES[address], value))

    def write(self, address: int, content: bytes) -> None:
        self.memory[address] = content

    def send(self, beats) -> None:
        self.sent = list(beats)

    def receive(self) -> Packet:
        return Packet(self.sent, [0] * len(self.sent))


def documented(section: str) -> list[tuple[str, str]]:
    """Return the accesses of a table of the page."""
    table = re.search(rf"<!-- {section} -->\n(.*?)<!-- /{section} -->", PAGE, re.DOTALL)[1]
    return [
        (access, name) for access, name in re.findall(r"^\| \d \| (\w+) \| (\w+) \|", table, re.MULTILINE)
    ]


def test_the_page_has_the_sequence_that_starts():
    port = Recorder()
    port.later["STATUS"] = deque([0, 2, 1])
    driver = Driver(port, port)
    assert driver.identify() is Top.FPGA
    driver.load(0x5000, b"image")
    assert [(access, name) for access, name, _ in port.accesses] == documented("start")
    assert port.accesses[2:6] == [
        ("write", "IMAGE_PAGE", 5),
        ("write", "CAPACITY", 0),
        ("write", "POLICY", 0),
        ("write", "CONTROL", 3),
    ]
    assert port.memory == {0x5000: b"image"}


@pytest.mark.parametrize(("how", "word"), [({}, 1), ({"discard_rest": True}, 3)])
def test_the_page_has_the_sequence_that_recovers(how, word):
    port = Recorder(ERRORS=1)
    busy = field_of(BUS_REGISTERS, "BUS_STATUS", "busy").mask
    recovering = field_of(BUS_REGISTERS, "BUS_STATUS", "recovering").mask
    port.later["BUS_STATUS"] = deque([busy, busy, 0, recovering, recovering, 0])
    driver = Driver(port)
    assert driver.errors() == {"short_token"}
    driver.wait_until_drained()
    driver.recover(**how)
    assert [(access, name) for access, name, _ in port.accesses] == documented("recover")
    assert [value for access, _, value in port.accesses if access == "write"] == [word, 7]
    assert not port.later["BUS_STATUS"]


def test_another_sequence_is_seen():
    port = Recorder(STATUS=1)
    driver = Driver(port, port)
    driver.identify()
    driver.configure(reversed(list(driver.start(0))))
    assert [(access, name) for access, name, _ in port.accesses] != documented("start")


def test_a_packed_layer_is_loaded(tmp_path):
    model, design, _ = CORES[Top.FPGA]
    weights = random_weights(model, 1)
    pack(model, design, lambda _experts: weights, tmp_path, batch_lengths=[3], address=0x7000)
    port = Recorder(STATUS=1)
    Driver(port, port).load_pack(read_pack(tmp_path))
    assert port.memory == {0x7000: (tmp_path / "image.bin").read_bytes()}
    assert ("write", "IMAGE_PAGE", 7) in port.accesses
    assert port.accesses.index(("write", "IMAGE_PAGE", 7)) < port.accesses.index(("read", "STATUS", 0))


def test_interrupts_counters_and_batches():
    port = Recorder(IRQ_STATUS=0b011, CYCLES_LOW=7, CYCLES_HIGH=1)
    driver = Driver(port, port, port)
    driver.enable_interrupts("done", "loaded")
    assert driver.acknowledge() == {"done", "error"}
    assert port.accesses == [
        ("write", "IRQ_ENABLE", 0b101),
        ("read", "IRQ_STATUS", 0),
        ("write", "IRQ_STATUS", 0b011),
    ]
    counters = driver.counters()
    assert counters["cycles"] == (1 << 32) + 7
    assert not counters.keys() & ECC_COUNTERS.keys()
    assert driver.batch([1, 2]) == Packet([1, 2], [0, 0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"IDENTITY": 5}, "IDENTITY must be 0x45423031, not 0x00000005"),
        ({"BUS_ID": 9}, f"BUS_ID.version must be {BUS_VERSION}, not 9"),
        ({"BUS_ID": BUS_VERSION | 7 << 8}, "BUS_ID.top must be below 4, not 7"),
    ],
)
def test_what_is_not_known_is_refused(values, message):
    with pytest.raises(DriverError, match=rf"\A{re.escape(message)}\Z"):
        Driver(Recorder(**values)).identify()


def test_what_does_not_come_is_told():
    message = "0x008 & 0x1 must become 0x1, but was 0x0 4 times"
    with pytest.raises(DriverError, match=rf"\A{message}\Z"):
        Driver(Recorder(), attempts=4).configure([Access("wait", 8, 1, 1)])
    with pytest.raises(DriverError, match=r"\Ahas no memory to write an image to\Z"):
        Driver(Recorder()).load(0, b"")
    with pytest.raises(DriverError, match=r"\Ahas no streams to send a batch through\Z"):
        Driver(Recorder()).batch([])
    assert str(BusError(0x118, 2, write=True)) == "write to 0x118 was answered with SLVERR"
    assert str(BusError(0x3C, 3, write=False)) == "read of 0x03C was answered with DECERR"


def test_through_a_memory_map(tmp_path):
    """A file of 4 KiB stands for the port: 32-bit words, lowest byte first, at their addresses."""
    file = tmp_path / "port"
    content = bytearray(8192)
    content[4096:4100] = IDENTITY.to_bytes(4, "little")
    content[4096 + 0x100 : 4096 + 0x104] = (BUS_VERSION | 1 << 8 | 1 << 13).to_bytes(4, "little")
    address = 4096 + counter_address("corrected")
    content[address : address + 4] = (3).to_bytes(4, "little")
    file.write_bytes(content)
    with MappedRegisters(file, 4096) as registers:
        driver = Driver(registers)
        assert driver.identify() is Top.PIM
        assert driver.counters()["corrected"] == 3
        driver.write("BATCH_TOKENS", 0x01020304)
        assert driver.read("BATCH_TOKENS") == 0x01020304
    place = 4096 + ADDRESSES["BATCH_TOKENS"]
    assert file.read_bytes()[place : place + 4] == bytes([4, 3, 2, 1])
    memory = MappedMemory(file, 4096)
    memory.write(100, b"weights")
    assert file.read_bytes()[4196:4203] == b"weights"


def test_a_device_is_not_flushed(tmp_path, monkeypatch):
    """Linux refuses to flush a map of /dev/mem: EINVAL."""

    class Device(mmap.mmap):
        def flush(self, *_args):
            raise OSError(errno.EINVAL, "Invalid argument")

    file = tmp_path / "port"
    file.write_bytes(bytes(8192))
    monkeypatch.setattr("sim.driver.mmap.mmap", Device)
    with pytest.raises(OSError, match="Invalid argument"):
        MappedMemory(file).write(100, b"weights")
    monkeypatch.setattr("sim.driver.stat.S_ISREG", stat.S_ISCHR)
    MappedMemory(file).write(4096, b"weights")
    assert file.read_bytes()[4096:4103] == b"weights"
