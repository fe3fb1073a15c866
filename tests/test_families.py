"""Families: their configurations as published, and what of them the hardware has and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.expert_int8 import scale_for
from golden.experts import calibrate
from golden.layer_bf16 import layer_routing
from golden.vectors import read_vector
from golden.weights import random_tokens, random_weights
from sim.accelerator import layer_job, run_layer
from sim.claims.numbers import layer_errors
from sim.cli import main
from sim.pim_report import run_pim_layer
from sim.routing import parse_routing
from sim.workload import random_workload, vector_workload
from spec.design import Format
from spec.errors import InputError, InputWarning
from spec.families import family_names, load_config, load_family, read_config
from spec.geometry import ImageGeometry
from spec.hardware import check_hardware, lacking_terms
from spec.load import load_design, load_entry, load_model
from spec.model import (
    NO_PLACES,
    Activation,
    AppliedTo,
    CapacityRule,
    CapacityScope,
    Epsilon,
    ModelSpec,
    Normalise,
    Router,
    Score,
    Selection,
)

DATA = Path(__file__).parent / "data"
VECTORS = sorted(path.stem for path in DATA.glob("*.npz"))

# Vectors whose terms the hardware lacks: the whole line.
REFUSED = {
    "deepseek_v4_s1": "gating.selection: must be 'top_k' in hardware, not 'hash'",
    "nemotron_h_s1": "d_latent: must be 0 in hardware, not 16",
    **dict.fromkeys(
        ("phimoe_s0", "phimoe_s1"),
        "gating.selection: must be 'top_k' in hardware, not 'sparse_mixer'",
    ),
}


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


@pytest.mark.parametrize("stem", VECTORS)
def test_the_hardware_computes_a_vector_or_refuses_it(stem):
    """What is not refused selects the experts of float; outputs are within the bound of each format."""
    if stem in REFUSED:
        with raises(f"{REFUSED[stem]} (model {stem})"):
            check_hardware(read_vector(DATA / f"{stem}.npz").model)
        return
    work = vector_workload(str(DATA / f"{stem}.npz"), None)
    for number_format in Format:
        found = layer_errors(work, load_design("fpga", number_format))
        assert (found.same, found.tokens) == (20, 20)
        assert found.outputs.over_bound <= 1.0
        assert found.experts.over_bound <= 1.0


MIXTRAL = load_model("mixtral-8x7b")
DEEPSEEK = load_model("deepseek-v3")


def changed(model: ModelSpec, **changes) -> ModelSpec:
    """Return a model with fields changed, ``gating`` and ``ffn`` by tables of theirs."""
    parts = {
        key: dataclasses.replace(getattr(model, key), **changes.pop(key))
        for key in ("gating", "ffn")
        if key in changes
    }
    return dataclasses.replace(model, **parts, **changes)


CLAMPED = {"activation": Activation.CLAMPED_SWIGLU}
CLAMPING = f"must be 0.0 or at least {2.0**-30} where it clamps a sum of logits"
DEVIATION = "must be 0.0 or, times the root of num_experts, in 0.0009765625..1024.0"
LACKING = {
    "experts": (
        changed(MIXTRAL, gating={"num_experts": 513}),
        "gating.num_experts: must be at most 512 in hardware, not 513",
    ),
    "k": (
        changed(MIXTRAL, gating={"num_experts": 32, "top_k": 17}),
        "gating.top_k: must be at most 16 in hardware, not 17",
    ),
    "attention router": (
        changed(MIXTRAL, gating={"router": Router.ATTENTION}),
        "gating.router: must be 'linear' in hardware, not 'attention'",
    ),
    "normalised logits that are next to nothing": (
        changed(MIXTRAL, gating={"logit_deviation": 0.0001}),
        f"gating.logit_deviation: {DEVIATION} in hardware, not 0.0001",
    ),
    "normalised logits of prototypes": (
        changed(MIXTRAL, gating={"logit_deviation": 1.0, "num_prototypes": 2, "normalise": Normalise.NONE}),
        "gating.logit_deviation: must be 0.0 with prototypes in hardware, not 1.0",
    ),
    "prototypes whose weights are normalised": (
        changed(MIXTRAL, gating={"num_prototypes": 2}),
        "gating.normalise: must be 'none' with prototypes in hardware, not 'sum'",
    ),
    "prototypes with a selection bias": (
        changed(MIXTRAL, gating={"num_prototypes": 2, "normalise": Normalise.NONE, "selection_bias": True}),
        "gating.selection_bias: must be false with prototypes in hardware, not true",
    ),
    "low order": (
        changed(MIXTRAL, gating={"normalise": Normalise.P_NORM, "norm_order": 0.125}),
        "gating.norm_order: must be in 0.25..64.0 in hardware, not 0.125",
    ),
    "high order": (
        changed(MIXTRAL, gating={"normalise": Normalise.P_NORM, "norm_order": float("inf")}),
        "gating.norm_order: must be in 0.25..64.0 in hardware, not inf",
    ),
    "identity experts whose weights are logits": (
        changed(MIXTRAL, gating={"num_identity_experts": 2, "score": Score.NONE}),
        "gating.num_identity_experts: must be 0 where weights are logits in hardware, not 2",
    ),
    "identity experts with a large scale": (
        changed(MIXTRAL, gating={"num_identity_experts": 2, "scale": 2000.0}),
        "gating.scale: must be in 0.0009765625..1024.0 with identity experts in hardware, not 2000.0",
    ),
    "clamped sum of logits": (
        changed(
            MIXTRAL,
            gating={"score": Score.NONE, "epsilon": 1e-20, "epsilon_rule": Epsilon.CLAMPED},
        ),
        f"gating.epsilon: {CLAMPING} in hardware, not 1e-20",
    ),
    "limit": (
        changed(MIXTRAL, ffn={**CLAMPED, "limit": 0.25}),
        "ffn.limit: must be in 0.5..64.0 in hardware, not 0.25",
    ),
    "limit of a clamped silu": (
        changed(MIXTRAL, ffn={"clamped": True, "limit": 64.5}),
        "ffn.limit: must be in 0.5..64.0 in hardware, not 64.5",
    ),
    "limit of a clamped shared expert": (
        changed(DEEPSEEK, ffn={"limit": 0.25}, shared_activation=Activation.CLAMPED_SWIGLU),
        "ffn.limit: must be in 0.5..64.0 in hardware, not 0.25",
    ),
    "latent": (changed(MIXTRAL, d_latent=64), "d_latent: must be 0 in hardware, not 64"),
    "scaled outputs of weighted inputs": (
        changed(MIXTRAL, gating={"weight_applied_to": AppliedTo.INPUT}, expert_output_scale=0.8),
        "expert_output_scale: must be 1.0 with weights on the input in hardware, not 0.8",
    ),
    "scaled outputs beside identity experts": (
        changed(MIXTRAL, gating={"num_identity_experts": 2}, expert_output_scale=0.8),
        "expert_output_scale: must be 1.0 with identity experts in hardware, not 0.8",
    ),
    "outputs scaled too much": (
        changed(DEEPSEEK, expert_output_scale=30000.0),
        "expert_output_scale: must be above 0 and, times gating.scale, below 65536 in hardware, not 30000.0",
    ),
    "no outputs": (
        changed(MIXTRAL, expert_output_scale=0.0),
        "expert_output_scale: must be above 0 and, times gating.scale, below 65536 in hardware, not 0.0",
    ),
    "output bias beside identity experts": (
        changed(MIXTRAL, gating={"num_identity_experts": 2}, output_bias=True),
        "output_bias: must be false with identity experts in hardware, not true",
    ),
}


def test_selection_biases_beyond_the_keys_are_refused():
    """They were cut off: of softmax biases 9 to 12 the first expert was chosen, not the last."""
    for score, most in ((Score.SOFTMAX, 8), (Score.SIGMOID, 128)):
        model = changed(MIXTRAL.scaled(64), gating={"score": score, "selection_bias": True})
        image = ImageGeometry.of(model, load_design("fpga"))
        weights = random_weights(model, 0)
        bias = np.zeros(8, dtype=np.float32)
        bias[3] = -most
        tokens = np.zeros((1, model.d_model), dtype=np.uint16)
        layer_routing(image, dataclasses.replace(weights, selection_bias=bias * np.float32(0.999)), tokens)
        with raises(
            f"selection_bias: must be in -{most}..{most} in hardware with score='{score}', not -{most + 1}"
        ):
            bias[3] = -most - 1
            layer_routing(image, dataclasses.replace(weights, selection_bias=bias), tokens)


def test_int8_where_all_tokens_go_to_identity_experts():
    """There is no input and no hidden value to take the scales from."""
    model = changed(MIXTRAL.scaled(64), gating={"num_identity_experts": 7, "top_k": 1})
    weights = random_weights(model, 0)
    router = weights.router.copy()
    router[0] = 0
    tokens = np.abs(random_tokens(model, 3, 0))
    router[1] = np.abs(router[1])
    scales = calibrate(model, dataclasses.replace(weights, router=router), tokens)
    assert scales.x == scales.hidden == scale_for(0.0)


def test_a_configuration_with_a_key_twice_is_refused(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mixtral", "num_local_experts": 8, "num_local_experts": 4}')
    with raises(f"{config}: is not valid JSON: key 'num_local_experts' stands twice"):
        load_model(str(config))


@pytest.mark.parametrize(("model", "message"), LACKING.values(), ids=LACKING.keys())
def test_each_term_that_the_hardware_lacks_is_one_line(model, message):
    with raises(f"{message} (model {model.name})"):
        check_hardware(model)


def test_capacity_as_a_share_of_the_tokens():
    """Of each sequence, which must have the same then; of a batch."""
    model = changed(MIXTRAL, capacity_fraction=0.25)
    assert model.capacity_for([16, 13, 14]) == 4
    with raises(
        "capacity_fraction: must give all sequences of a run the same capacity in hardware, not [3, 4]"
        " (model mixtral-8x7b)"
    ):
        model.capacity_for([12, 16])
    assert model.capacity_for([]) == 0
    assert changed(MIXTRAL, expert_capacity=3).capacity_for([12, 16]) == 3


@pytest.mark.parametrize("scope", CapacityScope)
def test_the_hardware_drops_what_float_drops(scope):
    model = changed(
        MIXTRAL.scaled(128), capacity_fraction=0.2, capacity_scope=scope, capacity_rule=CapacityRule.GSHARD
    )
    work = random_workload(model, 24, parse_routing("zipf:1"), 3, window_tokens=32)
    design = dataclasses.replace(load_design("fpga"), window_tokens=32)
    _, golden, _ = layer_job(work, design)
    assert np.array_equal(golden.streams.kept, work.reference_kept)
    assert 0 < golden.streams.dropped < golden.streams.kept.size


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("gated", [True, False])
def test_every_activation_is_in_hardware(activation, gated):
    """With and without a gate matrix, clamped where there is one, also of a shared expert alone."""
    if gated or activation is not Activation.CLAMPED_SWIGLU:
        ffn = {"activation": activation, "gate_matrix": gated, "clamped": gated, "limit": 10.0}
        check_hardware(changed(MIXTRAL, ffn=ffn))
        other = {"d_shared": 16, "shared_activation": activation, "shared_bias": True}
        check_hardware(changed(MIXTRAL, ffn={"gate_matrix": gated}, **other))


@pytest.mark.long
@pytest.mark.parametrize("design", ["fpga", "pim"])
@pytest.mark.parametrize("stem", ["nllb_moe_s0", "nllb_moe_s1"])
def test_nllb_through_the_verilog(stem, design):
    """Drops, weights of what is kept, tokens ranked by score: every bit and cycle of the layer."""
    work = vector_workload(str(DATA / f"{stem}.npz"), None)
    run = {"fpga": run_layer, "pim": run_pim_layer}[design]
    report = run(work, load_design(design), engine="both", routing="vector")
    assert report.dropped > 0
    assert report.mismatches == 0
    assert report.divergence is None
    assert report.cycles["rtl"] == report.cycles["model"]


def test_terms_without_effect_are_not_refused():
    check_hardware(
        changed(
            MIXTRAL,
            gating={"norm_order": 100.0, "normalise_kept": True},
            shared_bias=True,
            shared_expert_gate=True,
            capacity_fraction=-1.0,
            capacity_scope=CapacityScope.BATCH,
            capacity_rule=CapacityRule.SCORE_PRIORITY,
        )
    )


@pytest.mark.parametrize(
    "command",
    [
        "sim --engine model --design fpga",
        "sim --engine model --design pim",
        "sim --engine both --design fpga",
        "sim --engine rtl --design pim",
        "sim --engine model --experts 2",
        "verilog --out verilog --design fpga",
        "verilog --out verilog --design pim",
    ],
)
def test_commands_refuse_what_the_hardware_lacks(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    stem, line = next(iter(REFUSED.items()))
    vector = str(DATA / f"{stem}.npz")
    assert main([*command.split(), "--model", vector]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"expertbank: {line} (model {stem})\n"
    assert list(tmp_path.iterdir()) == []


# Configurations.


def model_of(tmp_path: Path, config: dict[str, object]) -> ModelSpec:
    """Return the model of a ``config.json``."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return load_config(path)


