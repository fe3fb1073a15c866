"""Combiner: expert results in, per token their weighted sum out, in token order, each exactly once.

Contributions to different tokens come interleaved in any way. Each is added to its token's fp32
accumulators in one RAM as it comes; when all that ``i_expect`` announced are in, the token leaves.
Neither an output that is not ready nor a missing announcement ever holds up ``i``.

::

    i --> register --> adder: weight x data + accumulator --write--> RAM [word][slot]
                         |  first beats start from +0                  |
                         +--> received [slot] ----+                    | read
    i_expect --> queue ---------------------------+--> emitter --------+--> register --> o, freed

References: :func:`golden.combine_bf16.combine_bf16` (what), :mod:`sim.combine` (when).
"""

from dataclasses import dataclass

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import BF16, F32, Accumulate, Burst, bf16_from_f32, delay
from rtl.combine_start import add_start, start_members, start_read
from rtl.dispatch import expect_layout
from rtl.expert.layouts import contribution_layout
from rtl.fifo import StreamFifo
from rtl.ram import Ram, ReadSignature
from rtl.stream import StreamRegister, connect_stream
from spec.errors import require, require_range
from spec.geometry import ceil_div


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """Size of a combiner.

    Attributes
    ----------
    num_slots : tokens inside at a time, a power of two.
    d_model : elements of a token.
    lanes : elements of a beat.
    max_count : most contributions of a token.
    stream_lanes : elements of a beat of tokens, where identity experts ask for these; else 0.
    bias_bits : bits of a beat of the output bias, where there is one; else 0. Not both.
    """

    num_slots: int
    d_model: int
    lanes: int
    max_count: int
    stream_lanes: int = 0
    bias_bits: int = 0

    def __post_init__(self) -> None:
        require(
            2 <= self.num_slots <= 4096 and self.num_slots & (self.num_slots - 1) == 0,
            f"must be a power of two in 2..4096, not {self.num_slots}",
            key="num_slots",
        )
        require_range("d_model", self.d_model, 1, 1 << 16)
        require_range("lanes", self.lanes, 1, 1024)
        require_range("max_count", self.max_count, 1, 1024)

    @property
    def starts(self) -> bool:
        """Whether sums start from something else than +0 (:mod:`rtl.combine_start`)."""
        return self.stream_lanes > 0 or self.bias_bits > 0

    @property
    def words(self) -> int:
        """Beats of a token."""
        return ceil_div(self.d_model, self.lanes)

    @property
    def depth(self) -> int:
        """Rows of the accumulator RAM."""
        return self.num_slots * self.words

    @property
    def contribution(self) -> data.StructLayout:
        """Payload of ``i``."""
        return contribution_layout(self.num_slots, self.words, self.lanes)

    @property
    def expect(self) -> data.StructLayout:
        """Payload of ``i_expect``."""
        return expect_layout(self.num_slots, self.max_count, identity=self.stream_lanes > 0)

    @property
    def output(self) -> data.StructLayout:
        """Payload of ``o``."""
        return data.StructLayout({"data": data.ArrayLayout(16, self.lanes), "token_last": 1, "last": 1})

    @property
    def count_bits(self) -> int:
        """Bits of a count of contributions."""
        return self.max_count.bit_length()

    @property
    def sums(self) -> data.ArrayLayout:
        """A row of the accumulator RAM."""
        return data.ArrayLayout(F32, self.lanes)

    @property
    def sum_read(self) -> ReadSignature:
        """Read port of the accumulators."""
        return ReadSignature(32 * self.lanes, self.depth)

    @property
    def count_read(self) -> ReadSignature:
        """Read port of the counts of contributions."""
        return ReadSignature(self.count_bits, self.num_slots)

    @property
    def clear(self) -> wiring.Signature:
        """Forget what this slot has received."""
        return wiring.Signature({"valid": Out(1), "slot": Out(range(self.num_slots))})


