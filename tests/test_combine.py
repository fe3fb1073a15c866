"""The combiner: hardware against golden bit for bit, against its cycle model cycle for cycle."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from amaranth import ResetInserter, Signal

import rtl.combine
import rtl.combine_gaps
import rtl.combine_start
import sim.combine
from golden.combine_bf16 import Contribution, combine_bf16, identity_start, identity_weights
from golden.formats import bf16_decode, bf16_encode, f32_flush
from rtl.combine import AdderStages, Combine, CombineConfig, Emitter, OldestToken
from rtl.dispatch import DispatchConfig
from rtl.dispatch.layouts import IDENTITY_BITS
from sim.combine import CombineCycles, combine_cycles
from sim.streams import readiness
from spec.design import Pipeline
from spec.errors import InputError
from spec.geometry import ACCUMULATE_DISTANCE, ceil_div
from tests.bfm import Sink, Source, Trace, pack, run_streams
from tests.block_bench import (
    DIVERGED,
    TRAFFIC,
    arrivals_of,
    bits_of,
    check_stream,
    mutated_module,
    pattern_of,
    plant_bug,
    ready_in,
)

ORDERS = ("beats", "contributions", "tokens")
EXTREMES = np.array(
    [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x8080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0,
     0xFFFF, 0x7F81, 0x5F80, 0xDF80, 0x1F80],
    dtype=np.uint16,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run: configuration, contributions per token, traffic. ``seed`` gives values and patterns.

    ``order`` says how contributions come: beats of open tokens at random, whole contributions at
    random, or all of a token's contributions directly behind each other.
    """

    config: CombineConfig
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
class Run:
    """Everything that a run should give and has given."""

    model: CombineCycles
    expected: dict[str, list[int]]
    traces: dict[str, Trace]
    freed: list[int]


def sequence_of(rng, case: Case) -> np.ndarray:
    """Return the token of each beat: at most ``num_slots`` tokens are open, the oldest closes first."""
    words = case.config.words
    left = case.counts * words
    sequence = []
    oldest = 0
    while oldest < case.num_tokens:
        if left[oldest] == 0:
            oldest += 1
            continue
        window = np.arange(oldest, min(oldest + case.config.num_slots, case.num_tokens))
        opened = window[left[window] > 0]
        token = opened[0] if case.order == "tokens" else rng.choice(opened)
        beats = 1 if case.order == "beats" else words
        sequence += [token] * beats
        left[token] -= beats
    return np.array(sequence, dtype=np.int64)


def values_of(rng, kind: str, shape) -> np.ndarray:
    """Return bf16 patterns: around 1, any pattern at all, or mostly limits of the format."""
    anything = rng.integers(0, 1 << 16, size=shape, dtype=np.uint16)
    if kind == "anything":
        return anything
    if kind == "extreme":
        return np.where(rng.random(shape) < 0.8, rng.choice(EXTREMES, size=shape), anything)
    exponent = rng.integers(117, 131, size=shape)
    return ((anything & 0x807F) | (exponent << 7)).astype(np.uint16)


def schedule(case: Case, tokens, arrivals, expect_arrivals, ready):
    """Delay what would use a slot before it is freed; return the arrivals and the model's cycles.

    A slot's use depends on earlier tokens only, so the iteration ends.
    """
    slots, words = case.config.num_slots, case.config.words
    reused = tokens >= slots
    while True:
        model = combine_cycles(
            tokens,
            arrivals,
            expect_arrivals,
            num_slots=slots,
            words=words,
            ready=ready,
            pipeline=case.config.pipeline,
        )
        after = arrivals.copy()
        after[reused] = np.maximum(arrivals[reused], model.freed[tokens[reused] - slots])
        expect_after = expect_arrivals.copy()
        expect_after[slots:] = np.maximum(expect_arrivals[slots:], model.freed[:-slots])
        if np.array_equal(after, arrivals) and np.array_equal(expect_after, expect_arrivals):
            return arrivals, expect_arrivals, model
        arrivals, expect_arrivals = after, expect_after


