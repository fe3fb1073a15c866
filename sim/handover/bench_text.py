"""What the benches of an export have in common: sizes, beats and memories as the files that they include."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.rtlsim import BankMemory, file_list

FOLDER = "bench"
CLOCKS = "eb_bench_clocks.svh"
COMMON = ("eb_pauses.sv", "eb_stream_source.sv", "eb_stream_sink.sv", "eb_axi_memory.sv", "eb_bank_memory.sv")
"""Modules that every bench has."""
CYCLES_PER_WORD = 100
"""Cycles that a bench grants for each word of its memories, and as many words for each beat."""

Bytes = NDArray[np.uint8]


def shared_files(directory: Path, name: str, bench: str, more: Iterable[str] = ()) -> dict[str, str]:
    """Return a bench's files that are the same for every export, and the list of all that compile together.

    ``bench``: its module; ``more``: files of modules that not every bench has.
    """
    sources = (f"{bench}.sv", *COMMON, *more)
    listed = [*(f"../{file.name}" for file in file_list(directory, name)), *sources]
    return {
        "bench.f": "".join(f"{file}\n" for file in listed),
        **{file: Path(__file__).with_name(file).read_text() for file in (*sources, CLOCKS)},
    }


def sizes(values: Mapping[str, Any], ports: Mapping[str, int]) -> str:
    """Return ``bench.svh``: a macro for each value, and whether there is a second clock."""
    two_clocks = "`define EB_TWO_CLOCKS\n" if bus_clock(ports) else ""
    return two_clocks + "".join(f"`define {key} {value}\n" for key, value in values.items())


def bus_clock(ports: Mapping[str, int]) -> list[str]:
    """Return the ports of a second clock and its reset, if there is one."""
    return [port for port in ports if port.startswith("bus_")]


def connections(ports: Mapping[str, int], banks: Iterable[str]) -> str:
    """Return ``ports.svh``: what of the top's ports hangs on the design, connected."""
    pins = (*bus_clock(ports), *(f"{prefix}_{pin}" for prefix in banks for pin in ("en", "addr", "data")))
    return "".join(f"        .{port}({port}),\n" for port in pins)


def bank_memories(ports: Mapping[str, int], banks: Mapping[str, BankMemory]) -> dict[str, str]:
    """Return ``memories.svh``, the storage of a near-memory design's channels, and what it holds."""
    return {
        "memories.svh": "".join(_bank_memory(prefix, ports, bank) for prefix, bank in banks.items()),
        **{f"{prefix}.hex": hex_lines(np.asarray(bank.image)) for prefix, bank in banks.items()},
    }


def bank_words(banks: Mapping[str, BankMemory]) -> int:
    """Return the words of all channels' storage."""
    return sum(len(np.asarray(bank.image)) for bank in banks.values())


def hex_lines(rows: Bytes) -> str:
    """Return a line of hexadecimal digits for each row of bytes, highest byte first."""
    return np.ascontiguousarray(rows[:, ::-1]).tobytes().hex("\n", rows.shape[1]) + "\n"


def beat_rows(payloads: NDArray[Any], stream: Mapping[str, Any], user: NDArray[Any] | None = None) -> Bytes:
    """Return beats as bytes: those of ``tdata``, then one with ``tlast`` in its lowest bit.

    ``stream``: as ``ports.json`` describes it; ``user``: of each beat, a bit above ``tlast``.
    """
    bits, width = stream["data_bits"], stream["port_bits"] // 8
    raw = np.ascontiguousarray(payloads).view(np.uint8).reshape(len(payloads), -1)
    rows = np.zeros((len(raw), width + 1), np.uint8)
    data = raw[:, :width]
    rows[:, : data.shape[1]] = data
    if bits % 8:
        rows[:, width - 1] &= (1 << bits % 8) - 1
    if stream["last"]:
        rows[:, width] = raw[:, bits // 8] >> bits % 8 & 1
    if user is not None:
        rows[:, width] |= user.astype(np.uint8) << 1
    return rows


def at_least_one(rows: Bytes, width: int) -> Bytes:
    """Return the rows of a memory, which has one at least."""
    return rows if len(rows) else np.zeros((1, width), np.uint8)


def _bank_memory(prefix: str, widths: Mapping[str, int], bank: BankMemory) -> str:
    address, bits = widths[f"{prefix}_addr"], widths[f"{prefix}_data"]
    return f"""    wire [{widths[f"{prefix}_en"] - 1}:0] {prefix}_en;
    wire [{address - 1}:0] {prefix}_addr;
    wire [{bits - 1}:0] {prefix}_data;
    eb_bank_memory #(
        .ADDR_BITS({address}),
        .DATA_BITS({bits}),
        .WORDS({len(np.asarray(bank.image))}),
        .LATENCY({bank.latency}),
        .FILE("{prefix}.hex")
    ) {prefix} (
        .aclk(aclk),
        .en(|{prefix}_en),
        .addr({prefix}_addr),
        .data({prefix}_data)
    );
"""
