"""What the dispatcher emits: which assignments are kept, and the jobs: each expert's entries of a window.

Which unit serves a job, and when, is a matter of time: :mod:`sim.dispatch` says so. What a job consists
of is not. Pure NumPy, no loop over tokens or experts; the hardware is :mod:`rtl.dispatch`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from golden.combine_bf16 import identity_sums
from golden.dispatch import dispatch
from golden.formats import BF16_ONE, Bits16
from golden.gating_bf16 import kept_weights
from spec.design import Policy
from spec.errors import require
from spec.model import CapacityRule, GatingSpec

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """An expert's whole queue in one window: what an expert engine is given to do at a time."""

    window: int
    expert: int
    tokens: IntArray
    slots: IntArray
    ranks: IntArray
    weights: NDArray[np.uint16]


@dataclass(frozen=True)
class DispatchStreams:
    """The beats of the dispatcher's streams for one run.

    Attributes
    ----------
    top_k, window_tokens : as given.
    decides : whether it is decided window by window what is kept.
    kept_gating : as given.
    ids : (tokens, top_k) int64, expert of each assignment, as given.
    kept : (tokens, top_k) bool, not dropped by the capacity.
    last_token : (tokens,) bool, the token ends its batch; also a field of ``o_expect``.
    window : (tokens,) int64, number of the token's window.
    expect_slot, expect_count : (tokens,) int64, the other fields of ``o_expect``.
    entry_window, entry_token, entry_expert, entry_slot : (entries,) int64, job after job, in the order
        in which one unit serves them; ``entry_expert`` is ``num_experts`` for the shared expert.
    entry_rank : (entries,) int64, place of the expert among those that serve the token: the shared one,
        then ascending index.
    entry_weight : (entries,) uint16, bf16 bits.
    entry_last : (entries,) bool, last entry of its job.
    identity_sum : (tokens,) int64, sum of the token's weights of identity experts, as ``o_expect`` has it
        (:func:`golden.combine_bf16.identity_sums`); these are no entries.
    """

    top_k: int
    window_tokens: int
    decides: bool
    kept_gating: GatingSpec | None
    ids: IntArray
    kept: NDArray[np.bool_]
    last_token: NDArray[np.bool_]
    window: IntArray
    expect_slot: IntArray
    expect_count: IntArray
    entry_window: IntArray
    entry_token: IntArray
    entry_expert: IntArray
    entry_slot: IntArray
    entry_rank: IntArray
    entry_weight: NDArray[np.uint16]
    entry_last: NDArray[np.bool_]
    identity_sum: IntArray

    @property
    def dropped(self) -> int:
        """Number of assignments dropped."""
        return int(self.kept.size - np.count_nonzero(self.kept))

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return int(self.window[-1]) + 1 if self.window.size else 0

    @property
    def job_bounds(self) -> IntArray:
        """(jobs + 1,) first entry of each job, and the number of entries."""
        return np.concatenate([[0], np.flatnonzero(self.entry_last) + 1]).astype(np.int64)

    def jobs(self) -> list[Job]:
        """Return the jobs, in the order in which one unit serves them."""
        bounds = self.job_bounds.tolist()
        return [
            Job(
                window=int(self.entry_window[start]),
                expert=int(self.entry_expert[start]),
                tokens=self.entry_token[start:end],
                slots=self.entry_slot[start:end],
                ranks=self.entry_rank[start:end],
                weights=self.entry_weight[start:end],
            )
            for start, end in itertools.pairwise(bounds)
        ]


