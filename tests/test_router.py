"""The router in the banks: its jobs, their place among the others, the gate that takes its logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import rtl.gating.logits
import rtl.router
import sim.gating
import sim.router
from golden.formats import bf16_decode, bf16_encode, dot, f32_flush
from golden.functions import fixed_from_f32
from golden.gating_bf16 import route_bf16, score_words, select, selection_bias_fixed, shared_weight
from golden.image import router_image, router_tiles
from rtl.arith import delay
from rtl.dispatch import DispatchConfig
from rtl.expert.layouts import job_layout
from rtl.gating import BankedGate
from rtl.gating.layouts import assignment_layout, given_score_bits, logit_part_layout
from rtl.router import JobMerge, RouterJobs
from rtl.stream import connect_stream
from sim.streams import readiness
from spec.geometry import GateGeometry, RouterGeometry
from spec.model import GatingSpec, Normalise, Score
from tests.bfm import Sink, Source, run_streams
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
from tests.test_gating import load_router, random_gating
from tests.test_pim import PIM, config_of

GATING = GatingSpec(num_experts=3, top_k=1)


# Where the router lies, and what it computes


def places_of(gating: GatingSpec, logits_per_cycle: int) -> RouterGeometry:
    gate = GateGeometry(
        gating=gating,
        d_model=10,
        lanes=4 * logits_per_cycle,
        logits_per_cycle=logits_per_cycle,
        stream_lanes=1,
        load_elements=1,
        banked=True,
    )
    return RouterGeometry(gate=gate, rows=PIM.units, cols=4)


@pytest.mark.parametrize(
    "gating",
    [
        GatingSpec(num_experts=5, top_k=1, logit_bias=True),
        GatingSpec(num_experts=9, top_k=1, score=Score.SIGMOID, num_groups=3, topk_groups=1),
    ],
)
@pytest.mark.parametrize("logits_per_cycle", [1, 2, 8])
def test_every_expert_finds_its_row(gating: GatingSpec, logits_per_cycle: int) -> None:
    """Read the router back from the tiles, by the page's words alone."""
    rng = np.random.default_rng(0)
    geometry = places_of(gating, logits_per_cycle)
    router = rng.integers(1, 1 << 15, (gating.num_experts, 10), dtype=np.uint16)
    bias = rng.standard_normal(gating.num_experts).astype(np.float32) if gating.logit_bias else None
    tiles = router_tiles(geometry, router, bias).reshape(-1, PIM.units, 4)
    assert len(tiles) == geometry.num_tiles
    found = {}
    for block in range(geometry.hidden_blocks):
        for unit in range(PIM.units):
            row = np.concatenate(
                [tiles[block * geometry.in_tiles + tile, unit] for tile in range(geometry.in_tiles)]
            )
            place = block * PIM.units + unit
            expert = None
            if place < geometry.num_places:
                expert = geometry.gate.expert_at(place // logits_per_cycle, place % logits_per_cycle)
            if expert is None:
                assert not row.any()
            else:
                found[expert] = row
    for expert, row in found.items():
        assert (row[:10] == router[expert]).all()
        rest = bf16_decode(row[10:]).astype(np.float64)
        assert rest.sum() == (0 if bias is None else bias[expert])
        assert not rest[3:].any()
    assert sorted(found) == list(range(gating.num_experts))


def test_a_logit_bias_is_in_the_banks_as_good_as_in_fp32() -> None:
    """Three bf16 inputs add up to it; what is lost is lost to the burst's guard bits."""
    rng = np.random.default_rng(1)
    bias = (rng.standard_normal(64) * 10).astype(np.float32)
    tokens = bf16_encode(rng.standard_normal((32, 24)).astype(np.float32))
    router = bf16_encode(rng.standard_normal((64, 24)).astype(np.float32))
    gating = GatingSpec(num_experts=64, top_k=4, logit_bias=True)
    x, w = (bf16_decode(bits).astype(np.float64) for bits in (tokens, router))
    exact = x @ w.T + bias
    product = max(np.abs(x).max() * np.abs(w).max(), np.abs(bias).max())
    partial = (np.abs(x) @ np.abs(w).T + np.abs(bias)).max()
    for cols in (4, 16):
        logits = route_bf16(gating, router, tokens, cols, bias, banked=True).logits / 2.0**20
        bursts = -(-(24 + 3) // cols)
        bound = bursts * (cols * 2.0**-22 * product + 2.0**-24 * partial) + 2.0**-20
        assert np.abs(logits - exact).max() < bound
    # Without a bias the place makes no difference but for the burst.
    plain = replace(gating, logit_bias=False)
    banked, own = (route_bf16(plain, router, tokens, 4, banked=place) for place in (True, False))
    assert (banked.logits == own.logits).all()


# Jobs with the router


@dataclass(frozen=True)
class Jobs:
    """Tokens that come, groups' logits that are read, entries that are taken."""

    group_tokens: int = 2
    num_tokens: int = 9
    gaps: str = "none"
    stalls: str = "none"
    seed: int = 0


class JobsBench(wiring.Component):
    """Router jobs behind a stream of tokens (whether each ends its batch), which are taken at once.

    With a gate that reads a group's logits ``READ`` cycles after the group was given.

    Members
    -------
    i : In(stream.Signature(1))
    o : Out(stream.Signature(job_layout(config)))
    """

    READ = 7

    def __init__(self, config) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(1)),
                "o": Out(stream.Signature(job_layout(config))),
                "given_last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.jobs = jobs = RouterJobs(self.config)
        connect_stream(m, jobs.o, wiring.flipped(self.o))
        m.d.comb += [
            self.i.ready.eq(1),
            jobs.token.eq(self.i.valid),
            jobs.token_last.eq(self.i.payload),
            jobs.freed.eq(delay(m, jobs.given, self.READ, "freed", control=True)),
        ]
        return m


def check_jobs(case: Jobs) -> None:
    rng = np.random.default_rng(case.seed)
    # As many tokens as the store holds: more would not be let in.
    config = config_of(replace(PIM, tokens_per_burst=case.group_tokens), gating=GATING, max_tokens=8)
    ends_batch = rng.random(case.num_tokens) < 0.3
    ends_batch[-1] = True
    arrivals = arrivals_of(rng, case.gaps, case.num_tokens)
    stored = np.maximum.accumulate(arrivals - np.arange(len(arrivals))) + np.arange(len(arrivals))
    pattern = pattern_of(rng, case.stalls)
    ends = sim.router.group_ends(ends_batch, case.group_tokens)
    # A group is read some cycles after it was given: that of the one before the last has to be known.
    freed = np.zeros(0, dtype=np.int64)
    for _ in ends:
        model = sim.router.router_job_cycles(ends[: len(freed) + 1], stored, freed, readiness(pattern))
        freed = np.append(freed, model.o[-1] + JobsBench.READ)
    layout = job_layout(config)
    expected = [
        bits_of(layout, expert=GATING.num_experts + 1, slot=token % config.num_slots, last=token in ends)
        for token in range(case.num_tokens)
    ]
    traces = run_streams(
        JobsBench(config),
        {"i": Source(ends_batch.astype(int).tolist(), arrivals.tolist())},
        {"o": Sink(case.num_tokens, ready_in(pattern))},
    )
    check_stream("router", "o", traces["o"], expected, model.o, case)


@pytest.mark.parametrize("seed", range(12))
def test_router_jobs(seed: int) -> None:
    check_jobs(
        Jobs(
            group_tokens=(1, 2, 4)[seed % 3],
            num_tokens=5 + seed,
            gaps=TRAFFIC[seed % 3],
            stalls=TRAFFIC[seed // 3 % 3],
            seed=seed,
        )
    )


def test_groups_end_with_their_batch() -> None:
    ends = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    assert sim.router.group_ends(ends, 2).tolist() == [1, 3, 4, 5, 7, 9]
    assert sim.router.group_ends(ends, 4).tolist() == [3, 4, 5, 9]


# Two streams of jobs into one


def check_merge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = config_of(gating=GATING, num_experts=3)
    entry = DispatchConfig(
        num_experts=3, top_k=1, window_tokens=config.max_tokens, num_units=1, shared=False
    ).entry
    pattern = pattern_of(rng, TRAFFIC[seed % 3])
    sizes = [rng.integers(1, 4, int(rng.integers(1, 8))) for _ in range(2)]
    lasts = [np.isin(np.arange(size.sum()), np.cumsum(size) - 1) for size in sizes]
    gaps = [arrivals_of(rng, TRAFFIC[seed // 3 % 3], len(last)) for last in lasts]
    # The router's entries follow each other without a gap.
    starts = np.concatenate([[0], np.cumsum(sizes[0])[:-1]])
    gaps[0] = np.repeat(np.sort(gaps[0][starts] * 3), sizes[0])
    model = sim.router.job_merge_cycles(gaps[0], lasts[0], gaps[1], lasts[1], readiness(pattern))
    slots = [rng.integers(0, config.num_slots, len(last)) for last in lasts]
    payloads = [
        [
            bits_of(layout, expert=expert, slot=slot, last=last)
            for slot, last in zip(slots[n], lasts[n], strict=True)
        ]
        for n, (layout, expert) in enumerate(((job_layout(config), 4), (entry, 2)))
    ]
    expected = [
        bits_of(
            job_layout(config),
            expert=4 if number < 0 else 2,
            slot=slots[0][-1 - number] if number < 0 else slots[1][number],
            last=lasts[0][-1 - number] if number < 0 else lasts[1][number],
        )
        for number in model.order
    ]
    traces = run_streams(
        JobMerge(config, entry),
        {name: Source(payloads[n], gaps[n].tolist()) for n, name in enumerate(("i_router", "i_expert"))},
        {"o": Sink(len(expected), ready_in(pattern))},
    )
    cycles = np.sort(np.concatenate([model.i_router, model.i_expert]))
    check_stream("router", "merge o", traces["o"], expected, cycles, seed)
    check_stream("router", "i_router", traces["i_router"], payloads[0], model.i_router, seed)
    check_stream("router", "i_expert", traces["i_expert"], payloads[1], model.i_expert, seed)


@pytest.mark.parametrize("seed", range(9))
def test_job_merge(seed: int) -> None:
    check_merge(seed)


# The gate behind the banks


class PartsAsStream(wiring.Component):
    """A gate whose logits come as a stream that is always ready; a group is given with its first part.

    Members
    -------
    i : In(stream.Signature({part, first, ends_batch}))
    o, i_load, load_start, loaded : the gate's
    """

    def __init__(self, router: RouterGeometry, group_tokens: int) -> None:
        self.gate = BankedGate(router, group_tokens)
        self.layout = data.StructLayout(
            {"part": logit_part_layout(router.rows, group_tokens), "first": 1, "ends_batch": 1}
        )
        names = ("o", "load_start", "loaded", *(("i_load",) if router.gate.has_bias else ()))
        super().__init__(
            {
                "i": In(stream.Signature(self.layout)),
                **{name: self.gate.signature.members[name] for name in names},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.gate = gate = self.gate
        if gate.geometry.has_bias:
            connect_stream(m, wiring.flipped(self.i_load), gate.i_load)
        connect_stream(m, gate.o, wiring.flipped(self.o))
        m.d.comb += [
            self.i.ready.eq(1),
            gate.i.eq(self.i.payload.part),
            gate.i.valid.eq(self.i.valid),
            gate.given.eq(self.i.valid & self.i.payload.first),
            gate.given_last.eq(self.i.payload.ends_batch),
            gate.load_start.eq(self.load_start),
            self.loaded.eq(gate.loaded),
        ]
        return m


@dataclass(frozen=True)
class Case:
    """Logits of groups of tokens into a gate."""

    router: RouterGeometry
    group_tokens: int
    num_tokens: int
    gaps: str = "none"
    stalls: str = "none"
    seed: int = 0


def check_gate(case: Case) -> BankedGate:
    rng = np.random.default_rng(case.seed)
    router, gate = case.router, case.router.gate
    gating = gate.gating
    shape = (case.num_tokens, gating.num_experts)
    logits = f32_flush(rng.standard_normal(shape) * rng.choice([0.5, 4.0, 100.0]))
    if case.seed % 3 == 0:
        logits = np.round(logits)  # ties
    bias = rng.standard_normal(gating.num_experts).astype(np.float32) if gating.selection_bias else None
    fixed_bias = None if bias is None else selection_bias_fixed(gating, bias)
    routing = select(gating, fixed_from_f32(logits), fixed_bias, gives_scores=gate.gives_scores)
    words = None if routing.scores is None else score_words(gating, routing.scores)
    ends_batch = rng.random(case.num_tokens) < 0.3
    ends_batch[-1] = True
    ends = sim.router.group_ends(ends_batch, case.group_tokens)

    patterns = rng.integers(
        0, 1 << 32, (case.num_tokens, router.hidden_blocks * router.rows), dtype=np.uint32
    )
    shared = None
    if gate.shared_gate:
        own = f32_flush(rng.standard_normal((case.num_tokens, 1)) * 4)
        shared = shared_weight(fixed_from_f32(own[:, 0]))
        logits = np.concatenate([logits, own], axis=1)
    for place in range(router.num_places):
        expert = gate.output_at(*divmod(place, gate.logits_per_cycle))
        if expert is not None:
            patterns[:, place] = logits[:, expert].view(np.uint32)
    dut = PartsAsStream(router, case.group_tokens)
    pattern = pattern_of(rng, case.stalls)
    beats, arrivals, complete = [], [], []
    now = 0
    for group, (start, end) in enumerate(zip([0, *(ends[:-1] + 1)], ends, strict=True)):
        if group >= sim.router.GROUPS:
            model = sim.gating.banked_gate_cycles(gate, np.array(complete), ends[:group], readiness(pattern))
            now = max(now, int(model.freed[group - sim.router.GROUPS]) + 1)
        order = [
            (block, token, low)
            for block in range(router.hidden_blocks)
            for token in range(start, end + 1)
            for low in range(2)
        ]
        for n, (block, token, low) in enumerate(order):
            now += int(rng.integers(1, 4)) if case.gaps != "none" else 1
            part = {
                "valid": 1,
                "low": low,
                "token": token - start,
                "last_token": int(token == end),
                "last_block": int(block == router.hidden_blocks - 1),
                "data": (
                    patterns[token, block * router.rows : (block + 1) * router.rows] >> (0 if low else 16)
                    & 0xFFFF
                ).tolist(),
            }
            beats.append(
                dut.layout.const({"part": part, "first": int(n == 0), "ends_batch": int(ends_batch[end])})
                .as_value()
                .value
            )
            arrivals.append(now)
            if low and part["last_block"]:
                complete.append(now)
    model = sim.gating.banked_gate_cycles(gate, np.array(complete), ends, readiness(pattern))
    layout = assignment_layout(
        gating.num_experts, shared_gate=gate.shared_gate, score_bits=given_score_bits(gate)
    )
    expected = [
        bits_of(
            layout,
            **({} if shared is None else {"shared": shared[token]}),
            **({} if words is None else {"score": int(words[token, n])}),
            expert=routing.ids[token, n],
            weight=routing.weights[token, n],
            last=n == gating.top_k - 1,
            last_token=ends_batch[token],
        )
        for token in range(case.num_tokens)
        for n in range(gating.top_k)
    ]

    async def prologue(ctx):
        if bias is None:
            assert ctx.get(dut.loaded)
            return
        router_rows, own = (np.zeros((count, gate.d_model), np.uint16) for count in (gating.num_experts, 1))
        image = router_image(gate, router_rows, None, bias, own if gate.shared_gate else None)
        assert len(image) == gate.load_beats * gate.load_elements
        await load_router(ctx, dut, image.reshape(-1, gate.load_elements))

    traces = run_streams(
        dut,
        {"i": Source(beats, arrivals)},
        {"o": Sink(len(expected), ready_in(pattern))},
        prologue=prologue,
        max_cycles=500 + int(model.o[-1]),
    )
    check_stream("gating", "o", traces["o"], expected, model.o, case)
    return dut.gate


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    gating = random_gating(rng)
    logits_per_cycle = int(rng.choice([1, 2, 4]))
    gate = GateGeometry(
        gating=gating,
        d_model=4,
        lanes=4 * logits_per_cycle,
        logits_per_cycle=logits_per_cycle,
        stream_lanes=1,
        load_elements=int(rng.choice([1, 2, 4])),
        banked=True,
    )
    return Case(
        router=RouterGeometry(gate=gate, rows=int(rng.choice([1, 2, 4, 8])), cols=8),
        group_tokens=int(rng.choice([1, 2, 4])),
        num_tokens=int(rng.integers(1, 12)),
        gaps=TRAFFIC[seed % 3],
        stalls=TRAFFIC[seed // 3 % 3],
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(12))
def test_gate_behind_the_banks(seed: int) -> None:
    case = random_case(seed)
    gate = check_gate(case)
    assert gate.latency == sim.gating.latency(case.router.gate)
    assert gate.selection.credits == sim.gating.num_credits(case.router.gate)


def shared_gate_case(seed: int) -> Case:
    """Return a random gate behind the banks whose shared expert has a gate too."""
    case = random_case(seed)
    router = replace(case.router, gate=replace(case.router.gate, shared_gate=True))
    return replace(case, router=router)


@pytest.mark.parametrize("seed", range(6))
def test_shared_gate_behind_the_banks(seed: int) -> None:
    case = shared_gate_case(seed)
    gate = check_gate(case)
    assert gate.latency == sim.gating.latency(case.router.gate)
    assert gate.selection.credits == sim.gating.num_credits(case.router.gate)


@pytest.mark.parametrize("seed", range(4))
def test_scores_behind_the_banks(seed: int) -> None:
    case = shared_gate_case(seed + 50) if seed % 2 else random_case(seed + 50)
    gate = replace(case.router.gate, gives_scores=True)
    found = check_gate(replace(case, router=replace(case.router, gate=gate)))
    assert found.latency == sim.gating.latency(gate)
    assert found.selection.credits == sim.gating.num_credits(gate)


@pytest.mark.parametrize("seed", range(4))
def test_prototypes_behind_the_banks(seed: int) -> None:
    case = random_case(seed + 70)
    rng = np.random.default_rng(seed)
    prototypes, chosen = int(rng.integers(2, 5)), int(rng.integers(1, 3))
    gating = GatingSpec(
        num_experts=prototypes * int(rng.integers(chosen, 9)),
        top_k=prototypes * chosen,
        num_prototypes=prototypes,
        logit_bias=seed % 2 == 1,
        normalise=Normalise.NONE,
    )
    gate = replace(case.router.gate, gating=gating)
    if not gate.prototypes_fit:
        gate = replace(gate, logits_per_cycle=1, lanes=4)
    check_gate(replace(case, router=replace(case.router, gate=gate)))


@pytest.mark.parametrize("logit_bias", [False, True])
def test_tiles_of_a_router_with_a_shared_gate(logit_bias: bool) -> None:
    """The banks' sums of its tiles are golden's logits, the gate's behind those of the experts."""
    rng = np.random.default_rng(3)
    geometry = shared_gate_case(3).router
    gate = geometry.gate
    gating = replace(gate.gating, logit_bias=logit_bias, selection_bias=False)
    geometry = replace(geometry, gate=replace(gate, gating=gating))
    num_experts = gating.num_experts
    router, own, tokens = (
        bf16_encode(rng.standard_normal((count, gate.d_model))) for count in (num_experts, 1, 5)
    )
    bias = rng.standard_normal(num_experts).astype(np.float32) if logit_bias else None
    tiles = router_tiles(geometry, router, bias, own)
    tiles = tiles.reshape(geometry.hidden_blocks, geometry.in_tiles, geometry.rows, geometry.cols)
    matrix = tiles.transpose(0, 2, 1, 3).reshape(geometry.hidden_blocks * geometry.rows, -1)
    place = (gate.num_rows - 1) * gate.logits_per_cycle + gate.shared_gate_lane
    assert np.array_equal(matrix[place, : gate.d_model], own[0])
    assert not matrix[place, gate.d_model :].any()
    routing = route_bf16(gating, router, tokens, geometry.cols, bias, shared_gate=own, banked=True)
    assert np.array_equal(
        routing.shared, shared_weight(fixed_from_f32(dot(tokens, own, geometry.cols)[:, 0]))
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 300))
def test_gate_behind_the_banks_wide(seed: int) -> None:
    check_gate(random_case(seed))


PLANTED = {
    "a group given without room": (rtl.router, "(room != 0)", "(room != 3)"),
    "a group over the batch's end": (rtl.router, "full.eq(self.token_last | ", "full.eq("),
    "the experts' jobs first": (
        rtl.router,
        "Mux(held, held_router, self.i_router.valid)",
        "Mux(held, held_router, ~self.i_expert.valid)",
    ),
    "a job broken up": (rtl.router, "self.o.ready & self.o.payload.last", "self.o.ready"),
    "halves swapped": (rtl.gating.logits, "Cat(part.data[n], upper[n])", "Cat(upper[n], part.data[n])"),
    "launched before the last logits": (
        rtl.gating.logits,
        "arrived.eq(whole & part.last_block)",
        "arrived.eq(whole & (block == 0))",
    ),
    "rows of the token after": (
        rtl.gating.logits,
        "read_place.eq(next_place)",
        "read_place.eq(next_place + 1)",
    ),
    "end of batch of the group before": (
        rtl.gating.logits,
        "ends_batch.bit_select(next_group, 1)",
        "ends_batch.bit_select(~next_group, 1)",
    ),
    "model: queue": (sim.router, "QUEUE_LATENCY = 2", "QUEUE_LATENCY = 3"),
    "model: store": (sim.gating, "STORE_PIPELINE = 1", "STORE_PIPELINE = 2"),
}


def check_revealing_cases() -> None:
    check_jobs(Jobs(seed=1))
    check_merge(1)
    check_merge(4)
    grouped = GatingSpec(num_experts=20, top_k=3)
    gate = GateGeometry(
        gating=grouped, d_model=4, lanes=8, logits_per_cycle=2, stream_lanes=1, load_elements=1, banked=True
    )
    check_gate(Case(RouterGeometry(gate=gate, rows=4, cols=8), group_tokens=2, num_tokens=9, seed=2))


def test_unbroken_source_passes() -> None:
    check_revealing_cases()


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    plant_bug(monkeypatch, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        check_revealing_cases()