@dataclass(frozen=True)
class Starts:
    """Tokens and their sums of weights of identity experts; all tokens are inside at the same time."""

    config: CombineConfig
    tokens: np.ndarray
    sums: np.ndarray
    bias: np.ndarray

    @classmethod
    def draw(cls, rng, case) -> Starts | None:
        """Return random ones, None where sums start from +0."""
        config = case.config
        if not config.starts:
            return None
        assert case.num_tokens <= config.num_slots
        tokens = values_of(rng, case.values, (case.num_tokens, config.d_model))
        sums = rng.integers(-1 << 40, 1 << 40, case.num_tokens) >> rng.integers(0, 40, case.num_tokens)
        bias = f32_flush(rng.standard_normal(config.d_model) * np.exp2(rng.integers(-9, 9, config.d_model)))
        return cls(config, tokens, np.where(rng.random(case.num_tokens) < 0.3, 0, sums), bias)

    def golden(self) -> np.ndarray:
        """Return what the sums start from, (tokens, words * lanes)."""
        start = identity_start(identity_weights(self.sums), self.tokens)
        if self.config.bias_bits:
            start = np.repeat(self.bias[None], len(self.tokens), axis=0)
        return np.pad(start, ((0, 0), (0, self.config.words * self.config.lanes - start.shape[1])))

    def of_expect(self, token: int) -> dict[str, int]:
        """Return the field of a token's announcement."""
        if self.config.bias_bits:
            return {}
        return {"identity": int(self.sums[token]) & ((1 << IDENTITY_BITS) - 1)}

    @property
    def port(self) -> str:
        """Where the beats go."""
        return "i_load" if self.config.bias_bits else "i_token"

    def beats(self, rng) -> list[int]:
        """Return the beats of the bias, or of the tokens; elements beyond d_model are noise."""
        if self.config.bias_bits:
            per_beat = self.config.bias_bits // 16
            halves = self.bias.view(np.uint16)
            noise = rng.integers(0, 1 << 16, -len(halves) % per_beat).astype(np.uint16)
            return [pack(beat) for beat in np.concatenate([halves, noise]).reshape(-1, per_beat)]
        lanes = self.config.stream_lanes
        beats = ceil_div(self.config.d_model, lanes)
        padded = rng.integers(0, 1 << 16, (len(self.tokens), beats * lanes))
        padded[:, : self.config.d_model] = self.tokens
        return [pack(beat) for beat in padded.reshape(-1, lanes)]


def golden_tokens(case: Case, tokens, weights, data, start=None) -> np.ndarray:
    """Return golden's (tokens, words * lanes); round ``r`` is each token's r-th contribution."""
    config = case.config
    firsts = [np.flatnonzero(tokens == token)[:: config.words] for token in range(case.num_tokens)]
    contributions = []
    for rank in range(int(case.counts.max(initial=0))):
        of = [token for token in range(case.num_tokens) if case.counts[token] > rank]
        results = [data[tokens == token].reshape(case.counts[token], -1)[rank] for token in of]
        contributions.append(
            Contribution(
                tokens=np.array(of), weights=weights[[firsts[t][rank] for t in of]], results=np.array(results)
            )
        )
    return combine_bf16(contributions, case.num_tokens, config.words * config.lanes, start)


