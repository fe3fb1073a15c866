"""The best k of a token's candidates, ties to the lowest index."""

from amaranth import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from rtl.arith import Pipelined, delay, tree
from rtl.gating.layouts import candidate_row_layout, choice_layout, index_bits, key_bits, payload_bits
from spec.design import Pipeline
from spec.geometry import GateGeometry


class SortedList(Pipelined):
    """A list of the ``size`` largest keys inserted since the last ``clear``, largest first.

    One insertion per cycle, visible in the next; an equal key goes behind those already there. Deep: visible
    a cycle later, since an insertion is compared with what the list will be once the one before it is in:
    with the entries and with that one, between which its place chooses.

    Members
    -------
    insert, valid, key, payload : In
        An insertion of something that is not ``valid`` leaves the list as it is (or empty, with ``clear``).
    clear : In(1)
        With ``insert``: forget the list first.
    entries : Out(ArrayLayout({payload, key, valid}, size))
    """

    LATENCY = 1
    DEEP_LATENCY = 2

    def __init__(
        self, *, key_bits: int, payload_bits: int, size: int, pipeline: Pipeline = Pipeline.SHORT
    ) -> None:
        self.size = size
        self.pipeline = pipeline
        self.entry = data.StructLayout(
            {"payload": unsigned(payload_bits), "key": unsigned(key_bits), "valid": unsigned(1)}
        )
        super().__init__(
            {
                "insert": In(1),
                "clear": In(1),
                "valid": In(1),
                "key": In(key_bits),
                "payload": In(payload_bits),
                "entries": Out(data.ArrayLayout(self.entry, size)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        above = Signal(self.size)
        if self.deep:
            self._insert(m, above, *self._compared(m, above))
            return m
        for n in range(self.size):
            entry = self.entries[n]
            kept = entry.valid & ~self.clear
            m.d.comb += above[n].eq(self.valid & (~kept | (self.key > entry.key)))
        self._insert(m, above, self.insert, self.clear, Cat(self.payload, self.key, self.valid))
        return m

    def _insert(self, m, above, insert, clear, new) -> None:
        """Put ``new`` before the first entry that it is ``above``."""
        for n in range(self.size):
            entry = self.entries[n]
            kept = entry.valid & ~clear
            with m.If(insert):
                with m.If(above[n]):
                    if n == 0:
                        m.d.sync += entry.eq(new)
                    else:
                        m.d.sync += entry.eq(
                            Mux(
                                above[n - 1],
                                Cat(
                                    self.entries[n - 1].as_value()[:-1],
                                    self.entries[n - 1].valid & ~clear,
                                ),
                                new,
                            )
                        )
                with m.Else():
                    m.d.sync += entry.valid.eq(kept)

    def _compared(self, m, above):
        """Return the insertion of the cycle before, and set ``above`` to where it belongs by now."""
        insert = delay(m, self.insert, 1, "insert", control=True)
        clear = delay(m, self.clear, 1, "clear")
        new = Signal(self.entry)
        m.d.sync += new.eq(Cat(self.payload, self.key, self.valid))
        larger = [Signal(name=f"larger_{n}") for n in range(self.size)]
        larger_than_new = Signal()
        m.d.comb += larger_than_new.eq(self.key > new.key)
        for n in range(self.size):
            entry = self.entries[n]
            m.d.comb += larger[n].eq(self.key > entry.key)
            # What the entry will be: as it is, without what is cleared; the new one; the one before it.
            valid, is_larger = entry.valid & ~(insert & clear), larger[n]
            inserted, was_larger = new.valid, larger_than_new
            if n > 0:
                before = self.entries[n - 1].valid & ~clear
                inserted = Mux(above[n - 1], before, inserted)
                was_larger = Mux(above[n - 1], larger[n - 1], was_larger)
            moves = insert & above[n]
            m.d.sync += above[n].eq(
                self.valid & (self.clear | ~Mux(moves, inserted, valid) | Mux(moves, was_larger, is_larger))
            )
        return insert, clear, new.as_value()


class TopK(Pipelined):
    """Choose the best k: one sorted list per lane while the rows pass, then a k-step merge.

    The first choice leaves ``latency`` cycles after the token's last row, the others follow in
    consecutive cycles. Tokens must be at least k cycles apart.

    Members
    -------
    i : In(candidate_row_layout(...))
    o : Out(choice_layout(...))
    """

    LATENCY = SortedList.LATENCY + 2
    DEEP_LATENCY = SortedList.DEEP_LATENCY + 2

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        self.pipeline = geometry.pipeline
        self.index_bits = index_bits(geometry.gating)
        super().__init__(
            {
                "i": In(candidate_row_layout(geometry)),
                "o": Out(choice_layout(geometry.gating)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        gating, top_k = geometry.gating, geometry.gating.top_k
        carried = payload_bits(gating)
        lanes = geometry.logits_per_cycle
        load = delay(m, self.i.valid & self.i.last, self.latency - 2, "load", control=True)
        pop = Signal()
        remaining = Signal(range(top_k + 1))
        m.d.comb += pop.eq(remaining != 0)
        with m.If(load):
            m.d.sync += remaining.eq(top_k)
        with m.Elif(pop):
            m.d.sync += remaining.eq(remaining - 1)

        # A lane's payload: what the candidate carries, and the expert; the merge compares keys, then experts.
        heads = []
        wins = [Signal(name=f"wins_{lane}") for lane in range(lanes)]
        for lane in range(lanes):
            candidate = self.i.lanes[lane]
            best = m.submodules[f"lane_{lane}"] = SortedList(
                key_bits=key_bits(gating),
                payload_bits=carried + self.index_bits,
                size=top_k,
                pipeline=self.pipeline,
            )
            index = Signal(self.index_bits, name=f"index_{lane}")
            m.d.comb += [
                index.eq(self.i.index + lane),
                best.insert.eq(self.i.valid),
                best.clear.eq(self.i.first),
                best.valid.eq(candidate.valid),
                best.key.eq(candidate.key),
                best.payload.eq(Cat(candidate.payload, index)),
            ]
            queue = [Signal(best.entry, name=f"queue_{lane}_{n}") for n in range(top_k)]
            with m.If(load):
                m.d.sync += [queue[n].eq(best.entries[n]) for n in range(top_k)]
            with m.Elif(pop & wins[lane]):
                m.d.sync += [queue[n].eq(queue[n + 1]) for n in range(top_k - 1)]
                m.d.sync += queue[-1].valid.eq(0)
            heads.append(queue[0])

        def order(head):
            return Cat(~head.payload[carried:], head.key, head.valid)

        winner = tree(
            [(order(head), lane) for lane, head in enumerate(heads)],
            lambda a, b: (
                Mux(a[0] >= b[0], a[0], b[0]),
                Mux(a[0] >= b[0], a[1], b[1]),
            ),
        )[1]
        winning_lane = Signal(range(max(2, lanes)))
        m.d.comb += winning_lane.eq(winner)
        for lane in range(lanes):
            m.d.comb += wins[lane].eq(winning_lane == lane)
        chosen = Array(heads)[winning_lane]
        out = Signal(self.o.shape())
        m.d.sync += [
            out.valid.eq(pop),
            out.first.eq(remaining == top_k),
            out.last.eq(remaining == 1),
            out.key.eq(chosen.key),
            out.payload.eq(chosen.payload[:carried]),
            out.index.eq(chosen.payload[carried:]),
        ]
        m.d.comb += self.o.eq(out)
        return m
