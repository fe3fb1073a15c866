"""Experts of a paper's workload, their tokens as drawn, and the numbers of one of its systems."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from sim.routing import draw_ids, parse_routing
from sim.system.costs import BYTES, Expert, IntArray
from sim.system.step import load_counts
from spec.model import GatingSpec, Normalise, Score
from spec.paper import Workload


def expert_of(work: Workload, kept: float = 1.0) -> Expert:
    """Return an expert of which a share of the weights is kept."""
    return Expert(kept * work.expert_params, work.d_model, kept * BYTES * work.expert_params)


def system_values(values: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the numbers of one of a paper's systems, under the names that they have in it."""
    prefix = f"systems.{name}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def counts_of(work: Workload, tokens: int, zipf: float, layers: int, steps: int = 1) -> IntArray:
    """Return (steps, layers, experts) tokens of each expert; always the same ones.

    Layers differ; the steps of a layer have the same popular experts.
    """
    return _drawn(work.experts, work.top_k, tokens, zipf, layers, steps)


@lru_cache(maxsize=256)
def _drawn(experts: int, top_k: int, tokens: int, zipf: float, layers: int, steps: int) -> IntArray:
    gating = GatingSpec(num_experts=experts, top_k=top_k, score=Score.SOFTMAX, normalise=Normalise.NONE)
    routing = parse_routing(f"zipf:{zipf:g}" if zipf else "uniform")
    ids = np.stack([draw_ids(gating, routing, steps * tokens, layer) for layer in range(layers)])
    by_step = ids.reshape(layers, steps, tokens * top_k).swapaxes(0, 1).reshape(steps * layers, -1)
    return load_counts(by_step, experts).reshape(steps, layers, experts)
