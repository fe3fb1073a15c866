"""Weights stored in few bits with a scale for each group, and their sums. Bit for bit what the hardware does.

An element decodes exactly to bf16; ``group`` elements of a row (inputs) share a scale.

=========  ==========================================  =======================================
format     element                                     scale
=========  ==========================================  =======================================
``fp8``    e4m3 (no infinity, NaN 0x7F and 0xFF)       fp32; the same for ``group`` rows
``mxfp4``  e2m1 (OCP Microscaling Formats 1.0)         e8m0: ``2 ** (code - 127)``, NaN 0xFF
``int4``   two's complement, -8..7                     bf16
=========  ==========================================  =======================================

**Order of a dot product** (:meth:`MatrixGrouped.product`). The bursts of a group are added in fp32, from
zero, in ascending order, each with one rounding (:func:`golden.formats.dot`). The group's sum is multiplied
with its scale, exactly, and rounded once to fp32 (:func:`scaled`). The product is added to the running fp32
sum with one rounding; groups in ascending order. The running sum starts at the bias, or at zero.
Where a burst holds several groups (lanes beside banks), the groups of a burst have their own aligned sums;
their products are added in pairs, these in pairs, and so on, one rounding each, and the last of these to the
running sum.

Subnormal scales in fp32 and bf16 are zero, as all subnormal inputs are. The e8m0 scale 2**-127 is no
subnormal: the product alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from golden.formats import (
    F32,
    F32_MIN_NORMAL,
    F64,
    Bits16,
    accumulate,
    bf16_decode,
    bf16_encode,
    dot,
    f32_flush,
)
from golden.stored_formats import E8M0_NAN, FP4_VALUES, StoredWeight
from spec.design import Format
from spec.geometry import ceil_div

Codes = NDArray[np.uint8]
Scales = NDArray[np.uint32]

FP8_MAX = 448.0
FP4_MAX = 6.0
FP4_MAX_EXPONENT = 2
INT4_MAX = 7
E8M0_BIAS = 127


@cache
def element_table(number_format: Format) -> Bits16:
    """Return the bf16 pattern of each element pattern of a grouped format, (2 ** bits,)."""
    if number_format is Format.FP8:
        values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    elif number_format is Format.MXFP4:
        values = np.array([*FP4_VALUES, *(-value for value in FP4_VALUES)], np.float32)
    else:
        values = np.concatenate([np.arange(8), np.arange(-8, 0)]).astype(np.float32)
    return bf16_encode(values)


def scale_values(number_format: Format, patterns: NDArray[Any]) -> F64:
    """Return the values of scale patterns, any shape; subnormal fp32 and bf16 are zero."""
    if number_format is Format.FP8:
        return f32_flush(patterns.astype(np.uint32).view(np.float32)).astype(np.float64)
    if number_format is Format.INT4:
        return bf16_decode(patterns.astype(np.uint16)).astype(np.float64)
    exponents = patterns.astype(np.int64)
    return np.where(exponents == E8M0_NAN, np.nan, np.ldexp(1.0, exponents - E8M0_BIAS))


def scaled(sums: F32, scales: F64) -> F32:
    """Return ``RNE(sums * scales)`` in fp32; what lies below the normal range before rounding is +0.

    ``scales`` have 24 significant bits at most: the product is exact in float64.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product = sums.astype(np.float64) * scales
        rounded = product.astype(np.float32)
    return f32_flush(np.where(np.abs(product) < F32_MIN_NORMAL, np.float32(0), rounded))


