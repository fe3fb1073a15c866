"""Tokens between devices: all-to-all over links with latency and bandwidth, and what hides it.

Devices lie in nodes, next to each other; a device has a link to its node and one to the others. The step's
tokens lie evenly over the devices, and so do experts, in order of their numbers. A transfer takes
a link's latency and the bytes of its busiest device, in or out; both links work at a time. Results go back
the way that tokens came. Not modelled: switches that many devices share, and what a kernel takes to pack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sim.system.comparison import Comparison, Result, Steps
from sim.system.costs import BYTES, BoolArray, ExpertTimes, FloatArray, IntArray
from spec.errors import InputError, require_range
from spec.system import LinkSpec

BASELINE = "direct"
BOUND = (
    "a layer's exchange without repeated tokens and latency, or its slowest device;"
    " where experts are shadowed, all work even over the devices"
)
CHUNKS = (1, 2, 4, 8)
TILES = 64
SHADOWED = (0, 1, 2, 4, 8)
MOST_PAIRS = 1 << 26


@dataclass(frozen=True)
class Link:
    """Bytes per second as reached, one direction, and seconds before the first."""

    bytes_per_s: float
    latency_s: float

    @staticmethod
    def of(spec: LinkSpec) -> Link:
        """Return a preset's link."""
        return Link(spec.bytes_per_s.value * spec.efficiency.value, spec.latency_s.value)


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes, and the links inside a node and between nodes."""

    devices: int
    nodes: int
    inside: Link
    between: Link

    def __post_init__(self) -> None:
        require_range("devices", self.devices, 1, 1024)
        require_range("nodes", self.nodes, 1, self.devices)
        if self.devices % self.nodes:
            raise InputError(f"must divide devices={self.devices}, not {self.nodes}", key="nodes")

    @property
    def per_node(self) -> int:
        """Devices of a node."""
        return self.devices // self.nodes

    @property
    def same_node(self) -> BoolArray:
        """(devices, devices), which pairs are in one node."""
        node = np.arange(self.devices) // self.per_node
        same: BoolArray = node[:, None] == node
        return same

    def transfer(
        self, tokens: FloatArray | IntArray, token_bytes: float, *, latency: bool = True
    ) -> FloatArray:
        """Return (layers,) seconds until (layers, devices, devices) tokens have come from row to column."""
        return np.maximum(*self.transfers(tokens, token_bytes, latency=latency))

    def transfers(
        self, tokens: FloatArray | IntArray, token_bytes: float, *, latency: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Return the times of the links inside nodes and of those between; what stays on a device is free."""
        same, there = self.same_node, ~np.eye(self.devices, dtype=bool)
        inside = self._link(self.inside, np.where(same & there, tokens, 0), token_bytes, latency)
        return inside, self._link(self.between, np.where(same, 0, tokens), token_bytes, latency)

    @staticmethod
    def _link(link: Link, tokens: FloatArray | IntArray, token_bytes: float, latency: bool) -> FloatArray:
        busiest = np.maximum(tokens.sum(axis=2).max(axis=1), tokens.sum(axis=1).max(axis=1))
        start = np.where(busiest > 0, link.latency_s, 0.0) if latency else 0.0
        seconds: FloatArray = busiest * token_bytes / link.bytes_per_s + start
        return seconds


