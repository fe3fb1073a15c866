"""What a worker has in memory before its first point: imported modules, compiled models."""

from __future__ import annotations

from sim import accelerator, pim_report
from sim.sweep.chunks import run_chunk
from sim.sweep.version import models_version

__all__ = ["run_chunk"]

accelerator.load_compiled()
pim_report.load_compiled()
models_version()
