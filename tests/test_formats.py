"""Number formats: every operation against exact arithmetic in Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import golden.formats
from golden.formats import (
    BF16_NAN,
    ENCODED_AT_ONCE,
    F32_NAN,
    GUARD_BITS,
    PRODUCT_FRACTION_BITS,
    QUICK_EXPONENT,
    accumulate,
    bf16_decode,
    bf16_encode,
    burst_sum,
    dot,
    f32_flush,
)
from tests.exact import f32_of, nearest_f32

ALL_BF16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def f32_bits(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).view(np.uint32)


def from_bits(*patterns: int) -> np.ndarray:
    return np.array(patterns, dtype=np.uint32).view(np.float32)


def bf16_numbers(rng, shape, spread: int = 6) -> np.ndarray:
    """Return bf16 patterns of normal numbers over ``2 * spread`` binary orders of magnitude."""
    return bf16_encode(rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape)))


# Encoding and decoding.


def test_bf16_decode_is_that_of_ml_dtypes_but_for_subnormals():
    theirs = ALL_BF16.view(ml_dtypes.bfloat16).astype(np.float32)
    ours = bf16_decode(ALL_BF16)
    subnormal = (ALL_BF16 & 0x7F80) == 0
    assert (ours[subnormal] == 0).all()
    assert np.array_equal(ours[~subnormal], theirs[~subnormal], equal_nan=True)


def test_bf16_encode_is_that_of_ml_dtypes_for_normal_numbers():
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    assert len(patterns) > 3 * ENCODED_AT_ONCE
    # Ties, and the values beside them, at every bf16 number.
    ties = (ALL_BF16.astype(np.uint32) << 16) | 0x8000
    patterns = np.concatenate([patterns, ties - 1, ties, ties + 1])
    normal = (patterns & 0x7F800000 != 0) & ~np.isnan(patterns.view(np.float32))
    values = patterns[normal].view(np.float32)
    theirs = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(bf16_encode(values), theirs)


@pytest.mark.parametrize(
    ("pattern", "encoded"),
    [
        (0x3F808000, 0x3F80),  # tie, down to even
        (0x3F818000, 0x3F82),  # tie, up to even
        (0x3F808001, 0x3F81),
        (0x3FFF8000, 0x4000),  # carry into the exponent
        (0x7F7F7FFF, 0x7F7F),  # largest that stays finite
        (0x7F7F8000, 0x7F80),  # overflow
        (0xFF7FFFFF, 0xFF80),
        (0x7F800000, 0x7F80),
        (0x7F800001, BF16_NAN),  # a NaN whose upper half is that of infinity
        (0xFFFFFFFF, BF16_NAN),
        (0x00000000, 0),
        (0x80000000, 0),  # -0 is +0
        (0x007FFFFF, 0),  # the largest subnormal is not rounded up to the smallest normal number
        (0x807FFFFF, 0),
        (0x00800000, 0x0080),
        (0x80800000, 0x8080),
    ],
)
def test_bf16_encode_corner(pattern, encoded):
    assert bf16_encode(from_bits(pattern))[0] == encoded


def test_bf16_round_trip():
    normal = ALL_BF16[(ALL_BF16 & 0x7F80 != 0) & ((ALL_BF16 & 0x7FFF) <= 0x7F80)]
    assert np.array_equal(bf16_encode(bf16_decode(normal)), normal)


def test_f32_flush():
    given = from_bits(0x00000001, 0x807FFFFF, 0x80000000, 0x00800000, 0xFFC12345, 0x7F800000, 0xFF800000)
    flushed = [0, 0, 0, 0x00800000, F32_NAN, 0x7F800000, 0xFF800000]
    assert f32_bits(f32_flush(given)).tolist() == flushed


# One rounding per addition.


def random_sums(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return accumulators and addends, with near cancellation, ties and distant exponents."""
    rng = np.random.default_rng(seed)
    acc = f32_flush((rng.standard_normal(count) * np.exp2(rng.integers(-30, 30, count))).astype(np.float32))
    addend = np.ldexp(rng.integers(-(1 << 28), 1 << 28, count).astype(float), rng.integers(-60, 40, count))
    part = count // 4
    near = 1 + 2.0 ** -rng.integers(20, 40, part)
    addend[:part] = -acc[:part].astype(float) * near
    # Half a unit in the last place, and something far below that decides.
    half = np.spacing(np.abs(acc[part : 2 * part])).astype(float) / 2
    sticky = rng.choice([-1, 0, 1], part) * np.ldexp(half, -rng.integers(20, 28, part))
    addend[part : 2 * part] = half + sticky
    # Around the smallest normal number.
    acc[-part:] *= np.float32(2.0**-60) * np.float32(2.0**-60)
    acc = f32_flush(acc)
    addend[-part:] = -acc[-part:].astype(float) + np.ldexp(rng.standard_normal(part), -126)
    return acc, addend


