"""Dispatcher: token-expert assignments in, one queue per expert and window, whole queues out.

Tokens are collected in windows. While one window is being filled the one before is served, expert by
expert, so that an expert's weights are fetched once for all the tokens of a window that chose it.
The queues are linked lists over one entry store: an assignment's place in it is ``{slot, j}`` (the
token's slot, its j-th expert), so nothing is allocated and nothing can overflow.

::

    i --> enqueue --push--> tables (head, tail, next, weight) <--read-- walker --> o_0, o_1, ...
             |                 ^ nonempty                                 ^
             +--> o_expect     +---------------- picker -----jobs---------+

References: :func:`golden.dispatch_streams.dispatch_streams` (what), :mod:`sim.dispatch` (when).
"""

from dataclasses import dataclass

from amaranth import Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from golden.formats import BF16_ONE
from rtl.ram import Ram
from rtl.stream import StreamRegister, connect_stream
from spec.errors import require, require_range


class ServicePolicy(enum.Enum, shape=2):
    """Order of service within a window; reserved values behave as ``QUEUE_ORDER``.

    ``QUEUE_ORDER``: the shared expert, then ascending expert index; arrival order inside an expert.
    """

    QUEUE_ORDER = 0


@dataclass(frozen=True, kw_only=True)
class DispatchConfig:
    """Size of a dispatcher.

    Attributes
    ----------
    num_experts, top_k : routed experts, assignments per token.
    window_tokens : most tokens that are dispatched together, a power of two.
    num_units : expert engines, one output stream each.
    shared : the model has a shared expert, numbered ``num_experts``, which serves every token.
    capacity_bits : width of the capacity input, hence its largest value.
    """

    num_experts: int
    top_k: int
    window_tokens: int
    num_units: int = 1
    shared: bool = False
    capacity_bits: int = 16

    def __post_init__(self) -> None:
        require_range("num_experts", self.num_experts, 1, 512)
        require(
            1 <= self.top_k <= self.num_experts,
            f"must be in 1..num_experts={self.num_experts}, not {self.top_k}",
            key="top_k",
        )
        require(
            1 <= self.window_tokens <= 1024 and self.window_tokens & (self.window_tokens - 1) == 0,
            f"must be a power of two in 1..1024, not {self.window_tokens}",
            key="window_tokens",
        )
        require_range("num_units", self.num_units, 1, 64)
        require_range("capacity_bits", self.capacity_bits, 1, 32)

    @property
    def num_slots(self) -> int:
        """Slots of the token store: two windows."""
        return 2 * self.window_tokens

    @property
    def expert_bits(self) -> int:
        """Bits that number the routed experts."""
        return ceil_log2(self.num_experts)

    @property
    def id_bits(self) -> int:
        """Bits of a place in the entry store."""
        return self.entry_id.size

    @property
    def entry_depth(self) -> int:
        """Rows of the entry store."""
        return 1 << self.id_bits

    @property
    def assignment(self) -> data.StructLayout:
        """Payload of ``i``."""
        return data.StructLayout(
            {"expert": range(self.num_experts), "weight": 16, "last": 1, "last_token": 1}
        )

    @property
    def expect(self) -> data.StructLayout:
        """Payload of ``o_expect``."""
        return expect_layout(self.num_slots, self.top_k + self.shared)

    @property
    def entry(self) -> data.StructLayout:
        """Payload of the outputs ``o_0``, ``o_1``, ..."""
        return data.StructLayout(
            {"expert": range(self.num_experts + 1), "slot": range(self.num_slots), "weight": 16, "last": 1}
        )

    @property
    def entry_id(self) -> data.StructLayout:
        """Place of an assignment in the entry store."""
        return data.StructLayout({"j": range(self.top_k), "slot": range(self.num_slots)})

    @property
    def queue_id(self) -> data.StructLayout:
        """One of the queues: an expert's, in the window of this parity."""
        return data.StructLayout({"expert": range(self.num_experts), "parity": 1})

    @property
    def job(self) -> data.StructLayout:
        """A queue to serve; ``final`` marks the last one of its window."""
        return data.StructLayout({"expert": range(self.num_experts + 1), "parity": 1, "final": 1})

    def outputs(self) -> list[str]:
        """Names of the output streams, one per unit."""
        return [f"o_{unit}" for unit in range(self.num_units)]


