"""KTransformers, llama.cpp: what the host holds already it computes, all else stays near; nothing moves.

Which experts it holds is the system's cache (``cache_share``), from an earlier step: the hot ones.
"""

from __future__ import annotations

from sim.system.costs import BoolArray, Costs


def split(costs: Costs) -> BoolArray:
    """Return the experts whose weights the host has."""
    held: BoolArray = costs.move_s == 0
    return held
