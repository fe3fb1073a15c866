"""Gate and dispatcher as cores of their own: the blocks with registers, and what a layer gives them."""

from dataclasses import replace

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.dispatch import Dispatch, ServicePolicy
from rtl.expert.layouts import address_layout, read_layout
from rtl.gating import Gate, token_layout
from rtl.layer.shell import RouterLoader, dispatcher
from rtl.registers import RegisterFile
from rtl.stream import connect_stream
from spec.design import DesignSpec, Pipeline
from spec.geometry import ImageGeometry
from spec.model import ModelSpec
from spec.registers import (
    CORE_REGISTERS,
    DISPATCH_COUNTERS,
    GATE_COUNTERS,
    STATUS_BUSY,
    STATUS_LOADED,
    STATUS_READ_ERROR,
    Top,
)

REGISTER_PORT = {"reg_addr": In(8), "reg_wdata": In(32), "reg_we": In(1), "reg_rdata": Out(32)}
LASTS = ("last", "last_token")


def packet_layout(assignment: data.StructLayout) -> data.StructLayout:
    """Return an assignment as a beat of a packet: ``last`` on a batch's last one alone.

    Where a token ends is counted: each has ``top_k`` assignments.
    """
    fields = {name: field.shape for name, field in assignment if name not in LASTS}
    return data.StructLayout({**fields, "last": unsigned(1)})


def _registers(top: Top, counters) -> RegisterFile:
    names = [register.name for register in CORE_REGISTERS if top in register.tops]
    return RegisterFile(names=names, counters=counters)


def _connect_registers(m, core, registers: RegisterFile) -> None:
    m.d.comb += [
        registers.reg_addr.eq(core.reg_addr),
        registers.reg_wdata.eq(core.reg_wdata),
        registers.reg_we.eq(core.reg_we),
        core.reg_rdata.eq(registers.reg_rdata),
    ]


def _up_or_down(m, count, more, less) -> None:
    """Count what comes and goes, which is known late in its cycle: it enables what was added before."""
    with m.If(more & ~less):
        m.d.sync += count.eq(count + 1)
    with m.If(less & ~more):
        m.d.sync += count.eq(count - 1)


def _count(m, registers: RegisterFile, busy, events, *, deep: bool) -> None:
    """Give the counters their events: deep, a cycle later. ``busy`` has to be as late."""
    # What passes is known late in its cycle, and a counter is a long addition.
    domain = m.d.sync if deep else m.d.comb
    for index, name in enumerate(registers.counters):
        if name == "cycles":
            m.d.comb += registers.events[index].eq(busy)
        else:
            domain += registers.events[index].eq(events[name])
    m.d.comb += registers.status[STATUS_BUSY].eq(busy)


class GateAlone(wiring.Component):
    """The gate with its registers and the loader of its router: tokens in, assignments out.

    Latency and throughput are those of :class:`rtl.gating.Gate`.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
    o : Out(stream.Signature(packet_layout(assignment)))
        ``top_k`` beats a token, best expert first; ``last`` on the last one of a batch.
    o_ar, i_r : AXI4 read master.
    reg_addr, reg_wdata, reg_we, reg_rdata : :class:`rtl.registers.RegisterFile`.

    Attributes
    ----------
    most_tokens : tokens that are inside, at most.
    """

    def __init__(self, model: ModelSpec, design: DesignSpec) -> None:
        # An output bias behind the router is the combiner's.
        image = replace(ImageGeometry.of(model, design), output_bias=False)
        self.gate = Gate(image.gate)
        self.deep = image.gate.pipeline is Pipeline.DEEP
        self.loader = RouterLoader(image, design.memory.width_bits, design.memory.burst_beats)
        self.token_beats = image.gate.input_beats
        self.output_beats = model.gating.top_k
        self.most_tokens = self.gate.most_tokens
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(design.stream_lanes))),
                "o": Out(stream.Signature(packet_layout(self.gate.o.payload.shape()))),
                "o_ar": Out(stream.Signature(address_layout())),
                "i_r": In(stream.Signature(read_layout(design.memory.width_bits))),
                **REGISTER_PORT,
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = _registers(Top.GATE, GATE_COUNTERS)
        m.submodules.gate = gate = self.gate
        m.submodules.loader = loader = self.loader
        connect_stream(m, wiring.flipped(self.i), gate.i)
        connect_stream(m, loader.o, gate.i_load)
        connect_stream(m, loader.o_ar, wiring.flipped(self.o_ar))
        connect_stream(m, wiring.flipped(self.i_r), loader.i_r)
        _connect_registers(m, self, registers)
        assignment, beat = gate.o.payload, self.o.payload
        beats = Signal(range(self.token_beats))
        inside = Signal(range(self.most_tokens + 1))
        read_error = Signal()
        takes = Signal()
        gives = Signal()
        busy = Signal()
        m.d.comb += [
            *(beat[name].eq(assignment[name]) for name, _ in beat.shape() if name != "last"),
            beat.last.eq(assignment.last & assignment.last_token),
            self.o.valid.eq(gate.o.valid),
            gate.o.ready.eq(self.o.ready),
            loader.start.eq(registers.load),
            loader.image_page.eq(registers.image_page),
            gate.load_start.eq(registers.load),
            takes.eq(self.i.valid & self.i.ready),
            gives.eq(gate.o.valid & gate.o.ready),
            registers.status[STATUS_LOADED].eq(gate.loaded & ~loader.active & ~registers.load),
            registers.status[STATUS_READ_ERROR].eq(read_error),
        ]
        # Deep: as the events are, a cycle later.
        ends = gives & assignment.last
        enters = delay(m, takes & (beats == 0), int(self.deep), "enters", control=True)
        leaves = delay(m, ends, int(self.deep), "leaves", control=True)
        m.d.comb += busy.eq(enters | (inside != 0))
        _up_or_down(m, inside, enters, leaves)
        with m.If(takes):
            m.d.sync += beats.eq(beats + 1)
            with m.If(beats == self.token_beats - 1):
                m.d.sync += beats.eq(0)
        with m.If(registers.load):
            m.d.sync += read_error.eq(0)
        with m.Elif(self.i_r.valid & self.i_r.ready & self.i_r.payload.resp.any()):
            m.d.sync += read_error.eq(1)
        _count(
            m,
            registers,
            busy,
            {
                "tokens_in": takes & (beats == self.token_beats - 1),
                "tokens_out": ends,
                "assignments": gives,
                "read_beats": self.i_r.valid & self.i_r.ready,
                "stall_input": self.i.valid & ~self.i.ready,
                "stall_output": gate.o.valid & ~gate.o.ready,
            },
            deep=self.deep,
        )
        return m


