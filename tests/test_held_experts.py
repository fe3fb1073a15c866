"""Banks that do not hold all experts: a run holds those that its tokens use, and these alone are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sim.workload
from golden.banks import channel_image
from golden.layer_bf16 import layer_bf16
from golden.weights import random_weights
from sim import pim_report
from sim.cli import main
from sim.pim_layer import placement_steps
from sim.routing import Routing
from sim.rtlsim import PIECE_BYTES, BankMemory, RunSpec, Set, _Job
from sim.workload import DrawnTokens, draw_tokens, vector_workload
from spec.banks import BankGeometry
from spec.load import load_design, load_model
from spec.registers import REGISTERS

DATA = Path(__file__).parent / "data"
VECTOR = str(DATA / "deepseek_v3_s0.npz")  # 12 experts of 18 rows and a shared one
TINY = (Path(__file__).parent / "tiny_pim.toml").read_text().replace("channels = 1", "channels = 2")
MODEL = vector_workload(VECTOR, None).model
SMALL = ["--model", "mixtral-8x7b", "--scale", "64"]


@pytest.fixture
def design(tmp_path: Path) -> str:
    """Return the tiny design with two channels, whose build others use too; all experts fit."""
    path = tmp_path / "two.toml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Return one that holds five experts in each channel at most."""
    path = tmp_path / "small.toml"
    path.write_text(TINY.replace("rows = 1024", "rows = 90"))
    return str(path)


