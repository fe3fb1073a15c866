"""Routing traces of other tools: fixtures as they write them, back and forth, and hostile files."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.commands.routing import FORMATS as OFFERED
from sim.routing import TraceShape
from sim.routing.formats import FORMATS, read_trace
from sim.routing.synthetic import KINDS
from sim.routing.trace import DECODE, NO_EXPERT, PREFILL, UNKNOWN, Trace, make_trace, stacked
from spec.errors import InputError
from tests.routing_cases import FIRST, FOLDER, KNOWN, SECOND, random_trace

# file -> (source, layers, phases, positions known)
PROMPT_AND_DECODE = [PREFILL, PREFILL, DECODE]
UNMARKED = [UNKNOWN] * 3
FIXTURES = {
    "canonical.npz": ("hand", [1, 2], PROMPT_AND_DECODE),
    "vllm_lists.json": ("vllm", [0, 1], PROMPT_AND_DECODE),
    "vllm_text.jsonl": ("vllm", [0, 1], PROMPT_AND_DECODE),
    "sglang_generate.json": ("sglang", [1, 2], PROMPT_AND_DECODE),
    "sglang_openai.jsonl": ("sglang", [1, 2], PROMPT_AND_DECODE),
    "megatron.jsonl": ("megatron", [1, 2], PROMPT_AND_DECODE),
    "llama_cpp.csv": ("llama-cpp", [1, 2], UNMARKED),
    "llama_cpp_tokens.csv": ("llama-cpp", [1, 2], UNMARKED),
    "dynande.csv": ("dynande", [1, 2], UNMARKED),
}


def read(path: Path, shape: TraceShape = KNOWN, **options: str) -> Trace:
    return read_trace(path, shape, **options)


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture(name):
    source, layers, phases = FIXTURES[name]
    trace = read(FOLDER / name)
    assert trace.source == source
    assert trace.ids.tolist() == [FIRST, SECOND]
    assert trace.layers.tolist() == layers
    assert trace.phase.tolist() == phases
    assert trace.num_experts == 4
    assert trace.aligned
    if name.startswith(("dynande", "canonical")):
        assert trace.weights.tolist() == np.tile([0.625, 0.25], (2, 3, 1)).tolist()
    else:
        assert trace.weights is None
    if name == "megatron.jsonl":
        assert trace.request.tolist() == [0, 0, 1]  # a batch of a step each
        assert trace.position.tolist() == [0, 1, 0]
    else:
        assert trace.request.tolist() == [0, 0, 0]
        assert trace.position.tolist() == [0, 1, 2]


def test_fixtures_of_one_layer():
    trace = read(FOLDER / "plain.npz")
    assert (trace.ids.tolist(), trace.layers.tolist()) == ([FIRST], [0])
    trace = read(FOLDER / "model_layer12_part.csv")
    assert (trace.ids.tolist(), trace.layers.tolist()) == ([FIRST], [12])
    trace = read(FOLDER / "vllm_offline.npy", npy="vllm")
    assert trace.ids.tolist() == [FIRST, SECOND]


def test_fixtures_of_loads():
    """The order within a token is not in the file, nor which experts of a batch were together."""
    trace = read(FOLDER / "loads_tokens.npy", TraceShape())
    assert trace.ids.tolist() == [[sorted(row) for row in layer] for layer in (FIRST, SECOND)]
    assert (trace.num_experts, trace.aligned) == (4, True)
    batches = read(FOLDER / "loads_batches.npy")
    assert batches.request.tolist() == [0, 0, 1]
    assert not batches.aligned
    for layer, rows in zip(batches.ids, (FIRST, SECOND), strict=True):
        assert sorted(layer[:2].ravel()) == sorted(rows[0] + rows[1])
        assert sorted(layer[2]) == sorted(rows[2])


def test_command_offers_every_format():
    assert tuple(FORMATS) == OFFERED


# Back and forth: what a format has room for comes back, and so does what the canonical trace says of it.

KEPT = {
    "canonical": {"ids", "layers", "phase", "request", "position", "weights"},
    "vllm": {"ids", "phase", "request", "position"},
    "sglang": {"ids", "layers", "phase", "request", "position"},
    "megatron": {"ids", "layers", "phase"},
    "llama-cpp": {"ids", "layers"},
    "llama-cpp-tokens": {"ids", "layers"},
    "dynande": {"ids", "layers", "weights"},
}


def written(trace: Trace, form: str, folder: Path) -> Path:
    path = folder / f"trace{FORMATS[form].suffix}"
    content = FORMATS[form].write(trace)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def same(one: Trace, other: Trace, fields: set[str]) -> None:
    for field in fields:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
    assert one.aligned == other.aligned


@pytest.mark.parametrize("phases", [True, False])
@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("form", KEPT)
def test_there_and_back(tmp_path, form, top_k, phases):
    trace = random_trace(top_k=top_k, phases=phases, seed=top_k)
    back = read(written(trace, form, tmp_path), TraceShape(top_k=top_k, num_layers=3, num_experts=16))
    same(trace, back, KEPT[form])
    assert back.num_experts == 16


def test_there_and_back_with_dense_layers(tmp_path):
    trace = dataclasses.replace(random_trace(weights=False), layers=np.array([1, 4, 5]))
    back = read(written(trace, "sglang", tmp_path), TraceShape(top_k=4, num_experts=16))
    same(trace, back, KEPT["sglang"])


@pytest.mark.parametrize("name", ["uniform", "ragged:1:5", "hot_expert", "burst"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_synthetic_trace_through_every_format(tmp_path, form, name):
    from sim.routing import parse_routing, shape_of, synthetic_trace
    from spec.load import load_model

    model = load_model("deepseek-v3")
    trace = synthetic_trace(model.gating, parse_routing(name), 50, 3, 2)
    back = read(written(trace, form, tmp_path), dataclasses.replace(shape_of(model), num_layers=2))
    if form == "loads":
        # Of each request and layer the loads are the same; tokens are made up.
        assert FORMATS["loads"].write(back) == FORMATS["loads"].write(trace)
    elif form == "dynande":
        assert (np.sort(back.ids) == np.sort(trace.ids)).all()
    else:
        assert (back.ids == trace.ids).all()


@pytest.mark.parametrize("name", KINDS)
def test_every_synthetic_kind_through_sglang_with_its_layers(tmp_path, name):
    """Its phases are unknown; a model of another number of layers changes nothing."""
    from sim.routing import parse_routing, synthetic_trace
    from spec.load import load_model

    for model, top_k in (("mixtral-8x7b", 2), ("switch-base-128", 1)):
        trace = synthetic_trace(load_model(model).gating, parse_routing(name), 6, 3, 4)
        path = written(trace, "sglang", tmp_path)
        for layers in (None, 4, 2, 32):
            back = read(path, TraceShape(top_k=top_k, num_layers=layers, num_experts=trace.num_experts))
            same(trace, back, KEPT["sglang"])


def test_sglang_refuses_layers_that_cannot_be_read_back():
    """With one expert a token nothing tells a dense layer: it would come back as a routed one."""
    for layers, missing in (([2, 3, 4], 0), ([0, 1, 3], 2)):
        trace = dataclasses.replace(random_trace(top_k=1, weights=False), layers=np.array(layers))
        message = (
            r"layers: must be all from 0 in sglang where top_k is 1 \(nothing tells a dense layer\), but"
            rf" {missing} is not there"
        )
        with pytest.raises(InputError, match=rf"^{message}$"):
            FORMATS["sglang"].write(trace)


@pytest.mark.parametrize("name", FIXTURES)
def test_layers_that_are_not_the_files_are_refused(name):
    """Where the user says them; those of a model need not be the file's."""
    found = 3 if name.startswith("sglang") else 2
    right = dataclasses.replace(KNOWN, num_layers=found, exact_layers=True)
    assert read(FOLDER / name, right).ids.tolist() == [FIRST, SECOND]
    with pytest.raises(InputError) as error:
        read(FOLDER / name, dataclasses.replace(right, num_layers=9))
    message = f"layers: must be {found}, those of the file, not 9"
    assert str(error.value) == f"{FOLDER / name}: {message}"
    assert read(FOLDER / name, dataclasses.replace(KNOWN, num_layers=9)).num_layers == 2


