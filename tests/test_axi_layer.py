"""A layer through its AXI ports in the native bench: the documented accesses, and what is told when wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.axi_layer import TOLD, AxiJob, _problems, axi_job, run_axi_layer
from sim.layer import LayerShape, layer_cycles
from sim.rtlsim import Read, RunResult, Set, Trace, Wait
from sim.workload import vector_workload
from spec.load import load_design
from spec.registers import BUS_REGISTERS, CORE_REGISTERS, counters_of
from tests.test_waves import check_views

TESTS = Path(__file__).parent
TINY, TINY_PIM = load_design(str(TESTS / "tiny.toml")), load_design(str(TESTS / "tiny_pim.toml"))
TOKENS = 3


def workload():
    return vector_workload(str(TESTS / "data" / "deepseek_v3_s0.npz"), TOKENS)


@pytest.fixture(scope="module")
def job() -> AxiJob:
    return axi_job(workload(), TINY)


def test_the_settings_are_the_documented_accesses(job):
    """In order: the interrupt of the load, then page, capacity, policy, load, and counters cleared."""
    written = [
        (step.values["s_axi_awaddr"], step.values["s_axi_wdata"])
        for step in job.spec.prologue
        if isinstance(step, Set) and "s_axi_awvalid" in step.values
    ]
    names = {register.address: register.name for register in (*CORE_REGISTERS, *BUS_REGISTERS)}
    assert [names[address] for address, _ in written] == [
        "IRQ_ENABLE",
        "IMAGE_PAGE",
        "CAPACITY",
        "POLICY",
        "CONTROL",
        "IRQ_STATUS",
        "CONTROL",
    ]
    waits = [step.port for step in job.spec.prologue if isinstance(step, Wait)]
    assert waits.count("irq") == 1
    assert waits.index("irq") == 5
    # Of a write the response is read, of a read response and value.
    both = (job.spec.prologue, job.spec.epilogue)
    read = [[step.port for step in steps if isinstance(step, Read)] for steps in both]
    assert read[0] == ["s_axi_bresp"] * job.writes
    assert job.writes == len(written)
    assert read[1] == ["s_axi_rresp", "s_axi_rdata"] * (len(TOLD) + 2 * len(counters_of(TINY)))


def result(job: AxiJob, **changes) -> RunResult:
    """Return a run in which nothing was wrong, or with ``changes``."""
    told = [0, TOKENS, TOKENS, *[0] * (2 * len(counters_of(TINY)))]
    reads = [0] * job.writes + [word for value in told for word in (0, value)]
    nothing = np.zeros(0, dtype=np.int64)
    made = RunResult(
        cycles=1,
        since_reset=0,
        streams={"o": Trace.of_cycles(nothing)},
        memories={},
        probes={"m_axis_tuser": (nothing, nothing.astype(np.uint64))},
        reads=reads,
        timeout=None,
        violations=[],
        cycles_per_second=0.0,
        zero_ns=0,
    )
    return replace(made, **changes)


def test_what_is_wrong_at_the_ports_is_told(job):
    good = result(job)
    assert _problems(job, good, TOKENS) == []

    def with_read(place: int, value: int) -> RunResult:
        reads = list(good.reads)
        reads[place] = value
        return replace(good, reads=reads)

    one = (np.array([7]), np.array([1], dtype=np.uint64))
    cases = {
        "s_axi: 1 accesses were refused": with_read(2, 2),
        "s_axi: 1 accesses were refused, at the end": with_read(job.writes, 3),
        "ERRORS is 4, not 0": with_read(job.writes + 1, 4),
        "TOKENS_IN is 2, not 3": with_read(job.writes + 3, 2),
        "TOKENS_OUT is 4, not 3": with_read(job.writes + 5, 4),
        "m_axis: marked in 1 cycles": replace(good, probes={"m_axis_tuser": one}),
        "o: extra beat": replace(good, violations=["o: extra beat"]),
        "prologue step 3": replace(good, timeout="prologue step 3"),
    }
    for message, run in cases.items():
        assert _problems(job, run, TOKENS) == [message.removesuffix(", at the end")]


@pytest.mark.long
@pytest.mark.parametrize("design", [TINY, TINY_PIM], ids=["fpga", "pim"])
def test_a_layer_through_its_axi_ports(design, tmp_path):
    """Bits of golden, all views; of an array the cycles of the core with what the ports add."""
    work = workload()
    report = run_axi_layer(work, design, routing="vector", waves=tmp_path / "waves")
    assert report.agreed
    assert report.mismatches == 0
    assert report.counters is not None
    assert report.counters["tokens_out"] == TOKENS
    check_views(Path(report.waveform), work.model, design)
    if design is TINY:
        # A read's address takes a cycle more, and so do its data and an output's beat; a token's takes two.
        memory = replace(design.memory, latency_cycles=design.memory.latency_cycles + 2)
        shape = LayerShape(
            axi_job(work, design).shape.image,
            replace(design, memory=memory),
            axi_job(work, design).golden.streams,
        )
        assert report.cycles["rtl"] == layer_cycles(shape, np.zeros(TOKENS, np.int64)).cycles + 3
