"""Check the float golden layer against vectors recorded from Hugging Face blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golden.layer import LayerResult, layer
from golden.vectors import Vector, open_vector, parse_vector
from sim.progress import track
from spec.errors import InputError, require

COMBINE_TOLERANCE = 1e-6
"""Bound on the largest error of a combine weight, times max(1, largest reference weight)."""

OUTPUT_TOLERANCE = 1e-5
"""Bound on the largest error of an output value, relative to the outputs' standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One vector's result.

    ``family`` and the errors are None where the file did not get that far; ``reason`` is one line for
    a case that is not ``ok``, else None.
    """

    file: str
    family: str | None
    combine_max_abs_err: float | None
    output_rel_err: float | None
    ok: bool
    reason: str | None


def check_folder(folder: Path) -> list[Case]:
    """Return a case for each ``*.npz`` of a folder, by name.

    A file that breaks a rule, or is of an unknown family, is a failed case. Raises
    :class:`InputError` if the folder is none or holds no such file.
    """
    require(folder.is_dir(), "is not a folder" if folder.exists() else "does not exist", key=str(folder))
    paths = sorted(folder.glob("*.npz"))
    require(bool(paths), "holds no .npz file", key=str(folder))
    return [check_file(path) for path in track(paths, lambda path: path.name)]


def check_file(path: Path) -> Case:
    """Return one vector's case."""
    family = None
    try:
        archive = open_vector(path)
        stated = archive.meta.get("family")
        family = stated if isinstance(stated, str) else None
        vector = parse_vector(archive)
    except InputError as error:
        return Case(
            file=path.name,
            family=family,
            combine_max_abs_err=None,
            output_rel_err=None,
            ok=False,
            reason=str(error),
        )
    return compare(path.name, vector)


def compare(file: str, vector: Vector) -> Case:
    """Compute a vector's layer and compare it with what was recorded.

    A case is ok if the selected experts are the same, ``combine_max_abs_err <= 1e-6 * max(1, largest
    absolute combine weight)`` and ``output_rel_err = max |error| / std(output) <= 1e-5``, and as many
    assignments are dropped as were, where the file says how many.
    """
    result = layer(
        vector.model,
        vector.weights,
        vector.flat_tokens,
        vector.sequence_lengths,
        token_ids=vector.token_ids,
    )
    combine_error = float(np.abs(result.combine - vector.combine).max())
    combine_bound = COMBINE_TOLERANCE * max(1.0, float(np.abs(vector.combine).max()))
    output_error = float(np.abs(result.output.reshape(vector.output.shape) - vector.output).max())
    deviation = float(vector.output.std(dtype=np.float64))
    # Outputs that are all equal have no scale of their own; the error then stands for itself.
    relative = output_error / deviation if deviation > 0 else output_error
    differing = _differing_selections(vector, result)
    reasons = []
    if differing.size:
        reasons.append(f"{differing.size} tokens select other experts, first token {differing[0]}")
    dropped = int((~result.kept).sum())
    if vector.dropped_assignments not in (None, dropped):
        reasons.append(f"{dropped} assignments are dropped, not {vector.dropped_assignments}")
    if not combine_error <= combine_bound:
        reasons.append(f"combine_max_abs_err {combine_error:.3g} > {combine_bound:.3g}")
    if not relative <= OUTPUT_TOLERANCE:
        reasons.append(f"output_rel_err {relative:.3g} > {OUTPUT_TOLERANCE:.3g}")
    return Case(
        file=file,
        family=vector.family,
        combine_max_abs_err=combine_error if math.isfinite(combine_error) else None,
        output_rel_err=relative if math.isfinite(relative) else None,
        ok=not reasons,
        reason="; ".join(reasons) or None,
    )


def _differing_selections(vector: Vector, result: LayerResult) -> np.ndarray:
    """Return the tokens whose set of experts that are selected and not dropped differs."""
    expected = np.zeros(vector.combine.shape, np.bool_)
    np.logical_or.at(expected, _cells(vector.topk_indices), vector.topk_weights != 0)
    computed = np.zeros(vector.combine.shape, np.bool_)
    # A weight that float32 cannot tell from 0 is indistinguishable from a drop in the recording.
    weighted = result.weights.astype(np.float32) != 0
    np.logical_or.at(computed, _cells(result.ids), result.kept & weighted)
    return np.flatnonzero((expected != computed).any(axis=1))


def _cells(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.broadcast_to(np.arange(len(ids))[:, None], ids.shape), ids
