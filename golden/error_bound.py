"""How far the layer in the hardware's number formats can be from the layer in float: a bound, derived.

Every rounding between a token and its output is followed with magnitudes: each value carries the
largest error that it can have, products and sums propagate errors exactly (no first-order
approximation), and the formats add theirs (:mod:`golden.formats`, :mod:`golden.functions`,
``docs/numbers.md``). Tokens and weights must be bf16 values already, and both layers must have
selected the same experts, and dropped the same assignments. Underflow (below 2**-126) is not counted.

In the integer formats a value that is rounded to whole steps is off by half a step, or by what lies beyond
127 steps; integer sums are exact. A weight, there and in a grouped format, is off by what its stored value
is: that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine_bf16 import IDENTITY_FRACTION_BITS
from golden.expert import activate, activation
from golden.expert_bf16 import QUICK_GELU_ALPHA, clamps, limit_bf16
from golden.expert_int8 import ActivationScales
from golden.formats import GUARD_BITS, PRODUCT_FRACTION_BITS, bf16_decode
from golden.functions import FIXED_MAX, FRACTION_BITS, SCALE_BITS, SCORE_BITS
from golden.gating import score, sigmoid
from golden.gating_bf16 import scale_fixed
from golden.grouped import quantise_groups
from golden.int8 import FixedScale, quantise_rows
from golden.layer import LayerResult
from golden.weights import ExpertWeights, LayerWeights
from spec.design import INT8_MAX, Format
from spec.gate_plan import GatePlan
from spec.geometry import FfnGeometry, ImageGeometry, ceil_div
from spec.model import (
    Activation,
    AppliedTo,
    Epsilon,
    FfnSpec,
    GatingSpec,
    ModelSpec,
    Normalise,
    Score,
)

F64 = NDArray[np.float64]

BF16_ROUNDING = 2.0**-8
"""Largest relative error of rounding to bf16, which has 8 significant bits."""
F32_ROUNDING = 2.0**-24
SIGMOID_ERROR = 1.1e-5
"""Relative, of the tabulated sigmoid (``docs/numbers.md``); also its largest absolute error."""
WEIGHT_ERROR = 2e-5
"""Relative, of a combine weight before it is rounded: tables, reciprocal, truncations."""
LOGIT_STEP = 2.0**-FRACTION_BITS
SCORE_STEP = 2.0**-SCORE_BITS
SQRT_SOFTPLUS_ERROR = 2.9e-6
"""Absolute, of the tabulated score."""
ALPHA_ROUNDING = 2.0**-17
"""The factor of the sigmoid's argument in clamped SwiGLU and quick GELU has 16 fraction bits."""
SIGMOID_SLOPE = 0.25
SLOPE = {
    Activation.LINEAR: 1.0,
    Activation.RELU: 1.0,
    Activation.TANH: 1.0,
    Activation.SIGMOID: SIGMOID_SLOPE,
    **dict.fromkeys((Activation.SILU, Activation.CLAMPED_SWIGLU, Activation.QUICK_GELU), 1.1),
    **dict.fromkeys((Activation.GELU, Activation.GELU_TANH), 1.13),
}
"""Above the largest slope of an activation: of x sigmoid(alpha x) 1.0998, of GELU 1.1290 both ways. That of
the square of relu has no end."""
CDF_ERROR = 5.3e-6
"""Absolute, of what GELU multiplies its argument with, against the real function of a bf16 number."""
GELU_TANH_ERROR = 5.7e-6
"""The same of its approximation by tanh."""
TANH_ERROR = 5.2e-6
"""Relative, of the tabulated tanh of a bf16 number."""
SCALE_ROUNDING = 2.0**-16
"""Relative, of a channel's scale in an integer format, which has 16 significant bits."""
BIAS_STEPS = 2.0**30
"""Largest bias in an integer format, in steps of its sum; a larger one makes the row's step larger."""


@dataclass(frozen=True)
class Bounded:
    """Values in float, and how far the hardware's can be from them: two arrays of one shape."""

    value: F64
    error: F64

    @property
    def largest(self) -> F64:
        """Largest magnitude that the hardware's value can have."""
        return np.abs(self.value) + self.error

    def rounded(self, relative: float = BF16_ROUNDING) -> Bounded:
        """Return the value after one more rounding."""
        return Bounded(self.value, self.error + relative * self.largest)


