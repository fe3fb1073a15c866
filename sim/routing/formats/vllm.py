"""vLLM's ``routed_experts`` in the responses of its OpenAI server, or as the array of an offline run.

Written for vLLM 0.21 (docs.vllm.ai/en/v0.21.0/training/routed_experts_replay) and for the text form of later
versions (pull requests 38939, 51906):

* lists: ``prompt_routed_experts`` (prompt tokens, MoE layers, top_k) of the response, ``routed_experts``
  (generated tokens, MoE layers, top_k) of each choice;
* text: ``routed_experts`` of each choice, the base64 of a ``.npy`` with the prompt's tokens and the generated
  ones but the last, which has no forward pass. ``usage.prompt_tokens`` says where the prompt ends; without it
  phases are unknown. Of several choices only the first brings the prompt, which they share.

Row t is the same token in every layer; there is no padding; shared experts are not counted; ids are logical
experts unless the server ran with EPLB; layers are counted among the MoE layers.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.archive import array_of_bytes, read_array
from sim.routing.formats.requests import Part, joined, parts_of
from sim.routing.formats.values import check_distinct, from_base64, kind, mapping, nested_ids, whole
from sim.routing.trace import DECODE, PREFILL, UNKNOWN, Trace, TraceShape, make_trace
from spec.errors import InputError, require
from spec.model import MAX_EXPERTS

PROMPT, GENERATED = "prompt_routed_experts", "routed_experts"


def is_response(record: dict[str, Any]) -> bool:
    """Whether a JSON object is such a response."""
    choices = record.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return PROMPT in record or (isinstance(first, dict) and GENERATED in first)


def read_array_file(path: Path, shape: TraceShape) -> Trace:
    """Return the trace of a ``.npy`` (tokens, MoE layers, top_k) of one request."""
    ids = read_array(path)
    try:
        _check(ids, GENERATED)
        return make_trace("vllm", np.ascontiguousarray(ids.transpose(1, 0, 2)), shape)
    except InputError as error:
        raise error.at(file=path) from None


def read(records: Iterator[tuple[str | None, Any]], shape: TraceShape) -> Trace:
    """Return the trace of responses, one request for each choice."""
    parts: list[Part] = []
    requests = 0
    for place, record in records:
        try:
            parts += (found := _parts(mapping(record, "response"), requests))
        except InputError as error:
            raise InputError(error.rule, key=f"{place}: {error.key}" if place else error.key) from None
        requests = max((part.request + 1 for part in found), default=requests)
    return joined("vllm", parts, shape)


def _parts(record: dict[str, Any], request: int) -> list[Part]:
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices:
        raise InputError("must be a list of choices", key="choices")
    usage = mapping(record.get("usage") or {}, "usage")
    parts = []
    prompt = record.get(PROMPT)
    if prompt is not None:
        ids = _array(prompt, PROMPT)
        parts.append(Part(ids, request, PREFILL, 0))
    for number, choice in enumerate(choices):
        name = f"choices[{number}].{GENERATED}"
        value = mapping(choice, f"choices[{number}]").get(GENERATED)
        if value is None:
            raise InputError("is missing: was the server run with --enable-return-routed-experts?", key=name)
        ids = _array(value, name)
        if prompt is not None:
            start = len(parts[0].ids)
            parts.append(Part(ids, request + number, DECODE, start))
        elif isinstance(value, list):
            parts.append(Part(ids, request + number, DECODE, 0))
        elif "prompt_tokens" not in usage:
            parts.append(Part(ids, request + number, UNKNOWN, 0))
        else:
            length = whole(usage, "prompt_tokens")
            require(
                length <= len(ids),
                f"must be at most the {len(ids)} rows, not {length}",
                key="usage.prompt_tokens",
            )
            if number == 0:
                parts.append(Part(ids[:length], request, PREFILL, 0))
            parts.append(Part(ids[length:], request + number, DECODE, length))
    return parts


def _array(value: Any, name: str) -> NDArray[np.integer]:
    ids: NDArray[np.integer]
    if isinstance(value, str):
        try:
            ids = array_of_bytes(from_base64(value, name))
        except InputError as error:
            raise error.at(key=name) from None
        _check(ids, name)
    elif isinstance(value, list):
        ids = nested_ids(value, name, 3)
        if ids.size:
            check_distinct(ids, name)
    else:
        raise InputError(f"must be lists or base64, not {kind(value)}", key=name)
    return ids


def _check(ids: NDArray[Any], name: str) -> None:
    require(
        ids.ndim == 3 and ids.dtype.kind in "iu" and 0 not in ids.shape[1:],
        f"must be integers (tokens, layers, top_k), not {ids.dtype} of shape {ids.shape}",
        key=name,
    )
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        require(
            low >= 0 and high < MAX_EXPERTS,
            f"must be in 0..{MAX_EXPERTS - 1}, but hold {low}..{high}",
            key=name,
        )
        check_distinct(ids, name)


def write(trace: Trace) -> str:
    """Return a trace as responses, a JSON object a line, one for each request.

    Lists where the phases of a request are known, else the text form without ``usage``.
    """
    lines = []
    for number, parts in parts_of(trace, "vllm"):
        response: dict[str, Any] = {"id": f"cmpl-{number}"}
        whole_request, prompt, generated = parts[UNKNOWN], parts[PREFILL], parts[DECODE]
        if whole_request is None:
            response[PROMPT] = None if prompt is None else prompt.tolist()
            routed: Any = [] if generated is None else generated.tolist()
        else:
            buffer = io.BytesIO()
            np.save(buffer, whole_request)
            response[PROMPT] = None
            routed = base64.b64encode(buffer.getvalue()).decode()
        response["choices"] = [{"index": 0, GENERATED: routed}]
        lines.append(json.dumps(response, separators=(",", ":")) + "\n")
    return "".join(lines)
