"""Benchmarks: what is measured, what the page says of it, and that a missed goal is seen."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim import accelerator, bench
from sim.alone import run_plan
from sim.bench import GROUPS, Bench, Figure
from sim.points import Outcome
from sim.routing import Routing
from sim.rtlsim import DEFAULT_ROOT
from sim.workload import random_workload, vector_workload
from spec.load import load_design, preset_names
from tests.bench import speed
from tests.test_layer import DATA, TINY

ROOT = Path(__file__).parent.parent
FIGURE = Figure(group="build", name="cached", value=12.34, unit="ms", how="hashing")


@pytest.fixture(scope="module")
def tiny() -> Bench:
    """The small layer of tests/test_layer.py: the same build."""
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    work = random_workload(model, 12, Routing("uniform"), 3)
    # As others build it.
    rtl = accelerator.build_layer(model, TINY, DEFAULT_ROOT, trace=True)
    return Bench("tiny", work, TINY, rtl, accelerator.run_rtl(rtl, work, TINY))


@pytest.mark.slow
def test_figures_of_a_layer(tiny: Bench) -> None:
    (native,) = bench.native_figures(tiny)
    assert native.value > 100
    assert native.met is (native.value >= bench.NATIVE_GOAL)
    assert f"{tiny.run.seen.cycles:,} cycles with 16 MACs in the array, 16 in the gate" in native.how
    (cached,) = bench.build_figures(tiny, DEFAULT_ROOT, cold=False)
    assert (cached.name, cached.unit) == ("cached", "ms")
    (model,) = bench.model_figures([("tiny", tiny.run.shape)])
    assert 0 < model.value < 1000
    assert model.met is (model.value < bench.MODEL_GOAL_MS)


@pytest.mark.slow
def test_golden_is_timed_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GATING_TOKENS", 1 << 12)
    monkeypatch.setattr(bench, "HARDWARE_TOKENS", 1 << 11)
    real, hardware = bench.golden_figures()
    assert 0 < real.value < bench.GATING_GOAL_S
    assert real.met is True
    assert real.how.startswith("`golden.gating.route`: 4,096 tokens to 256 experts, top 8 in 4 of 8 groups")
    assert real.goal == "below 10 s"
    assert hardware.value > 0
    assert hardware.met is None
    monkeypatch.setattr(bench, "GATING_GOAL_S", 1e-6)
    assert bench.golden_figures()[0].met is False


@pytest.mark.slow
def test_utilisation_is_that_of_the_counters(tiny: Bench) -> None:
    figures = {figure.name: figure for figure in bench.utilisation_figures(tiny)}
    assert set(figures) == {f"{what} of {of}" for what in ("MAC slots", "weight port")
                            for of in ("the layer", "an expert alone")}  # fmt: skip
    fires = sum(
        tiny.run.shape.engine.kinds[int(job.expert == 8)].num_tiles * len(job.tokens)
        for job in tiny.run.shape.streams.jobs()
    )
    assert figures["MAC slots of the layer"].value == 100 * fires / tiny.run.seen.cycles


PIM = load_design("tests/tiny_pim.toml")


@pytest.mark.long
def test_figures_of_a_near_memory_channel() -> None:
    native, own_time, slots = bench.channel_figures("mixtral-8x7b", 256, PIM, DEFAULT_ROOT, 2, 3)
    assert native.name == "native, a near-memory channel in bf16"
    assert native.met is (native.value >= bench.NATIVE_GOAL)
    assert native.how.endswith("cycles with 32 lanes; fastest of 5 runs")
    assert 0 < own_time.value < 1000
    assert slots.unit == "%"
    shares = [float(share) for share in re.findall(r"([\d.]+)%", slots.how)]
    assert len(shares) == 3
    assert 0 < sum(shares) < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mismatches": 1}, "bits differ from golden"),
        ({"mismatches": None}, "bits differ from golden"),
        ({"divergence": "pim.o: transfer 3"}, "pim.o: transfer 3"),
    ],
)
def test_a_channel_that_is_wrong_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    """A speed of a wrong run would be worth nothing."""

    def wrong(alone, **_options):
        report = run_plan(alone, engine="model", seed=0)
        return dataclasses.replace(report, **{"mismatches": 0, "dram_rules_broken": 0} | changes)

    monkeypatch.setattr(bench, "run_plan", wrong)
    with pytest.raises(AssertionError, match=f"^channel of tiny_pim: {message}$"):
        bench.channel_figures("mixtral-8x7b", 256, PIM, DEFAULT_ROOT, 2, 3)


@pytest.mark.long
def test_figures_of_the_near_memory_layer() -> None:
    model = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None).model
    native, own_time = bench.pim_layer_figures(model, "tiny", PIM, DEFAULT_ROOT, 6)
    assert native.name == "native, layer `pim` in bf16"
    assert native.met is None
    assert own_time.how.startswith("`pim_cycles`: ")


def test_figures_of_the_dram_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = bench.dram_figures(200)
    assert [figure.name.split(",")[1].strip() for figure in figures] == list(bench.DRAM_GOALS)
    for figure in figures:
        each = re.findall(r"([a-z0-9-]+) [\d.]+ M", figure.how)
        assert each == preset_names("dram")
        assert figure.met is (figure.value >= bench.DRAM_GOALS[figure.name.split(",")[1].strip()])
    monkeypatch.setattr(bench, "DRAM_GOALS", {"random": 10**12})
    assert bench.dram_figures(50)[0].met is False


def test_weights_of_an_expert_are_timed_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LOADER_GOAL", 1e9)
    fp8, bf16 = speed.loader_figures(256, 64)
    assert fp8.name == "weights of an expert in fp8 with block scales, over its bytes"
    assert bf16.name == "weights of an expert in bf16, over its bytes"
    for figure in (fp8, bf16):
        assert (figure.unit, figure.goal, figure.met) == ("x", "at most 1e+09 x", True)
        assert figure.value > 0
        assert figure.how.startswith("`CheckpointLayer.read`: 49,152 weights to float32 in ")
    monkeypatch.setattr(speed, "LOADER_GOAL", 1e-9)
    assert [figure.met for figure in speed.loader_figures(256, 64)] == [False, False]


@pytest.mark.slow
def test_figures_of_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DeepSeek-V3 step and a Mixtral layer, and what more layers take."""
    monkeypatch.setattr(bench, "REPEATS", 1)
    step, layer = bench.system_figures()
    assert step.name == "deepseek-v3 on dynande, 58 x 256 experts, 64 tokens"
    assert layer.name == "mixtral-8x7b on dynande, 1 x 8 experts, 16 tokens"
    assert (step.goal, layer.goal) == ("below 200 ms", "below 10 ms")
    for figure in (step, layer):
        assert figure.value > 0
        assert re.search(
            r"[0-9.]+ times as long with 4 times the layers, [0-9.]+ times with 4 times the experts",
            figure.how,
        )


