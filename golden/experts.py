"""An expert in a design's numbers: what lies in memory, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.expert_bf16 import ffn_bf16
from golden.expert_grouped import ExpertGrouped, ffn_grouped, group_expert
from golden.expert_int8 import (
    ActivationScales,
    ExpertInt8,
    ffn_int8,
    hidden_peak,
    quantise_expert,
    scale_for,
)
from golden.formats import Bits16, bf16_encode
from golden.gating import route
from golden.image import expert_image, expert_image_grouped, expert_image_int8
from golden.stored_formats import StoredWeight
from golden.weights import ExpertWeights, LayerWeights
from spec.design import Format
from spec.geometry import FfnGeometry
from spec.model import AppliedTo, ModelSpec


@dataclass(frozen=True, eq=False)
class ExpertBits:
    """One expert's matrices and biases as bf16 patterns; see :func:`golden.expert_bf16.ffn_bf16`."""

    gate: Bits16 | None
    up: Bits16
    down: Bits16
    gate_bias: Bits16 | None
    up_bias: Bits16 | None
    down_bias: Bits16 | None

    @classmethod
    def of(cls, weights: ExpertWeights) -> ExpertBits:
        """Return an expert's weights rounded to bf16."""

        def bits(values: NDArray[np.float32] | None) -> Bits16 | None:
            return None if values is None else bf16_encode(values)

        return cls(
            bits(weights.gate),
            bf16_encode(weights.up),
            bf16_encode(weights.down),
            bits(weights.gate_bias),
            bits(weights.up_bias),
            bits(weights.down_bias),
        )


@dataclass(frozen=True, eq=False)
class PackedExpert:
    """An expert as the packer makes it for a geometry, in the geometry's format."""

    geometry: FfnGeometry
    numbers: ExpertBits | ExpertInt8 | ExpertGrouped
    scales: ActivationScales | None

    @classmethod
    def of(
        cls,
        weights: ExpertWeights,
        geometry: FfnGeometry,
        scales: ActivationScales | None = None,
        stored: Mapping[str, StoredWeight] | None = None,
    ) -> PackedExpert:
        """Return an expert in the numbers of its geometry; integer formats need the ``scales`` of its inputs.

        ``stored`` is how a checkpoint stores its matrices, which a grouped format keeps where it can.
        """
        if geometry.format is Format.BF16:
            return cls(geometry, ExpertBits.of(weights), None)
        if geometry.format.grouped:
            return cls(geometry, group_expert(weights, geometry.format, geometry.group, stored), None)
        assert scales is not None
        return cls(geometry, quantise_expert(weights, scales, geometry.format), scales)

    def image(self) -> NDArray[np.uint8]:
        """Return the expert's tiles, ``geometry.num_bytes`` bytes."""
        if isinstance(self.numbers, ExpertInt8):
            return expert_image_int8(self.geometry, self.numbers)
        if isinstance(self.numbers, ExpertGrouped):
            return expert_image_grouped(self.geometry, self.numbers)
        return expert_image(self.geometry, **vars(self.numbers)).view(np.uint8)

    def outputs(self, x: Bits16) -> Bits16:
        """Return the outputs of tokens, both (tokens, d_model) bf16 patterns."""
        if isinstance(self.numbers, ExpertInt8):
            assert self.scales is not None
            return ffn_int8(self.geometry.ffn, x, self.numbers, self.scales)
        if isinstance(self.numbers, ExpertGrouped):
            return ffn_grouped(self.geometry.ffn, x, self.numbers, self.geometry.cols)
        return ffn_bf16(self.geometry.ffn, x, cols=self.geometry.cols, **vars(self.numbers))


def calibrate(model: ModelSpec, weights: LayerWeights, tokens: NDArray[np.floating]) -> ActivationScales:
    """Return a layer's scales: the largest magnitudes that the float layer has for these tokens become 127.

    Nothing of these tokens is cut off; others may saturate.

    Parameters
    ----------
    tokens : (T, H), each with the experts that the float gate chooses for it.
    """
    routing = route(model.gating, weights.router, tokens, weights.logit_bias, weights.selection_bias)
    weighted = model.gating.weight_applied_to is AppliedTo.INPUT
    x_peaks, peaks = [], []
    for expert in np.unique(routing.ids[routing.ids < model.gating.num_ffn_experts]):
        rows, slots = np.nonzero(routing.ids == expert)
        inputs = tokens[rows] * routing.weights[rows, slots, None] if weighted else tokens[rows]
        x_peaks.append(float(np.abs(inputs).max()))
        peaks.append(hidden_peak(model.ffn, weights.expert(int(expert)), inputs))
    if weights.shared_expert is not None and model.shared_ffn is not None:
        x_peaks.append(float(np.abs(tokens).max()))
        peaks.append(hidden_peak(model.shared_ffn, weights.shared_expert, tokens))
    # Nothing is computed where all tokens go to identity experts.
    return ActivationScales(scale_for(max(x_peaks, default=0.0)), scale_for(max(peaks, default=0.0)))
