"""Number formats and the arithmetic of the hardware, bit for bit.

bf16 values travel as ``uint16`` patterns, fp32 accumulators as ``float32`` arrays.

* Subnormal inputs and results are zero; a zero result is +0; the one NaN is 0x7FC0 (bf16) or
  0x7FC00000 (fp32). Infinities behave as in IEEE 754.
* A burst of up to ``cols`` bf16 products is exact; the products are aligned to the largest
  exponent among them and added as integers with ``GUARD_BITS`` bits below the last place of the
  largest; bits below those are truncated in magnitude, before the sign (:func:`burst_sum`).
* ``acc' = RNE(acc + S)`` with S the exact aligned sum: one rounding per burst (:func:`accumulate`).
* A dot product takes its bursts in ascending index order (:func:`dot`).

Error against an exact dot product of n elements in bursts of ``cols``: each burst loses less than
``cols * 2**-(14 + GUARD_BITS)`` of its largest product's power of two, and each of the
``ceil(n / cols)`` additions at most half a unit in the last place of the fp32 accumulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits16 = NDArray[np.uint16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

GUARD_BITS = 8
BF16_NAN = 0x7FC0
BF16_ONE = 0x3F80
F32_NAN = 0x7FC00000
F32_MIN_NORMAL = 2.0**-126

# A burst product of two 8-bit significands has 14 fraction bits; exponents are biased by 127 each.
PRODUCT_FRACTION_BITS = 14
BF16_BIAS = 127
# Bound on temporaries of :func:`dot`, in elements.
CHUNK_ELEMENTS = 1 << 21
ENCODED_AT_ONCE = 1 << 16

# Where exponents are this near 0, fp32 holds products and aligned products exactly (:func:`_dot_quick`).
QUICK_EXPONENT = 50
# A burst of at most so many aligned products of 24 bits has a sum of 32 bits.
QUICK_COLS = 128
# Products handled together: they stay in a core's cache.
QUICK_PRODUCTS, QUICK_INNER = 1 << 16, 1 << 9


def bf16_encode(values: NDArray[Any]) -> Bits16:
    """Round float values to bf16 patterns (to nearest even, subnormals to +0), any shape.

    Input is taken as float32 first; a float64 would round twice.
    """
    given = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty(given.shape, dtype=np.uint16)
    patterns, rounded = given.reshape(-1).view(np.uint32), out.reshape(-1)
    # In pieces that stay in the cache: 20 times as fast as whole matrices.
    for start in range(0, len(patterns), ENCODED_AT_ONCE):
        bits = patterns[start : start + ENCODED_AT_ONCE]
        part = rounded[start : start + ENCODED_AT_ONCE]
        magnitude = bits & 0x7FFFFFFF
        # Only a NaN may carry out of the top bit, and it gets its own pattern.
        part[:] = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        part[magnitude < 0x00800000] = 0
        part[magnitude > 0x7F800000] = BF16_NAN
    return out


def bf16_decode(bits: NDArray[Any]) -> F32:
    """Return the float32 values of bf16 patterns; subnormals decode to zero."""
    bits = np.asarray(bits, dtype=np.uint16)
    flushed = np.where((bits & 0x7F80) == 0, bits & 0x8000, bits)
    return (flushed.astype(np.uint32) << 16).view(np.float32)


def f32_flush(values: NDArray[Any]) -> F32:
    """Return float32 values with subnormals and -0 as +0 and NaNs canonical."""
    out = np.array(values, dtype=np.float32)
    out[np.abs(out) < F32_MIN_NORMAL] = 0.0
    out.view(np.uint32)[np.isnan(out)] = F32_NAN
    return out


def _significand(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Signed 8-bit significands of bf16 patterns; 0 for zero and subnormal."""
    magnitude = np.where((bits & 0x7F80) == 0, 0, (bits & 0x7F) | 0x80).astype(np.int64)
    return np.where(bits >> 15, -magnitude, magnitude)


def burst_sum(x: Bits16, w: Bits16) -> F64:
    """Return the aligned sum of products over the last axis, exactly, as float64.

    Parameters
    ----------
    x, w : (..., cols) bf16 patterns, broadcast against each other.
    """
    x, w = np.broadcast_arrays(x, w)
    product = _significand(x) * _significand(w)
    exponent = ((x >> 7) & 0xFF).astype(np.int64) + ((w >> 7) & 0xFF)
    largest = np.where(product != 0, exponent, 0).max(axis=-1, keepdims=True)
    shift = np.minimum(largest - exponent, 63)
    # A zero product may have the larger exponent: its shift is negative, its value is zero anyhow.
    aligned = (np.abs(product) << GUARD_BITS) >> np.maximum(shift, 0)
    total = (np.sign(product) * aligned).sum(axis=-1)
    power = largest[..., 0] - 2 * BF16_BIAS - PRODUCT_FRACTION_BITS - GUARD_BITS
    out: F64 = np.asarray(np.ldexp(total.astype(np.float64), power))
    special = (((x & 0x7F80) == 0x7F80) | ((w & 0x7F80) == 0x7F80)).any(axis=-1)
    if special.any():
        with np.errstate(invalid="ignore"):
            exact = bf16_decode(x[special]).astype(np.float64) * bf16_decode(w[special])
            out[special] = np.where(np.isfinite(exact), 0.0, exact).sum(axis=-1)
    return out


