"""Write vector files: an inverse of the reader, written from the format's description alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from golden.weights import LayerWeights
from spec.model import ModelSpec
from tests.reference import reference_layer

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""Hugging Face's names of activations, where they are not ours."""


def config_of(family: str, model: ModelSpec) -> dict[str, Any]:
    """Return the Hugging Face configuration of a model of a family."""
    gating, ffn = model.gating, model.ffn
    e, k, f, h = gating.num_experts, gating.top_k, ffn.d_expert, model.d_model
    act = ACTIVATIONS.get(ffn.activation, str(ffn.activation))
    normalised = gating.normalise == "sum"
    grouped = gating.num_groups > 1
    mixtral = {
        "hidden_size": h,
        "intermediate_size": f,
        "num_local_experts": e,
        "num_experts_per_tok": k,
        "hidden_act": act,
    }
    qwen = {
        "hidden_size": h,
        "moe_intermediate_size": f,
        "num_experts": e,
        "num_experts_per_tok": k,
        "norm_topk_prob": normalised,
        "hidden_act": act,
    }
    deepseek = {
        "hidden_size": h,
        "moe_intermediate_size": f,
        "n_routed_experts": e,
        "num_experts_per_tok": k,
        "n_shared_experts": model.d_shared // f,
        "n_group": gating.num_groups,
        "topk_group": gating.topk_groups,
        "norm_topk_prob": normalised,
        "routed_scaling_factor": gating.scale,
        "hidden_act": act,
    }
    switch = {"d_model": h, "num_experts": e, "router_bias": gating.logit_bias}
    p_norm = {"none": None, "sum": 1.0, "p_norm": gating.norm_order}[gating.normalise]
    hashed = gating.selection == "hash"
    return {
        "mixtral": lambda: mixtral,
        "minimax": lambda: mixtral,
        "minimax_m2": lambda: mixtral,
        "granitemoe": lambda: mixtral,
        "granitemoeshared": lambda: mixtral | {"shared_intermediate_size": model.d_shared},
        "llama4": lambda: mixtral,
        "phimoe": lambda: mixtral | {"router_jitter_noise": gating.jitter},
        "gpt_oss": lambda: mixtral | {"swiglu_limit": ffn.limit, "hidden_act": "silu"},
        "jetmoe": lambda: without(mixtral, "hidden_act") | {"activation_function": act},
        "qwen3_moe": lambda: qwen,
        "qwen2_moe": lambda: qwen | {"shared_expert_intermediate_size": model.d_shared},
        "qwen3_next": lambda: qwen | {"shared_expert_intermediate_size": model.d_shared},
        "olmoe": lambda: without(qwen, "moe_intermediate_size") | {"intermediate_size": f},
        "jamba": lambda: without(qwen, "moe_intermediate_size", "norm_topk_prob") | {"intermediate_size": f},
        "lfm2_moe": lambda: (
            without(qwen, "hidden_act")
            | {"use_expert_bias": gating.selection_bias, "routed_scaling_factor": gating.scale}
        ),
        "afmoe": lambda: (
            without(qwen, "norm_topk_prob")
            | {"num_shared_experts": model.d_shared // f, "route_scale": gating.scale}
        ),
        "hunyuan_v1_moe": lambda: {
            "hidden_size": h,
            "intermediate_size": f,
            "num_experts": e,
            "moe_topk": [k, k],
            "hidden_act": act,
        },
        "aria": lambda: {
            "hidden_size": h,
            "intermediate_size": f,
            "moe_num_experts": e,
            "moe_topk": k,
            "moe_num_shared_experts": model.d_shared // f,
            "mlp_bias": model.shared_bias,
            "hidden_act": ACTIVATIONS.get(model.shared_activation, str(model.shared_activation)),
        },
        "deepseek_v3": lambda: deepseek,
        "glm4_moe": lambda: deepseek,
        "deepseek_v2": lambda: (
            deepseek
            | {
                "topk_method": "group_limited_greedy" if grouped else "greedy",
                "n_group": gating.num_groups if grouped else None,
                "mlp_bias": model.shared_bias,
            }
        ),
        "deepseek_v4": lambda: (
            without(deepseek, "n_group", "topk_group", "norm_topk_prob")
            | {
                "swiglu_limit": ffn.limit,
                "mlp_layer_types": ["moe", "hash_moe"],
                "layer_idx": int(hashed),
                "vocab_size": gating.hash_tokens,
                "mlp_bias": model.shared_bias,
                "scoring_func": "sqrtsoftplus" if gating.score == "sqrt_softplus" else "sigmoid",
            }
        ),
        "nemotron_h": lambda: (
            without(deepseek, "hidden_act")
            | {
                "mlp_hidden_act": act,
                "moe_shared_expert_intermediate_size": model.d_shared,
                "moe_latent_size": model.d_latent or None,
                "mlp_bias": model.shared_bias,
            }
        ),
        "longcat_flash": lambda: {
            "hidden_size": h,
            "expert_ffn_hidden_size": f,
            "n_routed_experts": e - gating.num_identity_experts,
            "zero_expert_num": gating.num_identity_experts,
            "moe_topk": k,
            "routed_scaling_factor": gating.scale,
            "hidden_act": act,
        },
        "ernie4_5_moe": lambda: {
            "hidden_size": h,
            "moe_intermediate_size": f,
            "moe_num_experts": e,
            "moe_k": k,
            "moe_num_shared_experts": model.d_shared // f,
            "moe_norm_min": gating.epsilon,
            "use_bias": model.shared_bias,
            "hidden_act": act,
        },
        "dbrx": lambda: {
            "d_model": h,
            "ffn_hidden_size": f,
            "moe_num_experts": e,
            "moe_top_k": k,
            "moe_normalize_expert_weights": p_norm,
            "ffn_act_fn": {"name": act},
        },
        "switch_transformers": lambda: (
            switch | {"d_ff": f, "dense_act_fn": act, "expert_capacity": max(model.expert_capacity, 0)}
        ),
        "nllb_moe": lambda: (
            switch
            | {
                "encoder_ffn_dim": f,
                "activation_function": act,
                "expert_capacity": max(model.expert_capacity, 0),
                "moe_eval_capacity_token_fraction": model.capacity_fraction,
                "moe_token_dropout": 1.0 - model.expert_output_scale,
                "batch_prioritized_routing": model.capacity_rule == "score_priority",
                "normalize_router_prob_before_dropping": not gating.normalise_kept,
            }
        ),
        "llama_moe": lambda: {
            "hidden_size": h,
            "intermediate_size": e * f,
            "size_experts": [[f] * e] if e % 2 else None,
            "num_experts": e,
            "num_selects": k,
            "gate_network": "mlp",
            "score_scale_factor": gating.scale,
            "hidden_act": act,
        },
        "openmoe": lambda: {
            "architectures": ["OpenMoeForCausalLM"],
            "hidden_size": h,
            "intermediate_size": f,
            "num_experts": e,
            "router_topk": k,
            "router_capacity_factor_eval": model.capacity_fraction * e / k,
            "router_min_capacity": model.capacity_minimum,
            "hidden_act": "swiglu",
        },
        "skywork": lambda: {
            "hidden_size": h,
            "intermediate_size": f,
            "num_experts": [e],
            "moe_2layer_gate": gating.router == "mlp",
            "moe_use_logits_norm": gating.logit_deviation > 0,
            "moe_gate_norm_std": round(gating.logit_deviation * (e / max(e - 1, 1)) ** 0.5, 12) or 1.0,
            "moe_feature_no_mul_topk": model.expert_input_scale == 1.0,
            "hidden_act": act,
        },
        "yuan": lambda: {
            "hidden_size": h,
            "hidden_act": act,
            "moe_config": {
                "ffn_hidden_size": f,
                "gated_linear_unit": True,
                "moe_num_experts": e,
                "moe_top_k": k,
                "norm_topk_prob": normalised,
            },
        },
    }[family]()


def without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a table without some of its keys."""
    return {key: value for key, value in table.items() if key not in keys}


def params_of(family: str, w: LayerWeights) -> dict[str, Any]:
    """Return a layer's weights under a family's array names and in its layout."""
    params: dict[str, Any]
    if family in ("switch_transformers", "nllb_moe"):
        first, second = ("wi", "wo") if family == "switch_transformers" else ("fc1", "fc2")
        params = {"router.classifier.weight": w.router, "router.classifier.bias": w.logit_bias}
        for e in range(len(w.up)):
            params[f"experts.expert_{e}.{first}.weight"] = w.up[e]
            params[f"experts.expert_{e}.{second}.weight"] = w.down[e]
            if family == "nllb_moe":
                params[f"experts.expert_{e}.{first}.bias"] = w.up_bias[e]
                params[f"experts.expert_{e}.{second}.bias"] = w.down_bias[e]
    elif family == "gpt_oss":
        e, f, h = w.up.shape
        params = {
            "router.weight": w.router,
            "router.bias": w.logit_bias,
            "experts.gate_up_proj": np.stack([w.gate, w.up], axis=2).reshape(e, 2 * f, h).transpose(0, 2, 1),
            "experts.gate_up_proj_bias": np.stack([w.gate_bias, w.up_bias], axis=2).reshape(e, 2 * f),
            "experts.down_proj": w.down.transpose(0, 2, 1),
            "experts.down_proj_bias": w.down_bias,
        }
    elif family == "dbrx":
        h = w.router.shape[1]
        params = {
            "router.layer.weight": w.router,
            "experts.mlp.w1": w.gate.reshape(-1, h),
            "experts.mlp.v1": w.up.reshape(-1, h),
            "experts.mlp.w2": w.down.transpose(0, 2, 1).reshape(-1, h),
        }
    elif family == "jetmoe":
        params = {
            "router.layer.weight": w.router,
            "input_linear.weight": np.concatenate([w.gate, w.up], axis=1),
            "output_linear.weight": w.down,
            "bias": w.output_bias,
        }
    elif family == "llama_moe":
        params = {"gate.gate_network.2.weight": w.router, "gate.gate_network.0.weight": w.router_hidden}
        for e in range(len(w.up)):
            experts = (("gate", w.gate), ("up", w.up), ("down", w.down))
            params |= {f"calculator.experts.weight_{name}.{e}": array[e] for name, array in experts}
    elif family == "openmoe":
        params = {
            "gate_weight": w.router,
            "experts.wi_gate": np.concatenate([w.second_up, w.gate], axis=1).transpose(0, 2, 1),
            "experts.wi_up": w.up.transpose(0, 2, 1),
            "experts.wo": w.down.transpose(0, 2, 1),
        }
    elif family == "skywork":
        params = {"gate.wg.weight": w.router, "gate.wg.0.weight": w.router_hidden}
        for e in range(len(w.up)):
            experts = (("gate", w.gate), ("up", w.up), ("down", w.down))
            params |= {f"experts.experts.{e}.{name}_proj.weight": array[e] for name, array in experts}
    elif family == "yuan":
        params = {
            "gate.query.weight": w.router_query,
            "gate.key.weight": w.router_key,
            "gate.value.weight": w.router,
        }
        for e in range(len(w.up)):
            params[f"experts.{e}.w1.weight"] = np.concatenate([w.gate[e], w.up[e]])
            params[f"experts.{e}.w2.weight"] = w.down[e]
    elif family == "nemotron_h":
        params = {
            "gate.weight": w.router,
            "gate.e_score_correction_bias": w.selection_bias,
            "experts.up_proj": w.up,
            "experts.down_proj": w.down,
            "fc1_latent_proj.weight": w.latent_in,
            "fc1_latent_proj.bias": w.latent_in_bias,
            "fc2_latent_proj.weight": w.latent_out,
            "fc2_latent_proj.bias": w.latent_out_bias,
        } | shared_params("shared_experts", w)
    else:
        router, bias, shared = NAMES.get(
            family, ("gate.weight", "gate.e_score_correction_bias", "shared_experts")
        )
        fused, down = np.concatenate([w.gate, w.up], axis=1), w.down
        if family == "longcat_flash":
            # Identity experts have rows that nothing reads.
            unused = np.ones((len(w.router) - len(w.up), *fused.shape[1:]), np.float32)
            fused = np.concatenate([fused, unused])
        if family in ("aria", "llama4"):
            fused, down = fused.transpose(0, 2, 1), down.transpose(0, 2, 1)
        prefix = "block_sparse_moe." if family == "granitemoeshared" else ""
        params = {
            f"{prefix}{router}": w.router,
            bias: w.selection_bias,
            f"{prefix}experts.gate_up_proj": fused,
            f"{prefix}experts.down_proj": down,
            "shared_expert_gate.weight": w.shared_expert_gate,
            "gate.tid2eid": w.hash_table,
        }
        if family == "ernie4_5_moe":
            params[bias] = w.selection_bias[None]
        if family != "granitemoeshared":
            params |= shared_params(shared, w)
        elif w.shared_up is not None:
            params["shared_mlp.input_linear.weight"] = np.concatenate([w.shared_gate, w.shared_up])
            params["shared_mlp.output_linear.weight"] = w.shared_down
    return {f"param/{name}": array for name, array in params.items() if array is not None}


NAMES = {
    "minimax_m2": ("gate.weight", "e_score_correction_bias", ""),
    "granitemoe": ("router.weight", "", ""),
    "granitemoeshared": ("router.weight", "", ""),
    "llama4": ("router.weight", "", "shared_expert"),
    "phimoe": ("router.weight", "", ""),
    "jamba": ("router.weight", "", ""),
    "qwen2_moe": ("gate.weight", "", "shared_expert"),
    "qwen3_next": ("gate.weight", "", "shared_expert"),
    "lfm2_moe": ("gate.weight", "expert_bias", ""),
    "afmoe": ("router.gate.weight", "expert_bias", "shared_experts"),
    "hunyuan_v1_moe": ("gate.wg.weight", "", "shared_mlp"),
    "aria": ("router.weight", "", "shared_experts"),
    "longcat_flash": ("router.classifier.weight", "router.e_score_correction_bias", ""),
    "ernie4_5_moe": ("gate.weight", "gate.moe_statics.e_score_correction_bias", "shared_experts"),
}
"""Names of router, selection bias and shared expert, where they are not DeepSeek's."""


def shared_params(prefix: str, w: LayerWeights) -> dict[str, Any]:
    """Return the shared expert's arrays."""
    return {
        f"{prefix}.gate_proj.weight": w.shared_gate,
        f"{prefix}.up_proj.weight": w.shared_up,
        f"{prefix}.down_proj.weight": w.shared_down,
        f"{prefix}.gate_proj.bias": w.shared_gate_bias,
        f"{prefix}.up_proj.bias": w.shared_up_bias,
        f"{prefix}.down_proj.bias": w.shared_down_bias,
    }


def write_vector(
    path: Path,
    family: str,
    model: ModelSpec,
    weights: LayerWeights,
    tokens: np.ndarray,
    token_ids: np.ndarray | None = None,
) -> None:
    """Write a vector with the results of the reference; token_ids (B, S) for hashed experts."""
    expected = reference_layer(model, weights, tokens, token_ids)
    b, s, h = tokens.shape
    meta = {
        "family": family,
        "config": config_of(family, model),
        "B": b,
        "S": s,
        "T": b * s,
        "H": h,
        "weight_applied_to": str(model.gating.weight_applied_to),
        "dropped_assignments": expected.dropped_assignments,
    }
    arrays = {
        "input": tokens,
        "router_logits": expected.router_logits.astype(np.float32),
        "topk_indices": expected.topk_indices,
        "topk_weights": expected.topk_weights.astype(np.float32),
        "combine": expected.combine.astype(np.float32),
        "output": expected.output.astype(np.float32),
    }
    if token_ids is not None:
        arrays["input_ids"] = token_ids
    if model.d_shared:
        arrays["shared_output"] = np.zeros_like(tokens)
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays, **params_of(family, weights))


def rewrite(source: Path, target: Path, changes: dict[str, Any]) -> None:
    """Copy a vector with arrays replaced (``None`` removes one); ``meta`` takes the JSON object."""
    with np.load(source) as archive:
        arrays = dict(archive.items())
    for key, value in changes.items():
        if value is None:
            del arrays[key]
        else:
            arrays[key] = np.array(json.dumps(value)) if key == "meta" else value
    np.savez(target, **arrays)


def meta_of(source: Path) -> dict[str, Any]:
    """Return a vector's meta object."""
    with np.load(source) as archive:
        meta: dict[str, Any] = json.loads(str(archive["meta"]))
    return meta
