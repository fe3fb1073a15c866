"""The self-checking bench of the tops with AXI ports: it passes, and it sees what differs."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from sim import synth
from sim.handover.axi_bench import IMAGE_PAGE, axi_bench
from sim.pack import PackMap
from sim.pack import pack as pack_folder
from spec.load import load_design
from spec.registers import REGISTERS, Top
from tests.test_handover import DATA, ROOT, changed_line, fusesoc, run_icarus, run_verilator, written
from tests.verilog2005 import icarus

BENCH = "eb_axi_bench"
TINY = (
    "--model",
    str(DATA / "mixtral_s0.npz"),
    "--design",
    str(ROOT / "tests" / "tiny.toml"),
    "--bench",
    "3",
)
TINY_PIM = (
    *("--model", str(DATA / "deepseek_v3_s0.npz"), "--design", str(ROOT / "tests" / "tiny_pim.toml")),
    *("--bench", "2"),
)
TOPS = {
    "gate": (("--design", "gate"), "16 output beats of 8 tokens"),
    "dispatch": (("--design", "dispatch"), "16 output beats of 8 tokens"),
    "tiny": (TINY, "48 output beats of 3 tokens"),
    "tiny_pim": (TINY_PIM, "32 output beats of 2 tokens"),
}
"""A small one of each kind: options, and what its bench says."""
long = pytest.mark.long


def exported(folder: Path, name: str, *more: str) -> Path:
    return written(folder, "--bus", "axi", *TOPS[name][0], *more)


@pytest.fixture(scope="module")
def dispatch(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("dispatch"), "dispatch")


@pytest.fixture(scope="module")
def tops(tmp_path_factory):
    """Return what exports one of :data:`TOPS`, once."""
    kept: dict[tuple[str, ...], Path] = {}

    def export(name: str, *more: str) -> Path:
        if (name, *more) not in kept:
            kept[name, *more] = exported(tmp_path_factory.mktemp(name), name, *more)
        return kept[name, *more]

    return export


def passed(name: str) -> str:
    return rf"^PASS: {TOPS[name][1]} equal golden's, before an error and behind recovery, \d+ cycles$"


def check_passes(folder: Path, name: str, *plusargs: str) -> None:
    done = run_verilator(folder, *plusargs, top=BENCH)
    assert done.returncode == 0, done.stdout
    assert re.search(passed(name), done.stdout, re.MULTILINE)


# In every run: the dispatcher's


@pytest.mark.slow
def test_the_bench_passes(dispatch) -> None:
    """Without pauses, with some, and nearly always waiting."""
    for plusargs in ([], ["+pauses=64", "+seed=2"], ["+pauses=240", "+seed=3"]):
        check_passes(dispatch, "dispatch", *plusargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "new", "message"),
    [
        ("outputs.hex", 4, None, r"output beat 4 in cycle \d+: user, last and data 001\w{6}, golden 00"),
        ("outputs.hex", 0, "0001f95000", r"output beat 0 in cycle \d+: user, last and data 1\w{8}, golden 0"),
        # The wrong packet's marks.
        ("outputs.hex", 17, "0100000160", r"output beat 17 in cycle \d+: user, last and data 3\w+, golden 1"),
        ("expect.hex", 2, None, r"m_axis_expect beat 2 in cycle \d+: data 0082, golden 0083"),
        ("tokens.hex", 1, None, r"output beat \d+ in cycle \d+: "),
        # Of eight tokens the first batch ends too early.
        ("tokens.hex", 5, "0103f36f", r"(output|m_axis_expect) beat \d+ in cycle \d+: "),
        # An access that this top refuses; another top; a register that says something else.
        ("start.hex", 2, "00000c0000000000000000", r"access to register 00c was answered with 3, not 0"),
        ("start.hex", 1, "02010000000201ffffffff", r"register 100 holds 00000301; its bits ffffffff"),
        ("start.hex", 3, "02001000000001ffffffff", r"register 010 holds 00000000; its bits ffffffff"),
    ],
)  # fmt: skip
def test_the_bench_sees_what_differs(file, line, new, message, dispatch, tmp_path) -> None:
    broken = shutil.copytree(dispatch, tmp_path / "broken")
    path = broken / "bench" / file
    path.write_text(changed_line(path.read_text(), line, new))
    done = run_verilator(broken, "+pauses=20", top=BENCH)
    assert done.returncode == 1
    assert re.search(f"^FAIL: {message}", done.stdout, re.MULTILINE), done.stdout


def test_the_files_are_there(dispatch, tmp_path) -> None:
    vectors = {"tokens.hex", "outputs.hex", "expect.hex", "start.hex"}
    includes = {"bench.svh", "memories.svh", "ports.svh", "registers.svh", "eb_bench_clocks.svh"}
    models = ("pauses", "stream_source", "stream_sink", "axi_memory", "bank_memory", "axi_lite_master")
    files = {*vectors, *includes, "bench.f", "eb_axi_bench.sv", *(f"eb_{model}.sv" for model in models)}
    assert {file.name for file in (dispatch / "bench").iterdir()} == files
    core = (dispatch / "expertbank.core").read_text()
    assert core.count(f"toplevel: {BENCH}\n") == 1
    assert re.findall(r"^  (\w+):(?: &\w+)?$", core[core.index("targets:") :], re.MULTILINE) == [
        *("default", "lint", "synth", "sim", "sim_icarus"),
    ]
    assert set(re.findall(r"- bench/([\w.]+):", core)) == files - {"bench.f"}
    # The same bytes once more, and none where none are wanted.
    again = exported(tmp_path / "again", "dispatch")
    for file in sorted(files):
        assert (again / "bench" / file).read_bytes() == (dispatch / "bench" / file).read_bytes()
    # Nor are they left where some were.
    assert list((exported(tmp_path / "again", "dispatch", "--bench", "0") / "bench").iterdir()) == []
    without = exported(tmp_path / "without", "dispatch", "--bench", "0")
    assert not (without / "bench").exists()
    assert "sim:" not in (without / "expertbank.core").read_text()


def test_the_start_is_that_of_a_packed_image(tmp_path) -> None:
    """The writes of ``map.json``, on another page, with ``clear`` beside ``load`` and reads between them."""
    model, design = synth.small_block()
    bench = axi_bench(model, design, Top.GATE, None, None)
    assert bench is not None
    packed: PackMap = pack_folder(
        model,
        design,
        lambda _experts: bench.weights,
        tmp_path,
        batch_lengths=bench.batch_lengths,
        address=IMAGE_PAGE << 12,
        gate_alone=True,
    ).map
    folder = exported(tmp_path / "gate", "gate", "--bench", "1")
    lines = (folder / "bench" / "start.hex").read_text().split()
    operations = {0: "write", 1: "wait"}
    steps = [
        (operations[int(line[:2], 16)], int(line[2:6], 16), int(line[6:14], 16), int(line[14:], 16))
        for line in lines
        if int(line[:2], 16) in operations
    ]
    expected = [
        (step.op, step.address, step.value | 2 * (step.address == REGISTERS["CONTROL"]), step.mask or 0)
        for step in packed.registers
    ]
    assert steps == expected
    image = (tmp_path / "image.bin").read_bytes()
    words = [bytes.fromhex(line)[::-1] for line in (folder / "bench" / "image.hex").read_text().split()]
    assert b"".join(words) == image


def test_large_weights_have_no_bench_unasked(monkeypatch) -> None:
    """A full-size layer's image is beyond the bench's; the gate's router counts, the dispatcher has none."""
    from sim.workload import scaled_model

    model = scaled_model("mixtral-8x7b", 1)
    assert axi_bench(model, load_design("fpga"), None, "mixtral-8x7b", None) is None
    assert axi_bench(model, load_design("fpga"), Top.GATE, "mixtral-8x7b", 0) is None
    small = scaled_model("mixtral-8x7b", 64)
    monkeypatch.setattr(sys.modules[axi_bench.__module__], "MAX_IMAGE_BYTES", 1)
    assert axi_bench(small, load_design("fpga"), Top.GATE, "mixtral-8x7b", None) is None
    assert axi_bench(small, load_design("fpga"), Top.DISPATCH, "mixtral-8x7b", None) is not None


