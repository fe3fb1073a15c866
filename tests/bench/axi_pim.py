"""Weight storage and command buses of a near-memory top in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from golden.banks import channel_image
from golden.weights import LayerWeights
from sim.dram_check import ACT, PRE, PRE_ALL, REF, Commands, check_commands, commands_seen, refreshes_due
from sim.pim import ISSUE
from spec.banks import ROW_KIND_BITS, BankGeometry, refresh_offset

Seen = list[tuple[int, int]]
"""Cycles, counted from the first one after ``aresetn``, and the values that a bus showed in them."""


def pim_image(banks: BankGeometry, weights: LayerWeights) -> np.ndarray:
    """Return the storage of the only channel, experts round robin."""
    placement = banks.round_robin()
    return channel_image(banks, weights, banks.bases(placement)[0])


class BankPorts:
    """Answers ``mem_0_*``: what is asked for stands at the data port ``storage_cycles`` later, only."""

    def __init__(self, dut: Any, banks: BankGeometry, image: np.ndarray) -> None:
        self.dut = dut
        self.latency = banks.pim.storage_cycles
        self.content = image.tobytes()
        self.width = banks.image.routed.tile_bytes
        cocotb.start_soon(self._answer())

    async def _answer(self) -> None:
        dut, due = self.dut, [None] * self.latency
        while True:
            await RisingEdge(dut.aclk)
            due.append(int(dut.mem_0_addr.value) if int(dut.mem_0_en.value) else None)
            address = due.pop(1)
            data = b"\xa5" * self.width
            if address is not None:
                data = self.content[address * self.width :][: self.width].ljust(self.width, b"\0")
            dut.mem_0_data.value = int.from_bytes(data, "little")


@dataclass
class SinceReset:
    """What the command buses showed from one ``aresetn`` to the next, which resets the DRAM too.

    Attributes
    ----------
    rows, columns : of each channel.
    cycles : how many were watched.
    recoveries : cycles in which a recovery was under way, one of each.
    """

    rows: list[Seen]
    columns: list[Seen]
    cycles: int = 0
    recoveries: list[int] = field(default_factory=list)

    def commands(self, banks: BankGeometry) -> list[Commands]:
        """Return the commands of each channel."""
        return [
            commands_seen(banks, _probe(rows), _probe(columns))
            for rows, columns in zip(self.rows, self.columns, strict=True)
        ]

    def violations(self, banks: BankGeometry) -> list[str]:
        """Return the DRAM rules that were broken.

        The DRAM knows nothing of a recovery: what was open stays open until it is closed, and refreshes fall
        due as counted from reset.
        """
        found = []
        for channel, commands in enumerate(self.commands(banks)):
            first = refresh_offset(banks, channel) + ISSUE
            broken = [str(one) for one in check_commands(banks.pim, commands, first_refresh=first)]
            # The checker lets a refresh be early, and asks for none behind the last command.
            due = refreshes_due(banks.pim, first, self.cycles).tolist()
            seen = commands.of(REF)[:, 0].tolist()
            if seen != due:
                early = sorted(set(seen) - set(due))
                missed = sorted(set(due) - set(seen))
                broken.append(f"refreshes in cycles {early[:3]} that are not due, none in {missed[:3]}")
            found += [f"channel {channel}: {text}" for text in broken]
        return found

    def recovered_while_open(self, banks: BankGeometry) -> int:
        """Return how many recoveries met an open bank."""
        count = 0
        for cycle in self.recoveries:
            rows = [commands.before(cycle).rows[:, 1] for commands in self.commands(banks)]
            last = [kinds[np.isin(kinds, (ACT, PRE, PRE_ALL))][-1:] for kinds in rows]
            count += any(ACT in kinds for kinds in last)
        return count


class CommandBuses:
    """Watches the DRAM command buses of all channels in every cycle of a run, those of recovery too."""

    def __init__(self, dut: Any, banks: BankGeometry) -> None:
        self.dut, self.banks = dut, banks
        self.resets: list[SinceReset] = []
        self._checked = 0
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        dut, channels = self.dut, range(self.banks.pim.channels)
        buses = [(getattr(dut, f"row_{n}"), getattr(dut, f"column_{n}")) for n in channels]
        now = None
        while True:
            await RisingEdge(dut.aclk)
            if not int(dut.aresetn.value):
                now = None
                continue
            if now is None:
                now = SinceReset([[] for _ in channels], [[] for _ in channels])
                self.resets.append(now)
            for channel, (row, column) in enumerate(buses):
                # Without a command all fields are 0.
                if value := int(row.value):
                    now.rows[channel].append((now.cycles, value))
                if value := int(column.value):
                    now.columns[channel].append((now.cycles, value))
            now.cycles += 1

    def recovers(self) -> None:
        """Note that a recovery is under way."""
        self.resets[-1].recoveries.append(self.resets[-1].cycles)

    def opened(self) -> bool:
        """Return whether the last row command of a channel opened a bank."""
        kinds = (1 << ROW_KIND_BITS) - 1
        return any(seen and seen[-1][1] & kinds == ACT for seen in self.resets[-1].rows)

    def check(self) -> None:
        """Raise on a broken rule of the DRAM since the last check, and then of what went on since."""
        for number, reset in enumerate(self.resets[self._checked :], self._checked):
            found = reset.violations(self.banks)
            where = f"DRAM rules broken after reset {number}, recoveries in cycles {reset.recoveries}"
            assert not found, f"{where}: {found[:3]}"
        # The last one goes on.
        self._checked = max(0, len(self.resets) - 1)

    def recovered_while_open(self) -> int:
        """Return how many recoveries met an open bank."""
        return sum(reset.recovered_while_open(self.banks) for reset in self.resets)


def _probe(seen: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return cycles and values as the checker takes them."""
    cycles, values = np.array(seen, dtype=np.uint64).reshape(-1, 2).T
    return cycles.astype(np.int64), values
