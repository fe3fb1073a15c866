"""FLAME (DOI 10.1145/3649329.3656507): bytes of an expert over the bandwidth of either memory."""

from __future__ import annotations

from collections.abc import Mapping

from spec.paper import PaperSpec

GPU_BITS = 16


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim. Times are of one weight: an expert's size cancels."""
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    exposed = 1 - v["hit_rate"] * (1 - v["exposed_hits"])
    fpga = v["kept"] * v["bits"] / 8 / v["bytes_per_s"] * exposed
    gpu = GPU_BITS / 8 / (v["gpu_bytes_per_s"] * v["gpu_efficiency"])
    return {"speed_over_gpu": gpu / fpga}
