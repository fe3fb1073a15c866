"""Edge-MoE (arXiv 2305.18691): cycles of M3ViT on a ZCU102 from the loop bounds of its released code.

Every loop takes its trip count times its initiation interval; a loop that reads a block through a narrower
port has the interval that the port gives it. MoE layers are this project's ``fpga`` accelerator with
Edge-MoE's array and port, by the cycle model that is tested against its Verilog: tokens come in, are routed,
dispatched, computed and combined. Ignored: softmax, memory latency outside the MoE layers, the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from math import ceil

from sim.accelerator import run_model
from sim.papers.m3vit import image_macs, least_seconds
from sim.routing import draw_ids, parse_routing
from spec.load import load_design
from spec.model import Activation, FfnSpec, GatingSpec, ModelSpec, Normalise, Score
from spec.paper import PaperSpec, Workload

WATTS = 14.54
"""Published power (UbiMoE, table II); it turns a time into the energy that was published with it."""


@lru_cache(maxsize=64)
def moe_layer_cycles(work: Workload, tokens: int, lanes: int, port_bits: int, latency: int) -> int:
    """Return the cycles of an MoE layer on ``fpga``, array lanes x lanes, all tokens in a window."""
    gating = GatingSpec(
        num_experts=work.experts, top_k=work.top_k, score=Score.SOFTMAX, normalise=Normalise.NONE
    )
    ffn = FfnSpec(d_expert=work.d_expert, activation=Activation.GELU, gate_matrix=False)
    model = ModelSpec(name="m3vit", d_model=work.d_model, num_moe_layers=work.layers, gating=gating, ffn=ffn)
    design = load_design("fpga")
    assert design.array is not None
    design = replace(
        design,
        array=replace(design.array, rows=lanes, cols=lanes),
        memory=replace(design.memory, width_bits=port_bits, latency_cycles=latency),
        window_tokens=1 << (tokens - 1).bit_length(),
        energy=None,
    )
    report = run_model(model, design, draw_ids(gating, parse_routing("uniform"), tokens, 0), "uniform")
    cycles = report.cycles["model"]
    assert cycles is not None
    return cycles


def quick_moe_layer_cycles(work: Workload, tokens: int, lanes: int, port_bits: int) -> float:
    """Return the same by two bounds: all products on the array, all weights through the port."""
    compute = tokens * work.top_k * work.expert_params / lanes**2
    return max(compute, work.experts * work.expert_params * 16 / port_bits)


def image_cycles(values: Mapping[str, float], work: Workload) -> dict[str, float]:
    """Return the cycles of an image by part."""
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    tokens, lanes = int(v["tokens"]), v["linear_lanes"]
    layers = work.layers + work.dense_layers
    wide, dense = (size / lanes for size in (work.d_model, v["dense_width"]))
    interval = ceil(v["block_bits"] / v["port_bits"])
    blocks = work.d_model / v["attention_lanes"]
    attention_weights = layers * 4 * work.d_model**2 + work.dense_layers * 2 * work.d_model * v["dense_width"]
    return {
        "attention linears": layers * 4 * tokens * wide * wide,
        "dense FFN": work.dense_layers * tokens * 2 * wide * dense,
        "MoE": work.layers
        * moe_layer_cycles(work, tokens, int(lanes), int(v["port_bits"]), int(v["memory_latency"])),
        "attention": layers * 2 * ceil(tokens / v["attention_rows"]) * tokens * blocks * interval,
        "LayerNorm": 2 * layers * tokens * (v["norm_reads"] + v["norm_latency"]),
        "residual additions": 2 * layers * tokens * blocks * v["add_passes"],
        "patch embedding": (tokens - 1) * v["patch_pixels"] / lanes * wide,
        "exposed loads": v["serial_loads"] * attention_weights * v["weight_bits"] / v["port_bits"],
    }


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    work = paper.workloads["m3vit_tiny"]
    cycles = image_cycles(values, work)
    total = sum(cycles.values())
    seconds = total / values["inputs.clock_hz"]
    linear = cycles["attention linears"] + cycles["dense FFN"] + cycles["MoE"]
    size = (work, values["inputs.tokens"], values["inputs.dense_width"])
    gpu_s = least_seconds(values, "gpu", *size, number_bytes=2)
    cpu_s = least_seconds(values, "cpu", *size, number_bytes=4)
    joules = WATTS * seconds
    return {
        "latency_ms": 1e3 * seconds,
        "attention_share": cycles["attention"] / total,
        "linear_share": linear / total,
        "energy_mj": 1e3 * joules,
        "gops": 2e-9 * image_macs(*size) / seconds,
        "speed_over_a6000": gpu_s / seconds,
        "a6000_ms": 1e3 * gpu_s,
        "energy_over_a6000": values["inputs.gpu_w"] * gpu_s / joules,
        "energy_over_xeon": values["inputs.cpu_w"] * cpu_s / joules,
    }