# In the long run


RATIOS = [1, 2, 3, 5, 7, 17]


@long
@pytest.mark.parametrize("name", TOPS)
def test_every_top_passes(name, tops) -> None:
    for pauses in (0, 64):
        for seed in (1, 2, 3):
            check_passes(tops(name), name, f"+pauses={pauses}", f"+seed={seed}")


@long
@pytest.mark.parametrize("name", TOPS)
def test_every_top_passes_with_ports_on_another_clock(name, tops) -> None:
    for bus in RATIOS:
        check_passes(tops(name, "--two-clocks"), name, f"+bus={bus}", "+pauses=64", f"+seed={bus}")


@long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gate", ("--pipeline", "deep")),
        ("dispatch", ("--pipeline", "deep", "--two-clocks")),
        ("tiny", ("--format", "int8")),
        ("tiny_pim", ("--secded",)),
        ("gate", ("--model", str(DATA / "deepseek_v3_s0.npz"), "--bench", "8")),
        ("dispatch", ("--model", str(DATA / "deepseek_v3_s0.npz"), "--bench", "8")),
        # A token is one beat: a packet has a token too few instead.
        ("dispatch", ("--model", "switch-base-128", "--scale", "16")),
        ("gate", ("--model", "mixtral-8x7b", "--scale", "256")),
        # Of a capacity, with windows that are decided at once.
        ("dispatch", ("--model", "nllb-moe-54b", "--scale", "64")),
    ],
)  # fmt: skip
def test_other_exports_pass(name, options, tops) -> None:
    folder = tops(name, *options)
    for plusargs in ([], ["+pauses=64", "+seed=5"]):
        done = run_verilator(folder, *plusargs, top=BENCH)
        assert done.returncode == 0, done.stdout
        assert "PASS: " in done.stdout


