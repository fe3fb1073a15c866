"""Registers of the accelerators: names, addresses, access, fields, meaning.

One description. From it come the register file and the address decoder in RTL, the C header, the Python
constants, SystemRDL and ``docs/registers.md`` (:mod:`sim.register_map`), and what driver and reports read.

Two pages of 256 bytes. The core's has configuration, status and counters: the plain port ``reg_*`` of a
layer is this page alone. The bus' exists in the tops with AXI ports (:mod:`rtl.axi`): errors, interrupts,
recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from spec.design import DesignSpec, Policy
from spec.errors import require

IDENTITY = 0x45423031
"""Constant of the IDENTITY register: ``EB01``."""


class Access(StrEnum):
    """What software may do with a register; what it may not is refused at the AXI4-Lite port."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read, write"
    CLEAR = "read, write 1 to clear"

    @property
    def readable(self) -> bool:
        """Whether a read shows more than 0."""
        return self is not Access.WRITE

    @property
    def writable(self) -> bool:
        """Whether it may be written."""
        return self is not Access.READ


class Top(StrEnum):
    """What has AXI ports: the two accelerators, and two blocks alone. Their order numbers them in BUS_ID."""

    FPGA = "fpga"
    PIM = "pim"
    GATE = "gate"
    DISPATCH = "dispatch"


LAYERS = (Top.FPGA, Top.PIM)
ALONE = (Top.GATE, Top.DISPATCH)
"""Tops of one block."""
LOADS = (*LAYERS, Top.GATE)


@dataclass(frozen=True, kw_only=True)
class Field:
    """Bits of a register.

    Attributes
    ----------
    low, width : lowest bit, bits.
    reset : value after reset.
    told : what it holds after reset is the top's own, or its design's (:func:`register_map`).
    pulse : acts in the cycle after it is written with 1, and reads as 0.
    locked : a write of 1 is refused while a token is inside, the router is loaded or recovery is under way.
    """

    name: str
    low: int = 0
    width: int = 32
    meaning: str = ""
    reset: int = 0
    told: bool = False
    pulse: bool = False
    locked: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.low + self.width <= 32:
            raise ValueError(
                f"{self.name}: bits must lie in 0..31, not {self.low}..{self.low + self.width - 1}"
            )
        if not 0 <= self.reset < 1 << self.width:
            raise ValueError(f"{self.name}: reset must have at most {self.width} bits, not {self.reset}")

    @property
    def mask(self) -> int:
        """The field's bits in its register."""
        return ((1 << self.width) - 1) << self.low


@dataclass(frozen=True, kw_only=True)
class Register:
    """A 32-bit register.

    Attributes
    ----------
    address : in bytes.
    fields : ascending; bits in none of them read as 0 and are not written.
    tops : which tops have it.
    int8 : only in designs whose format is an integer one (:attr:`spec.design.Format.integer`).
    secded : only where banks hold check bits.
    locked : writes are refused while a token is inside, the router is loaded or recovery is under way.
    """

    name: str
    address: int
    access: Access
    meaning: str
    fields: tuple[Field, ...] = (Field(name="value"),)
    tops: tuple[Top, ...] = tuple(Top)
    int8: bool = False
    secded: bool = False
    locked: bool = False

    def __post_init__(self) -> None:
        if self.address % 4:
            raise ValueError(f"{self.name}: address must be a multiple of 4, not {self.address:#x}")
        free = 0
        for field in self.fields:
            if field.low < free:
                raise ValueError(f"{self.name}: fields must ascend and not overlap, as {field.name} does")
            free = field.low + field.width

    @property
    def reset(self) -> int:
        """Value after reset."""
        return sum(field.reset << field.low for field in self.fields)


def _bits(*fields: Field) -> tuple[Field, ...]:
    return fields


