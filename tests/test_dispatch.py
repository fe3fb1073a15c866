"""The dispatcher: hardware against golden bit for bit, against its cycle model cycle for cycle."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from amaranth import ResetInserter, Signal

import rtl.dispatch.dispatcher
import rtl.dispatch.enqueue
import rtl.dispatch.first
import rtl.dispatch.picker
import rtl.dispatch.tables
import rtl.dispatch.walker
import rtl.stream
import sim.dispatch
from golden.dispatch_streams import BF16_ONE, DispatchStreams, dispatch_streams
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.dispatch.first import FirstOf
from rtl.dispatch.layouts import IDENTITY_BITS
from sim.dispatch import DispatchCycles, Units, dispatch_cycles
from sim.streams import readiness, taken
from spec.design import Pipeline, Policy
from spec.errors import InputError
from spec.model import NO_PLACES
from spec.registers import POLICIES
from tests.bfm import Sink, Source, Trace, run_streams
from tests.block_bench import (
    DIVERGED,
    PATTERN_CYCLES,
    TRAFFIC,
    arrivals_of,
    bits_of,
    check_stream,
    pattern_of,
    plant_bug,
    ready_in,
)


@dataclass(frozen=True)
class Case:
    """One run: configuration, tokens, traffic. ``seed`` gives weights, placement and patterns.

    ``replicas``: every expert has ``one`` unit, ``some``, or ``all``. ``retire``: units give back what they
    hold in cycles drawn at random (``drawn``), or so many cycles after they have it (``served``). Weights
    are drawn too, if there are none.
    """

    config: DispatchConfig
    ids: np.ndarray = field(repr=False)
    batches: list[int]
    capacity: int = 0
    policy: Policy = Policy.QUEUE_ORDER
    gaps: str = "none"
    stalls: str = "none"
    replicas: str = "some"
    retire: str = "drawn"
    weights: np.ndarray | None = field(default=None, repr=False)
    scores: np.ndarray | None = field(default=None, repr=False)
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        return self.ids.shape[0]


def experts_of_tokens(rng, num_tokens: int, num_experts: int, top_k: int, skew: float = 0.0) -> np.ndarray:
    """Return (tokens, top_k) distinct experts per token; a large skew prefers low numbers."""
    keys = rng.random((num_tokens, num_experts)) + skew * np.arange(num_experts) / num_experts
    return np.argsort(keys, axis=1)[:, :top_k]


@dataclass(frozen=True)
class Run:
    """Everything that a run should give and has given."""

    streams: DispatchStreams
    model: DispatchCycles
    placement: np.ndarray
    retiring: Retiring
    expected: dict[str, list[int]]
    traces: dict[str, Trace]
    dropped: int


class Retiring:
    """Units that tell when they have done a job: in drawn cycles, or so long after they have it."""

    def __init__(self, rng: np.random.Generator, case: Case) -> None:
        num_units = case.config.num_units
        self.served = case.retire == "served"
        rate = rng.choice([0.02, 0.2, 0.7], size=num_units)
        self.drawn = rng.random((PATTERN_CYCLES, num_units)) < rate
        self.durations = rng.integers(1, 40, size=(case.ids.size + case.num_tokens, num_units))
        self.done: list[list[int]] = [[] for _ in range(num_units)]

    def pulse(self, unit: int, cycle: int, got) -> int:
        """Return the input of the hardware in this cycle."""
        if not self.served:
            return int(cycle >= PATTERN_CYCLES or self.drawn[cycle, unit])
        taken_in = [cycle for cycle, payload in got[f"o_{unit}"] if payload >> self.last_bit]
        return int(cycle in self.finished(unit, taken_in))

    def finished(self, unit: int, taken_in: list[int]) -> list[int]:
        """Return when jobs are done whose last entries were taken in these cycles."""
        done: list[int] = []
        for number, cycle in enumerate(taken_in):
            done.append(max([cycle, *done[-1:]]) + int(self.durations[number, unit]))
        return done

    def model(self):
        """Return the same for the model: the cycles of the pulses, or who tells them."""
        if not self.served:
            later = np.arange(PATTERN_CYCLES, 2 * PATTERN_CYCLES)
            return [np.concatenate([np.flatnonzero(column), later]) for column in self.drawn.T]
        taken_in: list[list[int]] = [[] for _ in self.done]

        def service(unit: int, _job: int, entries) -> int:
            taken_in[unit].append(int(entries[-1]))
            return self.finished(unit, taken_in[unit])[-1]

        return service

    last_bit = 0


def placement_of(rng, config: DispatchConfig, replicas: str) -> np.ndarray:
    """Return for each expert, the shared one last, the set of its units as a bitmap."""
    count, everything = config.num_experts + 1, (1 << config.num_units) - 1
    if replicas == "all":
        return np.full(count, everything)
    if replicas == "one":
        return 1 << rng.integers(0, config.num_units, size=count)
    return rng.integers(1, everything + 1, size=count)


def run_case(case: Case, *, reset_after: int | None = None) -> Run:
    """Run a case in ``amaranth.sim``; ``reset_after`` cycles of other traffic and a reset come first."""
    config = case.config
    rng = np.random.default_rng(case.seed)
    weights = rng.integers(0, 1 << 16, size=case.ids.shape, dtype=np.uint16)
    if case.weights is not None:
        weights = case.weights
    shared_weights = None
    if config.shared_gate:
        shared_weights = rng.integers(0, 1 << 16, size=case.num_tokens, dtype=np.uint16)
    scores, words = scores_of(case)
    streams = dispatch_streams(
        case.ids,
        weights,
        shared_weights=shared_weights,
        scores=scores,
        kept_gating=config.kept_gating,
        signed_weights=config.signed_weights,
        num_identity_experts=config.num_identity_experts,
        num_experts=config.num_experts,
        window_tokens=config.window_tokens,
        batch_lengths=case.batches,
        capacity=NO_PLACES if config.no_places else case.capacity,
        capacity_rule=config.capacity_rule,
        shared=config.shared,
        policy=case.policy if config.longest_queue else Policy.QUEUE_ORDER,
    )
    beats = [
        bits_of(
            config.assignment,
            expert=case.ids[t, j],
            weight=weights[t, j],
            **({} if shared_weights is None else {"shared": shared_weights[t]}),
            **({} if words is None else {"score": int(words[t, j])}),
            last=j == config.top_k - 1,
            # Only the last beat's flag matters; the others carry noise.
            last_token=streams.last_token[t] if j == config.top_k - 1 else rng.integers(2),
        )
        for t in range(case.num_tokens)
        for j in range(config.top_k)
    ]
    arrivals = arrivals_of(rng, case.gaps, len(beats))
    ready = {name: pattern_of(rng, case.stalls) for name in ("o_expect", *config.outputs())}
    placement = placement_of(rng, config, case.replicas)
    retiring = Retiring(rng, case)
    retiring.last_bit = config.entry.size - 1
    several = config.num_units > 1
    model = dispatch_cycles(
        streams,
        arrivals,
        expect_ready=readiness(ready["o_expect"]),
        unit_ready=[readiness(ready[name]) for name in config.outputs()],
        units=Units(config.num_units, placement, config.unit_jobs) if several else None,
        retired=retiring.model() if several else (),
        pipeline=config.pipeline,
    )
    expected = {"i": beats, "o_expect": expected_counts(config, streams)}
    for name, entries in zip(config.outputs(), model.unit_entries, strict=True):
        expected[name] = expected_entries(config, streams, entries)

    dut = Dispatch(config)
    reset = Signal()
    dropped = [0]

    async def count_dropped(ctx):
        async for *_, in_reset, pulse in ctx.tick().sample(reset, dut.dropped):
            dropped[0] = 0 if in_reset else dropped[0] + int(pulse)

    async def prologue(ctx):
        if several:
            await write_placement(ctx, dut, placement)
        if reset_after is not None:
            await other_traffic(ctx, dut, rng, reset_after)
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)

    traces = run_streams(
        ResetInserter(reset)(dut),
        {"i": Source(beats, arrivals.tolist())},
        {name: Sink(len(expected[name]), ready_in(pattern)) for name, pattern in ready.items()},
        statics={"capacity": case.capacity, "policy": POLICIES.index(case.policy)},
        inputs={name: partial(retiring.pulse, unit) for unit, name in enumerate(config.retirements())},
        prologue=prologue,
        monitors=[count_dropped],
        max_cycles=200 + int(max([*model.i, *model.o_expect, *model.entries], default=0)),
    )
    return Run(
        streams=streams,
        model=model,
        placement=placement,
        retiring=retiring,
        expected=expected,
        traces=traces,
        dropped=dropped[0],
    )


def scores_of(case: Case) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the scores with 30 fraction bits, drawn if there are none, and as the gate gives them."""
    config = case.config
    if not config.score_bits:
        return None, None
    scores = case.scores
    if scores is None:
        rng = np.random.default_rng(case.seed + 1)
        # Small ones among them, and equal ones.
        scores = rng.integers(0, 1 << 30, case.ids.shape) >> rng.integers(0, 31, case.ids.shape)
        if config.signed_weights:
            scores = (scores * rng.choice([-1, 1], scores.shape)) << 10
    words = scores
    if config.signed_weights:
        words = (scores >> 10) + (1 << 31)
    return scores, words


