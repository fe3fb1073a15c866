"""One step of a whole model: every MoE layer once, by the cycle model."""

from __future__ import annotations

from functools import partial

from sim.accelerator import Report, run_model
from sim.activity import Activity
from sim.pim_report import run_pim_model
from sim.routing import Routing, draw_ids
from spec.design import DesignSpec, Engine
from spec.errors import require_range
from spec.layout import Placement
from spec.model import ModelSpec


def run_step(
    model: ModelSpec,
    design: DesignSpec,
    num_tokens: int,
    routing: Routing,
    seed: int,
    *,
    phase: str | None = None,
    placement: Placement | None = None,
    record: bool = False,
) -> Report:
    """Return the sum over the model's MoE layers, each with a routing of its own.

    Of a trace each layer has the layer in its place, and the tokens of ``phase`` where the trace knows it.
    ``placement``: of every layer's experts in a ``pim`` design (:mod:`spec.layout`), by default
    :meth:`spec.banks.BankGeometry.place` for each layer's tokens. ``record``: whether the report tells when
    what works (``activity``).

    The layers run one after the other on one accelerator. Dense layers and attention are not part of
    the accelerator and not counted; the report says so.
    """
    require_range("tokens", num_tokens, 1, 1 << 20)
    routing.check_layers(model.num_moe_layers)
    run_layer = partial(run_pim_model, placement=placement) if design.engine is Engine.PIM else run_model
    run = partial(run_layer, record=record)
    total: Report | None = None
    activities: list[Activity] = []
    for layer in range(model.num_moe_layers):
        ids = draw_ids(model.gating, routing, num_tokens, seed + layer, moe_layer=layer, phase=phase)
        report = run(model, design, ids, routing.name if routing.layer is None else routing.layer_name())
        if report.activity is not None:
            activities.append(report.activity)
        if total is None:
            total = report
            continue
        cycles, more = total.cycles["model"] or 0, report.cycles["model"] or 0
        for name in total.utilisation:
            busy = total.utilisation[name] * cycles + report.utilisation[name] * more
            total.utilisation[name] = busy / (cycles + more)
        total.cycles["model"] = cycles + more
        for name, pair in total.blocks.items():
            pair["model"] = (pair["model"] or 0) + (report.blocks[name]["model"] or 0)
        total.seconds += report.seconds
        total.wall_s += report.wall_s
        total.dropped += report.dropped
        if total.energy is not None and report.energy is not None:
            total.energy += report.energy
        if total.mac_slots is not None and report.mac_slots is not None:
            total.mac_slots = {name: n + report.mac_slots[name] for name, n in total.mac_slots.items()}
        if total.layout is not None and report.layout is not None:
            for name in ("assignments", "jobs"):
                total.layout[name] = list(map(sum, zip(total.layout[name], report.layout[name], strict=True)))
            # Where the banks hold only what a layer's tokens use, each layer is placed by itself.
            for name in ("experts", "rows"):
                total.layout[name] = list(map(max, zip(total.layout[name], report.layout[name], strict=True)))
            if report.layout["only"] is not None:
                total.layout["only"] = max(total.layout["only"], report.layout["only"])
        # The load reported is that of the layer with the busiest expert.
        if report.routing["max_load"] > total.routing["max_load"]:
            total.routing = report.routing
    assert total is not None
    if activities:
        total.activity = Activity.joined(activities)
    if total.layout is not None and total.layout["only"] is not None:
        total.notes.append(
            f"the banks hold only the experts that a layer's tokens use, {total.layout['only']} at most"
        )
    total.notes.append(f"{model.num_moe_layers} MoE layers; attention and dense layers are not counted")
    return total
