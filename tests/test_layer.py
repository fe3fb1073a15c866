"""The layer through its exported Verilog: bits against golden, cycles against the models."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sim import accelerator
from sim.cli import main
from sim.expert import expert_cycles
from sim.gating import gate_cycles
from sim.layer import (
    LayerCycles,
    LayerShape,
    LayerTimes,
    StreamTimes,
    active_cycles,
    block_times,
    layer_cycles,
)
from sim.routing import Routing, draw_ids
from sim.streams import union
from sim.workload import random_workload, vector_workload
from spec.design import ArrayDesign, DesignSpec, Engine, GateDesign, MemoryDesign
from spec.load import load_design, load_model, preset_names
from spec.model import Activation, FfnSpec, GatingSpec, ModelSpec

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


def check_layer(run: accelerator.LayerRun, modelled: LayerCycles) -> None:
    """Compare the layer's model, which saw nothing of the run, with every transfer between the blocks."""
    for name in ("assignments", "expects", "entries"):
        seen, model = run.seen.streams[name], getattr(modelled, name)
        np.testing.assert_array_equal(model.taken, seen.taken, name)
        np.testing.assert_array_equal(model.offered, seen.offered, name)
    words = run.shape.engine.words
    np.testing.assert_array_equal(modelled.outputs, run.seen.streams["output"].taken[::words])
    assert modelled.fires == run.counters["mac_active"]
    assert modelled.read_beats == run.counters["read_beats"]


@pytest.mark.slow
def test_vector_runs_bit_and_cycle_equal(tiny_deepseek: tuple[accelerator.Build, ModelSpec]) -> None:
    rtl, _ = tiny_deepseek
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    run = accelerator.run_rtl(rtl, work, TINY)
    check(run)
    modelled = layer_cycles(run.shape, np.zeros(len(work.tokens), dtype=np.int64))
    check_layer(run, modelled)
    assert modelled.cycles == run.counters["cycles"] == run.seen.cycles
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
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))]
)
def test_layer_model_equals_hardware(tiny_deepseek: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    """Every transfer between the blocks, from the arrivals alone, gaps between them and beats included."""
    rtl, model = tiny_deepseek
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(9, 40))
    work = random_workload(model, tokens, Routing("zipf", exponent=float(rng.integers(0, 3))), seed)
    beats = -(-model.d_model // TINY.stream_lanes)
    gaps = rng.integers(0, 3, tokens * beats) + rng.integers(0, 2000, tokens * beats) * (
        rng.random(tokens * beats) < 0.02
    )
    arrivals = np.cumsum(gaps)
    run = accelerator.run_rtl(rtl, work, TINY, arrivals=arrivals)
    check(run)
    late = (arrivals.reshape(tokens, beats) - np.arange(beats)).max(axis=1)
    check_layer(run, layer_cycles(run.shape, late))


def random_shape(seed: int) -> tuple[LayerShape, np.ndarray]:
    """Return a small random layer, its routing, and when its tokens arrive."""
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(1, 9))
    top_k = int(rng.integers(1, min(num_experts, 4) + 1))
    rows, cols = (int(rng.choice([2, 4, 8])) for _ in range(2))
    model = ModelSpec(
        name="random",
        d_model=int(rng.integers(1, 40)),
        gating=GatingSpec(num_experts=num_experts, top_k=top_k),
        ffn=FfnSpec(d_expert=int(rng.integers(1, 40)), activation=rng.choice(list(Activation))),
        d_shared=int(rng.integers(1, 40)) if seed % 2 else 0,
        expert_capacity=int(rng.integers(0, 4)) if seed % 3 == 0 else 0,
    )
    design = DesignSpec(
        name="random",
        engine=Engine.FPGA,
        gate=GateDesign(lanes=8, logits_per_cycle=2),
        array=ArrayDesign(rows=rows, cols=cols, act_lanes=2),
        memory=MemoryDesign(
            width_bits=64,
            latency_cycles=int(rng.choice([1, 10, 100])),
            burst_beats=int(rng.choice([1, 4, 16])),
            max_outstanding=int(rng.integers(1, 9)),
        ),
        stream_lanes=2,
        window_tokens=int(rng.choice([1, 2, 8])),
    )
    batches = rng.integers(1, 9, int(rng.integers(1, 7))).tolist()
    num_tokens = sum(batches)
    ids = rng.permuted(np.tile(np.arange(num_experts), (num_tokens, 1)), axis=1)[:, :top_k]
    arrivals = np.cumsum(rng.integers(0, int(rng.choice([1, 20, 400])), num_tokens))
    return accelerator.layer_shape(model, design, ids, batches), arrivals


