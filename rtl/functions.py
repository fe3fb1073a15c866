"""Elementary functions as pipelines of fixed latency, bit for bit those of :mod:`golden.functions`.

Tables are small ROMs (256 entries, 1024 of functions of bf16 numbers) read synchronously. Those with a
``pipeline`` can be deep (:class:`spec.design.Pipeline`); ``LATENCY`` is that of the short one.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.functions import (
    BF16_UNIT,
    CUBIC_BITS,
    EXP_ARG_BITS,
    EXP_BASE,
    EXP_DESCENT,
    FAR_EXPONENT,
    FIXED_MAX,
    FRACTION_BITS,
    GELU_CUBIC,
    GELU_LINEAR,
    LOG2E,
    LOG_BASE,
    LOG_DESCENT,
    MAX_SHIFT,
    NEAR_BITS,
    ONE,
    RATIO_BASE,
    RATIO_DESCENT,
    RATIO_OF_ONE,
    RECIPROCAL_BASE,
    RECIPROCAL_DESCENT,
    ROOT_BASE,
    ROOT_DESCENT,
    SCORE_BITS,
    SQRT2,
    SQUARE_BITS,
    TAIL_BASE,
    TAIL_DESCENT,
    TANH_BASE,
    TANH_DESCENT,
)
from rtl.arith import (
    BF16,
    PRODUCT_STAGES,
    Pipelined,
    delay,
    normalise,
    staged_product,
    staged_times,
    times_stages,
)
from spec.design import Pipeline

BASE_BITS = FRACTION_BITS + 1


class InterpolatedTable(Pipelined):
    """A falling function: ROM of base and descent, linear in between.

    The position's upper bits choose one of the table's segments (a power of two of them).
    Latency 2 cycles, deep 4 (ROM, its register, product, difference); one result per cycle.

    Members
    -------
    position : In(position_bits)
    o : Out(21)
    """

    LATENCY = 2
    DEEP_LATENCY = 4

    def __init__(
        self, base, descent, position_bits: int = FRACTION_BITS, pipeline: Pipeline = Pipeline.SHORT
    ) -> None:
        self.pipeline = pipeline
        self.base = [int(value) for value in base]
        self.descent = [int(value) for value in descent]
        super().__init__({"position": In(position_bits), "o": Out(BASE_BITS)})

    def elaborate(self, platform):
        m = Module()
        rows = [base | descent << BASE_BITS for base, descent in zip(self.base, self.descent, strict=True)]
        descent_bits = max(self.descent).bit_length()
        interpolation_bits = len(self.position) - (len(rows) - 1).bit_length()
        m.submodules.rom = rom = Memory(shape=unsigned(BASE_BITS + descent_bits), depth=len(rows), init=rows)
        port = rom.read_port()
        cut = int(self.deep)
        fraction = delay(m, self.position[:interpolation_bits], 1 + cut, "fraction")
        row = delay(m, port.data, cut, "row")
        base = row[:BASE_BITS]
        descent = row[BASE_BITS:]
        drop = Signal(descent_bits)
        out = Signal(BASE_BITS, reset_less=True)
        m.d.comb += [
            port.addr.eq(self.position[interpolation_bits:]),
            port.en.eq(1),
            drop.eq((descent * fraction) >> interpolation_bits),
            self.o.eq(out),
        ]
        m.d.sync += out.eq(delay(m, base, cut, "base") - delay(m, drop, cut, "drop"))
        return m


class ExpNegative(Pipelined):
    """exp(-d) as mantissa and shift. Latency 3 cycles, deep 8; one result per cycle.

    Reference: :func:`golden.functions.exp_negative`.

    Members
    -------
    d : In(32)
        20 fraction bits.
    mantissa : Out(21)
    shift : Out(5)
    """

    LATENCY = 1 + InterpolatedTable.LATENCY
    DEEP_LATENCY = times_stages(LOG2E) + 1 + InterpolatedTable.DEEP_LATENCY

    def __init__(self, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.pipeline = pipeline
        super().__init__({"d": In(32), "mantissa": Out(BASE_BITS), "shift": Out(5)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(EXP_BASE, EXP_DESCENT, pipeline=self.pipeline)
        scaled = Signal(EXP_ARG_BITS + len(Const(LOG2E)))
        power = Signal(len(scaled) - FRACTION_BITS, reset_less=True)
        s1_zero = Signal(reset_less=True)
        whole = power[FRACTION_BITS:]
        argument = self.d[:EXP_ARG_BITS]
        m.d.comb += [
            # The way to a multiplier is long: a deep one adds.
            scaled.eq(staged_times(m, argument, LOG2E, "scaled") if self.deep else argument * LOG2E),
            table.position.eq(power[:FRACTION_BITS]),
        ]
        large = delay(m, self.d[EXP_ARG_BITS:].any(), times_stages(LOG2E) * self.deep, "large")
        m.d.sync += [power.eq(scaled >> FRACTION_BITS), s1_zero.eq(large)]
        zero = Signal()
        m.d.comb += zero.eq(s1_zero | (whole > MAX_SHIFT))
        zero_q = delay(m, zero, table.latency, "zero")
        whole_q = delay(m, whole[:5], table.latency, "whole")
        m.d.comb += [
            self.mantissa.eq(Mux(zero_q, 0, table.o)),
            self.shift.eq(Mux(zero_q, 0, whole_q)),
        ]
        return m


class Reciprocal(Pipelined):
    """1/m for m in [1, 2]. Latency 2 cycles, deep 4; one result per cycle.

    Reference: :func:`golden.functions.reciprocal`.

    Members
    -------
    m : In(22)
        20 fraction bits.
    o : Out(21)
    two : Out(1), below_two : Out(21), deep
        Whether ``m`` is 2; what ``o`` is where it is not, from a register.
    """

    LATENCY = InterpolatedTable.LATENCY
    DEEP_LATENCY = InterpolatedTable.DEEP_LATENCY

    def __init__(self, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.pipeline = pipeline
        parts = {"two": Out(1), "below_two": Out(BASE_BITS)} if self.deep else {}
        super().__init__({"m": In(FRACTION_BITS + 2), "o": Out(BASE_BITS), **parts})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(
            RECIPROCAL_BASE, RECIPROCAL_DESCENT, pipeline=self.pipeline
        )
        two = delay(m, self.m[FRACTION_BITS + 1], self.latency, "two")
        m.d.comb += [
            table.position.eq(self.m[:FRACTION_BITS]),
            self.o.eq(Mux(two, ONE // 2, table.o)),
        ]
        if self.deep:
            m.d.comb += [self.two.eq(two), self.below_two.eq(table.o)]
        return m


class Sigmoid(Pipelined):
    """sigmoid(z) as mantissa and shift. Latency 7 cycles, deep 18; one result per cycle.

    Reference: :func:`golden.functions.sigmoid`.

    Members
    -------
    z : In(signed(32))
        20 fraction bits; not -2**31.
    mantissa : Out(21)
    shift : Out(5)
    """

    LATENCY = ExpNegative.LATENCY + 1 + Reciprocal.LATENCY + 1
    DEEP_LATENCY = 1 + ExpNegative.DEEP_LATENCY + 2 + Reciprocal.DEEP_LATENCY + PRODUCT_STAGES + 1

    def __init__(self, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.pipeline = pipeline
        super().__init__({"z": In(signed(32)), "mantissa": Out(BASE_BITS), "shift": Out(5)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.exp = exp = ExpNegative(self.pipeline)
        m.submodules.reciprocal = reciprocal = Reciprocal(self.pipeline)
        cut, product_stages = int(self.deep), PRODUCT_STAGES * self.deep
        negative = Signal()
        one_plus_t = Signal(FRACTION_BITS + 2, reset_less=True)
        m.d.comb += [
            negative.eq(self.z < 0),
            exp.d.eq(delay(m, Mux(negative, -self.z, self.z), cut, "magnitude")),
            reciprocal.m.eq(one_plus_t),
        ]
        m.d.sync += one_plus_t.eq(ONE + delay(m, exp.mantissa >> exp.shift, cut, "placed"))
        behind = cut + 1 + reciprocal.latency
        negative_q = delay(m, negative, cut + exp.latency + behind + product_stages, "negative")
        t = delay(m, exp.mantissa, behind, "t")
        shift = delay(m, exp.shift, behind + product_stages, "shift")
        out_mantissa = Signal(BASE_BITS, reset_less=True)
        out_shift = Signal(5, reset_less=True)
        factor = reciprocal.below_two if self.deep else reciprocal.o
        product = staged_product(m, t, factor, "product", deep=self.deep)
        inverse = delay(m, reciprocal.o, product_stages, "inverse")
        if self.deep:
            # Where t is 1, the product is the reciprocal, whose choice does not stand before the multiplier.
            negative_q = negative_q & ~delay(m, reciprocal.two, product_stages, "two")
        m.d.sync += [
            out_mantissa.eq(Mux(negative_q, product >> FRACTION_BITS, inverse)),
            out_shift.eq(Mux(negative_q, shift, 0)),
        ]
        m.d.comb += [self.mantissa.eq(out_mantissa), self.shift.eq(out_shift)]
        return m


class SqrtSoftplus(wiring.Component):
    """sqrt(log(1 + exp(z))). Latency 14 cycles, one result per cycle.

    Reference: :func:`golden.functions.sqrt_softplus`.

    Members
    -------
    z : In(signed(32))
        20 fraction bits; not -2**31.
    o : Out(36)
        30 fraction bits.
    """

    LATENCY = ExpNegative.LATENCY + 1 + InterpolatedTable.LATENCY + 3 + 1 + InterpolatedTable.LATENCY + 2
    BITS = 36
    """Bits of a result: below 64."""

    def __init__(self) -> None:
        super().__init__({"z": In(signed(32)), "o": Out(self.BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.exp = exp = ExpNegative()
        m.submodules.ratio = ratio = InterpolatedTable(RATIO_BASE, RATIO_DESCENT)
        m.submodules.root = root = InterpolatedTable(ROOT_BASE, ROOT_DESCENT)
        magnitude = Signal(31)
        m.d.comb += [magnitude.eq(Mux(self.z < 0, -self.z, self.z)), exp.d.eq(magnitude >> 1)]

        # s4: the square of exp(-abs(z) / 2); below 2**-20 from a shift of 11 on.
        s4_square = Signal(BASE_BITS, reset_less=True)
        square = Signal(BASE_BITS)
        m.d.sync += s4_square.eq((exp.mantissa * exp.mantissa) >> FRACTION_BITS)
        s4_shift = delay(m, exp.shift, 1, "s4_shift")
        m.d.comb += [
            square.eq(Mux(s4_shift > FRACTION_BITS // 2, 0, s4_square >> Cat(Const(0, 1), s4_shift[:4]))),
            ratio.position.eq(square[:FRACTION_BITS]),
        ]
        s6_one = delay(m, square[FRACTION_BITS], ratio.LATENCY, "s6_one")

        # s7: the result for z < 0, as mantissa and shift.
        s7_small = Signal(BASE_BITS, reset_less=True)
        s6_mantissa = delay(m, exp.mantissa, 1 + ratio.LATENCY, "s6_mantissa")
        m.d.sync += s7_small.eq((s6_mantissa * Mux(s6_one, RATIO_OF_ONE, ratio.o)) >> FRACTION_BITS)
        s7_shift = delay(m, s4_shift, ratio.LATENCY + 1, "s7_shift")

        # s9: what the root is of; from 0 on at least log(2).
        s7_absolute = Signal(BASE_BITS)
        s8_square = Signal(BASE_BITS, reset_less=True)
        s9_value = Signal(32, reset_less=True)
        s8_z = delay(m, Mux(self.z < 0, 0, magnitude), 8, "s8_z")
        m.d.comb += s7_absolute.eq(s7_small >> s7_shift)
        m.d.sync += [
            s8_square.eq((s7_absolute * s7_absolute) >> FRACTION_BITS),
            s9_value.eq(s8_z + s8_square),
        ]

        # s10: its mantissa and leading place; s12: the table's root.
        normal, zeros = normalise(m, s9_value, "value")
        s10_fraction = Signal(FRACTION_BITS, reset_less=True)
        s10_zeros = Signal(5, reset_less=True)
        m.d.sync += [s10_fraction.eq(normal[-(FRACTION_BITS + 1) : -1]), s10_zeros.eq(zeros)]
        m.d.comb += root.position.eq(s10_fraction)
        s12_zeros = delay(m, s10_zeros, root.LATENCY, "s12_zeros")

        # s13: of an odd exponent, times the root of 2; s14: moved to its place.
        turned = Signal(BASE_BITS)
        s13_root = Signal(BASE_BITS, reset_less=True)
        odd = (31 - FRACTION_BITS) & 1
        m.d.comb += turned.eq(2 * ONE - root.o)
        m.d.sync += s13_root.eq(Mux(s12_zeros[0] ^ odd, (turned * SQRT2) >> FRACTION_BITS, turned))
        s13_zeros = delay(m, s12_zeros, 1, "s13_zeros")
        # The exponent is 11 - zeros; a half of it, rounded down, from -1 (13 zeros at most) to 5.
        most = SCORE_BITS - FRACTION_BITS + (31 - FRACTION_BITS) // 2
        places = Signal(range(most + 1))
        out = Signal(self.BITS, reset_less=True)
        negative = delay(m, self.z < 0, 13, "negative")
        s13_small = delay(m, s7_small, 6, "s13_small")
        s13_shift = delay(m, s7_shift, 6, "s13_shift")
        m.d.comb += places.eq(most - ((s13_zeros + 1 - odd) >> 1))
        with m.If(negative):
            m.d.sync += out.eq((s13_small << (SCORE_BITS - FRACTION_BITS)) >> s13_shift)
        with m.Else():
            m.d.sync += out.eq(s13_root << places)
        m.d.comb += self.o.eq(out)
        return m


class Log2(wiring.Component):
    """log2 of an integer. Latency 4 cycles, one result per cycle; undefined for 0.

    Reference: :func:`golden.functions.log2_fixed`.

    Members
    -------
    value : In(bits)
    o : Out(26)
        20 fraction bits.
    """

    LATENCY = 1 + InterpolatedTable.LATENCY + 1
    BITS = FRACTION_BITS + 6

    def __init__(self, bits: int) -> None:
        self.bits = max(bits, FRACTION_BITS + 1)
        super().__init__({"value": In(self.bits), "o": Out(self.BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(LOG_BASE, LOG_DESCENT)
        normal, zeros = normalise(m, self.value, "value")
        fraction = Signal(FRACTION_BITS, reset_less=True)
        position = Signal(6, reset_less=True)
        m.d.sync += [
            fraction.eq(normal[-(FRACTION_BITS + 1) : -1]),
            position.eq(self.bits - 1 - zeros),
        ]
        m.d.comb += table.position.eq(fraction)
        out = Signal(self.BITS, reset_less=True)
        whole = Cat(Const(0, FRACTION_BITS), delay(m, position, table.LATENCY, "position"))
        m.d.sync += out.eq(whole + ONE - 2 * table.o)
        m.d.comb += self.o.eq(out)
        return m


class Exp2Negative(wiring.Component):
    """2**-power as mantissa and shift. Latency 2 cycles, one result per cycle.

    Reference: :func:`golden.functions.exp2_negative`.

    Members
    -------
    power : In(bits)
        20 fraction bits.
    mantissa : Out(21)
    shift : Out(5)
    """

    LATENCY = InterpolatedTable.LATENCY

    def __init__(self, bits: int) -> None:
        super().__init__({"power": In(bits), "mantissa": Out(BASE_BITS), "shift": Out(5)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(EXP_BASE, EXP_DESCENT)
        whole = self.power[FRACTION_BITS:]
        zero = delay(m, whole > MAX_SHIFT, table.LATENCY, "zero")
        shift = delay(m, whole[:5], table.LATENCY, "shift")
        m.d.comb += [
            table.position.eq(self.power[:FRACTION_BITS]),
            self.mantissa.eq(Mux(zero, 0, table.o)),
            self.shift.eq(Mux(zero, 0, shift)),
        ]
        return m


FIXED_STAGES = 2
"""Cycles of :func:`fixed_from_f32` in a deep pipeline: distances, the magnitude."""


def fixed_from_f32(m, value, name: str, *, deep: bool = False):
    """Return a combinational signed(32) with 20 fraction bits from an fp32, truncated and saturated.

    Reference: :func:`golden.functions.fixed_from_f32`; NaN becomes the most negative value.
    ``deep``: ``FIXED_STAGES`` cycles later.
    """
    if deep:
        return _fixed_in_stages(m, value, name)
    magnitude = Signal(31, name=f"{name}_magnitude")
    out = Signal(signed(32), name=f"{name}_fixed")
    # 24-bit significand with weight 2**(exponent - 150); 2**-20 is the last place kept.
    unity = 150 - FRACTION_BITS
    significand = Cat(value.fraction, Const(1, 1))
    nan = value.exponent.all() & value.fraction.any()
    with m.If(value.exponent >= unity + 8):
        m.d.comb += magnitude.eq(~Const(0, 31))
    with m.Elif(value.exponent >= unity):
        m.d.comb += magnitude.eq(significand << (value.exponent - unity)[:3])
    with m.Elif(value.exponent > unity - 24):
        m.d.comb += magnitude.eq(significand >> (unity - value.exponent)[:5])
    m.d.comb += out.eq(Mux(value.sign | nan, -magnitude, magnitude))
    return out


def _fixed_in_stages(m, value, name: str):
    """Return what :func:`fixed_from_f32` does, two cycles later."""
    unity = 150 - FRACTION_BITS
    nan = value.exponent.all() & value.fraction.any()
    significand = delay(m, Cat(value.fraction, Const(1, 1)), 1, f"{name}_significand")
    left = delay(m, (value.exponent - unity)[:3], 1, f"{name}_left")
    right = delay(m, (unity - value.exponent)[:5], 1, f"{name}_right")
    large = delay(m, value.exponent >= unity + 8, 1, f"{name}_large")
    above = delay(m, value.exponent >= unity, 1, f"{name}_above")
    present = delay(m, value.exponent > unity - 24, 1, f"{name}_present")
    magnitude = Signal(31, name=f"{name}_magnitude", reset_less=True)
    with m.If(large):
        m.d.sync += magnitude.eq(~Const(0, 31))
    with m.Elif(above):
        m.d.sync += magnitude.eq(significand << left)
    with m.Elif(present):
        m.d.sync += magnitude.eq(significand >> right)
    with m.Else():
        m.d.sync += magnitude.eq(0)
    negative = delay(m, value.sign | nan, 2, f"{name}_negative")
    out = Signal(signed(32), name=f"{name}_fixed")
    m.d.comb += out.eq(Mux(negative, -magnitude, magnitude))
    return out


class NormalCdf(wiring.Component):
    """The normal distribution's Phi(x) as mantissa and shift. Latency 6 cycles, one result per cycle.

    Reference: :func:`golden.functions.normal_cdf`.

    Members
    -------
    x : In(BF16)
    mantissa : Out(21)
    shift : Out(6)
    """

    LATENCY = 1 + ExpNegative.LATENCY + 2

    def __init__(self) -> None:
        super().__init__({"x": In(BF16), "mantissa": Out(BASE_BITS), "shift": Out(6)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.exp = exp = ExpNegative()
        m.submodules.table = table = InterpolatedTable(TAIL_BASE, TAIL_DESCENT, NEAR_BITS + FRACTION_BITS)
        exponent = self.x.exponent
        far = exponent >= FAR_EXPONENT
        significand = _significand(self.x)
        d = _placed(m, significand, exponent, 1, FRACTION_BITS, "d")
        half_square = _placed(m, significand * significand, exponent, 2, FRACTION_BITS - 1, "half_square")
        s1_d = delay(m, d, 1, "s1_d")
        s1_half_square = Signal(EXP_ARG_BITS + 1, reset_less=True)
        m.d.sync += s1_half_square.eq(Mux(far, 1 << EXP_ARG_BITS, half_square))
        m.d.comb += [
            exp.d.eq(s1_half_square),
            table.position.eq(delay(m, s1_d, exp.LATENCY - table.LATENCY, "s2_d")),
        ]
        tail = Signal(BASE_BITS, reset_less=True)
        m.d.sync += tail.eq((exp.mantissa * table.o) >> FRACTION_BITS)
        shift = Signal(6)
        negative = delay(m, self.x.sign, 1 + exp.LATENCY + 1, "negative")
        m.d.comb += shift.eq(delay(m, exp.shift, 1, "exp_shift") + 1)
        out_mantissa = Signal(BASE_BITS, reset_less=True)
        out_shift = Signal(6, reset_less=True)
        m.d.sync += [
            out_mantissa.eq(Mux(negative, tail, ONE - (tail >> shift))),
            out_shift.eq(Mux(negative, shift, 0)),
        ]
        m.d.comb += [self.mantissa.eq(out_mantissa), self.shift.eq(out_shift)]
        return m


class GeluTanhArgument(wiring.Component):
    """The argument of the sigmoid in GELU's approximation by tanh. Latency 3 cycles, one per cycle.

    Reference: :func:`golden.functions.gelu_tanh_argument`.

    Members
    -------
    x : In(BF16)
    z : Out(signed(32))
        20 fraction bits.
    """

    LATENCY = 3

    def __init__(self) -> None:
        super().__init__({"x": In(BF16), "z": Out(signed(32))})

    def elaborate(self, platform):
        m = Module()
        significand = _significand(self.x)
        square = _placed(m, significand * significand, self.x.exponent, 2, SQUARE_BITS, "square")
        s1_square = delay(m, square, 1, "s1_square")
        cubic = Signal(FRACTION_BITS + NEAR_BITS)
        s2_factor = Signal(FRACTION_BITS + NEAR_BITS, reset_less=True)
        m.d.comb += cubic.eq((s1_square * GELU_CUBIC) >> (SQUARE_BITS + CUBIC_BITS - FRACTION_BITS))
        m.d.sync += s2_factor.eq(GELU_LINEAR + cubic)
        x = BF16(delay(m, self.x.as_value(), 2, "x"))
        placed = _placed(m, _significand(x) * s2_factor, x.exponent, 1, 0, "z")
        magnitude = Mux(x.exponent >= FAR_EXPONENT, FIXED_MAX, placed)
        s3_z = Signal(signed(32), reset_less=True)
        m.d.sync += s3_z.eq(Mux(x.sign, -magnitude, magnitude))
        m.d.comb += self.z.eq(s3_z)
        return m


class TanhRatio(wiring.Component):
    """tanh(x) / x, or 1 from abs(x) = 8 on. Latency 3 cycles, one result per cycle.

    Reference: :func:`golden.functions.tanh_ratio`.

    Members
    -------
    x : In(BF16)
    o : Out(21)
    """

    LATENCY = 1 + InterpolatedTable.LATENCY

    def __init__(self) -> None:
        super().__init__({"x": In(BF16), "o": Out(BASE_BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(TANH_BASE, TANH_DESCENT, NEAR_BITS + FRACTION_BITS)
        d = _placed(m, _significand(self.x), self.x.exponent, 1, FRACTION_BITS, "d")
        far = delay(m, self.x.exponent >= FAR_EXPONENT, self.LATENCY, "far")
        m.d.comb += [
            table.position.eq(delay(m, d, 1, "s1_d")),
            self.o.eq(Mux(far, ONE, table.o)),
        ]
        return m


def _significand(x):
    return Mux(x.exponent == 0, 0, Cat(x.fraction, Const(1, 1)))


def _placed(m, value, exponent, power: int, fraction_bits: int, name: str):
    """Return a combinational ``value * 2**(power * (exponent - BF16_UNIT) + fraction_bits)``, truncated.

    For what depends on a bf16 number of this exponent, near zero: 0 from ``FAR_EXPONENT`` on.
    """
    most = power * (FAR_EXPONENT - 1 - BF16_UNIT) + fraction_bits
    left = Signal(signed(11), name=f"{name}_left")
    out = Signal(max(1, len(value) + most), name=name)
    m.d.comb += left.eq(power * (exponent - BF16_UNIT) + fraction_bits)
    with m.If(exponent < FAR_EXPONENT):
        with m.If(left < 0):
            right = Signal(range(len(value) + 1), name=f"{name}_right")
            m.d.comb += [
                right.eq(Mux(left < -len(value), len(value), -left)),
                out.eq(value >> right),
            ]
        if most >= 0:
            with m.Else():
                m.d.comb += out.eq(value << left[: max(1, most.bit_length())])
    return out
