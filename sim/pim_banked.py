"""Cycle model of the near-memory layer whose router lies in the banks, composed of the block models.

Routing depends on a channel, which depends on what was routed before. Every time depends on earlier ones
only, so the equations are solved by repetition: each pass starts from what the one before found and is right
for longer than that; two equal ones are the answer. There are as many passes as the longest chain of jobs,
so this is for hundreds of jobs, not for many thousands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sim.combine import CombineCycles
from sim.dispatch import DispatchCycles, DispatchModel
from sim.gating import BankedGateCycles, banked_gate_cycles
from sim.layer import StreamTimes
from sim.pim import ChannelCycles, ChannelTotals
from sim.pim_layer import (
    PimShape,
    PimTimes,
    RouterTimes,
    admitted_cycles,
    combined,
    merged_entries,
    offered_before,
)
from sim.router import (
    JobMergeCycles,
    RouterJobCycles,
    job_merge_cycles,
    router_job_cycles,
)
from sim.streams import ALWAYS, Cycles, Spans, union
from spec.banks import ROUTER_CHANNEL


@dataclass
class _Known:
    """What a pass takes from the one before: who waits when, and the cycles that close its circles.

    Attributes
    ----------
    admitted : (tokens * input_beats,) first cycle in which each beat may be taken.
    freed, logits : per group, per token; see :class:`sim.gating.BankedGateCycles`.
    retired : per channel, when its experts' jobs were done with.
    room, jobs, into, entries, contributions : in which cycles a beat of these streams waits: assignments;
        jobs with the router; entries of both kinds; per channel entries of experts, contributions.
    """

    admitted: Cycles
    freed: Cycles
    logits: Cycles
    retired: list[Cycles]
    entries: list[Spans]
    contributions: list[Spans]
    room: Spans = field(default_factory=lambda: ALWAYS)
    jobs: Spans = field(default_factory=lambda: ALWAYS)
    into: Spans = field(default_factory=lambda: ALWAYS)


@dataclass(frozen=True)
class _Pass:
    """What a pass finds, block by block."""

    given: RouterJobCycles
    gate: BankedGateCycles
    dispatch: DispatchCycles
    offered: Cycles
    merge: JobMergeCycles
    channels: list[ChannelCycles]
    merged: Cycles
    inputs: list[Cycles]
    combine: CombineCycles

    def streams(self) -> list[Cycles]:
        """Return all transfers."""
        found = [self.given.o, self.merge.i_router, self.gate.o, self.dispatch.i, self.dispatch.entries]
        found += [self.merged, self.combine.o, *self.inputs]
        for channel in self.channels:
            found += [channel.i, channel.o, channel.logits]
        return found


class _Retired:
    """Tell the dispatcher when a unit is done with a job: as in the pass before, if there was one."""

    def __init__(self, known: list[Cycles]) -> None:
        self.known = known
        self.count = [0] * len(known)
        self.last = [0] * len(known)

    def __call__(self, unit: int, _job: int, cycles: Cycles) -> int:
        """Return the cycle for a job whose entries were taken in these cycles."""
        number, known = self.count[unit], self.known[unit]
        self.count[unit] += 1
        guess = int(known[number]) if number < len(known) else 0
        self.last[unit] = max(guess, int(cycles[-1]) + 1, self.last[unit] + 1)
        return self.last[unit]


def banked_cycles(
    shape: PimShape, arrivals: Cycles, refreshes: list[int]
) -> tuple[PimTimes, list[ChannelTotals]]:
    """Return the times of a layer with its router in the banks, whose output is always ready.

    Parameters as in :func:`sim.pim_layer.pim_cycles`.
    """
    streams, num_slots, count = shape.streams, shape.num_slots, shape.num_channels
    beats = shape.banks.image.gate.input_beats
    num_tokens = len(streams.last_token)
    first_beats = np.arange(num_slots, num_tokens) * beats
    known = _Known(
        admitted=arrivals.astype(np.int64),
        freed=np.zeros(len(shape.router_ends), dtype=np.int64),
        logits=np.arange(num_tokens, dtype=np.int64),
        retired=[np.zeros(0, dtype=np.int64)] * count,
        entries=[ALWAYS] * count,
        contributions=[ALWAYS] * count,
    )
    previous: list[Cycles] = []
    # Some passes for each job: from it to the next one through all blocks.
    for _ in range(16 * (len(streams.job_bounds) + len(shape.router_ends)) + 64):
        found = _pass(shape, known, refreshes)
        current = found.streams()
        if previous and all(map(np.array_equal, previous, current)):
            break
        previous = current
        known = _learn(shape, arrivals, first_beats, found)
    else:
        raise AssertionError("the layer's times did not settle")
    merged = StreamTimes(found.merge.offered, found.channels[ROUTER_CHANNEL].i)
    times = PimTimes(
        tokens=offered_before(arrivals, admitted_cycles(known.admitted)),
        assignments=offered_before(
            banked_gate_cycles(shape.banks.image.gate, known.logits, shape.router_ends).o, found.gate.o
        ),
        expects=offered_before(found.dispatch.o_expect, found.combine.i_expect),
        entries=[
            StreamTimes(found.offered[entries], found.dispatch.entries[entries])
            for entries in found.dispatch.unit_entries
        ],
        contributions=[
            StreamTimes(channel.offered, taken)
            for channel, taken in zip(found.channels, found.inputs, strict=True)
        ],
        merged=offered_before(found.merged, found.merged),
        output=offered_before(found.combine.o, found.combine.o),
        retired=known.retired,
        unit_entries=list(found.dispatch.unit_entries),
        router=RouterTimes(
            StreamTimes(found.given.offered, found.given.o),
            merged,
            found.channels[ROUTER_CHANNEL].logits,
            merged_entries(found.merge, found.dispatch.unit_entries[ROUTER_CHANNEL]),
        ),
    )
    return times, [channel.totals for channel in found.channels]


def _pass(shape: PimShape, known: _Known, refreshes: list[int]) -> _Pass:
    """Ask every block's model once."""
    streams, ends = shape.streams, shape.router_ends
    beats = shape.banks.image.gate.input_beats
    stored = admitted_cycles(known.admitted)[beats - 1 :: beats]
    given = router_job_cycles(ends, stored, known.freed, known.jobs)
    gate = banked_gate_cycles(shape.banks.image.gate, known.logits, ends, known.room)
    model = DispatchModel(
        streams,
        unit_ready=known.entries,
        units=shape.units,
        retired=_Retired(known.retired) if shape.units else (),
    )
    model.offer(streams.num_windows, gate.o)
    model.run()
    dispatch, offered = model.cycles(), model.offered
    channels: list[ChannelCycles] = []
    merge: JobMergeCycles | None = None
    for n, entries in enumerate(dispatch.unit_entries):
        jobs, into = entries, dispatch.entries[entries]
        if n == ROUTER_CHANNEL:
            merge = job_merge_cycles(
                given.offered,
                np.isin(np.arange(len(stored)), ends),
                offered[entries],
                streams.entry_last[entries],
                known.into,
            )
            jobs, into = merged_entries(merge, entries), merge.offered
        channels.append(shape.channel(jobs, into, refreshes[n], known.contributions[n], told=False))
    assert merge is not None
    merged, inputs, combine = combined(
        shape, dispatch.unit_entries, [channel.offered for channel in channels], dispatch.o_expect
    )
    return _Pass(given, gate, dispatch, offered, merge, channels, merged, inputs, combine)


