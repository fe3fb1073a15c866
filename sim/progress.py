"""What takes long, on stderr: a bar on a terminal once it has taken a while, lines of words elsewhere.

The command line shows one bar for a command (:func:`bar`); whatever runs under it says what it does
(:func:`tell`) and how much of it is done (:func:`track`, :func:`advance`). Without a bar nothing is counted.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
DELAY_S = 2.0
"""A command that ends before shows no bar."""
LONGEST = 40
"""Characters of a bar's words."""


class Bar:
    """Words, what is done of how much where that is known, and the time since the command began.

    It begins after ``delay_s`` and vanishes when it is stopped, or with the first output on a terminal.
    """

    def __init__(self, words: str, delay_s: float) -> None:
        self._words, self._done, self._total = words, 0, 0
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._display: Any = None
        self._stopped = False
        self._stdout = sys.stdout
        self._timer = threading.Timer(delay_s, self._begin)
        self._timer.daemon = True

    def start(self) -> None:
        """Let the time begin."""
        if sys.stdout.isatty():
            sys.stdout = _Output(self, sys.stdout)
        self._timer.start()

    def _begin(self) -> None:
        # Not before: most commands end sooner.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        with self._lock:
            if self._stopped:
                return
            self._display = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            self._display.add_task("", total=None)
            task = self._display.tasks[0]
            task.start_time -= self._delay_s
            self._fill()
            self._display.start()

    def _fill(self) -> None:
        task = self._display.tasks[0]
        words = self._words if len(self._words) <= LONGEST else f"{self._words[: LONGEST - 3]}..."
        task.description, task.completed, task.total = words, self._done, self._total or None

    def show(self, words: str | None = None, done: int = 0, total: int = 0) -> None:
        """Show what happens now, and how much is done; a total of 0 is one that is not known."""
        with self._lock:
            self._words = self._words if words is None else words
            self._done, self._total = done, total
            if self._display is not None:
                self._fill()

    def say(self, words: str) -> None:
        """Show what happens now, and leave what is counted as it is."""
        self.show(words, self._done, self._total)

    def stop(self) -> None:
        """Take the bar away, for good."""
        self._timer.cancel()
        with self._lock:
            self._stopped = True
            display, self._display = self._display, None
        if display is not None:
            display.stop()
        if isinstance(sys.stdout, _Output):
            sys.stdout = self._stdout


class _Output:
    """A terminal's stdout, before whose first character the bar is taken away."""

    def __init__(self, bar: Bar, stream: Any) -> None:
        self._bar, self._stream = bar, stream

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "writelines", "buffer"):
            self._bar.stop()
        return getattr(self._stream, name)


_bars: list[Bar] = []
"""The one that is shown, if one is."""


@contextlib.contextmanager
def bar(words: str) -> Iterator[None]:
    """Show a bar while something runs, if stderr is a terminal and no bar is shown yet."""
    if _bars or not sys.stderr.isatty():
        yield
        return
    shown = Bar(words, DELAY_S)
    _bars.append(shown)
    shown.start()
    try:
        yield
    finally:
        _bars.remove(shown)
        shown.stop()


def tell(label: str) -> Callable[[str], None]:
    """Return what says in a few words what happens now: in the bar, or in a line after ``[label]``."""

    def told(words: str) -> None:
        if _bars:
            _bars[0].say(f"{label}: {words}")
        else:
            print(f"[{label}] {words}", file=sys.stderr, flush=True)

    return told


def track(items: Sequence[Item], words: Callable[[Item], str] = str) -> Iterator[Item]:
    """Yield items; the bar, where there is one, has the words for each and how many are done."""
    for number, item in enumerate(items):
        if _bars:
            _bars[0].show(words(item), number, len(items))
        yield item
    advance(0, 0)


def show(words: str, done: int, total: int) -> bool:
    """Show what happens, and how much is done; return whether there is a bar that does."""
    if _bars:
        _bars[0].show(words, done, total)
    return bool(_bars)


def advance(done: int, total: int) -> None:
    """Tell how much is done; of 0 how much is not known."""
    if _bars:
        _bars[0].show(None, done, total)
