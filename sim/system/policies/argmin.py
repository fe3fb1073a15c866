"""Sieve: of all numbers of popular experts for the host, the one with the shortest layer.

The largest of exchange, host and near engine, with the times as they are (arXiv 2605.11277, section 5).
"""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs
from sim.system.policies.prefixes import in_order, pipelined, popular_first, taken


def split(costs: Costs) -> BoolArray:
    """Return the best number of the most popular experts."""
    order = popular_first(costs)
    near = costs.near_s.sum(axis=1)[:, None] - in_order(costs.near_s, order)
    number = np.maximum(pipelined(costs, order), near).argmin(axis=1)
    return taken(order, number)
