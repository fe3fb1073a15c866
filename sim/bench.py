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
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from golden.formats import bf16_encode
from golden.gating import route
from golden.gating_bf16 import route_bf16
from golden.weights import random_tokens, random_weights
from sim import accelerator, toolchain
from sim.accelerator import LayerRun, Progress, token_beats
from sim.alone import operands_of, plan_experts, run_experts, run_plan
from sim.alone.pim import PimAlone
from sim.dram.stream import pattern_requests, run_requests, warm
from sim.gemv import barrier, streamed
from sim.gemv.commands import NO_LIMITS, Product, timings
from sim.gemv.report import run_gemv
from sim.layer import LayerShape, layer_cycles
from sim.pim_layer import PimShape, first_refreshes, pim_cycles, pim_job
from sim.pim_report import build_pim_layer, run_pim_layer
from sim.points import Point, evaluate_all
from sim.routing import Routing, parse_routing
from sim.rtlsim import PROJECT, Build, RunSpec, build_exported, exported, layer_component
from sim.system.report import plan_step
from sim.system.step import run_step
from sim.workload import Workload, random_workload, scaled_model
from spec.banks import CommandTiming
from spec.design import DesignSpec, Format
from spec.geometry import GateGeometry, ImageGeometry
from spec.load import load_design, load_device, load_dram, load_model, load_system, preset_names
from spec.model import ModelSpec
from spec.system import SystemSpec

