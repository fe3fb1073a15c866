"""Lines, toggles and corners that the cocotb benches reach: ``make coverage``."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sim.bench import commit_of_sources
from sim.rtlsim import exported, top_component
from sim.toolchain import write_atomically
from spec.geometry import ImageGeometry
from spec.registers import Top
from tests.bench import test_axi_bench as axi
from tests.bench import test_combine_bench as combine
from tests.bench import test_crossing_bench as crossing
from tests.bench import test_dispatch_bench as dispatch
from tests.bench import test_merge_bench as merge
from tests.bench import test_pim_layer_bench as pim_layer
from tests.bench import test_program_bench as program
from tests.bench import test_registers_bench as registers
from tests.bench.axi_cores import CORES, KINDS
from tests.bench.runner import CocotbBuild, build_exported
from tests.coverage import axi_points
from tests.coverage.axi_points import split
from tests.coverage.between_points import (
    FPGA_LAYER_POINTS,
    REGISTER_POINTS,
    Log,
    SeenInLog,
    crossing_points,
    logs_met,
    merge_points,
    pim_layer_points,
    program_points,
)
from tests.coverage.dat import Counts, read
from tests.coverage.points import (
    Seen,
    combine_points,
    corners_met,
    dispatch_points,
    dispatch_units_points,
    expert_points,
    gating_points,
    ordered_points,
    pim_points,
)
from tests.mutation.benches import Block, CocotbBlock
from tests.mutation.run import BLOCKS, EXPERT, GATE, INTEGER_EXPERT, PIM

SEED = 1
Logged = Callable[..., tuple[list[str], list[Log]]]
"""A bench on a build, with a seed and ``coverage``: lines and logs of its runs."""
POINTS: dict[str, dict[str, Seen]] = {
    "dispatch": dispatch_points(dispatch.CONFIG),
    "dispatch_units": dispatch_units_points(dispatch.UNITS),
    "combine": combine_points(combine.CONFIG),
    "combine_ordered": ordered_points(combine.ORDERED),
    "gating_sigmoid": gating_points(GATE),
    "expert_relu": expert_points(EXPERT),
    "expert_w4a8": expert_points(INTEGER_EXPERT),
    "pim_bank": pim_points(PIM),
    "program_streamed": program_points(barrier=False, secded=program.CONFIGS["streamed"].secded),
    "program_barrier": program_points(barrier=True, secded=program.CONFIGS["barrier"].secded),
    "merge": merge_points(merge.NUM_INPUTS),
    "dispatch_deep": dispatch_points(dispatch.DEEP),
    "combine_deep": combine_points(combine.DEEP),
    "gating_deep": gating_points(GATE),
    "expert_deep": expert_points(EXPERT),
    "layer_glue": FPGA_LAYER_POINTS,
    "pim_layer_glue": pim_layer_points(pim_layer.CHANNELS),
}
"""The corners of each block that has scenarios."""
LOG_POINTS: dict[str, tuple[Logged, dict[str, SeenInLog]]] = {
    "registers": (registers.run_logged, REGISTER_POINTS),
    "crossing": (crossing.run_logged, crossing_points(crossing.DEPTH)),
}
"""Those of each block whose bench is a test of cocotb itself, and that bench."""
LAYER = ("layer_gate", "layer_dispatch", "layer_combine", "layer_registers")
BLOCKS_OF = {
    Top.DISPATCH: ("dispatch_dispatch", "dispatch_registers"),
    Top.GATE: ("gate_gate", "gate_registers"),
    Top.FPGA: (*LAYER, "layer_expert"),
    Top.PIM: (*LAYER, "layer_channel"),
}
"""Modules of a top with AXI ports that are no part of what lies around them, by their names in it."""
PAGE = """# coverage

What the benches of {count} blocks and tops (`tests/bench/`, and what only mutants need of
`tests/mutation/`; cocotb on the exported Verilog, seed {seed}) reach: lines, branches and toggles as
Verilator counts them, each point once whatever the number of instances, and the corners by name
(`tests/coverage/points.py`, `between_points.py`, `axi_points.py`). A corner is decided by what the ports
carried and when: payloads, cycles, responses, what was inside at a reset; the name of a scenario counts for
nothing. `make coverage` writes this page; it fails if a corner is not met.

| block | scenarios | lines | branches | toggles | corners | seconds | commit |
|---|---|---|---|---|---|---|---|
{rows}

Toggles that are not reached are most often bits of constants and of values that the small configuration
never makes large (addresses, counters, exponents); line points of unreachable defaults of `case` statements
are among the lines.

Of a top with AXI ports (`_axi`) and of a layer's rest (`_glue`) the row is of what lies around the blocks
and the core's registers, whose lines are theirs. Corners of `_axi`, `registers` and `crossing` are decided by
a log of the ports, of every clock edge, and counted in runs from one reset to the next. `_deep` are the deep
pipelines, `_w4a8` has int4 weights, int8 inputs and a multiplier for the products of two rows.
**Not measured here**: the formats with groups, check bits of the near-memory channel, tops on two clocks
(`crossing` is their queue), deep tops with AXI ports. What they have instead are benches that compare every
beat and cycle (`tests/bench/`, `tests/test_*.py`), and proofs of some ([formal.md](formal.md)).

## Corners

{corners}

