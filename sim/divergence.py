"""Find and tell the first place where a run differs from golden values or a cycle model.

Of all ports compared, the divergence that comes first in time is the one that others follow from; its
message names block, port, transfer, cycle and both values, and where a waveform of it lies::

    checks = [PortCheck("gating", "o", result.streams["o"], payloads=golden, cycles=model)]
    found = first_divergence(checks)
    if found:
        raise AssertionError(with_waveform(found, rtl, spec, Path("build/waves")))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.payload import Field
from sim.rtlsim import RunResult, RunSpec, Trace, Waveform

WINDOW_CYCLES = 50


@dataclass(frozen=True)
class PortCheck:
    """What one port should have carried, and what it did.

    Parameters
    ----------
    block, port : names for the message.
    seen : the transfers of the run.
    payloads : expected payloads, ``(n,)`` or ``(n, words)`` unsigned, or None: not compared.
    cycles : expected handshake cycles ``(n,)``, or None: not compared.
    fields : layout of a payload, for the message.
    payloads_of, cycles_of, seen_of : who says so.
    """

    block: str
    port: str
    seen: Trace
    payloads: ArrayLike | None = None
    cycles: ArrayLike | None = None
    fields: Mapping[str, Field] = field(default_factory=dict)
    payloads_of: str = "golden"
    cycles_of: str = "model"
    seen_of: str = "rtl"


def differing_bits(check: PortCheck) -> int:
    """Return the bits in which the payloads differ; a missing or extra transfer counts whole."""
    expected, seen = np.asarray(check.payloads, dtype=np.uint64), check.seen.payloads
    expected = expected.reshape(len(expected), -1)
    common, words = min(len(expected), len(seen)), min(expected.shape[1], seen.shape[1])
    differing: int = np.bitwise_count(expected[:common, :words] ^ seen[:common, :words]).sum().item()
    missing: int = 64 * words * abs(len(expected) - len(seen))
    return differing + missing


@dataclass(frozen=True)
class Divergence:
    """The first difference: where, in which transfer, in which cycle, and the sentence about it."""

    block: str
    port: str
    transfer: int
    cycle: int
    message: str


def first_divergence(checks: Sequence[PortCheck]) -> Divergence | None:
    """Return the divergence of ``checks`` that is first in time (of equals, the one listed first).

    The time of a difference is the earlier of the cycles, expected and seen, of its transfer; a
    transfer that never came and has no expected cycle counts from the last one seen.
    """
    found = [one for one in map(_divergence, checks) if one is not None]
    return min(found, key=lambda one: one.cycle, default=None)


class Bench(Protocol):
    """A compiled bench: :class:`sim.rtlsim.Build`, or another one that runs the same jobs."""

    def traced(self) -> Bench:
        """Return the same with waveforms."""

    def run_phases(
        self, phases: Sequence[RunSpec], *, seed: int = 1, vcd: Waveform | None = None
    ) -> list[RunResult]:
        """Run ``phases`` one after the other."""


def with_waveform(
    found: Divergence,
    build: Bench,
    spec: RunSpec,
    directory: Path,
    *,
    seed: int = 1,
    before: Sequence[RunSpec] = (),
    views: Callable[[Path], object] = lambda _vcd: None,
) -> str:
    """Run ``spec`` again with a waveform around ``found``; return the message with the file's place.

    Same ``spec`` and ``seed``, and the same phases ``before`` it: same run, and the divergence is in the
    waveform. The traced program is built on the first call, which takes as long as the first build.
    ``views`` : writes what viewers show of it (:func:`sim.waves.write_views`).
    """
    first, last = max(0, found.cycle - WINDOW_CYCLES), found.cycle + WINDOW_CYCLES
    path = directory / f"{found.block}_{found.port}_{found.transfer}.vcd"
    window = Waveform(path, first, last, phase=len(before))
    result = build.traced().run_phases([*before, spec], seed=seed, vcd=window)[-1]
    views(path)
    at = result.zero_ns + 10 * found.cycle
    return f"{found.message}; waveform of cycles {first}..{last} in {path} (cycle {found.cycle} at {at} ns)"


def _divergence(check: PortCheck) -> Divergence | None:
    seen_cycles = check.seen.cycles
    seen_payloads = np.atleast_2d(check.seen.payloads)
    cycles = None if check.cycles is None else np.asarray(check.cycles, dtype=np.int64)
    payloads = None
    if check.payloads is not None:
        payloads = np.asarray(check.payloads, dtype=np.uint64)
        payloads = payloads.reshape(-1, 1) if payloads.ndim == 1 else payloads
        payloads, seen_payloads = _same_words(payloads, seen_payloads)
    lengths = {len(array) for array in (cycles, payloads) if array is not None}
    if not lengths:
        return None
    if len(lengths) > 1:
        raise ValueError(
            f"{check.block}.{check.port}: expected cycles and payloads differ in number: {lengths}"
        )
    expected, seen = lengths.pop(), len(seen_cycles)
    common = min(expected, seen)
    differs = np.zeros(common, dtype=bool)
    if cycles is not None:
        differs |= cycles[:common] != seen_cycles[:common]
    if payloads is not None:
        differs |= (payloads[:common] != seen_payloads[:common]).any(axis=1)
    if not differs.any() and expected == seen:
        return None
    transfer = int(differs.argmax()) if differs.any() else common
    seen_cycle = int(seen_cycles[transfer]) if transfer < seen else None
    model_cycle = int(cycles[transfer]) if cycles is not None and transfer < expected else None
    both = [cycle for cycle in (seen_cycle, model_cycle) if cycle is not None]
    last_seen = int(seen_cycles[-1]) + 1 if seen else 0
    cycle = min(both, default=last_seen)
    parts = [_cycle_text(check, seen_cycle, model_cycle, transfer < expected, (expected, seen))]
    if payloads is not None and transfer < common:
        parts.append(_payload_text(check, payloads[transfer], seen_payloads[transfer]))
    message = f"{check.block}.{check.port}: transfer {transfer}: {'; '.join(parts)}"
    return Divergence(check.block, check.port, transfer, cycle, message)


def _cycle_text(
    check: PortCheck, seen: int | None, model: int | None, wanted: bool, counts: tuple[int, int]
) -> str:
    if seen is None:
        when = "" if model is None else f" in cycle {model}"
        return f"expected{when}, {check.seen_of} has none ({counts[1]} of {counts[0]} transfers)"
    if not wanted:
        return f"{check.seen_of} in cycle {seen}, none expected ({counts[1]} of {counts[0]} transfers)"
    if model is None or model == seen:
        return f"cycle {seen}"
    return f"cycle {check.cycles_of} {model}, {check.seen_of} {seen}"


def _payload_text(check: PortCheck, expected: NDArray[np.uint64], seen: NDArray[np.uint64]) -> str:
    values = [int.from_bytes(np.ascontiguousarray(row).tobytes(), "little") for row in (expected, seen)]
    if values[0] == values[1]:
        return f"payload equal {values[0]:#x}"
    texts = [f"{value:#x}{_decoded(check.fields, value, values)}" for value in values]
    return f"payload {check.payloads_of} {texts[0]}, {check.seen_of} {texts[1]}"


def _decoded(fields: Mapping[str, Field], value: int, values: Sequence[int]) -> str:
    """Return the fields in which ``values`` differ, as ``value`` has them."""
    parts = []
    for name, where in fields.items():
        if len({where.of(one) for one in values}) > 1:
            parts.append(f"{name}={where.of(value)}")
    return f" ({', '.join(parts)})" if parts else ""


def _same_words(
    a: NDArray[np.uint64], b: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return both with as many words a row as the wider one."""
    words = max(a.shape[1], b.shape[1])
    return tuple(np.pad(array, ((0, 0), (0, words - array.shape[1]))) for array in (a, b))  # type: ignore[return-value]
