"""Configuration and payloads of a channel that runs command programs."""

from dataclasses import dataclass

from amaranth import unsigned
from amaranth.hdl import signed
from amaranth.lib import data, enum, stream
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst
from rtl.expert.layouts import bits_for
from spec.device import PimDevice, Schedule
from spec.dram import Command, DramSpec, Level, clocks_between
from spec.errors import require
from spec.program import ALL, FIELDS, OP_BITS, ROW_BITS, TILE_INPUTS, TILE_ROWS, WORD_BITS, Additions, Op

CYCLE_BITS = 32
INPUT_BITS = 24
"""Of an input's place in the inputs' memory: as many as a program counts."""
COUNT_BITS = 12
SECDED_WORD, SECDED_CHECK = 64, 8


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """A channel of a device with a command schedule.

    Attributes
    ----------
    device : its units, registers, schedule, DRAM.
    secded : the banks hold 8 check bits with every 64 of data.
    additions : of our schedule that there is hardware for; ``split`` asks for none.
    """

    device: PimDevice
    secded: bool = False
    additions: Additions = ALL

    def __post_init__(self) -> None:
        device, timing = self.device, self.dram.timing
        require(
            device.schedule in (Schedule.BARRIER, Schedule.STREAMED),
            f"must be barrier or streamed in Verilog, not {device.schedule}",
            key="schedule",
        )
        require(
            self.additions.in_hardware == ALL or device.schedule is Schedule.STREAMED,
            f"is of schedule streamed, which {device.name} has not",
            key="without",
        )
        require(
            self.additions.unpadded or device.tokens_per_burst == 1,
            f"must leave 'unpadded' in where {device.tokens_per_burst} tokens share a burst in Verilog",
            key="without",
        )
        require(
            self.dram.rows <= 1 << (ROW_BITS - 1),
            f"must be at most {1 << (ROW_BITS - 1)} in Verilog, not {self.dram.rows}",
            key="dram.rows",
        )
        require(
            device.output_registers <= self.dram.bursts_per_row,
            f"must be at most {self.dram.bursts_per_row} in Verilog, the bursts of a row,"
            f" not {device.output_registers}",
            key="output_registers",
        )
        busy = self.unit_cycles + (device.tokens_per_burst - 1) * device.mac_cycles
        most = timing.read_to_write + self.result_cycles
        require(
            busy <= most,
            f"must leave {busy} cycles from a MAC to its result, not {most}",
            key="dram.timing",
        )

        require(
            not self.secded or 16 * device.lanes % SECDED_WORD == 0,
            f"must be a multiple of {SECDED_WORD // 16} with check bits, not {device.lanes}",
            key="lanes",
        )
        if device.schedule is Schedule.BARRIER:
            self._check_tiles()

    def _check_tiles(self) -> None:
        """Refuse registers that the published kernel's tiles do not have."""
        device, dram = self.device, self.dram
        require(
            device.input_registers == TILE_INPUTS == device.output_registers,
            f"must be {TILE_INPUTS}, as must output_registers, for schedule {device.schedule},"
            f" not {device.input_registers} and {device.output_registers}",
            key="input_registers",
        )
        require(
            TILE_ROWS * dram.bursts_per_row == TILE_INPUTS * device.output_registers,
            f"must hold {TILE_INPUTS * device.output_registers // TILE_ROWS} bursts for schedule"
            f" {device.schedule}, not {dram.bursts_per_row}",
            key="dram.row_bytes",
        )

    @property
    def dram(self) -> DramSpec:
        """The channel's DRAM."""
        return self.device.timed

    @property
    def storage_cycles(self) -> int:
        """Cycles from a MAC on the bus to its burst at the units: half of tCL, as no pins are passed."""
        return self.dram.timing.cl // 2

    @property
    def fire_cycles(self) -> int:
        """Cycles from a MAC on the bus to its multiplication."""
        return self.storage_cycles + int(self.secded)

    @property
    def unit_cycles(self) -> int:
        """Cycles from a MAC on the bus to the cycle in which its sums are written."""
        return self.fire_cycles + Burst.LATENCY + Accumulate.LATENCY

    @property
    def result_cycles(self) -> int:
        """Cycles from a write of results on the bus to the reading of the sums; they leave one later."""
        return self.dram.timing.cwl - 1

    @property
    def burst_bits(self) -> int:
        """Bits of a unit's burst as it lies in the banks."""
        plain = 16 * self.device.lanes
        return plain + (plain // SECDED_WORD * SECDED_CHECK if self.secded else 0)

    @property
    def result_bits(self) -> int:
        """Bits of a unit's result as it is written: fp32; check bits are those of a word with zeros above."""
        return 32 + (SECDED_CHECK if self.secded else 0)

    @property
    def bank_bits(self) -> int:
        """Bits that number a bank."""
        return bits_for(self.dram.num_banks)

    @property
    def column_bits(self) -> int:
        """Bits that number a burst of a row."""
        return bits_for(self.dram.bursts_per_row)

    def between(self, before: Command, after: Command, *levels: Level) -> int:
        """Return the most clocks that the table asks for at any of the levels; 0: any."""
        return max(clocks_between(self.dram, before, after, level) for level in levels)


class RowKind(enum.Enum, shape=unsigned(3)):
    """A command on the row bus."""

    NONE = 0
    ACT = 1
    PRE = 2
    REF = 3
    OTHER_REF = 4


class ColumnKind(enum.Enum, shape=unsigned(3)):
    """A command on the column bus; REG writes a register over a path of its own."""

    NONE = 0
    MAC = 1
    RD = 2
    WR = 3
    REG = 4


def row_layout(config: ChannelConfig):
    """Return a row command: to a single bank or to all of its parity."""
    return data.StructLayout(
        {
            "kind": RowKind,
            "all_banks": unsigned(1),
            "bank": unsigned(config.bank_bits),
            "row": signed(ROW_BITS),
        }
    )


def column_layout(config: ChannelConfig):
    """Return a column command; ``row`` is the open one's."""
    return data.StructLayout(
        {
            "kind": ColumnKind,
            "all_banks": unsigned(1),
            "bank": unsigned(config.bank_bits),
            "row": signed(ROW_BITS),
            "column": unsigned(config.column_bits),
        }
    )


def work_layout(config: ChannelConfig):
    """Return what a column command is to the units.

    ``input``: word ``address`` of the inputs goes to ``register``. A MAC multiplies ``tokens`` registers from
    ``register`` on and adds to as many sums from ``sum`` on, or to zero where it is ``first``. ``result``
    writes a sum.
    """
    return data.StructLayout(
        {
            "input": unsigned(1),
            "result": unsigned(1),
            "first": unsigned(1),
            "register": unsigned(bits_for(config.device.input_registers)),
            "sum": unsigned(bits_for(config.device.output_registers)),
            # Of one choice it has no bits.
            "last_token": unsigned((config.device.tokens_per_burst - 1).bit_length()),
            "address": unsigned(INPUT_BITS),
        }
    )


def issue_layout(config: ChannelConfig):
    """Return a column command with its work."""
    return data.StructLayout({"command": column_layout(config), "work": work_layout(config)})


def word_layout(op: Op):
    """Return the layout of a program's word of that operation."""
    fields = {name: signed(width) if name == "row" else unsigned(width) for name, width in FIELDS[op]}
    used = OP_BITS + sum(width for _name, width in FIELDS[op])
    return data.StructLayout({"op": unsigned(OP_BITS), **fields, "unused": unsigned(WORD_BITS - used)})


def weights_layout(config: ChannelConfig):
    """Return a burst's address in the banks: it counts columns, then sides, then rows."""
    return data.StructLayout(
        {
            "column": unsigned((config.dram.bursts_per_row - 1).bit_length()),
            "side": unsigned(1),
            "row": unsigned((config.dram.rows - 1).bit_length()),
        }
    )


def engine_members(config: ChannelConfig) -> dict:
    """Return the members of a schedule's engine: what a channel has to know of it."""
    return {
        "i": In(stream.Signature(unsigned(WORD_BITS))),
        "start": In(1),
        "o_row": Out(row_layout(config)),
        "o_column": Out(issue_layout(config)),
        "done": Out(1),
        "late": Out(1),
    }
