"""Which layers of a model are MoE layers, by the keys that its configuration has for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spec.errors import require
from spec.model import MAX_LAYERS

MAX_DIGITS = 10
"""Of a layer's number in a text, blanks included."""
ALL_BEHIND = -1
"""As the number of the last MoE layer: that of the last layer."""


@dataclass(frozen=True, kw_only=True)
class LayerKinds:
    """The keys that say which layers are MoE layers; the others are dense.

    Layer i of L, counted from 0, is an MoE layer if ``first <= i <= last``, ``i - phase`` is a multiple of
    ``step``, and ``dense`` does not list it. Where the configuration has them, ``listed`` or ``kinds`` say it
    alone. A family's row (``[layers]``) names the keys that its implementation reads.

    Attributes
    ----------
    total : key of the number of layers, L.
    first, last : keys of the first MoE layer (0 where absent) and the last one (-1: L - 1).
    step : key of the distance of MoE layers (1 where absent), or of a list with 0 or 1, or false or true, for
        each layer.
    phase : layer from which they are counted; -1: the first one is layer ``step - 1``.
    dense : key of a list of layers that are dense.
    listed : key of a list of the MoE layers, or of a text with their numbers and commas between.
    kinds : key of a list with a kind for each layer.
    sparse, other : the kinds that are MoE layers, and those that are not.
    """

    total: str
    first: str | None = None
    last: str | None = None
    step: str | None = None
    phase: int = 0
    dense: str | None = None
    listed: str | None = None
    kinds: str | None = None
    sparse: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The keys that are read."""
        keys = (self.total, self.first, self.last, self.step, self.dense, self.listed, self.kinds)
        return [key for key in keys if key is not None]

    def count(self, config: dict[str, Any]) -> tuple[int, int]:
        """Return how many layers are MoE layers, and how many dense: 1 and 0 without a number of layers.

        Raises :class:`InputError` for a key that says nothing about such layers, or leaves no MoE layer.
        """
        total = config.get(self.total)
        if total is None:
            return 1, 0
        _require_whole(total, self.total, low=1, high=MAX_LAYERS)
        found: dict[str | None, Any] = {key: config[key] for key in self.keys if config.get(key) is not None}
        moe = self._moe_layers(total, found)
        stated = " and ".join(f"config.{key}" for key in found)
        require(bool(moe), f"must leave an MoE layer among {total} layers", key=stated)
        return len(moe), total - len(moe)

    def _moe_layers(self, total: int, found: dict[str | None, Any]) -> set[int]:
        if self.kinds in found:
            kinds = _require_list(found[self.kinds], self.kinds, length=total)
            known = (*self.sparse, *self.other)
            for kind in kinds:
                require(
                    kind in known,
                    f"must have one of {', '.join(known)} for each layer, not {kind!r:.80}",
                    key=f"config.{self.kinds}",
                )
            return {layer for layer, kind in enumerate(kinds) if kind in self.sparse}
        if self.listed in found:
            return _require_layers(found[self.listed], self.listed, total)
        first, last, step = (
            found.get(self.first, 0),
            found.get(self.last, ALL_BEHIND),
            found.get(self.step, 1),
        )
        _require_whole(first, self.first, low=0)
        _require_whole(last, self.last, low=ALL_BEHIND)
        last = total - 1 if last == ALL_BEHIND else min(last, total - 1)
        if isinstance(step, list):
            flags = _require_list(step, self.step, length=total)
            for flag in flags:
                if type(flag) is not bool:
                    _require_whole(flag, self.step, low=0, high=1)
            moe = {layer for layer, flag in enumerate(flags) if flag}
        else:
            _require_whole(step, self.step, low=1)
            moe = {layer for layer in range(total) if (layer - self.phase) % step == 0}
        dense = _require_layers(found[self.dense], self.dense, total) if self.dense in found else set()
        return {layer for layer in moe if first <= layer <= last} - dense


def _require_whole(value: object, key: str | None, *, low: int, high: int | None = None) -> None:
    limits = f"from {low}" if high is None else f"in {low}..{high}"
    ok = type(value) is int and low <= value and (high is None or value <= high)
    require(ok, f"must be a whole number {limits}, not {value!r:.80}", key=f"config.{key}")


def _require_list(value: object, key: str | None, *, length: int | None = None) -> list[Any]:
    require(isinstance(value, list), f"must be a list, not {value!r:.80}", key=f"config.{key}")
    assert isinstance(value, list)
    require(
        length is None or len(value) == length,
        f"must have a value for each of {length} layers, not {len(value)}",
        key=f"config.{key}",
    )
    return value


def _require_layers(value: object, key: str | None, total: int) -> set[int]:
    if isinstance(value, str):
        numbers = value.split(",")
        ok = all(number.strip().isdecimal() and len(number) < MAX_DIGITS for number in numbers)
        require(ok, f"must be numbers of layers with commas between, not {value!r:.80}", key=f"config.{key}")
        value = [int(number) for number in numbers]
    layers = _require_list(value, key)
    for layer in layers:
        ok = type(layer) is int and 0 <= layer < total
        require(ok, f"must list layers in 0..{total - 1}, not {layer!r:.80}", key=f"config.{key}")
    return set(layers)
