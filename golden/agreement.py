"""How far the gate in the hardware's numbers can be from the gate in float: its choices and its weights.

Logits differ by what the router's product loses, scores by that and the error of their tables. Where a
token's selection scores are farther apart than twice the error, both choose the same; so a token for which
they do not is a *near tie*, and how near is bounded here (:func:`choice_bound`). Nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.error_bound import (
    LOGIT_STEP,
    SCORE_STEP,
    SIGMOID_ERROR,
    SQRT_SOFTPLUS_ERROR,
    WEIGHT_ERROR,
    Bounded,
    dot,
    weight_error,
)
from golden.gating import group_mask, score
from golden.gating_bf16 import select_bits
from spec.gate_plan import GatePlan
from spec.model import GatingSpec, GroupScore, Score

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreError:
    """How a score of the hardware differs: by ``slope`` times what the logits do, and by its tables.

    Attributes
    ----------
    slope : largest change of a score per change of the logits, none of which changes more.
    absolute, relative : what the tables add at the hardware's own logits (``docs/numbers.md``), at most.
    """

    slope: float
    absolute: float = 0.0
    relative: float = 0.0


SCORE_ERRORS = {
    Score.NONE: ScoreError(1.0),
    # p (1 - p), once for its own logit and once for all the others; p has the errors of a weight.
    Score.SOFTMAX: ScoreError(0.5, relative=WEIGHT_ERROR),
    Score.SIGMOID: ScoreError(0.25, absolute=5.9e-6),
    # 0.3191 at a logit of 0.92.
    Score.SQRT_SOFTPLUS: ScoreError(0.32, absolute=SQRT_SOFTPLUS_ERROR, relative=3.0e-6),
}
"""Scores whose errors are stated; one that is not is excused none."""


def selection_keys(gating: GatingSpec, logits: F64, selection_bias: NDArray[np.floating] | None) -> F64:
    """Return ``(T, E)`` float numbers of which the hardware compares its own: logits, or biased scores."""
    if GatePlan(gating).ranked_by_logit:
        return logits
    return score(gating.score, logits) + (0.0 if selection_bias is None else selection_bias)


def choice_margins(gating: GatingSpec, keys: F64) -> tuple[F64, F64]:
    """Return how far each token is from other experts, and from other groups; infinite where there are none.

    The first is the distance of the k-th and the (k + 1)-th key of the groups that take part, the second
    that of the last group that does and the first that does not.
    """
    groups = np.full(len(keys), np.inf)
    if gating.grouped:
        ranked = np.sort(keys.reshape(len(keys), gating.num_groups, -1), axis=2)
        best = ranked[..., -1] + (ranked[..., -2] if gating.group_score is GroupScore.TOP2_SUM else 0.0)
        groups = _gap(best, gating.topk_groups)
        # Of logits none is as low as a score of 0.
        zero = GatePlan(gating).masks_to_zero
        keys = np.where(group_mask(gating, keys), keys, 0.0 if zero else -np.inf)
    return _gap(keys, gating.top_k), groups


def _gap(values: F64, count: int) -> F64:
    """Return the distance of the ``count``-th and the next largest of each row."""
    if count == values.shape[1]:
        return np.full(len(values), np.inf)
    ranked = np.sort(values, axis=1)
    # Equal infinities are no distance apart.
    with np.errstate(invalid="ignore"):
        gap = ranked[:, -count] - ranked[:, -count - 1]
    return np.where(np.isnan(gap), 0.0, gap)


def logit_bound(
    router: NDArray[np.floating],
    tokens: NDArray[np.floating],
    cols: int,
    logit_bias: NDArray[np.floating] | None = None,
    *,
    num_ones: int = 1,
) -> F64:
    """Return ``(T,)`` bounds on the error of each token's logits, the same for all experts.

    Parameters
    ----------
    router, tokens : (E, H) and (T, H) bf16 values, multiplied by :func:`golden.formats.dot`.
    cols : products per burst.
    logit_bias : (E,), one product more, or ``num_ones``.
    """
    magnitudes = np.abs(tokens.astype(np.float64))
    largest = np.abs(router.astype(np.float64)).max(axis=0, keepdims=True)
    bias = None if logit_bias is None else np.abs(logit_bias).max(keepdims=True)
    exact = Bounded(magnitudes, np.zeros_like(magnitudes))
    bound: F64 = dot(exact, largest, cols, bias, num_ones=num_ones).error[:, 0] + LOGIT_STEP
    return bound


def choice_bound(gating: GatingSpec, logits: F64, logit_error: F64) -> tuple[F64, F64]:
    """Return ``(T,)`` bounds on the margins of a token that chooses otherwise: of experts, and of groups.

    Parameters
    ----------
    logits, logit_error : (T, E) in float, and (T,) how far the hardware's can be from them.
    """
    if GatePlan(gating).ranked_by_logit:
        of_key = logit_error
    else:
        error = SCORE_ERRORS.get(gating.score, ScoreError(0.0))
        largest = np.abs(score(gating.score, logits)).max(axis=1)
        of_key = error.slope * logit_error + error.absolute + error.relative * largest
        # A score is truncated to a selection score's bits, a bias is rounded to them.
        of_key = of_key + 1.5 * 2.0 ** -select_bits(gating) + SCORE_STEP
    added = 2 if gating.group_score is GroupScore.TOP2_SUM else 1
    return 2 * of_key, 2 * added * of_key


def weight_bound(
    gating: GatingSpec, logits: F64, ids: NDArray[np.int64], weights: F64, logit_error: F64
) -> F64:
    """Return ``(T, k)`` bounds on the relative error of weights, where both chose the same experts.

    Parameters are those of :func:`golden.error_bound.weight_error`.
    """
    error = Bounded(weights, weight_error(gating, logits, ids, weights, logit_error)).rounded().error
    with np.errstate(over="ignore"):
        bound: F64 = error / np.maximum(np.abs(weights), np.finfo(np.float64).tiny)
    return bound


def shared_bound(value: F64, logit_error: F64) -> F64:
    """Return ``(T,)`` bounds on the relative error of a shared expert's weights, sigmoids of its gate."""
    off = value * (np.expm1(logit_error) + SIGMOID_ERROR * np.exp(logit_error)) + SCORE_STEP
    bound: F64 = Bounded(value, off).rounded().error / value
    return bound
