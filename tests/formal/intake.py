"""The credits of a layer: as many tokens inside as the token store has slots, and no slot is ever lost.

That a slot is there for every token is what the combiners' proofs assume (``slots_free``).
"""

from __future__ import annotations

from amaranth import Mux, Signal

from rtl.layer.shell import Intake
from tests.formal.model import Checker

BEATS, SLOTS, LANES = 2, 2, 1
SOON = 1
"""Cycles that a beat waits at most while a slot is free and the gate ready."""


def credits_conserved(*, deep: bool = False) -> Checker:
    """Return an intake of tokens of ``BEATS`` beats into ``SLOTS`` slots."""
    dut = Intake(BEATS, LANES, SLOTS, deep=deep)
    # The store is always ready: what it is given is compared with the gate's.
    checker = Checker(dut, skip=("o_store",))
    m = checker.m
    checker.assume_streams()
    checker.prove_streams()
    take = checker.value("take", dut.i.valid & dut.i.ready)
    beat = Signal(range(BEATS), name="beat_told")
    begins, ends = (
        checker.value("begins", take & (beat == 0)),
        checker.value("ends", take & (beat == BEATS - 1)),
    )
    inside = Signal(range(SLOTS + 2), name="tokens_inside")
    whole = Signal(range(SLOTS + 2), name="tokens_whole")
    with m.If(take):
        m.d.sync += beat.eq(Mux(beat == BEATS - 1, 0, beat + 1))
    m.d.sync += [inside.eq(inside + begins - dut.freed), whole.eq(whole + ends - dut.freed)]
    # A slot is freed by a token that has come in whole.
    checker.assume("freed_by_a_token", ~dut.freed | (whole != 0))

    checker.prove("credits", inside <= SLOTS)
    waited = Signal(range(SOON + 2), name="waited_with_a_slot")
    waits = dut.i.valid & dut.o_gate.ready & ~dut.i.ready & ((inside != SLOTS) | (beat != 0))
    m.d.sync += waited.eq(Mux(waits, waited + 1, 0))
    checker.prove("no_credit_lost", waited <= SOON)
    gate, store = dut.o_gate, dut.o_store
    checker.prove("gate_and_store", (gate.valid & gate.ready) == take)
    checker.prove("store_as_gate", store.valid == take)
    same = (store.payload.as_value() == dut.i.payload.as_value()) & (
        gate.payload.as_value() == dut.i.payload.as_value()
    )
    checker.prove("payload_as_it_came", ~take | same)
    checker.prove("first_told", dut.first == begins)
    checker.prove("last_told", dut.last == ends)

    free, counted = checker.probe("free"), checker.probe("beat")
    pending = checker.probe("first_q1") if deep else 0
    checker.prove("inv_free", free == SLOTS - inside + pending)
    checker.prove("inv_beat", (counted == beat) & (beat < BEATS))
    checker.prove("inv_whole", inside == whole + (beat != 0))
    if deep:
        admit = checker.probe("admit")
        checker.prove("inv_admit", Mux(beat != 0, admit, admit == (free != pending)))
        checker.prove("inv_pending", ~pending | (beat != 0))
    return checker
