"""Integer arithmetic of fixed latency: into int8, products with int8 or int4 weights, sums, back to bf16.

None of it stalls: results leave ``LATENCY`` cycles after the operands came, one set per cycle. The
arithmetic is that of :mod:`golden.int8`, bit for bit.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_BIAS
from golden.int8 import MANTISSA_BITS, SHIFT_BITS
from rtl.arith import (
    BF16,
    PRODUCT_STAGES,
    Accumulate,
    Burst,
    Pipelined,
    ceil_log2,
    delay,
    round_stages,
    round_to_bf16,
    staged_product,
    tree,
)
from rtl.dual import DualProducts
from spec.design import INT8_MAX, Format, Pipeline

INT8 = signed(8)
SCALE_WORD_BITS = 32


def scale_layout():
    """Return a factor ``mantissa * 2**shift``; the mantissa has its top bit set, or is 0."""
    return data.StructLayout({"mantissa": unsigned(MANTISSA_BITS), "shift": signed(SHIFT_BITS)})


def scale_of(word):
    """Return the scale in a 32-bit word, of a register or a scale tile: mantissa, then 16 bits of shift."""
    return Cat(word[:MANTISSA_BITS], word[MANTISSA_BITS : MANTISSA_BITS + SHIFT_BITS])


class Quantise(Pipelined):
    """Multiply a bf16 number with a scale and round it to int8. Latency 2 cycles, one per cycle.

    Deep 4: product, its place, shift, rounding. Area: an 8x16 multiplier.
    Reference: :func:`golden.int8.quantise`.

    Parameters
    ----------
    stalls : whether each stage goes on only when it is told to; of a short pipeline.

    Members
    -------
    en : In(2), with ``stalls``
        The first, the second stage takes what is before it.
    i : In(BF16)
    scale : In(scale_layout())
        The mantissa's top bit is set.
    o : Out(signed(8))
    """

    LATENCY = 2
    DEEP_LATENCY = 4
    LEAST, MOST = 15, 25
    """The product counts in units of 2**-right. It is at least 2**22, so that with right < 15 it is too
    large, and below 2**24, so that with right >= 25 it rounds to 0."""

    def __init__(self, *, stalls: bool = False, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.stalls = stalls
        self.pipeline = pipeline
        assert not (stalls and self.deep)
        en = {"en": In(self.LATENCY)} if stalls else {}
        super().__init__({**en, "i": In(BF16), "scale": In(scale_layout()), "o": Out(INT8)})

    def elaborate(self, platform):
        m = Module()
        if self.deep:
            self._elaborate_in_stages(m)
            return m
        value, scale = self.i, self.scale
        least, most = self.LEAST, self.MOST
        right = Signal(signed(12))
        top, zero = value.exponent.all(), value.exponent == 0
        s1_product = Signal(24, reset_less=True)
        s1_amount = Signal(range(most - least + 1), reset_less=True)
        s1_large = Signal(reset_less=True)
        s1_sign = Signal(reset_less=True)
        m.d.comb += right.eq((BF16_BIAS + 7) - value.exponent - scale.shift)
        nan = top & value.fraction.any()
        first = [
            s1_product.eq(Mux(zero | nan, 0, Cat(value.fraction, Const(1, 1)) * scale.mantissa)),
            s1_amount.eq(Mux(right > most, most - least, right - least)),
            s1_large.eq(~nan & ~zero & (top | (right < least))),
            s1_sign.eq(value.sign),
        ]
        shifted = Signal(24 + most - least)
        rounded = Signal(10)
        magnitude = Signal(7)
        kept, half, rest = shifted[most:], shifted[most - 1], shifted[: most - 1].any()
        out = Signal(INT8, reset_less=True)
        m.d.comb += [
            shifted.eq(s1_product << (most - least - s1_amount)[: len(s1_amount)]),
            rounded.eq(kept + (half & (rest | kept[0]))),
            magnitude.eq(Mux(s1_large | (rounded > INT8_MAX), INT8_MAX, rounded)),
            self.o.eq(out),
        ]
        second = out.eq(Mux(s1_sign, -magnitude, magnitude))
        if not self.stalls:
            m.d.sync += [first, second]
            return m
        with m.If(self.en[0]):
            m.d.sync += first
        with m.If(self.en[1]):
            m.d.sync += second
        return m

    def _elaborate_in_stages(self, m) -> None:
        value, scale = self.i, self.scale
        least, most = self.LEAST, self.MOST
        # s1: the product, and where its last place is.
        top, zero = value.exponent.all(), value.exponent == 0
        nan = top & value.fraction.any()
        right = Signal(signed(12), name="s1_right", reset_less=True)
        m.d.sync += right.eq((BF16_BIAS + 7) - value.exponent - scale.shift)
        product = delay(m, Cat(value.fraction, Const(1, 1)) * scale.mantissa, 1, "s1_product")
        empty = delay(m, zero | nan, 1, "s1_empty")
        infinite = delay(m, top & ~nan, 1, "s1_infinite")

        # s2, s3: moved there, as far as it matters.
        amount = Signal(range(most - least + 1))
        m.d.comb += amount.eq(Mux(right < least, 0, Mux(right > most, most - least, right - least)))
        product = delay(m, Mux(empty, 0, product), 1, "s2_product")
        amount = delay(m, (most - least) - amount, 1, "s2_amount")
        large = delay(m, ~empty & (infinite | (right < least)), 2, "s3_large")
        shifted = delay(m, (product << amount[: (most - least).bit_length()])[: 24 + most - least], 1, "s3")

        # s4: rounded, saturated.
        kept, half, rest = shifted[most:], shifted[most - 1], shifted[: most - 1].any()
        rounded = Signal(10)
        magnitude = Signal(7)
        out = Signal(INT8, reset_less=True)
        m.d.comb += [
            rounded.eq(kept + (half & (rest | kept[0]))),
            magnitude.eq(Mux(large | (rounded > INT8_MAX), INT8_MAX, rounded)),
            self.o.eq(out),
        ]
        m.d.sync += out.eq(Mux(delay(m, value.sign, 3, "sign"), -magnitude, magnitude))


def product_bits(number_format: Format) -> int:
    """Return the bits of any int8 number's product with any weight: 16 in ``int8``, 12 in ``w4a8``."""
    return INT8.width + number_format.bits