def expected_counts(config, streams) -> list[int]:
    mask = (1 << IDENTITY_BITS) - 1
    return [
        bits_of(
            config.expect,
            slot=slot,
            count=count,
            last_token=last,
            **({"identity": int(total) & mask} if config.num_identity_experts else {}),
        )
        for slot, count, last, total in zip(
            streams.expect_slot,
            streams.expect_count,
            streams.last_token,
            streams.identity_sum,
            strict=True,
        )
    ]


def expected_entries(config, streams, entries) -> list[int]:
    ranks = {"rank": streams.entry_rank} if config.ranks else {}
    return [
        bits_of(
            config.entry,
            expert=streams.entry_expert[n],
            slot=streams.entry_slot[n],
            **{name: values[n] for name, values in ranks.items()},
            weight=streams.entry_weight[n],
            last=streams.entry_last[n],
        )
        for n in entries
    ]


async def write_placement(ctx, dut, placement) -> None:
    ctx.set(dut.place_we, 1)
    for expert, units in enumerate(placement.tolist()):
        ctx.set(dut.place_addr, expert)
        ctx.set(dut.place_units, units)
        await ctx.tick()
    ctx.set(dut.place_we, 0)


async def other_traffic(ctx, dut, rng, cycles: int) -> None:
    """Offer random beats and be ready at random, so that a reset finds every part at work."""
    config = dut.config
    outputs = ("o_expect", *config.outputs())
    for _ in range(cycles):
        ctx.set(dut.i.valid, 1)
        ctx.set(
            dut.i.payload,
            {
                "expert": int(rng.integers(config.num_experts)),
                "weight": int(rng.integers(1 << 16)),
                "last": int(rng.random() < 1 / config.top_k),
                "last_token": int(rng.random() < 0.1),
            },
        )
        for name in outputs:
            ctx.set(getattr(dut, name).ready, int(rng.random() < 0.5))
        await ctx.tick()
    ctx.set(dut.i.valid, 0)


