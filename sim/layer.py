"""Cycle model of the ``fpga`` layer: the block models, joined where the blocks are.

One block's times are the next one's arrivals, and what a block holds says when there is room before
it. Room comes from earlier tokens only, so each window of tokens goes through the blocks once: the gate
waits for the slots of the tokens two windows ago, the dispatcher until the window before the last is
served (or the last one decided), a job until the one before the last is done with. Jobs of one window
wait for each other in this way; so the window's entries are computed twice, first as the dispatcher alone
would give them, then with the room that the engine turned out to have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from golden.dispatch_streams import DispatchStreams
from sim.activity import Activity, BlockActivity, Jobs, resolution, tokens_of_experts
from sim.combine import FREED_LATENCY, combine_cycles, new_sender, token_outputs
from sim.dispatch import DispatchModel, dispatch_cycles
from sim.expert import EngineShape, ExpertModel, expert_cycles
from sim.gating import GateModel, gate_cycles
from sim.streams import (
    ALWAYS,
    NEVER,
    Cycles,
    Spans,
    Trains,
    common,
    common_with_trains,
    size,
    train_spans,
    union,
    without,
)
from spec.design import DeepBlock, DesignSpec
from spec.geometry import ImageGeometry

BLOCKS = ("gating", "dispatch", "expert", "combine")


@dataclass(frozen=True)
class LayerShape:
    """What the model needs to know of a layer's hardware and of the tokens' routing."""

    image: ImageGeometry
    design: DesignSpec
    streams: DispatchStreams

    @property
    def engine(self) -> EngineShape:
        """The expert engine."""
        return EngineShape.of_design(self.image, self.design)

    @property
    def num_slots(self) -> int:
        """Tokens of the token store."""
        return 2 * self.design.window_tokens

    @property
    def entry_shared(self) -> NDArray[np.bool_]:
        """Whether each entry's expert is the shared one."""
        shared: NDArray[np.bool_] = self.streams.entry_expert == self.image.num_experts
        return shared

    @property
    def contribution_tokens(self) -> Cycles:
        """Token of each contribution beat."""
        counts = np.diff(np.flatnonzero(self.streams.entry_last), prepend=-1)
        entry, _ = self.engine.output_order(counts)
        return self.streams.entry_token[entry]


@dataclass(frozen=True)
class StreamTimes:
    """When each beat of a stream is offered and when it is taken."""

    offered: Cycles
    taken: Cycles

    @property
    def waits(self) -> Spans:
        """The cycles in which a beat is offered and not taken: all that is known of the sink's readiness."""
        return union(self.offered, self.taken)


@dataclass(frozen=True)
class LayerCycles:
    """What the model says of a layer.

    Attributes
    ----------
    cycles : from the first input beat to the last output beat, both included.
    active : for each block, as in :func:`active_cycles`.
    assignments, expects, entries : the streams between gate, dispatcher, engine and combiner.
    results : per entry, cycle of its last contribution beat.
    outputs : per token, cycle of its first output beat.
    sent : the cycles of all output beats.
    fires, read_beats : MAC slots used; weight beats read.
    tiles, walked_tiles : weight tiles in all, and those that the model went through one by one.
    inside : when gate, dispatcher and engine hold work.
    wait_tile : cycles in which the array waits for a tile.
    contributions : cycles of the contribution beats, window after window.
    """

    cycles: int
    active: dict[str, int]
    assignments: StreamTimes
    expects: StreamTimes
    entries: StreamTimes
    results: Cycles
    outputs: Cycles
    sent: Spans
    fires: int
    read_beats: int
    tiles: int
    walked_tiles: int
    inside: Mapping[str, Spans]
    wait_tile: int
    contributions: Sequence[Trains]


