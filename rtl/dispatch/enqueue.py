"""Assignments in: capacity, queues, what the combiner has to wait for."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from golden.combine_bf16 import IDENTITY_FRACTION_BITS, IDENTITY_MOST_SHIFT
from rtl.arith import BF16, delay, tree
from rtl.dispatch.layouts import (
    IDENTITY_BITS,
    DispatchConfig,
    close_port,
    lookup_port,
    push_port,
    ranks_port,
    shared_weight_port,
)
from rtl.ram import Ram
from rtl.stream import StreamRegister, connect_stream


class ExpertCounts(wiring.Component):
    """Count each expert's assignments in a batch; say whether there is a place for one more.

    The count of ``expert`` is read with ``read``, and counts for the decision from the next cycle until
    the next ``read``. The RAM is transparent, so that two of one expert may follow each other. After
    reset no expert has a count; the RAM is not reset. Deep: whether the count is of this batch is known with
    it, from a register.

    Members
    -------
    capacity : In(capacity_bits), 0 for no limit; deep: of the cycle before.
    read, expert : In, start a decision.
    keep : Out(1), there is a place for what was read last.
    decide : In(1), count it if ``keep``. ``decided_expert``: In, its expert.
    end : In(1), with ``decide``: the batch ends; all counts are forgotten.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "capacity": In(config.capacity_bits),
                "read": In(1),
                "expert": In(range(config.num_counted)),
                "keep": Out(1),
                "decide": In(1),
                "decided_expert": In(range(config.num_counted)),
                "end": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.counts = counts = Ram(
            width=config.capacity_bits, depth=1 << ceil_log2(config.num_counted), transparent=True
        )
        seen = Signal(config.num_counted)  # the count of this expert belongs to this batch
        count = Signal(config.capacity_bits)
        is_seen = seen.bit_select(self.decided_expert, 1)
        if config.deep:
            is_seen = Signal()
            decided_now = self.decide & (self.decided_expert == self.expert)
            with m.If(self.read):
                m.d.sync += is_seen.eq(
                    ~(self.decide & self.end) & (seen.bit_select(self.expert, 1) | decided_now)
                )
        keep = (self.capacity == 0) | (count < self.capacity)
        if config.deep:
            # The register of the capacity is far away. A limit is above 0, so the first one has a place.
            capacity = delay(m, self.capacity, 1, "capacity")
            unlimited = delay(m, self.capacity == 0, 1, "unlimited")
            keep = unlimited | ~is_seen | (counts.read_0.data < capacity)
        m.d.comb += [
            counts.read_0.en.eq(self.read),
            counts.read_0.addr.eq(self.expert),
            count.eq(Mux(is_seen, counts.read_0.data, 0)),
            self.keep.eq(keep),
            counts.write.en.eq(self.decide & self.keep),
            counts.write.addr.eq(self.decided_expert),
            counts.write.data.eq(count + 1),
        ]
        with m.If(self.decide):
            m.d.sync += seen.bit_select(self.decided_expert, 1).eq(1)
            with m.If(self.end):
                m.d.sync += seen.eq(0)
        return m


