"""Mutants of every block against its bench: ``python -m tests.mutation.run`` (``make mutate``).

And the netlists themselves, the layer's too: ``--netlist``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rtl.combine import Combine, CombineConfig
from rtl.combine_ordered import OrderedCombine
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.expert import ExpertEngine
from rtl.gating import Gate
from rtl.gemv import ProgramChannel
from rtl.layer import FpgaLayer, PimLayer
from rtl.pim import PimChannel
from sim.bench import commit_of_sources
from sim.claims.benches import GOAL
from sim.rtlsim import DEFAULT_ROOT, exported
from sim.toolchain import write_atomically
from spec.design import Pipeline
from spec.model import GatingSpec
from spec.registers import Top
from tests.bench import test_combine_bench as combine
from tests.bench import test_crossing_bench as crossing
from tests.bench import test_dispatch_bench as dispatch
from tests.bench import test_expert_bench as expert
from tests.bench import test_gating_bench as gating
from tests.bench import test_layer_bench as layer
from tests.bench import test_merge_bench as merge
from tests.bench import test_pim_bench as pim
from tests.bench import test_pim_layer_bench as pim_layer
from tests.bench import test_program_bench as program
from tests.bench import test_registers_bench as registers
from tests.bench.scenarios import Scenario
from tests.mutation import (
    combine_scenarios,
    dispatch_scenarios,
    expert_scenarios,
    gate_scenarios,
    pim_scenarios,
    program_scenarios,
    softmax_scenarios,
)
from tests.mutation.benches import Block, CocotbBlock, axi_block
from tests.mutation.equivalence import Machine, Rules, equivalent
from tests.mutation.mutants import SECONDS, mutants_of, netlist_of
from tests.mutation.page import page, survivors_of, unexplained
from tests.mutation.perturbed import unnoticed

POWER_UPS = (1, 2, 3)
"""Seeds of what registers and memories hold at power-up."""


def _dispatcher(name: str, config: DispatchConfig) -> Block:
    return Block(name, lambda: Dispatch(config), config, lambda seed: dispatch.scenarios(seed, config))


def _combiner(name: str, config: CombineConfig) -> Block:
    return Block(
        name,
        lambda: Combine(config),
        config,
        lambda seed: [*combine.scenarios(seed, config), *combine_scenarios.scenarios(seed, config)],
    )


class Source(Protocol):
    """A module with scenarios of a block: its bench, or what only mutants need."""

    def scenarios(self, config: Any, seed: int, /) -> list[Scenario]:
        """Return those of a seed."""


def _block(name: str, make: Callable[[Any], object], config: object, *sources: Source) -> Block:
    return Block(
        name,
        lambda: make(config),
        config,
        lambda seed: [run for source in sources for run in source.scenarios(config, seed)],
    )


GATE = gating.GEOMETRIES["sigmoid"]
SOFTMAX_GATE = replace(GATE, gating=GatingSpec(num_experts=12, top_k=4, logit_bias=True), d_model=16)
"""gpt-oss' rule: the largest logits, and the softmax of these alone; the last burst is there for loads."""
EXPERT, INTEGER_EXPERT = expert.CONFIGS["relu"], expert.CONFIGS["w4a8"]
PIM = pim.CONFIGS["bank"]
BLOCKS = [
    _dispatcher("dispatch", dispatch.CONFIG),
    Block(
        "dispatch_units",
        lambda: Dispatch(dispatch.UNITS),
        dispatch.UNITS,
        lambda seed: [*dispatch.unit_scenarios(seed), *dispatch_scenarios.unit_scenarios(seed)],
    ),
    _combiner("combine", combine.CONFIG),
    Block(
        "combine_ordered",
        lambda: OrderedCombine(combine.ORDERED),
        combine.ORDERED,
        lambda seed: [*combine.ordered_scenarios(seed), *combine_scenarios.ordered_scenarios(seed)],
    ),
    _block("gating_sigmoid", Gate, GATE, gating, gate_scenarios),
    _block("gating_softmax", Gate, SOFTMAX_GATE, gating, softmax_scenarios),
    _block("expert_relu", ExpertEngine, EXPERT, expert, expert_scenarios),
    _block("expert_w4a8", ExpertEngine, INTEGER_EXPERT, expert, expert_scenarios),
    _block("pim_bank", PimChannel, PIM, pim, pim_scenarios),
    *(
        _block(f"program_{schedule}", ProgramChannel, config, program, program_scenarios)
        for schedule, config in program.CONFIGS.items()
    ),
    Block("merge", merge.merger, (merge.LAYOUT, merge.NUM_INPUTS), merge.scenarios),
    # The same with deep pipelines, which are other netlists.
    _dispatcher("dispatch_deep", dispatch.DEEP),
    _combiner("combine_deep", combine.DEEP),
    _block("gating_deep", Gate, replace(GATE, pipeline=Pipeline.DEEP), gating, gate_scenarios),
    _block("expert_deep", ExpertEngine, replace(EXPERT, pipeline=Pipeline.DEEP), expert, expert_scenarios),
    # What lies around the core in a top with AXI ports, and around the blocks in a layer.
    axi_block("axi_gate", Top.GATE, keep=("gate_gate", "gate_registers")),
    axi_block("axi_dispatch", Top.DISPATCH, keep=("dispatch_dispatch", "dispatch_registers")),
    Block(
        "layer_glue",
        lambda: FpgaLayer(layer.MODEL, layer.RULED),
        (layer.MODEL, layer.RULED),
        layer.scenarios,
        keep=("gate", "dispatch", "expert", "combine", "registers"),
    ),
    Block(
        "pim_layer_glue",
        lambda: PimLayer(*pim_layer.CONFIG),
        pim_layer.CONFIG,
        pim_layer.scenarios,
        keep=("gate", "dispatch", "channel_0", "channel_1", "merge", "combine", "registers"),
    ),
    CocotbBlock("registers", registers.registers, registers.EVENT_BITS, registers.run),
    CocotbBlock(
        "crossing", crossing.crossing, (crossing.DEPTH, crossing.WIDTH), crossing.run, one_clock=False
    ),
]
LAYER = Block(
    "layer", lambda: FpgaLayer(layer.MODEL, layer.RULED), (layer.MODEL, layer.RULED), layer.scenarios
)
"""Of which only the netlist itself is run."""