"""


@dataclass(frozen=True)
class Covered:
    """What a block's bench reached: points by kind, and for each corner how many scenarios meet it.

    Of a top, how many runs from a reset.
    """

    name: str
    scenarios: int
    counts: dict[str, Counts]
    corners: dict[str, int]
    seconds: float


def built(block: Block | CocotbBlock) -> CocotbBuild:
    """Return the bench of a block that counts what it reaches."""
    directory = exported(block.name, block.component, config=block.config)
    return build_exported(directory, block.name, coverage=True)


def around(points: Mapping[str, Counts], name: str, keep: Iterable[str]) -> dict[str, Counts]:
    """Return the points of a build but for those of modules that are blocks of their own."""
    module = f"eb_{name}"
    kept = tuple(f"{module}_{block}" for block in keep)
    return {
        kind: Counts(
            {
                point: count
                for point, count in counts.reached.items()
                if point.startswith(module) and not point.startswith(kept)
            }
        )
        for kind, counts in points.items()
    }


def measure(block: Block) -> Covered:
    """Run a block's bench with coverage."""
    start = time.perf_counter()
    bench = built(block)
    scenarios = block.scenarios(SEED)
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        counts = Path(place) / "coverage.dat"
        results = bench.run_phases([run.spec for run in scenarios], seed=SEED, coverage=counts)
        points = read([counts])
    if block.keep:
        points = around(points, block.name, block.keep)
    met = corners_met(POINTS[block.name], scenarios, results)
    return Covered(block.name, len(scenarios), points, met, time.perf_counter() - start)


def measure_logged(block: CocotbBlock) -> Covered:
    """Run with coverage what is a test of cocotb itself."""
    start = time.perf_counter()
    run, corners = LOG_POINTS[block.name]
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        counts = Path(place) / "coverage.dat"
        done, logs = run(built(block), SEED, coverage=counts)
        points = read([counts])
    return Covered(block.name, len(done), points, logs_met(corners, logs), time.perf_counter() - start)


def measure_top(top: Top) -> Covered:
    """Run the bench of a top with AXI ports with coverage."""
    start = time.perf_counter()
    model, design, _ = CORES[top]
    name = f"{top}_axi"
    directory = exported(name, top_component(*CORES[top]), config=CORES[top])
    bench = build_exported(directory, name, coverage=True)
    gate = ImageGeometry.of(model, design).gate
    token_beats = model.gating.top_k if top is Top.DISPATCH else gate.input_beats
    runs, scenarios, files = [], 0, []
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        for kind in KINDS[top]:
            files.append(Path(place) / f"{kind.name}.dat")
            done, log = axi.run_logged(bench, top, SEED, kind, files[-1])
            scenarios += len(done)
            runs += split(log, token_beats)
        points = read(files)
    met = axi_points.corners_met(top, runs)
    return Covered(name, scenarios, around(points, name, BLOCKS_OF[top]), met, time.perf_counter() - start)


def page(blocks: Iterable[Covered], commit: str, before: str = "") -> str:
    """Return the page of what was measured at a commit, and of what ``before`` has of other blocks."""
    rows = {name: line for line in before.splitlines() if (name := _named(r"\| (\w+) \| \d", line))}
    corners = {name: line for line in before.splitlines() if (name := _named(r"\*\*(\w+)\*\*: ", line))}
    for block in blocks:
        shares = []
        for kind in ("line", "branch", "toggle"):
            counts = block.counts.get(kind, Counts())
            shares.append(f"{counts.hit} of {counts.total} ({counts.hit / max(1, counts.total):.1%})")
        met = sum(count > 0 for count in block.corners.values())
        rows[block.name] = (
            f"| {block.name} | {block.scenarios} | {' | '.join(shares)} | {met} of {len(block.corners)}"
            f" | {block.seconds:.0f} | {commit} |"
        )
        corners[block.name] = (
            f"**{block.name}**: " + "; ".join(f"{point} ({n})" for point, n in block.corners.items()) + "."
        )
    names = [name for name in MEASURED if name in rows]
    return PAGE.format(
        count=len(names),
        seed=SEED,
        rows="\n".join(rows[name] for name in names),
        corners="\n\n".join(corners[name] for name in names),
    )


def _named(pattern: str, line: str) -> str:
    """Return the name of the block of which a line of the page is, if it is such a line."""
    found = re.match(pattern, line)
    return found[1] if found else ""


MEASURED: dict[str, Callable[[], Covered]] = {
    **{
        block.name: partial(measure, block) if isinstance(block, Block) else partial(measure_logged, block)
        for block in BLOCKS
        if not block.name.startswith("axi_")
    },
    **{f"{top}_axi": partial(measure_top, top) for top in BLOCKS_OF},
}


def main() -> int:
    """Measure the blocks; return 1 if a corner is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the page; with --only: its rows of these blocks")
    parser.add_argument("--only", nargs="*", help="blocks", choices=MEASURED, metavar="BLOCK")
    arguments = parser.parse_args()
    blocks = []
    for name, measured in MEASURED.items():
        if arguments.only and name not in arguments.only:
            continue
        covered = measured()
        blocks.append(covered)
        shares = ", ".join(
            f"{kind} {counts.hit} of {counts.total}" for kind, counts in covered.counts.items()
        )
        print(f"{covered.name}: {shares}, {covered.seconds:.0f} s", flush=True)
        for point, count in covered.corners.items():
            if not count:
                print(f"  not met: {point}", flush=True)
    if arguments.out:
        before = arguments.out.read_text() if arguments.only and arguments.out.is_file() else ""
        write_atomically(arguments.out, page(blocks, commit_of_sources(), before))
    return int(any(not count for block in blocks for count in block.corners.values()))


if __name__ == "__main__":
    sys.exit(main())
