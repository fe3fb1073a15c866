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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from golden.dispatch_streams import DispatchStreams
from sim.combine import FREED_LATENCY, Adder, add, emit_token, new_adder
from sim.combine_ordered import ANNOUNCE_CYCLES, STORE_CYCLES, read_token
from sim.compiled import compiled, compiled_inline, depends_on_sim
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
    COUNT,
    FIRST,
    NEVER,
    OUT_ENTRY,
    OUT_WORD,
    QUEUE_LATENCY,
    READ_LATENCY,
    RESULTS,
    RETIRED,
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
        of its entries. Not told: (0, words).
    merged : all contribution beats into the combiner. Not told: none.
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

    top_k: int
    sizes: tuple[int, int, int, int, int, int, int]
    last_in: Cycles
    launch: Cycles
    o: Cycles


class _Given(NamedTuple):
    """What does not change in a run.

    Attributes
    ----------
    several : channels; else one.
    walked : see :func:`sim.pim.advance`.
    admitted : (tokens,) cycle from which each token's beats are offered; from its routing on, to a free slot.
    job_kinds : per job, 1 for the shared expert, else 0.
    entry_token : per entry.
    contributions : per token, how many it gets.
    commands : none; they are not told.
    """

    several: bool
    walked: bool
    num_slots: int
    words: int
    admitted: Cycles
    job_kinds: Cycles
    entry_token: Cycles
    contributions: Cycles
    commands: NDArray[np.int64]


class _Beats(NamedTuple):
    """Beats of contributions and outputs.

    Attributes
    ----------
    offered, taken, merged, i_expect, o : as in :class:`Flow`.
    inside : (channels, 2) tokens whose contributions end with the beats in the merger, or -1.
    places : (channels, 3) the job whose beats are being taken; the row and the column, of all its entries'
        beats, of the next one.
    tokens : (3, tokens) contributions that are not there yet; when the last one is stored; when the slot is
        freed.
    at : scalars, see below.
    """

    offered: NDArray[np.int64]
    taken: NDArray[np.int64]
    merged: Cycles
    i_expect: Cycles
    o: Cycles
    inside: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    at: Cycles


_LEFT, _STORED, _FREED = range(3)
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
    walked: bool = False,
    told: bool = True,
) -> Flow:
    """Return what all blocks do.

    Parameters
    ----------
    units : the channels that hold each expert; None: one channel.
    num_slots : of the token stores.
    arrivals : (tokens,) cycle from which each token's beats are offered, one per cycle.
    refreshes : for each channel the cycle of its first refresh.
    walked : see :func:`sim.pim.advance`.
    told : whether each contribution beat is: most of what a run would keep.
    """
    gates, dispatch = GateModel(gate, len(arrivals)), DispatchModel(streams, units=units)
    numbers, table, bounds = shape.numbers(), shape.table(), streams.job_bounds
    num_tokens, num_jobs, num_channels = len(arrivals), len(bounds) - 1, len(refreshes)
    contributions = np.bincount(streams.entry_token, minlength=num_tokens)
    experts = streams.entry_expert[bounds[:-1]]
    placed = [(dispatch.plan.job_units >> np.uint64(n)) & np.uint64(1) for n in range(num_channels)]
    channels = new_channels(numbers, table, refreshes, num_jobs)
    times = np.empty((2, len(streams.entry_token) if told else 0, shape.words), dtype=np.int64)
    beats = _Beats(
        offered=times[0],
        taken=times[1],
        merged=np.empty(times[0].size, dtype=np.int64),
        i_expect=np.empty(num_tokens, dtype=np.int64),
        o=np.empty(num_tokens * shape.words, dtype=np.int64),
        inside=np.full((num_channels, 2), -1),
        places=np.zeros((num_channels, 3), dtype=np.int64),
        tokens=np.stack([contributions, np.zeros_like(contributions), np.zeros_like(contributions)]),
        at=np.array([0, 0, 0, NEVER], dtype=np.int64),
    )
    ended = _run(
        _Given(
            several=units is not None,
            walked=walked,
            num_slots=num_slots,
            words=shape.words,
            admitted=arrivals.copy(),
            job_kinds=(experts == gate.gating.num_ffn_experts).astype(np.int64),
            entry_token=streams.entry_token.astype(np.int64),
            contributions=contributions,
            commands=np.empty((0, 3), dtype=np.int64),
        ),
        _Gate(
            gate.gating.top_k,
            gates.sizes,
            gates.last_in,
            gates.launch,
            gates.o,
        ),
        dispatch.plan,
        dispatch.state,
        numbers,
        table,
        channels,
        new_merger(num_channels),
        new_adder(num_tokens, num_slots, shape.words),
        beats,
        np.array([which.sum() for which in placed], dtype=np.int64),
        np.zeros(num_channels, dtype=np.int64),
    )
    assert ended, "the layer's blocks wait for each other"
    retired = [of[RETIRED, :count] for of, count in zip(channels.jobs, channels.at["jobs"], strict=True)]
    return Flow(
        gate=gates,
        dispatch=dispatch,
        dispatched=dispatch.cycles(),
        offered=beats.offered,
        taken=beats.taken,
        merged=beats.merged,
        i_expect=beats.i_expect,
        o=beats.o,
        retired=retired,
        totals=[ChannelTotals.of(numbers, channels, n) for n in range(num_channels)],
    )