def beat_by_beat(shape: LayerShape, modelled: LayerCycles, arrivals: np.ndarray) -> LayerTimes:
    """Return all streams of a layer as if observed: the model's, and its blocks' beats between them."""
    beats, words = shape.image.gate.input_beats, shape.engine.words
    offered = (arrivals[:, None] + np.arange(beats)).ravel()
    reused = np.arange(shape.num_slots, len(arrivals))
    first = offered[reused * beats]
    admitted = offered.copy()
    admitted[reused * beats] = np.maximum(first, modelled.outputs[reused - shape.num_slots] + words + 1)
    tokens = gate_cycles(shape.image.gate, admitted, modelled.assignments.waits).i
    expert = expert_cycles(
        shape.engine,
        shape.entry_shared,
        shape.streams.entry_last,
        modelled.entries.offered,
        latency=shape.design.memory.latency_cycles,
    )
    output = (modelled.outputs[:, None] + np.arange(words)).ravel()
    streams = {
        "tokens": StreamTimes(offered, tokens),
        "assignments": modelled.assignments,
        "expects": modelled.expects,
        "entries": modelled.entries,
        "contributions": StreamTimes(expert.o, expert.o),
        "output": StreamTimes(output, output),
        "addresses": StreamTimes(expert.ar, expert.ar),
        "beats": StreamTimes(expert.r, expert.r),
    }
    return LayerTimes(streams, union(expert.wait_from, expert.wait_to))


@pytest.mark.parametrize(
    "seed", [*range(60), *(pytest.param(n, marks=pytest.mark.long) for n in range(60, 2000))]
)
def test_layer_model_agrees_with_its_blocks(seed: int) -> None:
    """Each block's own model, given what the layer's model offers it, does what the layer's model says."""
    shape, arrivals = random_shape(seed)
    modelled = layer_cycles(shape, arrivals)
    seen = beat_by_beat(shape, modelled, arrivals)
    expected, wait_tile = block_times(shape, seen)
    for name, cycles in expected.items():
        taken = seen.streams[name.removesuffix(" (sink)")].taken
        np.testing.assert_array_equal(cycles, taken, f"{name}, seed {seed}")
    assert modelled.cycles == seen.cycles
    assert modelled.read_beats == len(expected["beats"])
    taken = {name: stream.taken for name, stream in seen.streams.items()}
    waits = {name: stream.waits for name, stream in seen.streams.items()}
    assert modelled.active == active_cycles(shape, taken, waits, wait_tile)
    assert modelled.active == active_cycles(shape, expected, waits, seen.wait_tile)


def test_random_layers_reach_every_kind_of_waiting() -> None:
    """For slots, a window, a bank; and assignments dropped, a window without entries, repeated tiles."""
    reached = set()
    for seed in range(60):
        shape, arrivals = random_shape(seed)
        modelled = layer_cycles(shape, arrivals)
        tokens = beat_by_beat(shape, modelled, arrivals).streams["tokens"]
        reached |= {"slots"} if len(arrivals) > shape.num_slots and len(tokens.waits) else set()
        reached |= {"window"} if len(modelled.assignments.waits) else set()
        reached |= {"bank"} if len(modelled.entries.waits) else set()
        reached |= {"dropped"} if shape.streams.dropped else set()
        windows = len(np.unique(shape.streams.entry_window))
        reached |= {"empty"} if windows < shape.streams.num_windows else set()
        reached |= {"repeated"} if modelled.walked_tiles < modelled.tiles else set()
    assert reached == {"slots", "window", "bank", "dropped", "empty", "repeated"}


@pytest.mark.parametrize("name", preset_names("models"))
def test_full_size_layer_is_light(name: str) -> None:
    """A full-size layer is found without walking its tiles, in memory for its tokens, not for its beats."""
    model, design = load_model(name), load_design("fpga")
    shape = accelerator.layer_shape(model, design, draw_ids(model.gating, Routing("uniform"), 64, 0))
    arrivals = np.zeros(64, dtype=np.int64)
    layer_cycles(shape, arrivals)
    tracemalloc.start()
    modelled = layer_cycles(shape, arrivals)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    num_jobs = int(np.count_nonzero(shape.streams.entry_last))
    assert modelled.tiles >= 18432 * num_jobs
    assert modelled.walked_tiles <= 40 * num_jobs
    assert peak < 8e6, peak


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


def test_report_of_a_full_size_layer() -> None:
    """Every slot and every beat is counted; what was not run is None."""
    model = load_model("qwen3-30b-a3b")
    ids = draw_ids(model.gating, Routing("uniform"), 40, 1)
    report = accelerator.run_model(model, load_design("fpga"), ids, "uniform")
    cycles = report.cycles["model"]
    assert cycles is not None
    tiles = 3 * (2048 // 16) * (768 // 16)
    experts = sum(len(np.unique(window)) for window in (ids[:32], ids[32:]))
    assert report.utilisation["mac"] == tiles * ids.size / cycles
    assert report.utilisation["bandwidth"] == 16 * tiles * experts / cycles
    assert report.cycles["rtl"] is report.energy_j is report.mismatches is None


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
