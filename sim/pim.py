"""Cycle model of a channel of the near-memory engine, derived from ``rtl/pim``.

Event by event in order of time: whatever can be issued first is issued, and each command moves the
earliest times of those that depend on it. Idle cycles cost nothing. Exact under any arrivals, output
stalls and positions in the refresh interval, command by command. Names follow the RTL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.expert import ARRAY_LATENCY, activation_latency
from sim.streams import ALWAYS, Cycles, Spans, taken
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


class _Shape(NamedTuple):
    """What the recurrence needs to know; integers all."""

    sides: int
    bursts_per_row: int
    group_tokens: int
    matrices: int
    units: int
    cols: int
    parts: int
    words: int
    token_words: int
    mac_cycles: int
    storage_cycles: int
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

    def _numbers(self) -> _Shape:
        banks, pim, routed = self.banks, self.banks.pim, self.banks.image.routed
        timing = CommandTiming.of(pim)
        distances = {name: getattr(timing, name) for name in _Shape._fields if hasattr(timing, name)}
        distances["tile_gap"] = timing.tile_gap(0)
        return _Shape(
            sides=banks.sides,
            bursts_per_row=banks.bursts_per_row,
            group_tokens=pim.tokens_per_burst,
            matrices=routed.num_up_matrices,
            units=pim.units,
            cols=routed.cols,
            parts=pim.units // pim.act_lanes,
            words=self.words,
            token_words=ceil_div(routed.d_model, routed.cols),
            mac_cycles=pim.mac_cycles,
            storage_cycles=pim.storage_cycles,
            activation=activation_latency(routed),
            **distances,
        )

    def _table(self) -> NDArray[np.int64]:
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
    """

    i: Cycles
    o: Cycles
    offered: Cycles
    logits: Cycles
    retired: Cycles
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    fires: int

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
    """
    ends = np.flatnonzero(last)
    counts = np.diff(np.concatenate([[-1], ends])).astype(np.int64)
    i, o, offered, logits, retired, rows, columns, fires = _run(
        shape._numbers(),
        shape._table(),
        kinds[ends].astype(np.int64),
        counts,
        np.ascontiguousarray(arrivals, dtype=np.int64),
        first_refresh,
        ready,
        tail,
    )
    return ChannelCycles(i, o, offered, logits, retired, rows, columns, int(fires))


@njit(cache=True)
def _grown(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the array with room for ``count`` rows at least."""
    if count <= len(rows):
        return rows
    larger = np.empty((max(count, 2 * len(rows)), 3), dtype=np.int64)
    larger[: len(rows)] = rows
    return larger


@njit(cache=True)
def _walk_from(job: int, end: int, completed: int, complete: Cycles) -> int:
    """Return the cycle from which a walk shows a job, when it showed the one before until ``end``."""
    if job >= completed:
        return int(NEVER)
    return int(max(complete[job] + 1, end + 1) + 1)


