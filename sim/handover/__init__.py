"""What goes out beside exported Verilog: a FuseSoC core, constraints, an ECP5 top, a self-checking bench."""

from sim.handover.axi_bench import AxiBench, axi_bench
from sim.handover.bench import LayerBench, layer_bench
from sim.handover.project import hand_over

__all__ = ["AxiBench", "LayerBench", "axi_bench", "hand_over", "layer_bench"]
