"""The bench's own checks: each rule broken once, without a simulator."""

from __future__ import annotations

import numpy as np
import pytest

from sim.rtlsim import ReadMemory, RunResult, RunSpec, Sink, Source
from tests.bench.bfm import AxiReadMemory, StreamDriver, StreamPorts, StreamSink, Violations
from tests.bench.scenarios import Scenario

STREAM = {"prefix": "s", "data_bits": 13, "last": True}
MASTER = {"prefix": "m_axi", "data_bits": 64}
BEATS = 4


class FakeWires:
    """Ports that are mere numbers."""

    def __init__(self, **values: int) -> None:
        self.values = values

    def get(self, port: str) -> int:
        return self.values[port]

    def set(self, port: str, value: int) -> None:
        self.values[port] = value


def sink_seeing(offers, *, ready=None, count=None):
    """Return what a sink notes of (valid, tdata, tlast) in each cycle, and its violations."""
    violations = Violations(running=True)
    wires = FakeWires()
    sink = StreamSink("o", StreamPorts(wires, STREAM), Sink(count, ready), violations)
    for cycle, (valid, payload, last) in enumerate(offers):
        violations.cycle = cycle
        sink.drive(cycle)
        wires.values |= {"s_tvalid": valid, "s_tdata": payload, "s_tlast": last}
        sink.sample(cycle)
    return sink, violations.texts


def test_sink_notes_what_it_takes():
    sink, violations = sink_seeing([(1, 5, 0), (1, 5, 0), (0, 7, 1), (1, 6, 1)], ready=[0, 1], count=2)
    assert (sink.cycles, sink.payloads, violations) == ([1, 3], [5, 6 | 1 << 13], [])
    assert sink.done


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ((0, 5, 0), "valid fell before the beat was taken"),
        ((1, 6, 0), "payload changed before the beat was taken"),
        ((1, 5, 1), "payload changed before the beat was taken"),
    ],
)
def test_broken_stream_rules_are_named(second, what):
    assert sink_seeing([(1, 5, 0), second], ready=[0, 1])[1] == [f"o: {what} in cycle 1"]
    assert sink_seeing([(1, 5, 0), second])[1] == []


def test_extra_beat_is_named():
    assert sink_seeing([(1, 5, 0), (1, 6, 0)], count=1)[1] == ["o: extra beat in cycle 1"]


def test_driver_keeps_a_beat_until_it_is_taken():
    wires = FakeWires(s_tready=0)
    driver = StreamDriver(StreamPorts(wires, STREAM), Source([5, 6 | 1 << 13], [1, 1]))
    seen = []
    for cycle, ready in enumerate([1, 0, 1, 0, 1, 1]):
        driver.drive(cycle)
        wires.set("s_tready", ready)
        seen.append((wires.get("s_tvalid"), wires.values.get("s_tdata"), wires.values.get("s_tlast")))
        driver.sample(cycle)
    assert seen[:5] == [(0, None, None), (1, 5, 0), (1, 5, 0), (1, 6, 1), (1, 6, 1)]
    assert seen[5][0] == 0
    assert driver.cycles == [2, 4]


def memory_run(memory: ReadMemory, addresses: list[int], cycles: int = 300):
    """Ask for bursts as fast as the memory accepts them; return it and its violations."""
    violations = Violations(running=True)
    wires = FakeWires(m_axi_rready=1, m_axi_arlen=BEATS - 1)
    model = AxiReadMemory("o_ar", wires, MASTER, memory, violations)
    data = []
    for cycle in range(cycles):
        violations.cycle = cycle
        model.drive(cycle, cycle)
        asked = len(model.ar_cycles)
        wires.set("m_axi_arvalid", int(asked < len(addresses)))
        wires.set("m_axi_araddr", addresses[min(asked, len(addresses) - 1)])
        taken = wires.get("m_axi_rvalid")
        if taken:
            data.append(tuple(wires.get(f"m_axi_r{port}") for port in ("data", "last", "resp")))
        model.sample(cycle)
    return model, data, violations.texts


