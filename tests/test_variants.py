"""Variants of families: configurations as written and as published, terms, what contradicts itself."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.gating import route
from golden.layer import layer
from golden.weights import random_tokens, random_weights
from sim.cli import main
from spec.catalogue import Backbone, total_params
from spec.errors import InputError, InputWarning
from spec.families import (
    PRESETS,
    WEIGHT_NAMES,
    FromConfig,
    config_keys,
    family_names,
    load_config,
    load_family,
    load_variant,
    read_config,
    variant_names,
)
from spec.hardware import lacking_terms
from spec.load import load_model
from spec.model import Activation, GroupMask, GroupScore, ModelSpec, Normalise, Score
from tests.reference import reference_layer
from tests.test_catalogue import OTHERS

DATA = Path(__file__).parent / "data"
WRITTEN = json.loads((DATA / "transformers_defaults.json").read_text())
PUBLISHED = DATA / "configs_without_preset"


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


def model_of(tmp_path: Path, config: dict[str, Any]) -> ModelSpec:
    """Return the model of a ``config.json``."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return load_config(path)


def published(name: str) -> dict[str, Any]:
    """Return a published configuration."""
    config: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    return config


# Of each configuration as transformers writes it: row, d_model, experts, k, d_expert, d_shared, MoE layers,
# dense ones.
READ = {
    "afmoe": ("afmoe", 2048, 64, 6, 1408, 2816, 31, 1),
    "aria": ("aria", 4096, 8, 2, 4096, 8192, 32, 0),
    "axk1": ("axk1", 7168, 192, 8, 2048, 2048, 60, 1),
    "axk2": ("axk2", 2048, 128, 8, 512, 512, 47, 1),
    "bailing_hybrid": ("bailing_hybrid", 2560, 512, 8, 768, 768, 40, 2),
    "beam": ("beam", 5120, 256, 8, 2560, 0, 49, 3),
    "dbrx": ("dbrx", 2048, 4, 1, 3584, 0, 24, 0),
    "deepseek_v3": ("deepseek_v3", 7168, 256, 8, 2048, 2048, 58, 3),
    "deepseek_v32": ("deepseek_v3", 7168, 256, 8, 2048, 2048, 58, 3),
    "deepseek_v4": ("deepseek_v4", 4096, 256, 6, 2048, 2048, 43, 0),
    "dots3_note": ("dots3_note", 5120, 256, 8, 1536, 1536, 45, 1),
    "ernie4_5_moe": ("ernie4_5_moe", 2560, 64, 6, 1536, 3072, 27, 1),
    "ernie4_5_vl_moe": ("ernie4_5_vl_moe", 2560, 64, 6, 1536, 3072, 27, 1),
    "exaone_moe": ("exaone_moe", 4096, 64, 8, 1024, 1024, 31, 1),
    "flex_olmo": ("flex_olmo", 4096, 7, 5, 11008, 0, 32, 0),
    "flint": ("flint", 2048, 256, 6, 512, 1024, 47, 2),
    "glm4_moe": ("glm4_moe", 4096, 128, 8, 1408, 1408, 45, 1),
    "glm4_moe_lite": ("glm4_moe_lite", 2048, 64, 4, 1536, 1536, 46, 1),
    "glm4v_moe": ("glm4v_moe", 4096, 128, 8, 1408, 1408, 45, 1),
    "glm5_next": ("glm5_next", 4096, 288, 8, 2048, 2048, 42, 3),
    "glm_moe_dsa": ("glm_moe_dsa", 6144, 256, 8, 2048, 2048, 75, 3),
    "gpt_oss": ("gpt_oss", 2880, 128, 4, 2880, 0, 36, 0),
    "granitemoe": ("granitemoe", 4096, 8, 2, 11008, 0, 32, 0),
    "granitemoe_swa": ("granitemoe_swa", 4096, 8, 2, 11008, 0, 32, 0),
    "granitemoehybrid": ("granitemoehybrid", 4096, 8, 2, 11008, 1024, 32, 0),
    "granitemoeshared": ("granitemoeshared", 4096, 8, 2, 11008, 0, 32, 0),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", 4096, 1, 1, 11008, 11008, 32, 0),
    "hy_v3": ("hy_v3", 4096, 192, 8, 1536, 1536, 79, 1),
    "jamba": ("jamba", 4096, 16, 2, 14336, 0, 16, 16),
    "jetmoe": ("jetmoe", 2048, 8, 2, 5632, 0, 12, 0),
    "kimi_linear": ("kimi_linear", 2304, 256, 8, 1024, 1024, 26, 1),
    "kolibri1": ("kolibri1", 2560, 384, 6, 512, 512, 50, 0),
    "laguna": ("laguna", 2048, 256, 8, 512, 512, 39, 1),
    "lara_mini": ("lara_mini", 1024, 128, 4, 512, 512, 34, 0),
    "lfm2_moe": ("lfm2_moe", 2048, 32, 4, 1792, 0, 30, 2),
    "llama4": ("llama4", 5120, 16, 1, 8192, 8192, 48, 0),
    "longcat_flash": ("longcat_flash", 6144, 768, 12, 2048, 0, 28, 0),
    "mellum": ("mellum", 2304, 64, 8, 896, 0, 28, 0),
    "mimo_v2_flash": ("mimo_v2_flash", 4096, 256, 8, 2048, 0, 47, 1),
    "minimax": ("minimax", 4096, 8, 2, 14336, 0, 32, 0),
    "minimax_m2": ("minimax_m2", 3072, 256, 8, 1536, 0, 62, 0),
    "minimax_m3_vl": ("minimax_m3_vl", 6144, 128, 4, 3072, 3072, 60, 0),
    "mistral4": ("mistral4", 4096, 128, 4, 2048, 2048, 36, 0),
    "mistral_large4": ("mistral_large4", 6144, 128, 4, 6144, 6144, 71, 1),
    "mixtral": ("mixtral", 4096, 8, 2, 14336, 0, 32, 0),
    "nemotron_h": ("nemotron_h", 4096, 8, 2, 7688, 7688, 1, 0),
    "nllb-moe": ("nllb_moe", 1024, 128, 2, 4096, 0, 6, 18),
    "olmoe": ("olmoe", 2048, 64, 8, 2048, 0, 16, 0),
    "openai_privacy_filter": ("openai_privacy_filter", 640, 128, 4, 640, 0, 8, 0),
    "phimoe": ("phimoe", 4096, 16, 2, 6400, 0, 32, 0),
    "qwen2_moe": ("qwen2_moe", 2048, 60, 4, 1408, 5632, 24, 0),
    "qwen3_5_moe": ("qwen3_5_moe", 2048, 256, 8, 512, 512, 40, 0),
    "qwen3_moe": ("qwen3_moe", 2048, 128, 8, 768, 0, 24, 0),
    "qwen3_next": ("qwen3_next", 2048, 512, 10, 512, 512, 48, 0),
    "qwen3_omni_moe": ("qwen3_omni_moe", 2048, 128, 8, 768, 0, 28, 0),
    "qwen3_vl_moe": ("qwen3_vl_moe", 2048, 60, 4, 1408, 0, 24, 0),
    "qwen4_exp": ("qwen4_exp", 2048, 512, 10, 512, 512, 40, 0),
    "sarvam_mla": ("sarvam_mla", 4096, 128, 8, 2048, 2048, 31, 1),
    "sarvam_moe": ("sarvam_moe", 4096, 128, 6, 1024, 1024, 18, 1),
    "solar_open": ("solar_open", 4096, 128, 8, 1280, 1280, 48, 0),
    "step3p5": ("step3p5", 4096, 288, 8, 1280, 1280, 42, 3),
    "switch_transformers": ("switch_transformers", 768, 8, 1, 2048, 0, 6, 18),
    "unlimited_ocr": ("deepseek_ocr2", 1280, 64, 6, 896, 1792, 11, 1),
}
# Of the same: what is none of a model's layers, or leaves out a size that has no default.
REFUSED = {
    "cohere2_moe": (
        "config.shared_expert_combination_strategy: must be 'sum' in family cohere2_moe, not 'average'"
    ),
    "deepseek_ocr2": "config.num_experts_per_tok: is missing",
    "deepseek_v2": "config.num_experts_per_tok: is missing",
    "diffusion_gemma": "config.num_experts: is missing",
    "dots1": "config.n_routed_experts: is missing",
    "gemma4": "config.enable_moe_block: must be True in family gemma4, not False",
}


