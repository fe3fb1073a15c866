"""The merger of contributions, its exported Verilog under cocotb: whose beat comes when, all of its bits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rtl.expert.layouts import contribution_layout
from rtl.merge import ContributionMerge
from sim.merge import merge_cycles
from sim.rtlsim import RunSpec, Sink, Source
from tests.bench.runner import build
from tests.bench.scenarios import Expected, Scenario, Traffic, mixes, run_scenarios

LAYOUT = contribution_layout(8, 4, 2)
MOST_CYCLES = 20_000


NUM_INPUTS = 5
"""Turns wrap where it is no power of two."""
CORNERS = {
    "no beats but one": [0, 1, 0, 0, 0],
    "one input with all": [0, 0, 30, 0, 0],
    "one beat each": [1, 1, 1, 1, 1],
    "two inputs, the first and the last": [9, 0, 0, 0, 9],
    "all inputs": [9, 8, 7, 6, 5],
}


def merger() -> ContributionMerge:
    """Return the merger."""
    return ContributionMerge(LAYOUT, NUM_INPUTS)


def scenario(name: str, counts: Sequence[int], traffic: Traffic, *, apart: int = 1) -> Scenario:
    """Return the run of so many random beats at each input; ``apart``: how many times rarer they come."""
    arrivals = [traffic.arrivals(count) * apart for count in counts]
    pattern, ready = traffic.ready()
    model = merge_cycles(arrivals, ready=ready)
    size = LAYOUT.size
    beats = [
        [int.from_bytes(traffic.rng.bytes(-(-size // 8)), "little") & (1 << size) - 1 for _ in range(count)]
        for count in counts
    ]
    out = [beats[u][n] for u, n in zip(model.source, model.number, strict=True)]
    inputs = [f"i_{n}" for n in range(NUM_INPUTS)]
    return Scenario(
        f"{name}, {traffic.label}",
        RunSpec(
            sources={port: Source(*one) for port, *one in zip(inputs, beats, arrivals, strict=True)},
            sinks={"o": Sink(len(out), pattern)},
            max_cycles=MOST_CYCLES,
        ),
        {
            **{port: Expected(*one, LAYOUT) for port, *one in zip(inputs, beats, model.i, strict=True)},
            "o": Expected(out, model.o, LAYOUT),
        },
    )


def scenarios(seed: int) -> list[Scenario]:
    """Return every corner and random numbers of beats under all mixes, and resets."""
    found = []
    for traffic in mixes(seed):
        rng = traffic.rng
        for name, counts in CORNERS.items():
            found.append(scenario(name, counts, traffic))
        for apart in (1, NUM_INPUTS, 4 * NUM_INPUTS):
            counts = rng.integers(0, 40, NUM_INPUTS).tolist()
            counts[int(rng.integers(NUM_INPUTS))] += 1
            whole = scenario(f"{sum(counts)} beats, {apart} times rarer", counts, traffic, apart=apart)
            found += [whole.cut(rng), whole]
    return found


@pytest.mark.long
@pytest.mark.parametrize("seed", [1])
def test_merge(seed: int) -> None:
    rtl = build("merge", merger, config=(LAYOUT, NUM_INPUTS))
    run_scenarios(rtl, "merge", scenarios(seed), seed=seed)
