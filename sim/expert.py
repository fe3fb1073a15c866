"""Cycle model of the expert engine, derived from ``rtl/expert``.

One pass over jobs, tiles, beats and slots in the order in which the hardware handles them; every
time is the largest of the times of what it waits for. Exact under any arrivals, memory latencies
and output stalls. Names follow the RTL: *f1*, *fire* are stages of the sequencer, *d0*, *d1* of the
drain, a *unit* is a block of ``rows`` outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.streams import ALWAYS, Cycles, taken
from spec.design import DesignSpec, Format
from spec.geometry import ACCUMULATE_DISTANCE, FfnGeometry, ImageGeometry, ceil_div

ARRAY_LATENCY = 8
"""From a slot's firing to its sums being written: burst 5, accumulator 3."""
UNIT_VISIBLE = ARRAY_LATENCY + 1
ACTIVATION = {2: 11, 1: 1}
"""By number of matrices before it: round and clamp 1; with a gate also 1, sigmoid 7, 1, 1."""
QUANTISER = 2
"""Behind the activation where hidden values become int8."""
BANKS = 2


def activation_latency(geometry: FfnGeometry) -> int:
    """Return the cycles from a sum's drain to its hidden activation."""
    return ACTIVATION[geometry.num_up_matrices] + (QUANTISER if geometry.format is Format.INT8 else 0)


@dataclass(frozen=True, kw_only=True)
class EngineShape:
    """Numbers that the recurrence needs; the pairs are (routed, shared)."""

    image: ImageGeometry
    act_lanes: int
    tile_beats: int
    burst_beats: int
    max_outstanding: int

    @classmethod
    def of(
        cls, image: ImageGeometry, *, act_lanes: int, beat_bits: int, burst_beats: int, max_outstanding: int
    ) -> EngineShape:
        """Return the shape of an engine with this image, array and memory port."""
        return cls(
            image=image,
            act_lanes=act_lanes,
            tile_beats=image.routed.tile_bytes * 8 // beat_bits,
            burst_beats=burst_beats,
            max_outstanding=max_outstanding,
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
        )

    @property
    def kinds(self) -> list[FfnGeometry]:
        """Routed and shared geometry; the routed one twice where nothing is shared."""
        return [self.image.routed, self.image.shared or self.image.routed]

    @property
    def words(self) -> int:
        """Output beats per token and job."""
        return ceil_div(self.image.routed.d_model, self.act_lanes)

    def table(self) -> NDArray[np.int64]:
        """Return per kind: hidden blocks, in tiles, out blocks, hidden tiles, bursts."""
        return np.array(
            [
                [
                    kind.hidden_blocks,
                    kind.in_tiles,
                    kind.out_blocks,
                    kind.hidden_tiles,
                    ceil_div(kind.num_bytes, self.image.burst_bytes),
                ]
                for kind in self.kinds
            ],
            dtype=np.int64,
        )


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


def expert_cycles(
    shape: EngineShape,
    shared: NDArray[np.bool_],
    last: NDArray[np.bool_],
    arrivals: Cycles,
    *,
    latency: int,
    extra: Cycles | None = None,
    ready: Cycles = ALWAYS,
    ar_ready: Cycles = ALWAYS,
) -> ExpertCycles:
    """Return when the engine takes its entries and weights and gives its results.

    Parameters
    ----------
    shared, last : (entries,) whether the entry's expert is the shared one; whether it ends its job.
    arrivals : (entries,) first cycle in which each entry is offered, ascending.
    latency : cycles from an accepted address to the first beat of its burst.
    extra : cycles added to the latency of each burst, repeated.
    ready, ar_ready : readiness of ``o`` and of the address channel (:func:`sim.streams.next_ready`).
    """
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    counts = (ends - starts + 1).astype(np.int64)
    kinds = shared[ends].astype(np.int64)
    table = shape.table()
    extra_latency = np.zeros(1, dtype=np.int64) if extra is None else np.asarray(extra, dtype=np.int64)
    routed = shape.image.routed
    i, ar, r, o, first, final, retired, wait_from, wait_to = _run(
        table,
        kinds,
        counts,
        np.ascontiguousarray(arrivals, dtype=np.int64),
        latency,
        extra_latency,
        ready,
        ar_ready,
        routed.num_up_matrices,
        routed.rows,
        routed.cols,
        shape.act_lanes,
        shape.words,
        shape.tile_beats,
        shape.burst_beats,
        shape.max_outstanding,
        activation_latency(routed),
    )
    tiles = np.array([kind.num_tiles for kind in shape.kinds], dtype=np.int64)[kinds]
    return ExpertCycles(
        i=i,
        ar=ar,
        r=r,
        o=o,
        fire_first=first,
        fire_last=final,
        retired=retired,
        fires=int((tiles * counts).sum()),
        tile_beats=int(tiles.sum()) * shape.tile_beats,
        wait_from=wait_from,
        wait_to=wait_to,
    )


