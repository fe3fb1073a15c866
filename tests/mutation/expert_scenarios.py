"""What only mutants need of the expert engine: last places of sums, many jobs, resets, far images, edges."""

from __future__ import annotations

import numpy as np

from rtl.expert import ExpertConfig
from rtl.expert.layouts import PAGE_BITS
from spec.geometry import PAGE_BYTES, ceil_div
from tests.bench.scenarios import Scenario, mixes
from tests.bench.test_expert_bench import IMAGE_PAGE, NUM_EXPERTS, hesitant, load_of, random_jobs, scenario
from tests.mutation import expert_loads, integer_loads
from tests.mutation.traffic import edges, under_traffic

FAR = 3
"""Images far up in memory under each kind of traffic."""


def far_page(config: ExpertConfig, rng: np.random.Generator) -> int:
    """Return where an image begins: a carry runs over any number of places on the way to one of its pages."""
    pages = ceil_div(config.image.num_bytes, PAGE_BYTES)
    place = int(rng.integers(PAGE_BITS))
    above = int(rng.integers(1 << (PAGE_BITS - place)))
    page = ((above << place) - int(rng.integers(1, pages))) % (1 << PAGE_BITS)
    return min(max(page, IMAGE_PAGE), (1 << PAGE_BITS) - pages)


def scenarios(config: ExpertConfig, seed: int) -> list[Scenario]:
    """Return loads whose last places show, under all traffic; many jobs, with resets; images anywhere."""
    kinds = [*mixes(seed), *edges(seed)]
    rng = np.random.default_rng([seed, len(kinds)])
    found = under_traffic(
        integer_loads.LOADS if config.integer else expert_loads.LOADS,
        kinds,
        rng,
        lambda name, load, traffic: scenario(name, config, load(config, rng), traffic),
    )
    for traffic in kinds:
        jobs = [job for _ in range(4) for job in random_jobs(config, rng)]
        whole = scenario(f"many jobs, {traffic.label}", config, load_of(config, rng, jobs), traffic)
        found += [whole, whole.cut(rng), whole.cut(rng), hesitant(whole, rng)]
        # All experts, so that every page of the image is met.
        jobs = [(expert, [expert % config.num_slots]) for expert in range(-1, NUM_EXPERTS)]
        for _ in range(FAR):
            load = load_of(config, rng, jobs)
            page = far_page(config, rng)
            found.append(scenario(f"image at {page:#x}, {traffic.label}", config, load, traffic, page))
    return found
