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

from golden.formats import F32, Bits16, accumulate, bf16_encode, burst_sum
from golden.functions import bf16_from_integer, fields
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


IDENTITY_FRACTION_BITS = 32
IDENTITY_MOST_SHIFT = 44
"""Weights of identity experts are added with so many fraction bits. Of a weight of 2**20 and more the
exponent counts as that of 2**19; :data:`spec.hardware.IDENTITY_SCALES` leaves none so large."""


def identity_sums(weights: Bits16, identity: NDArray[np.bool_]) -> IntArray:
    """Return the sum of each token's weights of identity experts, (tokens,) with 32 fraction bits.

    Each weight is cut off below the last place, in magnitude.

    Parameters
    ----------
    weights, identity : (tokens, k) bf16 patterns, and whether they are those of identity experts.
    """
    sign, exponent, significand = fields(weights)
    # A significand of 8 bits counts in units of 2**(exponent - 134).
    shift = np.minimum(exponent - 134 + IDENTITY_FRACTION_BITS, IDENTITY_MOST_SHIFT)
    magnitude = np.where(
        shift < 0, significand >> np.minimum(np.maximum(-shift, 0), 8), significand << np.maximum(shift, 0)
    )
    sums: IntArray = np.where(identity, np.where(sign == 1, -magnitude, magnitude), 0).sum(axis=1)
    return sums


def identity_weights(sums: IntArray) -> Bits16:
    """Return sums of :func:`identity_sums` rounded to bf16."""
    power = np.full_like(sums, -IDENTITY_FRACTION_BITS)
    return bf16_from_integer((sums < 0).astype(np.int64), np.abs(sums), power)


def identity_start(weights: Bits16, tokens: Bits16) -> F32:
    """Return what each token's sum starts from, (tokens, d_model) float32: its weight times the token.

    The exact product; +0 where the weight is 0, whatever the token.
    """
    exact = accumulate(np.zeros((), dtype=np.float32), burst_sum(tokens[..., None], weights[:, None, None]))
    return np.where((weights[:, None] & 0x7F80) == 0, np.float32(0), exact).astype(np.float32)


def combine_bf16(
    contributions: Iterable[Contribution], num_tokens: int, d_model: int, start: F32 | None = None
) -> Bits16:
    """Return each token's weighted sum, (num_tokens, d_model) bf16 patterns.

    ``acc' = RNE(acc + weight * result)`` with an exact product and one rounding to fp32, from ``start``
    (num_tokens, d_model) or +0, in the order of ``contributions``; the final sum is rounded to bf16.

    Raises
    ------
    spec.errors.InputError : shapes that do not fit each other, a token named twice or beyond the last.
    """
    acc = np.zeros((num_tokens, d_model), dtype=np.float32) if start is None else start.copy()
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
