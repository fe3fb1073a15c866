"""The combiner that adds in the order of ranks: hardware against golden, against its cycle model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from amaranth import ResetInserter, Signal

import rtl.combine
import rtl.combine_ordered
import sim.combine_ordered
from golden.combine_bf16 import Contribution, combine_bf16
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from rtl.dispatch import DispatchConfig
from sim.combine import CombineCycles
from sim.combine_ordered import ordered_cycles
from sim.streams import readiness
from spec.errors import InputError
from spec.geometry import ACCUMULATE_DISTANCE
from tests.bfm import Sink, Source, Trace, run_streams
from tests.block_bench import (
    DIVERGED,
    TRAFFIC,
    arrivals_of,
    bits_of,
    check_stream,
    pattern_of,
    plant_bug,
    ready_in,
)
from tests.test_combine import Starts, identity_case, values_of

ORDERS = ("beats", "contributions", "tokens")


@dataclass(frozen=True)
class Case:
    """One run: configuration, contributions per token, traffic. ``seed`` gives values and patterns.

    ``order`` says how contributions come: beats of all that are open at random, whole contributions at
    random, or a token's contributions directly behind each other; in random order of their ranks always.
    """

    config: OrderedConfig
    counts: np.ndarray = field(repr=False)
    order: str = "beats"
    values: str = "normal"
    gaps: str = "none"
    expect_gaps: str = "none"
    stalls: str = "none"
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        return self.counts.size


@dataclass(frozen=True)
class Beats:
    """The beats of a run, in order: token, rank and word of each."""

    token: np.ndarray
    rank: np.ndarray
    word: np.ndarray


@dataclass(frozen=True)
class Run:
    """Everything that a run should give and has given."""

    model: CombineCycles
    expected: dict[str, list[int]]
    traces: dict[str, Trace]
    freed: list[int]


def beats_of(rng, case: Case) -> Beats:
    """Draw the order of the beats: at most ``num_slots`` tokens are open, the oldest closes first."""
    config = case.config
    left = {(token, rank): 0 for token in range(case.num_tokens) for rank in range(int(case.counts[token]))}
    sequence = []
    while left:
        oldest = min(token for token, _ in left)
        opened = [key for key in left if key[0] < oldest + config.num_slots]
        if case.order == "tokens":
            opened = [key for key in opened if key[0] == oldest]
        key = opened[rng.integers(len(opened))]
        for _ in range(1 if case.order == "beats" else config.words):
            sequence.append((*key, left[key]))
            left[key] += 1
        if left[key] == config.words:
            del left[key]
    columns = np.array(sequence, dtype=np.int64).reshape(-1, 3).T
    return Beats(*columns)


def schedule(case: Case, beats: Beats, arrivals, expect_arrivals, ready):
    """Delay what would use a slot before it is freed; return the arrivals and the model's cycles.

    A slot's use depends on earlier tokens only, so the iteration ends.
    """
    slots, words = case.config.num_slots, case.config.words
    reused = beats.token >= slots
    last = beats.word == words - 1
    while True:
        model = ordered_cycles(beats.token, last, arrivals, expect_arrivals, words=words, ready=ready)
        after = arrivals.copy()
        after[reused] = np.maximum(arrivals[reused], model.freed[beats.token[reused] - slots])
        expect_after = expect_arrivals.copy()
        expect_after[slots:] = np.maximum(expect_arrivals[slots:], model.freed[:-slots])
        if np.array_equal(after, arrivals) and np.array_equal(expect_after, expect_arrivals):
            return arrivals, expect_arrivals, model
        arrivals, expect_arrivals = after, expect_after


def golden_tokens(case: Case, weights: np.ndarray, data: np.ndarray, start=None) -> np.ndarray:
    """Return golden's (tokens, words * lanes), from (tokens, ranks) weights and their results."""
    config = case.config
    contributions = []
    for rank in range(config.max_count):
        of = np.flatnonzero(case.counts > rank)
        results = data[of, rank].reshape(of.size, config.words * config.lanes)
        contributions.append(Contribution(tokens=of, weights=weights[of, rank], results=results))
    return combine_bf16(contributions, case.num_tokens, config.words * config.lanes, start)