def test_loads_of_single_tokens_there_and_back(tmp_path):
    trace = random_trace(num_tokens=9, requests=9, weights=False)
    back = read(written(trace, "loads", tmp_path), TraceShape())
    assert (back.ids == np.sort(trace.ids)).all()
    assert back.request.tolist() == list(range(9))


def test_a_layer_with_fewer_tokens_is_kept(tmp_path):
    """llama.cpp computes in its last layer only the tokens whose output is wanted."""
    lines = ["layer,expert", "0,1", "0,2", "0,2", "0,3", "1,0", "1,3"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    trace = read(tmp_path / "t.csv")
    assert trace.ids.tolist() == [[[1, 2], [2, 3]], [[0, 3], [-1, -1]]]
    assert not trace.aligned
    same(trace, read(written(trace, "llama-cpp", tmp_path)), {"ids", "layers"})
    same(trace, read(written(trace, "canonical", tmp_path)), {"ids", "layers"})


def test_ranks_and_steps_of_megatron_in_any_order(tmp_path):
    def record(step: int, rank: int, layer: int, rows: list[list[int]]) -> str:
        return json.dumps(
            {
                "step": step,
                "rank": rank,
                "layer": layer,
                "num_tokens": len(rows),
                "topk": 1,
                "top_indices": rows,
            }
        )

    path = tmp_path / "t.jsonl"
    records = [record(1, 0, 0, [[5]]), record(0, 1, 0, [[3], [4]]), record(0, 0, 0, [[1]])]
    records += [record(0, 0, 3, [[7]]), record(0, 1, 3, [[8], [9]]), record(1, 0, 3, [[2]])]
    path.write_text("\n".join(records))
    trace = read(path)
    assert trace.ids[:, :, 0].tolist() == [[1, 3, 4, 5], [7, 8, 9, 2]]
    assert trace.request.tolist() == [0, 1, 1, 2]
    assert trace.aligned
    path.write_text("\n".join(records[:-1]))
    assert not read(path).aligned


def test_several_choices_share_a_prompt(tmp_path):
    def text(rows: list[list[list[int]]]) -> str:
        buffer = io.BytesIO()
        np.save(buffer, np.array(rows))
        return base64.b64encode(buffer.getvalue()).decode()

    choices = [{"routed_experts": text([[[1]], [[2]], [[last]]])} for last in (3, 4)]
    (tmp_path / "t.json").write_text(json.dumps([{"choices": choices, "usage": {"prompt_tokens": 2}}]))
    trace = read(tmp_path / "t.json")
    assert trace.ids[0, :, 0].tolist() == [1, 2, 3, 4]
    assert trace.request.tolist() == [0, 0, 0, 1]
    assert trace.position.tolist() == [0, 1, 2, 2]


def test_sglang_from_a_later_token(tmp_path):
    meta = json.loads((FOLDER / "sglang_generate.json").read_text())
    data = base64.b64decode(meta["meta_info"]["routed_experts"])[24:]
    meta["meta_info"] |= {"routed_experts": base64.b64encode(data).decode(), "routed_experts_start_len": 1}
    (tmp_path / "t.json").write_text(json.dumps(meta))
    trace = read(tmp_path / "t.json", TraceShape(top_k=2))
    assert trace.ids.tolist() == [FIRST[1:], SECOND[1:]]
    assert trace.position.tolist() == [1, 2]
    assert trace.phase.tolist() == [PREFILL, DECODE]


def test_files_of_single_layers_become_one_trace():
    one = read(FOLDER / "model_layer12_part.csv")
    two = read(FOLDER / "dynande.csv")
    trace = stacked([one, two])
    assert trace.layers.tolist() == [1, 2, 12]
    assert trace.ids.tolist() == [FIRST, SECOND, FIRST]
    assert trace.aligned
    with pytest.raises(InputError, match=r"^layers: must be other ones in each file, but 12 is in several$"):
        stacked([one, one])


# What a format has no room for is refused, not dropped.

GAP = make_trace("gap", np.array([[[0, 1], [2, NO_EXPERT]]]), TraceShape())
CANNOT = {
    "vllm": (GAP, r"ids: must have 2 experts for every token in vllm, unlike layer 0, token 1"),
    "sglang": (GAP, r"ids: must have 2 experts for every token in sglang, unlike layer 0, token 1"),
    "megatron": (GAP, r"ids: must have 2 experts for every token in megatron"),
    "llama-cpp": (GAP, r"ids: must have 2 experts for every token in llama-cpp, unlike layer 0"),
    "loads": (GAP, r"ids: must have 2 experts for every token in loads, unlike layer 0, token 1"),
    "dynande": (
        dataclasses.replace(GAP, weights=np.zeros((1, 2, 2), np.float32)),
        r"weights: must be above 0 in dynande, unlike one of layer 0",
    ),
}


@pytest.mark.parametrize("form", CANNOT)
def test_what_a_format_cannot_say(form):
    trace, message = CANNOT[form]
    with pytest.raises(InputError, match=f"^{message}$"):
        FORMATS[form].write(trace)
    if form in ("vllm", "sglang", "megatron"):
        unaligned = dataclasses.replace(random_trace(), aligned=False)
        with pytest.raises(InputError, match=rf"^aligned: is not aligned, which {form} cannot say$"):
            FORMATS[form].write(unaligned)


@pytest.mark.parametrize("form", ["llama-cpp", "llama-cpp-tokens"])
def test_tokens_that_would_come_back_as_others_are_refused(tmp_path, form):
    """Only the last ones of a layer may be missing, and of some layer none."""
    whole = random_trace(num_tokens=5, weights=False)
    for gone, place in (
        ([(1, 2)], "layer 1, token 2"),
        ([(0, 4), (1, 4), (2, 4)], "layer 0, token 4"),
        ([(0, 4), (2, 0), (2, 4)], "layer 2, token 0"),
    ):
        ids = whole.ids.copy()
        for layer, token in gone:
            ids[layer, token] = NO_EXPERT
        with pytest.raises(
            InputError, match=rf"^ids: must be there for every token in llama-cpp, unlike {place}$"
        ):
            FORMATS[form].write(dataclasses.replace(whole, ids=ids))
    ids = whole.ids.copy()
    ids[1, 3:] = NO_EXPERT
    back = read(written(dataclasses.replace(whole, ids=ids), form, tmp_path), TraceShape(top_k=4))
    assert (back.ids == ids).all()
    assert not back.aligned


def odd_traces(seed: int, count: int) -> list[Trace]:
    """Return traces of odd sizes: 1 token, 1 layer, k of 1 or 64, up to 4096 experts, with gaps."""
    rng, traces = np.random.default_rng(seed), []
    for _ in range(count):
        experts = int(rng.choice([1, 2, 8, 512, 4096]))
        k = int(min(experts, rng.choice([1, 1, 2, 8, 64])))
        layers, tokens = int(rng.choice([1, 1, 3])), int(rng.choice([1, 1, 2, 17]))
        ids = np.array(
            [[rng.permutation(experts)[:k] for _ in range(tokens)] for _ in range(layers)], np.int32
        )
        kind = rng.choice(["full", "full", "short tokens", "missing tokens"])
        if kind == "short tokens":
            for row in ids.reshape(-1, k)[1:]:
                row[int(rng.integers(1, k + 1)) :] = NO_EXPERT
        elif kind == "missing tokens":
            ids[:, rng.permutation(tokens)[: tokens // 2]] = NO_EXPERT
        request = np.sort(rng.integers(0, int(rng.choice([1, 2, tokens])), tokens))
        request = np.unique(request, return_inverse=True)[1]
        position = np.arange(tokens) - np.searchsorted(request, request)
        traces.append(
            make_trace(
                "odd",
                ids,
                TraceShape(num_experts=experts),
                layers=np.sort(rng.permutation(20)[:layers]),
                phase=np.full(tokens, rng.integers(0, 2), np.uint8),
                request=request,
                position=position,
            )
        )
    return traces


@pytest.mark.parametrize("form", KEPT)
def test_odd_traces_come_back_or_are_refused(tmp_path, form):
    """What is written is read back the same; what the format cannot say is refused in one line."""
    print("seed 11")
    back_again, refused = 0, rf"(ids|layers): must .* in {form.removesuffix('-tokens')}\b"
    for trace in odd_traces(11, 60):
        try:
            path = written(trace, form, tmp_path)
        except InputError as error:
            if not re.match(refused, str(error)):
                raise
            continue
        shape = TraceShape(
            top_k=trace.top_k,
            num_layers=int(trace.layers[-1]) + 1 if form == "sglang" else trace.num_layers,
            num_experts=trace.num_experts,
        )
        back = read(path, shape)
        if form == "dynande":
            assert (np.sort(back.ids) == np.sort(trace.ids)).all()
        same(trace, back, KEPT[form] - ({"ids", "weights"} if form == "dynande" else {"weights"}))
        back_again += 1
    assert back_again >= (60 if form in ("canonical", "dynande") else 25)


# Bad input: one line, with file and place.


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def arrays(**named: object) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **named)


def array(values: object) -> Callable[[Path], object]:
    return lambda path: np.save(path, values)


def truncated(name: str, size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes((FOLDER / name).read_bytes()[:size])


def claim(shape: str, size: int = 64) -> bytes:
    """Return a .npy that states a large array and has few bytes."""
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size)


def claimed_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", claim("(1, 1000000, 64)"))


def vllm(**changes: object) -> Callable[[Path], object]:
    record = json.loads((FOLDER / "vllm_lists.json").read_text())
    return text(json.dumps(record | changes))


def choice(value: object) -> Callable[[Path], object]:
    return vllm(prompt_routed_experts=None, choices=[{"routed_experts": value}])


def sglang(**changes: object) -> Callable[[Path], object]:
    record = json.loads((FOLDER / "sglang_generate.json").read_text())
    return text(json.dumps({"meta_info": record["meta_info"] | changes}))


def megatron(**changes: object) -> Callable[[Path], object]:
    lines = (FOLDER / "megatron.jsonl").read_text().splitlines()
    return text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | changes)]))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


