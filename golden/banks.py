"""Weights of the experts as they lie in the banks of the near-memory engine's channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from golden.formats import Bits16
from golden.image import expert_image
from golden.layer_bf16 import expert_bits
from golden.weights import LayerWeights
from spec.banks import BankGeometry


def channel_image(banks: BankGeometry, weights: LayerWeights, bases: Mapping[int, int]) -> Bits16:
    """Return the tiles that a channel's storage holds, (tiles, units * lanes) uint16.

    Row ``n`` is tile number ``n`` as :mod:`spec.banks` counts: one burst of each unit after the other.
    What belongs to no expert is zero.

    Parameters
    ----------
    weights : of the layer; experts that are not on the channel are not looked at.
    bases : first visit of each expert on the channel (:meth:`spec.banks.BankGeometry.bases`).
    """
    ends = [base + banks.reserved(banks.kind(expert)) for expert, base in bases.items()]
    width = banks.image.routed.rows * banks.image.routed.cols
    tiles = np.zeros((max(ends, default=0) * banks.bursts_per_row, width), dtype=np.uint16)
    for expert, base in bases.items():
        bits = expert_bits(weights, expert, banks.num_experts)
        image = expert_image(
            banks.kind(expert),
            bits.gate,
            bits.up,
            bits.down,
            bits.gate_bias,
            bits.up_bias,
            bits.down_bias,
        )
        start = base * banks.bursts_per_row
        tiles[start : start + banks.kind(expert).num_tiles] = image.reshape(-1, width)
    return tiles
