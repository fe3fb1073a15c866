"""Proofs of both sides at once on circuits of a few gates: from which states they begin, what they use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutation.circuit import Circuit, answer, processor_seconds
from tests.mutation.equivalence import Machine, Rule, Rules, equivalent
from tests.mutation.mutants import PORT

# Bits: 2 resetn, 3 data, 5 the mutant's number; registers 10 (what is held back), 11 (the output), 12, which
# lets the first into the second, and which a reset clears for ever. The first two are not reset.
WIRES = {"aresetn": [2], "data": [3], PORT: [5], "o_tdata": [20], "o_tvalid": [21]}
HELD = [("AND", 14, (10, 12)), ("XOR", 16, (14, 3)), ("AND", 15, (12, 2)), ("NOT", 17, (12,))]
CHANGED = ("XOR", 13, (3, 5))


def machine(*gates: tuple[str, int, tuple[int, ...]], rule: int | None = 17) -> Machine:
    """Return the circuit whose register 10 takes bit 13; the invariant is bit ``rule``."""
    outputs = [("OR", 20, (11, 11)), ("OR", 21, (2, 2))]
    wires = {**WIRES, **({} if rule is None else {"invariant.0": [rule]})}
    circuit = Circuit(
        ("aresetn", "data", PORT), ("o_tdata", "o_tvalid"), wires, [*HELD, *gates, *outputs],
        [10, 11, 12], [13, 16, 15], [],
    )  # fmt: skip
    return Machine(circuit, Rules(invariants=() if rule is None else (Rule("nothing is let in", ""),)))


def test_both_sides_begin_alike():
    """In the first cycle anything is let in, the same of both, and nothing in any later one."""
    assert equivalent(machine(CHANGED), [1]) == {1}


def test_without_the_invariant_nothing_is_proved():
    assert equivalent(machine(CHANGED, rule=None), [1]) == set()


def test_what_a_reset_leaves_differently_is_not_proved():
    """The mutant lets in what it is not to in the first cycle, and the output shows it in the next one."""
    gates = [("OR", 13, (3, 3)), ("NOT", 6, (2,)), ("AND", 7, (6, 5)), ("XOR", 18, (16, 7))]
    built = machine(*gates)
    changed = replace(built, circuit=replace(built.circuit, following=[13, 18, 15]))
    assert equivalent(changed, [1, 0]) == {0}


def test_a_solver_without_an_answer_is_a_timeout():
    """The limit is one of processor time; 12 pigeons for 11 holes take a solver far longer."""
    holes, pigeons = range(11), range(12)
    place = {(p, h): p * len(holes) + h + 1 for p in pigeons for h in holes}
    clauses = [[place[p, h] for h in holes] for p in pigeons]
    clauses += [[-place[p, h], -place[q, h]] for h in holes for p in pigeons for q in range(p)]
    lines = [f"p cnf {len(place)} {len(clauses)}", *(f"{' '.join(map(str, c))} 0" for c in clauses)]
    before = processor_seconds()
    with pytest.raises(TimeoutError):
        answer("\n".join(lines), 1)
    assert 0.9 < processor_seconds() - before < 3
    with pytest.raises(TimeoutError):
        answer("\n".join(lines), 0)
    assert answer("p cnf 1 2\n1 0\n-1 0", 1) is None
    assert answer("p cnf 1 1\n-1 0", 1) == [-1]
