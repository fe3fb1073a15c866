"""From chosen experts to weights: numerators, their sum, its reciprocal, bf16."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS, SCALE_BITS, SCORE_BITS
from golden.gating_bf16 import epsilon_fixed, scale_fixed
from rtl.arith import PRODUCT_STAGES, ceil_log2, delay, round_stages, round_to_bf16, staged_product
from rtl.functions import ExpNegative, Sigmoid, SqrtSoftplus
from rtl.gating.layouts import (
    LOGIT_BITS,
    SCORE_WIDTH,
    choice_layout,
    given_score_bits,
    index_bits,
    key_bits,
    score_bits,
)
from rtl.gating.norm import Norm
from rtl.gating.softmax import Inverse, share_cycles, share_of, to_score
from rtl.gating.topk import TopK
from rtl.ram import DelayLine, delay_line
from spec.design import Pipeline
from spec.gate_plan import GatePlan
from spec.geometry import GateGeometry
from spec.model import Epsilon, GatingSpec, Normalise, Score

LOGIT_PLACES = SCORE_BITS - FRACTION_BITS
"""Places that a logit has less than other scores."""


class Divider(wiring.Component):
    """What gives scores their weights: the sum or norm of a token's, its inverse, the product, bf16.

    Parameters
    ----------
    gating, plan : whose rule it is.
    tag_bits : of what goes along with a score.
    members : of the component.
    """

    pipeline = Pipeline.SHORT

    def __init__(self, gating: GatingSpec, plan: GatePlan, tag_bits: int, members) -> None:
        self.gating = gating
        self.plan = plan
        self.index_bits = tag_bits
        self.score_bits = score_bits(plan.weight_score)
        self.norm = None
        if plan.normalises_by_norm:
            places = LOGIT_PLACES if plan.signed else 0
            self.norm = Norm(self.score_bits + places, gating.top_k, gating.norm_order)
        super().__init__(members)

    @property
    def deep(self) -> bool:
        """Whether its pipelines are deep."""
        return self.pipeline is Pipeline.DEEP

    @property
    def inverse_latency(self) -> int:
        """Cycles from a total to its inverse."""
        return Inverse.latency_of(self.pipeline)

    @property
    def product_and_round(self) -> int:
        """Cycles from a score and an inverse to the weight."""
        return 2 + (self.product_stages + round_stages(self.product_bits) if self.deep else 0)

    @property
    def product_stages(self) -> int:
        """Cycles from a score and an inverse to their product; deep: factors beside multipliers first."""
        return 1 + PRODUCT_STAGES if self.deep else 0

    @property
    def product_bits(self) -> int:
        """Bits of a score times an inverse."""
        return self.score_bits + 27

    @property
    def wait_for_inverse(self) -> int:
        """Cycles that a score waits for the inverse of its token's sum or norm; 0 without one."""
        if self.norm:
            return self.gating.top_k - 1 + self.norm.latency + self.inverse_latency + 1
        if self.plan.normalises_by_sum:
            # The sum takes k cycles, its register and the one that holds the inverse one each.
            return self.gating.top_k + self.inverse_latency + 1
        return 0

    def _weigh(self, m, valid, tags, score, negative, mantissa, position, total_negative):
        """Give the products of the scores, ``wait`` cycles later, with the inverse that is there then."""
        plan = self.plan
        scale_power = scale_fixed(self.gating.scale)[1]
        waited = self._wait(m, Cat(score, tags, negative) if plan.signed else Cat(score, tags))
        s_valid = delay(m, valid, self.wait, "waited_valid", control=True)
        product = Signal(self.product_bits, reset_less=True)
        places = scale_power + (LOGIT_PLACES if plan.signed else 0)
        power = Signal(signed(10 if places else 8), reset_less=True)
        cut = self.product_stages
        beside = int(self.deep)
        factors = (
            delay(m, waited[: self.score_bits], beside, "score_beside"),
            delay(m, mantissa, beside, "mantissa_beside"),
        )
        whole = staged_product(m, *factors, "part", deep=self.deep)
        m.d.sync += [
            product.eq(whole),
            power.eq(places - FRACTION_BITS - delay(m, position, cut, "part_position")),
        ]
        out = Signal(self.o.shape())
        tags_q = delay(m, waited[self.score_bits :], 1 + cut, "product_tags")
        sign = Const(0, 1)
        if plan.signed:
            sign = tags_q[-1] ^ delay(m, total_negative, 1 + cut, "product_negative")
        # As long as the rounding takes.
        behind = self.product_and_round - 2 - cut
        tags_q = delay(m, tags_q, behind, "rounded_tags")
        last = tags_q[self.index_bits + 1]
        m.d.sync += [
            out.valid.eq(delay(m, s_valid, 1 + cut + behind, "product_valid", control=True)),
            out.weight.eq(round_to_bf16(m, sign, product, power, "weight", deep=self.deep)),
            out.index.eq(tags_q[: self.index_bits]),
            out.last.eq(last),
        ]
        if "score" in self.o.shape().members:
            magnitude = delay(m, waited[: self.score_bits], 1 + cut + behind, "product_score")
            m.d.sync += out.score.eq(score_word(magnitude, tags_q[-1]) if plan.signed else magnitude)
        m.d.comb += self.o.eq(out)

    def _divide(self, m, valid, tags, score, negative, scale: int):
        """Return the inverse of the token's sum or norm, as mantissa and position, and its sign."""
        gating, plan = self.gating, self.plan
        epsilon = epsilon_fixed(gating.epsilon)
        added = epsilon if gating.epsilon_rule is Epsilon.ADDED else 0
        first, last = tags[self.index_bits], tags[self.index_bits + 1]
        places = LOGIT_PLACES if plan.signed else 0
        if self.norm:
            m.submodules.norm = norm = self.norm
            bits = max(norm.total_bits, SCORE_WIDTH) + 1
            m.submodules.inverse = inverse = Inverse(bits, scale, self.pipeline)
            m.d.comb += [
                norm.valid.eq(valid),
                norm.first.eq(first),
                norm.last.eq(last),
                norm.value.eq(score << places),
            ]
            total, more = norm.total + added, norm.latency - 1
            has_sign = False
        else:
            total_bits = self.score_bits + places + ceil_log2(gating.top_k) + 1
            m.submodules.inverse = inverse = Inverse(total_bits, scale, self.pipeline)
            has_sign = plan.signed and gating.normalise is Normalise.SUM
            shape = signed(inverse.total_bits + 1) if has_sign else inverse.total_bits
            addend = score
            if plan.signed:
                addend = (Mux(negative, -score, score) if has_sign else score) << LOGIT_PLACES
            total = Signal(shape)
            with m.If(valid):
                m.d.sync += total.eq(Mux(first, added, total) + addend)
            more = 0
        if gating.epsilon_rule is Epsilon.CLAMPED and (plan.has_epsilon or has_sign):
            total = Mux(total < epsilon, epsilon, total)
        m.d.comb += inverse.total.eq(Mux(total < 0, -total, total) if has_sign else total)
        ready = delay(m, valid & last, 1 + inverse.latency + more, "total_ready", control=True)
        mantissa, position = self._hold(m, ready, inverse)
        if not has_sign:
            return mantissa, position, Const(0, 1)
        held_negative = Signal(reset_less=True)
        total_negative = delay(m, total < 0, inverse.latency, "total_negative")
        m.d.sync += held_negative.eq(Mux(ready, total_negative, held_negative))
        return mantissa, position, held_negative

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
        cut = int(self.deep)
        m.submodules.wait = wait = DelayLine(unsigned(len(value)), self.wait - cut)
        m.d.comb += wait.i.eq(value)
        return delay(m, wait.o, cut, "waited")


