"""Elementary functions: their errors against the real ones, their ends, their roundings."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from golden.formats import BF16_NAN, bf16_decode, bf16_encode
from golden.functions import (
    FIXED_MAX,
    GELU_CUBIC,
    ONE,
    SCORE_BITS,
    bf16_from_integer,
    exp2_negative,
    exp_negative,
    fixed_from_f32,
    floor_log2,
    gelu_tanh_argument,
    is_nan,
    log2_fixed,
    norm,
    normal_cdf,
    reciprocal,
    scaled_product,
    score_from,
    sigmoid,
    sqrt_softplus,
    square_root,
    tanh_ratio,
)
from tests.exact import nearest_bf16

ZERO_FROM = 32 * np.log(2.0)
"""Where exp(-d) becomes 0: its value is 2**-32 there."""


def value_of(mantissa: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.ldexp(mantissa.astype(np.float64), -(20 + shift))


def grid(low: float, high: float, step: int) -> np.ndarray:
    """Return fixed-point numbers; an odd step meets every place of a table segment."""
    return np.arange(int(low * ONE), int(high * ONE), step, dtype=np.int64)


def test_reciprocal_error():
    m = np.arange(ONE, 2 * ONE + 1, 3, dtype=np.int64)
    error = np.abs(reciprocal(m) / ONE * (m / ONE) - 1).max()
    assert 4.9e-6 < error < 5.0e-6
    assert reciprocal(np.array([ONE, 2 * ONE])).tolist() == [ONE, ONE // 2]


def test_exp_error():
    d = grid(0, ZERO_FROM, 11)
    mantissa, shift = exp_negative(d)
    relative = np.abs(value_of(mantissa, shift) / np.exp(-d / ONE) - 1)
    assert 7.8e-6 < relative[d < 16 * ONE].max() < 8.1e-6
    assert 9.3e-6 < relative.max() < 9.6e-6
    assert mantissa.min() > ONE // 2
    assert mantissa.max() <= ONE
    assert shift.max() == 31


def test_exp_ends():
    zero_from = int(ZERO_FROM * ONE)
    d = np.array([0, 1, zero_from - 40, zero_from + 40, (1 << 25) - 1, 1 << 25, FIXED_MAX, 2 * FIXED_MAX])
    mantissa, shift = exp_negative(d)
    assert (mantissa[0], shift[0]) == (ONE, 0)
    assert (mantissa[:3] > 0).all()
    assert (mantissa[3:] == 0).all() and (shift[3:] == 0).all()
    assert np.exp(-(zero_from + 40) / ONE) < 2.0**-32


def test_sigmoid_error():
    z = grid(-ZERO_FROM, 24, 61)
    value, real = value_of(*sigmoid(z)), 1 / (1 + np.exp(-z / ONE))
    assert 5.8e-6 < np.abs(value - real).max() < 5.9e-6
    assert 1.0e-5 < np.abs(value / real - 1).max() < 1.1e-5
    assert (np.diff(value) >= 0).all(), "not monotone on this grid"


def test_sigmoid_ends():
    z = np.array([-FIXED_MAX, -23 * ONE, 0, 23 * ONE, FIXED_MAX])
    assert value_of(*sigmoid(z)).tolist() == [0, 0, 0.5, 1, 1]


def test_sqrt_softplus_error():
    z = grid(-45, 0, 173)
    value, real = sqrt_softplus(z) / (1 << SCORE_BITS), np.sqrt(np.log1p(np.exp(z / ONE)))
    assert 2.8e-6 < np.abs(value - real).max() < 2.9e-6
    above = z > -20 * ONE
    assert 1.6e-5 < np.abs(value / real - 1)[above].max() < 1.7e-5
    assert (np.diff(value) >= 0).all(), "not monotone on this grid"
    assert -41.59 < z[value > 0].min() / ONE < -41.58
    z = np.sort(np.concatenate([grid(0, 30, 97), grid(0, 2047, 23757)]))
    value, real = sqrt_softplus(z) / (1 << SCORE_BITS), np.sqrt(np.logaddexp(0, z / ONE))
    assert 2.9e-6 < np.abs(value / real - 1).max() < 3.0e-6
    assert (np.diff(value) >= 0).all(), "not monotone on this grid"


def test_sqrt_softplus_ends():
    z = np.array([-FIXED_MAX, -45 * ONE, -1, 0, 1, FIXED_MAX])
    value = sqrt_softplus(z)
    assert value[:2].tolist() == [0, 0]
    assert np.abs(value[2:5] / (1 << SCORE_BITS) - np.sqrt(np.log(2))).max() < 3e-6
    assert np.abs(value[5] / (1 << SCORE_BITS) - np.sqrt(2048)) < 1e-4
    assert value[5] < 1 << 36


def test_square_root_error():
    value = np.concatenate([grid(0.5, 8, 13), np.arange(ONE, 1 << 31, 10007)])
    error = np.abs(square_root(value) / (1 << SCORE_BITS) / np.sqrt(value / ONE) - 1).max()
    assert 2.9e-6 < error < 3.0e-6


def test_log2_error():
    value = np.concatenate([np.arange(1, 5000), np.arange(1 << 24, 1 << 26, 37)])
    assert 6.5e-6 < np.abs(log2_fixed(value) / ONE - np.log2(value)).max() < 6.7e-6
    powers = np.arange(60)
    assert (log2_fixed(np.int64(1) << powers) == powers * ONE).all()


def test_exp2_error():
    power = grid(0, 32, 101)
    mantissa, shift = exp2_negative(power)
    assert np.abs(value_of(mantissa, shift) * np.exp2(power / ONE) - 1).max() < 3.3e-6
    assert (mantissa.min() > ONE // 2) and shift.max() == 31
    assert [int(part[0]) for part in exp2_negative(np.array([32 * ONE]))] == [0, 0]


@pytest.mark.parametrize("order", [0.25, 0.5, 1.0, 2.0, 3.5, 8.0, 64.0])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_norm_error(order, k):
    """Values from 2**20 on, that is scores from 2**-10: below, the result is cut to whole numbers."""
    values = np.exp2(np.random.default_rng(k).uniform(20, 36, (5000, k))).astype(np.int64)
    largest = values.max(axis=1)
    real = ((values / largest[:, None]) ** order).sum(axis=1) ** (1 / order) * largest
    error = np.abs(norm(values, order) / real - 1).max()
    print(f"order {order}, k {k}: {error:.1e}")
    assert error < 1.7e-5


def test_norm_of_nothing():
    values = np.array([[0, 0, 0], [0, 7 << 20, 0], [5 << 20, 5 << 20, 0]])
    assert norm(values, 2.0)[0] == 0
    assert np.abs(norm(values, 2.0)[1:] / np.array([7 << 20, 5 * 2**20.5]) - 1).max() < 1.7e-5


EVERY_BF16 = np.arange(1 << 16).astype(np.uint16)
FINITE = EVERY_BF16[(EVERY_BF16 & 0x7F80) != 0x7F80]
ENDS = np.array([0x7F80, 0xFF80, 0x7F7F, 0xFF7F, 0, 0x8000, 1, 0x8001, 0x80FF], dtype=np.uint16)
"""Infinities, the largest finite numbers, zeros, subnormals, the smallest normal one."""


def test_normal_cdf_error():
    """Of every finite bf16 number."""
    x = bf16_decode(FINITE).astype(np.float64)
    value = value_of(*normal_cdf(FINITE))
    real = np.array([math.erfc(-y / math.sqrt(2)) / 2 for y in x])
    assert 5.2e-6 < np.abs(value - real).max() < 5.3e-6
    inner = x >= -6.66
    assert 1.0e-5 < np.abs(value[inner] / real[inner] - 1).max() < 1.1e-5
    assert (value[~inner] == 0).all() and (value[inner] > 0).all()
    assert (value[x >= 6.66] == 1).all()
    order = np.argsort(x)
    assert (np.diff(value[order]) >= 0).all(), "not monotone"


def test_gelu_tanh_error():
    """Of every finite bf16 number: the factor before it, against the definition by tanh."""
    x = bf16_decode(FINITE).astype(np.float64)
    z = gelu_tanh_argument(FINITE)
    value = value_of(*sigmoid(z))
    y = np.sqrt(2 / np.pi) * (x + 0.044715 * np.minimum(np.abs(x), 1e3) ** 2 * x)
    real = np.where(y > 0, (1 + np.tanh(y)) / 2, 1 / (1 + np.exp(np.minimum(-2 * y, 700))))
    assert 5.6e-6 < np.abs(value - real).max() < 5.7e-6
    inner = (y >= -11) & (x != 0)
    assert 1.3e-5 < np.abs(value[inner] / real[inner] - 1).max() < 1.4e-5
    assert (np.abs(z[np.abs(x) >= 8]) == FIXED_MAX).all()


def test_tanh_error():
    """Of every finite bf16 number."""
    x = bf16_decode(FINITE).astype(np.float64)
    far = np.abs(x) >= 8
    value = np.where(far, np.sign(x), x * tanh_ratio(FINITE) / ONE)
    there = x != 0
    assert 5.1e-6 < np.abs(value[there] / np.tanh(x[there]) - 1).max() < 5.2e-6
    assert (tanh_ratio(FINITE)[far] == ONE).all()
    assert np.abs(value - np.tanh(x))[far].max() < 2.3e-7


def test_ends_of_the_functions_of_bf16_numbers():
    cdf = value_of(*normal_cdf(ENDS))
    assert cdf.tolist() == [1, 0, 1, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert gelu_tanh_argument(ENDS).tolist() == [FIXED_MAX, -FIXED_MAX] * 2 + [0] * 5
    assert tanh_ratio(ENDS).tolist() == [ONE] * 9
    # Of NaN anything, but nothing that the next step cannot take.
    nan = EVERY_BF16[is_nan(EVERY_BF16)]
    for mantissa, shift in (normal_cdf(nan), sigmoid(gelu_tanh_argument(nan))):
        assert ((mantissa >= 0) & (mantissa <= ONE) & (shift >= 0) & (shift <= 32)).all()


def test_a_wrong_constant_is_found(monkeypatch):
    """A control of the comparisons: the cubic term off by a thousandth."""
    monkeypatch.setattr("golden.functions.GELU_CUBIC", GELU_CUBIC + GELU_CUBIC // 1000)
    with pytest.raises(AssertionError):
        test_gelu_tanh_error()


def test_score_is_truncated():
    mantissa, shift = np.array([ONE, ONE - 1, ONE // 2 + 1, ONE - 1]), np.array([0, 0, 31, 11])
    exact = [Fraction(int(m), 1 << (20 + int(s))) for m, s in zip(mantissa, shift, strict=True)]
    assert score_from(mantissa, shift).tolist() == [int(value * (1 << SCORE_BITS)) for value in exact]


def test_fixed_from_f32_truncates_toward_zero():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(3000) * np.exp2(rng.integers(-24, 13, 3000))).astype(np.float32)
    limit = Fraction(FIXED_MAX)
    for value, fixed in zip(values, fixed_from_f32(values), strict=True):
        scaled = max(-limit, min(limit, Fraction(float(value)) * ONE))
        assert fixed == int(scaled), f"{value!r} gives {fixed}"


def test_fixed_from_f32_ends():
    below = np.float32(2048) - np.float32(2.0**-13)
    values = np.array([2048, -2048, below, np.inf, -np.inf, np.nan, 3e38, 1e-30, -1e-30, 0], dtype=np.float32)
    want = [
        FIXED_MAX,
        -FIXED_MAX,
        (1 << 31) - (1 << 7),
        FIXED_MAX,
        -FIXED_MAX,
        -FIXED_MAX,
        FIXED_MAX,
        0,
        0,
        0,
    ]
    assert fixed_from_f32(values).tolist() == want


def test_floor_log2():
    values = np.array([0, *(1 << n for n in range(62)), *((2 << n) - 1 for n in range(61))])
    assert floor_log2(values).tolist() == [0, *range(62), *range(61)]


@pytest.mark.parametrize("seed", range(2))
def test_bf16_from_integer_rounds_once(seed):
    rng = np.random.default_rng(seed)
    count = 4000
    magnitude = rng.integers(0, 1 << 62, count) >> rng.integers(0, 62, count)
    kept = rng.integers(128, 256, count // 4)  # ties and what lies beside them
    shift = rng.integers(2, 50, count // 4)
    magnitude[: count // 4] = (kept << shift) + (1 << (shift - 1)) + rng.integers(-1, 2, count // 4)
    power = rng.integers(-200, 100, count)
    sign = rng.integers(0, 2, count)
    got = bf16_from_integer(sign, magnitude, power)
    for n in range(count):
        exact = Fraction(int(magnitude[n])) * Fraction(2) ** int(power[n]) * (-1) ** int(sign[n])
        assert got[n] == nearest_bf16(exact), f"seed {seed}, case {n}: {magnitude[n]} * 2**{power[n]}"


def test_bf16_from_integer_corners():
    def one(magnitude: int, power: int, sign: int = 0) -> int:
        return int(bf16_from_integer(*(np.array([v], dtype=np.int64) for v in (sign, magnitude, power)))[0])

    assert one(0, 0, sign=1) == 0
    assert one(1, -126) == 0x0080
    assert one(255, -134) == 0  # below the normal range, although it would round up into it
    assert one(511, -135) == 0
    assert one(255, 120) == 0x7F7F
    assert one(511, 119) == 0x7F80  # rounds up to 2**128
    assert one(511, 119, sign=1) == 0xFF80
    assert one(1, 1000) == 0x7F80


def test_scaled_product_rounds_once():
    rng = np.random.default_rng(4)
    count = 4000
    a, b = bf16_encode(rng.standard_normal((2, count)) * np.exp2(rng.integers(-60, 60, (2, count))))
    mantissa, shift = rng.integers(0, ONE + 1, count), rng.integers(0, 32, count)
    got = scaled_product(a, b, mantissa, shift)
    for n, (x, y) in enumerate(zip(bf16_decode(a), bf16_decode(b), strict=True)):
        factor = Fraction(int(mantissa[n]), 1 << (20 + int(shift[n])))
        exact = Fraction(float(x)) * Fraction(float(y)) * factor
        assert got[n] == nearest_bf16(exact), f"case {n}: {x!r} * {y!r} * {factor}"


def test_scaled_product_specials():
    one, inf, minus, nan, zero = 0x3F80, 0x7F80, 0xBF80, 0xFFC1, 0x8000

    def product(a: int, b: int, mantissa: int = ONE) -> int:
        pair = (np.array([value], dtype=np.uint16) for value in (a, b))
        return int(scaled_product(*pair, np.array([mantissa]), np.array([0]))[0])

    assert product(inf, minus) == 0xFF80
    assert product(inf, inf) == inf
    assert product(inf, zero) == BF16_NAN
    assert product(inf, one, mantissa=0) == BF16_NAN
    assert product(nan, zero) == BF16_NAN
    assert product(one, nan) == BF16_NAN
    assert product(minus, zero) == 0
    assert product(minus, one, mantissa=0) == 0
    assert product(0x007F, one) == 0  # subnormal
