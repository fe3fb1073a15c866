"""int8 and its scales: quantisation, integer sums back to bf16. Bit for bit what the hardware does.

* int8 values are symmetric, -127..127; -128 does not occur. Nor does -8 among int4 weights (``w4a8``).
* A :class:`FixedScale` is ``mantissa * 2**shift`` with 16 bits of mantissa.
* Into int8 (:func:`quantise`): bf16 times a scale, exactly, to nearest even, saturated. NaN becomes 0,
  infinities +-127.
* Sums are int32. At most :attr:`spec.design.Format.most_inputs` products are added, each at most 127 * 127,
  in ``w4a8`` 127 * 7, in magnitude, so no sum overflows. A bias in int32 is added without loss (33 bits).
* Out of it (:func:`dequantise`): the sum times its channel's scale, exactly, rounded once to bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.formats import BF16_BIAS, Bits16
from golden.functions import I64, bf16_from_integer, fields, is_nan
from spec.design import INT8_MAX, Format
from spec.errors import require

I8 = NDArray[np.int8]

MANTISSA_BITS = 16
# Of a shift in hardware; scales of float32 weights and inputs need -327..231, subnormal ones among them.
SHIFT_BITS = 10


def fixed_scales(values: NDArray[np.float64]) -> tuple[I64, I64]:
    """Return the mantissas (top bit set, or 0 for 0) and shifts nearest to positive values.

    Relative error at most 2**-16.
    """
    fraction, exponent = np.frexp(values)
    mantissa = np.rint(np.ldexp(fraction, MANTISSA_BITS)).astype(np.int64)
    carried = mantissa == 1 << MANTISSA_BITS
    mantissa = np.where(carried, mantissa >> 1, mantissa)
    shift = np.where(mantissa == 0, 0, exponent.astype(np.int64) - MANTISSA_BITS + carried)
    return mantissa, shift


@dataclass(frozen=True)
class FixedScale:
    """A positive factor ``mantissa * 2**shift``; the mantissa has its top bit set."""

    mantissa: int
    shift: int

    def __post_init__(self) -> None:
        top = 1 << (MANTISSA_BITS - 1)
        require(
            top <= self.mantissa < 2 * top,
            f"must be in {top}..{2 * top - 1}, not {self.mantissa}",
            key="mantissa",
        )
        limit = 1 << (SHIFT_BITS - 1)
        require(
            -limit <= self.shift < limit, f"must be in {-limit}..{limit - 1}, not {self.shift}", key="shift"
        )

    @classmethod
    def of(cls, value: float) -> FixedScale:
        """Return the scale nearest to a positive value."""
        mantissa, shift = fixed_scales(np.array([value]))
        return cls(int(mantissa[0]), int(shift[0]))

    @property
    def value(self) -> float:
        """The factor."""
        return float(np.ldexp(float(self.mantissa), self.shift))

    @property
    def word(self) -> int:
        """The factor as a register's content: mantissa in the low half, shift in the high half."""
        return self.mantissa | (self.shift & 0xFFFF) << MANTISSA_BITS


def quantise(values: Bits16, scale: FixedScale) -> I8:
    """Return bf16 patterns times a scale as int8: to nearest even, saturated to +-127; NaN is 0."""
    sign, exponent, significand = fields(values)
    product = significand * scale.mantissa
    # The product counts in units of 2**-right. It is below 2**24 and, where not 0, at least 2**22.
    right = BF16_BIAS + 7 - exponent - scale.shift
    amount = np.clip(right, 1, 25)
    kept = product >> amount
    rest = product - (kept << amount)
    half = np.int64(1) << (amount - 1)
    kept = kept + ((rest > half) | ((rest == half) & ((kept & 1) == 1)))
    too_large = (kept > INT8_MAX) | ((right < 1) & (product != 0)) | (exponent == 255)
    magnitude = np.where(too_large, INT8_MAX, kept)
    magnitude = np.where(is_nan(values), 0, magnitude)
    return np.where(sign == 1, -magnitude, magnitude).astype(np.int8)


def dequantise(sums: I64, mantissa: I64, shift: I64) -> Bits16:
    """Return ``sums * mantissa * 2**shift`` rounded once to bf16; sums below 2**32 in magnitude."""
    sums, mantissa, shift = np.broadcast_arrays(sums, mantissa, shift)
    return bf16_from_integer((sums < 0).astype(np.int64), np.abs(sums) * mantissa, shift)


@dataclass(frozen=True, eq=False)
class MatrixInt8:
    """A matrix that int8 inputs are multiplied with; it has a scale per output channel (row).

    Attributes
    ----------
    values : (rows, inputs) int8 in -127..127, in ``w4a8`` -7..7.
    mantissa, shift : (rows,) int64; they turn a row's integer sum, bias included, into the real one.
    bias : (rows,) int64 within +-(2**31 - 1), or None.
    """

    values: I8
    mantissa: I64
    shift: I64
    bias: I64 | None

    def product(self, inputs: I8) -> Bits16:
        """Return ``inputs @ values.T`` plus the bias, scaled, as bf16 patterns.

        ``inputs``: (tokens, inputs) int8.
        """
        # Whole numbers below 2**53: exact in float64, and fast.
        sums = (inputs.astype(np.float64) @ self.values.astype(np.float64).T).astype(np.int64)
        if self.bias is not None:
            sums = sums + self.bias
        return dequantise(sums, self.mantissa, self.shift)


def quantise_rows(
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: FixedScale,
    number_format: Format,
) -> MatrixInt8:
    """Quantise a matrix, each row to its largest magnitude, ties to even.

    A row's step is its largest magnitude / 127, in ``w4a8`` / 7, or larger where its bias would else exceed
    2**30 steps of the sum. A row without anything gets the scale 0.

    Parameters
    ----------
    matrix : (rows, inputs) float32, finite.
    bias : (rows,) float32, or None.
    input_scale : the scale that quantises the inputs.
    number_format : an integer one.
    """
    wide = matrix.astype(np.float64)
    step = np.abs(wide).max(axis=1) / number_format.largest_weight
    input_step = 1.0 / input_scale.value
    if bias is not None:
        step = np.maximum(step, np.abs(bias.astype(np.float64)) / (input_step * (1 << 30)))
    present = step > 0
    values = np.rint(wide / np.where(present, step, 1.0)[:, None]).astype(np.int8)
    mantissa, shift = fixed_scales(step * input_step)
    if bias is None:
        return MatrixInt8(values, mantissa, shift, None)
    factor = np.where(present, np.ldexp(mantissa.astype(np.float64), shift), 1.0)
    whole = np.rint(bias.astype(np.float64) / factor).astype(np.int64)
    return MatrixInt8(values, mantissa, shift, whole)