def run_case(case: Case, *, module=rtl.combine, reset_after: int | None = None) -> Run:
    """Run a case in ``amaranth.sim``; ``reset_after`` cycles of other traffic and a reset come first."""
    config = case.config
    words = config.words
    rng = np.random.default_rng(case.seed)
    tokens = sequence_of(rng, case)
    position = np.zeros(tokens.size, dtype=np.int64)  # of each beat among its token's
    for token in range(case.num_tokens):
        position[tokens == token] = np.arange(case.counts[token] * words)
    data = values_of(rng, case.values, (tokens.size, config.lanes))
    per_contribution = values_of(rng, case.values, (case.num_tokens, config.max_count))
    weights = per_contribution[tokens, position // words] if tokens.size else np.zeros(0, dtype=np.uint16)
    last_token = rng.random(case.num_tokens) < 0.3

    pattern = pattern_of(rng, case.stalls)
    arrivals = arrivals_of(rng, case.gaps, tokens.size)
    expect_arrivals = arrivals_of(rng, case.expect_gaps, case.num_tokens)
    expect_arrivals = expect_arrivals * (1 if case.expect_gaps == "none" else 5)
    starts = Starts.draw(rng, case)
    token_beats = starts.beats(rng) if starts else []
    if starts:
        # First tokens, then their announcements, then contributions.
        expect_arrivals = expect_arrivals + len(token_beats)
        arrivals = arrivals + int(expect_arrivals.max(initial=0)) + 3
    arrivals, expect_arrivals, model = schedule(case, tokens, arrivals, expect_arrivals, readiness(pattern))
    start = starts.golden() if starts else None
    results = golden_tokens(case, tokens, weights, data, start).reshape(-1, config.lanes)
    expected = {
        "i": [
            bits_of(
                config.contribution,
                slot=tokens[n] % config.num_slots,
                word=position[n] % words,
                weight=weights[n],
                data=data[n],
                last=position[n] % words == words - 1,
            )
            for n in range(tokens.size)
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

    dut = module.Combine(config)
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
            "i": Source(expected["i"], arrivals.tolist()),
            "i_expect": Source(expected["i_expect"], expect_arrivals.tolist()),
            **({starts.port: Source(token_beats, [0] * len(token_beats))} if starts else {}),
        },
        {"o": Sink(len(expected["o"]), ready_in(pattern))},
        prologue=prologue,
        monitors=[watch_freed],
        max_cycles=200 + int(max([*model.i, *model.o], default=0)),
    )
    return Run(model=model, expected=expected, traces=traces, freed=freed)


async def other_traffic(ctx, dut, rng, cycles: int) -> None:
    """Offer random beats and be ready at random, so that a reset finds every part at work."""
    config = dut.config
    for _ in range(cycles):
        word = int(rng.integers(config.words))
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload.slot, int(rng.integers(config.num_slots)))
        ctx.set(dut.i.payload.word, word)
        ctx.set(dut.i.payload.last, int(word == config.words - 1))
        ctx.set(dut.i.payload.weight, 0x3F80)
        for lane in range(config.lanes):
            ctx.set(dut.i.payload.data[lane], int(rng.integers(1 << 16)))
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


def identity_case(case, seed: int, *, bias: bool = False):
    """Return a case of either combiner whose tokens have identity experts, or else an output bias.

    There are as many tokens as slots.
    """
    rng = np.random.default_rng(seed + 5000)
    lanes = 1 << int(rng.integers(3))
    config = replace(case.config, lanes=lanes, stream_lanes=1 << int(rng.integers(4)))
    counts = case.counts[: config.num_slots].copy()
    counts[rng.random(counts.size) < 0.3] = 0
    if bias:
        config = replace(config, stream_lanes=0, bias_bits=int(rng.choice([16, 32, 64, 256])))
    return replace(case, config=config, counts=counts, values=["normal", "extreme"][seed % 2])


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(n, marks=pytest.mark.long) for n in range(8, 100))]
)
def test_random_identity_experts(seed):
    case = identity_case(random_case(seed), seed)
    check(case, run_case(case))


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.long) for n in range(6, 60))]
)
def test_random_output_biases(seed):
    case = identity_case(random_case(seed), seed, bias=True)
    check(case, run_case(case))


IDENTITY_BUGS = {
    "a part of another word": (
        rtl.combine,
        "rows[read_at][len(self.start.slot) :]",
        "rows[0][len(self.start.slot) :]",
    ),
    "a weight of nothing times infinity": (
        rtl.combine_start,
        "nothing = weight.exponent == 0",
        "nothing = 0",
    ),
    "not for tokens without contributions": (
        rtl.combine,
        "empty = [bf16_from_f32(value) for value in self.start.data]",
        "pass",
    ),
    "noise beyond the token": (rtl.combine_start, "nothing |= word == config.words - 1", "pass"),
    "a row lost": (rtl.combine_start, "last_beat | (piece == pieces - 1)", "piece == pieces - 1"),
}


def check_identity_cases() -> None:
    for seed in range(8):
        case = identity_case(random_case(seed), seed)
        check(case, run_case(case))


