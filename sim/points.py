"""Design points, thousands of them: a layer or a step each, on a design or a system; what a sweep is made of.

:func:`evaluate` runs one point, :func:`evaluate_all` any number on several processes: results come in the
points' order, are the same with any number of processes, and only a few are held at a time. A point that
breaks a rule is a result with its error; the others go on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from golden.weights import check_seed
from sim.accelerator import Report, run_model
from sim.pim_report import run_pim_model
from sim.processes import start_processes
from sim.routing import Routing, draw_ids
from sim.step import run_step as run_all_layers
from sim.system.report import run_policies
from spec.catalogue import Backbone
from spec.design import DesignSpec, Engine
from spec.errors import InputError, require_range
from spec.model import ModelSpec
from spec.system import SystemSpec

CHUNK = 32
"""Points that a process is given at a time."""
AHEAD = 4
"""Chunks for each process that are given out before the first one is waited for."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep, by the models alone.

    Attributes
    ----------
    model : scaled already, if it is to be.
    target : an accelerator or a system.
    tokens, routing, seed : of a layer; layers of a step have routings of their own.
    whole : one step over all MoE layers; else one layer.
    policy : of a system, by default its own.
    phase : tokens of a trace to take; of a system, whether they are one prompt.
    backbone : the model's attention and dense layers, for whole steps on a system that has them.
    """

    model: ModelSpec
    target: DesignSpec | SystemSpec
    tokens: int = 16
    routing: Routing = field(default_factory=lambda: Routing("uniform"))
    seed: int = 0
    whole: bool = False
    policy: str | None = None
    phase: str | None = None
    backbone: Backbone | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a point comes to; None where the target does not say.

    Attributes
    ----------
    seconds : modelled time.
    cycles : of an accelerator.
    energy_j : where all figures that it needs are known.
    mac, bandwidth : utilisation of an accelerator.
    dropped : assignments that found no place.
    bound_s : of a system, the time that no policy is below.
    host_share : of a system's active experts, those that its host computes.
    error : the rule that the point breaks, in one line; empty for one that was run.
    """

    seconds: float | None = None
    cycles: int | None = None
    energy_j: float | None = None
    mac: float | None = None
    bandwidth: float | None = None
    dropped: int | None = None
    bound_s: float | None = None
    host_share: float | None = None
    error: str = ""


def evaluate(point: Point) -> Outcome:
    """Run one point; :class:`InputError` is its result, anything else a defect and raised."""
    try:
        require_range("tokens", point.tokens, 1, 1 << 20)
        check_seed(point.seed)
        if isinstance(point.target, SystemSpec):
            return _on_system(point, point.target)
        return _of_report(on_design(point, point.target, totals_only=True))
    except InputError as error:
        return Outcome(error=str(error))


def evaluate_all(points: Iterable[Point], workers: int | None = None) -> Iterator[Outcome]:
    """Yield the outcome of each point, in order.

    ``workers``: processes, by default one for each core; 1 runs in this one. What is not consumed is not
    computed beyond a few chunks, so that points may come from a generator without end.
    """
    count = os.cpu_count() or 1 if workers is None else workers
    require_range("workers", count, 1, 1024)
    chunks = _chunks(points)
    if count == 1:
        for chunk in chunks:
            yield from evaluate_chunk(chunk)
        return
    pool = start_processes(count)
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(evaluate_chunk, chunk))
            if len(waiting) >= AHEAD * count:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def evaluate_chunk(points: list[Point]) -> list[Outcome]:
    """Return the outcome of each point: what is given to a process, here or elsewhere, at a time."""
    return [evaluate(point) for point in points]


def _chunks(points: Iterable[Point]) -> Iterator[list[Point]]:
    remaining = iter(points)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


def on_design(point: Point, design: DesignSpec, *, totals_only: bool = False) -> Report:
    """Return the report of a point on an accelerator; :class:`InputError` for one that breaks a rule.

    ``totals_only``: whether blocks' own cycles may be left out, which take time to tell apart.
    """
    model, routing = point.model, point.routing
    if point.whole:
        return run_all_layers(model, design, point.tokens, routing, point.seed, phase=point.phase)
    ids = draw_ids(model.gating, routing, point.tokens, point.seed, phase=point.phase)
    run = partial(run_pim_model, totals_only=totals_only) if design.engine is Engine.PIM else run_model
    return run(model, design, ids, routing.layer_name())


def _of_report(report: Report) -> Outcome:
    return Outcome(
        seconds=report.seconds,
        cycles=report.cycles["model"],
        energy_j=None if report.energy is None else report.energy.total,
        mac=report.utilisation["mac"],
        bandwidth=report.utilisation["bandwidth"],
        dropped=report.dropped,
    )


def _on_system(point: Point, system: SystemSpec) -> Outcome:
    model, routing = point.model, point.routing
    if not point.whole:
        model = replace(model, num_moe_layers=1, num_dense_layers=0)
        if routing.trace is not None and routing.layer is None:
            routing = replace(routing, layer=routing.trace.layers[0])
    policy = point.policy or system.policy
    run = partial(run_policies, system, model, point.tokens, routing, point.seed, (policy,))
    runs = run(phase=point.phase, backbone=point.backbone if point.whole else None)
    step = runs.steps[policy]
    return Outcome(
        seconds=step.seconds,
        energy_j=runs.energies[policy].total,
        dropped=runs.dropped,
        bound_s=max(step.bounds.values()),
        host_share=float(step.schedule.host.sum() / max(1, step.costs.active.sum())),
    )
