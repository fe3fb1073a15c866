"""The native bench: cycles as in amaranth.sim, never a stale model, the first divergence."""

import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import rtlsim, toolchain
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.payload import Field
from sim.rtlsim import (
    Read,
    ReadMemory,
    RunSpec,
    Set,
    Sink,
    Source,
    Trace,
    Wait,
    Waveform,
    build,
    build_exported,
    random_ready,
    reg_read,
    reg_wait,
    reg_write,
)
from spec.errors import InputError
from tests import bfm
from tests.harness_designs import (
    BURST_BEATS,
    REG_BASE,
    REG_BUSY,
    REG_SCRAP,
    REG_START,
    RamBench,
    Reader,
)

NUM_BURSTS = 6
NUM_WORDS = NUM_BURSTS * BURST_BEATS
LATENCY = 7


@pytest.fixture(scope="module")
def reader():
    return build("reader", Reader, config=())


def packets(seed, count):
    return np.random.default_rng(seed).integers(0, 1 << 14, count, dtype=np.uint64)


def read_spec(image, **changes):
    """Return a run that reads ``NUM_BURSTS`` bursts from address 64 on; the burst is started in cycle -1."""
    memory = {"image": image, "latency": LATENCY, **changes.pop("memory", {})}
    return RunSpec(
        sinks={"o_words": changes.pop("sink", Sink(NUM_WORDS))},
        memories={"o_ar": ReadMemory(**memory)},
        prologue=[reg_write(REG_BASE, 64), reg_write(REG_START, NUM_BURSTS)],
        **changes,
    )


@pytest.fixture
def image():
    return np.random.default_rng(5).integers(0, 256, 64 + NUM_WORDS * 8, dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0, 0.7, 3])
@pytest.mark.parametrize("probability", [1, 0.5, 0.1])
def test_cycles_equal_those_of_amaranth_sim(reader, gap, probability):
    count = 150
    payloads = packets(3, count)
    arrivals = bfm.random_arrivals(np.random.default_rng(4), count, gap)
    integers = [int(value) for value in payloads]
    expected = bfm.run_streams(
        Reader(),
        {"i": bfm.Source(integers, arrivals)},
        {"o": bfm.Sink(count, bfm.random_ready(9, probability))},
    )
    result = reader.run(
        RunSpec(
            sources={"i": Source(payloads, arrivals)},
            sinks={"o": Sink(count, random_ready(9, probability))},
        )
    )
    result.check()
    for name in ("i", "o"):
        np.testing.assert_array_equal(result.streams[name].cycles, expected[name].cycles)
        assert result.streams[name].integers() == expected[name].payloads
    assert result.cycles == expected["o"].cycles[-1] + 1


@pytest.mark.slow
def test_memory_latency_bandwidth_and_order(reader, image):
    result = reader.run(read_spec(image))
    result.check()
    memory = result.memories["o_ar"]
    # One address a cycle from cycle 0 on; data from cycle LATENCY on, one beat a cycle.
    assert memory.ar_cycles.tolist() == list(range(NUM_BURSTS))
    assert memory.ar_addrs.tolist() == [64 + burst * BURST_BEATS * 8 for burst in range(NUM_BURSTS)]
    assert memory.r_cycles.tolist() == list(range(LATENCY, LATENCY + NUM_WORDS))
    words = image[64:].view("<u8")
    assert result.streams["o_words"].integers() == [
        int(word) | number << 64 for number, word in enumerate(words)
    ]
    np.testing.assert_array_equal(result.streams["o_words"].cycles, memory.r_cycles)


@pytest.mark.slow
def test_memory_extra_latency_gaps_and_outstanding_bursts(reader, image):
    changes = {"extra": [0, 30], "gaps": [1, 0, 0, 2], "max_outstanding": 2}
    result = reader.run(read_spec(image, memory=changes))
    result.check()
    # The same rules, naively: an address waits for a free place; a beat for its burst and the one before.
    addresses, beats, ends = [], [], []
    free_at = 0
    for burst in range(NUM_BURSTS):
        address = addresses[-1] + 1 if addresses else 0
        if burst >= 2:
            address = max(address, ends[burst - 2] + 1)
        addresses.append(address)
        due = address + LATENCY + changes["extra"][burst % 2]
        for _ in range(BURST_BEATS):
            beats.append(max(due, free_at))
            free_at = beats[-1] + 1 + changes["gaps"][(len(beats) - 1) % 4]
        ends.append(beats[-1])
    assert result.memories["o_ar"].ar_cycles.tolist() == addresses
    assert result.memories["o_ar"].r_cycles.tolist() == beats


