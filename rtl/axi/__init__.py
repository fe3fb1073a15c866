"""Tops with AXI ports around the accelerators and blocks: registers, interrupt, errors, recovery.

See ``docs/axi.md``.
"""

from rtl.axi.alone import DispatchAlone, GateAlone
from rtl.axi.clocks import AxiTwoClocks
from rtl.axi.top import AxiTop, DispatchTop, dispatch_top, gate_top, layer_top

__all__ = [
    "AxiTop",
    "AxiTwoClocks",
    "DispatchAlone",
    "DispatchTop",
    "GateAlone",
    "dispatch_top",
    "gate_top",
    "layer_top",
]
