"""What only mutants need of the expert engine: last places of its sums, many jobs, resets, a sink's edges."""

from __future__ import annotations

import numpy as np

from rtl.expert import ExpertConfig
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_expert_bench import hesitant, load_of, random_jobs, scenario
from tests.mutation.expert_loads import LOADS
from tests.mutation.traffic import edges, under_traffic


def scenarios(config: ExpertConfig, seed: int) -> list[Scenario]:
    """Return loads whose last places show, under all traffic; many jobs, with resets at any time."""
    kinds = [*mixes(seed), *edges(seed)]
    rng = np.random.default_rng([seed, len(kinds)])
    found = under_traffic(
        LOADS,
        kinds,
        rng,
        lambda name, load, traffic: scenario(name, config, load(config, rng), traffic),
    )
    for traffic in kinds:
        jobs = [job for _ in range(4) for job in random_jobs(config, rng)]
        whole = scenario(f"many jobs, {traffic.label}", config, load_of(config, rng, jobs), traffic)
        found += [whole, whole.cut(rng), whole.cut(rng), hesitant(whole, rng)]
    return found
