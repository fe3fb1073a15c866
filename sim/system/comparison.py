"""Policies of a family beside each other, with their baseline and bound, and the steps that they run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.routing import IntArray, Routing, draw_ids
from sim.system.costs import BYTES, Expert
from sim.system.step import load_counts
from spec.errors import require, require_range
from spec.model import ModelSpec

MOST_TOKENS = 1 << 20
"""Of all steps together."""


@dataclass(frozen=True)
class Result:
    """A policy's time, the time that no policy of its kind is below, and its other measures by name."""

    seconds: float
    bound_s: float
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A family's policies on the same steps.

    Attributes
    ----------
    title : model, machine and routing in words.
    baseline : the policy that the others are compared with.
    results : by policy; all with the same measures. A measure that ends in ``rate`` or ``share`` is of 1.
    bound : in words.
    """

    family: str
    title: str
    baseline: str
    results: dict[str, Result]
    bound: str

    def __post_init__(self) -> None:
        for name, result in self.results.items():
            if result.seconds < result.bound_s * (1 - 1e-9):
                raise ArithmeticError(f"{self.family} policy {name} is faster than its bound")

    def speed(self, policy: str) -> float:
        """Return how many times as fast as the baseline a policy is."""
        return self.results[self.baseline].seconds / self.results[policy].seconds

    @property
    def columns(self) -> tuple[str, ...]:
        """Of :meth:`rows`."""
        measures = next(iter(self.results.values())).measures
        return ("policy", *(name.replace("_", " ") for name in measures), "us", "speed", "over bound")

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each policy, fastest first; the baseline has a star."""
        return [
            (
                name + (" *" if name == self.baseline else ""),
                *(_written(measure, value) for measure, value in result.measures.items()),
                f"{result.seconds * 1e6:.2f}",
                f"{self.speed(name):.3f}",
                f"{result.seconds / result.bound_s:.3f}",
            )
            for name, result in sorted(self.results.items(), key=lambda entry: entry[1].seconds)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of ``expertbank policies``."""
        return {
            "family": self.family,
            "title": self.title,
            "baseline": self.baseline,
            "bound": self.bound,
            "policies": {
                name: {
                    "seconds": result.seconds,
                    "bound_s": result.bound_s,
                    "speed": self.speed(name),
                    **result.measures,
                }
                for name, result in self.results.items()
            },
        }


def _written(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure.endswith(("rate", "share")) else f"{value:.4g}"


@dataclass(frozen=True)
class Steps:
    """Steps of a model's MoE layers.

    Attributes
    ----------
    ids : (layers, steps, tokens, k) int64, experts of each token.
    counts : (layers, steps, experts) int64, tokens of each; 0 for identity experts, which compute nothing.
    expert : its size.
    """

    ids: IntArray
    counts: IntArray
    expert: Expert

    @property
    def in_time(self) -> IntArray:
        """``counts`` as (steps x layers, experts), one layer after another."""
        return self.counts.swapaxes(0, 1).reshape(-1, self.counts.shape[2])


def drawn_steps(
    model: ModelSpec, steps: int, tokens: int, routing: Routing, seed: int, phase: str | None = None
) -> Steps:
    """Return steps of so many tokens each, that follow each other in a routing; row b is sequence b."""
    require_range("tokens", tokens, 1, MOST_TOKENS)
    require_range("steps", steps, 1, MOST_TOKENS // tokens)
    routing.check_layers(model.num_moe_layers)
    gating = model.gating
    drawn = [
        draw_ids(gating, routing, steps * tokens, seed + layer, moe_layer=layer, phase=phase)
        for layer in range(model.num_moe_layers)
    ]
    ids = np.stack(drawn).reshape(len(drawn), steps, tokens, gating.top_k)
    counts = load_counts(ids.reshape(-1, tokens, gating.top_k), gating.num_experts)
    counts[:, gating.num_ffn_experts :] = 0
    params = model.expert_params / gating.num_ffn_experts
    expert = Expert(params, model.d_model, BYTES * params)
    return Steps(ids, counts.reshape(len(drawn), steps, -1), expert)


def halves(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return (layers, steps, experts) tokens of the steps to learn from, and of those to be judged by."""
    steps = counts.shape[1]
    require(steps > 1, f"must be at least 2, one to learn from and one to run, not {steps}", key="steps")
    return counts[:, : steps // 2], counts[:, steps // 2 :]
