"""The layer through its exported Verilog: bits against golden, cycles against the models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Fragment

from golden.formats import bf16_decode
from rtl.layer import FpgaLayer
from sim import accelerator, alone
from sim.cli import main
from sim.layer import layer_times
from sim.routing import Routing, draw_ids
from sim.workload import random_workload, vector_workload
from spec.design import ArrayDesign, DesignSpec, Engine, Format, GateDesign, MemoryDesign
from spec.load import load_design, load_model
from spec.model import ModelSpec

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


INT8 = dataclasses.replace(TINY, array=ArrayDesign(rows=4, cols=8, act_lanes=2), format=Format.INT8)


@pytest.fixture(scope="module")
def int8_gpt_oss() -> tuple[accelerator.Build, ModelSpec]:
    """Return a layer in int8 with biases and the clamped activation."""
    model = vector_workload(str(DATA / "gpt_oss_s0.npz"), None).model
    return accelerator.build_layer(model, INT8), model


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


def check_under_stalls(rtl: accelerator.Build, model: ModelSpec, design: DesignSpec, seed: int) -> None:
    """Run random tokens with gaps between the input beats and a halting output."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 30))
    work = random_workload(model, tokens, Routing("zipf", exponent=float(rng.integers(0, 3))), seed)
    beats = -(-model.d_model // design.stream_lanes)
    arrivals = np.cumsum(rng.integers(0, 6, tokens * beats))
    ready = np.append(rng.random(4096) < 0.5, True)
    check(accelerator.run_rtl(rtl, work, design, seed=seed + 1, arrivals=arrivals, output_ready=ready))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_under_stalls(tiny_deepseek: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    check_under_stalls(*tiny_deepseek, TINY, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_in_int8(int8_gpt_oss: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    check_under_stalls(*int8_gpt_oss, INT8, seed)


@pytest.mark.slow
def test_int8_against_hugging_face(int8_gpt_oss: tuple[accelerator.Build, ModelSpec]) -> None:
    """Bits and cycles equal; the error is that of golden, whose bounds tests/test_int8.py states."""
    rtl, _ = int8_gpt_oss
    work = vector_workload(str(DATA / "gpt_oss_s0.npz"), None)
    run = accelerator.run_rtl(rtl, work, INT8)
    check(run)
    arrivals = np.zeros(len(work.tokens) * run.shape.image.gate.input_beats, dtype=np.int64)
    modelled = layer_times(run.shape, arrivals).cycles
    assert abs(modelled - run.seen.cycles) <= 0.01 * run.seen.cycles, (modelled, run.seen.cycles)
    error = accelerator.compare_with_float(work, run.golden)
    print(f"gpt_oss_s0 in int8: {error}")
    assert 0.005 < error["relative_error"] < 0.046
    assert error["scales"]["x"] * float(np.abs(bf16_decode(work.tokens)).max()) == pytest.approx(
        127, rel=1e-4
    )


def test_experts_alone_in_int8() -> None:
    """Weight beats halve, the scale tiles aside."""
    cycles = {}
    for number_format in ("bf16", "int8"):
        report = alone.run_experts(
            "mixtral-8x7b", load_design("fpga", number_format), 2, 1, 8, engine="model", seed=0
        )
        cycles[number_format] = report.cycles["model"]
        assert report.format == number_format
    assert cycles["bf16"] is not None
    assert cycles["int8"] is not None
    assert 0.5 < cycles["int8"] / cycles["bf16"] < 0.53


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
        (
            ["--model", "mixtral-8x7b", "--format", "int4"],
            "expertbank: Invalid value for '--format': 'int4' is",
        ),
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
@pytest.mark.parametrize("number_format", list(Format))
def test_every_preset_elaborates(name: str, number_format: str) -> None:
    """Regression: with k = 1 the dispatcher's and the combiner's counts had different widths."""
    Fragment.get(FpgaLayer(load_model(name).scaled(64), load_design("fpga", number_format)), None)


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
