"""Arithmetic pipelines of fixed latency: bf16 bursts, fp32 accumulation, rounding.

None of them stalls: results leave ``LATENCY`` cycles after the operands came, one set per cycle.
The arithmetic is that of :mod:`golden.formats`, bit for bit.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_BIAS, BF16_NAN, F32_NAN, GUARD_BITS, PRODUCT_FRACTION_BITS


class BF16(data.Struct):
    """A bf16 number, least significant field first."""

    fraction: unsigned(7)
    exponent: unsigned(8)
    sign: unsigned(1)


class F32(data.Struct):
    """An fp32 number, least significant field first."""

    fraction: unsigned(23)
    exponent: unsigned(8)
    sign: unsigned(1)


def ceil_log2(n: int) -> int:
    """Return the number of bits that hold 0..n-1."""
    return (n - 1).bit_length()


def normalise(m, value, name: str):
    """Shift ``value`` left until its top bit is set, in halving steps.

    Returns ``(shifted, count)``: combinational signals; ``count`` is the number of leading zeros,
    all ones of its width for a value of zero.
    """
    width = len(value)
    current = value
    count_bits = []
    for step in reversed(range(ceil_log2(width))):
        amount = 1 << step
        empty = Signal(name=f"{name}_empty{amount}")
        shifted = Signal(width, name=f"{name}_shifted{amount}")
        m.d.comb += [
            empty.eq(current[max(0, width - amount) :] == 0),
            shifted.eq(Mux(empty, current << amount, current)),
        ]
        count_bits.insert(0, empty)
        current = shifted
    return current, Cat(*count_bits)


def tree(items, combine):
    """Reduce ``items`` with ``combine`` in a balanced tree."""
    items = list(items)
    while len(items) > 1:
        pairs = [combine(items[n], items[n + 1]) for n in range(0, len(items) - 1, 2)]
        items = pairs + items[len(items) - len(items) % 2 :]
    return items[0]


def delay(m, value, cycles: int, name: str, *, control: bool = False):
    """Return ``value`` as it was ``cycles`` cycles ago.

    Data goes through registers without reset; ``control`` (valid bits) is zero after reset.
    """
    for n in range(cycles):
        register = Signal.like(value, name=f"{name}_q{n + 1}", init=0, reset_less=not control)
        m.d.sync += register.eq(value)
        value = register
    return value


def bf16_from_f32(value):
    """Return the bf16 pattern (16 bits) nearest to an fp32 pattern, ties to even.

    The operand has no subnormals, as every result of :class:`Accumulate`.
    """
    rounded = (value.as_value() + 0x7FFF + value.as_value()[16])[16:32]
    is_nan = value.exponent.all() & value.fraction.any()
    return Mux(is_nan, BF16_NAN, rounded)


def bf16_product(m, x, w, name: str):
    """Return a combinational bf16 pattern nearest to the product of two bf16 numbers.

    Reference: :func:`golden.formats.bf16_product`. Area: an 8x8 multiplier.
    """
    x_zero, w_zero = x.exponent == 0, w.exponent == 0
    x_top, w_top = x.exponent.all(), w.exponent.all()
    nan = (x_top & (x.fraction.any() | w_zero)) | (w_top & (w.fraction.any() | x_zero))
    sign = x.sign ^ w.sign
    magnitude = Signal(16, name=f"{name}_magnitude")
    power = Signal(signed(11), name=f"{name}_power")
    m.d.comb += [
        magnitude.eq(Mux(x_zero | w_zero, 0, Cat(x.fraction, Const(1, 1)) * Cat(w.fraction, Const(1, 1)))),
        power.eq(x.exponent + w.exponent - (2 * BF16_BIAS + PRODUCT_FRACTION_BITS)),
    ]
    rounded = round_to_bf16(m, sign, magnitude, power, name)
    return Mux(nan, BF16_NAN, Mux(x_top | w_top, Cat(Const(0x7F80, 15), sign), rounded))


def f32_product(m, x, w, name: str):
    """Return the exact product of two bf16 numbers as a combinational fp32 pattern.

    What is below the normal range is +0. Area: an 8x8 multiplier.
    """
    x_zero, w_zero = x.exponent == 0, w.exponent == 0
    x_top, w_top = x.exponent.all(), w.exponent.all()
    nan = (x_top & (x.fraction.any() | w_zero)) | (w_top & (w.fraction.any() | x_zero))
    magnitude = Signal(16, name=f"{name}_magnitude")
    exponent = Signal(signed(11), name=f"{name}_exponent")
    out = Signal(F32, name=f"{name}_product")
    m.d.comb += [
        magnitude.eq(Cat(x.fraction, Const(1, 1)) * Cat(w.fraction, Const(1, 1))),
        exponent.eq(x.exponent + w.exponent - BF16_BIAS + magnitude[15]),
    ]
    with m.If(nan):
        m.d.comb += out.eq(F32_NAN)
    with m.Elif(x_top | w_top | (~x_zero & ~w_zero & (exponent >= 255))):
        m.d.comb += [out.sign.eq(x.sign ^ w.sign), out.exponent.eq(255)]
    with m.Elif(~x_zero & ~w_zero & (exponent >= 1)):
        m.d.comb += [
            out.sign.eq(x.sign ^ w.sign),
            out.exponent.eq(exponent),
            out.fraction.eq(Mux(magnitude[15], magnitude[:15] << 8, magnitude[:14] << 9)),
        ]
    return out


def burst_layout(cols: int):
    """Return the layout of a burst's sum: a significand that holds it exactly, its exponent, specials."""
    return data.StructLayout(
        {
            "significand": unsigned(significand_bits(cols)),
            "exponent": signed(11),
            "sign": unsigned(1),
            "inf": unsigned(1),
            "nan": unsigned(1),
        }
    )


