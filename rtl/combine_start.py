"""What a token's sum starts from: its identity experts' part, the output bias, or +0 with neither."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.combine_bf16 import IDENTITY_FRACTION_BITS
from rtl.arith import BF16, F32, f32_product, round_to_bf16
from rtl.gating.layouts import token_layout
from rtl.ram import Ram
from rtl.stream import connect_stream
from spec.geometry import ceil_div


def start_read(config) -> wiring.Signature:
    """Read what a word of a slot's sum starts from: there one cycle later, until the next read."""
    return wiring.Signature(
        {
            "en": Out(1),
            "slot": Out(range(config.num_slots)),
            "word": Out(range(max(2, config.words))),
            "data": In(data.ArrayLayout(F32, config.lanes)),
        }
    )


class IdentityStart(wiring.Component):
    """Keep tokens, and the weight of their identity experts; multiply them when they are read.

    An identity expert's result is the token, so all of a token's together are one product: the sum of
    their weights, which comes with the announcement of the token, rounded to bf16, times the token. It is
    exact in fp32. Elements beyond ``d_model`` are +0, as are those of a token with a weight of 0. A weight
    may be read 2 cycles after its announcement. After reset the slots are filled from the first one on.
    Area: RAM bits ``16 * num_slots * (d_model + 1)`` and, per lane, an 8x8 multiplier, for each read port.
    Reference: :func:`golden.combine_bf16.identity_start`.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
        Tokens in slot order; always ready.
    expect : In(config.expect), announced : In(1)
        A token is announced in this cycle.
    read_0, read_1, ... : In(start_read(config))
    """

    def __init__(self, config, num_read_ports: int) -> None:
        self.config = config
        self.num_read_ports = num_read_ports
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(config.stream_lanes))),
                "expect": In(config.expect),
                "announced": In(1),
                **{f"read_{n}": In(start_read(config)) for n in range(num_read_ports)},
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        # A row holds a beat of tokens or of results, whichever is larger; both are powers of two.
        lanes, stream_lanes = config.lanes, config.stream_lanes
        width = max(lanes, stream_lanes)
        rows = ceil_div(config.d_model, width)
        ports = self.num_read_ports
        m.submodules.tokens = tokens = Ram(
            width=16 * width,
            depth=config.num_slots * rows,
            granularity=16 * stream_lanes,
            num_read_ports=ports,
        )
        m.submodules.weights = weights = Ram(width=16, depth=config.num_slots, num_read_ports=ports)
        self._store(m, tokens, width)

        total = Signal(self.expect.identity.shape(), reset_less=True)
        slot = Signal(range(config.num_slots), reset_less=True)
        announced = Signal()
        m.d.sync += [total.eq(self.expect.identity), slot.eq(self.expect.slot), announced.eq(self.announced)]
        magnitude = Signal(len(total))
        m.d.comb += [
            magnitude.eq(Mux(total < 0, -total, total)),
            weights.write.addr.eq(slot),
            weights.write.en.eq(announced),
            weights.write.data.eq(round_to_bf16(m, total < 0, magnitude, -IDENTITY_FRACTION_BITS, "weight")),
        ]

        parts = width // lanes
        parts_log2 = (parts - 1).bit_length()
        tail = config.d_model - (config.words - 1) * lanes
        for n in range(ports):
            port = getattr(self, f"read_{n}")
            word = Signal.like(port.word, name=f"word_{n}", reset_less=True)
            with m.If(port.en):
                m.d.sync += word.eq(port.word)
            m.d.comb += [
                tokens.reads[n].en.eq(port.en),
                tokens.reads[n].addr.eq(port.slot * rows + (port.word >> parts_log2)),
                weights.reads[n].en.eq(port.en),
                weights.reads[n].addr.eq(port.slot),
            ]
            elements = tokens.reads[n].data.word_select(word[:parts_log2], 16 * lanes)
            weight = data.View(BF16, weights.reads[n].data)
            for lane in range(lanes):
                element = data.View(BF16, elements.word_select(lane, 16))
                product = f32_product(m, element, weight, f"start_{n}_{lane}")
                nothing = weight.exponent == 0
                if lane >= tail:
                    nothing |= word == config.words - 1
                m.d.comb += port.data[lane].as_value().eq(Mux(nothing, 0, product.as_value()))
        return m

    def _store(self, m, tokens, width):
        """Write the beats of each token into its rows."""
        config = self.config
        pieces = width // config.stream_lanes
        beats = ceil_div(config.d_model, config.stream_lanes)
        beat = Signal(range(max(2, beats)))
        piece = Signal(range(max(2, pieces)))
        row = Signal(range(tokens.depth))
        last_beat = Signal()
        m.d.comb += [
            self.i.ready.eq(1),
            last_beat.eq(beat == beats - 1),
            tokens.write.addr.eq(row),
            tokens.write.data.eq(self.i.payload.data.as_value().replicate(pieces)),
            tokens.write.en.eq(self.i.valid << piece),
        ]
        with m.If(self.i.valid):
            m.d.sync += [beat.eq(Mux(last_beat, 0, beat + 1)), piece.eq(piece + 1)]
            with m.If(last_beat | (piece == pieces - 1)):
                m.d.sync += [piece.eq(0), row.eq(Mux(row == tokens.depth - 1, 0, row + 1))]


