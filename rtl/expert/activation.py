"""Hidden activation of one lane: fp32 sums in, bf16 out."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.expert_bf16 import ALPHA_BITS, WITH_ALPHA, alpha_fixed, clamps, limit_bf16
from golden.formats import BF16_BIAS, BF16_NAN, BF16_ONE
from golden.functions import BF16_UNIT, FAR_EXPONENT, FRACTION_BITS, ONE
from rtl.arith import BF16, F32, bf16_from_f32, delay, round_to_bf16
from rtl.functions import GeluTanhArgument, NormalCdf, Sigmoid, TanhRatio, fixed_from_f32
from spec.model import Activation, FfnSpec

CURVE = {
    Activation.GELU: NormalCdf.LATENCY,
    Activation.GELU_TANH: GeluTanhArgument.LATENCY + Sigmoid.LATENCY,
    Activation.TANH: TanhRatio.LATENCY,
    **dict.fromkeys((Activation.LINEAR, Activation.RELU, Activation.RELU2), 0),
}
"""Cycles from a clamped gate value to its activation's factors, where that is not a sigmoid of the value."""
DIRECT = (Activation.LINEAR, Activation.RELU)
"""Activations that multiply with nothing: without a gate matrix the value is the result."""


def curve_latency(ffn: FfnSpec) -> int:
    """Return the cycles from a clamped gate value to its activation's factors: argument 1 and sigmoid."""
    return CURVE.get(ffn.activation, 1 + Sigmoid.LATENCY)


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


class ActivationLane(wiring.Component):
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

    def __init__(self, ffn: FfnSpec, shared: FfnSpec | None = None) -> None:
        self.ffn = ffn
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
        """Cycles: round and clamp 1; unless that is all, the activation's factors, product 1, round 1."""
        return 1 + (0 if self._direct else self._curve + 2)

    @property
    def _direct(self) -> bool:
        return not self.ffn.gated and all(kind.activation in DIRECT for kind in self.kinds)

    @property
    def _curve(self) -> int:
        return max(curve_latency(kind) for kind in self.kinds)

    def elaborate(self, platform):
        m = Module()
        s1_gate = Signal(BF16, reset_less=True)
        gate = Signal(BF16)
        m.d.comb += gate.eq(bf16_from_f32(self.gate))
        if self._direct:
            values = [_relu(gate) if kind.activation is Activation.RELU else gate for kind in self.kinds]
            m.d.sync += s1_gate.eq(values[0] if len(values) == 1 else Mux(self.shared, *reversed(values)))
            m.d.comb += self.o.eq(s1_gate)
            return m

        # s1: rounded and clamped.
        s1_up = None
        if self.ffn.gated:
            s1_up = Signal(BF16, reset_less=True)
            up = Signal(BF16)
            m.d.comb += up.eq(bf16_from_f32(self.up))
            m.d.sync += [
                s1_gate.eq(self._clamped(gate, below=False)),
                s1_up.eq(self._clamped(up, below=True)),
            ]
        else:
            m.d.sync += s1_gate.eq(gate)

        cycles = self._curve
        factors = [
            self._factors(m, kind, s1_gate, s1_up, "shared_" if n else "")
            for n, kind in enumerate(self.kinds)
        ]
        chosen = factors[0] if len(factors) == 1 else self._choose(m, factors, 1 + cycles)
        self._multiply(m, chosen, f"s{1 + cycles}")
        return m

    def _factors(self, m, ffn: FfnSpec, s1_gate, s1_up, prefix: str) -> Factors:
        """Return the factors of an activation, ``_curve`` cycles behind the clamped values."""
        activation = ffn.activation
        a, b = s1_gate, s1_up
        mantissa, fraction_bits, shift = None, FRACTION_BITS, None
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
                z, b = self._argument(m, ffn, s1_gate, s1_up, prefix)
            m.submodules[f"{prefix}sigmoid"] = unit = Sigmoid()
            m.d.comb += unit.z.eq(z)
            mantissa, shift = unit.mantissa, unit.shift
            if activation is Activation.SIGMOID:
                a = Mux(_is_nan(s1_gate), Const(BF16_NAN, 16), Const(BF16_ONE, 16))
        wait = self._curve - curve_latency(ffn)
        return Factors(
            a=BF16(delay(m, Value.cast(a), self._curve, f"{prefix}gate")),
            b=None if b is None else BF16(delay(m, b.as_value(), self._curve, f"{prefix}factor")),
            mantissa=None if mantissa is None else delay(m, mantissa, wait, f"{prefix}mantissa"),
            fraction_bits=fraction_bits,
            shift=None if shift is None else delay(m, shift, wait, f"{prefix}shift"),
        )

    def _argument(self, m, ffn: FfnSpec, s1_gate, s1_up, prefix: str):
        """Return the sigmoid's argument, a cycle later, and combinationally what stands for up."""
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
        return s2_argument, factor

    def _choose(self, m, factors: list[Factors], cycles: int) -> Factors:
        """Return the factors of whose values these are; in their most general form."""
        shared = delay(m, self.shared, cycles, "shared")
        a, b = Signal(BF16, name="a"), Signal(BF16, name="b")
        mantissa, shift = Signal(FRACTION_BITS + 1), Signal(signed(10))

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

    def _clamped(self, value, *, below: bool):
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
            over = over & (self.shared if cut[1] else ~self.shared)
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


def _signed_saturated(negative, magnitude):
    limited = Mux(magnitude[31:].any(), (1 << 31) - 1, magnitude[:31])
    return Mux(negative, -limited, limited)
