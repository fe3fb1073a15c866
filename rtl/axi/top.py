"""A core behind AXI4-Lite registers, AXI4-Stream packets, an AXI4 read master and an interrupt.

::

                  +------------------------------------------------------------------+
    s_axi_... --> | AxiLite --> AddressDecoder, RegisterBlock (bus' page)            | --> irq
                  |     +-----> reg_* of the core (core's page)                      |
    s_axis_.. --> | PacketGuard --> |                          | --> PacketMarker -> | --> m_axis_...
                  |                 | core, reset by `recover` |                     |
    m_axi_... <-> | ReadGuard <---> |                          |                     |
                  +------------------------------------------------------------------+

Between the guards and the core stands a register each, ``entrance`` and ``read_data``, reset with the core.
"""

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.axi.alone import DispatchAlone, GateAlone
from rtl.axi.lite import AddressDecoder, AxiLite, lite_members
from rtl.axi.packets import COUNT_BITS, PacketGuard, PacketMarker
from rtl.axi.reads import ReadGuard
from rtl.axi.registers import RegisterBlock
from rtl.expert.layouts import address_layout
from rtl.layer import FpgaLayer, PimLayer
from rtl.stream import StreamRegister, connect_stream
from spec.design import DesignSpec, Engine
from spec.geometry import ceil_div
from spec.model import ModelSpec
from spec.registers import (
    ACCESS_ERRORS,
    BUS_PAGE,
    BUS_REGISTERS,
    CONTROL_LOAD,
    LAYERS,
    PACKET_ERRORS,
    READ_ERRORS,
    REGISTERS,
    STATUS_LOADED,
    Top,
    field_of,
    register_map,
)

RESET_CYCLES = 8
"""Cycles for which recovery resets the core at least: input beats that wait are flushed meanwhile."""

ERROR_FIELDS = next(register.fields for register in BUS_REGISTERS if register.name == "ERRORS")
CORE_PORTS = ("i", "o", "o_ar", "i_r", "reg_addr", "reg_wdata", "reg_we", "reg_rdata")
UNCONNECTED = ("probe", "probe_channels", "finished", "inside")
"""Members of cores that are for benches, or for the top itself."""