@pytest.mark.parametrize("bug", IDENTITY_BUGS)
def test_bug_planted_in_the_identity_experts_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *IDENTITY_BUGS[bug])
    with pytest.raises(DIVERGED):
        check_identity_cases()


def random_case(seed: int) -> Case:
    """Return a random case; every parameter over its whole range."""
    rng = np.random.default_rng(seed)
    config = CombineConfig(
        num_slots=1 << int(rng.integers(1, 5)),
        d_model=int(rng.integers(1, 21)),
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
        values=str(rng.choice(["normal", "normal", "anything", "extreme"])),
        gaps=TRAFFIC[seed % 3],
        expect_gaps=str(rng.choice(TRAFFIC)),
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


@pytest.mark.parametrize(
    "seed", [*range(16), *(pytest.param(n, marks=pytest.mark.long) for n in range(16, 27))]
)
def test_random(seed):
    case = random_case(seed)
    check(case, run_case(case))


def deep(case: Case) -> Case:
    """Return a case whose combiner has deep pipelines."""
    return replace(case, config=replace(case.config, deep=True))


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 100))]
)
def test_random_deep(seed):
    case = deep(random_case(seed))
    check(case, run_case(case))


@pytest.mark.parametrize("bias", [False, True], ids=["identity", "bias"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 60))])
def test_random_deep_starts(seed, bias):
    case = deep(identity_case(random_case(seed), seed, bias=bias))
    check(case, run_case(case))


def small(counts, **changes) -> Case:
    """Return a case with these counts of contributions; four slots, three words of one lane."""
    counts = np.array(counts)
    config = CombineConfig(
        num_slots=changes.pop("num_slots", 4),
        d_model=changes.pop("d_model", 3),
        lanes=changes.pop("lanes", 1),
        max_count=changes.pop("max_count", max(1, int(counts.max(initial=0)))),
    )
    return Case(config=config, counts=counts, **changes)


CORNERS = {
    "token_with_no_contributions": small([2, 0, 0, 1, 0, 3, 0]),
    "only_tokens_with_no_contributions": small([0] * 11),
    "one_word_hazard": small([3, 2, 4, 1, 5], d_model=1, order="tokens"),
    "two_words_hazard": small([3, 2, 4, 1, 5], d_model=2, order="tokens"),
    "three_words_hazard": small([3, 2, 4, 1, 5], order="tokens"),
    "four_words_no_hazard": small([3, 2, 4], d_model=4, order="tokens"),
    "all_slots_in_flight": small([2] * 24, num_slots=8, d_model=1),
    "nine_contributions": small([9, 9, 8, 9]),
    "one_contribution": small([1] * 13),
    "last_word_partial": small([2, 1, 3], d_model=5, lanes=4),
    "fewest_slots": small([2, 0, 1, 2, 3, 1], num_slots=2, order="contributions"),
    "extreme_values": small([1, 2, 3] * 4, d_model=6, lanes=4, values="extreme"),
    "any_values": small([4, 3, 4, 4, 2, 4, 4], values="anything"),
    "late_announcements": small([2, 1, 0, 3, 1, 2, 2, 1], expect_gaps="bursts"),
    "no_tokens": small([]),
}


@pytest.mark.parametrize("stalls", ["none", "bursts"])
@pytest.mark.parametrize("name", CORNERS)
def test_corner(name, stalls):
    case = replace(CORNERS[name], stalls=stalls, gaps="none" if stalls == "none" else "half", seed=7)
    run = run_case(case)
    check(case, run)
    if "hazard" in name and case.gaps == "none":
        waits = bool((np.diff(run.traces["i"].cycles)[4:] > 1).any())
        assert waits == (name != "four_words_no_hazard"), "the corner was not reached"
    if name == "extreme_values":
        lanes = range(case.config.lanes)
        results = {payload >> 16 * lane & 0xFFFF for payload in run.traces["o"].payloads for lane in lanes}
        assert {0, 0x7F80, 0xFF80, 0x7FC0} <= results, "the corner was not reached"


