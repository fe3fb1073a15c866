"""Requests of a serving engine, put together to a trace and taken apart again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.routing.trace import MAX_ASSIGNMENTS, NO_EXPERT, PHASES, UNKNOWN, Trace, TraceShape, make_trace
from spec.errors import InputError, require


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens of one request and phase that follow each other.

    Attributes
    ----------
    ids : (tokens, layers, top_k) integers.
    request, phase : of all tokens.
    start : position of the first.
    """

    ids: NDArray[np.integer]
    request: int
    phase: int
    start: int


def joined(
    source: str, parts: list[Part], shape: TraceShape, layers: NDArray[np.int64] | None = None
) -> Trace:
    """Return the trace of all parts in order."""
    parts = [part for part in parts if len(part.ids)]
    require(bool(parts), "has no tokens")
    shapes = {part.ids.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise InputError(f"must have one number of layers and experts, not {sorted(shapes)} (layers, top_k)")
    size = sum(part.ids.size for part in parts)
    require(size <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} assignments, not {size}")
    lengths = [len(part.ids) for part in parts]
    ids = np.concatenate([part.ids.astype(np.int32) for part in parts])
    return make_trace(
        source,
        np.ascontiguousarray(ids.transpose(1, 0, 2)),
        shape,
        layers=layers,
        phase=np.repeat(np.array([part.phase for part in parts], np.uint8), lengths),
        request=np.repeat(np.array([part.request for part in parts], np.int64), lengths),
        position=np.concatenate([part.start + np.arange(len(part.ids)) for part in parts]),
    )


def parts_of(trace: Trace, form: str) -> Iterator[tuple[int, list[NDArray[np.int32] | None]]]:
    """Yield each request's number and its (tokens, layers, top_k) ids by phase.

    None stands for a phase without tokens. A request with tokens of unknown phase has them all under
    ``unknown``. ``form`` is the format's name, for the error that tells that it has no place for a token
    without experts.
    """
    require(trace.aligned, f"is not aligned, which {form} cannot say", key="aligned")
    gaps = np.argwhere((trace.ids == NO_EXPERT).any(axis=2))
    if len(gaps):
        layer, token = (int(part) for part in gaps[0])
        raise InputError(
            f"must have {trace.top_k} experts for every token in {form}, unlike layer {trace.layers[layer]},"
            f" token {token}",
            key="ids",
        )
    order = np.argsort(trace.request, kind="stable")
    numbers, starts = np.unique(trace.request[order], return_index=True)
    for number, tokens in zip(numbers, np.split(order, starts[1:]), strict=True):
        ids = trace.ids[:, tokens].transpose(1, 0, 2)
        phase = trace.phase[tokens]
        if (phase == UNKNOWN).any():
            phase = np.full(len(tokens), UNKNOWN, np.uint8)
        yield (
            int(number),
            [ids[phase == kind] if (phase == kind).any() else None for kind in range(len(PHASES))],
        )
