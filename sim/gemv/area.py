"""What the additions of our schedule cost: the channel's Verilog with each and without it, by Yosys.

Synthesised are the sequencer, the planner and the buses. The MAC units and the memories of the queues are
boxes: the same in every variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from sim.rtlsim import DEFAULT_ROOT, exported, gemv_component
from sim.synth import gate_counts
from spec.device import PimDevice, Schedule
from spec.errors import require
from spec.program import ALL, Additions

CELL_UM2 = {
    "$_DFF_P_": 4.522,
    "$_NOT_": 0.532,
    "$_NAND_": 0.798,
    "$_NOR_": 0.798,
    "$_XOR_": 1.596,
    "$_XNOR_": 1.596,
    "$_MUX_": 1.862,
    "$_AOI3_": 1.064,
    "$_OAI3_": 1.064,
}
"""Cells of the NanGate 45 nm open library, in square micrometres: DFF_X1, INV_X1, NAND2_X1, NOR2_X1, XOR2_X1,
XNOR2_X1, MUX2_X1, AOI21_X1, OAI21_X1."""
FLIP_FLOP = "$_DFF_P_"
BOXES = "*units"
"""Modules that are the same whatever is left out: MAC units."""


@dataclass(frozen=True)
class Cost:
    """Flip-flops, gates in all, and their area in square micrometres, by cells of 45 nm."""

    flip_flops: int
    gates: int
    um2: float

    @classmethod
    def of(cls, cells: Mapping[str, int]) -> Cost:
        """Return what Yosys' cells amount to; a cell of unknown size raises ``KeyError``."""
        return cls(
            flip_flops=cells.get(FLIP_FLOP, 0),
            gates=sum(number for kind, number in cells.items() if kind != FLIP_FLOP),
            um2=sum(number * CELL_UM2[kind] for kind, number in cells.items()),
        )

    def __sub__(self, other: Cost) -> Cost:
        """Return what this costs more."""
        return Cost(self.flip_flops - other.flip_flops, self.gates - other.gates, self.um2 - other.um2)


def variants(device: PimDevice) -> dict[str, Additions]:
    """Return the channels to be synthesised: with all additions, without each of hardware, with none."""
    require(
        device.schedule is Schedule.STREAMED,
        f"is of schedule streamed, which {device.name} has not",
        key="additions",
    )
    names = [one.name for one in fields(Additions) if one.name != "split"]
    single = {f"without {name}": replace(ALL, **{name: False}) for name in names}
    return {"all": ALL, **single, "with none": replace(ALL, **dict.fromkeys(names, False))}


def costs(device: PimDevice, root: Path = DEFAULT_ROOT) -> dict[str, Cost]:
    """Return what each variant of a device's channel costs, MAC units and memories left out.

    Some minutes; kept in the cache by the content of the Verilog.
    """
    anonymous = replace(device, name="device")
    found = {}
    for name, additions in variants(device).items():
        component = gemv_component(device, additions=additions)
        directory = exported("gemv", component, config=("area", anonymous, additions), root=root)
        found[name] = Cost.of(gate_counts(directory, "gemv", boxes=BOXES, root=root))
    return found
