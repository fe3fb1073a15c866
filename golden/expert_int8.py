"""An expert's FFN in the integer formats, bit for bit, and the scales it needs.

Inputs and hidden activations have one scale each for all experts of a layer; weights have one per output
channel. Between the two products the numbers are bf16, as in :mod:`golden.expert_bf16`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.expert import hidden
from golden.expert_bf16 import activate
from golden.formats import Bits16, bf16_decode
from golden.int8 import FixedScale, MatrixInt8, quantise, quantise_rows
from golden.weights import ExpertWeights
from spec.design import INT8_MAX, Format
from spec.model import FfnSpec


@dataclass(frozen=True)
class ActivationScales:
    """Scales that turn inputs ``x`` and hidden activations into int8: registers SCALE_X, SCALE_H."""

    x: FixedScale
    hidden: FixedScale


@dataclass(frozen=True, eq=False)
class ExpertInt8:
    """One expert's matrices in an integer format; ``gate`` is None for a two-matrix FFN."""

    gate: MatrixInt8 | None
    up: MatrixInt8
    down: MatrixInt8


def quantise_expert(weights: ExpertWeights, scales: ActivationScales, number_format: Format) -> ExpertInt8:
    """Return an expert's matrices in an integer format, for inputs and hidden activations of these scales."""
    gate = weights.gate
    return ExpertInt8(
        gate=None if gate is None else quantise_rows(gate, weights.gate_bias, scales.x, number_format),
        up=quantise_rows(weights.up, weights.up_bias, scales.x, number_format),
        down=quantise_rows(weights.down, weights.down_bias, scales.hidden, number_format),
    )


def ffn_int8(ffn: FfnSpec, x: Bits16, expert: ExpertInt8, scales: ActivationScales) -> Bits16:
    """Return an expert's outputs as bf16 patterns (tokens, d_model).

    ``x``: (tokens, d_model) bf16 patterns.
    """
    inputs = quantise(x, scales.x)
    first = bf16_decode(expert.up.product(inputs))
    if expert.gate is None:
        activations = activate(ffn, first)
    else:
        activations = activate(ffn, bf16_decode(expert.gate.product(inputs)), first)
    return expert.down.product(quantise(activations, scales.hidden))


def scale_for(peak: float) -> FixedScale:
    """Return the scale that maps a largest magnitude to 127; of 1 where there is nothing but zeros."""
    return FixedScale.of(INT8_MAX / (peak or 1.0))


def hidden_peak(ffn: FfnSpec, weights: ExpertWeights, x: NDArray[np.floating]) -> float:
    """Return the largest magnitude among an expert's hidden activations of tokens (n, d_model), in float."""
    values = hidden(ffn, weights.gate, weights.up, x, gate_bias=weights.gate_bias, up_bias=weights.up_bias)
    return float(np.abs(values).max(initial=0.0))
