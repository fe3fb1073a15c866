"""The DRAM command engine: no constraint broken, no refresh late, across recoveries too.

Rows and columns are taken with small distances, so that a refresh interval has few cycles. What asks for
commands is free: rows are assigned whenever a side is free, MACs come whenever a row is ready, in every
combination. A recovery resets the engines in any cycle, for any time; the DRAM is not reset with them. The
ages of commands are counted anew, from the command buses alone, bank by bank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

from amaranth import Cat, Mux, Signal

from rtl.pim.columns import ColumnEngine
from rtl.pim.layouts import RowKind
from rtl.pim.rows import RowEngine
from spec.banks import CommandTiming
from spec.geometry import ACCUMULATE_DISTANCE
from tests.formal.model import Checker

SERIES = CommandTiming(
    mac_steps=2, mac_gap=1, act_steps=2, act_gap=2, pre_steps=2, rcd=2, rp=3, ras=4, rc=12, rtp=2, rfc=6,
    refi=30, mac_to_write=2, mac_to_read=3, write_to_mac=3, write_to_write=1, write_to_read=2, read_to_mac=2,
    read_to_write=3, read_to_read=2,
)  # fmt: skip
"""Banks opened and closed one by one."""
AT_ONCE = CommandTiming(
    mac_steps=1, mac_gap=2, act_steps=1, act_gap=1, pre_steps=1, rcd=3, rp=3, ras=6, rc=11, rtp=2, rfc=5,
    refi=26, mac_to_write=2, mac_to_read=3, write_to_mac=3, write_to_write=1, write_to_read=2, read_to_mac=2,
    read_to_write=3, read_to_read=2,
)  # fmt: skip
"""All banks of a side with one command."""
COLUMNS = replace(SERIES, mac_gap=2, write_to_write=2)
"""No two column commands may follow each other at once."""
QUIET_CYCLES = 8
"""From a recovery to the next column command, at least: longer than every distance of ``COLUMNS``."""


@dataclass(frozen=True)
class EngineSizes:
    """What the two engines read of :class:`rtl.pim.layouts.PimConfig`; two sides, rows of one bit."""

    timing: CommandTiming
    sides: int = 2
    side_bits: int = 1
    unit_bits: int = 1
    row_bits: int = 1
    column_bits: int = 1
    group_tokens: int = 2
    mac_cycles: int = 1

    @property
    def banks(self) -> SimpleNamespace:
        """Sides, and how many cycles a MAC takes."""
        return SimpleNamespace(sides=self.sides, pim=SimpleNamespace(mac_cycles=self.mac_cycles))


class Age:
    """Cycles since an event, up to ``most``; that much after reset.

    ``cycles`` is 1 in the cycle after the event; ``now`` is 0 in that of the event.
    """

    def __init__(self, checker: Checker, name: str, event, most: int) -> None:
        self.most = most
        self.cycles = cycles = Signal(range(most + 1), name=f"{name}_age", init=most)
        checker.m.d.sync += cycles.eq(Mux(event, 1, Mux(cycles >= most, most, cycles + 1)))
        self.now = checker.value(f"{name}_age_now", Mux(event, 0, cycles))

    def at_least(self, distance: int):
        """Return "a command now keeps this distance"."""
        assert distance <= self.most
        return self.cycles >= distance


def row_rules(timing: CommandTiming) -> Checker:
    """Return the row engine with every distance on its bus, bank by bank, and the refresh's cycles."""
    sizes = EngineSizes(timing)
    dut = RowEngine(sizes)
    checker = Checker(dut, skip=("refresh_offset",), recovers=True)
    m = checker.m
    units = max(timing.act_steps, timing.pre_steps)
    offset = checker.constant("offset", 5)
    checker.assume("offset_in_interval", (offset >= timing.act_lead + 2) & (offset <= timing.refi))
    m.d.comb += dut.refresh_offset.eq(offset)
    checker.assume("assign_free", ~dut.assign | dut.free.bit_select(dut.assign_side, 1))
    mac_ready = dut.ready.bit_select(dut.mac_side, 1) & dut.mac_allowed
    checker.assume("mac_ready", ~dut.mac | mac_ready)
    checker.assume("visit_done_with_mac", ~dut.visit_done | dut.mac)

    # Commands leave a cycle after they were decided, those of the columns too: these a recovery may stop.
    stopped = checker.free("mac_stopped", 1)
    mac = checker.register("mac_now", dut.mac & ~(checker.recover & stopped))
    mac_side = checker.register("mac_side_now", dut.mac_side)
    rows = [Signal(sizes.row_bits, name=f"row_{s}") for s in range(sizes.sides)]
    with m.If(dut.assign):
        with m.Switch(dut.assign_side):
            for s, row in enumerate(rows):
                with m.Case(s):
                    m.d.sync += row.eq(dut.assign_row)
    mac_row = checker.register("mac_row", Mux(dut.mac_side, rows[1], rows[0]))
    kind, side, unit = dut.o.kind, dut.o.side, dut.o.unit
    is_act, is_pre = kind == RowKind.ACT, kind == RowKind.PRE
    is_all, is_ref = kind == RowKind.PRE_ALL, kind == RowKind.REF
    most = timing.refi + 1
    ref = Age(checker, "ref", is_ref, most)
    any_act = Age(checker, "any_act", is_act, most)
    checker.prove("act_after_ref", ~(is_act | is_pre | is_all | is_ref) | ref.at_least(timing.rfc))
    checker.prove("mac_after_ref", ~mac | ref.at_least(timing.rfc))
    if timing.act_gap > 1:
        checker.prove("act_gap", ~is_act | any_act.at_least(timing.act_gap))
    banks = {}
    for s in range(sizes.sides):
        for u in range(units):
            name = f"{s}_{u}"
            here = side == s
            act = checker.value(f"act_{name}", is_act & here & ((unit == u) if timing.act_steps > 1 else 1))
            pre_one = is_pre & here & ((unit == u) if timing.pre_steps > 1 else 1)
            pre = checker.value(f"pre_{name}", pre_one | is_all)
            read = checker.value(f"mac_{name}", mac & (mac_side == s))
            is_open = Signal(name=f"open_{name}")
            open_now = checker.value(f"open_now_{name}", (is_open & ~pre) | act)
            open_row = Signal(sizes.row_bits, name=f"open_row_{name}")
            row_now = checker.value(f"open_row_now_{name}", Mux(act, dut.o.row, open_row))
            m.d.sync += [is_open.eq(open_now), open_row.eq(row_now)]
            since_act = Age(checker, f"act_{name}", act, most)
            since_pre = Age(checker, f"pre_{name}", pre, most)
            since_mac = Age(checker, f"mac_{name}", read, most)
            banks[s, u] = _Bank(is_open, open_now, row_now, since_act, since_pre, since_mac)
            checker.prove(f"act_closed_{name}", ~act | ~is_open)
            checker.prove(f"rc_{name}", ~act | since_act.at_least(timing.rc))
            checker.prove(f"rp_{name}", ~act | since_pre.at_least(timing.rp))
            checker.prove(f"mac_open_{name}", ~read | is_open)
            checker.prove(f"mac_row_{name}", ~read | (open_row == mac_row))
            checker.prove(f"rcd_{name}", ~read | since_act.at_least(timing.rcd))
            checker.prove(f"pre_open_{name}", ~(pre_one) | is_open)
            checker.prove(f"ras_{name}", ~(pre & is_open) | since_act.at_least(timing.ras))
            checker.prove(f"rtp_{name}", ~(pre & is_open) | since_mac.at_least(timing.rtp))
            checker.prove(f"ref_rp_{name}", ~is_ref | since_pre.at_least(timing.rp))
    checker.prove("ref_closed", ~is_ref | ~Cat(bank.is_open for bank in banks.values()).any())

    # Refresh in the very cycle: the first ``offset`` cycles after reset, on the bus one later.
    due = Signal(range(32), name="due")
    running = Signal(name="running")
    left = checker.value("due_left", Mux(running, due, offset + 1))
    m.d.sync += [running.eq(1), due.eq(Mux(left == 0, timing.refi, left) - 1)]
    checker.prove("ref_on_time", is_ref == (left == 0))
    _row_invariants(checker, timing, banks, rows, ref, any_act, is_ref, left, running)
    return checker


