"""How fast the simulations are: figures, the machine they are of, and the page that shows them.

What needs only the installed package is measured here; ``tests/bench/speed.py`` adds the engines that
only the tests use, and writes ``docs/benchmarks.md`` (``make bench``).
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sim import accelerator, toolchain
from sim.accelerator import LayerRun, Progress
from sim.alone import run_experts
from sim.layer import LayerShape, layer_cycles
from sim.routing import Routing
from sim.rtlsim import PROJECT, Build, build_exported, exported, layer_component
from sim.workload import Workload, random_workload, scaled_model
from spec.design import DesignSpec

REPEATS = 5
NATIVE_GOAL = 100_000
"""Simulated cycles per second with 256 MACs."""
MODEL_GOAL_MS = 1.0
MAC_GOAL, PORT_GOAL = 0.95, 0.90
ALONE_MODEL, ALONE_SCALE = "mixtral-8x7b", 16
GROUPS = {
    "simulation": "Simulation speed",
    "build": "Build time",
    "model": "The cycle model's own time",
    "utilisation": "Utilisation",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    group : one of :data:`GROUPS`.
    name, value, unit : what, how much, of what.
    how : how it was measured.
    goal : what it should be, or empty; met : whether it is, None without a goal.
    """

    group: str
    name: str
    value: float
    unit: str
    how: str
    goal: str = ""
    met: bool | None = None

    @property
    def text(self) -> str:
        """The value with its unit."""
        if self.unit == "%":
            return f"{self.value:.1f} %"
        return f"{self.value:,.0f} {self.unit}" if self.value >= 100 else f"{self.value:.3g} {self.unit}"


@dataclass(frozen=True)
class Bench:
    """A layer that is measured: its workload and the compiled Verilog."""

    name: str
    work: Workload
    design: DesignSpec
    rtl: Build
    run: LayerRun


def prepare(model: str, scale: int, tokens: int, design: DesignSpec, root: Path) -> Bench:
    """Build a preset's layer (or take it from the cache) and run it once; the run must agree."""
    work = random_workload(scaled_model(model, scale), tokens, Routing("uniform"), 0)
    rtl = accelerator.build_layer(work.model, design, root)
    run = accelerator.run_rtl(rtl, work, design)
    run.result.check()
    return Bench(f"{model} / {scale}, {tokens} tokens", work, design, rtl, run)


def native_figures(bench: Bench) -> list[Figure]:
    """Return the native bench's speed; Python is not in its loop.

    Per second of processor time, starting and reading the job included: what else runs on the machine
    counts little.
    """
    cycles = bench.run.seen.cycles
    seconds = min(child_seconds(partial(bench.rtl.run, bench.run.spec)) for _ in range(REPEATS))
    speed = cycles / seconds
    array = bench.design.tile
    return [
        Figure(
            group="simulation",
            name="native, Verilator alone",
            value=speed,
            unit="cycles/s",
            how=f"{bench.name}: {cycles:,} cycles with {array.rows * array.cols} MACs in the array,"
            f" {bench.design.gate.lanes} in the gate; fastest of {REPEATS} runs",
            goal=f"at least {NATIVE_GOAL:,}",
            met=speed >= NATIVE_GOAL,
        )
    ]


def build_figures(bench: Bench, root: Path, *, cold: bool) -> list[Figure]:
    """Return the time to the first cycle: from the cache, and if asked from nothing."""
    cached = fastest_seconds(lambda: accelerator.build_layer(bench.work.model, bench.design, root))
    figures = [
        Figure(
            group="build",
            name="cached",
            value=cached * 1e3,
            unit="ms",
            how="the sources' content is hashed, nothing is elaborated",
        )
    ]
    if not cold:
        return figures
    component = layer_component(bench.work.model, bench.design)
    with tempfile.TemporaryDirectory(prefix="expertbank-bench-") as place:
        empty = Path(place)
        started = time.perf_counter()
        directory = exported("layer", component, root=empty)
        between = time.perf_counter()
        build_exported(directory, "layer", root=empty)
        ended = time.perf_counter()
    steps = {
        "cold, export": (between - started, "Amaranth and Yosys to Verilog"),
        "cold, compile": (ended - between, "Verilator and g++, in an empty cache folder"),
    }
    return figures + [
        Figure(
            group="build", name=name, value=seconds, unit="s", how=f"{bench.name.partition(',')[0]}: {how}"
        )
        for name, (seconds, how) in steps.items()
    ]


def model_figures(layers: Sequence[tuple[str, LayerShape]]) -> list[Figure]:
    """Return the time of the layer model, compiled, for each shape."""
    figures = []
    for name, shape in layers:
        arrivals = np.zeros(len(shape.streams.window), dtype=np.int64)
        cycles = layer_cycles(shape, arrivals).cycles  # compiled, or read from the cache, by now
        seconds = fastest_seconds(partial(layer_cycles, shape, arrivals))
        figures.append(
            Figure(
                group="model",
                name=name,
                value=1e3 * seconds,
                unit="ms",
                how=f"`layer_cycles`: {cycles:,} cycles; fastest of {REPEATS}",
                goal=f"below {MODEL_GOAL_MS:g} ms",
                met=1e3 * seconds < MODEL_GOAL_MS,
            )
        )
    return figures


