"""Read one MoE layer of a Hugging Face model's folder: ``config.json`` and safetensors, one file or shards.

A family's row (:mod:`spec.families`) says what its tensors are called; what a tensor's dtype and the scales
beside it say decides how it is decoded (:mod:`golden.stored_formats`). Nothing of other layers is read: the
headers of the shards that hold the layer, and the bytes of its tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.stored_formats import MXFP4_GROUP, StoredMatrix, StoredWeight, decode_scales
from golden.tensor_file import MAX_HEADER_BYTES, TensorFile, read_json, shown
from golden.weights import PER_EXPERT, LayerWeights, check_indices, weight_shapes
from spec.errors import InputError, require, require_range
from spec.families import CheckpointNames, Take, WeightSource, read_config, warn_of_unread_keys
from spec.files import check_regular
from spec.model import ModelSpec

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
QUANT_METHODS = ("fp8", "mxfp4")
FP8_BLOCK = (128, 128)
PLAIN = ("F32", "F16", "BF16")
FP8 = "F8_E4M3"
FP4_PAIRS = ("U8", "I8", "F4")
FP8_SCALES = ("F32", "F16", "BF16", "F8_E8M0")
FP4_SCALES = ("U8", "F8_E8M0")
SCALE_NAMES = (("_blocks", "_scales"), (".weight", ".scale"), ("", "_scale_inv"))
"""End of a tensor's name -> end of its scales' name: gpt-oss, DeepSeek-V4, DeepSeek-V3."""
ELEMENTS_AT_ONCE = 1 << 18
"""Of a decoded matrix: few enough to stay in a cache."""
PIECE_STEPS = 8
"""So many times these are decoded by a thread in one go."""
PIECES_ALONE = 8
"""With fewer pieces no threads are started."""


class Checkpoint:
    """A model's folder. Opening it reads its configuration and the names of its tensors.

    Raises :class:`InputError` (one line, with file and tensor) for whatever is not sound.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family, self.config = read_config(folder / CONFIG)
        self._files: dict[str, TensorFile] = {}
        whole, index = folder / WHOLE, folder / INDEX
        self.listing = index if index.exists() and not whole.exists() else whole
        """The file that says which tensors there are."""
        if self.listing is index:
            self.places = _read_index(index)
        else:
            if not whole.exists():
                raise InputError(f"has neither {WHOLE} nor {INDEX}", file=folder)
            self.places = dict.fromkeys(self.file(WHOLE).tensors, WHOLE)

    def file(self, name: str) -> TensorFile:
        """Return one of the folder's files, opened once."""
        if name not in self._files:
            self._files[name] = TensorFile(self.folder / name)
        return self._files[name]

    @cached_property
    def names(self) -> CheckpointNames:
        """The family's names of tensors."""
        names = self.family.checkpoint
        if names is None:
            raise InputError(f"family {self.family.name} has no names of tensors", file=self.folder)
        return names

    @cached_property
    def layers(self) -> dict[str, tuple[int, str]]:
        """MoE layers by label (``model.layers.3``): number, beginning of the tensors' names."""
        found = {}
        routers = "|".join(re.escape(source.array) for source in self.sources("router"))
        for pattern in self.names.layers:
            before, after = map(re.escape, pattern.split("{layer}"))
            match = re.compile(f"(({before}(0|[1-9][0-9]{{0,5}})){after})(?:{routers})").fullmatch
            for name in self.places:
                if hit := match(name):
                    beginning, label, number = hit.groups()
                    found[label] = (int(number), beginning)
        if not found:
            raise InputError(
                f"has no router of an MoE layer by a name of family {self.family.name}, such as"
                f" {self.names.layers[0]}{self.sources('router')[0].array}",
                file=self.listing,
            )
        return found

    def sources(self, weight: str) -> list[WeightSource]:
        """Return where a weight may lie."""
        own = self.names.weights.get(weight)
        vector = self.family.weights.get(weight)
        return [source for source in (own, vector) if source is not None]

    def layer(self, text: str | None) -> CheckpointLayer:
        """Return the layer of a number or a label; :class:`InputError` (key ``layer``) if there is none."""
        layers = self.layers
        hits = [label for label, (number, _) in layers.items() if text in (str(number), label)]
        if len(hits) > 1:
            raise InputError(f"must be one of {', '.join(hits)} in {self.folder}, not {text}", key="layer")
        if not hits:
            numbers = sorted({number for number, _ in layers.values()})
            stated = "which is missing" if text is None else f"not {text}"
            raise InputError(
                f"must be an MoE layer of {self.folder} ({_ranges(numbers)}), {stated}", key="layer"
            )
        [label] = hits
        number, beginning = layers[label]
        try:
            name = self.folder.name or self.folder.resolve().name
            model = self.family.model(self.config | {"layer_idx": number}, name=name)
        except InputError as error:
            raise error.at(file=self.folder / CONFIG) from None
        warn_of_unread_keys(self.family, self.config, file=self.folder / CONFIG)
        return CheckpointLayer(self, label, beginning, model)

    @cached_property
    def fp8_block(self) -> tuple[int, int]:
        """Rows and columns that share a scale; :class:`InputError` for a quantisation that is not read."""
        table = self.config.get("quantization_config")
        if table is None:
            return FP8_BLOCK
        key = "config.quantization_config"
        method = table.get("quant_method") if isinstance(table, dict) else None
        if not isinstance(table, dict) or method not in QUANT_METHODS:
            raise InputError(
                f"must be one of {', '.join(QUANT_METHODS)}, not {method!r:.80}",
                file=self.folder / CONFIG,
                key=f"{key}.quant_method",
            )
        block = table.get("weight_block_size")
        if block is None:
            return FP8_BLOCK
        ok = isinstance(block, list) and len(block) == 2
        if not ok or not all(type(size) is int and 1 <= size <= 1 << 16 for size in block):
            raise InputError(
                f"must be two whole numbers in 1..65536, not {block!r:.80}",
                file=self.folder / CONFIG,
                key=f"{key}.weight_block_size",
            )
        return block[0], block[1]


