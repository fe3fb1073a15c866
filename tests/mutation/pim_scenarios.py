"""What only mutants need of a near-memory channel: last places, far rows, many jobs, resets at any time."""

from __future__ import annotations

import numpy as np

from rtl.pim import PimConfig
from rtl.pim.rows import REFRESH_BITS
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_expert_bench import load_of, random_jobs
from tests.bench.test_pim_bench import scenario
from tests.mutation.expert_loads import LOADS, tied_by_last_place
from tests.mutation.traffic import edges, under_traffic

FAR_REFRESHES = range(8, REFRESH_BITS)
"""Powers of two by which a first refresh is later: each bit of the count."""


def scenarios(config: PimConfig, seed: int) -> list[Scenario]:
    """Return loads whose last places show, under all traffic; many jobs, with resets at any time."""
    kinds = [*mixes(seed), *edges(seed)]
    rng = np.random.default_rng([seed, len(kinds)])
    found = under_traffic(
        {**LOADS, tied_by_last_place: 24},
        kinds,
        rng,
        lambda name, load, traffic: scenario(
            name, config, load(config, rng), traffic, first_row=_row(config, rng)
        ),
    )
    for traffic in kinds:
        jobs = [job for _ in range(4) for job in random_jobs(config, rng)]
        load = load_of(config, rng, jobs)
        whole = scenario(f"many jobs, {traffic.label}", config, load, traffic, first_row=_row(config, rng))
        found += [whole, whole.cut(rng), whole.cut(rng)]
    for bit in FAR_REFRESHES:
        traffic = kinds[bit % len(kinds)]
        load = load_of(config, rng, random_jobs(config, rng))
        name = f"first refresh {1 << bit} cycles later, {traffic.label}"
        found.append(scenario(name, config, load, traffic, refresh_later=1 << bit))
    return found


def _row(config: PimConfig, rng: np.random.Generator) -> int:
    """Return a first row with which all experts lie in the banks; often the last one."""
    banks = config.banks
    experts = config.num_experts + len(config.kinds) - 1
    [visits] = banks.visits_used([[0]] * experts)
    most = banks.pim.dram.rows - visits // banks.sides
    return most if rng.random() < 0.5 else int(rng.integers(most + 1))
