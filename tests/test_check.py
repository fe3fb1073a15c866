"""``check`` on recorded and generated vectors, and on files that break each rule."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.vectors import read_vector
from golden.weights import LayerWeights, random_token_ids, random_tokens, random_weights, weight_shapes
from sim.check import check_file, check_folder
from spec.errors import InputError
from spec.families import config_keys, family_names
from spec.model import (
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
from tests.vector_files import meta_of, rewrite, write_vector

DATA = Path(__file__).parent / "data"
MIXTRAL = DATA / "mixtral_s0.npz"


def test_all_shipped_vectors_pass():
    cases = check_folder(DATA)
    assert [case.reason for case in cases if not case.ok] == []
    assert [case.file for case in cases] == sorted(path.name for path in DATA.glob("*.npz"))
    assert len(cases) == 57
    # The largest weights are 16 times a probability.
    assert max(case.combine_max_abs_err for case in cases) < 1e-6
    assert max(case.output_rel_err for case in cases) < 2e-6


# Generated vectors: other sizes and options than the recorded ones.


ONE_EACH = -1
"""As a router's width: as many as there are experts."""
SIGMOID_BIAS = {"score": Score.SIGMOID, "selection_bias": True}
DEEPSEEK = {**SIGMOID_BIAS, "epsilon": 1e-20}
UNGATED = {"activation": Activation.RELU, "gate_matrix": False}
KINDS: dict[str, tuple[dict, dict, dict]] = {
    "mixtral": ({}, {}, {}),
    "minimax": ({}, {}, {}),
    "granitemoe": ({}, {}, {}),
    "granitemoeshared": ({}, {}, {}),
    "qwen3_moe": ({}, {}, {}),
    "olmoe": ({}, {}, {}),
    "hunyuan_v1_moe": ({}, {}, {"d_shared": 6}),
    "aria": ({}, {}, {"shared_activation": Activation.SILU}),
    "jetmoe": ({}, {}, {"output_bias": True}),
    "dbrx": ({}, {}, {}),
    "jamba": ({"normalise": Normalise.NONE}, {}, {}),
    "qwen2_moe": ({}, {}, {"shared_expert_gate": True}),
    "qwen3_next": ({}, {}, {"shared_expert_gate": True}),
    "gpt_oss": ({"logit_bias": True}, {"activation": Activation.CLAMPED_SWIGLU, "bias": True}, {}),
    "deepseek_v3": (DEEPSEEK, {}, {}),
    "glm4_moe": (DEEPSEEK, {}, {}),
    "afmoe": (DEEPSEEK, {}, {}),
    "minimax_m2": (SIGMOID_BIAS, {}, {}),
    "lfm2_moe": ({**SIGMOID_BIAS, "epsilon": 1e-6}, {}, {}),
    "nemotron_h": (DEEPSEEK, {"activation": Activation.RELU2, "gate_matrix": False}, {"d_shared": 7}),
    "deepseek_v2": (
        {"normalise": Normalise.NONE, "group_score": GroupScore.MAX, "group_mask": GroupMask.ZERO},
        {},
        {},
    ),
    "deepseek_v4": (
        {"score": Score.SQRT_SOFTPLUS, "selection_bias": True, "epsilon": 1e-20},
        {"clamped": True, "limit": 0.7},
        {"d_shared": 6},
    ),
    "ernie4_5_moe": (
        {"selection_bias": True, "epsilon": 1e-12, "epsilon_rule": Epsilon.CLAMPED},
        {},
        {},
    ),
    "longcat_flash": ({"selection_bias": True, "normalise": Normalise.NONE, "scale": 6.0}, {}, {}),
    "llama4": (
        {
            "score": Score.NONE,
            "weight_score": Score.SIGMOID,
            "normalise": Normalise.NONE,
            "weight_applied_to": AppliedTo.INPUT,
        },
        {},
        {"d_shared": 6},
    ),
    "phimoe": (
        {
            "score": Score.NONE,
            "selection": Selection.SPARSE_MIXER,
            "normalise": Normalise.NONE,
            "jitter": 0.01,
        },
        {},
        {},
    ),
    "switch_transformers": ({"normalise": Normalise.NONE}, UNGATED, {}),
    "nllb_moe": (
        {"epsilon": float(np.finfo(np.float32).eps), "epsilon_rule": Epsilon.CLAMPED, "normalise_kept": True},
        UNGATED | {"bias": True},
        {
            "capacity_scope": CapacityScope.BATCH,
            "capacity_rule": CapacityRule.GSHARD,
            "capacity_fraction": 0.2,
            "expert_output_scale": 0.8,
            "expert_capacity": 64,
        },
    ),
    "llama_moe": ({"router": Router.MLP, "router_width": ONE_EACH}, {}, {}),
    "openmoe": (
        {"normalise": Normalise.NONE},
        {"second_up": True},
        {
            "capacity_scope": CapacityScope.BATCH,
            "capacity_rule": CapacityRule.GSHARD,
            "capacity_rounding": CapacityRounding.EVEN,
            "capacity_fraction": 0.5,
        },
    ),
    "skywork": ({}, {}, {}),
    "yuan": ({"router": Router.ATTENTION}, {}, {}),
}
"""What a family's row says of gating, experts and layer where its configuration says nothing."""


