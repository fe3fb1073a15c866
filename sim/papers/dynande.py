"""DynaNDE (arXiv 2609.00407): its prefix scan with a cache of experts against MoNDE's rule without."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.routed import counts_of, expert_of, system_values
from sim.system.costs import BoolArray, IntArray
from sim.system.step import least_frequent_leave, run_step, system_costs
from spec.paper import PaperSpec, Workload

ZIPF = (0.0, 1.0)
LAYERS = 4


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim; the replay is :mod:`sim.papers.dynande_replay`."""
    system, own = paper.systems["dynande"], system_values(values, "dynande")

    def speed(work: Workload, counts: IntArray, cached: BoolArray | None) -> float:
        expert = expert_of(work)
        rule = run_step(system_costs(system, counts, expert, own), "ratio").seconds
        return (
            rule / run_step(system_costs(system, counts, expert, own, cached=cached), system.policy).seconds
        )

    steps, batch = int(values["inputs.decode_steps"]), int(values["inputs.decode_batch"])
    prompt = int(values["inputs.prefill_requests"] * values["inputs.prefill_tokens"])
    decode, prefill = [], []
    for work in paper.workloads.values():
        entries = int(own["cache_share"] * work.experts)
        for zipf in ZIPF:
            counts = counts_of(work, batch, zipf, LAYERS, steps)
            flat = counts.reshape(-1, work.experts)
            cached = least_frequent_leave(counts, entries).reshape(flat.shape)
            decode.append(speed(work, flat, cached))
            prefill.append(speed(work, counts_of(work, prompt, zipf, LAYERS)[0], None))
    return {
        "decode_over_monde": float(np.mean(decode)),
        "prefill_over_monde": float(np.mean(prefill)),
    }