def simulated(capsys, engine: str, design: str, *arguments: str) -> dict:
    assert main(["sim", *arguments, "--design", design, "--engine", engine, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_experts_that_are_used_lie_round_robin(design, small) -> None:
    """In order of their numbers, the shared one everywhere; where all fit, nothing depends on the tokens."""
    banks = BankGeometry.unplaced(MODEL, load_design(small))
    placed = banks.place([9, 2, 7, 2])
    assert {expert: channels for expert, channels in enumerate(placed) if channels} == {
        2: [0],
        7: [1],
        9: [0],
        12: [0, 1],
    }
    assert banks.bases(placed) == [{2: 0, 9: 18, 12: 36}, {7: 0, 12: 18}]
    everything = BankGeometry.unplaced(MODEL, load_design(design))
    assert everything.place([9, 2]) == everything.round_robin()


def test_the_model_alone(capsys, small) -> None:
    """The same rows, whatever the size of the banks: as many experts as the tokens use."""
    report = simulated(capsys, "model", small, "--model", VECTOR, "--tokens", "1")
    used = MODEL.gating.top_k + 1
    assert report["layout"]["only"] == used
    assert sum(report["layout"]["experts"]) == used + 1
    assert report["layout"]["rows"] == [18 * count for count in report["layout"]["experts"]]
    assert report["notes"][0] == f"the banks hold only the {used} experts that these tokens use"


def test_what_fits_is_not_told(capsys, design) -> None:
    report = simulated(capsys, "model", design, "--model", VECTOR, "--tokens", "1")
    assert report["layout"]["only"] is None
    assert report["notes"] == []


def test_each_layer_of_a_step_is_placed_by_itself(capsys, tmp_path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(TINY.replace("rows = 1024", "rows = 1000"))
    report = simulated(capsys, "model", str(path), *SMALL, "--tokens", "1", "--phase", "decode")
    assert report["layout"]["only"] == 2
    assert report["layout"]["experts"] == [1, 1]
    assert report["layout"]["assignments"] == [32, 32]
    assert report["notes"][0] == "the banks hold only the experts that a layer's tokens use, 2 at most"


ROWS = "design tiny_pim: pim.dram: has {} rows per bank, but the {} experts of channel {} need {}"
REFUSED = {
    "a layer by the model": (["--model", VECTOR, "--engine", "model"], 90, (7, 0, 126)),
    "a layer in Verilog": (["--model", VECTOR, "--engine", "both"], 90, (7, 0, 126)),
    "random weights": ([*SMALL, "--engine", "both", "--tokens", "1"], 100, (1, 0, 336)),
    "a step, of which only a later layer does not fit": (
        [*SMALL, "--engine", "model", "--tokens", "3", "--phase", "decode", "--seed", "1"],
        1000,
        (3, 0, 1008),
    ),
}


@pytest.mark.parametrize(("arguments", "rows", "numbers"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_either_is_refused(capsys, tmp_path, monkeypatch, arguments, rows, numbers) -> None:
    """In one line with what the tokens need, before anything is drawn, run or written."""
    monkeypatch.setattr(pim_report, "run_pim_model", lambda *_arguments, **_options: pytest.fail("ran"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.toml"
    path.write_text(TINY.replace("rows = 1024", f"rows = {rows}"))
    assert main(["sim", *arguments, "--design", "d.toml"]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {ROWS.format(rows, *numbers)}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_loaded_are_limited(capsys, monkeypatch) -> None:
    """Not those of experts that no token meets; the limit counts an expert for each of its channels."""
    banks = BankGeometry.unplaced(load_model("deepseek-v3"), load_design("pim"))
    expert = 3 * 7168 * 2048 * 2
    assert banks.bytes_of(banks.place(range(8)), range(8)) == 10 * expert
    olmoe = BankGeometry.unplaced(load_model("olmoe-1b-7b"), load_design("pim"))
    assert olmoe.bytes_of(olmoe.place([5]), [5]) == 3 * 2048 * 1024 * 2
    arguments = ["--model", "qwen3-30b-a3b", "--scale", "full", "--tokens", "64", "--design", "pim"]
    assert main(["sim", *arguments, "--engine", "rtl"]) == 2
    message = "must leave at most 1024 MiB of weights for a run of the Verilog, not 1152"
    line = f"expertbank: scale: {message} (--experts runs some of them alone)\n"
    assert capsys.readouterr() == ("", line)


def prepared(monkeypatch, *arguments: str) -> tuple:
    """Return the workload, design and placement with which ``expertbank sim`` would run the Verilog."""
    caught: list[tuple] = []

    def run(work, design, *, placement, **_options):
        caught.append((work, design, placement))
        return pim_report.run_pim_model(work.model, design, work.reference_ids, "caught", placement=placement)

    monkeypatch.setattr(pim_report, "run_pim_layer", run)
    assert main(["sim", *arguments, "--engine", "rtl"]) == 0
    return caught[0]


def test_only_experts_that_tokens_meet_are_drawn(monkeypatch) -> None:
    """Golden gives the same bits with all experts, and the banks of those that are used the same tiles."""
    work, design, placement = prepared(
        monkeypatch,
        "--model",
        "deepseek-v3",
        "--scale",
        "64",
        "--tokens",
        "2",
        "--design",
        "pim",
        "--seed",
        "3",
    )
    model, banks = work.model, BankGeometry.unplaced(work.model, design)
    assert work.weights.held is not None
    assert len(work.weights.held) <= 2 * 8 < model.gating.num_experts
    full = random_weights(model, 3)
    options = {"window_tokens": design.window_tokens}
    held = layer_bf16(model, banks.image, work.weights, work.tokens, **options)
    everyone = layer_bf16(model, banks.image, full, work.tokens, **options)
    assert np.array_equal(held.output, everyone.output)
    assert set(np.unique(held.routing.ids)) <= set(work.weights.held)
    assert placement == banks.round_robin()
    used = set(work.weights.held)
    for bases in banks.bases(placement):
        some, all_of_them = (channel_image(banks, weights, bases) for weights in (work.weights, full))
        assert some.shape == all_of_them.shape
        for expert, base in bases.items():
            tiles = slice(
                base * banks.bursts_per_row, (base + banks.visits(banks.kind(expert))) * banks.bursts_per_row
            )
            there = expert in used or expert == banks.num_experts
            assert np.array_equal(some[tiles], all_of_them[tiles] if there else 0 * all_of_them[tiles])
            assert there == bool(some[tiles].any())


def test_experts_of_the_float_gate_are_drawn_too(monkeypatch) -> None:
    """Its choice is compared with the hardware's: near a tie they differ."""
    drawn = draw_tokens(MODEL, 1, Routing("uniform"), 0, random_weights(MODEL, 0, experts=[]))
    image = BankGeometry.unplaced(MODEL, load_design("pim")).image
    assert drawn.needed(image) == drawn.used(image)
    other = next(expert for expert in range(12) if expert not in drawn.used(image))
    monkeypatch.setattr(sim.workload, "experts_used", lambda *_arguments: [other])
    assert drawn.used(image) == [other]
    assert len(drawn.needed(image)) == MODEL.gating.top_k + 1
    assert isinstance(drawn, DrawnTokens)


def test_an_expert_that_no_channel_holds_can_be_served(small) -> None:
    """A gate that errs is told by the bits; a job that no channel may take would never end."""
    banks = BankGeometry.unplaced(MODEL, load_design(small))
    written = {}
    expert = None
    for step in placement_steps(banks, banks.place([3])):
        assert isinstance(step, Set)
        if step.values["reg_addr"] == REGISTERS["PLACE_EXPERT"]:
            expert = step.values["reg_wdata"]
        elif step.values["reg_addr"] == REGISTERS["PLACE_CHANNELS"]:
            written[expert] = step.values["reg_wdata"]
    assert written == {expert: 0b01 if expert == 3 else 0b11 for expert in range(13)}


def test_pieces_of_zeros_take_no_room(tmp_path) -> None:
    """Files of memory images are as long as the image; what is in them is the same."""
    image = np.zeros((9 * PIECE_BYTES + 100) // 4 * 4, dtype=np.uint8)
    image[4 * PIECE_BYTES + 5] = 7
    image[-1] = 9
    ports = [{"name": name, "width": 32, "direction": "input"} for name in ("mem_data",)]
    job = _Job(tmp_path, {"ports": ports, "plain": ports, "streams": [], "axi_reads": []})
    job.write([RunSpec(banks={"mem": BankMemory(image.reshape(-1, 4))})], 1, None)
    (file,) = [path for path in tmp_path.iterdir() if path.name.startswith("in")]
    assert np.array_equal(np.fromfile(file, dtype=np.uint8), image)
    assert file.stat().st_blocks * 512 < 4 * PIECE_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["1", "3"])
def test_the_verilog_with_only_the_experts_that_are_used(capsys, monkeypatch, design, tokens) -> None:
    """Bits and cycles equal, as with all experts in the banks; of other rows the DRAM's commands know.

    The banks of the build that others use are large enough: they are taken to be smaller.
    """
    arguments = ["--model", VECTOR, "--tokens", tokens]
    full = simulated(capsys, "both", design, *arguments)
    monkeypatch.setattr(BankGeometry, "fits", lambda self, placed: max(self.visits_used(placed)) <= 120)
    report = simulated(capsys, "both", design, *arguments)
    assert report["mismatches"] == full["mismatches"] == 0
    assert report["divergence"] is None
    assert report["cycles"]["rtl"] == report["cycles"]["model"]
    assert all(pair["rtl"] == pair["model"] for pair in report["blocks"].values())
    assert report["dram_rules_broken"] == 0
    assert full["layout"]["only"] is None
    assert report["layout"]["only"] == full["routing"]["experts_used"] + 1
    assert max(report["layout"]["rows"]) < min(full["layout"]["rows"])
    modelled = simulated(capsys, "model", design, *arguments)
    assert modelled["cycles"]["model"] == report["cycles"]["rtl"]
    assert modelled["layout"] == report["layout"]
