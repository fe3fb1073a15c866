"""Weights of the experts as they lie in the banks of the near-memory engine's channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from golden.expert_int8 import ActivationScales
from golden.formats import bf16_encode
from golden.image import router_tiles
from golden.layer_bf16 import pack_expert
from golden.secded import stored
from golden.weights import LayerWeights
from spec.banks import BankGeometry


def bank_image(
    banks: BankGeometry, weights: LayerWeights, expert: int, scales: ActivationScales | None = None
) -> NDArray[np.uint8]:
    """Return an expert's tiles in a channel, or a router's in the banks, (tiles, bytes of a tile).

    Bursts of the units after each other, each with the check bits of its words behind it where the design
    has them. ``expert``: as :meth:`spec.banks.BankGeometry.kind` counts.
    """
    if banks.image.router and expert == banks.router_number:
        words = router_tiles(
            banks.image.router, bf16_encode(weights.router), weights.logit_bias, weights.shared_gate_bits
        )
        image = words.view(np.uint8)
    else:
        image = pack_expert(banks.image, weights, expert, scales).image()
    tiles = image.reshape(banks.kind(expert).num_tiles, -1)
    if banks.pim.secded:
        return stored(tiles.reshape(len(tiles), banks.pim.units, -1)).reshape(len(tiles), -1)
    return tiles


def channel_image(
    banks: BankGeometry,
    weights: LayerWeights,
    bases: Mapping[int, int],
    scales: ActivationScales | None = None,
) -> NDArray[np.uint8]:
    """Return the tiles that a channel's storage holds, (tiles, bytes of a tile).

    Row ``n`` is tile number ``n`` as :mod:`spec.banks` counts: one burst of each unit after the other, each
    with the check bits of its words behind it where the design has them.
    What belongs to no expert, and not to the router, is zero, as are experts whose weights are not held.

    Parameters
    ----------
    weights : of the layer; experts that are not on the channel are not looked at.
    bases : first visit of each expert on the channel (:meth:`spec.banks.BankGeometry.bases`).
    scales : of the experts' inputs and hidden activations, for int8.
    """
    ends = [base + banks.reserved(banks.kind(expert)) for expert, base in bases.items()]
    width = banks.pim.units * banks.pim.stored_burst_bytes
    tiles = np.zeros((max(ends, default=0) * banks.bursts_per_row, width), dtype=np.uint8)
    for expert, base in bases.items():
        if expert < banks.num_experts and not weights.holds(expert):
            continue
        start = base * banks.bursts_per_row
        # (The check bits of zeros are zeros.)
        tiles[start : start + banks.kind(expert).num_tiles] = bank_image(banks, weights, expert, scales)
    return tiles
