"""Proofs that a mutant is the original: the same outputs for ever, for all inputs that the block is owed.

Time begins in any state, the same one of both, with a cycle of reset. What the original's state always
fulfils (``invariants/<block>.toml``) is proved by induction before it is used. Then both run side by side:
the bits of registers that stay equal are found by taking away those that do not, until what is left follows
from itself (van Eijk, IEEE Trans. CAD 19(7), 2000); where outputs, as far as they say anything, follow from
it too, the mutant is equivalent. Nothing is simulated, and nothing is concluded where the time is over.
"""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.formal.model import YOSYS, run
from tests.mutation.circuit import FALSE, TRUE, Circuit, Frame, Graph, processor_seconds, with_wires
from tests.mutation.mutants import PORT, SECONDS, Mutants

RULES = Path(__file__).parent / "invariants"
RESET = "aresetn"
RESET_OF_BLOCK = re.compile(r".*\.rst")
"""Reset of a module that is kept: it counts while there is one."""
MUTANT_SECONDS = 30
"""For the proof of one mutant."""
BITS = """
read_verilog wired.v
hierarchy -auto-top
proc
opt_clean
memory_map
opt_clean
techmap
async2sync
opt_clean
dffunmap
simplemap
opt_clean
write_json bits.json
"""


PAYLOAD = re.compile(r"(.*_(?:t|ar|aw|w|r|b))(?!ready$)[a-z]+|(.*__)payload")
"""Members of a channel or stream, beside its ``valid``: they say something while that does."""


class NotInvariant(RuntimeError):
    """A declared invariant does not follow."""


@dataclass(frozen=True)
class Rule:
    """What holds in every cycle outside reset: ``holds``, or only ``when`` something else does.

    Proofs of data paths look at ``when`` as a case, too (:func:`tests.mutation.perturbed.forgotten`). Both
    are Verilog expressions, in which ``core.picker.closed`` is a wire of the flat netlist.
    """

    says: str
    holds: str
    when: str = "1"

    @property
    def verilog(self) -> str:
        """The whole as one expression."""
        return f"!({self.when}) || ({self.holds})"


@dataclass(frozen=True)
class Idle:
    """Registers, by a pattern of their names, that nobody reads ``unless`` another one is 1.

    ``unless`` may use groups of the pattern. It is proved before it is used, of each mutant
    (:mod:`tests.mutation.perturbed`).
    """

    registers: str
    unless: str


@dataclass(frozen=True)
class Rules:
    """Of a block: what it is owed by what is around it, and what its state fulfils then.

    The invariants hold together: each follows from all of them in the cycle before.
    """

    owed: tuple[Rule, ...] = ()
    invariants: tuple[Rule, ...] = ()
    idle: tuple[Idle, ...] = ()

    @staticmethod
    def read(name: str, folder: Path = RULES) -> Rules:
        """Read a block's file; a block without one has no rules."""
        path = folder / f"{name}.toml"
        if not path.is_file():
            return Rules()
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        kinds = {"owed": Rule, "invariants": Rule, "idle": Idle}
        unknown = sorted(set(table) - set(kinds))
        if unknown:
            raise ValueError(f"{path.name}: unknown keys {', '.join(unknown)}")
        return Rules(**{key: tuple(kind(**row) for row in table.get(key, ())) for key, kind in kinds.items()})


@dataclass(frozen=True)
class Machine:
    """A block's mutants as bits, with its rules: wires ``owed.0``, ``invariant.0``, ``when.0``, ..."""

    circuit: Circuit
    rules: Rules

    @staticmethod
    def of(mutants: Mutants, rules: Rules) -> Machine:
        """Return the machine of ``eb_<name>`` with its mutants."""
        wires = {f"owed.{n}": rule.verilog for n, rule in enumerate(rules.owed)}
        wires |= {f"invariant.{n}": rule.verilog for n, rule in enumerate(rules.invariants)}
        wires |= {f"when.{n}": rule.when for n, rule in enumerate(rules.invariants)}
        with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
            folder = Path(place)
            # A rule that names a wire that there is not would hold of anything.
            text = with_wires(mutants.verilog, wires)
            (folder / "wired.v").write_text(f"`default_nettype none\n{text}")
            (folder / "bits.ys").write_text(BITS)
            run(YOSYS, ["-q", "-s", "bits.ys"], folder)
            circuit = Circuit.read(folder / "bits.json")
        return Machine(circuit, rules)

    def cycles(self, graph: Graph, count: int, *, reset: bool, mutant: int = 0) -> list[Frame]:
        """Return so many cycles one after the other, from any state; ``reset``: the first one is of reset."""
        registers = [graph.free() for _ in self.circuit.registers]
        frames = []
        for n in range(count):
            fixed = {PORT: mutant, **({RESET: 0} if reset and n == 0 else {})}
            frames.append(self.cycle(graph, registers, self.circuit.free_inputs(graph, **fixed)))
            registers = frames[-1].following
        return frames

    def cycle(self, graph: Graph, registers: Sequence[int], inputs: dict[str, list[int]]) -> Frame:
        """Return one cycle."""
        return self.circuit.frame(graph, registers, inputs, [graph.free() for _ in self.circuit.undefined])

    def rule(self, graph: Graph, frame: Frame, kind: str, n: int) -> int:
        """Return that a rule holds in a cycle, or that this one is of reset."""
        (running,) = frame.of(RESET)
        return graph.either(running ^ 1, frame.of(f"{kind}.{n}")[0])

    def fulfilled(self, graph: Graph, frames: Iterable[Frame], *, invariants: bool = True) -> list[int]:
        """Return the rules of these cycles as constraints."""
        kinds = {"owed": self.rules.owed, "invariant": self.rules.invariants if invariants else ()}
        return [
            self.rule(graph, frame, kind, n)
            for frame in frames
            for kind, rules in kinds.items()
            for n in range(len(rules))
        ]

    def cases(self, frame: Frame) -> list[int]:
        """Return when the invariants say something, in a cycle, where that is not always so or never."""
        found = [frame.of(f"when.{n}")[0] for n in range(len(self.rules.invariants))]
        return [case for case in found if case not in (FALSE, TRUE)]

    def prove_invariants(self, *, seconds: float = SECONDS) -> None:
        """Prove all invariants, of the original; raise :class:`NotInvariant` with those that do not follow.

        In the cycle after one of reset nothing else is known, so that this step is the beginning, too.
        """
        graph = Graph()
        before, now = self.cycles(graph, 2, reset=False)
        known = self.fulfilled(graph, [before]) + self.fulfilled(graph, [now], invariants=False)
        broken = []
        for n, rule in enumerate(self.rules.invariants):
            fails = self.rule(graph, now, "invariant", n) ^ 1
            if graph.satisfied(known, [fails], seconds=seconds):
                broken.append(rule.says)
        if broken:
            raise NotInvariant(f"not proved: {'; '.join(broken)}")


