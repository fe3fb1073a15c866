"""Traces of DRAM commands as files: written by a run, read again, checked; broken ones refused or found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cli import main
from sim.dram_check import ACT, REF, Commands, check_commands
from sim.dram_trace import COMMANDS, HEADER, places, read_trace, trace_text
from spec.design import BankMode
from spec.errors import InputError
from spec.load import load_design
from tests.test_dram_check import PLANTED, trace
from tests.test_pim import DRAM, PIM

DATA = Path(__file__).parent / "data"
VECTOR = str(DATA / "deepseek_v3_s0.npz")
TINY_FILE = Path(__file__).parent / "tiny_pim.toml"
TINY = load_design(str(TINY_FILE)).pim
assert TINY is not None
TIMING = TINY.dram.timing


def with_addresses(commands: Commands) -> Commands:
    """Return the commands with a row for each ACT and a column for each MAC."""
    rows, columns = (np.pad(bus, ((0, 0), (0, 1))) for bus in (commands.rows, commands.columns))
    rows[rows[:, 1] == ACT, 4] = 3
    columns[columns[:, 1] == 1, 4] = 1
    return Commands(rows, columns)


def same(one: Commands, other: Commands) -> bool:
    return one.rows.tolist() == other.rows.tolist() and one.columns.tolist() == other.columns.tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """Return a design of two channels and the lines of a trace of its Verilog's run."""
    place = tmp_path_factory.mktemp("trace")
    (place / "two.toml").write_text(TINY_FILE.read_text().replace("channels = 1", "channels = 2"))
    arguments = ["--model", VECTOR, "--design", str(place / "two.toml"), "--trace", str(place / "t.csv")]
    assert main(["sim", *arguments, "--engine", "rtl"]) == 0
    return str(place / "two.toml"), (place / "t.csv").read_text().splitlines()