@pytest.mark.parametrize("seed", range(2))
def test_accumulate_rounds_the_exact_sum_once(seed):
    acc, addend = random_sums(seed, 4000)
    out = accumulate(acc, addend)
    for n, (a, s, got) in enumerate(zip(acc, addend, out, strict=True)):
        want = nearest_f32(Fraction(float(a)) + Fraction(float(s)))
        assert f32_bits(got) == want, f"seed {seed}, sum {n}: {a!r} + {s!r} = {got!r}, not {f32_of(want)!r}"


def test_accumulate_differs_from_a_float64_sum_that_is_cast():
    """Rounding twice is wrong: the float64 sum falls on a tie of fp32 that the exact sum is above."""
    acc = np.array([1.0], dtype=np.float32)
    addend = np.array([2.0**-24 + 2.0**-60])
    naive = (acc.astype(np.float64) + addend).astype(np.float32)
    assert naive[0] == 1.0
    assert accumulate(acc, addend)[0] == np.float32(1 + 2.0**-23)
    assert accumulate(-acc, -addend)[0] == -np.float32(1 + 2.0**-23)
    below = np.array([3 * 2.0**-24 - 2.0**-60])  # the other way: just below a tie that goes to even, up
    assert (acc.astype(np.float64) + below).astype(np.float32)[0] == np.float32(1 + 2.0**-22)
    assert accumulate(acc, below)[0] == np.float32(1 + 2.0**-23)


@pytest.mark.parametrize(
    ("acc", "addend", "result"),
    [
        (0x00000000, 0.0, 0x00000000),
        (0x3F800000, -1.0, 0x00000000),  # +0 from a cancellation
        (0xBF800000, 1.0, 0x00000000),
        (0x7F7FFFFF, 2.0**103, 0x7F800000),  # half a unit above the largest: overflow
        (0x7F7FFFFF, 2.0**102, 0x7F7FFFFF),
        (0xFF7FFFFF, -(2.0**200), 0xFF800000),
        (0x00800000, -(2.0**-150), 0x00000000),  # below the normal range before rounding
        (0x00800000, 2.0**-150, 0x00800000),
        (0x80800000, 2.0**-140, 0x00000000),
        (0x00000000, 2.0**-127, 0x00000000),
        (0x7F800000, 1.0, 0x7F800000),
        (0x7F800000, -np.inf, F32_NAN),
        (0xFF800000, -np.inf, 0xFF800000),
        (0x3F800000, np.nan, F32_NAN),
        (F32_NAN, 0.0, F32_NAN),
        (0x7F800000, np.nan, F32_NAN),
    ],
)
def test_accumulate_corner(acc, addend, result):
    assert f32_bits(accumulate(from_bits(acc), np.array([addend])))[0] == result


# A burst.


def fields_of(pattern: int) -> tuple[int, int, int]:
    return pattern >> 15, (pattern >> 7) & 0xFF, pattern & 0x7F


def integer_burst_sum(x: list[int], w: list[int]) -> Fraction | float:
    """Return the documented algorithm in Python integers: align, truncate the magnitude, then sign, add."""
    products = []
    infinite = set()
    for a, b in zip(x, w, strict=True):
        (sign_a, exponent_a, fraction_a), (sign_b, exponent_b, fraction_b) = fields_of(a), fields_of(b)
        zero = exponent_a == 0 or exponent_b == 0
        if exponent_a == 255 or exponent_b == 255:
            if zero or (exponent_a == 255 and fraction_a) or (exponent_b == 255 and fraction_b):
                return float("nan")
            infinite.add(-1 if sign_a != sign_b else 1)
        elif not zero:
            magnitude = (128 + fraction_a) * (128 + fraction_b)
            products.append((-1 if sign_a != sign_b else 1, magnitude, exponent_a + exponent_b - 254))
    if infinite:
        return float("nan") if len(infinite) == 2 else infinite.pop() * float("inf")
    if not products:
        return Fraction(0)
    largest = max(exponent for _, _, exponent in products)
    total = 0
    for sign, magnitude, exponent in products:
        total += sign * ((magnitude << GUARD_BITS) >> (largest - exponent))
    return total * Fraction(2) ** (largest - PRODUCT_FRACTION_BITS - GUARD_BITS)


