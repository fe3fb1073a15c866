"""Layout files: where experts lie changes when they are computed, and no bit of what they give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from golden.vectors import read_vector
from sim.cli import main
from spec.banks import BankGeometry
from spec.layout import layout_text, load_layout, rows_used
from spec.load import load_design

DATA = Path(__file__).parent / "data"
VECTOR = str(DATA / "deepseek_v3_s0.npz")  # 12 experts and a shared one
TINY = (Path(__file__).parent / "tiny_pim.toml").read_text()
MODEL = read_vector(Path(VECTOR)).model


@pytest.fixture
def design(tmp_path: Path) -> str:
    """Return the tiny design with two channels, whose build others use too."""
    path = tmp_path / "two.toml"
    path.write_text(TINY.replace("channels = 1", "channels = 2"))
    return str(path)


@pytest.fixture
def banks(design: str) -> BankGeometry:
    return BankGeometry.of(MODEL, load_design(design))


def written(path: Path, channels: object, shared: object = None) -> str:
    path.write_text(f"channels = {channels}\n" + ("" if shared is None else f"shared = {shared}\n"))
    return str(path)


def simulated(capsys, engine: str, design: str, *arguments: str) -> dict:
    assert main(["sim", "--model", VECTOR, "--design", design, "--engine", engine, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_moved_and_replicated_experts_give_the_same_bits(capsys, tmp_path, design) -> None:
    """Verilog and models follow the file: bits equal to golden's, every cycle equal, another load."""
    rows = [[0]] * 3 + [[1]] * 5 + [[1, 0]] * 4
    moved = simulated(
        capsys, "both", design, "--layout", written(tmp_path / "moved.toml", [[1]] * 11 + [[0]], [0])
    )
    spread = simulated(capsys, "both", design, "--layout", written(tmp_path / "spread.toml", rows, [0, 1]))
    for report in (moved, spread):
        assert report["mismatches"] == 0
        assert report["divergence"] is None
        assert report["cycles"]["rtl"] == report["cycles"]["model"]
        assert report["dram_rules_broken"] == 0
        assert sum(report["layout"]["assignments"]) == report["tokens"] * (MODEL.gating.top_k + 1)
    assert moved["layout"]["file"] == str(tmp_path / "moved.toml")
    assert moved["layout"]["experts"] == [2, 11]
    assert spread["layout"]["experts"] == [8, 10]
    assert spread["layout"]["rows"] == [144, 180]
    assert moved["cycles"]["rtl"] != spread["cycles"]["rtl"]
    # The model alone: the same answers from the same file.
    for report, name in ((moved, "moved"), (spread, "spread")):
        alone = simulated(capsys, "model", design, "--layout", str(tmp_path / f"{name}.toml"))
        assert alone["cycles"]["model"] == report["cycles"]["rtl"]
        assert alone["layout"] == report["layout"]


def test_the_report_says_which_layout(capsys, tmp_path, design) -> None:
    default = simulated(capsys, "model", design)
    assert default["layout"]["file"] is None
    assert default["layout"]["experts"] == [7, 7]
    file = written(tmp_path / "l.toml", [[1]] * 12, [1])
    arguments = ["sim", "--model", VECTOR, "--design", design, "--engine", "model", "--layout", file]
    assert main(arguments) == 0
    assert re.search(
        rf"^layout {re.escape(file)}; per channel: experts 0, 13 in rows 0, 234 of 1024,"
        r" assignments 0, 80 in jobs 0, \d+$",
        capsys.readouterr().out,
        re.MULTILINE,
    )


