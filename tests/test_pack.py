"""Packed layers: the bytes that a run of the Verilog loads, found by their map; nothing in it is trusted."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from golden.experts import calibrate
from golden.formats import bf16_decode, bf16_encode
from golden.image import router_image
from golden.layer_bf16 import pack_expert
from golden.vectors import read_vector
from golden.weights import random_weights
from sim.accelerator import layer_job, scales_of, token_beats
from sim.cli import main
from sim.pack import pack, read_pack, register_steps
from sim.pim_layer import pim_job
from sim.routing import parse_routing
from sim.synth import small_block
from sim.workload import random_workload, vector_workload
from spec.banks import BankGeometry
from spec.errors import InputError
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.load import load_design, load_model
from spec.registers import Top, register_map
from tests.checkpoint_files import write_checkpoint

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
TINY, TINY_PIM = ROOT / "tests" / "tiny.toml", ROOT / "tests" / "tiny_pim.toml"
# Experts alone; a shared one and a selection bias; biases; an output bias behind the router.
VECTORS = ["mixtral_s0", "deepseek_v3_s0", "gpt_oss_s0", "jetmoe_s0"]
FORMATS = ["bf16", "int8", "w4a8"]


def packed_by_command(tmp_path: Path, *arguments: str) -> Path:
    out = tmp_path / "packed"
    assert main(["pack", *arguments, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("name", VECTORS)
def test_the_gate_alone_gets_its_router_and_its_registers(name, tmp_path) -> None:
    """What the gate's own bench loads, and no output bias behind it."""
    vector = str(DATA / f"{name}.npz")
    packed = read_pack(
        packed_by_command(tmp_path, "--model", vector, "--design", "gate", "--address", "0x5000")
    )
    work = vector_workload(vector, None)
    geometry = ImageGeometry.of(work.model, small_block()[1]).gate
    weights = work.weights
    router = router_image(
        geometry,
        bf16_encode(weights.router),
        weights.logit_bias,
        weights.selection_bias,
        weights.shared_gate_bits,
    )
    content = packed.image("m_axi")
    assert np.array_equal(content[: 2 * router.size], router.view(np.uint8))
    assert not content[2 * router.size :].any()
    assert packed.map.design == "gate"
    assert [region.name for region in packed.map.files[0].regions] == ["router"]
    top = {register.name for register in register_map(Top.GATE)}
    steps = [(step.op, step.register, step.value) for step in packed.map.registers]
    assert steps == [("write", "IMAGE_PAGE", 5), ("write", "CONTROL", 1), ("wait", "STATUS", 1)]
    assert top >= {register for _, register, _ in steps}


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("name", VECTORS)
def test_an_arrays_image_is_what_its_run_loads(name, number_format, tmp_path) -> None:
    vector = str(DATA / f"{name}.npz")
    # (A row of the tiny array is too short for int8's scale and bias.)
    design = str(TINY) if number_format == "bf16" else "fpga"
    folder = packed_by_command(tmp_path, "--model", vector, "--design", design, "--format", number_format)
    packed = read_pack(folder)
    work = vector_workload(vector, None)
    _, _, spec = layer_job(work, load_design(design, number_format))
    assert np.array_equal(packed.image("m_axi"), spec.memories["o_ar"].image)
    steps = list(register_steps(spec.prologue))
    assert list(packed.map.registers) == steps[: len(packed.map.registers)]
    assert [step.register for step in steps[len(packed.map.registers) :]] == ["CONTROL"]  # counters cleared


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize(("router", "ecc"), [("own", "none"), ("banks", "none"), ("own", "secded")])
def test_channels_are_what_their_run_loads(router, ecc, number_format, tmp_path) -> None:
    if router == "banks" and number_format != "bf16":
        pytest.skip("refused by the design")
    more = f'channels = 2\nrouter = "{router}"\nbanks_per_unit = 2\necc = "{ecc}"'
    text = TINY_PIM.read_text().replace("channels = 1", more)
    path = tmp_path / "two.toml"
    path.write_text(text)
    vector = str(DATA / "deepseek_v3_s0.npz")
    folder = packed_by_command(tmp_path, "--model", vector, "--design", str(path), "--format", number_format)
    packed = read_pack(folder)
    design, work = load_design(str(path), number_format), vector_workload(vector, None)
    image = ImageGeometry.of(work.model, design)
    beats = token_beats(image, design, work.tokens, work.batch_lengths)
    banks, _, spec = pim_job(work, design, beats)
    assert np.array_equal(packed.image("m_axi"), spec.memories["o_ar"].image)
    for channel in range(2):
        wanted = np.asarray(spec.banks[f"mem_{channel}"].image)
        assert np.array_equal(packed.image(f"mem_{channel}"), wanted.ravel())
    assert list(packed.map.registers) == list(register_steps(spec.prologue))[: len(packed.map.registers)]
    # The map's rows are what PLACE_ROW gets.
    rows = {
        (region.name, entry.memory): region.first_row
        for entry in packed.map.files
        for region in entry.regions
        if entry.memory != "m_axi"
    }
    bases = banks.bases(banks.round_robin())
    assert rows["expert 3", "mem_1"] == bases[1][3] // banks.sides
    assert ("router", "mem_0") in rows or router == "own"


