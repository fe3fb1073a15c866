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

    One write and one read are held at a time; where both wait they take turns. Either takes 4 cycles
    from its address (and data, whichever comes later) to its response: it is chosen, looked up, done. A
    write without all four strobes is refused: registers have 32 bits. In cycles without an access the
    address is that of STATUS, so that whoever watches ``rdata`` behind ``polls`` knows what the core does.
    Every output is a register, the readies but for an inverter. ``awprot``, ``arprot`` are not read.

    Members
    -------
    s_axi_... : the slave, see :func:`lite_members`.
    addr, wdata : Out, we : Out(1)
        A legal write to ``addr``, which is there from the cycle before on.
    rdata : In(32)
        What ``addr`` named in the cycle before.
    write_response, read_response : In(2)
        What an access in this cycle is answered with, to what ``addr`` was in the cycle before; not OKAY: it
        is refused.
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
        # An access is chosen, then looked up (what it is answered with, what is read), then done.
        idle = Signal(init=1)
        looked_up = Signal()
        writes = Signal()
        write = Signal()
        read = Signal()
        can_write = Signal()
        can_read = Signal()
        write_chosen = Signal()
        read_chosen = Signal()
        read_next = Signal()
        address = Signal(ADDRESS_BITS, init=REGISTERS["STATUS"])
        response = Signal(2)
        m.d.comb += [
            self.s_axi_awready.eq(~aw_held),
            self.s_axi_wready.eq(~w_held),
            self.s_axi_arready.eq(~ar_held),
            can_write.eq(aw_held & w_held & ~self.s_axi_bvalid),
            can_read.eq(ar_held & ~self.s_axi_rvalid),
            write_chosen.eq(idle & can_write & ~(can_read & read_next)),
            read_chosen.eq(idle & can_read & ~write_chosen),
            write.eq(looked_up & writes),
            read.eq(looked_up & ~writes),
            self.polls.eq(idle),
            self.addr.eq(address),
            response.eq(Mux(all_strobes, self.write_response, SLVERR)),
            self.we.eq(write & (response == OKAY)),
            self.refused_write.eq(write & (response != OKAY)),
            self.refused_read.eq(read & (self.read_response != OKAY)),
        ]
        m.d.sync += looked_up.eq(~idle & ~looked_up)
        with m.If(idle):
            m.d.sync += writes.eq(write_chosen)
            with m.If(write_chosen | read_chosen):
                m.d.sync += [idle.eq(0), address.eq(Mux(write_chosen, aw_addr, ar_addr))]
        with m.If(looked_up):
            m.d.sync += [idle.eq(1), address.eq(REGISTERS["STATUS"])]
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
                self.s_axi_rvalid.eq(1),
                self.s_axi_rresp.eq(self.read_response),
                self.s_axi_rdata.eq(Mux(self.read_response == OKAY, self.rdata, 0)),
                read_next.eq(0),
            ]
        return m


class AddressDecoder(wiring.Component):
    """Say what an access to an address is answered with, from a description of the registers.

    Unmapped addresses are answered with DECERR. SLVERR answers a write of what is only read, of what is
    ``locked`` while ``locked`` is set, and of the core's page while ``recovering`` is. All else is OKAY;
    a register that is only written reads as 0.

    Latency: a cycle from ``addr`` and ``wdata``, none from ``locked`` and ``recovering``.

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
        known = Signal()
        writable = Signal()
        locks = Signal()
        of_core = Signal()
        m.d.sync += [known.eq(0), writable.eq(0), locks.eq(0), of_core.eq(self.addr < BUS_PAGE)]
        with m.Switch(self.addr[2:]):
            for register in self.registers:
                with m.Case(register.address >> 2):
                    m.d.sync += [
                        known.eq(1),
                        writable.eq(register.access.writable),
                        locks.eq(self._locks(register)),
                    ]
        refuses = ~writable | (locks & self.locked) | (of_core & self.recovering)
        m.d.comb += [
            self.read_response.eq(Mux(known, OKAY, DECERR)),
            self.write_response.eq(Mux(known, Mux(refuses, SLVERR, OKAY), DECERR)),
        ]
        return m

    def _locks(self, register):
        """Return whether a write to a register is one that a lock refuses."""
        mask = sum(field.mask for field in register.fields if field.locked)
        return 1 if register.locked else (self.wdata & mask).any()
