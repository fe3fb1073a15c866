"""A crossing inside the simulator: both handshakes at every edge of either clock, against a naive queue.

The bench makes the clocks itself, so that every order of edges is its own choice, coinciding ones too; times
are numbers without a unit. A flip-flop shows what was there before the edge: that one which samples another
clock's count in the very moment in which it changes could show either is not in this model of time.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import Timer

from tests.bench.in_simulator import JOB, RESULTS

EDGES = 420
"""Of both clocks together in a run, or more, so that of the slower one there are twice ``SETTLED``."""
SETTLED = 30
"""Edges of the slower clock until a beat comes in each of them, nothing in its way."""
RESET_CYCLES = 4
"""Of the slower clock, which a reset takes at least."""
LATEST = 12
"""Edges of its clock by which the reader may leave the reset after the writer."""
WAY = 3
"""The edge of the reader's clock, counted behind that of the write, in which a beat can be taken at first."""


@dataclass(frozen=True)
class Clocks:
    """Periods of the writer's and of the reader's clock, and when the reader's first edge comes."""

    write: int
    read: int
    phase: int

    def edges(self, rng: np.random.Generator) -> Iterator[tuple[bool, bool]]:
        """Yield for each moment with an edge whether it is one of the writer's, of the reader's.

        Without a period each edge is drawn.
        """
        if not self.write:
            while True:
                kind = int(rng.integers(1, 4))
                yield bool(kind & 1), bool(kind & 2)
        write, read = self.write, self.phase
        while True:
            now = min(write, read)
            yield write == now, read == now
            write += self.write * (write == now)
            read += self.read * (read == now)

    @property
    def moments(self) -> int:
        """Return how many moments with edges a run has."""
        if not self.write:
            return EDGES
        ratio = max(self.write, self.read) // min(self.write, self.read)
        return max(EDGES, (2 * SETTLED + LATEST) * (ratio + 1))

    @property
    def label(self) -> str:
        """How they are called in a line of a run."""
        return f"{self.write} to {self.read}" if self.write else "edges in any order"


CLOCKS = (
    Clocks(3000, 7000, 500),
    Clocks(7000, 3000, 1),
    Clocks(1000, 1001, 3),
    Clocks(1001, 1000, 0),
    Clocks(10, 10, 10),
    Clocks(10, 10, 5),
    Clocks(1000, 17000, 7),
    Clocks(17000, 1000, 1),
    Clocks(2, 3, 3),
    Clocks(0, 0, 0),
)


@dataclass
class Queue:
    """What the crossing holds: counts of beats, and what each side knows of the other's, two edges late."""

    depth: int
    beats: list[int] = field(default_factory=list)
    taken: int = 0
    seen: list[int] = field(default_factory=lambda: [0, 0])
    told: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def ready(self) -> bool:
        """Whether a beat can be written."""
        return len(self.beats) - self.told[-1] < self.depth

    @property
    def valid(self) -> bool:
        """Whether one is offered."""
        return self.taken < self.seen[-1]

    def tick(self, edges: tuple[bool, bool], beat: int | None, takes: bool) -> None:
        """Go on by these edges; ``beat`` is offered."""
        written, taken = len(self.beats), self.taken
        if edges[0]:
            if beat is not None and self.ready:
                self.beats.append(beat)
            self.told = [taken, self.told[0]]
        if edges[1]:
            self.taken += takes and self.valid
            self.seen = [written, self.seen[0]]


SIGNALS = ("write", "read", "write_valid", "write_ready", "read_valid", "read_ready", "read_runs")
"""What a log has of each moment: clocks that rise, ports, whether the reader is out of its reset."""


