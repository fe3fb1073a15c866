"""Duplex (arXiv 2409.01141): throughput and energy of a stage of continuous batching.

A stage serves B requests. Each is at a uniformly drawn place of its output: at its first token it prefills
``length`` tokens, else it decodes with ``length`` and the tokens so far as context; throughput is B over the
mean time of a stage. Outputs have as many tokens as prompts, but where requests come one by one (``SERVED``):
what saturates a machine is the throughput of full batches over an output's tokens.

Per layer: QKV and O on the processor, cut over a node's devices; attention of decoding requests where the
keys and values are read fastest (in memory if there are units), of prefills on the processor; an all-
reduce; experts by policy; an exchange. Experts of tokens are drawn uniformly. What ``plain`` and ``pe`` do
is expert-parallel over devices, ``pe_et`` cuts each expert over a node's devices.

Ignored: norms, gates, vocabulary, a fixed time of an expert, idle power, energy of links.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb
from zlib import crc32

import numpy as np

from sim.system.costs import BYTES, Costs, Expert, FloatArray, IntArray, Roofline
from sim.system.policies import split
from spec.paper import PaperSpec, Workload

BITS = 8
MIB = 1 << 20
LENGTHS = {"mixtral": (256, 1024, 4096), "glam": (512, 1024, 2048), "grok1": (256, 1024, 4096)}
BATCHES = (32, 64, 128)
SERVED = (128, 4096, 512)
"""Largest batch, tokens of a prompt and of an output where requests come one by one (Mixtral, figure 13)."""
LATENCY_BATCH = 64
"""Batch at which latencies of GLaM are published (figure 12)."""
OPS_PER_BYTE = (1, 2, 4, 8, 16, 32)
"""Of figure 8."""
RARE = 1e-4
"""Numbers of prefills in one stage that are less likely than this are left out."""
SAMPLES = 64
"""Stages that are drawn for each number of prefills."""


@dataclass(frozen=True)
class Stages:
    """Stages of one point.

    Attributes
    ----------
    chance : (stages,), of all to 1.
    prefills : (stages,), requests that prefill.
    counts : (stages, experts), tokens of each expert in one MoE layer.
    """

    batch: int
    length: int
    output: int
    chance: FloatArray
    prefills: IntArray
    counts: IntArray

    @property
    def tokens(self) -> FloatArray:
        """Tokens of each stage."""
        tokens: FloatArray = self.batch + self.prefills * np.float64(self.length - 1)
        return tokens

    def mean(self, values: FloatArray) -> float:
        """Return the mean over stages."""
        return float((self.chance * values).sum())


@lru_cache(maxsize=64)
def draw_stages(
    name: str, experts: int, top_k: int, batch: int, length: int, output: int | None = None
) -> Stages:
    """Draw a point's stages; always the same ones. ``output``: tokens of one, by default ``length``."""
    rng = np.random.default_rng([crc32(name.encode()), batch, length])
    output = length if output is None else output
    share = 1 / output
    odds = [comb(batch, p) * share**p * (1 - share) ** (batch - p) for p in range(batch + 1)]
    chance, prefills, counts = [], [], []
    for p, odd in enumerate(odds):
        if odd < RARE:
            continue
        tokens = batch - p + p * length
        # Distinct experts: keys in random order, the first k.
        chosen = _distinct(rng, SAMPLES * tokens, experts, top_k).reshape(SAMPLES, -1)
        flat = (chosen + experts * np.arange(SAMPLES)[:, None]).ravel()
        counts.append(np.bincount(flat, minlength=SAMPLES * experts).reshape(SAMPLES, experts))
        chance += [odd / SAMPLES] * SAMPLES
        prefills += [p] * SAMPLES
    total = np.array(chance)
    return Stages(batch, length, output, total / total.sum(), np.array(prefills), np.concatenate(counts))


def _distinct(rng: np.random.Generator, tokens: int, experts: int, top_k: int) -> IntArray:
    """Return (tokens, k) distinct experts, uniform: each of those that are left with equal chance."""
    chosen = np.empty((tokens, top_k), np.int64)
    for slot in range(top_k):
        place = rng.integers(experts - slot, size=tokens)
        for taken in np.sort(chosen[:, :slot], axis=1).T:
            place += place >= taken
        chosen[:, slot] = place
    return chosen


@dataclass(frozen=True)
class Result:
    """Mean time and energy of a stage, and what latencies and uses of operations are made of.

    Attributes
    ----------
    each_s : (stages,) time of each.
    decode_s : mean time of stages without a prefill.
    moe_flops, attention_flops : operations per second of a device in experts and in attention of those.
    """

    seconds: float
    joules: float
    each_s: FloatArray
    decode_s: float
    moe_flops: float
    attention_flops: float


