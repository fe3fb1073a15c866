"""Cycle model of the ``fpga`` layer: the block models, joined where the blocks are.

Each block's model takes the cycles in which its inputs are offered and in which its outputs are
taken. Joined, one block's times are the next one's arrivals, and what a block holds up is a ready
pattern for the one before it. That is a system of equations in which every time depends on earlier
ones only; it is solved by repetition until nothing changes. Without back-pressure between blocks
one repetition is enough; each window of tokens that has to wait for room takes one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from golden.dispatch_streams import DispatchStreams
from sim.combine import combine_cycles
from sim.dispatch import DispatchCycles, dispatch_cycles
from sim.expert import EngineShape, ExpertCycles, expert_cycles
from sim.gating import gate_cycles
from sim.streams import ALWAYS, Cycles, next_ready
from spec.design import DesignSpec
from spec.geometry import ImageGeometry

BLOCKS = ("gating", "dispatch", "expert", "combine")


@dataclass(frozen=True)
class StreamTimes:
    """When each beat of a stream is offered and when it is taken."""

    offered: Cycles
    taken: Cycles

    @property
    def ready(self) -> Cycles:
        """Readiness of the sink, as far as this stream saw it: not in the cycles in which beats wait."""
        waiting = self.taken > self.offered
        if not waiting.any():
            return ALWAYS
        pattern = np.ones(int(self.taken.max()) + 1, dtype=bool)
        pattern[self.waits] = False
        return next_ready(pattern)

    @property
    def waits(self) -> Cycles:
        """The cycles in which a beat is offered and not taken."""
        return cycles_between(self.offered, self.taken)


def cycles_between(starts: Cycles, ends: Cycles) -> Cycles:
    """Return all cycles of the half-open intervals, sorted, each once."""
    if not len(starts):
        return ALWAYS
    size = int(max(ends.max(), starts.max())) + 2
    change = np.zeros(size, dtype=np.int64)
    some = ends > starts
    np.add.at(change, starts[some], 1)
    np.add.at(change, ends[some], -1)
    return np.flatnonzero(np.cumsum(change)).astype(np.int64)


@dataclass(frozen=True)
class LayerTimes:
    """All streams of a layer in one run, by the names of :data:`spec.registers.PROBE`.

    ``wait_tile`` holds the cycles in which the array waits for a tile.
    """

    streams: Mapping[str, StreamTimes]
    wait_tile: Cycles
    fires: int

    @property
    def cycles(self) -> int:
        """Cycles from the first input beat to the last output beat, both included."""
        return int(self.streams["output"].taken[-1] - self.streams["tokens"].taken[0]) + 1


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
    def contribution_tokens(self) -> Cycles:
        """Token of each contribution beat: per job and output block all tokens, ``parts`` beats each."""
        routed = self.image.routed
        words = self.engine.words
        parts = routed.rows // self.design.tile.act_lanes
        token_of_entry = self.streams.entry_token
        ends = np.flatnonzero(self.streams.entry_last) + 1
        starts = np.concatenate([[0], ends[:-1]])
        per_block = [min(parts, words - block * parts) for block in range(routed.out_blocks)]
        pieces = [
            np.repeat(token_of_entry[start:end], count)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for count in per_block
        ]
        return np.concatenate(pieces) if pieces else ALWAYS


def layer_times(shape: LayerShape, arrivals: Cycles, output_ready: Cycles = ALWAYS) -> LayerTimes:
    """Return the times of every stream of the layer, from the block models alone.

    Parameters
    ----------
    arrivals : (tokens * input_beats,) first cycle in which each input beat is offered.
    output_ready : readiness of the output (:func:`sim.streams.next_ready`).
    """
    image, streams = shape.image, shape.streams
    beats, words, num_slots = image.gate.input_beats, shape.engine.words, shape.num_slots
    num_tokens = len(arrivals) // beats
    arrivals = arrivals.astype(np.int64)
    reused = np.arange(num_slots, num_tokens)
    admitted = arrivals
    window_room = entry_room = ALWAYS
    previous: tuple[Cycles, ...] = ()
    for _ in range(4 * streams.num_windows + 16):
        gate = gate_cycles(image.gate, admitted, window_room)
        dispatch = dispatch_cycles(streams, gate.o, unit_ready=[entry_room])
        expert = _expert(shape, dispatch.units[0])
        combine = combine_cycles(
            shape.contribution_tokens,
            expert.o,
            dispatch.o_expect,
            num_slots=num_slots,
            words=words,
            ready=output_ready,
        )
        current = (gate.o, dispatch.i, dispatch.units[0], expert.i, expert.o, combine.i, combine.o)
        if previous and all(map(np.array_equal, previous, current)):
            break
        previous = current
        # What the next repetition knows: when a slot, a window, a job bank has room.
        admitted = arrivals.copy()
        first = reused * beats
        admitted[first] = np.maximum(admitted[first], combine.freed[reused - num_slots] + 1)
        window_room = _window_room(shape, dispatch)
        entry_room = _entry_room(shape, expert)
    else:
        raise AssertionError("the layer's times did not settle")
    assert np.array_equal(gate.o, dispatch.i)
    assert np.array_equal(dispatch.units[0], expert.i)
    assert np.array_equal(expert.o, combine.i)
    gate_free = gate_cycles(image.gate, admitted)
    dispatch_free = dispatch_cycles(streams, gate.o)
    return LayerTimes(
        {
            "tokens": _offered(arrivals, gate.i),
            "assignments": _offered(gate_free.o, gate.o),
            "expects": _offered(dispatch.o_expect, combine.i_expect),
            "entries": _offered(dispatch_free.units[0], dispatch.units[0]),
            "contributions": _offered(expert.o, combine.i),
            "output": _offered(combine.o, combine.o),
            "addresses": _offered(expert.ar, expert.ar),
            "beats": _offered(expert.r, expert.r),
        },
        cycles_between(expert.wait_from, expert.wait_to),
        expert.fires,
    )


def _expert(shape: LayerShape, offered: Cycles, ready: Cycles = ALWAYS) -> ExpertCycles:
    return expert_cycles(
        shape.engine,
        shape.streams.entry_expert == shape.image.gate.gating.num_experts,
        shape.streams.entry_last,
        offered,
        latency=shape.design.memory.latency_cycles,
        ready=ready,
    )


def _offered(unblocked: Cycles, taken: Cycles) -> StreamTimes:
    """A beat is offered when its producer has it, but not before the one ahead of it is gone."""
    behind = np.concatenate([[-1], taken[:-1]]) + 1 if len(taken) else taken
    return StreamTimes(np.minimum(np.maximum(unblocked, behind), taken), taken)


def _room(closed: Cycles, opened: Cycles) -> Cycles:
    """Readiness of a sink that takes nothing in the cycles closed..opened - 1 of each pair."""
    cycles = cycles_between(closed, opened)
    if not len(cycles):
        return ALWAYS
    pattern = np.ones(int(cycles[-1]) + 2, dtype=bool)
    pattern[cycles] = False
    return next_ready(pattern)


def _window_room(shape: LayerShape, dispatch: DispatchCycles) -> Cycles:
    """Readiness of the dispatcher: from a window's last beat on it waits until the next one is opened."""
    streams = shape.streams
    windows = np.arange(streams.num_windows)
    ends = np.searchsorted(streams.window, windows, side="right") * streams.top_k - 1
    return _room(dispatch.i[ends][:-1] + 1, dispatch.opened[1:])


