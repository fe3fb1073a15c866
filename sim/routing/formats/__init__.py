"""Routing traces that others write, a module each: what the format says, a reader, a writer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.routing.formats import canonical, dynande, llama_cpp, loads, megatron, sglang, vllm
from sim.routing.text import read_documents, read_header
from sim.routing.trace import Trace, TraceShape
from spec.errors import InputError

SUFFIXES = (".npz", ".npy", ".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Format:
    """One format: the suffix that its files get, and its writer."""

    suffix: str
    write: Callable[[Trace], str | bytes]


FORMATS = {
    "canonical": Format(".npz", canonical.write),
    "vllm": Format(".jsonl", vllm.write),
    "sglang": Format(".jsonl", sglang.write),
    "megatron": Format(".jsonl", megatron.write),
    "llama-cpp": Format(".csv", llama_cpp.write_activations),
    "llama-cpp-tokens": Format(".csv", llama_cpp.write_tokens),
    "dynande": Format(".csv", dynande.write),
    "loads": Format(".npy", loads.write),
}


def read_trace(path: Path, shape: TraceShape, npy: str = "loads") -> Trace:
    """Return the trace of a file, whose format follows from its suffix and its first line or record.

    ``npy`` says what a ``.npy`` holds: ``loads`` (layers, batches, experts) or ``vllm``, ids (tokens,
    layers, k).
    Raises :class:`InputError` with file and place.
    """
    suffix = path.suffix
    if suffix == ".npz":
        trace = canonical.read(path, shape)
    elif suffix == ".npy":
        trace = vllm.read_array_file(path, shape) if npy == "vllm" else loads.read(path, shape)
    elif suffix == ".csv":
        trace = _read_csv(path, shape)
    elif suffix in (".json", ".jsonl"):
        try:
            trace = _read_records(path, shape)
        except InputError as error:
            raise error.at(file=path) from None
    else:
        raise InputError(f"must be a file {', '.join(SUFFIXES)}, not {path.name!r}", key="routing")
    return trace


def _read_csv(path: Path, shape: TraceShape) -> Trace:
    header = read_header(path)
    if llama_cpp.is_header(header):
        return llama_cpp.read(path, shape)
    if dynande.is_header(header):
        return dynande.read(path, shape)
    shown = repr(header if len(header) <= 40 else header[:40] + "...")
    raise InputError(
        f"must be {llama_cpp.ACTIVATIONS}, {llama_cpp.TOKENS} or {','.join(dynande.COLUMNS)},expert_0,...,"
        f" not {shown}",
        file=path,
        key="line 1",
    )


def _read_records(path: Path, shape: TraceShape) -> Trace:
    records: Iterator[tuple[str | None, Any]] = read_documents(path)
    first = next(records, None)
    if first is None:
        raise InputError("has no records")
    place, record = first
    known = isinstance(record, dict)
    for is_one, read in (
        (megatron.is_record, megatron.read),
        (sglang.is_response, sglang.read),
        (vllm.is_response, vllm.read),
    ):
        if known and is_one(record):
            return read(itertools.chain([first], records), shape)
    raise InputError("must be a response with routed_experts or a record with top_indices", key=place)
