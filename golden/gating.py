"""Gating in float: router product, scores, groups, selection, weights. One algebra for every family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec.errors import require
from spec.gate_plan import GatePlan
from spec.model import Epsilon, GatingSpec, GroupMask, GroupScore, Normalise, Router, Score, Selection

_TOKENS_AT_A_TIME = 1024
"""Tokens whose scores are handled together: what belongs to them stays in a core's cache."""

_SHARES_AT_A_TIME = 1 << 22
"""Numbers that the attention router holds at once: experts times experts for each token."""

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Routing:
    """Where T tokens go, k experts each.

    Attributes
    ----------
    logits : (T, E) float64, as the scores are made of them: the logit bias included, normalised where
        ``logit_deviation`` says so.
    ids : (T, k) int64, in descending order of the selection score; of equals the lowest index first. With a
        hash table in its order, with prototypes one after another.
    scores : (T, k) float64, the chosen experts' scores before they are normalised and scaled.
    weights : (T, k) float64, the weight of each chosen expert.
    """

    logits: NDArray[np.float64]
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    weights: NDArray[np.float64]


def route(
    gating: GatingSpec,
    router: NDArray[np.floating],
    tokens: NDArray[np.floating],
    logit_bias: NDArray[np.floating] | None = None,
    selection_bias: NDArray[np.floating] | None = None,
    *,
    hash_table: NDArray[np.int64] | None = None,
    token_ids: NDArray[np.int64] | None = None,
    router_query: NDArray[np.floating] | None = None,
    router_key: NDArray[np.floating] | None = None,
    router_hidden: NDArray[np.floating] | None = None,
) -> Routing:
    """Choose ``top_k`` experts for each token, and their weights; computed in float64.

    Parameters
    ----------
    gating : the algebra's settings.
    router : (E, H); the values' with ``router = attention``; (E, W), the second layer, with ``router = mlp``.
    tokens : (T, H).
    logit_bias, selection_bias : (E,); given exactly where ``gating`` has them.
    hash_table, token_ids : (V, k) experts of each token id and (T,) token ids, for ``selection = hash``.
    router_query, router_key : (E, H) each, for ``router = attention``.
    router_hidden : (W, H), the first layer, for ``router = mlp``.

    Sources: softmax and top-k arXiv 2101.03961 (eq. 1, 2) and 2401.04088 (section 2.1; there softmax
    over the selected, which is a softmax over all divided by the sum of the selected); sigmoid with
    selection bias and groups arXiv 2412.19437 (section 2.1.2, eq. 12 to 16); groups ranked by their best
    score arXiv 2405.04434 (section 2.2.2); SparseMixer arXiv 2409.12136; hash arXiv 2106.04426;
    attention router arXiv 2405.17976; router of two layers arXiv 2406.16554; normalised logits
    arXiv 2406.06563; prototypes arXiv 2105.15082.
    """
    num_tokens, k = len(tokens), gating.top_k
    if gating.selection is Selection.HASH:
        given = hash_table is not None and token_ids is not None and token_ids.shape == (num_tokens,)
        require(given, f"must be given for each of {num_tokens} tokens: experts are hashed", key="token_ids")
    matrices = [router]
    if gating.router is Router.ATTENTION:
        given = router_query is not None and router_key is not None
        require(given, "must be given with router='attention'", key="router_query and router_key")
        matrices += [part for part in (router_query, router_key) if part is not None]
    if gating.router is Router.MLP:
        require(router_hidden is not None, "must be given with router='mlp'", key="router_hidden")
    first_layer = None if router_hidden is None else router_hidden.astype(np.float64).T
    matrix, *query_and_key = (part.astype(np.float64).T for part in matrices)
    logits = np.empty((num_tokens, gating.num_experts))
    ids = np.empty((num_tokens, k), np.int64)
    selected = np.empty((num_tokens, k))
    # Work space, taken once: fresh memory for each part would cost more than the arithmetic.
    space = np.empty((3, min(num_tokens, _TOKENS_AT_A_TIME), gating.num_experts))
    for start in range(0, num_tokens, _TOKENS_AT_A_TIME):
        some = slice(start, start + _TOKENS_AT_A_TIME)
        x = tokens[some].astype(np.float64)
        inputs = x if first_layer is None else np.tanh(x @ first_layer)
        z = np.matmul(inputs, matrix, out=logits[some])
        if query_and_key:
            query, key = query_and_key
            z[...] = attend(x @ query, x @ key, z)
        if logit_bias is not None:
            z += logit_bias
        if gating.logit_deviation:
            z[...] = standardise(z, gating.logit_deviation)
        if gating.selection is Selection.SPARSE_MIXER:
            ids[some], selected[some] = sparse_mixer(z, k, gating.jitter)
            continue
        own, ranking, spare = space[:, : len(z)]
        scores = _score_prototypes(gating, gating.score, z, own)
        if hash_table is not None and token_ids is not None:
            ids[some] = hash_table[token_ids[some]]
        else:
            ids[some] = select(gating, scores, selection_bias, logits=z, out=ranking, spare=spare)
        if gating.weight_score is not None:
            scores = _score_prototypes(gating, gating.weight_score, z, own)
        selected[some] = np.take_along_axis(scores, ids[some], axis=1)
    return Routing(logits, ids, selected, normalise(gating, selected))


