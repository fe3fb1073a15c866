"""PIMoE: from all experts near, the busiest unit's most popular one moves to the host, again and again.

Until the host's time exceeds that of the busiest unit, as Sieve describes it (arXiv 2605.11277, sections 5.2
and 7.1). Times are sums: neither links nor attention are looked at.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sim.system.costs import BoolArray, Costs, FloatArray, IntArray
from sim.system.policies.prefixes import popular_first


def split(costs: Costs) -> BoolArray:
    """Return the experts that were moved."""
    moved: BoolArray = _moved(
        popular_first(costs), costs.active, costs.host_path_s, costs.near_s, costs.unit, costs.num_units
    )
    return moved


@njit(cache=True)
def _moved(
    order: IntArray, active: BoolArray, host_s: FloatArray, near_s: FloatArray, unit: IntArray, num_units: int
) -> BoolArray:
    layers, experts = order.shape
    moved = np.zeros((layers, experts), np.bool_)
    for layer in range(layers):
        busy, host = np.zeros(num_units), 0.0
        for expert in range(experts):
            busy[unit[expert]] += near_s[layer, expert]
        while True:
            busiest, popular = busy.argmax(), -1
            for expert in order[layer]:
                if unit[expert] == busiest and active[layer, expert] and not moved[layer, expert]:
                    popular = expert
                    break
            if popular < 0:
                break
            moved[layer, popular] = True
            busy[busiest] -= near_s[layer, popular]
            host += host_s[layer, popular]
            if host > busy.max():
                break
    return moved
