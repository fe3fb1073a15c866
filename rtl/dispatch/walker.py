"""Jobs in, their entries out."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_ONE
from rtl.dispatch.layouts import DispatchConfig, close_port, entry_read_port, queue_read_port
from rtl.ram import ReadSignature


class Walker(wiring.Component):
    """Turn jobs into their entries: read a queue's ends, then follow its links.

    A job's head and tail are read while the queue before is still being walked. Latency 2 cycles from
    ``i`` to the first entry at ``o``; one entry per cycle, none lost between queues. The shared
    expert's queue is no list: it is the window's slots, in order. After reset nothing is held.

    Members
    -------
    i : In(stream.Signature(job))
    queue, entry : Out, read ports of :class:`rtl.dispatch.tables.QueueTables`.
    close : In, from :class:`rtl.dispatch.enqueue.Enqueue`: the last slot of a window.
    drained, drained_parity : Out, the last entry of a window is taken in this cycle.
    shared_read : Out, read port of the tokens' weights for the shared expert, where it has a gate.
    o : Out(stream.Signature(entry))
    o_unit : Out, the unit that serves the entry at ``o``.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        gate = {"shared_read": Out(ReadSignature(16, config.num_slots))} if config.shared_gate else {}
        super().__init__(
            {
                **gate,
                "i": In(stream.Signature(config.job)),
                "queue": Out(queue_read_port(config)),
                "entry": Out(entry_read_port(config)),
                "close": In(close_port(config)),
                "drained": Out(1),
                "drained_parity": Out(1),
                "o": Out(stream.Signature(config.entry)),
                "o_unit": Out(range(config.num_units)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # Head stage: the job whose head and tail stand at the read ports.
        head_valid = Signal()
        head_job = Signal(config.job)
        take_head = Signal()
        m.d.comb += [
            self.i.ready.eq(~head_valid | take_head),
            self.queue.en.eq(self.i.valid & self.i.ready),
            self.queue.job.eq(self.i.payload),
        ]
        with m.If(self.i.ready):
            m.d.sync += [head_valid.eq(self.i.valid), head_job.eq(self.i.payload)]

        # Entry stage: the entry whose weight and successor stand at the read ports.
        valid = Signal()
        job = Signal(config.job)
        entry = Signal(config.entry_id)
        tail = Signal(config.entry_id)
        at_tail = Signal()
        head_is_last = Signal()
        next_is_last = Signal()
        fire = Signal()
        take_next = Signal()
        if config.deep:
            # Known with the entry: what may come next, and where it ends, stands at the read ports.
            m.d.comb += [
                head_is_last.eq(self.queue.head == self.queue.tail),
                next_is_last.eq(self.entry.next == tail),
            ]
            with m.If(take_head):
                m.d.sync += at_tail.eq(head_is_last)
            with m.Elif(take_next):
                m.d.sync += at_tail.eq(next_is_last)
        else:
            m.d.comb += at_tail.eq(entry == tail)
        m.d.comb += [
            fire.eq(valid & self.o.ready),
            take_next.eq(fire & ~at_tail),
            take_head.eq(head_valid & (~valid | (fire & at_tail))),
            self.entry.en.eq(take_head | take_next),
            self.entry.entry.eq(Mux(take_next, self.entry.next, self.queue.head)),
            self.drained.eq(fire & at_tail & job.final),
            self.drained_parity.eq(job.parity),
            self.o.valid.eq(valid),
            self.o.payload.expert.eq(job.expert),
            self.o.payload.slot.eq(entry.slot),
            self.o.payload.weight.eq(self.entry.weight),
            self.o.payload.last.eq(at_tail),
            self.o_unit.eq(job.unit),
        ]
        if config.ranks:
            m.d.comb += self.o.payload.rank.eq(self.entry.rank)
        with m.If(take_head):
            m.d.sync += [job.eq(head_job), tail.eq(self.queue.tail)]
        with m.If(self.entry.en):
            m.d.sync += entry.eq(self.entry.entry)
        with m.If(take_head | fire):
            m.d.sync += valid.eq(self.entry.en)
        if config.shared:
            lasts = (head_is_last, next_is_last)
            self._walk_shared(
                m, head_job=head_job, take_head=take_head, job=job, entry=entry, tail=tail, lasts=lasts
            )
        return m

    def _walk_shared(self, m, *, head_job, take_head, job, entry, tail, lasts):
        """Replace the list by the window's slots where the job is the shared expert's.

        The slots of all windows follow each other, so one running slot gives every next entry.
        """
        config = self.config
        slot = Signal(range(config.num_slots))
        last_slots = Signal(data.ArrayLayout(range(config.num_slots), 2))
        with m.If(self.close.valid):
            m.d.sync += last_slots[self.close.parity].eq(self.close.last_slot)

        head_is_shared = Signal()
        is_shared = Signal()
        take_shared = Signal()
        m.d.comb += [
            head_is_shared.eq(head_job.expert == config.num_experts),
            is_shared.eq(job.expert == config.num_experts),
            take_shared.eq(self.entry.en & Mux(take_head, head_is_shared, is_shared)),
        ]
        with m.If(take_shared):
            m.d.sync += [entry.slot.eq(slot), entry.j.eq(0), slot.eq(slot + 1)]
        with m.If(take_head & head_is_shared):
            m.d.sync += [tail.slot.eq(last_slots[head_job.parity]), tail.j.eq(0)]
        if config.deep:
            head_is_last, next_is_last = lasts
            with m.If(head_is_shared):
                m.d.comb += head_is_last.eq(slot == last_slots[head_job.parity])
            with m.If(is_shared):
                m.d.comb += next_is_last.eq(slot == tail.slot)
        weight = BF16_ONE
        if config.shared_gate:
            m.d.comb += [self.shared_read.en.eq(take_shared), self.shared_read.addr.eq(slot)]
            weight = self.shared_read.data
        with m.If(is_shared):
            m.d.comb += self.o.payload.weight.eq(weight)
            if config.ranks:
                m.d.comb += self.o.payload.rank.eq(0)