def all_reduce(values: Mapping[str, float], num_bytes: FloatArray, devices: int) -> FloatArray:
    """Return the time of an all-reduce in a node: of a ring, or as measured, or between two of them."""
    bandwidth = values["inputs.nvlink_bytes_per_s"]

    def ring(hop: str) -> FloatArray:
        steps: FloatArray = values[f"inputs.{hop}_hop_s"] + num_bytes / devices / bandwidth
        return 2 * (devices - 1) * steps

    def measured(kernel: str) -> FloatArray:
        at = [values[f"inputs.{kernel}_{devices}_{size}_s"] for size in ("256k", "512k", "1m")]
        within = np.interp(num_bytes, [MIB / 4, MIB / 2, MIB], at)
        # What was not measured: at least the first time below, and the link's bandwidth beyond.
        return within + np.maximum(num_bytes - MIB, 0) * 2 * (devices - 1) / devices / bandwidth

    which = values["inputs.all_reduce"]
    below = min(int(which), 2)
    kinds = (ring("short"), measured("custom"), measured("vllm"), ring("long"))
    return kinds[below] + (which - below) * (kinds[below + 1] - kinds[below])


@dataclass(frozen=True)
class Machine:
    """What computes: a processor, units in memory or none, and how experts are divided.

    ``mode``: ``gpu``, ``plain``, ``pe`` or ``pe_et``.
    """

    host: Roofline
    near: Roofline | None
    host_j_per_bit: float
    near_j_per_bit: float
    mode: str
    spaces: int = 0
    per_expert: bool = True


def run_point(values: Mapping[str, float], work: Workload, stages: Stages, machine: Machine) -> Result:
    """Return the mean time and energy of a stage on all devices."""
    d, devices, nodes = work.d_model, work.devices, work.nodes
    host, near = machine.host, machine.near
    tokens = stages.tokens / nodes
    decoding = (stages.batch - stages.prefills) / nodes
    context = decoding * (stages.length + 0.5 * stages.output)  # on average half of the output is there

    # A node's layer outside the experts; each device has its part.
    attention_params = d * d * (2 + 2 * work.kv_share)
    fc_bytes, fc_flops = BYTES * (attention_params + 4 * d * tokens), 2 * attention_params * tokens
    kv_bytes, kv_flops = BYTES * 2 * work.kv_share * d * context, 4 * d * context
    prefills = np.ceil(stages.prefills / nodes)
    fill_flops = prefills * 4.0 * d * stages.length**2
    fill_bytes = prefills * 4.0 * BYTES * d * stages.length
    fc_s = host.seconds(fc_bytes / devices, fc_flops / devices)
    fill_s = host.seconds(fill_bytes / devices, fill_flops / devices)
    decode_s = (near or host).seconds(kv_bytes / devices, kv_flops / devices)
    overlapped = machine.mode in ("pe", "pe_et")
    attention_s = np.maximum(fill_s, decode_s) if overlapped else fill_s + decode_s
    reduce_s = all_reduce(values, tokens * d * BYTES, devices)
    seconds = work.kv_layers * (fc_s + attention_s + reduce_s)
    host_bytes = work.kv_layers * (fc_bytes + fill_bytes)
    near_bytes = work.kv_layers * kv_bytes
    flops = work.kv_layers * (fc_flops + kv_flops + fill_flops)
    if work.dense_layers:
        params = work.expert_params
        bytes_, flops_ = BYTES * (params + 2 * d * tokens), 2.0 * params * tokens
        seconds = seconds + work.dense_layers * (host.seconds(bytes_ / devices, flops_ / devices) + reduce_s)
        host_bytes, flops = host_bytes + work.dense_layers * bytes_, flops + work.dense_layers * flops_

    expert_s, on_host, on_near, expert_flops = _experts(work, stages, machine)
    # Dispatch, combine and gather are half an all-reduce each; experts that are cut need one of their sums.
    exchange_s = reduce_s * (1.0 if machine.mode == "pe_et" else 1.5)
    if nodes > 1:
        crossing = tokens * work.top_k * (1 - 1 / nodes) * d * BYTES
        exchange_s = exchange_s + 2 * (
            values["inputs.node_link_latency_s"] + crossing / values["inputs.node_link_bytes_per_s"]
        )
    seconds = seconds + work.layers * (expert_s + exchange_s)
    # Experts' bytes are of all nodes already.
    host_bytes = nodes * host_bytes + work.layers * on_host
    near_bytes = nodes * near_bytes + work.layers * on_near
    flops = nodes * flops + work.layers * expert_flops
    read = values["inputs.activate_j_per_bit"]
    joules = BITS * (
        host_bytes * (machine.host_j_per_bit + read) + near_bytes * (machine.near_j_per_bit + read)
    )
    joules = joules + flops * values["inputs.flop_j"]
    only = np.where(stages.prefills == 0, stages.chance, 0.0)
    only = only / only.sum()
    total = nodes * devices
    return Result(
        stages.mean(seconds),
        stages.mean(joules),
        seconds,
        float((only * seconds).sum()),
        float((only * expert_flops / (total * expert_s)).sum()),
        float((only * kv_flops / (devices * decode_s)).sum()),
    )


