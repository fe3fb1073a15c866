"""When each expert of each layer runs: a max-plus schedule over whole arrays, and a timeline of spans.

A layer begins when the one before has ended, with what is computed before its experts: attention, a dense
layer. Then tokens go to the devices that have their experts, and results come back; before and behind the
experts, or beside them where that is declared. On each device the link moves weights to the host, one expert
after another; the host computes an expert when its weights are there and the one before is done, shared
experts first. Meanwhile tokens go to the near engine over a path of their own; its units compute their
experts one after another, and results come back. Host and near engine overlap fully; sending, near computing
and returning do not overlap each other. All experts are computed once, in falling order of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sim.system.costs import BoolArray, Costs, FloatArray, IntArray
from sim.system.policies.prefixes import popular_first

Array = TypeVar("Array", FloatArray, BoolArray)
RESOURCES = ("link", "host", "near")
SHARED, BEFORE, EXCHANGE = -1, -2, -3
"""In place of an expert in a span: the shared ones, what comes before a layer's experts, tokens' ways."""


@dataclass(frozen=True)
class Schedule:
    """A step's layers, one after another.

    Attributes
    ----------
    host : (rows, experts) bool, what the host computed.
    start_s : (layers,), when each layer begins.
    layer_s : (layers,), how long it takes.
    busy_s : resource -> (layers, units of it), when it works, device after device; ``link`` is the way of
        weights to the host.
    exchange_s : (layers,), tokens to the near engine and results back, of the slowest device.
    spans : resource -> (spans, 6): layer, expert, start, end in seconds from the step's start, tokens, unit.
        ``exchange`` are tokens' ways between devices.
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
    rows, layers, devices = len(costs.counts), costs.num_layers, costs.devices
    shared = np.broadcast_to(costs.shared_s, rows)
    moved, computed = (_sorted(np.where(host, array, 0.0), order) for array in (costs.move_s, costs.host_s))
    move_end, work = moved.cumsum(axis=1), computed.cumsum(axis=1)
    begun = work - computed
    # end[i] = work[i] + max over j <= i of (move_end[j] - work[j - 1]), and the time of shared experts;
    # those not of the host do not count.
    on_host = _sorted(host, order)
    ready = np.where(on_host, move_end - begun, -np.inf)
    started = np.maximum(np.maximum.accumulate(ready, axis=1), shared[:, None])
    host_end = np.where(on_host, work + started, 0.0)

    near_s = np.where(near, costs.near_s, 0.0)
    units = np.zeros((costs.counts.shape[1], costs.num_units))
    units[np.arange(len(costs.unit)), costs.unit] = 1.0
    unit_busy = near_s @ units
    some = near.any(axis=1)
    send = np.where(some, np.where(near, costs.send_s, 0.0).sum(axis=1) + costs.latency_s, 0.0)
    host_side = np.maximum(host_end.max(axis=1, initial=0.0), shared)
    row_s = np.maximum(host_side, unit_busy.max(axis=1, initial=0.0) + 2 * send)

    before_host, before_near, exchange = (
        np.broadcast_to(part, layers) for part in (costs.before_host_s, costs.before_near_s, costs.exchange_s)
    )
    before = before_host + before_near
    # The way there and the way back are as long.
    way = np.zeros(layers) if costs.overlapped else exchange / 2
    slowest = row_s.reshape(layers, devices).max(axis=1, initial=0.0)
    experts_s = np.maximum(slowest, exchange) if costs.overlapped else slowest + exchange
    layer_s = before + experts_s
    start = layer_s.cumsum() - layer_s

    begin = np.repeat(start + before + way, devices)
    near_end = _ends_by_unit(_sorted(near_s, order), costs.unit[order], costs.num_units) + send[:, None]
    # Experts of device d are numbered behind those of the devices before it, its units likewise.
    device = np.tile(np.arange(devices), layers)[:, None]
    names = (np.repeat(np.arange(layers), devices)[:, None], order + device * costs.counts.shape[1])
    tokens = np.take_along_axis(costs.counts, order, axis=1)
    spans = {
        "link": _spans(begin, names, on_host & (moved > 0), move_end - moved, move_end, tokens, device),
        "host": _spans(begin, names, on_host, host_end - computed, host_end, tokens, device),
        "near": _spans(
            begin,
            names,
            _sorted(near, order),
            near_end - _sorted(near_s, order),
            near_end,
            tokens,
            costs.unit[order] + device * costs.num_units,
        ),
    }
    of_device = (np.repeat(np.arange(layers), devices), np.tile(np.arange(devices), layers))
    spans["host"] = np.concatenate(
        [
            _parts(BEFORE, *of_device, np.repeat(start, devices), np.repeat(before_host, devices)),
            _parts(SHARED, *of_device, begin, shared),
            spans["host"],
        ]
    )
    all_units = devices * costs.num_units
    of_unit = (np.repeat(np.arange(layers), all_units), np.tile(np.arange(all_units), layers))
    spans["near"] = np.concatenate(
        [
            _parts(
                BEFORE, *of_unit, np.repeat(start + before_host, all_units), np.repeat(before_near, all_units)
            ),
            spans["near"],
        ]
    )
    number, zero = np.arange(layers), np.zeros(layers, np.int64)
    there = start + before
    spans["exchange"] = np.concatenate(
        [
            _parts(EXCHANGE, number, zero, there, exchange if costs.overlapped else way),
            _parts(EXCHANGE, number, zero, there + way + slowest, way),
        ]
    )
    busy = {
        "link": moved.sum(axis=1).reshape(layers, devices),
        "host": (computed.sum(axis=1) + shared).reshape(layers, devices) + before_host[:, None],
        "near": unit_busy.reshape(layers, -1) + before_near[:, None],
        "exchange": exchange[:, None].copy(),
    }
    sent = (2 * send).reshape(layers, devices).max(axis=1, initial=0.0)
    return Schedule(host, start, layer_s, busy, sent, spans)


