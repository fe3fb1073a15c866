"""The ``pim`` accelerator: experts computed in the DRAM banks of several channels.

::

    i --+--> gate --> dispatch --jobs--> channel 0 --+
        |                |       ------> channel 1 --+--> (merge) --> combine --> o
        +-- token stores in every channel            |                 ^ |
                         +--expects------------------------------------+ +-- freed slots
    o_ar, i_r <-- router loader

With the router in the banks::

    i ----> token stores ----------------+
      +---> (router jobs) --+            v
               dispatch --> (merge) --> channel 0 --logits--> gate --> dispatch
"""

from dataclasses import replace

from amaranth import Cat, Signal
from amaranth.lib.wiring import In, Out, flipped

from rtl.arith import tree
from rtl.gating import BankedGate
from rtl.layer.shell import LayerShell
from rtl.merge import ContributionMerge
from rtl.pim import PimChannel, PimConfig
from rtl.pim.layouts import ColumnKind, RowKind, column_layout, row_layout, weights_layout
from rtl.pim.rows import REFRESH_BITS
from rtl.router import JobMerge, RouterJobs
from rtl.stream import connect_stream, handshake
from spec.banks import ROUTER_CHANNEL, BankGeometry, refresh_offset
from spec.design import DesignSpec
from spec.model import ModelSpec
from spec.registers import CHANNEL_PROBE, ROUTER_PROBE, STATUS_REFRESHING

COMMANDS = {
    "activates": ("o_row", RowKind.ACT),
    "refreshes": ("o_row", RowKind.REF),
    "mac_commands": ("o_column", ColumnKind.MAC),
    "register_writes": ("o_column", ColumnKind.WRITE),
    "register_reads": ("o_column", ColumnKind.READ),
}
"""Counters of commands: the bus that shows them, and their kind."""


def pim_config(model: ModelSpec, design: DesignSpec, channel: int = ROUTER_CHANNEL) -> PimConfig:
    """Return the configuration of a channel's engine for a model on a design.

    Channels differ where one of them has the router in its banks.
    """
    # Where the experts lie is told at run time; whether they fit is then asked.
    banks = BankGeometry.unplaced(model, design)
    if channel != ROUTER_CHANNEL:
        banks = replace(banks, image=replace(banks.image, router=None))
    return PimConfig(
        image=banks.image,
        num_slots=2 * design.window_tokens,
        max_tokens=design.window_tokens,
        act_lanes=design.tile.act_lanes,
        stream_lanes=design.stream_lanes,
        ranks=model.gating.top_k + (model.d_shared > 0) if banks.pim.channels > 1 else 0,
        banks=banks,
    )


