"""Families of policies: cases by hand, bounds at random, published examples, the command and its page."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import policies_page
from sim.cli import main
from sim.routing import parse_routing
from sim.system import caches, exchange, execution, parallel, placement, widths
from sim.system.comparison import Comparison, Result, Steps, drawn_steps
from sim.system.costs import Costs, Expert, Roofline
from sim.system.placement import Placing
from sim.system.policies import POLICIES
from sim.system.schedule import schedule
from sim.system.step import least_frequent_leave, load_counts
from spec.files import PRESETS, preset_names
from spec.load import load_model, load_system
from spec.system import SystemSpec, nominal

PAGE = Path(__file__).parent.parent / "docs" / "policies.md"
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


def with_tier(experts: float) -> SystemSpec:
    """Return SN40L with a tier that has room for so many of the small experts, half of it theirs."""
    system = load_system("sn40l")
    assert system.host is not None and system.host.tier is not None
    tier = system.host.tier
    capacity = replace(tier.capacity_bytes, value=2 * experts * EXPERT.weight_bytes)
    return replace(system, host=replace(system.host, tier=replace(tier, capacity_bytes=capacity)))


def test_places_of_a_tier_are_dealt_over_layers():
    """Seven experts and a half in three layers; not more than the host holds; none without a tier."""
    weight_bytes = EXPERT.weight_bytes
    assert caches.tier_entries(with_tier(7.5), 3, weight_bytes, 8).tolist() == [3, 2, 2]
    assert caches.tier_entries(with_tier(7.5), 3, weight_bytes, 2).tolist() == [2, 2, 2]
    assert caches.tier_entries(load_system("monde"), 3, weight_bytes, 2) is None
    assert caches.tier_entries(load_system("pim"), 3, weight_bytes, 2) is None


def test_caches_of_as_many_places_as_each_layer_has(rng):
    active = rng.random((3, 9, 6)) < 0.4
    value = caches.least_recent(active)
    found = caches.held(active, value, np.array([2, 0, 3]))
    for layer, entries in enumerate((2, 0, 3)):
        assert (
            found[layer] == caches.held(active[layer : layer + 1], value[layer : layer + 1], entries)
        ).all()


def test_a_tier_by_hand():
    """One expert three times, then another: moved, twice from the tier, moved; the tier has one place."""
    system, steps = with_tier(1), steps_of([[[[0]], [[0]], [[0]], [[1]]]], 2)
    result = caches.compare(system, "t", steps, 2).results["lru"]
    values = nominal(system)
    host, tier = Roofline.of(values, "host"), Roofline.of_tier(values, "host")
    assert tier.bytes_per_s == pytest.approx(244e12 * 0.85) and tier.flops == host.flops
    traffic, flops = EXPERT.weight_bytes + 2 * 2 * EXPERT.d_model, 2 * EXPERT.params
    move = EXPERT.weight_bytes / values["link.bytes_per_s"] + values["link.latency_s"]
    slow, fast = (float(one.seconds(traffic, flops)) for one in (host, tier))
    assert result.seconds == pytest.approx(2 * (move + slow) + 2 * fast, rel=1e-12)
    assert result.measures["tier_rate"] == result.measures["hit_rate"] == 0.5
    # Of a system without one nothing is said.
    assert "tier_rate" not in caches.compare(load_system("monde"), "t", steps, 2).results["lru"].measures


def test_a_tier_is_never_slower_and_keeps_to_its_bound(rng):
    """Whatever it has room for; with none it is as if there were none; what is in it is held, too."""
    for tokens in (1, 4):
        steps = random_steps(rng, tokens=tokens, steps=12)
        empty = caches.compare(with_tier(1e-3), "t", steps, 3).results
        for experts in (1, 4, 9, 30):
            found = caches.compare(with_tier(experts), "t", steps, 3).results
            for name, one in found.items():
                assert one.bound_s <= one.seconds <= empty[name].seconds
                assert one.measures["tier_rate"] <= one.measures["hit_rate"] * (name in caches.CACHES)
                assert empty[name].measures["tier_rate"] == 0
        assert found["lru"].measures["tier_rate"] == found["lru"].measures["hit_rate"]


def test_a_tier_that_hits_too_often_is_seen(rng, monkeypatch):
    steps = random_steps(rng, tokens=8, steps=12)
    monkeypatch.setattr(caches, "belady", lambda active: np.zeros(active.shape))
    with pytest.raises(ArithmeticError, match=r"\Acache policy lru hits more often in a tier than belady\Z"):
        caches.compare(with_tier(9), "t", steps, 3)


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
    # Layer 0 is predicted by the token before: 2 was followed by 0, and is now by 1.
    pairs = steps_of([[[[0]], [[0]], [[1]], [[1]]], [[[2]], [[2]], [[3]], [[3]]]], 4)
    assert caches.circular(pairs, 1)[0].astype(int).tolist() == [[0] * 4, [0] * 4, [1, 0, 0, 0], [0] * 4]
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
    """The example of the README of deepseek-ai/EPLB: 16 places, 4 groups, 2 nodes, 8 devices."""
    placing = Placing(PUBLISHED, places=16, devices=8, nodes=2, groups=4)
    assert placement.eplb_hierarchical(placing).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    # Groups that nodes do not divide: global, as there.
    odd = replace(placing, groups=3)
    assert (placement.eplb_hierarchical(odd) == placement.eplb_global(odd)).all()


def test_placements_by_hand():
    """Loads 8 4 2 1 1 and a copy of 0: six places on two devices."""
    placing = Placing(np.array([[8.0, 4.0, 2.0, 1.0, 1.0]]), places=6, devices=2)
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
    for devices, nodes, places in ((4, 2, 8), (4, 2, 12), (2, 1, 10), (4, 4, 16)):
        steps = random_steps(rng, steps=4, tokens=16)
        load = steps.counts[:, :2].sum(axis=1).astype(float)
        for place in placement.PLACEMENTS.values():
            placed = place(Placing(load, places, devices, nodes, groups=4))
            assert placed.shape == (3, places)
            assert all(set(row) == set(range(8)) for row in placed.tolist())
            tokens = placement.dealt_tokens(placed, steps.counts[:, 3])
            back = np.zeros((3, 8), int)
            np.add.at(back, (np.arange(3)[:, None], placed), tokens)
            assert (back == steps.counts[:, 3]).all()
        result = placement.compare(
            ENGINE, "t", steps, 8, devices=devices, nodes=nodes, groups=4, places=places
        )
        assert set(result.results) == set(placement.POLICIES)
        for found in result.results.values():
            assert found.seconds >= found.bound_s * (1 - 1e-9)
            assert found.measures["imbalance"] >= 1


def test_balanced_loads_reach_the_bound():
    """Each of 4 experts has 3 tokens: one on each of 4 devices is perfect balance."""
    ids = np.broadcast_to(np.repeat(np.arange(4), 3)[:, None], (2, 2, 12, 1))
    result = placement.compare(ENGINE, "t", steps_of(ids, 4), 4, devices=4)
    for name in placement.PLACEMENTS:
        assert result.results[name].seconds == pytest.approx(result.results[name].bound_s)


OF_FAMILY = {
    "cache": ["--model", "olmoe-1b-7b", "--steps", "4", "--tokens", "2"],
    "placement": ["--model", "olmoe-1b-7b", "--steps", "4", "--tokens", "8"],
    "exchange": ["--model", "olmoe-1b-7b", "--steps", "2", "--tokens", "16", "--nodes", "2"],
    "dispatch": ["--model", "olmoe-1b-7b", "--steps", "2", "--tokens", "16"],
    "formats": ["--model", "olmoe-1b-7b", "--steps", "2", "--tokens", "16"],
}
PARALLEL = ["--model", "olmoe-1b-7b", "--steps", "1", "--tokens", "16", "--devices", "8"]


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
        ("cache", ["--seed", "-1"], "seed: must be in 0..9223372036854775807, not -1"),
        (
            "cache",
            ["--system", "monde", "--model", "kimi-k2-1t"],
            "system monde: near.capacity_bytes: must hold all experts, 2,029.4 GB, not 512.0 GB",
        ),
        (
            "placement",
            ["--policy", "even"],
            f"policy: must be one of {', '.join(placement.POLICIES)}, not 'even'",
        ),
        *(
            (family, ["--engine", engine], f"engine: must have a roofline, not a block as {engine}")
            for family in ("placement", "parallel", "exchange", "dispatch", "formats")
            for engine in ("fpga", "pim")
        ),
        ("placement", ["--devices", "0"], "devices: must be in 1..4096, not 0"),
        ("placement", ["--devices", "7"], "devices: must divide places=64, not 7"),
        ("placement", ["--nodes", "3"], "nodes: must divide devices=8, not 3"),
        ("placement", ["--places", "32"], "places: must be in 64..4096, not 32"),
        (
            "exchange",
            ["--policy", "ring"],
            f"policy: must be one of {', '.join(exchange.POLICIES)}, not 'ring'",
        ),
        ("exchange", ["--nodes", "3"], "nodes: must divide devices=8, not 3"),
        ("exchange", ["--devices", "0"], "devices: must be in 1..1024, not 0"),
        ("exchange", ["--devices", "6"], "devices: must divide the 64 experts, not 6"),
        (
            "exchange",
            ["--devices", "64", "--nodes", "8", "--steps", "1025", "--tokens", "1"],
            "devices: must leave at most 67108864 pairs of all layers and steps, not 67174400",
        ),
        (
            "exchange",
            ["--link", "token-ring"],
            f"link: is neither a preset ({', '.join(preset_names('links'))}) nor a .toml file: 'token-ring'",
        ),
        ("exchange", ["--link", "bad.toml"], "bad.toml: bytes_per_s: must be above 0, not -1e+09"),
        (
            "dispatch",
            ["--policy", "padded"],
            (f"policy: must be one of {', '.join(execution.POLICIES)}, not 'padded'"),
        ),
        (
            "dispatch",
            ["--capacity-factor", "0"],
            "capacity-factor: must be above 0 and at most 1024, not 0",
        ),
        (
            "dispatch",
            ["--capacity-factor", "nan"],
            "capacity-factor: must be above 0 and at most 1024, not nan",
        ),
        ("dispatch", ["--block", "0"], "block: must be in 1..65536, not 0"),
        (
            "formats",
            ["--policy", "fp4"],
            "policy: must be one of bf16, int8, fp8, mxfp4, int4, w4a8, mixed, not 'fp4'",
        ),
        ("formats", ["--wide-share", "1.5"], "wide-share: must be in 0..1, not 1.5"),
        ("placement", ["--steps", "1"], "steps: must be at least 2, one to learn from and one to run, not 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, family, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text(
        (PRESETS / "links" / "nvlink4.toml").read_text().replace("value = 450e9", "value = -1e9")
    )
    assert main(["policies", family, *OF_FAMILY.get(family, PARALLEL), *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {re.escape(message)}\n", captured.err)


def test_transfers_by_hand():
    """Two nodes of two; 10 bytes a token; 100 bytes/s inside, 50 between, latencies 1 and 2."""
    cluster = exchange.Cluster(4, 2, exchange.Link(100.0, 1.0), exchange.Link(50.0, 2.0))
    tokens = np.zeros((3, 4, 4))
    tokens[0, 0, 0] = 99  # stays
    tokens[1, 0, 1] = tokens[1, 2, 1] = tokens[1, 3, 1] = 10  # device 1 receives 10 from its node, 20 more
    tokens[2, 0, 1] = 70
    assert cluster.transfer(tokens, 10.0).tolist() == [0, 6, 8]
    assert cluster.transfer(tokens, 10.0, latency=False).tolist() == [0, 4, 7]


def exchange_of(ids, experts: int, devices: int = 4, nodes: int = 2) -> exchange.Exchange:
    """Return an exchange of (layers, steps, tokens, k) experts over two nodes."""
    cluster = exchange.Cluster(devices, nodes, exchange.Link(100.0, 0.01), exchange.Link(50.0, 0.02))
    return exchange.Exchange(cluster, ENGINE, steps_of(ids, experts), experts)


def test_ways_by_hand():
    """Token 0 on device 0 with experts 4, 5 (device 2), 6 (device 3); 10 bytes, 0.2 s between, 0.1 inside."""
    tokens = [[4, 5, 6], [2, 3, 2 ^ 3], [4, 5, 6], [7, 6, 5]]
    one = exchange_of([[tokens]], 8)
    # Straight: three copies leave device 0, and as many of device 1 at most stay in or leave its node.
    assert exchange.direct(one, False).tolist() == pytest.approx([3 * 0.2])
    # Once to device 2 and once to 3.
    assert exchange.once_per_device(one, False).tolist() == pytest.approx([2 * 0.2])
    # Once to node 1, to device 2; from there 2 sends on to 3 what token 0 and its own token 2 want.
    assert exchange.node_forward(one, False).tolist() == pytest.approx([max(0.2, 2 * 0.1)])
    assert exchange.node_forward(one, True).tolist() == pytest.approx([0.2 + 0.03])
    # Tokens of either device of node 0 go to the device of their place in node 1: one for each.
    straight = exchange_of([[[[4], [6], [4], [6]]]], 8)
    assert exchange.node_forward(straight, False).tolist() == pytest.approx([0.2])


def scan(transfer: float, compute: float, chunks: int) -> float:
    """Return the end of a pipeline of chunks, one event after another."""
    link, engine, done = 0.0, 0.0, []
    for _ in range(chunks):
        link += transfer
        engine = max(engine, link) + compute
        done.append(engine)
    for ready in done:
        link = max(link, ready) + transfer
    return link


def test_identity_experts_have_nothing_to_compute_and_go_nowhere():
    model = load_model("longcat-flash")
    steps = drawn_steps(model, 1, 16, parse_routing("uniform"), 0)
    experts = model.gating.num_ffn_experts
    assert (steps.ids >= experts).any()
    assert steps.counts[:, :, experts:].sum() == 0
    cluster = exchange.Cluster(8, 1, exchange.Link(1.0, 0.0), exchange.Link(1.0, 0.0))
    sent = exchange.Exchange(cluster, ENGINE, steps, experts).direct()
    assert sent.sum() == (steps.ids < experts).sum() == steps.counts.sum()
    two = replace(steps, counts=np.repeat(steps.counts, 2, axis=1))
    # 512 experts on 512 devices: the 256 others take no place.
    assert placement.compare(ENGINE, "t", two, experts, devices=experts).results["round-robin"].seconds > 0


def test_a_pipeline_is_its_events(rng):
    for _ in range(50):
        transfer, compute = rng.random(2)
        chunks = int(rng.integers(1, 9))
        closed = exchange.pipelined(np.array([transfer]), np.array([compute]), chunks)
        assert closed.tolist() == pytest.approx([scan(transfer, compute, chunks)])


def test_a_shadowed_expert_costs_no_exchange():
    """All tokens want expert 0: sent to all devices, 0.2 s or so, it is faster than one device alone."""
    small = Expert(params=50, d_model=5, weight_bytes=10)
    ids = np.zeros((1, 1, 64, 1), int)
    one = replace(exchange_of(ids, 4), steps=steps_of(ids, 4, small))
    # 16 tokens a device: 10 + 20 x 16 bytes at 100 a second, half a second more; weights over RDMA.
    assert exchange.shadowed(one).tolist() == pytest.approx([330 / 100 + 0.5 + 10 / 50 + 0.02])
    result = exchange.compare(one, "t").results
    assert result["shadowed"].seconds < result["direct"].seconds


def test_no_exchange_beats_its_bound(rng):
    for devices, nodes in ((1, 1), (2, 1), (4, 2), (8, 4)):
        steps = random_steps(rng, tokens=int(rng.integers(1, 40)), steps=2)
        found = exchange.compare(exchange_of(steps.ids, 8, devices, nodes), "t")
        assert set(found.results) == set(exchange.POLICIES)
        seconds = {name: result.seconds for name, result in found.results.items()}
        assert all(result.seconds >= result.bound_s * (1 - 1e-9) for result in found.results.values())
        fixed = (seconds["direct"], *(seconds[f"chunked-{number}"] for number in exchange.CHUNKS[1:]))
        assert seconds["adaptive"] <= min(fixed) * (1 + 1e-9)
        assert seconds["once-per-device"] <= seconds["direct"] * (1 + 1e-9)
        assert seconds["shadowed"] <= seconds["direct"] * (1 + 1e-9)


def test_copies_are_conserved(rng):
    """Every copy of a token arrives where its expert is; what is sent once reaches the same devices."""
    steps = random_steps(rng, tokens=12, steps=2)
    one = exchange_of(steps.ids, 8)
    arrived = one.direct().sum(axis=1)
    assert (arrived == one.counts.reshape(len(arrived), 4, 2).sum(axis=2)).all()
    target, new = one.once(1)
    for row, marked, ids in zip(
        target.reshape(-1, 2), new.reshape(-1, 2), one.ids.reshape(-1, 2), strict=True
    ):
        assert set(row[marked].tolist()) == set((ids // 2).tolist())


@pytest.mark.parametrize(
    ("name", "computed"),
    [
        # 9 tokens of 4 experts, a quarter more than an even share: 2.8 rows, so 3.
        ("capacity", [3, 3, 3, 3]),
        ("one-hot", [3, 3, 3, 3]),
        ("largest", [5, 5, 5, 5]),
        ("blocks", [6, 4, 0, 2]),
        ("sizes", [8, 4, 0, 1]),
        ("grouped", [5, 3, 0, 1]),
        ("one-by-one", [5, 3, 0, 1]),
        ("in-order", [5, 3, 0, 1]),
        ("out-of-order", [5, 3, 0, 1]),
        ("tiles", [5, 3, 0, 1]),
    ],
)
def test_rows_by_hand(name, computed):
    rows = execution.Rows(np.array([[5, 3, 0, 1]]), capacity_factor=1.25, block=2)
    assert execution.EXECUTIONS[name](rows).tolist() == [computed]


def test_executions_by_hand():
    """Tokens 3 and 1 of two experts, factor 1: 2 rows each, one token dropped, one row padded."""
    steps = steps_of([[[[0], [0], [0], [1]]]], 2)
    found = execution.compare(ENGINE, "t", steps, 2, capacity_factor=1.0, block=4).results
    assert found["capacity"].measures == {"dropped_share": 0.25, "padding_share": 0.25}
    # Two experts of 100 + 20 x 2 bytes at 100 a second, half a second more each.
    assert found["capacity"].seconds == pytest.approx(2 * (1.4 + 0.5))
    assert found["capacity"].bound_s == pytest.approx(1.4 + 1.2 + 2 * 0.5)
    # A mask of 4 tokens and 2 x 2 rows times 5 numbers, twice, two operations each, 1,000 a second.
    assert found["one-hot"].seconds == pytest.approx(3.8 + 2 * 2 * 4 * 4 * 5 / 1000)
    assert found["largest"].measures == {"dropped_share": 0.0, "padding_share": pytest.approx(2 / 6)}
    assert found["blocks"].measures == {"dropped_share": 0.0, "padding_share": 0.5}
    assert found["grouped"].seconds == found["grouped"].bound_s
    # Four times an expert with one token.
    assert found["one-by-one"].seconds == pytest.approx(4 * (1.2 + 0.5))
    # Either expert has half of the engine; the busier one, 100 + 20 x 3 bytes, waits for nothing.
    assert found["out-of-order"].seconds == pytest.approx(2 * (1.6 + 0.5))
    # In order the only token of the other one waits for two of its rows to end.
    assert found["in-order"].seconds == pytest.approx(2 * 1.4 + 2 * (1.2 + 0.5))
    # No step before: as many tiles for each.
    assert found["tiles"].seconds == found["out-of-order"].seconds


def test_tokens_in_order_wait_for_experts_that_others_have():
    """Tokens 0, 0 1, 1: the second waits for the first, the third for the second; else 0 and 1 overlap."""
    ids = np.array([[[0, 9], [0, 1], [1, 9]]])
    assert execution.in_order(ids, np.array([[2.0, 3.0]])).tolist() == [2 + 3 + 3]
    assert execution.in_order(ids[:, ::-1], np.array([[2.0, 3.0]])).tolist() == [3 + 2 + 2]
    assert execution.in_order(np.array([[[0], [1]]]), np.array([[2.0, 3.0]])).tolist() == [3]


def test_tiles_are_dealt_by_the_loads_before():
    """Two experts, 32 tiles: 16 each, then by 3 to 1 of the 30 that are free, then by 3 to 3."""
    times = np.array([[[3.0, 1.0], [0.0, 2.0], [5.0, 5.0]]])
    assert (execution.by_load(times) * 32).tolist() == [[[16, 16], [24, 8], [16, 16]]]
    # 0.75 x 30 = 22.5 of 2 experts: the first one of equals has what rounding left.
    assert execution.by_load(np.zeros((2, 3, 5))).tolist() == [[[0.2] * 5] * 3] * 2


def test_tiles_by_load_are_faster_where_loads_last(rng):
    """And out of order never slower than in order."""
    counts = np.tile([6, 2, 1, 1], (1, 50, 1))
    ids = np.tile(np.repeat([0, 1, 2, 3], [6, 2, 1, 1])[:, None], (1, 50, 1, 1))
    steps = Steps(ids, counts, replace(EXPERT, weight_bytes=1))
    found = execution.compare(Roofline(1e9, 1000.0, 0.0), "t", steps, 4).results
    assert found["tiles"].seconds < 0.6 * found["out-of-order"].seconds
    assert found["tiles"].seconds < 1.15 * found["tiles"].bound_s
    for _ in range(5):
        results = execution.compare(ENGINE, "t", random_steps(rng, tokens=12), 8).results
        assert results["in-order"].seconds >= results["out-of-order"].seconds * (1 - 1e-9)


def test_formats_by_hand():
    """50 weights of 16 or 4.5 bits; the popular one of two experts stays wide."""
    steps = steps_of([[[[0], [0], [1]], [[1], [1], [0]]]], 2)
    found = widths.compare(ENGINE, "t", steps, 2, 0.5).results
    byte_counts = {name: result.measures["held_GB"] * 1e9 for name, result in found.items()}
    assert byte_counts["bf16"] == pytest.approx(200)
    assert byte_counts["mxfp4"] == pytest.approx(2 * 50 * 4.25 / 8)
    assert byte_counts["mixed"] == pytest.approx(100 + 50 * 4.5 / 8)
    # Three tokens of 20 bytes, 100 bytes a second, half a second for each expert.
    for name, held in byte_counts.items():
        assert found[name].seconds == pytest.approx((held + 60) / 100 + 1)


def test_no_execution_and_no_format_beats_its_bound(rng):
    for factor in (0.5, 1.0, 4.0):
        steps = random_steps(rng, tokens=int(rng.integers(1, 40)))
        found = execution.compare(ENGINE, "t", steps, 8, capacity_factor=factor, block=4).results
        assert set(found) == set(execution.POLICIES)
        assert found["largest"].measures["dropped_share"] == found["blocks"].measures["dropped_share"] == 0
        for result in [*found.values(), *widths.compare(ENGINE, "t", steps, 8).results.values()]:
            assert result.seconds >= result.bound_s * (1 - 1e-9)


SURVEY = {
    "2": "DeepSpeed-MoE Tutel Flux vLLM TensorRT-LLM EPLB DeepEP KTransformers llama.cpp MegaBlocks SGLang"
    " LMDeploy FastMoE Huggingface-MoE Fairseq-MoE",
    "3": "TensorRT-LLM DeepSpeed-MoE vLLM Tutel Flux",
    "4": "FLAME Edge-MoE MoNDE Duplex PIMoE",
    "named": "Space-Mate M3ViT Hydra Adyna",
}
"""Names of one word; the others are below."""


def test_the_page_has_every_system_of_the_survey():
    for table, names in SURVEY.items():
        assert set(names.split()) <= {
            row.system for row in policies_page.ROWS if table in row.table.split(", ")
        }
    others = {"Megatron-LM MoE", "UbiMoE, ZCU102", "UbiMoE, U280", "Pre-gated MoE", "SambaNova SN40L"}
    assert {row.system for row in policies_page.ROWS} == others.union(*map(str.split, SURVEY.values()))
    assert all(row.carries for row in policies_page.ROWS)
    assert {one.system for one in policies_page.TABLE_3} == set(SURVEY["3"].split())


def test_the_page_names_every_policy():
    """Each policy stands in the table of families, and what a system is carried by is one of them."""
    families = {
        "split": set(POLICIES),
        "cache": set(caches.POLICIES),
        "placement": set(placement.POLICIES),
        "parallel": set(parallel.POLICIES),
        "exchange": set(exchange.POLICIES),
        "dispatch": set(execution.POLICIES),
        "formats": set(widths.POLICIES),
    }
    text = PAGE.read_text()
    for family, names in families.items():
        (line,) = re.findall(
            rf"^\| {family}\b.*$", text.split("\n\n| table |")[0].split("**A policy")[0], re.M
        )
        assert all(f"`{name}`" in line for name in names)
    known = set().union(*families.values())
    for row in policies_page.ROWS:
        for family, listed in re.findall(r"`(\w+)`: ((?:`[\w-]+`(?:, )?)+)", row.carries):
            for name in re.findall(r"`([\w-]+)`", listed):
                assert name in known or name.startswith("-"), (row.system, name)
                assert family in families


def test_the_issue_s_policies_are_there():
    """By the names of what each is after."""
    assert {"round-robin", "popularity", "eplb-hierarchical", "eplb-global", "tensor"} <= set(
        placement.POLICIES
    )
    assert {"expert", "tensor", "data", "expert-tensor", "expert-data", "adaptive"} <= set(parallel.POLICIES)
    split = "all-host all-near ratio look-up busiest-channel prefix-scan argmin hot-cold"
    assert set(split.split()) <= set(POLICIES)
    assert {"lru", "lfu", "belady", "next-layer-gate", "circular", "oracle"} <= set(caches.POLICIES)
    assert {"direct", "node-forward", "chunked-2", "adaptive", "fused", "shadowed"} <= set(exchange.POLICIES)
    assert {"capacity", "blocks", "grouped"} <= set(execution.POLICIES)
    assert {"bf16", "fp8", "int4", "mxfp4", "mixed"} <= set(widths.POLICIES)


@pytest.mark.long
def test_the_page_is_what_its_commands_give():
    assert PAGE.read_text() == policies_page.page()


def test_an_effect_by_hand():
    row = policies_page.Row(table="2", system="s", command="c", policy="a", baseline="b")
    found = {
        "c": {"policies": {"a": {"seconds": 2.0, "hit_rate": 0.5}, "b": {"seconds": 3.0, "hit_rate": 0}}}
    }
    assert policies_page.effect(row, found) == "`a`: 1.50 times `b`; hit rate 0 to 0.5"
    assert policies_page.effect(row, {"c": {"policies": {"a": 2.0, "b": 3.0}}}) == "`a`: 1.50 times `b`"


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(policies_page, "page", str)
    assert main(["policies", "page", str(tmp_path / "no" / "p.md")]) == 2
    line = f"expertbank: {tmp_path}/no/p.md: page: cannot be written: No such file or directory\n"
    assert capsys.readouterr().err == line
    assert main(["policies", "page", str(tmp_path / "p.md"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["systems"]) == len(policies_page.ROWS)


def test_a_trace_in_which_layers_predict_each_other(rng, tmp_path, capsys):
    """Experts that follow from those of the layer before: `circular` learns it."""
    first = rng.integers(8, size=64)
    ids = np.stack([(first * 8 + 7 * layer) % 64 for layer in range(16)])[:, :, None] + np.arange(8)
    np.savez(tmp_path / "t.npz", ids=ids % 64)
    arguments = ["policies", "cache", "--model", "olmoe-1b-7b", "--routing", str(tmp_path / "t.npz")]
    assert main([*arguments, "--steps", "64", "--tokens", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["policies"]
    # All but the first layer, once each of eight tokens has been seen.
    assert found["circular"]["hit_rate"] >= 15 / 16 * 56 / 64
    assert found["circular"]["hit_rate"] > found["lru"]["hit_rate"]
    assert main([*arguments, "--steps", "65", "--tokens", "1"]) == 2
    message = "ids: must have at least 65 rows of k=8, not shape (64, 8)"
    assert capsys.readouterr().err == f"expertbank: {tmp_path / 't.npz'}: {message}\n"
