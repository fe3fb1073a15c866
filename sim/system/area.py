"""Area of a system's silicon: of accelerators what their Verilog has, of other engines what they declare.

Parts are of their own processes and are added as they are: dies of a few nanometres beside cells of 45. The
DRAM, links, and what connects devices are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sim.area import Area, engine_area, layer_area
from sim.system.blocks import one_unit
from spec.model import ModelSpec
from spec.system import EngineSpec, SystemSpec

ACCELERATOR = "near accelerator"


@dataclass(frozen=True)
class SystemArea:
    """Square millimetres of a system's parts, of all its devices; of ``missing`` ones nobody has the area.

    ``cells``: of this project's accelerators, as cells of the area table; ``dies``: what engines declare.
    """

    cells: dict[str, Area]
    dies: dict[str, Area]
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> Area | None:
        """All parts together; None where one is not known."""
        return None if self.missing else sum_of([*self.cells.values(), *self.dies.values()])

    def as_json(self) -> dict[str, Any]:
        """Return what ``expertbank system`` prints of it."""
        total = self.total
        return {
            "area_mm2": None if total is None else total.total,
            "area": {
                "low_mm2": None if total is None else total.low,
                "high_mm2": None if total is None else total.high,
                "parts_mm2": {name: part.total for name, part in {**self.dies, **self.cells}.items()},
                "missing": list(self.missing),
            },
        }


def sum_of(areas: Iterable[Area]) -> Area:
    """Return areas together."""
    ends = [(area.total, area.low, area.high) for area in areas]
    total, low, high = (float(sum(each)) for each in zip(*ends, strict=True)) if ends else (0.0,) * 3
    return Area(total, low, high, {})


def system_area(system: SystemSpec, model: ModelSpec) -> SystemArea:
    """Return the area of a system that runs a model."""
    block = system.near.block
    if system.host is None:
        assert block is not None
        return SystemArea({ACCELERATOR: layer_area(model, block)}, {})
    devices = 1 if system.exchange is None else int(system.exchange.devices.value)
    cells, dies, missing = {}, {}, []
    engines: dict[str, EngineSpec] = {"host": system.host, "near": system.near}
    for place, engine in engines.items():
        if engine.block is not None:
            assert system.units is not None
            units = devices * int(system.units.value)
            cells[ACCELERATOR] = engine_area(model, one_unit(engine.block), units)
        elif engine.area_mm2 is None:
            missing.append(f"{place}.area_mm2")
        else:
            area = engine.area_mm2
            dies[place] = Area(devices * area.value, devices * area.least, devices * area.most, {})
    return SystemArea(cells, dies, tuple(missing))