def layer_cycles(shape: LayerShape, arrivals: Cycles, output_ready: Spans = ALWAYS) -> LayerCycles:
    """Return the times of a layer, from the block models alone.

    Parameters
    ----------
    arrivals : (tokens,) cycle from which each token's beats are offered, one per cycle; for beats with
        gaps between them see :meth:`sim.gating.GateModel.run`.
    output_ready : readiness of the output, from :func:`sim.streams.readiness`.
    """
    streams, engine = shape.streams, shape.engine
    words, num_slots = engine.words, shape.num_slots
    gate = GateModel(shape.image.gate, len(arrivals))
    dispatch = DispatchModel(streams, pipeline=shape.design.pipeline_of(DeepBlock.DISPATCH))
    expert = ExpertModel(engine, shape.design.memory.latency_cycles)
    shared = shape.entry_shared
    outputs, last_outputs, expects = (np.empty(len(arrivals), dtype=np.int64) for _ in range(3))
    sender = new_sender()
    jobs = []
    for window in range(streams.num_windows):
        tokens, entries = dispatch.tokens_of(window), dispatch.entries_of(window)
        admitted = arrivals[tokens].astype(np.int64)
        reused = max(tokens.start, num_slots)
        if reused < tokens.stop:
            freed = last_outputs[reused - num_slots : tokens.stop - num_slots] + FREED_LATENCY
            waiting = admitted[reused - tokens.start :]
            np.maximum(waiting, freed + 1, out=waiting)
        gate.run(admitted, room=dispatch.opened(window))

        beats = dispatch.assignments_of(window)
        dispatch.fill(window, gate.o[beats])

        done = expert.run(shared[entries], streams.entry_last[entries], dispatch.foresee(window))
        dispatch.serve(window, done.room)
        jobs.append(done)

        last_beats = _last_beats(
            streams.entry_token[entries], done.results, tokens.start, tokens.stop - tokens.start
        )
        expects[tokens], outputs[tokens], last_outputs[tokens] = token_outputs(
            last_beats,
            dispatch.o_expect[tokens],
            words,
            sender,
            ready=output_ready,
            pipeline=shape.design.pipeline_of(DeepBlock.COMBINE),
        )
    # Each block's output is taken when the next one takes it.
    assert np.array_equal(gate.o, dispatch.i)
    assert np.array_equal(dispatch.entries, np.concatenate([done.i for done in jobs]))
    results = np.concatenate([done.results for done in jobs])
    assignments = StreamTimes(gate.o_offered, gate.o)
    given = StreamTimes(dispatch.offered, dispatch.entries)
    inside = _inside(shape, gate.last_in, gate.o, dispatch.entries, results[streams.entry_last])
    num_beats = (len(results) + len(outputs)) * words
    # A token's beats are right behind each other, but for the output's stalls.
    sent = without(union(outputs, last_outputs + 1), output_ready)
    wait_tile = sum(done.wait_tile for done in jobs)
    return LayerCycles(
        cycles=int(last_outputs[-1]) + 1 - max(0, int(arrivals[0])),
        active={
            "gating": _outside(inside["gating"], assignments.waits),
            "dispatch": _outside(inside["dispatch"], given.waits),
            # The array waits for tiles only while their job is inside; no result waits.
            "expert": size(inside["expert"]) - wait_tile,
            "combine": num_beats - sum(common_with_trains(done.o, sent) for done in jobs),
        },
        assignments=assignments,
        expects=StreamTimes(dispatch.o_expect, expects),
        entries=given,
        results=results,
        outputs=outputs,
        sent=sent,
        fires=sum(done.fires for done in jobs),
        read_beats=sum(done.read_beats for done in jobs),
        tiles=sum(done.tiles for done in jobs),
        walked_tiles=sum(done.walked_tiles for done in jobs),
        inside=inside,
        wait_tile=wait_tile,
        contributions=[done.o for done in jobs],
    )


def layer_activity(shape: LayerShape, modelled: LayerCycles) -> Activity:
    """Return when the blocks work, as the model has it."""
    beats = train_spans(np.concatenate(modelled.contributions), resolution(modelled.cycles))
    moved = np.concatenate([beats, modelled.sent])
    combine = BlockActivity.of(union(moved[:, 0], moved[:, 1]), ALWAYS)
    inside = modelled.inside
    blocks = {
        "gating": BlockActivity.of(inside["gating"], modelled.assignments.waits),
        "dispatch": BlockActivity.of(inside["dispatch"], modelled.entries.waits),
        "expert": BlockActivity.of(inside["expert"], ALWAYS, modelled.wait_tile),
        "combine": replace(combine, gaps=combine.busy - modelled.active["combine"]),
    }
    end = int(modelled.sent[-1, 1])
    return _activity(
        shape, "model", end - modelled.cycles, end, blocks, modelled.entries.taken, modelled.results
    )


