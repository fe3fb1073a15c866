"""DynaNDE-Simulator's dense CSV: ``layer_id,token_id,expert_0,...``, a score for each expert.

Written for the trace generator of github.com/Akash-N-Pai/DynaNDE-Simulator at 28b35d8, whose format is read
and of whose files none is shipped. An expert that is not chosen has the score 0. The generator writes a file
for each layer, with ``layer_id`` 0 and the layer in the file's name: where all of a file's ``layer_id`` are
0, a ``_layer<N>_`` in its name is the layer. Tokens of a layer are ordered by ``token_id``, of which it has
each once. A token's experts come out by descending score, of equals the lowest first; the scores are the
trace's weights. Row t is the same token in every layer if all have the same ``token_id``. A chosen expert
whose score was rounded to 0 is not in the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.text import at, read_header, read_rows
from sim.routing.trace import MAX_ASSIGNMENTS, MAX_SLOTS, NO_EXPERT, Trace, TraceShape, check_size, make_trace
from spec.errors import InputError, require
from spec.model import MAX_EXPERTS, MAX_LAYERS

MAX_SCORE = 1e30
ROWS_AT_A_TIME = 512
COLUMNS = ("layer_id", "token_id")
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{0,40})?(?:e[-+]?[0-9]{1,2})?"
_LAYER_IN_NAME = re.compile(r"_layer([0-9]{1,4})_")


def is_header(line: str) -> bool:
    """Whether a CSV file's first line begins as that of such a trace."""
    return line.startswith(",".join(COLUMNS) + ",")


def read(path: Path, shape: TraceShape) -> Trace:
    """Return the trace of a dense CSV."""
    try:
        num_experts = _num_experts(read_header(path))
        if shape.num_experts is not None:
            require(num_experts == shape.num_experts, f"has {num_experts} experts, not {shape.num_experts}")
        places, ids, scores = _rows(path, num_experts)
        return _trace(path, places, ids, scores, num_experts, shape)
    except InputError as error:
        raise error.at(file=path) from None


def _num_experts(header: str) -> int:
    columns = header.split(",")
    number = len(columns) - len(COLUMNS)
    if not 1 <= number <= MAX_EXPERTS:
        raise InputError(f"must name 1 to {MAX_EXPERTS} experts, not {number}", key=at(1))
    for index, name in enumerate(columns[len(COLUMNS) :]):
        if name != f"expert_{index}":
            raise InputError(f"must name expert_{index} in column {index + 3}, not {name[:40]!r}", key=at(1))
    return number


