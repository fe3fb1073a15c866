"""A whole MoE layer, in float: gating, dispatch, experts, combine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine import combine, combine_matrix
from golden.dispatch import dispatch
from golden.expert import ffn, linear
from golden.gating import normalise, route, sigmoid
from golden.weights import LayerWeights
from spec.model import AppliedTo, CapacityRule, CapacityScope, ModelSpec


@dataclass(frozen=True, eq=False)
class LayerResult:
    """What a layer computed for T tokens.

    Attributes
    ----------
    logits : (T, E) float64.
    ids : (T, k) int64, chosen experts in descending order of the selection score.
    weights : (T, k) float64, as the gate gave them, whether kept or dropped; where the sum that they are
        divided by is over kept ones (``normalise_kept``), after that.
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
    token_ids: NDArray[np.int64] | None = None,
) -> LayerResult:
    """Compute an MoE layer in float64.

    Parameters
    ----------
    model : the layer's specification.
    weights : its weights, with all experts; :class:`spec.errors.InputError` if they do not fit.
    tokens : (T, H).
    sequence_lengths : tokens in each sequence, for capacity; default one sequence.
    window_tokens : tokens whose places are given out together, as in :func:`golden.dispatch.dispatch`.
    token_ids : (T,), where the experts are hashed.
    """
    weights.check(model)
    gating = model.gating
    routing = route(
        gating,
        weights.router,
        tokens,
        weights.logit_bias,
        weights.selection_bias,
        hash_table=weights.hash_table,
        token_ids=token_ids,
        router_query=weights.router_query,
        router_key=weights.router_key,
        router_hidden=weights.router_hidden,
    )
    lengths = [len(tokens)] if sequence_lengths is None else list(sequence_lengths)
    if model.capacity_scope is CapacityScope.BATCH:
        lengths = [sum(lengths)]
    by_score = model.capacity_rule is CapacityRule.SCORE_PRIORITY
    kept = dispatch(
        routing.ids,
        [model.capacity_of(length) for length in lengths],
        lengths,
        rule=model.capacity_rule,
        weights=routing.scores if by_score else routing.weights,
        window_tokens=window_tokens,
    )
    factors = normalise(gating, routing.scores, kept) if gating.normalise_kept else routing.weights
    shared_output = _shared_output(model, weights, tokens)
    output = _combined(model, weights, tokens, routing.ids, factors, kept, shared_output)
    return LayerResult(
        logits=routing.logits,
        ids=routing.ids,
        weights=factors,
        kept=kept,
        combine=combine_matrix(routing.ids, factors, kept, gating.num_experts),
        shared_output=shared_output,
        output=output,
    )


def _combined(
    model: ModelSpec,
    weights: LayerWeights,
    tokens: NDArray[np.floating],
    ids: NDArray[np.int64],
    factors: NDArray[np.float64],
    kept: NDArray[np.bool_],
    shared_output: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Return the weighted sums of the experts' outputs, the shared one's among them, (T, H) float64."""
    x = tokens.astype(np.float64)
    if weights.latent_in is not None:
        x = linear(x, weights.latent_in, weights.latent_in_bias)
    if model.expert_input_scale != 1.0:
        x = x * model.expert_input_scale
    on_input = model.gating.weight_applied_to is AppliedTo.INPUT
    outputs = np.zeros((*ids.shape, x.shape[1]))
    for expert, rows, slots in _assignments(ids, kept):
        inputs = x[rows] * factors[rows, slots, None] if on_input else x[rows]
        if expert < model.gating.num_ffn_experts:
            part = weights.expert(expert)
            results = ffn(model.ffn, **vars(part), x=inputs) * model.expert_output_scale
        else:
            results = inputs
        outputs[rows, slots] = results
    if on_input:
        factors = np.ones_like(factors)
    if weights.latent_out is None:
        output = combine(ids, factors, kept, outputs, shared_output)
    else:
        latent = combine(ids, factors, kept, outputs)
        output = linear(latent, weights.latent_out, weights.latent_out_bias)
        if shared_output is not None:
            output = output + shared_output
    return output if weights.output_bias is None else output + weights.output_bias


def _assignments(
    ids: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each expert that is used, with the rows and slots of its assignments in the order of tokens."""
    rows, slots = np.nonzero(kept)
    experts = ids[rows, slots]
    order = np.argsort(experts, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(experts[order])) + 1):
        # Where nothing is kept there is one part, and it is empty.
        if some.size:
            yield int(experts[some[0]]), rows[some], slots[some]


def _shared_output(
    model: ModelSpec, weights: LayerWeights, tokens: NDArray[np.floating]
) -> NDArray[np.float64] | None:
    """Return the shared expert's output, (T, H) float64, None without one."""
    shared, spec = weights.shared_expert, model.shared_ffn
    if shared is None or spec is None:
        return None
    output = ffn(spec, **vars(shared), x=tokens)
    if weights.shared_expert_gate is not None:
        output = output * sigmoid(linear(tokens, weights.shared_expert_gate, None))
    return output
