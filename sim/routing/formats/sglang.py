"""SGLang's ``routed_experts``: base64 of int32 in the responses of its servers.

Written for SGLang after pull request 12162 and docs.sglang.io/docs/basic_usage/openai_api_completions: it
lies in ``sgl_ext`` of a choice (or of the response), or in ``meta_info`` of the native ``/generate``. It is
flat, of logical shape (tokens, layers, top_k), from token ``routed_experts_start_len`` to the last but one;
neither layers nor top_k are in the response, so they are taken from the caller, and the layers, where the
response counts its tokens (prompt and completion, or all), from those.

Row t is the same token in every layer; there is no padding; the layers are all of the model's; a dense one
has the same id in every slot of every token: it is left out (with top_k = 1 it cannot be told apart and
stays). Fused shared experts are not part of top_k. Phases come from the count of prompt tokens.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.formats.requests import Part, joined, parts_of
from sim.routing.formats.values import check_distinct, from_base64, kind, mapping, whole
from sim.routing.trace import DECODE, PREFILL, UNKNOWN, Trace, TraceShape
from spec.errors import InputError, require
from spec.model import MAX_EXPERTS, MAX_LAYERS

ROUTED, START = "routed_experts", "routed_experts_start_len"
PROMPT, COMPLETION, TOTAL = "prompt_tokens", "completion_tokens", "total_tokens"


def is_response(record: dict[str, Any]) -> bool:
    """Whether a JSON object is such a response."""
    choices = record.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return "meta_info" in record or "sgl_ext" in record or (isinstance(first, dict) and "sgl_ext" in first)


def read(records: Iterator[tuple[str | None, Any]], shape: TraceShape) -> Trace:
    """Return the trace of responses, one request for each choice."""
    parts: list[Part] = []
    request = 0
    for place, record in records:
        try:
            for name, text, usage in _texts(mapping(record, "response")):
                parts += _parts(name, text, usage, request, shape)
                request += 1
        except InputError as error:
            raise InputError(error.rule, key=f"{place}: {error.key}" if place else error.key) from None
    parts = [part for part in parts if len(part.ids)]
    require(bool(parts), "has no tokens")
    num_layers = {part.ids.shape[1] for part in parts}
    if len(num_layers) > 1:
        raise InputError(f"must have one number of layers, not {sorted(num_layers)}")
    shape.check_layers(num_layers.pop())
    routed = _routed_layers(parts)
    parts = [Part(part.ids[:, routed], part.request, part.phase, part.start) for part in parts]
    for part in parts:
        check_distinct(part.ids, f"request {part.request}")
    # (Of the layers, dense ones are left out by now.)
    return joined("sglang", parts, replace(shape, exact_layers=False), layers=np.flatnonzero(routed))


def _texts(record: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return name, value and counts of each text of a response."""
    if "meta_info" in record:
        meta = mapping(record["meta_info"], "meta_info")
        return [(f"meta_info.{ROUTED}", meta.get(ROUTED), meta)]
    usage = mapping(record.get("usage") or {}, "usage")
    choices = record.get("choices")
    if choices is None or "sgl_ext" in record:
        extension = mapping(record.get("sgl_ext"), "sgl_ext")
        return [(f"sgl_ext.{ROUTED}", extension.get(ROUTED), usage | extension)]
    if not isinstance(choices, list) or not choices:
        raise InputError("must be a list of choices", key="choices")
    found = []
    for number, choice in enumerate(choices):
        name = f"choices[{number}]"
        extension = mapping(mapping(choice, name).get("sgl_ext"), f"{name}.sgl_ext")
        counts = usage
        if len(choices) > 1:
            # The generated tokens are those of all choices together: they say nothing about one.
            counts = {key: value for key, value in usage.items() if key not in (COMPLETION, TOTAL)}
        found.append((f"{name}.sgl_ext.{ROUTED}", extension.get(ROUTED), counts | extension))
    return found