class Weights(Divider):
    """Give each choice its weight.

    The choices of a token leave in consecutive cycles, ``latency`` cycles after they came.

    Members
    -------
    i : In(choice_layout(...))
    total : In
        Where weights need the sum of all exponentials: :class:`SoftmaxTotal`, which has it ready
        ``total_latency`` cycles after the token's last row.
    largest : In(32)
        Where the largest logit need not be the first choice's, two cycles after it is known.
    o : Out({valid, last, index, weight, (score)})
        The score where the geometry says so.
    """

    def __init__(self, geometry: GateGeometry, total_latency: int = 0) -> None:
        self.geometry = geometry
        self.pipeline = geometry.pipeline
        self.total_latency = total_latency
        gating, plan = geometry.gating, geometry.plan
        tag_bits = index_bits(gating)
        members = {}
        if plan.totals_softmax:
            members = {"total": In(SCORE_WIDTH + ceil_log2(gating.num_experts))}
        if plan.seeks_largest:
            members["largest"] = In(LOGIT_BITS)
        score = {"score": unsigned(given_score_bits(geometry))} if geometry.gives_scores else {}
        members |= {
            "i": In(choice_layout(gating)),
            "o": Out(
                data.StructLayout(
                    {
                        "valid": unsigned(1),
                        "last": unsigned(1),
                        "index": unsigned(tag_bits),
                        "weight": unsigned(16),
                        **score,
                    }
                )
            ),
        }
        super().__init__(gating, plan, tag_bits, members)

    @property
    def function_latency(self) -> int:
        """Cycles from a choice to its score, or exponential: subtract, exp, shift; 0 where it comes along."""
        if self.plan.exponentials:
            return 2 + ExpNegative.latency_of(self.pipeline)
        if self.plan.carries_score:
            return 0
        sigmoid = Sigmoid.latency_of(self.pipeline)
        functions = {Score.SIGMOID: sigmoid + 1, Score.SQRT_SOFTPLUS: SqrtSoftplus.LATENCY}
        return functions.get(self.plan.weight_score, 0)

    @property
    def wait_for_total(self) -> int:
        """Cycles that an exponential waits for the inverse of the sum of all."""
        # Both the total and the choices count from the token's last row.
        behind = self.total_latency + self.inverse_latency
        return max(0, behind - TopK.latency_of(self.pipeline) - self.function_latency)

    @property
    def score_latency(self) -> int:
        """Cycles from a choice to its score."""
        share = self.wait_for_total + share_cycles(self.pipeline) if self.plan.shares_of_chosen else 0
        return self.function_latency + share

    @property
    def wait(self) -> int:
        """Cycles that a score waits for the inverse of its token's total."""
        if self.wait_for_inverse:
            return self.wait_for_inverse
        # Shares have met their total before.
        return self.wait_for_total if self.plan.exponentials and not self.plan.shares_of_chosen else 0

    @property
    def latency(self) -> int:
        """Cycles from a choice to its weight."""
        return self.score_latency + self.wait + self.product_and_round

    def elaborate(self, platform):
        m = Module()
        gating, plan = self.gating, self.plan
        choice = self.i
        score, negative = self._score(m, choice)
        if plan.shares_of_chosen:
            score = self._share(m, score)
        valid = delay(m, choice.valid, self.score_latency, "scored_valid", control=True)
        tags = delay(m, Cat(choice.index, choice.first, choice.last), self.score_latency, "scored_tags")

        scale = scale_fixed(gating.scale)[0]
        total_negative = Const(0, 1)
        if gating.normalise is not Normalise.NONE:
            mantissa, position, total_negative = self._divide(m, valid, tags, score, negative, scale)
        elif plan.exponentials and not plan.shares_of_chosen:
            m.submodules.inverse = inverse = Inverse(len(self.total), scale, self.pipeline)
            m.d.comb += inverse.total.eq(self.total)
            mantissa, position = inverse.mantissa, inverse.position
        else:
            mantissa, position = Const(scale << (FRACTION_BITS - SCALE_BITS), 27), Const(SCORE_BITS, 6)

        self._weigh(m, valid, tags, score, negative, mantissa, position, total_negative)
        return m

    def _score(self, m, choice):
        """Return a choice's score or exponential, its magnitude and whether it is negative."""
        plan = self.plan
        if plan.carries_score:
            return choice.payload, Const(0, 1)
        logit = choice.payload if plan.carries_logit else choice.key
        if plan.exponentials:
            return self._exponential(m, choice, logit), Const(0, 1)
        if plan.signed:
            # Offset binary: a set top bit means that it is not negative.
            magnitude = Signal(LOGIT_BITS - 1, name="magnitude")
            m.d.comb += magnitude.eq(Mux(logit[-1], logit[:-1], -logit[:-1]))
            return magnitude, ~logit[-1]
        z = Cat(logit[:-1], ~logit[-1]).as_signed()
        if plan.weight_score is Score.SQRT_SOFTPLUS:
            m.submodules.sqrt_softplus = unit = SqrtSoftplus()
            m.d.comb += unit.z.eq(z)
            return unit.o, Const(0, 1)
        m.submodules.sigmoid = unit = Sigmoid(self.pipeline)
        score = Signal(SCORE_WIDTH, reset_less=True)
        m.d.comb += unit.z.eq(z)
        m.d.sync += score.eq(to_score(unit.mantissa, unit.shift))
        return score, Const(0, 1)

    def _exponential(self, m, choice, logit):
        """Return exp(logit - largest)."""
        if self.plan.seeks_largest:
            below = Signal(32, reset_less=True)
            m.submodules.exp = exp = ExpNegative(self.pipeline)
            score = Signal(SCORE_WIDTH, reset_less=True)
            m.d.sync += [
                below.eq(self.largest - logit),
                score.eq(to_score(exp.mantissa, exp.shift)),
            ]
            m.d.comb += exp.d.eq(below)
            return score
        best = Signal(key_bits(self.geometry.gating))
        below = Signal(32, reset_less=True)
        m.submodules.exp = exp = ExpNegative(self.pipeline)
        score = Signal(SCORE_WIDTH, reset_less=True)
        with m.If(choice.valid & choice.first):
            m.d.sync += best.eq(choice.key)
        m.d.sync += [
            below.eq(Mux(choice.first, 0, best - choice.key)),
            score.eq(to_score(exp.mantissa, exp.shift)),
        ]
        m.d.comb += exp.d.eq(below)
        return score

    def _share(self, m, exponential):
        """Return a choice's share of the sum of all exponentials."""
        m.submodules.total_inverse = inverse = Inverse(len(self.total), 1 << SCALE_BITS, self.pipeline)
        m.d.comb += inverse.total.eq(self.total)
        waited = delay_line(m, exponential, self.wait_for_total, "exponential")
        return share_of(m, waited, inverse, "share")


