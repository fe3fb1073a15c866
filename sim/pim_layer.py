"""The near-memory layer: its Verilog's job for the native bench, what came back, and its cycle model.

The model joins those of gate, dispatcher, channels, merger and combiner: :mod:`sim.channels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.banks import channel_image
from golden.dispatch_streams import DispatchStreams
from golden.layer_bf16 import LayerBf16, layer_bf16, layer_image
from sim.accelerator import counter_steps, counters_read, scales_of, setup_steps
from sim.activity import ROUTER, Activity, BlockActivity, Jobs, resolution, tokens_of_experts
from sim.channels import Flow, run_channels
from sim.combine import FREED_LATENCY, CombineCycles, combine_cycles
from sim.combine_ordered import ordered_cycles
from sim.dispatch import Units, dispatch_cycles
from sim.divergence import PortCheck
from sim.dram_check import (
    MAC,
    REF,
    Commands,
    Violation,
    bursts_of,
    bursts_read,
    check_commands,
    commands_seen,
    refreshes_due,
    tiles_needed,
    tiles_read,
)
from sim.flips import FlippedWords, Flips, flip_words
from sim.gating import banked_gate_cycles, gate_cycles
from sim.layer import StreamTimes
from sim.merge import merge_cycles
from sim.pim import (
    ISSUE,
    ROUTED,
    SHARED,
    ChannelCycles,
    ChannelShape,
    ChannelTotals,
    channel_cycles,
)
from sim.router import JobMergeCycles, group_ends, job_merge_cycles, router_job_cycles
from sim.rtlsim import (
    BankMemory,
    ReadMemory,
    RunResult,
    RunSpec,
    Set,
    Sink,
    Source,
    Step,
    Trace,
    reg_read,
    reg_wait,
    reg_write,
)
from sim.streams import ALWAYS, NEVER, Cycles, Spans, size, union, without
from sim.workload import Workload
from spec.banks import ROUTER_CHANNEL, BankGeometry, CommandTiming, refresh_offset
from spec.design import DesignSpec
from spec.geometry import ceil_div
from spec.registers import (
    CHANNEL_PROBE,
    CONTROL_CLEAR,
    PROBE,
    REGISTERS,
    ROUTER_PROBE,
    STATUS_REFRESHING,
)

AFTER_REFRESH = 4
"""Cycles from channel 0's decision to refresh to cycle 0 of a run (:func:`start_steps`)."""


