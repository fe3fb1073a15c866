"""The measured part of ``docs/synthesis.md``: a declared list of designs, synthesised one after the other."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sim.bench import commit_of_sources
from sim.marked import marked, read_page, with_marked
from sim.progress import track
from sim.synth import DEVICE
from sim.toolchain import write_atomically
from spec.errors import require

MARK = "measured"
COMMAND = "`expertbank synth "
CELLS = ("lut", "ff", "dsp", "bram")
NOT_RUN = "not run yet"
SMALL_LAYER = "--design fpga --set array.rows=4 --set array.cols=4 --set stream_lanes=4"
"""A layer whose multipliers fit the device: 16 MACs."""
DEEP_EXPERT = "--design fpga-deep --block expert --set array.rows=4 --set array.cols=4 --set stream_lanes=4"
DEEP_COMBINE = "--design fpga-deep --block combine"
DEEP_LAYER = "--design fpga-ecp5"
"""All blocks of a layer cut deep, 16 MACs in the array and in the gate."""
ARRAY = "--design fpga --block expert --no-route"


@dataclass(frozen=True)
class Table:
    """A table of the page: designs as the command's options, what stands above them, a picture below."""

    title: str
    text: str
    designs: tuple[str, ...]
    picture: str | None = None


OPERANDS = {"int8": "int8 x int8", "w4a8": "int4 x int8", "int4": "int4 x bf16"}
"""Formats whose arrays are counted with single and dual multipliers: weights x inputs."""


def _pair(number_format: str, multiplier: str, family: str) -> str:
    return f"{ARRAY} --format {number_format} --set array.multiplier={multiplier}{family}"


GATE_EXPERTS, GATE_CHOICES = (8, 16, 64, 256), (1, 2, 4, 8)
"""Of the gate's sweeps: over experts, ``FIXED_CHOICES`` chosen, and over choices of ``FIXED_EXPERTS``."""
FIXED_CHOICES, FIXED_EXPERTS = 2, 64
PICTURE = "synthesis_gate.svg"
"""What the sweeps look like, beside the page."""


def _gate(experts: int, top_k: int) -> str:
    return f"--design gate --experts {experts} --top-k {top_k} --no-route"


GATES = (
    *(_gate(experts, FIXED_CHOICES) for experts in GATE_EXPERTS),
    *(_gate(FIXED_EXPERTS, top_k) for top_k in GATE_CHOICES if top_k != FIXED_CHOICES),
)
TABLES = (
    Table(
        "Blocks and layers",
        "`gate` and `dispatch` as above; a layer of 4 x 4 MACs. What is larger than the device, or takes too"
        " long to place, is counted and not routed.",
        (
            "--design gate",
            "--design gate --family xc7",
            "--design gate --pipeline deep --seeds 5 --clock 125 --placer static",
            "--design gate --pipeline deep --bus axi --seeds 5 --clock 125",
            "--design gate --pipeline deep --family xc7",
            "--design dispatch --seeds 5 --clock 125",
            "--design dispatch --pipeline deep --seeds 5 --clock 125",
            "--design dispatch --pipeline deep --bus axi --seeds 5 --clock 125",
            "--design dispatch --family xc7",
            f"{DEEP_EXPERT} --seeds 3 --clock 125",
            "--design fpga --block combine --no-route",
            f"{DEEP_COMBINE} --seeds 5 --clock 125",
            "--design selection --no-route",
            "--design selection --experts 256 --top-k 16 --no-route",
            "--design selection --experts 256 --top-k 16 --family xc7",
            f"{SMALL_LAYER} --no-route",
            f"{DEEP_LAYER} --seeds 5 --clock 100",
            f"{DEEP_LAYER} --family xc7",
            f"{DEEP_LAYER} --set array.cols=16 --set array.multiplier=dual --format w4a8 --clock 100",
            f"{DEEP_LAYER} --bus axi --clock 100",
            f"{DEEP_LAYER} --bus axi --family xc7",
            "--design pim-small --block channel",
            "--design pim-small --block channel --family xc7",
            "--design hbm2-pim --no-route",
            "--design hbm2-pim --family xc7",
        ),
    ),
    Table(
        "The array over sizes and formats",
        "The expert engine alone, counted; 16 x 16 where nothing else is said.",
        (
            *(
                _pair(number_format, multiplier, family)
                for number_format in OPERANDS
                for multiplier in ("single", "dual")
                for family in ("", " --family xc7")
            ),
            *(f"{ARRAY} --set array.rows={rows} --set array.cols=16" for rows in (4, 8)),
            f"{ARRAY} --set array.rows=4 --set array.cols=32 --set stream_lanes=16",
            *(
                f"{ARRAY} --set array.rows=4 --format {name}"
                for name in ("int8", "w4a8", "fp8", "mxfp4", "int4")
            ),
        ),
    ),
    Table(
        "The gate over experts and choices",
        "16 MACs and one logit per cycle, as `gate`; counted.",
        GATES,
        picture=f"![LUT4 and flip-flops of the gate over experts and choices]({PICTURE})",
    ),
)

