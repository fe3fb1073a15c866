"""The near-memory engine: channels of DRAM banks with MAC lanes beside them."""

from rtl.pim.channel import PimChannel
from rtl.pim.layouts import PimConfig

__all__ = ["PimChannel", "PimConfig"]
