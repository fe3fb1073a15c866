"""``expertbank sweep``: many design points into one table, on all cores or a cluster."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim import interruptions
from sim.commands.output import json_option, print_json, print_table
from sim.progress import show, tell
from spec.errors import InputError, require, require_range

if TYPE_CHECKING:
    from sim.sweep.findings import Findings
    from sim.sweep.run import Summary
    from sim.sweep.space import Space
    from sim.sweep.workers import Workers

SAY_EVERY_S = 10.0
"""Seconds between lines of progress where there is no terminal."""
MAX_FRONT = 20


@click.command("sweep")
@click.argument("space_name", metavar="SPACE")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Parquet file of the results (default: SPACE.parquet here); what it holds is not computed again.",
)
@click.option("--workers", type=int, help="Processes of this machine (default: one for each core).")
@click.option("--scheduler", help="tcp://HOST:PORT of a Dask cluster that computes the points.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write pictures to this HTML file."
)
@click.option(
    "--collect", "collect_only", is_flag=True, help="Write what is done to the file; compute nothing."
)
@json_option
def command(
    space_name: str,
    out: Path | None,
    workers: int | None,
    scheduler: str | None,
    report: Path | None,
    collect_only: bool,
    as_json: bool,
) -> int:
    """Compute the points of a space (a preset of spec/sweeps or a TOML file); docs/sweep.md.

    A point that fails is a row with its error. Interrupted, the same command goes on where it was.
    """
    _need("pyarrow", "sweep", "sweep")
    if scheduler is None and not collect_only:
        from sim.processes import prepare

        prepare()
    from sim.sweep.findings import find
    from sim.sweep.run import Interrupted, collect, run_sweep
    from sim.sweep.space import load_space
    from sim.sweep.workers import MAX_WORKERS, ClusterWorkers, LocalWorkers
    from sim.toolchain import check_parent, write_atomically

    require(workers is None or scheduler is None, "cannot be combined with --scheduler", key="workers")
    if workers is not None:
        require_range("workers", workers, 1, MAX_WORKERS)
    if scheduler is not None:
        _need("distributed", "scheduler", "cluster")
    space = load_space(space_name)
    if space.method == "search":
        _need("optuna", "method", "search")
    file = Path(f"{space.name}.parquet") if out is None else out
    check_parent(file, "out")
    if report is not None:
        check_parent(report, "report")
        require(
            report.resolve() != file.resolve(),
            f"must be another file than that of --out, not {report}",
            key="report",
        )
    if collect_only:
        points = collect(space, file)
        if as_json:
            print_json({"space": space.name, "out": str(file), "points": points})
        else:
            print(f"{points:,} points in {file}", file=sys.stderr)
        return 0

    def start() -> Workers:
        if scheduler is not None:
            return ClusterWorkers(scheduler, watch.say)
        return LocalWorkers(workers or os.cpu_count() or 1)

    watch = _Watch()
    try:
        with interruptions.held():
            summary = run_sweep(space, file, start, watch)
    except Interrupted as error:
        print(f"expertbank: {error}", file=sys.stderr)
        return interruptions.STATUS
    found = find(space, file, pictures=report is not None)
    if report is not None:
        from sim.results.sweep_page import sweep_page_text

        asked = {"space": space_name, "file": str(file), "models": summary.models, "method": space.method}
        write_atomically(report, sweep_page_text(found, {**asked, **_definition(space)}))
    if as_json:
        print_json(_as_json(space, summary, found))
    else:
        _print(space, summary, found)
    return 0


def _need(module: str, key: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise InputError(f"needs {module}: pip install 'expertbank[{extra}]'", key=key)


def _definition(space: Space) -> dict[str, str]:
    """Return the axes and what else makes the space, in words."""
    lines = {}
    for axis in space.axes:
        values = (
            f"{axis.low:g} to {axis.high:g}{', logarithmic' if axis.log else ''}"
            if axis.continuous
            else ", ".join(" / ".join(map(str, shown)) for shown in axis.shown[:50])
        )
        more = f", ... ({len(axis.values)} values)" if len(axis.values) > 50 else ""
        lines[", ".join(axis.names)] = values + more
    for name, (shown, _) in space.fixed.items():
        lines[name] = str(shown)
    for number, constraint in enumerate(space.constraints):
        lines[f"constraint {number}"] = constraint.text
    for name, expression in space.columns.items():
        lines[name] = expression.text
    return lines


def _as_json(space: Space, summary: Summary, found: Findings) -> dict[str, Any]:
    columns = ["point", *space.names, *space.objectives]
    return {
        "space": space.name,
        "out": str(summary.file),
        "models": summary.models,
        "workers": summary.workers,
        "points": found.points,
        "computed": summary.computed,
        "found": summary.found,
        "failed": found.failed,
        "errors": [{"point": number, "error": text} for number, text in found.errors],
        "objectives": dict(space.objectives),
        "front_points": len(found.front),
        "front": [{name: row[name] for name in columns} for row in found.front[:MAX_FRONT]],
        "points_per_second": summary.computed / summary.seconds if summary.computed else None,
        "wall_s": summary.seconds,
    }


def _print(space: Space, summary: Summary, found: Findings) -> None:
    rate = f", {summary.computed / summary.seconds:,.0f} points/s" if summary.computed else ""
    click.echo(
        f"{space.name}: {found.points:,} points in {summary.file}; {summary.computed:,} computed by"
        f" {summary.workers} in {summary.seconds:.1f} s{rate}, {summary.found:,} were there"
    )
    if found.failed:
        click.echo(f"{found.failed:,} points failed, the first:")
        for number, text in found.errors:
            click.echo(f"  point {number}: {text}")
    senses = ", ".join(f"{name} {sense}" for name, sense in space.objectives.items())
    click.echo(f"front of {len(found.front):,} points ({senses}):")
    columns = ["point", *space.names, *space.objectives]
    rows = [
        [f"{row[name]:.6g}" if isinstance(row[name], float) else row[name] for name in columns]
        for row in found.front[:MAX_FRONT]
    ]
    print_table(columns, rows)


class _Watch:
    """Shows progress, rate and time left on stderr: in the bar of a terminal, else in a line now and then."""

    def __init__(self) -> None:
        self._total = self._done = self._computed = 0
        self._started = self._said = time.monotonic()

    def begin(self, points: int) -> None:
        """So many points there are at most."""
        self._total, self._started = points, time.monotonic()

    def done(self, points: int, *, computed: int) -> None:
        """So many points more are done, of which some had to be computed."""
        self._done += points
        self._computed += computed
        rate = self._computed / max(time.monotonic() - self._started, 1e-9)
        left = max(self._total - self._done, 0)
        words = "points" if not rate else f"points, {rate:,.0f}/s, {_time(left / rate)} left"
        if show(words, self._done, self._total) or time.monotonic() < self._said + SAY_EVERY_S:
            return
        self._said = time.monotonic()
        print(f"[sweep] {self._done:,} of {self._total:,} {words}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Something to know, in a line."""
        tell("sweep")(text)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
