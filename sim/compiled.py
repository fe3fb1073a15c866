"""Compiled functions that call those of other modules."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

Compiled = TypeVar("Compiled")


def depends_on_sim(function: Compiled) -> Compiled:
    """Compile a cached function again when any file of this package has changed.

    Numba looks at the file of the function alone; what is compiled into it from other modules would stay as
    it was.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    stamp = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    function._cache._cache_file._source_stamp = stamp  # type: ignore[attr-defined]
    return function
