"""Model families as data: how a Hugging Face configuration and its arrays become a model.

A row (``spec/families/<family>.toml``; the file's name is Hugging Face's ``model_type``) has

* ``source``: where the formulas were read,
* ``[requires]``: configuration key -> the values that this row covers, where the key is present,
* ``[model]``: the fields of :class:`spec.model.ModelSpec`, each a constant or a :class:`FromConfig`,
* ``[weights]``: canonical weight -> :class:`WeightSource`, where it lies and how it is laid out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

from spec.errors import InputError, require
from spec.files import PRESETS, build_spec, read_text, read_toml
from spec.model import ModelSpec

WEIGHT_NAMES = (
    "router",
    "logit_bias",
    "selection_bias",
    "gate",
    "up",
    "down",
    "gate_bias",
    "up_bias",
    "down_bias",
    "shared_gate",
    "shared_up",
    "shared_down",
)
"""Canonical names of a layer's weights, in the order in which they are checked and generated."""


class Take(StrEnum):
    """Which part of a fused array's output axis belongs to a weight."""

    ALL = "all"
    FIRST_HALF = "first_half"
    SECOND_HALF = "second_half"
    EVEN = "even"
    ODD = "odd"


class Combine(StrEnum):
    """How several configuration keys make one number."""

    SUM = "sum"
    PRODUCT = "product"


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Where a canonical weight lies.

    Attributes
    ----------
    array : name of the stored array; ``{e}`` in it stands for the expert's number (one array each).
    take : the part of the output axis that is this weight's.
    in_out : matrices are stored (in, out) instead of (out, in).
    """

    array: str
    take: Take = Take.ALL
    in_out: bool = False

    @property
    def per_expert(self) -> bool:
        """Whether each expert has an array of its own."""
        return "{e}" in self.array


@dataclass(frozen=True)
class FromConfig:
    """A field's value from configuration keys.

    Attributes
    ----------
    keys : configuration keys; with ``combine = "sum"`` a leading ``-`` subtracts.
    combine : sum or product, where there are several keys.
    default : value if one of the keys is absent; None: they must be present.
    when : values for a key that is true or false; None: the number itself.
    """

    keys: tuple[str, ...]
    combine: Combine
    default: object
    when: tuple[object, object] | None

    def value(self, config: dict[str, Any]) -> object:
        """Return the field's value; :class:`InputError` where the configuration has none."""
        names = [key.removeprefix("-") for key in self.keys]
        for name in names:
            if config.get(name) is None:
                if self.default is not None:
                    return self.default
                raise InputError("is missing", key=f"config.{name}")
        if self.when is not None:
            flag = config[names[0]]
            require(type(flag) is bool, f"must be true or false, not {flag!r}", key=f"config.{names[0]}")
            return self.when[0] if flag else self.when[1]
        if len(names) == 1:
            return config[names[0]]
        for name in names:
            number = config[name]
            ok = type(number) is int and 0 <= number < 1 << 32
            require(ok, f"must be a whole number from 0, not {number!r}", key=f"config.{name}")
        if self.combine is Combine.PRODUCT:
            return prod(config[name] for name in names)
        return sum(
            -config[name] if key.startswith("-") else config[name]
            for key, name in zip(self.keys, names, strict=True)
        )


@dataclass(frozen=True)
class Family:
    """One family's row.

    Attributes
    ----------
    fields : dotted field of ModelSpec -> constant or :class:`FromConfig`.
    requires : configuration key -> values covered.
    weights : canonical name -> where it lies.
    """

    name: str
    source: str
    requires: dict[str, list[Any]]
    fields: dict[str, object]
    weights: dict[str, WeightSource]

    def model(self, config: dict[str, Any], *, name: str) -> ModelSpec:
        """Return the model that a Hugging Face configuration describes.

        Raises :class:`InputError`; its key is the configuration's (``config.<key>``) wherever the
        offending field was read from it. Keys that the row does not mention are ignored.
        """
        for key, allowed in self.requires.items():
            if key in config and config[key] not in allowed:
                covered = " or ".join(repr(value) for value in allowed)
                raise InputError(
                    f"must be {covered} in family {self.name}, not {config[key]!r}", key=f"config.{key}"
                )
        table: dict[str, Any] = {"name": name}
        for dotted, field in self.fields.items():
            *path, leaf = dotted.split(".")
            target = table
            for part in path:
                target = target.setdefault(part, {})
            target[leaf] = field.value(config) if isinstance(field, FromConfig) else field
        try:
            spec: ModelSpec = build_spec(ModelSpec, table)
        except InputError as error:
            place = error.key
            field = self.fields.get(place or "")
            if isinstance(field, FromConfig):
                place = " and ".join(f"config.{name.removeprefix('-')}" for name in field.keys)
            raise InputError(error.rule, key=place) from None
        return spec


