"""Capacity rules that need a whole window: collect it, decide, and give it on as it came."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.dispatch.enqueue import ExpertCounts
from rtl.dispatch.layouts import DispatchConfig
from rtl.gating.weights import KeptWeights
from rtl.ram import Ram
from spec.model import CapacityRule


class PriorityOrder(wiring.Component):
    """Sort a window's tokens by their largest weight or score, largest first, as they come.

    An insertion into a sorted row of registers: one comparator, a score and a number per token of the
    window. They are compared as unsigned patterns, which is their order as long as they are not
    negative; :func:`priority_of` says what becomes of others. Equal ones keep the order in which they
    came. After reset the row is empty.

    Members
    -------
    valid, weight, last : In, what ranks an assignment; the token's last one.
    clear : In(1), start with an empty row.
    order : Out(window_tokens numbers of tokens in the window), a token is in it from the cycle after its
        last weight on.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "weight": In(config.priority_bits),
                "last": In(1),
                "clear": In(1),
                "order": Out(data.ArrayLayout(range(config.window_tokens), config.window_tokens)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bits = config.priority_bits
        best = Signal(bits)  # of this token so far
        score = Signal(bits)
        token = Signal(range(config.window_tokens))
        insert = Signal()
        m.d.comb += [
            score.eq(Mux(self.weight > best, self.weight, best)),
            insert.eq(self.valid & self.last),
        ]
        with m.If(self.valid):
            m.d.sync += best.eq(Mux(self.last, 0, score))
        with m.If(insert):
            m.d.sync += token.eq(token + 1)

        above_filled, above_score, above_token, above_moves = None, None, None, None
        for place in range(config.window_tokens):
            filled = Signal(name=f"filled_{place}")
            held_score = Signal(bits, name=f"score_{place}", reset_less=True)
            held_token = Signal(range(config.window_tokens), name=f"token_{place}", reset_less=True)
            # The row is sorted: where one place gives way, all below it do.
            moves = Signal(name=f"moves_{place}")
            m.d.comb += [moves.eq(~filled | (score > held_score)), self.order[place].eq(held_token)]
            with m.If(insert & moves):
                if place == 0:
                    m.d.sync += [filled.eq(1), held_score.eq(score), held_token.eq(token)]
                else:
                    m.d.sync += [
                        filled.eq(Mux(above_moves, above_filled, 1)),
                        held_score.eq(Mux(above_moves, above_score, score)),
                        held_token.eq(Mux(above_moves, above_token, token)),
                    ]
            with m.If(self.clear):
                m.d.sync += filled.eq(0)
            above_filled, above_score, above_token, above_moves = filled, held_score, held_token, moves
        with m.If(self.clear):
            m.d.sync += token.eq(0)
        return m


def priority_of(config: DispatchConfig, assignment):
    """Return what ranks an assignment: a pattern whose unsigned order is that of its weight or score."""
    if config.ranks_by_score:
        return assignment.score
    weight = assignment.weight
    if not config.signed_weights:
        return weight
    # Of both signs: golden.dispatch_streams.weight_order.
    return Mux(weight[15], ~weight, weight | 0x8000)


class Decide(wiring.Component):
    """Collect a window, let its assignments claim the experts' places by the rule, give it on as it came.

    Windows are those of the dispatcher. While one is being collected the one before is decided, one
    assignment per cycle in the order of the rule, and then given on, one per cycle in order of arrival
    with ``keep``. Counts run across the windows of a batch, so a batch longer than a window is decided
    window by window: an earlier window's assignments come before a later one's whatever their choice.

    ``gshard``: all first choices, all second ones, and so on, each in order of arrival.
    ``batch_priority``, ``score_priority``: the same with the tokens in descending order of their largest
    weight or score. ``switch``: each token's choices in turn, in order of arrival.

    With ``kept_gating`` the weights are made when all is decided, of the kept ones' scores: a cycle per
    assignment, in order of arrival, the last of them while the first are given on.

    Latency ``DECIDE_CYCLES`` + a cycle per assignment of the window, from the beat that closes it to its
    first beat at ``o``; with ``kept_gating`` ``weigh_cycles`` more. A window takes two cycles per assignment;
    one beat per cycle in until a window is closed, then none until the one before has been given on.
    After reset nothing is held.
    Area: RAM bits ``2 * window_tokens * 2**ceil_log2(top_k) * (expert bits + 16)`` for two windows; with
    ``kept_gating`` the scores in place of the weights, 17 bits more for one window, and
    :class:`rtl.gating.weights.KeptWeights`.

    Members
    -------
    i : In(stream.Signature(config.assignment))
    capacity : In(capacity_bits)
    o : Out(stream.Signature(config.decided))
    """

    DECIDE_CYCLES = 4

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        gating = config.kept_gating
        self.weigh = None if gating is None else KeptWeights(gating, config.score_bits, self.place.size)
        super().__init__(
            {
                "i": In(stream.Signature(config.assignment)),
                "capacity": In(config.capacity_bits),
                "o": Out(stream.Signature(config.decided)),
            }
        )

    @property
    def weigh_cycles(self) -> int:
        """Cycles from the first score's read to the read of its weight; 0 where weights came along."""
        return Ram.LATENCY + self.weigh.latency if self.weigh else 0

    @property
    def place(self) -> data.StructLayout:
        """Place of an assignment in its window."""
        return data.StructLayout({"j": range(self.config.top_k), "token": range(self.config.window_tokens)})

    @property
    def stored(self) -> data.StructLayout:
        """What is kept of an assignment."""
        shared = {"shared": 16} if self.config.shared_gate else {}
        weight = {} if self.weigh else {"weight": 16}
        return data.StructLayout({"expert": range(self.config.num_routed), **weight, **shared})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.store = store = Ram(width=self.stored.size, depth=2 << self.place.size)
        m.submodules.keeps = keeps = Ram(width=1, depth=1 << self.place.size, transparent=True)

        # Collect.
        collecting = Signal(init=1)
        parity = Signal()  # of the window that is being collected
        place = Signal(self.place)
        accept = Signal()
        closes = Signal()
        start = Signal()
        last_token = Signal(range(config.window_tokens), reset_less=True)
        ends_batch = Signal(reset_less=True)
        m.d.comb += [
            self.i.ready.eq(collecting),
            accept.eq(self.i.valid & self.i.ready),
            closes.eq(
                self.i.payload.last & (self.i.payload.last_token | (place.token == config.window_tokens - 1))
            ),
            store.write.en.eq(accept),
            store.write.addr.eq(Cat(place, parity)),
            store.write.data.eq(Cat(self.i.payload[name] for name in self.stored.members)),
        ]
        with m.If(accept):
            m.d.sync += place.j.eq(place.j + 1)
            with m.If(self.i.payload.last):
                m.d.sync += [place.j.eq(0), place.token.eq(place.token + 1)]
            with m.If(closes):
                m.d.sync += [
                    place.token.eq(0),
                    collecting.eq(0),
                    last_token.eq(place.token),
                    ends_batch.eq(self.i.payload.last_token),
                ]
        with m.If(start):
            m.d.sync += [collecting.eq(1), parity.eq(~parity)]
        order = self._order(m, accept, start)

        # The window that is decided and given on: ``turn`` counts tokens in the order of the phase.
        bank = Signal()
        turns = Signal.like(last_token)
        final = Signal(reset_less=True)
        turn = Signal(range(config.window_tokens))
        j = Signal(range(config.top_k))
        last_j = Signal()
        last_turn = Signal()
        claim = Signal()
        give = Signal()
        row = Signal(self.place)
        m.d.comb += [
            last_j.eq(j == config.top_k - 1),
            last_turn.eq(turn == turns),
            row.j.eq(j),
            row.token.eq(Mux(claim, order[turn], turn) if order is not None else turn),
            store.read_0.en.eq(claim | give),
            store.read_0.addr.eq(Cat(row, bank)),
        ]
        weighed = None
        if self.weigh:
            start_weighing = Signal()
            weights = Ram(width=17, depth=1 << self.place.size, transparent=True)
            m.submodules.weights = weights
            self._weigh(m, start_weighing, turns, bank, accept, Cat(place, parity), keeps, weights)
            weighed = Signal(range(self.weigh_cycles + 1))
            m.d.comb += [weights.read_0.en.eq(give), weights.read_0.addr.eq(row)]
        else:
            m.d.comb += [keeps.read_0.en.eq(give), keeps.read_0.addr.eq(row)]
        with m.FSM(name="phase"):
            with m.State("IDLE"):
                m.d.comb += start.eq(~collecting)
                with m.If(start):
                    m.d.sync += [bank.eq(parity), turns.eq(last_token), final.eq(ends_batch)]
                    m.next = "CLAIM"
            with m.State("CLAIM"):
                m.d.comb += claim.eq(1)
                if config.capacity_rule is CapacityRule.SWITCH:
                    # A token's choices, then the next one's.
                    m.d.sync += j.eq(Mux(last_j, 0, j + 1))
                    with m.If(last_j):
                        m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))
                        with m.If(last_turn):
                            m.next = "SETTLE"
                else:
                    # All tokens' first choices, then all second ones.
                    m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))
                    with m.If(last_turn):
                        m.d.sync += j.eq(Mux(last_j, 0, j + 1))
                        with m.If(last_j):
                            m.next = "SETTLE"
            with m.State("SETTLE"):
                m.next = "WEIGH" if self.weigh else "GIVE"
            if self.weigh:
                with m.State("WEIGH"):
                    m.d.comb += start_weighing.eq(weighed == 0)
                    m.d.sync += weighed.eq(weighed + 1)
                    with m.If(weighed == self.weigh_cycles - 1):
                        m.d.sync += weighed.eq(0)
                        m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += give.eq(~self.o.valid | self.o.ready)
                with m.If(give):
                    m.d.sync += j.eq(Mux(last_j, 0, j + 1))
                    with m.If(last_j):
                        m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))
                    with m.If(last_j & last_turn):
                        m.next = "LEAVE"
            with m.State("LEAVE"):
                with m.If(self.o.ready):
                    m.next = "IDLE"

        self._claim(m, claim, last_j & last_turn & final, row, store, keeps)
        stored = data.View(self.stored, store.read_0.data)
        m.d.comb += [self.o.payload[name].eq(stored[name]) for name in self.stored.members]
        if self.weigh:
            m.d.comb += Cat(self.o.payload.weight, self.o.payload.keep).eq(weights.read_0.data)
        else:
            m.d.comb += self.o.payload.keep.eq(keeps.read_0.data)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                self.o.valid.eq(give),
                self.o.payload.last.eq(last_j),
                self.o.payload.last_token.eq(last_turn & final),
            ]
        return m

    def _order(self, m, accept, start):
        """Return the window's tokens in the order in which they claim places, None for that of arrival."""
        config = self.config
        if not config.ranks_tokens or config.window_tokens == 1:
            return None
        m.submodules.priority = priority = PriorityOrder(config)
        order = Signal(priority.order.shape(), reset_less=True)
        m.d.comb += [
            priority.valid.eq(accept),
            priority.weight.eq(priority_of(config, self.i.payload)),
            priority.last.eq(self.i.payload.last),
            priority.clear.eq(start),
        ]
        with m.If(start):
            m.d.sync += order.eq(priority.order)
        return order

    def _weigh(self, m, start, turns, bank, accept, accept_place, keeps, weights):
        """Walk a window's scores from ``start`` on, and write their weights, each with its "kept"."""
        config = self.config
        m.submodules.scores = scores = Ram(width=config.score_bits, depth=2 << self.place.size)
        m.submodules.weigh = weigh = self.weigh
        row = Signal(self.place)
        walking = Signal()
        walk = Signal()
        last_j = Signal()
        m.d.comb += [
            scores.write.en.eq(accept),
            scores.write.addr.eq(accept_place),
            scores.write.data.eq(self.i.payload.score),
            walk.eq(start | walking),
            last_j.eq(row.j == config.top_k - 1),
            scores.read_0.en.eq(walk),
            scores.read_0.addr.eq(Cat(row, bank)),
            keeps.read_0.en.eq(walk),
            keeps.read_0.addr.eq(row),
        ]
        with m.If(walk):
            m.d.sync += [walking.eq(1), row.j.eq(row.j + 1)]
            with m.If(last_j):
                m.d.sync += [row.j.eq(0), row.token.eq(row.token + 1)]
                with m.If(row.token == turns):
                    m.d.sync += [walking.eq(0), row.token.eq(0)]
        m.d.sync += [
            weigh.i.valid.eq(walk),
            weigh.i.index.eq(row),
            weigh.i.first.eq(row.j == 0),
            weigh.i.last.eq(last_j),
        ]
        keep = delay(m, keeps.read_0.data, self.weigh.latency, "keep")
        m.d.comb += [
            weigh.i.keep.eq(keeps.read_0.data),
            weigh.i.score.eq(scores.read_0.data),
            weights.write.en.eq(weigh.o.valid),
            weights.write.addr.eq(weigh.o.index),
            weights.write.data.eq(Cat(weigh.o.weight, keep)),
        ]

    def _claim(self, m, claim, end, row, store, keeps):
        """Follow a read by that of its expert's count, and that by the decision."""
        config = self.config
        m.submodules.counts = counts = ExpertCounts(config)
        s1_valid = Signal()
        s2_valid = Signal()
        s1_row = Signal(self.place, reset_less=True)
        s2_row = Signal(self.place, reset_less=True)
        s1_end = Signal()
        s2_end = Signal()
        s2_expert = Signal(range(config.num_counted), reset_less=True)
        s1_expert = data.View(self.stored, store.read_0.data).expert
        m.d.sync += [
            s1_valid.eq(claim),
            s1_row.eq(row),
            s1_end.eq(end),
            s2_valid.eq(s1_valid),
            s2_row.eq(s1_row),
            s2_end.eq(s1_end),
            s2_expert.eq(s1_expert),
        ]
        m.d.comb += [
            counts.capacity.eq(self.capacity),
            counts.read.eq(s1_valid),
            counts.expert.eq(s1_expert),
            counts.decide.eq(s2_valid),
            counts.decided_expert.eq(s2_expert),
            counts.end.eq(s2_end),
            keeps.write.en.eq(s2_valid),
            keeps.write.addr.eq(s2_row),
            keeps.write.data.eq(counts.keep),
        ]