def _sorted(values: Array, order: IntArray) -> Array:
    return np.take_along_axis(values, order, axis=1)


def _ends_by_unit(seconds: FloatArray, unit: IntArray, num_units: int) -> FloatArray:
    """Return (rows, experts), the sum of an expert's time and of those before it in its unit."""
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
    start: FloatArray,
    names: tuple[IntArray, IntArray],
    some: BoolArray,
    begin: FloatArray,
    end: FloatArray,
    tokens: IntArray,
    unit: IntArray,
) -> FloatArray:
    row, place = np.nonzero(some)
    layer, expert = names
    return np.stack(
        [
            layer[row, 0].astype(np.float64),
            expert[row, place].astype(np.float64),
            start[row] + begin[row, place],
            start[row] + end[row, place],
            tokens[row, place].astype(np.float64),
            np.broadcast_to(unit, some.shape)[row, place].astype(np.float64),
        ],
        axis=1,
    )


def _parts(name: int, layer: IntArray, unit: IntArray, start: FloatArray, seconds: FloatArray) -> FloatArray:
    """Return the spans of what is no expert, where it takes time at all."""
    some = np.flatnonzero(seconds > 0)
    columns = (layer, np.full(len(layer), name), start, start + seconds, np.zeros(len(layer)), unit)
    return np.stack([column[some].astype(np.float64) for column in columns], axis=1)


def bounds(costs: Costs) -> dict[str, float]:
    """Return times that no policy is faster than, of the whole step.

    ``balance``: experts may be cut anywhere between host and near engine, near units share all work, tokens
    move for nothing: a fractional optimum, by falling gain of the host. ``fastest``: each layer takes at
    least as long as its longest expert on the engine that is faster for it. Both on the device where that
    is longest, with what comes before a layer's experts and the tokens' exchange.
    """
    near = costs.near_s / costs.num_units
    shared = np.broadcast_to(costs.shared_s, len(near))
    # The host's side takes at least its work, and at least its moves.
    balance = np.maximum(_fractional(costs.host_s, near, shared), _fractional(costs.move_s, near, 0.0))
    fastest = np.minimum(costs.host_s + costs.move_s, costs.near_s).max(axis=1, initial=0.0)
    layers = costs.num_layers
    exchange = np.broadcast_to(costs.exchange_s, layers)
    before = np.broadcast_to(costs.before_host_s + np.asarray(costs.before_near_s), layers)

    def step(row_s: FloatArray) -> float:
        slowest = row_s.reshape(layers, costs.devices).max(axis=1, initial=0.0)
        experts = np.maximum(slowest, exchange) if costs.overlapped else slowest + exchange
        return float((before + experts).sum())

    return {"balance": step(balance), "fastest": step(np.maximum(fastest, shared))}


def _fractional(host: FloatArray, near: FloatArray, taken: FloatArray | float) -> FloatArray:
    """Return (rows,), the least of max(host, near) where experts may be cut; the host begins at ``taken``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(near > 0, np.where(host > 0, near / host, np.inf), -1.0)
    order = np.argsort(-gain, axis=1, kind="stable")
    ahead, behind = np.take_along_axis(host, order, 1), np.take_along_axis(near, order, 1)
    host_sum = np.pad(ahead.cumsum(axis=1), ((0, 0), (1, 0))) + np.broadcast_to(taken, len(host))[:, None]
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
