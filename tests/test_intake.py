# amaranth: UnusedElaboratable=no
"""The layer's intake: a deep one lets in what a short one does, in the same cycles."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth import Module, ResetInserter, Signal
from amaranth.sim import Simulator

import rtl.layer.shell
from rtl.layer.shell import Intake
from tests.block_bench import plant_bug

CYCLES = 300


def compare(seed: int) -> int:
    """Drive both with one random environment; return how many tokens had to wait for a slot."""
    rng = np.random.default_rng(seed)
    beats, slots = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    rates = rng.uniform(0.2, 1, 3)
    context = f"seed={seed}, beats={beats}, slots={slots}"
    both = [Intake(beats, 1, slots, deep=deep) for deep in (False, True)]
    m, reset = Module(), Signal()
    for number, intake in enumerate(both):
        m.submodules[f"intake_{number}"] = intake
    waited = 0

    async def drive(ctx):
        nonlocal waited
        beat = inside = taken = 0
        start_again = int(rng.integers(CYCLES))
        for cycle in range(CYCLES):
            valid, ready, free = (bool(rng.random() < rate) for rate in rates)
            # A token leaves when it has been in for a cycle at least.
            freed = free and inside > 0
            for intake in both:
                ctx.set(intake.i.valid, valid)
                ctx.set(intake.o_gate.ready, ready)
                ctx.set(intake.freed, freed)
            seen = [
                [ctx.get(port) for port in (intake.i.ready, intake.o_gate.valid, intake.first, intake.last)]
                for intake in both
            ]
            assert seen[0] == seen[1], f"{context}, cycle={cycle}"
            full = beat == 0 and taken + inside == slots
            assert seen[1][0] == (ready and not full), f"{context}, cycle={cycle}"
            waited += valid and ready and full
            inside += taken - freed
            taken = int(seen[1][3])
            if valid and seen[1][0]:
                beat = (beat + 1) % beats
            if cycle == start_again:
                ctx.set(reset, 1)
                await ctx.tick()
                ctx.set(reset, 0)
                beat = inside = taken = 0
            else:
                await ctx.tick()

    simulator = Simulator(ResetInserter(reset)(m))
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return waited


def test_a_deep_intake_is_a_short_one():
    assert sum(compare(seed) for seed in range(12)) > 100


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(free_next != 0)", "(free != 0)"),
        ("Mux(take, ~last, beat != 0) |", "(beat != 0) |"),
        ("Mux(take, ~last, beat != 0) |", "~last |"),
        ("admit = Signal(init=self.late)", "admit = Signal()"),
    ],
)
def test_planted_bug_is_found(monkeypatch, old, new):
    plant_bug(monkeypatch, rtl.layer.shell, old, new)
    with pytest.raises(AssertionError):
        test_a_deep_intake_is_a_short_one()