@dataclass(frozen=True)
class _Bank:
    """A bank as its commands on the bus make it."""

    is_open: Signal
    open_now: Signal
    row_now: Signal
    act: Age
    pre: Age
    mac: Age


def _row_invariants(checker, timing, banks, rows, ref, any_act, is_ref, due_left, own_running) -> None:
    """State from which the rules of the row engine follow by induction: its counters hold what is missing.

    A command is on the bus one cycle after its decision, when the counters have begun.
    """
    probe, prove = checker.probe, checker.prove

    def holds(left, age: Age, distance: int):
        return left + 1 + age.now >= distance

    left = probe("refresh_timer.left")
    running = probe("refresh_timer.running")
    prove("inv_running", running == own_running)
    prove("inv_due", due_left == Mux(is_ref, 0, left + 1))
    prove("inv_left", (left <= timing.refi) & (~is_ref | (left == timing.refi - 1)))
    prove("inv_interval", holds(left, ref, timing.refi))
    prove("inv_busy", holds(probe("refresh_timer.busy.left"), ref, timing.rfc))
    prove("inv_act_gap", holds(probe("act_gap.left"), any_act, timing.act_gap))
    series = probe("series")
    series_act, undisturbed = probe("series_act"), probe("undisturbed")
    series_side, series_unit = probe("series_side"), probe("series_unit")
    units = 1 + max(u for _, u in banks)
    prove("inv_series", ~series | ((series_unit == 1) & (units > 1)))
    for s in range(1 + max(side for side, _ in banks)):
        opened, stale = probe(f"side_{s}.opened"), probe(f"side_{s}.stale")
        usable = probe(f"side_{s}.usable")
        mine = checker.value(f"series_{s}", series & (series_side == s))
        prove(f"inv_usable_{s}", ~usable | opened)
        prove(f"inv_between_{s}", (opened & ~usable) == mine)
        prove(f"inv_stale_{s}", ~stale | opened)
        assigned, row = probe(f"side_{s}.assigned"), probe(f"side_{s}.row")
        prove(f"inv_assigned_{s}", ~(opened & ~stale & undisturbed) | assigned)
        prove(f"inv_row_{s}", row == rows[s])
        prove(f"inv_refresh_closed_{s}", ~opened | ((left >= timing.rp) & (ref.now >= timing.rfc)))
        counters = {name: probe(f"side_{s}.{name}.left") for name in ("rcd", "ras", "rc", "rp", "rtp")}
        for u in range(units):
            bank, name = banks[s, u], f"{s}_{u}"
            part = Mux(series_act, u < series_unit, u >= series_unit)
            prove(f"inv_open_{name}", bank.open_now == Mux(usable, 1, opened & part))
            prove(f"inv_open_row_{name}", ~(bank.open_now & ~stale) | (bank.row_now == rows[s]))
            waits = u * timing.act_gap
            prove(f"inv_rc_{name}", mine | holds(counters["rc"], bank.act, timing.rc - waits))
            later = mine & series_act & (u >= series_unit)
            prove(f"inv_rc_series_{name}", ~later | holds(probe("act_gap.left"), bank.act, timing.rc))
            done = mine & (series_act & (u < series_unit) | ~series_act)
            prove(f"inv_rc_begun_{name}", ~done | holds(counters["rc"], bank.act, timing.rc - waits))
            prove(f"inv_rcd_{name}", ~usable | holds(counters["rcd"], bank.act, timing.rcd))
            prove(f"inv_ras_{name}", ~usable | holds(counters["ras"], bank.act, timing.ras))
            prove(f"inv_ras_series_{name}", ~(mine & ~series_act) | (bank.act.now + 1 >= timing.ras))
            closing = left < timing.rp
            prove(f"inv_rp_{name}", opened | closing | holds(counters["rp"], bank.pre, timing.rp))
            prove(f"inv_rp_series_{name}", ~later | (bank.pre.now + 1 >= timing.rp))
            prove(f"inv_rtp_{name}", holds(counters["rtp"], bank.mac, timing.rtp))
            prove(f"inv_rtp_series_{name}", ~(mine & ~series_act) | (bank.mac.now + 1 >= timing.rtp))
            prove(f"inv_lead_mac_{name}", holds(left, bank.mac, timing.mac_lead))
            prove(f"inv_lead_act_{name}", holds(left, bank.act, timing.act_lead - waits))
            prove(f"inv_lead_pre_{name}", holds(left, bank.pre, timing.rp))
        # A series ends before the refresh.
        first = banks[s, 0]
        ends = Mux(
            series_act, holds(left, first.act, timing.act_lead), holds(left, first.pre, timing.pre_lead)
        )
        prove(f"inv_series_ends_{s}", ~mine | ends)
        in_series = first.act.now + 1 + probe("act_gap.left") == timing.act_gap
        prove(f"inv_series_gap_{s}", ~(mine & series_act) | in_series)
        prove(f"inv_series_pre_{s}", ~(mine & ~series_act) | (first.pre.now == 0))


