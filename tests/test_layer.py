"""The layer through its exported Verilog: bits against golden, cycles against the models."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Fragment
from hypothesis import given, settings

from golden.formats import bf16_decode
from rtl.export import LINT_WAIVERS
from rtl.layer import FpgaLayer
from rtl.ram import ExportPlatform
from sim import accelerator, alone
from sim.cli import main
from sim.layer import LayerCycles, LayerShape, active_cycles, block_times, layer_cycles
from sim.routing import Routing, draw_ids, parse_routing
from sim.rtlsim import RunSpec, reg_read
from sim.streams import readiness, spans_of
from sim.toolchain import verilator_command
from sim.workload import random_workload, scaled_model, vector_workload
from spec.design import (
    ArrayDesign,
    DeepBlock,
    DesignSpec,
    Engine,
    Format,
    GateDesign,
    MemoryDesign,
    Multiplier,
    Policy,
)
from spec.errors import InputError
from spec.load import load_design, load_model
from spec.model import NO_PLACES, Activation, AppliedTo, CapacityRule, FfnSpec, GatingSpec, ModelSpec
from spec.registers import (
    CAPACITY_BITS,
    REGISTERS,
    STATUS_BUSY,
    STATUS_LOADED,
    STATUS_READ_ERROR,
    capacity_word,
    counter_address,
)
from tests.layer_beats import beat_by_beat, late
from tests.strategies import models
from tests.test_waves import check_views
from tests.verilog2005 import faults_of_export

DATA = Path(__file__).parent / "data"
TINY_FILE = Path(__file__).parent / "tiny.toml"
TINY = load_design(str(TINY_FILE))


@pytest.fixture(scope="module")
def tiny_deepseek() -> tuple[accelerator.Build, ModelSpec]:
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    # One build for all: it writes waveforms where a test asks for one.
    return accelerator.build_layer(model, TINY, trace=True), model


INTEGER = {
    Format.INT8: ArrayDesign(rows=4, cols=8, act_lanes=2),
    Format.W4A8: ArrayDesign(rows=4, cols=16, act_lanes=2, multiplier=Multiplier.DUAL),
}
"""Arrays whose rows have just the room for a scale and a bias; the second multiplies for two rows at once."""
RELATIVE_ERROR = {Format.INT8: (0.005, 0.046), Format.W4A8: (0.05, 0.25)}


@pytest.fixture(
    scope="module", params=[Format.W4A8, pytest.param(Format.INT8, marks=pytest.mark.long)], ids=str
)
def integer_gpt_oss(request: pytest.FixtureRequest) -> tuple[accelerator.Build, ModelSpec, DesignSpec]:
    """Return a layer in an integer format with biases and the clamped activation."""
    model = vector_workload(str(DATA / "gpt_oss_s0.npz"), None).model
    design = dataclasses.replace(TINY, array=INTEGER[request.param], format=request.param)
    return accelerator.build_layer(model, design), model, design


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
    words, output = run.shape.engine.words, run.seen.streams["output"].taken
    np.testing.assert_array_equal(modelled.outputs, output[::words])
    np.testing.assert_array_equal(modelled.sent, spans_of(output))
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
@pytest.mark.long
@pytest.mark.parametrize("preset", ["deepseek-v3", "mixtral-8x7b"])
def test_deep_pipelines(preset: str) -> None:
    """All blocks with deep pipelines in a layer: bits of golden, cycles of the model."""
    model = scaled_model(preset, 256)
    design = dataclasses.replace(TINY, deep=tuple(DeepBlock))
    rtl = accelerator.build_layer(model, design, trace=True)
    for seed in range(3):
        check_under_stalls(rtl, model, design, seed)
    work = random_workload(model, 3, parse_routing("uniform"), 3)
    check_status(rtl, accelerator.run_rtl(rtl, work, design), deep=True)


def stalls(rng: np.random.Generator) -> np.ndarray:
    """Return a ready pattern of the output, half of the cycles, longer than any run here."""
    return np.append(rng.random(1 << 18) < 0.5, True)


def check_under_stalls(rtl: accelerator.Build, model: ModelSpec, design: DesignSpec, seed: int) -> None:
    """Run random tokens with gaps between the input beats and a halting output."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 30))
    work = random_workload(model, tokens, parse_routing(f"zipf:{rng.integers(0, 3)}"), seed)
    beats = -(-model.d_model // design.stream_lanes)
    arrivals = np.cumsum(rng.integers(0, 6, tokens * beats))
    ready = stalls(rng)
    run = accelerator.run_rtl(rtl, work, design, seed=seed + 1, arrivals=arrivals, output_ready=ready)
    check(run)
    check_layer(run, layer_cycles(run.shape, late(run.shape, arrivals), readiness(ready)))
    counted = [run.counters[name] for name in ("cycles", "tokens_in", "tokens_out")]
    assert counted == [run.seen.cycles, tokens, tokens]


def read_at(rtl: accelerator.Build, run: accelerator.LayerRun, *reads: tuple[int, int]) -> dict[int, int]:
    """Repeat a run with addresses at the register port, each from a cycle on; return what is read in each."""
    writes = [(cycle, "reg_addr", address) for cycle, address in reads]
    spec = dataclasses.replace(run.spec, probes=["reg_rdata"], writes=writes, epilogue=())
    result = rtl.run(spec)
    result.check()
    # Data comes a cycle after its address.
    return {int(cycle) - 1: int(value) for cycle, value in zip(*result.probes["reg_rdata"], strict=True)}


def check_status(rtl: accelerator.Build, run: accelerator.LayerRun, *, deep: bool) -> None:
    """Busy from the first beat on while a token is inside; who then reads a counter finds its last value."""
    asked = (0, REGISTERS["STATUS"])
    status = read_at(rtl, run, asked)
    busy = [cycle for cycle, value in status.items() if value >> STATUS_BUSY & 1]
    first, last = (int(run.result.streams[name].cycles[end]) for name, end in (("i", 0), ("o", -1)))
    assert busy == list(range(first + deep, last + 1 + deep))
    idle = busy[-1] + 1
    for counter in ("tokens_out", "cycles", "mac_active"):
        seen = read_at(rtl, run, asked, (idle + 1, counter_address(counter)))
        assert seen[idle] == 1 << STATUS_LOADED
        assert seen[idle + 1] == run.counters[counter], counter
    # A reset of one cycle in mid-run: nothing of it is in the first status after.
    cut = dataclasses.replace(run.spec, stop_cycle=(first + last) // 2, epilogue=())
    asking = RunSpec(
        statics={"reg_addr": REGISTERS["STATUS"]}, probes=["reg_rdata"], settle=4, reset_cycles=1
    )
    _, after = rtl.run_phases([cut, asking])
    after.check()
    assert not [value for value in after.probes["reg_rdata"][1] if value >> STATUS_BUSY & 1]


@pytest.mark.slow
def test_status_says_busy(tiny_deepseek: tuple[accelerator.Build, ModelSpec]) -> None:
    rtl, _ = tiny_deepseek
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), 2)
    check_status(rtl, accelerator.run_rtl(rtl, work, TINY), deep=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_under_stalls(tiny_deepseek: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    check_under_stalls(*tiny_deepseek, TINY, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_in_integers(
    integer_gpt_oss: tuple[accelerator.Build, ModelSpec, DesignSpec], seed: int
) -> None:
    check_under_stalls(*integer_gpt_oss, seed)


@pytest.mark.slow
def test_integers_against_hugging_face(
    integer_gpt_oss: tuple[accelerator.Build, ModelSpec, DesignSpec],
) -> None:
    """Bits and cycles equal; the error is that of golden, whose bounds tests/test_int8.py states."""
    rtl, _, design = integer_gpt_oss
    work = vector_workload(str(DATA / "gpt_oss_s0.npz"), None)
    run = accelerator.run_rtl(rtl, work, design)
    check(run)
    modelled = layer_cycles(run.shape, np.zeros(len(work.tokens), dtype=np.int64))
    check_layer(run, modelled)
    assert modelled.cycles == run.counters["cycles"] == run.seen.cycles
    error = accelerator.compare_with_float(work, run.golden)
    print(f"gpt_oss_s0 in {design.format}: {error}")
    least, most = RELATIVE_ERROR[design.format]
    assert least < error["relative_error"] < most
    assert error["scales"]["x"] * float(np.abs(bf16_decode(work.tokens)).max()) == pytest.approx(
        127, rel=1e-4
    )


@pytest.fixture(scope="module")
def tiny_terms() -> tuple[accelerator.Build, ModelSpec]:
    """Return a layer with every term that goes with the others."""
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    gating = dataclasses.replace(model.gating, num_identity_experts=3, weight_applied_to=AppliedTo.INPUT)
    model = dataclasses.replace(model, gating=gating, shared_expert_gate=True, shared_bias=True)
    return accelerator.build_layer(model, TINY), model


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens_with_every_term(tiny_terms: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    check_under_stalls(*tiny_terms, TINY, seed)


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
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))]
)
def test_layer_model_equals_hardware(tiny_deepseek: tuple[accelerator.Build, ModelSpec], seed: int) -> None:
    """Every transfer between the blocks, from the arrivals alone, gaps between them and beats included."""
    rtl, model = tiny_deepseek
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(9, 40))
    work = random_workload(model, tokens, parse_routing(f"zipf:{rng.integers(0, 3)}"), seed)
    beats = -(-model.d_model // TINY.stream_lanes)
    gaps = rng.integers(0, 3, tokens * beats) + rng.integers(0, 2000, tokens * beats) * (
        rng.random(tokens * beats) < 0.02
    )
    arrivals = np.cumsum(gaps)
    run = accelerator.run_rtl(rtl, work, TINY, arrivals=arrivals)
    check(run)
    check_layer(run, layer_cycles(run.shape, late(run.shape, arrivals)))


def random_shape(seed: int) -> tuple[LayerShape, np.ndarray, np.ndarray | None]:
    """Return a small random layer, its routing, when its tokens arrive, and when its output is ready."""
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(1, 9))
    top_k = int(rng.integers(1, min(num_experts, 4) + 1))
    rows, cols = (int(rng.choice([2, 4, 8])) for _ in range(2))
    model = ModelSpec(
        name="random",
        d_model=int(rng.integers(1, 40)),
        gating=GatingSpec(num_experts=num_experts, top_k=top_k, normalise_kept=seed % 4 == 0),
        ffn=FfnSpec(d_expert=int(rng.integers(1, 40)), activation=Activation(rng.choice(list(Activation)))),
        d_shared=int(rng.integers(1, 40)) if seed % 2 else 0,
        expert_capacity=int(rng.integers(NO_PLACES, 4)) if seed % 3 == 0 else 0,
        capacity_rule=list(CapacityRule)[seed // 3 % len(CapacityRule)],
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
        policy=list(Policy)[seed // 2 % len(Policy)],
    )
    batches = rng.integers(1, 9, int(rng.integers(1, 7))).tolist()
    num_tokens = sum(batches)
    ids = rng.permuted(np.tile(np.arange(num_experts), (num_tokens, 1)), axis=1)[:, :top_k]
    arrivals = np.cumsum(rng.integers(0, int(rng.choice([1, 20, 400])), num_tokens))
    shape = accelerator.layer_shape(model, design, ids, batches)
    return shape, arrivals, stalls(rng) if seed % 5 == 0 else None


def beats_from(shape: LayerShape, arrivals: np.ndarray) -> np.ndarray:
    """Return when each beat is offered if each token's are, from a cycle on, one per cycle."""
    beats: np.ndarray = (arrivals[:, None] + np.arange(shape.image.gate.input_beats)).ravel()
    return beats


@pytest.mark.parametrize(
    "seed", [*range(60), *(pytest.param(n, marks=pytest.mark.long) for n in range(60, 2000))]
)
def test_layer_model_agrees_with_its_blocks(seed: int) -> None:
    """Each block's own model, given what the layer's model offers it, does what the layer's model says."""
    shape, arrivals, ready = random_shape(seed)
    modelled = layer_cycles(shape, arrivals, readiness(ready))
    seen = beat_by_beat(shape, modelled, beats_from(shape, arrivals), readiness(ready))
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
    """For slots, a window, a bank, the output; assignments dropped, empty windows, repeated tiles."""
    reached = set()
    for seed in range(60):
        shape, arrivals, ready = random_shape(seed)
        modelled = layer_cycles(shape, arrivals, readiness(ready))
        seen = beat_by_beat(shape, modelled, beats_from(shape, arrivals), readiness(ready))
        tokens = seen.streams["tokens"]
        reached |= {"slots"} if len(arrivals) > shape.num_slots and len(tokens.waits) else set()
        reached |= {"window"} if len(modelled.assignments.waits) else set()
        reached |= {"output"} if len(seen.streams["output"].waits) else set()
        reached |= {"bank"} if len(modelled.entries.waits) else set()
        reached |= {"dropped"} if shape.streams.dropped else set()
        windows = len(np.unique(shape.streams.entry_window))
        reached |= {"empty"} if windows < shape.streams.num_windows else set()
        reached |= {"repeated"} if modelled.walked_tiles < modelled.tiles else set()
    assert reached == {"slots", "window", "bank", "output", "dropped", "empty", "repeated"}


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "gpt-oss-20b", "mixtral-8x7b", "qwen3-30b-a3b", "switch-base-128"]
)
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
@pytest.mark.parametrize("response", [0, 2, 3])
def test_an_error_response_of_the_memory_is_told(
    tiny_deepseek: tuple[accelerator.Build, ModelSpec], response: int
) -> None:
    rtl, _ = tiny_deepseek
    whole = accelerator.run_rtl(rtl, vector_workload(str(DATA / "deepseek_v3_s0.npz"), 2), TINY)
    responses = np.zeros(len(whole.result.memories["o_ar"].r_cycles), dtype=np.uint8)
    responses[-1] = response
    memory = dataclasses.replace(whole.spec.memories["o_ar"], responses=responses)
    status = [reg_read(REGISTERS["STATUS"])]
    result = rtl.run(dataclasses.replace(whole.spec, memories={"o_ar": memory}, epilogue=status))
    result.check()
    assert result.reads == [1 << STATUS_LOADED | bool(response) << STATUS_READ_ERROR]
    assert result.streams["o"].integers() == whole.result.streams["o"].integers()


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


