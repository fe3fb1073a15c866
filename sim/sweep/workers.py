"""Where chunks are computed: processes of this machine, or a Dask cluster; both look the same from outside.

A chunk that is given out comes back as rows, or as :data:`LOST` where the process that had it ended. What is
given out is kept until then, so that nothing is lost with a worker, or with the scheduler of a cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

from sim.processes import start_processes
from sim.sweep.chunks import OtherModels, Row, run_chunk
from sim.sweep.space import Choices
from spec.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 3
"""Chunks for each worker that are given out before one comes back."""
MAX_WORKERS = 1024
CONNECT_S = 10.0
RECONNECT_S = 60.0
"""How long a scheduler may be away in the middle of a sweep."""
ADDRESS = re.compile(r"(tcp|tls)://\[?(?P<host>[^/]+?)\]?:(?P<port>\d{1,5})")
MAX_PORT = 65535
STARTS, START_AGAIN_S = 5, 0.2
"""Times in a row that a process may end before it computes anything, and what is waited between."""
ENDED = (BrokenProcessPool, EOFError, OSError)
"""What giving a process something raises where it, or the one that it is forked from, has ended."""
LOOK_S = 0.5
COUNT_S = 5.0
"""How often a cluster's workers are counted."""
LOST = None
Answer = list[Row] | None
Job = tuple[bytes, str, Sequence[Choices]]


class Workers(Protocol):
    """Processes that compute chunks."""

    @property
    def name(self) -> str:
        """What they are, for people."""

    @property
    def capacity(self) -> int:
        """Chunks that may be given out at a time."""

    def give(self, chunk: int, job: Job) -> None:
        """Give out a chunk."""

    def take(self) -> list[tuple[int, Answer]]:
        """Return chunks that came back; waits for one."""

    def close(self) -> None:
        """End what is given out."""


class LocalWorkers:
    """Processes of this machine."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._given: dict[Future[list[Row]], int] = {}
        self._pool = start_processes(count)

    @property
    def name(self) -> str:
        """What they are, for people."""
        return f"{self.count} process{'es' if self.count > 1 else ''}"

    @property
    def capacity(self) -> int:
        """Chunks that may be given out at a time."""
        return AHEAD * self.count

    def give(self, chunk: int, job: Job) -> None:
        """Give out a chunk."""
        try:
            future = self._pool.submit(run_chunk, *job)
        except ENDED:
            # A worker ended since the last look, or what it is forked from: the chunk comes back as lost.
            future = Future()
            future.set_exception(BrokenProcessPool())
        self._given[future] = chunk

    def take(self) -> list[tuple[int, Answer]]:
        """Return chunks that came back; if a worker ended, all that were out come back, these as lost."""
        done, _ = wait(self._given, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            # The others will not be computed either.
            wait(self._given)
            done = set(self._given)
            self._pool.shutdown(wait=True)
            self._pool = start_processes(self.count)
            self._check()
        answers = []
        for future in done:
            chunk = self._given.pop(future)
            broken = isinstance(future.exception(), BrokenProcessPool)
            answers.append((chunk, LOST if broken else future.result()))
        return answers

    def _check(self) -> None:
        """Raise :class:`InputError` if processes end before they compute anything: no point is to blame."""
        for _ in range(STARTS):
            try:
                self._pool.submit(os.getpid).result()
            except ENDED:
                # What they are forked from may be ending itself, and be there for a moment more.
                time.sleep(START_AGAIN_S)
                self._pool.shutdown(wait=True)
                self._pool = start_processes(self.count)
            else:
                return
        raise InputError(
            f"a process of this machine ended {STARTS} times before its first point", key="workers"
        )

    def close(self) -> None:
        """End the processes; what they compute is given up."""
        pool = self._pool
        processes = list((pool._processes or {}).values())
        if self._given:
            for process in processes:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


class ClusterWorkers:
    """The workers of a Dask cluster, through its scheduler."""

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self.address = address
        self._say = say
        self._given: dict[int, tuple[Any, Job]] = {}
        self._back: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._client = self._connect(0)
        self._counted = -COUNT_S
        self._threads = 0

    def _connect(self, patience: float) -> Client:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(
                "needs dask.distributed: pip install 'expertbank[cluster]'", key="scheduler"
            ) from None
        # It tells of a scheduler that went away in tracebacks; here that is a line.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        found = ADDRESS.fullmatch(self.address)
        if found is None or int(found["port"]) > MAX_PORT:
            raise InputError(
                f"must be tcp://HOST:PORT, PORT at most {MAX_PORT}, not {self.address!r}", key="scheduler"
            )
        end = time.monotonic() + patience
        while True:
            try:
                # A plain connection first: it says in a word what a client says in many lines.
                socket.create_connection((found["host"], int(found["port"])), CONNECT_S).close()
                return Client(self.address, timeout=CONNECT_S, set_as_default=False)
            except (OSError, OverflowError) as error:
                if time.monotonic() > end:
                    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                    raise InputError(f"{self.address} cannot be reached: {reason}", key="scheduler") from None
                time.sleep(LOOK_S)

    @property
    def name(self) -> str:
        """What they are, for people."""
        return f"cluster {self.address}"

    @property
    def capacity(self) -> int:
        """Chunks that may be given out at a time; some are, even while there is no worker."""
        if time.monotonic() > self._counted + COUNT_S:
            self._counted = time.monotonic()
            with contextlib.suppress(OSError, TimeoutError, CancelledError, RuntimeError, ValueError):
                self._threads = sum(self._client.nthreads().values())
            if not self._threads:
                self._say(f"the scheduler {self.address} has no worker yet")
        return AHEAD * max(1, self._threads)

    def give(self, chunk: int, job: Job) -> None:
        """Give out a chunk."""
        future = None
        if self._client.status == "running":
            future = self._client.submit(run_chunk, *job, pure=False)
            future.add_done_callback(lambda one: self._back.put((chunk, one)))
        self._given[chunk] = (future, job)

    def take(self) -> list[tuple[int, Answer]]:
        """Return chunks that came back, having given out again those that a scheduler took with it."""
        while True:
            try:
                chunk, future = self._back.get(timeout=LOOK_S)
            except queue.Empty:
                self._look()
                continue
            if chunk not in self._given or self._given[chunk][0] is not future:
                continue  # of a scheduler that is gone
            if future.status in ("cancelled", "lost"):
                self._look()
                continue
            del self._given[chunk]
            return [(chunk, self._answer(future))]

    def _answer(self, future: Any) -> Answer:
        from distributed import KilledWorker

        error = future.exception()
        if error is None:
            rows: list[Row] = future.result()
            return rows
        if isinstance(error, KilledWorker):
            return LOST
        if isinstance(error, OtherModels):
            raise error
        if isinstance(error, ModuleNotFoundError):
            raise InputError(f"a worker of {self.address} has no expertbank: {error}", key="scheduler")
        raise error

    def _look(self) -> None:
        """Give out again what the scheduler has forgotten; wait for a scheduler that is away."""
        client = self._client
        gone = client.status != "running"
        if gone:
            self._say(f"the scheduler {self.address} is away; waiting for it")
            client.close(timeout=1)
            self._client = self._connect(RECONNECT_S)
            self._say(f"the scheduler {self.address} is back")
        for chunk, (future, job) in list(self._given.items()):
            if gone or future is None or future.status in ("cancelled", "lost"):
                self.give(chunk, job)

    def close(self) -> None:
        """Give up what is out."""
        for future, _ in self._given.values():
            if future is not None:
                future.release()
        self._client.close(timeout=2)
