# amaranth: UnusedElaboratable=no
"""The merger of contributions: order and cycles of every beat against its model."""

from __future__ import annotations

import re

import numpy as np
import pytest
from amaranth import ResetInserter, Signal, unsigned
from amaranth.hdl import Fragment

import rtl.merge
import sim.merge
from rtl.expert.layouts import contribution_layout
from rtl.merge import ContributionMerge
from sim.merge import merge_cycles
from sim.streams import readiness
from spec.errors import InputError
from tests.bfm import Sink, Source, run_streams
from tests.block_bench import DIVERGED, TRAFFIC, arrivals_of, check_stream, pattern_of, plant_bug, ready_in


def run_case(counts: list[int], gaps: str, stalls: str, seed: int, *, reset_after: int = 0) -> None:
    """Send so many numbered beats to each input; check what comes, when, and that nothing is lost."""
    context = f"counts={counts}, gaps={gaps}, stalls={stalls}, seed={seed}"
    rng = np.random.default_rng(seed)
    slower = int(rng.choice([1, 4 * len(counts)]))  # saturated, or with idle cycles
    arrivals = [arrivals_of(rng, gaps, count) * slower for count in counts]
    pattern = pattern_of(rng, stalls)
    model = merge_cycles(arrivals, ready=readiness(pattern))
    payloads = [[(u << 10) | n for n in range(count)] for u, count in enumerate(counts)]
    dut = ContributionMerge(unsigned(16), len(counts))
    reset = Signal()

    async def prologue(ctx):
        for _ in range(reset_after):
            for name in dut.inputs():
                ctx.set(getattr(dut, name).valid, int(rng.integers(2)))
            ctx.set(dut.o.ready, int(rng.integers(2)))
            await ctx.tick()
        for name in dut.inputs():
            ctx.set(getattr(dut, name).valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)

    traces = run_streams(
        ResetInserter(reset)(dut),
        {
            name: Source(beats, cycles.tolist())
            for name, beats, cycles in zip(dut.inputs(), payloads, arrivals, strict=True)
        },
        {"o": Sink(sum(counts), ready_in(pattern))},
        prologue=prologue,
    )
    for name, beats, cycles in zip(dut.inputs(), payloads, model.i, strict=True):
        check_stream("merge", name, traces[name], beats, cycles, context)
    wanted = [payloads[u][n] for u, n in zip(model.source, model.number, strict=True)]
    check_stream("merge", "o", traces["o"], wanted, model.o, context)
    # Nothing lost or duplicated, nothing of one input reordered.
    for u, beats in enumerate(payloads):
        assert [beat for beat in traces["o"].payloads if beat >> 10 == u] == beats, context


@pytest.mark.parametrize("stalls", TRAFFIC)
@pytest.mark.parametrize("gaps", TRAFFIC)
@pytest.mark.parametrize("seed", range(3))
def test_random(gaps, stalls, seed):
    rng = np.random.default_rng(seed)
    run_case(rng.integers(0, 40, size=int(rng.integers(1, 6))).tolist(), gaps, stalls, seed)


CORNERS = {
    "one_input": [20],
    "one_input_with_all": [0, 30, 0],
    "no_beats": [0, 0],
    "one_beat_each": [1] * 7,
    "five_inputs": [9, 8, 7, 6, 5],
}


@pytest.mark.parametrize("stalls", TRAFFIC)
@pytest.mark.parametrize("name", CORNERS)
def test_corner(name, stalls):
    run_case(CORNERS[name], "none", stalls, 7)


@pytest.mark.parametrize("seed", range(3))
def test_reset_in_the_middle(seed):
    run_case([12, 9, 15], "half", "half", seed, reset_after=9 + seed)


def test_latency_and_turns_are_as_stated():
    assert sim.merge.LATENCY == ContributionMerge.LATENCY == 2
    model = merge_cycles([np.zeros(8), np.zeros(8), np.zeros(8)])
    assert model.o.tolist() == list(range(2, 26))
    assert model.source.tolist() == [0, 1, 2] * 8
    run_case([8, 8, 8], "none", "none", 0)


def test_carries_contributions():
    layout = contribution_layout(8, 4, 2, 3)
    dut = ContributionMerge(layout, 3)
    Fragment.get(dut, None)
    assert dut.o.payload.shape() == layout


# The checks themselves must fail where the hardware is wrong.
PLANTED = {
    "fixed priority": ("turn.eq(Mux(chosen == self.num_inputs - 1, 0, chosen + 1))", "turn.eq(0)"),
    "same one again": ("else turn <= n", "else turn < n"),
    "turn without a beat": ("m.If(output.i.valid & output.i.ready)", "m.If(output.i.ready)"),
    "beats of all are taken": ("with m.If(chosen == n):", "with m.If(entry.o.valid):"),
}


def run_revealing_cases() -> None:
    run_case([9, 8, 7, 6], "half", "half", 1)
    run_case([9, 8], "half", "none", 0)


def test_unbroken_source_passes():
    run_revealing_cases()


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, rtl.merge, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        run_revealing_cases()


@pytest.mark.parametrize("num_inputs", [0, 65])
def test_rules(num_inputs):
    with pytest.raises(InputError, match=f"^{re.escape(f'num_inputs: must be in 1..64, not {num_inputs}')}$"):
        ContributionMerge(unsigned(8), num_inputs)