class IntegerBurst(wiring.Component):
    """Sum ``cols`` products with int8. Latency 5 cycles, as :class:`rtl.arith.Burst`; one burst per cycle.

    Area: ``cols`` multipliers, 8x8 in ``int8``, 8x4 in ``w4a8``, and an adder tree.

    Members
    -------
    x : In(ArrayLayout(signed(8), cols))
    w : In(ArrayLayout(signed(number_format.bits), cols))
    o : Out(signed(product_bits(number_format) + ceil_log2(cols)))
    """

    LATENCY = Burst.LATENCY

    def __init__(self, cols: int, number_format: Format) -> None:
        self.cols = cols
        self.bits = product_bits(number_format)
        super().__init__(
            {
                "x": In(data.ArrayLayout(INT8, cols)),
                "w": In(data.ArrayLayout(signed(number_format.bits), cols)),
                "o": Out(signed(self.bits + ceil_log2(cols))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        values = [
            Signal(signed(self.bits), name=f"s1_product_{n}", reset_less=True) for n in range(self.cols)
        ]
        for n, product in enumerate(values):
            m.d.sync += product.eq(self.x[n] * self.w[n])
        m.d.comb += self.o.eq(sum_of_products(m, values, ""))
        return m


def sum_of_products(m, values, suffix: str):
    """Return the sum of a burst's products, :attr:`IntegerBurst.LATENCY` - 1 cycles later."""
    # Four at a time, until one is left; what stages remain only wait.
    for stage in range(2, IntegerBurst.LATENCY + 1):
        groups = [values[n : n + 4] for n in range(0, len(values), 4)]
        sums = []
        for n, group in enumerate(groups):
            total = tree(group, lambda a, b: a + b)
            sums.append(Signal(signed(len(total)), name=f"s{stage}_sum{suffix}_{n}", reset_less=True))
            m.d.sync += sums[n].eq(total)
        values = sums
    [total] = values
    return total


class DualMultiplier(DualProducts):
    """Multiply an int8 number with the int8 weights of two rows, in one multiplier as wide as a DSP48's.

    Every product is exact, those of -128 too. Latency and replacement as of :class:`rtl.dual.DualProducts`.
    Area: a 25x8 multiplier, two additions: of a 7-series FPGA one DSP48E1.

    Members
    -------
    x : In(signed(8))
    w_0, w_1 : In(signed(8))
    p_0, p_1 : Out(signed(16))
    """

    VERILOG = "eb_dual_multiplier"
    FORMAT = Format.INT8

    def __init__(self) -> None:
        # -128 * -128 fits, with its sign.
        self.bits = product_bits(self.FORMAT)
        super().__init__(INT8, signed(self.FORMAT.bits), signed(self.bits))

    def twin(self, m) -> None:
        """Make both products of one multiplication."""
        bits = self.bits
        weights = Signal(signed(bits + self.FORMAT.bits + 1))
        total = Signal(signed(2 * bits), reset_less=True)
        m.d.comb += weights.eq((self.w_1 << bits) + self.w_0)
        # Half of what the lower product can be is added, so that it borrows nothing from the upper one.
        m.d.sync += total.eq(weights * self.x + (1 << (bits - 1)))
        m.d.comb += [self.p_0.eq(Cat(total[: bits - 1], ~total[bits - 1])), self.p_1.eq(total[bits:])]


class DualInt4Multiplier(DualMultiplier):
    """The same with int4 weights, in one multiplier as wide as an ECP5's.

    In the Verilog what the lower product borrows is given back behind the register, so that before it is the
    multiplier alone.
    Area: a 17x8 multiplier, two increments: of an ECP5 one MULT18X18D, of a 7-series FPGA one DSP48E1.

    Members
    -------
    x : In(signed(8))
    w_0, w_1 : In(signed(4))
    p_0, p_1 : Out(signed(12))
    """

    VERILOG = "eb_dual_int4_multiplier"
    FORMAT = Format.W4A8


class DualIntegerBurst(wiring.Component):
    """Sum ``cols`` products with int8 of each of two rows. Latency 5 cycles, as :class:`IntegerBurst`.

    Area: ``cols`` multipliers of two rows' products (:class:`DualMultiplier`, of int4 weights
    :class:`DualInt4Multiplier`), and two adder trees.

    Members
    -------
    x : In(ArrayLayout(signed(8), cols))
    w_0, w_1 : In(ArrayLayout(signed(number_format.bits), cols))
    o_0, o_1 : Out(signed(product_bits(number_format) + ceil_log2(cols)))
    """

    LATENCY = IntegerBurst.LATENCY

    def __init__(self, cols: int, number_format: Format) -> None:
        self.cols = cols
        self.format = number_format
        weights = In(data.ArrayLayout(signed(number_format.bits), cols))
        total = Out(signed(product_bits(number_format) + ceil_log2(cols)))
        vector = In(data.ArrayLayout(INT8, cols))
        super().__init__({"x": vector, "w_0": weights, "w_1": weights, "o_0": total, "o_1": total})

    def elaborate(self, platform):
        m = Module()
        assert DualMultiplier.LATENCY == 1
        products = [[], []]
        kind = DualMultiplier if self.format is Format.INT8 else DualInt4Multiplier
        for n in range(self.cols):
            m.submodules[f"multiplier_{n}"] = multiplier = kind()
            m.d.comb += [
                multiplier.x.eq(self.x[n]),
                multiplier.w_0.eq(self.w_0[n]),
                multiplier.w_1.eq(self.w_1[n]),
            ]
            products[0].append(multiplier.p_0)
            products[1].append(multiplier.p_1)
        m.d.comb += [
            self.o_0.eq(sum_of_products(m, products[0], "_0")),
            self.o_1.eq(sum_of_products(m, products[1], "_1")),
        ]
        return m


class IntegerAccumulate(Pipelined):
    """Add to an int32 accumulator; for the last addition also scale and round the sum to bf16.

    Latency 3 cycles, as :class:`rtl.arith.Accumulate`; one per cycle. Deep 9: sum and magnitude, product 2,
    the sum of its parts, leading zeros 2, their removal, what lies below, rounding. Area: a 32x16 multiplier.
    Reference: :func:`golden.int8.dequantise`.

    Members
    -------
    acc, addend : In(signed(32))
    finish : In(1), scale : In(scale_layout())
        The sum (33 bits) becomes bf16.
    o : Out(32)
        The sum, which must fit 32 bits; or its bf16 pattern as an fp32 one.
    """

    LATENCY = Accumulate.LATENCY
    DEEP_LATENCY = 1 + PRODUCT_STAGES + 1 + round_stages(32 + MANTISSA_BITS) + 1

    def __init__(self, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.pipeline = pipeline
        super().__init__(
            {
                "acc": In(signed(32)),
                "addend": In(signed(32)),
                "finish": In(1),
                "scale": In(scale_layout()),
                "o": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # s1: the sum, and its magnitude.
        total = Signal(signed(33))
        s1_total = Signal(signed(33), reset_less=True)
        s1_magnitude = Signal(32, reset_less=True)
        m.d.comb += total.eq(self.acc + self.addend)
        m.d.sync += [s1_total.eq(total), s1_magnitude.eq(Mux(total < 0, -total, total))]
        s1_scale = scale_layout()(delay(m, self.scale.as_value(), 1, "s1_scale"))
        s1_finish = delay(m, self.finish, 1, "s1_finish")

        # s2: times the mantissa.
        s2_product = Signal(32 + MANTISSA_BITS, reset_less=True)
        m.d.sync += s2_product.eq(
            staged_product(m, s1_magnitude, s1_scale.mantissa, "product", deep=self.deep)
        )
        cycles = 1 + PRODUCT_STAGES * self.deep
        s2_shift = delay(m, s1_scale.shift, cycles, "s2_shift")
        s2_total = delay(m, s1_total, cycles, "s2_total")
        s2_finish = delay(m, s1_finish, cycles, "s2_finish")

        # s3: normalised and rounded.
        rounded = round_to_bf16(m, s2_total < 0, s2_product, s2_shift, "s2", deep=self.deep)
        if self.deep:
            cycles = round_stages(len(s2_product))
            s2_total, s2_finish = (
                delay(m, s2_total, cycles, "s3_total"),
                delay(m, s2_finish, cycles, "s3_finish"),
            )
        out = Signal(32, reset_less=True)
        m.d.sync += out.eq(Mux(s2_finish, Cat(Const(0, 16), rounded), s2_total))
        m.d.comb += self.o.eq(out)
        return m
