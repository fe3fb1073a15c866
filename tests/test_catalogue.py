"""The model presets against the catalogue, the survey, published totals, and configurations as published."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from golden.layer import layer
from golden.weights import random_token_ids, random_tokens, random_weights
from sim.catalogue import page
from sim.cli import main
from sim.request import Request
from sim.routing import Routing
from spec.catalogue import (
    Backbone,
    Entry,
    Published,
    SurveyRow,
    all_expert_params,
    survey_differences,
    total_params,
)
from spec.errors import InputError
from spec.families import KeyKind, config_keys, family_names, load_config, load_family, read_config
from spec.files import PRESETS
from spec.hardware import check_hardware, lacking_terms
from spec.load import load_design, load_entry, load_model, load_sources, preset_names
from spec.model import Activation, FfnSpec, GatingSpec, ModelSpec, Normalise
from tests.reference import reference_layer

DATA = Path(__file__).parent / "data"
NAMES = preset_names("models")
CATALOGUE = {row["name"]: row for row in json.loads((DATA / "moe_models.json").read_text())}
CONFIGS = sorted(path.stem for path in (DATA / "configs").glob("*.json"))
with (DATA / "survey_models.csv").open() as file:
    SURVEY = list(csv.DictReader(file))

# Presets whose title is no row of the catalogue: only the survey has them.
OF_THE_SURVEY_ALONE = {"gshard-37.5b", "gshard-150b", "openmoe-base-16e"}
# Presets that follow the release where the catalogue gives the paper's dimensions, with as many parameters.
OF_THE_RELEASE = {"switch-base-128"}


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


def row_of(name: str) -> dict:
    """Return a preset's row in the catalogue."""
    published = load_entry(name)[1].catalogue
    assert published is not None
    return CATALOGUE[published.title]


