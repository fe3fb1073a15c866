"""The layer through its exported Verilog: bits against golden, cycles against the models."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rtl.export import LINT_WAIVERS
from sim import accelerator
from sim.cli import main
from sim.layer import layer_times
from sim.routing import Routing, draw_ids
from sim.rtlsim import reg_read
from sim.toolchain import verilator_command
from sim.workload import random_workload, vector_workload
from spec.design import Policy
from spec.load import load_design, load_model
from spec.model import CapacityRule, FfnSpec, GatingSpec, ModelSpec
from spec.registers import REGISTERS, STATUS_LOADED, STATUS_READ_ERROR

DATA = Path(__file__).parent / "data"
TINY_FILE = Path(__file__).parent / "tiny.toml"
TINY = load_design(str(TINY_FILE))


@pytest.fixture(scope="module")
def tiny_deepseek() -> tuple[accelerator.Build, ModelSpec]:
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    # One build for all: it writes waveforms where a test asks for one.
    return accelerator.build_layer(model, TINY, trace=True), model


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
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "switch_transformers"])
def test_verilog_of_every_family_is_lint_clean(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str
) -> None:
    arguments = ["verilog", "--model", str(DATA / f"{family}_s0.npz"), "--design", str(TINY_FILE)]
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == 0
    files = [Path(file) for file in json.loads(capsys.readouterr().out)["files"]]
    assert [file.name for file in files] == ["eb_tiny.v", "eb_ram.v", "tiny.f", "tiny.ports.json"]
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