class PimLayer(LayerShell):
    """One MoE layer near memory: every channel computes the experts whose weights lie in its banks.

    Beside the shell's registers the tables have to be written before the first token: for every
    expert the channels that hold it, and in each of them its first row (PLACE_EXPERT, PLACE_CHANNELS,
    PLACE_ROW); for a router in the banks its first row, as that of expert ``num_experts`` + 1 in channel
    0. Refreshes of the channels are spread over the refresh interval.

    A router in the banks is multiplied with groups of tokens by channel 0, as jobs among those of its
    experts (:class:`rtl.router.RouterJobs`). No two wait for each other: what is inside the channel
    always ends (its contributions are always taken, its logits have their room before they are asked for),
    so that whatever waits in front of it goes in.
    Reference: :func:`golden.layer_bf16.layer_bf16`; cycle model: :mod:`sim.layer`.

    Members
    -------
    See :class:`rtl.layer.shell.LayerShell`; and for each channel n
    mem_<n>_en, mem_<n>_addr, mem_<n>_data : its weight storage, see :class:`rtl.pim.PimChannel`.
    row_<n>, column_<n> : Out, its command buses.
    probe_channels : Out
        For benches: :data:`spec.registers.CHANNEL_PROBE` of each channel, then with a router in the banks
        :data:`spec.registers.ROUTER_PROBE`.
    """

    def __init__(self, model: ModelSpec, design: DesignSpec) -> None:
        config = pim_config(model, design)
        self.config = config
        count = config.banks.pim.channels
        self.channels = [PimChannel(pim_config(model, design, n)) for n in range(count)]
        bits = 8 * config.banks.stored_tile_bytes
        probes = len(CHANNEL_PROBE) * count + (len(ROUTER_PROBE) if config.router else 0)
        members = {"probe_channels": Out(probes)}
        for n in range(count):
            members |= {
                f"mem_{n}_en": Out(config.units),
                f"mem_{n}_addr": Out(weights_layout(config)),
                f"mem_{n}_data": In(bits),
                f"row_{n}": Out(row_layout(config)),
                f"column_{n}": Out(column_layout(config)),
            }
        gate = BankedGate(config.router, config.group_tokens) if config.router else None
        super().__init__(model, design, num_units=count, gate=gate, flips=self.most_flips, **members)

    @property
    def most_flips(self) -> int:
        """Most words with flipped bits that all channels may read in a cycle; 0 without check bits."""
        return sum(channel.correct.num_words for channel in self.channels if channel.correct is not None)

    def engine(self, m, registers):
        """Add the channels; the memory behind the AXI4 read master holds the router alone, or its bias."""
        config, count = self.config, len(self.channels)
        dispatch = self.dispatch
        if self.loader is not None:
            connect_stream(m, self.loader.o_ar, flipped(self.o_ar))
            connect_stream(m, flipped(self.i_r), self.loader.i_r)
        else:
            m.d.comb += self.i_r.ready.eq(1)
        probes, router_probes, commands = [], [], {name: [] for name in COMMANDS}
        for n, channel in enumerate(self.channels):
            m.submodules[f"channel_{n}"] = channel
            entries = getattr(dispatch, f"o_{n}")
            # A register that keeps its reset value: tied to a constant each, they would not be one module.
            first_refresh = Signal(
                REFRESH_BITS, name=f"first_refresh_{n}", init=refresh_offset(config.banks, n)
            )
            m.d.sync += first_refresh.eq(first_refresh)
            if channel.config.router:
                router_probes = self._route(m, entries, channel)
            else:
                connect_stream(m, entries, channel.i)
            m.d.comb += [
                # The intake offers a beat only when all take it; stores are always ready.
                channel.i_token.payload.eq(self.intake.o_store.payload),
                channel.i_token.valid.eq(self.intake.o_store.valid),
                channel.base_we.eq(registers.place_row & (registers.place_channel == n)),
                channel.base_expert.eq(registers.place_expert),
                channel.base_row.eq(registers.place_value),
                channel.refresh_offset.eq(first_refresh),
                getattr(self, f"mem_{n}_en").eq(channel.mem_en),
                getattr(self, f"mem_{n}_addr").eq(channel.mem_addr),
                channel.mem_data.eq(getattr(self, f"mem_{n}_data")),
                *(getattr(channel, name).eq(getattr(registers, name)) for name in registers.scales),
                getattr(self, f"row_{n}").eq(channel.o_row),
                getattr(self, f"column_{n}").eq(channel.o_column),
            ]
            for name, (bus, kind) in COMMANDS.items():
                commands[name].append(getattr(channel, bus).kind == kind)
            probes += [*handshake(m, f"entries_{n}", entries), *handshake(m, f"contributions_{n}", channel.o)]
            probes.append(channel.retired)
        m.d.comb += [
            self.intake.o_store.ready.eq(1),
            self.probe_channels.eq(Cat(*probes, *router_probes)),
            registers.status[STATUS_REFRESHING].eq(self.channels[0].refreshing),
        ]
        if count == 1:
            connect_stream(m, self.channels[0].o, self.combine.i)
        else:
            m.submodules.merge = merge = ContributionMerge(config.contribution, count)
            for n, channel in enumerate(self.channels):
                connect_stream(m, channel.o, getattr(merge, f"i_{n}"))
                m.d.comb += getattr(dispatch, f"retired_{n}").eq(channel.retired)
            connect_stream(m, merge.o, self.combine.i)
            m.d.comb += [
                dispatch.place_addr.eq(registers.place_expert),
                dispatch.place_units.eq(registers.place_value),
                dispatch.place_we.eq(registers.place_channels),
            ]
        streams = {"contributions": self.combine.i}
        waits = [getattr(dispatch, f"o_{n}") for n in range(count)]
        for name in registers.flips:
            m.d.comb += getattr(registers, name).eq(
                tree([getattr(channel, name) for channel in self.channels], lambda a, b: a + b)
            )
        events = {
            "mac_active": popcount(channel.fire for channel in self.channels),
            "stall_dispatch": popcount(stream.valid & ~stream.ready for stream in waits),
            "stall_combine": popcount(channel.o.valid & ~channel.o.ready for channel in self.channels),
            **{name: popcount(bits) for name, bits in commands.items()},
        }
        return streams, events

    def _route(self, m, entries, channel):
        """Add the jobs with the router to those of a channel; give its logits to the gate.

        Returns the bits of :data:`spec.registers.ROUTER_PROBE`.
        """
        intake, gate = self.intake, self.gate
        m.submodules.router_jobs = jobs = RouterJobs(channel.config)
        m.submodules.job_merge = merge = JobMerge(channel.config, entries.payload.shape())
        connect_stream(m, jobs.o, merge.i_router)
        connect_stream(m, entries, merge.i_expert)
        connect_stream(m, merge.o, channel.i)
        m.d.comb += [
            jobs.token.eq(intake.last),
            jobs.token_last.eq(intake.i.payload.last),
            jobs.freed.eq(gate.freed),
            gate.given.eq(jobs.given),
            gate.given_last.eq(jobs.given_last),
            gate.i.eq(channel.o_logits),
        ]
        logits = channel.o_logits
        m.d.comb += (all_logits := Signal()).eq(logits.valid & logits.low & logits.last_block)
        return [
            *handshake(m, "router_entries", jobs.o),
            *handshake(m, "entries_of_both", merge.o),
            all_logits,
        ]


def popcount(bits):
    """Return how many of these bits are set."""
    return tree(list(bits), lambda a, b: a + b)