@dataclass(frozen=True, eq=False)
class CheckpointLayer:
    """A layer that can be read.

    Attributes
    ----------
    label : what its tensors' names begin with, up to its number.
    beginning : what they begin with.
    model : the layer's specification.
    """

    checkpoint: Checkpoint
    label: str
    beginning: str
    model: ModelSpec

    def read(self, experts: Sequence[int] | None = None) -> LayerWeights:
        """Return the layer's weights in float32, of all experts or of some, in their order.

        Raises :class:`InputError` for a tensor that is missing, unknown, of another shape or dtype, or holds
        a value that is not finite. No memory is taken before all headers are known to be as they should.
        """
        num_experts = self.model.gating.num_ffn_experts
        chosen = range(num_experts) if experts is None else experts
        require(len(chosen) > 0, "must name at least one", key="experts")
        for expert in chosen:
            require_range("experts", expert, 0, num_experts - 1)
        used: set[str] = set()
        indices: dict[str, NDArray[np.int64]] = {}
        parts: list[tuple[str, tuple[int, ...], list[_Part]]] = []
        for weight, shape in weight_shapes(self.model, num_experts=len(chosen)).items():
            source = self._source(weight, chosen[0])
            if weight == "hash_table":
                indices[weight] = self._indices(source, shape, used)
            elif weight in PER_EXPERT:
                places = [self._part(weight, source, shape[1:], expert, used) for expert in chosen]
                parts.append((weight, shape, places))
            else:
                parts.append((weight, shape, [self._part(weight, source, shape, None, used)]))
        self._check_unknown(used)
        arrays: dict[str, NDArray[Any]] = dict(indices)
        stored: dict[str, list[StoredWeight]] = {}
        calls: list[Callable[[], None]] = []
        for weight, shape, places in parts:
            if all(part.matrix.scales is not None for part in places):
                stored[weight] = [part.stored(shape[-2]) for part in places]
            out = arrays[weight] = np.empty(shape, np.float32)
            for part, place in zip(places, out if weight in PER_EXPERT else [out], strict=True):
                calls += part.pieces(place)
        _call_all(calls)
        held = None if experts is None else tuple(experts)
        return LayerWeights(**arrays, held=held, stored=stored, checked=True)

    def _source(self, weight: str, expert: int) -> WeightSource:
        """Return where a weight lies: the first of its possible places that has a tensor."""
        sources = self.checkpoint.sources(weight)
        require(bool(sources), f"has no weight {weight!r}", key=f"family {self.checkpoint.family.name}")
        for source in sources:
            if self._name(source, expert) in self.checkpoint.places:
                return source
        raise InputError(
            "is missing", file=self.checkpoint.listing, key=shown(self._name(sources[0], expert))
        )

    def _name(self, source: WeightSource, expert: int | None) -> str:
        return self.beginning + (source.array.format(e=expert) if source.per_expert else source.array)

    def _array(self, name: str) -> tuple[TensorFile, NDArray[Any]]:
        """Return a tensor and the file in which it lies."""
        place = self.checkpoint.places.get(name)
        if place is None:
            raise InputError("is missing", file=self.checkpoint.listing, key=shown(name))
        file = self.checkpoint.file(place)
        return file, file.array(name)

    def _indices(self, source: WeightSource, shape: tuple[int, ...], used: set[str]) -> NDArray[np.int64]:
        name = self._name(source, None)
        file, array = self._array(name)
        used.add(name)
        try:
            _check_dtype(file, name, ("I64", "I32"))
            require(array.shape == shape, f"must have shape {shape}, not {array.shape}", key=shown(name))
            table = array.astype(np.int64)
            check_indices(shown(name), table, self.model.gating.num_experts)
        except InputError as error:
            raise error.at(file=file.path) from None
        return table

    def _part(
        self, weight: str, source: WeightSource, shape: tuple[int, ...], expert: int | None, used: set[str]
    ) -> _Part:
        """Return where one matrix or vector of a shape lies, of one expert if the weight is per expert."""
        name = self._name(source, expert)
        file, array = self._array(name)
        # A vector is a matrix of one column.
        is_vector = len(shape) == 1
        rows, cols = (shape[0], 1) if is_vector else shape
        rows *= 1 if source.take is Take.ALL else 2
        if source.in_out:
            rows, cols = cols, rows
        layout = _Layout(source, rows, cols, is_vector, expert, self._stored_experts(source, expert))
        scale_name = None
        try:
            dtype = _check_dtype(file, name, PLAIN if is_vector else (*PLAIN, FP8, *FP4_PAIRS))
            if dtype in PLAIN:
                matrix = StoredMatrix(layout.matrix(name, array))
            else:
                scale_name = self._scale_name(name, dtype)
                block = self.checkpoint.fp8_block if dtype == FP8 else (1, MXFP4_GROUP)
                require(
                    not source.stacked, f"must be one of {', '.join(PLAIN)}, not {dtype}", key=shown(name)
                )
                matrix = StoredMatrix(
                    codes=layout.matrix(name, array, packed=dtype != FP8),
                    packed=dtype != FP8,
                    scales=self._scales(
                        scale_name, layout, block, FP8_SCALES if dtype == FP8 else FP4_SCALES
                    ),
                    block_rows=block[0],
                    block_cols=block[1],
                )
        except InputError as error:
            raise error.at(file=file.path) from None
        used.add(name)
        if scale_name:
            used.add(scale_name)
        lead = () if expert is None or source.per_expert else (expert,)
        return _Part(file.path, name, source, matrix, is_vector, lead)

    def _stored_experts(self, source: WeightSource, expert: int | None) -> int | None:
        """Return how many experts lie in one array, None where each has its own or the weight is of none."""
        if expert is None or source.per_expert:
            return None
        gating = self.model.gating
        return gating.num_ffn_experts + (gating.num_identity_experts if source.identity_rows else 0)

    def _scale_name(self, name: str, dtype: str) -> str:
        """Return the name of a tensor's scales; :class:`InputError` if there are none."""
        possible = [name.removesuffix(end) + scale for end, scale in SCALE_NAMES if name.endswith(end)]
        for scale_name in possible:
            if scale_name in self.checkpoint.places:
                return scale_name
        raise InputError(f"is {dtype} and needs scales, {' or '.join(map(shown, possible))}", key=shown(name))

    def _scales(
        self, name: str, layout: _Layout, block: tuple[int, int], dtypes: tuple[str, ...]
    ) -> NDArray[np.float32]:
        """Return a matrix's scales as (blocks of rows, blocks of columns) float32."""
        file, array = self._array(name)
        try:
            _check_dtype(file, name, dtypes)
            num_rows, num_cols = -(-layout.rows // block[0]), -(-layout.cols // block[1])
            codes = np.ascontiguousarray(replace(layout, rows=num_rows, cols=num_cols).matrix(name, array))
            scales = decode_scales(codes)
            _check_finite(shown(name), scales, (0, 1), ())
        except InputError as error:
            raise error.at(file=file.path) from None
        return scales

    def _check_unknown(self, used: set[str]) -> None:
        """Raise :class:`InputError` for a tensor of the layer that no weight is: it could change results.

        Those of experts that were not asked for have names like those that were.
        """
        known = used | set(self._names_of_all_experts(used))
        beginnings = tuple(self.beginning + block for block in self.checkpoint.names.blocks)
        for name in self.checkpoint.places:
            if name.startswith(beginnings) and name not in known:
                raise InputError(
                    f"unknown tensor in family {self.checkpoint.family.name} with this configuration",
                    file=self.checkpoint.listing,
                    key=shown(name),
                )

    def _names_of_all_experts(self, used: set[str]) -> Iterator[str]:
        for weight in PER_EXPERT:
            for source in self.checkpoint.sources(weight) if weight in self._weights else ():
                if not source.per_expert:
                    continue
                before, after = (self.beginning + source.array).split("{e}")
                ends = {
                    after.removesuffix(end) + scale for end, scale in SCALE_NAMES if after.endswith(end)
                } | {after}
                for end in ends:
                    if any(name.startswith(before) and name.endswith(end) for name in used):
                        yield from (
                            f"{before}{expert}{end}" for expert in range(self.model.gating.num_ffn_experts)
                        )

    @cached_property
    def _weights(self) -> set[str]:
        return set(weight_shapes(self.model))


@dataclass(frozen=True)
class _Layout:
    """How a matrix of ``rows`` and ``cols``, as it is stored, lies in an array.

    ``num_experts``: how many lie in one array, of which ``expert`` is wanted; None: the array is the matrix.
    """

    source: WeightSource
    rows: int
    cols: int
    is_vector: bool
    expert: int | None
    num_experts: int | None

    def matrix(self, name: str, array: NDArray[Any], *, packed: bool = False) -> NDArray[Any]:
        """Return the matrix, half as wide if packed; :class:`InputError` at another shape."""
        cols = self.cols
        one: tuple[int, ...] = (self.rows,) if self.is_vector else (self.rows, cols)
        shapes = [one]
        if packed:
            require(
                cols % MXFP4_GROUP == 0,
                f"must hold whole groups of {MXFP4_GROUP}, not {cols}",
                key=shown(name),
            )
            shapes = [(self.rows, cols // 2), (self.rows, cols // MXFP4_GROUP, MXFP4_GROUP // 2)]
        if self.num_experts is not None and self.source.stacked:
            shapes = [(self.num_experts * shape[0], *shape[1:]) for shape in shapes]
        elif self.num_experts is not None:
            shapes = [(self.num_experts, *shape) for shape in shapes]
        elif self.source.one_row:
            shapes = [(1, *shape) for shape in shapes]
        wanted = " or ".join(map(str, shapes))
        require(array.shape in shapes, f"must have shape {wanted}, not {array.shape}", key=shown(name))
        if self.num_experts is not None:
            array = array.reshape(self.num_experts, self.rows, -1)[self.expert]
        return array.reshape(self.rows, -1)


@dataclass(frozen=True, eq=False)
class _Part:
    """One matrix or vector, as it is stored.

    ``lead``: what an element's place in the tensor begins with.
    """

    path: Path
    name: str
    source: WeightSource
    matrix: StoredMatrix
    is_vector: bool
    lead: tuple[int, ...]

    def _taken(self, half: int) -> slice:
        """Return the rows (columns where it lies (in, out)) that are the weight's ``half`` outputs."""
        return {
            Take.ALL: slice(0, half, 1),
            Take.FIRST_HALF: slice(0, half, 1),
            Take.SECOND_HALF: slice(half, 2 * half, 1),
            Take.EVEN: slice(0, 2 * half, 2),
            Take.ODD: slice(1, 2 * half, 2),
        }[self.source.take]

    def stored(self, outputs: int) -> StoredWeight:
        """Return a quantised matrix of so many outputs as it is stored."""
        return StoredWeight(self.matrix, self._taken(outputs), self.source.in_out)

    def pieces(self, out: NDArray[np.float32]) -> Iterator[Callable[[], None]]:
        """Yield what is to be called to write the values to ``out``, (out, in) or (out,), in any order.

        A call raises :class:`InputError` if one of its values is not finite.
        """
        target = out[:, None] if self.is_vector else out
        transposed = self.source.in_out
        width = (1 if self.source.take is Take.ALL else 2) * len(target) if transposed else target.shape[1]
        num_rows = target.shape[1] if transposed else len(target)
        step = max(1, ELEMENTS_AT_ONCE // width)
        if self.matrix.in_one_pass and not transposed:
            # Nothing is read twice that would have to stay in a cache.
            step *= PIECE_STEPS
        piece = max(step, PIECE_STEPS * max(1, ELEMENTS_AT_ONCE // width))
        for first in range(0, num_rows, piece):
            last = min(first + piece, num_rows)
            fill = self._fill_transposed if transposed else self._fill
            yield partial(fill, target, first, last, step)

    def _fill(self, target: NDArray[np.float32], begin: int, end: int, step: int) -> None:
        part = self._taken(len(target))
        for first in range(begin, end, step):
            last = min(first + step, end)
            stored = slice(part.start + first * part.step, part.start + last * part.step, part.step)
            self._read(stored, target[first:last])

    def _fill_transposed(self, target: NDArray[np.float32], begin: int, end: int, step: int) -> None:
        part = self._taken(len(target))
        between = np.empty((min(step, end - begin), self.matrix.num_cols), np.float32)
        for first in range(begin, end, step):
            last = min(first + step, end)
            values = between[: last - first]
            self._read(slice(first, last, 1), values)
            target[:, first:last] = values[:, part].T

    def _read(self, rows: slice, values: NDArray[np.float32]) -> None:
        """Write some of the stored rows to ``values``; :class:`InputError` if one is not finite."""
        if self.matrix.read_rows(rows, values):
            return
        try:
            _check_finite(shown(self.name), values, (rows.start, rows.step), self.lead, self.is_vector)
        except InputError as error:
            raise error.at(file=self.path) from None


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls, on all processors if there are many; raise what the first one that fails raises."""
    if len(calls) < PIECES_ALONE:
        for call in calls:
            call()
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda call: call(), calls):
            pass


def _check_dtype(file: TensorFile, name: str, dtypes: tuple[str, ...]) -> str:
    """Return a tensor's dtype; :class:`InputError` unless it is one of ``dtypes``."""
    dtype = file.tensors[name].dtype
    require(dtype in dtypes, f"must be one of {', '.join(dtypes)}, not {dtype}", key=shown(name))
    return dtype


def _check_finite(
    name: str,
    values: NDArray[np.float32],
    rows: tuple[int, int],
    lead: tuple[int, ...],
    is_vector: bool = False,
) -> None:
    """Raise :class:`InputError` unless all is finite; ``rows``: number of the first row, and step."""
    finite = np.isfinite(values)
    if not finite.all():
        row, col = (int(axis[0]) for axis in np.nonzero(~finite))
        place = (*lead, rows[0] + row * rows[1], *(() if is_vector else (col,)))
        raise InputError(f"must be finite, but element {place} is {values[row, col]}", key=name)


def _read_index(path: Path) -> dict[str, str]:
    """Return tensor name -> file of an index; :class:`InputError` unless all files are in its folder."""
    try:
        size = check_regular(path)
        require(size <= MAX_HEADER_BYTES, f"must be at most {MAX_HEADER_BYTES} bytes, not {size}")
        places = read_json(path.read_bytes(), "index").get("weight_map")
        if not isinstance(places, dict):
            raise InputError(f"must be a table, not {places!r:.80}", key="weight_map")
        for name, file in places.items():
            # Links are followed: that is how the cache of Hugging Face's hub lays out a folder.
            ok = isinstance(file, str) and file.endswith(".safetensors") and file.isprintable()
            ok = ok and not set(file) & set("/\\:")
            require(ok, f"must be a .safetensors file in the same folder, not {file!r:.80}", key=shown(name))
    except InputError as error:
        raise error.at(file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    return places


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text: ``3..60, 62``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)
