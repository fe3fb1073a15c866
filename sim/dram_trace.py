"""Command traces as files: every DRAM command of every channel, for this project's checker or another one.

A trace is CSV: a header, then one line per command, in order of cycles::

    cycle,channel,command,bank_group,bank,row,column
    1044,0,ACT,0-3,0-3,17,
    1058,0,MAC,0-3,0-3,,0
    1059,0,WR,,,,

``cycle`` is the memory clock cycle in which the command is on its bus, counted from the run's first one.
``bank_group`` and ``bank`` (of its group) are numbers, or ranges where a
command goes to several banks at once: to every bank of every group that is named. ``row`` is an ACT's,
``column`` (in bursts) a MAC's, empty otherwise. Commands: :data:`COMMANDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sim.dram.lines import MAX_CYCLE, at_line, numbered_lines, whole_number
from sim.dram_check import ACT, MAC, PRE, PRE_ALL, READ, REF, WRITE, Commands
from spec.design import BankMode, PimDesign
from spec.errors import InputError

HEADER = "cycle,channel,command,bank_group,bank,row,column"
ROW_COMMANDS = {"ACT": ACT, "PRE": PRE, "PREA": PRE_ALL, "REF": REF}
"""On the row bus. PREA closes all banks of the channel."""
COLUMN_COMMANDS = {"MAC": MAC, "WR": WRITE, "RD": READ}
"""On the column bus. MAC reads a burst into the lanes; WR and RD go to registers and to no bank."""
COMMANDS = (*ROW_COMMANDS, *COLUMN_COMMANDS)


def places(pim: PimDesign, command: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Return where a command may go: bank groups and banks as a trace has them -> side and unit.

    Bank ``side * units + unit`` lies in bank group (that number modulo the groups).
    """
    groups, units, sides = pim.dram.bank_groups, pim.units, pim.banks_per_unit
    single = pim.bank_mode is BankMode.SINGLE_BANK
    if command in ("WR", "RD"):
        return {("", ""): (0, 0)}
    if command in ("PREA", "REF"):
        return {_span(groups, range(pim.dram.num_banks)): (0, 0)}
    one_by_one = single or (command == "ACT" and pim.opens_singly)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for side in range(sides):
        if one_by_one:
            found |= {_span(groups, [side * units + unit]): (side, unit) for unit in range(units)}
        else:
            found[_span(groups, range(side * units, (side + 1) * units))] = (side, 0)
    return found


def _span(groups: int, banks: Sequence[int]) -> tuple[str, str]:
    """Return the ranges of bank groups and of banks in them that some neighbouring banks fill."""

    def text(numbers: Sequence[int]) -> str:
        low, high = min(numbers), max(numbers)
        return str(low) if low == high else f"{low}-{high}"

    return text([bank % groups for bank in banks]), text([bank // groups for bank in banks])


def trace_text(pim: PimDesign, channels: Sequence[Commands]) -> str:
    """Return the file of the commands that each channel's buses showed."""
    lines: list[tuple[int, int, str]] = []
    for channel, commands in enumerate(channels):
        for kinds, bus in ((ROW_COMMANDS, commands.rows), (COLUMN_COMMANDS, commands.columns)):
            names = {kind: name for name, kind in kinds.items()}
            # From side and unit to bank groups and banks; what a command does not name is 0 there.
            where = {
                name: {place: ",".join(span) for span, place in places(pim, name).items()} for name in kinds
            }
            for cycle, kind, side, unit, address in bus.tolist():
                name = names[kind]
                known = where[name]
                # A command to a whole side names no unit.
                span = known[(side, unit) if (side, unit) in known else (side, 0)]
                row, column = (address if name == wanted else "" for wanted in ("ACT", "MAC"))
                lines.append((cycle, channel, f"{cycle},{channel},{name},{span},{row},{column}"))
    lines.sort(key=lambda line: line[:2])
    return "\n".join([HEADER, *(text for _, _, text in lines)]) + "\n"


def read_trace(path: Path, pim: PimDesign) -> list[Commands]:
    """Return each channel's commands from a file; :class:`InputError` names line, field, rule and value."""
    known = {name: places(pim, name) for name in COMMANDS}
    found: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = [([], []) for _ in range(pim.channels)]
    before = -MAX_CYCLE
    for number, text in numbered_lines(path):
        try:
            if number == 1:
                _require(text == HEADER, "", f"must be {HEADER}, not {text!r}")
                continue
            fields = text.split(",")
            _require(len(fields) == 7, "", f"must have 7 fields, not {len(fields)}")
            cycle = whole_number("cycle", fields[0], -MAX_CYCLE, MAX_CYCLE)
            _require(
                cycle >= before, "cycle", f"must be at least {before}, that of the line above, not {cycle}"
            )
            channel = whole_number("channel", fields[1], 0, pim.channels - 1)
            name, span = fields[2], (fields[3], fields[4])
            _require(name in known, "command", f"must be one of {', '.join(COMMANDS)}, not {name!r}")
            _require(span in known[name], "bank_group,bank", _where(name, known[name], span))
            address = 0
            for field, value, owner, limit in (
                ("row", fields[5], "ACT", pim.dram.rows),
                ("column", fields[6], "MAC", pim.dram.bursts_per_row),
            ):
                if name == owner:
                    address = whole_number(field, value, 0, limit - 1)
                else:
                    _require(value == "", field, f"must be empty for {name}, not {value!r}")
        except InputError as error:
            raise at_line(error, path, number) from None
        before = cycle
        kind = ROW_COMMANDS.get(name) or COLUMN_COMMANDS[name]
        found[channel][name in COLUMN_COMMANDS].append((cycle, kind, *known[name][span], address))
    if not any(rows or columns for rows, columns in found):
        raise InputError("holds no command", file=path)
    return [Commands(*(np.array(bus, dtype=np.int64).reshape(-1, 5) for bus in buses)) for buses in found]


def _require(ok: bool, key: str, rule: str) -> None:
    if not ok:
        raise InputError(rule, key=key or None)


def _where(name: str, known: dict[tuple[str, str], tuple[int, int]], span: tuple[str, str]) -> str:
    """Return the rule about a command's banks."""
    choices = [repr(",".join(choice)) for choice in known]
    shown = " or ".join(choices[:4]) + (f" or {len(choices) - 4} more" if len(choices) > 4 else "")
    return f"must be {shown} for {name} on this design, not {','.join(span)!r}"
