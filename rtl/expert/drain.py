"""Results out of the accumulators: hidden ones through the activation, outputs to the combiner."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import F32, bf16_from_f32, delay, times
from rtl.expert.activation import ActivationLane
from rtl.expert.jobs import JobPointer, job_record_layout, list_bits, list_layout
from rtl.expert.layouts import ExpertConfig, bits_for, contribution_layout
from rtl.int8 import SCALE_WORD_BITS, Quantise, scale_of
from rtl.ram import ReadSignature, WriteSignature
from rtl.stream import StreamRegister, connect_stream


class Drain(wiring.Component):
    """Empty the accumulators of each complete unit, token by token, ``act_lanes`` results per cycle.

    Hidden units go through the activation into the hidden buffer and never wait; output units go to
    ``o`` and wait for it. Stage d0 reads a token's accumulators, stage d1 hands them out in
    ``rows / act_lanes`` cycles (fewer in the last output block, if it is partial). In a deep pipeline that is
    stage d2, into whose registers d1 moves a token's accumulators.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    unit_ready : In(1)
    list : Out(ReadSignature), accumulators : Out(ReadSignature)
    scale_h : In(SCALE_WORD_BITS), in integer formats
        What turns hidden activations into int8.
    unit_drained : Out(1)
        The last read of a unit; its accumulators are free.
    retire : Out(1)
        With it, of the job's last unit.
    hidden : Out(WriteSignature) of the hidden buffer.
    hidden_unit : Out(1)
        A hidden unit is complete in the buffer from the next cycle on, in a deep pipeline from the one after.
    o : Out(stream.Signature(contribution_layout(...)))
    """

    def __init__(self, config: ExpertConfig, *, accumulator_depth: int, hidden_depth: int) -> None:
        self.config = config
        routed = config.routed
        lanes = config.act_lanes
        sets = routed.num_up_matrices
        self.list_depth = 2 << bits_for(config.max_tokens)
        self.lanes = [
            ActivationLane(routed.ffn, config.other_activation, config.pipeline) for _ in range(lanes)
        ]
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "unit_ready": In(1),
                "list": Out(ReadSignature(list_bits(config), self.list_depth)),
                "accumulators": Out(ReadSignature(routed.rows * 32 * sets, accumulator_depth)),
                "unit_drained": Out(1),
                "retire": Out(1),
                **({"scale_h": In(SCALE_WORD_BITS)} if config.integer else {}),
                "hidden": Out(
                    WriteSignature(
                        routed.cols * config.element_bits, hidden_depth, lanes * config.element_bits
                    )
                ),
                "hidden_unit": Out(1),
                "o": Out(stream.Signature(contribution_layout(config.num_slots, config.words, lanes))),
            }
        )

    @property
    def activation_latency(self) -> int:
        """Cycles from a result in the last stage to its write into the hidden buffer."""
        return self.lanes[0].latency + (
            Quantise.latency_of(self.config.pipeline) if self.config.integer else 0
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes, rows = config.act_lanes, config.routed.rows
        m.submodules.walk = walk = DrainWalk(config)
        d1_valid = Signal()
        d1 = Signal(walk.tag.shape(), reset_less=True)
        d1_free = Signal()
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            walk.unit_ready.eq(self.unit_ready),
            walk.go.eq(d1_free),
            self.unit_drained.eq(walk.unit_drained),
            self.retire.eq(walk.retire),
            self.list.addr.eq(walk.tag.token),
            self.list.addr[-1].eq(walk.bank),
            self.list.en.eq(walk.valid & d1_free),
            self.accumulators.addr.eq(walk.tag.token),
            self.accumulators.addr[-1].eq(walk.parity),
            self.accumulators.en.eq(walk.valid & d1_free),
        ]

        # The last stage, d1 or d2: one group of lanes per cycle.
        valid, tag, free = d1_valid, d1, d1_free
        before_valid, before = walk.valid, walk.tag
        values, entry = self.accumulators.data, self.list.data
        if config.deep:
            before_valid, before = d1_valid, d1
            valid = Signal(name="d2_valid")
            tag = Signal.like(d1, name="d2")
            free = Signal(name="d2_free")
            read = {"values": values, "entry": entry}
            values, entry = (
                Signal(len(value), name=f"d2_{name}", reset_less=True) for name, value in read.items()
            )
            m.d.comb += d1_free.eq(~d1_valid | free)
            with m.If(d1_free):
                m.d.sync += [d1_valid.eq(walk.valid), d1.eq(walk.tag)]
            with m.If(free):
                m.d.sync += [values.eq(read["values"]), entry.eq(read["entry"])]
        part = Signal(range(rows // lanes))
        moves = Signal()
        last_part = Signal()
        register = StreamRegister(self.o.payload.shape())
        m.submodules.register = register
        m.d.comb += [
            moves.eq(valid & (~tag.out | register.i.ready)),
            last_part.eq(part == tag.last_part),
            free.eq(~valid | (moves & last_part)),
        ]
        with m.If(free):
            m.d.sync += [valid.eq(before_valid), tag.eq(before), part.eq(0)]
        with m.Elif(moves):
            m.d.sync += part.eq(part + 1)

        group = [values.word_select(index, rows * 32) for index in range(config.routed.num_up_matrices)]
        results = [Signal(lanes * 32, name=f"results_{index}") for index in range(len(group))]
        for index, value in enumerate(group):
            m.d.comb += results[index].eq(value.word_select(part, lanes * 32))

        # Hidden: the place in the buffer travels beside the activation.
        wait = self.activation_latency
        element = Signal(range(config.hidden_words * config.routed.cols + 1))
        hidden_go = Signal()
        m.d.comb += [
            element.eq(tag.unit * rows + part * lanes),
            hidden_go.eq(moves & ~tag.out),
        ]
        # A deep one's address comes from a register, and the token's first one from another.
        late = int(config.deep)
        element_q = delay(m, element, wait - late, "element")
        token_q = delay(m, tag.token, wait - 2 * late, "token")
        token_word = token_q * config.hidden_words
        if config.deep:
            token_word = delay(m, times(token_q, config.hidden_words), 1, "token_word")
        word_bits = (config.routed.cols - 1).bit_length()
        lane_bits = (lanes - 1).bit_length()
        hidden_q = delay(m, hidden_go, wait - late, "hidden_go", control=True)
        hidden_addr = token_word + (element_q >> word_bits)
        hidden_en = hidden_q << element_q[lane_bits:word_bits]
        m.d.comb += [
            self.hidden.addr.eq(delay(m, hidden_addr, late, "hidden_addr")),
            self.hidden.en.eq(delay(m, hidden_en, late, "hidden_en", control=True)),
            self.hidden_unit.eq(
                delay(m, hidden_go & last_part & tag.last_token, wait - late, "hidden_unit", control=True)
            ),
        ]
        outputs = []
        for lane, unit in enumerate(self.lanes):
            m.submodules[f"lane_{lane}"] = unit
            m.d.comb += unit.gate.eq(results[0].word_select(lane, 32))
            if len(results) == 2:
                m.d.comb += unit.up.eq(results[1].word_select(lane, 32))
            if config.other_activation:
                m.d.comb += unit.shared.eq(tag.shared)
            if config.integer:
                quantise = m.submodules[f"quantise_{lane}"] = Quantise(pipeline=config.pipeline)
                m.d.comb += [quantise.i.eq(unit.o), quantise.scale.eq(scale_of(self.scale_h))]
                unit = quantise
            outputs.append(Value.cast(unit.o))
        copies = config.routed.cols // lanes
        bits = config.element_bits
        for lane, value in enumerate(outputs):
            for copy in range(copies):
                m.d.comb += self.hidden.data.word_select(copy * lanes + lane, bits).eq(value)

        # Outputs: rounded to bf16, one beat per group of lanes.
        beat = register.i.payload
        entry = list_layout(config)(entry)
        last = Signal()
        m.d.comb += [
            register.i.valid.eq(valid & tag.out),
            beat.slot.eq(entry.slot),
            beat.weight.eq(entry.weight),
            beat.word.eq(tag.unit * (rows // lanes) + part),
            last.eq(tag.last_unit & last_part),
            beat.last.eq(last),
        ]
        for lane in range(lanes):
            value = Signal(F32, name=f"output_{lane}")
            m.d.comb += [
                value.eq(results[0].word_select(lane, 32)),
                beat.data[lane].eq(bf16_from_f32(value)),
            ]
            if lane >= config.d_model - (config.words - 1) * lanes:
                # Beyond d_model: the tiles are zero there, but zero times infinity is NaN. (Not on
                # beat.last: Verilator misses changes of a signal that drives other bits of itself.)
                with m.If(last):
                    m.d.comb += beat.data[lane].eq(0)
        connect_stream(m, register.o, wiring.flipped(self.o))
        return m


class DrainWalk(wiring.Component):
    """Counters over the tokens of complete units (stage d0 of :class:`Drain`).

    Members
    -------
    complete, records, unit_ready : In
    go : In(1)
        The token shown is read.
    valid : Out(1), bank : Out(1), parity : Out(1), tag : Out
    unit_drained : Out(1), retire : Out(1)
    """

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        max_units = max(max(kind.hidden_blocks, kind.out_blocks) for kind in config.kinds)
        self.tag_layout = data.StructLayout(
            {
                "token": unsigned(bits_for(config.max_tokens)),
                "unit": unsigned(bits_for(max_units)),
                "out": unsigned(1),
                "last_token": unsigned(1),
                "last_unit": unsigned(1),
                "last_part": unsigned(bits_for(config.routed.rows // config.act_lanes)),
                **({"shared": unsigned(1)} if config.other_activation else {}),
            }
        )
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "unit_ready": In(1),
                "go": In(1),
                "valid": Out(1),
                "bank": Out(1),
                "parity": Out(1),
                "tag": Out(self.tag_layout),
                "unit_drained": Out(1),
                "retire": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        kinds = config.kinds
        m.submodules.jobs = jobs = JobPointer()
        record = Signal(job_record_layout(config))
        ready_units = Signal(range(3))
        unit = Signal(self.tag.unit.shape())
        token = Signal(self.tag.token.shape())
        out = Signal()
        step = Signal()
        last_token = Signal()
        last_unit = Signal()

        hidden_blocks = [kind.hidden_blocks for kind in kinds]
        hidden_count = Mux(record.shared, hidden_blocks[-1], hidden_blocks[0])
        out_blocks = config.routed.out_blocks
        parts = config.routed.rows // config.act_lanes
        tail_parts = config.words - (out_blocks - 1) * parts
        m.d.comb += [
            jobs.complete.eq(self.complete),
            self.bank.eq(jobs.bank),
            record.eq(Mux(jobs.bank, self.records[1].as_value(), self.records[0].as_value())),
            self.valid.eq(ready_units != 0),
            step.eq(self.valid & self.go),
            last_token.eq(token == record.last_token),
            last_unit.eq(unit == Mux(out, out_blocks, hidden_count) - 1),
            self.unit_drained.eq(step & last_token),
            self.retire.eq(self.unit_drained & last_unit & out),
            jobs.next.eq(self.retire),
            self.tag.token.eq(token),
            self.tag.unit.eq(unit),
            self.tag.out.eq(out),
            self.tag.last_token.eq(last_token),
            self.tag.last_unit.eq(last_unit),
            self.tag.last_part.eq(Mux(out & last_unit, tail_parts - 1, parts - 1)),
        ]
        if config.other_activation:
            m.d.comb += self.tag.shared.eq(record.shared)
        m.d.sync += ready_units.eq(ready_units + self.unit_ready - self.unit_drained)
        with m.If(step):
            m.d.sync += token.eq(Mux(last_token, 0, token + 1))
        with m.If(self.unit_drained):
            m.d.sync += [self.parity.eq(~self.parity), unit.eq(Mux(last_unit, 0, unit + 1))]
            with m.If(last_unit):
                m.d.sync += out.eq(~out)
        return m
