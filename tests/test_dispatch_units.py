"""The dispatcher with several units, replicas, policies and capacity rules: hardware, golden, cycle model."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import rtl.dispatch.decide
import rtl.dispatch.enqueue
import rtl.dispatch.first
import rtl.dispatch.picker
import rtl.dispatch.tables
import rtl.dispatch.units
import sim.dispatch
from golden.combine_bf16 import identity_sums, identity_weights
from golden.dispatch_streams import dispatch_streams
from golden.formats import BF16_ONE, bf16_decode, bf16_encode
from golden.gating_bf16 import kept_weights
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.dispatch.decide import Decide
from rtl.dispatch.first import FirstOf
from rtl.gating.layouts import score_bits
from sim.dispatch import Units, dispatch_cycles
from spec.design import Policy
from spec.errors import InputError
from spec.model import CapacityRule, Epsilon, GatingSpec, Normalise, Score
from tests.block_bench import DIVERGED, TRAFFIC, plant_bug
from tests.exact import nearest_bf16
from tests.test_dispatch import Case, Run, check, experts_of_tokens, run_case, scores_of


def random_case(seed: int, **fixed) -> Case:
    """Return a random case of every configuration; ``fixed`` fields of it are as given."""
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(1, 25)) if seed % 2 else int(rng.integers(1, 9))
    top_k = int(rng.integers(1, min(num_experts, 5) + 1))
    config = DispatchConfig(
        num_experts=num_experts,
        top_k=top_k,
        window_tokens=1 << int(rng.integers(4)),
        num_units=fixed.pop("num_units", int(rng.integers(2, 6))),
        unit_jobs=int(rng.integers(1, 4)),
        shared=bool(rng.integers(2)),
        capacity_bits=int(rng.integers(3, 9)),
        capacity_rule=fixed.pop("rule", CapacityRule.SWITCH),
        longest_queue=bool(rng.integers(2)),
        ranks=bool(rng.integers(2)),
    )
    batches = rng.integers(1, 3 * config.window_tokens + 2, size=int(rng.integers(1, 5))).tolist()
    while sum(batches) * top_k > 120 and len(batches) > 1:
        batches.pop()
    return Case(
        config=config,
        ids=experts_of_tokens(rng, sum(batches), num_experts, top_k, skew=float(rng.choice([0, 1, 3]))),
        batches=batches,
        capacity=int(rng.choice([0, 1, 2, 5])),
        policy=list(Policy)[rng.integers(2)],
        gaps=TRAFFIC[seed % 3],
        stalls=TRAFFIC[seed // 3 % 3],
        replicas=str(rng.choice(["one", "some", "all"])),
        retire=str(rng.choice(["drawn", "served"])),
        seed=seed,
        **fixed,
    )


CAPACITY_RULES = list(CapacityRule)[:3]
"""Those that need no scores."""


def kept_by_counting(case: Case, weights: np.ndarray) -> np.ndarray:
    """Return which assignments find a place, one after the other; shares nothing with golden."""
    kept = np.zeros(case.ids.shape, dtype=bool)
    if case.config.no_places:
        return kept
    rule, start = case.config.capacity_rule, 0
    priorities = scores_of(case)[0]
    if case.config.signed_weights:
        weights = bf16_decode(weights.astype(np.uint16))
    for length in case.batches:
        load = dict.fromkeys(range(case.config.num_routed), 0)
        for window in range(0, length, case.config.window_tokens):
            tokens = range(start + window, start + min(length, window + case.config.window_tokens))
            claims = [(t, j) for t in tokens for j in range(case.config.top_k)]
            if rule is not CapacityRule.SWITCH:
                claims.sort(key=lambda claim: claim[1])
            if rule in (CapacityRule.BATCH_PRIORITY, CapacityRule.SCORE_PRIORITY):
                ranks = weights if rule is CapacityRule.BATCH_PRIORITY else priorities
                claims.sort(key=lambda claim: (claim[1], -max(ranks[claim[0]].tolist())))
            for t, j in claims:
                expert = int(case.ids[t, j])
                kept[t, j] = case.capacity == 0 or load[expert] < case.capacity
                load[expert] += int(kept[t, j])
        start += length
    return kept


Queue = list[tuple[int, ...]]


def wanted_queues(case: Case, weights: np.ndarray) -> dict[int, list[Queue]]:
    """Return each expert's queues, window by window, as (slot, weight, rank) of each entry.

    ``weights`` : of the assignments, as they came in.
    """
    config = case.config
    kept = kept_by_counting(case, weights)
    if config.kept_gating is not None:
        weights = kept_weights(config.kept_gating, scores_of(case)[0], kept)
    queues: dict[int, list[Queue]] = {}
    start = 0
    for length in case.batches:
        for window in range(start, start + length, config.window_tokens):
            of_window: dict[int, Queue] = {}
            for t in range(window, min(start + length, window + config.window_tokens)):
                slot = t % config.num_slots
                chosen = sorted(int(expert) for expert in case.ids[t][kept[t]])
                if config.shared:
                    of_window.setdefault(config.num_experts, []).append((slot, BF16_ONE, 0))
                for expert, weight in zip(case.ids[t][kept[t]], weights[t][kept[t]], strict=True):
                    rank = chosen.index(expert) + config.shared
                    of_window.setdefault(int(expert), []).append((slot, int(weight), rank))
            for expert, queue in of_window.items():
                queues.setdefault(expert, []).append(queue)
        start += length
    return queues


def check_conservation(case: Case, run: Run) -> None:
    """Nothing accepted is lost, duplicated or reordered inside an expert, seen from the ports alone."""
    config = case.config
    fields = ("slot", "weight", "rank") if config.ranks else ("slot", "weight")
    accepted = [config.assignment.from_bits(payload) for payload in run.traces["i"].payloads]
    weights = np.array([beat.weight for beat in accepted]).reshape(case.ids.shape)
    queues = {
        expert: [[entry[: len(fields)] for entry in queue] for queue in of_expert]
        for expert, of_expert in wanted_queues(case, weights).items()
    }
    left = {expert: list(of_expert) for expert, of_expert in queues.items()}
    for unit, name in enumerate(config.outputs()):
        job: Queue = []
        before = dict.fromkeys(queues, -1)
        for payload in run.traces[name].payloads:
            beat = config.entry.from_bits(payload)
            job.append(tuple(beat[field] for field in fields))
            if beat.last:
                expert = beat.expert
                assert config.num_units == 1 or run.placement[expert] >> unit & 1, f"{name}; {case}"
                assert job in left[expert], f"{name}: expert {expert} was given {job}; {case}"
                left[expert].remove(job)
                later = before[expert] + 1
                assert job in queues[expert][later:], f"{name}: expert {expert}'s windows; {case}"
                before[expert] = queues[expert].index(job, later)
                job = []
        assert not job, f"{name} ends inside a job; {case}"
    assert not any(left.values()), f"lost: {left}; {case}"


def seeds(count: int, more: int) -> list:
    """Return so many seeds, and more of them for the long sweep."""
    return [*range(count), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(count, more))]


@pytest.mark.parametrize("seed", seeds(10, 150))
def test_random_units(seed):
    case = random_case(seed)
    run = run_case(case)
    check(case, run)
    check_conservation(case, run)


@pytest.mark.parametrize("rule", [CapacityRule.GSHARD, CapacityRule.BATCH_PRIORITY])
@pytest.mark.parametrize("seed", seeds(6, 60))
def test_random_rules(seed, rule):
    case = random_case(seed, rule=rule, num_units=1 + seed % 3)
    run = run_case(case)
    check(case, run)
    check_conservation(case, run)


@pytest.mark.parametrize("seed", seeds(6, 60))
def test_random_shared_gates(seed):
    """The shared expert's entries have the weights that came with the tokens."""
    case = random_case(seed, rule=CAPACITY_RULES[seed % 3], num_units=1 + seed // 3 % 3)
    case = replace(case, config=replace(case.config, shared=True, shared_gate=True))
    run = run_case(case)
    check(case, run)
    shared = run.streams.entry_weight[run.streams.entry_expert == case.config.num_experts]
    assert len(shared) == case.num_tokens
    assert (shared != BF16_ONE).any()


def scored_case(seed: int) -> Case:
    """Return a random case whose drops, and in half of them whose weights, depend on scores."""
    rng = np.random.default_rng(seed + 9000)
    rule = list(CapacityRule)[seed % 4]
    case = random_case(seed, num_units=1 + seed // 4 % 2)
    kind = list(Score)[seed // 2 % 4]
    gating = GatingSpec(
        num_experts=case.config.num_experts,
        top_k=case.config.top_k,
        score=kind,
        normalise=Normalise.SUM if rng.random() < 0.6 else Normalise.P_NORM,
        norm_order=float(rng.choice([1.0, 2.0, 3.5])),
        epsilon=float(rng.choice([0.0, 2.0**-23, 0.3])),
        epsilon_rule=list(Epsilon)[rng.integers(2)],
        scale=float(rng.choice([1.0, 0.8, 100.0])),
    )
    signed = kind is Score.NONE
    config = replace(
        case.config,
        capacity_rule=rule,
        score_bits=32 if signed else score_bits(kind),
        kept_gating=gating if rule is CapacityRule.SWITCH or rng.random() < 0.7 else None,
        signed_weights=signed,
        shared_gate=case.config.shared and bool(rng.integers(2)),
    )
    weights = bf16_encode(rng.integers(-9, 9, case.ids.shape) / 4) if signed else None
    return replace(case, config=config, capacity=int(rng.choice([0, 1, 2, 3])), weights=weights)


@pytest.mark.parametrize("seed", seeds(16, 320))
def test_random_scores(seed):
    """Tokens ranked by their scores, weights made of what is kept, all bits and cycles."""
    case = scored_case(seed)
    run = run_case(case)
    check(case, run)
    if not case.config.shared_gate:
        check_conservation(case, run)


def test_random_scores_reach_everything():
    """The cases above drop some and keep some of tokens, by every rule, with each kind of weight."""
    cases = [scored_case(seed) for seed in range(16)]
    made = [case for case in cases if case.config.kept_gating is not None]
    assert {case.config.capacity_rule for case in made} == set(CapacityRule)
    assert {case.config.signed_weights for case in made} == {True, False}
    assert {case.config.kept_gating.normalise for case in made} == {Normalise.SUM, Normalise.P_NORM}
    partly = 0
    for case in made:
        kept = kept_by_counting(case, np.zeros(case.ids.shape, np.uint16))
        partly += int((kept.any(axis=1) & ~kept.all(axis=1)).sum())
    assert partly > 20


def identity_case(seed: int) -> Case:
    """Return a random case with identity experts behind the others; some tokens have no other."""
    rng = np.random.default_rng(seed + 7000)
    case = random_case(seed, rule=CAPACITY_RULES[seed % 3], num_units=1 + seed // 3 % 3)
    config = replace(case.config, num_identity_experts=int(rng.integers(1, 9)))
    skew = float(rng.choice([-2, 0, 1]))
    ids = experts_of_tokens(rng, case.num_tokens, config.num_routed, config.top_k, skew=skew)
    return replace(case, config=config, ids=ids, capacity=0)


@pytest.mark.parametrize("seed", seeds(6, 60))
def test_random_identity_experts_with_places(seed):
    """They have places too: what finds none is in no sum."""
    case = identity_case(seed + 500)
    case = replace(case, config=replace(case.config, identity_places=True), capacity=1 + seed % 3)
    run = run_case(case)
    check(case, run)
    weights = np.array([case.config.assignment.from_bits(beat).weight for beat in run.expected["i"]])
    kept = kept_by_counting(case, weights.reshape(case.ids.shape))
    assert np.array_equal(run.streams.kept, kept)
    served = (kept & (case.ids < case.config.num_experts)).sum(axis=1)
    assert np.array_equal(run.streams.expect_count, served + case.config.shared)


@pytest.mark.parametrize("seed", seeds(4, 40))
def test_no_places(seed):
    """Every assignment is dropped, whatever the rule; tokens come out all the same."""
    case = random_case(seed, num_units=1 + seed % 2)
    config = replace(case.config, no_places=True, capacity_rule=list(CapacityRule)[seed % 4])
    case = replace(case, config=config)
    run = run_case(case)
    check(case, run)
    assert run.dropped == case.ids.size
    assert np.array_equal(run.streams.expect_count, np.full(case.num_tokens, int(config.shared)))


@pytest.mark.parametrize("seed", seeds(9, 90))
def test_random_identity_experts(seed):
    """They get no queue; the sum of a token's weights for them is announced with it."""
    case = identity_case(seed)
    run = run_case(case)
    check(case, run)
    served = (case.ids < case.config.num_experts).sum(axis=1)
    assert np.array_equal(run.streams.expect_count, served + case.config.shared)
    assert run.dropped == 0


def test_sums_of_identity_weights():
    """Against exact arithmetic: cut off below 2**-32 each, added, rounded once."""
    rng = np.random.default_rng(3)
    weights = bf16_encode(rng.standard_normal((300, 5)) * np.exp2(rng.integers(-40, 18, (300, 5))))
    identity = rng.random((300, 5)) < 0.6
    sums = identity_sums(weights, identity)
    for row, mask, total in zip(bf16_decode(weights), identity, sums.tolist(), strict=True):
        exact = [Fraction(float(value)) * 2**32 for value in row[mask]]
        assert total == sum(int(value) for value in exact)  # int() cuts off towards zero
    wanted = [nearest_bf16(Fraction(total, 2**32)) for total in sums.tolist()]
    assert identity_weights(sums).tolist() == wanted


def test_scores_are_asked_for():
    message = (
        "score_bits: must be above 0 where tokens are ranked or weights are normalised by their scores, not 0"
    )
    for change in (
        {"capacity_rule": CapacityRule.SCORE_PRIORITY},
        {"kept_gating": GatingSpec(num_experts=2, top_k=1)},
    ):
        with pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z"):
            DispatchConfig(num_experts=2, top_k=1, window_tokens=1, **change)
    with pytest.raises(InputError, match=r"\Ascores: must be given where tokens are ranked or weights are"):
        dispatch_streams(
            [[0]], [[0]], num_experts=2, window_tokens=1, capacity_rule=CapacityRule.SCORE_PRIORITY
        )
    with pytest.raises(InputError, match=r"\Ascores: must have the shape of ids=\(1, 1\), not \(1, 2\)\Z"):
        dispatch_streams([[0]], [[0]], num_experts=2, window_tokens=1, scores=[[0, 1]])


def test_decision_and_weights_take_as_long_as_stated():
    """From the beat that closes a window to the first beat given, weights of kept ones included."""
    gating = GatingSpec(num_experts=4, top_k=2)
    case = small([[0, 1], [1, 2], [3, 1], [0, 2]], num_units=1)
    case = replace(case, config=replace(case.config, score_bits=31, kept_gating=gating))
    run = run_case(case)
    check(case, run)
    # A score's read, its sum and inverse, product and rounding.
    more = 1 + (2 + 5) + 2
    assert sim.dispatch.decide_cycles(run.streams) == sim.dispatch.DECIDE_CYCLES + more
    given = 7 + Decide.DECIDE_CYCLES + more + 8
    assert run.model.o_expect[0] == given + 1 + Dispatch.EXPECT_LATENCY


def test_a_shared_gate_needs_a_shared_expert():
    with pytest.raises(InputError, match=r"\Ashared_gate: needs a shared expert\Z"):
        DispatchConfig(num_experts=2, top_k=1, window_tokens=1, shared_gate=True)


@pytest.mark.parametrize("seed", range(4))
def test_reset_in_the_middle(seed):
    rule = CAPACITY_RULES[seed % 3]
    case = random_case(1000 + seed, rule=rule, num_units=2 + seed % 2)
    run = run_case(case, reset_after=5 + 17 * seed)
    check(case, run)
    check_conservation(case, run)


def small(ids, **changes) -> Case:
    """Return a case over these experts in one batch, with windows of four tokens and two units."""
    ids = np.asarray(ids)
    fields = {"num_experts": 4, "window_tokens": 4, "num_units": 2, "shared": False}
    more = {
        name: changes.pop(name)
        for name in ("unit_jobs", "capacity_rule", "longest_queue", "ranks")
        if name in changes
    }
    config = DispatchConfig(
        top_k=ids.shape[1],
        capacity_bits=4,
        **{name: changes.pop(name, value) for name, value in fields.items()},
        **more,
    )
    batches = changes.pop("batches", [ids.shape[0]])
    return Case(config=config, ids=ids, batches=batches, **{"retire": "served", **changes})


ROUND = [[t % 4] for t in range(16)]
CORNERS = {
    "all_replicas_full": small(ROUND, replicas="all", unit_jobs=1),
    "one_replica_each": small(ROUND, replicas="one"),
    "one_job_per_unit": small(ROUND * 2, unit_jobs=1, num_units=3),
    "window_of_one_token": small([[0, 1], [1, 2], [3, 1]] * 4, window_tokens=1, ranks=True),
    "everything_dropped_in_some_windows": small([[0, 1]] * 19, capacity=1),
    "everything_dropped_but_shared": small([[0, 1]] * 19, capacity=1, shared=True, ranks=True),
    "all_tokens_to_one_expert": small([[2]] * 19, replicas="all"),
    "more_units_than_jobs": small([[1, 2]] * 9, num_units=7, replicas="all"),
    "k_equals_num_experts": small([[3, 2, 1, 0]] * 9, ranks=True),
    "one_expert_and_the_shared_one": small([[0]] * 9, num_experts=1, shared=True, ranks=True),
    "longest_queue_first": small(
        [[3], [2], [3], [1], [2], [3], [2], [2]] * 2, longest_queue=True, policy=Policy.LONGEST_QUEUE
    ),
    "equal_queues": small(
        [[3], [3], [1], [1]] * 3, longest_queue=True, policy=Policy.LONGEST_QUEUE, num_units=1
    ),
    "policy_not_built": small([[3], [2], [3], [1]] * 3, policy=Policy.LONGEST_QUEUE),
    "first_choices_first": small(
        [[1, 0], [2, 0], [0, 1], [0, 2]] * 3, capacity_rule=CapacityRule.GSHARD, capacity=2, num_units=1
    ),
    "batch_longer_than_a_window": small(
        [[1, 0], [2, 0], [0, 1], [0, 2]] * 4, capacity_rule=CapacityRule.GSHARD, capacity=5, batches=[10, 6]
    ),
    "priority": small(
        [[1, 0], [2, 0], [0, 1], [0, 2]] * 3,
        capacity_rule=CapacityRule.BATCH_PRIORITY,
        capacity=1,
        batches=[4, 3, 5],
        num_units=1,
    ),
    "rule_without_limit": small([[1, 0], [2, 3]] * 5, capacity_rule=CapacityRule.BATCH_PRIORITY),
    "rule_and_window_of_one": small(
        [[1, 0], [1, 2]] * 4, capacity_rule=CapacityRule.BATCH_PRIORITY, window_tokens=1, capacity=3
    ),
}


@pytest.mark.parametrize("stalls", ["none", "bursts"])
@pytest.mark.parametrize("name", CORNERS)
def test_corner(name, stalls):
    case = replace(CORNERS[name], stalls=stalls, gaps="none" if stalls == "none" else "bursts", seed=7)
    run = run_case(case)
    check(case, run)
    check_conservation(case, run)
    streams, config = run.streams, case.config
    if name == "all_replicas_full":
        assert full_cycles(case, run) > 0, "the corner was not reached"
    if "dropped" in name:
        assert (np.bincount(streams.window, streams.kept.any(axis=1)) == 0).any(), (
            "the corner was not reached"
        )
    if name in ("longest_queue_first", "equal_queues"):
        order = streams.entry_expert[streams.job_bounds[:-1]]
        assert order.tolist() != sorted(order.tolist()), "the corner was not reached"
    if config.capacity_rule is not CapacityRule.SWITCH and case.capacity:
        other = dispatch_streams(
            case.ids,
            np.zeros_like(case.ids),
            num_experts=config.num_experts,
            window_tokens=config.window_tokens,
            batch_lengths=case.batches,
            capacity=case.capacity,
        )
        assert (other.kept != streams.kept).any() or config.window_tokens == 1, "the corner was not reached"


def full_cycles(case: Case, run: Run) -> int:
    """Return the cycles in which every unit holds as many unfinished jobs as it can."""
    config = case.config
    unfinished = np.zeros((config.num_units, 1 << 14), dtype=np.int64)
    for unit, name in enumerate(config.outputs()):
        trace = run.traces[name]
        last = np.array([config.entry.from_bits(payload).last for payload in trace.payloads], dtype=bool)
        first = np.roll(last, 1)
        done = run.retiring.finished(unit, trace.cycles[last].tolist())
        for begins, ends in zip(trace.cycles[first].tolist(), done, strict=True):
            unfinished[unit, begins : ends + 1] += 1
    assert unfinished.max() <= config.unit_jobs, "a unit was given more than it can hold"
    return int((unfinished == config.unit_jobs).all(axis=0).sum())


def test_waiting_unit_holds_up_no_other():
    """Unit 0 does nothing for a while: all that unit 1 may serve goes on, in the younger window too."""
    ids = [[0], [0], [1], [1], [2], [2], [0], [3], [1], [0], [3], [3]]
    streams = dispatch_streams(ids, np.zeros((12, 1)), num_experts=4, window_tokens=4)
    placement = np.array([1, 2, 2, 2])
    late = [np.arange(1000, 1010), np.arange(0, 200, 5)]
    units = Units(2, placement, jobs=1)
    model = dispatch_cycles(streams, np.zeros(12), units=units, retired=late)
    experts = streams.entry_expert[streams.job_bounds[:-1]]
    windows = streams.entry_window[streams.job_bounds[:-1]]
    served = [(int(windows[job]), int(experts[job])) for job in model.job_order]
    assert served == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 1), (2, 3), (1, 0), (2, 0)]
    waiting = (streams.entry_expert == 0) & (streams.entry_window > 0)
    assert model.entries[~waiting].max() < 200
    assert model.entries[waiting].min() > 1000


def test_latency_of_a_retirement():
    """A job that only waits for its unit comes five cycles after the unit has told."""
    case = small([[0], [0], [1], [1]], unit_jobs=1, replicas="one", seed=4)
    run = run_case(case)
    check(case, run)
    units = run.model.job_unit
    assert units[0] == units[1], "the corner was not reached"
    cycles = run.traces[f"o_{units[0]}"].cycles
    done = run.retiring.finished(int(units[0]), [int(cycles[1])])[0]
    assert cycles[2] == done + 5


def test_replica_with_the_fewest_entries():
    """Jobs of 4, 1, 2, 1, 3 entries: to the lowest of equals, else to where less is to be done."""
    ids = [[0, 2, 4], [0, 3, 4], [0, 2, 4], [0, 1, 5]]
    streams = dispatch_streams(ids, np.zeros((4, 3)), num_experts=6, window_tokens=4)
    units = Units(3, np.full(6, 7), jobs=4)
    never = [np.zeros(0, dtype=np.int64)] * 3
    model = dispatch_cycles(streams, np.zeros(12), units=units, retired=never)
    # 0: 4 entries to unit 0; 1: 1 to unit 1; 2: 2 to unit 2; 3: 1 to unit 1 (1 < 2); 4: 3 to unit 1 (2 = 2).
    assert model.job_unit.tolist() == [0, 1, 2, 1, 1, 2]


def test_unit_without_a_job_gives_nothing_back():
    """Pulses before the first job, as in every case with drawn ones, do not let a unit take more."""
    case = replace(CORNERS["all_replicas_full"], retire="drawn", seed=3)
    run = run_case(case)
    assert run.retiring.drawn[: int(min(run.model.entries))].any()
    check(case, run)


@pytest.mark.parametrize("rule", [CapacityRule.GSHARD, CapacityRule.BATCH_PRIORITY])
def test_latency_of_a_decision(rule):
    assert Decide.DECIDE_CYCLES == sim.dispatch.START_CYCLES + sim.dispatch.DECIDE_CYCLES
    case = small([[0, 1], [1, 2], [3, 1], [0, 2]], num_units=1, capacity_rule=rule)
    traces = run_case(case).traces
    assert traces["i"].cycles.tolist() == list(range(8))
    given = 7 + Decide.DECIDE_CYCLES + 8  # the first beat given
    expects = given + np.arange(1, 8, 2) + Dispatch.EXPECT_LATENCY
    assert traces["o_expect"].cycles.tolist() == expects.tolist()
    first = given + 7 + Dispatch.LATENCY
    assert traces["o_0"].cycles.tolist() == list(range(first, first + 8))


def test_decided_window_takes_two_cycles_per_assignment():
    case = small(
        experts_of_tokens(np.random.default_rng(3), 64, 4, 2),
        num_units=1,
        capacity_rule=CapacityRule.GSHARD,
    )
    run = run_case(case)
    check(case, run)
    closing = run.traces["i"].cycles[7::8]
    assert (np.diff(closing)[4:] == 2 * 8 + Decide.DECIDE_CYCLES - 1).all()


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_largest_key(width):
    from amaranth.sim import Simulator

    dut = FirstOf(width, 2)
    rng = np.random.default_rng(width)

    async def bench(ctx):
        for _ in range(200):
            bits = rng.random(width) < 0.6
            keys = rng.integers(0, 4, width)
            by_key = int(rng.integers(2))
            ctx.set(dut.bits, sum(int(bit) << n for n, bit in enumerate(bits)))
            ctx.set(dut.keys, keys.tolist())
            ctx.set(dut.by_key, by_key)
            await ctx.delay(1e-9)
            assert ctx.get(dut.any) == bits.any()
            if bits.any():
                best = min(np.flatnonzero(bits).tolist(), key=lambda n: (-keys[n] * by_key, n))
                assert (ctx.get(dut.index), ctx.get(dut.key)) == (best, keys[best])

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()


# The checks themselves must fail where the hardware is wrong.
PLANTED = {
    "credit not given back": (rtl.dispatch.units, "jobs.eq(after + self.give)", "jobs.eq(jobs + self.give)"),
    "one job too many": (rtl.dispatch.units, "(jobs != config.unit_jobs)", "(jobs != config.unit_jobs + 1)"),
    "pulse without a job": (rtl.dispatch.units, "self.retired & (jobs != 0)", "self.retired"),
    "entries stay": (rtl.dispatch.units, " - Mux(retire, lengths[0], 0)", ""),
    "length of another job": (rtl.dispatch.units, "self.give & (after == n)", "self.give & (jobs == n)"),
    "busiest replica": (
        rtl.dispatch.units,
        "least.keys[n].eq(~unit.entries)",
        "least.keys[n].eq(unit.entries)",
    ),
    "highest of equals": (rtl.dispatch.first, "(high_key > low_key)", "(high_key >= low_key)"),
    "policy ignored": (
        rtl.dispatch.picker,
        "first.by_key.eq(self.policy == ServicePolicy.LONGEST_QUEUE)",
        "first.by_key.eq(0)",
    ),
    "placement ignored": (
        rtl.dispatch.picker,
        "units.replicas.eq(self.placement[expert])",
        "units.replicas.eq(-1)",
    ),
    "younger window waits": (
        rtl.dispatch.picker,
        "parity.eq(oldest ^ ~in_oldest)",
        "parity.eq(oldest)",
    ),
    "windows always take turns": (rtl.dispatch.picker, "with m.If(closed == 0):", "with m.If(0):"),
    "shared expert's length": (
        rtl.dispatch.picker,
        "Mux(take_shared, tokens[parity], first.key)",
        "first.key",
    ),
    "length of the window before": (
        rtl.dispatch.tables,
        "length.eq(Mux(was_empty, 1, length + 1))",
        "length.eq(length + 1)",
    ),
    "rank of the others": (
        rtl.dispatch.enqueue,
        "kept[n] & (expert > self.expert)",
        "kept[n] & (expert < self.expert)",
    ),
    "dropped ones have ranks": (rtl.dispatch.enqueue, "kept[n].eq(self.keep)", "kept[n].eq(1)"),
    "rank of the entry before": (rtl.dispatch.tables, "place.eq(self.entry.entry.j)", "place.eq(place)"),
    "priority ignored": (rtl.dispatch.decide, "Mux(claim, order[turn], turn)", "turn"),
    "priority of the last choice": (
        rtl.dispatch.decide,
        "score.eq(Mux(self.weight > best, self.weight, best))",
        "score.eq(self.weight)",
    ),
    "later one of equals first": (rtl.dispatch.decide, "(score > held_score)", "(score >= held_score)"),
    "counts survive the batch": (rtl.dispatch.decide, "counts.end.eq(s2_end)", "counts.end.eq(0)"),
    "one cycle late: decision": (
        rtl.dispatch.decide,
        "start.eq(~collecting)",
        "start.eq(~collecting & self.i.valid)",
    ),
    "other window's assignments": (
        rtl.dispatch.decide,
        "store.read_0.addr.eq(Cat(row, bank))",
        "store.read_0.addr.eq(row)",
    ),
}
PLANTED_IN_SCORES = {
    "weights of all": (rtl.dispatch.decide, "weigh.i.keep.eq(keeps.read_0.data)", "weigh.i.keep.eq(1)"),
    "other window's scores": (
        rtl.dispatch.decide,
        "scores.read_0.addr.eq(Cat(row, bank))",
        "scores.read_0.addr.eq(row)",
    ),
    "kept as the one before": (rtl.dispatch.decide, 'self.weigh.latency, "keep"', '1, "keep"'),
    "weights a cycle late": (
        rtl.dispatch.decide,
        "weighed == self.weigh_cycles - 1",
        "weighed == self.weigh_cycles",
    ),
    "weight of the place before": (
        rtl.dispatch.decide,
        "weights.write.addr.eq(weigh.o.index)",
        "weights.write.addr.eq(weigh.o.index ^ 1)",
    ),
    "token walks on": (rtl.dispatch.decide, "weigh.i.first.eq(row.j == 0)", "weigh.i.first.eq(0)"),
    "first choices first": (
        rtl.dispatch.decide,
        "if config.capacity_rule is CapacityRule.SWITCH:",
        "if False:",
    ),
    "ranked by weight": (rtl.dispatch.decide, "return assignment.score", "return assignment.weight"),
    "sign ignored": (rtl.dispatch.decide, "Mux(weight[15], ~weight, weight | 0x8000)", "weight"),
    "places after all": (rtl.dispatch.enqueue, "if self.config.no_places:", "if False:"),
    "identity experts without a place": (rtl.dispatch.enqueue, "Mux(is_identity & keep", "Mux(is_identity"),
}


def revealing_cases() -> tuple[list[Case], list[Case]]:
    """Return cases of units and policies, and cases of rules."""
    rng = np.random.default_rng(1)
    several = small(
        experts_of_tokens(rng, 23, 5, 2, skew=1.0),
        num_experts=5,
        num_units=3,
        shared=True,
        capacity=5,
        batches=[7, 16],
        longest_queue=True,
        ranks=True,
        policy=Policy.LONGEST_QUEUE,
        seed=2,
    )
    anywhere = replace(several, capacity=0, replicas="all", seed=6)
    drawn = replace(anywhere, retire="drawn", seed=0)
    one = small(
        experts_of_tokens(rng, 24, 5, 2, skew=1.0),
        num_experts=5,
        num_units=1,
        capacity=1,
        batches=[4, 4, 8, 4, 4],
        capacity_rule=CapacityRule.BATCH_PRIORITY,
        seed=1,
    )
    # Many weights are equal.
    equal = replace(one, weights=rng.integers(0, 3, one.ids.shape).astype(np.uint16))
    units = [
        several,
        replace(several, retire="drawn", stalls="half", seed=5),
        anywhere,
        drawn,
        replace(drawn, replicas="one", seed=5),
    ]
    return units, [one, equal]


def scored_cases() -> list[Case]:
    """Return cases whose drops or weights depend on scores, whose weights are signed, without any place."""
    rng = np.random.default_rng(2)
    one = small(
        experts_of_tokens(rng, 24, 5, 2, skew=1.0),
        num_experts=5,
        num_units=1,
        capacity=1,
        batches=[4, 4, 8, 4, 4],
        seed=3,
    )

    def changed(**config) -> Case:
        return replace(one, config=replace(one.config, **config))

    gating = GatingSpec(num_experts=5, top_k=2, epsilon=2.0**-23, epsilon_rule=Epsilon.CLAMPED)
    signs = bf16_encode(rng.integers(-9, 9, one.ids.shape) / 4)
    return [
        changed(score_bits=31, kept_gating=gating),
        changed(score_bits=31, capacity_rule=CapacityRule.SCORE_PRIORITY),
        replace(changed(capacity_rule=CapacityRule.BATCH_PRIORITY, signed_weights=True), weights=signs),
        changed(no_places=True, shared=True),
        # Most choose the identity experts.
        replace(changed(num_experts=3, num_identity_experts=2, identity_places=True), ids=4 - one.ids),
    ]


def run_cases(cases: list[Case]) -> None:
    for case in cases:
        check(case, run_case(case))


def test_unbroken_source_passes():
    units, rules = revealing_cases()
    run_cases(units + rules + scored_cases())


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(monkeypatch, bug):
    units, rules = revealing_cases()
    plant_bug(monkeypatch, *PLANTED[bug])
    with pytest.raises(DIVERGED):
        run_cases(rules if PLANTED[bug][0] is rtl.dispatch.decide else units)


@pytest.mark.parametrize("bug", PLANTED_IN_SCORES)
def test_planted_bug_in_scores_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, *PLANTED_IN_SCORES[bug])
    with pytest.raises(DIVERGED):
        run_cases(scored_cases())


STREAMS = dispatch_streams([[0, 1]], [[0, 0]], num_experts=4, window_tokens=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": Units(65, np.full(4, 1))}, "num_units: must be in 1..64, not 65"),
        ({"units": Units(2, np.full(4, 1), jobs=17)}, "jobs: must be in 1..16, not 17"),
        ({"units": Units(2, np.full(1, 1))}, "placement: must name the units of each of 2 experts, not 1"),
        (
            {"units": Units(2, np.array([1, 0]))},
            "placement: must be a set of some of 2 units for expert 1, not 0x0",
        ),
        (
            {"units": Units(2, np.array([4, 1]))},
            "placement: must be a set of some of 2 units for expert 0, not 0x4",
        ),
        (
            {"retired": [[1]]},
            "retired: must have cycles for each of 2 units that give back what they hold, not 1",
        ),
        (
            {"units": Units(2, np.full(2, 1), jobs=1), "retired": [[], []]},
            "retired: must let every unit give back what it holds while jobs wait",
        ),
        (
            {"retired": lambda _unit, _job, entries: int(entries[-1])},
            "retired: must be after the entries of job 0 and unit 0's job before, not in cycle 7",
        ),
    ],
)
def test_model_rules(change, message):
    arguments = {"units": Units(2, np.full(4, 3)), "retired": [[], []], **change}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        dispatch_cycles(STREAMS, [0, 0], **arguments)
