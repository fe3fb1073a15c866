"""The dispatcher: what goes in comes out, once, in order inside an expert, and in bounded time.

What is kept and dropped is said anew, in the cycle in which a beat is taken: the count of the beat's expert
in
its batch against the capacity. An assignment of any expert, and a token, are followed from there to the
outputs.
"""

from __future__ import annotations

from dataclasses import replace

from amaranth import Cat, Const, Mux, Signal
from amaranth.lib import data

from rtl.dispatch import Dispatch, DispatchConfig
from tests.formal.model import Checker
from tests.formal.order import Followed

CONFIG = DispatchConfig(num_experts=4, top_k=2, window_tokens=2, capacity_bits=2)
DEEP = replace(CONFIG, deep=True)
SINK_EVERY = 2
"""Each output is ready in at least one of so many cycles, where progress is asked."""


def _transfer(port):
    return port.valid & port.ready


class DispatchChecker(Checker):
    """A dispatcher with what its environment owes, and the kept and dropped assignments of its input."""

    def __init__(self, config: DispatchConfig = CONFIG, *, rules: bool = True) -> None:
        super().__init__(Dispatch(config))
        self.config = config
        m, dut, beat = self.m, self.dut, self.dut.i.payload
        self.assume_streams()
        capacity = self.constant("capacity", config.capacity_bits)
        policy = self.constant("policy", 2)
        self.assume("capacity_constant", dut.capacity == capacity)
        self.assume("policy_constant", dut.policy.as_value() == policy)

        # Where the beat stands: its place in the token, the token's slot, its place in the window.
        self.j = j = Signal(range(config.top_k), name="given_j")
        self.slot = slot = Signal(range(config.num_slots), name="given_slot")
        self.tokens = tokens = Signal(range(config.window_tokens), name="given_tokens")
        self.take = take = self.value("take", _transfer(dut.i))
        self.closes = self.value(
            "closes", beat.last & (beat.last_token | (tokens == config.window_tokens - 1))
        )
        self.assume("last_of_token", dut.i.payload.last == (j == config.top_k - 1))
        with m.If(take):
            m.d.sync += j.eq(Mux(beat.last, 0, j + 1))
            with m.If(beat.last):
                m.d.sync += [slot.eq(slot + 1), tokens.eq(Mux(self.closes, 0, tokens + 1))]

        # Whether it is kept.
        self.counts = counts = Signal(data.ArrayLayout(config.capacity_bits, config.num_experts))
        self.keep = self.value("keep", (capacity == 0) | (counts[beat.expert] < capacity))
        self.capacity = capacity
        with m.If(take & self.keep & (capacity != 0)):
            m.d.sync += counts[beat.expert].eq(counts[beat.expert] + 1)
        with m.If(take & beat.last & beat.last_token):
            m.d.sync += counts.as_value().eq(0)
        if rules:
            self._rules()

    def _rules(self) -> None:
        """Assert what the dispatcher owes: nothing lost, doubled, reordered; credits; whole jobs."""
        config, m, dut, beat = self.config, self.m, self.dut, self.dut.i.payload
        take, slot = self.take, self.slot
        self.prove_streams()
        self.token_kept = Signal(range(config.top_k + 1), name="token_kept")
        self.kept_now = self.value("kept_now", (self.token_kept + self.keep)[: len(self.token_kept)])
        with m.If(take):
            m.d.sync += self.token_kept.eq(Mux(beat.last, 0, self.kept_now))

        # An assignment to any expert.
        self.expert = self.constant("expert", range(config.num_experts))
        # A place in the store for each, and two in the register at the output, deep in the pair before it.
        self.most = config.num_slots * config.top_k + 2 + 2 * config.deep
        self.entry = Followed(
            self,
            "entry",
            goes_in=self.value("entry_in", take & self.keep & (beat.expert == self.expert)),
            value=Cat(slot, beat.weight),
            comes_out=self.value("entry_out", _transfer(dut.o_0) & (dut.o_0.payload.expert == self.expert)),
            most=self.most,
        )
        self.entry.prove(self, Cat(dut.o_0.payload.slot, dut.o_0.payload.weight), most=self.most)

        # A token's announcement: a stage and a register before the output.
        self.token = Followed(
            self,
            "token",
            goes_in=self.value("token_in", take & beat.last),
            value=Cat(slot, self.kept_now, beat.last_token),
            comes_out=_transfer(dut.o_expect),
            most=3,
        )
        self.token.prove(self, dut.o_expect.payload.as_value(), most=3)

        # All assignments: taken and not yet dropped or given out.
        self.drops = Signal(2, name="drops_inside")
        self.inside = Signal(range(2 * self.most), name="all_inside")
        m.d.sync += [
            self.drops.eq(self.drops + (take & ~self.keep) - dut.dropped),
            self.inside.eq(self.inside + (take & self.keep) - _transfer(dut.o_0)),
        ]
        self.prove("drops_counted", Mux(dut.dropped, self.drops != 0, self.drops <= 1))
        self.prove("entry_owed", ~dut.o_0.valid | (self.inside != 0))
        self.prove("no_overflow", self.inside <= self.most)

        # A job is an expert's whole queue of a window.
        within = Signal()
        expert = Signal.like(dut.o_0.payload.expert, name="expert_of_job")
        self.within, self.job_expert = within, expert
        with m.If(_transfer(dut.o_0)):
            m.d.sync += [within.eq(~dut.o_0.payload.last), expert.eq(dut.o_0.payload.expert)]
        self.prove("jobs_whole", ~(dut.o_0.valid & within) | (dut.o_0.payload.expert == expert))


