"""Read a vector: one MoE layer's configuration, weights, inputs and expected results (``.npz``).

The layout is described in ``tests/data/README.md``. A family's row (:mod:`spec.families`) says how the
configuration and the arrays become a model; the file is not trusted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.archive import read_archive
from golden.weights import LayerWeights, check_array, check_indices, weight_shapes
from spec.errors import InputError, require
from spec.families import Family, Take, WeightSource, load_family, warn_of_unread_keys
from spec.model import ModelSpec

MAX_META_CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Archive:
    """A vector file as read: its ``meta`` object and its arrays, nothing interpreted yet."""

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector: what goes in and what should come out.

    B sequences of S tokens, T = B * S tokens row by row, width H, E experts, k chosen.

    Attributes
    ----------
    family : name of the family's row.
    model : the layer's specification.
    weights : the layer's weights, with all experts.
    tokens : (B, S, H) float32.
    router_logits : (T, E) float32.
    topk_indices : (T, k) int64, in no stated order.
    topk_weights : (T, k) float32, 0 where an assignment was dropped.
    combine : (T, E) float32.
    output : (B, S, H) float32.
    shared_output : (B, S, H) float32, or None.
    dropped_assignments : how many assignments found no capacity, None where the file does not say.
    input_ids : (B, S) int64 token ids, where experts are chosen by them, else None.
    """

    family: str
    model: ModelSpec
    weights: LayerWeights
    tokens: NDArray[np.float32]
    router_logits: NDArray[np.float32]
    topk_indices: NDArray[np.int64]
    topk_weights: NDArray[np.float32]
    combine: NDArray[np.float32]
    output: NDArray[np.float32]
    shared_output: NDArray[np.float32] | None
    dropped_assignments: int | None
    input_ids: NDArray[np.int64] | None = None

    @property
    def flat_tokens(self) -> NDArray[np.float32]:
        """The tokens as (T, H)."""
        return self.tokens.reshape(-1, self.tokens.shape[2])

    @property
    def token_ids(self) -> NDArray[np.int64] | None:
        """The token ids as (T,), None where experts are not chosen by them."""
        return None if self.input_ids is None else self.input_ids.ravel()

    @property
    def sequence_lengths(self) -> list[int]:
        """Tokens in each sequence."""
        return [self.tokens.shape[1]] * self.tokens.shape[0]


def read_vector(path: Path) -> Vector:
    """Return the vector of a file; :class:`InputError` (one line) if it breaks any rule."""
    return parse_vector(open_vector(path))


def open_vector(path: Path) -> Archive:
    """Return a file's meta object and arrays; :class:`InputError` if they are not there."""
    arrays = read_archive(path)
    try:
        text = arrays.pop("meta", None)
        if text is None:
            raise InputError("is missing", key="meta")
        ok = text.dtype.kind == "U" and text.shape == () and text.dtype.itemsize <= 4 * MAX_META_CHARACTERS
        require(ok, f"must be one text of at most {MAX_META_CHARACTERS} characters", key="meta")
        try:
            meta = json.loads(str(text[()]))
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise InputError(f"is not valid JSON: {error}", key="meta") from None
        if not isinstance(meta, dict):
            raise InputError(f"must be a JSON object, not {type(meta).__name__}", key="meta")
    except InputError as error:
        raise error.at(file=path) from None
    return Archive(path, meta, arrays)


def parse_vector(archive: Archive) -> Vector:
    """Return the vector of an opened file; :class:`InputError` (one line) if it breaks any rule."""
    try:
        return _parse(archive)
    except InputError as error:
        raise error.at(file=archive.path) from None


def _parse(archive: Archive) -> Vector:
    meta, arrays = archive.meta, archive.arrays
    name = _meta_entry(meta, "family", str)
    try:
        family = load_family(name)
    except InputError as error:
        raise InputError(error.rule, key=f"meta.{error.key}") from None
    config = _meta_entry(meta, "config", dict)
    try:
        model = family.model(config, name=archive.path.stem)
    except InputError as error:
        raise InputError(error.rule, key=f"meta.{error.key}") from None
    warn_of_unread_keys(family, config, file=archive.path, prefix="meta.")
    applied_to = model.gating.weight_applied_to.value
    stated = meta.get("weight_applied_to", applied_to)
    require(stated == applied_to, f"must be {applied_to!r}, not {stated!r}", key="meta.weight_applied_to")
    dropped = meta.get("dropped_assignments")
    ok = "dropped_assignments" not in meta or (type(dropped) is int and dropped >= 0)
    require(ok, f"must be a whole number from 0, not {dropped!r}", key="meta.dropped_assignments")

    tokens = _array(arrays, "input")
    ok = tokens.ndim == 3 and tokens.size > 0 and tokens.shape[2] == model.d_model
    require(ok, f"must have shape (B, S, {model.d_model}), not {tokens.shape}", key="input")
    num_tokens = tokens.shape[0] * tokens.shape[1]
    per_expert = (num_tokens, model.gating.num_experts)
    per_choice = (num_tokens, model.gating.top_k)
    vector = Vector(
        family=name,
        model=model,
        weights=read_weights(family, model, arrays),
        tokens=tokens,
        router_logits=_array(arrays, "router_logits", per_expert),
        topk_indices=_indices(arrays, "topk_indices", per_choice, model.gating.num_experts),
        topk_weights=_array(arrays, "topk_weights", per_choice),
        combine=_array(arrays, "combine", per_expert),
        output=_array(arrays, "output", tokens.shape),
        shared_output=_array(arrays, "shared_output", tokens.shape) if model.d_shared else None,
        dropped_assignments=dropped,
        input_ids=(
            _indices(arrays, "input_ids", tokens.shape[:2], model.gating.hash_tokens)
            if model.gating.hash_tokens
            else None
        ),
    )
    facts = {
        "B": tokens.shape[0],
        "S": tokens.shape[1],
        "T": num_tokens,
        "H": model.d_model,
        "n_router_outputs": model.gating.num_experts,
        "top_k": model.gating.top_k,
    }
    for key, fact in facts.items():
        stated = meta.get(key, fact)
        same = type(stated) is int and stated == fact
        require(
            same, f"must be {fact}, as configuration and arrays say, not {stated!r:.80}", key=f"meta.{key}"
        )
    return vector


