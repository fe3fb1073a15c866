"""When each expert of each layer runs: a max-plus schedule over whole arrays, and a timeline of spans.

A layer begins when the one before has ended. In it the link moves weights to the host, one expert after
another; the host computes an expert when its weights are there and the one before is done. Meanwhile tokens
go to the near engine over a path of their own; its units compute their experts one after another, and
results come back. Host and near engine overlap fully; sending, near computing and returning do not overlap
each other. All experts are computed once, in falling order of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sim.system.costs import BoolArray, Costs, FloatArray, IntArray
from sim.system.policies.prefixes import popular_first

Array = TypeVar("Array", FloatArray, BoolArray)
RESOURCES = ("link", "host", "near")


@dataclass(frozen=True)
class Schedule:
    """A step's layers, one after another.

    Attributes
    ----------
    host : (layers, experts) bool, what the host computed.
    start_s : (layers,), when each layer begins.
    layer_s : (layers,), how long it takes.
    busy_s : resource -> (layers, units of it), when it works; ``link`` is the way of weights to the host.
    exchange_s : (layers,), tokens to the near engine and results back.
    spans : resource -> (spans, 4): layer, expert, start, end in seconds from the step's start.
    """

    host: BoolArray
    start_s: FloatArray
    layer_s: FloatArray
    busy_s: dict[str, FloatArray]
    exchange_s: FloatArray
    spans: dict[str, FloatArray]

    @property
    def seconds(self) -> float:
        """The step's time."""
        return float(self.layer_s.sum())

    def idle_s(self, resource: str) -> FloatArray:
        """Return (layers, units), the time of a layer in which a resource does not work."""
        idle: FloatArray = self.layer_s[:, None] - self.busy_s[resource]
        return idle


def schedule(costs: Costs, host: BoolArray) -> Schedule:
    """Return the schedule of a step whose experts were divided."""
    host = host & costs.active
    near = costs.active & ~host
    order = popular_first(costs)
    moved, computed = (_sorted(np.where(host, array, 0.0), order) for array in (costs.move_s, costs.host_s))
    move_end, work = moved.cumsum(axis=1), computed.cumsum(axis=1)
    begun = work - computed
    # end[i] = work[i] + max over j <= i of (move_end[j] - work[j - 1]); those not of the host do not count.
    on_host = _sorted(host, order)
    ready = np.where(on_host, move_end - begun, -np.inf)
    host_end = np.where(on_host, work + np.maximum.accumulate(ready, axis=1), 0.0)

    near_s = np.where(near, costs.near_s, 0.0)
    units = np.zeros((costs.counts.shape[1], costs.num_units))
    units[np.arange(len(costs.unit)), costs.unit] = 1.0
    unit_busy = near_s @ units
    some = near.any(axis=1)
    send = np.where(some, np.where(near, costs.send_s, 0.0).sum(axis=1) + costs.latency_s, 0.0)
    layer_s = np.maximum(host_end.max(axis=1, initial=0.0), unit_busy.max(axis=1, initial=0.0) + 2 * send)

    start = layer_s.cumsum() - layer_s
    near_end = _ends_by_unit(_sorted(near_s, order), costs.unit[order], costs.num_units) + send[:, None]
    spans = {
        "link": _spans(start, order, on_host & (moved > 0), move_end - moved, move_end),
        "host": _spans(start, order, on_host, host_end - computed, host_end),
        "near": _spans(start, order, _sorted(near, order), near_end - _sorted(near_s, order), near_end),
    }
    busy = {"link": moved.sum(axis=1)[:, None], "host": computed.sum(axis=1)[:, None], "near": unit_busy}
    return Schedule(host, start, layer_s, busy, 2 * send, spans)


def _sorted(values: Array, order: IntArray) -> Array:
    return np.take_along_axis(values, order, axis=1)


def _ends_by_unit(seconds: FloatArray, unit: IntArray, num_units: int) -> FloatArray:
    """Return (layers, experts), the sum of an expert's time and of those before it in its unit."""
    if num_units == 1:
        return seconds.cumsum(axis=1)
    by_unit = np.argsort(unit, axis=1, kind="stable")
    ordered, units = np.take_along_axis(seconds, by_unit, axis=1), np.take_along_axis(unit, by_unit, axis=1)
    sums = ordered.cumsum(axis=1)
    before = sums - ordered
    first = np.ones(units.shape, bool)
    first[:, 1:] = units[:, 1:] != units[:, :-1]
    # Sums do not fall, so the last first entry's has the largest of what lies before it.
    offset = np.maximum.accumulate(np.where(first, before, 0.0), axis=1)
    ends = np.empty_like(seconds)
    np.put_along_axis(ends, by_unit, sums - offset, axis=1)
    return ends


def _spans(
    start: FloatArray, order: IntArray, some: BoolArray, begin: FloatArray, end: FloatArray
) -> FloatArray:
    layer, place = np.nonzero(some)
    return np.stack(
        [
            layer.astype(np.float64),
            order[layer, place].astype(np.float64),
            start[layer] + begin[layer, place],
            start[layer] + end[layer, place],
        ],
        axis=1,
    )


def bounds(costs: Costs) -> dict[str, float]:
    """Return times that no policy is faster than, of the whole step.

    ``balance``: experts may be cut anywhere between host and near engine, near units share all work, tokens
    move for nothing: a fractional optimum, by falling gain of the host. ``fastest``: each layer takes at
    least as long as its longest expert on the engine that is faster for it.
    """
    near = costs.near_s / costs.num_units
    # The host's side takes at least its work, and at least its moves.
    balance = np.maximum(_fractional(costs.host_s, near), _fractional(costs.move_s, near))
    fastest = np.minimum(costs.host_s + costs.move_s, costs.near_s).max(axis=1, initial=0.0)
    return {"balance": float(balance.sum()), "fastest": float(fastest.sum())}


def _fractional(host: FloatArray, near: FloatArray) -> FloatArray:
    """Return (layers,), the least of max(host, near) where experts may be cut."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(near > 0, np.where(host > 0, near / host, np.inf), -1.0)
    order = np.argsort(-gain, axis=1, kind="stable")
    ahead, behind = np.take_along_axis(host, order, 1), np.take_along_axis(near, order, 1)
    host_sum = np.pad(ahead.cumsum(axis=1), ((0, 0), (1, 0)))
    # From the last one on, so that it ends with 0 and not with what rounding leaves of a difference.
    near_left = np.pad(behind[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
    # The expert in which the two meet: before it near is longer, behind it the host.
    meet = np.clip((host_sum >= near_left).argmax(axis=1) - 1, 0, None)
    rows = np.arange(len(host))
    h, n = host_sum[rows, meet], near_left[rows, meet]
    a, b = ahead[rows, np.minimum(meet, host.shape[1] - 1)], behind[rows, np.minimum(meet, host.shape[1] - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(a + b > 0, (n - h) / (a + b), 0.0), 0.0, 1.0)
    best: FloatArray = np.maximum(h + share * a, n - share * b)
    return best
