"""The link to the reference simulators: cycles of DRAM streams and of products on devices, rules broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sim.claims.measurement import Measurement
from sim.claims.page import Claim, Link, Table
from sim.dram.engine import RefreshMode
from sim.dram.stream import pattern_requests, run_requests
from sim.gemv.commands import Kind, Product
from sim.gemv.report import run_gemv
from spec.device import PimDevice, Schedule
from spec.errors import InputError
from spec.load import load_device, load_dram, preset_names

HOW_MEMORY = """\
Cycle counts of two reference simulators, which are carried over as test data with their sources
(`tests/data/dram_streams.json`, `tests/data/pim_hbm2_gemv.json`), against the event engine of
[dram.md](dram.md) and the kernel of [pim-gemv.md](pim-gemv.md); nothing is fitted to them. Every command of
these runs, and of a 4096 x 4096 product on each device that has a schedule, is replayed against the
table of constraints by checkers that share it, and nothing else, with what made the commands."""
STREAMS, PRODUCTS, ATTENTIONS = "dram_streams.json", "pim_hbm2_gemv.json", "attacc_attention.json"
"""Files of reference figures, in the folder of the recorded layers."""
PUBLISHED_KERNEL, OURS, ATTACC = "hbm2-pim-samsung", "hbm2-pim", "attacc"
BIG = {"channels": 64, "rows": 4096, "cols": 4096, "batch": 1}
GOAL = 9200
"""Cycles of the 4096 x 4096 product that this project's schedule was asked to stay within."""
ATTACC_BOUND = 0.03
"""Largest relative difference of the cycles of an all-bank MAC from those of AttAcc's simulator."""


@dataclass(frozen=True)
class Point:
    """A run beside a reference: its command, cycles, rules broken; whether all but cycles is as there."""

    name: tuple[str, ...]
    command: str
    cycles: float
    reference: float | None
    commands: int
    broken: list[str]
    equal: bool = True


def memory_link(measurement: Measurement) -> Link:
    """Reference simulators against the DRAM engine and the schedules of products."""
    streams = [_stream(point) for point in _figures(measurement, STREAMS)["points"]]
    kernels = [_product(PUBLISHED_KERNEL, point) for point in _figures(measurement, PRODUCTS)["points"]]
    devices = [
        _product(name, BIG)
        for name in preset_names(PimDevice.PRESET_FOLDER)
        if load_device(name).schedule is not Schedule.NONE
    ]
    ours = next(point for point in devices if point.name[0] == OURS)
    points = [*streams, *kernels, *devices]
    broken = sum(len(point.broken) for point in points)
    published, modelled = attacc_cycles(_figures(measurement, ATTENTIONS))
    difference = abs(modelled / published - 1)
    return Link(
        name="memory",
        title="reference simulators against the DRAM engine and products on devices",
        how=HOW_MEMORY,
        claims=[
            _equal("read streams of Ramulator 2.1: cycles that are not its own", streams, "dram stream"),
            _equal("products of Samsung's PIMSimulator: cycles that are not its own", kernels, "pim gemv"),
            Claim(
                text="4096 x 4096 on 64 channels by our schedule, cycles",
                measured=f"{ours.cycles:,}",
                bound=f"at most {GOAL:,}",
                command=ours.command,
                ok=ours.cycles <= GOAL,
                headline=True,
            ),
            Claim(
                text="cycles of an all-bank MAC more on AttAcc, against its simulator",
                measured=f"{modelled:.2f} against {published:.2f}",
                bound=f"{ATTACC_BOUND:.0%}",
                command="expertbank claims --only memory",
                ok=difference <= ATTACC_BOUND,
            ),
            Claim(
                text=f"DRAM rules broken in {len(points)} streams and products, by independent checkers",
                measured=f"{broken} in {sum(point.commands for point in points):,} commands",
                bound="0",
                command="expertbank claims --only memory",
                ok=broken == 0,
                headline=True,
            ),
        ],
        tables=[
            _table(("standard", "stream", "refresh", "requests"), streams),
            _table(("device", "channels", "rows", "cols", "batch"), [*kernels, *devices]),
        ],
    )


def attacc_cycles(figures: dict[str, Any]) -> tuple[float, float]:
    """Return the cycles of an all-bank MAC more, of AttAcc's simulator and of device ``attacc``.

    Rows, refreshes and power budget are in it. Published are attentions of several lengths, whose MACs the
    busiest channel does the most of; here two products, whose rows are full.
    """
    first, last = figures["points"][0], figures["points"][-1]
    share = figures["heads_of_the_busiest_channel"] / figures["heads"]
    published = (last["cycles"] - first["cycles"]) / (share * (last["mac"] - first["mac"]))
    device = load_device(ATTACC)
    per_row = device.timed.bursts_per_row
    small, large = (
        run_gemv(device, Product(rows=count * device.banks_per_mac, cols=16 * per_row, channels=1))
        for count in (100, 2100)
    )
    macs = int(large.counts[Kind.MAC] - small.counts[Kind.MAC])
    return published, (large.cycles - small.cycles) / macs


def _figures(measurement: Measurement, name: str) -> dict[str, Any]:
    path = measurement.vectors / name
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None
    return figures


def _stream(point: dict[str, Any]) -> Point:
    dram = load_dram(point["standard"])
    run = run_requests(
        dram,
        pattern_requests(dram, point["pattern"], point["requests"]),
        refresh=RefreshMode.ALL_BANK if point["refresh"] else RefreshMode.NONE,
    )
    command = f"expertbank dram stream --standard {dram.name} --pattern {point['pattern']}"
    command += f" --requests {point['requests']}" + ("" if point["refresh"] else " --no-refresh")
    name = (dram.name, point["pattern"], "yes" if point["refresh"] else "no", f"{point['requests']:,}")
    return Point(
        name,
        command,
        run.cycles,
        point["cycles"],
        sum(run.commands.values()),
        [str(one) for one in run.broken],
        equal=run.served == point["served"],
    )


def _product(device_name: str, point: dict[str, Any]) -> Point:
    shape = {key: point[key] for key in ("channels", "rows", "cols", "batch")}
    run = run_gemv(load_device(device_name), Product(**shape), log=True)
    options = " ".join(f"--{key} {value}" for key, value in shape.items())
    return Point(
        (device_name, *(str(value) for value in shape.values())),
        f"expertbank pim gemv --design {device_name} {options} --check",
        run.cycles,
        point.get("cycles"),
        len(run.log),
        [str(one) for one in run.check()],
    )


def _equal(text: str, points: list[Point], command: str) -> Claim:
    wrong = [point for point in points if point.cycles != point.reference or not point.equal]
    return Claim(
        text=text,
        measured=f"{len(wrong)} of {len(points)}",
        bound="0",
        command=f"expertbank {command}, as in the table",
        ok=not wrong and bool(points),
        headline=True,
    )


def _table(columns: tuple[str, ...], points: list[Point]) -> Table:
    return Table(
        (*columns, "cycles", "reference", "rules broken", "reproduce with"),
        [
            (
                *point.name,
                f"{point.cycles:,}",
                "-" if point.reference is None else f"{point.reference:,}",
                "; ".join(point.broken) or "0",
                f"`{point.command}`",
            )
            for point in points
        ],
    )