@njit(cache=True)
def _ask(
    ar: Cycles, r: Cycles, burst: int, earliest: int, outstanding: int, burst_beats: int, ar_ready: Cycles
) -> int:
    """Note and return when a burst's address is accepted: not before an earlier burst is all read."""
    if burst >= outstanding:
        earliest = max(earliest, r[(burst - outstanding + 1) * burst_beats - 1] + 1)
    ar[burst] = taken(earliest, ar_ready)
    return int(ar[burst])


@njit(cache=True)
def _run(
    table: NDArray[np.int64],
    kinds: NDArray[np.int64],
    counts: NDArray[np.int64],
    arrivals: Cycles,
    latency: int,
    extra: Cycles,
    ready: Cycles,
    ar_ready: Cycles,
    matrices: int,
    rows: int,
    cols: int,
    lanes: int,
    words: int,
    tile_beats: int,
    burst_beats: int,
    outstanding: int,
    activation: int,
) -> tuple[Cycles, Cycles, Cycles, Cycles, Cycles, Cycles, Cycles, Cycles, Cycles]:
    jobs = len(kinds)
    parts = rows // lanes
    num_bursts = np.int64(0)
    num_out = np.int64(0)
    num_tiles = np.int64(0)
    max_hidden = np.int64(1)
    for job in range(jobs):
        num_bursts += table[kinds[job], 4]
        num_out += counts[job] * words
        num_tiles += table[kinds[job], 0] * matrices * table[kinds[job], 1]
        num_tiles += table[kinds[job], 2] * table[kinds[job], 3]
        max_hidden = max(max_hidden, table[kinds[job], 0])
    i = np.empty(len(arrivals), dtype=np.int64)
    ar = np.empty(num_bursts, dtype=np.int64)
    r = np.empty(num_bursts * burst_beats, dtype=np.int64)
    o = np.empty(num_out, dtype=np.int64)
    first = np.empty(jobs, dtype=np.int64)
    final = np.empty(jobs, dtype=np.int64)
    retired = np.empty(jobs, dtype=np.int64)
    hidden_done = np.zeros(max_hidden, dtype=np.int64)
    wait_from = np.empty(num_tiles, dtype=np.int64)
    wait_to = np.empty(num_tiles, dtype=np.int64)
    tile_count = np.int64(0)

    minus = np.int64(-1)
    entry = np.int64(0)
    last_i = minus
    # Weight side: bursts, beats; when the last two beats left the input register, when the last two
    # tiles were released.
    burst = np.int64(0)
    beat = np.int64(0)
    last_ar = minus
    last_r = minus
    left_register = minus
    left_register_2 = minus
    released = minus
    released_2 = minus
    # Array side: leaving times of the last slot from f0, f1, f2 (fire); start of the last tile.
    last_f0 = minus
    last_f1 = minus
    last_fire = minus
    tile_start = np.int64(-ACCUMULATE_DISTANCE)
    # Drain side: when d1 is next free, last two units' last reads, output register.
    d1_free = np.int64(0)
    last_d0 = minus
    drained = minus
    drained_2 = minus
    out_in = minus
    out_taken = minus
    out_taken_2 = minus
    out_count = np.int64(0)

    for job in range(jobs):
        kind = kinds[job]
        tokens = counts[job]
        hidden_blocks, in_tiles = table[kind, 0], table[kind, 1]
        out_blocks, hidden_tiles, bursts = table[kind, 2], table[kind, 3], table[kind, 4]

        # Entries: one per cycle into a free bank.
        free = retired[job - BANKS] + 1 if job >= BANKS else np.int64(0)
        for _ in range(tokens):
            last_i = max(arrivals[entry], last_i + 1, free)
            i[entry] = last_i
            entry += 1
        complete = last_i

        # The reader goes on to this job when it has asked for the last burst of the one before.
        ask_from = max(complete + 1, last_ar + 1) + 1
        # The sequencer likewise, when its last slot has left f0.
        walk_from = max(complete + 1, last_f0 + 1) + 1
        job_burst = burst
        job_beat = np.int64(0)

        for phase in range(2):
            blocks = out_blocks if phase else hidden_blocks
            sets = 1 if phase else matrices
            tiles = hidden_tiles if phase else in_tiles
            for block in range(blocks):
                unit_ready = np.int64(0)
                for matrix in range(sets):
                    for tile in range(tiles):
                        # The tile's beats.
                        for _ in range(tile_beats):
                            if job_beat % burst_beats == 0:
                                earliest = max(ask_from, last_ar + 1)
                                last_ar = _ask(ar, r, burst, earliest, outstanding, burst_beats, ar_ready)
                                offered = last_ar + latency + extra[burst % len(extra)]
                                burst += 1
                            else:
                                offered = last_r + 1
                            last_r = max(offered, last_r + 1, left_register_2 + 1)
                            r[beat] = last_r
                            beat += 1
                            job_beat += 1
                            left_register_2 = left_register
                            left_register = max(last_r + 1, left_register + 1, released_2)
                        full = left_register + 1

                        # Its slots.
                        for token in range(tokens):
                            last_f0 = max(walk_from, last_f0 + 1, last_f1)
                            leave = max(last_f0 + 1, last_fire)
                            if phase and token == 0:
                                needed = ((tile + 1) * cols + rows - 1) // rows
                                leave = max(leave, hidden_done[min(needed, hidden_blocks) - 1])
                            last_f1 = leave
                            fire = max(last_f1 + 1, last_fire + 1, full)
                            if token == 0:
                                wait_from[tile_count] = last_f1 + 1
                                wait_to[tile_count] = max(full, last_f1 + 1)
                                tile_count += 1
                                fire = max(fire, tile_start + ACCUMULATE_DISTANCE)
                                if tile == 0 and matrix == 0:
                                    fire = max(fire, drained_2 + 1)
                                tile_start = fire
                                if phase == 0 and block == 0 and matrix == 0 and tile == 0:
                                    first[job] = fire
                                unit_ready = fire + UNIT_VISIBLE
                            last_fire = fire
                        released_2 = released
                        released = last_fire

                # The unit's drain.
                parts_here = parts
                if phase and block == blocks - 1:
                    parts_here = words - block * parts
                for _ in range(tokens):
                    last_d0 = max(unit_ready, last_d0 + 1, d1_free)
                    if phase:
                        for _part in range(parts_here):
                            out_in = max(last_d0 + 1, out_in + 1, out_taken_2 + 1)
                            out_taken_2 = out_taken
                            out_taken = taken(max(out_in + 1, out_taken + 1), ready)
                            o[out_count] = out_taken
                            out_count += 1
                        d1_free = out_in
                    else:
                        d1_free = last_d0 + parts_here
                drained_2 = drained
                drained = last_d0
                if phase == 0:
                    hidden_done[block] = d1_free + activation + 1
        final[job] = last_fire
        retired[job] = last_d0

        # Padding up to whole bursts is taken and thrown away.
        for _ in range(bursts * burst_beats - job_beat):
            if job_beat % burst_beats == 0:
                earliest = max(ask_from, last_ar + 1)
                last_ar = _ask(ar, r, burst, earliest, outstanding, burst_beats, ar_ready)
                offered = last_ar + latency + extra[burst % len(extra)]
                burst += 1
            else:
                offered = last_r + 1
            last_r = max(offered, last_r + 1, left_register_2 + 1)
            r[beat] = last_r
            beat += 1
            job_beat += 1
            left_register_2 = left_register
            left_register = max(last_r + 1, left_register + 1)
        # Bursts were asked for in order; the job took all of its own.
        assert burst - job_burst == bursts
    return i, ar, r, o, first, final, retired, wait_from, wait_to
