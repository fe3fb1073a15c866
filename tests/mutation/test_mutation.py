"""Mutants: what counts as detected, what as equivalent; a whole block in `make mutate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.export import export
from rtl.fifo import StreamFifo
from rtl.stream import connect_stream
from sim.claims.benches import GOAL
from sim.rtlsim import RunSpec, Sink, Source
from tests.bench.scenarios import Expected, Scenario
from tests.mutation.equivalence import Machine, NotInvariant, Rule, Rules, equivalent
from tests.mutation.mutants import CLOCKS, SECONDS, mutants_of
from tests.mutation.page import explanation, page, survivors_of, unexplained
from tests.mutation.perturbed import unnoticed
from tests.mutation.run import Block, NetlistRun, Outcome, run_netlist


def test_score_leaves_out_what_is_equivalent():
    outcome = Outcome("x", 10, 1, {3: "a", 7: "b"}, frozenset({3}), 5, 1.0)
    assert outcome.left == {7: "b"}
    assert outcome.score == 8 / 9


def test_ports_of_clocks_are_known():
    assert CLOCKS.search("mutate -mode inv -module m -cell $procdff$1 -port CLK -portbit 0")
    assert CLOCKS.search("mutate -mode inv -module m -cell core.queue -port clk -portbit 0")
    assert not CLOCKS.search("mutate -mode inv -module m -cell $and$1 -port A -portbit 0")


class Behind(wiring.Component):
    """A queue, and a register of what goes in."""

    def __init__(self) -> None:
        beats = stream.Signature(4)
        super().__init__({"i": In(beats), "o": Out(beats), "last": Out(4)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = StreamFifo(4, 4)
        connect_stream(m, wiring.flipped(self.i), queue.i)
        connect_stream(m, queue.o, wiring.flipped(self.o))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += self.last.eq(self.i.payload)
        return m


@pytest.mark.slow
def test_a_block_that_is_kept_has_no_mutants_and_its_ports_are_those_of_the_proof(tmp_path):
    """What goes into it is an output, and what comes out of it may be anything, the same in both."""
    export(Behind(), "behind", tmp_path / "verilog")
    whole = mutants_of(tmp_path / "verilog", "behind", count=60, seed=1, root=tmp_path)
    around = mutants_of(tmp_path / "verilog", "behind", count=60, seed=1, keep=("queue",), root=tmp_path)
    assert any("\\queue." in text for text in whole.texts)
    assert not any("\\queue." in text for text in around.texts)
    assert {text.split("-module ")[1].split()[0] for text in around.texts} == {"eb_behind"}
    machine = Machine.of(around, Rules())
    assert "core.queue.i__payload" in machine.circuit.outputs
    assert "core.queue.o__payload" in machine.circuit.inputs
    assert len(machine.circuit.registers) == 4 < len(Machine.of(whole, Rules()).circuit.registers)
    # Whether the queue is told of a beat is seen at its port.
    seen = [n for n, text in enumerate(around.texts, start=1) if "-port i__valid" in text]
    assert seen
    assert not equivalent(machine, seen)
    assert equivalent(machine, [len(around.texts) + 1])
    # And whether it is reset, in the cycle of reset alone.
    resets = [n for n, text in enumerate(around.texts, start=1) if "-port rst" in text]
    assert resets
    assert not unnoticed(machine, resets)
    assert not equivalent(machine, resets)


def outcome_of(name: str, number: int, seed: int = 1, cell: str = "$a") -> Outcome:
    text = f"-mode inv -cell {cell} -port Y -portbit 2 -wire w"
    return Outcome(name, 10, seed, {number: text}, frozenset(), 5, 1.0)


def test_page_lists_survivors():
    text = page([outcome_of("dispatch", 3)], [], "abc", 0.95, 300)
    assert "| dispatch | 10 | 1 | 9 | 0 | 1 | 90.0% | 5 | 1 | abc |" in text
    assert "- dispatch 3 of seed 1: `inv $a Y[2] of w`: not explained." in text
    assert explanation("combine", "core.adder.sums.copy_1.bypass").startswith("bypass of the port")


def test_what_is_measured_alone_takes_its_place_on_the_page():
    """Rows and survivors of other blocks stay, and so does what their netlists did."""
    netlists = [NetlistRun("dispatch", 99, 3, "", 4.0), NetlistRun("layer", 60, 3, "o: beat 2", 5.0)]
    before = page([outcome_of("dispatch", 3), outcome_of("combine", 4)], netlists, "abc", 0.95, 300)
    assert "| layer | 60 | 3 | **NO** | 5 | abc |" in before
    after = page([outcome_of("dispatch", 7)], netlists[:1], "def", 0.95, 300, before)
    assert "| dispatch | 10 | 1 | 9 | 0 | 1 | 90.0% | 5 | 1 | def |\n| combine |" in after
    assert "| dispatch | 99 | 3 | yes | 4 | def |\n| layer | 60 | 3 | **NO** | 5 | abc |" in after
    found = [line[:12] for line in after.splitlines() if line.startswith("- ")]
    assert found == ["- combine 4 ", "- dispatch 7"]
    assert page([], [], "ghi", 0.95, 300, after) == after
    known = after.replace("- combine 4 of seed 1: `inv $a ", "- combine 4 of seed 1: `inv slice$1214 ")
    assert ": bypass of the port" in page([], [], "ghi", 0.95, 300, known)


def test_another_seed_has_rows_of_its_own():
    """It is measured beside the first one, whose row and survivors stay."""
    before = page([outcome_of("dispatch", 3), outcome_of("combine", 4)], [], "abc", 0.95, 300)
    both = page([outcome_of("dispatch", 3, seed=2)], [], "def", 0.95, 300, before)
    rows = [line[: len("| dispatch | 10 | 1")] for line in both.splitlines() if line.startswith("| ")]
    assert rows[1:4] == ["| dispatch | 10 | 1", "| combine | 10 | 1 ", "| dispatch | 10 | 2"]
    again = page([outcome_of("dispatch", 5, seed=2)], [], "ghi", 0.95, 300, both)
    assert [line[:23] for line in again.splitlines() if line.startswith("- ")] == [
        "- dispatch 3 of seed 1:",
        "- combine 4 of seed 1: ",
        "- dispatch 5 of seed 2:",
    ]
    assert again.count("| abc |") == 2
    assert "| def |" not in again


def test_survivors_without_a_reason_are_named():
    known = outcome_of("combine", 4, cell="slice$1214")
    lines = [
        *survivors_of(known),
        *survivors_of(outcome_of("dispatch", 3)),
        "- not of a survivor: not explained.",
    ]
    assert unexplained(lines) == ["dispatch 3 of seed 1"]


STILL_OPEN: dict[str, tuple[int, ...]] = {}
"""Survivors of seed 1 that nobody has explained yet; who explains one takes it away here."""


def test_every_survivor_on_the_page_is_explained_or_known_to_be_open():
    """And as the reasons stand: the page is written again with none of its lines changed."""
    text = Path("docs/mutation.md").read_text(encoding="utf-8")
    assert "- combine" in text
    known = [f"{block} {number} of seed 1" for block, numbers in STILL_OPEN.items() for number in numbers]
    assert unexplained(text.splitlines()) == known
    assert page([], [], "now", GOAL, SECONDS, text) == text


@pytest.mark.long
def test_a_netlist_that_differs_is_told(tmp_path):
    """The bench runs on the netlist: a queue whose golden is another one's does not agree."""
    queue = Block("fifo", lambda: StreamFifo(4, 4), (4, 4), lambda _seed: [queue_run([1, 2, 3], [1, 2, 3])])
    assert run_netlist(queue, 1, root=tmp_path).said == ""
    wrong = replace(queue, scenarios=lambda _seed: [queue_run([1, 2, 3], [1, 2, 4])])
    assert run_netlist(wrong, 1, root=tmp_path).said.startswith("queue: fifo.o: transfer 2: ")


def queue_run(beats: list[int], out: list[int]) -> Scenario:
    spec = RunSpec(sources={"i": Source(beats, range(3))}, sinks={"o": Sink(3)}, max_cycles=100)
    return Scenario("queue", spec, {"o": Expected(out)})


@pytest.mark.long
def test_equivalent_mutants_are_told_from_others(tmp_path):
    """A number that no mutant has is the original; few of a queue's mutants are. False invariants end it."""
    export(StreamFifo(4, 4), "fifo", tmp_path / "verilog")
    mutants = mutants_of(tmp_path / "verilog", "fifo", count=12, seed=1, root=tmp_path)
    assert len(mutants.texts) == len(json.loads((mutants.directory / "mutants.json").read_text())) == 12
    beyond = len(mutants.texts) + 1  # no mutant has this number
    level = Rule("no more than there is room for", "core.level <= 4")
    machine = Machine.of(mutants, Rules(invariants=(level,)))
    proved = equivalent(machine, [*range(1, 13), beyond])
    assert beyond in proved
    assert len(proved) < 6
    false = Rule("never full", "core.level < 4")
    with pytest.raises(NotInvariant, match=r"^not proved: never full$"):
        equivalent(Machine.of(mutants, Rules(invariants=(level, false))), [beyond])