def accumulate(acc: F32, addend: F64) -> F32:
    """Return ``RNE(acc + addend)`` in fp32 with a single rounding.

    The float64 sum is first made odd in its last place where it is inexact; rounding that to fp32
    equals rounding the exact sum, because 53 >= 24 + 2 (Boldo and Melquiond, IEEE TC 2008).
    A result below the normal range *before* rounding is +0.
    """
    a, b = np.broadcast_arrays(acc.astype(np.float64), addend)
    with np.errstate(invalid="ignore", over="ignore"):
        total = a + b
        b_part = total - a
        error = (a - (total - b_part)) + (b - b_part)
        # Nearly always nothing is lost. (That of an infinity or a NaN is NaN.)
        some_lost = bool(error.any())
        if some_lost:
            bits = total.view(np.int64)
            inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
            away = (error > 0) == (total > 0)
            total = (bits + np.where(inexact, np.where(away, 1, -1), 0)).view(np.float64)
        rounded: F32 = total.astype(np.float32)
    rounded[np.abs(total) < F32_MIN_NORMAL] = 0.0
    if some_lost:
        rounded.view(np.uint32)[np.isnan(total)] = F32_NAN
    return rounded


def bf16_product(x: Bits16, w: Bits16) -> Bits16:
    """Return ``x * w`` rounded once to bf16, elementwise; patterns, broadcast against each other."""
    exact = accumulate(np.zeros((), dtype=np.float32), burst_sum(x[..., None], w[..., None]))
    return bf16_encode(exact)


def dot(x: Bits16, w: Bits16, cols: int, initial: F32 | None = None) -> F32:
    """Return ``x @ w.T`` as the hardware computes it, in bursts of ``cols``.

    Parameters
    ----------
    x : (tokens, n) bf16 patterns.
    w : (rows, n) bf16 patterns.
    cols : products per burst.
    initial : (rows,) float32 starting values of the accumulators, or None for zero.

    Returns
    -------
    (tokens, rows) float32.
    """
    tokens, rows, length = len(x), len(w), x.shape[1]
    if cols <= QUICK_COLS and _quick(x) and _quick(w):
        before = np.zeros(rows, dtype=np.float32) if initial is None else initial
        if tokens < rows:
            return _dot_quick(x, w, cols, np.broadcast_to(before, (tokens, rows)))
        out = _dot_quick(w, x, cols, np.broadcast_to(before[:, None], (rows, tokens)))
        return np.ascontiguousarray(out.T)
    out = np.zeros((tokens, rows), dtype=np.float32)
    if initial is not None:
        out[:] = initial
    rows_at_once = max(1, CHUNK_ELEMENTS // max(1, tokens * cols))
    for row in range(0, rows, rows_at_once):
        acc = out[:, row : row + rows_at_once]
        for start in range(0, length, cols):
            chunk = slice(start, start + cols)
            acc = accumulate(acc, burst_sum(x[:, None, chunk], w[None, row : row + rows_at_once, chunk]))
        out[:, row : row + rows_at_once] = acc
    return out


def _quick(bits: Bits16) -> bool:
    """Whether :func:`_dot_quick` may take these values."""
    exponent = bits & 0x7F80
    near = exponent - np.uint16((BF16_BIAS - QUICK_EXPONENT) << 7) <= np.uint16(2 * QUICK_EXPONENT << 7)
    return bool((near | (exponent == 0)).all())


def _dot_quick(outer: Bits16, inner: Bits16, cols: int, initial: F32) -> F32:
    """Return ``(outer, inner)`` dot products as :func:`dot` does, without integers of 64 bits.

    A product of two bf16 values is exact in fp32, and so is a product times a power of two; a conversion to
    integer truncates the magnitude. Exponents are those that :func:`_quick` allows.
    """
    out = np.array(initial, dtype=np.float32, order="C")
    (outer_values, outer_exponents), (inner_values, inner_exponents) = _factors(outer), _factors(inner)
    step = max(1, min(len(inner), QUICK_INNER))
    outer_step = min(max(1, QUICK_PRODUCTS // (cols * step)), max(1, len(outer)))
    # Work space, taken once: fresh memory for each burst would cost as much as the arithmetic.
    shape = (min(cols, outer.shape[1]), outer_step, step)
    spaces = [np.empty(shape, dtype) for dtype in (np.int16, np.float32, np.int32)]
    for i in range(0, len(inner), step):
        some = slice(i, i + step)
        for o in range(0, len(outer), outer_step):
            part = slice(o, o + outer_step)
            acc = out[part, some]
            for start in range(0, outer.shape[1], cols):
                chunk = slice(start, start + cols)
                used = (slice(min(cols, outer.shape[1] - start)), slice(acc.shape[0]), slice(acc.shape[1]))
                exponents, products, aligned = (space[used] for space in spaces)
                np.add(outer_exponents[chunk, part, None], inner_exponents[chunk, None, some], out=exponents)
                largest = np.maximum.reduce(exponents, axis=0).astype(np.int32)
                # All products of a burst may be zero; then the scale does not matter.
                np.maximum(largest, -2 * QUICK_EXPONENT, out=largest)
                power = PRODUCT_FRACTION_BITS + GUARD_BITS - largest
                scale = ((power + BF16_BIAS) << 23).view(np.float32)
                np.multiply(outer_values[chunk, part, None], inner_values[chunk, None, some], out=products)
                products *= scale
                np.copyto(aligned, products, casting="unsafe")
                total = aligned[0]
                for product in aligned[1:]:
                    total += product
                acc = accumulate(acc, total / scale.astype(np.float64))
            out[part, some] = acc
    return out


def _factors(bits: Bits16) -> tuple[F32, NDArray[np.int16]]:
    """Return values and exponents of ``(n, length)`` patterns as ``(length, n)``; a zero's is far below."""
    exponent = ((bits >> 7) & 0xFF).astype(np.int16)
    unbiased = np.where(exponent == 0, np.int16(-4 * BF16_BIAS), exponent - np.int16(BF16_BIAS))
    return np.ascontiguousarray(bf16_decode(bits).T), np.ascontiguousarray(unbiased.T)