def check(capsys, path: Path, lines: list[str], *arguments: str) -> tuple[int, dict]:
    path.write_text("\n".join(lines) + "\n")
    status = main(["dram", "check", str(path), *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.long
def test_a_run_leaves_every_command(capsys, tmp_path, run) -> None:
    """As many as the hardware's own counters say, of both channels, and no rule is broken."""
    design, lines = run
    assert main(["sim", "--model", VECTOR, "--design", design, "--engine", "rtl", "--json"]) == 0
    counters = json.loads(capsys.readouterr().out)["counters"]
    status, told = check(capsys, tmp_path / "t.csv", lines, "--design", design)
    assert (status, told["violations"], told["first_violations"]) == (0, 0, [])
    assert told["standard"] == "tiny"
    counted = {name: told["commands"][name] for name in ("ACT", "MAC", "WR", "RD")}
    assert list(counted.values()) == [
        counters[name] for name in ("activates", "mac_commands", "register_writes", "register_reads")
    ]
    # Refreshes go on until the counters are read, some cycles after the trace ends.
    assert 0 <= counters["refreshes"] - told["commands"]["REF"] <= 2
    assert told["commands"]["REF"] > 10
    assert {line.split(",")[1] for line in lines[1:]} == {"0", "1"}
    assert main(["dram", "check", str(tmp_path / "t.csv"), "--design", design]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "rules of tiny broken: 0"


def moved(lines: list[str], command: str, by: int, number: int = 3) -> list[str]:
    """Return the lines with channel 0's command of this kind and number moved in time."""
    chosen = [n for n, line in enumerate(lines) if line.split(",")[1:3] == ["0", command]][number]
    cycle, rest = lines[chosen].split(",", 1)
    others = lines[1:chosen] + lines[chosen + 1 :] + [f"{int(cycle) + by},{rest}"]
    return [lines[0], *sorted(others, key=lambda line: int(line.split(",")[0]))]


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "by", "rule"),
    [
        ("MAC", -1, "tCCD_L"),
        ("ACT", -1, "tRP"),
        ("ACT", 1, "tRCD"),
        ("PRE", -1, "tRTP"),
        ("REF", 1, "refresh in time"),
    ],
)
def test_a_command_one_cycle_off_is_found_in_the_file(capsys, tmp_path, run, command, by, rule) -> None:
    design, lines = run
    status, told = check(capsys, tmp_path / "t.csv", moved(lines, command, by), "--design", design)
    assert status == 1
    assert rule in {one["rule"].split(",")[0] for one in told["first_violations"]}
    assert {one["channel"] for one in told["first_violations"]} == {0}
    assert main(["dram", "check", str(tmp_path / "t.csv"), "--design", design]) == 1
    out = capsys.readouterr().out.splitlines()
    first = told["first_violations"][0]
    assert out[1].startswith(f"channel 0: {first['rule']}: ")
    assert out[-1] == f"rules of tiny broken: {told['violations']}"


@pytest.mark.long
def test_a_refresh_that_is_left_out_is_found_in_the_file(capsys, tmp_path, run) -> None:
    design, lines = run
    status, told = check(
        capsys, tmp_path / "t.csv", [line for line in lines if ",REF," not in line], "--design", design
    )
    assert status == 1
    assert [one["rule"] for one in told["first_violations"]] == ["refresh in time"] * 2


@pytest.mark.long
def test_another_standard_has_other_rules(capsys, tmp_path, run) -> None:
    design, lines = run
    text = TINY_FILE.read_text()
    dram = text[text.index("[pim.dram]") : text.index("[memory]")]
    standard = tmp_path / "slower.toml"
    standard.write_text(
        dram.replace("[pim.dram]\n", "").replace("[pim.dram.", "[").replace("rcd_rd = 5", "rcd_rd = 6")
    )
    status, told = check(capsys, tmp_path / "t.csv", lines, "--design", design, "--standard", str(standard))
    assert status == 1
    assert {one["rule"] for one in told["first_violations"]} == {"tRCD, bank 0 of side 0"}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violations_survive_the_file(tmp_path, name: str) -> None:
    pim, rows, columns = PLANTED[name]
    commands = with_addresses(trace(sorted(rows), sorted(columns)))
    path = tmp_path / "t.csv"
    path.write_text(trace_text(pim, [commands]))
    (seen, *_) = read_trace(path, pim)
    assert same(seen, commands)
    assert name in {violation.rule.split(",")[0] for violation in check_commands(pim, seen)}


@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("mode", BankMode)
@pytest.mark.parametrize(("groups", "per_group", "per_unit"), [(2, 2, 1), (2, 4, 2), (4, 2, 4), (1, 4, 2)])
def test_every_bank_has_a_place_of_its_own(groups, per_group, per_unit, mode, exempt) -> None:
    """Where banks are named one by one, each is named once; sides have no bank in common."""
    dram = replace(DRAM, bank_groups=groups, banks_per_group=per_group, all_bank_exempt=exempt)
    pim = replace(PIM, dram=dram, banks_per_unit=per_unit, bank_mode=mode, act_lanes=1)
    for command in ("ACT", "PRE", "MAC"):
        banks = []
        for group, bank in places(pim, command):
            low, high = (int(end) for end in (group.split("-")[0], group.split("-")[-1]))
            first, last = (int(end) for end in (bank.split("-")[0], bank.split("-")[-1]))
            banks += [(g, b) for g in range(low, high + 1) for b in range(first, last + 1)]
        assert sorted(banks) == [(g, b) for g in range(groups) for b in range(per_group)], command
    assert list(places(pim, "REF").values()) == [(0, 0)]
    assert list(places(pim, "WR")) == [("", "")]


GOOD = [
    "0,0,ACT,0-1,0-1,7,",
    "9,0,MAC,0-1,0-1,,3",
    "10,0,WR,,,,",
    "12,0,PREA,0-1,0-1,,",
    "30,0,REF,0-1,0-1,,",
]
BAD_LINES = {
    "too few fields": ("0,0,ACT", "must have 7 fields, not 3"),
    "a cycle in words": ("now,0,REF,0-1,0-1,,", r"cycle: must be a whole number in -\d+\.\.\d+, not 'now'"),
    "a cycle with a fraction": ("40.5,0,REF,0-1,0-1,,", r"cycle: must be a whole number in .*, not '40\.5'"),
    "a huge cycle": ("9" * 30 + ",0,REF,0-1,0-1,,", r"cycle: must be a whole number in .*, not '9{30}'"),
    "time runs backwards": (
        "29,0,REF,0-1,0-1,,",
        "cycle: must be at least 30, that of the line above, not 29",
    ),
    "unknown channel": ("40,1,REF,0-1,0-1,,", r"channel: must be a whole number in 0\.\.0, not '1'"),
    "no channel": ("40,,REF,0-1,0-1,,", r"channel: must be a whole number in 0\.\.0, not ''"),
    "unknown command": (
        "40,0,NOP,,,,",
        "command: must be one of ACT, PRE, PREA, REF, MAC, WR, RD, not 'NOP'",
    ),
    "one bank where all are opened": (
        "40,0,ACT,0,1,7,",
        "bank_group,bank: must be '0-1,0-1' for ACT on this design, not '0,1'",
    ),
    "banks of a register access": (
        "40,0,WR,0,1,,",
        "bank_group,bank: must be ',' for WR on this design, not '0,1'",
    ),
    "row beyond the bank": (
        "40,0,ACT,0-1,0-1,1024,",
        r"row: must be a whole number in 0\.\.1023, not '1024'",
    ),
    "ACT without a row": ("40,0,ACT,0-1,0-1,,", r"row: must be a whole number in 0\.\.1023, not ''"),
    "MAC with a row": ("40,0,MAC,0-1,0-1,7,3", "row: must be empty for MAC, not '7'"),
    "column beyond the row": ("40,0,MAC,0-1,0-1,,4", r"column: must be a whole number in 0\.\.3, not '4'"),
    "column of a REF": ("40,0,REF,0-1,0-1,,0", "column: must be empty for REF, not '0'"),
    "empty line": ("", "must have 7 fields, not 1"),
    "a line without end": ("4" * 1000, "must have at most 256 characters"),
}


def refused(capsys, monkeypatch, place: Path, message: str, *arguments: str) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    for flags in ([], ["--json"]):
        assert main([*arguments, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"expertbank: {message}\n", err), err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named(capsys, tmp_path, monkeypatch, line, message) -> None:
    (tmp_path / "t.csv").write_text("\n".join([HEADER, *GOOD, line]) + "\n")
    refused(
        capsys,
        monkeypatch,
        tmp_path,
        rf"t\.csv: line 7: {message}",
        "dram",
        "check",
        "t.csv",
        "--design",
        str(TINY_FILE),
    )


BAD_FILES = {
    "missing": (None, "cannot be read: No such file or directory"),
    "empty": (b"", f"line 1: must be {HEADER}, not ''"),
    "another header": (b"cycle,command\n", f"line 1: must be {HEADER}, not 'cycle,command'"),
    "no command": (f"{HEADER}\n".encode(), "holds no command"),
    "not text": (b"\xff\xfe\x00", "is not UTF-8: invalid start byte"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named(capsys, tmp_path, monkeypatch, content, message) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    refused(
        capsys,
        monkeypatch,
        tmp_path,
        rf"t\.csv: {message}",
        "dram",
        "check",
        "t.csv",
        "--design",
        str(TINY_FILE),
    )


def test_a_folder_is_named(capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "t.csv").mkdir()
    refused(
        capsys, monkeypatch, tmp_path, r"t\.csv: cannot be read: Is a directory", "dram", "check", "t.csv"
    )


def test_a_sound_file_of_a_text_editor(tmp_path) -> None:
    """Windows' line ends, and no line end behind the last line."""
    path = tmp_path / "t.csv"
    path.write_bytes("\r\n".join([HEADER, *GOOD]).encode())
    (seen,) = read_trace(path, TINY)
    assert seen.rows[:, [0, 1, 4]].tolist() == [[0, ACT, 7], [12, 3, 0], [30, REF, 0]]
    assert seen.columns[:, [0, 4]].tolist() == [[9, 3], [10, 0]]


@given(st.lists(st.text(alphabet="0123456789-,ACTMREFWDP \n\x00\"'é", max_size=60), max_size=6))
def test_any_text_is_read_or_refused(tmp_path_factory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_text("\n".join([HEADER, *GOOD, *lines]), encoding="utf-8")
    refusal = None
    try:
        read_trace(path, TINY)
    except InputError as error:
        refusal = str(error)
    assert refusal is None or refusal.startswith(f"{path}: line ")


REFUSED = {
    "fpga": (["--trace", "t.csv"], "trace: is for engine pim, not for design fpga"),
    "two designs": (
        ["--design", "fpga", "--design", "pim", "--trace", "t.csv"],
        "trace: needs a single --design",
    ),
    "no run": (
        ["--design", "pim", "--engine", "model", "--trace", "t.csv"],
        "trace: needs --engine rtl or both",
    ),
    "no folder": (
        ["--design", "pim", "--trace", "a/t.csv"],
        "a/t.csv: trace: is in a folder that does not exist",
    ),
    "a folder": (["--design", "pim", "--trace", "."], r"\.: trace: is a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_traces_that_cannot_be_written(capsys, tmp_path, monkeypatch, arguments, message) -> None:
    refused(capsys, monkeypatch, tmp_path, message, "sim", "--model", VECTOR, *arguments)


def test_the_checker_needs_a_design_with_banks(capsys, tmp_path, monkeypatch) -> None:
    message = "design: must have engine pim, which design fpga has not"
    refused(capsys, monkeypatch, tmp_path, message, "dram", "check", "t.csv", "--design", "fpga")


def test_standards_are_listed(capsys) -> None:
    assert main(["dram", "list", "--json"]) == 0
    assert "hbm2-2000" in json.loads(capsys.readouterr().out)["names"]
    assert main(["dram", "list"]) == 0
    assert "hbm2-2000" in capsys.readouterr().out


def test_commands_have_names_of_their_own() -> None:
    assert len(set(COMMANDS)) == len(COMMANDS)
