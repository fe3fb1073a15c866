"""Duplex's co-processing: experts with the fewest tokens move to the near engine while that helps.

From times in tables, all experts begin on the host; of all numbers of moved experts the one is kept whose
larger sum is the smallest (arXiv 2409.01141, section V-C). With memory spaces a whole space moves: the two
engines are never in the same one. Space ``e mod spaces`` has expert e.
"""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs
from sim.system.policies.prefixes import in_order, taken


def split(costs: Costs) -> BoolArray:
    """Return the experts that stay on the host."""
    experts = costs.counts.shape[1]
    spaces = min(costs.spaces or experts, experts)
    of_space = np.eye(spaces)[np.arange(experts) % spaces]
    host, near = costs.host_path_s @ of_space, costs.near_s @ of_space
    order = np.argsort(costs.counts @ of_space, axis=1, kind="stable")
    host_left = host.sum(axis=1)[:, None] - in_order(host, order)
    number = np.maximum(host_left, in_order(near, order)).argmin(axis=1)
    return ~taken(order, number)[:, np.arange(experts) % spaces]