@pytest.mark.parametrize("outstanding", [2, 256])
@pytest.mark.parametrize(("extra", "gaps", "ready"), [(None, None, None), ([0, 30], [1, 0, 0, 2], [0, 1, 1])])
def test_memory_has_the_latency_it_should(outstanding, extra, gaps, ready):
    image = np.random.default_rng(5).integers(0, 256, 4096, dtype=np.uint8)
    asked = [64, 0, 32, 512, 4064]
    memory = ReadMemory(image, 7, outstanding, extra, gaps, ready, responses=[0, 2, 3])
    model, data, violations = memory_run(memory, asked)
    assert violations == []
    # The same rules, naively: an address waits for a free place; a beat for its burst and the one before.
    addresses, beats, ends = [], [], []
    free_at = 0
    for burst in range(len(asked)):
        cycle = addresses[-1] + 1 if addresses else 0
        if burst >= outstanding:
            cycle = max(cycle, ends[burst - outstanding] + 1)
        while ready and not ready[cycle % len(ready)]:
            cycle += 1
        addresses.append(cycle)
        due = cycle + 7 + (extra[burst % len(extra)] if extra else 0)
        for _ in range(BEATS):
            beats.append(max(due, free_at))
            free_at = beats[-1] + 1 + (gaps[(len(beats) - 1) % len(gaps)] if gaps else 0)
        ends.append(beats[-1])
    assert (model.ar_cycles, model.r_cycles, model.ar_addrs) == (addresses, beats, asked)
    words = [image[start : start + 8 * BEATS].view("<u8") for start in asked]
    assert data == [
        (int(word), int(n % BEATS == BEATS - 1), (0, 2, 3)[n % 3])
        for n, word in enumerate(np.concatenate(words))
    ]


def test_memory_begins_at_its_base():
    image = np.random.default_rng(6).integers(0, 256, 4096, dtype=np.uint8)
    data = memory_run(ReadMemory(image, base=(1 << 39) + 8 * BEATS), [1 << 39, (1 << 39) + 8 * BEATS])[1]
    assert [word for word, _, _ in data] == [0] * BEATS + image[: 8 * BEATS].view("<u8").tolist()


@pytest.mark.parametrize(
    ("address", "violation"),
    [
        (4, "unaligned burst in cycle 0"),
        (4096 - 8, "burst across 4 KiB in cycle 0"),
        (8192 - 24, "burst across 4 KiB in cycle 0"),
        (8192, "read beyond the memory image in cycle 1"),
    ],
)
def test_bad_bursts_are_named(address, violation):
    violations = memory_run(ReadMemory(np.zeros(8192, dtype=np.uint8)), [address])[2]
    assert violations[0] == f"o_ar: {violation}"


def test_address_that_changes_is_named():
    violations = Violations(running=True)
    wires = FakeWires(m_axi_rready=1, m_axi_arlen=0, m_axi_arvalid=1)
    memory = ReadMemory(np.zeros(64, dtype=np.uint8), ready=[0, 1])
    model = AxiReadMemory("o_ar", wires, MASTER, memory, violations)
    for cycle, address in enumerate((8, 16)):
        violations.cycle = cycle
        model.drive(cycle, cycle)
        wires.set("m_axi_araddr", address)
        model.sample(cycle)
    assert violations.texts == ["o_ar: payload changed before the beat was taken in cycle 1"]


def test_wrong_reads_and_broken_rules_are_problems():
    result = RunResult(
        cycles=9,
        since_reset=0,
        streams={},
        memories={},
        probes={},
        reads=[7, 8],
        timeout="not finished",
        violations=["o: extra beat"],
        cycles_per_second=1.0,
        zero_ns=0,
    )
    scenario = Scenario("x", RunSpec(), reads={"a": 7, "b": 9})
    assert scenario.problems(result) == ["o: extra beat", "not finished", "b: 8 read, 9 expected"]


def test_what_breaks_outside_the_run_says_so():
    violations = Violations()
    violations.add("o", "extra beat")
    assert violations.texts == ["o: extra beat in cycle 0 (outside the run)"]
