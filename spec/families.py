"""Model families as data: how a Hugging Face configuration and its arrays become a model.

A row (``spec/families/<family>.toml``) has

* ``source``: where the formulas were read,
* ``model_types``: Hugging Face's ``model_type`` where that is not the file's name, or not it alone,
* ``architectures``: class names in ``architectures`` that name this family whatever the ``model_type``,
* ``nested``: configuration keys whose tables hold the layer's keys (``text_config``, ``a.b`` in the table a),
* ``usual``: keys whose value may be a list with one for each layer, of which that of ``layer_idx`` is read,
  without it the one that most layers have,
* ``firsts``: keys whose value may be a list with one for each modality, of which the first, the text's, is
  read,
* ``ignored``: keys that the reference implementation does not read, whatever their names say,
* ``[aliases]``: another name of a key -> the key,
* ``[defaults]``: key -> what the configuration class takes where it is absent,
* ``[requires]``: key -> the values that this row covers, where the key is present,
* ``[agrees]``: key -> the value that it must have where it is present, of keys that are read,
* ``[model]``: the fields of :class:`spec.model.ModelSpec`, each a constant or a :class:`FromConfig`,
* ``[layers]``: :class:`spec.layer_kinds.LayerKinds`, the keys that say which layers are MoE layers, where
  ``[model]`` does not count them,
* ``[weights]``: canonical weight -> :class:`WeightSource`, where it lies and how it is laid out,
* ``[checkpoint]``: how published checkpoints name a layer's tensors, :class:`CheckpointNames`.

A key of a configuration that the row does not read is ignored only if ``spec/config_keys.toml`` knows that it
changes nothing in an MoE layer. One that sounds like a part of such a layer is refused, since it could change
what is computed; one that says which layers are MoE layers is refused where it means others than all; of any
other key :func:`warn_of_unread_keys` warns. Tables in tables are looked into.

A model whose layers are those of a family with other keys, other defaults or a term more has a variant's row
(``spec/variants/<variant>.toml``) of the same tables, and

* ``like``: the family from which it takes all that it does not say itself: tables key by key; a field, a
  weight and ``[layers]`` as a whole; not ``source``, ``model_types`` and ``architectures``,
* ``without``: dotted names of what it does not take from there.

A configuration of several models (text, images, sound) whose ``model_type`` no row has is read as the
language model in one of the tables ``wrapped`` of ``spec/config_keys.toml``, by that table's ``model_type``.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any

from spec.errors import InputError, InputWarning, one_line, require
from spec.files import PRESETS, build_spec, read_text, read_toml
from spec.layer_kinds import LayerKinds
from spec.model import MAX_LAYERS, ModelSpec

WEIGHT_NAMES = (
    "router",
    "router_query",
    "router_key",
    "router_hidden",
    "logit_bias",
    "selection_bias",
    "gate",
    "up",
    "second_up",
    "down",
    "gate_bias",
    "up_bias",
    "down_bias",
    "shared_gate",
    "shared_up",
    "shared_down",
    "shared_gate_bias",
    "shared_up_bias",
    "shared_down_bias",
    "shared_expert_gate",
    "hash_table",
    "latent_in",
    "latent_in_bias",
    "latent_out",
    "latent_out_bias",
    "output_bias",
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
    """How configuration keys make one number.

    ``quotient``: the sum of all but the last by the last, rounded down. ``periodic``: of (layers, period,
    offset), how many layers have a number that leaves the offset. ``complement``: 1 minus one key. ``share``:
    the product of all but the last by the last, any numbers. ``sample_deviation``: of (deviation, n), the
    deviation of n values around their mean that torch.std, which divides by n - 1, gives as the first.
    """

    SUM = "sum"
    PRODUCT = "product"
    QUOTIENT = "quotient"
    PERIODIC = "periodic"
    COMPLEMENT = "complement"
    SHARE = "share"
    SAMPLE_DEVIATION = "sample_deviation"


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Where a canonical weight lies.

    Attributes
    ----------
    array : name of the stored array; ``{e}`` in it stands for the expert's number (one array each).
    take : the part of the output axis that is this weight's.
    in_out : matrices are stored (in, out) instead of (out, in).
    stacked : the experts' matrices lie one below the other in a single matrix.
    one_row : a vector is stored as a matrix of one row.
    identity_rows : identity experts have matrices here too, which nothing reads.
    """

    array: str
    take: Take = Take.ALL
    in_out: bool = False
    stacked: bool = False
    one_row: bool = False
    identity_rows: bool = False

    @property
    def per_expert(self) -> bool:
        """Whether each expert has an array of its own."""
        return "{e}" in self.array


