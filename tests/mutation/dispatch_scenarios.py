"""What only mutants need of the dispatcher: windows of which one expert has all tokens, each in turn."""

from __future__ import annotations

import numpy as np

from spec.design import Policy
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_dispatch_bench import ALL_UNITS, UNITS, Load, scenario
from tests.mutation.traffic import edges, under_traffic

WINDOWS = 10


def popular(rng: np.random.Generator) -> Load:
    """Each window has a favourite, all of its tokens' first or second choice; any unit may serve any."""
    num_experts, window = UNITS.num_experts, UNITS.window_tokens
    favourites = rng.permutation(np.arange(WINDOWS) % num_experts).repeat(window)
    others = (favourites + rng.integers(1, num_experts, len(favourites))) % num_experts
    ids = np.stack([favourites, others], axis=1)
    ids = rng.permuted(ids, axis=1)
    policy = Policy.LONGEST_QUEUE if rng.random() < 0.7 else Policy.QUEUE_ORDER
    rate = float(rng.choice([0.02, 0.1, 0.5]))
    batches = [4 * window, (WINDOWS - 4) * window]
    return Load(ids, batches, policy=policy, placement=ALL_UNITS, retire_rate=rate)


def crowded(rng: np.random.Generator) -> Load:
    """One expert is all choices of more tokens than it has places: its count takes every value."""
    tokens = int(rng.integers(8, 3 * UNITS.window_tokens))
    ids = np.full((tokens, UNITS.top_k), rng.integers(UNITS.num_experts))
    return Load(ids, [tokens], capacity=int(rng.integers(8, 16)), placement=ALL_UNITS)


LOADS = {popular: 12, crowded: 12}
"""How often each is drawn."""


def unit_scenarios(seed: int) -> list[Scenario]:
    """Return windows with a favourite, for a dispatcher to several units, under all traffic."""
    rng = np.random.default_rng([seed, len(LOADS)])
    return under_traffic(
        LOADS,
        [*mixes(seed), *edges(seed)],
        rng,
        lambda name, load, traffic: scenario(name, load(rng), traffic, UNITS),
    )
