"""Weights of a folder: what tests write is read bit for bit, and what is not sound is refused."""

from __future__ import annotations

import json
import os
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from golden import tensor_file
from golden.banks import channel_image
from golden.checkpoint import Checkpoint
from golden.expert_grouped import group_expert
from golden.image import expert_image_grouped
from golden.layer_bf16 import pack_expert
from golden.stored_formats import StoredMatrix
from golden.tensor_file import ELEMENT_BITS, TensorFile
from golden.vectors import open_vector, read_vector
from golden.weights import LayerWeights, random_weights
from sim import accelerator, pim_report
from sim.alone import operands_of, plan_experts
from sim.cli import main
from spec.banks import BankGeometry
from spec.design import Format
from spec.errors import InputError, InputWarning
from spec.families import WEIGHT_NAMES, _parse_row, family_names, load_family
from spec.files import PRESETS, read_toml
from spec.geometry import ImageGeometry
from spec.load import load_design, load_model
from spec.model import CapacityRounding, FfnSpec, GatingSpec, ModelSpec, Normalise, Router
from tests.checkpoint_files import PUBLISHED, Tensors, file_bytes, published, raw_file, write_checkpoint
from tests.vector_files import config_of

DATA = Path(__file__).parent / "data"
VECTORS = sorted(path.stem for path in DATA.glob("*.npz"))
MIXTRAL = DATA / "mixtral_s0.npz"


def raises(message: str) -> Any:
    """Expect an :class:`InputError` of exactly this message."""
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def config_of_vector(path: Path) -> dict[str, Any]:
    vector = open_vector(path)
    return vector.meta["config"] | {"model_type": load_family(vector.meta["family"]).model_types[0]}


def assert_same(weights: LayerWeights, expected: LayerWeights) -> None:
    """Require equal bits of every weight."""
    for name in WEIGHT_NAMES:
        one, other = getattr(weights, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype and one.shape == other.shape, name
            assert one.tobytes() == other.tobytes(), name


# Names and layouts.


@pytest.mark.parametrize("name", VECTORS)
def test_every_family_by_its_published_names(name, tmp_path):
    path = DATA / f"{name}.npz"
    vector, config = read_vector(path), config_of_vector(path)
    layer = config.get("layer_idx", 1)
    items = list(published(vector.family, vector.weights, layer).items())
    shards = [items] if name.endswith("_s0") else [items[::2], items[1::2]]
    folder = write_checkpoint(tmp_path / name, config, *map(dict, shards))
    found = Checkpoint(folder).layer(str(layer))
    assert found.model == vector.model
    assert_same(found.read(), vector.weights)


UNRECORDED = {
    "llama_moe": ({"router": Router.MLP, "router_width": 5}, {}),
    "openmoe": ({"normalise": Normalise.NONE}, {"second_up": True}),
    "skywork": ({"router": Router.MLP, "router_width": 40}, {}),
    "yuan": ({"router": Router.ATTENTION}, {}),
}
"""Families of which no layer is recorded: terms of their gating and of their experts."""


@pytest.mark.parametrize("family", UNRECORDED)
def test_families_without_a_recorded_layer_by_their_names(family, tmp_path):
    gating, ffn = UNRECORDED[family]
    share = (
        {"capacity_fraction": 0.8, "capacity_rounding": CapacityRounding.EVEN} if family == "openmoe" else {}
    )
    model = ModelSpec(
        name=family,
        d_model=6,
        gating=GatingSpec(num_experts=5, top_k=2, **gating),
        ffn=FfnSpec(d_expert=3, **ffn),
        **share,
    )
    weights = random_weights(model, 3)
    folder = write_checkpoint(
        tmp_path / family,
        {"model_type": family} | config_of(family, model),
        published(family, weights, 2),
    )
    assert_same(Checkpoint(folder).layer("2").read(), weights)


def test_a_router_of_one_layer_where_there_may_be_two(tmp_path):
    gating = GatingSpec(num_experts=4, top_k=2)
    model = ModelSpec(name="skywork", d_model=6, gating=gating, ffn=FfnSpec(d_expert=3))
    weights = random_weights(model, 3)
    tensors = published("skywork", weights, 0)
    tensors["model.layers.0.mlp.moe.gate.wg.weight"] = tensors.pop("model.layers.0.mlp.moe.gate.wg.2.weight")
    config = {"model_type": "skywork"} | config_of("skywork", model)
    assert_same(Checkpoint(write_checkpoint(tmp_path / "s", config, tensors)).layer("0").read(), weights)


def test_every_family_has_names():
    assert sorted(PUBLISHED) == family_names()
    assert all(load_family(name).checkpoint is not None for name in family_names())


@pytest.mark.parametrize("name", ["mixtral_s0", "qwen3_moe_s0", "deepseek_v3_s0", "gpt_oss_s0"])
def test_modules_names_are_read_too(name, tmp_path):
    # Fused arrays of newer classes, under the names that vectors have.
    vector = open_vector(DATA / f"{name}.npz")
    tensors: Tensors = {
        f"model.layers.7.mlp.{key.removeprefix('param/')}": ("F32", array)
        for key, array in vector.arrays.items()
        if key.startswith("param/")
    }
    folder = write_checkpoint(tmp_path / name, config_of_vector(vector.path), tensors)
    assert_same(Checkpoint(folder).layer("7").read(), read_vector(vector.path).weights)


def test_a_key_of_its_configuration_that_nothing_knows_is_a_warning(tmp_path):
    vector = read_vector(MIXTRAL)
    config = config_of_vector(MIXTRAL) | {"top_k": 4}
    folder = write_checkpoint(tmp_path / "mixtral_s0", config, published("mixtral", vector.weights, 0))
    line = "not read in family mixtral, and not known to change nothing: config.top_k=4"
    with pytest.warns(InputWarning, match=rf"\A{re.escape(str(folder / 'config.json'))}: {line}\Z"):
        assert Checkpoint(folder).layer("0").model == vector.model


def test_some_experts_equal_those_of_all(tmp_path):
    vector = read_vector(MIXTRAL)
    folder = write_checkpoint(
        tmp_path / "m", config_of_vector(MIXTRAL), published("mixtral", vector.weights, 0)
    )
    some = Checkpoint(folder).layer("0").read([5, 2])
    assert np.array_equal(some.up, vector.weights.up[[5, 2]])
    assert np.array_equal(some.router, vector.weights.router)


def test_a_file_of_the_safetensors_library(tmp_path):
    vector = read_vector(DATA / "deepseek_v3_s0.npz")
    folder = write_checkpoint(tmp_path / "d", config_of_vector(DATA / "deepseek_v3_s0.npz"), {})
    arrays = {
        name: array.astype(np.float16 if "experts" in name else np.float32)
        for name, (_, array) in published("deepseek_v3", vector.weights, 3).items()
    }
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    expected = {name: array for name, array in arrays.items() if name.endswith("up_proj.weight")}
    read = TensorFile(folder / "model.safetensors")
    for name, array in expected.items():
        assert np.array_equal(read.array(name), array)
    weights = Checkpoint(folder).layer("3").read()
    up = arrays["model.layers.3.mlp.experts.1.up_proj.weight"]
    assert np.array_equal(weights.up[1], up.astype(np.float32))


def test_the_library_reads_what_tests_write(tmp_path):
    tensors: Tensors = {"a": ("F32", np.arange(6.0).reshape(2, 3)), "b": ("I64", np.arange(3))}
    (tmp_path / "m.safetensors").write_bytes(file_bytes(tensors))
    read = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert sorted(read) == ["a", "b"]
    assert np.array_equal(read["a"], tensors["a"][1])


# Formats.


def e4m3(code: int) -> float:
    """Return a pattern's value, by the definition (arXiv 2209.05433, table 1)."""
    sign, exponent, fraction = -1 if code & 0x80 else 1, code >> 3 & 15, code & 7
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def e2m1(code: int) -> float:
    """Return a pattern's value, by the definition (OCP MX 1.0, table 5)."""
    sign, exponent, fraction = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * (fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1))


