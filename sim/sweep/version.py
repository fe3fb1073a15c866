"""The version of the models: a hash of all that decides the figures of a point."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("spec", "golden", "sim")
SUFFIXES = (".py", ".toml")
DECIDES_NOTHING = (
    *("sim/commands/", "sim/claims/", "sim/results/", "sim/bench.py", "sim/cli.py"),
    *("sim/interruptions.py", "sim/processes.py"),
    "spec/sweeps/",
    *(f"sim/sweep/{name}.py" for name in ("findings", "run", "search", "store", "warm", "workers")),
)
"""Sources that print, draw, measure and distribute; no figure of a point is computed in them."""
LIBRARIES = ("numpy", "numba")
"""Libraries that draw the routings and compile the models."""


@functools.cache
def models_version() -> str:
    """Return 16 hexadecimal digits; other sources of spec, golden or sim, or other libraries, give others."""
    return version_of(ROOT)


def version_of(root: Path) -> str:
    """Return the version of the packages in a folder."""
    digest = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    for path in sources(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def sources(root: Path) -> list[Path]:
    """Return the files that the version is of, in an order that does not depend on the machine."""
    found = [
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in SUFFIXES and not path.relative_to(root).as_posix().startswith(DECIDES_NOTHING)
    ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
