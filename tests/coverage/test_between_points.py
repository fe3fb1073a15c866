"""Corners of what lies between blocks can be missed: each by a run that could be called so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rtl.gemv.layouts import ColumnKind, RowKind
from sim.rtlsim import RunSpec, Sink, Source, Trace, reg_write
from spec.registers import PROBE, REGISTERS, counter_address
from tests.bench import test_merge_bench as merge
from tests.bench.scenarios import Scenario, Traffic
from tests.coverage.between_points import (
    FPGA_LAYER_POINTS,
    REGISTER_POINTS,
    RESET,
    crossing_points,
    logs_met,
    merge_points,
    pim_layer_points,
    program_points,
)
from tests.coverage.test_coverage import ideal

MERGE, CROSSING = merge_points(merge.NUM_INPUTS), crossing_points(2)


def merged(counts: list[int], *, apart: int = 1) -> Scenario:
    return merge.scenario("", counts, Traffic("none", "none", np.random.default_rng(1)), apart=apart)


@pytest.mark.parametrize(
    ("point", "meeting", "missing"),
    [
        ("all inputs offer and one is taken", [9, 9, 9, 9, 9], [9, 9, 9, 9, 0]),
        ("each input in its turn, and the first again", [2, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        ("one input alone, eight beats without a gap", [0, 0, 8, 0, 0], [0, 1, 8, 0, 0]),
        ("an input that has none", [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]),
        ("eight beats out without a gap", [2, 2, 2, 2, 2], [2, 2, 2, 1, 0]),
    ],
)
def test_merger(point, meeting, missing):
    seen = MERGE[point]
    met, missed = merged(meeting), merged(missing)
    assert seen(met, ideal(met))
    assert not seen(missed, ideal(missed))


def test_a_reset_of_the_merger_is_in_mid_work_where_a_beat_is_inside():
    whole, seen = merged([3, 0, 0, 0, 0]), MERGE[RESET]
    first, out = (int(np.asarray(whole.ports[port].cycles)[n]) for port, n in (("i_0", 0), ("o", -1)))

    def at(stop: int) -> bool:
        cut = replace(whole, spec=replace(whole.spec, stop_cycle=stop))
        return seen(cut, ideal(cut))

    assert not seen(whole, ideal(whole))
    assert at(first + 1) and at(out)
    assert not at(out + 1)


# Edges of both clocks, valid and ready of the writer and of the reader, the reader's reset.
BOTH = (1, 1, 1, 1, 1, 1, 1)
WRITE, READ = (1, 0, 1, 1, 0, 0, 1), (0, 1, 0, 1, 1, 1, 1)
FULL, EMPTY, HELD = (1, 0, 1, 0, 1, 0, 1), (0, 1, 0, 1, 0, 1, 1), (0, 1, 0, 1, 1, 0, 1)
EARLY = (1, 0, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("point", "meeting", "missing"),
    [
        ("full: a beat waits", [WRITE, WRITE, FULL], [WRITE, WRITE]),
        ("as many beats inside as there is room for", [WRITE, WRITE], [WRITE, READ, WRITE]),
        ("written again after it was full", [WRITE, WRITE, READ, WRITE], [WRITE, READ, WRITE, WRITE]),
        ("the reader waits for a beat", [EMPTY], [READ, WRITE]),
        ("empty after beats", [WRITE, READ], [WRITE, WRITE, READ]),
        ("output stalled", [WRITE, HELD], [WRITE, EMPTY]),
        (
            "both clocks rise in one moment and a beat moves on either side",
            [WRITE, BOTH],
            [WRITE, READ, (1, 1, 1, 1, 0, 1, 1)],
        ),
        ("more beats than there are places: counts go round", [WRITE, READ] * 5, [WRITE, READ] * 4),
        ("written while the reader is in its reset", [EARLY], [WRITE]),
        (RESET, [WRITE], [WRITE, READ]),
    ],
)
def test_crossing(point, meeting, missing):
    names = ("write", "read", "write_valid", "write_ready", "read_valid", "read_ready", "read_runs")
    logs = [dict(zip(names, np.array(rows).T, strict=True)) for rows in (meeting, missing)]
    # Behind the last run there is no reset.
    assert logs_met({point: CROSSING[point]}, [logs[0], logs[0]])[point] == 1 + (point != RESET)
    assert logs_met({point: CROSSING[point]}, [logs[1], logs[1]])[point] == 0


def accessed(*accesses: tuple[int, int | None, int]) -> dict[str, np.ndarray]:
    """Return a log of accesses: address, what is written, what is shown a cycle later."""
    rows = [(address, data or 0, data is not None) for address, data, _ in accesses]
    log = dict(zip(("reg_addr", "reg_wdata", "reg_we"), np.array([*rows, (0, 0, 0)]).T, strict=True))
    log["reg_rdata"] = np.array([0, *(shown for *_, shown in accesses)])
    # A pulse comes in the cycle after the write.
    at = log["reg_addr"] == REGISTERS["CONTROL"]
    pulses = {name: np.where(at, log["reg_wdata"] >> n & 1, 0) for n, name in enumerate(("load", "clear"))}
    return {**log, **{name: np.concatenate([[0], pulse[:-1]]) for name, pulse in pulses.items()}}


HIGH = counter_address("cycles") + 4
CLEAR, CAPACITY = (REGISTERS["CONTROL"], 2, 0), REGISTERS["CAPACITY"]
KEPT = ("IMAGE_PAGE", "CAPACITY", "POLICY", "SCALE_X", "SCALE_H")


@pytest.mark.parametrize(
    ("point", "meeting", "missing"),
    [
        ("a counter carries into its upper word", [(HIGH, None, 1), (HIGH, None, 2)], [(HIGH, None, 1)] * 2),
        (
            "a counter is full and goes on from 0",
            [(HIGH, None, 9), (HIGH, None, 2)],
            [(HIGH, None, 9), CLEAR, (HIGH, None, 2)],
        ),
        (
            "counters are cleared while events come",
            [(HIGH, None, 9), CLEAR, (HIGH, None, 2)],
            [(HIGH, None, 9), (HIGH, None, 2)],
        ),
        (
            "each register that is read and written shows what was written",
            [access for name in KEPT for access in ((REGISTERS[name], 5, 0), (REGISTERS[name], None, 5))],
            [access for name in KEPT[1:] for access in ((REGISTERS[name], 5, 0), (REGISTERS[name], None, 5))],
        ),
        ("a register is written and read in one cycle", [(CAPACITY, 5, 0)], [(CAPACITY, None, 0)]),
        ("a load and a clear by one write", [(REGISTERS["CONTROL"], 3, 0)], [CLEAR]),
        (
            "an expert's place, then its row, then its channels",
            [(REGISTERS[f"PLACE_{name}"], 1, 0) for name in ("EXPERT", "ROW", "CHANNELS")],
            [(REGISTERS[f"PLACE_{name}"], 1, 0) for name in ("ROW", "EXPERT", "CHANNELS")],
        ),
        ("a write of what is only read", [(REGISTERS["IDENTITY"], 1, 0)], [(REGISTERS["IDENTITY"], None, 0)]),
        ("a read of nothing", [(0xFC, None, 0)], [(HIGH, None, 0)]),
        ("the lower bits of an address", [(CAPACITY | 3, None, 0)], [(CAPACITY, None, 0)]),
        (RESET, [(CAPACITY, 5, 0)], [(CAPACITY, None, 0)]),
    ],
)
def test_registers(point, meeting, missing):
    assert REGISTER_POINTS[point](accessed(*meeting))
    assert not REGISTER_POINTS[point](accessed(*missing))


ACT, PRE, REF, MAC, REG, WR, RD = (
    kind.value
    for kind in (
        *(RowKind.ACT, RowKind.PRE, RowKind.REF),
        *(ColumnKind.MAC, ColumnKind.REG, ColumnKind.WR, ColumnKind.RD),
    )
)


def ran(row=(), column=(), *, words=1, done=99, results=(), starts=(0,), stop=None):  # type: ignore[no-untyped-def]
    """Return a run of a program: kinds of commands with their cycles, and when it was started and done."""
    probes = {
        name: (np.array([cycle for cycle, _ in told]), np.array([kind for _, kind in told], dtype=np.uint64))
        for name, told in (("o_row", row), ("o_column", column))
    }
    probes["prog_en"] = (np.arange(words), np.ones(words))
    probes["done"] = (np.array([] if done is None else [done]), np.ones(int(done is not None)))
    probes |= dict.fromkeys(("corrected", "uncorrected"), (np.array([]), np.array([])))
    writes = [change for cycle in starts for change in ((cycle, "start", 1), (cycle + 1, "start", 0))]
    streams = {"o": Trace.of_cycles(np.array(results, dtype=np.int64))}
    run = Scenario("", RunSpec(sinks={"o": Sink(0)}, writes=writes, stop_cycle=stop))
    return run, SimpleNamespace(probes=probes, streams=streams, cycles=200 if stop is None else stop)


@pytest.mark.parametrize(
    ("point", "meeting", "missing"),
    [
        ("close and open", ran([(1, PRE), (9, ACT)]), ran([(1, ACT), (9, PRE)])),
        (
            "closed, refreshed, opened",
            ran([(1, PRE), (2, REF), (9, ACT)]),
            ran([(1, PRE), (2, ACT), (9, REF)]),
        ),
        ("MACs one after the other", ran((), [(1, MAC), (5, MAC)]), ran((), [(1, MAC), (5, WR), (9, MAC)])),
        (
            "more MACs than words of the program: loops",
            ran((), [(1, MAC), (5, MAC)]),
            ran((), [(1, MAC), (5, MAC)], words=2),
        ),
        ("no refresh", ran((), [(1, MAC)]), ran([(0, REF)], [(1, MAC)])),
        ("told to start while it runs", ran(starts=(0, 50)), ran(starts=(0, 100))),
        (
            "results as near to each other as a bank's writes can be",
            ran((), [(1, WR), (5, WR), (9, MAC), (20, WR)], results=[8, 12]),
            ran((), [(1, WR), (5, WR), (9, MAC), (20, WR)], results=[8, 27]),
        ),
        (RESET, ran((), [(1, MAC)], done=None, stop=20), ran((), [(1, MAC)], done=19, stop=20)),
        ("a program that asks for nothing", ran(), ran((), [(1, MAC)])),
        (
            "a bank read and written beside MACs",
            ran((), [(1, MAC), (5, RD), (9, WR)]),
            ran((), [(1, MAC), (5, WR)]),
        ),
        ("a write after a read", ran((), [(1, RD), (5, WR)]), ran((), [(1, WR), (5, RD)])),
        ("a read after a write", ran((), [(1, WR), (5, RD)]), ran((), [(1, RD), (5, WR)])),
        (
            "a command on both buses in one cycle",
            ran([(1, ACT)], [(1, MAC)]),
            ran([(1, ACT)], [(2, MAC)]),
        ),
        ("MAC after a register's load", ran((), [(1, REG), (5, MAC)]), ran((), [(1, MAC), (5, REG)])),
        ("a register's load after a MAC", ran((), [(1, MAC), (5, REG)]), ran((), [(1, REG), (5, MAC)])),
        ("the other channel refreshes", ran([(1, RowKind.OTHER_REF.value)]), ran([(1, REF)])),
    ],
)
def test_programs(point, meeting, missing):
    points = program_points(barrier=True, secded=True) | program_points(barrier=False, secded=True)
    assert points[point](*meeting)
    assert not points[point](*missing)


def layer(probe=(), channels=(), *, i=(), o=(), prologue=(), addresses=(), stop=None, **reads):  # type: ignore[no-untyped-def]
    """Return a run of a layer: cycles and bits of its probes, beats, register writes, what is read."""

    def told(bits):  # type: ignore[no-untyped-def]
        by_cycle: dict[int, int] = {}
        for cycle, bit in bits:
            by_cycle[cycle] = by_cycle.get(cycle, 0) | 1 << bit
        return np.array([*by_cycle]), np.array([*by_cycle.values()], dtype=np.uint64)

    streams = {"i": Trace.of_cycles(np.array(i, dtype=int)), "o": Trace.of_cycles(np.array(o, dtype=int))}
    run = Scenario(
        "",
        RunSpec(
            sources={"i": Source([0] * 9, list(i))},
            sinks={"o": Sink(9)},
            prologue=list(prologue),
            stop_cycle=stop,
        ),
        reads=dict.fromkeys(reads),
    )
    memories = {"o_ar": SimpleNamespace(ar_addrs=np.array(addresses, dtype=np.uint64))}
    probes = {"probe": told(probe), "probe_channels": told(channels)}
    cycles = 200 if stop is None else stop
    return run, SimpleNamespace(
        streams=streams, probes=probes, memories=memories, reads=list(reads.values()), cycles=cycles
    )


def stream(name: str, what: int = 0) -> int:
    return 2 * PROBE.index(name) + what


ERROR, FORGOTTEN = {"STATUS": 5, "STATUS after loading": 1}, {"STATUS": 5, "STATUS after loading": 5}


@pytest.mark.parametrize(
    ("points", "point", "meeting", "missing"),
    [
        (
            FPGA_LAYER_POINTS,
            "an entry waits for the array",
            layer([(3, stream("entries", 1))]),
            layer([(3, stream("entries"))]),
        ),
        (
            FPGA_LAYER_POINTS,
            "an entry and a contribution in one cycle",
            layer([(3, stream("entries")), (3, stream("contributions"))]),
            layer([(3, stream("entries")), (4, stream("contributions"))]),
        ),
        (
            FPGA_LAYER_POINTS,
            "a beat of memory while a token comes in",
            layer([(3, stream("beats"))], i=[3]),
            layer([(3, stream("beats"))], i=[4]),
        ),
        (FPGA_LAYER_POINTS, "an assignment is dropped", layer(dropped=1), layer(dropped=0)),
        (
            FPGA_LAYER_POINTS,
            "a capacity that nobody reaches",
            layer(prologue=[reg_write(CAPACITY, 9)], o=[9], dropped=0),
            layer(prologue=[reg_write(CAPACITY, 9)], o=[9], dropped=1),
        ),
        (
            FPGA_LAYER_POINTS,
            "the longest queue first",
            layer(prologue=[reg_write(REGISTERS["POLICY"], 5)], o=[9]),
            layer(prologue=[reg_write(REGISTERS["POLICY"], 3)], o=[9]),
        ),
        (
            FPGA_LAYER_POINTS,
            "weights from the upper half of memory",
            layer(addresses=[1 << 39]),
            layer(addresses=[(1 << 39) - 4096]),
        ),
        (
            FPGA_LAYER_POINTS,
            "an error of the memory is told, and forgotten when it is loaded again",
            layer(**ERROR),
            layer(**FORGOTTEN),
        ),
        (FPGA_LAYER_POINTS, RESET, layer(i=[3, 4], o=[8], stop=9), layer(i=[3], o=[8], stop=9)),
        (
            pim_layer_points(2),
            "a channel's contribution waits for the other's",
            layer((), [(3, 3)]),
            layer((), [(3, 2)]),
        ),
        (
            pim_layer_points(2),
            "entries to both channels in one cycle",
            layer((), [(3, 0), (3, 5)]),
            layer((), [(3, 0), (4, 5)]),
        ),
        (
            pim_layer_points(2),
            "an entry of router or expert waits for the other's",
            layer((), [(3, 13)]),
            layer((), [(3, 12)]),
        ),
        (
            pim_layer_points(2),
            "an expert in both channels",
            layer(prologue=[reg_write(REGISTERS["PLACE_CHANNELS"], 3)], o=[9]),
            layer(prologue=[reg_write(REGISTERS["PLACE_CHANNELS"], 2)], o=[9]),
        ),
    ],
)
def test_layers(points, point, meeting, missing):
    assert points[point](*meeting)
    assert not points[point](*missing)
