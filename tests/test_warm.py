"""`make setup` compiles what the commands need, so that the first result comes at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WARMED = re.findall(r"expertbank (\w+ .*) >/dev/null", (ROOT / "Makefile").read_text())
COMMANDS = {
    "vector": "sim --model tests/data/mixtral_s0.npz --engine model",
    "shared expert, groups, several windows": "sim --model deepseek-v3 --scale 64 --tokens 70 --engine model",
    "capacity": "sim --model tests/data/switch_transformers_s0.npz --engine model",
    "all layers": "sim --model gpt-oss-20b --scale 64 --phase decode --tokens 2 --engine model",
    "near memory": "sim --model deepseek-v3 --scale 64 --tokens 4 --design pim --engine model",
    "near memory, a vector": "sim --model tests/data/mixtral_s0.npz --design pim --engine model",
    "DRAM stream": "dram stream --standard lpddr5-6400 --pattern seq_colfast --requests 99 --no-refresh",
    "single banks": "dram stream --standard hbm3-6400 --pattern random --requests 99 --refresh per-bank",
    "expert alone": "sim --model qwen3-30b-a3b --scale 64 --experts 2 --tokens 3 --engine model",
}
# Runs the commands of its arguments in one process; prints what each compiled beyond those before it.
# A compiled function is one per combination of its arguments' types.
SCRIPT = """
import contextlib, io, sys
from numba.core.dispatcher import Dispatcher
from sim.cli import main

def compiled():
    found = set()
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] in ("sim", "golden")]:
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                name = f"{function.py_func.__module__}.{function.py_func.__name__}"
                found |= {f"{name}{signature}" for signature in function.signatures}
    return found

known = set()
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command.split()) == 0, command
    now = compiled()
    print(";".join(sorted(now - known)))
    known |= now
"""


def test_setup_compiles_all_that_the_models_need() -> None:
    assert [command.split()[0] for command in WARMED] == ["sim", "dram", "serve", "pim", "pim", "pim"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *WARMED, *COMMANDS.values()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    warmed, others = lines[: len(WARMED)], lines[len(WARMED) :]
    assert warmed[0].count("sim.") >= 5, "the cycle models are not compiled, or not found"
    assert warmed[1].count("sim.dram.") >= 3, "the DRAM engine is not compiled, or not found"
    assert dict(zip(COMMANDS, others, strict=True)) == dict.fromkeys(COMMANDS, "")