class ContributionCounts(wiring.Component):
    """Count the whole contributions of each slot.

    A contribution is counted ``delay`` + 2 cycles after its last beat: then a read of the cycle before
    shows it. After reset no slot has any; the RAM is not reset.

    Members
    -------
    slot : In, last : In(1), the slot of a beat, taken in this cycle and the last of its contribution.
    first : Out(1), no contribution to ``slot`` has come to its last beat yet.
    clear : In, forget a slot.
    counted : Out(num_slots), this slot's count means something; else it has received nothing.
    count : In(ReadSignature), contributions received per slot.
    """

    def __init__(self, config: CombineConfig, delay: int = 0) -> None:
        self.config = config
        self.delay = delay
        super().__init__(
            {
                "slot": In(range(config.num_slots)),
                "last": In(1),
                "first": Out(1),
                "clear": In(config.clear),
                "counted": Out(config.num_slots),
                "count": In(config.count_read),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        started = Signal(config.num_slots)
        m.d.comb += self.first.eq(~started.bit_select(self.slot, 1))
        with m.If(self.clear.valid):
            m.d.sync += started.bit_select(self.clear.slot, 1).eq(0)
        with m.If(self.last):
            m.d.sync += started.bit_select(self.slot, 1).eq(1)

        m.submodules.counts = ram = Ram(
            width=config.count_bits, depth=config.num_slots, num_read_ports=2, transparent=True
        )
        wiring.connect(m, wiring.flipped(self.count), ram.read_1)
        reads = delay(m, self.last, self.delay, "count_read", control=True)
        read_slot = delay(m, self.slot, self.delay, "count_read_slot")
        writes = delay(m, reads, 1, "count_write", control=True)
        write_slot = delay(m, read_slot, 1, "count_write_slot")
        write_first = delay(m, self.first, self.delay + 1, "count_first")
        m.d.comb += [
            ram.read_0.en.eq(reads),
            ram.read_0.addr.eq(read_slot),
            ram.write.en.eq(writes),
            ram.write.addr.eq(write_slot),
            ram.write.data.eq(Mux(write_first, 0, ram.read_0.data) + 1),
        ]
        with m.If(self.clear.valid):
            m.d.sync += self.counted.bit_select(self.clear.slot, 1).eq(0)
        with m.If(writes):
            m.d.sync += self.counted.bit_select(write_slot, 1).eq(1)
        return m


class SlotAdder(wiring.Component):
    """Add each beat to the accumulators of its slot and word; count contributions.

    A pipeline that never stalls once a beat is in; a beat waits at the entry while one of the last
    ``ACCUMULATE_DISTANCE - 1`` cycles took a beat for the same accumulators. One beat per cycle.
    ``WRITE_AT`` cycles after a beat was taken its sums are written (and seen by a read in that
    cycle); the count is seen one cycle after a read in the cycle before that.
    After reset no slot holds anything; the RAMs are not reset.

    Area: per lane one 8x8 multiplier and one fp32 adder; RAM bits ``32 * lanes * depth``, twice.

    Members
    -------
    i : In(stream.Signature(contribution))
    clear : In, forget a slot; its accumulators start from +0 again.
    counted, count : Out and In, as in :class:`ContributionCounts`.
    sums : In(ReadSignature), the accumulators; row ``Cat(slot, word)``.
    start : Out, where sums do not start from +0: what they start from.
    """

    READ_AT = Burst.LATENCY - Ram.LATENCY
    WRITE_AT = Burst.LATENCY + Accumulate.LATENCY
    DISTANCE = WRITE_AT - READ_AT

    def __init__(self, config: CombineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.contribution)),
                "clear": In(config.clear),
                "counted": Out(config.num_slots),
                "count": In(config.count_read),
                "sums": In(config.sum_read),
                **({"start": Out(start_read(config))} if config.starts else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        slot = self.i.payload.slot
        row = Cat(slot, self.i.payload.word)

        # Where each beat of the pipeline is going: [n] was taken n cycles ago.
        accept = Signal()
        hazard = Signal()
        valids, rows = [accept], [row]
        for n in range(1, self.WRITE_AT + 1):
            valids.append(delay(m, valids[-1], 1, f"valid_{n}", control=True))
            rows.append(delay(m, rows[-1], 1, f"row_{n}"))
        m.d.comb += [
            hazard.eq(Cat(valids[n] & (rows[n] == row) for n in range(1, self.DISTANCE)).any()),
            self.i.ready.eq(~hazard),
            accept.eq(self.i.valid & self.i.ready),
        ]

        # Counted in the cycle before its last sums are written. The first one replaces what the RAM holds.
        read_at = self.WRITE_AT - 2
        m.submodules.counts = counts = ContributionCounts(config, read_at)
        wiring.connect(m, wiring.flipped(self.clear), counts.clear)
        wiring.connect(m, wiring.flipped(self.count), counts.count)
        m.d.comb += [
            counts.slot.eq(slot),
            counts.last.eq(accept & self.i.payload.last),
            self.counted.eq(counts.counted),
        ]
        self._add(m, counts.first, valids, rows)
        return m

    def _add(self, m, first, valids, rows):
        config = self.config
        m.submodules.sums = ram = Ram(
            width=32 * config.lanes, depth=config.depth, num_read_ports=2, transparent=True
        )
        wiring.connect(m, wiring.flipped(self.sums), ram.read_1)
        first_now = delay(m, first, Burst.LATENCY, "first")
        old = data.View(config.sums, ram.read_0.data)
        new = Signal(config.sums)
        m.d.comb += [
            ram.read_0.en.eq(valids[self.READ_AT]),
            ram.read_0.addr.eq(rows[self.READ_AT]),
            ram.write.en.eq(valids[self.WRITE_AT]),
            ram.write.addr.eq(rows[self.WRITE_AT]),
            ram.write.data.eq(new),
        ]
        starts = [0] * config.lanes
        if config.starts:
            # Early enough for a register behind the product.
            read_at = Burst.LATENCY - Ram.LATENCY - 1
            m.d.comb += [
                self.start.en.eq(valids[read_at]),
                self.start.slot.eq(rows[read_at][: len(self.start.slot)]),
                self.start.word.eq(rows[read_at][len(self.start.slot) :]),
            ]
            starts = [delay(m, value.as_value(), 1, f"start_{n}") for n, value in enumerate(self.start.data)]
        for lane in range(config.lanes):
            m.submodules[f"product_{lane}"] = product = Burst(1)
            m.submodules[f"sum_{lane}"] = total = Accumulate(1)
            m.d.comb += [
                product.x[0].eq(data.View(BF16, self.i.payload.data[lane])),
                product.w[0].eq(data.View(BF16, self.i.payload.weight)),
                total.acc.eq(Mux(first_now, starts[lane], old[lane].as_value())),
                total.addend.eq(product.o),
                new[lane].eq(total.o),
            ]


class OldestToken(wiring.Component):
    """Hold the oldest announced token; say when all its contributions are in.

    The next token's count is read while this one leaves, so that complete tokens follow each other
    without a gap. After reset nothing is held.

    Members
    -------
    i : In(stream.Signature(expect))
    counted, count : In and Out, state of :class:`ContributionCounts`.
    valid : Out(1), token : Out(expect), empty : Out(1): the token, and that it waits for nothing.
    complete : Out(1), with ``valid``: all that it waits for is there.
    leave : In(1), the token goes, in the next cycle the next one is there.
    """

    def __init__(self, config: CombineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.expect)),
                "counted": In(config.num_slots),
                "count": Out(config.count_read),
                "valid": Out(1),
                "token": Out(config.expect),
                "empty": Out(1),
                "complete": Out(1),
                "leave": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # The count of the token's slot stands at the read port, renewed every cycle.
        token = self.token
        received = Signal()
        take = Signal()
        m.d.comb += [
            self.empty.eq(token.count == 0),
            received.eq(self.counted.bit_select(token.slot, 1) & (self.count.data == token.count)),
            self.complete.eq(self.empty | received),
            take.eq(~self.valid | self.leave),
            self.i.ready.eq(take),
            self.count.en.eq(1),
            self.count.addr.eq(Mux(take, self.i.payload.slot, token.slot)),
        ]
        with m.If(take):
            m.d.sync += [self.valid.eq(self.i.valid), token.eq(self.i.payload)]
        return m


class Emitter(wiring.Component):
    """Wait until a token's contributions are in; read its sums, round them to bf16, give them out.

    Latency 2 cycles from ``i`` to ``o``, one beat per cycle, complete tokens without a gap. After reset
    nothing is held.

    Members
    -------
    i : In(stream.Signature(expect))
    counted, count, sums, clear : In and Out, state of :class:`SlotAdder`; a slot is cleared with the
        read of its last word.
    start : Out, as in :class:`SlotAdder`, for a token without contributions.
    o : Out(stream.Signature(output))
    """

    def __init__(self, config: CombineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.expect)),
                "counted": In(config.num_slots),
                "count": Out(config.count_read),
                "sums": Out(config.sum_read),
                "clear": Out(config.clear),
                **({"start": Out(start_read(config))} if config.starts else {}),
                "o": Out(stream.Signature(config.output)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config

        m.submodules.oldest = oldest = OldestToken(config)
        connect_stream(m, wiring.flipped(self.i), oldest.i)
        wiring.connect(m, oldest.count, wiring.flipped(self.count))
        token = oldest.token
        word = Signal(range(config.words))
        read = Signal()
        last_word = Signal()
        room = Signal()
        m.d.comb += [
            oldest.counted.eq(self.counted),
            read.eq(oldest.valid & oldest.complete & room),
            last_word.eq(word == config.words - 1),
            oldest.leave.eq(read & last_word),
            self.clear.valid.eq(read & last_word),
            self.clear.slot.eq(token.slot),
        ]
        with m.If(read):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))

        # The word at the read port of the sums.
        word_empty = Signal()
        sums = data.View(config.sums, self.sums.data)
        m.d.comb += [
            room.eq(~self.o.valid | self.o.ready),
            self.sums.en.eq(read),
            self.sums.addr.eq(Cat(token.slot, word)),
        ]
        empty = [0] * config.lanes
        if config.starts:
            m.d.comb += [self.start.en.eq(read), self.start.slot.eq(token.slot), self.start.word.eq(word)]
            empty = [bf16_from_f32(value) for value in self.start.data]
        for lane in range(config.lanes):
            m.d.comb += self.o.payload.data[lane].eq(Mux(word_empty, empty[lane], bf16_from_f32(sums[lane])))
        with m.If(room):
            m.d.sync += [
                self.o.valid.eq(read),
                self.o.payload.token_last.eq(last_word),
                self.o.payload.last.eq(last_word & token.last_token),
                word_empty.eq(oldest.empty),
            ]
        return m


