"""Queues and arbiters, proved by induction: nothing lost, doubled, reordered; nobody waits for ever."""

from __future__ import annotations

from amaranth import Mux, Signal, unsigned
from amaranth.lib import data

from rtl.dispatch.first import FirstOf
from rtl.fifo import StreamFifo
from rtl.merge import ContributionMerge
from rtl.stream import StreamRegister
from tests.formal.model import Checker
from tests.formal.order import Followed

DEPTH = 4
INPUTS = 3


def _transfer(port):
    return port.valid & port.ready


def register_order(*, late: bool = False) -> Checker:
    """Return a stream register: two beats, in order."""
    dut = StreamRegister(unsigned(4), late=late)
    checker = Checker(dut)
    checker.assume_streams()
    checker.prove_streams()
    followed = Followed(
        checker, "beat", goes_in=_transfer(dut.i), value=dut.i.payload, comes_out=_transfer(dut.o), most=2
    )
    followed.prove(checker, dut.o.payload, most=2)
    main, spare, spare_valid = (checker.probe(name) for name in ("main", "spare", "spare_valid"))
    checker.prove("inv_held", followed.inside == dut.o.valid + spare_valid)
    checker.prove("inv_spare", ~spare_valid | dut.o.valid)
    place = Mux(followed.before == 0, main, spare)
    checker.prove("inv_where", ~followed.here | (place == followed.saved))
    checker.prove("beat_at_once", (followed.inside == 0) | dut.o.valid)
    return checker


def fifo_order() -> Checker:
    """Return a queue of ``DEPTH`` beats and one in its output register."""
    dut = StreamFifo(unsigned(4), DEPTH)
    checker = Checker(dut)
    checker.assume_streams()
    checker.prove_streams()
    followed = Followed(
        checker,
        "beat",
        goes_in=_transfer(dut.i),
        value=dut.i.payload,
        comes_out=_transfer(dut.o),
        most=DEPTH + 1,
    )
    followed.prove(checker, dut.o.payload, most=DEPTH + 1)
    level, read_count = checker.probe("level"), checker.probe("read_count")
    rows = data.ArrayLayout(4, DEPTH)
    stored = Signal(rows)
    checker.m.d.comb += [stored[n].eq(row) for n, row in enumerate(checker.rows("ram"))]
    place = Signal(range(DEPTH))
    checker.m.d.comb += place.eq(read_count + followed.before - dut.o.valid)
    checker.prove("inv_held", followed.inside == level + dut.o.valid)
    checker.prove("no_overflow", level <= DEPTH)
    found = Mux(dut.o.valid & (followed.before == 0), dut.o.payload, stored[place])
    checker.prove("inv_where", ~followed.here | (found == followed.saved))
    waited = checker.register("waited", (followed.inside != 0) & ~dut.o.valid)
    checker.prove("beat_soon", ~waited | dut.o.valid)
    return checker


def merge_order() -> Checker:
    """Return the merger of ``INPUTS`` streams: order inside each, and round robin among them."""
    payload = data.StructLayout({"data": 2, "source": 2})
    dut = ContributionMerge(payload, INPUTS)
    checker = Checker(dut)
    checker.assume_streams()
    checker.prove_streams()
    source = checker.constant("source", 2)
    checker.assume("source_is_an_input", source < INPUTS)
    inputs = [getattr(dut, name) for name in dut.inputs()]
    for n, port in enumerate(inputs):
        checker.assume(f"input_{n}_says_so", port.payload.source == n)

    def mine(values):
        value = values[0]
        for n, other in enumerate(values[1:], start=1):
            value = Mux(source == n, other, value)
        return value

    out = dut.o.payload.as_value()
    followed = Followed(
        checker,
        "beat",
        goes_in=mine([_transfer(port) for port in inputs]),
        value=mine([port.payload.as_value() for port in inputs]),
        comes_out=_transfer(dut.o) & (dut.o.payload.source == source),
        most=4,
    )
    followed.prove(checker, out, most=4)

    # Where the beats of that input are: spare and main of the output, spare and main of the input.
    def register_of(path):
        main, spare = checker.probe(f"{path}.main"), checker.probe(f"{path}.spare")
        return (main, checker.probe(f"{path}.main_valid")), (spare, checker.probe(f"{path}.spare_valid"))

    output = register_of("output")
    entries = [register_of(f"input_{n}") for n in range(INPUTS)]
    for n, (_, (_, spare_valid)) in enumerate([*entries, output]):
        checker.prove(
            f"inv_spare_{n}",
            ~spare_valid | (checker.probe(f"input_{n}.main_valid") if n < INPUTS else dut.o.valid),
        )
    for n, places in enumerate(entries):
        for k, (value, valid) in enumerate(places):
            checker.prove(f"inv_of_input_{n}_{k}", ~valid | (payload(value).source == n))
    places = [(value, valid & (payload(value).source == source)) for value, valid in output]
    places += [
        (mine([entry[k][0] for entry in entries]), mine([entry[k][1] for entry in entries])) for k in range(2)
    ]
    count = 0
    found = 1
    for value, valid in places:
        found = found & (~(followed.here & valid & (followed.before == count)) | (value == followed.saved))
        count = count + valid
    checker.prove("inv_held", followed.inside == count)
    checker.prove("inv_where", found)
    checker.prove("inv_sources", ~dut.o.valid | (dut.o.payload.source < INPUTS))
    checker.prove("inv_sources_spare", ~output[1][1] | (payload(output[1][0]).source < INPUTS))

    # Beats of others that went before while one of this input stood at the choice.
    waited = Signal(range(INPUTS + 1))
    turn = checker.probe("turn")
    output_ready = checker.value("output_ready", ~output[1][1])
    stands = checker.value("stands", mine([entry[0][1] for entry in entries]))
    chosen = checker.probe("chosen")
    with checker.m.If(stands & output_ready):
        checker.m.d.sync += waited.eq(Mux(chosen == source, 0, waited + 1))
    ahead = Mux(source >= turn, source - turn, source + INPUTS - turn)
    checker.prove("a_turn_each", ~stands | (waited < INPUTS))
    checker.prove("inv_turns", (turn < INPUTS) & Mux(stands, waited + ahead < INPUTS, waited == 0))
    return checker


def first_of() -> Checker:
    """Return the choice of the lowest bit, or of the largest key: against a walk over all of them."""
    width = 5
    dut = FirstOf(width, 2)
    checker = Checker(dut)
    for n in range(width):
        better = 0
        for other in range(width):
            if other != n:
                larger = dut.keys[other] > dut.keys[n]
                equal = (dut.keys[other] == dut.keys[n]) & (other < n)
                better = better | (dut.bits[other] & Mux(dut.by_key, larger | equal, other < n))
        wins = checker.value(f"wins_{n}", dut.bits[n] & ~better)
        checker.prove(f"chosen_{n}", ~wins | ((dut.index == n) & (dut.key == dut.keys[n])))
    checker.prove("any_told", dut.any == dut.bits.any())
    return checker
