"""Dispatcher, units, merger and combiner together: the same bits out, whoever computed what and when.

The units are stand-ins that make up a result from an entry and take their time; everything else is the
hardware. What comes out is compared with golden, bit for bit, under random stalls of every part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from golden.combine_bf16 import Contribution, combine_bf16
from golden.dispatch_streams import Job, dispatch_streams
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.fifo import StreamFifo
from rtl.merge import ContributionMerge
from rtl.stream import connect_stream
from spec.design import Policy
from spec.model import CapacityRule
from spec.registers import POLICIES
from tests.bfm import Sink, Source, run_streams
from tests.block_bench import PATTERN_CYCLES, TRAFFIC, arrivals_of, bits_of, pattern_of, ready_in
from tests.test_dispatch import experts_of_tokens, placement_of, write_placement

WORDS, LANES = 5, 2


SMALL, LARGE = 0x7E, 0x9E


def made_up(expert, slot, word, lane):
    """Return patterns of results: near 1, or 2**31, either sign, so that the order of sums matters."""
    mixed = (slot * 0x1F3) ^ (expert * 0x9D) ^ (word * 0x3B5) ^ (lane * 0x51)
    large = mixed >> 3 & 1
    magnitude = np.where(large, LARGE << 7, SMALL << 7 | (mixed & 0x7F))
    return magnitude | (mixed >> 5 & 1) << 15


class StandIn(wiring.Component):
    """A unit that holds two jobs and gives a made-up result for each of their entries, unless it pauses."""

    def __init__(self, dispatch: DispatchConfig, combine: OrderedConfig) -> None:
        self.dispatch, self.combine = dispatch, combine
        super().__init__(
            {
                "i": In(stream.Signature(dispatch.entry)),
                "o": Out(stream.Signature(combine.contribution)),
                "pause": In(1),
                "retired": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.held = held = StreamFifo(
            self.dispatch.entry, self.dispatch.unit_jobs * self.dispatch.window_tokens
        )
        connect_stream(m, wiring.flipped(self.i), held.i)
        entry, beat = held.o.payload, self.o.payload
        word = Signal(range(WORDS))
        offered = Signal()  # what is offered stays
        give = Signal()
        m.d.comb += [
            self.o.valid.eq(held.o.valid & (offered | ~self.pause)),
            give.eq(self.o.valid & self.o.ready),
            beat.slot.eq(entry.slot),
            beat.rank.eq(entry.rank),
            beat.word.eq(word),
            beat.weight.eq(entry.weight),
            beat.last.eq(word == WORDS - 1),
            held.o.ready.eq(give & beat.last),
        ]
        for lane in range(LANES):
            mixed = Signal(16, name=f"mixed_{lane}")
            magnitude = Signal(15, name=f"magnitude_{lane}")
            m.d.comb += [
                mixed.eq((entry.slot * 0x1F3) ^ (entry.expert * 0x9D) ^ (word * 0x3B5) ^ (lane * 0x51)),
                magnitude.eq(Mux(mixed[3], Const(LARGE << 7, 15), Cat(mixed[:7], Const(SMALL, 8)))),
                beat.data[lane].eq(Cat(magnitude, mixed[5])),
            ]
        m.d.sync += [
            offered.eq(self.o.valid & ~self.o.ready),
            self.retired.eq(give & beat.last & entry.last),
        ]
        with m.If(give):
            m.d.sync += word.eq(Mux(beat.last, 0, word + 1))
        return m


class SeveralUnits(wiring.Component):
    """Assignments in, tokens out; a token comes in when there is a slot for it."""

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        self.combine = OrderedConfig(
            num_slots=config.num_slots, d_model=WORDS * LANES, lanes=LANES, max_count=config.max_count
        )
        self.dispatch = Dispatch(config)
        self.pauses = [f"pause_{unit}" for unit in range(config.num_units)]
        members = {
            "i": In(stream.Signature(config.assignment)),
            "o": Out(stream.Signature(self.combine.output)),
            **{name: In(1) for name in self.pauses},
        }
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.dispatch = dispatch = self.dispatch
        m.submodules.combine = combine = OrderedCombine(self.combine)
        m.submodules.merge = merge = ContributionMerge(self.combine.contribution, config.num_units)
        for unit, name in enumerate(config.outputs()):
            m.submodules[f"unit_{unit}"] = stand_in = StandIn(config, self.combine)
            connect_stream(m, getattr(dispatch, name), stand_in.i)
            connect_stream(m, stand_in.o, getattr(merge, f"i_{unit}"))
            m.d.comb += [
                stand_in.pause.eq(getattr(self, self.pauses[unit])),
                getattr(dispatch, f"retired_{unit}").eq(stand_in.retired),
            ]
        connect_stream(m, merge.o, combine.i)
        connect_stream(m, dispatch.o_expect, combine.i_expect)
        connect_stream(m, combine.o, wiring.flipped(self.o))
        free = Signal(range(config.num_slots + 1), init=config.num_slots)
        begins = Signal(init=1)
        admit = Signal()
        take = Signal()
        m.d.comb += [
            admit.eq(~begins | (free != 0)),
            dispatch.i.payload.eq(self.i.payload),
            dispatch.i.valid.eq(self.i.valid & admit),
            self.i.ready.eq(dispatch.i.ready & admit),
            take.eq(self.i.valid & self.i.ready),
        ]
        m.d.sync += free.eq(free - (take & begins) + combine.freed)
        with m.If(take):
            m.d.sync += begins.eq(self.i.payload.last)
        return m


@dataclass(frozen=True)
class Case:
    """Tokens and what is done with them."""

    config: DispatchConfig
    ids: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    batches: list[int]
    capacity: int
    policy: Policy
    replicas: str
    gaps: str
    stalls: str
    seed: int


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(2, 10))
    top_k = int(rng.integers(1, min(num_experts, 4) + 1))
    config = DispatchConfig(
        num_experts=num_experts,
        top_k=top_k,
        window_tokens=1 << int(rng.integers(4)),
        num_units=int(rng.integers(2, 5)),
        shared=bool(rng.integers(2)),
        capacity_rule=list(CapacityRule)[rng.integers(3)],
        longest_queue=True,
        ranks=True,
    )
    batches = rng.integers(1, 3 * config.window_tokens + 2, size=int(rng.integers(1, 4))).tolist()
    tokens = sum(batches)
    return Case(
        config=config,
        ids=experts_of_tokens(rng, tokens, num_experts, top_k, skew=1.0),
        weights=rng.choice(np.array([0x3F00, 0x3F80], dtype=np.uint16), (tokens, top_k)),
        batches=batches,
        capacity=int(rng.choice([0, 2, 4])),
        policy=list(Policy)[rng.integers(2)],
        replicas=str(rng.choice(["one", "some", "all"])),
        gaps=TRAFFIC[seed % 3],
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


def golden_outputs(case: Case, order: Policy = Policy.QUEUE_ORDER) -> list[int]:
    """Return the payloads of the output: golden's sums, in queue order that is in the order of ranks."""
    config = case.config
    streams = dispatch_streams(
        case.ids,
        case.weights,
        num_experts=config.num_experts,
        window_tokens=config.window_tokens,
        batch_lengths=case.batches,
        capacity=case.capacity,
        capacity_rule=config.capacity_rule,
        shared=config.shared,
        policy=order,
    )

    def contribution(job: Job) -> Contribution:
        word, lane = np.divmod(np.arange(WORDS * LANES), LANES)
        results = made_up(job.expert, job.slots[:, None], word, lane)
        return Contribution(job.tokens, job.weights, results.astype(np.uint16))

    sums = combine_bf16([contribution(job) for job in streams.jobs()], len(case.ids), WORDS * LANES)
    layout = OrderedConfig(
        num_slots=config.num_slots, d_model=WORDS * LANES, lanes=LANES, max_count=config.max_count
    ).output
    return [
        bits_of(
            layout,
            data=sums[t, word * LANES : (word + 1) * LANES],
            token_last=word == WORDS - 1,
            last=word == WORDS - 1 and streams.last_token[t],
        )
        for t in range(len(case.ids))
        for word in range(WORDS)
    ]


