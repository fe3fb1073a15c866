"""Compiled functions: those that allocate nothing, and those that call functions of other modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from numba import njit

Compiled = TypeVar("Compiled")

compiled = njit(cache=True, _nrt=False)
"""Compile a function that allocates no array and returns none: no references to arrays are counted in it.

Numba counts them in two locked instructions for each array of each call; where small functions hand on dozens
of arrays in tuples, that takes longer than what they compute (half of a near-memory layer's time). A function
that does allocate is refused: "NRT required but not enabled".
"""
compiled_inline = njit(cache=True, _nrt=False, forceinline=True)
"""The same for one that is called in a single place: descriptors of its arrays are not copied either."""


def depends_on_sim(function: Compiled) -> Compiled:
    """Compile a cached function again when any file of this package has changed.

    Numba looks at the file of the function alone; what is compiled into it from other modules would stay as
    it was.
    """
    return _stamped(function, sorted(Path(__file__).parent.glob("*.py")))


def depends_on(*modules: ModuleType) -> Callable[[Compiled], Compiled]:
    """Compile a cached function again when its own file or those of the modules have changed."""

    def decorate(function: Compiled) -> Compiled:
        own = Path(function.py_func.__code__.co_filename)  # type: ignore[attr-defined]
        return _stamped(function, [own, *(Path(str(module.__file__)) for module in modules)])

    return decorate


def _stamped(function: Compiled, files: list[Path]) -> Compiled:
    stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    function._cache._cache_file._source_stamp = stamp  # type: ignore[attr-defined]
    return function
