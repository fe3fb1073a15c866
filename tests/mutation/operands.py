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

    The first input makes a small number of few bits, or with the second one a number of two, as far apart as
    fp32 has places: the upper one is about half of a last place, the lower one is cut off. The second burst
    of ``cols`` has more bits than fit, whose large products the third takes back, so that the rounding is
    what is left.
    """
    count = len(x)
    w = np.zeros((rows, count), dtype=np.uint16)
    second, third = np.arange(cols, min(2 * cols, count)), np.arange(2 * cols, min(3 * cols, count))
    small = np.where(rng.random(rows) < 0.5, 0, rng.choice(FRACTIONS, rows))
    small = small | rng.integers(0, 2, rows) << 15 | BF16_ONE
    below = rng.integers(6, 40, rows)
    apart = rng.random(rows) < 0.5
    below[apart] = rng.integers(16, 25, rows)[apart]
    small[apart] &= 0xFF80
    w[:, 0] = scaled(small.astype(np.uint16), top - below)
    lower = scaled(ones(rows, 1)[:, 0], top - below - rng.integers(1, 24, rows))
    w[apart, 1] = lower[apart]
    large = min(len(second) - 1, len(third)) if len(third) else len(second) - 1
    if large > 0:
        factors = patterns(rng, np.full((rows, large), BF16_BIAS + top)) & ~np.uint16(SIGN)
        w[:, second[:large]] = factors | (x[second[:large]] & SIGN) | 0x60
        w[:, third[:large]] = w[:, second[: len(third[:large])]] ^ SIGN
        w[:, second[large]] = patterns(rng, BF16_BIAS + top - rng.integers(4, 9, rows))
    return w ^ (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)


def tied_by_burst_inputs(rng: np.random.Generator, count: int, cols: int) -> Bits16:
    """Return inputs for :func:`tied_by_burst`: powers of two but for the first, which the third repeats."""
    x = patterns(rng, np.full(count, BF16_BIAS))
    x[1:] &= 0xFF80
    x[2 * cols : 2 * cols + 2] = x[[0, cols]][: max(0, count - 2 * cols)]
    return x


def tied_by_burst(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights whose second bursts, the smaller operands, make ties of the sum before.

    The second burst is a number that fits beside the first one's, half of a last place, and one power of two
    below that, around where the adder's places end: the last input of the burst. The third burst takes the
    two numbers back, so that the rounding is what is left.
    """
    w = np.zeros((rows, len(x)), dtype=np.uint16)
    leading = patterns(rng, np.full(rows, BF16_BIAS))
    # The leading place of the first product of all, which has 16 bits.
    carry = (128 + (x[0] & 0x7F).astype(np.int64)) * (128 + (leading & 0x7F).astype(np.int64)) >> 15
    below = rng.integers(1, 24, rows)
    places = top + carry
    fitting = patterns(rng, BF16_BIAS + places - below)
    fitting &= (0xFFFF << np.maximum(0, below - 16)).astype(np.uint16)
    w[:, 0] = scaled(leading, top)
    w[:, cols] = np.where(rng.random(rows) < 0.8, fitting, 0)
    w[:, 2 * cols : 2 * cols + 2] = w[:, [0, cols]][:, : max(0, len(x) - 2 * cols)] ^ SIGN
    half = np.where(rng.random(rows) < 0.8, 24, rng.integers(22, 28, rows))
    for column, place in ((cols + 1, half), (2 * cols - 1, rng.integers(25, 30, rows))):
        w[:, column] = rng.integers(0, 2, rows) << 15 | BF16_BIAS + places - place << 7
    return w ^ (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)


