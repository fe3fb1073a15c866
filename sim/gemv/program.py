"""Products as command programs, and those in the exported Verilog of a channel, beside model and golden."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.formats import F32, Bits16, bf16_encode
from golden.gemv import Ints, Share, barrier_share, streamed_share
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.flips import NO_FLIPS, Flips, flip_words
from sim.gemv import barrier, streamed
from sim.gemv.commands import EVEN, NO_BANK, Kind, Log, Product, limited, timings
from sim.gemv.report import Options, Run, run_gemv
from sim.payload import Field
from sim.rtlsim import (
    BankMemory,
    Build,
    RunResult,
    RunSpec,
    Sink,
    Trace,
    build,
    gemv_component,
    require_channel,
)
from spec.device import PimDevice, Schedule
from spec.program import (
    ALL,
    ROW_BITS,
    Additions,
    Program,
    barrier_program,
    first_cycle,
    streamed_program,
    words,
)
from spec.registers import ECC_COUNTERS

ROW_KINDS = (Kind.ACT, Kind.PRE, Kind.REF, Kind.OTHER_REF)
COLUMN_KINDS = (Kind.MAC, Kind.RD, Kind.WR, Kind.REG)
"""Kinds of a command on each bus, from 1 on."""
NO_ROW = -1
MAX_CYCLES = 1 << 40


def program_of(device: PimDevice, product: Product, options: Options) -> Program:
    """Return the program of a product: the same for all its channels."""
    limits = options.limits
    refi = limited(device.timed, limits).timing.refi if options.refresh else None
    if device.schedule is Schedule.BARRIER:
        outputs, inputs = barrier.tiles(device, product)
        return barrier_program(
            device,
            outputs=outputs,
            inputs=inputs,
            batch=product.batch,
            refi=refi,
            mac_gap=limits.mac_gap,
            act_gap=limits.act_gap,
        )
    where = streamed.layout(device, product, timings(device.timed, limits), options.additions)
    return streamed_program(
        device,
        outputs=where.outputs,
        bursts=where.bursts,
        tokens=where.tokens,
        batch=product.batch,
        refi=refi,
        mac_gap=limits.mac_gap,
        act_gap=limits.act_gap,
    )


def share_of(
    device: PimDevice, product: Product, options: Options, weights: Bits16, x: Bits16, channel: int
) -> Share:
    """Return what lies in a channel's banks, what it reads, and its results."""
    if device.schedule is Schedule.BARRIER:
        outputs, inputs = barrier.tiles(device, product)
        return barrier_share(
            device, weights, x, outputs=outputs, inputs=inputs, channels=product.channels, channel=channel
        )
    where = streamed.layout(device, product, timings(device.timed, options.limits), options.additions)
    return streamed_share(
        device,
        weights,
        x,
        outputs=where.outputs,
        bursts=where.bursts,
        tokens=where.tokens,
        slices=where.slices,
        channels=product.channels,
        channel=channel,
    )


def operands(product: Product, seed: int) -> tuple[Bits16, Bits16]:
    """Return random bf16 patterns: weights (rows, cols) and inputs (batch, cols)."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((product.rows, product.cols), dtype=np.float32)
    x = rng.standard_normal((product.batch, product.cols), dtype=np.float32)
    return bf16_encode(weights), bf16_encode(x)


def commands_seen(device: PimDevice, row: Trace, column: Trace) -> Log:
    """Return the commands on the two buses as a log of the model's; ordered by cycle, then kind."""
    found = []
    bank_bits = max(1, (device.timed.num_banks - 1).bit_length())
    for kinds, trace in ((ROW_KINDS, row), (COLUMN_KINDS, column)):
        value = trace.payloads[:, 0].astype(np.int64)
        kind = np.array([-1, *kinds])[value & 7]
        bank = (value >> 4 & ((1 << bank_bits) - 1)) + EVEN * (value >> 3 & 1)
        at = (value >> (4 + bank_bits)) & ((1 << ROW_BITS) - 1)
        number = np.where(at >> (ROW_BITS - 1), at - (1 << ROW_BITS), at)
        nowhere = np.isin(kind, (Kind.REF, Kind.OTHER_REF, Kind.REG))
        found.append(
            np.stack(
                [
                    trace.cycles - first_cycle(device),
                    kind,
                    np.where(nowhere, NO_BANK, bank),
                    np.where(nowhere, NO_ROW, number),
                ],
                axis=1,
            )
        )
    log: Log = np.concatenate(found).astype(np.int64)
    return log[np.lexsort((log[:, 1], log[:, 0]))]


