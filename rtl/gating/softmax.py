"""Softmax over all experts of a token: the largest logit, the sum of exponentials, its inverse, shares."""

from amaranth import Const, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS, SCALE_BITS, SCORE_BITS
from rtl.arith import (
    COUNTED_BITS,
    PRODUCT_STAGES,
    Pipelined,
    ceil_log2,
    delay,
    normalise,
    normalise_stages,
    staged_product,
    tree,
)
from rtl.functions import ExpNegative, Reciprocal
from rtl.gating.layouts import LOGIT_BITS, SCORE_WIDTH, logit_candidates_layout
from rtl.ram import DelayLine
from spec.design import Pipeline
from spec.geometry import GateGeometry


def term_stages(pipeline: Pipeline) -> int:
    """Return the cycles between an exponential and what it adds to a sum: one, if deep, for its shift."""
    return int(pipeline is Pipeline.DEEP)


def to_score(mantissa, shift):
    """Return ``mantissa * 2**-(20 + shift)`` with the 30 fraction bits of a score, truncated."""
    return (mantissa << (SCORE_BITS - FRACTION_BITS)) >> shift


class Inverse(Pipelined):
    """scale / total as mantissa and exponent. Latency 4 cycles, deep 10.

    value = ``mantissa * 2**(30 - 20 - position)`` for a total of 30 fraction bits; 0 for a total of 0.

    Members
    -------
    total : In(total_bits)
    mantissa : Out(27)
    position : Out(6)
    """

    LATENCY = 1 + Reciprocal.LATENCY + 1
    DEEP_LATENCY = normalise_stages(COUNTED_BITS + 1) + 1 + Reciprocal.DEEP_LATENCY + PRODUCT_STAGES + 1

    def __init__(self, total_bits: int, scale: int, pipeline: Pipeline = Pipeline.SHORT) -> None:
        self.pipeline = pipeline
        # Most totals are wider than what is counted in one stage; for one latency all are.
        least = COUNTED_BITS + 1 if self.deep else FRACTION_BITS + 2
        self.total_bits = max(total_bits, least)
        self.scale = scale
        super().__init__({"total": In(self.total_bits), "mantissa": Out(27), "position": Out(6)})

    def elaborate(self, platform):
        m = Module()
        width = self.total_bits
        normal, zeros = normalise(m, self.total, "total", deep=self.deep)
        m.submodules.reciprocal = reciprocal = Reciprocal(self.pipeline)
        s1_mantissa = Signal(FRACTION_BITS + 1, reset_less=True)
        s1_position = Signal(6, reset_less=True)
        s1_zero = Signal(reset_less=True)
        m.d.sync += [
            s1_mantissa.eq(normal[-(FRACTION_BITS + 1) :]),
            s1_position.eq(Mux(normal[-1], width - 1 - zeros, 0)),
            s1_zero.eq(~normal[-1]),
        ]
        m.d.comb += reciprocal.m.eq(s1_mantissa)
        behind = reciprocal.latency + PRODUCT_STAGES * self.deep
        position = delay(m, s1_position, behind + 1, "position")
        zero = delay(m, s1_zero, behind, "zero")
        out = Signal(27, reset_less=True)
        if self.deep:
            scaled = staged_product(m, reciprocal.o, Const(self.scale), "scaled", deep=True)
        else:
            scaled = reciprocal.o * self.scale
        m.d.sync += out.eq(Mux(zero, 0, scaled >> SCALE_BITS))
        m.d.comb += [self.mantissa.eq(out), self.position.eq(position)]
        return m


def largest_logit(m, row):
    """Return the largest key of the token whose last row came before this cycle."""
    running = Signal(LOGIT_BITS)
    largest = Signal(LOGIT_BITS)
    row_largest = tree([Mux(lane.valid, lane.key, 0) for lane in row.lanes], lambda a, b: Mux(a > b, a, b))
    now = Signal(LOGIT_BITS)
    m.d.comb += now.eq(Mux(row.first | (row_largest > running), row_largest, running))
    with m.If(row.valid):
        m.d.sync += running.eq(now)
        with m.If(row.last):
            m.d.sync += largest.eq(now)
    return largest


