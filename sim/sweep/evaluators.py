"""What a design point can be: a layer on an accelerator, a step on a system, a product on a device.

An evaluator says which specs and options a point has, and which figures it gives; :data:`EVALUATORS` lists
them. It takes specs that are built already, so that the same code runs here and on a machine that has none of
the user's files (but for traces, which are read where they lie).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.area import Area, device_area, layer_area
from sim.cost import CELLS, DIES, GB, MEMORY, Cost, cost_of
from sim.gemv.commands import Product
from sim.gemv.energy import gemv_energy
from sim.gemv.report import COMMANDS, Options, run_gemv
from sim.points import Point, on_design
from sim.routing import Routing, parse_routing, shape_of
from sim.routing.synthetic import KINDS, parse_kind
from sim.routing.trace import TraceShape
from sim.system.area import sum_of, system_area
from sim.system.costs import BYTES
from sim.system.policies import POLICIES
from sim.system.report import run_policies
from sim.system.schedule import RESOURCES
from sim.workload import DEFAULT_TOKENS, parse_scale
from spec.design import DesignSpec, Engine, Format
from spec.device import PimDevice
from spec.errors import InputError, require, require_range
from spec.geometry import ImageGeometry
from spec.load import load_backbone, load_design, load_device, load_model, load_system
from spec.model import ModelSpec
from spec.system import SystemSpec

Specs = Mapping[str, Any]
Given = Mapping[str, Any]
Figures = dict[str, int | float | None]


@dataclass(frozen=True)
class Root:
    """A spec of a point: its class, and what loads the one that a name stands for."""

    cls: type[Any]
    load: Callable[[str], Any]


TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Option:
    """What a point has beside its specs: types of its values, what it is if nothing is said, choices."""

    types: tuple[type[Any], ...]
    default: Any = None
    choices: tuple[str, ...] = ()
    needed: bool = False
    not_negative: bool = False

    def check(self, value: Any, key: str) -> Any:
        """Return a value as it is taken; :class:`InputError` for one of another type."""
        if type(value) not in self.types:
            names = " or ".join(TYPE_NAMES[t] for t in self.types if t is not int or float not in self.types)
            raise InputError(f"must be {names}, not {value!r}", key=key)
        if self.choices and value not in self.choices:
            raise InputError(f"must be one of {', '.join(self.choices)}, not {value!r}", key=key)
        if self.not_negative:
            require(0 <= value < math.inf, f"must be a finite number of at least 0, not {value!r}", key=key)
        return value


@dataclass(frozen=True)
class Evaluator:
    """A kind of point.

    Attributes
    ----------
    roots, options : what it has, by names.
    figures : what it gives, name -> type.
    objectives : what is best where a space says nothing; the least.
    run : gives the figures of a point; :class:`InputError` for one that breaks a rule.
    beside : what else the name of a root stands for: name -> root, what loads it.
    """

    roots: Mapping[str, Root]
    options: Mapping[str, Option]
    figures: Mapping[str, type[Any]]
    objectives: tuple[str, ...]
    run: Callable[[Specs, Given], Figures]
    beside: Mapping[str, tuple[str, Callable[[str], Any]]] = field(default_factory=dict)


LAYER = "layer"
"""Phase of a single MoE layer."""
AREA_FIGURES: dict[str, type[Any]] = {"area_mm2": float, "area_low_mm2": float, "area_high_mm2": float}
COST_FIGURES: dict[str, type[Any]] = {
    "memory_gb": float,
    "cost_usd": float,
    "cost_low_usd": float,
    "cost_high_usd": float,
}
_PRICE = Option((int, float), not_negative=True)
PRICES = {"cells_usd_per_mm2": CELLS, "dies_usd_per_mm2": DIES, "memory_usd_per_gb": MEMORY}
"""Options that replace the table's prices."""
SYSTEM_PRICES = dict.fromkeys(PRICES, _PRICE)
OWN_PRICES = {option: _PRICE for option, figure in PRICES.items() if figure != DIES}
"""Of points whose silicon is this project's alone: none of it is a declared die."""
ROUTING = "routing"
ROUTING_OPTIONS = {
    "tokens": Option((int,), DEFAULT_TOKENS),
    ROUTING: Option((str,), "uniform"),
    "routing_layer": Option((int,)),
    "seed": Option((int,), 0),
}
SCALE = Option((int, str), "full")
ROUTING_PARAMETERS = tuple(
    dict.fromkeys(parameter.name for kind in KINDS.values() for parameter in kind.parameters)
)
"""Fields of a synthetic routing, by its parameters' names."""