CORE_REGISTERS = (
    Register(
        name="IDENTITY",
        address=0x00,
        access=Access.READ,
        meaning="Tells that ExpertBank is here: `EB01`.",
        fields=_bits(Field(name="value", reset=IDENTITY)),
    ),
    Register(
        name="CONTROL",
        address=0x04,
        access=Access.WRITE,
        meaning="Starts what software starts. Reads as 0.",
        fields=_bits(
            Field(
                name="load",
                width=1,
                pulse=True,
                locked=True,
                meaning="read the router from the weight image, from its first beat; tokens wait for it, in"
                " `dispatch` too, which reads nothing",
            ),
            Field(name="clear", low=1, width=1, pulse=True, meaning="set all counters to 0"),
        ),
    ),
    Register(
        name="STATUS",
        address=0x08,
        access=Access.READ,
        meaning="What the core does.",
        fields=_bits(
            Field(
                name="loaded",
                width=1,
                told=True,
                meaning="the router is there; 1 from reset on in `dispatch`, which has none",
            ),
            Field(name="busy", low=1, width=1, meaning="a token is inside"),
            Field(
                name="read_error",
                low=2,
                width=1,
                meaning="a read was answered with an error since the last load",
            ),
            Field(name="refreshing", low=3, width=1, meaning="channel 0 refreshes (`pim`)"),
            Field(
                name="uncorrected",
                low=4,
                width=1,
                meaning="a word with two flipped bits was read since `clear` (`pim` with check bits)",
            ),
        ),
    ),
    Register(
        name="IMAGE_PAGE",
        address=0x0C,
        access=Access.READ_WRITE,
        meaning="Where the weight image starts in memory.",
        fields=_bits(Field(name="value", meaning="4 KiB page: address / 4096; 28 bits are used")),
        tops=LOADS,
        locked=True,
    ),
    Register(
        name="CAPACITY",
        address=0x10,
        access=Access.READ_WRITE,
        meaning="Assignments that an expert takes of a batch; 16 bits are used.",
        fields=_bits(Field(name="value", meaning="0: no limit")),
        tops=(*LAYERS, Top.DISPATCH),
        locked=True,
    ),
    Register(
        name="POLICY",
        address=0x14,
        access=Access.READ_WRITE,
        meaning="Order of service.",
        fields=_bits(
            Field(name="value", meaning="0 queue order, 1 longest queue first where the design has it")
        ),
        tops=(*LAYERS, Top.DISPATCH),
        locked=True,
    ),
    Register(
        name="PLACE_EXPERT",
        address=0x18,
        access=Access.WRITE,
        meaning="Names an entry of the placement tables.",
        fields=_bits(
            Field(
                name="expert",
                width=16,
                meaning="`num_experts` for the shared one, `num_experts` + 1 for a router in the banks",
            ),
            Field(name="channel", low=16, width=8, meaning="the channel that PLACE_ROW is of"),
        ),
        tops=(Top.PIM,),
        locked=True,
    ),
    Register(
        name="PLACE_ROW",
        address=0x1C,
        access=Access.WRITE,
        meaning="Writes the first row of PLACE_EXPERT's expert in its channel.",
        tops=(Top.PIM,),
        locked=True,
    ),
    Register(
        name="PLACE_CHANNELS",
        address=0x20,
        access=Access.WRITE,
        meaning="Writes which channels hold PLACE_EXPERT's expert, one bit each.",
        tops=(Top.PIM,),
        locked=True,
    ),
    Register(
        name="SCALE_X",
        address=0x24,
        access=Access.READ_WRITE,
        meaning="What turns tokens into int8.",
        fields=_bits(
            Field(name="mantissa", width=16, meaning="mantissa"),
            Field(name="shift", low=16, width=16, meaning="shift, signed"),
        ),
        tops=LAYERS,
        int8=True,
        locked=True,
    ),
    Register(
        name="SCALE_H",
        address=0x28,
        access=Access.READ_WRITE,
        meaning="What turns hidden activations into int8.",
        fields=_bits(
            Field(name="mantissa", width=16, meaning="mantissa"),
            Field(name="shift", low=16, width=16, meaning="shift, signed"),
        ),
        tops=LAYERS,
        int8=True,
        locked=True,
    ),
)
"""The core's page without its counters. IMAGE_PAGE: 4 KiB page of the weight image. CAPACITY: assignments
that an expert takes per batch, 0 = dropless. POLICY: see :data:`POLICIES`. SCALE_X, SCALE_H:
:attr:`golden.int8.FixedScale.word`, to be written before the first token."""

REGISTERS = {register.name: register.address for register in CORE_REGISTERS}
"""Byte addresses of :data:`CORE_REGISTERS`."""

POLICIES = (Policy.QUEUE_ORDER, Policy.LONGEST_QUEUE)
"""Values of POLICY, from 0. Hardware without the longest queue's logic serves in queue order."""

CAPACITY_BITS = 16
"""Bits of CAPACITY that are used."""


def field_of(registers: Sequence[Register], register: str, field: str) -> Field:
    """Return a register's field by its name."""
    fields = next(candidate.fields for candidate in registers if candidate.name == register)
    return next(candidate for candidate in fields if candidate.name == field)


def _low(register: str, field: str) -> int:
    return field_of(CORE_REGISTERS, register, field).low