def family_model(family: str, *, e: int, k: int, h: int = 10, f: int = 6, **options) -> ModelSpec:
    """Return a model of a family; options are GatingSpec's, FfnSpec's and ModelSpec's."""
    parts = []
    for kind, own in zip((GatingSpec, FfnSpec, ModelSpec), KINDS[family], strict=True):
        names = [field.name for field in dataclasses.fields(kind)]
        parts.append(own | {key: options.pop(key) for key in list(options) if key in names})
    assert not options
    gating, ffn, layer = parts
    if gating.get("router_width") == ONE_EACH:
        gating["router_width"] = e
    return ModelSpec(
        name=family,
        d_model=h,
        gating=GatingSpec(num_experts=e, top_k=k, **gating),
        ffn=FfnSpec(d_expert=f, **ffn),
        **layer,
    )


P_NORM = {"normalise": Normalise.P_NORM}
GENERATED = {
    "k is 1": family_model("mixtral", e=5, k=1),
    "k is E": family_model("mixtral", e=4, k=4),
    "one expert": family_model("mixtral", e=1, k=1),
    "odd sizes": family_model("mixtral", e=7, k=3, h=13, f=1),
    "many experts": family_model("qwen3_moe", e=64, k=8),
    "k is 16": family_model("qwen3_moe", e=33, k=16),
    "GeGLU": family_model("mixtral", e=5, k=2, activation=Activation.GELU),
    "GeGLU by tanh": family_model("minimax", e=7, k=3, activation=Activation.GELU_TANH),
    "ReGLU": family_model("granitemoe", e=6, k=5, activation=Activation.RELU, gate_matrix=True),
    "bilinear": family_model("olmoe", e=5, k=2, activation=Activation.LINEAR),
    "gate of tanh": family_model("jamba", e=9, k=4, activation=Activation.TANH),
    "gate of sigmoid": family_model("hunyuan_v1_moe", e=9, k=1, activation=Activation.SIGMOID),
    "gate of squared relu": family_model(
        "minimax_m2", e=11, k=7, activation=Activation.RELU2, gate_matrix=True
    ),
    "not normalised": family_model("qwen3_moe", e=6, k=2, normalise=Normalise.NONE),
    "normalised": family_model("olmoe", e=9, k=5),
    "not normalised, olmoe": family_model("olmoe", e=9, k=5, normalise=Normalise.NONE),
    "biased and clamped": family_model("gpt_oss", e=5, k=4),
    "clamped hard": family_model("gpt_oss", e=9, k=2, limit=0.25),
    "groups": family_model("deepseek_v3", e=24, k=4, num_groups=6, topk_groups=2, scale=2.5),
    "every group": family_model("deepseek_v3", e=6, k=6, num_groups=3, topk_groups=3),
    "one group, two shared": family_model("deepseek_v3", e=6, k=2, d_shared=12, scale=1.5),
    "groups, not normalised": family_model(
        "deepseek_v3", e=8, k=2, num_groups=2, topk_groups=1, normalise=Normalise.NONE, d_shared=6
    ),
    "no shared expert": family_model("glm4_moe", e=33, k=16, num_groups=3, topk_groups=2),
    "groups by their best": family_model(
        "deepseek_v2", e=12, k=3, num_groups=4, topk_groups=2, scale=16.0, d_shared=12
    ),
    "greedy": family_model("deepseek_v2", e=11, k=6, d_shared=6, shared_bias=True),
    "roots of softplus": family_model("deepseek_v4", e=9, k=3, scale=1.5),
    "sigmoids, clamped": family_model("deepseek_v4", e=7, k=2, score=Score.SIGMOID, shared_bias=True),
    "hashed": family_model(
        "deepseek_v4", e=7, k=3, selection=Selection.HASH, hash_tokens=9, selection_bias=False
    ),
    "least denominator": family_model("ernie4_5_moe", e=11, k=3, epsilon=0.5, d_shared=6, shared_bias=True),
    "no shared expert, ernie": family_model("ernie4_5_moe", e=33, k=16),
    "three shared": family_model("afmoe", e=9, k=2, d_shared=18, scale=2.826),
    "shared expert apart": family_model(
        "aria", e=7, k=3, d_shared=12, shared_activation=Activation.GELU, shared_bias=True
    ),
    "raw probabilities": family_model("dbrx", e=7, k=3, normalise=Normalise.NONE),
    "1-norm": family_model("dbrx", e=12, k=4, activation=Activation.QUICK_GELU),
    "2-norm": family_model("dbrx", e=7, k=3, **P_NORM, norm_order=2.0),
    "half norm": family_model("dbrx", e=33, k=16, **P_NORM, norm_order=0.5),
    "granite": family_model("granitemoe", e=33, k=16),
    "granite, shared": family_model("granitemoeshared", e=5, k=2, d_shared=9),
    "granite, not shared": family_model("granitemoeshared", e=5, k=2),
    "k differs by layer": family_model("hunyuan_v1_moe", e=12, k=5),
    "jamba": family_model("jamba", e=5, k=5),
    "output bias": family_model("jetmoe", e=7, k=3, activation=Activation.GELU),
    "no selection bias": family_model("lfm2_moe", e=7, k=3, selection_bias=False),
    "lfm2, not normalised": family_model("lfm2_moe", e=12, k=4, normalise=Normalise.NONE, scale=2.0),
    "weighs the input": family_model("llama4", e=7, k=3, h=9, f=6),
    "top 1 of the input": family_model("llama4", e=16, k=1),
    "identity experts": family_model("longcat_flash", e=13, k=5, num_identity_experts=6),
    "more identity experts": family_model("longcat_flash", e=9, k=4, num_identity_experts=8),
    "no identity expert": family_model("longcat_flash", e=7, k=2, scale=1.0),
    "minimax": family_model("minimax_m2", e=33, k=16),
    "latent": family_model("nemotron_h", e=12, k=4, d_latent=4, num_groups=4, topk_groups=2, scale=2.5),
    "latent, biased": family_model(
        "nemotron_h", e=7, k=3, d_latent=3, latent_bias=True, shared_bias=True, normalise=Normalise.NONE
    ),
    "two matrices": family_model("nemotron_h", e=33, k=16, activation=Activation.SILU),
    "mixer": family_model("phimoe", e=16, k=2),
    "mixer, wide": family_model("phimoe", e=5, k=2, jitter=0.4),
    "mixer, exact": family_model("phimoe", e=7, k=2, jitter=0.0),
    "gated shared expert": family_model("qwen2_moe", e=7, k=3, d_shared=9),
    "gated shared expert, not normalised": family_model(
        "qwen3_next", e=33, k=16, d_shared=5, normalise=Normalise.NONE
    ),
    "drops": family_model("switch_transformers", e=3, k=1, expert_capacity=1),
    "drops, router bias": family_model("switch_transformers", e=3, k=1, expert_capacity=2, logit_bias=True),
    "drops all": family_model("switch_transformers", e=3, k=1, expert_capacity=-1),
    "two matrices of gelu": family_model(
        "switch_transformers", e=3, k=1, expert_capacity=1, activation=Activation.GELU
    ),
    "kept ones are normalised": family_model("nllb_moe", e=5, k=2, logit_bias=True),
    "normalised before dropping": family_model("nllb_moe", e=5, k=2, normalise_kept=False),
    "best tokens first": family_model("nllb_moe", e=7, k=2, capacity_rule=CapacityRule.SCORE_PRIORITY),
    "best tokens first, before": family_model(
        "nllb_moe", e=7, k=2, capacity_rule=CapacityRule.SCORE_PRIORITY, normalise_kept=False
    ),
    "a fixed capacity": family_model("nllb_moe", e=7, k=2, capacity_fraction=0.0, expert_capacity=3),
    "a router of two layers": family_model("llama_moe", e=8, k=2, scale=4.0),
    "experts of stated width": family_model("llama_moe", e=5, k=3, activation=Activation.GELU),
    "three products": family_model("openmoe", e=4, k=2, capacity_fraction=0.2, capacity_minimum=3),
    "an even capacity": family_model("openmoe", e=6, k=2, capacity_fraction=0.3),
    "an odd share": family_model("openmoe", e=3, k=1, capacity_fraction=5 / 18),
    "skywork, two layers, twice the input": family_model(
        "skywork", e=6, k=2, router=Router.MLP, router_width=48, expert_input_scale=2.0
    ),
    "skywork, normalised logits": family_model("skywork", e=16, k=2, logit_deviation=0.9682458365518543),
    "attention among experts": family_model("yuan", e=8, k=2),
    "attention, not normalised": family_model("yuan", e=5, k=3, normalise=Normalise.NONE),
    "drops all, by batch": family_model("nllb_moe", e=7, k=2, capacity_fraction=-1.0, expert_capacity=-1),
}


