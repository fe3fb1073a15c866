"""DynaNDE's decode from the cycles of each expert that its authors have released, read from the user's copy.

Files of github.com/Akash-N-Pai/DynaNDE-Simulator at ed75f962. Below ``decoder-simulator/Decoder-BS16`` there
is a folder for each decoded token (``1st`` .. ``10th``), in it ``layer<N>.txt``, the tokens of each expert,
and ``npu/<N>/SA_stage_E.tsv`` and ``pim/<N>/SA_stage_E.tsv``, the simulator's operations with their cycles:
``param_load``, ``fc1``, ``gelu`` and ``fc2`` of each expert, and near memory ``activation_movement_1`` and
``_2``. What is missing in a copy is left out, as one file is in the authors' own. The cache holds the experts
that the NPU has computed most often in a layer, of equals the lowest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.papers.routed import system_values
from sim.system.costs import BoolArray, Costs, FloatArray
from sim.system.step import run_step
from spec.errors import InputError
from spec.files import read_text
from spec.paper import PaperSpec

FOLDERS = ("", "Decoder-BS16", "decoder-simulator/Decoder-BS16")
POSITIONS = ("1st", "2nd", "3rd", *(f"{n}th" for n in range(4, 11)))
LAYERS = range(2, 10)
EXPERTS = 64
OPERATIONS = ("fc1", "gelu", "fc2")
MOVEMENTS = ("activation_movement_1", "activation_movement_2")
MAX_CYCLES = 1e12
_EXPERT = re.compile(r"layer\d+\.ffn\.moe_expert\.(\d{1,4})\.(\w+)")
_OTHER = re.compile(r"layer\d+\.ffn\.(activation_movement_[12])")
_TOKENS = re.compile(r"^Expert\s+(\d{1,4})\s+(\d{1,6})\s", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A layer at a decoded token: (experts,) cycles and tokens."""

    layer: int
    tokens: FloatArray
    load: FloatArray
    npu: FloatArray
    near: FloatArray
    movement: float


def run(paper: PaperSpec, values: Mapping[str, float], files: Path) -> dict[str, float]:
    """Return what is modelled of the claims on the user's files; :class:`InputError` for bad ones."""
    own = system_values(values, "dynande")
    share = own["link.bytes_per_s"] / (own["link.bytes_per_s"] + own["near.bytes_per_s"])
    return {"replay_decode": speed(read_places(files), share, int(values["inputs.replay_entries"]))}


def speed(positions: list[list[Place]], host_share: float, entries: int) -> float:
    """Return the cycles of MoNDE's rule without a cache over those of the prefix scan with one."""
    uses = np.zeros((max(LAYERS) + 1, EXPERTS))
    rule = scan = 0.0
    for places in positions:
        layers = np.array([place.layer for place in places])
        order = np.argsort(-uses[layers], axis=1, kind="stable")
        cached = np.zeros((len(places), EXPERTS), bool)
        np.put_along_axis(cached, order[:, :entries], True, axis=1)
        rule += run_step(_costs(places, host_share, None), "ratio").seconds
        step = run_step(_costs(places, host_share, cached & (uses[layers] > 0)), "prefix-scan")
        scan += step.seconds
        np.add.at(uses, layers, step.schedule.host)
    return rule / scan


def _costs(places: list[Place], host_share: float, cached: BoolArray | None) -> Costs:
    """Return the costs of layers, cycles in the place of seconds."""
    load = np.stack([place.load for place in places])
    return Costs(
        np.stack([place.tokens for place in places]).astype(np.int64),
        np.stack([place.npu for place in places]),
        np.stack([place.near for place in places]),
        load if cached is None else np.where(cached, 0.0, load),
        np.zeros(load.shape),
        np.zeros(EXPERTS, np.int64),
        # Sent and returned: half of both movements each.
        latency_s=np.array([place.movement / 2 for place in places]),
        link_share=host_share,
    )


def read_places(files: Path) -> list[list[Place]]:
    """Return the layers of each decoded token that a copy has; :class:`InputError` if it has none."""
    if not files.is_dir():
        raise InputError("is not a folder", file=files, key="files")
    roots = [files / folder for folder in FOLDERS if (files / folder / POSITIONS[0]).is_dir()]
    if not roots:
        known = ", ".join(f"{folder}/{POSITIONS[0]}".strip("/") for folder in FOLDERS)
        raise InputError(f"holds no folder {known}", file=files, key="files")
    positions = []
    for name in POSITIONS:
        folder, places = roots[0] / name, []
        for layer in LAYERS:
            tokens = folder / f"layer{layer}.txt"
            npu, near = (folder / part / str(layer) / "SA_stage_E.tsv" for part in ("npu", "pim"))
            if all(file.is_file() for file in (tokens, npu, near)):
                places.append(_place(layer, tokens, npu, near))
        if places:
            positions.append(places)
    if not positions:
        raise InputError("holds no layer with its layer<N>.txt and both SA_stage_E.tsv", file=roots[0])
    return positions


def _place(layer: int, tokens_file: Path, npu_file: Path, near_file: Path) -> Place:
    tokens = np.zeros(EXPERTS)
    for expert, count in _TOKENS.findall(read_text(tokens_file)):
        tokens[_index(int(expert), tokens_file)] = float(count)
    if not tokens.any():
        raise InputError("names no expert with a token", file=tokens_file)
    npu, _ = _operations(npu_file, ("param_load", *OPERATIONS), tokens > 0)
    near, movement = _operations(near_file, OPERATIONS, tokens > 0)
    if movement == 0:
        raise InputError(f"has no {' and '.join(MOVEMENTS)}", file=near_file)
    return Place(layer, tokens, npu[0], npu[1:].sum(axis=0), near.sum(axis=0), movement)


def _operations(file: Path, wanted: tuple[str, ...], active: BoolArray) -> tuple[FloatArray, float]:
    """Return (operations, experts) cycles and the sum of the movements' cycles."""
    lines = read_text(file).splitlines()
    header = lines[0].split("\t") if lines else []
    for column in ("OpName", "TotalCycle"):
        if column not in header:
            raise InputError(f"has no column {column}", file=file, key="line 1")
    name_at, cycles_at = header.index("OpName"), header.index("TotalCycle")
    cycles, movement = np.full((len(wanted), EXPERTS), np.nan), 0.0
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) <= max(name_at, cycles_at):
            raise InputError(
                f"must have {len(header)} columns, not {len(cells)}", file=file, key=f"line {number}"
            )
        found, other = _EXPERT.fullmatch(cells[name_at]), _OTHER.fullmatch(cells[name_at])
        if found is not None and found[2] in wanted:
            row = wanted.index(found[2])
            cycles[row, _index(int(found[1]), file)] = _cycles(cells[cycles_at], file, number)
        elif other is not None:
            movement += _cycles(cells[cycles_at], file, number)
    missing = np.argwhere(np.isnan(cycles) & active)
    if len(missing):
        row, expert = missing[0]
        raise InputError(f"has no {wanted[row]} of expert {expert}, which has tokens", file=file)
    return np.where(active, np.nan_to_num(cycles), 0.0), movement


def _index(expert: int, file: Path) -> int:
    if expert >= EXPERTS:
        raise InputError(f"must name experts 0..{EXPERTS - 1}, not {expert}", file=file)
    return expert


def _cycles(text: str, file: Path, number: int) -> float:
    if not text.isascii() or not text.isdigit() or float(text) > MAX_CYCLES:
        raise InputError(f"must have a number of cycles, not {text[:40]!r}", file=file, key=f"line {number}")
    return float(text)