CONTROL_LOAD = _low("CONTROL", "load")
"""Bit of CONTROL: load the router from the weight image (no token may be inside)."""
CONTROL_CLEAR = _low("CONTROL", "clear")
"""Bit of CONTROL: set all counters to zero."""


def capacity_word(expert_capacity: int, longest: int, *, key: str = "expert_capacity") -> int:
    """Return what CAPACITY holds for sequences of at most ``longest`` tokens.

    A capacity beyond the register that no sequence can reach is none; one that a sequence can reach
    raises :class:`spec.errors.InputError` for ``key``, the field that it is from. Hardware of a model
    without any place does not read it: 0.
    """
    most = (1 << CAPACITY_BITS) - 1
    if expert_capacity <= most:
        return max(0, expert_capacity)
    require(
        longest <= expert_capacity,
        f"must be at most {most} (register CAPACITY) for a sequence of {longest} tokens,"
        f" not {expert_capacity}",
        key=key,
    )
    return 0


STATUS_LOADED = _low("STATUS", "loaded")
"""Bit of STATUS: the router is loaded."""
STATUS_BUSY = _low("STATUS", "busy")
"""Bit of STATUS: a token is inside."""
STATUS_READ_ERROR = _low("STATUS", "read_error")
"""Bit of STATUS: the memory answered a read with an error since the last load."""

STATUS_REFRESHING = _low("STATUS", "refreshing")
"""Bit of STATUS: a refresh of channel 0 is under way (``pim``)."""
STATUS_UNCORRECTED = _low("STATUS", "uncorrected")
"""Bit of STATUS: a word with two flipped bits was read since the counters were cleared (``pim`` with check
bits in its banks)."""

COUNTERS = {
    "cycles": "cycles with a token inside, from the first input beat to the last output beat",
    "tokens_in": "tokens taken",
    "tokens_out": "tokens given",
    "assignments": "token-expert assignments routed",
    "dropped": "assignments dropped by the capacity",
    "mac_active": "MAC slots used: a tile and a token",
    "weight_beats": "weight beats stored into tiles",
    "read_beats": "beats read from memory, padding included",
    "stall_input": "an input beat waits",
    "stall_dispatch": "a job entry waits for the expert engine",
    "stall_weights": "the array waits for a tile",
    "stall_accumulators": "the array waits for its accumulators to be added or drained",
    "stall_hidden": "the array waits for hidden activations",
    "stall_combine": "an expert's result waits for the combiner",
    "stall_output": "an output beat waits",
    "activates": "ACT commands, all channels",
    "refreshes": "REF commands",
    "mac_commands": "MAC commands",
    "register_writes": "register writes: inputs and hidden activations",
    "register_reads": "register reads: results",
}
"""Performance counters, 64 bits each; those of another engine stay 0."""

ECC_COUNTERS = {
    "corrected": "words read from the banks with one flipped bit, which was corrected",
    "uncorrected": "words read with two flipped bits, which were not",
}
"""Further counters of a ``pim`` design whose banks hold check bits."""

FIRST_COUNTER = 0x40


def counter_address(name: str) -> int:
    """Return the byte address of a counter's low word; the high word follows."""
    return FIRST_COUNTER + 8 * [*COUNTERS, *ECC_COUNTERS].index(name)


def counters_of(design: DesignSpec) -> tuple[str, ...]:
    """Return the names of a design's counters, in the order of their addresses."""
    return (*COUNTERS, *(ECC_COUNTERS if design.pim is not None and design.pim.secded else ()))


BUS_VERSION = 1
"""Version of the bus' page, in BUS_ID: another one is another sequence of accesses."""

BUS_PAGE = 0x100
"""First address of the bus' page."""

