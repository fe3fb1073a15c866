"""The expert engine of the ``fpga`` accelerator. See ``docs/expert.md``."""

from rtl.expert.engine import ExpertEngine
from rtl.expert.layouts import ExpertConfig

__all__ = ["ExpertConfig", "ExpertEngine"]
