"""The space of a sweep: a TOML file's axes, constraints and objectives, and the points that they make.

A point is known by its *choices*: for each axis the place of its value in the list, or, where the axis is
continuous, the value. ``docs/sweep.md`` describes the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sim.sweep.evaluators import (
    EVALUATORS,
    ROUTING,
    ROUTING_PARAMETERS,
    Evaluator,
    routing_identity,
    routing_text,
)
from sim.workload import is_vector
from spec.errors import InputError, require
from spec.expression import Expression, parse
from spec.fields import field_type, field_value, value_at, with_fields
from spec.files import preset_path, read_toml

PRESET_FOLDER = "sweeps"
METHODS = ("grid", "random", "search")
SAMPLERS = ("nsga2", "tpe")
SENSES = ("min", "max")
RANGE_KEYS = ("from", "to", "step", "factor", "points", "log")
KEYS = (
    *("evaluate", "method", "points", "seed", "constraints", "fixed", "axes", "linked"),
    *("columns", "objectives", "search"),
)
MAX_VALUES = 100_000
MAX_GRID = 10_000_000
MAX_POINTS = 10_000_000
MAX_REJECTED = 1000
"""Draws in a row that constraints may refuse."""
MAX_REJECTED_GRID = 1_000_000
"""The same of a grid's points in random order, of which none comes twice."""
DEFAULT_POPULATION = 50
Choices = tuple[int | float, ...]