def check(case: Case, run: Run) -> None:
    """Compare every stream with golden and with the model; name the first divergence."""
    cycles = {"i": run.model.i, "o_expect": run.model.o_expect}
    cycles |= dict(zip(case.config.outputs(), run.model.units, strict=True))
    for name, want in run.expected.items():
        check_stream("dispatch", name, run.traces[name], want, cycles[name], case)
    assert run.dropped == run.streams.dropped, f"{run.dropped} drops, golden: {run.streams.dropped}, {case}"


def random_case(seed: int) -> Case:
    """Return a random case; every parameter over its whole range."""
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(1, 41)) if seed % 3 else int(rng.integers(1, 9))
    top_k = int(rng.integers(1, min(num_experts, 8) + 1))
    config = DispatchConfig(
        num_experts=num_experts,
        top_k=top_k,
        window_tokens=1 << int(rng.integers(4)),
        shared=bool(rng.integers(2)),
        capacity_bits=int(rng.integers(3, 9)),
    )
    batches = rng.integers(1, 3 * config.window_tokens + 2, size=int(rng.integers(1, 5))).tolist()
    while sum(batches) * top_k > 160 and len(batches) > 1:
        batches.pop()
    ids = experts_of_tokens(rng, sum(batches), num_experts, top_k, skew=float(rng.choice([0, 1, 3])))
    return Case(
        config=config,
        ids=ids,
        batches=batches,
        capacity=int(rng.choice([0, 1, 2, 5])),
        gaps=TRAFFIC[seed % 3],
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(45))
def test_random(seed):
    case = random_case(seed)
    check(case, run_case(case))


def deep(case: Case) -> Case:
    """Return a case whose dispatcher has deep pipelines."""
    return replace(case, config=replace(case.config, deep=True))


