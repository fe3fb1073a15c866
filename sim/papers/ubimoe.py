"""UbiMoE (arXiv 2502.05602): M3ViT by the loop bounds of its released code, and a search of tilings.

Attention streams keys and values past groups of rows, both products in one pass; linears, FFN and experts
run on equal units, tokens dealt over them. An expert's weights are loaded while the one before is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.m3vit import image_macs, least_seconds
from sim.system.costs import FloatArray
from spec.paper import PaperSpec, Workload
from spec.system import with_changed

EDGE_MOE_MS, EDGE_MOE_W = 34.64, 14.54
"""Published for Edge-MoE, which claims are ratios to (table II)."""


def image_cycles(
    values: Mapping[str, float], work: Workload, units: FloatArray, rows: FloatArray
) -> FloatArray:
    """Return the cycles of an image for each number of linear units and of attention's rows."""
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    tokens, macs, d = v["tokens"], v["linear_macs"] * units, work.d_model
    layers = work.layers + work.dense_layers
    linear = layers * 4 * tokens * d * d / macs
    dense = work.dense_layers * tokens * 2 * d * v["dense_width"] / macs
    load = work.experts * work.expert_params * v["weight_bits"] / v["port_bits"]
    experts = work.layers * np.maximum(tokens * work.top_k * work.expert_params / macs, load)
    attention = layers * np.ceil(tokens / rows) * tokens * d / v["attention_lanes"] * v["interval"]
    # Linears of attention belong to its kernel; FFN and experts are the other one.
    first, second = attention + linear, dense + experts
    cycles: FloatArray = np.where(v["overlap"] == 1, np.maximum(first, second), first + second)
    return cycles


def best_tiling(values: Mapping[str, float], work: Workload) -> float:
    """Return the fewest cycles of all tilings that the U280's published DSPs allow."""
    units, rows = np.meshgrid(np.arange(1.0, 16), np.arange(1.0, 65))
    dsps = units * values["inputs.linear_macs"] * values["inputs.dsps_per_linear_mac"]
    dsps = dsps + 2 * rows * values["inputs.attention_lanes"] * values["inputs.dsps_per_attention_mac"]
    fits = dsps <= values["inputs.u280_dsps"]
    return float(image_cycles(values, work, units, rows)[fits].min())


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    work = paper.workloads["m3vit_tiny"]
    found: dict[str, float] = {}
    for board, ms in _milliseconds(values, work).items():
        joules = ms * values[f"inputs.{board}_w"]
        gpu_ms = 1e3 * least_seconds(
            values, "gpu", work, values["inputs.tokens"], values["inputs.dense_width"], number_bytes=4
        )
        found |= {
            f"{board}_ms": ms,
            f"{board}_over_edge_moe": EDGE_MOE_MS / ms,
            f"{board}_mj": joules,
            f"{board}_energy_over_edge_moe": EDGE_MOE_W * EDGE_MOE_MS / joules,
            f"{board}_gops": _gops(values, work, ms),
            f"{board}_over_v100s": gpu_ms / ms,
            f"{board}_energy_over_v100s": values["inputs.gpu_w"] * gpu_ms / joules,
        }
    for tokens in (129, 197):
        for interval in (1, 2):
            variant = with_changed(values, {"inputs.tokens": tokens, "inputs.interval": interval})
            for board, ms in _milliseconds(variant, work).items():
                found[f"{board}_ms_{tokens}_{interval}"] = ms
    return found


def _milliseconds(values: Mapping[str, float], work: Workload) -> dict[str, float]:
    """Return the time of an image on either board."""
    configured = (np.array(values["inputs.linear_units"]), np.array(values["inputs.attention_rows"]))
    return {
        "zcu102": 1e3 * float(image_cycles(values, work, *configured)) / values["inputs.zcu102_clock_hz"],
        "u280": 1e3 * best_tiling(values, work) / values["inputs.u280_clock_hz"],
    }


def _gops(values: Mapping[str, float], work: Workload, ms: float) -> float:
    return 2e-6 * image_macs(work, values["inputs.tokens"], values["inputs.dense_width"]) / ms