@depends_on_sim
@compiled
def _run(
    given: _Given,
    gate: _Gate,
    plan: Plan,
    state: State,
    numbers: ChannelNumbers,
    table: NDArray[np.int64],
    channels: Channels,
    merger: Merger,
    adder: Adder,
    beats: _Beats,
    more: Cycles,
    clock: Cycles,
) -> bool:
    """Fill all cycles; return False if nothing goes on although tokens are inside.

    Parameters
    ----------
    more : per channel, jobs not chosen yet that it may get.
    clock : per channel the first cycle of which not all is known; of no meaning without a job.
    """
    at, now = beats.at, state.now
    while True:
        # Let all that follows from what the channels have done take place.
        passed, next_beat = -1, np.int64(-1)
        while passed != _passed(at, now) or next_beat != at[_NEXT_BEAT]:
            passed, next_beat = _passed(at, now), at[_NEXT_BEAT]
            _give_jobs(given, plan, state, channels, at, clock, more)
            if given.several:
                _merge(given, channels, merger, beats, clock, more, now[NEXT_CHOICE])
            else:
                _collect(given, channels, adder, beats)
            _send(given, plan.windows[now[FILLED]], state.o_expect, adder.written, beats)
            _route(given, gate, plan, state, beats)
        if at[_TOKENS_OUT] == len(given.admitted):
            return True

        # Let the channel that is behind the others go on.
        behind = -1
        for n in range(len(clock)):
            if _busy(channels.at, n) and (behind < 0 or clock[n] < clock[behind]):
                behind = n
        if behind < 0:
            return False
        before, next_job = clock[behind], NEVER
        if given.several and more[behind]:
            others = _first_clock(channels.at, clock, behind)
            next_job = min(others, next_beat, now[NEXT_CHOICE]) + CHOICE_TO_JOB
        # What is read now is in the combiner later than this.
        at[_NEXT_BEAT] = min(next_beat, before + READ_TO_BEAT)
        clock[behind] = advance(
            numbers,
            table,
            channels,
            behind,
            next_job,
            CHOICE_TO_JOB if given.several else ALONE,
            next_beat if next_beat < NEVER else np.int64(0),
            NEVER,
            given.walked,
            given.commands,
            given.commands,
        )
        done = channels.at[behind].d_job
        if given.several:
            for job in range(state.num_pulses[behind], done):
                state.pulses[behind, job] = channels.jobs[behind, RETIRED, job]
            state.num_pulses[behind] = done
        if _busy(channels.at, behind) and clock[behind] == before and at[_NEXT_BEAT] == next_beat:
            return False