@pytest.mark.parametrize(
    "seed", [*range(9), *(pytest.param(n, marks=pytest.mark.long) for n in range(9, 90))]
)
def test_random_deep(seed):
    case = deep(random_case(seed))
    check(case, run_case(case))


def small(ids, **changes) -> Case:
    """Return a case over these experts, in one batch, with windows of four tokens."""
    ids = np.asarray(ids)
    config = DispatchConfig(
        num_experts=changes.pop("num_experts", 4),
        top_k=ids.shape[1],
        window_tokens=changes.pop("window_tokens", 4),
        shared=changes.pop("shared", False),
        capacity_bits=4,
    )
    return Case(config=config, ids=ids, batches=changes.pop("batches", [ids.shape[0]]), **changes)


CORNERS = {
    "all_tokens_to_one_expert": small([[2]] * 11),
    "expert_with_none": small([[0, 3]] * 9),
    "capacity_overflow": small([[1, 0], [1, 2], [1, 3]] * 5, capacity=2, batches=[4, 11]),
    "capacity_counts_run_across_windows": small([[1]] * 12, capacity=6),
    "capacity_resets_with_the_batch": small([[1]] * 12, capacity=2, batches=[1, 1, 3, 7]),
    "k_1": small([[t % 4] for t in range(13)]),
    "k_equals_num_experts": small([[3, 2, 1, 0]] * 9),
    "one_expert": small([[0]] * 9, num_experts=1),
    "one_expert_and_the_shared_one": small([[0]] * 9, num_experts=1, shared=True),
    "window_of_one_token": small([[0, 1], [1, 2], [3, 1]] * 4, window_tokens=1),
    "window_of_one_token_shared": small([[0, 1], [1, 2], [3, 1]] * 4, window_tokens=1, shared=True),
    "everything_dropped_in_some_windows": small([[0, 1]] * 19, capacity=1),
    "everything_dropped_but_shared": small([[0, 1]] * 19, capacity=1, shared=True),
    "batches_of_one_token": small([[0, 1], [1, 2], [3, 1]] * 4, batches=[1] * 12),
    "back_to_back_same_expert": small([[1], [1], [2], [1], [1], [1], [3], [3]] * 2),
    "same_expert_in_k_1_windows_of_one": small([[1]] * 9, window_tokens=1, capacity=7),
    "last_window_partial": small([[0, 1], [1, 2], [3, 1]] * 3, batches=[9]),
    "highest_expert_only": small([[15]] * 5, num_experts=16, shared=True),
}


@pytest.mark.parametrize("stalls", TRAFFIC)
@pytest.mark.parametrize("name", CORNERS)
def test_corner(name, stalls):
    case = replace(CORNERS[name], stalls=stalls, gaps="none" if stalls == "none" else "bursts", seed=7)
    run = run_case(case)
    check(case, run)
    if name.startswith("everything_dropped"):
        kept_in_window = np.bincount(run.streams.window, run.streams.kept.any(axis=1))
        assert (kept_in_window == 0).any(), "the corner was not reached"
    if "capacity" in name:
        assert run.dropped > 0, "the corner was not reached"


@pytest.mark.parametrize("name", CORNERS)
def test_corner_deep(name):
    case = deep(replace(CORNERS[name], seed=7))
    check(case, run_case(case))


@pytest.mark.parametrize("seed", range(6))
def test_reset_in_the_middle(seed):
    case = random_case(1000 + seed)
    check(case, run_case(case, reset_after=5 + 17 * seed))


@pytest.mark.parametrize("pipeline", Pipeline)
@pytest.mark.parametrize("shared", [False, True])
def test_latency_is_as_stated(shared, pipeline):
    assert Dispatch.LATENCY == sim.dispatch.LATENCY
    assert Dispatch.DEEP_LATENCY == sim.dispatch.DEEP_LATENCY
    assert Dispatch.EXPECT_LATENCY == sim.dispatch.EXPECT_LATENCY
    case = small([[0, 1], [1, 2], [3, 1], [0, 2]], shared=shared)
    latency = Dispatch.LATENCY
    if pipeline is Pipeline.DEEP:
        case, latency = deep(case), Dispatch.DEEP_LATENCY
    traces = run_case(case).traces
    assert traces["i"].cycles.tolist() == list(range(8))
    assert (traces["o_expect"].cycles == traces["i"].cycles[1::2] + Dispatch.EXPECT_LATENCY).all()
    first = int(traces["i"].cycles[-1]) + latency
    assert traces["o_0"].cycles.tolist() == list(range(first, first + 8 + 4 * shared))