class DispatchAlone(wiring.Component):
    """The dispatcher of one engine with its registers: assignments in, jobs and expectations out.

    Latency and throughput are those of :class:`rtl.dispatch.Dispatch`.

    Members
    -------
    i : In(stream.Signature(packet_layout(assignment)))
        ``top_k`` beats a token, ``last`` on the last one of a batch: what :class:`GateAlone` gives.
    o : Out(stream.Signature(entry))
        A job's entries one after the other, ``last`` on its last.
    o_expect : Out(stream.Signature(expect))
    reg_addr, reg_wdata, reg_we, reg_rdata : :class:`rtl.registers.RegisterFile`.
    finished : Out(1), inside : Out(1)
        A token is announced; entries that were announced have not all been given.

    Attributes
    ----------
    most_tokens : tokens that are inside and not announced, at most.
    """

    def __init__(self, model: ModelSpec, design: DesignSpec) -> None:
        self.dispatch: Dispatch = dispatcher(model, design, 1)
        config = self.dispatch.config
        self.token_beats = config.top_k
        # Where a whole window is decided at once, two of them wait without slots; some are in registers.
        self.most_tokens = 2 * config.num_slots + 3
        super().__init__(
            {
                "i": In(stream.Signature(packet_layout(config.assignment))),
                "o": Out(stream.Signature(config.entry)),
                "o_expect": Out(stream.Signature(config.expect)),
                **REGISTER_PORT,
                "finished": Out(1),
                "inside": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = _registers(Top.DISPATCH, DISPATCH_COUNTERS)
        m.submodules.dispatch = dispatch = self.dispatch
        config = dispatch.config
        assignment, beat = dispatch.i.payload, self.i.payload
        beats = Signal(range(self.token_beats))
        tokens = Signal(range(self.most_tokens + 1))
        entries = Signal(range(2 * config.num_slots * config.max_count))
        ends_token = Signal()
        takes = Signal()
        gives = Signal()
        busy = Signal()
        begins = takes & (beats == 0)
        connect_stream(m, dispatch.o_0, wiring.flipped(self.o))
        connect_stream(m, dispatch.o_expect, wiring.flipped(self.o_expect))
        _connect_registers(m, self, registers)
        m.d.comb += [
            *(assignment[name].eq(beat[name]) for name, _ in assignment.shape() if name not in LASTS),
            ends_token.eq(beats == self.token_beats - 1),
            assignment.last.eq(ends_token),
            assignment.last_token.eq(beat.last),
            dispatch.i.valid.eq(self.i.valid),
            self.i.ready.eq(dispatch.i.ready),
            dispatch.capacity.eq(registers.capacity),
            dispatch.policy.eq(ServicePolicy(registers.policy[: len(dispatch.policy.as_value())])),
            takes.eq(self.i.valid & self.i.ready),
            gives.eq(self.o.valid & self.o.ready),
            self.finished.eq(self.o_expect.valid & self.o_expect.ready),
            self.inside.eq(entries != 0),
            busy.eq(begins | (tokens != 0) | self.inside),
            # Nothing to load.
            registers.status[STATUS_LOADED].eq(1),
        ]
        _up_or_down(m, tokens, begins, self.finished)
        # An entry may leave before its token is announced: the difference is what counts.
        m.d.sync += entries.eq(entries + Mux(self.finished, self.o_expect.payload.count, 0) - gives)
        with m.If(takes):
            m.d.sync += beats.eq(beats + 1)
            with m.If(ends_token):
                m.d.sync += beats.eq(0)
        _count(
            m,
            registers,
            delay(m, busy, int(config.deep), "busy", control=True),
            {
                "tokens_in": takes & ends_token,
                "tokens_out": self.finished,
                "assignments": takes,
                "dropped": dispatch.dropped,
                "stall_input": self.i.valid & ~self.i.ready,
                "stall_output": self.o.valid & ~self.o.ready,
            },
            deep=config.deep,
        )
        return m
