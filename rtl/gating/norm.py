"""The norm of a token's chosen scores, of any order, from their logarithms."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.functions import EXP_BASE, EXP_DESCENT, FRACTION_BITS, SCORE_BITS, order_fixed
from rtl.arith import ceil_log2, delay
from rtl.functions import Exp2Negative, InterpolatedTable, Log2
from rtl.gating.layouts import SCORE_WIDTH
from rtl.gating.softmax import to_score
from rtl.ram import delay_line


class Norm(wiring.Component):
    """(sum of value^order)^(1 / order) of a token's k values, which come in consecutive cycles.

    ::

        0        4               k+4   k+5   k+6      k+8  2k+8     2k+12  2k+14   2k+16   2k+17
        Log2 --> largest of k -> below power Exp2 --> sum --> Log2 ------> log --> 2^log -> total

    ``total`` is there ``latency`` cycles after a token's last value, for one cycle; tokens are at least k
    cycles apart. Area: two logarithms, two tables of 2^-x, two multiplications with a constant.
    Reference: :func:`golden.functions.norm`.

    Members
    -------
    valid, first, last : In(1)
    value : In(value_bits)
    total : Out(total_bits)
    """

    def __init__(self, value_bits: int, top_k: int, order: float) -> None:
        self.value_bits = value_bits
        self.top_k = top_k
        self.power, self.root = order_fixed(order)
        # The norm of k equal values is k^(1 / order) times as large; tables may err upward into one bit more.
        self.growth = -(-(ceil_log2(max(2, top_k)) * self.root) >> FRACTION_BITS)
        self.total_bits = value_bits + self.growth + 1
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "value": In(value_bits),
                "total": Out(self.total_bits),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a token's last value to its norm."""
        return (
            2 * Log2.LATENCY + self.top_k + 2 + Exp2Negative.LATENCY + 1 + 2 + InterpolatedTable.LATENCY + 1
        )

    def elaborate(self, platform):
        m = Module()
        top_k = self.top_k
        m.submodules.log = log = Log2(self.value_bits)
        m.d.comb += log.value.eq(self.value)
        control = delay(m, Cat(self.valid, self.last), Log2.LATENCY, "log_control", control=True)
        first, present = delay(m, Cat(self.first, self.value.any()), Log2.LATENCY, "log_tags")
        own = Signal(Log2.BITS)
        running = Signal(Log2.BITS, reset_less=True)
        now = Signal(Log2.BITS)
        largest = Signal(Log2.BITS, reset_less=True)
        m.d.comb += [own.eq(Mux(present, log.o, 0)), now.eq(Mux(first | (own > running), own, running))]
        with m.If(control[0]):
            m.d.sync += running.eq(now)
            with m.If(control[1]):
                m.d.sync += largest.eq(now)

        # Each logarithm waits for the largest one.
        waited = delay_line(m, Cat(own, present, first), top_k, "waiting")
        valid = delay(m, control[0], top_k + 2 + Exp2Negative.LATENCY, "term_valid", control=True)
        below = Signal(Log2.BITS, reset_less=True)
        scaled = Signal(Log2.BITS + self.power.bit_length() - FRACTION_BITS, reset_less=True)
        m.submodules.exp = exp = Exp2Negative(len(scaled))
        m.d.sync += [
            below.eq(largest - waited[: Log2.BITS]),
            scaled.eq((below * self.power) >> FRACTION_BITS),
        ]
        m.d.comb += exp.power.eq(scaled)
        term_present, term_first = delay(m, waited[Log2.BITS :], 2 + Exp2Negative.LATENCY, "term_tags")
        term = Signal(SCORE_WIDTH)
        powers = Signal(SCORE_WIDTH + ceil_log2(max(2, top_k)), reset_less=True)
        m.d.comb += term.eq(Mux(term_present, to_score(exp.mantissa, exp.shift), 0))
        with m.If(valid):
            m.d.sync += powers.eq(Mux(term_first, 0, powers) + term)

        # The logarithm of the sum, divided by the order, on top of the largest one's.
        m.submodules.log_of_sum = log_of_sum = Log2(len(powers))
        m.d.comb += log_of_sum.value.eq(powers)
        any_present = delay(m, powers.any(), Log2.LATENCY + 2 + InterpolatedTable.LATENCY, "any_present")
        over = Signal(Log2.BITS)
        grown = Signal(Log2.BITS + self.root.bit_length() - FRACTION_BITS, reset_less=True)
        m.d.comb += over.eq(log_of_sum.o - (SCORE_BITS << FRACTION_BITS))
        m.d.sync += grown.eq((over * self.root) >> FRACTION_BITS)
        behind = 2 + Exp2Negative.LATENCY + top_k + Log2.LATENCY + 1
        largest_q = delay_line(m, largest, behind, "largest_of_sum")
        total_log = Signal(Log2.BITS + 1, reset_less=True)
        m.d.sync += total_log.eq(largest_q + grown)

        # 2 to its power: the falling table from the next whole power of two down.
        m.submodules.table = table = InterpolatedTable(EXP_BASE, EXP_DESCENT)
        whole = Signal(7)
        m.d.comb += [
            table.position.eq(-total_log[:FRACTION_BITS]),
            whole.eq(total_log[FRACTION_BITS:] + total_log[:FRACTION_BITS].any()),
        ]
        places = delay(m, whole, InterpolatedTable.LATENCY, "places")
        out = Signal(self.total_bits, reset_less=True)
        m.d.sync += out.eq(Mux(any_present, (table.o << places) >> FRACTION_BITS, 0))
        m.d.comb += self.total.eq(out)
        return m
