"""The arrows between packages, and a few rules that no linter knows. Planted violations are caught."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("spec", "golden", "rtl", "sim")
MAY_IMPORT = {
    "spec": {"spec"},
    "golden": {"golden", "spec"},
    "rtl": {"rtl", "spec", "golden"},
    "sim": {"sim", "spec", "golden"},
}
MAY_IMPORT_RTL_IN_FUNCTIONS = ("sim/cli.py", "sim/commands/", "sim/rtlsim.py")
HARDWARE = ("amaranth",)
NOT_PART_OF_THE_PROJECT = "../" + "shared"
SKIPPED_FOLDERS = {".git", ".venv", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".v", ".cpp", ".h", ".cfg", ".txt", ".json", ""}


def violations(root: Path) -> list[str]:
    """Return what breaks a rule in a source tree, one line each, with file and line."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if path.name == "utils.py":
                found.append(f"{name}: utils.py says nothing about what is in it")
            found += [f"{name}:{line}: {what}" for line, what in _in_module(package, name, path.read_text())]
    for path in _files(root):
        if NOT_PART_OF_THE_PROJECT in path.read_text(errors="replace"):
            found.append(f"{path.relative_to(root).as_posix()}: mentions {NOT_PART_OF_THE_PROJECT}")
    return found


def _files(root: Path) -> list[Path]:
    """Return the files of text; folders that are skipped are not entered: builds come and go in them."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        paths = [Path(folder, name) for name in names]
        found += [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]
    return sorted(found)


def _in_module(package: str, name: str, source: str) -> list[tuple[int, str]]:
    found = []
    tree = ast.parse(source)
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        for module in _imported(node):
            top = module.split(".")[0]
            if module == "__future__.annotations" and package == "rtl":
                found.append((node.lineno, "Amaranth reads annotations: no future annotations in rtl"))
            if package in ("spec", "golden") and top in HARDWARE:
                found.append((node.lineno, f"{package} must not import {top}"))
            if top in ("tests", *PACKAGES) and top not in MAY_IMPORT[package]:
                allowed = package == "sim" and top == "rtl" and name.startswith(MAY_IMPORT_RTL_IN_FUNCTIONS)
                if not allowed:
                    found.append((node.lineno, f"{package} must not import {top}"))
                elif id(node) not in in_functions:
                    found.append((node.lineno, "sim must import rtl inside functions only"))
    return found


def _imported(node: ast.AST) -> list[str]:
    """Return the dotted names that a statement or a call of import_module imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            # Relative imports stay inside the package.
            return []
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func)
        if called.split(".")[-1] in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def test_the_project_keeps_its_rules():
    assert violations(ROOT) == []


def test_every_package_is_looked_at():
    for package in PACKAGES:
        assert list((ROOT / package).rglob("*.py"))


PLANTED = {
    "spec imports golden": ("spec/x.py", "import golden.gating", "spec/x.py:1: spec must not import golden"),
    "golden imports sim": (
        "golden/x.py",
        "from sim import check",
        "golden/x.py:1: golden must not import sim",
    ),
    "golden imports amaranth": (
        "golden/x.py",
        "import amaranth",
        "golden/x.py:1: golden must not import amaranth",
    ),
    "golden imports rtl in a function": (
        "golden/x.py",
        "def f():\n    from rtl import gating",
        "golden/x.py:2: golden must not import rtl",
    ),
    "rtl imports sim": ("rtl/x.py", "from sim.check import compare", "rtl/x.py:1: rtl must not import sim"),
    "a model imports rtl": (
        "sim/gating.py",
        "def f():\n    import rtl.gating",
        "sim/gating.py:2: sim must not import rtl",
    ),
    "a command imports rtl at its top": (
        "sim/commands/verilog.py",
        "import rtl.export",
        "sim/commands/verilog.py:1: sim must import rtl inside functions only",
    ),
    "by name": (
        "sim/gating.py",
        "import importlib\nimportlib.import_module('rtl.gating')",
        "sim/gating.py:2: sim must not import rtl",
    ),
    "golden imports tests": (
        "golden/x.py",
        "from tests.bfm import Trace",
        "golden/x.py:1: golden must not import tests",
    ),
    "future annotations in rtl": (
        "rtl/deep/x.py",
        "from __future__ import annotations",
        "rtl/deep/x.py:1: Amaranth reads annotations: no future annotations in rtl",
    ),
    "utils": ("sim/utils.py", "", "sim/utils.py: utils.py says nothing about what is in it"),
    "outside the project": (
        "docs/x.md",
        f"see {NOT_PART_OF_THE_PROJECT}/y",
        f"docs/x.md: mentions {NOT_PART_OF_THE_PROJECT}",
    ),
}


@pytest.mark.parametrize(("path", "source", "message"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_caught(tmp_path, path, source, message):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert violations(tmp_path) == [message]


@pytest.mark.parametrize("path", ["sim/cli.py", "sim/commands/verilog.py", "sim/rtlsim.py"])
def test_the_command_line_may_import_rtl_lazily(tmp_path, path):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("import spec.load\nfrom golden import gating\n\ndef run():\n    from rtl import export\n")
    assert violations(tmp_path) == []


def planted_bugs(path: Path) -> list[tuple[int, Path, str]]:
    """Return line, source and text of every ``(module, old, new)`` in a test file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Tuple(
                elts=[ast.Attribute() as module, ast.Constant(value=str(old)), ast.Constant(value=str())]
            ):
                source = ROOT / (ast.unparse(module).replace(".", "/") + ".py")
                if source.exists():
                    found.append((node.lineno, source, old))
    return found


def test_planted_bugs_stand_in_their_sources():
    """A bug that is planted into a text that is no longer there would only be missed by the long tests."""
    planted = [
        (path, *bug) for path in sorted((ROOT / "tests").glob("test_*.py")) for bug in planted_bugs(path)
    ]
    assert len(planted) > 200
    assert not [
        f"{path.name}:{line}: {source.relative_to(ROOT)} does not hold {old!r} once"
        for path, line, source, old in planted
        if source.read_text(encoding="utf-8").count(old) != 1
    ]
