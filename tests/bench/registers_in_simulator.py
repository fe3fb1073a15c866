"""The core's registers inside the simulator: every port in every cycle against a description written anew.

Events come in any number up to the most that the block was made for, which in the bench is close to what a
counter holds: all 64 bits carry.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

from spec.registers import (
    CONTROL_CLEAR,
    CONTROL_LOAD,
    CORE_REGISTERS,
    COUNTERS,
    ECC_COUNTERS,
    IDENTITY,
    REGISTERS,
    STATUS_UNCORRECTED,
    Access,
)
from spec.registers import counter_address as address_of
from tests.bench.in_simulator import JOB, RESULTS

CYCLES = 3_000
WORDS = 64
HIGH = 4
"""From a counter's low word to its high one, in bytes."""
LOGGED_IN, LOGGED_OUT = ("reg_addr", "reg_wdata", "reg_we"), ("reg_rdata", "load", "clear")
"""What a log has of each cycle."""
KEPT = [register.name for register in CORE_REGISTERS if register.access is Access.READ_WRITE]


class Model:
    """What the block holds and shows."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.registers = dict.fromkeys(KEPT, 0)
        self.counts = dict.fromkeys((*COUNTERS, *ECC_COUNTERS), 0)
        self.outputs: dict[str, int] = dict.fromkeys(
            ("reg_rdata", "load", "clear", "place_row", "place_channels"), 0
        )
        self.outputs |= dict.fromkeys(("place_expert", "place_channel", "place_value"), 0)

    def seen(self) -> dict[str, int]:
        """Return the value of each output."""
        return {**self.outputs, **{name.lower(): value for name, value in self.registers.items()}}

    def read(self, address: int, status: int) -> int:
        """Return a word of the page."""
        if address == REGISTERS["IDENTITY"]:
            return IDENTITY
        if address == REGISTERS["STATUS"]:
            return status | bool(self.counts["uncorrected"]) << STATUS_UNCORRECTED
        for name, value in self.registers.items():
            if address == REGISTERS[name]:
                return value
        for name, count in self.counts.items():
            if address - address_of(name) in (0, HIGH):
                return count >> 8 * (address - address_of(name)) & 0xFFFF_FFFF
        return 0

    def tick(self, inputs: Mapping[str, int], events: Mapping[str, int]) -> None:
        """Go on by a cycle with these inputs."""
        address, data, writes = inputs["reg_addr"] & ~3, inputs["reg_wdata"], inputs["reg_we"]
        shown = self.read(address, inputs["status"])
        clear = self.outputs["clear"]
        self.counts = {
            name: 0 if clear else (count + events[name]) % (1 << 64) for name, count in self.counts.items()
        }
        at = {name: bool(writes) and address == REGISTERS[name] for name in REGISTERS}
        self.outputs |= {
            "reg_rdata": shown,
            "load": at["CONTROL"] and data >> CONTROL_LOAD & 1,
            "clear": at["CONTROL"] and data >> CONTROL_CLEAR & 1,
            "place_row": at["PLACE_ROW"],
            "place_channels": at["PLACE_CHANNELS"],
        }
        if at["PLACE_EXPERT"]:
            self.outputs |= {"place_expert": data & 0xFFFF, "place_channel": data >> 16 & 0xFF}
        if at["PLACE_ROW"] or at["PLACE_CHANNELS"]:
            self.outputs["place_value"] = data
        self.registers |= {name: data for name in KEPT if at[name]}


@cocotb.test()
async def run_job(dut: Any) -> None:
    """Run random inputs with a reset now and then.

    The job: seed, the bits of an event's number, and what ports hold that the bench does not know. The
    result: a line for each run from a reset, and its log.
    """
    job = Path(os.environ[JOB])
    seed, bits, statics = pickle.loads(job.read_bytes())
    for port, value in statics.items():
        getattr(dut, port).value = value
    rng = np.random.default_rng(seed)
    model = Model()
    known = [*(REGISTERS[name] for name in REGISTERS), *(address_of(name) for name in model.counts)]
    cocotb.start_soon(Clock(dut.aclk, 10, "ns").start())
    done: list[str] = []
    logs: list[list[tuple[int, ...]]] = []
    until_reset = 0
    for cycle in range(CYCLES):
        await FallingEdge(dut.aclk)
        runs = until_reset > 0
        if not runs:
            until_reset = int(rng.integers(1, 600))
            # Either counters carry through all bits, or they stay small.
            most = bits if rng.integers(2) else int(rng.integers(1, bits))
            done.append(f"from cycle {cycle} on, events of {most} bits at most")
            logs.append([])
        until_reset -= 1
        inputs = {
            "reg_addr": int(rng.choice(known)) + int(rng.choice([0, 0, 0, 1, 2, 3, HIGH]))
            if rng.random() < 0.8
            else int(rng.integers(4 * WORDS)),
            "reg_wdata": int(rng.integers(1 << 32)),
            "reg_we": int(rng.integers(2)),
            "status": int(rng.integers(1 << 32)),
        }
        if inputs["reg_addr"] & ~3 == REGISTERS["CONTROL"] and rng.random() < 0.8:
            # Else they would be cleared all the time.
            inputs["reg_wdata"] &= ~(1 << CONTROL_CLEAR)
        events = {name: int.from_bytes(rng.bytes(8)) >> 64 - most for name in model.counts}
        drives = {**inputs, **{name: events[name] for name in ECC_COUNTERS}}
        packed = sum(events[name] << bits * index for index, name in enumerate(COUNTERS))
        for port, value in {**drives, "events": packed, "aresetn": int(runs)}.items():
            getattr(dut, port).value = value
        await RisingEdge(dut.aclk)
        if runs:
            seen = {name: int(getattr(dut, name).value) for name in model.seen()}
            wrong = {name: (seen[name], value) for name, value in model.seen().items() if seen[name] != value}
            logs[-1].append((*(inputs[name] for name in LOGGED_IN), *(seen[name] for name in LOGGED_OUT)))
            assert not wrong, f"seed {seed}, cycle {cycle}: (seen, expected) {wrong}"
            model.tick(inputs, events)
        else:
            model.reset()
    names = (*LOGGED_IN, *LOGGED_OUT)
    columns = [dict(zip(names, np.array(log).reshape(-1, len(names)).T, strict=True)) for log in logs]
    job.with_name(RESULTS).write_bytes(pickle.dumps((done, columns)))
