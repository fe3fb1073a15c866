"""Gate, dispatcher, channels, merger and combiner of a near-memory layer in one run.

The blocks are those of :mod:`sim.gating`, :mod:`sim.dispatch`, :mod:`sim.pim`, :mod:`sim.merge` and
:mod:`sim.combine_ordered` (one channel: :mod:`sim.combine`), step by step instead of whole: each goes on as
far as it is known what it is given. All that a block hears of another one comes at least a cycle later, so
the block that is behind all others can always go on: the run ends, and nothing is computed twice.

* A channel goes on until its next event depends on a job that is not chosen yet, or on an output that is
  not taken yet. When the next job can come at the earliest follows from what the other channels, the merger
  and the dispatcher have still before them.
* The dispatcher chooses up to the cycle before which all channels are known to be done with what they were.
* The merger gives a beat when no channel can still have an earlier one.
* A token's outputs follow from its last contribution, its slot's next token from them, and with a window's
  last token the dispatcher has the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from golden.dispatch_streams import DispatchStreams
from sim.combine import FREED_LATENCY, Adder, add, emit_token, new_adder
from sim.combine_ordered import ANNOUNCE_CYCLES, STORE_CYCLES, read_token
from sim.compiled import depends_on_sim
from sim.dispatch import (
    ENTRY_CYCLES,
    FILLED,
    HEAD_CYCLES,
    NEXT_CHOICE,
    OFFERED,
    PICK_CYCLES,
    PICKS,
    REGISTER_CYCLES,
    DispatchCycles,
    DispatchModel,
    Plan,
    State,
    Units,
    fill_window,
    serve_jobs,
)
from sim.gating import GateModel, walk_tokens
from sim.merge import Merger, enter, give, has_room, leave, new_merger, next_given
from sim.pim import (
    BANKS,
    NEVER,
    QUEUE_LATENCY,
    READ_LATENCY,
    ChannelNumbers,
    Channels,
    ChannelShape,
    ChannelTotals,
    add_job,
    advance,
    fill_register,
    new_channels,
    output_offered,
    take_output,
)
from sim.streams import ALWAYS, Cycles
from sim.streams import NEVER as NOT_YET
from spec.geometry import GateGeometry

CHOICE_TO_JOB = PICK_CYCLES + HEAD_CYCLES + ENTRY_CYCLES + REGISTER_CYCLES
"""From the choice of a job to its first entry, at least."""
READ_TO_BEAT = READ_LATENCY + QUEUE_LATENCY
"""From a read of outputs to their first beat, at least."""
ALONE = 1
"""With one channel: from its being done with a job to the next one being complete, at least."""


@dataclass(frozen=True)
class Flow:
    """What all blocks do in a run whose output is always ready.

    Attributes
    ----------
    gate, dispatch : their cycles.
    offered, taken : (entries, words) contribution beats; a job's beats, in the channel's order, fill the rows
        of its entries.
    merged : all contribution beats into the combiner.
    i_expect, o : (tokens,), (tokens * words,) of the combiner.
    retired : per channel, when its jobs are done with.
    totals : per channel.
    """

    gate: GateModel
    dispatch: DispatchModel
    dispatched: DispatchCycles
    offered: NDArray[np.int64]
    taken: NDArray[np.int64]
    merged: Cycles
    i_expect: Cycles
    o: Cycles
    retired: list[Cycles]
    totals: list[ChannelTotals]


class _Gate(NamedTuple):
    """The gate: what :func:`sim.gating.walk_tokens` takes."""

    sizes: tuple[int, int, int, int, int, int, int]
    top_k: int
    last_in: Cycles
    launch: Cycles
    o: Cycles


class _Layer(NamedTuple):
    """All blocks, and what passes between them.

    Attributes
    ----------
    arrivals : (tokens,) cycle from which each token's beats are offered.
    job_kinds : per job, 1 for the shared expert, else 0.
    entry_token : per entry.
    contributions, left : per token, those that it gets, and those that are not there yet.
    more : per channel, jobs not chosen yet that it may get.
    clock : per channel, first cycle of which not all is known; of no meaning without a job.
    complete : per token, when its last contribution is stored; several channels.
    freed : per token, when its slot is.
    inside : (channels, 2) tokens whose contributions end with the beats in the merger, or -1.
    beat_job, beat_place : per channel, its job whose beats are being taken, and those taken of it.
    commands : none; they are not told.
    at : scalars, see below.
    """

    gate: _Gate
    plan: Plan
    state: State
    numbers: ChannelNumbers
    table: NDArray[np.int64]
    channels: Channels
    merger: Merger
    adder: Adder
    several: bool
    num_slots: int
    arrivals: Cycles
    job_kinds: Cycles
    entry_token: Cycles
    contributions: Cycles
    left: Cycles
    more: Cycles
    clock: Cycles
    complete: Cycles
    freed: Cycles
    inside: NDArray[np.int64]
    beat_job: Cycles
    beat_place: Cycles
    offered: NDArray[np.int64]
    taken: NDArray[np.int64]
    merged: Cycles
    i_expect: Cycles
    o: Cycles
    commands: NDArray[np.int64]
    at: Cycles


_MERGED, _TOKENS_OUT, _FREE, _NEXT_BEAT = range(4)
"""Beats in the combiner; tokens out; when the combiner may read the next one; a cycle before which no other
beat is on its way into the combiner (NEVER: none is known)."""


def run_channels(
    shape: ChannelShape,
    gate: GateGeometry,
    streams: DispatchStreams,
    units: Units | None,
    num_slots: int,
    arrivals: Cycles,
    refreshes: list[int],
) -> Flow:
    """Return what all blocks do.

    Parameters
    ----------
    units : the channels that hold each expert; None: one channel.
    num_slots : of the token stores.
    arrivals : (tokens,) cycle from which each token's beats are offered, one per cycle.
    refreshes : for each channel the cycle of its first refresh.
    """
    gates, dispatch = GateModel(gate, len(arrivals)), DispatchModel(streams, units=units)
    numbers, table, bounds = shape.numbers(), shape.table(), streams.job_bounds
    num_tokens, num_jobs, num_channels = len(arrivals), len(bounds) - 1, len(refreshes)
    num_experts = gate.gating.num_experts
    contributions = np.bincount(streams.entry_token, minlength=num_tokens)
    beats = np.empty((2, len(streams.entry_token), shape.words), dtype=np.int64)
    experts = streams.entry_expert[bounds[:-1]]
    placed = [(dispatch.plan.job_units >> np.uint64(n)) & np.uint64(1) for n in range(num_channels)]
    layer = _Layer(
        gate=_Gate(
            gates.sizes,
            gate.gating.top_k,
            gates.last_in,
            gates.launch,
            gates.o,
        ),
        plan=dispatch.plan,
        state=dispatch.state,
        numbers=numbers,
        table=table,
        channels=new_channels(numbers, table, refreshes, num_jobs),
        merger=new_merger(num_channels),
        adder=new_adder(num_tokens, num_slots, shape.words),
        several=units is not None,
        num_slots=num_slots,
        arrivals=arrivals,
        job_kinds=(experts == num_experts).astype(np.int64),
        entry_token=streams.entry_token.astype(np.int64),
        contributions=contributions,
        left=contributions.copy(),
        more=np.array([which.sum() for which in placed], dtype=np.int64),
        clock=np.zeros(num_channels, dtype=np.int64),
        complete=np.zeros(num_tokens, dtype=np.int64),
        freed=np.zeros(num_tokens, dtype=np.int64),
        inside=np.full((num_channels, 2), -1),
        beat_job=np.zeros(num_channels, dtype=np.int64),
        beat_place=np.zeros(num_channels, dtype=np.int64),
        offered=beats[0],
        taken=beats[1],
        merged=np.empty(beats[0].size, dtype=np.int64),
        i_expect=np.empty(num_tokens, dtype=np.int64),
        o=np.empty(num_tokens * shape.words, dtype=np.int64),
        commands=np.empty((0, 3), dtype=np.int64),
        at=np.array([0, 0, 0, NEVER], dtype=np.int64),
    )
    assert _run(layer), "the layer's blocks wait for each other"
    jobs = layer.channels.at["jobs"]
    return Flow(
        gate=gates,
        dispatch=dispatch,
        dispatched=dispatch.cycles(),
        offered=layer.offered,
        taken=layer.taken,
        merged=layer.merged,
        i_expect=layer.i_expect,
        o=layer.o,
        retired=[retired[:count] for retired, count in zip(layer.channels.retired, jobs, strict=True)],
        totals=[ChannelTotals.of(numbers, layer.channels, n) for n in range(num_channels)],
    )


@depends_on_sim
@njit(cache=True)
def _run(layer: _Layer) -> bool:
    """Fill all cycles; return False if nothing goes on although tokens are inside."""
    clock, channels, at = layer.clock, layer.channels, layer.at
    _pass_on(layer)
    while at[_TOKENS_OUT] < len(layer.arrivals):
        behind = -1
        for n in range(len(clock)):
            if _busy(channels, n) and (behind < 0 or clock[n] < clock[behind]):
                behind = n
        if behind < 0:
            return False
        before, passed = clock[behind], _passed(layer)
        _advance(layer, behind)
        _pass_on(layer)
        if _busy(channels, behind) and clock[behind] == before and _passed(layer) == passed:
            return False
    return True


@njit(cache=True)
def _busy(channels: Channels, channel: int) -> bool:
    """Whether a channel has a job; without one nobody hears of it."""
    c = channels.at[channel]
    return bool(c.d_job < c.jobs)


@njit(cache=True)
def _first_clock(layer: _Layer, but: int) -> int:
    """Return the first cycle of which not all is known of the channels with jobs, ``but`` one of them."""
    first = NEVER
    for n in range(len(layer.clock)):
        if n != but and _busy(layer.channels, n):
            first = min(first, layer.clock[n])
    return int(first)


@njit(cache=True)
def _advance(layer: _Layer, channel: int) -> None:
    """Let a channel go on, and tell the dispatcher of the jobs that it is done with."""
    state, channels, at = layer.state, layer.channels, layer.at
    next_job, next_beat = NEVER, at[_NEXT_BEAT]
    if layer.several and layer.more[channel]:
        next_job = min(_first_clock(layer, channel), next_beat, state.now[NEXT_CHOICE]) + CHOICE_TO_JOB
    # What is read now is in the combiner later than this.
    at[_NEXT_BEAT] = min(next_beat, layer.clock[channel] + READ_TO_BEAT)
    layer.clock[channel] = advance(
        layer.numbers,
        layer.table,
        channels,
        channel,
        next_job,
        CHOICE_TO_JOB if layer.several else ALONE,
        next_beat if next_beat < NEVER else np.int64(0),
        NEVER,
        layer.commands,
        layer.commands,
    )
    if layer.several:
        for job in range(state.num_pulses[channel], channels.at[channel].d_job):
            state.pulses[channel, job] = channels.retired[channel, job]
            state.num_pulses[channel] += 1


@njit(cache=True)
def _pass_on(layer: _Layer) -> None:
    """Let all that follows from what the channels have done take place."""
    passed, next_beat = -1, np.int64(0)
    while passed != _passed(layer) or next_beat != layer.at[_NEXT_BEAT]:
        passed, next_beat = _passed(layer), layer.at[_NEXT_BEAT]
        _give_jobs(layer)
        if layer.several:
            _merge(layer)
        else:
            _collect(layer)
        _send(layer)
        _route(layer)


@njit(cache=True)
def _passed(layer: _Layer) -> int:
    """Return a number that grows with each beat, job or window that has passed on."""
    return int(layer.at[_MERGED] + layer.at[_TOKENS_OUT] + layer.state.now[PICKS] + layer.state.now[OFFERED])


@njit(cache=True)
def _route(layer: _Layer) -> None:
    """Route the next windows whose tokens have slots."""
    gate, plan, state, at = layer.gate, layer.plan, layer.state, layer.at
    while state.now[OFFERED] < plan.windows.size - 1:
        window = state.now[OFFERED]
        first, end = plan.windows[window], plan.windows[window + 1]
        filled = state.now[FILLED] == window
        if not filled or state.room[window] == NOT_YET or end - layer.num_slots > at[_TOKENS_OUT]:
            break
        admitted = layer.arrivals[first:end].copy()
        for token in range(max(first, layer.num_slots), end):
            freed = layer.freed[token - layer.num_slots]
            admitted[token - first] = max(admitted[token - first], freed + 1)
        walk_tokens(
            first,
            admitted,
            state.opened[window],
            ALWAYS,
            gate.sizes,
            gate.last_in,
            gate.launch,
            gate.o,
        )
        beats = slice(first * gate.top_k, end * gate.top_k)
        state.arrivals[beats] = gate.o[beats]
        state.now[OFFERED] = window + 1
        fill_window(plan, state)


@njit(cache=True)
def _give_jobs(layer: _Layer) -> None:
    """Let the dispatcher choose as far as it is known what it chooses from."""
    plan, state, channels = layer.plan, layer.state, layer.channels
    bounds = plan.job_bounds
    while True:
        known = NEVER
        if layer.several:
            # A window that is not there yet closes after the beat that its last token waits for.
            known = min(_first_clock(layer, -1), layer.at[_NEXT_BEAT])
        else:
            # Jobs go to the one channel as they stand; it takes one when that before the last is done with.
            job = state.now[PICKS]
            if job == bounds.size - 1:
                break
            if job >= BANKS:
                if channels.retired[0, job - BANKS] == NEVER:
                    break
                state.rooms[bounds[job] : bounds[job + 1]] = channels.retired[0, job - BANKS] + 1
        job = serve_jobs(plan, state, True, known)
        if job < 0:
            break
        channel = state.job_unit[job]
        entries = state.entries[bounds[job] : bounds[job + 1]]
        if not _busy(channels, channel):
            layer.clock[channel] = entries[-1]
        add_job(channels, channel, layer.job_kinds[job], bounds[job], entries, entries)
        for n in range(len(layer.more)):
            if plan.job_units[job] >> np.uint64(n) & np.uint64(1):
                layer.more[n] -= 1


@njit(cache=True)
def _beat(layer: _Layer, channel: int, offered: int, cycle: int) -> None:
    """Note when a channel's next beat is offered and taken."""
    channels = layer.channels
    job, place = layer.beat_job[channel], layer.beat_place[channel]
    words = layer.offered.shape[1]
    first = channels.firsts[channel, job]
    layer.offered[first + place // words, place % words] = offered
    layer.taken[first + place // words, place % words] = cycle
    layer.beat_place[channel] += 1
    if place + 1 == channels.counts[channel, job] * words:
        layer.beat_job[channel] += 1
        layer.beat_place[channel] = 0


@njit(cache=True)
def _collect(layer: _Layer) -> None:
    """Let the combiner take what the one channel gives."""
    channels, at = layer.channels, layer.at
    c, words = channels.at[0], layer.offered.shape[1]
    fill_register(channels, 0)
    while c.gone < c.filled:
        read = c.gone_reads % channels.out_entry.shape[1]
        token = layer.entry_token[channels.out_entry[0, read]]
        if channels.out_word[0, read] + c.gone_part == words - 1:
            layer.left[token] -= 1
        offered = output_offered(channels, 0)
        cycle = add(layer.adder, token, offered)
        _beat(layer, 0, offered, cycle)
        take_output(channels, 0, cycle)
        fill_register(channels, 0)
        layer.merged[at[_MERGED]] = cycle
        at[_MERGED] += 1


@njit(cache=True)
def _merge(layer: _Layer) -> None:
    """Let merger and combiner take what the channels give, as far as no other beat can come before.

    Stops when a token is complete: what follows from that may be an idle channel's next job.
    """
    channels, merger, at = layer.channels, layer.merger, layer.at
    first_clock = _first_clock(layer, -1)
    idle_clock = min(first_clock, layer.state.now[NEXT_CHOICE]) + CHOICE_TO_JOB
    while True:
        first_unknown = NEVER
        for n in range(len(layer.clock)):
            _enter_merger(layer, n)
            if merger.given[n] == merger.entered[n]:
                if _busy(channels, n):
                    first_unknown = min(first_unknown, layer.clock[n] + READ_TO_BEAT)
                elif layer.more[n]:
                    first_unknown = min(first_unknown, idle_clock + READ_TO_BEAT)
        cycle = next_given(merger)
        if cycle >= first_unknown or cycle >= NEVER:
            # Nothing inside: what comes is up to the channels.
            at[_NEXT_BEAT] = NEVER if cycle >= NEVER else first_unknown
            break
        channel = give(merger, cycle)
        left = leave(merger, cycle, ALWAYS)
        layer.merged[at[_MERGED]] = left
        at[_MERGED] += 1
        beat = (merger.given[channel] - 1) % 2
        token = layer.inside[channel, beat]
        if token >= 0:
            layer.left[token] -= 1
            layer.complete[token] = max(layer.complete[token], left + STORE_CYCLES)
            if layer.left[token] == 0:
                at[_NEXT_BEAT] = cycle
                break


@njit(cache=True)
def _enter_merger(layer: _Layer, channel: int) -> None:
    """Let a channel's beats into the merger as far as it is known when there is room."""
    channels, merger = layer.channels, layer.merger
    c, words = channels.at[channel], layer.offered.shape[1]
    fill_register(channels, channel)
    while c.gone < c.filled and has_room(merger, channel):
        read = c.gone_reads % channels.out_entry.shape[1]
        token = layer.entry_token[channels.out_entry[channel, read]]
        ends = channels.out_word[channel, read] + c.gone_part == words - 1
        layer.inside[channel, merger.entered[channel] % 2] = token if ends else -1
        offered = output_offered(channels, channel)
        cycle = enter(merger, channel, offered)
        _beat(layer, channel, offered, cycle)
        take_output(channels, channel, cycle)
        fill_register(channels, channel)


@njit(cache=True)
def _send(layer: _Layer) -> None:
    """Let the combiner send the tokens that are complete."""
    at, words = layer.at, layer.offered.shape[1]
    routed = layer.plan.windows[layer.state.now[FILLED]]
    while at[_TOKENS_OUT] < routed and layer.left[at[_TOKENS_OUT]] == 0:
        token = at[_TOKENS_OUT]
        expected = layer.state.o_expect[token]
        if token:
            expected = max(expected, layer.i_expect[token - 1] + 1)
        layer.i_expect[token] = expected
        if layer.several:
            begin = max(at[_FREE], layer.complete[token], expected + ANNOUNCE_CYCLES)
            at[_FREE] = read_token(token, begin, layer.contributions[token], words, ALWAYS, layer.o)
        else:
            emit_token(token, layer.adder.written[token], expected, words, ALWAYS, layer.o)
        layer.freed[token] = layer.o[(token + 1) * words - 1] + FREED_LATENCY
        at[_TOKENS_OUT] += 1
