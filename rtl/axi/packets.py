"""Between the stream ports and a core: packets are checked on their way in, marked on their way out."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.stream import StreamRegister, connect_stream

COUNT_BITS = 32
"""Bits of what is counted: those of the registers that tell it."""


class InputState(enum.Enum, shape=3):
    """What happens to input beats.

    PASS: they go to the core. FILL: a short token is filled up with zeros. DISCARD: the rest of a long
    packet is thrown away. HALTED: they wait. RESYNC, FLUSH: of recovery, up to the packet's end or as
    long as recovery lasts.
    """

    PASS = 0
    FILL = 1
    DISCARD = 2
    HALTED = 3
    RESYNC = 4
    FLUSH = 5


class PacketGuard(wiring.Component):
    """Let whole tokens and whole packets through to a core; stop at the first that is none.

    A packet (a batch of tokens) ends with ``last``, which belongs on the last beat of a token. Where it
    comes inside a token, the token is filled up with zeros and ends the batch; where it does not come
    with token ``batch_tokens``, that token ends the batch and what follows up to ``last`` is thrown away. So
    the core always sees whole tokens and the end of each batch, and every token that it took comes out.
    After such a packet, and behind the packet in which a read failed, nothing is taken until ``recover``.

    Latency 1 cycle (a register at the port), one beat per cycle. A token once offered is not withdrawn.

    Members
    -------
    i, o : streams of ``shape``, whose ``last`` ends the packet; to the core on a token's last beat only.
    batch_tokens : In(count_bits)
        Tokens of every packet that begins two cycles later or after; 0: any number.
    admit : In(1)
        A token may begin.
    read_failed : In(1)
        Stop at the end of the packet.
    recover, discard_rest : In(1)
        Begin anew; of a packet that is open the rest is discarded up to its end, or, without
        ``discard_rest``, as long as ``recovering`` is set.
    recovering : In(1)
    short_token, short_packet, long_packet, discarded, begun : Out(1)
        Events: what is wrong with a packet; a beat is thrown away; a token's first beat is passed on.
    halted, packet_open : Out(1)
    inside_packet : Out(1)
        A packet is open of which more is to be passed on.
    """

    def __init__(self, shape: data.StructLayout, token_beats: int, count_bits: int = COUNT_BITS) -> None:
        self.shape = shape
        self.token_beats = token_beats
        self.count_bits = count_bits
        events = ("short_token", "short_packet", "long_packet", "discarded", "begun")
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "batch_tokens": In(count_bits),
                "admit": In(1),
                "read_failed": In(1),
                "recover": In(1),
                "discard_rest": In(1),
                "recovering": In(1),
                **{name: Out(1) for name in events},
                "halted": Out(1),
                "packet_open": Out(1),
                "inside_packet": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.register = register = StreamRegister(self.shape)
        connect_stream(m, wiring.flipped(self.i), register.i)
        i, o = register.o, self.o
        state = Signal(InputState)
        beat = Signal(range(self.token_beats))
        first_token = Signal(init=1)
        # Compared before a packet begins, the same for all of it: the way from there to the state is long.
        limit = Signal(self.count_bits)
        limited = Signal()
        of_one = Signal()
        of_two = Signal()
        behind_first = Signal(self.count_bits)
        tokens_behind = Signal(self.count_bits)
        none_behind = Signal()
        first = Signal()
        ends_token = Signal()
        counted_out = Signal()
        offered = Signal()
        passes = Signal()
        take = Signal()
        give = Signal()
        m.d.comb += [
            first.eq(beat == 0),
            ends_token.eq(beat == self.token_beats - 1),
            # The token that is passing is the last one that the packet may have.
            counted_out.eq(limited & Mux(first_token, of_one, none_behind)),
            self.inside_packet.eq(self.packet_open & (state == InputState.PASS)),
            take.eq(i.valid & i.ready),
            give.eq(o.valid & o.ready),
            passes.eq((state == InputState.PASS) & (self.admit | ~first | offered) & ~self.recovering),
            o.payload.eq(i.payload),
            o.payload.last.eq(ends_token & (i.payload.last | counted_out)),
            o.valid.eq(passes & i.valid),
            i.ready.eq(passes & o.ready),
            self.begun.eq(give & first),
            self.halted.eq(state == InputState.HALTED),
        ]
        m.d.sync += [offered.eq(o.valid & ~o.ready), limit.eq(self.batch_tokens)]
        with m.If(~self.packet_open & ~take):
            m.d.sync += [
                limited.eq(limit != 0),
                of_one.eq(limit == 1),
                of_two.eq(limit == 2),
                behind_first.eq(limit - 2),
            ]
        with m.If(give):
            m.d.sync += beat.eq(Mux(ends_token, 0, beat + 1))
        with m.If(take):
            m.d.sync += self.packet_open.eq(~i.payload.last)

        with m.Switch(state):
            with m.Case(InputState.PASS):
                with m.If(take):
                    self._passed(m, state, i.payload.last, ends_token, limited & ~counted_out, counted_out)
                with m.Elif(self.read_failed & ~self.packet_open & first & ~o.valid & ~self.recovering):
                    m.d.sync += state.eq(InputState.HALTED)
            with m.Case(InputState.FILL):
                m.d.comb += [o.payload.eq(0), o.payload.last.eq(ends_token), o.valid.eq(~self.recovering)]
                with m.If(give & ends_token):
                    m.d.sync += state.eq(InputState.HALTED)
            with m.Case(InputState.DISCARD, InputState.RESYNC):
                m.d.comb += [i.ready.eq(1), self.discarded.eq(i.valid)]
                with m.If(take & i.payload.last):
                    m.d.sync += state.eq(Mux(state == InputState.RESYNC, InputState.PASS, InputState.HALTED))
            with m.Case(InputState.FLUSH):
                m.d.comb += [i.ready.eq(1), self.discarded.eq(i.valid)]
                m.d.sync += self.packet_open.eq(0)
                with m.If(~self.recovering):
                    m.d.comb += [i.ready.eq(0), self.discarded.eq(0)]
                    m.d.sync += state.eq(InputState.PASS)
        # Nobody looks before the next token's last beat, so of several beats the way here has a register.
        ended = Signal()
        ended_last = Signal()
        domain = m.d.sync if self.token_beats > 1 else m.d.comb
        domain += [ended.eq(give & ends_token), ended_last.eq(o.payload.last)]
        with m.If(ended):
            m.d.sync += [
                first_token.eq(ended_last),
                tokens_behind.eq(Mux(first_token, behind_first, tokens_behind - 1)),
                none_behind.eq(Mux(first_token, of_two, tokens_behind == 1)),
            ]
        with m.If(self.recover):
            rest = Mux(self.discard_rest, InputState.RESYNC.value, InputState.FLUSH.value)
            still_open = Mux(take, ~i.payload.last, self.packet_open)
            m.d.sync += [
                state.eq(Mux(still_open, rest, InputState.PASS.value)),
                beat.eq(0),
                first_token.eq(1),
                offered.eq(0),
            ]
            if self.token_beats > 1:
                m.d.sync += ended.eq(0)
        return m

    def _passed(self, m, state, last, ends_token, expects_more, counted_out):
        """Judge a beat that is taken in this cycle."""
        with m.If(~ends_token & last):
            m.d.comb += self.short_token.eq(1)
            m.d.sync += state.eq(InputState.FILL)
        with m.Elif(ends_token & last & expects_more):
            m.d.comb += self.short_packet.eq(1)
            m.d.sync += state.eq(InputState.HALTED)
        with m.Elif(ends_token & ~last & counted_out):
            m.d.comb += self.long_packet.eq(1)
            m.d.sync += state.eq(InputState.DISCARD)
        with m.Elif(last & self.read_failed):
            m.d.sync += state.eq(InputState.HALTED)


class PacketMarker(wiring.Component):
    """Output beats of a core on their way to the port, with a mark on those that may be wrong.

    A register that recovery leaves alone: a beat once offered stays. Recovery in the middle of a packet
    closes it with one more beat of zeros, marked, with ``last``. Latency 1 cycle.

    Members
    -------
    i : In(stream.Signature(shape)), o : Out(stream.Signature(shape)), user : Out(1), with the beat of o
    mark : In(1), with the beat of i
    recovering : In(1)
        ``i`` is not looked at.
    taken : Out(1), closed : Out(1)
        A beat of ``i`` is taken; no packet is open.
    done : Out(1)
        The last beat of a packet of ``i`` is taken at ``o``; none that recovery closes.
    """

    def __init__(self, shape: data.StructLayout) -> None:
        self.shape = shape
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "user": Out(1),
                "mark": In(1),
                "recovering": In(1),
                "taken": Out(1),
                "closed": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        marked = data.StructLayout({"beat": self.shape, "user": unsigned(1), "done": unsigned(1)})
        m.submodules.register = register = StreamRegister(marked)
        packet_open = Signal()
        m.d.comb += [
            register.i.payload.beat.eq(self.i.payload),
            register.i.payload.user.eq(self.mark),
            register.i.payload.done.eq(self.i.payload.last),
            register.i.valid.eq(self.i.valid),
            self.i.ready.eq(register.i.ready),
            self.taken.eq(self.i.valid & self.i.ready),
            self.closed.eq(~packet_open),
            self.o.payload.eq(register.o.payload.beat),
            self.user.eq(register.o.payload.user),
            self.o.valid.eq(register.o.valid),
            register.o.ready.eq(self.o.ready),
            self.done.eq(self.o.valid & self.o.ready & register.o.payload.done),
        ]
        with m.If(self.recovering):
            m.d.comb += [
                register.i.payload.done.eq(0),
                register.i.payload.beat.eq(0),
                register.i.payload.beat.last.eq(1),
                register.i.payload.user.eq(1),
                register.i.valid.eq(packet_open),
                self.i.ready.eq(0),
            ]
        with m.If(register.i.valid & register.i.ready):
            m.d.sync += packet_open.eq(~register.i.payload.beat.last)
        return m
