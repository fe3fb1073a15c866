"""Cost of a design: its silicon and the memory that its weights take, times a table of prices.

Like the areas that it comes from it ranks designs; it is no offer. ``docs/sweep.md`` says what is in it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from sim.area import Area
from spec.energy import Figure
from spec.load import load_prices

TABLE = "wafers-2020"
GB = 1e9
CELLS, DIES, MEMORY = "cells_mm2", "dies_mm2", "memory_gb"
"""Names of the table's figures."""


@dataclass(frozen=True)
class Cost:
    """A cost in dollars, with what it would be at the ends of the areas' and the prices' ranges."""

    total: float
    low: float
    high: float


@functools.cache
def _figures() -> dict[str, Figure]:
    table = load_prices(TABLE)
    return {name: getattr(table, name) for name in (CELLS, DIES, MEMORY)}


def cost_of(
    memory_bytes: float,
    *,
    cells: Area | None = None,
    dies: Area | None = None,
    prices: Mapping[str, float] | None = None,
) -> Cost:
    """Return what silicon and memory cost.

    Parameters
    ----------
    cells, dies : silicon of this project's blocks, and of processors that declare theirs.
    prices : that replace the table's; they have no range.
    """
    given = {} if prices is None else prices

    def dollars(end: str, price_end: str) -> float:
        amounts = {MEMORY: memory_bytes / GB}
        amounts |= {name: getattr(one, end) for name, one in ((CELLS, cells), (DIES, dies)) if one}
        total = 0.0
        for name, amount in amounts.items():
            total += amount * given.get(name, getattr(_figures()[name], price_end))
        return total

    return Cost(dollars("total", "value"), dollars("low", "low"), dollars("high", "high"))
