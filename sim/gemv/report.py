"""A matrix-vector product on a device: its cycles and commands, and what surrounds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sim.dram.checker import Broken
from sim.gemv import barrier, lockstep, pins, streamed
from sim.gemv.check import BARRIER, STREAMED, Rules, Violation, check_inputs, check_log, check_sums
from sim.gemv.commands import EVEN, FAR, NO_LIMITS, ODD, Kind, Log, PowerLimits, Product, limited, timings
from spec.design import RegisterPath
from spec.device import PimDevice, Schedule
from spec.dram import PROTOCOLS
from spec.errors import InputError, require, require_range
from spec.program import ALL, TILE_ROWS, Additions

COMMANDS = ("ACT", "PRE", "MAC", "WR", "REF", "RD")
MAX_LOG = 1 << 24
"""Commands of a log."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a product is run.

    Attributes
    ----------
    limits : of power and temperature.
    refresh : whether the DRAM is refreshed.
    additions : of the schedule ``STREAMED`` to the published one.
    """

    limits: PowerLimits = NO_LIMITS
    refresh: bool = True
    additions: Additions = ALL


DEFAULT = Options()


@dataclass(frozen=True)
class Run:
    """A product that was run.

    Attributes
    ----------
    cycles : from cycle 0 to the cycle behind its end.
    counts : (kinds,) int64, commands of one channel; all channels have the same.
    log : its commands, if wanted.
    """

    device: PimDevice
    product: Product
    options: Options
    cycles: int
    counts: NDArray[np.int64]
    log: Log

    @property
    def utilisation(self) -> float:
        """Multiply-accumulates of the product over those that the units had time for."""
        device = self.device
        in_cycle = self.product.channels * device.units * device.lanes / device.mac_cycles
        return self.product.macs / (self.cycles * in_cycle)

    @property
    def commands(self) -> dict[str, int]:
        """How many commands of each kind one channel has; register writes are counted with WR."""
        counts = {name: int(self.counts[Kind[name]]) for name in COMMANDS}
        counts["WR"] += int(self.counts[Kind.REG])
        counts["PRE"] += int(self.counts[Kind.PRE_ALL])
        return counts

    def check(self) -> Sequence[Violation | Broken]:
        """Return the rules that the log breaks."""
        dram, options = self.device.timed, self.options
        if self.device.schedule is Schedule.PINS:
            return pins.check(limited(dram, options.limits), self.log, refresh=options.refresh)
        if self.device.schedule is Schedule.LOCKSTEP:
            return self._check_lockstep()
        if self.device.schedule is Schedule.BARRIER:
            rules: Rules = replace(BARRIER, refresh=options.refresh)
            return check_log(dram, self.log, rules, options.limits)
        rules = replace(STREAMED, refresh=options.refresh, register_path=options.additions.register_path)
        found = check_log(dram, self.log, rules, options.limits)
        if options.additions.register_path:
            layout = streamed.layout(
                self.device, self.product, timings(dram, options.limits), options.additions
            )
            found += check_inputs(
                self.log,
                layout,
                self.product.batch,
                self.device.output_registers,
                self.device.input_registers,
                dram.bursts_per_row,
            )
        return found

    def _check_lockstep(self) -> list[Violation]:
        device, dram, options = self.device, self.device.timed, self.options
        shared = device.register_path is RegisterPath.SHARED
        banks = lockstep.sets_of(dram, device.banks_per_mac)
        rules = Rules(
            one_bus=not PROTOCOLS[dram.protocol].row_bus,
            register_path=not shared,
            refresh=options.refresh,
            sets=tuple(tuple(row) for row in banks.tolist()),
            widths=True,
            mac_open=device.mac_open_cycles,
        )
        limits = replace(options.limits, mac_gap=max(options.limits.mac_gap, device.mac_gap))
        return check_log(dram, self.log, rules, limits) + check_sums(
            self.log,
            lockstep.layout(device, self.product, options.limits),
            self.product.batch,
            banks.shape[1],
            8 * dram.burst_bytes // device.result_bits,
            len(banks),
            dram.bursts_per_row,
            shared=shared,
        )


def run_gemv(device: PimDevice, product: Product, options: Options = DEFAULT, *, log: bool = False) -> Run:
    """Run a product; :class:`spec.errors.InputError` if it does not fit the device."""
    T = timings(device.timed, options.limits)
    if device.schedule is not Schedule.STREAMED:
        require(
            options.additions == ALL,
            f"is of schedule streamed, which {device.name} has not",
            key="without",
        )

    def run(logged: bool) -> tuple[int, NDArray[np.int64], Log]:
        if device.schedule in (Schedule.LOCKSTEP, Schedule.PINS):
            run_it = lockstep.run if device.schedule is Schedule.LOCKSTEP else pins.run
            return run_it(device, product, options.limits, refresh=options.refresh, log=logged)
        if device.schedule is Schedule.BARRIER:
            return barrier.run(device, product, T, refresh=options.refresh, log=logged)
        return streamed.run(
            device, product, T, refresh=options.refresh, log=logged, additions=options.additions
        )

    cycles, counts, commands = run(False)
    if log:
        if counts.sum() > MAX_LOG:
            raise InputError(f"must have at most {MAX_LOG} commands, not {counts.sum()}", key="log")
        cycles, counts, commands = run(True)
    return Run(device, product, options, cycles, counts, commands)


def end_to_end(run: Run, *, adders: int = 16, interruptions: int = 0) -> dict[str, int]:
    """Return the cycles of what surrounds a kernel, the kernel's, and their sum without the placement.

    Parameters
    ----------
    adders : additions in a cycle of the host, per channel, of the lanes' and slices' partial sums. They go on
        while results arrive.
    interruptions : times that the kernel is left for ordinary traffic and entered again; sums and inputs stay
        in the units' registers. Refreshes that fall due in the time of these switches are not added.
    """
    require_range("adders", adders, 1, 1 << 16)
    require_range("interruptions", interruptions, 0, 1 << 20)
    device, product, options = run.device, run.product, run.options
    require(
        device.schedule in (Schedule.BARRIER, Schedule.STREAMED),
        f"is of schedules barrier and streamed, which {device.name} has not",
        key="end_to_end",
    )
    T = timings(device.timed, options.limits)
    if device.schedule is Schedule.BARRIER:
        tiles, inputs = barrier.tiles(device, product)
        outputs, slices = tiles * device.output_registers, 1
        weights = tiles * inputs * TILE_ROWS * device.timed.bursts_per_row
        switch = barrier.visit_cycles(device, T)
        behind_pre = FAR  # at the end, with the last data, tRP is over in all banks that are read
    else:
        layout = streamed.layout(device, product, T, options.additions)
        outputs, slices = layout.outputs, layout.slices
        weights = outputs * layout.bursts
        switch = streamed.visit_cycles(device, T)
        behind_pre = 1  # the end is the cycle behind the last PRE
    results = outputs * product.batch
    kernel = run.cycles + interruptions * switch
    read = barrier.ordinary_cycles(
        device,
        T,
        write=False,
        bursts=results,
        start=kernel,
        closed=kernel - behind_pre,
        refresh=options.refresh,
    )
    additions = results * device.units * device.lanes
    exposed = max(0, -(-additions // adders) - read) + math.ceil(math.log2(device.lanes * slices))
    return {
        "placement": barrier.ordinary_cycles(
            device, T, write=True, bursts=weights, start=0, refresh=options.refresh
        ),
        "kernel": run.cycles,
        "mode_switches": interruptions * switch,
        "read_back": read,
        "reduction": exposed,
        "total": kernel + read + exposed,
    }


def ablation(device: PimDevice, product: Product, options: Options = DEFAULT) -> dict[str, int]:
    """Return the cycles with everything, and without each of the additions of the schedule."""
    require(
        device.schedule is Schedule.STREAMED,
        f"is of schedule streamed, which {device.name} has not",
        key="ablation",
    )
    result = {"all": run_gemv(device, product, options).cycles}
    for field in fields(Additions):
        less = replace(options, additions=replace(options.additions, **{field.name: False}))
        result[f"without {field.name}"] = run_gemv(device, product, less).cycles
    none = Additions(**{field.name: False for field in fields(Additions)})
    result["with none"] = run_gemv(device, product, replace(options, additions=none)).cycles
    result["without refresh"] = run_gemv(device, product, replace(options, refresh=False)).cycles
    return result


def added_bits(device: PimDevice) -> dict[str, int]:
    """Return the register bits, of a channel, that each addition of the schedule asks of its sequencer.

    ``prefetch``: the next row and its side. ``register_path``: the entry to be written, and the bursts that
    have to be there already when a pass begins: all entries are then written one behind the other, a cycle
    each, and the pins bring a burst in ``burst`` cycles. ``split``: none, the host adds. ``unpadded``: the
    accumulator counts modulo the outputs of a pass (counter and modulus), and the column counts on across
    passes.
    """
    dram = device.timed
    held = device.input_registers - device.input_registers // dram.timing.burst

    def bits(values: int) -> int:
        return (values - 1).bit_length()

    return {
        "prefetch": bits(dram.rows) + 1,
        "register_path": bits(device.input_registers) + held * 8 * dram.burst_bytes,
        "split": 0,
        "unpadded": 2 * bits(device.output_registers) + bits(dram.bursts_per_row),
    }


FLIP_FLOP_UM2, NAND_UM2 = 4.522, 0.798
"""DFF_X1 and NAND2_X1 of the NanGate 45 nm open cell library, in square micrometres."""
GATES_PER_BIT = 3
"""NAND2 beside a flip-flop that is counted or kept: a multiplexer's; assumed."""
LOW_SCALE, HIGH_SCALE = (20 / 45) ** 2, 2.0
"""From the figures of 45 nm to the ends of the range: an ideal shrink to the 20 nm of the DRAM die, and a
DRAM's process, whose logic is larger, half of it filled."""


def added_area_um2(device: PimDevice) -> dict[str, dict[str, float]]:
    """Return the area of a channel, in square micrometres, that each addition's bits may take.

    Registers and a multiplexer in front of each, by cells of 45 nm; ``low`` and ``high`` are what another
    process makes of it. Wires, and the comparisons that decide when a command goes, are not in it.
    """
    one = FLIP_FLOP_UM2 + GATES_PER_BIT * NAND_UM2
    return {
        name: {"value": bits * one, "low": bits * one * LOW_SCALE, "high": bits * one * HIGH_SCALE}
        for name, bits in added_bits(device).items()
    }


def log_text(run: Run) -> str:
    """Return a log as text: a line ``cycle,command,bank,row`` for each command."""
    names, log = [kind.name for kind in Kind], run.log
    banks = {EVEN: "even", ODD: "odd", -1: ""}
    if run.device.schedule is Schedule.LOCKSTEP:
        banks |= {EVEN + number: f"set{number}" for number in range(64)}
    lines = [
        f"{cycle},{names[kind]},{banks.get(bank, bank)},{row if bank != -1 else ''}"
        for cycle, kind, bank, row in log.tolist()
    ]
    return "\n".join(["cycle,command,bank,row", *lines]) + "\n"
