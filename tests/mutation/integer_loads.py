"""Experts in integer formats whose last places show: biases take sums back to what is wanted of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from golden.expert_bf16 import activate
from golden.expert_int8 import ActivationScales, ExpertInt8
from golden.experts import PackedExpert
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.functions import floor_log2
from golden.int8 import MANTISSA_BITS, FixedScale, MatrixInt8, quantise
from rtl.expert.layouts import EngineConfig
from spec.design import INT8_MAX
from tests.bench.test_expert_bench import Load, extreme, kinds_of, load_of, normal, random_jobs
from tests.mutation import operands

Integers = NDArray[np.int64]
Target = Callable[[int], tuple[Integers, Integers, Integers]]
"""Of so many rows: their sums, and mantissas and shifts of their scales."""
ONE = 1 << (MANTISSA_BITS - 1)
"""Mantissa of a power of two."""
SAME = FixedScale(ONE, 1 - MANTISSA_BITS)
"""Scale that leaves numbers as they are."""


def _weights(config: EngineConfig, rng: np.random.Generator, rows: int, inputs: int) -> Integers:
    top = 1 << (config.routed.format.bits - 1)
    return rng.integers(-top, top, (rows, inputs))


def _one_of(rng: np.random.Generator, rows: int, inputs: int) -> Integers:
    """Return matrices that pass one input on, or what it is below 0."""
    found = np.zeros((rows, inputs), np.int64)
    found[np.arange(rows), rng.integers(0, inputs, rows)] = rng.choice([-1, 1], rows)
    return found


def _matrix(values: Integers, mantissa: Integers, shift: Integers, bias: Integers) -> MatrixInt8:
    return MatrixInt8(values.astype(np.int8), mantissa, shift, bias)


def _near(config: EngineConfig, rng: np.random.Generator, x: Bits16) -> Bits16:
    """Return a token for each slot: ``x`` with one input changed, and ``x`` itself."""
    tokens = np.repeat(x[None], config.num_slots, axis=0)
    places = rng.integers(0, len(x), len(tokens) - 1)
    tokens[np.arange(1, len(tokens)), places] = normal(rng, len(places))
    return tokens


def _taken_back(config: EngineConfig, rng: np.random.Generator, wanted: Target) -> Load:
    """Return a load whose results, for one token, are of the sums that are wanted.

    Hidden activations are whole numbers, a few beyond what int8 holds, and stay as they are.
    """
    x = normal(rng, config.d_model)
    scales = ActivationScales(FixedScale.of(INT8_MAX / rng.uniform(1, 4)), SAME)

    def hidden(rows: int) -> tuple[Integers, Integers, Integers]:
        sums = rng.integers(-INT8_MAX - 3, INT8_MAX + 4, rows)
        return sums, np.full(rows, ONE), np.full(rows, SAME.shift)

    def matrix(rows: int, inputs: Integers, target: Target) -> MatrixInt8:
        values = _weights(config, rng, rows, len(inputs))
        sums, mantissa, shift = target(rows)
        limit = (1 << 31) - 1
        return _matrix(values, mantissa, shift, np.clip(sums - values @ inputs, -limit, limit))

    experts = []
    inputs = quantise(x, scales.x).astype(np.int64)
    for kind in kinds_of(config):
        assert kind.ffn.bias and not kind.ffn.gated
        up = matrix(kind.d_hidden, inputs, hidden)
        sums = bf16_decode(up.product(inputs[None].astype(np.int8)))
        middle = quantise(activate(kind.ffn, sums), scales.hidden)[0].astype(np.int64)
        down = matrix(config.d_model, middle, wanted)
        experts.append(PackedExpert(kind, ExpertInt8(None, up, down), scales))
    return Load(_near(config, rng, x), experts, random_jobs(config, rng), scales)


def small_sums(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums of a few places, each of which is one of the result's."""

    def wanted(rows: int) -> tuple[Integers, Integers, Integers]:
        sums = rng.integers(-256, 257, rows) >> rng.integers(0, 8, rows)
        return sums, np.full(rows, ONE), np.full(rows, SAME.shift)

    return _taken_back(config, rng, wanted)


