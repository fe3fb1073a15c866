"""``expertbank bench``: speeds and utilisation, measured."""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from sim.commands.output import json_option, print_json, print_table

REPEATS = 5


@click.command("bench")
@click.option("--model", "model_name", default="mixtral-8x7b", show_default=True, help="Preset, at scale 64.")
@click.option("--tokens", type=int, default=64, show_default=True)
@json_option
def command(model_name: str, tokens: int, as_json: bool) -> int:
    """Measure simulation speed and build time of the layer, the model's own time, utilisation."""
    from sim import accelerator, workload
    from sim.layer import LayerShape, layer_cycles
    from sim.routing import Routing
    from sim.rtlsim import DEFAULT_ROOT
    from spec.load import load_design

    design = load_design("fpga")
    work = workload.random_workload(workload.scaled_model(model_name, 64), tokens, Routing("uniform"), 0)
    started = time.perf_counter()
    rtl = accelerator.build_layer(work.model, design, Path(DEFAULT_ROOT))
    build_s = time.perf_counter() - started
    run = accelerator.run_rtl(rtl, work, design)
    speeds = [run.result.cycles_per_second]
    speeds += [rtl.run(run.spec).cycles_per_second for _ in range(REPEATS - 1)]
    shape: LayerShape = run.shape
    arrivals = np.zeros(tokens, dtype=np.int64)
    layer_cycles(shape, arrivals)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        layer_cycles(shape, arrivals)
        times.append(time.perf_counter() - started)
    cycles = run.seen.cycles
    figures = {
        "cycles": cycles,
        "simulated_cycles_per_second": float(np.median(speeds)),
        "build_or_cache_s": build_s,
        "model_ms": float(np.median(times)) * 1e3,
        "mac_utilisation": run.counters["mac_active"] / cycles,
        "weight_port_utilisation": run.counters["read_beats"] / cycles,
    }
    if as_json:
        print_json(figures)
    else:
        print_table(("figure", "value"), [(name, f"{value:,.4g}") for name, value in figures.items()])
    return 0