@compiled
def _passed(at: Cycles, now: Cycles) -> int:
    """Return a number that grows with each beat, job or window that has passed on."""
    return int(at[_MERGED] + at[_TOKENS_OUT] + now[PICKS] + now[OFFERED])


@compiled
def _busy(channels_at: Any, channel: int) -> bool:
    """Whether a channel has a job; without one nobody hears of it."""
    c = channels_at[channel]
    return bool(c.d_job < c.jobs)


@compiled
def _first_clock(channels_at: Any, clock: Cycles, but: int) -> int:
    """Return the first cycle of which not all is known of the channels with jobs, ``but`` one of them."""
    first = NEVER
    for n in range(len(clock)):
        if n != but and _busy(channels_at, n):
            first = min(first, clock[n])
    return int(first)


@compiled_inline
def _route(given: _Given, gate: _Gate, plan: Plan, state: State, beats: _Beats) -> None:
    """Route the next windows whose tokens have slots."""
    while state.now[OFFERED] < plan.windows.size - 1:
        window = state.now[OFFERED]
        first, end = plan.windows[window], plan.windows[window + 1]
        filled = state.now[FILLED] == window
        if not filled or state.room[window] == NOT_YET or end - given.num_slots > beats.at[_TOKENS_OUT]:
            break
        admitted = given.admitted[first:end]
        for token in range(max(first, given.num_slots), end):
            freed = beats.tokens[_FREED, token - given.num_slots]
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
        for n in range(first * gate.top_k, end * gate.top_k):
            state.arrivals[n] = gate.o[n]
        state.now[OFFERED] = window + 1
        fill_window(plan, state)


@compiled_inline
def _give_jobs(
    given: _Given, plan: Plan, state: State, channels: Channels, at: Cycles, clock: Cycles, more: Cycles
) -> None:
    """Let the dispatcher choose as far as it is known what it chooses from."""
    bounds = plan.job_bounds
    while True:
        known = NEVER
        if given.several:
            # A window that is not there yet closes after the beat that its last token waits for.
            known = min(_first_clock(channels.at, clock, -1), at[_NEXT_BEAT])
        elif BANKS <= state.now[PICKS] < bounds.size - 1:
            # Jobs go to the one channel as they stand; it takes one when that before the last is done with.
            job = state.now[PICKS]
            if channels.jobs[0, RETIRED, job - BANKS] == NEVER:
                break
            state.rooms[bounds[job] : bounds[job + 1]] = channels.jobs[0, RETIRED, job - BANKS] + 1
        job = serve_jobs(plan, state, True, known)
        if job < 0:
            break
        channel = state.job_unit[job]
        entries = state.entries[bounds[job] : bounds[job + 1]]
        if not _busy(channels.at, channel):
            clock[channel] = entries[-1]
        add_job(channels, channel, given.job_kinds[job], bounds[job], entries, entries)
        for n in range(len(more)):
            if plan.job_units[job] >> np.uint64(n) & np.uint64(1):
                more[n] -= 1


@compiled
def _next_token(given: _Given, channels: Channels, channel: int) -> int:
    """Return the token whose contribution ends with the first beat in the output register, or -1."""
    c = channels.at[channel]
    read = c.gone_reads % RESULTS
    if channels.results[channel, OUT_WORD, read] + c.gone_part < given.words - 1:
        return -1
    return int(given.entry_token[channels.results[channel, OUT_ENTRY, read]])


@compiled
def _take(channels: Channels, channel: int, beats: _Beats, offered: int, cycle: int) -> None:
    """Take the first beat from a channel's output register, and note when."""
    job, row, word = beats.places[channel]
    if len(beats.offered):
        entry = channels.jobs[channel, FIRST, job] + row
        beats.offered[entry, word] = offered
        beats.taken[entry, word] = cycle
    word += 1
    if word == beats.offered.shape[1]:
        row, word = row + 1, 0
        if row == channels.jobs[channel, COUNT, job]:
            beats.places[channel, 0], row = job + 1, 0
        beats.places[channel, 1] = row
    beats.places[channel, 2] = word
    take_output(channels, channel, cycle)
    fill_register(channels, channel)


