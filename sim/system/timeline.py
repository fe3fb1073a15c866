"""A step's spans as Chrome trace events, which Perfetto and ``chrome://tracing`` open.

A process for each resource, a thread for each of its units: links, hosts, near engines or channels, the ways
between devices. Times are microseconds from the step's start.
"""

from __future__ import annotations

import json
from typing import Any

from sim.system.report import SystemRun
from sim.system.schedule import BEFORE, EXCHANGE, SHARED
from spec.errors import InputError

MICRO = 1e6
MAX_SPANS = 1_000_000
"""About 150 MB of text."""
NAMES = {SHARED: "shared experts", BEFORE: "before experts", EXCHANGE: "exchange"}


def timeline_text(run: SystemRun) -> str:
    """Return the JSON object of the step under the policy that is reported."""
    spans = run.steps[run.policy].schedule.spans
    number = sum(map(len, spans.values()))
    if number > MAX_SPANS:
        rule = f"would have {number} spans, more than {MAX_SPANS}; take fewer tokens"
        raise InputError(rule, key="timeline")
    events: list[dict[str, Any]] = []
    for process, (resource, rows) in enumerate(spans.items(), 1):
        events.append(_named("process_name", process, 0, f"{resource} ({run.model} on {run.system.name})"))
        units = sorted({int(unit) for unit in rows[:, 5]})
        events += [_named("thread_name", process, unit, f"{resource} {unit}") for unit in units]
        for layer, expert, start, end, tokens, unit in rows.tolist():
            events.append(
                {
                    "name": NAMES.get(int(expert), f"expert {int(expert)}"),
                    "cat": resource,
                    "ph": "X",
                    "pid": process,
                    "tid": int(unit),
                    "ts": start * MICRO,
                    "dur": (end - start) * MICRO,
                    "args": {"layer": int(layer), "tokens": int(tokens)},
                }
            )
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}, allow_nan=False)


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    """Return the event that names a process or a thread."""
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
