"""Router product: logits of a token, ``logits_per_cycle`` per cycle."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.gating.layouts import logit_row_layout, token_layout
from rtl.ram import Ram
from spec.geometry import ACCUMULATE_DISTANCE, GateGeometry


class RouterProduct(wiring.Component):
    """Multiply tokens with the router that was loaded.

    A token is taken in while the one before is multiplied (two token buffers). ``launch`` starts the
    product of a complete token as soon as ``may_launch`` is set, at most every ``geometry.interval``
    cycles; the rows come out in ``geometry.num_rows`` consecutive cycles, the last one ``LATENCY``
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
            members = {"bias_row": In(range(geometry.num_rows)), "bias": Out(lanes * 32)}
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

    PIPELINE = 1 + Burst.LATENCY + Accumulate.LATENCY
    """Cycles from issuing a row's addresses to its sum."""

    @property
    def latency(self) -> int:
        """Cycles from ``launch`` to the last row."""
        return self.geometry.product_cycles + self.PIPELINE

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        lanes, cols = geometry.logits_per_cycle, geometry.cols
        assert 1 + Accumulate.LATENCY <= ACCUMULATE_DISTANCE

        m.submodules.tokens = tokens = TokenBuffer(geometry)
        m.submodules.sequencer = sequencer = ProductSequencer(geometry)
        m.submodules.router = router = RouterMemory(geometry)
        wiring.connect(m, wiring.flipped(self.i), tokens.i)
        wiring.connect(m, wiring.flipped(self.i_load), router.i_load)
        m.d.comb += [
            router.load_start.eq(self.load_start),
            self.loaded.eq(router.loaded),
            sequencer.may_launch.eq(self.may_launch & tokens.full & router.loaded),
            self.launch.eq(sequencer.launch),
            self.launch_last.eq(tokens.last),
            tokens.launch.eq(sequencer.launch),
            tokens.release.eq(sequencer.release),
            tokens.beat.eq(sequencer.beat),
            tokens.en.eq(sequencer.valid),
            router.word.eq(sequencer.word),
            router.en.eq(sequencer.valid),
        ]

        # Accumulators: read when the burst's sum is ready, written when it has been added.
        m.submodules.accumulators = accumulators = Ram(
            width=32 * lanes, depth=geometry.num_rows, transparent=True
        )
        before_sum = Burst.LATENCY
        row_read = delay(m, sequencer.row, before_sum, "row_read")
        first_beat = delay(m, sequencer.beat == 0, before_sum + 1, "first_beat")
        m.d.comb += [
            accumulators.read_0.addr.eq(row_read),
            accumulators.read_0.en.eq(1),
        ]
        if geometry.gating.logit_bias:
            m.d.comb += router.bias_row.eq(row_read)
        if geometry.gating.selection_bias:
            m.d.comb += [router.bias_row.eq(self.bias_row), self.bias.eq(router.bias)]
        for lane in range(lanes):
            burst = m.submodules[f"burst_{lane}"] = Burst(cols)
            accumulate = m.submodules[f"accumulate_{lane}"] = Accumulate(cols)
            part = slice(32 * lane, 32 * lane + 32)
            initial = router.bias[part] if geometry.gating.logit_bias else 0
            m.d.comb += [
                burst.x.eq(tokens.data),
                burst.w.eq(router.data.word_select(lane, cols * 16)),
                accumulate.acc.eq(Mux(first_beat, initial, accumulators.read_0.data[part])),
                accumulate.addend.eq(burst.o),
                accumulators.write.data[part].eq(accumulate.o),
                self.rows.logits[lane].eq(accumulate.o),
            ]
        valid = delay(m, sequencer.valid, self.PIPELINE, "valid", control=True)
        row = delay(m, row_read, self.PIPELINE - before_sum, "row_write")
        last_beat = delay(m, sequencer.beat == geometry.num_beats - 1, self.PIPELINE, "last_beat")
        m.d.comb += [
            accumulators.write.addr.eq(row),
            accumulators.write.en.eq(valid),
            self.rows.valid.eq(valid & last_beat),
            self.rows.first.eq(row == 0),
            self.rows.last.eq(row == geometry.num_rows - 1),
        ]
        return m


