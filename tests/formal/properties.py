"""What is proved of which block, how, and the bugs by which each property is seen to be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rtl.dispatch import DispatchConfig
from tests.formal import axi, combine, commands, crossing, dispatch, intake, queues
from tests.formal.model import Checker
from tests.formal.streams import BLOCKS, stream_rules


@dataclass(frozen=True)
class Bug:
    """A change of a block's source, and the property that no longer holds.

    ``make``, ``depth``: how it is searched for, from reset, if not as the proof; with ``induction`` 2 it is
    not
    reached from reset in so few cycles, and what is seen is that the proof fails.
    """

    module: str
    old: str
    new: str
    fails: str
    make: Callable[[], Checker] | None = None
    depth: int = 0
    induction: int = 0


@dataclass(frozen=True)
class Proof:
    """Properties of a block, of small stated parameters.

    ``depth``: cycles searched from reset, that of reset among them; ``induction``: cycles before, 0 for none.
    """

    name: str
    says: str
    parameters: str
    make: Callable[[], Checker]
    depth: int
    induction: int
    bugs: tuple[Bug, ...]


STREAM = "rtl.stream"
FORGETS = ("with m.If(self.o.ready | ~main_valid):", "with m.If(self.o.ready | ~main_valid | self.i.valid):")
MIXES = ("Mux(spare_valid, spare, self.i.payload)", "self.i.payload")
OVERWRITES = ("with m.If(~spare_valid):", "with m.If(1):")
FULL = ("self.i.ready.eq(~spare_valid)", "self.i.ready.eq(1)")
TWICE = ("main_valid.eq(spare_valid | ", "main_valid.eq(main_valid | spare_valid | ")
ROOM = ("room.eq(leaves | ~(held.all() | (held.any() & enters)))", "room.eq(1)")
LATE = ("self.o.valid.eq(main_valid)", "self.o.valid.eq(main_valid & ~spare_valid)")
STREAM_PARAMETERS = {
    "stream register": "4 bits",
    "fifo": "4 bits, depth 4",
    "merge": "3 inputs",
    "gate": "4 experts, top 2, d_model 4",
    "dispatch": "4 experts, top 2, windows of 2, one unit",
    "dispatch, 2 units": "4 experts, a shared one, top 2, windows of 2, GShard's rule, longest queue, ranks",
    "combine": "2 slots, d_model 3, 2 lanes, at most 2 contributions",
    "combine, ordered": "2 slots, d_model 3, 2 lanes, at most 2 contributions",
    "expert": "array of 2 x 4, d_model 4, 2 bursts outstanding",
    "pim channel": "4 units, groups of 2 tokens, d_model 4, refresh every 150 cycles",
    "gate behind the banks": "4 experts, top 2, groups of 2 tokens",
    "fpga layer": "4 experts, top 2, d_model 4, array of 4 x 4, windows of 2",
    "pim layer": "4 experts, top 2, d_model 4, a channel, windows of 4",
}
STREAM_PARAMETERS |= {
    block: f"{STREAM_PARAMETERS[block.removesuffix(', deep')]}; deep pipelines"
    for block in BLOCKS
    if block.endswith(", deep")
}
INTAKE_BUGS = tuple(
    (f"{old}{there}", f"{old}{instead}", fails)
    for old, there, instead, fails in (
        ("free_next = free + self.freed - ", "", "0 * ", "credits"),
        ("free_next = free + ", "self.freed", "(self.freed & ~take)", "no_credit_lost"),
        ("self.i.ready.eq(self.o_gate.ready", " & admit)", ")", "gate_and_store"),
        ("self.o_store.valid.eq(", "take)", "self.i.valid)", "store_as_gate"),
        ("self.o_store.payload.eq(", "self.i.payload)", "0)", "payload_as_it_came"),
        ("self.first.eq(take", " & (beat == 0))", ")", "first_told"),
        ("self.last.eq(", "take & last)", "last)", "last_told"),
        ("self.o_gate.valid.eq(self.i.valid & admit", ")", " & ~self.freed)", "o_gate_stays"),
    )
)
CROSSING = "rtl.crossing"
LEFT_OUT = ("& (self.count.data == token.count))", "& (self.count.data == token.count) & (token.count != 1))")
FETCHES = ("fetch.eq((level != 0) & (~valid | self.o.ready))", "fetch.eq(level != 0)")
STREAM_BUGS = {
    "fifo": (Bug("rtl.fifo", *FETCHES, "o_stays", depth=8),),
    "stream register": (Bug(STREAM, *FORGETS, "o_stays", depth=6),),
    "gate": (Bug("rtl.fifo", *FETCHES, "o_stays", induction=2),),
    "gate behind the banks": (Bug("rtl.fifo", *FETCHES, "o_stays", induction=2),),
    "combine, ordered": (Bug("rtl.fifo", *FETCHES, "o_stays", induction=2),),
    "dispatch": (
        Bug(STREAM, *FORGETS, "o_expect_stays", depth=12),
        Bug(STREAM, *FORGETS, "o_0_stays", induction=2),
    ),
    "dispatch, 2 units": tuple(
        Bug(STREAM, *FORGETS, f"{output}_stays", induction=2) for output in ("o_expect", "o_0", "o_1")
    ),
    "expert": (
        Bug(
            "rtl.expert.loader",
            "jobs.next.eq(~active & jobs.waiting)",
            "jobs.next.eq(jobs.waiting)",
            "o_ar_stays",
            depth=12,
        ),
        Bug(STREAM, *FORGETS, "o_stays", induction=2),
    ),
}


def _stream(block: str) -> Proof:
    # Outputs of the others are reached from reset too late for a search.
    bugs = STREAM_BUGS.get(block.removesuffix(", deep")) or (Bug(STREAM, *FORGETS, "o_stays", induction=2),)
    return Proof(
        f"streams of {block}",
        "what is offered at an output stays, unchanged, until it is taken",
        STREAM_PARAMETERS[block],
        partial(stream_rules, block),
        depth=4,
        induction=2,
        bugs=bugs,
    )


DISPATCH = "rtl.dispatch."
ROWS = "rtl.pim.rows"
COLUMNS = "rtl.pim.columns"
SERIES_TIMES = "rcd 2, rp 3, ras 4, rc 12, rtp 2, ACT to ACT 2, rfc 6, refi 30; 2 sides of 2 units"
AT_ONCE_TIMES = "rcd 3, rp 3, ras 6, rc 11, rtp 2, rfc 5, refi 26; 2 sides"


def _sooner(name: str, event: str, fails: str) -> Bug:
    """Return a counter that runs a cycle short."""
    old = f'countdown(m, "{name}", self.{event}, timing.{name})'
    return Bug(ROWS, old, old.replace(f"timing.{name}", f"timing.{name} - 1"), fails, depth=24)


def _nearer(lead: str, fails: str) -> Bug:
    """Return a command that is allowed a cycle nearer to a refresh."""
    old = f"left >= timing.{lead}"
    return Bug(ROWS, old, f"{old} - 1", fails, depth=24)


def _forgets(register: str, fails: str) -> Bug:
    """Return a register that a recovery resets though the DRAM is not."""
    old = f"{register}, reset_less=True)" if "(" in register else f"{register} = Signal(reset_less=True)"
    new = old.replace(", reset_less=True", "").replace("reset_less=True", "")
    return Bug(ROWS, old, new, fails, depth=24)


# Of all proofs of rows.
ROW_BUGS = (
    _sooner("rcd", "act_last", "rcd"),
    Bug(ROWS, "assigned & ~self.opened & rp & rc", "assigned & ~self.opened & rc", "rp", depth=28),
    _sooner("rc", "act_first", "rc"),
    _sooner("rtp", "mac", "rtp"),
    _nearer("act_lead", "ras"),
    Bug(ROWS, "self.refresh, timing.rfc)", "self.refresh, timing.rfc - 1)", "act_after_ref", depth=30),
    Bug(ROWS, "self.idle.eq(busy_done & ~self.refresh)", "self.idle.eq(1)", "mac_after_ref", depth=30),
    Bug(ROWS, "timing.refi, left) - 1", "timing.refi, left)", "ref_on_time", depth=24),
    Bug(
        ROWS, "(left == timing.rp) & self.opened", "(left == timing.rp - 1) & self.opened", "ref_rp", depth=24
    ),
    Bug(ROWS, "(left == timing.rp) & self.opened", "0", "ref_closed", depth=24),
    Bug(ROWS, "assigned & usable & ~stale & rcd", "assigned & ~stale & rcd", "mac_open", depth=24),
    Bug(ROWS, "m.If(self.pre_first | self.close_all)", "m.If(self.close_all)", "pre_open", depth=24),
    Bug(ROWS, "assigned & ~self.opened & rp & rc", "assigned & rp & rc", "act_closed", depth=24),
    Bug(ROWS, "with m.If(self.drop & (opened | self.act_first)):", "with m.If(0):", "mac_row", depth=24),
    _forgets("opened", "act_closed"),
    _forgets("running", "ref_on_time"),
    _forgets("counter = Signal(REFRESH_BITS", "ref_on_time"),
    _forgets("issued = Signal(row_layout(config)", "ref_on_time"),
    _forgets("left = Signal(range(max(2, self.most))", "act_after_ref"),
)


def _bugs(module: str, depth: int, *changes: tuple[str, str, str]) -> tuple[Bug, ...]:
    """Return bugs of one module that ``depth`` cycles from reset show: source, change, what fails."""
    return tuple(Bug(module, old, new, fails, depth=depth) for old, new, fails in changes)


COMBINE_SIZES = "2 slots, 2 words, at most 2 contributions"
FREED = tuple(
    ("self.freed.eq(", "self.freed.eq(self.o.valid | ", fails) for fails in ("token_room", "freed_once")
)
LITE, READS, PACKETS, ALONE = (f"rtl.axi.{name}" for name in ("lite", "reads", "packets", "alone"))
AXI = [
    Proof(
        "axi4-lite slave",
        "responses stay; one access for each request, as asked, one response for each access, its own;"
        " no EXOKAY; a refused write is none; nothing waits for another channel, nor longer than 6 cycles"
        " once its response has room",
        f"{len(axi.REGISTERS)} registers of the gate's top, {axi.ADDRESS_BITS} address bits",
        axi.lite,
        depth=4,
        induction=1,
        bugs=(
            *_bugs(
                LITE,
                12,
                ("with m.If(self.s_axi_bready):", "with m.If(1):", "b_stays"),
                ("with m.If(self.s_axi_rready):", "with m.If(1):", "r_stays"),
                ("with m.If(self.s_axi_bready):", "with m.If(self.s_axi_bready & w_held):", "b_from_nothing"),
                (
                    "with m.If(self.s_axi_rready):",
                    "with m.If(self.s_axi_rready & ar_held):",
                    "r_from_nothing",
                ),
                ("can_write.eq(aw_held & w_held & ", "can_write.eq(w_held & ", "aw_from_nothing"),
                ("can_read.eq(ar_held & ", "can_read.eq(", "ar_from_nothing"),
                ("can_read.eq(ar_held & ~self.s_axi_rvalid)", "can_read.eq(ar_held)", "r_room"),
                ("self.s_axi_wready.eq(~w_held)", "self.s_axi_wready.eq(1)", "w_room"),
                ("self.s_axi_arready.eq(~ar_held)", "self.s_axi_arready.eq(1)", "ar_room"),
                ("self.s_axi_bvalid.eq(1)", "self.s_axi_bvalid.eq(response == OKAY)", "b_one_each"),
                (
                    "self.s_axi_awready.eq(~aw_held)",
                    "self.s_axi_awready.eq(~aw_held & self.s_axi_wvalid)",
                    "aw_is_taken",
                ),
                (
                    "self.s_axi_arready.eq(~ar_held)",
                    "self.s_axi_arready.eq(~ar_held & ~aw_held)",
                    "ar_is_taken",
                ),
                ("can_write.eq(aw_held & w_held & ", "can_write.eq(aw_held & ", "w_from_nothing"),
                ("aw_held & w_held & ~self.s_axi_bvalid", "aw_held & w_held", "b_room"),
                ("self.s_axi_awready.eq(~aw_held)", "self.s_axi_awready.eq(1)", "aw_room"),
                ("Mux(write_chosen, aw_addr, ar_addr)", "ar_addr", "write_as_asked"),
                ("Mux(write_chosen, aw_addr, ar_addr)", "aw_addr", "read_as_asked"),
                ("looked_up.eq(~idle & ~looked_up)", "looked_up.eq(idle & ar_held)", "address_comes_before"),
                ("read.eq(looked_up & ~writes)", "read.eq(looked_up)", "one_at_a_time"),
                ("self.we.eq(write & (response == OKAY))", "self.we.eq(write)", "writes_are_legal"),
                (
                    "response.eq(Mux(all_strobes, self.write_response, SLVERR))",
                    "response.eq(self.write_response)",
                    "b_of_its_access",
                ),
                ("Mux(self.read_response == OKAY, self.rdata, 0)", "self.rdata", "r_of_its_access"),
                ("OKAY, SLVERR, DECERR = 0, 2, 3", "OKAY, SLVERR, DECERR = 0, 1, 3", "b_legal"),
                (
                    "self.s_axi_rresp.eq(self.read_response)",
                    "self.s_axi_rresp.eq(self.read_response >> 1)",
                    "r_legal",
                ),
                ("self.s_axi_rvalid.eq(1)", "self.s_axi_rvalid.eq(~aw_held)", "r_one_each"),
                (
                    "self.s_axi_wready.eq(~w_held)",
                    "self.s_axi_wready.eq(~w_held & self.s_axi_awvalid)",
                    "w_is_taken",
                ),
                (
                    "can_read.eq(ar_held & ~self.s_axi_rvalid)",
                    "can_read.eq(ar_held & ~self.s_axi_rvalid & ~self.s_axi_bvalid)",
                    "read_within_6",
                ),
            ),
            Bug(
                LITE,
                "idle & can_write & ~(can_read & read_next)",
                "idle & can_write & ~ar_held",
                "write_within_6",
                depth=18,
            ),
        ),
    ),
    Proof(
        "axi4 reads at the port",
        "addresses stay, each asked for once, in order, inside 4 KiB; at most the core's bursts in flight,"
        " one more while one is too long; the core gets each beat once, whole bursts, zeros where the memory"
        " ends one early; a beat waits for a burst at most; what is told is so; recovery ends with none in"
        " flight; for any memory",
        f"bursts of {axi.BURST_BEATS} beats of {axi.BEAT_BYTES} bytes, {axi.OUTSTANDING} outstanding",
        axi.reads,
        depth=4,
        induction=1,
        bugs=(
            Bug(STREAM, *FORGETS, "o_ar_stays", depth=8),
            Bug(
                READS,
                "register.i.ready & space & ~self.recovering",
                "space",
                "burst_room",
                depth=10,
            ),
            Bug(
                READS,
                "self.i_r.valid & passes)",
                "self.i_r.valid & passes & ~self.i_ar.valid)",
                "o_r_stays",
                depth=8,
            ),
            Bug(READS, "[over.eq(ends), fill.eq(~ends)]", "fill.eq(~ends)", "outstanding", depth=16),
            *_bugs(
                READS,
                10,
                ("register.i.valid.eq(asks)", "register.i.valid.eq(self.i_ar.valid)", "burst_from_nothing"),
                (
                    "register.i.payload.eq(self.i_ar.payload)",
                    "register.i.payload.eq(self.i_ar.payload.addr + 2)",
                    "o_ar_within_4_kib",
                ),
                (
                    "register.i.payload.eq(self.i_ar.payload)",
                    "register.i.payload.eq(self.o_ar.payload)",
                    "burst_in_order",
                ),
                ("space & ~self.recovering", "space", "none_asked_in_recovery"),
                ("~expected & ~self.o_ar.valid & ~fill", "~expected & ~fill", "idle_is_idle"),
                (
                    "take & expected & self.i_r.payload.last)",
                    "take & self.i_r.payload.last)",
                    "reads_counted",
                ),
                ("passes.eq(expected & ~over &", "passes.eq(expected &", "o_r_from_nothing"),
                (
                    "self.o_r.payload.last.eq(ends)",
                    "self.o_r.payload.last.eq(self.i_r.payload.last)",
                    "o_r_bursts_whole",
                ),
                (
                    "~over & ~fill & ~self.recovering",
                    "~over & ~fill & ~self.recovering & ~self.i_r.payload.resp.any()",
                    "none_lost",
                ),
                ("~over & ~fill & ~self.recovering", "~over & ~fill", "none_given_in_recovery"),
                ("Mux(passes, self.o_r.ready, ~fill)", "Mux(passes, 1, ~fill)", "none_lost"),
                (
                    "self.o_r.payload.data.eq(0)",
                    "self.o_r.payload.data.eq(self.i_r.payload.data)",
                    "filled_with_zeros",
                ),
                (
                    "self.o_r.payload.resp.eq(OKAY)",
                    "self.o_r.payload.resp.eq(self.i_r.payload.resp)",
                    "filled_with_zeros",
                ),
                (
                    "(fill & (self.o_r.ready | self.recovering))",
                    "(fill & self.recovering)",
                    "i_r_taken_within_burst",
                ),
                ("(self.i_r.payload.resp != OKAY) & ", "", "slverr_told"),
                (
                    "self.decerr.eq(self.i_r.payload.resp == DECERR)",
                    "self.decerr.eq(self.i_r.payload.resp[0])",
                    "decerr_told",
                ),
                (
                    "self.unexpected.eq(take & ~expected)",
                    "self.unexpected.eq(take & (beat == 0) & ~expected & ~over & self.i_r.payload.last)",
                    "unexpected_told",
                ),
                (
                    "m.Elif(self.i_r.payload.last != ends)",
                    "m.Elif(~self.i_r.payload.last & ends)",
                    "wrong_last_told",
                ),
            ),
        ),
    ),
    Proof(
        "axi4 reads of weights",
        "addresses stay and are inside 4 KiB; at most so many bursts outstanding",
        "2 bursts outstanding, any jobs",
        axi.weight_reader,
        depth=4,
        induction=1,
        bugs=_bugs(
            "rtl.expert.loader",
            10,
            ("(outstanding != config.max_outstanding)", "1", "outstanding"),
            ("address + image.burst_bytes", "address + image.burst_bytes + 8", "o_ar_within_4_kib"),
            ("jobs.next.eq(~active & jobs.waiting)", "jobs.next.eq(jobs.waiting)", "o_ar_stays"),
        ),
    ),
    Proof(
        "axi4 reads of the router",
        "addresses stay, are inside 4 KiB, each burst of the image once, in sequence, one at a time",
        "the router of 3 experts, d_model 4",
        axi.router_loader,
        depth=4,
        induction=1,
        bugs=_bugs(
            "rtl.layer.shell",
            12,
            ("asking.eq(0), asked.eq(asked + 1)", "asked.eq(asked + 1)", "one_at_a_time"),
            ("asked * self.burst_bytes", "asked * (self.burst_bytes + 8)", "in_sequence"),
            ("asking.eq(asked != self.bursts)", "asking.eq(1)", "asks_when_active"),
            ("self.o_ar.valid.eq(asking)", "self.o_ar.valid.eq(asking & self.o.ready)", "o_ar_stays"),
            ("asked * self.burst_bytes", "asked * (self.burst_bytes + 8)", "o_ar_within_4_kib"),
            ("with m.If(asked == self.bursts):", "with m.If(asked == 1):", "all_of_it"),
            ("(taken < self.beats)),", "(taken < self.beats) & self.o_ar.ready),", "o_stays"),
        ),
    ),
    Proof(
        "axi4-stream in",
        "every beat that is taken goes on, in order, unless it follows an error or recovery throws it away;"
        " the core sees whole tokens, batches of at most the tokens set, ends where they belong; after an"
        " error nothing passes; what is told is so; offers stay",
        f"tokens of {axi.TOKEN_BEATS} beats, any number of tokens set",
        axi.packets_in,
        depth=4,
        induction=1,
        bugs=(
            Bug(STREAM, *MIXES, "in_order", depth=8),
            Bug(STREAM, *FULL, "room", depth=8),
            *_bugs(
                PACKETS,
                10,
                (
                    "i.ready.eq(passes & o.ready)",
                    "i.ready.eq(passes & o.ready & ~self.read_failed)",
                    "from_nothing",
                ),
                *(
                    (
                        "with m.If(take):\n                    self._passed",
                        "with m.If(i.valid):\n                    self._passed",
                        f"{event}_of_a_beat",
                    )
                    for event in ("short_token", "short_packet", "long_packet")
                ),
                ("(self.admit | ~first | offered)", "(self.admit | ~first)", "o_stays"),
                ("(self.admit | ~first | offered)", "1", "begins_admitted"),
                ("(self.admit | ~first | offered)", "(self.admit | offered)", "passes_at_once"),
                (
                    "InputState.DISCARD, InputState.RESYNC)",
                    "InputState.DISCARD, InputState.RESYNC, InputState.HALTED)",
                    "none_lost",
                ),
                (
                    "o.payload.last.eq(ends_token & (i.payload.last | counted_out))",
                    "o.payload.last.eq(i.payload.last | counted_out)",
                    "last_ends_token",
                ),
                ("of_one.eq(limit == 1)", "of_one.eq(limit == 3)", "last_as_asked"),
                (
                    "first_token.eq(ended_last)",
                    "first_token.eq(1)",
                    "last_as_asked",
                ),
                ("limited & Mux(first_token, of_one, none_behind)", "0", "batch_at_most"),
                ("with m.Elif(last & self.read_failed):", "with m.Elif(0):", "halted_told"),
                ("o.valid.eq(~self.recovering)]", "o.valid.eq(0)]", "filled_up"),
                ("o.payload.eq(0), o.payload.last", "o.payload.last", "filled_with_zeros"),
                (
                    "passes.eq((state == InputState.PASS) & ",
                    "passes.eq((state != InputState.FILL) & ",
                    "stopped",
                ),
                ("with m.If(~ends_token & last):", "with m.If(last):", "short_token_told"),
                (
                    "limited & ~counted_out, counted_out",
                    "limited, counted_out",
                    "short_packet_told",
                ),
                (
                    "with m.Elif(ends_token & ~last & counted_out):",
                    "with m.Elif(~last & counted_out):",
                    "long_packet_told",
                ),
                ("                beat.eq(0),\n", "", "begun_told"),
                (
                    "m.d.sync += self.packet_open.eq(~i.payload.last)",
                    "m.d.sync += self.packet_open.eq(1)",
                    "packet_open_told",
                ),
            ),
        ),
    ),
    Proof(
        "axi4-stream out",
        "every beat of the core leaves once, in order, with its mark; offers stay, through recovery too; a"
        " packet that recovery cuts is closed by one marked beat of zeros",
        "any packets",
        axi.packets_out,
        depth=4,
        induction=1,
        bugs=(
            Bug(STREAM, *FORGETS, "o_stays", depth=8),
            Bug(STREAM, *FULL, "beat_room", depth=8),
            Bug(STREAM, *TWICE, "beat_from_nothing", depth=8),
            *_bugs(
                PACKETS,
                8,
                ("self.taken.eq(self.i.valid & self.i.ready)", "self.taken.eq(self.i.valid)", "taken_told"),
                (
                    "self.o.valid.eq(register.o.valid)",
                    "self.o.valid.eq(register.o.valid & ~self.recovering)",
                    "beat_at_once",
                ),
                ("register.i.payload.user.eq(self.mark)", "register.i.payload.user.eq(0)", "beat_in_order"),
                ("                register.i.payload.beat.eq(0),\n", "", "beat_in_order"),
                ("                register.i.payload.done.eq(0),\n", "", "beat_in_order"),
                (
                    "self.done.eq(self.o.valid & self.o.ready & ",
                    "self.done.eq(self.o.valid & ",
                    "done_with_a_beat",
                ),
                ("register.i.valid.eq(packet_open)", "register.i.valid.eq(0)", "closed_told"),
                ("                self.i.ready.eq(0),\n", "", "none_in_recovery"),
                ("register.i.payload.beat.last.eq(1)", "register.i.payload.beat.last.eq(0)", "packets_whole"),
            ),
        ),
    ),
    Proof(
        "axi4-stream out of the gate",
        "every beat of the gate leaves as it is; TLAST on the last beat of a batch's last token alone",
        "any gate of 5 experts, top 2",
        axi.gate_alone,
        depth=3,
        induction=1,
        bugs=_bugs(
            ALONE,
            6,
            ("assignment.last & assignment.last_token", "assignment.last_token", "o_last_ends_token"),
            ("assignment.last & assignment.last_token", "assignment.last", "o_last_ends_batch"),
            ("self.o.valid.eq(gate.o.valid)", "self.o.valid.eq(gate.o.valid & ~self.i.valid)", "o_stays"),
            ("gate.o.ready.eq(self.o.ready)", "gate.o.ready.eq(1)", "none_lost"),
        ),
    ),
    Proof(
        "axi4-stream in and out of the dispatcher",
        "each token's last beat is counted, TLAST ends its batch; entries and announcements stay; whether"
        " entries are still to come is told",
        "any dispatcher of 5 experts, top 2",
        axi.dispatch_alone,
        depth=3,
        induction=1,
        bugs=_bugs(
            ALONE,
            6,
            ("assignment.last.eq(ends_token)", "assignment.last.eq(1)", "token_ends"),
            ("assignment.last_token.eq(beat.last)", "assignment.last_token.eq(1)", "batch_ends"),
            ("Mux(self.finished, self.o_expect.payload.count, 0)", "Mux(self.finished, 1, 0)", "inside_told"),
            ("dispatch.i.valid.eq(self.i.valid)", "dispatch.i.valid.eq(self.i.valid & ~busy)", "none_lost"),
            *(
                (
                    f"connect_stream(m, dispatch.{inside}, wiring.flipped(self.{port}))",
                    (
                        f"m.d.comb += [self.{port}.valid.eq(dispatch.{inside}.valid & ~self.i.valid),"
                        f" self.{port}.payload.eq(dispatch.{inside}.payload),"
                        f" dispatch.{inside}.ready.eq(self.{port}.ready & ~self.i.valid)]"
                    ),
                    f"{port}_stays",
                )
                for inside, port in (("o_0", "o"), ("o_expect", "o_expect"))
            ),
        ),
    ),
]

CONSERVED = (
    "no assignment lost, doubled, or reordered inside an expert; dropped is what the capacity says;"
    " counts announced are those of the entries kept; no overflow; jobs whole"
)


def _dispatch_bugs(config: DispatchConfig) -> tuple[Bug, ...]:
    """Return those of a dispatcher's conservation; deep ones take two cycles longer to show."""
    searched = partial(dispatch.searched, config=config)
    at_limit = partial(dispatch.searched, 1, config=config)
    later = 2 * config.deep
    ready = ("enqueue", "self.i.ready.eq(~full.bit_select(parity, 1) & ", "self.i.ready.eq(")
    changes = (
        (
            *("tables", "num_read_ports=2, transparent=True", "num_read_ports=2, transparent=False"),
            *("entry_in_order", 14),
        ),
        (
            *("tables", "nexts.write.addr.eq(link_from),", "nexts.write.addr.eq(self.push.entry),"),
            *("entry_in_order", 14),
        ),
        ("walker", "take_next.eq(fire & ~at_tail)", "take_next.eq(fire)", "entry_in_order", 14),
        (*ready, "entry_in_order", 20),
        ("enqueue", "kept.eq(Mux(s1.last, 0, kept_now))", "kept.eq(kept_now)", "token_in_order", 12),
        ("walker", "self.o.payload.last.eq(at_tail)", "self.o.payload.last.eq(~at_tail)", "jobs_whole", 14),
        (
            *("picker", "self.clear.valid.eq(choose & ~take_shared)", "self.clear.valid.eq(choose & 0)"),
            *("entry_in_order", 16),
        ),
        (*ready, "entry_room", 20),
        (*ready, "no_overflow", 20),
    )
    of_deep = (
        ("tables", "again = self.push.valid & (", "again = 0 & (", "entry_in_order", 14),
        ("walker", "m.d.sync += at_tail.eq(next_is_last)", "m.d.sync += at_tail.eq(1)", "entry_in_order", 18),
    )
    streams = (
        (FORGETS, "o_0_stays", 16),
        (TWICE, "entry_from_nothing", 16),
        (TWICE, "token_from_nothing", 10),
        *([(ROOM, "entry_in_order", 20)] if config.deep else []),
    )
    limit = ("(counts.read_0.data < capacity)",) if config.deep else ("(count < self.capacity)",)
    return (
        *(
            Bug(DISPATCH + module, old, new, fails, searched, depth + later)
            for module, old, new, fails, depth in (*changes, *(of_deep if config.deep else ()))
        ),
        *(Bug(STREAM, *change, fails, searched, depth + later) for change, fails, depth in streams),
        Bug(DISPATCH + "enqueue", *limit, limit[0].replace("<", "<="), "drops_counted", at_limit, 14 + later),
        Bug(STREAM, *FORGETS, "o_expect_stays", depth=10 + later),
        Bug(STREAM, *TWICE, "entry_owed", depth=16 + later),
        Bug(
            DISPATCH + "enqueue",
            "s1_blocked.eq(s1.last & ~expect_ready)",
            "s1_blocked.eq(0)",
            "token_room",
            depth=14 + later,
        ),
    )


