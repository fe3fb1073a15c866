"""Streams between two clocks, and a top whose streams and memory port run on another clock than its core."""

from amaranth import Module, ResetSignal, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.wiring import In, Out

from rtl.stream import connect_stream


class StreamCrossing(wiring.Component):
    """A stream from one clock domain to another: an asynchronous FIFO with gray-coded pointers.

    Latency 1 cycle of ``from_domain`` and 3 to 4 of ``to_domain``; one beat per cycle of the slower clock
    where ``depth`` covers the way forth and back (8 and more). Order is kept, nothing is lost or doubled at
    any ratio of clocks. Empty after reset; both domains have to be in reset at the same time, for 4 cycles of
    the slower clock. Either may leave it first: what is written before ``to_domain`` does waits. Proved for
    every order of edges in :mod:`tests.formal.crossing`. Area: ``depth`` beats of memory.

    Parameters
    ----------
    shape : of the payload.
    depth : beats held, a power of two, at least 4.
    from_domain, to_domain : clock domains of ``i`` and of ``o``.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    def __init__(self, shape, depth: int, *, from_domain: str, to_domain: str) -> None:
        if depth < 4 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two, at least 4, not {depth}")
        if from_domain == to_domain:
            raise ValueError(f"from_domain and to_domain must differ, not both be {to_domain!r}")
        self.shape = shape
        self.depth = depth
        self.from_domain = from_domain
        self.to_domain = to_domain
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        width = len(Value.cast(self.i.payload))
        m.submodules.fifo = fifo = AsyncFIFO(
            width=width, depth=self.depth, w_domain=self.from_domain, r_domain=self.to_domain
        )
        running = Signal()
        m.d.comb += [
            running.eq(~ResetSignal(self.to_domain, allow_reset_less=True)),
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            Value.cast(self.o.payload).eq(fifo.r_data),
            # The reader in the FIFO knows the writer's reset alone. In its own it offers nothing and takes
            # nothing, whatever the sink's ready is then.
            self.o.valid.eq(fifo.r_rdy & running),
            fifo.r_en.eq(self.o.ready & running),
        ]
        return m


class TwoClocks(wiring.Component):
    """A component whose streams, the AXI4 read master's too, are in the domain ``bus``; all else in ``sync``.

    The component inside is unchanged. In Verilog ``aclk`` is its clock, ``bus_aclk`` that of the streams,
    each with a reset; both resets have to be asserted together, for 4 cycles of the slower clock at least.

    Parameters
    ----------
    core : not yet elaborated; each of its streams crosses.
    depth : beats that each crossing holds.

    Members
    -------
    Those of ``core``.
    """

    clock_domains = ("bus",)

    def __init__(self, core: wiring.Component, depth: int = 16) -> None:
        self.core = core
        self.depth = depth
        if hasattr(core, "axi_read"):
            self.axi_read = core.axi_read
        super().__init__(dict(core.signature.members))

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = self.core
        for name, member in core.signature.members.items():
            inner, outer = getattr(core, name), getattr(self, name)
            is_input = member.flow == In
            if not member.is_signature:
                m.d.comb += inner.eq(outer) if is_input else outer.eq(inner)
                continue
            if not isinstance(member.signature, stream.Signature):
                wiring.connect(m, wiring.flipped(outer), inner)
                continue
            domains = {"from_domain": "bus", "to_domain": "sync"}
            if not is_input:
                domains = {"from_domain": "sync", "to_domain": "bus"}
            shape = inner.payload.shape()
            m.submodules[f"cross_{name}"] = crossing = StreamCrossing(shape, self.depth, **domains)
            outside = wiring.flipped(outer)
            connect_stream(m, outside if is_input else inner, crossing.i)
            connect_stream(m, crossing.o, inner if is_input else outside)
        return m
