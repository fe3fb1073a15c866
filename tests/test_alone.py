"""``expertbank sim --experts N``: either engine alone, by the model and through its Verilog."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from golden.experts import PackedExpert
from golden.vectors import read_vector
from sim import alone
from sim.alone.expert import ExpertAlone
from sim.alone.pim import PimAlone
from sim.alone.plan import Plan
from sim.cli import main
from sim.dram_check import Violation
from spec.load import load_design
from tests.test_waves import check_views

DATA = Path(__file__).parent / "data"
TINY_FILE = Path(__file__).parent / "tiny.toml"
TINY = load_design(str(TINY_FILE))
TINY_PIM_FILE = Path(__file__).parent / "tiny_pim.toml"
TINY_PIM = load_design(str(TINY_PIM_FILE))
# Biases and the clamped activation; 32 x 24, which tiny's tiles divide, and one more input for the bias.
VECTOR = str(DATA / "gpt_oss_s0.npz")


@pytest.fixture
def wrong_golden(monkeypatch):
    """Make golden wrong in one bit of expert 1's token 2, element 5."""

    def wrong(packed, tokens):
        result = right(packed, tokens)
        calls.append(result)
        if len(calls) == 2:
            result[2, 5] ^= 1
        return result

    calls = []
    right = PackedExpert.outputs
    monkeypatch.setattr(PackedExpert, "outputs", wrong)


@pytest.mark.long
@pytest.mark.parametrize(("experts", "tokens"), [(1, 1), (2, 3), (8, 4)])
def test_experts_alone_are_bit_and_cycle_equal(capsys, tmp_path, experts, tokens):
    run = alone.run_experts(
        VECTOR, TINY, experts, tokens, 1, engine="both", seed=0, waves=tmp_path, progress=lambda _text: None
    )
    assert run.divergence is None
    assert run.mismatches == 0
    assert run.cycles["rtl"] == run.cycles["model"] == run.blocks["expert"]["rtl"]
    assert run.tokens == tokens
    assert run.reference["max_error_over_std"] < 0.1
    modelled = alone.run_experts(VECTOR, TINY, experts, tokens, 1, engine="model", seed=0)
    assert modelled.cycles == {"model": run.cycles["model"], "rtl": None}
    assert modelled.utilisation == run.utilisation
    assert Path(run.waveform) == tmp_path / "gpt_oss_s0_experts.vcd"
    assert "$scope module sequencer $end" in Path(run.waveform).read_text()
    check_views(Path(run.waveform), read_vector(Path(VECTOR)).model, TINY)


@pytest.mark.long
def test_a_wrong_bit_is_named_with_its_field(tmp_path, wrong_golden):
    run = alone.run_experts(VECTOR, TINY, 2, 3, 1, engine="rtl", seed=0, waves=tmp_path, root=Path("build"))
    assert not run.agreed
    assert run.mismatches == 1
    assert run.cycles["model"] is None
    # Element 5 is lane 1 of word 2: 8 blocks of two words for three tokens, then block 1's third token.
    transfer = 3 * 16 + 3 * 2 + 2 * 2
    assert run.divergence.startswith(f"expert.o: transfer {transfer}: cycle ")
    assert "(data[1]=" in run.divergence


@pytest.mark.long
def test_a_wrong_model_is_named(tmp_path, monkeypatch):
    real = ExpertAlone.times

    def late(plan):
        times = real(plan)
        return dataclasses.replace(times, r=times.r + (np.arange(len(times.r)) >= 7))

    monkeypatch.setattr(ExpertAlone, "times", late)
    run = alone.run_experts(VECTOR, TINY, 1, 2, 1, engine="both", seed=0, waves=tmp_path)
    assert run.mismatches == 0
    assert run.divergence.startswith("expert.i_r: transfer 7: cycle model ")


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "tokens"), [(1, 1), (2, 3), (8, 4)])
def test_experts_alone_near_memory_are_bit_and_cycle_equal(tmp_path, experts, tokens):
    """Every command too; tokens beyond a group stream the weights again."""
    trace = tmp_path / "t.csv"
    planned = alone.plan_experts(VECTOR, TINY_PIM, experts, tokens, 1, engine="both")
    run = alone.run_plan(planned, engine="both", seed=0, waves=tmp_path, trace=trace)
    assert run.divergence is None
    assert run.mismatches == 0
    assert run.dram_rules_broken == 0
    assert run.cycles["rtl"] == run.cycles["model"] == run.blocks["pim"]["rtl"]
    assert list(run.blocks) == ["pim"]
    assert run.reference["max_error_over_std"] < 0.1
    modelled = alone.run_experts(VECTOR, TINY_PIM, experts, tokens, 1, engine="model", seed=0)
    assert modelled.cycles == {"model": run.cycles["model"], "rtl": None}
    assert modelled.utilisation == run.utilisation
    assert Path(run.waveform) == tmp_path / "gpt_oss_s0_tiny_pim_experts.vcd"
    check_views(Path(run.waveform), read_vector(Path(VECTOR)).model, TINY_PIM)
    assert main(["dram", "check", str(trace), "--design", str(TINY_PIM_FILE)]) == 0