def expect_layout(num_slots: int, max_count: int) -> data.StructLayout:
    """Return what a token's slot waits for; ``last_token`` where the token ends its batch."""
    return data.StructLayout({"slot": range(num_slots), "count": range(max_count + 1), "last_token": 1})


def _lookup_port(config):
    return wiring.Signature({"valid": Out(1), "queue": Out(config.queue_id)})


def _push_port(config):
    return wiring.Signature(
        {
            "valid": Out(1),
            "queue": Out(config.queue_id),
            "entry": Out(config.entry_id),
            "weight": Out(16),
        }
    )


def _close_port(config):
    return wiring.Signature({"valid": Out(1), "parity": Out(1), "last_slot": Out(range(config.num_slots))})


def _queue_read_port(config):
    return wiring.Signature(
        {
            "en": Out(1),
            "job": Out(config.job),
            "head": In(config.entry_id),
            "tail": In(config.entry_id),
            "unit": In(range(config.num_units)),
        }
    )


def _entry_read_port(config):
    return wiring.Signature(
        {"en": Out(1), "entry": Out(config.entry_id), "next": In(config.entry_id), "weight": In(16)}
    )


class Enqueue(wiring.Component):
    """Accept assignments, apply the capacity, append what is kept to its expert's queue.

    Stage 0 accepts a beat and starts the reads of the queue's tail and of the expert's count; stage 1
    decides and writes. Both RAMs are transparent, so that two beats of one expert may follow each
    other. Stage 1 waits only where a token's last beat finds ``o_expect`` full.

    Latency 1 cycle from a beat to its write, 2 to ``o_expect``; one beat per cycle. After reset the
    first window is open and no expert has a count.

    Members
    -------
    i, o_expect, capacity, dropped : as in :class:`Dispatch`.
    full : In(2), per parity: this window is closed and not yet served.
    lookup, push : Out, the queue whose tail is needed next cycle; the entry to append.
    close : Out, the window whose last entry is being pushed in this cycle (or dropped).
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.assignment)),
                "o_expect": Out(stream.Signature(config.expect)),
                "capacity": In(config.capacity_bits),
                "dropped": Out(1),
                "full": In(2),
                "lookup": Out(_lookup_port(config)),
                "push": Out(_push_port(config)),
                "close": Out(_close_port(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # Stage 0: where in the window, and where in the entry store.
        parity = Signal()
        tokens = Signal(range(config.window_tokens))
        place = Signal(config.entry_id)
        accept = Signal()
        closes = Signal()
        s1_valid = Signal()
        s1_blocked = Signal()
        m.d.comb += [
            self.i.ready.eq(~self.full.bit_select(parity, 1) & ~(s1_valid & s1_blocked)),
            accept.eq(self.i.valid & self.i.ready),
            closes.eq(
                self.i.payload.last & (self.i.payload.last_token | (tokens == config.window_tokens - 1))
            ),
            self.lookup.valid.eq(accept),
            self.lookup.queue.expert.eq(self.i.payload.expert),
            self.lookup.queue.parity.eq(parity),
        ]
        with m.If(accept):
            m.d.sync += place.j.eq(place.j + 1)
            with m.If(self.i.payload.last):
                m.d.sync += [place.j.eq(0), place.slot.eq(place.slot + 1), tokens.eq(tokens + 1)]
            with m.If(closes):
                m.d.sync += [tokens.eq(0), parity.eq(~parity)]

        # Stage 1: keep or drop.
        s1 = Signal(config.assignment)
        s1_place = Signal(config.entry_id)
        s1_parity = Signal()
        s1_closes = Signal()
        s1_fire = Signal()
        keep = self._keep(m, accept, s1, s1_fire)
        expect_ready = self._count_kept(m, s1_valid, s1_fire, s1, s1_place.slot, keep)
        m.d.comb += [
            s1_blocked.eq(s1.last & ~expect_ready),
            s1_fire.eq(s1_valid & ~s1_blocked),
            self.push.valid.eq(s1_fire & keep),
            self.push.queue.expert.eq(s1.expert),
            self.push.queue.parity.eq(s1_parity),
            self.push.entry.eq(s1_place),
            self.push.weight.eq(s1.weight),
            self.close.valid.eq(s1_fire & s1_closes),
            self.close.parity.eq(s1_parity),
            self.close.last_slot.eq(s1_place.slot),
        ]
        m.d.sync += self.dropped.eq(s1_fire & ~keep)
        with m.If(accept):
            m.d.sync += [
                s1.eq(self.i.payload),
                s1_place.eq(place),
                s1_parity.eq(parity),
                s1_closes.eq(closes),
            ]
        with m.If(~(s1_valid & s1_blocked)):
            m.d.sync += s1_valid.eq(accept)
        return m

    def _keep(self, m, accept, s1, s1_fire):
        """Add the count of each expert's assignments in this batch; return "this one is kept"."""
        config = self.config
        m.submodules.counts = counts = Ram(
            width=config.capacity_bits, depth=1 << config.expert_bits, transparent=True
        )
        seen = Signal(config.num_experts)  # the count of this expert belongs to this batch
        count = Signal(config.capacity_bits)
        keep = Signal()
        m.d.comb += [
            counts.read_0.en.eq(accept),
            counts.read_0.addr.eq(self.i.payload.expert),
            count.eq(Mux(seen.bit_select(s1.expert, 1), counts.read_0.data, 0)),
            keep.eq((self.capacity == 0) | (count < self.capacity)),
            counts.write.en.eq(s1_fire & keep),
            counts.write.addr.eq(s1.expert),
            counts.write.data.eq(count + 1),
        ]
        with m.If(s1_fire):
            m.d.sync += seen.bit_select(s1.expert, 1).eq(1)
            with m.If(s1.last & s1.last_token):
                m.d.sync += seen.eq(0)
        return keep

    def _count_kept(self, m, s1_valid, s1_fire, s1, s1_slot, keep):
        """Tell the combiner, with a token's last beat, what to wait for; return "there is room"."""
        config = self.config
        m.submodules.expect = expect = StreamRegister(config.expect)
        connect_stream(m, expect.o, wiring.flipped(self.o_expect))
        kept = Signal(range(config.top_k + 2))
        kept_now = Signal.like(kept)
        m.d.comb += [
            kept_now.eq(kept + keep),
            expect.i.valid.eq(s1_valid & s1.last),
            expect.i.payload.slot.eq(s1_slot),
            expect.i.payload.count.eq(kept_now + int(config.shared)),
            expect.i.payload.last_token.eq(s1.last_token),
        ]
        with m.If(s1_fire):
            m.d.sync += kept.eq(Mux(s1.last, 0, kept_now))
        return expect.i.ready