@pytest.mark.slow
def test_memory_image_from_a_file(reader, image, tmp_path):
    path = tmp_path / "weights with blanks.bin"
    image.tofile(path)
    from_file = reader.run(read_spec(path))
    from_array = reader.run(read_spec(image))
    from_file.check()
    assert from_file.streams["o_words"].integers() == from_array.streams["o_words"].integers()
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 'none'))}: no such memory image$"):
        reader.run(read_spec(tmp_path / "none"))


@pytest.mark.slow
def test_read_beyond_the_image_is_a_violation(reader, image):
    result = reader.run(read_spec(image[:-8]))
    assert result.violations == [f"o_ar: read beyond the memory image in cycle {LATENCY + NUM_WORDS - 1}"]
    with pytest.raises(AssertionError, match=r"^o_ar: read beyond the memory image"):
        result.check()


@pytest.mark.slow
def test_registers_probes_and_plain_inputs(reader, image):
    spec = read_spec(
        image,
        probes=["busy"],
        statics={"wide": 1 << 99},
        writes=[(3, "wide", 0), (5, "wide", 3 << 63)],
        epilogue=[
            reg_wait(REG_BUSY, 1, 0),
            reg_write(REG_SCRAP, 1234),
            reg_read(REG_SCRAP),
            reg_read(REG_BASE),
            Set({"wide": 7}),
            Read("wide_parity"),
        ],
    )
    result = reader.run(spec)
    result.check()
    assert result.reads == [1234, 64 + NUM_WORDS * 8, 0]
    cycles, values = result.probes["busy"]
    assert cycles.tolist() == list(range(LATENCY + NUM_WORDS))
    assert set(values.tolist()) == {1}
    parity = reader.run(replace(spec, probes=["wide_parity"])).probes["wide_parity"][0]
    assert parity.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_undefined_registers_follow_the_seed(reader):
    spec = RunSpec(epilogue=[reg_read(REG_SCRAP)])
    scraps = {seed: reader.run(spec, seed=seed).reads[0] for seed in (1, 2, 3)}
    assert len(set(scraps.values())) == 3
    assert reader.run(spec, seed=2).reads[0] == scraps[2]


@pytest.mark.slow
def test_timeouts_say_what_is_missing(reader, image):
    spec = RunSpec(sources={"i": Source(packets(1, 5))}, sinks={"o": Sink(9)}, max_cycles=50)
    assert reader.run(spec).timeout == "not finished after 50 cycles: o lacks 4 of 9 beats"
    stuck = RunSpec(sources={"i": Source(packets(1, 7))}, max_cycles=50)
    assert reader.run(stuck).timeout == "not finished after 50 cycles: i has 3 beats to send"
    wait = RunSpec(prologue=[Set({}), Wait("busy", 1, mask=1, timeout=20)])
    assert reader.run(wait).timeout == "prologue step 1: busy & 0x1 == 0x1 not within 20 cycles"
    until = RunSpec(until="busy", max_cycles=30)
    assert reader.run(until).timeout == "not finished after 30 cycles: busy stayed 0"


@pytest.mark.slow
def test_extra_beat_is_a_violation(reader):
    spec = RunSpec(sources={"i": Source(packets(1, 5))}, sinks={"o": Sink(3)})
    assert reader.run(spec).violations == ["o: extra beat in cycle 5", "o: extra beat in cycle 6"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "violation"),
    [
        (2, "o: valid fell before the beat was taken in cycle {}"),
        (4, "o: payload changed before the beat was taken in cycle {}"),
    ],
)
def test_broken_stream_rules_are_named(reader, bug, violation):
    spec = RunSpec(
        sources={"i": Source(packets(1, 5))}, sinks={"o": Sink(5, [0, 0, 0, 1])}, statics={"bug": bug}
    )
    first = reader.run(spec).violations[0]
    # The first beat waits from cycle 2 to 3; which of them is odd for the design is up to its reset.
    assert first in {violation.format(cycle) for cycle in (3, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "violation"),
    [(4, "o_ar: unaligned burst in cycle 0"), (4096 - 8, "o_ar: burst across 4 KiB in cycle 0")],
)
def test_bad_bursts_are_named(reader, address, violation):
    spec = RunSpec(
        sinks={"o_words": Sink(BURST_BEATS)},
        memories={"o_ar": ReadMemory(np.zeros(8192, dtype=np.uint8))},
        prologue=[reg_write(REG_BASE, address), reg_write(REG_START, 1)],
    )
    assert reader.run(spec).violations == [violation]