REPEATS = 5
GATING_MODEL, GATING_INPUTS, GATING_TOKENS = "deepseek-v3", 64, 1 << 20
"""256 experts, top 8 in 4 of 8 groups; few inputs, so that it is the gating that is measured."""
GATING_GOAL_S = 10.0
HARDWARE_TOKENS, GATING_CHUNK = 1 << 17, 1 << 10
NATIVE_GOAL = 100_000
"""Simulated cycles per second with 256 MACs."""
MODEL_GOAL_MS = 1.0
GEMV_GOAL_US, GEMV_MANY_GOAL_US, GEMV_SHAPES = 1000, 20, 10_000
MAC_GOAL, PORT_GOAL = 0.95, 0.90
CHANNEL_GOAL = 0.90
"""Of the cycles that DRAM timing and refresh leave."""
ALONE_MODEL, ALONE_SCALE = "mixtral-8x7b", 16
CHANNEL_EXPERTS, CHANNEL_TOKENS = 8, 8
"""Two groups of tokens each: the lanes are as busy as they can be."""
PIM_LAYER_SCALE, PIM_LAYER_TOKENS = 64, 128
NEAR_MEMORY_FORMATS = (Format.BF16, Format.INT8)
DRAM_GOALS = {"seq_bankfast": 3_000_000, "random": 1_000_000}
"""Requests per second, on each standard."""
DRAM_REQUESTS = 200_000
SYSTEM, SYSTEM_ROUTING = "dynande", "zipf:1"
SYSTEM_STEPS = (("deepseek-v3", 0, 64, 200.0), ("mixtral-8x7b", 1, 16, 10.0))
"""Models, MoE layers (0: all), tokens of a step, goals in milliseconds."""
POINTS_MODEL, POINTS, POINTS_CORES, POINTS_GOAL_S = "mixtral-8x7b", 10_000, 2, 60.0
NEAR_POINTS_MODEL, NEAR_POINTS_SHARE = "olmoe-1b-7b", 10
"""On ``pim``: a model whose layer its banks hold; of so many points one is run, in its share of the time."""
GROUPS = {
    "simulation": "Simulation speed",
    "build": "Build time",
    "model": "The cycle model's own time",
    "golden": "Golden's own time",
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
    array = bench.design.tile
    return [
        _native(
            "native, Verilator alone",
            bench.rtl,
            bench.run.spec,
            bench.run.seen.cycles,
            f"{bench.name}: {{cycles}} cycles with {array.rows * array.cols} MACs in the array,"
            f" {bench.design.gate.lanes} in the gate",
            goal=True,
        )
    ]


def _native(name: str, rtl: Build, spec: RunSpec, cycles: int, how: str, *, goal: bool) -> Figure:
    """Return the speed of a job of so many cycles; ``how`` shows them as ``{cycles}``."""
    speed = cycles / min(child_seconds(partial(rtl.run, spec)) for _ in range(REPEATS))
    return Figure(
        group="simulation",
        name=name,
        value=speed,
        unit="cycles/s",
        how=f"{how.format(cycles=f'{cycles:,}')}; fastest of {REPEATS} runs",
        goal=f"at least {NATIVE_GOAL:,}" if goal else "",
        met=speed >= NATIVE_GOAL if goal else None,
    )


def channel_figures(
    model: str, scale: int, design: DesignSpec, root: Path, experts: int, tokens: int
) -> list[Figure]:
    """Return the speed of a near-memory channel alone, its model's time, and where its cycles go.

    The run must agree with golden in every bit, with the model in every cycle and command.
    """
    alone = plan_experts(model, design, experts, tokens, scale, engine="both")
    assert isinstance(alone, PimAlone)
    report = run_plan(alone, engine="both", seed=0, root=root)
    if not report.agreed or report.mismatches != 0 or report.dram_rules_broken != 0:
        raise AssertionError(f"channel of {design.name}: {report.divergence or 'bits differ from golden'}")
    cycles = report.cycles["rtl"]
    assert cycles is not None
    rtl = alone.build(root, trace=False)
    spec = alone.job(rtl, operands_of(alone.plan, 0))
    pim, what = alone.banks.pim, f"{model} / {scale}, {experts} experts, {tokens} tokens each"
    lanes = pim.units * pim.lanes(design.format)
    timing = CommandTiming.of(pim)
    slots = alone.times.mac_slots(timing)
    seconds = fastest_seconds(alone.model)
    rest = ", ".join(
        f"{text} {slots[key] / sum(slots.values()):.1%}"
        for key, text in (
            ("refresh", "refresh"),
            ("row", "closing and opening rows"),
            ("other", "anything else"),
        )
    )
    used = slots["mac"] / (slots["mac"] + slots["other"])
    return [
        _native(
            f"native, a near-memory channel in {design.format}",
            rtl,
            spec,
            cycles,
            f"{what}: {{cycles}} cycles with {lanes} lanes",
            goal=True,
        ),
        Figure(
            group="model",
            name=f"near-memory channel in {design.format}",
            value=1e3 * seconds,
            unit="ms",
            how=f"`channel_cycles`: {what}: {cycles:,} cycles, every command; fastest of {REPEATS}",
        ),
        Figure(
            group="utilisation",
            name=f"MAC slots of a near-memory channel in {design.format}, of what DRAM leaves",
            value=100 * used,
            unit="%",
            how=f"{what}; of all cycles from first to last MAC {rest}; by the cycle model, whose commands are"
            " those of the Verilog",
            goal=f"at least {CHANNEL_GOAL:.0%}",
            met=used >= CHANNEL_GOAL,
        ),
    ]


def pim_layer_figures(
    model: ModelSpec, name: str, design: DesignSpec, root: Path, tokens: int
) -> list[Figure]:
    """Return the near-memory layer's speed and its model's own time; the run must agree with golden."""
    work = random_workload(model, tokens, Routing("uniform"), 0, design.window_tokens)
    report = run_pim_layer(work, design, engine="rtl", routing="uniform", root=root)
    if not report.agreed or report.mismatches != 0:
        raise AssertionError(f"layer {design.name}: {report.divergence or 'bits differ from golden'}")
    cycles = report.cycles["rtl"]
    assert cycles is not None
    beats = token_beats(ImageGeometry.of(model, design), design, work.tokens, work.batch_lengths)
    banks, golden, spec = pim_job(work, design, beats)
    shape = PimShape(banks, design, golden.streams, banks.round_robin())
    arrivals = np.zeros(len(beats), dtype=np.int64)
    model_run = partial(pim_cycles, shape, arrivals, first_refreshes(banks))
    times, _ = model_run()  # compiled, or read from the cache, by now
    pim, what = banks.pim, f"{name}, {tokens} tokens"
    lanes = pim.units * pim.lanes(design.format)
    return [
        _native(
            f"native, layer `pim` in {design.format}",
            build_pim_layer(model, design, root),
            spec,
            cycles,
            f"{what}: {{cycles}} cycles with {pim.channels} channels of {lanes} lanes,"
            f" {design.gate.lanes} MACs in the gate",
            goal=False,
        ),
        Figure(
            group="model",
            name=f"layer `pim` in {design.format}, {what}",
            value=1e3 * fastest_seconds(model_run),
            unit="ms",
            how=f"`pim_cycles`: {times.cycles:,} cycles; fastest of {REPEATS}",
        ),
    ]


def near_memory_figures(root: Path, progress: Progress) -> list[Figure]:
    """Return all figures of the near-memory design, in the formats of :data:`NEAR_MEMORY_FORMATS`."""
    figures = []
    layer = load_model(ALONE_MODEL).scaled(PIM_LAYER_SCALE)
    for number_format in NEAR_MEMORY_FORMATS:
        design = load_design("pim", number_format)
        progress(f"a near-memory channel in {number_format} (its build is cached by content)")
        figures += channel_figures(ALONE_MODEL, ALONE_SCALE, design, root, CHANNEL_EXPERTS, CHANNEL_TOKENS)
        progress(f"the near-memory layer in {number_format} (its build is cached by content)")
        figures += pim_layer_figures(
            layer, f"{ALONE_MODEL} / {PIM_LAYER_SCALE}", design, root, PIM_LAYER_TOKENS
        )
    return figures


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


def gating_seconds(kind: str, num_tokens: int) -> float:
    """Return the processor time of golden's gating: ``float``, or in the ``hardware``'s numbers.

    For one core the linear algebra must not have more, which is settled before NumPy is loaded
    (:func:`golden_figures`).
    """
    model = replace(load_model(GATING_MODEL), d_model=GATING_INPUTS)
    weights = random_weights(model, 0, experts=())
    tokens = random_tokens(model, num_tokens, 0)
    if kind == "float":
        started = time.process_time()
        route(model.gating, weights.router, tokens, weights.logit_bias, weights.selection_bias)
        return time.process_time() - started
    geometry = GateGeometry.of(model, load_design("fpga"))
    router, patterns = bf16_encode(weights.router), bf16_encode(tokens)
    started = time.process_time()
    for start in range(0, num_tokens, GATING_CHUNK):
        some = patterns[start : start + GATING_CHUNK]
        route_bf16(model.gating, router, some, geometry.cols, weights.logit_bias, weights.selection_bias)
    return time.process_time() - started


def golden_figures() -> list[Figure]:
    """Return golden's time for the gating of many tokens, each in a process with one core."""

    def seconds(kind: str, num_tokens: int) -> float:
        code = f"import sim.bench; print(sim.bench.gating_seconds({kind!r}, {num_tokens}))"
        one_core = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **one_core},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    def figure(name: str, value: float, how: str, goal: float | None) -> Figure:
        gating = load_model(GATING_MODEL).gating
        return Figure(
            group="golden",
            name=f"gating, {name}",
            value=value,
            unit="s",
            how=f"{how} to {gating.num_experts} experts, top {gating.top_k} in {gating.topk_groups} of"
            f" {gating.num_groups} groups, {GATING_INPUTS} inputs; processor time on one core",
            goal=f"below {goal:g} s" if goal else "",
            met=value < goal if goal else None,
        )

    return [
        figure(
            "float",
            seconds("float", GATING_TOKENS),
            f"`golden.gating.route`: {GATING_TOKENS:,} tokens",
            GATING_GOAL_S,
        ),
        figure(
            "the hardware's numbers",
            seconds("hardware", HARDWARE_TOKENS),
            f"`golden.gating_bf16.route_bf16`: {HARDWARE_TOKENS:,} tokens, {GATING_CHUNK:,} at a time,",
            None,
        ),
    ]