LLAMA = "layer,expert\n"
TOKENS = "layer_id,expert_ids\n"
DENSE = "layer_id,token_id,expert_0,expert_1\n"
IDS = np.array([FIRST])
# name -> (file, what is in it, the line behind the file's name)
BAD = {
    "missing npz": ("t.npz", None, "cannot be read: No such file or directory"),
    "missing npy": ("t.npy", None, "cannot be read: No such file or directory"),
    "missing csv": ("t.csv", None, "cannot be read: No such file or directory"),
    "missing json": ("t.json", None, "cannot be read: No such file or directory"),
    "missing jsonl": ("t.jsonl", None, "cannot be read: No such file or directory"),
    # canonical
    "truncated npz": (
        "t.npz",
        truncated("canonical.npz", 900),
        r"is not a sound \.npz archive: File is not a zip file",
    ),
    "pickled npz": (
        "t.npz",
        arrays(ids=np.array([[{}]], object)),
        "ids: holds pickled objects, which are refused",
    ),
    "claim in an npz": (
        "t.npz",
        claimed_archive,
        r"ids: states 256000000 bytes of shape \(1, 1000000, 64\), but 192 bytes are there",
    ),
    "no ids": (
        "t.npz",
        arrays(other=IDS),
        r"ids: must be a \(tokens, k\) or \(layers, tokens, k\) array of integers",
    ),
    "float ids": (
        "t.npz",
        arrays(ids=IDS.astype(np.float32)),
        r"ids: must be a \(tokens, k\) or \(layers, tokens, k\) array of integers, not float32 .*",
    ),
    "one axis": (
        "t.npz",
        arrays(ids=np.arange(3)),
        r"ids: must be a \(tokens, k\) or .*, not int64 of shape \(3,\)",
    ),
    "no tokens": ("t.npz", arrays(ids=np.zeros((1, 0, 2), int)), "ids: must have at least one token"),
    "no slots": ("t.npz", arrays(ids=np.zeros((1, 2, 0), int)), r"top_k: must be in 1\.\.64, not 0"),
    "ids out of range": (
        "t.npz",
        arrays(ids=IDS, num_experts=3),
        r"ids: must be in 0\.\.2, but layer 0, token 0 holds 1\.\.3",
    ),
    "huge id": (
        "t.npz",
        arrays(ids=np.array([[1 << 40]])),
        r"ids: must be in 0\.\.4095, but hold \d+\.\.\d+",
    ),
    "largest uint64": (
        "t.npz",
        arrays(ids=np.array([[(1 << 64) - 1]], np.uint64)),
        r"ids: must be in 0\.\.4095, but hold 18446744073709551615\.\.18446744073709551615",
    ),
    "an id below -1": ("t.npz", arrays(ids=IDS - 3), r"ids: must be in 0\.\.4095, but hold -3\.\.0"),
    "expert twice": (
        "t.npz",
        arrays(ids=np.array([[[0, 1], [2, 2]]])),
        r"ids: must be distinct within a token, unlike layer 0, token 1: \[2, 2\]",
    ),
    "gap in the middle": (
        "t.npz",
        arrays(ids=np.array([[[-1, 1]]])),
        "ids: must have -1 last only, unlike layer 0, token 0",
    ),
    "NaN weight": (
        "t.npz",
        arrays(ids=IDS, weights=np.full((1, 3, 2), np.nan, np.float32)),
        "weights: must be finite, unlike layer 0, token 0",
    ),
    "weights of another type": (
        "t.npz",
        arrays(ids=IDS, weights=np.ones((1, 3, 2))),
        "weights: must be float32, not float64",
    ),
    "weights of another shape": (
        "t.npz",
        arrays(ids=IDS, weights=np.ones((1, 3), np.float32)),
        r"weights: must have shape \(1, 3, 2\), not \(1, 1, 3\)",
    ),
    "layers not ascending": (
        "t.npz",
        arrays(ids=np.array([FIRST, SECOND]), layers=[2, 1]),
        "layers: must be ascending numbers from 0",
    ),
    "layers of another length": (
        "t.npz",
        arrays(ids=IDS, layers=[0, 1]),
        r"layers: must have shape \(1,\), not \(2,\)",
    ),
    "unknown phase": (
        "t.npz",
        arrays(ids=IDS, phase=[0, 1, 3]),
        r"phase: must be in 0\.\.2, but hold 0\.\.3",
    ),
    "phase of text": (
        "t.npz",
        arrays(ids=IDS, phase=["a", "b", "c"]),
        r"phase: must be a list of integers, not <U1 of shape \(3,\)",
    ),
    "negative request": ("t.npz", arrays(ids=IDS, request=[0, -1, 0]), "request: must be at least 0, not -1"),
    "another version": ("t.npz", arrays(ids=IDS, version=2), "version: must be 1, not 2"),
    "aligned of numbers": (
        "t.npz",
        arrays(ids=IDS, aligned=1),
        r"aligned: must be one bool, not int64 of shape \(\)",
    ),
    "a long source": (
        "t.npz",
        arrays(ids=IDS, source="x" * 300),
        "source: must be one text of at most 256 characters",
    ),
    # loads
    "truncated npy": (
        "t.npy",
        truncated("loads_tokens.npy", 200),
        "states 192 bytes, but 72 are there",
    ),
    "claim in an npy": (
        "t.npy",
        lambda path: path.write_bytes(claim("(58, 100000, 256)")),
        r"must be at most 4294967296 bytes, not 5939200000",
    ),
    "pickled npy": (
        "t.npy",
        lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
        "holds pickled objects, which are refused",
    ),
    "not npy": ("t.npy", text("hello, world"), r"is not a \.npy array: the magic string is not correct; .*"),
    "loads of two axes": (
        "t.npy",
        array(np.ones((2, 3))),
        r"must be loads \(layers, batches, experts\), not float64 of shape \(2, 3\)",
    ),
    "loads of text": (
        "t.npy",
        array(np.array([[["a"]]])),
        r"must be loads \(layers, batches, experts\), not <U1 of shape \(1, 1, 1\)",
    ),
    "NaN load": (
        "t.npy",
        array(np.array([[[1, np.nan]]])),
        r"\[0, 0, 1\]: must be whole numbers in 0\.\.16777216, not nan",
    ),
    "half a load": (
        "t.npy",
        array(np.array([[[1, 0.5]]])),
        r"\[0, 0, 1\]: must be whole numbers in 0\.\.16777216, not 0\.5",
    ),
    "negative load": (
        "t.npy",
        array(np.array([[[1, -1]]])),
        r"\[0, 0, 1\]: must be whole numbers in 0\.\.16777216, not -1",
    ),
    "no load": ("t.npy", array(np.zeros((1, 1, 4))), "must have a load above 0"),
    "loads that k does not divide": (
        "t.npy",
        array(np.array([[[2, 1, 0]]])),
        r"\[0, 0\]: must sum to a multiple of top_k=2, the same in every layer, not 3",
    ),
    "more load than tokens": (
        "t.npy",
        array(np.array([[[3, 1, 0]]])),
        r"\[0, 0\]: must have no load above its 2 tokens, not 3",
    ),
    # vLLM
    "broken JSON": (
        "t.json",
        text('{"choices": [\n{'),
        "is not valid JSON: Expecting property name enclosed in double quotes at line 2, column 2",
    ),
    "nested too deeply": ("t.json", text("[" * 100_000), "is not valid JSON: nested too deeply"),
    "a number of digits": (
        "t.jsonl",
        text("1" * 5000),
        "line 1: is not valid JSON: a number is too long",
    ),
    "not UTF-8": ("t.json", lambda path: path.write_bytes(b'{"\xff'), "is not UTF-8: invalid start byte"),
    "empty JSON": ("t.json", text(""), r"is not valid JSON: Expecting value at line 1, column 1"),
    "an empty list": ("t.json", text("[]"), "has no records"),
    "empty lines": ("t.jsonl", text("\n\n"), "has no records"),
    "another object": (
        "t.json",
        text('[{"choices": []}]'),
        r"\[0\]: must be a response with routed_experts or a record with top_indices",
    ),
    "no object": (
        "t.json",
        text("3"),
        "must be a response with routed_experts or a record with top_indices",
    ),
    "a later line is no object": (
        "t.jsonl",
        lambda path: path.write_text((FOLDER / "vllm_text.jsonl").read_text() + "[1]\n"),
        "line 2: response: must be an object, not a list",
    ),
    "no choices": (
        "t.json",
        vllm(choices=None),
        "choices: must be a list of choices",
    ),
    "no routed experts": (
        "t.json",
        vllm(choices=[{}]),
        r"choices\[0\]\.routed_experts: is missing: was the server run with --enable-return-routed-experts\?",
    ),
    "ragged tokens": (
        "t.json",
        choice([[[1, 2]], [[1]]]),
        r"choices\[0\]\.routed_experts: must not be ragged: lists at depth 3 have 1\.\.2 elements",
    ),
    "ragged layers": (
        "t.json",
        choice([[[1], [2]], [[1]]]),
        r"choices\[0\]\.routed_experts: must not be ragged: lists at depth 2 have 1\.\.2 elements",
    ),
    "too flat": (
        "t.json",
        choice([[1, 2]]),
        r"choices\[0\]\.routed_experts: must be lists, 3 deep; one at depth 3 is none",
    ),
    "too deep": (
        "t.json",
        choice([[[[1]]]]),
        r"choices\[0\]\.routed_experts: must hold whole numbers, not a list",
    ),
    "NaN id": (
        "t.json",
        choice([[[float("nan")]]]),
        r"choices\[0\]\.routed_experts: must hold whole numbers, not .*",
    ),
    "true as an id": (
        "t.json",
        choice([[[True, 0]]]),
        r"choices\[0\]\.routed_experts: must hold whole numbers, not true or false",
    ),
    "negative id": (
        "t.json",
        choice([[[-1, 0]]]),
        r"choices\[0\]\.routed_experts: must be in 0\.\.4095, but hold -1\.\.0",
    ),
    "enormous id": (
        "t.json",
        choice([[[10**30, 0]]]),
        r"choices\[0\]\.routed_experts: must be in 0\.\.4095, but hold 0\.\.10\^12 or more",
    ),
    "expert twice in a list": (
        "t.json",
        choice([[[1, 2], [3, 3]]]),
        r"choices\[0\]\.routed_experts: must be distinct, unlike \[0\]\[1\]: \[3, 3\]",
    ),
    "other layers than the prompt": (
        "t.json",
        vllm(choices=[{"routed_experts": [[[0, 1]]]}]),
        r"must have one number of layers and experts, not \[\(1, 2\), \(2, 2\)\] \(layers, top_k\)",
    ),
    "base64 garbage": ("t.json", choice("§§§"), r"choices\[0\]\.routed_experts: is not base64"),
    "base64 of something": (
        "t.json",
        choice(encoded(b"something else")),
        r"choices\[0\]\.routed_experts: is not a \.npy array: .*",
    ),
    "base64 of a pickle": (
        "t.json",
        choice(
            encoded(
                b"\x93NUMPY\x01\x00\x76\x00"
                + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
                + b"\n"
            )
        ),
        r"choices\[0\]\.routed_experts: holds pickled objects, which are refused",
    ),
    "base64 of a claim": (
        "t.json",
        choice(encoded(claim("(1000, 1000, 64)"))),
        r"choices\[0\]\.routed_experts: states 256000000 bytes of shape .*, but 192 bytes are there",
    ),
    "more prompt than rows": (
        "t.json",
        lambda path: path.write_text(
            (FOLDER / "vllm_text.jsonl").read_text().replace('"prompt_tokens": 2', '"prompt_tokens": 9')
        ),
        r"usage\.prompt_tokens: must be at most the 3 rows, not 9",
    ),
    # SGLang
    "no text": (
        "t.json",
        sglang(routed_experts=None),
        r"meta_info\.routed_experts: must be base64, not null",
    ),
    "garbage for SGLang": (
        "t.json",
        sglang(routed_experts="AAA"),
        r"meta_info\.routed_experts: is not base64",
    ),
    "half an int32": (
        "t.json",
        sglang(routed_experts=encoded(bytes(6))),
        r"meta_info\.routed_experts: must be int32, not 6 bytes",
    ),
    "cut off": (
        "t.json",
        sglang(routed_experts=encoded(bytes(4 * 17))),
        r"meta_info\.routed_experts: must be 3 x 2 layers x top_k=2 ids, not 17",
    ),
    "negative int32": (
        "t.json",
        sglang(routed_experts=encoded(struct.pack("<18i", -7, *range(17)))),
        r"meta_info\.routed_experts: must be in 0\.\.4095, but hold -7\.\.16",
    ),
    "tokens in words": (
        "t.json",
        sglang(prompt_tokens="two"),
        "prompt_tokens: must be a whole number from 0, not a string",
    ),
    "dense layers only": (
        "t.json",
        sglang(routed_experts=encoded(bytes(4 * 18))),
        "has no layer whose tokens have distinct experts",
    ),
    "expert twice in SGLang": (
        "t.json",
        sglang(routed_experts=encoded(struct.pack("<18i", *[0, 0, 3, 1, 2, 0] * 2, *[0, 0, 1, 1, 2, 0]))),
        r"request 0: must be distinct, unlike \[0\]\[0\]: \[1, 1\]",
    ),
    # Megatron
    "a broken line": (
        "t.jsonl",
        lambda path: path.write_text((FOLDER / "megatron.jsonl").read_text()[:-20]),
        "line 4: is not valid JSON: .* at column [0-9]+",
    ),
    "no layer": ("t.jsonl", megatron(layer=None), "line 2: layer: is missing"),
    "layer in words": (
        "t.jsonl",
        megatron(layer="two"),
        "line 2: layer: must be a whole number from 0, not a string",
    ),
    "other tokens than stated": (
        "t.jsonl",
        megatron(num_tokens=3),
        r"line 2: top_indices: must have num_tokens=3 rows of topk=2, not shape \(2, 2\)",
    ),
    "a claim of tokens": (
        "t.jsonl",
        megatron(num_tokens=1 << 40),
        r"line 2: top_indices: must have num_tokens=1099511627776 rows of topk=2, not shape \(2, 2\)",
    ),
    "ragged indices": (
        "t.jsonl",
        megatron(top_indices=[[1, 2], [3]]),
        r"line 2: top_indices: must not be ragged: lists at depth 2 have 1\.\.2 elements",
    ),
    "another topk": (
        "t.jsonl",
        megatron(topk=1, top_indices=[[1], [3]]),
        "line 2: topk: must be 2 as before, not 1",
    ),
    "repeated index": (
        "t.jsonl",
        megatron(top_indices=[[1, 2], [3, 3]]),
        r"line 2: top_indices: must be distinct, unlike \[1\]: \[3, 3\]",
    ),
    "another block": (
        "t.jsonl",
        megatron(layer=1, block="mtp"),
        "line 2: block: must be 'decoder' as before for layer 1, not 'mtp'",
    ),
    "stage of a list": (
        "t.jsonl",
        megatron(stage=[]),
        "line 2: stage: must be a text or a whole number, not a list",
    ),
    "fewer experts than used": (
        "t.jsonl",
        megatron(num_experts=3),
        r"ids: must be in 0\.\.2, but layer 1, token 0 holds 1\.\.3",
    ),
    # llama.cpp
    "empty csv": ("t.csv", text(""), "line 1: must be layer,expert, .*, not ''"),
    "wrong columns": (
        "t.csv",
        text("expert,layer\n1,2\n"),
        "line 1: must be layer,expert, .*, not 'expert,layer'",
    ),
    "a csv of zeros": (
        "t.csv",
        lambda path: path.write_bytes(bytes(100)),
        r"line 1: must be layer,expert, .*, not .*",
    ),
    "csv not UTF-8": (
        "t.csv",
        lambda path: path.write_bytes(LLAMA.encode() + b"0,\xff\n"),
        "line 2: is not UTF-8: invalid start byte",
    ),
    "no rows": ("t.csv", text(LLAMA), "has no rows"),
    "a third column": (
        "t.csv",
        text(LLAMA + "0,1\n0,2,3\n"),
        "line 3: must be layer,expert in numbers, not '0,2,3'",
    ),
    "an empty line": (
        "t.csv",
        text(LLAMA + "0,1\n\n0,2\n"),
        "line 3: must be layer,expert in numbers, not ''",
    ),
    "cut off csv": ("t.csv", text(LLAMA + "0,1\n0,"), "line 3: must be layer,expert in numbers, not '0,'"),
    "NaN in a csv": (
        "t.csv",
        text(LLAMA + "0,nan\n"),
        "line 2: must be layer,expert in numbers, not '0,nan'",
    ),
    "expert out of range": (
        "t.csv",
        text(LLAMA + "0,1\n0,4096\n"),
        r"line 3: expert must be in 0\.\.4095, not 4096",
    ),
    "layer out of range": (
        "t.csv",
        text(LLAMA + "99999999,1\n"),
        r"line 2: layer must be in 0\.\.1048575, not 99999999",
    ),
    "rows that k does not divide": (
        "t.csv",
        text(LLAMA + "0,1\n0,2\n0,3\n"),
        "must have a multiple of top_k=2 rows of layer 0, not 3",
    ),
    "expert twice in a csv": (
        "t.csv",
        text(LLAMA + "0,1\n0,2\n1,0\n1,0\n"),
        r"line 4: must have distinct experts, not \[0, 0\]",
    ),
    "ragged token": (
        "t.csv",
        text(TOKENS + "0,1 2\n0,1 2 3\n"),
        "line 3: must have 2 experts as before, not 3",
    ),
    "expert twice in a token": (
        "t.csv",
        text(TOKENS + "0,1 2\n0,3 3\n"),
        r"line 3: must have distinct experts, not \[3, 3\]",
    ),
    "commas for spaces": (
        "t.csv",
        text(TOKENS + "0,1,2\n"),
        "line 2: must be layer_id,expert_ids in numbers, not '0,1,2'",
    ),
    "many experts": (
        "t.csv",
        text(TOKENS + "0," + " ".join(map(str, range(65)))),
        "line 2: must have at most 64 experts, not 65",
    ),
    # DynaNDE
    "experts out of order": (
        "t.csv",
        text("layer_id,token_id,expert_1,expert_0\n"),
        "line 1: must name expert_0 in column 3, not 'expert_1'",
    ),
    "too many columns": (
        "t.csv",
        text("layer_id,token_id," + ",".join(f"expert_{n}" for n in range(5000))),
        "line 1: must name 1 to 4096 experts, not 5000",
    ),
    "a score less": (
        "t.csv",
        text(DENSE + "0,0,0.5,0\n0,1,0.5\n"),
        "line 3: must be layer_id, token_id and 2 scores from 0, not '0,1,0.5'",
    ),
    "NaN score": (
        "t.csv",
        text(DENSE + "0,0,nan,0\n"),
        "line 2: must be layer_id, token_id and 2 scores from 0, not '0,0,nan,0'",
    ),
    "negative score": (
        "t.csv",
        text(DENSE + "0,0,-1,0\n"),
        "line 2: must be layer_id, token_id and 2 scores from 0, not '0,0,-1,0'",
    ),
    "enormous score": ("t.csv", text(DENSE + "0,0,1e99,0\n"), r"line 2: must have scores of at most 1e\+30"),
    "token twice": (
        "t.csv",
        text(DENSE + "0,0,1,0\n0,1,1,0\n0,0,0,1\n"),
        "line 4: has layer 0, token 0 a second time",
    ),
}