@pytest.mark.slow
def test_memory_begins_at_its_base(reader, image):
    burst = BURST_BEATS * 8
    result = reader.run(read_spec(image, memory={"base": 64 + burst}))
    result.check()
    words = [0] * BURST_BEATS + image.view("<u8")[: NUM_WORDS - BURST_BEATS].tolist()
    assert result.streams["o_words"].integers() == [word | number << 64 for number, word in enumerate(words)]


@pytest.mark.slow
def test_reset_in_mid_run(reader, image):
    payloads = packets(2, 40)
    whole = RunSpec(sources={"i": Source(payloads)}, sinks={"o": Sink(40)})
    cut = replace(whole, sinks={"o": Sink(40, [0, 0, 1])}, stop_cycle=20)
    scrap = RunSpec(prologue=[reg_write(REG_SCRAP, 77)])
    first, _, last, kept = reader.run_phases(
        [cut, scrap, whole, RunSpec(epilogue=[reg_read(REG_SCRAP)])], seed=3
    )
    assert first.timeout is None
    assert first.cycles == 20
    assert len(first.streams["o"].cycles) == 6
    last.check()
    assert last.streams["o"].integers() == [int(value) for value in payloads]
    assert kept.reads == [77]


@pytest.mark.slow
def test_mistakes_in_a_spec_are_named(reader, image):
    ramp = RunSpec(sources={"x": Source([1])})
    with pytest.raises(ValueError, match=r"^no in stream x; there are \['i'\]$"):
        reader.run(ramp)
    with pytest.raises(ValueError, match=r"^i: payloads must be unsigned and fit 14 bits$"):
        reader.run(RunSpec(sources={"i": Source([1 << 14])}))
    with pytest.raises(ValueError, match=r"^i: payloads must fit 14 bits$"):
        reader.run(RunSpec(sources={"i": Source(np.array([1 << 14], dtype=np.uint64))}))
    with pytest.raises(ValueError, match=r"^reg_we: value must fit 1 bits, not 2$"):
        reader.run(RunSpec(statics={"reg_we": 2}))
    with pytest.raises(ValueError, match=r"^no output nope; there are \['busy', "):
        reader.run(RunSpec(probes=["nope"]))
    with pytest.raises(ValueError, match=r"^o: ready pattern is never ready$"):
        reader.run(RunSpec(sinks={"o": Sink(1, [0, 0])}))
    with pytest.raises(ValueError, match=r"^a file's first byte has address 0, not 64$"):
        reader.run(read_spec(Path(__file__), memory={"base": 64}))
    with pytest.raises(ValueError, match=r"^a waveform needs a build with trace=True$"):
        reader.run(RunSpec(), vcd=Waveform(Path("x.vcd")))


# The planted bug


FIELDS = {"data": Field(0, 13, signed=True), "last": Field(13, 1)}


@pytest.mark.slow
def test_planted_bug_is_the_first_divergence(reader, tmp_path):
    payloads = packets(6, 20)
    spec = RunSpec(sources={"i": Source(payloads)}, sinks={"o": Sink(20)}, statics={"bug": 1})
    result = reader.run(spec)
    result.check()
    model = np.arange(20) + 2
    found = first_divergence(
        [
            PortCheck("reader", "i", result.streams["i"], cycles=np.arange(20)),
            PortCheck("reader", "o", result.streams["o"], payloads, model, FIELDS),
        ]
    )
    assert found is not None
    message = with_waveform(found, reader, spec, tmp_path)
    good = int(payloads[5])
    signed = [(value & 0x1FFF) - (value & 0x1000) * 2 for value in (good, good ^ 1)]
    assert message == (
        f"reader.o: transfer 5: cycle 7; payload golden {good:#x} (data={signed[0]}),"
        f" rtl {good ^ 1:#x} (data={signed[1]}); waveform of cycles 0..57 in {tmp_path}/reader_o_5.vcd"
        " (cycle 7 at 110 ns)"
    )
    wave = (tmp_path / "reader_o_5.vcd").read_text()
    assert re.search(r"\$var wire +1 \S+ m_axis_tvalid \$end", wave)
    # The run has 23 cycles and 16 to settle; two steps a cycle, the first at the start of cycle 0.
    times = [int(time) for time in re.findall(r"^#(\d+)$", wave, re.MULTILINE)]
    assert min(times) == 40
    assert max(times) < 40 + 10 * (22 + 16)


