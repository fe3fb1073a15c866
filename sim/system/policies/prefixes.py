"""Experts in an order, and the best number of them, from the first, for the host."""

from __future__ import annotations

import numpy as np

from sim.system.costs import BoolArray, Costs, FloatArray, IntArray


def popular_first(costs: Costs) -> IntArray:
    """Return each layer's experts by falling number of tokens, of equals the lowest first."""
    return np.argsort(-costs.counts, axis=1, kind="stable")


def taken(order: IntArray, number: IntArray) -> BoolArray:
    """Return (layers, experts) bool: the first ``number`` (layers,) of each layer's order."""
    mask = np.zeros(order.shape, bool)
    np.put_along_axis(mask, order, np.arange(order.shape[1]) < number[:, None], axis=1)
    return mask


def in_order(values: FloatArray, order: IntArray) -> FloatArray:
    """Return (layers, experts + 1), the sum of the first p values of each layer's order, p from 0."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(np.take_along_axis(values, order, axis=1), axis=1, out=sums[:, 1:])
    return sums


def near_left(costs: Costs, order: IntArray) -> FloatArray:
    """Return (rows, experts + 1), the time of the near engine's busiest unit without the first p experts."""
    if costs.num_units == 1:
        alone: FloatArray = costs.near_s.sum(axis=1)[:, None] - in_order(costs.near_s, order)
        return alone
    # From the last expert on, unit by unit: what is left is never below 0.
    left = np.zeros((*order.shape, costs.num_units))
    mine = np.eye(costs.num_units)[costs.unit[order]]
    left += np.take_along_axis(costs.near_s, order, axis=1)[:, :, None] * mine
    busiest = left[:, ::-1].cumsum(axis=1)[:, ::-1].max(axis=2, initial=0.0)
    return np.pad(busiest, ((0, 0), (0, 1)))


def pipelined(costs: Costs, order: IntArray) -> FloatArray:
    """Return (layers, experts + 1), when the host has finished the first p experts of an order.

    Moves follow each other on the link; an expert is computed when it is there and the one before is done,
    the first one behind shared experts.
    """
    moves, work = in_order(costs.move_s, order), in_order(costs.host_s, order)
    shared = np.broadcast_to(costs.shared_s, len(moves))[:, None]
    waits = np.maximum(np.maximum.accumulate(moves[:, 1:] - work[:, :-1], axis=1), shared)
    ends = np.broadcast_to(shared, moves.shape).copy()
    ends[:, 1:] = work[:, 1:] + waits
    return ends
