"""Small designs for the tests of the exporter and of the native bench."""

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.ram import Ram
from rtl.stream import StreamRegister, connect_stream

PACKET = data.StructLayout({"data": 13, "last": 1})
WIDE = data.StructLayout({"data": 64, "address": 12})  # 76 bits: more than one word, not whole bytes

BURST_BEATS = 4
REG_BASE, REG_START, REG_BUSY, REG_SCRAP = range(4)


class Reader(wiring.Component):
    """Everything that the native bench can drive, in one toy.

    Stream ``i`` goes through two registers to ``o``. Bits of ``bug``: 0 flips the lowest bit of
    transfer 5; 1 takes ``o.valid`` back, 2 changes ``o.payload``, both in odd cycles. A write of n to
    register ``REG_START`` reads n bursts from address ``REG_BASE`` on and puts each
    word out at ``o_words`` with its number. ``REG_SCRAP`` has no reset.
    """

    axi_read = ("o_ar", "i_r", BURST_BEATS)

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(PACKET)),
                "o": Out(stream.Signature(PACKET)),
                "o_ar": Out(stream.Signature(data.StructLayout({"addr": 32}))),
                "i_r": In(stream.Signature(data.StructLayout({"data": 64, "last": 1}))),
                "o_words": Out(stream.Signature(WIDE)),
                "reg_addr": In(2),
                "reg_wdata": In(32),
                "reg_we": In(1),
                "reg_rdata": Out(32),
                "bug": In(3),
                "busy": Out(1),
                "wide": In(100),
                "wide_parity": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.stage_0 = first = StreamRegister(PACKET)
        m.submodules.stage_1 = second = StreamRegister(PACKET)
        connect_stream(m, wiring.flipped(self.i), first.i)
        connect_stream(m, first.o, second.i)
        odd = Signal()
        m.d.sync += odd.eq(~odd)
        shown = Signal()
        m.d.comb += [
            shown.eq(~(self.bug[1] & odd)),
            self.o.valid.eq(second.o.valid & shown),
            second.o.ready.eq(self.o.ready & shown),
            self.o.p.last.eq(second.o.p.last ^ (self.bug[2] & odd)),
        ]
        num_out = Signal(16)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += num_out.eq(num_out + 1)
        m.d.comb += self.o.p.data.eq(second.o.p.data ^ (self.bug[0] & (num_out == 5)))

        base = Signal(32)
        bursts_left = Signal(16)
        words_left = Signal(16)
        number = Signal(12)
        scrap = Signal(32, reset_less=True)
        m.d.comb += [
            self.o_ar.valid.eq(bursts_left != 0),
            self.o_ar.p.addr.eq(base),
            self.o_words.valid.eq(self.i_r.valid),
            self.o_words.p.data.eq(self.i_r.p.data),
            self.o_words.p.address.eq(number),
            self.i_r.ready.eq(self.o_words.ready),
            self.busy.eq(words_left != 0),
            self.wide_parity.eq(self.wide.xor()),
        ]
        with m.If(self.o_ar.valid & self.o_ar.ready):
            m.d.sync += [bursts_left.eq(bursts_left - 1), base.eq(base + BURST_BEATS * 8)]
        with m.If(self.i_r.valid & self.i_r.ready):
            m.d.sync += [words_left.eq(words_left - 1), number.eq(number + 1)]
        with m.If(self.reg_we):
            with m.Switch(self.reg_addr):
                with m.Case(REG_BASE):
                    m.d.sync += base.eq(self.reg_wdata)
                with m.Case(REG_START):
                    m.d.sync += [
                        bursts_left.eq(self.reg_wdata),
                        words_left.eq(self.reg_wdata * BURST_BEATS),
                    ]
                with m.Case(REG_SCRAP):
                    m.d.sync += scrap.eq(self.reg_wdata)
        with m.Switch(self.reg_addr):
            with m.Case(REG_BUSY):
                m.d.sync += self.reg_rdata.eq(self.busy)
            with m.Case(REG_SCRAP):
                m.d.sync += self.reg_rdata.eq(scrap)
            with m.Default():
                m.d.sync += self.reg_rdata.eq(base)
        return m


RAM_CONFIGS = (
    {"width": 12, "depth": 5, "granularity": 4, "num_read_ports": 2, "transparent": True},
    {"width": 12, "depth": 5, "granularity": 4, "transparent": False},
    {"width": 12, "depth": 8, "transparent": True},
    {"width": 12, "depth": 1, "granularity": 6, "transparent": True},
)
RAM_ROWS = 5
RAM_COMMAND = data.StructLayout(
    {"w_addr": 3, "w_data": 12, "w_en": 3, "r_addr_0": 3, "r_addr_1": 3, "r_en": 2}
)


class RamBench(wiring.Component):
    """Memories of several kinds under the same commands; what each read port shows comes out a cycle later.

    Members
    -------
    i : In(stream.Signature(RAM_COMMAND)), always ready
    o : Out(stream.Signature(all read data, 12 bits each)), which must always be ready
    """

    def __init__(self) -> None:
        ports = sum(config.get("num_read_ports", 1) for config in RAM_CONFIGS)
        super().__init__({"i": In(stream.Signature(RAM_COMMAND)), "o": Out(stream.Signature(12 * ports))})

    def elaborate(self, platform):
        m = Module()
        command = self.i.p
        shown = []
        m.d.comb += self.i.ready.eq(1)
        m.d.sync += self.o.valid.eq(self.i.valid)
        for index, config in enumerate(RAM_CONFIGS):
            m.submodules[f"ram_{index}"] = ram = Ram(**config)
            one_row = config["depth"] == 1
            m.d.comb += [
                ram.write.addr.eq(0 if one_row else command.w_addr),
                ram.write.data.eq(command.w_data),
                ram.write.en.eq(command.w_en & self.i.valid.replicate(3)),
            ]
            for port, read in enumerate(ram.reads):
                m.d.comb += [
                    read.addr.eq(0 if one_row else command[f"r_addr_{port}"]),
                    read.en.eq(command.r_en[port] & self.i.valid),
                ]
                shown.append(read.data)
        m.d.comb += self.o.payload.eq(Cat(*shown))
        return m
