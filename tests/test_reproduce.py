"""Papers' claims: the contract of the command, the bands, hand-computed numbers of each model, the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sim.cli import main
from sim.gemv.commands import Product
from sim.gemv.report import run_gemv
from sim.papers import coqmoe, duplex, dynande_replay, edge_moe, flame, model_of, sieve, ubimoe
from sim.reproduce import NOT_A_TEST, NOT_TAKEN, Outcome, as_json, claim_rows, paper_names, reproduce
from sim.reproduce_page import HEADER, remarks, section
from sim.system.costs import Roofline
from spec.errors import InputError
from spec.files import PRESETS, load_preset
from spec.load import load_device, load_model, load_paper
from spec.paper import Claim, Grade, Judged, PaperSpec
from spec.system import Evidence, nominal, quantities, with_changed

PAGE = Path(__file__).parent.parent / "docs" / "reproduce.md"
GRADES = {
    "coqmoe": "medium",
    "deepep": "medium",
    "duplex": "high",
    "dynande": "high",
    "edge-moe": "high",
    "flame": "low",
    "monde": "low",
    "pimoe": "low",
    "sieve": "high",
    "ubimoe": "medium",
}
KEYS = {"name", "published", "modelled", "ratio", "grade", "evidence", "within_band"}


@cache
def result(name: str):
    """Return a paper's reproduction, once for all tests."""
    return reproduce(name)


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


