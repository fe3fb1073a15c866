"""AXI rules of the tops' ports: registers, weight reads, packets, whatever is at the other end does.

Each part of ``rtl/axi`` alone, and the two masters behind the read port. What the other end owes is that an
offer stays until it is taken (IHI 0022, A3.2.1; IHI 0051, 2.2.1); a memory may answer anything at all. AW, W,
B, AR, R are the channels, as the specification names them.
"""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.asserts import AnySeq
from amaranth.hdl import Fragment, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.axi.alone import DispatchAlone, GateAlone
from rtl.axi.lite import ADDRESS_BITS, OKAY, SLVERR, AddressDecoder, AxiLite, lite_members
from rtl.axi.packets import PacketGuard, PacketMarker
from rtl.axi.reads import ReadGuard
from rtl.expert.loader import WeightReader
from rtl.layer.shell import RouterLoader
from spec.geometry import PAGE_BYTES
from spec.registers import Top, register_map
from tests.bench.axi_cores import CORES
from tests.formal.model import Checker
from tests.formal.order import Followed
from tests.formal.streams import EXPERT

EXOKAY = 1
REGISTERS = register_map(Top.GATE)
BEAT_BYTES, BURST_BEATS, OUTSTANDING = 2, 2, 2
"""Of the guard of reads: bursts of two beats, at most two that the core waits for."""
TOKEN_BEATS = 3
BEAT = data.StructLayout({"data": unsigned(3), "last": unsigned(1)})


def _transfer(port):
    return port.valid & port.ready


