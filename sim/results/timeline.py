"""A run's spans as Chrome trace events, which Perfetto and ``chrome://tracing`` open.

A process for each design, a thread for each block and for each engine or channel. A block's spans are those
of :class:`sim.activity.BlockActivity`; a job's is its time in :class:`sim.activity.Jobs`. Times are
microseconds of the design's clock; each event has its cycles in ``args``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sim.accelerator import Report
from sim.activity import resolution
from sim.results.rows import expert_name
from sim.streams import Spans
from spec.design import DesignSpec
from spec.errors import InputError

MICRO = 1e6
FIRST_UNIT = 100
"""Thread of the first engine or channel; the blocks have those from 1 on."""
MAX_SPANS = 1_000_000
"""About 150 MB of text."""


def timeline_text(runs: Sequence[tuple[Report, DesignSpec]]) -> str:
    """Return the JSON object of all runs whose activity is known."""
    spans = sum(_count(report) for report, _ in runs)
    if spans > MAX_SPANS:
        rule = f"would have {spans} spans, more than {MAX_SPANS}; take fewer tokens or a higher --scale"
        raise InputError(rule, key="timeline")
    events = [event for number, run in enumerate(runs) for event in _events(number + 1, *run)]
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}, allow_nan=False)


def _count(report: Report) -> int:
    activity = report.activity
    if activity is None:
        return 0
    return sum(len(block.spans) for block in activity.blocks.values()) + len(activity.jobs.unit)


def _events(process: int, report: Report, design: DesignSpec) -> Iterator[dict[str, Any]]:
    activity = report.activity
    if activity is None:
        return
    yield _named("process_name", process, 0, f"{report.model} on {report.design} ({activity.source})")
    for number, (name, block) in enumerate(activity.blocks.items(), 1):
        closed = resolution(activity.cycles)
        label = f"{name}, gaps of up to {closed} cycles closed" if block.gaps else name
        yield _named("thread_name", process, number, label)
        names = [name] * len(block.spans)
        nothing: list[dict[str, Any]] = [{}] * len(block.spans)
        yield from _spans(process, number, "block", names, block.spans - activity.start, nothing, design)
    jobs = activity.jobs
    for unit in range(len(activity.units)):
        mine = jobs.unit == unit
        thread = FIRST_UNIT + unit
        label = "engine" if design.pim is None else f"channel {unit}"
        yield _named("thread_name", process, thread, f"{label}, jobs")
        experts = [expert_name(expert, report.experts) for expert in jobs.expert[mine].tolist()]
        names = [name if name == "router" else f"expert {name}" for name in experts]
        more = [
            {"expert": expert, "tokens": tokens, "layer": layer}
            for expert, tokens, layer in zip(
                experts, jobs.tokens[mine].tolist(), jobs.layer[mine].tolist(), strict=True
            )
        ]
        spans = np.stack([jobs.start[mine], jobs.end[mine]], axis=1) - activity.start
        yield from _spans(process, thread, "job", names, spans, more, design)


def _spans(
    process: int,
    thread: int,
    category: str,
    names: Sequence[str],
    spans: Spans,
    more: Sequence[dict[str, Any]],
    design: DesignSpec,
) -> Iterator[dict[str, Any]]:
    for name, (start, end), arguments in zip(names, spans.tolist(), more, strict=True):
        yield {
            "name": name,
            "cat": category,
            "ph": "X",
            "pid": process,
            "tid": thread,
            "ts": start / design.clock_hz * MICRO,
            "dur": (end - start) / design.clock_hz * MICRO,
            "args": {"start_cycle": start, "cycles": end - start, **arguments},
        }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    """Return the event that names a process or a thread."""
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