def drawn_values(rng, kind: str, shape) -> np.ndarray:
    """Return bf16 patterns; ``cancelling``: 1.5 and plus or minus 2**30, whose sum depends on the order."""
    if kind == "cancelling":
        return rng.choice(np.array([0x3FC0, 0x4E80, 0xCE80], dtype=np.uint16), shape)
    return values_of(rng, kind, shape)


@dataclass(frozen=True)
class Prepared:
    """What goes in, and what golden and model say comes out."""

    arrivals: np.ndarray
    expect_arrivals: np.ndarray
    model: CombineCycles
    expected: dict[str, list[int]]
    token_beats: list[int]
    token_port: str


def prepare(rng, case: Case, arrivals, expect_arrivals, ready, beats: Beats, drawn=None) -> Prepared:
    """Return the payloads of every stream and the model's cycles; ``drawn``: of these results and weights."""
    config = case.config
    words = config.words
    data, weights = drawn or (
        drawn_values(rng, case.values, (case.num_tokens, config.max_count, words, config.lanes)),
        drawn_values(rng, case.values, (case.num_tokens, config.max_count)),
    )
    last_token = rng.random(case.num_tokens) < 0.3
    starts = Starts.draw(rng, case)
    token_beats = starts.beats(rng) if starts else []
    if starts:
        # First tokens, then their announcements, then contributions.
        expect_arrivals = expect_arrivals + len(token_beats)
        arrivals = arrivals + int(expect_arrivals.max(initial=0)) + 3
    arrivals, expect_arrivals, model = schedule(case, beats, arrivals, expect_arrivals, ready)
    results = golden_tokens(case, weights, data, starts.golden() if starts else None)
    results = results.reshape(-1, config.lanes)
    expected = {
        "i": [
            bits_of(
                config.contribution,
                slot=token % config.num_slots,
                rank=rank,
                word=word,
                weight=weights[token, rank],
                data=data[token, rank, word],
                last=word == words - 1,
            )
            for token, rank, word in zip(beats.token, beats.rank, beats.word, strict=True)
        ],
        "i_expect": [
            bits_of(
                config.expect,
                slot=t % config.num_slots,
                count=case.counts[t],
                last_token=last_token[t],
                **(starts.of_expect(t) if starts else {}),
            )
            for t in range(case.num_tokens)
        ],
        "o": [
            bits_of(
                config.output,
                data=results[n],
                token_last=n % words == words - 1,
                last=n % words == words - 1 and last_token[n // words],
            )
            for n in range(case.num_tokens * words)
        ],
    }
    port = starts.port if starts else ""
    return Prepared(arrivals, expect_arrivals, model, expected, token_beats, port)


def run_case(case: Case, *, reset_after: int | None = None) -> Run:
    """Run a case in ``amaranth.sim``; ``reset_after`` cycles of other traffic and a reset come first."""
    rng = np.random.default_rng(case.seed)
    pattern = pattern_of(rng, case.stalls)
    beats = beats_of(rng, case)
    expect_arrivals = arrivals_of(rng, case.expect_gaps, case.num_tokens)
    job = prepare(
        rng,
        case,
        arrivals_of(rng, case.gaps, beats.token.size),
        expect_arrivals * (1 if case.expect_gaps == "none" else 5),
        readiness(pattern),
        beats,
    )
    dut = OrderedCombine(case.config)
    reset = Signal()
    freed: list[int] = []

    async def watch_freed(ctx):
        cycle = 0
        async for *_, in_reset, pulse in ctx.tick().sample(reset, dut.freed):
            if in_reset:
                cycle = 0
                freed.clear()
                continue
            if pulse:
                freed.append(cycle)
            cycle += 1

    async def prologue(ctx):
        if reset_after is not None:
            await other_traffic(ctx, dut, rng, reset_after)
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)

    traces = run_streams(
        ResetInserter(reset)(dut),
        {
            "i": Source(job.expected["i"], job.arrivals.tolist()),
            "i_expect": Source(job.expected["i_expect"], job.expect_arrivals.tolist()),
            **(
                {job.token_port: Source(job.token_beats, [0] * len(job.token_beats))}
                if job.token_beats
                else {}
            ),
        },
        {"o": Sink(len(job.expected["o"]), ready_in(pattern))},
        prologue=prologue,
        monitors=[watch_freed],
        max_cycles=200 + int(max([*job.model.i, *job.model.o], default=0)),
    )
    return Run(model=job.model, expected=job.expected, traces=traces, freed=freed)


