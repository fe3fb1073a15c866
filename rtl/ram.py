"""Synchronous memory: one description, for ``amaranth.sim`` or as an instance of hand-written Verilog."""

from amaranth import ClockSignal, Const, Instance, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from rtl.arith import delay


class ExportPlatform:
    """Given as ``platform`` when a component is written as Verilog for simulators and synthesis.

    A :class:`Ram` then becomes an instance of the hand-written ``eb_ram``: Amaranth's own memories
    print every row, and initialise what no block RAM has to. Reset enters another clock domain
    (:class:`amaranth.lib.cdc.AsyncFFSynchronizer`, in asynchronous FIFOs) through flip-flops that sample it:
    no net of the Verilog resets asynchronously, and resets last for some cycles of both clocks anyway.
    """

    def get_async_ff_sync(self, synchronizer):
        """Return what is in the place of a synchronizer, as Amaranth asks its platforms for it."""
        m = Module()
        value = synchronizer.i
        for number in range(synchronizer._stages):
            stage = Signal(name=f"stage{number}", init=1, reset_less=True)
            m.d[synchronizer._o_domain] += stage.eq(value)
            value = stage
        m.d.comb += synchronizer.o.eq(value)
        return m


def address_width(depth: int) -> int:
    """Return the bits of an address of ``depth`` rows: at least one, so that no port has width 0."""
    return max(1, ceil_log2(depth))