def output_error_bound(
    model: ModelSpec,
    image: ImageGeometry,
    weights: LayerWeights,
    tokens: NDArray[np.floating],
    result: LayerResult,
    scales: ActivationScales | None = None,
) -> F64:
    """Return a bound on ``abs(layer_bf16 - layer)``, (T, H) float64.

    Parameters
    ----------
    image : geometry of the model on the design: products per burst of gate and array.
    weights, tokens : what both layers were given, bf16 values.
    result : of :func:`golden.layer.layer`; its experts must be those of the hardware's layer.
    scales : of the hardware's layer in an integer format.
    """
    x = tokens.astype(np.float64)
    count = len(tokens)
    value, error = np.zeros((count, model.d_model)), np.zeros((count, model.d_model))
    magnitude = np.zeros((count, model.d_model))

    def add(rows: NDArray[np.int64], factor: Bounded, output: Bounded) -> None:
        product = times(factor, output)
        value[rows] += product.value
        error[rows] += product.error
        magnitude[rows] += product.largest

    routing = combine_weights(model, image, weights, x, result)
    served = result.ids[result.kept]
    for expert in np.unique(served[served < image.num_experts]):
        rows, slots = np.nonzero(result.kept & (result.ids == expert))
        factor = Bounded(routing.value[rows, slots, None], routing.error[rows, slots, None])
        inputs = exact(x[rows])
        if model.gating.weight_applied_to is AppliedTo.INPUT:
            inputs, factor = times(factor, inputs).rounded(), exact(np.ones((len(rows), 1)))
        output = expert_output(model.ffn, weights.expert(int(expert)), inputs, image.routed, scales)
        add(rows, factor, output)
    if weights.output_bias is not None:
        value += weights.output_bias
        magnitude += np.abs(weights.output_bias)
    if model.gating.num_identity_experts:
        # All of a token's in one product with the sum of their weights.
        mine = result.kept & (result.ids >= image.num_experts)
        total, off = (
            np.where(mine, part, 0.0).sum(axis=1, keepdims=True) for part in (routing.value, routing.error)
        )
        cut = model.gating.top_k * 2.0**-IDENTITY_FRACTION_BITS
        add(np.arange(count), Bounded(total, off + cut).rounded(), exact(x))
    if weights.shared_expert is not None and model.shared_ffn is not None:
        output = expert_output(model.shared_ffn, weights.shared_expert, exact(x), image.routed, scales)
        add(np.arange(count), shared_weight(image, weights, x), output)
    # The combiner: one rounding to fp32 a contribution, then the output's to bf16.
    additions = model.gating.top_k + 1
    return Bounded(value, error + additions * F32_ROUNDING * magnitude).rounded().error


def combine_weights(
    model: ModelSpec, image: ImageGeometry, weights: LayerWeights, x: F64, result: LayerResult
) -> Bounded:
    """Return the combine weights (T, k) with their bound."""
    logits = dot(
        exact(x),
        weights.router,
        image.router_cols,
        weights.logit_bias,
        num_ones=image.router.num_ones if image.router else 1,
    )
    logit_error = logits.error.max(axis=1) + LOGIT_STEP
    # The factor of the experts' outputs is in the gate's scale.
    value = result.weights * model.expert_output_scale
    error = weight_error(image.gate.gating, logits.value, result.ids, value, logit_error)
    return Bounded(value, error).rounded()


def weight_error(
    gating: GatingSpec, logits: F64, ids: NDArray[np.int64], weights: F64, logit_error: F64
) -> F64:
    """Return (T, k) bounds on the error of combine weights before they are rounded to bf16, or infinity.

    A score lies between what the logits' errors and the fixed point make of it, and so does what it is
    divided by, which grows with every score. A logit that is off by e changes a score by a factor of at most
    exp(e), and the sum by as much; what is cut off behind 30 fraction bits matters where scores are small.
    A weight that is a logit is off by e itself, whatever that is of a sum that is near zero.

    Parameters
    ----------
    gating : of the gate, with the scale that it has.
    logits, ids, weights : (T, E), (T, k) and (T, k) in float; the hardware chooses the same experts.
    logit_error : (T,) how far its logits can be off, saturation aside.
    """
    plan = GatePlan(gating)
    beyond = np.maximum(np.abs(logits).max(axis=1) - FIXED_MAX / (1 << FRACTION_BITS), 0.0)
    off = (logit_error + beyond)[:, None]
    mantissa, power = scale_fixed(gating.scale)
    own = WEIGHT_ERROR + abs(mantissa * 2.0 ** (power - SCALE_BITS) / gating.scale - 1.0)
    if plan.normalises_by_norm:
        # The logarithm of a sum of powers, divided by the order.
        own += WEIGHT_ERROR / gating.norm_order
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if plan.signed:
            error = _signed_error(gating, np.take_along_axis(logits, ids, axis=1), weights, off)
        else:
            low, high = _weight_interval(plan, logits, ids, off)
            error = np.maximum(high - weights, weights - low)
        error = error + own * (np.abs(weights) + error)
    # Neither 0 / 0 nor infinity - infinity bounds anything.
    return np.where(np.isnan(error), np.inf, error)


