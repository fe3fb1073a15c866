"""Specs, presets and family rows: what they hold, and the one line that each broken rule gets."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from spec.banks import BankGeometry
from spec.design import Format, RouterPlace
from spec.errors import InputError
from spec.families import family_names, load_family, load_variant, variant_names
from spec.files import PRESETS
from spec.geometry import ImageGeometry
from spec.layout import rows_used
from spec.load import load_design, load_dram, load_model, load_sources, preset_names
from spec.model import FfnSpec, GatingSpec, ModelSpec

MIXTRAL = (PRESETS / "models" / "mixtral-8x7b.toml").read_text()
DEEPSEEK = (PRESETS / "models" / "deepseek-v3.toml").read_text()
PIM = (PRESETS / "designs" / "pim.toml").read_text()
FPGA = (PRESETS / "designs" / "fpga.toml").read_text()
FPGA_INT8 = FPGA.replace('engine = "fpga"', 'engine = "fpga"\nformat = "int8"')
MODELS = {"deepseek-v3", "gpt-oss-20b", "mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "switch-base-128"}
FAMILIES = (
    "afmoe, aria, dbrx, deepseek_v2, deepseek_v3, deepseek_v4, ernie4_5_moe, glm4_moe, gpt_oss, granitemoe,"
    " granitemoeshared, hunyuan_v1_moe, jamba, jetmoe, lfm2_moe, llama4, llama_moe, longcat_flash, minimax,"
    " minimax_m2, mixtral, nemotron_h, nllb_moe, olmoe, openmoe, phimoe, qwen2_moe, qwen3_moe, qwen3_next,"
    " skywork, switch_transformers, yuan"
)


DRAM_STANDARDS = [
    "ddr4-2400",
    "ddr4-3200",
    "ddr5-4800",
    "gddr6-14000",
    "hbm2-2000",
    "hbm3-6400",
    "lpddr5-6400",
]


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


def test_presets():
    assert set(preset_names("models")) >= MODELS
    assert preset_names("designs") == ["fpga", "fpga-deep", "fpga-ecp5", "pim", "pim-small"]
    assert preset_names("dram") == DRAM_STANDARDS
    assert load_model("deepseek-v3").gating.num_groups == 8
    assert load_design("fpga").tile.rows == 16
    assert load_design("pim").tile.cols == 16


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("models", "designs") for name in preset_names(kind)]
)
def test_every_preset_loads_and_names_its_sources(kind, name):
    spec = load_model(name) if kind == "models" else load_design(name)
    assert spec.name == name
    assert load_sources(kind, name)["*"]["grade"] in "ABCD"


def test_parameters_of_a_layer():
    # 47 billion parameters in 32 layers, nearly all of them in experts (arXiv 2401.04088).
    assert load_model("mixtral-8x7b").expert_params == 8 * 3 * 4096 * 14336
    # gpt-oss: three biases per expert.
    assert load_model("gpt-oss-20b").expert_params == 32 * (3 * 2880 * 2880 + 3 * 2880)
    assert load_model("switch-base-128").expert_params == 128 * 2 * 768 * 3072


def test_scaling_rounds_up_to_16():
    model = load_model("deepseek-v3")
    assert model.scaled(1) == model
    small = model.scaled(64)
    assert (small.d_model, small.ffn.d_expert, small.d_shared) == (112, 32, 32)
    assert small.gating == model.gating
    assert load_model("mixtral-8x7b").scaled(1000).d_model == 16
    with raises("scale: must be 'full' or a whole number from 1, not 0"):
        model.scaled(0)


BAD_MODELS = {
    "unknown key": (
        MIXTRAL.replace("d_model", "width"),
        (
            "width: unknown key; known are capacity_fraction, capacity_minimum, capacity_rounding,"
            " capacity_rule, capacity_scope, d_latent, d_model, d_shared, expert_capacity,"
            " expert_input_scale, expert_output_scale, ffn, gating, latent_bias, name, num_dense_layers,"
            " num_moe_layers, output_bias, shared_activation, shared_bias, shared_expert_gate"
        ),
    ),
    "unknown key in a table": (
        MIXTRAL.replace("d_expert", "width"),
        (
            "ffn.width: unknown key; known are activation, alpha, bias, clamped, d_expert, gate_matrix,"
            " limit, second_up"
        ),
    ),
    "missing key": (MIXTRAL.replace("d_model = 4096\n", ""), "d_model: is missing"),
    "missing table": ("name = 'x'\nd_model = 4\n", "gating: is missing"),
    "wrong type": (
        MIXTRAL.replace("d_model = 4096", "d_model = '4096'"),
        "d_model: must be of type int, not '4096'",
    ),
    "true is no number": (
        MIXTRAL.replace("top_k = 2", "top_k = true"),
        "gating.top_k: must be of type int, not True",
    ),
    "not a table": (
        MIXTRAL.split("[ffn]")[0].replace("num_moe_layers = 32", "ffn = 3"),
        "ffn: must be a table, not 3",
    ),
    "unknown score": (
        MIXTRAL.replace('"softmax"', '"hardmax"'),
        "gating.score: must be one of softmax, sigmoid, sqrt_softplus, none, not 'hardmax'",
    ),
    "unknown capacity rule": (
        MIXTRAL.replace("d_model = 4096", "d_model = 4096\ncapacity_rule = 'nllb'"),
        "capacity_rule: must be one of switch, gshard, batch_priority, score_priority, not 'nllb'",
    ),
    "zero size": (MIXTRAL.replace("d_model = 4096", "d_model = 0"), "d_model: must be in 1..65536, not 0"),
    "k above E": (
        MIXTRAL.replace("top_k = 2", "top_k = 9"),
        "gating.top_k: must be in 1..min(num_experts=8, 64), not 9",
    ),
    "groups do not divide": (
        DEEPSEEK.replace("num_groups = 8", "num_groups = 7"),
        "gating.num_groups: must divide num_experts=256, not 7",
    ),
    "more groups kept than there are": (
        DEEPSEEK.replace("topk_groups = 4", "topk_groups = 9"),
        "gating.topk_groups: must be in 1..8, not 9",
    ),
    "prototypes that do not divide the experts": (
        MIXTRAL.replace("num_experts = 8\ntop_k = 2", "num_experts = 7\ntop_k = 2\nnum_prototypes = 2"),
        "gating.num_prototypes: must divide num_experts=7 and top_k=2, not 2",
    ),
    "more prototypes than choices": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nnum_prototypes = 4"),
        "gating.num_prototypes: must be in 1..2, not 4",
    ),
    "prototypes and groups": (
        DEEPSEEK.replace("num_groups = 8", "num_groups = 8\nnum_prototypes = 2"),
        "gating.num_prototypes: must be 1 with groups, of which only some take part, not 2",
    ),
    "prototypes and SparseMixer": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nnum_prototypes = 2\nselection = 'sparse_mixer'"),
        ("gating.selection: must be 'top_k' with a selection bias, groups or prototypes, not 'sparse_mixer'"),
    ),
    "negative deviation": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nlogit_deviation = -1"),
        "gating.logit_deviation: must be in 0.0..65536, not -1.0",
    ),
    "unknown router": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nrouter = 'hash'"),
        "gating.router: must be one of linear, attention, mlp, not 'hash'",
    ),
    "no width between the router's layers": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nrouter = 'mlp'"),
        "gating.router_width: must be above 0 with router='mlp', and 0 without, not 0",
    ),
    "a width between layers that are not there": (
        MIXTRAL.replace("top_k = 2", "top_k = 2\nrouter_width = 8"),
        "gating.router_width: must be above 0 with router='mlp', and 0 without, not 8",
    ),
    "second up matrix without a gate": (
        MIXTRAL.replace("d_expert = 14336", "d_expert = 14336\nsecond_up = true\ngate_matrix = false"),
        "ffn.second_up: needs a gate matrix, no biases and nothing that is clamped",
    ),
    "second up matrix with biases": (
        MIXTRAL.replace("d_expert = 14336", "d_expert = 14336\nsecond_up = true\nbias = true"),
        "ffn.second_up: needs a gate matrix, no biases and nothing that is clamped",
    ),
    "input scale": (
        MIXTRAL.replace("d_model = 4096", "d_model = 4096\nexpert_input_scale = 0.0"),
        "expert_input_scale: must be in 0..65536 (both excluded), not 0.0",
    ),
    "least capacity of none": (
        MIXTRAL.replace("d_model = 4096", "d_model = 4096\ncapacity_minimum = 4"),
        "capacity_fraction: must be above 0 with a rounding or a minimum of its own, not 0.0",
    ),
    "rounded capacity of none": (
        MIXTRAL.replace("d_model = 4096", "d_model = 4096\ncapacity_rounding = 'even'"),
        "capacity_fraction: must be above 0 with a rounding or a minimum of its own, not 0.0",
    ),
    "infinite": (DEEPSEEK.replace("scale = 2.5", "scale = inf"), "gating.scale: must be finite, not inf"),
    "not a number": (DEEPSEEK.replace("scale = 2.5", "scale = nan"), "gating.scale: must be finite, not nan"),
    "huge whole number": (
        DEEPSEEK.replace("scale = 2.5", "scale = 1" + "0" * 310),
        f"gating.scale: must be of type float, not 1{'0' * 310}",
    ),
    "truncated": (
        MIXTRAL[: MIXTRAL.index("[gating]") + 5],
        "is not valid TOML: Expected ']' at the end of a table declaration (at end of document)",
    ),
    "bad source": (MIXTRAL.replace('grade = "A"', 'grade = "F"'), None),
}


@pytest.mark.parametrize(("text", "message"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_bad_model_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "m.toml"
    path.write_text(text)
    if message is None:
        entry = load_sources("models", "mixtral-8x7b")["*"] | {"grade": "F"}
        message = f"sources.*: must be {{source = '...', grade = one of A, B, C, D}}, not {entry!r}"
    with raises(f"{path}: {message}"):
        load_model(str(path))


BAD_DESIGNS = {
    "array of a pim": (
        FPGA.replace('engine = "fpga"', 'engine = "pim"'),
        "array: must not be given for engine pim",
    ),
    "no array": (re.sub(r"\[array\]\n(\w.*\n)+", "", FPGA), "array: must be given for engine fpga"),
    "a clock that is not the DRAM's": (
        PIM.replace("clock_hz = 1e9", "clock_hz = 8e8"),
        "clock_hz: must be 1e+09, a cycle for each tCK (clock_ps=1000), not 8e+08",
    ),
    "unknown DRAM": (
        PIM.replace("hbm2-2000", "hbm9"),
        f"pim.dram: is neither a preset ({', '.join(DRAM_STANDARDS)}) nor a .toml file: 'hbm9'",
    ),
    "more units than lanes": (
        PIM.replace("banks_per_unit = 1", "banks_per_unit = 3"),
        "pim.banks_per_unit: must be a power of two in 1..4, not 3",
    ),
    "unknown place of the router": (
        PIM.replace('router = "own"', 'router = "gate"'),
        "pim.router: must be one of own, banks, not 'gate'",
    ),
    "unknown check bits": (
        PIM.replace('router = "own"', 'router = "own"\necc = "parity"'),
        "pim.ecc: must be one of none, secded, not 'parity'",
    ),
    "router in int8 banks": (
        PIM.replace('router = "own"', 'router = "banks"').replace(
            'engine = "pim"', 'engine = "pim"\nformat = "int8"'
        ),
        (
            "pim.router: must be own with format int8 (the lanes beside the banks are int8 then, the router"
            " is bf16), not banks"
        ),
    ),
    "unknown key": (
        FPGA.replace("latency_cycles", "latency"),
        ("memory.latency: unknown key; known are burst_beats, latency_cycles, max_outstanding, width_bits"),
    ),
    "not a power of two": (
        FPGA.replace("rows = 16", "rows = 12"),
        "array.rows: must be a power of two in 1..256, not 12",
    ),
    "dual multipliers of one row": (
        FPGA.replace("rows = 16", 'rows = 1\nmultiplier = "dual"').replace("act_lanes = 4", "act_lanes = 1"),
        "array.multiplier: must be single with rows=1 (a dual one multiplies for two rows), not dual",
    ),
    "dual multipliers in bf16": (
        FPGA.replace("rows = 16", 'rows = 16\nmultiplier = "dual"'),
        (
            "array.multiplier: must be single with format bf16 (a dual one multiplies with weights of at most"
            " 8 bits), not dual"
        ),
    ),
    "unknown multiplier": (
        FPGA.replace("rows = 16", 'rows = 16\nmultiplier = "triple"'),
        "array.multiplier: must be one of single, dual, not 'triple'",
    ),
    "burst crosses 4 KiB": (
        FPGA.replace("burst_beats = 16", "burst_beats = 256"),
        (
            "memory.burst_beats: times width_bits=256 must not cross 4 KiB, but a burst of"
            " 256 beats has 8192 bytes"
        ),
    ),
    "unknown format": (
        FPGA_INT8.replace("int8", "int5"),
        "format: must be one of bf16, int8, fp8, mxfp4, int4, w4a8, not 'int5'",
    ),
    "int8 sums that overflow": (
        FPGA_INT8.replace("max_d_expert = 32768", "max_d_expert = 133145"),
        ("max_d_expert: must be at most 133144 with format int8 (sums of 127 * 127 in an int32), not 133145"),
    ),
    "an int8 tile below a beat": (
        FPGA_INT8.replace("burst_beats = 16", "burst_beats = 1").replace(
            "width_bits = 256", "width_bits = 4096"
        ),
        (
            "memory.width_bits: must divide a tile of rows x cols = 256 int8 weights,"
            " not 512 elements (4096 bits)"
        ),
    ),
    "a block without deep pipelines": (
        FPGA.replace('engine = "fpga"', 'engine = "fpga"\ndeep = ["gate", "intake"]'),
        "deep.1: must be one of gate, dispatch, expert, combine, not 'intake'",
    ),
    "a deep block twice": (
        FPGA.replace('engine = "fpga"', 'engine = "fpga"\ndeep = ["gate", "gate"]'),
        "deep: must name each block once, not gate, gate",
    ),
    "deep pipelines beside banks": (
        PIM.replace('engine = "pim"', 'engine = "pim"\ndeep = ["gate"]'),
        "deep: must be empty for engine pim (its pipelines are short), not gate",
    ),
    "unknown engine": (
        FPGA.replace('engine = "fpga"', 'engine = "gpu"'),
        "engine: must be one of fpga, pim, not 'gpu'",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_DESIGNS.values(), ids=BAD_DESIGNS.keys())
def test_a_bad_design_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "d.toml"
    path.write_text(text)
    with raises(f"{path}: {message}"):
        load_design(str(path))


BAD_TIMINGS = {
    "rc": (("rc = 48", "rc = 46"), "timing.rc: must be at least ras + rp - 1 = 34 + 14 - 1, not 46"),
    "rfc": (("rfc = 350", "rfc = 4000"), "timing.rfc: must be below refi=3900, not 4000"),
    "refi": (
        ("rfc = 350", "rfc = 3850"),
        "timing.refi: must be above rp + rfc + ras + rp = 3912, or nothing runs between refreshes, not 3900",
    ),
    "ccd": (("ccd_l = 4", "ccd_l = 1"), "timing.ccd_l: must be at least ccd_s=2, not 1"),
    "zero": (("rp = 14", "rp = 0"), "timing.rp: must be in 1..1048576, not 0"),
    "ras": (("ras = 34", "ras = 18"), "timing.ras: must be at least rcd_rd + rtp = 14 + 5, not 18"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TIMINGS.values(), ids=BAD_TIMINGS.keys())
def test_contradicting_timings_are_one_line(tmp_path, change, message):
    path = tmp_path / "d.toml"
    text = (PRESETS / "dram" / "hbm2-2000.toml").read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with raises(f"{path}: {message}"):
        load_dram(str(path))


def test_experts_that_do_not_fit_the_banks_are_refused():
    with raises("pim.dram: has 65536 rows per bank, but the 129 experts of channel 0 need 693504"):
        BankGeometry.of(load_model("deepseek-v3"), load_design("pim"))
    with raises(
        "pim.dram: has 65536 rows per bank, but the 129 experts and the router of channel 0 need 693728"
    ):
        BankGeometry.of(load_model("deepseek-v3"), with_banked_router(load_design("pim")))


def with_banked_router(design):
    return dataclasses.replace(design, pim=dataclasses.replace(design.pim, router=RouterPlace.BANKS))


def test_the_router_in_the_banks_lies_behind_the_experts_of_channel_0():
    model = load_model("qwen3-30b-a3b").scaled(16)
    own, banked = (
        BankGeometry.of(model, design)
        for design in (load_design("pim"), with_banked_router(load_design("pim")))
    )
    router = banked.image.router
    assert router is not None
    assert own.image.router is None
    # 128 experts in blocks of 16, 2048 / 16 inputs in tiles of 16.
    assert (router.hidden_blocks, router.in_tiles) == (8, 8)
    mine, others = banked.bases(banked.round_robin()), own.bases(own.round_robin())
    assert mine[1] == others[1]
    assert mine[0].pop(banked.router_number) == len(others[0]) * own.reserved(own.image.routed)
    assert mine[0] == others[0]
    assert banked.image.gate.load_beats == 0
    more = np.subtract(rows_used(banked.round_robin(), banked), rows_used(own.round_robin(), own))
    assert more.tolist() == [banked.reserved(router), 0]


def test_unknown_presets_and_missing_files(tmp_path):
    listed = f"'expertbank models' lists {len(preset_names('models'))}"
    with raises(f"model: is neither a preset ({listed}) nor a .toml file: 'gpt-5'"):
        load_model("gpt-5")
    designs = "fpga, fpga-deep, fpga-ecp5, pim, pim-small"
    with raises(f"design: is neither a preset ({designs}) nor a .toml file: 'tpu'"):
        load_design("tpu")
    for suffix in ("toml", "json"):
        path = tmp_path / f"none.{suffix}"
        with raises(f"{path}: cannot be read: No such file or directory"):
            load_model(str(path))


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "m.toml"
    path.write_bytes(b"\xff\xfe")
    with raises(f"{path}: is not UTF-8: invalid start byte"):
        load_model(str(path))
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with raises(f"{path}: must be at most 1048576 bytes, not 1048577"):
        load_model(str(path))


def test_check_bits_are_of_whole_words():
    design = load_design("pim").with_secded()
    assert design.pim is not None
    assert (design.pim.stored_burst_bytes, design.pim.weight_cycles) == (36, 17)
    small = dataclasses.replace(design.pim.dram, burst_bytes=4)
    with raises(
        "ecc: must be none with bursts of 4 bytes, which are no words of 8, not secded",
    ):
        dataclasses.replace(design.pim, dram=small, banks_per_unit=1, act_lanes=1)


def test_a_unit_must_find_its_place_in_a_burst():
    """Hidden activations of all units go into one register word: 32 of them in int8, 16 in bf16."""
    design = load_design("pim", "int8")
    assert design.pim is not None
    dram = dataclasses.replace(design.pim.dram, banks_per_group=8)
    wide = dataclasses.replace(design, pim=dataclasses.replace(design.pim, dram=dram))
    assert (wide.tile.rows, wide.tile.cols) == (32, 32)
    with raises(
        "pim.banks_per_unit: leaves 32 units in 32 banks; there must be 1..16 (the bf16 elements of a burst)"
    ):
        dataclasses.replace(wide, format=Format.BF16)


def test_scales_must_fit_a_row_of_a_tile():
    design = load_design("fpga", "int8")
    assert design.array is not None
    narrow = dataclasses.replace(
        design,
        array=dataclasses.replace(design.array, rows=32, cols=4),
        stream_lanes=4,
        gate=dataclasses.replace(design.gate, lanes=64),
    )
    model = load_model("gpt-oss-20b").scaled(64)
    ImageGeometry.of(dataclasses.replace(model, ffn=dataclasses.replace(model.ffn, bias=False)), narrow)
    with raises(
        "fpga: array.cols: must be at least 8 in int8 (a row of a tile holds a channel's scale and bias),"
        " not 4"
    ):
        ImageGeometry.of(model, narrow)


def test_a_model_must_fit_the_design():
    design = load_design("fpga")
    with raises("d_model: must be at most max_d_model=8192 of design fpga, not 16384"):
        design.check_model(16384, 64, 0, 8)


# Families.


def test_families():
    assert family_names() == FAMILIES.split(", ")
    for name in family_names():
        row = load_family(name)
        of_other_code = name in ("llama_moe", "openmoe", "skywork", "yuan")
        assert row.source.startswith("transformers ") is not of_other_code
        assert {"router", "up", "down"} <= set(row.weights)


def test_a_configuration_of_hugging_face(tmp_path):
    folder = tmp_path / "my-deepseek"
    folder.mkdir()
    config = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 7168,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    model = load_model(str(path))
    assert model.name == "my-deepseek"
    assert model == type(model)(**vars(load_model("deepseek-v3")) | {"name": "my-deepseek"})
    path.write_text(json.dumps(config | {"topk_method": "greedy"}))
    with raises(f"{path}: config.topk_method: must be 'noaux_tc' in family deepseek_v3, not 'greedy'"):
        load_model(str(path))
    path.write_text(json.dumps(config | {"n_shared_experts": "one"}))
    with raises(f"{path}: config.n_shared_experts: must be a whole number from 0, not 'one'"):
        load_model(str(path))
    path.write_text(json.dumps(config | {"norm_topk_prob": 1}))
    with raises(f"{path}: config.norm_topk_prob: must be true or false, not 1"):
        load_model(str(path))
    path.write_text(json.dumps(config | {"model_type": "abacus"}))
    known = sum(
        len(row.model_types)
        for row in (*map(load_family, family_names()), *map(load_variant, variant_names()))
    )
    with raises(
        f"{path}: model_type: must be one of the {known} with MoE layers in docs/families.md, not 'abacus'"
    ):
        load_model(str(path))
    path.write_text("[]")
    with raises(f"{path}: must be a JSON object, not list"):
        load_model(str(path))
    path.write_text('{"model_type": ')
    with raises(f"{path}: is not valid JSON: Expecting value: line 1 column 16 (char 15)"):
        load_model(str(path))


ROW = (PRESETS / "families" / "mixtral.toml").read_text()
BAD_ROWS = {
    "unknown table": (
        ROW + "[router]\n",
        (
            "router: unknown key; known are agrees, aliases, architectures, checkpoint, defaults, firsts,"
            " ignored, layers, model, model_types, nested, requires, source, usual, weights"
        ),
    ),
    "no source": (ROW.replace("source =", "# source ="), "source: is missing or of the wrong type"),
    "unknown weight": (
        ROW.replace("\ndown =", "\nsideways ="),
        (
            "weights.sideways: unknown weight; known are"
            " router, router_query, router_key, router_hidden, logit_bias, selection_bias, gate, up,"
            " second_up, down, gate_bias, up_bias, down_bias, shared_gate, shared_up, shared_down,"
            " shared_gate_bias, shared_up_bias, shared_down_bias, shared_expert_gate, hash_table,"
            " latent_in, latent_in_bias, latent_out, latent_out_bias,"
            " output_bias"
        ),
    ),
    "unknown part": (
        ROW.replace('"first_half"', '"third"'),
        ("weights.gate.take: must be one of all, first_half, second_half, even, odd, not 'third'"),
    ),
    "unknown option": (
        ROW.replace('default = "silu"', 'fallback = "silu"'),
        (
            "model.ffn.activation.fallback: unknown key;"
            " known are alike, by_layer, combine, count, default, keys, only, other, otherwise, replace,"
            " rest, times, values, when_false, when_true"
        ),
    ),
    "no keys": (
        ROW.replace('["hidden_size"]', "[]"),
        "model.d_model.keys: must be a list of configuration keys, not []",
    ),
    "two keys and no way": (
        ROW.replace('["hidden_size"]', '["a", "b"]'),
        (
            "model.d_model.combine: must be one of sum, product, quotient, periodic, complement, share,"
            " sample_deviation where there are several keys, and absent or complement otherwise, not None"
        ),
    ),
    "half a choice": (
        ROW.replace('["hidden_size"]', '["hidden_size"], when_true = 3'),
        "model.d_model: needs when_true, when_false and a single key",
    ),
    "requires one value": (
        ROW + '[requires]\nhidden_act = "silu"\n',
        "requires.hidden_act: must be a list of values, not 'silu'",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_family_row_is_one_line(tmp_path, text, message):
    path = tmp_path / "mixtral.toml"
    path.write_text(text)
    with raises(f"{path}: {message}"):
        load_family("mixtral", folder=tmp_path)


def test_specs_are_frozen():
    spec = ModelSpec(name="x", d_model=4, gating=GatingSpec(num_experts=2, top_k=1), ffn=FfnSpec(d_expert=4))
    with pytest.raises(AttributeError, match=r"\Acannot assign to field 'd_model'\Z"):
        spec.d_model = 5
