"""Experts held beside a host whose weights lie elsewhere: what a cache keeps, and what is fetched ahead.

A cache has room for ``entries`` experts of each layer. What it holds when a layer begins is a hit; the other
active experts are moved over the link, and behind the layer it keeps the most valuable of all that were
there. A policy of a cache is its idea of that value.

Where the host has a tier, a faster memory before its own, this one is a cache of the same policy, of what the
host holds: experts in it are computed at its rate. Copies are taken as weights are read, at no cost. It has
room for so many experts of all layers, and layers have as many places each, the first ones one more.

A prefetcher has two buffers of ``entries`` experts instead, one for the layer that runs and one for the next:
its policy says what is moved for a layer while the one before runs; into no tier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim.system.comparison import Comparison, Result, Steps
from sim.system.costs import BoolArray, FloatArray, IntArray
from sim.system.step import system_costs
from spec.errors import InputError, require, require_range
from spec.system import SystemSpec, WeightPlace

BASELINE = "none"
BOUND = "all computing, or the moves that Belady's cache leaves, if that takes longer"


def least_recent(active: BoolArray) -> FloatArray:
    """LRU: the last step with a use."""
    step = np.arange(1.0, active.shape[1] + 1)[:, None]
    recent: FloatArray = np.maximum.accumulate(np.where(active, step, 0.0), axis=1)
    return recent


def least_frequent(active: BoolArray) -> FloatArray:
    """LFU: the number of steps with a use so far (DynaNDE)."""
    return np.cumsum(active, axis=1, dtype=np.float64)


def belady(active: BoolArray) -> FloatArray:
    """Belady's bound: the nearer the next use, the better; what is never used again is worth nothing."""
    step = np.arange(active.shape[1], dtype=np.float64)[:, None]
    next_use = np.full(active.shape, np.inf)
    uses = np.where(active, step, np.inf)[:, :0:-1]
    next_use[:, :-1] = np.minimum.accumulate(uses, axis=1)[:, ::-1]
    return np.where(np.isinf(next_use), 0.0, 1.0 / (1.0 + next_use))


def hot(active: BoolArray) -> FloatArray:
    """The most used of the whole routing, as a profile of it would say (KTransformers, llama.cpp)."""
    uses = active.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.broadcast_to(uses, active.shape)


CACHES: dict[str, Callable[[BoolArray], FloatArray]] = {
    "lru": least_recent,
    "lfu": least_frequent,
    "hot": hot,
    "belady": belady,
}
"""(layers, steps, experts) bool, who is active, to the value of holding each behind each step; 0: none."""


def held(active: BoolArray, value: FloatArray, entries: int | IntArray) -> BoolArray:
    """Return (layers, steps, experts) bool, what a cache holds when each step begins; of equals the first.

    ``entries``: of every layer, or (layers,) of each.
    """
    holds = np.zeros(active.shape, bool)
    for step in range(active.shape[1] - 1):
        there = (holds[:, step] | active[:, step]) & (value[:, step] > 0)
        holds[:, step + 1] = largest(np.where(there, value[:, step], 0.0), entries)
    return holds


def largest(score: FloatArray, number: int | IntArray) -> BoolArray:
    """Return, along the last axis, the ``number`` largest of those above 0; of equals the lowest.

    ``number``: of all rows, or an array of each.
    """
    order = np.argsort(-score, axis=-1, kind="stable")
    mask = np.zeros(score.shape, bool)
    inside = np.broadcast_to(np.arange(score.shape[-1]) < np.asarray(number)[..., None], score.shape)
    np.put_along_axis(mask, order, inside, axis=-1)
    some: BoolArray = mask & (score > 0)
    return some


