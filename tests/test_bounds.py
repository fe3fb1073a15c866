"""No policy of any family beats its bound, and orders that must hold, on traces that no test has seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sim import compare_policies, simulate_system
from sim.cli import main
from sim.system import caches
from sim.system.families import FAMILIES

MODEL, LAYERS, EXPERTS, K = "olmoe-1b-7b", 16, 64, 8
OPTIONS = {
    "cache": {"entries": 12},
    "placement": {"devices": 8, "nodes": 2, "places": 72},
    "parallel": {"devices": 8, "nodes": 2},
    "exchange": {"devices": 8, "nodes": 2},
    "dispatch": {"capacity_factor": 1.1, "block": 16},
    "formats": {},
    "combined": {
        "system": "monde",
        "devices": 4,
        "places": 72,
        **{"placement": "eplb-global", "split": "argmin", "cache": "lfu", "exchange": "adaptive"},
        **{"dispatch": "blocks", "formats": "mxfp4", "block": 16},
    },
}


def uneven(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return weights of experts: a few are far more popular, others in each layer."""
    return rng.pareto(0.7, (LAYERS, 1, EXPERTS)) + 1e-3


def bursts(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return weights that change all at once, some times in the trace."""
    phases = rng.pareto(1.0, (LAYERS, 4, EXPERTS)) + 1e-3
    return phases[:, np.sort(rng.integers(4, size=rows))]


def cliques(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return weights under which a token's experts come from one of few groups that go together."""
    groups = rng.integers(8, size=(LAYERS, 1, EXPERTS))
    return np.where(groups == rng.integers(8, size=(LAYERS, rows, 1)), 1.0, 1e-4)


def alike(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Return weights of tokens that all want the same experts, whatever they are."""
    weights = np.full((LAYERS, 1, EXPERTS), 1e-9)
    weights[:, 0, rng.permutation(EXPERTS)[:K]] = 1.0
    return weights


KINDS = (uneven, bursts, cliques, alike)


def trace(kind, rows: int, folder: Path, seed: int) -> Path:
    """Return the file of a trace: experts of each token by weights, none twice."""
    rng = np.random.default_rng(seed)
    keys = np.log(kind(rng, rows)) + rng.gumbel(size=(LAYERS, rows, EXPERTS))
    file = folder / f"{kind.__name__}.npz"
    np.savez(file, ids=np.argsort(-keys, axis=2)[:, :, :K])
    return file


@pytest.fixture
def seed() -> int:
    """Return a seed that is printed."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return seed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_policy_beats_its_bound(tmp_path, seed, kind, family) -> None:
    tokens, steps = 24, 8
    routing = str(trace(kind, tokens * steps, tmp_path, seed))
    given = {"tokens": tokens, "steps": steps, "routing": routing}
    found = compare_policies(family, MODEL, **given, **OPTIONS[family]).results
    assert all(0 < result.bound_s <= result.seconds * (1 + 1e-9) for result in found.values())
    # Of sums in another order the last bit may differ.
    seconds = {name: float(f"{result.seconds:.12e}") for name, result in found.items()}
    if family == "cache":
        rate = {name: result.measures["hit_rate"] for name, result in found.items()}
        assert max(rate[name] for name in caches.CACHES) == rate["belady"]
        assert max(rate[name] for name in caches.PREFETCHERS) == rate["oracle"]
        assert seconds["belady"] <= seconds["none"]
    elif family == "exchange":
        assert seconds["adaptive"] <= seconds["direct"] and seconds["once-per-device"] <= seconds["direct"]
    elif family == "parallel":
        assert seconds["adaptive"] == min(seconds.values())
    elif family == "dispatch":
        # Nothing that computes all rows takes less than their rows alone; whole blocks less than the largest.
        assert seconds["grouped"] <= min(seconds["blocks"], seconds["sizes"], seconds["largest"])
        assert seconds["sizes"] <= seconds["one-by-one"]
    elif family == "formats":
        assert seconds["mxfp4"] <= seconds["int8"] <= seconds["bf16"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_split_beats_its_bound(tmp_path, seed, kind) -> None:
    routing = str(trace(kind, 32, tmp_path, seed))
    for system in ("dynande", "monde", "duplex", "pimoe", "sieve"):
        run = simulate_system(system, MODEL, tokens=32, routing=routing, only_experts=True)
        seconds = {name: step.seconds for name, step in run.steps.items()}
        for step in run.steps.values():
            assert step.seconds >= max(step.bounds.values()) * (1 - 1e-9)
        # A scan of all prefixes with true times contains both ends.
        assert seconds["prefix-scan"] <= min(seconds["all-near"], seconds["all-host"]) * (1 + 1e-9)


def test_placements_learn_what_stays_and_not_what_changes(tmp_path, seed) -> None:
    """Popularity that stays is worth copies; after a change of popularity the copies are of others."""
    rows = 64 * 8
    rng = np.random.default_rng(seed)
    stays = trace(uneven, rows, tmp_path, seed)
    options = {"tokens": 64, "steps": 8, "devices": 8, "places": 96}
    found = compare_policies("placement", MODEL, routing=str(stays), **options).results
    even = {name: result.measures["imbalance"] for name, result in found.items()}
    assert even["eplb-global"] < 1.1 * even["popularity"] < 1.1 * even["round-robin"]
    ids = np.load(stays)["ids"]
    ids[:, rows // 2 :] = rng.permutation(EXPERTS)[ids[:, rows // 2 :]]
    np.savez(tmp_path / "changes.npz", ids=ids)
    changed = compare_policies("placement", MODEL, routing=str(tmp_path / "changes.npz"), **options).results
    assert changed["eplb-global"].measures["imbalance"] > even["eplb-global"]


def test_each_report_prints_its_bound(capsys) -> None:
    for family in FAMILIES:
        arguments = ["policies", family, "--model", MODEL, "--steps", "2", "--tokens", "4"]
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "over bound" in out and "no policy is faster than: " in out
        assert main([*arguments, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["bound"] in out
        assert all(of["bound_s"] > 0 for of in printed["policies"].values())
    assert main(["system", "--system", "monde", "--model", MODEL]) == 0
    assert "no policy is faster than: balance " in capsys.readouterr().out


def test_a_trace_of_another_model_is_one_line(tmp_path, capsys) -> None:
    np.savez(tmp_path / "t.npz", ids=np.tile([0, 1], (32, 8, 1)))
    for command in (["policies", "cache"], ["system", "--system", "monde"]):
        assert main([*command, "--model", MODEL, "--routing", str(tmp_path / "t.npz")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert err.startswith(f"expertbank: {tmp_path / 't.npz'}: ")
