"""The queues of two windows, and who may serve them."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.dispatch.layouts import (
    DispatchConfig,
    entry_read_port,
    lookup_port,
    place_members,
    push_port,
    queue_read_port,
    ranks_port,
    shared_weight_port,
)
from rtl.ram import Ram, ReadSignature


class QueueTables(wiring.Component):
    """The queues of two windows: linked lists over a shared entry store, and who may serve them.

    Contents of the RAMs count only where a bit of ``nonempty`` says so; nothing else is reset but the
    numbers of queues. Area: RAM bits ``entry_depth * (16 + id_bits)`` for the entries, twice
    ``num_experts * id_bits`` each for heads and tails, ``num_slots * top_k * rank bits`` for ranks.
    Flip-flops: a bit per queue; where queues are counted their lengths; with several units a bit per
    expert and unit for the placement, all of which the picker looks at in every cycle.

    What is read for a job is of a window that is closed; what is written, of the one that is open.

    Members
    -------
    lookup, push : In, from :class:`rtl.dispatch.enqueue.Enqueue`; a push uses the tail that the last lookup
        has read.
    ranks : In, ranks of a token's entries, if the configuration asks for them.
    nonempty : Out(2 x num_experts), the queues that hold an entry.
    num_queues : Out, per parity: how many there are.
    lengths : Out(2 x num_experts), entries of each queue that holds one; if the configuration counts.
    clear : In, forget this queue's bit.
    queue : In, read head and tail of a job's queue; data one cycle later, held.
    entry : In, read an entry's weight, successor and rank; data one cycle later, held.
    shared_weight, shared_read : In, write and read tokens' weights for the shared expert; if it has a gate.
    place_* : In, write port of the placement table; placement : Out, the table; with several units only.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        per_queue = data.ArrayLayout(config.num_experts, 2)
        members = {
            "lookup": In(lookup_port(config)),
            "push": In(push_port(config)),
            "nonempty": Out(per_queue),
            "num_queues": Out(data.ArrayLayout(range(config.num_experts + 1), 2)),
            "clear": In(lookup_port(config)),
            "queue": In(queue_read_port(config)),
            "entry": In(entry_read_port(config)),
        }
        if config.counted:
            lengths = data.ArrayLayout(config.queue_length, config.num_experts)
            members["lengths"] = Out(data.ArrayLayout(lengths, 2))
        if config.ranks:
            members["ranks"] = In(ranks_port(config))
        if config.shared_gate:
            members["shared_weight"] = In(shared_weight_port(config))
            members["shared_read"] = In(ReadSignature(16, config.num_slots))
        if config.num_units > 1:
            members |= place_members(config)
            members["placement"] = Out(config.placement)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        was_empty = Signal()
        if config.deep:
            # The lookup is a cycle before the push; a push of that cycle may be to the same queue.
            again = self.push.valid & (self.push.queue == self.lookup.queue)
            m.d.sync += was_empty.eq(~(self._bit(self.nonempty, self.lookup.queue) | again))
        else:
            m.d.comb += was_empty.eq(~self._bit(self.nonempty, self.push.queue))
        self._state(m, was_empty)
        self._queues(m, was_empty)
        self._entries(m)
        if config.counted:
            self._lengths(m, was_empty)
        if config.ranks:
            self._ranks(m)
        if config.shared_gate:
            m.submodules.shared_weights = weights = Ram(width=16, depth=config.num_slots)
            m.d.comb += [
                weights.write.en.eq(self.shared_weight.valid),
                weights.write.addr.eq(self.shared_weight.slot),
                weights.write.data.eq(self.shared_weight.weight),
            ]
            wiring.connect(m, wiring.flipped(self.shared_read), weights.read_0)
        if config.num_units > 1:
            self._placement(m)
        return m

    def _state(self, m, was_empty):
        with m.If(self.clear.valid):
            m.d.sync += self._bit(self.nonempty, self.clear.queue).eq(0)
        with m.If(self.push.valid):
            m.d.sync += self._bit(self.nonempty, self.push.queue).eq(1)
        for parity in range(2):
            more = Signal(name=f"more_{parity}")
            less = Signal(name=f"less_{parity}")
            m.d.comb += [
                more.eq(self.push.valid & was_empty & (self.push.queue.parity == parity)),
                less.eq(self.clear.valid & (self.clear.queue.parity == parity)),
            ]
            m.d.sync += self.num_queues[parity].eq(self.num_queues[parity] + more - less)

    def _queues(self, m, was_empty):
        config = self.config
        depth = 2 << config.expert_bits
        m.submodules.heads = heads = Ram(width=config.id_bits, depth=depth, apart=config.deep)
        m.submodules.tails = tails = Ram(
            width=config.id_bits, depth=depth, num_read_ports=2, transparent=True
        )
        head, tail, old_tail = heads.read_0, tails.read_0, tails.read_1
        served = Signal(config.queue_id)
        m.d.comb += [
            old_tail.en.eq(self.lookup.valid),
            old_tail.addr.eq(self.lookup.queue),
            tails.write.en.eq(self.push.valid),
            tails.write.addr.eq(self.push.queue),
            tails.write.data.eq(self.push.entry),
            heads.write.en.eq(self.push.valid & was_empty),
            heads.write.addr.eq(self.push.queue),
            heads.write.data.eq(self.push.entry),
            served.expert.eq(self.queue.job.expert),
            served.parity.eq(self.queue.job.parity),
            head.en.eq(self.queue.en),
            head.addr.eq(served),
            tail.en.eq(self.queue.en),
            tail.addr.eq(served),
            self.queue.head.eq(head.data),
            self.queue.tail.eq(tail.data),
        ]
        link = Signal()
        link_from = Signal(config.entry_id)
        m.d.comb += [link.eq(self.push.valid & ~was_empty), link_from.eq(old_tail.data)]
        self._links(m, link, link_from)

    def _links(self, m, link, link_from):
        config = self.config
        m.submodules.nexts = nexts = Ram(width=config.id_bits, depth=config.entry_depth, apart=config.deep)
        m.d.comb += [
            nexts.write.en.eq(link),
            nexts.write.addr.eq(link_from),
            nexts.write.data.eq(self.push.entry),
            nexts.read_0.en.eq(self.entry.en),
            nexts.read_0.addr.eq(self.entry.entry),
            self.entry.next.eq(nexts.read_0.data),
        ]

    def _entries(self, m):
        config = self.config
        m.submodules.weights = weights = Ram(width=16, depth=config.entry_depth, apart=config.deep)
        m.d.comb += [
            weights.write.en.eq(self.push.valid),
            weights.write.addr.eq(self.push.entry),
            weights.write.data.eq(self.push.weight),
            weights.read_0.en.eq(self.entry.en),
            weights.read_0.addr.eq(self.entry.entry),
            self.entry.weight.eq(weights.read_0.data),
        ]

    def _lengths(self, m, was_empty):
        lengths = Signal(self.signature.members["lengths"].shape, reset_less=True)
        queue = self.push.queue
        length = lengths[queue.parity][queue.expert]
        m.d.comb += self.lengths.eq(lengths)
        with m.If(self.push.valid):
            m.d.sync += length.eq(Mux(was_empty, 1, length + 1))

    def _ranks(self, m):
        config = self.config
        if config.max_count == 1:
            return
        m.submodules.token_ranks = ranks = Ram(width=config.token_ranks.size, depth=config.num_slots)
        place = Signal(range(config.top_k))
        with m.If(self.entry.en):
            m.d.sync += place.eq(self.entry.entry.j)
        m.d.comb += [
            ranks.write.en.eq(self.ranks.valid),
            ranks.write.addr.eq(self.ranks.slot),
            ranks.write.data.eq(self.ranks.ranks),
            ranks.read_0.en.eq(self.entry.en),
            ranks.read_0.addr.eq(self.entry.entry.slot),
            self.entry.rank.eq(data.View(config.token_ranks, ranks.read_0.data)[place]),
        ]

    def _placement(self, m):
        placement = Signal(self.config.placement, reset_less=True)
        m.d.comb += self.placement.eq(placement)
        with m.If(self.place_we):
            m.d.sync += placement[self.place_addr].eq(self.place_units)

    def _bit(self, bitmaps, queue):
        return (
            bitmaps.as_value().word_select(queue.parity, self.config.num_experts).bit_select(queue.expert, 1)
        )
