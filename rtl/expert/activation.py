"""Hidden activation of one lane: fp32 sums in, bf16 out."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.hdl import Value
from amaranth.lib.wiring import In, Out

from golden.expert_bf16 import ALPHA_BITS, WITH_ALPHA, alpha_fixed, clamps, limit_bf16
from golden.formats import BF16_BIAS, BF16_NAN, BF16_ONE
from golden.functions import BF16_UNIT, FAR_EXPONENT, FRACTION_BITS, ONE
from rtl.arith import (
    BF16,
    F32,
    PRODUCT_STAGES,
    Pipelined,
    bf16_from_f32,
    delay,
    round_stages,
    round_to_bf16,
    staged_product,
    tree,
)
from rtl.functions import FIXED_STAGES, GeluTanhArgument, NormalCdf, Sigmoid, TanhRatio, fixed_from_f32
from spec.design import Pipeline
from spec.model import Activation, FfnSpec

CURVE = {
    Activation.GELU: NormalCdf.LATENCY,
    Activation.TANH: TanhRatio.LATENCY,
    **dict.fromkeys((Activation.LINEAR, Activation.RELU, Activation.RELU2), 0),
}
"""Cycles from a clamped gate value to its activation's factors, where that is not a sigmoid of the value."""
DIRECT = (Activation.LINEAR, Activation.RELU)
"""Activations that multiply with nothing: without a gate matrix the value is the result."""


ALPHA_STAGES = 2 + PRODUCT_STAGES + 1
"""Cycles of a deep product with alpha: sign and magnitude 2, product, the sum of its parts."""
PLUS_ONE_BITS = 32


def curve_latency(ffn: FfnSpec, pipeline: Pipeline) -> int:
    """Return the cycles from a clamped gate value to its activation's factors: argument 1 and sigmoid."""
    if ffn.activation in CURVE:
        return CURVE[ffn.activation]
    if ffn.activation is Activation.GELU_TANH:
        return GeluTanhArgument.LATENCY + Sigmoid.latency_of(pipeline)
    return argument_stages(ffn, pipeline) + 1 + Sigmoid.latency_of(pipeline)


def argument_stages(ffn: FfnSpec, pipeline: Pipeline) -> int:
    """Return the cycles before the register of a sigmoid's argument."""
    if pipeline is Pipeline.SHORT:
        return 0
    return FIXED_STAGES + (ALPHA_STAGES if ffn.activation in WITH_ALPHA else 0)


@dataclass(frozen=True)
class Factors:
    """An activation as ``a * mantissa * 2**-(fraction_bits + shift)``, times ``b``.

    Without ``b`` (no gate matrix), ``mantissa`` or ``shift`` that factor is 1.
    """

    a: BF16
    b: BF16 | None
    mantissa: Value | None
    fraction_bits: int
    shift: Value | None


