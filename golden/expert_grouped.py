"""An expert whose weights are stored in a grouped format, bit for bit.

Tokens, hidden activations and results are bf16, the sums before the activation fp32, as in
:mod:`golden.expert_bf16`; sums over stored weights are those of :mod:`golden.grouped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.expert_bf16 import activate
from golden.formats import Bits16, bf16_encode
from golden.grouped import MatrixGrouped, kept_groups, quantise_groups
from golden.stored_formats import StoredWeight
from golden.weights import ExpertWeights
from spec.design import Format
from spec.model import FfnSpec


@dataclass(frozen=True, eq=False)
class ExpertGrouped:
    """One expert's matrices in a grouped format; ``gate`` is None for a two-matrix FFN."""

    gate: MatrixGrouped | None
    up: MatrixGrouped
    down: MatrixGrouped


def group_expert(
    weights: ExpertWeights,
    number_format: Format,
    group: int,
    stored: Mapping[str, StoredWeight] | None = None,
) -> ExpertGrouped:
    """Return an expert's matrices in a grouped format.

    ``stored`` is how a checkpoint stores them, by name: what is stored the same way is kept bit for bit
    (:func:`golden.grouped.kept_groups`), all else quantised from its values.
    """
    own = stored or {}

    def matrix(name: str, values: NDArray[np.float32], bias: NDArray[np.float32] | None) -> MatrixGrouped:
        kept = kept_groups(own[name], number_format, group, bias) if name in own else None
        return kept or quantise_groups(values, number_format, group, bias)

    return ExpertGrouped(
        gate=None if weights.gate is None else matrix("gate", weights.gate, weights.gate_bias),
        up=matrix("up", weights.up, weights.up_bias),
        down=matrix("down", weights.down, weights.down_bias),
    )


def ffn_grouped(ffn: FfnSpec, x: Bits16, expert: ExpertGrouped, cols: int) -> Bits16:
    """Return an expert's outputs as bf16 patterns (tokens, d_model).

    Parameters
    ----------
    x : (tokens, d_model) bf16 patterns.
    cols : products per burst of the array.
    """
    first = expert.up.product(x, cols)
    if expert.gate is None:
        hidden = activate(ffn, first)
    else:
        hidden = activate(ffn, expert.gate.product(x, cols), first)
    return bf16_encode(expert.down.product(hidden, cols))
