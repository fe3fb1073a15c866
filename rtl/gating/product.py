"""Router product: logits of a token, ``logits_per_cycle`` per cycle."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.gating.layouts import logit_row_layout, row_shape, token_layout
from rtl.ram import Ram
from spec.design import Pipeline
from spec.geometry import GateGeometry, accumulate_distance, ceil_div


class RouterProduct(wiring.Component):
    """Multiply tokens with the router that was loaded.

    A token is taken in while those before are multiplied (``geometry.num_token_buffers``). ``launch``
    starts the product of a complete token as soon as ``may_launch`` is set, at most every
    ``geometry.interval`` cycles (where products overlap, whole intervals after the launch before); the
    rows come out in ``geometry.num_rows`` consecutive cycles, the last one ``LATENCY``
    after the launch. Nothing downstream may stall them: ``may_launch`` promises the room.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    i_load : In(stream.Signature(load_elements * 16))
        The router's image, ``geometry.load_beats`` beats; always ready until it is complete.
    load_start : In(1)
        Makes the block take a new image from its first beat.
    loaded : Out(1)
    may_launch : In(1)
    launch : Out(1)
    launch_last : Out(1)
        With ``launch``: the token ends its batch.
    rows : Out(logit_row_layout(logits_per_cycle))
    bias_row : In(range(num_rows)), bias : Out(logits_per_cycle * 32)
        With a selection bias: read address, and the loaded bias of that row a cycle later.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        lanes = geometry.logits_per_cycle
        members = {}
        if geometry.gating.selection_bias:
            members = {"bias_row": In(row_shape(geometry)), "bias": Out(lanes * 32)}
        super().__init__(
            {
                **members,
                "i": In(stream.Signature(token_layout(geometry.stream_lanes))),
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "may_launch": In(1),
                "launch": Out(1),
                "launch_last": Out(1),
                "rows": Out(logit_row_layout(lanes)),
            }
        )

    @property
    def registers(self) -> int:
        """Registers between a memory and the arithmetic behind it."""
        return int(self.geometry.pipeline is Pipeline.DEEP)

    @property
    def before_sum(self) -> int:
        """Cycles from issuing a row's addresses to reading its accumulators."""
        return Burst.latency_of(self.geometry.cols, self.geometry.pipeline)

    @property
    def pipeline_cycles(self) -> int:
        """Cycles from issuing a row's addresses to its sum."""
        return self.before_sum + 1 + self.registers + Accumulate.latency_of(self.geometry.pipeline)

    @property
    def latency(self) -> int:
        """Cycles from ``launch`` to the last row."""
        return self.geometry.product_cycles + self.pipeline_cycles

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        lanes, cols = geometry.logits_per_cycle, geometry.cols
        pipeline, registers = geometry.pipeline, self.registers
        assert 1 + registers + Accumulate.latency_of(pipeline) <= accumulate_distance(pipeline)

        m.submodules.tokens = tokens = TokenBuffer(geometry)
        overlapped = geometry.beat_distance > geometry.num_rows
        sequencer = (OverlappedSequencer if overlapped else ProductSequencer)(geometry)
        m.submodules.sequencer = sequencer
        m.submodules.router = router = RouterMemory(geometry)
        wiring.connect(m, wiring.flipped(self.i), tokens.i)
        wiring.connect(m, wiring.flipped(self.i_load), router.i_load)
        m.d.comb += [
            router.load_start.eq(self.load_start),
            self.loaded.eq(router.loaded),
            sequencer.may_launch.eq(self.may_launch & tokens.full & router.loaded),
            self.launch.eq(sequencer.launch),
            self.launch_last.eq(tokens.last),
            sequencer.next_buffer.eq(tokens.next_buffer),
            tokens.launch.eq(sequencer.launch),
            tokens.release.eq(sequencer.release),
            tokens.buffer.eq(sequencer.buffer),
            tokens.beat.eq(sequencer.beat),
            tokens.en.eq(sequencer.valid),
            router.word.eq(sequencer.word),
            router.en.eq(sequencer.valid),
        ]

        # Accumulators: read when the burst's sum is ready, written when it has been added. Tokens whose
        # products overlap have their own.
        sets = geometry.num_token_buffers if overlapped else 1
        m.submodules.accumulators = accumulators = Ram(
            width=32 * lanes, depth=sets * geometry.num_rows, transparent=True
        )
        before_sum = self.before_sum
        row_read = delay(m, sequencer.row, before_sum, "row_read")
        first_beat = delay(m, sequencer.beat == 0, before_sum + 1, "first_beat")
        place = sequencer.row + (sequencer.buffer * geometry.num_rows if overlapped else 0)
        place_read = delay(m, place, before_sum, "place_read") if overlapped else row_read
        m.d.comb += [
            accumulators.read_0.addr.eq(place_read),
            accumulators.read_0.en.eq(1),
        ]
        if geometry.gating.logit_bias:
            m.d.comb += router.bias_row.eq(row_read)
        if geometry.num_biases == 2:
            m.d.comb += [router.selection_row.eq(self.bias_row), self.bias.eq(router.selection_bias)]
        elif geometry.gating.selection_bias:
            m.d.comb += [router.bias_row.eq(self.bias_row), self.bias.eq(router.bias)]
        tokens_data = delay(m, tokens.data, registers, "tokens_data")
        router_data = delay(m, router.data, registers, "router_data")
        for lane in range(lanes):
            burst = m.submodules[f"burst_{lane}"] = Burst(cols, pipeline)
            accumulate = m.submodules[f"accumulate_{lane}"] = Accumulate(cols, pipeline)
            part = slice(32 * lane, 32 * lane + 32)
            initial = router.bias[part] if geometry.gating.logit_bias else 0
            before = Mux(first_beat, initial, accumulators.read_0.data[part])
            m.d.comb += [
                burst.x.eq(tokens_data),
                burst.w.eq(router_data.word_select(lane, cols * 16)),
                accumulate.acc.eq(delay(m, before, registers, f"before_{lane}")),
                accumulate.addend.eq(burst.o),
                accumulators.write.data[part].eq(accumulate.o),
                self.rows.logits[lane].eq(accumulate.o),
            ]
        cycles = self.pipeline_cycles
        valid = delay(m, sequencer.valid, cycles, "valid", control=True)
        row = delay(m, row_read, cycles - before_sum, "row_write")
        place_write = delay(m, place_read, cycles - before_sum, "place_write") if overlapped else row
        last_beat = delay(m, sequencer.beat == geometry.num_beats - 1, cycles, "last_beat")
        m.d.comb += [
            accumulators.write.addr.eq(place_write),
            accumulators.write.en.eq(valid),
            self.rows.valid.eq(valid & last_beat),
            self.rows.first.eq(row == 0),
            self.rows.last.eq(row == geometry.num_rows - 1),
        ]
        return m