def same_number(got: float, want: Fraction | float) -> bool:
    if isinstance(want, float):
        return got == want or (np.isnan(got) and np.isnan(want))
    return bool(np.isfinite(got)) and Fraction(float(got)) == want


@pytest.mark.parametrize("cols", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("kind", ["near", "any finite", "any"])
def test_burst_sum_is_the_documented_algorithm(cols, kind):
    rng = np.random.default_rng(cols)
    count = 400
    if kind == "near":
        x, w = bf16_numbers(rng, (count, cols)), bf16_numbers(rng, (count, cols), spread=12)
    else:
        x, w = rng.integers(0, 1 << 16, (2, count, cols)).astype(np.uint16)
        if kind == "any finite":
            x, w = (np.where(v & 0x7F80 == 0x7F80, v & 0xBFFF, v) for v in (x, w))
        else:  # else nearly every burst would hold an infinity or a NaN
            x[: count // 2, 1:] &= 0xBFFF
            w[: count // 2] &= 0xBFFF
    sums = burst_sum(x, w)
    for n in range(count):
        want = integer_burst_sum(x[n].tolist(), w[n].tolist())
        assert same_number(sums[n], want), f"{cols} cols, {kind}, burst {n}: {sums[n]!r}, not {want!r}"


def one_burst(*pairs: tuple[float, float]) -> float:
    x, w = zip(*pairs, strict=True)
    return float(burst_sum(bf16_encode(np.array(x)), bf16_encode(np.array(w))))


def test_burst_sum_truncates_magnitudes_not_sums():
    """A product below the guard bits is lost on either side of zero; floor would give -2**-22."""
    unit = 2.0 ** -(PRODUCT_FRACTION_BITS + GUARD_BITS)
    assert one_burst((1, 1), (unit, 1)) == 1 + unit
    assert one_burst((1, 1), (unit / 2, 1)) == 1
    assert one_burst((1, 1), (-unit / 2, 1)) == 1
    assert one_burst((-1, 1), (1.5 * unit, 1)) == -1 + unit
    assert one_burst((-1, 1), (-1.5 * unit, 1)) == -1 - unit


def test_burst_sum_corners():
    inf, nan = np.inf, np.nan
    largest = float(bf16_decode(np.array([0x7F7F]))[0])
    smallest = 2.0**-126
    assert one_burst((largest, largest), (-largest, largest)) == 0
    assert one_burst((largest, largest), (largest, largest)) == 2 * largest**2
    assert one_burst((smallest, smallest), (smallest, -3 * smallest)) == -(2.0**-251)
    # A zero's exponent does not shift the others away.
    assert one_burst((0.0, largest), (smallest, smallest)) == smallest**2
    assert one_burst((inf, 1), (2, 3)) == inf
    assert one_burst((inf, -1), (2, 3)) == -inf
    assert np.isnan(one_burst((inf, 1), (inf, -1)))
    assert np.isnan(one_burst((inf, 0), (2, 3)))
    assert np.isnan(one_burst((nan, 0), (2, 3)))
    subnormal = np.array([[0x007F, 0x3F80]], dtype=np.uint16)
    assert burst_sum(subnormal, np.array([[0x7F7F, 0x3F80]], dtype=np.uint16))[0] == 1
    # A subnormal is zero, also beside infinity.
    assert np.isnan(burst_sum(subnormal, np.array([[0x7F80, 0x3F80]], dtype=np.uint16))[0])


# Dot products.


def dot_error_bound(x: np.ndarray, w: np.ndarray, cols: int) -> Fraction:
    """Return the bound of ``golden.formats`` on the error of one dot product."""
    bound = Fraction(0)
    acc = np.zeros(1, dtype=np.float32)
    for start in range(0, len(x), cols):
        a, b = x[start : start + cols], w[start : start + cols]
        live = ((a & 0x7F80) != 0) & ((b & 0x7F80) != 0)
        if live.any():
            exponent = int((((a >> 7) & 0xFF).astype(int) + ((b >> 7) & 0xFF))[live].max()) - 254
            bound += cols * Fraction(2) ** (exponent - PRODUCT_FRACTION_BITS - GUARD_BITS)
        acc = accumulate(acc, burst_sum(a[None], b[None]))
        bound += Fraction(float(np.spacing(np.abs(acc[0])))) / 2
    return bound


@pytest.mark.parametrize("cols", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 5, 64, 200])
def test_dot_keeps_its_error_bound(cols, length):
    rng = np.random.default_rng(1000 * cols + length)
    x, w = bf16_numbers(rng, (6, length)), bf16_numbers(rng, (5, length))
    got = dot(x, w, cols)
    for t in range(len(x)):
        for r in range(len(w)):
            exact = sum(
                Fraction(float(a)) * Fraction(float(b))
                for a, b in zip(bf16_decode(x[t]), bf16_decode(w[r]), strict=True)
            )
            error = abs(Fraction(float(got[t, r])) - exact)
            assert error <= dot_error_bound(x[t], w[r], cols), f"cols {cols}, length {length}: {t}, {r}"


def test_dot_takes_bursts_in_order_from_the_initial_value():
    rng = np.random.default_rng(2)
    x, w = bf16_numbers(rng, (3, 11)), bf16_numbers(rng, (4, 11))
    initial = rng.standard_normal(4).astype(np.float32)
    want = np.broadcast_to(initial, (3, 4))
    for start in range(0, 11, 4):
        part = slice(start, start + 4)
        want = accumulate(want, burst_sum(x[:, None, part], w[None, :, part]))
    assert np.array_equal(dot(x, w, 4, initial), want)
    assert not np.array_equal(dot(x, w, 4, initial), dot(x[:, ::-1], w[:, ::-1], 4, initial))


def slow_dot(monkeypatch, *arguments):
    """Return the dot product by :func:`burst_sum`, whatever the values are."""
    with monkeypatch.context() as patch:
        patch.setattr(golden.formats, "QUICK_COLS", 0)
        return dot(*arguments)


def test_dot_in_chunks_is_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    x, w = bf16_numbers(rng, (3, 9)), bf16_numbers(rng, (7, 9))
    whole = slow_dot(monkeypatch, x, w, 4)
    monkeypatch.setattr(golden.formats, "CHUNK_ELEMENTS", 24)
    assert np.array_equal(slow_dot(monkeypatch, x, w, 4), whole)


@pytest.mark.parametrize("cols", [1, 3, 16, 128])
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (70, 5)], ids=str)
@pytest.mark.parametrize("kind", ["near", "far", "limits", "zeros", "equal"])
def test_quick_dot_is_the_slow_one(monkeypatch, cols, shape, kind):
    """fp32 and integers of 32 bits have every bit that the definition has in 64."""
    rng = np.random.default_rng(cols)
    low, high = golden.formats.BF16_BIAS - QUICK_EXPONENT, golden.formats.BF16_BIAS + QUICK_EXPONENT
    spread = {
        "near": (120, 131),
        "far": (low, high + 1),
        "limits": (0, 2),
        "zeros": (0, 3),
        "equal": (127, 128),
    }
    length = 2 * cols + max(0, cols - 2)
    patterns = []
    for count in shape:
        exponent = rng.integers(*spread[kind], (count, length))
        if kind == "limits":
            exponent = np.where(exponent == 0, low, high)
        if kind == "zeros":
            exponent = np.array([0, low, high])[exponent]
        fraction = (
            rng.choice([0, 1, 127], (count, length))
            if kind == "limits"
            else rng.integers(0, 128, (count, length))
        )
        sign = rng.integers(0, 2, (count, length)) if kind != "equal" else 0
        patterns.append((sign << 15 | exponent << 7 | fraction).astype(np.uint16))
    if kind == "equal":  # the largest sum of all
        patterns = [np.full_like(part, 0x3FFF) for part in patterns]
    x, w = patterns
    assert golden.formats._quick(x)
    assert golden.formats._quick(w)
    monkeypatch.setattr(golden.formats, "QUICK_PRODUCTS", 100 * cols)
    monkeypatch.setattr(golden.formats, "QUICK_INNER", 16)
    for initial in (None, rng.standard_normal(len(w)).astype(np.float32)):
        want = slow_dot(monkeypatch, x, w, cols, initial)
        with monkeypatch.context() as patch:
            patch.setattr(golden.formats, "burst_sum", None)  # it is not called
            got = dot(x, w, cols, initial)
        assert np.array_equal(f32_bits(got), f32_bits(want))
        assert got.flags.c_contiguous


@pytest.mark.parametrize("pattern", [0x7F80, 0x7FC0, 0x7F7F, 0x0080, 0xFFFF])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_too_large_or_small_is_left_to_the_definition(monkeypatch, pattern, side):
    rng = np.random.default_rng(5)
    operands = [bf16_numbers(rng, (4, 20)), bf16_numbers(rng, (6, 20))]
    operands[side][1, 7] = pattern
    assert not golden.formats._quick(operands[side])
    assert golden.formats._quick(operands[1 - side])
    assert np.array_equal(f32_bits(dot(*operands, 8)), f32_bits(slow_dot(monkeypatch, *operands, 8)))