def test_tables_within_a_configuration(tmp_path):
    """Llama 4, Aria and DBRX keep the layer's keys in a table."""
    text = {
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "interleave_moe_layer_step": 2,
        "hidden_act": "silu",
        "router_jitter_noise": 0.0,
    }
    maverick = model_of(tmp_path, {"model_type": "llama4", "text_config": text, "hidden_size": 5120})
    assert (maverick.d_model, maverick.d_shared, maverick.num_moe_layers) == (5120, 8192, 24)
    assert maverick.gating.weight_applied_to is AppliedTo.INPUT
    ffn = {
        "ffn_hidden_size": 10752,
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_jitter_eps": 0.01,
        "moe_loss_weight": 0.05,
        "moe_normalize_expert_weights": 1,
        "uniform_expert_assignment": False,
        "ffn_act_fn": {"name": "silu"},
    }
    dbrx = model_of(tmp_path, {"model_type": "dbrx", "d_model": 6144, "n_layers": 40, "ffn_config": ffn})
    assert (dbrx.gating.top_k, dbrx.gating.normalise, dbrx.ffn.d_expert) == (4, Normalise.SUM, 10752)
    assert dbrx.expert_params == 16 * 3 * 6144 * 10752


def test_a_key_that_a_table_overrides_is_told(tmp_path):
    """What the row reads, or a part of an MoE layer by its name, must not be said twice in two ways."""
    text = {
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "bos_token_id": 1,
        "model_type": "llama4_text",
    }
    config = {"model_type": "llama4", "text_config": text}
    for key, value in (("hidden_size", 1), ("num_local_experts", 16), ("num_experts_per_tok", 2)):
        message = f"config.{key}: must equal config.text_config.{key}={text[key]!r}, not {value!r}"
        with raises(f"{tmp_path / 'config.json'}: {message}"):
            model_of(tmp_path, config | {key: value})
    assert model_of(tmp_path, config | {"hidden_size": 5120, "num_local_experts": None}).d_model == 5120
    # Of the whole, or of nothing in the layer.
    assert model_of(tmp_path, config | {"bos_token_id": 2}).d_model == 5120


