# amaranth: UnusedElaboratable=no
# (constructors that raise leave an elaboratable that nobody can use)
"""The memory: a naive model, amaranth.sim and the exported Verilog show the same under collisions."""

import numpy as np
import pytest

from rtl.ram import Ram
from sim.rtlsim import RunSpec, build
from sim.rtlsim import Sink as NativeSink
from sim.rtlsim import Source as NativeSource
from tests.bfm import Sink, Source, run_streams
from tests.harness_designs import RAM_COMMAND, RAM_CONFIGS, RAM_ROWS, RamBench

WIDTH = 12


def commands(rng, count):
    """Return random commands after each row was written and each port has read once."""
    made = [{"w_addr": row, "w_data": int(rng.integers(1 << WIDTH)), "w_en": 7} for row in range(RAM_ROWS)]
    made.append({"w_addr": 0, "w_data": 1, "w_en": 0, "r_en": 3})
    for _ in range(count):
        address = int(rng.integers(RAM_ROWS))
        others = [address if rng.random() < 0.5 else int(rng.integers(RAM_ROWS)) for _ in range(2)]
        made.append(
            {
                "w_addr": address,
                "w_data": int(rng.integers(1 << WIDTH)),
                "w_en": int(rng.integers(8)),
                "r_addr_0": others[0],
                "r_addr_1": others[1],
                "r_en": int(rng.integers(4)),
            }
        )
    return made


def naive(made):
    """Return what the read ports of ``RamBench`` show after each command."""
    shown = []
    memories = [[0] * config["depth"] for config in RAM_CONFIGS]
    ports = [[0] * config.get("num_read_ports", 1) for config in RAM_CONFIGS]
    for command in made:
        for config, rows, values in zip(RAM_CONFIGS, memories, ports, strict=True):
            lane_width = config.get("granularity", WIDTH)
            address = command["w_addr"] if config["depth"] > 1 else 0
            mask = 0
            for lane in range(WIDTH // lane_width):
                if command["w_en"] >> lane & 1:
                    mask |= ((1 << lane_width) - 1) << lane * lane_width
            new = (rows[address] & ~mask) | (command["w_data"] & mask)
            for port in range(len(values)):
                if command.get("r_en", 0) >> port & 1:
                    read = command.get(f"r_addr_{port}", 0) if config["depth"] > 1 else 0
                    values[port] = new if config["transparent"] and read == address else rows[read]
            rows[address] = new
        flat = [value for values in ports for value in values]
        shown.append(sum(value << WIDTH * index for index, value in enumerate(flat)))
    return shown


@pytest.fixture
def stimulus():
    made = commands(np.random.default_rng(7), 400)
    return [RAM_COMMAND.const(command).as_value().value for command in made], naive(made)


def test_ram_in_amaranth_sim(stimulus):
    payloads, expected = stimulus
    count = len(payloads)
    traces = run_streams(RamBench(), {"i": Source(payloads, [0] * count)}, {"o": Sink(count)})
    assert traces["o"].payloads == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ram_in_exported_verilog(stimulus, seed):
    payloads, expected = stimulus
    native = build("ram_bench", RamBench, config=RAM_CONFIGS)
    spec = RunSpec(sources={"i": NativeSource(payloads)}, sinks={"o": NativeSink(len(payloads))})
    result = native.run(spec, seed=seed)
    result.check()
    # What is shown before the first read is undefined.
    assert result.streams["o"].integers()[RAM_ROWS:] == expected[RAM_ROWS:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0, "depth": 4}, "width must be at least 1, not 0"),
        ({"width": 8, "depth": 0}, "depth must be at least 1, not 0"),
        ({"width": 8, "depth": 4, "num_read_ports": 0}, "num_read_ports must be at least 1, not 0"),
        ({"width": 8, "depth": 4, "granularity": 3}, "granularity must divide width=8, not 3"),
    ],
)
def test_bad_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Ram(**arguments)