def tier_entries(system: SystemSpec, layers: int, weight_bytes: float, entries: int) -> IntArray | None:
    """Return (layers,), how many experts of each layer a host's tier has room for; None without a tier.

    At most ``entries``, which the host holds of a layer. ``weight_bytes``: of an expert.
    """
    tier = None if system.host is None else system.host.tier
    if tier is None:
        return None
    room = int(tier.capacity_bytes.value * tier.share.value / weight_bytes)
    each, more = divmod(room, layers)
    places: IntArray = np.minimum(entries, each + (np.arange(layers) < more))
    return places


def next_layer_gate(steps: Steps, entries: int) -> BoolArray:
    """Pre-gated MoE: a layer's gate chooses the next layer's experts; only the first layer does not know.

    arXiv 2308.12066. Another model than the one that was drawn, with its routing.
    """
    known = oracle(steps, entries)
    known[0] = False
    return known


def circular(steps: Steps, entries: int) -> BoolArray:
    """FLAME: a layer's experts predict those of the next, the last layer's those of the next token's first.

    By what followed what, as often as it was seen in the steps before (DOI 10.1145/3649329.3656507 says who
    predicts whom; that the prediction is a table of frequencies is this project's).
    """
    layers, num_steps, tokens, k = steps.ids.shape
    experts = steps.counts.shape[2]
    # More experts than a step can use are not worth a move.
    entries = min(entries, tokens * k)
    before = np.roll(steps.ids, 1, axis=0)
    before[0] = np.roll(before[0], 1, axis=0)
    layer = np.arange(layers)[:, None, None, None]
    followed = np.zeros((layers, experts, experts), np.float32)
    times = np.zeros((layers, experts))
    predicted = np.zeros(steps.counts.shape, bool)
    computes = steps.counts.any(axis=(0, 1))
    for step in range(num_steps):
        known = np.ones((layers, 1))
        # Before the first step there is no token whose last layer could say anything.
        known[0] = step > 0
        given = before[:, step]
        seen = np.zeros((layers, experts))
        np.add.at(seen, (layer[..., 0], given), 1.0)
        frequency = (known * seen / np.maximum(times, 1.0)).astype(np.float32)
        score = np.matmul(frequency[:, None], followed)[:, 0].astype(np.float64)
        predicted[:, step] = largest(np.where(computes, score, 0.0), entries)
        times += known * seen
        pair = np.broadcast_to(known[:, :, None, None], (layers, tokens, k, k))
        np.add.at(followed, (layer, given[..., None], steps.ids[:, step, :, None, :]), pair)
    return predicted


def oracle(steps: Steps, entries: int) -> BoolArray:
    """Every layer's experts known one layer ahead: the bound of hits for what is fetched ahead."""
    return largest(steps.counts.astype(np.float64), entries)


PREFETCHERS: dict[str, Callable[[Steps, int], BoolArray]] = {
    "next-layer-gate": next_layer_gate,
    "circular": circular,
    "oracle": oracle,
}
"""Steps and entries to (layers, steps, experts) bool, what is moved ahead."""

POLICIES = (BASELINE, *CACHES, *PREFETCHERS)


def seconds(compute: FloatArray, move_s: float, active: BoolArray, hit: BoolArray, ahead: IntArray) -> float:
    """Return the time of layers that follow each other, on a host and a link that moves one expert at a time.

    A layer computes hits first, then others as they come, its most popular ones first; what is fetched for
    the next one goes behind. A layer begins when the one before has ended and all that was fetched ahead for
    it is there. Moves of equal length and computing times that fall make the pipeline's end one of three.

    Parameters
    ----------
    compute : (layers, experts) seconds, 0 where an expert is idle.
    active, hit : (layers, experts).
    ahead : (layers,), experts fetched before it begins.
    """
    missed = active & ~hit
    number = missed.sum(axis=1)
    late = np.where(missed, compute, 0.0).sum(axis=1)
    last = np.where(missed, compute, np.inf).min(axis=1, initial=np.inf)
    piped = np.where(number > 0, np.maximum(move_s + late, number * move_s + last), 0.0)
    alone = np.maximum(compute.sum(axis=1), piped)
    behind = number * move_s + np.append(ahead[1:], 0) * move_s
    return float(ahead[0] * move_s + np.maximum(alone, behind).sum())