def _entry_room(shape: LayerShape, expert: ExpertCycles) -> Cycles:
    """Readiness of the expert engine: after job j is complete, job j + 1 waits until j - 1 is done with."""
    complete = expert.i[np.flatnonzero(shape.streams.entry_last)]
    return _room(complete[1:-1] + 1, expert.retired[:-2] + 1)


def block_times(shape: LayerShape, seen: LayerTimes) -> dict[str, Cycles]:
    """Return when each block, on its own, would have transferred what it was seen to be offered.

    Every block's model is given the arrivals and the ready patterns recorded at its ports. The
    result is equal to what was seen (``seen.streams[name].taken``) if all models are exact; its keys are
    those of ``seen.streams``, and for streams between two blocks also ``name + ' (sink)'``.
    """
    streams = seen.streams
    beats, words, num_slots = shape.image.gate.input_beats, shape.engine.words, shape.num_slots
    # The gate is offered a token's first beat when there is a slot for it.
    admitted = streams["tokens"].offered.copy()
    reused = np.arange(num_slots, len(admitted) // beats)
    freed = streams["output"].taken[words - 1 :: words] + 1
    first = reused * beats
    admitted[first] = np.maximum(admitted[first], freed[reused - num_slots] + 1)
    gate = gate_cycles(shape.image.gate, admitted, streams["assignments"].ready)
    dispatch = dispatch_cycles(
        shape.streams,
        streams["assignments"].offered,
        expect_ready=streams["expects"].ready,
        unit_ready=[streams["entries"].ready],
    )
    expert = _expert(shape, streams["entries"].offered, streams["contributions"].ready)
    combine = combine_cycles(
        shape.contribution_tokens,
        streams["contributions"].offered,
        streams["expects"].offered,
        num_slots=num_slots,
        words=words,
        ready=streams["output"].ready,
    )
    return {
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
        "wait_tile": cycles_between(expert.wait_from, expert.wait_to),
    }


def active_cycles(
    shape: LayerShape, taken: Mapping[str, Cycles], waits: Mapping[str, Cycles], wait_tile: Cycles
) -> dict[str, int]:
    """Return for each block the cycles in which it holds work and is neither starved nor blocked.

    * gating: a whole token is inside, and no assignment waits to be taken;
    * dispatch: a closed window is not yet served, and no entry waits to be taken;
    * expert: a whole job is inside, the array does not wait for a tile, no result waits to be taken;
    * combine: a beat goes in or out.

    Parameters
    ----------
    taken, waits : per stream, cycles of the transfers, cycles in which a beat waits.
    wait_tile : cycles in which the array waits for a tile.
    """
    streams = shape.streams
    top_k = streams.top_k
    windows = np.arange(streams.num_windows)
    window_ends = np.searchsorted(streams.window, windows, side="right") * top_k - 1
    entry_starts = np.searchsorted(streams.entry_window, windows)
    entry_ends = np.searchsorted(streams.entry_window, windows, side="right")
    served = entry_ends > entry_starts
    job_ends = np.flatnonzero(streams.entry_last)
    entries_of_job = np.diff(np.concatenate([[-1], job_ends]))
    results = np.cumsum(entries_of_job) * shape.engine.words - 1
    inside = {
        "gating": cycles_between(
            taken["tokens"][shape.image.gate.input_beats - 1 :: shape.image.gate.input_beats] + 1,
            taken["assignments"][top_k - 1 :: top_k] + 1,
        ),
        "dispatch": cycles_between(
            taken["assignments"][window_ends[served]] + 1, taken["entries"][entry_ends[served] - 1] + 1
        ),
        "expert": cycles_between(taken["entries"][job_ends] + 1, taken["contributions"][results] + 1),
    }
    held_up = {
        "gating": waits["assignments"],
        "dispatch": waits["entries"],
        "expert": np.concatenate([waits["contributions"], wait_tile]),
    }
    active = {name: int(np.setdiff1d(cycles, held_up[name]).size) for name, cycles in inside.items()}
    active["combine"] = int(np.union1d(taken["contributions"], taken["output"]).size)
    return active
