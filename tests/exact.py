"""Rounding in exact arithmetic, with nothing shared with the golden model."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def floor_log2(value: Fraction) -> int:
    """Return the exponent of a positive number."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while Fraction(2) ** exponent > value:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    return exponent


def nearest(value: Fraction, fraction_bits: int) -> int:
    """Return the pattern of the float with 8 exponent bits nearest to ``value``, ties to even.

    Zero and what is below the normal range before rounding are +0; too large values are infinite.
    """
    sign = value < 0
    magnitude = abs(value)
    if magnitude == 0:
        return 0
    exponent = floor_log2(magnitude)
    if exponent < -126:
        return 0
    scaled = magnitude / Fraction(2) ** (exponent - fraction_bits)
    whole = scaled.numerator // scaled.denominator
    rest = scaled - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1):
        whole += 1
    # A carry runs from the fraction into the exponent by itself.
    bits = ((exponent + 127) << fraction_bits) + whole - (1 << fraction_bits)
    return min(bits, 255 << fraction_bits) | (sign << (fraction_bits + 8))


def nearest_f32(value: Fraction) -> int:
    """Return the fp32 pattern nearest to ``value``."""
    return nearest(value, 23)


def nearest_bf16(value: Fraction) -> int:
    """Return the bf16 pattern nearest to ``value``."""
    return nearest(value, 7)


def f32_of(pattern: int) -> float:
    """Return the value of an fp32 pattern."""
    return float(np.array([pattern], dtype=np.uint32).view(np.float32)[0])
