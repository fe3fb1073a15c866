"""Proofs of data paths on circuits of a few gates: what is forgotten, what is seen, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutation.circuit import Circuit
from tests.mutation.equivalence import Idle, Machine, NotInvariant, Rule, Rules
from tests.mutation.mutants import PORT
from tests.mutation.perturbed import beginnings, forgotten, unnoticed, unread

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
    wires = {**WIRES, "invariant.0": [9]}
    inputs = ("aresetn", "data", "valid", PORT)
    circuit = Circuit(inputs, ("o_tdata", "o_tvalid"), wires, gates, [10, 11], [12, 13], [])
    assert unnoticed(Machine(circuit, Rules(invariants=(Rule("valid data is odd", ""),))), [1]) == {1}
    wires["invariant.0"] = [10]
    with pytest.raises(NotInvariant, match=r"^not proved: all data is odd$"):
        unnoticed(Machine(circuit, Rules(invariants=(Rule("all data is odd", ""),))), [1])
