"""Payloads of streams as fields: where each lies, and columns of values turned into payloads.

The fields come with an export (``<name>.ports.json``), so that nobody states a layout twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

WORD_BITS = 64


@dataclass(frozen=True)
class Field:
    """A field of a payload: its lowest bit, its width (at most 64), and whether it is two's complement."""

    offset: int
    width: int
    signed: bool = False

    def of(self, payload: int) -> int:
        """Return the field's value in a payload."""
        bits = payload >> self.offset & (1 << self.width) - 1
        return bits - (1 << self.width) if self.signed and bits >> (self.width - 1) else bits


def fields_of(described: Sequence[Mapping[str, Any]]) -> dict[str, Field]:
    """Return the fields that an export describes, an array's elements one by one (``data[0]``)."""
    fields = {}
    for entry in described:
        name, offset, width = entry["name"], entry["offset"], entry["width"]
        places = [name] if "count" not in entry else [f"{name}[{n}]" for n in range(entry["count"])]
        for n, place in enumerate(places):
            fields[place] = Field(offset + n * width, width, entry["signed"])
    return fields


def pack(fields: Mapping[str, Field], columns: Mapping[str, ArrayLike]) -> NDArray[np.uint64]:
    """Return payloads, (n, words) uint64, lowest word first.

    Parameters
    ----------
    fields : all fields of the payload (:func:`fields_of`).
    columns : the values of each, integers: (n,), for an array's elements (n, count), or one for all.
        ``ValueError`` if a field has no column, a column no field, or a value does not fit.
    """
    flat: dict[str, NDArray[Any]] = {}
    for name, given in columns.items():
        values = np.asarray(given)
        flat |= (
            {f"{name}[{n}]": values[:, n] for n in range(values.shape[1])}
            if values.ndim == 2
            else {name: values}
        )
    if flat.keys() != fields.keys():
        raise ValueError(f"the payload's fields are {', '.join(fields)}, not {', '.join(flat)}")
    (count,) = np.broadcast_shapes((1,), *(values.shape for values in flat.values()))
    words = -(-max(field.offset + field.width for field in fields.values()) // WORD_BITS)
    payloads = np.zeros((count, words), dtype=np.uint64)
    for name, field in fields.items():
        bits = _bits(name, field, flat[name])
        word, bit = divmod(field.offset, WORD_BITS)
        payloads[:, word] |= bits << np.uint64(bit)
        if bit + field.width > WORD_BITS:
            payloads[:, word + 1] |= bits >> np.uint64(WORD_BITS - bit)
    return payloads


def _bits(name: str, field: Field, values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return values as two's complement of the field's width."""
    low = -(1 << field.width - 1) if field.signed else 0
    high = (1 << field.width - field.signed) - 1
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise ValueError(f"{name} must be in {low}..{high}, but holds {values.min()}..{values.max()}")
    return values.astype(np.uint64) & np.uint64((1 << field.width) - 1)
