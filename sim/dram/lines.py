"""Read traces line by line: what is wrong in one is told with its number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from spec.errors import InputError
from spec.files import check_regular

MAX_LINE = 256
MAX_CYCLE = 1 << 48


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give numbers and lines of a file, no more of it in memory than a line; the first one in any case."""
    try:
        if not path.is_dir():
            check_regular(path)  # reading a pipe would wait for ever
        with path.open(encoding="utf-8", newline="\n") as file:
            number = 0
            while (line := file.readline(MAX_LINE + 1)) or number == 0:
                number += 1
                if len(line) > MAX_LINE:
                    raise InputError(
                        f"must have at most {MAX_LINE} characters", file=path, key=f"line {number}"
                    )
                yield number, line.removesuffix("\n").removesuffix("\r")
    except InputError as error:
        raise error.at(file=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error.reason}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None


def whole_number(key: str, text: str, low: int, high: int) -> int:
    """Return the number that a field holds; :class:`InputError` unless it is one in ``low`` .. ``high``."""
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if value is None or not low <= value <= high:
        raise InputError(f"must be a whole number in {low}..{high}, not {text!r}", key=key)
    return value


def at_line(error: InputError, path: Path, number: int) -> InputError:
    """Return the error with its place in the file."""
    key = f"line {number}: {error.key}" if error.key else f"line {number}"
    return InputError(error.rule, file=path, key=key)
