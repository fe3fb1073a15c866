"""The expert engine: tokens, jobs and weights in, weighted contributions out."""

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.expert.array import MacArray
from rtl.expert.drain import Drain
from rtl.expert.jobs import JobLists
from rtl.expert.layouts import (
    PAGE_BITS,
    EngineConfig,
    ExpertConfig,
    address_layout,
    contribution_layout,
    job_layout,
    read_layout,
)
from rtl.expert.loader import TileLoader, WeightReader
from rtl.expert.sequencer import Sequencer
from rtl.gating.layouts import token_layout
from rtl.int8 import SCALE_WORD_BITS, Quantise, scale_of
from rtl.ram import Ram, ReadSignature
from rtl.stream import connect_stream


class TokenStore(wiring.Component):
    """Keep the tokens' elements, ``cols`` per word, slots in turn. Always ready.

    In integer formats they are quantised on their way in, so that a beat is stored two cycles later, in a
    deep pipeline four: sooner than an entry that is sent in the cycle after the token's last beat reads it.
    Inputs that are multiplied with a weight are quantised behind the product
    (:class:`rtl.expert.inputs.WeightedInputs`).
    The environment sends no token whose slot is still in use.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    scale_x : In(SCALE_WORD_BITS), in integer formats
    read : In(ReadSignature)
        Address = slot * token_words + word.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.quantises = config.integer and not config.weighted_inputs
        self.ram = Ram(
            width=config.routed.cols * config.stored_bits,
            depth=config.num_slots * config.token_words,
            granularity=config.stream_lanes * config.stored_bits,
            apart=config.deep,
        )
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(config.stream_lanes))),
                **({"scale_x": In(SCALE_WORD_BITS)} if self.quantises else {}),
                "read": In(ReadSignature(self.ram.width, self.ram.depth)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.ram = ram = self.ram
        pieces = config.routed.cols // config.stream_lanes
        beats = -(-config.d_model // config.stream_lanes)
        beat = Signal(range(beats))
        piece = Signal(range(pieces))
        word = Signal(range(ram.depth))
        last_beat = Signal()
        elements = self.i.payload.data.as_value()
        wait = 0
        if self.quantises:
            quantised = []
            for lane in range(config.stream_lanes):
                quantise = m.submodules[f"quantise_{lane}"] = Quantise(pipeline=config.pipeline)
                m.d.comb += [
                    quantise.i.eq(self.i.payload.data[lane]),
                    quantise.scale.eq(scale_of(self.scale_x)),
                ]
                quantised.append(quantise.o)
            elements, wait = Cat(*quantised), Quantise.latency_of(config.pipeline)
        piece_en = Signal(pieces)
        m.d.comb += [
            self.i.ready.eq(1),
            last_beat.eq(beat == beats - 1),
            piece_en.eq(self.i.valid << piece),
            ram.write.addr.eq(delay(m, word, wait, "word")),
            ram.write.data.eq(elements.replicate(pieces)),
            ram.write.en.eq(delay(m, piece_en, wait, "piece_en", control=True)),
            ram.read_0.addr.eq(self.read.addr),
            ram.read_0.en.eq(self.read.en),
            self.read.data.eq(ram.read_0.data),
        ]
        with m.If(self.i.valid):
            m.d.sync += [beat.eq(beat + 1), piece.eq(piece + 1)]
            with m.If(last_beat):
                m.d.sync += beat.eq(0)
            with m.If(last_beat | (piece == pieces - 1)):
                m.d.sync += [piece.eq(0), word.eq(word + 1)]
                with m.If(word == ram.depth - 1):
                    m.d.sync += word.eq(0)
        return m


class ExpertEngine(wiring.Component):
    """Compute experts on a rows x cols MAC array, weights streamed tile by tile through AXI4.

    A job is an expert and all its tokens of a window. Its tiles are fetched once; every tile meets
    all tokens of the job before the next one. Two jobs are inside, so that the next one's weights
    are fetched while this one computes. One slot (a tile and a token) per cycle as long as tiles
    arrive; results leave as ``act_lanes`` elements per cycle.
    Latency and throughput: ``docs/expert.md``; cycle model: :mod:`sim.expert`; reference:
    :func:`golden.expert_bf16.ffn_bf16`, :func:`golden.expert_int8.ffn_int8`. Reset empties the block.
    Area driver: ``rows * cols`` 8x8 multipliers (in bf16 with alignment), two tiles of registers.

    Members
    -------
    i_token : In(stream.Signature(token_layout(stream_lanes)))
        Tokens in slot order (slot = token number modulo num_slots). Always ready.
    i : In(stream.Signature(job_layout(config)))
        A token must be in the store before its first entry is sent.
    image_page : In(PAGE_BITS)
        4 KiB page of the weight image (:class:`spec.geometry.ImageGeometry`); constant while jobs run.
    scale_x, scale_h : In(SCALE_WORD_BITS), in integer formats
        Scales of tokens and of hidden activations (:attr:`golden.int8.FixedScale.word`); constant from
        the first token on.
    o_ar, i_r : AXI4 read address and data, bursts of ``burst_beats``, in order.
    o : Out(stream.Signature(contribution_layout(...)))
        For each block of ``rows`` outputs all tokens of the job in turn.
    fire, beat, read_error, wait_tile, wait_accumulators, wait_hidden : Out(1)
        Events for counters: a MAC slot, a weight beat, an AXI error, and why no slot fired.
    """

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        self.axi_read = ("o_ar", "i_r", config.burst_beats)
        events = ("fire", "beat", "read_error", "wait_tile", "wait_accumulators", "wait_hidden")
        super().__init__(
            {
                "i_token": In(stream.Signature(token_layout(config.stream_lanes))),
                "i": In(stream.Signature(job_layout(config))),
                "image_page": In(PAGE_BITS),
                **(dict.fromkeys(("scale_x", "scale_h"), In(SCALE_WORD_BITS)) if config.integer else {}),
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": In(stream.Signature(read_layout(config.beat_bits))),
                "o": Out(
                    stream.Signature(contribution_layout(config.num_slots, config.words, config.act_lanes))
                ),
                **{name: Out(1) for name in events},
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        hidden_depth = config.max_tokens * config.hidden_words
        m.submodules.tokens = tokens = TokenStore(config)
        m.submodules.jobs = jobs = JobLists(config)
        m.submodules.reader = reader = WeightReader(config)
        m.submodules.loader = loader = TileLoader(config)
        m.submodules.array = array = MacArray(config)
        m.submodules.sequencer = sequencer = Sequencer(
            config, token_depth=tokens.ram.depth, hidden_depth=hidden_depth
        )
        m.submodules.drain = drain = Drain(config, accumulator_depth=array.depth, hidden_depth=hidden_depth)
        m.submodules.hidden = hidden = Ram(
            width=config.routed.cols * config.element_bits,
            depth=hidden_depth,
            granularity=config.act_lanes * config.element_bits,
            apart=config.deep,
        )
        if config.integer:
            quantiser = tokens if tokens.quantises else sequencer
            m.d.comb += [quantiser.scale_x.eq(self.scale_x), drain.scale_h.eq(self.scale_h)]
        connect_stream(m, wiring.flipped(self.i_token), tokens.i)
        connect_stream(m, wiring.flipped(self.i), jobs.i)
        connect_stream(m, wiring.flipped(self.i_r), loader.i_r)
        connect_stream(m, reader.o_ar, wiring.flipped(self.o_ar))
        connect_stream(m, drain.o, wiring.flipped(self.o))
        wiring.connect(m, sequencer.list, jobs.read_mac)
        wiring.connect(m, sequencer.tokens, tokens.read)
        wiring.connect(m, sequencer.hidden, hidden.read_0)
        wiring.connect(m, drain.list, jobs.read_drain)
        wiring.connect(m, drain.accumulators, array.drain)
        wiring.connect(m, drain.hidden, hidden.write)
        for user in (reader, loader, sequencer, drain):
            m.d.comb += [user.complete.eq(jobs.complete), user.records.eq(jobs.records)]

        # Hidden blocks complete so far of the job that is being drained.
        hidden_bank = Signal()
        hidden_units = Signal.like(sequencer.hidden_units)
        with m.If(drain.retire):
            m.d.sync += [hidden_units.eq(0), hidden_bank.eq(~hidden_bank)]
        with m.Elif(drain.hidden_unit):
            m.d.sync += hidden_units.eq(hidden_units + 1)
        m.d.comb += [
            reader.image_page.eq(self.image_page),
            reader.burst_done.eq(loader.burst_done),
            sequencer.hidden_bank.eq(hidden_bank),
            sequencer.hidden_units.eq(hidden_units),
            sequencer.tile_full.eq(loader.full),
            sequencer.unit_drained.eq(drain.unit_drained),
            loader.release.eq(sequencer.release),
            array.fire.eq(sequencer.fire),
            array.slot.eq(sequencer.slot),
            array.x.eq(sequencer.x),
            array.tile.eq(loader.tile),
            drain.unit_ready.eq(array.unit_ready),
            jobs.retire.eq(drain.retire),
            self.fire.eq(sequencer.fire),
            self.beat.eq(loader.beat),
            self.read_error.eq(loader.read_error),
            self.wait_tile.eq(sequencer.wait_tile),
            self.wait_accumulators.eq(sequencer.wait_accumulators),
            self.wait_hidden.eq(sequencer.wait_hidden),
        ]
        return m
