"""Several streams of contributions into one, for a combiner behind several units."""

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.dispatch.first import FirstOf
from rtl.stream import StreamRegister, connect_stream
from spec.errors import require_range


class ContributionMerge(wiring.Component):
    """Give on one beat per cycle, of the inputs in turn.

    Of the inputs that have a beat the next one after the last that gave one goes first (round robin);
    none waits for more than a beat of each other. Beats of different inputs interleave, those of one
    input keep their order. Latency 2 cycles, one beat per cycle in all; a register at every input and
    at the output, so that no ready depends on another port. After reset nothing is held and input 0 is
    the first. Reference: :mod:`sim.merge`.

    Members
    -------
    i_0, i_1, ... : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    LATENCY = 2 * StreamRegister.LATENCY

    def __init__(self, shape, num_inputs: int) -> None:
        require_range("num_inputs", num_inputs, 1, 64)
        self.shape = shape
        self.num_inputs = num_inputs
        members = {name: In(stream.Signature(shape)) for name in self.inputs()}
        super().__init__({**members, "o": Out(stream.Signature(shape))})

    def inputs(self) -> list[str]:
        """Names of the input streams."""
        return [f"i_{n}" for n in range(self.num_inputs)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.output = output = StreamRegister(self.shape)
        m.submodules.behind = behind = FirstOf(self.num_inputs)
        m.submodules.anyone = anyone = FirstOf(self.num_inputs)
        connect_stream(m, output.o, wiring.flipped(self.o))
        turn = Signal(range(self.num_inputs))  # whose turn it is
        chosen = Signal(range(self.num_inputs))
        m.d.comb += [
            chosen.eq(Mux(behind.any, behind.index, anyone.index)),
            output.i.valid.eq(anyone.any),
        ]
        with m.If(output.i.valid & output.i.ready):
            m.d.sync += turn.eq(Mux(chosen == self.num_inputs - 1, 0, chosen + 1))
        for n, name in enumerate(self.inputs()):
            m.submodules[f"input_{n}"] = entry = StreamRegister(self.shape)
            connect_stream(m, wiring.flipped(getattr(self, name)), entry.i)
            # No turn is behind the last input.
            in_turn = 1 if n == self.num_inputs - 1 else turn <= n
            m.d.comb += [anyone.bits[n].eq(entry.o.valid), behind.bits[n].eq(entry.o.valid & in_turn)]
            with m.If(chosen == n):
                m.d.comb += [output.i.payload.eq(entry.o.payload), entry.o.ready.eq(output.i.ready)]
        return m
