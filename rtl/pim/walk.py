"""Walks over jobs: which group of which job each part of the channel is at."""

from amaranth import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.expert.jobs import JobPointer, job_record_layout
from rtl.expert.layouts import bits_for
from rtl.pim.layouts import PimConfig, group_layout
from rtl.ram import Ram, address_width


def of_kind(config: PimConfig, record, name: str):
    """Return a size of the job's expert: of a routed one, of the shared one, or of the router.

    Blocks of logits are hidden blocks; the router has no outputs.
    """
    values = [getattr(kind, name) for kind in config.kinds]
    value = Mux(record.shared, values[-1], values[0]) if len(values) == 2 else values[0]
    if config.router and hasattr(config.router, name):
        return Mux(record.router, getattr(config.router, name), value)
    return value


def of_router(config: PimConfig, record):
    """Return whether the job is a product with the router."""
    return record.router if config.router else Const(0)


def most_blocks(config: PimConfig) -> int:
    """Return the most blocks that a matrix has."""
    blocks = [max(kind.hidden_blocks, kind.out_blocks) for kind in config.kinds]
    return max(blocks + ([config.router.hidden_blocks] if config.router else []))


class GroupWalk(wiring.Component):
    """Take complete jobs in order, and of each the groups of tokens that share weight bursts.

    A job that waits in cycle c is shown from c + 1 on. ``done`` goes on to the next group; after the
    last one nothing is shown for at least a cycle.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    done : In(1)
    valid : Out(1), starts : Out(1)
        A job is taken in this cycle; its group is shown from the next.
    bank : Out(1), record : Out, group : Out(group_layout(config))
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        record = job_record_layout(config)
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(record, 2)),
                "done": In(1),
                "valid": Out(1),
                "starts": Out(record),
                "take": Out(1),
                "bank": Out(1),
                "record": Out(record),
                "group": Out(group_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.jobs = jobs = JobPointer()
        group_log2 = (config.group_tokens - 1).bit_length()
        last_group = Signal.like(self.group.number)
        last_token = self.record.last_token
        m.d.comb += [
            jobs.complete.eq(self.complete),
            jobs.next.eq(~self.valid & jobs.waiting),
            self.take.eq(jobs.next),
            self.starts.eq(Mux(jobs.bank, self.records[1].as_value(), self.records[0].as_value())),
            last_group.eq(last_token >> group_log2),
            self.group.last.eq(self.group.number == last_group),
            self.group.last_token.eq(
                Mux(self.group.last, last_token & (config.group_tokens - 1), config.group_tokens - 1)
            ),
        ]
        number = Signal.like(self.group.number)
        m.d.comb += self.group.number.eq(number)
        with m.If(self.done):
            m.d.sync += [number.eq(number + 1), self.valid.eq(~self.group.last)]
        with m.If(jobs.next):
            m.d.sync += [
                self.valid.eq(1),
                self.bank.eq(jobs.bank),
                self.record.eq(self.starts),
                number.eq(0),
            ]
        return m


class VisitWalk(wiring.Component):
    """Name the rows of each group in order: one visit per cycle, as soon as its side is free.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    base_we, base_expert, base_row : In
        Write port of the table of the experts' first rows.
    free : In(sides)
        Sides without a visit.
    valid : Out(1), side : Out, row : Out
        A side gets a visit in this cycle.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "base_we": In(1),
                "base_expert": In(config.expert_bits),
                "base_row": In(config.row_bits),
                "free": In(config.banks.sides),
                "valid": Out(1),
                "side": Out(config.side_bits),
                "row": Out(config.row_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        sides_log2 = (config.banks.sides - 1).bit_length()
        m.submodules.walk = walk = GroupWalk(config)
        experts = config.num_experts + (2 if config.router else 1)
        m.submodules.bases = bases = Ram(width=config.row_bits, depth=experts)
        counts = [config.banks.visits(kind) for kind in config.kinds]
        last = Mux(walk.record.shared, counts[-1], counts[0])
        if config.router:
            counts.append(config.banks.visits(config.router))
            last = Mux(walk.record.router, counts[-1], last)
        visit = Signal(range(max(counts)))
        last_visit = Signal()
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            bases.write.en.eq(self.base_we),
            bases.write.addr.eq(self.base_expert),
            bases.write.data.eq(self.base_row),
            bases.read_0.en.eq(walk.take),
            bases.read_0.addr.eq(walk.starts.expert),
            self.side.eq(visit[:sides_log2] if sides_log2 else 0),
            self.row.eq(bases.read_0.data + (visit >> sides_log2)),
            self.valid.eq(walk.valid & self.free.bit_select(self.side, 1)),
            last_visit.eq(visit == last - 1),
            walk.done.eq(self.valid & last_visit),
        ]
        with m.If(self.valid):
            m.d.sync += visit.eq(Mux(last_visit, 0, visit + 1))
        return m


