"""The command line: one JSON object, one line per mistake, the exit status of the contract."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sim.cli import main
from spec.load import design_names, preset_names

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    """Run a command with --json; nothing else may be on stdout, and nothing on stderr."""
    status = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return status, json.loads(captured.out)


@pytest.mark.parametrize("kind", ["models", "designs"])
def test_presets_are_listed(capsys, kind):
    names = design_names() if kind == "designs" else preset_names(kind)
    assert run_json(capsys, kind) == (0, {"names": names})
    assert main([kind]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["name", *names]


def test_models_shows_expert_parameters(capsys):
    main(["models"])
    mixtral = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mixtral-8x7b"))
    assert re.sub(" +", " ", mixtral) == "mixtral-8x7b mixtral 32 4096 8 2 softmax 14336 - silu 45.10 1,409.3"


def test_check_passes(capsys):
    status, result = run_json(capsys, "check", str(DATA))
    assert (status, result["passed"], result["failed"]) == (0, 57, 0)
    assert set(result["cases"][0]) == {
        "file",
        "family",
        "combine_max_abs_err",
        "output_rel_err",
        "ok",
        "reason",
    }
    assert main(["check", str(DATA)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "57 passed, 0 failed"
    assert len(lines) == 59


def test_check_fails(capsys, tmp_path):
    shutil.copy(DATA / "mixtral_s0.npz", tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"")
    status, result = run_json(capsys, "check", str(tmp_path))
    assert (status, result["passed"], result["failed"]) == (1, 1, 1)
    assert [case["ok"] for case in result["cases"]] == [False, True]
    assert main(["check", str(tmp_path)]) == 1
    reason = f"bad.npz: {tmp_path / 'bad.npz'}: is not a sound .npz archive: File is not a zip file"
    assert capsys.readouterr().out.splitlines()[-2:] == [reason, "1 passed, 1 failed"]


def test_check_tells_of_an_unknown_family_and_says_so_in_its_help(capsys, tmp_path):
    with np.load(DATA / "mixtral_s0.npz") as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"])) | {"family": "abacus"}
    np.savez(tmp_path / "v.npz", **arrays | {"meta": json.dumps(meta)})
    status, result = run_json(capsys, "check", str(tmp_path))
    assert (status, result["passed"], result["failed"]) == (1, 0, 1)
    assert result["cases"][0]["family"] == "abacus"
    reason = result["cases"][0]["reason"]
    assert re.fullmatch(r".*v\.npz: meta\.family: must be one of .*, not 'abacus'", reason)
    assert main(["check", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A file that is malformed, contradicts itself or is of an unknown family is a failed case" in text
    line = "Exit status: 0 all cases are ok, 1 some failed, 2 DIR cannot be read or holds no .npz file."
    assert line in text


MISTAKES = {
    "no command": ([], "Missing command."),
    "unknown command": (["frobnicate"], r"No such command 'frobnicate'\..*"),
    "unknown option": (["models", "--jsno"], "No such option:? '?--jsno'?.*"),
    "no folder given": (["check"], r"Missing argument 'DIR'\."),
    "two folders": (["check", "a", "b"], r"Got unexpected extra argument \(b\)"),
    "no such folder": (["check", "/nowhere/at/all"], "/nowhere/at/all: does not exist"),
    "a file": (["check", __file__], f"{re.escape(__file__)}: is not a folder"),
    "no vectors": (["check", str(ROOT / "rtl")], f"{re.escape(str(ROOT / 'rtl'))}: holds no .npz file"),
}


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["plain", "json"])
@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_status_2(capsys, arguments, message, flags):
    if not arguments:
        flags = []
    assert main([*arguments, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", captured.err)


def test_the_process_exits_with_the_status():
    run = subprocess.run(
        [sys.executable, "-m", "sim.cli", "check", "/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "expertbank: /nowhere: does not exist\n")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in ("check", "models", "designs"))


def test_who_reads_no_further_has_not_found_a_difference():
    """``expertbank ... | head``: status 1 says that something disagreed, of tables and of JSON."""
    for option in ("", "--json"):
        command = f'"{sys.executable}" -m sim.cli models {option} | (exec <&-); exit "${{PIPESTATUS[0]}}"'
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (141, "")
