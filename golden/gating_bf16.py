"""Gating in the hardware's number formats, bit for bit.

The algebra is that of :mod:`golden.gating`; what is added is where numbers are rounded: logits have
20 fraction bits, scores 30, selection scores 24 or 28 (softmax shares), weights are bf16
(:mod:`golden.functions`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import frexp, ldexp
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
    SHARE_SELECT_BITS,
    bf16_from_integer,
    exp2_negative,
    exp_negative,
    fixed_from_f32,
    floor_log2,
    log2_fixed,
    norm,
    normalised,
    reciprocal,
    score_from,
    sigmoid,
    sqrt_softplus,
)
from golden.gating import top_k
from spec.errors import require
from spec.gate_plan import GatePlan
from spec.geometry import LOGIT_BIAS_INPUTS
from spec.model import Epsilon, GatingSpec, GroupScore, Normalise, Score

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class RoutingBf16:
    """Result of gating.

    Attributes
    ----------
    ids : (tokens, k) int64, best first; ties to the lowest index.
    weights : (tokens, k) bf16 patterns.
    logits : (tokens, experts) int64 with 20 fraction bits, standardised where the gating says so.
    shared : (tokens,) bf16 patterns, the weight of the shared expert where it has a gate, else None.
    scores : (tokens, k) int64 with 30 fraction bits, what the weights are made of, where it is asked for.
    """

    ids: I64
    weights: Bits16
    logits: I64
    shared: Bits16 | None = None
    scores: I64 | None = None


def select_bits(gating: GatingSpec) -> int:
    """Return the fraction bits of biased selection scores: a softmax share of many experts is small."""
    return SHARE_SELECT_BITS if gating.score is Score.SOFTMAX else SELECT_BITS


def selection_bias_fixed(gating: GatingSpec, bias: NDArray[Any]) -> I64:
    """Return selection biases as signed 32-bit integers of ``select_bits``, nearest, saturated."""
    scaled = np.rint(np.asarray(bias, dtype=np.float64) * (1 << select_bits(gating)))
    return np.clip(scaled, -FIXED_MAX, FIXED_MAX).astype(np.int64)


def check_selection_bias(gating: GatingSpec, bias: NDArray[Any] | None) -> None:
    """Raise :class:`InputError` for selection biases beyond those that :func:`selection_bias_fixed` holds."""
    if bias is None or not len(bias):
        return
    most = FIXED_MAX / (1 << select_bits(gating))
    worst = float(np.asarray(bias)[np.abs(bias).argmax()])
    require(
        abs(worst) <= most,
        f"must be in {-most:g}..{most:g} in hardware with score={gating.score.value!r}, not {worst:g}",
        key="selection_bias",
    )


def scale_fixed(scale: float) -> tuple[int, int]:
    """Return the weight scale as ``mantissa * 2**(power - 14)``: power 0 from 1/4 to 64.

    Beyond, the mantissa is in [1, 2): relative error at most 2**-15. A scale below 2**-300 is zero.
    """
    power = 0 if 0.25 <= scale < 64 else max(frexp(scale)[1] - 1, -300)
    return round(ldexp(scale, SCALE_BITS - power)), power


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


def scores_fixed(kind: Score, logits: I64) -> I64:
    """Return the scores of (tokens, experts) logits, with 30 fraction bits.

    A softmax share is an exponential times the inverse of their sum, truncated.
    """
    if kind is Score.SIGMOID:
        return score_from(*sigmoid(logits))
    if kind is Score.SQRT_SOFTPLUS:
        return sqrt_softplus(logits)
    if kind is Score.NONE:
        return logits << (SCORE_BITS - FRACTION_BITS)
    exponentials = _exponentials(logits)
    mantissa, position = inverse_of(exponentials.sum(axis=1))
    return (exponentials * mantissa[:, None]) >> (FRACTION_BITS + position - SCORE_BITS)[:, None]


CENTRED_BITS = 20
"""Bits behind the first one to which the largest of a token's centred logits is cut; others as far down."""


def deviation_fixed(gating: GatingSpec) -> tuple[int, int]:
    """Return ``logit_deviation * sqrt(num_experts)`` as ``mantissa * 2**(exponent - 16)``, of 17 bits."""
    factor = gating.logit_deviation * gating.num_experts**0.5
    exponent = frexp(factor)[1] - 1
    return round(ldexp(factor, 16 - exponent)), exponent


def standardised(gating: GatingSpec, logits: I64) -> I64:
    """Return (tokens, experts) logits with a mean of 0 and the gating's standard deviation; equal ones are 0.

    Each one's distance from the mean is exact, ``num_experts`` times as large, then cut; the inverse of the
    root of their squares is half of a logarithm.
    """
    count = logits.shape[1]
    centred = count * logits - logits.sum(axis=1, keepdims=True)
    position = floor_log2(np.abs(centred).max(axis=1))
    cut = (centred << CENTRED_BITS) >> position[:, None]
    power = (cut * cut).sum(axis=1)
    mantissa, shift = exp2_negative(log2_fixed(np.maximum(power, 1)) >> 1)
    of_deviation, exponent = deviation_fixed(gating)
    factor = (mantissa * of_deviation) >> 16
    result: I64 = (cut * factor[:, None]) >> np.maximum(shift - exponent, 0)[:, None]
    return result


def _exponentials(logits: I64) -> I64:
    """Return exp(logit - largest) of each token's logits, with 30 fraction bits."""
    return score_from(*exp_negative(logits.max(axis=1, keepdims=True) - logits))