class WriteSignature(wiring.Signature):
    """Write port: row, data, and one enable bit a lane of ``granularity`` bits.

    Members
    -------
    addr : Out(address_width(depth))
    data : Out(width)
    en : Out(width // granularity)
    """

    def __init__(self, width: int, depth: int, granularity: int) -> None:
        super().__init__(
            {"addr": Out(address_width(depth)), "data": Out(width), "en": Out(width // granularity)}
        )


class ReadSignature(wiring.Signature):
    """Read port: ``data`` shows row ``addr`` one cycle after ``en``, and holds until the next.

    Members
    -------
    addr : Out(address_width(depth))
    en : Out(1)
    data : In(width)
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__({"addr": Out(address_width(depth)), "en": Out(1), "data": In(width)})


class Ram(wiring.Component):
    """Memory with one write port and ``num_read_ports`` synchronous read ports.

    Read latency 1 cycle, one access per port and cycle. A read of the row that is being written
    returns the new lanes if ``transparent`` and the old row otherwise. Rows are undefined until
    written, read data until the first read (``amaranth.sim`` shows zeros), and so is what an address
    ``>= depth`` does. Reset changes nothing. Area: one copy of the memory per read port, the only
    shape that every synthesis tool maps to block RAM.

    Parameters
    ----------
    width : bits of a row.
    depth : rows; may be 1, and need not be a power of two.
    granularity : bits written by one enable bit; the whole row by default.
    num_read_ports : read ports, each with an address of its own.
    transparent : whether a read sees a write of the same cycle.
    apart : no row is read while it is written, and what comes out then is undefined: an instance of
        ``eb_ram_apart.v``, which synthesis maps to block RAM without a bypass behind it.

    Members
    -------
    write : In(WriteSignature(width, depth, granularity))
    read_0, read_1, ... : In(ReadSignature(width, depth))
    """

    LATENCY = 1

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        granularity: int | None = None,
        num_read_ports: int = 1,
        transparent: bool = False,
        apart: bool = False,
    ) -> None:
        granularity = width if granularity is None else granularity
        for name, value in (("width", width), ("depth", depth), ("num_read_ports", num_read_ports)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if granularity < 1 or width % granularity:
            raise ValueError(f"granularity must divide width={width}, not {granularity}")
        self.width = width
        self.depth = depth
        self.granularity = granularity
        self.num_read_ports = num_read_ports
        if transparent and apart:
            raise ValueError("transparent must not be set with apart, which promises that it does not matter")
        self.transparent = transparent
        self.apart = apart
        members = {"write": In(WriteSignature(width, depth, granularity))}
        for port in range(num_read_ports):
            members[f"read_{port}"] = In(ReadSignature(width, depth))
        super().__init__(members)

    @property
    def lanes(self) -> int:
        """Enable bits of the write port."""
        return self.width // self.granularity

    @property
    def reads(self) -> list:
        """The read ports in order."""
        return [getattr(self, f"read_{port}") for port in range(self.num_read_ports)]

    def elaborate(self, platform):
        if isinstance(platform, ExportPlatform):
            return self._elaborate_instances()
        return self._elaborate_memory()

    def _elaborate_memory(self):
        m = Module()
        m.submodules.mem = mem = memory.Memory(shape=unsigned(self.width), depth=self.depth, init=[])
        write_port = mem.write_port(granularity=self.granularity)
        m.d.comb += [
            write_port.addr.eq(self.write.addr),
            write_port.data.eq(self.write.data),
            write_port.en.eq(self.write.en),
        ]
        for read in self.reads:
            read_port = mem.read_port(transparent_for=(write_port,) if self.transparent else ())
            m.d.comb += [
                read_port.addr.eq(read.addr),
                read_port.en.eq(read.en),
                read.data.eq(read_port.data),
            ]
            if self.apart:
                # What is undefined is never what a user could take for a row.
                clash = Signal()
                with m.If(read.en):
                    m.d.sync += clash.eq(self.write.en.any() & (self.write.addr == read.addr))
                with m.If(clash):
                    m.d.comb += read.data.eq(~read_port.data)
        return m

    def _elaborate_instances(self):
        m = Module()
        for index, read in enumerate(self.reads):
            read_data = Signal(self.width, name=f"read_data_{index}")
            transparent = {} if self.apart else {"p_TRANSPARENT": int(self.transparent)}
            m.submodules[f"copy_{index}"] = Instance(
                "eb_ram_apart" if self.apart else "eb_ram",
                p_WIDTH=self.width,
                p_DEPTH=self.depth,
                p_ADDR_WIDTH=address_width(self.depth),
                p_LANES=self.lanes,
                **transparent,
                i_clk=ClockSignal("sync"),
                i_w_en=self.write.en,
                i_w_addr=self._row(self.write.addr),
                i_w_data=self.write.data,
                i_r_en=read.en,
                i_r_addr=self._row(read.addr),
                o_r_data=read_data,
            )
            m.d.comb += read.data.eq(read_data)
        return m

    def _row(self, addr):
        # With one row Amaranth's memory has no address; the instance's one bit must not matter either.
        return addr if self.depth > 1 else Const(0, 1)


class DelayLine(wiring.Component):
    """A value as it was ``cycles`` >= 2 cycles ago, kept in a RAM used as a ring.

    Members
    -------
    i : In(shape)
    o : Out(shape)
    """

    def __init__(self, shape, cycles: int) -> None:
        if cycles < 2:
            raise ValueError(f"cycles must be at least 2, not {cycles}")
        self.shape = shape
        self.cycles = cycles
        super().__init__({"i": In(shape), "o": Out(shape)})

    def elaborate(self, platform):
        m = Module()
        depth = self.cycles - 1
        m.submodules.ram = ram = Ram(width=Shape.cast(self.shape).width, depth=depth)
        position = Signal(range(depth))
        m.d.sync += position.eq(Mux(position == depth - 1, 0, position + 1))
        m.d.comb += [
            # The row that is written now is read first: it holds the value of ``depth`` cycles ago.
            ram.write.addr.eq(position),
            ram.write.data.eq(self.i),
            ram.write.en.eq(1),
            ram.read_0.addr.eq(position),
            ram.read_0.en.eq(1),
            Value.cast(self.o).eq(ram.read_0.data),
        ]
        return m


def delay_line(m, value, cycles: int, name: str):
    """Return ``value`` as it was ``cycles`` cycles ago: in registers, or in a RAM from 4 on."""
    if cycles < 4:
        return delay(m, value, cycles, name)
    line = m.submodules[name] = DelayLine(unsigned(len(value)), cycles)
    m.d.comb += line.i.eq(value)
    return line.o