class Sequencer(wiring.Component):
    """Addresses of the tokens' products, a word of the router per cycle.

    Members
    -------
    may_launch : In(1)
    launch : Out(1)
        The token's first address is that of the next cycle.
    next_buffer : In
        Where the token lies that would be launched.
    release : Out(1)
        In the cycle of a token's last address.
    valid, row, beat, word, buffer : Out
        Addresses of this cycle; ``word = beat * num_rows + row``, of the token in ``buffer``.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        buffer = range(geometry.num_token_buffers)
        super().__init__(
            {
                "may_launch": In(1),
                "launch": Out(1),
                "next_buffer": In(buffer),
                "release": Out(1),
                "valid": Out(1),
                "row": Out(row_shape(geometry)),
                "beat": Out(range(max(2, geometry.num_beats))),
                "word": Out(range(max(2, geometry.num_words))),
                "buffer": Out(buffer),
            }
        )


class ProductSequencer(Sequencer):
    """Walk over the router, one token after the other: all rows of a beat, then of the next."""

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        busy = Signal()
        # Idle cycles after the walk, where input or selection need more cycles than the product.
        rest = geometry.interval - geometry.num_words
        resting = Signal(range(rest + 1))
        last_row = Signal()
        last_word = Signal()
        free = Signal()
        # Deep: a register says that the word is the last one.
        deep, words = geometry.pipeline is Pipeline.DEEP, geometry.num_words
        m.d.comb += [
            self.valid.eq(busy),
            last_row.eq(self.row == geometry.num_rows - 1),
            *([] if deep else [last_word.eq(self.word == words - 1)]),
            self.release.eq(busy & last_word),
            free.eq(Mux(busy, last_word & (rest == 0), resting <= 1)),
            self.launch.eq(free & self.may_launch),
        ]
        with m.If(resting != 0):
            m.d.sync += resting.eq(resting - 1)
        with m.If(busy):
            if deep and words > 1:
                m.d.sync += last_word.eq(self.word == words - 2)
            m.d.sync += [self.row.eq(self.row + 1), self.word.eq(self.word + 1)]
            with m.If(last_row):
                m.d.sync += [self.row.eq(0), self.beat.eq(self.beat + 1)]
            with m.If(last_word):
                m.d.sync += [busy.eq(0), resting.eq(rest)]
        with m.If(self.launch):
            m.d.sync += [
                busy.eq(1),
                self.row.eq(0),
                self.beat.eq(0),
                self.word.eq(0),
                self.buffer.eq(self.next_buffer),
            ]
            if deep:
                m.d.sync += last_word.eq(words == 1)
        return m


class OverlappedSequencer(Sequencer):
    """Walk over a router of few rows, for several tokens at once.

    A row comes again, a beat further, ``beat_distance`` cycles later; other tokens use the cycles in
    between. While one is under way others are launched whole intervals later, in which case no two want the
    same cycle (:attr:`GateGeometry.beat_distance`); after the last one, in any cycle.
    Area: ``beat_distance`` registers of one address.
    """

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        rows, interval = geometry.num_rows, geometry.interval
        entering = Signal()
        entering_row = Signal.like(self.row)
        entering_buffer = Signal.like(self.buffer)
        next_beat = Signal.like(self.beat)
        next_word = Signal.like(self.word)
        last_beat = Signal()
        m.d.comb += [
            next_beat.eq(self.beat + 1),
            next_word.eq(self.word + rows),
            last_beat.eq(self.beat == geometry.num_beats - 1),
            self.release.eq(self.valid & last_beat & (self.row == rows - 1)),
        ]
        distance = geometry.beat_distance
        again = delay(m, self.valid & ~last_beat, distance, "again", control=True)
        row, buffer = (delay(m, signal, distance, signal.name) for signal in (self.row, self.buffer))
        beat, word = (delay(m, signal, distance, signal.name) for signal in (next_beat, next_word))
        with m.If(entering):
            m.d.comb += [
                self.row.eq(entering_row),
                self.beat.eq(0),
                self.word.eq(entering_row),
                self.buffer.eq(entering_buffer),
            ]
        with m.Else():
            m.d.comb += [
                self.row.eq(row),
                self.beat.eq(beat),
                self.word.eq(word),
                self.buffer.eq(buffer),
            ]
        m.d.comb += self.valid.eq(entering | again)

        # Cycles to the next launch whole intervals after the last one; cycles until nothing is under way.
        to_interval = Signal(range(interval))
        under_way = max(geometry.product_cycles, interval)
        to_end = Signal(range(under_way))
        m.d.comb += self.launch.eq(self.may_launch & ((to_interval == 0) | (to_end == 0)))
        m.d.sync += to_interval.eq(Mux(to_interval == 0, interval - 1, to_interval - 1))
        with m.If(to_end != 0):
            m.d.sync += to_end.eq(to_end - 1)
        with m.If(entering):
            m.d.sync += [entering_row.eq(entering_row + 1), entering.eq(entering_row != rows - 1)]
        with m.If(self.launch):
            m.d.sync += [
                to_interval.eq(interval - 1),
                to_end.eq(under_way - 1),
                entering.eq(1),
                entering_row.eq(0),
                entering_buffer.eq(self.next_buffer),
            ]
        return m


class TokenBuffer(wiring.Component):
    """Token buffers: one fills while the others are read.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    full : Out(1)
        ``next_buffer`` holds a token; ``last`` belongs to it.
    last : Out(1)
    next_buffer : Out
    launch : In(1)
        Its product begins: go on to the buffer after it.
    release : In(1)
        Free ``buffer``, after this cycle's read.
    buffer, beat, en : In
        Read address; ``data`` follows a cycle later, with elements beyond ``d_model`` zero.
    data : Out(cols * 16)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(geometry.stream_lanes))),
                "full": Out(1),
                "last": Out(1),
                "next_buffer": Out(range(geometry.num_token_buffers)),
                "launch": In(1),
                "release": In(1),
                "buffer": In(range(geometry.num_token_buffers)),
                "beat": In(range(max(2, geometry.num_beats))),
                "en": In(1),
                "data": Out(geometry.cols * 16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        pieces = ceil_div(geometry.cols, geometry.stream_lanes)
        buffers = geometry.num_token_buffers
        buffer_size = 1 << max(1, (geometry.num_beats - 1).bit_length())
        m.submodules.ram = ram = Ram(
            width=pieces * geometry.stream_lanes * 16,
            depth=buffers * buffer_size,
            granularity=geometry.stream_lanes * 16,
        )
        full = Signal(buffers)
        lasts = Signal(buffers)
        write_buffer = Signal.like(self.buffer)
        write_beat = Signal(range(buffer_size))
        piece = Signal(range(pieces))
        count = Signal(range(geometry.input_beats))
        take = Signal()
        last_beat = Signal()

        def following(buffer):
            return Mux(buffer == buffers - 1, 0, buffer + 1)

        if geometry.pipeline is Pipeline.DEEP:
            # From a register: whether the buffer that will be filled will be free.
            room = Signal(init=1)
            filled = take & last_beat

            def free(buffer):
                return ~full.bit_select(buffer, 1) | (self.release & (self.buffer == buffer))

            m.d.sync += room.eq(Mux(filled, free(following(write_buffer)), room | free(write_buffer)))
        else:
            room = ~full.bit_select(write_buffer, 1)
        m.d.comb += [
            self.i.ready.eq(room),
            take.eq(self.i.valid & self.i.ready),
            last_beat.eq(count == geometry.input_beats - 1),
            ram.write.addr.eq(write_buffer * buffer_size + write_beat),
            ram.write.data.eq(self.i.payload.data.as_value().replicate(pieces)),
            ram.write.en.eq(take << piece),
            self.full.eq(full.bit_select(self.next_buffer, 1)),
            self.last.eq(lasts.bit_select(self.next_buffer, 1)),
            ram.read_0.addr.eq(self.buffer * buffer_size + self.beat),
            ram.read_0.en.eq(self.en),
        ]
        with m.If(self.launch):
            m.d.sync += self.next_buffer.eq(following(self.next_buffer))
        with m.If(self.release):
            m.d.sync += full.bit_select(self.buffer, 1).eq(0)
        with m.If(take):
            m.d.sync += [count.eq(count + 1), piece.eq(piece + 1)]
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), write_beat.eq(write_beat + 1)]
            with m.If(last_beat):
                m.d.sync += [
                    count.eq(0),
                    piece.eq(0),
                    write_beat.eq(0),
                    write_buffer.eq(following(write_buffer)),
                    full.bit_select(write_buffer, 1).eq(1),
                    lasts.bit_select(write_buffer, 1).eq(self.i.payload.last),
                ]
        tail = geometry.d_model - (geometry.num_beats - 1) * geometry.cols
        partial = delay(m, self.beat == geometry.num_beats - 1, 1, "partial")
        m.d.comb += [
            self.data[: tail * 16].eq(ram.read_0.data[: tail * 16]),
            self.data[tail * 16 :].eq(Mux(partial, 0, ram.read_0.data[tail * 16 : geometry.cols * 16])),
        ]
        return m


