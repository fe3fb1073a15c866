"""Proofs that take a second each, and bugs that they find; all of them in `make formal`."""

from __future__ import annotations

import pytest

from tests.formal.model import Checker
from tests.formal.properties import PROOFS, Bug
from tests.formal.prove import prove
from tests.formal.run import missed, proof_named

FAST = ("order in a queue", "row commands, banks at once", "column commands")
FAST_BUGS = (
    ("order in a queue", "no_overflow"),
    ("row commands, banks at once", "rc"),
    ("column commands", "one_at_a_time"),
    ("dispatcher, conservation", "token_in_order"),
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


@pytest.mark.long
@pytest.mark.parametrize("name", [proof.name for proof in PROOFS if proof.name not in FAST])
def test_longer_proof(name):
    check_proof(name)


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


@pytest.mark.slow
def test_assumptions_leave_something_to_prove():
    """A checker whose assumptions contradict each other would prove anything: false must fail."""

    def false(make) -> Checker:
        checker = make()
        checker.prove("false", 0)
        return checker

    for name in FAST:
        assert "false" in prove(lambda name=name: false(proof_named(name).make), depth=4).failed, name