class LiteRegisters(wiring.Component):
    """The AXI4-Lite slave with the decoder of the gate's registers; which register says what is free."""

    def __init__(self) -> None:
        super().__init__(
            {
                **lite_members(),
                "rdata": In(32),
                "locked": In(1),
                "recovering": In(1),
                "addr": Out(ADDRESS_BITS),
                "wdata": Out(32),
                "we": Out(1),
                "write_response": Out(2),
                "read_response": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.lite = lite = AxiLite()
        m.submodules.decoder = decoder = AddressDecoder(REGISTERS)
        for name in lite_members():
            mine, its = getattr(self, name), getattr(lite, name)
            m.d.comb += its.eq(mine) if self.signature.members[name].flow == In else mine.eq(its)
        m.d.comb += [
            decoder.addr.eq(lite.addr),
            decoder.wdata.eq(lite.wdata),
            decoder.locked.eq(self.locked),
            decoder.recovering.eq(self.recovering),
            lite.write_response.eq(decoder.write_response),
            lite.read_response.eq(decoder.read_response),
            lite.rdata.eq(self.rdata),
            self.addr.eq(lite.addr),
            self.wdata.eq(lite.wdata),
            self.we.eq(lite.we),
            self.write_response.eq(decoder.write_response),
            self.read_response.eq(decoder.read_response),
        ]
        return m


def _channel_stays(checker: Checker, channel: str, *payload: str):
    """Return "what a channel of the slave offered in the cycle before and was not taken is offered still"."""
    dut = checker.dut
    valid, ready = (getattr(dut, f"s_axi_{channel}{kind}") for kind in ("valid", "ready"))
    value = Cat(getattr(dut, f"s_axi_{channel}{name}") for name in payload)
    held = checker.register(f"{channel}_held", valid & ~ready)
    return ~held | (valid & (value == checker.register(f"{channel}_before", value)))


def lite() -> Checker:
    """Return the AXI4-Lite slave: one access for each request, one response for each access, soon."""
    dut = LiteRegisters()
    checker = Checker(dut)
    m = checker.m
    for channel, payload in {"aw": ("addr", "prot"), "w": ("data", "strb"), "ar": ("addr", "prot")}.items():
        checker.assume(f"{channel}_stays", _channel_stays(checker, channel, *payload))
    checker.prove("b_stays", _channel_stays(checker, "b", "resp"))
    checker.prove("r_stays", _channel_stays(checker, "r", "data", "resp"))

    taken = {}
    for channel in ("aw", "w", "ar", "b", "r"):
        valid, ready = (getattr(dut, f"s_axi_{channel}{kind}") for kind in ("valid", "ready"))
        taken[channel] = checker.value(f"{channel}_taken", valid & ready)
    write, read = checker.probe("lite.write"), checker.probe("lite.read")

    # What was asked and not yet done; what was done and not yet answered.
    waits = {name: Signal(2, name=f"{name}_waits") for name in ("aw", "w", "ar", "b", "r")}
    done = {"aw": write, "w": write, "ar": read, "b": taken["b"], "r": taken["r"]}
    begun = {"aw": taken["aw"], "w": taken["w"], "ar": taken["ar"], "b": write, "r": read}
    for name, count in waits.items():
        m.d.sync += count.eq(count + begun[name] - done[name])
        checker.prove(f"{name}_from_nothing", ~done[name] | (count != 0))
        checker.prove(f"{name}_room", count <= 1)
    asked = {
        name: Signal(Value.cast(value).shape(), name=f"{name}_asked")
        for name, value in {"aw": dut.addr, "w": Cat(dut.wdata, Const(0, 4)), "ar": dut.addr}.items()
    }
    with m.If(taken["aw"]):
        m.d.sync += asked["aw"].eq(dut.s_axi_awaddr)
    with m.If(taken["w"]):
        m.d.sync += asked["w"].eq(Cat(dut.s_axi_wdata, dut.s_axi_wstrb))
    with m.If(taken["ar"]):
        m.d.sync += asked["ar"].eq(dut.s_axi_araddr)

    # The access is the one that was asked for, and nothing else is one.
    whole = asked["w"][32:].all()
    checker.prove("write_as_asked", ~write | ((dut.addr == asked["aw"]) & (dut.wdata == asked["w"][:32])))
    checker.prove("read_as_asked", ~read | (dut.addr == asked["ar"]))
    checker.prove("one_at_a_time", ~(write & read))
    legal = Cat(
        dut.addr[2:] == register.address >> 2 for register in REGISTERS if register.access.writable
    ).any()
    checker.prove("writes_are_legal", ~dut.we | (write & whole & legal & (dut.write_response == OKAY)))

    # The response is that of the access.
    answers = {name: Signal(2, name=f"{name}_answer") for name in ("b", "r")}
    with m.If(write):
        m.d.sync += answers["b"].eq(Mux(whole, dut.write_response, SLVERR))
    shown = Signal(32, name="shown")
    with m.If(read):
        m.d.sync += [
            answers["r"].eq(dut.read_response),
            shown.eq(Mux(dut.read_response == OKAY, dut.rdata, 0)),
        ]
    checker.prove("b_of_its_access", ~dut.s_axi_bvalid | (dut.s_axi_bresp == answers["b"]))
    r_right = (dut.s_axi_rresp == answers["r"]) & (dut.s_axi_rdata == shown)
    checker.prove("r_of_its_access", ~dut.s_axi_rvalid | r_right)
    checker.prove("b_legal", ~dut.s_axi_bvalid | (dut.s_axi_bresp != EXOKAY))
    checker.prove("r_legal", ~dut.s_axi_rvalid | (dut.s_axi_rresp != EXOKAY))
    checker.prove("b_one_each", dut.s_axi_bvalid == (waits["b"] != 0))
    checker.prove("r_one_each", dut.s_axi_rvalid == (waits["r"] != 0))
    # What is read, and what an access is answered with, is looked up a cycle before it.
    same = dut.addr == checker.register("addr_before", dut.addr)
    checker.prove("address_comes_before", ~(write | read) | same)

    # No deadlock: a channel takes while it holds none; access soon once it may be answered, at the latest
    # behind one of the other kind.
    for channel in ("aw", "w", "ar"):
        checker.prove(f"{channel}_is_taken", getattr(dut, f"s_axi_{channel}ready") == (waits[channel] == 0))
    can = {
        "write": (waits["aw"] != 0) & (waits["w"] != 0) & (waits["b"] == 0),
        "read": (waits["ar"] != 0) & (waits["r"] == 0),
    }
    idle, looked_up, writes, turn = (
        checker.probe(f"lite.{name}") for name in ("idle", "looked_up", "writes", "read_next")
    )
    for name, access, own, other, others_turn in (
        ("write", write, writes, can["read"], turn),
        ("read", read, ~writes, can["write"], ~turn),
    ):
        stood = Signal(4, name=f"{name}_stood")
        m.d.sync += stood.eq(Mux(can[name] & ~access, stood + 1, 0))
        checker.prove(f"{name}_within_6", stood <= 5)
        behind = Mux(idle, Mux(other & others_turn, 5, 2), Mux(looked_up, 0, 1) + Mux(own, 0, 3))
        checker.prove(f"inv_{name}_turn", ~can[name] | (stood + behind <= 5))
        checker.prove(f"inv_{name}_stands", can[name] | (stood == 0))
        checker.prove(f"inv_{name}_can", idle | ~own | can[name])

    held = {
        "aw": checker.probe("lite.aw_held"),
        "w": checker.probe("lite.w_held"),
        "ar": checker.probe("lite.ar_held"),
    }
    for name, signal in held.items():
        checker.prove(f"inv_{name}", signal == (waits[name] != 0))
    checker.prove("inv_aw_addr", ~held["aw"] | (checker.probe("lite.aw_addr") == asked["aw"]))
    checker.prove("inv_ar_addr", ~held["ar"] | (checker.probe("lite.ar_addr") == asked["ar"]))
    checker.prove("inv_wdata", ~held["w"] | (dut.wdata == asked["w"][:32]))
    checker.prove("inv_strobes", ~held["w"] | (checker.probe("lite.all_strobes") == whole))
    checker.prove("inv_idle", ~(idle & looked_up))
    checker.prove("inv_address", idle | (dut.addr == Mux(writes, asked["aw"], asked["ar"])))
    checker.prove("inv_legal", ~looked_up | (checker.probe("decoder.writable") == legal))
    checker.prove("inv_answers", (answers["b"] != EXOKAY) & (answers["r"] != EXOKAY))
    return checker


def _legal_address(address, burst_bytes: int):
    """Return that a burst begins at a multiple of its size, and so ends in the page where it began."""
    inside = address[: (PAGE_BYTES - 1).bit_length()]
    return (address % burst_bytes == 0) & (inside + burst_bytes <= PAGE_BYTES)


def reads() -> Checker:
    """Return the guard of reads: its bursts at the port, its beats at the core, for any memory."""
    dut = ReadGuard(8 * BEAT_BYTES, BURST_BEATS, OUTSTANDING)
    checker = Checker(dut)
    m = checker.m
    burst_bytes = BURST_BEATS * BEAT_BYTES
    asked = checker.value("asked", _transfer(dut.i_ar))
    begun = checker.value("begun", _transfer(dut.o_ar))
    came = checker.value("came", _transfer(dut.i_r))
    given = checker.value("given", _transfer(dut.o_r))
    recovering = dut.recovering
    last = BURST_BEATS - 1

    # The core: bursts that it waits for, beats of the oldest that it has; reset by recovery.
    owed = Signal(range(OUTSTANDING + 2), name="owed")
    beat = Signal(range(BURST_BEATS), name="beat_of_burst")
    with m.If(recovering):
        m.d.sync += [owed.eq(0), beat.eq(0)]
    with m.Else():
        m.d.sync += owed.eq(owed + asked - (given & (beat == last)))
        with m.If(given):
            m.d.sync += beat.eq(Mux(beat == last, 0, beat + 1))
    offered = checker.register("i_ar_held", dut.i_ar.valid & ~dut.i_ar.ready & ~recovering)
    same = dut.i_ar.payload.addr == checker.register("i_ar_before", dut.i_ar.payload.addr)
    checker.assume("i_ar_stays", ~offered | recovering | (dut.i_ar.valid & same))
    checker.assume("i_ar_waits", ~dut.i_ar.valid | (owed < OUTSTANDING))
    checker.assume("i_ar_legal", _legal_address(dut.i_ar.payload.addr, burst_bytes))
    checker.assume("i_r_stays", checker.stays("i_r", dut.i_r))
    # Recovery lasts until nothing is in flight.
    busy = checker.register("busy_recovering", recovering & ~dut.idle)
    checker.assume("recovers", ~busy | recovering)

    # The port: bursts whose last beat has not come, and whether the one that comes is too long.
    flying = Signal(range(OUTSTANDING + 3), name="flying")
    ends = checker.value("ends", came & (flying != 0) & dut.i_r.payload.last)
    m.d.sync += flying.eq(flying + begun - ends)
    over = Signal(name="too_long")
    at_end = Signal(range(BURST_BEATS), name="beat_at_port")  # of the burst at the port
    short = Signal(name="too_short")
    with m.If(came & (flying != 0)):
        with m.If(over):
            m.d.sync += over.eq(~dut.i_r.payload.last)
        with m.Else():
            m.d.sync += at_end.eq(Mux(dut.i_r.payload.last | (at_end == last), 0, at_end + 1))
            m.d.sync += over.eq((at_end == last) & ~dut.i_r.payload.last)
            m.d.sync += short.eq((at_end != last) & dut.i_r.payload.last)
    in_fill = checker.probe("beat")
    filled = checker.value("filled", short & (dut.o_r.ready | recovering) & (in_fill == last))
    with m.If(filled):
        m.d.sync += short.eq(0)

    # Addresses.
    checker.prove("o_ar_stays", checker.stays("o_ar", dut.o_ar))
    followed = Followed(checker, "burst", goes_in=asked, value=dut.i_ar.payload.addr, comes_out=begun, most=2)
    followed.prove(checker, dut.o_ar.payload.addr, most=2)
    checker.prove("o_ar_within_4_kib", ~dut.o_ar.valid | _legal_address(dut.o_ar.payload.addr, burst_bytes))
    checker.prove("outstanding", flying <= OUTSTANDING + over)
    checker.prove("reads_counted", dut.reads == flying)
    checker.prove("none_asked_in_recovery", ~recovering | ~asked)
    checker.prove("idle_is_idle", ~dut.idle | ((flying == 0) & (followed.inside == 0) & ~short))

    # Data.
    stays = checker.stays("o_r", dut.o_r)
    checker.prove("o_r_stays", stays | recovering)
    checker.prove("o_r_bursts_whole", ~dut.o_r.valid | (dut.o_r.payload.last == (beat == last)))
    checker.prove("o_r_from_nothing", ~dut.o_r.valid | (owed != 0))
    checker.prove("none_given_in_recovery", ~recovering | ~dut.o_r.valid)
    wanted = checker.value("wanted", came & (flying != 0) & ~over & ~recovering)
    payload = Cat(dut.o_r.payload.data, dut.o_r.payload.resp)
    checker.prove(
        "none_lost",
        ~wanted | (given & (payload == Cat(dut.i_r.payload.data, dut.i_r.payload.resp))),
    )
    checker.prove("filled_with_zeros", ~given | wanted | (short & (payload == 0)))
    waited = Signal(range(BURST_BEATS + 1), name="r_waited")
    with m.If(came | ~dut.i_r.valid):
        m.d.sync += waited.eq(0)
    with m.Elif(dut.o_r.ready | recovering):
        m.d.sync += waited.eq(waited + 1)
    checker.prove("i_r_taken_within_burst", waited < BURST_BEATS)

    # What is told.
    resp = dut.i_r.payload.resp
    told = came & (flying != 0)
    checker.prove("slverr_told", dut.slverr == (told & ((resp == SLVERR) | (resp == EXOKAY))))
    checker.prove("decerr_told", dut.decerr == (told & (resp == 3)))
    checker.prove("unexpected_told", dut.unexpected == (came & (flying == 0)))
    wrong = told & ~over & (dut.i_r.payload.last != (at_end == last))
    checker.prove("wrong_last_told", dut.wrong_last == wrong)

    _reads_invariants(checker, followed, owed, beat, at_end, flying, over, short, waited)
    return checker


def _reads_invariants(checker, followed, owed, beat, at_end, flying, over, short, waited) -> None:
    """Each address is kept until its burst has come; one that is too long is kept no more."""
    dut, prove = checker.dut, checker.prove
    main, spare = checker.probe("register.main"), checker.probe("register.spare")
    main_valid, spare_valid = dut.o_ar.valid, checker.probe("register.spare_valid")
    level, kept = checker.probe("addresses.level"), checker.probe("addresses.valid")
    register = checker.value("in_register", main_valid + spare_valid)
    queued = checker.value("queued", level + kept)
    burst_bytes = BURST_BEATS * BEAT_BYTES
    prove("inv_spare", ~spare_valid | main_valid)
    prove("inv_register", followed.inside == register)
    place = Mux(followed.before == 0, main, spare)
    prove("inv_where", ~followed.here | (place == followed.saved))
    prove("inv_main_legal", ~main_valid | _legal_address(main, burst_bytes))
    prove("inv_spare_legal", ~spare_valid | _legal_address(spare, burst_bytes))
    prove("inv_level", level <= dut.depth)
    prove("inv_counted", checker.probe("kept") == queued)
    prove("inv_space", checker.probe("space") == (queued != dut.depth))
    prove("inv_over", (checker.probe("over") == over) & ~(over & short) & (~over | (flying != 0)))
    prove("inv_fill", checker.probe("fill") == short)
    prove("inv_queued", queued + over == flying + register + short)
    prove("inv_most", queued <= OUTSTANDING)
    prove("inv_owed", dut.recovering | (owed == 0) | (owed == queued))
    # (While recovery lasts the core waits for nothing; what is queued is thrown away.)
    begins = checker.register("was_recovering", dut.recovering)
    prove("inv_owed_after", begins | (owed == queued))
    prove("inv_none_owed", ~begins | ((owed == 0) & (beat == 0)))
    prove("inv_after_recovery", ~begins | dut.recovering | ((queued == 0) & (flying == 0)))
    prove("inv_beat", begins | (checker.probe("beat") == beat))
    prove("inv_at_end", short | (checker.probe("beat") == at_end))
    prove("inv_short", ~short | ((at_end == 0) & (checker.probe("beat") != 0)))
    prove("inv_beat_of_none", (checker.probe("beat") == 0) | (flying != 0) | short)
    prove("inv_over_begins", ~over | (checker.probe("beat") == 0))
    prove("inv_waited", ~short | (waited < checker.probe("beat")))
    prove("inv_kept", kept | (level == 0) | ((level == 1) & (register != 0)))


def _asks(checker: Checker, burst_bytes: int) -> None:
    """Assert that addresses stay and are those of bursts inside a page."""
    dut = checker.dut
    checker.prove("o_ar_stays", checker.stays("o_ar", dut.o_ar))
    checker.prove("o_ar_within_4_kib", ~dut.o_ar.valid | _legal_address(dut.o_ar.payload.addr, burst_bytes))


def weight_reader() -> Checker:
    """Return the expert engine's reads of weights: legal bursts, no more at a time than it says."""
    dut = WeightReader(EXPERT)
    checker = Checker(dut)
    bits = (PAGE_BYTES - 1).bit_length()
    constant = checker.constant("image", len(dut.image_page))
    checker.assume("image_page_constant", dut.image_page == constant)
    _asks(checker, EXPERT.image.burst_bytes)
    asked = checker.value("asked", _transfer(dut.o_ar))
    owed = Signal(range(EXPERT.max_outstanding + 2), name="owed")
    checker.m.d.sync += owed.eq(owed + asked - dut.burst_done)
    checker.assume("answers_what_was_asked", ~dut.burst_done | (owed != 0))
    checker.prove("outstanding", owed <= EXPERT.max_outstanding)
    address = checker.probe("address")
    checker.prove("inv_address", address[:bits] % EXPERT.image.burst_bytes == 0)
    checker.prove("inv_outstanding", checker.probe("outstanding") == owed)
    checker.prove("inv_left", (checker.probe("left") != 0) | ~checker.probe("active"))
    return checker


def router_loader() -> Checker:
    """Return the reads of the router's image: its bursts one after the other, each once."""
    image = EXPERT.image
    dut = RouterLoader(image, EXPERT.beat_bits, EXPERT.burst_beats)
    checker = Checker(dut)
    m = checker.m
    constant = checker.constant("image", len(dut.image_page))
    checker.assume("image_page_constant", dut.image_page == constant)
    checker.assume("starts_when_done", ~(dut.start & dut.active))
    asked = checker.value("asked", _transfer(dut.o_ar))
    came = checker.value("came", _transfer(dut.i_r))
    # What stands between it and the port gives whole bursts, as asked (``reads``).
    owed, beat = Signal(range(EXPERT.burst_beats + 1)), Signal(range(EXPERT.burst_beats))
    with m.If(asked):
        m.d.sync += [owed.eq(EXPERT.burst_beats), beat.eq(0)]
    with m.Elif(came):
        m.d.sync += [owed.eq(owed - 1), beat.eq(beat + 1)]
    checker.assume("answers_what_was_asked", ~dut.i_r.valid | (owed != 0))
    checker.assume("bursts_end", dut.i_r.payload.last == (beat == EXPERT.burst_beats - 1))
    checker.assume("i_r_stays", checker.stays("i_r", dut.i_r))

    bursts = Signal(range(dut.bursts + 2), name="bursts")
    with m.If(dut.start):
        m.d.sync += bursts.eq(0)
    with m.Elif(asked):
        m.d.sync += bursts.eq(bursts + 1)
    _asks(checker, image.burst_bytes)
    first = dut.image_page << (PAGE_BYTES - 1).bit_length()
    checker.prove(
        "in_sequence", ~dut.o_ar.valid | (dut.o_ar.payload.addr == (first + bursts * image.burst_bytes)[:40])
    )
    checker.prove("one_at_a_time", ~dut.o_ar.valid | (owed == 0))
    checker.prove("asks_when_active", ~dut.o_ar.valid | (dut.active & (bursts < dut.bursts)))
    ended = checker.register("was_active", dut.active) & ~dut.active
    checker.prove("all_of_it", ~ended | ((bursts == dut.bursts) & (owed == 0)))
    checker.prove("o_stays", checker.stays("o", dut.o))
    asking, taken = checker.probe("asking"), checker.probe("taken")
    checker.prove("inv_asked", ~dut.active | (checker.probe("asked") == bursts))
    checker.prove("inv_asking", ~asking | dut.active)
    checker.prove("inv_idle", dut.active | (owed == 0))
    checker.prove("inv_turns", ~dut.active | (asking == (owed == 0)))
    checker.prove("inv_owed", (owed == 0) | (beat + owed == EXPERT.burst_beats))
    checker.prove("inv_bursts", ~dut.active | Mux(asking, bursts < dut.bursts, bursts != 0))
    checker.prove("inv_bursts_most", bursts <= dut.bursts)
    checker.prove("inv_taken", ~dut.active | (taken + owed == bursts * EXPERT.burst_beats))
    return checker


def packets_in(token_beats: int = TOKEN_BEATS) -> Checker:
    """Return the guard of packets: every beat that was taken goes on, or is thrown away where it may be."""
    dut = PacketGuard(BEAT, token_beats)
    checker = Checker(dut)
    m = checker.m
    checker.assume("i_stays", checker.stays("i", dut.i))
    batch = checker.constant("batch", 32)
    checker.assume("batch_tokens_constant", dut.batch_tokens == batch)
    # The top admits nothing so soon after reset: what is loaded first takes longer.
    age = Signal(2, name="age")
    m.d.sync += age.eq(Mux(age == 2, 2, age + 1))
    checker.assume("admits_later", (age == 2) | ~dut.admit)
    was_recover = checker.register("was_recover", dut.recover)
    was_recovering = checker.register("was_recovering", dut.recovering)
    checker.assume("recovers", ~was_recover | dut.recovering)
    checker.assume("recovers_if_asked", ~dut.recovering | was_recover | was_recovering)

    # Beats of the token that passes, tokens of the packet; what stops the way, and why.
    beat = Signal(range(token_beats), name="beat_of_token")
    tokens = Signal(32, name="tokens_of_packet")
    filling, halted, dropping, to_last, to_end = (
        Signal(name=name) for name in ("filling", "halted_now", "dropping", "resync", "flush")
    )
    is_open = Signal(name="open_now")
    out = checker.value("out", _transfer(dut.o))
    given = checker.value("given", out & ~filling)
    ends_token = beat == token_beats - 1
    counted = (batch != 0) & (tokens == batch - 1)
    taken = checker.value("taken", given | dut.discarded)

    followed = Followed(
        checker, "beat", goes_in=_transfer(dut.i), value=dut.i.payload, comes_out=taken, most=2
    )
    saved = BEAT(followed.saved)
    mine = checker.value("mine", followed.leaves & given)
    checker.prove("in_order", ~mine | (dut.o.payload.data == saved.data))
    checker.prove("from_nothing", ~taken | (followed.inside != 0))
    checker.prove("room", followed.inside <= 2)

    # TLAST: the core sees whole tokens, and batches of as many as it should.
    checker.prove("last_ends_token", ~(dut.o.valid & dut.o.payload.last) | ends_token)
    checker.prove("last_as_asked", ~mine | (dut.o.payload.last == (ends_token & (saved.last | counted))))
    checker.prove("batch_at_most", (batch == 0) | (tokens < batch))
    checker.prove("filled_up", ~filling | dut.recovering | dut.o.valid)
    zeros = (dut.o.payload.data == 0) & (dut.o.payload.last == ends_token)
    checker.prove("filled_with_zeros", ~(dut.o.valid & filling) | zeros)

    # Nothing passes where it should not, nothing is thrown away but behind an error or in recovery.
    stopped = filling | halted | dropping | to_last | to_end | dut.recovering
    checker.prove("stopped", ~stopped | ~given)
    checker.prove(
        "begins_admitted",
        ~(given & (beat == 0) & ~checker.register("stood", dut.o.valid & ~dut.o.ready)) | dut.admit,
    )
    checker.prove("none_lost", ~dut.discarded | dropping | to_last | to_end)
    held = checker.register("o_held", dut.o.valid & ~dut.o.ready & ~dut.recover)
    same = dut.o.payload.as_value() == checker.register("o_before", dut.o.payload.as_value())
    checker.prove("o_stays", ~held | dut.recovering | (dut.o.valid & same))
    may = ~stopped & (followed.inside != 0) & (dut.admit | (beat != 0))
    checker.prove("passes_at_once", ~may | dut.o.valid)

    # What is told.
    events = {
        "short_token": saved.last & ~ends_token,
        "short_packet": saved.last & ends_token & (batch != 0) & ~counted,
        "long_packet": ~saved.last & ends_token & counted,
    }
    for name, condition in events.items():
        checker.prove(f"{name}_told", ~mine | (getattr(dut, name) == condition))
        checker.prove(f"{name}_of_a_beat", ~getattr(dut, name) | given)
    checker.prove("begun_told", dut.begun == (out & (beat == 0)))
    checker.prove("halted_told", dut.halted == halted)
    checker.prove("packet_open_told", dut.packet_open == is_open)

    last_in = checker.probe("register.main")[3]
    with m.If(out):
        m.d.sync += beat.eq(Mux(ends_token, 0, beat + 1))
        with m.If(ends_token):
            m.d.sync += tokens.eq(Mux(dut.o.payload.last, 0, tokens + 1))
    with m.If(taken):
        m.d.sync += is_open.eq(~last_in)
    with m.If(given):
        m.d.sync += [
            filling.eq(dut.short_token),
            dropping.eq(dut.long_packet),
            halted.eq(dut.short_packet | (last_in & ~dut.short_token & dut.read_failed)),
        ]
    with m.Elif(filling & out & ends_token):
        m.d.sync += [filling.eq(0), halted.eq(1)]
    with m.Elif(dropping & dut.discarded & last_in):
        m.d.sync += [dropping.eq(0), halted.eq(1)]
    with m.Elif(~stopped & ~dut.o.valid & dut.read_failed & ~is_open & (beat == 0)):
        m.d.sync += halted.eq(1)
    with m.If(to_last & dut.discarded & last_in):
        m.d.sync += to_last.eq(0)
    with m.If(to_end):
        m.d.sync += is_open.eq(0)
        with m.If(~dut.recovering):
            m.d.sync += to_end.eq(0)
    with m.If(dut.recover):
        still = Mux(taken, ~last_in, is_open)
        m.d.sync += [
            filling.eq(0),
            halted.eq(0),
            dropping.eq(0),
            to_last.eq(still & dut.discard_rest),
            to_end.eq(still & ~dut.discard_rest),
            beat.eq(0),
            tokens.eq(0),
        ]

    main, spare = checker.probe("register.main"), checker.probe("register.spare")
    main_valid, spare_valid = checker.probe("register.main_valid"), checker.probe("register.spare_valid")
    state = checker.probe("state")
    checker.prove("inv_held", followed.inside == main_valid + spare_valid)
    checker.prove("inv_spare", ~spare_valid | main_valid)
    checker.prove("inv_where", ~followed.here | (Mux(followed.before == 0, main, spare) == followed.saved))
    checker.prove("inv_before", ~followed.here | (followed.before < followed.inside))
    flags = Cat(filling, dropping, halted, to_last, to_end)
    checker.prove("inv_state", Mux(state == 0, flags == 0, flags == (Const(1, 6) << state)[1:]))
    checker.prove("inv_states", state <= 5)
    checker.prove("inv_beat", checker.probe("beat") == beat)
    checker.prove("inv_beats", beat < token_beats)
    limit = checker.probe("limit")
    flags = {
        "limited": batch != 0,
        "of_one": batch == 1,
        "of_two": batch == 2,
        "behind_first": (batch - 2)[:32],
    }
    checker.prove("inv_limit", (age == 0) | (limit == batch))
    for name, value in flags.items():
        checker.prove(f"inv_{name}", (age != 2) | (checker.probe(name) == value))
    idle = ~is_open & (beat == 0) & (tokens == 0) & ~filling & ~dropping & ~to_last & ~to_end
    checker.prove("inv_begins_later", (age == 2) | (idle & ~checker.probe("offered")))
    # A token of several beats that has just passed is counted a cycle later.
    later = token_beats > 1
    ended, ended_last = (checker.probe(name) if later else Const(0) for name in ("ended", "ended_last"))
    first_token = checker.probe("first_token")
    is_first = Mux(ended, ended_last, first_token)
    passed = checker.value("passed", (tokens - ended)[:32])
    checker.prove("inv_ended", ~ended | (beat == 0))
    checker.prove("inv_first_token", (batch == 0) | (is_first == (tokens == 0)))
    checker.prove("inv_ended_first", (batch == 0) | ~ended | (tokens == 0) | (first_token == (tokens == 1)))
    checker.prove(
        "inv_tokens",
        (batch == 0)
        | (tokens == 0)
        | (passed == 0)
        | (
            (checker.probe("tokens_behind") == (batch - 1 - passed)[:32])
            & (checker.probe("none_behind") == (passed == batch - 1))
        ),
    )
    checker.prove("inv_filling", ~filling | (beat != 0))
    checker.prove("inv_between", ~(halted | dropping) | (beat == 0))
    checker.prove("inv_resync", ~(to_last | to_end) | ((beat == 0) & (tokens == 0)))
    offered = checker.probe("offered")
    checker.prove("inv_offered", ~offered | (held | dut.recovering | was_recovering | filling))
    checker.prove("inv_offered_stays", ~held | offered)
    return checker


def packets_out() -> Checker:
    """Return the marker of packets: what it took leaves once, in order; a cut packet is closed."""
    dut = PacketMarker(BEAT)
    checker = Checker(dut)
    m = checker.m
    stood = checker.register("i_held", dut.i.valid & ~dut.i.ready & ~dut.recovering)
    same = dut.i.payload.as_value() == checker.register("i_before", dut.i.payload.as_value())
    checker.assume("i_stays", ~stood | dut.recovering | (dut.i.valid & same))
    taken = checker.value("taken_now", _transfer(dut.i))
    out = checker.value("out", _transfer(dut.o))
    payload = Cat(dut.o.payload.as_value(), dut.user)

    # A packet is open while its last beat has not gone in; recovery closes it with one beat.
    is_open = Signal(name="open_now")
    closes = Signal(name="closes")
    room = checker.probe("register.spare_valid")
    m.d.comb += closes.eq(dut.recovering & is_open & ~room)
    with m.If(taken):
        m.d.sync += is_open.eq(~dut.i.payload.last)
    with m.Elif(closes):
        m.d.sync += is_open.eq(0)
    closing = Const(0b11000, 6)
    followed = Followed(
        checker,
        "beat",
        goes_in=taken | closes,
        value=Mux(taken, Cat(dut.i.payload.as_value(), dut.mark, dut.i.payload.last), closing),
        comes_out=out,
        most=2,
    )
    # With its last beat a packet is done, but for one that is closed.
    followed.prove(checker, Cat(payload, dut.done), most=2)
    checker.prove("done_with_a_beat", ~dut.done | out)
    held = checker.register("o_held", dut.o.valid & ~dut.o.ready)
    checker.prove("o_stays", ~held | (dut.o.valid & (payload == checker.register("o_before", payload))))
    checker.prove("taken_told", dut.taken == taken)
    checker.prove("none_in_recovery", ~dut.recovering | ~taken)
    checker.prove("closed_told", dut.closed == ~is_open)
    checker.prove("beat_at_once", (followed.inside == 0) | dut.o.valid)
    # At the port: after the last beat that is inside no packet is open, once recovery has ended.
    at_port = Signal(name="open_at_port")
    with m.If(out):
        m.d.sync += at_port.eq(~dut.o.payload.last)
    checker.prove("packets_whole", is_open | (followed.inside != 0) | ~at_port)

    main, spare = (BEAT_MARKED(checker.probe(f"register.{name}")) for name in ("main", "spare"))
    spare_valid = room
    checker.prove("inv_held", followed.inside == dut.o.valid + spare_valid)
    checker.prove("inv_spare", ~spare_valid | dut.o.valid)
    place = Mux(followed.before == 0, main.as_value(), spare.as_value())
    checker.prove("inv_where", ~followed.here | (place == followed.saved))
    checker.prove("inv_open", checker.probe("packet_open") == is_open)
    newest = Mux(spare_valid, spare.beat.last, main.beat.last)
    checker.prove("inv_newest", is_open == Mux(dut.o.valid, ~newest, at_port))
    return checker


BEAT_MARKED = data.StructLayout({"beat": BEAT, "user": unsigned(1), "done": unsigned(1)})


class Anything(wiring.Component):
    """A block's ports with outputs that are anything: what a checker assumes of them is all that is known."""

    def __init__(self, block: wiring.Component, **also) -> None:
        for name, value in also.items():
            setattr(self, name, value)
        Fragment.get(block, None)  # Amaranth warns of a block that nobody elaborates.
        super().__init__(dict(block.signature.members))

    def elaborate(self, platform):
        m = Module()
        for _, member, value in self.signature.flatten(self):
            if member.flow == Out:
                m.d.comb += Value.cast(value).eq(AnySeq(len(Value.cast(value))))
        return m


def gate_alone() -> Checker:
    """Return the gate's own top around any gate: where its packets end, which tokens are inside."""
    model, design, _ = CORES[Top.GATE]
    dut = GateAlone(model, design)
    gate = dut.gate = Anything(dut.gate)
    checker = Checker(dut)
    m = checker.m
    assignment = gate.o.payload
    top_k = dut.output_beats
    place = Signal(range(top_k), name="place")
    out = checker.value("out", _transfer(dut.o))
    with m.If(out):
        m.d.sync += place.eq(Mux(place == top_k - 1, 0, place + 1))
    checker.assume("gate_stays", checker.stays("gate_o", gate.o))
    checker.assume("gate_tokens", assignment.last == (place == top_k - 1))
    checker.assume_streams()
    checker.prove("o_stays", checker.stays("o", dut.o))
    checker.prove("o_last_ends_token", ~(dut.o.valid & dut.o.payload.last) | (place == top_k - 1))
    batch_ends = ~dut.o.valid | (place != top_k - 1) | (dut.o.payload.last == assignment.last_token)
    checker.prove("o_last_ends_batch", batch_ends)
    checker.prove("none_lost", out == _transfer(gate.o))
    return checker


def dispatch_alone() -> Checker:
    """Return the dispatcher's own top around any dispatcher: where tokens end, what is still to come."""
    model, design, _ = CORES[Top.DISPATCH]
    dut = DispatchAlone(model, design)
    config = dut.dispatch.config
    inner = dut.dispatch = Anything(dut.dispatch, config=config)
    checker = Checker(dut)
    m = checker.m
    top_k = config.top_k
    place = Signal(range(top_k), name="place")
    taken = checker.value("taken", _transfer(dut.i))
    with m.If(taken):
        m.d.sync += place.eq(Mux(place == top_k - 1, 0, place + 1))
    for name in ("o_0", "o_expect"):
        checker.assume(f"dispatch_{name}_stays", checker.stays(f"dispatch_{name}", getattr(inner, name)))
    checker.assume("i_stays", checker.stays("i", dut.i))
    checker.prove("o_stays", checker.stays("o", dut.o))
    checker.prove("o_expect_stays", checker.stays("o_expect", dut.o_expect))
    checker.prove("token_ends", ~inner.i.valid | (inner.i.payload.last == (place == top_k - 1)))
    batch = ~inner.i.valid | (inner.i.payload.last_token == dut.i.payload.last)
    checker.prove("batch_ends", batch)
    checker.prove("none_lost", taken == _transfer(inner.i))
    # Announced and not given: the difference alone, for an entry may leave before its token is announced.
    owed = Signal(len(checker.probe("entries")), name="owed")
    count = dut.o_expect.payload.count
    m.d.sync += owed.eq(owed + Mux(_transfer(dut.o_expect), count, 0) - _transfer(dut.o))
    checker.prove("inside_told", dut.inside == (owed != 0))
    checker.prove("inv_entries", checker.probe("entries") == owed)
    checker.prove("inv_place", (place < top_k) & (checker.probe("beats") == place))
    return checker
