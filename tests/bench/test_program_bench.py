"""A channel that runs command programs, under cocotb: every command and read in its cycle, every bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from amaranth.lib import data

from golden.formats import Bits16, bf16_encode
from golden.secded import CORRECTED, UNCORRECTED, decode, encode
from rtl.gemv import ChannelConfig, ProgramChannel
from rtl.gemv.layouts import COUNT_BITS, ColumnKind, RowKind, column_layout, row_layout, weights_layout
from rtl.gemv.units import result_layout
from sim.divergence import PortCheck
from sim.gemv.barrier import Group, serve
from sim.gemv.commands import EVEN, FAR, MAC_GAP, Kind, Log, PowerLimits, Product, timings
from sim.gemv.program import COLUMN_KINDS, ROW_KINDS, operands, program_of, share_of
from sim.gemv.report import Options, run_gemv
from sim.rtlsim import BankMemory, RunResult, RunSpec, Sink, Trace
from spec.device import PimDevice, Schedule
from spec.program import LOOP_DEPTH, Op, Program, Role, first_cycle, word, words
from spec.registers import ECC_COUNTERS
from tests.bench.program_steps import (
    Meeting,
    Step,
    fields_of_word,
    nested,
    places_read,
    results_of,
    steps_of,
    unrolled,
)
from tests.bench.runner import build
from tests.bench.scenarios import EXTREMES, Scenario, fields_of, run_scenarios
from tests.test_gemv_rtl import DEVICES

SETTLE = 40
"""Results come so long behind the end that none is missed."""
CONFIGS = {
    "streamed": ChannelConfig(device=DEVICES["hbm2-pim-quad"], secded=True),
    "barrier": ChannelConfig(device=DEVICES["hbm2-pim-samsung"]),
}


@dataclass(frozen=True)
class Start:
    """When ``start`` is 1 in a run, and when it is again, which counts for nothing."""

    cycle: int = 0
    held: int = 1
    again: tuple[int, ...] = ()

    def writes(self) -> list[tuple[int, str, int]]:
        """Return the changes of the port."""
        first = [(self.cycle, "start", 1), (self.cycle + self.held, "start", 0)]
        later = [self.cycle + self.held + after for after in self.again]
        return [*first, *((cycle + n, "start", 1 - n) for cycle in later for n in range(2))]


@dataclass(frozen=True)
class Case:
    """A channel's part of a product, with its operands.

    ``refi``: cycles between refreshes, if others than the device's; ``flips``, ``double_flips``: words of the
    banks with so many flipped bits; ``nested``: other loops that say the same; ``tail``: words in front of
    the last one, of loops, which are read when all is done.
    """

    product: Product
    options: Options
    weights: Bits16
    x: Bits16
    channel: int = 0
    refi: int | None = None
    flips: int = 0
    double_flips: int = 0
    start: Start = Start()
    nested: bool = False
    tail: tuple[int, ...] = ()


def scenario(
    name: str, config: ChannelConfig, case: Case, rng: np.random.Generator, *, stop: bool = False
) -> Scenario:
    """Return the run of a case, with what golden and model say about it.

    ``stop``: a reset comes while it is at work.
    """
    device = config.device
    if case.refi is not None:
        device = replace(
            device, dram=replace(device.timed, timing=replace(device.timed.timing, refi=case.refi))
        )
    product, options = case.product, case.options
    program = program_of(device, product, options)
    if case.nested:
        program = nested(program, rng)
    program = [*program[:-1], *case.tail, program[-1]]
    share = share_of(device, product, options, case.weights, case.x, case.channel)
    image = share.bank_image(secded=config.secded)
    if case.flips or case.double_flips:
        image = _flipped(image, config, rng, case.flips, case.double_flips)
    model = run_gemv(device, product, options, log=True)
    expected = Expectation(config, case.start, program, model.log, model.cycles, image, share.inputs)
    if not case.double_flips:
        # The same results, said twice.
        assert (expected.sums == share.results.view(np.uint32)).all(), name
    settle = SETTLE + (2 * len(expected.places) if case.tail else 0)
    return _run_of(name, config, expected, program, case.start, rng, stop=stop, settle=settle)


def _run_of(
    name: str,
    config: ChannelConfig,
    expected: Expectation,
    program: Program,
    start: Start,
    rng: np.random.Generator,
    *,
    stop: bool,
    settle: int = SETTLE,
) -> Scenario:
    """Return the run of a program; ``stop``: a reset comes while it is at work."""
    end = expected.done + 1 + settle
    stop_cycle = int(rng.integers(1, expected.done + 1)) if stop else None
    spec = RunSpec(
        banks={
            "prog": BankMemory(words(program)),
            "x": BankMemory(expected.inputs.astype("<u2").view(np.uint8)),
            "mem": BankMemory(_ports_bytes(expected.image), config.storage_cycles),
        },
        sinks={"o": Sink(len(expected.results))},
        writes=start.writes(),
        probes=[*PROBES, *(ECC_COUNTERS if config.secded else ())],
        until="done",
        max_cycles=end,
        settle=settle,
        stop_cycle=stop_cycle,
    )
    horizon = end if stop_cycle is None else stop_cycle
    return Scenario(
        f"reset in the middle of {name}" if stop else name,
        spec,
        derived=lambda result: expected.checks(result, horizon),
    )


PROBES = ("prog_en", "prog_addr", "x_en", "x_addr", "mem_en", "mem_addr", "o_row", "o_column", "done", "late")


class Expectation:
    """What the ports of a run have to show, and when."""

    def __init__(
        self,
        config: ChannelConfig,
        start: Start,
        program: Program,
        log: Log,
        cycles: int,
        image: np.ndarray,
        inputs: Bits16,
    ) -> None:
        self.config, self.image, self.inputs = config, image, inputs
        device = config.device
        self.first = first_cycle(device) + start.cycle
        self.done = self.first + cycles
        self.places = np.array(places_read(program), dtype=np.uint64)
        rows, columns = (log[np.isin(log[:, 1], kinds)] for kinds in (ROW_KINDS, COLUMN_KINDS))
        self.row_cycles = rows[:, 0] + self.first
        self.rows = _commands(row_layout(config), rows, ROW_KINDS)
        self.column_cycles = columns[:, 0] + self.first
        steps = _in_order(device, program, columns)
        self.columns = _commands(
            column_layout(config), columns, COLUMN_KINDS, column=[step.column for step in steps]
        )
        banks, flips = _decoded(image, config)
        self._run(columns, steps, banks, inputs)
        self._count(columns, flips)

    def _run(self, columns: Log, steps: Sequence[Step], banks: Bits16, inputs: Bits16) -> None:
        """Say what each command reads and leaves."""
        config = self.config
        place = _addresses(config, columns, steps)
        macs = columns[:, 1] == Kind.MAC
        self.mem_cycles, self.mem_places = self.column_cycles[macs], place[macs]
        loads = np.array([step.word >= 0 for step in steps], dtype=bool)
        self.x_cycles = self.column_cycles[loads] + config.fire_cycles - 1
        self.x_places = np.array([step.word for step in steps if step.word >= 0], dtype=np.uint64)
        held: dict[int, int] = {}
        sums: dict[int, list[Meeting]] = {}
        results, written = [], []
        for index, (step, mac) in enumerate(zip(steps, macs, strict=True)):
            if step.word >= 0:
                held[step.register] = step.word
            elif mac:
                for token in range(step.tokens):
                    before = [] if step.first else sums[step.sum + token]
                    sums[step.sum + token] = [*before, (int(place[index]), held[step.register + token])]
            elif step.sum >= 0:
                results.append(sums[step.sum])
                written.append(index)
        self.sums = results_of(results, banks, inputs).view(np.uint32)
        self.o_cycles = self.column_cycles[written] + config.result_cycles + 1
        layout = result_layout(config)
        offset, width = layout["data"].offset, config.result_bits
        checks = encode(self.sums.astype(np.uint64)) if config.secded else np.zeros_like(self.sums)
        self.results = [
            int(place[index])
            | sum(
                (int(value) | int(check) << 32) << offset + width * unit
                for unit, (value, check) in enumerate(zip(of_units, of_checks, strict=True))
            )
            for index, of_units, of_checks in zip(written, self.sums, checks, strict=True)
        ]

    def _count(self, columns: Log, flips: np.ndarray) -> None:
        """Say what the counters of corrected and of uncorrected words show from when on."""
        read = flips[self.mem_places.astype(np.int64)]
        at = self.mem_cycles + self.config.fire_cycles + 1
        self.counts = {
            name: (at, np.cumsum((read == kind).sum(axis=(1, 2))))
            for name, kind in zip(ECC_COUNTERS, (CORRECTED, UNCORRECTED), strict=True)
        }

    def checks(self, result: RunResult, horizon: int) -> list[PortCheck]:
        """Return the comparisons of a run up to a cycle, which is beyond it."""
        config = self.config
        seen = {
            name: Trace(cycles, values.reshape(-1, 1)) for name, (cycles, values) in result.probes.items()
        }

        def check(port, trace, cycles, payloads, fields=None):  # type: ignore[no-untyped-def]
            cycles = np.asarray(cycles, dtype=np.int64)
            before = cycles < horizon
            shown = payloads[: int(before.sum())]
            return PortCheck("program", port, trace, shown, cycles[before], fields or {})

        reads = _where(seen["prog_en"], seen["prog_addr"])
        count = len(reads.cycles) if horizon <= self.done else len(self.places)
        ends = np.arange(self.done, horizon)
        found = [
            PortCheck("program", "prog", reads, self.places[:count]),
            check("o_row", seen["o_row"], self.row_cycles, self.rows, fields_of(row_layout(config))),
            check(
                "o_column",
                seen["o_column"],
                self.column_cycles,
                self.columns,
                fields_of(column_layout(config)),
            ),
            check("x", _where(seen["x_en"], seen["x_addr"]), self.x_cycles, self.x_places),
            check("mem", _where(seen["mem_en"], seen["mem_addr"]), self.mem_cycles, self.mem_places),
            check("o", result.streams["o"], self.o_cycles, _wide(self.results, result.streams["o"])),
            check("done", seen["done"], ends, np.ones(len(ends), dtype=np.uint64)),
            check("late", seen["late"], [], np.zeros(0, dtype=np.uint64)),
        ]
        if config.secded:
            every = np.arange(horizon)
            for name, (at, counts) in self.counts.items():
                shown = np.concatenate([[0], counts])[np.searchsorted(at, every, side="right")]
                cycles = every[shown > 0]
                found.append(check(name, seen[name], cycles, shown[shown > 0].astype(np.uint64)))
        return found


def _in_order(device: PimDevice, program: Program, columns: Log) -> list[Step]:
    """Return the step of each column command."""
    steps = steps_of(device, program)
    if steps.every:
        assert len(steps.every) == len(columns)
        return steps.every
    kinds = {Kind.MAC: iter(steps.macs), Kind.REG: iter(steps.registers), Kind.WR: iter(steps.writes)}
    found = [next(kinds[Kind(kind)]) for kind in columns[:, 1]]
    assert not any(list(rest) for rest in kinds.values())
    return found


def _commands(
    layout: data.StructLayout, log: Log, kinds: Sequence[Kind], **more: Sequence[int]
) -> np.ndarray:
    """Return commands as they are on their bus."""
    to_all = log[:, 2] >= EVEN
    nowhere = np.isin(log[:, 1], (Kind.REF, Kind.OTHER_REF, Kind.REG))
    numbers = RowKind if kinds is ROW_KINDS else ColumnKind
    of_kind = np.zeros(len(Kind), dtype=np.int64)
    for kind in kinds:
        of_kind[kind] = numbers[kind.name].value
    values = {
        "kind": of_kind[log[:, 1]],
        "all_banks": to_all & ~nowhere,
        "bank": np.where(nowhere, 0, log[:, 2] - EVEN * to_all),
        "row": np.where(nowhere, 0, log[:, 3]),
        **more,
    }
    packed = np.zeros(len(log), dtype=np.int64)
    for name, field in fields_of(layout).items():
        packed |= (np.asarray(values[name], dtype=np.int64) & (1 << field.width) - 1) << field.offset
    return packed.astype(np.uint64)


def _addresses(config: ChannelConfig, columns: Log, steps: Sequence[Step]) -> np.ndarray:
    """Return the place in the banks of what each column command is for."""
    layout = fields_of(weights_layout(config))
    values = {
        "column": np.array([step.column for step in steps], dtype=np.int64),
        "side": columns[:, 2],
        "row": columns[:, 3],
    }
    packed = np.zeros(len(columns), dtype=np.int64)
    for name, field in layout.items():
        packed |= (values[name] & (1 << field.width) - 1) << field.offset
    return packed.astype(np.uint64)


def _decoded(image: np.ndarray, config: ChannelConfig) -> tuple[Bits16, np.ndarray]:
    """Return the banks' bursts as units get them, and the state of each word, (bursts, units, words)."""
    units, size = config.device.units, 2 * config.device.lanes
    lines = image.reshape(len(image), units, -1)
    stored = np.ascontiguousarray(lines[..., :size])
    if not config.secded:
        return stored.view("<u2"), np.zeros((len(image), units, 1), dtype=np.uint8)
    read, state = decode(stored.view("<u8"), lines[..., size:])
    return read.view("<u2"), state