DEEP_CORNERS = {
    "ten_words_hazard": small([3, 2, 4], d_model=10, order="tokens"),
    "eleven_words_no_hazard": small([3, 2, 4], d_model=11, order="tokens"),
    "tokens_of_one_word": small([1] * 24, num_slots=16, d_model=1),
    "tokens_of_four_words": small([1] * 12, num_slots=8, d_model=4),
}


@pytest.mark.parametrize("stalls", ["none", "bursts"])
@pytest.mark.parametrize(
    "name", [*DEEP_CORNERS, *(pytest.param(name, marks=pytest.mark.long) for name in CORNERS)]
)
def test_corner_deep(name, stalls):
    case = deep({**CORNERS, **DEEP_CORNERS}[name])
    case = replace(case, stalls=stalls, gaps="none" if stalls == "none" else "half", seed=7)
    run = run_case(case)
    check(case, run)
    if name in DEEP_CORNERS and "hazard" in name and case.gaps == "none":
        waits = bool((np.diff(run.traces["i"].cycles)[4:] > 1).any())
        assert waits == (name != "eleven_words_no_hazard"), "the corner was not reached"


@pytest.mark.parametrize("seed", range(4))
def test_reset_in_the_middle(seed):
    case = random_case(1000 + seed)
    check(case, run_case(case, reset_after=5 + 17 * seed))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 8))])
def test_reset_in_the_middle_deep(seed):
    case = deep(random_case(1000 + seed))
    check(case, run_case(case, reset_after=30 + 17 * seed))


@pytest.mark.parametrize("words", [3, 10, 11])
def test_deep_latency_is_as_stated(words):
    adder = AdderStages(Pipeline.DEEP)
    assert (adder.write_at, adder.distance) == (sim.combine.DEEP_ADD_CYCLES, sim.combine.DEEP_DISTANCE)
    assert (adder.write_at, adder.distance) == (17, 11)
    assert OldestToken.CHECK_CYCLES == sim.combine.CHECK_CYCLES == 4
    assert Emitter.SEND_CYCLES == sim.combine.SEND_CYCLES == 5
    case = deep(small([1], seed=1, d_model=words))
    latency = case.config.latency
    assert latency == sim.combine.latency(Pipeline.DEEP, words) == (24 if words >= 11 else 25)
    assert case.config.expect_latency == sim.combine.expect_latency(Pipeline.DEEP) == 11
    traces = run_case(case).traces
    assert traces["o"].cycles.tolist() == list(range(words - 1 + latency, 2 * words - 1 + latency))
    # A token without contributions has 4 cycles at least.
    cycles = run_case(deep(small([0, 0], d_model=words))).traces["o"].cycles.reshape(2, words)
    assert cycles[:, 0].tolist() == [11, 11 + max(4, words)]


def test_latency_is_as_stated():
    assert sim.combine.LATENCY == Combine.LATENCY == 11
    assert sim.combine.EXPECT_LATENCY == Combine.EXPECT_LATENCY == 5
    config = small([1]).config
    assert (config.latency, config.expect_latency) == (Combine.LATENCY, Combine.EXPECT_LATENCY)
    short = AdderStages(Pipeline.SHORT)
    assert (short.write_at, short.distance) == (sim.combine.ADD_CYCLES, ACCUMULATE_DISTANCE)
    traces = run_case(small([1], seed=1)).traces
    assert traces["i"].cycles.tolist() == [0, 1, 2]
    first = 2 + Combine.LATENCY
    assert traces["o"].cycles.tolist() == [first, first + 1, first + 2]
    cycles = run_case(small([0, 0])).traces["o"].cycles
    assert cycles.tolist() == list(range(Combine.EXPECT_LATENCY, Combine.EXPECT_LATENCY + 6))


@pytest.mark.parametrize("words", [1, 2, 5])
def test_one_beat_in_and_one_out_per_cycle(words):
    """One contribution a token: saturated at both ends at the same time, no gap between tokens."""
    traces = run_case(small([1] * 16, d_model=words, num_slots=16, order="tokens")).traces
    start = words - 1 + Combine.LATENCY
    assert traces["i"].cycles.tolist() == list(range(16 * words))
    assert traces["o"].cycles.tolist() == list(range(start, start + 16 * words))