def attend(query: F64, key: F64, value: F64) -> F64:
    """Return ``(T, E)`` logits of the attention router, from a query, a key and a value per expert.

    An expert's logit is ``sum_j softmax_j(query * key_j) value_j``, without overflow.
    """
    logits = np.empty_like(value)
    step = max(1, _SHARES_AT_A_TIME // value.shape[1] ** 2)
    for start in range(0, len(value), step):
        some = slice(start, start + step)
        products = query[some, :, None] * key[some, None, :]
        shares = score(Score.SOFTMAX, products.reshape(-1, value.shape[1])).reshape(products.shape)
        logits[some] = np.matmul(shares, value[some, :, None])[:, :, 0]
    return logits


def standardise(logits: F64, deviation: float) -> F64:
    """Return ``(T, E)`` logits with a mean of 0 and this standard deviation in each row; equal ones are 0."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=1, keepdims=True))
    unit: F64 = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return deviation * unit


def _score_prototypes(gating: GatingSpec, kind: Score, logits: F64, out: F64) -> F64:
    """Return the scores of ``(T, E)`` logits, those of each prototype on their own."""
    width = gating.num_experts // gating.num_prototypes
    return score(kind, logits.reshape(-1, width), out=out.reshape(-1, width)).reshape(logits.shape)


def score(kind: Score, logits: F64, *, out: F64 | None = None) -> F64:
    """Return the scores of ``(T, E)`` logits, without overflow at any finite logit; ``out`` may take them."""
    if kind is Score.NONE:
        return logits
    if kind is Score.SIGMOID:
        return sigmoid(logits, out=out)
    if kind is Score.SQRT_SOFTPLUS:
        values: F64 = np.logaddexp(0.0, logits, out=out)
        return np.sqrt(values, out=values)
    values = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return values


def sigmoid(x: F64, *, out: F64 | None = None) -> F64:
    """Return ``1 / (1 + exp(-x))`` elementwise; 0 where that is below the smallest float64."""
    values: F64 = np.negative(x, out=out)
    with np.errstate(over="ignore"):
        np.exp(values, out=values)
    values += 1.0
    return np.divide(1.0, values, out=values)


def select(
    gating: GatingSpec,
    scores: F64,
    selection_bias: NDArray[np.floating] | None,
    *,
    logits: F64 | None = None,
    out: F64 | None = None,
    spare: F64 | None = None,
) -> NDArray[np.int64]:
    """Return the ``(T, k)`` experts of the largest selection scores, from ``(T, E)`` scores.

    With their ``logits``, softmax scores without a selection bias are ranked by those, as in hardware
    (:class:`spec.gate_plan.GatePlan`): the order is the same, but scores of logits 745 below the largest one
    are all 0 in float64. ``out`` and ``spare``, as large as the scores, are work space.
    """
    plan = GatePlan(gating)
    by_logit = logits is not None and plan.ranked_by_logit
    keys = logits if logits is not None and by_logit else scores
    ranking: F64 = np.add(keys, 0.0 if selection_bias is None else selection_bias, out=out)
    if gating.grouped:
        zero = plan.masks_to_zero if by_logit else gating.group_mask is GroupMask.ZERO
        np.copyto(ranking, 0.0 if zero else -np.inf, where=~group_mask(gating, ranking, spare=spare))
    prototypes = gating.num_prototypes
    width = gating.num_experts // prototypes
    best = _take_largest(ranking.reshape(-1, width), gating.top_k // prototypes)
    first = width * np.arange(prototypes)[:, None]
    ids: NDArray[np.int64] = (best.reshape(len(ranking), prototypes, -1) + first).reshape(-1, gating.top_k)
    return ids


def normalise(
    gating: GatingSpec, selected: NDArray[np.float64], kept: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the weights of ``(T, k)`` selected scores; with ``kept`` the sum is over those alone."""
    weights = selected
    if gating.normalise is not Normalise.NONE:
        parts = selected if kept is None else np.where(kept, selected, 0.0)
        if gating.normalise is Normalise.SUM:
            total = parts.sum(axis=1, keepdims=True)
        else:
            # Divided by the largest first: powers of small scores would vanish.
            largest = np.abs(parts).max(axis=1, keepdims=True)
            shares = np.divide(np.abs(parts), largest, out=np.zeros_like(parts), where=largest > 0)
            total = largest * (shares**gating.norm_order).sum(axis=1, keepdims=True) ** (
                1 / gating.norm_order
            )
        if gating.epsilon_rule is Epsilon.ADDED:
            total = total + gating.epsilon
        else:
            total = np.maximum(total, gating.epsilon)
        # Sigmoids that all vanish have no shares, whether epsilon says so or not.
        weights = np.divide(selected, total, out=np.zeros_like(selected), where=total != 0)
    return weights * gating.scale


def sparse_mixer(
    logits: NDArray[np.float64], k: int, jitter: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return ``(T, k)`` experts and weights of SparseMixer in evaluation, from ``(T, E)`` logits.

    In each of k rounds the largest logit m of those left wins; its weight is its softmax over those left
    with ``(m - z) / max(|z|, m) <= 2 * jitter``.
    """
    left = logits.copy()
    ids = np.empty((len(logits), k), np.int64)
    weights = np.empty((len(logits), k))
    for round_ in range(k):
        best = left.argmax(axis=1)[:, None]
        largest = np.take_along_axis(left, best, axis=1)
        # Multiplied out: a logit of 0 beside a largest one of 0 is no division of 0 by 0.
        near = largest - logits <= 2 * jitter * np.maximum(np.abs(logits), largest)
        shares = np.exp(np.where(near, left - largest, -np.inf))
        ids[:, round_] = best[:, 0]
        weights[:, round_] = 1.0 / shares.sum(axis=1)
        np.put_along_axis(left, best, -np.inf, axis=1)
    return ids, weights


def top_k(ranking: F64, k: int, *, spare: F64 | None = None) -> NDArray[np.int64]:
    """Return the ``(T, k)`` int64 indices of each row's largest values, largest first.

    Of equal values the lowest index comes first. ``spare``, as large as ``ranking``, is work space.
    """
    if spare is None:
        return _take_largest(ranking.copy(), k)
    spare = spare.reshape(ranking.shape)
    np.copyto(spare, ranking)
    return _take_largest(spare, k)


def _take_largest(left: F64, k: int) -> NDArray[np.int64]:
    """Return what :func:`top_k` does; ``left`` is not the same behind."""
    num_rows, width = left.shape
    if 2 * k * k > width * np.log2(width + 1):
        order: NDArray[np.int64] = np.argsort(np.negative(left, out=left), axis=1, kind="stable")
        return order[:, :k]
    # The largest one again and again: argmax is quick and takes the lowest index.
    ids = np.empty((num_rows, k), np.int64)
    rows = np.arange(num_rows)
    for place in range(k):
        ids[:, place] = left.argmax(axis=1)
        left[rows, ids[:, place]] = -np.inf
    return ids


def group_mask(gating: GatingSpec, ranking: F64, *, spare: F64 | None = None) -> NDArray[np.bool_]:
    """Return ``(T, E)`` bool: whether an expert's group is among the ``topk_groups`` best.

    Of equal groups the lowest index wins. ``spare`` is work space, as in :func:`top_k`.
    """
    groups = ranking.reshape(-1, gating.group_size)
    best = top_k(groups, 2 if gating.group_score is GroupScore.TOP2_SUM else 1, spare=spare)
    group_scores = np.take_along_axis(groups, best, axis=1).sum(axis=1).reshape(-1, gating.num_groups)
    kept = np.zeros(group_scores.shape, np.bool_)
    np.put_along_axis(kept, top_k(group_scores, gating.topk_groups), True, axis=1)
    return kept.repeat(gating.group_size, axis=1)