def test_every_row_has_a_preset():
    titles = [load_entry(name)[1].catalogue.title for name in NAMES]
    assert len(titles) == len(set(titles)) == 66
    assert set(CATALOGUE) <= set(titles)
    assert len(CATALOGUE) == 63
    alone = {name for name, title in zip(NAMES, titles, strict=True) if title not in CATALOGUE}
    assert alone == OF_THE_SURVEY_ALONE
    assert all(re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", name) for name in NAMES)


def number(text: str) -> float:
    """Return a figure of the survey in billions, 0 where there is none."""
    return 0.0 if text == "-" else float(text.removesuffix("B"))


def test_every_row_of_the_survey_is_recorded_as_printed():
    printed = []
    for row in SURVEY:
        if row["dense_moe_layers"] == "-":
            # The one row without dimensions.
            assert (row["model"], row["parameters"]) == ("LLaMA4", "2000B")
            continue
        dense, moe = row["dense_moe_layers"].split("/")
        routed, shared = row["active_experts"].split("+")
        printed.append(
            SurveyRow(
                model=row["model"],
                total_params_b=number(row["parameters"]),
                dense_layers=int(dense),
                moe_layers=int(moe),
                d_model=int(row["d_model"]),
                d_ffn=int(row["d_ffn"]),
                d_expert=int(row["d_expert"]),
                expert_params_b=number(row["expert_parameters"]),
                experts=int(row["experts"]),
                routed=routed,
                shared=int(shared),
            )
        )
    recorded = [entry.survey for _, entry in map(load_entry, NAMES) if entry.survey is not None]
    assert len(recorded) == len(printed) == 48
    assert sorted(recorded, key=repr) == sorted(printed, key=repr)


@pytest.mark.parametrize("name", sorted(set(NAMES) - OF_THE_SURVEY_ALONE))
def test_dimensions_are_the_catalogues(name):
    """Layers, widths, experts, k, scale and so on; products of them, not roundings, are compared."""
    model, row = load_model(name), row_of(name)
    gating = model.gating
    assert model.d_model == row["d_model"]
    assert (model.num_dense_layers, model.num_moe_layers) == (row["n_dense_layers"], row["n_moe_layers"])
    assert gating.num_ffn_experts == row["n_routed"]
    assert gating.top_k == (2 if name.startswith("m6-t") else row["top_k"])
    assert gating.scale == row["gating"]["routed_scaling_factor"]
    assert gating.selection_bias is bool(row["gating"].get("selection_bias"))
    assert gating.num_groups == (row["gating"].get("n_group") or 1)
    assert gating.topk_groups == (row["gating"].get("topk_group") or 1)
    assert gating.weight_applied_to == row["gating"]["weight_applied_to"]
    renormalised = row["gating"].get("renormalise")
    assert (gating.normalise is not Normalise.NONE) is bool(renormalised)
    if isinstance(row["shared_d_ffn"], int) and name != "arctic":
        assert model.d_shared == row["shared_d_ffn"]
    assert model.shared_expert_gate is (row["shared_gate"] is not None)
    if row["d_expert"] is None:
        return
    if name not in OF_THE_RELEASE:
        assert (model.ffn.d_expert, model.ffn.num_matrices) == (row["d_expert"], row["expert_matrices"])
    width = row["expert_matrices"] * row["d_expert"]
    expected = row["n_moe_layers"] * row["n_routed"] * row["d_model"] * width
    assert all_expert_params(model) == pytest.approx(expected, rel=1e-3)


def within_rounding(computed: float, figure: float) -> bool:
    """Whether a number is within 0.1 % of a figure, whose last digit is rounded."""
    digits = len(repr(figure).split(".")[1])
    return abs(computed - figure) <= 1e-3 * computed + 0.5 * 10**-digits


@pytest.mark.parametrize("name", NAMES)
def test_expert_parameters_are_the_published_ones(name):
    model, entry = load_entry(name)
    published = entry.catalogue
    assert published is not None
    if name not in OF_THE_SURVEY_ALONE:
        row = row_of(name)
        assert published.expert_params_b == (row["expert_params_B"] or 0)
        assert published.total_params_b == row["total_params_B"]
        assert (published.organisation, published.year) == (row["organisation"], row["year"])
    if published.expert_params_b:
        assert within_rounding(all_expert_params(model) / 1e9, published.expert_params_b)
    else:
        assert name in OF_THE_SURVEY_ALONE | {"deepseekmoe-2b", "deepseekmoe-145b"}


@pytest.mark.parametrize("name", NAMES)
def test_totals_are_within_one_percent_or_named(name):
    """A reason not to check must hold: either nothing is known of the rest, or the total really differs."""
    model, entry = load_entry(name)
    published, backbone = entry.catalogue, entry.backbone
    assert published is not None
    if backbone is None:
        assert published.unchecked
        return
    error = total_params(model, backbone) / 1e9 / published.total_params_b - 1
    assert (abs(error) <= 0.01) is not bool(published.unchecked), error


def test_a_wrong_dimension_is_seen():
    """Three layers more are beyond the tolerances."""
    model, entry = load_entry("deepseek-v3")
    wrong = dataclasses.replace(model, num_moe_layers=61)
    assert not within_rounding(all_expert_params(wrong) / 1e9, entry.catalogue.expert_params_b)
    assert abs(total_params(wrong, entry.backbone) / 671e9 - 1) > 0.01
    assert "dense / MoE layers: 3/58, not 3/61" in survey_differences(wrong, entry)
    assert within_rounding(1.242, 1.2)
    assert not within_rounding(1.26, 1.2)
    assert not within_rounding(0.35, 0.34)


def test_parameters_of_a_whole_model():
    model = ModelSpec(
        name="small",
        d_model=10,
        d_shared=4,
        num_moe_layers=2,
        gating=GatingSpec(num_experts=3, top_k=1),
        ffn=FfnSpec(d_expert=5),
    )
    experts = 2 * (3 * 3 * 10 * 5 + 3 * 10 + 3 * 10 * 4)
    plain = Backbone(
        vocab_size=7, attention_layers=3, heads=4, kv_heads=2, head_dim=5, dense_ffns=2, d_dense=6
    )
    attention = 10 * 20 + 2 * 10 * 10 + 20 * 10
    assert total_params(model, plain) == experts + 3 * attention + 2 * 3 * 10 * 6 + 2 * 70
    tied = Backbone(vocab_size=7, tied_embeddings=True, other_params_b=1e-6)
    assert total_params(model, tied) == experts + 70 + 1000
    # Queries through a rank of 8, keys and values through one of 6; 4 heads of 3 + 2, values of 5.
    latent = {"kv_lora_rank": 6, "heads": 4, "d_nope": 3, "d_rope": 2, "d_value": 5}
    key_value_out = 10 * (6 + 2) + 6 * 4 * (3 + 5) + 4 * 5 * 10
    assert Backbone(vocab_size=1, q_lora_rank=8, **latent).attention_params(10) == (
        10 * 8 + 8 * 20 + key_value_out
    )
    assert Backbone(vocab_size=1, **latent).attention_params(10) == 10 * 20 + key_value_out


def test_what_the_survey_says_otherwise():
    model, entry = load_entry("jamba-v0.1")
    assert survey_differences(model, entry) == [
        "dense / MoE layers: 0/32, not 16/16",
        "expert parameters: 90.2 B, not 45.10 B",
    ]
    assert survey_differences(model, Entry()) == []
    qwen = load_entry("qwen2-57b-a14b")
    assert survey_differences(*qwen) == ["shared experts: 0, not 8"]


@pytest.mark.parametrize("name", NAMES)
def test_sources_name_what_is_there(name):
    """Each exception in [sources] is a field, a table or a key of a table of this file."""
    fields = {"": ModelSpec, "gating": GatingSpec, "ffn": FfnSpec}
    beside = {"catalogue": Published, "survey": SurveyRow, "backbone": Backbone}
    _, entry = load_entry(name)
    known = {"*", *(part for part in beside if getattr(entry, part) is not None), "gating", "ffn"}
    for table, cls in (fields | beside).items():
        known |= {f"{table}.{field.name}".removeprefix(".") for field in dataclasses.fields(cls)}
    sources = load_sources("models", name)
    assert set(sources) <= known
    wanted = {"*", "catalogue.total_params_b"}
    wanted |= {part for part in ("survey", "backbone") if getattr(entry, part) is not None}
    wanted |= {"catalogue.expert_params_b"} if entry.catalogue.expert_params_b else set()
    wanted |= {"backbone.other_params_b"} if entry.backbone and entry.backbone.other_params_b else set()
    assert wanted <= set(sources)
    if name not in OF_THE_SURVEY_ALONE:
        # What the catalogue recalled is not graded as if it had been read.
        recalled = row_of(name)["recalled_fields"]
        assert sources["*"]["grade"] == (
            "C" if "all dimensions" in recalled else row_of(name)["verification"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_computes(name):
    """Scaled as the Verilog is, and through float golden at a tiny size against the plain-loop reference."""
    model = load_model(name)
    assert model.scaled(64).d_model == -(-model.d_model // 1024) * 16
    assert model.scaled(64).gating == model.gating
    tiny = model.scaled(4096)
    assert tiny.d_model == 16
    weights, tokens = random_weights(tiny, 1), random_tokens(tiny, 3, 1)
    token_ids = random_token_ids(tiny, 3, 1)
    result = layer(tiny, weights, tokens, token_ids=token_ids)
    by_sequence = None if token_ids is None else token_ids[None]
    expected = reference_layer(tiny, weights, tokens[None], by_sequence)
    assert np.array_equal(result.ids, expected.topk_indices)
    np.testing.assert_allclose(result.output, expected.output[0], rtol=1e-9, atol=1e-9)


def run_full_size(name: str, design: str) -> int:
    """Return a full-size layer's cycles by the cycle model, 4 tokens."""
    request = Request(
        model_name=name,
        engine="model",
        tokens=4,
        divisor=1,
        experts=None,
        phase=None,
        routing=Routing("uniform"),
        seed=0,
        waves=None,
    )
    return request.prepare(load_design(design), print)().as_json()["cycles"]["model"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs_at_full_size_or_is_refused(name):
    model = load_model(name)
    lacking = lacking_terms(model)
    if not lacking:
        # At the least, the gate's product and the experts' weights through the port.
        weights = 2 * model.gating.top_k * model.expert_params // model.gating.num_experts
        assert run_full_size(name, "fpga") >= weights // 32
        return
    with pytest.raises(InputError) as caught:
        run_full_size(name, "fpga")
    assert "\n" not in str(caught.value)
    assert caught.value.key == lacking[0]
    assert str(caught.value).endswith(f"in hardware, not {str(caught.value).rsplit('not ', 1)[1]}")
    assert str(caught.value).endswith(f"(model {name})")


def test_a_preset_runs_near_memory():
    assert run_full_size("granite-3-1b-a400m", "pim") > 0
    # Of its eight experts, which do not fit, four tokens need no more than six.
    assert run_full_size("mixtral-8x7b", "pim") > 0
    message = "design pim: pim.dram: has 65536 rows per bank, but the 17 experts of channel 0 need 91392"
    with raises(message):
        run_full_size("deepseek-v3", "pim")


def test_limits_of_the_hardware_are_not_the_specs():
    gshard = load_model("gshard-600b")
    assert (gshard.gating.num_experts, gshard.ffn.activation) == (2048, Activation.RELU)
    with raises("gating.num_experts: must be at most 512 in hardware, not 2048 (model gshard-600b)"):
        check_hardware(gshard)


# Configurations as published.


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_the_preset(name):
    model = dataclasses.replace(load_config(DATA / "configs" / f"{name}.json"), name=name)
    preset = load_model(name)
    if load_entry(name)[1].catalogue.family == "openmoe":
        # The released code has a fourth matrix and drops; published sizes are those of three.
        assert (model.ffn.num_matrices, model.capacity_of(100)) == (4, 26 if name.endswith("16e") else 12)
        ffn = dataclasses.replace(model.ffn, second_up=False)
        plain = {
            field.name: field.default
            for field in dataclasses.fields(ModelSpec)
            if field.name.startswith("capacity")
        }
        model = dataclasses.replace(model, ffn=ffn, **plain)
    assert model == preset


@pytest.mark.parametrize("name", NAMES)
def test_a_presets_family_is_the_one_that_reads_its_configuration(name):
    family = load_entry(name)[1].catalogue.family
    assert not family or family in family_names()
    if name in CONFIGS:
        row, _ = read_config(DATA / "configs" / f"{name}.json")
        assert family in (row.name, row.like)


def test_families_with_a_preset_have_a_configuration():
    families = {load_entry(name)[1].catalogue.family for name in NAMES} - {""}
    with_configuration = {load_entry(name)[1].catalogue.family for name in CONFIGS}
    assert families == with_configuration
    assert len(CONFIGS) == 48


def is_telling(key: str) -> bool:
    """Whether a key sounds like a part of an MoE layer."""
    return config_keys().kind(key) is KeyKind.TELLING


@pytest.mark.parametrize("name", CONFIGS)
def test_no_published_key_decides_in_silence(name):
    """Renamed, as a later release might, every key that sounds like a part of an MoE layer is reported."""
    config = json.loads((DATA / "configs" / f"{name}.json").read_text())
    family = load_family(load_entry(name)[1].catalogue.family)
    layer_keys = dict(config)
    for nested in family.nested:
        layer_keys |= config.get(nested, {})
    telling = {key: value for key, value in layer_keys.items() if is_telling(f"{key}_v2")}
    telling = {key: value for key, value in telling.items() if not (value is None or isinstance(value, dict))}
    assert telling
    for key, value in telling.items():
        with raises(
            f"config.{key}_v2: is unknown in family {family.name} and could change what the layer computes,"
            f" by its name; not {value!r:.80}"
        ):
            family.model(config | {f"{key}_v2": value}, name=name)


# Configurations of models without a preset of their family: model type's family, MoE and dense layers.
OTHERS = {
    "aria": ("aria", 28, 0),
    "deepseek-v3.2": ("deepseek_v3", 58, 3),
    "dots.llm1": ("dots1", 61, 1),
    "kimi-vl-a3b": ("deepseek_v3", 26, 1),
    "nemotron-3-nano": ("nemotron_h", 23, 29),
    "qwen3-coder-30b-a3b": ("qwen3_moe", 48, 0),
    "trinity-mini": ("afmoe", 30, 2),
}


def test_other_configurations_are_read_too():
    """Without a warning, which would be an error here, as for those above."""
    folder = DATA / "configs_without_preset"
    models = {}
    for name, (family, num_moe, num_dense) in OTHERS.items():
        row, _ = read_config(folder / f"{name}.json")
        models[name] = load_config(folder / f"{name}.json")
        assert (row.name, models[name].num_moe_layers) == (family, num_moe)
        assert models[name].num_dense_layers == (0 if family == "nemotron_h" else num_dense)
    moonlight = load_model("moonlight-16b-a3b")
    assert dataclasses.replace(models["kimi-vl-a3b"], name=moonlight.name) == moonlight
    dots = models["dots.llm1"]
    assert (dots.gating.num_experts, dots.gating.top_k, dots.d_shared) == (128, 6, 2816)
    v3 = load_model("deepseek-v3")
    assert dataclasses.replace(models["deepseek-v3.2"], name=v3.name) == v3
    qwen3 = load_model("qwen3-30b-a3b")
    assert dataclasses.replace(models["qwen3-coder-30b-a3b"], name=qwen3.name) == qwen3
    assert (models["aria"].ffn.d_expert, models["aria"].d_shared) == (1664, 3328)
    nano = models["nemotron-3-nano"]
    assert (nano.ffn.activation, nano.gating.scale, nano.d_shared) == (Activation.RELU2, 2.5, 3712)
    assert (models["trinity-mini"].gating.scale, models["trinity-mini"].d_shared) == (2.826, 1024)


# Keys of published configurations that say what the family does anyway: a preset, its key, the value that is
# read as if it were not there, and one that could mean something.
INERT = [
    ("qwen3-30b-a3b", "shared_expert_intermediate_size", 0, 768),
    ("ernie-4.5-21b-a3b", "use_moe", True, False),
    ("lfm2-8b-a1b", "block_use_swiglu", True, False),
    ("hunyuan-a13b", "n_group", False, 8),
    ("hunyuan-a13b", "topk_group", False, 4),
]


@pytest.mark.parametrize(
    ("name", "key", "inert", "other"), INERT, ids=[f"{one[0]}-{one[1]}" for one in INERT]
)
def test_a_key_that_changes_nothing_is_accepted_with_that_value_only(name, key, inert, other):
    config = json.loads((DATA / "configs" / f"{name}.json").read_text())
    family = load_family(load_entry(name)[1].catalogue.family)
    with_key = family.model(config | {key: inert}, name=name)
    assert with_key == family.model(config | {key: None}, name=name) == load_model(name)
    with raises(f"config.{key}: must be {inert!r} in family {family.name}, not {other!r}"):
        family.model(config | {key: other}, name=name)


def test_a_class_names_the_family_before_the_model_type(tmp_path):
    """MiniMax-M2 as released has the model_type of MiniMax-Text-01."""
    config = json.loads((DATA / "configs" / "minimax-m2.json").read_text())
    path = tmp_path / "config.json"
    for changed in (config, config | {"model_type": "minimax_m2", "architectures": None}):
        path.write_text(json.dumps(changed))
        assert load_config(path).gating == load_model("minimax-m2").gating
    path.write_text(json.dumps(config | {"architectures": ["MiniMaxForCausalLM"]}))
    with raises(
        f"{path}: config.mlp_intermediate_size: is unknown in family minimax and could change what the layer"
        " computes, by its name; not 8192"
    ):
        load_config(path)


def test_a_configuration_runs_as_its_preset_does(capsys):
    cycles = []
    for model in ("olmoe-1b-7b", str(DATA / "configs" / "olmoe-1b-7b.json")):
        assert main(["sim", "--model", model, "--engine", "model", "--tokens", "4", "--json"]) == 0
        cycles.append(json.loads(capsys.readouterr().out)["cycles"]["model"])
    assert cycles[0] == cycles[1] > 0


def test_configurations_and_presets_cover_the_same_number_of_layers():
    maverick = load_config(DATA / "configs" / "llama-4-maverick.json")
    assert (maverick.num_moe_layers, maverick.num_dense_layers) == (24, 24)
    jamba = load_config(DATA / "configs" / "jamba-v0.1.json")
    assert (jamba.num_moe_layers, jamba.num_dense_layers) == (16, 16)


# The tables of a file, and the page.

PRESET = (PRESETS / "models" / "mixtral-8x7b.toml").read_text()
BAD_TABLES = {
    "unknown key": (
        ("vocab_size = 32000", "vocab = 32000"),
        (
            "backbone.vocab: unknown key; known are attention_layers, d_dense, d_nope, d_rope, d_value,"
            " dense_ffns, dense_matrices, head_dim, heads, kv_heads, kv_lora_rank, other_params_b,"
            " q_lora_rank, tied_embeddings, vocab_size"
        ),
    ),
    "negative": (("heads = 32", "heads = -1"), "backbone.heads: must be at least 0, not -1"),
    "missing": (('title = "Mixtral-8x7B"', ""), "catalogue.title: is missing"),
    "year": (("year = 2023", "year = 23"), "catalogue.year: must be in 2017..2100, not 23"),
    "no total": (
        ("total_params_b = 46.7\n\n[survey]", "total_params_b = 0.0\n\n[survey]"),
        "catalogue.total_params_b: must be above 0, not 0.0",
    ),
    "negative experts": (
        ("expert_params_b = 45.1\ntotal", "expert_params_b = -45.1\ntotal"),
        "catalogue.expert_params_b: must be in 0.0..1000000.0, not -45.1",
    ),
    "type": (('routed = "2"', "routed = 2"), "survey.routed: must be of type str, not 2"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_each_broken_rule_of_a_table_is_one_line(tmp_path, change, message):
    assert change[0] in PRESET
    path = tmp_path / "model.toml"
    path.write_text(PRESET.replace(*change))
    with raises(f"{path}: {message}"):
        load_model(str(path))


def test_a_table_that_is_none(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text("survey = 3\n" + PRESET.split("[catalogue]")[0])
    with raises(f"{path}: survey: must be a table, not 3"):
        load_model(str(path))


def test_the_page_is_of_these_presets():
    assert (DATA.parent.parent / "docs" / "models.md").read_text() == page()


def test_the_page_is_written_and_refused(tmp_path, capsys):
    path = tmp_path / "models.md"
    assert main(["models", "--page", str(path)]) == 0
    assert path.read_text() == page()
    assert main(["models", "--page", str(tmp_path / "none" / "models.md")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = f"{tmp_path / 'none' / 'models.md'}: page: cannot be written: No such file or directory"
    assert captured.err == f"expertbank: {line}\n"
