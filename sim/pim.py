"""Cycle model of a channel of the near-memory engine, derived from ``rtl/pim``.

Event by event in order of time: whatever can be issued first is issued, and each command moves the
earliest times of those that depend on it. Idle cycles cost nothing. Exact under any arrivals, output
stalls and positions in the refresh interval, command by command. Names follow the RTL.

What a channel does depends on others in two ways: when its jobs come, and when its outputs are taken.
:func:`advance` goes on until it needs to know more of either. Who joins the channel with others
(:mod:`sim.channels`; :func:`channel_cycles` for one alone) tells it (:func:`add_job`, :func:`take_output`)
and lets it go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.compiled import compiled
from sim.expert import activation_latency, unit_visible
from sim.streams import ALWAYS, Cycles, Spans, taken
from sim.streams import NEVER as LONG_AGO
from spec.banks import BankGeometry, CommandTiming
from spec.geometry import ceil_div

BANKS = 2
"""Jobs inside."""
DEPTH = 4
"""Results for which the readout has room, hidden ones and outputs each."""
READ_LATENCY = 2
QUEUE_LATENCY = 2
ISSUE = 1
"""From the decision to issue a command to the bus."""
NEVER = np.int64(1) << 60
"""When something happens that does not happen, or is not known yet."""
ROUTED, SHARED, ROUTER = 0, 1, 2
"""What a job is for: a routed expert, the shared one, the router in the banks."""
HALVES = 2
"""Reads of a logit."""


class Row(IntEnum):
    """Commands on the row bus, as :class:`rtl.pim.layouts.RowKind`."""

    ACT = 1
    PRE = 2
    PRE_ALL = 3
    REF = 4


class Column(IntEnum):
    """Commands on the column bus, as :class:`rtl.pim.layouts.ColumnKind`."""

    MAC = 1
    WRITE = 2
    READ = 3


class ChannelNumbers(NamedTuple):
    """What the recurrence needs to know; integers all.

    ``load_words`` register writes bring a token's inputs, ``load_parts`` those of a tile; ``span``: tiles
    from a scale tile of a grouped format to the next, else 0; ``visible``: from a block's last slot to its
    reads.
    """

    sides: int
    bursts_per_row: int
    group_tokens: int
    matrices: int
    units: int
    cols: int
    parts: int
    words: int
    load_words: int
    load_parts: int
    span: int
    visible: int
    mac_cycles: int
    weight_cycles: int
    activation: int
    mac_steps: int
    mac_gap: int
    act_steps: int
    act_gap: int
    pre_steps: int
    rcd: int
    rp: int
    ras: int
    rc: int
    rtp: int
    rfc: int
    refi: int
    mac_lead: int
    act_lead: int
    pre_lead: int
    tile_gap: int
    mac_to_write: int
    mac_to_read: int
    write_to_mac: int
    write_to_write: int
    write_to_read: int
    read_to_mac: int
    read_to_write: int
    read_to_read: int


@dataclass(frozen=True, kw_only=True)
class ChannelShape:
    """A channel of a design with a model's experts in it."""

    banks: BankGeometry

    @property
    def words(self) -> int:
        """Output beats per token and job."""
        return ceil_div(self.banks.image.routed.d_model, self.banks.pim.act_lanes)

    def numbers(self) -> ChannelNumbers:
        """Return what the recurrence needs to know of the channel."""
        banks, pim, routed = self.banks, self.banks.pim, self.banks.image.routed
        timing = CommandTiming.of(pim)
        distances = {name: getattr(timing, name) for name in ChannelNumbers._fields if hasattr(timing, name)}
        distances["tile_gap"] = timing.tile_gap(0)
        return ChannelNumbers(
            sides=banks.sides,
            bursts_per_row=banks.bursts_per_row,
            group_tokens=pim.tokens_per_burst,
            matrices=routed.num_up_matrices,
            units=pim.units,
            cols=routed.cols,
            parts=pim.units // pim.act_lanes,
            words=self.words,
            load_words=ceil_div(routed.d_model, pim.load_lanes(routed.format)),
            load_parts=routed.cols // pim.load_lanes(routed.format),
            span=routed.span_tiles + 1 if routed.format.grouped else 0,
            visible=unit_visible(routed),
            mac_cycles=pim.mac_cycles,
            weight_cycles=pim.weight_cycles,
            activation=activation_latency(routed, banks.image.shared or routed),
            **distances,
        )

    def table(self) -> NDArray[np.int64]:
        """Return per kind: hidden blocks, in tiles, out blocks, hidden tiles, visits."""
        image = self.banks.image
        return np.array(
            [
                [
                    kind.hidden_blocks,
                    kind.in_tiles,
                    kind.out_blocks,
                    kind.hidden_tiles,
                    self.banks.visits(kind),
                ]
                for kind in (image.routed, image.shared or image.routed)
            ]
            + [self._router_row()],
            dtype=np.int64,
        )

    def _router_row(self) -> list[int]:
        router = self.banks.image.router
        return [router.hidden_blocks, router.in_tiles, 0, 0, self.banks.visits(router)] if router else [0] * 5


GAPS = ("refresh", "row", "jobs", "lanes", "results", "inputs", "other")
"""What time between MACs goes to, as in :data:`sim.pim_slots.SLOTS`."""
_REFRESH, _ROW, _JOBS, _LANES, _RESULTS, _INPUTS, _OTHER = range(len(GAPS))


class _Gap(NamedTuple):
    """What tells the time before a MAC apart (:func:`_count_gap`); cycles of decisions, not on the bus."""

    end: int
    seen: int
    refreshed: int
    opened: int
    lanes: int
    read: int
    write: int


