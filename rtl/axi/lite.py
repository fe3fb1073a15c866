"""AXI4-Lite slave in front of registers that answer in the next cycle, and the decoder of what is legal."""

from collections.abc import Sequence

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from spec.registers import BUS_PAGE, REGISTERS, Register

ADDRESS_BITS = 12
"""Bits of the port's addresses: 4 KiB, the smallest range that an interconnect gives."""

OKAY, SLVERR, DECERR = 0, 2, 3
"""Responses of AXI (IHI 0022, A3.4.4)."""


def lite_members() -> dict:
    """Return the ports of an AXI4-Lite slave with ``ADDRESS_BITS`` and 32-bit data."""
    return {
        "s_axi_awaddr": In(ADDRESS_BITS),
        "s_axi_awprot": In(3),
        "s_axi_awvalid": In(1),
        "s_axi_awready": Out(1),
        "s_axi_wdata": In(32),
        "s_axi_wstrb": In(4),
        "s_axi_wvalid": In(1),
        "s_axi_wready": Out(1),
        "s_axi_bresp": Out(2),
        "s_axi_bvalid": Out(1),
        "s_axi_bready": In(1),
        "s_axi_araddr": In(ADDRESS_BITS),
        "s_axi_arprot": In(3),
        "s_axi_arvalid": In(1),
        "s_axi_arready": Out(1),
        "s_axi_rdata": Out(32),
        "s_axi_rresp": Out(2),
        "s_axi_rvalid": Out(1),
        "s_axi_rready": In(1),
    }


class AxiLite(wiring.Component):
    """Turn AXI4-Lite accesses into cycles of a plain register port, one after the other.

    One write and one read are held at a time; where both wait they take turns. A write takes 2 cycles
    from its address and data (whichever comes later) to its response, a read 3. A write without all
    four strobes is refused: registers have 32 bits. In cycles without an access the address is that of
    STATUS, so that whoever watches ``rdata`` behind ``polls`` knows what the core does.
    Every output is a register, the readies but for an inverter. ``awprot``, ``arprot`` are not read.

    Members
    -------
    s_axi_... : the slave, see :func:`lite_members`.
    addr, wdata : Out, write : Out(1), we : Out(1)
        An access to ``addr``; ``write`` if it is a write, ``we`` if it is also legal.
    rdata : In(32)
        What ``addr`` named in the cycle before.
    write_response, read_response : In(2)
        What an access to ``addr`` in this cycle is answered with; not OKAY: it is refused.
    polls : Out(1)
        ``addr`` is STATUS, for nobody's sake.
    refused_write, refused_read : Out(1)
        An access to ``addr`` is refused in this cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                **lite_members(),
                "addr": Out(ADDRESS_BITS),
                "wdata": Out(32),
                "we": Out(1),
                "rdata": In(32),
                "write_response": In(2),
                "read_response": In(2),
                "polls": Out(1),
                "refused_write": Out(1),
                "refused_read": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        aw_held = Signal()
        w_held = Signal()
        ar_held = Signal()
        aw_addr = Signal(ADDRESS_BITS)
        ar_addr = Signal(ADDRESS_BITS)
        all_strobes = Signal()
        write = Signal()
        read = Signal()
        capture = Signal()
        can_write = Signal()
        can_read = Signal()
        read_next = Signal()
        response = Signal(2)
        m.d.comb += [
            self.s_axi_awready.eq(~aw_held),
            self.s_axi_wready.eq(~w_held),
            self.s_axi_arready.eq(~ar_held),
            can_write.eq(aw_held & w_held & ~self.s_axi_bvalid),
            can_read.eq(ar_held & ~capture & ~self.s_axi_rvalid),
            write.eq(can_write & ~(can_read & read_next)),
            read.eq(can_read & ~write),
            self.polls.eq(~write & ~read),
            self.addr.eq(Mux(write, aw_addr, Mux(read, ar_addr, REGISTERS["STATUS"]))),
            response.eq(Mux(all_strobes, self.write_response, SLVERR)),
            self.we.eq(write & (response == OKAY)),
            self.refused_write.eq(write & (response != OKAY)),
            self.refused_read.eq(read & (self.read_response != OKAY)),
        ]
        with m.If(self.s_axi_awvalid & ~aw_held):
            m.d.sync += [aw_held.eq(1), aw_addr.eq(self.s_axi_awaddr)]
        with m.If(self.s_axi_wvalid & ~w_held):
            m.d.sync += [
                w_held.eq(1),
                self.wdata.eq(self.s_axi_wdata),
                all_strobes.eq(self.s_axi_wstrb.all()),
            ]
        with m.If(self.s_axi_arvalid & ~ar_held):
            m.d.sync += [ar_held.eq(1), ar_addr.eq(self.s_axi_araddr)]

        with m.If(self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)
        with m.If(write):
            m.d.sync += [
                aw_held.eq(0),
                w_held.eq(0),
                self.s_axi_bvalid.eq(1),
                self.s_axi_bresp.eq(response),
                read_next.eq(1),
            ]

        with m.If(self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)
        with m.If(read):
            m.d.sync += [
                ar_held.eq(0),
                capture.eq(1),
                self.s_axi_rresp.eq(self.read_response),
                read_next.eq(0),
            ]
        with m.If(capture):
            m.d.sync += [
                capture.eq(0),
                self.s_axi_rvalid.eq(1),
                self.s_axi_rdata.eq(Mux(self.s_axi_rresp == OKAY, self.rdata, 0)),
            ]
        return m


class AddressDecoder(wiring.Component):
    """Say what an access to an address is answered with, from a description of the registers.

    Unmapped addresses are answered with DECERR. SLVERR answers a write of what is only read, of what is
    ``locked`` while ``locked`` is set, and of the core's page while ``recovering`` is. All else is OKAY;
    a register that is only written reads as 0.

    Members
    -------
    addr, wdata : In
    locked, recovering : In(1)
    write_response, read_response : Out(2)
    """

    def __init__(self, registers: Sequence[Register]) -> None:
        self.registers = registers
        super().__init__(
            {
                "addr": In(ADDRESS_BITS),
                "wdata": In(32),
                "locked": In(1),
                "recovering": In(1),
                "write_response": Out(2),
                "read_response": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.write_response.eq(DECERR), self.read_response.eq(DECERR)]
        with m.Switch(self.addr[2:]):
            for register in self.registers:
                with m.Case(register.address >> 2):
                    m.d.comb += [
                        self.read_response.eq(OKAY),
                        self.write_response.eq(Mux(self._refuses(register), SLVERR, OKAY)),
                    ]
        return m

    def _refuses(self, register):
        """Return whether a write to a register is refused in this cycle."""
        if not register.access.writable:
            return 1
        mask = sum(field.mask for field in register.fields if field.locked)
        refuses = self.locked if register.locked else self.locked & (self.wdata & mask).any()
        return refuses | (self.recovering if register.address < BUS_PAGE else 0)
