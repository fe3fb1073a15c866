"""The gate of the shared expert: one more logit, whose sigmoid is that expert's weight."""

from amaranth import Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS, SCORE_BITS
from rtl.arith import ceil_log2, delay, round_to_bf16
from rtl.fifo import StreamFifo
from rtl.functions import Sigmoid, fixed_from_f32
from rtl.gating.layouts import assignment_layout, given_score_bits, logit_row_layout, row_shape
from rtl.gating.selection import Selection
from spec.geometry import GateGeometry


class SharedGate(wiring.Component):
    """Take the shared expert's logit out of the rows; give its weight along with the token's assignments.

    Rows pass as they are, ``wait`` cycles later, but for a last one that holds nothing else. The weight is
    there ``LATENCY`` cycles after the token's last row, which must not be later than its first assignment
    at ``i``; assignments pass at once. Reset empties the block.
    Area: a sigmoid and a queue of 16-bit weights.
    Reference: :func:`golden.gating_bf16.shared_weight`.

    Members
    -------
    rows_in : In(logit_row_layout(lanes)), rows : Out(logit_row_layout(lanes))
        Of the product, and those that hold experts.
    i : In(stream.Signature(assignment_layout(num_experts)))
    o : Out(stream.Signature(assignment_layout(num_experts, shared_gate=True)))
    """

    LATENCY = 1 + Sigmoid.LATENCY + 1 + StreamFifo.LATENCY

    def __init__(self, geometry: GateGeometry, credits: int, wait: int) -> None:
        self.geometry = geometry
        self.credits = credits
        self.wait = wait
        rows = logit_row_layout(geometry.logits_per_cycle)
        num_experts, score_bits = geometry.gating.num_experts, given_score_bits(geometry)
        super().__init__(
            {
                "rows_in": In(rows),
                "rows": Out(rows),
                "i": In(stream.Signature(assignment_layout(num_experts, score_bits=score_bits))),
                "o": Out(
                    stream.Signature(assignment_layout(num_experts, shared_gate=True, score_bits=score_bits))
                ),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry, row = self.geometry, self.rows_in
        m.d.comb += self.rows.eq(delay(m, row.as_value(), self.wait, "row", control=True))
        if geometry.num_rows > geometry.expert_rows:
            number = Signal(row_shape(geometry))
            with m.If(row.valid):
                m.d.sync += number.eq(Mux(row.last, 0, number + 1))
            last = number == geometry.expert_rows - 1
            m.d.comb += [
                self.rows.valid.eq(delay(m, row.valid & ~row.last, self.wait, "holds_experts", control=True)),
                self.rows.last.eq(delay(m, last, self.wait, "last_of_experts")),
            ]

        m.submodules.sigmoid = sigmoid = Sigmoid()
        # No token is inside for whose weight there is no room.
        depth = 1 << ceil_log2(self.credits)
        m.submodules.queue = queue = StreamFifo(unsigned(16), depth)
        logit = Signal(signed(32), reset_less=True)
        score = Signal(SCORE_BITS + 1)
        weight = Signal(16, reset_less=True)
        fixed = fixed_from_f32(m, row.logits[geometry.shared_gate_lane], "logit")
        m.d.sync += [
            logit.eq(fixed),
            weight.eq(round_to_bf16(m, Const(0, 1), score, Const(-SCORE_BITS, signed(8)), "weight")),
        ]
        wait = self.LATENCY - StreamFifo.LATENCY
        m.d.comb += [
            sigmoid.z.eq(logit),
            score.eq((sigmoid.mantissa << (SCORE_BITS - FRACTION_BITS)) >> sigmoid.shift),
            queue.i.payload.eq(weight),
            queue.i.valid.eq(delay(m, row.valid & row.last, wait, "valid", control=True)),
            queue.o.ready.eq(self.o.valid & self.o.ready & self.o.payload.last),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            self.o.payload.shared.eq(queue.o.payload),
        ]
        for name in self.i.payload.shape().members:
            m.d.comb += self.o.payload[name].eq(self.i.payload[name])
        return m


def selection_behind(geometry: GateGeometry, latency: int) -> Selection:
    """Return the selection behind a product whose last row comes ``latency`` cycles after the launch."""
    behind = geometry.num_rows - geometry.expert_rows
    selection = Selection(geometry.of_experts, latency - behind)
    if geometry.shared_gate:
        selection.latency_before += _wait(geometry, selection)
    return selection


def _wait(geometry: GateGeometry, selection: Selection) -> int:
    """Return the cycles that rows wait before a selection that is quicker than the shared expert's weight."""
    behind = geometry.num_rows - geometry.expert_rows
    return max(0, SharedGate.LATENCY + behind - (selection.latency - selection.latency_before))


def insert_shared_gate(m, geometry: GateGeometry, rows, selection):
    """Put the shared expert's gate, if there is one, around the selection.

    Returns the rows that the selection gets, and the stream of assignments. ``rows`` : of the product.
    """
    if not geometry.shared_gate:
        return rows, selection.o
    gate = SharedGate(geometry, selection.credits, _wait(geometry, selection))
    m.submodules.shared_gate = gate
    m.d.comb += [
        gate.rows_in.eq(rows),
        gate.i.payload.eq(selection.o.payload),
        gate.i.valid.eq(selection.o.valid),
        selection.o.ready.eq(gate.i.ready),
    ]
    return gate.rows, gate.o