def placement_steps(banks: BankGeometry, placement: list[list[int]]) -> list[Step]:
    """Return the register writes that tell the layer where its experts lie.

    ``placement``: channels of each expert (:meth:`spec.banks.BankGeometry.place`). One that none holds no
    token should need: if a gate that errs sends it one, any channel serves it with what lies in row 0.
    """
    everywhere = range(banks.pim.channels)
    steps: list[Step] = []
    for channel, bases in enumerate(banks.bases(placement)):
        for expert, base in bases.items():
            steps += [
                reg_write(REGISTERS["PLACE_EXPERT"], expert | channel << 16),
                reg_write(REGISTERS["PLACE_ROW"], base // banks.sides),
            ]
    for expert, channels in enumerate(placement):
        steps += [
            reg_write(REGISTERS["PLACE_EXPERT"], expert),
            reg_write(REGISTERS["PLACE_CHANNELS"], sum(1 << channel for channel in channels or everywhere)),
        ]
    return steps


def start_steps(banks: BankGeometry) -> list[Step]:
    """Return the steps after which a run starts ``AFTER_REFRESH`` cycles after channel 0's last refresh."""
    status, refreshing = REGISTERS["STATUS"], 1 << STATUS_REFRESHING
    clear = [
        reg_write(REGISTERS["CONTROL"], 1 << CONTROL_CLEAR),
        # The counters are cleared in the cycle after the write; no event may fall into it.
        Set({"reg_addr": status}),
    ]
    if not banks.pim.refresh:
        return list(clear)
    return [reg_wait(status, refreshing, 0), reg_wait(status, refreshing, refreshing, 1 << 20), *clear]


def first_refreshes(banks: BankGeometry) -> list[int]:
    """Return for each channel the cycle of the run in which its first refresh is or was decided."""
    offsets = [refresh_offset(banks, channel) for channel in range(banks.pim.channels)]
    return [offset - offsets[0] - AFTER_REFRESH for offset in offsets]


@dataclass(frozen=True)
class PimRun:
    """A layer's run of the Verilog: the job, what golden expects, what came back."""

    workload: Workload
    design: DesignSpec
    banks: BankGeometry
    golden: LayerBf16
    spec: RunSpec
    result: RunResult

    @property
    def counters(self) -> dict[str, int]:
        """The counters by name."""
        return counters_read(self.design, self.result.reads[:-1])

    @property
    def status(self) -> int:
        """STATUS at the end of the run."""
        return self.result.reads[-1]

    @cached_property
    def commands(self) -> list[Commands]:
        """Commands of each channel."""
        probes = self.result.probes
        return [
            commands_seen(self.banks, probes[f"row_{n}"], probes[f"column_{n}"])
            for n in range(self.banks.pim.channels)
        ]

    def refreshes_due(self, channel: int) -> Cycles:
        """Return the cycles of the run in which a channel's refreshes should stand on its bus."""
        first = refresh_offset(self.banks, channel) - self.result.since_reset + ISSUE
        return refreshes_due(self.banks.pim, first, self.result.cycles)

    def reads(self) -> list[Cycles]:
        """Return for each channel how often each burst of its banks was read, by the commands seen."""
        found = []
        for channel, commands in enumerate(self.commands):
            image = self.spec.banks[f"mem_{channel}"].image
            assert not isinstance(image, Path)
            found.append(bursts_read(self.banks, commands, len(image)))
        return found

    def violations(self) -> list[tuple[int, Violation]]:
        """Return the DRAM rules that a channel broke: channel and violation."""
        found = []
        for channel, commands in enumerate(self.commands):
            due = self.refreshes_due(channel)
            first = int(due[0]) if len(due) else None
            found += [(channel, one) for one in check_commands(self.banks.pim, commands, first_refresh=first)]
        return found

    def commands_by_name(self) -> dict[str, NDArray[np.int64]]:
        """Return how many commands of each name each channel got."""
        counts = [commands.before(self.result.cycles).counts() for commands in self.commands]
        return {name: np.array([of[name] for of in counts], dtype=np.int64) for name in counts[0]}

    def dram(self) -> dict[str, Any]:
        """Return ``dram`` of :class:`sim.accelerator.Report`."""
        counts: Counter[str] = Counter()
        due = in_time = 0
        for channel, commands in enumerate(self.commands):
            inside = commands.before(self.result.cycles)
            counts.update(inside.counts())
            expected = self.refreshes_due(channel)
            due += len(expected)
            in_time += int(np.isin(expected, inside.of(REF)[:, 0]).sum())
        return {
            "commands": dict(counts),
            "refreshes": {"due": due, "in_time": in_time},
            "violations": [f"channel {channel}: {violation}" for channel, violation in self.violations()],
        }


def pim_job(
    workload: Workload,
    design: DesignSpec,
    input_payloads: NDArray[np.uint64],
    *,
    placement: list[list[int]] | None = None,
    arrivals: Cycles | None = None,
    output_ready: NDArray[np.bool_] | None = None,
) -> tuple[BankGeometry, LayerBf16, RunSpec]:
    """Return geometry, golden result and the native bench's job of a workload.

    ``placement``: channels of each expert, by default :meth:`spec.banks.BankGeometry.round_robin`.
    """
    model = workload.model
    banks = BankGeometry.of(model, design, placement)
    scales = scales_of(workload, design)
    golden = layer_bf16(
        model,
        banks.image,
        workload.weights,
        workload.tokens,
        window_tokens=design.window_tokens,
        batch_lengths=workload.batch_lengths,
        policy=design.policy,
        scales=scales,
    )
    placed = banks.round_robin() if placement is None else placement
    banks.check_fit(placed)
    words = -(-model.d_model // design.tile.act_lanes)
    channels = range(banks.pim.channels)
    spec = RunSpec(
        sources={"i": Source(input_payloads, arrivals)},
        sinks={"o": Sink(len(workload.tokens) * words, output_ready)},
        memories={
            "o_ar": ReadMemory(
                layer_image(model, banks.image, workload.weights, experts=[]),
                # The router alone, loaded before cycle 0: no cycle that is reported depends on the latency,
                # and a full-size router waits for it 7168 times.
                latency=1,
                max_outstanding=256,
            )
        },
        banks={
            f"mem_{channel}": BankMemory(
                channel_image(banks, workload.weights, bases, scales), banks.pim.storage_cycles
            )
            for channel, bases in enumerate(banks.bases(placed))
        },
        prologue=[
            *setup_steps(
                model,
                design,
                workload.batch_lengths,
                scales,
                placement=placement_steps(banks, placed),
            ),
            *start_steps(banks),
        ],
        epilogue=[*counter_steps(design), reg_read(REGISTERS["STATUS"])],
        probes=[
            "probe",
            "probe_channels",
            *(f"row_{channel}" for channel in channels),
            *(f"column_{channel}" for channel in channels),
        ],
        max_cycles=1 << 40,
    )
    return banks, golden, spec


def flip_banks(
    spec: RunSpec, banks: BankGeometry, placement: list[list[int]], experts: Cycles, flips: Flips, seed: int
) -> FlippedWords:
    """Flip bits in the banks of a job, in place, in words of the experts that tokens go to.

    Parameters
    ----------
    placement : channels of each expert.
    experts : numbers of those that tokens go to.
    flips : how many words, with one bit and with two.
    """
    images, read = [], []
    for channel, bases in enumerate(banks.bases(placement)):
        image = spec.banks[f"mem_{channel}"].image
        assert not isinstance(image, Path)
        images.append(image)
        read.append(bursts_of(banks, bases, experts))
    return flip_words(
        images, read, units=banks.pim.units, single=flips.single, double=flips.double, seed=seed
    )


# Cycle model


@dataclass(frozen=True)
class PimShape:
    """What the model needs to know of a layer's hardware and of the tokens' routing.

    ``placement``: channels of each expert, the shared one last.
    """

    banks: BankGeometry
    design: DesignSpec
    streams: DispatchStreams
    placement: list[list[int]]

    @property
    def num_channels(self) -> int:
        """Channels."""
        return self.banks.pim.channels

    @property
    def words(self) -> int:
        """Output beats of a token."""
        return ceil_div(self.banks.image.routed.d_model, self.banks.pim.act_lanes)

    @property
    def num_slots(self) -> int:
        """Tokens of the token stores."""
        return 2 * self.design.window_tokens

    @property
    def units(self) -> Units | None:
        """The dispatcher's units; None for one."""
        if self.num_channels == 1:
            return None
        bitmaps = [sum(1 << channel for channel in channels) for channels in self.placement]
        return Units(self.num_channels, np.array(bitmaps, dtype=np.int64))

    @property
    def router_ends(self) -> Cycles:
        """Last token of each group that a router in the banks is multiplied with."""
        pim = self.banks.pim
        return group_ends(self.streams.last_token, min(pim.tokens_per_burst, self.design.window_tokens))

    def channel(
        self,
        entries: Cycles,
        arrivals: Cycles,
        first_refresh: int,
        ready: Spans = ALWAYS,
        *,
        told: bool = True,
    ) -> ChannelCycles:
        """Return what a channel does with these entries, numbered as in the streams.

        An entry ``-1 - n`` is that of token ``n`` for the router. ``told`` : whether commands are.
        """
        experts, last = self.entries_of(entries)
        return channel_cycles(
            ChannelShape(banks=self.banks),
            np.maximum(experts - self.banks.num_experts + SHARED, ROUTED),
            last,
            arrivals,
            first_refresh=first_refresh,
            ready=ready,
            told=told,
        )

    def entries_of(self, numbers: Cycles) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return each entry's expert, and whether it ends its job; numbers as in :meth:`channel`."""
        streams = self.streams
        of_router = numbers < 0
        if not of_router.any():
            return streams.entry_expert[numbers], streams.entry_last[numbers]
        known = np.append(streams.entry_expert, 0)[np.maximum(numbers, 0)]
        ends = np.append(streams.entry_last, False)[np.maximum(numbers, 0)]
        return (
            np.where(of_router, self.banks.router_number, known),
            np.where(of_router, np.isin(-1 - numbers, self.router_ends), ends),
        )

    def result_order(self, entries: Cycles) -> tuple[Cycles, Cycles]:
        """Return the entry (numbered as in the streams) and the word of each beat that a channel gives."""
        pim = self.banks.pim
        ends = np.flatnonzero(self.streams.entry_last[entries])
        job = np.searchsorted(ends, np.arange(len(entries)))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        group = (np.arange(len(entries)) - starts[job]) // pim.tokens_per_burst
        place, word = (axis.ravel() for axis in np.indices((len(entries), self.words)))
        block = word // (pim.units // pim.act_lanes)
        order = np.lexsort((word, place, block, group[place], job[place]))
        return entries[place[order]], word[order]


@dataclass(frozen=True)
class RouterTimes:
    """What a router in the banks adds.

    Attributes
    ----------
    entries : of its jobs, before they meet those of the experts.
    merged : entries of both kinds into its channel.
    numbers : of the merged entries: as in the streams, ``-1 - n`` for token ``n``; empty if not known.
    logits : (tokens,) cycle of the last of each token's logits.
    """

    entries: StreamTimes
    merged: StreamTimes
    logits: Cycles
    numbers: Cycles


@dataclass(frozen=True)
class PimTimes:
    """All streams of a layer in one run.

    Attributes
    ----------
    tokens, assignments, expects, output : streams of the layer and between its blocks.
    entries, contributions : per channel.
    merged : beats into the combiner.
    retired : per channel, when its experts' jobs are done with.
    router : what a router in the banks does; None without one.
    unit_entries : per channel, its entries, numbered as in the dispatcher's streams.
    """

    tokens: StreamTimes
    assignments: StreamTimes
    expects: StreamTimes
    entries: list[StreamTimes]
    contributions: list[StreamTimes]
    merged: StreamTimes
    output: StreamTimes
    retired: list[Cycles]
    unit_entries: list[Cycles]
    router: RouterTimes | None = None

    @property
    def span(self) -> tuple[int, int]:
        """Cycles of the first input beat and of the last output beat."""
        return int(self.tokens.taken[0]), int(self.output.taken[-1])

    @property
    def cycles(self) -> int:
        """Cycles from the first input beat to the last output beat, both included."""
        first, last = self.span
        return last - first + 1

    def numbered_as(self, other: PimTimes) -> PimTimes:
        """Return the same times with another's numbers of the entries."""
        router = self.router
        if router is not None and other.router is not None:
            router = replace(router, numbers=other.router.numbers)
        return replace(self, unit_entries=other.unit_entries, router=router)

    def into_channels(self) -> list[tuple[Cycles, StreamTimes]]:
        """Return for each channel the entries that it takes, numbered as in the streams, and when."""
        into = list(zip(self.unit_entries, self.entries, strict=True))
        if self.router is not None:
            into[ROUTER_CHANNEL] = (self.router.numbers, self.router.merged)
        return into


def pim_cycles(
    shape: PimShape, arrivals: Cycles, refreshes: list[int], *, walked: bool = False
) -> tuple[PimTimes, list[ChannelTotals]]:
    """Return the times of a layer whose output is always ready, from the block models alone.

    Parameters
    ----------
    arrivals : (tokens * input_beats,) first cycle in which each input beat is offered.
    refreshes : for each channel the cycle of its first refresh (:func:`first_refreshes`).
    walked : one event after the other, as a check on what is taken at once otherwise.
    """
    flow = _flow(shape, arrivals, refreshes, walked=walked)
    dispatch = flow.dispatched
    times = PimTimes(
        tokens=offered_before(arrivals, _beats_in(shape, arrivals, flow)),
        assignments=StreamTimes(flow.gate.o_offered, flow.gate.o),
        expects=offered_before(dispatch.o_expect, flow.i_expect),
        entries=[
            StreamTimes(flow.dispatch.offered[entries], dispatch.entries[entries])
            for entries in dispatch.unit_entries
        ],
        contributions=[
            StreamTimes(flow.offered[entries].ravel(), flow.taken[entries].ravel())
            for entries in dispatch.unit_entries
        ],
        merged=StreamTimes(flow.merged, flow.merged),
        output=offered_before(flow.o, flow.o),
        retired=flow.retired,
        unit_entries=list(dispatch.unit_entries),
    )
    return times, flow.totals


def pim_span(shape: PimShape, arrivals: Cycles, refreshes: list[int]) -> tuple[int, int, list[ChannelTotals]]:
    """Return when :func:`pim_cycles` has the first input beat and the last output beat, and the totals."""
    flow = _flow(shape, arrivals, refreshes, told=False)
    return int(_beats_in(shape, arrivals, flow)[0]), int(flow.o[-1]), flow.totals


def _flow(
    shape: PimShape, arrivals: Cycles, refreshes: list[int], *, walked: bool = False, told: bool = True
) -> Flow:
    beats = arrivals.astype(np.int64).reshape(-1, shape.banks.image.gate.input_beats)
    return run_channels(
        ChannelShape(banks=shape.banks),
        shape.banks.image.gate,
        shape.streams,
        shape.units,
        shape.num_slots,
        (beats - np.arange(beats.shape[1])).max(axis=1),
        refreshes,
        walked,
        told,
    )


def _beats_in(shape: PimShape, arrivals: Cycles, flow: Flow) -> Cycles:
    """Return when the gate takes the input beats, whose tokens wait for free slots."""
    words = shape.words
    admitted = arrivals.astype(np.int64).reshape(-1, shape.banks.image.gate.input_beats)
    freed = flow.o[words - 1 :: words] + FREED_LATENCY
    waited = admitted[shape.num_slots :, 0]
    np.maximum(waited, freed[: len(waited)] + 1, out=waited)
    return flow.gate.beats_in(admitted)


def combined(
    shape: PimShape,
    unit_entries: Sequence[Cycles],
    offered: Sequence[Cycles],
    expects: Cycles,
    output_ready: Spans = ALWAYS,
) -> tuple[Cycles, list[Cycles], CombineCycles]:
    """Return merger and combiner: beats merged, when each channel's beats are taken, the combiner's cycles.

    ``offered``: per channel, when its beats are offered.
    """
    order = [shape.result_order(entries) for entries in unit_entries]
    tokens = [shape.streams.entry_token[entries] for entries, _ in order]
    if shape.units is None:
        combine = combine_cycles(
            tokens[0],
            offered[0],
            expects,
            num_slots=shape.num_slots,
            words=shape.words,
            ready=output_ready,
        )
        return combine.i, [combine.i], combine
    merge = merge_cycles(offered)
    bounds = np.cumsum([0] + [len(cycles) for cycles in offered])
    beats = bounds[merge.source] + merge.number
    combine = ordered_cycles(
        np.concatenate(tokens)[beats],
        np.concatenate([words for _, words in order])[beats] == shape.words - 1,
        merge.o,
        expects,
        words=shape.words,
        ready=output_ready,
    )
    return merge.o, list(merge.i), combine


def offered_before(unblocked: Cycles, taken: Cycles) -> StreamTimes:
    """Return a stream's times: a beat is offered when it is there and the one ahead of it is gone."""
    behind = np.concatenate([[NEVER], taken[:-1]]) + 1 if len(taken) else taken
    return StreamTimes(np.minimum(np.maximum(unblocked, behind), taken), taken)


# Against the Verilog


def seen_times(run: PimRun) -> PimTimes:
    """Return the times of all streams as the probes showed them."""
    cycles, values = run.result.probes["probe"]
    channel_cycles_seen, channel_values = run.result.probes["probe_channels"]

    def stream(cycles: Cycles, values: NDArray[np.uint64], bit: int) -> StreamTimes:
        taken = bits_at(cycles, values, bit)
        waits = bits_at(cycles, values, bit + 1)
        count = np.diff(np.concatenate([[0], np.searchsorted(waits, taken)]))
        return StreamTimes(taken - count, taken)

    named = {name: stream(cycles, values, 2 * index) for index, name in enumerate(PROBE)}
    width = len(CHANNEL_PROBE)
    channels = range(run.banks.pim.channels)
    router = None
    if run.banks.image.router:
        first = width * run.banks.pim.channels
        assert len(ROUTER_PROBE) == 5
        router = RouterTimes(
            entries=stream(channel_cycles_seen, channel_values, first),
            merged=stream(channel_cycles_seen, channel_values, first + 2),
            logits=bits_at(channel_cycles_seen, channel_values, first + 4),
            numbers=np.zeros(0, dtype=np.int64),
        )
    return PimTimes(
        tokens=named["tokens"],
        assignments=named["assignments"],
        expects=named["expects"],
        entries=[stream(channel_cycles_seen, channel_values, width * n) for n in channels],
        contributions=[stream(channel_cycles_seen, channel_values, width * n + 2) for n in channels],
        merged=named["contributions"],
        output=named["output"],
        retired=[bits_at(channel_cycles_seen, channel_values, width * n + 4) for n in channels],
        unit_entries=[],
        router=router,
    )


def bits_at(cycles: Cycles, values: NDArray[np.uint64], bit: int) -> Cycles:
    """Return the cycles in which a bit of a probe was set."""
    found: Cycles = cycles[(values >> np.uint64(bit)) & np.uint64(1) == 1]
    return found


def block_checks(run: PimRun, shape: PimShape, seen: PimTimes) -> tuple[list[PortCheck], PimTimes | None]:
    """Compare every block with its own model, at the arrivals and waits recorded at its ports.

    Returns the comparisons, and the times that the models give; None where beats are missing.
    """
    streams, num_slots, words = shape.streams, shape.num_slots, shape.words
    beats = shape.banks.image.gate.input_beats
    refreshes = [first - ISSUE for first in first_refreshes_seen(run)]
    admitted = seen.tokens.offered.copy()
    first_beats = admitted[::beats][num_slots:]
    freed = seen.output.taken[words - 1 :: words] + FREED_LATENCY
    np.maximum(first_beats, freed[: len(first_beats)] + 1, out=first_beats)
    found: list[PortCheck] = []
    into_router_channel = np.zeros(0, dtype=np.int64)
    if seen.router is None:
        gate = gate_cycles(shape.banks.image.gate, admitted, seen.assignments.waits)
        tokens_in, assigned = gate.i, gate.o
        found.append(_cycles("gating", "i", seen.tokens.taken, tokens_in))
    else:
        # Whatever is let in goes into the stores at once.
        tokens_in = admitted_cycles(admitted)
        found.append(_cycles("layer", "i", seen.tokens.taken, tokens_in))
        if len(seen.router.logits) != len(streams.last_token):
            return found, None
        banked = banked_gate_cycles(
            shape.banks.image.gate, seen.router.logits, shape.router_ends, seen.assignments.waits
        )
        assigned = banked.o
        given = router_job_cycles(
            shape.router_ends, seen.tokens.taken[beats - 1 :: beats], banked.freed, seen.router.entries.waits
        )
        found.append(_cycles("router", "jobs", seen.router.entries.taken, given.o))
    dispatch = dispatch_cycles(
        streams,
        seen.assignments.offered,
        expect_ready=seen.expects.waits,
        unit_ready=[entries.waits for entries in seen.entries],
        units=shape.units,
        retired=seen.retired if shape.units else (),
    )
    found += [
        _cycles("gating", "o", seen.assignments.taken, assigned),
        _cycles("dispatch", "i", seen.assignments.taken, dispatch.i),
        _cycles("dispatch", "o_expect", seen.expects.taken, dispatch.o_expect),
    ]
    channels: list[ChannelCycles] = []
    for n, entries in enumerate(dispatch.unit_entries):
        found.append(_cycles("dispatch", f"o_{n}", seen.entries[n].taken, dispatch.entries[entries]))
        if len(seen.entries[n].taken) != len(entries):
            return found, None
        if len(seen.contributions[n].taken) != len(entries) * words:
            return found, None
        into, jobs = seen.entries[n], entries
        if seen.router is not None and n == ROUTER_CHANNEL:
            merged_jobs = job_merge_cycles(
                seen.router.entries.offered,
                np.isin(np.arange(len(streams.last_token)), shape.router_ends),
                seen.entries[n].offered,
                streams.entry_last[entries],
                seen.router.merged.waits,
            )
            found += [
                _cycles("router", "merge i_router", seen.router.entries.taken, merged_jobs.i_router),
                _cycles("router", "merge i_expert", seen.entries[n].taken, merged_jobs.i_expert),
            ]
            into = seen.router.merged
            jobs = into_router_channel = merged_entries(merged_jobs, entries)
        channel = shape.channel(jobs, into.offered, refreshes[n], seen.contributions[n].waits)
        channels.append(channel)
        commands = run.commands[n]
        if into is not seen.entries[n]:
            assert seen.router is not None
            found.append(_cycles("pim", "o_logits", seen.router.logits, channel.logits))
        found += [
            tiles_check(f"o_column of channel {n}, tiles", shape, n, jobs, commands),
            _cycles("pim", f"i of channel {n}", into.taken, channel.i),
            commands_check(f"o_row of channel {n}", commands.rows, channel.rows),
            commands_check(f"o_column of channel {n}", commands.columns, channel.columns),
            _cycles("pim", f"o of channel {n}", seen.contributions[n].taken, channel.o),
        ]
    merged, inputs, combine = combined(
        shape,
        dispatch.unit_entries,
        [contributions.offered for contributions in seen.contributions],
        seen.expects.offered,
        seen.output.waits,
    )
    found += [
        _cycles("combine", f"i_{n}", seen.contributions[n].taken, taken) for n, taken in enumerate(inputs)
    ]
    found += [
        _cycles("combine", "i", seen.merged.taken, merged),
        _cycles("combine", "i_expect", seen.expects.taken, combine.i_expect),
        _cycles("combine", "o", seen.output.taken, combine.o),
    ]
    return found, PimTimes(
        tokens=StreamTimes(seen.tokens.offered, tokens_in),
        assignments=StreamTimes(seen.assignments.offered, assigned),
        expects=StreamTimes(seen.expects.offered, dispatch.o_expect),
        entries=[
            StreamTimes(stream.offered, dispatch.entries[entries])
            for stream, entries in zip(seen.entries, dispatch.unit_entries, strict=True)
        ],
        contributions=[
            StreamTimes(stream.offered, channel.o)
            for stream, channel in zip(seen.contributions, channels, strict=True)
        ],
        merged=StreamTimes(seen.merged.offered, merged),
        output=StreamTimes(seen.output.offered, combine.o),
        retired=[channel.retired for channel in channels],
        unit_entries=list(dispatch.unit_entries),
        router=None
        if seen.router is None
        else RouterTimes(
            entries=StreamTimes(seen.router.entries.offered, given.o),
            merged=StreamTimes(seen.router.merged.offered, channels[ROUTER_CHANNEL].i),
            logits=channels[ROUTER_CHANNEL].logits,
            numbers=into_router_channel,
        ),
    )


def merged_entries(merge: JobMergeCycles, entries: Cycles) -> Cycles:
    """Return the entries that come out of a merge: numbers of the streams, ``-1 - n`` for a routed token."""
    some = np.append(entries, 0)
    numbers: Cycles = np.where(merge.order < 0, merge.order, some[np.maximum(merge.order, 0)])
    return numbers


def admitted_cycles(offered: Cycles) -> Cycles:
    """Return when beats are taken that nothing holds up: one per cycle."""
    steps = np.arange(len(offered))
    return np.maximum.accumulate(offered - steps) + steps


def active_cycles(shape: PimShape, times: PimTimes, unit_entries: Sequence[Cycles]) -> dict[str, int]:
    """Return for each block the cycles in which it holds work and is neither starved nor blocked.

    As the spans of :func:`block_activity`.
    """
    blocks, _ = block_activity(shape, times, unit_entries)
    return {name: block.busy for name, block in blocks.items()}


def block_activity(
    shape: PimShape, times: PimTimes, unit_entries: Sequence[Cycles]
) -> tuple[dict[str, BlockActivity], list[Jobs]]:
    """Return when each block works, and the jobs of each channel.

    * gating: a whole token, or all its logits from the banks, is inside, and no assignment waits to be
      taken;
    * dispatch: a closed window is not yet served, and no entry waits to be taken;
    * pim: a channel holds a whole job, one with the router too, and none of its results waits to be taken;
    * combine: a beat goes in or out.
    """
    streams, words, beats = shape.streams, shape.words, shape.banks.image.gate.input_beats
    top_k = streams.top_k
    taken = np.empty(len(streams.entry_token), dtype=np.int64)
    for entries, stream in zip(unit_entries, times.entries, strict=True):
        taken[entries] = stream.taken
    windows = np.arange(streams.num_windows)
    closed = times.assignments.taken[np.searchsorted(streams.window, windows, side="right") * top_k - 1]
    served = np.full(streams.num_windows, NEVER)
    np.maximum.at(served, streams.entry_window, taken)
    into_gate = times.tokens.taken[beats - 1 :: beats] if times.router is None else times.router.logits
    gating = union(into_gate + 1, times.assignments.taken[top_k - 1 :: top_k] + 1)
    dispatch = union(closed + 1, served + 1)
    jobs, holding, working = [], [], []
    for n, entries in enumerate(unit_entries):
        given, results = times.entries[n], times.contributions[n]
        ends = np.flatnonzero(streams.entry_last[entries])
        experts, tokens = streams.entry_expert[entries[ends]], np.diff(ends, prepend=-1)
        begun, done = given.taken[ends], results.taken[(ends + 1) * words - 1]
        if times.router is not None and n == ROUTER_CHANNEL:
            ends = shape.router_ends
            experts = np.concatenate([experts, np.full(len(ends), ROUTER)])
            tokens = np.concatenate([tokens, np.diff(ends, prepend=-1)])
            begun = np.concatenate([begun, times.router.entries.taken[ends]])
            done = np.concatenate([done, times.router.logits[ends]])
        jobs.append(Jobs.of_unit(n, experts, tokens, begun, done))
        inside = union(begun + 1, done + 1)
        holding.append(inside)
        working.append(without(inside, results.waits))
    beats_of_combine = np.concatenate([times.merged.taken, times.output.taken])
    waiting = np.concatenate([stream.waits for stream in times.entries])
    pim, held = _any(working), _any(holding)
    return {
        "gating": BlockActivity.of(gating, times.assignments.waits),
        "dispatch": BlockActivity.of(dispatch, union(waiting[:, 0], waiting[:, 1])),
        "pim": BlockActivity(pim, 0, 0, size(held) - size(pim)),
        "combine": BlockActivity.of(union(beats_of_combine, beats_of_combine + 1), ALWAYS),
    }, jobs


def _any(sets: Sequence[Spans]) -> Spans:
    """Return the cycles that are in any of several sets."""
    spans = np.concatenate(sets)
    return union(spans[:, 0], spans[:, 1])


def pim_activity(
    shape: PimShape,
    times: PimTimes,
    unit_entries: Sequence[Cycles],
    source: str,
    commands: Mapping[str, NDArray[np.int64]],
) -> Activity:
    """Return when the blocks work.

    Parameters
    ----------
    source : ``model`` or ``rtl``: where the times are from.
    commands : of each name, how many each channel got.
    """
    blocks, jobs = block_activity(shape, times, unit_entries)
    image = shape.banks.image
    return Activity(
        start=int(times.tokens.taken[0]),
        cycles=times.cycles,
        source=source,
        blocks={name: block.coarse(resolution(times.cycles)) for name, block in blocks.items()},
        units=[union(of.start, of.end) for of in jobs],
        jobs=Jobs.joined(jobs),
        tokens=tokens_of_experts(shape.streams, image.num_experts, shared=image.shared is not None),
        commands=commands,
        bank_reads=bank_reads(shape.banks, jobs),
    )


def bank_reads(banks: BankGeometry, jobs: Sequence[Jobs]) -> NDArray[np.int64]:
    """Return (channels, banks) bursts that MACs read: every tile of a job once for each group of its tokens.

    Bank ``side * units + unit``; all units of a side read alike.

    Parameters
    ----------
    jobs : of each channel.
    """

    def tiles(expert: int) -> NDArray[np.int64]:
        """Return (sides,) tiles of an expert."""
        visit = np.arange(banks.kind(expert).num_tiles) // banks.bursts_per_row
        return np.bincount(visit % banks.sides, minlength=banks.sides)

    of_kind = np.stack([tiles(expert) for expert in (0, banks.num_experts, banks.router_number)])
    of_sides = np.empty((len(jobs), banks.sides), dtype=np.int64)
    for channel, of in enumerate(jobs):
        groups = -(-of.tokens // banks.pim.tokens_per_burst)
        kind = np.where(of.expert == ROUTER, 2, of.expert == banks.num_experts)
        of_sides[channel] = groups @ of_kind[kind]
    return of_sides.repeat(banks.pim.units, axis=1)


def first_refreshes_seen(run: PimRun) -> list[int]:
    """Return for each channel the cycle on the bus of a refresh, shifted to the one that precedes the run."""
    offsets = [refresh_offset(run.banks, n) for n in range(run.banks.pim.channels)]
    refi = CommandTiming.of(run.banks.pim).refi
    if not refi:
        return [0] * len(offsets)
    since = run.result.since_reset
    # The last one at or before cycle 0: it may still be under way then.
    return [(offset - since) % refi - refi + ISSUE for offset in offsets]


def _cycles(block: str, port: str, seen: Cycles, expected: Cycles) -> PortCheck:
    return PortCheck(block, port, Trace.of_cycles(seen), cycles=expected)


def tiles_check(port: str, shape: PimShape, channel: int, entries: Cycles, commands: Commands) -> PortCheck:
    """Compare the tiles that rows and columns on the buses name with those that the channel's jobs need."""
    inside = Commands(commands.rows, commands.columns[commands.columns[:, 0] >= 0])
    macs = inside.of(MAC, column=True)
    needed = tiles_needed(
        shape.banks, shape.banks.bases(shape.placement)[channel], *shape.entries_of(entries)
    )
    return PortCheck(
        "pim",
        port,
        Trace(macs[:, 0], tiles_read(shape.banks, inside).astype(np.uint64).reshape(-1, 1)),
        payloads=needed.astype(np.uint64),
    )


def commands_check(port: str, seen: NDArray[np.int64], expected: NDArray[np.int64]) -> PortCheck:
    """Compare cycle, kind and side of all commands up to the last one that the model tells."""
    upto = int(expected[-1, 0]) if len(expected) else -1
    seen, expected = seen[(seen[:, 0] >= 0) & (seen[:, 0] <= upto)], expected[expected[:, 0] >= 0]
    return PortCheck(
        "pim",
        port,
        Trace(seen[:, 0], (seen[:, 1] | seen[:, 2] << 8).astype(np.uint64).reshape(-1, 1)),
        payloads=(expected[:, 1] | expected[:, 2] << 8).astype(np.uint64),
        cycles=expected[:, 0],
    )
