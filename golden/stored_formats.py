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

FP8_SHIFT, FP8_FIELDS = 20, np.int32(-0x7810_0000)
"""From the place of an e4m3 pattern's fields to that of fp32's; 0x87F00000, fp32's bits that hold them."""
FP8_OFFSET = np.float32(2.0 ** (127 - 7))
"""Between the exponents of a field in fp32 and in e4m3."""
FP8_NAN = ((np.int8, 0x7F), (np.uint8, 0xFF))
"""NaN of both signs: the largest pattern there is, read as a number with or without a sign."""
COMPILED_FROM = 1 << 20
"""Elements of a matrix from which on fp8 is decoded by compiled code."""
FP8_LARGE_SCALE = 2.0**7
"""Below it neither a scale times ``FP8_OFFSET`` nor an element (at most 448) times the scale overflows."""


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

    @property
    def num_cols(self) -> int:
        """Elements of a row."""
        return int(self.codes.shape[1]) * (2 if self.packed else 1)

    @property
    def in_one_pass(self) -> bool:
        """Whether many rows are decoded in one pass over memory, however many they are."""
        return self.scales is not None and not self.packed and self.codes.size >= COMPILED_FROM

    def read_rows(self, rows: slice, out: F32) -> bool:
        """Write some rows, (n, cols), to contiguous ``out``; NaN and infinity stay what they are.

        Returns whether all values are known to be finite without a look at them.
        """
        codes = np.ascontiguousarray(self.codes[rows])
        if self.scales is None:
            decode(codes, out, packed=self.packed)
            return False
        numbers = np.arange(*rows.indices(len(self.codes))) // self.block_rows
        if not numbers.size:
            return True
        scales = self.scales[numbers[0] : numbers[-1] + 1]
        numbers -= numbers[0]
        with np.errstate(over="ignore", invalid="ignore"):
            small = bool(np.abs(scales).max() < FP8_LARGE_SCALE)
            if self.packed or not small:
                decode(codes, out, packed=self.packed)
                _scale(out, scales, numbers, self.block_cols)
                return False
            # The scales take the offset of the exponents with them: one pass less.
            scales = scales * FP8_OFFSET
            if self.in_one_pass:
                _scale_fp8(codes, scales, numbers, self.block_cols, out)
            else:
                _place_fp8(codes, out)
                _scale(out, scales, numbers, self.block_cols)
        return _mark_fp8_nan(codes, out)


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
        _place_fp8(codes, out)
        out *= FP8_OFFSET
        _mark_fp8_nan(codes, out)
    else:
        out[...] = codes


def decode_scales(codes: NDArray[Any]) -> F32:
    """Return scales as float32, any shape; a byte is e8m0, ``2 ** (code - 127)``, 0xFF is NaN."""
    if codes.itemsize == 1:
        codes = codes.view(ml_dtypes.float8_e8m0fnu)
    scales: F32 = codes.astype(np.float32)
    return scales


def _place_fp8(codes: NDArray[Any], out: F32) -> None:
    """Write e4m3 patterns as fp32 of the same sign, exponent field and significand to ``out``.

    That is the value times 2**-120, subnormals included; NaN becomes a number.
    """
    patterns = out.view(np.int32)
    patterns[...] = codes.view(np.int8)  # The sign fills what lies above it.
    np.left_shift(patterns, FP8_SHIFT, out=patterns)
    np.bitwise_and(patterns, FP8_FIELDS, out=patterns)


def _scale_fp8(
    codes: NDArray[Any], scales: F32, numbers: NDArray[np.intp], block_cols: int, out: F32
) -> None:
    """Do what :func:`_place_fp8` and :func:`_scale` do, in one pass."""
    # What compiles takes half a second to import, which small matrices need not wait for.
    from golden.stored_loops import scale_fp8

    of_columns = np.repeat(scales, block_cols, axis=1)[:, : codes.shape[1]]
    scale_fp8(
        codes.view(np.int8),
        np.ascontiguousarray(of_columns),
        numbers.astype(np.int64),
        out,
        out.view(np.int32),
    )


def _mark_fp8_nan(codes: NDArray[Any], out: F32) -> bool:
    """Set what is NaN in e4m3 to NaN in ``out``; return whether there is none."""
    if all(codes.view(kind).max(initial=0) < nan for kind, nan in FP8_NAN):
        return True
    for kind, nan in FP8_NAN:
        out[codes.view(kind) == nan] = np.nan
    return False


def _scale(values: F32, scales: F32, numbers: NDArray[np.intp], block_cols: int) -> None:
    """Multiply (rows, cols) values in place by the scales of their blocks; ``numbers``: of each row's."""
    rows, cols = values.shape
    if rows >= 2 * len(scales):
        # Scales of many rows are spread over one, once: blocks are short for a multiplication of their own.
        for number, of_row in enumerate(scales):
            first, last = np.searchsorted(numbers, (number, number + 1))
            values[first:last] *= np.repeat(of_row, block_cols)[:cols]
        return
    scales = scales[numbers]
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
