"""What is proved of which block, how, and the bugs by which each property is seen to be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.formal import combine, commands, dispatch, queues
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
}
STREAM_BUGS = {
    "fifo": Bug(
        "rtl.fifo",
        "fetch.eq((level != 0) & (~valid | self.o.ready))",
        "fetch.eq(level != 0)",
        "o_stays",
        depth=8,
    ),
    "stream register": Bug(STREAM, *FORGETS, "o_stays", depth=6),
    "gate": Bug(
        "rtl.fifo",
        "fetch.eq((level != 0) & (~valid | self.o.ready))",
        "fetch.eq(level != 0)",
        "o_stays",
        induction=2,
    ),
    "combine, ordered": Bug(
        "rtl.fifo",
        "fetch.eq((level != 0) & (~valid | self.o.ready))",
        "fetch.eq(level != 0)",
        "o_stays",
        induction=2,
    ),
    "dispatch": Bug(STREAM, *FORGETS, "o_expect_stays", depth=12),
    "dispatch, 2 units": Bug(STREAM, *FORGETS, "o_expect_stays", induction=2),
    "expert": Bug(
        "rtl.expert.loader",
        "jobs.next.eq(~active & jobs.waiting)",
        "jobs.next.eq(jobs.waiting)",
        "o_ar_stays",
        depth=12,
    ),
}


def _stream(block: str) -> Proof:
    # Outputs of the others are reached from reset too late for a search.
    bug = STREAM_BUGS.get(block) or Bug(STREAM, *FORGETS, "o_stays", induction=2)
    return Proof(
        f"streams of {block}",
        "what is offered at an output stays, unchanged, until it is taken",
        STREAM_PARAMETERS[block],
        partial(stream_rules, block),
        depth=4,
        induction=2,
        bugs=(bug,),
    )


DISPATCH = "rtl.dispatch."
ROWS = "rtl.pim.rows"
COLUMNS = "rtl.pim.columns"
SERIES_TIMES = "rcd 2, rp 2, ras 4, rc 6, rtp 2, ACT to ACT 2, rfc 3, refi 17; 2 sides of 2 units"
AT_ONCE_TIMES = "rcd 3, rp 3, ras 6, rc 11, rtp 2, rfc 4, refi 24; 2 sides"


def _sooner(name: str, event: str, fails: str, make=None) -> Bug:
    """Return a counter that runs a cycle short."""
    old = f'countdown(m, "{name}", self.{event}, timing.{name})'
    return Bug(ROWS, old, old.replace(f"timing.{name}", f"timing.{name} - 1"), fails, make=make, depth=24)


def _nearer(lead: str, fails: str, make=commands.rows_series) -> Bug:
    """Return a command that is allowed a cycle nearer to a refresh."""
    old = f"left >= timing.{lead}"
    return Bug(ROWS, old, f"{old} - 1", fails, make=make, depth=24)


PROOFS = [
    *(_stream(block) for block in BLOCKS),
    Proof(
        "order in a stream register",
        "each beat once, in order; at most two inside; a beat inside is offered",
        "4 bits",
        queues.register_order,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                STREAM, "Mux(spare_valid, spare, self.i.payload)", "self.i.payload", "beat_in_order", depth=8
            ),
            Bug(STREAM, "self.i.ready.eq(~spare_valid)", "self.i.ready.eq(1)", "beat_room", depth=10),
        ),
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
        ),
    ),
    Proof(
        "choice of one of many",
        "the lowest bit, or the largest key, the lowest of equals; combinational: one cycle is all",
        "5 bits, keys of 2",
        queues.first_of,
        depth=2,
        induction=1,
        bugs=(Bug("rtl.dispatch.first", "(high_key > low_key)", "(high_key >= low_key)", "chosen", depth=2),),
    ),
    Proof(
        "dispatcher, conservation",
        "no assignment lost, doubled, or reordered inside an expert; dropped is what the capacity says;"
        " counts announced are those of the entries kept; no overflow; jobs whole",
        "4 experts, top 2, windows of 2 (8 places), capacity 0..3, one unit",
        dispatch.conservation,
        depth=4,
        induction=1,
        bugs=(
            Bug(
                DISPATCH + "tables",
                "num_read_ports=2, transparent=True",
                "num_read_ports=2, transparent=False",
                "entry_in_order",
                dispatch.searched,
                14,
            ),
            Bug(
                DISPATCH + "tables",
                "nexts.write.addr.eq(link_from),",
                "nexts.write.addr.eq(self.push.entry),",
                "entry_in_order",
                dispatch.searched,
                14,
            ),
            Bug(
                DISPATCH + "walker",
                "take_next.eq(fire & ~at_tail)",
                "take_next.eq(fire)",
                "entry_in_order",
                dispatch.searched,
                14,
            ),
            Bug(
                DISPATCH + "enqueue",
                "self.i.ready.eq(~self.full.bit_select(parity, 1) & ",
                "self.i.ready.eq(",
                "entry_in_order",
                dispatch.searched,
                20,
            ),
            Bug(
                DISPATCH + "enqueue",
                "kept.eq(Mux(s1.last, 0, kept_now))",
                "kept.eq(kept_now)",
                "token_in_order",
                dispatch.searched,
                12,
            ),
            Bug(
                DISPATCH + "enqueue",
                "(count < self.capacity)",
                "(count <= self.capacity)",
                "drops_counted",
                partial(dispatch.searched, 1),
                14,
            ),
            Bug(
                DISPATCH + "walker",
                "self.o.payload.last.eq(at_tail)",
                "self.o.payload.last.eq(~at_tail)",
                "jobs_whole",
                dispatch.searched,
                14,
            ),
            Bug(
                DISPATCH + "picker",
                "self.clear.valid.eq(choose & ~take_shared)",
                "self.clear.valid.eq(choose & 0)",
                "entry_in_order",
                dispatch.searched,
                16,
            ),
        ),
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
    # (The combiner of several units gives nothing out in so few cycles: a search would say little of it.)
    Proof(
        "combiner",
        "each announced token leaves once, whole, in order, complete; freed once",
        "2 slots, 2 words, at most 2 contributions",
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
        ),
    ),
    Proof(
        "row commands, banks one by one",
        "rcd, rp, ras, rc, rtp, ACT to ACT, rfc of each bank; none open at a refresh; refresh in its cycle",
        SERIES_TIMES,
        commands.rows_series,
        depth=4,
        induction=1,
        bugs=(
            _sooner("rcd", "act_last", "rcd"),
            _sooner("rtp", "mac", "rtp"),
            Bug(
                ROWS,
                '"act_gap", is_act, timing.act_gap',
                '"act_gap", is_act, timing.act_gap - 1',
                "act_gap",
                depth=24,
            ),
            Bug(
                ROWS, "self.refresh, timing.rfc)", "self.refresh, timing.rfc - 1)", "act_after_ref", depth=30
            ),
            Bug(ROWS, "timing.refi, left) - 1", "timing.refi, left)", "ref_on_time", depth=24),
            Bug(
                ROWS,
                "(left == timing.rp) & self.opened",
                "(left == timing.rp - 1) & self.opened",
                "ref_rp",
                depth=24,
            ),
            _nearer("act_lead", "ras"),
            Bug(
                ROWS,
                "self.ready.eq(assigned & usable & ~stale & rcd)",
                "self.ready.eq(assigned & ~stale & rcd)",
                "mac_open",
                depth=24,
            ),
            Bug(
                ROWS,
                "m.If(self.pre_first | self.close_all)",
                "m.If(self.close_all)",
                "pre_open",
                depth=24,
            ),
            Bug(
                ROWS,
                "assigned & ~self.opened & rp & rc",
                "assigned & rp & rc",
                "act_closed",
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
        bugs=(
            _sooner("rc", "act_first", "rc"),
            _sooner("ras", "act_last", "ras"),
            _sooner("rp", "pre_last", "rp"),
            _nearer("mac_lead", "rtp", commands.rows_at_once),
        ),
    ),
    Proof(
        "column commands",
        "one command in a cycle, only what was asked, every distance of MAC, write, read; tiles' gap",
        "distances of 1 to 4 cycles, groups of 2 tokens",
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
            Bug(COLUMNS, 'self.want_mac & free["mac"]', 'free["mac"]', "mac_wanted", depth=4),
        ),
    ),
]
