"""Proofs for data paths: a mutant whose change, made once, is forgotten before anybody sees it.

Let M(t) be the block that is changed from cycle t on. M(t) and M(t + 1) differ in cycle t alone, which the
original's state of that time enters; if some cycles later their states are the same again, whatever comes in,
and no output told them apart before, both are the same for ever. Then M(0), the mutant, is M(t) for every t,
which is the original up to t. So one change in one cycle is followed, from any state that some cycles of the
original lead to: those after a reset, and any others. What is left of it in registers that nothing depends on
then, which is proved of each mutant, is no difference. What does not see the change is the same logic in both
and is made once (:mod:`tests.mutation.circuit`), multipliers too: a proof is of the changed cone alone. Only
cycles count in which the change is passed on at all; what follows from that is constant in them, and what
it makes not valid, or not chosen, falls away before a solver is asked.

A reset gives some registers their values, which the mutant's gives too, in any state; the others hold
anything then, in both. Time begins anew with a reset: the mutant is the original with the same contents of
those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.mutation.circuit import FALSE, TRUE, Frame, Graph, processor_seconds
from tests.mutation.equivalence import RESET, RESET_OF_BLOCK, Idle, Machine, NotInvariant, told_apart
from tests.mutation.mutants import PORT, SECONDS

PAYLOAD = re.compile(r"(.*_t)[a-z]+|(.*__)payload")
"""Members of a stream, also of a module that is kept; those of other channels say something always, as far
as these proofs go."""
ANSWER_SECONDS = 5.0
"""For one question to the solver."""
LADDER = (
    (1, 1, ANSWER_SECONDS),
    (2, 4, ANSWER_SECONDS),
    (6, 2, ANSWER_SECONDS),
    (1, 10, 6 * ANSWER_SECONDS),
)
"""Cycles of the original before the change, and from it on until it must be forgotten, and how long one
question to the solver may take: tried in turn."""
KEPT = (Idle(r"(.*\.bypass\.)data_q", r"\1hit_q"), Idle(r"(.*\.)spare", r"\1spare_valid"))
"""What a RAM and a stream register keep in case that it is needed, in any block."""


@dataclass(frozen=True)
class Group:
    """Registers that are idle while none of some others is 1, by their places among all."""

    idle: frozenset[int]
    unless: frozenset[int]


@dataclass
class Beginning:
    """Cycles of the original, in turn, with what is known of them; the last is that of the change."""

    graph: Graph
    frames: Sequence[Frame]
    known: Sequence[int]


def beginnings(machine: Machine, history: int) -> Iterator[Beginning]:
    """Yield those after a reset, up to ``history`` cycles, and that of any ``history`` + 1 cycles.

    After a reset the registers that it gives no value hold anything; else the first state is any one that
    fulfils the block's invariants. No cycle is of reset: the last one was before.
    """
    values = reset_values(machine)
    graph = Graph()
    registers = [graph.free() if value is None else value for value in values]
    frames: list[Frame] = []
    for _ in range(history):
        frames.append(_running(machine, graph, registers, 0))
        registers = frames[-1].following
        yield Beginning(graph, list(frames), machine.fulfilled(graph, frames))
    graph = Graph()
    registers = [graph.free() for _ in machine.circuit.registers]
    frames = []
    for _ in range(history + 1):
        frames.append(_running(machine, graph, registers, 0))
        registers = frames[-1].following
    yield Beginning(graph, frames, machine.fulfilled(graph, frames))


def _running(machine: Machine, graph: Graph, registers: Sequence[int], number: int) -> Frame:
    """Return a cycle outside reset."""
    return machine.cycle(graph, registers, machine.circuit.free_inputs(graph, **{PORT: number, RESET: 1}))


def reset_values(machine: Machine, number: int = 0) -> list[int | None]:
    """Return what a cycle of reset gives each register in any state, None where it depends on that."""
    [frame] = machine.cycles(Graph(), 1, reset=True, mutant=number)
    return [literal if literal in (FALSE, TRUE) else None for literal in frame.following]


def resets_blocks(machine: Machine, number: int) -> bool:
    """Return whether a mutant resets all modules that are kept, where the block is reset."""
    here, there = (machine.cycles(Graph(), 1, reset=True, mutant=n)[0] for n in (0, number))
    names = [name for name in machine.circuit.outputs if RESET_OF_BLOCK.fullmatch(name)]
    return all(there.of(name) == here.of(name) == [TRUE] for name in names)


def resets_alike(machine: Machine, number: int, idle: Sequence[Group]) -> bool:
    """Return whether a reset gives a mutant's registers what it gives the original's.

    Not those that are idle then: nothing of the mutant depends on them (:func:`unread`).
    """
    mine, others = reset_values(machine), reset_values(machine, number)
    unread_then = {n for group in idle if all(others[m] == FALSE for m in group.unless) for n in group.idle}
    return all(
        value in (None, other) or n in unread_then
        for n, (value, other) in enumerate(zip(mine, others, strict=True))
    )


def prove_after_reset(machine: Machine, *, seconds: float) -> None:
    """Prove that the invariants hold after a reset, whatever the registers hold that it gives no value.

    Raises
    ------
    NotInvariant
        With those that do not.
    """
    graph = Graph()
    registers = [graph.free() if value is None else value for value in reset_values(machine)]
    frame = machine.cycle(graph, registers, machine.circuit.free_inputs(graph, **{PORT: 0}))
    owed = machine.fulfilled(graph, [frame], invariants=False)
    broken = [
        rule.says
        for n, rule in enumerate(machine.rules.invariants)
        if graph.satisfied(owed, [machine.rule(graph, frame, "invariant", n) ^ 1], seconds=seconds)
    ]
    if broken:
        raise NotInvariant(f"not proved after a reset: {'; '.join(broken)}")


def groups_of(machine: Machine) -> list[Group]:
    """Return the registers that may be idle, by what says that they are not, as the original names them."""
    graph = Graph()
    [frame] = machine.cycles(graph, 1, reset=False)
    place = {frame.values[bit]: n for n, bit in enumerate(machine.circuit.registers)}
    found: dict[frozenset[int], set[int]] = {}
    for rule in (*KEPT, *machine.rules.idle):
        for name in machine.circuit.wires:
            match = re.fullmatch(rule.registers, name)
            other = match.expand(rule.unless) if match else ""
            unless = frame.of(other) if other in machine.circuit.wires else []
            if unless and place.keys() >= set(unless):
                idle = found.setdefault(frozenset(place[literal] for literal in unless), set())
                idle |= {place[literal] for literal in frame.of(name) if literal in place}
    return [Group(frozenset(idle), unless) for unless, idle in found.items()]


def unread(machine: Machine, number: int, *, seconds: float) -> list[Group]:
    """Return the groups of registers that, while they are idle, nothing of a mutant depends on.

    Two states differ in one of the groups, which is idle: what they show in a cycle is the same, of reset or
    not, and in the next states nothing differs but what is idle then. States that differ in several groups
    have others between them, each of which differs from the next in one.
    """
    circuit = machine.circuit
    groups = groups_of(machine)
    settled = False
    while not settled:
        settled = True
        for group in list(groups):
            graph = Graph()
            mine = [FALSE if n in group.unless else graph.free() for n in range(len(circuit.registers))]
            others = [graph.free() if n in group.idle else literal for n, literal in enumerate(mine)]
            here = machine.cycle(graph, mine, circuit.free_inputs(graph, **{PORT: number}))
            there = circuit.beside(graph, here, others, {})
            shown = [
                *told_apart(graph, here, there, PAYLOAD),
                *unlike(graph, here.following, there.following, groups),
            ]
            try:
                holds = graph.satisfied([], shown, seconds=seconds) is None
            except TimeoutError:
                holds = False
            if not holds:
                groups.remove(group)
                settled = False
    return groups


def unlike(
    graph: Graph, mine: Sequence[int], others: Sequence[int], groups: Sequence[Group]
) -> Iterator[int]:
    """Yield that registers of two states differ and are not idle, in both."""
    used = [TRUE] * len(mine)
    for group in groups:
        needed = FALSE
        for n in group.unless:
            needed = graph.either(needed, graph.either(mine[n], others[n]))
        for n in group.idle:
            used[n] = graph.both(used[n], needed)
    for needed, one, other in zip(used, mine, others, strict=True):
        yield graph.both(needed, graph.differ(one, other))


def forgotten(
    machine: Machine,
    begin: Beginning,
    number: int,
    cycles: int,
    *,
    seconds: float,
    idle: Sequence[Group] = (),
) -> bool:
    """Return whether the mutant's change in the last cycle leaves no trace after ``cycles``, nor on outputs.

    ``idle``: what is left in registers that are idle is no trace (:func:`unread`).

    Raises
    ------
    TimeoutError
        Where ``seconds`` are too few for an answer.
    """
    circuit, graph, here = machine.circuit, begin.graph, begin.frames[-1]
    inputs = {name: here.of(name) for name in circuit.inputs}
    inputs[PORT] = [number >> n & 1 for n in range(len(inputs[PORT]))]
    there = circuit.beside(graph, here, [here.values[bit] for bit in circuit.registers], inputs)
    passed = [graph.differ(here.values[bit], there.values[bit]) for bit in bottlenecks(here, there)]
    known = [*begin.known, *passed]
    # In a case in which the change does not get out there is nothing to prove: the others count.
    known += [case ^ 1 for case in machine.cases(here) if stopped(graph, here, inputs, [*known, case])]
    settled = graph.consequences(known)
    if settled is None:
        return True

    def following(frame: Frame) -> list[int]:
        # What is settled where the change is passed on at all makes both sides the same logic early.
        return [_settled(bit, settled) for bit in frame.following]

    seen = list(told_apart(graph, here, there, PAYLOAD))
    mine, others = following(here), following(there)
    for _ in range(cycles - 1):
        if mine == others:
            break
        # Both are changed from here on. After a reset time would begin anew.
        here = _running(machine, graph, mine, number)
        there = circuit.beside(graph, here, others, {})
        seen += told_apart(graph, here, there, PAYLOAD)
        mine, others = following(here), following(there)
    left = unlike(graph, mine, others, idle)
    return graph.satisfied(known, [*seen, *left], seconds=seconds) is None


def stopped(graph: Graph, here: Frame, inputs: Mapping[str, Sequence[int]], known: Sequence[int]) -> bool:
    """Return whether a change of inputs does not get out of a cycle in which all of ``known`` holds.

    What follows from it for the registers is constant in both, and so is what they choose.
    """
    settled = graph.consequences(known)
    if settled is None:
        return True
    circuit = here.circuit
    registers = [_settled(here.values[bit], settled) for bit in circuit.registers]
    mine = circuit.beside(graph, here, registers, {})
    others = circuit.beside(graph, mine, registers, inputs)
    shown = [bit for name in circuit.outputs for bit in circuit.wires[name]]
    return all(mine.values[bit] == others.values[bit] for bit in (*circuit.following, *shown))


def _settled(literal: int, settled: Mapping[int, bool]) -> int:
    """Return a literal, or the constant that it is where these nodes have these values."""
    return int(settled[literal >> 1] ^ (literal & 1)) if literal >> 1 in settled else literal


def bottlenecks(here: Frame, there: Frame) -> list[int | str]:
    """Return bits that a difference of two frames of the same registers and inputs has to pass, in order.

    The frames differ in inputs that are constant in both: the number of the mutant. Where one of these bits
    is the same in both frames, all registers and outputs are.
    """
    circuit = here.circuit

    def differs(bit: int | str) -> bool:
        return here.values[bit] != there.values[bit]

    def fixed(bit: int | str) -> bool:
        return {here.values[bit], there.values[bit]} <= {FALSE, TRUE}

    sinks = {*circuit.following, *(bit for name in circuit.outputs for bit in circuit.wires[name])}
    if any(differs(bit) and fixed(bit) for bit in sinks):
        return []
    changed = [
        (out, [pin for pin in pins if differs(pin)])
        for _, out, pins in circuit.gates
        if differs(out) and not fixed(out)
    ]
    readers: dict[int | str, int] = {}
    for _, pins in changed:
        for pin in pins:
            readers[pin] = readers.get(pin, 0) + 1
    # Those that read the number itself are where the change begins.
    begins = sum(any(map(fixed, pins)) for _, pins in changed)
    found = []
    # Bits that something is still to read: a single one is what all that comes later hangs on.
    waiting: set[int | str] = set()
    for out, pins in changed:
        begins -= any(map(fixed, pins))
        for pin in pins:
            readers[pin] -= 1
            if not readers[pin] and pin not in sinks:
                waiting.discard(pin)
        if readers.get(out) or out in sinks:
            waiting.add(out)
        if not begins and len(waiting) == 1:
            found += waiting - set(found[-1:])
    return found


def unnoticed(machine: Machine, numbers: Sequence[int], *, seconds: float = SECONDS) -> set[int]:
    """Return which of these mutants are proved to be the original, as far as so many seconds go.

    Raises
    ------
    NotInvariant
        Where the block's rules name an invariant that is none.
    """
    until = processor_seconds() + seconds
    machine.prove_invariants(seconds=seconds)
    prove_after_reset(machine, seconds=seconds)
    numbers = [number for number in numbers if resets_blocks(machine, number)]
    idle = {number: unread(machine, number, seconds=ANSWER_SECONDS) for number in numbers}
    numbers = [number for number in numbers if resets_alike(machine, number, idle[number])]
    proved: set[int] = set()
    for history, cycles, longest in LADDER:
        candidates = [number for number in numbers if number not in proved]
        for begin in beginnings(machine, history):
            kept = []
            for number in candidates:
                left = min(longest, until - processor_seconds())
                if left <= 0:
                    return proved
                try:
                    if forgotten(machine, begin, number, cycles, seconds=left, idle=idle[number]):
                        kept.append(number)
                except TimeoutError:
                    continue
            candidates = kept
        proved |= set(candidates)
    return proved