@dataclass(frozen=True)
class ChannelTotals:
    """What a run counts by itself, without the commands.

    Attributes
    ----------
    fires : tokens that met a tile.
    macs, mac_gap : MAC commands, and the least time from one to the next.
    activates, writes, reads : ACT commands, register writes and register reads.
    gaps : time between MACs, by the names of :data:`GAPS`.
    first, last : the time before the first MAC and after the last one.
    last_mac : when the last MAC was decided.
    """

    fires: int
    macs: int
    mac_gap: int
    activates: int
    writes: int
    reads: int
    gaps: tuple[int, ...]
    first: _Gap
    last: _Gap
    last_mac: int

    @classmethod
    def of(cls, s: ChannelNumbers, channels: Channels, channel: int) -> ChannelTotals:
        """Return the totals of a channel."""
        c = channels.at[channel]
        first = (
            c.first_mac,
            c.first_seen,
            c.first_refreshed,
            c.first_opened,
            -1,
            c.first_read,
            c.first_write,
        )
        last = (-1, -1, -1, -1, c.lanes_until, c.last_read, c.last_write)
        return cls(
            fires=int(c.fires),
            macs=int(c.macs),
            mac_gap=s.mac_gap,
            activates=int(c.activates),
            writes=int(c.writes),
            reads=int(c.reads),
            gaps=tuple(channels.gaps[channel].tolist()),
            first=_Gap(*(int(cycle) for cycle in first)),
            last=_Gap(*(int(cycle) for cycle in last)),
            last_mac=int(c.last_mac),
        )

    def mac_slots(self, start: int, end: int) -> dict[str, int]:
        """Return where the cycles ``start <= c < end`` went, as :func:`sim.pim_slots.mac_slots`."""
        start, end = start - ISSUE, end - ISSUE
        gaps = np.array(self.gaps, dtype=np.int64)
        if self.macs:
            _count_gap(gaps, start, start - 1, self.first._replace(lanes=start), False)
            last = self.last._replace(end=end)
            _count_gap(gaps, self.last_mac + self.mac_gap, self.last_mac, last, True)
        else:
            gaps[_JOBS] = end - start
        used = {"mac": min(self.macs * self.mac_gap, end - start)}
        return used | dict(zip(GAPS, gaps.tolist(), strict=True))


@dataclass(frozen=True)
class ChannelCycles:
    """Handshake cycles, commands and totals of a run.

    Attributes
    ----------
    i, o : (entries,), (output beats,) cycles of the transfers.
    offered : (output beats,) first cycle in which each beat is offered.
    logits : (tokens of jobs with the router,) cycle in which the last of each token's logits is given.
    retired : (jobs,) cycle in which each job is done with.
    rows, columns : (commands, 3) cycle on the bus, kind, side.
    fires : tokens that met a tile.
    totals : what the run counted by itself, for a comparison with the commands.
    """

    i: Cycles
    o: Cycles
    offered: Cycles
    logits: Cycles
    retired: Cycles
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    fires: int
    totals: ChannelTotals

    def mac_slots(self, timing: CommandTiming) -> dict[str, int]:
        """Return where the cycles from the first MAC command to the last one's end went.

        ``mac``: the least time from a MAC command to the next; the rest of each gap by what happened in
        it: ``refresh``, ``row`` (closing and opening), or ``other`` (inputs, results, lanes that are busy).
        """
        macs = self.columns[self.columns[:, 1] == Column.MAC][:, 0]
        lost = np.diff(macs) - timing.mac_gap

        def within(cycles: Cycles) -> NDArray[np.bool_]:
            """Whether a gap holds one of these cycles."""
            inside: NDArray[np.bool_] = np.diff(np.searchsorted(cycles, macs)) > 0
            return inside

        refreshed = within(self.rows[self.rows[:, 1] == Row.REF][:, 0])
        opened = within(self.rows[self.rows[:, 1] == Row.ACT][:, 0]) & ~refreshed
        return {
            "mac": len(macs) * timing.mac_gap,
            "refresh": int(lost[refreshed].sum()),
            "row": int(lost[opened].sum()),
            "other": int(lost[~refreshed & ~opened].sum()),
        }

    def count(self, kind: Row | Column) -> int:
        """Return how often a command was issued."""
        commands = self.rows if isinstance(kind, Row) else self.columns
        return int(np.count_nonzero(commands[:, 1] == kind))


def channel_cycles(
    shape: ChannelShape,
    kinds: NDArray[np.bool_] | NDArray[np.int64],
    last: NDArray[np.bool_],
    arrivals: Cycles,
    *,
    first_refresh: int,
    ready: Spans = ALWAYS,
    tail: int = 0,
    told: bool = True,
) -> ChannelCycles:
    """Return when a channel takes its entries, issues its commands and gives its results.

    Parameters
    ----------
    kinds, last : (entries,) what the entry is for (``ROUTED``, ``SHARED``, ``ROUTER``; without a router
        whether it is the shared expert); whether it ends its job.
    arrivals : (entries,) first cycle in which each entry is offered, ascending.
    first_refresh : cycle in which the first refresh falls due.
    ready : readiness of ``o`` (:func:`sim.streams.readiness`).
    tail : cycles after the last output for which commands are still told.
    told : whether commands are; without, what repeats is taken at once.
    """
    ends = np.flatnonzero(last)
    firsts = np.concatenate([[-1], ends]).astype(np.int64) + 1
    numbers, table = shape.numbers(), shape.table()
    routed = int(np.count_nonzero(kinds == ROUTER))
    channels = new_channels(numbers, table, [first_refresh], len(ends), routed)
    taken_at = np.empty(len(arrivals), dtype=np.int64)
    offered, o = (np.empty((len(arrivals) - routed) * shape.words, dtype=np.int64) for _ in range(2))
    rows, columns = (np.empty((1024 if told else 0, 3), dtype=np.int64) for _ in range(2))
    while not _alone(
        numbers,
        table,
        channels,
        kinds[ends].astype(np.int64),
        firsts,
        np.ascontiguousarray(arrivals, dtype=np.int64),
        taken_at,
        offered,
        o,
        ready,
        tail,
        rows,
        columns,
    ):
        rows, columns = np.concatenate([rows, rows]), np.concatenate([columns, columns])
    c = channels.at[0]
    return ChannelCycles(
        i=taken_at,
        o=o,
        offered=offered,
        logits=channels.logit_at[0],
        retired=channels.jobs[0, RETIRED],
        rows=rows[: c.num_rows].copy(),
        columns=columns[: c.num_columns].copy(),
        fires=int(c.fires),
        totals=ChannelTotals.of(numbers, channels, 0),
    )


