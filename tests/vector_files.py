"""Write vector files: an inverse of the reader, written from the format's description alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from golden.weights import LayerWeights
from spec.model import ModelSpec
from tests.reference import reference_layer


def config_of(family: str, model: ModelSpec) -> dict[str, Any]:
    """Return the Hugging Face configuration of a model of a family."""
    gating, ffn = model.gating, model.ffn
    e, k, f = gating.num_experts, gating.top_k, ffn.d_expert
    normalised = gating.normalise == "sum"
    return {
        "mixtral": {"intermediate_size": f, "num_local_experts": e, "num_experts_per_tok": k},
        "qwen3_moe": {
            "moe_intermediate_size": f,
            "num_experts": e,
            "num_experts_per_tok": k,
            "norm_topk_prob": normalised,
        },
        "deepseek_v3": {
            "moe_intermediate_size": f,
            "n_routed_experts": e,
            "num_experts_per_tok": k,
            "n_shared_experts": model.d_shared // f,
            "n_group": gating.num_groups,
            "topk_group": gating.topk_groups,
            "norm_topk_prob": normalised,
            "routed_scaling_factor": gating.scale,
        },
        "gpt_oss": {
            "intermediate_size": f,
            "num_local_experts": e,
            "num_experts_per_tok": k,
            "swiglu_limit": ffn.limit,
        },
        "switch_transformers": {
            "d_model": model.d_model,
            "d_ff": f,
            "num_experts": e,
            "expert_capacity": model.expert_capacity,
            "router_bias": gating.logit_bias,
            "dense_act_fn": "relu",
        },
    }[family] | {"hidden_size": model.d_model}


def params_of(family: str, w: LayerWeights) -> dict[str, Any]:
    """Return a layer's weights under a family's array names and in its layout."""
    if family == "switch_transformers":
        params = {"router.classifier.weight": w.router, "router.classifier.bias": w.logit_bias}
        for e in range(len(w.up)):
            params[f"experts.expert_{e}.wi.weight"] = w.up[e]
            params[f"experts.expert_{e}.wo.weight"] = w.down[e]
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
    else:
        params = {
            "gate.weight": w.router,
            "gate.e_score_correction_bias": w.selection_bias,
            "experts.gate_up_proj": np.concatenate([w.gate, w.up], axis=1),
            "experts.down_proj": w.down,
            "shared_experts.gate_proj.weight": w.shared_gate,
            "shared_experts.up_proj.weight": w.shared_up,
            "shared_experts.down_proj.weight": w.shared_down,
        }
    return {f"param/{name}": array for name, array in params.items() if array is not None}


def write_vector(
    path: Path, family: str, model: ModelSpec, weights: LayerWeights, tokens: np.ndarray
) -> None:
    """Write a vector with the results of the reference implementation."""
    expected = reference_layer(model, weights, tokens)
    b, s, h = tokens.shape
    meta = {
        "family": family,
        "config": config_of(family, model),
        "B": b,
        "S": s,
        "T": b * s,
        "H": h,
        "weight_applied_to": "output",
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
