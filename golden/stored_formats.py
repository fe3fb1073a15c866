"""Formats in which checkpoints store matrices, decoded to float32.

* ``F32``, ``F16``, ``BF16``: exactly.
* fp8 e4m3 (no infinity, NaN 0x7F and 0xFF) with a scale for each block of rows and columns, in float32, bf16
  or e8m0: the element times the scale, rounded once to float32.
* MXFP4 (OCP Microscaling Formats 1.0, section 5.2): fp4 e2m1, two in a byte, the first one in its low half; a
  power of two (e8m0, NaN 0xFF) for each 32 of a row. Exact: 2 bits of significand times a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

MXFP4_GROUP = 32
E8M0_NAN = 0xFF
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the patterns 0 to 7; bit 3 is the sign."""


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """A matrix as it is stored, read row by row.

    Attributes
    ----------
    codes : (rows, cols) of a dtype that :mod:`golden.tensor_file` reads; (rows, cols / 2) uint8 if packed.
    packed : whether these are pairs of fp4.
    scales : (ceil(rows / block_rows), ceil(cols / block_cols)) float32, or None.
    block_rows, block_cols : elements that share a scale.
    """

    codes: NDArray[Any]
    packed: bool = False
    scales: F32 | None = None
    block_rows: int = 1
    block_cols: int = 1

    def read_rows(self, rows: slice, out: F32) -> None:
        """Write some rows, (n, cols), to contiguous ``out``; NaN and infinity stay what they are."""
        decode(np.ascontiguousarray(self.codes[rows]), out, packed=self.packed)
        if self.scales is not None:
            numbers = np.arange(*rows.indices(len(self.codes))) // self.block_rows
            with np.errstate(over="ignore", invalid="ignore"):
                _scale(out, self.scales[numbers], self.block_cols)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight as a checkpoint stores it: some rows of a matrix, or some columns where it lies (in, out).

    Attributes
    ----------
    matrix : the whole matrix, quantised.
    part : rows, or columns, that are the weight's outputs.
    in_out : whether inputs are the matrix's rows.
    """

    matrix: StoredMatrix
    part: slice
    in_out: bool


def decode(codes: NDArray[Any], out: F32, *, packed: bool = False) -> None:
    """Write the values of (rows, n) patterns to ``out``, (rows, n) or (rows, 2 n) if ``packed``, exactly.

    Both are contiguous.
    """
    if packed:
        _look_up(codes, out, *_fp4_tables())
    elif codes.dtype == ml_dtypes.float8_e4m3fn:
        _look_up(codes, out, *_fp8_tables())
    else:
        out[...] = codes


def decode_scales(codes: NDArray[Any]) -> F32:
    """Return scales as float32, any shape; a byte is e8m0, ``2 ** (code - 127)``, 0xFF is NaN."""
    if codes.itemsize == 1:
        codes = codes.view(ml_dtypes.float8_e8m0fnu)
    scales: F32 = codes.astype(np.float32)
    return scales


def _scale(values: F32, scales: F32, block_cols: int) -> None:
    """Multiply (rows, cols) values by (rows, blocks) scales in place."""
    rows, cols = values.shape
    if cols % block_cols == 0:
        blocks = values.reshape(rows, -1, block_cols)
        np.multiply(blocks, scales[:, :, None], out=blocks)
        return
    for block in range(scales.shape[1]):
        values[:, block * block_cols : (block + 1) * block_cols] *= scales[:, block, None]


def _look_up(codes: NDArray[Any], out: F32, of_byte: NDArray[Any], of_two: NDArray[Any]) -> None:
    """Write the values of bytes to ``out``.

    A table's entry holds all the values of a byte, or of two (low one first): an index of 16 bits gives twice
    as many for the same work.
    """
    flat = codes.reshape(-1).view(np.uint8)
    table, indices = (of_byte, flat) if flat.size % 2 else (of_two, flat.view("<u2"))
    np.take(table, indices, out=out.reshape(-1).view(table.dtype), mode="clip")


@cache
def _fp8_tables() -> tuple[NDArray[Any], NDArray[Any]]:
    """Values of e4m3 patterns, and of pairs."""
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values, _of_two(values[:, None]).view(np.uint64)[:, 0]


@cache
def _fp4_tables() -> tuple[NDArray[Any], NDArray[Any]]:
    """Values of bytes of two e2m1 patterns, and of pairs of bytes."""
    values = np.array([*FP4_VALUES, *(-value for value in FP4_VALUES)], np.float32)
    codes = np.arange(256)
    pairs = np.stack([values[codes & 15], values[codes >> 4]], axis=1)
    return pairs.view(np.uint64)[:, 0], _of_two(pairs).view(np.complex128)[:, 0]


def _of_two(of_byte: F32) -> F32:
    """Return (65536, 2 n) values of two bytes, low one first, from (256, n) of one."""
    codes = np.arange(1 << 16)
    return np.concatenate([of_byte[codes & 0xFF], of_byte[codes >> 8]], axis=1)
