"""Hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from spec.model import (
    NO_PLACES,
    Activation,
    AppliedTo,
    CapacityRounding,
    CapacityRule,
    CapacityScope,
    Epsilon,
    FfnSpec,
    GatingSpec,
    GroupMask,
    GroupScore,
    ModelSpec,
    Normalise,
    Router,
    Score,
    Selection,
)


@st.composite
def gatings(draw: st.DrawFn, *, max_experts: int = 24) -> GatingSpec:
    """Draw a valid gating that the hardware has."""
    normalise = draw(st.sampled_from(Normalise))
    num_groups, num_experts, topk_groups, top_k = draw(_sizes(max_experts))
    selection_bias = draw(st.booleans())
    score, weight_score = draw(st.sampled_from(Score)), draw(st.sampled_from((None, *Score)))
    # Weights that are logits have no identity experts, and no epsilon that is nothing where it clamps.
    signed = (weight_score or score) is Score.NONE
    return GatingSpec(
        num_experts=num_experts,
        top_k=top_k,
        score=score,
        weight_score=weight_score,
        logit_bias=draw(st.booleans()),
        selection_bias=selection_bias,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=draw(st.sampled_from(GroupScore)),
        group_mask=draw(st.sampled_from(GroupMask)),
        normalise=normalise,
        normalise_kept=normalise is not Normalise.NONE and draw(st.booleans()),
        epsilon=draw(st.sampled_from((0.0, 0.3) if signed else (0.0, 1e-20, 1e-6, 0.3))),
        epsilon_rule=draw(st.sampled_from(Epsilon)),
        norm_order=draw(st.sampled_from((1.0, 2.0, 3.5))),
        scale=draw(st.sampled_from((1.0, 2.5, 100.0))),
        num_identity_experts=0 if signed else draw(st.sampled_from((0, 0, num_experts // 3))),
        weight_applied_to=draw(st.sampled_from(AppliedTo)),
    )


@st.composite
def all_gatings(draw: st.DrawFn, *, max_experts: int = 24) -> GatingSpec:
    """Draw any valid gating."""
    num_groups, num_experts, topk_groups, top_k = draw(_sizes(max_experts))
    selection = Selection.TOP_K
    if topk_groups == num_groups:
        selection = draw(st.sampled_from((Selection.TOP_K, *Selection)))
    mixer = selection is Selection.SPARSE_MIXER
    # Sums of logits may be next to nothing, and then nothing can be said of the weights.
    normal = st.sampled_from((Normalise.NONE, Normalise.SUM, Normalise.P_NORM))
    score = draw(st.sampled_from(Score))
    weight_score = draw(
        st.sampled_from((Score.SIGMOID, Score.SOFTMAX) if score is Score.NONE else (None, *Score))
    )
    weight_score = None if weight_score is Score.NONE else weight_score
    normalise = Normalise.NONE if mixer else draw(normal)
    prototypes = [n for n in range(1, top_k + 1) if not (num_experts % n or top_k % n)]
    router = draw(st.sampled_from((Router.LINEAR, *Router)))
    alone = selection is Selection.TOP_K and topk_groups == num_groups
    return GatingSpec(
        num_experts=num_experts,
        top_k=top_k,
        num_identity_experts=draw(st.integers(0, num_experts - 1)),
        router=router,
        router_width=draw(st.integers(1, 9)) if router is Router.MLP else 0,
        # Attention may leave logits that are next to equal; divided by their spread they would be noise.
        logit_deviation=draw(st.sampled_from((0.0, 0.0, 1.0, 0.5))) if router is Router.LINEAR else 0.0,
        num_prototypes=draw(st.sampled_from(prototypes)) if alone else 1,
        score=score,
        weight_score=None if mixer else weight_score,
        selection=selection,
        jitter=draw(st.sampled_from((0.0, 0.01, 0.3))),
        hash_tokens=draw(st.integers(1, 7)) if selection is Selection.HASH else 0,
        logit_bias=draw(st.booleans()),
        selection_bias=selection is Selection.TOP_K and draw(st.booleans()),
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=draw(st.sampled_from(GroupScore)),
        group_mask=draw(st.sampled_from(GroupMask)),
        normalise=normalise,
        epsilon=draw(st.sampled_from((0.0, 1e-20, 1e-6, 0.3))),
        epsilon_rule=draw(st.sampled_from(Epsilon)),
        norm_order=draw(st.sampled_from((1.0, 2.0, 3.5))),
        scale=draw(st.sampled_from((1.0, 2.5, 100.0))),
        normalise_kept=normalise is not Normalise.NONE and draw(st.booleans()),
        weight_applied_to=draw(st.sampled_from(AppliedTo)),
    )


@st.composite
def _sizes(draw: st.DrawFn, max_experts: int) -> tuple[int, int, int, int]:
    """Draw groups, experts, groups and experts that are chosen."""
    num_groups = draw(st.sampled_from((1, 1, 2, 3, 4)))
    group_size = draw(st.integers(2 if num_groups > 1 else 1, max_experts // num_groups))
    topk_groups = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, min(16, topk_groups * group_size)))
    return num_groups, num_groups * group_size, topk_groups, top_k


@st.composite
def activations(draw: st.DrawFn) -> tuple[Activation, bool, Activation | None]:
    """Draw an activation, whether there is a gate matrix, and the shared expert's activation."""
    activation = draw(st.sampled_from(Activation))
    gated = activation is Activation.CLAMPED_SWIGLU or draw(st.booleans())
    others = [kind for kind in Activation if gated or kind is not Activation.CLAMPED_SWIGLU]
    return activation, gated, draw(st.sampled_from((None, None, *others)))


