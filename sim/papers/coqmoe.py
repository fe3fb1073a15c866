"""CoQMoE (arXiv 2506.08496): the least time that its published DSPs, clock and one port allow."""

from __future__ import annotations

from collections.abc import Mapping

from spec.paper import PaperSpec, Workload

EDGE_MOE_MS = 34.64
"""Published for Edge-MoE, which a claim is a ratio to."""
DENSE_RATIO = 4
"""Width of the FFN of a dense layer over d_model (M3ViT)."""


def least_ms(values: Mapping[str, float], work: Workload, board: str) -> float:
    """Return milliseconds: the longer of all products on all DSPs and of loading all experts."""
    tokens, d = values["inputs.tokens"], work.d_model
    layers = work.layers + work.dense_layers
    macs = layers * (4 * d**2 * tokens + 2 * tokens**2 * d)
    macs += work.dense_layers * 2 * DENSE_RATIO * d**2 * tokens
    macs += work.layers * work.top_k * work.expert_params * tokens
    clock = values[f"inputs.{board}_clock_hz"]
    compute = macs / (values[f"inputs.{board}_dsps"] * values["inputs.macs_per_dsp"])
    bits = work.layers * work.experts * work.expert_params * values["inputs.weight_bits"]
    return 1e3 * max(compute, bits / values["inputs.port_bits"]) / clock


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    zcu102 = least_ms(values, paper.workloads["tiny"], "zcu102")
    return {
        "zcu102_ms": zcu102,
        "u280_ms": least_ms(values, paper.workloads["small"], "u280"),
        "over_edge_moe": EDGE_MOE_MS / zcu102,
    }
