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

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import BF16, F32, Accumulate, Burst, bf16_from_f32, delay
from rtl.combine_gaps import SpacedBeats
from rtl.combine_start import add_start, start_members, start_read
from rtl.dispatch import expect_layout
from rtl.expert.layouts import contribution_layout
from rtl.fifo import StreamFifo
from rtl.ram import Ram, ReadSignature
from rtl.stream import StreamRegister, connect_stream
from spec.design import Pipeline
from spec.errors import require, require_range
from spec.geometry import ceil_div


@dataclass(frozen=True)
class AdderStages:
    """When the adder does what, in cycles after a beat was taken."""

    pipeline: Pipeline

    @property
    def deep(self) -> bool:
        """Whether two registers lie between RAM and sum, and no row is read while it is written.

        A block RAM of an ECP5 takes 5.8 ns: before the first register there is nothing but a wire.
        """
        return self.pipeline is Pipeline.DEEP

    @property
    def product(self) -> int:
        """The product is there."""
        return Burst.latency_of(1, self.pipeline)

    @property
    def read_at(self) -> int:
        """The sum is read."""
        return self.product - Ram.LATENCY - 2 * self.deep

    @property
    def write_at(self) -> int:
        """The new sum is written."""
        return self.product + Accumulate.latency_of(self.pipeline)

    @property
    def distance(self) -> int:
        """The next beat for the same sum may be taken."""
        return self.write_at - self.read_at + self.deep


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
    deep : its pipelines are deep (:class:`spec.design.Pipeline`): sums go from block RAM into a register
        before anything is done with them, a token is known to be complete before its sums are read, they are
        rounded in a stage of their own.
    """

    num_slots: int
    d_model: int
    lanes: int
    max_count: int
    stream_lanes: int = 0
    bias_bits: int = 0
    deep: bool = False

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
    def pipeline(self) -> Pipeline:
        """How its arithmetic is cut."""
        return Pipeline.DEEP if self.deep else Pipeline.SHORT

    @property
    def stages(self) -> AdderStages:
        """When the adder does what."""
        return AdderStages(self.pipeline)

    @property
    def spaced(self) -> bool:
        """Whether, if deep, beats wait in a place of their own for the sums of those before them.

        Contributions to one slot do not interleave: with more words the sums are always back.
        """
        return self.deep and self.words < self.stages.distance

    @property
    def latency(self) -> int:
        """Cycles from the last beat of a token's last contribution to its first beat at ``o``."""
        if not self.deep:
            return Combine.LATENCY
        spaces = SpacedBeats.LATENCY * self.spaced
        return StreamRegister.LATENCY + spaces + self.stages.write_at + 1 + Emitter.SEND_CYCLES

    @property
    def expect_latency(self) -> int:
        """Cycles from a token's announcement to its first beat at ``o``."""
        if not self.deep:
            return Combine.EXPECT_LATENCY
        return StreamFifo.LATENCY + OldestToken.CHECK_CYCLES + Emitter.SEND_CYCLES

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
    ``distance - 1`` cycles took a beat for the same accumulators. One beat per cycle.
    ``write_at`` cycles after a beat was taken its sums are written (and seen by a read in that
    cycle; if deep, in the next one); the count is seen one cycle after a read in the cycle before that
    (if deep, two before). After reset no slot holds anything; the RAMs are not reset. If deep, ``i`` is
    always ready: :class:`rtl.combine_gaps.SpacedBeats` stands before it where there is anything to wait for.
    The times are those of :class:`AdderStages`.

    Area: per lane one 8x8 multiplier and one fp32 adder; RAM bits ``32 * lanes * depth``, twice.

    Members
    -------
    i : In(stream.Signature(contribution))
    clear : In, forget a slot; its accumulators start from +0 again.
    counted, count : Out and In, as in :class:`ContributionCounts`.
    sums : In(ReadSignature), the accumulators; row ``Cat(slot, word)``.
    start : Out, where sums do not start from +0: what they start from.
    """

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
        stages = config.stages
        slot = self.i.payload.slot
        row = Cat(slot, self.i.payload.word)

        # Where each beat of the pipeline is going: [n] was taken n cycles ago.
        accept = Signal()
        hazard = Signal()
        valids, rows = [accept], [row]
        for n in range(1, stages.write_at + 1):
            valids.append(delay(m, valids[-1], 1, f"valid_{n}", control=True))
            rows.append(delay(m, rows[-1], 1, f"row_{n}"))
        if not config.deep:
            m.d.comb += hazard.eq(Cat(valids[n] & (rows[n] == row) for n in range(1, stages.distance)).any())
        m.d.comb += [
            self.i.ready.eq(~hazard),
            accept.eq(self.i.valid & self.i.ready),
        ]

        # Counted in the cycle before its last sums are written, or two. The first one replaces what the RAM
        # holds; if deep, a cycle passes before a beat's slot is looked at.
        late = int(config.deep)
        count_at = stages.write_at - 2 - late
        m.submodules.counts = counts = ContributionCounts(config, count_at - late)
        wiring.connect(m, wiring.flipped(self.clear), counts.clear)
        wiring.connect(m, wiring.flipped(self.count), counts.count)
        m.d.comb += [
            counts.slot.eq(rows[late][: len(slot)]),
            counts.last.eq(delay(m, accept & self.i.payload.last, late, "last", control=True)),
            self.counted.eq(counts.counted),
        ]
        self._add(m, counts.first, valids, rows)
        return m

    def _add(self, m, first, valids, rows):
        config = self.config
        stages, cut = config.stages, int(config.deep)
        m.submodules.sums = ram = Ram(
            width=32 * config.lanes,
            depth=config.depth,
            num_read_ports=2,
            transparent=not config.deep,
            apart=config.deep,
        )
        wiring.connect(m, wiring.flipped(self.sums), ram.read_1)
        first_now = delay(m, first, stages.product - 2 * cut, "first")
        old = data.View(config.sums, delay(m, ram.read_0.data, cut, "sums_read"))
        new = Signal(config.sums)
        m.d.comb += [
            ram.read_0.en.eq(valids[stages.read_at]),
            ram.read_0.addr.eq(rows[stages.read_at]),
            ram.write.en.eq(valids[stages.write_at]),
            ram.write.addr.eq(rows[stages.write_at]),
            ram.write.data.eq(new),
        ]
        starts = [0] * config.lanes
        if config.starts:
            # There with the sums, a register behind the product included.
            read_at = stages.product - 2 - cut
            m.d.comb += [
                self.start.en.eq(valids[read_at]),
                self.start.slot.eq(rows[read_at][: len(self.start.slot)]),
                self.start.word.eq(rows[read_at][len(self.start.slot) :]),
            ]
            starts = [delay(m, value.as_value(), 1, f"start_{n}") for n, value in enumerate(self.start.data)]
        for lane in range(config.lanes):
            m.submodules[f"product_{lane}"] = product = Burst(1, config.pipeline)
            m.submodules[f"sum_{lane}"] = total = Accumulate(1, config.pipeline)
            before = Mux(first_now, starts[lane], old[lane].as_value())
            m.d.comb += [
                product.x[0].eq(data.View(BF16, self.i.payload.data[lane])),
                product.w[0].eq(data.View(BF16, self.i.payload.weight)),
                total.acc.eq(delay(m, before, cut, f"before_{lane}")),
                total.addend.eq(product.o),
                new[lane].eq(total.o),
            ]


class OldestToken(wiring.Component):
    """Hold the oldest announced token; say when all its contributions are in.

    The next token's count is read while this one leaves, so that complete tokens follow each other
    without a gap. If deep, a token waits in a place of its own until it is complete: complete tokens follow
    each other CHECK_CYCLES cycles apart at least. After reset nothing is held.

    Members
    -------
    i : In(stream.Signature(expect))
    counted, count : In and Out, state of :class:`ContributionCounts`.
    valid : Out(1), token : Out(expect), empty : Out(1): the token, and that it waits for nothing.
    complete : Out(1), with ``valid``: all that it waits for is there.
    leave : In(1), the token goes, in the next cycle the next one is there.
    """

    CHECK_CYCLES = 4

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
        if self.config.deep:
            self._check(m)
            return m
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

    def _check(self, m):
        """Hold the next token until it is complete: where it waits, its count is read in every cycle."""
        waiting = Signal()
        fresh = Signal()
        next_token = Signal.like(self.token)
        received = Signal()
        known = Signal()
        moves = Signal()
        m.d.comb += [
            self.count.en.eq(1),
            self.count.addr.eq(next_token.slot),
            # Of the token that was there in the cycle before.
            received.eq(
                (next_token.count == 0)
                | (self.counted.bit_select(next_token.slot, 1) & (self.count.data == next_token.count))
            ),
            moves.eq(known & (~self.valid | self.leave)),
            self.i.ready.eq(~waiting),
            self.complete.eq(self.valid),
        ]
        m.d.sync += [fresh.eq(~waiting), known.eq(waiting & ~fresh & ~moves & received)]
        with m.If(~waiting):
            m.d.sync += [waiting.eq(self.i.valid), next_token.eq(self.i.payload)]
        with m.If(moves | self.leave):
            m.d.sync += self.valid.eq(moves)
        with m.If(moves):
            m.d.sync += [waiting.eq(0), self.token.eq(next_token), self.empty.eq(next_token.count == 0)]


class Emitter(wiring.Component):
    """Wait until a token's contributions are in; read its sums, round them to bf16, give them out.

    Latency 2 cycles from ``i`` to ``o``, one beat per cycle, complete tokens without a gap; if deep 8 cycles,
    and tokens of fewer than ``OldestToken.CHECK_CYCLES`` words leave that far apart. After reset nothing is
    held.

    Members
    -------
    i : In(stream.Signature(expect))
    counted, count, sums, clear : In and Out, state of :class:`SlotAdder`; a slot is cleared with the
        read of its last word.
    start : Out, as in :class:`SlotAdder`, for a token without contributions.
    o : Out(stream.Signature(output))
    """

    # From the read of a word to ``Combine.o``, if deep: RAM, two registers, rounding, the output register.
    SEND_CYCLES = Ram.LATENCY + 3 + StreamRegister.LATENCY

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
        # If deep, a register; the first word is the last one where there is one alone.
        last_word = Signal(init=config.deep and config.words == 1)
        room = Signal()
        m.d.comb += [
            oldest.counted.eq(self.counted),
            read.eq(oldest.valid & oldest.complete & room),
            *([] if config.deep else [last_word.eq(word == config.words - 1)]),
            oldest.leave.eq(read & last_word),
        ]
        clear = [self.clear.valid.eq(read & last_word), self.clear.slot.eq(token.slot)]
        if config.deep:
            m.d.sync += clear
        else:
            m.d.comb += clear
        with m.If(read):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
            if config.deep and config.words > 1:
                m.d.sync += last_word.eq(word == config.words - 2)

        # The word at the read port of the sums.
        word_empty = Signal()
        sums = data.View(config.sums, self.sums.data)
        m.d.comb += [
            self.sums.en.eq(read),
            self.sums.addr.eq(Cat(token.slot, word)),
        ]
        if config.starts:
            m.d.comb += [self.start.en.eq(read), self.start.slot.eq(token.slot), self.start.word.eq(word)]
        if config.deep:
            tags = Cat(last_word, oldest.leave & token.last_token)
            self._send_rounded(m, read=read, room=room, empty=oldest.empty, tags=tags)
            return m
        m.d.comb += room.eq(~self.o.valid | self.o.ready)
        empty = [0] * config.lanes
        if config.starts:
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

    def _send_rounded(self, m, *, read, room, empty, tags):
        """Give words on through four places, each of which goes on if there is room in the next one.

        The read port of the sums, a register with nothing but a wire before it, what is sent, its bf16.
        """
        config = self.config
        valids = [Signal(name=f"s{n}_valid") for n in range(3)]
        rooms = [Signal(name=f"s{n}_room") for n in range(3)]
        kept_tags = [Signal.like(tags, name=f"s{n}_tags", reset_less=True) for n in range(3)]
        s0_empty = Signal(reset_less=True)
        s1_empty = Signal(reset_less=True)
        s1_sums = Signal(32 * config.lanes, reset_less=True)
        s2_sums = Signal(config.sums, reset_less=True)
        s1_start = Const(0, 32 * config.lanes)
        if config.starts:
            s1_start = Signal(32 * config.lanes, reset_less=True)
        m.d.comb += [
            rooms[2].eq(~self.o.valid | self.o.ready),
            rooms[1].eq(~valids[2] | rooms[2]),
            rooms[0].eq(~valids[1] | rooms[1]),
            room.eq(~valids[0] | rooms[0]),
        ]
        with m.If(room):
            m.d.sync += [valids[0].eq(read), kept_tags[0].eq(tags), s0_empty.eq(empty)]
        with m.If(rooms[0]):
            m.d.sync += [valids[1].eq(valids[0]), kept_tags[1].eq(kept_tags[0]), s1_empty.eq(s0_empty)]
            m.d.sync += s1_sums.eq(self.sums.data)
            if config.starts:
                m.d.sync += s1_start.eq(Cat(*self.start.data))
        with m.If(rooms[1]):
            m.d.sync += [valids[2].eq(valids[1]), kept_tags[2].eq(kept_tags[1])]
            m.d.sync += s2_sums.eq(Mux(s1_empty, s1_start, s1_sums))
        with m.If(rooms[2]):
            m.d.sync += [
                self.o.valid.eq(valids[2]),
                self.o.payload.eq(Cat(*(bf16_from_f32(total) for total in s2_sums), kept_tags[2])),
            ]


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

    Latency: ``config.latency`` cycles (LATENCY, if not deep) from the last beat of a token's last
    contribution to its first beat at ``o``; ``config.expect_latency`` (EXPECT_LATENCY) from its ``i_expect``
    beat, where that comes late. One beat in and one out per cycle, at the same time, without a gap between
    complete tokens (if deep: those of ``OldestToken.CHECK_CYCLES`` words and more). A beat waits while one
    for the same slot and word was taken less than ``AdderStages.distance`` cycles before (4 =
    ``ACCUMULATE_DISTANCE``; deep 11): contributions to one slot directly behind each other take that many
    cycles each where a token has fewer words.
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

    LATENCY = (
        StreamRegister.LATENCY + Burst.LATENCY + Accumulate.LATENCY + Ram.LATENCY + StreamRegister.LATENCY
    )
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
        beats = entry.o
        if config.spaced:
            m.submodules.spaced = spaced = SpacedBeats(config.contribution, config.stages.distance)
            connect_stream(m, beats, spaced.i)
            beats = spaced.o
        connect_stream(m, beats, adder.i)
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
