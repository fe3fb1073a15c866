"""Design points: what one comes to, errors as results, order and equality with any number of processes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sim import points
from sim.api import simulate
from sim.points import Outcome, Point, evaluate, evaluate_all
from sim.routing import parse_routing
from sim.system.report import run_system
from spec.errors import InputError
from spec.load import load_design, load_model, load_system

MODEL = load_model("mixtral-8x7b").scaled(64)


@pytest.mark.parametrize("design", ["fpga", "pim"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_point_of_an_accelerator_is_what_sim_says(design, whole):
    model = replace(MODEL, num_moe_layers=2)
    point = Point(model=model, target=load_design(design), tokens=9, seed=4, whole=whole)
    outcome = evaluate(point)
    if whole:
        one = evaluate(replace(point, whole=False))
        other = evaluate(replace(point, whole=False, seed=5))
        assert outcome.cycles == one.cycles + other.cycles
        assert outcome.energy_j == pytest.approx(one.energy_j + other.energy_j)
    else:
        report = simulate("mixtral-8x7b", design, scale=64, tokens=9, seed=4)
        assert (outcome.cycles, outcome.seconds) == (report.cycles["model"], report.seconds)
        assert outcome.energy_j == report.energy.total
        assert (outcome.mac, outcome.bandwidth) == tuple(report.utilisation.values())
    assert (outcome.dropped, outcome.bound_s, outcome.error) == (0, None, "")


@pytest.mark.parametrize("policy", [None, "all-near"])
def test_a_point_of_a_system_is_what_system_says(policy):
    system, model = load_system("sieve"), load_model("qwen3-30b-a3b")
    routing = parse_routing("zipf:1")
    point = Point(model=model, target=system, tokens=8, routing=routing, seed=3, policy=policy)
    whole = evaluate(replace(point, whole=True))
    steps = run_system(system, "m", model, 8, routing, 3).steps
    step = steps[policy or system.policy]
    assert (whole.seconds, whole.bound_s) == (step.seconds, max(step.bounds.values()))
    layer = evaluate(point)
    assert layer.seconds == pytest.approx(step.schedule.layer_s[0])
    assert layer.host_share == step.schedule.host[0].sum() / step.costs.active[0].sum()
    assert layer.cycles is None


def test_what_found_no_place_on_a_system_is_counted():
    """A system that is one accelerator drops what the accelerator drops."""
    model, routing = load_model("switch-base-128").scaled(64), parse_routing("zipf:2")
    point = Point(model=model, target=load_design("fpga"), tokens=512, routing=routing)
    alone = evaluate(point)
    assert alone.dropped > 0
    assert evaluate(replace(point, target=load_system("fpga"))).dropped == alone.dropped


def test_a_layer_of_a_trace_is_its_first_and_a_point_may_name_another(tmp_path):
    np.savez(tmp_path / "t.npz", ids=np.array([[[0, 1]] * 4, [[2, 3], [4, 5], [6, 7], [0, 3]]]))
    for target in (load_design("fpga"), load_system("monde")):
        found = []
        for layer in (None, 0, 1):
            routing = parse_routing(str(tmp_path / "t.npz"), layer=layer)
            point = Point(model=MODEL, target=target, tokens=4, routing=routing, policy="all-near")
            found.append(evaluate(point).seconds)
        assert found[0] == found[1] < found[2]


def test_what_breaks_a_rule_is_a_result_and_the_others_go_on():
    fpga = load_design("fpga")
    wide = replace(MODEL, d_model=1 << 14)
    ran = Point(model=MODEL, target=fpga, tokens=3)
    found = list(
        evaluate_all(
            [
                ran,
                replace(ran, model=wide),
                replace(ran, tokens=0),
                replace(ran, seed=-1),
                replace(ran, target=load_system("monde"), policy="best"),
                ran,
            ],
            workers=1,
        )
    )
    assert found[0] == found[5]
    assert found[0].error == ""
    assert [outcome.seconds for outcome in found[1:5]] == [None] * 4
    assert found[1].error == "d_model: must be at most max_d_model=8192 of design fpga, not 16384"
    assert found[2].error == "tokens: must be in 1..1048576, not 0"
    assert found[3].error == "seed: must be in 0..9223372036854775807, not -1"
    assert found[4].error.startswith("policy: must be one of ")


@pytest.mark.slow
def test_more_processes_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(points, "CHUNK", 3)
    targets = (load_design("fpga"), load_system("monde"))
    of = [
        Point(model=MODEL, target=target, tokens=tokens, seed=seed)
        for seed, tokens, target in itertools.product(range(3), (0, 1, 9), targets)
    ]
    alone = list(evaluate_all(of, workers=1))
    assert list(evaluate_all(of, workers=2)) == alone
    assert len({outcome.seconds for outcome in alone}) > 6


def test_points_are_taken_as_they_are_needed(monkeypatch):
    """A sweep without end: what is not asked for is not computed."""
    monkeypatch.setattr(points, "CHUNK", 2)
    taken = []

    def endless():
        for seed in itertools.count():
            taken.append(seed)
            yield Point(model=MODEL, target=load_system("monde"), seed=seed)

    first = list(itertools.islice(evaluate_all(endless(), workers=1), 3))
    assert len(first) == 3
    assert all(isinstance(outcome, Outcome) for outcome in first)
    assert len(taken) == 4


def test_a_number_of_processes_that_is_none_is_one_line():
    with pytest.raises(InputError, match=r"\Aworkers: must be in 1\.\.1024, not 0\Z"):
        next(evaluate_all([], workers=0))


def test_a_defect_is_no_result(monkeypatch):
    monkeypatch.setattr(points, "run_policies", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(Point(model=MODEL, target=load_system("monde")))