@compiled_inline
def _collect(given: _Given, channels: Channels, adder: Adder, beats: _Beats) -> None:
    """Let the combiner take what the one channel gives."""
    at, c = beats.at, channels.at[0]
    fill_register(channels, 0)
    while c.gone < c.filled:
        ended = _next_token(given, channels, 0)
        token = given.entry_token[channels.results[0, OUT_ENTRY, c.gone_reads % RESULTS]]
        offered = output_offered(channels, 0)
        cycle = add(adder, token, offered)
        _take(channels, 0, beats, offered, cycle)
        if len(beats.merged):
            beats.merged[at[_MERGED]] = cycle
        at[_MERGED] += 1
        if ended >= 0:
            beats.tokens[_LEFT, token] -= 1
    at[_NEXT_BEAT] = NEVER


@compiled_inline
def _merge(
    given: _Given,
    channels: Channels,
    merger: Merger,
    beats: _Beats,
    clock: Cycles,
    more: Cycles,
    next_choice: int,
) -> None:
    """Let merger and combiner take what the channels give, as far as no other beat can come before.

    Stops when a token is complete: what follows from that may be an idle channel's next job.
    """
    at, tokens = beats.at, beats.tokens
    idle_clock = min(_first_clock(channels.at, clock, -1), next_choice) + CHOICE_TO_JOB
    for n in range(len(clock)):
        fill_register(channels, n)
    while True:
        first_unknown = NEVER
        for n in range(len(clock)):
            c = channels.at[n]
            while c.gone < c.filled and has_room(merger, n):
                beats.inside[n, merger.entered[n] % 2] = _next_token(given, channels, n)
                offered = output_offered(channels, n)
                _take(channels, n, beats, offered, enter(merger, n, offered))
            if merger.given[n] == merger.entered[n]:
                if _busy(channels.at, n):
                    first_unknown = min(first_unknown, clock[n] + READ_TO_BEAT)
                elif more[n]:
                    first_unknown = min(first_unknown, idle_clock + READ_TO_BEAT)
        cycle = next_given(merger)
        if cycle >= first_unknown or cycle >= NEVER:
            # With nothing inside, what comes is up to the channels.
            at[_NEXT_BEAT] = NEVER if cycle >= NEVER else first_unknown
            break
        channel = give(merger, cycle)
        left = leave(merger, cycle, ALWAYS)
        if len(beats.merged):
            beats.merged[at[_MERGED]] = left
        at[_MERGED] += 1
        token = beats.inside[channel, (merger.given[channel] - 1) % 2]
        if token >= 0:
            tokens[_LEFT, token] -= 1
            tokens[_STORED, token] = max(tokens[_STORED, token], left + STORE_CYCLES)
            if tokens[_LEFT, token] == 0:
                at[_NEXT_BEAT] = cycle
                break


@compiled_inline
def _send(given: _Given, routed: int, announced: Cycles, written: Cycles, beats: _Beats) -> None:
    """Let the combiner send the tokens that are complete, of those routed."""
    at, words = beats.at, given.words
    while at[_TOKENS_OUT] < routed and beats.tokens[_LEFT, at[_TOKENS_OUT]] == 0:
        token = at[_TOKENS_OUT]
        expected = announced[token]
        if token:
            expected = max(expected, beats.i_expect[token - 1] + 1)
        beats.i_expect[token] = expected
        if given.several:
            begin = max(at[_FREE], beats.tokens[_STORED, token], expected + ANNOUNCE_CYCLES)
            at[_FREE] = read_token(token, begin, given.contributions[token], words, ALWAYS, beats.o)
        else:
            emit_token(token, written[token], expected, words, ALWAYS, beats.o)
        beats.tokens[_FREED, token] = beats.o[(token + 1) * words - 1] + FREED_LATENCY
        at[_TOKENS_OUT] += 1
