"""What only mutants need of a channel of programs: last places of sums, special values, long runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from golden.formats import Bits16, bf16_encode
from rtl.gemv import ChannelConfig
from rtl.gemv.sequencer import PLACE_BITS
from sim.gemv.commands import PowerLimits, Product
from sim.gemv.program import operands as random_operands
from sim.gemv.report import Options
from spec.device import Schedule
from spec.program import LOOP_DEPTH, Op, Program, word
from tests.bench.scenarios import Scenario
from tests.bench.test_program_bench import Case, drawn, groups, modes, scenario, starts
from tests.mutation import operands

Operands = tuple[Bits16, Bits16]
Load = Callable[[np.random.Generator, int, int, int, int], Operands]
"""Weights (rows, cols) and inputs (batch, cols), from rows, cols, lanes of a burst, batch."""


def cancelling(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """Products that take each other back."""
    x = operands.near_one(rng, cols)
    return operands.cancelling(rng, x, rows, top=operands.tops(rng)), operands.companions(rng, x, batch)


def left_over(rng: np.random.Generator, rows: int, cols: int, lanes: int, batch: int) -> Operands:
    """A large product taken back and a small one, which is the result."""
    x = operands.near_one(rng, cols) & 0x7FFF
    top = int(rng.integers(-6, 20))
    w, place = operands.left_over(rng, x, lanes, rng.integers(0, 30, rows), top)
    return w, operands.fading(x, place, batch)


def tied(rng: np.random.Generator, rows: int, cols: int, lanes: int, batch: int) -> Operands:
    """Sums that are rounded next to a tie, in one of several ways; what is left of them is the result."""
    kinds = (
        (operands.tied_inputs, operands.tied, 0),
        (operands.tied_by_burst_inputs, operands.tied_by_burst, 2 * lanes - 1),
        (operands.tied_by_burst_inputs, operands.tied_by_few, 2 * lanes - 1),
        (operands.tied_by_last_place_inputs, operands.tied_by_last_place, 2 * lanes - 1),
        (operands.rounded_off_inputs, operands.rounded_off, lanes - 1),
        (operands.tied_at_once_inputs, operands.tied_at_once, lanes - 1),
    )
    inputs, weights, place = kinds[int(rng.integers(len(kinds)))]
    x = inputs(rng, cols, lanes)
    return weights(rng, x, rows, lanes, int(rng.integers(-6, 10))), operands.fading(x, place, batch)


def sparse(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """Sums of powers of two, whose ones are few."""
    x = operands.powers(rng, cols)
    w = operands.sparse(rng, x, rows, int(rng.integers(-6, 10)))
    return w, operands.companions(rng, x, batch)


def full(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """Sums as large as they can be at their exponent."""
    signs = (rng.integers(0, 2, (rows, 1)) << 15).astype(np.uint16)
    return operands.full(rng, rows, cols) ^ signs, operands.full(rng, batch, cols)


def any_size(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """One product in each sum, of numbers of any size, limits and special values among them."""
    w = operands.one_of(rng, rows, cols, operands.any_size(rng, rows))
    return w, operands.any_size(rng, batch, cols)


def special(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """Two infinite products, or one and the number that its pattern would be, or other special values."""
    kind = int(rng.integers(4))
    w = bf16_encode(rng.standard_normal((rows, cols), dtype=np.float32))
    x = bf16_encode(rng.standard_normal((batch, cols), dtype=np.float32))
    if kind == 0:
        return operands.with_two_infinities(rng, w), x
    if kind == 1:
        one, w = operands.infinity_and_its_number(rng, cols, rows)
        return w, np.repeat(one[None], batch, axis=0)
    if kind == 2:
        return operands.a_bit_from_special(rng, rows, cols), operands.a_bit_from_special(rng, batch, cols)
    return operands.with_extreme(rng, w), operands.with_extreme(rng, x)


def infinite(rng: np.random.Generator, rows: int, cols: int, _lanes: int, batch: int) -> Operands:
    """An infinite product in each sum, at any place, by the weight or by the input."""
    w, x = operands.near_one(rng, rows, cols), operands.near_one(rng, batch, cols)
    infinite = w if rng.random() < 0.5 else x
    count = len(infinite)
    infinite[np.arange(count), rng.integers(0, cols, count)] = 0x7F80 | rng.integers(0, 2, count) << 15
    return w, x


LOADS: dict[Load, int] = {
    cancelling: 16,
    left_over: 8,
    tied: 60,
    sparse: 20,
    full: 4,
    any_size: 12,
    special: 16,
    infinite: 16,
}
"""How many of each kind."""


def scenarios(config: ChannelConfig, seed: int) -> list[Scenario]:
    """Return loads whose last places show, many products with resets at any time, and long runs."""
    rng = np.random.default_rng([seed, 7])
    device = config.device
    found = []
    for load, times in LOADS.items():
        for number in range(times):
            batch = int(rng.integers(1, device.tokens_per_burst + 1))
            product = Product(
                rows=int(rng.integers(12, 33)),
                cols=int(rng.integers(3 * device.lanes, 5 * device.lanes)),
                channels=1,
                batch=batch,
            )
            w, x = load(rng, product.rows, product.cols, device.lanes, batch)
            case = Case(product, Options(), w, x, start=starts(rng))
            found.append(scenario(f"{load.__name__.replace('_', ' ')} {number}", config, case, rng))
    for number in range(30):
        case = drawn(config, rng)
        found.append(scenario(f"product {number}", config, case, rng))
        found.append(scenario(f"product {number}", config, case, rng, stop=True))
    found += [_far(config, rng, number) for number in range(FAR)]
    if device.schedule is Schedule.BARRIER:
        found += [groups(f"more groups {n}", config, starts(rng), rng, items=6) for n in range(30)]
        found += [groups(f"far groups {n}", config, starts(rng), rng, far=True) for n in range(2)]
        found.append(groups("slow groups", config, starts(rng), rng, slow=True, items=28))
        found += [
            groups(f"many of each {n}", config, starts(rng), rng, large=True, items=2) for n in range(2)
        ]
    else:
        found += [_tail(config, rng, name, words) for name, words in tails(rng).items()]
        found += [_long(config, rng, number) for number in range(2)]
        found.append(modes("a long way into the mode", config, rng, 7000))
    return found


def tails(rng: np.random.Generator) -> dict[str, Program]:
    """Return loops around nothing, which only the reader of a program sees: far places, many turns."""
    turn, end = (lambda count: word(Op.LOOP, count=count)), word(Op.END)
    # To the last place that there is, with STOP; loops there.
    counts = rng.integers(2, 6, LOOP_DEPTH).tolist()
    deep = [*map(turn, counts), *[end] * LOOP_DEPTH]
    short = [turn(1), end]
    far = {
        f"loops behind {2 * pairs} words": [*short * pairs, *deep]
        for pairs in (1 << rng.permutation(14)[:3]).tolist()
    }
    many = {
        f"a loop of {count} turns, {depth} inside each other": [
            *[turn(1)] * (depth - 1),
            turn(count),
            *[end] * depth,
        ]
        for depth, count in enumerate((1 << 16 | rng.integers(1 << 16, size=LOOP_DEPTH)).tolist(), start=1)
    }
    return {**far, **many, "all places": [*short * ((1 << PLACE_BITS - 1) - 40), *deep]}


def _long(config: ChannelConfig, rng: np.random.Generator, number: int) -> Scenario:
    """Return a run of many tokens, in whose passes MACs wait for the writes before them alone."""
    batch = 40 * config.device.tokens_per_burst
    product = Product(rows=int(rng.integers(16, 24)), cols=int(rng.integers(20, 30)), channels=1, batch=batch)
    w, x = random_operands(product, int(rng.integers(1 << 30)))
    return scenario(f"many tokens {number}", config, Case(product, Options(), w, x, start=starts(rng)), rng)


def _tail(config: ChannelConfig, rng: np.random.Generator, name: str, words: Program) -> Scenario:
    case = replace(drawn(config, rng), tail=tuple(words), nested=False)
    return scenario(name, config, case, rng)


FAR = 6


def _far(config: ChannelConfig, rng: np.random.Generator, number: int) -> Scenario:
    """Return a run of many cycles and few commands: counts of cycles reach their upper places."""
    limits = PowerLimits(
        mac_gap=int(rng.integers(200, 1000)),
        act_gap=int(rng.integers(200, 1000)),
        hot=bool(rng.random() < 0.5),
    )
    product = Product(rows=int(rng.integers(2, 20)), cols=int(rng.integers(20, 90)), channels=1)
    w, x = random_operands(product, int(rng.integers(1 << 30)))
    case = Case(product, Options(limits=limits), w, x, start=starts(rng))
    return scenario(f"few commands {number}", config, case, rng)