@dataclass(frozen=True)
class Outcome:
    """Mutants of a block: how many, which are not detected, which of these are proved equivalent."""

    name: str
    total: int
    seed: int
    survivors: dict[int, str]
    proved: frozenset[int]
    scenarios: int
    seconds: float

    @property
    def left(self) -> dict[int, str]:
        """Survivors that are not proved equivalent."""
        return {number: text for number, text in self.survivors.items() if number not in self.proved}

    @property
    def score(self) -> float:
        """Detected, of those that are not proved equivalent."""
        distinct = self.total - len(self.proved)
        return (distinct - len(self.left)) / distinct if distinct else 1.0


@dataclass(frozen=True)
class NetlistRun:
    """A netlist without mutants: how many scenarios, how often from other contents, the first difference."""

    name: str
    scenarios: int
    power_ups: int
    said: str
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether all of it was as the bench says."""
        return not self.said


def run_netlist(block: Block | CocotbBlock, seed: int, *, root: Path = DEFAULT_ROOT) -> NetlistRun:
    """Run a block's bench on its netlist, from several contents of registers and memories."""
    start = time.perf_counter()
    directory = exported(block.name, block.component, config=block.config, root=root)
    bench = block.bench(netlist_of(directory, block.name, root=root), seed, root)
    said = ""
    for power_up in POWER_UPS:
        said = said or bench.differs(None, power_up)
    return NetlistRun(block.name, bench.count, len(POWER_UPS), said, time.perf_counter() - start)


def measure(block: Block | CocotbBlock, count: int, seed: int) -> Outcome:
    """Run the netlist itself, then each mutant until a scenario shows it."""
    start = time.perf_counter()
    directory = exported(block.name, block.component, config=block.config)
    mutants = mutants_of(directory, block.name, count=count, seed=seed, keep=block.keep)
    bench = block.bench(mutants.directory, seed)
    # Registers start at random: with other values in each of these.
    for power_up in POWER_UPS:
        said = bench.differs(0, power_up)
        if said:
            raise SystemExit(f"{block.name}: the netlist itself fails: {said}")
    bench.limit()
    survivors = {number: text for number, text in enumerate(mutants.texts, start=1) if not bench.sees(number)}
    if survivors:
        others = bench.others()
        survivors = {number: text for number, text in survivors.items() if not others.differs(number, 2)}
    proved: set[int] = set()
    if survivors and block.one_clock:
        machine = Machine.of(mutants, Rules.read(block.name))
        proved = unnoticed(machine, sorted(survivors))
        proved |= equivalent(machine, sorted(set(survivors) - proved))
    seconds = time.perf_counter() - start
    return Outcome(block.name, len(mutants.texts), seed, survivors, frozenset(proved), bench.count, seconds)


def main() -> int:
    """Measure the blocks; return 1 if one has too many survivors, or if a netlist differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=100, help="of each block")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="blocks")
    parser.add_argument("--netlist", action="store_true", help="the netlists themselves, no mutants")
    parser.add_argument("--out", type=Path, help="write the page, or the rows of it that are measured")
    arguments = parser.parse_args()
    commit = commit_of_sources()
    known = [block for block in (*BLOCKS, LAYER) if not arguments.only or block.name in arguments.only]

    def write(outcomes: Sequence[Outcome], netlists: Sequence[NetlistRun]) -> None:
        # Blocks that are done are on the page, should the rest take too long.
        if arguments.out:
            before = arguments.out.read_text() if arguments.out.is_file() else ""
            write_atomically(arguments.out, page(outcomes, netlists, commit, GOAL, SECONDS, before))

    if arguments.netlist:
        netlists = []
        for block in known:
            netlists.append(run_netlist(block, arguments.seed))
            print(f"{block.name}: {netlists[-1].said or 'agrees'}, {netlists[-1].seconds:.0f} s", flush=True)
            write([], netlists)
        return int(not all(one.agrees for one in netlists))
    outcomes = []
    for block in known:
        if block is LAYER:
            continue
        outcome = measure(block, arguments.mutants, arguments.seed)
        outcomes.append(outcome)
        print(
            f"{outcome.name}: {outcome.total} mutants, {len(outcome.survivors)} not detected,"
            f" {len(outcome.proved)} of these equivalent, score {outcome.score:.1%}, {outcome.seconds:.0f} s",
            flush=True,
        )
        for line in survivors_of(outcome):
            print(f"  {line}", flush=True)
        write(outcomes, [])
    found = unexplained(line for outcome in outcomes for line in survivors_of(outcome))
    if found:
        print(f"not explained: {', '.join(found)} (reasons are in tests/mutation/page.py)", file=sys.stderr)
    return int(any(outcome.score < GOAL for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
