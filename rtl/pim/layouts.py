"""Commands of a channel and the configuration of its engine."""

from dataclasses import dataclass, replace
from functools import cached_property

from amaranth import unsigned
from amaranth.lib import data, enum

from rtl.expert.layouts import EngineConfig, bits_for
from spec.banks import COLUMN_KIND_BITS, ROW_KIND_BITS, BankGeometry, CommandTiming
from spec.geometry import ceil_div


class RowKind(enum.Enum, shape=ROW_KIND_BITS):
    """Commands on the row bus."""

    NOP = 0
    ACT = 1
    PRE = 2
    PRE_ALL = 3
    REF = 4


class ColumnKind(enum.Enum, shape=COLUMN_KIND_BITS):
    """Commands on the column bus: MAC of a burst, register write (inputs), register read (results)."""

    NOP = 0
    MAC = 1
    WRITE = 2
    READ = 3


@dataclass(frozen=True, kw_only=True)
class PimConfig(EngineConfig):
    """A channel's engine; ``banks`` gives the layout of its weights and the timing of its commands."""

    banks: BankGeometry

    @cached_property
    def timing(self) -> CommandTiming:
        """Distances between commands."""
        return CommandTiming.of(self.banks.pim)

    @property
    def group_tokens(self) -> int:
        """Most tokens that share a weight burst: a job's tokens are computed in groups of so many."""
        return min(self.banks.pim.tokens_per_burst, 1 << bits_for(self.max_tokens))

    @property
    def router_tokens(self) -> int:
        """Tokens of a job with the router: a group that divides a window."""
        return min(self.group_tokens, self.max_tokens)

    @cached_property
    def group(self) -> EngineConfig:
        """The engine as its lanes see it: one group of tokens at a time."""
        return replace(self, max_tokens=self.group_tokens)

    @property
    def units(self) -> int:
        """Units: outputs computed at the same time."""
        return self.banks.pim.units

    @property
    def unit_bits(self) -> int:
        """Bits that number a unit."""
        return self.banks.field_bits["unit"]

    @property
    def load_cols(self) -> int:
        """Inputs that a register write brings."""
        return self.banks.pim.load_lanes(self.routed.format)

    @property
    def load_parts(self) -> int:
        """Register writes that fill a word of ``cols`` inputs; several where weights have fewer bits."""
        return self.routed.cols // self.load_cols

    @property
    def load_words(self) -> int:
        """Register writes of a token's inputs."""
        return ceil_div(self.d_model, self.load_cols)

    @property
    def parts(self) -> int:
        """Cycles in which the results of all units are handled."""
        return self.units // self.act_lanes

    @property
    def side_bits(self) -> int:
        """Bits that number a bank of a unit."""
        return self.banks.field_bits["side"]

    @property
    def row_bits(self) -> int:
        """Bits of a row."""
        return self.banks.field_bits["row"]

    @property
    def column_bits(self) -> int:
        """Bits of a burst's place in its row."""
        return self.banks.field_bits["column"]


def row_layout(config: PimConfig):
    """Return a row command. ``unit`` counts only where banks are opened or closed one by one."""
    return data.StructLayout(
        {
            "kind": RowKind,
            "side": unsigned(config.side_bits),
            "unit": unsigned(config.unit_bits),
            "row": unsigned(config.row_bits),
        }
    )


def column_layout(config: PimConfig):
    """Return a column command. ``side``, ``unit`` and ``column`` count for a MAC only."""
    return data.StructLayout(
        {
            "kind": ColumnKind,
            "side": unsigned(config.side_bits),
            "unit": unsigned(config.unit_bits),
            "column": unsigned(config.column_bits),
        }
    )


def weights_layout(config: PimConfig):
    """Return a tile's address in the storage: the tile's number, as :mod:`spec.banks` counts."""
    return data.StructLayout(
        {
            # Fields of one choice have no bits.
            "column": unsigned((config.banks.bursts_per_row - 1).bit_length()),
            "side": unsigned((config.banks.sides - 1).bit_length()),
            "row": unsigned(config.row_bits),
        }
    )


def group_layout(config: PimConfig):
    """Return where a walk over a job's groups stands: the group's number, its last token, job's end."""
    groups = max(1, config.max_tokens // config.group_tokens)
    return data.StructLayout(
        {
            "number": unsigned(bits_for(groups)),
            "last_token": unsigned(bits_for(config.group_tokens)),
            "last": unsigned(1),
        }
    )