def conservation(config: DispatchConfig = CONFIG) -> Checker:
    """Return the rules with the invariants from which they follow by induction.

    Which entries are held is known from what enters and leaves the queues; the invariants say that the linked
    lists are those of the held entries, in the order of arrival, and where every job stands.
    """
    checker = DispatchChecker(config)
    _Invariants(checker).prove()
    return checker


class _Invariants:
    """State of a dispatcher with one unit, without a shared expert, top 2 of 4.

    An entry is appended by a push: in the cycle in which its stage fires, deep in the next one, from
    registers that are a stage of their own. Behind the walk is the output's register, deep a pair before it.
    """

    def __init__(self, checker: DispatchChecker) -> None:
        self.c = c = checker
        config = c.config
        m = c.m
        self.entries = range(1 << config.id_bits)
        probe = c.probe
        # Enqueue.
        self.parity, self.place = probe("enqueue.parity"), config.entry_id(probe("enqueue.place"))
        self.in_window = probe("enqueue.tokens")
        self.s1_valid, self.s1 = probe("enqueue.s1_valid"), c.dut.config.assignment(probe("enqueue.s1"))
        self.s1_place = config.entry_id(probe("enqueue.s1_place"))
        self.s1_parity, self.s1_closes = probe("enqueue.s1_parity"), probe("enqueue.s1_closes")
        self.s1_fire, self.push = probe("enqueue.s1_fire"), probe("enqueue.push__valid")
        queue = config.queue_id(probe("enqueue.push__queue"))
        self.push_expert, self.push_parity = queue.expert, queue.parity
        self.push_entry, self.push_weight = (probe(f"enqueue.push__{name}") for name in ("entry", "weight"))
        # What has left its stage and is not in the tables yet.
        self.late = self.push if config.deep else Const(0, 1)
        self.late_close = probe("enqueue.close__valid") if config.deep else Const(0, 1)
        # Tables.
        self.heads, self.tails = c.rows("tables.heads"), c.rows("tables.tails")
        self.nexts, self.weights = c.rows("tables.nexts"), c.rows("tables.weights")
        nonempty = probe("tables.nonempty")
        num_queues = data.ArrayLayout(range(config.num_experts + 1), 2)(probe("tables.num_queues"))
        self.num_queues = [num_queues[p] for p in range(2)]
        self.nonempty = [
            [nonempty[p * config.num_experts + x] for x in range(config.num_experts)] for p in range(2)
        ]
        # Picker and walker: jobs from the youngest to the oldest.
        self.full, self.closed, self.oldest = (
            probe(f"picker.{name}") for name in ("full", "closed", "oldest")
        )
        job = config.job
        self.jobs = [
            (probe("picker.o__valid"), job(probe("picker.o__payload"))),
            (probe("walker.head_valid"), job(probe("walker.head_job"))),
            (probe("walker.valid"), job(probe("walker.job"))),
        ]
        self.head_read, self.tail_read = probe("walker.queue__head"), probe("walker.queue__tail")
        self.entry, self.tail = probe("walker.entry"), probe("walker.tail")
        self.next_read, self.weight_read = probe("walker.entry__next"), probe("walker.entry__weight")
        self.drained = probe("walker.drained")
        self.walker_out = c.value("walker_out", probe("walker.o__valid") & probe("walker.o__ready"))
        self.old_tail = probe("tables.link_from")

        # What is held.
        self.held = [Signal(name=f"held_{e}") for e in self.entries]
        self.expert = [Signal(range(config.num_experts), name=f"expert_of_{e}") for e in self.entries]
        self.window = [Signal(name=f"window_of_{e}") for e in self.entries]
        self.start = [Signal(range(config.num_slots), name=f"start_{p}") for p in range(2)]
        self.length = [Signal(range(config.window_tokens + 1), name=f"length_{p}") for p in range(2)]
        for e in self.entries:
            with m.If(self.push & (self.push_entry == e)):
                m.d.sync += [
                    self.held[e].eq(1),
                    self.expert[e].eq(self.push_expert),
                    self.window[e].eq(self.push_parity),
                ]
            with m.If(self.walker_out & (self.entry == e)):
                m.d.sync += self.held[e].eq(0)
        opens = c.value("opens", c.take & (c.tokens == 0) & (c.j == 0))
        for p in range(2):
            with m.If(opens & (self.parity == p)):
                m.d.sync += self.start[p].eq(c.slot)
            with m.If(c.take & c.closes & (self.parity == p)):
                m.d.sync += self.length[p].eq(c.tokens + 1)
        self.keep_s1 = Signal(name="keep_s1")
        with m.If(c.take):
            m.d.sync += self.keep_s1.eq(c.keep)
        # Windows that are closed: those that the picker knows, and deep one that it hears of in this cycle.
        self.known = self.full | Cat(self.late_close & (self.push_parity == p) for p in range(2))
        outputs = [(name, probe(f"output_0.{name}_valid")) for name in ("main", "spare")]
        self.at_output = [(valid, config.entry(probe(f"output_0.{name}"))) for name, valid in outputs]
        if config.deep:
            places, held, read = (
                [probe(f"staged.place_{n}") for n in range(2)],
                probe("staged.held"),
                probe("staged.read"),
            )
            pair = data.StructLayout({"entry": config.entry, "unit": range(config.num_units)})
            for which in (read, ~read):
                place = pair(Mux(which, places[1], places[0]))
                self.at_output.append((held.bit_select(which, 1), place.entry))

    def prove(self) -> None:
        self._counters()
        if self.c.config.deep:
            self._stages()
        self._counts()
        self._windows()
        self._order()
        self._lists()
        self._jobs()
        self._followed()
        self._tokens()

    def _counters(self) -> None:
        """The places of the input, told twice."""
        c = self.c
        c.prove("inv_j", (self.place.j == c.j) & (self.place.slot == c.slot) & (self.in_window == c.tokens))
        before = Mux(
            c.j == 0,
            (self.s1_place.j == 1) & (self.s1_place.slot == (c.slot - 1)[:2]),
            (self.s1_place.j == 0) & (self.s1_place.slot == c.slot),
        )
        c.prove("inv_s1_place", ~self.s1_valid | before)
        c.prove("inv_s1_last", ~self.s1_valid | (self.s1.last == (self.s1_place.j == 1)))
        window_new = (c.j == 0) & (c.tokens == 0)
        c.prove("inv_s1_closes", ~self.s1_valid | (self.s1_closes == window_new))
        c.prove("inv_s1_ends", ~self.s1_valid | ~self.s1.last | ~self.s1.last_token | self.s1_closes)
        c.prove("inv_s1_parity", ~self.s1_valid | (self.s1_parity == (self.parity ^ self.s1_closes)))
        c.prove("inv_keep", ~self.s1_valid | (self.keep_s1 == c.probe("enqueue.counts.keep")))

    def _stages(self) -> None:
        """What the registers of deep pipelines hold."""
        c = self.c
        position = Cat(c.j, c.slot)
        first = c.value(
            "first_is_next",
            Mux(self.s1_valid, ~self.s1_closes & (c.tokens == 0) & (c.j == 1), (c.tokens == 0) & (c.j == 0)),
        )
        c.prove("inv_push_place", ~self.push | (self.push_entry == (position - 1 - self.s1_valid)[:3]))
        c.prove("inv_push_closes", Mux(self.late_close, first, ~(self.push & first)))
        gone = self.parity ^ (self.s1_valid & self.s1_closes) ^ self.late_close
        c.prove("inv_push_parity", ~(self.push | self.late_close) | (self.push_parity == gone))
        c.prove("inv_close_parity", ~self.late_close | (c.probe("enqueue.close__parity") == self.push_parity))
        # Read ports and bits that were looked up a cycle before.
        nonempty = Mux(self.push_parity, Cat(self.nonempty[1]), Cat(self.nonempty[0]))
        was_empty = c.probe("tables.was_empty")
        c.prove("inv_was_empty", ~self.push | (was_empty == ~nonempty.bit_select(self.push_expert, 1)))
        settled = c.register("settled", 1)
        counts = "enqueue.counts"
        limit, unlimited = (c.probe(f"{counts}.{name}_q1") for name in ("capacity", "unlimited"))
        c.prove("inv_limit", ~settled | ((limit == c.capacity) & (unlimited == (c.capacity == 0))))
        c.prove("inv_settled", settled | ~(self.s1_valid | self.push | self.late_close))
        seen, is_seen = c.probe(f"{counts}.seen"), c.probe(f"{counts}.is_seen")
        c.prove("inv_is_seen", ~self.s1_valid | (is_seen == seen.bit_select(self.s1.expert, 1)))
        # The end of a queue is known with its entry.
        valid, _ = self.jobs[2]
        c.prove("inv_at_tail", ~valid | (c.probe("walker.at_tail") == (self.entry == self.tail)))
        # The pair behind the walk is filled and emptied in turn.
        held, room = c.probe("staged.held"), c.probe("staged.room")
        write, read = c.probe("staged.write"), c.probe("staged.read")
        c.prove("inv_pair_room", room == ~held.all())
        c.prove("inv_pair_turn", (write == read) == (held.all() | ~held.any()))
        c.prove("inv_pair_read", ~held.any() | held.bit_select(read, 1))

    def _counts(self) -> None:
        """Counts of a batch: those of the hardware, and what its stage will add."""
        c = self.c
        seen, rows = c.probe("enqueue.counts.seen"), c.rows("enqueue.counts.counts")
        count_read = c.probe("enqueue.counts.counts.read_0__data")
        ends = self.s1_valid & self.s1.last & self.s1.last_token
        for x in range(c.config.num_experts):
            mine = Mux(seen[x], rows[x], 0) + (self.s1_valid & (self.s1.expert == x) & self.keep_s1)
            known = (c.capacity == 0) | (c.counts[x] == Mux(ends, 0, mine))
            c.prove(
                f"inv_count_{x}",
                known & (c.counts[x] <= c.capacity) & ((c.capacity == 0) | (mine <= c.capacity)),
            )
            c.prove(
                f"inv_count_read_{x}",
                ~self.s1_valid | (self.s1.expert != x) | (count_read == rows[x]) | ~seen[x],
            )
        c.prove("inv_no_count_without_capacity", (c.capacity != 0) | (c.counts.as_value() == 0))

    def _older_first(self):
        """Return the parity of the older window."""
        return self.full.bit_select(self.parity, 1) ^ ~self.parity

    def _windows(self) -> None:
        """Windows follow each other in the slots; entries lie in theirs."""
        c = self.c
        P, full = self.parity, self.full
        self.older = c.value("older", Mux(full.bit_select(P, 1), P, ~P))

        def start(p):
            return Mux(p, self.start[1], self.start[0])

        def length(p):
            return Mux(p, self.length[1], self.length[0])

        other_pending = (self.s1_valid & self.s1_closes) | self.late_close
        self.other = other = c.value("other_window", full.bit_select(~P, 1) | other_pending)
        began = (c.tokens != 0) | (c.j != 0)
        c.prove("inv_begins", ~began | ((c.slot == (start(P) + c.tokens)[:2]) & ~full.bit_select(P, 1)))
        # The window before this one ends where this one begins.
        here = (c.slot - c.tokens)[:2]
        # (Where the younger one held nothing it may be done with before the older one.)
        both = full.bit_select(P, 1)
        c.prove(
            "inv_follows",
            ~(other | both)
            | (
                ((start(~P) + length(~P))[:2] == here)
                & (length(~P) != 0)
                & (length(~P) <= c.config.window_tokens)
            ),
        )
        c.prove(
            "inv_follows_both",
            ~full.bit_select(P, 1)
            | (
                ((start(P) + length(P))[:2] == start(~P))
                & (length(P) != 0)
                & (length(P) <= c.config.window_tokens)
            ),
        )
        given = c.value("given_of_window", (c.tokens * 2 + c.j)[:3])
        for e in self.entries:
            j, slot = e & 1, e >> 1
            w = self.window[e]
            offset = c.value(f"offset_{e}", (slot - start(w))[:2])
            age = c.value(f"age_{e}", offset * 2 + j)
            filled = (w == P) & ~full.bit_select(P, 1)
            # The beats in the stages are not among them.
            on_the_way = (self.s1_valid & (self.s1_parity == w)) + (self.late & (self.push_parity == w))
            limit = Mux(filled, given, length(w) * 2) - on_the_way
            there = Mux(filled, 1, (w != P) & other | full.bit_select(w, 1))
            c.prove(f"inv_in_window_{e}", ~self.held[e] | (there & (age < limit)))

    def _order(self) -> None:
        c = self.c
        self.age = []
        for e in self.entries:
            offset = (e >> 1) - Mux(self.window[e], self.start[1], self.start[0])
            self.age.append(
                c.value(f"order_{e}", Cat((offset[:2] * 2 + (e & 1))[:3], self.window[e] != self.older))
            )

    def _of(self, e, x, p):
        return self.held[e] & (self.expert[e] == x) & (self.window[e] == p)

    def _lists(self) -> None:
        """The lists are those of the entries that are held."""
        c = self.c
        config = c.config
        self.same = {}
        for e in self.entries:
            for f in self.entries:
                if e != f:
                    self.same[e, f] = c.value(
                        f"behind_{e}_{f}",
                        self.held[e]
                        & self.held[f]
                        & (self.expert[e] == self.expert[f])
                        & (self.window[e] == self.window[f])
                        & (self.age[e] < self.age[f]),
                    )
        self.first = [
            c.value(f"first_{e}", self.held[e] & ~Cat(self.same[f, e] for f in self.entries if f != e).any())
            for e in self.entries
        ]
        self.final = [
            c.value(f"final_{e}", self.held[e] & ~Cat(self.same[e, f] for f in self.entries if f != e).any())
            for e in self.entries
        ]
        self.some = {}
        for p in range(2):
            for x in range(config.num_experts):
                mine = [self._of(e, x, p) for e in self.entries]
                self.some[x, p] = some = c.value(f"some_{x}_{p}", Cat(mine).any())
                bit = self.nonempty[p][x]
                row = p * config.num_experts + x
                c.prove(f"inv_nonempty_{x}_{p}", ~bit | some)
                valid, job = self.jobs[0]
                unread = bit | (valid & (job.expert == x) & (job.parity == p))
                for e in self.entries:
                    c.prove(
                        f"inv_head_{x}_{p}_{e}", ~(unread & mine[e] & self.first[e]) | (self.heads[row] == e)
                    )
                    c.prove(
                        f"inv_tail_{x}_{p}_{e}", ~(unread & mine[e] & self.final[e]) | (self.tails[row] == e)
                    )
        for e in self.entries:
            for f in self.entries:
                if e != f:
                    between = Cat(
                        self.same[e, g] & self.same[g, f] for g in self.entries if g not in (e, f)
                    ).any()
                    c.prove(f"inv_next_{e}_{f}", ~(self.same[e, f] & ~between) | (self.nexts[e] == f))
        for p in range(2):
            total = sum(self.nonempty[p][1:], start=self.nonempty[p][0])
            c.prove(f"inv_queues_{p}", self.num_queues[p] == total)
        # The tail that was read for what is appended next.
        valid, queue = self.s1_valid, Cat(self.s1.expert, self.s1_parity)
        if config.deep:
            valid, queue = self.push, Cat(self.push_expert, self.push_parity)
        for row, tail in enumerate(self.tails):
            c.prove(f"inv_old_tail_{row}", ~valid | (queue != row) | (self.old_tail == tail))

    def _jobs(self) -> None:
        """Where each queue stands that was chosen."""
        c = self.c
        config = c.config
        for n, (valid, job) in enumerate(self.jobs):
            p = job.parity
            for x in range(config.num_experts):
                for q in range(2):
                    here = valid & (job.expert == x) & (p == q)
                    c.prove(f"inv_job_{n}_{x}_{q}", ~here | (~self.nonempty[q][x] & self.some[x, q]))
            c.prove(
                f"inv_job_full_{n}", ~valid | (self.full.bit_select(p, 1) & (job.expert < config.num_experts))
            )
            c.prove(f"inv_job_final_{n}", ~(valid & job.final) | ~self.closed.bit_select(p, 1))
            for k in range(n + 1, 3):
                later, other = self.jobs[k]  # further on its way, so chosen before
                c.prove(
                    f"inv_jobs_differ_{n}_{k}",
                    ~(valid & later) | (Cat(job.expert, p) != Cat(other.expert, other.parity)),
                )
                c.prove(f"inv_final_last_{n}_{k}", ~(valid & later & other.final) | (p != other.parity))
                c.prove(
                    f"inv_windows_in_turn_{n}_{k}",
                    ~(valid & later & (p != other.parity)) | (other.parity == self.older),
                )
            younger = valid & (p != self.older)
            passed = Cat(
                self.jobs[k][0] & self.jobs[k][1].final & (self.jobs[k][1].parity == self.older)
                for k in range(n + 1, 3)
            ).any()
            c.prove(f"inv_younger_{n}", ~younger | ~self.full.bit_select(self.older, 1) | passed)
        for p in range(2):
            final = Cat(valid & job.final & (job.parity == p) for valid, job in self.jobs).any()
            c.prove(f"inv_closed_{p}", ~self.closed[p] | self.full[p])
            c.prove(
                f"inv_chosen_{p}", ~(self.full[p] & ~self.closed[p]) | ((self.num_queues[p] == 0) & final)
            )
            any_held = Cat(self.held[e] & (self.window[e] == p) for e in self.entries).any()
            c.prove(f"inv_none_{p}", ~(self.closed[p] & (self.num_queues[p] == 0)) | ~any_held)
            for x in range(config.num_experts):
                chosen = Cat(valid & (job.expert == x) & (job.parity == p) for valid, job in self.jobs).any()
                c.prove(f"inv_queue_{x}_{p}", ~self.some[x, p] | self.nonempty[p][x] | chosen)
        c.prove(
            "inv_oldest",
            Mux(
                self.closed == 3,
                self.oldest == self.older,
                (self.closed == 0) | (self.closed == 1 << self.oldest),
            ),
        )
        c.prove("inv_stage_open", ~self.s1_valid | ~self.known.bit_select(self.s1_parity, 1))
        c.prove("inv_push_open", ~(self.late | self.late_close) | ~self.full.bit_select(self.push_parity, 1))
        _, (v1, job1), (v2, job2) = self.jobs
        for e in self.entries:
            of1 = v1 & self.held[e] & (self.expert[e] == job1.expert) & (self.window[e] == job1.parity)
            of2 = v2 & self.held[e] & (self.expert[e] == job2.expert) & (self.window[e] == job2.parity)
            # What is appended has a free place; what is walked is the job's.
            c.prove(f"inv_place_free_{e}", ~(self.s1_valid & (self.s1_place.as_value() == e)) | ~self.held[e])
            c.prove(f"inv_push_free_{e}", ~(self.late & (self.push_entry == e)) | ~self.held[e])
            c.prove(f"inv_walked_{e}", ~(v2 & (self.entry == e)) | of2)
            c.prove(f"inv_head_read_{e}", ~(of1 & self.first[e]) | (self.head_read == e))
            c.prove(f"inv_tail_read_{e}", ~(of1 & self.final[e]) | (self.tail_read == e))
            c.prove(f"inv_entry_{e}", ~(of2 & self.first[e]) | (self.entry == e))
            c.prove(f"inv_walk_tail_{e}", ~(of2 & self.final[e]) | (self.tail == e))
            c.prove(
                f"inv_next_read_{e}",
                ~(v2 & (self.entry == e) & (self.tail != e)) | (self.next_read == self.nexts[e]),
            )
            c.prove(f"inv_weight_read_{e}", ~(v2 & (self.entry == e)) | (self.weight_read == self.weights[e]))
        # The job's entries follow each other at the output.
        (main_valid, _), (spare_valid, _), *_ = self.at_output
        c.prove("inv_spare", ~spare_valid | main_valid)
        at_end, which = ~c.within, c.job_expert
        for n, (valid, beat) in enumerate(self.at_output):
            c.prove(f"inv_whole_{n}", ~valid | at_end | (beat.expert == which))
            at_end, which = Mux(valid, beat.last, at_end), Mux(valid, beat.expert, which)
        c.prove("inv_whole_walk", at_end | (v2 & (job2.expert == which)))
        fresh = Signal(name="fresh")  # the walked job has given nothing yet
        c.m.d.sync += fresh.eq(Mux(c.probe("walker.take_head"), 1, Mux(self.walker_out, 0, fresh)))
        c.prove("inv_whole_fresh", ~(v2 & fresh) | at_end)

    def _followed(self) -> None:
        """Where the followed assignment is: in the stage, in its queue, at the output.

        Which entries go before it is noted when it is appended, so that only single bits change later.
        """
        c, m, entry = self.c, self.c.m, self.c.entry
        config = c.config
        in_stage, in_push, queued, at_output = (
            Signal(name=f"followed_{place}") for place in ("stage", "push", "queue", "output")
        )
        spot = Signal(range(len(self.entries)), name="followed_spot")
        mine = [c.value(f"mine_{e}", self.held[e] & (self.expert[e] == c.expert)) for e in self.entries]
        ahead = [Signal(name=f"ahead_{e}") for e in self.entries]
        leaves = [self.walker_out & (self.entry == e) for e in self.entries]
        appended = c.value("followed_appended", in_push if config.deep else self.s1_fire & in_stage)
        with m.If(appended):
            m.d.sync += [queued.eq(1), spot.eq(self.push_entry)]
        if config.deep:
            m.d.sync += in_push.eq(self.s1_fire & in_stage)
        with m.If(self.s1_fire & in_stage):
            m.d.sync += in_stage.eq(0)
        with m.If(self.walker_out & queued & (self.entry == spot)):
            m.d.sync += [queued.eq(0), at_output.eq(1)]
        with m.If(entry.leaves):
            m.d.sync += at_output.eq(0)
        with m.If(entry.chosen):
            m.d.sync += in_stage.eq(1)
        for e in self.entries:
            m.d.sync += ahead[e].eq(Mux(appended, mine[e], ahead[e]) & ~leaves[e])

        out, right = 0, 1
        for there, beat in self.at_output:
            valid = there & (beat.expert == c.expert)
            same = Cat(beat.slot, beat.weight) == entry.saved
            right = right & (~(at_output & valid & (entry.before == out)) | same)
            out = out + valid
        c.prove("inv_place", entry.here == (in_stage | in_push | queued | at_output))
        c.prove("inv_one_place", (in_stage + in_push + queued + at_output) <= 1)
        c.prove("inv_output", right & (~at_output | (entry.before < out)))
        held = sum(mine[1:], start=mine[0])
        stage = self.s1_valid & self.keep_s1 & (self.s1.expert == c.expert)
        late = self.late & (self.push_expert == c.expert)
        c.prove("inv_entries", entry.inside == out + held + late + stage)
        same = entry.saved == Cat(self.s1_place.slot, self.s1.weight)
        c.prove("inv_in_stage", ~in_stage | (stage & same & (entry.before == out + held + late)))
        same = entry.saved == Cat(config.entry_id(self.push_entry).slot, self.push_weight)
        c.prove("inv_in_push", ~in_push | (late & same & (entry.before == out + held)))
        c.prove("inv_ahead", ~queued | (entry.before == out + sum(ahead[1:], start=ahead[0])))
        slot, weight = entry.saved[:2], entry.saved[2:]
        for e in self.entries:
            here = queued & (spot == e)
            c.prove(
                f"inv_spot_{e}",
                ~here | (mine[e] & ~ahead[e] & (slot == e >> 1) & (weight == self.weights[e])),
            )
            for f in self.entries:
                if e != f:
                    order = Mux(
                        ahead[f],
                        mine[f] & (self.age[f] < self.age[e]),
                        ~mine[f] | (self.age[f] > self.age[e]),
                    )
                    c.prove(f"inv_ahead_{e}_{f}", ~here | order)
        drops = self.s1_valid & ~self.keep_s1
        c.prove("inv_drops", c.drops == drops + c.dut.dropped)
        before = sum((valid for valid, _ in self.at_output), start=self.late)
        c.prove("inv_inside", c.inside == sum(self.held, start=before) + (self.s1_valid & self.keep_s1))

    def _tokens(self) -> None:
        """Where the followed token's announcement is."""
        c = self.c
        token = c.token
        places = [
            (c.probe(f"enqueue.expect.{name}"), c.probe(f"enqueue.expect.{name}_valid"))
            for name in ("main", "spare")
        ]
        kept = c.probe("enqueue.kept")
        kept_now = (kept + self.keep_s1)[:2]
        c.prove("inv_expect_spare", ~places[1][1] | places[0][1])
        here = self.s1_valid & self.s1.last
        places.append((Cat(self.s1_place.slot, kept_now, self.s1.last_token), here))
        count, right = 0, 1
        for value, valid in places:
            right = right & (~(token.here & valid & (token.before == count)) | (value == token.saved))
            count = count + valid
        c.prove("inv_token", right)
        c.prove("inv_tokens", token.inside == count)
        c.prove("inv_kept", c.token_kept == Mux(here, 0, Mux(self.s1_valid, kept_now, kept)))
        c.prove(
            "inv_kept_most",
            (kept <= 2) & (~self.s1_valid | (kept <= self.s1_place.j)) & (self.s1_valid | (kept <= c.j)),
        )


