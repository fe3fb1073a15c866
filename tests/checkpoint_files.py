"""Write checkpoints: an inverse of the reader, from the format's description and published names alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from golden.weights import LayerWeights

NUMPY = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
    "U8": np.dtype(np.uint8),
    "F4": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}

Tensors = dict[str, tuple[str, Any]]
"""Name -> dtype, array: of its own values for floats, of patterns for the 8-bit ones, of pairs for ``F4``."""


def file_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """Return a file's bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).astype(NUMPY[dtype]).tobytes()
        shape = list(np.shape(array))
        if dtype == "F4":
            shape[-1] *= 2
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def raw_file(header: object, data: bytes = b"") -> bytes:
    """Return a file of a header that may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_checkpoint(folder: Path, config: dict[str, Any], *shards: Tensors) -> Path:
    """Write a folder: one shard is ``model.safetensors``, several have an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if len(shards) == 1:
        (folder / "model.safetensors").write_bytes(file_bytes(shards[0], {"format": "pt"}))
        return folder
    places = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / name).write_bytes(file_bytes(tensors, {"format": "pt"}))
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def per_expert(
    gate: str, up: str, down: str, before: str = "experts"
) -> Callable[[LayerWeights], dict[str, Any]]:
    """Return a layout with a matrix for each expert."""

    def layout(weights: LayerWeights) -> dict[str, Any]:
        arrays = {}
        for name, values in ((gate, weights.gate), (up, weights.up), (down, weights.down)):
            if values is not None:
                arrays |= {f"{before}.{e}.{name}.weight": matrix for e, matrix in enumerate(values)}
        return arrays

    return layout


def fused(gate_up: str, down: str, *, in_out: bool) -> Callable[[LayerWeights], dict[str, Any]]:
    """Return a layout with one array for all experts' gate and up matrices, one below the other."""

    def layout(weights: LayerWeights) -> dict[str, Any]:
        both = np.concatenate([weights.gate, weights.up], axis=1)
        arrays = {gate_up: both, down: weights.down}
        return {name: array.swapaxes(1, 2) if in_out else array for name, array in arrays.items()}

    return layout


def numbered(up: str, down: str) -> Callable[[LayerWeights], dict[str, Any]]:
    """Return the layout of encoder-decoder models."""

    def layout(weights: LayerWeights) -> dict[str, Any]:
        arrays = {}
        for e in range(len(weights.up)):
            arrays[f"experts.expert_{e}.{up}.weight"] = weights.up[e]
            arrays[f"experts.expert_{e}.{down}.weight"] = weights.down[e]
            if weights.up_bias is not None:
                arrays[f"experts.expert_{e}.{up}.bias"] = weights.up_bias[e]
                arrays[f"experts.expert_{e}.{down}.bias"] = weights.down_bias[e]
        return arrays

    return layout


def dbrx(weights: LayerWeights) -> dict[str, Any]:
    """Return DBRX's layout: all experts one below the other."""
    width = weights.up.shape[2]
    return {
        "experts.mlp.w1": weights.gate.reshape(-1, width),
        "experts.mlp.v1": weights.up.reshape(-1, width),
        "experts.mlp.w2": weights.down.swapaxes(1, 2).reshape(-1, width),
    }


def gpt_oss(weights: LayerWeights) -> dict[str, Any]:
    """Return gpt-oss's layout in bf16: columns of gate and up in turn."""

    def in_turn(gate: Any, up: Any) -> Any:
        return np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])

    return {
        "experts.gate_up_proj": in_turn(weights.gate, weights.up).swapaxes(1, 2),
        "experts.down_proj": weights.down.swapaxes(1, 2),
        "experts.gate_up_proj_bias": in_turn(weights.gate_bias, weights.up_bias),
        "experts.down_proj_bias": weights.down_bias,
    }


