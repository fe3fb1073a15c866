"""Where a channel's time went: MACs, and what each cycle without one waited for.

Told from what the buses showed and when jobs came, so that it holds for the Verilog as for its model. A gap
between two MACs is told apart in order of time, by what had to happen before the next one could be issued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.pim import ISSUE, Column, Row
from sim.streams import Cycles
from spec.banks import BankGeometry, CommandTiming

SLOTS = ("mac", "refresh", "row", "jobs", "lanes", "results", "inputs", "other")
"""What a channel's cycles are told apart into.

* ``mac``: the least time from a MAC to the next;
* ``refresh``: a refresh, the rows closed before it and opened again behind it;
* ``row``: closing a row and opening the next;
* ``jobs``: no job is there whose MACs are still to be issued;
* ``lanes``: tokens that share a burst take longer than the next burst;
* ``results``: sums are read first, or under way to it;
* ``inputs``: register writes, of tokens or of hidden activations;
* ``other``: none of these.
"""
JOB_SEEN = 2 + ISSUE
"""Cycles from a job's last entry to its first command on a bus, at least."""


@dataclass(frozen=True, eq=False)
class ChannelTrace:
    """What a channel was given and what it did.

    Attributes
    ----------
    given : (jobs,) cycle in which each job's last entry was taken.
    tokens : (jobs,) its tokens.
    tiles : (jobs,) tiles of its expert.
    rows, columns : (commands, 3 at least) cycle on the bus, kind, side.
    """

    given: Cycles
    tokens: NDArray[np.int64]
    tiles: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        banks: BankGeometry,
        experts: NDArray[np.int64],
        last: NDArray[np.bool_],
        taken: Cycles,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> ChannelTrace:
        """Return a channel's trace from its entries: their experts, whether they end a job, when taken."""
        ends = np.flatnonzero(last)
        tiles = [banks.kind(int(expert)).num_tiles for expert in experts[ends]]
        counts = np.diff(np.concatenate([[-1], ends]))
        return cls(taken[ends], counts, np.array(tiles, dtype=np.int64), rows, columns)


def mac_slots(banks: BankGeometry, trace: ChannelTrace, start: int, end: int) -> dict[str, int]:
    """Return how many of the cycles ``start <= c < end`` went where; see :data:`SLOTS`.

    ``start`` is no later than the first MAC, ``end`` no earlier than the last one's.
    """
    pim, timing = banks.pim, CommandTiming.of(banks.pim)
    is_mac = trace.columns[:, 1] == Column.MAC
    macs, sides = trace.columns[is_mac, 0], trace.columns[is_mac, 2]
    slots = dict.fromkeys(SLOTS, 0)
    slots["mac"] = min(len(macs) * timing.mac_gap, end - start)
    gaps = _Gaps(np.concatenate([[start], macs + timing.mac_gap]), np.concatenate([macs, [end]]), slots)

    # MACs of each group of a job, and with them the job and tokens of each MAC.
    job, tokens = _macs_of_jobs(trace, pim.tokens_per_burst, timing.mac_steps)
    job, tokens = job[: len(macs)], tokens[: len(macs)]
    first = np.diff(job, prepend=-1) != 0
    seen = np.concatenate([np.where(first, trace.given[job] + JOB_SEEN, start), [start]])
    gaps.until("jobs", seen)

    # A row is ready tRCD after the last ACT of its side; nothing is tRFC after a REF.
    opened = np.full(len(macs) + 1, start)
    for side in range(banks.sides):
        acts = trace.rows[(trace.rows[:, 1] == Row.ACT) & (trace.rows[:, 2] == side), 0]
        mine = np.flatnonzero(sides == side)
        opened[mine] = _last_before(acts, macs[mine], start - timing.rcd) + timing.rcd
    refreshes = trace.rows[trace.rows[:, 1] == Row.REF, 0]
    refreshed = _last_before(refreshes, gaps.ends, start - timing.rfc) + timing.rfc
    refreshed[-1] = start
    gaps.until("refresh", np.where(refreshed > gaps.starts, np.maximum(refreshed, opened), start))
    gaps.until("row", opened)

    ends_tile = np.arange(1, len(macs) + 1) % timing.mac_steps == 0
    busy = macs + np.where(ends_tile, np.maximum(timing.tile_gap(0), tokens * pim.mac_cycles), timing.mac_gap)
    gaps.until("lanes", np.concatenate([[start], busy]))

    # Register accesses since the last MAC: those that came at once after it may hold the bus for longer.
    kinds = trace.columns[:, 1]
    reads, writes = (trace.columns[kinds == kind, 0] for kind in (Column.READ, Column.WRITE))
    last_read = _last_before(reads, gaps.ends, start - 1)
    last_write = _last_before(writes, gaps.ends, start - 1)
    before = np.concatenate([[start - 1], macs])
    reading = last_read > before
    # With no write behind the last read, whatever follows it waited for that, too.
    gaps.until("results", np.where(reading, np.where(last_write > last_read, last_read + 1, end), start))
    gaps.until("inputs", np.where(last_write > before, end, start), but_last=True)
    # Behind the last MAC and its results there is nothing to do.
    gaps.until("jobs", np.concatenate([np.full(len(macs), start), [end]]))
    gaps.until("other", np.full(len(macs) + 1, end))
    return slots


def total(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sum of several channels' slots."""
    return {name: sum(part[name] for part in parts) for name in SLOTS}


class _Gaps:
    """Cycles without a MAC, of which ever more is told; ``starts`` move towards ``ends``."""

    def __init__(self, starts: Cycles, ends: Cycles, slots: dict[str, int]) -> None:
        self.starts, self.ends, self.slots = np.minimum(starts, ends), ends, slots

    def until(self, name: str, cycles: Cycles, *, but_last: bool = False) -> None:
        """Count what is left of each gap before a cycle of its own under a name."""
        upto = np.clip(cycles, self.starts, self.ends)
        if but_last:
            upto[-1] = self.starts[-1]
        self.slots[name] += int((upto - self.starts).sum())
        self.starts = upto


def _macs_of_jobs(trace: ChannelTrace, group: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the job and the group's tokens of each MAC command that the jobs need, in order."""
    groups = -(-trace.tokens // group)
    job_of_group = np.repeat(np.arange(len(groups)), groups)
    number = np.arange(len(job_of_group)) - (np.cumsum(groups) - groups)[job_of_group]
    tokens = np.minimum(group, trace.tokens[job_of_group] - number * group)
    macs = trace.tiles[job_of_group] * steps
    return np.repeat(job_of_group, macs), np.repeat(tokens, macs)


def _last_before(events: Cycles, cycles: Cycles, none: int) -> Cycles:
    """Return for each cycle the last event before it, ``none`` where there is none."""
    known = np.concatenate([[none], events])
    found: Cycles = known[np.searchsorted(events, cycles)]
    return found
