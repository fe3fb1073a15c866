"""How weights lie in DRAM banks, and the distances between commands that follow from a DRAM's timing.

An expert's tiles (:class:`spec.geometry.FfnGeometry`, ``rows`` = units, ``cols`` = elements of a burst)
are stored one behind the other: tile ``t`` of an expert is one burst in each unit, row ``u`` of the
tile in unit ``u``. ``bursts_per_row`` tiles make a *visit* (one row of one bank per unit); visit ``v``
lies in bank ``v % sides`` of each unit, in row ``v // sides``. Experts start on whole rows of all sides.
A router in the banks (:class:`spec.geometry.RouterGeometry`) is stored in the same way, behind the experts
of channel 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from spec.design import BankMode, DesignSpec, PimDesign, RegisterPath
from spec.dram import Command, Level, all_groups, clocks_between
from spec.errors import InputError, require, require_range
from spec.geometry import ACCUMULATE_DISTANCE, FfnGeometry, ImageGeometry, RouterGeometry, ceil_div
from spec.model import ModelSpec

ROW_KIND_BITS = 3
COLUMN_KIND_BITS = 2
ROUTER_CHANNEL = 0
"""Channel whose banks hold the router, if any do."""


@dataclass(frozen=True, kw_only=True)
class CommandTiming:
    """Cycles between the commands of a channel; a cycle is one tCK.

    A series is what opens or closes the banks of one side: one command, or one per unit, ``act_gap`` or
    one cycle apart. Times of a series count from its last command, ``rc`` from its first.

    Attributes
    ----------
    mac_steps : MAC commands of a tile: 1, or one per unit.
    mac_gap : from one such step to the next.
    act_steps, act_gap, pre_steps : series of ACT and PRE.
    rcd, rp, ras, rc, rtp : as in :class:`spec.dram.DramTiming`.
    rfc, refi : 0 for ``refi`` means no refresh.
    mac_to_write, ... : from one column command to another: MAC, register write, register read.
    """

    mac_steps: int
    mac_gap: int
    act_steps: int
    act_gap: int
    pre_steps: int
    rcd: int
    rp: int
    ras: int
    rc: int
    rtp: int
    rfc: int
    refi: int
    mac_to_write: int
    mac_to_read: int
    write_to_mac: int
    write_to_write: int
    write_to_read: int
    read_to_mac: int
    read_to_write: int
    read_to_read: int

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, pim: PimDesign) -> CommandTiming:
        """Return the distances of a design."""
        dram, timing, groups, units = pim.dram, pim.dram.timing, pim.dram.bank_groups, pim.units
        single = pim.bank_mode is BankMode.SINGLE_BANK
        open_singly = pim.opens_singly
        # Neighbours in a series lie in different bank groups, a group comes again after `spread` commands.
        spread = min(groups, units)

        def spaced(short: int, long: int) -> int:
            return long if spread == 1 else max(short, ceil_div(long, spread))

        # Distances of the DRAM's own commands are those of its table; a MAC reads as a RD does.
        ccd_s = clocks_between(dram, Command.RD, Command.RD, Level.SCOPE)
        ccd_l = clocks_between(dram, Command.RD, Command.RD, Level.BANK_GROUP)
        rrd_s = clocks_between(dram, Command.ACT, Command.ACT, Level.SCOPE)
        rrd_l = clocks_between(dram, Command.ACT, Command.ACT, Level.BANK_GROUP)
        faw = clocks_between(dram, Command.ACT, Command.ACT, Level.SCOPE, window=4)
        # Register accesses on the data bus are bursts from or to all bank groups.
        write_to_write = all_groups(dram, Command.WR, Command.WR)
        write_to_read = all_groups(dram, Command.WR, Command.RD)
        read_to_write = max(all_groups(dram, Command.RD, Command.WR), ccd_l)
        own = pim.register_path is RegisterPath.OWN
        parts = units // pim.act_lanes
        return cls(
            mac_steps=units if single else 1,
            mac_gap=spaced(ccd_s, ccd_l) if single else ccd_l,
            act_steps=units if open_singly else 1,
            act_gap=max(spaced(rrd_s, rrd_l), ceil_div(faw, 4)) if open_singly else 1,
            pre_steps=units if single else 1,
            rcd=clocks_between(dram, Command.ACT, Command.RD, Level.BANK),
            rp=clocks_between(dram, Command.PRE, Command.ACT, Level.BANK),
            ras=clocks_between(dram, Command.ACT, Command.PRE, Level.BANK),
            rc=clocks_between(dram, Command.ACT, Command.ACT, Level.BANK),
            rtp=clocks_between(dram, Command.RD, Command.PRE, Level.BANK),
            rfc=clocks_between(dram, Command.REF, Command.ACT, Level.SCOPE),
            refi=timing.refi if pim.refresh else 0,
            mac_to_write=1 if own else read_to_write,
            mac_to_read=1 if own else ccd_l,
            write_to_mac=1 if own else write_to_read,
            write_to_write=1 if own else write_to_write,
            write_to_read=1 if own else write_to_read,
            read_to_mac=1 if own else ccd_l,
            read_to_write=1 if own else read_to_write,
            read_to_read=max(parts, 1 if own else ccd_l),
        )

    @property
    def mac_lead(self) -> int:
        """Cycles from a MAC to a refresh, at least: its bank has to be closed and precharged by then."""
        return self.rtp + self.rp

    @property
    def act_lead(self) -> int:
        """Cycles from the first ACT of a series to a refresh, at least."""
        return (self.act_steps - 1) * self.act_gap + self.ras + self.rp

    @property
    def pre_lead(self) -> int:
        """Cycles from the first PRE of a series to a refresh; with fewer the precharge of all does it."""
        return self.pre_steps + self.rp

    def tile_gap(self, busy_cycles: int) -> int:
        """Return the cycles from a tile's last MAC command to the next tile's first.

        ``busy_cycles``: how long the lanes need for all tokens that share the burst.
        """
        return max(self.mac_gap, busy_cycles, ACCUMULATE_DISTANCE)


def refresh_offset(banks: BankGeometry, channel: int) -> int:
    """Return the cycle after reset in which a channel's first refresh falls due: they take turns."""
    refi, channels = CommandTiming.of(banks.pim).refi, banks.pim.channels
    return refi * (channel + 1) // channels


