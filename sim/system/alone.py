"""A system of one accelerator: its layer's cycle model runs each MoE layer whole, from gate to combination.

The same cycles as ``expertbank sim`` has for a layer, which equal the RTL's (docs/claims.md). Spans are the
jobs of the array, or of each channel; a unit that has no job is idle.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from sim.accelerator import Report, run_model
from sim.activity import ROUTER
from sim.pim_report import run_pim_model
from sim.system.blocks import num_units
from sim.system.costs import Costs, IntArray
from sim.system.energy import SystemEnergy
from sim.system.schedule import BEFORE, SHARED, Schedule
from sim.system.step import Step, check, load_counts
from spec.design import DesignSpec, Engine
from spec.model import ModelSpec


def run_alone(
    model: ModelSpec, design: DesignSpec, ids: IntArray, routing: str
) -> tuple[Step, SystemEnergy, list[Report]]:
    """Return a step of an accelerator's layers, one after another, its energy, and each layer's report.

    ``ids``: (layers, tokens, k). What a capacity drops is computed nowhere, and stands in no count.
    """
    run = run_pim_model if design.engine is Engine.PIM else run_model
    reports = [run(model, design, layer, routing, record=True) for layer in ids]
    layer_s = np.array([report.seconds for report in reports])
    start = layer_s.cumsum() - layer_s
    experts, units = model.gating.num_ffn_experts, num_units(design)
    spans, busy = [], np.zeros((len(ids), units))
    counts = np.zeros((len(ids), experts), np.int64)
    for number, report in enumerate(reports):
        activity = report.activity
        assert activity is not None
        jobs = activity.jobs
        counts[number] = activity.tokens[0, :experts]
        begin, end = ((cycles - activity.start) / design.clock_hz for cycles in (jobs.start, jobs.end))
        name = np.where(jobs.expert < experts, jobs.expert, SHARED)
        name = np.where(jobs.expert == ROUTER, BEFORE, name)
        columns = (np.full(len(name), number), name, start[number] + begin, start[number] + end)
        spans.append(np.stack([*columns, jobs.tokens, jobs.unit], axis=1).astype(np.float64))
        busy[number] = np.bincount(jobs.unit, end - begin, minlength=units)
    zero, none = np.zeros(counts.shape), np.zeros((0, 6))
    schedule = Schedule(
        np.zeros(counts.shape, bool),
        start,
        layer_s,
        {"near": busy},
        np.zeros(len(ids)),
        {"near": np.concatenate(spans), "host": none, "link": none},
    )
    costs = Costs(counts, zero, zero, zero, zero, np.zeros(experts, np.int64), units)
    # Were what is busiest never without work: the array's slots, the weight port, the banks' bursts.
    bounds = {
        name: float(sum(report.utilisation[name] * report.seconds for report in reports))
        for name in reports[0].utilisation
    }
    step = Step(costs, schedule, bounds)
    check(step)
    _check_assignments(ids, counts, sum(report.dropped for report in reports), model)
    energies = [report.energy for report in reports]
    components: Counter[str] = Counter()
    for energy in energies:
        components.update({} if energy is None else energy.components)
    missing = ("near.block.energy",) if None in energies else ()
    return step, SystemEnergy(dict(components), missing), reports


def _check_assignments(ids: IntArray, counts: IntArray, dropped: int, model: ModelSpec) -> None:
    """Raise ``ArithmeticError`` unless all assignments but the dropped ones were computed."""
    asked = load_counts(ids, model.gating.num_experts)[:, : counts.shape[1]]
    if asked.sum() - counts.sum() != dropped or (counts > asked).any():
        raise ArithmeticError("an assignment was not computed, and not dropped")
