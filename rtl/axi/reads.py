"""What stands between an AXI4 read port and a core: bursts counted, errors told, reads in flight drained."""

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.axi.lite import DECERR, OKAY
from rtl.expert.layouts import ADDRESS_BITS, address_layout, read_layout
from rtl.fifo import StreamFifo
from rtl.stream import StreamRegister, connect_stream


class ReadGuard(wiring.Component):
    """Give a core exactly the beats that it asked for, whatever the memory does; note the first error.

    Every burst has ``burst_beats`` beats. A beat with an error response is passed on, as the data that it
    carries. Where ``last`` comes too early, the rest of the burst is zeros; beats behind the burst's end are
    thrown away up to ``last``. A beat that nobody asked for is taken and thrown away. While
    ``recovering`` is set nothing is asked for, and what comes is thrown away; an address once offered
    stays until it is taken. Latency: 1 cycle for addresses, none for data.

    Members
    -------
    i_ar : In, o_r : Out
        To the core: addresses, beats.
    o_ar : Out, i_r : In
        To the port.
    recovering : In(1)
    reads : Out
        Bursts whose address was taken at the port and whose ``last`` has not come.
    idle : Out(1)
        None is in flight or about to be.
    slverr, decerr, wrong_last, unexpected : Out(1)
        Events.
    address : Out(ADDRESS_BITS)
        Of the beat that comes in this cycle.
    """

    def __init__(self, beat_bits: int, burst_beats: int, max_outstanding: int) -> None:
        self.beat_bits = beat_bits
        self.burst_beats = burst_beats
        # Two more than the core waits for, which stand in the address register.
        self.depth = 1 << (max_outstanding + 1).bit_length()
        events = ("slverr", "decerr", "wrong_last", "unexpected")
        super().__init__(
            {
                "i_ar": In(stream.Signature(address_layout())),
                "o_r": Out(stream.Signature(read_layout(beat_bits))),
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": In(stream.Signature(read_layout(beat_bits))),
                "recovering": In(1),
                "reads": Out(range(2 * self.depth)),
                "idle": Out(1),
                **{name: Out(1) for name in events},
                "address": Out(ADDRESS_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.register = register = StreamRegister(address_layout())
        m.submodules.addresses = addresses = StreamFifo(address_layout(), self.depth)
        connect_stream(m, register.o, wiring.flipped(self.o_ar))
        asks = Signal()
        room = Signal()
        # Room in the queue, told by a register, as whoever asks waits for it. A core that keeps to
        # ``max_outstanding`` always finds some.
        kept = Signal(range(self.depth + 1))
        kept_next = Signal.like(kept)
        space = Signal(init=1)
        m.d.comb += [
            # Each address goes to the port and is kept until its burst has come.
            kept_next.eq(kept + asks - (addresses.o.valid & addresses.o.ready)),
            room.eq(register.i.ready & space & ~self.recovering),
            asks.eq(self.i_ar.valid & room),
            self.i_ar.ready.eq(room),
            register.i.payload.eq(self.i_ar.payload),
            register.i.valid.eq(asks),
            addresses.i.payload.eq(self.i_ar.payload),
            addresses.i.valid.eq(asks),
        ]
        m.d.sync += [kept.eq(kept_next), space.eq(kept_next != self.depth)]
        beat = Signal(range(self.burst_beats))
        ends = Signal()
        over = Signal()
        fill = Signal()
        take = Signal()
        expected = Signal()
        passes = Signal()
        started = self.o_ar.valid & self.o_ar.ready
        m.d.comb += [
            ends.eq(beat == self.burst_beats - 1),
            expected.eq(self.reads != 0),
            passes.eq(expected & ~over & ~fill & ~self.recovering),
            take.eq(self.i_r.valid & self.i_r.ready),
            self.i_r.ready.eq(Mux(passes, self.o_r.ready, ~fill)),
            self.o_r.payload.eq(self.i_r.payload),
            self.o_r.payload.last.eq(ends),
            self.o_r.valid.eq(self.i_r.valid & passes),
            self.address.eq(addresses.o.payload.addr + beat * (self.beat_bits // 8)),
            self.idle.eq(~expected & ~self.o_ar.valid & ~fill),
        ]
        m.d.sync += self.reads.eq(self.reads + started - (take & expected & self.i_r.payload.last))

        # One more beat of a burst is with the core, or thrown away in its stead.
        step = Signal()
        m.d.comb += step.eq((take & expected & ~over) | (fill & (self.o_r.ready | self.recovering)))
        with m.If(fill):
            m.d.comb += [
                self.o_r.payload.data.eq(0),
                self.o_r.payload.resp.eq(OKAY),
                self.o_r.valid.eq(~self.recovering),
            ]
        with m.If(step):
            m.d.sync += beat.eq(Mux(ends, 0, beat + 1))
            m.d.comb += addresses.o.ready.eq(ends)
            with m.If(ends):
                m.d.sync += fill.eq(0)
        with m.If(take & expected):
            with m.If(over):
                m.d.sync += over.eq(~self.i_r.payload.last)
            with m.Elif(self.i_r.payload.last != ends):
                m.d.comb += self.wrong_last.eq(1)
                m.d.sync += [over.eq(ends), fill.eq(~ends)]
            m.d.comb += [
                self.decerr.eq(self.i_r.payload.resp == DECERR),
                self.slverr.eq((self.i_r.payload.resp != OKAY) & (self.i_r.payload.resp != DECERR)),
            ]
        m.d.comb += self.unexpected.eq(take & ~expected)
        return m
