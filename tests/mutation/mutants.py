"""All mutants of a block in one model: Yosys changes its netlist, a port says which change counts.

The exported Verilog becomes Yosys' generic netlist (flat, word-level cells after the coarse part of
``synth``), ``mutate`` chooses places and changes (an inverted, constant or swapped bit of a cell's port), and
the netlist with all of them is written as Verilog again, with a port ``mutant``: 0 is the netlist itself.
Ports of clocks are left out. Modules that are *kept* stay as they are, modules of their own: what is changed
is what lies between them, and for proofs their ports are outputs and inputs of it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.rtlsim import DEFAULT_ROOT, file_list, ports_of
from sim.toolchain import built_once, digest
from tests.formal.model import YOSYS, run

PORT, PORT_BITS = "mutant", 12
CLOCKS = re.compile(r"-port \\?(CLK|RD_CLK|WR_CLK|C|clk)\b")
SYNTHESIS = """
read_verilog {files}
hierarchy -top {top}
{keep}
synth -top {top} -flatten -noalumacc -run begin:fine
opt -mux_undef -undriven
opt_clean
"""
NETLIST = f"""{SYNTHESIS}
write_rtlil netlist.il
mutate -list {{count}} -seed {{seed}} -o list.txt {{top}}
"""
UNCHANGED = f"""{SYNTHESIS}
write_verilog -noattr netlist.v
"""
MUTATED = """
read_rtlil netlist.il
script mutants.ys
opt_clean
write_verilog -noattr mutated.v
"""
BETWEEN = """
expose -evert {kept}
select {top}
write_verilog -noattr -selected between.v
"""
"""What is changed, alone; see :attr:`Mutants.verilog`."""


@dataclass(frozen=True)
class Mutants:
    """A block's netlist with its mutants, numbered from 1, each as Yosys says it."""

    directory: Path
    name: str
    texts: tuple[str, ...]

    @property
    def verilog(self) -> str:
        """The one module of what is changed: ports of modules that are kept are ports of it."""
        between = self.directory / "between.v"
        return (between if between.is_file() else self.directory / f"eb_{self.name}.v").read_text()


def mutants_of(
    directory: Path,
    name: str,
    *,
    count: int,
    seed: int,
    keep: Sequence[str] = (),
    root: Path = DEFAULT_ROOT,
) -> Mutants:
    """Return ``count`` mutants of ``eb_<name>`` as it was exported into ``directory``; kept by content.

    ``keep``: modules without mutants, by their names behind ``eb_<name>_``.
    """
    files = file_list(directory, name)
    settings = repr(
        (NETLIST, MUTATED, BETWEEN if keep else "", tuple(keep), CLOCKS.pattern, count, seed, PORT_BITS)
    )
    key = digest(settings.encode(), *(file.read_bytes() for file in files))
    target = root.resolve() / "cache" / f"mutants-{key}"

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
            folder = Path(place)
            for file in files:
                shutil.copy(file, folder)
            _make(folder, directory, name, [file.name for file in files], count, seed, keep)
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
            script = UNCHANGED.format(files=" ".join(file.name for file in files), top=top, keep="")
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


def _make(
    folder: Path, directory: Path, name: str, files: list[str], count: int, seed: int, keep: Sequence[str]
) -> None:
    description = ports_of(directory, name)
    top = description["top"]
    kept = "".join(f"setattr -mod -set keep_hierarchy 1 {top}_{module}\n" for module in keep)
    # More than wanted: those of clocks are taken out.
    count_listed = count + count // 8 + 8
    script = NETLIST.format(files=" ".join(files), top=top, keep=kept, count=count_listed, seed=seed)
    (folder / "netlist.ys").write_text(script)
    run(YOSYS, ["-q", "-s", "netlist.ys"], folder)
    listed = (folder / "list.txt").read_text().splitlines()
    chosen = [line for line in listed if line.startswith("mutate ") and not CLOCKS.search(line)][:count]
    (folder / "mutants.ys").write_text(
        "".join(f"{line} -ctrl {PORT} {PORT_BITS} {n}\n" for n, line in enumerate(chosen, start=1))
    )
    instances = [f"{top}/t:{top}_{module}" for module in keep]
    between = BETWEEN.format(top=top, kept=" ".join(instances)) if keep else ""
    # A module that is not there would be changed with the rest.
    between = "".join(f"select -assert-count 1 {instance}\n" for instance in instances) + between
    (folder / "mutated.ys").write_text(MUTATED + between)
    run(YOSYS, ["-q", "-s", "mutated.ys"], folder)
    (folder / f"eb_{name}.v").write_text((folder / "mutated.v").read_text())
    (folder / f"{name}.f").write_text(f"eb_{name}.v\n")
    (folder / "mutants.json").write_text(json.dumps([line.removeprefix("mutate ") for line in chosen]))
    description["ports"].append({"name": PORT, "width": PORT_BITS, "direction": "input"})
    description["plain"].append({"name": PORT, "direction": "in", "bits": PORT_BITS})
    (folder / f"{name}.ports.json").write_text(json.dumps(description))


SECONDS = 300
"""That all survivors of a block have for their proofs."""
