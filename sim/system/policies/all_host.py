"""Every expert on the host: its weights are moved, or read from the shared memory."""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs


def split(costs: Costs) -> BoolArray:
    """Return True for all."""
    return np.ones(costs.counts.shape, bool)