class AxiTop(wiring.Component):
    """A core of ``i``, ``o``, the register port and, where it reads memory, ``o_ar`` and ``i_r``.

    What goes wrong is told in ERRORS and leaves the core with whole tokens and whole batches, so that
    all that was accepted comes out; ``m_axis_tuser`` marks what may be wrong. ``recover`` resets the core
    alone: bursts in flight are waited for, an address or an output beat once offered stays, an output packet
    that is cut is closed. See ``docs/axi.md``. Adds 2 cycles to tokens (1 at the dispatcher), 1 to outputs,
    read addresses and read data each.
    Reset empties everything, with the bursts in flight forgotten: what then still comes is thrown away.

    Parameters
    ----------
    core : the block, with ``most_tokens``, which are inside it at most; it must not have been elaborated.
    token_beats, output_beats : beats of a token at ``i`` and at ``o``.
    burst_beats, max_outstanding : of the core's reads.
    waiting_beats : beats of tokens that may stand before the port and are this packet's: recovery lasts that
        much longer, so that it throws them away too.
    count_bits : bits of TOKENS_IN, TOKENS_OUT, DISCARDED and ERROR_TOKEN, which begin at 0 again behind
        them, and of BATCH_TOKENS that are looked at. With few of them a bench reaches each.

    Members
    -------
    s_axi_... : AXI4-Lite, see :func:`rtl.axi.lite.lite_members`.
    i, o : the core's streams, ``last`` at the end of a packet.
    m_axis_tuser : Out(1)
        With a beat of ``o``: it may be wrong.
    o_ar, i_r : AXI4 read master, with m_axi_arid : Out(1), m_axi_arprot : Out(3), m_axi_arcache : Out(4),
        constants, and m_axi_rid : In(1), which is not read: bursts come in order.
    irq : Out(1)
        Level: some enabled bit of IRQ_STATUS is set.

    And the core's other members.
    """

    def __init__(
        self,
        core: wiring.Component,
        top: Top,
        *,
        token_beats: int,
        output_beats: int = 1,
        int8: bool = False,
        secded: bool = False,
        burst_beats: int = 1,
        max_outstanding: int = 1,
        waiting_beats: int = 0,
        count_bits: int = COUNT_BITS,
    ) -> None:
        if not 2 <= count_bits <= COUNT_BITS:
            raise ValueError(f"count_bits must be from 2 to {COUNT_BITS}, not {count_bits}")
        self.core = core
        self.top = top
        self.int8 = int8
        self.secded = secded
        self.token_beats = token_beats
        self.output_beats = output_beats
        self.burst_beats = burst_beats
        self.max_outstanding = max_outstanding
        self.waiting_beats = waiting_beats
        self.count_bits = count_bits
        members = dict(core.signature.members)
        self.has_memory = "o_ar" in members
        self.others = [name for name in members if name not in CORE_PORTS + UNCONNECTED]
        ports = {
            **lite_members(),
            "i": members["i"],
            "o": members["o"],
            "m_axis_tuser": Out(1),
            "irq": Out(1),
            **{name: members[name] for name in self.others},
        }
        if self.has_memory:
            self.axi_read = ("o_ar", "i_r", burst_beats)
            ports |= {
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": members["i_r"],
                "m_axi_arid": Out(1),
                "m_axi_arprot": Out(3),
                "m_axi_arcache": Out(4),
                "m_axi_rid": In(1),
            }
        super().__init__(ports)

    @property
    def registers(self):
        """What software sees: :func:`spec.registers.register_map`."""
        return register_map(self.top, int8=self.int8, secded=self.secded)

    def elaborate(self, platform):
        m = Module()
        core = self.core
        reset_core = Signal()
        # Whoever reads the Verilog meets "core" as the exporter's name for the whole.
        m.submodules["layer" if self.top in LAYERS else str(self.top)] = ResetInserter(reset_core)(core)
        m.submodules.lite = lite = AxiLite()
        m.submodules.decoder = decoder = AddressDecoder(self.registers)
        bus = [register for register in self.registers if register.address >= BUS_PAGE]
        says = next(register for register in bus if register.name == "BUS_ID")
        constants = {f"bus_id_{field.name}": field.reset for field in says.fields}
        m.submodules.block = block = RegisterBlock(bus, constants)
        m.submodules.packets = packets = PacketGuard(
            self.i.payload.shape(), self.token_beats, self.count_bits
        )
        m.submodules.marker = marker = PacketMarker(self.o.payload.shape())

        recovering = Signal()
        loading = Signal()
        loaded = Signal()
        busy = Signal()
        read_failed = Signal()
        errors = Signal(32)
        events = {name: getattr(packets, name) for name in PACKET_ERRORS}
        events |= dict(zip(ACCESS_ERRORS, (lite.refused_write, lite.refused_read), strict=True))
        reads_idle = Const(1, 1)
        if self.has_memory:
            reads_idle = self._memory(m, block, recovering, events)
        self._lite(m, lite, decoder, block, recovering)
        self._streams(m, packets, marker, block, recovering)

        # Errors stay until recovery. While it lasts accesses alone can go wrong: all else is given up.
        recover = block.bus_control_recover
        given_up = recovering | recover
        seen = Signal(len(ERROR_FIELDS))
        kept = Signal(len(ERROR_FIELDS))
        stays = Signal(len(ERROR_FIELDS))
        access_failed = Signal()
        for index, field in enumerate(ERROR_FIELDS):
            event = events.get(field.name, Const(0, 1))
            m.d.comb += [
                seen[index].eq(event if field.name in ACCESS_ERRORS else event & ~given_up),
                errors[field.low].eq(kept[index]),
                getattr(block, f"errors_{field.name}").eq(kept[index]),
            ]
        m.d.comb += [
            stays.eq(Mux(recover, 0, kept)),
            access_failed.eq(
                Cat(
                    stays[index] for index, field in enumerate(ERROR_FIELDS) if field.name in ACCESS_ERRORS
                ).any()
            ),
        ]
        m.d.sync += kept.eq(stays | seen)
        # Of registers that say the same, one for all: the input hangs on it.
        reads = [index for index, field in enumerate(ERROR_FIELDS) if field.name in READ_ERRORS]
        m.d.sync += read_failed.eq((read_failed & ~recover) | Cat(seen[index] for index in reads).any())

        # What the core does, from STATUS, which is read whenever nobody reads anything else.
        polled = Signal()
        m.d.sync += polled.eq(lite.polls)
        load = Signal()
        saw_loaded = Signal()
        became_loaded = Signal()
        is_loaded = core.reg_rdata[STATUS_LOADED]
        m.d.comb += [
            load.eq(lite.we & (lite.addr == REGISTERS["CONTROL"]) & lite.wdata.bit_select(CONTROL_LOAD, 1)),
            saw_loaded.eq(polled & is_loaded),
            became_loaded.eq(saw_loaded & ~loaded & ~recovering),
        ]
        # Tokens wait for a load even where nothing has to be loaded: registers are written before it.
        started = Signal()
        may_begin = Signal()
        is_loading = ((loading & ~saw_loaded) | load) & ~recovering
        has_loaded = Mux(polled, is_loaded, loaded) & ~load & ~recovering
        has_started = (started | load) & ~recovering
        m.d.sync += [
            loading.eq(is_loading),
            loaded.eq(has_loaded),
            started.eq(has_started),
            may_begin.eq(has_started & has_loaded & ~is_loading),
        ]

        # Tokens.
        tokens_in = Signal(self.count_bits)
        tokens_out = Signal(self.count_bits)
        discarded = Signal(self.count_bits)
        finished, mark, inside = self._progress(m, packets, marker, tokens_out, read_failed, errors, block)
        # What passes is known late in its cycle, so most is counted in the next. A token that has begun is
        # inside at once, one that has left a cycle longer.
        begun = Signal()
        left_core = Signal()
        wrong_token = Signal()
        # The core's, and those that stand before it.
        ahead = Signal(range(core.most_tokens + StreamRegister.DEPTH + 1))
        any_inside = Signal()
        m.d.sync += [
            begun.eq(packets.begun),
            left_core.eq(finished),
            wrong_token.eq(Cat(getattr(packets, name) for name in PACKET_ERRORS).any()),
        ]
        with m.If(begun):
            m.d.sync += tokens_in.eq(tokens_in + 1)
        with m.If(finished):
            m.d.sync += tokens_out.eq(tokens_out + 1)
        with m.If(packets.discarded):
            m.d.sync += discarded.eq(discarded + 1)
        with m.If(begun & ~left_core):
            m.d.sync += [ahead.eq(ahead + 1), any_inside.eq(1)]
        with m.If(left_core & ~begun):
            m.d.sync += [ahead.eq(ahead - 1), any_inside.eq(ahead[1:].any())]
        with m.If(recovering):
            reset = (begun, left_core, wrong_token, tokens_in, tokens_out, ahead, any_inside)
            m.d.sync += [signal.eq(0) for signal in reset]
        error_token = Signal(self.count_bits)
        with m.If(wrong_token):
            m.d.sync += error_token.eq(Mux(begun, tokens_in, tokens_in - 1))
        with m.If(lite.refused_write | lite.refused_read):
            with m.If(~access_failed):
                m.d.sync += block.error_register.eq(lite.addr)
        m.d.comb += [
            busy.eq(begun | any_inside | inside),
            marker.mark.eq(mark),
            block.tokens_in.eq(tokens_in),
            block.tokens_out.eq(tokens_out),
            block.error_token.eq(error_token),
            block.discarded.eq(discarded),
            block.bus_status_halted.eq(packets.halted),
            block.bus_status_recovering.eq(recovering),
            block.bus_status_packet_open.eq(packets.packet_open),
            block.bus_status_busy.eq(busy),
            block.bus_status_loading.eq(loading),
            decoder.locked.eq(busy | loading | recovering | packets.inside_packet),
            decoder.recovering.eq(recovering),
            # Behind a failed read a packet that has begun goes on to its end.
            packets.admit.eq(may_begin & (~read_failed | packets.inside_packet)),
            packets.read_failed.eq(read_failed),
        ]

        # Recovery.
        reset_cycles = RESET_CYCLES + self.waiting_beats
        left = Signal(range(reset_cycles + 1))
        m.d.comb += [
            packets.recover.eq(recover),
            packets.discard_rest.eq(block.bus_control_discard_rest),
            packets.recovering.eq(recovering),
            marker.recovering.eq(recovering),
            reset_core.eq(recovering),
        ]
        with m.If(recover):
            m.d.sync += [recovering.eq(1), left.eq(reset_cycles)]
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Elif(reads_idle & marker.closed):
            m.d.sync += recovering.eq(0)

        # Interrupts.
        m.d.comb += [
            block.irq_status_done_set.eq(self._done(m, packets, marker, busy) & ~recovering),
            block.irq_status_error_set.eq(seen.any()),
            block.irq_status_loaded_set.eq(became_loaded),
        ]
        m.d.sync += self.irq.eq(
            (block.irq_status_done & block.irq_enable_done)
            | (block.irq_status_error & block.irq_enable_error)
            | (block.irq_status_loaded & block.irq_enable_loaded)
        )
        return m

    def _lite(self, m, lite, decoder, block, recovering):
        """Connect the AXI4-Lite port to both pages of registers."""
        core = self.core
        ports = [name for name in self.signature.members if name.startswith("s_axi_")]
        for name in ports:
            mine, its = getattr(self, name), getattr(lite, name)
            m.d.comb += its.eq(mine) if self.signature.members[name].flow == In else mine.eq(its)
        of_bus = Signal()
        bus_next = Signal()
        m.d.comb += [
            of_bus.eq(lite.addr >= BUS_PAGE),
            decoder.addr.eq(lite.addr),
            decoder.wdata.eq(lite.wdata),
            lite.write_response.eq(decoder.write_response),
            lite.read_response.eq(decoder.read_response),
            core.reg_addr.eq(lite.addr[: len(core.reg_addr)]),
            core.reg_wdata.eq(lite.wdata),
            core.reg_we.eq(lite.we & ~of_bus),
            block.addr.eq(lite.addr),
            block.wdata.eq(lite.wdata),
            block.we.eq(lite.we & of_bus),
            lite.rdata.eq(Mux(bus_next, block.rdata, core.reg_rdata)),
        ]
        m.d.sync += bus_next.eq(of_bus)

    def _streams(self, m, packets, marker, block, recovering):
        """Connect streams and what the top does not look at."""
        core = self.core
        connect_stream(m, wiring.flipped(self.i), packets.i)
        self._enter(m, packets.o, recovering)
        connect_stream(m, core.o, marker.i)
        connect_stream(m, marker.o, wiring.flipped(self.o))
        m.d.comb += [self.m_axis_tuser.eq(marker.user), packets.batch_tokens.eq(block.batch_tokens)]
        for name in self.others:
            member, mine, its = self.signature.members[name], getattr(self, name), getattr(core, name)
            if member.is_signature:
                # A register that recovery leaves alone, as the other output has.
                m.submodules[f"{name}_register"] = register = StreamRegister(its.payload.shape())
                m.d.comb += [
                    register.i.payload.eq(its.payload),
                    register.i.valid.eq(its.valid & ~recovering),
                    its.ready.eq(register.i.ready & ~recovering),
                ]
                connect_stream(m, register.o, wiring.flipped(mine))
            else:
                m.d.comb += its.eq(mine) if member.flow == In else mine.eq(its)

    def _enter(self, m, tokens, recovering):
        """Let tokens into the core: from the guard's state to all that takes a beat is a long way."""
        m.submodules.entrance = entrance = ResetInserter(recovering)(
            StreamRegister(self.i.payload.shape(), late=True)
        )
        connect_stream(m, tokens, entrance.i)
        connect_stream(m, entrance.o, self.core.i)

    def _memory(self, m, block, recovering, events):
        """Connect the AXI4 read master; returns whether nothing is in flight."""
        core = self.core
        beat_bits = len(self.i_r.payload.data)
        m.submodules.read_guard = reads = ReadGuard(beat_bits, self.burst_beats, self.max_outstanding)
        connect_stream(m, core.o_ar, reads.i_ar)
        # What passes is known late, and wide.
        read_data = ResetInserter(recovering)(StreamRegister(self.i_r.payload.shape(), late=True))
        m.submodules.read_data = read_data
        connect_stream(m, reads.o_r, read_data.i)
        connect_stream(m, read_data.o, core.i_r)
        connect_stream(m, reads.o_ar, wiring.flipped(self.o_ar))
        connect_stream(m, wiring.flipped(self.i_r), reads.i_r)
        names = dict(zip(READ_ERRORS, ("slverr", "decerr", "wrong_last", "unexpected"), strict=True))
        events |= {name: getattr(reads, event) for name, event in names.items()}
        address = Signal.like(reads.address, name="error_read")
        failed = Signal()
        m.d.comb += [
            reads.recovering.eq(recovering),
            block.bus_status_reads.eq(reads.reads[:8] | reads.reads[8:].any().replicate(8)),
            Cat(block.error_read_low, block.error_read_high).eq(address),
            self.m_axi_arid.eq(0),
            self.m_axi_arprot.eq(0),
            # Normal memory, not cached: bufferable and modifiable (IHI 0022, table A4-5).
            self.m_axi_arcache.eq(0b0011),
        ]
        with m.If(recovering):
            m.d.sync += failed.eq(0)
        with m.Elif(~failed & (reads.slverr | reads.decerr | reads.wrong_last)):
            m.d.sync += [failed.eq(1), address.eq(reads.address)]
        return reads.idle

    def _short_token(self, m, errors):
        """Return whether a token was short and ERROR_TOKEN, which comes a cycle later, says which."""
        told = errors[field_of(BUS_REGISTERS, "ERRORS", "short_token").low]
        named = Signal()
        m.d.sync += named.eq(told)
        return told & named

    def _progress(self, m, packets, marker, tokens_out, read_failed, errors, block):
        """Return whether a token's last beat leaves, whether a beat is marked, and what else is inside."""
        beat = Signal(range(self.output_beats), name="output_beat")
        ends = Signal(name="output_ends_token")
        mark = Signal(name="mark")
        m.d.comb += [
            ends.eq(beat == self.output_beats - 1),
            mark.eq(read_failed | (self._short_token(m, errors) & (tokens_out == block.error_token))),
        ]
        with m.If(block.bus_status_recovering):
            m.d.sync += beat.eq(0)
        with m.Elif(marker.taken):
            m.d.sync += beat.eq(Mux(ends, 0, beat + 1))
        return marker.taken & ends, mark, Const(0, 1)

    def _done(self, m, packets, marker, busy):
        """Return whether a batch is done in this cycle."""
        return marker.done


