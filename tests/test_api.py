"""The package from Python: the page's example, the commands' answers, arrays that add up, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sim import compare_policies, simulate_system
from sim.cli import main
from sim.system import families, plugins, policies
from spec.errors import InputError
from spec.load import load_system

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()


def test_example_of_the_page(capsys) -> None:
    code, printed = re.search(r"```python\n(from sim.*?)```\n\n```\n(.*?)```", PAGE, re.S).groups()
    exec(code, {})
    assert capsys.readouterr().out == printed


def test_the_policy_of_the_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(def split.*?)```", PAGE, re.S)[1]
    Path("even.py").write_text(code)
    command = re.search(r"^    expertbank (system .* even\.py)$", PAGE, re.M)[1]
    try:
        assert main([*command.split(), "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        run = simulate_system("dynande", "olmoe-1b-7b", policy="even.py")
    finally:
        policies.POLICIES.pop("even")
        plugins._plugged.clear()
    step = run.steps["even"]
    assert printed["policies"]["even"] == step.seconds
    assert (step.schedule.host == (step.costs.active & (step.costs.counts % 2 == 0))).all()
    for kind in plugins.KINDS:
        assert f"`{kind}(" in PAGE


def test_a_system_s_run_is_the_command_s(capsys) -> None:
    """Arrays too: host and near compute each expert once; what is busy and idle fills the time."""
    arguments = ["--tokens", "32", "--routing", "zipf:1", "--seed", "5", "--host", "a100", "--json"]
    assert main(["system", "--system", "duplex", "--model", "qwen3-30b-a3b", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = simulate_system(
        load_system("duplex"), "qwen3-30b-a3b", tokens=32, routing="zipf:1", seed=5, host="a100"
    )
    assert {name: step.seconds for name, step in run.steps.items()} == printed["policies"]
    step = run.steps[run.policy]
    assert step.costs.counts.sum() == printed["assignments"] == 48 * 32 * 8
    for name, busy in step.schedule.busy_s.items():
        assert np.allclose(busy + step.schedule.idle_s(name), step.schedule.layer_s[:, None])


def test_policies_are_the_command_s(capsys) -> None:
    arguments = ["--model", "olmoe-1b-7b", "--tokens", "64", "--steps", "4", "--wide-share", "0.5", "--json"]
    assert main(["policies", "formats", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)["policies"]
    found = compare_policies("formats", "olmoe-1b-7b", tokens=64, steps=4, wide_share=0.5)
    assert {name: result.seconds for name, result in found.results.items()} == {
        name: of["seconds"] for name, of in printed.items()
    }
    one = compare_policies("formats", "olmoe-1b-7b", tokens=64, steps=4, policy="int4")
    assert set(one.results) == {"bf16", "int4"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compare_policies("caches", "olmoe-1b-7b"),
            f"family: must be one of {', '.join(families.FAMILIES)}, not 'caches'",
        ),
        (
            lambda: compare_policies("combined", "olmoe-1b-7b", router="x"),
            "family: must be one of placement, split, cache, exchange, dispatch, formats, not 'router'",
        ),
        (
            lambda: simulate_system("dynande", "olmoe-1b-7b", seed=-1),
            "seed: must be in 0..9223372036854775807, not -1",
        ),
        (
            lambda: simulate_system("dynande", "olmoe-1b-7b", policy="best"),
            f"policy: must be one of {', '.join(policies.POLICIES)}, not 'best'",
        ),
        (
            lambda: simulate_system("monde", "kimi-k2-1t"),
            "system monde: near.capacity_bytes: must hold all experts, 2,029.4 GB, not 512.0 GB",
        ),
    ],
)
def test_bad_input(call, message) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message