def inverse_of(total: I64, scale: int = 1 << SCALE_BITS) -> tuple[I64, I64]:
    """Return ``scale / total`` as mantissa and position of the total's leading one; 0 for a total of 0.

    Its value is ``mantissa * 2**(10 - position)`` for a total of 30 fraction bits.
    """
    position, mantissa = normalised(total)
    inverse = (reciprocal(mantissa) * scale) >> SCALE_BITS
    return np.where(total == 0, 0, inverse), position


def select(gating: GatingSpec, logits: I64, bias: I64 | None, *, gives_scores: bool = False) -> RoutingBf16:
    """Choose experts and weights from logits.

    Parameters
    ----------
    logits : (tokens, experts) int64 with 20 fraction bits.
    bias : (experts,) selection bias of :func:`selection_bias_fixed`, or None.
    gives_scores : return the chosen experts' scores, too.
    """
    if gating.logit_deviation:
        logits = standardised(gating, logits)
    if gating.num_prototypes > 1:
        return _select_of_prototypes(gating, logits, gives_scores)
    plan = GatePlan(gating, gives_scores)
    scores = logits if plan.ranked_by_logit else scores_fixed(gating.score, logits)
    keys = logits
    if not plan.ranked_by_logit:
        keys = (scores >> (SCORE_BITS - select_bits(gating))) + (0 if bias is None else bias)
    if gating.grouped:
        loser = 0 if plan.masks_to_zero else np.iinfo(np.int64).min // 2
        keys = np.where(_group_mask(gating, keys), keys, loser)
    ids = _top(keys, gating.top_k)

    if plan.exponentials and not plan.shares_of_chosen:
        scores = _exponentials(logits)
    elif not plan.carries_score:
        scores = scores_fixed(plan.weight_score, logits)
    selected = np.take_along_axis(scores, ids, axis=1)
    if gating.normalise is not Normalise.NONE:
        total = _denominator(plan, selected)
    elif plan.exponentials and not plan.shares_of_chosen:
        total = scores.sum(axis=1)
    else:
        total = np.full(len(logits), 1 << SCORE_BITS, dtype=np.int64)
    return RoutingBf16(
        ids=ids,
        weights=_divided(plan, selected, total),
        logits=logits,
        scores=selected if gives_scores else None,
    )


def _select_of_prototypes(gating: GatingSpec, logits: I64, gives_scores: bool) -> RoutingBf16:
    """Choose among the experts of each prototype as of a token of its own, one prototype after another."""
    own = gating.of_prototype
    parts = select(own, logits.reshape(-1, own.num_experts), None, gives_scores=gives_scores)
    first = own.num_experts * np.arange(gating.num_prototypes)[:, None]
    shape = (len(logits), gating.top_k)
    return RoutingBf16(
        ids=(parts.ids.reshape(len(logits), gating.num_prototypes, -1) + first).reshape(shape),
        weights=parts.weights.reshape(shape),
        logits=logits,
        scores=None if parts.scores is None else parts.scores.reshape(shape),
    )


def kept_weights(gating: GatingSpec, scores: I64, kept: NDArray[np.bool_]) -> Bits16:
    """Return the weights of (tokens, k) chosen experts where the sum is over the kept ones; others have 0.

    Parameters
    ----------
    scores : those of :func:`select`.
    """
    plan = GatePlan(gating, gives_scores=True)
    selected = np.where(kept, scores, 0)
    return _divided(plan, selected, _denominator(plan, selected))


def score_words(gating: GatingSpec, scores: I64) -> I64:
    """Return scores as the gate gives them: integers >= 0 of their order; logits in offset binary."""
    if not GatePlan(gating).signed:
        return scores
    return (scores >> (SCORE_BITS - FRACTION_BITS)) + (FIXED_MAX + 1)


def _divided(plan: GatePlan, selected: I64, total: I64) -> Bits16:
    """Return (tokens, k) scores over their (tokens,) totals, scaled and rounded to bf16."""
    scale, power = scale_fixed(plan.gating.scale)
    inverse, position = inverse_of(np.abs(total), scale)
    magnitude = np.abs(selected)
    if plan.signed:
        # Logits have fewer fraction bits: the product stays within 62 bits.
        magnitude, power = magnitude >> (SCORE_BITS - FRACTION_BITS), power + SCORE_BITS - FRACTION_BITS
    return bf16_from_integer(
        ((selected < 0) ^ (total < 0)[:, None]).astype(np.int64),
        magnitude * inverse[:, None],
        power - FRACTION_BITS - position[:, None],
    )


def _denominator(plan: GatePlan, selected: I64) -> I64:
    """Return what the (tokens, k) selected scores are divided by, with 30 fraction bits."""
    gating = plan.gating
    total: I64
    if gating.normalise is Normalise.SUM:
        total = selected.sum(axis=1)
    elif plan.normalises_by_sum:
        total = np.abs(selected).sum(axis=1)
    else:
        total = norm(np.abs(selected), gating.norm_order)
    epsilon = epsilon_fixed(gating.epsilon)
    return total + epsilon if gating.epsilon_rule is Epsilon.ADDED else np.maximum(total, epsilon)


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
    gives_scores: bool = False,
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
    gives_scores : return the chosen experts' scores, too (``GateGeometry.gives_scores``).
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
    bias = None if selection_bias is None else selection_bias_fixed(gating, selection_bias)
    routing = select(gating, logits[:, :num_experts], bias, gives_scores=gives_scores)
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
