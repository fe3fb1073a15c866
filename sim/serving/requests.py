"""Requests: read from public traces in bounded memory, or drawn; always in the order in which they arrive.

Formats, told by the first line:

* Azure LLM inference traces 2023 and 2024 (github.com/Azure/AzurePublicDataset): CSV of ``TIMESTAMP``,
  ``ContextTokens``, ``GeneratedTokens``.
* BurstGPT (arXiv 2401.17644): CSV with ``Timestamp`` in seconds, ``Request tokens``, ``Response tokens``; a
  response of 0 tokens is a request that failed, and is left out and counted.
* Mooncake (arXiv 2407.00079): JSON lines of ``timestamp`` in ms, ``input_length``, ``output_length``.
* LLMServingSim: JSON lines of ``arrival_time_ns``, ``input_toks``, ``output_toks``.

The first request comes at 0. Blank lines are none; a file may be compressed with gzip.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.text import at, read_lines
from spec.errors import InputError, require, require_range

CHUNK = 1 << 14
MAX_TOKENS = 1 << 24
"""Of a prompt or an output: more is a broken row."""
MAX_SECONDS = 1e9


@dataclass(frozen=True)
class Requests:
    """Some requests, in the order of their arrival.

    Attributes
    ----------
    arrival_s : (n,) float64, ascending.
    prompt, output : (n,) int64, tokens, from 1.
    """

    arrival_s: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass
class Skipped:
    """Rows of a file that are no requests: ``failed`` ones of BurstGPT, and ``odd`` ones if those may be."""

    failed: int = 0
    odd: int = 0


Row = tuple[float, int, int]


class OddRow(Exception):
    """What a row breaks."""


def read_requests(
    path: Path,
    *,
    limit: int | None = None,
    speed: float = 1.0,
    skip_odd: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[Requests]:
    """Yield a trace's requests, at most ``CHUNK`` at a time.

    A row that breaks a rule is an :class:`InputError` with its line, or is counted and left out.

    Parameters
    ----------
    limit : requests to take.
    speed : what their arrivals are divided by.
    skip_odd : leave out what breaks a rule.
    skipped : counts what was left out.
    """
    counts = Skipped() if skipped is None else skipped
    lines = read_lines(path)
    number, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    parse, header = _format(path, number, first)
    if not header:
        lines = _with(number, first, lines)
    rows: list[Row] = []
    begin: float | None = None
    last = 0.0
    taken = 0
    within = MAX_SECONDS * min(1.0, speed)
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = parse(line)
            if row is None:
                counts.failed += 1
                continue
            second = row[0]
            begin = second if begin is None else begin
            if second - begin < last:
                raise OddRow(f"must not come before the row above it, by {last - (second - begin):g} s")
            if second - begin > within:
                raise OddRow(f"must come within {within:g} s of the first row")
        except OddRow as broken:
            if not skip_odd:
                raise InputError(str(broken), file=path, key=at(number)) from None
            counts.odd += 1
            continue
        last = second - begin
        rows.append((last / speed, row[1], row[2]))
        taken += 1
        if len(rows) == CHUNK or taken == limit:
            yield _requests(rows)
            rows = []
        if taken == limit:
            return
    if rows:
        yield _requests(rows)
    if not taken:
        raise InputError("must hold at least one request", file=path)


def asked_requests(
    *,
    trace: Path | None,
    limit: int | None,
    speed: float,
    skip_odd: bool,
    skipped: Skipped,
    arrivals: str | None,
    requests: int | None,
    prompt: str | None,
    output: str | None,
    seed: int,
) -> Iterator[Requests]:
    """Return a trace's requests, or drawn ones; bad options or bad first ones are an error now, not later.

    By default 1000 are drawn, of 512 tokens that come in and 128 that go out.
    """
    require((trace is None) != (arrivals is None), "needs --trace or --arrivals, one of them", key="requests")
    for name, value in (("requests", requests), ("prompt", prompt), ("output", output)):
        require(trace is None or value is None, "is the trace's own", key=name)
    for name, value in (("limit", limit), ("skip_odd", skip_odd or None)):
        require(arrivals is None or value is None, "needs --trace", key=name)
    require_range("speed", speed, 1e-6, 1e6)
    if limit is not None:
        require_range("limit", limit, 1, 1 << 31)
    if trace is not None:
        source = read_requests(trace, limit=limit, speed=speed, skip_odd=skip_odd, skipped=skipped)
    else:
        assert arrivals is not None
        count = 1000 if requests is None else requests
        source = draw_requests(arrivals, prompt or "512", output or "128", requests=count, seed=seed)
    return chain([next(source)], source)


def _requests(rows: list[Row]) -> Requests:
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(np.array(arrival), np.array(prompt, np.int64), np.array(output, np.int64))


def _with(number: int, first: str, rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield number, first
    yield from rest


def _format(path: Path, number: int, first: str) -> tuple[Callable[[str], Row | None], bool]:
    """Return what parses a row of a file that begins so, and whether its first line is a header.

    ``number``: of that line.
    """
    line = at(number)
    if first.lstrip().startswith("{"):
        try:
            keys = _json(first)
        except OddRow as broken:
            raise InputError(str(broken), file=path, key=line) from None
        for form in JSON_FORMS:
            if all(name in keys for name in form[:3]):
                return _json_parser(*form), False
        raise InputError(f"must have the keys of a known trace: {JSON_NAMES}", file=path, key=line)
    try:
        columns = [column.strip() for column in _cells(first)]
    except OddRow as broken:
        raise InputError(str(broken), file=path, key=line) from None
    for wanted, seconds in CSV_FORMS:
        if all(name in columns for name in wanted):
            for name in wanted:
                if columns.count(name) > 1:
                    rule = f"must name {name} once, not {columns.count(name)} times"
                    raise InputError(rule, file=path, key=line)
            return _csv_parser(columns, wanted, seconds()), True
    known = "; ".join(", ".join(names) for names, _ in CSV_FORMS)
    raise InputError(
        f"must be the header of a known trace: {known}; or a JSON object with {JSON_NAMES}",
        file=path,
        key=line,
    )


def _csv_parser(
    columns: list[str], names: tuple[str, str, str], seconds: Callable[[str], float]
) -> Callable[[str], Row | None]:
    places = [columns.index(name) for name in names]
    may_fail = names[2] == BURST_OUTPUT

    def parse(line: str) -> Row | None:
        cells = _cells(line)
        if len(cells) != len(columns):
            raise OddRow(f"must have {len(columns)} columns, not {len(cells)}")
        when, prompt, output = (cells[place].strip() for place in places)
        if may_fail and _whole(output) == 0:
            return None
        return seconds(when), _tokens(names[1], prompt), _tokens(names[2], output)

    return parse


def _json_parser(when: str, prompt: str, output: str, scale: float) -> Callable[[str], Row | None]:
    def parse(line: str) -> Row | None:
        row = _json(line)
        if not isinstance(row, dict):
            raise OddRow("must be a JSON object")
        for name in (when, prompt, output):
            if name not in row:
                raise OddRow(f"{name}: is missing")
        return scale * _number(when, row[when]), _tokens(prompt, row[prompt]), _tokens(output, row[output])

    return parse


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise OddRow(f"is not valid CSV: {error}") from None


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise OddRow(f"is not valid JSON: {error.msg} at column {error.colno}") from None
    except ValueError:  # a number of thousands of digits
        raise OddRow("is not valid JSON: a number is too long") from None
    except RecursionError:
        raise OddRow("is not valid JSON: nested too deeply") from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        raise OddRow(f"{name}: must be a number, not {value!r:.40}")
    return float(value)


def _whole(value: Any) -> int | None:
    """Return a whole number, also one that is written with a point and zeros; None if it is none."""
    if isinstance(value, str):
        return int(value.partition(".")[0]) if WHOLE.fullmatch(value) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if type(value) is int else None


def _tokens(name: str, value: Any) -> int:
    whole = _whole(value)
    if whole is None or not 1 <= whole <= MAX_TOKENS:
        raise OddRow(f"{name}: must be a whole number in 1..{MAX_TOKENS}, not {value!r:.40}")
    return whole


def _dates() -> Callable[[str], float]:
    """Return what reads the dates of a file: all with a zone, or all without."""
    zoned: bool | None = None

    def seconds(text: str) -> float:
        nonlocal zoned
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            when = None
        if when is None or ":" not in text:  # a day alone would be its midnight
            raise OddRow(f"TIMESTAMP: must be a date and a time, not {text!r:.40}")
        has_zone = when.tzinfo is not None
        if has_zone is not (has_zone if zoned is None else zoned):
            wanted = "have a zone" if zoned else "have no zone"
            raise OddRow(f"TIMESTAMP: must {wanted}, as the rows above, not {text!r:.40}")
        zoned = has_zone
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()

    return seconds


def _seconds(text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise OddRow(f"Timestamp: must be a number, not {text!r:.40}")
    return _number("Timestamp", float(text))


WHOLE = re.compile(r"[0-9]{1,19}(\.0*)?")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
BURST_OUTPUT = "Response tokens"
CSV_FORMS: tuple[tuple[tuple[str, str, str], Callable[[], Callable[[str], float]]], ...] = (
    (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _dates),
    (("Timestamp", "Request tokens", BURST_OUTPUT), lambda: _seconds),
)
JSON_FORMS = (
    ("timestamp", "input_length", "output_length", 1e-3),
    ("arrival_time_ns", "input_toks", "output_toks", 1e-9),
)
JSON_NAMES = "; ".join(", ".join(form[:3]) for form in JSON_FORMS)


# --- Drawn requests ---


def draw_requests(arrivals: str, prompt: str, output: str, *, requests: int, seed: int) -> Iterator[Requests]:
    """Yield drawn requests, ``CHUNK`` at a time; the same with every length of a chunk's consumer.

    Parameters
    ----------
    arrivals : ``fixed:RATE``, ``poisson:RATE``, ``gamma:RATE:CV`` (coefficient of variation of the time
        between two), ``on-off:RATE:ON_S:OFF_S`` (Poisson of RATE for ON_S seconds, then nothing for OFF_S).
    prompt, output : tokens: a number, ``uniform:A:B`` or ``lognormal:MEDIAN:SIGMA``.
    """
    kind, parameters = _parsed("arrivals", arrivals, ARRIVALS)
    draw_prompt, draw_output = _lengths("prompt", prompt), _lengths("output", output)
    require_range("requests", requests, 1, 1 << 31)
    rng = np.random.default_rng([seed, 1])
    now, first = 0.0, True
    for begin in range(0, requests, CHUNK):
        count = min(CHUNK, requests - begin)
        between = _between(kind, parameters, rng, count)
        if first:
            between[0], first = 0.0, False
        arrival = now + np.cumsum(between)
        now = float(arrival[-1])
        if kind == "on-off":
            _, on, off = parameters
            arrival = arrival + np.floor(arrival / on) * off
        require(float(arrival[-1]) <= MAX_SECONDS, f"must all come within {MAX_SECONDS:g} s", key="arrivals")
        yield Requests(arrival, draw_prompt(rng, count), draw_output(rng, count))


def _between(
    kind: str, parameters: tuple[float, ...], rng: np.random.Generator, count: int
) -> NDArray[np.float64]:
    rate = parameters[0]
    if kind == "fixed":
        return np.full(count, 1 / rate)
    if kind == "gamma":
        shape = 1 / parameters[1] ** 2
        return rng.gamma(shape, 1 / (rate * shape), count)
    return rng.exponential(1 / rate, count)


ARRIVALS = {"fixed": 1, "poisson": 1, "gamma": 2, "on-off": 3}
"""Numbers that each kind has."""
LENGTHS = {"uniform": 2, "lognormal": 2}


def _parsed(key: str, text: str, kinds: dict[str, int]) -> tuple[str, tuple[float, ...]]:
    kind, *values = text.split(":")
    known = ", ".join(kinds)
    require(kind in kinds, f"must be one of {known} with its numbers, not {text!r:.60}", key=key)
    require(len(values) == kinds[kind], f"{kind} has {kinds[kind]} numbers, not {len(values)}", key=key)
    numbers = []
    for value in values:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        require(1e-9 <= number <= 1e9, f"must have numbers in 1e-09..1e+09, not {value!r:.40}", key=key)
        numbers.append(number)
    return kind, tuple(numbers)


def _lengths(key: str, text: str) -> Callable[[np.random.Generator, int], NDArray[np.int64]]:
    if text.isdecimal() and text.isascii():
        number = int(text[:20])
        require_range(key, number, 1, MAX_TOKENS)
        return lambda rng, count: np.full(count, number, np.int64)
    kind, (a, b) = _parsed(key, text, LENGTHS)
    require(a <= MAX_TOKENS, f"must be at most {MAX_TOKENS} tokens, not {a:g}", key=key)
    if kind == "uniform":
        require(a == int(a) and b == int(b), f"must have whole tokens, not {text!r:.60}", key=key)
        require(1 <= int(a) <= int(b) <= MAX_TOKENS, f"must be from 1, ascending, not {text!r}", key=key)
        return lambda rng, count: rng.integers(int(a), int(b) + 1, count)

    def lognormal(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        drawn = np.rint(rng.lognormal(np.log(a), b, count))
        return np.clip(drawn, 1, MAX_TOKENS).astype(np.int64)

    return lognormal
