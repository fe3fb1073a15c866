"""What a TOML file may say: the keys of a spec's class, with what is read, by default, and what it means.

Meanings are those of the classes' docstrings (their ``Attributes``), so that there is one text of each.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from spec.fields import field_types

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

ATTRIBUTES = re.compile(r"^Attributes\n-+\n(.*?)(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"^(\w[\w, ]*?) : (.*(?:\n +.*)*)", re.MULTILINE)
ROLE = re.compile(r":\w+:`[~.\w]*?(\w+)`")
KINDS = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Key:
    """A key by its dotted name; ``default`` is empty where it has to be there. Texts are Markdown."""

    name: str
    kind: str
    default: str
    meaning: str


def keys_of(cls: type[DataclassInstance], before: str = "") -> list[Key]:
    """Return the keys of a spec's class, those of its tables behind the others."""
    meanings, hints = _meanings(cls), field_types(cls)
    keys, tables = [], []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], before + field.name
        if dataclasses.is_dataclass(hint) and not hasattr(hint, "PRESET_FOLDER"):
            assert isinstance(hint, type)
            tables += keys_of(hint, f"{name}.")
        else:
            keys.append(Key(name, _kind(hint), _default(field), meanings[field.name]))
    return keys + tables


def _meanings(cls: type[DataclassInstance]) -> dict[str, str]:
    section = ATTRIBUTES.search(inspect.cleandoc(cls.__doc__ or ""))
    found = {}
    for names, text in ENTRY.findall(section[1] if section else ""):
        meaning = ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
        found.update(dict.fromkeys(names.split(", "), meaning))
    return found


def _kind(hint: Any) -> str:
    if hasattr(hint, "PRESET_FOLDER"):
        return f"name of a file in `spec/{hint.PRESET_FOLDER}`, path of a TOML, or a table as these have it"
    if typing.get_origin(hint) is tuple:
        return f"array of {', '.join(_words(typing.get_args(hint)[0]))}"
    return ", ".join(_words(hint))


def _words(hint: Any) -> Iterator[str]:
    if isinstance(hint, type) and issubclass(hint, Enum):
        yield from (f"`{member.value}`" for member in hint)
    else:
        yield KINDS[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return ""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"
