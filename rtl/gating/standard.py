"""Logits with a mean of 0 and a given standard deviation over the experts."""

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS
from golden.gating_bf16 import CENTRED_BITS, deviation_fixed
from rtl.arith import ceil_log2, delay, normalise, tree
from rtl.functions import Exp2Negative, Log2
from rtl.ram import delay_line
from spec.geometry import GateGeometry


class Standardise(wiring.Component):
    """Shift and scale a token's logits: what each is off the mean, over the root of the squares of that.

    Three passes over a token's rows: their sum; the largest magnitude of what is left, which says where the
    squares' operands are cut; the sum of squares, whose root is half of its logarithm. Rows wait for each.
    Latency ``latency`` cycles, one row per cycle, tokens at least ``num_rows`` cycles apart. After reset no
    token has begun. Area: two multiplications per lane, three delay lines of a token's rows.
    Reference: :func:`golden.gating_bf16.standardised`.

    Members
    -------
    valid, first, last : In(1), a row of logits; the first, the last of its token.
    logits : In(ArrayLayout(signed(32), lanes)), present : In(lanes)
    o : Out(ArrayLayout(signed(32), lanes))
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        rows = data.ArrayLayout(signed(32), geometry.logits_per_cycle)
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "logits": In(rows),
                "present": In(geometry.logits_per_cycle),
                "o": Out(rows),
            }
        )

    @property
    def of_root(self) -> int:
        """Cycles from the sum of squares to the factor: logarithm, table, product."""
        return Log2.LATENCY + Exp2Negative.LATENCY + 1

    @property
    def latency(self) -> int:
        """Cycles from a row to its standardised logits."""
        # Each pass: rows, and from the last one its sum, 2; largest and position, 3; squares, 3, and root.
        return 3 * (self.geometry.num_rows - 1) + (2 + 1) + (3 + 1) + (3 + self.of_root + 2)

    def elaborate(self, platform):
        m = Module()
        rows, lanes = self.geometry.num_rows, self.geometry.logits_per_cycle
        num_experts = self.geometry.gating.num_experts
        wide = 32 + ceil_log2(max(2, num_experts)) + 1

        def held(values, valid, first, last, combine, name: str):
            """Return what a token's rows make together, from the cycle after its last one's ``values``."""
            shape = values.shape()
            running = Signal(shape, name=f"{name}_running", reset_less=True)
            out = Signal(shape, name=name, reset_less=True)
            now = Signal(shape, name=f"{name}_now")
            m.d.comb += now.eq(Mux(first, values, combine(running, values)))
            with m.If(valid):
                m.d.sync += running.eq(now)
                with m.If(last):
                    m.d.sync += out.eq(now)
            return out

        def control(cycles: int, name: str):
            flags = delay(m, Cat(self.valid, self.first, self.last), cycles, f"{name}_control", control=True)
            return flags[0], flags[1], flags[2]

        # The sum.
        row_sum = Signal(signed(wide), reset_less=True)
        terms = [Mux(self.present[n], self.logits[n], 0) for n in range(lanes)]
        m.d.sync += row_sum.eq(tree(terms, lambda a, b: a + b))
        total = held(row_sum, *control(1, "sum"), lambda a, b: a + b, "total")
        waited = delay_line(m, Cat(self.logits.as_value(), self.present), rows + 1, "logits_wait")

        # What is left of each, num_experts times, and the largest of them.
        at = rows + 2
        centred = [Signal(signed(wide), name=f"centred_{n}", reset_less=True) for n in range(lanes)]
        for n, one in enumerate(centred):
            logit = waited.word_select(n, 32).as_signed()
            m.d.sync += one.eq(Mux(waited[32 * lanes + n], logit * num_experts - total, 0))
        magnitudes = []
        for one in centred:
            magnitude = Signal(wide, name=f"{one.name}_magnitude")
            m.d.comb += magnitude.eq(Mux(one < 0, -one, one))
            magnitudes.append(magnitude)
        larger = lambda a, b: Mux(a > b, a, b)  # noqa: E731
        row_largest = Signal(wide, reset_less=True)
        m.d.sync += row_largest.eq(tree(magnitudes, larger))
        largest = held(row_largest, *control(at + 1, "largest"), larger, "largest")
        normal, zeros = normalise(m, largest, "largest")
        position = Signal(range(wide), reset_less=True)
        m.d.sync += position.eq(Mux(normal[-1], wide - 1 - zeros, 0))
        kept = delay_line(m, Cat(*centred), rows + 2, "centred_wait")

        # Cut to so many bits below the largest one's first, squared.
        at += rows + 3
        cut = [Signal(signed(CENTRED_BITS + 2), name=f"cut_{n}", reset_less=True) for n in range(lanes)]
        squares = [Signal(2 * CENTRED_BITS + 2, name=f"square_{n}", reset_less=True) for n in range(lanes)]
        for n in range(lanes):
            m.d.sync += [
                cut[n].eq((kept.word_select(n, wide).as_signed() << CENTRED_BITS) >> position),
                squares[n].eq(cut[n] * cut[n]),
            ]
        row_squares = Signal(2 * CENTRED_BITS + 2 + ceil_log2(max(2, num_experts)), reset_less=True)
        m.d.sync += row_squares.eq(tree(squares, lambda a, b: a + b))
        power = held(row_squares, *control(at + 2, "squares"), lambda a, b: a + b, "power")

        # The inverse of their root, times what makes the deviation the one asked for.
        m.submodules.log = log = Log2(len(power))
        m.submodules.exp = exp = Exp2Negative(Log2.BITS)
        mantissa, exponent = deviation_fixed(self.geometry.gating)
        factor = Signal(FRACTION_BITS + 3, reset_less=True)
        places = Signal(unsigned(6), reset_less=True)
        m.d.comb += [log.value.eq(power), exp.power.eq(log.o >> 1)]
        m.d.sync += [factor.eq((exp.mantissa * mantissa) >> 16), places.eq(exp.shift - exponent)]

        scaled = delay_line(m, Cat(*cut), rows - 1 + 3 + self.of_root, "cut_wait")
        places_q = delay(m, places, 1, "places")
        for n in range(lanes):
            one = scaled.word_select(n, CENTRED_BITS + 2).as_signed()
            product = Signal(
                signed(CENTRED_BITS + 2 + FRACTION_BITS + 4), name=f"product_{n}", reset_less=True
            )
            out = Signal(signed(32), name=f"out_{n}", reset_less=True)
            m.d.sync += [product.eq(one * factor), out.eq(product >> places_q)]
            m.d.comb += self.o[n].eq(out)
        return m
