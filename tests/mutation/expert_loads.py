"""Experts whose last places show: sums taken back in both matrices, activations next to a tie, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from golden.expert_bf16 import activate, curve
from golden.experts import ExpertBits, PackedExpert
from golden.formats import BF16_BIAS, BF16_ONE, Bits16, dot
from rtl.expert.layouts import EngineConfig
from spec.geometry import FfnGeometry
from tests.bench.test_expert_bench import Load, kinds_of, load_of, normal, random_jobs
from tests.mutation import operands

CANDIDATES = 1 << 14
"""Pairs of gate and up of which the nearest to a tie are taken."""


def _load(
    config: EngineConfig,
    rng: np.random.Generator,
    x: Bits16,
    matrix: Callable[[FfnGeometry, bool], Bits16],
    down: Callable[[FfnGeometry, Bits16], Bits16],
) -> Load:
    """Return multiples of a token, with experts of these matrices.

    ``matrix`` gives gate (true) and up of an expert, ``down`` the last one for what they make of the token.
    """
    experts = []
    for kind in kinds_of(config):
        gate = matrix(kind, True) if kind.ffn.gated else None
        up = matrix(kind, False)
        sums = [dot(x[None], one, kind.cols) for one in (gate, up) if one is not None]
        hidden = activate(kind.ffn, *sums)[0]
        experts.append(_expert(kind, gate, up, down(kind, hidden)))
    return Load(operands.companions(rng, x, config.num_slots), experts, random_jobs(config, rng))


def _expert(kind: FfnGeometry, gate: Bits16 | None, up: Bits16, down: Bits16) -> PackedExpert:
    """Return an expert of these matrices, without biases."""
    return PackedExpert(kind, ExpertBits(gate, up, down, None, None, None), None)


def _changed(load: Load, change: Callable[[ExpertBits], tuple[Bits16 | None, Bits16, Bits16]]) -> Load:
    """Return the load with other matrices: gate, up and down as ``change`` makes them of those there are."""
    experts = []
    for expert in load.experts:
        assert isinstance(expert.numbers, ExpertBits)
        experts.append(_expert(expert.geometry, *change(expert.numbers)))
    return replace(load, experts=experts)


def cancelling(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Products that take each other back, in all matrices."""
    x = operands.near_one(rng, config.d_model)

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        top = int(rng.integers(-6, 8)) if gate else operands.tops(rng)
        return operands.cancelling(rng, x, kind.d_hidden, top=top)

    def down(kind: FfnGeometry, hidden: Bits16) -> Bits16:
        usable = np.abs(operands.exponents(hidden) - BF16_BIAS) < 60
        factors = np.where(usable, hidden, BF16_ONE).astype(np.uint16)
        return operands.cancelling(rng, factors, config.d_model, top=operands.tops(rng))

    return _load(config, rng, x, matrix, down)


