"""SECDED of bank data: check bits, words and bursts corrected. The code is :mod:`golden.secded`'s."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.secded import CHECK_BITS, COLUMNS, DATA_BITS, MASKS
from rtl.arith import delay, tree


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
        syndrome = Signal(CHECK_BITS)
        flips = Signal(DATA_BITS)
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


def correct_bursts(m, stored, *, units: int, burst_bits: int):
    """Add what corrects the bursts of all units, each with its check bits behind it.

    Return their data, :attr:`CorrectWord.LATENCY` later, and for each unit its words' ``one_flip`` and
    ``two_flips``.
    """
    words = burst_bits // DATA_BITS
    stored_bits = burst_bits + words * CHECK_BITS
    # (In one statement with the lists it would have the last one's name.)
    corrected = Signal(units * burst_bits)
    single, double = [], []
    for unit in range(units):
        burst = stored.word_select(unit, stored_bits)
        of_unit = []
        for number in range(words):
            word = m.submodules[f"word_{unit}_{number}"] = CorrectWord()
            m.d.comb += [
                word.data.eq(burst[number * DATA_BITS :]),
                word.check.eq(burst[burst_bits + CHECK_BITS * number :]),
                corrected.word_select(unit * words + number, DATA_BITS).eq(word.o),
            ]
            of_unit.append(word)
        single.append([word.one_flip for word in of_unit])
        double.append([word.two_flips for word in of_unit])
    return corrected, single, double


class CorrectBursts(wiring.Component):
    """Correct the bursts of a channel's units, and count the words in which bits were flipped.

    Latency of the data 1 cycle (:class:`CorrectWord`), of the counts 2; bursts of any units every cycle.

    Members
    -------
    en : In(units)
        The units whose bursts come in this cycle.
    data : In(units * stored bits of a burst)
        Of each unit its burst, its check bits behind it.
    o : Out(units * burst_bits)
    corrected, uncorrected : Out
        Words of these bursts with one flipped bit, with two.
    """

    LATENCY = CorrectWord.LATENCY

    def __init__(self, units: int, burst_bits: int) -> None:
        self.units, self.burst_bits = units, burst_bits
        words = burst_bits // DATA_BITS
        self.num_words = units * words
        super().__init__(
            {
                "en": In(units),
                "data": In(units * (burst_bits + words * CHECK_BITS)),
                "o": Out(units * burst_bits),
                "corrected": Out(range(self.num_words + 1)),
                "uncorrected": Out(range(self.num_words + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        corrected, single, double = correct_bursts(m, self.data, units=self.units, burst_bits=self.burst_bits)
        m.d.comb += self.o.eq(corrected)
        seen = delay(m, self.en, self.LATENCY, "seen", control=True)
        for count, flips in ((self.corrected, single), (self.uncorrected, double)):
            bits = [bit & seen[unit] for unit, of_unit in enumerate(flips) for bit in of_unit]
            m.d.sync += count.eq(tree(bits, lambda a, b: a + b))
        return m
