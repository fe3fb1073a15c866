"""Combiner for several units: contributions in any order in, per token their sum in the order of ranks out.

Contributions of several units to one token come in an order that time decides. Here each word is stored
where its slot, its rank and its number say; when all that ``i_expect`` announced are in, the token's
contributions are added from rank 0 on. So the result does not depend on which unit was faster, on
placement or policy: it is the sum in the order of the experts (the shared one, then ascending index).

::

    i --> register --write--> words [word][rank][slot], weights [rank][slot]
              |                       | read, 4 words of a rank, then of the next
              +--> received [slot]    v
                      |          product --> sum --(after the last rank)--> bf16 --> queue --> o, freed
    i_expect --> queue +--> reader ----^       ^------+

References: :func:`golden.combine_bf16.combine_bf16` (what), :mod:`sim.combine_ordered` (when).
"""

from dataclasses import dataclass

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import BF16, F32, Accumulate, Burst, bf16_from_f32, delay
from rtl.combine import CombineConfig, ContributionCounts, OldestToken
from rtl.combine_start import add_start, start_members, start_read
from rtl.expert.layouts import contribution_layout
from rtl.fifo import StreamFifo
from rtl.ram import Ram
from rtl.stream import StreamRegister, connect_stream
from spec.geometry import ACCUMULATE_DISTANCE, ceil_div


@dataclass(frozen=True, kw_only=True)
class OrderedConfig(CombineConfig):
    """Size of a combiner that adds in the order of ranks, which are below ``max_count``."""

    @property
    def depth(self) -> int:
        """Rows of the store."""
        return self.num_slots * self.max_count * self.words

    @property
    def groups(self) -> int:
        """Groups of words that are added up together."""
        return ceil_div(self.words, ACCUMULATE_DISTANCE)

    @property
    def contribution(self) -> data.StructLayout:
        """Payload of ``i``."""
        return contribution_layout(self.num_slots, self.words, self.lanes, self.max_count)

    @property
    def place(self) -> data.StructLayout:
        """A word of a contribution."""
        return data.StructLayout(
            {"slot": range(self.num_slots), "rank": range(self.max_count), "word": range(self.words)}
        )

    @property
    def step(self) -> wiring.Signature:
        """A word that is read: of which rank of the token, and what it is the last of."""
        return wiring.Signature(
            {
                "valid": Out(1),
                "place": Out(self.place),
                "first": Out(1),
                "final": Out(1),
                "empty": Out(1),
                "token_last": Out(1),
                "last": Out(1),
            }
        )

    @property
    def stored_read(self) -> wiring.Signature:
        """Read a word and its contribution's weight: there one cycle later."""
        return wiring.Signature(
            {
                "en": Out(1),
                "place": Out(self.place),
                "data": In(data.ArrayLayout(16, self.lanes)),
                "weight": In(16),
            }
        )


class ContributionStore(wiring.Component):
    """Keep each contribution's words and weight at its slot and rank; count whole contributions.

    One beat per cycle; ``i`` is always ready. A contribution is counted 2 cycles after its last beat.
    After reset no slot has any; the RAMs are not reset.
    Area: RAM bits ``16 * lanes * depth`` for words and ``16 * num_slots * max_count`` for weights.

    Members
    -------
    i : In(stream.Signature(contribution))
    read : In, a word and its weight.
    clear, counted, count : as in :class:`rtl.combine.ContributionCounts`.
    """

    def __init__(self, config: OrderedConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.contribution)),
                "read": In(config.stored_read),
                "clear": In(config.clear),
                "counted": Out(config.num_slots),
                "count": In(config.count_read),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        beat = self.i.payload
        m.submodules.words = words = Ram(width=16 * config.lanes, depth=config.depth)
        m.submodules.weights = weights = Ram(width=16, depth=config.num_slots * config.max_count)
        m.submodules.counts = counts = ContributionCounts(config)
        wiring.connect(m, wiring.flipped(self.clear), counts.clear)
        wiring.connect(m, wiring.flipped(self.count), counts.count)
        m.d.comb += [
            self.i.ready.eq(1),
            words.write.en.eq(self.i.valid),
            words.write.addr.eq(self._row(beat.slot, beat.rank, beat.word)),
            words.write.data.eq(beat.data),
            weights.write.en.eq(self.i.valid & beat.last),
            weights.write.addr.eq(Cat(beat.slot, beat.rank)),
            weights.write.data.eq(beat.weight),
            counts.slot.eq(beat.slot),
            counts.last.eq(self.i.valid & beat.last),
            self.counted.eq(counts.counted),
            words.read_0.en.eq(self.read.en),
            words.read_0.addr.eq(self._row(self.read.place.slot, self.read.place.rank, self.read.place.word)),
            self.read.data.eq(words.read_0.data),
            weights.read_0.en.eq(self.read.en),
            weights.read_0.addr.eq(Cat(self.read.place.slot, self.read.place.rank)),
            self.read.weight.eq(weights.read_0.data),
        ]
        return m

    def _row(self, slot, rank, word):
        """Return the row of a word; neither words nor ranks need be powers of two."""
        return Cat(slot, word * self.config.max_count + rank)