@pytest.mark.slow
def test_figures_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "POINTS", 40)
    monkeypatch.setattr(bench, "POINTS_CORES", 1)
    on_fpga, on_system, near = bench.points_figures()
    assert on_fpga.name == "40 design points of a layer of mixtral-8x7b on fpga"
    assert on_system.name == "40 design points of a layer of mixtral-8x7b on dynande"
    assert near.name == "4 design points of a layer of olmoe-1b-7b on pim"
    assert near.goal == "below 6 s"
    assert on_fpga.met is on_system.met is True
    monkeypatch.setattr(bench, "evaluate_all", lambda of, _cores: (Outcome(error="no") for _ in of))
    with pytest.raises(AssertionError, match=r"^40 of 40 points on fpga were refused$"):
        bench.points_figures()


@pytest.mark.slow
def test_amaranth_runs_the_same_tokens(tiny: Bench) -> None:
    assert speed.amaranth_cycles_per_second(tiny, 150) > 0


@pytest.mark.slow
def test_amaranth_is_compared_with_the_verilog(tiny: Bench) -> None:
    """A speed of another run would be worth nothing."""
    streams = tiny.run.result.streams
    late = dataclasses.replace(streams["i"], cycles=streams["i"].cycles + 1)
    result = dataclasses.replace(tiny.run.result, streams={**streams, "i": late})
    other = dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, result=result))
    with pytest.raises(AssertionError, match=r"^amaranth.sim took the tokens in other cycles"):
        speed.amaranth_cycles_per_second(other, 20)