@pytest.mark.slow
def test_waveform_is_bounded_and_has_readable_names(
    tiny_deepseek: tuple[accelerator.Build, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.rtlsim.WAVE_CYCLES", 300)
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), 4)
    report = accelerator.run_layer(work, TINY, engine="both", routing="vector", waves=tmp_path)
    assert report.agreed
    assert report.waveform == str(tmp_path / "deepseek_v3_s0.vcd")
    check_views(Path(report.waveform), work.model, TINY)
    header, _, changes = Path(report.waveform).read_text().partition("$enddefinitions $end")
    assert "$timescale 1ns $end" in header
    scopes = set(re.findall(r"\$scope module (\S+) \$end", header))
    assert {"eb_layer", "gate", "dispatch", "expert", "combine", "registers"} <= scopes
    names = re.findall(r"\$var wire +\d+ \S+ (\S+) ", header)
    assert {"s_axis_tdata", "m_axi_araddr", "count_mac_active", "reg_rdata"} <= set(names)
    # Plain words and rows of memories: no temporaries of the exporter, nothing escaped.
    odd = [name for name in names if not re.fullmatch(r"[a-zA-Z]\w*(\[\d+\])?", name)]
    assert not odd
    times = [int(time) for time in re.findall(r"^#(\d+)$", changes, re.MULTILINE)]
    assert report.cycles["rtl"] is not None
    assert report.cycles["rtl"] > 300
    assert times[-1] - times[0] == 10 * 300 - 5  # two steps a cycle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "number_format"),
    [
        ("gpt_oss", "bf16"),
        ("deepseek_v3", "int8"),
        *(
            pytest.param(name, "bf16", marks=pytest.mark.long)
            for name in ("qwen3_moe", "deepseek_v3", "switch_transformers")
        ),
    ],
)
def test_verilog_of_every_family_is_lint_clean(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, number_format: str
) -> None:
    arguments = [
        "verilog",
        "--format",
        number_format,
        "--model",
        str(DATA / f"{family}_s0.npz"),
        "--design",
        str(TINY_FILE),
    ]
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == 0
    files = [Path(file) for file in json.loads(capsys.readouterr().out)["files"]]
    assert [file.name for file in files][:4] == ["eb_tiny.v", "eb_ram.v", "tiny.f", "tiny.ports.json"]
    waivers = [f"-Wno-{kind}" for kind in LINT_WAIVERS]
    command, environment = verilator_command("--lint-only", "-Wall", *waivers, "--top-module", "eb_tiny")
    done = subprocess.run(
        [*command, "--default-language", "1364-2005", "-f", "tiny.f"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert faults_of_export(tmp_path, "tiny") == []


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


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_rule_of_capacity_and_policy(tiny_rules: accelerator.Build, seed: int) -> None:
    work = random_workload(RULES, 22, parse_routing("zipf:1"), seed, LONGEST.window_tokens)
    ready = None if seed == 0 else stalls(np.random.default_rng(seed))
    run = accelerator.run_rtl(tiny_rules, work, LONGEST, seed=seed + 1, output_ready=ready)
    check(run)
    streams = run.golden.streams
    assert run.counters["dropped"] == streams.dropped > 0
    in_queue_order = np.lexsort((streams.entry_expert, streams.entry_window))
    assert (in_queue_order != np.arange(in_queue_order.size)).any(), "the policy changed nothing"
    modelled = layer_cycles(run.shape, np.zeros(len(work.tokens), dtype=np.int64), readiness(ready))
    check_layer(run, modelled)
    assert modelled.cycles == run.seen.cycles


@pytest.mark.slow
def test_capacity_beyond_its_register(tiny_rules: accelerator.Build) -> None:
    """One that no sequence reaches is none; it was cut to its lowest 16 bits."""
    model = dataclasses.replace(RULES, expert_capacity=(1 << 16) + 1)
    work = random_workload(model, 22, parse_routing("zipf:1"), 0, LONGEST.window_tokens)
    run = accelerator.run_rtl(tiny_rules, work, LONGEST)
    check(run)
    assert run.counters["dropped"] == 0


def test_word_of_the_capacity() -> None:
    most = (1 << CAPACITY_BITS) - 1
    assert [capacity_word(value, 1 << 20) for value in (0, 1, most)] == [0, 1, most]
    assert capacity_word(most + 1, most + 1) == 0
    message = (
        "expert_capacity: must be at most 65535 (register CAPACITY) for a sequence of 65537 tokens, not 65536"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        capacity_word(most + 1, most + 2)
    model = ModelSpec(name="m", d_model=4, gating=GatingSpec(num_experts=2, top_k=1), ffn=FfnSpec(d_expert=4))
    assert model.capacity_key == "expert_capacity"
    share = dataclasses.replace(model, capacity_fraction=0.5).capacity_key
    with pytest.raises(
        InputError, match=r"\Acapacity_fraction: must be at most \d+ \(register CAPACITY\) for"
    ):
        capacity_word(most + 1, most + 2, key=share)


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
    assert report.cycles["rtl"] is report.mismatches is None


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(model=models())
def test_hardware_of_any_model_elaborates(model: ModelSpec) -> None:
    """Every payload has the same shape at both ends, down to one expert and one element."""
    Fragment.get(FpgaLayer(model, TINY), ExportPlatform())