def outputs(case: Case) -> list[int]:
    """Return the payloads of the output from the hardware."""
    config = case.config
    rng = np.random.default_rng(case.seed)
    last_token = np.zeros(len(case.ids), dtype=bool)
    last_token[np.cumsum(case.batches) - 1] = True
    beats = [
        bits_of(
            config.assignment,
            expert=case.ids[t, j],
            weight=case.weights[t, j],
            last=j == config.top_k - 1,
            last_token=last_token[t],
        )
        for t in range(len(case.ids))
        for j in range(config.top_k)
    ]
    dut = SeveralUnits(config)
    placement = placement_of(rng, config, case.replicas)
    pauses = rng.random((PATTERN_CYCLES, config.num_units)) < rng.choice([0.0, 0.5, 0.9], config.num_units)

    async def prologue(ctx):
        ctx.set(dut.dispatch.capacity, case.capacity)
        ctx.set(dut.dispatch.policy.as_value(), POLICIES.index(case.policy))
        await write_placement(ctx, dut.dispatch, placement)

    def pause(unit: int):
        return lambda cycle, _got: int(cycle < PATTERN_CYCLES and pauses[cycle, unit])

    traces = run_streams(
        dut,
        {"i": Source(beats, arrivals_of(rng, case.gaps, len(beats)).tolist())},
        {"o": Sink(len(case.ids) * WORDS, ready_in(pattern_of(rng, case.stalls)))},
        inputs={name: pause(unit) for unit, name in enumerate(dut.pauses)},
        prologue=prologue,
        max_cycles=3 * PATTERN_CYCLES,
    )
    return traces["o"].payloads


@pytest.mark.parametrize(
    "seed", [*range(9), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(9, 60))]
)
def test_random(seed):
    case = random_case(seed)
    assert outputs(case) == golden_outputs(case), case


def test_same_bits_whatever_the_placement_and_the_policy():
    case = random_case(13)
    wanted = golden_outputs(case)
    for replicas in ("one", "some", "all"):
        for policy in Policy:
            other = replace(case, replicas=replicas, policy=policy, seed=case.seed + 1)
            assert outputs(other) == wanted, other
    assert golden_outputs(case, Policy.LONGEST_QUEUE) != wanted, "the order of addition does not matter"