@dataclass(frozen=True)
class Axis:
    """A field, or fields that change together, and their values.

    Attributes
    ----------
    names : dotted names of the fields.
    shown : for each value a tuple with one entry for each name, as the file has them.
    values : the same as the fields take them; of fields that are no spec's as they are shown.
    low, high, log : ends of a continuous axis, which has a single name and no values.
    """

    names: tuple[str, ...]
    shown: tuple[tuple[Any, ...], ...] = ()
    values: tuple[tuple[Any, ...], ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def continuous(self) -> bool:
        """Whether any value between its ends may be drawn."""
        return not self.values

    def at(self, choice: int | float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the values that a choice stands for, as shown and as taken."""
        if self.continuous:
            return (choice,), (choice,)
        return self.shown[int(choice)], self.values[int(choice)]

    def drawn(self, share: float) -> int | float:
        """Return the choice at a share, below 1, of the axis."""
        if not self.continuous:
            return int(share * len(self.values))
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Space:
    """A sweep's space, checked.

    Attributes
    ----------
    name : of the file, without folder and ending.
    evaluator : name of the kind of point.
    method : ``grid``: all points; ``random``: ``points`` of them; ``search``: ``points`` of them, by Optuna.
    axes : the last one runs fastest.
    fixed : values, shown and as taken, of fields that do not change.
    specs : specs by root and name, of every name that a point may have.
    constraints : expressions over fields that a point has to meet.
    columns : further figures, expressions over figures and fields.
    objectives : figure or column -> ``min`` or ``max``.
    sampler, population : of ``search``.
    text : what the sweep is, as JSON, for the result's file.
    """

    name: str
    evaluator: str
    method: str
    points: int
    seed: int
    axes: tuple[Axis, ...]
    fixed: Mapping[str, tuple[Any, Any]]
    specs: Mapping[str, Mapping[str, Any]]
    constraints: tuple[Expression, ...]
    columns: Mapping[str, Expression]
    objectives: Mapping[str, str]
    sampler: str
    population: int
    text: str

    @property
    def kind(self) -> Evaluator:
        """The kind of point."""
        return EVALUATORS[self.evaluator]

    @property
    def names(self) -> list[str]:
        """Names of the fields that change, in the order of the file."""
        return [name for axis in self.axes for name in axis.names]

    @cached_property
    def grid_size(self) -> int:
        """Points without constraints; 0 where an axis is continuous."""
        return math.prod(len(axis.values) for axis in self.axes)

    @cached_property
    def chunk(self) -> int:
        """Points that a worker is given at a time; of the space alone, so that any number of them agrees."""
        count = self.grid_size if self.method == "grid" else self.points
        return min(max(count // 64, 1), 64)

    @cached_property
    def identity(self) -> str:
        """What the points are made of: the file's content, and that of all files that it names."""
        traces = [
            routing_identity(str(text))
            for name, (text, _) in [*self.fixed.items(), *self._all_values(ROUTING)]
            if name == ROUTING
        ]
        return hashlib.sha256("\n".join([self.text, repr(self.specs), *traces]).encode()).hexdigest()

    def _all_values(self, wanted: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
        for axis in self.axes:
            if wanted in axis.names and not axis.continuous:
                place = axis.names.index(wanted)
                for shown, values in zip(axis.shown, axis.values, strict=True):
                    yield wanted, (shown[place], values[place])

    # Points.

    def shown(self, choices: Choices) -> dict[str, Any]:
        """Return the values of the axes' fields as the file has them."""
        found: dict[str, Any] = {}
        for axis, choice in zip(self.axes, choices, strict=True):
            found.update(zip(axis.names, axis.at(choice)[0], strict=True))
        return found

    def taken(self, choices: Choices) -> dict[str, Any]:
        """Return the values of all fields that are set, as specs take them."""
        found = {name: value for name, (_, value) in self.fixed.items()}
        for axis, choice in zip(self.axes, choices, strict=True):
            found.update(zip(axis.names, axis.at(choice)[1], strict=True))
        return found

    def resolve(self, taken: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the specs and options of a point; :class:`InputError` where they break a rule."""
        kind = self.kind
        given = {name: taken.get(name, option.default) for name, option in kind.options.items()}
        if ROUTING in kind.options:
            parameters = {
                name.partition(".")[2]: value
                for name, value in taken.items()
                if name.startswith(f"{ROUTING}.")
            }
            given[ROUTING] = routing_text(given[ROUTING], parameters)
        specs = {}
        for root in kind.roots:
            changes = {
                name.partition(".")[2]: value for name, value in taken.items() if name.startswith(f"{root}.")
            }
            spec = self.specs[root][taken[root]]
            specs[root] = with_fields(spec, changes, root) if changes else spec
        specs |= {beside: self.specs[beside][taken[root]] for beside, (root, _) in kind.beside.items()}
        return specs, given

    def allowed(self, choices: Choices) -> bool:
        """Whether a point meets the constraints; :class:`InputError` if one cannot be computed."""
        if not self.constraints:
            return True
        values = FieldValues(self, choices)
        for number, constraint in enumerate(self.constraints):
            try:
                if not constraint(values):
                    return False
            except InputError as error:
                raise error.at(key=f"constraints.{number}") from None
        return True

    def candidates(self) -> Iterator[Choices]:
        """Yield the choices of the points of a grid or of random ones, constraints met, in their order."""
        if self.method == "grid" or self.grid_size:
            yield from self._of_grid()
        else:
            yield from self._drawn()

    def _of_grid(self) -> Iterator[Choices]:
        """Yield the grid's points, or some of them in random order, none twice."""
        sizes = [len(axis.values) for axis in self.axes]
        left = self.points if self.method == "random" else self.grid_size
        refused = 0
        order: Iterator[int] = iter(range(self.grid_size))
        if self.method == "random":
            order = shuffled(self.grid_size, self.seed)
        for index in order:
            choices = []
            for size in reversed(sizes):
                index, place = divmod(index, size)
                choices.append(place)
            point = tuple(reversed(choices))
            if self.allowed(point):
                yield point
                left, refused = left - 1, 0
                if left == 0:
                    return
                continue
            refused += 1
            if refused == MAX_REJECTED_GRID and self.grid_size > MAX_GRID:
                raise self._refused(MAX_REJECTED_GRID, left)

    def _drawn(self) -> Iterator[Choices]:
        """Yield points of continuous axes; each is drawn by its own number, whatever came before."""
        left, refused, number = self.points, 0, 0
        while left:
            shares = np.random.default_rng([self.seed, number]).random(len(self.axes)).tolist()
            number += 1
            point = tuple(axis.drawn(share) for axis, share in zip(self.axes, shares, strict=True))
            if self.allowed(point):
                yield point
                left, refused = left - 1, 0
                continue
            refused += 1
            if refused == MAX_REJECTED:
                raise self._refused(MAX_REJECTED, left)

    def _refused(self, draws: int, left: int) -> InputError:
        return InputError(
            f"leave no point among {draws} drawn in a row ({self.points - left} found)", key="constraints"
        )

    def check_not_empty(self) -> None:
        """Raise :class:`InputError` unless there is a point."""
        if self.method != "search" and next(self.candidates(), None) is None:
            raise InputError(f"leave none of {self.grid_size} points", key="constraints")


class FieldValues(Mapping[str, Any]):
    """Values of fields of a point by dotted names, as constraints and columns read them."""

    def __init__(self, space: Space, choices: Choices) -> None:
        self.space = space
        self.set = {**{name: shown for name, (shown, _) in space.fixed.items()}, **space.shown(choices)}
        self.choices = choices

    def __getitem__(self, name: str) -> Any:
        """Return the value that is set, else that of the table above it, else the spec's or the default."""
        if name in self.set:
            return self.set[name]
        kind = self.space.kind
        if name in kind.options:
            return kind.options[name].default
        root, _, rest = name.partition(".")
        if not rest:
            raise KeyError(name)
        taken = self.space.taken(self.choices)
        above, below = name, ""
        while "." in above:
            above, _, part = above.rpartition(".")
            below = f"{part}.{below}" if below else part
            if above in taken and above != root:
                return value_at(taken[above], below)
        return value_at(self.space.specs[root][taken[root]], rest)

    def __iter__(self) -> Iterator[str]:
        """Yield the names that are set."""
        return iter(self.set)

    def __len__(self) -> int:
        """Return how many are set."""
        return len(self.set)


def shuffled(size: int, seed: int) -> Iterator[int]:
    """Yield each of the numbers below ``size`` once, in an order of ``seed``; no list of them is made.

    A Feistel network of four rounds permutes the next power of 4; what is too large goes through it again.
    """
    half = max(1, (size - 1).bit_length() + 1 >> 1)
    mask = (1 << half) - 1
    keys = [int(key) for key in np.random.default_rng([seed, size]).integers(1 << 62, size=4)]
    for number in range(size):
        place = number
        while True:
            left, right = place >> half, place & mask
            for key in keys:
                mixed = (right + key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
                mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ (mixed >> 32 & mask)
            place = left << half | right
            if place < size:
                break
        yield place


# The file.


def load_space(name: str) -> Space:
    """Return the space of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    path = preset_path(PRESET_FOLDER, name, "space")
    table = read_toml(path)
    try:
        return read_space(table, path.stem)
    except InputError as error:
        raise error.at(file=path) from None


def read_space(table: Mapping[str, Any], name: str) -> Space:
    """Return the space of a table; :class:`InputError` on bad input."""
    for key in table:
        require(key in KEYS, f"unknown key; known are {', '.join(sorted(KEYS))}", key=key)
    evaluator = _choice(table, "evaluate", "layer", tuple(EVALUATORS))
    method = _choice(table, "method", "grid", METHODS)
    seed = _whole(table, "seed", 0, 0, 1 << 62, "")
    require(
        method != "grid" or "points" not in table,
        "is for methods random and search, not for grid",
        key="points",
    )
    require(method == "grid" or "points" in table, f"is missing with method {method}", key="points")
    points = _whole(table, "points", 0, 1, MAX_POINTS, "") if method != "grid" else 0
    search = _table(table, "search")
    require(
        method == "search" or "search" not in table, f"is for method search, not for {method}", key="search"
    )
    for key in search:
        require(
            key in ("sampler", "population"),
            "unknown key; known are population, sampler",
            key=f"search.{key}",
        )
    reader = _Reader(evaluator)
    fixed = {
        key: (value, reader.value(key, value, f"fixed.{key}"))
        for key, value in _flat(_table(table, "fixed"), ranges=False)
    }
    axes = [reader.axis(key, value, method) for key, value in _flat(_table(table, "axes"), ranges=True)]
    linked = table.get("linked", [])
    require(isinstance(linked, list), f"must be tables [[linked]], not {linked!r}", key="linked")
    axes += [reader.linked(number, group) for number, group in enumerate(linked)]
    require(bool(axes), "must have at least one axis", key="axes")
    seen: dict[str, str] = dict.fromkeys(fixed, "fixed")
    for axis in axes:
        for field in axis.names:
            require(field not in seen, f"is given already in {seen.get(field)}", key=f"axes.{field}")
            seen[field] = "axes"
    kind = EVALUATORS[evaluator]
    for root in (*kind.roots, *(key for key, option in kind.options.items() if option.needed)):
        require(root in seen, f"is missing: {root} must be there or in axes", key=f"fixed.{root}")
    size = math.prod(len(axis.values) for axis in axes)
    if method == "grid":
        require(
            size <= MAX_GRID,
            f"must make at most {MAX_GRID} points, not {size}; method random takes some",
            key="axes",
        )
    constraints = [
        reader.expression(text, f"constraints.{number}", ())
        for number, text in enumerate(_list(table, "constraints"))
    ]
    columns: dict[str, Expression] = {}
    for key, text in _table(table, "columns").items():
        figures = (*kind.figures, *columns)
        named = key not in figures and key.isidentifier() and key not in RESERVED
        require(named, f"must be a new name of letters, digits and _, not {key!r}", key=f"columns.{key}")
        columns[key] = reader.expression(text, f"columns.{key}", figures)
    objectives = dict(_table(table, "objectives")) or dict.fromkeys(kind.objectives, "min")
    for key, sense in objectives.items():
        known = ", ".join((*kind.figures, *columns))
        require(
            key in kind.figures or key in columns, f"is no figure; there are {known}", key=f"objectives.{key}"
        )
        require(sense in SENSES, f"must be min or max, not {sense!r}", key=f"objectives.{key}")
    space = Space(
        name=name,
        evaluator=evaluator,
        method=method,
        points=points,
        seed=seed,
        axes=tuple(axes),
        fixed=fixed,
        specs=reader.specs(fixed, axes),
        constraints=tuple(constraints),
        columns=columns,
        objectives=objectives,
        sampler=_choice(search, "sampler", "nsga2", SAMPLERS, "search."),
        population=_whole(search, "population", DEFAULT_POPULATION, 2, 10_000, "search."),
        text=json.dumps(table, sort_keys=False, default=str),
    )
    space.check_not_empty()
    return space


RESERVED = ("point", "error", "key", "models")


class _Reader:
    """Reads fields of an evaluator's points."""

    def __init__(self, evaluator: str) -> None:
        self.evaluator = evaluator
        self.kind = EVALUATORS[evaluator]

    def type_of(self, name: str, key: str) -> Any:
        """Return the type of a spec's field, None of an option; :class:`InputError` if it is neither."""
        root, _, rest = name.partition(".")
        if root in self.kind.roots and rest:
            return field_type(self.kind.roots[root].cls, rest, key)
        if name in self.kind.roots or name in self.kind.options:
            return None
        if root == ROUTING and ROUTING in self.kind.options and rest in ROUTING_PARAMETERS:
            return None
        known = [*(f"{one}, {one}.FIELD" for one in self.kind.roots), *self.kind.options]
        if ROUTING in self.kind.options:
            known.append(f"{ROUTING}.PARAMETER ({', '.join(ROUTING_PARAMETERS)})")
        raise InputError(
            f"names no field of evaluate = {self.evaluator!r}; there are {', '.join(known)}", key=key
        )

    def value(self, name: str, value: Any, key: str) -> Any:
        """Return a value as its field takes it."""
        hint = self.type_of(name, key)
        if hint is not None:
            return field_value(hint, value, key)
        if name in self.kind.options:
            return self.kind.options[name].check(value, key)
        if name in self.kind.roots:
            require(type(value) is str and bool(value), f"must be a name, not {value!r}", key=key)
            require(
                not is_vector(value), f"must not be a vector, whose tokens are its own: {value!r}", key=key
            )
            return value
        require(
            type(value) in (int, float) and abs(value) < math.inf,
            f"must be a finite number, not {value!r}",
            key=key,
        )
        return value

    def axis(self, name: str, given: Any, method: str) -> Axis:
        key = f"axes.{name}"
        self.type_of(name, key)
        if isinstance(given, dict):
            found = _range(given, key)
            if isinstance(found, tuple):
                low, high, log = found
                require(method != "grid", "needs step, factor or points in a grid", key=key)
                self.value(name, low, key)
                return Axis((name,), low=low, high=high, log=log)
            given = found
        require(isinstance(given, list), f"must be a list or a range {{from, to}}, not {given!r}", key=key)
        require(bool(given), "must have at least one value", key=key)
        require(len(given) <= MAX_VALUES, f"must have at most {MAX_VALUES} values, not {len(given)}", key=key)
        values = [self.value(name, value, key) for value in given]
        _check_different(given, key)
        return Axis((name,), tuple((value,) for value in given), tuple((value,) for value in values))

    def linked(self, number: int, group: Any) -> Axis:
        key = f"linked.{number}"
        require(isinstance(group, dict) and bool(group), f"must be a table of lists, not {group!r}", key=key)
        lists = dict(_flat(group, ranges=False))
        lengths = set()
        for name, given in lists.items():
            self.type_of(name, f"{key}.{name}")
            require(
                isinstance(given, list) and bool(given), f"must be a list, not {given!r}", key=f"{key}.{name}"
            )
            lengths.add(len(given))
        require(len(lengths) == 1, f"must be lists of the same length, not {sorted(lengths)}", key=key)
        columns = [
            [self.value(name, value, f"{key}.{name}") for value in given] for name, given in lists.items()
        ]
        shown = list(zip(*lists.values(), strict=True))
        _check_different(shown, key)
        return Axis(tuple(lists), tuple(shown), tuple(zip(*columns, strict=True)))

    def specs(self, fixed: Mapping[str, tuple[Any, Any]], axes: Sequence[Axis]) -> dict[str, dict[str, Any]]:
        """Return every spec that a point may name, loaded."""
        found: dict[str, dict[str, Any]] = {}
        for root, of in self.kind.roots.items():
            names = [fixed[root][1]] if root in fixed else []
            for axis in axes:
                if root in axis.names:
                    names += [values[axis.names.index(root)] for values in axis.values]
            found[root] = {name: of.load(name) for name in dict.fromkeys(names)}
        for beside, (root, load) in self.kind.beside.items():
            found[beside] = {name: load(name) for name in found[root]}
        return found

    def expression(self, text: Any, key: str, figures: Sequence[str]) -> Expression:
        require(isinstance(text, str), f"must be an expression in quotes, not {text!r}", key=key)
        try:
            expression = parse(text)
        except InputError as error:
            raise error.at(key=key) from None
        for name in expression.names:
            if name not in figures:
                self.type_of(name, key)
        return expression


def _check_different(values: Sequence[Any], key: str) -> None:
    seen = set()
    for value in values:
        text = repr(value)
        require(text not in seen, f"must hold each value once, not {value!r} again", key=key)
        seen.add(text)


def _range(given: Mapping[str, Any], key: str) -> list[Any] | tuple[float, float, bool]:
    """Return the values of a range, or its ends and whether it is logarithmic if any value between will do.

    Between whole ends all values are whole.
    """
    for name in given:
        require(name in RANGE_KEYS, f"unknown key; known are {', '.join(RANGE_KEYS)}", key=f"{key}.{name}")
    for name in ("from", "to"):
        require(name in given, "is missing", key=f"{key}.{name}")
    for name, value in given.items():
        if name == "log":
            require(type(value) is bool, f"must be true or false, not {value!r}", key=f"{key}.log")
        else:
            good = type(value) in (int, float) and abs(value) < 1e300
            require(good, f"must be a finite number, not {value!r}", key=f"{key}.{name}")
    low, high, log = given["from"], given["to"], given.get("log", False)
    require(low <= high, f"must be at least from={low}, not {high}", key=f"{key}.to")
    ways = [name for name in ("step", "factor", "points") if name in given]
    require(len(ways) <= 1, f"must have one of step, factor and points, not {' and '.join(ways)}", key=key)
    log = log or "factor" in given
    require(not log or low > 0, f"must be above 0 in a logarithmic range, not {low}", key=f"{key}.from")
    whole = type(low) is int and type(high) is int
    if not ways and whole and not log:
        ways, given = ["step"], {**given, "step": 1}
    if not ways:
        require(low < high, f"must be above from={low}, not {high}", key=f"{key}.to")
        require(not whole, "needs factor or points: its ends are whole numbers", key=key)
        return float(low), float(high), log
    way, by = ways[0], given[ways[0]]
    if way == "points":
        require(
            type(by) is int and 2 <= by <= MAX_VALUES,
            f"must be in 2..{MAX_VALUES}, not {by}",
            key=f"{key}.points",
        )
        first, last = (math.log(low), math.log(high)) if log else (float(low), float(high))
        values = np.linspace(first, last, by).tolist()
        values = [low, *((math.exp(value) if log else value) for value in values[1:-1]), high]
    elif way == "step":
        require(not log, "is for ranges that are not logarithmic", key=f"{key}.step")
        require(by > 0, f"must be above 0, not {by}", key=f"{key}.step")
        whole = whole and type(by) is int
        count = math.floor((high - low) / by + 1e-9) + 1
        require(count <= MAX_VALUES, f"must make at most {MAX_VALUES} values, not {count}", key=f"{key}.step")
        values = [low + number * by for number in range(count)]
    else:
        require(by > 1, f"must be above 1, not {by}", key=f"{key}.factor")
        count = math.floor(math.log(high / low) / math.log(by) + 1e-9) + 1
        require(
            count <= MAX_VALUES, f"must make at most {MAX_VALUES} values, not {count}", key=f"{key}.factor"
        )
        values = [low * by**number for number in range(count)]
    if not whole:
        return [float(value) for value in values]
    return list(dict.fromkeys(round(value) for value in values))


def _flat(table: Mapping[str, Any], *, ranges: bool, prefix: str = "") -> list[tuple[str, Any]]:
    """Return dotted names and values of nested tables; a range, where there may be one, is a value."""
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and not (ranges and ("from" in value or "to" in value)):
            found += _flat(value, ranges=ranges, prefix=f"{dotted}.")
        else:
            found.append((dotted, value))
    return found


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"must be a table, not {value!r}", key=key)
    return value


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"must be a list, not {value!r}", key=key)
    return value


def _choice(
    table: Mapping[str, Any], key: str, default: str, choices: Sequence[str], prefix: str = ""
) -> str:
    value = table.get(key, default)
    if value not in choices:
        raise InputError(f"must be one of {', '.join(choices)}, not {value!r}", key=prefix + key)
    return str(value)


def _whole(table: Mapping[str, Any], key: str, default: int, low: int, high: int, prefix: str) -> int:
    value = table.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"must be a whole number in {low}..{high}, not {value!r}", key=prefix + key)
    return value
