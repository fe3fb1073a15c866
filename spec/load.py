"""Read specs from TOML: presets by name, files by path. Unknown keys are refused.

A preset gives every number a source and an evidence grade (A: read from a release, B: from the
paper, C: recalled or inferred, D: a choice of this project) in its ``[sources]`` table; keys there
are dotted names of fields.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

from spec.design import DesignSpec
from spec.errors import InputError
from spec.model import ModelSpec

PRESETS = Path(__file__).parent
MAX_TOML_BYTES = 1 << 20
GRADES = ("A", "B", "C", "D")


def _build(cls: type[Any], table: dict[str, Any], prefix: str) -> Any:
    """Build a frozen spec from a TOML table, checking names and types."""
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
            kwargs[name] = _build(typing.cast("type[Any]", hints[name]), {}, f"{prefix}{name}.")
        elif field.default is dataclasses.MISSING:
            raise InputError("is missing", key=prefix + name)
    try:
        return cls(**kwargs)
    except InputError as error:
        key = f"{prefix}{error.key}" if error.key else None
        raise InputError(error.rule, key=key) from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"must be a table, not {value!r}", key=key)
        return _build(typing.cast("type[Any]", hint), value, f"{key}.")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        names = [member.value for member in hint]
        if value not in names:
            raise InputError(f"must be one of {', '.join(names)}, not {value!r}", key=key)
        return hint(value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"must be of type {hint.__name__}, not {value!r}", key=key)
    if hint is float and not abs(value) < float("inf"):
        raise InputError(f"must be finite, not {value}", key=key)
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise InputError(f"must be at most {MAX_TOML_BYTES} bytes, not {path.stat().st_size}", file=path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not valid TOML: {error}", file=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None


def _load(cls: type[Any], path: Path) -> Any:
    table = _read(path)
    sources = table.pop("sources", {})
    try:
        spec = _build(cls, table, "")
        _check_sources(sources)
    except InputError as error:
        raise error.at(file=path) from None
    return spec


def _check_sources(sources: Any) -> None:
    if not isinstance(sources, dict):
        raise InputError(f"must be a table, not {sources!r}", key="sources")
    for key, entry in sources.items():
        if not isinstance(entry, dict) or set(entry) != {"source", "grade"} or entry["grade"] not in GRADES:
            raise InputError(
                f"must be {{source = '...', grade = one of {', '.join(GRADES)}}}, not {entry!r}",
                key=f"sources.{key}",
            )


def preset_names(kind: str) -> list[str]:
    """Return the names of the presets of a kind: ``models`` or ``designs``."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.toml"))


def _resolve(kind: str, name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    if name not in preset_names(kind):
        raise InputError(
            f"is neither a preset ({', '.join(preset_names(kind))}) nor a .toml file: {name!r}",
            key=kind.removesuffix("s"),
        )
    return PRESETS / kind / f"{name}.toml"


def load_model(name: str) -> ModelSpec:
    """Return the model of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("ModelSpec", _load(ModelSpec, _resolve("models", name)))


def load_design(name: str) -> DesignSpec:
    """Return the design of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("DesignSpec", _load(DesignSpec, _resolve("designs", name)))


def load_sources(kind: str, name: str) -> dict[str, dict[str, str]]:
    """Return a preset's ``[sources]`` table: dotted field name -> source and grade."""
    return typing.cast("dict[str, dict[str, str]]", _read(_resolve(kind, name)).get("sources", {}))
