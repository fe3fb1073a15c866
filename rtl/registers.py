"""Register port of the accelerators: configuration, status, counters.

One table of names and addresses for RTL, harness and documents. A register is written in the cycle
in which ``reg_we`` is set, and read one cycle after its address. Counters have 64 bits: low word at
the address given, high word behind it.
"""

from collections.abc import Collection, Sequence

from amaranth import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from spec.registers import (
    CONTROL_CLEAR,
    CONTROL_LOAD,
    CORE_REGISTERS,
    COUNTERS,
    ECC_COUNTERS,
    IDENTITY,
    REGISTERS,
    STATUS_UNCORRECTED,
    Access,
    counter_address,
)

ADDRESS_BITS = 8


class RegisterFile(wiring.Component):
    """The core's page of :mod:`spec.registers`; SCALE_X and SCALE_H with ``scales`` only.

    ``names`` leaves registers that are read and written out (a block alone has fewer), ``counters``
    counters.

    ``flips``: most words with flipped bits that may be read in a cycle; 0 for banks without check bits,
    of which there are no counters.

    Members
    -------
    reg_addr, reg_wdata, reg_we, reg_rdata : the port; byte addresses of 32-bit words.
    status : In(32)
    load, clear : Out(1)
        Pulses in the cycle after CONTROL was written.
    image_page, capacity, policy : Out(32)
    scale_x, scale_h : Out(32), with ``scales``
    events : In(ArrayLayout(range(most + 1), len(counters)))
        How many of each counter's events fall into this cycle, in the order of ``counters``.
    corrected, uncorrected : In(range(flips + 1)), with ``flips``
        The same of the words with flipped bits.
    place_expert, place_channel, place_value : Out, place_row, place_channels : Out(1)
        An entry of the placement tables is written in this cycle: an expert's first row in a channel,
        its set of channels.
    """

    def __init__(
        self,
        most: int = 1,
        *,
        scales: bool = False,
        names: Collection[str] = tuple(REGISTERS),
        counters: Sequence[str] = tuple(COUNTERS),
        flips: int = 0,
    ) -> None:
        self.counters = counters
        self.kept = [
            register.name
            for register in CORE_REGISTERS
            if register.access is Access.READ_WRITE and register.name in names and scales >= register.int8
        ]
        self.scales = tuple(name.lower() for name in self.kept if name.startswith("SCALE_"))
        self.flips = tuple(ECC_COUNTERS) if flips else ()
        super().__init__(
            {
                "reg_addr": In(ADDRESS_BITS),
                "reg_wdata": In(32),
                "reg_we": In(1),
                "reg_rdata": Out(32),
                "status": In(32),
                "load": Out(1),
                "clear": Out(1),
                **{name.lower(): Out(32) for name in self.kept},
                "events": In(data.ArrayLayout(range(most + 1), len(counters))),
                **dict.fromkeys(self.flips, In(range(flips + 1))),
                "place_expert": Out(16),
                "place_channel": Out(8),
                "place_value": Out(32),
                "place_row": Out(1),
                "place_channels": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        word = Signal(ADDRESS_BITS - 2)
        m.d.comb += word.eq(self.reg_addr[2:])
        m.d.sync += [self.load.eq(0), self.clear.eq(0), self.place_row.eq(0), self.place_channels.eq(0)]
        writable = {name: getattr(self, name.lower()) for name in self.kept}
        with m.If(self.reg_we):
            with m.Switch(word):
                with m.Case(REGISTERS["CONTROL"] >> 2):
                    m.d.sync += [
                        self.load.eq(self.reg_wdata[CONTROL_LOAD]),
                        self.clear.eq(self.reg_wdata[CONTROL_CLEAR]),
                    ]
                for name, register in writable.items():
                    with m.Case(REGISTERS[name] >> 2):
                        m.d.sync += register.eq(self.reg_wdata)
                with m.Case(REGISTERS["PLACE_EXPERT"] >> 2):
                    m.d.sync += Cat(self.place_expert, self.place_channel).eq(self.reg_wdata)
                with m.Case(REGISTERS["PLACE_ROW"] >> 2):
                    m.d.sync += [self.place_row.eq(1), self.place_value.eq(self.reg_wdata)]
                with m.Case(REGISTERS["PLACE_CHANNELS"] >> 2):
                    m.d.sync += [self.place_channels.eq(1), self.place_value.eq(self.reg_wdata)]

        events = {name: self.events[index] for index, name in enumerate(self.counters)}
        events |= {name: getattr(self, name) for name in self.flips}
        counters = {name: Signal(64, name=f"count_{name}") for name in events}
        for name, counter in counters.items():
            with m.If(self.clear):
                m.d.sync += counter.eq(0)
            with m.Else():
                m.d.sync += counter.eq(counter + events[name])
        status = self.status
        if self.flips:
            status = status | counters["uncorrected"].any() << STATUS_UNCORRECTED

        m.d.sync += self.reg_rdata.eq(0)
        with m.Switch(word):
            with m.Case(REGISTERS["IDENTITY"] >> 2):
                m.d.sync += self.reg_rdata.eq(IDENTITY)
            with m.Case(REGISTERS["STATUS"] >> 2):
                m.d.sync += self.reg_rdata.eq(status)
            for name, register in writable.items():
                with m.Case(REGISTERS[name] >> 2):
                    m.d.sync += self.reg_rdata.eq(register)
            for name, counter in counters.items():
                for half in range(2):
                    with m.Case((counter_address(name) >> 2) + half):
                        m.d.sync += self.reg_rdata.eq(counter.word_select(half, 32))
        return m
