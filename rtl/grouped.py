"""Arithmetic of weights stored in few bits with a scale for each group: decoding, scaling.

Bit for bit that of :mod:`golden.grouped`. Nothing stalls.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_NAN, F32_NAN
from golden.stored_formats import E8M0_NAN
from rtl.arith import (
    BF16,
    F32,
    PRODUCT_STAGES,
    Accumulate,
    Burst,
    Pipelined,
    burst_layout,
    ceil_log2,
    delay,
    significand_operand,
    staged_product,
)
from rtl.dual import DualProducts
from spec.design import Format, Pipeline

SIGNIFICAND_BITS = {Format.FP8: 24, Format.MXFP4: 1, Format.INT4: 8}
"""Of a scale, the top one included."""
ELEMENT_BITS = 4
"""Of the significand of any element, the top one included: e4m3 has four, int4 three, e2m1 two."""


class DecodeElements(wiring.Component):
    """Turn a row's stored elements into bf16 patterns. Combinational.

    Reference: :func:`golden.grouped.element_table`.

    Members
    -------
    i : In(cols * bits), the first element lowest.
    o : Out(cols * 16)
    """

    def __init__(self, number_format: Format, cols: int) -> None:
        self.format = number_format
        self.cols = cols
        super().__init__({"i": In(cols * number_format.bits), "o": Out(cols * 16)})

    def elaborate(self, platform):
        m = Module()
        decode = {Format.FP8: _e4m3, Format.MXFP4: _e2m1, Format.INT4: _int4}[self.format]
        for n in range(self.cols):
            code = Signal(self.format.bits, name=f"code_{n}")
            m.d.comb += [
                code.eq(self.i.word_select(n, self.format.bits)),
                self.o.word_select(n, 16).eq(decode(code)),
            ]
        return m


def _e4m3(code):
    fraction, exponent, sign = code[:3], code[3:7], code[7]
    # Subnormals are fraction * 2**-9.
    small = Mux(
        fraction[2],
        Cat(Const(0, 5), fraction[:2], Const(120, 8)),
        Mux(
            fraction[1],
            Cat(Const(0, 6), fraction[0], Const(119, 8)),
            Mux(fraction[0], Cat(Const(0, 7), Const(118, 8)), 0),
        ),
    )
    normal = Cat(Const(0, 4), fraction, (exponent + 120)[:8])
    number = Cat(Mux(exponent == 0, small, normal)[:15], sign)
    return Mux(code[:7].all(), BF16_NAN, number)


def _e2m1(code):
    fraction, exponent, sign = code[0], code[1:3], code[3]
    small = Mux(fraction, Cat(Const(0, 7), Const(126, 8)), 0)
    normal = Cat(Const(0, 6), fraction, (exponent + 126)[:8])
    return Cat(Mux(exponent == 0, small, normal)[:15], sign)


def _int4(code):
    sign = code[3]
    magnitude = Mux(sign, -code, code)[:4]
    number = Mux(
        magnitude[3],
        Cat(Const(0, 7), Const(130, 8)),
        Mux(
            magnitude[2],
            Cat(Const(0, 5), magnitude[:2], Const(129, 8)),
            Mux(
                magnitude[1],
                Cat(Const(0, 6), magnitude[0], Const(128, 8)),
                Mux(magnitude[0], Cat(Const(0, 7), Const(127, 8)), 0),
            ),
        ),
    )
    return Cat(number[:15], sign)


class DualSignificandMultiplier(DualProducts):
    """Multiply a bf16 significand with those of two rows' weights, in one multiplier as wide as an ECP5's.

    Latency and replacement as of :class:`rtl.dual.DualProducts`. Area: a 16x8 multiplier: of an ECP5 one
    MULT18X18D, of a 7-series FPGA one DSP48E1.

    Members
    -------
    x : In(8)
    w_0, w_1 : In(4)
        The top bits of a stored element's significand: the others are 0 (:data:`ELEMENT_BITS`).
    p_0, p_1 : Out(12)
    """

    VERILOG = "eb_dual_significand_multiplier"
    SHIFT = 8 + ELEMENT_BITS
    """Bits of the lower product, which is never below 0: nothing is borrowed from the upper one."""

    def __init__(self) -> None:
        super().__init__(8, ELEMENT_BITS, self.SHIFT)

    def twin(self, m) -> None:
        """Make both products of one multiplication."""
        weights = Signal(self.SHIFT + ELEMENT_BITS)
        product = Signal(2 * self.SHIFT, reset_less=True)
        m.d.comb += weights.eq((self.w_1 << self.SHIFT) + self.w_0)
        m.d.sync += product.eq(weights * self.x)
        m.d.comb += [self.p_0.eq(product[: self.SHIFT]), self.p_1.eq(product[self.SHIFT :])]


class DualBurst(Pipelined):
    """Sum ``cols`` products of bf16 numbers with stored elements of each of two rows.

    Latency and results are those of two :class:`rtl.arith.Burst`, short or deep. Area: ``cols`` multipliers
    of two rows' products (:class:`DualSignificandMultiplier`), all else of two bursts.

    Members
    -------
    x : In(ArrayLayout(BF16, cols))
    w_0, w_1 : In(ArrayLayout(BF16, cols))
        Decoded elements (:class:`DecodeElements`).
    o_0, o_1 : Out(burst_layout(cols))
    """

    def __init__(self, cols: int, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.cols = cols
        self.pipeline = pipeline
        vector, total = In(data.ArrayLayout(BF16, cols)), Out(burst_layout(cols))
        super().__init__({**dict.fromkeys(("x", "w_0", "w_1"), vector), "o_0": total, "o_1": total})

    @property
    def latency(self) -> int:
        """Cycles from products to their sums."""
        return Burst.latency_of(self.cols, self.pipeline)

    def elaborate(self, platform):
        m = Module()
        assert DualSignificandMultiplier.LATENCY == 1
        weights, sums = (self.w_0, self.w_1), (self.o_0, self.o_1)
        bursts = [Burst(self.cols, self.pipeline, given=True) for _ in weights]
        for row, burst in enumerate(bursts):
            m.submodules[f"row_{row}"] = burst
            m.d.comb += [burst.x.eq(self.x), burst.w.eq(weights[row]), sums[row].eq(burst.o)]
        for n in range(self.cols):
            m.submodules[f"multiplier_{n}"] = multiplier = DualSignificandMultiplier()
            m.d.comb += multiplier.x.eq(significand_operand(m, self.x[n], f"s0_x_{n}", deep=self.deep))
            for row, burst in enumerate(bursts):
                weight = significand_operand(m, weights[row][n], f"s0_w_{row}_{n}", deep=self.deep)
                product = getattr(multiplier, f"p_{row}")
                m.d.comb += [
                    getattr(multiplier, f"w_{row}").eq(weight[-ELEMENT_BITS:]),
                    burst.p[n].eq(product << (8 - ELEMENT_BITS)),
                ]
        return m


def factor_layout(number_format: Format):
    """Return a scale as a factor: ``(-1)**sign * significand * 2**(exponent - 127 - bits + 1)``.

    The significand's top bit is set but for zero; NaN and infinity have their own bits.
    """
    return data.StructLayout(
        {
            "significand": unsigned(SIGNIFICAND_BITS[number_format]),
            "exponent": unsigned(8),
            "sign": unsigned(1),
            "inf": unsigned(1),
            "nan": unsigned(1),
        }
    )


def factor_of(m, number_format: Format, pattern, name: str):
    """Return the factor of a scale's pattern, combinational.

    Reference: :func:`golden.grouped.scale_values`.
    """
    factor = Signal(factor_layout(number_format), name=name)
    if number_format is Format.MXFP4:
        # No sign, no fraction, and no zero: 0 stands for 2**-127.
        m.d.comb += [
            factor.significand.eq(1),
            factor.exponent.eq(pattern),
            factor.nan.eq(pattern == E8M0_NAN),
        ]
        return factor
    bits = SIGNIFICAND_BITS[number_format] - 1
    fraction, exponent, sign = pattern[:bits], pattern[bits : bits + 8], pattern[bits + 8]
    top = exponent.all()
    m.d.comb += [
        factor.significand.eq(Mux(exponent == 0, 0, Cat(fraction, Const(1, 1)))),
        factor.exponent.eq(exponent),
        factor.sign.eq(sign),
        factor.inf.eq(top & ~fraction.any()),
        factor.nan.eq(top & fraction.any()),
    ]
    return factor


class ScaleSum(Pipelined):
    """Multiply a group's fp32 sum with its scale, one rounding, to nearest even. One per cycle.

    Latency 2 cycles, in a deep pipeline 5: operands, product 2, its parts' sum, rounding. The result is what
    :class:`rtl.arith.Accumulate` adds: an fp32 number as a burst's sum.
    Area: a 24-bit multiplier by the significand of a scale, which in ``mxfp4`` is 1.
    Reference: :func:`golden.grouped.scaled`.

    Members
    -------
    i : In(F32)
        No subnormals.
    factor : In(factor_layout(number_format))
    o : Out(burst_layout(1))
    """

    LATENCY = 2
    DEEP_LATENCY = 1 + PRODUCT_STAGES + 2

    def __init__(self, number_format: Format, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.format = number_format
        self.pipeline = pipeline
        super().__init__(
            {"i": In(F32), "factor": In(factor_layout(number_format)), "o": Out(burst_layout(1))}
        )

    def elaborate(self, platform):
        m = Module()
        value, factor = self.i, self.factor
        bits = SIGNIFICAND_BITS[self.format]
        # s1: the product, with its leading one in one of the two top places.
        top, zero = value.exponent.all(), value.exponent == 0
        value_nan, value_inf = top & value.fraction.any(), top & ~value.fraction.any()
        factor_zero = ~factor.significand[-1]
        s1_product = Signal(24 + bits, reset_less=True)
        s1_exponent = Signal(signed(11), reset_less=True)
        s1_sign = Signal(reset_less=True)
        s1_nan = Signal(reset_less=True)
        s1_inf = Signal(reset_less=True)
        wait = self.latency - 2
        significand = Mux(zero, 0, Cat(value.fraction, Const(1, 1)))
        operands = [
            delay(m, one, int(self.deep), f"s0_{name}")
            for name, one in (("significand", significand), ("scale", factor.significand))
        ]
        tags = (
            (s1_exponent, value.exponent + factor.exponent - 127),
            (s1_sign, value.sign ^ factor.sign),
            (s1_nan, value_nan | factor.nan | (value_inf & factor_zero) | (factor.inf & zero)),
            (s1_inf, value_inf | factor.inf),
        )
        m.d.sync += [
            s1_product.eq(staged_product(m, *operands, "product", deep=self.deep)),
            *(tag.eq(delay(m, value, wait, f"{tag.name}_wait")) for tag, value in tags),
        ]

        # s2: normalised and rounded. Below the normal range before rounding it is zero.
        high = s1_product[-1]
        exponent = Signal(signed(11))
        normal = Signal(24 + bits)
        kept = Signal(25)
        exponent_out = Signal(signed(11))
        half, rest = normal[-25], normal[:-25].any()
        m.d.comb += [
            exponent.eq(s1_exponent + high),
            normal.eq(Mux(high, s1_product, s1_product << 1)),
            kept.eq(normal[-24:] + (half & (rest | normal[-24]))),
            exponent_out.eq(exponent + kept[24]),
        ]
        out = Signal(burst_layout(1), reset_less=True)
        empty = ~normal[-1] | (exponent < 1)
        m.d.sync += [
            out.significand.eq(Mux(empty, 0, Mux(kept[24], 1 << 23, kept[:24]))),
            out.exponent.eq(exponent_out),
            out.sign.eq(s1_sign),
            out.nan.eq(s1_nan),
            out.inf.eq(s1_inf | (~empty & (exponent_out >= 255))),
        ]
        m.d.comb += self.o.eq(out)
        return m


class SumInPairs(wiring.Component):
    """Add fp32 numbers in pairs, the sums in pairs, and so on, with one rounding each. One set per cycle.

    Numbers are given, and the sum is, as bursts' sums. Latency 3 cycles for each doubling of ``count``, 7
    in a deep pipeline. Area: ``count`` - 1 adders. Reference: :meth:`golden.grouped.MatrixGrouped.product`.

    Members
    -------
    i : In(data.ArrayLayout(burst_layout(1), count))
        Each has at most 24 significant bits; ``count`` is a power of two.
    o : Out(burst_layout(1))
    """

    def __init__(self, count: int, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.count = count
        self.pipeline = pipeline
        self.latency = self.latency_of(count, pipeline)
        super().__init__({"i": In(data.ArrayLayout(burst_layout(1), count)), "o": Out(burst_layout(1))})

    @staticmethod
    def latency_of(count: int, pipeline: Pipeline = Pipeline.SHORT) -> int:
        """Return the latency in cycles."""
        return ceil_log2(count) * Accumulate.latency_of(pipeline)

    def elaborate(self, platform):
        m = Module()
        numbers = [self.i[number] for number in range(self.count)]
        while len(numbers) > 1:
            sums = []
            for number in range(len(numbers) // 2):
                name = f"{len(numbers)}_{number}"
                pair = m.submodules[f"pair_{name}"] = Accumulate(1, self.pipeline)
                one, other = numbers[2 * number : 2 * number + 2]
                m.d.comb += [pair.acc.eq(f32_of_sum(one)), pair.addend.eq(other)]
                sums.append(sum_of_f32(m, pair.o, f"sum_{name}"))
            numbers = sums
        m.d.comb += self.o.eq(numbers[0])
        return m


def f32_of_bf16(pattern):
    """Return the fp32 pattern of a bf16 one; subnormals are zero, NaN is the one NaN."""
    exponent, fraction = pattern[7:15], pattern[:7]
    nan = exponent.all() & fraction.any()
    return Mux(nan, F32_NAN, Mux(exponent == 0, 0, Cat(Const(0, 16), pattern)))


def f32_of_sum(value):
    """Return the fp32 pattern of an fp32 number given as a sum (``burst_layout(1)``), combinational."""
    infinite = Cat(Const(0, 23), Const(0xFF, 8), value.sign)
    number = Cat(value.significand[:23], value.exponent[:8], value.sign)
    finite = Mux(value.significand[23], number, 0)
    return Mux(value.nan, F32_NAN, Mux(value.inf, infinite, finite))


def sum_of_f32(m, value, name: str):
    """Return an fp32 number as a sum (``burst_layout(1)``), combinational."""
    out = Signal(burst_layout(1), name=name)
    top, zero = value.exponent.all(), value.exponent == 0
    m.d.comb += [
        out.significand.eq(Mux(zero, 0, Cat(value.fraction, Const(1, 1)))),
        out.exponent.eq(value.exponent),
        out.sign.eq(value.sign),
        out.inf.eq(top & ~value.fraction.any()),
        out.nan.eq(top & value.fraction.any()),
    ]
    return out
