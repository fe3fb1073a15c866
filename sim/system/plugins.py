"""Policies of a user's own: a Python file with one function, named where a policy's name is asked for.

What the function is called says what it is (:data:`KINDS`); the file's name is the policy's. Whatever it
returns is checked for its shape and its values before anything is done with it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.system import caches, exchange, execution, parallel, placement, policies, widths
from spec.errors import InputError, require
from spec.files import read_text

SUFFIX = ".py"
Check = Callable[[Any, tuple[Any, ...]], str]
"""What a function returned and was given, to the rule that it breaks, or nothing."""


@dataclass(frozen=True)
class Kind:
    """Functions of a family: the registry that they stand in, and what holds of their results."""

    family: str
    registry: dict[str, Any]
    broken: Check


def _array(shape: tuple[int, ...], kind: str, found: Any, least: float | None = None) -> str:
    """Return the rule that an array breaks: its shape, its type, finite, not below ``least``."""
    types = {"bool": np.bool_, "int64": np.integer, "float64": np.number}
    array = isinstance(found, np.ndarray)
    if not array or found.shape != shape or not np.issubdtype(found.dtype, types[kind]):
        got = f"{found.dtype} {found.shape}" if array else type(found).__name__
        return f"must return an array of {kind} of shape {shape}, not {got}"
    if least is not None and not (np.isfinite(found) & (found >= least)).all():
        return f"must return finite numbers of at least {least:g}"
    return ""


def _placed(found: Any, given: tuple[Any, ...]) -> str:
    (placing,) = given
    layers, experts = placing.load.shape
    rule = _array((layers, placing.places), "int64", found, 0)
    if not rule and not all(set(row) == set(range(experts)) for row in found.tolist()):
        rule = f"must return every expert of 0..{experts - 1} in each layer, and no other"
    return rule


def _mix(found: Any, given: tuple[Any, ...]) -> str:
    cluster, experts = given
    if not isinstance(found, parallel.Mix):
        return f"must return a Mix, not {type(found).__name__}"
    product = found.tensor * found.expert * found.data
    if min(found.tensor, found.expert, found.data) < 1 or product != cluster.devices:
        return f"must return a Mix of {cluster.devices} devices, not {found}"
    even = experts % found.expert == 0
    return "" if even else f"must return groups that divide {experts}, not {found.expert}"


def _layers(found: Any, given: tuple[Any, ...]) -> str:
    return _array((len(given[0].ids),), "float64", found, 0.0)


def _mask(found: Any, given: tuple[Any, ...]) -> str:
    return _array(given[0].counts.shape, "bool", found)


def _numbers(found: Any, given: tuple[Any, ...]) -> str:
    return _array(given[0].shape, "float64", found, 0.0)


def _bits(found: Any, given: tuple[Any, ...]) -> str:
    rule = _numbers(found, given)
    return rule or ("" if (found > 0).all() else "must return bits above 0")


def _rows(found: Any, given: tuple[Any, ...]) -> str:
    counts = given[0].counts
    rule = _array(counts.shape, "int64", found, 0)
    nothing = not rule and counts.any() and not np.minimum(found, counts).any()
    return "must return rows for at least one token" if nothing else rule


KINDS: dict[str, Kind] = {
    "split": Kind("split", policies.POLICIES, _mask),
    "value": Kind("cache", caches.CACHES, _numbers),
    "fetch": Kind("cache", caches.PREFETCHERS, _mask),
    "place": Kind("placement", placement.PLACEMENTS, _placed),
    "mix": Kind("parallel", parallel.MIXES, _mix),
    "transfer": Kind("exchange", exchange.WAYS, _layers),
    "overlap": Kind("exchange", exchange.OVERLAPS, _layers),
    "rows": Kind("dispatch", execution.EXECUTIONS, _rows),
    "bits": Kind("formats", widths.WIDTHS, _bits),
}
"""What a plug-in's function is called: its family, where the others are, what its results must be."""

_plugged: dict[str, Path] = {}
"""Policies that came from files, of all families."""


def plugged(family: str, given: str) -> str:
    """Return a policy's name; of a file, whose policy joins its family for the rest of this process."""
    if not given.endswith(SUFFIX):
        return given
    path = Path(given)
    kinds = {function: kind for function, kind in KINDS.items() if kind.family == family}
    try:
        source = compile(read_text(path), str(path), "exec")
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, None))  # type: ignore[arg-type]
        exec(source, module.__dict__)
    except InputError as error:
        raise error.at(key="policy") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{type(error).__name__}: {error}", file=path, key="policy") from None
    found = [name for name in kinds if callable(getattr(module, name, None))]
    if len(found) != 1:
        names = " or ".join(kinds)
        raise InputError(f"must have one function {names}, not {len(found)}", file=path, key="policy")
    (function,) = found
    registry, name = kinds[function].registry, path.stem
    taken = name in _names(family) and _plugged.get(name) is None
    require(not taken, f"must have another name than a policy of {family}: {name!r}", key="policy")
    registry[name] = _guarded(path, function, getattr(module, function), kinds[function].broken)
    _plugged[name] = path
    return name


def _names(family: str) -> set[str]:
    return {name for kind in KINDS.values() if kind.family == family for name in kind.registry}


def _guarded(path: Path, name: str, function: Callable[..., Any], broken: Check) -> Callable[..., Any]:
    def guarded(*given: Any) -> Any:
        try:
            with _unwritable(given):
                # What a copy of a dataclass works out and keeps is its own.
                found = function(*(copy.copy(one) if is_dataclass(one) else one for one in given))
        except (Exception, SystemExit) as error:
            raise InputError(f"{type(error).__name__}: {error}", file=path, key=name) from None
        rule = broken(found, given)
        if rule:
            raise InputError(rule, file=path, key=name)
        return found

    return guarded


@contextlib.contextmanager
def _unwritable(given: tuple[Any, ...]) -> Iterator[None]:
    """Make all arrays that are given read-only for a while: others are given the same ones."""
    arrays = [array for array in _arrays(given) if array.flags.writeable]
    for array in arrays:
        array.flags.writeable = False
    try:
        yield
    finally:
        for array in arrays:
            array.flags.writeable = True


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of a value: itself, of its items, or of the fields of its dataclasses."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _arrays(item)
    elif is_dataclass(value):
        yield from _arrays(list(vars(value).values()))


@contextlib.contextmanager
def blamed(*names: str | None) -> Iterator[None]:
    """Turn what a plug-in does against the laws of its family into a user's error."""
    try:
        yield
    except ArithmeticError as error:
        files = [_plugged[name] for name in names if name in _plugged]
        if not files:
            raise
        raise InputError(str(error), file=files[0], key="policy") from None