_FROM_0 = (
    # Jobs that are known, and those inside: see :func:`add_job`.
    "jobs",
    # Walks (visits, MACs, loads of inputs, reads): job, group, cycle from which it is shown within a job.
    *(f"{walk}_{field}" for walk in "vmld" for field in ("job", "group", "from")),
    "v_visit",
    # Row bus.
    *("act_ok", "row_free", "refresh_end", "closed_all"),
    # Column bus.
    *("column_free", "mac_ok", "write_ok", "read_ok"),
    # MACs: phase (hidden or output), block, matrix, tile in it, command in that; bank and place in its row.
    *("m_out", "m_block", "m_matrix", "m_tile", "m_step", "m_column", "m_side", "started"),
    # Loads of inputs.
    *("l_word", "l_token", "room_from"),
    # Reads of blocks: phase, block, token, matrix; totals of what was read and written.
    *("d_out", "d_block", "d_token", "d_matrix", "blocks_read"),
    *("hidden_reads", "hidden_writes", "output_reads", "w_block", "routed"),
    # Outputs: beats in the output register and gone from it, and the reads that they belong to.
    *("filled", "filled_reads", "filled_part", "gone", "gone_reads", "gone_part"),
    # Commands that are counted.
    *("activates", "writes", "reads"),
    # Counts; what tells the time before the first MAC and after the last one apart.
    *("fires", "macs", "last_mac", "lanes_until"),
    *("first_mac", "first_seen", "first_refreshed", "first_opened", "first_read", "first_write"),
    *("num_rows", "num_columns"),
)
_FROM_BEFORE = (
    # The last entry; for each walk the cycle in which it ended its last job.
    *("last_i", "v_end", "m_end", "l_end", "d_end"),
    # The last ACT.
    "acts_end",
    # Output register: last read emptied, last beat in, last two gone.
    *("last_pop", "out_in", "out_taken", "out_taken_2"),
)
_LONG_AGO = ("last_refresh", "last_read", "last_write")
_FROM_1 = tuple(f"{walk}_between" for walk in "vmld")
"""Whether a walk is between two jobs."""
_SCALARS = np.dtype(
    (np.record, [(name, np.int64) for name in (*_FROM_0, *_FROM_BEFORE, *_LONG_AGO, *_FROM_1, "refresh")])
)


class Channels(NamedTuple):
    """What channels are doing; the first axis of everything is the channel, the second a name below.

    Few arrays, because each costs compiling time in every function that gets them. ``logit_at``: per token of
    a job with the router, when the last of its logits was given.
    """

    at: Any
    jobs: Cycles
    flags: NDArray[np.bool_]
    sides: Cycles
    word_at: Cycles
    hidden_at: Cycles
    blocks: Cycles
    results: Cycles
    logit_at: Cycles
    gaps: Cycles


KIND, COUNT, FIRST, COMPLETE, RETIRED = range(5)
"""Per job: what it is for, entries, the first one's number, when its last one was taken, when it was
done with (or NEVER)."""
_ASSIGNED, _OPENED, _USABLE, _STALE = range(4)
_ASSIGNED_AT, _VISIT_DONE, _RCD_OK, _RAS_OK, _RC_OK, _RP_OK, _RTP_OK = range(7)
_BLOCK_FROM, _BLOCK_READ = range(2)
"""When each of the last four blocks can be read, was read."""
_QUEUE_FROM, _QUEUE_LAST, _WRITTEN_AT = range(3)
"""Hidden results: from when they can be written, whether they end their block, when they were written."""
OUT_FROM, OUT_PARTS, OUT_ENTRY, OUT_WORD, POPPED_AT, FILLED_AT = range(3, 9)
"""Reads of outputs: from when they are shown, beats, entry, first word; when the last beat went on into the
output register (or NEVER). When the beats in that register came in."""
RESULTS = 2 * DEPTH
"""Results are kept modulo this."""


def new_channels(
    s: ChannelNumbers, table: NDArray[np.int64], first_refreshes: Sequence[int], jobs: int, routed: int = 0
) -> Channels:
    """Return empty channels that take at most so many jobs each, and so many tokens for the router.

    ``first_refreshes``: of each channel.
    """
    count, never = len(first_refreshes), int(NEVER)
    at = np.zeros(count, dtype=_SCALARS)
    for names, start in ((_FROM_BEFORE, -1), (_LONG_AGO, LONG_AGO), (_FROM_1, 1)):
        for name in names:
            at[name] = start
    at["refresh"] = first_refreshes if s.refi else NEVER

    def full(size: int, *starts: int) -> Cycles:
        return np.tile(np.array(starts, dtype=np.int64)[:, None], (count, 1, size))

    return Channels(
        at=at,
        jobs=full(jobs, 0, 0, 0, never, never),
        flags=np.zeros((count, 4, s.sides), dtype=np.bool_),
        sides=full(s.sides, -1, -1, 0, 0, 0, 0, 0),
        word_at=np.full((count, s.load_words), NEVER),
        hidden_at=np.full((count, int(table[:, 0].max())), NEVER),
        blocks=full(4, never, -1),
        results=full(RESULTS, 0, 0, -1, 0, 0, 0, 0, -1, 0),
        logit_at=np.zeros((count, routed), dtype=np.int64),
        gaps=np.zeros((count, len(GAPS)), dtype=np.int64),
    )


