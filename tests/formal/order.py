"""Order and conservation of a stream of beats, told by one of them that the solver chooses."""

from __future__ import annotations

from amaranth import Mux, Signal
from amaranth.hdl import Value

from tests.formal.model import Checker


class Followed:
    """Count the beats inside a block and follow one of them, any one.

    Attributes
    ----------
    inside : beats that went in and have not come out.
    here : the one that is followed is inside; ``before`` beats go before it; it carries ``saved``.
    leaves : it should come out with the beat that comes out in this cycle.
    """

    def __init__(self, checker: Checker, name: str, *, goes_in, value, comes_out, most: int) -> None:
        m = checker.m
        self.name, self.comes_out = name, comes_out
        self.inside = Signal(range(most + 2), name=f"{name}_inside")
        self.here = Signal(name=f"{name}_here")
        self.before = Signal(range(most + 2), name=f"{name}_before")
        self.saved = Signal(Value.cast(value).shape(), name=f"{name}_saved")
        choose = checker.free(f"{name}_choose", 1)
        self.chosen = checker.value(f"{name}_chosen", goes_in & choose & ~self.here)
        self.leaves = checker.value(f"{name}_leaves", comes_out & self.here & (self.before == 0))
        m.d.sync += self.inside.eq(self.inside + goes_in - comes_out)
        with m.If(self.chosen):
            m.d.sync += [self.here.eq(1), self.before.eq(self.inside - comes_out), self.saved.eq(value)]
        with m.Elif(self.here & comes_out):
            m.d.sync += [
                self.here.eq(self.before != 0),
                self.before.eq(Mux(self.before == 0, 0, self.before - 1)),
            ]

    def prove(self, checker: Checker, value, *, most: int) -> None:
        """Assert that it comes out in its turn as it went in, that nothing else does, and that all fit in."""
        checker.prove(f"{self.name}_in_order", ~self.leaves | (value == self.saved))
        checker.prove(f"{self.name}_from_nothing", ~self.comes_out | (self.inside != 0))
        checker.prove(f"{self.name}_room", (self.inside <= most) & (~self.here | (self.before < self.inside)))
