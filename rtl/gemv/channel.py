"""A channel that runs command programs: program and inputs in, DRAM commands and results out."""

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.gemv.barrier import BarrierEngine
from rtl.gemv.layouts import (
    INPUT_BITS,
    ChannelConfig,
    ColumnKind,
    column_layout,
    row_layout,
    weights_layout,
)
from rtl.gemv.sequencer import PLACE_BITS, Sequencer
from rtl.gemv.streamed import StreamedEngine
from rtl.gemv.units import COUNTER_BITS, MacUnits, result_layout
from rtl.stream import connect_stream
from spec.device import Schedule
from spec.program import WORD_BITS


class ProgramChannel(wiring.Component):
    """Run a command program (:mod:`spec.program`) on a channel of DRAM with MAC units.

    The engine is that of the device's schedule; the same hardware runs the programs of all products that
    fit. A cycle is one tCK. Cycle models: :mod:`sim.gemv.streamed`, :mod:`sim.gemv.barrier`; their cycle 0 is
    that of :func:`spec.program.first_cycle` on the buses. Reference: :mod:`golden.gemv`. After a program,
    reset is needed for the next.

    Members
    -------
    start : In(1)
        Run the program; ignored until reset once it runs.
    prog_en : Out(1), prog_addr : Out(PLACE_BITS), prog_data : In(WORD_BITS)
    x_en : Out(1), x_addr : Out(INPUT_BITS), x_data : In(16 * lanes)
        Memories of the program and of the inputs; data one cycle later.
    o_row : Out(row_layout(config)), o_column : Out(column_layout(config))
        The command buses; kind 0 is no command.
    mem_en : Out(1), mem_addr : Out(weights_layout(config)), mem_data : In(units * burst_bits)
        The banks' data: a MAC's bursts of all units, ``storage_cycles`` later. With SECDED the check bits of
        a burst's words lie behind the burst.
    o : Out(stream.Signature(result_layout(config)))
        Writes of results to the banks; never refused.
    done : Out(1)
        The program has ended, and stays so.
    late : Out(1)
        A command missed its cycle; stays. It never does.
    corrected, uncorrected : Out(COUNTER_BITS), with SECDED
        Words with one flipped bit, which is corrected, and with two.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        streamed = config.device.schedule is Schedule.STREAMED
        self.engine = StreamedEngine(config) if streamed else BarrierEngine(config)
        counters = dict.fromkeys(("corrected", "uncorrected"), Out(COUNTER_BITS)) if config.secded else {}
        super().__init__(
            {
                "start": In(1),
                "prog_en": Out(1),
                "prog_addr": Out(PLACE_BITS),
                "prog_data": In(WORD_BITS),
                "x_en": Out(1),
                "x_addr": Out(INPUT_BITS),
                "x_data": In(16 * config.device.lanes),
                "o_row": Out(row_layout(config)),
                "o_column": Out(column_layout(config)),
                "mem_en": Out(1),
                "mem_addr": Out(weights_layout(config)),
                "mem_data": In(config.device.units * config.burst_bits),
                "o": Out(stream.Signature(result_layout(config))),
                "done": Out(1),
                "late": Out(1),
                **counters,
            }
        )

    def elaborate(self, platform):
        m = Module()
        engine = m.submodules.engine = self.engine
        m.submodules.sequencer = sequencer = Sequencer()
        m.submodules.units = units = MacUnits(self.config)
        connect_stream(m, sequencer.o, engine.i)
        connect_stream(m, units.o, wiring.flipped(self.o))
        command = engine.o_column.command
        m.d.comb += [
            sequencer.start.eq(self.start),
            engine.start.eq(self.start),
            self.prog_en.eq(sequencer.prog_en),
            self.prog_addr.eq(sequencer.prog_addr),
            sequencer.prog_data.eq(self.prog_data),
            self.o_row.eq(engine.o_row),
            self.o_column.eq(command),
            self.done.eq(engine.done),
            self.late.eq(engine.late),
            units.i.eq(engine.o_column.work),
            units.mac.eq(command.kind == ColumnKind.MAC),
            units.address.column.eq(command.column),
            units.address.side.eq(command.bank),
            units.address.row.eq(command.row),
            self.mem_en.eq(units.mac),
            self.mem_addr.eq(units.address),
            self.x_en.eq(units.x_en),
            self.x_addr.eq(units.x_addr),
            units.x_data.eq(self.x_data),
            units.mem_data.eq(self.mem_data),
        ]
        if self.config.secded:
            m.d.comb += [
                self.corrected.eq(units.corrected),
                self.uncorrected.eq(units.uncorrected),
            ]
        return m
