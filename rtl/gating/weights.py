"""From chosen experts to weights: numerators, their sum, its reciprocal, bf16."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS, SCALE_BITS, SCORE_BITS
from golden.gating_bf16 import epsilon_fixed, scale_fixed
from rtl.arith import ceil_log2, delay, normalise, round_to_bf16, tree
from rtl.functions import ExpNegative, Reciprocal
from rtl.gating.layouts import candidate_row_layout, choice_layout, key_bits
from rtl.gating.scores import DelayLine
from rtl.gating.topk import TopK
from spec.geometry import GateGeometry
from spec.model import Normalise, Score

SCORE_WIDTH = SCORE_BITS + 1


def _to_score(mantissa, shift):
    return (mantissa << (SCORE_BITS - FRACTION_BITS)) >> shift


class Inverse(wiring.Component):
    """scale / total as mantissa and exponent. Latency 4 cycles.

    value = ``mantissa * 2**(30 - 20 - position)`` for a total of 30 fraction bits; 0 for a total of 0.

    Members
    -------
    total : In(total_bits)
    mantissa : Out(27)
    position : Out(6)
    """

    LATENCY = 1 + Reciprocal.LATENCY + 1

    def __init__(self, total_bits: int, scale: int) -> None:
        self.total_bits = max(total_bits, FRACTION_BITS + 2)
        self.scale = scale
        super().__init__({"total": In(self.total_bits), "mantissa": Out(27), "position": Out(6)})

    def elaborate(self, platform):
        m = Module()
        width = self.total_bits
        normal, zeros = normalise(m, self.total, "total")
        m.submodules.reciprocal = reciprocal = Reciprocal()
        s1_mantissa = Signal(FRACTION_BITS + 1, reset_less=True)
        s1_position = Signal(6, reset_less=True)
        s1_zero = Signal(reset_less=True)
        m.d.sync += [
            s1_mantissa.eq(normal[-(FRACTION_BITS + 1) :]),
            s1_position.eq(Mux(normal[-1], width - 1 - zeros, 0)),
            s1_zero.eq(~normal[-1]),
        ]
        m.d.comb += reciprocal.m.eq(s1_mantissa)
        position = delay(m, s1_position, 3, "position")
        zero = delay(m, s1_zero, 2, "zero")
        out = Signal(27, reset_less=True)
        m.d.sync += out.eq(Mux(zero, 0, (reciprocal.o * self.scale) >> SCALE_BITS))
        m.d.comb += [self.mantissa.eq(out), self.position.eq(position)]
        return m


class SoftmaxTotal(wiring.Component):
    """Sum of exp(logit - largest) over all experts of a token, for weights that are not renormalised.

    The rows wait in a delay line until the largest logit is known. The total holds from ``latency``
    cycles after the token's last row until the next token's is known.

    Members
    -------
    i : In(candidate_row_layout(...))
    total : Out(total_bits)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        index_bits = max(1, (geometry.gating.num_experts - 1).bit_length())
        self.total_bits = SCORE_WIDTH + ceil_log2(geometry.gating.num_experts)
        layout = candidate_row_layout(Score.SOFTMAX, geometry.logits_per_cycle, index_bits)
        super().__init__({"i": In(layout), "total": Out(self.total_bits)})

    @property
    def latency(self) -> int:
        """Cycles from the last row to the total."""
        return self.geometry.num_rows + 1 + ExpNegative.LATENCY + 2

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        bits = key_bits(Score.SOFTMAX)
        running = Signal(bits)
        largest = Signal(bits)
        row_largest = tree(
            [Mux(lane.valid, lane.key, 0) for lane in self.i.lanes], lambda a, b: Mux(a > b, a, b)
        )
        now = Signal(bits)
        m.d.comb += now.eq(Mux(self.i.first | (row_largest > running), row_largest, running))
        with m.If(self.i.valid):
            m.d.sync += running.eq(now)
            with m.If(self.i.last):
                m.d.sync += largest.eq(now)

        if geometry.num_rows > 1:
            m.submodules.wait = wait = DelayLine(self.i.shape(), geometry.num_rows)
            m.d.comb += wait.i.eq(self.i)
            row = wait.o
        else:
            row = Signal(self.i.shape(), reset_less=True)
            m.d.sync += row.eq(self.i)
        after = 1 + ExpNegative.LATENCY
        valid = delay(m, self.i.valid, geometry.num_rows + after, "valid", control=True)
        first = delay(m, row.first, after, "first")
        last = delay(m, row.last, after, "last")
        terms = []
        for lane in range(geometry.logits_per_cycle):
            exp = m.submodules[f"exp_{lane}"] = ExpNegative()
            below = Signal(32, name=f"below_{lane}", reset_less=True)
            m.d.sync += below.eq(largest - row.lanes[lane].key)
            m.d.comb += exp.d.eq(below)
            present = delay(m, row.lanes[lane].valid, after, f"present_{lane}")
            terms.append(Mux(present, _to_score(exp.mantissa, exp.shift)[:SCORE_WIDTH], 0))
        row_sum = Signal(self.total_bits, reset_less=True)
        m.d.sync += row_sum.eq(tree(terms, lambda a, b: a + b))
        s_valid = delay(m, valid, 1, "sum_valid", control=True)
        s_first = delay(m, first, 1, "sum_first")
        s_last = delay(m, last, 1, "sum_last")
        partial = Signal(self.total_bits)
        sum_now = Signal(self.total_bits)
        m.d.comb += sum_now.eq(row_sum + Mux(s_first, 0, partial))
        with m.If(s_valid):
            m.d.sync += partial.eq(sum_now)
            with m.If(s_last):
                m.d.sync += self.total.eq(sum_now)
        return m