def routing_text(text: str, parameters: Given) -> str:
    """Return a routing's name with some of its parameters set; :class:`InputError` if it has not these."""
    if not parameters:
        return text
    synthetic = parse_kind(text)
    known = [] if synthetic is None else [one.name for one in KINDS[synthetic[1]].parameters]
    for name in parameters:
        require(name in known, f"is no parameter of routing {text!r}", key=f"{ROUTING}.{name}")
    assert synthetic is not None
    _, kind, values = synthetic
    return ":".join(
        [kind, *(f"{parameters.get(name, value)}" for name, value in zip(known, values, strict=True))]
    )


@functools.lru_cache(maxsize=64)
def _routing(text: str, layer: int | None, shape: TraceShape) -> Routing:
    return parse_routing(text, shape, layer=layer)


@functools.lru_cache(maxsize=64)
def routing_identity(text: str) -> str:
    """Return what stands for a routing: its name, of a trace's file the content."""
    path = Path(text)
    if parse_kind(text) is not None or not path.is_file():
        return text
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _scaled(model: ModelSpec, scale: int | str) -> ModelSpec:
    return model.scaled(parse_scale(str(scale), 1, vector=False))


def run_layer(specs: Specs, given: Given) -> Figures:
    """Return the figures of one MoE layer, or of a step of all of them, by the cycle model."""
    design: DesignSpec = specs["design"]
    if given["format"] is not None and design.format != given["format"]:
        design = replace(design, format=Format(given["format"]), group=None)
    model = _scaled(specs["model"], given["scale"])
    require_range("tokens", given["tokens"], 1, 1 << 20)
    require(given["seed"] >= 0, f"must be at least 0, not {given['seed']}", key="seed")
    whole = given["phase"] != LAYER
    point = Point(
        model=model,
        target=design,
        tokens=given["tokens"],
        routing=_routing(given[ROUTING], given["routing_layer"], shape_of(model)),
        seed=given["seed"],
        whole=whole,
        phase=given["phase"] if whole else None,
    )
    report = on_design(point, design)
    energy, engine = report.energy, "pim" if design.engine is Engine.PIM else "expert"
    tile, area = design.tile, layer_area(model, design)
    layers = model.num_moe_layers if whole else 1
    channels = 1 if design.pim is None else design.pim.channels
    return {
        "seconds": report.seconds,
        "cycles": report.cycles["model"],
        "energy_j": None if energy is None else energy.total,
        "energy_low_j": None if energy is None else energy.low,
        "energy_high_j": None if energy is None else energy.high,
        "mac_utilisation": report.utilisation["mac"],
        "bandwidth_utilisation": report.utilisation["bandwidth"],
        "gating_cycles": report.blocks["gating"]["model"],
        "dispatch_cycles": report.blocks["dispatch"]["model"],
        "engine_cycles": report.blocks[engine]["model"],
        "combine_cycles": report.blocks["combine"]["model"],
        "experts_used": report.routing["experts_used"],
        "max_load": report.routing["max_load"],
        "dropped": report.dropped,
        "macs_per_cycle": channels * tile.rows * tile.cols + design.gate.lanes,
        **_area(area),
        "memory_bits": area.counts["memory_bit"],
        **_cost(given, ImageGeometry.of(model, design).num_bytes * layers, area),
    }


def _area(area: Area | None) -> Figures:
    values = (None,) * 3 if area is None else (area.total, area.low, area.high)
    return dict(zip(AREA_FIGURES, values, strict=True))


def _cost(given: Given, memory_bytes: float, cells: Area | None, dies: Area | None = None) -> Figures:
    """Return the cost of memory and silicon; None of all of it where no silicon's area is known."""
    prices = {name: given[option] for option, name in PRICES.items() if given.get(option) is not None}
    cost: Cost | None = None
    if cells is not None or dies is not None:
        cost = cost_of(memory_bytes, cells=cells, dies=dies, prices=prices)
    values = (None,) * 3 if cost is None else (cost.total, cost.low, cost.high)
    return dict(zip(COST_FIGURES, (memory_bytes / GB, *values), strict=True))