class Combine(wiring.Component):
    """Sum each token's weighted contributions in order of arrival; give tokens out in order.

    ::

        i.payload.slot        0   0   1   1   0   0      two words a token
        i.payload.word        0   1   0   1   0   1
        i.payload.last        0   1   0   1   0   1
        i_expect.payload      {slot 0, count 2}, {slot 1, count 1}
        o.payload.token_last  0   1   0   1              (slot 0, then slot 1)
        o.payload.last        0   0   0   1              where i_expect had last_token

    Arithmetic, per lane: ``acc' = RNE(acc + weight * data)`` in fp32, from +0; the result is rounded
    to bf16. A token with count 0 leaves as zeros.

    Latency: LATENCY cycles from the last beat of a token's last contribution to its first beat at
    ``o``; EXPECT_LATENCY from its ``i_expect`` beat, where that comes late. One beat in and one out
    per cycle, at the same time, without a gap between complete tokens. A beat waits while one for the
    same slot and word was taken less than ``ACCUMULATE_DISTANCE`` cycles before: contributions to one
    slot directly behind each other take that many cycles each where a token has fewer words.
    All outputs are registers, but for ``i_expect.ready``, a comparison of counters; no ready depends
    on another. After reset nothing is held and token 0 is expected in slot 0.

    What the environment owes: slots are announced in token order; a contribution's words ascend from
    0 and ``last`` is on the last of them; contributions to one slot do not interleave, and as many
    come as announced; a slot is used again, in either stream, only after ``freed`` has come for it.

    Members
    -------
    i : In(stream.Signature(config.contribution)): slot, word, weight, data, last.
    i_expect : In(stream.Signature(config.expect)): slot, count, last_token. May come before, with or
        after the contributions; before them where it has ``identity``.
    i_token : In(stream.Signature(token_layout(stream_lanes))), with identity experts: tokens in slot order,
        each before it is announced; always ready.
    i_load : In(stream.Signature(bias_bits)), load_start : In(1), loaded : Out(1), with an output bias: its
        fp32 values in order; the next beat is the first one; all are there, as they must before the first
        contribution, or announcement of a token without any.
    o : Out(stream.Signature(config.output)): data, token_last (last beat of a token), last (last beat
        of the last token of a batch). Lanes beyond ``d_model`` carry the sum of what came in them.
    freed : Out(1), one cycle after a token's last beat was taken; slots are freed in token order.
    """

    LATENCY = StreamRegister.LATENCY + SlotAdder.WRITE_AT + Ram.LATENCY + StreamRegister.LATENCY
    EXPECT_LATENCY = StreamFifo.LATENCY + 1 + Ram.LATENCY + StreamRegister.LATENCY

    def __init__(self, config: CombineConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.contribution)),
                "i_expect": In(stream.Signature(config.expect)),
                **start_members(config),
                "o": Out(stream.Signature(config.output)),
                "freed": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.input = entry = StreamRegister(config.contribution)
        m.submodules.expects = expects = StreamFifo(config.expect, config.num_slots)
        m.submodules.adder = adder = SlotAdder(config)
        m.submodules.emitter = emitter = Emitter(config)
        m.submodules.output = output = StreamRegister(config.output)

        connect_stream(m, wiring.flipped(self.i), entry.i)
        connect_stream(m, entry.o, adder.i)
        connect_stream(m, wiring.flipped(self.i_expect), expects.i)
        connect_stream(m, expects.o, emitter.i)
        connect_stream(m, emitter.o, output.i)
        connect_stream(m, output.o, wiring.flipped(self.o))
        wiring.connect(m, emitter.count, adder.count)
        wiring.connect(m, emitter.sums, adder.sums)
        wiring.connect(m, emitter.clear, adder.clear)
        m.d.comb += emitter.counted.eq(adder.counted)
        add_start(m, self, [adder, emitter])
        m.d.sync += self.freed.eq(self.o.valid & self.o.ready & self.o.payload.token_last)
        return m
