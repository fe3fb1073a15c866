"""Any bytes as any file: read, or refused in one line that names the file. Nothing else, and quickly."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.archive import read_array
from golden.vectors import read_vector
from sim.cli import main
from sim.routing import TraceShape
from sim.routing.formats import read_trace
from sim.sweep.space import load_space
from spec.banks import BankGeometry
from spec.errors import MAX_MESSAGE, InputError, InputWarning
from spec.families import load_config
from spec.files import PRESETS, preset_names
from spec.layout import layout_text, load_layout
from spec.load import load_design, load_device, load_dram, load_energy, load_entry, load_model
from tests.vector_files import meta_of, rewrite

DATA = Path(__file__).parent / "data"
VECTOR = DATA / "mixtral_s0.npz"
TINY_BANKS = BankGeometry.unplaced(load_model("mixtral-8x7b").scaled(64), load_design("pim"))
LAYOUT = layout_text(TINY_BANKS.round_robin(), TINY_BANKS, "mixtral-8x7b / 64 on pim")


def presets(folder: str) -> list[str]:
    return [(PRESETS / folder / f"{name}.toml").read_text() for name in preset_names(folder)]


# What is read -> file name, sound texts, reader.
READERS: dict[str, tuple[str, list[str], Callable[[Path], object]]] = {
    "model": ("f.toml", presets("models"), lambda path: load_entry(str(path))),
    "design": ("f.toml", presets("designs"), lambda path: load_design(str(path))),
    "device": ("f.toml", presets("devices"), lambda path: load_device(str(path))),
    "dram": ("f.toml", presets("dram"), lambda path: load_dram(str(path))),
    "energy": ("f.toml", presets("energy"), lambda path: load_energy(str(path))),
    "space": ("f.toml", presets("sweeps"), lambda path: load_space(str(path))),
    "layout": ("f.toml", [LAYOUT], lambda path: load_layout(path, TINY_BANKS)),
    "configuration": (
        "config.json",
        [path.read_text() for path in sorted(DATA.glob("configs*/*.json"))],
        load_config,
    ),
}
LITERALS = [
    *("nan", "inf", "-inf", "0", "-1", "1", "2", "65537", "0.5", "-0.0", "1e308", "1e-320", "true"),
    *("9223372036854775807", "1" + "0" * 30, "1" + "0" * 5000, "1979-05-27T07:32:00Z", "07:32:00"),
    *('""', '"x"', r'"\n"', r'"\u0000.toml"', r'"\u001b[31m"', "[]", "[[]]", "[0, 1]", "{}", "{a = 1}"),
    *("[" * 300 + "]" * 300, '{"a": 1}', "null", "[" * 100_000, '"' + "x" * 10_000 + '"'),
]
KEYS = ["x", '"a b"', r'"\u0000"', r'"\n"', "a.b", "__class__", r'"\u202e"', '"' + "k" * 10_000 + '"']
VALUE = re.compile(r'(?<=[=:]) *("[^"\n]*"|\[[^]\n]*\]|[\w.+-]+)')


@st.composite
def mutated(draw: st.DrawFn, texts: list[str]) -> bytes:
    """Return a sound text with values, keys, lines or bytes changed."""
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["value", "value", "value", "key", "twice", "line", "cut"]))
        values, lines = list(VALUE.finditer(text)), text.splitlines(keepends=True)
        if kind == "value" and values:
            match, value = draw(st.sampled_from(values)), draw(st.sampled_from(LITERALS))
            text = f"{text[: match.start()]} {value}{text[match.end() :]}"
        elif lines:
            place = draw(st.integers(0, len(lines) - 1))
            added = {
                "key": [f"{draw(st.sampled_from(KEYS))} = {draw(st.sampled_from(LITERALS))}\n"],
                "twice": [lines[place]],
            }
            lines[place:place] = added.get(kind, [])
            if kind == "line":
                del lines[place]
            text = "".join(lines[:place] if kind == "cut" else lines)
    content = bytearray(text.encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


def refusal(path: Path, read: Callable[[Path], object]) -> str | None:
    """Return why a file is refused, None if it is read; fail unless that is one line and quick."""
    started = time.process_time()
    message = None
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", InputWarning)
            read(path)
        assert all(str(one.message).isprintable() for one in told)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        assert len(message) <= MAX_MESSAGE + len("...")
    assert time.process_time() - started < 5
    return message


@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path, kind):
    name, texts, read = READERS[kind]
    path = tmp_path / name
    for text in texts:
        path.write_text(text)
        assert refusal(path, read) is None or kind == "configuration"

    @given(mutated(texts))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        refusal(path, read)

    check()


NOT_FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: path.mkdir(),
    "a pipe that nobody writes to": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "missing": lambda path: None,
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a gigabyte that is not there": lambda path: sparse(path, 1 << 30),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" * 100),
    "deep": lambda path: path.write_text("[" * 500_000),
}


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "vector": ("f.npz", read_vector),
    "array": ("f.npy", read_array),
    **{
        f"routing {suffix}": (f"f{suffix}", lambda path: read_trace(path, TraceShape()))
        for suffix in (".npz", ".npy", ".json", ".jsonl", ".csv")
    },
}


@pytest.mark.parametrize("what", NOT_FILES)
@pytest.mark.parametrize("kind", [*READERS, *OTHERS])
def test_what_is_no_such_file_is_refused_in_little_memory(tmp_path, kind, what):
    name, read = OTHERS[kind] if kind in OTHERS else READERS[kind][::2]
    path = tmp_path / name
    NOT_FILES[what](path)
    tracemalloc.start()
    message = refusal(path, read)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message is not None
    assert peak < 200 << 20


def test_names_with_control_characters_are_printed_escaped(tmp_path):
    """A key of a file went to the terminal as it was."""
    path = tmp_path / "d.toml"
    path.write_text('"\\u001b[31m\\n" = 1\n' + presets("designs")[0])
    message = refusal(path, READERS["design"][2])
    assert message.startswith(f"{path}: \\x1b[31m\\n: unknown key; known are ")


def test_a_value_of_a_million_characters_is_not_printed_in_full(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text(presets("designs")[0].replace("rows = 16", f'rows = "{"x" * 500_000}"'))
    assert refusal(path, READERS["design"][2]).endswith("xxx...")


def test_a_file_named_by_a_file_may_have_no_name(tmp_path):
    """``pathlib`` raises ValueError for a NUL in a name."""
    path = tmp_path / "d.toml"
    path.write_text(
        'energy = "\\u0000.toml"\n' + re.sub("^energy.*\n", "", presets("designs")[0], flags=re.M)
    )
    with pytest.raises(InputError, match=r"^\\x00\.toml: cannot be read: embedded null byte$"):
        load_design(str(path))


def test_meta_of_a_vector_with_a_number_of_thousands_of_digits(tmp_path):
    path = tmp_path / "v.npz"
    with np.load(VECTOR) as archive:
        arrays = dict(archive.items())
    np.savez(path, **arrays | {"meta": np.array('{"seed": 1' + "0" * 5000 + "}")})
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(path))}: meta: is not valid JSON: Exceeds the limit"
    ):
        read_vector(path)


@given(st.data())
def test_a_damaged_vector_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    rewrite(VECTOR, path, {})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of what can break lies in the headers, at a member's start and at the file's end.
        near = data.draw(st.sampled_from([0, len(content) - 600, content.find(b"NUMPY")]))
        place = min(max(0, near + data.draw(st.integers(0, 599))), len(content) - 1)
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    refusal(path, read_vector)


@given(st.dictionaries(st.sampled_from(sorted(meta_of(VECTOR)["config"])), st.sampled_from([
    None, True, -1, 0, 1, 2, 1 << 70, 0.5, float("nan"), float("inf"), "", "x", [], [[]], {}, {"a": 1},
]), min_size=1, max_size=3))  # fmt: skip
def test_a_vector_of_another_configuration_is_read_or_refused(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "configured.npz"
    meta = meta_of(VECTOR)
    rewrite(VECTOR, path, {"meta": {**meta, "config": {**meta["config"], **changes}}})
    refusal(path, read_vector)


# The command line.

HOSTILE = ["nan", "inf", "-inf", "-1", "0", "x", " ", "1.5", "1e9", "9" * 30, "1" * 5000, "\x1b[31m", "a\nb"]
SIM = ["sim", "--model", "mixtral-8x7b", "--engine", "model", "--scale", "64"]
GEMV = ["pim", "gemv", "--design", "hbm2-pim", "--channels", "2", "--rows", "64", "--cols", "64"]
STREAM = ["dram", "stream", "--standard", "hbm2-2000", "--pattern", "random", "--requests", "100"]
ROUTING = ["routing", "uniform", "--model", "mixtral-8x7b", "--tokens", "4"]
# Command -> options, and values of HOSTILE that they take.
OPTIONS: list[tuple[list[str], dict[str, str]]] = [
    (SIM, {"--tokens": "", "--scale": "", "--experts": "", "--format": "", "--phase": "", "--routing": "",
           "--routing-layer": "", "--layer": "", "--design": "", "--engine": "", "--model": "", "--sim": "",
           "--layout": "", "--trace": "", "--seed": "0"}),
    (GEMV, {"--channels": "", "--rows": "", "--cols": "", "--batch": "", "--design": ""}),
    (STREAM, {"--requests": "", "--pattern": "", "--standard": "", "--queue": "", "--policy": "",
              "--refresh": "", "--format": "", "--mapping": ""}),
    (ROUTING, {"--tokens": "", "--layers": "", "--seed": "0", "--model": ""}),
    (["verilog", "--model", "mixtral-8x7b", "--out", "v"], {"--design": "", "--model": "", "--scale": "1e9"}),
    (["layout", "--model", "mixtral-8x7b", "--design", "pim"],
     {"--scale": "", "--design": "", "--layout": ""}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option", "taken"),
    [(command, option, taken) for command, options in OPTIONS for option, taken in options.items()],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_hostile_values_of_options(tmp_path, monkeypatch, capsys, command, option, taken):
    monkeypatch.chdir(tmp_path)
    for value in ["", *HOSTILE]:
        if value and value == taken:
            continue
        arguments = list(command)
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments += [option, value]
        started = time.process_time()
        assert main([*arguments, "--json"]) == 2, value
        # Where nothing is compiled yet, an engine may be first.
        assert time.process_time() - started < 60
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n") and err[:-1].isprintable(), err
        assert err.startswith("expertbank: ")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [(["sim", "--model", ""], "model"), (["verilog", "--out="], "out"), (["check", ""], "argument 2")],
)
def test_empty_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, key):
    """``--out ''`` wrote into the folder one is in."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"expertbank: {key}: must not be empty\n")


def test_a_pipe_is_no_trace_of_commands_or_requests(tmp_path, capsys):
    """Reading one would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for options in (
        ["dram", "trace", str(pipe), "--standard", "ddr4-2400"],
        ["dram", "check", str(pipe)],
        ["dram", "check", str(pipe), "--format", "ramulator", "--standard", "ddr4-2400"],
    ):
        assert main(options) == 2
        assert capsys.readouterr().err == f"expertbank: {pipe}: is not a regular file\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["bench", "--model", "none"], r"model: is neither a preset .* nor a \.toml file: 'none'"),
        (["bench", "--model", "phi-3.5-moe"], r"gating\.selection: must be 'top_k' in hardware, .*"),
        (["claims", "--no-verilog", "--vectors", "nowhere"], r"nowhere: holds no \.npz file"),
        (
            ["policies", "cache", "--model", "mixtral-8x7b", "--seed", str(1 << 63)],
            r"seed: must be in 0\.\.9223372036854775807, not 9223372036854775808",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_else(capsys, options, line):
    assert main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"expertbank: {line}\n", captured.err)
