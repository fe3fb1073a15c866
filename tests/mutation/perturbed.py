"""Proofs for data paths: a mutant whose change, made once, is forgotten before anybody sees it.

Let M(t) be the block that is changed from cycle t on. M(t) and M(t + 1) differ in cycle t alone, which the
original's state of that time enters; if some cycles later their states are the same again, whatever comes in,
and no output told them apart before, both are the same for ever. Then M(0), the mutant, is M(t) for every t,
which is the original up to t. So one change in one cycle is followed, from any state that some cycles of the
original lead to: those of a reset, and any others. What does not see the change is the same logic in both and
is made once (:mod:`tests.mutation.circuit`), multipliers too: what is proved is of the changed cone alone.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.formal.model import YOSYS, run
from tests.mutation.circuit import FALSE, Circuit, Frame, Graph
from tests.mutation.mutants import PORT, SECONDS, Mutants

RESET = "aresetn"
PAYLOAD = re.compile(r"(.*_t)[a-z]+")
"""Members of a stream: they say something while ``valid`` does."""
LADDER = ((1, 1), (2, 4), (6, 2))
"""Cycles of the original before the change, and from it on until it must be forgotten: tried in turn."""
ANSWER_SECONDS = 5.0
"""For one question to the solver."""
BITS = """
read_verilog mutated.v
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
setundef -undriven -undef
opt_clean
write_json bits.json
"""


def bits_of(mutants: Mutants) -> Circuit:
    """Return a block with its mutants as gates and registers; memories are registers, too."""
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        folder = Path(place)
        (folder / "mutated.v").write_text((mutants.directory / f"eb_{mutants.name}.v").read_text())
        (folder / "bits.ys").write_text(BITS)
        run(YOSYS, ["-q", "-s", "bits.ys"], folder)
        return Circuit.read(folder / "bits.json")


@dataclass
class Beginning:
    """Cycles of the original, one after the other; the last is that of the change."""

    graph: Graph
    frames: Sequence[Frame]


def beginnings(circuit: Circuit, history: int) -> Iterator[Beginning]:
    """Yield those that begin with a reset, up to ``history`` cycles, and that of any ``history`` + 1 cycles.

    In either the first state is any one.
    """
    for count, reset in ((history, True), (history + 1, False)):
        graph, frames = Graph(), list[Frame]()
        registers = [graph.free() for _ in circuit.registers]
        for n in range(count):
            fixed = {PORT: 0, **({RESET: 0} if reset and n == 0 else {})}
            frames.append(_cycle(graph, circuit, registers, circuit.free_inputs(graph, **fixed)))
            registers = frames[-1].following
        for n in range(1, count + 1) if reset else (count,):
            yield Beginning(graph, frames[:n])


def _cycle(graph: Graph, circuit: Circuit, registers: Sequence[int], inputs: dict[str, list[int]]) -> Frame:
    return circuit.frame(graph, registers, inputs, [graph.free() for _ in range(circuit.undefined)])


def forgotten(circuit: Circuit, begin: Beginning, number: int, cycles: int, *, seconds: float) -> bool:
    """Return whether the mutant's change in the last cycle leaves no trace after ``cycles``, nor on outputs.

    Raises
    ------
    TimeoutError
        Where ``seconds`` are too few for an answer.
    """
    graph, here = begin.graph, begin.frames[-1]
    inputs = {name: here.of(name) for name in circuit.inputs}
    inputs[PORT] = [number >> n & 1 for n in range(len(inputs[PORT]))]
    undefined = [here.values[f"x{n}"] for n in range(circuit.undefined)]
    there = circuit.frame(graph, [here.values[bit] for bit in circuit.registers], inputs, undefined)
    seen = list(_seen(graph, here, there))
    for _ in range(cycles - 1):
        mine, others = here.following, there.following
        if mine == others:
            break
        # Both are changed from here on.
        inputs = circuit.free_inputs(graph, **{PORT: number})
        here = _cycle(graph, circuit, mine, inputs)
        undefined = [here.values[f"x{n}"] for n in range(circuit.undefined)]
        there = circuit.frame(graph, others, inputs, undefined)
        seen += _seen(graph, here, there)
    left = [graph.differ(*both) for both in zip(here.following, there.following, strict=True)]
    return graph.satisfied([], [*seen, *left], seconds=seconds) is None


def _seen(graph: Graph, here: Frame, there: Frame) -> Iterator[int]:
    """Yield for each output bit that it differs, outside reset, where it says something."""
    outputs = here.circuit.outputs
    (running,) = here.of(RESET)
    for name in outputs:
        found = PAYLOAD.fullmatch(name)
        valid = f"{found[1]}valid" if found else ""
        matters = running
        if valid in outputs and name != valid:
            # Where only one of them is valid that differs itself.
            matters = graph.both(running, here.of(valid)[0])
        for mine, others in zip(here.of(name), there.of(name), strict=True):
            if (literal := graph.both(matters, graph.differ(mine, others))) != FALSE:
                yield literal


def unnoticed(circuit: Circuit, numbers: Sequence[int], *, seconds: float = SECONDS) -> set[int]:
    """Return which of these mutants are proved to be the original, as far as so many seconds go."""
    until = time.monotonic() + seconds
    proved: set[int] = set()
    for history, cycles in LADDER:
        candidates = [number for number in numbers if number not in proved]
        for begin in beginnings(circuit, history):
            kept = []
            for number in candidates:
                left = min(ANSWER_SECONDS, until - time.monotonic())
                if left <= 0:
                    return proved
                try:
                    if forgotten(circuit, begin, number, cycles, seconds=left):
                        kept.append(number)
                except TimeoutError:
                    continue
            candidates = kept
        proved |= set(candidates)
    return proved