def seen_activity(shape: LayerShape, seen: LayerTimes) -> Activity:
    """Return when the blocks worked, as the Verilog's probe showed it."""
    taken = {name: stream.taken for name, stream in seen.streams.items()}
    waits = {name: stream.waits for name, stream in seen.streams.items()}
    beats, words = shape.image.gate.input_beats, shape.engine.words
    results = taken["contributions"][words - 1 :: words]
    last = shape.streams.entry_last
    inside = _inside(
        shape, taken["tokens"][beats - 1 :: beats], taken["assignments"], taken["entries"], results[last]
    )
    moved = np.concatenate([taken["contributions"], taken["output"]])
    expert = BlockActivity.of(inside["expert"], waits["contributions"])
    active = active_cycles(shape, taken, waits, seen.wait_tile)["expert"]
    blocks = {
        "gating": BlockActivity.of(inside["gating"], waits["assignments"]),
        "dispatch": BlockActivity.of(inside["dispatch"], waits["entries"]),
        "expert": replace(expert, weights=expert.busy - active),
        "combine": BlockActivity.of(union(moved, moved + 1), ALWAYS),
    }
    start = int(taken["tokens"][0])
    return _activity(shape, "rtl", start, start + seen.cycles, blocks, taken["entries"], results)


def _activity(
    shape: LayerShape,
    source: str,
    start: int,
    end: int,
    blocks: dict[str, BlockActivity],
    entries: Cycles,
    results: Cycles,
) -> Activity:
    """Return the activity of a layer; ``entries`` and ``results``: of each entry."""
    ends = np.flatnonzero(shape.streams.entry_last)
    given, done = entries[ends], results[ends]
    return Activity(
        start=start,
        cycles=end - start,
        source=source,
        blocks={name: block.coarse(resolution(end - start)) for name, block in blocks.items()},
        units=[union(given + 1, done + 1)],
        jobs=Jobs.of_unit(0, shape.streams.entry_expert[ends], np.diff(ends, prepend=-1), given, done),
        tokens=tokens_of_experts(
            shape.streams, shape.image.num_experts, shared=shape.image.shared is not None
        ),
        commands={},
    )


@njit(cache=True)
def _last_beats(tokens: Cycles, results: Cycles, first: int, count: int) -> Cycles:
    """Return the latest result of each of ``count`` tokens from ``first`` on; NEVER where there is none."""
    latest = np.full(count, NEVER)
    for n in range(len(tokens)):
        token = tokens[n] - first
        latest[token] = max(latest[token], results[n])
    return latest


def _inside(
    shape: LayerShape, tokens: Cycles, assignments: Cycles, entries: Cycles, results: Cycles
) -> dict[str, Spans]:
    """Return when gate, dispatcher and engine hold work.

    Parameters
    ----------
    tokens, results : cycles of each token's last input beat, of each job's last contribution beat.
    assignments, entries : cycles of all of them.
    """
    streams = shape.streams
    top_k = streams.top_k
    windows = np.arange(streams.num_windows)
    window_ends = np.searchsorted(streams.window, windows, side="right") * top_k - 1
    entry_starts = np.searchsorted(streams.entry_window, windows)
    entry_ends = np.searchsorted(streams.entry_window, windows, side="right")
    served = entry_ends > entry_starts
    return {
        "gating": union(tokens + 1, assignments[top_k - 1 :: top_k] + 1),
        "dispatch": union(assignments[window_ends[served]] + 1, entries[entry_ends[served] - 1] + 1),
        "expert": union(entries[streams.entry_last] + 1, results + 1),
    }


def _outside(inside: Spans, held_up: Spans) -> int:
    return size(inside) - int(common(inside, held_up))


