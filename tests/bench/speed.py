"""Measure everything that :mod:`sim.bench` does and the engines of the tests; write the page.

``make bench`` runs it. The layer, its weights and its tokens are the same for every engine: the native
bench runs all of the job, cocotb and ``amaranth.sim`` its first cycles.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator

from golden.checkpoint import Checkpoint
from golden.layer_bf16 import layer_image
from rtl.layer import FpgaLayer
from sim import accelerator, bench
from sim.bench import Bench, Figure
from sim.layer import LayerShape
from sim.marked import with_marked
from sim.rtlsim import DEFAULT_ROOT, PROJECT
from sim.toolchain import write_atomically
from sim.workload import vector_workload
from spec.geometry import ImageGeometry, ceil_div
from spec.load import load_design
from spec.registers import CONTROL_LOAD, REGISTERS, STATUS_LOADED
from tests.bench.runner import CocotbBuild, build_exported
from tests.bfm import ReadMemory
from tests.checkpoint_files import Tensors, write_checkpoint

MARK = "benchmarks"
MODEL, SCALE, TOKENS = "mixtral-8x7b", 64, 256
CYCLES = 2000
"""Long enough that experts compute: a window of tokens is routed by then."""
COCOTB_REPEATS = 3
LOADER_GOAL = 1.0
"""Times the time of reading an expert's bytes."""
SWEEP_MODEL, SWEEP_POINTS, SWEEP_GOAL_S = "mixtral-8x7b", 10_000, 60.0
SWEEP_EFFICIENCY, SWEEP_MEMORY = 90.0, 1.1
"""Per cent of twice the speed of one worker; times the memory of the smaller sweep."""
SWEEP_SIZES = (10_000, 100_000)
SERVE_MODEL, SERVE_SYSTEM = "mixtral-8x7b", "duplex-4"
SERVE_HOUR = {
    "arrivals": "poisson:10",
    "requests": 36_000,
    "prompt": "lognormal:512:0.8",
    "output": "lognormal:200:0.5",
}
SERVE_GOAL_S, SERVE_SIZES, SERVE_MEMORY = 30.0, (10_000, 1_000_000), 1.1
"""An hour's seconds; requests of two traces; times the memory of the shorter one."""
LAYER_OF_MAKE_SIM = Path(__file__).parent.parent / "data" / "mixtral_s0.npz"


