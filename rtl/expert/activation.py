"""Hidden activation of one lane: fp32 sums in, bf16 out."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.expert_bf16 import ALPHA_BITS, alpha_fixed, limit_bf16
from golden.formats import BF16_NAN
from golden.functions import FRACTION_BITS, ONE
from rtl.arith import BF16, F32, bf16_from_f32, delay, round_to_bf16
from rtl.functions import Sigmoid, fixed_from_f32
from spec.model import Activation, FfnSpec


class ActivationLane(wiring.Component):
    """Round gate and up to bf16, clamp where the FFN does, multiply ``up * gate * sigmoid(gate)``.

    ReLU takes the gate input only. Latency ``latency`` cycles, one result per cycle, no stalls.
    Reference: :func:`golden.expert_bf16.activate`.

    Members
    -------
    gate, up : In(F32)
    o : Out(BF16)
    """

    def __init__(self, ffn: FfnSpec) -> None:
        self.ffn = ffn
        super().__init__({"gate": In(F32), "up": In(F32), "o": Out(BF16)})

    @property
    def latency(self) -> int:
        """Cycles: round and clamp 1; with a gate also argument 1, sigmoid, product 1, round 1."""
        return 1 + (1 + Sigmoid.LATENCY + 2 if self.ffn.gated else 0)

    def elaborate(self, platform):
        m = Module()
        s1_gate = Signal(BF16, reset_less=True)
        gate = Signal(BF16)
        m.d.comb += gate.eq(bf16_from_f32(self.gate))
        if not self.ffn.gated:
            nan = gate.exponent.all() & gate.fraction.any()
            m.d.sync += s1_gate.eq(Mux(gate.sign & ~nan, 0, gate.as_value()))
            m.d.comb += self.o.eq(s1_gate)
            return m

        # s1: rounded and clamped.
        s1_up = Signal(BF16, reset_less=True)
        up = Signal(BF16)
        m.d.comb += up.eq(bf16_from_f32(self.up))
        clamped = self.ffn.activation is Activation.CLAMPED_SWIGLU
        if clamped:
            m.d.sync += [
                s1_gate.eq(self._clamp(gate, below=False)),
                s1_up.eq(self._clamp(up, below=True)),
            ]
        else:
            m.d.sync += [s1_gate.eq(gate), s1_up.eq(up)]

        # s2: the sigmoid's argument in fixed point, the factor that stands for up.
        gate_fixed = fixed_from_f32(m, _as_f32(m, s1_gate, "s1_gate_f32"), "s1_gate")
        argument = Signal(signed(32))
        factor = Signal(BF16)
        if clamped:
            magnitude = Signal(31)
            scaled = Signal(31 + 19)
            negative = gate_fixed < 0
            up_fixed = fixed_from_f32(m, _as_f32(m, s1_up, "s1_up_f32"), "s1_up")
            total = Signal(signed(33))
            total_magnitude = Signal(32)
            up_nan = s1_up.exponent.all() & s1_up.fraction.any()
            m.d.comb += [
                magnitude.eq(Mux(negative, -gate_fixed, gate_fixed)),
                scaled.eq((magnitude * alpha_fixed(self.ffn)) >> ALPHA_BITS),
                argument.eq(_signed_saturated(negative, scaled)),
                total.eq(up_fixed + ONE),
                total_magnitude.eq(Mux(total < 0, -total, total)),
            ]
            plus_one = round_to_bf16(
                m, total < 0, total_magnitude, Const(-FRACTION_BITS, signed(8)), "plus_one"
            )
            m.d.comb += factor.eq(Mux(up_nan, BF16_NAN, plus_one))
        else:
            m.d.comb += [argument.eq(gate_fixed), factor.eq(s1_up)]
        m.submodules.sigmoid = sigmoid = Sigmoid()
        s2_argument = Signal(signed(32), reset_less=True)
        m.d.sync += s2_argument.eq(argument)
        m.d.comb += sigmoid.z.eq(s2_argument)

        # s9: one exact product, then one rounding.
        wait = 1 + Sigmoid.LATENCY
        a = BF16(delay(m, s1_gate.as_value(), wait, "gate"))
        b = BF16(delay(m, factor.as_value(), wait, "factor"))
        s9_product = Signal(16 + FRACTION_BITS + 1, reset_less=True)
        s9_power = Signal(signed(12), reset_less=True)
        s9_sign = Signal(reset_less=True)
        s9_inf = Signal(reset_less=True)
        s9_nan = Signal(reset_less=True)
        a_top, b_top = a.exponent.all(), b.exponent.all()
        a_zero, b_zero = a.exponent == 0, b.exponent == 0
        any_zero = a_zero | b_zero | (sigmoid.mantissa == 0)
        significands = Signal(16)
        m.d.comb += significands.eq(Cat(a.fraction, Const(1, 1)) * Cat(b.fraction, Const(1, 1)))
        m.d.sync += [
            s9_product.eq(Mux(any_zero, 0, significands * sigmoid.mantissa)),
            s9_power.eq(a.exponent + b.exponent - (2 * 134 + FRACTION_BITS) - sigmoid.shift),
            s9_sign.eq(a.sign ^ b.sign),
            s9_inf.eq(a_top | b_top),
            s9_nan.eq((a_top & a.fraction.any()) | (b_top & b.fraction.any()) | ((a_top | b_top) & any_zero)),
        ]
        rounded = round_to_bf16(m, s9_sign, s9_product, s9_power, "out")
        out = Signal(BF16, reset_less=True)
        infinite = Cat(Const(0x7F80, 15), s9_sign)
        m.d.sync += out.eq(Mux(s9_nan, BF16_NAN, Mux(s9_inf, infinite, rounded)))
        m.d.comb += self.o.eq(out)
        return m

    def _clamp(self, value, *, below: bool):
        limit = limit_bf16(self.ffn)
        magnitude = value.as_value()[:15]
        number = magnitude <= 0x7F80
        over = number & (magnitude > limit)
        if not below:
            over = over & ~value.sign
        return Mux(over, Cat(Const(limit, 15), value.sign), value.as_value())


def _as_f32(m, value, name: str):
    out = Signal(F32, name=name)
    m.d.comb += out.eq(Mux(value.exponent == 0, 0, Cat(Const(0, 16), value.as_value())))
    return out


def _signed_saturated(negative, magnitude):
    limited = Mux(magnitude[31:].any(), (1 << 31) - 1, magnitude[:31])
    return Mux(negative, -limited, limited)