def test_hazard_costs_what_is_stated():
    traces = run_case(small([6], d_model=1, order="tokens")).traces
    # The register takes two beats at once; from then on one beat per ACCUMULATE_DISTANCE cycles.
    assert np.diff(traces["i"].cycles).tolist() == [1, 1, *[ACCUMULATE_DISTANCE] * 3]
    assert traces["o"].cycles.tolist() == [5 * ACCUMULATE_DISTANCE + Combine.LATENCY]


def test_deep_hazard_costs_what_is_stated():
    traces = run_case(deep(small([6], d_model=1, order="tokens"))).traces
    # One beat more is inside than above: the one that waits.
    assert np.diff(traces["i"].cycles).tolist() == [1, 1, 1, 11, 11]
    assert traces["o"].cycles.tolist() == [5 * 11 + 25]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("top_k", range(1, 17))
def test_announcement_fits_the_dispatcher(top_k, shared):
    dispatch = DispatchConfig(num_experts=16, top_k=top_k, window_tokens=4, shared=shared)
    config = CombineConfig(num_slots=dispatch.num_slots, d_model=8, lanes=2, max_count=top_k + shared)
    assert config.expect == dispatch.expect


# The checks themselves must fail where the hardware is wrong.
PLANTED = {
    "hazard ignored": ("range(1, stages.distance)", "range(1, stages.distance - 1)"),
    "one cycle late: hazard": ("range(1, stages.distance)", "range(1, stages.distance + 1)"),
    "first is added to the RAM": ("Mux(first_now, starts[lane], old[lane]", "Mux(0, starts[lane], old[lane]"),
    "sums not transparent": (
        "transparent=not config.deep",
        "transparent=False",
    ),
    "counts not transparent": (
        "config.num_slots, num_read_ports=2, transparent=True",
        "config.num_slots, num_read_ports=2",
    ),
    "slot stays started": ("started.bit_select(self.clear.slot, 1).eq(0)", "started.eq(started)"),
    "slot stays counted": (
        "self.counted.bit_select(self.clear.slot, 1).eq(0)",
        "self.counted.eq(self.counted)",
    ),
    "counted too early": ("count_at = stages.write_at - 2", "count_at = stages.write_at - 3"),
    "one cycle late: counted": ("count_at = stages.write_at - 2", "count_at = stages.write_at - 1"),
    "empty token not zero": (
        "Mux(word_empty, empty[lane], bf16_from_f32(sums[lane]))",
        "bf16_from_f32(sums[lane])",
    ),
    "empty token waits": ("self.empty | received", "received"),
    "last on every token": ("last_word & token.last_token", "last_word"),
    "one cycle late: output": ("room.eq(~self.o.valid | self.o.ready)", "room.eq(~self.o.valid)"),
    "next count not read ahead": ("Mux(take, self.i.payload.slot, token.slot)", "token.slot"),
    "freed on every beat": ("self.o.ready & self.o.payload.token_last", "self.o.ready"),
    "one word for all": ("Cat(token.slot, word)", "Cat(token.slot, word & 1)"),
    "weight ignored": ("data.View(BF16, self.i.payload.weight)", "data.View(BF16, self.i.payload.data[0])"),
    "truncated": ("bf16_from_f32(sums[lane])", "sums[lane].as_value()[16:]"),
}  # fmt: skip


def revealing_cases() -> list[Case]:
    return [
        small([3, 0, 2, 1, 1, 0, 4, 2, 1, 1, 3, 1], num_slots=2, order="tokens", seed=1),
        small([3, 0, 1, 1, 1, 1, 1, 4, 2, 0, 3], num_slots=2, d_model=1, order="tokens", seed=1),
    ]


def run_revealing_cases(module) -> None:
    for case in revealing_cases():
        check(case, run_case(case, module=module))


