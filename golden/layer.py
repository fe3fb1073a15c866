"""A whole MoE layer, in float: gating, dispatch, experts, combine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine import combine, combine_matrix
from golden.dispatch import dispatch
from golden.expert import ffn
from golden.gating import route
from golden.weights import LayerWeights
from spec.model import ModelSpec


@dataclass(frozen=True, eq=False)
class LayerResult:
    """What a layer computed for T tokens.

    Attributes
    ----------
    logits : (T, E) float64.
    ids : (T, k) int64, chosen experts in descending order of the selection score.
    weights : (T, k) float64, as the gate gave them, whether kept or dropped.
    kept : (T, k) bool, False where the expert had no capacity left.
    combine : (T, E) float64, weights of the kept assignments, 0 elsewhere.
    shared_output : (T, H) float64, or None without a shared expert.
    output : (T, H) float64, without residual and norm.
    """

    logits: NDArray[np.float64]
    ids: NDArray[np.int64]
    weights: NDArray[np.float64]
    kept: NDArray[np.bool_]
    combine: NDArray[np.float64]
    shared_output: NDArray[np.float64] | None
    output: NDArray[np.float64]


def layer(
    model: ModelSpec,
    weights: LayerWeights,
    tokens: NDArray[np.floating],
    sequence_lengths: Sequence[int] | None = None,
    window_tokens: int | None = None,
) -> LayerResult:
    """Compute an MoE layer in float64.

    Parameters
    ----------
    model : the layer's specification.
    weights : its weights, with all experts; :class:`spec.errors.InputError` if they do not fit.
    tokens : (T, H).
    sequence_lengths : tokens in each sequence, for capacity; default one sequence.
    window_tokens : tokens whose places are given out together, as in :func:`golden.dispatch.dispatch`.
    """
    weights.check(model)
    routing = route(model.gating, weights.router, tokens, weights.logit_bias, weights.selection_bias)
    lengths = [len(tokens)] if sequence_lengths is None else sequence_lengths
    kept = dispatch(
        routing.ids,
        model.expert_capacity,
        lengths,
        rule=model.capacity_rule,
        weights=routing.weights,
        window_tokens=window_tokens,
    )
    expert_outputs = np.zeros((*routing.ids.shape, model.d_model))
    for expert in np.unique(routing.ids[kept]):
        rows, slots = np.nonzero(kept & (routing.ids == expert))
        expert_outputs[rows, slots] = ffn(
            model.ffn,
            None if weights.gate is None else weights.gate[expert],
            weights.up[expert],
            weights.down[expert],
            tokens[rows],
            gate_bias=None if weights.gate_bias is None else weights.gate_bias[expert],
            up_bias=None if weights.up_bias is None else weights.up_bias[expert],
            down_bias=None if weights.down_bias is None else weights.down_bias[expert],
        )
    shared_output = None
    if weights.shared_up is not None and weights.shared_down is not None:
        shared_output = ffn(model.ffn, weights.shared_gate, weights.shared_up, weights.shared_down, tokens)
    return LayerResult(
        logits=routing.logits,
        ids=routing.ids,
        weights=routing.weights,
        kept=kept,
        combine=combine_matrix(routing.ids, routing.weights, kept, model.gating.num_experts),
        shared_output=shared_output,
        output=combine(routing.ids, routing.weights, kept, expert_outputs, shared_output),
    )