def dispatch_streams(
    ids: ArrayLike,
    weights: ArrayLike,
    *,
    num_experts: int,
    num_identity_experts: int = 0,
    window_tokens: int,
    batch_lengths: ArrayLike | None = None,
    capacity: int = 0,
    capacity_rule: CapacityRule = CapacityRule.SWITCH,
    shared: bool = False,
    shared_weights: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    kept_gating: GatingSpec | None = None,
    signed_weights: bool = False,
    policy: Policy = Policy.QUEUE_ORDER,
) -> DispatchStreams:
    """Return what the dispatcher emits for a run of tokens.

    Parameters
    ----------
    ids, weights : (tokens, top_k) expert of each assignment and its bf16 bits, in order of arrival.
    num_experts, num_identity_experts, window_tokens, shared : as in the dispatcher's configuration.
    batch_lengths : (batches,) tokens of each batch, summing to the tokens; default one batch.
    capacity : most assignments that an expert takes of a batch; 0: no limit, negative: none at all.
    capacity_rule : in which order they claim its places, window by window.
    shared_weights : (tokens,) bf16 bits, weights of the shared expert; 1 by default.
    scores : (tokens, top_k) int64 of :func:`golden.gating_bf16.select`, where ``score_priority`` ranks tokens
        by them, or weights are made of them.
    kept_gating : the gating where weights are not those given, but scores over the sum of the kept ones.
    signed_weights : weights may be negative.
    policy : order of the jobs of a window; the shared expert's is the first in any case.

    Raises
    ------
    spec.errors.InputError : shapes or values that do not fit each other.
    """
    experts = np.asarray(ids, dtype=np.int64)
    weight_bits = np.asarray(weights, dtype=np.uint16)
    require(experts.ndim == 2, f"must have shape (tokens, top_k), not {experts.shape}", key="ids")
    require(
        weight_bits.shape == experts.shape,
        f"must have the shape of ids={experts.shape}, not {weight_bits.shape}",
        key="weights",
    )
    by_score = capacity_rule is CapacityRule.SCORE_PRIORITY and capacity >= 0
    of_tokens = None if scores is None else np.asarray(scores, dtype=np.int64)
    require(
        of_tokens is None or of_tokens.shape == experts.shape,
        f"must have the shape of ids={experts.shape}, not {None if of_tokens is None else of_tokens.shape}",
        key="scores",
    )
    require(
        of_tokens is not None or not (by_score or kept_gating),
        "must be given where tokens are ranked or weights are normalised by them",
        key="scores",
    )
    num_tokens, top_k = experts.shape
    lengths = np.asarray([num_tokens] if batch_lengths is None else batch_lengths, dtype=np.int64)
    lengths = lengths[lengths > 0] if batch_lengths is None else lengths
    _check(experts, lengths, num_experts + num_identity_experts)

    kept = dispatch(
        experts,
        capacity,
        lengths.tolist(),
        rule=capacity_rule,
        weights=of_tokens if by_score else weight_order(weight_bits) if signed_weights else weight_bits,
        window_tokens=window_tokens,
    )
    if kept_gating is not None:
        assert of_tokens is not None
        weight_bits = kept_weights(kept_gating, of_tokens, kept)
    window, last_token = _windows(lengths, window_tokens)
    slot = np.arange(num_tokens, dtype=np.int64) % (2 * window_tokens)

    # Every entry in order of arrival, the shared expert's first; then a stable sort into queues.
    identity = kept & (experts >= num_experts)
    served = kept & ~identity
    token = np.repeat(np.arange(num_tokens, dtype=np.int64), top_k)[served.ravel()]
    expert = experts[served]
    weight = weight_bits[served]
    index = expert  # The shared expert comes before all others.
    if shared:
        everyone = np.arange(num_tokens, dtype=np.int64)
        token = np.concatenate([everyone, token])
        expert = np.concatenate([np.full(num_tokens, num_experts), expert])
        ones = np.full(num_tokens, BF16_ONE, dtype=np.uint16)
        own = ones if shared_weights is None else np.asarray(shared_weights, dtype=np.uint16)
        weight = np.concatenate([own, weight])
        index = np.concatenate([np.full(num_tokens, -1), index])
    rank = _ranks(token, index)
    preference = np.zeros_like(token)
    if policy is Policy.LONGEST_QUEUE:
        preference = np.where(index < 0, -experts.size - 1, -_queue_lengths(window[token], index))
    order = np.lexsort((index, preference, window[token]))
    token, expert, weight, rank = token[order], expert[order], weight[order], rank[order]
    queue = window[token] * (num_experts + 1) + expert
    return DispatchStreams(
        top_k=top_k,
        window_tokens=window_tokens,
        decides=capacity >= 0 and (capacity_rule is not CapacityRule.SWITCH or kept_gating is not None),
        kept_gating=kept_gating,
        ids=experts,
        kept=kept,
        last_token=last_token,
        window=window,
        expect_slot=slot,
        expect_count=np.count_nonzero(served, axis=1).astype(np.int64) + int(shared),
        entry_window=window[token],
        entry_token=token,
        entry_expert=expert,
        entry_slot=slot[token],
        entry_rank=rank,
        entry_weight=weight,
        entry_last=np.append(queue[1:] != queue[:-1], np.ones(min(1, queue.size), dtype=np.bool_)),
        identity_sum=identity_sums(weight_bits, identity),
    )


def weight_order(weights: Bits16) -> Bits16:
    """Return unsigned patterns that are ordered as bf16 numbers of both signs are."""
    negative = weights >> 15 == 1
    ordered: Bits16 = np.where(negative, ~weights, weights | np.uint16(0x8000))
    return ordered


def _ranks(token: IntArray, index: IntArray) -> IntArray:
    """Return how many entries of the same token have a lower index, or the same and come before."""
    order = np.lexsort((index, token))
    ordered = token[order]
    ranks = np.empty_like(token)
    ranks[order] = np.arange(token.size) - np.searchsorted(ordered, ordered)
    return ranks


def _queue_lengths(window: IntArray, index: IntArray) -> IntArray:
    """Return for each entry how many have its window and its index."""
    pairs = np.stack([window, index], axis=1)
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    lengths: IntArray = counts.astype(np.int64)[inverse.ravel()]
    return lengths


def _check(experts: IntArray, lengths: IntArray, num_experts: int) -> None:
    num_tokens = experts.shape[0]
    require(
        bool(np.all((experts >= 0) & (experts < num_experts))),
        f"must be in 0..num_experts-1={num_experts - 1}, not {_outside(experts, num_experts)}",
        key="ids",
    )
    require(
        bool(np.all(lengths > 0)) and int(lengths.sum()) == num_tokens,
        f"must be positive and sum to the {num_tokens} tokens, not {lengths.tolist()}",
        key="batch_lengths",
    )


def _outside(values: IntArray, limit: int) -> int | None:
    bad = values[(values < 0) | (values >= limit)]
    return int(bad[0]) if bad.size else None


def _windows(lengths: IntArray, window_tokens: int) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return each token's window number and whether it ends its batch."""
    ends = np.cumsum(lengths)
    per_batch = -(-lengths // window_tokens)
    first_window = np.cumsum(per_batch) - per_batch
    in_batch = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    window = np.repeat(first_window, lengths) + in_batch // window_tokens
    last_token = np.zeros(int(lengths.sum()), dtype=np.bool_)
    last_token[ends - 1] = True
    return window.astype(np.int64), last_token
