"""Elementary functions of the hardware: fixed point and small tables, bit for bit.

All arguments and results are integers in fixed point (int64 arrays); functions of a bf16 number take its
pattern. Tables have 256 entries with linear interpolation over 12 more bits, those of bf16 numbers 1024
over 13. The errors stated here are against the real function of the argument, measured over a dense grid of
fixed-point ones or over all bf16 numbers, and asserted by ``tests/test_functions.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from golden.formats import BF16_NAN, F32, Bits16

I64 = NDArray[np.int64]

# Fixed point used for logits and the arguments of exp and sigmoid: signed, 20 fraction bits, 32 bits.
FRACTION_BITS = 20
FIXED_MAX = (1 << 31) - 1
ONE = 1 << FRACTION_BITS
# Scores (sigmoid, exponentials): unsigned, 30 fraction bits, at most 1.0.
SCORE_BITS = 30
# Selection scores (score + bias): signed, 24 fraction bits; the bias saturates to 32 bits.
SELECT_BITS = 24
# The same where scores are softmax shares, about 2**-9 for 512 experts: biases up to 8.
SHARE_SELECT_BITS = 28
# Weight scale: unsigned, 14 fraction bits, 20 bits.
SCALE_BITS = 14

TABLE_BITS = 8
INTERPOLATION_BITS = FRACTION_BITS - TABLE_BITS
LOG2E = round(1.4426950408889634 * ONE)
# Beyond this argument exp(-d) is zero; 2**-MAX_SHIFT and smaller too.
EXP_ARG_BITS = 25
MAX_SHIFT = 31


def _table(values: NDArray[np.float64]) -> tuple[I64, I64]:
    """Base and (positive) descent of each segment of a falling function."""
    base = np.rint(values * ONE).astype(np.int64)
    return base[:-1], base[:-1] - base[1:]


_POINTS = np.arange((1 << TABLE_BITS) + 1) / (1 << TABLE_BITS)
EXP_BASE, EXP_DESCENT = _table(2.0**-_POINTS)
RECIPROCAL_BASE, RECIPROCAL_DESCENT = _table(1.0 / (1.0 + _POINTS))
# sqrt(log(1 + t) / t), which is 1 at 0.
RATIO_BASE, RATIO_DESCENT = _table(np.sqrt(np.append(1.0, np.log1p(_POINTS[1:]) / _POINTS[1:])))
# Rising functions, turned over: sqrt(1 + x) is 2 less the table, log2(1 + x) is 1 less twice the table.
ROOT_BASE, ROOT_DESCENT = _table(2.0 - np.sqrt(1.0 + _POINTS))
LOG_BASE, LOG_DESCENT = _table((1.0 - np.log2(1.0 + _POINTS)) / 2)
SQRT2 = round(1.4142135623730951 * ONE)
# What RATIO is at 1: sqrt(log(2)).
RATIO_OF_ONE = round(0.8325546111576977 * ONE)


def fixed_from_f32(values: F32) -> I64:
    """Truncate fp32 toward zero to 20 fraction bits, saturating to +-(2**31 - 1).

    NaN becomes the most negative value, so that a broken logit is chosen last.
    """
    nan = np.isnan(values)
    scaled = np.where(nan, -np.inf, values.astype(np.float64) * ONE)
    fixed: I64 = np.trunc(np.clip(scaled, -FIXED_MAX, FIXED_MAX)).astype(np.int64)
    return fixed


def _interpolate(base: I64, descent: I64, position: I64, bits: int = INTERPOLATION_BITS) -> I64:
    index = position >> bits
    fraction = position & ((1 << bits) - 1)
    value: I64 = base[index] - ((descent[index] * fraction) >> bits)
    return value


def exp_negative(d: I64) -> tuple[I64, I64]:
    """Return exp(-d) as ``(mantissa, shift)``: value ``mantissa * 2**-(20 + shift)``.

    ``d`` >= 0 has 20 fraction bits. The mantissa is in (0.5, 1] (20 fraction bits), or 0 where the
    result would need a shift beyond 31, from d = 22.18 on. Relative error below 8.1e-6 for d < 16 and
    9.6e-6 below 22.18; absolute error of the zeros below 2**-32.
    """
    too_large = d >= 1 << EXP_ARG_BITS
    power = (np.where(too_large, 0, d) * LOG2E) >> FRACTION_BITS
    shift = power >> FRACTION_BITS
    mantissa = _interpolate(EXP_BASE, EXP_DESCENT, power & (ONE - 1))
    zero = too_large | (shift > MAX_SHIFT)
    return np.where(zero, 0, mantissa), np.where(zero, 0, shift)


def reciprocal(m: I64) -> I64:
    """Return 1/m for m in [1, 2], both with 20 fraction bits; relative error below 5.0e-6."""
    two = m >= 2 * ONE
    result = _interpolate(RECIPROCAL_BASE, RECIPROCAL_DESCENT, np.where(two, 0, m - ONE))
    return np.where(two, ONE // 2, result)


def sigmoid(z: I64) -> tuple[I64, I64]:
    """Return sigmoid(z) as ``(mantissa, shift)``: value ``mantissa * 2**-(20 + shift)``.

    ``z`` is signed with 20 fraction bits. With t = exp(-abs(z)): 1 / (1 + t), times t for z < 0;
    so small values keep their relative precision. Absolute error below 5.9e-6, relative error below
    1.1e-5 down to z = -22.18; below that the result is 0, and from 22.18 on it is 1.
    """
    t, shift = exp_negative(np.abs(z))
    r = reciprocal(ONE + (t >> shift))
    negative = z < 0
    return np.where(negative, (t * r) >> FRACTION_BITS, r), np.where(negative, shift, 0)


def score_from(mantissa: I64, shift: I64) -> I64:
    """Return ``mantissa * 2**-(20 + shift)`` as a score of 30 fraction bits, truncated."""
    return (mantissa << (SCORE_BITS - FRACTION_BITS)) >> shift


def sqrt_softplus(z: I64) -> I64:
    """Return sqrt(log(1 + exp(z))) with 30 fraction bits, truncated; ``z`` is signed with 20.

    With h = exp(-abs(z) / 2), w = h sqrt(log(1 + h^2) / h^2) is the result for z < 0, and
    sqrt(z + w^2) from 0 on: small values keep their relative precision. Absolute error below 2.9e-6 for
    z < 0, relative error below 1.7e-5 down to z = -20 and below 3.0e-6 from 0 on; below -41.59 it is 0.
    """
    mantissa, shift = exp_negative(np.abs(z) >> 1)
    square = ((mantissa * mantissa) >> FRACTION_BITS) >> np.minimum(2 * shift, 62)
    one = square >= ONE
    ratio = np.where(one, RATIO_OF_ONE, _interpolate(RATIO_BASE, RATIO_DESCENT, np.where(one, 0, square)))
    small = (mantissa * ratio) >> FRACTION_BITS
    value = np.maximum(z, 0) + (((small >> shift) * (small >> shift)) >> FRACTION_BITS)
    return np.where(z < 0, score_from(small, shift), square_root(np.maximum(value, 1)))


def square_root(value: I64) -> I64:
    """Return the square root of positive values of 20 fraction bits, with 30; relative error below 3.0e-6."""
    position, mantissa = normalised(value)
    root = 2 * ONE - _interpolate(ROOT_BASE, ROOT_DESCENT, mantissa - ONE)
    # Half of an odd exponent is a whole one and the root of 2.
    exponent = position - FRACTION_BITS
    root = np.where((exponent & 1) == 1, (root * SQRT2) >> FRACTION_BITS, root)
    up = SCORE_BITS - FRACTION_BITS + (exponent >> 1)
    result: I64 = (root << np.maximum(up, 0)) >> np.maximum(-up, 0)
    return result


def normalised(value: I64) -> tuple[I64, I64]:
    """Return each integer's leading position and its mantissa in [1, 2) of 20 fraction bits, truncated."""
    position = floor_log2(value)
    down = np.maximum(position - FRACTION_BITS, 0)
    return position, (value >> down) << np.maximum(FRACTION_BITS - position, 0)


