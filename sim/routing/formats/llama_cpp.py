"""llama.cpp's traces: CSV rows ``layer,expert`` or ``layer_id,expert_ids``.

Written for github.com/ggml-org/llama.cpp pull request 28544 (``layer,expert``: one row for each routed
activation, a token's k rows behind each other) and for the forks that write ``layer_id,expert_ids`` with k
ids separated by spaces, one row for each token. The first has no k, so the caller says it.

The n-th token of a layer is the n-th of every layer, unless layers have different numbers of tokens (the last
layer computes only the tokens whose output is wanted): then the trace is not aligned. Prompt and generated
tokens follow each other without a mark. Only routed experts are traced; dense layers have no rows.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.routing.text import at, read_header, read_rows
from sim.routing.trace import (
    MAX_ASSIGNMENTS,
    MAX_SLOTS,
    NO_EXPERT,
    Trace,
    TraceShape,
    check_size,
    make_trace,
    repeated,
)
from spec.errors import InputError, require
from spec.model import MAX_EXPERTS, MAX_LAYERS

ACTIVATIONS = "layer,expert"
TOKENS = "layer_id,expert_ids"
_ACTIVATION = re.compile(r"[0-9]{1,9},[0-9]{1,9}")
_TOKEN = re.compile(r"[0-9]{1,9},[0-9]{1,9}(?: [0-9]{1,9})*")


def is_header(line: str) -> bool:
    """Whether a CSV file's first line is that of such a trace."""
    return line in (ACTIVATIONS, TOKENS)


def read(path: Path, shape: TraceShape) -> Trace:
    """Return the trace of either CSV."""
    try:
        if read_header(path) == TOKENS:
            return _trace(*_tokens(path), shape)
        return _trace(*_activations(path, shape.top_k), shape)
    except InputError as error:
        raise error.at(file=path) from None


def _activations(
    path: Path, top_k: int | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Return (N,) layers, (N, k) experts and (N,) lines of the first row of N tokens, a layer's together."""
    if top_k is None:
        raise InputError("does not say how many experts a token has (top_k)")
    found = []
    for first, rows in read_rows(path, f"{ACTIVATIONS} in numbers", _ACTIVATION):
        found.append(_numbers(path, first, ",".join(rows), len(rows), 2))
        _check_count(len(found) * len(found[0]))
    require(bool(found), "has no rows")
    values = np.concatenate(found)
    order = np.argsort(values[:, 0], kind="stable")
    layer, expert = values[order].T
    numbers, counts = np.unique(layer, return_counts=True)
    for number, count in zip(numbers, counts, strict=True):
        require(
            count % top_k == 0, f"must have a multiple of top_k={top_k} rows of layer {number}, not {count}"
        )
    return layer[::top_k], expert.reshape(-1, top_k), order[::top_k] + 2


def _tokens(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    found: list[NDArray[np.int32]] = []
    width = 0
    for first, rows in read_rows(path, f"{TOKENS} in numbers", _TOKEN):
        width = width or rows[0].count(" ") + 2
        for number, row in enumerate(rows, first):
            if row.count(" ") + 2 != width:
                raise InputError(
                    f"must have {width - 1} experts as before, not {row.count(' ') + 1}", key=at(number)
                )
        if width - 1 > MAX_SLOTS:
            raise InputError(f"must have at most {MAX_SLOTS} experts, not {width - 1}", key=at(first))
        found.append(_numbers(path, first, ",".join(rows).replace(" ", ","), len(rows), width))
        _check_count(len(found) * found[0].size)
    require(bool(found), "has no rows")
    values = np.concatenate(found)
    order = np.argsort(values[:, 0], kind="stable")
    return values[order, 0], values[order, 1:], order + 2


def _check_count(count: int) -> None:
    require(count <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} assignments")


def _numbers(path: Path, first: int, text: str, rows: int, width: int) -> NDArray[np.int32]:
    """Return (rows, width) numbers of text that is known to be numbers and commas; layer, then experts."""
    values = np.fromstring(text, dtype=np.int64, sep=",").reshape(rows, width)
    for name, columns, limit in (("layer", values[:, :1], 1 << 20), ("expert", values[:, 1:], MAX_EXPERTS)):
        beyond = np.flatnonzero((columns >= limit).any(axis=1))
        if len(beyond):
            row = int(beyond[0])
            raise InputError(
                f"{name} must be in 0..{limit - 1}, not {columns[row].max()}", file=path, key=at(first + row)
            )
    return values.astype(np.int32)


def _trace(
    layer: NDArray[np.int32], experts: NDArray[np.int32], lines: NDArray[np.int64], shape: TraceShape
) -> Trace:
    again = repeated(experts)
    if len(again):
        row = int(again[np.argmin(lines[again])])
        raise InputError(f"must have distinct experts, not {experts[row].tolist()}", key=at(int(lines[row])))
    numbers, counts = np.unique(layer, return_counts=True)
    require(len(numbers) <= MAX_LAYERS, f"must have at most {MAX_LAYERS} layers, not {len(numbers)}")
    most = int(counts.max())
    check_size((len(numbers), most, experts.shape[1]))
    ids = np.full((len(numbers), most, experts.shape[1]), NO_EXPERT, np.int32)
    for rows, end, count in zip(ids, np.cumsum(counts), counts, strict=True):
        rows[:count] = experts[end - count : end]
    return make_trace(
        "llama-cpp", ids, shape, layers=numbers.astype(np.int64), aligned=bool((counts == most).all())
    )


def write_activations(trace: Trace) -> str:
    """Return a trace as ``layer,expert``, a layer after the other; requests and phases are lost."""
    ids = _complete(trace)
    lines = [ACTIVATIONS]
    for number, rows in zip(trace.layers.tolist(), ids, strict=True):
        lines += [f"{number},{expert}" for expert in rows.ravel().tolist()]
    return "\n".join(lines) + "\n"


def write_tokens(trace: Trace) -> str:
    """Return a trace as ``layer_id,expert_ids``, a layer after the other; requests and phases are lost."""
    ids = _complete(trace)
    lines = [TOKENS]
    for number, rows in zip(trace.layers.tolist(), ids, strict=True):
        lines += [f"{number},{' '.join(map(str, row))}" for row in rows.tolist()]
    return "\n".join(lines) + "\n"


def _complete(trace: Trace) -> list[NDArray[np.int32]]:
    """Return the tokens of each layer that were recorded there: the first ones, of some layer all.

    :class:`InputError` where others are missing: what is behind them would come back as other tokens.
    """
    recorded = (trace.ids != NO_EXPERT).any(axis=2)
    counts = recorded.sum(axis=1)
    first_ones = (recorded == (np.arange(trace.num_tokens) < counts[:, None])).all(axis=1)
    if counts.max() < trace.num_tokens or not first_ones.all():
        layer = int(np.argmin(first_ones))
        raise InputError(
            f"must be there for every token in llama-cpp, unlike layer {trace.layers[layer]}, token"
            f" {np.argmin(recorded[layer])}",
            key="ids",
        )
    found = []
    for number, rows in zip(trace.layers, trace.ids, strict=True):
        kept = rows[(rows != NO_EXPERT).any(axis=1)]
        if (kept == NO_EXPERT).any():
            raise InputError(
                f"must have {trace.top_k} experts for every token in llama-cpp, unlike layer {number}",
                key="ids",
            )
        found.append(kept)
    return found