def dram_figures(total: int = DRAM_REQUESTS) -> list[Figure]:
    """Return how fast requests go through the DRAM engine: of all standards the slowest, per pattern."""
    figures = []
    for pattern, goal in DRAM_GOALS.items():
        speeds = {}
        for name in preset_names("dram"):
            dram = load_dram(name)
            warm()
            runs = [
                run_requests(dram, pattern_requests(dram, pattern, total), check=False)
                for _ in range(REPEATS)
            ]
            speeds[name] = total / min(run.simulate_s for run in runs)
        slowest = min(speeds.values())
        each = ", ".join(f"{name} {speed / 1e6:.2f} M" for name, speed in speeds.items())
        figures.append(
            Figure(
                group="simulation",
                name=f"DRAM engine, {pattern}, the slowest standard",
                value=slowest,
                unit="requests/s",
                how=f"{total:,} requests, refresh included, log written; fastest of {REPEATS}: {each}",
                goal=f"at least {goal:,}",
                met=slowest >= goal,
            )
        )
    return figures


def gemv_figures() -> list[Figure]:
    """Return the time of a product's cycle count, alone and among many."""
    rows = cols = 4096
    product = Product(rows=rows, cols=cols, channels=64)
    shapes = np.tile([product.rows, product.cols, product.channels, product.batch], (GEMV_SHAPES, 1))
    figures = []
    for name, many in (("hbm2-pim-samsung", barrier.many), ("hbm2-pim", streamed.many)):
        device = load_device(name)
        timed = timings(device.timed, NO_LIMITS)
        cycles = run_gemv(device, product).cycles
        if many(device, shapes[:1], timed)[0] != cycles:
            raise AssertionError(f"{name} counts other cycles among many than alone")
        alone = fastest_seconds(partial(run_gemv, device, product))
        together = fastest_seconds(partial(many, device, shapes, timed)) / GEMV_SHAPES
        for what, seconds, goal in (
            ("alone", alone, GEMV_GOAL_US),
            (f"one of {GEMV_SHAPES:,}", together, GEMV_MANY_GOAL_US),
        ):
            figures.append(
                Figure(
                    group="model",
                    name=f"product {rows} x {cols} on {name}, {what}",
                    value=1e6 * seconds,
                    unit="us",
                    how=f"`pim gemv` with 64 channels: {cycles:,} cycles; fastest of {REPEATS}",
                    goal=f"below {goal:,} us",
                    met=1e6 * seconds < goal,
                )
            )
    return figures


