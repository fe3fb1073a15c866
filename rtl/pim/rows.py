"""The row bus of a channel: opens and closes banks, refreshes them, keeps every distance.

What is known of the DRAM (open banks, distances, the next refresh, the command on its way) outlives a reset
that :class:`amaranth.hdl.ResetInserter` adds, as a recovery of the accelerator is one: the DRAM is not reset
with it (:func:`outlives_recovery`). Rows that were in use are closed then.
"""

from amaranth import Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.pim.layouts import PimConfig, RowKind, row_layout

REFRESH_BITS = 24


def outlives_recovery(m, *registers):
    """Reset these registers, of which each is ``reset_less``, to 0 with the whole device alone."""
    with m.If(ResetSignal("sync", allow_reset_less=True)):
        m.d.sync += [Value.cast(register).eq(0) for register in registers]


class Countdown(wiring.Component):
    """Cycles that must still pass: a ``load`` of n in cycle c makes it ``done`` again from c + n on.

    It goes on through a recovery.

    Members
    -------
    load : In(1), cycles : In(range(most + 1)), at least 1
    done : Out(1)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        super().__init__({"load": In(1), "cycles": In(range(most + 1)), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(max(2, self.most)), reset_less=True)
        m.d.comb += self.done.eq(left == 0)
        with m.If(self.load):
            m.d.sync += left.eq(self.cycles - 1)
        with m.Elif(~self.done):
            m.d.sync += left.eq(left - 1)
        outlives_recovery(m, left)
        return m


def countdown(m, name: str, load, cycles: int):
    """Add a :class:`Countdown` of a constant; return its ``done``."""
    counter = Countdown(cycles)
    m.submodules[name] = counter
    m.d.comb += [counter.load.eq(load), counter.cycles.eq(cycles)]
    return counter.done


class RefreshTimer(wiring.Component):
    """Say when REF falls due, and what may still be issued before it.

    REF is issued in the very cycle in which it falls due, every ``refi`` cycles; ``rp`` cycles before
    it whatever is open is precharged at once. It goes on through a recovery.

    Members
    -------
    offset : In(REFRESH_BITS)
        Cycle of the first refresh, counted from the first cycle after reset, in which it is read.
    opened : In(1)
        A bank is open.
    refresh : Out(1), close_all : Out(1)
        REF, precharge of all banks: decided in this cycle.
    mac_allowed, act_allowed, pre_allowed : Out(1)
        Such a command is far enough from the refresh.
    idle : Out(1)
        No refresh is under way.
    """

    def __init__(self, config: PimConfig) -> None:
        self.timing = config.timing
        super().__init__(
            {
                "offset": In(REFRESH_BITS),
                "opened": In(1),
                "refresh": Out(1),
                "close_all": Out(1),
                "mac_allowed": Out(1),
                "act_allowed": Out(1),
                "pre_allowed": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        timing = self.timing
        if not timing.refi:
            m.d.comb += [
                self.mac_allowed.eq(1),
                self.act_allowed.eq(1),
                self.pre_allowed.eq(1),
                self.idle.eq(1),
            ]
            return m
        left = Signal(REFRESH_BITS)
        counter = Signal(REFRESH_BITS, reset_less=True)
        running = Signal(reset_less=True)
        busy_done = countdown(m, "busy", self.refresh, timing.rfc)
        m.d.comb += [
            left.eq(Mux(running, counter, self.offset)),
            self.refresh.eq(left == 0),
            self.close_all.eq((left == timing.rp) & self.opened),
            self.mac_allowed.eq(left >= timing.mac_lead),
            self.act_allowed.eq(left >= timing.act_lead),
            self.pre_allowed.eq(left >= timing.pre_lead),
            self.idle.eq(busy_done & ~self.refresh),
        ]
        m.d.sync += [running.eq(1), counter.eq(Mux(self.refresh, timing.refi, left) - 1)]
        outlives_recovery(m, running, counter)
        return m


class BankSide(wiring.Component):
    """One bank of every unit: which row it has to open, whether that is open, and its distances.

    Members
    -------
    assign : In(1), assign_row : In
        The next row; only while ``free``.
    mac : In(1), visit_done : In(1)
        A MAC in this row is decided; it is the last one.
    act_first, act_last, pre_first, pre_last : In(1)
        First and last command of a series that opens or closes the banks.
    close_all : In(1)
    drop : In(1)
        A recovery has taken the row from who used it: what is open is closed.
    free : Out(1), ready : Out(1), opened : Out(1), row : Out
        No row is waiting or in use; the row may take a MAC; some bank is open.
    want_act, want_pre : Out(1)
    """

    def __init__(self, config: PimConfig) -> None:
        self.timing = config.timing
        self.row_bits = config.row_bits
        inputs = ("mac", "visit_done", "act_first", "act_last", "pre_first", "pre_last", "close_all", "drop")
        outputs = ("free", "ready", "opened", "want_act", "want_pre")
        super().__init__(
            {
                "assign": In(1),
                "assign_row": In(config.row_bits),
                "row": Out(config.row_bits),
                **{name: In(1) for name in inputs},
                **{name: Out(1) for name in outputs},
            }
        )

    def elaborate(self, platform):
        m = Module()
        timing = self.timing
        assigned = Signal()
        row = Signal(self.row_bits, reset_less=True)
        opened = Signal(reset_less=True)
        usable = Signal(reset_less=True)
        stale = Signal(reset_less=True)
        rcd = countdown(m, "rcd", self.act_last, timing.rcd)
        ras = countdown(m, "ras", self.act_last, timing.ras)
        rc = countdown(m, "rc", self.act_first, timing.rc)
        rp = countdown(m, "rp", self.pre_last, timing.rp)
        rtp = countdown(m, "rtp", self.mac, timing.rtp)
        m.d.comb += [
            self.row.eq(row),
            self.opened.eq(opened),
            self.free.eq(~assigned),
            self.ready.eq(assigned & usable & ~stale & rcd),
            self.want_act.eq(assigned & ~self.opened & rp & rc),
            # The row after it may be assigned already; first this one is closed.
            self.want_pre.eq(usable & stale & ras & rtp),
        ]
        with m.If(self.assign):
            m.d.sync += [assigned.eq(1), row.eq(self.assign_row)]
        with m.If(self.visit_done):
            m.d.sync += [assigned.eq(0), stale.eq(1)]
        with m.If(self.act_first):
            m.d.sync += opened.eq(1)
        with m.If(self.act_last):
            m.d.sync += usable.eq(1)
        # Also a row that is being opened: it is closed when it is open.
        with m.If(self.drop & (opened | self.act_first)):
            m.d.sync += stale.eq(1)
        with m.If(self.pre_first | self.close_all):
            m.d.sync += usable.eq(0)
        with m.If(self.pre_last | self.close_all):
            m.d.sync += [opened.eq(0), stale.eq(0)]
        outlives_recovery(m, row, opened, usable, stale)
        return m


class RowEngine(wiring.Component):
    """Open the rows that are assigned to the sides, close them after their last MAC, refresh on time.

    A row is opened (ACT) as soon as it is assigned and its banks are precharged, and closed (PRE) after
    its last MAC. What would come too close to a refresh is held back, so that no refresh waits; a row
    that was in use is opened again after it. Where several sides want the bus, the one in use by the
    MACs goes first, then those after it. A series that opens or closes banks one by one is not broken up.

    Commands leave one cycle after they were decided. A recovery takes the rows from who used them; series go
    on to their end, then what is open is closed.

    Members
    -------
    refresh_offset : In(REFRESH_BITS), see :class:`RefreshTimer`
    assign, assign_side, assign_row : In
        A side gets a row; it must be ``free``.
    mac : In(1), mac_side : In, visit_done : In(1)
        A MAC is decided in this cycle; its side, also without one; it is the last in its row.
    free, ready : Out(sides), rows : Out
        See :class:`BankSide`.
    mac_allowed, columns_allowed : Out(1)
        No refresh is too near for a MAC; none is under way.
    o : Out(row_layout(config))
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        sides = config.banks.sides
        super().__init__(
            {
                "refresh_offset": In(REFRESH_BITS),
                "assign": In(1),
                "assign_side": In(config.side_bits),
                "assign_row": In(config.row_bits),
                "mac": In(1),
                "mac_side": In(config.side_bits),
                "visit_done": In(1),
                "free": Out(sides),
                "ready": Out(sides),
                "rows": Out(data.ArrayLayout(config.row_bits, sides)),
                "mac_allowed": Out(1),
                "columns_allowed": Out(1),
                "o": Out(row_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        timing, count = config.timing, config.banks.sides
        m.submodules.refresh_timer = refresh = RefreshTimer(config)
        sides = [BankSide(config) for _ in range(count)]
        want_act = Signal(count)
        want_pre = Signal(count)
        opened = Signal(count)
        command = Signal(row_layout(config))
        issued = Signal(row_layout(config), reset_less=True)
        is_act = Signal()
        is_pre = Signal()
        act_gap_done = countdown(m, "act_gap", is_act, timing.act_gap)

        # A series under way has the bus to itself.
        series = Signal(reset_less=True)
        series_act = Signal(reset_less=True)
        series_side = Signal(config.side_bits, reset_less=True)
        series_unit = Signal(config.unit_bits, reset_less=True)
        # Reset by a recovery, as nothing else here is: 0 tells of one.
        undisturbed = Signal()
        m.d.sync += undisturbed.eq(1)
        wants = Signal(count)
        starts = Signal()
        chosen = Signal(config.side_bits)
        m.d.comb += [
            wants.eq(
                (want_act & (refresh.act_allowed & act_gap_done).replicate(count))
                | (want_pre & refresh.pre_allowed.replicate(count))
            ),
            starts.eq(~series & refresh.idle & ~refresh.close_all & wants.any()),
        ]
        for turn in reversed(range(count)):
            side = (self.mac_side + turn)[: (count - 1).bit_length()] if count > 1 else 0
            with m.If(wants.bit_select(side, 1)):
                m.d.comb += chosen.eq(side)

        first = Signal()
        last = Signal()
        where = Signal(config.side_bits)
        unit = Signal(config.unit_bits)
        steps = Signal(range(max(timing.act_steps, timing.pre_steps) + 1))
        m.d.comb += [
            where.eq(Mux(series, series_side, chosen)),
            unit.eq(Mux(series, series_unit, 0)),
            is_act.eq(Mux(series, series_act & act_gap_done, starts & want_act.bit_select(chosen, 1))),
            is_pre.eq(Mux(series, ~series_act, starts & want_pre.bit_select(chosen, 1))),
            steps.eq(Mux(is_act, timing.act_steps, timing.pre_steps)),
            first.eq(~series),
            last.eq(unit == steps - 1),
        ]
        with m.If(is_act | is_pre):
            m.d.sync += [
                series.eq(~last),
                series_act.eq(is_act),
                series_side.eq(where),
                series_unit.eq(unit + 1),
            ]
        with m.If(refresh.refresh):
            m.d.comb += command.kind.eq(RowKind.REF)
        with m.Elif(refresh.close_all):
            m.d.comb += command.kind.eq(RowKind.PRE_ALL)
        with m.Elif(is_act):
            m.d.comb += command.kind.eq(RowKind.ACT)
        with m.Elif(is_pre):
            m.d.comb += command.kind.eq(RowKind.PRE)
        with m.If(is_act | is_pre):
            m.d.comb += [
                command.side.eq(where),
                command.unit.eq(unit),
                command.row.eq(Mux(is_act, self.rows[where], 0)),
            ]
        m.d.sync += issued.eq(command)
        m.d.comb += self.o.eq(issued)
        outlives_recovery(m, series, series_act, series_side, series_unit, issued)

        for number, side in enumerate(sides):
            m.submodules[f"side_{number}"] = side
            here = Signal(name=f"here_{number}")
            mac_here = Signal(name=f"mac_here_{number}")
            m.d.comb += [
                here.eq(where == number),
                mac_here.eq(self.mac & (self.mac_side == number)),
                side.assign.eq(self.assign & (self.assign_side == number)),
                side.assign_row.eq(self.assign_row),
                side.mac.eq(mac_here),
                side.visit_done.eq(mac_here & self.visit_done),
                side.act_first.eq(is_act & here & first),
                side.act_last.eq(is_act & here & last),
                side.pre_first.eq(is_pre & here & first),
                side.pre_last.eq(is_pre & here & last),
                side.close_all.eq(refresh.close_all),
                side.drop.eq(~undisturbed),
                self.free[number].eq(side.free),
                self.ready[number].eq(side.ready),
                self.rows[number].eq(side.row),
                want_act[number].eq(side.want_act),
                want_pre[number].eq(side.want_pre),
                opened[number].eq(side.opened),
            ]
        m.d.comb += [
            refresh.offset.eq(self.refresh_offset),
            refresh.opened.eq(opened.any()),
            self.mac_allowed.eq(refresh.mac_allowed & refresh.idle),
            self.columns_allowed.eq(refresh.idle),
        ]
        return m
