"""``expertbank dram``: DRAM standards, requests through a channel, and checks of command traces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.commands.output import json_option, print_json, print_table
from spec.design import Engine
from spec.dram import DramSpec
from spec.errors import InputError, require, require_range
from spec.load import load_design, load_dram, preset_names

if TYPE_CHECKING:
    from sim.dram.stream import Requests
    from sim.dram.traces import Form, Mapping

SHOWN = 20
MOST_IN_FILES = 1 << 24
"""Requests of a run whose files are written."""


@click.group("dram")
def command() -> None:
    """DRAM standards, requests through a channel, and checks of command traces."""


@command.command("list")
@json_option
def list_command(as_json: bool) -> int:
    """List the presets of DRAM standards."""
    names = preset_names("dram")
    if as_json:
        print_json({"names": names})
        return 0
    rows = []
    for name in names:
        dram = load_dram(name)
        size = dram.pseudo_channels * dram.num_banks * dram.rows * dram.row_bytes
        bytes_per_clock = dram.pseudo_channels * dram.burst_bytes / dram.timing.burst
        rows.append(
            (
                name,
                dram.pseudo_channels,
                dram.bank_groups,
                dram.num_banks,
                dram.rows,
                dram.row_bytes,
                size >> 20,
                dram.clock_ps,
                f"{1000 * bytes_per_clock / dram.clock_ps:.1f}",
            )
        )
    columns = (
        "pseudo-channels",
        "bank groups",
        "banks",
        "rows",
        "row (bytes)",
        "size (MiB)",
        "clock (ps)",
        "GB/s",
    )
    print_table(("name", *columns), rows)
    return 0


def channel_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options of everything that runs a channel."""
    for option in (
        click.option(
            "--commands",
            "commands_out",
            type=click.Path(path_type=Path),
            help="Write every DRAM command here.",
        ),
        click.option("--queue", type=int, default=32, show_default=True, help="Places of the read queue."),
        click.option("--policy", default="open", show_default=True, help="Rows: open or closed."),
        click.option("--refresh", help="all-bank (default), per-bank or none."),
        click.option("--no-refresh", is_flag=True, help="The same as --refresh none."),
        click.option("--no-check", is_flag=True, help="Do not replay the commands; violations are null."),
        click.option("--standard", required=True, help="DRAM preset or TOML."),
    ):
        function = option(function)
    return function


@command.command("stream")
@click.option("--pattern", required=True, help="seq_bankfast, seq_colfast, rowthrash or random.")
@click.option("--requests", "total", type=int, required=True, help="Reads to offer, one in each tick.")
@channel_options
@click.option("--seed", type=int, default=12345, show_default=True, help="Of pattern random.")
@click.option("--trace", "trace_out", type=click.Path(path_type=Path), help="Write the requests here.")
@click.option("--format", "form", default="ramulator", show_default=True, help="Of the files: or dramsim3.")
@click.option("--mapping", help="Fields of an address in --trace, the slowest first (docs/dram.md).")
@json_option
def stream_command(
    pattern: str,
    total: int,
    standard: str,
    no_refresh: bool,
    no_check: bool,
    refresh: str | None,
    policy: str,
    queue: int,
    commands_out: Path | None,
    seed: int,
    trace_out: Path | None,
    form: str,
    mapping: str | None,
    as_json: bool,
) -> int:
    """Read a stream from one channel; count the clocks until the last request is accepted.

    An independent checker replays every command. Exit status 1 if one breaks a rule of the DRAM.
    requests_per_second is of the engine's processor time alone, without the checker's (wall_s has both).
    """
    from sim.dram.stream import pattern_requests
    from sim.dram.traces import requests_lines
    from sim.toolchain import check_parent, write_atomically

    dram = load_dram(standard)
    requests = pattern_requests(dram, pattern, total, seed)
    file_form, fields = _form(form), _mapping(dram, form, mapping)
    if trace_out is not None:
        require_range("requests", total, 1, MOST_IN_FILES)
        check_parent(trace_out, "trace")
    options = _options(refresh, policy, queue, no_refresh=no_refresh) | {"check": not no_check}
    status = _run(dram, requests, options, commands_out, file_form, as_json=as_json)
    if trace_out is not None:
        again = pattern_requests(dram, pattern, total, seed)
        write_atomically(trace_out, "".join(requests_lines(dram, again, file_form, fields)))
    return status


