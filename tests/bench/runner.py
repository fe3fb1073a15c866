"""Run exported Verilog under cocotb and Verilator; nobody else has to know cocotb's API.

``build`` gives a bench with the interface of :class:`sim.rtlsim.Build`: the same jobs
(:class:`sim.rtlsim.RunSpec`), the same results, another simulator interface and another driver::

    rtl = build("gating", lambda: Gate(geometry), config=geometry)
    first, second = rtl.run_phases([spec, other_spec], seed=3)

One call is one simulator process, whatever the number of phases. Verilator and cocotb are those of the
running interpreter. Only the top's ports are public, and registers start with what ``seed`` says.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cocotb_tools.config
import numpy as np
from cocotb_tools.runner import Verilator

from sim import toolchain
from sim.rtlsim import DEFAULT_ROOT, RunResult, RunSpec, Waveform, exported, file_list, ports_of
from sim.toolchain import built_once, compile_model, digest, verilator_version
from tests.bench.bfm import BenchResult
from tests.bench.in_simulator import JOB, RESULTS

FLAGS = ("--vpi",)
COVERAGE_FLAGS = ("--coverage-line", "--coverage-toggle")
# Python takes most of a run's time, so that compiling faster counts for more than running faster.
CXX_FLAGS = ("-O1",)
LIBRARY = ("verilated_vpi",)
MAIN = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
LIBRARIES = cocotb_tools.config.libs_dir


class BenchError(RuntimeError):
    """The bench itself failed, in or around the simulator."""


@dataclass(frozen=True)
class CocotbBuild:
    """A model of one top linked with cocotb; made by :func:`build`."""

    name: str
    directory: Path
    program: Path
    trace: bool
    root: Path
    coverage: bool = False

    def traced(self) -> CocotbBuild:
        """Return the same with waveforms; builds it if need be."""
        return self if self.trace else build_exported(self.directory, self.name, trace=True, root=self.root)

    def run_module(self, module: str, job: object, *, seed: int = 1, coverage: Path | None = None) -> object:
        """Run a cocotb test module of its own on a job; it reads the job and leaves results as ours does.

        ``coverage`` as of :meth:`run_phases`.
        """
        if coverage is not None and not self.coverage:
            raise ValueError("coverage needs a build with coverage=True")
        with tempfile.TemporaryDirectory(prefix="expertbank-") as folder:
            place = Path(folder)
            (place / "job").write_bytes(pickle.dumps(job))
            _simulate(self.program, place, _power_up(seed), module)
            results: Any = pickle.loads((place / RESULTS).read_bytes())
            if coverage is not None:
                shutil.move(place / "coverage.dat", coverage)
        return results

    def run(self, spec: RunSpec, *, seed: int = 1, vcd: Waveform | None = None) -> RunResult:
        """Run once from power-up; ``seed`` decides what the undefined registers hold."""
        return self.run_phases([spec], seed=seed, vcd=vcd)[0]

    def run_phases(
        self,
        phases: Sequence[RunSpec],
        *,
        seed: int = 1,
        vcd: Waveform | None = None,
        coverage: Path | None = None,
    ) -> list[BenchResult]:
        """Run ``phases`` one after the other, each from a reset, registers otherwise as they were.

        ``coverage``: where Verilator's counts of lines and toggles go, of a build with ``coverage=True``.
        """
        if vcd is not None and not self.trace:
            raise ValueError("a waveform needs a build with trace=True")
        if coverage is not None and not self.coverage:
            raise ValueError("coverage needs a build with coverage=True")
        description = ports_of(self.directory, self.name)
        with tempfile.TemporaryDirectory(prefix="expertbank-") as folder:
            place = Path(folder)
            # A pickle: jobs are arrays and integers of any width, read by the same code in the same version.
            (place / "job").write_bytes(pickle.dumps((description, list(phases))))
            arguments = ["--trace", "--trace-file", "whole.vcd"] if vcd else []
            _simulate(self.program, place, [*arguments, *_power_up(seed)])
            results: list[BenchResult] = pickle.loads((place / RESULTS).read_bytes())
            if vcd is not None:
                _cut(place / "whole.vcd", results, vcd)
            if coverage is not None:
                shutil.move(place / "coverage.dat", coverage)
        return results


@dataclass(frozen=True)
class LoggedBench:
    """A test of cocotb that reads seed, parameters and held ports, and leaves lines and logs of its runs."""

    module: str
    parameters: tuple[int, ...]

    def run(
        self,
        rtl: CocotbBuild,
        seed: int,
        *,
        statics: Mapping[str, int] | None = None,
        power_up: int | None = None,
    ) -> list[str]:
        """Return the lines. Parameters: :func:`tests.bench.test_axi_bench.run`."""
        return self.run_logged(rtl, seed, statics=statics, power_up=power_up)[0]

    def run_logged(
        self,
        rtl: CocotbBuild,
        seed: int,
        *,
        statics: Mapping[str, int] | None = None,
        power_up: int | None = None,
        coverage: Path | None = None,
    ) -> tuple[list[str], list[dict[str, np.ndarray]]]:
        """Return the logs of the ports, too, and leave Verilator's counts in ``coverage``."""
        job = (seed, *self.parameters, dict(statics or {}))
        result: Any = rtl.run_module(
            self.module, job, seed=seed if power_up is None else power_up, coverage=coverage
        )
        return result


