"""A top with AXI ports whose ports run on another clock than all that is inside."""

from amaranth import Cat, Module, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In

from rtl.axi.top import AxiTop
from rtl.crossing import StreamCrossing
from rtl.stream import connect_stream

STREAM_DEPTH = 16
"""Beats that a stream's, an address' or a read beat's crossing holds."""
LITE_DEPTH = 4
LITE_CHANNELS = {
    "aw": ("awaddr", "awprot"),
    "w": ("wdata", "wstrb"),
    "b": ("bresp",),
    "ar": ("araddr", "arprot"),
    "r": ("rdata", "rresp"),
}
"""Channels of AXI4-Lite and their payloads."""


class AxiTwoClocks(wiring.Component):
    """A top whose AXI ports and interrupt are in the domain ``bus``; all else in ``sync``.

    Every channel crosses through an asynchronous FIFO of its own (:class:`rtl.crossing.StreamCrossing`), the
    interrupt through two flip-flops; so every rule of the ports holds as it does without, but for time:
    each way takes a cycle of the one clock and 3 to 4 of the other. Banks of ``pim`` stay in ``sync``.
    In Verilog ``aclk`` is the clock inside, ``bus_aclk`` that of the ports; both resets have to be
    asserted together, for 4 cycles of the slower clock at least.

    Parameters
    ----------
    top : not yet elaborated, made with ``waiting_beats=STREAM_DEPTH``: recovery has to empty the crossing
        of tokens too.

    Members
    -------
    Those of ``top``.
    """

    clock_domains = ("bus",)

    def __init__(self, top: AxiTop) -> None:
        if top.waiting_beats < STREAM_DEPTH:
            raise ValueError(f"waiting_beats must be at least {STREAM_DEPTH}, not {top.waiting_beats}")
        self.top = top
        if hasattr(top, "axi_read"):
            self.axi_read = top.axi_read
        super().__init__(dict(top.signature.members))

    def elaborate(self, platform):
        m = Module()
        # Whoever reads the Verilog meets "core" as the exporter's name for the whole.
        m.submodules.axi = top = self.top
        crossed = {"i", "o", "m_axis_tuser", "irq"}
        for channel, names in LITE_CHANNELS.items():
            crossed |= self._lite_channel(m, channel, names)
        self._cross(m, "i", self.i, top.i, inward=True)
        self._marked_output(m)
        m.submodules.irq_synchroniser = FFSynchronizer(top.irq, self.irq, o_domain="bus")
        for name, member in top.signature.members.items():
            mine, its = getattr(self, name), getattr(top, name)
            inward = member.flow == In
            if name in crossed:
                continue
            if not member.is_signature:
                m.d.comb += its.eq(mine) if inward else mine.eq(its)
            elif isinstance(member.signature, stream.Signature):
                self._cross(m, name, mine, its, inward=inward)
            else:
                wiring.connect(m, wiring.flipped(mine), its)
        return m

    def _crossing(self, m, name, shape, depth, *, inward):
        """Return a crossing into the top, or out of it."""
        domains = ("bus", "sync") if inward else ("sync", "bus")
        crossing = StreamCrossing(shape, depth, from_domain=domains[0], to_domain=domains[1])
        m.submodules[f"cross_{name}"] = crossing
        return crossing

    def _cross(self, m, name, mine, its, *, inward):
        """Connect a stream of the ports with that of the top."""
        crossing = self._crossing(m, name, its.payload.shape(), STREAM_DEPTH, inward=inward)
        outside = wiring.flipped(mine)
        connect_stream(m, outside if inward else its, crossing.i)
        connect_stream(m, crossing.o, its if inward else outside)

    def _marked_output(self, m):
        """Let the mark of an output beat cross with the beat."""
        top = self.top
        marked = data.StructLayout({"beat": top.o.payload.shape(), "user": unsigned(1)})
        crossing = self._crossing(m, "o", marked, STREAM_DEPTH, inward=False)
        m.d.comb += [
            crossing.i.payload.beat.eq(top.o.payload),
            crossing.i.payload.user.eq(top.m_axis_tuser),
            crossing.i.valid.eq(top.o.valid),
            top.o.ready.eq(crossing.i.ready),
            self.o.payload.eq(crossing.o.payload.beat),
            self.m_axis_tuser.eq(crossing.o.payload.user),
            self.o.valid.eq(crossing.o.valid),
            crossing.o.ready.eq(self.o.ready),
        ]

    def _lite_channel(self, m, channel, names):
        """Connect a channel of AXI4-Lite; returns the names of its ports."""
        inward = channel in ("aw", "w", "ar")
        valid, ready = f"s_axi_{channel}valid", f"s_axi_{channel}ready"
        payload = [f"s_axi_{name}" for name in names]
        source, sink = (self, self.top) if inward else (self.top, self)
        width = sum(len(Value.cast(getattr(self, name))) for name in payload)
        crossing = self._crossing(m, f"lite_{channel}", unsigned(width), LITE_DEPTH, inward=inward)
        m.d.comb += [
            crossing.i.payload.eq(Cat(getattr(source, name) for name in payload)),
            crossing.i.valid.eq(getattr(source, valid)),
            getattr(source, ready).eq(crossing.i.ready),
            Cat(getattr(sink, name) for name in payload).eq(crossing.o.payload),
            getattr(sink, valid).eq(crossing.o.valid),
            crossing.o.ready.eq(getattr(sink, ready)),
        ]
        return {valid, ready, *payload}
