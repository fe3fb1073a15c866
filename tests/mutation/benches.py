"""What is mutated, and the bench that is to see it: of scenarios that are data, or a test of cocotb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sim.divergence import first_divergence
from sim.rtlsim import DEFAULT_ROOT, Build, RunResult, build_exported, top_component
from spec.registers import Top
from tests.bench import runner
from tests.bench import test_axi_bench as axi
from tests.bench.axi_cores import CORES, KINDS
from tests.bench.scenarios import Scenario
from tests.mutation.mutants import PORT

BATCH = 12
"""Scenarios of one process: most mutants are seen by the first batch."""


@dataclass(frozen=True)
class Block:
    """A block with its bench: what is exported, and the scenarios of a seed.

    ``keep``: modules in it that have no mutants, blocks of their own (:func:`mutants_of`).
    """

    name: str
    component: Callable[[], object]
    config: object
    scenarios: Callable[[int], list[Scenario]]
    keep: tuple[str, ...] = ()
    one_clock = True

    def bench(self, directory: Path, seed: int, root: Path = DEFAULT_ROOT) -> Bench:
        """Return the bench on the Verilog in ``directory``, with scenarios of ``seed``."""
        return Bench(self, build_exported(directory, self.name, root=root), seed)


@dataclass
class Bench:
    """Scenarios of a seed on one build; ``""`` is what it says of a mutant that it does not see."""

    block: Block
    build: Build
    seed: int

    def __post_init__(self) -> None:
        self.scenarios = self.block.scenarios(self.seed)
        self.count = len(self.scenarios)

    def differs(self, number: int | None, power_up: int, scenarios: Sequence[Scenario] | None = None) -> str:
        """Return what differs with this mutant (None: the build has none), registers as ``power_up`` says."""
        runs = self.scenarios if scenarios is None else scenarios
        more = {} if number is None else {PORT: number}
        specs = [replace(run.spec, statics={**run.spec.statics, **more}) for run in runs]
        try:
            results = self.build.run_phases(specs, seed=power_up)
        except RuntimeError as error:
            return f"the run fails: {error}"
        for run, result in zip(runs, results, strict=True):
            try:
                said = self._said(run, result)
            except Exception as error:
                # Models are fed with what a run shows, and refuse what no block would: a mutant's alone.
                if not number:
                    raise
                said = f"the models refuse what it shows: {error!r}"
            if said:
                return f"{run.name}: {said}"
        return ""

    def _said(self, run: Scenario, result: RunResult) -> str:
        """Return the first of what is wrong with a run."""
        problems = run.problems(result)
        if problems:
            return problems[0]
        found = first_divergence(run.checks(self.block.name, result))
        return "" if found is None else found.message

    def limit(self) -> None:
        """See mutants that hang in the time that the longest scenario takes twice."""
        cycles = [result.cycles for result in self.build.run_phases([run.spec for run in self.scenarios])]
        self.scenarios = [
            replace(run, spec=replace(run.spec, max_cycles=min(run.spec.max_cycles, 2 * used + 200)))
            for run, used in zip(self.scenarios, cycles, strict=True)
        ]

    def sees(self, number: int) -> str:
        """Return what the scenarios show of a mutant: different ones first, then all."""
        step = max(1, self.count // BATCH)
        first = self.scenarios[::step][:BATCH]
        return self.differs(number, 1, first) or self.differs(number, 1)

    def others(self) -> Bench:
        """Return the same with the scenarios that the next seed draws."""
        return Bench(self.block, self.build, self.seed + 1)


class Run(Protocol):
    """A bench that is a test of cocotb itself: runs all scenarios of a seed, returns a line for each.

    ``statics`` are ports to hold, ``power_up`` is the seed of what registers hold at first.
    """

    def __call__(
        self, rtl: runner.CocotbBuild, seed: int, *, statics: Mapping[str, int], power_up: int
    ) -> list[str]: ...


@dataclass(frozen=True)
class CocotbBlock:
    """As :class:`Block`, with a bench that is a test of cocotb itself.

    ``one_clock``: whether all of it has the same clock, as proofs take it to have.
    """

    name: str
    component: Callable[[], object]
    config: object
    run: Run
    keep: tuple[str, ...] = ()
    one_clock: bool = True

    def bench(self, directory: Path, seed: int, root: Path = DEFAULT_ROOT) -> CocotbBench:
        """Return the bench on the Verilog in ``directory``, with scenarios of ``seed``."""
        return CocotbBench(self, runner.build_exported(directory, self.name, root=root), seed)


@dataclass
class CocotbBench:
    """A test of cocotb on one build, like :class:`Bench`; ``count`` is known when one has passed."""

    block: CocotbBlock
    build: runner.CocotbBuild
    seed: int
    count: int = 0

    def differs(self, number: int | None, power_up: int) -> str:
        """Return what differs with this mutant (None: the build has none), registers as ``power_up`` says."""
        statics = {} if number is None else {PORT: number}
        try:
            done = self.block.run(self.build, self.seed, statics=statics, power_up=power_up)
        except runner.BenchError as error:
            return str(error).partition("\n")[0]
        self.count = len(done)
        return ""

    def limit(self) -> None:
        """Scenarios have limits of their own."""

    def sees(self, number: int) -> str:
        """Return what the scenarios show of a mutant."""
        return self.differs(number, 1)

    def others(self) -> CocotbBench:
        """Return the same with the scenarios that the next seed draws."""
        return CocotbBench(self.block, self.build, self.seed + 1)


def axi_block(name: str, top: Top, keep: tuple[str, ...]) -> CocotbBlock:
    """Return what lies around a core that is kept, in a top with AXI ports; its bench is that of the tops.

    It counts as far as a bench can (``FEW_BITS``).
    """

    def run(rtl: runner.CocotbBuild, seed: int, **how: Any) -> list[str]:
        return [
            line
            for kind in KINDS[top]
            for line in axi.run(rtl, top, seed, kind, count_bits=axi.FEW_BITS, **how)
        ]

    component = top_component(*CORES[top], count_bits=axi.FEW_BITS)
    return CocotbBlock(name, component, (CORES[top], axi.FEW_BITS), run, keep)