def test_unbroken_source_passes(monkeypatch):
    header = "class Combine(wiring.Component):"
    run_revealing_cases(mutated_module(monkeypatch, rtl.combine, header, header))


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(monkeypatch, bug):
    module = mutated_module(monkeypatch, rtl.combine, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        run_revealing_cases(module)


# Bugs of the deep parts, and of the model; each is planted in its own module.
PLANTED_IN_DEEP = {
    "sum read early": (rtl.combine, "Ram.LATENCY - 2 * self.deep", "Ram.LATENCY - 3 * self.deep"),
    "first a cycle late": (rtl.combine, "stages.product - 2 * cut", "stages.product - cut"),
    "slot looked at early": (rtl.combine, "rows[late][: len(slot)]", "rows[0][: len(slot)]"),
    "counted early": (rtl.combine, "(config, count_at - late)", "(config, 0)"),
    "another token's count": (rtl.combine, "fresh.eq(~waiting)", "fresh.eq(0)"),
    "known of the token before": (rtl.combine, "~fresh & ~moves & received", "~fresh & received"),
    "count of the token that is read": (rtl.combine, "addr.eq(next_token.slot)", "addr.eq(self.token.slot)"),
    "place taken twice": (rtl.combine, "known & (~self.valid | self.leave)", "known"),
    "waits for an empty place": (rtl.combine, "known & (~self.valid | self.leave)", "known & ~self.valid"),
    "empty token is none": (rtl.combine, "empty.eq(next_token.count == 0)", "empty.eq(0)"),
    "last word early": (rtl.combine, "word == config.words - 2", "word == config.words - 3"),
    "no room at the RAM": (rtl.combine, "room.eq(~valids[0] | rooms[0])", "room.eq(1)"),
    "no room at the first register": (rtl.combine, "rooms[0].eq(~valids[1] | rooms[1])", "rooms[0].eq(1)"),
    "no room at the second register": (rtl.combine, "rooms[1].eq(~valids[2] | rooms[2])", "rooms[1].eq(1)"),
    "bubbles are kept": (rtl.combine, "rooms[0].eq(~valids[1] | rooms[1])", "rooms[0].eq(rooms[1])"),
    "bubbles are kept behind": (rtl.combine, "rooms[1].eq(~valids[2] | rooms[2])", "rooms[1].eq(rooms[2])"),
    "empty word not zero": (rtl.combine, "Mux(s1_empty, s1_start, s1_sums)", "s1_sums"),
    "tags of the word before": (rtl.combine, "s2_sums), kept_tags[2]", "s2_sums), kept_tags[1]"),
    "no wait": (rtl.combine, "if config.spaced:", "if False:"),
    "wait too short": (rtl.combine_gaps, "self.distance = distance", "self.distance = distance - 1"),
    "wait too long": (rtl.combine_gaps, "self.distance = distance", "self.distance = distance + 1"),
    "wait for any slot": (rtl.combine_gaps, "valid & (one == row)", "valid"),
    "wait for what was not sent": (rtl.combine_gaps, "valid & (one == row)", "one == row"),
    "waits never end": (rtl.combine_gaps, "near << 1", "near"),
    "model: addition": (sim.combine, "DEEP_ADD_CYCLES = 17", "DEEP_ADD_CYCLES = 16"),
    "model: distance": (sim.combine, "DEEP_ACCUMULATE_DISTANCE + 2", "DEEP_ACCUMULATE_DISTANCE + 1"),
    "model: place to wait": (sim.combine, "left = max(left, accept)", "pass"),
    "model: checked": (sim.combine, "CHECK_CYCLES = 4", "CHECK_CYCLES = 3"),
    "model: sent": (sim.combine, "SENT_BEATS = 6", "SENT_BEATS = 5"),
}  # fmt: skip
DEEP_REVEALING = (
    small([3, 0, 2, 1, 1, 0, 4, 2, 1], num_slots=2, order="tokens", seed=1),
    small([3, 0, 1, 1, 1, 1, 4, 2, 0, 3], num_slots=2, d_model=1, order="tokens", stalls="bursts", seed=1),
    small([1, 0, 2] * 4, d_model=4, order="tokens", stalls="bursts", expect_gaps="half", seed=4),
    small([1] * 16, num_slots=8, d_model=1, stalls="bursts", seed=2),
    small([2, 1, 1, 2], d_model=11, order="beats", stalls="bursts", gaps="half", seed=3),
)


def check_deep_cases() -> None:
    for case in DEEP_REVEALING:
        check(deep(case), run_case(deep(case)))


def test_unbroken_deep_source_passes():
    check_deep_cases()


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=[pytest.mark.long] * (n % 6 > 0)) for n, bug in enumerate(PLANTED_IN_DEEP)],
)
def test_planted_bug_in_deep_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED_IN_DEEP[bug])
    with pytest.raises(DIVERGED):
        check_deep_cases()


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("weight ignored", "combine o: beat 0 in cycle 11: rtl "),
        ("one cycle late: counted", "combine o: beat 0: rtl in cycle 12, model 11; Case("),
    ],
)
def test_divergence_is_named(monkeypatch, bug, message):
    module = mutated_module(monkeypatch, rtl.combine, *PLANTED[bug])
    case = small([1], d_model=1, seed=2)
    with pytest.raises(pytest.fail.Exception, match=f"^{re.escape(message)}.*seed=2"):
        check(case, run_case(case, module=module))


