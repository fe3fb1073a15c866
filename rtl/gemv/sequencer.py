"""The loops of a command program, unrolled."""

from amaranth import Array, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.gemv.layouts import word_layout
from spec.program import LOOP_DEPTH, WORD_BITS, Op

PLACE_BITS = 16
"""Of a word's place in a program."""


class Sequencer(wiring.Component):
    """Read a program from its first word on and send all words but those of loops, STOP the last.

    A word takes two cycles, one that it waits in the register included. Reset returns to the first word.

    Members
    -------
    start : In(1)
        Read from now on; ignored once reading.
    prog_en : Out(1), prog_addr : Out(PLACE_BITS), prog_data : In(WORD_BITS)
        The program's memory; data one cycle later.
    o : Out(stream.Signature(WORD_BITS))
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "start": In(1),
                "prog_en": Out(1),
                "prog_addr": Out(PLACE_BITS),
                "prog_data": In(WORD_BITS),
                "o": Out(stream.Signature(unsigned(WORD_BITS))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        running = Signal()
        fetched = Signal()
        stopped = Signal()
        place = Signal(PLACE_BITS)
        depth = Signal(range(LOOP_DEPTH + 1))
        starts = Array(Signal(PLACE_BITS, name=f"loop_start_{n}") for n in range(LOOP_DEPTH))
        counts = Array(
            Signal(word_layout(Op.LOOP)["count"].shape, name=f"loop_count_{n}") for n in range(LOOP_DEPTH)
        )
        inner = Signal(range(LOOP_DEPTH))
        op = Signal(4)
        loop = data.View(word_layout(Op.LOOP), self.prog_data)
        waiting = Signal(WORD_BITS)
        m.d.comb += [
            op.eq(self.prog_data),
            inner.eq(depth - 1),
            self.o.payload.eq(waiting),
            self.prog_addr.eq(place),
            self.prog_en.eq(running & ~fetched & ~stopped & (~self.o.valid | self.o.ready)),
        ]
        with m.If(self.start):
            m.d.sync += running.eq(1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        m.d.sync += fetched.eq(self.prog_en)
        with m.If(self.prog_en):
            m.d.sync += place.eq(place + 1)
        with m.If(fetched):
            with m.Switch(op):
                with m.Case(Op.LOOP):
                    m.d.sync += [
                        depth.eq(depth + 1),
                        starts[depth[: len(inner)]].eq(place),
                        counts[depth[: len(inner)]].eq(loop.count - 1),
                    ]
                with m.Case(Op.END):
                    with m.If(counts[inner] == 0):
                        m.d.sync += depth.eq(depth - 1)
                    with m.Else():
                        m.d.sync += [counts[inner].eq(counts[inner] - 1), place.eq(starts[inner])]
                with m.Default():
                    m.d.sync += [waiting.eq(self.prog_data), self.o.valid.eq(1), stopped.eq(op == Op.STOP)]
        return m
