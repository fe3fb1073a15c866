"""The gate: tokens in, token-expert assignments out."""

from amaranth import Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import ceil_log2
from rtl.fifo import StreamFifo
from rtl.gating.layouts import assignment_layout, token_layout
from rtl.gating.product import RouterProduct
from rtl.gating.scores import GroupMask, Scores
from rtl.gating.topk import TopK
from rtl.gating.weights import SoftmaxTotal, Weights
from rtl.stream import connect_stream
from spec.geometry import GateGeometry, ceil_div
from spec.model import Normalise, Score


class Gate(wiring.Component):
    """Route tokens: router product, score, groups, top-k, weights.

    Initiation interval ``geometry.interval`` cycles per token; k assignments leave in consecutive
    cycles if they are taken. The first is valid ``latency`` cycles after the token's product was
    launched, which is the cycle after its last input beat if the product is free. A token is
    launched only when the output queue has room for its assignments (``credits`` tokens), so
    nothing in between ever stalls. Nothing is taken in before the router is loaded and launched.
    Reset empties the block; the router has to be loaded again. Area: ``lanes`` 8x8 multipliers with
    alignment, k comparators per logit and cycle.
    Reference: :func:`golden.gating_bf16.route_bf16`; cycle model: :mod:`sim.gating`.

    Members
    -------
    i : In(stream.Signature(token_layout(stream_lanes)))
        ``geometry.input_beats`` beats per token; elements beyond d_model are ignored.
    i_load : In(stream.Signature(load_elements * 16))
        Image of the router, ``geometry.load_beats`` beats (:func:`golden.image.router_image`).
    load_start : In(1), loaded : Out(1)
        Take a new image (no token may be inside); the image is complete.
    o : Out(stream.Signature(assignment_layout(num_experts)))
        Best expert first.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        gating = geometry.gating
        self.product = RouterProduct(geometry)
        self.scores = Scores(geometry)
        self.groups = GroupMask(geometry) if gating.grouped else None
        self.topk = TopK(geometry)
        needs_total = gating.score is Score.SOFTMAX and gating.normalise is Normalise.NONE
        self.total = SoftmaxTotal(geometry) if needs_total else None
        self.weights = Weights(geometry, self.total.latency if self.total else 0)
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(geometry.stream_lanes))),
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "o": Out(stream.Signature(assignment_layout(gating.num_experts))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a token's launch to its first assignment on the output."""
        return (
            self.product.latency
            + self.scores.latency
            + (self.groups.latency if self.groups else 0)
            + self.topk.LATENCY
            + self.weights.latency
            + StreamFifo.LATENCY
        )

    @property
    def credits(self) -> int:
        """Tokens between launch and output: enough to launch one per interval when nothing stalls."""
        in_flight = self.latency + self.geometry.gating.top_k + 1
        return ceil_div(in_flight, self.geometry.interval) + 1

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        top_k = geometry.gating.top_k
        m.submodules.product = product = self.product
        m.submodules.scores = scores = self.scores
        m.submodules.topk = topk = self.topk
        m.submodules.weights = weights = self.weights
        depth = 1 << ceil_log2(self.credits * top_k)
        m.submodules.queue = queue = StreamFifo(self.o.payload.shape(), depth)

        connect_stream(m, wiring.flipped(self.i), product.i)
        connect_stream(m, wiring.flipped(self.i_load), product.i_load)
        connect_stream(m, queue.o, wiring.flipped(self.o))
        m.d.comb += [
            product.load_start.eq(self.load_start),
            self.loaded.eq(product.loaded),
            scores.i.eq(product.rows),
            topk.i.eq(scores.o),
            weights.i.eq(topk.o),
        ]
        if geometry.gating.selection_bias:
            m.d.comb += [product.bias_row.eq(scores.bias_row), scores.bias.eq(product.bias)]
        if self.groups:
            m.submodules.groups = groups = self.groups
            m.d.comb += [groups.i.eq(scores.o), topk.i.eq(groups.o)]
        if self.total:
            m.submodules.total = total = self.total
            m.d.comb += [total.i.eq(scores.o), weights.total.eq(total.total)]

        # Credits: one per token from its launch until its last assignment is taken.
        credits = Signal(range(self.credits + 1), init=self.credits)
        done = Signal()
        m.d.comb += [
            product.may_launch.eq(credits != 0),
            done.eq(self.o.valid & self.o.ready & self.o.payload.last),
        ]
        m.d.sync += credits.eq(credits + done - product.launch)

        # Whether a token ends its batch, from launch to its last weight.
        lasts = Signal(1 << ceil_log2(self.credits))
        write = Signal(ceil_log2(self.credits))
        read = Signal(ceil_log2(self.credits))
        with m.If(product.launch):
            m.d.sync += [write.eq(write + 1), lasts.bit_select(write, 1).eq(product.launch_last)]
        with m.If(weights.o.valid & weights.o.last):
            m.d.sync += read.eq(read + 1)
        m.d.comb += [
            queue.i.valid.eq(weights.o.valid),
            queue.i.payload.expert.eq(weights.o.index),
            queue.i.payload.weight.eq(weights.o.weight),
            queue.i.payload.last.eq(weights.o.last),
            queue.i.payload.last_token.eq(lasts.bit_select(read, 1)),
        ]
        return m