COMMAND_FIELDS = {"kind": Field(0, 8), "bank": Field(8, 8, True), "row": Field(16, 24, True)}
"""A command as one number, for comparisons; kinds are those of the model's logs."""


def _packed(log: Log) -> NDArray[np.uint64]:
    packed = np.zeros(len(log), dtype=np.int64)
    for place, field in zip((1, 2, 3), COMMAND_FIELDS.values(), strict=True):
        packed |= (log[:, place] & (1 << field.width) - 1) << field.offset
    return packed.astype(np.uint64)


def bus_check(device: PimDevice, port: str, kinds: tuple[Kind, ...], seen: Log, expected: Log) -> PortCheck:
    """Compare cycle, kind, bank and row of every command of a bus; cycles count from that of ``start``."""
    seen, expected = (log[np.isin(log[:, 1], kinds)] for log in (seen, expected))
    first = first_cycle(device)
    return PortCheck(
        "gemv",
        port,
        Trace(seen[:, 0] + first, _packed(seen).reshape(-1, 1)),
        payloads=_packed(expected),
        cycles=expected[:, 0] + first,
        fields=COMMAND_FIELDS,
        payloads_of="model",
    )


@dataclass(frozen=True)
class Job:
    """A channel's part of a product, ready to be run.

    Attributes
    ----------
    model : with its commands.
    results : (bursts, units) float32, golden's; flipped bits change nothing of it.
    spec : what the bench is given.
    planted : bits flipped; None without SECDED.
    """

    model: Run
    results: F32
    spec: RunSpec
    planted: Flips | None


@dataclass(frozen=True)
class RtlRun:
    """A channel's part of a product, run by the exported Verilog.

    Attributes
    ----------
    cycles : of the kernel, as the model counts them.
    late : the engine says that a command missed its cycle.
    mismatches : bits of the results that are not golden's.
    checks : of the buses against the model, of the results against golden.
    job : what was run.
    corrected, uncorrected : words read with a flipped bit, with two; None without SECDED.
    """

    model: Run
    cycles: int
    late: bool
    mismatches: int
    log: Log
    checks: list[PortCheck]
    result: RunResult
    job: Job
    corrected: int | None = None
    uncorrected: int | None = None

    def divergence(self, bench: Build, place: Path, *, cycles: bool = True) -> str:
        """Return where the run first differs from golden, or with ``cycles`` the model, or nothing.

        Counts that are not those of the flips planted come before results: these differ where two bits of a
        word are flipped. A waveform of a difference at a port is left in the folder ``place``.
        """
        commands = first_divergence(self.checks[:-1]) if cycles else None
        if commands is None and (miscounted := self._miscounted()):
            return miscounted
        found = commands or first_divergence(self.checks[-1:])
        if found is not None:
            return with_waveform(found, bench, self.job.spec, place)
        if not cycles:
            return ""
        if self.late or self.cycles != self.model.cycles:
            return f"gemv: done in cycle {self.cycles}, model {self.model.cycles}; late: {self.late}"
        return ""

    def _miscounted(self) -> str:
        planted = self.job.planted
        return "" if planted is None else planted.miscounted("gemv", self.corrected, self.uncorrected)


def bench_of(device: PimDevice, root: Path, *, secded: bool = False, additions: Additions = ALL) -> Build:
    """Return the compiled bench of a channel; cached by content, the same for all products."""
    anonymous = replace(device, name="device")
    component = gemv_component(device, secded=secded, additions=additions)
    return build("gemv", component, config=(anonymous, secded, additions.in_hardware), root=root)