def read_weights(family: Family, model: ModelSpec, arrays: dict[str, NDArray[Any]]) -> LayerWeights:
    """Return a layer's weights from a family's arrays (``param/<name>``).

    Raises :class:`InputError` for an array that is missing, has another shape or dtype, or holds a
    value that is not finite, and for an array that the family does not know.
    """
    weights: dict[str, Any] = {}
    used: set[str] = set()
    for name, shape in weight_shapes(model).items():
        source = family.weights.get(name)
        if source is None:
            raise InputError(f"has no weight {name!r}, which the model needs", key=f"family {family.name}")
        if name == "hash_table":
            keys = [f"param/{source.array}"]
            weights[name] = _indices(arrays, keys[0], shape, model.gating.num_experts)
        elif source.per_expert:
            keys = [f"param/{source.array.format(e=expert)}" for expert in range(shape[0])]
            weights[name] = np.stack(
                [_read_weight(source, arrays, key, shape[1:], _rank(name)) for key in keys]
            )
        else:
            keys = [f"param/{source.array}"]
            extra = model.gating.num_identity_experts if source.identity_rows else 0
            weights[name] = _read_weight(source, arrays, keys[0], shape, _rank(name), extra)
        used.update(keys)
    for key in arrays:
        # What holds no number changes none: a shared expert of width 0 is stored as empty arrays.
        known = not key.startswith("param/") or key in used or arrays[key].size == 0
        require(known, f"unknown array in family {family.name} with this configuration", key=key)
    return LayerWeights(**weights)


def _rank(name: str) -> int:
    """Return how many axes one expert's weight has: 2 for a matrix, 1 for a bias."""
    return 1 if name.endswith("_bias") else 2


def _read_weight(
    source: WeightSource,
    arrays: dict[str, NDArray[Any]],
    key: str,
    shape: tuple[int, ...],
    rank: int,
    extra_experts: int = 0,
) -> NDArray[np.float32]:
    """Return one weight in its canonical (out, in) layout, as its own contiguous array.

    ``extra_experts`` lie behind the experts that are wanted.
    """
    out_axis = len(shape) - rank
    stored = list(shape)
    if source.take is not Take.ALL:
        stored[out_axis] *= 2
    if source.in_out:
        stored[-2:] = stored[:-3:-1]
    if extra_experts:
        stored[0] += extra_experts
    if source.stacked:
        array = _array(arrays, key, (stored[0] * stored[1], *stored[2:])).reshape(stored)
    elif source.one_row:
        array = _array(arrays, key, (1, *stored))[0]
    else:
        array = _array(arrays, key, tuple(stored))
    array = array[: shape[0]] if extra_experts else array
    if source.in_out:
        array = array.swapaxes(-1, -2)
    half = shape[out_axis]
    part = {
        Take.ALL: slice(None),
        Take.FIRST_HALF: slice(None, half),
        Take.SECOND_HALF: slice(half, None),
        Take.EVEN: slice(None, None, 2),
        Take.ODD: slice(1, None, 2),
    }[source.take]
    return np.ascontiguousarray(array[(slice(None),) * out_axis + (part,)])


def _meta_entry(meta: dict[str, Any], key: str, kind: type[Any]) -> Any:
    value = meta.get(key)
    require(isinstance(value, kind), f"must be of type {kind.__name__}, not {value!r:.80}", key=f"meta.{key}")
    return value


def _array(
    arrays: dict[str, NDArray[Any]], key: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    """Return a finite float32 array of a shape (any, if None)."""
    array = arrays.get(key)
    if array is None:
        raise InputError("is missing", key=key)
    if shape is not None:
        require(array.shape == shape, f"must have shape {shape}, not {array.shape}", key=key)
    check_array(key, array)
    return array


def _indices(
    arrays: dict[str, NDArray[Any]], key: str, shape: tuple[int, ...], limit: int
) -> NDArray[np.int64]:
    """Return an int64 array of a shape that holds numbers from 0 below a limit."""
    array = arrays.get(key)
    if array is None:
        raise InputError("is missing", key=key)
    require(array.dtype == np.int64, f"must be int64, not {array.dtype}", key=key)
    require(array.shape == shape, f"must have shape {shape}, not {array.shape}", key=key)
    check_indices(key, array, limit)
    return array
