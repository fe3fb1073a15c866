"""CoQMoE (arXiv 2506.08496): the least time that its published DSPs, clock and one port allow."""

from __future__ import annotations

from collections.abc import Mapping

from sim.papers.m3vit import image_macs, least_seconds
from spec.paper import PaperSpec, Workload

EDGE_MOE_MS = 34.64
"""Published for Edge-MoE, which claims are ratios to, and with the published 14.54 W its energy."""
EDGE_MOE_MJ = 14.54 * EDGE_MOE_MS
DENSE_RATIO = 4
"""Width of the FFN of a dense layer over d_model (M3ViT)."""


def least_ms(values: Mapping[str, float], work: Workload, board: str) -> float:
    """Return milliseconds: the longer of all products on all DSPs and of loading all experts."""
    macs = image_macs(work, values["inputs.tokens"], DENSE_RATIO * work.d_model)
    clock = values[f"inputs.{board}_clock_hz"]
    compute = macs / (values[f"inputs.{board}_dsps"] * values["inputs.macs_per_dsp"])
    bits = work.layers * work.experts * work.expert_params * values["inputs.weight_bits"]
    return 1e3 * max(compute, bits / values["inputs.port_bits"]) / clock


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    found: dict[str, float] = {}
    for board, name in (("zcu102", "tiny"), ("u280", "small")):
        work = paper.workloads[name]
        ms, watts = least_ms(values, work, board), values[f"inputs.{board}_w"]
        gpu_ms = 1e3 * least_seconds(
            values, "gpu", work, values["inputs.tokens"], DENSE_RATIO * work.d_model, number_bytes=4
        )
        found |= {
            f"{board}_ms": ms,
            f"{board}_mj": ms * watts,
            f"{board}_over_v100s": gpu_ms / ms,
            f"{board}_energy_over_v100s": gpu_ms * values[f"inputs.{name}_gpu_w"] / (ms * watts),
        }
    return found | {
        "over_edge_moe": EDGE_MOE_MS / found["zcu102_ms"],
        "energy_ratio_edge_moe": found["zcu102_mj"] / EDGE_MOE_MJ,
        "frames_per_s": 1e3 / found["zcu102_ms"],
    }
