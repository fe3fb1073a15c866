"""Each expert on the engine that computes it faster, whatever the others do (plain Duplex, LLMSimulator)."""

from __future__ import annotations

from sim.system.costs import BoolArray, Costs


def split(costs: Costs) -> BoolArray:
    """Return where the host takes less time."""
    faster: BoolArray = costs.host_path_s < costs.near_s
    return faster