BUS_REGISTERS = (
    Register(
        name="BUS_ID",
        address=BUS_PAGE + 0x00,
        access=Access.READ,
        meaning="Which top this is.",
        fields=_bits(
            Field(name="version", width=8, reset=BUS_VERSION, meaning="version of this page"),
            Field(
                name="top",
                low=8,
                width=4,
                told=True,
                meaning=", ".join(f"{number} `{top}`" for number, top in enumerate(Top)),
            ),
            Field(
                name="int8", low=12, width=1, told=True, meaning="inputs of the experts' products are int8"
            ),
            Field(name="secded", low=13, width=1, told=True, meaning="banks hold check bits"),
        ),
    ),
    Register(
        name="BUS_CONTROL",
        address=BUS_PAGE + 0x04,
        access=Access.WRITE,
        meaning="Recovery. Reads as 0.",
        fields=_bits(
            Field(
                name="recover",
                width=1,
                pulse=True,
                meaning="reset the core: what is inside is gone, reads in flight are waited for, ERRORS"
                " is cleared",
            ),
            Field(
                name="discard_rest",
                low=1,
                width=1,
                pulse=True,
                meaning="with `recover`: the rest of a packet that is open will still be sent, and is"
                " discarded up to its `tlast`",
            ),
        ),
    ),
    Register(
        name="BUS_STATUS",
        address=BUS_PAGE + 0x08,
        access=Access.READ,
        meaning="What the ports do.",
        fields=_bits(
            Field(name="halted", width=1, meaning="no further token is taken until `recover`"),
            Field(name="recovering", low=1, width=1, meaning="`recover` is not done yet"),
            Field(name="packet_open", low=2, width=1, meaning="the last beat taken had no `tlast`"),
            Field(name="busy", low=3, width=1, meaning="a token is inside"),
            Field(name="loading", low=4, width=1, meaning="the router is being loaded"),
            Field(name="reads", low=8, width=8, meaning="bursts asked for and not answered, at most 255"),
        ),
    ),
    Register(
        name="ERRORS",
        address=BUS_PAGE + 0x0C,
        access=Access.READ,
        meaning="What went wrong since reset or `recover`.",
        fields=_bits(
            Field(
                name="short_token",
                width=1,
                meaning="`tlast` came inside a token, which was filled up with zeros",
            ),
            Field(name="short_packet", low=1, width=1, meaning="`tlast` came before BATCH_TOKENS tokens"),
            Field(
                name="long_packet",
                low=2,
                width=1,
                meaning="no `tlast` on the last beat of BATCH_TOKENS tokens; what followed was discarded",
            ),
            Field(name="read_slverr", low=3, width=1, meaning="a read was answered with SLVERR (or EXOKAY)"),
            Field(name="read_decerr", low=4, width=1, meaning="a read was answered with DECERR"),
            Field(
                name="read_last",
                low=5,
                width=1,
                meaning="`rlast` came too early or too late; the burst was filled up with zeros or cut off",
            ),
            Field(
                name="read_unexpected", low=6, width=1, meaning="a read beat came that nobody had asked for"
            ),
            Field(name="illegal_write", low=8, width=1, meaning="a register write was refused"),
            Field(name="illegal_read", low=9, width=1, meaning="a register read was refused"),
        ),
    ),
    Register(
        name="IRQ_STATUS",
        address=BUS_PAGE + 0x10,
        access=Access.CLEAR,
        meaning="What happened; an event in the cycle of a clear stays.",
        fields=_bits(
            Field(
                name="done",
                width=1,
                meaning="a batch's last output beat was taken; in `dispatch`, whose packets are jobs: nothing"
                " of what was sent is left inside, and no packet is open",
            ),
            Field(name="error", low=1, width=1, meaning="something went wrong: see ERRORS"),
            Field(
                name="loaded",
                low=2,
                width=1,
                meaning="the router is there; in `dispatch` as soon as reset or recovery ends",
            ),
        ),
    ),
    Register(
        name="IRQ_ENABLE",
        address=BUS_PAGE + 0x14,
        access=Access.READ_WRITE,
        meaning="Which bits of IRQ_STATUS raise `irq`.",
        fields=_bits(
            Field(name="done", width=1, meaning="as in IRQ_STATUS"),
            Field(name="error", low=1, width=1, meaning="as in IRQ_STATUS"),
            Field(name="loaded", low=2, width=1, meaning="as in IRQ_STATUS"),
        ),
    ),
    Register(
        name="BATCH_TOKENS",
        address=BUS_PAGE + 0x18,
        access=Access.READ_WRITE,
        meaning="Tokens of every input packet.",
        fields=_bits(Field(name="value", meaning="0: any number")),
        locked=True,
    ),
    Register(
        name="TOKENS_IN",
        address=BUS_PAGE + 0x1C,
        access=Access.READ,
        meaning="Tokens begun since reset or `recover`.",
    ),
    Register(
        name="TOKENS_OUT",
        address=BUS_PAGE + 0x20,
        access=Access.READ,
        meaning="Tokens of which all output has left the core (of `dispatch`: the expectation), since reset"
        " or `recover`.",
    ),
    Register(
        name="ERROR_TOKEN",
        address=BUS_PAGE + 0x24,
        access=Access.READ,
        meaning="Number, from 0, of the last token taken when a packet went wrong.",
    ),
    Register(
        name="ERROR_READ_LOW",
        address=BUS_PAGE + 0x28,
        access=Access.READ,
        meaning="Address of the first beat that was answered with an error, or ended its burst wrongly.",
        tops=LOADS,
    ),
    Register(
        name="ERROR_READ_HIGH",
        address=BUS_PAGE + 0x2C,
        access=Access.READ,
        meaning="Its upper bits.",
        tops=LOADS,
    ),
    Register(
        name="ERROR_REGISTER",
        address=BUS_PAGE + 0x30,
        access=Access.READ,
        meaning="Address of the first register access that was refused.",
        fields=_bits(Field(name="value", width=12)),
    ),
    Register(
        name="DISCARDED",
        address=BUS_PAGE + 0x34,
        access=Access.READ,
        meaning="Input beats that were taken and thrown away since reset.",
    ),
)
"""The bus' page."""

