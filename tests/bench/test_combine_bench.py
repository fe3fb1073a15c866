"""The combiner's exported Verilog under cocotb: every stream bit for bit and cycle for cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from golden.formats import Bits16
from rtl.combine import Combine, CombineConfig
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from sim.rtlsim import RunSpec, Sink, Source
from tests import test_combine_ordered as ordered
from tests.bench.runner import build
from tests.bench.scenarios import MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import bits_of
from tests.coverage.points import combine_points, not_met
from tests.test_combine import ORDERS, Case, golden_tokens, schedule, sequence_of, values_of

# The last word is partial.
ORDERED = OrderedConfig(num_slots=4, d_model=9, lanes=2, max_count=3)
CONFIG = CombineConfig(num_slots=4, d_model=5, lanes=2, max_count=3)
DEEP = replace(CONFIG, deep=True)
MOST = CONFIG.max_count
Config = CombineConfig | OrderedConfig
Sums = Callable[[np.random.Generator, Config, int], tuple[Bits16, Bits16]]
"""Draw (tokens, max_count, words, lanes) results and (tokens, max_count) weights, in the order of adding."""

CORNERS = {
    "no contributions": [0] * 9,
    "one contribution each": [1] * 9,
    "all contributions": [MOST] * 9,
    "one token": [MOST],
    "a token with none between others": [2, 0, 1, 0, 0, 3],
}


def undone(rng: np.random.Generator, config: Config, num_tokens: int) -> tuple[Bits16, Bits16]:
    """Return results and weights of tokens of which the last contribution takes the first one back.

    What is left is the one between as it was rounded into their sum, up to 28 places below it: every
    bit of that sum is seen at the output, which otherwise has 8 of its 24.
    """
    data = values_of(rng, "normal", (num_tokens, config.max_count, config.words, config.lanes))
    weights = values_of(rng, "normal", (num_tokens, config.max_count))
    weights[:, 1] -= (rng.integers(0, 29, num_tokens) << 7).astype(np.uint16)
    data[:, -1], weights[:, -1] = data[:, 0], weights[:, 0] ^ 0x8000
    return data, weights


def scenario(
    name: str,
    counts: list[int],
    order: str,
    values: str | Sums,
    traffic: Traffic,
    config: CombineConfig = CONFIG,
) -> Scenario:
    """Return the run of tokens with so many contributions each, and what golden and model say about it.

    ``values``: a kind of them, or a function that draws them for whole sums.
    """
    rng, words = traffic.rng, config.words
    case = Case(config, np.array(counts), order)
    tokens = sequence_of(rng, case)
    position = np.zeros(tokens.size, dtype=np.int64)  # of each beat among its token's
    for token in range(case.num_tokens):
        position[tokens == token] = np.arange(case.counts[token] * words)
    if callable(values):
        of_beats, of_contributions = values(rng, config, case.num_tokens)
        data = of_beats[tokens, position // words, position % words]
        weights = of_contributions[tokens, position // words]
    else:
        data = values_of(rng, values, (tokens.size, config.lanes))
        weights = values_of(rng, values, (case.num_tokens, MOST))[tokens, position // words]
    last_token = rng.random(case.num_tokens) < 0.3
    pattern, ready = traffic.ready()
    arrivals = traffic.arrivals(tokens.size)
    expect_arrivals = traffic.arrivals(case.num_tokens) * int(rng.integers(1, 6))
    arrivals, expect_arrivals, model = schedule(case, tokens, arrivals, expect_arrivals, ready)
    results = golden_tokens(case, tokens, weights, data).reshape(-1, config.lanes)
    beats = [
        bits_of(
            config.contribution,
            slot=tokens[n] % config.num_slots,
            word=position[n] % words,
            weight=weights[n],
            data=data[n],
            last=position[n] % words == words - 1,
        )
        for n in range(tokens.size)
    ]
    expects = [
        bits_of(config.expect, slot=token % config.num_slots, count=count, last_token=last_token[token])
        for token, count in enumerate(counts)
    ]
    outputs = [
        bits_of(
            config.output,
            data=results[n],
            token_last=n % words == words - 1,
            last=n % words == words - 1 and last_token[n // words],
        )
        for n in range(case.num_tokens * words)
    ]
    return Scenario(
        name,
        RunSpec(
            sources={"i": Source(beats, arrivals), "i_expect": Source(expects, expect_arrivals)},
            sinks={"o": Sink(len(outputs), pattern)},
            probes=["freed"],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i": Expected(beats, model.i, config.contribution),
            "i_expect": Expected(expects, model.i_expect, config.expect),
            "o": Expected(outputs, model.o, config.output),
            "freed": Expected(cycles=model.freed),
        },
    )


def scenarios(seed: int, config: CombineConfig = CONFIG) -> list[Scenario]:
    """Return random counts and every corner, in every order, under all mixes of traffic, and resets."""
    found = []
    for traffic in mixes(seed):
        rng = traffic.rng
        for order in ORDERS:
            label = f"order {order}, gaps {traffic.gaps}, stalls {traffic.stalls}"
            for name, counts in CORNERS.items():
                found.append(scenario(f"{name}, {label}", counts, order, "normal", traffic, config))
            for values in ("normal", "anything", "extreme"):
                counts = rng.integers(0, MOST + 1, size=int(rng.integers(1, 13))).tolist()
                whole = scenario(f"{values} values, {label}", counts, order, values, traffic, config)
                found += [whole.cut(rng), whole]
            found.append(scenario(f"sums undone, {label}", [MOST] * 12, order, undone, traffic, config))
    return found


def ordered_scenario(
    name: str, counts: list[int], order: str, values: str | Sums, traffic: Traffic
) -> Scenario:
    """Return the same for the combiner that adds in the order of ranks."""
    rng = traffic.rng
    kind, drawn = ("", values(rng, ORDERED, len(counts))) if callable(values) else (values, None)
    case = ordered.Case(ORDERED, np.array(counts), order, kind)
    beats = ordered.beats_of(rng, case)
    pattern, ready = traffic.ready()
    job = ordered.prepare(
        rng,
        case,
        traffic.arrivals(beats.token.size),
        traffic.arrivals(case.num_tokens) * int(rng.integers(1, 6)),
        ready,
        beats,
        drawn,
    )
    layouts = {"i": ORDERED.contribution, "i_expect": ORDERED.expect, "o": ORDERED.output}
    return Scenario(
        name,
        RunSpec(
            sources={
                "i": Source(job.expected["i"], job.arrivals),
                "i_expect": Source(job.expected["i_expect"], job.expect_arrivals),
            },
            sinks={"o": Sink(len(job.expected["o"]), pattern)},
            probes=["freed"],
            max_cycles=MOST_CYCLES,
        ),
        {
            **{
                port: Expected(job.expected[port], getattr(job.model, port), layout)
                for port, layout in layouts.items()
            },
            "freed": Expected(cycles=job.model.freed),
        },
    )


def ordered_scenarios(seed: int) -> list[Scenario]:
    """Return random counts and every corner, in every order, under all mixes of traffic, and resets."""
    found = []
    for traffic in mixes(seed):
        rng = traffic.rng
        for order in ORDERS:
            label = f"order {order}, gaps {traffic.gaps}, stalls {traffic.stalls}"
            for name, counts in CORNERS.items():
                found.append(ordered_scenario(f"{name}, {label}", counts, order, "cancelling", traffic))
            for values in ("normal", "extreme"):
                counts = rng.integers(0, MOST + 1, size=int(rng.integers(1, 13))).tolist()
                whole = ordered_scenario(f"{values} values, {label}", counts, order, values, traffic)
                found += [whole.cut(rng), whole]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ordered_combine(seed):
    bench = build("combine_ordered", lambda: OrderedCombine(ORDERED), config=ORDERED)
    run_scenarios(bench, "combine", ordered_scenarios(seed), seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_combine(seed):
    runs = scenarios(seed)
    bench = build("combine", lambda: Combine(CONFIG), config=CONFIG)
    results = run_scenarios(bench, "combine", runs, seed=seed)
    if seed == 1:
        assert not_met(combine_points(CONFIG), runs, results) == []


@pytest.mark.long
def test_deep_combine():
    run_scenarios(
        build("combine_deep", lambda: Combine(DEEP), config=DEEP), "combine", scenarios(1, DEEP), seed=1
    )
