"""Experts over devices of one kind: who has which, which of them more than once, and how even that is.

A device has as many places as any other. A policy knows the loads of the first half of the steps and is
judged by the second. An expert's tokens are dealt over its copies; a layer takes as long as its slowest
device, by a roofline. What the exchange between devices takes is in :mod:`sim.system.exchange`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from sim.system.comparison import Comparison, Result, Steps, halves
from sim.system.costs import FloatArray, IntArray, Roofline
from spec.errors import InputError, require_range

BASELINE = "round-robin"
TENSOR = "tensor"
BOUND = "the work of all experts, each in one piece, even over the devices"
MOST_DEVICES = 4096


@dataclass(frozen=True)
class Placing:
    """What a placement is made from.

    Attributes
    ----------
    load : (layers, experts) float64, tokens seen of each expert.
    places : of all devices together; each has ``places / devices``, next to each other.
    devices, nodes : a node has ``devices / nodes``, next to each other.
    groups : equal groups of experts, as the gate has them.
    """

    load: FloatArray
    places: int
    devices: int
    nodes: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        experts = self.load.shape[1]
        require_range("devices", self.devices, 1, MOST_DEVICES)
        require_range("nodes", self.nodes, 1, self.devices)
        require_range("places", self.places, experts, 64 * experts)
        for key, whole, name, part in (
            ("nodes", self.devices, "devices", self.nodes),
            ("devices", self.places, "places", self.devices),
        ):
            if whole % part:
                raise InputError(f"must divide {name}={whole}, not {part}", key=key)


def round_robin(placing: Placing) -> IntArray:
    """Expert after expert to device after device; copies of the first ones, where there is room."""
    expert = np.arange(placing.places) % placing.load.shape[1]
    return np.broadcast_to(_dealt(expert, placing.devices), (len(placing.load), placing.places))


def popularity(placing: Placing) -> IntArray:
    """The most popular first, to device after device and back; copies of the first, where there is room."""
    order = np.argsort(-placing.load, axis=1, kind="stable")
    more = order[:, np.arange(placing.places - order.shape[1]) % order.shape[1]]
    copied = np.concatenate([order, more], axis=1)
    copies = np.take_along_axis(_copies(copied, order.shape[1]), copied, axis=1)
    each = np.take_along_axis(placing.load, copied, axis=1) / copies
    ranked = np.take_along_axis(copied, np.argsort(-each, axis=1, kind="stable"), axis=1)
    turns = ranked.reshape(len(ranked), -1, placing.devices).copy()
    turns[:, 1::2] = turns[:, 1::2, ::-1]
    return turns.swapaxes(1, 2).reshape(ranked.shape)


def eplb_global(placing: Placing) -> IntArray:
    """EPLB where nodes do not matter: copies where a copy's load is largest, then packed over devices."""
    return _eplb(placing, 1, 1)


def eplb_hierarchical(placing: Placing) -> IntArray:
    """EPLB (deepseek-ai/EPLB): groups packed over nodes, copies made and packed within each node.

    Global where the nodes do not divide the gate's groups, as there.
    """
    nodes = placing.nodes if placing.groups % placing.nodes == 0 else 1
    return _eplb(placing, nodes, placing.groups if nodes > 1 else 1)


PLACEMENTS: dict[str, Callable[[Placing], IntArray]] = {
    "round-robin": round_robin,
    "popularity": popularity,
    "eplb-hierarchical": eplb_hierarchical,
    "eplb-global": eplb_global,
}
"""To (layers, places) int64, the expert in each place."""

POLICIES = (*PLACEMENTS, TENSOR)


def _dealt(expert: IntArray, devices: int) -> IntArray:
    """Return a list's entries, the first to the first device, the second to the second, in places' order."""
    return expert.reshape(-1, devices).T.ravel()