def told_apart(graph: Graph, here: Frame, other: Frame, payload: re.Pattern[str]) -> Iterator[int]:
    """Yield for output bits that they differ, where they say something: outside reset, a block's reset in it.

    ``payload`` is what names of outputs look like that say something only while there is a ``valid`` of the
    same beginning, their group, and that is 1. Bits that are the same in any case are left out.
    """
    outputs = here.circuit.outputs
    (running,) = here.of(RESET)
    for name in outputs:
        found = payload.fullmatch(name)
        valid = f"{found[found.lastindex]}valid" if found else ""
        matters = TRUE if RESET_OF_BLOCK.fullmatch(name) else running
        if valid in outputs and name != valid:
            # Where only one of them is valid that differs itself.
            matters = graph.both(running, here.of(valid)[0])
        for mine, others in zip(here.of(name), other.of(name), strict=True):
            if (literal := graph.both(matters, graph.differ(mine, others))) != FALSE:
                yield literal


@dataclass
class Sides:
    """Original and mutant side by side, of which the bits ``equal`` are assumed to be so."""

    machine: Machine
    mutant: int
    equal: set[int]

    def violated(self, *, first: bool, seconds: float) -> tuple[set[int], bool] | None:
        """Return bits that differ after a cycle, and whether outputs do in it; None: nothing does.

        ``first``: the cycle is that in which time begins, of reset; all registers are the same of both in it.
        Else it is any cycle behind another one.
        """
        machine, graph = self.machine, Graph()
        frames = machine.cycles(graph, 1 if first else 2, reset=first)
        here = frames[-1]
        registers = [
            here.values[bit] if first or n in self.equal else graph.free()
            for n, bit in enumerate(machine.circuit.registers)
        ]
        inputs = {name: here.of(name) for name in machine.circuit.inputs}
        inputs[PORT] = [self.mutant >> n & 1 for n in range(len(inputs[PORT]))]
        undefined = [here.values[bit] for bit in machine.circuit.undefined]
        other = machine.circuit.frame(graph, registers, inputs, undefined)
        known = machine.fulfilled(graph, frames)
        bits = sorted(self.equal)
        mine, others = here.following, other.following
        differ = [graph.differ(mine[n], others[n]) for n in bits]
        outputs = list(told_apart(graph, here, other, PAYLOAD))
        found = graph.satisfied(known, [*outputs, *differ], seconds=seconds)
        if found is None:
            return None
        split = len(outputs)
        return {n for n, shown in zip(bits, found[split:], strict=True) if shown}, any(found[:split])


def equivalent(machine: Machine, numbers: Sequence[int], *, seconds: float = SECONDS) -> set[int]:
    """Return which of these mutants are proved equivalent to the original, as far as so many seconds go.

    Raises
    ------
    NotInvariant
        Where the block's rules name an invariant that is none.
    """
    if not numbers:
        return set()
    until = processor_seconds() + seconds
    machine.prove_invariants(seconds=seconds)
    proved = set()
    for number in numbers:
        if processor_seconds() >= until:
            break
        sides = Sides(machine, number, set(range(len(machine.circuit.registers))))
        try:
            if _stay_equal(sides, min(until, processor_seconds() + MUTANT_SECONDS)):
                proved.add(number)
        except TimeoutError:
            continue
    return proved


def _stay_equal(sides: Sides, until: float) -> bool:
    """Take away bits until the others follow from themselves; return whether outputs do, too."""
    for first in (True, False):
        while (found := sides.violated(first=first, seconds=until - processor_seconds())) is not None:
            bits, outputs = found
            if outputs:
                return False
            sides.equal -= bits
    return True