@dataclass(frozen=True)
class LayerTimes:
    """All streams of a layer in a run, by the names of :data:`spec.registers.PROBE`.

    ``wait_tile`` are the cycles in which the array waits for a tile.
    """

    streams: Mapping[str, StreamTimes]
    wait_tile: Spans

    @property
    def cycles(self) -> int:
        """Cycles from the first input beat to the last output beat, both included."""
        return int(self.streams["output"].taken[-1] - self.streams["tokens"].taken[0]) + 1


def block_times(shape: LayerShape, seen: LayerTimes) -> tuple[dict[str, Cycles], Spans]:
    """Return when each block, on its own, would have transferred what it was seen to be offered.

    Every block's model is given the arrivals and the readiness recorded at its ports. The times are
    those seen (``seen.streams[name].taken``) if all models are exact; their keys are those of
    ``seen.streams``, and for streams between two blocks also ``name + ' (sink)'``. Second come the
    cycles in which the array would have waited for a tile.
    """
    streams = seen.streams
    words, num_slots = shape.engine.words, shape.num_slots
    # The gate is offered a token's first beat when there is a slot for it.
    admitted = streams["tokens"].offered.copy()
    first_beats = admitted[:: shape.image.gate.input_beats][num_slots:]
    freed = streams["output"].taken[words - 1 :: words] + FREED_LATENCY
    np.maximum(first_beats, freed[: len(first_beats)] + 1, out=first_beats)
    gate = gate_cycles(shape.image.gate, admitted, streams["assignments"].waits)
    dispatch = dispatch_cycles(
        shape.streams,
        streams["assignments"].offered,
        expect_ready=streams["expects"].waits,
        unit_ready=[streams["entries"].waits],
        pipeline=shape.design.pipeline_of(DeepBlock.DISPATCH),
    )
    expert = expert_cycles(
        shape.engine,
        shape.entry_shared,
        shape.streams.entry_last,
        streams["entries"].offered,
        latency=shape.design.memory.latency_cycles,
        ready=streams["contributions"].waits,
    )
    combine = combine_cycles(
        shape.contribution_tokens,
        streams["contributions"].offered,
        streams["expects"].offered,
        num_slots=num_slots,
        words=words,
        ready=streams["output"].waits,
        pipeline=shape.design.pipeline_of(DeepBlock.COMBINE),
    )
    times = {
        "tokens": gate.i,
        "assignments": gate.o,
        "assignments (sink)": dispatch.i,
        "expects": dispatch.o_expect,
        "expects (sink)": combine.i_expect,
        "entries": dispatch.units[0],
        "entries (sink)": expert.i,
        "addresses": expert.ar,
        "beats": expert.r,
        "contributions": expert.o,
        "contributions (sink)": combine.i,
        "output": combine.o,
    }
    return times, union(expert.wait_from, expert.wait_to)


def active_cycles(
    shape: LayerShape, taken: Mapping[str, Cycles], waits: Mapping[str, Spans], wait_tile: Spans
) -> dict[str, int]:
    """Return for each block the cycles in which it holds work and is neither starved nor blocked.

    * gating: a whole token is inside, and no assignment waits to be taken;
    * dispatch: a closed window is not yet served, and no entry waits to be taken;
    * expert: a whole job is inside, the array does not wait for a tile, no result waits to be taken;
    * combine: a beat goes in or out.

    Parameters
    ----------
    taken, waits : for each stream, cycles of the transfers, cycles in which a beat waits.
    wait_tile : cycles in which the array waits for a tile.
    """
    beats, words = shape.image.gate.input_beats, shape.engine.words
    job_ends = np.flatnonzero(shape.streams.entry_last)
    results = taken["contributions"][(job_ends + 1) * words - 1]
    inside = _inside(
        shape, taken["tokens"][beats - 1 :: beats], taken["assignments"], taken["entries"], results
    )
    waiting = np.concatenate([waits["contributions"], wait_tile])
    busy = np.concatenate([taken["contributions"], taken["output"]])
    return {
        "gating": _outside(inside["gating"], waits["assignments"]),
        "dispatch": _outside(inside["dispatch"], waits["entries"]),
        "expert": _outside(inside["expert"], union(waiting[:, 0], waiting[:, 1])),
        "combine": size(union(busy, busy + 1)),
    }