@command.command("trace")
@click.argument("file", type=click.Path(path_type=Path))
@channel_options
@click.option("--no-drain", is_flag=True, help="End as 'stream' does, when the last request is accepted.")
@click.option("--format", "form", default="ramulator", show_default=True, help="Of the files: or dramsim3.")
@click.option("--mapping", help="Fields of an address, the slowest first (docs/dram.md).")
@json_option
def trace_command(
    file: Path,
    standard: str,
    no_refresh: bool,
    no_check: bool,
    refresh: str | None,
    policy: str,
    queue: int,
    commands_out: Path | None,
    no_drain: bool,
    form: str,
    mapping: str | None,
    as_json: bool,
) -> int:
    """Run the requests in FILE through one channel, until each has been served.

    Writes wait in the same queue. Exit status 1 if a command breaks a rule of the DRAM.
    """
    from sim.dram.traces import read_requests

    dram = load_dram(standard)
    file_form = _form(form)
    requests = read_requests(file, dram, file_form, _mapping(dram, form, mapping))
    options = _options(refresh, policy, queue, no_refresh=no_refresh)
    options |= {"drain": not no_drain, "check": not no_check}
    return _run(dram, requests, options, commands_out, file_form, as_json=as_json)


def _form(name: str) -> Form:
    from sim.dram.traces import Form

    require(name in list(Form), f"must be one of {', '.join(Form)}, not {name!r}", key="format")
    return Form(name)


def _mapping(dram: DramSpec, form: str, text: str | None) -> Mapping:
    from sim.dram.traces import MAPPINGS, Mapping

    return Mapping(dram, MAPPINGS[_form(form)] if text is None else text)


def _options(refresh: str | None, policy: str, queue: int, *, no_refresh: bool) -> dict[str, Any]:
    """Return the controller's options."""
    from sim.dram.engine import RefreshMode, RowPolicy

    require(not no_refresh or refresh is None, "cannot be combined with --no-refresh", key="refresh")
    mode = "none" if no_refresh else refresh or "all-bank"
    require(
        mode in list(RefreshMode), f"must be one of {', '.join(RefreshMode)}, not {mode!r}", key="refresh"
    )
    require(policy in list(RowPolicy), f"must be one of {', '.join(RowPolicy)}, not {policy!r}", key="policy")
    return {"refresh": RefreshMode(mode), "policy": RowPolicy(policy), "queue": queue}


def _run(
    dram: DramSpec,
    requests: Requests,
    options: dict[str, Any],
    commands_out: Path | None,
    form: Form,
    *,
    as_json: bool,
) -> int:
    """Run a channel, write its commands, print what came of it."""
    from sim.dram.stream import run_requests, warm
    from sim.dram.traces import commands_header, commands_lines
    from sim.toolchain import check_parent, write_atomically

    written: list[str] = []
    sinks = []
    if commands_out is not None:
        require_range("requests", requests.total, 1, MOST_IN_FILES)
        check_parent(commands_out, "commands")
        written.append(commands_header(dram, form))
        lines = commands_lines(dram, form)
        sinks.append(lambda log: written.extend(lines(log)))
    warm()
    started = time.perf_counter()
    run = run_requests(dram, requests, sinks=tuple(sinks), **options)
    wall_s = time.perf_counter() - started
    if commands_out is not None:
        write_atomically(commands_out, "".join(written))
    result = run.as_json() | {"wall_s": wall_s}
    if as_json:
        print_json(result)
    else:
        shown = ("standard", "refresh", "requests", "served", "cycles", "cycles_per_request")
        rows = [(name.replace("_", " "), _shown(result[name])) for name in shown]
        fraction = run.bandwidth_fraction
        rows.append(("of the data buses' time", "-" if fraction is None else f"{fraction:.2%}"))
        rows.append(("DRAM rules broken", _shown(result["violations"])))
        rows.append(("requests per second simulated", f"{result['requests_per_second']:,.0f}"))
        print_table(("", dram.name), rows)
        click.echo(", ".join(f"{name} {count}" for name, count in run.commands.items() if count))
        for one in run.broken:
            click.echo(str(one))
    return 1 if run.broken else 0


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