def quantile(values: FloatArray, weights: FloatArray, share: float) -> float:
    """Return the least value that at least a share of the weights does not exceed."""
    order = np.argsort(values, kind="stable")
    sums = weights[order].cumsum()
    return float(values[order][np.searchsorted(sums, share * sums[-1])])


def energy_delay(values: Mapping[str, float], kind: str, ops_per_byte: int) -> float:
    """Return energy times delay of a byte of weights, of which so many operations are done.

    Delay in times of a byte at HBM3's own bandwidth. ``kind``: ``bank`` (16 times that bandwidth, one
    operation a byte), ``bank_group`` or ``logic`` (4 times, eight operations a byte); figure 8.
    """
    bandwidth, most = (16, 1) if kind == "bank" else (4, 8)
    read = values[f"inputs.{kind}_read_j_per_bit"] + values["inputs.activate_j_per_bit"]
    joules = BITS * read + ops_per_byte * values["inputs.flop_j"]
    return joules * max(1.0, ops_per_byte / most) / bandwidth


def _experts(
    work: Workload, stages: Stages, machine: Machine
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the time, the bytes on either engine and the operations of one MoE layer, each (stages,)."""
    counts, experts = stages.counts, work.experts
    if machine.mode == "pe_et":
        groups, cut = work.nodes, work.devices
    else:
        groups = min(experts, work.nodes * work.devices)
        cut = work.nodes * work.devices // groups
    part = Expert(work.expert_params / cut, work.d_model, BYTES * work.expert_params / cut)
    grouped = counts.reshape(-1, experts // groups)
    host_s = machine.host.experts(grouped, part)
    if machine.near is None:
        on_host = grouped > 0
        seconds = host_s.sum(axis=1)
    else:
        near_s = machine.near.experts(grouped, part)
        if machine.mode == "plain":
            filling = np.repeat(stages.prefills > 0, groups)[:, None] & (grouped > 0)
            on_host = host_s < near_s if machine.per_expert else filling
            seconds = np.where(on_host, host_s, near_s).sum(axis=1)
        else:
            zero = np.zeros(grouped.shape)
            costs = Costs(
                grouped,
                host_s,
                near_s,
                zero,
                zero,
                np.zeros(grouped.shape[1], np.int64),
                spaces=machine.spaces,
            )
            on_host = split("look-up", costs)
            seconds = np.maximum(
                np.where(on_host, host_s, 0).sum(axis=1), np.where(on_host, 0, near_s).sum(axis=1)
            )
    traffic = np.where(grouped > 0, part.traffic(grouped), 0.0) * cut
    shape = (len(counts), groups, -1)

    def total(array: FloatArray) -> FloatArray:
        sums: FloatArray = array.reshape(shape).sum(axis=(1, 2))
        return sums

    return (
        seconds.reshape(len(counts), groups).max(axis=1),
        total(np.where(on_host, traffic, 0.0)),
        total(np.where(on_host, 0.0, traffic)),
        2.0 * work.expert_params * counts.sum(axis=1),
    )


def machines(values: Mapping[str, float]) -> dict[str, Machine]:
    """Return the machines that the paper compares."""
    host = Roofline.of(values, "systems.duplex.host")
    gpu_j = values["inputs.gpu_read_j_per_bit"]
    logic_j = values["inputs.logic_read_j_per_bit"]
    gpu = Machine(host, None, gpu_j, gpu_j, "gpu")
    spaces = int(values["systems.duplex.spaces"]) if values["inputs.space_rule"] else 0
    duplex = replace(
        gpu,
        near=Roofline.of(values, "systems.duplex.near"),
        near_j_per_bit=logic_j,
        spaces=spaces,
        per_expert=bool(values["inputs.faster_per_expert"]),
    )
    bank = replace(duplex, near=Roofline.of(values, "systems.bank_pim.near"), mode="plain")
    return {
        "gpu": gpu,
        "bank_pim": bank,
        **{mode: replace(duplex, mode=mode) for mode in ("plain", "pe", "pe_et")},
    }


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim."""
    built = machines(values)
    points: dict[tuple[str, int, int], dict[str, Result]] = {}
    for name, work in paper.workloads.items():
        for length in LENGTHS[name]:
            for batch in BATCHES:
                stages = draw_stages(name, work.experts, work.top_k, batch, length)
                points[name, batch, length] = {
                    kind: run_point(values, work, stages, machine) for kind, machine in built.items()
                }

    def speed(kind: str, base: str, keys: list[tuple[str, int, int]]) -> FloatArray:
        return np.array([points[key][base].seconds / points[key][kind].seconds for key in keys])

    def energy(keys: list[tuple[str, int, int]]) -> FloatArray:
        return np.array([points[key]["pe_et"].joules / points[key]["gpu"].joules for key in keys])

    every = list(points)
    mixtral = paper.workloads["mixtral"]
    served = draw_stages("mixtral", mixtral.experts, mixtral.top_k, *SERVED)

    def saturated(kind: str) -> float:
        """Return the requests per second at which a full batch ends as many as come."""
        stage = run_point(values, mixtral, served, built[kind])
        return served.batch / (served.output * stage.seconds)

    latencies = _latencies(values, paper.workloads["glam"], points, built["gpu"])
    peak = values["systems.duplex.host.peak_flops"]
    decoding = {name: [points[key] for key in every if key[0] == name] for name in paper.workloads}
    of_model = {name: [key for key in every if key[0] == name] for name in paper.workloads}
    bank = [key for key in of_model["mixtral"] if key[1] in (32, 64)]
    return {
        "energy_ratio_mean": float(energy(every).mean()),
        **{f"energy_ratio_{name}": float(energy(keys).min()) for name, keys in of_model.items()},
        "pe_over_duplex_mean": float(speed("pe", "plain", every).mean()),
        "pe_et_over_duplex_max": float(speed("pe_et", "plain", every).max()),
        "duplex_over_gpu_max": float(speed("plain", "gpu", every).max()),
        "pe_et_over_gpu_mean": float(speed("pe_et", "gpu", every).mean()),
        "pe_et_over_gpu_max": float(speed("pe_et", "gpu", every).max()),
        "over_bank_pim_mean": float(speed("pe_et", "bank_pim", bank).mean()),
        "over_bank_pim_max": float(speed("pe_et", "bank_pim", bank).max()),
        "bank_pim_over_gpu_b32_4096": float(speed("bank_pim", "gpu", [("mixtral", 32, 4096)])[0]),
        "bank_pim_over_gpu_b64_256": float(speed("bank_pim", "gpu", [("mixtral", 64, 256)])[0]),
        "duplex_over_gpu_b64_256": float(speed("pe_et", "gpu", [("mixtral", 64, 256)])[0]),
        "saturation_gpu": saturated("gpu"),
        "saturation_duplex": saturated("pe_et"),
        "saturation_ratio": saturated("pe_et") / saturated("gpu"),
        **latencies,
        "gpu_use_moe": max(points[key]["gpu"].moe_flops for key in every) / peak,
        "gpu_use_attention": max(points[key]["gpu"].attention_flops for key in every) / peak,
        **{
            f"rerun_{kind}": float(
                np.mean([point["gpu"].decode_s / point[kind].decode_s for point in decoding["mixtral"]])
            )
            for kind in ("plain", "pe_et")
        },
        **{
            f"edap_{kind}_{ops}": energy_delay(values, kind, ops) / energy_delay(values, "bank_group", ops)
            for kind in ("bank", "logic")
            for ops in OPS_PER_BYTE
        },
    }


def _latencies(
    values: Mapping[str, float],
    work: Workload,
    points: Mapping[tuple[str, int, int], Mapping[str, Result]],
    gpu: Machine,
) -> dict[str, float]:
    """Return the latencies of GLaM at batch 64 over those of the GPU, and over those of twice its devices.

    A token that is decoded takes its stage's time, the first one that of its prefill. There is no queue.
    """
    median, end_to_end, twice, late, first = [], [], [], [], []
    for length in LENGTHS["glam"]:
        stages = draw_stages("glam", work.experts, work.top_k, LATENCY_BATCH, length)
        decoded = stages.chance * (stages.batch - stages.prefills)
        started = stages.chance * stages.prefills
        duplex, one = (points["glam", LATENCY_BATCH, length][kind] for kind in ("pe_et", "gpu"))
        two = run_point(values, replace(work, nodes=2 * work.nodes), stages, gpu)

        def over(base: Result, weights: FloatArray, share: float, mine: Result = duplex) -> float:
            return quantile(mine.each_s, weights, share) / quantile(base.each_s, weights, share)

        median.append(over(one, decoded, 0.5))
        end_to_end.append(duplex.seconds / one.seconds)
        twice.append(duplex.seconds / two.seconds)
        late.append(over(two, decoded, 0.99))
        first.append(over(two, started, 0.99))
    return {
        "tbt_median": float(np.mean(median)),
        "end_to_end": float(np.mean(end_to_end)),
        "end_to_end_2gpu": float(np.mean(twice)),
        "tbt_p99_2gpu": late[0],
        "t2ft_p99_2gpu": first[0],
    }
