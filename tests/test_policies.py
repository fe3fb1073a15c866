"""Families of policies: cases by hand, bounds at random, published examples, the command and its page."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sim.cli import main
from sim.system import caches, placement
from sim.system.comparison import Comparison, Result, Steps
from sim.system.costs import Costs, Expert, Roofline
from sim.system.placement import Placing
from sim.system.schedule import schedule
from sim.system.step import least_frequent_leave, load_counts
from spec.load import load_system

ENGINE = Roofline(bytes_per_s=100.0, flops=1000.0, expert_s=0.5)
EXPERT = Expert(params=50, d_model=5, weight_bytes=100)


def steps_of(ids, experts: int, expert: Expert = EXPERT) -> Steps:
    """Return steps from (layers, steps, tokens, k) experts."""
    ids = np.asarray(ids, np.int64)
    layers, steps, tokens, k = ids.shape
    counts = load_counts(ids.reshape(-1, tokens, k), experts).reshape(layers, steps, experts)
    return Steps(ids, counts, expert)


def random_steps(rng: np.random.Generator, layers=3, steps=6, tokens=4, experts=8, k=2) -> Steps:
    """Return steps with popular experts."""
    keys = rng.gumbel(size=(layers, steps, tokens, experts)) - 2 * np.log1p(rng.permutation(experts))
    return steps_of(np.argsort(-keys, axis=-1)[..., :k], experts)


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Return a stream whose seed is printed."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def uses(text: str, experts: int) -> np.ndarray:
    """Return (1, steps, experts) bool from the experts of each step: ``"01 2"``."""
    return np.array([[[str(expert) in step for expert in range(experts)] for step in text.split()]])


@pytest.mark.parametrize(
    ("name", "entries", "used", "hits"),
    [
        # One entry: 0 comes again before 1 does.
        ("belady", 1, "0 1 0 1", 1),
        ("lru", 1, "0 1 0 1", 0),
        # Two entries: at 2 Belady gives up 1, which is used last; LRU always has what comes last.
        ("belady", 2, "0 1 2 0 1 2", 2),
        ("lru", 2, "0 1 2 0 1 2", 0),
        # 0 is used most, so LFU keeps it over 2; LRU does not.
        ("lfu", 1, "0 0 2 0", 2),
        ("lru", 1, "0 0 2 0", 1),
        ("hot", 1, "2 0 0 0", 2),
        # Two at once through one entry: the one that comes again is kept.
        ("belady", 1, "01 1 1", 2),
        # What never comes again is not kept.
        ("belady", 3, "012 3 3", 1),
    ],
)
def test_caches_by_hand(name, entries, used, hits):
    active = uses(used, 4)
    assert (caches.held(active, caches.CACHES[name](active), entries) & active).sum() == hits


def most_hits(active: np.ndarray, entries: int) -> int:
    """Return the most hits of any cache of one layer, by trying all contents that are possible."""
    best = {frozenset(): 0}
    for step in active:
        used = frozenset(np.flatnonzero(step).tolist())
        found: dict[frozenset, int] = {}
        for holds, hits in best.items():
            now = hits + len(holds & used)
            for size in range(entries + 1):
                for kept in itertools.combinations(sorted(holds | used), size):
                    found[frozenset(kept)] = max(now, found.get(frozenset(kept), 0))
        best = found
    return max(best.values())


def test_belady_is_the_best_of_all_caches(rng):
    for _ in range(8):
        active = rng.random((1, 6, 5)) < 0.4
        for entries in (1, 2):
            hits = (caches.held(active, caches.belady(active), entries) & active).sum()
            assert hits == most_hits(active[0], entries)


def test_no_cache_hits_more_than_belady_nor_prefetch_more_than_the_oracle(rng):
    monde = load_system("monde")
    for tokens in (1, 4, 16):
        result = caches.compare(monde, "t", random_steps(rng, tokens=tokens, steps=12), 3)
        rate = {name: found.measures["hit_rate"] for name, found in result.results.items()}
        assert set(rate) == set(caches.POLICIES)
        assert all(rate[name] <= rate["belady"] for name in caches.CACHES)
        assert all(rate[name] <= rate["oracle"] for name in caches.PREFETCHERS)
        assert all(found.seconds >= found.bound_s for found in result.results.values())


def test_a_policy_that_beats_its_bound_is_seen():
    with pytest.raises(ArithmeticError, match=r"\Acache policy lru is faster than its bound\Z"):
        Comparison("cache", "t", "lru", {"lru": Result(1.0, 1.1)}, "b")
    rates = {name: Result(1.0, 1.0, {"hit_rate": 0.5}) for name in caches.POLICIES}
    rates["lfu"] = Result(1.0, 1.0, {"hit_rate": 0.6})
    with pytest.raises(ArithmeticError, match=r"\Acache policy lfu hits more often than belady\Z"):
        caches.check_hits(rates)


def test_lfu_is_the_cache_of_a_system_s_steps(rng):
    steps = random_steps(rng, steps=9)
    counts = steps.counts.swapaxes(0, 1)
    active = steps.counts > 0
    mine = caches.held(active, caches.least_frequent(active), 3)
    assert (mine.swapaxes(0, 1) == least_frequent_leave(counts, 3)).all()


def test_circular_prediction_learns_what_follows():
    """Layer 0: 0 1 0 1 ..., layer 1: 2 3 2 3 ...: from the second time on each predicts the next."""
    steps = steps_of([[[[0]], [[1]], [[0]], [[1]]], [[[2]], [[3]], [[2]], [[3]]]], 4)
    fetched = caches.circular(steps, 2)
    assert (fetched & (steps.counts > 0)).sum(axis=2).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]
    assert fetched.sum() == 3
    gate = caches.next_layer_gate(steps, 1)
    assert gate[0].sum() == 0
    assert (gate[1] == (steps.counts[1] > 0)).all()


def test_times_of_layers_by_hand():
    """Moves of 2. On demand: 2 + 3, then 2 x 2 + 1. Ahead: one move, two beside the first layer, 2."""
    compute = np.array([[3.0, 0.0], [1.0, 1.0]])
    active = compute > 0
    none = np.zeros(active.shape, bool)
    assert caches.seconds(compute, 2.0, active, none, np.array([0, 0])) == 5 + 5
    assert caches.seconds(compute, 2.0, active, active, np.array([1, 2])) == 2 + 4 + 2


def test_times_without_a_cache_are_those_of_the_schedule(rng):
    """Moves of one length, the popular experts first: a closed form here, a scan of each expert there."""
    counts = rng.integers(0, 6, (5, 7))
    counts[:, 0] = 6
    compute = counts * float(rng.random())
    move = np.where(counts > 0, 0.7, 0.0)
    none = np.zeros(counts.shape, bool)
    zero = np.zeros(counts.shape)
    costs = Costs(counts, compute, zero, move, zero, np.zeros(7, np.int64))
    assert caches.seconds(compute, 0.7, counts > 0, none, np.zeros(5, int)) == pytest.approx(
        schedule(costs, ~none).seconds
    )


PUBLISHED = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    float,
)


def test_eplb_places_as_its_authors_example():
    """The example of the README of deepseek-ai/EPLB: 16 slots, 4 groups, 2 nodes, 8 devices."""
    placing = Placing(PUBLISHED, slots=16, devices=8, nodes=2, groups=4)
    assert placement.eplb_hierarchical(placing).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    # Groups that nodes do not divide: global, as there.
    odd = replace(placing, groups=3)
    assert (placement.eplb_hierarchical(odd) == placement.eplb_global(odd)).all()


def test_placements_by_hand():
    """Loads 8 4 2 1 1 and a copy of 0: six slots on two devices."""
    placing = Placing(np.array([[8.0, 4.0, 2.0, 1.0, 1.0]]), slots=6, devices=2)
    assert placement.round_robin(placing).tolist() == [[0, 2, 4, 1, 3, 0]]
    # By load of a copy 0 1 0 2 3 4: 0 and 1, back with 0 and 2, and there again with 3 and 4.
    assert placement.popularity(placing).tolist() == [[0, 2, 3, 1, 0, 4]]
    # 0, 1 and 0 have 4 each: one, the other, the first; then 2 and 3 to the lighter, 4 where room is.
    assert placement.eplb_global(placing).tolist() == [[0, 0, 4, 1, 2, 3]]
    assert placement.replicated(np.array([[9.0, 4.0]]), 4).tolist() == [[0, 1, 0, 0]]
    assert placement.packed(np.array([[5.0, 4.0, 3.0, 1.0]]), 2).tolist() == [[0, 3, 1, 2]]


def test_tokens_are_dealt_over_copies():
    assert placement.dealt_tokens(np.array([[0, 1, 0, 0]]), np.array([[5, 3]])).tolist() == [[2, 3, 2, 1]]


def test_placements_hold_every_expert_and_no_device_beats_balance(rng):
    for devices, nodes, slots in ((4, 2, 8), (4, 2, 12), (2, 1, 10), (4, 4, 16)):
        steps = random_steps(rng, steps=4, tokens=16)
        load = steps.counts[:, :2].sum(axis=1).astype(float)
        for place in placement.PLACEMENTS.values():
            placed = place(Placing(load, slots, devices, nodes, groups=4))
            assert placed.shape == (3, slots)
            assert all(set(row) == set(range(8)) for row in placed.tolist())
            tokens = placement.dealt_tokens(placed, steps.counts[:, 3])
            back = np.zeros((3, 8), int)
            np.add.at(back, (np.arange(3)[:, None], placed), tokens)
            assert (back == steps.counts[:, 3]).all()
        result = placement.compare(ENGINE, "t", steps, devices=devices, nodes=nodes, groups=4, slots=slots)
        assert set(result.results) == set(placement.POLICIES)
        for found in result.results.values():
            assert found.seconds >= found.bound_s * (1 - 1e-9)
            assert found.measures["imbalance"] >= 1


def test_balanced_loads_reach_the_bound():
    """Each of 4 experts has 3 tokens: one on each of 4 devices is perfect balance."""
    ids = np.broadcast_to(np.repeat(np.arange(4), 3)[:, None], (2, 2, 12, 1))
    result = placement.compare(ENGINE, "t", steps_of(ids, 4), devices=4)
    for name in placement.PLACEMENTS:
        assert result.results[name].seconds == pytest.approx(result.results[name].bound_s)


OF_FAMILY = {
    "cache": ["--model", "olmoe-1b-7b", "--steps", "4", "--tokens", "2"],
    "placement": ["--model", "olmoe-1b-7b", "--steps", "4", "--tokens", "8"],
}


@pytest.mark.parametrize("family", OF_FAMILY)
def test_the_command(capsys, family):
    assert main(["policies", family, *OF_FAMILY[family], "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["policies"][out["baseline"]]["speed"] == 1
    for found in out["policies"].values():
        assert found["seconds"] >= found["bound_s"] * (1 - 1e-9)
    assert main(["policies", family, *OF_FAMILY[family]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[2:-1]} == set(out["policies"])
    assert lines[-1] == f"speed is over {out['baseline']}; no policy is faster than: {out['bound']}"
    one = next(iter(set(out["policies"]) - {out["baseline"]}))
    assert main(["policies", family, *OF_FAMILY[family], "--policy", one]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("cache", ["--policy", "fifo"], f"policy: must be one of {', '.join(caches.POLICIES)}, not 'fifo'"),
        ("cache", ["--entries", "0"], "entries: must be in 1..64, not 0"),
        ("cache", ["--entries", "65"], "entries: must be in 1..64, not 65"),
        (
            "cache",
            ["--system", "duplex"],
            "weights: must be near, so that experts are moved, not shared",
        ),
        ("cache", ["--steps", "0"], "steps: must be in 1..524288, not 0"),
        ("cache", ["--tokens", "-1"], "tokens: must be in 1..1048576, not -1"),
        ("cache", ["--seed", "-1"], "seed: must be at least 0, not -1"),
        (
            "cache",
            ["--system", "monde", "--model", "kimi-k2-1t"],
            "near.capacity_bytes: must hold all experts, 2,029.4 GB, not 512.0 GB",
        ),
        (
            "placement",
            ["--policy", "even"],
            f"policy: must be one of {', '.join(placement.POLICIES)}, not 'even'",
        ),
        ("placement", ["--devices", "0"], "devices: must be in 1..4096, not 0"),
        ("placement", ["--devices", "7"], "devices: must divide slots=64, not 7"),
        ("placement", ["--nodes", "3"], "nodes: must divide devices=8, not 3"),
        ("placement", ["--slots", "32"], "slots: must be in 64..4096, not 32"),
        ("placement", ["--steps", "1"], "steps: must be at least 2, one to learn from and one to run, not 1"),
    ],
)
def test_bad_input_is_one_line(capsys, family, arguments, message):
    assert main(["policies", family, *OF_FAMILY[family], *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {re.escape(message)}\n", captured.err)