async def other_traffic(ctx, dut, rng, cycles: int) -> None:
    """Offer random beats and be ready at random, so that a reset finds every part at work."""
    config = dut.config
    for _ in range(cycles):
        word = int(rng.integers(config.words))
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload.slot, int(rng.integers(config.num_slots)))
        ctx.set(dut.i.payload.rank, int(rng.integers(config.max_count)))
        ctx.set(dut.i.payload.word, word)
        ctx.set(dut.i.payload.last, int(word == config.words - 1))
        ctx.set(dut.i_expect.valid, 1)
        ctx.set(dut.i_expect.payload.slot, int(rng.integers(config.num_slots)))
        ctx.set(dut.i_expect.payload.count, int(rng.integers(2)))
        ctx.set(dut.o.ready, int(rng.random() < 0.5))
        await ctx.tick()
    ctx.set(dut.i.valid, 0)
    ctx.set(dut.i_expect.valid, 0)


def check(case: Case, run: Run) -> None:
    """Compare every stream with golden and with the model; name the first divergence."""
    for name, payloads in run.expected.items():
        check_stream("combine", name, run.traces[name], payloads, getattr(run.model, name), case)
    assert run.freed == run.model.freed.tolist(), f"freed: rtl {run.freed}, model {run.model.freed}; {case}"


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 100))]
)
def test_random_identity_experts(seed):
    case = identity_case(random_case(seed), seed)
    check(case, run_case(case))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 60))]
)
def test_random_output_biases(seed):
    case = identity_case(random_case(seed), seed, bias=True)
    check(case, run_case(case))


def random_case(seed: int) -> Case:
    """Return a random case; every parameter over its whole range."""
    rng = np.random.default_rng(seed)
    config = OrderedConfig(
        num_slots=1 << int(rng.integers(1, 5)),
        d_model=int(rng.integers(1, 31)),
        lanes=int(rng.integers(1, 5)),
        max_count=int(rng.integers(1, 10)),
    )
    counts = rng.integers(0, config.max_count + 1, size=int(rng.integers(1, 3 * config.num_slots + 2)))
    while counts.sum() * config.words > 250 and counts.size > 1:
        counts = counts[:-1]
    return Case(
        config=config,
        counts=counts,
        order=str(rng.choice(ORDERS)),
        values=str(rng.choice(["normal", "cancelling", "anything", "extreme"])),
        gaps=TRAFFIC[seed % 3],
        expect_gaps=str(rng.choice(TRAFFIC)),
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 120))]
)
def test_random(seed):
    case = random_case(seed)
    check(case, run_case(case))


def small(counts, **changes) -> Case:
    """Return a case with these counts of contributions; four slots, three words of one lane."""
    counts = np.array(counts)
    config = OrderedConfig(
        num_slots=changes.pop("num_slots", 4),
        d_model=changes.pop("d_model", 3),
        lanes=changes.pop("lanes", 1),
        max_count=changes.pop("max_count", max(1, int(counts.max(initial=0)))),
    )
    return Case(config=config, counts=counts, **changes)


CORNERS = {
    "token_with_no_contributions": small([2, 0, 0, 1, 0, 3, 0]),
    "only_tokens_with_no_contributions": small([0] * 11),
    "one_word": small([3, 2, 4, 1, 5], d_model=1),
    "whole_groups": small([3, 2, 4, 1], d_model=2 * ACCUMULATE_DISTANCE),
    "one_word_beyond_a_group": small([3, 2, 4, 1], d_model=ACCUMULATE_DISTANCE + 1),
    "more_results_than_room": small([1, 1, 2, 1], d_model=29, stalls="half"),
    "all_slots_in_flight": small([2] * 24, num_slots=8, d_model=1),
    "nine_contributions": small([9, 9, 8, 9]),
    "one_contribution": small([1] * 13, max_count=1),
    "last_word_partial": small([2, 1, 3], d_model=5, lanes=4),
    "fewest_slots": small([2, 0, 1, 2, 3, 1], num_slots=2, order="contributions"),
    "extreme_values": small([1, 2, 3] * 4, d_model=6, lanes=4, values="extreme"),
    "any_values": small([4, 3, 4, 4, 2, 4, 4], values="anything"),
    "late_announcements": small([2, 1, 0, 3, 1, 2, 2, 1], expect_gaps="bursts"),
    "no_tokens": small([]),
}


