"""The link of command programs: channels of devices in exported Verilog, against model and golden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.claims.builds import build_all
from sim.claims.measurement import Measurement
from sim.claims.page import Claim, Link, Table
from sim.gemv.commands import NO_LIMITS, PowerLimits, Product
from sim.gemv.program import RtlRun, bench_of, prepare, run_rtl
from sim.gemv.report import Options
from spec.device import PimDevice
from spec.load import load_device

HOW_PROGRAMS = """\
The schedules of [pim-gemv.md](pim-gemv.md) that are hardware, as command programs in a channel's exported
Verilog: cycle, kind, bank and row of every command against the model, refreshes among them, and every
bit of the results against golden. Two shapes of the reference figures, and random ones: up to 2,000
outputs, 3,000 inputs, 64 channels, 5 vectors, every other one with refreshes twice as often."""
DEVICES = ("hbm2-pim", "hbm2-pim-quad", "hbm2-pim-samsung")
KNOWN = (
    Product(rows=4096, cols=4096, channels=64, batch=1),
    Product(rows=1408, cols=2048, channels=64, batch=1),
)
NUM_RANDOM, SEED = 4, 5
COMMAND = "expertbank claims --only programs"


@dataclass(frozen=True)
class Program:
    """A product on a channel, run by the Verilog."""

    device: str
    product: Product
    options: Options
    run: RtlRun

    @property
    def differing(self) -> int:
        """Commands that are not the model's; of another number of them, all."""
        seen, model = self.run.log, self.run.model.log
        if seen.shape != model.shape:
            return max(len(seen), len(model))
        return int((seen != model).any(axis=1).sum())

    @property
    def in_step(self) -> bool:
        """Whether the kernel ends in the model's cycle, and no command missed its own."""
        return self.run.cycles == self.run.model.cycles and not self.run.late

    @property
    def bits(self) -> int:
        """Bits of the results."""
        return 32 * self.run.job.results.size

    @property
    def command(self) -> str:
        """The run by itself, on channel 0."""
        product = self.product
        sizes = f"--channels {product.channels} --rows {product.rows} --cols {product.cols}"
        hot = " --hot" if self.options.limits.hot else ""
        return (
            f"expertbank pim gemv --design {self.device} {sizes} --batch {product.batch}{hot} --engine both"
        )


def random_products() -> list[tuple[Product, Options]]:
    """Return the random shapes, the same every time: half of them with refreshes twice as often."""
    rng = np.random.default_rng(SEED)
    found = []
    for number in range(NUM_RANDOM):
        rows, cols, channels, batch = (int(rng.integers(1, most + 1)) for most in (2000, 3000, 64, 5))
        limits = PowerLimits(hot=True) if number % 2 else NO_LIMITS
        product = Product(rows=rows, cols=cols, channels=channels, batch=batch)
        found.append((product, Options(limits=limits)))
    return found


def programs_of(measurement: Measurement) -> list[Program]:
    """Run every shape on every device that has hardware."""
    devices = [load_device(name) for name in DEVICES]
    build_all(_build, [(device.name, (device, measurement.root)) for device in devices], measurement.progress)
    found = []
    for device in devices:
        bench = bench_of(device, measurement.root)
        for product, options in [*((product, Options()) for product in KNOWN), *random_products()]:
            measurement.progress(f"{device.name}: {product.rows} x {product.cols}")
            run = run_rtl(bench, prepare(device, product, options))
            found.append(Program(device.name, product, options, run))
    return found


def _build(device: PimDevice, root: Path) -> None:
    bench_of(device, root)


def programs_link(measurement: Measurement) -> Link:
    """Command programs in Verilog against the models of their schedules and golden."""
    return link_of(programs_of(measurement))


def link_of(programs: list[Program]) -> Link:
    """Return what these runs amount to."""
    commands = sum(len(one.run.model.log) for one in programs)
    differing = sum(one.differing for one in programs)
    late = sum(not one.in_step for one in programs)
    mismatches = sum(one.run.mismatches for one in programs)
    return Link(
        name="programs",
        title="command programs in exported Verilog against model and golden",
        how=HOW_PROGRAMS,
        claims=[
            Claim(
                text="commands of products in Verilog that are not the model's, by cycle, kind, bank or row",
                measured=f"{differing:,} of {commands:,}",
                bound="0",
                command=COMMAND,
                ok=differing == 0 and commands > 0,
                headline=True,
            ),
            Claim(
                text="products in Verilog that end in another cycle than the model's",
                measured=f"{late} of {len(programs)}",
                bound="0",
                command=COMMAND,
                ok=late == 0 and bool(programs),
            ),
            Claim(
                text="bits of the results of products that differ from golden",
                measured=f"{mismatches:,} of {sum(one.bits for one in programs):,}",
                bound="0",
                command=COMMAND,
                ok=mismatches == 0 and bool(programs),
            ),
        ],
        tables=[
            Table(
                (
                    "device",
                    "channels",
                    "rows",
                    "cols",
                    "batch",
                    "cycles",
                    "in Verilog",
                    "commands",
                    "differing",
                    "wrong bits",
                    "reproduce with",
                ),
                [
                    (
                        one.device,
                        str(one.product.channels),
                        str(one.product.rows),
                        str(one.product.cols),
                        str(one.product.batch),
                        f"{one.run.model.cycles:,}",
                        f"{one.run.cycles:,}",
                        f"{len(one.run.model.log):,}",
                        f"{one.differing:,}",
                        f"{one.run.mismatches:,}",
                        f"`{one.command}`",
                    )
                    for one in programs
                ],
            )
        ],
    )
