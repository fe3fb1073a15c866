"""Numbers whose last bits show: sums that take each other back, ties, near ties, limits of the formats.

A result of 8 bits hides most of a sum of 24, a selection all of it that does not decide. Here large products
cancel and what is left of the sum's low places is the result; all are bf16 patterns (uint16).
"""

from __future__ import annotations

import numpy as np

from golden.formats import BF16_BIAS, BF16_ONE, Bits16
from golden.functions import floor_log2
from tests.bench.scenarios import EXTREMES

SIGN = 0x8000
FRACTIONS = np.array([0x00, 0x01, 0x02, 0x3F, 0x40, 0x41, 0x7E, 0x7F], dtype=np.int64)
"""Fractions of significands next to a power of two, next to one and a half, next to the next power."""


def exponents(bits: Bits16) -> np.ndarray:
    """Return the biased exponents of patterns, int64."""
    return (np.asarray(bits, dtype=np.int64) >> 7) & 0xFF


def patterns(rng: np.random.Generator, exponent: np.ndarray) -> Bits16:
    """Return numbers of these biased exponents, cut to normal ones; signs and fractions are drawn."""
    shape = np.shape(exponent)
    fraction = np.where(rng.random(shape) < 0.5, rng.choice(FRACTIONS, shape), rng.integers(0, 128, shape))
    sign = rng.integers(0, 2, shape) << 15
    return (sign | np.clip(exponent, 1, 254) << 7 | fraction).astype(np.uint16)


def scaled(bits: Bits16, places: np.ndarray | int) -> Bits16:
    """Return normal numbers times powers of two, cut to the normal range."""
    exponent = np.clip(exponents(bits) + places, 1, 254)
    return ((np.asarray(bits, dtype=np.int64) & 0x807F) | exponent << 7).astype(np.uint16)