class ProductSequencer(wiring.Component):
    """Walk over the router: all rows of a beat, then of the next; at most every ``interval`` cycles.

    Members
    -------
    may_launch : In(1)
    launch : Out(1)
        The walk begins in the next cycle.
    release : Out(1)
        In the last cycle of the walk.
    valid, row, beat, word : Out
        Addresses of this cycle; ``word = beat * num_rows + row``.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "may_launch": In(1),
                "launch": Out(1),
                "release": Out(1),
                "valid": Out(1),
                "row": Out(range(geometry.num_rows)),
                "beat": Out(range(max(2, geometry.num_beats))),
                "word": Out(range(geometry.product_cycles)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        busy = Signal()
        # Idle cycles after the walk, where the selection needs more cycles than the product.
        rest = geometry.interval - geometry.product_cycles
        resting = Signal(range(rest + 1))
        last_row = Signal()
        last_word = Signal()
        free = Signal()
        m.d.comb += [
            self.valid.eq(busy),
            last_row.eq(self.row == geometry.num_rows - 1),
            last_word.eq(self.word == geometry.product_cycles - 1),
            self.release.eq(busy & last_word),
            free.eq(Mux(busy, last_word & (rest == 0), resting <= 1)),
            self.launch.eq(free & self.may_launch),
        ]
        with m.If(resting != 0):
            m.d.sync += resting.eq(resting - 1)
        with m.If(busy):
            m.d.sync += [self.row.eq(self.row + 1), self.word.eq(self.word + 1)]
            with m.If(last_row):
                m.d.sync += [self.row.eq(0), self.beat.eq(self.beat + 1)]
            with m.If(last_word):
                m.d.sync += [busy.eq(0), resting.eq(rest)]
        with m.If(self.launch):
            m.d.sync += [busy.eq(1), self.row.eq(0), self.beat.eq(0), self.word.eq(0)]
        return m


class TokenBuffer(wiring.Component):
    """Two token buffers: one fills while the other is read.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    full : Out(1)
        The buffer to be read next holds a token; ``last`` belongs to it.
    last : Out(1)
    launch : In(1)
        From the next cycle on, that buffer is the one being read.
    release : In(1)
        Free the one being read, after this cycle's read.
    beat, en : In
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
                "launch": In(1),
                "release": In(1),
                "beat": In(range(max(2, geometry.num_beats))),
                "en": In(1),
                "data": Out(geometry.cols * 16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        pieces = geometry.cols // geometry.stream_lanes
        bank_size = 1 << max(1, (geometry.num_beats - 1).bit_length())
        m.submodules.ram = ram = Ram(
            width=geometry.cols * 16, depth=2 * bank_size, granularity=geometry.stream_lanes * 16
        )
        full = Signal(2)
        lasts = Signal(2)
        write_bank = Signal()
        next_bank = Signal()
        read_bank = Signal()
        write_beat = Signal(range(bank_size))
        piece = Signal(range(pieces))
        count = Signal(range(geometry.input_beats))
        take = Signal()
        last_beat = Signal()
        m.d.comb += [
            self.i.ready.eq(~full.bit_select(write_bank, 1)),
            take.eq(self.i.valid & self.i.ready),
            last_beat.eq(count == geometry.input_beats - 1),
            ram.write.addr.eq(write_bank * bank_size + write_beat),
            ram.write.data.eq(self.i.payload.data.as_value().replicate(pieces)),
            ram.write.en.eq(take << piece),
            self.full.eq(full.bit_select(next_bank, 1)),
            self.last.eq(lasts.bit_select(next_bank, 1)),
            ram.read_0.addr.eq(read_bank * bank_size + self.beat),
            ram.read_0.en.eq(self.en),
        ]
        with m.If(self.launch):
            m.d.sync += [read_bank.eq(next_bank), next_bank.eq(~next_bank)]
        with m.If(self.release):
            m.d.sync += full.bit_select(read_bank, 1).eq(0)
        with m.If(take):
            m.d.sync += [count.eq(count + 1), piece.eq(piece + 1)]
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), write_beat.eq(write_beat + 1)]
            with m.If(last_beat):
                m.d.sync += [
                    count.eq(0),
                    piece.eq(0),
                    write_beat.eq(0),
                    write_bank.eq(~write_bank),
                    full.bit_select(write_bank, 1).eq(1),
                    lasts.bit_select(write_bank, 1).eq(self.i.payload.last),
                ]
        tail = geometry.d_model - (geometry.num_beats - 1) * geometry.cols
        partial = delay(m, self.beat == geometry.num_beats - 1, 1, "partial")
        m.d.comb += [
            self.data[: tail * 16].eq(ram.read_0.data[: tail * 16]),
            self.data[tail * 16 :].eq(Mux(partial, 0, ram.read_0.data[tail * 16 :])),
        ]
        return m


class RouterMemory(wiring.Component):
    """The router and its bias, loaded once.

    Members
    -------
    i_load, load_start, loaded
        See :class:`RouterProduct`. First the router's words, then a padded word of biases per row.
    word, en : In
        Read address of the router; ``data`` follows a cycle later.
    data : Out(lanes * 16)
    bias_row : In
        Read address of the bias; ``bias`` follows a cycle later.
    bias : Out(logits_per_cycle * 32)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "word": In(range(geometry.product_cycles)),
                "en": In(1),
                "data": Out(geometry.lanes * 16),
                "bias_row": In(range(geometry.num_rows)),
                "bias": Out(geometry.logits_per_cycle * 32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        beat_bits = geometry.load_elements * 16
        pieces = geometry.lanes // geometry.load_elements
        m.submodules.router = router = Ram(
            width=geometry.lanes * 16, depth=geometry.product_cycles, granularity=beat_bits
        )
        complete = Signal()
        piece = Signal(range(pieces))
        address = Signal(range(geometry.product_cycles))
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
            m.submodules.bias = bias = BiasMemory(geometry)
            m.d.comb += [
                bias.i_load.payload.eq(self.i_load.payload),
                bias.i_load.valid.eq(self.i_load.valid & complete),
                self.i_load.ready.eq(~complete | bias.i_load.ready),
                bias.load_start.eq(self.load_start),
                self.loaded.eq(complete & bias.loaded),
                bias.row.eq(self.bias_row),
                self.bias.eq(bias.data),
            ]
        with m.If(self.load_start):
            m.d.sync += [complete.eq(0), piece.eq(0), address.eq(0)]
        with m.Elif(take):
            m.d.sync += piece.eq(piece + 1)
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), address.eq(address + 1)]
                with m.If(address == geometry.product_cycles - 1):
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
                "row": In(range(geometry.num_rows)),
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
        address = Signal(range(geometry.num_rows))
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
