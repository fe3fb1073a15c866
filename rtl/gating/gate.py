"""The gate: tokens in, or their logits from the banks; token-expert assignments out."""

from amaranth import Module, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.gating.layouts import assignment_layout, given_score_bits, logit_part_layout, token_layout
from rtl.gating.logits import LogitStore
from rtl.gating.product import BiasMemory, RouterProduct
from rtl.gating.shared import insert_shared_gate, selection_behind
from rtl.stream import connect_stream
from spec.geometry import GateGeometry, RouterGeometry


def _assignment(geometry: GateGeometry):
    return assignment_layout(
        geometry.gating.num_experts,
        shared_gate=geometry.shared_gate,
        score_bits=given_score_bits(geometry),
    )


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
    o : Out(stream.Signature(assignment_layout(num_experts, shared_gate=..., score_bits=...)))
        Best expert first; with the weight of a shared expert that has a gate, and the score where the
        geometry says so.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        self.product = RouterProduct(geometry)
        self.selection = selection_behind(geometry, self.product.latency)
        super().__init__(
            {
                "i": In(stream.Signature(token_layout(geometry.stream_lanes))),
                "i_load": In(stream.Signature(unsigned(geometry.load_elements * 16))),
                "load_start": In(1),
                "loaded": Out(1),
                "o": Out(stream.Signature(_assignment(geometry))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a token's launch to its first assignment on the output."""
        return self.selection.latency

    @property
    def credits(self) -> int:
        """Tokens between launch and output."""
        return self.selection.credits

    @property
    def most_tokens(self) -> int:
        """Tokens inside at most: in the buffers of the product, and from launch to output."""
        return self.geometry.num_token_buffers + self.credits

    def elaborate(self, platform):
        m = Module()
        m.submodules.product = product = self.product
        m.submodules.selection = selection = self.selection
        connect_stream(m, wiring.flipped(self.i), product.i)
        connect_stream(m, wiring.flipped(self.i_load), product.i_load)
        rows, assignments = insert_shared_gate(m, self.geometry, product.rows, selection)
        connect_stream(m, assignments, wiring.flipped(self.o))
        m.d.comb += [
            product.load_start.eq(self.load_start),
            self.loaded.eq(product.loaded),
            product.may_launch.eq(selection.may_launch),
            selection.launch.eq(product.launch),
            selection.launch_last.eq(product.launch_last),
            selection.rows.eq(rows),
        ]
        if self.geometry.gating.selection_bias:
            m.d.comb += [product.bias_row.eq(selection.bias_row), selection.bias.eq(product.bias)]
        return m


class BankedGate(wiring.Component):
    """Route tokens whose logits the banks compute: logits stored, score, groups, top-k, weights.

    A token is launched as soon as all its logits are there, at most every ``geometry.interval`` cycles,
    and only when the output queue has room for its assignments; its first one is valid ``latency`` cycles
    later. The logits of two groups of tokens fit in: whoever has them computed counts (``given``,
    ``freed``). Reset empties the block; a selection bias has to be loaded again.
    Reference: :func:`golden.gating_bf16.route_bf16`; cycle model: :func:`sim.gating.banked_gate_cycles`.

    Members
    -------
    i : In(logit_part_layout(rows, group_tokens))
        What a register read brings, never refused.
    given : In(1), given_last : In(1)
        A group of tokens is given to the banks; its last token ends the batch.
    freed : Out(1)
        A group's logits have been read.
    i_load, load_start, loaded : as :class:`Gate`'s, for the selection bias
        (``geometry.load_beats`` beats; without one, there is no ``i_load``, and ``loaded`` is always set).
    o : Out(stream.Signature(assignment_layout(num_experts, shared_gate=..., score_bits=...)))
        Best expert first; with the weight of a shared expert that has a gate, and the score where the
        geometry says so.
    """

    def __init__(self, router: RouterGeometry, group_tokens: int) -> None:
        self.geometry: GateGeometry = router.gate
        self.store = LogitStore(router, group_tokens)
        self.selection = selection_behind(self.geometry, self.store.latency)
        load = {"i_load": In(stream.Signature(unsigned(self.geometry.load_elements * 16)))}
        super().__init__(
            {
                "i": In(logit_part_layout(router.rows, group_tokens)),
                "given": In(1),
                "given_last": In(1),
                "freed": Out(1),
                **(load if self.geometry.has_bias else {}),
                "load_start": In(1),
                "loaded": Out(1),
                "o": Out(stream.Signature(_assignment(self.geometry))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a token's launch to its first assignment on the output."""
        return self.selection.latency

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = self.store
        m.submodules.selection = selection = self.selection
        rows, assignments = insert_shared_gate(m, self.geometry, store.rows, selection)
        connect_stream(m, assignments, wiring.flipped(self.o))
        m.d.comb += [
            store.i.eq(self.i),
            store.given.eq(self.given),
            store.given_last.eq(self.given_last),
            self.freed.eq(store.freed),
            store.may_launch.eq(selection.may_launch & self.loaded),
            selection.launch.eq(store.launch),
            selection.launch_last.eq(store.launch_last),
            selection.rows.eq(rows),
        ]
        if self.geometry.has_bias:
            m.submodules.bias_memory = bias = BiasMemory(self.geometry)
            connect_stream(m, wiring.flipped(self.i_load), bias.i_load)
            m.d.comb += [
                bias.load_start.eq(self.load_start),
                self.loaded.eq(bias.loaded),
                bias.row.eq(selection.bias_row),
                selection.bias.eq(bias.data),
            ]
        else:
            m.d.comb += self.loaded.eq(1)
        return m