def test_a_table_of_which_the_row_reads_one_key_is_looked_into(tmp_path):
    ffn = {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": 1}
    config = {"model_type": "dbrx", "d_model": 8, "ffn_config": ffn}
    with raises(
        f"{tmp_path / 'config.json'}: config.ffn_act_fn.gate_limit: is unknown in family dbrx and could"
        " change what the layer computes, by its name; not 3"
    ):
        model_of(tmp_path, config | {"ffn_config": ffn | {"ffn_act_fn": {"name": "silu", "gate_limit": 3}}})
    line = f"{tmp_path / 'config.json'}: not read in family dbrx, and not known to change nothing: "
    with pytest.warns(InputWarning, match=rf"\A{re.escape(line)}config.ffn_act_fn.alpha=2.0\Z"):
        model_of(tmp_path, config | {"ffn_config": ffn | {"ffn_act_fn": {"name": "silu", "alpha": 2.0}}})


def test_routers_of_two_layers(tmp_path):
    """LLaMA-MoE's has as many hidden values as experts, Skywork's eight times as many, if it has them."""
    config = published("llama-moe-3.5b-4-16")
    assert model_of(tmp_path, config).gating.router_width == 16
    linear = model_of(tmp_path, config | {"gate_network": "linear"}).gating
    assert (linear.router, linear.router_width) == (Router.LINEAR, 0)
    sizes = [[688] * 15 + [689]] * 32
    with raises(
        f"{tmp_path / 'config.json'}: config.size_experts: must be the same for every expert,"
        f" not {sizes[0]!r:.80}"
    ):
        model_of(tmp_path, config | {"size_experts": sizes})
    with raises(f"{tmp_path / 'config.json'}: config.num_experts: must be above 0, not 0"):
        model_of(tmp_path, config | {"size_experts": None, "num_experts": 0})
    skywork = published("skywork-moe")
    two = model_of(tmp_path, skywork | {"moe_2layer_gate": True}).gating
    assert (two.router, two.router_width) == (Router.MLP, 128)
    plain = model_of(tmp_path, skywork | {"moe_use_logits_norm": False})
    assert plain.gating.logit_deviation == 0.0
    for mixtral, feature, scale in ((True, False, 1.0), (False, True, 1.0), (False, False, 2.0)):
        flags = {"moe_use_mixtral_gating": mixtral, "moe_feature_no_mul_topk": feature}
        assert model_of(tmp_path, skywork | flags).expert_input_scale == scale
    assert model_of(tmp_path, skywork | {"moe_expert_interval": 2}).num_moe_layers == 26


def test_what_is_no_term_of_the_algebra_is_one_line(tmp_path):
    path = tmp_path / "config.json"
    for name, key, value, covered in (
        ("llama-moe-3.5b-2-8", "calculator_type", "SwitchDropTokenCalculator", "'UniversalCalculator'"),
        ("llama-moe-3.5b-2-8", "gate_type", "SwitchBalancedGate", "'TopKBalancedNoisyGate'"),
        ("llama-moe-3.5b-2-8", "multiply_gate_scores", False, "True"),
        ("openmoe-34b-32e", "hidden_act", "gelu", "'swiglu'"),
        ("openmoe-34b-32e", "router_topk", 3, "1 or 2"),
        ("openmoe-34b-32e", "router_drop_tks", False, "True"),
        ("yuan2.0-m32", "gated_linear_unit", False, "True"),
    ):
        config = published(name)
        family = load_entry(name)[1].catalogue.family
        if name.startswith("yuan"):
            config["moe_config"][key] = value
        with raises(f"{path}: config.{key}: must be {covered} in family {family}, not {value!r}"):
            model_of(tmp_path, config | ({} if name.startswith("yuan") else {key: value}))


def test_a_capacity_that_is_even_or_the_least():
    model = load_config(DATA / "configs" / "openmoe-8b-32e.json")
    # An eighth of the tokens, rounded down, an odd one up by one; at least 4.
    assert [model.capacity_of(tokens) for tokens in (1, 32, 39, 40, 47, 48, 56, 64)] == [
        4, 4, 4, 6, 6, 6, 8, 8
    ]  # fmt: skip
    thirds = dataclasses.replace(model, capacity_fraction=4 / 6, capacity_minimum=0)
    assert [thirds.capacity_of(tokens) for tokens in (0, 1, 3, 6, 7, 9)] == [0, NO_PLACES, 2, 4, 4, 6]


def test_values_by_layer(tmp_path):
    config = {
        "model_type": "hunyuan_v1_moe",
        "hidden_size": 4096,
        "intermediate_size": 3072,
        "moe_intermediate_size": [3072] * 32,
        "num_experts": 64,
        "moe_topk": [8] * 32,
        "num_shared_expert": [1] * 32,
        "num_hidden_layers": 32,
    }
    assert model_of(tmp_path, config).gating.top_k == 8
    several = config | {"moe_topk": [1, 2, 3]}
    assert model_of(tmp_path, several | {"layer_idx": 1}).gating.top_k == 2
    assert model_of(tmp_path, several).gating.top_k == 3
    place = f"{tmp_path / 'config.json'}: config."
    with raises(f"{place}layer_idx: must be a layer, 0..2 (length of moe_topk), not 3"):
        model_of(tmp_path, several | {"layer_idx": 3})
    shared = [1] * 31 + [2]
    with raises(f"{place}num_shared_expert: must be 1 in family hunyuan_v1_moe, not {shared!r}"):
        model_of(tmp_path, config | {"num_shared_expert": shared})


def test_hashed_layers_come_first(tmp_path):
    config = {
        "model_type": "deepseek_v4",
        "hidden_size": 4096,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 6,
        "vocab_size": 129280,
        "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 40,
    }
    learned = model_of(tmp_path, config).gating
    assert (learned.selection, learned.hash_tokens, learned.selection_bias) == (Selection.TOP_K, 0, True)
    hashed = model_of(tmp_path, config | {"layer_idx": 0}).gating
    assert (hashed.selection, hashed.hash_tokens, hashed.selection_bias) == (Selection.HASH, 129280, False)


def test_layers_are_counted(tmp_path):
    jamba = {
        "model_type": "jamba",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    }
    assert model_of(tmp_path, jamba).num_moe_layers == 16
    with raises(f"{tmp_path / 'config.json'}: config.expert_layer_period: must be above 0, not 0"):
        model_of(tmp_path, jamba | {"expert_layer_period": 0})
    nemotron = {
        "model_type": "nemotron_h",
        "hidden_size": 2688,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "hybrid_override_pattern": "MEMEM*EMEMEM*E",
        "n_groups": 8,
    }
    assert model_of(tmp_path, nemotron).num_moe_layers == 6
    nllb = {
        "model_type": "nllb-moe",
        "d_model": 2048,
        "encoder_ffn_dim": 8192,
        "num_experts": 128,
        "encoder_layers": 24,
        "decoder_layers": 24,
        "encoder_sparse_step": 4,
        "decoder_sparse_step": 4,
    }
    model = model_of(tmp_path, nllb)
    assert (model.num_moe_layers, model.capacity_fraction, model.expert_output_scale) == (12, 1.0, 0.8)
    with raises(f"{tmp_path / 'config.json'}: config.moe_token_dropout: must be in 0..1, not 1.5"):
        model_of(tmp_path, nllb | {"moe_token_dropout": 1.5})


MIXTRAL_CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def test_another_name_of_a_key(tmp_path):
    renamed = {key: value for key, value in MIXTRAL_CONFIG.items() if key != "num_local_experts"}
    assert model_of(tmp_path, renamed | {"num_experts": 6}).gating.num_experts == 6
    assert model_of(tmp_path, MIXTRAL_CONFIG | {"num_experts": 8}).gating.num_experts == 8
    place = f"{tmp_path / 'config.json'}: config.num_experts"
    with raises(f"{place}: must equal config.num_local_experts=8, not 4"):
        model_of(tmp_path, MIXTRAL_CONFIG | {"num_experts": 4})


def test_an_unknown_key_that_could_matter_is_reported(tmp_path):
    """Keys of attention, positions, training or null change nothing; one that sounds like a router might."""
    harmless = {"rope_theta": 1e6, "router_aux_loss_coef": 0.02, "expert_choice": None, "expert_dropout": 0.0}
    model_of(tmp_path, MIXTRAL_CONFIG | harmless | {"vision_config": {"num_experts": 3}})
    with raises(
        f"{tmp_path / 'config.json'}: config.norm_topk_prob: is unknown in family mixtral and could change"
        " what the layer computes, by its name; not False"
    ):
        model_of(tmp_path, MIXTRAL_CONFIG | {"norm_topk_prob": False})


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("expertsPerToken", 4, "expertsPerToken"),
        ("routerTemperature", 2.0, "routerTemperature"),
        ("MoETopK", 4, "MoETopK"),
        ("num_selected", 4, "num_selected"),
        ("num_selects", 4, "num_selects"),
        ("use_sigmoid", True, "use_sigmoid"),
        ("num_prototypes", 2, "num_prototypes"),
        ("renormalize", False, "renormalize"),
        ("normalize_weights", True, "normalize_weights"),
        ("norm_probs", True, "norm_probs"),
        ("sinkhorn", True, "sinkhorn"),
        ("correction_bias", True, "correction_bias"),
        ("clamp_value", 7.0, "clamp_value"),
        ("token_dropping", True, "token_dropping"),
        ("attention_router", True, "attention_router"),
        ("text_config", {"num_experts_per_tok": 4}, "text_config.num_experts_per_tok"),
        ("extra", {"deep": {"gate": "top"}}, "extra.deep.gate"),
        ("extra", [{"top": 1}, {"gate": "top"}], "extra.1.gate"),
    ],
)
def test_a_key_that_concerns_the_layer_is_refused(tmp_path, key, value, place):
    told = value
    while isinstance(told, dict | list):
        told = told[-1] if isinstance(told, list) else next(iter(told.values()))
    with raises(
        f"{tmp_path / 'config.json'}: config.{place}: is unknown in family mixtral and could change what the"
        f" layer computes, by its name; not {told!r}"
    ):
        model_of(tmp_path, MIXTRAL_CONFIG | {key: value})