@dataclass(frozen=True, kw_only=True)
class CheckpointNames:
    """How checkpoints name the tensors of a layer.

    Attributes
    ----------
    source : where the names were read.
    layers : beginnings of a layer's tensor names, ``{layer}`` in each stands for its number. Several: names
        changed, or a model has several stacks of layers.
    blocks : what follows the beginning in names that the row knows all of: any other is refused.
    weights : canonical weight -> where it lies, where that is not what ``[weights]`` says, or not always.
    """

    source: str
    layers: tuple[str, ...]
    blocks: tuple[str, ...] = ("",)
    weights: dict[str, WeightSource] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FromConfig:
    """A field's value from configuration keys.

    Attributes
    ----------
    keys : configuration keys, ``a.b`` is key b of table a; a leading ``-`` subtracts in a sum.
    combine : how keys make one number; None: a single key's value as it is.
    default : value if one of the keys is absent or null; None: they must be present.
    when : values for a key that is true or false; None: the number itself.
    values : value by the key's value as JSON without quotes (``silu``, ``1``, ``null``); ``other`` is for
        those that are not listed, None: they are refused.
    replace : as ``values``, but what is not listed stays as it is.
    count : how many items of a list, or letters of a text, are among these; of the first key that is present.
    rest : what the number leaves of the sum that is divided, or of the layers that are counted.
    by_layer : the key may be a list with a value for each layer. Where these differ, ``layer_idx`` of the
        configuration says which; without it the last layer stands for all.
    alike : the value may be a list with one for each expert; all must be the same.
    times : what the number is multiplied with.
    only, otherwise : the keys are read only where other keys have one of these values (an empty list: any but
        null); else ``otherwise``, a value or another :class:`FromConfig`.
    """

    keys: tuple[str, ...]
    combine: Combine | None = None
    default: object = None
    when: tuple[object, object] | None = None
    values: dict[str, object] | None = None
    other: object = None
    replace: dict[str, object] | None = None
    count: tuple[str, ...] = ()
    rest: bool = False
    by_layer: bool = False
    alike: bool = False
    times: int = 1
    only: dict[str, list[Any]] = field(default_factory=dict)
    otherwise: object = None

    @property
    def names(self) -> list[str]:
        """The keys without signs."""
        return [key.removeprefix("-") for key in self.keys]

    @property
    def all_names(self) -> list[str]:
        """All keys that may be read."""
        others = self.otherwise.all_names if isinstance(self.otherwise, FromConfig) else []
        return [*self.names, *self.only, *others]

    def read_names(self, config: dict[str, Any]) -> list[str]:
        """Return the keys of which the value is made."""
        other = self.otherwise
        if isinstance(other, FromConfig) and not self._applies(config):
            return other.read_names(config)
        return self.names

    def value(self, config: dict[str, Any]) -> object:
        """Return the field's value; :class:`InputError` where the configuration has none."""
        if not self._applies(config):
            other = self.otherwise
            return other.value(config) if isinstance(other, FromConfig) else other
        found = {name: self._read(config, name) for name in self.names}
        if self.values is not None and len(found) == 1:
            [(name, only)] = found.items()
            if only is not None or "null" in self.values:
                return self._mapped(name, only)
        if self.count:
            return self._counted(found)
        for name, value in found.items():
            if value is None:
                if self.default is not None:
                    return self.default
                raise InputError(
                    "must not be null" if _is_there(config, name) else "is missing", key=f"config.{name}"
                )
        if self.when is not None:
            flag = found[self.names[0]]
            require(type(flag) is bool, f"must be true or false, not {flag!r}", key=f"config.{self.names[0]}")
            return self.when[0] if flag else self.when[1]
        if self.combine is not None:
            return self._combined(found)
        value = found[self.names[0]]
        if self.times != 1:
            return self._whole(self.names[0], value) * self.times
        return value if self.replace is None else self.replace.get(_json_text(value), value)

    def _applies(self, config: dict[str, Any]) -> bool:
        """Whether the other keys have the values with which these are read."""
        for key, allowed in self.only.items():
            value = self._read(config, key)
            if value is None or (allowed and value not in allowed):
                return False
        return True

    def _read(self, config: dict[str, Any], name: str) -> Any:
        value = self._of_layer(config, name)
        if not (self.alike and isinstance(value, list) and value):
            return value
        require(
            all(item == value[0] for item in value),
            f"must be the same for every expert, not {value!r:.80}",
            key=f"config.{name}",
        )
        return value[0]

    def _of_layer(self, config: dict[str, Any], name: str) -> Any:
        value = _lookup(config, name)
        if not (self.by_layer and isinstance(value, list) and value):
            return value
        if all(item == value[0] for item in value):
            return value[0]
        return _value_of_layer(config.get("layer_idx", len(value) - 1), value, name)

    def _mapped(self, name: str, value: object) -> object:
        assert self.values is not None
        text = _json_text(value)
        if text in self.values:
            return self.values[text]
        if self.other is None:
            known = ", ".join(self.values)
            raise InputError(f"must be one of {known}, not {value!r:.80}", key=f"config.{name}")
        return self.other

    def _counted(self, found: dict[str, Any]) -> object:
        for name, value in found.items():
            if value is not None:
                require(
                    isinstance(value, list | str),
                    f"must be a list or text, not {value!r}",
                    key=f"config.{name}",
                )
                return sum(item in self.count for item in value)
        return self.default

    def _combined(self, found: dict[str, Any]) -> object:
        if self.combine is Combine.COMPLEMENT:
            [(name, share)] = found.items()
            ok = type(share) in (int, float) and 0 <= share <= 1
            require(ok, f"must be in 0..1, not {share!r}", key=f"config.{name}")
            return 1.0 - share
        if self.combine in (Combine.SHARE, Combine.SAMPLE_DEVIATION):
            for name, number in found.items():
                ok = type(number) in (int, float) and 0 < number < 1 << 32
                require(ok, f"must be a number above 0, not {number!r:.80}", key=f"config.{name}")
            *factors, last = found.values()
            if self.combine is Combine.SHARE:
                return prod(factors) / last
            return float(factors[0] * sqrt((self._whole(self.names[-1], last) - 1) / last))
        numbers = [self._whole(name, number) for name, number in found.items()]
        if self.combine is Combine.PRODUCT:
            return prod(numbers)
        if self.combine is Combine.SUM:
            return sum(
                -number if key.startswith("-") else number
                for key, number in zip(self.keys, numbers, strict=True)
            )
        place = 1 if self.combine is Combine.PERIODIC else -1
        divisor = numbers[place]
        require(divisor > 0, f"must be above 0, not {divisor}", key=f"config.{self.names[place]}")
        if self.combine is Combine.PERIODIC:
            total, counted = numbers[0], len(range(numbers[2], numbers[0], divisor))
        else:
            total, counted = sum(numbers[:-1]), sum(numbers[:-1]) // divisor
        return total - counted if self.rest else counted

    def _whole(self, name: str, number: object) -> int:
        ok = type(number) is int and 0 <= number < 1 << 32
        require(ok, f"must be a whole number from 0, not {number!r}", key=f"config.{name}")
        assert isinstance(number, int)
        return number