def test_configurations_as_transformers_writes_them(tmp_path):
    """Every class of transformers 5.24.0 with MoE layers, by the keys of its defaults, without a warning."""
    beyond = {name for name, config in WRITTEN.items() if config["model_type"] in config_keys().beyond}
    assert set(READ) | set(REFUSED) | beyond == set(WRITTEN)
    path = tmp_path / "config.json"
    for name, (row, *sizes) in READ.items():
        path.write_text(json.dumps(WRITTEN[name]))
        model = load_config(path)
        assert read_config(path)[0].name == row
        assert [
            model.d_model,
            model.gating.num_experts,
            model.gating.top_k,
            model.ffn.d_expert,
            model.d_shared,
            model.num_moe_layers,
            model.num_dense_layers,
        ] == sizes, name
    for name, message in REFUSED.items():
        with raises(f"{path}: {message}"):
            model_of(tmp_path, WRITTEN[name])
    for name in beyond:
        reason = config_keys().beyond[name]
        with raises(f"{path}: model_type: has MoE layers that no term stands for: {reason}; not {name!r}"):
            model_of(tmp_path, WRITTEN[name])


# What has no default: sizes, the number of layers, and where lists of layers say which are dense.
SIZES = {
    "num_hidden_layers",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
}
LISTS = {
    "unlimited_ocr": "mlp_layer_types",
    "switch_transformers": "num_sparse_",
    "lfm2_moe": "num_dense_layers",
}


