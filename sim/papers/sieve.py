"""Sieve (arXiv 2605.11277): its choice by true times against PIMoE's by rooflines, on one platform.

A decode step: attention and its linears on the GPUs, cut over them, keys and values on the faster engine;
experts dealt over GPUs; tokens exchanged with the other GPUs, beside the experts' time in Sieve, before it
in PIMoE's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.routed import counts_of, expert_of, system_values
from sim.system.costs import BYTES, Costs, FloatArray, IntArray, Roofline
from sim.system.policies import split
from sim.system.schedule import schedule
from sim.system.step import system_costs
from spec.paper import PaperSpec, Workload
from spec.system import SystemSpec

BATCHES, ZIPF, LAYERS = (16, 64, 256), (0.0, 0.5, 1.0), 4
MODELS, NEXT_BATCH = ("qwen3_5", "gpt_oss", "qwen3"), 64
"""Models of which speeds are published; the batch of Qwen3-Next's tokens per expert."""
EFFICIENCIES = tuple(f"{name}_efficiency" for name in ("bandwidth", "flops"))


def layer_seconds(
    system: SystemSpec, own: Mapping[str, float], work: Workload, counts: IntArray, exchange_s: float
) -> dict[str, float]:
    """Return the mean time of an MoE layer under either policy."""
    layers, devices = len(counts), work.devices
    # Expert e lies on GPU e mod devices; each GPU divides its own experts.
    dealt = counts.reshape(layers, -1, devices).swapaxes(1, 2).reshape(layers * devices, -1)
    expert = expert_of(work)
    true = system_costs(system, dealt, expert, own)
    roofline = dict(own)
    for engine in ("host", "near"):
        roofline |= {f"{engine}.{name}": 1.0 for name in EFFICIENCIES}
    believed = system_costs(system, dealt, expert, roofline)

    def longest(policy: str, known: Costs) -> FloatArray:
        run = schedule(true, split(policy, known))
        work_s = np.maximum(run.busy_s["host"][:, 0], run.busy_s["near"][:, 0])
        slowest: FloatArray = work_s.reshape(layers, devices).max(axis=1)
        return slowest

    return {
        "pimoe": float((exchange_s + longest("busiest-channel", believed)).mean()),
        "sieve": float(np.maximum(exchange_s, longest("argmin", true)).mean()),
    }


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    system, own = paper.systems["sieve"], system_values(values, "sieve")
    host, near = Roofline.of(own, "host"), Roofline.of(own, "near")
    context = values["inputs.context"]
    result: dict[str, float] = {}
    by_batch: dict[str, FloatArray] = {}
    for name in MODELS:
        work = paper.workloads[name]
        d, devices = work.d_model, work.devices
        params = d * d * (2 + 2 * work.kv_share)
        speeds = np.empty((len(BATCHES), len(ZIPF)))
        for row, batch in enumerate(BATCHES):
            cache = (BYTES * 2 * work.kv_share * d * context * batch, 4.0 * d * context * batch)
            attention = host.seconds(BYTES * params / devices, 2 * params * batch / devices)
            attention += min(engine.seconds(*(part / devices for part in cache)) for engine in (host, near))
            outside = work.kv_layers * float(attention)
            exchange = 0.0
            if devices > 1:
                share = values["inputs.exchange_share"] * (1 - 1 / devices)
                crossing = batch / devices * work.top_k * d * BYTES * share
                link = own["link.bytes_per_s"] * own["link.efficiency"]
                exchange = 2 * (own["link.latency_s"] + crossing / link)
            for column, zipf in enumerate(ZIPF):
                counts = counts_of(work, batch, zipf, LAYERS)[0]
                times = layer_seconds(system, own, work, counts, exchange)
                pimoe, sieve = (outside + work.layers * times[key] for key in ("pimoe", "sieve"))
                speeds[row, column] = pimoe / sieve
        result[name] = float(speeds.mean())
        by_batch[name] = speeds.mean(axis=1)
    loads = np.concatenate(
        [counts_of(paper.workloads["qwen3_next"], NEXT_BATCH, zipf, LAYERS)[0].ravel() for zipf in ZIPF]
    )
    active = loads[loads > 0]
    return result | {
        "qwen3_5_b256": float(by_batch["qwen3_5"][BATCHES.index(256)]),
        "gpt_oss_least": float(by_batch["gpt_oss"][1:].min()),
        "gpt_oss_most": float(by_batch["gpt_oss"][1:].max()),
        "one_token": float((active == 1).mean()),
        "four_tokens": float((active <= 4).mean()),
    }
