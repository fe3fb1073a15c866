"""Read specs: presets by name, TOML files and Hugging Face configurations by path.

A preset gives every number a source and an evidence grade (A: read from a release, B: from the
paper, C: recalled or inferred, D: a choice of this project) in its ``[sources]`` table; keys there
are dotted names of fields.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from spec.design import DesignSpec
from spec.errors import InputError
from spec.families import load_config
from spec.files import PRESETS, build_spec, read_toml
from spec.model import ModelSpec

GRADES = ("A", "B", "C", "D")


def _load(cls: type[Any], path: Path) -> Any:
    table = read_toml(path)
    sources = table.pop("sources", {})
    try:
        spec = build_spec(cls, table)
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
    """Return the model of a preset's name, a TOML file or a Hugging Face ``config.json``.

    Raises :class:`InputError` on bad input.
    """
    if name.endswith(".json"):
        return load_config(Path(name))
    return typing.cast("ModelSpec", _load(ModelSpec, _resolve("models", name)))


def load_design(name: str) -> DesignSpec:
    """Return the design of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("DesignSpec", _load(DesignSpec, _resolve("designs", name)))


def load_sources(kind: str, name: str) -> dict[str, dict[str, str]]:
    """Return a preset's ``[sources]`` table: dotted field name -> source and grade."""
    return typing.cast("dict[str, dict[str, str]]", read_toml(_resolve(kind, name)).get("sources", {}))