@pytest.mark.parametrize(
    ("name", "stalls"),
    [
        pytest.param(name, stalls, marks=[pytest.mark.long] * ((n + bursts) % 2))
        for n, name in enumerate(CORNERS)
        for bursts, stalls in enumerate(("none", "bursts"))
    ],
)
def test_corner(name, stalls):
    case = CORNERS[name]
    if case.stalls == "none":
        case = replace(case, stalls=stalls)
    case = replace(case, gaps="none" if stalls == "none" else "half", seed=7)
    run = run_case(case)
    check(case, run)
    if name == "extreme_values":
        lanes = range(case.config.lanes)
        results = {payload >> 16 * lane & 0xFFFF for payload in run.traces["o"].payloads for lane in lanes}
        assert {0, 0x7F80, 0xFF80, 0x7FC0} <= results, "the corner was not reached"


@pytest.mark.parametrize("seed", range(4))
def test_reset_in_the_middle(seed):
    case = random_case(1000 + seed)
    check(case, run_case(case, reset_after=5 + 17 * seed))


def test_result_does_not_depend_on_the_order_of_arrival():
    """The same contributions in other orders give the same bits, where the order of addition would not."""
    rng = np.random.default_rng(0)
    counts = np.full(6, 5)
    results, in_other_order = set(), set()
    for order in ORDERS:
        case = replace(small(counts, d_model=6, num_slots=8), order=order, values="cancelling")
        values = np.random.default_rng(1)
        job = prepare(values, case, np.zeros(180), np.zeros(6), readiness(None), beats_of(rng, case))
        traces = run_streams(
            OrderedCombine(case.config),
            {
                "i": Source(job.expected["i"], [0] * 180),
                "i_expect": Source(job.expected["i_expect"], [0] * 6),
            },
            {"o": Sink(36)},
        )
        results.add(tuple(traces["o"].payloads))
        values = np.random.default_rng(1)
        data = drawn_values(values, case.values, (6, 5, 6, 1))
        weights = drawn_values(values, case.values, (6, 5))
        drawn = rng.permutation(5)
        in_other_order.add(golden_tokens(case, weights[:, drawn], data[:, drawn]).tobytes())
    assert len(results) == 1
    assert len(in_other_order) > 1, "the order does not matter for these values"