def test_experts_in_several_groups_are_those_of_one(tmp_path, monkeypatch) -> None:
    """Memory for one expert at a time gives the same bytes; the supply is asked in order of numbers."""
    model, design = load_model("deepseek-v3").scaled(256), load_design("fpga")
    asked: list[list[int]] = []

    def supply(experts):
        asked.append(list(experts))
        return random_weights(model, 5, experts=experts)

    monkeypatch.setattr("sim.pack.BATCH_BYTES", 100 * 4 * 3 * model.d_model * model.ffn.d_expert)
    packed = pack(model, design, supply, tmp_path / "some", batch_lengths=[16])
    assert asked == [list(range(100)), list(range(100, 200)), list(range(200, 256))]
    work = random_workload(model, 2, parse_routing("uniform"), 5)
    _, _, spec = layer_job(work, design)
    assert np.array_equal(packed.image("m_axi"), spec.memories["o_ar"].image)


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory) -> Path:
    """Return a folder with the weights of a vector as its layer 7."""
    vector = read_vector(DATA / "mixtral_s0.npz")
    model = vector.model
    config = {
        "model_type": "mixtral",
        "hidden_size": model.d_model,
        "intermediate_size": model.ffn.d_expert,
        "num_local_experts": model.gating.num_experts,
        "num_experts_per_tok": model.gating.top_k,
    }
    layer = "model.layers.7.block_sparse_moe."
    tensors = {f"{layer}gate.weight": ("F32", vector.weights.router)}
    for expert in range(model.gating.num_experts):
        own = vector.weights.expert(expert)
        for name, matrix in (("w1", own.gate), ("w3", own.up), ("w2", own.down)):
            tensors[f"{layer}experts.{expert}.{name}.weight"] = ("F32", matrix)
    return write_checkpoint(tmp_path_factory.mktemp("folder"), config, tensors)


def test_a_folders_layer_and_an_address(mixtral_folder, tmp_path) -> None:
    options = ["--design", str(TINY)]
    one = packed_by_command(tmp_path / "one", "--model", str(DATA / "mixtral_s0.npz"), *options)
    two = packed_by_command(
        tmp_path / "two", "--model", str(mixtral_folder), "--layer", "7", "--address", "0x10000000", *options
    )
    assert (one / "image.bin").read_bytes() == (two / "image.bin").read_bytes()
    described = read_pack(two).map
    assert described.layer == "model.layers.7"
    assert described.files[0].address == 0x1000_0000
    assert described.registers[0].register == "IMAGE_PAGE"
    assert described.registers[0].value == 0x1000_0000 // PAGE_BYTES