@pytest.mark.slow
def test_waveform_has_the_window_asked_for(reader, tmp_path):
    spec = RunSpec(sources={"i": Source(packets(6, 100))}, sinks={"o": Sink(100)})
    path = tmp_path / "deep" / "window.vcd"
    result = reader.traced().run(spec, vcd=Waveform(path, 30, 33))
    times = [int(time) for time in re.findall(r"^#(\d+)$", path.read_text(), re.MULTILINE)]
    start = result.zero_ns + 300
    assert times == list(range(start, start + 40, 5))


def trace(cycles, payloads):
    return Trace(np.array(cycles, dtype=np.int64), np.array(payloads, dtype=np.uint64).reshape(-1, 1))


@pytest.mark.parametrize(
    ("check", "cycle", "message"),
    [
        (
            PortCheck("b", "o", trace([1, 2], [5, 6]), [5, 6], [1, 3]),
            2,
            "b.o: transfer 1: cycle model 3, rtl 2; payload equal 0x6",
        ),
        (
            PortCheck("b", "o", trace([1, 2], [5, 7]), [5, 6]),
            2,
            "b.o: transfer 1: cycle 2; payload golden 0x6, rtl 0x7",
        ),
        (
            PortCheck("b", "o", trace([1], [5]), [5, 6], [1, 9]),
            9,
            "b.o: transfer 1: expected in cycle 9, rtl has none (1 of 2 transfers)",
        ),
        (
            PortCheck("b", "o", trace([1, 4], [5, 6]), [5]),
            4,
            "b.o: transfer 1: rtl in cycle 4, none expected (2 of 1 transfers)",
        ),
        (
            PortCheck("b", "o", trace([], []), [5]),
            0,
            "b.o: transfer 0: expected, rtl has none (0 of 1 transfers)",
        ),
    ],
)
def test_messages_of_a_divergence(check, cycle, message):
    found = first_divergence([check])
    assert (found.cycle, found.message) == (cycle, message)


def test_first_in_time_wins_over_first_listed():
    late = PortCheck("late", "o", trace([9], [1]), [2])
    early = PortCheck("early", "o", trace([3], [1]), [1], [4])
    same = PortCheck("same", "o", trace([3], [1]), [1], [3])
    assert first_divergence([same, late, early]).block == "early"
    assert first_divergence([same]) is None
    assert first_divergence([PortCheck("nothing", "o", trace([], []), [])]) is None


# The cache; nothing is compiled here


@pytest.fixture
def compiled(monkeypatch):
    """Replace the compiler by one that leaves a text; return the calls."""
    calls = []

    def compile_text(files, top, header, trace, target, cache):
        calls.append(top)
        target.mkdir(parents=True)
        (target / "dut").write_text("program")

    monkeypatch.setattr(rtlsim, "_compile", compile_text)
    return calls


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from rtl.export import export

    directory = tmp_path_factory.mktemp("exported")
    export(Reader(), "reader", directory)
    return directory