@pytest.mark.parametrize(
    "key",
    [
        *("top_k", "top_p", "prob_threshold", "softmax_temperature", "softmax_scale", "use_tanh"),
        *("apply_softmax", "scale_factor", "logit_softcap", "layer_scale", "e_bias", "use_bias", "bias"),
        *("drop_tokens", "dense_residual", "use_residual_branch", "my_note"),
    ],
)
def test_a_key_that_nothing_knows_is_a_warning(tmp_path, key):
    message = (
        f"{tmp_path / 'config.json'}: not read in family mixtral, and not known to change nothing:"
        f" config.{key}=4, config.extra.0.{key}=5"
    )
    with pytest.warns(InputWarning, match=rf"\A{re.escape(message)}\Z"):
        model = model_of(tmp_path, MIXTRAL_CONFIG | {key: 4, "extra": [{key: 5}]})
    assert model.gating.top_k == MIXTRAL_CONFIG["num_experts_per_tok"]


def test_many_long_keys_are_told_of_in_one_short_line(tmp_path):
    table = {f"{'k' * 40}{number}": number for number in range(3000)}
    started = time.process_time()
    with pytest.warns(InputWarning, match=r"\A[^\n]*=15 and 2984 more\Z") as told:
        model_of(tmp_path, MIXTRAL_CONFIG | {"t" * 500_000: {"u" * 1000: table}})
    assert len(str(told[0].message)) < 4_000
    assert time.process_time() - started < 5


