"""Hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st

from spec.model import Activation, CapacityRule, FfnSpec, GatingSpec, GroupScore, ModelSpec, Normalise, Score


@st.composite
def gatings(draw: st.DrawFn, *, max_experts: int = 24) -> GatingSpec:
    """Draw a valid gating of any family's kind."""
    num_groups = draw(st.sampled_from((1, 1, 2, 3, 4)))
    group_size = draw(st.integers(2 if num_groups > 1 else 1, max_experts // num_groups))
    num_experts = num_groups * group_size
    topk_groups = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, min(16, topk_groups * group_size)))
    score = Score.SIGMOID if topk_groups < num_groups else draw(st.sampled_from(Score))
    selection_bias = score is Score.SIGMOID and draw(st.booleans())
    return GatingSpec(
        num_experts=num_experts,
        top_k=top_k,
        score=score,
        logit_bias=not selection_bias and draw(st.booleans()),
        selection_bias=selection_bias,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=draw(st.sampled_from(GroupScore)),
        normalise=draw(st.sampled_from(Normalise)),
        epsilon=draw(st.sampled_from((0.0, 1e-20, 1e-6))),
        scale=draw(st.sampled_from((1.0, 2.5))),
    )


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Draw a small valid model."""
    return ModelSpec(
        name="drawn",
        d_model=draw(st.integers(1, 12)),
        gating=draw(gatings(max_experts=12)),
        ffn=FfnSpec(
            d_expert=draw(st.integers(1, 9)),
            activation=draw(st.sampled_from(Activation)),
            bias=draw(st.booleans()),
        ),
        d_shared=draw(st.sampled_from((0, 0, 1, 7))),
        expert_capacity=draw(st.sampled_from((0, 0, 1, 2))),
        capacity_rule=draw(st.sampled_from(CapacityRule)),
    )