def near_one(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return numbers from 2^-4 to 2^4."""
    return patterns(rng, rng.integers(BF16_BIAS - 4, BF16_BIAS + 4, shape))


def any_size(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return normal numbers of any exponent, some of them zeros, infinities, NaN, subnormals."""
    numbers = patterns(rng, rng.integers(1, 255, shape))
    return np.where(rng.random(shape) < 0.1, rng.choice(EXTREMES, shape), numbers)


def companions(rng: np.random.Generator, x: Bits16, count: int, most: int = 8) -> Bits16:
    """Return ``(count, n)`` multiples of ``x`` by powers of two of either sign; the first is ``x`` itself."""
    places = rng.integers(-most, most + 1, count)
    places[0] = 0
    signs = rng.integers(0, 2, count).astype(np.uint16) << 15
    signs[0] = 0
    return scaled(x, places[:, None]) ^ signs[:, None].astype(np.uint16)


def cancelling(
    rng: np.random.Generator, x: Bits16, rows: int, *, top: int = 0, below: int = 32, pairs: int | None = None
) -> Bits16:
    """Return ``(rows, n)`` weights, most of whose products with the normal numbers ``x`` are taken back.

    Two products ``x_i w_i`` and ``x_j w_j`` are equal but for the sign where ``w_i = x_j`` and
    ``w_j = -x_i``, whatever ``x`` is; places are chosen at random, in one burst or in two. Those that are
    left alone are up to ``below`` places smaller, some pairs differ in the last place of a weight.

    Parameters
    ----------
    top : exponent of two of the large products, about.
    pairs : how many there are; at random, but at least one number is left alone.
    """
    count = len(x)
    out = np.zeros((rows, count), dtype=np.uint16)
    size = exponents(x) - BF16_BIAS
    for row in out:
        order = rng.permutation(count)
        taken = int(rng.integers(1, max(2, count // 2))) if pairs is None else pairs
        for i, j in order[: 2 * taken].reshape(-1, 2):
            places = top - int(size[i] + size[j]) - int(rng.integers(0, 4))
            row[i], row[j] = scaled(x[j], places), scaled(x[i], places) ^ SIGN
            if rng.random() < 0.3:
                row[j] ^= 1
        alone = order[2 * taken :]
        wanted = top - rng.integers(0, below + 1, len(alone))
        row[alone] = patterns(rng, BF16_BIAS + wanted - size[alone])
        if rng.random() < 0.5:
            row ^= SIGN
    return out


def one_of(rng: np.random.Generator, rows: int, count: int, values: Bits16) -> Bits16:
    """Return ``(rows, count)`` weights, one in each row, at random places."""
    out = np.zeros((rows, count), dtype=np.uint16)
    out[np.arange(rows), rng.integers(0, count, rows)] = values
    return out


def ones(rows: int, count: int) -> Bits16:
    """Return ``(rows, count)`` weights that pass one input on in each row, in turn."""
    out = np.zeros((rows, count), dtype=np.uint16)
    out[np.arange(rows), np.arange(rows) % count] = BF16_ONE
    return out


def tied_inputs(rng: np.random.Generator, count: int, cols: int) -> Bits16:
    """Return inputs for :func:`tied`: powers of two in the first burst, the third repeats the second."""
    x = patterns(rng, np.full(count, BF16_BIAS))
    x[:cols] &= 0xFF80
    x[cols:] |= 0x60
    x[2 * cols :] = x[cols : count - cols][: max(0, count - 2 * cols)]
    return x


def tied(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights whose sums with these inputs are rounded at, or next to, a tie.

    The first burst of ``cols`` leaves a small power of two; the second is a sum of more bits than are kept,
    whose large products the third takes back, so that the rounding is what is left.
    """
    count = len(x)
    w = np.zeros((rows, count), dtype=np.uint16)
    second, third = np.arange(cols, min(2 * cols, count)), np.arange(2 * cols, min(3 * cols, count))
    small = scaled(np.full(rows, BF16_ONE, dtype=np.uint16), top - rng.integers(20, 40, rows))
    w[:, int(rng.integers(cols))] = small | (rng.integers(0, 2, rows) << 15).astype(np.uint16)
    if len(second):
        large = patterns(rng, np.full((rows, len(second)), BF16_BIAS + top)) & ~np.uint16(SIGN)
        w[:, second] = large | (x[second] & SIGN) | 0x60
        w[:, third] = w[:, second[: len(third)]] ^ SIGN
        w[:, second[-1]] = patterns(rng, BF16_BIAS + top - rng.integers(4, 9, rows))
        w[:, third[len(second) - 1 :]] = 0
    return w ^ (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)


def tops(rng: np.random.Generator) -> int:
    """Return an exponent of two for :func:`cancelling`: near 1, or next to a limit."""
    near = int(rng.integers(-8, 14))
    return int(rng.choice([near, near, int(rng.integers(-126, -90)), int(rng.integers(112, 128))]))


def with_two_infinities(rng: np.random.Generator, values: Bits16) -> Bits16:
    """Return rows of which two places, the same ones in all, are infinities."""
    out = values.copy()
    for place in rng.permutation(values.shape[1])[:2]:
        out[:, place] = 0x7F80 | rng.integers(0, 2, len(out)) << 15
    return out


def infinity_and_its_number(rng: np.random.Generator, count: int, rows: int) -> tuple[Bits16, Bits16]:
    """Return inputs and ``(rows, count)`` weights: an infinite product, and one of 2^128 of the other sign.

    The pattern of infinity would be that number if it were one; nothing else is added.
    """
    half = (BF16_BIAS + 64) << 7
    x = np.full(count, half, dtype=np.uint16)
    w = np.zeros((rows, count), dtype=np.uint16)
    for row in w:
        infinite, number = rng.permutation(count)[:2]
        sign = int(rng.integers(2)) << 15
        row[infinite], row[number] = 0x7F80 | sign, half | (sign ^ SIGN)
    return x, w


def from_tie(product: np.ndarray) -> np.ndarray:
    """Return how far integers are from the middle between two that have 8 bits, in their last places."""
    below = np.maximum(floor_log2(np.maximum(product, 1)) - 7, 1)
    return np.abs((product & ((1 << below) - 1)) / (1 << below) - 0.5)


def with_extreme(rng: np.random.Generator, values: Bits16) -> Bits16:
    """Return the same with one special value or limit at a random place."""
    out = values.copy()
    out.reshape(-1)[rng.integers(out.size)] = rng.choice(EXTREMES)
    return out