def log2_fixed(value: I64) -> I64:
    """Return log2 of positive integers with 20 fraction bits; absolute error below 6.7e-6."""
    position, mantissa = normalised(value)
    rest = _interpolate(LOG_BASE, LOG_DESCENT, np.maximum(mantissa - ONE, 0))
    return (position << FRACTION_BITS) + ONE - 2 * rest


def exp2_negative(power: I64) -> tuple[I64, I64]:
    """Return 2**-power as :func:`exp_negative` does; ``power`` >= 0 has 20 fraction bits."""
    zero = power >= (MAX_SHIFT + 1) << FRACTION_BITS
    mantissa = _interpolate(EXP_BASE, EXP_DESCENT, power & (ONE - 1))
    return np.where(zero, 0, mantissa), np.where(zero, 0, power >> FRACTION_BITS)


def order_fixed(order: float) -> tuple[int, int]:
    """Return a norm's order and its inverse, each with 20 fraction bits."""
    return round(order * ONE), round(ONE / order)


def norm(values: I64, order: float) -> I64:
    """Return the p-norm of each row of integers >= 0, truncated; relative error below 1.7e-5 from 2**20 on.

    From logarithms: values are divided by the largest before their powers are added.
    """
    power, root = order_fixed(order)
    present = values > 0
    logs = np.where(present, log2_fixed(np.maximum(values, 1)), 0)
    largest = logs.max(axis=1)
    below = ((largest[:, None] - logs) * power) >> FRACTION_BITS
    total = np.where(present, score_from(*exp2_negative(below)), 0).sum(axis=1)
    over = log2_fixed(np.maximum(total, 1 << SCORE_BITS)) - (SCORE_BITS << FRACTION_BITS)
    log = largest + ((over * root) >> FRACTION_BITS)
    # 2**log from the falling table: a whole power of two above it, and what that is too much.
    whole = -((-log) >> FRACTION_BITS)
    mantissa = _interpolate(EXP_BASE, EXP_DESCENT, (whole << FRACTION_BITS) - log)
    up = np.maximum(whole - FRACTION_BITS, 0)
    result = (mantissa << up) >> np.maximum(FRACTION_BITS - whole, 0)
    return np.where(present.any(axis=1), result, 0)


