"""What a board's memory holds: weight images with their map, and the register writes that start a layer.

``pack`` writes a folder: one file for each memory of the accelerator (``image.bin`` behind the AXI4 read
master; of a near-memory design ``channel_<n>.bin`` for each channel's storage as well) and ``map.json``,
which says where what lies, how it is checked, and what the registers are told. The bytes are those that a
run of the Verilog loads (:func:`golden.layer_bf16.layer_image`, :func:`golden.banks.channel_image`);
``read_pack`` reads a folder back, trusting nothing in it. docs/pack.md describes both.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.archive import read_array
from golden.banks import bank_image
from golden.expert_int8 import ActivationScales
from golden.experts import calibrate
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.layer_bf16 import load_image, pack_expert
from golden.tensor_file import read_json
from golden.weights import LayerWeights, random_weights
from sim import workload
from sim.accelerator import scales_of, setup_steps
from sim.pim_layer import placement_steps
from sim.routing import Routing
from sim.rtlsim import Set, Step, Wait, check_writable
from sim.toolchain import folder_beside
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import InputError, require
from spec.files import build_spec, check_regular
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.layout import Placement
from spec.model import ModelSpec
from spec.registers import CORE_REGISTERS, REGISTERS, Top

MAP = "map.json"
IMAGE = "image.bin"
IMAGES = re.compile(r"image\.bin|channel_[0-9]+\.bin")
"""Files of memories, of any design."""
AXI = "m_axi"
KIND = "expertbank-image-1"
ADDRESS_BITS = 40
"""Of the AXI4 read master's addresses."""
GATE_REGISTERS = frozenset(register.name for register in CORE_REGISTERS if Top.GATE in register.tops)
BATCH_BYTES = 1 << 28
"""float32 weights that are held at once, unless a single expert has more."""
MAX_TOKENS = 1 << 20
"""Of a calibration."""
MAX_MAP_BYTES = 1 << 24

Supply = Callable[[Sequence[int]], LayerWeights]
"""Gives a layer's weights with (at least) the routed experts that are named."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Region:
    """What lies from ``offset`` on in a file; of an expert in banks also its ``first_row``."""

    name: str
    offset: int
    bytes: int
    first_row: int | None = None


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A memory's content.

    ``memory``: ``m_axi`` or a channel's storage port ``mem_<n>``; ``address``: where it goes in that memory,
    in bytes; ``word_bytes``: of the port's words (a word of ``mem_<n>`` is a row of its storage).
    """

    file: str
    memory: str
    address: int
    bytes: int
    word_bytes: int
    sha256: str
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class RegisterStep:
    """A write of ``value``; where ``op`` is ``wait``, reads until the register's bits ``mask`` are that."""

    op: str
    register: str
    address: int
    value: int
    mask: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackMap:
    """What ``map.json`` says: whose weights these are, where they lie, and what the registers are told."""

    kind: str
    byte_order: str
    model: str
    design: str
    format: str
    files: tuple[ImageFile, ...]
    registers: tuple[RegisterStep, ...]
    layer: str | None = None

    def __post_init__(self) -> None:
        require(self.kind == KIND, f"must be {KIND!r}, not {self.kind!r:.80}", key="kind")
        require(
            self.byte_order == "little", f"must be 'little', not {self.byte_order!r:.80}", key="byte_order"
        )
        seen: set[str] = set()
        for number, entry in enumerate(self.files):
            key = f"files.{number}"
            near = re.fullmatch(r"mem_(0|[1-9][0-9]{0,2})", entry.memory)
            require(
                near is not None or entry.memory == AXI,
                f"must be {AXI} or mem_<n>, not {entry.memory!r:.80}",
                key=f"{key}.memory",
            )
            name = f"channel_{near[1]}.bin" if near else IMAGE
            require(entry.file == name, f"must be {name!r}, not {entry.file!r:.80}", key=f"{key}.file")
            require(name not in seen, f"is there twice: {name}", key=f"{key}.file")
            seen.add(name)
            require(
                1 <= entry.bytes < 1 << 63, f"must be in 1..2**63 - 1, not {entry.bytes}", key=f"{key}.bytes"
            )
            for place, region in enumerate(entry.regions):
                inside = 0 <= region.offset <= region.offset + region.bytes <= entry.bytes
                require(inside, f"must lie within {entry.bytes} bytes", key=f"{key}.regions.{place}")
        for number, step in enumerate(self.registers):
            key = f"registers.{number}"
            require(
                step.op in ("write", "wait"), f"must be write or wait, not {step.op!r:.80}", key=f"{key}.op"
            )
            require(
                REGISTERS.get(step.register) == step.address,
                f"must be a register and its address, not {step.register!r:.80} at {step.address}",
                key=key,
            )
            word = range(1 << 32)
            ok = step.value in word and (step.mask is None or step.mask in word)
            ok = ok and (step.mask is None) == (step.op == "write")
            require(ok, "must have a value of 32 bits, and a mask to wait for one", key=key)

    def text(self) -> str:
        """Return the JSON text."""
        table = _stated(asdict(self))
        table["files"] = [
            {**entry, "regions": list(map(_stated, entry["regions"]))} for entry in table["files"]
        ]
        table["registers"] = list(map(_stated, table["registers"]))
        return json.dumps(table, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Packed:
    """A packed layer: a folder and its map."""

    folder: Path
    map: PackMap

    def image(self, memory: str) -> Bytes:
        """Return a memory's content, mapped from its file; KeyError if there is no such memory."""
        entry = {entry.memory: entry for entry in self.map.files}[memory]
        with (self.folder / entry.file).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), entry.bytes, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype=np.uint8)


