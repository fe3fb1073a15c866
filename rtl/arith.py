"""Arithmetic pipelines of fixed latency: bf16 bursts, fp32 accumulation, rounding.

None of them stalls: results leave ``latency`` cycles after the operands came, one set per cycle.
The arithmetic is that of :mod:`golden.formats`, bit for bit. ``pipeline`` says into how many stages it is cut
(:class:`spec.design.Pipeline`); ``LATENCY`` is that of the short one.
"""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_BIAS, BF16_NAN, F32_NAN, GUARD_BITS, PRODUCT_FRACTION_BITS
from spec.design import Pipeline


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


def normalise(m, value, name: str, *, deep: bool = False):
    """Shift ``value`` left until its top bit is set, in halving steps.

    Returns ``(shifted, count)``: combinational signals; ``count`` is the number of leading zeros,
    all ones of its width for a value of zero. ``deep``: they come :func:`normalise_stages` cycles later, the
    count from a register.
    """
    if deep:
        zeros = delay(m, leading_zeros(m, value, name), 1, f"{name}_zeros")
        shifted = Signal(len(value), name=f"{name}_shifted")
        counted = delay(m, value, normalise_stages(len(value)), f"{name}_counted")
        m.d.comb += shifted.eq(counted << zeros)
        return shifted, zeros
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


COUNTED_BITS = 32
"""Bits whose leading zeros are counted in one stage; the two halves of what is wider are a stage before."""


def normalise_stages(width: int) -> int:
    """Return the cycles of :func:`normalise` in a deep pipeline."""
    return 1 + (width > COUNTED_BITS)


def leading_zeros(m, value, name: str):
    """Return the number of leading zeros of ``value``, all ones of its width for a value of zero.

    By halves, each counted beside the other: shallower than :func:`normalise`, which shifts as it counts.
    """

    def count(bits, wide=False):
        # Whether all are zero, and the leading zeros otherwise.
        if len(bits) == 1:
            return ~bits[0], []
        half = len(bits) // 2
        both = []
        for part, end in ((bits[half:], "high"), (bits[:half], "low")):
            empty, zeros = count(part)
            if wide:
                whole = delay(m, Cat(*zeros, empty), 1, f"{name}_{end}")
                empty, zeros = whole[-1], list(whole[:-1])
            both.append((empty, zeros))
        (high_empty, high), (low_empty, low) = both
        chosen = [Mux(high_empty, a, b) for a, b in zip(low, high, strict=True)]
        return high_empty & low_empty, [*chosen, high_empty]

    places = 1 << ceil_log2(len(value))
    # What is added lies below, where it is not counted.
    bits = [*[Const(0, 1)] * (places - len(value)), *value]
    return Cat(*count(bits, wide=normalise_stages(len(value)) > 1)[1])


def tree(items, combine):
    """Reduce ``items`` with ``combine`` in a balanced tree."""
    items = list(items)
    while len(items) > 1:
        items = _level(items, combine)
    return items[0]


def _level(items, combine):
    """Combine neighbours; the last of an odd number goes on as it is."""
    pairs = [combine(items[n], items[n + 1]) for n in range(0, len(items) - 1, 2)]
    return pairs + items[len(items) - len(items) % 2 :]


def larger(a, b):
    """Return the larger of two numbers."""
    return Mux(a > b, a, b)


ADDER_LEVELS, LARGEST_LEVELS = 2, 1
"""Levels of a tree in one stage of a deep pipeline: of sums, of comparisons."""


def staged_tree(m, items, combine, name: str, levels: int):
    """Reduce ``items`` as :func:`tree`, with registers after every ``levels`` levels and the last one.

    The result comes :func:`tree_stages` cycles later.
    """
    items = list(items)
    for stage in range(tree_stages(len(items), levels)):
        for _ in range(levels):
            items = _level(items, combine)
        registers = [
            Signal(item.shape(), name=f"{name}_{stage}_{n}", reset_less=True) for n, item in enumerate(items)
        ]
        m.d.sync += [register.eq(item) for register, item in zip(registers, items, strict=True)]
        items = registers
    return items[0]


