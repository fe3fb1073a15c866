"""Results out of the units: hidden ones through the activation and back, outputs to the combiner."""

from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import BF16, F32, bf16_from_f32, delay
from rtl.expert.activation import ActivationLane
from rtl.expert.jobs import job_record_layout, list_bits, list_layout
from rtl.expert.layouts import bits_for
from rtl.fifo import StreamFifo
from rtl.gating.layouts import logit_part_layout
from rtl.int8 import SCALE_WORD_BITS, Quantise, scale_of
from rtl.pim.layouts import PimConfig
from rtl.pim.walk import GroupWalk, most_blocks, of_kind, of_router
from rtl.ram import ReadSignature, WriteSignature, address_width
from rtl.stream import StreamRegister, connect_stream


def result_layout(config: PimConfig, bits: int = 16):
    """Return one token's results of all units: outputs, or hidden activations of ``bits`` each."""
    blocks = most_blocks(config)
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(bits), config.units),
            "token": unsigned(bits_for(config.group_tokens)),
            "block": unsigned(bits_for(blocks)),
            "last_token": unsigned(1),
            "last_block": unsigned(1),
            "entry": list_layout(config),
            **({"shared": unsigned(1)} if config.other_activation else {}),
        }
    )


class ReadWalk(wiring.Component):
    """Order of the register reads: block by block, in each token by token, gate before up.

    A logit is read in two halves, as gate and up are.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    block_ready : In(1)
        A block's last sums are written.
    go : In(1)
    valid : Out(1), out : Out(1), up : Out(1)
        There is something to read: an output or a hidden result; the second of its two matrices.
    router : Out(1), where the engine has one
        It is a logit.
    shared : Out(1), where the shared expert has an activation of its own
        It is the shared expert's.
    parity, token, block, last_token, last_block : Out
    list_address : Out
    final : Out(1)
        With ``go``: the result is complete with this read.
    block_read : Out(1), retire : Out(1)
        With ``go``: the block's last read, the job's.
    group_read : Out(1)
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        result = result_layout(config)
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "block_ready": In(1),
                "go": In(1),
                "valid": Out(1),
                "out": Out(1),
                "up": Out(1),
                **({"router": Out(1)} if config.router else {}),
                **({"shared": Out(1)} if config.other_activation else {}),
                "parity": Out(1),
                "token": Out(result["token"].shape),
                "block": Out(result["block"].shape),
                "last_token": Out(1),
                "last_block": Out(1),
                "list_address": Out(address_width(2 << bits_for(config.max_tokens))),
                "final": Out(1),
                "block_read": Out(1),
                "group_read": Out(1),
                "retire": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.walk = walk = GroupWalk(config)
        ready_blocks = Signal(range(3))
        record = walk.record
        is_router = of_router(config, record)
        if config.router:
            m.d.comb += self.router.eq(is_router)
        if config.other_activation:
            m.d.comb += self.shared.eq(record.shared)
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            walk.done.eq(self.group_read),
            self.valid.eq(walk.valid & (ready_blocks != 0)),
            self.last_token.eq(self.token == walk.group.last_token),
            self.last_block.eq(
                self.block
                == Mux(
                    self.out, of_kind(config, record, "out_blocks"), of_kind(config, record, "hidden_blocks")
                )
                - 1
            ),
            self.final.eq(self.out | self.up | (~is_router & (config.routed.num_up_matrices == 1))),
            self.block_read.eq(self.go & self.final & self.last_token),
            self.group_read.eq(self.block_read & self.last_block & (self.out | is_router)),
            self.retire.eq(self.group_read & walk.group.last),
            self.list_address.eq(walk.group.number * config.group_tokens + self.token),
            self.list_address[-1].eq(walk.bank),
        ]
        m.d.sync += ready_blocks.eq(ready_blocks + self.block_ready - self.block_read)
        with m.If(self.go):
            m.d.sync += self.up.eq(~self.final)
            with m.If(self.final):
                m.d.sync += self.token.eq(Mux(self.last_token, 0, self.token + 1))
        with m.If(self.block_read):
            m.d.sync += [
                self.parity.eq(~self.parity),
                self.block.eq(Mux(self.last_block, 0, self.block + 1)),
            ]
            with m.If(self.last_block):
                m.d.sync += self.out.eq(~(self.out | is_router))
        return m


class Readout(wiring.Component):
    """Read results out of the accumulators, activate the hidden ones, hand the outputs on.

    A register read decided in cycle c shows its bf16 results in c + 2. Hidden results are activated
    ``act_lanes`` per cycle and wait for a register write; outputs leave as ``act_lanes`` elements per
    beat. Reads are held back unless there is room for what they bring: ``DEPTH`` results each. For logits
    there always is: whoever asks for them has made it before.

    Members
    -------
    complete, records, block_ready : In, as in :class:`ReadWalk`.
    list : Out(ReadSignature), accumulators : Out(ReadSignature)
    want_read : Out(1), go_read : In(1)
    want_hidden : Out(1), go_hidden : In(1)
    scale_h : In(SCALE_WORD_BITS), in integer formats
        What turns hidden activations into int8.
    hidden : Out(WriteSignature)
        Hidden registers; written one cycle after ``go_hidden``.
    hidden_blocks : Out
        Blocks of the group that are written.
    block_read : Out(1), retire : Out(1)
    retire_router : Out(1), o_logits : Out(logit_part_layout(units, group_tokens)), with a router
        The job that is done with was one with the router; half of a block of logits for a token.
    o : Out(stream.Signature(config.contribution))
    """

    DEPTH = 4
    READ_LATENCY = 2

    def __init__(self, config: PimConfig, *, accumulator_depth: int, hidden_depth: int) -> None:
        self.config = config
        routed = config.routed
        self.lanes = [ActivationLane(routed.ffn, config.other_activation) for _ in range(config.act_lanes)]
        width = config.units * 32 * routed.num_up_matrices
        blocks = max(kind.hidden_blocks for kind in config.kinds)
        router = {
            "retire_router": Out(1),
            "o_logits": Out(logit_part_layout(config.units, config.group_tokens)),
        }
        super().__init__(
            {
                **(router if config.router else {}),
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "block_ready": In(1),
                "list": Out(ReadSignature(list_bits(config), 2 << bits_for(config.max_tokens))),
                "accumulators": Out(ReadSignature(width, accumulator_depth)),
                "want_read": Out(1),
                "go_read": In(1),
                "want_hidden": Out(1),
                "go_hidden": In(1),
                **({"scale_h": In(SCALE_WORD_BITS)} if config.integer else {}),
                "hidden": Out(
                    WriteSignature(
                        routed.cols * config.element_bits,
                        hidden_depth,
                        config.act_lanes * config.element_bits,
                    )
                ),
                "hidden_blocks": Out(range(blocks + 1)),
                "block_read": Out(1),
                "retire": Out(1),
                "o": Out(stream.Signature(config.contribution)),
            }
        )

    @property
    def activation_latency(self) -> int:
        """Cycles from a result to its activation, in the format of the hidden registers."""
        return self.lanes[0].latency + (Quantise.LATENCY if self.config.integer else 0)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.walk = walk = ReadWalk(config)
        m.submodules.hidden_queue = hidden_queue = StreamFifo(
            result_layout(config, config.element_bits), self.DEPTH
        )
        m.submodules.output_queue = output_queue = StreamFifo(result_layout(config), self.DEPTH)
        is_hidden = ~walk.out & ~walk.router if config.router else ~walk.out
        hidden_room = self._credits(m, "hidden_room", walk.go & walk.final & is_hidden, self.go_hidden)
        output_room = self._credits(
            m, "output_room", walk.go & walk.out, output_queue.o.valid & output_queue.o.ready
        )
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            walk.block_ready.eq(self.block_ready),
            walk.go.eq(self.go_read),
            self.want_read.eq(
                walk.valid & Mux(walk.out, output_room, ~is_hidden | ~walk.final | hidden_room)
            ),
            self.block_read.eq(walk.block_read),
            self.retire.eq(walk.retire),
            self.list.addr.eq(walk.list_address),
            self.list.en.eq(self.go_read),
            self.accumulators.addr.eq(walk.token),
            self.accumulators.addr[-1].eq(walk.parity),
            self.accumulators.en.eq(self.go_read),
        ]
        result, valid, final, out = self._read(m, walk)
        if config.router:
            logits = delay(m, walk.router, self.READ_LATENCY, "read_router")
            final = final & ~logits
            m.d.comb += [
                self.retire_router.eq(walk.retire & walk.router),
                self.o_logits.valid.eq(valid & logits),
                self.o_logits.low.eq(delay(m, walk.up, self.READ_LATENCY, "read_low")),
                self.o_logits.token.eq(result.token),
                self.o_logits.last_token.eq(result.last_token),
                self.o_logits.last_block.eq(result.last_block),
                self.o_logits.data.eq(result.data),
            ]
        self._activate(m, result, valid & final & ~out, hidden_queue)
        m.d.comb += [output_queue.i.valid.eq(valid & out), output_queue.i.payload.eq(result)]
        self._write_hidden(m, walk, hidden_queue)
        self._emit(m, output_queue)
        return m

    def _credits(self, m, name, spent, returned):
        """Count the free places of a queue, from the read that will fill one to its emptying."""
        left = Signal(range(self.DEPTH + 1), init=self.DEPTH, name=name)
        m.d.sync += left.eq(left - spent + returned)
        return left != 0

    def _read(self, m, walk):
        """Round what was read to bf16, or take half of it, as it travels from the units: one register."""
        config = self.config
        layout = result_layout(config)
        result = Signal(layout, reset_less=True)
        read = Signal(layout, reset_less=True)  # where the read now at the ports comes from
        up = Signal(reset_less=True)
        with m.If(self.go_read):
            m.d.sync += [
                up.eq(walk.up),
                read.token.eq(walk.token),
                read.block.eq(walk.block),
                read.last_token.eq(walk.last_token),
                read.last_block.eq(walk.last_block),
            ]
            if config.other_activation:
                m.d.sync += read.shared.eq(walk.shared)
        arrived = delay(m, self.go_read, 1, "arrived", control=True)
        gate_width = config.units * 32
        sums = self.accumulators.data
        # Logits are where a gate's results are.
        second = up
        if config.router:
            is_router = Signal(reset_less=True)
            with m.If(self.go_read):
                m.d.sync += is_router.eq(walk.router)
            second = up & ~is_router
        if config.routed.num_up_matrices == 2:
            sums = Mux(second, sums[gate_width:], sums[:gate_width])
        with m.If(arrived):
            m.d.sync += [
                result.eq(read),
                result.entry.eq(self.list.data),
            ]
            for unit in range(config.units):
                value = Signal(F32, name=f"sum_{unit}")
                m.d.comb += value.eq(sums.word_select(unit, 32))
                taken = bf16_from_f32(value)
                if config.router:
                    low, high = value.as_value()[:16], value.as_value()[16:]
                    taken = Mux(is_router, Mux(up, low, high), taken)
                m.d.sync += result.data[unit].eq(taken)
        valid = delay(m, self.go_read, self.READ_LATENCY, "read_valid", control=True)
        final = delay(m, walk.final, self.READ_LATENCY, "read_final")
        out = delay(m, walk.out, self.READ_LATENCY, "read_out")
        return result, valid, final, out

    def _activate(self, m, result, starts, queue):
        """Activate a token's hidden results, ``act_lanes`` per cycle; queue them when complete."""
        config = self.config
        lanes, parts = config.act_lanes, config.parts
        gate = Signal(result.data.shape(), reset_less=True)
        with m.If(~starts):
            # What comes before the second matrix' result is the gate's.
            m.d.sync += gate.eq(result.data)
        gated = config.routed.num_up_matrices == 2
        part = Signal(range(max(2, parts)))
        active = Signal()
        moves = Signal()
        last_part = Signal()
        place = Signal.like(part)
        m.d.comb += [
            moves.eq(starts | active),
            place.eq(Mux(starts, 0, part)),
            last_part.eq(place == parts - 1),
        ]
        with m.If(moves):
            m.d.sync += [active.eq(~last_part), part.eq(place + 1)]
        held = Signal(result.data.shape(), reset_less=True)
        with m.If(starts):
            m.d.sync += held.eq(gate)
        gates = Mux(starts, gate.as_value(), held.as_value()) if gated else result.data.as_value()
        outputs = []
        for number, lane in enumerate(self.lanes):
            m.submodules[f"lane_{number}"] = lane
            chosen = Signal(BF16, name=f"gate_{number}")
            m.d.comb += [
                chosen.eq(gates.word_select(place, lanes * 16).word_select(number, 16)),
                lane.gate.eq(Cat(Const(0, 16), chosen.as_value())),
            ]
            if gated:
                up = Signal(BF16, name=f"up_{number}")
                m.d.comb += [
                    up.eq(result.data.as_value().word_select(place, lanes * 16).word_select(number, 16)),
                    lane.up.eq(Cat(Const(0, 16), up.as_value())),
                ]
            if config.other_activation:
                m.d.comb += lane.shared.eq(result.shared)
            if config.integer:
                quantise = m.submodules[f"quantise_{number}"] = Quantise()
                m.d.comb += [quantise.i.eq(lane.o), quantise.scale.eq(scale_of(self.scale_h))]
                lane = quantise
            outputs.append(Value.cast(lane.o))

        # The parts are put together again behind the lanes.
        wait = self.activation_latency
        arrives = delay(m, moves, wait, "arrives", control=True)
        complete = delay(m, moves & last_part, wait, "complete", control=True)
        tag = delay(m, result.as_value()[config.units * 16 :], wait, "tag")
        bits = config.element_bits
        gathered = Signal(config.units * bits, reset_less=True)
        together = Signal(config.units * bits)
        m.d.comb += together.eq(Cat(gathered[lanes * bits :], *outputs))
        with m.If(arrives):
            m.d.sync += gathered.eq(together)
        m.d.comb += [
            queue.i.valid.eq(complete),
            queue.i.payload.eq(Cat(together, tag)),
        ]

    def _write_hidden(self, m, walk, queue):
        """Write activated results into the registers when the column bus has a slot for it."""
        config = self.config
        result = queue.o.payload
        copies = config.routed.cols // config.units
        write = self.hidden
        hidden_block = Signal.like(result.block, reset_less=True)
        hidden_token = Signal.like(result.token, reset_less=True)
        values = Signal(config.units * config.element_bits, reset_less=True)
        m.d.comb += [self.want_hidden.eq(queue.o.valid), queue.o.ready.eq(self.go_hidden)]
        m.d.sync += [
            hidden_block.eq(result.block),
            hidden_token.eq(result.token),
            values.eq(result.data.as_value()),
        ]
        writes = delay(m, self.go_hidden, 1, "writes", control=True)
        copies_log2 = (copies - 1).bit_length()
        m.d.comb += [
            write.addr.eq(hidden_token * config.hidden_words + (hidden_block >> copies_log2)),
            write.data.eq(values.replicate(copies)),
            write.en.eq(writes.replicate(config.parts) << ((hidden_block & (copies - 1)) * config.parts)),
        ]
        with m.If(walk.group_read):
            m.d.sync += self.hidden_blocks.eq(0)
        with m.Elif(self.go_hidden & result.last_token):
            m.d.sync += self.hidden_blocks.eq(self.hidden_blocks + 1)

    def _emit(self, m, queue):
        """Hand outputs on, ``act_lanes`` elements per beat."""
        config = self.config
        lanes, parts = config.act_lanes, config.parts
        m.submodules.output = register = StreamRegister(self.o.payload.shape())
        result = queue.o.payload
        output_part = Signal(range(max(2, parts)))
        tail_parts = config.words - (config.routed.out_blocks - 1) * parts
        ends_block = Signal()
        last = Signal()
        emits = Signal()
        beat = register.i.payload
        m.d.comb += [
            ends_block.eq(output_part == Mux(result.last_block, tail_parts - 1, parts - 1)),
            register.i.valid.eq(queue.o.valid),
            emits.eq(register.i.valid & register.i.ready),
            queue.o.ready.eq(emits & ends_block),
            beat.slot.eq(result.entry.slot),
            beat.weight.eq(result.entry.weight),
            beat.word.eq(result.block * parts + output_part),
            last.eq(result.last_block & ends_block),
            beat.last.eq(last),
        ]
        if config.ranks:
            m.d.comb += beat.rank.eq(result.entry.rank)
        with m.If(emits):
            m.d.sync += output_part.eq(Mux(ends_block, 0, output_part + 1))
        for lane in range(lanes):
            m.d.comb += beat.data[lane].eq(
                result.data.as_value().word_select(output_part, lanes * 16).word_select(lane, 16)
            )
            if lane >= config.d_model - (config.words - 1) * lanes:
                # Beyond d_model: the tiles are zero there, but zero times infinity is NaN. (Not on
                # beat.last: Verilator misses changes of a signal that drives other bits of itself.)
                with m.If(last):
                    m.d.comb += beat.data[lane].eq(0)
        connect_stream(m, register.o, wiring.flipped(self.o))