class QueueTables(wiring.Component):
    """The queues of two windows: linked lists over a shared entry store, and where each is served.

    Contents of the RAMs count only where a bit of ``nonempty`` says so; nothing else is reset.
    Area: RAM bits ``entry_depth * (16 + id_bits)`` for the entries, twice
    ``num_experts * id_bits`` each for heads and tails.

    Members
    -------
    lookup, push : In, from :class:`Enqueue`; a push uses the tail that the last lookup has read.
    nonempty : Out(2 x num_experts), the queues that hold an entry.
    clear : In, forget this queue's bit.
    queue : In, read head, tail and unit of a job's queue; data one cycle later, held.
    entry : In, read an entry's weight and successor; data one cycle later, held.
    place_* : In, write port of the placement table (only with several units).
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        members = {
            "lookup": In(_lookup_port(config)),
            "push": In(_push_port(config)),
            "nonempty": Out(data.ArrayLayout(config.num_experts, 2)),
            "clear": In(_lookup_port(config)),
            "queue": In(_queue_read_port(config)),
            "entry": In(_entry_read_port(config)),
        }
        if config.num_units > 1:
            members |= _place_members(config)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        self._queues(m)
        self._entries(m)
        if self.config.num_units > 1:
            self._placement(m)
        return m

    def _queues(self, m):
        config = self.config
        depth = 2 << config.expert_bits
        m.submodules.heads = heads = Ram(width=config.id_bits, depth=depth)
        m.submodules.tails = tails = Ram(
            width=config.id_bits, depth=depth, num_read_ports=2, transparent=True
        )
        head, tail, old_tail = heads.read_0, tails.read_0, tails.read_1

        was_empty = Signal()
        m.d.comb += was_empty.eq(~self._bit(self.nonempty, self.push.queue))
        with m.If(self.clear.valid):
            m.d.sync += self._bit(self.nonempty, self.clear.queue).eq(0)
        with m.If(self.push.valid):
            m.d.sync += self._bit(self.nonempty, self.push.queue).eq(1)

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
        m.submodules.nexts = nexts = Ram(width=config.id_bits, depth=config.entry_depth)
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
        m.submodules.weights = weights = Ram(width=16, depth=config.entry_depth)
        m.d.comb += [
            weights.write.en.eq(self.push.valid),
            weights.write.addr.eq(self.push.entry),
            weights.write.data.eq(self.push.weight),
            weights.read_0.en.eq(self.entry.en),
            weights.read_0.addr.eq(self.entry.entry),
            self.entry.weight.eq(weights.read_0.data),
        ]

    def _placement(self, m):
        config = self.config
        m.submodules.placement = placement = Ram(
            width=ceil_log2(config.num_units), depth=1 << ceil_log2(config.num_experts + 1)
        )
        m.d.comb += [
            placement.write.en.eq(self.place_we),
            placement.write.addr.eq(self.place_addr),
            placement.write.data.eq(self.place_unit),
            placement.read_0.en.eq(self.queue.en),
            placement.read_0.addr.eq(self.queue.job.expert),
            self.queue.unit.eq(placement.read_0.data),
        ]

    def _bit(self, bitmaps, queue):
        return (
            bitmaps.as_value().word_select(queue.parity, self.config.num_experts).bit_select(queue.expert, 1)
        )


class LowestSet(wiring.Component):
    """Index of the lowest bit that is set, by a binary tree; combinational.

    Members
    -------
    bits : In(width)
    any : Out(1), a bit is set.
    many : Out(1), more than one is.
    index : Out(range(width)), defined while ``any``.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__({"bits": In(width), "any": Out(1), "many": Out(1), "index": Out(range(width))})

    def elaborate(self, platform):
        m = Module()
        nodes = [(self.bits[n], 0, 0) for n in range(self.width)]
        for level in range(ceil_log2(self.width)):
            pairs = [nodes[n : n + 2] for n in range(0, len(nodes), 2)]
            nodes = [
                pair[0] if len(pair) == 1 else self._join(m, pair, level, n) for n, pair in enumerate(pairs)
            ]
        [(any_set, many, index)] = nodes
        m.d.comb += [self.any.eq(any_set), self.many.eq(many), self.index.eq(index)]
        return m

    def _join(self, m, pair, level, n):
        (low_any, low_many, low_index), (high_any, high_many, high_index) = pair
        any_set = Signal(name=f"any_{level}_{n}")
        many = Signal(name=f"many_{level}_{n}")
        index = Signal(level + 1, name=f"index_{level}_{n}")
        m.d.comb += [
            any_set.eq(low_any | high_any),
            many.eq(low_many | high_many | (low_any & high_any)),
            index.eq(Mux(low_any, low_index, (1 << level) | high_index)),
        ]
        return any_set, many, index