def write_generated(path: Path, model: ModelSpec, seed: int, shape: tuple[int, int]) -> LayerWeights:
    """Write a vector of the family that the model is named for, and return its weights."""
    tokens = random_tokens(model, shape[0] * shape[1], seed).reshape(*shape, model.d_model)
    weights = random_weights(model, seed)
    token_ids = random_token_ids(model, shape[0] * shape[1], seed)
    by_sequence = None if token_ids is None else token_ids.reshape(shape)
    write_vector(path, model.name, model, weights, tokens, by_sequence)
    return weights


def test_every_family_has_generated_cases():
    assert {model.name for model in GENERATED.values()} == set(KINDS) == set(family_names())


@pytest.mark.parametrize("model", GENERATED.values(), ids=GENERATED.keys())
def test_generated_vectors_pass(tmp_path, model):
    path = tmp_path / "generated.npz"
    weights = write_generated(path, model, 5, (3, 6))
    case = check_file(path)
    assert (case.ok, case.reason) == (True, None)
    vector = read_vector(path)
    assert dataclasses.replace(vector.model, name=model.name) == model
    limited = model.expert_capacity != 0 or model.capacity_fraction > 0
    assert (vector.dropped_assignments > 0) == limited
    for name in weight_shapes(model):
        assert np.array_equal(getattr(vector.weights, name), getattr(weights, name)), name


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), e=st.integers(1, 12), data=st.data())
def test_generated_vectors_of_any_size_pass(tmp_path_factory, seed, e, data):
    family = data.draw(st.sampled_from(sorted(KINDS)))
    pairs = ("nllb_moe", "phimoe", "openmoe", "skywork")
    e = max(e, 2) if family in pairs else e
    k = {"switch_transformers": 1} | dict.fromkeys(pairs, 2)
    k = k[family] if family in k else data.draw(st.integers(1, e))
    model = family_model(family, e=e, k=k, h=data.draw(st.integers(1, 9)))
    path = tmp_path_factory.mktemp("vectors") / "v.npz"
    write_generated(path, model, seed, (2, 2))
    assert check_file(path).reason is None


