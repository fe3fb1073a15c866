"""A matrix-vector product beside the controller: weights are read through the DRAM's pins like any data.

The commands are those of the controller of :mod:`sim.dram.engine` for a stream of reads, bank group after
bank group, bank after bank (``seq_bankfast``); a read is a MAC here. Each of a channel's bursts is offered
when the lanes can take it. Tokens that share a burst read it once; inputs and sums stay in the device's
buffer, which the DRAM does not see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.dram.checker import Broken, Checker
from sim.dram.engine import RefreshMode
from sim.dram.patterns import make_pattern
from sim.dram.stream import MAX_REQUESTS, Requests, make_checker, run_requests
from sim.gemv.commands import NUM_KINDS, Kind, Log, PowerLimits, Product, limited, require_rows
from spec.device import PimDevice
from spec.dram import PROTOCOLS, Command, DramSpec
from spec.errors import require, require_range

KINDS = {
    Command.ACT: Kind.ACT,
    Command.PRE: Kind.PRE,
    Command.PRE_ALL: Kind.PRE_ALL,
    Command.RD: Kind.MAC,
    Command.REF: Kind.REF,
    Command.ACT_2: Kind.ACT_2,
    Command.CAS: Kind.CAS,
}
"""What the commands of a stream of reads are called in a log."""


def run(
    device: PimDevice, product: Product, limits: PowerLimits, *, refresh: bool = True, log: bool = False
) -> tuple[int, NDArray[np.int64], Log]:
    """Return cycles, the number of commands of each kind, and with ``log`` the commands of a channel.

    A cycle is a clock; the log's are ticks. From cycle 0 to the end of the last burst's data.
    """
    for key in ("mac_gap", "act_gap"):
        require(getattr(limits, key) == 1, f"is of all-bank commands, which {device.name} has not", key=key)
    dram = limited(device.timed, limits)
    ticks = PROTOCOLS[dram.protocol].ticks_per_clock
    bursts = -(-product.rows * -(-product.cols // device.burst_elements) // product.channels)
    require_rows(-(-bursts // (dram.num_banks * dram.bursts_per_row)), dram)
    passes = [
        min(device.tokens_per_burst, product.batch - start)
        for start in range(0, product.batch, device.tokens_per_burst)
    ]
    require_range("bursts of a channel", bursts * len(passes), 1, MAX_REQUESTS)
    # A burst is offered when the lanes have done with those before it.
    steps = np.array([device.mac_step(sharing) for sharing in passes], dtype=np.int64)
    arrivals = ticks * np.concatenate([[0], np.cumsum(np.repeat(steps, bursts))[:-1]])
    parts: list[NDArray[np.int64]] = []
    ran = run_requests(
        dram,
        Requests(bursts * len(passes), _repeated(dram, bursts), arrivals),
        refresh=RefreshMode.ALL_BANK if refresh else RefreshMode.NONE,
        drain=True,
        check=False,
        sinks=(lambda part: parts.append(part.copy()),) if log else (),
    )
    counts = np.zeros(NUM_KINDS, dtype=np.int64)
    for command, kind in KINDS.items():
        counts[kind] = ran.commands[command.name]
    cycles = -(-ran.ticks // ticks) + dram.timing.cl + dram.timing.burst
    commands = np.zeros((0, 4), dtype=np.int64)
    if log:
        commands = np.concatenate(parts)[:, :4]
        commands[:, 1] = np.array([KINDS.get(command, -1) for command in Command])[commands[:, 1]]
    return cycles, counts, commands


def _repeated(dram: DramSpec, bursts: int):  # type: ignore[no-untyped-def]
    """Return what fills requests with the first ``bursts`` of a stream, again and again."""
    place = np.arange(bursts, dtype=np.int64)
    banks, keys = np.empty_like(place), np.empty_like(place)
    make_pattern(dram, "seq_bankfast")(0, banks, keys)

    def fill(first: int, to_banks: NDArray[np.int64], to_keys: NDArray[np.int64]) -> None:
        which = (first + np.arange(len(to_banks))) % bursts
        to_banks[:], to_keys[:] = banks[which], keys[which]

    return fill


def check(dram: DramSpec, log: Log, *, refresh: bool) -> list[Broken]:
    """Return the rules of the DRAM that a log breaks, by the checker of :mod:`sim.dram`."""
    checker: Checker = make_checker(dram, RefreshMode.ALL_BANK if refresh else RefreshMode.NONE)
    as_command = np.full(len(Kind), -1, dtype=np.int64)
    for command, kind in KINDS.items():
        as_command[kind] = command
    checker.check(
        np.stack([log[:, 0], as_command[log[:, 1]], log[:, 2], log[:, 3], np.full(len(log), -1)], axis=1)
    )
    return checker.finish(int(log[-1, 0]) if len(log) else 0)
