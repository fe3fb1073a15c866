"""``expertbank sim`` with several designs: one object, one table, the worst status, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sim import accelerator, pim_report
from sim.cli import main
from sim.commands.reports import print_report, print_side_by_side

DATA = Path(__file__).parent / "data"
VECTOR = str(DATA / "mixtral_s0.npz")
TINY, TINY_PIM = (str(Path(__file__).parent / name) for name in ("tiny.toml", "tiny_pim.toml"))
BOTH = ["--design", "fpga", "--design", "pim"]


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["sim", "--model", VECTOR, "--engine", "model", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def timeless(report: dict) -> dict:
    return {name: value for name, value in report.items() if name != "wall_s"}


def test_one_object_for_each_design(capsys) -> None:
    """Each is what the design alone gives; one design alone gives its object and no list."""
    both = report_of(capsys, *BOTH)
    assert list(both) == ["designs"]
    alone = [report_of(capsys, "--design", name) for name in ("fpga", "pim")]
    assert [timeless(report) for report in both["designs"]] == [timeless(report) for report in alone]
    assert [report["design"] for report in alone] == ["fpga", "pim"]


def test_one_table(capsys) -> None:
    assert main(["sim", "--model", VECTOR, "--engine", "model", *BOTH]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[1] == "mixtral_s0: 20 tokens, d_model 32, d_expert 24, 8 experts, top 2"
    assert re.fullmatch(r" +fpga \(bf16\) +pim \(bf16\)", lines[3])
    assert re.fullmatch(r"cycles( +RTL +model +difference){2}", lines[4])
    rows = [re.split(r"  +", line)[0] for line in lines[5:10]]
    assert rows == ["layer", "gating", "dispatch", "expert / pim", "combine"]
    assert all(re.fullmatch(r"\S.*?( +- +\d+ +-){2}", line) for line in lines[5:10])
    assert "mismatching" not in out
    assert all(len(line) == len(lines[3]) for line in lines[4:10])


@pytest.mark.long
def test_both_through_the_verilog(capsys, monkeypatch) -> None:
    """Small designs; every line of the table, dashes where a design has no such thing."""
    real = accelerator.build_layer
    # The layer's other tests have built it with waveforms already.
    monkeypatch.setattr(accelerator, "build_layer", lambda *shape, trace: real(*shape, trace=True))
    vector = str(DATA / "deepseek_v3_s0.npz")
    assert main(["sim", "--model", vector, "--design", TINY, "--design", TINY_PIM]) == 0
    out, err = capsys.readouterr()
    assert f"[{vector}, tiny_pim] comparing" in err
    for row in ("layer", "gating", "dispatch", "expert / pim", "combine"):
        (line,) = re.findall(rf"^{row} +(\d.*)$", out, re.MULTILINE)
        numbers = line.split()
        assert numbers[0] == numbers[1] != "0"
        assert numbers[3] == numbers[4] != "0"
        assert numbers[2] == numbers[5] == "0"
    for label, values in {
        "mismatching bits against golden": r"0 +0",
        r"experts as in Hugging Face \(deepseek_v3\)": r"20 of 20 tokens +20 of 20 tokens",
        r"error against Hugging Face \(deepseek_v3\): max": r"0\.\d{4} +0\.\d{4}",
        "MAC utilisation": r"[\d.]+% +[\d.]+%",
        "weight port": r"[\d.]+% +-",
        "column slots for MACs": r"- +[\d.]+%",
        "cycles stalled by weights": r"\d+ +\d+",
        "DRAM rules broken": r"- +0",
        "simulation speed": r"[\d,]+ cycles/s +[\d,]+ cycles/s",
        "modelled time": r"[\d,.]+ us +[\d,.]+ us",
        "all agree": r"yes +yes",
    }.items():
        assert re.search(rf"^{label} +{values}$", out, re.MULTILINE), label


def test_one_that_differs_decides_the_status(capsys, monkeypatch) -> None:
    real = pim_report.run_pim_model

    def wrong(*arguments, **options):
        report = real(*arguments, **options)
        report.mismatches, report.divergence = 3, "pim.o: transfer 2"
        return report

    monkeypatch.setattr(pim_report, "run_pim_model", wrong)
    arguments = ["sim", "--model", VECTOR, "--engine", "model", *BOTH]
    assert main([*arguments, "--json"]) == 1
    assert [one["mismatches"] for one in json.loads(capsys.readouterr().out)["designs"]] == [None, 3]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert re.search(r"^all agree +- +NO$", out, re.MULTILINE)
    assert out.splitlines()[-1] == "DIFFERS on pim: pim.o: transfer 2"


@pytest.mark.parametrize(
    ("designs", "message"),
    [
        (
            ["fpga", "asic"],
            (
                "design: is neither a preset (fpga, fpga-deep, fpga-ecp5, pim, pim-small)"
                " nor a .toml file: 'asic'"
            ),
        ),
        (["fpga", "pim", "fpga"], "design: must name each design once, not 'fpga' again"),
    ],
)
def test_one_bad_design_stops_all(capsys, monkeypatch, designs, message) -> None:
    monkeypatch.setattr(accelerator, "run_model", lambda *_arguments: pytest.fail("something ran"))
    arguments = [word for name in designs for word in ("--design", name)]
    assert main(["sim", "--model", VECTOR, "--engine", "model", *arguments]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {message}\n")


def test_what_does_not_fit_one_design_stops_all(capsys, monkeypatch) -> None:
    monkeypatch.setattr(accelerator, "run_model", lambda *_arguments: pytest.fail("something ran"))
    arguments = ["sim", "--model", "deepseek-v3", "--engine", "model", *BOTH]
    assert main(arguments) == 2
    message = "design pim: pim.dram: has 65536 rows per bank, but the 55 experts of channel 0 need 295680"
    assert capsys.readouterr() == ("", f"expertbank: {message}\n")


REPORT = accelerator.Report(
    model="m", design="d", format="int8", engine="both", tokens=3, d_model=1, d_expert=1, experts=1,
    top_k=1, cycles={"model": 1, "rtl": 1}, blocks={"expert": {"model": 1, "rtl": 1}}, mismatches=0,
    seconds=0.0, utilisation={"mac": 0.0, "bandwidth": 0.0}, dropped=0, wall_s=0.0,
    routing={"requested": "r", "experts_used": 1, "max_load": 1},
    reference={
        "name": "float golden", "tokens_with_same_experts": None, "first_token_with_other_experts": None,
        "max_error_over_std": 0.5, "mean_error_over_std": 0.25, "relative_error": None,
        "scales": {"x": 127.0, "hidden": 63.5},
    },
)  # fmt: skip


def test_other_experts_than_the_references_are_named(capsys) -> None:
    other = {"tokens_with_same_experts": 1, "first_token_with_other_experts": 2}
    report = dataclasses.replace(REPORT, reference={**REPORT.reference, **other})
    sentence = "2 of 3 tokens go to other experts than in float golden, first token 2"
    print_report(report)
    assert f"\nNOTE: {sentence}\n" in capsys.readouterr().out
    print_side_by_side([report, REPORT])
    assert f"\nNOTE on d: {sentence}\n" in capsys.readouterr().out
    print_report(REPORT)
    assert "NOTE" not in capsys.readouterr().out


def test_every_block_of_a_layer_is_in_the_object() -> None:
    blocks = REPORT.as_json()["blocks"]
    assert list(blocks) == ["gating", "dispatch", "expert", "combine"]
    assert blocks["expert"] == {"model": 1, "rtl": 1}
    assert blocks["gating"] == blocks["dispatch"] == blocks["combine"] == {"model": None, "rtl": None}


def test_a_phase_is_the_models(capsys) -> None:
    """Without --engine too: one step is nothing that the Verilog runs."""
    arguments = ["sim", "--model", "mixtral-8x7b", "--scale", "64", "--tokens", "2", "--phase", "decode"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "model"


def test_a_routing_of_experts_alone_is_noted(capsys) -> None:
    arguments = ["sim", "--model", "mixtral-8x7b", "--scale", "64", "--engine", "model", "--experts", "1"]
    assert main([*arguments, "--routing", "zipf:1"]) == 0
    note = "--routing changes nothing: with --experts every token meets every expert"
    assert note in capsys.readouterr().out
    assert main(arguments) == 0
    assert note not in capsys.readouterr().out


def test_int8_scales_are_in_the_table(capsys) -> None:
    report = REPORT
    print_side_by_side([report, dataclasses.replace(report, format="bf16", reference=None)])
    out = capsys.readouterr().out
    assert re.search(r"^int8: 127 stands for hidden = +2 +-$", out, re.MULTILINE)
    assert re.search(r"^error against float golden: max +0\.5000 +-$", out, re.MULTILINE)
    assert "relative" not in out
    assert "layer" not in out