def _parts(name: str, text: Any, usage: dict[str, Any], request: int, shape: TraceShape) -> list[Part]:
    if not isinstance(text, str):
        raise InputError(f"must be base64, not {kind(text)}", key=name)
    data = from_base64(text, name)
    require(len(data) % 4 == 0, f"must be int32, not {len(data)} bytes", key=name)
    ids = np.frombuffer(data, "<i4")
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        require(
            low >= 0 and high < MAX_EXPERTS,
            f"must be in 0..{MAX_EXPERTS - 1}, but hold {low}..{high}",
            key=name,
        )
    start = whole(usage, START, 0)
    tokens = None
    if PROMPT in usage and COMPLETION in usage:
        tokens = whole(usage, PROMPT) + whole(usage, COMPLETION)
    elif TOTAL in usage:
        tokens = whole(usage, TOTAL)
    if tokens is not None:
        # The last token has no forward pass.
        tokens -= 1 + start
        require(tokens >= 0, f"must be at most the number of tokens, not {start}", key=START)
    ids = _shaped(ids, name, tokens, shape)
    if PROMPT not in usage:
        return [Part(ids, request, UNKNOWN, start)]
    prompt = min(max(whole(usage, PROMPT) - start, 0), len(ids))
    return [
        Part(ids[:prompt], request, PREFILL, start),
        Part(ids[prompt:], request, DECODE, start + prompt),
    ]


def _shaped(ids: NDArray[np.int32], name: str, tokens: int | None, shape: TraceShape) -> NDArray[np.int32]:
    """Return flat ids as (tokens, layers, top_k)."""
    if shape.top_k is None:
        raise InputError("has no shape: say how many experts a token has (top_k)", key=name)
    layers = shape.num_layers
    if tokens:
        layers = max(1, ids.size // (tokens * shape.top_k))
    if layers is None:
        raise InputError("has no shape: say how many layers there are (num_layers)", key=name)
    require(layers <= MAX_LAYERS, f"must have at most {MAX_LAYERS} layers, not {layers}", key=name)
    size = layers * shape.top_k
    whole_rows = ids.size % size == 0 and (tokens is None or ids.size == tokens * size)
    require(
        whole_rows,
        f"must be {'tokens' if tokens is None else tokens} x {layers} layers x top_k={shape.top_k} ids, not"
        f" {ids.size}",
        key=name,
    )
    return ids.reshape(-1, layers, shape.top_k)


def _routed_layers(parts: list[Part]) -> NDArray[np.bool_]:
    """Return (layers,) whether a layer routes: it does if some token's slots differ."""
    if parts[0].ids.shape[2] == 1:
        return np.ones(parts[0].ids.shape[1], np.bool_)
    routed = np.zeros(parts[0].ids.shape[1], np.bool_)
    for part in parts:
        routed |= (part.ids != part.ids[:, :, :1]).any(axis=(0, 2))
    require(bool(routed.any()), "has no layer whose tokens have distinct experts")
    return routed


def write(trace: Trace) -> str:
    """Return a trace as responses of ``/generate``, a JSON object a line, one for each request.

    Layers that the trace has not are dense ones, of zeros; with ``top_k`` = 1, where a reader could not tell
    these apart, :class:`InputError`. Where a request's phases are unknown only all of its tokens are counted.
    """
    num_layers = int(trace.layers[-1]) + 1
    require(num_layers <= MAX_LAYERS, f"must be below {MAX_LAYERS} in sglang", key="layers")
    if trace.top_k == 1 and trace.num_layers < num_layers:
        missing = int(np.setdiff1d(np.arange(num_layers), trace.layers)[0])
        raise InputError(
            f"must be all from 0 in sglang where top_k is 1 (nothing tells a dense layer), but {missing} is"
            " not there",
            key="layers",
        )
    lines = []
    for number, parts in parts_of(trace, "sglang"):
        there = [part for part in parts if part is not None]
        routed = np.concatenate(there)
        ids = np.zeros((len(routed), num_layers, trace.top_k), "<i4")
        ids[:, trace.layers] = routed
        meta: dict[str, Any] = {"id": str(number), ROUTED: base64.b64encode(ids.tobytes()).decode()}
        if parts[UNKNOWN] is None:
            prompt = parts[PREFILL]
            meta[PROMPT] = 0 if prompt is None else len(prompt)
            meta[COMPLETION] = len(routed) - meta[PROMPT] + 1
        else:
            meta[TOTAL] = len(routed) + 1
        lines.append(json.dumps({"text": "", "meta_info": meta}, separators=(",", ":")) + "\n")
    return "".join(lines)
