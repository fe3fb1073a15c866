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
from multiprocessing import forkserver

WARM = "sim.sweep.warm"
"""What they have in memory before their first point."""


def prepare() -> None:
    """Begin what processes are forked from: it imports while this process does."""
    forkserver.set_forkserver_preload([WARM])
    forkserver.ensure_running()


def start_processes(count: int) -> ProcessPoolExecutor:
    """Return a pool of ``count`` processes that leave interruptions to this one, and end with it."""
    forkserver.set_forkserver_preload([WARM])
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
