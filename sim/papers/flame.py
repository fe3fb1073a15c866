"""FLAME (DOI 10.1145/3649329.3656507): bytes of an expert over the bandwidth of either memory.

And how often a circular prediction from drawn experts, as :mod:`sim.system.caches` has it, is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from sim.papers.routed import expert_of
from sim.routing import draw_ids, parse_routing
from sim.system.caches import circular
from sim.system.comparison import Steps
from sim.system.step import load_counts
from spec.model import GatingSpec, Normalise, Score
from spec.paper import PaperSpec, Workload

OTHERS_BITS = 16
"""Of a weight on a GPU or a CPU."""
STEPS, ENTRIES = 256, 2
"""Tokens after each other, and the experts that the caches hold."""


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim. Times are of one weight: an expert's size cancels."""
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    exposed = 1 - v["hit_rate"] * (1 - v["exposed_hits"])
    fpga = v["kept"] * v["bits"] / 8 / v["bytes_per_s"] * exposed
    gpu, cpu = (
        OTHERS_BITS / 8 / (v[f"{name}_bytes_per_s"] * v[f"{name}_efficiency"]) for name in ("gpu", "cpu")
    )
    return {
        "speed_over_gpu": gpu / fpga,
        "speed_over_cpu": cpu / fpga,
        "hit_rate": predicted(paper.workloads["switch_base_128"], v["zipf"]),
    }


@lru_cache(maxsize=8)
def predicted(work: Workload, zipf: float) -> float:
    """Return the share of a token's experts that the circular prediction has fetched."""
    gating = GatingSpec(
        num_experts=work.experts, top_k=work.top_k, score=Score.SOFTMAX, normalise=Normalise.NONE
    )
    routing = parse_routing(f"zipf:{zipf:g}" if zipf else "uniform")
    ids = np.stack([draw_ids(gating, routing, STEPS, layer) for layer in range(work.layers)])
    counts = load_counts(ids.reshape(-1, 1, work.top_k), work.experts)
    shape = (work.layers, STEPS)
    steps = Steps(ids.reshape(*shape, 1, -1), counts.reshape(*shape, -1), expert_of(work))
    active = steps.counts > 0
    return float((circular(steps, ENTRIES) & active).sum() / active.sum())
