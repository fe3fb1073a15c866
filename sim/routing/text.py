"""Read text of untrusted sources line by line, in bounded memory; every error names its line."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spec.errors import InputError
from spec.files import check_regular

MAX_LINE_BYTES = 1 << 26
MAX_DOCUMENT_BYTES = 1 << 28
GZIP = b"\x1f\x8b"
"""What a compressed file begins with."""
LINES_AT_A_TIME = 1 << 14
BYTES_AT_A_TIME = 1 << 22


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a UTF-8 file's lines with their numbers from 1, without line ends and byte-order mark.

    One that gzip has compressed, whatever its name, is read as it was before.
    """
    number = 0
    try:
        check_regular(path)
        with path.open("rb") as plain, _unpacked(plain) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"must be at most {MAX_LINE_BYTES} bytes", file=path, key=at(number))
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(f"is not UTF-8: {error.reason}", file=path, key=at(number)) from None
    except InputError as error:
        raise error.at(file=path) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"is not valid gzip: {error}", file=path, key=f"behind {at(number)}") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None


def _unpacked(file: io.BufferedReader) -> gzip.GzipFile | io.BufferedReader:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file


def at(number: int) -> str:
    """Return how a line is named."""
    return f"line {number}"


def read_rows(path: Path, form: str, row: re.Pattern[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows behind a CSV file's header, many at a time, with the number of the first one's line.

    Each line matches ``row``; one that does not is an error that says the line must be ``form``. Empty lines
    are allowed at the end only.
    """
    rows: list[str] = []
    first, size, empty = 2, 0, 0
    for number, line in read_lines(path):
        if number == 1:
            continue
        if not line:
            empty = empty or number
            continue
        if empty or not row.fullmatch(line):
            wrong = "" if empty else line
            raise InputError(f"must be {form}, not {_shortened(wrong)}", file=path, key=at(empty or number))
        rows.append(line)
        size += len(line)
        if len(rows) == LINES_AT_A_TIME or size > BYTES_AT_A_TIME:
            yield first, rows
            rows, first, size = [], number + 1, 0
    if rows:
        yield first, rows


def read_header(path: Path) -> str:
    """Return a text file's first line, empty if there is none."""
    return next((line for _, line in read_lines(path)), "")


def read_documents(path: Path) -> Iterator[tuple[str | None, Any]]:
    """Yield the JSON values of a file with their places.

    ``.jsonl``: one value a line, empty lines skipped. Otherwise one value; the elements of a list are yielded
    one by one.
    """
    if path.suffix == ".jsonl":
        for number, line in read_lines(path):
            if line.strip():
                yield at(number), _parse(line, path, at(number))
        return
    try:
        size = check_regular(path)
        if size > MAX_DOCUMENT_BYTES:
            raise InputError(
                f"must be at most {MAX_DOCUMENT_BYTES} bytes, not {size} (.jsonl has no such limit)",
                file=path,
            )
        text = path.read_text(encoding="utf-8-sig")
    except InputError as error:
        raise error.at(file=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    value = _parse(text, path, None)
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield f"[{index}]", element
    else:
        yield None, value


def _parse(text: str, path: Path, place: str | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"is not valid JSON: {error.msg} at {where}", file=path, key=place) from None
    except ValueError:  # a number of thousands of digits
        raise InputError("is not valid JSON: a number is too long", file=path, key=place) from None
    except RecursionError:
        raise InputError("is not valid JSON: nested too deeply", file=path, key=place) from None


def _shortened(line: str) -> str:
    return repr(line if len(line) <= 40 else line[:40] + "...")
