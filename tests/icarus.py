"""Icarus Verilog as a second opinion on the exported files."""

from __future__ import annotations

import subprocess
from pathlib import Path


def check_icarus(folder: Path, name: str) -> None:
    """Compile ``folder / <name>.f`` as Verilog-2005; not a word may come out."""
    done = subprocess.run(
        [
            "iverilog",
            "-g2005",
            "-Wall",
            "-Wno-timescale",
            "-s",
            f"eb_{name}",
            "-o",
            f"{name}.vvp",
            "-f",
            f"{name}.f",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
