"""Decoding of large fp8 matrices in one compiled pass; :mod:`golden.stored_formats` says what is computed.

With NumPy each step is a pass over memory of its own, and what they take together is more than the time in
which a matrix's bytes are read.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

SHIFT, FIELDS = np.int32(20), np.int32(-0x7810_0000)
"""As ``FP8_SHIFT`` and ``FP8_FIELDS`` of :mod:`golden.stored_formats`."""


@njit(cache=True, nogil=True)
def scale_fp8(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    numbers: NDArray[np.intp],
    out: NDArray[np.float32],
    patterns: NDArray[np.int32],
) -> None:
    """Write e4m3 patterns times the scales of their columns to ``out``; NaN becomes a number.

    Parameters
    ----------
    codes : (rows, cols) int8, contiguous.
    scales : (blocks of rows, cols) float32, times 2**120.
    numbers : (rows,) int64, each row's block.
    out : (rows, cols) float32, contiguous.
    patterns : the same memory as int32.
    """
    for row in range(len(codes)):
        of_row, code = scales[numbers[row]], codes[row]
        value, pattern = out[row], patterns[row]
        for col in range(len(code)):
            pattern[col] = (np.int32(code[col]) << SHIFT) & FIELDS
        for col in range(len(code)):
            value[col] *= of_row[col]
