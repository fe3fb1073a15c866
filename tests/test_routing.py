"""Synthetic routing and statistics: what the kinds promise, and what ``expertbank routing`` says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim.routing.tokens
from golden.formats import bf16_decode, bf16_encode
from golden.gating import route
from golden.weights import random_weights
from sim.accelerator import run_model
from sim.cli import main
from sim.routing import (
    TraceShape,
    draw_ids,
    fitted_tokens,
    parse_routing,
    shape_of,
    synthetic_trace,
)
from sim.routing.formats import FORMATS
from sim.routing.statistics import (
    entropy_bits,
    expected_unique,
    percentile,
    reuse_distances,
    statistics_of,
    unique_experts,
    variation,
)
from sim.routing.synthetic import KINDS, balanced, request_lengths
from sim.routing.trace import make_trace
from sim.workload import random_workload
from spec.errors import InputError
from spec.files import PRESETS
from spec.load import load_design, load_model
from spec.model import GatingSpec, ModelSpec, Score
from tests.routing_cases import FIRST, FOLDER, SECOND, random_trace
from tests.strategies import gatings

MODELS = ("mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "switch-base-128")
NAMES = [*KINDS, "zipf:2.5", "lognormal:2", "hot_group:1:3", "rotating:1:4", "burst:0.5:3:0", "ragged:2:40"]


def groups_of(gating: GatingSpec, ids: np.ndarray) -> int:
    """Return the largest number of groups that a token's experts lie in."""
    return max(len(set(row)) for row in (ids // gating.group_size).tolist())


def check_sets(gating: GatingSpec, ids: np.ndarray, num_tokens: int) -> None:
    assert ids.shape == (num_tokens, gating.top_k)
    assert ids.dtype == np.int64
    assert ids.flags.c_contiguous
    assert 0 <= ids.min() <= ids.max() < gating.num_experts
    ordered = np.sort(ids, axis=1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()
    assert groups_of(gating, ids) <= gating.topk_groups


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", MODELS)
def test_every_token_has_k_experts_in_allowed_groups(model, name):
    gating = load_model(model).gating
    routing = parse_routing(name)
    for num_tokens in (1, 2, 333):
        check_sets(gating, draw_ids(gating, routing, num_tokens, 5), num_tokens)


@settings(max_examples=60)
@given(
    gatings(),
    st.sampled_from([name for name in NAMES if not name.startswith("hot_group:1:3")]),
    st.integers(0, 9),
)
def test_any_gating(gating, name, seed):
    check_sets(gating, draw_ids(gating, parse_routing(name), 17, seed), 17)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_token_keeps_its_experts(name):
    """A share of a load would round to nothing; k drawn experts cannot."""
    model, design = load_model("deepseek-v3"), load_design("fpga")
    for seed in range(5):
        ids = draw_ids(model.gating, parse_routing(name), 1, seed)
        report = run_model(model, design, ids, name)
        assert report.routing["experts_used"] == model.gating.top_k
        assert report.routing["max_load"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    gating = load_model("deepseek-v3").gating
    one, again, other = (draw_ids(gating, parse_routing(name), 64, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_uniform_and_zipf_are_what_they_were():
    """Routing of a seed stays the same from version to version: reports are compared across them."""
    gating = load_model("mixtral-8x7b").gating
    assert draw_ids(gating, parse_routing("uniform"), 3, 0).tolist() == [[6, 1], [1, 3], [5, 4]]
    assert draw_ids(gating, parse_routing("zipf:1"), 3, 0).tolist() == [[6, 3], [3, 7], [5, 3]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_unique_experts_of_uniform_routing(model, batch):
    """The mean of many batches lies within five standard errors of the closed form."""
    gating = load_model(model).gating
    ids = draw_ids(gating, parse_routing("uniform"), 300 * batch, 3)
    unique = unique_experts(ids.astype(np.int32), gating.num_experts, batch)
    expected = expected_unique(gating.num_experts, gating.top_k, batch)
    error = unique.std() / math.sqrt(len(unique))
    assert abs(unique.mean() - expected) <= 5 * error + 1e-3
    if batch == 1:
        assert expected == pytest.approx(gating.top_k)


def test_expected_unique_is_the_mean_over_all_outcomes():
    """All 36 pairs of two tokens with two of four experts each."""
    sets = [{a, b} for a in range(4) for b in range(a)]
    mean = np.mean([len(one | other) for one in sets for other in sets])
    assert expected_unique(4, 2, 2) == pytest.approx(mean)


# balanced


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_tokens", [1, 5, 100, 1000])
def test_balanced_loads_differ_by_one(model, num_tokens):
    gating = load_model(model).gating
    load = np.bincount(
        draw_ids(gating, parse_routing("balanced"), num_tokens, 2).ravel(), minlength=gating.num_experts
    )
    assert load.max() - load.min() <= 1


def grouped(num_groups: int, size: int, topk_groups: int, top_k: int) -> GatingSpec:
    return GatingSpec(
        num_experts=num_groups * size,
        top_k=top_k,
        score=Score.SIGMOID,
        num_groups=num_groups,
        topk_groups=topk_groups,
    )


# One for each way in which experts are dealt: with and without a rest, mixed, group by group, filled up.
DEALT = {
    "k divides": (GatingSpec(num_experts=12, top_k=4), 1),
    "k does not divide": (GatingSpec(num_experts=7, top_k=3), 1),
    "k is all": (GatingSpec(num_experts=5, top_k=5), 1),
    "groups mixed": (grouped(8, 4, 4, 8), 1),
    "some groups mixed": (grouped(6, 4, 4, 6), 1),
    "group by group": (grouped(5, 4, 2, 3), 1),
    "filled up": (grouped(5, 3, 2, 5), 2),
}


@pytest.mark.parametrize("name", DEALT)
@pytest.mark.parametrize("num_tokens", [1, 3, 50, 301])
def test_balanced_with_any_groups(name, num_tokens):
    gating, spread = DEALT[name]
    ids = balanced(gating, num_tokens, np.random.default_rng(4))
    check_sets(gating, ids, num_tokens)
    load = np.bincount(ids.ravel(), minlength=gating.num_experts)
    assert load.max() - load.min() <= spread


@pytest.mark.parametrize("name", NAMES)
def test_each_prototype_gives_as_many(name):
    gating = load_model("m6-t-10b").gating
    ids = draw_ids(gating, parse_routing(name), 300, 5)
    own = gating.of_prototype
    assert gating.num_prototypes > 1
    parts = ids.reshape(300, gating.num_prototypes, own.top_k) // own.num_experts
    assert (parts == np.arange(gating.num_prototypes)[:, None]).all()
    if name == "balanced":
        assert np.ptp(np.bincount(ids.ravel(), minlength=gating.num_experts)) <= 1


def test_balanced_is_no_fixed_pattern():
    ids = draw_ids(load_model("deepseek-v3").gating, parse_routing("balanced"), 64, 0)
    assert len({frozenset(row) for row in ids.tolist()}) == 64
    assert groups_of(load_model("deepseek-v3").gating, ids) > 2


# The imbalanced kinds do what their parameters say.

BIG = GatingSpec(num_experts=64, top_k=4)
MANY = 20_000


def load_of(name: str, gating: GatingSpec = BIG, num_tokens: int = MANY) -> np.ndarray:
    ids = draw_ids(gating, parse_routing(name), num_tokens, 1)
    return np.sort(np.bincount(ids.ravel(), minlength=gating.num_experts))[::-1]


def test_larger_parameters_are_less_even():
    for kind in ("zipf", "lognormal"):
        spread = [variation(load_of(f"{kind}:{size}", num_tokens=2000)) for size in (0, 0.5, 1, 2)]
        assert spread == sorted(spread)
        assert spread[0] < 0.1 < 0.8 < spread[3]


def test_log_normal_shares():
    """With k = 1 the load's logarithm has the deviation that the name says."""
    load = load_of("lognormal:0.7", GatingSpec(num_experts=256, top_k=1), 50_000)
    assert np.log(load).std() == pytest.approx(0.7, rel=0.1)


def test_hot_experts_get_their_share():
    load = load_of("hot_expert:0.75:3")
    # Of the tokens that are not sent to it, a hot expert gets its share of what is left.
    assert (load[:3] > 0.75 * MANY).all()
    assert (load[:3] < 0.78 * MANY).all()
    assert load[3] < 0.05 * MANY
    assert (load_of("hot_expert:1:4", num_tokens=50)[:5] == [50, 50, 50, 50, 0]).all()


def test_hot_experts_lie_in_groups_that_a_token_may_have():
    gating = load_model("deepseek-v3").gating
    ids = draw_ids(gating, parse_routing("hot_expert:1:8"), 40, 3)
    assert len({frozenset(row) for row in ids.tolist()}) == 1
    check_sets(gating, ids, 40)


@pytest.mark.parametrize(("name", "groups"), [("hot_group:1", 8), ("hot_group:1:16", 16)])
def test_a_hot_group_takes_whole_tokens(name, groups):
    gating = load_model("deepseek-v3").gating
    ids = draw_ids(gating, parse_routing(name), 100, 3)
    assert len(set((ids // (256 // groups)).ravel().tolist())) == 1
    half = draw_ids(gating, parse_routing("hot_group:0.5"), 1000, 3) // 32
    whole = (half == half[:, :1]).all(axis=1)
    assert 420 < whole.sum() < 580


def test_a_hot_spot_that_rotates():
    ids = draw_ids(BIG, parse_routing("rotating:1:10"), 64 * 10, 1)
    hot = [set.intersection(*map(set, ids[start : start + 10].tolist())) for start in range(0, 640, 10)]
    assert sorted(expert for one in hot for expert in one if len(one) == 1) == list(range(64))


def test_bursts():
    ids = draw_ids(BIG, parse_routing("burst:1:6:14"), 200, 1)
    for start in range(0, 200, 20):
        burst = set.intersection(*map(set, ids[start + 14 : start + 20].tolist()))
        assert len(burst) >= 1
        assert not set.intersection(*map(set, ids[start : start + 14].tolist()))


def test_ragged_requests():
    assert request_lengths(100, 1.0, 4).tolist() == [47, 24, 16, 13]
    assert request_lengths(100, 0.0, 3).tolist() == [33, 34, 33]
    assert request_lengths(2, 1.0, 8).tolist() == [1, 1]
    assert request_lengths(1, 1.0, 8).tolist() == [1]
    for count in (1, 7, 64):
        lengths = request_lengths(1000, 1.5, count)
        assert lengths.sum() == 1000
        assert lengths.min() >= 1
    trace = synthetic_trace(BIG, parse_routing("ragged:1:4"), 100, 0, 2)
    assert np.bincount(trace.request).tolist() == [47, 24, 16, 13]
    assert trace.position[47] == 0
    # Requests prefer experts of their own.
    favourites = [
        Counter(trace.ids[0][trace.request == one].ravel().tolist()).most_common(1)[0][0] for one in range(4)
    ]
    assert len(set(favourites)) == 4


def chosen_share(model: ModelSpec, name: str) -> float:
    """Return the share of 48 tokens that the gate sends to exactly their sets."""
    weights = random_weights(model, 2, experts=[])
    ids = draw_ids(model.gating, parse_routing(name), 48, 2)
    tokens = bf16_decode(bf16_encode(fitted_tokens(model.gating, weights, ids, 2)))
    chosen = route(model.gating, weights.router, tokens, weights.logit_bias, weights.selection_bias).ids
    return float((np.sort(chosen, axis=1) == np.sort(ids, axis=1)).all(axis=1).mean())


# d_model 64 and 8 experts, 48 and 32, 16 and 128 (k = 1), 112 and 256 (groups, a bias).
REACHED = {"mixtral-8x7b": 1.0, "gpt-oss-20b": 1.0, "switch-base-128": 1.0, "deepseek-v3": 0.75}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("model", REACHED)
def test_the_gate_chooses_what_was_drawn(model, name):
    assert chosen_share(load_model(model).scaled(64), name) >= REACHED[model]


@pytest.mark.slow
def test_the_gate_chooses_what_was_drawn_at_full_width(monkeypatch):
    """As wide as the model is, no set is out of reach; without the fit biases and groups get in the way."""
    model = dataclasses.replace(load_model("deepseek-v3"), d_shared=0)
    assert chosen_share(model, "hot_group:1") == 1.0
    monkeypatch.setattr(sim.routing.tokens, "ROUNDS", 0)
    assert chosen_share(model, "hot_group:1") < 0.9


def test_a_run_has_the_load_that_was_asked_for():
    model = load_model("mixtral-8x7b").scaled(64)
    for name in ("uniform", "zipf:1", "hot_expert:1:2", str(FOLDER / "canonical.npz")):
        work = random_workload(model, 3, parse_routing(name), 0)
        assert (np.sort(work.reference_ids) == np.sort(work.target_ids)).all()


# Names.


def test_page_has_every_kind_with_its_defaults():
    page = (FOLDER.parent.parent.parent / "docs" / "routing.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \|([^|]*)\|", page.split("## Synthetic")[1].split("## Traces")[0], re.MULTILINE
    )
    assert {name: " ".join(parameters.split()) for name, parameters in rows} == {
        name: ", ".join(f"{one.name} ({one.default:g})" for one in kind.parameters)
        for name, kind in KINDS.items()
    }


def test_page_has_every_format():
    page = (FOLDER.parent.parent.parent / "docs" / "routing.md").read_text()
    table = page.split("## Traces")[1].split("The suffix")[0]
    assert re.findall(r"\| `([\w-]+)` \|$", table, re.MULTILINE) == list(FORMATS)


def test_names_are_whole():
    assert {name: parse_routing(name).name for name in KINDS} == {
        "uniform": "uniform",
        "balanced": "balanced",
        "zipf": "zipf:1",
        "lognormal": "lognormal:1",
        "hot_expert": "hot_expert:0.5:1",
        "hot_group": "hot_group:0.5:0",
        "ragged": "ragged:1:8",
        "rotating": "rotating:0.5:16",
        "burst": "burst:1:8:24",
    }
    assert parse_routing("burst:0.5:3").name == "burst:0.5:3:24"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zipf:x", "must be zipf:S with a number S, not 'zipf:x'"),
        ("zipf:11", "must have 0 <= S <= 10, not 'zipf:11'"),
        ("zipf:nan", "must have 0 <= S <= 10, not 'zipf:nan'"),
        ("uniform:1", "must be uniform, not 'uniform:1'"),
        ("hot_expert:2", "must have 0 <= H <= 1, not 'hot_expert:2'"),
        ("hot_expert:1:1.5", "must be hot_expert:H:N with a whole number N, not 'hot_expert:1:1.5'"),
        ("hot_expert:1:0", "must have 1 <= N <= 64, not 'hot_expert:1:0'"),
        ("burst:1:8:24:3", "must be burst:H:L:Q, not 'burst:1:8:24:3'"),
        ("rotating:1:0", "must have 1 <= P <= 1.04858e+06, not 'rotating:1:0'"),
        ("", f"must be one of {', '.join(KINDS)} or a file .npz, .npy, .json, .jsonl, .csv, not ''"),
    ],
)
def test_wrong_names(text, message):
    with pytest.raises(InputError) as caught:
        parse_routing(text)
    assert str(caught.value) == f"routing: {message}"


def test_parameters_that_a_gate_cannot_have():
    with pytest.raises(InputError, match=r"^routing: must have at most top_k=4 hot experts, not 5$"):
        draw_ids(BIG, parse_routing("hot_expert:1:5"), 1, 0)
    with pytest.raises(InputError, match=r"^routing: must have at most num_experts=64 groups, not 65$"):
        draw_ids(BIG, parse_routing("hot_group:1:65"), 1, 0)


# Traces as routing of a run.


def test_which_layer_of_a_trace():
    gating = GatingSpec(num_experts=4, top_k=2)
    routing = parse_routing(str(FOLDER / "canonical.npz"))
    assert routing.layer_name() == f"{FOLDER / 'canonical.npz'} (layer 1)"
    assert draw_ids(gating, routing, 3, 0).tolist() == FIRST
    assert draw_ids(gating, routing, 2, 0, moe_layer=1).tolist() == SECOND[:2]
    second = parse_routing(str(FOLDER / "canonical.npz"), layer=2)
    assert second.layer_name().endswith("canonical.npz (layer 2)")
    assert draw_ids(gating, second, 3, 0, moe_layer=0).tolist() == SECOND
    single = parse_routing(str(FOLDER / "plain.npz"))
    assert single.layer_name() == str(FOLDER / "plain.npz")
    assert draw_ids(gating, single, 3, 0, moe_layer=7).tolist() == FIRST
    with pytest.raises(InputError, match=r"canonical\.npz: layer: must be one of 1, 2, not 3$"):
        parse_routing(str(FOLDER / "canonical.npz"), layer=3)
    with pytest.raises(InputError, match=r"^routing-layer: must be left out for a synthetic routing, not 3$"):
        parse_routing("uniform", layer=3)
    routing.check_layers(2)
    second.check_layers(3)
    with pytest.raises(
        InputError,
        match=r"canonical\.npz: layers: has 2 layers, but the model has 3 MoE layers"
        r" \(--routing-layer takes one for all\)$",
    ):
        routing.check_layers(3)


def test_phases_of_a_trace(tmp_path):
    gating = GatingSpec(num_experts=16, top_k=1)
    trace = make_trace(
        "drawn",
        np.arange(7)[None, :, None],
        TraceShape(num_experts=16),
        request=np.array([0, 0, 0, 1, 1, 1, 1]),
        phase=np.array([1, 2, 2, 1, 1, 2, 2], np.uint8),
    )
    from sim.routing.formats.canonical import write

    (tmp_path / "t.npz").write_bytes(write(trace))
    routing = parse_routing(str(tmp_path / "t.npz"))
    assert draw_ids(gating, routing, 3, 0, phase="prefill").ravel().tolist() == [0, 3, 4]
    # One token of each request at a time, as a batch decodes.
    assert draw_ids(gating, routing, 4, 0, phase="decode").ravel().tolist() == [1, 5, 2, 6]
    assert draw_ids(gating, routing, 7, 0).ravel().tolist() == list(range(7))
    with pytest.raises(InputError, match=r"ids: must have at least 4 rows of k=1, not shape \(3, 1\)$"):
        draw_ids(gating, routing, 4, 0, phase="prefill")


@pytest.mark.parametrize(
    "name", ["sglang_generate.json", "llama_cpp.csv", "vllm_text.jsonl", "dynande.csv", "loads_tokens.npy"]
)
def test_sim_takes_a_trace(tmp_path, capsys, name):
    """What a format leaves open the model says; four experts of Mixtral's eight are used.

    Where a column is an expert the file says how many there are, and another model's is refused.
    """
    path, model = FOLDER / name, "mixtral-8x7b"
    if name.startswith(("dynande", "loads")):
        assert main(["sim", "--routing", str(path), "--model", model, "--engine", "model"]) == 2
        assert capsys.readouterr().err == f"expertbank: {path}: has 4 experts, not 8\n"
        preset = (PRESETS / "models" / f"{model}.toml").read_text().split("[catalogue]")[0]
        model = str(tmp_path / "four.toml")
        Path(model).write_text(preset.replace("num_experts = 8", "num_experts = 4"))
    options = ["--model", model, "--engine", "model", "--tokens", "3", "--json"]
    if name.startswith("sglang"):
        # Counts of tokens give the layers.
        assert shape_of(load_model("mixtral-8x7b")).num_layers == 32
    assert main(["sim", "--routing", str(path), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    first = 0 if name.startswith(("vllm", "loads")) else 1
    assert report["routing"]["requested"] == f"{path} (layer {first})"
    assert report["routing"]["max_load"] == 2
    assert "seed" not in report["routing"]
    assert main(["sim", "--routing", str(path), "--routing-layer", str(first + 1), *options]) == 0
    assert json.loads(capsys.readouterr().out)["routing"]["requested"] == f"{path} (layer {first + 1})"


def test_sim_names_routing_and_seed(capsys):
    options = ["--model", "mixtral-8x7b", "--engine", "model", "--seed", "3"]
    assert main(["sim", "--routing", "hot_expert", *options, "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["routing"].items()
        >= {"requested": "hot_expert:0.5:1", "seed": 3}.items()
    )
    assert main(["sim", "--routing", "burst", *options]) == 0
    assert "routing burst:1:8:24, seed 3: " in capsys.readouterr().out


def test_a_step_takes_layer_after_layer(capsys, tmp_path):
    model = load_model("mixtral-8x7b")
    assert (
        main(
            [
                "routing",
                "zipf:1",
                "--tokens",
                "8",
                "--layers",
                "32",
                "--seed",
                "2",
                "--out",
                str(tmp_path / "t.npz"),
            ]
        )
        == 0
    )
    options = ["--model", "mixtral-8x7b", "--engine", "model", "--phase", "decode", "--tokens", "8", "--json"]
    capsys.readouterr()
    assert main(["sim", "--routing", "zipf:1", "--seed", "2", *options]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert main(["sim", "--routing", str(tmp_path / "t.npz"), *options]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["cycles"] == drawn["cycles"]
    assert read["routing"]["requested"] == str(tmp_path / "t.npz")
    assert model.num_moe_layers == 32
    assert main(["sim", "--routing", str(tmp_path / "t.npz"), "--routing-layer", "7", *options]) == 0
    assert json.loads(capsys.readouterr().out)["routing"]["requested"] == f"{tmp_path / 't.npz'} (layer 7)"


# Statistics against plain counting.


def plain_reuse(rows: list[list[int]]) -> tuple[Counter[int], int]:
    seen: dict[int, int] = {}
    distances: Counter[int] = Counter()
    first = 0
    for token, experts in enumerate(rows):
        for expert in experts:
            if expert in seen:
                distances[len({e for row in rows[seen[expert] + 1 : token] for e in row})] += 1
            else:
                first += 1
        seen |= dict.fromkeys(experts, token)
    return distances, first


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([2, 5, 512]), st.sampled_from([1, 3, 700]))
def test_reuse_distance(seed, at_a_time, num_tokens):
    rng = np.random.default_rng(seed)
    popular = rng.gumbel(size=(num_tokens, 9)) - np.log(1 + np.arange(9))
    rows = np.argsort(-popular, axis=1)[:, : rng.integers(1, 5)].astype(np.int32)
    if num_tokens == 3:
        rows[1, 1:] = -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.routing.statistics.TOKENS_AT_A_TIME", at_a_time)
        counts, first = reuse_distances(rows, 9)
    plain, plain_first = plain_reuse([[e for e in row if e >= 0] for row in rows.tolist()])
    assert {d: n for d, n in enumerate(counts.tolist()) if n} == dict(plain)
    assert first == plain_first


def test_entropy_and_variation():
    assert entropy_bits(np.array([1, 1, 1, 1])) == pytest.approx(2)
    assert entropy_bits(np.array([5, 0, 0, 0])) == 0
    assert entropy_bits(np.array([2, 1, 1, 0])) == pytest.approx(1.5)
    assert entropy_bits(np.array([0, 0])) == 0
    assert variation(np.array([3, 3])) == 0
    assert variation(np.array([2, 0])) == pytest.approx(1)
    assert variation(np.array([0, 0])) == 0


def test_percentiles():
    counts = np.array([5, 0, 4, 1])
    assert [percentile(counts, share) for share in (0.5, 0.51, 0.9, 0.91, 1)] == [0, 2, 2, 3, 3]
    assert percentile(np.zeros(3, np.int64), 0.5) is None


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_statistics_of_a_layer(batch, monkeypatch):
    monkeypatch.setattr("sim.routing.statistics.MAP_BYTES", 40)
    trace = random_trace(num_tokens=50, num_experts=16, top_k=3, seed=4)
    rows = trace.ids[1].tolist()
    found = statistics_of(trace, 1, batch)
    load = Counter(expert for row in rows for expert in row)
    assert found.load.tolist() == [load[expert] for expert in range(16)]
    assert (found.layer, found.num_tokens, found.assignments) == (1, 50, 150)
    ends = range(batch, 51, batch) or [50]
    assert found.unique.tolist() == [
        len({e for row in rows[max(0, end - batch) : end] for e in row}) for end in ends
    ]


# The command.


def test_command_prints_json(capsys):
    assert main(["routing", str(FOLDER / "megatron.jsonl"), "--batch", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"] == "megatron"
    assert (report["tokens"], report["experts"], report["top_k"], report["requests"]) == (3, 4, 2, 2)
    assert report["expected_unique_uniform"] == pytest.approx(3)
    first, second = report["layers"]
    assert (first["layer"], second["layer"]) == (1, 2)
    assert first["load"] == [2, 2, 1, 1]
    assert first["unique_experts"] == {"batches": 1, "mean": 4.0, "min": 4, "max": 4}
    assert first["reuse_distance"]["first_uses"] == 4
    # Expert 1 after token 1's two others; expert 0 at once.
    assert first["reuse_distance"]["counts"] == [1, 0, 1, 0]
    assert first["coefficient_of_variation"] == pytest.approx(1 / 3)


def test_command_prints_a_table(capsys):
    assert main(["routing", "balanced", "--model", "deepseek-v3", "--tokens", "64", "--layers", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("balanced, seed 0 (balanced): 64 tokens, 2 layers, 256 experts, top 8\n")
    assert re.search(r"^1 +256 +2 +2 +1\.00 +8\.000 +0\.000 ", out, re.MULTILINE)
    assert main(["routing", str(FOLDER / "dynande.csv"), "--layer", "2"]) == 0
    assert re.search(r"^2 +4 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["uniform", str(FOLDER / "canonical.npz")])
def test_command_draws_a_picture(tmp_path, capsys, source):
    """A name with signs of a formula and one layer or several: a PNG, nothing else, the same each time."""
    path = tmp_path / "a.png"
    assert main(["routing", source, "--picture", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) > 800
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]
    assert main(["routing", source, "--picture", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == str(path)
    assert path.read_bytes() == data


def test_matplotlib_is_imported_only_for_a_picture():
    import subprocess
    import sys

    script = "import sys, sim.cli, sim.routing, sim.commands.routing; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)


def test_command_converts_files_of_layers(tmp_path, capsys):
    target = tmp_path / "t.npz"
    files = [str(FOLDER / name) for name in ("dynande.csv", "model_layer12_part.csv")]
    assert main(["routing", *files, "--out", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(target)
    assert main(["routing", str(target), "--out", str(tmp_path / "t.csv"), "--to", "llama-cpp-tokens"]) == 0
    assert (tmp_path / "t.csv").read_text().splitlines()[:3] == ["layer_id,expert_ids", "1,3 1", "1,0 2"]


BAD_ARGUMENTS = {
    "unknown name": (
        ["fair"],
        rf"routing: must be one of {', '.join(KINDS)} or a file \.npz, .*\.csv, not 'fair'",
    ),
    "two names": (["uniform", "balanced"], "routing: must be one name, not 2"),
    "a file and a name": (
        [str(FOLDER / "plain.npz"), "balanced"],
        "routing: must all be files, not 'balanced'",
    ),
    "nothing": ([], r"Missing argument 'FILE\.\.\.\|NAME'\."),
    "tokens of a file": (
        [str(FOLDER / "plain.npz"), "--tokens", "3"],
        "tokens: is for a synthetic routing, not for a file",
    ),
    "top-k of a name": (
        ["uniform", "--top-k", "3"],
        "top-k: is for a file; a synthetic routing has its --model's",
    ),
    "no tokens": (["uniform", "--tokens", "0"], r"tokens: must be in 1\.\.1048576, not 0"),
    "no batch": (["uniform", "--batch", "0"], r"batch: must be in 1\.\.1048576, not 0"),
    "negative seed": (["uniform", "--seed", "-1"], r"seed: must be in 0\.\.9223372036854775807, not -1"),
    "more than a trace holds": (
        ["uniform", "--model", "deepseek-v3", "--tokens", "1048576", "--layers", "58"],
        "ids: must be at most 67108864 assignments, not 486539264",
    ),
    "layers beyond": (["uniform", "--layers", "1025"], r"num_layers: must be in 1\.\.1024, not 1025"),
    "unknown layer": (["uniform", "--layer", "1"], "uniform: layer: must be one of 0, not 1"),
    "format without a file": (["uniform", "--to", "vllm"], "to: needs --out"),
    "picture of another kind": (
        ["uniform", "--picture", "p.svg"],
        r"picture: must end in \.png, not 'p\.svg'",
    ),
    "suffix of another format": (
        ["uniform", "--out", "t.npz", "--to", "vllm"],
        r"out: must end in \.jsonl, not 't\.npz'",
    ),
    "no folder": (
        ["uniform", "--out", "none/t.npz"],
        r"none/t\.npz: out: is in a folder that does not exist",
    ),
    "what a format cannot say": (
        [str(FOLDER / "loads_batches.npy"), "--top-k", "2", "--out", "t.jsonl", "--to", "vllm"],
        r".*loads_batches\.npy: aligned: is not aligned, which vllm cannot say",
    ),
    "unknown model": (
        ["uniform", "--model", "gpt-5"],
        r"model: is neither a preset \(.*\) nor a \.toml file: 'gpt-5'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["routing", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", err), err
    assert list(tmp_path.iterdir()) == []
