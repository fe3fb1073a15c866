"""The rules of streams at every port of every block: what is offered stays, unchanged, until it is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from amaranth import Mux, Signal, unsigned
from amaranth.hdl import Value

from rtl.combine import Combine, CombineConfig
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.expert import ExpertEngine
from rtl.fifo import StreamFifo
from rtl.gating import Gate
from rtl.gating.gate import BankedGate
from rtl.layer import FpgaLayer, PimLayer
from rtl.merge import ContributionMerge
from rtl.pim import PimChannel
from rtl.stream import StreamRegister
from spec.design import GateDesign, Pipeline
from spec.geometry import GateGeometry, RouterGeometry
from spec.load import load_design
from spec.model import Activation, CapacityRule, FfnSpec, GatingSpec, ModelSpec
from tests.bench.test_expert_bench import config_of as expert_config
from tests.formal.model import Checker
from tests.test_pim import config_of as pim_config

GATE = GateGeometry(
    gating=GatingSpec(num_experts=4, top_k=2),
    d_model=4,
    lanes=4,
    logits_per_cycle=2,
    stream_lanes=2,
    load_elements=4,
)
DISPATCH = DispatchConfig(num_experts=4, top_k=2, window_tokens=2, capacity_bits=2)
UNITS = DispatchConfig(
    num_experts=4,
    top_k=2,
    window_tokens=2,
    num_units=2,
    shared=True,
    capacity_bits=2,
    capacity_rule=CapacityRule.GSHARD,
    longest_queue=True,
    ranks=True,
)
COMBINE = CombineConfig(num_slots=2, d_model=3, lanes=2, max_count=2)
ORDERED = OrderedConfig(num_slots=2, d_model=3, lanes=2, max_count=2)
EXPERT = expert_config(
    FfnSpec(d_expert=4, activation=Activation.RELU),
    d_model=4, d_shared=0, rows=2, cols=4, lanes=2, outstanding=2,
)  # fmt: skip
PIM = pim_config(d_model=4, d_hidden=4)
MODEL = ModelSpec(
    name="small",
    d_model=4,
    gating=GatingSpec(num_experts=4, top_k=2),
    ffn=FfnSpec(d_expert=4, activation=Activation.RELU),
)
TESTS = Path(__file__).parent.parent
TINY = load_design(str(TESTS / "tiny.toml"))
FPGA = replace(
    TINY,
    window_tokens=2,
    stream_lanes=2,
    gate=GateDesign(lanes=4, logits_per_cycle=2),
    memory=replace(TINY.memory, burst_beats=2, max_outstanding=2),
)
NEAR_MEMORY = load_design(str(TESTS / "tiny_pim.toml"))

BLOCKS = {
    "stream register": lambda: StreamRegister(unsigned(4)),
    "fifo": lambda: StreamFifo(unsigned(4), 4),
    "merge": lambda: ContributionMerge(unsigned(4), 3),
    "gate": lambda: Gate(GATE),
    "dispatch": lambda: Dispatch(DISPATCH),
    "dispatch, 2 units": lambda: Dispatch(UNITS),
    "combine": lambda: Combine(COMBINE),
    "combine, ordered": lambda: OrderedCombine(ORDERED),
    "expert": lambda: ExpertEngine(EXPERT),
    "pim channel": lambda: PimChannel(PIM),
    "gate behind the banks": lambda: BankedGate(RouterGeometry(gate=GATE, rows=4, cols=4), 2),
    "fpga layer": lambda: FpgaLayer(MODEL, FPGA),
    "pim layer": lambda: PimLayer(MODEL, NEAR_MEMORY),
    "gate, deep": lambda: Gate(replace(GATE, pipeline=Pipeline.DEEP)),
    "dispatch, deep": lambda: Dispatch(replace(DISPATCH, deep=True)),
    "dispatch, 2 units, deep": lambda: Dispatch(replace(UNITS, deep=True)),
    "combine, deep": lambda: Combine(replace(COMBINE, deep=True)),
    "expert, deep": lambda: ExpertEngine(replace(EXPERT, pipeline=Pipeline.DEEP)),
}


CONSTANT = ("capacity", "policy", "image_page", "scale_x", "scale_h")
"""Inputs that do not change while a block is at work."""


def stream_rules(block: str) -> Checker:
    """Return a block with the rules assumed at its inputs and asserted at its outputs."""
    dut = BLOCKS[block]()
    checker = Checker(dut)
    for name in CONSTANT:
        if name in dut.signature.members:
            value = Value.cast(getattr(dut, name))
            checker.assume(f"{name}_constant", value == checker.constant(f"{name}_value", len(value)))
    checker.assume_streams()
    if block.startswith("expert"):
        _memory(checker)
    # Addresses of a layer are those of its loaders, which have proofs of their own (``axi4 reads``).
    checker.prove_streams(without=("o_ar",) if block.endswith("layer") else ())
    return checker


def _memory(checker: Checker) -> None:
    """Assume a memory behind an expert engine: it answers what was asked, in bursts."""
    dut = checker.dut
    beats = dut.config.burst_beats
    owed = Signal(range(64), name="owed_beats")
    beat = Signal(range(beats), name="beat_of_burst")
    asked = checker.value("asked", dut.o_ar.valid & dut.o_ar.ready)
    answered = checker.value("answered", dut.i_r.valid & dut.i_r.ready)
    checker.m.d.sync += owed.eq(owed + Mux(asked, beats, 0) - answered)
    with checker.m.If(answered):
        checker.m.d.sync += beat.eq(Mux(beat == beats - 1, 0, beat + 1))
    checker.assume("answers_what_was_asked", ~dut.i_r.valid | (owed != 0))
    checker.assume("bursts_end", dut.i_r.payload.last == (beat == beats - 1))
    outstanding = checker.probe("reader.outstanding")
    checker.prove(
        "inv_bursts_outstanding",
        (owed + beat == outstanding * beats) & (outstanding <= dut.config.max_outstanding),
    )