@dataclass(frozen=True)
class Exchange:
    """Layers whose tokens are exchanged; ``(layers, ...)`` are all layers of all steps.

    Attributes
    ----------
    ids : (layers, tokens, k) experts; from ``num_ffn`` on they compute nothing and go nowhere.
    even : whether devices must divide the experts, which then lie on them evenly.
    """

    cluster: Cluster
    engine: ExpertTimes
    steps: Steps
    num_ffn: int
    even: bool = True

    def __post_init__(self) -> None:
        devices = self.cluster.devices
        if self.even and self.num_ffn % devices:
            raise InputError(f"must divide the {self.num_ffn} experts, not {devices}", key="devices")
        pairs = self.ids.shape[0] * devices * max(devices, self.num_ffn)
        if pairs > MOST_PAIRS:
            raise InputError(
                f"must leave at most {MOST_PAIRS} pairs of all layers and steps, not {pairs}", key="devices"
            )

    @cached_property
    def ids(self) -> IntArray:
        """(layers, tokens, k)."""
        return self.steps.ids.reshape(-1, *self.steps.ids.shape[2:])

    @cached_property
    def counts(self) -> IntArray:
        """(layers, experts) tokens."""
        return self.steps.counts.reshape(-1, self.steps.counts.shape[2])[:, : self.num_ffn]

    @property
    def token_bytes(self) -> float:
        """Of a token, either way."""
        return BYTES * self.steps.expert.d_model

    @cached_property
    def source(self) -> IntArray:
        """(tokens,), the device of each."""
        tokens = self.ids.shape[1]
        source: IntArray = np.arange(tokens) * self.cluster.devices // tokens
        return source

    def matrix(self, source: IntArray, target: IntArray, real: BoolArray) -> IntArray:
        """Return (layers, devices, devices) how many (layers, tokens, k) go from where to where."""
        devices = self.cluster.devices
        layer = np.arange(target.shape[0])[:, None, None]
        flat = ((layer * devices + source) * devices + target)[real]
        matrix = np.bincount(flat, minlength=target.shape[0] * devices**2)
        return matrix.reshape(-1, devices, devices)

    def direct(self, shadow: BoolArray | None = None) -> IntArray:
        """Return the tokens of an exchange in which each goes to each of its experts on its own."""
        real = self.ids < self.num_ffn
        if shadow is not None:
            kept = np.pad(~shadow, ((0, 0), (0, self.steps.counts.shape[2] - self.num_ffn)))
            real &= kept[np.arange(len(self.ids))[:, None, None], self.ids]
        target = np.where(real, self.ids, 0) * self.cluster.devices // self.num_ffn
        return self.matrix(self.source[:, None], target, real)

    def once(self, size: int) -> tuple[IntArray, BoolArray]:
        """Return (layers, tokens, k) groups of ``size`` devices that a token goes to, and which are new."""
        groups = self.cluster.devices // size
        none = np.where(self.ids < self.num_ffn, self.ids * groups // self.num_ffn, groups)
        target = np.sort(none, axis=2)
        new = np.ones(target.shape, bool)
        new[..., 1:] = target[..., 1:] != target[..., :-1]
        return target, new & (target < groups)

    def device_s(self, counts: IntArray) -> FloatArray:
        """Return (layers, devices) seconds of (layers, experts) tokens."""
        times = self.engine.experts(counts, self.steps.expert)
        of_device: FloatArray = times.reshape(len(counts), self.cluster.devices, -1).sum(axis=2)
        return of_device

    def copied_bytes(self, experts: IntArray) -> FloatArray:
        """Return the bytes of (layers, n) experts' weights."""
        return np.full(experts.shape, self.steps.expert.weight_bytes)

    def local_s(self, local: IntArray, experts: IntArray) -> FloatArray:
        """Return (layers, devices) seconds of copies of (layers, n) experts.

        ``local``: (layers, devices, n) tokens.
        """
        seconds: FloatArray = self.engine.experts(local, self.steps.expert).sum(axis=2)
        return seconds


def direct(exchange: Exchange, latency: bool = True) -> FloatArray:
    """Return a transfer in which every copy of a token goes straight to its expert (DeepEP, low latency)."""
    return exchange.cluster.transfer(exchange.direct(), exchange.token_bytes, latency=latency)


def once_per_device(exchange: Exchange, latency: bool = True) -> FloatArray:
    """Return a transfer in which a token goes to a device once, whatever experts it has there."""
    target, new = exchange.once(1)
    tokens = exchange.matrix(exchange.source[:, None], target, new)
    return exchange.cluster.transfer(tokens, exchange.token_bytes, latency=latency)


def node_forward(exchange: Exchange, latency: bool = True) -> FloatArray:
    """Return a transfer in which a token goes to a node once and is forwarded in it (DeepEP, throughput).

    To the device of its own place in that node; forwarding begins as tokens arrive.
    """
    cluster = exchange.cluster
    place = (exchange.source % cluster.per_node)[:, None]
    node, new = exchange.once(cluster.per_node)
    across = exchange.matrix(exchange.source[:, None], node * cluster.per_node + place, new)
    device, new = exchange.once(1)
    within = exchange.matrix(device // cluster.per_node * cluster.per_node + place, device, new)
    inside = cluster.transfers(within, exchange.token_bytes, latency=False)[0]
    between = cluster.transfers(across, exchange.token_bytes, latency=False)[1]
    starts = (inside > 0) * cluster.inside.latency_s + (between > 0) * cluster.between.latency_s
    return np.maximum(inside, between) + (starts if latency else 0.0)


WAYS: dict[str, Callable[[Exchange, bool], FloatArray]] = {
    "direct": direct,
    "once-per-device": once_per_device,
    "node-forward": node_forward,
}
"""To (layers,) seconds of one transfer; computing stands between two of them."""


def pipelined(transfer: FloatArray, compute: FloatArray, chunks: int) -> FloatArray:
    """Return (layers,) the time of equal chunks that are sent, computed and sent back.

    A device's link sends all chunks first, then results as they are there.

    Parameters
    ----------
    transfer, compute : (layers,) seconds of a chunk: the way to or back, and the computing.
    """
    computed = np.maximum(transfer + chunks * compute, chunks * transfer + compute)
    return np.maximum(2 * chunks * transfer, computed + transfer)


def chunked(exchange: Exchange, chunks: int) -> FloatArray:
    """Return layers in chunks of tokens (FasterMoE, Tutel): each has a latency and reads the weights."""
    link_s = direct(exchange, False)
    start = direct(exchange, True) - link_s
    # The largest chunk of each expert.
    compute = exchange.device_s(-(-exchange.counts // chunks)).max(axis=1)
    return pipelined(link_s / chunks + start, compute, chunks)


def adaptive(exchange: Exchange) -> FloatArray:
    """Return each layer with the best number of chunks (Tutel)."""
    best: FloatArray = np.min([chunked(exchange, chunks) for chunks in CHUNKS], axis=0)
    return best


def fused(exchange: Exchange) -> FloatArray:
    """Return layers in tiles of one kernel (Flux, Comet): one latency each way, weights read once."""
    link_s = direct(exchange, False)
    start = direct(exchange, True) - link_s
    compute = exchange.device_s(exchange.counts).max(axis=1)
    return pipelined(link_s / TILES, compute / TILES, TILES) + 2 * start


def shadowed(exchange: Exchange) -> FloatArray:
    """Return layers whose most popular experts are sent to all devices, as many as is best (FasterMoE).

    The tokens of these stay where they are; their weights take the slower link once.
    """
    cluster = exchange.cluster
    link = cluster.between if cluster.nodes > 1 else cluster.inside
    popular = np.argsort(-exchange.counts, axis=1, kind="stable")
    rank = np.argsort(popular, axis=1)
    best = np.full(len(exchange.ids), np.inf)
    for number in SHADOWED:
        shadow = rank < number
        transfer = cluster.transfer(exchange.direct(shadow), exchange.token_bytes)
        compute = exchange.device_s(np.where(shadow, 0, exchange.counts))
        if number:
            local = _local(exchange, rank, number)
            compute = compute + exchange.local_s(local, popular[:, :number])
        copied = exchange.copied_bytes(popular[:, :number]).sum(axis=1)
        moved = copied / link.bytes_per_s + (number > 0) * link.latency_s
        best = np.minimum(best, 2 * transfer + compute.max(axis=1) + moved)
    return best


def _local(exchange: Exchange, rank: IntArray, number: int) -> IntArray:
    """Return (layers, devices, number) tokens of the most popular experts on the devices where they are."""
    devices, ids = exchange.cluster.devices, exchange.ids
    layer = np.arange(len(ids))[:, None, None]
    real = ids < exchange.num_ffn
    place = np.where(real, rank[layer, np.where(real, ids, 0)], number)
    taken = place < number
    flat = ((layer * devices + exchange.source[:, None]) * number + place)[taken]
    return np.bincount(flat, minlength=len(ids) * devices * number).reshape(len(ids), devices, number)


def _chunks(number: int) -> Callable[[Exchange], FloatArray]:
    return lambda exchange: chunked(exchange, number)


OVERLAPS: dict[str, Callable[[Exchange], FloatArray]] = {
    **{f"chunked-{number}": _chunks(number) for number in CHUNKS[1:]},
    "adaptive": adaptive,
    "fused": fused,
    "shadowed": shadowed,
}
"""To (layers,) seconds of whole layers, with the direct way."""

BOUNDING = tuple(WAYS.values())
"""What the bound is of: the project's own ways, so that one that joins later cannot lower it."""

POLICIES = (*WAYS, *OVERLAPS)


def compare(exchange: Exchange, title: str) -> Comparison:
    """Run every way with nothing hidden, and everything that hides the direct way."""
    compute = exchange.device_s(exchange.counts).max(axis=1)
    least = np.min([way(exchange, False) for way in BOUNDING], axis=0)
    bound = float(np.maximum(2 * least, compute).sum())
    work = exchange.engine.experts(exchange.counts, exchange.steps.expert).sum()
    even = float(work / exchange.cluster.devices)
    times = {name: 2 * way(exchange, True) + compute for name, way in WAYS.items()}
    times |= {name: overlap(exchange) for name, overlap in OVERLAPS.items()}
    results = {
        name: Result(float(seconds.sum()), even if name == "shadowed" else bound)
        for name, seconds in times.items()
    }
    return Comparison("exchange", title, BASELINE, results, BOUND)
