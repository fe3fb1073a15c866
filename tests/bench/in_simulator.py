"""What cocotb runs inside the simulator: the job that :mod:`tests.bench.runner` left, and its results."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import cocotb

from tests.bench.bfm import run_phases

JOB = "EXPERTBANK_BENCH_JOB"
RESULTS = "results.pickle"


@cocotb.test()
async def run_job(dut):
    """Run the job's phases one after the other, each from a reset."""
    job = Path(os.environ[JOB])
    description, phases = pickle.loads(job.read_bytes())
    results = await run_phases(dut, description, phases)
    job.with_name(RESULTS).write_bytes(pickle.dumps(results))