def family_names() -> list[str]:
    """Return the names of the known families."""
    return sorted(path.stem for path in (PRESETS / "families").glob("*.toml"))


def load_family(name: str, *, folder: Path = PRESETS / "families") -> Family:
    """Return a family's row; :class:`InputError` if it is unknown or its row breaks a rule."""
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise InputError(f"must be one of {', '.join(known)}, not {name!r}", key="family")
    path = folder / f"{name}.toml"
    table = read_toml(path)
    try:
        return _parse_row(name, table)
    except InputError as error:
        raise error.at(file=path) from None


def load_config(path: Path) -> ModelSpec:
    """Return the model of a Hugging Face ``config.json``; its ``model_type`` names the family."""
    try:
        config = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"is not valid JSON: {error}", file=path) from None
    try:
        require(isinstance(config, dict), f"must be a JSON object, not {type(config).__name__}")
        family = config.get("model_type")
        require(isinstance(family, str), f"must be a family's name, not {family!r}", key="model_type")
        if family not in family_names():
            known = ", ".join(family_names())
            raise InputError(f"must be one of {known}, not {family!r}", key="model_type")
        return load_family(family).model(config, name=path.parent.name or path.stem)
    except InputError as error:
        raise error.at(file=path) from None


def _parse_row(name: str, table: dict[str, Any]) -> Family:
    unknown = sorted(set(table) - {"source", "requires", "model", "weights"})
    require(
        not unknown, "unknown key; known are model, requires, source, weights", key=next(iter(unknown), None)
    )
    for key, kind in (("source", str), ("model", dict), ("weights", dict)):
        require(isinstance(table.get(key), kind), "is missing or of the wrong type", key=key)
    requires = table.get("requires", {})
    require(isinstance(requires, dict), f"must be a table, not {requires!r}", key="requires")
    for key, allowed in requires.items():
        require(
            isinstance(allowed, list), f"must be a list of values, not {allowed!r}", key=f"requires.{key}"
        )
    weights = {}
    for key, entry in table["weights"].items():
        dotted = f"weights.{key}"
        require(key in WEIGHT_NAMES, f"unknown weight; known are {', '.join(WEIGHT_NAMES)}", key=dotted)
        require(isinstance(entry, dict), f"must be a table, not {entry!r}", key=dotted)
        weights[key] = build_spec(WeightSource, entry, prefix=f"{dotted}.")
    return Family(name, table["source"], requires, _parse_fields(table["model"], ""), weights)


def _parse_fields(table: dict[str, Any], prefix: str) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            fields[prefix + key] = value
        elif "keys" in value:
            fields[prefix + key] = _parse_from_config(value, f"model.{prefix}{key}")
        else:
            fields |= _parse_fields(value, f"{prefix}{key}.")
    return fields


def _parse_from_config(table: dict[str, Any], key: str) -> FromConfig:
    known = {"keys", "combine", "default", "when_true", "when_false"}
    for name in table:
        require(name in known, f"unknown key; known are {', '.join(sorted(known))}", key=f"{key}.{name}")
    keys = table["keys"]
    ok = isinstance(keys, list) and bool(keys) and all(isinstance(item, str) for item in keys)
    require(ok, f"must be a list of configuration keys, not {keys!r}", key=f"{key}.keys")
    combines = [member.value for member in Combine]
    combine = table.get("combine")
    require(
        combine in combines if len(keys) > 1 else combine is None,
        f"must be one of {', '.join(combines)} where there are several keys, and absent otherwise,"
        f" not {combine!r}",
        key=f"{key}.combine",
    )
    when = None
    if "when_true" in table or "when_false" in table:
        ok = "when_true" in table and "when_false" in table and len(keys) == 1
        require(ok, "needs when_true, when_false and a single key", key=key)
        when = (table["when_true"], table["when_false"])
    return FromConfig(tuple(keys), Combine(combine or Combine.SUM), table.get("default"), when)
