"""An expert's FFN in the hardware's number formats, bit for bit."""

from __future__ import annotations

import numpy as np

from golden.formats import BF16_NAN, BF16_ONE, F32, Bits16, bf16_decode, bf16_encode, dot
from golden.functions import (
    FAR_EXPONENT,
    FRACTION_BITS,
    I64,
    ONE,
    bf16_from_integer,
    fields,
    fixed_from_f32,
    gelu_tanh_argument,
    is_nan,
    normal_cdf,
    scaled_product,
    sigmoid,
    tanh_ratio,
)
from spec.model import Activation, FfnSpec

ALPHA_BITS = 16
QUICK_GELU_ALPHA = 1.702
WITH_ALPHA = (Activation.CLAMPED_SWIGLU, Activation.QUICK_GELU)
"""Activations whose sigmoid has a factor before its argument."""


def limit_bf16(ffn: FfnSpec) -> int:
    """Return the bound of clamped values as a bf16 pattern."""
    return int(bf16_encode(np.array([ffn.limit]))[0])


def alpha_fixed(ffn: FfnSpec) -> int:
    """Return the factor of the sigmoid's argument with 16 fraction bits."""
    alpha = QUICK_GELU_ALPHA if ffn.activation is Activation.QUICK_GELU else ffn.alpha
    return round(alpha * (1 << ALPHA_BITS))


def clamps(ffn: FfnSpec) -> bool:
    """Whether gate and up values are cut before the activation."""
    return ffn.clamped or ffn.activation is Activation.CLAMPED_SWIGLU


def _clamp(values: Bits16, limit: int, *, below: bool) -> Bits16:
    """Limit the magnitude of positive (and, if asked, negative) patterns; NaN passes."""
    magnitude = values & 0x7FFF
    number = magnitude <= 0x7F80
    negative = (values >> 15).astype(bool)
    over = number & (magnitude > limit) & (~negative | below)
    return np.where(over, (values & 0x8000) | limit, values).astype(np.uint16)


def _plus_one(values: Bits16) -> Bits16:
    """Return bf16(values + 1); the operand is truncated to 20 fraction bits first. NaN passes."""
    nan = (values & 0x7FFF) > 0x7F80
    total: I64 = fixed_from_f32(bf16_decode(values)) + ONE
    out = bf16_from_integer((total < 0).astype(np.int64), np.abs(total), np.full(total.shape, -FRACTION_BITS))
    return np.where(nan, 0x7FC0, out).astype(np.uint16)


def curve(ffn: FfnSpec, g: Bits16) -> tuple[Bits16, I64, I64]:
    """Return the activation of bf16 patterns as ``(a, mantissa, shift)``.

    It is ``a * mantissa * 2**-(20 + shift)``; ``a`` is a bf16 pattern, the argument itself for most, and NaN
    where that is. Of ``clamped_swiglu`` it is what the up value is multiplied with.
    """
    nan = is_nan(g)
    zero = np.zeros(g.shape, np.int64)
    unit = zero + ONE
    negative = (g >> 15).astype(bool) & ~nan
    match ffn.activation:
        case Activation.LINEAR:
            return g, unit, zero
        case Activation.RELU:
            return np.where(negative, 0, g).astype(np.uint16), unit, zero
        case Activation.RELU2:
            # The factor that is the argument once more has its exponent in the shift.
            _, exponent, significand = fields(g)
            shift = 127 - exponent
            return np.where(negative, 0, g).astype(np.uint16), significand << (FRACTION_BITS - 7), shift
        case Activation.GELU:
            return g, *normal_cdf(g)
        case Activation.GELU_TANH:
            return g, *sigmoid(gelu_tanh_argument(g))
        case Activation.TANH:
            _, exponent, _ = fields(g)
            ends = (exponent >= FAR_EXPONENT) & ~nan
            return np.where(ends, (g & 0x8000) | BF16_ONE, g).astype(np.uint16), tanh_ratio(g), zero
    z = fixed_from_f32(bf16_decode(g))
    if ffn.activation in WITH_ALPHA:
        z = np.sign(z) * np.minimum((np.abs(z) * alpha_fixed(ffn)) >> ALPHA_BITS, (1 << 31) - 1)
    a = g
    if ffn.activation is Activation.SIGMOID:
        a = np.where(nan, BF16_NAN, BF16_ONE).astype(np.uint16)
    return a, *sigmoid(z)


def activate(ffn: FfnSpec, gate: F32, up: F32 | None = None) -> Bits16:
    """Return the hidden activations as bf16 patterns from the fp32 sums before them.

    Both sums are rounded to bf16 first; the product of up and the activation's factors is rounded once.

    Parameters
    ----------
    gate : sums of the gate matrix, or of the only matrix without one; any shape.
    up : sums of the up matrix, same shape; None without a gate matrix.
    """
    g = bf16_encode(gate)
    assert (up is not None) is ffn.gated
    u = np.full(g.shape, BF16_ONE, np.uint16) if up is None else bf16_encode(up)
    if clamps(ffn):
        limit = limit_bf16(ffn)
        g, u = _clamp(g, limit, below=False), _clamp(u, limit, below=True)
    if ffn.activation is Activation.CLAMPED_SWIGLU:
        u = _plus_one(u)
    a, mantissa, shift = curve(ffn, g)
    return scaled_product(a, u, mantissa, shift)


def ffn_bf16(
    ffn: FfnSpec,
    x: Bits16,
    gate: Bits16 | None,
    up: Bits16,
    down: Bits16,
    cols: int,
    gate_bias: Bits16 | None = None,
    up_bias: Bits16 | None = None,
    down_bias: Bits16 | None = None,
) -> Bits16:
    """Return an expert's outputs as bf16 patterns (tokens, d_model).

    A bias is the weight of one more input that is always 1, after the others.

    Parameters
    ----------
    x : (tokens, d_model) bf16 patterns.
    gate, up : (d_hidden, d_model) bf16 patterns; gate is None for a two-matrix FFN.
    down : (d_model, d_hidden) bf16 patterns.
    cols : products per burst of the array.
    """

    def product(inputs: Bits16, matrix: Bits16, bias: Bits16 | None) -> F32:
        if bias is None:
            return dot(inputs, matrix, cols)
        ones = np.full((len(inputs), 1), BF16_ONE, dtype=np.uint16)
        return dot(
            np.concatenate([inputs, ones], axis=1), np.concatenate([matrix, bias[:, None]], axis=1), cols
        )

    first = product(x, up, up_bias)
    hidden = activate(ffn, first) if gate is None else activate(ffn, product(x, gate, gate_bias), first)
    return bf16_encode(product(hidden, down, down_bias))