def test_verilog_of_a_folder_has_the_size_that_is_packed(mixtral_folder, tmp_path) -> None:
    """It was scaled without a word, as a preset is, and did not fit the folder's own image."""
    for model, out in ((mixtral_folder, "folder"), (DATA / "mixtral_s0.npz", "vector")):
        options = ["--model", str(model), "--design", str(TINY), "--bench", "0"]
        assert main(["verilog", *options, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "folder/eb_tiny.v").read_bytes() == (tmp_path / "vector/eb_tiny.v").read_bytes()


@pytest.mark.parametrize("source", ["vector", "folder"])
def test_scales_of_ones_own_tokens(source, mixtral_folder, tmp_path) -> None:
    """The image is that of a run with these tokens, whatever their size is."""
    vector = read_vector(DATA / "mixtral_s0.npz")
    model, rng = vector.model, np.random.default_rng(1)
    tokens = 40 * rng.standard_normal((5, model.d_model)).astype(np.float32)
    np.save(tmp_path / "tokens.npy", tokens)
    layer = ["--model", str(mixtral_folder), "--layer", "7"]
    given = layer if source == "folder" else ["--model", str(DATA / "mixtral_s0.npz")]
    options = ["--design", str(TINY), "--format", "int8", "--calibration", str(tmp_path / "tokens.npy")]
    packed = read_pack(packed_by_command(tmp_path / "out", *given, *options))
    scales = calibrate(model, vector.weights, bf16_decode(bf16_encode(tokens)))
    written = {step.register: step.value for step in packed.map.registers}
    assert (written["SCALE_X"], written["SCALE_H"]) == (scales.x.word, scales.hidden.word)
    assert np.ldexp(scales.x.mantissa, scales.x.shift) * np.abs(tokens).max() == pytest.approx(127, rel=1e-2)
    image = ImageGeometry.of(model, load_design(str(TINY), "int8"))
    first = packed.image("m_axi")[image.expert_page(0) * PAGE_BYTES :]
    expert = pack_expert(image, vector.weights, 0, scales).image()
    assert np.array_equal(first[: len(expert)], expert)


def test_tokens_that_are_none_are_refused(tmp_path, capsys) -> None:
    file = tmp_path / "tokens.npy"
    for tokens, rule in (
        (np.zeros((2, 3), np.float32), r"must be \(tokens, 32\) of 1 to 1048576 tokens, not \(2, 3\)"),
        (np.zeros((0, 32), np.float32), r"must be \(tokens, 32\) of 1 to 1048576 tokens, not \(0, 32\)"),
        (np.zeros((2, 32), np.int64), "must hold floating-point numbers, not int64"),
        (np.full((2, 32), 1e39), r"must hold numbers that are finite in bf16, not \[1\.e\+39\]"),
        (np.full((2, 32), np.nan), r"must hold numbers that are finite in bf16, not \[nan\]"),
    ):
        np.save(file, tokens)
        options = ["--model", str(DATA / "mixtral_s0.npz"), "--design", str(TINY), "--format", "int8"]
        given = [*options, "--calibration", str(file), "--out", str(tmp_path / "out")]
        assert main(["pack", *given]) == 2
        assert re.fullmatch(rf"expertbank: {re.escape(str(file))}: {rule}\n", capsys.readouterr().err)
        assert not (tmp_path / "out").exists()


def test_regions_cover_what_is_not_zero(tmp_path) -> None:
    out = packed_by_command(tmp_path, "--model", str(DATA / "mixtral_s0.npz"), "--design", str(TINY_PIM))
    packed = read_pack(out)
    for entry in packed.map.files:
        rest = packed.image(entry.memory).copy()
        for region in entry.regions:
            part = rest[region.offset : region.offset + region.bytes]
            assert part.any()
            part[:] = 0
        assert not rest.any()


def test_only_some_experts_are_held(tmp_path) -> None:
    vector = str(DATA / "mixtral_s0.npz")
    out = packed_by_command(tmp_path, "--model", vector, "--design", str(TINY_PIM), "--hold", "0,2-3")
    [_, channel] = read_pack(out).map.files
    assert [region.name for region in channel.regions] == ["expert 0", "expert 2", "expert 3"]
    banks = BankGeometry.unplaced(read_vector(Path(vector)).model, load_design(str(TINY_PIM)))
    assert banks.hold([0, 2, 3])[:4] == [[0], [], [0], [0]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--calibration", "t.npy"], "calibration: is for scales of int8 and w4a8, which bf16 has not"),
        (["--design", "dispatch"], "design: must not be 'dispatch', which loads nothing"),
        (["--address", "5"], "address: must be a multiple of 4096, at least 0, not 0x5"),
        (["--address", "-4096"], "address: must be a multiple of 4096, at least 0, not -0x1000"),
        (["--address", "x"], "address: must be a whole number such as 0x10000000, not 'x'"),
        (["--address", "0xfffffff000"], "address: must leave 692224 bytes below 2**40, not 0xfffffff000"),
        (["--design", "pim", "--address", "0x10000000000"],
         "address: must leave 1024 bytes below 2**40, not 0x10000000000"),
        (["--hold", "0"], "hold: is for engine pim, not for design fpga"),
        (["--layout", "x.toml"], "layout: is for engine pim, not for design fpga"),
        (["--tokens", "0"], "tokens: must be in 1..1048576, not 0"),
        (["--design", "gate", "--hold", "0"], "hold: is for engine pim, not for design gate"),
        (["--design", "gate", "--format", "int8"], "format: must be bf16 for 'gate', not int8"),
        (["--seed", "-1"], "seed: must be in 0..9223372036854775807, not -1"),
        (["--design", "pim", "--hold", "8"], "hold: must be in 0..7, not 8"),
        (["--design", "pim", "--hold", "3-1"], "hold: must have ranges from low to high, not '3-1'"),
        (["--design", "pim", "--hold", "a"], "hold: must be numbers and ranges such as 0,3,8-11, not 'a'"),
        (["--layer", "3"], "layer: is for a folder with weights, not for mixtral-8x7b"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(arguments, line, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    given = ["--model", "mixtral-8x7b", "--scale", "64", "--out", str(out)]
    assert main(["pack", *given, *arguments]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {line}\n")
    assert not out.exists()


def test_weights_that_are_refused_leave_no_folder(tmp_path, capsys) -> None:
    """Found out while they are read, when the folder is there already; one that was there stays."""
    config = {
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
    layer = "model.layers.0.block_sparse_moe."
    tensors = {f"{layer}gate.weight": ("F32", np.zeros((2, 32)))}
    tensors |= {
        f"{layer}experts.{expert}.{name}.weight": ("BF16", np.zeros(shape))
        for expert in range(2)
        for name, shape in (("w1", (16, 32)), ("w2", (32, 16)), ("w3", (15 + expert, 32)))
    }
    source = write_checkpoint(tmp_path / "folder", config, tensors)
    line = (
        f"expertbank: {source / 'model.safetensors'}: {layer}experts.0.w3.weight:"
        " must have shape (16, 32), not (15, 32)\n"
    )
    given = ["pack", "--model", str(source), "--layer", "0", "--design", str(TINY)]
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr() == ("", line)
    assert not (tmp_path / "out").exists()
    there = tmp_path / "there"
    there.mkdir()
    assert main([*given, "--out", str(there)]) == 2
    assert list(there.iterdir()) == []


def test_banks_that_are_too_small_are_named(tmp_path, capsys) -> None:
    assert main(["pack", "--model", "deepseek-v3", "--design", "pim", "--out", str(tmp_path / "out")]) == 2
    line = r"expertbank: pim\.dram: has \d+ rows per bank, but the 129 experts of channel 0 need \d+\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    out = tmp_path / "out"
    assert main(["pack", "--model", "mixtral-8x7b", "--scale", "64", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"expertbank: {out}: needs 692224 bytes, but 1000 are free\n"
    assert not out.exists()


def test_what_breaks_midway_leaves_the_earlier_pack(tmp_path) -> None:
    model, design = read_vector(DATA / "mixtral_s0.npz").model, load_design(str(TINY))

    def broken(_experts):
        raise InputError("is not finite", file="weights")

    out = tmp_path / "out"
    sound = pack(model, design, lambda experts: random_weights(model, 1, experts=experts), out,
                 batch_lengths=[4])  # fmt: skip
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match=r"^weights: is not finite$"):
        pack(model, design, broken, out, batch_lengths=[4])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert read_pack(out).map == sound.map


def test_a_new_file_is_never_beside_an_old_map(tmp_path, monkeypatch) -> None:
    model, design = read_vector(DATA / "mixtral_s0.npz").model, load_design(str(TINY_PIM))
    out = tmp_path / "out"

    def again(seed: int) -> None:
        pack(model, design, lambda experts: random_weights(model, seed, experts=experts), out,
             batch_lengths=[4])  # fmt: skip

    again(1)
    old, replace = (out / "image.bin").read_bytes(), Path.replace

    def stops(path: Path, target: Path) -> Path:
        if path.name == "channel_0.bin":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        again(2)
    assert (out / "image.bin").read_bytes() != old
    assert not (out / "map.json").exists()


def test_a_pack_of_another_design_leaves_no_file_of_the_earlier_one(tmp_path) -> None:
    model = read_vector(DATA / "mixtral_s0.npz").model
    supply = partial(random_weights, model, 1)
    out = tmp_path / "out"
    for design in (TINY_PIM, TINY):
        packed = pack(model, load_design(str(design)), lambda experts: supply(experts=experts), out,
                      batch_lengths=[4])  # fmt: skip
        (out / "channel_of_mine.bin").touch()
        names = {entry.file for entry in packed.map.files}
        assert {file.name for file in out.iterdir()} == {*names, "map.json", "channel_of_mine.bin"}
    assert names == {"image.bin"}


@pytest.mark.slow
def test_a_killed_process_leaves_no_map(tmp_path) -> None:
    """Killed while it packs: whatever lies there, no map vouches for it, and the next run mends it."""
    out = tmp_path / "out"
    given = ["pack", "--model", "deepseek-v3", "--scale", "16", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "sim.cli", *given], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".pack-*/image.bin")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "map.json").exists()
    with pytest.raises(InputError, match=rf"^{re.escape(str(out))}/map\.json: cannot be read: "):
        read_pack(out)


# Reading back

FILE_KEYS = ["address", "bytes", "file", "memory", "regions", "sha256", "word_bytes"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return packed_by_command(
        tmp_path_factory.mktemp("sound"), "--model", str(DATA / "mixtral_s0.npz"), "--design", str(TINY_PIM)
    )


def changed(path: list, value: object):
    def change(table):
        place = table
        for key in path[:-1]:
            place = place[key]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (changed(["kind"], "x"), "map.json: kind: must be 'expertbank-image-1', not 'x'"),
        (changed(["byte_order"], "big"), "map.json: byte_order: must be 'little', not 'big'"),
        (changed(["model"], None), "map.json: model: is missing"),
        (changed(["model"], 3), "map.json: model: must be of type str, not 3"),
        (changed(["files"], 3), "map.json: files: must be a list, not 3"),
        (changed(["files", 0], []), "map.json: files.0: must be a table, not []"),
        (changed(["files", 0, "more"], 1),
         f"map.json: files.0.more: unknown key; known are {', '.join(FILE_KEYS)}"),
        (changed(["files", 0, "file"], "../image.bin"),
         "map.json: files.0.file: must be 'image.bin', not '../image.bin'"),
        (changed(["files", 1, "memory"], "m_axi"),
         "map.json: files.1.file: must be 'image.bin', not 'channel_0.bin'"),
        (changed(["files", 0, "memory"], "disk"),
         "map.json: files.0.memory: must be m_axi or mem_<n>, not 'disk'"),
        (changed(["files", 0, "bytes"], 0), "map.json: files.0.bytes: must be in 1..2**63 - 1, not 0"),
        (changed(["files", 0, "bytes"], 1 << 63),
         f"map.json: files.0.bytes: must be in 1..2**63 - 1, not {1 << 63}"),
        (changed(["files", 0, "bytes"], 8192), "image.bin: must have 8192 bytes, as map.json says, not 4096"),
        (changed(["files", 0, "sha256"], "0"), "image.bin: must have sha256 0, as map.json says, not <sum>"),
        (changed(["files", 0, "regions", 0, "offset"], 1 << 70),
         "map.json: files.0.regions.0: must lie within 4096 bytes"),
        (changed(["registers", 0, "address"], 64),
         "map.json: registers.0: must be a register and its address, not 'IMAGE_PAGE' at 64"),
        (changed(["registers", 0, "op"], "poke"),
         "map.json: registers.0.op: must be write or wait, not 'poke'"),
        (changed(["registers", 0, "value"], 1 << 32),
         "map.json: registers.0: must have a value of 32 bits, and a mask to wait for one"),
        (changed(["registers", 0, "mask"], 1),
         "map.json: registers.0: must have a value of 32 bits, and a mask to wait for one"),
    ],
)  # fmt: skip
def test_a_map_that_says_something_else_is_refused(change, line, sound, tmp_path) -> None:
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = json.loads((sound / "map.json").read_text())
    change(table)
    (tmp_path / "map.json").write_text(json.dumps(table))
    with pytest.raises(InputError) as caught:
        read_pack(tmp_path)
    said = re.sub(r"not [0-9a-f]{64}$", "not <sum>", str(caught.value))
    assert said == f"{tmp_path}/{line}"


def refusal(folder: Path) -> str | None:
    """Return in what words a folder is refused, None if it is read."""
    try:
        read_pack(folder)
    except InputError as error:
        return str(error)
    return None


def test_any_damage_is_refused(sound, tmp_path) -> None:
    """Cut, flipped or filled at random: refused in one line, or read as what it was."""
    seed = 11
    rng = np.random.default_rng(seed)
    print("seed", seed)
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("map.json", "image.bin"):
        good = (sound / name).read_bytes()
        for _ in range(150):
            bad = bytearray(good)
            for place in rng.integers(0, len(bad), rng.integers(1, 4)):
                bad[place] ^= 1 << int(rng.integers(0, 8))
            (tmp_path / name).write_bytes(bad[: rng.integers(0, len(bad))] if rng.random() < 0.3 else bad)
            message = refusal(tmp_path)
            if message is None:
                # A label only (model, design, a region), or a number within its rules.
                assert name == "map.json"
            else:
                assert message.startswith(f"{tmp_path}/")
                assert message.isprintable()
        (tmp_path / name).write_bytes(good)


@pytest.mark.parametrize(("design", "number_format"), [(str(TINY), "int8"), ("fpga", "w4a8")])
def test_a_pack_has_the_scales_of_its_tokens(design, number_format, tmp_path) -> None:
    out = packed_by_command(
        tmp_path, "--model", str(DATA / "mixtral_s0.npz"), "--design", design, "--format", number_format
    )
    design = load_design(design, number_format)
    scales = scales_of(vector_workload(str(DATA / "mixtral_s0.npz"), None), design)
    words = {step.register: step.value for step in read_pack(out).map.registers}
    assert (words["SCALE_X"], words["SCALE_H"]) == (scales.x.word, scales.hidden.word)