def _flipped(
    image: np.ndarray, config: ChannelConfig, rng: np.random.Generator, single: int, double: int
) -> np.ndarray:
    """Return the banks with one bit flipped in some words, two in others, check bits among them."""
    units, size = config.device.units, 2 * config.device.lanes
    image = image.copy()
    lines = image.reshape(len(image), units, -1)
    count = size // 8
    chosen = rng.permutation(len(image) * units * count)[: single + double]
    for index, number in enumerate(chosen):
        burst, unit, word = np.unravel_index(number, (len(image), units, count))
        for bit in rng.permutation(72)[: 1 + (index >= single)]:
            byte = 8 * word + bit // 8 if bit < 64 else size + word
            lines[burst, unit, byte] ^= 1 << bit % 8
    return image


def _ports_bytes(image: np.ndarray) -> np.ndarray:
    """Return the banks in whole words of 32 bits, as the simulator keeps a port's value."""
    return np.pad(image, ((0, 0), (0, -image.shape[1] % 4)))


def _where(enabled: Trace, value: Trace) -> Trace:
    """Return a port's values in the cycles in which another one is 1; its zeros are not kept."""
    known = dict(zip(value.cycles.tolist(), value.payloads[:, 0].tolist(), strict=True))
    found = np.array([known.get(cycle, 0) for cycle in enabled.cycles.tolist()], dtype=np.uint64)
    return Trace(enabled.cycles, found.reshape(-1, 1))


