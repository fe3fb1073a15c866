"""Systems of rooflines: hand-computed schedules and policies, conservation, bounds, presets with sources."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from sim.cli import main
from sim.routing import parse_routing
from sim.system.costs import Costs, Expert, Roofline
from sim.system.policies import POLICIES, policy_named, split
from sim.system.report import plan_step, run_system
from sim.system.schedule import bounds, schedule
from sim.system.step import check, least_frequent_leave, load_counts, run_step, system_costs
from spec.errors import InputError
from spec.files import PRESETS, load_preset, preset_names
from spec.load import load_model, load_system
from spec.system import EngineSpec, LinkSpec, SystemSpec, nominal, with_changed

FOLDERS = ("engines", "links", "systems", "papers")


def raises(message: str):
    """Expect one InputError with exactly this message."""
    return pytest.raises(InputError, match=rf"\A{re.escape(message)}\Z")


def costs_of(counts, host, near, move=None, send=None, unit=None, **more) -> Costs:
    """Return costs from lists, one layer or several."""
    arrays = [np.atleast_2d(np.asarray(part, float)) for part in (host, near)]
    zero = np.zeros(arrays[0].shape)
    tokens = np.atleast_2d(np.asarray(counts, np.int64))
    units = np.zeros(tokens.shape[1], np.int64) if unit is None else np.asarray(unit)
    of = [zero if part is None else np.atleast_2d(np.asarray(part, float)) for part in (move, send)]
    return Costs(tokens, *arrays, *of, units, **more)


def random_costs(rng: np.random.Generator, layers: int = 3, experts: int = 7) -> Costs:
    """Return costs of any kind: idle experts, moves or none, several units, latencies."""
    counts = rng.integers(0, 6, (layers, experts))
    units = int(rng.integers(1, 4))
    some = counts > 0
    host, near, move, send = (rng.random((layers, experts)) * some for _ in range(4))
    if rng.random() < 0.3:
        move[:] = 0.0
    return Costs(
        counts,
        host,
        near,
        move,
        send * 0.1,
        rng.integers(units, size=experts),
        units,
        latency_s=float(rng.random() * 0.1),
        link_share=float(rng.random()),
        alpha=float(rng.random() * 3),
        spaces=int(rng.integers(0, 5)),
    )


def test_a_schedule_by_hand():
    """Moves follow each other; the host waits for the second, then for itself; near sends, works, returns."""
    costs = costs_of(
        [4, 3, 2, 1, 0],
        [1, 5, 2, 9, 0],
        [9, 9, 9, 3, 0],
        [4, 3, 2, 9, 0],
        [0.5, 0.5, 0.5, 0.5, 0],
        latency_s=0.25,
    )
    result = schedule(costs, np.array([[True, True, True, False, True]]))
    assert result.spans["link"][:, :4].tolist() == [[0, 0, 0, 4], [0, 1, 4, 7], [0, 2, 7, 9]]
    assert result.spans["host"][:, :4].tolist() == [[0, 0, 4, 5], [0, 1, 7, 12], [0, 2, 12, 14]]
    assert result.spans["near"][:, :4].tolist() == [[0, 3, 0.75, 3.75]]
    assert result.layer_s.tolist() == [14]
    assert result.exchange_s.tolist() == [1.5]
    assert {name: busy.tolist() for name, busy in result.busy_s.items()} == {
        "link": [[9]],
        "host": [[8]],
        "near": [[3]],
        "exchange": [[0]],
    }
    assert result.idle_s("host").tolist() == [[6]]


def test_results_come_back_behind_the_last_expert():
    costs = costs_of([2, 1], [9, 9], [3, 4], send=[0.5, 0.25], latency_s=0.25)
    result = schedule(costs, np.zeros((1, 2), bool))
    assert result.spans["near"][:, :4].tolist() == [[0, 0, 1, 4], [0, 1, 4, 8]]
    assert (result.seconds, result.exchange_s.tolist()) == (9, [2])


def test_units_work_side_by_side_and_layers_one_after_another():
    costs = costs_of(
        [[2, 2, 1], [1, 0, 1]], [[9] * 3, [9, 0, 9]], [[2, 3, 4], [5, 0, 6]], unit=[0, 1, 0], num_units=2
    )
    result = schedule(costs, np.zeros((2, 3), bool))
    assert result.layer_s.tolist() == [6, 11]
    assert result.start_s.tolist() == [0, 6]
    assert result.spans["near"][:, :4].tolist() == [
        [0, 0, 0, 2],
        [0, 1, 0, 3],
        [0, 2, 2, 6],
        [1, 0, 6, 11],
        [1, 2, 11, 17],
    ]
    assert result.busy_s["near"].tolist() == [[6, 3], [11, 0]]


def test_nothing_to_do_takes_no_time():
    for policy in POLICIES:
        assert run_step(costs_of([[0, 0]], [[0, 0]], [[0, 0]], latency_s=1.0), policy).seconds == 0


def test_a_roofline_by_hand():
    engine = Roofline(bytes_per_s=100.0, flops=1000.0, expert_s=0.5)
    expert = Expert(params=50, d_model=5, weight_bytes=100)
    # Weights and two vectors of 5 numbers of 2 bytes for each token; 100 operations a token.
    assert engine.experts(np.array([[0, 1, 20]]), expert).tolist() == [[0.0, 1.7, 5.5]]
    assert Expert(50, 5, 0).flops(np.array([[20]])).tolist() == [[2000.0]]


def test_costs_of_a_system_by_hand():
    system = load_system("monde")
    values = with_changed(
        nominal(system),
        {
            "link.bytes_per_s": 10.0,
            "link.efficiency": 0.5,
            "link.latency_s": 1.0,
            "near.bytes_per_s": 30.0,
            "near.peak_flops": 1e9,
        },
    )
    costs = system_costs(system, np.array([[0, 2]]), Expert(10, 1, 20), values)
    assert costs.move_s.tolist() == [[0, 5.0]]
    assert costs.near_s.tolist() == [[0, 28 / 30]]
    assert costs.send_s.tolist() == [[0, 0.8]]
    assert (costs.link_share, costs.latency_s, costs.num_units) == (0.25, 1.0, 1)
    cached = system_costs(system, np.array([[0, 2]]), Expert(10, 1, 20), values, cached=np.ones((1, 2), bool))
    assert not cached.move_s.any()


def test_experts_of_tokens_are_counted():
    ids = np.array([[[0, 1], [0, 2]], [[2, 1], [2, 0]]])
    assert load_counts(ids, 4).tolist() == [[2, 1, 1, 0], [1, 1, 2, 0]]


BY_HAND = {
    # The most popular half of four active experts, rounded up.
    "ratio": (costs_of([1, 9, 0, 5, 3], [1] * 5, [1] * 5, link_share=0.3, alpha=1.0), [0, 1, 0, 1, 0]),
    # Experts with fewest tokens go near while the larger sum falls: 10, then 7 against 4, then 4 against 9.
    "look-up": (costs_of([1, 2, 9], [3, 3, 4], [4, 5, 9]), [0, 1, 1]),
    # Spaces 0 (experts 0, 2) and 1 (expert 1): the space with fewer tokens goes near, or none.
    "look-up in spaces": (costs_of([1, 9, 2], [3, 3, 4], [2, 9, 3], spaces=2), [0, 1, 0]),
    # Units take 4 and 6: unit 1's most popular expert, 4 and 3; unit 0's, 2 and 3; unit 1's last, 2 below 3.
    "busiest-channel": (
        costs_of([5, 1, 7, 2], [1, 1, 1, 1], [2, 2, 3, 3], unit=[0, 0, 1, 1], num_units=2),
        [1, 0, 1, 1],
    ),
    # Gains 5 - 1 - 1, 4 - 3 - 3, 9 - 1 - 8: the first alone leaves 13, with the third the link takes 9.
    "prefix-scan": (costs_of([1, 1, 1], [1, 3, 1], [5, 4, 9], [1, 3, 8]), [1, 0, 1]),
    # By tokens: 9 first; with the second, the host takes 6 and near 3.
    "argmin": (costs_of([9, 1, 5], [3, 9, 3], [6, 3, 5]), [1, 0, 1]),
    "faster": (costs_of([1, 1, 1], [2, 2, 2], [1, 3, 5], [0, 0, 6]), [0, 1, 0]),
    # The host has experts 0 and 2, whose weights are not moved.
    "hot-cold": (costs_of([1, 9, 1], [9, 1, 9], [1, 9, 1], [0, 4, 0]), [1, 0, 1]),
    "all-host": (costs_of([1, 0], [1, 0], [1, 0]), [1, 0]),
    "all-near": (costs_of([1, 0], [1, 0], [1, 0]), [0, 0]),
}


@pytest.mark.parametrize(("costs", "host"), BY_HAND.values(), ids=BY_HAND.keys())
def test_policies_by_hand(request, costs, host):
    policy = request.node.callspec.id.split(" ")[0]
    assert split(policy, costs).astype(int).tolist() == [host]


def test_every_policy_is_tried_by_hand():
    assert {name.split(" ")[0] for name in BY_HAND} == set(POLICIES)


def test_conservation_and_bounds_at_random():
    """Each expert once, busy and idle fill the time; no policy beats a bound or the best of all divisions."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(60):
        costs = random_costs(rng)
        for policy in POLICIES:
            step = run_step(costs, policy)
            result = step.schedule
            for name, busy in result.busy_s.items():
                assert busy + result.idle_s(name) == pytest.approx(
                    np.broadcast_to(result.layer_s[:, None], busy.shape)
                )
            near = result.spans["near"]
            served = {(int(layer), int(expert)) for layer, expert, *_ in [*result.spans["host"], *near]}
            assert served == set(zip(*(axis.tolist() for axis in np.nonzero(costs.counts)), strict=True))
            assert len(result.spans["host"]) + len(near) == len(served)
    for _ in range(5):
        costs = random_costs(rng, layers=1, experts=6)
        best = min(
            schedule(costs, np.array([mask])).seconds for mask in itertools.product((False, True), repeat=6)
        )
        assert best >= max(bounds(costs).values()) * (1 - 1e-9)
        for policy in POLICIES:
            assert run_step(costs, policy).seconds >= best * (1 - 1e-9)


