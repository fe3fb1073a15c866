"""A step of a model on a system, under every policy: what ``expertbank system`` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.routing import Routing, draw_ids
from sim.system.alone import run_alone
from sim.system.area import SystemArea, system_area
from sim.system.blocks import JobTimes
from sim.system.caches import largest, tier_entries
from sim.system.costs import BYTES, BoolArray, Costs, Expert, IntArray
from sim.system.energy import NOTE, SystemEnergy, step_energy
from sim.system.exchange import Cluster, Link
from sim.system.outside import Outside, outside_of
from sim.system.policies import POLICIES, policy_named
from sim.system.step import (
    Step,
    check_capacity,
    least_frequent_leave,
    load_counts,
    run_step,
    system_costs,
)
from spec.catalogue import Backbone
from spec.errors import InputError, require, require_range
from spec.model import ModelSpec
from spec.system import ALONE, Overlap, SystemSpec, nominal

COLUMNS = ("policy", "us", "over bound", "on host", "host busy", "near busy", "link busy", "exchange", "mJ")
PREFILL = "prefill"


@dataclass(frozen=True)
class SystemRun:
    """A step under its system's policy, and under the others; ``wall_s`` is of all of them.

    Attributes
    ----------
    tokens : of the step, of all devices.
    steps, energies : by policy.
    area : of the system's silicon.
    notes : what is not counted.
    """

    system: SystemSpec
    model: str
    tokens: int
    routing: str
    policy: str
    steps: dict[str, Step]
    energies: dict[str, SystemEnergy]
    area: SystemArea
    notes: tuple[str, ...]
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of ``expertbank system``."""
        step, energy = self.steps[self.policy], self.energies[self.policy]
        result, costs = step.schedule, step.costs
        layers = costs.num_layers

        def total(part: object) -> float:
            return float(np.broadcast_to(np.asarray(part), layers).sum())

        return {
            "system": self.system.name,
            "model": self.model,
            "tokens": self.tokens,
            "routing": self.routing,
            "policy": self.policy,
            "seconds": step.seconds,
            "layers": layers,
            "devices": costs.devices,
            "assignments": int(costs.counts.sum()),
            "experts": {"host": int(result.host.sum()), "active": int(costs.active.sum())},
            "busy_s": {name: float(result.busy_s[name].sum()) for name in result.busy_s},
            # (What rounding leaves of a resource that always works may be below 0.)
            "idle_s": {name: float(result.idle_s(name).clip(0).sum()) for name in result.busy_s},
            "exchange_s": float(result.exchange_s.sum()),
            "parts_s": {
                "before_experts": total(costs.before_host_s) + total(costs.before_near_s),
                "between_devices": total(costs.exchange_s),
                "experts": step.seconds
                - total(costs.before_host_s)
                - total(costs.before_near_s)
                - (0.0 if costs.overlapped else total(costs.exchange_s)),
            },
            "energy_j": energy.total,
            "energy": {"components_j": energy.components, "missing": list(energy.missing)},
            **self.area.as_json(),
            "bounds_s": step.bounds,
            "policies": {name: other.seconds for name, other in self.steps.items()},
            "notes": list(self.notes),
            "wall_s": self.wall_s,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of ``COLUMNS`` for each policy, fastest first; the system's own has a star."""
        rows: list[tuple[str, ...]] = []
        for name, step in sorted(self.steps.items(), key=lambda entry: entry[1].seconds):
            result, joules = step.schedule, self.energies[name].total
            shares = [
                f"{busy.sum() / (busy.shape[1] * step.seconds):.1%}" if busy is not None else "-"
                for busy in (result.busy_s.get(resource) for resource in ("host", "near", "link"))
            ]
            rows.append(
                (
                    name + (" *" if name == self.policy else ""),
                    f"{step.seconds * 1e6:.2f}",
                    f"{step.seconds / max(step.bounds.values()):.3f}",
                    f"{result.host.sum() / max(1, step.costs.active.sum()):.1%}",
                    *shares,
                    f"{(result.exchange_s.sum() + np.sum(step.costs.exchange_s)) / step.seconds:.1%}",
                    "-" if joules is None else f"{joules * 1e3:.4g}",
                )
            )
        return rows


@dataclass(frozen=True)
class Planned:
    """What a step on a system with a host is run with.

    Attributes
    ----------
    costs : of every expert, and what is beside them.
    expert : the size of one.
    jobs : of a near engine that is an accelerator.
    outside : on the device with most tokens.
    exchanged_bytes : between devices, of all layers.
    tiered : (layers, experts), what the host reads from its tier where it computes it.
    """

    costs: Costs
    expert: Expert
    values: dict[str, float]
    outside: Outside
    jobs: JobTimes | None = None
    exchanged_bytes: float = 0.0
    tiered: BoolArray | None = None

    def energy(self, system: SystemSpec, step: Step) -> SystemEnergy:
        """Return the energy of a step that was run with these costs."""
        return step_energy(
            system,
            self.values,
            step,
            self.expert,
            self.outside,
            jobs=self.jobs,
            exchanged_bytes=self.exchanged_bytes,
            tiered=self.tiered,
        )


def step_ids(
    model: ModelSpec, tokens: int, routing: Routing, seed: int, *, phase: str | None = None
) -> IntArray:
    """Return (layers, tokens, k) experts of a step's tokens, each layer with a routing of its own."""
    require_range("tokens", tokens, 1, 1 << 20)
    routing.check_layers(model.num_moe_layers)
    return np.stack(
        [
            draw_ids(model.gating, routing, tokens, seed + layer, moe_layer=layer, phase=phase)
            for layer in range(model.num_moe_layers)
        ]
    )


def plan_step(
    system: SystemSpec,
    model: ModelSpec,
    tokens: int,
    routing: Routing,
    seed: int,
    *,
    phase: str | None = None,
    backbone: Backbone | None = None,
) -> Planned:
    """Return what a step of a model on a system with a host costs, each layer with a routing of its own.

    A cache, and a tier, holds what an earlier step of the same routing has used most; of a trace nothing.
    ``backbone``: the model's attention and dense layers, where they are known.
    """
    require_range("tokens", tokens, 1, 1 << 20)
    gating, values = model.gating, nominal(system)
    share = system.cache_share
    holds = share is not None or (system.host is not None and system.host.tier is not None)
    drawn = tokens * (2 if holds and routing.synthetic else 1)
    ids = step_ids(model, drawn, routing, seed, phase=phase)
    params = model.expert_params / gating.num_ffn_experts
    expert = Expert(params, model.expert_width, BYTES * params)
    check_capacity(system, model.num_moe_layers * model.expert_params * BYTES)
    own = ids[:, -tokens:]
    # Identity experts have nothing to compute.
    counts = load_counts(own, gating.num_experts)[:, : gating.num_ffn_experts]
    cached: BoolArray | None = None
    tiered: BoolArray | None = None
    if drawn > tokens:
        before = load_counts(ids[:, :tokens], gating.num_experts)[:, : gating.num_ffn_experts]
        experts = gating.num_ffn_experts
        if share is not None:
            entries = int(share.value * experts)
            cached = least_frequent_leave(np.stack([before, counts]), entries)[1]
        places = tier_entries(system, len(counts), expert.weight_bytes, experts)
        if places is not None:
            tiered = largest(before.astype(np.float64), places)
            cached = tiered if cached is None else cached | tiered
    devices, jobs = int(values.get("exchange.devices", 1)), None
    if system.near.block is not None:
        units = devices * int(values["units"])
        # (Every layer's experts lie in the units' memories; a layer that fits is not a model that does.)
        jobs = JobTimes(model, system.near.block, -(-gating.num_ffn_experts // units))
    costs = system_costs(system, counts, expert, values, cached=cached, tiered=tiered, jobs=jobs)
    layers = model.num_moe_layers
    outside, exchanged = Outside.nothing(layers), 0.0
    if system.outside is not None:
        prefill = phase == PREFILL
        outside = outside_of(
            system.outside, values, model, backbone, tokens, prefill=prefill, devices=devices
        )
        costs = replace(
            costs,
            shared_s=np.repeat(outside.shared_s, devices),
            before_host_s=outside.before_host_s,
            before_near_s=outside.before_near_s,
        )
    if system.exchange is not None:
        link = Link.of(system.exchange.link)
        cluster = Cluster(devices, 1, link, link)
        copies = token_copies(own, gating.num_ffn_experts, devices)
        there = cluster.transfer(copies, BYTES * expert.d_model)
        overlapped = system.exchange.overlap is Overlap.EXPERTS
        costs = replace(costs, exchange_s=2 * there, overlapped=overlapped)
        away = copies.sum() - np.trace(copies, axis1=1, axis2=2).sum()
        exchanged = 2.0 * BYTES * expert.d_model * float(away)
    return Planned(costs, expert, values, outside, jobs, exchanged, tiered)


def token_copies(ids: IntArray, num_ffn: int, devices: int) -> IntArray:
    """Return (layers, devices, devices) tokens that go from row to column, once for each expert."""
    layers, tokens, _ = ids.shape
    source = np.arange(tokens) * devices // tokens
    pairs = source[None, :, None] * devices + np.minimum(ids, num_ffn - 1) * devices // num_ffn
    pairs = (pairs + devices**2 * np.arange(layers)[:, None, None])[ids < num_ffn]
    return np.bincount(pairs, minlength=layers * devices**2).reshape(layers, devices, devices)


@dataclass(frozen=True)
class PolicyRuns:
    """A step under each of some policies.

    Attributes
    ----------
    steps, energies : by policy.
    notes : what is not counted.
    dropped : assignments that found no place, the same under each policy.
    """

    steps: dict[str, Step]
    energies: dict[str, SystemEnergy]
    notes: tuple[str, ...]
    dropped: int = 0


def run_policies(
    system: SystemSpec,
    model: ModelSpec,
    tokens: int,
    routing: Routing,
    seed: int,
    policies: Sequence[str],
    *,
    phase: str | None = None,
    backbone: Backbone | None = None,
) -> PolicyRuns:
    """Return a step under each of some policies.

    A system of one accelerator has one policy: everything is computed there.
    """
    for policy in policies:
        policy_named(policy)
    if system.host is None:
        design = system.near.block
        assert design is not None
        for policy in policies:
            require(policy == ALONE, f"must be {ALONE!r} without a host, not {policy!r}", key="policy")
        ids = step_ids(model, tokens, routing, seed, phase=phase)
        try:
            step, energy, reports = run_alone(model, design, ids, routing.layer_name())
        except InputError as error:
            raise error.at(file=f"design {design.name}") from None
        dropped = sum(report.dropped for report in reports)
        notes = ["attention and dense layers are not counted: there is no host"]
        if dropped:
            notes.append(f"{dropped} assignments found no place")
        return PolicyRuns({ALONE: step}, {ALONE: energy}, tuple(notes), dropped)
    planned = plan_step(system, model, tokens, routing, seed, phase=phase, backbone=backbone)
    steps = {policy: run_step(planned.costs, policy) for policy in policies}
    energies = {policy: planned.energy(system, step) for policy, step in steps.items()}
    return PolicyRuns(steps, energies, (*planned.outside.notes, NOTE))


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
    backbone: Backbone | None = None,
) -> SystemRun:
    """Run a step under every policy; ``policy`` is the one that is reported, by default the system's."""
    chosen = policy or system.policy
    policy_named(chosen)
    started = time.perf_counter()
    others = (chosen,) if system.host is None else tuple(POLICIES)
    runs = run_policies(system, model, tokens, routing, seed, others, phase=phase, backbone=backbone)
    wall = time.perf_counter() - started
    area = system_area(system, model)
    found = runs.steps, runs.energies, area, runs.notes
    return SystemRun(system, name, tokens, routing.name, chosen, *found, wall)