class RouterMemory(wiring.Component):
    """The router and its bias, loaded once.

    Members
    -------
    i_load, load_start, loaded
        See :class:`RouterProduct`. First the router's words, then a padded word of biases per row; with
        two biases those of the logits, then those of the selection.
    word, en : In
        Read address of the router; ``data`` follows a cycle later.
    data : Out(lanes * 16)
    bias_row : In
        Read address of the bias; ``bias`` follows a cycle later.
    bias : Out(logits_per_cycle * 32)
    selection_row, selection_bias : as ``bias_row`` and ``bias``
        With two biases: that of the selection.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        members = {}
        if geometry.num_biases == 2:
            bias = Out(geometry.logits_per_cycle * 32)
            members = {"selection_row": In(row_shape(geometry)), "selection_bias": bias}
        super().__init__(
            {
                **members,
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "word": In(range(max(2, geometry.num_words))),
                "en": In(1),
                "data": Out(geometry.lanes * 16),
                "bias_row": In(row_shape(geometry)),
                "bias": Out(geometry.logits_per_cycle * 32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        beat_bits = geometry.load_elements * 16
        pieces = geometry.lanes // geometry.load_elements
        # It is loaded while no token is inside.
        apart = geometry.pipeline is Pipeline.DEEP
        m.submodules.router = router = Ram(
            width=geometry.lanes * 16, depth=geometry.num_words, granularity=beat_bits, apart=apart
        )
        complete = Signal()
        piece = Signal(range(pieces))
        address = Signal(range(max(2, geometry.num_words)))
        take = Signal()
        m.d.comb += [
            take.eq(self.i_load.valid & ~complete),
            self.i_load.ready.eq(~complete),
            self.loaded.eq(complete),
            router.write.addr.eq(address),
            router.write.data.eq(self.i_load.payload.replicate(pieces)),
            router.write.en.eq(take << piece),
            router.read_0.addr.eq(self.word),
            router.read_0.en.eq(self.en),
            self.data.eq(router.read_0.data),
        ]
        if geometry.has_bias:
            m.submodules.bias_memory = bias = BiasMemory(geometry)
            m.d.comb += [
                bias.i_load.payload.eq(self.i_load.payload),
                bias.i_load.valid.eq(self.i_load.valid & complete),
                self.i_load.ready.eq(~complete | bias.i_load.ready),
                bias.load_start.eq(self.load_start),
                self.loaded.eq(complete & bias.loaded),
                bias.row.eq(self.bias_row),
                self.bias.eq(bias.data),
            ]
        if geometry.num_biases == 2:
            m.submodules.second_bias = second = BiasMemory(geometry)
            m.d.comb += [
                second.i_load.payload.eq(self.i_load.payload),
                second.i_load.valid.eq(self.i_load.valid & complete & bias.loaded),
                self.i_load.ready.eq(~complete | bias.i_load.ready | second.i_load.ready),
                second.load_start.eq(self.load_start),
                self.loaded.eq(complete & bias.loaded & second.loaded),
                second.row.eq(self.selection_row),
                self.selection_bias.eq(second.data),
            ]
        with m.If(self.load_start):
            m.d.sync += [complete.eq(0), piece.eq(0), address.eq(0)]
        with m.Elif(take):
            m.d.sync += piece.eq(piece + 1)
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), address.eq(address + 1)]
                with m.If(address == geometry.num_words - 1):
                    m.d.sync += complete.eq(1)
        return m


class BiasMemory(wiring.Component):
    """A bias per expert, loaded once: a padded word for each row.

    Members
    -------
    i_load : In(stream.Signature(load_elements * 16))
        Ready until the last word is there.
    load_start : In(1), loaded : Out(1)
        Take new words from the first one on; all are there.
    row : In
        Read address; ``data`` follows a cycle later.
    data : Out(logits_per_cycle * 32)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "row": In(row_shape(geometry)),
                "data": Out(geometry.logits_per_cycle * 32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        beat_bits = geometry.load_elements * 16
        pieces = geometry.bias_row_beats
        m.submodules.words = words = Ram(
            width=pieces * beat_bits, depth=geometry.num_rows, granularity=beat_bits
        )
        piece = Signal(range(pieces))
        address = Signal(row_shape(geometry))
        take = Signal()
        m.d.comb += [
            self.i_load.ready.eq(~self.loaded),
            take.eq(self.i_load.valid & self.i_load.ready),
            words.write.addr.eq(address),
            words.write.data.eq(self.i_load.payload.replicate(pieces)),
            words.write.en.eq(take << piece),
            words.read_0.addr.eq(self.row),
            words.read_0.en.eq(1),
            self.data.eq(words.read_0.data),
        ]
        with m.If(self.load_start):
            m.d.sync += [self.loaded.eq(0), piece.eq(0), address.eq(0)]
        with m.Elif(take):
            m.d.sync += piece.eq(piece + 1)
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), address.eq(address + 1)]
                with m.If(address == geometry.num_rows - 1):
                    m.d.sync += self.loaded.eq(1)
        return m
