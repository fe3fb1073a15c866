"""Requests and commands as files, in the formats of Ramulator and of DRAMsim3.

Requests, one a line:

* ``ramulator``: ``LD 0x1000`` or ``ST 0x1000`` (Ramulator 2.1), or ``R 0,0,1,0,17,3`` (2.0), whose numbers
  are those of the standard's levels, from the channel to the column.
* ``dramsim3``: ``0x1000 READ 17``, with the clock before which it does not arrive.

Commands, one a line, as Ramulator's ``CmdTraceRecorder`` writes them (a header names the levels, -1 is no
number) or as DRAMsim3 does (clock, command, channel, rank, bank group, bank, row, column). Clocks are ticks:
half a clock in HBM3; columns count bursts. DRAMsim3 has no word for three commands; here they are
``precharge_all``, ``activate_2`` and ``cas``. A pseudo-channel is its channel.

An address is split as a mapping says, a word of two letters for each field, the slowest first: ``ro`` row,
``ba`` bank, ``bg`` bank group, ``ra`` rank or stack, ``ch`` pseudo-channel, ``co`` burst in its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

import numpy as np

from sim.dram.engine import COLUMN_MASK, COLUMN_SHIFT, LOG_FIELDS, ROW_SHIFT, Ints
from sim.dram.lines import MAX_CYCLE, at_line, numbered_lines, whole_number
from sim.dram.stream import NOTHING, Requests
from spec.dram import PROTOCOLS, Command, DramSpec
from spec.errors import InputError, require


class Form(StrEnum):
    """Whose format."""

    RAMULATOR = "ramulator"
    DRAMSIM3 = "dramsim3"


MAPPINGS = {Form.RAMULATOR: "robabgrachco", Form.DRAMSIM3: "rochrababgco"}
"""Ramulator's RoBaRaCoCh, and what most of DRAMsim3's configurations have."""
READS = {"LD": False, "R": False, "READ": False, "ST": True, "W": True, "WRITE": True}
"""Words for a request, and whether it is a write."""

RAMULATOR_NAMES = {
    Command.ACT: "ACT",
    Command.PRE: "PREpb",
    Command.PRE_ALL: "PREab",
    Command.RD: "RD",
    Command.WR: "WR",
    Command.REF: "REFab",
    Command.REF_BANK: "REFpb",
    Command.ACT_2: "ACT2",
    Command.CAS: "CAS",
}
RAMULATOR_OTHERS = {
    "ACT1": Command.ACT,
    "PRE": Command.PRE,
    "PREA": Command.PRE_ALL,
    "REF": Command.REF,
    "CAS_RD": Command.CAS,
    "CAS_WR": Command.CAS,
}
"""Further names that are read."""
DRAMSIM3_NAMES = {
    Command.ACT: "activate",
    Command.PRE: "precharge",
    Command.PRE_ALL: "precharge_all",
    Command.RD: "read",
    Command.WR: "write",
    Command.REF: "refresh",
    Command.REF_BANK: "refresh_bank",
    Command.ACT_2: "activate_2",
    Command.CAS: "cas",
}
TO_SCOPE = (Command.PRE_ALL, Command.REF)
WITH_ROW = (Command.ACT, Command.RD, Command.WR)
WITH_COLUMN = (Command.RD, Command.WR)


class Mapping:
    """How an address is split into the fields of a standard, in whole bursts."""

    def __init__(self, dram: DramSpec, text: str) -> None:
        sizes = {
            "ro": dram.rows,
            "ba": dram.banks_per_group,
            "bg": dram.bank_groups,
            "ra": 1,
            "ch": dram.pseudo_channels,
            "co": dram.bursts_per_row,
        }
        names = [text[place : place + 2] for place in range(0, len(text), 2)]
        require(
            sorted(names) == sorted(sizes),
            f"must have each of {', '.join(sizes)} once, not {text!r}",
            key="mapping",
        )
        self.dram = dram
        self.fields = [(name, sizes[name]) for name in names]
        self.num_bytes = dram.burst_bytes
        for _, size in self.fields:
            self.num_bytes *= size

    def split(self, address: int) -> tuple[int, int, int]:
        """Return bank (of the channel), row and burst of an address."""
        require(
            0 <= address < self.num_bytes,
            f"must be below {self.num_bytes:#x}, the size of {self.dram.name}, not {address:#x}",
            key="address",
        )
        left, found = address // self.dram.burst_bytes, {}
        for name, size in reversed(self.fields):
            left, found[name] = divmod(left, size)
        bank = (found["ch"] * self.dram.bank_groups + found["bg"]) * self.dram.banks_per_group + found["ba"]
        return bank, found["ro"], found["co"]

    def join(self, bank: int, row: int, column: int) -> int:
        """Return the address of a burst."""
        channel, group, in_group = places(self.dram, bank)
        values = {"ro": row, "ba": in_group, "bg": group, "ra": 0, "ch": channel, "co": column}
        address = 0
        for name, size in self.fields:
            address = address * size + values[name]
        return address * self.dram.burst_bytes


def places(dram: DramSpec, bank: int) -> tuple[int, int, int]:
    """Return pseudo-channel, bank group and bank in its group of a bank of the channel."""
    rest, in_group = divmod(bank, dram.banks_per_group)
    return *divmod(rest, dram.bank_groups), in_group


def read_requests(path: Path, dram: DramSpec, form: Form, mapping: Mapping) -> Requests:
    """Return the requests in a file; :class:`InputError` names line, field, rule and value."""
    banks, keys, arrivals = [], [], []
    ticks = PROTOCOLS[dram.protocol].ticks_per_clock
    before = 0
    lines = numbered_lines(path)
    for number, text in lines:
        if number == 1 and not text and next(lines, None) is None:
            raise InputError("holds no request", file=path)
        try:
            fields = text.split()
            if form is Form.RAMULATOR:
                require(len(fields) == 2, f"must have 2 fields, not {len(fields)}")
                word, where = fields
                writes = _word(word, ("LD", "ST", "R", "W"))
                if word in ("R", "W"):
                    bank, row, column = _vector(dram, where)
                else:
                    bank, row, column = mapping.split(_address(where))
            else:
                require(len(fields) == 3, f"must have 3 fields, not {len(fields)}")
                writes = _word(fields[1], ("READ", "WRITE"))
                bank, row, column = mapping.split(_address(fields[0]))
                clock = whole_number("clock", fields[2], 0, MAX_CYCLE)
                require(
                    clock >= before,
                    f"must be at least {before}, that of the line above, not {clock}",
                    key="clock",
                )
                before = clock
                arrivals.append(ticks * clock)
        except InputError as error:
            raise at_line(error, path, number) from None
        banks.append(bank)
        keys.append(row << ROW_SHIFT | column << COLUMN_SHIFT | int(writes))
    all_banks, all_keys = np.array(banks, dtype=np.int64), np.array(keys, dtype=np.int64)

    def fill(first: int, banks: Ints, keys: Ints) -> None:
        banks[:] = all_banks[first : first + len(banks)]
        keys[:] = all_keys[first : first + len(keys)]

    return Requests(len(all_banks), fill, np.array(arrivals, dtype=np.int64) if arrivals else NOTHING)


def _word(word: str, known: tuple[str, ...]) -> bool:
    require(word in known, f"must be one of {', '.join(known)}, not {word!r}", key="request")
    return READS[word]


def _address(text: str) -> int:
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18}", text):
        raise InputError(f"must be a number, or 0x and a hexadecimal one, not {text!r}", key="address")
    return int(text, 0 if text[:2] in ("0x", "0X") else 10)


def _vector(dram: DramSpec, text: str) -> tuple[int, int, int]:
    """Return bank, row and burst of an address by levels."""
    levels = PROTOCOLS[dram.protocol].levels
    fields = text.split(",")
    require(
        len(fields) == len(levels),
        f"must have {len(levels)} numbers ({', '.join(levels)}), not {len(fields)}",
    )
    sizes = level_sizes(dram)
    found = {
        level: whole_number(level, value, 0, sizes[level] - 1)
        for level, value in zip(levels, fields, strict=True)
    }
    return _bank(dram, found), found["Row"], found["Column"]


def level_sizes(dram: DramSpec) -> dict[str, int]:
    """Return how many there are of each level, the column in bursts."""
    sizes = {
        "Channel": 1,
        "PseudoChannel": dram.pseudo_channels,
        "Rank": 1,
        "Sid": 1,
        "BankGroup": dram.bank_groups,
        "Bank": dram.banks_per_group,
        "Row": dram.rows,
        "Column": dram.bursts_per_row,
    }
    return {level: sizes[level] for level in PROTOCOLS[dram.protocol].levels}


def _bank(dram: DramSpec, found: dict[str, int]) -> int:
    group = found.get("PseudoChannel", 0) * dram.bank_groups + found["BankGroup"]
    return group * dram.banks_per_group + found["Bank"]


def requests_lines(dram: DramSpec, requests: Requests, form: Form, mapping: Mapping) -> Iterable[str]:
    """Give the lines of a file with the requests; without arrivals one arrives in each clock."""
    part = 1 << 12
    for first in range(0, requests.total, part):
        count = min(part, requests.total - first)
        banks, keys = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        requests.fill(first, banks, keys)
        for number, (bank, key) in enumerate(zip(banks.tolist(), keys.tolist(), strict=True), first):
            address = mapping.join(bank, key >> ROW_SHIFT, key >> COLUMN_SHIFT & COLUMN_MASK)
            if form is Form.RAMULATOR:
                yield f"{'ST' if key & 1 else 'LD'} {address:#x}\n"
            else:
                ticks = PROTOCOLS[dram.protocol].ticks_per_clock
                clock = int(requests.arrivals[number]) // ticks if len(requests.arrivals) else number
                yield f"{address:#x} {'WRITE' if key & 1 else 'READ'} {clock}\n"


def commands_header(dram: DramSpec, form: Form) -> str:
    """Return what is above the commands of a file."""
    if form is Form.DRAMSIM3:
        return ""
    return ",".join(["clock", "command", *PROTOCOLS[dram.protocol].levels, "type", "source"]) + "\n"


def commands_lines(dram: DramSpec, form: Form) -> Callable[[Ints], Iterable[str]]:
    """Return a function from a part of a command log to its lines."""
    levels = PROTOCOLS[dram.protocol].levels
    split = PROTOCOLS[dram.protocol].split_act

    def ramulator(log: Ints) -> Iterable[str]:
        for tick, number, bank, row, column in log.tolist():
            command = Command(number)
            channel, group, in_group = places(dram, bank)
            values = {"Channel": 0, "PseudoChannel": channel, "Rank": 0, "Sid": 0, "Row": row}
            values |= {"BankGroup": group, "Bank": in_group, "Column": column}
            if command in TO_SCOPE:
                values |= {"BankGroup": -1, "Bank": -1, "Sid": -1 if "Sid" in levels else 0}
            name = "ACT1" if split and command is Command.ACT else RAMULATOR_NAMES[command]
            kind = {Command.RD: 0, Command.WR: 1}.get(command, -1)
            yield f"{tick},{name},{','.join(str(values[level]) for level in levels)},{kind},0\n"

    def dramsim3(log: Ints) -> Iterable[str]:
        for tick, number, bank, row, column in log.tolist():
            channel, group, in_group = places(dram, bank)
            name = DRAMSIM3_NAMES[Command(number)]
            yield (
                f"{tick:<18} {name:<20} {channel:>3} {0:>3} {group:>3} {in_group:>3}"
                f" {max(row, 0):>#8x} {max(column, 0):>#8x}\n"
            )

    return ramulator if form is Form.RAMULATOR else dramsim3


def read_commands(path: Path, dram: DramSpec, form: Form) -> Ints:
    """Return a file's commands in order of time, as :data:`sim.dram.engine.LOG_FIELDS` says.

    Lines may stand in any order; those of one tick keep theirs. :class:`InputError` names line, field, rule
    and value.
    """
    found = []
    header = commands_header(dram, form).rstrip("\n")
    for number, text in numbered_lines(path):
        try:
            if header and number == 1:
                require(text == header, f"must be {header}, not {text!r}")
                continue
            found.append(_ramulator(dram, text) if form is Form.RAMULATOR else _dramsim3(dram, text))
        except InputError as error:
            raise at_line(error, path, number) from None
    if not found:
        raise InputError("holds no command", file=path)
    log = np.array(found, dtype=np.int64).reshape(-1, LOG_FIELDS)
    return log[np.argsort(log[:, 0], kind="stable")]


def _ramulator(dram: DramSpec, text: str) -> tuple[int, ...]:
    protocol = PROTOCOLS[dram.protocol]
    fields = text.split(",")
    levels = protocol.levels
    require(len(fields) == len(levels) + 4, f"must have {len(levels) + 4} fields, not {len(fields)}")
    names = {name: command for command, name in RAMULATOR_NAMES.items()} | RAMULATOR_OTHERS
    command = _command(dram, fields[1], names)
    sizes = level_sizes(dram)
    values = {}
    for level, value in zip(levels, fields[2:], strict=False):
        optional = (level == "Row" and command not in WITH_ROW) or (
            level == "Column" and command not in WITH_COLUMN
        )
        optional |= level in ("BankGroup", "Bank", "Sid") and command in TO_SCOPE
        values[level] = whole_number(level, value, -1 if optional else 0, sizes[level] - 1)
    for key, value in zip(("type", "source"), fields[-2:], strict=True):
        whole_number(key, value, -1, MAX_CYCLE)
    clock = whole_number("clock", fields[0], 0, MAX_CYCLE)
    return _entry(dram, clock, command, values, values["Column"])


def _dramsim3(dram: DramSpec, text: str) -> tuple[int, ...]:
    fields = text.split()
    require(len(fields) == 8, f"must have 8 fields, not {len(fields)}")
    command = _command(dram, fields[1], {name: command for command, name in DRAMSIM3_NAMES.items()})
    values = {
        "PseudoChannel": whole_number("channel", fields[2], 0, dram.pseudo_channels - 1),
        "Rank": whole_number("rank", fields[3], 0, 0),
        "BankGroup": whole_number("bank group", fields[4], 0, dram.bank_groups - 1),
        "Bank": whole_number("bank", fields[5], 0, dram.banks_per_group - 1),
        "Row": _hexadecimal("row", fields[6], dram.rows),
    }
    column = _hexadecimal("column", fields[7], dram.bursts_per_row)
    return _entry(dram, whole_number("clock", fields[0], 0, MAX_CYCLE), command, values, column)


def _command(dram: DramSpec, name: str, known: dict[str, Command]) -> Command:
    if not PROTOCOLS[dram.protocol].split_act:
        known = {word: one for word, one in known.items() if one not in (Command.ACT_2, Command.CAS)}
    require(name in known, f"must be one of {', '.join(known)}, not {name!r}", key="command")
    return known[name]


def _hexadecimal(key: str, text: str, limit: int) -> int:
    value = int(text, 16) if re.fullmatch(r"0x[0-9a-f]{1,12}", text) else limit
    require(value < limit, f"must be hexadecimal, 0x0..{limit - 1:#x}, not {text!r}", key=key)
    return value


def _entry(
    dram: DramSpec, clock: int, command: Command, values: dict[str, int], column: int
) -> tuple[int, ...]:
    bank = _bank(dram, values)
    if command in TO_SCOPE:
        bank = values.get("PseudoChannel", 0) * dram.num_banks
    row = values["Row"] if command in WITH_ROW else -1
    return clock, int(command), bank, row, column if command in WITH_COLUMN else -1
