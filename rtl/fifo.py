"""A stream queue over a synchronous RAM."""

from amaranth import Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.ram import Ram


class StreamFifo(wiring.Component):
    """First in, first out; ``depth`` beats (a power of two) and one more in the output register.

    Latency 2 cycles through an empty queue, one beat per cycle. Empty after reset.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    LATENCY = 2

    def __init__(self, shape, depth: int) -> None:
        if depth < 1 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two, not {depth}")
        self.shape = shape
        self.depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        width = len(Value.cast(Signal(self.shape)))
        m.submodules.ram = ram = Ram(width=width, depth=self.depth)
        write_count = Signal(range(2 * self.depth))
        read_count = Signal(range(2 * self.depth))
        level = Signal(range(self.depth + 1))
        fetch = Signal()
        valid = Signal()
        m.d.comb += [
            level.eq((write_count - read_count)[: len(write_count)]),
            self.i.ready.eq(level != self.depth),
            ram.write.addr.eq(write_count[:-1] if self.depth > 1 else 0),
            ram.write.data.eq(self.i.payload),
            ram.write.en.eq(self.i.valid & self.i.ready),
            fetch.eq((level != 0) & (~valid | self.o.ready)),
            ram.read_0.addr.eq(read_count[:-1] if self.depth > 1 else 0),
            ram.read_0.en.eq(fetch),
            Value.cast(self.o.payload).eq(ram.read_0.data),
            self.o.valid.eq(valid),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += write_count.eq(write_count + 1)
        with m.If(fetch):
            m.d.sync += [read_count.eq(read_count + 1), valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += valid.eq(0)
        return m
