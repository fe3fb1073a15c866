"""Builds of the Verilog side by side: much of one is a single process at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from sim.accelerator import Progress
from sim.toolchain import JOBS


def build_all(
    build: Callable[..., object], jobs: Sequence[tuple[str, tuple[Any, ...]]], progress: Progress
) -> None:
    """Call ``build`` with each job's arguments, in processes of its own; a run afterwards finds all built.

    Parameters
    ----------
    build : a function of a module, whose result is left where it was made.
    jobs : name for the progress, and arguments.
    """
    # Processes that start anew: a forked one would share what the compiler of the models holds.
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        names = {pool.submit(build, *arguments): name for name, arguments in jobs}
        for number, done in enumerate(as_completed(names), 1):
            done.result()
            progress(f"built {number} of {len(jobs)}: {names[done]}")
