"""Ctrl-C, and a polite request to end: one line and exit status 130, whatever a command is at.

Python raises :class:`KeyboardInterrupt` wherever it happens to be: in an import that then stays half done, or
in a callback whose errors it prints and forgets. Here an import is ended with the program, or waited for
where something has to be put in order first; what a callback swallows comes again.

This is imported before anything that takes time, and imports nothing that does.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

STATUS = 130
LINE = "expertbank: interrupted"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.05
"""How long after an import, or a callback, an interruption is tried again."""
PATIENCE = 4
"""The signal from which on nothing is waited for any more."""
IMPORTING = "<frozen importlib"


class _Taken:
    """What came of the signals of a command."""

    def __init__(self) -> None:
        self.held = 0
        self.count = 0

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the command, once: a second signal must not interrupt what is put in order."""
        if number != signal.SIGALRM:
            self.count += 1
        if self.count >= PATIENCE:
            end(LINE)
        if self.count > 1 and number != signal.SIGALRM:
            return
        if not _importing(frame):
            raise KeyboardInterrupt
        if not self.held:
            end(LINE)
        self.again()

    def again(self) -> None:
        """Interrupt the command a little later."""
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


_commands: list[_Taken] = []
"""Those that are running: one, or none."""


def end(line: str = "", status: int = STATUS) -> None:
    """End the program here and now; its processes end with it."""
    with suppress(Exception):
        if line:
            os.write(sys.stderr.fileno(), f"{line}\n".encode())
    os._exit(status)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTING):
            return True
        frame = frame.f_back
    return False


@contextmanager
def taken() -> Iterator[None]:
    """Take signals for interruptions while a command runs; in the main thread, once."""
    command = _Taken()
    before: dict[int, Any] = {}
    hook = sys.unraisablehook

    def unraisable(what: Any) -> None:
        if what.exc_type is KeyboardInterrupt:
            command.again()
        else:
            hook(what)

    try:
        if not _commands:
            for number in (*SIGNALS, signal.SIGALRM):
                before[number] = signal.signal(number, command.signalled)
    except ValueError:  # not the main thread: its interruptions are not this one's
        before = {}
    if not before:
        yield
        return
    _commands.append(command)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for caught, handler in before.items():
            signal.signal(caught, handler)
        _commands.remove(command)


@contextmanager
def held() -> Iterator[None]:
    """Let interruptions wait for imports: there is something to put in order."""
    for command in _commands:
        command.held += 1
    try:
        yield
    finally:
        for command in _commands:
            command.held -= 1


def until_exit(status: int) -> None:
    """Let no signal change the status of a program that is through with its command."""

    def signalled(*_: object) -> None:
        with suppress(Exception):
            sys.stdout.flush()
        end(status=status)

    for number in SIGNALS:
        signal.signal(number, signalled)
