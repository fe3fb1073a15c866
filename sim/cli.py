"""The command line: ``expertbank``. What it runs is :mod:`sim.commands.program`.

Nothing that takes time is imported before interruptions are taken care of.
"""

from __future__ import annotations

import sys

from sim import interruptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; bad input is one line on stderr and status 2."""
    try:
        with interruptions.taken():
            from sim.commands.program import run

            status = run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:
        print(interruptions.LINE, file=sys.stderr)
        status = interruptions.STATUS
    if arguments is None:
        interruptions.until_exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
