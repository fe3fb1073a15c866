"""Text between two marks of a file, ``<!-- NAME -->`` and ``<!-- /NAME -->``: written by a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spec.errors import InputError


def marked(text: str, name: str, *, file: Path) -> tuple[str, str, str]:
    """Return what is before, between and after the marks, which stay with the outer parts.

    Raises :class:`InputError` unless each mark is there once, in order.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    between, ended, after = rest.partition(closing)
    if not (found and ended) or text.count(opening) + text.count(closing) != 2:
        raise InputError(f"must have the marks {opening.strip()} and {closing} once, in order", file=file)
    return before + opening, between, closing + after


def read_page(file: Path) -> str:
    """Return a file's text; raise :class:`InputError` where there is none."""
    if not file.is_file():
        raise InputError("no such file", file=file)
    return file.read_text()


def with_marked(file: Path, name: str, lines: Sequence[str]) -> str:
    """Return a file's text with ``lines`` between the marks."""
    before, _, after = marked(read_page(file), name, file=file)
    return before + "".join(f"{line}\n" for line in lines) + after