def _stated(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def pack(
    model: ModelSpec,
    design: DesignSpec,
    supply: Supply,
    out: Path,
    *,
    batch_lengths: Sequence[int],
    scales: ActivationScales | None = None,
    placement: Placement | None = None,
    address: int = 0,
    layer: str | None = None,
    gate_alone: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> Packed:
    """Write a layer's memory images and their map into a folder, and return what the map says.

    Experts are read, packed and written a few at a time into files that are mapped, so memory does not grow
    with their number. The folder is made if missing. An earlier map is removed first and the new one comes
    last: a folder with a map is whole.

    Parameters
    ----------
    supply : gives the weights; asked in order of the experts' numbers.
    batch_lengths : tokens of the batches (sequences) that will be run; the register CAPACITY depends on them
        where experts have a capacity.
    scales : of tokens and hidden activations, for int8.
    placement : of a near-memory design, channels of each expert; round robin by default.
    address : of the weight image behind the AXI4 read master; a multiple of 4096.
    gate_alone : for the gate's top (``rtl/axi``): the router, and the registers that this top has.

    Raises
    ------
    InputError
        What does not fit the design, the banks, the address space or the disk; a folder that cannot be
        written.
    """
    check_writable(out)
    image = ImageGeometry.of(model, design)
    if gate_alone:
        # An output bias behind the router is the combiner's.
        image = replace(image, output_bias=False)
    near = design.engine is Engine.PIM
    banks = BankGeometry.unplaced(model, design) if near else None
    placed: Placement = []
    if banks is not None:
        placed = banks.round_robin() if placement is None else placement
        banks.check_fit(placed)
    head_bytes = image.load_beats * image.gate.load_elements * 2
    experts = not near and not gate_alone
    _check_address(address, image.num_bytes if experts else head_bytes)
    plans = [_axi_plan(image, address, head_bytes, design, experts=experts)]
    if banks is not None:
        plans += _bank_plans(banks, placed)
    plans = [plan for plan in plans if plan.bytes]
    total = sum(plan.bytes for plan in plans)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if total > free:
        raise InputError(f"needs {total} bytes, but {free} are free", file=out)
    steps = setup_steps(
        model,
        design,
        batch_lengths,
        scales,
        page=address // PAGE_BYTES,
        placement=() if banks is None else placement_steps(banks, placed),
    )
    with folder_beside(out, ".pack-") as aside:
        _fill(aside, plans, image, banks, supply, model, scales, progress)
        files = tuple(plan.described(_sha256(aside / plan.file)) for plan in plans)
        described = PackMap(
            kind=KIND,
            byte_order="little",
            model=model.name,
            layer=layer,
            design=Top.GATE if gate_alone else design.name,
            format=str(design.format),
            files=files,
            registers=tuple(
                step for step in register_steps(steps) if not gate_alone or step.register in GATE_REGISTERS
            ),
        )
        (aside / MAP).write_text(described.text())
        (out / MAP).unlink(missing_ok=True)
        for old in list(out.iterdir()):
            # Of an earlier pack, perhaps of another design: the new map would not name it.
            if IMAGES.fullmatch(old.name) and old.name not in {plan.file for plan in plans}:
                old.unlink()
        for name in (*(plan.file for plan in plans), MAP):
            (aside / name).chmod(0o644)
            (aside / name).replace(out / name)
    return Packed(out, described)


def register_steps(steps: Sequence[Step]) -> Iterator[RegisterStep]:
    """Yield what a driver does for the native bench's register steps; steps without a write are left out."""
    names = {address: name for name, address in REGISTERS.items()}
    for step in steps:
        address = step.values.get("reg_addr")
        if address is None:
            continue
        register = names[address]
        if isinstance(step, Wait):
            yield RegisterStep(
                op="wait", register=register, address=address, value=step.value, mask=step.mask
            )
        elif isinstance(step, Set) and step.values.get("reg_we"):
            yield RegisterStep(op="write", register=register, address=address, value=step.values["reg_wdata"])


@dataclass(frozen=True)
class _Plan:
    """A file before its bytes are known; ``places``: expert (None: what is loaded first) -> offset."""

    file: str
    memory: str
    address: int
    bytes: int
    word_bytes: int
    regions: tuple[Region, ...]
    places: dict[int | None, int]

    def described(self, sha256: str) -> ImageFile:
        return ImageFile(
            file=self.file,
            memory=self.memory,
            address=self.address,
            bytes=self.bytes,
            word_bytes=self.word_bytes,
            sha256=sha256,
            regions=self.regions,
        )


def _axi_plan(
    image: ImageGeometry, address: int, head_bytes: int, design: DesignSpec, *, experts: bool
) -> _Plan:
    """Return the plan of what lies behind the AXI4 read master: all of an array's, the router of others."""
    regions = [Region(name="router", offset=0, bytes=head_bytes)] if head_bytes else []
    places: dict[int | None, int] = {None: 0} if head_bytes else {}
    if experts:
        for expert in range(image.num_experts + (image.shared is not None)):
            places[expert] = image.expert_page(expert) * PAGE_BYTES
            shape = image.shared if expert == image.num_experts and image.shared else image.routed
            name = f"expert {expert}" if expert < image.num_experts else "shared expert"
            regions.append(Region(name=name, offset=places[expert], bytes=shape.num_bytes))
    size = image.num_bytes if experts else image.router_pages * PAGE_BYTES
    return _Plan(IMAGE, AXI, address, size, design.memory.width_bits // 8, tuple(regions), places)


def _bank_plans(banks: BankGeometry, placement: Placement) -> Iterator[_Plan]:
    """Yield the plan of each channel's storage."""
    tile_bytes = banks.pim.units * banks.pim.stored_burst_bytes
    visit_bytes = banks.bursts_per_row * tile_bytes
    names = {banks.num_experts: "shared expert", banks.router_number: "router"}
    for channel, bases in enumerate(banks.bases(placement)):
        regions = tuple(
            Region(
                name=names.get(expert, f"expert {expert}"),
                offset=base * visit_bytes,
                bytes=banks.kind(expert).num_tiles * tile_bytes,
                first_row=base // banks.sides,
            )
            for expert, base in bases.items()
        )
        end = max((base + banks.reserved(banks.kind(expert)) for expert, base in bases.items()), default=0)
        places: dict[int | None, int] = {expert: base * visit_bytes for expert, base in bases.items()}
        yield _Plan(
            f"channel_{channel}.bin", f"mem_{channel}", 0, end * visit_bytes, tile_bytes, regions, places
        )


def _check_address(address: int, num_bytes: int) -> None:
    require(
        address >= 0 and address % PAGE_BYTES == 0,
        f"must be a multiple of {PAGE_BYTES}, at least 0, not {address:#x}",
        key="address",
    )
    require(
        address + num_bytes <= 1 << ADDRESS_BITS,
        f"must leave {num_bytes} bytes below 2**{ADDRESS_BITS}, not {address:#x}",
        key="address",
    )


def _fill(
    folder: Path,
    plans: Sequence[_Plan],
    image: ImageGeometry,
    banks: BankGeometry | None,
    supply: Supply,
    model: ModelSpec,
    scales: ActivationScales | None,
    progress: Callable[[str], None],
) -> None:
    """Write every plan's bytes; what belongs to nothing is zero."""
    maps = []
    for plan in plans:
        with (folder / plan.file).open("wb") as file:
            file.truncate(plan.bytes)
        maps.append(np.memmap(folder / plan.file, np.uint8, "r+"))

    def put(number: int | None, content: Bytes) -> None:
        for plan, memory in zip(plans, maps, strict=True):
            if number in plan.places:
                start = plan.places[number]
                memory[start : start + content.size] = content

    # The router in the banks is one of these numbers; what is loaded from behind m_axi is None.
    needed = sorted({place for plan in plans for place in plan.places if place is not None})
    routed = [number for number in needed if number < image.num_experts]
    expert_bytes = 4 * model.ffn.num_matrices * model.d_model * model.ffn.d_expert
    at_once = max(1, BATCH_BYTES // expert_bytes)
    groups = [routed[start : start + at_once] for start in range(0, len(routed), at_once)] or [[0]]
    for count, group in enumerate(groups):
        weights = supply(group)
        if count == 0:
            if any(None in plan.places for plan in plans):
                put(None, load_image(image, weights))
            for number in needed:
                if number >= image.num_experts:
                    put(number, _expert_bytes(image, banks, weights, number, scales))
        for number in group:
            if number in needed:
                put(number, _expert_bytes(image, banks, weights, number, scales))
        if len(groups) > 1:
            progress(f"packed {min((count + 1) * at_once, len(routed))} of {len(routed)} experts")
    for memory in maps:
        memory.flush()


def _expert_bytes(
    image: ImageGeometry,
    banks: BankGeometry | None,
    weights: LayerWeights,
    number: int,
    scales: ActivationScales | None,
) -> Bytes:
    if banks is not None:
        return bank_image(banks, weights, number, scales).ravel()
    return pack_expert(image, weights, number, scales).image()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Whose weights


@dataclass(frozen=True, eq=False)
class LayerSource:
    """A layer to be packed: where its weights come from, and what its registers depend on.

    ``label``: the layer of a folder; ``scales``: of int8.
    """

    model: ModelSpec
    supply: Supply
    batch_lengths: Sequence[int]
    scales: ActivationScales | None
    label: str | None


def layer_source(
    model_name: str,
    design: DesignSpec,
    *,
    divisor: int,
    layer: str | None,
    seed: int,
    tokens: int | None,
    routing: Routing,
    calibration: Path | None = None,
) -> LayerSource:
    """Return the layer that ``sim`` would run by the same options, with scales of an integer format.

    These are those of ``sim``'s tokens, or of the ones in ``calibration``, a file for :func:`read_tokens`.
    Raises :class:`InputError` for whatever ``sim`` would refuse.
    """
    rule = f"is for scales of int8 and w4a8, which {design.format} has not"
    require(calibration is None or design.format.integer, rule, key="calibration")
    if workload.is_vector(model_name):
        require(layer is None, f"is for a folder with weights, not for {model_name}", key="layer")
        work = workload.vector_workload(model_name, tokens)
        if calibration is not None:
            work = replace(work, tokens=read_tokens(calibration, work.model))
        return LayerSource(
            work.model, lambda _experts: work.weights, work.batch_lengths, scales_of(work, design), None
        )
    own = workload.checkpoint_layer(model_name, layer)
    model = workload.scaled_model(model_name, divisor) if own is None else own.model
    image = ImageGeometry.of(model, design)

    def supply(experts: Sequence[int]) -> LayerWeights:
        return random_weights(model, seed, experts=experts) if own is None else own.read(experts)

    count = tokens or workload.DEFAULT_TOKENS
    scales = None
    if design.format.integer:
        gate = supply([0])
        if calibration is None:
            drawn = workload.draw_tokens(model, count, routing, seed, gate)
        else:
            drawn = workload.DrawnTokens(model, gate, read_tokens(calibration, model), None)
        scales = calibrate(model, supply(drawn.needed(image) or [0]), bf16_decode(drawn.tokens))
    return LayerSource(model, supply, [count], scales, None if own is None else own.label)


def read_tokens(path: Path, model: ModelSpec) -> Bits16:
    """Return the (tokens, d_model) numbers of a ``.npy`` file, rounded to bf16.

    Raises :class:`InputError` for whatever else the file holds.
    """
    values = read_array(path)
    try:
        require(
            values.ndim == 2 and values.shape[1] == model.d_model and 1 <= len(values) <= MAX_TOKENS,
            f"must be (tokens, {model.d_model}) of 1 to {MAX_TOKENS} tokens, not {values.shape}",
        )
        require(values.dtype.kind == "f", f"must hold floating-point numbers, not {values.dtype}")
        with np.errstate(over="ignore"):
            tokens = bf16_encode(values)
        finite = np.isfinite(bf16_decode(tokens))
        require(bool(finite.all()), f"must hold numbers that are finite in bf16, not {values[~finite][:1]}")
    except InputError as error:
        raise error.at(file=path) from None
    return tokens


# Reading back


def read_pack(folder: str | Path, *, verify: bool = True) -> Packed:
    """Return what a folder's map says; files are as long as it says and, if ``verify``, have its sums.

    Raises :class:`InputError`, one line with file and key, for whatever is not as ``pack`` writes it.
    """
    folder = Path(folder)
    path = folder / MAP
    try:
        check_regular(path)
        size = path.stat().st_size
        require(size <= MAX_MAP_BYTES, f"must have at most {MAX_MAP_BYTES} bytes, not {size}")
        described: PackMap = build_spec(PackMap, read_json(path.read_bytes(), "map"))
    except InputError as error:
        raise error.at(file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    for entry in described.files:
        file = folder / entry.file
        try:
            check_regular(file)
            size = file.stat().st_size
            if size != entry.bytes:
                raise InputError(f"must have {entry.bytes} bytes, as {MAP} says, not {size}", file=file)
            if verify and (found := _sha256(file)) != entry.sha256:
                raise InputError(f"must have sha256 {entry.sha256}, as {MAP} says, not {found}", file=file)
        except InputError as error:
            raise error.at(file=file) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=file) from None
    return Packed(folder, described)
