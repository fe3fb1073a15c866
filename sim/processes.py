"""Processes of this machine that compute design points.

They are forked from one that has imported everything, compiled code included, and has no threads; so one is
there in milliseconds, also after another was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker

WARM = "sim.sweep.warm"
"""What they have in memory before their first point."""


def prepare() -> None:
    """Begin what processes are forked from: it imports while this process does.

    A terminal interrupts all its processes; this one would say so in the middle of an import.
    """
    forkserver.set_forkserver_preload([WARM])
    resource_tracker.ensure_running()  # (it sees to that itself, and would let them through again)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_processes(count: int) -> ProcessPoolExecutor:
    """Return a pool of ``count`` processes that leave interruptions to this one, and end with it."""
    prepare()
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Begin a process: interruptions are its parent's, and it goes with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
