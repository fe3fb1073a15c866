"""The crossing between two clocks, whose edges come in any order: nothing lost, doubled or reordered.

Time is what either clock's edges are counted in: in each cycle of the model the solver chooses whether the
writer's clock rises, the reader's, both or none. What samples the other side's count in the very moment in
which it changes sees the old one. In hardware it could see either: the counts are Gray codes, of which
:func:`crossing_order` proves that they change in one bit at most, so it is the old count or the new one, and
that is what another order of the two edges shows. A flip-flop that has not settled after a cycle is not in
the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from amaranth import Cat, EnableInserter, Module, Mux, Signal, unsigned
from amaranth.hdl import ClockDomain, Fragment
from amaranth.lib import data

from rtl.crossing import StreamCrossing
from tests.formal.model import Checker, FormalPlatform
from tests.formal.order import Followed

DEPTH, WIDTH = 4, 2
WRITER, READER = "writer", "reader"
CYCLES = 6
"""Of the slower clock, in which both sides are in reset; then all is forgotten in any order of edges."""
SOON = 2
"""Edges of its own clock that a side waits at most before it sees what the other one did."""


@dataclass
class Edges(FormalPlatform):
    """Memories as registers, and a reset that is noticed at once and left with its reader's clock."""

    rises: dict[str, Signal]
    reset: Signal

    def get_async_ff_sync(self, crossing):
        """Return a module in the place of :class:`amaranth.lib.cdc.AsyncFFSynchronizer`, of this reset."""
        m = Module()
        stages = [Signal(name=f"stage{n}", reset_less=True) for n in range(crossing._stages)]
        with m.If(self.reset):
            m.d.sync += Cat(stages).eq(-1)
        with m.Elif(self.rises[crossing._o_domain]):
            m.d.sync += Cat(stages).eq(Cat(0, *stages[:-1]))
        m.d.comb += crossing.o.eq(stages[-1] | self.reset)
        return m


@dataclass
class TwoClocks(Checker):
    """A checker of a block with the clocks :data:`WRITER` and :data:`READER`, each with its reset.

    Both are in reset for ``cycles`` cycles; from then on each leaves its own whenever it likes.

    Attributes
    ----------
    cycles : of the common reset.
    rises : whether a clock rises in this cycle.
    resets : whether a side is in reset.
    together : cycles that both have been in reset, each clock having risen; ``cycles`` and no more.
    """

    cycles: int = CYCLES
    rises: dict[str, Signal] = field(init=False)
    resets: dict[str, Signal] = field(init=False)

    def block(self) -> Fragment:
        """Return the block, whose registers change with the edges of their clock alone."""
        m = self.m
        self.rises = {side: Signal(name=f"{side}_rises") for side in (WRITER, READER)}
        self.resets = {side: Signal(name=f"{side}_reset") for side in (WRITER, READER)}
        for side in (WRITER, READER):
            self.domains[side] = domain = ClockDomain(side)
            m.domains += domain
            # A reset that is synchronous acts with the edge.
            m.d.comb += [
                domain.clk.eq(self.domain.clk),
                domain.rst.eq(self.resets[side] & self.rises[side]),
            ]
        return Fragment.get(EnableInserter(self.rises)(self.dut), Edges(self.rises, self.resets[WRITER]))

    def __post_init__(self) -> None:
        super().__post_init__()
        m = self.m
        self._ports += self.rises.values()
        self.together = Signal(range(self.cycles + 1), name="together")
        self.risen = {side: Signal(name=f"{side}_has_risen") for side in self.rises}
        seen = {side: self.risen[side] | rises for side, rises in self.rises.items()}
        joint = self.together != self.cycles
        for side, rises in self.rises.items():
            left = Signal(name=f"{side}_left")
            leaves = self.free(f"{side}_leaves", 1)
            m.d.comb += self.resets[side].eq(joint | ~left)
            with m.If(~joint & leaves & rises):
                m.d.sync += left.eq(1)
            with m.If(joint):
                m.d.sync += self.risen[side].eq(rises | self.risen[side])
        with m.If(joint & seen[WRITER] & seen[READER]):
            m.d.sync += [self.together.eq(self.together + 1), *(risen.eq(0) for risen in self.risen.values())]

    def since(self, cycles: int, side: str):
        """Return whether this side's clock has risen in so many cycles of the common reset."""
        return (self.together >= cycles) | ((self.together == cycles - 1) & self.risen[side])


def _gray(value, width: int):
    return (value ^ (value >> 1))[:width]


def _binary(value):
    """Return the number of a Gray code."""
    bits = [value[n:].xor() for n in range(len(value))]
    return Cat(bits)


