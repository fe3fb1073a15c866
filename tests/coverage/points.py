"""The corners by name: functional cover points of each block, seen at its ports in the runs of its bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sim.rtlsim import RunResult
from tests.bench.scenarios import Scenario

Seen = Callable[[Scenario, RunResult], bool]


def field(values: Sequence[int], layout, name: str) -> np.ndarray:
    """Return one field of a stream's payloads."""
    member = layout[name]
    return np.array([int(value) >> member.offset & ((1 << member.width) - 1) for value in values])


def cycles(result: RunResult, port: str) -> np.ndarray:
    """Return the handshake cycles of a stream."""
    return result.streams[port].cycles


def waits(port: str, least: int = 1) -> Seen:
    """Return "a beat at this input waits for so many cycles"."""

    def seen(run: Scenario, result: RunResult) -> bool:
        taken = cycles(result, port)
        offered = np.asarray(run.spec.sources[port].arrivals, dtype=np.int64)[: len(taken)]
        free = np.concatenate([[0], taken[:-1] + 1]) if len(taken) else taken
        return bool(np.any(taken - np.maximum(offered, free) >= least))

    return seen


def together(*ports: str) -> Seen:
    """Return "a beat at each of these streams in the same cycle"."""

    def seen(_run: Scenario, result: RunResult) -> bool:
        common = cycles(result, ports[0])
        for port in ports[1:]:
            common = np.intersect1d(common, cycles(result, port))
        return bool(common.size)

    return seen


def streak(port: str, length: int) -> Seen:
    """Return "so many beats in successive cycles"."""

    def seen(_run: Scenario, result: RunResult) -> bool:
        at = cycles(result, port)
        return len(at) >= length and bool(np.any(at[length - 1 :] - at[: 1 - length or None] == length - 1))

    return seen


def value(port: str, name: str, test: Callable[[np.ndarray], np.ndarray]) -> Seen:
    """Return "a beat whose field fulfils the test"."""

    def seen(run: Scenario, result: RunResult) -> bool:
        payloads = result.streams[port].integers()
        return bool(payloads) and bool(np.any(test(field(payloads, run.ports[port].layout, name))))

    return seen


def pulse(probe: str) -> Seen:
    """Return "the event happens"."""
    return lambda _run, result: len(result.probes[probe][0]) > 0


def named(words: str) -> Seen:
    """Return "a scenario of this name ran"."""
    return lambda run, _result: words in run.name


def stalled(port: str) -> Seen:
    """Return "the output waits for a sink that is not ready, and every beat of it comes"."""

    def seen(run: Scenario, result: RunResult) -> bool:
        ready = run.spec.sinks[port].ready
        return ready is not None and len(cycles(result, port)) > 0

    return seen


def tie(run: Scenario, result: RunResult) -> bool:
    """Whether a token's experts are chosen among equals: the lowest indices in order."""
    return run.name.startswith(("ties", "all equal")) and len(cycles(result, "o")) > 0


def repeated(port: str, name: str) -> Seen:
    """Return "two successive beats with the same value of a field, in successive cycles"."""

    def seen(run: Scenario, result: RunResult) -> bool:
        values = field(result.streams[port].integers(), run.ports[port].layout, name)
        at = cycles(result, port)
        return bool(np.any((np.diff(values) == 0) & (np.diff(at) == 1)))

    return seen


def kinds(probe: str, *wanted: int) -> Seen:
    """Return "commands of these kinds, one directly after the other on their bus"."""

    def seen(_run: Scenario, result: RunResult) -> bool:
        seen = [
            int(word) & 7 if probe == "o_row" else int(word) & 3 for word in result.probes[probe][1].ravel()
        ]
        length = len(wanted)
        return any(tuple(seen[n : n + length]) == wanted for n in range(len(seen) - length + 1))

    return seen


RESET = {"reset in mid-work": named("reset in the middle")}
ACT, PRE, PRE_ALL, REF = 1, 2, 3, 4
MAC, WRITE, READ = 1, 2, 3

DISPATCH: dict[str, Seen] = {
    "both windows full: a beat waits": waits("i", 3),
    "push and pop in one cycle": together("i", "o_0"),
    "push, pop and announcement in one cycle": together("i", "o_0", "o_expect"),
    "an assignment is dropped": pulse("dropped"),
    "a token all of whose assignments are dropped but the shared one": value(
        "o_expect", "count", lambda c: c == 1
    ),
    "two assignments of one expert in successive cycles": repeated("i", "expert"),
    "a job of one entry": value("o_0", "last", lambda last: last == 1),
    "eight entries without a gap": streak("o_0", 8),
    "the shared expert": value("o_0", "expert", lambda e: e == 5),
    "batches of one token": named("batches of one token"),
    "an expert with none": named("an expert with none"),
    "output stalled": stalled("o_0"),
    **RESET,
}
COMBINE: dict[str, Seen] = {
    "a beat waits for one of the same slot and word": waits("i"),
    "beat in and beat out in one cycle": together("i", "o"),
    "beat in, announcement and beat out in one cycle": together("i", "i_expect", "o"),
    "a token without contributions": value("i_expect", "count", lambda c: c == 0),
    "a token with all contributions": value("i_expect", "count", lambda c: c == 3),
    "tokens without a gap": streak("o", 4),
    "end of a batch": value("o", "last", lambda last: last == 1),
    "output stalled": stalled("o"),
    **RESET,
}
GATING: dict[str, Seen] = {
    "tie": tie,
    "every token to one expert": named("all to one"),
    "an expert that nobody chooses": named("never chosen"),
    "NaN and infinities": named("extreme values"),
    "any pattern": named("any pattern"),
    "a beat waits": waits("i"),
    "a token in while another one goes out": together("i", "o"),
    "a second router": named("two routers"),
    "tokens before the router": named("tokens before the router"),
    "output stalled": stalled("o"),
    **RESET,
}
EXPERT: dict[str, Seen] = {
    "both job lists full: an entry waits": waits("i", 3),
    "entry in and result out in one cycle": together("i", "o"),
    "memory with errors": named("memory with errors"),
    "memory with gaps": named("memory with gaps"),
    "an error is told": pulse("read_error"),
    "extreme values": named("extreme values"),
    "all tokens to one expert": named("all tokens to one expert"),
    "output stalled": stalled("o"),
    **RESET,
}
PIM: dict[str, Seen] = {
    "refresh while a row is in use": kinds("o_row", PRE_ALL, REF),
    "refresh with all rows closed": kinds("o_row", PRE, REF),
    "a row opened again after a refresh": kinds("o_row", REF, ACT),
    "close and open": kinds("o_row", PRE, ACT),
    "MAC after a write": kinds("o_column", WRITE, MAC),
    "MAC after a read": kinds("o_column", READ, MAC),
    "read after a MAC": kinds("o_column", MAC, READ),
    "write after a read": kinds("o_column", READ, WRITE),
    "both job lists full: an entry waits": waits("i", 3),
    "entry in and result out in one cycle": together("i", "o"),
    "a group that is not full": named("a group of tokens that is not full"),
    "extreme values": named("extreme values"),
    "output stalled": stalled("o"),
    **RESET,
}
POINTS = {
    "dispatch": DISPATCH,
    "combine": COMBINE,
    "gating_sigmoid": GATING,
    "expert_relu": EXPERT,
    "pim_bank": PIM,
}
