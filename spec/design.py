"""A piece of hardware: engine, lanes, buffers, memory. Data; validated here, once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

from spec.dram import DramSpec
from spec.energy import EnergyTable
from spec.errors import InputError, require, require_range


class Engine(StrEnum):
    """Which engine computes the experts."""

    FPGA = "fpga"
    PIM = "pim"


class Format(StrEnum):
    """Numbers of the experts' matrices; ``docs/numbers.md``.

    What they are multiplied with is int8 in the *integer* formats (``int8``, and ``w4a8``, whose weights are
    int4), else bf16. In the *grouped* formats (``fp8``, ``mxfp4``, ``int4``) a group of a row's elements
    shares a scale. The router, the gate, the combiner and the streams in and out are bf16 in any case.
    """

    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    MXFP4 = "mxfp4"
    INT4 = "int4"
    W4A8 = "w4a8"

    @property
    def bits(self) -> int:
        """Bits of a stored element."""
        return {Format.BF16: 16, Format.INT8: 8, Format.FP8: 8}.get(self, 4)

    @property
    def operand_bits(self) -> int:
        """Bits of what an element is multiplied with."""
        return 8 if self.integer else 16

    @property
    def integer(self) -> bool:
        """Whether inputs are int8 and products are summed as int32."""
        return self in (Format.INT8, Format.W4A8)

    @property
    def largest_weight(self) -> int:
        """Largest magnitude of a weight of an integer format; -128 and -8 do not occur."""
        return (1 << (self.bits - 1)) - 1

    @property
    def most_inputs(self) -> int:
        """Most products of an integer format whose sum fits an int32, whatever their signs."""
        return ((1 << 31) - 1) // (INT8_MAX * self.largest_weight)

    @property
    def grouped(self) -> bool:
        """Whether groups of elements share a scale."""
        return self in GROUPS

    @property
    def scale_bits(self) -> int:
        """Bits of a group's scale: fp32, e8m0, bf16."""
        return {Format.FP8: 32, Format.MXFP4: 8, Format.INT4: 16}[self]


GROUPS = {Format.FP8: (1, 128), Format.MXFP4: (32, 32), Format.INT4: (32, 128)}
"""Inputs that share a scale, from and to; a power of two."""
DEFAULT_GROUP = {Format.FP8: 128, Format.MXFP4: 32, Format.INT4: 32}
PLAIN_FORMATS = tuple(one for one in Format if not one.grouped)
"""Formats without groups."""
INTEGER_FORMATS = tuple(one for one in Format if one.integer)
"""Formats of integer products."""

INT8_MAX = 127
"""Largest magnitude of an int8 number: -128 does not occur."""


class Pipeline(StrEnum):
    """How many stages a block's arithmetic has; the bits that come out are the same.

    ``SHORT``: few, each a whole step (an fp32 addition takes 3). ``DEEP``: cut for the clock goals of
    ``docs/synthesis.md`` (an fp32 addition takes 7).
    """

    SHORT = "short"
    DEEP = "deep"


class DeepBlock(StrEnum):
    """Blocks of an ``fpga`` that can have deep pipelines."""

    GATE = "gate"
    DISPATCH = "dispatch"
    EXPERT = "expert"
    COMBINE = "combine"


class Policy(StrEnum):
    """Order in which the dispatcher serves its queues; the shared expert's comes first in any case.

    ``queue_order``: ascending expert index. ``longest_queue``: most entries in the window first, the lowest
    index where there are as many.
    """

    QUEUE_ORDER = "queue_order"
    LONGEST_QUEUE = "longest_queue"


NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of designs."""


def _require_power_of_two(name: str, value: int, low: int, high: int) -> None:
    require(
        low <= value <= high and value & (value - 1) == 0,
        f"must be a power of two in {low}..{high}, not {value}",
        key=name,
    )


@dataclass(frozen=True, kw_only=True)
class GateDesign:
    """Router product and selection.

    Attributes
    ----------
    lanes : MACs; a power of two in 1..4096.
    logits_per_cycle : logits that are computed and ranked at the same time, a power of two in 1..64, at most
        ``lanes``.
    """

    lanes: int = 64
    logits_per_cycle: int = 4

    def __post_init__(self) -> None:
        _require_power_of_two("lanes", self.lanes, 1, 4096)
        _require_power_of_two("logits_per_cycle", self.logits_per_cycle, 1, 64)
        require(
            self.logits_per_cycle <= self.lanes,
            f"must be at most lanes={self.lanes}, not {self.logits_per_cycle}",
            key="logits_per_cycle",
        )


class Multiplier(StrEnum):
    """What multiplies in a MAC array.

    ``SINGLE``: a multiplier for each product. ``DUAL``: one for two rows' products with an input: in ``int8``
    as wide as that of a DSP48 (25 x 18 bits), with weights of few bits (``w4a8``, ``fp8``, ``mxfp4``,
    ``int4``) as that of an ECP5 (18 x 18).
    """

    SINGLE = "single"
    DUAL = "dual"


@dataclass(frozen=True, kw_only=True)
class ArrayDesign:
    """The expert engine's MAC array.

    Attributes
    ----------
    rows, cols : outputs x inputs per cycle; powers of two in 1..256.
    act_lanes : results per cycle that leave the accumulators for the activation and the combiner; a power of
        two, at most ``rows`` and ``cols``.
    multiplier : what multiplies; ``dual`` with formats of few bits and two rows at least. Results and cycles
        are the same.
    """

    rows: int = 16
    cols: int = 16
    act_lanes: int = 4
    multiplier: Multiplier = Multiplier.SINGLE

    def __post_init__(self) -> None:
        _require_power_of_two("rows", self.rows, 1, 256)
        _require_power_of_two("cols", self.cols, 1, 256)
        _require_power_of_two("act_lanes", self.act_lanes, 1, 256)
        require(
            self.act_lanes <= min(self.rows, self.cols),
            f"must be at most min(rows={self.rows}, cols={self.cols}), not {self.act_lanes}",
            key="act_lanes",
        )
        require(
            self.multiplier is Multiplier.SINGLE or self.rows >= 2,
            f"must be single with rows={self.rows} (a dual one multiplies for two rows), not dual",
            key="multiplier",
        )


@dataclass(frozen=True, kw_only=True)
class MemoryDesign:
    """The weight memory behind the AXI4 read master: bursts in order.

    Attributes
    ----------
    width_bits : bits of a data beat, of which there is one per cycle; a power of two in 16..4096.
    latency_cycles : cycles from an accepted read address to the first data beat, 1..4096.
    burst_beats : beats of a burst, a power of two in 1..256; a burst has 4096 bytes at most.
    max_outstanding : bursts that are asked for and not here yet, 1..256.
    """

    width_bits: int = 256
    latency_cycles: int = 100
    burst_beats: int = 16
    max_outstanding: int = 16

    def __post_init__(self) -> None:
        _require_power_of_two("width_bits", self.width_bits, 16, 4096)
        require_range("latency_cycles", self.latency_cycles, 1, 4096)
        _require_power_of_two("burst_beats", self.burst_beats, 1, 256)
        require_range("max_outstanding", self.max_outstanding, 1, 256)
        require(
            self.burst_bytes <= 4096,
            f"times width_bits={self.width_bits} must not cross 4 KiB, but a burst of"
            f" {self.burst_beats} beats has {self.burst_bytes} bytes",
            key="burst_beats",
        )

    @property
    def beat_bytes(self) -> int:
        """Bytes of one data beat."""
        return self.width_bits // 8

    @property
    def beat_elements(self) -> int:
        """bf16 elements of one data beat."""
        return self.width_bits // 16

    @property
    def burst_bytes(self) -> int:
        """Bytes of one burst."""
        return self.burst_beats * self.beat_bytes


class BankMode(StrEnum):
    """Whether a row or column command goes to all banks of a channel at once, or to one at a time."""

    ALL_BANK = "all_bank"
    SINGLE_BANK = "single_bank"


class RegisterPath(StrEnum):
    """How inputs reach the banks' registers and results leave them.

    ``SHARED``: as bursts on the data bus, like any write or read, with its turnarounds.
    ``OWN``: on wires of their own; they take a slot of the command bus and nothing else.
    """

    SHARED = "shared"
    OWN = "own"


class RouterPlace(StrEnum):
    """Where the near-memory accelerator multiplies tokens with the router.

    ``OWN``: on the gate's MACs, from a memory on chip. ``BANKS``: on the MACs of channel 0, in whose banks
    the router then lies.
    """

    OWN = "own"
    BANKS = "banks"


class Ecc(StrEnum):
    """What the banks hold beside their data.

    ``NONE``: nothing. ``SECDED``: 8 check bits with every 64 of data (:mod:`golden.secded`).
    """

    NONE = "none"
    SECDED = "secded"


SECDED_WORD_BYTES, SECDED_CHECK_BYTES = 8, 1
"""Data that check bits are for, and the check bits."""
SECDED_CYCLES = 1
"""Cycles from a word out of the banks to the corrected one."""


@dataclass(frozen=True, kw_only=True)
class PimDesign:
    """Near-memory engine: channels of DRAM banks with MAC lanes beside them.

    A *unit* is what ``banks_per_unit`` banks share: lanes as wide as a burst, accumulators for
    ``tokens_per_burst`` tokens. While one of its banks computes, the next one may open its row.

    Attributes
    ----------
    dram : DRAM of a channel; a preset's name in TOML.
    channels : channels that compute at the same time, 1..64.
    banks_per_unit : 1 for lanes at each bank, 2 for a pair of banks, 4.
    bank_mode : all banks in step, or one command each.
    tokens_per_burst : tokens that share a weight burst; a power of two in 1..64.
    mac_cycles : cycles from one token's MAC to the next one's on the same burst, 1..16.
    register_path : how inputs and results travel.
    act_lanes : results handled per cycle by the channel's activation; a power of two, at most the units.
    storage_cycles : cycles from a MAC command to its bursts out of the banks, 1..256.
    refresh : whether the banks are refreshed.
    router : where tokens are multiplied with the router.
    ecc : check bits in the banks.
    """

    dram: DramSpec
    channels: int = 2
    banks_per_unit: int = 1
    bank_mode: BankMode = BankMode.ALL_BANK
    tokens_per_burst: int = 4
    mac_cycles: int = 1
    register_path: RegisterPath = RegisterPath.OWN
    act_lanes: int = 4
    storage_cycles: int = 16
    refresh: bool = True
    router: RouterPlace = RouterPlace.OWN
    ecc: Ecc = Ecc.NONE

    def __post_init__(self) -> None:
        require_range("channels", self.channels, 1, 64)
        _require_power_of_two("banks_per_unit", self.banks_per_unit, 1, 4)
        _require_power_of_two("tokens_per_burst", self.tokens_per_burst, 1, 64)
        require_range("mac_cycles", self.mac_cycles, 1, 16)
        require_range("storage_cycles", self.storage_cycles, 1, 256)
        require(
            self.units >= 1,
            f"leaves no unit in {self.dram.num_banks} banks",
            key="banks_per_unit",
        )
        _require_power_of_two("act_lanes", self.act_lanes, 1, 256)
        require(
            self.act_lanes <= self.units,
            f"must be at most the {self.units} units, not {self.act_lanes}",
            key="act_lanes",
        )
        require(
            not self.secded or self.dram.burst_bytes % SECDED_WORD_BYTES == 0,
            f"must be none with bursts of {self.dram.burst_bytes} bytes, which are no words of"
            f" {SECDED_WORD_BYTES}, not {self.ecc}",
            key="ecc",
        )

    @property
    def secded(self) -> bool:
        """Whether the banks hold check bits."""
        return self.ecc is Ecc.SECDED

    @property
    def stored_burst_bytes(self) -> int:
        """Bytes of a burst as it lies in the banks, its check bits behind it."""
        burst = self.dram.burst_bytes
        return burst + (burst // SECDED_WORD_BYTES * SECDED_CHECK_BYTES if self.secded else 0)

    @property
    def weight_cycles(self) -> int:
        """Cycles from a MAC command to its weights at the lanes, corrected where they have check bits."""
        return self.storage_cycles + (SECDED_CYCLES if self.secded else 0)

    @property
    def units(self) -> int:
        """Units of a channel: outputs that are computed at the same time."""
        return self.dram.num_banks // self.banks_per_unit

    @property
    def opens_singly(self) -> bool:
        """Whether banks are opened one by one, each ACT counted against ``rrd`` and ``faw``."""
        return self.bank_mode is BankMode.SINGLE_BANK or not self.dram.all_bank_exempt or self.units == 1

    def lanes(self, number_format: Format) -> int:
        """Return the MAC lanes of a unit: elements of a burst."""
        return self.dram.burst_bytes * 8 // number_format.bits

    def load_lanes(self, number_format: Format) -> int:
        """Return the inputs that a register write brings: as many as there is room for in a burst."""
        return self.dram.burst_bytes * 8 // number_format.operand_bits


@dataclass(frozen=True, kw_only=True)
class DesignSpec:
    """An accelerator.

    Attributes
    ----------
    name : what exported files and modules are called after; a letter, then at most 63 letters, digits, ``-``
        and ``_``.
    engine : what computes the experts; ``array`` describes an ``fpga`` engine, ``pim`` a ``pim`` engine.
    format : numbers in which the experts are computed.
    group : inputs that share a scale in a grouped format, by default 128 in ``fp8``, 32 in ``mxfp4`` and
        ``int4``; in ``fp8`` also outputs (blocks of ``group`` x ``group``).
    memory : memory behind the AXI4 read master: an ``fpga``'s weights, the router of both (a ``pim``'s
        selection bias alone, where the banks hold the router).
    gate, array, pim : their tables.
    stream_lanes : bf16 elements per beat of the token input stream; a power of two in 1..256.
    window_tokens : tokens that are dispatched together: an expert's weights are fetched once for all
        of a window's tokens. The token store holds two windows. A power of two in 1..1024.
    policy : order of service of the dispatcher's queues.
    deep : blocks whose pipelines are deep (:class:`Pipeline`), of an ``fpga``; the others' are short. Beside
        banks they all are: a MAC of a channel has tCCD_L, and its logic is none of an FPGA.
    max_d_model, max_d_expert, max_experts : largest model that the design accepts; up to 65536, 262144, 512.
    clock_hz : clock used to turn cycles into seconds.
    energy : what events cost; a preset's name in TOML. None: no energy is counted.
    """

    PRESET_FOLDER: ClassVar[str] = "designs"

    name: str
    engine: Engine
    format: Format = Format.BF16
    group: int | None = None
    gate: GateDesign = field(default_factory=GateDesign)
    array: ArrayDesign | None = None
    pim: PimDesign | None = None
    memory: MemoryDesign = field(default_factory=MemoryDesign)
    stream_lanes: int = 16
    window_tokens: int = 32
    policy: Policy = Policy.QUEUE_ORDER
    deep: tuple[DeepBlock, ...] = ()
    max_d_model: int = 8192
    max_d_expert: int = 32768
    max_experts: int = 512
    clock_hz: float = 100e6
    energy: EnergyTable | None = None

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"must be a letter, then at most 63 letters, digits, - and _ (modules are called after it), not"
            f" {self.name!r}",
            key="name",
        )
        _require_power_of_two("stream_lanes", self.stream_lanes, 1, 256)
        _require_power_of_two("window_tokens", self.window_tokens, 1, 1024)
        require_range("max_d_model", self.max_d_model, 1, 1 << 16)
        require_range("max_d_expert", self.max_d_expert, 1, 1 << 18)
        require_range("max_experts", self.max_experts, 1, 512)
        require(self.clock_hz > 0, f"must be positive, not {self.clock_hz}", key="clock_hz")
        for engine, table in ((Engine.FPGA, self.array), (Engine.PIM, self.pim)):
            name = "array" if engine is Engine.FPGA else "pim"
            if self.engine is engine:
                require(table is not None, f"must be given for engine {engine}", key=name)
            else:
                require(table is None, f"must not be given for engine {self.engine}", key=name)
        self._check_group()
        self._check_deep()
        if self.pim is not None:
            clock_ps = self.pim.dram.clock_ps
            require(
                abs(self.clock_hz * clock_ps * 1e-12 - 1) < 1e-3,
                f"must be {1e12 / clock_ps:g}, a cycle for each tCK (clock_ps={clock_ps}), not"
                f" {self.clock_hz:g}",
                key="clock_hz",
            )
            lanes = self.pim.load_lanes(self.format)
            operands = Format.BF16 if self.format.grouped else self.format
            # A register write brings a hidden value of each unit.
            require(
                self.pim.units <= lanes,
                f"leaves {self.pim.units} units in {self.pim.dram.num_banks} banks; there must be 1..{lanes}"
                f" (the {operands} elements of a burst)",
                key="pim.banks_per_unit",
            )
        if self.format is not Format.BF16:
            lanes_take = f"take {self.format} weights" if self.format.grouped else f"are {self.format}"
            require(
                self.pim is None or self.pim.router is RouterPlace.OWN,
                f"must be own with format {self.format} (the lanes beside the banks {lanes_take} then, the"
                " router is bf16), not banks",
                key="pim.router",
            )
        require(
            self.array is None or self.array.multiplier is Multiplier.SINGLE or self.format.bits <= 8,
            f"must be single with format {self.format} (a dual one multiplies with weights of at most 8"
            " bits), not dual",
            key="array.multiplier",
        )
        if self.format.integer:
            for name in ("max_d_model", "max_d_expert"):
                value = getattr(self, name)
                require(
                    value <= self.format.most_inputs,
                    f"must be at most {self.format.most_inputs} with format {self.format} (sums of"
                    f" {INT8_MAX} * {self.format.largest_weight} in an int32),"
                    f" not {value}",
                    key=name,
                )
        for name, width in (
            ("array.cols" if self.array else f"the {self.format} elements of a burst", self.tile.cols),
            ("gate.lanes / gate.logits_per_cycle", self.gate.lanes // self.gate.logits_per_cycle),
        ):
            require(
                width % self.stream_lanes == 0,
                f"must divide {name}={width}, not {self.stream_lanes}",
                key="stream_lanes",
            )
        tile = self.tile.rows * self.tile.cols
        require(
            self.pim is not None or tile * self.format.bits % self.memory.width_bits == 0,
            f"must divide a tile of rows x cols = {tile} {self.format} weights,"
            f" not {self.memory.width_bits // self.format.bits} elements ({self.memory.width_bits} bits)",
            key="memory.width_bits",
        )
        router_word = self.gate.lanes
        require(
            router_word % self.memory.beat_elements == 0,
            f"must divide a router word of gate.lanes = {router_word} bf16 weights,"
            f" not {self.memory.beat_elements} elements ({self.memory.width_bits} bits)",
            key="memory.width_bits",
        )

    def _check_deep(self) -> None:
        given = ", ".join(self.deep)
        require(
            self.engine is Engine.FPGA or not self.deep,
            f"must be empty for engine {self.engine} (its pipelines are short), not {given}",
            key="deep",
        )
        require(len(set(self.deep)) == len(self.deep), f"must name each block once, not {given}", key="deep")

    def pipeline_of(self, block: DeepBlock) -> Pipeline:
        """Return how a block's arithmetic is cut."""
        return Pipeline.DEEP if block in self.deep else Pipeline.SHORT

    def _check_group(self) -> None:
        if not self.format.grouped:
            require(
                self.group is None,
                f"must not be given with format {self.format} (it has no groups)",
                key="group",
            )
            return
        low, high = GROUPS[self.format]
        if low == high:
            require(
                self.scale_group == low,
                f"must be {low} with format {self.format}, not {self.group}",
                key="group",
            )
        _require_power_of_two("group", self.scale_group, low, high)
        require(
            self.array is None or self.array.cols <= self.scale_group,
            f"must be at most group={self.scale_group} ({self.format} weights that share a scale), not"
            f" {self.tile.cols}: a tile must not split a group",
            key="array.cols",
        )

    @property
    def scale_group(self) -> int:
        """Inputs that share a scale; 0 where the format has no groups."""
        return self.group if self.group is not None else DEFAULT_GROUP.get(self.format, 0)

    @property
    def hardware(self) -> DesignSpec:
        """The design without its name and without what its Verilog does not depend on."""
        return replace(self, name="design", energy=None)

    def with_secded(self) -> DesignSpec:
        """Return the design with check bits in its banks; :class:`InputError` where it has none."""
        if self.pim is None:
            raise InputError(f"needs a design with banks, not {self.name}", key="secded")
        return replace(self, pim=replace(self.pim, ecc=Ecc.SECDED))

    @property
    def tile(self) -> ArrayDesign:
        """Shape of a tile: outputs computed together, inputs of a burst, results handled per cycle."""
        if self.array is not None:
            return self.array
        assert self.pim is not None
        return ArrayDesign(
            rows=self.pim.units, cols=self.pim.lanes(self.format), act_lanes=self.pim.act_lanes
        )

    def check_model(self, d_model: int, d_expert: int, d_shared: int, num_experts: int) -> None:
        """Raise :class:`InputError` unless a model of these sizes fits the design's limits."""
        for key, value, limit_name, limit in (
            ("d_model", d_model, "max_d_model", self.max_d_model),
            ("d_expert", d_expert, "max_d_expert", self.max_d_expert),
            ("d_shared", d_shared, "max_d_expert", self.max_d_expert),
            ("num_experts", num_experts, "max_experts", self.max_experts),
        ):
            if value > limit:
                raise InputError(
                    f"must be at most {limit_name}={limit} of design {self.name}, not {value}", key=key
                )
