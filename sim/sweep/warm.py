"""What a worker has in memory before its first point: imported modules, compiled models.

All of it stays for good, so the collector of garbage is kept from it: it would walk through half a million
objects while they are made, and later write to the pages of all of them, which each process would copy.
"""

from __future__ import annotations

import gc

gc.disable()

from sim import accelerator, pim_report  # noqa: E402  (the collector rests while they are imported)
from sim.sweep.chunks import run_chunk  # noqa: E402
from sim.sweep.version import models_version  # noqa: E402

__all__ = ["run_chunk"]

accelerator.load_compiled()
pim_report.load_compiled()
models_version()

gc.freeze()
gc.enable()