class Bench:
    """A run of edges, with resets; ``rows`` are its log."""

    def __init__(self, dut: Any, depth: int, width: int, rng: np.random.Generator) -> None:
        self.dut, self.depth, self.width, self.rng = dut, depth, width, rng
        self.rows: list[tuple[int, ...]] = []

    async def step(self, edges: tuple[bool, bool]) -> None:
        """Make edges, and let everything settle."""
        dut = self.dut
        for clock, rises in zip((dut.bus_aclk, dut.aclk), edges, strict=True):
            if rises:
                clock.value = 1
        await Timer(1, "ns")
        dut.bus_aclk.value = dut.aclk.value = 0

    async def settle(self, **values: int) -> None:
        """Set ports."""
        for port, value in values.items():
            getattr(self.dut, port).value = value
        await Timer(1, "ns")

    async def reset(self, clocks: Iterator[tuple[bool, bool]], shortest: int) -> None:
        """Reset both sides, whatever is inside, for ``shortest`` cycles or more; nothing is offered in it."""
        cycles, counts = 0, [0, 0]
        dut = self.dut
        await self.settle(aresetn=0, bus_aresetn=0, s_axis_tvalid=0)
        more = int(self.rng.integers(0, 6))
        while cycles < shortest + more:
            edges = next(clocks)
            await self.settle(m_axis_tready=int(self.rng.integers(2)))
            assert not int(dut.m_axis_tvalid.value), "a beat is offered in reset"
            await self.step(edges)
            counts = [count + edge for count, edge in zip(counts, edges, strict=True)]
            # Of the slower clock: both have had an edge.
            if min(counts):
                cycles, counts = cycles + 1, [0, 0]

    async def run(self, clocks: Clocks, chances: tuple[float, float]) -> int:
        """Run from a reset, which the reader leaves when the writer does or later; return the beats taken."""
        dut, rng = self.dut, self.rng
        edges_of = clocks.edges(rng)
        # Without periods the edges of a cycle may come in the order in which the counts are told most slowly.
        await self.reset(edges_of, RESET_CYCLES if clocks.write else 2 * RESET_CYCLES)
        queue = Queue(self.depth)
        beat: int | None = None
        since = [0, 0]
        arrived: dict[int, int] = {}
        reads = last = steady = 0
        late = int(rng.integers(0, LATEST)) * int(rng.integers(2))
        for number, edges in zip(range(clocks.moments), edges_of, strict=False):
            if beat is None and rng.random() < chances[0]:
                beat = int(rng.integers(1 << self.width))
            ready = int(rng.random() < chances[1])
            await self.settle(
                aresetn=int(reads >= late),
                bus_aresetn=1,
                s_axis_tvalid=int(beat is not None),
                s_axis_tdata=beat or 0,
                m_axis_tready=ready,
            )
            ports = (dut.s_axis_tvalid, dut.s_axis_tready, dut.m_axis_tvalid, dut.m_axis_tready, dut.aresetn)
            self.rows.append((*map(int, edges), *(int(port.value) for port in ports)))
            if edges[0]:
                assert int(dut.s_axis_tready.value) == queue.ready, (
                    f"edge {number}: ready is not {queue.ready}"
                )
            # In its reset the reader takes nothing, whatever the sink's ready is.
            valid = queue.valid and reads >= late
            taking = bool(ready) and reads >= late
            if edges[1]:
                assert int(dut.m_axis_tvalid.value) == valid, f"edge {number}: valid is not {valid}"
                if valid:
                    got, wanted = int(dut.m_axis_tdata.value), queue.beats[queue.taken]
                    assert got == wanted, f"edge {number}: beat {queue.taken} is {got:#x}, not {wanted:#x}"
                reads += 1
            moves = beat is not None and queue.ready and edges[0], taking and valid and edges[1]
            if moves[0]:
                arrived[len(queue.beats)] = reads
            if moves[1] and chances == (chances[0], 1):
                # It is taken as soon as it is shown: never earlier, and as early where nothing is before it.
                waited = reads - arrived[queue.taken]
                assert waited >= WAY, f"edge {number}: a beat after {waited} edges"
                alone = (queue.taken == 0 or last < arrived[queue.taken]) and arrived[queue.taken] >= late
                assert waited == WAY or not alone, f"edge {number}: a beat after {waited} edges"
            if moves[1]:
                last = reads
            since = [count + edge for count, edge in zip(since, edges, strict=True)]
            if clocks.write and min(since[0], reads - late) > SETTLED and chances == (1, 1):
                slower = int(clocks.read > clocks.write)
                if edges[slower]:
                    assert moves[slower], f"edge {number}: none in a cycle of the slower clock"
                    steady += 1
            queue.tick(edges, beat, taking)
            if moves[0]:
                beat = None
            await self.step(edges)
        assert steady or not clocks.write or chances != (1, 1), "no cycle at full speed was looked at"
        return queue.taken


@cocotb.test()
async def run_job(dut: Any) -> None:
    """Run all clocks under all traffic, each from a reset; leave a line and a log for each run.

    The job: seed, depth, bits of a beat, and what ports hold that the bench does not know.
    """
    job = Path(os.environ[JOB])
    seed, depth, width, statics = pickle.loads(job.read_bytes())
    for port, value in {**statics, "aclk": 0, "bus_aclk": 0}.items():
        getattr(dut, port).value = value
    done: list[str] = []
    logs = []
    for index, clocks in enumerate(CLOCKS):
        for number, chances in enumerate(((1, 1), (0.5, 0.5), (1, 0.3), (0.2, 1))):
            rng = np.random.default_rng([seed, index, number])
            bench = Bench(dut, depth, width, rng)
            line = f"clocks {clocks.label}, offered {chances[0]}, taken {chances[1]}"
            try:
                beats = await bench.run(clocks, chances)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {line}, {error}") from None
            done.append(f"{line}: {beats} beats")
            logs.append(dict(zip(SIGNALS, np.array(bench.rows).T, strict=True)))
    job.with_name(RESULTS).write_bytes(pickle.dumps((done, logs)))
