"""Policies that divide a layer's experts between the host and the engine near memory; one file each.

A policy takes :class:`sim.system.costs.Costs` and returns (layers, experts) bool, True for the host. It says
nothing about experts without tokens: :func:`split` leaves them near, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.system.costs import BoolArray, Costs
from sim.system.policies import (
    all_host,
    all_near,
    argmin,
    busiest_channel,
    faster,
    hot_cold,
    look_up,
    prefix_scan,
    ratio,
)
from spec.errors import InputError

Policy = Callable[[Costs], BoolArray]
POLICIES: dict[str, Policy] = {
    "all-host": all_host.split,
    "all-near": all_near.split,
    "faster": faster.split,
    "hot-cold": hot_cold.split,
    "ratio": ratio.split,
    "look-up": look_up.split,
    "busiest-channel": busiest_channel.split,
    "prefix-scan": prefix_scan.split,
    "argmin": argmin.split,
}


def policy_named(name: str) -> Policy:
    """Return a policy; :class:`InputError` for a name that is none."""
    if name not in POLICIES:
        raise InputError(f"must be one of {', '.join(POLICIES)}, not {name!r}", key="policy")
    return POLICIES[name]


def split(name: str, costs: Costs) -> BoolArray:
    """Return the experts that a policy gives to the host."""
    host: BoolArray = policy_named(name)(costs) & costs.active
    return host