PAPERS = (
    ("UbiMoE, ZCU102", "W16A32", 97.04, 1850, 300e6, "arXiv 2502.05602, tables I and II"),
    ("UbiMoE, U280", "W16A32", 242.01, 3413, 200e6, "arXiv 2502.05602, tables I and II"),
    ("CoQMoE, ZCU102", "int8", 386.3, 1754, 300e6, "CoQMoE, Euro-Par 2025, table 3"),
    ("CoQMoE, U280", "int8", 1004.3, 2635, 250e6, "CoQMoE, Euro-Par 2025, table 3"),
)
"""Published: accelerator, number format, GOPS, DSPs, clock in Hz, source."""

DSP_TEXT = """
### Operations per DSP and cycle

A multiplication and an addition are two operations. Of the arrays here: those of a cycle in which the MACs
are busy, over all DSPs of the expert engine (activation and requantisation too). How many cycles are such is
in [expert.md](expert.md#timing). Published: throughput over DSPs and clock, of a whole image on the whole
accelerator, so idle cycles and other layers are in it; the two are not the same kind of figure.

| what | number format | operations per cycle | DSPs | operations per DSP and cycle | source |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """A design's row of the page: its cells, Fmax and slowest path in words, the commit of that time."""

    cells: Mapping[str, int]
    fmax: str
    path: str
    commit: str

    @staticmethod
    def of(result: Mapping[str, Any], commit: str) -> Row:
        """Return the row of what the command says."""
        fmax, path = "-", ""
        if result["fmax_mhz"] is not None:
            seeds = [f"{one:.1f}" for one in result["fmax_of_seeds"]]
            more = f"median of {', '.join(seeds)}" if len(seeds) > 1 else "one seed"
            slow = result["critical"]
            fmax = f"{result['fmax_mhz']:.1f} ({more})"
            path = (
                f"`{_signal(slow['source'])}` to `{_signal(slow['sink'])}`, {slow['delay_ns']:.1f} ns,"
                f" {slow['logic_ns']:.1f} of them logic"
            )
        elif result["exceeded"]:
            path = f"not routed: {', '.join(result['exceeded'])}"
        return Row({kind: result[kind] for kind in CELLS}, fmax, path, commit)

    @staticmethod
    def read(line: str) -> tuple[str, Row] | None:
        """Return the design and the row of a line of a page; None: it is none, or of nothing that was run.

        Raises
        ------
        InputError
            A row whose columns are not those that this writes.
        """
        if not line.startswith(f"| {COMMAND}") or NOT_RUN in line:
            return None
        columns = [column.strip() for column in line.strip("| ").split(" | ")]
        design = columns[0].removeprefix(COMMAND).rstrip("`")
        numbers, rest = columns[1 : 1 + len(CELLS)], columns[1 + len(CELLS) :]
        understood = len(rest) == 3 and all(number.isdecimal() for number in numbers)
        require(understood, f"must have the columns that --page writes, not {line!r}", key="page")
        return design, Row(dict(zip(CELLS, map(int, numbers), strict=True)), *rest)

    def line(self, design: str) -> str:
        """Return the row as it stands on the page."""
        numbers = " | ".join(str(self.cells[kind]) for kind in CELLS)
        return f"| {COMMAND}{design}` | {numbers} | {self.fmax} | {self.path} | {self.commit} |"