@pytest.mark.parametrize("seed", range(8))
def test_golden_against_native_fp32(seed):
    """A product of two bf16 is exact in fp32, so away from the limits native fp32 does the same."""
    rng = np.random.default_rng(seed)
    num_tokens, d_model = 7, 13
    acc = np.zeros((num_tokens, d_model), dtype=np.float32)
    contributions = []
    for _ in range(9):
        tokens = rng.permutation(num_tokens)[: rng.integers(0, num_tokens + 1)]
        weights = values_of(rng, "normal", tokens.size)
        results = values_of(rng, "normal", (tokens.size, d_model))
        contributions.append(Contribution(tokens=tokens, weights=weights, results=results))
        for token, weight, result in zip(tokens, bf16_decode(weights), bf16_decode(results), strict=True):
            acc[token] = acc[token] + weight * result
    got = combine_bf16(contributions, num_tokens, d_model)
    assert np.array_equal(got, bf16_encode(acc))


def test_golden_without_contributions():
    assert np.array_equal(combine_bf16([], 3, 5), np.zeros((3, 5), dtype=np.uint16))


GOOD = {"num_slots": 4, "d_model": 6, "lanes": 2, "max_count": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_slots": 3}, "num_slots: must be a power of two in 2..4096, not 3"),
        ({"num_slots": 1}, "num_slots: must be a power of two in 2..4096, not 1"),
        ({"d_model": 0}, "d_model: must be in 1..65536, not 0"),
        ({"lanes": 0}, "lanes: must be in 1..1024, not 0"),
        ({"max_count": 0}, "max_count: must be in 1..1024, not 0"),
    ],
)
def test_config_rules(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        CombineConfig(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0]}, "weights: must have one weight for each of 2 tokens, not shape (1,)"),
        ({"results": [[0], [0]]}, "results: must have shape (2, 3), not (2, 1)"),
        ({"tokens": [1, 1]}, "tokens: must be distinct and in 0..num_tokens-1=3, not [1, 1]"),
        ({"tokens": [1, 4]}, "tokens: must be distinct and in 0..num_tokens-1=3, not [1, 4]"),
        ({"tokens": [-1, 0]}, "tokens: must be distinct and in 0..num_tokens-1=3, not [-1, 0]"),
    ],
)
def test_golden_rules(change, message):
    arguments = {"tokens": [0, 1], "weights": [0, 0], "results": [[0] * 3] * 2, **change}
    contribution = Contribution(
        tokens=np.array(arguments["tokens"]),
        weights=np.array(arguments["weights"], dtype=np.uint16),
        results=np.array(arguments["results"], dtype=np.uint16),
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        combine_bf16([contribution], 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": [0]}, "arrivals: must have one cycle for each of 2 beats, not shape (1,)"),
        (
            {"beat_tokens": [0, 1]},
            "beat_tokens: must give each of 1 tokens whole contributions of 2 beats",
        ),
        (
            {"beat_tokens": [0], "arrivals": [0]},
            "beat_tokens: must give each of 1 tokens whole contributions of 2 beats",
        ),
    ],
)
def test_model_rules(change, message):
    arguments = {"beat_tokens": [0, 0], "arrivals": [0, 0], "expect_arrivals": [0], **change}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        combine_cycles(**arguments, num_slots=2, words=2)