@pytest.mark.parametrize(("file", "write", "message"), BAD.values(), ids=BAD.keys())
def test_bad_file(tmp_path, monkeypatch, capsys, file, write, message):
    """Through the command line: status 2, one line on stderr that begins with the file's name, no output."""
    from sim.cli import main

    monkeypatch.chdir(tmp_path)
    if write is not None:
        write(Path(file))
    before = sorted(tmp_path.iterdir())
    arguments = ["routing", file, "--out", "out.npz", "--picture", "p.png", "--top-k", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"expertbank: {re.escape(file)}: (?:{message})\n", err), err
    assert sorted(tmp_path.iterdir()) == before


# What only the user can say is asked for.
UNSAID = {
    "llama_cpp.csv": (TraceShape(), r"does not say how many experts a token has \(top_k\)"),
    "loads_of_many.npy": (TraceShape(), r"has loads above 1: say how many experts a token has \(top_k\)"),
    "sglang_generate.json": (
        TraceShape(),
        r"meta_info\.routed_experts: has no shape: say how many experts a token has \(top_k\)",
    ),
    "uncounted.json": (
        TraceShape(top_k=2),
        r"meta_info\.routed_experts: has no shape: say how many layers there are \(num_layers\)",
    ),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_a_file_does_not_say(tmp_path, name):
    shape, message = UNSAID[name]
    path = FOLDER / name
    if not path.exists():
        path = tmp_path / name
    if name == "loads_of_many.npy":
        np.save(path, np.array([[[2, 2]]]))
    if name == "uncounted.json":
        sglang(prompt_tokens=None)(path)
        path.write_text(path.read_text().replace('"prompt_tokens": null, "completion_tokens": 2, ', ""))
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: {message}$"):
        read(path, shape)


@pytest.mark.parametrize("name", ["llama_cpp.csv", "llama_cpp_tokens.csv", "dynande.csv"])
def test_a_byte_order_mark_changes_nothing(tmp_path, name):
    """As spreadsheets write it, before the first line."""
    plain = (FOLDER / name).read_bytes()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + plain)
    marked, trace = read(tmp_path / name), read(FOLDER / name)
    assert np.array_equal(marked.ids, trace.ids)
    line, rest = plain.split(b"\n", 1)
    (tmp_path / name).write_bytes(line + b"\n\xef\xbb\xbf" + rest)
    with pytest.raises(InputError, match=r"csv: line 2: must be "):
        read(tmp_path / name)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.routing.text.MAX_LINE_BYTES", 1000)
    (tmp_path / "t.csv").write_text(LLAMA + "0,1\n" + "1" * 2000)
    with pytest.raises(InputError, match=r"t\.csv: line 3: must be at most 1000 bytes$"):
        read(tmp_path / "t.csv")