def floor_log2(value: I64) -> I64:
    """Return the position of the leading one of each positive integer below 2**62; 0 for 0."""
    result = np.zeros_like(value)
    rest = value.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= 1 << step
        result = np.where(high, result + step, result)
        rest = np.where(high, rest >> step, rest)
    return result


def bf16_from_integer(sign: I64, magnitude: I64, power: I64) -> Bits16:
    """Round ``(-1)**sign * magnitude * 2**power`` to a bf16 pattern, to nearest even.

    A magnitude of zero and results below the normal range before rounding are +0; too large
    results are infinite. ``magnitude`` is below 2**62.
    """
    position = floor_log2(magnitude)
    exponent = position + power + 127
    # 8 significant bits, then rounding by the bits below.
    left = np.maximum(7 - position, 0)
    right = np.maximum(position - 7, 0)
    kept = np.where(position > 7, magnitude >> right, magnitude << left)
    rest = magnitude - (kept << right)
    half = (np.int64(1) << right) >> 1
    up = (position > 7) & ((rest > half) | ((rest == half) & ((kept & 1) == 1)))
    kept = kept + up
    carried = kept == 256
    exponent_out = exponent + carried
    bits = (exponent_out << 7) | (np.where(carried, 128, kept) & 0x7F)
    bits = np.where(exponent_out >= 255, 0x7F80, bits)
    zero = (magnitude == 0) | (exponent < 1)
    return np.where(zero, 0, bits | (sign << 15)).astype(np.uint16)


def fields(bits: Bits16) -> tuple[I64, I64, I64]:
    """Return sign, biased exponent and 8-bit significand of bf16 patterns; 0 for zero and subnormal."""
    wide = bits.astype(np.int64)
    exponent = (wide >> 7) & 0xFF
    return wide >> 15, exponent, np.where(exponent == 0, 0, (wide & 0x7F) | 0x80)


def is_nan(bits: Bits16) -> NDArray[np.bool_]:
    """Return which bf16 patterns are NaN."""
    return (bits & 0x7FFF) > 0x7F80


def scaled_product(a: Bits16, b: Bits16, mantissa: I64, shift: I64) -> Bits16:
    """Return ``a * b * mantissa * 2**-(20 + shift)`` rounded once to bf16; a, b bf16 patterns.

    NaN propagates; infinity times zero (of any factor) is NaN.
    """
    sign_a, exponent_a, significand_a = fields(a)
    sign_b, exponent_b, significand_b = fields(b)
    sign = sign_a ^ sign_b
    magnitude = significand_a * significand_b * mantissa
    finite = bf16_from_integer(
        sign,
        np.where((exponent_a == 255) | (exponent_b == 255), 0, magnitude),
        exponent_a + exponent_b - 2 * 134 - FRACTION_BITS - shift,
    )
    infinite = (exponent_a == 255) | (exponent_b == 255)
    nan = is_nan(a) | is_nan(b) | (infinite & (magnitude == 0))
    out = np.where(infinite, 0x7F80 | (sign << 15), finite)
    return np.where(nan, BF16_NAN, out).astype(np.uint16)


