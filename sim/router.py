"""Cycle models of what brings jobs with the router into a channel, derived from ``rtl/router.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.streams import ALWAYS, Cycles, Spans, taken

GROUPS = 2
"""Groups of tokens whose logits the gate has room for."""
QUEUE_LATENCY = 2
"""From a group's last token to its first entry."""


def group_ends(batch_ends: NDArray[np.bool_], group_tokens: int) -> Cycles:
    """Return the last token of each group: every ``group_tokens`` tokens of a batch, and its last.

    ``batch_ends``: (tokens,) whether the token ends its batch. A group that is not complete is none.
    """
    last = np.flatnonzero(batch_ends)
    starts = np.concatenate([[0], last + 1])
    numbers = np.arange(len(batch_ends))
    within = numbers - starts[np.searchsorted(last, numbers)]
    ends: Cycles = np.flatnonzero(batch_ends | (within % group_tokens == group_tokens - 1))
    return ends


@dataclass(frozen=True)
class RouterJobCycles:
    """Cycles of the entries: first one in which each is offered, and its transfer."""

    offered: Cycles
    o: Cycles


def router_job_cycles(ends: Cycles, stored: Cycles, freed: Cycles, ready: Spans = ALWAYS) -> RouterJobCycles:
    """Return when the jobs with the router are given.

    Parameters
    ----------
    ends : (groups,) last token of each group.
    stored : (tokens,) cycle in which each token's last beat is taken.
    freed : cycle in which the gate has read each group's logits; of the groups but the last ``GROUPS`` at
        least.
    ready : readiness of the output.
    """
    count = int(ends[-1]) + 1 if len(ends) else 0
    offered, o = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    _jobs(ends, stored, freed, ready, offered, o)
    return RouterJobCycles(offered, o)


@njit(cache=True)
def _jobs(ends: Cycles, stored: Cycles, freed: Cycles, ready: Spans, offered: Cycles, o: Cycles) -> None:
    token = 0
    given = -1
    for group in range(len(ends)):
        start = max(stored[ends[group]] + QUEUE_LATENCY, given + 1)
        if group >= GROUPS:
            start = max(start, freed[group - GROUPS] + 1)
        while token <= ends[group]:
            offered[token] = start
            given = taken(start, ready)
            o[token] = given
            start = given + 1
            token += 1


@dataclass(frozen=True)
class JobMergeCycles:
    """Transfers of both inputs; ``order``: (entries,) numbers of the entries out, the router's negative.

    Entry ``n`` of the experts' is ``n``, of the router's ``-1 - n``. ``offered``: first cycle in which
    each entry is offered at the output.
    """

    i_router: Cycles
    i_expert: Cycles
    order: Cycles
    offered: Cycles


def job_merge_cycles(
    router: Cycles,
    router_last: NDArray[np.bool_],
    expert: Cycles,
    expert_last: NDArray[np.bool_],
    ready: Spans = ALWAYS,
) -> JobMergeCycles:
    """Return how two streams of jobs become one.

    Parameters
    ----------
    router, expert : first cycle in which each entry is offered.
    router_last, expert_last : whether it ends its job.
    ready : readiness of the output.
    """
    i_router, i_expert = np.empty_like(router), np.empty_like(expert)
    order = np.empty(len(router) + len(expert), dtype=np.int64)
    offered = np.empty_like(order)
    _merge(router, router_last, expert, expert_last, ready, i_router, i_expert, order, offered)
    return JobMergeCycles(i_router, i_expert, order, offered)


@njit(cache=True)
def _merge(
    router: Cycles,
    router_last: NDArray[np.bool_],
    expert: Cycles,
    expert_last: NDArray[np.bool_],
    ready: Spans,
    i_router: Cycles,
    i_expert: Cycles,
    order: Cycles,
    offered: Cycles,
) -> None:
    r, e, out = 0, 0, 0
    free = 0  # cycle from which the output takes a new job
    while r < len(router) or e < len(expert):
        # The first that is there, the router where both are.
        first = e == len(expert) or (r < len(router) and max(router[r], free) <= max(expert[e], free))
        ended = False
        while not ended:
            offered[out] = max(router[r] if first else expert[e], free)
            cycle = taken(offered[out], ready)
            if first:
                i_router[r], order[out], ended = cycle, -1 - r, router_last[r]
                r += 1
            else:
                i_expert[e], order[out], ended = cycle, e, expert_last[e]
                e += 1
            free = cycle + 1
            out += 1