def tied_by_few(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return the weights of :func:`tied_by_burst` whose second bursts have their ones next to the tie alone.

    Below the half of a last place there is nothing, above it a number of two or three ones.
    """
    w = tied_by_burst(rng, x, rows, cols, top)
    w[:, 2 * cols - 1] = 0
    # From the half's exponent up: what is far above it has other loads.
    above = (rng.integers(1, 5, rows) << 7) + (rng.integers(0, 4, rows) << 5)
    w[:, cols] = (w[:, cols + 1] & 0x7F80) + above
    w[:, 2 * cols + 1 : 2 * cols + 2] = w[:, cols : cols + 1] ^ SIGN
    return w


LARGE = ((0x60, 0x40, 0x40, 4), (0x60, 0x50, 0x40, 5), (0x60, 0x60, 0x60, 4))
"""Fractions of three numbers whose sum times 1.75 is from 8 to 16, and how far below 1 its lowest bit is."""


def tied_by_last_place_inputs(rng: np.random.Generator, count: int, cols: int) -> Bits16:
    """Return inputs for :func:`tied_by_last_place`: powers of two, then 1.75, then the first one again."""
    x = patterns(rng, np.full(count, BF16_BIAS)) & 0xFF80
    x[cols : cols + 3] |= 0x60
    x[2 * cols : 2 * cols + 1] = x[:1]
    return x


def tied_by_last_place(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights whose second bursts make ties of the sum before but for their last place.

    Three large products have few bits, in the burst's upper places; that of the last of ``cols`` inputs, four
    at least, is its last place of all or next to it. Half a last place of the number before is the lowest bit
    of the large ones. The third burst takes that number back.
    """
    w = np.zeros((rows, len(x)), dtype=np.uint16)
    sign = rng.integers(0, 2, rows) << 15
    *fractions, lowest = np.array(LARGE)[rng.integers(0, len(LARGE), rows)].T
    for column, fraction in enumerate(fractions, start=cols):
        w[:, column] = sign ^ int(x[column] & SIGN) | BF16_BIAS + top << 7 | fraction
    small = BF16_BIAS + top - 22 + rng.integers(-1, 2, rows)
    w[:, 2 * cols - 1] = sign ^ int(x[2 * cols - 1] & SIGN) | small << 7
    w[:, 0] = rng.integers(0, 2, rows) << 15 | BF16_BIAS + top - lowest + 24 << 7
    w[:, 2 * cols : 2 * cols + 1] = w[:, :1] ^ SIGN
    return w


def tied_at_once_inputs(rng: np.random.Generator, count: int, cols: int) -> Bits16:
    """Return inputs for :func:`tied_at_once`: numbers from 1 to 2, other bursts repeat the first."""
    x = patterns(rng, np.full(count, BF16_BIAS)) & ~np.uint16(SIGN)
    x[0] = BF16_ONE
    return x[np.arange(count) % cols]


def tied_at_once(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights with a burst that has a place or two more than fp32, often a tie.

    Products of one sign are as large as each other, one is smaller so that its last places are the sum's.
    The next burst takes the large ones back: the small one and the rounding are left. Nothing comes before,
    or, of three bursts, a number whose exponent has one bit: a tie shows whether it counts.
    """
    w = np.zeros((rows, len(x)), dtype=np.uint16)
    large, small = np.arange(cols - 1), cols - 1
    w[:, large] = patterns(rng, np.full((rows, cols - 1), BF16_BIAS + top)) & ~np.uint16(SIGN)
    w[:, small] = patterns(rng, BF16_BIAS + top - rng.integers(7, 10, rows)) | 1
    back = large[large + cols < len(x)]
    w[:, back + cols] = w[:, back] ^ SIGN
    if len(x) >= 3 * cols:
        behind = rng.random(rows) < 0.5
        w[behind] = np.roll(w[behind], cols, axis=1)
        w[behind, 0] = patterns(rng, 1 << rng.integers(0, 7, rows))[behind]
    return w ^ (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)


def rounded_off_inputs(rng: np.random.Generator, count: int, cols: int) -> Bits16:
    """Return inputs for :func:`rounded_off`: large ones, a power of two; the second burst repeats them."""
    x = patterns(rng, np.full(count, BF16_BIAS)) | 0x60
    x[cols - 1] &= 0xFF80
    x[cols : 2 * cols] = x[:cols][: max(0, count - cols)]
    return x


def rounded_off(rng: np.random.Generator, x: Bits16, rows: int, cols: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights whose second bursts take the first ones back, which need over 24 bits.

    A burst's sum has up to two more, with so many large products of one sign; a small one fills its last
    places. What is left is what the rounding added or took, and nothing is above it.
    """
    w = np.zeros((rows, len(x)), dtype=np.uint16)
    large = patterns(rng, np.full((rows, cols - 1), BF16_BIAS + top)) & ~np.uint16(SIGN)
    large |= 0x60 | (x[: cols - 1] & SIGN)
    there = np.arange(cols - 1) < rng.integers(1, cols, (rows, 1))
    w[:, : cols - 1] = np.where(there, large, 0)
    w[:, cols - 1] = patterns(rng, BF16_BIAS + top - rng.integers(15, 24, rows))
    w[:, cols : 2 * cols] = w[:, :cols][:, : max(0, len(x) - cols)] ^ SIGN
    return w ^ (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)


def powers(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return powers of two from 2^-4 to 2^4, of either sign."""
    return near_one(rng, *shape) & 0xFF80


def sparse(rng: np.random.Generator, x: Bits16, rows: int, top: int = 0) -> Bits16:
    """Return ``(rows, n)`` weights whose products with powers of two are such, of up to three sizes.

    Sums on the way have few ones, far from each other, at places that differ by row; many are 0 in between.
    """
    shape = (rows, len(x))
    # As far apart as a sum has places; or so far that a burst whose large products cancel to 0 still has an
    # exponent above that of the sum before.
    sizes = top - rng.integers(0, rng.choice([28, 100], (rows, 1)), (rows, 3))
    sizes[:, 0] = top
    # Neighbours leave one of them.
    close = rng.random(rows) < 0.5
    sizes[close, 1] = top - 1
    wanted = np.take_along_axis(sizes, rng.integers(0, 3, shape), axis=1)
    signs = rng.integers(0, 2, shape) << 15
    w = signs | (BF16_BIAS + wanted - (exponents(x) - BF16_BIAS)) << 7
    return np.where(rng.random(shape) < rng.random((rows, 1)), 0, w).astype(np.uint16)


def left_over(
    rng: np.random.Generator, x: Bits16, cols: int, places: np.ndarray, top: int = 0
) -> tuple[Bits16, int]:
    """Return a row of weights for each of ``places``: one large product, taken back, and a small one.

    The small one is so many places below, and the only one of an input that is returned too. What is taken
    back comes in the first burst of ``cols``, too, or in the second: the sum of a burst or that of two has
    its leading place wherever it can be.
    """
    w = np.zeros((len(places), len(x)), dtype=np.uint16)
    size = exponents(x) - BF16_BIAS
    first, second = rng.permutation(cols), rng.permutation(np.arange(cols, min(2 * cols, len(x))))
    i, j = int(first[0]), int(first[1] if rng.random() < 0.4 else second[0])
    alone = int(first[2] if rng.random() < 0.5 else second[1])
    shift = top - int(size[i] + size[j])
    for row, place in zip(w, places, strict=True):
        row[i], row[j] = scaled(x[j], shift), scaled(x[i], shift) ^ SIGN
        # Its product is positive: an activation lets it pass.
        small = int(patterns(rng, np.array(BF16_BIAS + top - place - size[alone])))
        row[alone] = (small & 0x7FFF) | (int(x[alone]) & SIGN)
    return w, alone


def fading(x: Bits16, place: int, count: int) -> Bits16:
    """Return ``(count, n)`` tokens of which each has half as much as the one before at a place."""
    out = np.repeat(x[None], count, axis=0)
    out[:, place] = scaled(out[:, place], -np.arange(count))
    return out


def full(rng: np.random.Generator, *shape: int, top: int = 0) -> Bits16:
    """Return positive numbers just below ``2**(top + 1)``: sums of their products are the largest."""
    return (patterns(rng, np.full(shape, BF16_BIAS + top)) & ~np.uint16(SIGN)) | 0x70


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


def a_bit_from_special(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return numbers whose exponent is one bit away from 0, or from that of infinity; and zeros."""
    exponent = 1 << rng.integers(0, 8, shape)
    exponent = np.where(rng.random(shape) < 0.2, 255 ^ exponent, exponent)
    return np.where(rng.random(shape) < 0.05, 0, patterns(rng, exponent)).astype(np.uint16)


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