def mac_layout(config: PimConfig):
    """Return what a tile's MAC takes along to the lanes.

    ``tile`` of the inputs, of a job that is ``shared`` or not, in its ``out`` (down) matrix or before;
    accumulators of this ``parity``, set ``up``; ``first`` starts them from zero; ``last_token`` of the
    group; ``unit_done`` ends a block of outputs, ``frees_inputs`` the use of the group's inputs. In integer
    and grouped formats ``scale`` marks a scale tile; with a router in the banks ``router`` its tiles. In
    grouped formats ``tile`` counts those of weights alone, a scale tile has one token, and ``group_first``,
    ``group_last``, ``first_group`` are as in :func:`rtl.expert.sequencer.slot_layout`.
    """
    grouped = ("group_first", "group_last", "first_group") if config.grouped else ()
    return data.StructLayout(
        {
            "tile": unsigned(config.tile_bits),
            "last_token": unsigned(bits_for(config.group_tokens)),
            "out": unsigned(1),
            "shared": unsigned(1),
            "up": unsigned(1),
            "parity": unsigned(1),
            "first": unsigned(1),
            "unit_done": unsigned(1),
            "frees_inputs": unsigned(1),
            **({"scale": unsigned(1)} if config.integer or config.grouped else {}),
            **dict.fromkeys(grouped, unsigned(1)),
            **({"router": unsigned(1)} if config.router else {}),
        }
    )