def significand_bits(cols: int) -> int:
    """Bits of the magnitude of a sum of ``cols`` aligned products; at least fp32's 24."""
    return max(24, 16 + GUARD_BITS + ceil_log2(cols))


class Burst(wiring.Component):
    """Sum ``cols`` bf16 products, aligned to the largest exponent, and normalise the sum.

    Latency 5 cycles, one burst per cycle. Area: ``cols`` 8x8 multipliers, shifters and an adder
    tree of ``16 + GUARD_BITS`` bits. Reference: :func:`golden.formats.burst_sum`.

    Members
    -------
    x, w : In(ArrayLayout(BF16, cols))
    o : Out(burst_layout(cols))
    """

    LATENCY = 5

    def __init__(self, cols: int) -> None:
        self.cols = cols
        vector = data.ArrayLayout(BF16, cols)
        super().__init__({"x": In(vector), "w": In(vector), "o": Out(burst_layout(cols))})

    def elaborate(self, platform):
        m = Module()
        lanes = range(self.cols)

        # s1: products and the sum of biased exponents of each lane.
        products = [Signal(16, name=f"s1_product_{n}", reset_less=True) for n in lanes]
        exponents = [Signal(9, name=f"s1_exponent_{n}", reset_less=True) for n in lanes]
        signs = [Signal(name=f"s1_sign_{n}", reset_less=True) for n in lanes]
        nans, infs_p, infs_n = [], [], []
        for n in lanes:
            x, w = self.x[n], self.w[n]
            x_zero, w_zero = x.exponent == 0, w.exponent == 0
            x_top, w_top = x.exponent.all(), w.exponent.all()
            sign = x.sign ^ w.sign
            nan = Signal(name=f"nan_{n}")
            inf = Signal(name=f"inf_{n}")
            m.d.comb += [
                nan.eq((x_top & (x.fraction.any() | w_zero)) | (w_top & (w.fraction.any() | x_zero))),
                inf.eq((x_top | w_top) & ~nan),
            ]
            nans.append(nan)
            infs_p.append(inf & ~sign)
            infs_n.append(inf & sign)
            zero = x_zero | w_zero
            m.d.sync += [
                products[n].eq(Cat(x.fraction, Const(1, 1)) * Mux(w_zero, 0, Cat(w.fraction, Const(1, 1)))),
                exponents[n].eq(Mux(zero, 0, x.exponent + w.exponent)),
                signs[n].eq(sign),
            ]
            with m.If(x_zero):
                m.d.sync += products[n].eq(0)
        s1_nan = Signal(reset_less=True)
        s1_inf = Signal(reset_less=True)
        s1_inf_sign = Signal(reset_less=True)
        any_p, any_n = Cat(*infs_p).any(), Cat(*infs_n).any()
        m.d.sync += [
            s1_nan.eq(Cat(*nans).any() | (any_p & any_n)),
            s1_inf.eq(any_p | any_n),
            s1_inf_sign.eq(any_n),
        ]

        # s2: the largest exponent.
        s2_largest = Signal(9, reset_less=True)
        m.d.sync += s2_largest.eq(tree(exponents, lambda a, b: Mux(a > b, a, b)))

        # s3: aligned addends.
        addends = [Signal(signed(17 + GUARD_BITS), name=f"s3_addend_{n}", reset_less=True) for n in lanes]
        for n in lanes:
            product = delay(m, products[n], 1, f"s2_product_{n}")
            exponent = delay(m, exponents[n], 1, f"s2_exponent_{n}")
            sign = delay(m, signs[n], 1, f"s2_sign_{n}")
            distance = Signal(9, name=f"s2_distance_{n}")
            shift = Signal(5, name=f"s2_shift_{n}")
            aligned = Signal(16 + GUARD_BITS, name=f"s2_aligned_{n}")
            m.d.comb += [
                distance.eq(s2_largest - exponent),
                shift.eq(Mux(distance[5:].any(), 31, distance[:5])),
                aligned.eq((product << GUARD_BITS) >> shift),
            ]
            m.d.sync += addends[n].eq(Mux(sign, -aligned, aligned))

        # s4: their sum, in a tree (no growth beyond ceil_log2(cols) bits).
        total = Signal(signed(17 + GUARD_BITS + ceil_log2(self.cols)), name="s4_total", reset_less=True)
        m.d.sync += total.eq(tree(addends, lambda a, b: a + b))

        # s5: sign and normalised magnitude.
        width = significand_bits(self.cols)
        magnitude = Signal(width, name="s4_magnitude")
        m.d.comb += magnitude.eq(Mux(total < 0, -total, total))
        significand, zeros = normalise(m, magnitude, "s4")
        largest = delay(m, s2_largest, 2, "s4_largest")
        offset = width - 1 - BF16_BIAS - PRODUCT_FRACTION_BITS - GUARD_BITS
        special = delay(m, Cat(s1_nan, s1_inf, s1_inf_sign), 3, "special")
        out = Signal(burst_layout(self.cols), reset_less=True)
        m.d.sync += [
            out.significand.eq(significand),
            out.exponent.eq(largest + offset - zeros),
            out.sign.eq(Mux(special[1], special[2], total < 0)),
            out.nan.eq(special[0]),
            out.inf.eq(special[1]),
        ]
        m.d.comb += self.o.eq(out)
        return m