def test_bounds_by_hand():
    """Work of 4 on either side, or 2 cut in the middle; the longest expert on its faster engine."""
    assert bounds(costs_of([1, 1], [2, 2], [2, 2])) == {"balance": 2.0, "fastest": 2.0}
    assert bounds(costs_of([1, 1], [1, 3], [3, 1])) == {"balance": 1.0, "fastest": 1.0}
    assert bounds(costs_of([1, 1], [9, 9], [8, 4], [9, 9], unit=[0, 1], num_units=2))["fastest"] == 8.0


def test_a_bound_without_moves_is_not_what_rounding_leaves():
    """The sum of what is near, less each of it, is not 0: the expert in which both meet was the first."""
    costs = costs_of([1] * 3, [1.0] * 3, [0.1, 0.2, 0.3])
    assert 0.1 + 0.2 + 0.3 - (0.3 + 0.2 + 0.1) != 0
    assert bounds(costs)["balance"] == pytest.approx(0.6 - 0.3 * 0.6 / 1.3)
    for seed in range(20):
        near = np.random.default_rng(seed).random((1, 50))
        costs = costs_of(np.ones((1, 50)), near * 2, near)
        assert bounds(costs)["balance"] == pytest.approx(near.sum() * 2 / 3)


def faulty(step, **changes):
    """Return a step whose schedule is another one."""
    return replace(step, schedule=replace(step.schedule, **changes))