def crossing_order(cycles: int = CYCLES) -> Checker:
    """Return a crossing of ``DEPTH`` beats: each of them once, in order, and soon; ``cycles`` of reset."""
    dut = StreamCrossing(unsigned(WIDTH), DEPTH, from_domain=WRITER, to_domain=READER)
    checker = TwoClocks(dut, cycles=cycles)
    writes, reads = checker.rises[WRITER], checker.rises[READER]
    in_reset, out_reset = checker.resets[WRITER], checker.resets[READER]
    goes_in = checker.value("goes_in", dut.i.valid & dut.i.ready & writes & ~in_reset)
    comes_out = checker.value("comes_out", dut.o.valid & dut.o.ready & reads & ~out_reset)
    followed = Followed(
        checker, "beat", goes_in=goes_in, value=dut.i.payload, comes_out=comes_out, most=DEPTH
    )
    followed.prove(checker, dut.o.payload, most=DEPTH)
    # Out of reset what was offered at an edge is offered at the next one.
    offered = Signal(name="offered")
    before = Signal(WIDTH, name="offered_before")
    with checker.m.If(reads):
        checker.m.d.sync += [
            offered.eq(dut.o.valid & ~dut.o.ready & ~out_reset),
            before.eq(dut.o.payload),
        ]
    checker.prove("o_stays", ~offered | (dut.o.valid & (dut.o.payload == before)))
    checker.prove("inv_offered", ~offered | ~out_reset)
    checker.prove("silent_in_reset", ~(reads & out_reset & dut.o.valid))

    # Counts: the writer's own, on their way to the reader, the reader's own, on their way to the writer.
    fifo = "fifo"
    produced, consumed = (checker.probe(f"{fifo}.{side}_bin") for side in ("produce_w", "consume_r"))
    codes = [checker.probe(f"{fifo}.{side}_gry") for side in ("produce_w", "consume_r")]
    stages = {
        name: [checker.probe(f"{fifo}.{name}.stage{n}") for n in range(2)]
        for name in ("produce_cdc", "consume_cdc")
    }
    noticed = [checker.probe(f"{fifo}.rst_cdc.stage{n}") for n in range(2)]
    width = len(produced)
    told, known = ([_binary(stage) for stage in stages[name]] for name in ("produce_cdc", "consume_cdc"))
    for name, count, code in zip(("writer", "reader"), (produced, consumed), codes, strict=True):
        held = checker.since(1 if name == "writer" else 4, name)
        checker.prove(f"inv_{name}_code", ~held | (code == _gray(count, width)))
        was = checker.register(f"{name}_code_before", code)
        once = checker.register(f"{name}_code_held", held)
        changed = code ^ was
        # So that whoever samples it in that moment has the old count or the new one.
        checker.prove(f"{name}_code_by_a_bit", ~once | ((changed & (changed - 1))[:width] == 0))

    # In the common reset everything becomes 0, one after the other.
    for number, (after, side, signal) in enumerate(
        [
            (1, WRITER, produced),
            (2, READER, stages["produce_cdc"][0]),
            (3, READER, stages["produce_cdc"][1]),
            (4, READER, consumed),
            (5, WRITER, stages["consume_cdc"][0]),
            (6, WRITER, stages["consume_cdc"][1]),
        ]
    ):
        clear = ~checker.since(after, side) | ~in_reset
        checker.prove(f"inv_clear_{number}", clear | (signal == 0))
    started = checker.value("started", checker.together == cycles)
    noticing = checker.register("noticing", 1)
    checker.prove("inv_noticed", ~in_reset | ~noticing | (noticed[0] & noticed[1]))
    checker.prove("inv_notices", ~noticing | ~noticed[0] | noticed[1])
    checker.prove("inv_noticing", (checker.together == 0) | noticing)
    checker.prove("inv_nothing_yet", ~in_reset | (followed.inside == 0))
    checker.prove("inv_in_reset", started | (in_reset & out_reset))
    # While the reader notices the writer's reset it forgets what it is told, which is nothing yet.
    checker.prove("inv_forgets_nothing", ~started | ~noticed[1] | ((consumed == 0) & (told[1] == 0)))
    checker.prove("inv_tells_nothing", ~started | ~noticed[0] | (told[0] == 0))

    def apart(later, earlier):
        return (later - earlier)[:width]

    steps = [
        apart(told[1], consumed),
        apart(told[0], told[1]),
        apart(produced, told[0]),
        apart(consumed, known[0]),
        apart(known[0], known[1]),
    ]
    inside = checker.value("inside", apart(produced, consumed))
    checker.prove("inv_inside", ~started | (followed.inside == inside))
    checker.prove("inv_forth", ~started | (steps[0] + steps[1] + steps[2] == inside))
    checker.prove("inv_back", ~started | (inside + steps[3] + steps[4] <= DEPTH))

    # Where the one that is followed is, and what the reader has of the first.
    rows = Signal(data.ArrayLayout(WIDTH, DEPTH))
    checker.m.d.comb += [rows[n].eq(row) for n, row in enumerate(checker.rows(fifo, "storage"))]
    place = Signal(range(DEPTH))
    checker.m.d.comb += place.eq(consumed + followed.before)
    checker.prove("inv_where", ~followed.here | (rows[place] == followed.saved))
    first = Signal(range(DEPTH))
    checker.m.d.comb += first.eq(consumed)
    shown = ~started | noticed[1] | (steps[0] == 0)
    checker.prove("inv_shown", shown | (dut.o.payload == rows[first]))

    # How long each side does not know what it could: at most as long as it takes from register to register.
    forgets = Mux(noticed[0], 2, noticed[1])
    on_its_way = Mux(steps[1] != 0, 1, 2)
    for name, side, nothing, seen, left in (
        (
            "beat",
            READER,
            (followed.inside == 0) | out_reset,
            dut.o.valid,
            Mux(forgets > on_its_way, forgets, on_its_way),
        ),
        (
            "room",
            WRITER,
            (followed.inside == DEPTH) | in_reset,
            dut.i.ready,
            Mux(steps[4] != 0, 1, 2),
        ),
    ):
        waits = checker.value(f"{name}_waits", ~nothing & ~seen)
        waited = Signal(range(SOON + 2), name=f"{name}_waited")
        with checker.m.If(checker.rises[side]):
            checker.m.d.sync += waited.eq(Mux(waits, waited + 1, 0))
        checker.prove(f"{name}_soon", waited <= SOON)
        checker.prove(f"inv_{name}_soon", ~waits | (waited + left <= SOON))
        checker.prove(f"inv_{name}_no_wait", ~nothing | (waited == 0))
    return checker
