"""A sweep, from its space to the file of its results.

Chunks of points go out to the workers in order and come back in any; each is a file at once. What the file
holds, and in which order, is decided by the space alone, so that it is the same with any workers, and however
often the sweep was ended and begun again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from sim.sweep.chunks import OtherModels, Row, lost_row, packed, point_key
from sim.sweep.space import Choices, Space
from sim.sweep.store import Store
from sim.sweep.version import models_version
from sim.sweep.workers import LOST, Workers
from spec.errors import InputError

MAX_LOSSES = 3
"""Times that a point, alone, may end the process that computes it."""


@dataclass(frozen=True)
class Chunk:
    """Points that are computed together, with the number of the chunk and of its first point."""

    number: int
    first: int
    points: Sequence[Choices]


class Watch(Protocol):
    """Is told how a sweep goes on."""

    def begin(self, points: int) -> None:
        """So many points there are at most."""

    def done(self, points: int, *, computed: int) -> None:
        """So many points more are done, of which some had to be computed."""

    def say(self, text: str) -> None:
        """Something to know, in a line."""


@dataclass
class Summary:
    """How a sweep went.

    Attributes
    ----------
    computed, found : points that were computed now, and that had been before.
    """

    file: Path
    models: str
    workers: str
    computed: int = 0
    found: int = 0
    seconds: float = 0.0
    set_aside: list[Path] = field(default_factory=list)

    @property
    def points(self) -> int:
        """Rows of the file."""
        return self.computed + self.found


class Interrupted(Exception):
    """A sweep that was interrupted; what is done lies in the file."""


def chunks_of(space: Space, points: Iterable[Choices], number: int = 0, first: int = 0) -> Iterator[Chunk]:
    """Yield the chunks of points."""
    remaining = iter(points)
    while some := list(islice(remaining, space.chunk)):
        yield Chunk(number, first, some)
        number, first = number + 1, first + len(some)


class Runner:
    """Computes chunks that are not done yet, and writes each as it comes back."""

    def __init__(self, space: Space, store: Store, workers: Workers, watch: Watch, summary: Summary) -> None:
        self.space, self.store, self.workers, self.watch, self.summary = space, store, workers, watch, summary
        self._packed = packed(space)
        self._out: dict[int, tuple[Chunk, list[Row | None]]] = {}
        self._lost: list[int] = []

    def run(self, chunks: Iterable[Chunk]) -> None:
        """Compute chunks; returns when the files of all are there."""
        for chunk in chunks:
            if self.store.has(chunk.number, len(chunk.points)):
                self._count(len(chunk.points), 0)
                continue
            rows: list[Row | None] = [None] * len(chunk.points)
            if self.store.known is not None:
                rows = [self.store.row_before(point_key(self.space, choices)) for choices in chunk.points]
            self._out[chunk.number] = chunk, rows
            if None in rows:
                self._give(chunk.number)
            else:
                self._finish(chunk.number, [])
            while len(self._out) >= self.workers.capacity:
                self._take()
        while self._out:
            self._take()

    def _missing(self, number: int) -> list[Choices]:
        chunk, rows = self._out[number]
        return [choices for choices, row in zip(chunk.points, rows, strict=True) if row is None]

    def _give(self, number: int) -> None:
        self.workers.give(number, (self._packed, self.summary.models, self._missing(number)))

    def _take(self) -> None:
        for number, answer in self.workers.take():
            if answer is LOST:
                self._lost.append(number)
            else:
                self._finish(number, answer)
        if self._lost and len(self._lost) == len(self._out):
            lost, self._lost = sorted(self._lost), []
            for number in lost:
                self._finish(number, self._alone(number))

    def _alone(self, number: int) -> list[Row]:
        """Return the rows of a chunk that came back lost: nothing else is out."""
        self._give(number)
        [(_, answer)] = self.workers.take()
        if answer is not LOST:
            return answer
        return [self._point_alone(number, choices) for choices in self._missing(number)]

    def _point_alone(self, number: int, choices: Choices) -> Row:
        for _ in range(MAX_LOSSES):
            self.workers.give(number, (self._packed, self.summary.models, [choices]))
            [(_, answer)] = self.workers.take()
            if answer is not LOST:
                return answer[0]
        return lost_row(self.space, choices, MAX_LOSSES)

    def _finish(self, number: int, computed: Sequence[Row]) -> None:
        chunk, rows = self._out.pop(number)
        new = iter(computed)
        whole = [next(new) if row is None else row for row in rows]
        self.store.write(number, chunk.first, chunk.points, whole)
        self._count(len(whole), len(computed))

    def _count(self, points: int, computed: int) -> None:
        self.summary.computed += computed
        self.summary.found += points - computed
        self.watch.done(points, computed=computed)


def run_sweep(space: Space, file: Path, start: Callable[[], Workers], watch: Watch) -> Summary:
    """Run what is not done of a sweep, and leave all of it in a file.

    Parameters
    ----------
    start : starts the workers, if any are needed.

    Raises :class:`InputError` where results cannot be written or workers not be reached, and
    :class:`Interrupted`; what is done by then stays.
    """
    from sim.sweep.search import search

    started = time.perf_counter()
    summary = Summary(file, models_version(), "none")
    with Store(file, space, summary.models) as store:
        summary.set_aside = store.set_aside
        for path in store.set_aside:
            watch.say(f"{path} holds what was in {file}, of another space or of other models")
        if store.complete:
            summary.found = store.num_rows()
            summary.seconds = time.perf_counter() - started
            return summary
        watch.begin(space.points or space.grid_size)
        workers = start()
        summary.workers = workers.name
        try:
            runner = Runner(space, store, workers, watch, summary)
            if space.method == "search":
                search(space, runner, store)
            else:
                runner.run(chunks_of(space, space.candidates()))
        except KeyboardInterrupt:
            workers.close()
            store.collect(complete=False)
            raise Interrupted(
                f"interrupted with {summary.points} points in {file}; the same command goes on"
            ) from None
        except OtherModels as error:
            raise InputError(
                f"a worker's models are of version {error}, these of {summary.models}: install the same",
                key="scheduler",
            ) from None
        finally:
            workers.close()
        store.collect(complete=True)
    summary.seconds = time.perf_counter() - started
    return summary


def collect(space: Space, file: Path) -> int:
    """Make the file of what is done of a sweep, and return how many points that is; computes nothing."""
    with Store(file, space, models_version()) as store:
        if not store.complete:
            store.collect(complete=False)
        return store.num_rows()
