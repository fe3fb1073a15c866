"""Gating in the hardware's number formats, bit for bit.

The algebra is that of :mod:`golden.gating`; what is added is where numbers are rounded: logits have
20 fraction bits, scores 30, selection scores 24 (:mod:`golden.functions`), weights are bf16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.formats import BF16_ONE, F32, Bits16, bf16_encode, dot, f32_flush
from golden.functions import (
    FIXED_MAX,
    FRACTION_BITS,
    SCALE_BITS,
    SCORE_BITS,
    SELECT_BITS,
    bf16_from_integer,
    exp_negative,
    fixed_from_f32,
    floor_log2,
    reciprocal,
    score_from,
    sigmoid,
)
from golden.gating import top_k
from spec.geometry import LOGIT_BIAS_INPUTS
from spec.model import GatingSpec, GroupScore, Normalise, Score

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class RoutingBf16:
    """Result of gating.

    Attributes
    ----------
    ids : (tokens, k) int64, best first; ties to the lowest index.
    weights : (tokens, k) bf16 patterns.
    logits : (tokens, experts) int64 with 20 fraction bits.
    shared : (tokens,) bf16 patterns, the weight of the shared expert where it has a gate, else None.
    """

    ids: I64
    weights: Bits16
    logits: I64
    shared: Bits16 | None = None


def selection_bias_fixed(bias: NDArray[Any]) -> I64:
    """Return selection biases as signed 32-bit integers with 24 fraction bits, nearest, saturated."""
    scaled = np.rint(np.asarray(bias, dtype=np.float64) * (1 << SELECT_BITS))
    return np.clip(scaled, -FIXED_MAX, FIXED_MAX).astype(np.int64)


def scale_fixed(scale: float) -> int:
    """Return the weight scale as an unsigned integer with 14 fraction bits."""
    return round(scale * (1 << SCALE_BITS))


def epsilon_fixed(epsilon: float) -> int:
    """Return the normalisation's epsilon as an unsigned integer with 30 fraction bits."""
    return round(epsilon * (1 << SCORE_BITS))


def _top(keys: I64, count: int) -> I64:
    """Indices of the largest keys of each row, descending, ties to the lowest index.

    Keys are exact in float64: of at most 53 bits, or the power of two that stands for a masked one.
    """
    return top_k(keys.astype(np.float64), count)


def _group_mask(gating: GatingSpec, keys: I64) -> NDArray[np.bool_]:
    grouped = np.sort(keys.reshape(len(keys), gating.num_groups, gating.group_size), axis=-1)
    best = grouped[..., -1]
    scores = best + grouped[..., -2] if gating.group_score is GroupScore.TOP2_SUM else best
    mask = np.zeros((len(keys), gating.num_groups), dtype=bool)
    np.put_along_axis(mask, _top(scores, gating.topk_groups), True, axis=1)
    return np.repeat(mask, gating.group_size, axis=1)


