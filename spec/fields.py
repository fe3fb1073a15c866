"""Fields of specs by dotted names: their types, their values, and a spec with some of them changed."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from spec.errors import InputError
from spec.files import convert
from spec.system import Quantity

MAX_DEPTH = 16


@functools.cache
def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return the type of each field of a spec's class; of an optional one the type that it has if given."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            [hint] = [choice for choice in hint.__args__ if choice is not types.NoneType]
        found[field.name] = hint
    return found


def field_type(cls: type[Any], dotted: str, key: str) -> Any:
    """Return the type of the field that a dotted name stands for.

    Raises :class:`InputError` with ``key`` where there is no such field.
    """
    hint: Any = cls
    for part in dotted.split(".")[:MAX_DEPTH]:
        known = field_types(hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else {}
        if part not in known:
            inside = f"; in {hint.__name__} there are {', '.join(sorted(known))}" if known else ""
            raise InputError(f"names no field: {part!r} is none{inside}", key=key)
        hint = known[part]
    return hint


def field_value(hint: Any, value: Any, key: str) -> Any:
    """Return a value as a field of a type; :class:`InputError` if it is none.

    A plain number will do for a :class:`spec.system.Quantity`.
    """
    if hint is Quantity and type(value) in (int, float):
        return convert(float, value, key)
    return convert(hint, value, key)


def with_fields(spec: Any, changes: Mapping[str, Any], key: str) -> Any:
    """Return a frozen spec with fields changed, all at once and as its own rules allow.

    Parameters
    ----------
    changes : values by dotted names below ``spec``, each as :func:`field_value` returns it. A table's own
        value is taken before those of its fields.
    key : dotted name of ``spec``, for errors.

    Raises :class:`InputError` for what breaks a rule, or lies in a table that ``spec`` has not.
    """
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        name, _, rest = dotted.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    for name, value in own.items():
        current = getattr(spec, name)
        if isinstance(current, Quantity) and isinstance(value, float):
            own[name] = _with_value(current, value)
        elif field_types(spec.__class__)[name] is Quantity and isinstance(value, float):
            raise InputError(f"is not given in {spec.name!r}, and needs a table with its source", key=name)
    for name, inner in below.items():
        table = own.get(name, getattr(spec, name))
        if table is None:
            raise InputError(f"is a table that {getattr(spec, 'name', 'it')!r} has not", key=f"{key}.{name}")
        own[name] = with_fields(table, inner, f"{key}.{name}")
    try:
        return dataclasses.replace(spec, **own)
    except InputError as error:
        raise InputError(error.rule, key=f"{key}.{error.key}" if error.key else key) from None


def _with_value(quantity: Quantity, value: float) -> Quantity:
    """Return a quantity of another value; its range is widened to hold it."""
    return dataclasses.replace(
        quantity, value=value, low=min(quantity.least, value), high=max(quantity.most, value)
    )


def value_at(spec: Any, dotted: str) -> Any:
    """Return the value of a field, None where a table above it is not given."""
    value = spec
    for part in dotted.split("."):
        value = None if value is None else getattr(value, part)
    return value.value if isinstance(value, Quantity) else value