def _wide(payloads: Sequence[int], trace: Trace) -> np.ndarray:
    size = 8 * trace.payloads.shape[1]
    raw = b"".join(payload.to_bytes(size, "little") for payload in payloads)
    return np.frombuffer(raw, dtype="<u8").reshape(-1, size // 8)


def drawn(config: ChannelConfig, rng: np.random.Generator) -> Case:
    """Draw a product, how it is run, a channel of it, random operands and when it starts."""
    tokens = config.device.tokens_per_burst
    channels = int(rng.choice([1, 1, 2, 6]))
    product = Product(
        rows=int(rng.integers(1, 1 + 20 * channels)),
        cols=int(rng.integers(1, 120)),
        channels=channels,
        batch=int(rng.integers(1, 2 * tokens + 2)) if tokens > 1 else int(rng.choice([1, 1, 2, 3])),
    )
    limits = PowerLimits(
        mac_gap=int(rng.choice([1, 1, 6])), act_gap=int(rng.choice([1, 40])), hot=bool(rng.random() < 0.5)
    )
    weights, x = operands(product, int(rng.integers(1 << 30)))
    return Case(
        product,
        Options(limits=limits, refresh=bool(rng.random() < 0.9)),
        weights,
        x,
        channel=int(rng.integers(channels)),
        refi=None if rng.random() < 0.3 else int(rng.integers(900, 2600)),
        flips=int(rng.integers(0, 9)) if config.secded else 0,
        double_flips=int(rng.choice([0, 0, 1, 3])) if config.secded else 0,
        start=starts(rng),
        nested=bool(rng.random() < 0.7),
    )


def starts(rng: np.random.Generator) -> Start:
    """Draw when a program starts: at once or later, for a cycle or more, and whether it is told so again."""
    return Start(
        int(rng.choice([0, rng.integers(1, 40)])),
        int(rng.choice([1, rng.integers(2, 500)])),
        tuple(rng.integers(1, 400, 1).tolist()) if rng.random() < 0.5 else (),
    )


def groups(
    name: str,
    config: ChannelConfig,
    start: Start,
    rng: np.random.Generator,
    *,
    far: bool = False,
    slow: bool = False,
    large: bool = False,
    stop: bool = False,
    items: int = 3,
) -> Scenario:
    """Return a run of any groups of accesses: the controller's rules, not only where the kernel needs them.

    ``far``: rows up to the last one, counted from far on. ``slow``: hardly any refreshes, MACs far apart.
    ``large``: of an access of single banks as many as there may be.
    """
    device = config.device
    refi = int(rng.integers(SLOW_REFI, 1 << 20)) if slow else int(rng.integers(900, 4000))
    dram = replace(device.timed, timing=replace(device.timed.timing, refi=refi))
    gaps = (900, 1025) if slow else (2, 400)
    limits = PowerLimits(
        mac_gap=int(rng.choice([1000 * slow + 1, rng.integers(*gaps)])),
        act_gap=int(rng.choice([1, rng.integers(*gaps)])),
    )
    refresh = bool(rng.random() < 0.9)
    least, last = (dram.rows - 8, dram.rows - 1) if far else (0, 7)
    made = Groups(dram.num_banks, rng, least, last, large)
    if items:
        made.single(Role.READ)
    if least:
        made.words.append(word(Op.ADVANCE, rows=least))
        made.base = least
    for _ in range(items):
        for _ in range(int(rng.integers(0, 3))):
            made.single(Role(int(rng.choice([Role.READ, Role.WRITE]))))
        made.item(device.output_registers, dram.bursts_per_row)
        if rng.random() < 0.3:
            rows = int(rng.integers(0, last - made.base + 1))
            made.words.append(word(Op.ADVANCE, rows=rows))
            made.base, made.address = made.base + rows, 0
    if items:
        made.single(Role.READ)
    table = timings(dram, limits)
    words_of_limits = word(
        Op.LIMITS,
        refi=dram.timing.refi,
        refresh=int(refresh),
        mac_gap=int(table[MAC_GAP]),
        act_gap=limits.act_gap,
    )
    program = [words_of_limits, *made.words, word(Op.STOP)]
    cycles, log = serve(replace(device, dram=dram), table, made.groups, refresh=refresh)
    if not made.in_time(log, first_cycle(device)):
        return groups(name, config, start, rng, far=far, slow=slow, large=large, stop=stop, items=items)
    shape = (dram.rows if far else 8, 2, dram.bursts_per_row, device.units, device.lanes)
    image = np.zeros(shape, dtype=np.uint16)
    image[least:] = bf16_encode(rng.standard_normal(image[least:].shape, dtype=np.float32))
    inputs = bf16_encode(rng.standard_normal((made.most_inputs, device.lanes), dtype=np.float32))
    lines = image.astype("<u2").reshape(-1, device.units * device.lanes).view(np.uint8)
    expected = Expectation(config, start, program, log, cycles, lines, inputs)
    return _run_of(name, config, expected, program, start, rng, stop=stop)


SLOW_REFI = 1 << 19
"""The least cycles between refreshes of a slow run."""


@dataclass
class Groups:
    """Groups of accesses as they are drawn: words of a program, and what they say."""

    num_banks: int
    rng: np.random.Generator
    least: int
    last: int
    large: bool
    base: int = 0
    address: int = 0
    most_inputs: int = 1

    def __post_init__(self) -> None:
        self.words: list[int] = []
        self.groups: list[Group] = []
        self.counter = 0
        self.rows = np.full(self.num_banks, self.least)

    def single(self, role: Role) -> None:
        """Add accesses of single banks, or of all."""
        rng = self.rng
        all_banks = bool(rng.random() < 0.3)
        closed = bool(rng.random() < 0.3)
        many = int(rng.integers(1, (2 if all_banks else self.num_banks) + 1))
        banks = rng.integers(0, 2 if all_banks else self.num_banks, many).tolist()
        # Of one bank one row: with two of them a group would wait for itself. It may be open already.
        rows = rng.integers(self.least, self.last + 1, self.num_banks)
        rows = np.where(rng.random(len(rows)) < 0.1, rng.integers(-6, -1, len(rows)), rows)
        self.rows = np.where(rng.random(len(rows)) < 0.6, self.rows, rows)
        made = []
        for bank in banks:
            row = int(self.rows[bank])
            most = 1 << COUNT_BITS if self.large else int(rng.choice([7, 40], p=[0.9, 0.1]))
            count = int(rng.integers(2, most))
            made.append((role, bank, row, count))
        self._add(made, all_banks=all_banks, closed=closed)

    def in_time(self, log: Log, first: int) -> bool:
        """Whether each group is there before the one before it ends: a program owes that.

        A word is read every second cycle and loaded in one.
        """
        if not self.groups:
            return True
        columns = log[np.isin(log[:, 1], COLUMN_KINDS), 0] + first
        ends = columns[np.cumsum([sum(count for *_, count in group.accesses) for group in self.groups]) - 1]
        upto = np.flatnonzero([fields_of_word(one)[1].get("fence", 0) for one in self.words]) + 2
        loading = np.diff(upto, prepend=1)
        read = (ends[:-1] >= 2 * upto[1:] + 8).all()
        return bool(read and (np.diff(ends[:-1], prepend=first) >= loading[1:] + 2).all())

    def item(self, sums: int, row_bursts: int) -> None:
        """Add inputs, MACs and results."""
        rng = self.rng
        self._all(Role.CLEAR, int(rng.integers(2)), -3, int(rng.integers(1, 3)))
        self._all(Role.INPUT, int(rng.integers(2)), -3, sums)
        self.words.append(word(Op.ORIGIN))
        self.counter = self.base
        for number in range(int(rng.integers(1, 5))):
            if number and rng.random() < 0.4:
                self._all(Role.INPUT, int(rng.integers(2)), -3, int(rng.integers(1, sums + 1)))
            count = row_bursts if number == 0 or rng.random() < 0.5 else int(rng.integers(1, row_bursts + 1))
            register = int(rng.integers(0, sums - (count - 1) // sums))
            if self.counter <= self.last and rng.random() < 0.6:
                row, self.counter, counted = self.counter, self.counter + 1, 1
            else:
                row, counted = int(rng.integers(self.least, self.last + 1)), 0
            made = [(Role.MAC, int(rng.integers(2)), row, count)]
            self._add(made, all_banks=True, register=register, counted=counted)
        self._all(Role.RESULT, int(rng.integers(2)), -6, int(rng.integers(1, sums + 1)))

    def _all(self, role: Role, bank: int, row: int, count: int) -> None:
        self._add([(role, bank, row, count)], all_banks=True)
        if role is Role.INPUT:
            self.address += count
            self.most_inputs = max(self.most_inputs, self.address)

    def _add(
        self,
        accesses: Sequence[tuple[Role, int, int, int]],
        *,
        all_banks: bool,
        closed: bool = False,
        register: int = 0,
        counted: int = 0,
    ) -> None:
        for number, (role, bank, row, count) in enumerate(accesses):
            self.words.append(
                word(
                    Op.ACCESS,
                    role=role,
                    bank=bank,
                    row=0 if counted else row,
                    count=count,
                    register=register,
                    counted=counted,
                    all_banks=int(all_banks),
                    fence=int(number == len(accesses) - 1),
                    closed=int(closed),
                )
            )
        kinds = {Role.READ: Kind.RD, Role.MAC: Kind.MAC}
        served = tuple(
            (int(kinds.get(role, Kind.WR)), bank, row, count) for role, bank, row, count in accesses
        )
        self.groups.append(Group(accesses=served, all_banks=all_banks, closed=1 if closed else -1))


def modes(name: str, config: ChannelConfig, rng: np.random.Generator, count: int) -> Scenario:
    """Return a run of many writes of mode rows, each behind an ACT of its own, then the end."""
    device = config.device
    timing = device.timed.timing
    short, long = timing.rrd_s, timing.rrd_l
    mode = [(int(rng.integers(device.timed.num_banks)), -2, int(rng.integers(2))) for _ in range(count)]
    program = [
        word(Op.LIMITS, refi=timing.refi),
        *(word(Op.MODE, bank=b, row=r, apart=a) for b, r, a in mode),
    ]
    opened: dict[int, tuple[int, int, int]] = {}
    acts, writes, log = [-FAR, -FAR], [-FAR], []
    for bank, row, apart in mode:
        acts.append(max(acts[-1] + (long if apart else short), acts[-2] + long, 1))
        writes.append(max(acts[-1] + timing.rcd_wr, writes[-1] + timing.ccd_l))
        log += [(acts[-1], Kind.ACT, bank, row), (writes[-1], Kind.WR, bank, row)]
        opened[bank % 2] = acts[-1], writes[-1], row
    busy: list[int] = []
    for side, (act, write, row) in sorted(opened.items()):
        at = max(act + timing.ras, write + timing.cwl + timing.burst + timing.wr)
        at += at in busy
        busy.append(at)
        log.append((at, Kind.PRE, EVEN + side, row))
    program += [word(Op.CLOSE), word(Op.STOP)]
    commands = np.array(sorted(log), dtype=np.int64)
    image, inputs = (
        np.zeros((1, config.device.units * config.burst_bits // 8), np.uint8),
        np.zeros((1, 4), np.uint16),
    )
    expected = Expectation(config, Start(), program, commands, max(busy) + 1, image, inputs)
    return _run_of(name, config, expected, program, Start(), rng, stop=False)


CORNERS = {
    "one number": Product(rows=1, cols=1, channels=1),
    "as many outputs as sums": Product(rows=16, cols=8, channels=1),
    "one output more": Product(rows=18, cols=8, channels=1),
    "a row of the banks": Product(rows=16, cols=16, channels=1),
    "a row and a burst": Product(rows=2, cols=132, channels=1),
    "a ragged last burst": Product(rows=5, cols=33, channels=1),
    "a last group of fewer tokens": Product(rows=9, cols=20, channels=1, batch=5),
    "more tokens than share a burst": Product(rows=3, cols=40, channels=1, batch=8),
}


def scenarios(config: ChannelConfig, seed: int, *, products: int = 12) -> list[Scenario]:
    """Return the corners with special values, random products, and resets while they are at work."""
    rng = np.random.default_rng([seed, len(config.device.name)])
    found = []
    for name, product in CORNERS.items():
        weights, x = operands(product, int(rng.integers(1 << 30)))
        weights = np.where(rng.random(weights.shape) < 0.02, rng.choice(EXTREMES, weights.shape), weights)
        case = Case(product, Options(), weights, x, refi=1300, start=starts(rng))
        found.append(scenario(name, config, case, rng))
    for number in range(products):
        case = drawn(config, rng)
        name = f"product {number} ({case.product.rows} x {case.product.cols}, {case.product.batch} inputs)"
        if number % 2:
            found.append(scenario(name, config, case, rng, stop=True))
        found.append(scenario(name, config, case, rng))
    if config.device.schedule is Schedule.STREAMED:
        found.append(modes("modes alone", config, rng, 40))
    else:
        found.append(groups("no groups", config, starts(rng), rng, items=0))
        for number in range(products):
            found.append(groups(f"groups {number}", config, starts(rng), rng))
            found.append(groups(f"groups {number} again", config, starts(rng), rng, stop=True))
    return found


@pytest.mark.long
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("name", CONFIGS)
def test_program(name: str, seed: int) -> None:
    config = CONFIGS[name]
    rtl = build(f"program_{name}", lambda: ProgramChannel(config), config=config)
    run_scenarios(rtl, "program", scenarios(config, seed), seed=seed)


def test_other_loops_say_the_same():
    """And they are as deep as the hardware's may be, and not deeper."""
    device, product = DEVICES["hbm2-pim-samsung"], Product(rows=33, cols=70, channels=1, batch=2)
    program = program_of(device, product, Options())
    rng = np.random.default_rng(1)
    for _ in range(30):
        other = nested(program, rng, times=20)
        assert list(unrolled(other)) == list(unrolled(program))
        steps = [{Op.LOOP: 1, Op.END: -1}.get(fields_of_word(one)[0], 0) for one in other]
        assert max(np.cumsum(steps)) == LOOP_DEPTH


def test_places_are_read_as_often_as_loops_turn():
    program = [
        word(Op.LIMITS),
        word(Op.LOOP, count=2),
        word(Op.LOOP, count=3),
        word(Op.CLOSE),
        word(Op.END),
        word(Op.END),
        word(Op.STOP),
    ]
    inner = [3, 4] * 3
    assert places_read(program) == [0, 1, 2, *inner, 5, 2, *inner, 5, 6]
    assert [op for op, _fields in unrolled(program)] == [Op.LIMITS, *[Op.CLOSE] * 6, Op.STOP]


def test_the_kernels_groups_are_served_as_the_kernel():
    """The model of any groups, given those of the kernel's program, is that of the kernel."""
    device, product = DEVICES["hbm2-pim-samsung"], Product(rows=33, cols=70, channels=1, batch=2)
    kinds = {Role.READ: Kind.RD, Role.MAC: Kind.MAC}
    found, accesses, base, counter = [], [], 0, 0
    for op, fields in unrolled(program_of(device, product, Options())):
        if op is Op.ADVANCE:
            base += fields["rows"]
        if op is Op.ORIGIN:
            counter = base
        if op is Op.ACCESS:
            row = counter if fields["counted"] else fields["row"]
            counter += fields["counted"]
            kind = kinds.get(Role(fields["role"]), Kind.WR)
            accesses.append((int(kind), fields["bank"], row, fields["count"]))
            if fields["fence"]:
                closed = 1 if fields["closed"] else -1
                all_banks = bool(fields["all_banks"])
                found.append(Group(accesses=tuple(accesses), all_banks=all_banks, closed=closed))
                accesses = []
    cycles, log = serve(device, timings(device.timed, PowerLimits()), found)
    model = run_gemv(device, product, Options(), log=True)
    assert cycles == model.cycles
    assert log.tolist() == model.log.tolist()