def test_changed_line_is_a_miss_and_the_same_a_hit(compiled, exported, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    first = build_exported(copy, "reader", root=tmp_path)
    assert build_exported(exported, "reader", root=tmp_path).program == first.program
    assert len(compiled) == 1
    verilog = copy / "eb_reader.v"
    verilog.write_text(
        verilog.read_text().replace("assign m_axi_arlen = 8'h03;", "assign m_axi_arlen = 8'h01;")
    )
    changed = build_exported(copy, "reader", root=tmp_path)
    assert changed.program != first.program
    assert build_exported(copy, "reader", trace=True, root=tmp_path).program != changed.program
    assert len(compiled) == 3
    bench = tmp_path / "harness.cpp"
    bench.write_text(rtlsim.HARNESS.read_text() + "// another line\n")
    monkeypatch.setattr(rtlsim, "HARNESS", bench)
    assert build_exported(copy, "reader", root=tmp_path).program != changed.program
    monkeypatch.setattr(toolchain, "CXX_FLAGS", ("-O0",))
    build_exported(copy, "reader", root=tmp_path)
    assert len(compiled) == 5


def test_a_header_is_compiled_once_and_read_where_that_is_not_taken(tmp_path):
    header = tmp_path / "three.h"
    header.write_text("inline int three() { return 3; }\n")
    source = tmp_path / "main.cpp"
    source.write_text("int main() { return three() - 3; }\n")
    first = toolchain.precompiled(("-O1",), header, tmp_path / "cache")
    compiled = first.with_suffix(".h.gch")
    made = compiled.stat().st_mtime_ns
    assert toolchain.precompiled(("-O1",), header, tmp_path / "cache") == first
    assert compiled.stat().st_mtime_ns == made
    assert toolchain.precompiled(("-O0",), header, tmp_path / "cache") != first

    def read(flag: str) -> str:
        """Compile and run; return which headers were read, those compiled before marked with ``!``."""
        program = tmp_path / "program"
        command = ["g++", "-H", "-include", str(first), flag, str(source), "-o", str(program)]
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert subprocess.run([program]).returncode == 0
        return seen

    assert f"! {compiled}" in read("-O1")
    assert str(header) in read("-O0")
    compiled.write_bytes(b"of another release")
    assert str(header) in read("-O1")


def test_the_last_level_of_optimisation_counts_and_comes_first():
    """Benches of either kind share what they compile once: -O1 is -O1 wherever it stands."""
    flags = ("-O1", "-std=c++17", "-w")
    assert toolchain.with_last_level((*flags, "-O1")) == toolchain.with_last_level(flags) == list(flags)
    assert toolchain.with_last_level(("-O2", *flags[1:], "-O1")) == list(flags)
    assert toolchain.with_last_level(("-w", "-Os")) == ["-Os", "-w"]
    assert toolchain.with_last_level(("-w",)) == ["-w"]


def test_export_is_reused_until_a_source_or_the_config_changes(compiled, tmp_path, monkeypatch):
    project = tmp_path / "project"
    for package in ("rtl", "golden", "spec"):
        (project / package).mkdir(parents=True)
    line = project / "rtl" / "block.py"
    line.write_text("a = 1\n")
    monkeypatch.setattr(rtlsim, "PROJECT", project)
    made = []

    def component():
        made.append(1)
        return Reader()

    for expected in (1, 1):
        build("reader", component, config=(1,), root=tmp_path)
        assert len(made) == expected
    line.write_text("a = 2\n")
    build("reader", component, config=(1,), root=tmp_path)
    build("reader", component, config=(2,), root=tmp_path)
    assert len(made) == 3
    assert len(compiled) == 1  # the Verilog stayed the same
    with pytest.raises(ValueError, match=r"^config must have a repr that says all of it"):
        build("reader", component, config=object(), root=tmp_path)


def test_export_is_repeated_when_the_components_own_file_changes(compiled, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    keys = []
    for text in ("class Block: pass", "class Block: size = 2"):
        (outside / "block.py").write_text(text + "\n")
        (outside / "top.py").write_text("def component(): pass\n")
        space = {"__name__": "outside"}
        exec(compile("def component(): pass\n", str(outside / "top.py"), "exec"), space)
        keys.append(rtlsim._export_key("x", space["component"], ()))
    assert keys[0] != keys[1]
    assert rtlsim._export_key("x", Reader, ()) == rtlsim._export_key("x", Reader, ())
    assert rtlsim._export_key("x", Reader, ()) != rtlsim._export_key("x", RamBench, ())


def test_two_builders_at_once_build_once(compiled, exported, tmp_path):
    builders = [
        threading.Thread(target=build_exported, args=(exported, "reader"), kwargs={"root": tmp_path})
        for _ in range(4)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(compiled) == 1


def test_missing_compiler_is_one_line(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "g++ not found on PATH: an RTL run compiles C++; install g++ (Debian: apt install g++)"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        build_exported(exported, "reader", root=tmp_path)
    assert not list(tmp_path.rglob("dut"))
    with pytest.raises(InputError, match=r"x\.f: no such file list$"):
        build_exported(exported, "x", root=tmp_path)


def test_ports_of_the_description_reach_the_bench(exported):
    description = json.loads((exported / "reader.ports.json").read_text())
    header = rtlsim._ports_header(description)
    assert "    IN(aclk) \\\n" in header
    assert header.endswith("    OUT(wide_parity)\n")


def test_source_without_beats():
    data, last = rtlsim._split(np.zeros((0, 1), dtype="<u8"), 12, 16)
    assert data.shape == (0, 2) and last.shape == (0,)