def llama_moe(weights: LayerWeights) -> dict[str, Any]:
    """Return LLaMA-MoE's layout: lists of matrices."""
    parts = (("gate", weights.gate), ("up", weights.up), ("down", weights.down))
    return {
        f"calculator.experts.weight_{name}.{e}": matrix
        for name, values in parts
        for e, matrix in enumerate(values)
    }


def openmoe(weights: LayerWeights) -> dict[str, Any]:
    """Return OpenMoE's layout: (in, out), the gate's activated half behind the other."""
    return {
        "experts.wi_gate": np.concatenate([weights.second_up, weights.gate], axis=1).swapaxes(1, 2),
        "experts.wi_up": weights.up.swapaxes(1, 2),
        "experts.wo": weights.down.swapaxes(1, 2),
    }


def yuan(weights: LayerWeights) -> dict[str, Any]:
    """Return Yuan's layout: gate and up one below the other, for each expert."""
    arrays = {}
    for e in range(len(weights.up)):
        arrays[f"experts.{e}.w1.weight"] = np.concatenate([weights.gate[e], weights.up[e]])
        arrays[f"experts.{e}.w2.weight"] = weights.down[e]
    return arrays


PROJ = per_expert("gate_proj", "up_proj", "down_proj")
W = per_expert("w1", "w3", "w2")
MLP, BLOCK = "model.layers.{}.mlp.", "model.layers.{}.block_sparse_moe."


def shared(name: str) -> dict[str, str]:
    """Return the names of a shared expert's weights and biases."""
    return {
        f"{name}.{part}_proj.{kind}": f"shared_{part}" + ("_bias" if kind == "bias" else "")
        for part in ("gate", "up", "down")
        for kind in ("weight", "bias")
    }


