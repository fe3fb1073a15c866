"""A code that corrects one flipped bit of 72 and detects two: 64 bits of data, 8 of checks.

Hsiao, "A class of optimal minimum odd-weight-column SEC-DED codes", IBM J. Res. Dev. 14(4), 1970: every
column of the check matrix has an odd number of ones, so that the syndrome of two flips, an even one, is never
that of one. Data columns are all 56 of weight 3, in the order of their values, then the 8 rotations of
``00011111``; every check covers 26 bits of data and itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DATA_BITS, CHECK_BITS = 64, 8
COLUMNS = (
    *(value for value in range(1 << CHECK_BITS) if value.bit_count() == 3),
    *(((0b11111 << turn) | (0b11111 >> (CHECK_BITS - turn))) & 0xFF for turn in range(CHECK_BITS)),
)
"""The syndrome of each data bit, lowest first; that of check bit n is ``1 << n``."""
MASKS = tuple(
    sum(1 << bit for bit, column in enumerate(COLUMNS) if column >> check & 1) for check in range(CHECK_BITS)
)
"""The data bits that each check covers."""
CLEAN, CORRECTED, UNCORRECTED = 0, 1, 2
UInt64 = NDArray[np.uint64]
UInt8 = NDArray[np.uint8]

_FLIPS = np.zeros(1 << CHECK_BITS, dtype=np.uint64)
_FLIPS[list(COLUMNS)] = np.uint64(1) << np.arange(DATA_BITS, dtype=np.uint64)
_STATUS = np.full(1 << CHECK_BITS, UNCORRECTED, dtype=np.uint8)
_STATUS[[0]] = CLEAN
_STATUS[[*COLUMNS, *(1 << check for check in range(CHECK_BITS))]] = CORRECTED


def encode(words: UInt64) -> UInt8:
    """Return the check bits of words of data."""
    checks = np.zeros(words.shape, dtype=np.uint8)
    for check, mask in enumerate(MASKS):
        checks |= (np.bitwise_count(words & np.uint64(mask)) & 1) << np.uint8(check)
    return checks


def decode(words: UInt64, checks: UInt8) -> tuple[UInt64, UInt8]:
    """Return the words with single flips corrected, and for each CLEAN, CORRECTED or UNCORRECTED.

    Words with two flips come back as they are; three or more may pass for fewer.
    """
    syndromes = encode(words) ^ checks
    return words ^ _FLIPS[syndromes], _STATUS[syndromes]


def stored(bursts: UInt8) -> UInt8:
    """Return bursts of (..., bytes) with the check bits of their words behind them."""
    words = np.ascontiguousarray(bursts).view("<u8")
    return np.concatenate([bursts, encode(words)], axis=-1)