@pytest.mark.parametrize("name", READ)
def test_an_absent_key_is_the_classes_default(name):
    """Each key of a configuration with all defaults left out: a size is missing, or the model is the same."""
    config = WRITTEN[name]
    row = next(row for row in rows() if config["model_type"] in row.model_types)
    whole = row.model(config, name=name)
    inner = next((place for place in row.nested if place in config), "")
    for key in config[inner] if inner else config:
        if key in SIZES | {"model_type"} or key.startswith(LISTS.get(name, " ")):
            continue
        table = {
            other: value for other, value in (config[inner] if inner else config).items() if other != key
        }
        try:
            model = row.model(config | {inner: table} if inner else table, name=name)
        except InputError as error:
            wrong = not str(error).endswith(("is missing", "must not be null"))
        else:
            wrong = model != whole
        assert not wrong, key


def rows():
    """Return all rows."""
    return [*map(load_family, family_names()), *map(load_variant, variant_names())]


def test_a_dense_model_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "config.json"
    known = sum(len(row.model_types) for row in rows())
    for model_type in ("seed_oss", "cwm", "llama", "mistral3"):
        config = {"model_type": model_type, "hidden_size": 64, "text_config": {"model_type": "mistral"}}
        path.write_text(json.dumps(config))
        assert main(["sim", "--model", str(path), "--engine", "model"]) == 2
        line = (
            f"model_type: must be one of the {known} with MoE layers in docs/families.md, not {model_type!r}"
        )
        assert capsys.readouterr() == ("", f"expertbank: {path}: {line}\n")


# What a variant computes otherwise than its family: fields of gating, of the model, of the FFN.
TERMS = {
    "axk2": {"group_mask": GroupMask.ZERO},
    "glm5_next": {"ffn.clamped": True, "ffn.limit": 10.0},
    "mistral4": {"score": Score.SOFTMAX, "selection_bias": False, "group_mask": GroupMask.ZERO, "scale": 1.0},
    "mistral_large4": {"score": Score.SOFTMAX, "selection_bias": False, "group_mask": GroupMask.ZERO},
    "kolibri1": {"score": Score.NONE, "weight_score": Score.SIGMOID, "selection_bias": True},
    "flint": {"score": Score.SIGMOID, "selection_bias": False, "normalise": Normalise.SUM},
    "lara_mini": {"score": Score.SOFTMAX, "normalise": Normalise.SUM},
    "laguna": {"score": Score.SIGMOID, "selection_bias": True, "epsilon": 0.0, "scale": 1.0},
    "hy_v3": {"score": Score.SIGMOID, "epsilon": 1e-20, "scale": 2.826, "num_groups": 1},
    "minimax_m3_vl": {"scale": 2.0, "ffn.activation": Activation.CLAMPED_SWIGLU, "ffn.bias": False},
    "mimo_v2_flash": {"scale": 1.0, "epsilon": 1e-20, "num_groups": 1},
    "glm4_moe_lite": {"scale": 1.8, "num_groups": 1, "group_score": GroupScore.TOP2_SUM},
    "kimi_linear": {"scale": 2.446, "num_groups": 1, "selection_bias": True},
    "bailing_hybrid": {"num_groups": 8, "topk_groups": 4, "scale": 2.5, "normalise": Normalise.SUM},
    "openai_privacy_filter": {"logit_bias": True, "scale": 1.0, "ffn.activation": Activation.CLAMPED_SWIGLU},
    "qwen3_5_moe": {"normalise": Normalise.SUM, "shared_expert_gate": True},
    "qwen3_vl_moe": {"normalise": Normalise.SUM},
    "flex_olmo": {"normalise": Normalise.NONE},
    "step3p5": {"selection_bias": True, "epsilon": 0.0, "scale": 1.0, "ffn.clamped": False},
    "ernie4_5_vl_moe": {"epsilon": 1e-12, "selection_bias": True},
}


@pytest.mark.parametrize("name", TERMS)
def test_what_a_variant_computes(tmp_path, name):
    model = model_of(tmp_path, WRITTEN[name])
    for field, expected in TERMS[name].items():
        place, _, leaf = field.rpartition(".")
        tables = [model.ffn] if place else [model.gating, model]
        [found] = [getattr(table, leaf) for table in tables if hasattr(table, leaf)]
        assert found == expected, field


def softmax(x: np.ndarray) -> np.ndarray:
    """Return a softmax over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return sigmoids."""
    return 1 / (1 + np.exp(-x))


def of_mistral4(z, bias, ids, groups):
    """Mistral4TopkRouter: softmax, groups by the two best, losers 0, divided by the sum."""
    scores = softmax(z).reshape(len(z), groups, -1)
    best = np.sort(scores, -1)[..., -2:].sum(-1)
    keep = best >= np.sort(best, -1)[:, -2:-1]
    choice = np.where(keep[..., None], scores, 0.0).reshape(z.shape)
    taken = np.take_along_axis(softmax(z), ids, 1)
    return choice, taken / (taken.sum(1, keepdims=True) + 1e-20)