def test_a_warning_is_one_line_on_stderr_and_the_run_goes_on(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MIXTRAL_CONFIG | {"model_type": "mixtral", "top_k": 4}))
    assert main(["sim", "--model", str(path), "--engine", "model", "--tokens", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["cycles"]["model"] > 0
    line = "not read in family mixtral, and not known to change nothing: config.top_k=4"
    assert err == f"expertbank: warning: {path}: {line}\n"


def test_a_vectors_configuration_is_looked_into_too(tmp_path):
    path = tmp_path / "v.npz"
    with np.load(DATA / "mixtral_s0.npz") as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    meta["config"]["top_k"] = 4
    np.savez(path, **arrays | {"meta": json.dumps(meta)})
    message = f"{path}: not read in family mixtral, and not known to change nothing: meta.config.top_k=4"
    with pytest.warns(InputWarning, match=rf"\A{re.escape(message)}\Z"):
        read_vector(path)


def published(name: str) -> dict[str, Any]:
    """Return a published configuration."""
    config: dict[str, Any] = json.loads((DATA / "configs" / f"{name}.json").read_text())
    return config


TEXT = "text_config"
LAYER_KINDS = {
    # Of a published configuration: the changes, and how many MoE and dense layers there are.
    "listed": (
        "llama-4-maverick",
        {TEXT: published("llama-4-maverick")[TEXT] | {"moe_layers": [1, 5, 9]}},
        3,
        45,
    ),
    "step": (
        "llama-4-scout",
        {TEXT: published("llama-4-scout")[TEXT] | {"interleave_moe_layer_step": 5}},
        9,
        39,
    ),
    "kinds": ("glm-4.5", {"mlp_layer_types": ["dense"] * 10 + ["sparse"] * 82}, 82, 10),
    "end": ("ernie-4.5-21b-a3b", {"moe_layer_end_index": 20}, 20, 8),
    "last": ("ernie-4.5-21b-a3b", {"moe_layer_end_index": -1}, 27, 1),
    "interval": ("ernie-4.5-21b-a3b", {"moe_layer_interval": 2}, 14, 14),
    "frequency": ("deepseek-v3", {"moe_layer_freq": 2}, 29, 32),
    "flags": ("deepseek-v3", {"moe_layer_freq": [0, 0, 0, 0] + [1] * 57}, 57, 4),
    "sparse step": ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, 24, 24),
    "dense ones": ("qwen3-30b-a3b", {"mlp_only_layers": [0, 1, 47]}, 45, 3),
    "all, as Qwen does not read it": (
        "qwen3-30b-a3b",
        {"first_k_dense_replace": 0, "moe_layer_freq": [1] * 48},
        48,
        0,
    ),
    "skipped": ("hunyuan-a13b", {"moe_layer_num_skipped": 2}, 30, 2),
}


@pytest.mark.parametrize(("name", "changes", "num_moe", "num_dense"), LAYER_KINDS.values(), ids=LAYER_KINDS)
def test_which_layers_are_moe_layers(tmp_path, name, changes, num_moe, num_dense):
    model = model_of(tmp_path, published(name) | changes)
    assert (model.num_moe_layers, model.num_dense_layers) == (num_moe, num_dense)


NOT_READ = "says which layers are MoE layers, which family qwen3_moe does not read; must be"
BAD_LAYER_KINDS = {
    "Qwen has no first ones": (
        "qwen3-30b-a3b",
        {"first_k_dense_replace": 3},
        f"first_k_dense_replace: {NOT_READ} 0, not 3",
    ),
    "nor flags": ("qwen3-30b-a3b", {"moe_layer_freq": [0, 1]}, f"moe_layer_freq: {NOT_READ} 1, not [0, 1]"),
    "nor a list": ("qwen3-30b-a3b", {"moe_layers": [1]}, f"moe_layers: {NOT_READ} absent, not [1]"),
    "no such layer": (
        "qwen3-30b-a3b",
        {"mlp_only_layers": [48]},
        "mlp_only_layers: must list layers in 0..47, not 48",
    ),
    "no list": ("qwen3-30b-a3b", {"mlp_only_layers": 4}, "mlp_only_layers: must be a list, not 4"),
    "a step of 0": (
        "qwen3-30b-a3b",
        {"decoder_sparse_step": 0},
        "decoder_sparse_step: must be a whole number from 1, not 0",
    ),
    "too few kinds": (
        "glm-4.5",
        {"mlp_layer_types": ["sparse"]},
        "mlp_layer_types: must have a value for each of 92 layers, not 1",
    ),
    "another kind": (
        "glm-4.5",
        {"mlp_layer_types": ["sparse"] * 91 + ["hash"]},
        "mlp_layer_types: must have one of sparse, dense for each layer, not 'hash'",
    ),
    "a flag of 2": (
        "deepseek-v3",
        {"moe_layer_freq": [2] * 61},
        "moe_layer_freq: must be a whole number in 0..1, not 2",
    ),
    "no layer at all": (
        "deepseek-v3",
        {"num_hidden_layers": 0},
        "num_hidden_layers: must be a whole number in 1..1024, not 0",
    ),
    "no MoE layer": (
        "glm-4.5",
        {"first_k_dense_replace": 92},
        "num_hidden_layers and config.first_k_dense_replace: must leave an MoE layer among 92 layers",
    ),
    "NLLB's two stacks": (
        "nllb-moe-54b",
        {"decoder_sparse_step": 2},
        "decoder_sparse_step: must equal config.encoder_sparse_step=4, not 2",
    ),
}


@pytest.mark.parametrize(("name", "changes", "message"), BAD_LAYER_KINDS.values(), ids=BAD_LAYER_KINDS)
def test_layers_that_contradict_are_one_line(tmp_path, name, changes, message):
    with raises(f"{tmp_path / 'config.json'}: config.{message}"):
        model_of(tmp_path, published(name) | changes)


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3", "glm-4.5"])
def test_null_shared_experts_are_none(tmp_path, name):
    assert model_of(tmp_path, published(name)).d_shared > 0
    assert model_of(tmp_path, published(name) | {"n_shared_experts": None}).d_shared == 0


def test_null_where_a_value_must_be(tmp_path):
    config = published("deepseek-v3")
    for key in ("n_group", "num_experts_per_tok"):
        with raises(f"{tmp_path / 'config.json'}: config.{key}: must not be null"):
            model_of(tmp_path, config | {key: None})
    del config["num_experts_per_tok"]
    with raises(f"{tmp_path / 'config.json'}: config.num_experts_per_tok: is missing"):
        model_of(tmp_path, config)


def test_options_by_model_type(tmp_path):
    """DeepSeekMoE-16B reads norm_topk_prob, V2 does not; Hunyuan-Large keeps a single expert's score."""
    first = published("deepseekmoe-16b") | {"norm_topk_prob": True}
    gating = model_of(tmp_path, first).gating
    assert (gating.normalise, gating.epsilon) == (Normalise.SUM, 1e-20)
    assert (
        model_of(tmp_path, published("deepseek-v2") | {"norm_topk_prob": True}).gating.normalise
        is Normalise.NONE
    )
    large = published("hunyuan-large")
    assert model_of(tmp_path, large | {"moe_topk": 2}).gating.normalise is Normalise.SUM
    assert model_of(tmp_path, large | {"model_type": "hunyuan_v1_moe"}).gating.normalise is Normalise.SUM


def test_options_that_change_nothing(tmp_path):
    model_of(tmp_path, published("longcat-flash") | {"router_dtype": "float32"})
    model_of(tmp_path, published("phi-3.5-moe") | {"expert_dropout": 0.0})
    with raises(
        f"{tmp_path / 'config.json'}: config.router_dtype: must be 'float32' in family longcat_flash,"
        " not 'bfloat16'"
    ):
        model_of(tmp_path, published("longcat-flash") | {"router_dtype": "bfloat16"})


def test_a_value_that_the_row_does_not_cover(tmp_path):
    config = {
        "model_type": "switch_transformers",
        "d_model": 768,
        "d_ff": 3072,
        "num_experts": 8,
        "expert_capacity": 0,
        "router_dtype": "float32",
        "num_selected_experts": 1,
    }
    assert model_of(tmp_path, config).expert_capacity == NO_PLACES
    with raises(
        f"{tmp_path / 'config.json'}: config.num_selected_experts: must be 1 in family switch_transformers,"
        " not 2"
    ):
        model_of(tmp_path, config | {"num_selected_experts": 2})


@pytest.mark.parametrize("family", sorted({stem.rsplit("_s", 1)[0] for stem in VECTORS if "neg" not in stem}))
def test_defaults_are_those_of_a_bare_configuration(tmp_path, family):
    """A vector's sizes alone, without any option, make a model: options have Hugging Face's defaults."""
    with np.load(DATA / f"{family}_s0.npz") as archive:
        config = json.loads(str(archive["meta"]))["config"]
    sizes = {key: value for key, value in config.items() if type(value) is int}
    assert model_of(tmp_path, sizes | {"model_type": family.replace("nllb_", "nllb-")}).d_model == 32


def test_the_page_has_a_row_for_each_family():
    """Class as the row's source says; hardware as the recorded layers are refused or not."""
    page = (DATA.parent.parent / "docs" / "families.md").read_text()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == family_names()
    for name, classes, *_, hardware in rows:
        family = name.strip("`")
        source = load_family(family).source
        assert all(one in source for one in classes.split(", ")), family
        refused = {
            stem in REFUSED for stem in VECTORS if stem.rsplit("_s", 1)[0].removesuffix("_negbias") == family
        }
        if not refused:
            # No layer is recorded: of its configurations as published.
            published = (DATA / "configs").glob("*.json")
            refused = {
                bool(lacking_terms(load_config(path)))
                for path in published
                if read_config(path)[0].name == family
            }
        stated = {"yes": {False}, "no": {True}, "without": {True, False}}[re.split(r"[ ,]", hardware)[0]]
        assert refused == stated, family
