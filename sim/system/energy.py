"""Energy of a step on a system: bits read, operations, bits over links, times the engines' own figures.

A component is there where something of it happened; one whose figure is not known makes the total unknown
(None), and is named: nothing is silently zero. Not counted: idle power, and what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.system.blocks import JobTimes
from sim.system.costs import BYTES, BoolArray, Expert
from sim.system.outside import Outside
from sim.system.step import BITS, Step
from spec.system import SystemSpec, WeightPlace

NOTE = "energy: idle power and writes are not counted"


@dataclass(frozen=True)
class SystemEnergy:
    """Joules of a step by component; ``missing`` components happened, but nobody has their figure."""

    components: dict[str, float]
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> float | None:
        """All components together; None where one is not known."""
        return None if self.missing else sum(self.components.values())


def step_energy(
    system: SystemSpec,
    values: Mapping[str, float],
    step: Step,
    expert: Expert,
    outside: Outside,
    *,
    jobs: JobTimes | None = None,
    exchanged_bytes: float = 0.0,
    tiered: BoolArray | None = None,
) -> SystemEnergy:
    """Return the energy of a step on a system with a host.

    Parameters
    ----------
    jobs : of a near engine that is an accelerator.
    exchanged_bytes : that cross the links between devices.
    tiered : (layers, experts), what the host has in its tier.
    """
    costs, result = step.costs, step.schedule
    on_host, near = result.host, costs.active & ~result.host
    amounts: dict[str, float] = {}

    def add(name: str, amount: float) -> None:
        if amount:
            amounts[name] = amounts.get(name, 0.0) + amount

    traffic, flops = expert.traffic(costs.counts), expert.flops(costs.counts)
    fast = np.zeros(on_host.shape, bool) if tiered is None else on_host & tiered.reshape(on_host.shape)
    add("host.tier.memory_j_per_bit", BITS * float(traffic[fast].sum()))
    add("host.memory_j_per_bit", BITS * float(traffic[on_host & ~fast].sum()))
    add("host.flop_j", float(flops[on_host].sum()))
    components, missing = {}, []
    if jobs is None:
        add("near.memory_j_per_bit", BITS * float(traffic[near].sum()))
        add("near.flop_j", float(flops[near].sum()))
    elif near.any():
        joules = jobs.joules(np.where(near, costs.counts, 0))
        if joules is None:
            missing.append("near.block.energy")
        else:
            components["near accelerator"] = float(joules.sum())
    for place, part in outside.parts.values():
        add(f"{place}.memory_j_per_bit", part.times * BITS * part.all_bytes)
        add(f"{place}.flop_j", part.times * part.all_flops)
    moved = float(expert.weight_bytes * np.count_nonzero(costs.move_s[on_host]))
    if system.weights is WeightPlace.NEAR and jobs is None:
        add("near.memory_j_per_bit", BITS * moved)
    sent = 2.0 * BYTES * expert.d_model * float(costs.counts[near].sum())
    add("link.j_per_bit", BITS * (moved + sent))
    add("exchange.link.j_per_bit", BITS * exchanged_bytes)
    for name, amount in amounts.items():
        if name in values:
            components[COMPONENTS[name]] = amount * values[name]
        else:
            missing.append(name)
    return SystemEnergy(components, tuple(missing))


COMPONENTS = {
    "host.memory_j_per_bit": "host memory",
    "host.tier.memory_j_per_bit": "host tier",
    "host.flop_j": "host operations",
    "near.memory_j_per_bit": "near memory",
    "near.flop_j": "near operations",
    "link.j_per_bit": "link",
    "exchange.link.j_per_bit": "exchange",
}
"""Names of figures, and of what they cost."""
