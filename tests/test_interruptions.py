"""Ctrl-C anywhere is one line and exit status 130; a sweep's first second had a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim import interruptions
from sim.cli import main
from sim.interruptions import IMPORTING, held, taken

ROOT = Path(__file__).parent.parent

IN_AN_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.{signal})
            for _ in range(1000):
                pass

sys.meta_path.insert(0, Finder())
from sim.cli import main
sys.exit(main({arguments!r}))
"""


def handlers() -> list[object]:
    numbers = (*interruptions.SIGNALS, signal.SIGALRM)
    return [*(signal.getsignal(number) for number in numbers), sys.unraisablehook]


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", ["click", "sim.catalogue"])
def test_an_import_is_ended_in_one_line(number, name):
    script = IN_AN_IMPORT.format(name=name, signal=number, arguments=["models"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "expertbank: interrupted\n")


@pytest.mark.parametrize("number", interruptions.SIGNALS)
def test_a_command_is_ended_in_one_line(number, monkeypatch, capsys):
    before = handlers()
    monkeypatch.setattr("sim.commands.models.print_table", lambda *_: press(number))
    assert main(["models"]) == 130
    assert capsys.readouterr() == ("", "expertbank: interrupted\n")
    assert handlers() == before


def test_what_a_callback_swallows_comes_again():
    class Swallows:
        def __del__(self) -> None:
            press()

    def swallowed() -> None:
        with taken():
            Swallows()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        swallowed()


def test_what_is_held_waits_for_the_end_of_an_import():
    passed = []
    script = compile("press(); passed.append(1); time.sleep(0.01)", f"{IMPORTING}._bootstrap>", "exec")

    def importing() -> None:
        with taken(), held():
            exec(script, {"press": press, "time": time, "passed": passed})
            passed.append(2)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        importing()
    assert passed == [1, 2]


def test_a_second_one_interrupts_nothing_and_the_last_ends_it(monkeypatch):
    ended = []
    monkeypatch.setattr(interruptions, "end", lambda *given: ended.append(given))
    with taken():
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
        press()
        assert not ended
        press()
        assert ended == [(interruptions.LINE,)]
