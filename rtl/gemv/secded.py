"""SECDED of bank data: check bits of a word, and a word corrected. The code is :mod:`golden.secded`'s."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.secded import CHECK_BITS, COLUMNS, DATA_BITS, MASKS


def check_bits(m, word, name: str):
    """Return the check bits of a word of at most 64 bits, with zeros above."""
    checks = [Signal(name=f"{name}_check_{n}") for n in range(CHECK_BITS)]
    for check, mask in zip(checks, MASKS, strict=True):
        m.d.comb += check.eq((word & Const(mask & ((1 << len(word)) - 1), len(word))).xor())
    return checks


class CorrectWord(wiring.Component):
    """Correct a flipped bit of a word, report two.

    Latency 1 cycle, a word per cycle. Area: 8 parities of 27 bits, 72 comparisons with a syndrome.

    Members
    -------
    data : In(64), check : In(8)
    o : Out(64), one_flip : Out(1), two_flips : Out(1)
        Registered. One bit was flipped, and ``o`` is right; two were, and ``o`` is as it came.
    """

    LATENCY = 1

    def __init__(self) -> None:
        super().__init__(
            {
                "data": In(DATA_BITS),
                "check": In(CHECK_BITS),
                "o": Out(DATA_BITS),
                "one_flip": Out(1),
                "two_flips": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        syndrome, flips = Signal(CHECK_BITS), Signal(DATA_BITS)
        of_check = Signal(CHECK_BITS)
        known = Signal()
        m.d.comb += [
            syndrome.eq(Cat(*check_bits(m, self.data, "data")) ^ self.check),
            flips.eq(Cat(*(syndrome == column for column in COLUMNS))),
            of_check.eq(Cat(*(syndrome == 1 << n for n in range(CHECK_BITS)))),
            known.eq(flips.any() | of_check.any()),
        ]
        m.d.sync += [
            self.o.eq(self.data ^ flips),
            self.one_flip.eq(known),
            self.two_flips.eq(syndrome.any() & ~known),
        ]
        return m
