"""Sums that only mutants need are what they say: their last places are the results."""

from __future__ import annotations

import numpy as np
import pytest

from golden.formats import bf16_decode
from tests.bench.test_combine_bench import CONFIG, ORDERED
from tests.mutation.combine_scenarios import (
    COUNT,
    LOADS,
    any_exponent,
    beside_ties,
    low_places,
    rounded,
    tied_by_sums,
    ties,
)


def terms(load, config, count: int = 50) -> np.ndarray:
    """Return exact contributions to each sum, in the order of adding."""
    data, weights = load(np.random.default_rng(3), config, count)
    assert data.shape == (count, COUNT, config.words, config.lanes)
    assert data.dtype == weights.dtype == np.uint16
    with np.errstate(invalid="ignore"):
        return bf16_decode(data).astype(float) * bf16_decode(weights)[:, :, None, None]


@pytest.mark.parametrize("config", [CONFIG, ORDERED])
@pytest.mark.parametrize("load", LOADS)
def test_shapes(load, config):
    terms(load, config)


def test_what_is_left_is_small():
    """The rounding of a sum of 24 bits, the eight last places of a product of 16."""
    parts = terms(rounded, CONFIG)
    left, large = np.abs(parts.sum(1)), np.abs(parts).max(1)
    assert np.all((left > 0) & (left <= large * 2.0**-15))
    parts = terms(low_places, CONFIG)
    left, large = np.abs(parts.sum(1)), np.abs(parts).max(1)
    assert np.all(left < large * 2.0**-7)
    assert np.mean(left > 0) > 0.5


def test_sums_are_next_to_a_tie():
    """Without its small parts a sum is often in the middle between two results."""
    parts = np.abs(terms(ties, CONFIG))
    large = parts.max(1)
    last = np.exp2(np.floor(np.log2(large)) - 7)
    assert np.mean(large / last % 1 == 0.5) > 0.1


def test_each_place_alone_decides_roundings():
    parts = terms(beside_ties, CONFIG)
    large, small = parts[:, 0], parts[:, 1]
    last = np.exp2(np.floor(np.log2(np.abs(large))) - 7)
    assert np.all(np.abs(large) / last % 1 == 0.5)
    decides = np.round((large + small) / last) != np.round(large / last)
    places = np.log2(np.abs(small) / last) - 7
    assert set(-places[decides]) == set(range(9, 24))
    assert 0.3 < np.mean(decides) < 0.7


def test_the_lower_place_of_a_smaller_sum_decides_roundings_wherever_it_is():
    upper, lower, large = np.moveaxis(terms(tied_by_sums, CONFIG), 1, 0)
    last = np.exp2(np.floor(np.log2(np.abs(large))) - 7)
    assert np.all(np.abs(large) / last % 1 == 0.5)
    with_both, with_one = (
        np.round((large + small).astype(np.float32) / last) for small in (upper + lower, upper)
    )
    decides = with_both != with_one
    assert set(np.log2(np.abs(upper / lower))[decides]) == set(range(1, 24))


def test_exponents_have_one_bit():
    first = np.abs(terms(any_exponent, CONFIG))[:, 0]
    found = {int(exponent) + 127 for exponent in np.floor(np.log2(first[first > 0])).flat}
    assert found >= {2, 4, 8, 16, 32, 64, 128}
