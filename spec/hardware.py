"""Which terms of the algebra the hardware has.

:class:`spec.model.ModelSpec` says more than gate, dispatcher and engines compute so far. A model with a term
that they lack is refused here, before a geometry is made of it: no run in the hardware's formats, no Verilog
and no cycle model computes something else than the model says. ``docs/families.md`` lists the terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spec.errors import InputError
from spec.gate_plan import EPSILON_BITS, GatePlan
from spec.model import (
    MAX_SCALE,
    Activation,
    AppliedTo,
    Epsilon,
    ModelSpec,
    Normalise,
    Router,
    Selection,
)

GATE_EXPERTS = 512
"""Experts of the largest gate; :data:`spec.model.MAX_EXPERTS` are those of any model."""
GATE_TOP_K = 16
NORM_ORDERS = (0.25, 64.0)
"""Range of the orders of a p-norm."""
DEVIATIONS = (2.0**-10, 2.0**10)
"""Range of the deviation of normalised logits times the root of the number of experts: their bound."""
IDENTITY_SCALES = (2.0**-10, 2.0**10)
"""Range of the weights' scale beside identity experts, whose weights are added with 20 bits before the point
and 32 behind."""
LIMITS = (0.5, 64.0)
"""Range of the bounds of a clamped activation."""


def check_hardware(model: ModelSpec) -> None:
    """Raise :class:`InputError` (key, rule, value, model) if the hardware lacks a term of ``model``."""
    for key, rule, value in _lacking(model):
        raise InputError(f"{rule} in hardware, not {_text(value)} (model {model.name})", key=key)


def lacking_terms(model: ModelSpec) -> list[str]:
    """Return the fields of ``model`` whose values the hardware lacks; empty where it has all."""
    return [key for key, _, _ in _lacking(model)]


def _lacking(model: ModelSpec) -> Iterator[tuple[str, str, object]]:
    """Yield key, rule and value of each term that the hardware lacks."""
    yield from _lacking_of_gating(model)
    yield from _lacking_of_ffn(model)
    if model.d_latent:
        yield "d_latent", "must be 0", model.d_latent
    identity, on_input = model.gating.num_identity_experts, model.gating.weight_applied_to is AppliedTo.INPUT
    if model.output_bias and identity:
        yield "output_bias", "must be false with identity experts", True
    if model.expert_input_scale != 1.0:
        yield "expert_input_scale", "must be 1.0", model.expert_input_scale
    # It is a factor of the gate's weights.
    if model.expert_output_scale != 1.0 and (identity or on_input):
        terms = "identity experts" if identity else "weights on the input"
        yield "expert_output_scale", f"must be 1.0 with {terms}", model.expert_output_scale
    elif model.expert_output_scale != 1.0 and not (
        0 < model.expert_output_scale * model.gating.scale < MAX_SCALE
    ):
        rule = f"must be above 0 and, times gating.scale, below {MAX_SCALE}"
        yield "expert_output_scale", rule, model.expert_output_scale


def _lacking_of_gating(model: ModelSpec) -> Iterator[tuple[str, str, object]]:
    gating = model.gating
    for key, largest in (("num_experts", GATE_EXPERTS), ("top_k", GATE_TOP_K)):
        if getattr(gating, key) > largest:
            yield f"gating.{key}", f"must be at most {largest}", getattr(gating, key)
    for key, value, allowed in (
        ("router", gating.router, (Router.LINEAR,)),
        ("selection", gating.selection, (Selection.TOP_K,)),
    ):
        if value not in allowed:
            yield f"gating.{key}", f"must be {_names(allowed)}", value.value
    low, high = DEVIATIONS
    if gating.logit_deviation and not low <= gating.logit_deviation * gating.num_experts**0.5 <= high:
        rule = f"must be 0.0 or, times the root of num_experts, in {low}..{high}"
        yield "gating.logit_deviation", rule, gating.logit_deviation
    if gating.logit_deviation and gating.num_prototypes > 1:
        yield "gating.logit_deviation", "must be 0.0 with prototypes", gating.logit_deviation
    if gating.num_prototypes > 1 and gating.normalise is not Normalise.NONE:
        yield "gating.normalise", "must be 'none' with prototypes", gating.normalise.value
    if gating.num_prototypes > 1 and gating.selection_bias:
        yield "gating.selection_bias", "must be false with prototypes", True
    low, high = NORM_ORDERS
    if gating.normalise is Normalise.P_NORM and not low <= gating.norm_order <= high:
        yield "gating.norm_order", f"must be in {low}..{high}", gating.norm_order
    plan = GatePlan(gating)
    signed_sum = plan.signed and gating.normalise is Normalise.SUM
    if signed_sum and gating.epsilon_rule is Epsilon.CLAMPED and gating.epsilon and not plan.has_epsilon:
        # A sum below 0 is lifted to an epsilon that is 0 here: weights are infinite, or nothing.
        least = 2.0**-EPSILON_BITS
        yield (
            "gating.epsilon",
            f"must be 0.0 or at least {least} where it clamps a sum of logits",
            gating.epsilon,
        )
    if gating.num_identity_experts:
        low, high = IDENTITY_SCALES
        if plan.signed:
            yield (
                "gating.num_identity_experts",
                "must be 0 where weights are logits",
                gating.num_identity_experts,
            )
        elif not low <= gating.scale <= high:
            yield "gating.scale", f"must be in {low}..{high} with identity experts", gating.scale


def _lacking_of_ffn(model: ModelSpec) -> Iterator[tuple[str, str, object]]:
    ffn = model.ffn
    if ffn.second_up:
        yield "ffn.second_up", "must be false", True
    activations = {kind.activation for kind in (ffn, model.shared_ffn) if kind is not None}
    clamped = ffn.clamped or Activation.CLAMPED_SWIGLU in activations
    if clamped and not LIMITS[0] <= ffn.limit <= LIMITS[1]:
        yield "ffn.limit", f"must be in {LIMITS[0]}..{LIMITS[1]}", ffn.limit


def _names(allowed: Sequence[object]) -> str:
    return " or ".join(repr(str(value)) for value in allowed)


def _text(value: object) -> str:
    """Return a value as a TOML file has it, names in single quotes."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