@njit(cache=True)
def _run(
    s: _Shape,
    table: NDArray[np.int64],
    kinds: NDArray[np.int64],
    counts: NDArray[np.int64],
    arrivals: Cycles,
    first_refresh: int,
    ready: Spans,
    tail: int,
) -> tuple[Cycles, Cycles, Cycles, Cycles, Cycles, NDArray[np.int64], NDArray[np.int64], int]:
    jobs = len(kinds)
    num_out = np.int64(0)
    num_logits = np.int64(0)
    num_columns = np.int64(0)
    max_hidden = np.int64(1)
    for job in range(jobs):
        hidden_blocks, in_tiles, out_blocks, hidden_tiles, _ = table[kinds[job]]
        groups = -(-counts[job] // s.group_tokens)
        if kinds[job] == ROUTER:
            num_logits += counts[job]
            tiles = hidden_blocks * in_tiles
            accesses = hidden_blocks * HALVES
        else:
            num_out += counts[job] * s.words
            tiles = hidden_blocks * s.matrices * in_tiles + out_blocks * hidden_tiles
            accesses = hidden_blocks * (s.matrices + 1) + out_blocks
        num_columns += groups * tiles * s.mac_steps + counts[job] * (accesses + s.token_words)
        max_hidden = max(max_hidden, hidden_blocks)
    i = np.empty(len(arrivals), dtype=np.int64)
    o = np.empty(num_out, dtype=np.int64)
    offered = np.empty(num_out, dtype=np.int64)
    logits = np.empty(num_logits, dtype=np.int64)
    retired = np.full(jobs, NEVER, dtype=np.int64)
    rows = np.empty((1024, 3), dtype=np.int64)
    columns = np.empty((num_columns, 3), dtype=np.int64)
    row_count = np.int64(0)
    column_count = np.int64(0)
    fires = np.int64(0)
    never = NEVER

    # Jobs that are complete inside.
    complete = np.empty(jobs, dtype=np.int64)
    completed = 0
    entry = np.int64(0)
    last_i = np.int64(-1)

    # Walks: job, group, cycle from which it is shown (within a job) or in which the last one ended.
    v_job, v_group, v_visit = 0, 0, 0
    v_from, v_end, v_between = np.int64(0), np.int64(-1), True
    m_job, m_group = 0, 0
    m_from, m_end, m_between = np.int64(0), np.int64(-1), True
    l_job, l_group = 0, 0
    l_from, l_end, l_between = np.int64(0), np.int64(-1), True
    d_job, d_group = 0, 0
    d_from, d_end, d_between = np.int64(0), np.int64(-1), True

    # Sides.
    assigned = np.zeros(s.sides, dtype=np.bool_)
    opened = np.zeros(s.sides, dtype=np.bool_)
    usable = np.zeros(s.sides, dtype=np.bool_)
    stale = np.zeros(s.sides, dtype=np.bool_)
    assigned_at = np.full(s.sides, -1, dtype=np.int64)
    visit_done = np.full(s.sides, -1, dtype=np.int64)
    rcd_ok = np.zeros(s.sides, dtype=np.int64)
    ras_ok = np.zeros(s.sides, dtype=np.int64)
    rc_ok = np.zeros(s.sides, dtype=np.int64)
    rp_ok = np.zeros(s.sides, dtype=np.int64)
    rtp_ok = np.zeros(s.sides, dtype=np.int64)
    act_ok = np.int64(0)
    row_free = np.int64(0)
    refresh = np.int64(first_refresh) if s.refi else never
    refresh_end = np.int64(0)
    closed_all = False

    # Columns.
    column_free = np.int64(0)
    mac_ok, write_ok, read_ok = np.int64(0), np.int64(0), np.int64(0)

    # MACs.
    m_out, m_block, m_matrix, m_tile = 0, 0, 0, 0
    m_step, m_column, m_side = 0, 0, 0
    started = 0
    lanes_latency = s.storage_cycles + 2

    # Input loads.
    l_word, l_token = 0, 0
    room_from = np.int64(0)
    word_at = np.full(s.token_words, never, dtype=np.int64)

    # Reads: blocks that can be read (from a cycle on), results under way.
    block_from = np.full(4, never, dtype=np.int64)
    block_read = np.full(4, np.int64(-1), dtype=np.int64)
    d_out, d_block, d_token, d_matrix = 0, 0, 0, 0
    blocks_read = 0
    hidden_at = np.full(max_hidden, never, dtype=np.int64)
    hidden_reads, hidden_writes, output_reads = 0, 0, 0
    queue_from = np.zeros(2 * DEPTH, dtype=np.int64)
    queue_last = np.zeros(2 * DEPTH, dtype=np.int64)
    written_at = np.full(2 * DEPTH, np.int64(-1), dtype=np.int64)
    popped_at = np.full(2 * DEPTH, np.int64(-1), dtype=np.int64)
    last_pop = np.int64(-1)
    out_in, out_taken, out_taken_2 = np.int64(-1), np.int64(-1), np.int64(-1)
    out_count = np.int64(0)
    logit_count, last_logit = np.int64(0), np.int64(-1)
    w_block = 0

    while True:
        # Entries: one per cycle into a free bank.
        while completed < jobs and (completed < BANKS or retired[completed - BANKS] < never):
            free = retired[completed - BANKS] + 1 if completed >= BANKS else np.int64(0)
            for _ in range(counts[completed]):
                last_i = max(arrivals[entry], last_i + 1, free)
                i[entry] = last_i
                entry += 1
            complete[completed] = last_i
            completed += 1

        # Row bus.
        best_row, best_side = never, -1
        for turn in range(s.sides):
            side = (m_side + turn) % s.sides
            when = never
            if assigned[side] and not opened[side]:
                when = max(assigned_at[side] + 1, rp_ok[side], rc_ok[side], act_ok, row_free, refresh_end)
                if refresh - when < s.act_lead:
                    when = never
            elif usable[side] and stale[side]:
                when = max(visit_done[side] + 1, ras_ok[side], rtp_ok[side], row_free)
                if refresh - when < s.pre_lead:
                    when = never
            if when < best_row:
                best_row, best_side = when, side
        refresh_event = never
        if s.refi:
            any_open = False
            for side in range(s.sides):
                any_open = any_open or opened[side]
            refresh_event = refresh - s.rp if any_open and not closed_all else refresh

        # MAC.
        mac_at = never
        if m_between:
            m_from = _walk_from(m_job, m_end, completed, complete)
        if m_from < never and assigned[m_side] and usable[m_side] and not stale[m_side]:
            when = max(m_from, mac_ok, column_free, rcd_ok[m_side])
            kind = kinds[m_job]
            if m_out:
                needed = ((m_tile + 1) * s.cols + s.units - 1) // s.units
                when = max(when, hidden_at[min(needed, table[kind, 0]) - 1] + 1)
            else:
                when = max(when, word_at[min(m_tile, s.token_words - 1)] + 1)
            if m_step == 0 and m_tile == 0 and m_matrix == 0 and started >= 2:
                read = blocks_read >= started - 1
                when = max(when, block_read[(started - 2) % 4] + 1) if read else never
            if when < never and refresh - when >= s.mac_lead:
                mac_at = when

        # Hidden write.
        hidden_write_at = never
        if hidden_writes < hidden_reads:
            at = hidden_writes % (2 * DEPTH)
            when = queue_from[at]
            if hidden_writes > 0:
                when = max(when, written_at[(hidden_writes - 1) % (2 * DEPTH)] + 1)
            when = max(when, write_ok, column_free, refresh_end)
            hidden_write_at = when if when < refresh else refresh + s.rfc

        # Read.
        read_at = never
        if d_between:
            d_from = _walk_from(d_job, d_end, completed, complete)
        if d_from < never and blocks_read < started and block_from[blocks_read % 4] < never:
            when = max(d_from, block_from[blocks_read % 4], read_ok, column_free, refresh_end)
            is_router = kinds[d_job] == ROUTER
            final = d_out or d_matrix == s.matrices - 1
            if d_out:
                if output_reads >= DEPTH:
                    when = max(when, popped_at[(output_reads - DEPTH) % (2 * DEPTH)] + 1)
            elif final and not is_router and hidden_reads >= DEPTH:
                if hidden_writes <= hidden_reads - DEPTH:
                    when = never
                else:
                    when = max(when, written_at[(hidden_reads - DEPTH) % (2 * DEPTH)] + 1)
            if when < never:
                read_at = when if when < refresh else max(when, refresh + s.rfc)

        # Input write.
        load_at = never
        if l_between:
            l_from = _walk_from(l_job, l_end, completed, complete)
        if l_from < never and room_from < never:
            when = max(l_from, room_from, write_ok, column_free, refresh_end)
            load_at = when if when < refresh else max(when, refresh + s.rfc)

        # Visit.
        visit_at = never
        if v_between:
            v_from = _walk_from(v_job, v_end, completed, complete)
        v_side = v_visit % s.sides
        if v_from < never and not assigned[v_side]:
            visit_at = max(v_from, visit_done[v_side] + 1)

        now = min(best_row, refresh_event, mac_at, hidden_write_at, read_at, load_at, visit_at)
        if d_job == jobs and now + ISSUE > max(out_taken, last_logit) + tail:
            break
        assert now < never
        if now == refresh_event:
            rows = _grown(rows, row_count + 1)
            if now < refresh:
                closed_all = True
                row_free = now + 1
                rows[row_count] = (now + ISSUE, 3, 0)
                for side in range(s.sides):
                    opened[side] = False
                    usable[side] = False
                    stale[side] = False
            else:
                closed_all = False
                rows[row_count] = (now + ISSUE, 4, 0)
                refresh_end = now + s.rfc
                refresh = now + s.refi
            row_count += 1
        elif now == best_row:
            side = best_side
            is_act = not opened[side]
            steps, gap = (s.act_steps, s.act_gap) if is_act else (s.pre_steps, 1)
            rows = _grown(rows, row_count + steps)
            for step in range(steps):
                rows[row_count] = (now + step * gap + ISSUE, 1 if is_act else 2, side)
                row_count += 1
            end = now + (steps - 1) * gap
            row_free = end + 1
            if is_act:
                opened[side] = True
                usable[side] = True
                rcd_ok[side] = end + s.rcd
                ras_ok[side] = end + s.ras
                rc_ok[side] = now + s.rc
                act_ok = end + gap
            else:
                opened[side] = False
                usable[side] = False
                stale[side] = False
                rp_ok[side] = end + s.rp
        elif now == mac_at:
            kind = kinds[m_job]
            columns[column_count] = (now + ISSUE, 1, m_side)
            column_count += 1
            column_free = now + 1
            tokens = min(s.group_tokens, counts[m_job] - m_group * s.group_tokens)
            if m_step == 0 and m_tile == 0 and m_matrix == 0:
                block_from[started % 4] = never
                started += 1
            rtp_ok[m_side] = now + s.rtp
            write_ok = max(write_ok, now + s.mac_to_write)
            read_ok = max(read_ok, now + s.mac_to_read)
            m_step += 1
            m_from, m_between = now + 1, False
            if m_step < s.mac_steps:
                mac_ok = max(mac_ok, now + s.mac_gap)
            else:
                m_step = 0
                mac_ok = max(mac_ok, now + max(s.tile_gap, tokens * s.mac_cycles))
                fires += tokens
                last_fire = now + lanes_latency + (tokens - 1) * s.mac_cycles
                m_tile += 1
                m_column += 1
                group_done = False
                if m_tile == (table[kind, 3] if m_out else table[kind, 1]):
                    m_tile = 0
                    m_matrix += 1
                    is_router = kind == ROUTER
                    if m_out or is_router or m_matrix == s.matrices:
                        m_matrix = 0
                        block_from[(started - 1) % 4] = last_fire + ARRAY_LATENCY + 1
                        m_block += 1
                        if m_block == (table[kind, 2] if m_out else table[kind, 0]):
                            m_block = 0
                            group_done = m_out == 1 or is_router
                            if not m_out:
                                # The group's inputs are not needed any more.
                                room_from = last_fire
                                word_at[:] = never
                            m_out = 0 if group_done else 1
                if m_column == s.bursts_per_row or group_done:
                    m_column = 0
                    assigned[m_side] = False
                    stale[m_side] = True
                    visit_done[m_side] = now
                    m_side = 0 if group_done else (m_side + 1) % s.sides
                if group_done:
                    m_group += 1
                    if m_group * s.group_tokens >= counts[m_job]:
                        m_job, m_group = m_job + 1, 0
                        m_end, m_between = now, True
        elif now == hidden_write_at:
            columns[column_count] = (now + ISSUE, 2, 0)
            column_count += 1
            column_free = now + 1
            mac_ok = max(mac_ok, now + s.write_to_mac)
            write_ok = max(write_ok, now + s.write_to_write)
            read_ok = max(read_ok, now + s.write_to_read)
            at = hidden_writes % (2 * DEPTH)
            written_at[at] = now
            hidden_writes += 1
            if queue_last[at]:
                hidden_at[w_block] = now
                w_block += 1
        elif now == read_at:
            columns[column_count] = (now + ISSUE, 3, 0)
            column_count += 1
            column_free = now + 1
            mac_ok = max(mac_ok, now + s.read_to_mac)
            write_ok = max(write_ok, now + s.read_to_write)
            read_ok = max(read_ok, now + s.read_to_read)
            kind = kinds[d_job]
            tokens = min(s.group_tokens, counts[d_job] - d_group * s.group_tokens)
            d_from, d_between = now + 1, False
            last_block = d_block == (table[kind, 2] if d_out else table[kind, 0]) - 1
            is_router = kind == ROUTER
            if not d_out and d_matrix < (HALVES if is_router else s.matrices) - 1:
                d_matrix += 1
            else:
                d_matrix = 0
                if d_out:
                    head = max(now + READ_LATENCY + QUEUE_LATENCY, last_pop + 1)
                    parts = s.words - d_block * s.parts if last_block else s.parts
                    out_in = max(out_in, head - 1)
                    for _ in range(parts):
                        out_in = max(out_in + 1, out_taken_2 + 1)
                        out_taken_2 = out_taken
                        offered[out_count] = max(out_in + 1, out_taken + 1)
                        out_taken = taken(offered[out_count], ready)
                        o[out_count] = out_taken
                        out_count += 1
                    last_pop = out_in
                    popped_at[output_reads % (2 * DEPTH)] = last_pop
                    output_reads += 1
                elif is_router:
                    if last_block:
                        last_logit = now + READ_LATENCY
                        logits[logit_count] = last_logit
                        logit_count += 1
                else:
                    at = hidden_reads % (2 * DEPTH)
                    queue_from[at] = now + READ_LATENCY + s.parts - 1 + s.activation + QUEUE_LATENCY
                    queue_last[at] = d_token == tokens - 1
                    hidden_reads += 1
                d_token += 1
                if d_token == tokens:
                    d_token = 0
                    block_read[blocks_read % 4] = now
                    blocks_read += 1
                    d_block += 1
                    if last_block:
                        d_block = 0
                        if d_out or is_router:
                            hidden_at[:] = never
                            w_block = 0
                            d_group += 1
                            if d_group * s.group_tokens >= counts[d_job]:
                                retired[d_job] = now
                                d_job, d_group = d_job + 1, 0
                                d_end, d_between = now, True
                        d_out = 0 if d_out or is_router else 1
        elif now == load_at:
            columns[column_count] = (now + ISSUE, 2, 0)
            column_count += 1
            column_free = now + 1
            mac_ok = max(mac_ok, now + s.write_to_mac)
            write_ok = max(write_ok, now + s.write_to_write)
            read_ok = max(read_ok, now + s.write_to_read)
            tokens = min(s.group_tokens, counts[l_job] - l_group * s.group_tokens)
            l_from, l_between = now + 1, False
            l_token += 1
            if l_token == tokens:
                l_token = 0
                word_at[l_word] = now
                l_word += 1
                if l_word == s.token_words:
                    l_word = 0
                    room_from = never
                    l_group += 1
                    if l_group * s.group_tokens >= counts[l_job]:
                        l_job, l_group = l_job + 1, 0
                        l_end, l_between = now, True
        else:
            assigned[v_side] = True
            assigned_at[v_side] = now
            v_from, v_between = now + 1, False
            v_visit += 1
            if v_visit == table[kinds[v_job], 4]:
                v_visit = 0
                v_group += 1
                if v_group * s.group_tokens >= counts[v_job]:
                    v_job, v_group = v_job + 1, 0
                    v_end, v_between = now, True
    commands = rows[:row_count].copy(), columns[:column_count].copy()
    return i, o, offered, logits, retired, commands[0], commands[1], int(fires)
