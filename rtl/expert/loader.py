"""Weights from memory to the array: AXI4 read master, tile buffers."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay, times
from rtl.expert.jobs import JobPointer, job_record_layout
from rtl.expert.layouts import ADDRESS_BITS, PAGE_BITS, ExpertConfig, address_layout, read_layout
from rtl.stream import StreamRegister
from spec.geometry import ceil_div


class WeightReader(wiring.Component):
    """Ask for the bursts of each job's expert, jobs in order, ``max_outstanding`` at a time.

    A job waiting in cycle c has its first address on the bus in cycle c + 1, in a deep pipeline two cycles
    later; then one address per cycle. Two cycles without an address lie between jobs.

    Members
    -------
    complete : In(1), records : In
        From :class:`rtl.expert.jobs.JobLists`.
    image_page : In(PAGE_BITS)
        4 KiB page at which the weight image begins.
    burst_done : In(1)
        The last beat of a burst was taken.
    o_ar : Out(stream.Signature(address_layout()))
    """

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "image_page": In(PAGE_BITS),
                "burst_done": In(1),
                "o_ar": Out(stream.Signature(address_layout())),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        image = config.image
        bursts = [ceil_div(kind.num_bytes, image.burst_bytes) for kind in config.kinds]
        m.submodules.jobs = jobs = JobPointer()
        active = Signal()
        left = Signal(range(max(bursts) + 1))
        address = Signal(ADDRESS_BITS)
        outstanding = Signal(range(config.max_outstanding + 1))
        page = Signal(PAGE_BITS)
        fire = Signal()
        record = Signal(job_record_layout(config))
        complete, first_page = self.complete, self.image_page + image.router_pages
        pages = first_page + record.expert * image.expert_pages
        if config.deep:
            # The page of each bank's job is there before the job waits.
            complete = delay(m, self.complete, 2, "complete", control=True)
            of_bank = []
            for bank in range(2):
                offset = delay(m, times(self.records[bank].expert, image.expert_pages), 1, f"offset_{bank}")
                of_bank.append(delay(m, (first_page + offset)[:PAGE_BITS], 1, f"page_{bank}"))
            pages = Mux(jobs.bank, of_bank[1], of_bank[0])
        m.d.comb += [
            jobs.complete.eq(complete),
            record.eq(Mux(jobs.bank, self.records[1].as_value(), self.records[0].as_value())),
            page.eq(pages),
            self.o_ar.valid.eq(active & (outstanding != config.max_outstanding)),
            self.o_ar.payload.addr.eq(address),
            fire.eq(self.o_ar.valid & self.o_ar.ready),
            jobs.next.eq(~active & jobs.waiting),
        ]
        m.d.sync += outstanding.eq(outstanding + fire - self.burst_done)
        with m.If(jobs.next):
            m.d.sync += [
                active.eq(1),
                address.eq(Cat(Const(0, ADDRESS_BITS - PAGE_BITS), page)),
                left.eq(Mux(record.shared, bursts[-1], bursts[0])),
            ]
        with m.If(fire):
            m.d.sync += [address.eq(address + image.burst_bytes), left.eq(left - 1)]
            with m.If(left == 1):
                m.d.sync += active.eq(0)
        return m


class TileLoader(wiring.Component):
    """Sort read beats into two tile buffers and throw a job's padding away.

    A beat taken in cycle c is in its buffer in c + 2 (one cycle for the input register). A buffer
    that is released in a cycle takes its next beat in that cycle, in a deep pipeline in the next one: what
    fires then does not reach the memory's port in its cycle.

    Members
    -------
    complete : In(1), records : In
        From :class:`rtl.expert.jobs.JobLists`.
    i_r : In(stream.Signature(read_layout(beat_bits)))
    burst_done : Out(1)
    full : Out(1), tile : Out
        The older tile is complete; it is the one shown.
    release : In(1)
        It is used for the last time in this cycle.
    read_error : Out(1)
        A beat with an error response was taken.
    beat : Out(1)
        A beat was taken into a tile (padding not counted).
    """

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        tile = config.routed.tile_bytes * 8
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "i_r": In(stream.Signature(read_layout(config.beat_bits))),
                "burst_done": Out(1),
                "full": Out(1),
                "tile": Out(tile),
                "release": In(1),
                "read_error": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        tile_beats = config.tile_beats
        tiles = [kind.num_tiles for kind in config.kinds]
        bursts = [ceil_div(kind.num_bytes, config.image.burst_bytes) for kind in config.kinds]
        beats = [count * config.burst_beats for count in bursts]

        m.submodules.jobs = jobs = JobPointer()
        m.submodules.register = register = StreamRegister(read_layout(config.beat_bits))
        shared = Mux(jobs.bank, self.records[1].shared, self.records[0].shared)
        full = Signal(2)
        write = Signal()
        read = Signal()
        tile_beat = Signal(range(tile_beats))
        tiles_done = Signal(range(max(tiles) + 1))
        beats_done = Signal(range(max(beats)))
        padding = Signal()
        take = Signal()
        store = Signal()
        last_of_tile = Signal()
        last_of_job = Signal()
        wiring.connect(m, wiring.flipped(self.i_r), register.i)
        job_tiles = Mux(shared, tiles[-1], tiles[0])
        room = padding | ~full.bit_select(write, 1)
        if not config.deep:
            room = room | (self.release & (read == write))
        m.d.comb += [
            jobs.complete.eq(self.complete),
            *([] if config.deep else [padding.eq(tiles_done == job_tiles)]),
            register.o.ready.eq(room),
            take.eq(register.o.valid & register.o.ready),
            store.eq(take & ~padding),
            last_of_tile.eq(store & (tile_beat == tile_beats - 1)),
            last_of_job.eq(take & (beats_done == Mux(shared, beats[-1] - 1, beats[0] - 1))),
            jobs.next.eq(last_of_job),
            self.full.eq(full.bit_select(read, 1)),
            self.burst_done.eq(self.i_r.valid & self.i_r.ready & self.i_r.payload.last),
            self.read_error.eq(take & register.o.payload.resp.any()),
            self.beat.eq(store),
        ]
        buffers = []
        for bank in range(2):
            pieces = [
                Signal(config.beat_bits, name=f"tile_{bank}_{piece}", reset_less=True)
                for piece in range(tile_beats)
            ]
            for piece in range(tile_beats):
                with m.If(store & (write == bank) & (tile_beat == piece)):
                    m.d.sync += pieces[piece].eq(register.o.payload.data)
            buffers.append(Cat(*pieces))
        m.d.comb += self.tile.eq(Mux(read, buffers[1], buffers[0]))
        with m.If(self.release):
            m.d.sync += [full.bit_select(read, 1).eq(0), read.eq(~read)]
        with m.If(take):
            m.d.sync += beats_done.eq(beats_done + 1)
        with m.If(store):
            m.d.sync += tile_beat.eq(tile_beat + 1)
            with m.If(last_of_tile):
                m.d.sync += [
                    tile_beat.eq(0),
                    tiles_done.eq(tiles_done + 1),
                    full.bit_select(write, 1).eq(1),
                    write.eq(~write),
                ]
                if config.deep:
                    # A register: it is part of what lets a beat into any of the buffers' flip-flops.
                    m.d.sync += padding.eq(tiles_done == job_tiles - 1)
        with m.If(last_of_job):
            m.d.sync += [tiles_done.eq(0), beats_done.eq(0)]
            if config.deep:
                m.d.sync += padding.eq(0)
        return m