def test_the_checks_see_what_breaks_them():
    step = run_step(costs_of([3, 2, 1], [1, 1, 1], [1, 1, 1], [0.1, 0.1, 0.1]), "ratio")
    step = run_step(replace(step.costs, link_share=0.5), "ratio")
    result = step.schedule
    check(step)
    twice = {**result.spans, "host": np.concatenate([result.spans["host"], result.spans["host"][:1]])}
    with pytest.raises(ArithmeticError, match=r"\Aan expert was computed by the host not once\Z"):
        check(faulty(step, spans=twice))
    never = {**result.spans, "near": result.spans["near"][:0]}
    with pytest.raises(ArithmeticError, match=r"\Aan expert was computed by the near not once\Z"):
        check(faulty(step, spans=never))
    with pytest.raises(ArithmeticError, match=r"\Aspans of the link do not sum to its work\Z"):
        check(faulty(step, busy_s={**result.busy_s, "link": np.array([[0.7]])}))
    with pytest.raises(ArithmeticError, match=r"\Athe host works longer than a layer takes\Z"):
        check(faulty(step, layer_s=result.layer_s / 2))
    with pytest.raises(ArithmeticError, match=r"\Athe step is faster than its bound balance\Z"):
        check(replace(step, bounds={"balance": 99.0}))
    both = result.spans["host"].copy()
    both[1, 2:4] -= 0.5 * (both[0, 3] - both[0, 2])
    with pytest.raises(ArithmeticError, match=r"\Athe host does two things at a time\Z"):
        check(faulty(step, spans={**result.spans, "host": both}))
    fewer = result.spans["near"] - [0, 0, 0, 0, 1, 0]
    with pytest.raises(ArithmeticError, match=r"\Aan expert was computed by the near not once\Z"):
        check(faulty(step, spans={**result.spans, "near": fewer}))
    late = {**result.spans, "near": result.spans["near"] + [0, 0, 9, 9, 0, 0]}
    with pytest.raises(ArithmeticError, match=r"\Athe near works behind the end\Z"):
        check(faulty(step, spans=late))