@st.composite
def _shares(draw: st.DrawFn, fractions: st.SearchStrategy[float]) -> dict[str, Any]:
    """Draw a capacity as a share of the tokens, or none."""
    fraction = draw(fractions)
    if fraction <= 0:
        return {"capacity_fraction": fraction}
    return {
        "capacity_fraction": fraction,
        "capacity_rounding": draw(st.sampled_from(CapacityRounding)),
        "capacity_minimum": draw(st.sampled_from((0, 0, 1, 4))),
    }


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Draw a small valid model that the hardware has."""
    gating = draw(gatings(max_experts=12))
    activation, gated, other = draw(activations())
    scaled = not gating.num_identity_experts and gating.weight_applied_to is AppliedTo.OUTPUT
    return ModelSpec(
        name="drawn",
        d_model=draw(st.integers(1, 12)),
        gating=gating,
        ffn=FfnSpec(
            d_expert=draw(st.integers(1, 9)),
            activation=activation,
            gate_matrix=gated,
            bias=draw(st.booleans()),
            clamped=gated and draw(st.booleans()),
            limit=draw(st.sampled_from((0.7, 10.0))),
        ),
        d_shared=draw(st.sampled_from((0, 0, 1, 7))),
        shared_activation=other,
        shared_bias=draw(st.booleans()),
        shared_expert_gate=draw(st.booleans()),
        expert_output_scale=draw(st.sampled_from((1.0, 0.8, 3.0))) if scaled else 1.0,
        output_bias=not gating.num_identity_experts and draw(st.booleans()),
        expert_capacity=draw(st.sampled_from((0, 0, 1, 2, NO_PLACES))),
        **draw(_shares(st.sampled_from((0.0, 0.0, -1.0, 0.25)))),
        capacity_rule=draw(st.sampled_from(CapacityRule)),
    )


@st.composite
def all_models(draw: st.DrawFn) -> ModelSpec:
    """Draw any small valid model."""
    gating = draw(all_gatings(max_experts=12))
    activation = draw(st.sampled_from(Activation))
    swiglu = activation is Activation.CLAMPED_SWIGLU
    gated = swiglu or draw(st.booleans())
    bias, clamped = draw(st.booleans()), gated and draw(st.booleans())
    single = [kind for kind in Activation if kind is not Activation.CLAMPED_SWIGLU]
    return ModelSpec(
        name="drawn",
        d_model=draw(st.integers(1, 12)),
        gating=gating,
        ffn=FfnSpec(
            d_expert=draw(st.integers(1, 9)),
            activation=activation,
            gate_matrix=gated,
            second_up=gated and not (swiglu or bias or clamped) and draw(st.booleans()),
            bias=bias,
            clamped=clamped,
            limit=draw(st.sampled_from((0.2, 7.0))),
        ),
        d_latent=0 if gating.num_identity_experts else draw(st.sampled_from((0, 1, 5))),
        latent_bias=draw(st.booleans()),
        d_shared=draw(st.sampled_from((0, 1, 7))),
        shared_activation=draw(st.sampled_from((None, *single))),
        shared_bias=draw(st.booleans()),
        shared_expert_gate=draw(st.booleans()),
        expert_input_scale=draw(st.sampled_from((1.0, 1.0, 2.0))),
        expert_output_scale=draw(st.sampled_from((1.0, 0.8))),
        output_bias=draw(st.booleans()),
        expert_capacity=draw(st.sampled_from((0, 0, 1, 2, -1))),
        **draw(_shares(st.sampled_from((0.0, 0.0, -1.0, 0.25, 1.0)))),
        capacity_scope=draw(st.sampled_from(CapacityScope)),
        capacity_rule=draw(st.sampled_from(CapacityRule)),
    )