class Accumulate(wiring.Component):
    """Add a burst's exact sum to an fp32 accumulator with one rounding, to nearest even.

    Latency 3 cycles, one addition per cycle. Reference: :func:`golden.formats.accumulate`.

    Members
    -------
    acc : In(F32)
        No subnormals.
    addend : In(burst_layout(cols))
    o : Out(F32)
    """

    LATENCY = 3

    def __init__(self, cols: int) -> None:
        self.cols = cols
        super().__init__({"acc": In(F32), "addend": In(burst_layout(cols)), "o": Out(F32)})

    def elaborate(self, platform):
        m = Module()
        width = significand_bits(self.cols)
        wide = width + 3  # guard, round, sticky
        acc, addend = self.acc, self.addend

        # s1: order the operands by magnitude, shift the smaller, keep what falls off as sticky.
        acc_zero = acc.exponent == 0
        acc_top = acc.exponent.all()
        acc_significand = Signal(width)
        addend_zero = Signal()
        acc_bigger = Signal()
        distance = Signal(signed(12))
        m.d.comb += [
            acc_significand.eq(Mux(acc_zero, 0, Cat(acc.fraction, Const(1, 1))) << (width - 24)),
            addend_zero.eq(~addend.significand[-1]),
            distance.eq(acc.exponent - addend.exponent),
            acc_bigger.eq(
                addend_zero
                | (~acc_zero & ((distance > 0) | ((distance == 0) & (acc_significand > addend.significand))))
            ),
        ]
        small = Signal(wide)
        amount = Signal(12)
        clipped = Signal(range(wide + 1))
        shifted = Signal(wide)
        lost = Signal(wide)
        m.d.comb += [
            small.eq(Mux(acc_bigger, addend.significand, acc_significand) << 3),
            amount.eq(Mux(acc_bigger, distance, -distance)),
            # A zero operand needs no shift, and its exponent means nothing.
            clipped.eq(Mux(amount > wide, wide, amount)),
            shifted.eq(small >> clipped),
            lost.eq(small & ~((~Const(0, wide)) << clipped)),
        ]
        s1_big = Signal(wide, reset_less=True)
        s1_small = Signal(wide, reset_less=True)
        s1_exponent = Signal(signed(11), reset_less=True)
        s1_sign = Signal(reset_less=True)
        s1_subtract = Signal(reset_less=True)
        s1_nan = Signal(reset_less=True)
        s1_inf = Signal(reset_less=True)
        acc_nan = acc_top & acc.fraction.any()
        acc_inf = acc_top & ~acc.fraction.any()
        differ = acc.sign ^ addend.sign
        m.d.sync += [
            s1_big.eq(Mux(acc_bigger, acc_significand, addend.significand) << 3),
            s1_small.eq(Cat(shifted[0] | lost.any(), shifted[1:])),
            s1_exponent.eq(Mux(acc_bigger, acc.exponent, addend.exponent)),
            s1_sign.eq(
                Mux(acc_inf, acc.sign, Mux(addend.inf, addend.sign, Mux(acc_bigger, acc.sign, addend.sign)))
            ),
            s1_subtract.eq(differ),
            s1_nan.eq(acc_nan | addend.nan | (acc_inf & addend.inf & differ)),
            s1_inf.eq(acc_inf | addend.inf),
        ]

        # s2: add or subtract; the larger magnitude is first, so the result is not negative.
        s2_sum = Signal(wide + 1, reset_less=True)
        m.d.sync += s2_sum.eq(Mux(s1_subtract, s1_big - s1_small, s1_big + s1_small))
        s2_exponent = delay(m, s1_exponent, 1, "s2_exponent")
        s2_sign = delay(m, s1_sign, 1, "s2_sign")
        s2_nan = delay(m, s1_nan, 1, "s2_nan")
        s2_inf = delay(m, s1_inf, 1, "s2_inf")

        # s3: normalise and round.
        normal, zeros = normalise(m, s2_sum, "s2")
        exponent = Signal(signed(12))
        rounded = Signal(25)
        exponent_out = Signal(signed(12))
        kept = normal[-24:]
        half = normal[-25]
        rest = normal[:-25].any()
        m.d.comb += [
            exponent.eq(s2_exponent + 1 - zeros),
            rounded.eq(kept + (half & (rest | kept[0]))),
            exponent_out.eq(exponent + rounded[24]),
        ]
        out = Signal(F32, reset_less=True)
        with m.If(s2_nan):
            m.d.sync += out.eq(F32_NAN)
        with m.Elif(s2_inf | (normal[-1] & (exponent_out >= 255))):
            m.d.sync += [out.sign.eq(s2_sign), out.exponent.eq(255), out.fraction.eq(0)]
        with m.Elif(~normal[-1] | (exponent < 1)):
            m.d.sync += out.eq(0)
        with m.Else():
            m.d.sync += [
                out.sign.eq(s2_sign),
                out.exponent.eq(exponent_out),
                # After a carry out of the rounding all fraction bits are zero.
                out.fraction.eq(rounded[:23]),
            ]
        m.d.comb += self.o.eq(out)
        return m


