"""When the parts of an accelerator work: what a run's timeline, heat maps and tables of stalls are made of.

Cycles count from reset as in the block models; a run of several layers is one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from golden.dispatch_streams import DispatchStreams
from sim.streams import Cycles, Spans, size, union, without, without_gaps

ROUTER = -1
"""As the expert of a job: the router, where it lies in the banks."""


@dataclass(frozen=True, eq=False)
class BlockActivity:
    """When a block works.

    Attributes
    ----------
    spans : (n, 2) cycles in which it holds work that the next block does not hold up, and short gaps between.
    weights : cycles of these in which it waits for weights.
    gaps : cycles of these that are such gaps (:func:`resolution`).
    blocked : cycles in which it holds work that the next block holds up.
    """

    spans: Spans
    weights: int
    gaps: int
    blocked: int

    @property
    def busy(self) -> int:
        """Cycles in which it is neither starved nor blocked: the count of a report's ``blocks``."""
        return size(self.spans) - self.weights - self.gaps

    @classmethod
    def of(cls, inside: Spans, held_up: Spans, weights: int = 0) -> BlockActivity:
        """Return the activity of a block that holds work ``inside``, of which some is held up."""
        spans = without(inside, held_up)
        return cls(spans, weights, 0, size(inside) - size(spans))

    def coarse(self, closed: int) -> BlockActivity:
        """Return the same activity with gaps of ``closed`` cycles at most closed."""
        spans = without_gaps(self.spans, closed)
        return replace(self, spans=spans, gaps=self.gaps + size(spans) - size(self.spans))


@dataclass(frozen=True, eq=False)
class Jobs:
    """Jobs of the engines, int64 arrays of one length, by unit and in order of their ends.

    Attributes
    ----------
    layer, unit : number of the MoE layer in the run, and of the engine or channel.
    expert : the shared one is ``num_experts``, the router :data:`ROUTER`.
    tokens : how many the job has.
    start, end : half-open. A job that waits behind another one starts where that one ends, so that the jobs
        of a unit do not overlap and fill the time in which it holds work.
    """

    layer: NDArray[np.int64]
    unit: NDArray[np.int64]
    expert: NDArray[np.int64]
    tokens: NDArray[np.int64]
    start: Cycles
    end: Cycles

    @classmethod
    def of_unit(
        cls, unit: int, expert: NDArray[np.int64], tokens: NDArray[np.int64], given: Cycles, done: Cycles
    ) -> Jobs:
        """Return the jobs of one unit, complete in cycle ``given``, their last result taken in ``done``."""
        order = np.argsort(done, kind="stable")
        end = done[order] + 1
        # The earliest of it and all that end later: what a job behind it waited is the time of this one.
        begun = np.minimum.accumulate(given[order][::-1])[::-1] + 1
        start = np.maximum(begun, np.concatenate([begun[:1], end[:-1]]))
        number = np.zeros(len(order), dtype=np.int64)
        return cls(number, number + unit, expert[order], tokens[order], start, end)

    @classmethod
    def joined(cls, parts: Sequence[Jobs]) -> Jobs:
        """Return the jobs of all parts."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def later(self, cycles: int, layers: int) -> Jobs:
        """Return the same jobs some cycles and layers later."""
        return replace(self, start=self.start + cycles, end=self.end + cycles, layer=self.layer + layers)


@dataclass(frozen=True, eq=False)
class Activity:
    """When the parts of an accelerator work in a run.

    Attributes
    ----------
    start, cycles : of the first input beat; from there to the last output beat, both included.
    source : ``rtl`` or ``model``: whose cycles these are.
    blocks : by the names of a report's ``blocks``.
    units : for each engine or channel (n, 2), when it holds a whole job.
    jobs : of all units.
    tokens : (layers, experts) how many each expert computes; the shared one, if there is one, is last.
    commands : of a near-memory run, how many of each name a channel got, (channels,) each.
    bank_reads : of a near-memory run, (channels, banks) bursts that MACs read from each bank, else (0, 0).
    """

    start: int
    cycles: int
    source: str
    blocks: Mapping[str, BlockActivity]
    units: Sequence[Spans]
    jobs: Jobs
    tokens: NDArray[np.int64]
    commands: Mapping[str, NDArray[np.int64]]
    bank_reads: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    @classmethod
    def joined(cls, layers: Sequence[Activity]) -> Activity:
        """Return the run of several layers, one directly behind the other on one accelerator."""
        first = layers[0]
        cycles = [layer.cycles for layer in layers]
        starts = first.start + np.cumsum([0, *cycles[:-1]])
        moved = [int(start) - layer.start for start, layer in zip(starts, layers, strict=True)]
        closed = resolution(sum(cycles))
        blocks = {
            name: BlockActivity(
                _behind_each_other([layer.blocks[name].spans for layer in layers], moved),
                sum(layer.blocks[name].weights for layer in layers),
                sum(layer.blocks[name].gaps for layer in layers),
                sum(layer.blocks[name].blocked for layer in layers),
            ).coarse(closed)
            for name in first.blocks
        }
        return cls(
            start=first.start,
            cycles=sum(cycles),
            source=first.source,
            blocks=blocks,
            units=[
                _behind_each_other(list(spans), moved)
                for spans in zip(*(layer.units for layer in layers), strict=True)
            ],
            jobs=Jobs.joined(
                [
                    layer.jobs.later(later, n)
                    for n, (layer, later) in enumerate(zip(layers, moved, strict=True))
                ]
            ),
            tokens=np.concatenate([layer.tokens for layer in layers]),
            commands={
                name: np.sum([layer.commands[name] for layer in layers], axis=0) for name in first.commands
            },
            bank_reads=np.sum([layer.bank_reads for layer in layers], axis=0),
        )

    def idle(self, block: str) -> int:
        """Return the cycles in which a block holds no work."""
        of = self.blocks[block]
        return self.cycles - of.busy - of.weights - of.blocked


def resolution(cycles: int) -> int:
    """Return the longest gap that is closed in spans of a run: none in a short one, else 1/65536 of it."""
    return cycles >> 16


def _behind_each_other(sets: Sequence[Spans], moved: Sequence[int]) -> Spans:
    """Return sets of cycles, each moved by so many cycles behind the one before, as one."""
    spans = np.concatenate([one + later for one, later in zip(sets, moved, strict=True)])
    return union(spans[:, 0], spans[:, 1])


def tokens_of_experts(streams: DispatchStreams, num_experts: int, *, shared: bool) -> NDArray[np.int64]:
    """Return how many tokens each expert computes, as ``tokens`` of :class:`Activity` for one layer."""
    return np.bincount(streams.entry_expert, minlength=num_experts + shared)[None]