@pytest.mark.slow
def test_a_wrong_bit_near_memory_is_named_with_its_field(tmp_path, wrong_golden):
    run = alone.run_experts(
        VECTOR, TINY_PIM, 2, 3, 1, engine="rtl", seed=0, waves=tmp_path, root=Path("build")
    )
    assert not run.agreed
    assert run.mismatches == 1
    # Element 5 is lane 1 of word 2. Groups of two tokens: token 2 has a group of its own, after 2 x 16 beats.
    transfer = 3 * 16 + 2 * 16 + 2
    assert run.divergence.startswith(f"pim.o: transfer {transfer}: cycle ")
    assert "(data[1]=" in run.divergence


@pytest.mark.slow
def test_a_wrong_command_of_the_model_is_named(tmp_path, monkeypatch):
    """And a broken rule of the DRAM, where nobody else sees anything wrong."""
    plan = Plan(read_vector(Path(VECTOR)).model, TINY_PIM, 1, 2)
    right = PimAlone(plan).times
    rows = right.rows.copy()
    rows[5, 0] += 1
    late = property(lambda _self: dataclasses.replace(right, rows=rows))
    monkeypatch.setattr(PimAlone, "times", late)
    run = alone.run_experts(VECTOR, TINY_PIM, 1, 2, 1, engine="both", seed=0, waves=tmp_path)
    assert run.mismatches == 0
    assert run.divergence.startswith("pim.o_row: transfer 5: cycle model ")
    monkeypatch.undo()
    planted = [Violation("tRCD", 1, 2, 3)]
    monkeypatch.setattr(PimAlone, "violations", lambda *_arguments: planted)
    run = alone.run_experts(VECTOR, TINY_PIM, 1, 2, 1, engine="rtl", seed=0, waves=tmp_path)
    assert run.divergence == "channel 0: tRCD: 2 cycles before cycle 1, at least 3"
    assert run.dram_rules_broken == 1
    assert not run.agreed


@pytest.mark.long
def test_int8_experts_alone_near_memory():
    design = load_design(str(TINY_PIM_FILE), "int8")
    run = alone.run_experts(VECTOR, design, 2, 4, 1, engine="both", seed=0)
    assert run.divergence is None
    assert run.mismatches == 0
    assert run.cycles["rtl"] == run.cycles["model"]
    assert 0.002 < run.reference["relative_error"] < 0.05


def test_a_full_size_expert_near_memory_by_the_model(capsys):
    """All of DeepSeek-V3 fits no channel; one of its experts does. MACs cannot come closer than tCCD_L."""
    arguments = ["sim", "--model", "deepseek-v3", "--design", "pim", "--engine", "model"]
    assert main([*arguments, "--experts", "1", "--tokens", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tiles = 3 * (7168 // 16) * (2048 // 16)
    least = tiles * load_design("pim").pim.dram.timing.ccd_l
    assert report["cycles"] == report["blocks"]["pim"] == {"model": report["cycles"]["model"], "rtl": None}
    assert least < report["cycles"]["model"] < 1.4 * least
    assert report["d_model"] == 7168
    assert report["utilisation"]["bandwidth"] == least / report["cycles"]["model"]
    counts = report["energy"]["counts"]
    assert counts["dram_cell_bit"] == tiles * 16 * 256
    assert counts["mac_bf16"] == 4 * tiles * 256
    assert counts["activation"] == 4 * 2048
    assert "compare" not in counts
    assert main([*arguments, "--experts", "13"]) == 2
    message = "pim.dram: has 65536 rows per bank, but the 13 experts of channel 0 need 69888"
    assert capsys.readouterr() == ("", f"expertbank: design pim: {message}\n")


def test_a_full_size_expert_by_the_model(capsys):
    status = main(
        ["sim", "--model", "mixtral-8x7b", "--experts", "1", "--tokens", "32", "--engine", "model", "--json"]
    )
    report = json.loads(capsys.readouterr().out)
    slots = 3 * (4096 // 16) * (14336 // 16) * 32
    assert status == 0
    assert report["cycles"] == report["blocks"]["expert"] == {"model": report["cycles"]["model"], "rtl": None}
    assert slots < report["cycles"]["model"] < 1.01 * slots
    assert report["mismatches"] is None
    assert report["energy"]["counts"]["mac_bf16"] == slots * 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixtral-8x7b", "--experts", "0"], "experts: must be in 1..8, not 0"),
        (["mixtral-8x7b", "--experts", "9"], "experts: must be in 1..8, not 9"),
        (
            ["mixtral-8x7b", "--experts", "1", "--tokens", "33"],
            "tokens: must be in 1..32 (one window) with --experts, not 33",
        ),
        ([VECTOR, "--experts", "1", "--tokens", "21"], f"tokens: must be in 1..20 for {VECTOR}, not 21"),
    ],
)
@pytest.mark.parametrize("design", ["fpga", "pim"])
@pytest.mark.parametrize("engine", ["model", "both"])
def test_numbers_that_do_not_fit_are_one_line(capsys, arguments, message, engine, design):
    assert main(["sim", "--engine", engine, "--design", design, "--model", *arguments]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {message}\n")