@command.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--design", "design_name", default="pim", show_default=True, help="Whose channels; preset or TOML."
)
@click.option("--standard", help="DRAM to check against (default: the design's); preset or TOML.")
@click.option("--format", "form", help="Of a channel's commands: ramulator or dramsim3; needs --standard.")
@click.option(
    "--refresh", help="With --format, what must be refreshed: all-bank (default), per-bank or none."
)
@json_option
def check_command(
    file: Path,
    design_name: str,
    standard: str | None,
    form: str | None,
    refresh: str | None,
    as_json: bool,
) -> int:
    """Check the commands in a trace (of 'sim --trace') against every rule of the DRAM.

    With --format those of a memory channel ('stream --commands', or another simulator's).
    Exit status 1 if a rule is broken; at most one violation is told per channel, rule and bank.
    """
    if form is not None:
        return _check_channel(file, form, standard, refresh, as_json=as_json)
    require(refresh is None, "needs --format", key="refresh")
    from sim.dram_check import check_commands
    from sim.dram_trace import COLUMN_COMMANDS, COMMANDS, ROW_COMMANDS, read_trace

    design = load_design(design_name)
    if design.engine is not Engine.PIM or design.pim is None:
        raise InputError(f"must have engine pim, which design {design.name} has not", key="design")
    pim = design.pim if standard is None else replace(design.pim, dram=load_dram(standard))
    channels = read_trace(file, pim)
    found = sorted(
        ((number, one) for number, seen in enumerate(channels) for one in check_commands(pim, seen)),
        key=lambda pair: (pair[1].cycle, pair[0]),
    )
    counts: Counter[str] = Counter()
    for seen in channels:
        for names, bus in ((ROW_COMMANDS, seen.rows), (COLUMN_COMMANDS, seen.columns)):
            counts.update({name: int((bus[:, 1] == kind).sum()) for name, kind in names.items()})
    if as_json:
        violations = [{"channel": number, **asdict(one)} for number, one in found]
        print_json(
            {
                "standard": pim.dram.name,
                "commands": {name: counts[name] for name in COMMANDS},
                "violations": len(violations),
                "first_violations": violations[:SHOWN],
            }
        )
    else:
        click.echo(", ".join(f"{name} {counts[name]}" for name in COMMANDS))
        for number, one in found[:SHOWN]:
            click.echo(f"channel {number}: {one}")
        click.echo(f"rules of {pim.dram.name} broken: {len(found)}")
    return 1 if found else 0


def _check_channel(file: Path, form: str, standard: str | None, refresh: str | None, *, as_json: bool) -> int:
    """Check the commands of a memory channel."""
    from sim.dram.stream import make_checker
    from sim.dram.traces import read_commands
    from spec.dram import Command

    require(standard is not None, "needs --standard", key="format")
    dram = load_dram(str(standard))
    mode = _options(refresh, "open", 1, no_refresh=False)["refresh"]
    checker = make_checker(dram, mode)
    log = read_commands(file, dram, _form(form))
    checker.check(log)
    broken = checker.finish(int(log[-1, 0]))
    counts = {one.name: int((log[:, 1] == one).sum()) for one in Command}
    if as_json:
        print_json(
            {
                "standard": dram.name,
                "commands": counts,
                "violations": sum(one.count for one in broken),
                "first_violations": [asdict(one) for one in broken],
            }
        )
    else:
        click.echo(", ".join(f"{name} {count}" for name, count in counts.items() if count))
        for one in broken:
            click.echo(str(one))
        click.echo(f"rules of {dram.name} broken: {len(broken)}")
    return 1 if broken else 0
