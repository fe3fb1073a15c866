"""Lines, toggles and corners that the cocotb benches reach: ``make coverage``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sim.bench import commit_of_sources
from sim.rtlsim import RunResult, exported
from sim.toolchain import write_atomically
from tests.bench.runner import build_exported
from tests.bench.scenarios import Scenario
from tests.coverage.dat import Counts, read
from tests.coverage.points import POINTS
from tests.mutation.run import BLOCKS, Block

SEED = 1
PAGE = """# coverage

What the benches of the blocks (`tests/bench/`, cocotb on the exported Verilog, seed {seed}) reach: lines,
branches and toggles as Verilator counts them, each point once whatever the number of instances, and the
corners by name that each bench has to meet at the block's ports (`tests/coverage/points.py`). `make
coverage` writes this page; it fails if a corner is not met.

| block | scenarios | lines | branches | toggles | corners | seconds | commit |
|---|---|---|---|---|---|---|---|
{rows}

Toggles that are not reached are most often bits of constants and of values that the small configuration
never makes large (addresses, counters, exponents); line points of unreachable defaults of `case` statements
are among the lines.

## Corners

{corners}

"""


@dataclass(frozen=True)
class Covered:
    """What a block's bench reached: points by kind, and for each corner how many scenarios meet it."""

    name: str
    scenarios: int
    counts: dict[str, Counts]
    corners: dict[str, int]
    seconds: float


def corners_met(name: str, scenarios: list[Scenario], results: list[RunResult]) -> dict[str, int]:
    """Return for each corner of a block how many scenarios meet it."""
    pairs = list(zip(scenarios, results, strict=True))
    return {point: sum(seen(*pair) for pair in pairs) for point, seen in POINTS[name].items()}


def measure(block: Block) -> Covered:
    """Run a block's bench with coverage."""
    start = time.perf_counter()
    directory = exported(block.name, block.component, config=block.config)
    bench = build_exported(directory, block.name, coverage=True)
    scenarios = block.scenarios(SEED)
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        counts = Path(place) / "coverage.dat"
        results = bench.run_phases([run.spec for run in scenarios], seed=SEED, coverage=counts)
        points = read([counts])
    met = corners_met(block.name, scenarios, results)
    return Covered(block.name, len(scenarios), points, met, time.perf_counter() - start)


def page(blocks: list[Covered], commit: str) -> str:
    """Return the page of what was measured at a commit."""
    rows, corners = [], []
    for block in blocks:
        shares = []
        for kind in ("line", "branch", "toggle"):
            counts = block.counts.get(kind, Counts())
            shares.append(f"{counts.hit} of {counts.total} ({counts.hit / max(1, counts.total):.1%})")
        met = sum(count > 0 for count in block.corners.values())
        rows.append(
            f"| {block.name} | {block.scenarios} | {' | '.join(shares)} | {met} of {len(block.corners)}"
            f" | {block.seconds:.0f} | {commit} |"
        )
        corners.append(
            f"**{block.name}**: " + "; ".join(f"{point} ({n})" for point, n in block.corners.items()) + "."
        )
    return PAGE.format(seed=SEED, rows="\n".join(rows), corners="\n\n".join(corners))


def main() -> int:
    """Measure the blocks; return 1 if a corner is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the page")
    parser.add_argument("--only", nargs="*", help="blocks")
    arguments = parser.parse_args()
    blocks = []
    for block in BLOCKS:
        if block.name not in POINTS or (arguments.only and block.name not in arguments.only):
            continue
        covered = measure(block)
        blocks.append(covered)
        shares = ", ".join(
            f"{kind} {counts.hit} of {counts.total}" for kind, counts in covered.counts.items()
        )
        print(f"{covered.name}: {shares}, {covered.seconds:.0f} s", flush=True)
        for point, count in covered.corners.items():
            if not count:
                print(f"  not met: {point}", flush=True)
    if arguments.out and not arguments.only:
        write_atomically(arguments.out, page(blocks, commit_of_sources()))
    return int(any(not count for block in blocks for count in block.corners.values()))


if __name__ == "__main__":
    sys.exit(main())
