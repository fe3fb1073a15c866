"""Proofs of data paths on circuits of a few gates: what is forgotten, what is seen, and when."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.mutation.circuit import TRUE, Circuit, Frame, Graph
from tests.mutation.equivalence import Idle, Machine, NotInvariant, Rule, Rules
from tests.mutation.mutants import PORT
from tests.mutation.perturbed import beginnings, bottlenecks, forgotten, stopped, unnoticed, unread

# Bits: 2 resetn, 3 data, 4 valid, 5 the mutant's number; registers 10 (data) and 11 (valid), outputs of them.
WIRES = {"aresetn": [2], "data": [3], "valid": [4], PORT: [5], "o_tdata": [20], "o_tvalid": [21]}


def stage(*changed: tuple[str, int, tuple[int, ...]], masked: bool) -> Machine:
    """Return a register with its valid bit; bit 12 is what the data register takes.

    ``masked``: the output is zero where it is not valid, else whatever the register holds.
    """
    out = ("AND", 20, (10, 11)) if masked else ("OR", 20, (10, 10))
    gates = [*changed, ("AND", 13, (4, 2)), out, ("OR", 21, (11, 11))]
    inputs = ("aresetn", "data", "valid", PORT)
    circuit = Circuit(inputs, ("o_tdata", "o_tvalid"), WIRES, gates, [10, 11], [12, 13], [])
    return Machine(circuit, Rules())


INVALID = (("NOT", 6, (4,)), ("AND", 7, (5, 6)), ("XOR", 12, (3, 7)))
"""The mutant inverts data that is not valid."""


@pytest.mark.parametrize("masked", [True, False])
def test_a_change_of_what_is_not_valid_is_forgotten_a_cycle_later(masked):
    """A payload says nothing without its valid bit, masked or not."""
    machine = stage(*INVALID, masked=masked)
    proofs = [
        forgotten(machine, begin, 1, cycles, seconds=9)
        for cycles in (1, 2)
        for begin in beginnings(machine, 2)
    ]
    assert proofs == [False] * 3 + [True] * 3
    assert unnoticed(machine, [1]) == {1}


@pytest.mark.parametrize(
    "changed",
    [
        (("XOR", 12, (3, 5)),),
        (("AND", 7, (5, 4)), ("XOR", 12, (3, 7))),  # of valid data
        (("AND", 7, (5, 10)), ("OR", 12, (3, 7))),  # what was there once stays
    ],
)
def test_a_change_that_is_seen_is_not_proved(changed):
    assert unnoticed(stage(*changed, masked=True), [1]) == set()


def test_a_change_that_is_none_is_proved_at_once():
    machine = stage(("AND", 7, (5, 3)), ("OR", 12, (3, 7)), masked=True)
    assert all(forgotten(machine, begin, 1, 1, seconds=9) for begin in beginnings(machine, 1))


# Register 10 holds what came last, and the mutant inverts it while nothing comes; bit 4 says whether it is
# read in the next cycle.
HELD = (("NOT", 6, (4,)), ("AND", 7, (5, 6)), ("MUX", 9, (10, 3, 4)), ("XOR", 12, (9, 7)))
BYPASS = {"ram.bypass.data_q": [10], "ram.bypass.hit_q": [11]}


@pytest.mark.parametrize(
    ("wires", "idle", "proved"),
    [
        ({}, (), {0}),  # what the register holds differs for ever
        (BYPASS, (), {0, 1}),
        ({"kept": [10], "read": [11]}, (Idle("kept", "read"),), {0, 1}),
        ({"kept": [10], "read": [11]}, (Idle("kept", "nowhere"),), {0}),
    ],
)
def test_a_change_of_what_is_not_read_is_none(wires, idle, proved):
    machine = stage(*HELD, masked=False)
    machine = Machine(replace(machine.circuit, wires={**WIRES, **wires}), Rules(idle=idle))
    assert unnoticed(machine, [0, 1]) == proved


@pytest.mark.parametrize(
    ("gates", "idle", "proved"),
    [
        ([], (), {0}),
        ([], (Idle("kept", "read"),), {0, 1}),
        ([("OR", 13, (4, 4))], (Idle("kept", "read"),), {0}),  # read behind a reset
    ],
)
def test_what_is_idle_behind_a_reset_needs_none(gates, idle, proved):
    """The mutant does not reset what is read while the register 11 is 1."""
    machine = stage(("OR", 6, (2, 5)), ("AND", 12, (3, 6)), *gates, masked=False)
    outs = {gate[1] for gate in gates}
    kept = [one for one in machine.circuit.gates if one in gates or one[1] not in outs]
    circuit = replace(machine.circuit, gates=kept, wires={**WIRES, "kept": [10], "read": [11]})
    assert unnoticed(Machine(circuit, Rules(idle=idle)), [0, 1]) == proved


@pytest.mark.parametrize(
    "reader",
    [
        ("o_seen", ("OR", 22, (10, 10))),  # an output that says something always
        ("", ("OR", 13, (10, 4))),  # what is idle says whether it is
    ],
)
def test_what_is_read_is_not_idle(reader):
    name, gate = reader
    machine = stage(*HELD, gate, masked=False)
    circuit = machine.circuit
    gates = [one for one in circuit.gates if one is gate or one[1] != gate[1]]
    wires = {**WIRES, **BYPASS, **({name: [gate[1]]} if name else {})}
    outputs = (*circuit.outputs, *([name] if name else []))
    machine = Machine(replace(circuit, gates=gates, wires=wires, outputs=outputs), Rules())
    assert unread(machine, 1, seconds=9) == []
    assert unnoticed(machine, [1]) == set()


def test_a_change_is_stopped_in_the_cases_in_which_no_register_takes_it():
    """The mutant inverts what comes while the register 11 is 0."""
    machine = stage(("NOT", 6, (11,)), ("AND", 7, (5, 6)), ("XOR", 12, (3, 7)), masked=True)
    begin = next(iter(beginnings(machine, 0)))
    here = begin.frames[-1]
    inputs = {name: here.of(name) for name in machine.circuit.inputs} | {PORT: [1]}
    valid = here.values[11]
    assert [stopped(begin.graph, here, inputs, [case]) for case in (valid, valid ^ 1)] == [True, False]
    # What never holds stops everything.
    assert stopped(begin.graph, here, inputs, [valid, valid ^ 1])


def test_history_tells_states_apart_that_never_come():
    """Registers 10 and 11 are equal from a reset on, which the proof has to see."""
    gates = [
        ("AND", 12, (3, 2)), ("AND", 13, (3, 2)), ("XOR", 7, (10, 11)), ("AND", 8, (7, 5)),
        ("XOR", 21, (10, 8)), ("OR", 20, (11, 11)),
    ]  # fmt: skip
    circuit = Circuit(
        ("aresetn", "data", PORT),
        ("o_tdata", "o_tvalid"),
        {name: bits for name, bits in WIRES.items() if name != "valid"},
        gates,
        [10, 11],
        [12, 13],
        [],
    )
    machine = Machine(circuit, Rules())
    first, *_, later = beginnings(machine, 1)
    assert forgotten(machine, first, 1, 1, seconds=9)  # reset
    assert forgotten(machine, later, 1, 1, seconds=9)
    *_, at_once = beginnings(machine, 0)
    assert not forgotten(machine, at_once, 1, 1, seconds=9)


def test_a_register_that_reset_gives_another_value_is_seen():
    """Valid after a reset, of the mutant alone: no cycle outside reset shows it by itself."""
    gates = [("OR", 12, (3, 3)), ("NOT", 6, (2,)), ("AND", 7, (6, 5)), ("AND", 8, (4, 2)), ("OR", 13, (8, 7))]
    gates += [("AND", 20, (10, 11)), ("OR", 21, (11, 11))]
    inputs = ("aresetn", "data", "valid", PORT)
    circuit = Circuit(inputs, ("o_tdata", "o_tvalid"), WIRES, gates, [10, 11], [12, 13], [])
    assert unnoticed(Machine(circuit, Rules()), [1, 0]) == {0}


def test_an_invariant_is_used_once_it_is_proved():
    """Valid data is odd where only odd data comes in: a mutant that counts on it is proved."""
    gates = [
        ("AND", 16, (4, 3)),
        ("AND", 13, (16, 2)),
        ("OR", 12, (3, 3)),
        ("NOT", 8, (11,)),
        ("OR", 9, (10, 8)),
    ]
    gates += [("NOT", 14, (9,)), ("AND", 15, (14, 5)), ("XOR", 20, (10, 15)), ("OR", 21, (11, 11))]
    wires = {**WIRES, "invariant.0": [9], "when.0": ["1"]}
    inputs = ("aresetn", "data", "valid", PORT)
    circuit = Circuit(inputs, ("o_tdata", "o_tvalid"), wires, gates, [10, 11], [12, 13], [])
    assert unnoticed(Machine(circuit, Rules(invariants=(Rule("valid data is odd", ""),))), [1]) == {1}
    wires["invariant.0"] = [10]
    with pytest.raises(NotInvariant, match=r"^not proved: all data is odd$"):
        unnoticed(Machine(circuit, Rules(invariants=(Rule("all data is odd", ""),))), [1])


def test_bottlenecks_are_what_every_difference_passes():
    """Of bits in a chain each is one; of two ways that part and meet again the ends alone are."""
    gates = [
        ("XOR", 12, (3, 5)),  # the change
        ("AND", 13, (12, 4)),
        ("AND", 14, (13, 10)),
        ("OR", 15, (13, 10)),
        ("XOR", 16, (14, 15)),
        ("OR", 17, (16, 2)),
        ("OR", 20, (10, 10)), ("OR", 21, (11, 11)),
    ]  # fmt: skip
    inputs = ("aresetn", "data", "valid", PORT)
    circuit = Circuit(inputs, ("o_tdata", "o_tvalid"), WIRES, gates, [10, 11], [17, 2], [])
    assert bottlenecks(*both_frames(circuit)) == [12, 13, 16, 17]
    seen = Circuit(inputs, ("o_tdata", "o_tvalid"), {**WIRES, "o_tdata": [13]}, gates, [10, 11], [17, 2], [])
    assert bottlenecks(*both_frames(seen)) == [12, 13]


def both_frames(circuit: Circuit) -> tuple[Frame, Frame]:
    graph = Graph()
    registers = [graph.free() for _ in circuit.registers]
    inputs = circuit.free_inputs(graph, **{PORT: 0})
    return (
        circuit.frame(graph, registers, inputs, []),
        circuit.frame(graph, registers, {**inputs, PORT: [TRUE]}, []),
    )


def test_consequences_follow_in_both_directions():
    graph = Graph()
    a, b, c = graph.free(), graph.free(), graph.free()
    both, other = graph.both(a, b ^ 1), graph.differ(b, c)
    known = graph.consequences([both, other])
    assert {literal: known[literal >> 1] for literal in (a, b, c)} == {a: True, b: False, c: True}
    assert graph.consequences([graph.both(a, b) ^ 1, a])[b >> 1] is False
    assert graph.consequences([both, graph.either(b, graph.both(a ^ 1, c))]) is None


def random_machine(seed: int) -> Machine:
    """Return a few gates, of which the mutant changes one bit, between two inputs, registers and outputs."""
    rng = np.random.default_rng(seed)
    bits, gates = [3, 4, 10, 11, 12, 13], []

    def gate(kind: str, *pins: int) -> int:
        gates.append((kind, 30 + len(gates), pins))
        return gates[-1][1]

    place = int(rng.integers(8))
    for number in range(8):
        kind = str(rng.choice(["AND", "OR", "XOR", "MUX"]))
        bit = gate(kind, *(int(pin) for pin in rng.choice(bits, 3 if kind == "MUX" else 2, replace=False)))
        if number == place:
            changed = gate("AND", 5, int(rng.choice([pin for pin in bits if pin != bit])))
            bit = gate("XOR", bit, [5, changed][int(rng.integers(2))])
        bits.append(bit)
    following = [int(bit) for bit in rng.choice(bits, 4)]
    with_reset = [gate("AND", bit, 2) if n < 2 else bit for n, bit in enumerate(following)]
    for out, shown in zip((20, 21), rng.choice(bits[-4:], 2), strict=True):
        gates.append(("OR", out, (int(shown), int(shown))))
    inputs, outputs = ("aresetn", "data", "valid", PORT), ("o_tdata", "o_tvalid")
    # Rules that say nothing, but of cases.
    cases = rng.choice(bits, 3).tolist()
    wires = WIRES | {f"when.{n}": [case] for n, case in enumerate(cases)}
    wires |= {f"invariant.{n}": ["1"] for n in range(len(cases))}
    rules = Rules(invariants=tuple(Rule("", "1", "x") for _ in cases))
    return Machine(Circuit(inputs, outputs, wires, gates, [10, 11, 12, 13], with_reset, []), rules)


def truly_equivalent(machine: Machine) -> bool:
    """Return whether no run tells the mutant from the original, by a walk over all pairs of states."""

    def cycle(state, data, valid, number):
        inputs = {"aresetn": [1], "data": [data], "valid": [valid], PORT: [number]}
        frame = machine.circuit.frame(Graph(), state, inputs, [])
        told = frame.of("o_tvalid")
        return tuple(frame.following), (told, frame.of("o_tdata") if told == [1] else None)

    # A reset gives the first two registers their value.
    todo = [((0, 0, *rest), (0, 0, *rest)) for rest in itertools.product((0, 1), repeat=2)]
    met = set(todo)
    while todo:
        pair = todo.pop()
        for given in itertools.product((0, 1), repeat=2):
            (mine, shown), (others, said) = (cycle(state, *given, n) for n, state in enumerate(pair))
            if shown != said:
                return False
            if (mine, others) not in met:
                met.add((mine, others))
                todo.append((mine, others))
    return True


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 2000), marks=pytest.mark.long)])
def test_proofs_of_random_circuits_are_true(seeds):
    """What is proved is so by a walk over all states, too; most of what is so is proved."""
    verdicts = []
    for seed in seeds:
        machine = random_machine(seed)
        equivalent, proved = truly_equivalent(machine), unnoticed(machine, [1]) == {1}
        assert equivalent or not proved, f"seed {seed}"
        verdicts.append((equivalent, proved))
    assert verdicts.count((True, True)) > verdicts.count((True, False))
    assert (False, False) in verdicts


def test_a_place_that_the_change_goes_past_makes_false_proofs(monkeypatch):
    """The walk over all states would see bottlenecks that are none."""
    monkeypatch.setattr(
        "tests.mutation.perturbed.bottlenecks",
        lambda here, there: [
            out for _, out, _ in here.circuit.gates if here.values[out] != there.values[out]
        ],
    )
    machines = [random_machine(seed) for seed in range(100)]
    assert any(unnoticed(machine, [1]) == {1} and not truly_equivalent(machine) for machine in machines)


def test_a_case_in_which_the_change_gets_out_makes_false_proofs(monkeypatch):
    """The walk over all states would see cases that are left out without a reason."""
    monkeypatch.setattr("tests.mutation.perturbed.stopped", lambda *_: True)
    machines = [random_machine(seed) for seed in range(100)]
    assert any(unnoticed(machine, [1]) == {1} and not truly_equivalent(machine) for machine in machines)


def test_a_cycle_beside_another_is_that_cycle():
    """With other registers and inputs what reads none of them stays; all else is evaluated."""
    for seed in range(20):
        circuit, graph = random_machine(seed).circuit, Graph()
        registers = [graph.free() for _ in circuit.registers]
        frame = circuit.frame(graph, registers, circuit.free_inputs(graph, **{PORT: 0}), [])
        registers[seed % 4] = graph.free()
        inputs = {name: frame.of(name) for name in circuit.inputs} | {PORT: [TRUE]}
        whole = circuit.frame(graph, registers, inputs, [])
        assert circuit.beside(graph, frame, registers, {PORT: [TRUE]}).values == whole.values
