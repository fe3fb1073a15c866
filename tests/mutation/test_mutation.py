"""Mutants: what counts as detected, what as equivalent; a whole block in `make mutate`."""

from __future__ import annotations

import json

import pytest

from rtl.export import export
from rtl.fifo import StreamFifo
from tests.mutation.mutants import CLOCKS, Mutants, equivalent, mutants_of
from tests.mutation.page import explanation, page
from tests.mutation.run import Outcome


def test_score_leaves_out_what_is_equivalent():
    outcome = Outcome("x", 10, {3: "a", 7: "b"}, frozenset({3}), 5, 1.0)
    assert outcome.left == {7: "b"}
    assert outcome.score == 8 / 9


def test_ports_of_clocks_are_known():
    assert CLOCKS.search("mutate -mode inv -module m -cell $procdff$1 -port CLK -portbit 0")
    assert not CLOCKS.search("mutate -mode inv -module m -cell $and$1 -port A -portbit 0")


def test_page_lists_survivors():
    outcome = Outcome(
        "dispatch", 10, {3: "-mode inv -cell $a -port Y -portbit 2 -wire w"}, frozenset(), 5, 1.0
    )
    text = page([outcome], 1, 0.95)
    assert "| dispatch | 10 | 9 | 0 | 1 | 90.0% | 5 | 1 |" in text
    assert "- dispatch 3: `inv $a Y[2] of w`: not explained." in text
    assert explanation("dispatch", "core.tables.tails.copy_0.bypass").startswith("bypass of the tails")


@pytest.mark.slow
def test_equivalent_mutants_are_told_from_others(tmp_path):
    """A number that no mutant has is the original; few of a queue's mutants are."""
    export(StreamFifo(4, 4), "fifo", tmp_path / "verilog")
    mutants = mutants_of(tmp_path / "verilog", "fifo", count=12, seed=1, root=tmp_path)
    assert len(mutants.texts) == len(json.loads((mutants.directory / "mutants.json").read_text())) == 12
    beyond = len(mutants.texts) + 1  # no mutant has this number
    proved = equivalent(mutants, [*range(1, 13), beyond])
    assert beyond in proved
    assert len(proved) < 6
    assert isinstance(mutants, Mutants)
