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


def pipelined(costs: Costs, order: IntArray) -> FloatArray:
    """Return (layers, experts + 1), when the host has finished the first p experts of an order.

    Moves follow each other on the link; an expert is computed when it is there and the one before is done.
    """
    moves, work = in_order(costs.move_s, order), in_order(costs.host_s, order)
    waits = np.maximum.accumulate(moves[:, 1:] - work[:, :-1], axis=1)
    ends = np.zeros(moves.shape)
    ends[:, 1:] = work[:, 1:] + waits
    return ends