def _rows(path: Path, num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return (N, 2) layers and tokens, (N, slots) experts and (N, slots) scores of the rows."""
    row = re.compile(rf"[0-9]{{1,4}},[0-9]{{1,9}}(?:,{_NUMBER}){{{num_experts}}}")
    form = f"layer_id, token_id and {num_experts} scores from 0"
    places, ids, scores = [], [], []
    count = 0
    for first, rows in read_rows(path, form, row):
        values = np.fromstring(",".join(rows), dtype=np.float64, sep=",").reshape(len(rows), -1)
        large = np.flatnonzero((values[:, 2:] > MAX_SCORE).any(axis=1))
        if len(large):
            raise InputError(f"must have scores of at most {MAX_SCORE:g}", key=at(first + int(large[0])))
        dense = values[:, 2:].astype(np.float32)
        chosen = (dense > 0).sum(axis=1)
        many = np.flatnonzero(chosen > MAX_SLOTS)
        if len(many):
            raise InputError(
                f"must have at most {MAX_SLOTS} scores above 0, not {chosen[many[0]]}",
                key=at(first + int(many[0])),
            )
        slots = max(1, int(chosen.max()))
        order = np.argsort(-dense, axis=1, kind="stable")[:, :slots]
        kept = np.take_along_axis(dense, order, axis=1)
        places.append(values[:, :2].astype(np.int64))
        ids.append(np.where(kept > 0, order, NO_EXPERT).astype(np.int32))
        scores.append(kept)
        count += kept.size
        require(count <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} assignments")
    require(bool(places), "has no rows")
    slots = max(part.shape[1] for part in ids)
    return (
        np.concatenate(places),
        np.concatenate([_widened(part, slots, NO_EXPERT) for part in ids]),
        np.concatenate([_widened(part, slots, 0) for part in scores]),
    )


def _widened(rows: NDArray[Any], slots: int, fill: int) -> NDArray[Any]:
    return np.pad(rows, ((0, 0), (0, slots - rows.shape[1])), constant_values=fill)


def _trace(
    path: Path,
    places: NDArray[np.int64],
    ids: NDArray[np.int32],
    scores: NDArray[np.float32],
    num_experts: int,
    shape: TraceShape,
) -> Trace:
    order = np.lexsort((places[:, 1], places[:, 0]))
    places, ids, scores = places[order], ids[order], scores[order]
    same = np.flatnonzero((places[1:] == places[:-1]).all(axis=1))
    if len(same):
        # The sort is stable: of equals the later line is the second.
        row = int(same[0]) + 1
        layer, token = (int(part) for part in places[row])
        raise InputError(f"has layer {layer}, token {token} a second time", key=at(int(order[row]) + 2))
    numbers, counts = np.unique(places[:, 0], return_counts=True)
    require(len(numbers) <= MAX_LAYERS, f"must have at most {MAX_LAYERS} layers, not {len(numbers)}")
    most, slots = int(counts.max()), ids.shape[1]
    check_size((len(numbers), most, slots))
    by_layer = np.full((len(numbers), most, slots), NO_EXPERT, np.int32)
    weights = np.zeros(by_layer.shape, np.float32)
    tokens = []
    for index, (end, count) in enumerate(zip(np.cumsum(counts), counts, strict=True)):
        by_layer[index, :count] = ids[end - count : end]
        weights[index, :count] = scores[end - count : end]
        tokens.append(places[end - count : end, 1])
    named = _LAYER_IN_NAME.search(path.name)
    if numbers.tolist() == [0] and named:
        numbers = np.array([int(named[1])])
    return make_trace(
        "dynande",
        by_layer,
        shape,
        num_experts=num_experts,
        weights=weights,
        layers=numbers,
        aligned=all(np.array_equal(one, tokens[0]) for one in tokens),
    )


def write(trace: Trace) -> str:
    """Return a trace as one dense CSV of all layers.

    Without weights every chosen expert has the score 1, and the order of a token's experts is lost. Weights
    have to be above 0, since 0 says that an expert is not chosen.
    """
    require(int(trace.layers[-1]) < 10_000, "must be below 10000 in dynande", key="layers")
    lines = [",".join([*COLUMNS, *(f"expert_{index}" for index in range(trace.num_experts))])]
    for index, number in enumerate(trace.layers.tolist()):
        rows = trace.ids[index]
        weights = np.ones(rows.shape, np.float32) if trace.weights is None else trace.weights[index]
        token, slot = np.nonzero(rows != NO_EXPERT)
        if (weights[token, slot] <= 0).any():
            raise InputError(f"must be above 0 in dynande, unlike one of layer {number}", key="weights")
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            some = np.s_[start : start + ROWS_AT_A_TIME]
            lines += _dense_lines(number, start, rows[some], weights[some], trace.num_experts)
    return "\n".join(lines) + "\n"


def _dense_lines(
    layer: int, first: int, rows: NDArray[np.int32], weights: NDArray[np.float32], num_experts: int
) -> list[str]:
    token, slot = np.nonzero(rows != NO_EXPERT)
    cells = np.full((len(rows), num_experts), "0", dtype="U16")
    # The shortest text that float32 reads back exactly.
    cells[token, rows[token, slot]] = [f"{float(weight):.9g}" for weight in weights[token, slot]]
    return [f"{layer},{place},{','.join(row)}" for place, row in enumerate(cells.tolist(), first)]