class TokenRanks(wiring.Component):
    """Rank a token's kept assignments by their experts' indices.

    Each one is compared with those before it, ``top_k`` comparators; with the token's last one all
    ranks are there. The shared expert has rank 0 where there is one. After reset no token has begun.

    Members
    -------
    valid, keep, expert, j, last, slot : In, an assignment: kept or not, its place in the token; the
        token's last one.
    o : Out, with the last one.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "keep": In(1),
                "expert": In(range(config.num_experts)),
                "j": In(range(config.top_k)),
                "last": In(1),
                "slot": In(range(config.num_slots)),
                "o": Out(ranks_port(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        kept = Signal(config.top_k)
        lower = []
        for n in range(config.top_k):
            expert = Signal(range(config.num_experts), name=f"expert_{n}", reset_less=True)
            rank = Signal(range(config.max_count), name=f"rank_{n}", reset_less=True)
            higher = Signal(name=f"higher_{n}")
            here = Signal(name=f"here_{n}")
            m.d.comb += [
                higher.eq(kept[n] & (expert > self.expert)),
                here.eq(self.j == n),
                # Where the assignment stands it is its own rank that counts.
                self.o.ranks[n].eq(rank + (higher & self.keep)),
            ]
            lower.append(kept[n] & ~higher)
            with m.If(self.valid):
                m.d.sync += rank.eq(self.o.ranks[n])
                with m.If(here):
                    m.d.sync += [expert.eq(self.expert), kept[n].eq(self.keep)]
        own = Signal(range(config.max_count))
        m.d.comb += own.eq(tree(lower, lambda a, b: a + b) + int(config.shared))
        for n in range(config.top_k):
            with m.If(self.j == n):
                m.d.comb += self.o.ranks[n].eq(own)
        with m.If(self.valid & self.last):
            m.d.sync += kept.eq(0)
        m.d.comb += [self.o.valid.eq(self.valid & self.last), self.o.slot.eq(self.slot)]
        return m


class Enqueue(wiring.Component):
    """Accept assignments, apply the capacity, append what is kept to its expert's queue.

    Stage 0 accepts a beat and starts the reads of the queue's tail and of the expert's count; stage 1
    decides and writes. The RAM of the tails is transparent as that of the counts, so that two beats of
    one expert may follow each other. Stage 1 waits only where a token's last beat finds ``o_expect``
    full. Where windows are decided, what is kept comes with the beats. Deep: stage 2 writes, and stage 1
    starts the read of the tail.

    Latency 1 cycle from a beat to its write (deep: 2), 2 to ``o_expect``; one beat per cycle. After reset the
    first window is open and no expert has a count.

    Members
    -------
    i, o_expect, capacity, dropped : as in :class:`rtl.dispatch.Dispatch`; ``i`` carries ``decided`` beats if
        it was decided before what is kept.
    full : In(2), per parity: this window is closed and not yet served.
    lookup, push : Out, the queue whose tail is needed next cycle; the entry to append.
    close : Out, the window whose last entry is being pushed in this cycle (or dropped).
    ranks : Out, with a token's last entry, if the configuration asks for ranks.
    shared_weight : Out, with a token's last entry, where the shared expert has a gate.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        members = {
            "i": In(stream.Signature(config.decided if config.decides else config.assignment)),
            "o_expect": Out(stream.Signature(config.expect)),
            "dropped": Out(1),
            "full": In(2),
            "lookup": Out(lookup_port(config)),
            "push": Out(push_port(config)),
            "close": Out(close_port(config)),
        }
        if not config.decides:
            members["capacity"] = In(config.capacity_bits)
        if config.ranks:
            members["ranks"] = Out(ranks_port(config))
        if config.shared_gate:
            members["shared_weight"] = Out(shared_weight_port(config))
        super().__init__(members)

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
        full = self.full
        if config.deep:
            # A window that is being closed has its flag a cycle later.
            full = full | Cat(self.close.valid & ~self.close.parity, self.close.valid & self.close.parity)
        m.d.comb += [
            self.i.ready.eq(~full.bit_select(parity, 1) & ~(s1_valid & s1_blocked)),
            accept.eq(self.i.valid & self.i.ready),
            closes.eq(
                self.i.payload.last & (self.i.payload.last_token | (tokens == config.window_tokens - 1))
            ),
        ]
        if not config.deep:
            m.d.comb += [
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
        s1 = Signal(self.i.payload.shape())
        s1_place = Signal(config.entry_id)
        s1_parity = Signal()
        s1_closes = Signal()
        s1_tokens = Signal(config.queue_length)
        s1_fire = Signal()
        keep = self._keep(m, accept, s1, s1_fire)
        served, identity = keep, None
        if config.num_identity_experts:
            served, identity = self._identity(m, s1, s1_fire, keep)
        expect_ready = self._count_kept(m, s1_valid, s1_fire, s1, s1_place.slot, served, identity)
        m.d.comb += [
            s1_blocked.eq(s1.last & ~expect_ready),
            s1_fire.eq(s1_valid & ~s1_blocked),
        ]
        writes = [
            self.push.valid.eq(s1_fire & served),
            self.push.queue.expert.eq(s1.expert),
            self.push.queue.parity.eq(s1_parity),
            self.push.entry.eq(s1_place),
            self.push.weight.eq(s1.weight),
            self.close.valid.eq(s1_fire & s1_closes),
            self.close.parity.eq(s1_parity),
            self.close.last_slot.eq(s1_place.slot),
            self.close.tokens.eq(s1_tokens),
        ]
        if config.deep:
            m.d.sync += writes
            m.d.comb += [
                self.lookup.valid.eq(s1_fire),
                self.lookup.queue.expert.eq(s1.expert),
                self.lookup.queue.parity.eq(s1_parity),
            ]
        else:
            m.d.comb += writes
        m.d.sync += self.dropped.eq(s1_fire & ~keep)
        with m.If(accept):
            m.d.sync += [
                s1.eq(self.i.payload),
                s1_place.eq(place),
                s1_parity.eq(parity),
                s1_closes.eq(closes),
                s1_tokens.eq(tokens + 1),
            ]
        with m.If(~(s1_valid & s1_blocked)):
            m.d.sync += s1_valid.eq(accept)
        if config.ranks:
            self._rank(m, s1_fire, s1, s1_place, served)
        if config.shared_gate:
            m.d.comb += [
                self.shared_weight.valid.eq(s1_fire & s1.last),
                self.shared_weight.slot.eq(s1_place.slot),
                self.shared_weight.weight.eq(s1.shared),
            ]
        return m

    def _keep(self, m, accept, s1, s1_fire):
        """Return "this one is kept"."""
        if self.config.no_places:
            return Const(0, 1)
        if self.config.decides:
            return s1.keep
        m.submodules.counts = counts = ExpertCounts(self.config)
        m.d.comb += [
            counts.capacity.eq(self.capacity),
            counts.read.eq(accept),
            counts.expert.eq(self.i.payload.expert),
            counts.decide.eq(s1_fire),
            counts.decided_expert.eq(s1.expert),
            counts.end.eq(s1.last & s1.last_token),
        ]
        return counts.keep

    def _rank(self, m, s1_fire, s1, s1_place, keep):
        m.submodules.token_ranks = ranks = TokenRanks(self.config)
        m.d.comb += [
            ranks.valid.eq(s1_fire),
            ranks.keep.eq(keep),
            ranks.expert.eq(s1.expert),
            ranks.j.eq(s1_place.j),
            ranks.last.eq(s1.last),
            ranks.slot.eq(s1_place.slot),
        ]
        wiring.connect(m, wiring.flipped(self.ranks), ranks.o)

    def _identity(self, m, s1, s1_fire, keep):
        """Add a token's weights of identity experts; return "a unit serves this one" and the sum so far."""
        is_identity = Signal()
        weight = data.View(BF16, s1.weight)
        significand = Signal(8)
        shift = Signal(range(IDENTITY_MOST_SHIFT + 1))
        right = Signal(range(9))
        magnitude = Signal(8 + IDENTITY_MOST_SHIFT)
        total = Signal(signed(IDENTITY_BITS))
        total_now = Signal(signed(IDENTITY_BITS))
        unity = 134 - IDENTITY_FRACTION_BITS  # exponent of a significand that needs no shift
        addend = Mux(is_identity & keep, Mux(weight.sign, -magnitude, magnitude), 0)
        m.d.comb += [
            is_identity.eq(s1.expert >= self.config.num_experts),
            significand.eq(Mux(weight.exponent == 0, 0, Cat(weight.fraction, Const(1, 1)))),
            total_now.eq(total + addend),
        ]
        with m.If(weight.exponent >= unity + IDENTITY_MOST_SHIFT):
            m.d.comb += shift.eq(IDENTITY_MOST_SHIFT)
        with m.Elif(weight.exponent >= unity):
            m.d.comb += shift.eq(weight.exponent - unity)
        with m.Elif(weight.exponent <= unity - 8):
            m.d.comb += right.eq(8)
        with m.Else():
            m.d.comb += right.eq(unity - weight.exponent)
        m.d.comb += magnitude.eq((significand >> right) << shift)
        with m.If(s1_fire):
            m.d.sync += total.eq(Mux(s1.last, 0, total_now))
        return keep & ~is_identity, total_now

    def _count_kept(self, m, s1_valid, s1_fire, s1, s1_slot, keep, identity):
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
        if identity is not None:
            m.d.comb += expect.i.payload.identity.eq(identity)
        with m.If(s1_fire):
            m.d.sync += kept.eq(Mux(s1.last, 0, kept_now))
        return expect.i.ready
