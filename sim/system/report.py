"""A step of a model on a system, under every policy: what ``expertbank system`` prints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.routing import Routing, draw_ids
from sim.system.costs import BYTES, Costs, Expert
from sim.system.policies import POLICIES, policy_named
from sim.system.schedule import RESOURCES
from sim.system.step import Step, check_capacity, least_frequent_leave, load_counts, run_step, system_costs
from spec.errors import require_range
from spec.model import ModelSpec
from spec.system import SystemSpec

COLUMNS = ("policy", "us", "over bound", "on host", "host busy", "near busy", "link busy", "exchange")


@dataclass(frozen=True)
class SystemRun:
    """A step under its system's policy, and under the others; ``wall_s`` is of all of them."""

    system: SystemSpec
    model: str
    tokens: int
    routing: str
    policy: str
    steps: dict[str, Step]
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of ``expertbank system``."""
        step = self.steps[self.policy]
        result, costs = step.schedule, step.costs
        return {
            "system": self.system.name,
            "model": self.model,
            "tokens": self.tokens,
            "routing": self.routing,
            "policy": self.policy,
            "seconds": step.seconds,
            "layers": len(result.layer_s),
            "assignments": int(costs.counts.sum()),
            "experts": {"host": int(result.host.sum()), "active": int(costs.active.sum())},
            "busy_s": {name: float(result.busy_s[name].sum()) for name in RESOURCES},
            "idle_s": {name: float(result.idle_s(name).sum()) for name in RESOURCES},
            "exchange_s": float(result.exchange_s.sum()),
            "bounds_s": step.bounds,
            "policies": {name: other.seconds for name, other in self.steps.items()},
            "wall_s": self.wall_s,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of ``COLUMNS`` for each policy, fastest first; the system's own has a star."""
        rows: list[tuple[str, ...]] = []
        for name, step in sorted(self.steps.items(), key=lambda entry: entry[1].seconds):
            result = step.schedule
            units = {resource: busy.shape[1] for resource, busy in result.busy_s.items()}
            shares = [
                f"{result.busy_s[resource].sum() / (units[resource] * step.seconds):.1%}"
                for resource in ("host", "near", "link")
            ]
            rows.append(
                (
                    name + (" *" if name == self.policy else ""),
                    f"{step.seconds * 1e6:.2f}",
                    f"{step.seconds / max(step.bounds.values()):.3f}",
                    f"{result.host.sum() / step.costs.active.sum():.1%}",
                    *shares,
                    f"{result.exchange_s.sum() / step.seconds:.1%}",
                )
            )
        return rows


def step_costs(
    system: SystemSpec,
    model: ModelSpec,
    tokens: int,
    routing: Routing,
    seed: int,
    *,
    phase: str | None = None,
) -> Costs:
    """Return the costs of a model's MoE layers, each with a routing of its own.

    Of the routed experts alone: shared experts, attention and dense layers are not part of it. A cache holds
    what an earlier step of the same routing has used most; of a trace nothing.
    """
    require_range("tokens", tokens, 1, 1 << 20)
    routing.check_layers(model.num_moe_layers)
    gating = model.gating
    drawn = tokens * (2 if system.cache_share is not None and routing.synthetic else 1)
    ids = np.stack(
        [
            draw_ids(gating, routing, drawn, seed + layer, moe_layer=layer, phase=phase)
            for layer in range(model.num_moe_layers)
        ]
    )
    params = model.expert_params / gating.num_ffn_experts
    expert = Expert(params, model.d_model, BYTES * params)
    check_capacity(system, model.num_moe_layers * model.expert_params * BYTES)
    counts = load_counts(ids[:, -tokens:], gating.num_experts)
    # Identity experts have nothing to compute.
    counts[:, gating.num_ffn_experts :] = 0
    cached = None
    if drawn > tokens:
        assert system.cache_share is not None
        both = np.stack([load_counts(ids[:, :tokens], gating.num_experts), counts])
        cached = least_frequent_leave(both, int(system.cache_share.value * gating.num_experts))[1]
    return system_costs(system, counts, expert, cached=cached)


def run_system(
    system: SystemSpec,
    name: str,
    model: ModelSpec,
    tokens: int,
    routing: Routing,
    seed: int,
    *,
    policy: str | None = None,
    phase: str | None = None,
) -> SystemRun:
    """Run a step under every policy; ``policy`` is the one that is reported, by default the system's."""
    chosen = policy or system.policy
    policy_named(chosen)
    started = time.perf_counter()
    costs = step_costs(system, model, tokens, routing, seed, phase=phase)
    steps = {other: run_step(costs, other) for other in POLICIES}
    return SystemRun(system, name, tokens, routing.name, chosen, steps, time.perf_counter() - started)
