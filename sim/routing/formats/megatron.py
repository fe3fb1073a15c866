"""Megatron-core's router trace: JSON lines, a record for each layer and batch of a rank.

Written for the router dump of github.com/NVIDIA/Megatron-LM pull requests 5220 and 7488: ``step``, ``stage``,
``block``, ``layer``, ``rank``, ``num_tokens``, ``topk`` and ``top_indices`` (num_tokens, topk), nested or
flat. Other keys (references to the sidecar of logits among them) are not read.

A batch is what one rank routes in one step and stage; it becomes a request of the trace. Row t is the same
token in every layer if all layers have the same batches; else the trace is not aligned. ``stage`` says the
phase if it is ``prefill`` or ``decode``. Padding tokens of a batch are not marked by the format and stay.
Layers of different blocks (the decoder, a multi-token prediction head) may not share a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.formats.values import check_distinct, kind, mapping, nested_ids, whole
from sim.routing.trace import (
    MAX_ASSIGNMENTS,
    MAX_SLOTS,
    NO_EXPERT,
    PHASES,
    UNKNOWN,
    Trace,
    TraceShape,
    check_size,
    make_trace,
)
from spec.errors import InputError, require, require_range
from spec.model import MAX_LAYERS

MAX_NAME = 64


@dataclass(frozen=True, eq=False)
class _Batch:
    """A record: the order that it comes in, whose it is, and its (tokens, top_k) ids."""

    step: int
    rank: int
    stage: str
    ids: NDArray[np.int64]

    @property
    def key(self) -> tuple[int, int, str, int]:
        return self.step, self.rank, self.stage, len(self.ids)


def is_record(record: dict[str, Any]) -> bool:
    """Whether a JSON object is such a record."""
    return "top_indices" in record


def read(records: Iterator[tuple[str | None, Any]], shape: TraceShape) -> Trace:
    """Return the trace of all records; the batches of a layer are ordered by step, then rank."""
    layers: dict[int, list[_Batch]] = {}
    blocks: dict[int, str] = {}
    top_k, num_experts, size = None, None, 0
    for place, value in records:
        try:
            record = mapping(value, "record")
            layer, block, batch = _batch(record)
            top_k = top_k or batch.ids.shape[1]
            require(
                batch.ids.shape[1] == top_k,
                f"must be {top_k} as before, not {batch.ids.shape[1]}",
                key="topk",
            )
            known = blocks.setdefault(layer, block)
            require(
                block == known, f"must be {known!r} as before for layer {layer}, not {block!r}", key="block"
            )
            size += batch.ids.size
            require(
                size <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} assignments", key="top_indices"
            )
            num_experts = max(num_experts or 0, whole(record, "num_experts", 0)) or None
            layers.setdefault(layer, []).append(batch)
        except InputError as error:
            raise InputError(error.rule, key=f"{place}: {error.key}" if place else error.key) from None
    require(bool(layers), "has no records")
    return _trace(
        {layer: sorted(layers[layer], key=lambda b: (b.step, b.rank)) for layer in sorted(layers)},
        num_experts,
        shape,
    )


def _batch(record: dict[str, Any]) -> tuple[int, str, _Batch]:
    layer = whole(record, "layer")
    require_range("layer", layer, 0, 1 << 20)
    num_tokens, top_k = whole(record, "num_tokens"), whole(record, "topk")
    require_range("topk", top_k, 1, MAX_SLOTS)
    value = record.get("top_indices")
    flat = isinstance(value, list) and bool(value) and not isinstance(value[0], list)
    ids = nested_ids(value, "top_indices", 1 if flat else 2)
    if ids.size == 0:
        ids = ids.reshape(0, top_k)
    elif flat and ids.size == num_tokens * top_k:
        ids = ids.reshape(num_tokens, top_k)
    require(
        ids.shape == (num_tokens, top_k),
        f"must have num_tokens={num_tokens} rows of topk={top_k}, not shape {ids.shape}",
        key="top_indices",
    )
    if ids.size:
        check_distinct(ids, "top_indices")
    batch = _Batch(whole(record, "step"), whole(record, "rank", 0), _name(record, "stage"), ids)
    return layer, _name(record, "block"), batch


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key, "")
    if value is None or (type(value) is int and abs(value) < 1 << 40):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"must be a text or a whole number, not {kind(value)}", key=key)
    require(len(value) <= MAX_NAME, f"must be at most {MAX_NAME} characters, not {len(value)}", key=key)
    return value


def _trace(layers: dict[int, list[_Batch]], num_experts: int | None, shape: TraceShape) -> Trace:
    require(len(layers) <= MAX_LAYERS, f"must have at most {MAX_LAYERS} layers, not {len(layers)}")
    batches = list(layers.values())
    tokens = [sum(len(batch.ids) for batch in one) for one in batches]
    top_k = batches[0][0].ids.shape[1]
    check_size((len(layers), max(tokens), top_k))
    ids = np.full((len(layers), max(tokens), top_k), NO_EXPERT, np.int32)
    for rows, one, count in zip(ids, batches, tokens, strict=True):
        rows[:count] = np.concatenate([batch.ids for batch in one])
    first = [batch.key for batch in batches[0]]
    aligned = all([batch.key for batch in one] == first for one in batches)
    longest = batches[int(np.argmax(tokens))]
    lengths = [len(batch.ids) for batch in longest]
    phases = [PHASES.index(batch.stage) if batch.stage in PHASES else UNKNOWN for batch in longest]
    return make_trace(
        "megatron",
        ids,
        shape,
        num_experts=num_experts,
        layers=np.array(list(layers)),
        phase=np.repeat(np.array(phases, np.uint8), lengths),
        request=np.arange(len(longest)).repeat(lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        aligned=aligned,
    )


def write(trace: Trace) -> str:
    """Return a trace as records: a step for each run of tokens of one request and phase."""
    require(trace.aligned, "is not aligned, which megatron cannot say", key="aligned")
    if (trace.ids == NO_EXPERT).any():
        raise InputError(f"must have {trace.top_k} experts for every token in megatron", key="ids")
    changed = (np.diff(trace.request) != 0) | (np.diff(trace.phase) != 0)
    ends = [*(np.flatnonzero(changed) + 1).tolist(), trace.num_tokens]
    lines = []
    for step, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        for number, rows in zip(trace.layers.tolist(), trace.ids[:, start:end], strict=True):
            record = {
                "step": step,
                "stage": PHASES[trace.phase[start]],
                "block": "decoder",
                "layer": number,
                "rank": 0,
                "num_tokens": end - start,
                "topk": trace.top_k,
                "num_experts": trace.num_experts,
                "top_indices": rows.tolist(),
            }
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    return "".join(lines)
