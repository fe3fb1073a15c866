"""Read text and TOML files, and build frozen specs from tables. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import stat
import tomllib
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

from spec.errors import InputError, require

PRESETS = Path(__file__).parent
MAX_TEXT_BYTES = 1 << 20
MAX_LISTED = 20
"""Presets that a message names; of more it names the command that lists them."""
GRADES = ("A", "B", "C", "D")


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
        kwargs[key] = convert(hints[key], value, dotted)
    for name, field in fields.items():
        # A table is never left to defaults: without it a file that ends too early would pass.
        optional = field.default is not dataclasses.MISSING
        if name not in kwargs and not optional and not _is_container(field.default_factory):
            raise InputError("is missing", key=prefix + name)
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(error.rule, key=f"{prefix}{error.key}" if error.key else None) from None


def _is_container(factory: object) -> bool:
    """Whether a field's default is an empty list or the like, and not a table of its own."""
    return factory is not dataclasses.MISSING and not dataclasses.is_dataclass(factory)


def convert(hint: Any, value: Any, key: str) -> Any:
    """Return what a value of a TOML file is as a field of a type; :class:`InputError` if it is none."""
    if isinstance(hint, types.UnionType):
        # An optional table; a TOML file cannot say None.
        [hint] = [choice for choice in hint.__args__ if choice is not types.NoneType]
    if typing.get_origin(hint) is dict:
        # Tables by names of the file's own.
        if not isinstance(value, dict):
            raise InputError(f"must be a table, not {value!r}", key=key)
        of = typing.get_args(hint)[1]
        return {name: convert(of, entry, f"{key}.{name}") for name, entry in value.items()}
    if typing.get_origin(hint) is tuple:
        # A list of any length, of one type.
        if not isinstance(value, list):
            raise InputError(f"must be a list, not {value!r}", key=key)
        of = typing.get_args(hint)[0]
        return tuple(convert(of, entry, f"{key}.{number}") for number, entry in enumerate(value))
    if dataclasses.is_dataclass(hint):
        folder = getattr(hint, "PRESET_FOLDER", None)
        if folder is not None and isinstance(value, str):
            return load_preset(typing.cast("type[Any]", hint), folder, value, key)
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


def preset_names(folder: str) -> list[str]:
    """Return the names of the presets in a folder: ``models``, ``designs``, ``dram``."""
    return sorted(path.stem for path in (PRESETS / folder).glob("*.toml"))


def preset_path(folder: str, name: str, key: str) -> Path:
    """Return the file of a preset's name, or of a name that ends in ``.toml``."""
    if name.endswith(".toml"):
        return Path(name)
    names = preset_names(folder)
    if name not in names:
        known = ", ".join(names) if len(names) <= MAX_LISTED else f"'expertbank {folder}' lists {len(names)}"
        raise InputError(f"is neither a preset ({known}) nor a .toml file: {name!r}", key=key)
    return PRESETS / folder / f"{name}.toml"


def load_preset(cls: type[Any], folder: str, name: str, key: str) -> Any:
    """Build a spec from a preset or a TOML file; :class:`InputError` on bad input.

    A ``[sources]`` table gives each number (by its dotted name, ``*`` for all others) a source and an
    evidence grade.
    """
    return load_preset_with(cls, folder, name, key, {})[0]


def load_preset_with(
    cls: type[Any], folder: str, name: str, key: str, beside: dict[str, type[Any]]
) -> tuple[Any, dict[str, Any]]:
    """Return what :func:`load_preset` does, and the tables ``beside`` the spec's own that the file has."""
    path = preset_path(folder, name, key)
    table = read_toml(path)
    sources = table.pop("sources", {})
    others = {part: table.pop(part) for part in beside if part in table}
    try:
        spec = build_spec(cls, table)
        _check_sources(sources)
        tables = {part: convert(beside[part], value, part) for part, value in others.items()}
    except InputError as error:
        raise error.at(file=path) from None
    return spec, tables


def _check_sources(sources: Any) -> None:
    if not isinstance(sources, dict):
        raise InputError(f"must be a table, not {sources!r}", key="sources")
    for key, entry in sources.items():
        if not isinstance(entry, dict) or set(entry) != {"source", "grade"} or entry["grade"] not in GRADES:
            raise InputError(
                f"must be {{source = '...', grade = one of {', '.join(GRADES)}}}, not {entry!r}",
                key=f"sources.{key}",
            )


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's table; :class:`InputError` if it cannot be read as one."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError("is not valid TOML: brackets nested too deeply", file=path) from None
    except ValueError as error:  # tomllib's own, or a number of thousands of digits
        raise InputError(f"is not valid TOML: {error}", file=path) from None


def check_regular(path: Path) -> int:
    """Return a file's size; :class:`InputError` if it is a folder, a pipe, a device (without end)."""
    status = path.stat()
    require(stat.S_ISREG(status.st_mode), "is not a regular file")
    return status.st_size


def read_text(path: Path) -> str:
    """Return a small UTF-8 text file; :class:`InputError` if it cannot be read or is too large."""
    try:
        size = check_regular(path)
        require(size <= MAX_TEXT_BYTES, f"must be at most {MAX_TEXT_BYTES} bytes, not {size}")
        return path.read_text(encoding="utf-8")
    except InputError as error:
        raise error.at(file=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"cannot be read: {error}", file=path) from None