def prepare(
    device: PimDevice,
    product: Product,
    options: Options,
    *,
    channel: int = 0,
    seed: int = 0,
    secded: bool = False,
    flips: int = 0,
    double_flips: int = 0,
) -> Job:
    """Return a channel's part of a product with random numbers.

    flips, double_flips : words of the weights in which a bit, two bits, are flipped, where the banks hold
    check bits. :class:`spec.errors.InputError` if so many words are not read, or no hardware runs this.
    """
    require_channel(device, secded=secded, additions=options.additions)
    share = share_of(device, product, options, *operands(product, seed), channel)
    image, planted = share.bank_image(secded=secded), NO_FLIPS
    if flips or double_flips:
        image, planted = flipped(image, share.reads, device, flips, double_flips, seed)
    spec = RunSpec(
        banks={
            "prog": BankMemory(words(program_of(device, product, options))),
            "x": BankMemory(share.input_image()),
            "mem": BankMemory(image, device.timed.timing.cl // 2),
        },
        sinks={"o": Sink(len(share.results))},
        statics={"start": 1},
        probes=["o_row", "o_column", "done", "late", *(ECC_COUNTERS if secded else ())],
        until="done",
        max_cycles=MAX_CYCLES,
    )
    model = run_gemv(device, product, options, log=True)
    return Job(model, share.results, spec, planted if secded else None)


def run_rtl(bench: Build, job: Job) -> RtlRun:
    """Run a channel's part of a product in the exported Verilog."""
    device = job.model.device
    result = bench.run(job.spec)
    result.check()
    row, column = (
        Trace(cycles, values.reshape(-1, 1))
        for cycles, values in (result.probes["o_row"], result.probes["o_column"])
    )
    log = commands_seen(device, row, column)
    seen = _results(bench, result.streams["o"], device)
    expected = job.results.view(np.uint32)
    same = seen.shape == expected.shape
    mismatches = int(np.bitwise_count(seen ^ expected).sum()) if same else 32 * expected.size
    counters = ECC_COUNTERS if job.planted else ()
    counts = [int(result.probes[name][1][-1]) if len(result.probes[name][1]) else 0 for name in counters]
    return RtlRun(
        job.model,
        int(result.probes["done"][0][0]) - first_cycle(device),
        bool(len(result.probes["late"][0])),
        mismatches,
        log,
        [
            bus_check(device, "o_row", ROW_KINDS, log, job.model.log),
            bus_check(device, "o_column", COLUMN_KINDS, log, job.model.log),
            PortCheck("gemv", "o", Trace(result.streams["o"].cycles, _wide(seen)), payloads=_wide(expected)),
        ],
        result,
        job,
        *counts,
    )


def flipped(
    image: NDArray[np.uint8], reads: Ints, device: PimDevice, single: int, double: int, seed: int
) -> tuple[NDArray[np.uint8], Flips]:
    """Return an image of bursts with check bits, bits flipped in some of its words, and how many.

    reads : how often each burst of the image is read; only words of those that are have bits flipped.
    """
    image, reads = image.copy(), reads.reshape(-1)
    words = flip_words(
        [image], [np.flatnonzero(reads)], units=device.units, single=single, double=double, seed=seed
    )
    return image, words.read([reads])


def _results(bench: Build, trace: Trace, device: PimDevice) -> NDArray[np.uint32]:
    """Return the results of a stream's beats, (bursts, units)."""
    place = bench.fields("o")["data[0]"]
    bits = np.unpackbits(np.ascontiguousarray(trace.payloads).view(np.uint8), axis=1, bitorder="little")
    data = bits[:, place.offset : place.offset + place.width * device.units]
    data = data.reshape(len(data), device.units, place.width)
    sums = np.ascontiguousarray(data[:, :, :32])
    return np.packbits(sums, axis=2, bitorder="little").view("<u4").reshape(len(data), device.units)


def _wide(results: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return results.astype(np.uint64)