def _weight_interval(plan: GatePlan, logits: F64, ids: NDArray[np.int64], off: F64) -> tuple[F64, F64]:
    """Return the least and the largest (T, k) weights, with scores that are not negative."""
    gating = plan.gating
    kind, growth = plan.weight_score, np.exp(off)
    epsilon_step = 2.0 ** -(SCORE_BITS + 1) if gating.epsilon else 0.0
    epsilons = [max(gating.epsilon - epsilon_step, 0.0), gating.epsilon + epsilon_step]
    floor, unit = np.full_like(off, SCORE_STEP), [np.ones_like(off), np.ones_like(off)]
    if kind is Score.SOFTMAX:
        # Exponentials of distances from the largest logit, whose own error is common to all and cancels.
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        floor = floor * growth
        unit = [
            np.maximum(values / growth - floor, 0.0).sum(axis=1, keepdims=True),
            (values * growth + floor).sum(axis=1, keepdims=True),
        ]
        if plan.carries_score or plan.shares_of_chosen:
            floor = floor + SCORE_STEP * unit[1]
    else:
        values = score(kind, logits)
        if kind is Score.SQRT_SOFTPLUS:
            floor = floor + SQRT_SOFTPLUS_ERROR
    chosen = np.take_along_axis(values, ids, axis=1)
    bounds = np.maximum(chosen / growth - floor, 0.0), chosen * growth + floor
    divisors = [
        _divisor(gating, of_chosen, epsilon, one)
        for of_chosen, epsilon, one in zip(bounds, epsilons, unit, strict=True)
    ]
    return gating.scale * bounds[0] / divisors[1], gating.scale * bounds[1] / divisors[0]