@long
def test_the_bench_sees_a_wrong_weight(tops, tmp_path) -> None:
    """A bit of the gate's router, and of an expert's weights; the image elsewhere in memory."""
    for name, line in (("gate", 0), ("tiny", 600)):
        broken = shutil.copytree(tops(name), tmp_path / name)
        image = broken / "bench" / "image.hex"
        text = image.read_text().splitlines()
        text[line] = f"{int(text[line][0], 16) ^ 8:x}{text[line][1:]}"
        image.write_text("\n".join([*text, ""]))
        done = run_verilator(broken, top=BENCH)
        assert done.returncode == 1
        assert re.search(r"^FAIL: output beat \d+ \(token \d+\) in cycle", done.stdout, re.MULTILINE), line
    broken = shutil.copytree(tops("gate"), tmp_path / "page")
    start = broken / "bench" / "start.hex"
    start.write_text(start.read_text().replace("00012345", "00012344"))
    done = run_verilator(broken, top=BENCH)
    assert done.returncode == 1
    assert re.search(r"^FAIL: m_axi: a burst leaves the image, address 0012344000", done.stdout, re.MULTILINE)


INSTANCE = "  eb_dispatch_axi_core core (\n"
VERILOG_BUGS = {
    "no beat is marked": (
        {"m_axis_tuser = core_out_0[28]": "m_axis_tuser = 1'h0"},
        "output beat 17 in cycle",
    ),
    "no packet ends": ({"m_axis_tlast = core_out_0[27]": "m_axis_tlast = 1'h0"}, "output beat 0 in cycle"),
    "a beat is lost": (
        {
            ".o__valid(m_axis_tvalid)": ".o__valid(given)",
            INSTANCE: "wire given; assign m_axis_tvalid = given & core_out_0[26:0] != 27'h1f8b866;\n"
            + INSTANCE,
        },
        "output beat 1 in cycle",
    ),
    "a beat is withdrawn": (
        {
            ".o__valid(m_axis_tvalid)": ".o__valid(given)",
            INSTANCE: "wire given; reg odd; always @(posedge aclk) odd <= aresetn & ~odd;\n"
            "assign m_axis_tvalid = given & odd;\n" + INSTANCE,
            ".o__ready(m_axis_tready)": ".o__ready(m_axis_tready & odd)",
        },
        r"output beat \d+ was withdrawn or changed",
    ),
    "short_token is not told": ({".in_0(kept)": ".in_0({kept[8:1], 1'h0})"}, "register 10c holds 00000100;"),
    "errors stay": (
        {"stays = bus_control_recover ? 9'h000 : kept": "stays = kept"},
        "register 10c holds 00000101; its bits ffffffff have to be 00000000",
    ),
    "tokens count twice": ({"tokens_out + 1'h1": "tokens_out + 2'h2"}, "register 120 holds 00000010;"),
    "no batch is done": (
        {"irq_status_done_set = was_busy & ~is_busy": "irq_status_done_set = 1'h0"},
        "running: 16 of 40 output beats, 16 of 39 input beats",
    ),
    "an interrupt is always there": (
        {".irq(irq)": ".irq()", INSTANCE: "assign irq = 1'h1;\n" + INSTANCE},
        "an interrupt that is not enabled",
    ),
    "a refusal is not told": (
        {
            ".s_axi_bresp(s_axi_bresp)": ".s_axi_bresp()",
            INSTANCE: "assign s_axi_bresp = 2'h0;\n" + INSTANCE,
        },
        "access to register 100 was answered with 0, not 2",
    ),
}


@long
@pytest.mark.parametrize("bug", VERILOG_BUGS)
def test_the_bench_sees_wrong_verilog(bug, dispatch, tmp_path) -> None:
    changes, message = VERILOG_BUGS[bug]
    folder = shutil.copytree(dispatch, tmp_path / "wrong")
    verilog = folder / "eb_dispatch_axi.v"
    text = verilog.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new, 1)
    verilog.write_text(text)
    done = run_verilator(folder, "+pauses=40", top=BENCH)
    assert done.returncode == 1
    assert re.search(f"^FAIL: {message}", done.stdout, re.MULTILINE), done.stdout


@icarus
@long
@pytest.mark.parametrize("name", TOPS)
def test_every_top_passes_in_icarus(name, tops) -> None:
    """In four-valued simulation: what is not valid is unknown, registers are unknown before reset."""
    done = run_icarus(tops(name), "+pauses=60", "+seed=7", top=BENCH)
    assert done.returncode == 0
    assert re.search(passed(name), done.stdout, re.MULTILINE)


@long
def test_fusesoc_simulates(dispatch, tmp_path) -> None:
    folder = shutil.copytree(dispatch, tmp_path / "core")
    done = fusesoc(folder, "sim")
    assert done.returncode == 0, done.stderr
    assert "PASS: 16 output beats" in done.stdout + done.stderr