# Disagreement: the checker sees it.


def test_a_wrong_output_fails(tmp_path):
    vector = read_vector(MIXTRAL)
    wrong = vector.output.copy()
    wrong[1, 2, 3] += np.float32(3e-5) * wrong.std()
    rewrite(MIXTRAL, tmp_path / "v.npz", {"output": wrong})
    case = check_file(tmp_path / "v.npz")
    assert not case.ok
    assert re.fullmatch(r"output_rel_err (2\.9|3|3\.\d+)e-05 > 1e-05", case.reason)
    assert case.combine_max_abs_err < 1e-6


def test_a_wrong_combine_weight_fails(tmp_path):
    wrong = read_vector(MIXTRAL).combine.copy()
    row, expert = np.argwhere(wrong > 0.1)[0]
    wrong[row, expert] += np.float32(2e-6)
    rewrite(MIXTRAL, tmp_path / "v.npz", {"combine": wrong})
    case = check_file(tmp_path / "v.npz")
    assert not case.ok
    assert re.fullmatch(r"combine_max_abs_err (1\.9\d|2(\.\d+)?)e-06 > 1e-06", case.reason)


def test_a_wrong_selection_fails(tmp_path):
    wrong = read_vector(MIXTRAL).topk_indices.copy()
    wrong[4] = [e for e in range(8) if e not in wrong[4]][:2]
    rewrite(MIXTRAL, tmp_path / "v.npz", {"topk_indices": wrong})
    case = check_file(tmp_path / "v.npz")
    assert (case.ok, case.reason) == (False, "1 tokens select other experts, first token 4")


