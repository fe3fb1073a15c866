"""The accelerators: one MoE layer around an engine."""

from rtl.layer.fpga import FpgaLayer, expert_config
from rtl.layer.pim import PimLayer, pim_config
from rtl.layer.shell import combiner, dispatcher

__all__ = ["FpgaLayer", "PimLayer", "combiner", "dispatcher", "expert_config", "pim_config"]
