"""Results of a sweep on disk: parts while it runs, one Parquet file at its end, whole at every moment.

A chunk's rows are a file of their own in ``FILE.parts``, which appears whole or not at all. At the end the
parts become ``FILE``, which appears whole or not at all, and only then they go. What is on disk grows with
the points; what is in memory does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim.sweep.chunks import Row
from sim.sweep.space import Choices, Space
from spec.errors import InputError, one_line

FORMAT = 1
META = b"expertbank.sweep"
ROW_GROUP = 8192
MANIFEST, LOCK, KNOWN, ASIDE = "_sweep.json", "_lock", "_known.sqlite", "_tmp-"
"""Names with an underscore are no part of the table to those who read the folder as one."""
READ_ROWS = 8192
UNLINKERS = 8
"""Parts that are removed at a time."""
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How files are written; a page that is not as it was written is seen when it is read."""
WRITTEN_PART = WRITTEN | {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""Parts are soon written again, and few rows each: a third of the time."""


def schema_of(space: Space, version: str, *, complete: bool) -> pa.Schema:
    """Return the columns of a sweep's table: number, axes, figures, columns, error, key, models."""
    fields = [pa.field("point", pa.int64(), nullable=False)]
    for axis in space.axes:
        for place, name in enumerate(axis.names):
            shown = [values[place] for values in axis.shown]
            fields.append(pa.field(name, pa.float64() if axis.continuous else _type_of(shown)))
    for name, kind in space.kind.figures.items():
        fields.append(pa.field(name, pa.int64() if kind is int else pa.float64()))
    fields += [pa.field(name, pa.float64()) for name in space.columns]
    fields += [
        pa.field("error", pa.string()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("models", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata={META: json.dumps(_about(space, version, complete=complete)).encode()})


def _about(space: Space, version: str, *, complete: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": space.name,
        "space": space.identity,
        "models": version,
        "complete": complete,
        "objectives": dict(space.objectives),
        "definition": json.loads(space.text),
    }


def _type_of(values: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} and all(abs(value) < 1 << 63 for value in values):
        return pa.int64()
    if kinds <= {int, float}:
        return pa.float64()
    return pa.string()


def as_cell(value: Any, kind: pa.DataType) -> Any:
    """Return a value as a column of a type holds it: where types are mixed, and of tables, as text."""
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    return float(value) if pa.types.is_float64(kind) else value


def table_of(
    schema: pa.Schema, space: Space, first: int, points: Sequence[Choices], rows: Sequence[Row], version: str
) -> pa.Table:
    """Return a chunk's table; ``first`` is the number of its first point."""
    columns: dict[str, Sequence[Any]] = {"point": range(first, first + len(rows))}
    for axis, chosen in zip(space.axes, zip(*points, strict=True), strict=True):
        for name, shown in zip(
            axis.names, zip(*(axis.at(one)[0] for one in chosen), strict=True), strict=True
        ):
            kind = schema.field(name).type
            columns[name] = [as_cell(value, kind) for value in shown]
    names = (*space.kind.figures, *space.columns)
    columns |= zip(names, zip(*(row.figures for row in rows), strict=True), strict=True)
    columns |= {
        "error": [row.error for row in rows],
        "key": [row.key for row in rows],
        "models": [version] * len(rows),
    }
    return pa.Table.from_pydict(columns, schema=schema)


class Store:
    """The results of a sweep, at ``file`` and ``file.parts``; held by one process at a time.

    Raises :class:`InputError` where another one holds them, or the disk refuses.
    """

    def __init__(self, file: Path, space: Space, version: str) -> None:
        self.file, self.space, self.version = file, space, version
        self.schema = schema_of(space, version, complete=False)
        self.parts = file.with_name(file.name + ".parts")
        self.known: sqlite3.Connection | None = None
        self.set_aside: list[Path] = []
        self._lock: Any = None

    def __enter__(self) -> Store:
        """Take hold of the results; what another space or other models left there is set aside."""
        if not self.parts.exists() and self.complete:
            return self  # nothing is written, also where nothing can be
        with _writing(self.parts):
            self._hold()
            try:
                self._open()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the results."""
        self._release()

    def _hold(self) -> None:
        """Lock the folder, and remove what a process that was killed left half written in it."""
        while self._lock is None:
            self.parts.mkdir(exist_ok=True)
            lock = (self.parts / LOCK).open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise InputError("is being written by another sweep", file=self.file) from None
            if os.fstat(lock.fileno()).st_nlink:
                self._lock = lock
            else:
                lock.close()  # another sweep ended since, and took the folder with it
        for path in self.parts.glob(f"{ASIDE}*"):
            path.unlink()

    def _release(self) -> None:
        if self._lock is not None and (not part_files(self.parts) or self.complete):
            self.clear()
        if self.known is not None:
            self.known.close()
            (self.parts / KNOWN).unlink(missing_ok=True)
            self.known = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def mine(self) -> dict[str, Any]:
        """What a file or folder says that holds this very sweep."""
        return {"format": FORMAT, "space": self.space.identity, "models": self.version}

    def _is_mine(self, about: dict[str, Any] | None) -> bool:
        return about is not None and all(about.get(name) == value for name, value in self.mine.items())

    @property
    def complete(self) -> bool:
        """Whether the file holds all of this sweep already."""
        about = about_file(self.file)
        return self._is_mine(about) and about is not None and bool(about["complete"])

    def _open(self) -> None:
        if self.complete:
            return
        if not self._is_mine(self._manifest()):
            self._set_aside()
            _write_whole(self.parts / MANIFEST, json.dumps(self.mine).encode())
        self._look_up()

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.parts / MANIFEST).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _set_aside(self) -> None:
        """Put what is there of other sweeps into files beside, each with its own columns."""
        parts = part_files(self.parts)
        if self.file.exists():
            self.file.replace(self._new_aside())
        whole = [path for path in parts if rows_of(path) is not None]
        if whole:
            merge(whole, self._new_aside(), self.parts)
        for path in parts:
            path.unlink()

    def _asides(self) -> list[Path]:
        found = self.file.parent.glob(
            f"{glob.escape(self.file.stem)}.before-*{glob.escape(self.file.suffix)}"
        )
        return sorted(path for path in found if path.is_file())

    def _new_aside(self) -> Path:
        numbers = itertools.count(1)
        names = (f"{self.file.stem}.before-{number}{self.file.suffix}" for number in numbers)
        path = next(path for path in map(self.file.with_name, names) if not path.exists())
        self.set_aside.append(path)
        return path

    def _look_up(self) -> None:
        """Read the rows beside whose models are this sweep's, to be found by their keys."""
        before = [path for path in self._asides() if self._is_known(path)]
        if not before:
            return
        figures = (*self.space.kind.figures, *self.space.columns)
        path = self.parts / KNOWN
        path.unlink(missing_ok=True)
        known = sqlite3.connect(path)
        known.execute("pragma journal_mode = off")
        known.execute("pragma synchronous = off")
        known.execute("create table rows (key text primary key, row text) without rowid")
        for batch in read_batches(before):
            known.executemany(
                "insert or ignore into rows values (?, ?)",
                (
                    (row["key"], json.dumps([[row.get(name) for name in figures], row["error"]]))
                    for row in batch.to_pylist()
                ),
            )
        known.commit()
        self.known = known

    def _is_known(self, path: Path) -> bool:
        """Whether a file beside holds rows of this sweep's models; one that is damaged is passed over."""
        try:
            return (about_file(path) or {}).get("models") == self.version and rows_of(path) is not None
        except InputError:
            return False

    def row_before(self, key: str) -> Row | None:
        """Return the row that an earlier sweep has of a point."""
        if self.known is None:
            return None
        found = self.known.execute("select row from rows where key = ?", (key,)).fetchone()
        if found is None:
            return None
        figures, error = json.loads(found[0])
        return Row(key, tuple(figures), error)

    # Chunks.

    def part(self, chunk: int) -> Path:
        """Return the file of a chunk."""
        return self.parts / f"part-{chunk:09d}.parquet"

    def has(self, chunk: int, rows: int) -> bool:
        """Whether a chunk's file is there, holds so many rows, and is not damaged."""
        path = self.part(chunk)
        return path.is_file() and rows_of(path) == rows

    def read(self, chunk: int) -> pa.Table:
        """Return a chunk's table."""
        return pa.Table.from_batches(read_batches([self.part(chunk)]), self.schema)

    def write(self, chunk: int, first: int, points: Sequence[Choices], rows: Sequence[Row]) -> pa.Table:
        """Write a chunk's file: it is there as a whole, or not."""
        table = table_of(self.schema, self.space, first, points, rows, self.version)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, **WRITTEN_PART)
        with _writing(self.part(chunk)):
            _write_whole(self.part(chunk), buffer.getvalue())
        return table

    def collect(self, *, complete: bool) -> None:
        """Make the file of the parts; they go once it is there and complete."""
        with _writing(self.file):
            schema = schema_of(self.space, self.version, complete=complete)
            merge(part_files(self.parts), self.file, self.parts, schema)

    def num_rows(self) -> int:
        """Return the rows of the file."""
        return int(pq.read_metadata(self.file).num_rows)

    def clear(self) -> None:
        """Remove the parts."""
        if self.known is not None:
            self.known.close()
            self.known = None
        # A disk takes milliseconds for each of them, for many at a time hardly more.
        with contextlib.suppress(OSError), ThreadPoolExecutor(UNLINKERS) as threads:
            list(threads.map(Path.unlink, part_files(self.parts)))
        shutil.rmtree(self.parts, ignore_errors=True)


def part_files(folder: Path) -> list[Path]:
    """Return the files of the chunks that are done, in their order."""
    return sorted(folder.glob("part-*.parquet"))


def about_file(file: Path) -> dict[str, Any] | None:
    """Return what a results' file says about itself; None where there is no file.

    Raises :class:`InputError` for a file that is none of a sweep: it is not to be written over.
    """
    if not file.exists():
        return None
    try:
        metadata = pq.read_schema(file).metadata or {}
        about = json.loads(metadata[META])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        raise InputError("is there already and holds no results of a sweep", file=file, key="out") from None
    return about if isinstance(about, dict) else {}


def read_batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of several files, some at a time; :class:`InputError` for a file that is damaged."""
    for path in files:
        try:
            # Threads cost more than they bring: parts are small, and workers compute meanwhile.
            with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
                yield from file.iter_batches(batch_size=READ_ROWS, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"is damaged; without it the same command computes it again ({one_line(str(error))})",
                file=path,
            ) from None


def rows_of(path: Path) -> int | None:
    """Return how many rows a file has, every one of them read; None of one that is damaged."""
    try:
        return sum(int(batch.num_rows) for batch in read_batches([path]))
    except InputError:
        return None


def merge(files: Sequence[Path], file: Path, folder: Path, schema: pa.Schema | None = None) -> None:
    """Write the rows of several files into one, in row groups of the same size whatever files there were.

    ``folder``: where it is written until it is whole.
    """
    schema = pq.read_schema(files[0]) if schema is None else schema
    with _aside(file, folder) as stream, pq.ParquetWriter(stream, schema, **WRITTEN) as writer:
        waiting: list[pa.RecordBatch] = []
        count = 0
        for batch in read_batches(files):
            waiting.append(batch)
            count += batch.num_rows
            while count >= ROW_GROUP:
                table = pa.Table.from_batches(waiting)
                writer.write_table(
                    table.slice(0, ROW_GROUP).cast(schema).replace_schema_metadata(schema.metadata)
                )
                rest = table.slice(ROW_GROUP)
                waiting, count = rest.to_batches(), rest.num_rows
        if waiting:
            writer.write_table(
                pa.Table.from_batches(waiting).cast(schema).replace_schema_metadata(schema.metadata)
            )


@contextlib.contextmanager
def _aside(file: Path, folder: Path) -> Iterator[Any]:
    """Give a file to write that takes its place once it is whole and on the disk."""
    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix=ASIDE, delete=False) as stream:
        aside = Path(stream.name)
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    aside.chmod(0o644)
    aside.replace(file)


def _write_whole(path: Path, content: Any) -> None:
    with _aside(path, path.parent) as stream:
        stream.write(content)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be written: {reason}", file=path) from None
