"""A step of a model's MoE layers on a system: costs, policy, schedule, and what holds of every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sim.system.blocks import JobTimes
from sim.system.costs import BoolArray, Costs, Expert, FloatArray, IntArray, Roofline
from sim.system.policies import split
from sim.system.schedule import Schedule, bounds, schedule
from spec.errors import InputError, require
from spec.system import Sharding, SystemSpec, WeightPlace, nominal

BITS = 8


@dataclass(frozen=True)
class Step:
    """A step that was run.

    Attributes
    ----------
    costs, schedule : what it was run with, and when everything happened.
    bounds : name -> seconds that no policy is faster than.
    """

    costs: Costs
    schedule: Schedule
    bounds: dict[str, float]

    @property
    def seconds(self) -> float:
        """The step's time."""
        return self.schedule.seconds


def load_counts(ids: IntArray, num_experts: int) -> IntArray:
    """Return (layers, experts) int64 tokens from (layers, tokens, k) experts of each token."""
    layers = ids.shape[0]
    flat = (ids.reshape(layers, -1) + num_experts * np.arange(layers)[:, None]).ravel()
    return np.bincount(flat, minlength=layers * num_experts).reshape(layers, num_experts)


def system_costs(
    system: SystemSpec,
    counts: IntArray,
    expert: Expert,
    values: Mapping[str, float] | None = None,
    *,
    cached: BoolArray | None = None,
    tiered: BoolArray | None = None,
    jobs: JobTimes | None = None,
) -> Costs:
    """Return the costs of a step's experts on a system; each device's are a row of their own.

    Parameters
    ----------
    counts : (layers, experts).
    values : :func:`spec.system.nominal`'s, or others under the same names.
    cached : (layers, experts), experts whose weights the host has already; by default none.
    tiered : (layers, experts), those of them that it has in its tier; by default none.
    jobs : of a near engine that is an accelerator: how long its experts take.
    """
    values = nominal(system) if values is None else values
    host = Roofline.of(values, "host")
    link = values["link.bytes_per_s"] * values["link.efficiency"]
    latency = values["link.latency_s"]
    units = int(values.get("units", 1)) if system.sharding is Sharding.EXPERT else 1
    devices = int(values.get("exchange.devices", 1))
    require(
        counts.shape[1] % devices == 0,
        f"must divide the {counts.shape[1]} experts, not {devices}",
        key="exchange.devices",
    )
    counts = np.ascontiguousarray(counts).reshape(len(counts) * devices, -1)
    if jobs is None:
        near = Roofline.of(values, "near")
        near = replace(near, bytes_per_s=near.bytes_per_s / units, flops=near.flops / units)
        near_s, near_bytes_per_s = near.experts(counts, expert), values["near.bytes_per_s"]
    else:
        near_s = jobs.experts(counts)
        # As it reads one expert for one token.
        near_bytes_per_s = units * expert.weight_bytes / jobs.of(1).seconds
    host_s, tier = host.experts(counts, expert), Roofline.of_tier(values, "host")
    if tier is not None and tiered is not None:
        host_s = np.where(tiered.reshape(counts.shape), tier.experts(counts, expert), host_s)
    moved = np.zeros(counts.shape)
    if system.weights is WeightPlace.NEAR:
        moved = np.where(counts > 0, expert.weight_bytes / link + latency, 0.0)
        if cached is not None:
            moved = np.where(cached.reshape(counts.shape), 0.0, moved)
    return Costs(
        counts,
        host_s,
        near_s,
        moved,
        2.0 * expert.d_model * counts.astype(np.float64) / link,
        np.arange(counts.shape[1]) % units,
        units,
        latency_s=latency,
        # Of nominal bandwidths, as the paper has the rule; efficiencies are not known to it.
        link_share=values["link.bytes_per_s"] / (values["link.bytes_per_s"] + near_bytes_per_s),
        alpha=values.get("alpha", 1.0),
        spaces=int(values.get("spaces", 0)),
        devices=devices,
    )


