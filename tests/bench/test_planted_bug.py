"""A bug planted in exported Verilog, or in a model, is found, named, and in the waveform."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtl.dispatch import Dispatch
from sim.rtlsim import RunSpec, Waveform, exported
from tests.bench import test_dispatch_bench as dispatch
from tests.bench.runner import BenchError, build_exported
from tests.bench.scenarios import Scenario, Traffic, run_scenarios

SOUND = re.compile(r"(assign keep = .*\(count <)( capacity\);)")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return a traced bench of the dispatcher that drops an assignment too late."""
    good = exported("dispatch", lambda: Dispatch(dispatch.CONFIG), config=dispatch.CONFIG)
    copy = tmp_path_factory.mktemp("planted") / "verilog"
    shutil.copytree(good, copy)
    verilog = copy / "eb_dispatch.v"
    text, count = SOUND.subn(r"\1=\2", verilog.read_text())
    assert count == 1, "the line to break must be in the Verilog once"
    verilog.write_text(text)
    return build_exported(copy, "dispatch", trace=True)


def quiet() -> Traffic:
    return Traffic("none", "none", np.random.default_rng(4))


def harmless() -> Scenario:
    """Return a scenario in which no capacity is reached."""
    return dispatch.scenario("harmless", dispatch.corner([[0, 1], [3, 4]] * 4), quiet())


def value_at(vcd: str, port: str, time: int) -> int:
    """Return the top's ``port`` at ``time``, before what changes then."""
    # Once as a port of the program's top, once inside eb_dispatch.
    name = re.findall(rf"\$var wire +\d+ (\S+) {port}(?: \[[\d:]+\])? \$end", vcd)[0]
    value = 0
    for line in vcd.partition("$enddefinitions")[2].splitlines():
        if line.startswith("#") and int(line[1:]) >= time:
            break
        if line.startswith("b") and line.endswith(f" {name}"):
            value = int(line[1:].split()[0], 2)
        elif line in (f"0{name}", f"1{name}"):
            value = int(line[0])
    return value


@pytest.mark.slow
def test_planted_bug_is_named_and_in_the_waveform(broken, tmp_path):
    overflow = dispatch.scenario("overflow", dispatch.CORNERS["capacity overflow"], quiet())
    with pytest.raises(pytest.fail.Exception) as failure:
        run_scenarios(broken, "dispatch", [harmless(), overflow], waves=tmp_path)
    # Slot 2's assignment to expert 1 is the third of the batch and must not be counted.
    transfer, cycle, golden, rtl = 2, 7, 0b0_10_010, 0b0_11_010
    port = overflow.ports["o_expect"]
    assert (port.cycles[transfer], port.payloads[transfer]) == (cycle, golden)
    found = re.fullmatch(
        rf"dispatch, overflow, seed 1: dispatch\.o_expect: transfer {transfer}: cycle {cycle};"
        rf" payload golden {golden:#x} \(count=2\), rtl {rtl:#x} \(count=3\);"
        rf" waveform of cycles 0\.\.57 in (\S+) \(cycle {cycle} at (\d+) ns\)",
        str(failure.value),
    )
    assert found, str(failure.value)
    assert Path(found[1]) == tmp_path / f"dispatch_o_expect_{transfer}.vcd"
    wave, start = Path(found[1]).read_text(), int(found[2])
    edge = start + 10
    assert value_at(wave, "m_axis_expect_tvalid", edge) == 1
    assert value_at(wave, "m_axis_expect_tdata", edge) == rtl
    assert value_at(wave, "m_axis_expect_tvalid", start) == 0
    times = [int(time) for time in re.findall(r"^#(\d+)$", wave, re.MULTILINE)]
    assert min(times) == start - 10 * cycle
    assert max(times) < start + 10 * 51


@pytest.mark.slow
def test_wrong_cycle_of_a_model_is_named(broken, tmp_path):
    good = harmless()
    port = good.ports["o_0"]
    late = np.array(port.cycles)
    late[3:] += 1
    wrong = replace(good, ports={**good.ports, "o_0": replace(port, cycles=late)})
    message = (
        rf"dispatch, harmless, seed 1: dispatch\.o_0: transfer 3: cycle model {late[3]}, rtl {late[3] - 1};"
        rf" payload equal {port.payloads[3]:#x}; waveform of cycles"
    )
    with pytest.raises(pytest.fail.Exception, match=f"^{message}"):
        run_scenarios(broken, "dispatch", [wrong], waves=tmp_path)
    run_scenarios(broken, "dispatch", [good], waves=tmp_path)


@pytest.mark.slow
def test_wrong_number_of_pulses_is_named(broken, tmp_path):
    wrong = replace(harmless(), pulses={"dropped": 1})
    with pytest.raises(
        pytest.fail.Exception, match=r"^dispatch, harmless, seed 1: dropped: 0 pulses, 1 expected$"
    ):
        run_scenarios(broken, "dispatch", [wrong], waves=tmp_path)


@pytest.mark.slow
def test_undefined_registers_follow_the_seed(broken, tmp_path):
    waves = []
    for seed in (1, 2, 1):
        path = tmp_path / f"{seed}.vcd"
        broken.run(RunSpec(), seed=seed, vcd=Waveform(path, last=0))
        waves.append(path.read_text())
    assert waves[0] == waves[2]
    assert waves[0] != waves[1]


@pytest.mark.slow
def test_failure_inside_the_simulator_is_told(broken):
    spec = replace(harmless().spec, sinks={"o_0": replace(harmless().spec.sinks["o_0"], ready=[0])})
    with pytest.raises(BenchError, match=r"^o_0: ready pattern is never ready"):
        broken.run(spec)
