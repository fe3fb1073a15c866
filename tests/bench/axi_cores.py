"""What the benches of the tops with AXI ports are built for: a small model on small designs."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from spec.load import load_design
from spec.registers import Top
from tests.bench.test_layer_bench import DESIGN, MODEL

PIM_DESIGN = load_design(str(Path(__file__).parent.parent / "tiny_pim.toml"))
# Without a shared expert an entry is an assignment, and the dispatcher's outputs are soon written down.
ROUTED = replace(MODEL, d_shared=0)

CORES = {
    Top.FPGA: (MODEL, DESIGN, None),
    Top.PIM: (MODEL, PIM_DESIGN, None),
    Top.GATE: (MODEL, DESIGN, Top.GATE),
    Top.DISPATCH: (ROUTED, DESIGN, Top.DISPATCH),
}


class Kind(StrEnum):
    """Which scenarios a run has."""

    USUAL = "usual"
    MEMORY_GOES_ON = "memory goes on when the top is reset"
    EVERY_BURST = "every burst is answered wrongly"
    MANY = "packets so long that counters and limits reach their upper places"


KINDS = {
    Top.FPGA: (Kind.USUAL, Kind.MEMORY_GOES_ON, Kind.EVERY_BURST),
    Top.PIM: (Kind.USUAL, Kind.MEMORY_GOES_ON),
    Top.GATE: (Kind.USUAL, Kind.MEMORY_GOES_ON, Kind.MANY),
    Top.DISPATCH: (Kind.USUAL, Kind.MANY),
}
"""Which of them a top has: the dispatcher reads nothing, and only the array while tokens are inside; through
a layer many tokens take long, and its ports are those of the others."""
