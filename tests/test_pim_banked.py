"""The near-memory layer with its router in the banks, through its exported Verilog: bits, cycles, DRAM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sim.pim_banked
import sim.pim_layer
import sim.pim_report
import sim.router
from golden.banks import channel_image
from sim.cli import main
from sim.pim_report import run_pim_layer
from sim.routing import parse_routing
from sim.workload import random_workload, vector_workload
from spec.banks import BankGeometry
from spec.design import RouterPlace
from spec.load import load_design
from tests.block_bench import mutated_module
from tests.test_pim_layer import DATA, MODEL, ONE, TINY_FILE, TWO


def banked(design):
    return replace(design, pim=replace(design.pim, router=RouterPlace.BANKS))


BANKED = banked(TWO)


def check(work, design=BANKED, **options):
    """Run a workload; everything has to agree."""
    report = run_pim_layer(work, design, engine="both", routing="vector", **options)
    assert report.agreed, report.divergence
    assert report.mismatches == 0
    assert report.dram_rules_broken == 0
    assert report.mac_slots is not None
    assert all(pair["model"] == pair["rtl"] != 0 for pair in report.blocks.values()), report.blocks
    return report


@pytest.mark.long
def test_vector_runs_bit_and_cycle_equal() -> None:
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    report = check(work)
    assert report.cycles["model"] == report.cycles["rtl"]
    assert report.reference is not None
    assert report.reference["tokens_with_same_experts"] == len(work.tokens)
    assert report.counters is not None
    assert report.counters["tokens_out"] == len(work.tokens)
    # Each group streams the router once, and the experts' commands are there too.
    router = BankGeometry.of(MODEL, BANKED).image.router
    assert router is not None
    assert report.counters["mac_commands"] > 10 * router.num_tiles


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens_batches_and_places(seed: int) -> None:
    """Batches of any length; the layer's own model is exact too."""
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 30))
    work = random_workload(MODEL, tokens, parse_routing(f"zipf:{rng.integers(0, 3)}"), seed)
    cuts = np.unique(rng.integers(1, tokens + 1, seed * 3))
    lengths = np.diff(np.unique([0, *cuts, tokens])).tolist()
    channels: list[list[int]] = [[0], [1], [0, 1]]
    placement = [channels[choice] for choice in rng.integers(0, 3, MODEL.gating.num_experts + 1)]
    report = check(replace(work, batch_lengths=lengths), seed=seed + 1, placement=placement)
    model, hardware = report.cycles["model"], report.cycles["rtl"]
    assert model is not None
    assert hardware is not None
    assert abs(model - hardware) <= 0.01 * hardware


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_nothing_waits_for_ever(seed: int) -> None:
    """Outputs that are taken seldom, tokens in bursts, every expert beside the router or none: all ends."""
    rng = np.random.default_rng(seed + 100)
    tokens = int(rng.integers(20, 50))
    work = random_workload(MODEL, tokens, parse_routing(f"zipf:{rng.integers(0, 3)}"), seed)
    beats = -(-MODEL.d_model // BANKED.stream_lanes)
    everyone = MODEL.gating.num_experts + 1
    ready = rng.random(1 << 15) < (0.5, 0.05)[seed % 2]
    ready[: (0, 12000)[seed // 4]] = False
    check(
        work,
        seed=seed + 1,
        placement=[[seed // 2 % 2]] * everyone,
        arrivals=np.cumsum(rng.integers(0, 6, tokens * beats)),
        output_ready=np.append(ready, True),
    )


@pytest.mark.long
def test_a_logit_bias_and_nothing_to_load() -> None:
    report = check(vector_workload(str(DATA / "gpt_oss_s0.npz"), None), banked(ONE))
    assert report.cycles["model"] == report.cycles["rtl"]
    assert report.counters is not None
    assert report.counters["read_beats"] == 0


@pytest.mark.long
@pytest.mark.usefixtures("no_waveform")
def test_a_damaged_router_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sign in the banks of channel 0."""

    def damaged(banks, weights, bases, scales):
        tiles = channel_image(banks, weights, bases, scales)
        if banks.router_number in bases:
            tiles[bases[banks.router_number] * banks.bursts_per_row, 1] ^= 0x80
        return tiles

    monkeypatch.setattr(sim.pim_layer, "channel_image", damaged)
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    report = run_pim_layer(work, BANKED, engine="both", routing="vector")
    assert not report.agreed
    assert report.mismatches > 0
    assert report.divergence.startswith("gating.o: transfer 0")


@pytest.mark.long
@pytest.mark.usefixtures("no_waveform")
@pytest.mark.parametrize(
    ("name", "value", "where"),
    [("QUEUE_LATENCY", 3, "router.jobs: transfer"), ("GROUPS", 1, "router.jobs: transfer")],
)
def test_a_wrong_model_is_found(monkeypatch: pytest.MonkeyPatch, name: str, value: int, where: str) -> None:
    right = getattr(sim.router, name)
    module = mutated_module(monkeypatch, sim.router, f"{name} = {right}", f"{name} = {value}")
    for user in (sim.pim_layer, sim.pim_banked):
        monkeypatch.setattr(user, "router_job_cycles", module.router_job_cycles)
    work = vector_workload(str(DATA / "deepseek_v3_s0.npz"), None)
    report = run_pim_layer(work, BANKED, engine="both", routing="vector")
    assert not report.agreed
    assert report.divergence.startswith(where)


@pytest.mark.long
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design = tmp_path / "banked.toml"
    text = TINY_FILE.read_text()
    design.write_text(text.replace("channels = 1", 'channels = 2\nrouter = "banks"'))
    assert load_design(str(design)).pim == BANKED.pim
    vector = str(DATA / "deepseek_v3_s0.npz")
    assert main(["sim", "--model", vector, "--design", str(design), "--engine", "both"]) == 0
    assert "all agree" in capsys.readouterr().out
