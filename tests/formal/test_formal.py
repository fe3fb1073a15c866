"""Proofs that take a second each, and bugs that they find; all of them in `make formal`."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from rtl.axi import lite
from rtl.export import export
from sim.rtlsim import exported, top_component
from spec.registers import Top
from tests.bench.axi_cores import CORES
from tests.block_bench import plant_bug
from tests.formal.axi import packets_in
from tests.formal.crossing import crossing_order
from tests.formal.model import Checker, names
from tests.formal.paths import reached_outputs
from tests.formal.properties import AXI, PROOFS, Bug
from tests.formal.prove import prove
from tests.formal.run import PAGE, missed, page_with, processes, proof_named

FAST = (
    "order in a queue",
    "crossing",
    "row commands, banks at once",
    "column commands",
    "axi4-lite slave",
    "axi4 reads at the port",
    "axi4-stream in",
    "axi4-stream out",
)
FAST_BUGS = (
    ("order in a queue", "no_overflow"),
    ("crossing", "silent_in_reset"),
    ("row commands, banks at once", "rc"),
    ("column commands", "one_at_a_time"),
    ("dispatcher, conservation", "token_in_order"),
    ("axi4-lite slave", "write_within_6"),
    ("axi4-stream in", "none_lost"),
)
BUGS = [(proof.name, bug) for proof in PROOFS for bug in proof.bugs]


def check_proof(name: str) -> None:
    proof = proof_named(name)
    verdict = prove(proof.make, depth=proof.depth, induction=proof.induction)
    assert verdict.holds and verdict.induction == proof.induction, verdict.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_proof(name):
    check_proof(name)


@pytest.mark.slow
@pytest.mark.parametrize("token_beats", [1, 2])
def test_packets_of_tokens_of_fewer_beats(token_beats):
    """Which are counted in the same cycle, or in the one before they are asked for."""
    proof = proof_named("axi4-stream in")
    verdict = prove(lambda: packets_in(token_beats), depth=proof.depth, induction=proof.induction)
    assert verdict.holds, verdict.failed


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [3, 4])
def test_a_crossing_after_the_shortest_reset(cycles, monkeypatch):
    """Of 4 cycles, in which not all is forgotten; what is left does no harm, as it does after 3."""
    monkeypatch.setattr(Checker, "with_invariants", False)
    verdict = prove(partial(crossing_order, cycles), depth=16)
    assert verdict.holds == (cycles == 4)
    assert verdict.failed == (() if cycles == 4 else ("room_soon",))


@pytest.mark.long
@pytest.mark.parametrize("name", [proof.name for proof in PROOFS if proof.name not in FAST])
def test_longer_proof(name):
    check_proof(name)


def test_planted_bugs_stand_in_their_sources():
    """A text that is no longer there would only be missed by `make formal`."""
    sources = {bug.module: Path(import_module(bug.module).__file__).read_text() for _, bug in BUGS}
    assert len(BUGS) > 100
    assert not [(name, bug.old) for name, bug in BUGS if sources[bug.module].count(bug.old) != 1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fails"), FAST_BUGS)
def test_planted_bug_is_found(name, fails):
    (bug,) = [bug for bug in proof_named(name).bugs if bug.fails == fails]
    assert not missed(proof_named(name), bug)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "bug"), BUGS, ids=lambda value: value.fails if isinstance(value, Bug) else value
)
def test_every_planted_bug_is_found(name, bug):
    assert not missed(proof_named(name), bug)


def test_every_proof_has_a_bug():
    assert all(proof.bugs for proof in PROOFS)
    assert len({proof.name for proof in PROOFS}) == len(PROOFS)


def test_every_property_has_a_bug():
    """Invariants are no properties: they are what a proof by induction needs."""
    for proof in PROOFS:
        properties = [name for name in proof.make().properties if not name.startswith("inv_")]
        assert properties
        missing = [name for name in properties if not any(names(bug.fails, name) for bug in proof.bugs)]
        assert not missing, (proof.name, missing)
        of_none = [bug.fails for bug in proof.bugs if not any(names(bug.fails, name) for name in properties)]
        assert not of_none, (proof.name, of_none)


def test_a_bug_is_searched_by_its_property_alone(monkeypatch):
    monkeypatch.setattr(Checker, "only", "b_room")
    assert proof_named("axi4-lite slave").make().properties == ["b_room"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        Top.GATE,
        Top.DISPATCH,
        pytest.param(Top.FPGA, marks=pytest.mark.long),
        pytest.param(Top.PIM, marks=pytest.mark.long),
    ],
)
def test_no_input_of_a_top_reaches_an_output_at_once(name):
    top = f"{name}_axi"
    directory = exported(top, top_component(*CORES[name]), config=CORES[name])
    assert reached_outputs(directory, top) == set()


@pytest.mark.slow
def test_a_path_through_a_top_is_told(monkeypatch, tmp_path):
    old = "self.s_axi_wready.eq(~w_held)"
    plant_bug(monkeypatch, lite, old, "self.s_axi_wready.eq(~w_held & self.s_axi_awvalid)")
    export(top_component(*CORES[Top.DISPATCH])(), "dispatch_axi", tmp_path)
    assert reached_outputs(tmp_path, "dispatch_axi") == {"s_axi_wready"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "proof_names", [FAST, pytest.param([proof.name for proof in AXI], marks=pytest.mark.long)]
)
def test_assumptions_leave_something_to_prove(proof_names):
    """A checker whose assumptions contradict each other would prove anything: false must fail."""

    def false(make) -> Checker:
        checker = make()
        checker.prove("false", 0)
        return checker

    for name in proof_names:
        assert "false" in prove(lambda name=name: false(proof_named(name).make), depth=4).failed, name


def _page(rows: str) -> str:
    return PAGE.format(seconds=12, jobs=processes(3), commit="0123456789 and changes to it", rows=rows)


def test_rows_of_a_run_go_into_the_page():
    """The rows of other proofs and what the whole run took stay as they were."""
    first, second = PROOFS[:2]
    old = _page(f"| {first.name} | a |\n| {second.name} | b |")
    new = page_with(old, {second.name: f"| {second.name} | c |"})
    assert new == _page(f"| {first.name} | a |\n| {second.name} | c |")
