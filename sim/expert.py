"""Cycle model of the expert engine, derived from ``rtl/expert``.

One pass over jobs, units and tiles in the order in which the hardware handles them; every time is the
largest of the times of what it waits for. Exact under any arrivals, memory latencies and output
stalls. Names follow the RTL: *f0*, *f1*, *fire* are stages of the sequencer, *d0*, *d1* of the drain, a
*unit* is a block of ``rows`` outputs.

What follows from a tile or a unit is a function of the engine's times before it, and of nothing else
that still changes: if all times are later by the same number of cycles, so is all that follows. Where
they are those of some tiles (or units) ago, only later, the rest of the unit (or phase) is therefore a
repetition, and its length is found without walking it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.gating import burst_trees
from sim.streams import ALWAYS, NEVER, Cycles, Spans, Trains, taken
from spec.design import DeepBlock, DesignSpec, Pipeline
from spec.geometry import SCALE_DISTANCE, FfnGeometry, ImageGeometry, array_distance, ceil_div
from spec.model import Activation

ARRAY_LATENCY = 8
"""From a slot's firing to its sums being written: burst 5, accumulator 3."""
UNIT_VISIBLE = ARRAY_LATENCY + 1
DEEP_BURST = 8
"""Of a deep array: a burst without the stages of its trees."""
DEEP_ADDITION = 7
DEEP_SCALE_PRODUCT = 5
DEEP_INTEGER = 6 + 9
"""Of integer formats: operands 1, burst 5, accumulator 9."""
SCALING = 5
"""Behind the accumulator in a grouped format: product with the scale 2, addition to the total 3."""
PAIRING = 3
"""Between these, for each doubling of the groups of a tile: their products are added in pairs."""
SIGMOID, DEEP_SIGMOID = 1 + 7, 3 + 18
"""From the value to its sigmoid: argument, table of exp 3, sum 1, table of the reciprocal 2, product 1.

Deep: argument distances 1, magnitude 1, sign 1, then as in :mod:`sim.gating`.
"""
DEEP_ALPHA = 5
"""Deep only, of an argument with a factor: fixed point 1, magnitude 1, product 2, sum of its parts 1."""
GELU_TANH_ARGUMENT = 3
CURVE = {
    Activation.GELU: 1 + 3 + 2,
    Activation.GELU_TANH: GELU_TANH_ARGUMENT + 7,
    Activation.TANH: 1 + 2,
    **dict.fromkeys((Activation.LINEAR, Activation.RELU, Activation.RELU2), 0),
}
"""From the rounded value to the activation's factors, where that is not a sigmoid of it."""
DIRECT = (Activation.LINEAR, Activation.RELU)
"""Activations that are rounding, and no more, without a gate matrix."""
QUANTISER, DEEP_QUANTISER = 2, 4
"""Behind the activation where hidden values become int8."""
BANKS = 2
DEEP_PRODUCT_AND_ROUND = 1 + 2 + 5
"""Of a deep activation: significands 1, times the curve's mantissa 2; leading zeros 2, shift 1, what lies
below 1, rounding 1."""
WITH_FACTOR = (Activation.QUICK_GELU, Activation.CLAMPED_SWIGLU)
"""Activations whose sigmoid's argument has a factor."""


def activation_latency(*kinds: FfnGeometry, pipeline: Pipeline = Pipeline.SHORT) -> int:
    """Return the cycles from a sum's drain to its hidden activation: of an engine's experts the longest."""
    activations = {kind.ffn.activation for kind in kinds}
    if pipeline is Pipeline.DEEP:
        return _deep_activation(kinds) + (DEEP_QUANTISER if kinds[0].format.integer else 0)
    # Round and clamp 1, product 1, round 1.
    latency = 1
    if kinds[0].ffn.gated or not activations <= set(DIRECT):
        latency += max(CURVE.get(activation, SIGMOID) for activation in activations) + 2
    return latency + (QUANTISER if kinds[0].format.integer else 0)


def _deep_activation(kinds: Sequence[FfnGeometry]) -> int:
    """Return the same of deep lanes, without the quantiser."""
    activations = {kind.ffn.activation for kind in kinds}
    gated = kinds[0].ffn.gated
    if not gated and activations <= set(DIRECT):
        return 2

    def curve(activation: Activation) -> int:
        if activation is Activation.GELU_TANH:
            return GELU_TANH_ARGUMENT + DEEP_SIGMOID - 3
        factor = DEEP_ALPHA if activation in WITH_FACTOR else 0
        return CURVE.get(activation, DEEP_SIGMOID + factor)

    # What is rounded: significands of 8 bits, a mantissa of 21 (relu2: 8; beside another activation 21).
    bits = 16 if gated else 8
    alone = next(iter(activations)) if len(activations) == 1 else None
    mantissa = 0 if alone in DIRECT else 8 if alone is Activation.RELU2 else 21
    multiply = DEEP_PRODUCT_AND_ROUND - (bits + mantissa <= 32) - (0 if mantissa else 2)
    clamps = any(kind.ffn.clamped or kind.ffn.activation is Activation.CLAMPED_SWIGLU for kind in kinds)
    return 1 + clamps + max(map(curve, activations)) + multiply