@dataclass(frozen=True, eq=False)
class MatrixGrouped:
    """A matrix in a grouped format.

    Attributes
    ----------
    format : the format.
    group : inputs that share a scale.
    codes : (rows, inputs) uint8 element patterns.
    scales : (rows, groups) uint32, patterns of the scales.
    bias : (rows,) bf16 patterns, or None.
    """

    format: Format
    group: int
    codes: Codes
    scales: Scales
    bias: Bits16 | None

    def elements(self) -> Bits16:
        """Return the elements as bf16 patterns (rows, inputs), not scaled."""
        elements: Bits16 = element_table(self.format)[self.codes]
        return elements

    def values(self) -> F64:
        """Return the weights (rows, inputs): elements times their scales, exactly."""
        factors = np.repeat(scale_values(self.format, self.scales), self.group, axis=1)
        return bf16_decode(self.elements()) * factors[:, : self.codes.shape[1]]

    def product(self, inputs: Bits16, cols: int) -> F32:
        """Return ``inputs @ matrix.T`` plus the bias, (tokens, rows) float32, in bursts of ``cols``.

        ``inputs``: (tokens, inputs) bf16 patterns. ``cols`` and the group are powers of two.
        """
        start = np.zeros(len(self.codes), np.float32) if self.bias is None else bf16_decode(self.bias)
        total = np.broadcast_to(f32_flush(start), (len(inputs), len(self.codes)))
        elements, factors = self.elements(), scale_values(self.format, self.scales)
        together = max(1, cols // self.group)
        nothing = np.zeros(total.shape, np.float32)
        for first in range(0, self.scales.shape[1], together):
            sums = [nothing] * together
            for number in range(first, min(first + together, self.scales.shape[1])):
                part = slice(number * self.group, (number + 1) * self.group)
                of_group = dot(inputs[:, part], elements[:, part], cols)
                sums[number - first] = scaled(of_group, factors[:, number])
            while len(sums) > 1:
                pairs = zip(sums[::2], sums[1::2], strict=True)
                sums = [accumulate(one, other.astype(np.float64)) for one, other in pairs]
            total = accumulate(total, sums[0].astype(np.float64))
        return total


def quantise_groups(
    matrix: NDArray[np.float32], number_format: Format, group: int, bias: NDArray[np.float32] | None = None
) -> MatrixGrouped:
    """Store a matrix in a grouped format; each element is the nearest one, ties to even, saturated.

    * ``fp8``: a block's scale is its largest magnitude / 448.
    * ``mxfp4``: a group's scale is the power of two of its largest magnitude, over 4 (OCP Microscaling
      Formats 1.0, section 6.3).
    * ``int4``: a group's scale is its largest magnitude / 7, rounded to bf16; -8 does not occur.

    Groups of zeros, and those whose scale would be subnormal, get elements of zero.

    Parameters
    ----------
    matrix : (rows, inputs) float32, finite.
    bias : (rows,) float32, or None; rounded to bf16.
    """
    rows, inputs = matrix.shape
    groups = ceil_div(inputs, group)
    block_rows = group if number_format is Format.FP8 else 1
    padded = np.zeros((ceil_div(rows, block_rows) * block_rows, groups * group), np.float64)
    padded[:rows, :inputs] = matrix
    blocks = padded.reshape(-1, block_rows, groups, group)
    largest = np.abs(blocks).max(axis=(1, 3))
    patterns = _scale_patterns(number_format, largest)
    factors = scale_values(number_format, patterns)[:, None, :, None]
    quotients = np.divide(blocks, factors, out=np.zeros_like(blocks), where=factors != 0)
    codes = _nearest(number_format, quotients).reshape(padded.shape)[:rows, :inputs]
    scales = np.repeat(patterns, block_rows, axis=0)[:rows]
    return MatrixGrouped(
        number_format,
        group,
        np.ascontiguousarray(codes),
        scales.astype(np.uint32),
        None if bias is None else bf16_encode(bias),
    )


def kept_groups(
    stored: StoredWeight, number_format: Format, group: int, bias: NDArray[np.float32] | None = None
) -> MatrixGrouped | None:
    """Return a checkpoint's matrix with its own elements and scales, bit for bit.

    None where the format has others: other elements, groups of another size, or groups across outputs. Rows
    that share a scale may be of any number. Of an fp32 scale that is subnormal nothing is left in hardware.

    Parameters
    ----------
    bias : (rows,) float32, or None; rounded to bf16.
    """
    matrix = stored.matrix
    fits = number_format is (Format.MXFP4 if matrix.packed else Format.FP8)
    if not fits or matrix.scales is None or (stored.in_out and matrix.packed):
        return None
    if group != (matrix.block_rows if stored.in_out else matrix.block_cols):
        return None
    codes = matrix.codes if not stored.in_out else matrix.codes.T
    scales = matrix.scales if not stored.in_out else matrix.scales.T
    rows = np.arange(*stored.part.indices(len(codes)))
    codes = np.ascontiguousarray(codes[stored.part]).view(np.uint8)
    if matrix.packed:
        codes = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(len(codes), -1)
    block = matrix.block_cols if stored.in_out else matrix.block_rows
    patterns = np.ascontiguousarray(scales[rows // block]).view(np.uint32)
    if matrix.packed:
        # Powers of two, of which the least one is a subnormal.
        patterns = patterns >> np.uint32(23)
    return MatrixGrouped(number_format, group, codes, patterns, None if bias is None else bf16_encode(bias))


def _scale_patterns(number_format: Format, largest: F64) -> NDArray[Any]:
    """Return the patterns of the scales of groups with these largest magnitudes, any shape."""
    if number_format is Format.FP8:
        return f32_flush(largest / FP8_MAX).view(np.uint32)
    if number_format is Format.INT4:
        return bf16_encode(largest / INT4_MAX)
    exponent = np.frexp(largest)[1] - 1 - FP4_MAX_EXPONENT + E8M0_BIAS
    patterns: NDArray[Any] = np.where(largest == 0, 0, np.clip(exponent, 0, E8M0_NAN - 1))
    return patterns


def _nearest(number_format: Format, values: F64) -> Codes:
    """Return the patterns of the nearest elements, ties to even, saturated; any shape."""
    if number_format is Format.FP8:
        limited = np.clip(values, -FP8_MAX, FP8_MAX).astype(np.float32)
        fp8: Codes = limited.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return fp8
    if number_format is Format.INT4:
        whole = np.clip(np.rint(values), -INT4_MAX, INT4_MAX).astype(np.int8)
        return whole.view(np.uint8) & np.uint8(0xF)
    magnitude = np.minimum(np.abs(values), FP4_MAX)
    # Distances are 0.5 up to 2, 1 up to 4, then 2: in these steps the nearest even one is that of e2m1.
    step = np.where(magnitude < 2, 0.5, np.where(magnitude < 4, 1.0, 2.0))
    rounded = np.rint(magnitude / step) * step
    codes = np.searchsorted(np.array(FP4_VALUES), rounded).astype(np.uint8)
    signs = np.where(np.signbit(values) & (codes != 0), np.uint8(8), np.uint8(0))
    return codes | signs
