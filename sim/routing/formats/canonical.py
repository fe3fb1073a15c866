"""The project's own trace: one ``.npz`` that holds all that :class:`~sim.routing.trace.Trace` does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.archive import read_archive
from sim.routing.trace import Trace, TraceShape, make_trace
from spec.errors import InputError, require

VERSION = 1
MAX_BYTES = 1 << 30
MAX_SOURCE = 256


def read(path: Path, shape: TraceShape) -> Trace:
    """Return the trace of an ``.npz``: ``ids`` (layers, tokens, k) or (tokens, k), all else optional."""
    arrays = read_archive(path, max_bytes=MAX_BYTES)
    try:
        return _trace(arrays, shape)
    except InputError as error:
        raise error.at(file=path) from None


def _trace(arrays: dict[str, NDArray[Any]], shape: TraceShape) -> Trace:
    if "version" in arrays:
        version = _number(arrays, "version")
        require(version == VERSION, f"must be {VERSION}, not {version}", key="version")
    ids = arrays.get("ids")
    if ids is None or ids.ndim not in (2, 3) or ids.dtype.kind not in "iu":
        raise InputError(
            "must be a (tokens, k) or (layers, tokens, k) array of integers"
            + ("" if ids is None else f", not {ids.dtype} of shape {ids.shape}"),
            key="ids",
        )
    optional: dict[str, Any] = {
        name: _integers(arrays, name) for name in ("layers", "phase", "request", "position") if name in arrays
    }
    if "phase" in optional:
        low, high = optional["phase"].min(initial=0), optional["phase"].max(initial=0)
        require(low >= 0 and high <= 2, f"must be in 0..2, but hold {low}..{high}", key="phase")
        optional["phase"] = optional["phase"].astype(np.uint8)
    if "num_experts" in arrays:
        optional["num_experts"] = _number(arrays, "num_experts")
    if "aligned" in arrays:
        aligned = arrays["aligned"]
        require(
            aligned.shape == () and aligned.dtype == np.bool_,
            f"must be one bool, not {aligned.dtype} of shape {aligned.shape}",
            key="aligned",
        )
        optional["aligned"] = bool(aligned)
    source = "npz"
    if "source" in arrays:
        text = arrays["source"]
        one = text.shape == () and text.dtype.kind == "U" and text.dtype.itemsize <= 4 * MAX_SOURCE
        require(one, f"must be one text of at most {MAX_SOURCE} characters", key="source")
        source = " ".join(str(text).split())
    if ids.ndim == 2:
        ids = ids[None]
    if "weights" in arrays:
        weights = arrays["weights"]
        require(weights.dtype == np.float32, f"must be float32, not {weights.dtype}", key="weights")
        optional["weights"] = weights[None] if weights.ndim == 2 else weights
    return make_trace(source, ids, shape, **optional)


def write(trace: Trace) -> bytes:
    """Return a trace as the bytes of an ``.npz``."""
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION),
        "source": np.array(trace.source[:MAX_SOURCE]),
        "num_experts": np.array(trace.num_experts),
        "ids": trace.ids,
        "layers": trace.layers,
        "phase": trace.phase,
        "request": trace.request,
        "position": trace.position,
        "aligned": np.array(trace.aligned),
    }
    if trace.weights is not None:
        arrays["weights"] = trace.weights
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stubs take the names for allow_pickle
    return buffer.getvalue()


def _integers(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.int64]:
    array = arrays[name]
    require(
        array.ndim == 1 and array.dtype.kind in "iu",
        f"must be a list of integers, not {array.dtype} of shape {array.shape}",
        key=name,
    )
    require(int(array.max(initial=0)) < 1 << 62, f"must be below 2^62, not {array.max(initial=0)}", key=name)
    return array.astype(np.int64)


def _number(arrays: dict[str, NDArray[Any]], name: str) -> int:
    array = arrays[name]
    require(
        array.shape == () and array.dtype.kind in "iu",
        f"must be one integer, not {array.dtype} of shape {array.shape}",
        key=name,
    )
    return int(array)
