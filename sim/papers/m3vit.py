"""What an image of M3ViT costs whoever computes it: products, weights, and a GPU's or CPU's least time."""

from __future__ import annotations

from collections.abc import Mapping

from sim.system.costs import Roofline
from spec.paper import Workload


def image_macs(work: Workload, tokens: float, dense_width: float) -> float:
    """Return the products of an image: linears, attention, FFN, experts; gates and the head are left out."""
    d, layers = work.d_model, work.layers + work.dense_layers
    weighted = layers * 4 * d**2 + work.dense_layers * 2 * d * dense_width
    weighted += work.layers * work.top_k * work.expert_params
    return tokens * (weighted + layers * 2 * tokens * d)


def image_weights(work: Workload, dense_width: float) -> float:
    """Return all weights, each read once for an image."""
    d, layers = work.d_model, work.layers + work.dense_layers
    weights = layers * 4 * d**2 + work.dense_layers * 2 * d * dense_width
    return weights + work.layers * work.experts * work.expert_params


def least_seconds(
    values: Mapping[str, float],
    engine: str,
    work: Workload,
    tokens: float,
    dense_width: float,
    number_bytes: int,
) -> float:
    """Return an engine's roofline of an image and its software's time; ``engine``: ``gpu`` or ``cpu``."""
    v = {name: values[f"inputs.{engine}_{name}"] for name in ("bytes_per_s", "peak_flops", "software_s")}
    roofline = Roofline(v["bytes_per_s"], v["peak_flops"])
    flops = 2 * image_macs(work, tokens, dense_width)
    return v["software_s"] + float(roofline.seconds(number_bytes * image_weights(work, dense_width), flops))