class MacWalk(wiring.Component):
    """Order of the MAC commands: hidden blocks (gate tiles, up tiles), then output blocks.

    A router has one matrix of blocks, which take a group's inputs as hidden blocks do. Wants to issue
    while a job is there and its inputs are in the registers, and, for a block's first tile, the block
    before the last has been read out. A scale tile of a grouped format needs no inputs.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    loaded : In
        Register writes of a token's inputs that are complete, for all tokens of the group; all of them with
        ``all_loaded``.
    all_loaded : In(1)
    hidden_blocks : In
        Hidden blocks of the group that are in the registers.
    block_read : In(1)
        A block's results have been read out.
    go : In(1)
        The command is issued.
    want : Out(1), side : Out, unit : Out, column : Out, tag : Out(mac_layout(config))
    last_token : Out, in a grouped format
        Of the group, whose pace scale tiles keep too.
    tile_done : Out(1), visit_done : Out(1), inputs_done : Out(1)
        With ``go``: the tile's, row's, group's inputs' last MAC.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "loaded": In(range(config.load_words + 1)),
                "all_loaded": In(1),
                "hidden_blocks": In(range(max(kind.hidden_blocks for kind in config.kinds) + 1)),
                "block_read": In(1),
                "go": In(1),
                "want": Out(1),
                "side": Out(config.side_bits),
                "unit": Out(config.unit_bits),
                "column": Out(config.column_bits),
                "tag": Out(mac_layout(config)),
                **({"last_token": Out(bits_for(config.group_tokens))} if config.grouped else {}),
                "tile_done": Out(1),
                "visit_done": Out(1),
                "inputs_done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        kinds, sides = config.kinds, config.banks.sides
        rows_log2 = (config.units - 1).bit_length()
        m.submodules.walk = walk = GroupWalk(config)
        record, group = walk.record, walk.group
        out = Signal()
        up = Signal()
        parity = Signal()
        block = Signal(range(most_blocks(config)))
        is_router = of_router(config, record)
        tile = Signal(self.tag.tile.shape())
        first_step = Signal()
        last_step = Signal()
        last_tile = Signal()
        last_matrix = Signal()
        last_block = Signal()
        block_done = Signal()
        group_done = Signal()
        # The last MAC of a tile of weights; the first tile of a block, by which its others are counted.
        weights_done, first_tile = self.tile_done, tile == 0
        if config.grouped:
            weights_done, first_tile = self._walk_groups(m, tile, last_tile, group)
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            walk.done.eq(group_done),
            first_step.eq(self.unit == 0),
            last_step.eq(self.unit == config.timing.mac_steps - 1),
            last_tile.eq(
                tile
                == Mux(
                    out,
                    of_kind(config, record, "met_hidden_tiles"),
                    of_kind(config, record, "met_in_tiles"),
                )
                - 1
            ),
            last_matrix.eq(out | up | is_router | (config.routed.num_up_matrices == 1)),
            last_block.eq(
                block
                == Mux(out, of_kind(config, record, "out_blocks"), of_kind(config, record, "hidden_blocks"))
                - 1
            ),
            self.tile_done.eq(self.go & last_step),
            block_done.eq(weights_done & last_tile & last_matrix),
            self.inputs_done.eq(block_done & last_block & ~out),
            group_done.eq(block_done & last_block & (out | is_router)),
            self.visit_done.eq(
                self.tile_done & ((self.column == config.banks.bursts_per_row - 1) | group_done)
            ),
        ]

        # The inputs of this tile.
        needed = Signal(range((1 << len(tile)) * config.routed.cols + 1))
        hidden_needed = Signal(range(max(kind.hidden_blocks for kind in kinds) + 1))
        inputs_ready = Signal()
        word = Signal(range(config.load_words))
        undrained = Signal(range(3))
        hidden_count = of_kind(config, record, "hidden_blocks")
        last_load = tile if config.load_parts == 1 else (tile + 1) * config.load_parts - 1
        may_issue = inputs_ready | self.tag.scale if config.grouped else inputs_ready
        m.d.comb += [
            # Blocks that hold the first (tile + 1) * cols hidden elements, as far as there are.
            needed.eq(((tile + 1) * config.routed.cols + config.units - 1) >> rows_log2),
            hidden_needed.eq(Mux(needed < hidden_count, needed, hidden_count)),
            # A tile beyond the last word holds the bias alone.
            word.eq(Mux(last_load < config.load_words, last_load, config.load_words - 1)),
            inputs_ready.eq(
                Mux(
                    out,
                    self.hidden_blocks >= hidden_needed,
                    self.all_loaded | (self.loaded > word),
                )
            ),
            self.want.eq(walk.valid & may_issue & ~(first_step & first_tile & ~up & (undrained == 2))),
        ]
        tag = self.tag
        ends_block = last_tile & last_matrix
        if config.grouped:
            ends_block = ends_block & ~tag.scale
        m.d.comb += [
            tag.tile.eq(tile),
            tag.last_token.eq(Mux(tag.scale, 0, group.last_token) if config.grouped else group.last_token),
            tag.out.eq(out),
            tag.shared.eq(record.shared),
            tag.up.eq(up),
            tag.parity.eq(parity),
            tag.first.eq(tile == 0),
            tag.unit_done.eq(ends_block),
            tag.frees_inputs.eq(ends_block & last_block & ~out),
        ]
        if config.integer:
            m.d.comb += tag.scale.eq(last_tile)
        if config.router:
            m.d.comb += tag.router.eq(is_router)
        starts_block = self.go & first_step & first_tile & ~up
        m.d.sync += undrained.eq(undrained + starts_block - self.block_read)
        with m.If(self.go):
            m.d.sync += self.unit.eq(Mux(last_step, 0, self.unit + 1))
        if config.grouped:
            with m.If(self.tile_done):
                m.d.sync += self.column.eq(self.column + 1)
            with m.If(weights_done):
                m.d.sync += tile.eq(Mux(last_tile, 0, tile + 1))
                with m.If(last_tile):
                    m.d.sync += up.eq(~last_matrix)
        else:
            with m.If(self.tile_done):
                m.d.sync += [tile.eq(Mux(last_tile, 0, tile + 1)), self.column.eq(self.column + 1)]
                with m.If(last_tile):
                    m.d.sync += up.eq(~last_matrix)
        with m.If(self.visit_done):
            m.d.sync += [self.column.eq(0), self.side.eq(Mux(self.side == sides - 1, 0, self.side + 1))]
        with m.If(block_done):
            m.d.sync += [parity.eq(~parity), block.eq(Mux(last_block, 0, block + 1))]
            with m.If(last_block):
                m.d.sync += out.eq(~(out | is_router))
        with m.If(group_done):
            m.d.sync += self.side.eq(0)
        return m

    def _walk_groups(self, m, tile, last_tile, group):
        """Count the tiles of groups and spans of a grouped format.

        Return "the last MAC of a tile of weights" and "the first tile of a block", which is a scale tile.
        """
        routed, tag = self.config.routed, self.tag
        scale = Signal(init=1)
        span_tile = Signal(range(routed.span_tiles))
        group_tile = Signal(range(routed.group_tiles))
        group_last = Signal()
        weights_done = Signal()
        m.d.comb += [
            weights_done.eq(self.tile_done & ~scale),
            group_last.eq(last_tile | (group_tile == routed.group_tiles - 1)),
            self.last_token.eq(group.last_token),
            tag.scale.eq(scale),
            tag.group_first.eq(group_tile == 0),
            tag.group_last.eq(group_last & ~scale),
            tag.first_group.eq(tile < routed.group_tiles),
        ]
        with m.If(self.tile_done & scale):
            m.d.sync += scale.eq(0)
        with m.If(weights_done):
            m.d.sync += [span_tile.eq(span_tile + 1), group_tile.eq(group_tile + 1)]
            with m.If(group_last):
                m.d.sync += group_tile.eq(0)
            with m.If(last_tile | (span_tile == routed.span_tiles - 1)):
                m.d.sync += [span_tile.eq(0), scale.eq(1)]
        return weights_done, (tile == 0) & scale


class InputWalk(wiring.Component):
    """Order of the register writes of a group's inputs: ``load_cols`` of them, in turn for all tokens.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    freed : In(1)
        The registers' last use by the group before is past.
    used : In(1)
        The group's last MAC that needs them has been issued.
    go : In(1)
    want : Out(1), bank : Out(1), group : Out, token : Out, word : Out
    loaded : Out, all_loaded : Out(1)
        As :class:`MacWalk` needs them.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "freed": In(1),
                "used": In(1),
                "go": In(1),
                "want": Out(1),
                "list_address": Out(address_width(2 << bits_for(config.max_tokens))),
                "token": Out(bits_for(config.group_tokens)),
                "word": Out(bits_for(config.load_words)),
                "loaded": Out(range(config.load_words + 1)),
                "all_loaded": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.walk = walk = GroupWalk(config)
        room = Signal(init=1)
        last_token = Signal()
        last_word = Signal()
        done = Signal()
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
            walk.done.eq(done),
            self.want.eq(walk.valid & room),
            last_token.eq(self.token == walk.group.last_token),
            last_word.eq(self.word == config.load_words - 1),
            done.eq(self.go & last_token & last_word),
            self.loaded.eq(self.word),
            self.list_address.eq(walk.group.number * config.group_tokens + self.token),
            self.list_address[-1].eq(walk.bank),
        ]
        with m.If(self.go):
            m.d.sync += self.token.eq(Mux(last_token, 0, self.token + 1))
            with m.If(last_token):
                m.d.sync += self.word.eq(Mux(last_word, 0, self.word + 1))
        with m.If(self.used):
            m.d.sync += self.all_loaded.eq(0)
        with m.If(self.freed):
            m.d.sync += room.eq(1)
        with m.If(done):
            m.d.sync += [self.all_loaded.eq(1), room.eq(0)]
        return m