def utilisation_figures(bench: Bench) -> list[Figure]:
    """Return how busy MACs and weight port are, in the layer and in a large expert alone."""
    counters, cycles = bench.run.counters, bench.run.seen.cycles
    figures = [
        Figure(
            group="utilisation",
            name=f"{what} of the layer",
            value=100 * counters[counter] / cycles,
            unit="%",
            how=f"{bench.name}: counter {counter} over {cycles:,} cycles in Verilog",
        )
        for what, counter in (("MAC slots", "mac_active"), ("weight port", "read_beats"))
    ]
    array, memory = bench.design.tile, bench.design.memory
    covering = array.rows * array.cols // memory.beat_elements
    alone = (
        ("mac", "MAC slots", covering, MAC_GOAL, f"{covering} tokens cover a tile's load"),
        ("bandwidth", "weight port", 1, PORT_GOAL, f"one token, {memory.latency_cycles} cycles of latency"),
    )
    for key, what, tokens, goal, why in alone:
        report = run_experts(ALONE_MODEL, bench.design, 1, tokens, ALONE_SCALE, engine="model", seed=0)
        used = report.utilisation[key]
        figures.append(
            Figure(
                group="utilisation",
                name=f"{what} of an expert alone",
                value=100 * used,
                unit="%",
                how=f"{ALONE_MODEL} / {ALONE_SCALE}, {why}; first entry to last beat, by the cycle model",
                goal=f"at least {goal:.0%}",
                met=used >= goal,
            )
        )
    return figures


def measure(
    model: str, scale: int, tokens: int, design: DesignSpec, root: Path, *, cold: bool, progress: Progress
) -> tuple[Bench, list[Figure]]:
    """Return the layer that was measured and all figures that need the package alone."""
    progress("building the layer's simulation (cached by content)")
    bench = prepare(model, scale, tokens, design, root)
    progress("native speed")
    figures = native_figures(bench)
    progress("build time" + (", from nothing: a minute or two" if cold else ""))
    figures += build_figures(bench, root, cold=cold)
    progress("model time and utilisation")
    figures += model_figures([(bench.name, bench.run.shape)])
    return bench, figures + utilisation_figures(bench)


def fastest_seconds(call: Callable[[], object]) -> float:
    """Return the shortest wall time of a few calls, in seconds: what the machine takes when left alone."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def child_seconds(call: Callable[[], object]) -> float:
    """Return the processor time of the processes that ``call`` starts and waits for, in seconds."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    call()
    return used() - before


# Where and when


def machine() -> dict[str, str]:
    """Return what the figures depend on: processor, tools, commit, day, and what else runs by now."""
    compiler = subprocess.run([toolchain.compiler(), "--version"], capture_output=True, text=True, check=True)
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load before": f"{os.getloadavg()[0]:.1f} processes in the minute before",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "tools": f"Verilator {toolchain.verilator_version()}, {compiler.stdout.splitlines()[0]}",
        "commit": _commit(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _commit() -> str:
    """Return the commit, and whether sources differ from it; ``unknown`` outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "spec", "golden", "rtl", "sim", "tests")
        return git("rev-parse", "--short=10", "HEAD") + (" and changes to it" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# The page

HEADER = """\
# Benchmarks

How fast the simulations are. Written by `make bench`; do not edit. Simulation speeds are per second of
processor time, other times are wall times: of the machine below and of what else it did. What is claimed
beyond speed is in [claims.md](claims.md).

"""


def page(figures: Sequence[Figure], where: dict[str, str]) -> str:
    """Return the page as Markdown."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in where.items()), ""]
    for group, title in GROUPS.items():
        of_group = [figure for figure in figures if figure.group == group]
        if of_group:
            lines += [f"## {title}", "", "| what | measured | goal | how |", "|---|---|---|---|"]
            lines += [*map(row, of_group), ""]
    return HEADER + "\n".join(lines)


def headlines(figures: Sequence[Figure]) -> list[str]:
    """Return the table of README, in lines: what has a goal, and simulation speeds."""
    shown = [figure for figure in figures if figure.goal or figure.group == "simulation"]
    return ["", "| what | measured | goal |", "|---|---|---|", *map(headline, shown), ""]


def headline(figure: Figure) -> str:
    """Return a figure's row in README."""
    return f"| {figure.name} | {figure.text} | {_goal(figure)} |"


def _goal(figure: Figure) -> str:
    return figure.goal + ("" if figure.met is not False else " (**missed**)")


def row(figure: Figure) -> str:
    """Return a figure's row."""
    return f"| {figure.name} | {figure.text} | {_goal(figure)} | {figure.how} |"


def as_json(figures: Sequence[Figure], where: dict[str, str]) -> dict[str, Any]:
    """Return the same as one JSON object."""
    return {"machine": where, "figures": [asdict(figure) for figure in figures]}