def tied_sums(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums next to a tie of bf16, at any place, or of few ones."""

    def wanted(rows: int) -> tuple[Integers, Integers, Integers]:
        place = rng.integers(1, 23, rows)
        tie = (rng.integers(256, 1 << 9, rows) | 1) << (place - 1)
        few = (np.int64(1) << rng.integers(0, 31, rows)) | (np.int64(1) << rng.integers(0, 31, rows))
        sums = np.where(rng.random(rows) < 0.3, few, tie + rng.choice([-1, 0, 0, 1], rows))
        return sums * rng.choice([-1, 1], rows), np.full(rows, ONE), rng.integers(-40, 0, rows)

    return _taken_back(config, rng, wanted)


def wide_sums(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums of any size with scales of any mantissa, from below the smallest result to beyond the largest."""

    def wanted(rows: int) -> tuple[Integers, Integers, Integers]:
        sums = rng.integers(-(1 << 31), 1 << 31, rows) >> rng.integers(0, 31, rows)
        few = ONE | (1 << rng.integers(0, MANTISSA_BITS, rows))
        full = (1 << MANTISSA_BITS) - 1 - (1 << rng.integers(0, MANTISSA_BITS - 1, rows))
        kinds = [few, full, rng.integers(ONE, 2 * ONE, rows), np.zeros(rows, np.int64)]
        mantissa = np.choose(rng.choice(4, rows, p=[0.3, 0.3, 0.35, 0.05]), kinds)
        shift = np.where(rng.random(rows) < 0.5, rng.integers(-48, 0, rows), rng.integers(-200, 140, rows))
        return sums, mantissa, shift

    return _taken_back(config, rng, wanted)


def tied_products(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that their scale's mantissa takes next to a tie of bf16."""

    def wanted(rows: int) -> tuple[Integers, Integers, Integers]:
        mantissa = rng.integers(ONE, 2 * ONE, rows)
        place = rng.integers(MANTISSA_BITS, 38, rows)
        # The product nearest to a tie is less than half a mantissa away: the smaller, the nearer.
        tie = (rng.integers(256, 1 << 9, rows) | 1) << (place - 1)
        sums = np.minimum(tie // mantissa + rng.integers(0, 2, rows), (1 << 31) - 1)
        return sums * rng.choice([-1, 1], rows), mantissa, rng.integers(-60, -20, rows)

    return _taken_back(config, rng, wanted)


@functools.cache
def _one_from_a_tie() -> tuple[Integers, Integers]:
    """Return sums and odd mantissas whose products are one more or less than a tie of bf16."""
    mantissas = np.arange(ONE + 1, 2 * ONE, 2)
    tops = np.arange(257, 1 << 9, 2)
    sums, found = [], []
    for place in range(MANTISSA_BITS, 38):
        wanted = np.concatenate([(tops << place) - 1, (tops << place) + 1])
        products, places = np.nonzero(wanted[:, None] % mantissas == 0)
        sums.append(wanted[products] // mantissas[places])
        found.append(mantissas[places])
    return np.concatenate(sums), np.concatenate(found)


def one_from_a_tie(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that their scale's mantissa takes beside a tie of bf16, by one of the product's lower places."""

    def wanted(rows: int) -> tuple[Integers, Integers, Integers]:
        sums, mantissa = _one_from_a_tie()
        chosen = rng.integers(len(sums), size=rows)
        room = 30 - floor_log2(sums[chosen])
        found = sums[chosen] << rng.integers(0, room + 1)
        return found * rng.choice([-1, 1], rows), mantissa[chosen], rng.integers(-60, -20, rows)

    return _taken_back(config, rng, wanted)


def _passed_on(
    config: EngineConfig, rng: np.random.Generator, tokens: Bits16, scales: ActivationScales, shift: int
) -> Load:
    """Return a load that passes quantised inputs on, to hidden values times ``2**shift`` and to results."""

    def matrix(rows: int, inputs: int, by: int) -> MatrixInt8:
        same = np.full(rows, SAME.shift + by)
        return _matrix(_one_of(rng, rows, inputs), np.full(rows, ONE), same, np.zeros(rows, np.int64))

    experts = [
        PackedExpert(
            kind,
            ExpertInt8(
                None, matrix(kind.d_hidden, config.d_model, shift), matrix(config.d_model, kind.d_hidden, 0)
            ),
            scales,
        )
        for kind in kinds_of(config)
    ]
    return Load(tokens, experts, random_jobs(config, rng), scales)


def any_inputs(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Inputs of any size, limits and special values among them, with scales of any mantissa."""
    tokens = operands.any_size(rng, config.num_slots, config.d_model)
    # At the lowest, zeros and subnormals would be numbers that count if they were read as normal ones.
    middle = -126 if rng.random() < 0.2 else int(rng.integers(-126, 127))
    if rng.random() < 0.7:
        # Around the place where they neither vanish nor saturate.
        around = operands.patterns(rng, 127 + middle + rng.integers(-9, 9, tokens.shape))
        special = np.isin(operands.exponents(tokens), (0, 255))
        tokens = np.where(special, tokens, around)
    mantissa = int(rng.integers(ONE, 2 * ONE))
    scales = ActivationScales(FixedScale(mantissa, SAME.shift + 6 - middle), SAME)
    return _passed_on(config, rng, tokens, scales, 0)


def tied_inputs(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Inputs and hidden values at ties of int8, and next to them."""
    shape = (config.num_slots, config.d_model)
    steps = rng.integers(-2 * INT8_MAX - 4, 2 * INT8_MAX + 5, shape) >> rng.integers(0, 7, shape)
    by = int(rng.integers(-40, 40))
    tokens = bf16_encode(np.ldexp(steps / 2, by)) + rng.choice([0, 0, 0, 1], shape).astype(np.uint16)
    fold = int(rng.integers(0, 6))
    # A mantissa of two ones takes a tie off by one place.
    mantissas = [ONE | (1 << int(rng.integers(MANTISSA_BITS - 1))) * int(rng.integers(2)) for _ in range(2)]
    scales = ActivationScales(
        FixedScale(mantissas[0], SAME.shift - by), FixedScale(mantissas[1], SAME.shift + fold)
    )
    return _passed_on(config, rng, tokens, scales, -fold - int(rng.integers(0, 2)))


def scaled_hidden(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Hidden values of any size under scales of any mantissa."""
    by = int(rng.integers(-120, 110))
    mantissa = int(rng.integers(ONE, 2 * ONE))
    scales = ActivationScales(SAME, FixedScale(mantissa, SAME.shift - by + int(rng.integers(-7, 1))))
    tokens = bf16_encode(rng.integers(-INT8_MAX, INT8_MAX + 1, (config.num_slots, config.d_model)))
    return _passed_on(config, rng, tokens, scales, by)


def any_values(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Random experts, special values among the tokens."""
    return load_of(config, rng, random_jobs(config, rng), extreme)


LOADS = {
    small_sums: 40,
    tied_sums: 50,
    wide_sums: 50,
    tied_products: 40,
    one_from_a_tie: 30,
    any_inputs: 40,
    tied_inputs: 60,
    scaled_hidden: 30,
    any_values: 20,
}
"""How many of each kind."""