def rows_series() -> Checker:
    """Return the row engine whose banks are opened one by one."""
    return row_rules(SERIES)


def rows_at_once() -> Checker:
    """Return the row engine whose banks are opened together."""
    return row_rules(AT_ONCE)


def columns() -> Checker:
    """Return the column engine: one command at a time, every distance between two kinds.

    It forgets the distances in a recovery. Assumed: work behind one comes ``QUIET_CYCLES`` later or more.
    """
    timing = COLUMNS
    sizes = EngineSizes(timing, mac_cycles=3)
    dut = ColumnEngine(sizes)
    checker = Checker(dut, recovers=True)
    kinds = ("mac", "hidden", "read", "input")
    quiet = Age(checker, "recovery", checker.recover, QUIET_CYCLES)
    wants = Cat(getattr(dut, f"want_{kind}") for kind in kinds)
    checker.assume("quiet_after_recovery", ~wants.any() | quiet.at_least(QUIET_CYCLES))
    write = checker.value("write", dut.go_hidden | dut.go_input)
    issued = {"mac": dut.go_mac, "write": write, "read": dut.go_read}
    gos = Cat(getattr(dut, f"go_{kind}") for kind in kinds)
    checker.prove("one_at_a_time", (gos & (gos - 1)[:4]) == 0)
    for kind in kinds:
        checker.prove(f"{kind}_wanted", ~getattr(dut, f"go_{kind}") | getattr(dut, f"want_{kind}"))

    def known(left, age: Age, distance):
        """Return "the counter still holds what is missing", if it has not forgotten the command."""
        return (left + age.cycles >= distance) | (age.cycles >= quiet.cycles)

    for before, event in issued.items():
        age = Age(checker, before, event, QUIET_CYCLES)
        for after, now in issued.items():
            distance = timing.mac_gap if before == after == "mac" else getattr(timing, f"{before}_to_{after}")
            checker.prove(f"{before}_to_{after}", ~now | age.at_least(distance))
            left = checker.probe(f"{after}_left")
            checker.prove(f"inv_{before}_to_{after}", known(left, age, distance))
    # A tile's last MAC, and the lanes that multiply its burst with all tokens.
    ends = checker.value("tile_ends", dut.go_mac & dut.mac_last)
    tile = Age(checker, "tile", ends, QUIET_CYCLES)
    needs = Signal(range(QUIET_CYCLES), name="tile_needs")
    busy = ((dut.mac_last_token + 1) * sizes.mac_cycles)[: len(needs)]
    with checker.m.If(ends):
        checker.m.d.sync += needs.eq(Mux(busy > ACCUMULATE_DISTANCE, busy, ACCUMULATE_DISTANCE))
    checker.prove("tile_gap", ~dut.go_mac | (tile.cycles >= needs))
    checker.prove("inv_tile_gap", known(checker.probe("mac_left"), tile, needs))
    checker.prove("inv_tile_needs", needs < QUIET_CYCLES)
    return checker