@dataclass(frozen=True, kw_only=True)
class BankGeometry:
    """Sizes of a channel's weight storage for a model on a design."""

    image: ImageGeometry
    pim: PimDesign

    def __post_init__(self) -> None:
        timing = CommandTiming.of(self.pim)
        least = timing.rfc + timing.act_lead
        # Otherwise no row is ever opened, and the channel waits for ever.
        require(
            not timing.refi or timing.refi > least,
            f"must be above rfc + {timing.act_lead} = {least} (between refreshes all banks are opened, used"
            f" and closed), not {timing.refi}",
            key="pim.dram.timing.refi",
        )
        # From the decision of a register write: when the first MAC reads the word, and when it is there.
        latest = timing.write_to_mac + self.pim.weight_cycles
        needed = 2 + self.image.input_cycles
        corrects = self.pim.weight_cycles - self.pim.storage_cycles
        require(
            latest >= needed,
            f"must be at least {needed - timing.write_to_mac - corrects} where weights multiply the experts'"
            f" inputs, not {self.pim.storage_cycles}",
            key="pim.storage_cycles",
        )

    @classmethod
    def of(
        cls, model: ModelSpec, design: DesignSpec, placement: list[list[int]] | None = None
    ) -> BankGeometry:
        """Return the geometry of a model on a ``pim`` design; InputError where its experts do not fit.

        ``placement``: channels of each expert, by default :meth:`round_robin`.
        """
        geometry = cls.unplaced(model, design)
        geometry.check_fit(geometry.round_robin() if placement is None else placement)
        return geometry

    @classmethod
    def unplaced(cls, model: ModelSpec, design: DesignSpec) -> BankGeometry:
        """Return the geometry of a model on a ``pim`` design; whether all experts fit is not asked."""
        assert design.pim is not None
        return cls(image=ImageGeometry.of(model, design), pim=design.pim)

    @property
    def num_experts(self) -> int:
        """Routed experts; the shared one has this number as its index."""
        return self.image.num_experts

    @property
    def sides(self) -> int:
        """Banks of a unit, which take turns."""
        return self.pim.banks_per_unit

    @property
    def bursts_per_row(self) -> int:
        """Tiles of a visit."""
        return self.pim.dram.bursts_per_row

    @property
    def max_visits(self) -> int:
        """Visits that the banks hold."""
        return self.pim.dram.rows * self.sides

    @property
    def depth(self) -> int:
        """Tiles that a channel holds: words of the storage port, ``units`` bursts each."""
        return self.max_visits * self.bursts_per_row

    @property
    def stored_tile_bytes(self) -> int:
        """Bytes of a tile as it lies in the banks: a burst of each unit, with its check bits."""
        return self.pim.units * self.pim.stored_burst_bytes

    @property
    def field_bits(self) -> dict[str, int]:
        """Bits of a command's fields on the buses, at least one each: side, unit, row, column."""
        counts = {
            "side": self.sides,
            "unit": self.pim.units,
            "row": self.pim.dram.rows,
            "column": self.bursts_per_row,
        }
        return {name: max(1, (count - 1).bit_length()) for name, count in counts.items()}

    @property
    def router_number(self) -> int:
        """What the router is called among the experts."""
        return self.num_experts + 1

    def kind(self, expert: int) -> FfnGeometry | RouterGeometry:
        """Return the shape of an expert; ``num_experts`` means the shared one, one more the router."""
        if self.image.router and expert == self.router_number:
            return self.image.router
        return self.image.shared if self.image.shared and expert == self.num_experts else self.image.routed

    def visits(self, kind: FfnGeometry | RouterGeometry) -> int:
        """Return the visits of an expert of this shape, without those that only pad it to all sides."""
        return ceil_div(kind.num_tiles, self.bursts_per_row)

    def reserved(self, kind: FfnGeometry | RouterGeometry) -> int:
        """Return the visits from an expert of this shape to the next: whole rows of all sides."""
        return ceil_div(self.visits(kind), self.sides) * self.sides

    def round_robin(self, replicas: int = 1) -> list[list[int]]:
        """Return the channels of each expert: expert e in channels e, e + 1, ... modulo their number.

        The shared expert, which serves every token, is in all channels.
        """
        channels = self.pim.channels
        placed = [
            sorted({(expert + n) % channels for n in range(replicas)}) for expert in range(self.num_experts)
        ]
        return placed + ([list(range(channels))] if self.image.shared else [])

    def place(self, used: Iterable[int]) -> list[list[int]]:
        """Return the channels of each expert, in a run whose tokens go to the routed experts ``used``.

        Where all experts fit they are placed :meth:`round_robin`, whatever is used. Where they do not, the
        banks hold only the used ones, round robin in order of their numbers, and the shared one in all
        channels; an expert that none holds has no channels. :class:`InputError` where even these do not fit.
        """
        everything = self.round_robin()
        if self.fits(everything):
            return everything
        # (An identity expert needs no place.)
        return self.hold(expert for expert in used if expert < self.num_experts)

    def hold(self, experts: Iterable[int]) -> list[list[int]]:
        """Return the channels of each expert where the banks hold only these routed ones.

        Round robin in order of their numbers, and the shared one in all channels. :class:`InputError` where
        they do not fit, or for a number that is no expert's.
        """
        placed: list[list[int]] = [[] for _ in range(self.num_experts)]
        for place, expert in enumerate(sorted(set(experts))):
            require_range("hold", expert, 0, self.num_experts - 1)
            placed[expert] = [place % self.pim.channels]
        placed += self.round_robin()[self.num_experts :]
        self.check_fit(placed)
        return placed

    def bases(self, placement: list[list[int]]) -> list[dict[int, int]]:
        """Return for each channel the first visit of each expert it holds: in order of their numbers.

        A router in the banks comes last, under :attr:`router_number`.
        """
        return self._laid(placement)[0]

    def _laid(self, placement: list[list[int]]) -> tuple[list[dict[int, int]], list[int]]:
        """Return what :meth:`bases` does, and the visits taken of each channel."""
        out: list[dict[int, int]] = [{} for _ in range(self.pim.channels)]
        used = [0] * self.pim.channels
        routed, shared = (self.reserved(self.kind(expert)) for expert in (0, self.num_experts))
        for expert, channels in enumerate(placement):
            for channel in channels:
                out[channel][expert] = used[channel]
                used[channel] += shared if expert == self.num_experts else routed
        if self.image.router:
            out[ROUTER_CHANNEL][self.router_number] = used[ROUTER_CHANNEL]
            used[ROUTER_CHANNEL] += self.reserved(self.image.router)
        return out, used

    def held(self, placement: list[list[int]]) -> list[str]:
        """Return in words what each channel holds."""
        counts = [sum(channel in channels for channels in placement) for channel in range(self.pim.channels)]
        words = [f"{count} experts" for count in counts]
        if self.image.router:
            words[ROUTER_CHANNEL] += " and the router"
        return words

    def visits_used(self, placement: list[list[int]]) -> list[int]:
        """Return the visits that the experts placed on each channel take, and a router in the banks."""
        return self._laid(placement)[1]

    def bytes_of(self, placement: list[list[int]], used: Iterable[int]) -> int:
        """Return the bytes that are loaded for the routed experts ``used``: in all channels that hold them.

        The shared expert's, and those of a router in the banks, are among them.
        """
        held = {*used, self.num_experts, self.router_number}
        visits = sum(
            self.reserved(self.kind(expert))
            for bases in self.bases(placement)
            for expert in bases
            if expert in held
        )
        return visits * self.bursts_per_row * self.stored_tile_bytes

    def fits(self, placement: list[list[int]]) -> bool:
        """Whether every channel holds the experts placed on it."""
        return max(self.visits_used(placement)) <= self.max_visits

    def check_fit(self, placement: list[list[int]]) -> None:
        """Raise :class:`InputError` unless every channel holds the experts placed on it."""
        for channel, visits in enumerate(self.visits_used(placement)):
            if visits > self.max_visits:
                raise self.no_room(channel, visits, self.held(placement)[channel])

    def no_room(self, channel: int, visits: int, held: str) -> InputError:
        """Return the error of a channel that has not so many visits; ``held``: what they are for."""
        return InputError(
            f"has {self.pim.dram.rows} rows per bank, but the {held} of channel {channel} need"
            f" {visits // self.sides}",
            key="pim.dram",
        )