def test_a_document_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("sim.routing.text.MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "t.json").write_text("[" + " " * 1000 + "]")
    with pytest.raises(
        InputError, match=r": must be at most 1000 bytes, not 1002 \(\.jsonl has no such limit\)$"
    ):
        read(tmp_path / "t.json")


def test_more_assignments_than_a_trace_holds(tmp_path, monkeypatch):
    for module in ("trace", "formats.requests", "formats.megatron", "formats.llama_cpp", "formats.dynande"):
        monkeypatch.setattr(f"sim.routing.{module}.MAX_ASSIGNMENTS", 4)
    for name in FIXTURES:
        with pytest.raises(InputError, match=r": must be at most 4 assignments"):
            read(FOLDER / name)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A small archive of a large array is refused by what it states, before memory is taken."""
    monkeypatch.setattr("sim.routing.formats.canonical.MAX_BYTES", 1 << 24)
    np.savez_compressed(tmp_path / "t.npz", ids=np.zeros((1, 5_000_000, 1), np.int32))
    assert (tmp_path / "t.npz").stat().st_size < 1 << 16
    tracemalloc.start()
    with pytest.raises(InputError, match=r"t\.npz: must hold at most 16777216 bytes, not 20000128$"):
        read(tmp_path / "t.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


# Fuzzing: whatever is in a file, a reader returns a sound trace or raises one line.


def survives(path: Path, data: bytes, **options: str) -> None:
    path.write_bytes(data)
    for shape in (KNOWN, TraceShape()):
        message = f"{path}: nothing wrong"
        try:
            dataclasses.replace(read(path, shape, **options))
        except InputError as error:
            message = str(error)
        assert message.startswith(f"{path}: ")
        assert len(message.splitlines()) == 1


@st.composite
def damaged(draw: st.DrawFn, files: tuple[str, ...]) -> tuple[str, bytes]:
    """Draw a fixture with bytes changed, left out and put in."""
    name = draw(st.sampled_from(files))
    data = bytearray((FOLDER / name).read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("change", "cut", "put in", "repeat", "end")))
        if kind == "change":
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "put in":
            data[place:place] = draw(
                st.sampled_from((b"-", b"9" * 20, b"\n", b",", b"null", b"[", b"nan", b"\xff"))
            )
        elif kind == "repeat":
            data[place:place] = data[place : place + 30]
        else:
            del data[place:]
    return name, bytes(data)


READERS = {
    "csv": ("llama_cpp.csv", "llama_cpp_tokens.csv", "dynande.csv"),
    "json": ("vllm_lists.json", "sglang_generate.json"),
    "jsonl": ("vllm_text.jsonl", "sglang_openai.jsonl", "megatron.jsonl"),
    "npz": ("canonical.npz", "plain.npz"),
    "npy": ("loads_tokens.npy", "loads_batches.npy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
def test_damaged_files(tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"t.{suffix}"

    @settings(max_examples=80)
    @given(damaged(READERS[suffix]))
    def check(case: tuple[str, bytes]) -> None:
        survives(path, case[1])
        if suffix == "npy":
            survives(path, case[1], npy="vllm")

    check()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = {
    "vllm": ("choices", "prompt_routed_experts", "usage"),
    "sglang": ("meta_info", "choices", "usage", "sgl_ext"),
    "megatron": (
        "step",
        "stage",
        "block",
        "layer",
        "rank",
        "num_tokens",
        "topk",
        "top_indices",
        "num_experts",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", KEYS)
def test_records_of_anything(tmp_path_factory, form):
    path = tmp_path_factory.mktemp("fuzz") / "t.jsonl"
    name = {"vllm": "vllm_lists.json", "sglang": "sglang_generate.json", "megatron": "megatron.jsonl"}[form]
    content = (FOLDER / name).read_text()
    good = json.loads(content.splitlines()[0] if form == "megatron" else content)

    @settings(max_examples=60)
    @given(st.dictionaries(st.sampled_from(KEYS[form]), VALUES, min_size=1, max_size=2))
    def check(changes: dict[str, object]) -> None:
        survives(path, (json.dumps(good) + "\n" + json.dumps(good | changes)).encode())
        survives(path, json.dumps(good | changes).encode())

    check()


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, np.complex64, "M8[s]", "U3", np.bool_])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3, 2), (0, 3, 2), (1, 3, 0), (1, 1, 3, 2)])
def test_arrays_of_anything(tmp_path, dtype, shape):
    values = np.zeros(shape, dtype)
    buffer = io.BytesIO()
    np.save(buffer, values)
    for npy in ("loads", "vllm"):
        survives(tmp_path / "t.npy", buffer.getvalue(), npy=npy)
    for name in (
        "ids",
        "weights",
        "layers",
        "phase",
        "request",
        "position",
        "num_experts",
        "aligned",
        "source",
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **({"ids": IDS} | {name: values}))
        survives(tmp_path / "t.npz", buffer.getvalue())