def run_system(specs: Specs, given: Given) -> Figures:
    """Return the figures of a step of a model on a system, as ``expertbank system`` has them."""
    system: SystemSpec = specs["system"]
    if given["only_experts"]:
        system = replace(system, outside=None)
    model = _scaled(specs["model"], given["scale"])
    require(given["seed"] >= 0, f"must be at least 0, not {given['seed']}", key="seed")
    shape = shape_of(model)
    routing = _routing(given[ROUTING], given["routing_layer"], shape)
    policy = given["policy"] or system.policy
    runs = run_policies(
        system,
        model,
        given["tokens"],
        routing,
        given["seed"],
        (policy,),
        phase=given["phase"],
        # Attention is not scaled: sizes of heads are not.
        backbone=specs["backbone"] if model is specs["model"] else None,
    )
    step, energy = runs.steps[policy], runs.energies[policy]
    busy, area = step.schedule.busy_s, system_area(system, model)
    parts: tuple[Area | None, Area | None] = None, None
    if area.total is not None:
        parts = sum_of(area.cells.values()), sum_of(area.dies.values())
    return {
        "seconds": step.seconds,
        "energy_j": energy.total,
        "bound_s": max(step.bounds.values()),
        "host_share": float(step.schedule.host.sum() / max(1, step.costs.active.sum())),
        **{f"{name}_busy_s": float(busy[name].sum()) if name in busy else None for name in RESOURCES},
        "exchange_s": float(step.schedule.exchange_s.sum()),
        "experts_active": int(step.costs.active.sum()),
        **_area(area.total),
        **_cost(given, model.num_moe_layers * model.expert_params * BYTES, *parts),
    }


def run_product(specs: Specs, given: Given) -> Figures:
    """Return the figures of a matrix-vector product on MAC units in DRAM."""
    device: PimDevice = specs["device"]
    product = Product(
        rows=given["rows"], cols=given["cols"], channels=given["channels"], batch=given["batch"]
    )
    run = run_gemv(device, product, Options(refresh=given["refresh"]))
    energy = gemv_energy(run)
    commands, area = run.commands, device_area(device, product.channels)
    return {
        "seconds": run.cycles * device.timed.clock_ps * 1e-12,
        "cycles": run.cycles,
        "energy_j": None if energy is None else energy.total,
        "mac_utilisation": run.utilisation,
        "macs": product.macs,
        **{f"commands_{name}": commands[name] for name in COMMANDS},
        **_area(area),
        **_cost(given, product.rows * product.cols * device.element_bits / 8, area),
    }


MODEL = Root(ModelSpec, load_model)
EVALUATORS = {
    "layer": Evaluator(
        roots={"model": MODEL, "design": Root(DesignSpec, load_design)},
        options={
            "format": Option((str,), choices=tuple(kind.value for kind in Format)),
            "scale": SCALE,
            "phase": Option((str,), LAYER, (LAYER, "prefill", "decode")),
            **ROUTING_OPTIONS,
            **OWN_PRICES,
        },
        figures={
            "seconds": float,
            "cycles": int,
            "energy_j": float,
            "energy_low_j": float,
            "energy_high_j": float,
            "mac_utilisation": float,
            "bandwidth_utilisation": float,
            "gating_cycles": int,
            "dispatch_cycles": int,
            "engine_cycles": int,
            "combine_cycles": int,
            "experts_used": int,
            "max_load": int,
            "dropped": int,
            "macs_per_cycle": int,
            **AREA_FIGURES,
            "memory_bits": int,
            **COST_FIGURES,
        },
        objectives=("seconds", "energy_j"),
        run=run_layer,
    ),
    "system": Evaluator(
        roots={"model": MODEL, "system": Root(SystemSpec, load_system)},
        beside={"backbone": ("model", load_backbone)},
        options={
            "policy": Option((str,), choices=tuple(POLICIES)),
            "only_experts": Option((bool,), False),
            "scale": SCALE,
            "phase": Option((str,), choices=("prefill", "decode")),
            **ROUTING_OPTIONS,
            **SYSTEM_PRICES,
        },
        figures={
            "seconds": float,
            "energy_j": float,
            "bound_s": float,
            "host_share": float,
            **{f"{name}_busy_s": float for name in RESOURCES},
            "exchange_s": float,
            "experts_active": int,
            **AREA_FIGURES,
            **COST_FIGURES,
        },
        objectives=("seconds",),
        run=run_system,
    ),
    "gemv": Evaluator(
        roots={"device": Root(PimDevice, load_device)},
        options={
            "channels": Option((int,), needed=True),
            "rows": Option((int,), needed=True),
            "cols": Option((int,), needed=True),
            "batch": Option((int,), 1),
            "refresh": Option((bool,), True),
            **OWN_PRICES,
        },
        figures={
            "seconds": float,
            "cycles": int,
            "energy_j": float,
            "mac_utilisation": float,
            "macs": int,
            **{f"commands_{name}": int for name in COMMANDS},
            **AREA_FIGURES,
            **COST_FIGURES,
        },
        objectives=("seconds", "energy_j"),
        run=run_product,
    ),
}