def array_latency(geometry: FfnGeometry, pipeline: Pipeline) -> int:
    """Return the cycles from a slot's firing to its sums being written; in a grouped format its group's."""
    if pipeline is Pipeline.SHORT:
        return ARRAY_LATENCY
    return 1 + scale_distance(geometry, pipeline)


def scale_distance(geometry: FfnGeometry, pipeline: Pipeline) -> int:
    """Return the cycles from a scale tile's slot to the next one's, at least: burst and addition."""
    if pipeline is Pipeline.SHORT:
        return SCALE_DISTANCE
    if geometry.format.integer:
        return DEEP_INTEGER
    cols = geometry.cols // geometry.tile_groups if geometry.format.grouped else geometry.cols
    return DEEP_BURST + burst_trees(cols) + DEEP_ADDITION


def unit_visible(geometry: FfnGeometry, pipeline: Pipeline = Pipeline.SHORT) -> int:
    """Return the cycles from a unit's first slot at its last tile to its first drain read."""
    if pipeline is Pipeline.DEEP:
        visible = array_latency(geometry, pipeline) + 1
        if not geometry.format.grouped:
            return visible
        pairs = (geometry.tile_groups - 1).bit_length()
        return visible + DEEP_SCALE_PRODUCT + DEEP_ADDITION * (1 + pairs)
    if not geometry.format.grouped:
        return UNIT_VISIBLE
    return UNIT_VISIBLE + SCALING + PAIRING * (geometry.tile_groups - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class EngineShape:
    """Numbers that the recurrence needs; the pairs are (routed, shared)."""

    image: ImageGeometry
    act_lanes: int
    tile_beats: int
    burst_beats: int
    max_outstanding: int
    pipeline: Pipeline = Pipeline.SHORT

    @classmethod
    def of(
        cls,
        image: ImageGeometry,
        *,
        act_lanes: int,
        beat_bits: int,
        burst_beats: int,
        max_outstanding: int,
        pipeline: Pipeline = Pipeline.SHORT,
    ) -> EngineShape:
        """Return the shape of an engine with this image, array and memory port."""
        return cls(
            image=image,
            act_lanes=act_lanes,
            tile_beats=image.routed.tile_bytes * 8 // beat_bits,
            burst_beats=burst_beats,
            max_outstanding=max_outstanding,
            pipeline=pipeline,
        )

    @classmethod
    def of_design(cls, image: ImageGeometry, design: DesignSpec) -> EngineShape:
        """Return the shape of a design's engine."""
        return cls.of(
            image,
            act_lanes=design.tile.act_lanes,
            beat_bits=design.memory.width_bits,
            burst_beats=design.memory.burst_beats,
            max_outstanding=design.memory.max_outstanding,
            pipeline=design.pipeline_of(DeepBlock.EXPERT),
        )

    @property
    def kinds(self) -> list[FfnGeometry]:
        """Routed and shared geometry; the routed one twice where nothing is shared."""
        return [self.image.routed, self.image.shared or self.image.routed]

    @property
    def words(self) -> int:
        """Output beats per token and job."""
        return ceil_div(self.image.routed.d_model, self.act_lanes)

    @property
    def parts(self) -> int:
        """Output beats per token and unit, but for the last unit."""
        return self.image.routed.rows // self.act_lanes

    def table(self) -> NDArray[np.int64]:
        """Return per kind: hidden blocks, in tiles, out blocks, hidden tiles, bursts, tiles, scale tiles.

        Scale tiles are those of a grouped format, which no token meets.
        """
        return np.array(
            [
                [
                    kind.hidden_blocks,
                    kind.in_tiles,
                    kind.out_blocks,
                    kind.hidden_tiles,
                    ceil_div(kind.num_bytes, self.image.burst_bytes),
                    kind.num_tiles,
                    kind.num_tiles - kind.num_met_tiles,
                ]
                for kind in self.kinds
            ],
            dtype=np.int64,
        )

    def output_order(self, counts: Cycles) -> tuple[Cycles, Cycles]:
        """Return the entry and the word of each output beat: per job and unit all tokens in turn.

        ``counts`` is the (jobs,) number of entries of each job.
        """
        beats = counts * self.words
        job = np.repeat(np.arange(len(counts)), beats)
        place = np.arange(len(job)) - (np.cumsum(beats) - beats)[job]
        unit = np.minimum(place // (counts[job] * self.parts), self.image.routed.out_blocks - 1)
        parts = np.minimum(self.parts, self.words - unit * self.parts)
        token, part = np.divmod(place - unit * counts[job] * self.parts, parts)
        return (np.cumsum(counts) - counts)[job] + token, unit * self.parts + part


@dataclass(frozen=True)
class ExpertCycles:
    """Handshake cycles and totals.

    Attributes
    ----------
    i, ar, r, o : per entry, per burst, per read beat, per output beat.
    fire_first, fire_last, retired : per job: its first and last MAC slot; its bank is free afterwards.
    fires, tile_beats : MAC slots in all; weight beats without padding.
    wait_from, wait_to : per tile: the array waits for it in these cycles, the end excluded.
    """

    i: Cycles
    ar: Cycles
    r: Cycles
    o: Cycles
    fire_first: Cycles
    fire_last: Cycles
    retired: Cycles
    fires: int
    tile_beats: int
    wait_from: Cycles
    wait_to: Cycles


@dataclass(frozen=True)
class ExpertJobs:
    """What jobs took, repetitions not walked.

    Attributes
    ----------
    i, room, results : per entry: its handshake; from when on there was a bank for it; its last output beat.
    fire_first, fire_last, retired : per job, as in :class:`ExpertCycles`.
    o : the cycles of the output beats.
    fires, read_beats : MAC slots; beats read, padding included.
    tiles, walked_tiles : tiles in all, and those gone through one by one.
    wait_tile : cycles in which the array waits for a tile.
    """

    i: Cycles
    room: Cycles
    results: Cycles
    fire_first: Cycles
    fire_last: Cycles
    retired: Cycles
    o: Trains
    fires: int
    read_beats: int
    tiles: int
    walked_tiles: int
    wait_tile: int


def expert_cycles(
    shape: EngineShape,
    shared: NDArray[np.bool_],
    last: NDArray[np.bool_],
    arrivals: Cycles,
    *,
    latency: int,
    extra: Cycles | None = None,
    ready: Spans = ALWAYS,
    ar_ready: Spans = ALWAYS,
) -> ExpertCycles:
    """Return when the engine takes its entries and weights and gives its results, beat by beat.

    Parameters
    ----------
    shared, last : (entries,) whether the entry's expert is the shared one; whether it ends its job.
    arrivals : (entries,) first cycle in which each entry is offered, ascending.
    latency : cycles from an accepted address to the first beat of its burst.
    extra : cycles added to the latency of each burst, repeated.
    ready, ar_ready : readiness of ``o`` and of the address channel (:func:`sim.streams.readiness`).
    """
    kinds = shape.table()[shared[last].astype(np.int64)]
    bursts, tiles = int(kinds[:, BURSTS].sum()), int(kinds[:, TILES].sum())
    bench = Bench(
        np.zeros(1, np.int64) if extra is None else np.asarray(extra, dtype=np.int64),
        ready,
        ar_ready,
        *(
            np.empty(count, dtype=np.int64)
            for count in (bursts, bursts * shape.burst_beats, len(last) * shape.words, tiles, tiles)
        ),
    )
    jobs = ExpertModel(shape, latency, bench).run(shared, last, arrivals)
    return ExpertCycles(
        i=jobs.i,
        ar=bench.ar,
        r=bench.r,
        o=bench.o,
        fire_first=jobs.fire_first,
        fire_last=jobs.fire_last,
        retired=jobs.retired,
        fires=jobs.fires,
        tile_beats=tiles * shape.tile_beats,
        wait_from=bench.wait_from,
        wait_to=bench.wait_to,
    )


HIDDEN_BLOCKS, IN_TILES, OUT_BLOCKS, HIDDEN_TILES, BURSTS, TILES, SCALE_TILES = range(7)
"""Columns of the table of kinds."""

MOST_STAGES = 4
"""Of the product of inputs and weights, between f1 and f2, and a deep pipeline's l before f1."""
AR, R, LEFT, LEFT_2, RELEASED, RELEASED_2, SCALED, START, FIRE = range(9)
F0 = FIRE + MOST_STAGES + 2
D0, D1_FREE, LAST_FREE, DRAINED, DRAINED_2, OUT_IN, OUT, OUT_2 = range(F0 + 1, F0 + 9)
"""Times that the next tile or unit depends on, the first columns of the states.

Weight side: last address and beat taken, the last two beats out of the input register, the last two
tiles released. Array side: the last scale tile's slot (where there is none, the same as the next), start of
the last tile that tokens meet, last slot's leaving of f2 (it fires) and, from
``FIRE + 1`` to ``F0``, of the stages before, f0 the last (in the columns of stages that are not there too).
Drain side: last read, when d1 is next free, and the last stage (in a deep pipeline d2), last reads of
the last two units; last beat into the output register, last two out of it."""
TILE_TIMES, HIDDEN_TIMES, OUT_TIMES = D0, OUT_IN, OUT_2 + 1
"""How many of them a tile, a hidden unit and an output unit touch."""
BEATS, WAITED, PASSED, WALKED, OUTPUTS, ROWS = range(OUT_2 + 1, OUT_2 + 7)
"""Counts, further columns: beats read, cycles waited for tiles, tiles; tiles walked, output beats
recorded, rows of trains. The first three go on in a repetition."""
FIRST = ROWS + 1
"""A tile's first slot's leaving of f2 and of the stages before, up to f0; columns as from ``FIRE`` on."""
PLACE, OLDEST, RING = range(FIRST + MOST_STAGES + 3, FIRST + MOST_STAGES + 6)
"""Beats of the last burst so far; from ``RING`` on the last beats of the last ``max_outstanding`` bursts,
the oldest one in the column that ``OLDEST`` names."""
NOW, BEFORE_TILES, BEFORE_UNITS = range(3)
"""Rows of the states: now, some tiles ago, some units ago."""


class Sizes(NamedTuple):
    """The engine's constants; ``span`` is that of a grouped format, with its scale tile, else 1."""

    matrices: int
    rows: int
    cols: int
    parts: int
    words: int
    tile_beats: int
    burst_beats: int
    activation: int
    visible: int
    span: int
    distance: int
    scale_distance: int
    drain_stages: int
    list_stages: int
    page_stages: int
    release_stages: int
    latency: int
    input_stages: int


class Bench(NamedTuple):
    """What is around an engine whose every beat is followed.

    How its ports behave, as in :func:`expert_cycles`; and, to be filled, the cycles of each burst's
    address, of each read beat, of each output beat, and those of waiting for each tile.
    """

    extra: Cycles
    ready: Spans
    ar_ready: Spans
    ar: Cycles
    r: Cycles
    o: Cycles
    wait_from: Cycles
    wait_to: Cycles


class ExpertModel:
    """The engine's times, job after job; between two calls of :meth:`run` it keeps its state.

    With a ``bench`` every beat is followed. Without one the ports are always ready, all latencies equal,
    and repetitions are not walked.
    """

    def __init__(self, shape: EngineShape, latency: int, bench: Bench | None = None) -> None:
        routed, deep = shape.image.routed, shape.pipeline is Pipeline.DEEP
        self._table = shape.table()
        self._sizes = Sizes(
            matrices=routed.num_up_matrices,
            rows=routed.rows,
            cols=routed.cols,
            parts=shape.parts,
            words=shape.words,
            tile_beats=shape.tile_beats,
            burst_beats=shape.burst_beats,
            activation=activation_latency(*shape.kinds, pipeline=shape.pipeline),
            visible=unit_visible(routed, shape.pipeline),
            span=1 + routed.span_tiles,
            distance=array_distance(shape.pipeline, routed.format),
            scale_distance=scale_distance(routed, shape.pipeline),
            drain_stages=2 if deep else 1,
            list_stages=1 if deep else 0,
            page_stages=2 if deep else 0,
            release_stages=1 if deep else 0,
            latency=latency,
            input_stages=shape.image.input_cycles,
        )
        assert self._sizes.input_stages + self._sizes.list_stages <= MOST_STAGES
        self._most_blocks = int(self._table[:, OUT_BLOCKS].max())
        self._bench = bench
        self._hidden_done = np.empty(int(self._table[:, HIDDEN_BLOCKS].max()), dtype=np.int64)
        # After reset.
        self._states = np.zeros((3, RING + shape.max_outstanding), dtype=np.int64)
        self._states[NOW, :OUT_TIMES] = -1
        self._states[NOW, START] = -self._sizes.distance
        self._states[NOW, SCALED] = -self._sizes.scale_distance
        self._states[NOW, [D1_FREE, LAST_FREE]] = 0
        self._states[NOW, OLDEST] = RING
        self._states[NOW, RING:] = NEVER
        self._last_i = -1
        self._retired = np.full(BANKS, -1)

    def run(self, shared: NDArray[np.bool_], last: NDArray[np.bool_], arrivals: Cycles) -> ExpertJobs:
        """Give the next whole jobs their times; parameters as in :func:`expert_cycles`."""
        ends = np.flatnonzero(last)
        counts = ends + 1
        counts[1:] -= counts[:-1].copy()
        kinds = self._table[shared[ends].astype(np.int64)]
        now = self._states[NOW]
        beats, waited, passed, walked = now[BEATS:OUTPUTS].tolist()
        now[ROWS] = 0
        i, room, results = (np.empty(len(last), dtype=np.int64) for _ in range(3))
        first, final = (np.empty(len(ends), dtype=np.int64) for _ in range(2))
        retired = np.empty(BANKS + len(ends), dtype=np.int64)
        retired[:BANKS] = self._retired
        trains = np.empty((0 if self._bench else len(ends) * self._most_blocks, 4), dtype=np.int64)
        self._last_i = _run(
            kinds,
            counts,
            np.ascontiguousarray(arrivals, dtype=np.int64),
            self._last_i,
            self._states,
            self._sizes,
            self._bench,
            self._hidden_done,
            i,
            room,
            results,
            first,
            final,
            retired,
            trains,
        )
        self._retired = retired[-BANKS:]
        return ExpertJobs(
            i=i,
            room=room,
            results=results,
            fire_first=first,
            fire_last=final,
            retired=retired[BANKS:],
            o=trains[: now[ROWS]].copy(),
            fires=int((kinds[:, TILES] - kinds[:, SCALE_TILES]) @ counts + kinds[:, SCALE_TILES].sum()),
            read_beats=int(now[BEATS]) - beats,
            tiles=int(now[PASSED]) - passed,
            walked_tiles=int(now[WALKED]) - walked,
            wait_tile=int(now[WAITED]) - waited,
        )


@njit(cache=True)
def _run(
    kinds: NDArray[np.int64],
    counts: NDArray[np.int64],
    arrivals: Cycles,
    last_i: int,
    states: NDArray[np.int64],
    sizes: Sizes,
    bench: Bench | None,
    hidden_done: Cycles,
    i: Cycles,
    room: Cycles,
    results: Cycles,
    first: Cycles,
    final: Cycles,
    retired: Cycles,
    trains: Trains,
) -> int:
    """Fill everything from ``i`` on, and return its last one.

    ``kinds`` holds each job's row of the table, ``hidden_done`` is for any job's hidden blocks.
    """
    now = states[NOW]
    entry = 0
    for job in range(len(kinds)):
        # Entries: one per cycle into a free bank.
        tokens = counts[job]
        for n in range(entry, entry + tokens):
            room[n] = retired[job] + 1
            last_i = max(arrivals[n], last_i + 1, room[n])
            i[n] = last_i

        # The reader goes on to this job when it has asked for the last burst of the one before; the
        # sequencer likewise, when its last slot has left f0.
        ask_from = max(last_i + 1 + sizes.page_stages, now[AR] + 1) + 1
        walk_from = max(last_i + 1, now[F0] + 1) + 1
        beats = now[BEATS]
        hidden = hidden_done[: kinds[job, HIDDEN_BLOCKS]]
        blocks, tiles = kinds[job, OUT_BLOCKS], kinds[job, HIDDEN_TILES]
        first[job] = _hidden_phase(
            kinds[job, IN_TILES], tokens, ask_from, walk_from, hidden, states, sizes, bench
        )
        _out_phase(
            blocks, tiles, tokens, ask_from, walk_from, hidden, states, sizes, bench,
            results[entry : entry + tokens], trains,
        )  # fmt: skip
        entry += tokens
        final[job] = now[FIRE]
        retired[job + BANKS] = now[D0]
        # Padding up to whole bursts is taken and thrown away.
        padding = kinds[job, BURSTS] * sizes.burst_beats - (now[BEATS] - beats)
        if bench is not None:
            _load_each(padding, NEVER, ask_from, now, sizes, bench)
        else:
            _load(padding, NEVER, ask_from, now, sizes)
    return last_i


@njit(cache=True)
def _hidden_phase(
    in_tiles: int,
    tokens: int,
    ask_from: int,
    walk_from: int,
    hidden_done: Cycles,
    states: NDArray[np.int64],
    sizes: Sizes,
    bench: Bench | None,
) -> int:
    """Go through the hidden units, fill ``hidden_done``; return the job's first slot."""
    now, before = states[NOW], states[BEFORE_UNITS]
    nothing = hidden_done[:0]
    # Each matrix of a grouped format begins with a scale tile; otherwise their tiles are alike.
    rounds = sizes.matrices if sizes.span > 1 else 1
    blocks, tiles = len(hidden_done), sizes.matrices * in_tiles // rounds
    first = block = since = 0
    within = 1
    search = bench is None
    while block < blocks:
        for number in range(rounds):
            start = _tiles(tiles, number == 0, tokens, ask_from, walk_from, nothing, states, sizes, bench)
            if block == 0 and number == 0:
                first = start
        # The unit's drain; a hidden value is written after the activation.
        read = max(now[START] + sizes.visible, now[D0] + 1, now[D1_FREE])
        _drain(read, tokens, now, sizes)
        now[DRAINED_2] = now[DRAINED]
        now[DRAINED] = now[D0]
        hidden_done[block] = now[LAST_FREE] + sizes.activation + 1
        block += 1

        if not search or block == blocks:
            continue
        if since and _is_later(now, before, HIDDEN_TIMES):
            period, later = block - since, now[FIRE] - before[FIRE]
            repeats = (blocks - block) // period
            _repeat(now, before, HIDDEN_TIMES, repeats)
            for skipped in range(block, block + repeats * period):
                hidden_done[skipped] = hidden_done[skipped - period] + later
            block += repeats * period
            search = False
        elif block - since == within:
            _keep(now, before)
            since = block
            within *= 2
    return first


@njit(cache=True)
def _drain(read: int, tokens: int, now: NDArray[np.int64], sizes: Sizes) -> None:
    """Read a hidden unit's tokens, the first one in cycle ``read``; what they become is always taken."""
    if sizes.drain_stages == 1:
        now[D0] = read + (tokens - 1) * sizes.parts
        now[D1_FREE] = now[LAST_FREE] = now[D0] + sizes.parts
        return
    # The first one's move from d1 to d2; the next one is read with it, moves when the first has been handed
    # out, and so on.
    moved = max(read + 1, now[LAST_FREE])
    now[D0] = moved + (tokens - 2) * sizes.parts if tokens > 1 else read
    now[D1_FREE] = moved + (tokens - 1) * sizes.parts
    now[LAST_FREE] = moved + tokens * sizes.parts


@njit(cache=True)
def _out_phase(
    blocks: int,
    tiles: int,
    tokens: int,
    ask_from: int,
    walk_from: int,
    hidden_done: Cycles,
    states: NDArray[np.int64],
    sizes: Sizes,
    bench: Bench | None,
    results: Cycles,
    trains: Trains,
) -> None:
    """Go through the output units, fill ``results`` and ``trains``."""
    now, before = states[NOW], states[BEFORE_UNITS]
    block = since = 0
    within = 1
    search = bench is None
    while block < blocks:
        _tiles(tiles, True, tokens, ask_from, walk_from, hidden_done, states, sizes, bench)
        # The last unit may have fewer parts than the others.
        parts = min(sizes.parts, sizes.words - block * sizes.parts)
        if bench is not None:
            _give_each(tokens, parts, now, sizes, bench, results)
        else:
            _give(tokens, parts, now, sizes, results, trains)
        now[DRAINED_2] = now[DRAINED]
        now[DRAINED] = now[D0]
        block += 1

        if not search or block >= blocks - 1:
            continue
        if since and _is_later(now, before, OUT_TIMES):
            repeats = (blocks - 1 - block) // (block - since)
            for row in range(before[ROWS], now[ROWS]):
                trains[row, 2] = now[FIRE] - before[FIRE]
                trains[row, 3] += repeats
            block += repeats * (block - since)
            _repeat(now, before, OUT_TIMES, repeats)
            search = False
        elif block - since == within:
            _keep(now, before)
            since = block
            within *= 2


@njit(cache=True)
def _give_each(
    tokens: int, parts: int, now: NDArray[np.int64], sizes: Sizes, bench: Bench, results: Cycles
) -> None:
    """Drain an output unit beat by beat."""
    visible = now[START] + sizes.visible
    for token in range(tokens):
        now[D0] = moved = max(visible, now[D0] + 1, now[D1_FREE])
        if sizes.drain_stages == 2:
            moved = max(moved + 1, now[LAST_FREE])
        for _ in range(parts):
            now[OUT_IN] = max(moved + 1, now[OUT_IN] + 1, now[OUT_2] + 1)
            now[OUT_2] = now[OUT]
            now[OUT] = taken(max(now[OUT_IN] + 1, now[OUT] + 1), bench.ready)
            bench.o[now[OUTPUTS]] = now[OUT]
            now[OUTPUTS] += 1
        now[LAST_FREE] = now[OUT_IN]
        now[D1_FREE] = now[OUT_IN] if sizes.drain_stages == 1 else moved
        results[token] = now[OUT]


@njit(cache=True)
def _give(
    tokens: int, parts: int, now: NDArray[np.int64], sizes: Sizes, results: Cycles, trains: Trains
) -> None:
    """Drain an output unit whose beats are taken at once: they follow each other without gaps."""
    beats = tokens * parts
    read = max(now[START] + sizes.visible, now[D0] + 1, now[D1_FREE])
    moved = read if sizes.drain_stages == 1 else max(read + 1, now[LAST_FREE])
    entered = max(moved + 1, now[OUT_IN] + 1, now[OUT_2] + 1)
    first = max(entered, now[OUT]) + 1
    # Each later beat enters as the one before it leaves; a token is read as the one before it is in.
    now[OUT_2] = first + beats - 2 if beats > 1 else now[OUT]
    now[OUT] = first + beats - 1
    now[OUT_IN] = _entered(beats - 1, entered, first)
    # When the last token moves into the last stage, and the one before it has.
    last = _entered((tokens - 1) * parts - 1, entered, first) if tokens > 1 else moved
    now[LAST_FREE] = now[OUT_IN]
    if sizes.drain_stages == 1:
        now[D0], now[D1_FREE] = last, now[OUT_IN]
    else:
        before = _entered((tokens - 2) * parts - 1, entered, first) if tokens > 2 else moved
        now[D0], now[D1_FREE] = before if tokens > 1 else read, last
    for token in range(tokens):
        results[token] = first + (token + 1) * parts - 1
    row = now[ROWS]
    trains[row, 0], trains[row, 1], trains[row, 2], trains[row, 3] = first, beats, beats, 1
    now[ROWS] += 1


@njit(cache=True)
def _entered(beat: int, entered: int, first: int) -> int:
    return first + beat - 1 if beat else entered


@njit(cache=True)
def _tiles(
    num_tiles: int,
    starts_unit: bool,
    job_tokens: int,
    ask_from: int,
    walk_from: int,
    hidden_done: Cycles,
    states: NDArray[np.int64],
    sizes: Sizes,
    bench: Bench | None,
) -> int:
    """Go through the tiles of a unit, or of one of its matrices; return the first slot.

    ``starts_unit``: the accumulators of the unit before the last must be free.
    ``hidden_done`` holds when each hidden block is written, ascending, for a unit that needs them.
    """
    now, before = states[NOW], states[BEFORE_TILES]
    num_hidden = len(hidden_done)
    first = tile = since = 0
    within = 1
    search = bench is None
    while tile < num_tiles:
        release = now[RELEASED_2] + sizes.release_stages
        if bench is not None:
            _load_each(sizes.tile_beats, release, ask_from, now, sizes, bench)
        else:
            _load(sizes.tile_beats, release, ask_from, now, sizes)

        # Its slots. The first one waits for the tile, and for what it needs; the others follow. A stage is
        # left when the next one is. A scale tile has one slot, of no token.
        place = tile % sizes.span
        scales = sizes.span > 1 and place == 0
        tokens = 1 if scales else job_tokens
        full = now[LEFT] + 1
        f1 = sizes.input_stages + 1
        f0 = f1 + sizes.list_stages + 1
        left = max(walk_from, now[FIRE + f0] + 1, now[FIRE + f0 - 1])
        now[FIRST + f0] = left
        for stage in range(f0 - 1, 0, -1):
            left = max(left + 1, now[FIRE + stage - 1])
            if num_hidden and stage == f1:
                weights = tile - (tile // sizes.span + (place > 0) if sizes.span > 1 else 0)
                needed = ((weights + 1) * sizes.cols + sizes.rows - 1) // sizes.rows
                left = max(left, hidden_done[min(needed, num_hidden) - 1])
            now[FIRST + stage] = left
        if scales:
            fire = max(left + 1, full, now[SCALED] + sizes.scale_distance)
            now[SCALED] = fire
        else:
            fire = max(left + 1, full, now[START] + sizes.distance)
            if starts_unit and tile == (sizes.span > 1):
                fire = max(fire, now[DRAINED_2] + 1)
            now[START] = fire
            if sizes.span == 1:
                now[SCALED] = fire
        if tile == 0:
            first = fire
        if bench is not None:
            bench.wait_from[now[PASSED]] = left + 1
            bench.wait_to[now[PASSED]] = max(full, left + 1)
        now[WAITED] += max(0, full - left - 1)
        now[FIRST] = fire
        now[FIRE] = fire + tokens - 1
        for stage in range(1, MOST_STAGES + 3):
            behind = min(stage, f0)
            now[FIRE + stage] = now[FIRE] - behind if tokens > behind else now[FIRST + behind - tokens + 1]
        now[RELEASED_2] = now[RELEASED]
        now[RELEASED] = now[FIRE]
        now[PASSED] += 1
        now[WALKED] += 1
        tile += 1

        if not search or tile == num_tiles or (tile - since) % sizes.span:
            continue
        if since and _is_later(now, before, TILE_TIMES):
            repeats = (num_tiles - tile) // (tile - since)
            tile += repeats * (tile - since)
            _repeat(now, before, TILE_TIMES, repeats)
            search = False
        elif tile - since >= within and (num_hidden == 0 or now[FIRE + f1] >= hidden_done[-1]):
            # From here on no hidden block is waited for.
            _keep(now, before)
            since = tile
            within *= 2
    return first


@njit(cache=True)
def _load_each(
    count: int,
    release: int,
    ask_from: int,
    now: NDArray[np.int64],
    sizes: Sizes,
    bench: Bench,
) -> None:
    """Take beats one by one; the tile buffer has room for them from ``release`` on."""
    for _ in range(count):
        beat, took = now[BEATS], max(now[R], now[LEFT_2]) + 1
        if now[PLACE] == 0:
            burst = beat // sizes.burst_beats
            now[AR] = taken(max(ask_from, now[AR] + 1, now[now[OLDEST]] + 1), bench.ar_ready)
            took = max(took, now[AR] + sizes.latency + bench.extra[burst % len(bench.extra)])
            bench.ar[burst] = now[AR]
        bench.r[beat] = now[R] = took
        now[LEFT], now[LEFT_2] = max(took + 1, now[LEFT] + 1, release), now[LEFT]
        _count_beats(1, now, sizes)


@njit(cache=True)
def _load(count: int, release: int, ask_from: int, now: NDArray[np.int64], sizes: Sizes) -> None:
    """Take beats whose addresses are taken at once and whose latencies are equal."""
    while count > 0:
        # Beats up to the end of a burst, or of the tile.
        some = min(count, sizes.burst_beats - now[PLACE])
        first = max(now[R], now[LEFT_2]) + 1
        if now[PLACE] == 0:
            now[AR] = max(ask_from, now[AR] + 1, now[now[OLDEST]] + 1)
            first = max(first, now[AR] + sizes.latency)
        # Two beats fit before the tile buffer: the third one is taken when the first has left.
        second = max(first, now[LEFT]) + 1
        left = max(second, release)
        now[R] = first if some == 1 else second if some == 2 else left + some - 2
        now[LEFT_2] = now[LEFT] if some == 1 else left + some - 2
        now[LEFT] = left + some - 1
        _count_beats(some, now, sizes)
        count -= some


@njit(cache=True)
def _count_beats(count: int, now: NDArray[np.int64], sizes: Sizes) -> None:
    """Note beats of one burst."""
    now[BEATS] += count
    now[PLACE] += count
    if now[PLACE] == sizes.burst_beats:
        now[PLACE] = 0
        now[now[OLDEST]] = now[R]
        now[OLDEST] = _next(now[OLDEST], now)


@njit(cache=True)
def _next(column: int, now: NDArray[np.int64]) -> int:
    return column + 1 if column + 1 < len(now) else RING


@njit(cache=True)
def _keep(now: NDArray[np.int64], before: NDArray[np.int64]) -> None:
    for n in range(len(now)):
        before[n] = now[n]


@njit(cache=True)
def _is_later(now: NDArray[np.int64], before: NDArray[np.int64], num_times: int) -> bool:
    """Whether the engine is where it was, only later: in its times, its last bursts, and within a burst."""
    if now[PLACE] != before[PLACE]:
        return False
    later = now[FIRE] - before[FIRE]
    for n in range(num_times):
        if now[n] - before[n] != later:
            return False
    column, its = now[OLDEST], before[OLDEST]
    for _ in range(len(now) - RING):
        if now[column] - before[its] != later:
            return False
        column, its = _next(column, now), _next(its, before)
    return True


@njit(cache=True)
def _repeat(now: NDArray[np.int64], before: NDArray[np.int64], num_times: int, repeats: int) -> None:
    """Do again, so many times, what was done since the state before."""
    later = repeats * (now[FIRE] - before[FIRE])
    for n in (BEATS, WAITED, PASSED):
        now[n] += repeats * (now[n] - before[n])
    for n in range(num_times):
        now[n] += later
    for n in range(RING, len(now)):
        now[n] += later
