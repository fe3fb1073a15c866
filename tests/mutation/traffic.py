"""Arrivals and readiness at the edges: a sink that opens late, or stalls once; beats that come far apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.streams import Cycles, Spans, readiness
from tests.bench.scenarios import PATTERN_CYCLES, Scenario, Traffic
from tests.block_bench import arrivals_of


@dataclass(frozen=True)
class Edge(Traffic):
    """Traffic whose sink is closed in some stretches of cycles; what is asked for next is another draw.

    ``stalls`` is "late" (closed at first), "once" (one short stretch), "rare" (open one cycle in many).
    ``gaps`` is "far" (every beat comes after what the one before does) or as usual.
    """

    def arrivals(self, count: int, *, after: int = 0) -> Cycles:
        """Return ascending arrival cycles."""
        if self.gaps != "far":
            return arrivals_of(self.rng, self.gaps, count) + after
        return np.cumsum(self.rng.integers(10, 60, count)) + after

    def ready(self) -> tuple[np.ndarray | None, Spans]:
        """Return a ready pattern and the same for a cycle model."""
        pattern = np.ones(PATTERN_CYCLES, dtype=bool)
        if self.stalls == "late":
            pattern[: int(self.rng.integers(100, 900))] = False
        elif self.stalls == "once":
            start = int(self.rng.integers(20, 300))
            pattern[start : start + int(self.rng.integers(1, 80))] = False
        else:
            every = int(self.rng.integers(3, 12))
            pattern[: 1 << 14] = np.arange(1 << 14) % every == 0
        return pattern, readiness(pattern)


def edges(seed: int) -> list[Edge]:
    """Return the pairs of gaps and stalls at the edges, each with its own random numbers."""
    pairs = [("none", "late"), ("half", "late"), ("none", "once"), ("far", "once"), ("none", "rare")]
    return [Edge(*pair, np.random.default_rng([seed, 100 + n])) for n, pair in enumerate(pairs)]


def under_traffic(
    loads: Mapping[Callable[..., Any], int],
    kinds: Sequence[Traffic],
    rng: np.random.Generator,
    scenario: Callable[[str, Callable[..., Any], Traffic], Scenario],
) -> list[Scenario]:
    """Return each kind of load as often as ``loads`` says, each time under traffic that is drawn.

    ``scenario`` makes one, from a name, the function that draws a load, and the traffic.
    """
    found = []
    for load, times in loads.items():
        for time in range(times):
            traffic = kinds[int(rng.integers(len(kinds)))]
            found.append(
                scenario(f"{load.__name__.replace('_', ' ')} {time}, {traffic.label}", load, traffic)
            )
    return found
