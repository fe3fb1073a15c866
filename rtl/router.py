"""The router in the banks: which tokens are routed when, and its jobs among the dispatcher's."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.expert.layouts import job_layout
from rtl.fifo import StreamFifo
from rtl.gating.logits import GROUPS
from rtl.pim.layouts import PimConfig


class RouterJobs(wiring.Component):
    """Give each group of tokens to the banks as a job with the router.

    A group is the next ``group_tokens`` tokens of a batch, or those left at its end: groups never ask for a
    token that their window could be served without. It is given once all its tokens are in the store and
    the gate has room for all its logits. A token's last beat in cycle c lets its group's first entry be
    valid in c + ``LATENCY``; one entry per cycle. Empty after reset.

    Members
    -------
    token : In(1), token_last : In(1)
        A token's last beat is being stored; it ends the batch.
    freed : In(1)
        The gate has read a group's logits.
    given : Out(1), given_last : Out(1)
        The last entry of a group is taken; its last token ends the batch.
    o : Out(stream.Signature(job_layout(config)))
    """

    LATENCY = StreamFifo.LATENCY

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        self.group_tokens = config.router_tokens
        super().__init__(
            {
                "token": In(1),
                "token_last": In(1),
                "freed": In(1),
                "given": Out(1),
                "given_last": Out(1),
                "o": Out(stream.Signature(job_layout(config))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        number = Signal(range(self.group_tokens))
        layout = data.StructLayout({"last_token": number.shape(), "ends_batch": 1})
        # Every group has a token inside: there is always room.
        m.submodules.groups = groups = StreamFifo(layout, config.num_slots)
        full = Signal()
        m.d.comb += [
            full.eq(self.token_last | (number == self.group_tokens - 1)),
            groups.i.valid.eq(self.token & full),
            groups.i.payload.last_token.eq(number),
            groups.i.payload.ends_batch.eq(self.token_last),
        ]
        with m.If(self.token):
            m.d.sync += number.eq(Mux(full, 0, number + 1))

        room = Signal(range(GROUPS + 1), init=GROUPS)
        taken = Signal(range(self.group_tokens))  # entries of the group
        slot = Signal(range(config.num_slots))
        take = Signal()
        m.d.comb += [
            self.o.valid.eq(groups.o.valid & (room != 0)),
            self.o.payload.expert.eq(config.num_experts + 1),
            self.o.payload.slot.eq(slot),
            self.o.payload.last.eq(taken == groups.o.payload.last_token),
            take.eq(self.o.valid & self.o.ready),
            self.given.eq(take & self.o.payload.last),
            self.given_last.eq(groups.o.payload.ends_batch),
            groups.o.ready.eq(self.given),
        ]
        with m.If(take):
            m.d.sync += [
                taken.eq(Mux(self.o.payload.last, 0, taken + 1)),
                # There is a power of two of them.
                slot.eq(slot + 1),
            ]
        m.d.sync += room.eq(room + self.freed - self.given)
        return m


class JobMerge(wiring.Component):
    """Two streams of jobs into one, whole jobs, the router's first.

    Combinational from the inputs to the output and back. A job keeps the output until its last entry, and
    an entry that was offered until it is taken.

    Members
    -------
    i_router : In(stream.Signature(job_layout(config)))
    i_expert : In(stream.Signature(entry)), the dispatcher's
    o : Out(stream.Signature(job_layout(config)))
    """

    def __init__(self, config: PimConfig, entry) -> None:
        job = job_layout(config)
        super().__init__(
            {
                "i_router": In(stream.Signature(job)),
                "i_expert": In(stream.Signature(entry)),
                "o": Out(stream.Signature(job)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        held = Signal()
        held_router = Signal()
        router = Signal()
        m.d.comb += [
            router.eq(Mux(held, held_router, self.i_router.valid)),
            self.o.valid.eq(Mux(router, self.i_router.valid, self.i_expert.valid)),
            self.i_router.ready.eq(self.o.ready & router),
            self.i_expert.ready.eq(self.o.ready & ~router),
        ]
        for name in self.i_expert.payload.shape().members:
            m.d.comb += self.o.payload[name].eq(
                Mux(router, self.i_router.payload[name], self.i_expert.payload[name])
            )
        with m.If(self.o.valid):
            m.d.sync += [held.eq(~(self.o.ready & self.o.payload.last)), held_router.eq(router)]
        return m