GATE = {"gate.weight": "router"}
NOAUX = GATE | {"gate.e_score_correction_bias": "selection_bias"}
CLASSIFIER = {"router.classifier.weight": "router", "router.classifier.bias": "logit_bias"}
Layout = Callable[[LayerWeights], dict[str, Any]]
PUBLISHED: dict[str, tuple[str, Layout, dict[str, str]]] = {
    "afmoe": (
        MLP,
        PROJ,
        {"router.gate.weight": "router", "expert_bias": "selection_bias"} | shared("shared_experts"),
    ),
    "aria": (
        "language_model.model.layers.{}.mlp.",
        fused("experts.fc1.weight", "experts.fc2.weight", in_out=True),
        {"router.weight": "router"} | shared("shared_experts"),
    ),
    "dbrx": ("transformer.blocks.{}.ffn.", dbrx, {"router.layer.weight": "router"}),
    "deepseek_v2": (MLP, PROJ, GATE | shared("shared_experts")),
    "deepseek_v3": (MLP, PROJ, NOAUX | shared("shared_experts")),
    "deepseek_v4": (
        "layers.{}.ffn.",
        W,
        {
            "gate.weight": "router",
            "gate.bias": "selection_bias",
            "gate.tid2eid": "hash_table",
            "shared_experts.w1.weight": "shared_gate",
            "shared_experts.w3.weight": "shared_up",
            "shared_experts.w2.weight": "shared_down",
        },
    ),
    "ernie4_5_moe": (
        MLP,
        PROJ,
        GATE | {"moe_statics.e_score_correction_bias": "selection_bias"} | shared("shared_experts"),
    ),
    "glm4_moe": (MLP, PROJ, NOAUX | shared("shared_experts")),
    "gpt_oss": (MLP, gpt_oss, {"router.weight": "router", "router.bias": "logit_bias"}),
    "granitemoe": (
        BLOCK,
        fused("input_linear.weight", "output_linear.weight", in_out=False),
        {"router.layer.weight": "router"},
    ),
    "granitemoeshared": (
        BLOCK,
        fused("input_linear.weight", "output_linear.weight", in_out=False),
        {"router.layer.weight": "router"},
    ),
    "hunyuan_v1_moe": (MLP, PROJ, {"gate.wg.weight": "router"} | shared("shared_mlp")),
    "jamba": ("model.layers.{}.feed_forward.", PROJ, {"router.weight": "router"}),
    "jetmoe": (
        MLP,
        fused("input_linear.weight", "output_linear.weight", in_out=False),
        {"router.layer.weight": "router", "bias": "output_bias"},
    ),
    "lfm2_moe": ("model.layers.{}.feed_forward.", W, GATE | {"expert_bias": "selection_bias"}),
    "llama4": (
        "language_model.model.layers.{}.feed_forward.",
        fused("experts.gate_up_proj", "experts.down_proj", in_out=True),
        {"router.weight": "router"} | shared("shared_expert"),
    ),
    "longcat_flash": (
        MLP,
        PROJ,
        {"router.classifier.weight": "router", "router.e_score_correction_bias": "selection_bias"},
    ),
    "minimax": (BLOCK, W, GATE),
    "minimax_m2": (BLOCK, W, GATE | {"e_score_correction_bias": "selection_bias"}),
    "llama_moe": (
        MLP,
        llama_moe,
        {"gate.gate_network.0.weight": "router_hidden", "gate.gate_network.2.weight": "router"},
    ),
    "mixtral": (BLOCK, W, GATE),
    "nemotron_h": (
        "backbone.layers.{}.mixer.",
        PROJ,
        NOAUX
        | shared("shared_experts")
        | {
            "fc1_latent_proj.weight": "latent_in",
            "fc1_latent_proj.bias": "latent_in_bias",
            "fc2_latent_proj.weight": "latent_out",
            "fc2_latent_proj.bias": "latent_out_bias",
        },
    ),
    "nllb_moe": ("model.encoder.layers.{}.ffn.", numbered("fc1", "fc2"), CLASSIFIER),
    "olmoe": (MLP, PROJ, GATE),
    "openmoe": (MLP, openmoe, {"gate_weight": "router"}),
    "phimoe": (BLOCK, W, GATE),
    "qwen2_moe": (
        MLP,
        PROJ,
        GATE | {"shared_expert_gate.weight": "shared_expert_gate"} | shared("shared_expert"),
    ),
    "qwen3_moe": (MLP, PROJ, GATE),
    "qwen3_next": (
        MLP,
        PROJ,
        GATE | {"shared_expert_gate.weight": "shared_expert_gate"} | shared("shared_expert"),
    ),
    "skywork": (
        "model.layers.{}.mlp.moe.",
        per_expert("gate_proj", "up_proj", "down_proj", before="experts.experts"),
        {"gate.wg.0.weight": "router_hidden", "gate.wg.2.weight": "router"},
    ),
    "yuan": (
        MLP,
        yuan,
        {
            "gate.query.weight": "router_query",
            "gate.key.weight": "router_key",
            "gate.value.weight": "router",
        },
    ),
    "switch_transformers": ("encoder.block.{}.layer.1.mlp.", numbered("wi", "wo"), CLASSIFIER),
}
"""Family -> beginning of the names in layer ``{}``, layout of the routed experts, name -> other weight."""


def published(family: str, weights: LayerWeights, layer: int, dtype: str = "BF16") -> Tensors:
    """Return a layer's tensors as a family's checkpoints have them."""
    beginning, layout, names = PUBLISHED[family]
    arrays = layout(weights)
    arrays |= {name: getattr(weights, weight) for name, weight in names.items()}
    beginning = beginning.format(layer)
    tensors = {beginning + name: array for name, array in arrays.items() if array is not None}
    if family == "granitemoeshared" and weights.shared_up is not None:
        beginning = f"model.layers.{layer}.shared_mlp."
        both = np.concatenate([weights.shared_gate, weights.shared_up])
        tensors[f"{beginning}input_linear.weight"] = both
        tensors[f"{beginning}output_linear.weight"] = weights.shared_down
    if family == "ernie4_5_moe":
        name = f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"
        tensors[name] = tensors[name][None]
    return {name: ("I64" if array.dtype == np.int64 else dtype, array) for name, array in tensors.items()}
