"""Recurrences over the transfers of a stream, shared by the block models.

A cycle is an int64; arrays of handshake cycles are what models return. A sink's readiness is a
function of the cycle alone, given as the array of :func:`next_ready`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Cycles = NDArray[np.int64]
ALWAYS = np.zeros(0, dtype=np.int64)


def next_ready(pattern: NDArray[np.bool_] | None) -> Cycles:
    """Return for each cycle the first cycle at or after it in which the sink is ready.

    ``None`` (always ready) gives an empty array. The pattern must end ready; beyond its end the
    sink stays ready.
    """
    if pattern is None:
        return ALWAYS
    cycles = np.arange(len(pattern), dtype=np.int64)
    candidates = np.where(pattern, cycles, len(pattern))
    return np.minimum.accumulate(candidates[::-1])[::-1].copy()


@njit(cache=True)
def taken(cycle: int, ready: Cycles) -> int:
    """Return the cycle in which a beat that is valid from ``cycle`` on is taken."""
    return int(ready[cycle]) if cycle < len(ready) else cycle