# Functions of a bf16 number x, for abs(x) < 2**NEAR_BITS in tables over 20 fraction bits.
NEAR_BITS = 3
NEAR_TABLE_BITS = 10
NEAR_INTERPOLATION_BITS = NEAR_BITS + FRACTION_BITS - NEAR_TABLE_BITS
FAR_EXPONENT = 127 + NEAR_BITS
"""Biased exponent from which on a number is not near."""
# abs(x) = significand * 2**(exponent - BF16_UNIT).
BF16_UNIT = 127 + 7
SQUARE_BITS = 16
"""Fraction bits of the square in the argument of :func:`gelu_tanh_argument`."""
CUBIC_BITS = 24
GELU_LINEAR = round(2 * math.sqrt(2 / math.pi) * ONE)
GELU_CUBIC = round(2 * math.sqrt(2 / math.pi) * 0.044715 * (1 << CUBIC_BITS))

_NEAR_POINTS = np.arange((1 << NEAR_TABLE_BITS) + 1) / (1 << (NEAR_TABLE_BITS - NEAR_BITS))
# 2 Phi(-d) exp(d**2 / 2): falls from 1 as slowly as 1 / d.
TAIL_BASE, TAIL_DESCENT = _table(
    np.array([math.erfc(d / math.sqrt(2)) * math.exp(d * d / 2) for d in _NEAR_POINTS])
)
TANH_BASE, TANH_DESCENT = _table(np.array([math.tanh(d) / d if d else 1.0 for d in _NEAR_POINTS]))


def _shifted(value: I64, left: I64) -> I64:
    """Return ``value * 2**left``, truncated; ``value`` is below 2**31, ``left`` below 32."""
    shifted: I64 = (value << np.maximum(left, 0)) >> np.clip(-left, 0, 63)
    return shifted


def normal_cdf(x: Bits16) -> tuple[I64, I64]:
    """Return the normal distribution's Phi(x) as ``(mantissa, shift)``: ``mantissa * 2**-(20 + shift)``.

    With d = abs(x), Phi(-d) is half of exp(-d**2 / 2) times a table; so small values keep their relative
    precision. Absolute error below 5.3e-6, relative error below 1.1e-5 down to x = -6.66; below that the
    result is 0, and from 6.66 on it is 1. NaN gives any value.
    """
    sign, exponent, significand = fields(x)
    far = exponent >= FAR_EXPONENT
    d = np.where(far, 0, _shifted(significand, exponent - BF16_UNIT + FRACTION_BITS))
    half_square = _shifted(significand**2, np.where(far, 0, 2 * (exponent - BF16_UNIT) - 1 + FRACTION_BITS))
    t, shift = exp_negative(np.where(far, 1 << EXP_ARG_BITS, half_square))
    tail = (t * _interpolate(TAIL_BASE, TAIL_DESCENT, d, NEAR_INTERPOLATION_BITS)) >> FRACTION_BITS
    negative = sign == 1
    return np.where(negative, tail, ONE - (tail >> (shift + 1))), np.where(negative, shift + 1, 0)


def gelu_tanh_argument(x: Bits16) -> I64:
    """Return the z for which ``x sigmoid(z)`` is GELU's approximation by tanh: signed, 20 fraction bits.

    ``z = 2 sqrt(2 / pi) (x + 0.044715 x**3)``, since (1 + tanh(y)) / 2 is sigmoid(2 y). The largest
    magnitude from abs(x) = 8 on. Error of the sigmoid of z below 5.7e-6 absolute and, down to z = -22,
    1.4e-5 relative.
    """
    sign, exponent, significand = fields(x)
    far = exponent >= FAR_EXPONENT
    square = _shifted(significand**2, np.where(far, 0, 2 * (exponent - BF16_UNIT) + SQUARE_BITS))
    factor = GELU_LINEAR + ((square * GELU_CUBIC) >> (SQUARE_BITS + CUBIC_BITS - FRACTION_BITS))
    z = np.where(far, FIXED_MAX, _shifted(significand * factor, np.where(far, 0, exponent - BF16_UNIT)))
    return np.where(sign == 1, -z, z)


def tanh_ratio(x: Bits16) -> I64:
    """Return tanh(x) / x, 20 fraction bits, for abs(x) < 8; from there on 1 instead.

    Relative error below 5.2e-6; from 8 on tanh(x) is 1 within 2.3e-7.
    """
    _, exponent, significand = fields(x)
    far = exponent >= FAR_EXPONENT
    d = np.where(far, 0, _shifted(significand, exponent - BF16_UNIT + FRACTION_BITS))
    return np.where(far, ONE, _interpolate(TANH_BASE, TANH_DESCENT, d, NEAR_INTERPOLATION_BITS))
