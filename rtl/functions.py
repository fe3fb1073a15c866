"""Elementary functions as pipelines of fixed latency, bit for bit those of :mod:`golden.functions`.

Tables are small ROMs (256 entries) read synchronously.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.functions import (
    EXP_ARG_BITS,
    EXP_BASE,
    EXP_DESCENT,
    FRACTION_BITS,
    INTERPOLATION_BITS,
    LOG2E,
    MAX_SHIFT,
    ONE,
    RECIPROCAL_BASE,
    RECIPROCAL_DESCENT,
    TABLE_BITS,
)
from rtl.arith import delay

BASE_BITS = FRACTION_BITS + 1
DESCENT_BITS = INTERPOLATION_BITS


class InterpolatedTable(wiring.Component):
    """A falling function on a 20-bit argument: ROM of base and descent, linear in between.

    Latency 2 cycles, one result per cycle.

    Members
    -------
    position : In(20)
    o : Out(21)
    """

    LATENCY = 2

    def __init__(self, base, descent) -> None:
        self.base = [int(value) for value in base]
        self.descent = [int(value) for value in descent]
        super().__init__({"position": In(FRACTION_BITS), "o": Out(BASE_BITS)})

    def elaborate(self, platform):
        m = Module()
        rows = [base | descent << BASE_BITS for base, descent in zip(self.base, self.descent, strict=True)]
        m.submodules.rom = rom = Memory(
            shape=unsigned(BASE_BITS + DESCENT_BITS), depth=1 << TABLE_BITS, init=rows
        )
        port = rom.read_port()
        fraction = delay(m, self.position[:INTERPOLATION_BITS], 1, "fraction")
        base = port.data[:BASE_BITS]
        descent = port.data[BASE_BITS:]
        drop = Signal(DESCENT_BITS)
        out = Signal(BASE_BITS, reset_less=True)
        m.d.comb += [
            port.addr.eq(self.position[INTERPOLATION_BITS:]),
            port.en.eq(1),
            drop.eq((descent * fraction) >> INTERPOLATION_BITS),
            self.o.eq(out),
        ]
        m.d.sync += out.eq(base - drop)
        return m


class ExpNegative(wiring.Component):
    """exp(-d) as mantissa and shift. Latency 3 cycles, one result per cycle.

    Reference: :func:`golden.functions.exp_negative`.

    Members
    -------
    d : In(32)
        20 fraction bits.
    mantissa : Out(21)
    shift : Out(5)
    """

    LATENCY = 1 + InterpolatedTable.LATENCY

    def __init__(self) -> None:
        super().__init__({"d": In(32), "mantissa": Out(BASE_BITS), "shift": Out(5)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(EXP_BASE, EXP_DESCENT)
        scaled = Signal(EXP_ARG_BITS + len(Const(LOG2E)))
        power = Signal(len(scaled) - FRACTION_BITS, reset_less=True)
        s1_zero = Signal(reset_less=True)
        whole = power[FRACTION_BITS:]
        m.d.comb += [
            scaled.eq(self.d[:EXP_ARG_BITS] * LOG2E),
            table.position.eq(power[:FRACTION_BITS]),
        ]
        m.d.sync += [power.eq(scaled >> FRACTION_BITS), s1_zero.eq(self.d[EXP_ARG_BITS:].any())]
        zero = Signal()
        m.d.comb += zero.eq(s1_zero | (whole > MAX_SHIFT))
        zero_q = delay(m, zero, table.LATENCY, "zero")
        whole_q = delay(m, whole[:5], table.LATENCY, "whole")
        m.d.comb += [
            self.mantissa.eq(Mux(zero_q, 0, table.o)),
            self.shift.eq(Mux(zero_q, 0, whole_q)),
        ]
        return m


class Reciprocal(wiring.Component):
    """1/m for m in [1, 2]. Latency 2 cycles, one result per cycle.

    Reference: :func:`golden.functions.reciprocal`.

    Members
    -------
    m : In(22)
        20 fraction bits.
    o : Out(21)
    """

    LATENCY = InterpolatedTable.LATENCY

    def __init__(self) -> None:
        super().__init__({"m": In(FRACTION_BITS + 2), "o": Out(BASE_BITS)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = InterpolatedTable(RECIPROCAL_BASE, RECIPROCAL_DESCENT)
        two = delay(m, self.m[FRACTION_BITS + 1], self.LATENCY, "two")
        m.d.comb += [
            table.position.eq(self.m[:FRACTION_BITS]),
            self.o.eq(Mux(two, ONE // 2, table.o)),
        ]
        return m


class Sigmoid(wiring.Component):
    """sigmoid(z) as mantissa and shift. Latency 7 cycles, one result per cycle.

    Reference: :func:`golden.functions.sigmoid`.

    Members
    -------
    z : In(signed(32))
        20 fraction bits; not -2**31.
    mantissa : Out(21)
    shift : Out(5)
    """

    LATENCY = ExpNegative.LATENCY + 1 + Reciprocal.LATENCY + 1

    def __init__(self) -> None:
        super().__init__({"z": In(signed(32)), "mantissa": Out(BASE_BITS), "shift": Out(5)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.exp = exp = ExpNegative()
        m.submodules.reciprocal = reciprocal = Reciprocal()
        negative = Signal()
        one_plus_t = Signal(FRACTION_BITS + 2, reset_less=True)
        m.d.comb += [
            negative.eq(self.z < 0),
            exp.d.eq(Mux(negative, -self.z, self.z)),
            reciprocal.m.eq(one_plus_t),
        ]
        m.d.sync += one_plus_t.eq(ONE + (exp.mantissa >> exp.shift))
        negative_q = delay(m, negative, exp.LATENCY + 1 + reciprocal.LATENCY, "negative")
        t = delay(m, exp.mantissa, 1 + reciprocal.LATENCY, "t")
        shift = delay(m, exp.shift, 1 + reciprocal.LATENCY, "shift")
        out_mantissa = Signal(BASE_BITS, reset_less=True)
        out_shift = Signal(5, reset_less=True)
        m.d.sync += [
            out_mantissa.eq(Mux(negative_q, (t * reciprocal.o) >> FRACTION_BITS, reciprocal.o)),
            out_shift.eq(Mux(negative_q, shift, 0)),
        ]
        m.d.comb += [self.mantissa.eq(out_mantissa), self.shift.eq(out_shift)]
        return m


def fixed_from_f32(m, value, name: str):
    """Return a combinational signed(32) with 20 fraction bits from an fp32, truncated and saturated.

    Reference: :func:`golden.functions.fixed_from_f32`; NaN becomes the most negative value.
    """
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
