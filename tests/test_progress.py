"""The bar of what takes long: on a terminal alone, late, and gone before anything is printed."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from sim import progress
from sim.cli import main

ROOT = Path(__file__).parent.parent
STREAM = ["dram", "stream", "--standard", "ddr4-2400", "--pattern", "seq_bankfast", "--requests", "200000"]
CODE = (
    "import sys; from sim import progress, cli; progress.DELAY_S = {delay}; sys.exit(cli.main({arguments}))"
)


def on_terminal(
    folder: Path, arguments: list[str], delay: float, *, output: bool = False
) -> tuple[int, str, str]:
    """Run a command with stderr, and stdout too if asked, on a terminal: status, terminal, stdout."""
    terminal, other = pty.openpty()
    with (folder / "stdout").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(delay=delay, arguments=arguments)],
            stdout=other if output else file,
            stderr=other,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
    os.close(other)
    seen = b""
    with contextlib.suppress(OSError):  # nobody has it open any more
        while part := os.read(terminal, 1 << 16):
            seen += part
    os.close(terminal)
    return process.wait(), seen.decode(), (folder / "stdout").read_text()


def test_a_bar_counts_requests_on_a_terminal(tmp_path) -> None:
    status, seen, printed = on_terminal(tmp_path, [*STREAM, "--json"], 0.0)
    assert status == 0
    assert "dram stream" in seen
    assert re.search(r"\d+/200000", seen)
    assert printed.startswith('{"standard"') and printed.count("\n") == 1


def test_no_bar_for_what_is_quick(tmp_path, capsys) -> None:
    assert on_terminal(tmp_path, ["dram", "list", "--json"], 2.0)[1] == ""
    assert main([*STREAM[:-1], "1000", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_the_bar_is_gone_before_output(tmp_path) -> None:
    """Both on one terminal: behind the last cursor movement stands the whole table."""
    status, seen, _ = on_terminal(tmp_path, STREAM, 0.0, output=True)
    assert status == 0
    assert "/200000" in seen
    last = seen[seen.rindex("\x1b[2K") :]
    assert "of the data buses' time" in last and "/200000" not in last


def test_words_without_a_bar_are_lines(capsys) -> None:
    progress.tell("claims")("link dram")
    assert list(progress.track([1, 2])) == [1, 2]
    assert capsys.readouterr() == ("", "[claims] link dram\n")


def test_a_bar_tells_what_is_done(monkeypatch) -> None:
    shown = progress.Bar("claims", 0.0)
    monkeypatch.setattr(progress, "_bars", [shown])
    found = []
    for item in progress.track(["a", "b"], lambda item: f"link {item}"):
        progress.tell("claims")(f"inside {item}")
        found.append((shown._words, shown._done, shown._total))
    assert found == [("claims: inside a", 0, 2), ("claims: inside b", 1, 2)]
    assert (shown._done, shown._total) == (0, 0)
    shown.start()
    time.sleep(0.3)
    shown.stop()
    shown.stop()
    assert shown._display is None
