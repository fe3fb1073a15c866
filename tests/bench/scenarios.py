"""Scenarios of a block's bench: what goes in, what has to come out and when; the first divergence.

A scenario is data. Many run in one simulator process, each from a reset, and every stream of each is
compared with golden and with the cycle model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from amaranth.lib import data
from numpy.typing import ArrayLike

from sim.divergence import Bench, Field, PortCheck, first_divergence, with_waveform
from sim.rtlsim import RunResult, RunSpec, Trace
from sim.streams import ALWAYS, Cycles, Spans, readiness
from tests.block_bench import TRAFFIC, arrivals_of, pattern_of

WAVES = Path("build/waves")
PATTERN_CYCLES = 1 << 16
MOST_CYCLES = 20_000
# bf16: zeros, subnormals, smallest normals, ones, largest, infinities, NaN.
EXTREMES = np.array(
    [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x8080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0],
    dtype=np.uint16,
)


@dataclass(frozen=True)
class Expected:
    """What a port has to carry: payloads (integers) and handshake cycles; None: not compared."""

    payloads: Sequence[int] | None = None
    cycles: ArrayLike | None = None
    layout: data.StructLayout | None = None


@dataclass(frozen=True)
class Scenario:
    """One run of a block.

    ``ports`` are streams, addresses of memories (``o_ar``), their data (``i_r``) and probes (the cycles
    in which they are 1), by member; ``pulses`` says in how many cycles a probe is 1, ``reads`` what
    the ``Read`` steps show, by a name each (None: not compared). ``derived`` gives comparisons that follow
    from what a whole run showed, ``rules`` what of it is wrong. With ``spec.stop_cycle`` only what comes
    before it counts.
    """

    name: str
    spec: RunSpec
    ports: Mapping[str, Expected] = field(default_factory=dict)
    pulses: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, int | None] = field(default_factory=dict)
    derived: Callable[[RunResult], Sequence[PortCheck]] = lambda _result: ()
    rules: Callable[[RunResult], Sequence[str]] = lambda _result: ()

    def cut(self, rng: np.random.Generator, *, last: int | None = None) -> Scenario:
        """Return the scenario with a reset while it is at work: up to ``last``, else to its last transfer."""
        if last is None:
            last = max(int(np.max(port.cycles)) for port in self.ports.values() if np.size(port.cycles))
        spec = replace(self.spec, stop_cycle=int(rng.integers(1, last + 1)), epilogue=())
        return Scenario(f"reset in the middle of {self.name}", spec, self.ports)

    def checks(self, block: str, result: RunResult) -> list[PortCheck]:
        """Return the comparisons of a run."""
        stated = [self._check(block, name, expected, result) for name, expected in self.ports.items()]
        return [*stated, *self.derived(result)]

    def problems(self, result: RunResult) -> list[str]:
        """Return broken rules, what was missing, and wrong numbers of pulses."""
        seen = {name: len(result.probes[name][0]) for name in self.pulses}
        return [
            *result.violations,
            *([result.timeout] if result.timeout else []),
            *(
                f"{name}: {seen[name]} pulses, {wanted} expected"
                for name, wanted in self.pulses.items()
                if seen[name] != wanted
            ),
            *(
                f"{name}: {read} read, {wanted} expected"
                for (name, wanted), read in zip(self.reads.items(), result.reads, strict=False)
                if wanted is not None and read != wanted
            ),
            *self.rules(result),
        ]

    def _check(self, block: str, name: str, expected: Expected, result: RunResult) -> PortCheck:
        seen = _seen(name, result)
        words = seen.payloads.shape[1]
        cycles = None if expected.cycles is None else np.asarray(expected.cycles, dtype=np.int64)
        payloads = expected.payloads
        count = None
        if self.spec.stop_cycle is not None:
            count = len(seen.cycles) if cycles is None else int((cycles < self.spec.stop_cycle).sum())
        return PortCheck(
            block,
            name,
            seen,
            None if payloads is None else _words(payloads[:count], words),
            None if cycles is None else cycles[:count],
            {} if expected.layout is None else fields_of(expected.layout),
        )


def run_scenarios(
    bench: Bench, block: str, scenarios: Sequence[Scenario], *, seed: int = 1, waves: Path = WAVES
) -> list[RunResult]:
    """Run all in one process; fail with the first divergence of the first scenario that differs."""
    specs = [scenario.spec for scenario in scenarios]
    results = bench.run_phases(specs, seed=seed)
    for index, (scenario, result) in enumerate(zip(scenarios, results, strict=True)):
        found = first_divergence(scenario.checks(block, result))
        if found is not None:
            before = specs[:index]
            message = with_waveform(found, bench, scenario.spec, waves, seed=seed, before=before)
        else:
            message = "; ".join(scenario.problems(result))
        if message:
            pytest.fail(f"{block}, {scenario.name}, seed {seed}: {message}", pytrace=False)
    return results


def fields_of(layout: data.StructLayout) -> dict[str, Field]:
    """Return the fields of a payload, elements of arrays one by one."""
    fields = {}
    for name, member in layout:
        if isinstance(member.shape, data.ArrayLayout):
            for key, element in member.shape:
                fields[f"{name}[{key}]"] = Field(member.offset + element.offset, element.width)
        else:
            fields[name] = Field(member.offset, member.width)
    return fields


@dataclass(frozen=True)
class Traffic:
    """Arrivals and readiness of one scenario: none, half of the cycles at random, or bursts, seeded."""

    gaps: str
    stalls: str
    rng: np.random.Generator

    @property
    def label(self) -> str:
        """How it is called in a scenario's name."""
        return f"gaps {self.gaps}, stalls {self.stalls}"

    def arrivals(self, count: int, *, after: int = 0) -> Cycles:
        """Return ascending arrival cycles."""
        return arrivals_of(self.rng, self.gaps, count) + after

    def ready(self) -> tuple[np.ndarray | None, Spans]:
        """Return a ready pattern for :class:`sim.rtlsim.Sink` and the same for a cycle model."""
        pattern = pattern_of(self.rng, self.stalls)
        if pattern is None:
            return None, ALWAYS
        # A model is ready after its pattern's end; a sink repeats it.
        longer = np.concatenate([pattern, np.ones(PATTERN_CYCLES - pattern.size, dtype=bool)])
        return longer, readiness(pattern)


def mixes(seed: int) -> list[Traffic]:
    """Return every pair of gaps and stalls, each with its own random numbers."""
    pairs = [(gaps, stalls) for gaps in TRAFFIC for stalls in TRAFFIC]
    return [Traffic(*pair, np.random.default_rng([seed, index])) for index, pair in enumerate(pairs)]


def _seen(name: str, result: RunResult) -> Trace:
    if name in result.streams:
        return result.streams[name]
    if name in result.probes:
        cycles, values = result.probes[name]
        return Trace(cycles, values.reshape(-1, 1))
    if name in result.memories:
        memory = result.memories[name]
        return Trace(memory.ar_cycles, memory.ar_addrs.reshape(-1, 1))
    (memory,) = result.memories.values()
    return Trace(memory.r_cycles, np.zeros((len(memory.r_cycles), 1), dtype=np.uint64))


def _words(payloads: Sequence[int], words: int) -> np.ndarray:
    raw = b"".join(int(payload).to_bytes(8 * words, "little") for payload in payloads)
    return np.frombuffer(raw, dtype="<u8").reshape(-1, words)