def test_no_bubbles_between_experts_and_closed_windows():
    rng = np.random.default_rng(3)
    case = small(experts_of_tokens(rng, 16, 8, 2), num_experts=8, window_tokens=8, shared=True)
    cycles = run_case(case).traces["o_0"].cycles
    assert (np.diff(cycles) == 1).all()


def test_saturated_throughput_is_as_stated():
    """Two windows take 2 * window_tokens * top_k + 4 cycles where filling takes as long as serving."""
    case = small(experts_of_tokens(np.random.default_rng(3), 48, 4, 2), window_tokens=4)
    run = run_case(case)
    check(case, run)
    closing = run.traces["i"].cycles[7::8]
    assert (closing[4:] - closing[2:-2] == 2 * 8 + 4).all()


# The checks themselves must fail where the hardware is wrong.
PLANTED = {
    "capacity off by one": (rtl.dispatch.enqueue, "(count < self.capacity)", "(count <= self.capacity)"),
    "counts survive the batch": (rtl.dispatch.enqueue, "m.d.sync += seen.eq(0)", "m.d.sync += seen.eq(seen)"),
    "old tail not read": (rtl.dispatch.tables, "old_tail.en.eq(self.lookup.valid)", "old_tail.en.eq(0)"),
    "counts not transparent": (
        rtl.dispatch.enqueue,
        "ceil_log2(config.num_counted), transparent=True",
        "config.expert_bits",
    ),
    "tails not transparent": (rtl.dispatch.tables, "num_read_ports=2, transparent=True", "num_read_ports=2"),
    "highest expert first": (
        rtl.dispatch.first,
        "m.d.comb += take_low.eq(low_any)",
        "m.d.comb += take_low.eq(~high_any)",
    ),
    "window one token short": (
        rtl.dispatch.enqueue,
        "tokens == config.window_tokens - 1",
        "tokens == config.window_tokens - 2",
    ),
    "queue bit not cleared": (
        rtl.dispatch.picker,
        "self.clear.valid.eq(choose & ~take_shared)",
        "self.clear.valid.eq(0)",
    ),
    "queues not counted down": (rtl.dispatch.tables, "+ more - less", "+ more"),
    "shared expert not counted": (rtl.dispatch.enqueue, "kept_now + int(config.shared)", "kept_now"),
    "end of the batch": (
        rtl.dispatch.enqueue,
        "expect.i.payload.last_token.eq(s1.last_token)",
        "expect.i.payload.last_token.eq(0)",
    ),
    "shared weight": (
        rtl.dispatch.walker,
        "self.o.payload.weight.eq(weight)",
        "self.o.payload.weight.eq(0)",
    ),
    "last flag": (
        rtl.dispatch.walker,
        "self.o.payload.last.eq(at_tail)",
        "self.o.payload.last.eq(at_tail & job.final)",
    ),
    "drop pulse": (
        rtl.dispatch.enqueue,
        "self.dropped.eq(s1_fire & ~keep)",
        "self.dropped.eq(s1_fire & keep)",
    ),
    "one cycle late: head": (
        rtl.dispatch.walker,
        "take_head.eq(head_valid & (~valid | (fire & at_tail)))",
        "take_head.eq(head_valid & ~valid)",
    ),
    "one cycle late: window": (
        rtl.dispatch.picker,
        "found.eq(closed.bit_select(oldest, 1) &",
        "found.eq(closed.bit_select(oldest, 1) & ~self.o.valid &",
    ),
    "both windows open": (rtl.dispatch.enqueue, "~full.bit_select(parity, 1)", "~self.full.all()"),
}


def revealing_case() -> Case:
    rng = np.random.default_rng(1)
    ids = np.concatenate([experts_of_tokens(rng, 12, 4, 2), [[1, 2]] * 6, [[2, 3]] * 4])
    return small(ids, shared=True, capacity=5, batches=[7, 15], seed=1)


def test_unbroken_source_passes():
    check(revealing_case(), run_case(revealing_case()))


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        check(revealing_case(), run_case(revealing_case()))


