"""The layer through its exported Verilog: bits against golden, cycles against the models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Fragment

from rtl.layer import FpgaLayer
from sim import accelerator
from sim.cli import main
from sim.layer import layer_times
from sim.routing import Routing, draw_ids
from sim.workload import random_workload, vector_workload
from spec.design import ArrayDesign, DesignSpec, Engine, GateDesign, MemoryDesign, Policy
from spec.load import load_design, load_model
from spec.model import CapacityRule, FfnSpec, GatingSpec, ModelSpec

DATA = Path(__file__).parent / "data"
TINY = DesignSpec(
    name="tiny",
    engine=Engine.FPGA,
    gate=GateDesign(lanes=16, logits_per_cycle=2),
    array=ArrayDesign(rows=4, cols=4, act_lanes=2),
    memory=MemoryDesign(width_bits=64, latency_cycles=7, burst_beats=8, max_outstanding=4),
    stream_lanes=4,
    window_tokens=4,
)


@pytest.fixture(scope="module")
def tiny_deepseek() -> tuple[accelerator.Build, ModelSpec]:
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    return accelerator.build_layer(model, TINY), model


def check(run: accelerator.LayerRun) -> None:
    run.result.check()
    found = accelerator.first_divergence(accelerator.checks(run))
    assert found is None, found
    assert accelerator.mismatches(run) == 0


@pytest.mark.slow
def test_vector_runs_bit_and_cycle_equal(tiny_deepseek: tuple[accelerator.Build, ModelSpec]) -> None:
    rtl, _ = tiny_deepseek
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    run = accelerator.run_rtl(rtl, work, TINY)
    check(run)
    arrivals = np.zeros(len(work.tokens) * run.shape.image.gate.input_beats, dtype=np.int64)
    modelled = layer_times(run.shape, arrivals).cycles
    assert abs(modelled - run.seen.cycles) <= 0.01 * run.seen.cycles, (modelled, run.seen.cycles)
    assert run.counters["cycles"] == run.seen.cycles
    assert run.counters["tokens_out"] == len(work.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_under_stalls(tiny_deepseek: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    rtl, model = tiny_deepseek
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 30))
    work = random_workload(model, tokens, Routing("zipf", exponent=float(rng.integers(0, 3))), seed)
    beats = -(-model.d_model // TINY.stream_lanes)
    arrivals = np.cumsum(rng.integers(0, 6, tokens * beats))
    ready = np.append(rng.random(4096) < 0.5, True)
    run = accelerator.run_rtl(rtl, work, TINY, seed=seed + 1, arrivals=arrivals, output_ready=ready)
    check(run)


@pytest.mark.slow
def test_a_wrong_model_is_named(
    tiny_deepseek: tuple[accelerator.Build, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    rtl, _ = tiny_deepseek
    run = accelerator.run_rtl(rtl, vector_workload(str(DATA / "deepseek_v3_s0.npz"), 4), TINY)
    monkeypatch.setattr("sim.gating.TOPK", 4)
    found = accelerator.first_divergence(accelerator.checks(run))
    assert found is not None
    assert (found.block, found.port, found.transfer) == ("gating", "o", 0)


RULES = ModelSpec(
    name="rules",
    d_model=12,
    gating=GatingSpec(num_experts=6, top_k=2),
    ffn=FfnSpec(d_expert=9),
    expert_capacity=4,
    capacity_rule=CapacityRule.BATCH_PRIORITY,
)
LONGEST = dataclasses.replace(TINY, policy=Policy.LONGEST_QUEUE)


@pytest.fixture(scope="module")
def tiny_rules() -> accelerator.Build:
    return accelerator.build_layer(RULES, LONGEST)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_rule_of_capacity_and_policy(tiny_rules: accelerator.Build, seed: int) -> None:
    work = random_workload(RULES, 22, Routing("zipf", exponent=1.0), seed, LONGEST.window_tokens)
    ready = None if seed == 0 else np.append(np.random.default_rng(seed).random(4096) < 0.5, True)
    run = accelerator.run_rtl(tiny_rules, work, LONGEST, seed=seed + 1, output_ready=ready)
    check(run)
    streams = run.golden.streams
    assert run.counters["dropped"] == streams.dropped > 0
    in_queue_order = np.lexsort((streams.entry_expert, streams.entry_window))
    assert (in_queue_order != np.arange(in_queue_order.size)).any(), "the policy changed nothing"
    if ready is None:
        arrivals = np.zeros(len(work.tokens) * run.shape.image.gate.input_beats, dtype=np.int64)
        assert layer_times(run.shape, arrivals).cycles == run.seen.cycles


def test_model_of_a_full_size_layer_counts_every_slot() -> None:
    model = load_model("qwen3-30b-a3b").scaled(8)
    design = dataclasses.replace(TINY, window_tokens=8)
    ids = draw_ids(model.gating, Routing("uniform"), 40, 1)
    report = accelerator.run_model(model, design, ids, "uniform")
    assert report.cycles["model"] is not None
    assert report.cycles["rtl"] is None
    assert report.energy_j is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such"], "expertbank: model: is neither a preset"),
        (["--model", "mixtral-8x7b", "--scale", "0"], "expertbank: scale: must be 'full' or a whole number"),
        (["--model", "mixtral-8x7b", "--tokens", "0"], "expertbank: tokens: must be in 1.."),
        (["--model", "mixtral-8x7b", "--routing", "odd"], "expertbank: routing: must be uniform"),
        (["--model", "mixtral-8x7b", "--experts", "9"], "expertbank: experts: must be in 1..8"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "--engine", "model", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b", "switch-base-128"]
)
def test_every_preset_elaborates(name: str) -> None:
    """Regression: with k = 1 the dispatcher's and the combiner's counts had different widths."""
    Fragment.get(FpgaLayer(load_model(name).scaled(64), load_design("fpga")), None)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("num_experts", [3, 8])
@pytest.mark.parametrize("d_shared", [0, 5])
def test_small_shapes_elaborate(num_experts: int, top_k: int, d_shared: int) -> None:
    model = load_model("deepseek-v3")
    gating = dataclasses.replace(
        model.gating, num_experts=num_experts, top_k=top_k, num_groups=1, topk_groups=1
    )
    ffn = dataclasses.replace(model.ffn, d_expert=9)
    Fragment.get(
        FpgaLayer(dataclasses.replace(model, d_model=7, d_shared=d_shared, gating=gating, ffn=ffn), TINY),
        None,
    )