def select(gating: GatingSpec, logits: I64, bias: I64 | None) -> RoutingBf16:
    """Choose experts and weights from logits.

    Parameters
    ----------
    logits : (tokens, experts) int64 with 20 fraction bits.
    bias : (experts,) selection bias of :func:`selection_bias_fixed`, or None.
    """
    scores = np.zeros_like(logits)
    if gating.score is Score.SIGMOID:
        scores = score_from(*sigmoid(logits))
        keys = (scores >> (SCORE_BITS - SELECT_BITS)) + (0 if bias is None else bias)
    else:
        keys = logits
    if gating.grouped:
        keys = np.where(_group_mask(gating, keys), keys, np.iinfo(np.int64).min // 2)
    ids = _top(keys, gating.top_k)

    if gating.score is Score.SOFTMAX:
        scores = score_from(*exp_negative(logits.max(axis=1, keepdims=True) - logits))
    selected = np.take_along_axis(scores, ids, axis=1)
    scale = scale_fixed(gating.scale)
    if gating.normalise is Normalise.SUM:
        total = selected.sum(axis=1) + epsilon_fixed(gating.epsilon)
    elif gating.score is Score.SOFTMAX:
        total = scores.sum(axis=1)
    else:
        total = np.full(len(logits), 1 << SCORE_BITS, dtype=np.int64)
    position = floor_log2(total)
    mantissa = np.where(
        position >= FRACTION_BITS,
        total >> np.maximum(position - FRACTION_BITS, 0),
        total << np.maximum(FRACTION_BITS - position, 0),
    )
    inverse = (reciprocal(mantissa) * scale) >> SCALE_BITS
    inverse = np.where(total == 0, 0, inverse)
    weights = bf16_from_integer(
        np.zeros_like(selected), selected * inverse[:, None], -FRACTION_BITS - position[:, None]
    )
    return RoutingBf16(ids=ids, weights=weights, logits=logits)


def banked_router(router: Bits16, logit_bias: F32 | None) -> Bits16:
    """Return the router's rows as the banks hold them: a logit bias as three inputs more.

    The bias is cut into bf16 numbers of one sign that add up to it, the largest first: 8 significant bits
    each, 24 together. Parts below 2^-126 are lost, as everywhere.
    """
    if logit_bias is None:
        return router
    rest = f32_flush(logit_bias)
    parts = []
    for _ in range(LOGIT_BIAS_INPUTS):
        part = (rest.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        parts.append(bf16_encode(part))
        rest = rest - part
    return np.concatenate([router, np.stack(parts, axis=1)], axis=1)


def route_bf16(
    gating: GatingSpec,
    router: Bits16,
    tokens: Bits16,
    cols: int,
    logit_bias: F32 | None = None,
    selection_bias: NDArray[Any] | None = None,
    *,
    shared_gate: Bits16 | None = None,
    banked: bool = False,
) -> RoutingBf16:
    """Route tokens as the hardware does.

    Parameters
    ----------
    router : (experts, d_model) bf16 patterns.
    tokens : (tokens, d_model) bf16 patterns.
    cols : products per burst (``ImageGeometry.router_cols``).
    logit_bias, selection_bias : (experts,) float32, where the algebra has them.
    shared_gate : (1, d_model) bf16 patterns, the gate of the shared expert if it has one: one more row of
        the router, without a bias, whose sigmoid is that expert's weight.
    banked : the products are made in the banks, where a logit bias is more inputs.
    """
    num_experts = len(router)
    if shared_gate is not None:
        router, logit_bias = with_shared_gate(router, logit_bias, shared_gate)
    if banked:
        matrix = banked_router(router, logit_bias)
        ones = np.full((len(tokens), matrix.shape[1] - router.shape[1]), BF16_ONE, dtype=np.uint16)
        sums = dot(np.concatenate([tokens, ones], axis=1), matrix, cols)
    else:
        sums = dot(tokens, router, cols, None if logit_bias is None else f32_flush(logit_bias))
    logits = fixed_from_f32(sums)
    bias = None if selection_bias is None else selection_bias_fixed(selection_bias)
    routing = select(gating, logits[:, :num_experts], bias)
    if shared_gate is None:
        return routing
    return replace(routing, shared=shared_weight(logits[:, num_experts]))


def with_shared_gate(
    router: Bits16, logit_bias: F32 | None, shared_gate: Bits16
) -> tuple[Bits16, F32 | None]:
    """Return router and logit bias with the row of the shared expert's gate, whose bias is zero."""
    if logit_bias is not None:
        logit_bias = np.append(logit_bias, np.float32(0)).astype(np.float32)
    return np.concatenate([router, shared_gate]), logit_bias


def shared_weight(logits: I64) -> Bits16:
    """Return the sigmoid of logits with 20 fraction bits, rounded to bf16."""
    scores = score_from(*sigmoid(logits))
    return bf16_from_integer(np.zeros_like(scores), scores, np.full_like(scores, -SCORE_BITS))
