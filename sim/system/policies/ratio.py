"""MoNDE: the most popular experts go to the host, as many as the ratio of bandwidths says.

``ceil(alpha * link / (link + near) * active)`` of a layer's active experts (arXiv 2405.18832 as DynaNDE's
simulator has it).
"""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs
from sim.system.policies.prefixes import popular_first, taken


def split(costs: Costs) -> BoolArray:
    """Return the most popular experts, a fixed share."""
    active = costs.active.sum(axis=1)
    number = np.ceil(costs.alpha * costs.link_share * active).astype(np.int64)
    return taken(popular_first(costs), np.minimum(number, active))
