"""Our schedule in hardware: a planner that gives each command its cycle, and the buses that wait for it.

The planner goes through the program's column commands in order, one a cycle, and places each in the earliest
cycle that the table of constraints allows, and before it the PRE and ACT that it needs: in the past of what
was placed before, where the other banks were idle then. So it runs ahead, as far as its queues are deep, and
knows what the next refresh leaves time for. Times are stamps: the cycle of the model and ``EPOCH``.
"""

from amaranth import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.hdl import signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import tree
from rtl.expert.layouts import bits_for
from rtl.fifo import StreamFifo
from rtl.gemv.layouts import (
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
from spec.program import OP_BITS, ROW_BITS, STREAMED_LEAD, WORD_BITS, Op

EPOCH = 1 << 13
"""Stamp of the model's cycle 0: more than any distance, so that a command that never was is long ago."""
ROW_QUEUE, COLUMN_QUEUE = 8, 256
RECENT = 8
"""Row commands that are remembered to keep their bus to one a cycle."""
RECENT_IN_ORDER = 4
"""The same where no row is opened meanwhile: PRE and ACT of the row in use, and both sides' last PRE."""
FIRST_COMMAND, MARGIN = 1, 1
"""As in the model: the cycle of the first ACT, and cycles that are kept for the other side's PRE."""
ACT, PRE, RD, WR, REF = Command.ACT, Command.PRE, Command.RD, Command.WR, Command.REF
CHANNEL = (Level.BANK_GROUP, Level.SCOPE)
"""A command to all banks of a parity is one to every bank group."""


class State(enum.Enum):
    """What the planner does in a cycle."""

    NEXT = 0
    MODE = 1
    REGISTERS = 2
    MAC = 3
    WRITE = 4
    OPEN = 5
    ACTIVATE = 6
    CLOSE_EVEN = 7
    CLOSE_ODD = 8
    CLOSED = 9
    DONE = 10


def _stamped(shape):
    return data.StructLayout({"at": CYCLE_BITS, "what": shape})


class _Signals:
    """Registers of the planner, and what follows from them for the command at hand.

    Attributes
    ----------
    last : stamps of each command's last one to each side.
    opened, open_row : of each side.
    last_read, last_write, last_column, last_ref, last_act : stamps of the channel's last ones.
    singles : stamps of the last two ACTs of single banks.
    due : stamp of the next refresh.
    side, target : banks and row of the command at hand; ``home``, those of ``caller``, which goes on when a
        row has been opened or a refresh placed.
    bump : cycles that a row command must wait for its bus.
    """

    def __init__(self, config: ChannelConfig) -> None:
        def stamp(name):
            return Signal(CYCLE_BITS, name=name)

        def of_sides(shape, name):
            return Array(Signal(shape, name=f"{name}_{side}") for side in range(2))

        self.state = Signal(State)
        self.caller = Signal(State)
        self.last = {one: of_sides(CYCLE_BITS, one.name.lower()) for one in (ACT, PRE, RD, WR)}
        self.opened, self.open_row = of_sides(1, "opened"), of_sides(signed(ROW_BITS), "open_row")
        self.last_read, self.last_write = stamp("last_read"), stamp("last_write")
        self.last_column, self.last_ref, self.last_act = (
            stamp("last_column"),
            stamp("last_ref"),
            stamp("last_act"),
        )
        self.singles = [stamp(f"single_{n}") for n in range(2)]
        recent = RECENT if config.additions.prefetch else RECENT_IN_ORDER
        self.recent = [stamp(f"recent_{n}") for n in range(recent)]
        self.due = stamp("due")
        self.side = Signal()
        self.home = Signal()
        self.target = Signal(signed(ROW_BITS), name="target")
        self.bump = Signal(range(RECENT + 2), name="bump")
        # Weights: the row of each side, the next burst.
        self.rows = of_sides(ROW_BITS - 1, "row")
        self.mac_side = Signal(name="mac_side")
        self.column = Signal(config.column_bits, name="column")
        # Results: the row and burst of each side's next; the side of the last.
        self.result_row = of_sides(ROW_BITS - 1, "result_row")
        self.result_column = of_sides(config.column_bits, "result_column")
        self.place = Signal(name="place")
        self.is_result = Signal(name="is_result")
        self.write_column = Signal(config.column_bits, name="write_column")
        self.left = Signal(7)
        self.number = Signal(7)
        # A pass: its outputs and bursts, the registers of its inputs, the words of inputs.
        # (With padded tiles a pass has as many outputs as there are sums: one counter, which runs over.)
        sum_bits = 7 if config.additions.unpadded else bits_for(config.device.output_registers)
        self.outputs, self.output = (Signal(7, name=n) for n in ("outputs", "output"))
        self.sum = Signal(sum_bits, name="sum")
        self.bursts = Signal(20)
        self.burst = Signal(20)
        self.tokens = Signal(7)
        self.registers = Signal(7)
        self.read_register, self.write_register = (
            Signal(7, name=f"{name}_register") for name in ("read", "write")
        )
        self.gap = Signal(13)
        self.act_gap = Signal(11)
        self.words, self.base, self.next_base, self.needed, self.allowed, self.written = (
            Signal(INPUT_BITS, name=name)
            for name in ("words", "base", "next_base", "needed", "allowed", "written")
        )
        self.register_next = stamp("register_next")
        # Without a path of their own, register writes take their turn on the data bus.
        self.bus_at = stamp("bus_at")
        # Combinational.
        self.pre_at, self.act_at, self.read_at, self.write_at, self.mac_at, self.row_at = (
            stamp(f"{name}_at") for name in ("pre", "act", "read", "write", "mac", "row")
        )
        self.mode_at, self.mode_write_at = stamp("mode_at"), stamp("mode_write_at")
        self.row_taken = Signal(name="row_taken")
        self.row = Signal(_stamped(row_layout(config)), name="row_item")
        self.row_push = Signal()
        self.item = Signal(_stamped(issue_layout(config)), name="column_item")
        self.column_push = Signal()


class Planner(wiring.Component):
    """Give the commands of a program their cycles.

    Members
    -------
    i : In(stream.Signature(WORD_BITS))
        The program without its loops.
    o_row_0, o_row_1 : Out(stream.Signature), o_column : Out(stream.Signature)
        Stamped commands of each side, and with their work those of the column bus, each in the order of time.
    refi : Out(20), refresh : Out(1)
        Of the program's first word.
    end : Out(CYCLE_BITS), ended : Out(1)
        The stamp behind the last command, once it is known.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(WORD_BITS))),
                "o_row_0": Out(stream.Signature(_stamped(row_layout(config)))),
                "o_row_1": Out(stream.Signature(_stamped(row_layout(config)))),
                "o_column": Out(stream.Signature(_stamped(issue_layout(config)))),
                "refi": Out(20),
                "refresh": Out(1),
                "end": Out(CYCLE_BITS),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        s = _Signals(self.config)
        self._when(m, s)
        go = Signal()
        m.d.comb += [
            go.eq(self.o_row_0.ready & self.o_row_1.ready & self.o_column.ready),
            self.o_row_0.payload.eq(s.row),
            self.o_row_1.payload.eq(s.row),
            self.o_row_0.valid.eq(s.row_push & ~s.side),
            self.o_row_1.valid.eq(s.row_push & s.side),
            self.o_column.payload.eq(s.item),
            self.o_column.valid.eq(s.column_push),
        ]
        with m.If(go), m.Switch(s.state):
            with m.Case(State.NEXT), m.If(self.i.valid):
                self._next(m, s)
            with m.Case(State.MODE):
                self._mode(m, s)
            with m.Case(State.REGISTERS):
                self._registers(m, s)
            with m.Case(State.MAC):
                self._mac(m, s)
            with m.Case(State.WRITE):
                self._write(m, s)
            with m.Case(State.OPEN):
                self._close(m, s, s.state.eq(State.ACTIVATE))
            with m.Case(State.ACTIVATE):
                self._activate(m, s)
            with m.Case(State.CLOSE_EVEN):
                self._close(m, s, s.side.eq(1), s.state.eq(State.CLOSE_ODD))
            with m.Case(State.CLOSE_ODD):
                self._close(m, s, s.state.eq(State.CLOSED))
            with m.Case(State.CLOSED):
                self._closed(m, s)
        return m

    def _when(self, m, s):
        """Say from when on each command to the side at hand may come, by the table of constraints."""
        config = self.config

        def behind(before, after, *levels):
            return config.between(before, after, *levels)

        def same_bank(before, after):
            return s.last[before][s.side] + behind(before, after, Level.BANK)

        def latest(at, *terms):
            m.d.comb += at.eq(tree([term[:CYCLE_BITS] for term in terms], lambda a, b: Mux(a > b, a, b)))

        # Without the next row opened meanwhile: behind what is done in the one before.
        behind_column = [] if config.additions.prefetch else [s.last_column + 1]
        latest(
            s.pre_at,
            same_bank(ACT, PRE),
            same_bank(RD, PRE),
            same_bank(WR, PRE),
            *(Mux(s.state == State.OPEN, at, 0) for at in behind_column),
        )
        latest(
            s.act_at,
            same_bank(ACT, ACT),
            same_bank(PRE, ACT),
            s.last_ref + behind(REF, ACT, *CHANNEL),
            s.last_act + s.act_gap,
            *behind_column,
        )
        latest(s.read_at, same_bank(ACT, RD), s.last_read + s.gap, s.last_write + behind(WR, RD, *CHANNEL))
        write_gap = behind(WR, WR, *CHANNEL)
        latest(
            s.write_at,
            same_bank(ACT, WR),
            s.last_read + behind(RD, WR, *CHANNEL),
            s.last_write + write_gap,
        )
        if config.additions.register_path:
            # With the first MAC that reads a burst of inputs, it must be there.
            input_at = Signal(CYCLE_BITS)
            m.d.comb += input_at.eq(s.register_next + s.needed - s.written)
            latest(s.mac_at, s.read_at, Mux(self._first_output(s), input_at, 0))
        else:
            m.d.comb += s.mac_at.eq(s.read_at)
            latest(s.bus_at, s.last_read + behind(RD, WR, *CHANNEL), s.last_write + write_gap)
        # Single banks, on the way to all-bank mode.
        mode = self._view(Op.MODE)
        short, long = behind(ACT, ACT, Level.SCOPE), behind(ACT, ACT, Level.BANK_GROUP)
        latest(
            s.mode_at,
            s.singles[0] + Mux(mode.apart, long, short),
            s.singles[1] + long,
            Const(EPOCH + FIRST_COMMAND, CYCLE_BITS),
        )
        latest(s.mode_write_at, s.singles[0] + behind(ACT, WR, Level.BANK), s.last_write + write_gap)
        # A row command takes the first free cycle of its bus.
        taken = [s.row_at == one for one in s.recent]
        taken.append(self.refresh & (s.row_at == (s.due - (self.refi >> 1))[:CYCLE_BITS]))
        m.d.comb += [
            s.row_at.eq(Mux(s.state == State.ACTIVATE, s.act_at, s.pre_at) + s.bump),
            s.row_taken.eq(Cat(*taken).any()),
        ]

    def _first_output(self, s):
        """Whether the MAC at hand is the first that reads its burst of inputs."""
        return (s.output if self.config.additions.unpadded else s.sum) == 0

    def _last_output(self, s):
        """Whether it is the last one of its burst of inputs."""
        if self.config.additions.unpadded:
            return s.output + 1 == s.outputs
        return s.sum == self.config.device.output_registers - 1

    def _too_late(self, s, at, command):
        """Whether a command would leave its bank open when it must be closed for the next refresh."""
        between = self.config.between
        margin = {ACT: 2 + MARGIN, RD: 0, WR: MARGIN}[command]
        least = margin + between(command, PRE, Level.BANK) + between(PRE, REF, *CHANNEL)
        return self.refresh & (at + least > s.due)

    def _view(self, op):
        return data.View(word_layout(op), self.i.payload)

    def _next(self, m, s):
        """Take the next word of the program."""
        limits, inputs, group = (self._view(op) for op in (Op.LIMITS, Op.INPUTS, Op.GROUP))
        op = Signal(OP_BITS)
        m.d.comb += [op.eq(self.i.payload), self.i.ready.eq(op != Op.MODE)]
        with m.Switch(op):
            with m.Case(Op.LIMITS):
                m.d.sync += [
                    self.refi.eq(limits.refi),
                    self.refresh.eq(limits.refresh),
                    s.due.eq(EPOCH + (limits.refi >> 1)),
                    s.act_gap.eq(limits.act_gap),
                ]
            with m.Case(Op.MODE):
                self._mode_act(m, s)
            with m.Case(Op.REGISTERS):
                m.d.sync += [
                    s.left.eq(self._view(Op.REGISTERS).count),
                    s.register_next.eq(s.last_column + 1),
                    s.state.eq(State.REGISTERS),
                ]
            with m.Case(Op.INPUTS):
                m.d.sync += [
                    s.bursts.eq(inputs.bursts),
                    s.words.eq(inputs.words),
                    s.base.eq(s.next_base),
                    s.next_base.eq(s.next_base + inputs.words),
                ]
            with m.Case(Op.GROUP):
                m.d.sync += [s.tokens.eq(group.tokens), s.gap.eq(group.gap), s.registers.eq(group.registers)]
                m.d.sync += [s.mac_side.eq(0), s.column.eq(0), s.rows[0].eq(0), s.rows[1].eq(0)]
            with m.Case(Op.PASS):
                self._pass(m, s)
            with m.Case(Op.RESULTS):
                self._results(m, s)
            with m.Case(Op.WRITE):
                write = self._view(Op.WRITE)
                side = Signal()
                m.d.comb += side.eq(s.place ^ ~write.same)
                m.d.sync += [s.target.eq(write.row), s.left.eq(1), s.write_column.eq(0), s.is_result.eq(0)]
                self._go(m, s, State.WRITE, side)
            with m.Case(Op.CLOSE):
                m.d.sync += [s.side.eq(0), s.caller.eq(State.DONE), s.state.eq(State.CLOSE_EVEN)]

    def _go(self, m, s, state, side):
        m.d.sync += [s.state.eq(state), s.caller.eq(state), s.side.eq(side), s.home.eq(side)]

    def _mode_act(self, m, s):
        """ACT of a single bank; the word stays for its write."""
        mode = self._view(Op.MODE)
        m.d.comb += [
            s.row_push.eq(1),
            s.row.at.eq(s.mode_at),
            s.row.what.kind.eq(RowKind.ACT),
            s.row.what.bank.eq(mode.bank),
            s.row.what.row.eq(mode.row),
        ]
        m.d.sync += [s.singles[0].eq(s.mode_at), s.singles[1].eq(s.singles[0]), s.state.eq(State.MODE)]

    def _mode(self, m, s):
        """Write the bank's mode row; of its side it is the one that is closed later."""
        mode = self._view(Op.MODE)
        side = mode.bank[0]
        m.d.comb += [
            self.i.ready.eq(1),
            s.column_push.eq(1),
            s.item.at.eq(s.mode_write_at),
            s.item.what.command.kind.eq(ColumnKind.WR),
            s.item.what.command.bank.eq(mode.bank),
            s.item.what.command.row.eq(mode.row),
        ]
        m.d.sync += [
            s.opened[side].eq(1),
            s.open_row[side].eq(mode.row),
            s.last[ACT][side].eq(s.singles[0]),
            s.last[WR][side].eq(s.mode_write_at),
            s.last_write.eq(s.mode_write_at),
            s.last_column.eq(s.mode_write_at),
            s.state.eq(State.NEXT),
        ]

    def _registers(self, m, s):
        """Register writes without inputs, one a cycle, or on the data bus."""
        m.d.comb += [
            s.column_push.eq(1),
            s.item.at.eq(self._register_at(s)),
            s.item.what.command.kind.eq(ColumnKind.REG),
        ]
        m.d.sync += [*self._register_written(s), s.left.eq(s.left - 1)]
        with m.If(s.left == 1):
            m.d.sync += s.state.eq(State.NEXT)

    def _register_at(self, s):
        """Return when the next register may be written."""
        return s.register_next if self.config.additions.register_path else s.bus_at

    def _register_written(self, s):
        """Return what a register write changes."""
        if self.config.additions.register_path:
            return [s.register_next.eq(s.register_next + 1)]
        return [s.last_write.eq(s.bus_at), s.last_column.eq(s.bus_at)]

    def _pass(self, m, s):
        """Begin a pass behind the last column command."""
        m.d.sync += [
            s.outputs.eq(self._view(Op.PASS).outputs),
            s.target.eq(s.rows[s.mac_side]),
            s.needed.eq(s.tokens),
            s.allowed.eq(Mux(s.words < s.registers, s.words, s.registers)),
        ]
        for counter in (s.output, s.sum, s.burst, s.written, s.read_register, s.write_register):
            m.d.sync += counter.eq(0)
        if self.config.additions.register_path:
            with m.If(s.last_column >= s.register_next):
                m.d.sync += s.register_next.eq(s.last_column + 1)
        self._go(m, s, State.MAC, s.mac_side)

    def _results(self, m, s):
        """Find a row that holds the results of a pass."""
        results = self._view(Op.RESULTS)
        place = Signal()
        fits = Signal()
        row = Signal(ROW_BITS - 1)
        first = Signal(self.config.column_bits)
        behind = Signal(range(2 * self.config.dram.bursts_per_row + 1))
        row_bursts = self.config.dram.bursts_per_row
        m.d.comb += [
            place.eq(results.even_next | ~s.mac_side),
            fits.eq(s.result_column[place] + results.count <= row_bursts),
            row.eq(s.result_row[place] + ~fits),
            first.eq(Mux(fits, s.result_column[place], 0)),
            behind.eq(first + results.count),
        ]
        m.d.sync += [
            s.place.eq(place),
            s.target.eq(results.row - row),
            s.left.eq(results.count),
            s.number.eq(0),
            s.write_column.eq(first),
            s.is_result.eq(1),
            s.result_row[place].eq(row + (behind == row_bursts)),
            s.result_column[place].eq(Mux(behind == row_bursts, 0, behind)),
        ]
        self._go(m, s, State.WRITE, place)

    def _mac(self, m, s):
        """Place a MAC, or what must go before it."""
        own_path = self.config.additions.register_path
        command, work = s.item.what.command, s.item.what.work
        inputs = s.written != s.allowed
        if own_path:
            inputs = inputs & (s.register_next < s.mac_at)
        else:
            # All that the registers hold, before the first MAC that reads them and what that needs.
            with m.If(inputs):
                self._input(m, s)
        closed = ~s.opened[s.side] | (s.open_row[s.side] != s.target)
        with m.If(closed) if own_path else m.Elif(closed):
            m.d.sync += s.state.eq(State.OPEN)
        with m.Elif(self._too_late(s, s.mac_at, RD)):
            self._refresh(m, s)
        if own_path:
            with m.Elif(inputs):
                self._input(m, s)
        with m.Else():
            m.d.comb += [
                s.column_push.eq(1),
                s.item.at.eq(s.mac_at),
                command.kind.eq(ColumnKind.MAC),
                command.all_banks.eq(1),
                command.bank.eq(s.side),
                command.row.eq(s.target),
                command.column.eq(s.column),
                work.first.eq(s.burst == 0),
                work.register.eq(s.read_register),
                work.sum.eq(s.sum),
                work.last_token.eq(s.tokens - 1),
            ]
            m.d.sync += [
                s.last[RD][s.side].eq(s.mac_at),
                s.last_read.eq(s.mac_at),
                s.last_column.eq(s.mac_at),
            ]
            if own_path:
                with m.If(s.mac_at >= s.register_next):
                    m.d.sync += s.register_next.eq(s.mac_at + 1)
            self._advance(m, s)

    def _input(self, m, s):
        """Place the write of a register that carries inputs."""
        command, work = s.item.what.command, s.item.what.work
        m.d.comb += [
            s.column_push.eq(1),
            s.item.at.eq(self._register_at(s)),
            command.kind.eq(ColumnKind.REG),
            work.input.eq(1),
            work.register.eq(s.write_register),
            work.address.eq(s.base + s.written),
        ]
        last = s.write_register + 1 == s.registers
        m.d.sync += [
            *self._register_written(s),
            s.written.eq(s.written + 1),
            s.write_register.eq(Mux(last, 0, s.write_register + 1)),
        ]

    def _advance(self, m, s):
        """Go on to the next MAC: the next output, burst of inputs, row."""
        allowed = Signal(INPUT_BITS + 1)
        read_register = Signal(8)
        last_output = Signal()
        last_burst = Signal()
        last_column = Signal()
        additions = self.config.additions
        m.d.comb += [
            allowed.eq(s.allowed + (s.tokens if additions.register_path else s.registers)),
            read_register.eq(s.read_register + s.tokens),
            last_output.eq(self._last_output(s)),
            last_burst.eq(last_output & (s.burst + 1 == s.bursts)),
            last_column.eq(s.column == self.config.dram.bursts_per_row - 1),
        ]
        if additions.unpadded:
            m.d.sync += [
                s.output.eq(Mux(last_output, 0, s.output + 1)),
                s.sum.eq(Mux(last_output, 0, s.sum + s.tokens)),
            ]
        else:
            m.d.sync += s.sum.eq(Mux(last_output, 0, s.sum + 1))
        m.d.sync += s.column.eq(Mux(last_column, 0, s.column + 1))
        may_write = Mux(allowed > s.words, s.words, allowed)
        if not additions.register_path:
            # As many inputs as there are registers come at once, behind the last that is read.
            may_write = Mux(read_register == s.registers, may_write, s.allowed)
        with m.If(last_output):
            m.d.sync += [
                s.burst.eq(s.burst + 1),
                s.needed.eq(s.needed + s.tokens),
                s.allowed.eq(may_write),
                s.read_register.eq(Mux(read_register == s.registers, 0, read_register)),
            ]
        with m.If(last_column):
            m.d.sync += s.rows[s.side].eq(s.rows[s.side] + 1)
            with m.If(~last_burst):
                m.d.sync += [s.mac_side.eq(~s.side), s.side.eq(~s.side), s.home.eq(~s.side)]
                m.d.sync += s.target.eq(s.rows[~s.side])
        with m.If(last_burst):
            m.d.sync += s.state.eq(State.NEXT)

    def _write(self, m, s):
        """Place a write of results, or of a mode's row."""
        command, work = s.item.what.command, s.item.what.work
        with m.If(~s.opened[s.side] | (s.open_row[s.side] != s.target)):
            m.d.sync += s.state.eq(State.OPEN)
        with m.Elif(self._too_late(s, s.write_at, WR)):
            self._refresh(m, s)
        with m.Else():
            m.d.comb += [
                s.column_push.eq(1),
                s.item.at.eq(s.write_at),
                command.kind.eq(ColumnKind.WR),
                command.all_banks.eq(1),
                command.bank.eq(s.side),
                command.row.eq(s.target),
                command.column.eq(s.write_column),
                work.result.eq(s.is_result),
                work.sum.eq(s.number),
            ]
            m.d.sync += [
                s.last[WR][s.side].eq(s.write_at),
                s.last_write.eq(s.write_at),
                s.last_column.eq(s.write_at),
                s.number.eq(s.number + 1),
                s.write_column.eq(s.write_column + 1),
                s.left.eq(s.left - 1),
            ]
            with m.If(s.left == 1):
                m.d.sync += s.state.eq(State.NEXT)

    def _place_row(self, m, s, kind, row):
        m.d.comb += [
            s.row_push.eq(1),
            s.row.at.eq(s.row_at),
            s.row.what.kind.eq(kind),
            s.row.what.all_banks.eq(1),
            s.row.what.bank.eq(s.side),
            s.row.what.row.eq(row),
        ]
        m.d.sync += [s.bump.eq(0), Cat(*s.recent).eq(Cat(s.row_at, *s.recent[:-1]))]

    def _close(self, m, s, *following):
        """PRE of the side at hand, where it is open, and with it the ``following`` statements."""
        with m.If(~s.opened[s.side]):
            m.d.sync += following
        with m.Elif(s.row_taken):
            m.d.sync += s.bump.eq(s.bump + 1)
        with m.Else():
            self._place_row(m, s, RowKind.PRE, s.open_row[s.side])
            m.d.sync += [s.last[PRE][s.side].eq(s.row_at), s.opened[s.side].eq(0)]
            m.d.sync += following

    def _activate(self, m, s):
        """ACT of the row at hand, unless a refresh would come before it is of use."""
        with m.If((s.bump == 0) & self._too_late(s, s.act_at, ACT)):
            self._refresh(m, s)
        with m.Elif(s.row_taken):
            m.d.sync += s.bump.eq(s.bump + 1)
        with m.Else():
            self._place_row(m, s, RowKind.ACT, s.target)
            m.d.sync += [
                s.last[ACT][s.side].eq(s.row_at),
                s.last_act.eq(s.row_at),
                s.opened[s.side].eq(1),
                s.open_row[s.side].eq(s.target),
                s.state.eq(s.caller),
            ]

    def _refresh(self, m, s):
        m.d.sync += [s.side.eq(0), s.state.eq(State.CLOSE_EVEN)]

    def _closed(self, m, s):
        """Refresh in the cycle in which it is due, or end."""
        m.d.sync += [s.side.eq(s.home), s.state.eq(s.caller)]
        with m.If(s.caller == State.DONE):
            even, odd = s.last[PRE]
            m.d.sync += [self.end.eq(Mux(even > odd, even, odd) + 1), self.ended.eq(1)]
        with m.Else():
            m.d.sync += [s.last_ref.eq(s.due), s.due.eq(s.due + self.refi)]


class StreamedEngine(wiring.Component):
    """Issue a program's commands in the cycles that the :class:`Planner` gives them.

    Cycle 0 of the model is that of :func:`spec.program.first_cycle` on the buses.

    Members
    -------
    i : In(stream.Signature(WORD_BITS))
        The program without its loops.
    start : In(1)
    o_row : Out(row_layout(config)), o_column : Out(issue_layout(config))
        Commands, registered; kind 0 is none.
    done : Out(1)
        The program has ended: from the cycle behind its last command on.
    late : Out(1)
        A command came out of the planner behind its cycle; stays. It never does.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        super().__init__(engine_members(config))

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.planner = planner = Planner(config)
        connect_stream(m, wiring.flipped(self.i), planner.i)
        queues = []
        for name, port, depth in (
            ("row_0", planner.o_row_0, ROW_QUEUE),
            ("row_1", planner.o_row_1, ROW_QUEUE),
            ("column", planner.o_column, COLUMN_QUEUE),
        ):
            queue = m.submodules[name] = StreamFifo(port.payload.shape(), depth)
            connect_stream(m, port, queue.i)
            queues.append(queue)
        now = Signal(CYCLE_BITS)
        running = Signal()
        counts = Signal()
        ref_at = Signal(CYCLE_BITS)
        other_at = Signal(CYCLE_BITS)
        row = Signal(row_layout(config))
        column = Signal(issue_layout(config))
        finished = Signal()
        m.d.comb += [counts.eq(running & ~finished), finished.eq(planner.ended & (now >= planner.end))]
        with m.If(self.start & ~running):
            m.d.sync += [running.eq(1), now.eq(EPOCH - STREAMED_LEAD)]
        with m.Elif(counts):
            m.d.sync += now.eq(now + 1)
        for queue, out in zip(queues, (row, row, column), strict=True):
            ready = queue.o.valid & (queue.o.payload.at == now) & counts
            m.d.comb += queue.o.ready.eq(ready)
            with m.If(ready):
                m.d.comb += out.eq(queue.o.payload.what)
            with m.If(queue.o.valid & (queue.o.payload.at < now)):
                m.d.sync += self.late.eq(1)
        with m.If(now == EPOCH):
            m.d.sync += [ref_at.eq(EPOCH + (planner.refi >> 1)), other_at.eq(EPOCH + planner.refi)]
        with m.Elif(planner.refresh & counts):
            with m.If(now == ref_at):
                m.d.comb += row.kind.eq(RowKind.REF)
                m.d.sync += ref_at.eq(ref_at + planner.refi)
            with m.If(now == other_at):
                m.d.comb += row.kind.eq(RowKind.OTHER_REF)
                m.d.sync += other_at.eq(other_at + planner.refi)
        m.d.sync += [self.o_row.eq(row), self.o_column.eq(column), self.done.eq(finished)]
        return m