class Weights(wiring.Component):
    """Give each choice its weight.

    The choices of a token leave in consecutive cycles, ``latency`` cycles after they came.

    Members
    -------
    i : In(choice_layout(...))
    total : In
        With softmax scores that are not renormalised: :class:`SoftmaxTotal`, which has it ready
        ``total_latency`` cycles after the token's last row.
    o : Out({valid, last, index, weight})
    """

    def __init__(self, geometry: GateGeometry, total_latency: int = 0) -> None:
        self.geometry = geometry
        self.total_latency = total_latency
        gating = geometry.gating
        self.index_bits = max(1, (gating.num_experts - 1).bit_length())
        self.softmax = gating.score is Score.SOFTMAX
        self.renormalise = gating.normalise is Normalise.SUM
        members = {}
        if self.softmax and not self.renormalise:
            members = {"total": In(SCORE_WIDTH + ceil_log2(gating.num_experts))}
        super().__init__(
            {
                **members,
                "i": In(choice_layout(gating.score, self.index_bits)),
                "o": Out(
                    data.StructLayout(
                        {
                            "valid": unsigned(1),
                            "last": unsigned(1),
                            "index": unsigned(self.index_bits),
                            "weight": unsigned(16),
                        }
                    )
                ),
            }
        )

    @property
    def score_latency(self) -> int:
        """Cycles from a choice to its score: subtract, exp, shift; none where the score comes along."""
        return 2 + ExpNegative.LATENCY if self.softmax else 0

    @property
    def wait(self) -> int:
        """Cycles that a score waits for the inverse of its token's total."""
        if self.renormalise:
            # The sum takes k cycles, its register and the one that holds the inverse one each.
            return self.geometry.gating.top_k + Inverse.LATENCY + 1
        if self.softmax:
            # Both the total and the choices count from the token's last row.
            behind = self.total_latency + Inverse.LATENCY
            return max(0, behind - TopK.LATENCY - self.score_latency)
        return 0

    @property
    def latency(self) -> int:
        """Cycles from a choice to its weight."""
        return self.score_latency + self.wait + 2

    def elaborate(self, platform):
        m = Module()
        gating = self.geometry.gating
        choice = self.i
        if self.softmax:
            best = Signal(key_bits(gating.score))
            below = Signal(32, reset_less=True)
            m.submodules.exp = exp = ExpNegative()
            score = Signal(SCORE_WIDTH, reset_less=True)
            with m.If(choice.valid & choice.first):
                m.d.sync += best.eq(choice.key)
            m.d.sync += [
                below.eq(Mux(choice.first, 0, best - choice.key)),
                score.eq(_to_score(exp.mantissa, exp.shift)),
            ]
            m.d.comb += exp.d.eq(below)
        else:
            score = choice.payload
        valid = delay(m, choice.valid, self.score_latency, "scored_valid", control=True)
        tags = delay(m, Cat(choice.index, choice.first, choice.last), self.score_latency, "scored_tags")

        scale = scale_fixed(gating.scale)
        if self.renormalise:
            total_bits = SCORE_WIDTH + ceil_log2(gating.top_k) + 1
            epsilon = epsilon_fixed(gating.epsilon)
            m.submodules.inverse = inverse = Inverse(total_bits, scale)
            total = Signal(inverse.total_bits)
            first, last = tags[-2], tags[-1]
            with m.If(valid):
                m.d.sync += total.eq(Mux(first, epsilon, total) + score)
            m.d.comb += inverse.total.eq(total)
            ready = delay(m, valid & last, 1 + Inverse.LATENCY, "total_ready", control=True)
            mantissa, position = self._hold(m, ready, inverse)
        elif self.softmax:
            m.submodules.inverse = inverse = Inverse(len(self.total), scale)
            m.d.comb += inverse.total.eq(self.total)
            mantissa, position = inverse.mantissa, inverse.position
        else:
            mantissa, position = Const(scale << (FRACTION_BITS - SCALE_BITS), 27), Const(SCORE_BITS, 6)

        waited = self._wait(m, Cat(score, tags))
        s_valid = delay(m, valid, self.wait, "waited_valid", control=True)
        product = Signal(SCORE_WIDTH + 27, reset_less=True)
        power = Signal(signed(8), reset_less=True)
        m.d.sync += [product.eq(waited[:SCORE_WIDTH] * mantissa), power.eq(-FRACTION_BITS - position)]
        out = Signal(self.o.shape())
        tags_q = delay(m, waited[SCORE_WIDTH:], 1, "product_tags")
        m.d.sync += [
            out.valid.eq(delay(m, s_valid, 1, "product_valid", control=True)),
            out.weight.eq(round_to_bf16(m, Const(0, 1), product, power, "weight")),
            out.index.eq(tags_q[: self.index_bits]),
            out.last.eq(tags_q[-1]),
        ]
        m.d.comb += self.o.eq(out)
        return m

    def _hold(self, m, ready, inverse):
        """Inverse of the token whose scores pass: new when ``ready``, held until the next one."""
        held_mantissa = Signal(27, reset_less=True)
        held_position = Signal(6, reset_less=True)
        m.d.sync += [
            held_mantissa.eq(Mux(ready, inverse.mantissa, held_mantissa)),
            held_position.eq(Mux(ready, inverse.position, held_position)),
        ]
        return held_mantissa, held_position

    def _wait(self, m, value):
        if self.wait < 4:
            return delay(m, value, self.wait, "waited")
        m.submodules.wait = wait = DelayLine(unsigned(len(value)), self.wait)
        m.d.comb += wait.i.eq(value)
        return wait.o
