"""Gating in float: router product, scores, groups, top-k, weights. One algebra for every family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec.model import GatingSpec, GroupScore, Normalise, Score


@dataclass(frozen=True, eq=False)
class Routing:
    """Where T tokens go, k experts each.

    Attributes
    ----------
    logits : (T, E) float64, the logit bias included.
    ids : (T, k) int64, in descending order of the selection score; of equals the lowest index first.
    weights : (T, k) float64, the weight of each chosen expert's output.
    """

    logits: NDArray[np.float64]
    ids: NDArray[np.int64]
    weights: NDArray[np.float64]


def route(
    gating: GatingSpec,
    router: NDArray[np.floating],
    tokens: NDArray[np.floating],
    logit_bias: NDArray[np.floating] | None = None,
    selection_bias: NDArray[np.floating] | None = None,
) -> Routing:
    """Choose ``top_k`` experts for each token, and their weights; computed in float64.

    Parameters
    ----------
    gating : the algebra's settings.
    router : (E, H).
    tokens : (T, H).
    logit_bias, selection_bias : (E,); given exactly where ``gating`` has them.

    Sources: softmax and top-k arXiv 2101.03961 (eq. 1, 2) and 2401.04088 (section 2.1; there softmax
    over the selected, which is a softmax over all divided by the sum of the selected); sigmoid with
    selection bias and groups arXiv 2412.19437 (section 2.1.2, eq. 12 to 16).
    """
    logits = tokens.astype(np.float64) @ router.astype(np.float64).T
    if logit_bias is not None:
        logits = logits + logit_bias
    scores = score(gating.score, logits)
    ranking = scores if selection_bias is None else scores + selection_bias
    if gating.grouped:
        ranking = np.where(group_mask(gating, ranking), ranking, -np.inf)
    ids = top_k(ranking, gating.top_k)
    weights = np.take_along_axis(scores, ids, axis=1)
    if gating.normalise is Normalise.SUM:
        total = weights.sum(axis=1, keepdims=True) + gating.epsilon
        # Sigmoids that all vanish have no shares, whether epsilon says so or not.
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return Routing(logits, ids, weights * gating.scale)


def score(kind: Score, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores of ``(T, E)`` logits, without overflow at any finite logit."""
    if kind is Score.SIGMOID:
        return sigmoid(logits)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``1 / (1 + exp(-x))`` elementwise, without overflow."""
    values: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -x))
    return values


def top_k(ranking: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the ``(T, k)`` int64 indices of each row's largest values, largest first.

    Of equal values the lowest index comes first.
    """
    order: NDArray[np.int64] = np.argsort(-ranking, axis=1, kind="stable")
    return order[:, :k]


def group_mask(gating: GatingSpec, ranking: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return ``(T, E)`` bool: whether an expert's group is among the ``topk_groups`` best.

    Of equal groups the lowest index wins.
    """
    groups = ranking.reshape(len(ranking), gating.num_groups, gating.group_size)
    if gating.group_score is GroupScore.MAX:
        group_scores = groups.max(axis=2)
    else:
        group_scores = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
    kept = np.zeros(group_scores.shape, np.bool_)
    np.put_along_axis(kept, top_k(group_scores, gating.topk_groups), True, axis=1)
    return kept.repeat(gating.group_size, axis=1)
