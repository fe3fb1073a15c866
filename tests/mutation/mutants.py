"""All mutants of a block in one model: Yosys changes its netlist, a port says which change counts.

The exported Verilog becomes Yosys' generic netlist (flat, word-level cells after the coarse part of
``synth``),
``mutate`` chooses places and changes (an inverted, constant or swapped bit of a cell's port), and the
netlist with
all of them is written as Verilog again, with a port ``mutant``: 0 is the netlist itself. Ports of clocks
are left out.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sim.rtlsim import DEFAULT_ROOT, file_list, ports_of
from sim.toolchain import built_once, digest
from tests.formal.model import YOSYS, run
from tests.formal.prove import PROGRAMS

PORT, PORT_BITS = "mutant", 12
CLOCKS = re.compile(r"-port \\?(CLK|RD_CLK|WR_CLK|C)\b")
WARM_UP = 6
"""Cycles after which what flows through pipelines has passed them."""
SYNTHESIS = """
read_verilog {files}
hierarchy -top {top}
synth -top {top} -flatten -noalumacc -run begin:fine
opt -mux_undef -undriven
opt_clean
"""
NETLIST = f"""{SYNTHESIS}
write_rtlil netlist.il
mutate -list {{count}} -seed {{seed}} -o list.txt
"""
UNCHANGED = f"""{SYNTHESIS}
write_verilog -noattr netlist.v
"""
MUTATED = """
read_rtlil netlist.il
script mutants.ys
opt_clean
write_verilog -noattr mutated.v
memory_map
opt_clean
techmap
async2sync
opt_clean
dffunmap
write_smt2 -wires mutated.smt2
"""


@dataclass(frozen=True)
class Mutants:
    """A block's netlist with its mutants, numbered from 1, each as Yosys says it."""

    directory: Path
    name: str
    texts: tuple[str, ...]


def mutants_of(directory: Path, name: str, *, count: int, seed: int, root: Path = DEFAULT_ROOT) -> Mutants:
    """Return ``count`` mutants of ``eb_<name>`` as it was exported into ``directory``; kept by content."""
    files = file_list(directory, name)
    settings = repr((NETLIST, MUTATED, count, seed, PORT_BITS))
    key = digest(settings.encode(), *(file.read_bytes() for file in files))
    target = root.resolve() / "cache" / f"mutants-{key}"

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
            folder = Path(place)
            for file in files:
                shutil.copy(file, folder)
            _make(folder, directory, name, [file.name for file in files], count, seed)
            shutil.copytree(folder, target)

    built_once(target, f"{name}.ports.json", make)
    texts = json.loads((target / "mutants.json").read_text())
    return Mutants(target, name, tuple(texts))


def netlist_of(directory: Path, name: str, *, root: Path = DEFAULT_ROOT) -> Path:
    """Return a folder with the netlist of ``eb_<name>`` as exported into ``directory``; kept by content."""
    files = file_list(directory, name)
    key = digest(UNCHANGED.encode(), *(file.read_bytes() for file in files))
    target = root.resolve() / "cache" / f"netlist-{key}"

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
            folder = Path(place)
            for file in files:
                shutil.copy(file, folder)
            top = ports_of(directory, name)["top"]
            script = UNCHANGED.format(files=" ".join(file.name for file in files), top=top)
            (folder / "netlist.ys").write_text(script)
            run(YOSYS, ["-q", "-s", "netlist.ys"], folder)
            for file in files:
                (folder / file.name).unlink()
            (folder / "netlist.v").rename(folder / f"eb_{name}.v")
            (folder / f"{name}.f").write_text(f"eb_{name}.v\n")
            shutil.copy(directory / f"{name}.ports.json", folder)
            shutil.copytree(folder, target)

    built_once(target, f"{name}.ports.json", make)
    return target