READ_ERRORS = ("read_slverr", "read_decerr", "read_last", "read_unexpected")
"""Fields of ERRORS after which outputs may be wrong."""
PACKET_ERRORS = ("short_token", "short_packet", "long_packet")
"""Fields of ERRORS that stop the input at once."""
ACCESS_ERRORS = ("illegal_write", "illegal_read")
"""Fields of ERRORS that say what was refused, during recovery too."""


def counter_registers(names: Sequence[str] = tuple(COUNTERS)) -> tuple[Register, ...]:
    """Return the halves of the counters as registers."""
    meanings = {**COUNTERS, **ECC_COUNTERS}
    return tuple(
        Register(
            name=f"{name.upper()}_{half}",
            address=counter_address(name) + 4 * (half == "HIGH"),
            access=Access.READ,
            meaning=f"Counter: {meanings[name]}" + (", upper half." if half == "HIGH" else "."),
            secded=name in ECC_COUNTERS,
        )
        for name in names
        for half in ("LOW", "HIGH")
    )


GATE_COUNTERS = (
    "cycles",
    "tokens_in",
    "tokens_out",
    "assignments",
    "read_beats",
    "stall_input",
    "stall_output",
)
DISPATCH_COUNTERS = (
    "cycles",
    "tokens_in",
    "tokens_out",
    "assignments",
    "dropped",
    "stall_input",
    "stall_output",
)
"""Counters of the blocks alone."""


def top_counters(top: Top, *, secded: bool = False) -> tuple[str, ...]:
    """Return the counters that a top has."""
    of_layer = (*COUNTERS, *(ECC_COUNTERS if secded and top is Top.PIM else ()))
    return {Top.GATE: GATE_COUNTERS, Top.DISPATCH: DISPATCH_COUNTERS}.get(top, of_layer)


def register_map(top: Top, *, int8: bool = False, secded: bool = False) -> tuple[Register, ...]:
    """Return what software sees at a top's AXI4-Lite port, in order of addresses.

    ``int8``: the experts' inputs are int8; ``secded``: banks hold check bits.
    """
    counters = counter_registers(top_counters(top, secded=secded))
    told = {"loaded": top is Top.DISPATCH, "top": list(Top).index(top), "int8": int8, "secded": secded}

    def own(register: Register) -> Register:
        fields = register.fields
        return replace(
            register,
            fields=tuple(
                replace(field, reset=int(told[field.name])) if field.told else field for field in fields
            ),
        )

    return tuple(
        own(register)
        for register in (*CORE_REGISTERS, *counters, *BUS_REGISTERS)
        if top in register.tops and (int8 or not register.int8)
    )


PROBE = ("tokens", "assignments", "expects", "entries", "contributions", "output", "addresses", "beats")
"""Streams whose transfers the ``probe`` port shows: two bits each, *transfer* and *waits*."""
PROBE_WAIT_TILE = 2 * len(PROBE)
"""Bit of the probe port: the array waits for a tile."""
EXPERT_BITS = 9
PROBE_EXPERT = PROBE_WAIT_TILE + 1
"""Lowest bit of the expert of the assignment that passes, 0 if none does."""
PROBE_WEIGHT = PROBE_EXPERT + EXPERT_BITS
"""Lowest bit of its bf16 weight."""
PROBE_BITS = PROBE_WEIGHT + 16

CHANNEL_PROBE = (
    "entries transferred",
    "entries wait",
    "contributions transferred",
    "contributions wait",
    "job retired",
)
"""Bits of ``probe_channels``, for each channel in turn."""

ROUTER_PROBE = (
    "router entries transferred",
    "router entries wait",
    "entries of both kinds transferred",
    "entries of both kinds wait",
    "all logits of a token",
)
"""Further bits of ``probe_channels`` where the banks hold the router, of the channel that has it."""
