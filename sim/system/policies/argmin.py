"""Sieve: of all numbers of popular experts for the host, the one with the shortest layer.

The longer of the host, whose experts wait for their weights, and of the near engine's busiest unit, with
the times as they are (arXiv 2605.11277, section 5). The paper's third time, the exchange with other devices,
is the same for every number, and decides none. Where each expert is cut over the near engine's units, those
are one.
"""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs
from sim.system.policies.prefixes import near_left, pipelined, popular_first, taken


def split(costs: Costs) -> BoolArray:
    """Return the best number of the most popular experts."""
    order = popular_first(costs)
    number = np.maximum(pipelined(costs, order), near_left(costs, order)).argmin(axis=1)
    return taken(order, number)