def build(
    name: str,
    component: Callable[[], object],
    *,
    config: object = None,
    trace: bool = False,
    root: Path = DEFAULT_ROOT,
) -> CocotbBuild:
    """Export ``component()`` and return its bench; kept by content, as by :func:`sim.rtlsim.build`."""
    return build_exported(exported(name, component, config=config, root=root), name, trace=trace, root=root)


def build_exported(
    directory: Path,
    name: str,
    *,
    trace: bool = False,
    coverage: bool = False,
    root: Path = DEFAULT_ROOT,
) -> CocotbBuild:
    """Return the bench of ``eb_<name>`` as :func:`rtl.export.export` left it in ``directory``.

    ``coverage``: its runs count the lines and toggles that they reach.
    """
    verilog = file_list(directory, name)
    top = ports_of(directory, name)["top"]
    tools = (toolchain.VERILATOR_FLAGS, toolchain.CXX_FLAGS, verilator_version())
    settings = repr(
        (*tools, FLAGS, CXX_FLAGS, importlib.metadata.version("cocotb"), str(LIBRARIES), trace, top)
    )
    flags = FLAGS
    if coverage:
        flags += COVERAGE_FLAGS
        settings += repr(COVERAGE_FLAGS)
    key = digest(settings.encode(), *(file.read_bytes() for file in verilog))
    target = root.resolve() / "cache" / f"cocotb-{key}"

    def make() -> None:
        with _ports_alone_public(top) as control:
            compile_model(
                target,
                [control, *verilog],
                top,
                main=MAIN,
                program=top,
                prefix="Vtop",
                trace=trace,
                coverage=coverage,
                library=LIBRARY,
                flags=flags,
                cxx_flags=CXX_FLAGS,
                link_flags=[f"-L{LIBRARIES}", "-lcocotbvpi_verilator", f"-Wl,-rpath,{LIBRARIES}"],
            )

    program = built_once(target, top, make)
    return CocotbBuild(
        name=name, directory=directory, program=program, trace=trace, root=root, coverage=coverage
    )


@contextlib.contextmanager
def _ports_alone_public(top: str) -> Iterator[Path]:
    """Give a control file instead of cocotb's --public-flat-rw, which keeps every signal of the design."""
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        control = Path(place) / "public.vlt"
        control.write_text(f'`verilator_config\npublic_flat_rw -module "{top}" -var "*"\n')
        yield control


def _power_up(seed: int) -> list[str]:
    """Return the arguments that fill undefined registers at random."""
    return ["+verilator+rand+reset+2", f"+verilator+seed+{seed}"]


def _simulate(
    program: Path, place: Path, arguments: list[str], module: str = "tests.bench.in_simulator"
) -> None:
    """Run the program on the job in ``place``; raises BenchError with what cocotb or the program said."""
    results, log = place / "results.xml", place / "log"
    try:
        Verilator().test(
            module,
            program.name,
            hdl_toplevel_lang="verilog",
            build_dir=program.parent,
            test_dir=place,
            test_args=arguments,
            extra_env={JOB: os.fspath(place / "job")},
            results_xml=os.fspath(results),
            log_file=log,
        )
    # The runner exits where a test fails under pytest, and raises where the program does.
    except (SystemExit, RuntimeError):
        said = _failure(results) or f"{program} failed"
        raise BenchError(f"{said}\n{log.read_text()[-4000:]}") from None
    if not (place / RESULTS).is_file():
        raise BenchError(f"{_failure(results) or 'no results'}\n{log.read_text()[-4000:]}")


def _failure(results: Path) -> str | None:
    """Return the message of the first failed test."""
    if not results.is_file():
        return None
    for kind in ("failure", "error"):
        for found in ElementTree.parse(results).getroot().iter(kind):
            return found.get("error_msg") or found.get("message") or found.text or kind
    return None


def _cut(whole: Path, results: Sequence[RunResult], vcd: Waveform) -> None:
    """Write the window of a waveform; cocotb's main program writes all of the run.

    The window starts with every signal's value at that time.
    """
    zero = results[vcd.phase].zero_ns
    start = 0 if vcd.first < 0 else zero + 10 * vcd.first
    end = zero + 10 * (vcd.last + 1)
    vcd.path.parent.mkdir(parents=True, exist_ok=True)
    aside = whole.with_name("window.vcd")
    values: dict[str, str] = {}  # identifier of a signal -> the line of its last change
    inside = False
    with whole.open() as source, aside.open("w") as window:
        for line in source:
            window.write(line)
            if line.startswith("$enddefinitions"):
                break
        for line in source:
            if line.startswith("#"):
                time = int(line[1:])
                if time >= end:
                    break
                if not inside and time >= start:
                    inside = True
                    window.writelines([f"#{start}\n", *values.values()])
                    if time == start:
                        continue
            if inside:
                window.write(line)
            elif line[0] in "bB":
                values[line.split()[1]] = line
            elif line[0] in "01":
                values[line[1:].strip()] = line
    shutil.move(aside, vcd.path)
