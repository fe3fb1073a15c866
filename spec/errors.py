"""The one error that a user's input can cause."""

from __future__ import annotations

MAX_MESSAGE = 4000
"""Characters of a message: what files and arguments say may have a million."""


class InputError(ValueError):
    """Input that breaks a rule, in one line: where, which key, the rule, the offending value.

    The command line prints ``str(error)`` and exits with status 2; nothing has been written by then.
    """

    def __init__(self, rule: str, *, file: object = None, key: str | None = None) -> None:
        self.rule = rule
        self.file = file
        self.key = key
        place = [str(part) for part in (file, key) if part is not None]
        super().__init__(one_line(": ".join([*place, rule])))

    def at(self, *, file: object = None, key: str | None = None) -> InputError:
        """Return the same error with a place added where it had none."""
        return InputError(self.rule, file=self.file or file, key=self.key or key)


class InputWarning(UserWarning):
    """Input that breaks no rule, but that nothing reads: one line, printed on stderr."""


def one_line(text: str) -> str:
    """Return a text as it is printed: no line ends, nothing that a terminal would obey, not too long."""
    text = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def require(ok: bool, rule: str, *, key: str | None = None) -> None:
    """Raise :class:`InputError` with ``rule`` unless ``ok``."""
    if not ok:
        raise InputError(rule, key=key)


def require_range(name: str, value: int | float, low: float, high: float) -> None:
    """Raise :class:`InputError` unless ``low <= value <= high``."""
    require(low <= value <= high, f"must be in {low}..{high}, not {value}", key=name)
