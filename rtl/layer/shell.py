"""What both accelerators share: intake, gate, dispatcher, combiner, registers, counters."""

from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.combine import Combine, CombineConfig
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from rtl.dispatch import Dispatch, DispatchConfig, ServicePolicy
from rtl.expert.layouts import ADDRESS_BITS, PAGE_BITS, address_layout, read_layout
from rtl.gating import BankedGate, Gate, given_score_bits, token_layout
from rtl.registers import RegisterFile
from rtl.stream import connect_stream, handshake
from spec.design import DeepBlock, DesignSpec, Policy
from spec.geometry import ImageGeometry, ceil_div
from spec.model import ModelSpec
from spec.registers import (
    CAPACITY_BITS,
    COUNTERS,
    EXPERT_BITS,
    PROBE,
    PROBE_BITS,
    PROBE_EXPERT,
    PROBE_WAIT_TILE,
    PROBE_WEIGHT,
    STATUS_BUSY,
    STATUS_LOADED,
    STATUS_READ_ERROR,
)


class RouterLoader(wiring.Component):
    """Read the router's image from memory into the gate: sequential bursts, one after the other.

    Members
    -------
    start : In(1), image_page : In(PAGE_BITS)
    active : Out(1)
        From the cycle after ``start`` until the last beat was taken.
    o_ar, i_r : AXI4 read.
    o : Out(stream.Signature(beat_bits))
    """

    def __init__(self, image: ImageGeometry, beat_bits: int, burst_beats: int) -> None:
        self.beats = image.load_beats
        self.burst_beats = burst_beats
        self.bursts = ceil_div(self.beats, burst_beats)
        self.burst_bytes = image.burst_bytes
        super().__init__(
            {
                "start": In(1),
                "image_page": In(PAGE_BITS),
                "active": Out(1),
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": In(stream.Signature(read_layout(beat_bits))),
                "o": Out(stream.Signature(unsigned(beat_bits))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        asked = Signal(range(self.bursts + 1))
        taken = Signal(range(self.bursts * self.burst_beats + 1))
        asking = Signal()
        take = Signal()
        m.d.comb += [
            # One burst at a time: loading is not part of any run, and the gate takes every beat.
            self.o_ar.valid.eq(asking),
            self.o_ar.payload.addr.eq(
                (self.image_page << (ADDRESS_BITS - PAGE_BITS)) + asked * self.burst_bytes
            ),
            self.o.payload.eq(self.i_r.payload.data),
            self.o.valid.eq(self.i_r.valid & (taken < self.beats)),
            self.i_r.ready.eq(self.o.ready | (taken >= self.beats)),
            take.eq(self.i_r.valid & self.i_r.ready),
        ]
        with m.If(self.o_ar.valid & self.o_ar.ready):
            m.d.sync += [asking.eq(0), asked.eq(asked + 1)]
        with m.If(take & self.active):
            m.d.sync += taken.eq(taken + 1)
            with m.If(self.i_r.payload.last):
                m.d.sync += asking.eq(asked != self.bursts)
                with m.If(asked == self.bursts):
                    m.d.sync += self.active.eq(0)
        with m.If(self.start):
            m.d.sync += [self.active.eq(1), asking.eq(1), asked.eq(0), taken.eq(0)]
        return m


class Intake(wiring.Component):
    """Let tokens in while there are free slots in the token store; give them to gate and store.

    ``deep``: a slot is taken a cycle after the token's first beat, which is known late; before the next one
    where tokens have two beats and more, and so at once where they have one.

    Members
    -------
    i, o_gate, o_store : streams of token_layout(stream_lanes)
    freed : In(1)
        A token has left; its slot is free.
    first, last : Out(1)
        The first, last beat of a token is taken in this cycle.
    """

    def __init__(self, beats: int, stream_lanes: int, num_slots: int, *, deep: bool = False) -> None:
        self.beats = beats
        self.late = int(deep and beats > 1)
        self.num_slots = num_slots
        layout = token_layout(stream_lanes)
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "o_gate": Out(stream.Signature(layout)),
                "o_store": Out(stream.Signature(layout)),
                "freed": In(1),
                "first": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        free = Signal(range(self.num_slots + 1), init=self.num_slots)
        beat = Signal(range(self.beats))
        admit = Signal(init=self.late)
        take = Signal()
        last = Signal()
        m.d.comb += [
            *([] if self.late else [admit.eq((beat != 0) | (free != 0))]),
            self.o_gate.payload.eq(self.i.payload),
            self.o_gate.valid.eq(self.i.valid & admit),
            self.i.ready.eq(self.o_gate.ready & admit),
            take.eq(self.i.valid & self.i.ready),
            # The store is always ready; it takes what the gate takes.
            self.o_store.payload.eq(self.i.payload),
            self.o_store.valid.eq(take),
            last.eq(beat == self.beats - 1),
            self.first.eq(take & (beat == 0)),
            self.last.eq(take & last),
        ]
        free_next = free + self.freed - delay(m, self.first, self.late, "first", control=True)
        m.d.sync += free.eq(free_next)
        with m.If(take):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        if self.late:
            # From a register: what will be admitted in the next cycle.
            m.d.sync += admit.eq(Mux(take, ~last, beat != 0) | (free_next != 0))
        return m


def dispatcher(model: ModelSpec, design: DesignSpec, num_units: int) -> Dispatch:
    """Return the dispatcher of a model's layer with ``num_units`` engines."""
    image = ImageGeometry.of(model, design)
    gating = model.gating
    return Dispatch(
        DispatchConfig(
            num_experts=image.num_experts,
            num_identity_experts=gating.num_identity_experts,
            top_k=gating.top_k,
            window_tokens=design.window_tokens,
            num_units=num_units,
            shared=image.shared is not None,
            shared_gate=image.gate.shared_gate,
            capacity_bits=CAPACITY_BITS,
            capacity_rule=model.capacity_rule,
            no_places=model.no_places,
            identity_places=model.has_capacity and gating.num_identity_experts > 0,
            score_bits=given_score_bits(image.gate),
            kept_gating=image.gate.gating if model.weights_of_kept else None,
            signed_weights=image.gate.plan.signed,
            longest_queue=design.policy is Policy.LONGEST_QUEUE,
            ranks=num_units > 1,
            deep=DeepBlock.DISPATCH in design.deep,
        )
    )


def combiner(model: ModelSpec, design: DesignSpec, num_units: int) -> Combine | OrderedCombine:
    """Return the combiner of a model's layer; several engines give a token's contributions in any order."""
    image = ImageGeometry.of(model, design)
    gating = model.gating
    size = {
        "num_slots": 2 * design.window_tokens,
        "d_model": model.d_model,
        "lanes": design.tile.act_lanes,
        "max_count": gating.top_k + (image.shared is not None),
        "stream_lanes": design.stream_lanes if gating.num_identity_experts else 0,
        "bias_bits": design.memory.width_bits if image.output_bias else 0,
        "deep": DeepBlock.COMBINE in design.deep,
    }
    return Combine(CombineConfig(**size)) if num_units == 1 else OrderedCombine(OrderedConfig(**size))


class LayerShell(wiring.Component):
    """One MoE layer around an engine: gate, dispatcher and combiner, AXI interfaces, registers.

    Tokens come as AXI4-Stream beats of ``stream_lanes`` bf16 elements, ``input_beats`` beats each;
    ``last`` ends a batch (a sequence, for the capacity). Outputs leave in token order, ``act_lanes``
    elements a beat, ``last`` on the batch's last beat. Before the first token: write IMAGE_PAGE (and in
    int8 SCALE_X, SCALE_H), set CONTROL.load, wait for STATUS.loaded. Reset empties everything; the router
    has to be loaded again. A subclass adds the engine (:meth:`engine`), and a gate that is not
    :class:`rtl.gating.Gate`: one whose logits come from the engine, which then gets the tokens alone.
    Nothing is read where that gate has nothing to load; STATUS.loaded is then always set. ``flips`` : as in
    :class:`rtl.registers.RegisterFile`. Where any block's pipelines are deep, events are counted a cycle
    later, and STATUS.busy is a cycle late, so that who has read that it ended finds all of them counted.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    o : Out(stream.Signature({data: act_lanes x 16, last}))
    o_ar, i_r : AXI4 read master.
    reg_addr, reg_wdata, reg_we, reg_rdata : :class:`rtl.registers.RegisterFile`.
    probe : Out(PROBE_BITS)
        For benches: transfers and waits of the streams between the blocks, and the assignments that
        pass (:data:`spec.registers.PROBE`). Leave it open in a product.

    Attributes
    ----------
    most_tokens : tokens that are inside, at most.
    """

    def __init__(
        self,
        model: ModelSpec,
        design: DesignSpec,
        *,
        num_units: int = 1,
        gate: BankedGate | None = None,
        flips: int = 0,
        **members,
    ) -> None:
        image = ImageGeometry.of(model, design)
        self.image = image
        self.deep = len(design.deep) > 0
        self.most_tokens = num_slots = 2 * design.window_tokens
        beat_bits = design.memory.width_bits
        self.axi_read = ("o_ar", "i_r", design.memory.burst_beats)
        self.num_units = num_units
        self.flips = flips
        self.int8 = design.format.integer
        self.gate = Gate(image.gate) if gate is None else gate
        self.dispatch = dispatcher(model, design, num_units)
        self.combine = combiner(model, design, num_units)
        self.intake = Intake(image.gate.input_beats, design.stream_lanes, num_slots, deep=self.deep)
        loads = image.load_beats > 0
        self.loader = RouterLoader(image, beat_bits, design.memory.burst_beats) if loads else None
        output = data.StructLayout(
            {"data": data.ArrayLayout(unsigned(16), design.tile.act_lanes), "last": unsigned(1)}
        )
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(design.stream_lanes))),
                "o": Out(stream.Signature(output)),
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": In(stream.Signature(read_layout(beat_bits))),
                "reg_addr": In(8),
                "reg_wdata": In(32),
                "reg_we": In(1),
                "reg_rdata": Out(32),
                "probe": Out(PROBE_BITS),
                **members,
            }
        )

    def engine(self, m, registers):
        """Add the engine between token store, jobs and combiner, and connect the memory.

        Returns the streams of :data:`spec.registers.PROBE` that the shell does not know, and the
        engine's events for the counters.
        """
        raise NotImplementedError

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = RegisterFile(self.num_units, scales=self.int8, flips=self.flips)
        m.submodules.intake = intake = self.intake
        m.submodules.gate = gate = self.gate
        m.submodules.dispatch = dispatch = self.dispatch
        m.submodules.combine = combine = self.combine

        # Tokens and what becomes of them.
        if self.image.output_bias:
            # No token before the bias that its sum starts from.
            m.d.comb += [
                intake.i.payload.eq(self.i.payload),
                intake.i.valid.eq(self.i.valid & combine.loaded),
                self.i.ready.eq(intake.i.ready & combine.loaded),
            ]
        else:
            connect_stream(m, wiring.flipped(self.i), intake.i)
        if isinstance(gate, Gate):
            connect_stream(m, intake.o_gate, gate.i)
        else:
            m.d.comb += intake.o_gate.ready.eq(1)
        loading = Signal()
        if self.loader is not None:
            m.submodules.loader = loader = self.loader
            self._load(m, loader)
            m.d.comb += [
                loader.start.eq(registers.load),
                loader.image_page.eq(registers.image_page),
                loading.eq(loader.active),
            ]
        connect_stream(m, gate.o, dispatch.i)
        connect_stream(m, dispatch.o_expect, combine.i_expect)
        m.d.comb += [
            self.o.payload.data.eq(combine.o.payload.data),
            self.o.payload.last.eq(combine.o.payload.last),
            self.o.valid.eq(combine.o.valid),
            combine.o.ready.eq(self.o.ready),
            intake.freed.eq(combine.freed),
        ]
        if combine.config.stream_lanes:
            m.d.comb += [
                combine.i_token.payload.eq(intake.o_store.payload),
                combine.i_token.valid.eq(intake.o_store.valid),
            ]
        streams, events = self.engine(m, registers)

        # Registers.
        m.d.comb += [
            registers.reg_addr.eq(self.reg_addr),
            registers.reg_wdata.eq(self.reg_wdata),
            registers.reg_we.eq(self.reg_we),
            self.reg_rdata.eq(registers.reg_rdata),
            gate.load_start.eq(registers.load),
            dispatch.capacity.eq(registers.capacity),
            dispatch.policy.eq(ServicePolicy(registers.policy[: len(dispatch.policy.as_value())])),
        ]
        inside = Signal(range(self.intake.num_slots + 1))
        read_error = Signal()
        m.d.sync += inside.eq(inside + intake.first - combine.freed)
        with m.If(registers.load):
            m.d.sync += read_error.eq(0)
        with m.Elif(self.i_r.valid & self.i_r.ready & self.i_r.payload.resp.any()):
            m.d.sync += read_error.eq(1)
        busy = Signal()
        loaded = gate.loaded & combine.loaded if self.image.output_bias else gate.loaded
        m.d.comb += [
            # ``freed`` comes a cycle after the last beat, which is when the token is gone.
            busy.eq(intake.first | ((inside != 0) & ~(combine.freed & (inside == 1)))),
            # From the cycle after the register was written, so that who asks next is not told of the past.
            registers.status[STATUS_LOADED].eq(loaded & ~loading & ~registers.load),
            # Until all that happened is counted.
            registers.status[STATUS_BUSY].eq(delay(m, busy, int(self.deep), "busy", control=True)),
            registers.status[STATUS_READ_ERROR].eq(read_error),
        ]
        self._count(m, registers, busy, loading, streams, events)
        return m

    def _load(self, m, loader):
        """Give what is loaded to the gate, and an output bias behind it to the combiner."""
        gate, combine = self.gate, self.combine
        if not self.image.output_bias:
            connect_stream(m, loader.o, gate.i_load)
            return
        m.d.comb += combine.load_start.eq(gate.load_start)
        if self.image.gate.load_beats == 0:
            connect_stream(m, loader.o, combine.i_load)
            return
        m.d.comb += [
            gate.i_load.payload.eq(loader.o.payload),
            gate.i_load.valid.eq(loader.o.valid & ~gate.loaded),
            combine.i_load.payload.eq(loader.o.payload),
            combine.i_load.valid.eq(loader.o.valid & gate.loaded),
            loader.o.ready.eq(Mux(gate.loaded, combine.i_load.ready, gate.i_load.ready)),
        ]

    def _count(self, m, registers, busy, loading, streams, events):
        streams = {
            "tokens": self.i,
            "assignments": self.gate.o,
            "expects": self.dispatch.o_expect,
            "output": self.o,
            "addresses": self.o_ar,
            "beats": self.i_r,
            **streams,
        }
        handshakes = {name: handshake(m, name, port) for name, port in streams.items()}
        transfers = {name: moves for name, (moves, _) in handshakes.items()}
        # Two bits for every stream, also for those that this accelerator has not.
        pairs = [Cat(*handshakes[name]) if name in streams else Const(0, 2) for name in PROBE]
        assignment = self.gate.o.payload
        passes = Signal(EXPERT_BITS + 16)
        with m.If(transfers["assignments"]):
            m.d.comb += [
                passes[:EXPERT_BITS].eq(assignment.expert),
                passes[EXPERT_BITS:].eq(assignment.weight),
            ]
        assert PROBE_WEIGHT == PROBE_EXPERT + EXPERT_BITS == PROBE_WAIT_TILE + 1 + EXPERT_BITS
        m.d.comb += self.probe.eq(Cat(*pairs, events.get("stall_weights", Const(0, 1)), passes))
        events = {
            "cycles": busy,
            "tokens_in": self.intake.last,
            "tokens_out": self.combine.freed,
            "assignments": transfers["assignments"],
            "dropped": self.dispatch.dropped,
            "read_beats": transfers["beats"] & ~loading,
            "stall_input": handshakes["tokens"][1],
            "stall_output": handshakes["output"][1],
            **events,
        }
        # What passes between the blocks is known late in its cycle, and a counter is a long addition.
        domain = m.d.sync if self.deep else m.d.comb
        for index, name in enumerate(COUNTERS):
            domain += registers.events[index].eq(events.get(name, 0))