class Picker(wiring.Component):
    """Choose the next queue to serve, window after window; hold the state of both windows.

    Latency 1 cycle from ``close`` to a choice, 1 from the choice to ``o``; one job per cycle. A window
    without any job is done in one cycle. After reset no window is closed.

    Members
    -------
    policy : In(ServicePolicy)
    close : In, from :class:`Enqueue`.
    nonempty, clear : In, Out: the queues' bits in :class:`QueueTables`; a queue's bit goes when chosen.
    drained : In, the window of ``drained_parity`` has been served.
    full : Out(2), per parity: closed and not yet served.
    o : Out(stream.Signature(job))
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "policy": In(ServicePolicy),
                "close": In(_close_port(config)),
                "nonempty": In(data.ArrayLayout(config.num_experts, 2)),
                "clear": Out(_lookup_port(config)),
                "drained": In(1),
                "drained_parity": In(1),
                "full": Out(2),
                "o": Out(stream.Signature(config.job)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        parity = Signal()  # of the window whose queues are being chosen
        closed = Signal(2)  # per parity: closed, and some queue (or nothing at all) still to choose
        active = Signal()
        m.submodules.lowest = lowest = LowestSet(config.num_experts)
        m.d.comb += [active.eq(closed.bit_select(parity, 1)), lowest.bits.eq(self.nonempty[parity])]

        # Every value of `policy` is queue order as yet: shared expert first, then the lowest index.
        expert = Signal(range(config.num_experts + 1))
        found = Signal()
        final = Signal()
        take_shared = Signal()
        m.d.comb += [
            expert.eq(Mux(take_shared, config.num_experts, lowest.index)),
            found.eq(take_shared | lowest.any),
            final.eq(Mux(take_shared, ~lowest.any, ~lowest.many)),
        ]

        choose = Signal()
        done = Signal()
        none = Signal()  # everything was dropped
        m.d.comb += [
            choose.eq(active & found & (~self.o.valid | self.o.ready)),
            none.eq(active & ~found),
            done.eq((choose & final) | none),
            self.clear.valid.eq(choose & ~take_shared),
            self.clear.queue.expert.eq(lowest.index),
            self.clear.queue.parity.eq(parity),
        ]
        with m.If(choose):
            m.d.sync += [
                self.o.valid.eq(1),
                self.o.payload.expert.eq(expert),
                self.o.payload.parity.eq(parity),
                self.o.payload.final.eq(final),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        if config.shared:
            shared_left = Signal(init=1)
            m.d.comb += take_shared.eq(shared_left)
            with m.If(choose):
                m.d.sync += shared_left.eq(final)
        with m.If(done):
            m.d.sync += [parity.eq(~parity), closed.bit_select(parity, 1).eq(0)]
        with m.If(none):
            m.d.sync += self.full.bit_select(parity, 1).eq(0)
        with m.If(self.drained):
            m.d.sync += self.full.bit_select(self.drained_parity, 1).eq(0)
        with m.If(self.close.valid):
            m.d.sync += [
                self.full.bit_select(self.close.parity, 1).eq(1),
                closed.bit_select(self.close.parity, 1).eq(1),
            ]
        return m


class Walker(wiring.Component):
    """Turn jobs into their entries: read a queue's ends, then follow its links.

    A job's head and tail are read while the queue before is still being walked. Latency 2 cycles from
    ``i`` to the first entry at ``o``; one entry per cycle, none lost between queues. The shared
    expert's queue is no list: it is the window's slots, in order. After reset nothing is held.

    Members
    -------
    i : In(stream.Signature(job))
    queue, entry : Out, read ports of :class:`QueueTables`.
    close : In, from :class:`Enqueue`: the last slot of a window.
    drained, drained_parity : Out, the last entry of a window is taken in this cycle.
    o : Out(stream.Signature(entry))
    o_unit : Out, the unit that serves the entry at ``o``.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(config.job)),
                "queue": Out(_queue_read_port(config)),
                "entry": Out(_entry_read_port(config)),
                "close": In(_close_port(config)),
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
        fire = Signal()
        take_next = Signal()
        m.d.comb += [
            at_tail.eq(entry == tail),
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
        ]
        with m.If(take_head):
            m.d.sync += [job.eq(head_job), tail.eq(self.queue.tail), self.o_unit.eq(self.queue.unit)]
        with m.If(self.entry.en):
            m.d.sync += entry.eq(self.entry.entry)
        with m.If(take_head | fire):
            m.d.sync += valid.eq(self.entry.en)
        if config.shared:
            self._walk_shared(m, head_job=head_job, take_head=take_head, job=job, entry=entry, tail=tail)
        return m

    def _walk_shared(self, m, *, head_job, take_head, job, entry, tail):
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
        with m.If(is_shared):
            m.d.comb += self.o.payload.weight.eq(BF16_ONE)


