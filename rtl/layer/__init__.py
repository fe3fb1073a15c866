"""The accelerators: one MoE layer around an engine."""

from rtl.layer.fpga import FpgaLayer, expert_config
from rtl.layer.pim import PimLayer, pim_config

__all__ = ["FpgaLayer", "PimLayer", "expert_config", "pim_config"]