def run_step(costs: Costs, policy: str) -> Step:
    """Divide, schedule and check a step."""
    step = Step(costs, schedule(costs, split(policy, costs)), bounds(costs))
    check(step)
    return step


def check(step: Step) -> None:
    """Raise ``ArithmeticError`` unless every assignment was computed once and busy and idle fill the time."""
    costs, result = step.costs, step.schedule
    for name, mine in (("host", result.host), ("near", costs.active & ~result.host)):
        spans = result.spans[name]
        spans = spans[spans[:, 1] >= 0]
        served = np.zeros((costs.num_layers, costs.devices * costs.counts.shape[1]), np.int64)
        np.add.at(served, (spans[:, 0].astype(int), spans[:, 1].astype(int)), spans[:, 4].astype(int))
        if not np.array_equal(served.reshape(costs.counts.shape), np.where(mine, costs.counts, 0)):
            raise ArithmeticError(f"an expert was computed by the {name} not once")
    slack = 1e-9 * result.layer_s.max(initial=0.0) + 1e-15
    for name, busy in result.busy_s.items():
        spans = result.spans[name]
        if abs((spans[:, 3] - spans[:, 2]).sum() - busy.sum()) > slack * max(1, len(spans)):
            raise ArithmeticError(f"spans of the {name} do not sum to its work")
        if (result.idle_s(name) < -slack).any():
            raise ArithmeticError(f"the {name} works longer than a layer takes")
        if len(spans) and spans[:, 3].max() > result.seconds + slack:
            raise ArithmeticError(f"the {name} works behind the end")
        if _overlap(spans) > slack:
            raise ArithmeticError(f"the {name} does two things at a time")
    for name, seconds in step.bounds.items():
        if result.seconds < seconds * (1 - 1e-9):
            raise ArithmeticError(f"the step is faster than its bound {name}")


def _overlap(spans: FloatArray) -> float:
    """Return by how many seconds a unit's span begins before the one before it has ended, at most."""
    ordered = spans[np.lexsort((spans[:, 3], spans[:, 2], spans[:, 5]))]
    same = ordered[1:, 5] == ordered[:-1, 5]
    return float((ordered[:-1, 3] - ordered[1:, 2])[same].max(initial=0.0))


def least_frequent_leave(counts: IntArray, entries: int) -> BoolArray:
    """Return (steps, layers, experts) bool, what an LFU cache of experts holds when a step begins.

    Before each step: the ``entries`` experts with the most uses so far, of equals the lowest; what was never
    used is not held. An expert is taken to be there from the step after its use.

    Parameters
    ----------
    counts : (steps, layers, experts), tokens.
    """
    uses: IntArray = np.cumsum(counts > 0, axis=0) - (counts > 0)
    order = np.argsort(-uses, axis=2, kind="stable")
    held = np.zeros(counts.shape, bool)
    np.put_along_axis(held, order[:, :, :entries], True, axis=2)
    cached: BoolArray = held & (uses > 0)
    return cached


def check_capacity(system: SystemSpec, weight_bytes: float) -> None:
    """Raise :class:`InputError` if all experts of a model do not fit the memories that hold them."""
    capacity = system.near.capacity_bytes
    devices = 1 if system.exchange is None else int(system.exchange.devices.value)
    if capacity is not None and weight_bytes > devices * capacity.value:
        of = "" if devices == 1 else f"{devices} x "
        raise InputError(
            f"must hold all experts, {weight_bytes / 1e9:,.1f} GB, not {of}{capacity.value / 1e9:,.1f} GB",
            file=f"system {system.name}",
            key="near.capacity_bytes",
        )


def memory_energy(step: Step, expert: Expert, host_j_per_bit: float, near_j_per_bit: float) -> FloatArray:
    """Return (2,) joules of reading weights and tokens, by host and near engine."""
    traffic = np.where(step.costs.active, expert.traffic(step.costs.counts), 0.0)
    of_host = np.where(step.schedule.host, traffic, 0.0).sum()
    return BITS * np.array([of_host * host_j_per_bit, (traffic.sum() - of_host) * near_j_per_bit])
