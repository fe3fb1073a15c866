"""Numbers whose last bits show: what is said of them, held against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from golden.formats import burst_sum
from tests.mutation import operands

COLS, ROWS = 4, 1024
PLACES = 29
"""Of the adder's aligned operands: a burst's 26, guard, round, sticky."""


def rounded(value: Fraction) -> Fraction:
    """Return the nearest number of 24 bits, ties to even."""
    unit = Fraction(2) ** (math.frexp(float(value))[1] - 24)
    return round(value / unit) * unit


def sums_of_bursts(x: np.ndarray, w: np.ndarray) -> list[np.ndarray]:
    """Return the sums of the first two bursts, of each row of weights."""
    return [
        burst_sum(np.broadcast_to(x[part], (len(w), COLS)), w[:, part])
        for part in (slice(0, COLS), slice(COLS, 2 * COLS))
    ]


def lost_alone(larger: Fraction, smaller: Fraction) -> int | None:
    """Return the place of the smaller operand that is shifted out, the only one, and decides the rounding."""
    distance = math.frexp(float(larger))[1] - math.frexp(float(abs(smaller)))[1]
    top = Fraction(2) ** (math.frexp(float(abs(smaller)))[1] - PLACES)
    lost = int(abs(smaller) / top) & ((1 << max(distance, 0)) - 1)
    if lost == 0 or lost & (lost - 1):
        return None
    sign = 1 if smaller > 0 else -1
    decides = rounded(larger + smaller) != rounded(larger + smaller - sign * lost * top)
    return lost.bit_length() - 1 if decides else None


def test_each_place_that_is_lost_decides_some_rounding_alone():
    places = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = operands.tied_inputs(rng, 10, COLS)
        w = operands.tied(rng, x, ROWS, COLS)
        first, second = sums_of_bursts(x, w)
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            smaller, larger = sorted((Fraction(one), Fraction(other)), key=abs)
            if smaller:
                places.add(lost_alone(abs(larger), smaller * (1 if larger > 0 else -1)))
    assert places >= set(range(6, 24))


def test_what_is_left_of_a_rounding_lies_in_the_two_places_below_the_24():
    below = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = operands.rounded_off_inputs(rng, 10, COLS)
        w = operands.rounded_off(rng, x, ROWS, COLS)
        first, second = sums_of_bursts(x, w)
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            left = rounded(Fraction(one)) + Fraction(other)
            if left:
                below.add(math.frexp(one)[1] - math.frexp(float(left))[1])
    assert below == {24, 25}


def test_a_smaller_burst_decides_roundings_at_each_distance_by_the_topmost_place_that_is_lost():
    distances = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = operands.tied_by_burst_inputs(rng, 10, COLS)
        w = operands.tied_by_burst(rng, x, 256, COLS)
        for token in operands.fading(x, 2 * COLS - 1, 8):
            first, second = sums_of_bursts(token, w)
            for one, other in zip(first.tolist(), second.tolist(), strict=True):
                larger, smaller = Fraction(one), Fraction(other)
                if not 0 < abs(smaller) < abs(larger):
                    continue
                distance = math.frexp(one)[1] - math.frexp(other)[1]
                place = lost_alone(abs(larger), smaller * (1 if larger > 0 else -1))
                if place is not None and place == distance - 1:
                    distances.add(distance)
    assert distances >= set(range(7, 23))


def test_a_smaller_burst_of_few_ones_takes_sums_to_a_tie_from_each_place_above_it():
    ones = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = operands.tied_by_burst_inputs(rng, 10, COLS)
        w = operands.tied_by_few(rng, x, 256, COLS)
        first, second = sums_of_bursts(x, w)
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            halves = abs(Fraction(other)) / Fraction(2) ** (math.frexp(one)[1] - 25)
            if halves % 2 == 1:  # a tie, with nothing below it
                ones.add(int(halves))
    assert ones >= {1, 3, 5, 7, 9, 15, 17}


def test_the_last_place_of_a_burst_alone_decides_roundings():
    places = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = operands.tied_by_last_place_inputs(rng, 10, COLS)
        w = operands.tied_by_last_place(rng, x, 256, COLS)
        first, second = sums_of_bursts(x, w)
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            places.append(lost_alone(abs(Fraction(one)), Fraction(other) * (1 if one > 0 else -1)))
    # Above guard, round and sticky.
    assert places.count(3) > 100


def test_a_burst_alone_is_a_tie_with_nothing_before_or_with_one_number_that_decides():
    alone, exponents = 0, set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = operands.tied_at_once_inputs(rng, 12, COLS)
        w = operands.tied_at_once(rng, x, 256, COLS)
        bursts = [burst.tolist() for burst in sums_of_bursts(x, w)]
        for one, other in zip(*(map(Fraction, burst) for burst in bursts), strict=True):
            tie, before = (one, None) if abs(one) > abs(other) else (other, one)
            unit = Fraction(2) ** (math.frexp(float(tie))[1] - 24)
            if (tie / unit).denominator != 2:
                continue
            if before is None:
                alone += 1
            elif rounded(tie) != tie + unit / 2 * (1 if before > 0 else -1):
                exponents.add(math.frexp(float(before))[1] + 126)
    assert alone > 100
    assert exponents >= {1 << n for n in range(7)}


def test_sums_of_two_sparse_bursts_are_single_bits_at_each_place_and_zeros_far_above_what_was_there():
    places, zeros = set(), set()
    for seed in range(16):
        rng = np.random.default_rng(seed)
        x = operands.powers(rng, 2 * COLS)
        w = operands.sparse(rng, x, ROWS)
        first, second = sums_of_bursts(x, w)
        for one, other, row in zip(first.tolist(), second.tolist(), w[:, COLS:], strict=True):
            total = Fraction(one) + Fraction(other)
            if total and math.frexp(abs(float(total)))[0] == 0.5:
                places.add(math.frexp(max(abs(one), abs(other)))[1] - math.frexp(float(total))[1])
            if one and not other and row.any():
                largest = int((operands.exponents(row) + operands.exponents(x[COLS:]))[row != 0].max())
                zeros.add(largest - 2 * operands.BF16_BIAS - math.frexp(one)[1] > 60)
    assert places >= set(range(1, 24))
    assert zeros == {False, True}


def test_exponents_are_one_bit_away_from_both_special_ones():
    exponents = set(operands.exponents(operands.a_bit_from_special(np.random.default_rng(1), 4096)).tolist())
    assert exponents == {0} | {1 << n for n in range(8)} | {255 ^ 1 << n for n in range(8)}