def test_a_missed_drop_fails(tmp_path):
    source = DATA / "switch_transformers_s0.npz"
    meta = meta_of(source)
    meta["config"]["expert_capacity"] = 64
    rewrite(source, tmp_path / "v.npz", {"meta": meta})
    case = check_file(tmp_path / "v.npz")
    assert not case.ok
    start = r"3 tokens select other experts, first token \d+; 0 assignments are dropped, not 3; "
    assert re.match(start + "combine_max_abs_err", case.reason)


@pytest.mark.parametrize(
    ("stated", "reason"), [(3, None), (None, None), (2, "3 assignments are dropped, not 2")]
)
def test_drops_are_counted(tmp_path, stated, reason):
    """Where the file says how many there were."""
    source = DATA / "switch_transformers_s0.npz"
    meta = meta_of(source)
    meta["dropped_assignments"] = stated
    if stated is None:
        del meta["dropped_assignments"]
    rewrite(source, tmp_path / "v.npz", {"meta": meta})
    case = check_file(tmp_path / "v.npz")
    assert (case.ok, case.reason) == (reason is None, reason)


def test_the_order_within_a_row_does_not_matter(tmp_path):
    vector = read_vector(MIXTRAL)
    flipped = {"topk_indices": vector.topk_indices[:, ::-1], "topk_weights": vector.topk_weights[:, ::-1]}
    rewrite(MIXTRAL, tmp_path / "v.npz", flipped)
    assert check_file(tmp_path / "v.npz").ok