def of_axk2(z, bias, ids, groups):
    """AXK2TopkRouter: sigmoid and bias, losers 0, divided by the sum and scaled."""
    scores = (sigmoid(z) + bias).reshape(len(z), groups, -1)
    best = np.sort(scores, -1)[..., -2:].sum(-1)
    keep = best >= np.sort(best, -1)[:, -2:-1]
    taken = np.take_along_axis(sigmoid(z), ids, 1)
    choice = np.where(keep[..., None], scores, 0.0).reshape(z.shape)
    return choice, 2.5 * taken / (taken.sum(1, keepdims=True) + 1e-20)


def of_kolibri1(z, bias, ids, groups):
    """Kolibri1TopKRouter: logits and bias choose, sigmoids of the logits weigh."""
    taken = sigmoid(np.take_along_axis(z, ids, 1))
    return z + bias, taken / taken.sum(1, keepdims=True)


def of_flint(z, bias, ids, groups):
    """FlintTopKRouter: sigmoids, divided by their sum."""
    taken = np.take_along_axis(sigmoid(z), ids, 1)
    return sigmoid(z), taken / taken.sum(1, keepdims=True)


def of_laguna(z, bias, ids, groups):
    """LagunaTopKRouter and the block's factor: sigmoids and bias, divided by the sum, scaled."""
    taken = np.take_along_axis(sigmoid(z), ids, 1)
    return sigmoid(z) + bias, 1.5 * (taken / taken.sum(1, keepdims=True))


def of_cohere2(z, bias, ids, groups):
    """Cohere2MoeTopKRouter with sigmoids: of the selected logits, divided by their sum."""
    taken = sigmoid(np.take_along_axis(z, ids, 1))
    return z, taken / taken.sum(1, keepdims=True)


def of_vl2(z, bias, ids, groups):
    """MoEGate of DeepSeek-VL2 with noaux_tc, one group."""
    taken = np.take_along_axis(sigmoid(z), ids, 1)
    return sigmoid(z) + bias, taken / (taken.sum(1, keepdims=True) + 1e-20) * 2.0


