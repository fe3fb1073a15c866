"""Weighted sums of expert results, as the combiner computes them: fp32 accumulators, bf16 results.

A token's contributions are added in the order in which they are given. Behind one expert unit
(:mod:`rtl.combine`) that is the order of service; behind several units (:mod:`rtl.combine_ordered`) it is
the order of ranks, the shared expert, then ascending expert index, whatever time and placement did. In
queue order both are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.formats import Bits16, accumulate, bf16_encode, burst_sum
from spec.errors import require

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Contribution:
    """One expert's results for some tokens, each of them once.

    Attributes
    ----------
    tokens : (n,) int64, distinct.
    weights : (n,) bf16 patterns.
    results : (n, d_model) bf16 patterns.
    """

    tokens: IntArray
    weights: Bits16
    results: Bits16


def combine_bf16(contributions: Iterable[Contribution], num_tokens: int, d_model: int) -> Bits16:
    """Return each token's weighted sum, (num_tokens, d_model) bf16 patterns.

    ``acc' = RNE(acc + weight * result)`` with an exact product and one rounding to fp32, from +0, in
    the order of ``contributions``; the final sum is rounded to bf16. A token without any is +0.

    Raises
    ------
    spec.errors.InputError : shapes that do not fit each other, a token named twice or beyond the last.
    """
    acc = np.zeros((num_tokens, d_model), dtype=np.float32)
    for contribution in contributions:
        tokens = contribution.tokens
        _check(contribution, num_tokens, d_model)
        product = burst_sum(contribution.results[..., None], contribution.weights[:, None, None])
        acc[tokens] = accumulate(acc[tokens], product)
    return bf16_encode(acc)


def _check(contribution: Contribution, num_tokens: int, d_model: int) -> None:
    tokens, weights, results = contribution.tokens, contribution.weights, contribution.results
    require(
        weights.shape == tokens.shape,
        f"must have one weight for each of {tokens.size} tokens, not shape {weights.shape}",
        key="weights",
    )
    require(
        results.shape == (tokens.size, d_model),
        f"must have shape {(tokens.size, d_model)}, not {results.shape}",
        key="results",
    )
    inside = bool(np.all((tokens >= 0) & (tokens < num_tokens)))
    require(
        inside and np.unique(tokens).size == tokens.size,
        f"must be distinct and in 0..num_tokens-1={num_tokens - 1}, not {tokens.tolist()}",
        key="tokens",
    )