# Bad files: one line each, as an error of the reader and as a failed case of the checker.


def change_config(**changes):
    def write(path: Path) -> None:
        meta = meta_of(MIXTRAL)
        meta["config"] = {k: v for k, v in (meta["config"] | changes).items() if v != "removed"}
        rewrite(MIXTRAL, path, {"meta": meta})

    return write


def change_meta(**changes):
    return lambda path: rewrite(MIXTRAL, path, {"meta": meta_of(MIXTRAL) | changes})


def change_arrays(changes):
    return lambda path: rewrite(MIXTRAL, path, changes)


def change_element(key: str, value: float):
    def write(path: Path) -> None:
        with np.load(MIXTRAL) as archive:
            array = archive[key].copy()
        array[(1,) * array.ndim] = value
        rewrite(MIXTRAL, path, {key: array})

    return write


def write_bytes(data: bytes):
    return lambda path: path.write_bytes(data)


def write_member(name: str, data: bytes):
    def write(path: Path) -> None:
        shutil.copy(MIXTRAL, path)
        with zipfile.ZipFile(MIXTRAL) as source, zipfile.ZipFile(path, "w") as target:
            for member in source.namelist():
                target.writestr(member, data if member == name else source.read(member))

    return write


def npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def pickled_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def flip_bit(path: Path) -> None:
    data = bytearray(MIXTRAL.read_bytes())
    data[data.index(b"param/experts.down_proj.npy") + 400] ^= 1
    path.write_bytes(data)