def _make(folder: Path, directory: Path, name: str, files: list[str], count: int, seed: int) -> None:
    description = ports_of(directory, name)
    top = description["top"]
    # More than wanted: those of clocks are taken out.
    script = NETLIST.format(files=" ".join(files), top=top, count=count + count // 8 + 8, seed=seed)
    (folder / "netlist.ys").write_text(script)
    run(YOSYS, ["-q", "-s", "netlist.ys"], folder)
    listed = (folder / "list.txt").read_text().splitlines()
    chosen = [line for line in listed if line.startswith("mutate ") and not CLOCKS.search(line)][:count]
    (folder / "mutants.ys").write_text(
        "".join(f"{line} -ctrl {PORT} {PORT_BITS} {n}\n" for n, line in enumerate(chosen, start=1))
    )
    (folder / "mutated.ys").write_text(MUTATED)
    run(YOSYS, ["-q", "-s", "mutated.ys"], folder)
    (folder / f"eb_{name}.v").write_text((folder / "mutated.v").read_text())
    (folder / f"{name}.f").write_text(f"eb_{name}.v\n")
    (folder / "mutants.json").write_text(json.dumps([line.removeprefix("mutate ") for line in chosen]))
    description["ports"].append({"name": PORT, "width": PORT_BITS, "direction": "input"})
    description["plain"].append({"name": PORT, "direction": "in", "bits": PORT_BITS})
    (folder / f"{name}.ports.json").write_text(json.dumps(description))


SECONDS = 120
"""That all survivors of a block have for their proofs."""


def equivalent(mutants: Mutants, numbers: list[int], *, seconds: int = SECONDS) -> set[int]:
    """Return which of these mutants are proved equal to the original.

    Equal means: from any same state that ``WARM_UP`` cycles of the original lead to, and any same inputs,
    the same outputs and the same next state. Mutants that differ
    only in states that are never reached, or in state that nobody reads, are not among them.
    """
    text = (mutants.directory / "mutated.smt2").read_text()
    (top,) = re.findall(r"^; yosys-smt2-topmod (\S+)$", text, re.MULTILINE)
    names = {
        kind: re.findall(rf"^; yosys-smt2-{kind} (\S+)", text, re.MULTILINE)
        for kind in ("input", "output", "memory")
    }
    assert not names["memory"]
    # Every register is in the transition, whether it has a name or not.
    registers = list(dict.fromkeys(re.findall(r"\(\|([^|]*)\| next_state\)", text)))
    lines, late = ["(set-logic QF_UFBV)", text], []
    zero = f"(_ bv0 {PORT_BITS})"
    before = [f"w{n}" for n in range(WARM_UP)]
    for state, following in zip(before, [*before[1:], "a"], strict=True):
        lines.append(f"(declare-fun {state} () |{top}_s|)")
        lines.append(f"(assert (= (|{top}_n {PORT}| {state}) {zero}))")
        late.append(f"(assert (|{top}_t| {state} {following}))")
    lines += [f"(declare-fun {state} () |{top}_s|)" for state in ("a", "b", "a2", "b2")]
    lines += [f"(assert (|{top}_h| {state}))" for state in ("a", "b")]
    lines += late
    same = [*(f"{top}_n {name}" for name in names["input"] if name != PORT), *registers]
    lines += [f"(assert (= (|{name}| a) (|{name}| b)))" for name in same]
    lines += [f"(assert (|{top}_t| {state} {state}2))" for state in ("a", "b")]
    lines.append(f"(assert (= (|{top}_n {PORT}| a) {zero}))")
    differ = [f"(distinct (|{top}_n {name}| a) (|{top}_n {name}| b))" for name in names["output"]]
    differ += [f"(distinct (|{name}| a2) (|{name}| b2))" for name in registers]
    lines.append(f"(assert (or {' '.join(differ)}))")
    for number in numbers:
        value = f"(_ bv{number} {PORT_BITS})"
        lines.append(f"(push 1)(assert (= (|{top}_n {PORT}| b) {value}))(check-sat)(pop 1)")
    done = subprocess.run(
        ["timeout", str(seconds), PROGRAMS / "yices-smt2", "--incremental"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in done.stdout.split() if line in ("sat", "unsat")]
    # Where the time is over the rest is not proved.
    return {number for number, answer in zip(numbers, answers, strict=False) if answer == "unsat"}
