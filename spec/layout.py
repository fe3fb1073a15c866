"""Where experts lie: the channels of each, read from and written to a TOML file.

::

    channels = [
      [0],     # expert 0 in channel 0
      [1],
      [0, 1],  # a replica in each
    ]
    shared = [0, 1]  # of a model with a shared expert

A *placement* is the same as a list: channels of each expert in order of their numbers, the shared one last.
In its channels an expert's rows follow those of the experts of lower number (:meth:`BankGeometry.bases`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spec.banks import ROUTER_CHANNEL, BankGeometry
from spec.errors import InputError
from spec.files import read_toml

KEYS = ("channels", "shared")

Placement = list[list[int]]


def load_layout(path: Path, banks: BankGeometry) -> Placement:
    """Return the placement that a file gives to these banks' experts; :class:`InputError` on bad input."""
    try:
        placement = _placement(read_toml(path), banks)
        _check_fit(placement, banks)
    except InputError as error:
        raise error.at(file=path) from None
    return placement


def _placement(table: dict[str, Any], banks: BankGeometry) -> Placement:
    for key in table:
        if key not in KEYS:
            raise InputError(f"unknown key; known are {', '.join(KEYS)}", key=key)
    has_shared = banks.image.shared is not None
    for key in KEYS[: 2 if has_shared else 1]:
        if key not in table:
            raise InputError("is missing", key=key)
    if "shared" in table and not has_shared:
        raise InputError(
            f"must be left out: the model has no shared expert, not {table['shared']!r}", key="shared"
        )
    rows = table["channels"]
    if not isinstance(rows, list):
        raise InputError(f"must be a list of lists of channels, not {rows!r}", key="channels")
    if len(rows) != banks.num_experts:
        raise InputError(
            f"must have {banks.num_experts} rows, one per expert, not {len(rows)}", key="channels"
        )
    placement = [_row(row, f"channels[{expert}]", banks.pim.channels) for expert, row in enumerate(rows)]
    return placement + ([_row(table["shared"], "shared", banks.pim.channels)] if has_shared else [])


def _row(row: Any, key: str, channels: int) -> list[int]:
    if not isinstance(row, list) or not all(type(channel) is int for channel in row):
        raise InputError(f"must be a list of channels, not {row!r}", key=key)
    if not row:
        raise InputError("must hold at least one channel, not []", key=key)
    for place, channel in enumerate(row):
        if not 0 <= channel < channels:
            raise InputError(f"must hold channels in 0..{channels - 1}, not {channel}", key=key)
        if channel in row[:place]:
            raise InputError(f"must hold a channel once, not {channel} twice", key=key)
    return sorted(row)


def _check_fit(placement: Placement, banks: BankGeometry) -> None:
    for channel, rows in enumerate(rows_used(placement, banks)):
        if rows > banks.pim.dram.rows:
            raise InputError(
                f"must leave each channel at most {banks.pim.dram.rows} rows per bank, but the"
                f" {banks.held(placement)[channel]} of channel {channel} need {rows}",
                key="channels",
            )


def rows_used(placement: Placement, banks: BankGeometry) -> list[int]:
    """Return the rows of each bank that the experts of each channel take, and a router in the banks."""
    used = [0] * banks.pim.channels
    if banks.image.router:
        used[ROUTER_CHANNEL] += rows_of(banks.router_number, banks)
    for expert, channels in enumerate(placement):
        for channel in channels:
            used[channel] += rows_of(expert, banks)
    return used


def rows_of(expert: int, banks: BankGeometry) -> int:
    """Return the rows of each bank that an expert takes in a channel."""
    return banks.reserved(banks.kind(expert)) // banks.sides


def layout_text(placement: Placement, banks: BankGeometry, title: str) -> str:
    """Return the file of a placement, the rows of each expert beside it."""
    bases = banks.bases(placement)

    def line(expert: int, indent: str, end: str) -> str:
        places = [
            (channel, bases[channel][expert] // banks.sides, rows_of(expert, banks))
            for channel in placement[expert]
        ]
        text = ", ".join(f"rows {first}..{first + rows - 1} of channel {n}" for n, first, rows in places)
        name = "the shared expert" if expert == banks.num_experts else f"expert {expert}"
        return f"{indent}{placement[expert]}{end}  # {name}: {text}"

    used = ", ".join(f"{rows} in channel {n}" for n, rows in enumerate(rows_used(placement, banks)))
    lines = [
        f"# {title}: the channels that hold each expert, in order of their numbers.",
        f"# Every bank of a channel has {banks.pim.dram.rows} rows; used are {used}.",
        "channels = [",
        *(line(expert, "  ", ",") for expert in range(banks.num_experts)),
        "]",
    ]
    if banks.image.shared is not None:
        lines.append(line(banks.num_experts, "shared = ", ""))
    return "\n".join(lines) + "\n"