def round_to_bf16(m, sign, magnitude, power, name: str):
    """Return a combinational bf16 pattern nearest to ``(-1)**sign * magnitude * 2**power``.

    Ties go to even; zero and what lies below the normal range before rounding are +0; too large
    values are infinite. Reference: :func:`golden.functions.bf16_from_integer`.

    ``magnitude`` is unsigned, ``power`` signed.
    """
    width = max(10, len(magnitude))
    padded = Signal(width, name=f"{name}_padded")
    m.d.comb += padded.eq(magnitude)
    normal, zeros = normalise(m, padded, name)
    exponent = Signal(signed(12), name=f"{name}_exponent")
    rounded = Signal(9, name=f"{name}_rounded")
    exponent_out = Signal(signed(12), name=f"{name}_exponent_out")
    out = Signal(16, name=f"{name}_bf16")
    kept = normal[-8:]
    half = normal[-9]
    rest = normal[:-9].any()
    m.d.comb += [
        exponent.eq(power + (width - 1 + BF16_BIAS) - zeros),
        rounded.eq(kept + (half & (rest | kept[0]))),
        exponent_out.eq(exponent + rounded[8]),
    ]
    with m.If(~normal[-1] | (exponent < 1)):
        m.d.comb += out.eq(0)
    with m.Elif(exponent_out >= 255):
        m.d.comb += out.eq(Cat(Const(0x7F80, 15), sign))
    with m.Else():
        m.d.comb += out.eq(Cat(rounded[:7], exponent_out[:8], sign))
    return out
