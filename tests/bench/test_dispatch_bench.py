"""The dispatcher's exported Verilog under cocotb: every stream bit for bit and cycle for cycle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from golden.dispatch_streams import dispatch_streams
from rtl.dispatch import Dispatch, DispatchConfig
from sim.dispatch import dispatch_cycles
from sim.rtlsim import RunSpec, Sink, Source
from tests.bench.runner import CocotbBuild, build
from tests.bench.scenarios import MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import bits_of

CONFIG = DispatchConfig(num_experts=5, top_k=2, window_tokens=4, shared=True, capacity_bits=4)


def bench() -> CocotbBuild:
    """Return the bench of this file's one build."""
    return build("dispatch", lambda: Dispatch(CONFIG), config=CONFIG)


@dataclass(frozen=True)
class Load:
    """Tokens of a scenario: (tokens, top_k) experts, tokens of each batch, capacity."""

    ids: np.ndarray
    batches: list[int]
    capacity: int = 0


def random_load(rng: np.random.Generator) -> Load:
    """Return batches of random lengths that choose distinct experts, evenly or not."""
    batches = rng.integers(1, 12, size=int(rng.integers(1, 5))).tolist()
    skew = rng.choice([0, 1, 3]) * np.arange(CONFIG.num_experts) / CONFIG.num_experts
    keys = rng.random((sum(batches), CONFIG.num_experts)) + skew
    ids = np.argsort(keys, axis=1)[:, : CONFIG.top_k]
    return Load(ids, batches, capacity=int(rng.choice([0, 1, 2, 5])))


def corner(ids: list[list[int]], *, batches: list[int] | None = None, capacity: int = 0) -> Load:
    """Return tokens that choose exactly these experts."""
    return Load(np.array(ids), batches or [len(ids)], capacity)


CORNERS = {
    "all tokens to one expert": corner([[2, 2]] * 11),
    "an expert with none": corner([[0, 4]] * 9),
    "capacity overflow": corner([[1, 0], [1, 2], [1, 3]] * 5, capacity=2, batches=[4, 11]),
    "capacity reached in every batch": corner([[1, 3]] * 12, capacity=1, batches=[1, 1, 3, 7]),
    "batches of one token": corner([[0, 1], [1, 2], [3, 1]] * 4, batches=[1] * 12),
    "last window partial": corner([[0, 1], [1, 2], [3, 1]] * 3),
    "highest expert only": corner([[4, 4]] * 5),
    "largest capacity": corner([[4, 0]] * 20, capacity=15),
}


def scenario(name: str, load: Load, traffic: Traffic) -> Scenario:
    """Return the run of a load under this traffic, with what golden and model say about it."""
    num_tokens, top_k = load.ids.shape
    weights = traffic.rng.integers(0, 1 << 16, size=load.ids.shape, dtype=np.uint16)
    streams = dispatch_streams(
        load.ids,
        weights,
        num_experts=CONFIG.num_experts,
        window_tokens=CONFIG.window_tokens,
        batch_lengths=load.batches,
        capacity=load.capacity,
        shared=CONFIG.shared,
    )
    beats = [
        bits_of(
            CONFIG.assignment,
            expert=load.ids[token, j],
            weight=weights[token, j],
            last=j == top_k - 1,
            # Only the last beat's flag counts; the others carry noise.
            last_token=streams.last_token[token] if j == top_k - 1 else traffic.rng.integers(2),
        )
        for token in range(num_tokens)
        for j in range(top_k)
    ]
    expects = [
        bits_of(CONFIG.expect, slot=slot, count=count, last_token=last)
        for slot, count, last in zip(
            streams.expect_slot, streams.expect_count, streams.last_token, strict=True
        )
    ]
    entries = [
        bits_of(
            CONFIG.entry,
            expert=streams.entry_expert[n],
            slot=streams.entry_slot[n],
            weight=streams.entry_weight[n],
            last=streams.entry_last[n],
        )
        for n in range(len(streams.entry_expert))
    ]
    arrivals = traffic.arrivals(len(beats))
    expect_pattern, expect_ready = traffic.ready()
    pattern, ready = traffic.ready()
    model = dispatch_cycles(streams, arrivals, expect_ready=expect_ready, unit_ready=[ready])
    return Scenario(
        name,
        RunSpec(
            sources={"i": Source(beats, arrivals)},
            sinks={"o_expect": Sink(len(expects), expect_pattern), "o_0": Sink(len(entries), pattern)},
            statics={"capacity": load.capacity},
            probes=["dropped"],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i": Expected(beats, model.i, CONFIG.assignment),
            "o_expect": Expected(expects, model.o_expect, CONFIG.expect),
            "o_0": Expected(entries, model.entries, CONFIG.entry),
        },
        {"dropped": streams.dropped},
    )


def scenarios(seed: int) -> list[Scenario]:
    """Return random loads and every corner, each under all mixes of gaps and stalls, and resets."""
    found = []
    for traffic in mixes(seed):
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        found.append(scenario(f"random, {label}", random_load(traffic.rng), traffic))
        found.append(scenario(f"random, {label}", random_load(traffic.rng), traffic).cut(traffic.rng))
        found += [scenario(f"{name}, {label}", load, traffic) for name, load in CORNERS.items()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_dispatch(seed):
    run_scenarios(bench(), "dispatch", scenarios(seed), seed=seed)


def test_corners_are_reached():
    runs = {run.name.partition(",")[0]: run for run in scenarios(1)}
    for name, load in CORNERS.items():
        dropped = runs[name].pulses["dropped"]
        assert (dropped > 0) == (load.capacity > 0), name
    assert "reset in the middle of random" in runs
