"""What the benches of single blocks share: traffic, the first divergence, planted bugs."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bfm import Trace

TRAFFIC = ("none", "half", "bursts")
PATTERN_CYCLES = 4096
DIVERGED = (AssertionError, pytest.fail.Exception)


def pattern_of(rng: np.random.Generator, kind: str) -> np.ndarray | None:
    """Return a ready pattern for :func:`sim.streams.readiness`: always, half at random, or long runs."""
    if kind == "none":
        return None
    if kind == "half":
        pattern = rng.random(PATTERN_CYCLES) < 0.5
    else:
        runs = rng.geometric(1 / 12, size=PATTERN_CYCLES)
        pattern = np.repeat(np.arange(runs.size) % 2 == 0, runs)[:PATTERN_CYCLES]
    pattern[-1] = True
    return pattern


def ready_in(pattern: np.ndarray | None) -> Callable[[int], bool]:
    """Return the same pattern as a function of the cycle, for :class:`tests.bfm.Sink`."""
    if pattern is None:
        return lambda _cycle: True
    return lambda cycle: cycle >= pattern.size or bool(pattern[cycle])


def arrivals_of(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Return arrival cycles: all at once, with gaps, or in bursts."""
    if kind == "none":
        return np.zeros(count, dtype=np.int64)
    if kind == "half":
        return np.cumsum(rng.integers(0, 2, count) + 1) - 1
    return np.cumsum(1 + (rng.random(count) < 0.1) * rng.integers(1, 40, count)) - 1


def bits_of(layout, **fields) -> int:
    """Return a payload as an unsigned integer; array fields take arrays."""
    return layout.const({name: np.asarray(value).tolist() for name, value in fields.items()}).as_value().value


def first_difference(got, want) -> int | None:
    """Return the first position at which two sequences differ, in length too, or None."""
    for n in range(max(len(got), len(want))):
        if n >= len(got) or n >= len(want) or got[n] != want[n]:
            return n
    return None


def check_stream(block: str, name: str, trace: Trace, payloads, cycles, context) -> None:
    """Fail with the first beat that differs from golden or from the model."""
    n = first_difference(trace.payloads, payloads)
    if n is not None:
        pytest.fail(
            f"{block} {name}: beat {n} in cycle {trace.cycles[n]}: rtl {trace.payloads[n]:#x},"
            f" golden {payloads[n]:#x}; {context}",
            pytrace=False,
        )
    n = first_difference(trace.cycles, cycles)
    if n is not None:
        pytest.fail(
            f"{block} {name}: beat {n}: rtl in cycle {trace.cycles[n]}, model {cycles[n]}; {context}",
            pytrace=False,
        )


def mutated_module(monkeypatch, module, old: str, new: str):
    """Return a copy of ``module`` whose source has ``new`` instead of ``old``, which occurs once.

    Its compiled functions run as plain Python.
    """
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} must be in the source once"
    copy = types.ModuleType(f"mutated_{module.__name__.replace('.', '_')}")
    copy.__package__ = module.__package__  # for imports relative to it
    monkeypatch.setitem(sys.modules, copy.__name__, copy)
    decorator = r"^@(njit\(cache=True\)|compiled|compiled_inline)$"
    text = re.sub(decorator, "", source.replace(old, new), flags=re.M)
    # Without the annotations of this file from the future, which a data.Struct does not understand.
    code = compile(text, f"{copy.__name__}.py", "exec", dont_inherit=True)
    exec(code, copy.__dict__)
    return copy


OURS = ("rtl.", "sim.", "tests.", "test_")


def plant_bug(monkeypatch, module, old: str, new: str) -> None:
    """Put a :func:`mutated_module` in the place of the original's classes and functions everywhere.

    For blocks of several modules.
    """
    changed = mutated_module(monkeypatch, module, old, new)
    for name, original in list(vars(module).items()):
        if getattr(original, "__module__", None) != module.__name__:
            continue
        for user in [module for label, module in sys.modules.items() if label.startswith(OURS)]:
            if vars(user).get(name) is original:
                monkeypatch.setattr(user, name, getattr(changed, name))