def _divisor(gating: GatingSpec, chosen: F64, epsilon: float, unit: F64) -> F64:
    """Return (T, 1) what scores are divided by; ``unit`` (T, 1) is what a share of one is in their terms."""
    if gating.normalise is Normalise.NONE:
        return unit
    order = gating.norm_order if gating.normalise is Normalise.P_NORM else 1.0
    largest = np.maximum(chosen.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    total = largest * ((chosen / largest) ** order).sum(axis=1, keepdims=True) ** (1.0 / order)
    added = gating.epsilon_rule is Epsilon.ADDED
    divisor: F64 = total + epsilon * unit if added else np.maximum(total, epsilon * unit)
    return divisor


def _signed_error(gating: GatingSpec, chosen: F64, weights: F64, off: F64) -> F64:
    """Return (T, k) errors of weights that are logits, (T, k), of which each can be off by (T, 1)."""
    if gating.normalise is Normalise.NONE:
        return np.broadcast_to(gating.scale * off, weights.shape)
    if gating.normalise is Normalise.SUM:
        total, moved = chosen.sum(axis=1, keepdims=True), chosen.shape[1] * off
    else:
        unit = np.ones_like(off)
        total = _divisor(gating, np.abs(chosen), 0.0, unit)
        high = _divisor(gating, np.abs(chosen) + off, 0.0, unit)
        low = _divisor(gating, np.maximum(np.abs(chosen) - off, 0.0), 0.0, unit)
        moved = np.maximum(high - total, total - low)
    moved = moved + (2.0 ** -(SCORE_BITS + 1) if gating.epsilon else 0.0)
    added = gating.epsilon_rule is Epsilon.ADDED
    divisor = total + gating.epsilon if added else np.maximum(total, gating.epsilon)
    least = np.maximum(np.abs(divisor) - moved, 0.0)
    error: F64 = (gating.scale * off + np.abs(weights) * moved) / least
    return error


def shared_weight(image: ImageGeometry, weights: LayerWeights, x: F64) -> Bounded:
    """Return the shared expert's weights (T, 1) with their bound: 1, or the sigmoid of its gate."""
    gate = weights.shared_expert_gate
    if gate is None:
        return exact(np.ones((len(x), 1)))
    num_ones = image.router.num_ones if image.router else 1
    logit = dot(exact(x), gate, image.router_cols, num_ones=num_ones)
    error = SIGMOID_SLOPE * (logit.error + LOGIT_STEP) + SIGMOID_ERROR
    return Bounded(sigmoid(logit.value), error).rounded()


def expert_output(
    spec: FfnSpec,
    weights: ExpertWeights,
    x: Bounded,
    geometry: FfnGeometry,
    scales: ActivationScales | None = None,
) -> Bounded:
    """Return one expert's output (n, H) for inputs (n, H), in the geometry's format.

    ``scales``: of an integer one.
    """

    def product(
        operand: Bounded,
        matrix: NDArray[np.floating],
        bias: NDArray[np.floating] | None,
        scale: FixedScale | None,
    ) -> Bounded:
        if geometry.format.grouped:
            return dot_grouped(operand, matrix, geometry, bias).rounded()
        if scale is None:
            return dot(operand, matrix, geometry.cols, bias).rounded()
        return dot_int8(operand, matrix, scale, bias, geometry.format).rounded()

    x_scale, hidden_scale = (None, None) if scales is None else (scales.x, scales.hidden)
    u = product(x, weights.up, weights.up_bias, x_scale)
    if weights.gate is None:
        hidden = _factor(spec, u)
        if spec.activation not in (Activation.LINEAR, Activation.RELU):
            hidden = hidden.rounded()
    else:
        hidden = _gated(spec, product(x, weights.gate, weights.gate_bias, x_scale), u)
    return product(hidden, weights.down, weights.down_bias, hidden_scale)


def _gated(spec: FfnSpec, g: Bounded, u: Bounded) -> Bounded:
    """Return the gated activation. Clamping brings no two values further apart than the bounds are."""
    if clamps(spec):
        limit = spec.limit
        off = abs(float(bf16_decode(np.array([limit_bf16(spec)]))[0]) - limit)
        g = Bounded(np.minimum(g.value, limit), g.error + off)
        u = Bounded(np.clip(u.value, -limit, limit), u.error + off)
    if spec.activation is Activation.CLAMPED_SWIGLU:
        # The operand of the addition of 1 is cut to fixed point, the sum rounded to bf16.
        u = Bounded(u.value + 1.0, u.error + LOGIT_STEP).rounded()
    return times(_factor(spec, g), u).rounded()


def _factor(spec: FfnSpec, g: Bounded) -> Bounded:
    """Return the activation of one argument, before it is rounded: what an up value is multiplied with."""
    kind = spec.activation
    if kind is Activation.CLAMPED_SWIGLU:
        value = activate(spec, g.value, np.zeros_like(g.value))
    else:
        value = activation(kind, g.value)
    slope = 2 * g.largest if kind is Activation.RELU2 else SLOPE[kind]
    match kind:
        case Activation.LINEAR | Activation.RELU | Activation.RELU2:
            own = np.zeros_like(g.value)
        case Activation.GELU:
            own = CDF_ERROR * g.largest
        case Activation.GELU_TANH:
            own = GELU_TANH_ERROR * g.largest
        case Activation.TANH:
            own = TANH_ERROR * np.minimum(g.largest, 1.0)
        case Activation.SILU:
            own = (SIGMOID_ERROR + SIGMOID_SLOPE * LOGIT_STEP) * g.largest
        case Activation.SIGMOID:
            own = np.full_like(g.value, SIGMOID_ERROR + SIGMOID_SLOPE * LOGIT_STEP)
        case Activation.CLAMPED_SWIGLU | Activation.QUICK_GELU:
            alpha = QUICK_GELU_ALPHA if kind is Activation.QUICK_GELU else spec.alpha
            step = (1 + alpha) * LOGIT_STEP + ALPHA_ROUNDING * g.largest
            own = (SIGMOID_ERROR + SIGMOID_SLOPE * step) * g.largest
    return Bounded(value, slope * g.error + own)


def dot(
    x: Bounded,
    weight: NDArray[np.floating],
    cols: int,
    bias: NDArray[np.floating] | None = None,
    *,
    num_ones: int = 1,
) -> Bounded:
    """Return ``x @ weight.T + bias``, summed as the hardware sums it, the bias as ``num_ones`` products.

    A burst of ``cols`` products loses less than ``cols * 2**-22`` of its largest one, and each
    addition to the accumulator half a unit in its last place.
    """
    matrix = weight.astype(np.float64)
    offset = np.zeros(len(matrix)) if bias is None else bias.astype(np.float64)
    bursts = ceil_div(matrix.shape[1] + num_ones, cols)
    lost = cols * 2.0 ** -(PRODUCT_FRACTION_BITS + GUARD_BITS) + bursts * F32_ROUNDING
    products = x.largest @ np.abs(matrix).T + np.abs(offset)
    return Bounded(x.value @ matrix.T + offset, x.error @ np.abs(matrix).T + lost * products)


def dot_grouped(
    x: Bounded, weight: NDArray[np.floating], geometry: FfnGeometry, bias: NDArray[np.floating] | None = None
) -> Bounded:
    """Return ``x @ weight.T + bias`` with stored weights, summed group by group.

    A product is rounded with the additions to its group's sum, with the scale, and with the additions of the
    groups' sums. (Where a burst holds several groups, additions in pairs are no more than those counted.)
    """
    matrix = weight.astype(np.float32)
    stored = quantise_groups(
        matrix, geometry.format, geometry.group, None if bias is None else bias.astype(np.float32)
    )
    values = stored.values()
    offset = np.zeros(len(matrix)) if bias is None else bias.astype(np.float64)
    start = np.zeros(len(matrix)) if stored.bias is None else bf16_decode(stored.bias).astype(np.float64)
    additions = geometry.group_tiles + 1 + stored.scales.shape[1]
    lost = geometry.cols * 2.0 ** -(PRODUCT_FRACTION_BITS + GUARD_BITS) + additions * F32_ROUNDING
    products = x.largest @ np.abs(values).T + np.abs(start)
    of_weights = np.abs(x.value) @ np.abs(values - weight).T + np.abs(start - offset)
    error = x.error @ np.abs(values).T + lost * products + of_weights
    return Bounded(x.value @ weight.astype(np.float64).T + offset, error)


def dot_int8(
    x: Bounded,
    weight: NDArray[np.floating],
    scale: FixedScale,
    bias: NDArray[np.floating] | None,
    number_format: Format,
) -> Bounded:
    """Return ``x @ weight.T + bias`` with ``x`` and the weights' rows in whole steps, before its rounding.

    A row's step is its largest magnitude / 127, in ``w4a8`` / 7, or what its bias needs.
    """
    real = weight.astype(np.float64)
    steps = np.abs(real).max(axis=1) / number_format.largest_weight
    offset = np.zeros(len(real)) if bias is None else bias.astype(np.float64)
    input_step = 1.0 / scale.value
    steps = np.maximum(steps, np.abs(offset) / (input_step * BIAS_STEPS))
    # What each weight is off by is taken from what is stored. It is half a step at most: a quantiser that
    # is off by more breaks the bound, and does not widen it.
    start = None if bias is None else bias.astype(np.float32)
    stored = quantise_rows(weight.astype(np.float32), start, scale, number_format).values * steps[:, None]
    off = np.clip(stored - real, -steps[:, None] / 2, steps[:, None] / 2)
    matrix = np.abs(real + off)
    beyond = x.largest - INT8_MAX * input_step
    inputs = Bounded(x.value, x.error + np.maximum(input_step / 2, beyond))
    of_bias = steps * input_step * (1 + SCALE_ROUNDING) / 2
    of_inputs = inputs.error @ matrix.T + SCALE_ROUNDING * (inputs.largest @ matrix.T)
    error = of_inputs + np.abs(x.value @ off.T) + of_bias
    return Bounded(x.value @ real.T + offset, error)


def exact(values: F64) -> Bounded:
    """Return values that the hardware has as they are."""
    return Bounded(values, np.zeros_like(values))


def times(a: Bounded, b: Bounded) -> Bounded:
    """Return the elementwise product."""
    return Bounded(a.value * b.value, np.abs(a.value) * b.error + a.error * b.largest)
