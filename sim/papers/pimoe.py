"""PIMoE (DOI 10.1109/DAC63849.2025.11132528): an MoE layer on its inferred platform against a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.routed import counts_of, expert_of, system_values
from sim.system.costs import Roofline
from sim.system.step import memory_energy, run_step, system_costs
from spec.paper import PaperSpec

TOKENS, ZIPF, LAYERS = (1, 4, 16, 64), (0.0, 1.0), 4


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    system, own = paper.systems["pimoe"], system_values(values, "pimoe")
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    work = paper.workloads["switch_base_128"]
    whole, kept = expert_of(work), expert_of(work, v["kept"])
    gpu = Roofline(v["gpu_bytes_per_s"] * v["gpu_efficiency"], v["gpu_flops"], v["gpu_expert_s"])
    speed, over_near, saving = [], [], []
    for tokens in TOKENS:
        for zipf in ZIPF:
            counts = counts_of(work, tokens, zipf, LAYERS)[0]
            costs = system_costs(system, counts, kept, own)
            step = run_step(costs, system.policy)
            gpu_s = float(gpu.experts(counts, whole).sum())
            speed.append(gpu_s / step.seconds)
            over_near.append(run_step(costs, "all-near").seconds / step.seconds)
            traffic = np.where(counts > 0, whole.traffic(counts), 0.0).sum()
            gpu_j = 8 * traffic * v["gpu_j_per_bit"] + whole.flops(counts).sum() * v["flop_j"]
            own_j = memory_energy(step, kept, v["gpu_j_per_bit"], v["pim_j_per_bit"]).sum()
            own_j += kept.flops(counts).sum() * v["flop_j"]
            saving.append((gpu_j + gpu_s * v["gpu_static_w"]) / own_j)
    return {
        "speed_over_a100": float(np.mean(speed)),
        "speed_over_state_of_the_art": float(np.mean(over_near)),
        "energy_over_a100": float(np.mean(saving)),
        "least_over_a100": min(speed),
        "most_over_a100": max(speed),
        "least_energy_over_a100": min(saving),
    }
