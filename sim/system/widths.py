"""Formats of experts' weights: bytes that are held and read; what they do to results is not looked at.

Experts compute one after another on one engine, by a roofline with the same operations in all formats:
weights are widened before they are multiplied with. A policy knows the loads of the first half of the steps
and is judged by the second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.system.caches import largest
from sim.system.comparison import Comparison, Result, Steps, halves
from sim.system.costs import BYTES, FloatArray, Roofline
from sim.system.step import BITS
from spec.design import DEFAULT_GROUP, Format
from spec.errors import require

BASELINE = "bf16"
BOUND = "all weights in the narrowest format"


def bits_of(number_format: Format) -> float:
    """Return the bits of an element with its part of a group's scale."""
    scale = number_format.scale_bits / DEFAULT_GROUP[number_format] if number_format.grouped else 0.0
    return number_format.bits + scale


def narrowest() -> float:
    """Return the fewest bits of an element of any format, with its part of a scale."""
    return min(map(bits_of, Format))


def _all(number_format: Format) -> Callable[[FloatArray, float], FloatArray]:
    return lambda load, share: np.full(load.shape, bits_of(number_format))


def mixed(load: FloatArray, share: float) -> FloatArray:
    """The most popular share of a layer's experts in bf16, the others in int4."""
    popular = largest(load + 1.0, int(share * load.shape[1]))
    return np.where(popular, bits_of(Format.BF16), bits_of(Format.INT4))


WIDTHS: dict[str, Callable[[FloatArray, float], FloatArray]] = {
    **{number_format.value: _all(number_format) for number_format in Format},
    "mixed": mixed,
}
"""(layers, experts) tokens seen, and the share that stays wide, to bits of a weight of each expert."""

POLICIES = tuple(WIDTHS)


def compare(engine: Roofline, title: str, steps: Steps, num_ffn: int, share: float = 0.25) -> Comparison:
    """Run all policies on every layer of the second half of the steps."""
    require(0 <= share <= 1, f"must be in 0..1, not {share:g}", key="wide-share")
    expert = steps.expert
    learned, judged = (part[:, :, :num_ffn] for part in halves(steps.counts))
    load = learned.sum(axis=1).astype(np.float64)
    params = expert.weight_bytes / BYTES

    def seconds(bits: FloatArray) -> float:
        traffic = expert.traffic(judged) + params * (bits[:, None] / BITS - BYTES)
        times = engine.seconds(traffic, expert.flops(judged)) + engine.expert_s
        return float(np.where(judged > 0, times, 0.0).sum())

    held = {name: policy(load, share) for name, policy in WIDTHS.items()}
    bound = seconds(np.full(load.shape, narrowest()))
    results = {
        name: Result(seconds(bits), bound, {"held_GB": params * bits.sum() / BITS / 1e9})
        for name, bits in held.items()
    }
    return Comparison("formats", title, BASELINE, results, BOUND)