class BiasStart(wiring.Component):
    """Keep the output bias: every token's sum starts from it.

    Area: RAM bits ``32 * d_model`` for each read port. Reset changes nothing that was loaded.

    Members
    -------
    i_load : In(stream.Signature(bias_bits))
        fp32 values in order; ready until the last one is there.
    load_start : In(1), loaded : Out(1)
        The next beat is the first one; all are there.
    read_0, read_1, ... : In(start_read(config))
    """

    def __init__(self, config, num_read_ports: int) -> None:
        self.config = config
        self.num_read_ports = num_read_ports
        super().__init__(
            {
                "i_load": In(stream.Signature(unsigned(config.bias_bits))),
                "load_start": In(1),
                "loaded": Out(1),
                **{f"read_{n}": In(start_read(config)) for n in range(num_read_ports)},
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        # A row holds a beat or what is read at a time, whichever is larger; both are powers of two.
        lanes, beat_bits = config.lanes, config.bias_bits
        width = max(32 * lanes, beat_bits)
        pieces, parts = width // beat_bits, width // (32 * lanes)
        m.submodules.values = values = Ram(
            width=width,
            depth=ceil_div(32 * config.d_model, width),
            granularity=beat_bits,
            num_read_ports=self.num_read_ports,
        )
        beats = ceil_div(32 * config.d_model, beat_bits)
        beat = Signal(range(beats + 1))
        piece = Signal(range(max(2, pieces)))
        row = Signal(range(values.depth + 1))
        take = Signal()
        m.d.comb += [
            self.loaded.eq(beat == beats),
            self.i_load.ready.eq(~self.loaded),
            take.eq(self.i_load.valid & self.i_load.ready),
            values.write.addr.eq(row),
            values.write.data.eq(self.i_load.payload.replicate(pieces)),
            values.write.en.eq(take << piece),
        ]
        with m.If(self.load_start):
            m.d.sync += [beat.eq(0), piece.eq(0), row.eq(0)]
        with m.Elif(take):
            m.d.sync += [beat.eq(beat + 1), piece.eq(piece + 1)]
            with m.If(piece == pieces - 1):
                m.d.sync += [piece.eq(0), row.eq(row + 1)]

        parts_log2 = (parts - 1).bit_length()
        tail = config.d_model - (config.words - 1) * lanes
        for n in range(self.num_read_ports):
            port, read = getattr(self, f"read_{n}"), values.reads[n]
            word = Signal.like(port.word, name=f"word_{n}", reset_less=True)
            with m.If(port.en):
                m.d.sync += word.eq(port.word)
            m.d.comb += [read.en.eq(port.en), read.addr.eq(port.word >> parts_log2)]
            taken = read.data.word_select(word[:parts_log2], 32 * lanes)
            for lane in range(lanes):
                value = taken.word_select(lane, 32)
                if lane >= tail:
                    value = Mux(word == config.words - 1, 0, value)
                m.d.comb += port.data[lane].as_value().eq(value)
        return m


def start_members(config) -> dict:
    """Return the members of a combiner whose sums start from something else than +0."""
    if config.stream_lanes:
        return {"i_token": In(stream.Signature(token_layout(config.stream_lanes)))}
    if config.bias_bits:
        load = stream.Signature(unsigned(config.bias_bits))
        return {"i_load": In(load), "load_start": In(1), "loaded": Out(1)}
    return {}


def add_start(m, combine, readers) -> None:
    """Add what sums start from to a combiner, and connect the parts that read it; nothing if it is +0."""
    config = combine.config
    if not config.starts:
        return
    start = (IdentityStart if config.stream_lanes else BiasStart)(config, len(readers))
    m.submodules.start = start
    if config.stream_lanes:
        connect_stream(m, wiring.flipped(combine.i_token), start.i)
        m.d.comb += [
            start.announced.eq(combine.i_expect.valid & combine.i_expect.ready),
            start.expect.eq(combine.i_expect.payload),
        ]
    else:
        connect_stream(m, wiring.flipped(combine.i_load), start.i_load)
        m.d.comb += [start.load_start.eq(combine.load_start), combine.loaded.eq(start.loaded)]
    for n, reader in enumerate(readers):
        wiring.connect(m, reader.start, getattr(start, f"read_{n}"))