def test_latency_is_as_stated():
    assert sim.combine_ordered.LATENCY == OrderedCombine.LATENCY == 14
    assert sim.combine_ordered.EXPECT_LATENCY == OrderedCombine.EXPECT_LATENCY == 14
    assert sim.combine_ordered.ROOM == OrderedCombine.ROOM
    traces = run_case(small([1], seed=1)).traces
    assert traces["i"].cycles.tolist() == [0, 1, 2]
    first = 2 + OrderedCombine.LATENCY
    assert traces["o"].cycles.tolist() == [first, first + 1, first + 2]
    traces = run_case(small([3], seed=1)).traces
    assert traces["o"].cycles[0] == 8 + OrderedCombine.LATENCY + 2 * ACCUMULATE_DISTANCE
    cycles = run_case(small([0, 0])).traces["o"].cycles
    start = OrderedCombine.EXPECT_LATENCY
    assert cycles.tolist() == [start + n for n in (0, 1, 2, 4, 5, 6)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sums_keep_pace_with_one_beat_per_cycle(count):
    """Words a multiple of the distance: one beat in per cycle, tokens out as fast, without a gap."""
    case = small([count] * 8, d_model=8, num_slots=16, order="tokens")
    run = run_case(case)
    check(case, run)
    assert run.traces["i"].cycles.tolist() == list(range(8 * 8 * count))
    ends = run.traces["o"].cycles[7::8]
    assert (np.diff(ends) == 8 * count).all()


def test_stream_fits_the_dispatcher():
    dispatch = DispatchConfig(num_experts=16, top_k=4, window_tokens=4, shared=True, ranks=True)
    config = OrderedConfig(num_slots=dispatch.num_slots, d_model=8, lanes=2, max_count=dispatch.max_count)
    assert config.expect == dispatch.expect
    assert config.contribution["rank"].width == dispatch.entry["rank"].width


# The checks themselves must fail where the hardware is wrong.
PLANTED = {
    "rank ignored": (rtl.combine_ordered, "self.config.max_count + rank", "self.config.max_count"),
    "weight of another rank": (
        rtl.combine_ordered,
        "weights.write.addr.eq(Cat(beat.slot, beat.rank))",
        "weights.write.addr.eq(beat.slot)",
    ),
    "sum of the word before": (
        rtl.combine_ordered,
        "ACCUMULATE_DISTANCE - Accumulate.LATENCY, f",
        "ACCUMULATE_DISTANCE - Accumulate.LATENCY - 1, f",
    ),
    "first is not the first": (
        rtl.combine_ordered,
        "Mux(first, starts[lane], before.as_value())",
        "before.as_value()",
    ),
    "every rank is a result": (rtl.combine_ordered, "step.valid & step.final", "step.valid"),
    "one rank less": (rtl.combine_ordered, "(rank + 1 >= token.count)", "(rank + 2 >= token.count)"),
    "more than there is room for": (
        rtl.combine_ordered,
        "(owed <= self.room - ACCUMULATE_DISTANCE)",
        "(owed <= self.room)",
    ),
    "less than there is room for": (
        rtl.combine_ordered,
        "(owed <= self.room - ACCUMULATE_DISTANCE)",
        "(owed <= self.room - 2 * ACCUMULATE_DISTANCE)",
    ),
    "words beyond the last": (rtl.combine_ordered, "step & (word < config.words)", "step"),
    "slot not cleared": (rtl.combine_ordered, "self.clear.valid.eq(oldest.leave)", "self.clear.valid.eq(0)"),
    "last on every token": (rtl.combine_ordered, "self.o.token_last & token.last_token", "self.o.token_last"),
    "empty token not zero": (
        rtl.combine_ordered,
        "Mux(empty, of_none[lane], bf16_from_f32(",
        "Mux(0, 0, bf16_from_f32(",
    ),
    "empty token waits": (rtl.combine, "self.empty | received", "received"),
    "counts not transparent": (
        rtl.combine,
        "config.num_slots, num_read_ports=2, transparent=True",
        "config.num_slots, num_read_ports=2",
    ),
    "freed on every beat": (rtl.combine_ordered, "reader.taken & self.o.payload.token_last", "reader.taken"),
}


def revealing_cases() -> list[Case]:
    return [
        small([3, 0, 2, 1, 1, 0, 4, 2, 1, 1, 3, 1], num_slots=2, d_model=6, order="beats", seed=1),
        small([1, 2, 0, 1, 1], d_model=22, stalls="bursts", seed=3),
        small([3, 0, 1, 1, 1, 1, 1, 4, 2, 0, 3], num_slots=2, d_model=1, order="tokens", seed=1),
    ]


def run_revealing_cases() -> None:
    for case in revealing_cases():
        check(case, run_case(case))


def test_unbroken_source_passes():
    run_revealing_cases()


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.long] * (n % 2)) for n, bug in enumerate(PLANTED)]
)
def test_planted_bug_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        run_revealing_cases()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": [0]}, "arrivals: must have one value for each of 2 beats, not shape (1,)"),
        ({"beat_last": [1]}, "beat_last: must have one value for each of 2 beats, not shape (1,)"),
        (
            {"beat_tokens": [0, 1]},
            "beat_tokens: must give each of 1 tokens whole contributions of 2 beats",
        ),
        (
            {"beat_last": [True, True]},
            "beat_tokens: must give each of 1 tokens whole contributions of 2 beats",
        ),
    ],
)
def test_model_rules(change, message):
    arguments = {"beat_tokens": [0, 0], "beat_last": [False, True], "arrivals": [0, 0], **change}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        ordered_cycles(**arguments, expect_arrivals=[0], words=2)
