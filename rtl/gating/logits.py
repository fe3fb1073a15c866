"""Logits that come from the banks: kept until a token has all of them, then given row by row."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.gating.layouts import logit_part_layout, logit_row_layout
from rtl.gating.product import ProductSequencer
from rtl.ram import Ram
from spec.geometry import RouterGeometry, ceil_div

GROUPS = 2
"""Groups of tokens whose logits fit in: one is read while the next one's are computed."""


class LogitStore(wiring.Component):
    """Collect the logits of groups of tokens; give those of a token in consecutive cycles.

    A token's last part in cycle c lets it be launched in c + 1, if ``may_launch`` is set and the launch
    before is ``geometry.interval`` cycles past. Its rows come from ``LATENCY`` + 1 cycles after the launch
    on. Groups come in the order in which they were given; room for them is counted outside.

    Members
    -------
    i : In(logit_part_layout(rows, group_tokens))
    given : In(1), given_last : In(1)
        A group was given to the banks; its last token ends the batch.
    may_launch : In(1), launch : Out(1), launch_last : Out(1)
        As :class:`rtl.gating.product.RouterProduct`'s.
    freed : Out(1)
        The last logits of a group are read in this cycle.
    rows : Out(logit_row_layout(logits_per_cycle))
    """

    PIPELINE = 1
    """Cycles from issuing a row's address to its logits."""

    def __init__(self, router: RouterGeometry, group_tokens: int) -> None:
        self.router = router
        self.group_tokens = group_tokens
        super().__init__(
            {
                "i": In(logit_part_layout(router.rows, group_tokens)),
                "given": In(1),
                "given_last": In(1),
                "may_launch": In(1),
                "launch": Out(1),
                "launch_last": Out(1),
                "freed": Out(1),
                "rows": Out(logit_row_layout(router.gate.logits_per_cycle)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from ``launch`` to the last row."""
        return self.router.gate.product_cycles + self.PIPELINE

    def elaborate(self, platform):
        m = Module()
        router, geometry, part = self.router, self.router.gate, self.i
        lanes = geometry.logits_per_cycle
        # A word holds a block or a row, whichever is larger; both are powers of two.
        width = max(router.rows, lanes)
        words = ceil_div(router.num_places, width)
        places = GROUPS * self.group_tokens
        m.submodules.logits = logits = Ram(
            width=32 * width, depth=places * words, granularity=32 * router.rows
        )

        # In: upper halves wait for the lower ones, which come next.
        upper = Signal(part.data.shape(), reset_less=True)
        write_group = Signal()
        block = Signal(range(router.hidden_blocks))
        blocks_log2 = (width // router.rows - 1).bit_length()
        whole = Signal()
        arrived = Signal()
        write_place = Signal(range(places))
        m.d.comb += [
            whole.eq(part.valid & part.low),
            arrived.eq(whole & part.last_block),
            write_place.eq(write_group * self.group_tokens + part.token),
            logits.write.addr.eq(write_place * words + (block >> blocks_log2)),
            logits.write.en.eq(whole << block[:blocks_log2]),
        ]
        pairs = [Cat(part.data[n], upper[n]) for n in range(router.rows)]
        m.d.comb += logits.write.data.eq(Cat(*pairs).replicate(width // router.rows))
        with m.If(part.valid & ~part.low):
            m.d.sync += upper.eq(part.data)
        with m.If(whole & part.last_token):
            m.d.sync += block.eq(Mux(part.last_block, 0, block + 1))
            with m.If(part.last_block):
                m.d.sync += write_group.eq(~write_group)

        # Which tokens are there, which end a group, which groups end a batch.
        pending = Signal(range(places + 1))
        ends_group = Signal(places)
        ends_batch = Signal(GROUPS)
        give_group = Signal()
        m.d.sync += pending.eq(pending + arrived - self.launch)
        with m.If(arrived):
            m.d.sync += ends_group.bit_select(write_place, 1).eq(part.last_token)
        with m.If(self.given):
            m.d.sync += [
                give_group.eq(~give_group),
                ends_batch.bit_select(give_group, 1).eq(self.given_last),
            ]

        # Out: the walk of the router product, without the products.
        m.submodules.sequencer = sequencer = ProductSequencer(geometry)
        next_group = Signal()
        next_token = Signal(range(self.group_tokens))
        next_place = Signal(range(places))
        next_ends = Signal()
        read_place = Signal(range(places))
        read_ends = Signal()
        m.d.comb += [
            next_place.eq(next_group * self.group_tokens + next_token),
            next_ends.eq(ends_group.bit_select(next_place, 1)),
            sequencer.may_launch.eq(self.may_launch & (pending != 0)),
            self.launch.eq(sequencer.launch),
            self.launch_last.eq(next_ends & ends_batch.bit_select(next_group, 1)),
            self.freed.eq(sequencer.release & read_ends),
        ]
        with m.If(self.launch):
            m.d.sync += [
                read_place.eq(next_place),
                read_ends.eq(next_ends),
                next_token.eq(Mux(next_ends, 0, next_token + 1)),
                next_group.eq(next_group ^ next_ends),
            ]
        rows_log2 = (width // lanes - 1).bit_length()
        row = sequencer.row
        m.d.comb += [
            logits.read_0.addr.eq(read_place * words + (row >> rows_log2)),
            logits.read_0.en.eq(sequencer.valid),
        ]
        within = delay(m, row[:rows_log2], self.PIPELINE, "within") if rows_log2 else 0
        m.d.comb += [
            self.rows.logits.as_value().eq(logits.read_0.data.word_select(within, 32 * lanes)),
            self.rows.valid.eq(delay(m, sequencer.valid, self.PIPELINE, "valid", control=True)),
            self.rows.first.eq(delay(m, sequencer.row == 0, self.PIPELINE, "first")),
            self.rows.last.eq(delay(m, sequencer.row == geometry.num_rows - 1, self.PIPELINE, "last")),
        ]
        return m