class KeptWeights(Divider):
    """Give a token's scores their weights, the sum being over those that are kept; others get 0.

    The scores of a token come in consecutive cycles, tokens at least k cycles apart; weights leave
    ``latency`` cycles later. Reference: :func:`golden.gating_bf16.kept_weights`.

    Members
    -------
    i : In({valid, first, last, keep, index, score})
        ``index`` goes along; scores as the gate gives them.
    o : Out({valid, last, index, weight})
    """

    def __init__(self, gating: GatingSpec, score_bits: int, tag_bits: int) -> None:
        along = {"valid": unsigned(1), "last": unsigned(1), "index": unsigned(tag_bits)}
        members = {
            "i": In(data.StructLayout({**along, "first": 1, "keep": 1, "score": unsigned(score_bits)})),
            "o": Out(data.StructLayout({**along, "weight": unsigned(16)})),
        }
        super().__init__(gating, GatePlan(gating, gives_scores=True), tag_bits, members)

    @property
    def wait(self) -> int:
        """Cycles that a score waits for the inverse of its token's total."""
        return self.wait_for_inverse

    @property
    def latency(self) -> int:
        """Cycles from a score to its weight."""
        return self.wait + self.product_and_round

    def elaborate(self, platform):
        m = Module()
        choice = self.i
        score = Signal(self.score_bits)
        negative = Const(0, 1)
        if self.plan.signed:
            negative = ~choice.score[-1] & choice.keep
            m.d.comb += score.eq(Mux(choice.keep, magnitude_of(choice.score), 0))
        else:
            m.d.comb += score.eq(Mux(choice.keep, choice.score, 0))
        tags = Cat(choice.index, choice.first, choice.last)
        scale = scale_fixed(self.gating.scale)[0]
        inverse = self._divide(m, choice.valid, tags, score, negative, scale)
        self._weigh(m, choice.valid, tags, score, negative, *inverse)
        return m


def magnitude_of(word):
    """Return the magnitude of a logit in offset binary: a set top bit means that it is not negative."""
    return Mux(word[-1], word[:-1], -word[:-1])[: len(word) - 1]


def score_word(magnitude, negative):
    """Return a logit in offset binary."""
    return Cat(Mux(negative, -magnitude, magnitude)[: len(magnitude)], ~negative)
