"""Which queue is served next, and by which unit."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.dispatch.first import FirstOf
from rtl.dispatch.layouts import DispatchConfig, ServicePolicy, close_port, lookup_port
from rtl.dispatch.units import Units


class Picker(wiring.Component):
    """Choose the next queue to serve and its unit; hold the state of both windows.

    Only queues that an available unit may serve take part. Those of the older window come first; where
    none of them can be served, those of the younger one, if it is closed. Since an older window's queue
    of the same expert could be served as well, an expert's windows keep their order.

    Latency 1 cycle from ``close`` to a choice, 1 from the choice to ``o``; one job per cycle. The whole
    choice is one combinational path: placement, tree over the experts, tree over the units. A window
    without any job is done in one cycle. After reset no window is closed and no unit has a job.

    Members
    -------
    policy : In(ServicePolicy)
    close : In, from :class:`rtl.dispatch.enqueue.Enqueue`.
    nonempty, num_queues, lengths, placement : In, from :class:`rtl.dispatch.tables.QueueTables`;
        ``lengths`` where queues are counted, ``placement`` with several units.
    clear : Out, a queue's bit goes when it is chosen.
    retired : In(num_units), with several units: one has finished its oldest job.
    drained : In, the window of ``drained_parity`` has been served.
    full : Out(2), per parity: closed and not yet served.
    o : Out(stream.Signature(job))
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        members = {
            "policy": In(ServicePolicy),
            "close": In(close_port(config)),
            "nonempty": In(data.ArrayLayout(config.num_experts, 2)),
            "num_queues": In(data.ArrayLayout(range(config.num_experts + 1), 2)),
            "clear": Out(lookup_port(config)),
            "drained": In(1),
            "drained_parity": In(1),
            "full": Out(2),
            "o": Out(stream.Signature(config.job)),
        }
        if config.counted:
            lengths = data.ArrayLayout(config.queue_length, config.num_experts)
            members["lengths"] = In(data.ArrayLayout(lengths, 2))
        if config.num_units > 1:
            members |= {"placement": In(config.placement), "retired": In(config.num_units)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        oldest = Signal()  # parity of the older window that is closed and has queues left to choose
        closed = Signal(2)  # per parity: closed, and some queue (or nothing at all) still to choose
        shared_left = Signal(2)
        # Signals of their own: parts of one that hang on each other look like a loop to a linter.
        expert = Signal(range(config.num_experts + 1))
        parity = Signal()
        final = Signal()
        choose = Signal()
        done = Signal()
        done_parity = Signal()
        none = Signal()  # everything in the older window was dropped

        queues_left = [self.num_queues[n] + (shared_left[n] if config.shared else 0) for n in range(2)]
        left = Signal(range(config.num_experts + 2))
        m.d.comb += [
            left.eq(Mux(parity, queues_left[1], queues_left[0])),
            none.eq(closed.bit_select(oldest, 1) & (Mux(oldest, queues_left[1], queues_left[0]) == 0)),
            final.eq(left == 1),
        ]
        found, take_shared, unit = self._queue(m, oldest, closed, shared_left, expert, parity, choose)
        chosen = Signal(config.job)
        m.d.comb += [
            chosen.expert.eq(expert),
            chosen.parity.eq(parity),
            chosen.unit.eq(unit),
            chosen.final.eq(final),
            choose.eq(found & ~none & (~self.o.valid | self.o.ready)),
            done.eq((choose & final) | none),
            done_parity.eq(Mux(none, oldest, parity)),
            self.clear.valid.eq(choose & ~take_shared),
            self.clear.queue.expert.eq(expert),
            self.clear.queue.parity.eq(parity),
        ]
        with m.If(choose):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(chosen)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        with m.If(choose & take_shared):
            m.d.sync += shared_left.bit_select(parity, 1).eq(0)
        with m.If(done):
            m.d.sync += [oldest.eq(~done_parity), closed.bit_select(done_parity, 1).eq(0)]
        with m.If(none):
            m.d.sync += self.full.bit_select(oldest, 1).eq(0)
        with m.If(self.drained):
            m.d.sync += self.full.bit_select(self.drained_parity, 1).eq(0)
        with m.If(self.close.valid):
            m.d.sync += [
                self.full.bit_select(self.close.parity, 1).eq(1),
                closed.bit_select(self.close.parity, 1).eq(1),
                shared_left.bit_select(self.close.parity, 1).eq(1),
            ]
            # The younger one may have been the last to be done.
            with m.If(closed == 0):
                m.d.sync += oldest.eq(self.close.parity)
        return m

    def _queue(self, m, oldest, closed, shared_left, expert, parity, choose):
        """Choose a queue; return "there is one", "it is the shared expert's", and the unit that serves it."""
        config = self.config
        key_bits = len(self.lengths[0][0]) if config.counted else 0
        m.submodules.first = first = FirstOf(config.num_experts, key_bits)
        take_shared = Signal()
        found = Signal()
        m.d.comb += expert.eq(Mux(take_shared, config.num_experts, first.index))
        if config.counted:
            m.d.comb += first.keys.eq(self.lengths[parity])
        if config.longest_queue:
            m.d.comb += first.by_key.eq(self.policy == ServicePolicy.LONGEST_QUEUE)
        if config.num_units == 1:
            m.d.comb += [
                parity.eq(oldest),
                first.bits.eq(self.nonempty[oldest]),
                take_shared.eq(shared_left.bit_select(oldest, 1) & int(config.shared)),
                found.eq(closed.bit_select(oldest, 1) & (take_shared | first.any)),
            ]
            return found, take_shared, 0

        m.submodules.units = units = Units(config)
        reachable = Cat((replicas & units.available).any() for replicas in self.placement)
        servable = []
        for n in range(2):
            routed = Signal(config.num_experts, name=f"routed_{n}")
            shared = Signal(name=f"shared_{n}")
            m.d.comb += [
                routed.eq(Mux(closed[n], self.nonempty[n] & reachable[:-1], 0)),
                shared.eq(closed[n] & shared_left[n] & reachable[-1] & int(config.shared)),
            ]
            servable.append((routed, shared, routed.any() | shared))
        in_oldest = Signal()
        tokens = Signal(data.ArrayLayout(config.queue_length, 2), reset_less=True)
        with m.If(self.close.valid):
            m.d.sync += tokens[self.close.parity].eq(self.close.tokens)
        m.d.comb += [
            in_oldest.eq(Mux(oldest, servable[1][2], servable[0][2])),
            parity.eq(oldest ^ ~in_oldest),
            first.bits.eq(Mux(parity, servable[1][0], servable[0][0])),
            take_shared.eq(Mux(parity, servable[1][1], servable[0][1])),
            found.eq(take_shared | first.any),
            units.retired.eq(self.retired),
            units.replicas.eq(self.placement[expert]),
            units.length.eq(Mux(take_shared, tokens[parity], first.key)),
            units.give.eq(choose),
        ]
        return found, take_shared, units.unit
