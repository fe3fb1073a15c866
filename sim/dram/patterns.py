"""Streams of requests for a channel: four patterns, made as they are needed.

With k the number of a request, all reads:

* ``seq_bankfast``: pseudo-channel, bank group, bank, column, row, from the fastest to the slowest.
* ``seq_colfast``: column, pseudo-channel, bank group, bank, row.
* ``rowthrash``: bank 0, column 0, row k.
* ``random``: x = x * 6364136223846793005 + 1442695040888963407 modulo 2**64, from a seed, by default 12345;
  each draw of n steps x and takes (x >> 33) modulo n: pseudo-channel, bank group, rank or stack, bank, row,
  column. A level that the standard has not is not drawn, one of which there is one is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.compiled import depends_on
from sim.dram import engine
from sim.dram.engine import COLUMN_SHIFT, ROW_SHIFT
from spec.dram import PROTOCOLS, DramSpec
from spec.errors import InputError, require, require_range

Ints = NDArray[np.int64]
PATTERNS = ("seq_bankfast", "seq_colfast", "rowthrash", "random")
SEED = 12345


def check_pattern(name: str) -> None:
    """Raise :class:`InputError` for an unknown pattern."""
    if name not in PATTERNS:
        raise InputError(f"must be one of {', '.join(PATTERNS)}, not {name!r}", key="pattern")


def make_pattern(dram: DramSpec, name: str, seed: int = SEED) -> Callable[[int, Ints, Ints], None]:
    """Return a function that fills (bank, key) arrays with the requests from number ``first`` on.

    It has to be called for one part of the stream after the other. ``seed``: the first x of ``random``.
    """
    check_pattern(name)
    require_range("seed", seed, 0, (1 << 64) - 1)
    require(name == "random" or seed == SEED, f"is of pattern random, not of {name}", key="seed")
    levels = PROTOCOLS[dram.protocol].levels
    sizes = np.array(
        [
            dram.pseudo_channels if "PseudoChannel" in levels else 0,
            dram.bank_groups,
            int("Rank" in levels or "Sid" in levels),
            dram.banks_per_group,
            dram.rows,
            dram.bursts_per_row,
        ],
        dtype=np.int64,
    )
    state = np.array([seed], dtype=np.uint64)
    number = PATTERNS.index(name)

    def fill(first: int, banks: Ints, keys: Ints) -> None:
        _fill(number, first, sizes, state, banks, keys)

    return fill


@njit(cache=True)
def _draw(state, size):  # type: ignore[no-untyped-def]
    state[0] = state[0] * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
    return np.int64(state[0] >> np.uint64(33)) % size


@depends_on(engine)
@njit(cache=True)
def _fill(pattern, first, sizes, state, banks, keys):  # type: ignore[no-untyped-def]
    channels, groups, per_group, rows, columns = max(sizes[0], 1), sizes[1], sizes[3], sizes[4], sizes[5]
    for place in range(banks.shape[0]):
        left = first + place
        channel, group, bank, row, column = 0, 0, 0, 0, 0
        if pattern == 0:
            left, channel = left // channels, left % channels
            left, group = left // groups, left % groups
            left, bank = left // per_group, left % per_group
            left, column = left // columns, left % columns
            row = left % rows
        elif pattern == 1:
            left, column = left // columns, left % columns
            left, channel = left // channels, left % channels
            left, group = left // groups, left % groups
            left, bank = left // per_group, left % per_group
            row = left % rows
        elif pattern == 2:
            row = left % rows
        else:
            if sizes[0]:
                channel = _draw(state, sizes[0])
            group = _draw(state, groups)
            if sizes[2]:
                _draw(state, sizes[2])
            bank = _draw(state, per_group)
            row = _draw(state, rows)
            column = _draw(state, columns)
        banks[place] = (channel * groups + group) * per_group + bank
        keys[place] = row << ROW_SHIFT | column << COLUMN_SHIFT
