"""A run's figures as rows of one CSV table: of the run, its blocks, its experts, its energy."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from sim.accelerator import Report

COLUMNS = ("model", "design", "format", "engine", "section", "layer", "name", "quantity", "unit", "value")
Row = tuple[object, ...]


def csv_text(reports: Sequence[Report]) -> str:
    """Return the table of all runs; numbers as Python writes them, so that they are read back as they are."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        head = (report.model, report.design, str(report.format), report.engine)
        writer.writerows((*head, *row) for row in _rows(report))
    return buffer.getvalue()


def _rows(report: Report) -> Iterator[Row]:
    """Yield section, layer, name, quantity, unit and value."""
    for source, cycles in report.cycles.items():
        if cycles is not None:
            yield "run", "", "layer", source, "cycles", cycles
    yield "run", "", "layer", "time", "s", report.seconds
    yield "run", "", "layer", "dropped", "assignments", report.dropped
    for name, share in report.utilisation.items():
        yield "run", "", name, "utilisation", "1", share
    if report.mismatches is not None:
        yield "run", "", "layer", "mismatches", "bits", report.mismatches
    for block, pair in report.blocks.items():
        for source, cycles in pair.items():
            if cycles is not None:
                yield "block", "", block, source, "cycles", cycles
    activity = report.activity
    if activity is not None:
        for block, of in activity.blocks.items():
            yield "block", "", block, "waits for weights", "cycles", of.weights
            yield "block", "", block, "held up", "cycles", of.blocked
            yield "block", "", block, "idle", "cycles", activity.idle(block)
        for layer, row in enumerate(activity.tokens.tolist()):
            for expert, tokens in enumerate(row):
                yield "expert", layer, expert_name(expert, report.experts), "load", "tokens", tokens
        for name, counts in activity.commands.items():
            for channel, count in enumerate(counts.tolist()):
                yield "channel", "", channel, name, "commands", count
        for channel, reads in enumerate(activity.bank_reads.tolist()):
            for bank, count in enumerate(reads):
                yield "bank", "", f"{channel}.{bank}", "reads by MACs", "bursts", count
    if report.energy is not None:
        for component, joules in report.energy.components.items():
            yield "energy", "", component, "energy", "J", joules
        for bound, joules in (("low", report.energy.low), ("high", report.energy.high)):
            yield "energy", "", "total", bound, "J", joules
        yield "energy", "", "total", "energy", "J", report.energy.total


def expert_name(expert: int, num_experts: int) -> str:
    """Return how an expert is called."""
    if expert < 0:
        return "router"
    return "shared" if expert == num_experts else str(expert)