class ActivationLane(Pipelined):
    """Round gate and up to bf16, clamp where the FFN does, multiply up with the activation of gate.

    Without a gate matrix the activation is that of ``gate``, the only input. With a ``shared`` FFN of another
    activation both are there, and an input of this name says whose the values are. Latency ``latency``
    cycles, one result per cycle, no stalls. Area: the tables of its activations (``docs/expert.md``).
    Reference: :func:`golden.expert_bf16.activate`.

    Members
    -------
    gate, up : In(F32)
        No subnormals and no -0, as every sum.
    shared : In(1), with two activations
    o : Out(BF16)
    """

    def __init__(
        self, ffn: FfnSpec, shared: FfnSpec | None = None, pipeline: Pipeline = Pipeline.SHORT
    ) -> None:
        self.ffn = ffn
        self.pipeline = pipeline
        self.kinds = [ffn] if shared is None else [ffn, shared]
        super().__init__(
            {
                "gate": In(F32),
                "up": In(F32),
                **({"shared": In(1)} if shared is not None else {}),
                "o": Out(BF16),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles: round and clamp 1; unless that is all, the activation's factors, product 1, round 1.

        Deep: clamp 1 more, where it does; significands 1, product 2, round 4 to 5.
        """
        if self._direct:
            return 1 + self.deep
        return self._rounded + self._curve + self._multiplied

    @property
    def _rounded(self) -> int:
        """Cycles to the rounded and clamped values."""
        return 2 if self.deep and any(clamps(kind) for kind in self.kinds) else 1

    @property
    def _multiplied(self) -> int:
        """Cycles from the factors to the result."""
        if not self.deep:
            return 2
        significands = 16 if self.ffn.gated else 8
        mantissa = self._mantissa_bits
        return 1 + (PRODUCT_STAGES if mantissa else 0) + round_stages(significands + mantissa) + 1

    @property
    def _mantissa_bits(self) -> int:
        """Bits of the factor beside the values; 0 where there is none."""
        if len(self.kinds) == 2:
            return FRACTION_BITS + 1
        kind = self.ffn.activation
        return 8 if kind is Activation.RELU2 else 0 if kind in DIRECT else FRACTION_BITS + 1

    @property
    def _direct(self) -> bool:
        return not self.ffn.gated and all(kind.activation in DIRECT for kind in self.kinds)

    @property
    def _curve(self) -> int:
        return max(curve_latency(kind, self.pipeline) for kind in self.kinds)

    def elaborate(self, platform):
        m = Module()
        s1_gate = Signal(BF16, reset_less=True)
        gate = Signal(BF16)
        m.d.comb += gate.eq(bf16_from_f32(self.gate))
        if self._direct:
            values = [_relu(gate) if kind.activation is Activation.RELU else gate for kind in self.kinds]
            m.d.sync += s1_gate.eq(values[0] if len(values) == 1 else Mux(self.shared, *reversed(values)))
            # A deep one leaves the address of its result as many cycles as it needs.
            m.d.comb += self.o.eq(delay(m, s1_gate, int(self.deep), "s2_gate"))
            return m

        # s1: rounded and clamped.
        s1_up = None
        if self.ffn.gated:
            s1_up = Signal(BF16, reset_less=True)
            up = Signal(BF16)
            m.d.comb += up.eq(bf16_from_f32(self.up))
            shared = self.shared if len(self.kinds) == 2 else None
            wait = self._rounded - 1
            if wait:
                gate, up = (
                    BF16(delay(m, one.as_value(), wait, f"s0_{name}"))
                    for name, one in (("gate", gate), ("up", up))
                )
                shared = None if shared is None else delay(m, shared, wait, "s0_shared")
            m.d.sync += [
                s1_gate.eq(self._clamped(gate, shared, below=False)),
                s1_up.eq(self._clamped(up, shared, below=True)),
            ]
        else:
            m.d.sync += s1_gate.eq(gate)

        cycles = self._curve
        factors = [
            self._factors(m, kind, s1_gate, s1_up, "shared_" if n else "")
            for n, kind in enumerate(self.kinds)
        ]
        chosen = factors[0] if len(factors) == 1 else self._choose(m, factors, self._rounded + cycles)
        multiply = self._multiply_in_stages if self.deep else self._multiply
        multiply(m, chosen, f"s{1 + cycles}")
        return m

    def _factors(self, m, ffn: FfnSpec, s1_gate, s1_up, prefix: str) -> Factors:
        """Return the factors of an activation, ``_curve`` cycles behind the clamped values."""
        activation = ffn.activation
        a, b = s1_gate, s1_up
        mantissa, fraction_bits, shift = None, FRACTION_BITS, None
        b_cycles = 0
        if activation in (Activation.LINEAR, Activation.RELU, Activation.RELU2):
            fraction_bits = 0
            if activation is not Activation.LINEAR:
                a = _relu(s1_gate)
            if activation is Activation.RELU2:
                # The argument once more; its exponent is in the shift.
                mantissa, fraction_bits = Cat(s1_gate.fraction, Const(1, 1)), BF16_UNIT - BF16_BIAS
                shift = BF16_BIAS - s1_gate.exponent
        elif activation is Activation.GELU:
            m.submodules[f"{prefix}cdf"] = unit = NormalCdf()
            m.d.comb += unit.x.eq(s1_gate)
            mantissa, shift = unit.mantissa, unit.shift
        elif activation is Activation.TANH:
            m.submodules[f"{prefix}ratio"] = unit = TanhRatio()
            m.d.comb += unit.x.eq(s1_gate)
            mantissa = unit.o
            end = (s1_gate.exponent >= FAR_EXPONENT) & ~_is_nan(s1_gate)
            a = Mux(end, Cat(Const(BF16_ONE, 15), s1_gate.sign), s1_gate.as_value())
        else:
            if activation is Activation.GELU_TANH:
                m.submodules[f"{prefix}argument"] = argument = GeluTanhArgument()
                m.d.comb += argument.x.eq(s1_gate)
                z = argument.z
            else:
                # s2: the sigmoid's argument in fixed point, the factor that stands for up.
                z, b, b_cycles = self._argument(m, ffn, s1_gate, s1_up, prefix)
            m.submodules[f"{prefix}sigmoid"] = unit = Sigmoid(self.pipeline)
            m.d.comb += unit.z.eq(z)
            mantissa, shift = unit.mantissa, unit.shift
            if activation is Activation.SIGMOID:
                a = Mux(_is_nan(s1_gate), Const(BF16_NAN, 16), Const(BF16_ONE, 16))
        wait = self._curve - curve_latency(ffn, self.pipeline)
        return Factors(
            a=BF16(delay(m, Value.cast(a), self._curve, f"{prefix}gate")),
            b=None if b is None else BF16(delay(m, Value.cast(b), self._curve - b_cycles, f"{prefix}factor")),
            mantissa=None if mantissa is None else delay(m, mantissa, wait, f"{prefix}mantissa"),
            fraction_bits=fraction_bits,
            shift=None if shift is None else delay(m, shift, wait, f"{prefix}shift"),
        )

    def _argument(self, m, ffn: FfnSpec, s1_gate, s1_up, prefix: str):
        """Return the sigmoid's argument, a cycle later, what stands for up, and that one's cycles."""
        if self.deep:
            return self._argument_in_stages(m, ffn, s1_gate, s1_up, prefix)
        gate_fixed = fixed_from_f32(m, _as_f32(m, s1_gate, f"{prefix}s1_gate_f32"), f"{prefix}s1_gate")
        argument = Signal(signed(32), name=f"{prefix}argument")
        factor = None if s1_up is None else Signal(BF16, name=f"{prefix}factor")
        value = gate_fixed
        adds_one = ffn.activation is Activation.CLAMPED_SWIGLU
        up_fixed = None
        if adds_one:
            up_fixed = fixed_from_f32(m, _as_f32(m, s1_up, f"{prefix}s1_up_f32"), f"{prefix}s1_up")
        if ffn.activation in WITH_ALPHA:
            magnitude = Signal(31, name=f"{prefix}magnitude")
            scaled = Signal(31 + 19, name=f"{prefix}scaled")
            negative = gate_fixed < 0
            m.d.comb += [
                magnitude.eq(Mux(negative, -gate_fixed, gate_fixed)),
                scaled.eq((magnitude * alpha_fixed(ffn)) >> ALPHA_BITS),
            ]
            value = _signed_saturated(negative, scaled)
        m.d.comb += argument.eq(value)
        if adds_one:
            m.d.comb += factor.eq(_plus_one(m, s1_up, up_fixed, prefix))
        elif factor is not None:
            m.d.comb += factor.eq(s1_up)
        s2_argument = Signal(signed(32), reset_less=True, name=f"{prefix}s2_argument")
        m.d.sync += s2_argument.eq(argument)
        return s2_argument, factor, 0

    def _argument_in_stages(self, m, ffn: FfnSpec, s1_gate, s1_up, prefix: str):
        """Return the same, the argument after :func:`argument_stages` and its register."""
        value = fixed_from_f32(m, _as_f32(m, s1_gate, f"{prefix}s1_gate_f32"), f"{prefix}s1_gate", deep=True)
        if ffn.activation in WITH_ALPHA:
            fixed = _signed(m, delay(m, value, 1, f"{prefix}fixed"), f"{prefix}fixed_value")
            magnitude = delay(m, Mux(fixed < 0, -fixed, fixed)[:31], 1, f"{prefix}magnitude")
            scaled = staged_product(m, magnitude, Const(alpha_fixed(ffn)), f"{prefix}scaled", deep=True)
            scaled = delay(m, (scaled >> ALPHA_BITS)[: 31 + 19], 1, f"{prefix}scaled_value")
            value = _signed_saturated(delay(m, fixed < 0, 2 + PRODUCT_STAGES, f"{prefix}negative"), scaled)
        argument = Signal(signed(32), reset_less=True, name=f"{prefix}argument")
        m.d.sync += argument.eq(value)
        if ffn.activation is not Activation.CLAMPED_SWIGLU:
            return argument, s1_up, 0
        up = fixed_from_f32(m, _as_f32(m, s1_up, f"{prefix}s1_up_f32"), f"{prefix}s1_up", deep=True)
        up = _signed(m, delay(m, up, 1, f"{prefix}up_fixed"), f"{prefix}up_value")
        total = _signed(m, delay(m, up + ONE, 1, f"{prefix}total"), f"{prefix}total_value")
        cycles = FIXED_STAGES + 3 + round_stages(PLUS_ONE_BITS)
        factor = round_to_bf16(
            m,
            delay(m, total < 0, 1, f"{prefix}total_negative"),
            delay(m, Mux(total < 0, -total, total)[:PLUS_ONE_BITS], 1, f"{prefix}total_magnitude"),
            Const(-FRACTION_BITS, signed(8)),
            f"{prefix}plus_one",
            deep=True,
        )
        nan = delay(m, _is_nan(s1_up), cycles, f"{prefix}up_nan")
        return argument, Mux(nan, BF16_NAN, factor), cycles

    def _choose(self, m, factors: list[Factors], cycles: int) -> Factors:
        """Return the factors of whose values these are; in their most general form."""
        shared = delay(m, self.shared, cycles, "shared")
        a = Signal(BF16)
        b = Signal(BF16)
        mantissa = Signal(FRACTION_BITS + 1)
        shift = Signal(signed(10))

        def chosen(values):
            routed, other = values
            return Mux(shared, other, routed)

        ones = [
            Const(ONE) if kind.mantissa is None else kind.mantissa << (FRACTION_BITS - kind.fraction_bits)
            for kind in factors
        ]
        m.d.comb += [
            a.eq(chosen([kind.a.as_value() for kind in factors])),
            mantissa.eq(chosen(ones)),
            shift.eq(chosen([Const(0) if kind.shift is None else kind.shift for kind in factors])),
        ]
        if self.ffn.gated:
            m.d.comb += b.eq(chosen([kind.b.as_value() for kind in factors]))
        return Factors(a, b if self.ffn.gated else None, mantissa, FRACTION_BITS, shift)

    def _multiply(self, m, factors: Factors, stage: str) -> None:
        """Multiply exactly, then round once: two cycles."""
        a, b = factors.a, factors.b
        numbers = [a] if b is None else [a, b]
        bits = 8 * len(numbers) + (0 if factors.mantissa is None else len(factors.mantissa))
        product = Signal(bits, reset_less=True, name=f"{stage}_product")
        power = Signal(signed(12), reset_less=True, name=f"{stage}_power")
        sign = Signal(reset_less=True, name=f"{stage}_sign")
        inf = Signal(reset_less=True, name=f"{stage}_inf")
        nan = Signal(reset_less=True, name=f"{stage}_nan")
        a_top, a_zero = a.exponent.all(), a.exponent == 0
        significands = Signal(8 * len(numbers))
        a_significand = Cat(a.fraction, Const(1, 1))
        if b is None:
            any_top, any_zero, any_nan = a_top, a_zero, a_top & a.fraction.any()
            exponents, of_product, significand = a.exponent, a.sign, a_significand
        else:
            b_top, b_zero = b.exponent.all(), b.exponent == 0
            any_top, any_zero = a_top | b_top, a_zero | b_zero
            any_nan = (a_top & a.fraction.any()) | (b_top & b.fraction.any())
            exponents, of_product = a.exponent + b.exponent, a.sign ^ b.sign
            significand = a_significand * Cat(b.fraction, Const(1, 1))
        whole = significands
        if factors.mantissa is not None:
            any_zero = any_zero | (factors.mantissa == 0)
            whole = significands * factors.mantissa
        exponent = exponents - (len(numbers) * BF16_UNIT + factors.fraction_bits)
        m.d.comb += significands.eq(significand)
        m.d.sync += [
            product.eq(Mux(any_zero, 0, whole)),
            power.eq(exponent if factors.shift is None else exponent - factors.shift),
            sign.eq(of_product),
            inf.eq(any_top),
            nan.eq(any_nan | (any_top & any_zero)),
        ]
        rounded = round_to_bf16(m, sign, product, power, "out")
        out = Signal(BF16, reset_less=True)
        infinite = Cat(Const(0x7F80, 15), sign)
        m.d.sync += out.eq(Mux(nan, BF16_NAN, Mux(inf, infinite, rounded)))
        m.d.comb += self.o.eq(out)

    def _multiply_in_stages(self, m, factors: Factors, stage: str) -> None:
        """Multiply exactly, then round once, in ``_multiplied`` cycles: significands, product, rounding."""
        numbers = [factors.a] if factors.b is None else [factors.a, factors.b]
        tops = [number.exponent.all() for number in numbers]
        zeros = [number.exponent == 0 for number in numbers]
        if factors.mantissa is not None:
            zeros.append(factors.mantissa == 0)
        any_top, any_zero = Cat(*tops).any(), Cat(*zeros).any()
        nan = Cat(*(_is_nan(number) for number in numbers)).any() | (any_top & any_zero)
        product = delay(
            m,
            tree([Cat(number.fraction, Const(1, 1)) for number in numbers], lambda a, b: a * b),
            1,
            f"{stage}_significands",
        )
        exponents = tree([number.exponent for number in numbers], lambda a, b: a + b)
        shift = 0 if factors.shift is None else delay(m, factors.shift, 1, f"{stage}_shift")
        exponents = delay(m, exponents, 1, f"{stage}_exponents")
        product_cycles = 0
        if factors.mantissa is not None:
            mantissa = delay(m, factors.mantissa, 1, f"{stage}_mantissa")
            bits = len(product) + len(mantissa)
            product = staged_product(m, product, mantissa, f"{stage}_whole", deep=True)[:bits]
            product_cycles = PRODUCT_STAGES
        power = exponents - shift - (len(numbers) * BF16_UNIT + factors.fraction_bits)
        placed = Signal(signed(12), name=f"{stage}_placed")
        m.d.comb += placed.eq(delay(m, power, product_cycles, f"{stage}_power"))
        sign = delay(m, Cat(*(number.sign for number in numbers)).xor(), 1 + product_cycles, f"{stage}_sign")
        rounded = round_to_bf16(m, sign, product, placed, "out", deep=True)
        cycles = self._multiplied - 1
        special = delay(m, Cat(nan, any_top, any_zero), cycles, f"{stage}_special")
        out = Signal(BF16, reset_less=True)
        infinite = Cat(Const(0x7F80, 15), delay(m, sign, cycles - 1 - product_cycles, f"{stage}_negative"))
        with m.If(special[0]):
            m.d.sync += out.eq(BF16_NAN)
        with m.Elif(special[1]):
            m.d.sync += out.eq(infinite)
        with m.Else():
            m.d.sync += out.eq(Mux(special[2], 0, rounded))
        m.d.comb += self.o.eq(out)

    def _clamped(self, value, shared, *, below: bool):
        """Return a value cut as far as its FFN cuts."""
        cut = [clamps(kind) for kind in self.kinds]
        if not any(cut):
            return value
        # Both FFNs of a model have the same bounds.
        limit = limit_bf16(self.ffn)
        magnitude = value.as_value()[:15]
        number = magnitude <= 0x7F80
        over = number & (magnitude > limit)
        if not below:
            over = over & ~value.sign
        if not all(cut):
            over = over & (shared if cut[1] else ~shared)
        return Mux(over, Cat(Const(limit, 15), value.sign), value.as_value())


def _is_nan(value):
    return value.exponent.all() & value.fraction.any()


def _relu(value):
    nan = value.exponent.all() & value.fraction.any()
    return Mux(value.sign & ~nan, 0, value.as_value())


def _plus_one(m, s1_up, up_fixed, prefix: str):
    """Return a combinational bf16 pattern of 1 more than a value, which is there in fixed point too."""
    total = Signal(signed(33), name=f"{prefix}total")
    total_magnitude = Signal(32, name=f"{prefix}total_magnitude")
    m.d.comb += [
        total.eq(up_fixed + ONE),
        total_magnitude.eq(Mux(total < 0, -total, total)),
    ]
    plus_one = round_to_bf16(
        m, total < 0, total_magnitude, Const(-FRACTION_BITS, signed(8)), f"{prefix}plus_one"
    )
    return Mux(_is_nan(s1_up), BF16_NAN, plus_one)


def _as_f32(m, value, name: str):
    out = Signal(F32, name=name)
    m.d.comb += out.eq(Mux(value.exponent == 0, 0, Cat(Const(0, 16), value.as_value())))
    return out


def _signed(m, value, name: str):
    """Return a value's bits as a signed number of its width."""
    number = Signal(signed(len(value)), name=name)
    m.d.comb += number.eq(value)
    return number


def _signed_saturated(negative, magnitude):
    limited = Mux(magnitude[31:].any(), (1 << 31) - 1, magnitude[:31])
    return Mux(negative, -limited, limited)
