"""All commands of the command line.

Each command is a module of :mod:`sim.commands` with a click command named ``command``, whose
function returns the exit status. A new one is imported and listed here. What a command needs beyond
its own options (the hardware, compiled engines) it imports in its function, so that ``--help`` and the
others stay fast.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from sim.commands import (
    bench,
    check,
    claims,
    designs,
    dram,
    export,
    layout,
    models,
    pack,
    pim,
    policies,
    registers,
    reproduce,
    routing,
    serve,
    sim,
    sweep,
    synth,
    system,
    verilog,
)
from sim.progress import bar
from spec.errors import InputError, InputWarning, one_line

OK, DIFFERS, BAD_INPUT = 0, 1, 2
UNREAD = 128 + signal.SIGPIPE
"""Nobody read to the end: what a shell says of a program that SIGPIPE ended."""


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="expertbank")
def expertbank() -> None:
    """Mixture-of-Experts accelerators: what they compute, when, and the Verilog that does it.

    Exit status: 0 ran and agreed, 1 ran and something disagreed, 2 bad input.
    """


for module in (
    check,
    sim,
    verilog,
    synth,
    layout,
    pack,
    dram,
    pim,
    routing,
    models,
    designs,
    registers,
    serve,
    export,
    system,
    policies,
    sweep,
    reproduce,
    bench,
    claims,
):
    expertbank.add_command(module.command)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; :class:`KeyboardInterrupt` where the user interrupts it."""
    try:
        _check_empty(arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("default", InputWarning)  # once, however often a file is read
            warnings.showwarning = _warn(warnings.showwarning)
            with bar(" ".join(arguments[:2])), expertbank.make_context("expertbank", list(arguments)) as ctx:
                status = expertbank.invoke(ctx)
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except InputError as error:
        return _fail(str(error))
    except click.ClickException as error:
        return _fail(error.format_message())
    except BrokenPipeError:  # whoever reads it has enough; what is left in the buffer goes nowhere
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:  # a full disk, a folder that went away
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return status if isinstance(status, int) else OK


def _check_empty(arguments: Sequence[str]) -> None:
    """Raise :class:`InputError` for an empty argument: as a path it would be the folder one is in."""
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        option = before if not argument else argument.removesuffix("=")
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            named = option.lstrip("-") if option.startswith("-") else f"argument {place + 1}"
            raise InputError("must not be empty", key=named)


def _warn(show: Callable[..., None]) -> Callable[..., None]:
    """Return what shows a warning: one line where the input is its reason, as ever otherwise."""

    def shown(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"expertbank: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **options)

    return shown


def _fail(message: str) -> int:
    print("expertbank: " + one_line(" ".join(message.split())), file=sys.stderr)
    return BAD_INPUT
