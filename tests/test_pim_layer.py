"""The near-memory layer through its exported Verilog: bits, cycles and DRAM commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sim.pim_layer
from sim.cli import main
from sim.flips import NO_FLIPS, Flips, flip_problems
from sim.pim_report import run_pim_layer
from sim.routing import Routing, parse_routing
from sim.workload import random_workload, vector_workload
from spec.banks import BankGeometry
from spec.design import Format
from spec.load import load_design

DATA = Path(__file__).parent / "data"
TINY_FILE = Path(__file__).parent / "tiny_pim.toml"
ONE = load_design(str(TINY_FILE))
assert ONE.pim is not None
TWO = replace(ONE, pim=replace(ONE.pim, channels=2))
MODEL = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [pytest.param(ONE, id="one channel", marks=pytest.mark.long), pytest.param(TWO, id="two channels")],
)
def test_vector_runs_bit_and_cycle_equal(design) -> None:
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    report = run_pim_layer(work, design, engine="both", routing="vector")
    assert report.agreed, report.divergence
    assert report.mismatches == 0
    assert report.cycles["model"] == report.cycles["rtl"]
    assert all(pair["model"] == pair["rtl"] != 0 for pair in report.blocks.values()), report.blocks
    assert report.reference is not None
    assert report.reference["tokens_with_same_experts"] == len(work.tokens)
    assert report.counters is not None
    assert report.counters["tokens_out"] == len(work.tokens)
    assert report.counters["refreshes"] > 0
    assert report.dram is not None
    refreshes = report.dram["refreshes"]
    assert refreshes["due"] == refreshes["in_time"] == report.dram["commands"]["REF"] > 0
    assert report.dram["commands"]["MAC"] > report.dram["commands"]["ACT"] > 0
    assert report.dram["violations"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_waveform")
def test_refreshes_a_cycle_late_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Due a cycle earlier than the hardware has them."""
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), 4)
    offset = sim.pim_layer.refresh_offset
    monkeypatch.setattr(sim.pim_layer, "refresh_offset", lambda *arguments: offset(*arguments) - 1)
    report = run_pim_layer(work, TWO, engine="rtl", routing="vector")
    assert report.dram is not None
    assert report.dram["refreshes"]["due"] > 0 == report.dram["refreshes"]["in_time"]
    assert report.divergence is not None
    assert report.divergence.startswith("channel 0: refresh in time: 1 cycles before cycle ")
    assert not report.agreed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_placements_and_stalls(seed: int) -> None:
    """An expert moved to another channel, or held by both, gives the same bits."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 30))
    work = random_workload(MODEL, tokens, parse_routing(f"zipf:{rng.integers(0, 3)}"), seed)
    beats = -(-MODEL.d_model // TWO.stream_lanes)
    channels: list[list[int]] = [[0], [1], [0, 1]]
    placement = [channels[choice] for choice in rng.integers(0, 3, MODEL.gating.num_experts + 1)]
    report = run_pim_layer(
        work,
        TWO,
        engine="both",
        routing="zipf",
        seed=seed + 1,
        placement=placement,
        arrivals=np.cumsum(rng.integers(0, 6, tokens * beats)),
        output_ready=np.append(rng.random(4096) < 0.5, True),
    )
    assert report.agreed, (seed, report.divergence)
    assert report.mismatches == 0
    assert all(pair["model"] == pair["rtl"] for pair in report.blocks.values()), (seed, report.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_layer_model_equals_hardware(seed: int) -> None:
    """Whatever the routing and wherever the experts lie; both channels give results at once."""
    rng = np.random.default_rng(seed)
    work = random_workload(MODEL, int(rng.integers(20, 40)), parse_routing(f"zipf:{seed}"), seed)
    channels: list[list[int]] = [[0], [1], [0, 1]]
    placement = [channels[choice] for choice in rng.integers(0, 3, MODEL.gating.num_experts + 1)]
    report = run_pim_layer(work, TWO, engine="both", routing="zipf", placement=placement)
    assert report.agreed, (seed, report.divergence)
    assert report.cycles["model"] == report.cycles["rtl"], (seed, report.cycles)


@pytest.mark.long
def test_int8() -> None:
    """Two channels, both of which get the scales."""
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    design = replace(TWO, format=Format.INT8)
    report = run_pim_layer(work, design, engine="both", routing="vector")
    assert report.agreed, report.divergence
    assert report.mismatches == 0
    assert report.cycles["model"] == report.cycles["rtl"]
    assert report.reference is not None
    assert 0.005 < report.reference["relative_error"] < 0.046


@pytest.mark.slow
def test_one_channel_busy_and_the_other_idle() -> None:
    work = random_workload(MODEL, 6, Routing("uniform"), 5)
    everyone = BankGeometry.of(MODEL, TWO).num_experts + 1
    report = run_pim_layer(work, TWO, engine="both", routing="uniform", placement=[[1]] * everyone)
    assert report.agreed, report.divergence
    assert report.cycles["model"] == report.cycles["rtl"]


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design = tmp_path / "two.toml"
    design.write_text(TINY_FILE.read_text().replace("channels = 1", "channels = 2"))
    assert load_design(str(design)).pim == TWO.pim
    vector = str(DATA / "deepseek_v3_s0.npz")
    assert main(["sim", "--model", vector, "--design", str(design), "--engine", "both"]) == 0
    text = capsys.readouterr().out
    assert "DRAM rules broken: 0" in text
    assert "all agree" in text


@pytest.mark.long
@pytest.mark.parametrize(
    "design", [ONE.with_secded(), TWO.with_secded()], ids=["one channel", "two channels"]
)
def test_flips_in_the_verilog(design) -> None:
    """Counters and STATUS of the whole layer: single flips change no bit, words with two are an error."""
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    report = run_pim_layer(work, design, engine="both", routing="vector", flips=Flips(single=9))
    assert report.agreed and report.mismatches == 0, report.divergence
    assert report.cycles["model"] == report.cycles["rtl"]
    assert report.secded is not None
    assert report.secded["uncorrected"] == 0 and report.secded["corrected"] >= 9
    report = run_pim_layer(work, design, engine="both", routing="vector", flips=Flips(single=9, double=3))
    assert report.secded is not None and not report.agreed
    seen = report.secded["uncorrected"]
    assert seen >= 3 and report.mismatches
    assert report.divergence == (
        f"pim: {seen} words read with two flipped bits; {report.mismatches} bits differ from golden"
    )


def test_counts_of_flips_that_are_wrong_are_told() -> None:
    planted = Flips(single=2, double=1, corrected=5, uncorrected=3)
    assert flip_problems(planted, [4, 3], 7) == [
        "pim: corrected 4 words, of those planted 5 are read",
        "pim: 3 words read with two flipped bits; 7 bits differ from golden",
    ]
    assert flip_problems(planted, [5, 0], 0) == ["pim: uncorrected 0 words, of those planted 3 are read"]
    assert flip_problems(NO_FLIPS, [0, 0], 0) == []