@pytest.mark.slow
def test_documented_load_of_the_router(tiny: Bench) -> None:
    """docs/layer.md: latency + burst_beats cycles a burst, one burst at a time."""
    loads = tiny.run.result.memories["o_ar"].ar_cycles
    loads = loads[loads < 0]
    beats = tiny.run.shape.image.gate.load_beats
    assert len(loads) == -(-beats // TINY.memory.burst_beats) > 1
    assert set((loads[1:] - loads[:-1]).tolist()) == {TINY.memory.latency_cycles + TINY.memory.burst_beats}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(99.62, "%", "99.6 %"), (123456.7, "cycles/s", "123,457 cycles/s"), (1.4741, "ms", "1.47 ms")],
)
def test_text_of_a_value(value: float, unit: str, text: str) -> None:
    assert dataclasses.replace(FIGURE, value=value, unit=unit).text == text


def test_page_shows_what_was_missed() -> None:
    where = {"processor": "a, 2 cores"}
    missed = dataclasses.replace(FIGURE, goal="below 1 ms", met=False)
    assert bench.page([missed], where) == bench.HEADER + (
        "| | |\n|---|---|\n| processor | a, 2 cores |\n\n"
        "## Build time\n\n| what | measured | goal | how |\n|---|---|---|---|\n"
        "| cached | 12.3 ms | below 1 ms (**missed**) | hashing |\n"
    )
    assert bench.row(dataclasses.replace(missed, met=True)) == "| cached | 12.3 ms | below 1 ms | hashing |"
    assert json.loads(json.dumps(bench.as_json([missed], where)))["figures"][0]["met"] is False


def test_machine_is_named() -> None:
    where = bench.machine()
    assert set(where) == {"processor", "load before", "system", "tools", "commit", "day"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", where["day"])
    assert re.fullmatch(r"unknown|[0-9a-f]{10}( and changes to it)?", where["commit"])
    assert where["tools"].startswith("Verilator ")


def test_committed_page_has_every_kind_of_figure() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text.startswith(bench.HEADER)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(GROUPS.values())
    names = ("native, Verilator alone", "cocotb and Verilator", "amaranth.sim", "cached", "cold, compile")
    names += tuple(
        name.format(number_format)
        for number_format in bench.NEAR_MEMORY_FORMATS
        for name in (
            "native, a near-memory channel in {}",
            "native, layer `pim` in {}",
            "near-memory channel in {}",
            "MAC slots of a near-memory channel in {}, of what DRAM leaves",
        )
    )
    names += ("gating, float", "gating, the hardware's numbers")
    for name in (*names, "mixtral_s0, 20 tokens", "MAC slots of an expert alone"):
        assert f"| {name} | " in text


def test_a_process_s_memory_is_its_own_not_that_of_who_began_it() -> None:
    """The page said 904 MB over 904 MB: those of the bench itself, whatever a sweep or a server held."""
    held = bytearray(b"1" * (256 << 20))
    script = "from tests.bench.memory import largest_megabytes\n{}print(largest_megabytes())"
    found = [
        float(
            subprocess.run(
                [sys.executable, "-c", script.format(more)], cwd=ROOT, stdout=-1, check=True
            ).stdout
        )
        for more in ("", "b'1' * (64 << 20)\n")
    ]
    assert len(held) >> 20 == 256
    assert 0 < found[0] < 128 and found[1] > found[0] + 60