def _value_of_layer(layer: object, values: list[Any], name: str) -> Any:
    """Return the value of a layer; :class:`InputError` where there is none of that number."""
    ok = type(layer) is int and 0 <= layer < len(values)
    require(
        ok,
        f"must be a layer, 0..{len(values) - 1} (length of {name}), not {layer!r}",
        key="config.layer_idx",
    )
    assert isinstance(layer, int)
    return values[layer]


def _json_text(value: object) -> str:
    """Return a value as JSON, a text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _lookup(config: dict[str, Any], name: str) -> Any:
    """Return a key's value, ``a.b`` in the table a; None where it is absent."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _tables_around(config: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the tables in which the table ``a.b`` lies: the configuration, and a."""
    path = name.split(".")[:-1]
    return [config, *(_lookup(config, ".".join(path[: end + 1])) for end in range(len(path)))]


def _is_there(config: dict[str, Any], name: str) -> bool:
    """Whether a configuration has a key, be it null; ``a.b`` in the table a."""
    *path, last = name.split(".")
    table = _lookup(config, ".".join(path)) if path else config
    return isinstance(table, dict) and last in table


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
"""A part of a key's name, in snake case or camel case: ``num_experts``, ``expertsPerToken``, ``MoETopK``."""


MAX_PLACE = 100
"""Characters of a table's place, and of a key, in a message: a hostile file's could be long, and many."""