class DispatchTop(AxiTop):
    """The dispatcher's top: a token may have any number of entries, none too.

    Batches are done when nothing is inside any more and no packet is open. The entries of a token that was
    filled up are known by its slot. What still waits inside of the token that had the slot before is marked
    with them: that entry is right, and a mark says that a beat may be wrong.
    """

    def __init__(self, core: DispatchAlone, **sizes) -> None:
        super().__init__(core, Top.DISPATCH, token_beats=core.token_beats, **sizes)

    def _enter(self, m, tokens, recovering):
        # A token that stood before the core would have a slot of another one, whose entries were marked, too.
        connect_stream(m, tokens, self.core.i)

    def _progress(self, m, packets, marker, tokens_out, read_failed, errors, block):
        slot = self.core.o.payload.slot
        mark = self._short_token(m, errors) & (slot == block.error_token[: len(slot)])
        return self.core.finished & ~block.bus_status_recovering, mark, self.core.inside

    def _done(self, m, packets, marker, busy):
        # From registers: what is inside is known late.
        is_busy = Signal()
        was_busy = Signal()
        m.d.sync += [is_busy.eq(busy), was_busy.eq(is_busy)]
        return was_busy & ~is_busy & ~packets.packet_open


def layer_top(model: ModelSpec, design: DesignSpec, **sizes: int) -> AxiTop:
    """Return an accelerator with AXI ports; ``sizes``: ``waiting_beats``, ``count_bits``."""
    pim = design.engine is Engine.PIM
    core = PimLayer(model, design) if pim else FpgaLayer(model, design)
    return AxiTop(
        core,
        Top.PIM if pim else Top.FPGA,
        token_beats=core.image.gate.input_beats,
        output_beats=ceil_div(model.d_model, design.tile.act_lanes),
        int8=design.format.integer,
        secded=design.pim is not None and design.pim.secded,
        burst_beats=design.memory.burst_beats,
        max_outstanding=design.memory.max_outstanding,
        **sizes,
    )


def gate_top(model: ModelSpec, design: DesignSpec, **sizes: int) -> AxiTop:
    """Return the gate alone with AXI ports; ``sizes`` as of :func:`layer_top`."""
    core = GateAlone(model, design)
    return AxiTop(
        core,
        Top.GATE,
        token_beats=core.token_beats,
        output_beats=core.output_beats,
        burst_beats=design.memory.burst_beats,
        **sizes,
    )


def dispatch_top(model: ModelSpec, design: DesignSpec, **sizes: int) -> DispatchTop:
    """Return the dispatcher of one engine alone with AXI ports; ``sizes`` as of :func:`layer_top`."""
    return DispatchTop(DispatchAlone(model, design), **sizes)