class RankReader(wiring.Component):
    """Read a complete token's words: groups of words, of each group rank after rank.

    A group takes ``ACCUMULATE_DISTANCE`` cycles for each rank, whatever its words, so that a sum is back
    when the next rank needs it; a token without contributions takes as long as one with one. A group
    begins when there is room for all of its results, and then does not stop. Groups and complete tokens
    follow each other without a gap. After reset nothing is held and there is room for all.

    Members
    -------
    i : In(stream.Signature(expect))
    counted, count, clear : state of :class:`ContributionStore`; a slot is cleared with its last word.
    o : Out, a word is read in this cycle.
    taken : In(1), a result has left.
    """

    def __init__(self, config: OrderedConfig, room: int) -> None:
        self.config = config
        self.room = room
        super().__init__(
            {
                "i": In(stream.Signature(config.expect)),
                "counted": In(config.num_slots),
                "count": Out(config.count_read),
                "clear": Out(config.clear),
                "o": Out(config.step),
                "taken": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.oldest = oldest = OldestToken(config)
        connect_stream(m, wiring.flipped(self.i), oldest.i)
        wiring.connect(m, oldest.count, wiring.flipped(self.count))
        token = oldest.token

        group = Signal(range(config.groups))
        rank = Signal(range(config.max_count))
        place = Signal(range(ACCUMULATE_DISTANCE))  # in the group
        owed = Signal(range(self.room + 1))  # results on their way
        begins = Signal()
        step = Signal()
        last_place = Signal()
        last_rank = Signal()
        last_group = Signal()
        word = Signal(range(config.groups * ACCUMULATE_DISTANCE))
        m.d.comb += [
            oldest.counted.eq(self.counted),
            begins.eq((rank == 0) & (place == 0)),
            step.eq(oldest.valid & oldest.complete & (~begins | (owed <= self.room - ACCUMULATE_DISTANCE))),
            last_place.eq(place == ACCUMULATE_DISTANCE - 1),
            last_rank.eq(rank + 1 >= token.count),
            last_group.eq(group == config.groups - 1),
            word.eq(group * ACCUMULATE_DISTANCE + place),
            oldest.leave.eq(step & last_place & last_rank & last_group),
            self.clear.valid.eq(oldest.leave),
            self.clear.slot.eq(token.slot),
            self.o.valid.eq(step & (word < config.words)),
            self.o.place.slot.eq(token.slot),
            self.o.place.rank.eq(rank),
            self.o.place.word.eq(word),
            self.o.first.eq(rank == 0),
            self.o.final.eq(last_rank),
            self.o.empty.eq(oldest.empty),
            self.o.token_last.eq(word == config.words - 1),
            self.o.last.eq(self.o.token_last & token.last_token),
        ]
        with m.If(step):
            m.d.sync += place.eq(place + 1)
            with m.If(last_place):
                m.d.sync += rank.eq(Mux(last_rank, 0, rank + 1))
                with m.If(last_rank):
                    m.d.sync += group.eq(Mux(last_group, 0, group + 1))
        m.d.sync += owed.eq(owed + (self.o.valid & self.o.final) - self.taken)
        return m


class OrderedCombine(wiring.Component):
    """Sum each token's weighted contributions in the order of their ranks; give tokens out in order.

    ::

        i.payload.slot        0   1   0   0   1   0      two words a token, two units
        i.payload.rank        1   0   0   1   0   0
        i.payload.word        0   0   0   1   1   1
        i.payload.last        0   0   0   1   1   1
        i_expect.payload      {slot 0, count 2}, {slot 1, count 1}
        o.payload.token_last  0   1   0   1              (slot 0, then slot 1)
        o.payload.last        0   0   0   1              where i_expect had last_token

    Arithmetic, per lane: ``acc' = RNE(acc + weight * data)`` in fp32, from +0, rank after rank; the result
    is rounded to bf16. A token with count 0 leaves as zeros.

    Latency: LATENCY cycles from the last beat of a token's last contribution to its first beat at ``o``,
    EXPECT_LATENCY from its ``i_expect`` beat, where that comes late; ``ACCUMULATE_DISTANCE`` more for
    every contribution beyond the first. One beat in per cycle, always. Out: a group of
    ``ACCUMULATE_DISTANCE`` words takes as many cycles for each contribution, so that the sums keep pace with
    one beat of contributions per cycle where the words are a multiple of the distance. All outputs are
    registers, but for ``i_expect.ready``, a comparison of counters. After reset nothing is held and token
    0 is expected in slot 0. Area: beside the stores per lane one 8x8 multiplier and one fp32 adder, and a
    queue of ``ROOM`` results.

    What the environment owes: slots are announced in token order; a contribution's ``last`` beat comes
    after its others; a token's ranks are 0..count-1, each once; a slot is used again, in either stream,
    only after ``freed`` has come for it. Beats may otherwise interleave in any way.

    Members
    -------
    i : In(stream.Signature(config.contribution)): slot, rank, word, weight, data, last; always ready.
    i_expect : In(stream.Signature(config.expect)): slot, count, last_token. May come before, with or
        after the contributions; before them where it has ``identity``.
    i_token, i_load, load_start, loaded : as in :class:`rtl.combine.Combine`, with identity experts or a bias.
    o : Out(stream.Signature(config.output)): data, token_last (last beat of a token), last (last beat
        of the last token of a batch). Lanes beyond ``d_model`` carry the sum of what came in them.
    freed : Out(1), one cycle after a token's last beat was taken; slots are freed in token order.
    """

    ROOM = 16
    _OUT = Ram.LATENCY + Burst.LATENCY + Accumulate.LATENCY + StreamFifo.LATENCY
    LATENCY = StreamRegister.LATENCY + 2 * Ram.LATENCY + _OUT
    EXPECT_LATENCY = StreamFifo.LATENCY + 1 + _OUT

    def __init__(self, config: OrderedConfig) -> None:
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
        m.submodules.store = store = ContributionStore(config)
        m.submodules.reader = reader = RankReader(config, self.ROOM)
        m.submodules.results = results = StreamFifo(config.output, self.ROOM)

        connect_stream(m, wiring.flipped(self.i), entry.i)
        connect_stream(m, entry.o, store.i)
        connect_stream(m, wiring.flipped(self.i_expect), expects.i)
        connect_stream(m, expects.o, reader.i)
        connect_stream(m, results.o, wiring.flipped(self.o))
        wiring.connect(m, reader.count, store.count)
        wiring.connect(m, reader.clear, store.clear)
        m.d.comb += [
            reader.counted.eq(store.counted),
            store.read.en.eq(reader.o.valid),
            store.read.place.eq(reader.o.place),
            reader.taken.eq(self.o.valid & self.o.ready),
        ]
        m.d.sync += self.freed.eq(reader.taken & self.o.payload.token_last)
        self._add(m, reader.o, store.read, results.i)
        return m

    def _add(self, m, step, read, results):
        """Multiply what was read, add it to the rank before, give the sums of the last rank on."""
        read_to_sum = Ram.LATENCY + Burst.LATENCY
        read_to_result = read_to_sum + Accumulate.LATENCY
        first = delay(m, step.first, read_to_sum, "first")
        starts, of_none = self._starts(m, step, read_to_sum)
        empty = delay(m, step.empty, read_to_result, "empty")
        m.d.comb += [
            results.valid.eq(delay(m, step.valid & step.final, read_to_result, "result", control=True)),
            results.payload.token_last.eq(delay(m, step.token_last, read_to_result, "token_last")),
            results.payload.last.eq(delay(m, step.last, read_to_result, "last")),
        ]
        for lane in range(self.config.lanes):
            m.submodules[f"product_{lane}"] = product = Burst(1)
            m.submodules[f"sum_{lane}"] = total = Accumulate(1)
            before = delay(m, total.o, ACCUMULATE_DISTANCE - Accumulate.LATENCY, f"before_{lane}")
            m.d.comb += [
                product.x[0].eq(data.View(BF16, read.data[lane])),
                product.w[0].eq(data.View(BF16, read.weight)),
                total.acc.eq(Mux(first, starts[lane], before.as_value())),
                total.addend.eq(product.o),
                results.payload.data[lane].eq(
                    Mux(empty, of_none[lane], bf16_from_f32(data.View(F32, total.o)))
                ),
            ]

    def _starts(self, m, step, read_to_sum):
        """Return what each lane's sum starts from, and the result of a token without contributions."""
        if not self.config.starts:
            return [0] * self.config.lanes, [0] * self.config.lanes
        reader = wiring.Signature({"start": Out(start_read(self.config))}).create()
        add_start(m, self, [reader])
        m.d.comb += [
            reader.start.en.eq(step.valid),
            reader.start.slot.eq(step.place.slot),
            reader.start.word.eq(step.place.word),
        ]
        values = [value.as_value() for value in reader.start.data]
        starts = [delay(m, value, read_to_sum - Ram.LATENCY, f"start_{n}") for n, value in enumerate(values)]
        late = [delay(m, value, Accumulate.LATENCY, f"start_late_{n}") for n, value in enumerate(starts)]
        return starts, [bf16_from_f32(data.View(F32, value)) for value in late]
