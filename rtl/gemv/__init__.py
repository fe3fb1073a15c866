"""A channel that runs command programs (:mod:`spec.program`): matrix-vector products in DRAM banks."""

from rtl.gemv.channel import ProgramChannel
from rtl.gemv.layouts import ChannelConfig

__all__ = ["ChannelConfig", "ProgramChannel"]
