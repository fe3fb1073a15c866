"""An expert's FFN in the hardware's number formats, bit for bit."""

from __future__ import annotations

import numpy as np

from golden.formats import BF16_ONE, F32, Bits16, bf16_decode, bf16_encode, dot
from golden.functions import (
    FRACTION_BITS,
    I64,
    ONE,
    bf16_from_integer,
    fixed_from_f32,
    scaled_product,
    sigmoid,
)
from spec.model import Activation, FfnSpec

ALPHA_BITS = 16


def limit_bf16(ffn: FfnSpec) -> int:
    """Return the clamp of the clamped SwiGLU as a bf16 pattern."""
    return int(bf16_encode(np.array([ffn.limit]))[0])


def alpha_fixed(ffn: FfnSpec) -> int:
    """Return the sigmoid's factor of the clamped SwiGLU with 16 fraction bits."""
    return round(ffn.alpha * (1 << ALPHA_BITS))


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


def activate(ffn: FfnSpec, gate: F32, up: F32 | None = None) -> Bits16:
    """Return the hidden activations as bf16 patterns from the fp32 sums before them.

    Both sums are rounded to bf16 first; the product of up, gate and its sigmoid is rounded once.

    Parameters
    ----------
    gate : sums of the gate matrix, or of the only matrix for ``relu``; any shape.
    up : sums of the up matrix, same shape.
    """
    g = bf16_encode(gate)
    if ffn.activation is Activation.RELU:
        nan = (g & 0x7FFF) > 0x7F80
        return np.where((g >> 15).astype(bool) & ~nan, 0, g).astype(np.uint16)
    assert up is not None
    u = bf16_encode(up)
    if ffn.activation is Activation.CLAMPED_SWIGLU:
        limit = limit_bf16(ffn)
        g = _clamp(g, limit, below=False)
        u = _plus_one(_clamp(u, limit, below=True))
        z = fixed_from_f32(bf16_decode(g))
        z = np.sign(z) * np.minimum((np.abs(z) * alpha_fixed(ffn)) >> ALPHA_BITS, (1 << 31) - 1)
    else:
        z = fixed_from_f32(bf16_decode(g))
    mantissa, shift = sigmoid(z)
    return scaled_product(g, u, mantissa, shift)


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