def passed_on(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Products that take each other back; the activations are the result."""
    x = operands.near_one(rng, config.d_model)

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        top = int(rng.integers(-6, 8)) if gate else operands.tops(rng)
        return operands.cancelling(rng, x, kind.d_hidden, top=top)

    return _load(config, rng, x, matrix, lambda kind, _: operands.ones(config.d_model, kind.d_hidden))


def left_over(config: EngineConfig, rng: np.random.Generator) -> Load:
    """A large product taken back and a small one, which is the result, of every expert."""
    x = operands.near_one(rng, config.d_model) & 0x7FFF
    top, place = int(rng.integers(-6, 20)), 0
    choice = int(rng.integers(1 << 32))

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        nonlocal place
        if gate:
            return operands.one_of(rng, kind.d_hidden, len(x), operands.near_one(rng, kind.d_hidden))
        # The same inputs of all experts.
        same = np.random.default_rng(choice)
        w, place = operands.left_over(same, x, kind.cols, rng.integers(0, 30, kind.d_hidden), top)
        return w

    load = _load(config, rng, x, matrix, lambda kind, _: operands.ones(config.d_model, kind.d_hidden))
    return _with_all(config, load, operands.fading(x, place, config.num_slots))


def _with_all(config: EngineConfig, load: Load, tokens: Bits16) -> Load:
    """Return a load in which every expert has every token."""
    slots = [list(range(n, n + config.max_tokens)) for n in range(0, config.num_slots, config.max_tokens)]
    jobs = [(number, some) for number in range(len(load.experts)) for some in slots]
    return Load(tokens, load.experts, jobs)


def _tied(
    config: EngineConfig,
    rng: np.random.Generator,
    x: Bits16,
    up: Callable[[np.random.Generator, Bits16, int, int, int], Bits16],
    place: int,
) -> Load:
    """Return a load of sums that ``up`` takes next to a tie; ``place`` is of the input of what is left."""
    top = int(rng.integers(-6, 10))

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        if gate:
            return operands.one_of(rng, kind.d_hidden, len(x), operands.near_one(rng, kind.d_hidden))
        return up(rng, x, kind.d_hidden, config.routed.cols, top)

    load = _load(config, rng, x, matrix, lambda kind, _: operands.ones(config.d_model, kind.d_hidden))
    return _with_all(config, load, operands.fading(x, place, config.num_slots))


def tied(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that are rounded next to a tie; what is left of them is the result."""
    x = operands.tied_inputs(rng, config.d_model, config.routed.cols)
    return _tied(config, rng, x, operands.tied, 0)


def tied_by_burst(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that a smaller burst takes next to a tie; what is left of the rounding is the result."""
    cols = config.routed.cols
    x = operands.tied_by_burst_inputs(rng, config.d_model, cols)
    return _tied(config, rng, x, operands.tied_by_burst, 2 * cols - 1)


def tied_by_few(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that a smaller burst of few ones takes to a tie; what is left of the rounding is the result."""
    cols = config.routed.cols
    x = operands.tied_by_burst_inputs(rng, config.d_model, cols)
    return _tied(config, rng, x, operands.tied_by_few, 2 * cols - 1)


def tied_by_last_place(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that are ties but for the last place of a burst; what is left of the rounding is the result."""
    cols = config.routed.cols
    x = operands.tied_by_last_place_inputs(rng, config.d_model, cols)
    return _tied(config, rng, x, operands.tied_by_last_place, 2 * cols - 1)


def rounded_off(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums that the next burst takes back but for what they were rounded by; it is the result."""
    cols = config.routed.cols
    x = operands.rounded_off_inputs(rng, config.d_model, cols)
    return _tied(config, rng, x, operands.rounded_off, cols - 1)


def sparse(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums of powers of two, whose ones are few; they are the result."""
    x = operands.powers(rng, config.d_model)

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        if gate:
            return operands.one_of(rng, kind.d_hidden, len(x), operands.powers(rng, kind.d_hidden) & 0x7FFF)
        return operands.sparse(rng, x, kind.d_hidden, int(rng.integers(-6, 10)))

    return _load(config, rng, x, matrix, lambda kind, _: operands.ones(config.d_model, kind.d_hidden))


def full(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Sums as large as they can be at their exponent, in the first matrices or in the last."""
    first = rng.random() < 0.5
    x = operands.full(rng, config.d_model)

    def signs(rows: int) -> Bits16:
        return (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)

    def matrix(kind: FfnGeometry, _gate: bool) -> Bits16:
        if first:
            return operands.full(rng, kind.d_hidden, len(x)) ^ signs(kind.d_hidden)
        return operands.one_of(rng, kind.d_hidden, len(x), operands.full(rng, kind.d_hidden))

    def down(kind: FfnGeometry, _hidden: Bits16) -> Bits16:
        if first:
            return operands.ones(config.d_model, kind.d_hidden)
        return operands.full(rng, config.d_model, kind.d_hidden) ^ signs(config.d_model)

    return _load(config, rng, x, matrix, down)


def any_size(config: EngineConfig, rng: np.random.Generator) -> Load:
    """One product in each sum, of numbers of any size, limits and special values among them."""
    x = operands.any_size(rng, config.d_model)

    def matrix(kind: FfnGeometry, _gate: bool) -> Bits16:
        return operands.one_of(rng, kind.d_hidden, len(x), operands.any_size(rng, kind.d_hidden))

    def down(kind: FfnGeometry, _hidden: Bits16) -> Bits16:
        values = operands.any_size(rng, config.d_model)
        return operands.one_of(rng, config.d_model, kind.d_hidden, values)

    load = _load(config, rng, x, matrix, down)
    return replace(load, tokens=operands.any_size(rng, *load.tokens.shape))


def one_extreme(config: EngineConfig, rng: np.random.Generator) -> Load:
    """One special value or limit among the tokens or in each matrix of an expert."""
    load = load_of(config, rng, random_jobs(config, rng), normal)
    where = int(rng.integers(4))

    def changed(matrix: Bits16 | None, place: int) -> Bits16 | None:
        return operands.with_extreme(rng, matrix) if matrix is not None and place == where else matrix

    found = _changed(load, lambda one: (changed(one.gate, 1), changed(one.up, 2), changed(one.down, 3)))
    return replace(found, tokens=changed(load.tokens, 0))


def infinities(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Two infinite products in a sum, or one and the number that its pattern would be."""
    if rng.random() < 0.5:
        load = load_of(config, rng, random_jobs(config, rng), normal)
        if rng.random() < 0.5:
            return _changed(load, lambda one: (one.gate, one.up, operands.with_two_infinities(rng, one.down)))
        return _changed(load, lambda one: (one.gate, operands.with_two_infinities(rng, one.up), one.down))
    x, _ = operands.infinity_and_its_number(rng, config.d_model, 1)

    def matrix(kind: FfnGeometry, gate: bool) -> Bits16:
        if gate:
            return operands.one_of(rng, kind.d_hidden, len(x), operands.scaled(x[: kind.d_hidden], -128))
        return operands.infinity_and_its_number(rng, len(x), kind.d_hidden)[1]

    load = _load(config, rng, x, matrix, lambda kind, _: operands.ones(config.d_model, kind.d_hidden))
    return replace(load, tokens=np.repeat(x[None], config.num_slots, axis=0))


def given_activations(config: EngineConfig, rng: np.random.Generator) -> Load:
    """Gate and up are single numbers, many of them next to a tie of the activation; it is the result."""
    ffn = config.routed.ffn
    gates = operands.patterns(rng, rng.integers(BF16_BIAS - 12, BF16_BIAS + 6, CANDIDATES))
    ups = operands.patterns(rng, rng.integers(BF16_BIAS - 4, BF16_BIAS + 4, CANDIDATES))
    if ffn.gated:
        a, mantissa, _ = curve(ffn, gates)
        product = (128 + (a & 0x7F).astype(np.int64)) * (128 + (ups & 0x7F).astype(np.int64)) * mantissa
        order = np.argsort(np.where(product == 0, 1, operands.from_tie(product)), kind="stable")
        gates, ups = gates[order], ups[order]
    x = operands.near_one(rng, config.d_model)
    x[0] = BF16_ONE
    taken = iter(range(CANDIDATES))

    def down(kind: FfnGeometry, _hidden: Bits16) -> Bits16:
        return operands.ones(config.d_model, kind.d_hidden)

    experts = []
    for kind in kinds_of(config):
        chosen = [next(taken) for _ in range(kind.d_hidden)]
        gate, up = (np.zeros((kind.d_hidden, config.d_model), dtype=np.uint16) for _ in range(2))
        gate[:, 0], up[:, 0] = gates[chosen], ups[chosen]
        experts.append(_expert(kind, gate if ffn.gated else None, up if ffn.gated else gate, down(kind, x)))
    tokens = np.repeat(x[None], config.num_slots, axis=0)
    return Load(tokens, experts, random_jobs(config, rng))


LOADS = {
    cancelling: 30,
    passed_on: 20,
    left_over: 16,
    tied: 100,
    full: 10,
    any_size: 24,
    one_extreme: 20,
    infinities: 16,
    given_activations: 30,
    tied_by_burst: 24,
    rounded_off: 12,
    sparse: 40,
    tied_by_few: 24,
}
"""How many of each kind."""
