"""Beats for the same sum are kept apart, for an adder whose pipeline is deep."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay


class SpacedBeats(wiring.Component):
    """Hold a beat back until the one before it for the same slot and word went on ``distance`` cycles ago.

    A beat is compared with those before it when it comes, so that no comparison stands before ``i.ready``.
    Latency 1 cycle, one beat per cycle. Empty after reset. Area: ``distance`` slots and words.

    Members
    -------
    i : In(stream.Signature(shape)), shape with ``slot`` and ``word``
    o : Out(stream.Signature(shape)), always ready.
    """

    LATENCY = 1

    def __init__(self, shape, distance: int) -> None:
        self.shape = shape
        self.distance = distance
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        held = Signal()
        beat = Signal(self.shape)
        # [n]: the beat that went on n + 1 cycles ago is for the sum of the one that is held.
        near = Signal(self.distance - 1)
        come = Signal(self.distance - 1)
        rows = [Cat(beat.slot, beat.word)]
        valids = [self.o.valid]
        for n in range(1, self.distance - 1):
            valids.append(delay(m, valids[-1], 1, f"valid_{n}", control=True))
            rows.append(delay(m, rows[-1], 1, f"row_{n}"))
        row = Cat(self.i.payload.slot, self.i.payload.word)
        m.d.comb += [
            self.o.valid.eq(held & ~near.any()),
            self.o.payload.eq(beat),
            self.i.ready.eq(~held | self.o.valid),
            come.eq(Cat(valid & (one == row) for valid, one in zip(valids, rows, strict=True))),
        ]
        m.d.sync += near.eq(Mux(self.i.ready, come, near << 1))
        with m.If(self.i.ready):
            m.d.sync += [held.eq(self.i.valid), beat.eq(self.i.payload)]
        return m
