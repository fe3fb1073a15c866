"""Dispatch: which assignments of tokens to experts are kept where an expert's capacity is limited."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spec.errors import require
from spec.model import CapacityRule

IntArray = NDArray[np.int64]


def dispatch(
    ids: IntArray,
    capacity: int | Sequence[int],
    sequence_lengths: Sequence[int],
    *,
    rule: CapacityRule = CapacityRule.SWITCH,
    weights: NDArray[np.generic] | None = None,
    window_tokens: int | None = None,
) -> NDArray[np.bool_]:
    """Return which assignments are kept.

    An expert takes the first ``capacity`` assignments of each sequence, in the order of the rule
    (:class:`spec.model.CapacityRule`); later ones are dropped.

    Parameters
    ----------
    ids : (T, k) int64, the experts of each token, first choice first; T tokens of all sequences, one
        after the other.
    capacity : assignments per expert and sequence, one number or one for each sequence; 0 = no limit,
        negative = none.
    sequence_lengths : tokens in each sequence; their sum is T.
    rule, weights, window_tokens : as in :func:`queue_positions`.

    Returns
    -------
    (T, k) bool.
    """
    capacities = np.broadcast_to(np.asarray(capacity, np.int64), len(sequence_lengths))
    if not capacities.any():
        _check_lengths(ids, sequence_lengths)
        return np.ones(ids.shape, np.bool_)
    positions = queue_positions(
        ids, sequence_lengths, rule=rule, weights=weights, window_tokens=window_tokens
    )
    per_token = np.repeat(capacities, sequence_lengths)[:, None]
    kept: NDArray[np.bool_] = (positions < per_token) | (per_token == 0)
    return kept


def queue_positions(
    ids: IntArray,
    sequence_lengths: Sequence[int],
    *,
    rule: CapacityRule = CapacityRule.SWITCH,
    weights: NDArray[np.generic] | None = None,
    window_tokens: int | None = None,
) -> IntArray:
    """Return ``(T, k)`` int64: how many assignments to the same expert come before, in its sequence.

    Parameters
    ----------
    rule : the order. Equal priorities keep the order of the tokens.
    weights : (T, k), for ``batch_priority``: a token's priority is its largest weight. Anything that is
        ordered as the weights are will do, patterns of non-negative bf16 numbers among it. For
        ``score_priority`` the scores instead.
    window_tokens : hardware decides so many tokens at a time: what comes in an earlier window of the
        same sequence comes first under every rule. None: a sequence is one window.
    """
    num_tokens, k = ids.shape
    _check_lengths(ids, sequence_lengths)
    lengths = np.asarray(sequence_lengths, np.int64)
    token = np.arange(num_tokens)
    sequence = np.repeat(np.arange(lengths.size), lengths)
    in_sequence = token - np.repeat(np.cumsum(lengths) - lengths, lengths)
    window = in_sequence // (num_tokens + 1 if window_tokens is None else window_tokens)
    priority = np.zeros(num_tokens, np.int64)
    if rule in (CapacityRule.BATCH_PRIORITY, CapacityRule.SCORE_PRIORITY):
        require(
            weights is not None and weights.shape == ids.shape,
            f"must have the shape of ids={ids.shape} for the rule {rule.value}",
            key="weights",
        )
        assert weights is not None
        priority = -np.unique(weights.max(axis=1), return_inverse=True)[1].astype(np.int64)
    choice = np.broadcast_to(np.arange(k), ids.shape)
    if rule is CapacityRule.SWITCH:
        choice = np.zeros_like(choice)

    def flat(per_token: IntArray) -> IntArray:
        return np.repeat(per_token, k)

    queue = flat(sequence) * (ids.max(initial=0) + 1) + ids.ravel()
    # Stable: what is equal so far stays in the order of tokens, and of a token's choices.
    order = np.lexsort((flat(token), flat(priority), choice.ravel(), flat(window), queue))
    in_order = queue[order]
    positions = np.empty(queue.size, np.int64)
    positions[order] = np.arange(queue.size) - np.searchsorted(in_order, in_order)
    return positions.reshape(ids.shape)


def _check_lengths(ids: IntArray, sequence_lengths: Sequence[int]) -> None:
    total = sum(sequence_lengths)
    require(total == len(ids), f"must add up to {len(ids)} tokens, not {total}", key="sequence_lengths")