MAX_TOLD = 16
"""Keys that a warning names; of more it says how many."""


def _inner_place(table: str, key: str) -> str:
    """Return the place of a table within a table."""
    place = f"{table}{key:.{MAX_PLACE}}."
    return place if len(place) <= MAX_PLACE else f"{place[:MAX_PLACE]}..."


class KeyKind(StrEnum):
    """What an unread key can be: without effect on an MoE layer, a part of one by its name, or unknown."""

    HARMLESS = "harmless"
    TELLING = "telling"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """What is said of configuration keys for all families (``spec/config_keys.toml``).

    Attributes
    ----------
    words : parts of a key's name that make it sound like a part of an MoE layer.
    harmless : keys that change nothing in an MoE layer's output, whatever their parts.
    harmless_words : parts of a key's name that make it one of those, if none of ``words`` is there.
    layers : key that says which layers are MoE layers -> the values by which all are.
    activations : Hugging Face's name of an activation -> ours.
    beyond : model type with MoE layers that no row describes -> what the algebra has no term for.
    wrapped : tables in which a configuration of several models keeps its language model, the first one first.
    """

    words: frozenset[str]
    harmless: frozenset[str]
    harmless_words: frozenset[str]
    layers: dict[str, list[Any]]
    activations: dict[str, object]
    beyond: dict[str, str]
    wrapped: list[str]

    def kind(self, key: str) -> KeyKind:
        """Return what a key that a row does not read is, by its name."""
        if key in self.harmless:
            return KeyKind.HARMLESS
        parts = {part.lower() for part in _WORD.findall(key.replace("MoE", "Moe"))}
        parts.update(key.lower().split("_"))  # relu2
        if not self.words.isdisjoint(parts):
            return KeyKind.TELLING
        return KeyKind.UNKNOWN if self.harmless_words.isdisjoint(parts) else KeyKind.HARMLESS