FLOAT_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
KNOWN = ", ".join(family_names())
BAD_FILES = {
    "empty": (write_bytes(b""), "is not a sound .npz archive: File is not a zip file"),
    "truncated": (
        write_bytes(MIXTRAL.read_bytes()[:20000]),
        "is not a sound .npz archive: File is not a zip file",
    ),
    "bit flipped": (
        flip_bit,
        "is not a sound .npz archive: Bad CRC-32 for file 'param/experts.down_proj.npy'",
    ),
    "pickle": (
        write_bytes(pickle.dumps({"input": 1})),
        "is not a sound .npz archive: File is not a zip file",
    ),
    "pickled array": (
        write_member("input.npy", pickled_array()),
        "input: holds pickled objects, which are refused",
    ),
    "not an array": (
        write_member("input.npy", b"hello, world"),
        "input: is not a .npy array: the magic string is not correct; expected b'\\x93NUMPY', got b'hello,'",
    ),
    "absurd size": (
        write_member("input.npy", npy(FLOAT_HEADER % "(2, 1000000000000, 32)")),
        "input: must be at most 4294967296 bytes, not 256000000000000",
    ),
    "more stated than there": (
        write_member("input.npy", npy(FLOAT_HEADER % "(2, 10, 32)")),
        "input: states 2560 bytes of shape (2, 10, 32), but 128 bytes are there",
    ),
    "negative size": (
        write_member("input.npy", npy(FLOAT_HEADER % "(-2, -10, 32)") + bytes(2560)),
        "input: states 2560 bytes of shape (-2, -10, 32), but 2688 bytes are there",
    ),
    "more there than stated": (
        write_member("input.npy", npy(FLOAT_HEADER % "(2, 10, 32)") + bytes(2564)),
        "input: has more data than shape (2, 10, 32) needs",
    ),
    "no meta": (change_arrays({"meta": None}), "meta: is missing"),
    "meta is a number": (
        write_member("meta.npy", npy(FLOAT_HEADER % "()") + bytes(4)),
        "meta: must be one text of at most 1048576 characters",
    ),
    "meta is a list": (change_arrays({"meta": [1]}), "meta: must be a JSON object, not list"),
    "no family": (change_meta(family=None), "meta.family: must be of type str, not None"),
    "unknown family": (change_meta(family="abacus"), f"meta.family: must be one of {KNOWN}, not 'abacus'"),
    "family is a path": (
        change_meta(family="../models/mixtral-8x7b"),
        f"meta.family: must be one of {KNOWN}, not '../models/mixtral-8x7b'",
    ),
    "no config": (change_meta(config=3), "meta.config: must be of type dict, not 3"),
    "weights the input": (
        change_meta(weight_applied_to="input"),
        "meta.weight_applied_to: must be 'output', not 'input'",
    ),
    **{
        f"another {key}": (
            change_meta(**{key: value}),
            f"meta.{key}: must be {fact}, as configuration and arrays say, not {value!r}",
        )
        for key, fact, value in (
            ("B", 2, 1),
            ("S", 10, 9),
            ("T", 20, 20.0),
            ("H", 32, "32"),
            ("n_router_outputs", 8, 7),
            ("top_k", 2, 3),
        )
    },
    "negative drops": (
        change_meta(dropped_assignments=-1),
        "meta.dropped_assignments: must be a whole number from 0, not -1",
    ),
    "no drops at all": (
        change_meta(dropped_assignments=None),
        "meta.dropped_assignments: must be a whole number from 0, not None",
    ),
    "config key missing": (
        change_config(num_local_experts="removed"),
        "meta.config.num_local_experts: is missing",
    ),
    "config of wrong type": (
        change_config(num_local_experts=8.0),
        "meta.config.num_local_experts: must be of type int, not 8.0",
    ),
    "k above E": (
        change_config(num_experts_per_tok=9),
        "meta.config.num_experts_per_tok: must be in 1..min(num_experts=8, 64), not 9",
    ),
    "absurd width": (
        change_config(hidden_size=1 << 40),
        "meta.config.hidden_size: must be in 1..65536, not 1099511627776",
    ),
    "another activation": (
        change_config(hidden_act="mish"),
        f"meta.config.hidden_act: must be one of {', '.join(config_keys().activations)}, not 'mish'",
    ),
    "a key that no row knows": (
        change_config(moe_router_temperature=2.0),
        (
            "meta.config.moe_router_temperature: is unknown in family mixtral and could change what the"
            " layer computes, by its name; not 2.0"
        ),
    ),
    "experts and weights differ": (
        change_config(num_local_experts=7),
        "param/gate.weight: must have shape (7, 32), not (8, 32)",
    ),
    "no weight": (change_arrays({"param/gate.weight": None}), "param/gate.weight: is missing"),
    "unknown weight": (
        change_arrays({"param/extra": np.zeros(1, np.float32)}),
        "param/extra: unknown array in family mixtral with this configuration",
    ),
    "float64": (
        change_arrays({"input": np.zeros((2, 10, 32))}),
        "input: must be float32, not float64",
    ),
    "NaN weight": (
        change_element("param/experts.down_proj", np.nan),
        "param/experts.down_proj: must be finite, but element (1, 1, 1) is nan",
    ),
    "infinite token": (
        change_element("input", -np.inf),
        "input: must be finite, but element (1, 1, 1) is -inf",
    ),
    "no tokens": (
        change_arrays({"input": np.zeros((2, 0, 32), np.float32)}),
        "input: must have shape (B, S, 32), not (2, 0, 32)",
    ),
    "flat tokens": (
        change_arrays({"input": np.zeros((20, 32), np.float32)}),
        "input: must have shape (B, S, 32), not (20, 32)",
    ),
    "no output": (change_arrays({"output": None}), "output: is missing"),
    "other logits": (
        change_arrays({"router_logits": np.zeros((20, 7), np.float32)}),
        "router_logits: must have shape (20, 8), not (20, 7)",
    ),
    "indices are floats": (
        change_arrays({"topk_indices": np.zeros((20, 2), np.float32)}),
        "topk_indices: must be int64, not float32",
    ),
    "index above E": (change_element("topk_indices", 8), "topk_indices: must be in 0..7, not 8"),
    "index below 0": (change_element("topk_indices", -1), "topk_indices: must be in 0..7, not -1"),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_and_a_failed_case(tmp_path, write, message):
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(InputError, match=rf"\A{re.escape(str(path))}: {re.escape(message)}\Z"):
        read_vector(path)
    case = check_file(path)
    assert (case.ok, case.reason) == (False, f"{path}: {message}")
    assert (case.combine_max_abs_err, case.output_rel_err) == (None, None)


HASHED = DATA / "deepseek_v4_s1.npz"
BAD_HASHES = {
    "no token ids": ({"input_ids": None}, "input_ids: is missing"),
    "token ids are floats": (
        {"input_ids": np.zeros((2, 10), np.float32)},
        "input_ids: must be int64, not float32",
    ),
    "token id beyond the table": (
        {"input_ids": np.full((2, 10), 64)},
        "input_ids: must be in 0..63, not 64",
    ),
    "token ids of other tokens": (
        {"input_ids": np.zeros((2, 9), np.int64)},
        "input_ids: must have shape (2, 10), not (2, 9)",
    ),
    "expert beyond the last": (
        {"param/gate.tid2eid": np.full((64, 2), 8)},
        "param/gate.tid2eid: must be in 0..7, not 8",
    ),
    "another table": (
        {"param/gate.tid2eid": np.zeros((64, 3), np.int64)},
        "param/gate.tid2eid: must have shape (64, 2), not (64, 3)",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_HASHES.values(), ids=BAD_HASHES.keys())
def test_a_bad_hash_table_is_one_line(tmp_path, changes, message):
    path = tmp_path / "v.npz"
    rewrite(HASHED, path, changes)
    with pytest.raises(InputError, match=rf"\A{re.escape(str(path))}: {re.escape(message)}\Z"):
        read_vector(path)


def test_arrays_without_a_number_may_be_there(tmp_path):
    """DeepSeek's class stores a shared expert of width 0 where there is none."""
    model = family_model("deepseek_v3", e=6, k=2)
    write_generated(tmp_path / "v.npz", model, 0, (1, 4))
    empty = {"param/shared_experts.up_proj.weight": np.zeros((0, model.d_model), np.float32)}
    with np.load(tmp_path / "v.npz") as archive:
        np.savez(tmp_path / "w.npz", **archive, **empty)
    assert check_file(tmp_path / "w.npz").ok


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.npz"
    with pytest.raises(
        InputError, match=rf"\A{re.escape(str(path))}: cannot be read: No such file or directory\Z"
    ):
        read_vector(path)


def test_an_unknown_family_is_named_in_its_case(tmp_path):
    rewrite(MIXTRAL, tmp_path / "v.npz", {"meta": meta_of(MIXTRAL) | {"family": "abacus"}})
    assert check_file(tmp_path / "v.npz").family == "abacus"


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_files_raise_nothing_but_input_errors(tmp_path_factory, data):
    """Whatever bytes change, the reader answers with a vector or with one line."""
    original = MIXTRAL.read_bytes()
    damaged = bytearray(original)
    for position in data.draw(st.lists(st.integers(0, len(original) - 1), min_size=1, max_size=8)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "v.npz"
    path.write_bytes(damaged[: data.draw(st.sampled_from((len(original), len(original) // 2)))])
    case = check_file(path)
    assert case.ok == (case.reason is None)
    assert "\n" not in (case.reason or "")


def test_json_of_a_case_has_no_nan(tmp_path):
    """Finite weights whose product overflows float32 still make valid JSON."""
    vector = read_vector(MIXTRAL)
    rewrite(MIXTRAL, tmp_path / "v.npz", {"input": np.full(vector.tokens.shape, 3e38, np.float32)})
    case = check_file(tmp_path / "v.npz")
    assert not case.ok
    json.dumps(dataclasses.asdict(case), allow_nan=False)