PLANTED_IN_DEEP = {
    "window that is being closed": (rtl.dispatch.enqueue, "full = full | Cat(", "full = full & ~Cat("),
    "push of this cycle": (rtl.dispatch.tables, "self.lookup.queue) | again)", "self.lookup.queue))"),
    "counted in this cycle": (rtl.dispatch.enqueue, "self.expert, 1) | decided_now)", "self.expert, 1))"),
    "batch that ends in this cycle": (rtl.dispatch.enqueue, "~(self.decide & self.end) & (seen", "(seen"),
    "head is no tail": (rtl.dispatch.walker, "at_tail.eq(head_is_last)", "at_tail.eq(0)"),
    "end of the shared queue": (
        rtl.dispatch.walker,
        "next_is_last.eq(slot == tail.slot)",
        "next_is_last.eq(0)",
    ),
    "room for three": (rtl.stream, "room.eq(leaves | ~(", "room.eq(1 | ~("),
    "model: close": (sim.dispatch, "DEEP_CLOSE_CYCLES = 1, 2", "DEEP_CLOSE_CYCLES = 1, 1"),
    "model: room of the pair": (sim.dispatch, "now[_STAGED] + 1)", "now[_STAGED_LAST] + 1)"),
}


def check_deep_cases() -> None:
    """Check what the planted bugs show in: windows of one token, an expert again and again, stalls."""
    case = revealing_case()
    again = small([[1]] * 6, capacity=1)
    one_token = small([[1], [1], [2]] * 4, window_tokens=1, batches=[1] * 12, capacity=1)
    for one in (case, replace(case, stalls="bursts"), again, one_token):
        check(deep(one), run_case(deep(one)))


@pytest.mark.parametrize("bug", PLANTED_IN_DEEP)
def test_planted_bug_in_deep_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED_IN_DEEP[bug])
    with pytest.raises(DIVERGED):
        check_deep_cases()


def test_unbroken_deep_source_passes():
    check_deep_cases()


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("shared weight", "dispatch o_0: beat 0 in cycle 9: rtl 0x4, golden 0xfe004; Case("),
        ("one cycle late: head", "dispatch o_0: beat 4: rtl in cycle 14, model 13; Case("),
    ],
)
def test_divergence_is_named(monkeypatch, bug, message):
    plant_bug(monkeypatch, *PLANTED[bug])
    case = small([[0]] * 4, shared=True, seed=1)
    with pytest.raises(pytest.fail.Exception, match=f"^{re.escape(message)}.*seed=1"):
        check(case, run_case(case))


class NaiveDispatcher:
    """One queue per expert, one token at a time: independent of golden's sorting."""

    def __init__(self, config: DispatchConfig, capacity: int) -> None:
        self.config = config
        self.capacity = capacity
        self.taken: dict[int, int] = {}
        self.queues: dict[int, list] = {}
        self.expect: list = []
        self.entries: list = []
        self.waiting = 0

    def token(self, number: int, experts: list[int], weights: list[int], *, ends_batch: bool) -> None:
        slot = number % self.config.num_slots
        count = 0
        if self.config.shared:
            self.queues.setdefault(-1, []).append((slot, BF16_ONE))
            count += 1
        for expert, weight in zip(experts, weights, strict=True):
            if self.capacity and self.taken.get(expert, 0) == self.capacity:
                continue
            self.taken[expert] = self.taken.get(expert, 0) + 1
            self.queues.setdefault(expert, []).append((slot, weight))
            count += 1
        self.expect.append((slot, count))
        self.waiting += 1
        if ends_batch or self.waiting == self.config.window_tokens:
            self.serve()
        if ends_batch:
            self.taken = {}

    def serve(self) -> None:
        for expert in sorted(self.queues):
            queue = self.queues[expert]
            for n, (slot, weight) in enumerate(queue):
                number = self.config.num_experts if expert < 0 else expert
                self.entries.append((number, slot, weight, n == len(queue) - 1))
        self.queues = {}
        self.waiting = 0


