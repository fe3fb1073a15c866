"""Mixes of tensor, expert and data parallelism of MoE layers over devices.

``devices = data x expert x tensor``, tensor innermost: an expert is cut over ``tensor`` neighbours, the
experts are dealt over ``expert`` such groups in order of their numbers, and all of it is there ``data``
times, each time for its own tokens. A token goes to the group of each of its experts, to the device of its
own place there; the group's devices give all that they got to each other, compute their cuts, and results go
back the same way. Links as in :mod:`sim.system.exchange`; nothing overlaps. Not modelled: what becomes
cheaper or dearer outside of the experts, and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import numpy as np

from sim.system.comparison import Comparison, Result
from sim.system.costs import FloatArray
from sim.system.exchange import Cluster, Exchange
from spec.errors import InputError

BASELINE = "expert"
ADAPTIVE = "adaptive"
GIVEN = "given"
BOUND = "the work of all experts, each in one piece, even over the devices; tokens move for nothing"


@dataclass(frozen=True)
class Mix:
    """How many devices an expert is cut over, groups that share the experts, times that all is there."""

    tensor: int
    expert: int
    data: int


def expert(cluster: Cluster, experts: int) -> Mix:
    """Every device has whole experts of its own (GShard, FastMoE)."""
    return _mix(cluster, experts, 1, cluster.devices)


def tensor(cluster: Cluster, experts: int) -> Mix:
    """Every expert is cut over all devices (Megatron-LM's tensor parallelism)."""
    return Mix(cluster.devices, 1, 1)


def data(cluster: Cluster, experts: int) -> Mix:
    """Every device has all experts and computes its own tokens."""
    return Mix(1, 1, cluster.devices)


def expert_tensor(cluster: Cluster, experts: int) -> Mix:
    """Experts cut inside a node, dealt over nodes; in a single node cut in two (TensorRT-LLM's hybrid)."""
    cut = cluster.per_node if cluster.nodes > 1 else gcd(2, cluster.devices)
    return _mix(cluster, experts, cut, cluster.devices // cut)


def expert_data(cluster: Cluster, experts: int) -> Mix:
    """Experts dealt inside a node, and again in every other; in a single node twice (DeepSpeed-MoE)."""
    groups = cluster.per_node if cluster.nodes > 1 else cluster.devices // gcd(2, cluster.devices)
    return _mix(cluster, experts, 1, groups)


def expert_tensor_data(cluster: Cluster, experts: int) -> Mix:
    """Experts cut in two and dealt over the rest of a node, and again in every other (Megatron-LM)."""
    inside = cluster.per_node if cluster.nodes > 1 else cluster.devices // gcd(2, cluster.devices)
    cut = gcd(2, inside)
    return _mix(cluster, experts, cut, inside // cut)


MIXES: dict[str, Callable[[Cluster, int], Mix]] = {
    "expert": expert,
    "tensor": tensor,
    "data": data,
    "expert-tensor": expert_tensor,
    "expert-data": expert_data,
    "expert-tensor-data": expert_tensor_data,
}
"""Cluster and number of experts to a mix."""

POLICIES = (*MIXES, ADAPTIVE)
"""``adaptive``: each layer with the best mix for its tokens, that may change for nothing (Tutel)."""


def _mix(cluster: Cluster, experts: int, cut: int, groups: int) -> Mix:
    """Return a mix with so many groups at most: a number that divides the experts; the rest is copies."""
    groups = gcd(groups, experts)
    return Mix(cut, groups, cluster.devices // (cut * groups))


def all_mixes(cluster: Cluster, experts: int) -> list[Mix]:
    """Return every mix whose groups divide the experts."""
    devices = cluster.devices
    cuts = [cut for cut in range(1, devices + 1) if devices % cut == 0]
    groups = [number for number in cuts if experts % number == 0]
    return [
        Mix(cut, number, devices // (cut * number))
        for cut in cuts
        for number in groups
        if devices % (cut * number) == 0
    ]


def layer_seconds(exchange: Exchange, mix: Mix) -> tuple[FloatArray, FloatArray]:
    """Return (layers,) seconds of the exchange, there and back, and (layers, devices) of the computing."""
    cluster, layers = exchange.cluster, len(exchange.ids)
    replica = mix.expert * mix.tensor
    source = exchange.source[:, None]
    real = exchange.ids < exchange.num_ffn
    chosen = np.where(real, exchange.ids, 0)
    group = chosen * mix.expert // exchange.num_ffn
    target = source // replica * replica + group * mix.tensor + source % mix.tensor
    there = exchange.matrix(source, target, real)
    transfer = cluster.transfer(there, exchange.token_bytes)
    if mix.tensor > 1:
        device = np.arange(cluster.devices)
        neighbours = device[:, None] // mix.tensor == device // mix.tensor
        got = there.sum(axis=1)
        transfer = transfer + cluster.transfer(np.where(neighbours, got[:, :, None], 0), exchange.token_bytes)
    # (layers, copies, experts) tokens, each copy's own.
    layer = np.arange(layers)[:, None, None]
    flat = ((layer * mix.data + source // replica) * exchange.num_ffn + chosen)[real]
    counts = np.bincount(flat, minlength=layers * mix.data * exchange.num_ffn)
    times = exchange.engine.experts(counts, exchange.steps.expert.cut(mix.tensor))
    of_groups = times.reshape(layers, mix.data * mix.expert, -1).sum(axis=2)
    return 2 * transfer, np.repeat(of_groups, mix.tensor, axis=1)


def given_mix(cluster: Cluster, experts: int, cut: int, groups: int) -> Mix:
    """Return the mix of so many cuts and groups; :class:`InputError` unless they divide what they must."""
    left = cluster.devices // max(cut, 1)
    for key, number, whole, name in (
        ("cut", cut, cluster.devices, f"devices={cluster.devices}"),
        ("groups", groups, left, f"devices / cut = {left}"),
        ("groups", groups, experts, f"the {experts} experts"),
    ):
        if number < 1 or whole % number:
            raise InputError(f"must divide {name}, not {number}", key=key)
    return Mix(cut, groups, cluster.devices // (cut * groups))


def compare(
    exchange: Exchange, title: str, *, capacity_bytes: float | None = None, given: Mix | None = None
) -> Comparison:
    """Run all mixes, and ``given``; ``adaptive`` chooses from those that fit a device's memory."""
    cluster, num_ffn = exchange.cluster, exchange.num_ffn
    weights = float(exchange.steps.expert.weight_bytes * num_ffn * exchange.steps.ids.shape[0])
    even = float(exchange.engine.experts(exchange.counts, exchange.steps.expert).sum() / cluster.devices)
    ran: dict[Mix, tuple[FloatArray, FloatArray]] = {}

    def run(mix: Mix) -> tuple[FloatArray, FloatArray]:
        if mix not in ran:
            ran[mix] = layer_seconds(exchange, mix)
        return ran[mix]

    def held(mix: Mix) -> float:
        return weights / (mix.tensor * mix.expert)

    def fits(mix: Mix) -> bool:
        return capacity_bytes is None or held(mix) <= capacity_bytes

    def result(mixes: list[Mix], best: list[int]) -> Result:
        """Return the result of a choice for each layer."""
        layer = np.arange(len(exchange.ids))
        sent, computed = (np.stack([run(mix)[part] for mix in mixes])[best, layer] for part in (0, 1))
        busy = computed.mean(axis=1)
        imbalance = (computed.max(axis=1) / np.maximum(busy, 1e-300))[busy > 0].mean()
        seconds = float((sent + computed.max(axis=1)).sum())
        used = [mixes[number] for number in best]
        measures = {
            "tensor": float(np.mean([mix.tensor for mix in used])),
            "expert": float(np.mean([mix.expert for mix in used])),
            "data": float(np.mean([mix.data for mix in used])),
            "held_GB": max(map(held, used)) / 1e9,
            "fits": float(all(map(fits, used))),
            "imbalance": float(imbalance),
            "exchange_share": float(sent.sum() / seconds),
        }
        return Result(seconds, even, measures)

    every = len(exchange.ids)
    mixes = {name: policy(cluster, num_ffn) for name, policy in MIXES.items()}
    if given is not None:
        mixes[GIVEN] = given
    results = {name: result([mix], [0] * every) for name, mix in mixes.items()}
    choice = [mix for mix in all_mixes(cluster, num_ffn) if fits(mix)]
    if not choice:
        least = weights / cluster.devices
        raise InputError(
            f"must hold a device's part of the experts, {least / 1e9:,.1f} GB at least, not"
            f" {(capacity_bytes or 0.0) / 1e9:,.1f} GB",
            key="engine.capacity_bytes",
        )
    times = np.stack([run(mix)[0] + run(mix)[1].max(axis=1) for mix in choice])
    results[ADAPTIVE] = result(choice, times.argmin(axis=0).tolist())
    return Comparison("parallel", title, BASELINE, results, BOUND)