@compiled
def _alone(
    s: ChannelNumbers,
    table: NDArray[np.int64],
    channels: Channels,
    kinds: NDArray[np.int64],
    firsts: NDArray[np.int64],
    arrivals: Cycles,
    i: Cycles,
    offered: Cycles,
    o: Cycles,
    ready: Spans,
    tail: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> bool:
    """Run one channel to its end; return False if there is no room for more commands.

    Parameters
    ----------
    kinds, firsts : of each job, what it is for, and its first entry; last their number.
    i, offered, o, rows, columns : filled.
    """
    c = channels.at[0]
    while True:
        while c.jobs < len(kinds) and (c.jobs < BANKS or channels.jobs[0, RETIRED, c.jobs - BANKS] < NEVER):
            first, end = firsts[c.jobs], firsts[c.jobs + 1]
            add_job(channels, 0, kinds[c.jobs], first, arrivals[first:end], i[first:end])
        last_result = c.out_taken
        if c.routed:
            last_result = max(last_result, channels.logit_at[0, c.routed - 1])
        until = NEVER if c.d_job < len(kinds) else last_result + tail - ISSUE
        # The next job comes when one is done with, at the earliest a cycle after that.
        advance(s, table, channels, 0, NEVER, 1, np.int64(0), until, len(rows) > 0, rows, columns)
        fill_register(channels, 0)
        while c.gone < c.filled:
            place = c.gone
            offered[place] = output_offered(channels, 0)
            o[place] = taken(offered[place], ready)
            take_output(channels, 0, o[place])
            fill_register(channels, 0)
        if no_room(s, c, rows, columns):
            return False
        if c.d_job == len(kinds) and until < NEVER:
            return True


@compiled
def add_job(channels: Channels, channel: int, kind: int, first: int, arrivals: Cycles, i: Cycles) -> None:
    """Give a channel its next job; the one before the last must be done with.

    Parameters
    ----------
    kind : what it is for.
    first : number of its first entry.
    arrivals : when each of its entries is offered.
    i : filled with when each is taken: one per cycle, into a free bank.
    """
    c = channels.at[channel]
    job = c.jobs
    free = channels.jobs[channel, RETIRED, job - BANKS] + 1 if job >= BANKS else np.int64(0)
    for entry in range(len(arrivals)):
        c.last_i = max(arrivals[entry], c.last_i + 1, free)
        i[entry] = c.last_i
    jobs = channels.jobs[channel]
    jobs[KIND, job], jobs[COUNT, job], jobs[FIRST, job] = kind, len(arrivals), first
    jobs[COMPLETE, job] = c.last_i
    c.jobs += 1


@compiled
def fill_register(channels: Channels, channel: int) -> None:
    """Let results into a channel's output register, as far as it has room."""
    c = channels.at[channel]
    results = channels.results[channel]
    while c.filled_reads < c.output_reads and c.filled < c.gone + 2:
        at = c.filled_reads % RESULTS
        if c.filled_part == 0:
            c.out_in = max(c.out_in, results[OUT_FROM, at] - 1, c.last_pop)
        before_last = c.out_taken if c.filled > c.gone else c.out_taken_2
        c.out_in = max(c.out_in + 1, before_last + 1)
        results[FILLED_AT, c.filled % 2] = c.out_in
        c.filled += 1
        c.filled_part += 1
        if c.filled_part == results[OUT_PARTS, at]:
            c.filled_part = 0
            c.filled_reads += 1
            c.last_pop = c.out_in
            results[POPPED_AT, at] = c.out_in


@compiled
def output_offered(channels: Channels, channel: int) -> int:
    """Return when the first beat in a channel's output register, which is not empty, is offered."""
    c = channels.at[channel]
    return int(max(channels.results[channel, FILLED_AT, c.gone % 2] + 1, c.out_taken + 1))


@compiled
def take_output(channels: Channels, channel: int, cycle: int) -> None:
    """Take the first beat from a channel's output register."""
    c = channels.at[channel]
    c.out_taken_2 = c.out_taken
    c.out_taken = cycle
    c.gone += 1
    c.gone_part += 1
    if c.gone_part == channels.results[channel, OUT_PARTS, c.gone_reads % RESULTS]:
        c.gone_part = 0
        c.gone_reads += 1


@compiled
def no_room(s: ChannelNumbers, c: Any, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> bool:
    """Whether commands are told, and there is no room for those of the next event."""
    return len(rows) > 0 and (
        c.num_rows + max(s.act_steps, s.pre_steps) > len(rows) or c.num_columns == len(columns)
    )


@compiled
def _walk_from(job: int, end: int, jobs: int, complete: Cycles) -> int:
    """Return the cycle from which a walk shows a job, when it showed the one before until ``end``."""
    if job >= jobs:
        return int(NEVER)
    return int(max(complete[job] + 1, end + 1) + 1)


@compiled
def advance(
    s: ChannelNumbers,
    table: NDArray[np.int64],
    channels: Channels,
    channel: int,
    next_job: int,
    reaction: int,
    next_pop: int,
    until: int,
    walked: bool,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> int:
    """Let a channel go on as far as it can; return the first cycle of which not all is known yet.

    It stops where the next event could depend on a job that is not known or on an output that is not
    known to be taken; when it has no job (what an idle channel has to refresh until the next one it does
    when that is there); or after ``until``.

    Parameters
    ----------
    next_job : first cycle in which the next job can be complete.
    reaction : least cycles from a job being done, or outputs being read, to a job coming because of it.
    next_pop : no output of which it is not known yet goes on into the output register before.
    walked : one event after the other; else what repeats is taken at once.
    rows, columns : filled with the commands, or of length 0; filled only if walked.
    """
    c = channels.at[channel]
    jobs, flags, sides = channels.jobs[channel], channels.flags[channel], channels.sides[channel]
    results, gaps = channels.results[channel], channels.gaps[channel]
    kinds, counts, complete, retired = jobs[KIND], jobs[COUNT], jobs[COMPLETE], jobs[RETIRED]
    assigned, opened, usable, stale = flags[_ASSIGNED], flags[_OPENED], flags[_USABLE], flags[_STALE]
    assigned_at, visit_done = sides[_ASSIGNED_AT], sides[_VISIT_DONE]
    rcd_ok, ras_ok, rc_ok = sides[_RCD_OK], sides[_RAS_OK], sides[_RC_OK]
    rp_ok, rtp_ok = sides[_RP_OK], sides[_RTP_OK]
    word_at, hidden_at = channels.word_at[channel], channels.hidden_at[channel]
    block_from, block_read = channels.blocks[channel, _BLOCK_FROM], channels.blocks[channel, _BLOCK_READ]
    queue_from, queue_last = results[_QUEUE_FROM], results[_QUEUE_LAST]
    written_at, popped_at, out_from = results[_WRITTEN_AT], results[POPPED_AT], results[OUT_FROM]
    never = np.int64(NEVER)
    told = len(rows) > 0
    lanes_latency = s.weight_cycles + 2
    unknown_job = np.int64(next_job)
    # Most events leave as they are when rows are opened and closed: those times are kept.
    rows_changed = True
    best_row, best_side, refresh_event, visit_at, v_side = never, -1, never, never, 0

    while True:
        if rows_changed:
            rows_changed = False
            # Row bus.
            best_row, best_side = never, -1
            for turn in range(s.sides):
                side = _side_after(s, c.m_side, turn)
                when = never
                if assigned[side] and not opened[side]:
                    when = max(
                        assigned_at[side] + 1, rp_ok[side], rc_ok[side], c.act_ok, c.row_free, c.refresh_end
                    )
                    if c.refresh - when < s.act_lead:
                        when = never
                elif usable[side] and stale[side]:
                    when = max(visit_done[side] + 1, ras_ok[side], rtp_ok[side], c.row_free)
                    if c.refresh - when < s.pre_lead:
                        when = never
                if when < best_row:
                    best_row, best_side = when, side
            refresh_event = never
            if s.refi:
                any_open = False
                for side in range(s.sides):
                    any_open = any_open or opened[side]
                refresh_event = c.refresh - s.rp if any_open and not c.closed_all else c.refresh

            # Visit.
            visit_at = never
            if c.v_between:
                c.v_from = _walk_from(c.v_job, c.v_end, c.jobs, complete)
            v_side = c.v_visit % s.sides if s.sides > 1 else 0
            if c.v_from < never and not assigned[v_side]:
                visit_at = max(c.v_from, visit_done[v_side] + 1)

        # MAC.
        mac_at = never
        if c.m_between:
            c.m_from = _walk_from(c.m_job, c.m_end, c.jobs, complete)
        if c.m_from < never and assigned[c.m_side] and usable[c.m_side] and not stale[c.m_side]:
            when = max(c.m_from, c.mac_ok, c.column_free, rcd_ok[c.m_side])
            kind = kinds[c.m_job]
            last_input = _inputs_until(s, table, kind, c.m_out, c.m_tile, word_at, hidden_at)
            when = max(when, last_input + 1)
            if c.m_step == 0 and c.m_tile == 0 and c.m_matrix == 0 and c.started >= 2:
                read = c.blocks_read >= c.started - 1
                when = max(when, block_read[(c.started - 2) % 4] + 1) if read else never
            if when < never and c.refresh - when >= s.mac_lead:
                mac_at = when

        # Hidden write.
        hidden_write_at = never
        if c.hidden_writes < c.hidden_reads:
            at = c.hidden_writes % RESULTS
            when = queue_from[at]
            if c.hidden_writes > 0:
                when = max(when, written_at[(c.hidden_writes - 1) % RESULTS] + 1)
            when = max(when, c.write_ok, c.column_free, c.refresh_end)
            hidden_write_at = when if when < c.refresh else c.refresh + s.rfc

        # Read.
        read_at, unknown_read = never, never
        if c.d_between:
            c.d_from = _walk_from(c.d_job, c.d_end, c.jobs, complete)
        if c.d_from < never and c.blocks_read < c.started and block_from[c.blocks_read % 4] < never:
            when = max(c.d_from, block_from[c.blocks_read % 4], c.read_ok, c.column_free, c.refresh_end)
            is_router = kinds[c.d_job] == ROUTER
            final = c.d_out or c.d_matrix == s.matrices - 1
            if c.d_out:
                if c.output_reads >= DEPTH:
                    popped = popped_at[(c.output_reads - DEPTH) % RESULTS]
                    if popped == never:
                        shown = out_from[(c.output_reads - DEPTH) % RESULTS]
                        unknown_read = max(when, np.int64(next_pop) + 1, shown + 1)
                        when = never
                    else:
                        when = max(when, popped + 1)
            elif final and not is_router and c.hidden_reads >= DEPTH:
                if c.hidden_writes <= c.hidden_reads - DEPTH:
                    when = never
                else:
                    when = max(when, written_at[(c.hidden_reads - DEPTH) % RESULTS] + 1)
            if when < never:
                read_at = when if when < c.refresh else max(when, c.refresh + s.rfc)

        # Input write.
        load_at = never
        if c.l_between:
            c.l_from = _walk_from(c.l_job, c.l_end, c.jobs, complete)
        if c.l_from < never and c.room_from < never:
            when = max(c.l_from, c.room_from, c.write_ok, c.column_free, c.refresh_end)
            load_at = when if when < c.refresh else max(when, c.refresh + s.rfc)

        now = min(best_row, refresh_event, mac_at, hidden_write_at, read_at, load_at, visit_at)
        unknown = unknown_read
        if (c.v_between and c.v_job == c.jobs) or (c.l_between and c.l_job == c.jobs and c.room_from < never):
            # The first walk to show a job that is not known would do so now.
            unknown = min(unknown, unknown_job)
        idle = c.d_job == c.jobs and until == never
        if idle or now >= unknown or now > until or no_room(s, c, rows, columns):
            return int(unknown if idle else min(now, unknown))
        assert now < never
        if now == refresh_event:
            rows_changed = True
            if told:
                rows[c.num_rows] = (now + ISSUE, 3 if now < c.refresh else 4, 0)
                c.num_rows += 1
            if now < c.refresh:
                c.closed_all = 1
                c.row_free = now + 1
                for side in range(s.sides):
                    opened[side] = False
                    usable[side] = False
                    stale[side] = False
            else:
                c.closed_all = 0
                c.last_refresh = now
                c.refresh_end = now + s.rfc
                c.refresh = now + s.refi
        elif now == best_row:
            rows_changed = True
            side = best_side
            is_act = not opened[side]
            steps, gap = (s.act_steps, s.act_gap) if is_act else (s.pre_steps, 1)
            end = now + (steps - 1) * gap
            if told:
                for step in range(steps):
                    rows[c.num_rows] = (now + step * gap + ISSUE, 1 if is_act else 2, side)
                    c.num_rows += 1
            c.row_free = end + 1
            if is_act:
                c.activates += steps
                c.acts_end = end
                opened[side] = True
                usable[side] = True
                rcd_ok[side] = end + s.rcd
                ras_ok[side] = end + s.ras
                rc_ok[side] = now + s.rc
                c.act_ok = end + gap
            else:
                opened[side] = False
                usable[side] = False
                stale[side] = False
                rp_ok[side] = end + s.rp
        elif now == mac_at:
            kind = kinds[c.m_job]
            tokens = min(s.group_tokens, counts[c.m_job] - c.m_group * s.group_tokens)
            busy = max(s.tile_gap, tokens * s.mac_cycles)
            _count_mac(s, c, gaps, complete[c.m_job], rcd_ok[c.m_side], now)
            starts_block = c.m_step == 0 and c.m_tile == 0 and c.m_matrix == 0
            if not walked and s.mac_steps == 1 and c.acts_end < now:
                # Tiles of one row, one behind the other, as long as nothing else can happen between them.
                others = min(best_row, refresh_event, hidden_write_at, read_at, load_at, visit_at, unknown)
                before = min(others - 1, until, c.refresh - s.mac_lead)
                tiles = table[kind, 3] if c.m_out else table[kind, 1]
                more = min(tiles - 1 - c.m_tile, s.bursts_per_row - 1 - c.m_column)
                if now + more * busy > before:
                    more = (before - now) // busy
                if more > 0:
                    tile = c.m_tile + more
                    if _inputs_until(s, table, kind, c.m_out, tile, word_at, hidden_at) < now:
                        now += more * busy
                        # (Those before the last; that one is counted below.)
                        c.fires += (_met(s, tile) - _met(s, c.m_tile)) * tokens
                        c.m_tile = tile
                        c.m_column += more
                        c.macs += more
                        gaps[_LANES] += more * (busy - s.mac_gap)
                        c.last_mac = now
            if told:
                columns[c.num_columns] = (now + ISSUE, 1, c.m_side)
                c.num_columns += 1
            c.column_free = now + 1
            if starts_block:
                block_from[c.started % 4] = never
                c.started += 1
            rtp_ok[c.m_side] = now + s.rtp
            c.write_ok = max(c.write_ok, now + s.mac_to_write)
            c.read_ok = max(c.read_ok, now + s.mac_to_read)
            c.m_step += 1
            c.lanes_until = now + (s.mac_gap if c.m_step < s.mac_steps else busy)
            c.m_from, c.m_between = now + 1, 0
            if c.m_step < s.mac_steps:
                c.mac_ok = max(c.mac_ok, now + s.mac_gap)
            else:
                c.m_step = 0
                c.mac_ok = max(c.mac_ok, now + busy)
                c.fires += (_met(s, c.m_tile + 1) - _met(s, c.m_tile)) * tokens
                last_fire = now + lanes_latency + (tokens - 1) * s.mac_cycles
                c.m_tile += 1
                c.m_column += 1
                group_done = False
                if c.m_tile == (table[kind, 3] if c.m_out else table[kind, 1]):
                    c.m_tile = 0
                    c.m_matrix += 1
                    is_router = kind == ROUTER
                    if c.m_out or is_router or c.m_matrix == s.matrices:
                        c.m_matrix = 0
                        block_from[(c.started - 1) % 4] = last_fire + s.visible
                        c.m_block += 1
                        if c.m_block == (table[kind, 2] if c.m_out else table[kind, 0]):
                            c.m_block = 0
                            group_done = c.m_out == 1 or is_router
                            if not c.m_out:
                                # The group's inputs are not needed any more.
                                c.room_from = last_fire
                                word_at[:] = never
                            c.m_out = 0 if group_done else 1
                if c.m_column == s.bursts_per_row or group_done:
                    c.m_column = 0
                    rows_changed = True
                    assigned[c.m_side] = False
                    stale[c.m_side] = True
                    visit_done[c.m_side] = now
                    c.m_side = 0 if group_done else _side_after(s, c.m_side, 1)
                    if not walked and s.sides == 1:
                        _open_next_row(s, c, sides, flags, table[kind, 4])
                if group_done:
                    c.m_group += 1
                    if c.m_group * s.group_tokens >= counts[c.m_job]:
                        c.m_job, c.m_group = c.m_job + 1, 0
                        c.m_end, c.m_between = now, 1
        elif now == hidden_write_at:
            if told:
                columns[c.num_columns] = (now + ISSUE, 2, 0)
                c.num_columns += 1
            c.writes += 1
            c.last_write = now
            c.column_free = now + 1
            c.mac_ok = max(c.mac_ok, now + s.write_to_mac)
            c.write_ok = max(c.write_ok, now + s.write_to_write)
            c.read_ok = max(c.read_ok, now + s.write_to_read)
            at = c.hidden_writes % RESULTS
            written_at[at] = now
            c.hidden_writes += 1
            if queue_last[at]:
                hidden_at[c.w_block] = now
                c.w_block += 1
        elif now == read_at:
            if told:
                columns[c.num_columns] = (now + ISSUE, 3, 0)
                c.num_columns += 1
            c.reads += 1
            c.last_read = now
            c.column_free = now + 1
            c.mac_ok = max(c.mac_ok, now + s.read_to_mac)
            c.write_ok = max(c.write_ok, now + s.read_to_write)
            c.read_ok = max(c.read_ok, now + s.read_to_read)
            kind = kinds[c.d_job]
            tokens = min(s.group_tokens, counts[c.d_job] - c.d_group * s.group_tokens)
            c.d_from, c.d_between = now + 1, 0
            last_block = c.d_block == (table[kind, 2] if c.d_out else table[kind, 0]) - 1
            is_router = kind == ROUTER
            if not c.d_out and c.d_matrix < (HALVES if is_router else s.matrices) - 1:
                c.d_matrix += 1
            else:
                c.d_matrix = 0
                if c.d_out:
                    at = c.output_reads % RESULTS
                    entry = c.d_group * s.group_tokens + c.d_token
                    out_from[at] = now + READ_LATENCY + QUEUE_LATENCY
                    results[OUT_PARTS, at] = s.words - c.d_block * s.parts if last_block else s.parts
                    results[OUT_ENTRY, at] = jobs[FIRST, c.d_job] + entry
                    results[OUT_WORD, at] = c.d_block * s.parts
                    popped_at[at] = never
                    c.output_reads += 1
                    unknown_job = min(unknown_job, now + reaction)
                elif is_router:
                    if last_block:
                        channels.logit_at[channel, c.routed] = now + READ_LATENCY
                        c.routed += 1
                else:
                    at = c.hidden_reads % RESULTS
                    queue_from[at] = now + READ_LATENCY + s.parts - 1 + s.activation + QUEUE_LATENCY
                    queue_last[at] = c.d_token == tokens - 1
                    c.hidden_reads += 1
                c.d_token += 1
                if c.d_token == tokens:
                    c.d_token = 0
                    block_read[c.blocks_read % 4] = now
                    c.blocks_read += 1
                    c.d_block += 1
                    if last_block:
                        c.d_block = 0
                        if c.d_out or is_router:
                            hidden_at[:] = never
                            c.w_block = 0
                            c.d_group += 1
                            if c.d_group * s.group_tokens >= counts[c.d_job]:
                                retired[c.d_job] = now
                                c.d_job, c.d_group = c.d_job + 1, 0
                                c.d_end, c.d_between = now, 1
                                unknown_job = min(unknown_job, now + reaction)
                        c.d_out = 0 if c.d_out or is_router else 1
        elif now == load_at:
            if told:
                columns[c.num_columns] = (now + ISSUE, 2, 0)
                c.num_columns += 1
            c.writes += 1
            c.last_write = now
            c.column_free = now + 1
            c.mac_ok = max(c.mac_ok, now + s.write_to_mac)
            c.write_ok = max(c.write_ok, now + s.write_to_write)
            c.read_ok = max(c.read_ok, now + s.write_to_read)
            tokens = min(s.group_tokens, counts[c.l_job] - c.l_group * s.group_tokens)
            c.l_from, c.l_between = now + 1, 0
            c.l_token += 1
            if c.l_token == tokens:
                c.l_token = 0
                word_at[c.l_word] = now
                c.l_word += 1
                if c.l_word == s.load_words:
                    c.l_word = 0
                    c.room_from = never
                    c.l_group += 1
                    if c.l_group * s.group_tokens >= counts[c.l_job]:
                        c.l_job, c.l_group = c.l_job + 1, 0
                        c.l_end, c.l_between = now, 1
        else:
            rows_changed = True
            assigned[v_side] = True
            assigned_at[v_side] = now
            c.v_from, c.v_between = now + 1, 0
            c.v_visit += 1
            if c.v_visit == table[kinds[c.v_job], 4]:
                c.v_visit = 0
                c.v_group += 1
                if c.v_group * s.group_tokens >= counts[c.v_job]:
                    c.v_job, c.v_group = c.v_job + 1, 0
                    c.v_end, c.v_between = now, 1


@compiled
def _side_after(s: ChannelNumbers, side: int, turns: int) -> int:
    """Return the side whose turn it is so many turns, at most all sides, after another one's."""
    after = side + turns
    return after - s.sides if after >= s.sides else after


@compiled
def _open_next_row(s: ChannelNumbers, c: Any, sides: Cycles, flags: NDArray[np.bool_], visits: int) -> None:
    """Visit, close and open the row behind a finished one at once, if nothing can come between.

    Of a bank that has no other to take turns with: from its last MAC to the next row's first one nothing
    else changes when these commands are issued but a refresh, and nothing hears of them before.

    Parameters
    ----------
    visits : of the job for each group of its tokens.
    """
    done = sides[_VISIT_DONE, 0]
    if c.v_between or c.v_job != c.m_job or c.v_group != c.m_group or c.v_visit + 1 >= visits:
        return
    visit = max(c.v_from, done + 1)
    close = max(done + 1, sides[_RAS_OK, 0], sides[_RTP_OK, 0], c.row_free)
    closed = close + s.pre_steps - 1
    act = max(visit + 1, closed + s.rp, sides[_RC_OK, 0], c.act_ok, closed + 1, c.refresh_end)
    if c.refresh < NEVER:
        closes = c.closed_all or c.refresh - close < s.pre_lead or close >= c.refresh - s.rp
        if closes or c.refresh - act < s.act_lead or act >= c.refresh:
            return
    opened = act + (s.act_steps - 1) * s.act_gap
    sides[_ASSIGNED_AT, 0] = visit
    c.v_from, c.v_visit = visit + 1, c.v_visit + 1
    sides[_RP_OK, 0] = closed + s.rp
    flags[_ASSIGNED, 0], flags[_OPENED, 0], flags[_USABLE, 0], flags[_STALE, 0] = True, True, True, False
    c.activates += s.act_steps
    c.acts_end = opened
    c.row_free = opened + 1
    sides[_RCD_OK, 0], sides[_RAS_OK, 0], sides[_RC_OK, 0] = opened + s.rcd, opened + s.ras, act + s.rc
    c.act_ok = opened + s.act_gap


@compiled
def _met(s: ChannelNumbers, tile: int) -> int:
    """Return how many of a block's first tiles a token meets: those that are no scale tiles."""
    return tile - (tile + s.span - 1) // s.span if s.span else tile


@compiled
def _inputs_until(
    s: ChannelNumbers,
    table: NDArray[np.int64],
    kind: int,
    out: int,
    tile: int,
    word_at: Cycles,
    hidden_at: Cycles,
) -> int:
    """Return when the last of the inputs was written that a block's tiles up to this one need.

    A scale tile needs none but those of the tiles before it.
    """
    tiles = _met(s, tile + 1)
    if tiles == 0:
        return int(LONG_AGO)
    if out:
        # (A division is as long as all the rest here, and most designs need none.)
        needed = tiles if s.cols == s.units else (tiles * s.cols + s.units - 1) // s.units
        return int(hidden_at[min(needed, table[kind, 0]) - 1])
    return int(word_at[min(tiles * s.load_parts, s.load_words) - 1])


@compiled
def _count_mac(s: ChannelNumbers, c: Any, gaps: Cycles, given: int, opened: int, now: int) -> None:
    """Count a MAC command, and what took the time since the one before.

    Parameters
    ----------
    given : when the last entry of its job was taken.
    opened : first cycle in which its row takes a MAC.
    """
    starts = c.m_group == 0 and c.m_out == 0 and c.m_block == 0
    starts = starts and c.m_matrix == 0 and c.m_tile == 0 and c.m_step == 0
    seen = given + 2 if starts else -1
    refreshed = c.last_refresh + s.rfc
    if c.macs:
        gap = _Gap(now, seen, refreshed, opened, c.lanes_until, c.last_read, c.last_write)
        _count_gap(gaps, c.last_mac + s.mac_gap, c.last_mac, gap, False)
    else:
        c.first_mac, c.first_seen, c.first_refreshed, c.first_opened = now, seen, refreshed, opened
        c.first_read, c.first_write = c.last_read, c.last_write
    c.macs += 1
    c.last_mac = now


@compiled
def _count_gap(gaps: Cycles, start: int, before: int, gap: _Gap, is_last: bool) -> None:
    """Tell the cycles from ``start`` to the end of a gap apart, in the order of :mod:`sim.pim_slots`.

    ``before``: cycle of the MAC before it.
    """
    end = gap.end
    at = min(start, end)
    at = _count_until(gaps, _JOBS, at, gap.seen, end)
    if gap.refreshed > at:
        at = _count_until(gaps, _REFRESH, at, max(gap.refreshed, gap.opened), end)
    at = _count_until(gaps, _ROW, at, gap.opened, end)
    at = _count_until(gaps, _LANES, at, gap.lanes, end)
    if gap.read > before:
        at = _count_until(gaps, _RESULTS, at, gap.read + 1 if gap.write > gap.read else end, end)
    if gap.write > before and not is_last:
        at = _count_until(gaps, _INPUTS, at, end, end)
    # Behind the last MAC and its results there is nothing to do.
    _count_until(gaps, _JOBS if is_last else _OTHER, at, end, end)


@compiled
def _count_until(gaps: Cycles, name: int, at: int, cycle: int, end: int) -> int:
    """Count the cycles from ``at`` up to another one under a name; return where the rest begins."""
    upto = min(max(cycle, at), end)
    gaps[name] += upto - at
    return int(upto)
