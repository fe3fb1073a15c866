"""A channel of the near-memory engine: jobs in, DRAM commands out, weighted contributions out."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.expert.array import MacArray
from rtl.expert.engine import TokenStore
from rtl.expert.inputs import WeightedInputs
from rtl.expert.jobs import JobLists, list_layout
from rtl.expert.layouts import job_layout
from rtl.gating.layouts import logit_part_layout, token_layout
from rtl.int8 import SCALE_WORD_BITS
from rtl.pim.columns import ColumnEngine
from rtl.pim.layouts import ColumnKind, PimConfig, column_layout, row_layout, weights_layout
from rtl.pim.operands import Operands
from rtl.pim.readout import Readout
from rtl.pim.rows import REFRESH_BITS, RowEngine
from rtl.pim.walk import InputWalk, MacWalk, VisitWalk
from rtl.secded import CorrectBursts
from rtl.stream import connect_stream
from spec.registers import ECC_COUNTERS


class PimChannel(wiring.Component):
    """Compute experts in the DRAM banks where their weights lie.

    A job is an expert and its tokens of a window, computed in groups of ``group_tokens``; a group's
    tokens share every weight burst. Where the banks hold the router, a job may be tokens and the router.
    Per MAC command each unit multiplies its burst with the group's inputs of that tile; a block's results
    are read back over the bus, activated, and written to the registers as inputs of the down matrix;
    logits go to the gate as they are. Commands keep the DRAM's timing; a cycle is one tCK.
    Cycle model: :mod:`sim.pim`; layout of the weights: :mod:`spec.banks`; reference:
    :func:`golden.expert_bf16.ffn_bf16`, :func:`golden.expert_int8.ffn_int8`,
    :func:`golden.expert_grouped.ffn_grouped`. Reset empties the block;
    the table of first rows stays.

    Members
    -------
    i_token : In(stream.Signature(token_layout(stream_lanes)))
        Tokens in slot order (slot = token number modulo num_slots). Always ready.
    i : In(stream.Signature(job_layout(config)))
        A token must be in the store before its first entry is sent.
    base_we, base_expert, base_row : In
        Write port of the table of the experts' first rows; not while jobs run.
    refresh_offset : In(REFRESH_BITS)
        Cycle of the first refresh, counted from the first cycle after reset, in which it is read.
    o_row, o_column : Out(row_layout(config)), Out(column_layout(config))
        The command buses; kind 0 is no command.
    mem_en : Out(units), mem_addr : Out(weights_layout(config))
        The units that read a burst, and which tile it belongs to, in the cycle of the MAC command.
    mem_data : In(units * bits of a burst in the banks)
        The burst of each unit, ``storage_cycles`` later; with check bits those of its words behind it.
    scale_x, scale_h : In(SCALE_WORD_BITS), in integer formats
        Scales of tokens and of hidden activations; constant from the first token on.
    o : Out(stream.Signature(config.contribution))
        For each block of outputs all tokens of the group in turn.
    o_logits : Out(logit_part_layout(units, group_tokens)), where the channel has the router
        Of a job with the router: for each block of logits all tokens of the group in turn, two halves
        each. Never refused: the job was sent when there was room for all of it.
    retired : Out(1)
        A job of an expert is done with; its place is free from the next cycle on.
    fire : Out(1)
        A token's inputs meet a tile; none does a scale tile of a grouped format.
    refreshing : Out(1)
        From the decision to refresh until commands may follow.
    corrected, uncorrected : Out, with check bits in the banks
        Words read with one flipped bit, which was corrected, and with two.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        logits = logit_part_layout(config.units, config.group_tokens)
        pim = config.banks.pim
        self.correct = CorrectBursts(config.units, 8 * pim.dram.burst_bytes) if pim.secded else None
        flips = (
            {}
            if self.correct is None
            else dict.fromkeys(ECC_COUNTERS, Out(range(self.correct.num_words + 1)))
        )
        super().__init__(
            {
                "i_token": In(stream.Signature(token_layout(config.stream_lanes))),
                "i": In(stream.Signature(job_layout(config))),
                "base_we": In(1),
                "base_expert": In(config.expert_bits),
                "base_row": In(config.row_bits),
                "refresh_offset": In(REFRESH_BITS),
                "o_row": Out(row_layout(config)),
                "o_column": Out(column_layout(config)),
                "mem_en": Out(config.units),
                "mem_addr": Out(weights_layout(config)),
                "mem_data": In(config.banks.stored_tile_bytes * 8),
                **(dict.fromkeys(("scale_x", "scale_h"), In(SCALE_WORD_BITS)) if config.integer else {}),
                "o": Out(stream.Signature(config.contribution)),
                **({"o_logits": Out(logits)} if config.router else {}),
                "retired": Out(1),
                "fire": Out(1),
                "refreshing": Out(1),
                **flips,
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.tokens = tokens = TokenStore(config)
        m.submodules.jobs = jobs = JobLists(config)
        m.submodules.visits = visits = VisitWalk(config)
        m.submodules.macs = macs = MacWalk(config)
        m.submodules.loads = loads = InputWalk(config)
        m.submodules.row_engine = rows = RowEngine(config)
        m.submodules.columns = columns = ColumnEngine(config)
        m.submodules.operands = operands = Operands(config)
        m.submodules.array = array = MacArray(config.group)
        m.submodules.readout = readout = Readout(
            config, accumulator_depth=array.depth, hidden_depth=operands.hidden_depth
        )
        connect_stream(m, wiring.flipped(self.i_token), tokens.i)
        connect_stream(m, wiring.flipped(self.i), jobs.i)
        connect_stream(m, readout.o, wiring.flipped(self.o))
        wiring.connect(m, readout.list, jobs.read_drain)
        wiring.connect(m, readout.accumulators, array.drain)
        wiring.connect(m, readout.hidden, operands.hidden)
        if config.integer:
            m.d.comb += readout.scale_h.eq(self.scale_h)
        if tokens.quantises:
            m.d.comb += tokens.scale_x.eq(self.scale_x)
        for user in (visits, macs, loads, readout):
            m.d.comb += [user.complete.eq(jobs.complete), user.records.eq(jobs.records)]

        # Rows: named by the visits, used by the MACs.
        m.d.comb += [
            visits.base_we.eq(self.base_we),
            visits.base_expert.eq(self.base_expert),
            visits.base_row.eq(self.base_row),
            visits.free.eq(rows.free),
            rows.refresh_offset.eq(self.refresh_offset),
            rows.assign.eq(visits.valid),
            rows.assign_side.eq(visits.side),
            rows.assign_row.eq(visits.row),
            rows.mac.eq(columns.go_mac),
            rows.mac_side.eq(macs.side),
            rows.visit_done.eq(macs.visit_done),
        ]

        # Columns.
        m.d.comb += [
            columns.want_mac.eq(macs.want & rows.ready.bit_select(macs.side, 1) & rows.mac_allowed),
            columns.want_hidden.eq(readout.want_hidden & rows.columns_allowed),
            columns.want_read.eq(readout.want_read & rows.columns_allowed),
            columns.want_input.eq(loads.want & rows.columns_allowed),
            columns.mac_last.eq(macs.tile_done),
            columns.mac_last_token.eq(macs.last_token if config.grouped else macs.tag.last_token),
            macs.go.eq(columns.go_mac),
            macs.loaded.eq(loads.loaded),
            macs.all_loaded.eq(loads.all_loaded),
            macs.hidden_blocks.eq(readout.hidden_blocks),
            macs.block_read.eq(readout.block_read),
            loads.go.eq(columns.go_input),
            loads.used.eq(macs.inputs_done),
            loads.freed.eq(operands.inputs_freed),
            readout.go_hidden.eq(columns.go_hidden),
            readout.go_read.eq(columns.go_read),
            readout.block_ready.eq(array.unit_ready),
            jobs.retire.eq(readout.retire),
            self.retired.eq(readout.retire),
            self.refreshing.eq(~rows.columns_allowed),
        ]
        if config.router:
            m.d.comb += [
                self.o_logits.eq(readout.o_logits),
                self.retired.eq(readout.retire & ~readout.retire_router),
            ]
        self._command(m, rows, columns, macs)
        self._load(m, jobs, tokens, loads, operands)
        m.d.comb += [
            operands.mac.eq(columns.go_mac),
            operands.unit.eq(macs.unit),
            operands.tile_done.eq(macs.tile_done),
            operands.tag.eq(macs.tag),
            operands.weights.eq(self._weights(m)),
            array.fire.eq(operands.fire),
            array.slot.eq(operands.slot),
            array.x.eq(operands.x),
            array.tile.eq(operands.tile),
            self.fire.eq(operands.fire & ~operands.slot.scale if config.grouped else operands.fire),
        ]
        return m

    def _weights(self, m):
        """Return the units' bursts, corrected where the banks hold check bits."""
        if self.correct is None:
            return self.mem_data
        m.submodules.correct = correct = self.correct
        storage_cycles = self.config.banks.pim.storage_cycles
        m.d.comb += [
            correct.en.eq(delay(m, self.mem_en, storage_cycles, "units_read", control=True)),
            correct.data.eq(self.mem_data),
            *(getattr(self, name).eq(getattr(correct, name)) for name in ECC_COUNTERS),
        ]
        return correct.o

    def _command(self, m, rows, columns, macs):
        """Put the commands on the buses, and the request to the storage beside the MAC."""
        config = self.config
        command = Signal(column_layout(config))
        units = Signal(config.units)
        address = Signal(weights_layout(config))
        with m.If(columns.go_mac):
            m.d.comb += [
                command.kind.eq(ColumnKind.MAC),
                command.side.eq(macs.side),
                command.unit.eq(macs.unit),
                command.column.eq(macs.column),
                units.eq(~0 if config.timing.mac_steps == 1 else 1 << macs.unit),
                address.column.eq(macs.column),
                address.side.eq(macs.side),
                address.row.eq(rows.rows[macs.side]),
            ]
        with m.Elif(columns.go_hidden | columns.go_input):
            m.d.comb += command.kind.eq(ColumnKind.WRITE)
        with m.Elif(columns.go_read):
            m.d.comb += command.kind.eq(ColumnKind.READ)
        m.d.sync += [self.o_column.eq(command), self.mem_en.eq(units), self.mem_addr.eq(address)]
        m.d.comb += self.o_row.eq(rows.o)

    def _load(self, m, jobs, tokens, loads, operands):
        """Fetch what an input write carries: the token's slot, then its word, then into the registers.

        A word of the registers may take several writes, each of which brings its part of it. The product with
        a weight makes that later, still before the word is first read for a MAC
        (:class:`spec.banks.BankGeometry` sees to that).
        """
        config = self.config
        entry = list_layout(config)(jobs.read_mac.data)
        slot = entry.slot
        inputs, wait = tokens.read.data, 2 + config.image.input_cycles
        parts = config.load_parts
        parts_log2 = (parts - 1).bit_length()
        load_word, writes = loads.word, loads.go
        if parts > 1:
            load_word, part = loads.word >> parts_log2, loads.word[:parts_log2]
            writes = Signal(parts)
            m.d.comb += writes.eq(loads.go << part)
        if config.weighted_inputs:
            m.submodules.weighted = weighted = WeightedInputs(config, config.load_cols)
            if parts > 1:
                inputs = inputs.word_select(delay(m, part, 2, "load_part"), config.load_cols * 16)
            m.d.comb += [
                weighted.en.eq(~0),
                weighted.i.eq(inputs),
                weighted.weight.eq(delay(m, entry.input_weight, 1, "load_weight")),
            ]
            if config.integer:
                m.d.comb += weighted.scale_x.eq(self.scale_x)
            inputs = weighted.o.replicate(parts) if parts > 1 else weighted.o
        word = delay(m, load_word, 1, "load_word")
        address = Signal(range(operands.input_depth + 1))
        m.d.comb += [
            jobs.read_mac.addr.eq(loads.list_address),
            jobs.read_mac.en.eq(loads.go),
            tokens.read.addr.eq(slot * config.token_words + word),
            tokens.read.en.eq(delay(m, loads.go, 1, "load_reads", control=True)),
            address.eq(loads.token * config.token_words + load_word),
            operands.inputs.addr.eq(delay(m, address, wait, "load_address")),
            operands.inputs.data.eq(inputs),
            operands.inputs.en.eq(delay(m, writes, wait, "load_writes", control=True)),
        ]