def _learn(shape: PimShape, arrivals: Cycles, first_beats: Cycles, found: _Pass) -> _Known:
    """Return what the next pass takes from this one."""
    streams, dispatch, merge = shape.streams, found.dispatch, found.merge
    admitted = arrivals.astype(np.int64)
    freed = found.combine.freed[: len(first_beats)]
    admitted[first_beats] = np.maximum(admitted[first_beats], freed + 1)
    ends = np.searchsorted(streams.window, np.arange(streams.num_windows), side="right")
    closed = dispatch.i[ends * streams.top_k - 1]
    entries = [ALWAYS] * shape.num_channels
    mine = dispatch.unit_entries[ROUTER_CHANNEL]
    entries[ROUTER_CHANNEL] = union(found.offered[mine], merge.i_expert)
    channel = found.channels[ROUTER_CHANNEL]
    retired = [other.retired for other in found.channels]
    numbers = merged_entries(merge, mine)
    _, last = shape.entries_of(numbers)
    retired[ROUTER_CHANNEL] = channel.retired[numbers[last] >= 0]
    return _Known(
        admitted=admitted,
        freed=found.gate.freed,
        logits=channel.logits,
        retired=retired,
        room=union(closed[:-1] + 1, dispatch.opened[1:]),
        jobs=union(found.given.offered, merge.i_router),
        into=union(merge.offered, channel.i),
        entries=entries,
        contributions=[
            union(other.offered, taken) for other, taken in zip(found.channels, found.inputs, strict=True)
        ],
    )