def progress() -> Checker:
    """Return the rule of progress: sinks ready every ``SINK_EVERY`` cycles, a beat out in bounded time."""
    checker = DispatchChecker(rules=False)
    m, dut = checker.m, checker.dut
    most = 2 * CONFIG.num_slots * CONFIG.top_k
    for name in ("o_0", "o_expect"):
        stalled = Signal(range(SINK_EVERY), name=f"{name}_stalled")
        ready = getattr(dut, name).ready
        m.d.sync += stalled.eq(Mux(ready, 0, stalled + 1))
        checker.assume(f"{name}_ready_often", ready | (stalled < SINK_EVERY - 1))
    # Entries of windows that are closed.
    of_window = Signal(range(most))
    owed = Signal(range(most))
    now = checker.value("of_window_now", of_window + (checker.take & checker.keep))
    out = _transfer(dut.o_0)
    closing = checker.value("closing", checker.take & checker.closes)
    m.d.sync += [
        of_window.eq(Mux(closing, 0, now)),
        owed.eq(owed + Mux(closing, now, 0) - out),
    ]
    idle = Signal(range(64))
    m.d.sync += idle.eq(Mux(out | (owed == 0), 0, idle + 1))
    checker.prove("entry_within", idle < PROGRESS_CYCLES)
    waits = Signal(range(64))
    m.d.sync += waits.eq(Mux(checker.take | ~dut.i.valid, 0, waits + 1))
    checker.prove("beat_taken_within", waits < TAKE_CYCLES)
    return checker


PROGRESS_CYCLES = Dispatch.LATENCY + SINK_EVERY
TAKE_CYCLES = 14


def searched(capacity: int = 0, config: DispatchConfig = CONFIG) -> Checker:
    """Return the rules alone, where a search from reset is short: every beat at once, one expert."""
    checker = DispatchChecker(config)
    dut = checker.dut
    checker.assume("search_capacity", checker.capacity == capacity)
    checker.assume("search_expert", checker.expert == 1)
    checker.assume("search_weight", dut.i.payload.weight == checker.slot)
    checker.assume("search_at_once", dut.i.valid & dut.o_expect.ready)
    return checker


def progress_searched() -> Checker:
    """Return the rule of progress where a beat is always offered and every output ready."""
    checker = progress()
    dut = checker.dut
    checker.assume("search_at_once", dut.i.valid & dut.o_expect.ready & dut.o_0.ready)
    return checker
