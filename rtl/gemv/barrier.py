"""The published kernel's controller in hardware: groups of accesses, one command of any kind a cycle.

The rules are those of :mod:`sim.gemv.barrier`. A group is served while the next one is loaded beside it.
"""

from amaranth import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.hdl import signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.fifo import StreamFifo
from rtl.gemv.layouts import (
    COUNT_BITS,
    CYCLE_BITS,
    INPUT_BITS,
    ChannelConfig,
    ColumnKind,
    RowKind,
    engine_members,
    issue_layout,
    row_layout,
    word_layout,
)
from rtl.stream import connect_stream
from spec.dram import Command, Level
from spec.program import OP_BITS, ROW_BITS, WORD_BITS, Op, Role, lead

WORDS_AHEAD = 32
ACT, PRE, RD, WR, REF = Command.ACT, Command.PRE, Command.RD, Command.WR, Command.REF


def access_layout(config: ChannelConfig):
    """Return an access of a group: ``left`` times; ``address`` of its first input."""
    return data.StructLayout(
        {
            "role": unsigned(3),
            "bank": unsigned(config.bank_bits),
            "row": signed(ROW_BITS),
            "left": unsigned(COUNT_BITS),
            "register": unsigned(6),
            "address": unsigned(INPUT_BITS),
        }
    )