def system_figures() -> list[Figure]:
    """Return the time of a step on a system of rooflines: routing, costs, policy, schedule, checks."""
    system = load_system(SYSTEM)
    # Time is asked for, not whether all experts of the larger model fit.
    system = replace(system, near=replace(system.near, capacity_bytes=None))
    routing = parse_routing(SYSTEM_ROUTING)
    figures = []
    for name, layers, tokens, goal in SYSTEM_STEPS:
        model = load_model(name)
        model = replace(model, num_moe_layers=layers or model.num_moe_layers)

        def step(model: ModelSpec = model, tokens: int = tokens) -> object:
            return run_step(plan_step(system, model, tokens, routing, 0).costs, system.policy)

        seconds, more, wide = (
            fastest_seconds(partial(step, of))
            for of in (model, _layers_times(model, 4), _experts_times(model, 4))
        )
        figures.append(
            Figure(
                group="model",
                name=f"{name} on {SYSTEM}, {model.num_moe_layers} x {model.gating.num_experts} experts,"
                f" {tokens} tokens",
                value=1e3 * seconds,
                unit="ms",
                how=f"`expertbank system`, one policy, routing {SYSTEM_ROUTING} drawn too;"
                f" {more / seconds:.1f} times as long with 4 times the layers, {wide / seconds:.1f} times"
                f" with 4 times the experts and as many of them a token; fastest of {REPEATS}",
                goal=f"below {goal:g} ms",
                met=1e3 * seconds < goal,
            )
        )
    return figures


def _layers_times(model: ModelSpec, factor: int) -> ModelSpec:
    return replace(model, num_moe_layers=factor * model.num_moe_layers)


def _experts_times(model: ModelSpec, factor: int) -> ModelSpec:
    gating = model.gating
    gating = replace(gating, num_experts=factor * gating.num_experts, top_k=factor * gating.top_k)
    return replace(model, gating=gating)


def points_figures() -> list[Figure]:
    """Return the time of many design points of a layer, no design twice, on accelerator and system."""
    design, near, system = load_design("fpga"), load_design("pim"), load_system(SYSTEM)
    link, routing = system.link, parse_routing(SYSTEM_ROUTING)
    assert link is not None

    def slower_memory(n: int) -> DesignSpec:
        return replace(design, memory=replace(design.memory, latency_cycles=20 + n))

    def slower_banks(n: int) -> DesignSpec:
        return replace(near, memory=replace(near.memory, latency_cycles=20 + n))

    def slower_link(n: int) -> SystemSpec:
        latency = replace(link.latency_s, value=1e-9 * n, low=0.0, high=1e-3)
        return replace(system, link=replace(link, latency_s=latency))

    targets: dict[str, tuple[str, int, Callable[[int], DesignSpec | SystemSpec]]] = {
        design.name: (POINTS_MODEL, 1, slower_memory),
        system.name: (POINTS_MODEL, 1, slower_link),
        near.name: (NEAR_POINTS_MODEL, NEAR_POINTS_SHARE, slower_banks),
    }
    figures = []
    for name, (model_name, share, of) in targets.items():
        model, count, goal_s = load_model(model_name), POINTS // share, POINTS_GOAL_S / share
        points = (
            Point(model=model, target=of(n // 10), tokens=1 + n % 10, routing=routing) for n in range(count)
        )
        started = time.perf_counter()
        found = sum(not outcome.error for outcome in evaluate_all(points, POINTS_CORES))
        seconds = time.perf_counter() - started
        if found != count:
            raise AssertionError(f"{count - found} of {count} points on {name} were refused")
        figures.append(
            Figure(
                group="model",
                name=f"{count:,} design points of a layer of {model_name} on {name}",
                value=seconds,
                unit="s",
                how=f"`sim.points.evaluate_all` on {POINTS_CORES} cores, starting its processes included:"
                f" {count // 10:,} designs with 1 to 10 tokens, routing {SYSTEM_ROUTING}",
                goal=f"below {goal_s:g} s",
                met=seconds < goal_s,
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
    progress("the DRAM engine")
    figures += dram_figures()
    progress("model time and utilisation")
    figures += model_figures([(bench.name, bench.run.shape)])
    figures += gemv_figures()
    figures += system_figures()
    figures += points_figures()
    progress("golden's gating: half a minute")
    figures += golden_figures()
    figures += utilisation_figures(bench)
    return bench, figures + near_memory_figures(root, progress)


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
        "commit": commit_of_sources(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def commit_of_sources() -> str:
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