def plain_fp8(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Return element times scale, in a loop."""
    values = np.empty(codes.shape, np.float32)
    for place in np.ndindex(*codes.shape):
        scale = scales[(*place[:-2], place[-2] // block[0], place[-1] // block[1])]
        values[place] = np.float32(e4m3(int(codes[place])) * float(scale))
    return values


def many_fp8(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Return the same of a large matrix; NaN too."""
    rows, cols = codes.shape
    spread = scales.astype(np.float64).repeat(block[0], axis=0).repeat(block[1], axis=1)[:rows, :cols]
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return (values * spread).astype(np.float32)


def plain_fp4(pairs: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Return element times power of two, in a loop; pairs are (..., n / 2), exponents (..., n / 32)."""
    values = np.empty((*pairs.shape[:-1], 2 * pairs.shape[-1]), np.float32)
    for place in np.ndindex(*values.shape):
        pair = int(pairs[(*place[:-1], place[-1] // 2)])
        scale = 2.0 ** (int(exponents[(*place[:-1], place[-1] // 32)]) - 127)
        values[place] = e2m1(pair >> 4 if place[-1] % 2 else pair & 15) * scale
    return values


def fp8_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return every pattern but the two NaNs."""
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    return codes


def deepseek_config(d_model: int, d_expert: int, **more: object) -> dict[str, Any]:
    return {
        "model_type": "deepseek_v3",
        "hidden_size": d_model,
        "moe_intermediate_size": d_expert,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "n_shared_experts": 0,
        "n_group": 1,
        "topk_group": 1,
        "hidden_act": "silu",
    } | more


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize(
    ("sizes", "block"),
    [((32, 16), (8, 8)), ((20, 13), (8, 8)), ((21, 9), (16, 4)), ((130, 129), None)],
    ids=["whole blocks", "cut blocks", "odd sizes", "blocks of 128"],
)
def test_fp8_with_block_scales(tmp_path, scale_dtype, sizes, block):
    rng = np.random.default_rng(1)
    d_model, d_expert = sizes
    more: dict[str, object] = {}
    if block:
        more = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(block)}}
    rows, cols = block or (128, 128)
    beginning = "model.layers.3.mlp."
    tensors: Tensors = {
        f"{beginning}gate.weight": ("BF16", np.ones((2, d_model))),
        f"{beginning}gate.e_score_correction_bias": ("F32", np.array([0.1, -0.2], np.float32)),
    }
    expected: dict[str, list[np.ndarray]] = {"gate": [], "up": [], "down": []}
    for expert in range(2):
        for part, values in expected.items():
            shape = (d_model, d_expert) if part == "down" else (d_expert, d_model)
            codes = fp8_codes(rng, shape)
            scale_shape = (-(-shape[0] // rows), -(-shape[1] // cols))
            name = f"{beginning}experts.{expert}.{part}_proj.weight"
            if scale_dtype == "F8_E8M0":
                patterns = rng.integers(100, 140, scale_shape, dtype=np.uint8)
                scales = 2.0 ** (patterns.astype(float) - 127)
                tensors[f"{name}_scale_inv"] = (scale_dtype, patterns)
            else:
                # Of eight bits: exact in bf16 as in float32.
                scales = rng.integers(1, 256, scale_shape) * 2.0**-12
                tensors[f"{name}_scale_inv"] = (scale_dtype, scales)
            tensors[name] = ("F8_E4M3", codes)
            values.append(plain_fp8(codes, scales, (rows, cols)))
    folder = write_checkpoint(tmp_path / "m", deepseek_config(d_model, d_expert, **more), tensors)
    weights = Checkpoint(folder).layer("3").read()
    for part, values in expected.items():
        assert getattr(weights, part).tobytes() == np.stack(values).tobytes()


def test_fp8_product_is_rounded_once(tmp_path):
    # A scale of 24 bits: the product of 28 is rounded to nearest even, as float64 to float32 would.
    scales = np.random.default_rng(2).random((1, 1)).astype(np.float32)
    codes = fp8_codes(np.random.default_rng(3), (2, 8, 16))
    tensors: Tensors = {"model.layers.0.mlp.gate.weight": ("F32", np.ones((2, 16)))}
    for name, array in (
        ("gate_up_proj", np.concatenate([codes, codes], 1)),
        ("down_proj", codes.swapaxes(1, 2)),
    ):
        tensors[f"model.layers.0.mlp.experts.{name}"] = ("F8_E4M3", array)
        tensors[f"model.layers.0.mlp.experts.{name}_scale_inv"] = ("F32", np.stack([scales, scales]))
    config = {"model_type": "qwen3_moe", "hidden_size": 16, "moe_intermediate_size": 8, "num_experts": 2}
    folder = write_checkpoint(tmp_path / "m", config | {"num_experts_per_tok": 1}, tensors)
    weights = Checkpoint(folder).layer("0").read()
    expected = plain_fp8(codes, np.stack([scales, scales]), (128, 128))
    for array in (weights.gate, weights.up, weights.down.swapaxes(1, 2)):
        assert np.array_equal(array, expected)


@pytest.mark.parametrize("rows", [slice(0, 9, 1), slice(1, 9, 2), slice(3, 8, 1), slice(4, 4, 1)])
@pytest.mark.parametrize("block", [(1, 1), (2, 64), (3, 100), (4, 7), (128, 128)])
@pytest.mark.parametrize("compiled_from", [0, 1 << 20])
def test_every_fp8_pattern_under_every_kind_of_scale(monkeypatch, compiled_from, block, rows):
    """Scales take the exponents' offset with them where that cannot overflow; bits show no difference."""
    monkeypatch.setattr("golden.stored_formats.COMPILED_FROM", compiled_from)
    rng = np.random.default_rng(4)
    codes = np.stack([rng.permutation(256) for _ in range(9)]).astype(np.uint8)
    kinds = np.array([2.0**-149, -(2.0**-127), 3e-39, 0.0, -0.0, 0.7, -127.0, 300.0, 3e4, -1e36, 3e38])
    shape = (-(-9 // block[0]), -(-256 // block[1]))
    for known_kinds in (7, 8, len(kinds), 0):
        scales = rng.choice(kinds[:known_kinds], shape) if known_kinds else np.full(shape, np.nan)
        scales = (scales * (1 + rng.random(shape) / 1024)).astype(np.float32)
        for finite in (False, True):
            stored = np.where(finite & (codes & 0x7F == 0x7F), np.uint8(0), codes)
            expected = many_fp8(stored, scales, block)[rows]
            values = np.full(expected.shape, 7, np.float32)
            matrix = StoredMatrix(stored.view(ml_dtypes.float8_e4m3fn), False, scales, *block)
            known = matrix.read_rows(rows, values)
            there = ~np.isnan(expected)
            assert np.array_equal(np.isnan(values), ~there)
            assert values[there].tobytes() == expected[there].tobytes()
            assert np.isfinite(values).all() or not known
            assert known or not finite or not np.all(np.abs(scales) < 128)


@pytest.mark.parametrize(("place", "pattern"), [((0, 0), 0x7F), ((300, 511), 0xFF), ((511, 77), 0x7F)])
@pytest.mark.parametrize("compiled_from", [0, 1 << 20])
def test_a_large_matrix_is_read_by_all_processors(tmp_path, monkeypatch, compiled_from, place, pattern):
    """The same values, and of several that are not finite the first one is named."""
    monkeypatch.setattr("golden.stored_formats.COMPILED_FROM", compiled_from)
    rng = np.random.default_rng(5)
    monkeypatch.setattr("golden.checkpoint.ELEMENTS_AT_ONCE", 1 << 12)
    beginning = "model.layers.0.mlp."
    tensors: Tensors = {
        f"{beginning}gate.weight": ("BF16", np.ones((2, 512))),
        f"{beginning}gate.e_score_correction_bias": ("F32", np.zeros(2)),
    }
    for expert in range(2):
        for part in ("gate", "up", "down"):
            name = f"{beginning}experts.{expert}.{part}_proj.weight"
            tensors[name] = ("F8_E4M3", fp8_codes(rng, (512, 512)))
            tensors[f"{name}_scale_inv"] = ("F32", rng.random((4, 4), np.float32))
    folder = write_checkpoint(tmp_path / "m", deepseek_config(512, 512), tensors)
    weights = Checkpoint(folder).layer("0").read()
    for part in ("gate", "up", "down"):
        for expert in range(2):
            name = f"{beginning}experts.{expert}.{part}_proj.weight"
            scales = tensors[f"{name}_scale_inv"][1]
            expected = many_fp8(tensors[name][1], scales, (128, 128))
            assert getattr(weights, part)[expert].tobytes() == expected.tobytes()
    name = f"{beginning}experts.1.up_proj.weight"
    tensors[name][1][place] = tensors[name][1][511, 511] = pattern
    tensors[f"{beginning}experts.0.down_proj.weight"][1][0, 0] = pattern
    write_checkpoint(folder, deepseek_config(512, 512), tensors)
    with raises(f"{folder / 'model.safetensors'}: {name}: must be finite, but element {place} is nan"):
        Checkpoint(folder).layer("0").read()


def gpt_oss_tensors(rng: np.random.Generator) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Return an MXFP4 layer of gpt-oss's layout, d_model 64, d_expert 32, 2 experts, and its weights."""
    beginning = "model.layers.4.mlp."
    tensors: Tensors = {
        f"{beginning}router.weight": ("BF16", np.ones((2, 64))),
        f"{beginning}router.bias": ("BF16", np.zeros(2)),
        f"{beginning}experts.gate_up_proj_bias": ("BF16", np.arange(128.0).reshape(2, 64)),
        f"{beginning}experts.down_proj_bias": ("BF16", np.ones((2, 64))),
    }
    matrices = {}
    for name, (rows, cols) in {"gate_up_proj": (64, 64), "down_proj": (64, 32)}.items():
        pairs = rng.integers(0, 256, (2, rows, cols // 2), dtype=np.uint8)
        exponents = rng.integers(90, 160, (2, rows, cols // 32), dtype=np.uint8)
        tensors[f"{beginning}experts.{name}_blocks"] = ("U8", pairs.reshape(2, rows, cols // 32, 16))
        tensors[f"{beginning}experts.{name}_scales"] = ("U8", exponents)
        matrices[name] = plain_fp4(pairs, exponents)
    expected = {
        "gate": matrices["gate_up_proj"][:, 0::2],
        "up": matrices["gate_up_proj"][:, 1::2],
        "down": matrices["down_proj"],
        "gate_bias": np.arange(128).reshape(2, 64)[:, 0::2],
        "up_bias": np.arange(128).reshape(2, 64)[:, 1::2],
    }
    return tensors, expected


GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]},
}


def test_mxfp4_of_gpt_oss(tmp_path):
    tensors, expected = gpt_oss_tensors(np.random.default_rng(4))
    weights = Checkpoint(write_checkpoint(tmp_path / "m", GPT_OSS, tensors)).layer("4").read()
    for name, array in expected.items():
        assert np.array_equal(getattr(weights, name), array), name


@pytest.mark.parametrize("dtype", ["I8", "U8", "F4"])
def test_mxfp4_and_fp8_of_deepseek_v4(tmp_path, dtype):
    rng = np.random.default_rng(5)
    beginning = "layers.3.ffn."
    tensors: Tensors = {
        f"{beginning}gate.weight": ("BF16", np.ones((2, 64))),
        f"{beginning}gate.bias": ("F32", np.zeros(2)),
    }
    expected = {}
    for expert in range(2):
        for part, shape in {"w1": (32, 64), "w3": (32, 64), "w2": (64, 32)}.items():
            pairs = rng.integers(0, 256, (shape[0], shape[1] // 2), dtype=np.uint8)
            exponents = rng.integers(100, 130, (shape[0], shape[1] // 32), dtype=np.uint8)
            tensors[f"{beginning}experts.{expert}.{part}.weight"] = (
                dtype,
                pairs.view(np.int8) if dtype == "I8" else pairs,
            )
            tensors[f"{beginning}experts.{expert}.{part}.scale"] = ("F8_E8M0", exponents)
            expected[expert, part] = plain_fp4(pairs, exponents)
    for part, shape in {"w1": (32, 64), "w3": (32, 64), "w2": (64, 32)}.items():
        codes, exponents = fp8_codes(rng, shape), rng.integers(120, 130, (1, 1), dtype=np.uint8)
        tensors[f"{beginning}shared_experts.{part}.weight"] = ("F8_E4M3", codes)
        tensors[f"{beginning}shared_experts.{part}.scale"] = ("F8_E8M0", exponents)
        expected["shared", part] = plain_fp8(codes, 2.0 ** (exponents.astype(float) - 127), (128, 128))
    config = {
        "model_type": "deepseek_v4",
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "hidden_act": "silu",
    }
    weights = Checkpoint(write_checkpoint(tmp_path / "m", config, tensors)).layer("3").read()
    for part, name in {"w1": "gate", "w3": "up", "w2": "down"}.items():
        assert np.array_equal(getattr(weights, name), np.stack([expected[0, part], expected[1, part]]))
        assert np.array_equal(getattr(weights, f"shared_{name}"), expected["shared", part])


def test_mxfp4_elements_and_scales_are_kept(tmp_path):
    """Of a format that stores weights as the checkpoint does no bit is changed."""
    rng = np.random.default_rng(6)
    tensors, _ = gpt_oss_tensors(rng)
    beginning = "model.layers.4.mlp.experts."
    tensors[f"{beginning}gate_up_proj_scales"][1][0, :2, 0] = (0, 200)
    layer = Checkpoint(write_checkpoint(tmp_path / "m", GPT_OSS, tensors)).layer("4")
    weights = layer.read()
    for expert in range(2):
        kept = group_expert(weights.expert(expert), Format.MXFP4, 32, weights.stored_expert(expert))
        for name, part, at in (("gate", "gate_up", 0), ("up", "gate_up", 1), ("down", "down", None)):
            rows = slice(None) if at is None else slice(at, None, 2)
            matrix = getattr(kept, name)
            pairs = tensors[f"{beginning}{part}_proj_blocks"][1][expert].reshape(64, -1)[rows]
            assert np.array_equal(matrix.codes[:, 0::2] | matrix.codes[:, 1::2] << 4, pairs)
            assert np.array_equal(matrix.scales, tensors[f"{beginning}{part}_proj_scales"][1][expert, rows])
            assert np.array_equal(matrix.values(), getattr(weights, name)[expert].astype(np.float64))
    image = ImageGeometry.of(layer.model, load_design("fpga", "mxfp4"))
    packed = pack_expert(image, weights, 1)
    assert np.array_equal(packed.image(), expert_image_grouped(image.routed, kept))
    banks = BankGeometry.unplaced(layer.model, load_design("pim", "mxfp4"))
    in_banks = expert_image_grouped(banks.image.routed, kept)
    assert np.array_equal(channel_image(banks, weights, {1: 0}).ravel()[: in_banks.size], in_banks)
    again = group_expert(weights.expert(0), Format.MXFP4, 32)
    assert not np.array_equal(again.up.scales, kept.up.scales), "quantised anew they would be others"
    int4 = group_expert(weights.expert(0), Format.INT4, 32, weights.stored_expert(0))
    assert int4.up.format is Format.INT4


@pytest.mark.parametrize("stacked", [False, True])
def test_fp8_elements_and_scales_are_kept(tmp_path, stacked):
    """Per expert, and as halves of a fused array whose border lies within a block."""
    rng = np.random.default_rng(8)
    d_model, d_expert, group = 40, 21, 16
    more = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}
    beginning = "model.layers.3.mlp."
    tensors: Tensors = {
        f"{beginning}gate.weight": ("BF16", np.ones((2, d_model))),
        f"{beginning}gate.e_score_correction_bias": ("F32", np.zeros(2, np.float32)),
    }

    def add(name: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = (*shape[:-2], -(-shape[-2] // group), -(-shape[-1] // group))
        codes, scales = fp8_codes(rng, shape), rng.random(blocks).astype(np.float32) + np.float32(0.1)
        tensors[name], tensors[f"{name}_scale_inv"] = ("F8_E4M3", codes), ("F32", scales)
        return codes, scales

    expected = {}
    if stacked:
        fused = add(f"{beginning}experts.gate_up_proj", 2, 2 * d_expert, d_model)
        down = add(f"{beginning}experts.down_proj", 2, d_model, d_expert)
        for expert in range(2):
            expected[expert, "gate"] = (fused[0][expert], fused[1][expert], slice(0, d_expert))
            expected[expert, "up"] = (fused[0][expert], fused[1][expert], slice(d_expert, 2 * d_expert))
            expected[expert, "down"] = (down[0][expert], down[1][expert], slice(0, d_model))
    else:
        for expert in range(2):
            for name, rows, cols in (
                ("gate", d_expert, d_model),
                ("up", d_expert, d_model),
                ("down", d_model, d_expert),
            ):
                codes, scales = add(f"{beginning}experts.{expert}.{name}_proj.weight", rows, cols)
                expected[expert, name] = (codes, scales, slice(0, rows))
    folder = write_checkpoint(tmp_path / "m", deepseek_config(d_model, d_expert, **more), tensors)
    weights = Checkpoint(folder).layer("3").read()
    for (expert, name), (codes, scales, part) in expected.items():
        kept = getattr(
            group_expert(weights.expert(expert), Format.FP8, group, weights.stored_expert(expert)), name
        )
        assert np.array_equal(kept.codes, codes[part])
        rows = np.arange(part.start, part.stop) // group
        assert np.array_equal(kept.scales.view(np.float32), scales[rows])
        assert np.array_equal(kept.values().astype(np.float32), getattr(weights, name)[expert])
    other = group_expert(weights.expert(0), Format.FP8, 32, weights.stored_expert(0))
    assert other.up.scales.shape == (d_expert, 2), "groups of another size are quantised anew"


def test_fp8_blocks_of_matrices_that_lie_in_out(tmp_path):
    path = DATA / "llama4_s0.npz"
    model, config = read_vector(path).model, config_of_vector(path)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 4]}
    tensors = published("llama4", random_weights(model, 0), 3)
    rng, values = np.random.default_rng(7), {}
    beginning = "language_model.model.layers.3.feed_forward.experts."
    for name in ("gate_up_proj", "down_proj"):
        experts, rows, cols = tensors[beginning + name][1].shape
        codes = fp8_codes(rng, (experts, rows, cols))
        scales = rng.integers(1, 256, (experts, -(-rows // 8), -(-cols // 4))) / 256
        tensors[beginning + name] = ("F8_E4M3", codes)
        tensors[f"{beginning}{name}_scale_inv"] = ("F32", scales)
        values[name] = plain_fp8(codes, scales, (8, 4)).swapaxes(1, 2)
    weights = Checkpoint(write_checkpoint(tmp_path / "m", config, tensors)).layer("3").read()
    half = model.ffn.d_expert
    assert np.array_equal(weights.gate, values["gate_up_proj"][:, :half])
    assert np.array_equal(weights.up, values["gate_up_proj"][:, half:])
    assert np.array_equal(weights.down, values["down_proj"])
    # Elements and scales are kept, turned; the blocks are 8 inputs long.
    kept = group_expert(weights.expert(1), Format.FP8, 8, weights.stored_expert(1))
    codes = tensors[f"{beginning}gate_up_proj"][1][1].T
    assert np.array_equal(kept.up.codes, codes[half:])
    for name, matrix in vars(kept).items():
        assert np.array_equal(matrix.values().astype(np.float32), getattr(weights, name)[1])


def test_scales_of_experts_one_below_the_other_are_refused(tmp_path):
    path = DATA / "dbrx_s0.npz"
    tensors = published("dbrx", read_vector(path).weights, 0)
    name = "transformer.blocks.0.ffn.experts.mlp.w1"
    tensors[name] = ("F8_E4M3", np.ones(tensors[name][1].shape))
    tensors[f"{name}_scale_inv"] = ("F32", np.ones((1, 1)))
    folder = write_checkpoint(tmp_path / "m", config_of_vector(path), tensors)
    with raises(f"{folder / 'model.safetensors'}: {name}: must be one of F32, F16, BF16, not F8_E4M3"):
        Checkpoint(folder).layer("0").read()


def test_a_row_of_half_a_byte(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_file({"a": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}, bytes(3)))
    with raises(f"{path}: a: must have an even last axis with F4, not (2, 3)"):
        TensorFile(path).array("a")


def test_a_dtype_that_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_file({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, EIGHT))
    with raises(f"{path}: a: must be one of {', '.join(tensor_file.DTYPES)}, not C64"):
        TensorFile(path).array("a")
    with raises(f"{path}: b: is missing"):
        TensorFile(path).array("b")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_formats_with_all_their_values(tmp_path, dtype):
    # Subnormals and the largest values are kept: what hardware flushes is the hardware's matter.
    patterns = np.arange(1 << 16, dtype=np.uint32)
    bits = {"F32": patterns << 16 | 1, "F16": patterns, "BF16": patterns}[dtype]
    view = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}[dtype]
    values = bits.astype(view).view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype])
    if dtype == "BF16":
        values = (bits << 16).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    values = values[: len(values) // 256 * 256].reshape(-1, 256)
    config = deepseek_config(256, 4, n_routed_experts=len(values))
    beginning = "model.layers.0.mlp."
    tensors: Tensors = {
        f"{beginning}gate.weight": (dtype, values),
        f"{beginning}gate.e_score_correction_bias": ("F32", np.zeros(len(values))),
        f"{beginning}experts.0.gate_proj.weight": ("F16", np.ones((4, 256))),
        f"{beginning}experts.0.up_proj.weight": ("F16", np.ones((4, 256))),
        f"{beginning}experts.0.down_proj.weight": ("F16", np.ones((256, 4))),
    }
    folder = write_checkpoint(tmp_path / "m", config, tensors)
    router = Checkpoint(folder).layer("0").read([0]).router
    assert router.tobytes() == values.astype(np.float32).tobytes()


# Only the layer that is named is read.


def two_layers(tmp_path: Path) -> tuple[Path, LayerWeights]:
    """Write layers 1 and 2 of a Mixtral model to a shard each; return the weights of layer 2."""
    vector = read_vector(MIXTRAL)
    weights = [random_weights(vector.model, seed) for seed in (1, 2)]
    shards = [published("mixtral", layer, number) for number, layer in enumerate(weights, 1)]
    return write_checkpoint(tmp_path / "m", config_of_vector(MIXTRAL), *shards), weights[1]


def test_shards_of_other_layers_are_not_opened(tmp_path):
    folder, weights = two_layers(tmp_path)
    (folder / "model-00001-of-00002.safetensors").unlink()
    checkpoint = Checkpoint(folder)
    assert_same(checkpoint.layer("2").read(), weights)
    with raises(f"{folder / 'model-00001-of-00002.safetensors'}: cannot be read: No such file or directory"):
        checkpoint.layer("1").read()


def test_bytes_of_other_layers_are_not_touched(tmp_path):
    # Another layer of 64 GiB that are a hole in the file: to read it would take minutes.
    hole = 1 << 36
    vector = read_vector(MIXTRAL)
    one = file_bytes(published("mixtral", vector.weights, 1))
    (length,) = struct.unpack("<Q", one[:8])
    header, data = json.loads(one[8 : 8 + length]), one[8 + length :]
    header["model.layers.0.block_sparse_moe.gate.weight"] = {
        "dtype": "BF16",
        "shape": [hole // 2],
        "data_offsets": [len(data), len(data) + hole],
    }
    folder = write_checkpoint(tmp_path / "m", config_of_vector(MIXTRAL), {})
    path = folder / "model.safetensors"
    path.write_bytes(raw_file(header, data))
    os.truncate(path, path.stat().st_size + hole)
    checkpoint = Checkpoint(folder)
    assert sorted(checkpoint.layers) == ["model.layers.0", "model.layers.1"]
    assert_same(checkpoint.layer("1").read(), vector.weights)


def test_values_of_other_layers_may_be_anything(tmp_path):
    vector = read_vector(MIXTRAL)
    tensors = published("mixtral", vector.weights, 1)
    tensors |= {
        name.replace("layers.1", "layers.0"): (dtype, np.full_like(array, np.nan))
        for name, (dtype, array) in tensors.items()
    }
    folder = write_checkpoint(tmp_path / "m", config_of_vector(MIXTRAL), tensors)
    assert_same(Checkpoint(folder).layer("1").read(), vector.weights)


# Which layers there are.


def test_layers_of_two_stacks(tmp_path):
    path = DATA / "switch_transformers_s0.npz"
    vector = read_vector(path)
    tensors = published("switch_transformers", vector.weights, 1)
    tensors |= {
        name.replace("encoder.block.1.layer.1", "decoder.block.1.layer.2"): (dtype, 2 * array)
        for name, (dtype, array) in tensors.items()
    }
    folder = write_checkpoint(tmp_path / "m", config_of_vector(path), tensors)
    checkpoint = Checkpoint(folder)
    with raises(f"layer: must be one of encoder.block.1, decoder.block.1 in {folder}, not 1"):
        checkpoint.layer("1")
    assert np.array_equal(checkpoint.layer("encoder.block.1").read().up, vector.weights.up)
    assert np.array_equal(checkpoint.layer("decoder.block.1").read().up, 2 * vector.weights.up)


def test_a_layer_that_is_not_there(tmp_path):
    folder, _ = two_layers(tmp_path)
    with raises(f"layer: must be an MoE layer of {folder} (1..2), not 3"):
        Checkpoint(folder).layer("3")
    with raises(f"layer: must be an MoE layer of {folder} (1..2), which is missing"):
        Checkpoint(folder).layer(None)


# Files that are not sound.

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def entry(**changes: object) -> dict[str, object]:
    """Return a header with one tensor of 8 bytes, changed."""
    return {"a": GOOD["a"] | changes}


def pair(first: list[int], second: list[int]) -> dict[str, object]:
    """Return a header with two tensors at byte offsets."""
    return {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in {"a": first, "b": second}.items()
    }


DTYPES = ", ".join(ELEMENT_BITS)
OFFSETS = (
    "a.data_offsets: must be two whole numbers, the first not above the second, in 0..8 (bytes of data that"
    " are there), not "
)
SHAPE = f"a.shape: must be at most 8 whole numbers in 0..{1 << 48}, not "
EIGHT = bytes(8)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must have at least 8 bytes, not 0"),
    "shorter than the length": (b"\x08\0\0", "must have at least 8 bytes, not 3"),
    "header beyond the file": (struct.pack("<Q", 100) + b"{}", "header length: must be in 2..2, not 100"),
    "huge header": (b"\xff" * 16, f"header length: must be in 2..8, not {(1 << 64) - 1}"),
    "header of nothing": (bytes(16), "header length: must be in 2..8, not 0"),
    "truncated header": (
        raw_file(GOOD, EIGHT)[:40],
        f"header length: must be in 2..32, not {len(json.dumps(GOOD))}",
    ),
    "no object": (raw_file(b"[1]"), "header: must begin with '{', not b'['"),
    "no JSON": (raw_file(b'{"a":'), "header: is not valid JSON: Expecting value: line 1 column 6 (char 5)"),
    "more than JSON": (raw_file(b"{}x"), "header: is not valid JSON: Extra data: line 1 column 3 (char 2)"),
    "no UTF-8": (raw_file(b'{"\xff":1}'), "header: is not UTF-8: invalid start byte"),
    "a name twice": (raw_file(b'{"a":1,"a":2}'), "a: is there twice"),
    "a key twice": (raw_file(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "dtype: is there twice"),
    "no table": (
        raw_file({"a": [1]}),
        "a: must have dtype, shape and data_offsets, no more, not [1]",
    ),
    "a key too many": (
        raw_file(entry(x=1), EIGHT),
        f"a: must have dtype, shape and data_offsets, no more, not {GOOD['a'] | {'x': 1}}",
    ),
    "unknown dtype": (raw_file(entry(dtype="F7"), EIGHT), f"a.dtype: must be one of {DTYPES}, not 'F7'"),
    "dtype no text": (raw_file(entry(dtype=[1]), EIGHT), f"a.dtype: must be one of {DTYPES}, not [1]"),
    "negative axis": (raw_file(entry(shape=[-2]), EIGHT), f"{SHAPE}[-2]"),
    "axis no number": (raw_file(entry(shape=[2.0]), EIGHT), f"{SHAPE}[2.0]"),
    "axis true": (raw_file(entry(shape=[True]), EIGHT), f"{SHAPE}[True]"),
    "enormous axis": (raw_file(entry(shape=[1 << 4000]), EIGHT), f"{SHAPE}[a number of 4001 bits]"),
    "many axes": (raw_file(entry(shape=[1] * 9), EIGHT), f"{SHAPE}[1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    "shape no list": (raw_file(entry(shape=2), EIGHT), f"{SHAPE}2"),
    "offsets beyond the file": (raw_file(entry(data_offsets=[0, 9]), EIGHT), f"{OFFSETS}[0, 9]"),
    "negative offset": (raw_file(entry(data_offsets=[-8, 0]), EIGHT), f"{OFFSETS}[-8, 0]"),
    "offsets the wrong way": (raw_file(entry(data_offsets=[8, 0]), EIGHT), f"{OFFSETS}[8, 0]"),
    "three offsets": (raw_file(entry(data_offsets=[0, 8, 8]), EIGHT), f"{OFFSETS}[0, 8, 8]"),
    "offset no number": (raw_file(entry(data_offsets=[0, "8"]), EIGHT), f"{OFFSETS}[0, '8']"),
    "truncated data": (
        raw_file(GOOD, bytes(7)),
        f"{OFFSETS}[0, 8]".replace("0..8", "0..7"),
    ),
    "a gigabyte in a kilobyte": (
        raw_file(entry(shape=[1 << 28], data_offsets=[0, 1 << 30]), EIGHT),
        f"{OFFSETS}[0, {1 << 30}]",
    ),
    "shape against offsets": (
        raw_file(entry(shape=[1 << 28]), EIGHT),
        f"a: needs {1 << 30} bytes by dtype F32 and shape ({1 << 28},), but its offsets have 8",
    ),
    "dtype against offsets": (
        raw_file(entry(dtype="BF16"), EIGHT),
        "a: needs 4 bytes by dtype BF16 and shape (2,), but its offsets have 8",
    ),
    "half a byte": (
        raw_file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"0"),
        "a: needs 1.5 bytes by dtype F4 and shape (3,), but its offsets have 1",
    ),
    "overlap": (raw_file(pair([0, 5], [4, 8]), EIGHT), "b: overlaps a: it begins at byte 4, that ends at 5"),
    "one inside the other": (
        raw_file(pair([0, 8], [2, 4]), EIGHT),
        "b: overlaps a: it begins at byte 2, that ends at 8",
    ),
    "gap": (
        raw_file(pair([0, 3], [4, 8]), EIGHT),
        "b: must begin where data before it ends, at byte 3, not 4",
    ),
    "gap at the start": (
        raw_file(pair([1, 3], [3, 8]), EIGHT),
        "a: must begin where data before it ends, at byte 0, not 1",
    ),
    "data too many": (raw_file(GOOD, bytes(12)), "has 4 bytes behind its last tensor"),
    "metadata no texts": (raw_file({"__metadata__": {"a": 1}}), "__metadata__: must be texts by name"),
    "a name of two lines": (
        raw_file({"a\nb": 1}),
        r"'a\nb': must have dtype, shape and data_offsets, no more, not 1",
    ),
    "a name without end": (
        raw_file({"a" * 500: 1}),
        f"{'a' * 120}...: must have dtype, shape and data_offsets, no more, not 1",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_not_sound(case, tmp_path, capsys):
    content, message = BAD_FILES[case]
    folder = write_checkpoint(tmp_path / "m", config_of_vector(MIXTRAL), {})
    path = folder / "model.safetensors"
    path.write_bytes(content)
    with raises(f"{path}: {message}"):
        TensorFile(path)
    assert main(["sim", "--model", str(folder), "--layer", "1"]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {path}: {message}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{" + b"[" * (1 << 21), f"header: must have at most {1 << 20} brackets, not {(1 << 21) + 1}"),
        (b'{"a":' + b"[" * (1 << 19), "header: is not valid JSON: "),
        (b'{"a":[' + b"1.5," * (1 << 19), "header: is not valid JSON: "),
        (b'{"a":' + b"1" * (1 << 20), "header: is not valid JSON: "),
    ],
    ids=["brackets", "deep", "numbers", "digits"],
)
def test_hostile_headers_take_little_memory(content, message, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_file(content))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}.*$"):
            TensorFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * len(content)


def test_a_header_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 10)
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_file(GOOD, EIGHT))
    with raises(f"{path}: header length: must be in 2..10, not {len(json.dumps(GOOD))}"):
        TensorFile(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.safetensors", "."):
        with raises(f"{tmp_path / name}: is not a regular file"):
            TensorFile(tmp_path / name)


# Layers that are not sound.


@dataclass(frozen=True)
class Change:
    """What is done to a Mixtral layer's tensors, or to the configuration, and what is said of it."""

    tensors: Callable[[Tensors], object]
    message: str
    config: dict[str, Any] | None = None


ROUTER, W1 = (
    "model.layers.1.block_sparse_moe.gate.weight",
    "model.layers.1.block_sparse_moe.experts.3.w1.weight",
)
PLAIN = "must be one of F32, F16, BF16, F8_E4M3, U8, I8, F4"


NO_ROUTER = (
    "has no router of an MoE layer by a name of family mixtral, such as"
    " model.layers.{layer}.block_sparse_moe.gate.weight"
)


def put(name: str, dtype: str, array: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: (dtype, array)})


def spoilt(name: str, place: tuple[int, ...], value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        array = tensors[name][1].copy()
        array[place] = value
        tensors[name] = ("BF16", array)

    return change


def nothing(_tensors: Tensors) -> None:
    """Change no tensor."""


BAD_LAYERS: dict[str, Change] = {
    "missing": Change(lambda t: t.pop(W1), f"FILE: {W1}: is missing"),
    "missing first": Change(
        lambda t: t.pop(W1.replace("3", "0")), f"FILE: {W1.replace('3', '0')}: is missing"
    ),
    "no router": Change(
        lambda t: t.pop(ROUTER),
        f"FILE: {NO_ROUTER}",
    ),
    "unknown": Change(
        put("model.layers.1.block_sparse_moe.gate.bias", "F32", np.ones(8)),
        "FILE: model.layers.1.block_sparse_moe.gate.bias: unknown tensor in family mixtral with this"
        " configuration",
    ),
    "expert too many": Change(
        put(W1.replace("3", "8"), "F32", np.ones((24, 32))),
        f"FILE: {W1.replace('3', '8')}: unknown tensor in family mixtral with this configuration",
    ),
    "shape": Change(
        put(W1, "BF16", np.ones((32, 24))), f"FILE: {W1}: must have shape (24, 32), not (32, 24)"
    ),
    "rank": Change(put(ROUTER, "BF16", np.ones(256)), f"FILE: {ROUTER}: must have shape (8, 32), not (256,)"),
    "dtype": Change(put(W1, "I32", np.ones((24, 32))), f"FILE: {W1}: {PLAIN}, not I32"),
    "NaN": Change(spoilt(W1, (5, 7), np.nan), f"FILE: {W1}: must be finite, but element (5, 7) is nan"),
    "infinity": Change(
        spoilt(ROUTER, (7, 31), -np.inf), f"FILE: {ROUTER}: must be finite, but element (7, 31) is -inf"
    ),
    "fp8 without scales": Change(
        put(W1, "F8_E4M3", np.ones((24, 32))),
        f"FILE: {W1}: is F8_E4M3 and needs scales, {W1.removesuffix('weight')}scale or {W1}_scale_inv",
    ),
    "fp8 NaN": Change(
        lambda t: t.update(
            {W1: ("F8_E4M3", np.full((24, 32), 0x7F)), f"{W1}_scale_inv": ("F32", np.ones((1, 1)))}
        ),
        f"FILE: {W1}: must be finite, but element (0, 0) is nan",
    ),
    "fp8 too large": Change(
        lambda t: t.update(
            {W1: ("F8_E4M3", np.full((24, 32), 0x7E)), f"{W1}_scale_inv": ("F32", np.full((1, 1), 1e38))}
        ),
        f"FILE: {W1}: must be finite, but element (0, 0) is inf",
    ),
    "scales' shape": Change(
        lambda t: t.update({W1: ("F8_E4M3", np.ones((24, 32))), f"{W1}_scale_inv": ("F32", np.ones((3, 4)))}),
        f"FILE: {W1}_scale_inv: must have shape (1, 1), not (3, 4)",
    ),
    "scales' dtype": Change(
        lambda t: t.update({W1: ("F8_E4M3", np.ones((24, 32))), f"{W1}_scale_inv": ("I32", np.ones((1, 1)))}),
        f"FILE: {W1}_scale_inv: must be one of F32, F16, BF16, F8_E8M0, not I32",
    ),
    "scale NaN": Change(
        lambda t: t.update(
            {W1: ("F8_E4M3", np.ones((24, 32))), f"{W1}_scale_inv": ("F8_E8M0", np.full((1, 1), 0xFF))}
        ),
        f"FILE: {W1}_scale_inv: must be finite, but element (0, 0) is nan",
    ),
    "scales of a plain tensor": Change(
        put(f"{W1}_scale_inv", "F32", np.ones((1, 1))),
        f"FILE: {W1}_scale_inv: unknown tensor in family mixtral with this configuration",
    ),
    "quantised otherwise": Change(
        lambda t: t.update({W1: ("F8_E4M3", np.ones((24, 32))), f"{W1}_scale_inv": ("F32", np.ones((1, 1)))}),
        "CONFIG: config.quantization_config.quant_method: must be one of fp8, mxfp4, not 'gptq'",
        {"quantization_config": {"quant_method": "gptq"}},
    ),
    "blocks of nothing": Change(
        lambda t: t.update({W1: ("F8_E4M3", np.ones((24, 32))), f"{W1}_scale_inv": ("F32", np.ones((1, 1)))}),
        "CONFIG: config.quantization_config.weight_block_size: must be two whole numbers in 1..65536,"
        " not [0, 128]",
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
    ),
    "bits without scales": Change(
        put(W1, "U8", np.ones((24, 16))),
        f"FILE: {W1}: is U8 and needs scales, {W1.removesuffix('weight')}scale or {W1}_scale_inv",
    ),
    "packed shape": Change(
        lambda t: t.update({W1: ("U8", np.ones((24, 32))), f"{W1}_scale_inv": ("U8", np.ones((24, 1)))}),
        f"FILE: {W1}: must have shape (24, 16) or (24, 1, 16), not (24, 32)",
    ),
    "no whole groups": Change(
        lambda t: t.update(
            {
                W1.replace("w1", "w2"): ("U8", np.ones((32, 12))),
                f"{W1.replace('w1', 'w2')}_scale_inv": ("U8", np.ones((32, 1))),
            }
        ),
        f"FILE: {W1.replace('w1', 'w2')}: must hold whole groups of 32, not 24",
    ),
    "another size": Change(
        nothing, f"FILE: {ROUTER}: must have shape (8, 64), not (8, 32)", {"hidden_size": 64}
    ),
    "an impossible size": Change(
        nothing, "CONFIG: config.hidden_size: must be in 1..65536, not 0", {"hidden_size": 0}
    ),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_a_layer_that_is_not_sound(case, tmp_path):
    change = BAD_LAYERS[case]
    tensors = published("mixtral", read_vector(MIXTRAL).weights, 1)
    change.tensors(tensors)
    folder = write_checkpoint(tmp_path / "m", config_of_vector(MIXTRAL) | (change.config or {}), tensors)
    message = change.message.replace("FILE", str(folder / "model.safetensors"))
    with raises(message.replace("CONFIG", str(folder / "config.json"))):
        Checkpoint(folder).layer("1").read()


def test_an_element_of_a_fused_array_is_named_by_its_place(tmp_path):
    tensors, _ = gpt_oss_tensors(np.random.default_rng(6))
    folder = write_checkpoint(tmp_path / "m", GPT_OSS, tensors)
    name = "model.layers.4.mlp.experts.gate_up_proj_bias"
    tensors[name] = ("F32", np.where(np.arange(128) == 101, np.inf, 0).reshape(2, 64))
    write_checkpoint(folder, GPT_OSS, tensors)
    path = folder / "model.safetensors"
    with raises(f"{path}: {name}: must be finite, but element (1, 37) is inf"):
        Checkpoint(folder).layer("4").read()
    tensors[name] = ("F32", np.zeros((2, 64)))
    name = "model.layers.4.mlp.experts.gate_up_proj_scales"
    dtype, exponents = tensors[name]
    tensors[name] = (dtype, np.where(np.arange(256).reshape(2, 64, 2) == 255, 254, exponents))
    write_checkpoint(folder, GPT_OSS, tensors)
    blocks = "model.layers.4.mlp.experts.gate_up_proj_blocks"
    with pytest.raises(
        InputError,
        match=rf"^{re.escape(f'{path}: {blocks}')}: must be finite, but element \(1, 63, \d+\) is -?inf$",
    ):
        Checkpoint(folder).layer("4").read()


def test_ids_of_a_hash_table(tmp_path):
    path = DATA / "deepseek_v4_s1.npz"
    vector, config = read_vector(path), config_of_vector(path)
    if vector.weights.hash_table is None:
        path = DATA / "deepseek_v4_s0.npz"
        vector, config = read_vector(path), config_of_vector(path)
    layer = config["layer_idx"]
    tensors = published("deepseek_v4", vector.weights, layer)
    name, limit = f"layers.{layer}.ffn.gate.tid2eid", vector.model.gating.num_experts
    tensors[name] = ("I32", vector.weights.hash_table)
    folder = write_checkpoint(tmp_path / "m", config, tensors)
    assert_same(Checkpoint(folder).layer(str(layer)).read(), vector.weights)
    table = vector.weights.hash_table.copy()
    table[2, 0] = limit
    write_checkpoint(folder, config, tensors | {name: ("I64", table)})
    with raises(f"{folder / 'model.safetensors'}: {name}: must be in 0..{limit - 1}, not {limit}"):
        Checkpoint(folder).layer(str(layer)).read()
    write_checkpoint(folder, config, tensors | {name: ("F32", table)})
    with raises(f"{folder / 'model.safetensors'}: {name}: must be one of I64, I32, not F32"):
        Checkpoint(folder).layer(str(layer)).read()


# Indices and folders that are not sound.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "index: must be a JSON object, not list"),
        ("{1", "index: is not valid JSON: EXPECTING: line 1 column 2 (char 1)"),
        ('{"a": 1}', "weight_map: must be a table, not None"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "a: FOLDER, not '../x.safetensors'"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "a: FOLDER, not '/etc/x.safetensors'"),
        (r'{"weight_map": {"a": "..\\x.safetensors"}}', r"a: FOLDER, not '..\\x.safetensors'"),
        (r'{"weight_map": {"a": "x\u0000.safetensors"}}', r"a: FOLDER, not 'x\x00.safetensors'"),
        ('{"weight_map": {"a": "config.json"}}', "a: FOLDER, not 'config.json'"),
        ('{"weight_map": {"a": 1}}', "a: FOLDER, not 1"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a: is there twice"),
        ('{"weight_map": {}}', NO_ROUTER),
    ],
)  # fmt: skip
def test_an_index_that_is_not_sound(content, message, tmp_path, capsys):
    folder, _ = two_layers(tmp_path)
    path = folder / "model.safetensors.index.json"
    path.write_text(content)
    message = message.replace("FOLDER", "must be a .safetensors file in the same folder")
    message = message.replace("EXPECTING", "Expecting property name enclosed in double quotes")
    assert main(["sim", "--model", str(folder), "--layer", "1"]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {path}: {message}\n")


def test_an_index_that_names_what_its_shard_has_not(tmp_path):
    folder, _ = two_layers(tmp_path)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][ROUTER] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with raises(f"{folder / 'model-00002-of-00002.safetensors'}: {ROUTER}: is missing"):
        Checkpoint(folder).layer("1").read()


def test_a_folder_without_weights(tmp_path, capsys):
    folder, _ = two_layers(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    with raises(f"{folder}: has neither model.safetensors nor model.safetensors.index.json"):
        Checkpoint(folder)
    # The cycle model needs none.
    assert main(["sim", "--model", str(folder), "--engine", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "m"
    (folder / "config.json").unlink()
    assert main(["sim", "--model", str(folder), "--engine", "model"]) == 2
    missing = f"expertbank: {folder / 'config.json'}: cannot be read: No such file or directory\n"
    assert capsys.readouterr() == ("", missing)


# Any bytes end in one line, or in what they say.


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Return bytes of which some are changed, added or gone."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "delete"]))
        if kind == "set":
            content[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = data.draw(st.sampled_from([b"{", b"9", b'"a":{},', b"-", b"[", b"e9"]))
        else:
            del content[place : place + 1]
    return bytes(content)


@given(st.data())
def test_a_damaged_folder_is_refused_in_one_line_or_read(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp() / "damaged"
    base.mkdir(exist_ok=True)
    folder, _ = two_layers(base)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 4
    path = folder / data.draw(st.sampled_from(names))
    path.write_bytes(damaged(data, path.read_bytes()))
    message = "layer: sound"
    try:
        weights = Checkpoint(folder).layer("1").read()
        assert weights.up.shape[0] <= 8
    except InputError as error:
        message = str(error)
    assert message.startswith((str(folder), "layer: ")) and len(message.splitlines()) == 1


@given(st.data())
def test_a_damaged_file_is_refused_in_one_line_or_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = file_bytes({"a": ("F32", np.arange(4)), "b": ("BF16", np.ones((2, 3)))}, {"x": "y"})
    read_all(path, damaged(data, content))


NUMBERS = st.one_of(st.integers(-2, 20), st.just(1 << 62), st.floats(), st.booleans(), st.none())
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ELEMENT_BITS, "F3"]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)


@given(st.dictionaries(st.text(max_size=3), ENTRIES | NUMBERS, max_size=4), st.binary(max_size=24))
def test_any_header_is_refused_in_one_line_or_read(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    read_all(path, raw_file(json.dumps(header).encode("utf-8", "surrogatepass"), data))


def read_all(path: Path, content: bytes) -> None:
    """Read all tensors of a file; require that bytes add up, or a single line that names the file."""
    path.write_bytes(content)
    try:
        file = TensorFile(path)
        total = 0
        for name, tensor in file.tensors.items():
            total += tensor.end - tensor.begin
            if tensor.dtype in tensor_file.DTYPES and tensor.dtype != "F4":
                assert file.array(name).nbytes == tensor.end - tensor.begin
        (length,) = struct.unpack("<Q", content[:8])
        assert total == len(content) - 8 - length
    except InputError as error:
        message = str(error)
    else:
        message = f"{path}: sound"
    assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1


# Rows of families.


KNOWN = ", ".join(WEIGHT_NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": 1}, "checkpoint.x: unknown key; known are source, layers, blocks, weights"),
        ({"source": 1}, "checkpoint.source: must be text, not 1"),
        ({"layers": ["mlp."]}, "checkpoint.layers: must be texts with {layer} in each, not ['mlp.']"),
        ({"layers": []}, "checkpoint.layers: must be texts with {layer} in each, not []"),
        ({"blocks": [1]}, "checkpoint.blocks: must be a list of texts, not [1]"),
        ({"weights": 1}, "checkpoint.weights: must be a table, not 1"),
        ({"weights": {"w1": {}}}, f"checkpoint.weights.w1: unknown weight; known are {KNOWN}"),
        ({"weights": {"up": {"take": "all"}}}, "checkpoint.weights.up.array: is missing"),
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_rule(changes, message):
    table = read_toml(PRESETS / "families" / "mixtral.toml")
    table["checkpoint"] |= changes
    with raises(message):
        _parse_row("mixtral", table)


# The command line.


@pytest.mark.slow
@pytest.mark.long
def test_a_folders_layer_through_the_verilog(tmp_path, capsys, monkeypatch):
    real = accelerator.build_layer
    # Of the size of a recorded layer, which other tests have built with waveforms.
    monkeypatch.setattr(accelerator, "build_layer", lambda *shape, trace: real(*shape, trace=True))
    path = DATA / "deepseek_v3_s0.npz"
    model = read_vector(path).model
    shards = [published("deepseek_v3", random_weights(model, seed), seed) for seed in (1, 2)]
    folder = write_checkpoint(tmp_path / "m", config_of_vector(path), *shards)
    tiny = str(Path(__file__).parent / "tiny.toml")
    arguments = ["sim", "--model", str(folder), "--design", tiny, "--tokens", "6", "--json", "--layer"]
    results = []
    for layer in ("1", "2"):
        assert main([*arguments, layer]) == 0
        results.append(json.loads(capsys.readouterr().out))
    for layer, result in zip((1, 2), results, strict=True):
        assert result["mismatches"] == 0 and result["cycles"]["rtl"] == result["cycles"]["model"]
        assert result["notes"] == [f"weights of model.layers.{layer} in {folder}, read as float32"]


def test_near_memory_only_a_folders_experts_that_tokens_meet_are_read(tmp_path, monkeypatch):
    path = DATA / "deepseek_v3_s0.npz"
    weights = random_weights(read_vector(path).model, 1)
    folder = write_checkpoint(tmp_path / "m", config_of_vector(path), published("deepseek_v3", weights, 1))
    works = []

    def run(work, design, *, placement, **_options):
        works.append(work)
        return pim_report.run_pim_model(work.model, design, work.reference_ids, "", placement=placement)

    monkeypatch.setattr(pim_report, "run_pim_layer", run)
    tiny = str(Path(__file__).parent / "tiny_pim.toml")
    assert main(["sim", "--model", str(folder), "--layer", "1", "--design", tiny, "--tokens", "1"]) == 0
    (work,) = works
    held = work.weights.held
    assert set(work.reference_ids.ravel()) == set(held)
    assert len(held) < len(weights.up)
    assert np.array_equal(work.weights.up, weights.up[list(held)])
    assert np.array_equal(work.weights.router, weights.router)


def test_experts_alone_have_a_folders_weights(tmp_path):
    folder, weights = two_layers(tmp_path)
    layer = Checkpoint(folder).layer("2")
    alone = plan_experts(str(folder), load_design("fpga"), 3, 2, 1, engine="rtl", own_layer=layer)
    operands = operands_of(alone.plan, 0)
    assert np.array_equal(operands.weights.up, weights.up[:3])
    assert operands.results.shape == (3, 2, 32)


def test_a_presets_name_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "mixtral-8x7b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("mixtral-8x7b").d_model == 4096


FULL = "must be 'full' for a folder, which has its own size"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "3"], "layer: must be an MoE layer of FOLDER (1..2), not 3"),
        ([], "layer: must be an MoE layer of FOLDER (1..2), which is missing"),
        (["--layer", "1", "--scale", "2"], f"scale: {FULL}, not '2'"),
        (["--layer", "1", "--phase", "decode"], "layer: cannot be combined with --phase"),
        (["--layer", "1", "--experts", "9"], "experts: must be in 1..8, not 9"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_a_folder(arguments, message, tmp_path, capsys):
    folder, _ = two_layers(tmp_path)
    assert main(["sim", "--model", str(folder), *arguments]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {message.replace('FOLDER', str(folder))}\n")


def test_a_layer_of_what_is_no_folder(capsys):
    assert main(["sim", "--model", "mixtral-8x7b", "--layer", "1"]) == 2
    assert capsys.readouterr() == (
        "",
        "expertbank: layer: is for a folder with weights, not for mixtral-8x7b\n",
    )