def section_of_page(name: str) -> str:
    """Return a paper's part of the committed page."""
    found = re.search(rf"^## {name}\n.*?(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0].rstrip("\n")


@pytest.mark.parametrize("name", GRADES)
def test_a_paper(name):
    """What the contract asks of each claim; the page has the same numbers; inputs have their sources."""
    found = result(name)
    out = json.loads(json.dumps(as_json(found), allow_nan=False))
    paper = load_paper(name)
    assert [*(claim["name"] for claim in out["claims"]), *(claim["name"] for claim in out["not_run"])] == [
        *paper.claims
    ]
    for claim in out["claims"]:
        assert set(claim) >= KEYS
        spec = paper.claims[claim["name"]]
        assert claim["ratio"] == claim["modelled"] / claim["published"] > 0
        assert claim["grade"] == GRADES[name]
        assert claim["evidence"] in set("PACNSDM")
        low, high = claim["interval"]
        assert low <= claim["modelled"] <= high
        open_or_wide = spec.judged is Judged.OPEN or claim["label"] == NOT_A_TEST
        assert (claim["within_band"] is None) == open_or_wide
        if claim["within_band"] is False:
            assert claim["cause"], "a result outside its band has a cause"
    # All inputs but those of systems that papers have models of their own for.
    left_out = {key for key, _ in quantities(paper)} - {entry["name"] for entry in out["inputs"]}
    assert {key for key in left_out if not key.startswith("systems.")} == set()
    assert all(set(NOT_TAKEN).intersection(key.split(".")) for key in left_out)
    assert all(entry["source"] and entry["evidence"] for entry in out["inputs"])
    assert section_of_page(name) == section(found).rstrip("\n")
    assert remarks(found)


def test_the_page_has_every_paper():
    assert paper_names() == sorted(GRADES)
    text = PAGE.read_text()
    assert text.startswith(HEADER)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == paper_names()


def test_the_command(capsys, tmp_path):
    assert main(["reproduce", "flame", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    out = json.loads(captured.out)
    assert [claim["name"] for claim in out["claims"]] == ["speed_over_gpu"]
    assert main(["reproduce", "flame"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FLAME, DAC 2024, DOI 10.1145/3649329.3656507; graded low"
    assert lines[2].split()[:4] == ["speed_over_gpu", "1.49", "2.109", "1.416"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            rf"paper: is neither a preset \({', '.join(sorted(GRADES))}\) nor a \.toml file: 'nothing'",
        ),
        ([], rf"paper: must be one of {', '.join(sorted(GRADES))}, or left out for --page"),
        (["flame", "--page", "x.md"], r"paper: must be one of .*, or left out for --page"),
        (["flame", "--files", "."], r"files: is only for dynande, not flame"),
        (["dynande", "--files", "/nowhere"], r"/nowhere: files: is not a folder"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message, flags):
    assert main(["reproduce", *arguments, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", captured.err)


CLAIM = Claim(
    published=2.0,
    what="w",
    evidence=Evidence.P,
    source="s",
    judged=Judged.PERCENT,
    confidence=Grade.HIGH,
    percent=10,
)
INTERVAL = replace(CLAIM, judged=Judged.INTERVAL, percent=0)


@pytest.mark.parametrize(
    ("claim", "modelled", "interval", "within", "label"),
    [
        (CLAIM, 2.19, (2.19, 2.19), True, ""),
        (CLAIM, 2.21, (1.0, 9.0), False, ""),
        (CLAIM, 1.79, (1.79, 2.0), False, ""),
        (replace(CLAIM, above=1.95), 1.95, (1.9, 2.0), False, ""),
        (replace(CLAIM, above=1.95), 1.96, (1.9, 2.0), True, ""),
        (INTERVAL, 2.4, (2.0, 2.5), True, ""),
        (INTERVAL, 2.4, (2.01, 2.5), False, ""),
        (INTERVAL, 2.4, (1.79, 2.5), None, NOT_A_TEST),
        (INTERVAL, 2.4, (2.0, 3.01), None, NOT_A_TEST),
        (replace(INTERVAL, judged=Judged.OPEN), 2.0, (2.0, 2.0), None, "open"),
    ],
)
def test_bands(claim, modelled, interval, within, label):
    outcome = Outcome("x", claim, modelled, interval, ())
    assert (outcome.within_band, outcome.label) == (within, label)


def test_bad_claims_are_one_line():
    with raises("percent: must be in 1..50, not 0.0"):
        replace(CLAIM, percent=0.0)
    with raises("percent: must be left out of a claim judged open"):
        replace(CLAIM, judged=Judged.OPEN)
    with raises("published: must be above 0, not 0"):
        replace(CLAIM, published=0.0)
    with raises("top_k: must be at most experts=8"):
        replace(load_paper("duplex").workloads["mixtral"], top_k=9)


def test_a_paper_of_ones_own(tmp_path):
    """A file with another band and another range: the interval follows sourced inputs, not assumed ones."""
    text = (PRESETS / "papers" / "flame.toml").read_text()
    changed = text.replace("value = 77e9, evidence", "value = 77e9, low = 38.5e9, evidence")
    changed = changed.replace('judged = "open"', 'judged = "percent"\npercent = 45')
    assert changed != text
    file = tmp_path / "own.toml"
    file.write_text(changed)
    [outcome] = reproduce(str(file)).outcomes
    assert outcome.interval == (outcome.modelled / 2, outcome.modelled)
    assert outcome.within_band is True
    file.write_text(changed.replace("percent = 45", "percent = 10"))
    assert reproduce(str(file)).outcomes[0].within_band is False
    file.write_text(changed + "\n[claims.more]\npublished = 1\n")
    with raises(f"{file}: claims.more.what: is missing"):
        load_preset(PaperSpec, "papers", str(file), "paper")


def test_workloads_are_those_of_the_model_presets():
    """Where a paper's model is one of ours, the numbers agree; GLaM's 143 B has half of the layers."""
    pairs = {
        ("duplex", "mixtral"): "mixtral-8x7b",
        ("duplex", "grok1"): "grok-1",
        ("monde", "nllb"): "nllb-moe-54b",
        ("monde", "switch_large"): "switch-large-128",
        ("dynande", "deepseek_v2_lite"): "deepseek-v2-lite",
        ("sieve", "gpt_oss"): "gpt-oss-120b",
        ("sieve", "qwen3"): "qwen3-30b-a3b",
        ("pimoe", "switch_base_128"): "switch-base-128",
    }
    for (paper, name), preset in pairs.items():
        work, model = load_paper(paper).workloads[name], load_model(preset)
        assert (work.d_model, work.d_expert, work.experts, work.top_k) == (
            model.d_model,
            model.ffn.d_expert,
            model.gating.num_experts,
            model.gating.top_k,
        ), name
        assert work.matrices == model.ffn.num_matrices, name


def test_duplex_draws_every_assignment_once():
    stages = duplex.draw_stages("mixtral", 8, 2, 32, 256)
    assert stages.counts.sum(axis=1).tolist() == (2 * stages.tokens).tolist()
    assert stages.chance.sum() == pytest.approx(1)
    # A request prefills in one of 256 stages.
    assert stages.mean(stages.prefills.astype(float)) == pytest.approx(32 / 256, rel=0.01)
    chosen = duplex._distinct(np.random.default_rng(0), 4000, 5, 3)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    assert np.bincount(chosen.ravel()) / 4000 == pytest.approx([0.6] * 5, abs=0.04)


def test_duplex_all_reduce_by_hand():
    values = nominal(load_paper("duplex"))
    sizes = np.array([1e3, 2.0**18, 2.0**19, 2.0**20, 2.0**20 + 450e9])
    mean = [(13.9 + 20.6) / 2, (20.2 + 26.9) / 2, (31.1 + 40.2) / 2]
    times = 1e6 * duplex.all_reduce(values, sizes, 4)
    assert times.tolist() == pytest.approx([mean[0], *mean, mean[2] + 1.5e6])
    ring = with_changed(values, {"inputs.all_reduce": 0})
    assert duplex.all_reduce(ring, np.array([450e3]), 4) == pytest.approx(6 * (0.8e-6 + 0.25e-6))
    long = with_changed(values, {"inputs.all_reduce": 3})
    assert duplex.all_reduce(long, np.array([450e3]), 8) == pytest.approx(14 * (3e-6 + 0.125e-6))


def test_duplex_with_nothing_gained_is_the_gpu():
    """Units in memory that are as slow as a stone change neither time nor energy of plain Duplex."""
    paper = load_paper("duplex")
    values = nominal(paper)
    built = duplex.machines(values)
    stone = replace(built["plain"], near=Roofline(1.0, 1.0))
    work = paper.workloads["glam"]
    stages = duplex.draw_stages("glam", 64, 2, 32, 512)
    gpu = duplex._experts(work, stages, built["gpu"])
    for mine, theirs in zip(duplex._experts(work, stages, stone), gpu, strict=True):
        assert mine.tolist() == pytest.approx(theirs.tolist())


def test_duplex_co_processing_is_never_slower_than_the_processor_alone():
    paper = load_paper("duplex")
    built = duplex.machines(nominal(paper))
    work = paper.workloads["glam"]
    stages = duplex.draw_stages("glam", 64, 2, 32, 512)
    both, *_ = duplex._experts(work, stages, built["pe"])
    alone, *_ = duplex._experts(work, stages, built["gpu"])
    assert (both <= alone * (1 + 1e-12)).all()


def test_edge_moe_by_hand():
    """Trip counts of the released loops; the MoE layer by the block model is slower than its bound."""
    paper = load_paper("edge-moe")
    values, work = nominal(paper), paper.workloads["m3vit_tiny"]
    cycles = edge_moe.image_cycles(values, work)
    assert cycles["attention linears"] == 12 * 4 * 129 * 12 * 12 == 891_648
    assert cycles["dense FFN"] == 6 * 129 * 48 * 12 * 2 == 891_648
    assert cycles["attention"] == 12 * 2 * 33 * 129 * 24 * 2 == 4_904_064
    assert cycles["LayerNorm"] == 24 * 129 * 84
    bound = edge_moe.quick_moe_layer_cycles(work, 129, 16, 128)
    assert bound == 294_912
    assert edge_moe.moe_layer_cycles(work, 129, 16, 128, 100) == 307_487
    assert "307,487 cycles each" in paper.note
    assert "294,912" in paper.note
    wide = edge_moe.image_cycles(with_changed(values, {"inputs.port_bits": 256}), work)
    assert wide["attention"] == 4_904_064 / 2


@pytest.mark.parametrize(
    ("tokens", "interval", "port", "ms"),
    [
        (129, 1, 256, 9.0),
        (129, 2, 256, 13.1),
        (129, 1, 128, 12.0),
        (129, 2, 128, 16.1),
        (197, 1, 256, 15.4),
        (197, 2, 256, 24.9),
        (197, 1, 128, 18.4),
        (197, 2, 128, 27.8),
    ],
)
def test_ubimoe_variants(tokens, interval, port, ms):
    """Eight variants of what is unknown, against a model that was written before and apart from this one."""
    paper = load_paper("ubimoe")
    changes = {"inputs.tokens": tokens, "inputs.interval": interval, "inputs.port_bits": port}
    out = ubimoe.run(paper, with_changed(nominal(paper), changes))
    assert out["zcu102_ms"] == pytest.approx(ms, abs=0.05)


def test_coqmoe_and_flame_by_hand():
    paper = load_paper("coqmoe")
    values = with_changed(nominal(paper), {"inputs.port_bits": 128})
    work = paper.workloads["tiny"]
    assert coqmoe.least_ms(values, work, "zcu102") == pytest.approx(6 * 16 * 2 * 192 * 384 * 8 / 128 / 300e3)
    fast = with_changed(values, {"inputs.port_bits": 512})
    macs = 12 * (4 * 192**2 * 129 + 2 * 129**2 * 192) + 6 * 129 * (8 * 192**2 + 4 * 192 * 384)
    assert coqmoe.least_ms(fast, work, "zcu102") == pytest.approx(macs / 1754 / 300e3)
    paper = load_paper("flame")
    values = nominal(paper)
    assert flame.run(paper, values)["speed_over_gpu"] == pytest.approx(77 * 2 / (936 * 0.5 * 0.156))
    exposed = with_changed(values, {"inputs.exposed_hits": 1, "inputs.gpu_efficiency": 0.8})
    assert flame.run(paper, exposed)["speed_over_gpu"] == pytest.approx(77 * 2 / (936 * 0.8))


def test_deepep_by_hand():
    """Of 1,024 copies to 16 devices, 8 of 16 leave the node: RDMA is the longer way."""
    found = result("deepep")
    modelled = {outcome.name: outcome.modelled for outcome in found.outcomes}
    assert modelled["dispatch_16_us"] == pytest.approx(5 + 512 * 7392 / 50e3)
    assert modelled["combine_8_us"] == pytest.approx(0.8 + 896 * 14336 / 160e3)


def test_sieve_with_true_rooflines_is_no_slower():
    """Where nothing is misjudged and nothing exchanged, the best number is at least as good as the rule."""
    paper = load_paper("sieve")
    values = dict(nominal(paper))
    for engine in ("host", "near"):
        for kind in ("bandwidth", "flops"):
            values[f"systems.sieve.{engine}.{kind}_efficiency"] = 1.0
    assert all(speed >= 1 for speed in sieve.run(paper, values).values())


def test_the_block_models_of_a_note():
    """What notes say of this project's command schedules is what they do."""
    note = load_paper("sieve").note
    product = Product(rows=768, cols=2048, channels=64)
    for name, said in (("hbm2-pim", "0.82"), ("hbm2-pim-samsung", "0.11")):
        used = f"{run_gemv(load_device(name), product).utilisation:.2f}"
        assert used == said
        assert said in note
    # Eight operations a byte, one vector: an eighth of the MACs is all of the bandwidth.
    matrix = Product(rows=14336, cols=4096, channels=64)
    used = f"{8 * run_gemv(load_device('duplex'), matrix).utilisation:.2f}"
    assert used == "0.89"
    assert f"reaches {used} of its bandwidth" in load_paper("duplex").note


def test_every_model_gives_every_claim():
    for name in paper_names():
        paper = load_paper(name)
        wanted = {key for key, claim in paper.claims.items() if not claim.needs_files}
        if name not in ("duplex", "monde", "pimoe"):  # these have their turn above, and take their time
            assert set(model_of(name)(paper, nominal(paper))) == wanted


HEAD = "OpName\tStartCycle\tEndCycle\tTotalCycle\tComputeCycles"


def write_copy(root: Path, positions: int = 2) -> Path:
    """Write files of the released kind: one layer, three experts with tokens, moves about as slow as they."""
    for name in dynande_replay.POSITIONS[:positions]:
        folder = root / name
        for part in ("npu", "pim"):
            (folder / part / "4").mkdir(parents=True)
        (folder / "layer4.txt").write_text(
            "TOP 6\nExpert ID    Token Count     Percentage\n"
            "Expert 3     2                50.00%\nExpert 5     1                25.00%\n"
            "Expert 9     1                25.00%\nExpert 12    0                 0.00%\n"
            "Expert_Activ (experts with >=1 token): 3\n"
        )
        npu, pim = [HEAD], [HEAD]
        for expert in (3, 5, 9):
            for operation, cycles in (("param_load", 100), ("fc1", 4), ("gelu", 2), ("fc2", 4)):
                npu.append(f"layer0.ffn.moe_expert.{expert}.{operation}\t0\t0\t{cycles}\t0")
            for operation, cycles in (("fc1", 60), ("gelu", 10), ("fc2", 60), ("pim_barrier", 2)):
                pim.append(f"layer0.ffn.moe_expert.{expert}.{operation}\t0\t0\t{cycles}\t0")
        pim += [f"layer0.ffn.activation_movement_{n}\t0\t0\t50\t0" for n in (1, 2)]
        (folder / "npu" / "4" / "SA_stage_E.tsv").write_text("\n".join(npu) + "\n")
        (folder / "pim" / "4" / "SA_stage_E.tsv").write_text("\n".join(pim) + "\n")
    return root


def test_a_replay_by_hand(tmp_path):
    """Moves take 100, experts 10 on the NPU and 130 near, tokens 100 to there and back.

    MoNDE moves one of three: 2 x 130 + 100 near. The scan: two moved, 130 + 100 near the third; then, with
    the two in a cache, all on the NPU, one move and 10.
    """
    root = write_copy(tmp_path / "decoder-simulator" / "Decoder-BS16")
    positions = dynande_replay.read_places(tmp_path)
    assert [len(places) for places in positions] == [1, 1]
    [place] = positions[0]
    assert (place.layer, place.movement, place.tokens[3], place.near[5], place.npu[9]) == (4, 100, 2, 130, 10)
    assert dynande_replay.speed(positions[:1], 1 / 17, 2) == pytest.approx(360 / 230)
    assert dynande_replay.speed(positions, 1 / 17, 2) == pytest.approx(720 / (230 + 110))
    assert dynande_replay.speed(positions, 1 / 17, 0) == pytest.approx(360 / 230)
    # A file that is missing leaves its layer out.
    (root / "2nd" / "pim" / "4" / "SA_stage_E.tsv").unlink()
    assert [len(places) for places in dynande_replay.read_places(root)] == [1]


def test_a_replay_through_the_command(tmp_path, capsys):
    write_copy(tmp_path)
    assert main(["reproduce", "dynande", "--files", str(tmp_path), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["not_run"] == []
    claim = next(claim for claim in out["claims"] if claim["name"] == "replay_decode")
    assert claim["modelled"] == pytest.approx(720 / 340)
    assert claim["within_band"] is True
    assert main(["reproduce", "dynande", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in out["not_run"]] == ["replay_decode"]
    assert "replay_decode" not in {claim["name"] for claim in out["claims"]}
    assert claim_rows(result("dynande"))[-1][0] == "replay_decode"
    assert claim_rows(result("dynande"))[-1][6] == "not run"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("npu", "TotalCycle", "Cycles", "{file}: line 1: has no column TotalCycle"),
        (
            "npu",
            "fc1\t0\t0\t4\t0",
            "fc1\t0\t0\tx\t0",
            "{file}: line 3: must have a number of cycles, not 'x'",
        ),
        ("npu", "fc1\t0\t0\t4\t0", "fc1\t0", "{file}: line 3: must have 5 columns, not 2"),
        ("npu", "expert.5.gelu", "expert.5.relu", "{file}: has no gelu of expert 5, which has tokens"),
        ("npu", "expert.5.gelu", "expert.64.gelu", "{file}: must name experts 0..63, not 64"),
        (
            "pim",
            "activation_movement",
            "movement",
            "{file}: has no activation_movement_1 and activation_movement_2",
        ),
        ("layer4.txt", "Expert ", "expert ", "{file}: names no expert with a token"),
    ],
)
def test_bad_files_of_a_replay_are_one_line(tmp_path, file, old, new, message):
    root = write_copy(tmp_path, 1)
    path = root / "1st" / file if file.endswith(".txt") else root / "1st" / file / "4" / "SA_stage_E.tsv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with raises(message.format(file=path)):
        dynande_replay.read_places(root)


def test_a_copy_without_files(tmp_path):
    with raises(
        f"{tmp_path}: files: holds no folder 1st, Decoder-BS16/1st, decoder-simulator/Decoder-BS16/1st"
    ):
        dynande_replay.read_places(tmp_path)
    (tmp_path / "1st").mkdir()
    with raises(f"{tmp_path}: holds no layer with its layer<N>.txt and both SA_stage_E.tsv"):
        dynande_replay.read_places(tmp_path)