def tree_stages(count: int, levels: int) -> int:
    """Return the stages of :func:`staged_tree`, at least 1."""
    return max(1, -(-ceil_log2(count) // levels))


def delay(m, value, cycles: int, name: str, *, control: bool = False):
    """Return ``value`` as it was ``cycles`` cycles ago.

    Data goes through registers without reset; ``control`` (valid bits) is zero after reset.
    """
    for n in range(cycles):
        register = Signal.like(value, name=f"{name}_q{n + 1}", init=0, reset_less=not control)
        m.d.sync += register.eq(value)
        value = register
    return value


DSP_BITS = 18
"""Bits of a multiplier's operand on the FPGAs that deep pipelines are for (ECP5: 18 x 18)."""
ADDED_BITS = 3
"""Bits of an operand that is not worth a multiplier."""
PRODUCT_STAGES = 2
"""Cycles of a deep :func:`staged_product`: products that fit a multiplier each, sums of two."""


def staged_product(m, a, b, name: str, *, deep: bool):
    """Return ``a * b``, unsigned, of at most 36 bits each; ``deep``: ``PRODUCT_STAGES`` cycles later."""
    if not deep:
        return a * b
    sums = []
    for i in range(0, len(a), DSP_BITS):
        terms = []
        for j in range(0, len(b), DSP_BITS):
            part = _part(a[i : i + DSP_BITS], b[j : j + DSP_BITS])
            terms.append(delay(m, part, 1, f"{name}_{i}_{j}") << j)
        sums.append(delay(m, tree(terms, lambda x, y: x + y), 1, f"{name}_{i}") << i)
    return tree(sums, lambda x, y: x + y)


def _part(a, b):
    """Return the product of two parts; of few bits from adders, which need no multiplier far away."""
    if len(b) > ADDED_BITS:
        return a * b
    return tree([Mux(bit, a << place, 0) for place, bit in enumerate(b)], lambda x, y: x + y)


def times(value, factor: int):
    """Return a number times a constant, from additions: no multiplier far away."""
    return tree(_multiples(value, factor), lambda a, b: a + b)


def _multiples(value, factor: int):
    """Return the multiples of a number by powers of two whose sum is the number times a constant."""
    return [value << place for place in range(factor.bit_length()) if factor >> place & 1]


def times_stages(factor: int) -> int:
    """Return the cycles of :func:`staged_times`."""
    return max(0, ceil_log2(factor.bit_count()) - 1)


def staged_times(m, value, factor: int, name: str):
    """Return :func:`times` with registers behind each level of additions but the last one's."""
    items = _multiples(value, factor)
    for stage in range(times_stages(factor)):
        items = _level(items, lambda a, b: a + b)
        items = [delay(m, item, 1, f"{name}_{stage}_{n}") for n, item in enumerate(items)]
    return tree(items, lambda a, b: a + b)


class Pipelined(wiring.Component):
    """A pipeline that can be short or deep: ``pipeline`` says which, before the component is made."""

    LATENCY: int
    DEEP_LATENCY: int
    pipeline = Pipeline.SHORT

    @classmethod
    def latency_of(cls, pipeline: Pipeline) -> int:
        """Return the cycles from operands to result."""
        return cls.DEEP_LATENCY if pipeline is Pipeline.DEEP else cls.LATENCY

    @property
    def deep(self) -> bool:
        """Whether the pipeline is deep."""
        return self.pipeline is Pipeline.DEEP

    @property
    def latency(self) -> int:
        """Cycles from operands to result."""
        return self.latency_of(self.pipeline)


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


def significand_operand(m, value, name: str, *, deep: bool):
    """Return the significand with which a bf16 number is multiplied, 8 bits, 0 of zero and of subnormals.

    ``deep``: one cycle later, from registers of the multiplier alone, since the way to one is long; a zero's
    is a normal number's then, its product is removed behind the multiplier.
    """
    if deep:
        return Cat(delay(m, value.fraction, 1, name), Const(1, 1))
    return Mux(value.exponent == 0, 0, Cat(value.fraction, Const(1, 1)))


class Burst(Pipelined):
    """Sum ``cols`` bf16 products, aligned to the largest exponent, and normalise the sum.

    One burst per cycle; latency 5 cycles, in a deep pipeline 8, a stage for each level of the search for the
    largest exponent, one for each two levels of the sum. Area: ``cols`` 8x8 multipliers, shifters and an
    adder tree of ``16 + GUARD_BITS`` bits. Reference: :func:`golden.formats.burst_sum`.

    Parameters
    ----------
    given : whether the significands' products come from multipliers elsewhere.

    Members
    -------
    x, w : In(ArrayLayout(BF16, cols))
    p : In(ArrayLayout(unsigned(16), cols)), with ``given``
        Products of what :func:`significand_operand` makes of ``x`` and ``w``, one cycle after that.
    o : Out(burst_layout(cols))
    """

    LATENCY = 5

    @classmethod
    def latency_of(cls, cols: int, pipeline: Pipeline) -> int:
        """Return the cycles from ``cols`` products to their sum: they grow with its tree."""
        if pipeline is Pipeline.SHORT:
            return cls.LATENCY
        return 8 + tree_stages(cols, LARGEST_LEVELS) + tree_stages(cols, ADDER_LEVELS)

    @property
    def latency(self) -> int:
        """Cycles from products to their sum."""
        return self.latency_of(self.cols, self.pipeline)

    def __init__(self, cols: int, pipeline: Pipeline = Pipeline.SHORT, *, given: bool = False) -> None:
        self.cols = cols
        self.pipeline = pipeline
        self.given = given
        vector = data.ArrayLayout(BF16, cols)
        products = {"p": In(data.ArrayLayout(unsigned(16), cols))} if given else {}
        super().__init__({"x": In(vector), "w": In(vector), **products, "o": Out(burst_layout(cols))})

    def elaborate(self, platform):
        m = Module()
        lanes = range(self.cols)

        # s1: products and the sum of biased exponents of each lane.
        products = [Signal(16, name=f"s1_product_{n}", reset_less=True) for n in lanes]
        exponents = [Signal(9, name=f"s1_exponent_{n}", reset_less=True) for n in lanes]
        signs = [Signal(name=f"s1_sign_{n}", reset_less=True) for n in lanes]
        nans, infs_p, infs_n = [], [], []
        zeros = []
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
            if self.given:
                m.d.comb += products[n].eq(self.p[n])
            if self.deep:
                product = []
                if not self.given:
                    significands = [
                        significand_operand(m, one, f"s0_{name}_{n}", deep=True)
                        for name, one in (("x", x), ("w", w))
                    ]
                    product = [products[n].eq(significands[0] * significands[1])]
                sum_of_exponents = delay(m, x.exponent + w.exponent, 1, f"s0_exponent_{n}")
                is_zero = delay(m, zero, 1, f"s0_zero_{n}")
                m.d.sync += [
                    *product,
                    exponents[n].eq(Mux(is_zero, 0, sum_of_exponents)),
                    signs[n].eq(delay(m, sign, 1, f"s0_sign_{n}")),
                ]
                zeros.append(delay(m, is_zero, 1, f"s1_zero_{n}"))
                continue
            if not self.given:
                significands = Cat(x.fraction, Const(1, 1)), Mux(w_zero, 0, Cat(w.fraction, Const(1, 1)))
                m.d.sync += products[n].eq(significands[0] * significands[1])
            m.d.sync += [
                exponents[n].eq(Mux(zero, 0, x.exponent + w.exponent)),
                signs[n].eq(sign),
            ]
            if not self.given:
                with m.If(x_zero):
                    m.d.sync += products[n].eq(0)
        if self.deep:
            nans, infs_p, infs_n = (
                [delay(m, flag, 1, f"s0_{kind}_{n}") for n, flag in enumerate(flags)]
                for kind, flags in (("nan", nans), ("inf_p", infs_p), ("inf_n", infs_n))
            )
        s1_nan = Signal(reset_less=True)
        s1_inf = Signal(reset_less=True)
        s1_inf_sign = Signal(reset_less=True)
        any_p, any_n = Cat(*infs_p).any(), Cat(*infs_n).any()
        m.d.sync += [
            s1_nan.eq(Cat(*nans).any() | (any_p & any_n)),
            s1_inf.eq(any_p | any_n),
            s1_inf_sign.eq(any_n),
        ]

        if self.deep:
            products = [Mux(zero, 0, product) for zero, product in zip(zeros, products, strict=True)]

        # s2: the largest exponent.
        deep, cut = self.deep, int(self.deep)
        stages = tree_stages(self.cols, LARGEST_LEVELS) if deep else 1
        if deep:
            s2_largest = staged_tree(m, exponents, larger, "s2_largest", LARGEST_LEVELS)
        else:
            s2_largest = Signal(9, reset_less=True)
            m.d.sync += s2_largest.eq(tree(exponents, larger))

        # s3: aligned addends.
        addends = [Signal(signed(17 + GUARD_BITS), name=f"s3_addend_{n}", reset_less=True) for n in lanes]
        for n in lanes:
            product = delay(m, products[n], stages, f"s2_product_{n}")
            exponent = delay(m, exponents[n], stages, f"s2_exponent_{n}")
            sign = delay(m, signs[n], stages, f"s2_sign_{n}")
            distance = Signal(9, name=f"s2_distance_{n}")
            shift = Signal(5, name=f"s2_shift_{n}")
            aligned = Signal(16 + GUARD_BITS, name=f"s2_aligned_{n}")
            m.d.comb += [
                distance.eq(s2_largest - exponent),
                shift.eq(Mux(distance[5:].any(), 31, distance[:5])),
            ]
            product = delay(m, product, cut, f"s2_placed_{n}")
            shift = delay(m, shift, cut, f"s2_places_{n}")
            m.d.comb += aligned.eq((product << GUARD_BITS) >> shift)
            aligned = delay(m, aligned, cut, f"s2_addend_{n}")
            sign = delay(m, sign, 2 * cut, f"s2_negative_{n}")
            m.d.sync += addends[n].eq(Mux(sign, -aligned, aligned))

        # s4: their sum, in a tree (no growth beyond ceil_log2(cols) bits).
        if deep:
            total = staged_tree(m, addends, lambda a, b: a + b, "s4_total", ADDER_LEVELS)
        else:
            total = Signal(signed(17 + GUARD_BITS + ceil_log2(self.cols)), name="s4_total", reset_less=True)
            m.d.sync += total.eq(tree(addends, lambda a, b: a + b))

        # s5: sign and normalised magnitude.
        width = significand_bits(self.cols)
        magnitude = Signal(width, name="s4_magnitude")
        m.d.comb += magnitude.eq(Mux(total < 0, -total, total))
        negative = delay(m, total < 0, 2 * cut, "s4_negative")
        significand, zeros = normalise(m, delay(m, magnitude, cut, "s5_magnitude"), "s4", deep=deep)
        largest = delay(m, s2_largest, self.latency - 2 - cut - stages, "s4_largest")
        offset = width - 1 - BF16_BIAS - PRODUCT_FRACTION_BITS - GUARD_BITS
        special = delay(m, Cat(s1_nan, s1_inf, s1_inf_sign), self.latency - 2 - cut, "special")
        out = Signal(burst_layout(self.cols), reset_less=True)
        m.d.sync += [
            out.significand.eq(significand),
            out.exponent.eq(largest + offset - zeros),
            out.sign.eq(Mux(special[1], special[2], negative)),
            out.nan.eq(special[0]),
            out.inf.eq(special[1]),
        ]
        m.d.comb += self.o.eq(out)
        return m


class Accumulate(Pipelined):
    """Add a burst's exact sum to an fp32 accumulator with one rounding, to nearest even.

    One addition per cycle; latency 3 cycles, in a deep pipeline 7: comparison, order, alignment, addition,
    leading zeros, their removal, rounding. Reference: :func:`golden.formats.accumulate`.

    Members
    -------
    acc : In(F32)
        No subnormals.
    addend : In(burst_layout(cols))
    o : Out(F32)
    """

    LATENCY = 3
    DEEP_LATENCY = 7

    def __init__(self, cols: int, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.cols = cols
        self.pipeline = pipeline
        super().__init__({"acc": In(F32), "addend": In(burst_layout(cols)), "o": Out(F32)})

    def elaborate(self, platform):
        m = Module()
        width = significand_bits(self.cols)
        wide = width + 3  # guard, round, sticky

        # s1: order the operands by magnitude, shift the smaller, keep what falls off as sticky.
        ordered = (self._ordered_in_two if self.deep else self._ordered)(m, width)
        big, small, clipped, below, exponent, sign, subtract, nan, inf = ordered
        shifted = Signal(wide)
        lost = Signal(wide)
        m.d.comb += [
            shifted.eq(small >> clipped),
            lost.eq(small & below),
        ]
        s1_big = Signal(wide, reset_less=True)
        s1_small = Signal(wide, reset_less=True)
        s1_exponent = Signal(signed(11), reset_less=True)
        s1_sign = Signal(reset_less=True)
        s1_subtract = Signal(reset_less=True)
        s1_nan = Signal(reset_less=True)
        s1_inf = Signal(reset_less=True)
        m.d.sync += [
            s1_big.eq(big),
            s1_small.eq(Cat(shifted[0] | lost.any(), shifted[1:])),
            s1_exponent.eq(exponent),
            s1_sign.eq(sign),
            s1_subtract.eq(subtract),
            s1_nan.eq(nan),
            s1_inf.eq(inf),
        ]

        # s2: add or subtract; the larger magnitude is first, so the result is not negative.
        s2_sum = Signal(wide + 1, reset_less=True)
        m.d.sync += s2_sum.eq(Mux(s1_subtract, s1_big - s1_small, s1_big + s1_small))
        s2_exponent = delay(m, s1_exponent, 1, "s2_exponent")
        s2_sign = delay(m, s1_sign, 1, "s2_sign")
        s2_nan = delay(m, s1_nan, 1, "s2_nan")
        s2_inf = delay(m, s1_inf, 1, "s2_inf")

        # s3: normalise and round.
        normal, zeros = normalise(m, s2_sum, "s2", deep=self.deep)
        exponent = Signal(signed(12))
        rounded = Signal(25)
        exponent_out = Signal(signed(12))
        if self.deep:
            counted = delay(m, s2_exponent, 1, "s3_exponent")
            m.d.comb += exponent.eq(delay(m, counted + 1 - zeros, 1, "s4_exponent"))
            normal = delay(m, normal, 1, "s4_normal")
            s2_sign, s2_nan, s2_inf = (
                delay(m, flag, 2, f"s4_{name}")
                for name, flag in (("sign", s2_sign), ("nan", s2_nan), ("inf", s2_inf))
            )
        else:
            m.d.comb += exponent.eq(s2_exponent + 1 - zeros)
        kept = normal[-24:]
        half = normal[-25]
        rest = normal[:-25].any()
        increment = half & (rest | kept[0])
        m.d.comb += [
            rounded.eq(kept + increment),
            exponent_out.eq(exponent + rounded[24]),
        ]
        # A deep one's carry goes on into the exponent; into the largest, it makes the pattern of infinity.
        beyond = (exponent if self.deep else exponent_out) >= 255
        out = Signal(F32, reset_less=True)
        with m.If(s2_nan):
            m.d.sync += out.eq(F32_NAN)
        with m.Elif(s2_inf | (normal[-1] & beyond)):
            m.d.sync += [out.sign.eq(s2_sign), out.exponent.eq(255), out.fraction.eq(0)]
        with m.Elif(~normal[-1] | (exponent < 1)):
            m.d.sync += out.eq(0)
        with m.Else():
            # After a carry out of the rounding all fraction bits are zero.
            fields = [out.sign.eq(s2_sign), out.exponent.eq(exponent_out), out.fraction.eq(rounded[:23])]
            if self.deep:
                fields = out.eq(Cat((Cat(kept[:23], exponent[:8]) + increment)[:31], s2_sign))
            m.d.sync += fields
        m.d.comb += self.o.eq(out)
        return m

    def _ordered(self, m, width: int):
        """Return the operands' larger and smaller significand, how far apart they are, and their tags.

        Before the tags a mask of the places that the shift takes off. The tags are exponent and sign of the
        sum, whether to subtract, whether it is NaN, infinite.
        """
        wide = width + 3
        acc, addend = self.acc, self.addend
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
        m.d.comb += [
            small.eq(Mux(acc_bigger, addend.significand, acc_significand) << 3),
            amount.eq(Mux(acc_bigger, distance, -distance)),
            # A zero operand needs no shift, and its exponent means nothing.
            clipped.eq(Mux(amount > wide, wide, amount)),
        ]
        acc_nan = acc_top & acc.fraction.any()
        acc_inf = acc_top & ~acc.fraction.any()
        differ = acc.sign ^ addend.sign
        return (
            Mux(acc_bigger, acc_significand, addend.significand) << 3,
            small,
            clipped,
            ~((~Const(0, wide)) << clipped),
            Mux(acc_bigger, acc.exponent, addend.exponent),
            Mux(acc_inf, acc.sign, Mux(addend.inf, addend.sign, Mux(acc_bigger, acc.sign, addend.sign))),
            differ,
            acc_nan | addend.nan | (acc_inf & addend.inf & differ),
            acc_inf | addend.inf,
        )

    def _ordered_in_two(self, m, width: int):
        """Return the same, two cycles later: what the order depends on, then the order."""
        wide = width + 3
        acc, addend = self.acc, self.addend

        def register(value, name: str):
            return delay(m, value, 1, name)

        # s1: both distances, clipped (a zero operand needs no shift, and its exponent means nothing), and
        # the comparisons.
        acc_zero = acc.exponent == 0
        acc_top = acc.exponent.all()
        acc_significand = Signal(width)
        distances = [Signal(signed(12), name=f"s0_distance_{n}") for n in range(2)]
        m.d.comb += [
            acc_significand.eq(Mux(acc_zero, 0, Cat(acc.fraction, Const(1, 1))) << (width - 24)),
            distances[0].eq(acc.exponent - addend.exponent),
            distances[1].eq(addend.exponent - acc.exponent),
        ]
        clipped = []
        for n, distance in enumerate(distances):
            one = Signal(range(wide + 1), name=f"s0_clipped_{n}", reset_less=True)
            m.d.sync += one.eq(Mux(distance.as_unsigned() > wide, wide, distance))
            clipped.append(one)
        # Significands decide at equal exponents.
        acc_first = register(distances[1] < 0, "s1_acc_first")
        level = register(distances[0] == 0, "s1_level")
        above = Cat(acc.fraction, Const(1, 1)) << (width - 24) > addend.significand
        above = register(above, "s1_above")
        acc_present = register(~acc_zero, "s1_acc_present")
        addend_zero = register(~addend.significand[-1], "s1_addend_zero")
        acc_inf = acc_top & ~acc.fraction.any()
        differ = acc.sign ^ addend.sign
        special_sign = Mux(acc_inf, acc.sign, addend.sign)
        nan = (acc_top & acc.fraction.any()) | addend.nan | (acc_inf & addend.inf & differ)
        flags = register(
            Cat(nan, acc_inf | addend.inf, differ, special_sign, acc.sign, addend.sign), "s1_flags"
        )
        significands = [
            register(one, f"s1_significand_{n}")
            for n, one in enumerate((acc_significand, addend.significand))
        ]
        exponents = [
            register(one, f"s1_exponent_{n}") for n, one in enumerate((acc.exponent, addend.exponent))
        ]

        # s2: the order.
        acc_bigger = Signal()
        m.d.comb += acc_bigger.eq(addend_zero | (acc_present & (acc_first | (level & above))))
        nan, inf, differ, special_sign, acc_sign, addend_sign = flags
        return tuple(
            register(value, f"s2_{name}")
            for name, value in {
                "big": Mux(acc_bigger, *significands) << 3,
                "small": Mux(acc_bigger, *reversed(significands)) << 3,
                "clipped": Mux(acc_bigger, *clipped),
                "below": Mux(acc_bigger, *(~((~Const(0, wide)) << one) for one in clipped))[:wide],
                "exponent_of_larger": Mux(acc_bigger, *exponents),
                "sign_of_larger": Mux(inf, special_sign, Mux(acc_bigger, acc_sign, addend_sign)),
                "subtract": differ,
                "is_nan": nan,
                "is_inf": inf,
            }.items()
        )


def round_stages(width: int) -> int:
    """Return the cycles of :func:`round_to_bf16` in a deep pipeline, of a magnitude of so many bits.

    Leading zeros, their removal, what lies below.
    """
    return normalise_stages(max(10, width)) + 2


def round_to_bf16(m, sign, magnitude, power, name: str, *, deep: bool = False):
    """Return a combinational bf16 pattern nearest to ``(-1)**sign * magnitude * 2**power``.

    Ties go to even; zero and what lies below the normal range before rounding are +0; too large
    values are infinite. Reference: :func:`golden.functions.bf16_from_integer`.

    ``magnitude`` is unsigned, ``power`` signed. ``deep``: :func:`round_stages` cycles later.
    """
    width = max(10, len(magnitude))
    padded = Signal(width, name=f"{name}_padded")
    m.d.comb += padded.eq(magnitude)
    normal, zeros = normalise(m, padded, name, deep=deep)
    exponent = Signal(signed(12), name=f"{name}_exponent")
    rounded = Signal(9, name=f"{name}_rounded")
    exponent_out = Signal(signed(12), name=f"{name}_exponent_out")
    out = Signal(16, name=f"{name}_bf16")
    if deep:
        power = delay(m, power, normalise_stages(width), f"{name}_power")
        scaled = power + (width - 1 + BF16_BIAS) - zeros
        normal = delay(m, normal, 1, f"{name}_normal")
        rest = delay(m, normal[:-9].any(), 1, f"{name}_rest")
        normal = delay(m, normal[-9:], 1, f"{name}_kept")
        sign = delay(m, sign, round_stages(width), f"{name}_sign")
        m.d.comb += exponent.eq(delay(m, scaled, 2, f"{name}_scaled"))
    else:
        rest = normal[:-9].any()
        m.d.comb += exponent.eq(power + (width - 1 + BF16_BIAS) - zeros)
    kept = normal[-8:]
    half = normal[-9]
    increment = half & (rest | kept[0])
    m.d.comb += [
        rounded.eq(kept + increment),
        exponent_out.eq(exponent + rounded[8]),
    ]
    with m.If(~normal[-1] | (exponent < 1)):
        m.d.comb += out.eq(0)
    # As in Accumulate, a deep one's carry goes on into the exponent.
    with m.Elif((exponent if deep else exponent_out) >= 255):
        m.d.comb += out.eq(Cat(Const(0x7F80, 15), sign))
    with m.Else():
        if deep:
            m.d.comb += out.eq(Cat((Cat(kept[:7], exponent[:8]) + increment)[:15], sign))
        else:
            m.d.comb += out.eq(Cat(rounded[:7], exponent_out[:8], sign))
    return out
