"""What silicon and memory cost: prices in US dollars, each with a range and a source.

A table is data (``spec/prices/*.toml``); a missing figure is an error, as in :mod:`spec.energy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spec.energy import Figure


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices in dollars.

    Attributes
    ----------
    cells_mm2 : a square millimetre of silicon in the process whose cells :mod:`spec.area` counts.
    dies_mm2 : the same of processors whose area is declared.
    memory_gb : a gigabyte (1e9 bytes) of the memory that holds weights.
    """

    PRESET_FOLDER: ClassVar[str] = "prices"

    name: str
    cells_mm2: Figure
    dies_mm2: Figure
    memory_gb: Figure