def test_a_cache_that_keeps_the_most_used():
    counts = np.array([[[1, 1, 0]], [[0, 1, 0]], [[0, 0, 2]], [[1, 0, 0]]])
    assert least_frequent_leave(counts, 1)[:, 0].astype(int).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
        [0, 1, 0],
    ]


def test_experts_in_a_tier_are_neither_moved_nor_read_slowly():
    """The most used ones of an earlier step, so many as the tier has room for; of a trace none."""
    system, model = load_system("sn40l"), replace(load_model("granite-3-1b-a400m"), num_moe_layers=2)
    share = replace(system.host.tier.share, value=0.06)
    system = replace(system, host=replace(system.host, tier=replace(system.host.tier, share=share)))
    routing = parse_routing("zipf:1")
    planned = plan_step(system, model, 8, routing, 3)
    without = plan_step(replace(system, host=replace(system.host, tier=None)), model, 8, routing, 3)
    room = int(0.06 * 520e6 / planned.expert.weight_bytes)
    assert planned.tiered.sum(axis=1).tolist() == [room - room // 2, room // 2]
    active = planned.costs.active
    tier = Roofline.of_tier(nominal(system), "host").experts(planned.costs.counts, planned.expert)
    host = Roofline.of(nominal(system), "host").experts(planned.costs.counts, planned.expert)
    assert (planned.costs.host_s == np.where(planned.tiered, tier, host)).all()
    assert ((planned.costs.move_s > 0) == (active & ~planned.tiered)).all()
    assert (planned.tiered & active).any() and without.tiered is None
    assert set(planned.energy(system, run_step(planned.costs, "all-host")).missing) == {
        "host.tier.memory_j_per_bit",
        *without.energy(system, run_step(without.costs, "all-host")).missing,
    }


def test_the_order_of_policies_on_a_trace(tmp_path, capsys):
    """A trace that no preset knows: a scan of true times is not slower than a rule, or one engine alone."""
    rng = np.random.default_rng(77)
    popular = np.argsort(-rng.random((1, 40, 128)) / np.arange(1, 129), axis=2)[:, :, :8]
    np.savez(tmp_path / "t.npz", ids=popular)
    arguments = ["system", "--system", "dynande", "--model", "qwen3-30b-a3b", "--tokens", "40"]
    assert main([*arguments, "--routing", str(tmp_path / "t.npz"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    times = out["policies"]
    assert times["prefix-scan"] <= min(times["ratio"], times["all-near"], times["all-host"])
    assert times["all-host"] > times["ratio"]
    assert out["assignments"] == 48 * 40 * 8
    assert out["seconds"] == times["prefix-scan"] >= max(out["bounds_s"].values())
    for name in ("host", "near", "link"):
        assert out["busy_s"][name] + out["idle_s"][name] == pytest.approx(out["seconds"])
    assert main([*arguments, "--policy", "ratio", "--host", "a100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "qwen3-30b-a3b on dynande: 48 MoE layers, 40 tokens, routing uniform"
    assert {line.split()[0] for line in lines[2 : 2 + len(POLICIES)]} == set(POLICIES)
    assert lines[2 + len(POLICIES)].startswith("no policy is faster than: balance ")


def test_idle_time_is_not_below_zero():
    """Found by a judge: a resource that always works had -7.9e-18 s left by rounding."""
    run = run_system(load_system("monde"), "olmoe", load_model("olmoe-1b-7b"), 4, parse_routing("uniform"), 0)
    step = run.steps[run.policy]
    over = {**step.schedule.busy_s, "host": step.schedule.layer_s[:, None] * (1 + 1e-15)}
    assert (step.schedule.layer_s[:, None] - over["host"]).sum() < 0
    steps = {**run.steps, run.policy: replace(step, schedule=replace(step.schedule, busy_s=over))}
    assert replace(run, steps=steps).as_json()["idle_s"]["host"] == 0


def test_a_cache_and_a_routing_again_are_the_same():
    system, model = load_system("dynande"), replace(load_model("olmoe-1b-7b"), num_moe_layers=2)
    routing = parse_routing("zipf:1")
    first = run_system(system, "olmoe", model, 16, routing, 3)
    again = run_system(system, "olmoe", model, 16, routing, 3)
    assert {name: step.seconds for name, step in first.steps.items()} == {
        name: step.seconds for name, step in again.steps.items()
    }
    without = plan_step(replace(system, cache_share=None), model, 16, routing, 3).costs
    assert (first.steps["ratio"].costs.move_s > 0).sum() < (without.move_s > 0).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "best"], rf"policy: must be one of {', '.join(POLICIES)}, not 'best'"),
        (
            ["--model", "deepseek-v3"],
            r"system monde: near\.capacity_bytes: must hold all experts, 1,307\.8 GB, not 512\.0 GB",
        ),
        (["--routing", "r.csv"], r"r\.csv: has 3 experts, not 8"),
        (["--tokens", "0"], r"tokens: must be in 1\.\.1048576, not 0"),
        (["--seed", "-1"], r"seed: must be in 0\.\.9223372036854775807, not -1"),
        (
            ["--host", "z80"],
            rf"host: is neither a preset \({', '.join(preset_names('engines'))}\) nor a \.toml file: 'z80'",
        ),
        (
            ["--system", "bad.toml"],
            r"bad\.toml: link\.bytes_per_s: must be above 0, not -3\.2e\+10",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.csv").write_text("layer_id,token_id,expert_0,expert_1,expert_2\n0,0,1,0,2\n")
    link = (PRESETS / "links" / "pcie4-x16.toml").read_text().partition("name =")[2].splitlines()
    table = ", ".join(line.replace("value = 32e9", "value = -32e9") for line in ['name = "pcie"', *link[1:]])
    monde = (PRESETS / "systems" / "monde.toml").read_text()
    (tmp_path / "bad.toml").write_text(monde.replace('"pcie4-x16"', f"{{ {table} }}"))
    default = ["--system", "monde", "--model", "mixtral-8x7b"]
    given = set(arguments[::2])
    kept = [
        text
        for pair in zip(default[::2], default[1::2], strict=True)
        if pair[0] not in given
        for text in pair
    ]
    assert main(["system", *kept, *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", captured.err)


QUANTITY = 'value = 1.0, evidence = "P", source = "s"'
ENGINE = """name = "e"
peak_flops = { value = 1.0, evidence = "P", source = "s" }
bytes_per_s = { value = 1.0, evidence = "P", source = "s" }
flops_efficiency = { value = 1.0, evidence = "P", source = "s" }
bandwidth_efficiency = { value = 1.0, evidence = "P", source = "s" }
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'peak_flops = { value = 1.0, evidence = "assumed", source = "s" }',
            "peak_flops.value: must have a range, low and high, to be swept over: its evidence is 'assumed'",
        ),
        ('peak_flops = { value = 1.0, evidence = "P" }', "peak_flops.source: is missing"),
        (
            'peak_flops = { value = 1.0, evidence = "P", source = " " }',
            "peak_flops.source: must not be empty",
        ),
        (
            'peak_flops = { value = 1.0, evidence = "Q", source = "s" }',
            "peak_flops.evidence: must be one of P, A, C, N, S, D, M, X, assumed, not 'Q'",
        ),
        (
            'peak_flops = { value = 3.0, low = 1.0, high = 2.0, evidence = "P", source = "s" }',
            "peak_flops.value: must be in 1..2, its own range, not 3",
        ),
        ("peak_flops = 1.0", "peak_flops: must be a table, not 1.0"),
        (
            'bytes_per_s = { value = 0.0, evidence = "P", source = "s" }',
            "bytes_per_s: must be above 0, not 0",
        ),
        (
            'flops_efficiency = { value = 1.5, evidence = "P", source = "s" }',
            "flops_efficiency: must be above 0 and at most 1, not 1.5",
        ),
        (
            'expert_s = { value = -1.0, evidence = "P", source = "s" }',
            "expert_s: must not be negative, not -1",
        ),
    ],
)
def test_a_bad_engine_is_one_line(tmp_path, line, message):
    key = line.split(" = ")[0]
    kept = [old for old in ENGINE.splitlines() if not old.startswith(f"{key} =")]
    file = tmp_path / "e.toml"
    file.write_text("\n".join([*kept, line]) + "\n")
    with raises(f"{file}: {message}"):
        load_preset(EngineSpec, "engines", str(file), "host")


def test_bad_systems_are_one_line():
    with raises(f"policy: must be one of {', '.join(POLICIES)}, not 'none'"):
        policy_named("none")
    pimoe = load_system("pimoe")
    with raises("units: must be given where each expert lies in one unit"):
        replace(pimoe, units=None)
    with raises("units: must be a whole number from 1, not 1.5"):
        replace(pimoe, units=replace(pimoe.units, value=1.5))
    sn40l = load_system("sn40l")
    tier = sn40l.host.tier
    with raises("near.tier: must be left out: experts near memory stay there"):
        replace(sn40l, near=sn40l.host)
    slow = replace(tier.bytes_per_s, value=1e12, low=1e12)
    with raises("tier.bytes_per_s: must be above bytes_per_s=1.6e+12 of the memory behind it, not 1e+12"):
        replace(sn40l.host, tier=replace(tier, bytes_per_s=slow))
    with raises("share: must be in 0..1, not 0.5"):
        replace(tier, share=replace(tier.share, high=1.5))
    with raises("tier: must be left out beside block, which says it"):
        replace(load_system("pim").near, tier=tier)
    with raises("set: is no number of this system: 'near.speed'"):
        with_changed(nominal(pimoe), {"near.speed": 1.0})
    with raises("host_s: must have shape (1, 2), not (1, 3)"):
        costs_of([1, 1], [1, 1, 1], [1, 1])


def numbers_without_source(table: dict, name: str) -> list[str]:
    """Return the numbers of a TOML table that no table around them gives a source and its evidence."""
    if {"source", "evidence"} <= set(table):
        return []
    found = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += numbers_without_source(value, f"{name}.{key}")
        elif isinstance(value, int | float | list):
            found.append(f"{name}.{key}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_number_of_a_preset_has_a_source(folder):
    names = preset_names(folder)
    assert names
    for name in names:
        table = tomllib.loads((PRESETS / folder / f"{name}.toml").read_text())
        assert numbers_without_source(table, name) == []
        assert table["name"] == name


def test_a_number_without_source_is_seen():
    table = {
        "a": {"value": 1, "source": "s", "evidence": "P"},
        "b": {"c": {"value": 1, "source": "s"}},
        "d": 2,
    }
    assert numbers_without_source(table, "x") == ["x.b.c.value", "x.d"]


@pytest.mark.parametrize(
    ("cls", "folder"), [(EngineSpec, "engines"), (LinkSpec, "links"), (SystemSpec, "systems")]
)
def test_presets_load(cls, folder):
    for name in preset_names(folder):
        spec = load_preset(cls, folder, name, folder)
        assert isinstance(spec, cls)
        if isinstance(spec, SystemSpec):
            assert spec.policy in POLICIES
