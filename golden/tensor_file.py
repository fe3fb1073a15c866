"""Read ``.safetensors`` files of untrusted sources: mapped into memory, every claim of the header checked.

A file is eight bytes (the header's length, little endian), the header (a JSON object: tensor name ->
``dtype``, ``shape``, ``data_offsets``) and the tensors' bytes, which follow each other without gaps.

The ``safetensors`` library is not used: its NumPy side has no fp8 and fp4 (0.8.0), lets a name that is
given twice pass, and copies what it reads.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from spec.errors import InputError, require
from spec.files import check_regular

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 25
"""More than three times the header of DeepSeek-V3's 92 thousand tensors in a single file."""
MAX_BRACKETS = 1 << 20
"""Objects and lists in a JSON text; a tensor has three. They are what takes most memory for its bytes."""
MAX_AXES = 8
MAX_AXIS = 1 << 48
NAME_CHARACTERS = 120

ELEMENT_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""The format's element types."""
DTYPES: dict[str, np.dtype[Any]] = {
    "F4": np.dtype(np.uint8),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
}
"""Element types that are read; two ``F4`` lie in a byte, the first one low."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What the header says of a tensor; ``begin`` and ``end`` count from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A file whose header is sound. Of the tensors' bytes only those that are asked for are touched.

    The file must not shrink while it is open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tensors, self._data = _open(path)
        except InputError as error:
            raise error.at(file=path) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor where it lies in the file, read-only; ``F4`` with half of the last axis.

        Raises :class:`InputError` if it is not there or of a dtype that is not read.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise InputError("is missing", file=self.path, key=shown(name))
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            known = ", ".join(DTYPES)
            raise InputError(f"must be one of {known}, not {tensor.dtype}", file=self.path, key=shown(name))
        shape = tensor.shape
        if tensor.dtype == "F4":
            ok = bool(shape) and shape[-1] % 2 == 0
            if not ok:
                raise InputError(
                    f"must have an even last axis with F4, not {shape}", file=self.path, key=shown(name)
                )
            shape = (*shape[:-1], shape[-1] // 2)
        return np.frombuffer(self._data, dtype, math.prod(shape), tensor.begin).reshape(shape)


def shown(name: str) -> str:
    """Return a name from a file as it is printed: on one line, not too long."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= NAME_CHARACTERS else f"{text[:NAME_CHARACTERS]}..."


def read_json(text: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object of a text; :class:`InputError` if it is none or says something twice.

    ``what`` names the text. The memory taken is at most some twenty times the text's.
    """
    brackets = text.count(b"[") + text.count(b"{")
    require(brackets <= MAX_BRACKETS, f"must have at most {MAX_BRACKETS} brackets, not {brackets}", key=what)
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", key=what) from None
    except InputError as error:
        raise error.at(key=what) from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InputError(f"is not valid JSON: {error}", key=what) from None
    if not isinstance(value, dict):
        raise InputError(f"must be a JSON object, not {type(value).__name__}", key=what)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            require(key not in seen, "is there twice", key=shown(key))
            seen.add(key)
    return table


def _open(path: Path) -> tuple[dict[str, Tensor], mmap.mmap]:
    size = check_regular(path)
    require(size >= LENGTH_BYTES, f"must have at least {LENGTH_BYTES} bytes, not {size}")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        limit = min(size - LENGTH_BYTES, MAX_HEADER_BYTES)
        require(2 <= length <= limit, f"must be in 2..{limit}, not {length}", key="header length")
        text = stream.read(length)
        require(len(text) == length, f"states {length} bytes, but {len(text)} are there", key="header")
        require(text.startswith(b"{"), f"must begin with '{{', not {text[:1]!r}", key="header")
        start = LENGTH_BYTES + length
        tensors = _tensors(read_json(text, "header"), start, size - start)
        return tensors, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _tensors(header: dict[str, Any], start: int, num_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a header; ``num_bytes`` bytes of data begin at ``start``."""
    metadata = header.pop("__metadata__", {})
    ok = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    require(ok, "must be texts by name", key="__metadata__")
    tensors = {name: _tensor(shown(name), entry, start, num_bytes) for name, entry in header.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    for (name, one), (other, two) in pairwise(ordered):
        require(
            two.begin >= one.end,
            f"overlaps {shown(name)}: it begins at byte {two.begin - start}, that ends at {one.end - start}",
            key=shown(other),
        )
    end = start
    for name, tensor in ordered:
        require(
            tensor.begin == end,
            f"must begin where data before it ends, at byte {end - start}, not {tensor.begin - start}",
            key=shown(name),
        )
        end = tensor.end
    unused = start + num_bytes - end
    require(unused == 0, f"has {unused} bytes behind its last tensor")
    return tensors


def _tensor(name: str, entry: object, start: int, num_bytes: int) -> Tensor:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise InputError(f"must have dtype, shape and data_offsets, no more, not {entry!r:.80}", key=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    ok = isinstance(dtype, str) and dtype in ELEMENT_BITS
    require(ok, f"must be one of {', '.join(ELEMENT_BITS)}, not {dtype!r:.80}", key=f"{name}.dtype")
    ok = isinstance(shape, list) and len(shape) <= MAX_AXES
    ok = ok and all(type(axis) is int and 0 <= axis <= MAX_AXIS for axis in shape)
    require(
        ok,
        f"must be at most {MAX_AXES} whole numbers in 0..{MAX_AXIS}, not {_brief(shape)}",
        key=f"{name}.shape",
    )
    ok = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
    ok = ok and 0 <= offsets[0] <= offsets[1] <= num_bytes
    require(
        ok,
        f"must be two whole numbers, the first not above the second, in 0..{num_bytes} (bytes of data that"
        f" are there), not {_brief(offsets)}",
        key=f"{name}.data_offsets",
    )
    num_bits = math.prod(shape) * ELEMENT_BITS[dtype]
    begin, end = offsets
    require(
        num_bits == 8 * (end - begin),
        f"needs {num_bits / 8:.15g} bytes by dtype {dtype} and shape {tuple(shape)}, but its offsets have"
        f" {end - begin}",
        key=name,
    )
    return Tensor(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _brief(value: object) -> str:
    """Return a value from a file as it is printed: a number of thousands of digits is not."""
    if isinstance(value, list):
        more = ", ..." if len(value) > MAX_AXES else ""
        return f"[{', '.join(_brief(item) for item in value[:MAX_AXES])}{more}]"
    if type(value) is int and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.40}"