class LargestLogit(wiring.Component):
    """The largest logit of a token, from the cycle after its last row until the next token's.

    Members
    -------
    i : In(logit_candidates_layout(...))
    largest : Out(32)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        super().__init__({"i": In(logit_candidates_layout(geometry)), "largest": Out(LOGIT_BITS)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.largest.eq(largest_logit(m, self.i))
        return m


class SoftmaxTotal(wiring.Component):
    """Sum of exp(logit - largest) over all experts of a token, for weights that are not renormalised.

    The rows wait in a delay line until the largest logit is known. The total holds from ``latency``
    cycles after the token's last row until the next token's is known.

    Members
    -------
    i : In(logit_candidates_layout(...))
    total : Out(total_bits)
    terms : Out(lanes * 31)
        With ``gives_terms``: the exponentials of a row, ``terms_latency`` cycles after it.
    largest : Out(32)
        With ``gives_largest``: as :class:`LargestLogit`'s.
    """

    def __init__(
        self, geometry: GateGeometry, *, gives_terms: bool = False, gives_largest: bool = False
    ) -> None:
        self.geometry = geometry
        self.gives_terms = gives_terms
        self.gives_largest = gives_largest
        self.total_bits = SCORE_WIDTH + ceil_log2(geometry.gating.num_experts)
        terms = {"terms": Out(geometry.logits_per_cycle * SCORE_WIDTH)}
        super().__init__(
            {
                **(terms if gives_terms else {}),
                **({"largest": Out(LOGIT_BITS)} if gives_largest else {}),
                "i": In(logit_candidates_layout(geometry)),
                "total": Out(self.total_bits),
            }
        )

    @property
    def terms_latency(self) -> int:
        """Cycles from a row to its exponentials."""
        pipeline = self.geometry.pipeline
        return self.geometry.num_rows + 1 + ExpNegative.latency_of(pipeline) + term_stages(pipeline)

    @property
    def latency(self) -> int:
        """Cycles from the last row to the total."""
        return self.terms_latency + 2

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        largest = largest_logit(m, self.i)
        if self.gives_largest:
            m.d.comb += self.largest.eq(largest)

        if geometry.num_rows > 1:
            m.submodules.wait = wait = DelayLine(self.i.shape(), geometry.num_rows)
            m.d.comb += wait.i.eq(self.i)
            row = wait.o
        else:
            row = Signal(self.i.shape(), reset_less=True)
            m.d.sync += row.eq(self.i)
        after = self.terms_latency - geometry.num_rows
        valid = delay(m, self.i.valid, geometry.num_rows + after, "valid", control=True)
        first = delay(m, row.first, after, "first")
        last = delay(m, row.last, after, "last")
        terms = []
        for lane in range(geometry.logits_per_cycle):
            exp = m.submodules[f"exp_{lane}"] = ExpNegative(geometry.pipeline)
            below = Signal(32, name=f"below_{lane}", reset_less=True)
            m.d.sync += below.eq(largest - row.lanes[lane].key)
            m.d.comb += exp.d.eq(below)
            present = delay(m, row.lanes[lane].valid, after, f"present_{lane}")
            term = to_score(exp.mantissa, exp.shift)[:SCORE_WIDTH]
            term = delay(m, term, term_stages(geometry.pipeline), f"term_{lane}")
            terms.append(Mux(present, term, 0))
        if self.gives_terms:
            for lane, term in enumerate(terms):
                m.d.comb += self.terms.word_select(lane, SCORE_WIDTH).eq(term)
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


class SoftmaxShares(wiring.Component):
    """The shares of all experts of a token: exponentials over their sum.

    Rows of exponentials wait for the inverse of their token's sum. Latency ``latency`` cycles, one row
    per cycle; tokens must be at least ``num_rows`` cycles apart.
    Reference: :func:`golden.gating_bf16.scores_fixed`.

    Members
    -------
    i : In(logit_candidates_layout(...))
    shares : Out(lanes * 31)
        30 fraction bits; 0 where a lane holds no expert.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        self.total = SoftmaxTotal(geometry, gives_terms=True)
        lanes = geometry.logits_per_cycle
        super().__init__({"i": In(logit_candidates_layout(geometry)), "shares": Out(lanes * SCORE_WIDTH)})

    @property
    def wait(self) -> int:
        """Cycles that exponentials wait: the first row for the last one's, the sum and its inverse."""
        behind = self.total.latency - self.total.terms_latency
        return self.geometry.num_rows - 1 + behind + Inverse.latency_of(self.geometry.pipeline)

    @property
    def latency(self) -> int:
        """Cycles from a row of logits to its shares."""
        return self.total.terms_latency + self.wait + share_cycles(self.geometry.pipeline)

    def elaborate(self, platform):
        m = Module()
        lanes = self.geometry.logits_per_cycle
        m.submodules.total = total = self.total
        m.submodules.inverse = inverse = Inverse(total.total_bits, 1 << SCALE_BITS, self.geometry.pipeline)
        m.submodules.wait = wait = DelayLine(unsigned(lanes * SCORE_WIDTH), self.wait)
        m.d.comb += [
            total.i.eq(self.i),
            inverse.total.eq(total.total),
            wait.i.eq(total.terms),
        ]
        for lane in range(lanes):
            share = share_of(m, wait.o.word_select(lane, SCORE_WIDTH), inverse, f"share_{lane}")
            m.d.comb += self.shares.word_select(lane, SCORE_WIDTH).eq(share)
        return m


def share_cycles(pipeline: Pipeline) -> int:
    """Return the cycles of :func:`share_of`."""
    return 1 + (PRODUCT_STAGES if pipeline is Pipeline.DEEP else 0)


def share_of(m, exponential, inverse: Inverse, name: str):
    """Return an exponential's share :func:`share_cycles` later, from the inverse of the sum of all.

    The sum is at least 1, the largest one's.
    """
    product = Signal(SCORE_WIDTH + FRACTION_BITS + 1, name=f"{name}_product", reset_less=True)
    places = Signal(4, name=f"{name}_places", reset_less=True)
    share = Signal(SCORE_WIDTH, name=name)
    mantissa = inverse.mantissa[: FRACTION_BITS + 1]
    position = delay(m, inverse.position, PRODUCT_STAGES * inverse.deep, f"{name}_position")
    m.d.sync += [
        product.eq(staged_product(m, exponential, mantissa, f"{name}_part", deep=inverse.deep)),
        places.eq(position - SCORE_BITS),
    ]
    m.d.comb += share.eq(product[FRACTION_BITS:] >> places)
    return share