def write_page(file: Path, only: Sequence[str] = ()) -> None:
    """Synthesise what :data:`TABLES` lists and write it between the marks of a page, after each design.

    Each result is kept (:mod:`sim.synth`): an interrupted page goes on where it was, and says what it lacks.

    Parameters
    ----------
    only : texts of which a row's options have one; the other rows stay as they are, each with its commit.

    Raises
    ------
    InputError
        A page without marks, a row on it that is not understood, or a text that no row's options have.
    """
    _, between, _ = marked(read_page(file), MARK, file=file)
    designs = [design for table in TABLES for design in table.designs]
    for text in only:
        require(any(text in design for design in designs), f"is in no row's options: {text!r}", key="only")
    rows: dict[str, Row] = {}
    if only:
        rows = dict(filter(None, map(Row.read, between.splitlines())))
        designs = [design for design in designs if any(text in design for text in only)]
    commit = commit_of_sources()
    # What is only counted takes seconds, what is routed minutes.
    for design in track(sorted(designs, key=_is_routed)):
        rows[design] = Row.of(_run(design), commit)
        if design in GATES and set(GATES) <= rows.keys():
            draw({gate: rows[gate].cells for gate in GATES}, file.with_name(PICTURE))
        write_atomically(file, with_marked(file, MARK, list(lines(rows))))


def draw(found: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draw the sweeps of the gate, from the cells of each design of :data:`GATES`."""
    from sim.synth_picture import draw_gates

    draw_gates(
        {number: found[_gate(number, FIXED_CHOICES)] for number in GATE_EXPERTS},
        {number: found[_gate(FIXED_EXPERTS, number)] for number in GATE_CHOICES},
        (FIXED_CHOICES, FIXED_EXPERTS),
        file,
    )


def lines(rows: Mapping[str, Row]) -> Iterator[str]:
    """Return the page's measured part, from the rows that there are."""
    yield f"Written by `make synth`, each row at the commit that it names; routed for {DEVICE}."
    for table in TABLES:
        yield f"\n### {table.title}\n\n{table.text}\n"
        yield "| command | LUT | FF | DSP | BRAM | Fmax (MHz) | slowest path | commit |"
        yield "|---|---|---|---|---|---|---|---|"
        for design in table.designs:
            missing = f"| {COMMAND}{design}` | - | - | - | - | - | {NOT_RUN} | - |"
            yield rows[design].line(design) if design in rows else missing
        if table.picture is not None and set(table.designs) <= rows.keys():
            yield f"\n{table.picture}"
    yield DSP_TEXT.rstrip("\n")
    devices = (("", "MULT18X18D"), (" --family xc7", "DSP48E1"))
    for (family, device), number_format, multiplier in product(devices, OPERANDS, ("single", "dual")):
        design = _pair(number_format, multiplier, family)
        what = f"16 x 16, `multiplier = {multiplier}`, {device}"
        operands = OPERANDS[number_format]
        if design in rows:
            yield _density(what, operands, 2 * 16 * 16, rows[design].cells["dsp"], "this page")
    for name, number_format, gops, dsps, clock_hz, source in PAPERS:
        yield _density(name, number_format, gops * 1e9 / clock_hz, dsps, source)


def _density(what: str, number_format: str, operations: float, dsps: int, source: str) -> str:
    density = operations / dsps
    return f"| {what} | {number_format} | {operations:.0f} | {dsps} | {density:.3f} | {source} |"


def _signal(cell: str) -> str:
    """Return the Verilog's signal in a cell's name, which Yosys builds from it."""
    signal = re.split(r"_(?:TRELLIS|LUT4|CCU2C|PFUMX|L6MUX21|DP16KD|MULT18X18D)|\$", cell)[0]
    return re.sub(r"^(core\.)+", "", signal)


def _is_routed(design: str) -> bool:
    return "--no-route" not in design and "--family" not in design


def _run(design: str) -> dict[str, Any]:
    """Return what ``expertbank synth`` says of a design."""
    from sim.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["synth", *design.split(), "--json"])
    if status:
        raise ArithmeticError(f"expertbank synth {design} ended with status {status}")
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result
