"""What only mutants need of the combiners: sums next to a tie, last places of products, single infinities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from golden.formats import BF16_BIAS, Bits16, bf16_decode
from rtl.combine import CombineConfig
from tests.bench.scenarios import EXTREMES, Scenario, Traffic, mixes
from tests.bench.test_combine_bench import CONFIG, Config, Sums, ordered_scenario, scenario, undone
from tests.mutation import operands
from tests.mutation.traffic import under_traffic
from tests.test_combine import ORDERS

TOKENS = 20
COUNT = 3
"""Contributions of each token."""
MINUS_ONE = 0xBF80


def few_bits(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return numbers from 1 to 2, of either sign, whose significands have one bit or two."""
    fraction = np.where(rng.random(shape) < 0.5, 0, 1 << rng.integers(0, 7, shape))
    return (rng.integers(0, 2, shape) << 15 | BF16_BIAS << 7 | fraction).astype(np.uint16)


def significands(rng: np.random.Generator, *shape: int) -> Bits16:
    """Return numbers from 1 to 2, of either sign."""
    return operands.patterns(rng, np.full(shape, BF16_BIAS))


def sums_of(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Return results and weights from 1 to 2: three contributions to each sum."""
    shape = (count, COUNT, config.words, config.lanes)
    return significands(rng, *shape), significands(rng, count, COUNT)


def moved(rng: np.random.Generator, weights: Bits16) -> Bits16:
    """Return weights times a power of two for each token."""
    return operands.scaled(weights, rng.integers(-80, 80, (len(weights), 1)))


def rounded(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """A few bits around the last place of a sum, which the last contribution takes back but for these."""
    data, weights = sums_of(rng, config, count)
    data[:, 1] = few_bits(rng, *data[:, 1].shape)
    weights[:, 1] = operands.scaled(few_bits(rng, count), -rng.integers(18, 29, count))
    data[:, 2], weights[:, 2] = data[:, 0], weights[:, 0] ^ operands.SIGN
    # The small one may be there first.
    swapped = rng.random(count) < 0.4
    for values in (data, weights):
        values[swapped, :2] = values[swapped, 1::-1]
    return data, moved(rng, weights)


def low_places(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Products without their eight topmost places: what the last ones hold is the result."""
    data, weights = sums_of(rng, config, count)
    product = bf16_decode(data[:, 0]) * bf16_decode(weights[:, 0])[:, None, None]
    data[:, 1] = (product.view(np.uint32) >> 16).astype(np.uint16)
    weights[:, 1] = MINUS_ONE
    data[:, 2] = 0
    for results, factors in zip(data, weights, strict=True):
        order = rng.permutation(COUNT)
        results[:], factors[:] = results[order], factors[order]
    return data, moved(rng, weights)


def ties(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Sums in the middle between two results, or as little beside it as one bit, or two."""
    data, weights = sums_of(rng, config, count)
    weights[:, 0] = BF16_BIAS << 7 | rng.choice([0x20, 0x40, 0x60], count)
    data[:, 1:] = few_bits(rng, *data[:, 1:].shape)
    data[:, 2] *= rng.random(data[:, 2].shape) < 0.5
    weights[:, 1:] = operands.scaled(few_bits(rng, count, 2), -rng.integers(7, 26, (count, 2)))
    return data, moved(rng, weights)


def beside_ties(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Sums in the middle between two results, and one of the places that rounding loses, alone."""
    data, weights = sums_of(rng, config, count)
    # Times 1.5 an odd fraction below 1/3 ends half a last place behind the last.
    data[:, 0] = BF16_BIAS << 7 | 2 * rng.integers(0, 21, data[:, 0].shape) + 1
    weights[:, 0] = BF16_BIAS << 7 | 0x40
    place = rng.integers(9, 24, data[:, 1].shape)
    data[:, 1] = rng.integers(0, 2, place.shape) << 15 | (BF16_BIAS - place) << 7
    weights[:, 1] = BF16_BIAS << 7
    data[:, 2] = 0
    return data, moved(rng, weights ^ rng.integers(0, 2, (count, 1)).astype(np.uint16) << 15)


def tied_by_sums(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Sums in the middle between two results, which the smaller sum before takes to or next to a tie of fp32.

    That one has two bits, as far apart as fp32 has places: the upper one is about half of a last place.
    """
    data, weights = sums_of(rng, config, count)
    # As beside ties.
    data[:, 2] = BF16_BIAS << 7 | 2 * rng.integers(0, 21, data[:, 2].shape) + 1
    weights[:, 2] = BF16_BIAS << 7 | 0x40
    place = rng.integers(1, 24, data[:, 1].shape)
    data[:, 0] = rng.integers(0, 2, place.shape) << 15 | BF16_BIAS << 7
    data[:, 1] = rng.integers(0, 2, place.shape) << 15 | (BF16_BIAS - place) << 7
    half = np.where(rng.random(count) < 0.8, 24, rng.integers(22, 28, count))
    weights[:, :2] = (BF16_BIAS - half[:, None]) << 7
    return data, moved(rng, weights ^ rng.integers(0, 2, (count, 1)).astype(np.uint16) << 15)


def one_extreme(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """One special value or limit in each sum, among its results or its weights."""
    data, weights = sums_of(rng, config, count)
    contribution = rng.integers(0, COUNT, data[:, 0].shape)
    there = np.arange(COUNT)[None, :, None, None] == contribution[:, None]
    data = np.where(there, rng.choice(EXTREMES, data.shape), data)
    token = rng.random(count) < 0.2
    data[token] = significands(rng, *data[token].shape)
    weights[token, contribution[token, 0, 0]] = rng.choice(EXTREMES, np.count_nonzero(token))
    return data, weights


def any_size(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Products of any size, below, in and beyond the range of both formats, and one of their neighbours."""
    data, weights = sums_of(rng, config, count)
    data = operands.any_size(rng, *data.shape)
    weights = operands.any_size(rng, *weights.shape)
    data[:, 1] = operands.scaled(data[:, 0], rng.integers(-3, 4, data[:, 0].shape))
    weights[:, 1] = weights[:, 0] ^ rng.integers(0, 2, count).astype(np.uint16) << 15
    data[:, 2] *= rng.random(data[:, 2].shape) < 0.5
    return data, weights


def any_exponent(rng: np.random.Generator, config: Config, count: int) -> tuple[Bits16, Bits16]:
    """Sums whose exponents have one bit, and as large contributions to them."""
    data, weights = sums_of(rng, config, count)
    exponent = 1 << rng.integers(0, 8, data[:, 0].shape)
    data = operands.scaled(data, exponent[:, None] - BF16_BIAS + 63)
    data[:, 1:] = operands.scaled(data[:, 1:], rng.integers(-2, 3, data[:, 1:].shape))
    data[:, 2] *= rng.random(data[:, 2].shape) < 0.5
    return data, operands.scaled(weights, -63)


LOADS: dict[Sums, int] = {
    rounded: 8,
    undone: 4,
    low_places: 6,
    ties: 8,
    beside_ties: 4,
    tied_by_sums: 4,
    one_extreme: 3,
    any_exponent: 3,
    any_size: 4,
}
"""How often each is drawn."""


def _under_traffic(seed: int, run: Callable[..., Scenario]) -> list[Scenario]:
    rng = np.random.default_rng([seed, len(LOADS)])

    def drawn(name: str, load: Sums, traffic: Traffic) -> Scenario:
        return run(name, [COUNT] * TOKENS, str(rng.choice(ORDERS)), load, traffic)

    return under_traffic(LOADS, mixes(seed), rng, drawn)


def scenarios(seed: int, config: CombineConfig = CONFIG) -> list[Scenario]:
    """Return sums whose last places show, in any order, under all traffic."""
    return _under_traffic(seed, partial(scenario, config=config))


def ordered_scenarios(seed: int) -> list[Scenario]:
    """Return the same for the combiner that adds in the order of ranks."""
    return _under_traffic(seed, ordered_scenario)
