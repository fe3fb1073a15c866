"""Stream helpers: a checked connection and the register that stands at every block boundary."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Shape, ValueCastable
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


def connect_stream(m, src, dst):
    """Connect stream ``src`` to ``dst``; both payload shapes must be the same, not only as wide.

    Raises ``TypeError`` where the shapes differ (``wiring.connect`` compares widths alone).
    """
    src_shape, dst_shape = _shape_of(src.payload), _shape_of(dst.payload)
    if src_shape != dst_shape:
        raise TypeError(f"stream payloads differ: {src_shape!r} and {dst_shape!r}")
    m.d.comb += [
        dst.payload.eq(src.payload),
        dst.valid.eq(src.valid),
        src.ready.eq(dst.ready),
    ]


def handshake(m, name, port):
    """Return two bits that tell of a stream in each cycle whether it transfers, and whether it waits.

    Parameters
    ----------
    name : the bits are ``<name>_moves`` and ``<name>_waits`` in the Verilog.
    port : has ``valid`` and ``ready``.
    """
    moves = Signal(name=f"{name}_moves")
    waits = Signal(name=f"{name}_waits")
    m.d.comb += [moves.eq(port.valid & port.ready), waits.eq(port.valid & ~port.ready)]
    return moves, waits


def _shape_of(payload):
    return payload.shape() if isinstance(payload, ValueCastable) else Shape.cast(payload.shape())


class StreamRegister(wiring.Component):
    """Two-entry buffer with every output registered, ``ready`` included.

    Latency 1 cycle, one beat per cycle, full back-pressure. Empty after reset.

    Parameters
    ----------
    late : ``i.valid`` comes late in its cycle. The second place then takes whatever stands at the input, so
        that no payload waits for it.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    LATENCY = 1
    DEPTH = 2
    """Beats that it holds."""

    def __init__(self, shape, *, late: bool = False) -> None:
        self.shape = shape
        self.late = late
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        main = Signal(self.shape)
        main_valid = Signal()
        spare = Signal(self.shape)
        spare_valid = Signal()

        m.d.comb += [
            self.i.ready.eq(~spare_valid),
            self.o.valid.eq(main_valid),
            self.o.payload.eq(main),
        ]
        with m.If(self.o.ready | ~main_valid):
            m.d.sync += [
                main.eq(Mux(spare_valid, spare, self.i.payload)),
                main_valid.eq(spare_valid | self.i.valid),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid & ~spare_valid):
            if not self.late:
                m.d.sync += spare.eq(self.i.payload)
            m.d.sync += spare_valid.eq(1)
        if self.late:
            with m.If(~spare_valid):
                m.d.sync += spare.eq(self.i.payload)
        return m


class StreamPair(wiring.Component):
    """Two registers that are filled in turn: nothing stands before them, and ``i.ready`` is one.

    For what comes late in its cycle. Latency 1 cycle, one beat per cycle, full back-pressure; the output is
    behind a choice of two. Empty after reset.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    LATENCY = 1

    def __init__(self, shape) -> None:
        self.shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        places = [Signal(self.shape, name=f"place_{n}", reset_less=True) for n in range(2)]
        held = Signal(2)
        room = Signal(init=1)
        write = Signal()
        read = Signal()
        enters = Signal()
        leaves = Signal()
        m.d.comb += [
            self.i.ready.eq(room),
            enters.eq(self.i.valid & room),
            self.o.valid.eq(held.any()),
            self.o.payload.eq(Mux(read, places[1], places[0])),
            leaves.eq(self.o.valid & self.o.ready),
        ]
        for n, place in enumerate(places):
            with m.If(self.i.valid & room & (write == n)):
                m.d.sync += [place.eq(self.i.payload), held[n].eq(1)]
            with m.If(leaves & (read == n)):
                m.d.sync += held[n].eq(0)
        m.d.sync += [
            write.eq(write ^ enters),
            read.eq(read ^ leaves),
            # Two are held, or one and one enters.
            room.eq(leaves | ~(held.all() | (held.any() & enters))),
        ]
        return m
