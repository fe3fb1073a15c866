"""DynaNDE: experts by what the host saves on each, and the prefix with the shortest layer.

The score is near time less host time and move; cached experts move for nothing (arXiv 2609.00407). A layer
takes the longer of the host, whose experts wait for their weights, and of the near engine's busiest unit with
tokens' way there and back.
"""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs
from sim.system.policies.prefixes import in_order, near_left, pipelined, taken


def split(costs: Costs) -> BoolArray:
    """Return the best prefix."""
    score = np.where(costs.active, costs.near_s - costs.host_s - costs.move_s, -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    near = near_left(costs, order)
    tokens = costs.send_s.sum(axis=1)[:, None] - in_order(costs.send_s, order)
    left = costs.active.sum(axis=1)[:, None] > np.arange(near.shape[1])
    sent = np.where(left, tokens + np.reshape(costs.latency_s, (-1, 1)), 0.0)
    # Tokens go before what the near engine does, and results come back behind it.
    number = np.maximum(pipelined(costs, order), near + 2 * sent).argmin(axis=1)
    return taken(order, number)
