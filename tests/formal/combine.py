"""The combiners: each announced token leaves once, in order, when all that it waits for is there.

Those of one unit, with short and deep pipelines, and that of several units. The sums' values are not part of
it (`make test` compares every bit); with them left out the solver sees control.
"""

from __future__ import annotations

from amaranth import Mux, Signal
from amaranth.lib import data

from rtl.combine import Combine, CombineConfig
from rtl.combine_ordered import OrderedCombine, OrderedConfig
from spec.geometry import ACCUMULATE_DISTANCE
from tests.formal.model import Checker
from tests.formal.order import Followed

SIZES = {"num_slots": 2, "d_model": 3, "lanes": 2, "max_count": 2}
KINDS = ("short", "deep", "ordered")
"""Of one unit with short or deep pipelines, of several units."""


def config_of(kind: str) -> CombineConfig | OrderedConfig:
    """Return the parameters of a combiner of one of ``KINDS``."""
    return OrderedConfig(**SIZES) if kind == "ordered" else CombineConfig(**SIZES, deep=kind == "deep")


def cycles_until_offered(kind: str) -> int:
    """Return for how many cycles the next beat of a complete token is not there at most.

    The latency from its last contribution; deep, one may have waited for the sums before it, and of several
    units each contribution is added a distance behind the one before.
    """
    config = config_of(kind)
    if kind == "ordered":
        return OrderedCombine.LATENCY + (config.max_count - 1) * ACCUMULATE_DISTANCE
    return config.latency + config.stages.distance * config.spaced


def _transfer(port):
    return port.valid & port.ready


def tokens_once(kind: str = "short", *, soon: bool = False) -> Checker:
    """Return a combiner of one of ``KINDS``; ``soon``: the rule of progress alone, whose search is longer."""
    config = config_of(kind)
    dut = OrderedCombine(config) if kind == "ordered" else Combine(config)
    checker = Checker(dut)
    m = checker.m
    checker.assume_streams()
    beat, expect = dut.i.payload, dut.i_expect.payload
    taken = checker.value("taken", _transfer(dut.i))
    announced = checker.value("announced", _transfer(dut.i_expect))
    out = checker.value("out", _transfer(dut.o))
    leaves = checker.value("leaves", out & dut.o.payload.token_last)

    # Slots: announced in order, used again after they were freed.
    next_slot = Signal(range(config.num_slots))
    oldest = Signal(range(config.num_slots))
    inside = Signal(range(config.num_slots + 1), name="tokens_inside")
    m.d.sync += [next_slot.eq(next_slot + announced), oldest.eq(oldest + dut.freed)]
    m.d.sync += inside.eq(inside + announced - dut.freed)
    checker.assume("slots_in_order", ~dut.i_expect.valid | (expect.slot == next_slot))
    checker.assume("slots_free", ~dut.i_expect.valid | (inside < config.num_slots))
    checker.assume("counts", ~dut.i_expect.valid | (expect.count <= config.max_count))

    # Contributions: after the announcement, as many as announced, the words of each in order. Those of
    # several units come of each rank once, and interleave.
    rank = beat.rank if "rank" in config.contribution.members else 0
    ranks = config.max_count if "rank" in config.contribution.members else 1
    wanted = Signal(data.ArrayLayout(range(config.max_count + 1), config.num_slots))
    word = Signal(data.ArrayLayout(data.ArrayLayout(range(config.words), ranks), config.num_slots))
    with m.If(announced):
        m.d.sync += wanted[expect.slot].eq(expect.count)
    with m.If(taken):
        m.d.sync += word[beat.slot][rank].eq(Mux(beat.last, 0, word[beat.slot][rank] + 1))
        with m.If(beat.last):
            m.d.sync += wanted[beat.slot].eq(wanted[beat.slot] - 1)
    checker.assume("contributions_announced", ~dut.i.valid | (wanted[beat.slot] != 0))
    checker.assume("words_in_order", ~dut.i.valid | (beat.word == word[beat.slot][rank]))
    checker.assume("last_word", beat.last == (beat.word == config.words - 1))
    if ranks > 1:
        most = Signal(data.ArrayLayout(range(config.max_count + 1), config.num_slots), name="most")
        given = Signal(data.ArrayLayout(ranks, config.num_slots), name="given")
        with m.If(announced):
            m.d.sync += [most[expect.slot].eq(expect.count), given[expect.slot].eq(0)]
        with m.If(taken & beat.last):
            m.d.sync += given[beat.slot].bit_select(rank, 1).eq(1)
        checker.assume("ranks_announced", ~dut.i.valid | (rank < most[beat.slot]))
        checker.assume("ranks_once", ~dut.i.valid | ~given[beat.slot].bit_select(rank, 1))

    going = Signal(range(config.num_slots))
    owed = Signal(range(config.num_slots + 1), name="tokens_owed")
    m.d.sync += [going.eq(going + leaves), owed.eq(owed + announced - leaves)]
    if soon:
        # A token that has all its contributions is offered, beat by beat.
        complete = checker.value("complete", (owed != 0) & (wanted[going] == 0))
        waited = Signal(range(64), name="complete_waited")
        m.d.sync += waited.eq(Mux(complete & ~dut.o.valid, waited + 1, 0))
        checker.prove("token_soon", waited <= cycles_until_offered(kind))
        return checker

    # A token at the output: its beats, its turn, and that nothing of it is missing.
    token = Followed(
        checker, "token", goes_in=announced, value=expect.last_token, comes_out=leaves, most=config.num_slots
    )
    checker.prove("token_in_order", ~token.leaves | (dut.o.payload.last == token.saved))
    checker.prove("token_from_nothing", ~dut.o.valid | (token.inside != 0))
    checker.prove("token_room", token.inside <= config.num_slots)
    beats = Signal(range(config.words), name="beats_out")
    with m.If(out):
        m.d.sync += beats.eq(Mux(dut.o.payload.token_last, 0, beats + 1))
    checker.prove("token_whole", ~dut.o.valid | (dut.o.payload.token_last == (beats == config.words - 1)))
    checker.prove("last_at_end", ~dut.o.valid | dut.o.payload.token_last | ~dut.o.payload.last)
    checker.prove("token_complete", ~dut.o.valid | (wanted[going] == 0))
    freed = checker.register("left", leaves)
    checker.prove("freed_once", dut.freed == freed)
    return checker