def cocotb_figure(measured: Bench) -> Figure:
    """Return cocotb's speed on the same Verilog, driven and watched by Python in every cycle.

    From runs of two lengths, so that starting and loading the router do not count.
    """
    rtl = build_exported(measured.rtl.directory, measured.rtl.name, root=measured.rtl.root)
    short, long = (
        min(bench.child_seconds(partial(_run_first, rtl, measured, cycles)) for _ in range(COCOTB_REPEATS))
        for cycles in (CYCLES // 10, CYCLES)
    )
    speed = (CYCLES - CYCLES // 10) / (long - short)
    return figure("cocotb and Verilator", speed, "streams, memory and rules in Python")


def _run_first(rtl: CocotbBuild, measured: Bench, cycles: int) -> None:
    result = rtl.run(replace(measured.run.spec, stop_cycle=cycles, epilogue=()))
    result.check()
    seen = result.streams["i"].cycles
    if seen.tolist() != taken_before(measured, cycles):
        raise AssertionError("cocotb took the tokens in other cycles than the native bench")


def taken_before(measured: Bench, cycles: int) -> list[int]:
    """Return the cycles, of the first ones, in which the native bench saw an input beat taken."""
    taken = measured.run.result.streams["i"].cycles
    return [int(cycle) for cycle in taken[taken < cycles]]


def amaranth_figure(measured: Bench) -> Figure:
    """Return the speed of ``amaranth.sim`` on the same layer, not exported."""
    return figure(
        "amaranth.sim", amaranth_cycles_per_second(measured, CYCLES), "Amaranth itself, nothing exported"
    )


def figure(name: str, speed: float, how: str) -> Figure:
    return Figure(
        group="simulation",
        name=name,
        value=speed,
        unit="cycles/s",
        how=f"the first {CYCLES:,} cycles of the same run: {how}",
    )


def amaranth_cycles_per_second(measured: Bench, cycles: int) -> float:
    """Run the first cycles after the router is loaded; the tokens that go in must be those of the job."""
    work, design = measured.work, measured.design
    image = ImageGeometry.of(work.model, design)
    layer = FpgaLayer(work.model, design)
    memory = ReadMemory(
        layer.o_ar,
        layer.i_r,
        layer_image(work.model, image, work.weights).view(np.uint16),
        burst_beats=design.memory.burst_beats,
        latency=design.memory.latency_cycles,
    )
    beats = accelerator.token_beats(image, design, work.tokens, work.batch_lengths)
    payloads = [int.from_bytes(beat.tobytes(), "little") for beat in beats]
    taken: list[int] = []
    seconds = 0.0

    async def run(ctx):
        nonlocal seconds
        for name, value in (("IMAGE_PAGE", 0), ("CAPACITY", 0), ("CONTROL", 1 << CONTROL_LOAD)):
            ctx.set(layer.reg_addr, REGISTERS[name])
            ctx.set(layer.reg_wdata, value)
            ctx.set(layer.reg_we, 1)
            await ctx.tick()
        ctx.set(layer.reg_we, 0)
        ctx.set(layer.reg_addr, REGISTERS["STATUS"])
        await ctx.tick().repeat(2)
        await ctx.tick().until(layer.reg_rdata[STATUS_LOADED])
        ctx.set(layer.i.valid, 1)
        ctx.set(layer.o.ready, 1)
        ctx.set(Value.cast(layer.i.payload), payloads[0])
        started = time.process_time()
        for cycle in range(cycles):
            *_, ready = await ctx.tick().sample(layer.i.ready)
            if ready:
                taken.append(cycle)
                ctx.set(Value.cast(layer.i.payload), payloads[len(taken)])
        seconds = time.process_time() - started

    simulator = Simulator(layer)
    simulator.add_clock(1e-8)
    simulator.add_testbench(run)
    simulator.add_testbench(memory.run, background=True)
    simulator.run()
    if taken != taken_before(measured, cycles):
        raise AssertionError("amaranth.sim took the tokens in other cycles than the Verilog")
    return cycles / seconds


def model_figures() -> list[Figure]:
    """Return the model's time for the layer of ``make sim``."""
    work = vector_workload(str(LAYER_OF_MAKE_SIM), None)
    shape: LayerShape = accelerator.layer_job(work, load_design("fpga"))[0]
    return bench.model_figures([(f"{LAYER_OF_MAKE_SIM.stem}, {len(work.tokens)} tokens", shape)])


def loader_figures(d_model: int = 7168, d_expert: int = 2048) -> list[Figure]:
    """Return how long the weights of one routed expert take, over reading its file's bytes.

    By default of DeepSeek-V3's size. The file is in the page cache, and both write to new memory.
    """
    layer, d_router = "model.layers.0.mlp.", 256
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": d_model,
        "moe_intermediate_size": d_expert,
        "n_routed_experts": d_router,
        "num_experts_per_tok": 8,
        "n_shared_experts": 0,
        "hidden_act": "silu",
    }
    rng, figures = np.random.default_rng(0), []
    for dtype, name in (("F8_E4M3", "fp8 with block scales"), ("BF16", "bf16")):
        tensors: Tensors = {
            f"{layer}gate.weight": ("BF16", np.zeros((d_router, d_model))),
            f"{layer}gate.e_score_correction_bias": ("F32", np.zeros(d_router)),
        }
        for part, shape in (
            ("gate", (d_expert, d_model)),
            ("up", (d_expert, d_model)),
            ("down", (d_model, d_expert)),
        ):
            key = f"{layer}experts.0.{part}_proj.weight"
            # Of both signs and of all magnitudes, but no NaN (0x7F, 0xFF).
            codes = rng.integers(0, 127, shape, np.uint8) | (rng.integers(0, 2, shape, np.uint8) << 7)
            tensors[key] = (dtype, codes)
            if dtype == "F8_E4M3":
                scales = rng.random([ceil_div(size, 128) for size in shape], np.float32)
                tensors[f"{key}_scale_inv"] = ("F32", scales)
        with tempfile.TemporaryDirectory(prefix="expertbank-bench-") as place:
            folder = write_checkpoint(Path(place), config, tensors)
            found = Checkpoint(folder).layer("0")
            file = folder / "model.safetensors"
            of_bytes = bench.fastest_seconds(file.read_bytes)
            of_weights = bench.fastest_seconds(partial(found.read, [0]))
            size_mb = file.stat().st_size / 1e6
        ratio = of_weights / of_bytes
        figures.append(
            Figure(
                group="golden",
                name=f"weights of an expert in {name}, over its bytes",
                value=ratio,
                unit="x",
                how=f"`CheckpointLayer.read`: {3 * d_model * d_expert:,} weights to float32 in"
                f" {1e3 * of_weights:.3g} ms on {os.cpu_count()} cores; `read_bytes` of the file, "
                f"{size_mb:.3g} MB in the page cache, in {1e3 * of_bytes:.3g} ms; wall times,"
                f" fastest of {bench.REPEATS}",
                goal=f"at most {LOADER_GOAL:g} x",
                met=ratio <= LOADER_GOAL,
            )
        )
    return figures


def sweep_figures() -> list[Figure]:
    """Return the time of a sweep of a layer with one and two workers, and the client's memory."""
    latencies = {"from": 20, "to": 19 + SWEEP_POINTS // 10}
    layer = {
        "fixed": {"model": SWEEP_MODEL, "design": "fpga", "routing": "zipf:1"},
        "axes": {"design.memory.latency_cycles": latencies, "tokens": {"from": 1, "to": 10}},
    }
    seconds, files = [], []
    with tempfile.TemporaryDirectory(prefix="expertbank-bench-") as place:
        for workers in (1, 2):
            file = Path(place) / f"{workers}.parquet"
            took, _ = _swept(layer, file, workers)
            seconds.append(took)
            files.append(file.read_bytes())
        if files[0] != files[1]:
            raise AssertionError("two workers gave other rows than one")
        megabytes = []
        for points in SWEEP_SIZES:
            product = {
                "evaluate": "gemv",
                "fixed": {"device": "hbm2-pim", "channels": 64},
                "axes": {
                    "batch": {"from": 1, "to": points // 1000},
                    "rows": {"from": 64, "to": 6400, "step": 64},
                    "cols": {"from": 256, "to": 2560, "step": 256},
                },
            }
            megabytes.append(_swept(product, Path(place) / f"{points}.parquet", 2)[1])
    efficiency = 100 * seconds[0] / (2 * seconds[1])
    growth = megabytes[1] / megabytes[0]
    what = (
        f"{SWEEP_POINTS:,} points of a layer of {SWEEP_MODEL} on fpga; processes import beside the client,"
        " whose own imports are not in it"
    )
    return [
        Figure(
            group="model",
            name=f"sweep of {SWEEP_POINTS:,} points of a layer, 2 workers",
            value=seconds[1],
            unit="s",
            how=f"`expertbank sweep`: {what}",
            goal=f"below {SWEEP_GOAL_S:g} s",
            met=seconds[1] < SWEEP_GOAL_S,
        ),
        Figure(
            group="model",
            name="sweep, efficiency from 1 to 2 workers",
            value=efficiency,
            unit="%",
            how=f"half of {seconds[0]:.1f} s with one over {seconds[1]:.1f} s with two on {os.cpu_count()}"
            f" cores: {what}",
            goal=f"at least {SWEEP_EFFICIENCY:g}%",
            met=efficiency >= SWEEP_EFFICIENCY,
        ),
        Figure(
            group="model",
            name=f"sweep, memory with {SWEEP_SIZES[1]:,} points over {SWEEP_SIZES[0]:,}",
            value=growth,
            unit="x",
            how=f"largest resident set of the process that hands out products on hbm2-pim and writes:"
            f" {megabytes[1]:.0f} MB over {megabytes[0]:.0f} MB",
            goal=f"at most {SWEEP_MEMORY:g} x",
            met=growth <= SWEEP_MEMORY,
        ),
    ]


SWEEP_SCRIPT = """
import json, sys
from pathlib import Path
from sim.processes import prepare

if __name__ == "__main__":
    prepare()  # beside the imports, as the command does
from sim.sweep.run import run_sweep
from sim.sweep.space import read_space
from sim.sweep.workers import LocalWorkers
from tests.bench.memory import largest_megabytes

class Watch:
    begin = done = say = lambda self, *_, **__: None

if __name__ == "__main__":
    space, file, workers = read_space(json.loads(sys.argv[1]), "bench"), Path(sys.argv[2]), int(sys.argv[3])
    summary = run_sweep(space, file, lambda: LocalWorkers(workers), Watch())
    print(summary.seconds, largest_megabytes())
"""


def _swept(space: dict[str, object], file: Path, workers: int) -> tuple[float, float]:
    """Run a sweep in a process of its own; return seconds and megabytes of its largest resident set."""
    command = [sys.executable, "-c", SWEEP_SCRIPT, json.dumps(space), str(file), str(workers)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def serving_figures() -> list[Figure]:
    """Return the time of an hour of traffic, and time and memory of a trace of many requests."""
    hour_s, _, steps = _served(SERVE_HOUR)
    seconds, megabytes = [], []
    with tempfile.TemporaryDirectory(prefix="expertbank-bench-") as place:
        for requests in SERVE_SIZES:
            trace = Path(place) / "trace.csv"
            with trace.open("w") as file:
                file.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
                file.writelines(f"{n / 10},m,100,6,106,API log\n" for n in range(requests))
            took, most, _ = _served({"trace": str(trace)})
            seconds.append(took)
            megabytes.append(most)
    growth = megabytes[1] / megabytes[0]
    what = f"`sim.serve`: {SERVE_MODEL} on {SERVE_SYSTEM}"
    drawn = ", ".join(f"{name} {value}" for name, value in SERVE_HOUR.items())
    return [
        Figure(
            group="model",
            name="an hour of 10 requests/s",
            value=hour_s,
            unit="s",
            how=f"{what}: {drawn}: {steps:,} steps, their costs included",
            goal=f"below {SERVE_GOAL_S:g} s",
            met=hour_s < SERVE_GOAL_S,
        ),
        Figure(
            group="model",
            name=f"a trace of {SERVE_SIZES[1]:,} requests",
            value=seconds[1],
            unit="s",
            how=f"{what}: a BurstGPT file, 10 requests/s of 100 tokens in, 6 out",
        ),
        Figure(
            group="model",
            name=f"serving, memory with {SERVE_SIZES[1]:,} requests over {SERVE_SIZES[0]:,}",
            value=growth,
            unit="x",
            how=f"largest resident set of the process: {megabytes[1]:.0f} MB over {megabytes[0]:.0f} MB",
            goal=f"at most {SERVE_MEMORY:g} x",
            met=growth <= SERVE_MEMORY,
        ),
    ]


SERVE_SCRIPT = """
import json, sys
from sim import serve
from tests.bench.memory import largest_megabytes

model, system, given = json.loads(sys.argv[1])
serve(system, model, arrivals="fixed:1", requests=1, step_tokens=64)  # compiled, or read from the cache
run = serve(system, model, **given)
assert run.finished == run.requests
print(run.wall_s, largest_megabytes(), run.steps)
"""


def _served(given: dict[str, object]) -> tuple[float, float, int]:
    """Serve in a process of its own; return seconds, megabytes of its largest resident set, and steps."""
    command = [sys.executable, "-c", SERVE_SCRIPT, json.dumps([SERVE_MODEL, SERVE_SYSTEM, given])]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    seconds, megabytes, steps = done.stdout.split()
    return float(seconds), float(megabytes), int(steps)


def main() -> int:
    """Measure, print, write the page and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the page")
    parser.add_argument(
        "--headlines", type=Path, required=True, help="a file with marks for the first figures"
    )
    parser.add_argument("--json", type=Path, required=True, help="the same figures as JSON")
    arguments = parser.parse_args()

    def progress(text: str) -> None:
        print(f"[bench] {text}", file=sys.stderr)

    with_marked(arguments.headlines, MARK, [])  # before minutes of work: are the marks there?
    where = bench.machine()
    design = load_design("fpga")
    measured, figures = bench.measure(
        MODEL, SCALE, TOKENS, design, DEFAULT_ROOT, cold=True, progress=progress
    )
    progress("cocotb (its build is cached by content)")
    figures.append(cocotb_figure(measured))
    progress("amaranth.sim: a minute")
    figures.append(amaranth_figure(measured))
    figures += model_figures()
    progress("weights of a checkpoint")
    figures += loader_figures()
    progress("sweeps: a minute or two")
    figures += sweep_figures()
    progress("serving: a minute")
    figures += serving_figures()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.json, json.dumps(bench.as_json(figures, where), indent=1) + "\n")
    write_atomically(arguments.out, bench.page(figures, where))
    write_atomically(arguments.headlines, with_marked(arguments.headlines, MARK, bench.headlines(figures)))
    print(arguments.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