def _eplb(placing: Placing, nodes: int, groups: int) -> IntArray:
    layers, experts = placing.load.shape
    size, per_node = experts // groups, experts // nodes
    # Groups to nodes: (layers, experts), the experts of the first node's groups, of the second's, ...
    of_group = placing.load.reshape(layers, groups, size).sum(axis=2)
    group = packed(of_group, nodes)
    expert = (group[:, :, None] * size + np.arange(size)).reshape(layers * nodes, per_node)
    load = np.take_along_axis(placing.load, expert.reshape(layers, experts), axis=1).reshape(expert.shape)
    # Copies within a node, and places of a node to its devices.
    copied = replicated(load, placing.places // nodes)
    copies = np.take_along_axis(_copies(copied, per_node), copied, axis=1)
    place = packed(np.take_along_axis(load, copied, axis=1) / copies, placing.devices // nodes)
    placed = np.take_along_axis(expert, np.take_along_axis(copied, place, axis=1), axis=1)
    return placed.reshape(layers, placing.places)


def replicated(load: FloatArray, places: int) -> IntArray:
    """Return (rows, places): every expert, then copies, each of whose copies have the largest load."""
    rows, experts = load.shape
    copies = np.ones(load.shape)
    chosen = np.tile(np.arange(places) % experts, (rows, 1))
    for place in range(experts, places):
        chosen[:, place] = (load / copies).argmax(axis=1)
        copies[np.arange(rows), chosen[:, place]] += 1
    return chosen


def packed(load: FloatArray, packs: int) -> IntArray:
    """Return (rows, items), the items of pack after pack, equally many in each, the loads about even.

    Items by falling load, each into the lightest pack with room.
    """
    if load.shape[1] == packs:
        return np.tile(np.arange(packs), (len(load), 1))
    pack = _packs(load, np.argsort(-load, axis=1, kind="stable"), packs)
    # Within a pack in the order in which they came.
    rank = np.empty_like(pack)
    np.put_along_axis(rank, np.argsort(-load, axis=1, kind="stable"), np.arange(load.shape[1])[None], axis=1)
    return np.argsort(pack * load.shape[1] + rank, axis=1, kind="stable")


@njit(cache=True)
def _packs(load: FloatArray, order: IntArray, packs: int) -> IntArray:
    rows, items = load.shape
    pack = np.empty((rows, items), np.int64)
    for row in range(rows):
        weight, room = np.zeros(packs), np.full(packs, items // packs)
        for item in order[row]:
            lightest = -1
            for candidate in range(packs):
                if room[candidate] and (lightest < 0 or weight[candidate] < weight[lightest]):
                    lightest = candidate
            pack[row, item] = lightest
            weight[lightest] += load[row, item]
            room[lightest] -= 1
    return pack


def _copies(placed: IntArray, experts: int) -> IntArray:
    """Return (rows, experts), the places that hold each."""
    rows = len(placed)
    flat = (placed + experts * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * experts).reshape(rows, experts)


def dealt_tokens(placed: IntArray, counts: IntArray) -> IntArray:
    """Return (layers, places) tokens: those of an expert over its copies, the first ones one more.

    Parameters
    ----------
    placed : (layers, places) experts.
    counts : (layers, experts) tokens.
    """
    by_expert = np.argsort(placed, axis=1, kind="stable")
    ordered = np.take_along_axis(placed, by_expert, axis=1)
    place = np.arange(placed.shape[1])
    new = np.ones(placed.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = place - np.maximum.accumulate(np.where(new, place, 0), axis=1)
    number = np.take_along_axis(_copies(placed, counts.shape[1]), ordered, axis=1)
    tokens = np.empty_like(placed)
    share = (np.take_along_axis(counts, ordered, axis=1) + number - 1 - rank) // number
    np.put_along_axis(tokens, by_expert, share, axis=1)
    return tokens


def copy_of_each(placed: IntArray, expert: IntArray, turn: IntArray, experts: int) -> IntArray:
    """Return (layers, n) places: copy ``turn`` mod their number of each (layers, n) expert.

    Of tokens in turn the copies get as many as :func:`dealt_tokens` says.
    """
    copies = _copies(placed, experts)
    first = copies.cumsum(axis=1) - copies
    number = np.take_along_axis(first, expert, axis=1) + turn % np.take_along_axis(copies, expert, axis=1)
    return np.take_along_axis(np.argsort(placed, axis=1, kind="stable"), number, axis=1)


def compare(
    engine: Roofline,
    title: str,
    steps: Steps,
    num_ffn: int,
    *,
    devices: int,
    nodes: int = 1,
    groups: int = 1,
    places: int | None = None,
) -> Comparison:
    """Place by the first half of the steps, run the second."""
    learned, judged = halves(steps.counts[:, :, :num_ffn])
    load = learned.sum(axis=1).astype(np.float64)
    placing = Placing(load, num_ffn if places is None else places, devices, nodes, groups)
    # (layers x steps, experts), the steps of a layer next to each other.
    num_judged = judged.shape[1]
    judged = judged.reshape(-1, num_ffn)
    bound = float(engine.experts(judged, steps.expert).sum() / devices)
    results = {}
    for name, place in PLACEMENTS.items():
        placed = np.repeat(place(placing), num_judged, axis=0)
        place_tokens = dealt_tokens(placed, judged)
        of_device = place_tokens.reshape(len(judged), devices, -1).sum(axis=2)
        times = engine.experts(place_tokens, steps.expert).reshape(len(judged), devices, -1).sum(axis=2)
        even = of_device.mean(axis=1)
        imbalance = float((of_device.max(axis=1) / np.maximum(even, 1e-300))[even > 0].mean())
        results[name] = Result(float(times.max(axis=1).sum()), bound, {"imbalance": imbalance})
    cut = engine.experts(judged, steps.expert.cut(devices)).sum()
    results[TENSOR] = Result(float(cut), bound, {"imbalance": 1.0})
    return Comparison("placement", title, BASELINE, results, BOUND)