@cache
def config_keys() -> ConfigKeys:
    """Return the lists of ``spec/config_keys.toml``."""
    table = read_toml(PRESETS / "config_keys.toml")
    return ConfigKeys(
        words=frozenset(table["words"]),
        harmless=frozenset(table["harmless"]),
        harmless_words=frozenset(table["harmless_words"]),
        layers=table["layers"],
        activations=table["activations"],
        beyond=table["beyond"],
        wrapped=table["wrapped"],
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family's row.

    Attributes
    ----------
    fields : dotted field of ModelSpec -> constant or :class:`FromConfig`.
    requires : configuration key -> values covered.
    weights : canonical name -> where it lies.
    layers : which layers are MoE layers, None where ``fields`` count them.
    checkpoint : names in checkpoints, None where the row has none.
    agrees : configuration key -> what it must equal.
    like : the family that a variant is of; empty of a family.
    model_types, architectures, nested, firsts, usual, ignored, aliases, defaults : as in the module's
        description.
    """

    name: str
    source: str
    requires: dict[str, list[Any]]
    fields: dict[str, object]
    weights: dict[str, WeightSource]
    model_types: list[str]
    architectures: list[str]
    nested: list[str]
    ignored: list[str]
    aliases: dict[str, str]
    defaults: dict[str, Any]
    firsts: list[str] = field(default_factory=list)
    usual: list[str] = field(default_factory=list)
    agrees: dict[str, FromConfig] = field(default_factory=dict)
    like: str = ""
    layers: LayerKinds | None = None
    checkpoint: CheckpointNames | None = None

    def model(self, config: dict[str, Any], *, name: str) -> ModelSpec:
        """Return the model that a Hugging Face configuration describes.

        Raises :class:`InputError`; its key is the configuration's (``config.<key>``) wherever the
        offending field was read from it.
        """
        config = self._resolved(config)
        self._unread_keys(config)
        for key, allowed in self.requires.items():
            value = config.get(key)
            # A list has a value for each layer.
            values = value if isinstance(value, list) and value else [value]
            if value is not None and value not in allowed and any(item not in allowed for item in values):
                covered = " or ".join(repr(item) for item in allowed)
                raise InputError(
                    f"must be {covered} in family {self.name}, not {value!r}", key=f"config.{key}"
                )
        for key, rule in self.agrees.items():
            if config.get(key) is not None:
                expected = rule.value(config)
                require(
                    config[key] == expected,
                    f"must be {expected!r} by {' and '.join(rule.read_names(config))} in family {self.name},"
                    f" not {config[key]!r:.80}",
                    key=f"config.{key}",
                )
        table: dict[str, Any] = {"name": name}
        if self.layers is not None:
            table["num_moe_layers"], table["num_dense_layers"] = self.layers.count(config)
        for dotted, entry in self.fields.items():
            *path, leaf = dotted.split(".")
            target = table
            for part in path:
                target = target.setdefault(part, {})
            target[leaf] = entry.value(config) if isinstance(entry, FromConfig) else entry
        try:
            spec: ModelSpec = build_spec(ModelSpec, table)
        except InputError as error:
            place = error.key
            entry = self.fields.get(place or "")
            if isinstance(entry, FromConfig):
                place = " and ".join(f"config.{name}" for name in entry.read_names(config))
            raise InputError(error.rule, key=place) from None
        return spec

    def _resolved(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration with tables and aliases resolved and defaults filled in."""
        resolved = dict(config)
        for key in self.nested:
            inner = _lookup(config, key)
            if isinstance(inner, dict):
                for outer in _tables_around(config, key):
                    self._check_outer(outer, key, inner)
                resolved |= inner
        for key in (*self.firsts, *self.usual):
            value = resolved.get(key)
            if isinstance(value, list) and value:
                require(
                    len(value) <= MAX_LAYERS,
                    f"must have at most {MAX_LAYERS} values, not {len(value)}",
                    key=f"config.{key}",
                )
                if key in self.firsts:
                    resolved[key] = value[0]
                elif "layer_idx" in config:
                    resolved[key] = _value_of_layer(config["layer_idx"], value, key)
                else:
                    resolved[key] = max(value, key=value.count)
        for alias, key in self.aliases.items():
            value = resolved.pop(alias, None)
            if value is not None:
                same = resolved.setdefault(key, value) == value
                require(
                    same, f"must equal config.{key}={resolved[key]!r}, not {value!r}", key=f"config.{alias}"
                )
        return {"model_type": self.model_types[0]} | self.defaults | resolved

    def _check_outer(self, outer: dict[str, Any], table: str, inner: dict[str, Any]) -> None:
        """Raise :class:`InputError` for a key that the inner table overrides with another value.

        What a configuration says of the whole, and what has nothing to do with an MoE layer, may differ.
        """
        read = self._known_keys() | set(self.aliases)
        for key, value in outer.items():
            matters = key in read or config_keys().kind(key) is KeyKind.TELLING
            if not matters or key == "model_type" or value is None or inner.get(key) is None:
                continue
            require(
                value == inner[key],
                f"must equal config.{table}.{key}={inner[key]!r:.80}, not {value!r:.80}",
                key=f"config.{key}",
            )

    def unread_keys(self, config: dict[str, Any]) -> dict[str, object]:
        """Return the keys (``a.b`` in the table a) that the row does not read and no list knows, with values.

        Raises :class:`InputError` for one that could change what a layer computes, by its name, and for one
        that says of some layers that they are no MoE layers.
        """
        return self._unread_keys(self._resolved(config))

    def _unread_keys(self, resolved: dict[str, Any]) -> dict[str, object]:
        known, lists = self._known_keys(), config_keys()
        unknown: dict[str, object] = {}
        # A key's table, its name, its value. What is read is read from the outermost table, or is a key of it
        # that names its own table, of which the row may not read all.
        left = [("", key, value) for key, value in reversed(resolved.items()) if key not in known]
        for name in sorted({name.split(".")[0] for name in known if "." in name}):
            table = resolved.get(name)
            if isinstance(table, dict):
                left += [(f"{name}.", *item) for item in table.items() if f"{name}.{item[0]}" not in known]
        while left:
            table, key, value = left.pop()
            kind = lists.kind(key)
            if value is None or (kind is KeyKind.HARMLESS and key not in lists.layers):
                continue
            if key in lists.layers:
                self._require_all_layers(f"config.{table}{key}", value, lists.layers[key])
            elif kind is KeyKind.TELLING:
                raise InputError(
                    f"is unknown in family {self.name} and could change what the layer computes, by its name;"
                    f" not {value!r:.80}",
                    key=f"config.{table}{key}",
                )
            elif isinstance(value, dict):
                inner = _inner_place(table, key)
                left += [(inner, *item) for item in reversed(value.items())]
            elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
                inner = _inner_place(table, key)
                left += [(inner, str(place), item) for place, item in enumerate(value)][::-1]
            else:
                unknown[f"config.{table}{key:.{MAX_PLACE}}"] = value
        return unknown

    def _require_all_layers(self, key: str, value: object, allowed: list[Any]) -> None:
        values = value if isinstance(value, list) and value else [value]
        ok = value in allowed or all(item in allowed for item in values)
        covered = " or ".join(repr(item) for item in allowed) or "absent"
        require(
            ok,
            f"says which layers are MoE layers, which family {self.name} does not read; must be {covered},"
            f" not {value!r:.80}",
            key=key,
        )

    def _known_keys(self) -> set[str]:
        known = {*self.requires, *self.nested, *self.ignored, *self.defaults, *self.agrees, "layer_idx"}
        known.update(self.layers.keys if self.layers is not None else ())
        for entry in self.fields.values():
            if isinstance(entry, FromConfig):
                known.update(entry.all_names)
        return known | {name.split(".")[0] for name in known}


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


def variant_names() -> list[str]:
    """Return the names of the variants of families."""
    return sorted(path.stem for path in (PRESETS / "variants").glob("*.toml"))


def load_variant(name: str, *, folder: Path = PRESETS / "variants") -> Family:
    """Return a variant's row, filled up from its family's; :class:`InputError` if it breaks a rule."""
    path = folder / f"{name}.toml"
    table = read_toml(path)
    try:
        like = table.pop("like", None)
        known = family_names()
        require(like in known, f"must be one of {', '.join(known)}, not {like!r}", key="like")
        row = _inherited(read_toml(PRESETS / "families" / f"{like}.toml"), table)
        return replace(_parse_row(name, row), like=like)
    except InputError as error:
        raise error.at(file=path) from None


_OWN = ("source", "model_types", "architectures")
"""What a variant does not take from its family."""


def _inherited(base: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return a variant's table with what it takes from its family's."""
    taken = {key: value for key, value in base.items() if key not in _OWN}
    for dotted in row.pop("without", []):
        *path, last = dotted.split(".")
        table = _lookup(taken, ".".join(path)) if path else taken
        ok = isinstance(table, dict) and last in table
        require(ok, f"must name what its family has, not {dotted!r}", key="without")
        del table[last]
    return _merged(taken, row)


def _merged(base: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return two tables as one, the second's values before the first's.

    Fields, weights and ``[layers]`` are taken as a whole.
    """
    merged = base | row
    for key in base.keys() & row.keys() - {"layers"}:
        both = (base[key], row[key])
        if all(isinstance(table, dict) and not {"keys", "array"} & table.keys() for table in both):
            merged[key] = _merged(*both)
    return merged


def load_config(path: Path) -> ModelSpec:
    """Return the model of a Hugging Face ``config.json``; see :func:`read_config`."""
    family, config = read_config(path)
    try:
        model = family.model(config, name=path.parent.name or path.stem)
    except InputError as error:
        raise error.at(file=path) from None
    warn_of_unread_keys(family, config, file=path)
    return model


def warn_of_unread_keys(family: Family, config: dict[str, Any], *, file: object, prefix: str = "") -> None:
    """Warn (:class:`InputWarning`, one line) of the keys that nothing reads and no list knows as harmless."""
    unread = family.unread_keys(config)
    if unread:
        keys = ", ".join(f"{prefix}{key}={value!r:.80}" for key, value in list(unread.items())[:MAX_TOLD])
        if len(unread) > MAX_TOLD:
            keys += f" and {len(unread) - MAX_TOLD} more"
        message = f"{file}: not read in family {family.name}, and not known to change nothing: {keys}"
        warnings.warn(one_line(message), InputWarning, stacklevel=2)


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; ``ValueError`` where a key stands twice, of which one would be ignored."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"key {twice!r} stands twice")
    return found


def read_config(path: Path) -> tuple[Family, dict[str, Any]]:
    """Return the family of a Hugging Face ``config.json``, and its keys.

    The family is the one that names its class, else the one of its ``model_type``, else that of a language
    model in it.
    """
    text = read_text(path)
    try:
        config = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InputError(f"is not valid JSON: {error}", file=path) from None
    try:
        require(isinstance(config, dict), f"must be a JSON object, not {type(config).__name__}")
        model_type = config.get("model_type")
        classes = config.get("architectures")
        classes = classes if isinstance(classes, list) else []
        families = [
            family for family in _known_families() if any(one in family.architectures for one in classes)
        ]
        if not families or model_type is not None:
            ok = isinstance(model_type, str)
            require(ok, f"must be a family's name, not {model_type!r}", key="model_type")
        families += [family for family in _known_families() if model_type in family.model_types]
        if not families:
            families = _families_within(config)
        if not families:
            require(
                model_type not in config_keys().beyond,
                f"has MoE layers that no term stands for: {config_keys().beyond.get(str(model_type))}; not"
                f" {model_type!r}",
                key="model_type",
            )
            known = sum(len(family.model_types) for family in _known_families())
            raise InputError(
                f"must be one of the {known} with MoE layers in docs/families.md, not {model_type!r:.80}",
                key="model_type",
            )
    except InputError as error:
        raise error.at(file=path) from None
    return families[0], config


def _families_within(config: dict[str, Any]) -> list[Family]:
    """Return the family of the language model in one of a configuration's tables; none where there is none.

    Its keys are those of that table.
    """
    for place in config_keys().wrapped:
        inner = _lookup(config, place)
        model_type = inner.get("model_type") if isinstance(inner, dict) else None
        for family in _known_families():
            if model_type in family.model_types:
                return [replace(family, nested=[place])]
    return []


@cache
def _known_families() -> tuple[Family, ...]:
    """Return the families' rows and the variants'."""
    rows = (*map(load_family, family_names()), *map(load_variant, variant_names()))
    owner: dict[str, str] = {}
    for row in rows:
        for model_type in row.model_types:
            assert owner.setdefault(model_type, row.name) == row.name, f"two rows of {model_type}"
    return rows


_ROW_KINDS = {
    "source": str,
    "model_types": list,
    "architectures": list,
    "nested": list,
    "firsts": list,
    "usual": list,
    "ignored": list,
    "aliases": dict,
    "defaults": dict,
    "requires": dict,
    "agrees": dict,
    "model": dict,
    "layers": dict,
    "weights": dict,
    "checkpoint": dict,
}
_ROW_NEEDS = ("source", "model", "weights")


def _parse_row(name: str, table: dict[str, Any]) -> Family:
    unknown = sorted(set(table) - set(_ROW_KINDS))
    require(
        not unknown,
        f"unknown key; known are {', '.join(sorted(_ROW_KINDS))}",
        key=next(iter(unknown), None),
    )
    for key, kind in _ROW_KINDS.items():
        value = table.get(key, None if key in _ROW_NEEDS else kind())
        require(isinstance(value, kind), "is missing or of the wrong type", key=key)
    for key, allowed in table.get("requires", {}).items():
        require(
            isinstance(allowed, list), f"must be a list of values, not {allowed!r}", key=f"requires.{key}"
        )
    return Family(
        name=name,
        source=table["source"],
        requires=table.get("requires", {}),
        fields=_parse_fields(table["model"], ""),
        weights=_parse_weights(table["weights"], "weights"),
        layers=_parse_layers(table["layers"]) if "layers" in table else None,
        checkpoint=_parse_checkpoint(table["checkpoint"]) if "checkpoint" in table else None,
        model_types=table.get("model_types", [name]),
        architectures=table.get("architectures", []),
        nested=table.get("nested", []),
        firsts=table.get("firsts", []),
        usual=table.get("usual", []),
        agrees={
            key: _parse_from_config(entry, f"agrees.{key}") for key, entry in table.get("agrees", {}).items()
        },
        ignored=table.get("ignored", []),
        aliases=table.get("aliases", {}),
        defaults=table.get("defaults", {}),
    )


def _parse_weights(table: dict[str, Any], prefix: str) -> dict[str, WeightSource]:
    weights = {}
    for key, entry in table.items():
        dotted = f"{prefix}.{key}"
        require(key in WEIGHT_NAMES, f"unknown weight; known are {', '.join(WEIGHT_NAMES)}", key=dotted)
        require(isinstance(entry, dict), f"must be a table, not {entry!r}", key=dotted)
        weights[key] = build_spec(WeightSource, entry, prefix=f"{dotted}.")
    return weights


_CHECKPOINT_KEYS = ("source", "layers", "blocks", "weights")


def _parse_checkpoint(table: dict[str, Any]) -> CheckpointNames:
    for key in table:
        require(
            key in _CHECKPOINT_KEYS,
            f"unknown key; known are {', '.join(_CHECKPOINT_KEYS)}",
            key=f"checkpoint.{key}",
        )
    source: Any = table.get("source")
    layers: Any = table.get("layers")
    blocks: Any = table.get("blocks", [""])
    require(isinstance(source, str), f"must be text, not {source!r}", key="checkpoint.source")
    ok = isinstance(layers, list) and bool(layers)
    ok = ok and all(isinstance(item, str) and item.count("{layer}") == 1 for item in layers)
    require(ok, f"must be texts with {{layer}} in each, not {layers!r}", key="checkpoint.layers")
    ok = isinstance(blocks, list) and all(isinstance(item, str) for item in blocks)
    require(ok, f"must be a list of texts, not {blocks!r}", key="checkpoint.blocks")
    weights = table.get("weights", {})
    require(isinstance(weights, dict), f"must be a table, not {weights!r}", key="checkpoint.weights")
    return CheckpointNames(
        source=source,
        layers=tuple(layers),
        blocks=tuple(blocks),
        weights=_parse_weights(weights, "checkpoint.weights"),
    )


def _parse_layers(table: dict[str, Any]) -> LayerKinds:
    kinds: dict[str, Any] = {key: table[key] for key in ("sparse", "other") if key in table}
    for key, names in kinds.items():
        ok = isinstance(names, list) and all(isinstance(name, str) for name in names)
        require(ok, f"must be a list of texts, not {names!r}", key=f"layers.{key}")
    rest = {key: value for key, value in table.items() if key not in kinds}
    layers: LayerKinds = build_spec(LayerKinds, rest, prefix="layers.")
    return replace(layers, sparse=tuple(kinds.get("sparse", ())), other=tuple(kinds.get("other", ())))


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


_FIELD_KEYS = {
    "keys",
    "combine",
    "default",
    "when_true",
    "when_false",
    "values",
    "other",
    "replace",
    "count",
    "rest",
    "by_layer",
    "alike",
    "times",
    "only",
    "otherwise",
}


def _parse_from_config(table: dict[str, Any], key: str) -> FromConfig:
    for name in table:
        require(
            name in _FIELD_KEYS,
            f"unknown key; known are {', '.join(sorted(_FIELD_KEYS))}",
            key=f"{key}.{name}",
        )
    keys = table["keys"]
    ok = isinstance(keys, list) and bool(keys) and all(isinstance(item, str) for item in keys)
    require(ok, f"must be a list of configuration keys, not {keys!r}", key=f"{key}.keys")
    combines = [member.value for member in Combine]
    combine = table.get("combine")
    alone = combine is None or combine == Combine.COMPLEMENT
    require(
        combine in (None, *combines) and ("count" in table or alone is (len(keys) == 1)),
        f"must be one of {', '.join(combines)} where there are several keys, and absent or complement"
        f" otherwise, not {combine!r}",
        key=f"{key}.combine",
    )
    when = None
    if "when_true" in table or "when_false" in table:
        ok = "when_true" in table and "when_false" in table and len(keys) == 1
        require(ok, "needs when_true, when_false and a single key", key=key)
        when = (table["when_true"], table["when_false"])
    values = table.get("values")
    if values == "activations":
        values = config_keys().activations
    require(
        values is None or (isinstance(values, dict) and len(keys) == 1),
        f"must be a table or 'activations', with a single key, not {values!r}",
        key=f"{key}.values",
    )
    otherwise = table.get("otherwise")
    if isinstance(otherwise, dict):
        require("keys" in otherwise, "must be a value, or a table with keys", key=f"{key}.otherwise")
        otherwise = _parse_from_config(otherwise, f"{key}.otherwise")
    return FromConfig(
        keys=tuple(keys),
        combine=None if combine is None else Combine(combine),
        default=table.get("default"),
        when=when,
        values=values,
        other=table.get("other"),
        replace=table.get("replace"),
        count=tuple(table.get("count", ())),
        rest=table.get("rest", False),
        by_layer=table.get("by_layer", False),
        alike=table.get("alike", False),
        times=table.get("times", 1),
        only=table.get("only", {}),
        otherwise=otherwise,
    )
