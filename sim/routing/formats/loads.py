"""Expert loads as one ``.npy`` (layers, batches, experts), as MoEwithPIM reads them.

Written for github.com/superstarghy/MoEwithPIM at 33b31df. If the caller says k, a batch has its sum / k
tokens; if not, no load may exceed 1 and a batch is one token. Which experts were together in a token of a
larger batch is not in the file: tokens are made up so that each has k distinct experts and the loads are
exactly the file's, and the trace is not aligned. A lone token's experts are in ascending order; their order
by weight is not in the file.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.archive import read_array
from sim.routing.trace import MAX_ASSIGNMENTS, NO_EXPERT, IntArray, Trace, TraceShape, check_size, make_trace
from spec.errors import InputError, require, require_range

MAX_LOAD = 1 << 24


def read(path: Path, shape: TraceShape) -> Trace:
    """Return the trace of a ``.npy`` of loads: whole numbers, of an integer or a float type."""
    loads = read_array(path)
    try:
        return _trace(_checked(loads), shape)
    except InputError as error:
        raise error.at(file=path) from None


def _checked(loads: NDArray[np.generic]) -> IntArray:
    require(
        loads.ndim == 3 and loads.size > 0 and loads.dtype.kind in "biuf",
        f"must be loads (layers, batches, experts), not {loads.dtype} of shape {loads.shape}",
    )
    require(loads.size <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} loads, not {loads.size}")
    whole = np.empty(loads.shape, np.int64)
    for layer, there in enumerate(loads):
        # A layer at a time, so that what is compared needs little memory.
        values = there.astype(np.float64) if there.dtype.kind == "f" else there
        good = (values >= 0) & (values <= MAX_LOAD)
        if values.dtype.kind == "f":
            good &= np.floor(values) == values
        if not good.all():
            batch, expert = (int(axis[0]) for axis in np.nonzero(~good))
            raise InputError(
                f"must be whole numbers in 0..{MAX_LOAD}, not {values[batch, expert]}",
                key=f"[{layer}, {batch}, {expert}]",
            )
        whole[layer] = values
    return whole


def _trace(loads: IntArray, shape: TraceShape) -> Trace:
    num_layers, num_batches, num_experts = loads.shape
    if shape.num_experts is not None:
        require(num_experts == shape.num_experts, f"has {num_experts} experts, not {shape.num_experts}")
    require(bool(loads.any()), "must have a load above 0")
    sums = loads.sum(axis=2)
    if loads.max() <= 1 and (shape.top_k is None or bool((sums == shape.top_k).all())):
        ids = _experts_of_rows(loads)
        return make_trace("loads", ids, shape, num_experts=num_experts, request=np.arange(num_batches))
    if shape.top_k is None:
        raise InputError("has loads above 1: say how many experts a token has (top_k)")
    tokens = _tokens_of_batches(loads, shape.top_k)
    check_size((num_layers, int(tokens.sum()), shape.top_k))
    ids = np.stack([_dealt(layer, tokens, shape.top_k) for layer in loads])
    request = np.arange(num_batches).repeat(tokens)
    # A token of one layer has nothing to do with that of another: only their sums are from the file.
    aligned = num_layers == 1
    return make_trace("loads", ids, shape, num_experts=num_experts, request=request, aligned=aligned)


def _experts_of_rows(loads: IntArray) -> NDArray[np.int32]:
    """Return (layers, tokens, most of a token) experts of (layers, tokens, experts) zeros and ones."""
    most = int(loads.sum(axis=2).max())
    check_size((loads.shape[0], loads.shape[1], most))
    ids = np.empty((loads.shape[0], loads.shape[1], most), np.int32)
    for layer, rows in enumerate(loads):
        # Experts with a load first, in ascending order.
        order = np.argsort(rows == 0, axis=1, kind="stable")[:, :most]
        ids[layer] = np.where(np.take_along_axis(rows, order, axis=1) > 0, order, NO_EXPERT)
    return ids


def _tokens_of_batches(loads: IntArray, top_k: int) -> IntArray:
    """Return (batches,) tokens; the same in every layer, each able to have ``top_k`` distinct experts."""
    sums = loads.sum(axis=2)
    for layer, batch in np.argwhere((sums % top_k != 0) | (sums != sums[0])):
        raise InputError(
            f"must sum to a multiple of top_k={top_k}, the same in every layer, not {sums[layer, batch]}",
            key=f"[{layer}, {batch}]",
        )
    tokens: IntArray = sums[0] // top_k
    for layer, batch in np.argwhere(loads.max(axis=2) > tokens):
        raise InputError(
            f"must have no load above its {tokens[batch]} tokens, not {loads[layer, batch].max()}",
            key=f"[{layer}, {batch}]",
        )
    return tokens


def _dealt(loads: IntArray, tokens: IntArray, top_k: int) -> NDArray[np.int32]:
    """Return (sum of tokens, top_k) experts with exactly the (batches, experts) ``loads``.

    A batch's assignments, expert by expert, are dealt to its n tokens in turn: no expert has more than n,
    so no token gets one twice. Then the tokens are shuffled, always in the same way: neighbours would else
    have the same experts.
    """
    num_batches, num_experts = loads.shape
    require_range("top_k", top_k, 1, num_experts)
    experts = np.tile(np.arange(num_experts), num_batches).repeat(loads.ravel())
    counts = (tokens * top_k).repeat(tokens * top_k)
    starts = (np.cumsum(tokens * top_k) - tokens * top_k).repeat(tokens * top_k)
    within = np.arange(len(experts)) - starts
    of_batch = counts // top_k
    token, slot = starts // top_k + within % of_batch, within // of_batch
    ids = np.empty((int(tokens.sum()), top_k), np.int32)
    ids[token, slot] = experts
    batch = np.arange(num_batches).repeat(tokens)
    ids = ids[np.lexsort((np.random.default_rng(0).random(len(ids)), batch))]
    return ids


def write(trace: Trace) -> bytes:
    """Return the loads of each request and layer as the bytes of a ``.npy``, uint8 to int64 as needed.

    :class:`InputError` for a token without all k experts, unless every request is one token: the sum of a
    larger batch would not say how many tokens it has.
    """
    requests, batch = np.unique(trace.request, return_inverse=True)
    missing = np.argwhere((trace.ids == NO_EXPERT).any(axis=2))
    if len(requests) < trace.num_tokens and len(missing):
        layer, token = missing[0]
        raise InputError(
            f"must have {trace.top_k} experts for every token in loads, unlike layer {trace.layers[layer]},"
            f" token {token}",
            key="ids",
        )
    size = trace.num_layers * len(requests) * trace.num_experts
    require(size <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} loads, not {size}", key="loads")
    loads = np.empty((trace.num_layers, len(requests), trace.num_experts), np.int64)
    for layer, rows in enumerate(trace.ids):
        token, slot = np.nonzero(rows != NO_EXPERT)
        places = batch[token] * trace.num_experts + rows[token, slot]
        loads[layer] = np.bincount(places, minlength=loads[layer].size).reshape(loads[layer].shape)
    buffer = io.BytesIO()
    np.save(buffer, loads.astype(np.min_scalar_type(int(loads.max()))))
    return buffer.getvalue()
