"""Values of JSON records, checked: whole numbers, nested lists of expert ids, base64."""

from __future__ import annotations

import base64
import binascii
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.trace import repeated
from spec.errors import InputError, require
from spec.model import MAX_EXPERTS

MAX_NUMBER = 1 << 40


def mapping(value: Any, key: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"must be an object, not {kind(value)}", key=key)
    return value


def whole(record: dict[str, Any], name: str, default: int | None = None) -> int:
    """Return a record's whole number from 0; ``default`` where it is absent or null, if there is one."""
    value = record.get(name)
    if value is None:
        if default is None:
            raise InputError("is missing", key=name)
        return default
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        shown = value if type(value) is int and abs(value) < 10**18 else kind(value)
        raise InputError(f"must be a whole number from 0, not {shown}", key=name)
    return value


def nested_ids(value: Any, name: str, depth: int) -> NDArray[np.int64]:
    """Return a list of lists of whole numbers, ``depth`` deep, as an array.

    Lists of one depth have equal lengths; an empty outer list gives an array of size 0.
    """
    shape: list[int] = []
    level: Any = [value]
    for number in range(depth):
        if set(map(type, level)) - {list}:
            raise InputError(f"must be lists, {depth} deep; one at depth {number + 1} is none", key=name)
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise InputError(
                f"must not be ragged: lists at depth {number + 1} have {min(lengths)}..{max(lengths)}"
                " elements",
                key=name,
            )
        shape += lengths or {0}
        level = list(chain.from_iterable(level))
    if set(map(type, level)) - {int}:
        wrong = next(element for element in level if type(element) is not int)
        raise InputError(f"must hold whole numbers, not {kind(wrong)}", key=name)
    if level:
        low, high = min(level), max(level)
        require(
            low >= 0 and high < MAX_EXPERTS,
            f"must be in 0..{MAX_EXPERTS - 1}, but hold {_short(low)}..{_short(high)}",
            key=name,
        )
    return np.array(level, dtype=np.int64).reshape(shape)


def check_distinct(ids: NDArray[np.integer], name: str) -> None:
    """Raise :class:`InputError` if a row of (..., K) names an expert twice."""
    rows = ids.reshape(-1, ids.shape[-1])
    again = repeated(rows)
    if len(again):
        index = np.unravel_index(int(again[0]), ids.shape[:-1])
        place = "".join(f"[{int(i)}]" for i in index)
        raise InputError(f"must be distinct, unlike {place}: {rows[again[0]].tolist()}", key=name)


def from_base64(text: str, name: str) -> bytes:
    """Return the bytes that a base64 text stands for."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("is not base64", key=name) from None


def kind(value: Any) -> str:
    """Return what a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), f"a number ({value})" if type(value) is float else "a number")


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**12 else ("-" if number < 0 else "") + "10^12 or more"