ROUTERS = {
    "mistral4": (of_mistral4, {**WRITTEN["mistral4"], "n_group": 4, "topk_group": 2}),
    "axk2": (of_axk2, {**WRITTEN["axk2"], "n_group": 4, "topk_group": 2}),
    "kolibri1": (of_kolibri1, {**WRITTEN["kolibri1"], "norm_topk_prob": True}),
    "flint": (of_flint, WRITTEN["flint"]),
    "laguna": (of_laguna, {**WRITTEN["laguna"], "moe_routed_scaling_factor": 1.5}),
    "cohere2_moe": (
        of_cohere2,
        {
            **WRITTEN["cohere2_moe"],
            "expert_selection_fn": "sigmoid",
            "shared_expert_combination_strategy": "sum",
            "num_experts": 64,
        },
    ),
    "deepseek_vl_v2": (of_vl2, published("deepseek-vl2")),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_that_no_family_has(tmp_path, name):
    """Against the formulas of their classes, for 200 tokens: the chosen are the best, weights are equal."""
    formula, config = ROUTERS[name]
    gating = dataclasses.replace(model_of(tmp_path, config), d_model=32).gating
    rng = np.random.default_rng(5)
    router, tokens = rng.standard_normal((gating.num_experts, 32)) / 3, rng.standard_normal((200, 32))
    bias = rng.normal(0, 0.1, gating.num_experts) if gating.selection_bias else None
    routed = route(gating, router, tokens, selection_bias=bias)
    z = tokens @ router.T
    choice, weights = formula(z, 0.0 if bias is None else bias, routed.ids, gating.num_groups)
    chosen = np.take_along_axis(choice, routed.ids, 1)
    assert np.array_equal(np.sort(chosen, 1), np.sort(choice, 1)[:, -gating.top_k :])
    np.testing.assert_allclose(routed.weights, weights, rtol=1e-9)


def variant_config(name: str) -> dict[str, Any]:
    """Return a configuration of a variant."""
    row = load_variant(name)
    for config in (*WRITTEN.values(), *map(published, sorted(path.stem for path in PUBLISHED.glob("*")))):
        if config["model_type"] in row.model_types and config["model_type"] not in REFUSED:
            return config
    return {
        "cohere2_moe": ROUTERS["cohere2_moe"][1],
        "dots1": published("dots.llm1"),
        "gemma4": published("gemma-4-26b-a4b"),
        "lladamoe": {
            "model_type": "lladamoe",
            "hidden_size": 2048,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "expert_intermediate_size": 1024,
            "dense_intermediate_size": 8192,
            "num_hidden_layers": 16,
            "norm_topk_prob": False,
        },
        "minicpm": {
            "model_type": "minicpm",
            "hidden_size": 2304,
            "intermediate_size": 5760,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 40,
            "scale_depth": 1.4,
        },
        "xverse": {
            "model_type": "xverse",
            "hidden_size": 2560,
            "intermediate_size": 1728,
            "num_experts": 64,
            "moe_top_k": 6,
            "num_shared_experts": 2,
            "num_hidden_layers": 28,
        },
    }[name]


@pytest.mark.parametrize("name", variant_names())
def test_a_variants_layer_computes(tmp_path, name):
    """At a tiny size through float golden against the plain-loop reference; the row has all its weights."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(variant_config(name)))
    row, _ = read_config(path)
    assert row.name == name
    full = load_config(path)
    gating = dataclasses.replace(full.gating, num_experts=16, top_k=min(full.gating.top_k, 4))
    model = dataclasses.replace(full.scaled(4096), gating=gating)
    weights, tokens = random_weights(model, 3), random_tokens(model, 3, 3)
    result, expected = layer(model, weights, tokens), reference_layer(model, weights, tokens[None])
    assert np.array_equal(result.ids, expected.topk_indices)
    np.testing.assert_allclose(result.output, expected.output[0], rtol=1e-9, atol=1e-9)
    assert {name for name in WEIGHT_NAMES if getattr(weights, name) is not None} <= set(row.weights)


# Configurations as published: row, MoE and dense layers, what is outside of the experts, total in billions.
ATTENTION = dict[str, Any]
TOTALS: dict[str, tuple[str, int, int, ATTENTION, float]] = {
    "ling-lite": (
        "bailing_moe",
        28,
        0,
        {"attention_layers": 28, "heads": 16, "kv_heads": 4, "head_dim": 128},
        16.8,
    ),
    "ling-1t": (
        "bailing_moe_v2",
        76,
        4,
        {"attention_layers": 80, "heads": 64, "kv_heads": 8, "head_dim": 128, "d_dense": 18432},
        1000,
    ),
    "glm-4.7-flash": (
        "glm4_moe_lite",
        46,
        1,
        {
            "attention_layers": 47,
            "heads": 20,
            "q_lora_rank": 768,
            "kv_lora_rank": 512,
            "d_nope": 192,
            "d_rope": 64,
            "d_value": 256,
            "d_dense": 10240,
        },
        30,
    ),
    "glm-5": (
        "glm_moe_dsa",
        75,
        3,
        {
            "attention_layers": 78,
            "heads": 64,
            "q_lora_rank": 2048,
            "kv_lora_rank": 512,
            "d_nope": 192,
            "d_rope": 64,
            "d_value": 256,
            "d_dense": 12288,
        },
        744,
    ),
    "mistral-small-4": (
        "mistral4",
        36,
        0,
        {
            "attention_layers": 36,
            "heads": 32,
            "q_lora_rank": 1024,
            "kv_lora_rank": 256,
            "d_nope": 64,
            "d_rope": 64,
            "d_value": 128,
        },
        119,
    ),
    "k-exaone-236b-a23b": (
        "exaone_moe",
        47,
        1,
        {"attention_layers": 48, "heads": 64, "kv_heads": 8, "head_dim": 128, "d_dense": 18432},
        236,
    ),
    "solar-open-100b": (
        "solar_open",
        48,
        0,
        {"attention_layers": 48, "heads": 64, "kv_heads": 8, "head_dim": 128},
        102.6,
    ),
    # 25 layers of 16 heads of 256 with 8 key and value heads, 5 of 16 of 512 with 2 that are both.
    "gemma-4-26b-a4b": (
        "gemma4",
        30,
        0,
        {
            "tied_embeddings": True,
            "d_dense": 2112,
            "dense_ffns": 30,
            "other_params_b": (25 * 2816 * 256 * (2 * 16 + 2 * 8) + 5 * 2816 * 512 * (2 * 16 + 2)) / 1e9,
        },
        25.2,
    ),
    # 12 layers of 64 heads, 33 of 96, 8 key and value heads each.
    "step-3.5-flash": (
        "step3p5",
        42,
        3,
        {"d_dense": 11264, "other_params_b": 4096 * 128 * (12 * (128 + 16) + 33 * (192 + 16)) / 1e9},
        196.8,
    ),
    # Queries by way of 2048, one head of 256 for keys and values.
    "step3": (
        "step3_text",
        56,
        5,
        {"d_dense": 18432, "other_params_b": 61 * (7168 * 2560 + 2048 * 16384 + 16384 * 7168) / 1e9},
        316,
    ),
    # Keys of 192, values of 128; 9 layers with 4 heads of them, 39 with 8.
    "mimo-v2-flash": (
        "mimo_v2_flash",
        47,
        1,
        {"d_dense": 16384, "other_params_b": 4096 * (48 * 64 * 320 + (9 * 4 + 39 * 8) * 320) / 1e9},
        309,
    ),
    # 45 layers of linear attention (queries, keys: 16 x 128; values, gates: 64 x 128), 15 of 32 gated heads.
    "qwen3.5-397b-a17b": (
        "qwen3_5_moe",
        60,
        0,
        {"other_params_b": 4096 * (45 * 128 * (32 + 3 * 64) + 15 * 256 * (3 * 32 + 2 * 2)) / 1e9},
        397,
    ),
    "dots.llm1": (
        "dots1",
        61,
        1,
        {"attention_layers": 62, "heads": 32, "kv_heads": 32, "head_dim": 128, "d_dense": 10944},
        142,
    ),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_of_published_models(name):
    row, num_moe, num_dense, attention, total = TOTALS[name]
    model = load_config(PUBLISHED / f"{name}.json")
    assert read_config(PUBLISHED / f"{name}.json")[0].name == row
    assert (model.num_moe_layers, model.num_dense_layers) == (num_moe, num_dense)
    config = published(name)
    vocab = config.get("text_config", config)["vocab_size"]
    backbone = Backbone(vocab_size=vocab, **({"dense_ffns": num_dense} | attention))
    assert total_params(model, backbone) / 1e9 == pytest.approx(total, rel=0.01)


# Published models whose MoE layers are those of a preset.
SAME = {
    "glm-4.5v": "glm-4.5-air",
    "internvl3.5-30b-a3b": "qwen3-30b-a3b",
    "kimi-k2.5": "kimi-k2-1t",
    "minimax-m1": "minimax-text-01",
    "qwen3-omni-30b-a3b": "qwen3-30b-a3b",
    "qwen3-vl-30b-a3b": "qwen3-30b-a3b",
}


@pytest.mark.parametrize("name", SAME)
def test_published_models_with_a_presets_layers(name):
    preset = load_model(SAME[name])
    assert dataclasses.replace(load_config(PUBLISHED / f"{name}.json"), name=preset.name) == preset


def test_published_models_by_their_terms():
    named = {"ling-mini-2.0", "deepseek-vl2", "deepseek-ocr", "ernie-4.5-vl-28b-a3b", "kimi-linear-48b-a3b"}
    assert {path.stem for path in PUBLISHED.glob("*")} == {*named, *TOTALS, *SAME, *OTHERS}
    ling = load_config(PUBLISHED / "ling-mini-2.0.json")
    assert (ling.gating.num_groups, ling.gating.topk_groups, ling.gating.scale) == (8, 4, 2.5)
    assert (ling.gating.normalise, ling.gating.epsilon, ling.d_shared) == (Normalise.SUM, 1e-20, 512)
    vl2 = load_config(PUBLISHED / "deepseek-vl2.json").gating
    assert (vl2.score, vl2.selection_bias, vl2.normalise, vl2.scale) == (
        Score.SIGMOID,
        True,
        Normalise.SUM,
        2.0,
    )
    ocr = load_config(PUBLISHED / "deepseek-ocr.json").gating
    assert (ocr.score, ocr.selection_bias, ocr.normalise) == (Score.SOFTMAX, False, Normalise.NONE)
    assert load_config(PUBLISHED / "gemma-4-26b-a4b.json").ffn.activation is Activation.GELU_TANH
    assert load_config(PUBLISHED / "step3.json").gating.normalise is Normalise.NONE
    ernie = load_config(PUBLISHED / "ernie-4.5-vl-28b-a3b.json")
    assert (ernie.ffn.d_expert, ernie.d_shared, ernie.num_moe_layers) == (1536, 3072, 27)
    kimi = load_config(PUBLISHED / "kimi-linear-48b-a3b.json")
    assert (kimi.gating.num_experts, kimi.gating.scale, kimi.num_dense_layers) == (256, 2.446, 1)


def test_the_hardware_has_what_published_models_need():
    """All but the number of experts that a token chooses from, or where docs/families.md says why not."""
    lacking = {
        path.stem: terms
        for path in sorted(PUBLISHED.glob("*"))
        if (terms := lacking_terms(load_config(path)))
    }
    assert lacking == {}
    assert lacking_terms(load_config(PUBLISHED / "ling-1t.json")) == []


def test_a_published_configuration_runs(capsys):
    model = str(PUBLISHED / "ling-mini-2.0.json")
    assert main(["sim", "--model", model, "--engine", "model", "--tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cycles"]["model"] > 0


# What contradicts itself, or could change what is computed.

GEMMA = published("gemma-4-26b-a4b")
OMNI = published("qwen3-omni-30b-a3b")
UNKNOWN = "is unknown in family {} and could change what the layer computes, by its name; not {!r}"


def with_inner(config: dict[str, Any], place: str, **changes: Any) -> dict[str, Any]:
    """Return a configuration with keys of an inner table changed."""
    outer, _, inner = place.partition(".")
    table = with_inner(config[outer], inner, **changes) if inner else config[outer] | changes
    return config | {outer: table}


BAD = {
    "two numbers of experts": (
        published("ling-mini-2.0") | {"n_routed_experts": 128},
        "num_experts: must equal config.n_routed_experts=128, not 256",
    ),
    "two numbers of shared experts": (
        published("ling-mini-2.0") | {"n_shared_experts": 2},
        "num_shared_experts: must equal config.n_shared_experts=2, not 1",
    ),
    "a width of the shared expert that is not its experts'": (
        published("ling-mini-2.0") | {"moe_shared_expert_intermediate_size": 1024},
        (
            "moe_shared_expert_intermediate_size: must be 512 by n_shared_experts and moe_intermediate_size"
            " in family bailing_moe_v2, not 1024"
        ),
    ),
    "softmax in Ling 2": (
        published("ling-mini-2.0") | {"score_function": "softmax"},
        "score_function: must be 'sigmoid' in family bailing_moe_v2, not 'softmax'",
    ),
    "no bias in Ling 2": (
        published("ling-mini-2.0") | {"moe_router_enable_expert_bias": False},
        "moe_router_enable_expert_bias: must be True in family bailing_moe_v2, not False",
    ),
    "Ling 2 by the class of Ling 1": (
        published("ling-mini-2.0") | {"architectures": ["BailingMoeForCausalLM"], "router_dtype": None},
        "score_function: must be 'softmax' in family bailing_moe, not 'sigmoid'",
    ),
    "weights that are not divided, where they always are": (
        with_inner(published("qwen3-vl-30b-a3b"), "text_config", norm_topk_prob=False),
        "norm_topk_prob: must be True in family qwen3_vl_moe, not False",
    ),
    "another router in the inner table": (
        with_inner(published("qwen3-vl-30b-a3b"), "text_config", scoring_func="sigmoid"),
        f"scoring_func: {UNKNOWN.format('qwen3_vl_moe', 'sigmoid')}",
    ),
    "another router outside of it": (
        published("qwen3-vl-30b-a3b") | {"router_type": "hash"},
        f"router_type: {UNKNOWN.format('qwen3_vl_moe', 'hash')}",
    ),
    "two numbers of chosen experts, inside and outside": (
        published("glm-4.5v") | {"num_experts_per_tok": 4},
        "num_experts_per_tok: must equal config.text_config.num_experts_per_tok=8, not 4",
    ),
    "two of them, one of a table between": (
        with_inner(OMNI, "thinker_config", num_experts=64),
        "num_experts: must equal config.thinker_config.text_config.num_experts=128, not 64",
    ),
    "a router of the table between": (
        with_inner(OMNI, "thinker_config", gate_type="noisy"),
        f"thinker_config.gate_type: {UNKNOWN.format('qwen3_omni_moe', 'noisy')}",
    ),
    "a shared expert of the thinker": (
        with_inner(OMNI, "thinker_config.text_config", shared_expert_intermediate_size=768),
        "shared_expert_intermediate_size: must be 0 in family qwen3_omni_moe, not 768",
    ),
    "Gemma without its MoE layers": (
        with_inner(GEMMA, "text_config", enable_moe_block=False),
        "enable_moe_block: must be True in family gemma4, not False",
    ),
    "a wrapper with a router": (
        published("internvl3.5-30b-a3b") | {"moe_router": "x"},
        f"moe_router: {UNKNOWN.format('qwen3_moe', 'x')}",
    ),
    "layers that are clamped behind the activation": (
        published("step-3.5-flash") | {"layer_idx": 44},
        "swiglu_limits: must be 0.0 in family step3p5, not 7",
    ),
    "a layer that there is not": (
        published("step-3.5-flash") | {"layer_idx": 48},
        "layer_idx: must be a layer, 0..47 (length of swiglu_limits), not 48",
    ),
    "layers that are no numbers": (
        published("step-3.5-flash") | {"moe_layers_enum": "3,4,five"},
        "moe_layers_enum: must be numbers of layers with commas between, not '3,4,five'",
    ),
    "a layer behind the last": (
        published("step-3.5-flash") | {"moe_layers_enum": "3, 45"},
        "moe_layers_enum: must list layers in 0..44, not 45",
    ),
    "more layers than a model has": (
        published("step-3.5-flash") | {"swiglu_limits": [0.0] * 1025},
        "swiglu_limits: must have at most 1024 values, not 1025",
    ),
    "another number of text experts": (
        published("ernie-4.5-vl-28b-a3b") | {"num_experts": [32, 64]},
        "num_experts: must equal config.moe_num_experts=64, not 32",
    ),
    "a latent width of Kimi-K3": (
        published("kimi-linear-48b-a3b") | {"routed_expert_hidden_size": 3584},
        f"routed_expert_hidden_size: {UNKNOWN.format('kimi_linear', 3584)}",
    ),
    "an activation that there is not": (
        published("kimi-linear-48b-a3b") | {"hidden_act": "situ"},
        f"hidden_act: must be one of {', '.join(config_keys().activations)}, not 'situ'",
    ),
    "soft caps of the logits": (
        WRITTEN["laguna"] | {"moe_router_logit_softcapping": 30.0},
        "moe_router_logit_softcapping: must be 0.0 in family laguna, not 30.0",
    ),
    "shared experts that MiMo has not": (
        published("mimo-v2-flash") | {"n_shared_experts": 1},
        "n_shared_experts: must be 0 in family mimo_v2_flash, not 1",
    ),
    "groups of which one number is null": (
        WRITTEN["axk2"] | {"topk_group": 4},
        "topk_group: must be in 1..1, not 4",
    ),
    "a bias of Kimi's experts": (
        published("kimi-k2.5") | {"text_config": published("kimi-k2.5")["text_config"] | {"mlp_bias": True}},
        "mlp_bias: must be False in family deepseek_v3, not True",
    ),
    "a dense layer of Solar": (
        published("solar-open-100b") | {"first_k_dense_replace": 1},
        (
            "first_k_dense_replace: says which layers are MoE layers, which family solar_open does not read;"
            " must be 0, not 1"
        ),
    ),
}


@pytest.mark.parametrize(("config", "message"), BAD.values(), ids=BAD)
def test_what_contradicts_is_one_line(tmp_path, config, message):
    with raises(f"{tmp_path / 'config.json'}: config.{message}"):
        model_of(tmp_path, config)


def test_both_names_of_a_number_may_say_the_same(tmp_path):
    config = published("ling-mini-2.0")
    assert model_of(tmp_path, config | {"n_routed_experts": 256, "n_shared_experts": 1}).d_shared == 512
    single = model_of(tmp_path, config | {"num_experts_per_tok": 1, "topk_group": 1, "n_group": 1})
    assert single.gating.normalise is Normalise.NONE


def test_a_wrapper_that_nothing_knows(tmp_path):
    """The language model is read; what the wrapper says of it must be the same, what nobody knows is told."""
    config = {"model_type": "anything", "language_config": published("ling-mini-2.0"), "my_scale": 2.0}
    line = f"{tmp_path / 'config.json'}: not read in family bailing_moe, and not known to change nothing:"
    inner = published("ling-lite")
    with pytest.warns(InputWarning, match=rf"\A{re.escape(line)} config.my_scale=2.0\Z"):
        model = model_of(tmp_path, config | {"language_config": inner})
    assert model == dataclasses.replace(load_config(PUBLISHED / "ling-lite.json"), name=model.name)
    with raises(f"{tmp_path / 'config.json'}: config.num_experts: must equal"
                " config.language_config.num_experts=64, not 4"):  # fmt: skip
        model_of(tmp_path, config | {"language_config": inner, "num_experts": 4})


# Rows.

ROW = (PRESETS / "variants" / "beam.toml").read_text()
BAD_ROWS = {
    "no family": (
        ROW.replace('like = "deepseek_v3"', 'like = "axk1"'),
        f"like: must be one of {', '.join(family_names())}, not 'axk1'",
    ),
    "like nothing": (
        ROW.replace('like = "deepseek_v3"\n', ""),
        f"like: must be one of {', '.join(family_names())}, not None",
    ),
    "without what there is not": (
        ROW.replace('like = "deepseek_v3"', 'like = "deepseek_v3"\nwithout = ["defaults.n_groups"]'),
        "without: must name what its family has, not 'defaults.n_groups'",
    ),
    "a rule without keys": (
        ROW + "\n[agrees]\nwidth = { keys = [] }\n",
        "agrees.width.keys: must be a list of configuration keys, not []",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_of_a_variant_is_one_line(tmp_path, text, message):
    path = tmp_path / "beam.toml"
    path.write_text(text)
    with raises(f"{path}: {message}"):
        load_variant("beam", folder=tmp_path)


def test_rows_of_variants():
    """Each has a source of its own and names that no other row has."""
    owners: dict[str, str] = {}
    for row in rows():
        assert all(owners.setdefault(name, row.name) == row.name for name in row.model_types)
    assert not set(owners) & set(config_keys().beyond)
    for name in variant_names():
        row = load_variant(name)
        assert row.like in family_names()
        assert row.source != load_family(row.like).source
        assert {"router", "up", "down"} <= set(row.weights)


def test_what_a_row_names_is_read():
    """A default or another name of a key that nothing reads would be accepted with any value."""
    for row in rows():
        read = {*row.requires, *row.nested, *row.ignored, *(row.layers.keys if row.layers else ())}
        for entry in (*row.fields.values(), *row.agrees.values()):
            read.update(entry.all_names if isinstance(entry, FromConfig) else ())
        read |= {name.split(".")[0] for name in read}
        assert set(row.defaults) <= read, row.name
        assert set(row.aliases.values()) <= read | set(row.aliases), row.name


def test_the_page_has_every_model_type():
    """A line for each variant: family and model types; those of the families in the text."""
    page = (DATA.parent.parent / "docs" / "families.md").read_text()
    for name in variant_names():
        row = load_variant(name)
        types = ", ".join(f"`{model_type}`" for model_type in row.model_types)
        assert f"| {name} | `{row.like}` | {types} |" in page
    for name in family_names():
        assert all(f"`{model_type}`" in page for model_type in load_family(name).model_types)
    assert all(f"| {name} | {why} |" in page for name, why in config_keys().beyond.items())