@pytest.mark.parametrize("seed", range(60))
def test_golden_against_naive_queues(seed):
    case = random_case(seed)
    config = case.config
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 1 << 16, case.ids.shape, dtype=np.uint16)
    streams = dispatch_streams(
        case.ids, weights, num_experts=config.num_experts, window_tokens=config.window_tokens,
        batch_lengths=case.batches, capacity=case.capacity, shared=config.shared,
    )  # fmt: skip
    naive = NaiveDispatcher(config, case.capacity)
    for t, ends in enumerate(streams.last_token.tolist()):
        naive.token(t, case.ids[t].tolist(), weights[t].tolist(), ends_batch=ends)
    assert naive.expect == list(
        zip(streams.expect_slot.tolist(), streams.expect_count.tolist(), strict=True)
    ), case
    got = list(
        zip(
            streams.entry_expert.tolist(), streams.entry_slot.tolist(),
            streams.entry_weight.tolist(), streams.entry_last.tolist(), strict=True,
        )
    )  # fmt: skip
    assert got == naive.entries, case
    assert streams.dropped == case.ids.size - sum(entry[0] < config.num_experts for entry in naive.entries)

    # Nothing lost or duplicated; inside an expert nothing reordered.
    routed = streams.entry_expert < config.num_experts
    pairs = np.stack([streams.entry_token[routed], streams.entry_expert[routed]], axis=1)
    assert np.unique(pairs, axis=0).shape == pairs.shape
    assert len(pairs) == np.count_nonzero(streams.kept)
    for expert in np.unique(streams.entry_expert):
        assert (np.diff(streams.entry_token[streams.entry_expert == expert]) > 0).all()
    jobs = streams.jobs()
    assert sum(job.tokens.size for job in jobs) == streams.entry_token.size
    assert np.array_equal(np.concatenate([job.weights for job in jobs]), streams.entry_weight)


def test_golden_without_tokens():
    streams = dispatch_streams(
        np.zeros((0, 2)), np.zeros((0, 2)), num_experts=4, window_tokens=4, shared=True, capacity=1
    )
    assert (streams.num_windows, streams.dropped, streams.jobs()) == (0, 0, [])
    model = dispatch_cycles(streams, [])
    assert model.i.size == model.o_expect.size == model.entries.size == 0


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13])
def test_lowest_set(width):
    from amaranth.sim import Simulator

    dut = FirstOf(width)

    async def bench(ctx):
        for bits in (
            range(1 << width) if width <= 8 else np.random.default_rng(0).integers(1 << width, size=300)
        ):
            ctx.set(dut.bits, int(bits))
            await ctx.delay(1e-9)
            assert ctx.get(dut.any) == (bits != 0)
            if bits:
                assert ctx.get(dut.index) == (int(bits) & -int(bits)).bit_length() - 1

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


def test_ready_pattern_stays_ready_after_its_end():
    ready = readiness(np.array([False, True, False, True]))
    assert [taken(cycle, ready) for cycle in range(6)] == [1, 1, 3, 3, 4, 5]


GOOD = {"num_experts": 4, "top_k": 2, "window_tokens": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts: must be in 1..512, not 0"),
        ({"top_k": 5}, "top_k: must be in 1..num_experts=4, not 5"),
        ({"top_k": 0}, "top_k: must be in 1..num_experts=4, not 0"),
        ({"window_tokens": 3}, "window_tokens: must be a power of two in 1..1024, not 3"),
        ({"window_tokens": 0}, "window_tokens: must be a power of two in 1..1024, not 0"),
        ({"num_units": 0}, "num_units: must be in 1..64, not 0"),
        ({"unit_jobs": 17}, "unit_jobs: must be in 1..16, not 17"),
        ({"capacity_bits": 33}, "capacity_bits: must be in 1..32, not 33"),
    ],
)
def test_config_rules(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        DispatchConfig(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [0, 1]}, "ids: must have shape (tokens, top_k), not (2,)"),
        ({"ids": [[0, 4]]}, "ids: must be in 0..num_experts-1=3, not 4"),
        ({"weights": [[0]]}, "weights: must have the shape of ids=(1, 2), not (1, 1)"),
        ({"batch_lengths": [2]}, "batch_lengths: must be positive and sum to the 1 tokens, not [2]"),
        ({"batch_lengths": [1, 0]}, "batch_lengths: must be positive and sum to the 1 tokens, not [1, 0]"),
    ],
)
def test_golden_rules(change, message):
    arguments = {"ids": [[0, 1]], "weights": [[0, 0]], "num_experts": 4, "window_tokens": 4, **change}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        dispatch_streams(arguments.pop("ids"), arguments.pop("weights"), **arguments)


def test_model_rules():
    streams = dispatch_streams([[0, 1]], [[0, 0]], num_experts=4, window_tokens=4)
    for arguments, message in (
        ({"arrivals": [0]}, "arrivals: must have one cycle for each of 2 beats, not shape (1,)"),
        (
            {"arrivals": [0, 0], "unit_ready": []},
            "unit_ready: must have a pattern for each of 1 units, not 0",
        ),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            dispatch_cycles(streams, **arguments)