class GroupLoader(wiring.Component):
    """Collect the accesses of the next group.

    Members
    -------
    i : In(stream.Signature(WORD_BITS))
        The program without its loops.
    take : In(1)
        The group is taken; the next one is collected from the next cycle on.
    ready : Out(1)
        The group is complete.
    accesses : Out(ArrayLayout(access_layout(config), banks))
        Those behind the ``last`` have ``left`` = 0.
    last : Out, all_banks : Out(1), closed : Out(1)
    refi, refresh, mac_gap, act_gap : Out
        Of the program's first word.
    stopped : Out(1)
        No group follows.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        limits = word_layout(Op.LIMITS)
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(WORD_BITS))),
                "take": In(1),
                "ready": Out(1),
                "accesses": Out(data.ArrayLayout(access_layout(config), config.dram.num_banks)),
                "last": Out(config.bank_bits),
                "all_banks": Out(1),
                "closed": Out(1),
                **{name: Out(limits[name].shape) for name in ("refi", "refresh", "mac_gap", "act_gap")},
                "stopped": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        base = Signal(ROW_BITS - 1)
        counter = Signal(ROW_BITS - 1)
        address = Signal(INPUT_BITS)
        place = Signal(self.config.bank_bits)
        access, limits = (data.View(word_layout(op), self.i.payload) for op in (Op.ACCESS, Op.LIMITS))
        op = Signal(OP_BITS)
        m.d.comb += [op.eq(self.i.payload), self.i.ready.eq(~self.ready)]
        with m.If(self.take):
            m.d.sync += [self.ready.eq(0), place.eq(0)]
            m.d.sync += [one.left.eq(0) for one in self.accesses]
        with m.If(self.i.valid & self.i.ready), m.Switch(op):
            with m.Case(Op.LIMITS):
                for name in ("refi", "refresh", "mac_gap", "act_gap"):
                    m.d.sync += getattr(self, name).eq(limits[name])
            with m.Case(Op.ORIGIN):
                m.d.sync += counter.eq(base)
            with m.Case(Op.ADVANCE):
                advance = data.View(word_layout(Op.ADVANCE), self.i.payload)
                m.d.sync += [base.eq(base + advance.rows), address.eq(0)]
            with m.Case(Op.STOP):
                m.d.sync += self.stopped.eq(1)
            with m.Case(Op.ACCESS):
                here = self.accesses[place]
                m.d.sync += [
                    here.role.eq(access.role),
                    here.bank.eq(access.bank),
                    here.row.eq(Mux(access.counted, counter.as_signed(), access.row)),
                    here.left.eq(access["count"]),
                    here.register.eq(access.register),
                    here.address.eq(address),
                    self.last.eq(place),
                    self.all_banks.eq(access.all_banks),
                    self.closed.eq(access.closed),
                    self.ready.eq(access.fence),
                    place.eq(place + 1),
                ]
                with m.If(access.counted):
                    m.d.sync += counter.eq(counter + 1)
                with m.If(access.role == Role.INPUT):
                    m.d.sync += address.eq(address + access["count"])
        return m


class BarrierEngine(wiring.Component):
    """Serve the groups of a program.

    Cycle 0 of the model is that of :func:`spec.program.first_cycle` on the buses.

    Members
    -------
    i : In(stream.Signature(WORD_BITS))
        The program without its loops.
    start : In(1)
    o_row : Out(row_layout(config)), o_column : Out(issue_layout(config))
        Commands, registered; kind 0 is none. There is never one on both.
    done : Out(1)
        The program has ended: from the cycle on in which its last read has returned.
    late : Out(1)
        A group was not loaded when it was its turn; stays. It never does.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        super().__init__(engine_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        banks = range(config.dram.num_banks)
        m.submodules.ahead = ahead = StreamFifo(unsigned(WORD_BITS), WORDS_AHEAD)
        m.submodules.loader = loader = GroupLoader(config)
        connect_stream(m, wiring.flipped(self.i), ahead.i)
        connect_stream(m, ahead.o, loader.i)
        now = Signal(signed(CYCLE_BITS), init=-1)
        running = Signal()
        with m.If(self.start & ~running):
            m.d.sync += [running.eq(1), now.eq(-lead(config.device))]
        with m.Elif(running):
            m.d.sync += now.eq(now + 1)

        # The group at hand, and the banks.
        accesses = [Signal(access_layout(config), name=f"access_{n}") for n in banks]
        last = Signal(config.bank_bits)
        all_banks = Signal()
        closed = Signal()
        column = Signal(COUNT_BITS)
        opened = [Signal(name=f"opened_{bank}") for bank in banks]
        rows = [Signal(signed(ROW_BITS), name=f"row_{bank}") for bank in banks]

        # What is issued in this cycle, and the bank that it goes to.
        acts = Signal(len(banks))
        accessed = Signal(len(banks))
        closes = Signal(len(banks))
        refreshes = Signal()
        other_refreshes = Signal()
        issued = {kind: Signal(name=f"issues_{kind.name.lower()}") for kind in (ACT, PRE, RD, WR)}
        bank = Signal(config.bank_bits)
        row = Signal(signed(ROW_BITS))
        is_mac = Signal()
        chosen = Signal(access_layout(config))
        free = self._timers(m, issued, bank, refreshes, all_banks, loader)

        pending = Signal()
        any_open = Signal()
        ref_at = Signal(signed(CYCLE_BITS))
        other_at = Signal(signed(CYCLE_BITS))
        with m.If(now == 0):
            m.d.sync += [ref_at.eq(loader.refi >> 1), other_at.eq(loader.refi)]
        with m.If(refreshes):
            m.d.sync += ref_at.eq(ref_at + loader.refi)
        with m.If(other_refreshes):
            m.d.sync += other_at.eq(other_at + loader.refi)
        m.d.comb += [
            pending.eq(loader.refresh & (now >= ref_at)),
            any_open.eq(Cat(*opened).any()),
        ]

        # What could be issued: per access of the group, and PRE per bank.
        wants = Signal(len(banks))
        opens = Signal(len(banks))
        wanted_open = Signal(len(banks))
        left_over = Signal(len(banks))
        emptied = Signal(len(banks))
        needs = []
        for n, access in enumerate(accesses):
            state = Array(Cat(opened[b], rows[b]) for b in banks)[access.bank]
            hit = Signal(name=f"hit_{n}")
            reads = Signal(name=f"reads_{n}")
            group = access.bank >> (config.dram.banks_per_group - 1).bit_length()
            mac = access.role == Role.MAC
            read_free = Array(free[RD])[access.bank] & Array(free["group", RD])[group] & free["scope", RD]
            write_free = Array(free[WR])[access.bank] & Array(free["group", WR])[group] & free["scope", WR]
            single = Array(free["group", ACT])[group] & free["scope", ACT] & free["window"]
            act_free = (
                Array(free[ACT])[access.bank] & free["refreshed"] & Mux(all_banks, free["act_gap"], single)
            )
            m.d.comb += [
                left_over[n].eq(access.left != 0),
                hit.eq(state[0] & (state[1:].as_signed() == access.row)),
                reads.eq(mac | (access.role == Role.READ)),
            ]
            alone = ~(left_over & ~(1 << n)).any()
            turn = left_over[n] & ((last != n) | alone)
            m.d.comb += [
                opens[n].eq(turn & ~state[0] & act_free),
                wants[n].eq(turn & hit & Mux(reads, read_free & (~mac | free["mac_gap"]), write_free)),
            ]
            needs.append(left_over[n] & hit)
        for b in banks:
            needed = Cat(*(need & (access.bank == b) for need, access in zip(needs, accesses, strict=True)))
            m.d.comb += wanted_open[b].eq(opened[b] & Array(free[PRE])[b] & (pending | ~needed.any()))

        # One of it goes.
        serving = Signal()
        m.d.comb += serving.eq((now > 0) & (left_over.any() | (closed & opened[1])))
        with m.If(serving):
            with m.If(loader.refresh & (now == other_at)):
                m.d.comb += other_refreshes.eq(1)
            with m.Elif(pending & ~any_open):
                m.d.comb += refreshes.eq(free["refreshed"])
            with m.Elif(pending & wanted_open.any()):
                m.d.comb += closes.eq(_lowest(wanted_open))
            with m.Elif((wants | opens).any()):
                first = _lowest(wants | opens)
                m.d.comb += [acts.eq(first & opens), accessed.eq(first & wants)]
            with m.Else():
                m.d.comb += closes.eq(_lowest(wanted_open))
        for n, access in enumerate(accesses):
            with m.If(acts[n] | accessed[n]):
                m.d.comb += [chosen.eq(access), bank.eq(access.bank), row.eq(access.row)]
            with m.If(accessed[n]):
                m.d.sync += [access.left.eq(access.left - 1), column.eq(column + 1)]
            m.d.comb += emptied[n].eq(~left_over[n] | (accessed[n] & (access.left == 1)))
        for b in banks:
            with m.If(closes[b]):
                m.d.comb += [bank.eq(b), row.eq(rows[b])]
                m.d.sync += opened[b].eq(0)
            with m.If(acts.any() & (bank == b)):
                m.d.sync += [opened[b].eq(1), rows[b].eq(row)]
        m.d.comb += [
            is_mac.eq(chosen.role == Role.MAC),
            issued[ACT].eq(acts.any()),
            issued[PRE].eq(closes.any()),
            issued[RD].eq(accessed.any() & (is_mac | (chosen.role == Role.READ))),
            issued[WR].eq(accessed.any() & ~issued[RD]),
        ]
        ends = Signal()
        m.d.comb += [
            ends.eq(emptied.all() & ~(closed & opened[1] & ~closes[1]) & (now >= 0)),
            loader.take.eq(ends & loader.ready),
        ]
        with m.If(loader.take):
            m.d.sync += [one.eq(loader.accesses[n]) for n, one in enumerate(accesses)]
            m.d.sync += [
                last.eq(loader.last),
                all_banks.eq(loader.all_banks),
                closed.eq(loader.closed),
                column.eq(0),
            ]
        with m.Elif(ends & ~loader.stopped):
            m.d.sync += self.late.eq(1)
        m.d.sync += self.done.eq(loader.stopped & ~loader.ready & ~serving & (now > 0) & free["returned"])
        self._issue(m, issued, bank, row, all_banks, chosen, column, refreshes, other_refreshes)
        return m

    def _timers(self, m, issued, bank, refreshes, all_banks, loader):
        """Return when each command may come again, from the table of constraints."""
        config = self.config
        dram, timing = config.dram, config.dram.timing
        kinds = (ACT, PRE, RD, WR)
        group_bits = (dram.banks_per_group - 1).bit_length()
        single_act = Signal()
        m.d.comb += single_act.eq(issued[ACT] & ~all_banks)

        def timer(name, after, level, here):
            """Count down from the last command that this one must keep away from."""
            events = []
            for before in kinds:
                clocks = config.between(before, after, level)
                # ACTs of all banks of a parity are exempt from what holds between banks.
                exempt = before == after == ACT and level is not Level.BANK
                if clocks:
                    events.append(((single_act if exempt else issued[before]) & here, clocks))
            return _countdown(m, name, events)

        free = {}
        for after in kinds:
            name = after.name.lower()
            free[after] = [
                timer(f"bank_{name}_{b}", after, Level.BANK, bank == b) for b in range(dram.num_banks)
            ]
            free["group", after] = [
                timer(f"group_{name}_{g}", after, Level.BANK_GROUP, (bank >> group_bits) == g)
                for g in range(dram.bank_groups)
            ]
            free["scope", after] = timer(f"scope_{name}", after, Level.SCOPE, 1)
        first_group = (bank >> group_bits) == 0
        free["refreshed"] = _countdown(m, "refreshed", [(refreshes, config.between(REF, ACT, Level.SCOPE))])
        free["mac_gap"] = _countdown(m, "mac_gap", [(issued[RD] & first_group, loader.mac_gap)])
        free["act_gap"] = _countdown(m, "act_gap", [(issued[ACT] & all_banks, loader.act_gap)])
        free["returned"] = _countdown(m, "returned", [(issued[RD], timing.cl + timing.burst + 2)])
        # The fourth ACT before the next.
        window = [Signal(range(timing.faw + 1), name=f"window_{n}") for n in range(4)]
        decayed = [Mux(left == 0, 0, left - 1) for left in window]
        for n, left in enumerate(window):
            following = decayed[n + 1] if n < 3 else max(0, timing.faw - 1)
            m.d.sync += left.eq(Mux(single_act, following, decayed[n]))
        free["window"] = window[0] == 0
        return free

    def _issue(self, m, issued, bank, row, all_banks, chosen, column, refreshes, other_refreshes):
        """Put the command on its bus."""
        config = self.config
        outputs = config.device.output_registers
        sum_bits = (outputs - 1).bit_length()
        fresh = Signal(outputs)
        row_out = Signal(row_layout(config))
        column_out = Signal(issue_layout(config))
        command, work = column_out.command, column_out.work
        # To all banks of a parity: of the first bank, or of the second.
        to_all = all_banks & (bank < 2)
        with m.If(issued[ACT] | issued[PRE]):
            m.d.comb += [
                row_out.kind.eq(Mux(issued[ACT], RowKind.ACT, RowKind.PRE)),
                row_out.all_banks.eq(to_all),
                row_out.bank.eq(bank),
                row_out.row.eq(row),
            ]
        with m.If(refreshes | other_refreshes):
            m.d.comb += row_out.kind.eq(Mux(refreshes, RowKind.REF, RowKind.OTHER_REF))
        mac = issued[RD] & (chosen.role == Role.MAC)
        with m.If(issued[RD] | issued[WR]):
            m.d.comb += [
                command.kind.eq(Mux(mac, ColumnKind.MAC, Mux(issued[RD], ColumnKind.RD, ColumnKind.WR))),
                command.all_banks.eq(to_all),
                command.bank.eq(bank),
                command.row.eq(row),
                command.column.eq(column),
            ]
        of_sum = column[:sum_bits]
        with m.If(mac):
            m.d.comb += [
                work.sum.eq(of_sum),
                work.first.eq(fresh.bit_select(of_sum, 1)),
                work.register.eq(chosen.register + (column >> sum_bits)),
            ]
            m.d.sync += fresh.bit_select(of_sum, 1).eq(0)
        with m.If(issued[WR]), m.Switch(chosen.role):
            with m.Case(Role.CLEAR):
                m.d.sync += fresh.eq(~0)
            with m.Case(Role.INPUT):
                m.d.comb += [
                    work.input.eq(1),
                    work.register.eq(column),
                    work.address.eq(chosen.address + column),
                ]
            with m.Case(Role.RESULT):
                m.d.comb += [work.result.eq(1), work.sum.eq(column)]
        m.d.sync += [self.o_row.eq(row_out), self.o_column.eq(column_out)]


def _countdown(m, name, events):
    """Count down from the last events, each with its clocks; return "none is too near"."""
    if not events:
        return 1
    most = max(clocks if isinstance(clocks, int) else (1 << len(clocks)) - 1 for _event, clocks in events)
    left = Signal(range(most + 1), name=f"{name}_left")
    after = Signal(range(most + 1), name=f"{name}_after")
    decayed = Signal.like(left, name=f"{name}_decayed")
    m.d.comb += decayed.eq(Mux(left == 0, 0, left - 1))
    for event, clocks in events:
        with m.If(event):
            m.d.comb += after.eq(clocks - 1)
    m.d.sync += left.eq(Mux(after > decayed, after, decayed))
    return left == 0


def _lowest(bits):
    """Return the lowest bit that is set, alone."""
    return (bits & (~bits + 1))[: len(bits)]
