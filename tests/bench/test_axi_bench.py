"""The tops with AXI ports under somebody else's masters, sinks and memory, with pauses on every channel.

What runs is in :mod:`tests.bench.axi_in_simulator`; here is which, how often, on which builds.
"""

from __future__ import annotations

import pytest

from sim.rtlsim import top_component
from spec.registers import Top
from tests.bench.axi_cores import CORES
from tests.bench.runner import CocotbBuild, build

MODULE = "tests.bench.axi_in_simulator"


def top(name: Top) -> CocotbBuild:
    model, design, block = CORES[name]
    return build(f"{name}_axi", top_component(model, design, block), config=(model, design, block))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 20))])
@pytest.mark.parametrize(
    "name",
    [
        Top.FPGA,
        pytest.param(Top.DISPATCH, marks=pytest.mark.long),
        pytest.param(Top.GATE, marks=pytest.mark.long),
        pytest.param(Top.PIM, marks=pytest.mark.long),
    ],
)
def test_top(name, seed):
    """Prints the seed of what fails; ``done`` names every scenario that ran."""
    print(f"{name}, seed {seed}")
    done = top(name).run_module(MODULE, (name, seed, False), seed=seed)
    if name is not Top.DISPATCH:
        done += top(name).run_module(MODULE, (name, seed, True), seed=seed)
    print(done)