def compare(system: SystemSpec, title: str, steps: Steps, entries: int) -> Comparison:
    """Run all policies; the host computes everything, and what it does not hold comes over the link."""
    require(
        system.weights is WeightPlace.NEAR,
        f"must be near, so that experts are moved, not {system.weights.value}",
        key="weights",
    )
    require_range("entries", entries, 1, steps.counts.shape[2])
    require(system.host is not None, "is missing: nothing is moved to it", key="host")
    assert system.host is not None
    # What is near, and on other devices, does not matter.
    near = system.near if system.near.block is None else replace(system.host, tier=None)
    system = replace(system, exchange=None, near=near)
    assert system.host is not None
    capacity = system.host.capacity_bytes
    held_bytes = entries * steps.counts.shape[0] * steps.expert.weight_bytes
    if capacity is not None and held_bytes > capacity.value:
        raise InputError(
            f"must fit the host's {capacity.value / 1e9:,.1f} GB, not be {entries} of each layer,"
            f" {held_bytes / 1e9:,.1f} GB",
            key="entries",
        )
    in_time = steps.in_time
    costs = system_costs(system, in_time, steps.expert)
    move_s = float(costs.move_s.max())
    active = steps.counts > 0
    nothing = np.zeros(active.shape, bool)
    places = tier_entries(system, len(active), steps.expert.weight_bytes, entries)
    tier_s, most, saved = costs.host_s, 0, 0.0
    if places is not None:
        tier_s = system_costs(system, in_time, steps.expert, tiered=in_time > 0).host_s
        # No cache hits more often than Belady's, and none saves more than the dearest ones.
        most = int((active & held(active, belady(active), places)).sum())
        saved = float(np.sort((costs.host_s - tier_s).ravel())[::-1][:most].sum())
    # (layers, steps, experts): what is there when it is asked for, and what of it was fetched ahead.
    there = {BASELINE: (nothing, nothing)}
    there |= {name: (held(active, value(active), entries), nothing) for name, value in CACHES.items()}
    for name, fetch in PREFETCHERS.items():
        fetched = fetch(steps, entries)
        there[name] = (fetched, fetched)
    fewest = int((active & ~there["belady"][0]).sum())
    bound = max(float(costs.host_s.sum()) - saved, fewest * move_s)
    results = {}
    for name, (hits, fetched) in there.items():
        hit = (hits & active).swapaxes(0, 1).reshape(in_time.shape)
        ahead = fetched.sum(axis=2).T.ravel()
        moved = int((active & ~hits).sum() + fetched.sum())
        measures = {
            "hit_rate": float(hit.sum() / active.sum()),
            "moved_GB": moved * steps.expert.weight_bytes / 1e9,
        }
        compute = costs.host_s
        if places is not None:
            # A copy of what the host does not hold any more is of no use.
            copied = held(active, CACHES[name](active), places) & hits if name in CACHES else nothing
            tiered = (copied & active).swapaxes(0, 1).reshape(in_time.shape)
            if tiered.sum() > most:
                raise ArithmeticError(f"cache policy {name} hits more often in a tier than belady")
            compute = np.where(tiered, tier_s, compute)
            measures["tier_rate"] = float(tiered.sum() / active.sum())
        results[name] = Result(seconds(compute, move_s, in_time > 0, hit, ahead), bound, measures)
    check_hits(results)
    return Comparison("cache", title, BASELINE, results, BOUND)


def check_hits(results: dict[str, Result]) -> None:
    """Raise ``ArithmeticError`` if a policy hits more often than its bound."""
    for names, best in ((CACHES, "belady"), (PREFETCHERS, "oracle")):
        for name in names:
            if results[name].measures["hit_rate"] > results[best].measures["hit_rate"] * (1 + 1e-9):
                raise ArithmeticError(f"cache policy {name} hits more often than {best}")
