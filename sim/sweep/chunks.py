"""Points that are computed together: what a worker is given, and what it gives back.

A worker is a process of this machine or of a cluster; it runs :func:`run_chunk`. A space travels as bytes
that each worker unpacks once.
"""

from __future__ import annotations

import functools
import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.sweep.evaluators import ROUTING, routing_identity
from sim.sweep.space import Choices, FieldValues, Space
from sim.sweep.version import models_version
from spec.errors import InputError, one_line, require

KEY_DIGITS = 32
LOST = "the process that computed this point ended {count} times"


class OtherModels(Exception):
    """A worker whose models are of another version than the sweep's."""


@dataclass(frozen=True)
class Row:
    """What a point comes to.

    Attributes
    ----------
    key : of the content of the point and the version of the models.
    figures : the evaluator's, then the space's columns; None where there is none.
    error : the rule that the point breaks, or what went wrong, in one line.
    """

    key: str
    figures: tuple[int | float | None, ...]
    error: str | None


@functools.lru_cache(maxsize=4)
def unpacked(packed: bytes) -> Space:
    """Return a space from what it travels as."""
    space = pickle.loads(packed)
    assert isinstance(space, Space)
    return space


def packed(space: Space) -> bytes:
    """Return a space as it travels to the workers."""
    return pickle.dumps(space)


def run_chunk(packed_space: bytes, version: str, points: Sequence[Choices]) -> list[Row]:
    """Return the row of each point; raises :class:`OtherModels` before anything runs."""
    if models_version() != version:
        raise OtherModels(models_version())
    space = unpacked(packed_space)
    return [run_point(space, choices) for choices in points]


def point_key(space: Space, choices: Choices) -> str:
    """Return a point's key: equal for points of the same content, in whatever space they are."""
    return _resolved(space, choices)[0]


def _resolved(space: Space, choices: Choices) -> tuple[str, Any, InputError | None]:
    """Return a point's key, its specs and options, or why it has none."""
    taken = space.taken(choices)
    try:
        specs, given = space.resolve(taken)
    except InputError as error:
        # A point that cannot be built is what it was asked to be.
        return _key(space, [repr(sorted(taken.items())), _specs_text(space, taken)]), None, error
    options = dict(given)
    if ROUTING in options:
        options[ROUTING] = routing_identity(str(options[ROUTING]))
    return (
        _key(space, [*(_spec_text(specs[root]) for root in sorted(specs)), repr(options)]),
        (specs, given),
        None,
    )


def _key(space: Space, parts: Sequence[str]) -> str:
    columns = repr([(name, expression.text) for name, expression in space.columns.items()])
    text = "\n".join([models_version(), space.evaluator, columns, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def _specs_text(space: Space, taken: Mapping[str, Any]) -> str:
    return "\n".join(_spec_text(space.specs[root][taken[root]]) for root in sorted(space.kind.roots))


@functools.lru_cache(maxsize=256)
def _spec_text(spec: Any) -> str:
    """Return a spec with all its fields; dataclasses show them in their order."""
    return repr(spec)


def run_point(space: Space, choices: Choices) -> Row:
    """Compute a point; whatever goes wrong is its row's error."""
    key, resolved, refused = _resolved(space, choices)
    names = (*space.kind.figures, *space.columns)
    if refused is not None:
        return Row(key, (None,) * len(names), str(refused))
    figures: dict[str, Any] = {}
    error: str | None = None
    try:
        figures = dict(space.kind.run(*resolved))
        values = _Values(figures, FieldValues(space, choices))
        for name, expression in space.columns.items():
            try:
                value = float(expression(values))
                require(math.isfinite(value), f"{expression.text!r} must be finite, not {value}")
            except (InputError, TypeError, ValueError, OverflowError) as wrong:
                raise InputError(str(wrong), key=f"columns.{name}") from None
            figures[name] = value
    except InputError as wrong:
        error = str(wrong)
    except Exception as wrong:  # a defect, or no memory: of this point alone
        error = one_line(f"{type(wrong).__name__}: {' '.join(str(wrong).split())}")
    if error is not None:
        figures = {}  # what was computed before it would stand on the front
    return Row(key, tuple(figures.get(name) for name in names), error)


def lost_row(space: Space, choices: Choices, count: int) -> Row:
    """Return the row of a point that ends the process that computes it."""
    names = (*space.kind.figures, *space.columns)
    return Row(point_key(space, choices), (None,) * len(names), LOST.format(count=count))


class _Values(Mapping[str, Any]):
    """Figures first, then fields."""

    def __init__(self, figures: Mapping[str, Any], fields: FieldValues) -> None:
        self.figures = figures
        self.fields = fields

    def __getitem__(self, name: str) -> Any:
        return self.figures[name] if name in self.figures else self.fields[name]

    def __iter__(self) -> Any:
        return iter((*self.figures, *self.fields))

    def __len__(self) -> int:
        return len(self.figures) + len(self.fields)
