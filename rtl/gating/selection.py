"""From rows of logits to token-expert assignments: score, groups, top-k, weights, queue."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import ceil_log2, delay
from rtl.fifo import StreamFifo
from rtl.gating.layouts import assignment_layout, given_score_bits, logit_row_layout, row_shape
from rtl.gating.scores import GroupMask, Scores
from rtl.gating.softmax import LargestLogit, SoftmaxTotal
from rtl.gating.topk import TopK
from rtl.gating.weights import Weights
from rtl.stream import connect_stream
from spec.design import Pipeline
from spec.geometry import GateGeometry, ceil_div


class Selection(wiring.Component):
    """Choose a token's experts and their weights from its logits.

    A token's rows come in consecutive cycles, ``latency_before`` cycles after its launch at the latest.
    It may be launched only when the output queue has room for its assignments (``credits`` tokens), so
    nothing in between ever stalls. Reset empties the block. Area: k comparators per logit and cycle.

    Members
    -------
    may_launch : Out(1), launch : In(1), launch_last : In(1)
        There is room for a token; it is launched in this cycle; it ends its batch.
    rows : In(logit_row_layout(logits_per_cycle))
    bias_row : Out(range(num_rows)), bias : In(logits_per_cycle * 32)
        With a selection bias: read address, and that row's bias a cycle later.
    o : Out(stream.Signature(assignment_layout(num_experts)))
        Best expert first.
    """

    def __init__(self, geometry: GateGeometry, latency_before: int) -> None:
        self.geometry = geometry
        self.latency_before = latency_before
        gating = geometry.gating
        lanes = geometry.logits_per_cycle
        # A prototype's rows are to them what a token's are.
        own = geometry.of_prototype
        self.scores = Scores(own)
        self.groups = GroupMask(geometry) if gating.grouped else None
        self.topk = TopK(own)
        plan = own.plan
        seeks = plan.seeks_largest
        self.total = SoftmaxTotal(own, gives_largest=seeks) if plan.totals_softmax else None
        self.largest = LargestLogit(own) if seeks and not self.total else None
        self.weights = Weights(own, self.total.latency if self.total else 0)
        members = {}
        if gating.selection_bias:
            members = {"bias_row": Out(row_shape(geometry)), "bias": In(lanes * 32)}
        super().__init__(
            {
                **members,
                "may_launch": Out(1),
                "launch": In(1),
                "launch_last": In(1),
                "rows": In(logit_row_layout(lanes)),
                "o": Out(
                    stream.Signature(
                        assignment_layout(gating.num_experts, score_bits=given_score_bits(geometry))
                    )
                ),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a token's launch to its first assignment on the output."""
        return (
            self.latency_before
            + self.scores.latency
            + (self.groups.latency if self.groups else 0)
            + self.topk.latency
            + self.weights.latency
            + StreamFifo.LATENCY
            + (self.geometry.gating.of_prototype.top_k - 1 if self.of_prototypes else 0)
        )

    @property
    def of_prototypes(self) -> bool:
        """Whether a token's choices come from several prototypes."""
        return self.geometry.gating.num_prototypes > 1

    @property
    def credits(self) -> int:
        """Tokens between launch and output: enough to launch one per interval when nothing stalls."""
        in_flight = self.latency + self.geometry.gating.top_k + 1
        return ceil_div(in_flight, self.geometry.interval) + 1

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        top_k = geometry.gating.top_k
        m.submodules.scores = scores = self.scores
        m.submodules.topk = topk = self.topk
        m.submodules.weights = weights = self.weights
        depth = 1 << ceil_log2(self.credits * top_k)
        m.submodules.queue = queue = StreamFifo(self.o.payload.shape(), depth)

        if self.of_prototypes:
            index, last = self._of_prototypes(m, queue)
        else:
            index, last = weights.o.index, weights.o.last
            connect_stream(m, queue.o, wiring.flipped(self.o))
        m.d.comb += [
            scores.i.eq(self.rows),
            topk.i.eq(scores.o),
            weights.i.eq(topk.o),
        ]
        if geometry.gating.selection_bias:
            m.d.comb += [self.bias_row.eq(scores.bias_row), scores.bias.eq(self.bias)]
        if self.groups:
            m.submodules.groups = groups = self.groups
            m.d.comb += [groups.i.eq(scores.o), topk.i.eq(groups.o)]
        if geometry.plan.needs_all_logits:
            self._give_all_logits(m, groups.o_all if self.groups else scores.o)

        # Credits: one per token from its launch until its last assignment is taken.
        credits = Signal(range(self.credits + 1), init=self.credits)
        done = Signal()
        if geometry.pipeline is Pipeline.DEEP:
            # The same from a register.
            left = Signal(init=1)
            m.d.sync += left.eq((credits > 1) | ((credits == 1) & ~self.launch) | done)
            m.d.comb += self.may_launch.eq(left)
        else:
            m.d.comb += self.may_launch.eq(credits != 0)
        m.d.comb += [
            done.eq(self.o.valid & self.o.ready & self.o.payload.last),
        ]
        m.d.sync += credits.eq(credits + done - self.launch)

        # Whether a token ends its batch, from launch to its last weight.
        lasts = Signal(1 << ceil_log2(self.credits))
        write = Signal(ceil_log2(self.credits))
        read = Signal(ceil_log2(self.credits))
        with m.If(self.launch):
            m.d.sync += [write.eq(write + 1), lasts.bit_select(write, 1).eq(self.launch_last)]
        with m.If(weights.o.valid & last):
            m.d.sync += read.eq(read + 1)
        m.d.comb += [
            queue.i.valid.eq(weights.o.valid),
            queue.i.payload.expert.eq(index),
            queue.i.payload.weight.eq(weights.o.weight),
            queue.i.payload.last.eq(last),
            queue.i.payload.last_token.eq(lasts.bit_select(read, 1)),
        ]
        if geometry.gives_scores:
            m.d.comb += queue.i.payload.score.eq(weights.o.score)
        return m

    def _of_prototypes(self, m, queue):
        """Return expert and "last of its token" of a prototype's choice; give a token when it is complete.

        Choices of different prototypes come as far apart as their rows. In the queue they wait for the
        token's last one, so that a token's assignments leave in consecutive cycles.
        """
        gating, o = self.geometry.gating, self.weights.o
        own = gating.of_prototype
        number = Signal(range(gating.num_prototypes))
        base = Signal(range(gating.num_experts))
        last = Signal()
        m.d.comb += last.eq(o.last & (number == gating.num_prototypes - 1))
        with m.If(o.valid & o.last):
            m.d.sync += [number.eq(number + 1), base.eq(base + own.num_experts)]
            with m.If(last):
                m.d.sync += [number.eq(0), base.eq(0)]
        complete = Signal(range(self.credits + 1))
        # As long as the queue takes.
        entered = delay(m, o.valid & last, StreamFifo.LATENCY - 1, "entered", control=True)
        left = Signal()
        m.d.comb += [
            left.eq(self.o.valid & self.o.ready & self.o.payload.last),
            self.o.payload.eq(queue.o.payload),
            self.o.valid.eq(queue.o.valid & (complete != 0)),
            queue.o.ready.eq(self.o.ready & (complete != 0)),
        ]
        m.d.sync += complete.eq(complete + entered - left)
        return base + o.index, last

    def _give_all_logits(self, m, rows):
        """Give the sum of exponentials, or the search for the largest logit, what they need."""
        weights, plan = self.weights, self.geometry.of_prototype.plan
        if self.total:
            m.submodules.total = unit = self.total
        else:
            m.submodules.largest = unit = self.largest
        if plan.carries_logit:
            m.d.comb += [unit.i.valid.eq(rows.valid), unit.i.first.eq(rows.first), unit.i.last.eq(rows.last)]
            for lane, candidate in enumerate(rows.lanes):
                m.d.comb += [
                    unit.i.lanes[lane].key.eq(candidate.payload),
                    unit.i.lanes[lane].valid.eq(candidate.valid),
                ]
        else:
            m.d.comb += unit.i.eq(rows)
        if self.total:
            m.d.comb += weights.total.eq(unit.total)
        if plan.seeks_largest:
            # Known in the cycle after the last row, like the choices' list; they come two later.
            behind = TopK.latency_of(weights.pipeline) - 1
            largest = delay(m, unit.largest, behind, "largest_of_choices")
            m.d.comb += weights.largest.eq(largest)
