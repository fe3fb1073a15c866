"""Run requests through a channel, check every command, and say how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.dram.checker import Broken, Checker
from sim.dram.engine import (
    ACCEPTED,
    CLOCK,
    DONE,
    LAST_TICK,
    MAX_QUEUE,
    NEED_REQUESTS,
    OVERRUN,
    QUEUE,
    RING,
    SERVED,
    Channel,
    Ints,
    RefreshMode,
    RowPolicy,
    Rules,
    banks_per_interval,
)
from sim.dram.patterns import SEED, make_pattern
from sim.progress import advance
from spec.dram import Command, DramSpec
from spec.errors import InputError, require, require_range
from spec.load import load_dram

CHUNK = 1 << 14
MAX_REQUESTS = 1 << 32
NOTHING = np.zeros(0, dtype=np.int64)
Sink = Callable[[Ints], None]


@dataclass(frozen=True)
class Requests:
    """Requests for a channel.

    Attributes
    ----------
    total : how many.
    fill : writes (bank, key) of the requests from a number on, one part after the other.
    arrivals : (total,) tick before which each is not offered; empty: one is offered in every tick.
    """

    total: int
    fill: Callable[[int, Ints, Ints], None]
    arrivals: Ints = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True)
class Run:
    """What became of the requests.

    Attributes
    ----------
    ticks : clock ticks when the last request was accepted; with ``drain`` when the last command had issued.
    requests, served : accepted; read or written by then.
    commands : how many of each.
    broken : rules of the DRAM that the log breaks: none.
    simulate_s, check_s : processor time of the engine, and of the checker and what else takes the log.
    checked : the log was replayed.
    """

    dram: DramSpec
    refresh: RefreshMode
    ticks: int
    ticks_per_clock: int
    requests: int
    served: int
    commands: dict[str, int]
    broken: list[Broken]
    simulate_s: float
    check_s: float = 0.0
    checked: bool = True

    @property
    def cycles(self) -> int | float:
        """Clocks: a whole number, or one and a half where a tick is half a clock."""
        whole, half = divmod(self.ticks, self.ticks_per_clock)
        return whole + half / self.ticks_per_clock if half else whole

    @property
    def cycles_per_request(self) -> float | None:
        """Clocks for each request that was served; None where none was."""
        return self.cycles / self.served if self.served else None

    @property
    def bandwidth_fraction(self) -> float | None:
        """Data moved, of what the channel's data buses can move in the time; None where no time passed."""
        if not self.ticks:
            return None
        return self.served * self.dram.timing.burst / self.cycles / self.dram.pseudo_channels

    def as_json(self) -> dict[str, Any]:
        """Return the fields of ``dram stream``."""
        return {
            "standard": self.dram.name,
            "refresh": self.refresh.value,
            "cycles": self.cycles,
            "requests": self.requests,
            "served": self.served,
            "cycles_per_request": self.cycles_per_request,
            "bandwidth_fraction": self.bandwidth_fraction,
            "violations": sum(one.count for one in self.broken) if self.checked else None,
            "first_violations": [str(one) for one in self.broken] if self.checked else None,
            "commands": self.commands,
            "seconds": self.cycles * self.dram.clock_ps * 1e-12,
            "simulate_s": self.simulate_s,
            "check_s": self.check_s,
            "requests_per_second": self.requests / max(self.simulate_s, 1e-9),
        }


def pattern_requests(dram: DramSpec, pattern: str, total: int, seed: int = SEED) -> Requests:
    """Return the first requests of a pattern (:mod:`sim.dram.patterns`)."""
    require_range("requests", total, 1, MAX_REQUESTS)
    return Requests(total, make_pattern(dram, pattern, seed))


def warm() -> None:
    """Load the compiled functions, or compile them, so that a run's time is its own."""
    dram = load_dram("hbm2-2000")
    run_requests(dram, pattern_requests(dram, "random", 1))


def make_checker(dram: DramSpec, refresh: RefreshMode) -> Checker:
    """Return a checker of a channel's commands that expects its refreshes."""
    require(
        refresh is not RefreshMode.PER_BANK or dram.timing.refi_pb > 0,
        f"must be all-bank or none for {dram.name}, whose banks are not refreshed one by one; not per-bank",
        key="refresh",
    )
    timing = dram.timing
    if refresh is RefreshMode.PER_BANK:
        return Checker(dram, interval_clocks=timing.refi_pb, banks_at_once=banks_per_interval(dram))
    return Checker(dram, interval_clocks=timing.refi if refresh is RefreshMode.ALL_BANK else 0)


def run_requests(
    dram: DramSpec,
    requests: Requests,
    *,
    refresh: RefreshMode = RefreshMode.ALL_BANK,
    policy: RowPolicy = RowPolicy.OPEN,
    queue: int = QUEUE,
    drain: bool = False,
    check: bool = True,
    sinks: tuple[Sink, ...] = (),
) -> Run:
    """Run requests through a channel.

    Parameters
    ----------
    queue : places of the controller's queue.
    drain : go on until every request has been served.
    check : replay every command against the DRAM's rules.
    sinks : get the command log, part by part; a part is only theirs during the call.
    """
    require_range("queue", queue, 1, MAX_QUEUE)
    checker = make_checker(dram, refresh)
    rules = Rules.of(dram, refresh=refresh, policy=policy, queue=queue, drain=drain)
    channel = Channel(rules, requests.total)
    outputs = (checker.check, *sinks) if check else sinks
    banks, keys, arrivals = NOTHING, NOTHING, NOTHING
    made, taken, status, seconds, check_seconds = 0, 0, NEED_REQUESTS, 0.0, 0.0
    while status != DONE:
        started = time.process_time()
        if status == NEED_REQUESTS:
            count = min(CHUNK, requests.total - made)
            banks, keys = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
            requests.fill(made, banks, keys)
            arrivals = requests.arrivals[made : made + count]
            made, taken = made + count, 0
        status, taken, logged = channel.run(banks, keys, arrivals, taken)
        seconds += time.process_time() - started
        advance(channel.scalar(SERVED), requests.total)
        started = time.process_time()
        for output in outputs:
            output(channel.log[:logged])
        check_seconds += time.process_time() - started
        if status == OVERRUN:
            raise InputError(
                f"leaves no time between refreshes: {RING} of {dram.name} wait at tick"
                f" {channel.scalar(CLOCK)}",
                key="refresh",
            )
    clock, last = channel.scalar(CLOCK), channel.scalar(LAST_TICK)
    return Run(
        dram=dram,
        refresh=refresh,
        ticks=max(last, 0) if drain else clock,
        ticks_per_clock=rules.ticks,
        requests=channel.scalar(ACCEPTED),
        served=channel.scalar(SERVED),
        commands={command.name: int(channel.counts[command]) for command in Command},
        broken=checker.finish(clock) if check else [],
        simulate_s=seconds,
        check_s=check_seconds,
        checked=check,
    )
