"""Dispatch: which assignments of tokens to experts are kept where an expert's capacity is limited."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spec.errors import require


def dispatch(ids: NDArray[np.int64], capacity: int, sequence_lengths: Sequence[int]) -> NDArray[np.bool_]:
    """Return which assignments are kept.

    An expert takes at most ``capacity`` assignments of each sequence, in token order and within a
    token in slot order; later ones are dropped (arXiv 2101.03961, section 2.2, in the order of the
    Hugging Face implementation).

    Parameters
    ----------
    ids : (T, k) int64, the experts of each token; T tokens of all sequences, one after the other.
    capacity : assignments per expert and sequence; 0 = no limit.
    sequence_lengths : tokens in each sequence; their sum is T.

    Returns
    -------
    (T, k) bool.
    """
    num_tokens, k = ids.shape
    total = sum(sequence_lengths)
    require(total == num_tokens, f"must add up to {num_tokens} tokens, not {total}", key="sequence_lengths")
    if capacity == 0:
        return np.ones(ids.shape, np.bool_)
    return (queue_positions(ids, sequence_lengths) < capacity).reshape(num_tokens, k)


def queue_positions(ids: NDArray[np.int64], sequence_lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return ``(T, k)`` int64: how many earlier assignments of its sequence went to the same expert."""
    sequence = np.repeat(np.arange(len(sequence_lengths)), sequence_lengths)
    queue = (sequence[:, None] * (ids.max(initial=0) + 1) + ids).ravel()
    order = np.argsort(queue, kind="stable")
    in_order = queue[order]
    starts = np.searchsorted(in_order, in_order)
    positions = np.empty(queue.size, np.int64)
    positions[order] = np.arange(queue.size) - starts
    return positions.reshape(ids.shape)