def test_all_layers_with_a_layout(capsys, tmp_path) -> None:
    """Every layer of a step has its experts where the file says; loads add up."""
    file = written(tmp_path / "l.toml", [[1]] * 8)
    arguments = ["--model", "mixtral-8x7b", "--scale", "64", "--tokens", "2", "--phase", "decode"]
    assert main(["sim", *arguments, "--design", "pim", "--engine", "model", "--layout", file, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layout"]["file"] == file
    assert report["layout"]["assignments"] == [0, 2 * 2 * 32]
    assert sum(report["mac_slots"].values()) == 2 * report["cycles"]["model"]


def test_a_layout_is_written_and_read_again(capsys, tmp_path, design, banks) -> None:
    """By default round robin; each expert's rows stand beside it, none twice."""
    out = tmp_path / "l.toml"
    arguments = ["layout", "--model", VECTOR, "--design", design]
    assert main([*arguments, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert load_layout(out, banks) == banks.round_robin()
    assert main([*arguments, "--replicas", "2"]) == 0
    text = capsys.readouterr().out
    assert text == layout_text(banks.round_robin(2), banks, "deepseek_v3_s0 on tiny_pim in bf16")
    assert "\n  [0, 1],  # expert 1: rows 18..35 of channel 0, rows 18..35 of channel 1\n" in text
    (tmp_path / "all.toml").write_text(text)
    assert load_layout(tmp_path / "all.toml", banks) == [[0, 1]] * 13
    assert main([*arguments, "--layout", str(tmp_path / "all.toml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["channels"] == [[0, 1]] * 12
    assert told["shared"] == [0, 1]
    assert told["rows"] == rows_used([[0, 1]] * 13, banks) == [234, 234]
    for channel in range(2):
        starts = [rows[channel] for rows in told["first_rows"]]
        ends = [first + rows for first, rows in zip(starts, told["expert_rows"], strict=True)]
        assert starts == [0, *ends[:-1]]


TWELVE = "[[0], [1], [0], [1], [0], [1], [0], [1], [0], [1], [0], [1]]"
SHARED = "shared = [0, 1]\n"
BAD_LAYOUTS = {
    "too few rows": (
        "channels = [[0], [1]]\n" + SHARED,
        "channels: must have 12 rows, one per expert, not 2",
    ),
    "too many rows": (
        f"channels = {TWELVE[:-1]}, [0]]\n" + SHARED,
        "channels: must have 12 rows, one per expert, not 13",
    ),
    "unknown channel": (
        f"channels = {TWELVE.replace('[[0]', '[[2]')}\n" + SHARED,
        r"channels\[0\]: must hold channels in 0\.\.1, not 2",
    ),
    "negative channel": (
        f"channels = {TWELVE.replace('[1]]', '[-1]]')}\n" + SHARED,
        r"channels\[11\]: must hold channels in 0\.\.1, not -1",
    ),
    "empty row": (
        f"channels = {TWELVE.replace('[[0]', '[[]')}\n" + SHARED,
        r"channels\[0\]: must hold at least one channel, not \[\]",
    ),
    "duplicate": (
        f"channels = {TWELVE.replace('[[0]', '[[1, 1]')}\n" + SHARED,
        r"channels\[0\]: must hold a channel once, not 1 twice",
    ),
    "a row that is no list": (
        f"channels = {TWELVE.replace('[[0]', '[0')}\n" + SHARED,
        r"channels\[0\]: must be a list of channels, not 0",
    ),
    "a channel that is no number": (
        f"channels = {TWELVE.replace('[[0]', '[[true]')}\n" + SHARED,
        r"channels\[0\]: must be a list of channels, not \[True\]",
    ),
    "no list": ("channels = 3\n" + SHARED, "channels: must be a list of lists of channels, not 3"),
    "unknown key": (f"colour = 1\nchannels = {TWELVE}\n", "colour: unknown key; known are channels, shared"),
    "no channels": (SHARED, "channels: is missing"),
    "no shared expert": (f"channels = {TWELVE}\n", "shared: is missing"),
    "empty shared": (
        f"channels = {TWELVE}\nshared = []\n",
        r"shared: must hold at least one channel, not \[\]",
    ),
    "truncated": (f"channels = {TWELVE[:-1]}", "is not valid TOML: .*"),
    "nested without end": ("channels = " + "[" * 50_000, "is not valid TOML: brackets nested too deeply"),
    "a number without end": (
        f"channels = [[{'9' * 6000}]]",
        "is not valid TOML: Exceeds the limit .* for integer string conversion.*",
    ),
}


@pytest.mark.parametrize("engine", ["model", "both"])
@pytest.mark.parametrize(("text", "message"), BAD_LAYOUTS.values(), ids=BAD_LAYOUTS.keys())
def test_bad_layouts_are_one_line(capsys, tmp_path, monkeypatch, design, text, message, engine) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.toml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    model = ["--model", VECTOR, "--design", design, "--layout", "l.toml"]
    for arguments in (["sim", "--engine", engine, *model], ["layout", "--out", "o.toml", *model]):
        assert main([*arguments, "--json"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"expertbank: l\.toml: {message}\n", err), err
    assert sorted(tmp_path.rglob("*")) == before


REFUSED = {
    "missing file": (
        ["sim", "--model", VECTOR, "--design", "pim", "--layout", "none.toml"],
        "none.toml: cannot be read: No such file or directory",
    ),
    "fpga": (
        ["sim", "--model", VECTOR, "--layout", "none.toml"],
        "layout: is for engine pim, not for design fpga",
    ),
    "fpga among others": (
        ["sim", "--model", VECTOR, "--design", "pim", "--design", "fpga", "--layout", "two.toml"],
        "layout: is for engine pim, not for design fpga",
    ),
    "experts alone": (
        ["sim", "--model", VECTOR, "--design", "pim", "--layout", "none.toml", "--experts", "1"],
        "layout: cannot be combined with --experts",
    ),
    "layout of an fpga": (
        ["layout", "--model", VECTOR, "--design", "fpga"],
        "design: must have engine pim, which design fpga has not",
    ),
    "no folder": (
        ["layout", "--model", VECTOR, "--out", "no/l.toml"],
        "no/l.toml: out: is in a folder that does not exist",
    ),
    "more replicas than channels": (
        ["layout", "--model", VECTOR, "--replicas", "3"],
        "replicas: must be in 1..2, not 3",
    ),
    "replicas of a file": (
        ["layout", "--model", VECTOR, "--replicas", "2", "--layout", "none.toml"],
        "replicas: cannot be combined with --layout",
    ),
    "experts that do not fit": (
        ["layout", "--model", "mixtral-8x7b"],
        "pim.dram: has 65536 rows per bank, but the 4 experts of channel 0 need 86016",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(capsys, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "two.toml", TWELVE, [0, 1])
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"expertbank: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["two.toml"]


def test_a_shared_row_without_a_shared_expert(capsys, tmp_path) -> None:
    file = written(tmp_path / "l.toml", [[0]] * 8, [0])
    arguments = ["--model", str(DATA / "mixtral_s0.npz"), "--design", "pim", "--engine", "model"]
    assert main(["sim", *arguments, "--layout", file]) == 2
    message = "shared: must be left out: the model has no shared expert, not [0]"
    assert capsys.readouterr() == ("", f"expertbank: {file}: {message}\n")


def test_experts_that_do_not_fit_where_the_file_puts_them(capsys, tmp_path) -> None:
    """And some that fit where the default would not: a shared expert in one channel only."""
    design = tmp_path / "small.toml"
    design.write_text(TINY.replace("channels = 1", "channels = 5").replace("rows = 1024", "rows = 60"))
    arguments = ["sim", "--model", VECTOR, "--design", str(design), "--engine", "model"]
    file = written(tmp_path / "l.toml", [[0]] * 4 + [[1]] * 3 + [[2]] * 3 + [[3]] * 2, [4])
    assert main([*arguments, "--layout", file]) == 2
    message = (
        "channels: must leave each channel at most 60 rows per bank, but the 4 experts of channel 0 need 72"
    )
    assert capsys.readouterr() == ("", f"expertbank: {file}: {message}\n")
    assert main(arguments) == 2
    message = "pim.dram: has 60 rows per bank, but the 4 experts of channel 0 need 72"
    assert capsys.readouterr().err == f"expertbank: design tiny_pim: {message}\n"
    file = written(tmp_path / "l.toml", [[0]] * 3 + [[1]] * 3 + [[2]] * 3 + [[3]] * 3, [4])
    assert main([*arguments, "--layout", file]) == 0
