"""Combine: the weighted sum of a token's experts, in float and in a stated order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def combine(
    ids: NDArray[np.int64],
    weights: NDArray[np.float64],
    kept: NDArray[np.bool_],
    expert_outputs: NDArray[np.float64],
    shared_output: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return each token's output: the shared expert first, then its experts in ascending index.

    Parameters
    ----------
    ids : (T, k) int64.
    weights : (T, k) float64.
    kept : (T, k) bool; dropped assignments contribute nothing.
    expert_outputs : (T, k, H) float64, the output of expert ``ids[t, j]`` for token t.
    shared_output : (T, H) float64, or None.

    Returns
    -------
    (T, H) float64.
    """
    num_tokens, _, width = expert_outputs.shape
    output = np.zeros((num_tokens, width)) if shared_output is None else shared_output.copy()
    rows = np.arange(num_tokens)
    for slot in np.argsort(ids, axis=1, kind="stable").T:
        weight = np.where(kept[rows, slot], weights[rows, slot], 0.0)
        output += weight[:, None] * expert_outputs[rows, slot]
    return output


def combine_matrix(
    ids: NDArray[np.int64], weights: NDArray[np.float64], kept: NDArray[np.bool_], num_experts: int
) -> NDArray[np.float64]:
    """Return ``(T, E)`` float64: the weight of each expert in each token's output, 0 elsewhere."""
    matrix = np.zeros((len(ids), num_experts))
    # Added, not put: a hash table may name an expert twice.
    np.add.at(matrix, (np.arange(len(ids))[:, None], ids), np.where(kept, weights, 0.0))
    return matrix