def _place_members(config):
    return {
        "place_addr": In(range(config.num_experts + 1)),
        "place_unit": In(range(config.num_units)),
        "place_we": In(1),
    }


class Dispatch(wiring.Component):
    """Queue assignments per expert; serve a window's queues one after the other, each completely.

    ::

        i.payload.expert      0   3   0   1   2   3      two tokens of three assignments
        i.payload.last        0   0   1   0   0   1
        i.payload.last_token  0   0   0   1   1   1      matters on the last beat only
        o_0.payload.expert    0   0   1   2   3   3      (LATENCY cycles after the close)
        o_0.payload.slot      0   0   1   1   0   1
        o_0.payload.last      0   1   1   1   0   1

    A window closes with its ``window_tokens``-th token or with a token that has ``last_token``. Where
    both windows are closed, ``i`` waits for the older one to be served. Within a window: the shared
    expert (weight 1.0, every token), then each expert that has an entry, ascending; inside an expert
    in order of arrival. An expert takes ``capacity`` assignments of a batch (tokens up to
    ``last_token``); later ones are dropped, as in Switch Transformer (arXiv 2101.03961, section 2.2).

    Latency: EXPECT_LATENCY cycles from a token's last beat to ``o_expect``, LATENCY from the beat
    that closes a window to its first entry; nothing else intervenes when the outputs are ready and
    the window before is served. One assignment in and one entry out per cycle, no bubble between
    experts or between windows that are already closed. A unit that is not ready holds up the others
    behind it (one walker). Every output is a register, and so is ``i.ready`` but for gates.

    After reset all queues are empty and token 0 has slot 0; the placement table is not reset.

    Members
    -------
    i : In(stream.Signature(config.assignment)): expert, weight (bf16 bits), last (assignment of its
        token), last_token (the token ends its batch).
    o_expect : Out(stream.Signature(config.expect)): per token, in order: its slot (token number modulo
        num_slots), how many entries of it will be served, whether it ends its batch.
    o_0, o_1, ... : Out(stream.Signature(config.entry)): per unit: expert (num_experts: the shared one),
        slot, weight, last (entry of this expert in this window).
    capacity : In(capacity_bits), 0 for no limit. Constant while tokens are inside.
    policy : In(ServicePolicy). Constant while tokens are inside.
    dropped : Out(1), one cycle per dropped assignment.
    place_addr, place_unit, place_we : In, placement table expert -> unit, with several units only.
        Every expert (and ``num_experts``, if shared) must be written before it is used.
    """

    EXPECT_LATENCY = 1 + StreamRegister.LATENCY
    LATENCY = 5 + StreamRegister.LATENCY

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        members = {
            "i": In(stream.Signature(config.assignment)),
            "o_expect": Out(stream.Signature(config.expect)),
            "capacity": In(config.capacity_bits),
            "policy": In(ServicePolicy),
            "dropped": Out(1),
        }
        members |= {name: Out(stream.Signature(config.entry)) for name in config.outputs()}
        if config.num_units > 1:
            members |= _place_members(config)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.enqueue = enqueue = Enqueue(config)
        m.submodules.tables = tables = QueueTables(config)
        m.submodules.picker = picker = Picker(config)
        m.submodules.walker = walker = Walker(config)

        connect_stream(m, wiring.flipped(self.i), enqueue.i)
        connect_stream(m, enqueue.o_expect, wiring.flipped(self.o_expect))
        wiring.connect(m, enqueue.lookup, tables.lookup)
        wiring.connect(m, enqueue.push, tables.push)
        wiring.connect(m, picker.clear, tables.clear)
        connect_stream(m, picker.o, walker.i)
        wiring.connect(m, walker.queue, tables.queue)
        wiring.connect(m, walker.entry, tables.entry)
        for user in (picker, walker):
            m.d.comb += [
                user.close.valid.eq(enqueue.close.valid),
                user.close.parity.eq(enqueue.close.parity),
                user.close.last_slot.eq(enqueue.close.last_slot),
            ]
        m.d.comb += [
            enqueue.capacity.eq(self.capacity),
            enqueue.full.eq(picker.full),
            picker.policy.eq(self.policy),
            picker.nonempty.eq(tables.nonempty),
            picker.drained.eq(walker.drained),
            picker.drained_parity.eq(walker.drained_parity),
            self.dropped.eq(enqueue.dropped),
        ]
        if config.num_units > 1:
            m.d.comb += [
                tables.place_addr.eq(self.place_addr),
                tables.place_unit.eq(self.place_unit),
                tables.place_we.eq(self.place_we),
            ]
        self._to_units(m, walker)
        return m

    def _to_units(self, m, walker):
        """Give each entry to the register of its unit."""
        config = self.config
        outputs = []
        for unit, name in enumerate(config.outputs()):
            m.submodules[f"output_{unit}"] = output = StreamRegister(config.entry)
            connect_stream(m, output.o, wiring.flipped(getattr(self, name)))
            m.d.comb += output.i.payload.eq(walker.o.payload)
            outputs.append(output)
        with m.Switch(walker.o_unit):
            for unit, output in enumerate(outputs):
                # A table entry beyond the last unit (never written) must not block the rest.
                with m.Case(unit) if unit + 1 < config.num_units else m.Default():
                    m.d.comb += [output.i.valid.eq(walker.o.valid), walker.o.ready.eq(output.i.ready)]