PROOFS = [
    *(_stream(block) for block in BLOCKS),
    *(
        Proof(
            "order in a stream register" + ", late" * late,
            "each beat once, in order; at most two inside; a beat inside is offered",
            "4 bits" + ", a second place that takes what stands at the input" * late,
            partial(queues.register_order, late=late),
            depth=4,
            induction=1,
            bugs=(
                Bug(STREAM, *(OVERWRITES if late else MIXES), "beat_in_order", depth=8),
                Bug(STREAM, *FULL, "beat_room", depth=10),
                Bug(STREAM, *FORGETS, "o_stays", depth=6),
                Bug(STREAM, *TWICE, "beat_from_nothing", depth=8),
                Bug(STREAM, *LATE, "beat_at_once", depth=8),
            ),
        )
        for late in (False, True)
    ),
    Proof(
        "order in a queue",
        "each beat once, in order; no overflow; a beat inside is offered a cycle later at the latest",
        "4 bits, depth 4",
        queues.fifo_order,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                "rtl.fifo",
                "self.i.ready.eq(level != self.depth)",
                "self.i.ready.eq(1)",
                "no_overflow",
                depth=9,
            ),
            Bug(
                "rtl.fifo",
                "[read_count.eq(read_count + 1), valid.eq(1)]",
                "[valid.eq(1)]",
                "beat_in_order",
                depth=8,
            ),
            Bug("rtl.fifo", "(level != 0) & (~valid", "(level > 1) & (~valid", "beat_soon", depth=8),
            Bug("rtl.fifo", *FETCHES, "o_stays", depth=8),
            Bug(
                "rtl.fifo", "m.d.sync += valid.eq(0)", "m.d.sync += valid.eq(1)", "beat_from_nothing", depth=8
            ),
            Bug(
                "rtl.fifo",
                "self.i.ready.eq(level != self.depth)",
                "self.i.ready.eq(1)",
                "beat_room",
                depth=12,
            ),
        ),
    ),
    Proof(
        "crossing",
        "each beat once, in order, whatever the order of the clocks' edges and of the ends of their resets;"
        " an offered beat stays; at most two edges until a side sees what the other one did; a count that"
        " crosses changes by a bit at a time",
        "2 bits, depth 4; 6 cycles of common reset",
        crossing.crossing_order,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                CROSSING,
                "fifo.r_en.eq(self.o.ready & running)",
                "fifo.r_en.eq(self.o.ready)",
                "beat_in_order",
                depth=18,
            ),
            Bug(
                CROSSING,
                "self.o.valid.eq(fifo.r_rdy & running)",
                "self.o.valid.eq(fifo.r_rdy)",
                "silent_in_reset",
                depth=18,
            ),
            Bug(
                CROSSING, "fifo.r_en.eq(self.o.ready & running)", "fifo.r_en.eq(running)", "o_stays", depth=18
            ),
            Bug(CROSSING, "fifo.w_en.eq(self.i.valid)", "fifo.w_en.eq(1)", "beat_from_nothing", depth=18),
            Bug(CROSSING, "self.i.ready.eq(fifo.w_rdy)", "self.i.ready.eq(1)", "beat_room", depth=18),
            Bug(
                CROSSING,
                "self.i.ready.eq(fifo.w_rdy)",
                "self.i.ready.eq(fifo.w_rdy & ~fifo.w_level[0])",
                "room_soon",
                depth=18,
            ),
            Bug(
                CROSSING,
                "self.o.valid.eq(fifo.r_rdy & running)",
                "self.o.valid.eq(fifo.r_rdy & running & (fifo.r_level > 1))",
                "beat_soon",
                depth=18,
            ),
            Bug(
                "amaranth.lib.fifo",
                "produce_w_gry.eq(_gray_encode(produce_w_nxt))",
                "produce_w_gry.eq(produce_w_nxt)",
                "writer_code_by_a_bit",
                depth=18,
            ),
            Bug(
                "amaranth.lib.fifo",
                "consume_r_gry.eq(_gray_encode(consume_r_nxt))",
                "consume_r_gry.eq(consume_r_nxt)",
                "reader_code_by_a_bit",
                depth=22,
            ),
        ),
    ),
    Proof(
        "merger",
        "beats of an input once, in order; a waiting input lets each other go first once at most",
        "3 inputs",
        queues.merge_order,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                "rtl.merge",
                "Mux(behind.any, behind.index, anyone.index)",
                "anyone.index",
                "a_turn_each",
                depth=10,
            ),
            Bug(
                "rtl.merge",
                "entry.o.ready.eq(output.i.ready)",
                "entry.o.ready.eq(1)",
                "beat_in_order",
                depth=8,
            ),
            Bug(STREAM, *FORGETS, "o_stays", depth=8),
            Bug(STREAM, *TWICE, "beat_from_nothing", depth=8),
            Bug(STREAM, *FULL, "beat_room", depth=12),
        ),
    ),
    Proof(
        "choice of one of many",
        "the lowest bit, or the largest key, the lowest of equals; combinational: one cycle is all",
        "5 bits, keys of 2",
        queues.first_of,
        depth=2,
        induction=1,
        bugs=(
            Bug("rtl.dispatch.first", "(high_key > low_key)", "(high_key >= low_key)", "chosen", depth=2),
            Bug(
                "rtl.dispatch.first",
                "any_set.eq(low_any | high_any)",
                "any_set.eq(low_any)",
                "any_told",
                depth=2,
            ),
        ),
    ),
    Proof(
        "dispatcher, conservation",
        CONSERVED,
        "4 experts, top 2, windows of 2 (8 places), capacity 0..3, one unit",
        dispatch.conservation,
        depth=4,
        induction=1,
        bugs=_dispatch_bugs(dispatch.CONFIG),
    ),
    Proof(
        "dispatcher, conservation, deep",
        CONSERVED,
        "the same, deep pipelines",
        partial(dispatch.conservation, dispatch.DEEP),
        depth=4,
        induction=1,
        bugs=_dispatch_bugs(dispatch.DEEP),
    ),
    Proof(
        "dispatcher, progress",
        f"while a closed window has entries, one leaves in {dispatch.PROGRESS_CYCLES} cycles,"
        f" and no beat waits for {dispatch.TAKE_CYCLES}, if outputs are ready once in {dispatch.SINK_EVERY}",
        "4 experts, top 2, windows of 2, capacity 0..3, one unit",
        dispatch.progress,
        depth=20,
        induction=0,
        bugs=(
            Bug(
                DISPATCH + "picker",
                "found.eq(closed.bit_select(oldest, 1) & (take_shared | first.any))",
                "found.eq(closed.bit_select(oldest, 1) & (first.index != 3) & first.any)",
                "entry_within",
                dispatch.progress_searched,
                22,
            ),
            Bug(
                DISPATCH + "walker",
                "self.drained.eq(fire & at_tail & job.final)",
                "self.drained.eq(fire & at_tail & job.final & 0)",
                "beat_taken_within",
                dispatch.progress_searched,
                36,
            ),
        ),
    ),
    *(
        Proof(
            "intake" + ", deep" * deep,
            "no more tokens inside than slots; a slot that was freed is used again; gate and store get the"
            " same beats",
            "tokens of 2 beats, 2 slots" + "; deep pipelines" * deep,
            partial(intake.credits_conserved, deep=deep),
            depth=4,
            induction=1,
            bugs=_bugs("rtl.layer.shell", 14, *INTAKE_BUGS),
        )
        for deep in (False, True)
    ),
    Proof(
        "combiner",
        "each announced token leaves once, whole, in order, complete; freed once",
        COMBINE_SIZES,
        combine.tokens_once,
        depth=14,
        induction=0,
        bugs=(
            Bug("rtl.combine", "& (self.count.data == token.count))", ")", "token_complete", depth=16),
            Bug(
                "rtl.combine",
                "oldest.leave.eq(read & last_word)",
                "oldest.leave.eq(0)",
                "token_complete",
                depth=14,
            ),
            Bug(
                "rtl.combine",
                "last.eq(last_word & token.last_token)",
                "last.eq(last_word)",
                "token_in_order",
                depth=12,
            ),
            Bug(
                "rtl.combine",
                "self.o.payload.token_last.eq(last_word)",
                "self.o.payload.token_last.eq(1)",
                "token_whole",
                depth=12,
            ),
            Bug(STREAM, *TWICE, "token_from_nothing", depth=14),
            *_bugs("rtl.combine", 14, *FREED),
            Bug(
                "rtl.combine",
                "last.eq(last_word & token.last_token)",
                "last.eq(token.last_token)",
                "last_at_end",
                depth=12,
            ),
        ),
    ),
    Proof(
        "combiner, deep",
        "the same with deep pipelines",
        COMBINE_SIZES,
        partial(combine.tokens_once, "deep"),
        depth=24,
        induction=0,
        bugs=_bugs(
            "rtl.combine",
            20,
            *FREED,
            ("moves.eq(known & ", "moves.eq(waiting & ", "token_complete"),
            ("oldest.leave & token.last_token", "oldest.leave", "token_in_order"),
            ("oldest.leave & token.last_token", "token.last_token", "last_at_end"),
            ("tags = Cat(last_word, ", "tags = Cat(Const(1, 1), ", "token_whole"),
            ("self.o.valid.eq(valids[2])", "self.o.valid.eq(1)", "token_from_nothing"),
        ),
    ),
    Proof(
        "combiner, ordered",
        "the same of several units' contributions, which come in any order and interleave",
        COMBINE_SIZES,
        partial(combine.tokens_once, "ordered"),
        depth=24,
        induction=0,
        bugs=(
            Bug("rtl.combine", "& (self.count.data == token.count))", ")", "token_complete", depth=24),
            Bug(
                "rtl.fifo",
                "m.d.sync += valid.eq(0)",
                "m.d.sync += valid.eq(1)",
                "token_from_nothing",
                depth=24,
            ),
            *_bugs(
                "rtl.combine_ordered",
                24,
                ("freed.eq(reader.taken", "freed.eq(self.o.valid | reader.taken", "token_room"),
                ("freed.eq(reader.taken", "freed.eq(self.o.valid | reader.taken", "freed_once"),
                ("self.o.token_last & token.last_token", "self.o.token_last", "token_in_order"),
                ("self.o.token_last & token.last_token", "token.last_token", "last_at_end"),
                ("token_last.eq(word == config.words - 1)", "token_last.eq(1)", "token_whole"),
            ),
        ),
    ),
    *(
        Proof(
            f"combiner, {name}progress",
            f"a token that has all its contributions has its next beat at the output in"
            f" {combine.cycles_until_offered(kind)} cycles",
            COMBINE_SIZES,
            partial(combine.tokens_once, kind, soon=True),
            depth=depth,
            induction=0,
            bugs=(Bug(module, old, new, "token_soon"),),
        )
        for name, kind, depth, module, old, new in (
            ("", "short", 18, "rtl.combine", *LEFT_OUT),
            ("deep, ", "deep", 44, "rtl.combine", "moves.eq(known & ", "moves.eq(0 & "),
            ("ordered, ", "ordered", 28, "rtl.combine", *LEFT_OUT),
        )
    ),
    Proof(
        "row commands, banks one by one",
        "rcd, rp, ras, rc, rtp, ACT to ACT, rfc of each bank; a MAC in the row that was asked for; none open"
        " at a refresh; refresh in its cycle; through recoveries in any cycles, of any length",
        SERIES_TIMES,
        commands.rows_series,
        depth=4,
        induction=1,
        bugs=(
            *ROW_BUGS,
            Bug(
                ROWS,
                '"act_gap", is_act, timing.act_gap',
                '"act_gap", is_act, timing.act_gap - 1',
                "act_gap",
                depth=24,
            ),
        ),
    ),
    Proof(
        "row commands, banks at once",
        "the same where one command opens or closes all banks of a side",
        AT_ONCE_TIMES,
        commands.rows_at_once,
        depth=4,
        induction=1,
        bugs=(*ROW_BUGS, _sooner("ras", "act_last", "ras"), _sooner("rp", "pre_last", "rp")),
    ),
    Proof(
        "column commands",
        "one command in a cycle, only what was asked, every distance of MAC, write, read; tiles' gap; where"
        f" none is asked for in the {commands.QUIET_CYCLES - 1} cycles behind a recovery, across it too",
        "distances of 2 to 6 cycles, groups of 2 tokens",
        commands.columns,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                COLUMNS,
                "left.eq(Mux(after > decayed, after, decayed))",
                "left.eq(after)",
                "mac_to_read",
                depth=8,
            ),
            Bug(COLUMNS, "Mux(busy > least, busy, least)", "busy", "tile_gap", depth=8),
            Bug(
                COLUMNS,
                'free["read"] & ~self.go_mac & ~self.go_hidden',
                'free["read"] & ~self.go_hidden',
                "one_at_a_time",
                depth=8,
            ),
            Bug(COLUMNS, "Mux(busy > least, busy, least)", "least", "tile_gap", depth=10),
            Bug(COLUMNS, "timing.mac_gap)),", "timing.mac_gap - 1)),", "mac_to_mac", depth=8),
            *(
                Bug(COLUMNS, f"timing.{distance}", f"timing.{distance} - 1", distance, depth=8)
                for distance in (
                    "mac_to_write",
                    "mac_to_read",
                    "write_to_mac",
                    "write_to_write",
                    "write_to_read",
                    "read_to_mac",
                    "read_to_write",
                    "read_to_read",
                )
            ),
            *(
                Bug(COLUMNS, f"go_{kind}.eq(self.want_{kind} & ", f"go_{kind}.eq(", f"{kind}_wanted", depth=4)
                for kind in ("mac", "hidden", "read")
            ),
            Bug(COLUMNS, "self.want_input & free", "free", "input_wanted", depth=4),
        ),
    ),
    *AXI,
]
