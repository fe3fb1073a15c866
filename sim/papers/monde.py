"""MoNDE (arXiv 2405.18832): its rule against moving every active expert's parameters to the GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.routed import counts_of, expert_of, system_values
from sim.system.step import run_step, system_costs
from spec.paper import PaperSpec

ENCODER, DECODER = (512, 2048, 8192), (1, 4, 16)
"""Tokens of a layer."""
ZIPF = (0.0, 0.5, 1.0, 1.5)
LAYERS = 2


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    system, own = paper.systems["monde"], system_values(values, "monde")
    software = LAYERS * values["inputs.software_s"]
    speed: dict[tuple[str, int, float], float] = {}
    for name, work in paper.workloads.items():
        for tokens in ENCODER + DECODER:
            for zipf in ZIPF:
                costs = system_costs(system, counts_of(work, tokens, zipf, LAYERS)[0], expert_of(work), own)
                moved, divided = (run_step(costs, policy).seconds for policy in ("all-host", system.policy))
                speed[name, tokens, zipf] = (software + moved) / (software + divided)

    def of(sizes: tuple[int, ...]) -> list[float]:
        return [result for (_, tokens, _), result in speed.items() if tokens in sizes]

    link, near = own["link.bytes_per_s"], own["near.bytes_per_s"]
    return {
        "least_over_movement": min(speed.values()),
        "most_over_movement": max(speed.values()),
        "encoder_mean": float(np.mean(of(ENCODER))),
        "decoder_mean": float(np.mean(of(DECODER))),
        "encoder_most": max(of(ENCODER)),
        "decoder_most": max(of(DECODER)),
        "host_share": link / (link + near),
    }
