"""Read text and TOML files, and build frozen specs from tables. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

from spec.errors import InputError

PRESETS = Path(__file__).parent
MAX_TEXT_BYTES = 1 << 20


def build_spec(cls: type[Any], table: dict[str, Any], *, prefix: str = "") -> Any:
    """Build a frozen spec from a table, checking names and types.

    Raises :class:`InputError` whose key is dotted and starts with ``prefix``.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kwargs: dict[str, Any] = {}
    for key, value in table.items():
        dotted = prefix + key
        if key not in fields:
            raise InputError(f"unknown key; known are {', '.join(sorted(fields))}", key=dotted)
        kwargs[key] = _convert(hints[key], value, dotted)
    for name, field in fields.items():
        if name in kwargs:
            continue
        if dataclasses.is_dataclass(hints[name]):
            kwargs[name] = build_spec(typing.cast("type[Any]", hints[name]), {}, prefix=f"{prefix}{name}.")
        elif field.default is dataclasses.MISSING:
            raise InputError("is missing", key=prefix + name)
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(error.rule, key=f"{prefix}{error.key}" if error.key else None) from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"must be a table, not {value!r}", key=key)
        return build_spec(typing.cast("type[Any]", hint), value, prefix=f"{key}.")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        names = [member.value for member in hint]
        if value not in names:
            raise InputError(f"must be one of {', '.join(names)}, not {value!r}", key=key)
        return hint(value)
    if hint is float and type(value) is int and abs(value) < 1 << 1000:
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"must be of type {hint.__name__}, not {value!r}", key=key)
    if hint is float and not abs(value) < float("inf"):
        raise InputError(f"must be finite, not {value}", key=key)
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's table; :class:`InputError` if it cannot be read as one."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", file=path) from None


def read_text(path: Path) -> str:
    """Return a small UTF-8 text file; :class:`InputError` if it cannot be read or is too large."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"must be at most {MAX_TEXT_BYTES} bytes, not {path.stat().st_size}", file=path)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
