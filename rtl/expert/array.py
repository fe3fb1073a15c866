"""The MAC array: rows x cols products per cycle into fp32 or int32 accumulators."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.expert.layouts import EngineConfig, bits_for
from rtl.expert.sequencer import slot_layout
from rtl.grouped import DecodeElements, DualBurst, ScaleSum, SumInPairs, f32_of_bf16, factor_of
from rtl.int8 import DualIntegerBurst, IntegerAccumulate, IntegerBurst, scale_of
from rtl.ram import Ram, ReadSignature
from spec.design import Multiplier
from spec.geometry import SCALE_BYTES


class MacArray(wiring.Component):
    """Multiply a tile with a token's inputs and add the sums to that token's accumulators.

    A slot fired in cycle c is written in c + ``latency``; ``unit_ready`` follows a slot that is marked
    ``unit_done`` by ``latency`` cycles. In a deep pipeline a slot and its tile go through a register first,
    and what is read of the accumulators through one. Two sets of accumulators (gate, up) of ``max_tokens``
    tokens, each twice (parity), so that one unit is drained while the next is computed.

    In an integer format the sums are integers until a token meets the scale tile: that slot adds the bias,
    scales the sum and leaves it in the accumulator as the fp32 pattern of a bf16 number.

    In a grouped format a group has sums of its own, for each token one; that of its last tile is scaled and
    added to the accumulators, which takes 5 cycles more. Where a tile holds several groups (beside banks),
    their scaled sums are added in pairs before, 3 cycles for each doubling. A scale tile waits beside the
    rows until the slots that fired before it have been scaled; then it becomes the rows' scales, the next
    one lowest.

    With dual multipliers, in all formats but bf16, a multiplier makes the products of two rows with an input,
    at the same cycles.

    Members
    -------
    fire : In(1), slot : In(slot_layout(config)), x : In(cols * element_bits)
    tile : In(8 * tile_bytes)
    unit_ready : Out(1)
    drain : In(ReadSignature)
        Address = parity and token; gate results in the low half of the data, up in the high half
        (two-matrix FFNs have the low half only).
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.sets = config.routed.num_up_matrices
        self.depth = 2 << bits_for(config.max_tokens)
        width = config.routed.rows * 32
        super().__init__(
            {
                "fire": In(1),
                "slot": In(slot_layout(config)),
                "x": In(config.routed.cols * config.element_bits),
                "tile": In(config.routed.tile_bytes * 8),
                "unit_ready": Out(1),
                "drain": In(ReadSignature(width * self.sets, self.depth)),
            }
        )

    @property
    def registers(self) -> int:
        """Registers before the products, and between accumulators and additions: in a deep pipeline one."""
        return int(self.config.deep)

    @property
    def sum_latency(self) -> int:
        """Cycles from the products to their sum with what was there before."""
        return self.config.burst_latency + self.config.accumulate_latency

    @property
    def latency(self) -> int:
        """Cycles from a slot to its sums' being written."""
        of_groups = self.scaled_latency + self.config.accumulate_latency if self.config.grouped else 0
        return self.registers + self.sum_latency + of_groups

    @property
    def scaled_latency(self) -> int:
        """Cycles from a group's sum to what is added to the total: the product, then sums in pairs."""
        pipeline, groups = self.config.pipeline, self.config.routed.tile_groups
        return ScaleSum.latency_of(pipeline) + SumInPairs.latency_of(groups, pipeline)

    def _slot(self, m):
        """Return the slot, whether it fires, and the tile, as they stand at the products."""
        wait = self.registers
        return (
            delay(m, self.slot.as_value(), wait, "slot"),
            delay(m, self.fire, wait, "fire", control=True),
            delay(m, self.tile, wait, "tile"),
        )

    def elaborate(self, platform):
        m = Module()
        if self.config.grouped:
            self._elaborate_grouped(m)
            return m
        rows = self.config.routed.rows
        registers, cycles = self.registers, self.config.accumulate_latency
        assert 1 + registers + cycles + self.config.deep <= self.config.array_distance
        slot, fire, tile = self._slot(m)
        before = self.config.burst_latency - 1 - registers
        valid_read = delay(m, fire, before, "valid_read", control=True)
        slot_read = delay(m, slot, before, "slot_read")
        slot_shown = delay(m, slot_read, 1, "slot_add")
        slot_add = delay(m, slot_shown, registers, "slot_before")
        layout = slot_layout(self.config)
        read, shown, add = layout(slot_read), layout(slot_shown), layout(slot_add)
        write = layout(delay(m, slot_add, cycles, "slot_write"))
        valid_write = delay(m, valid_read, 1 + registers + cycles, "valid_write", control=True)
        m.d.comb += self.unit_ready.eq(valid_write & write.unit_done)

        rams = self._accumulators(m, read, valid_read, write, valid_write)
        old = Signal(rows * 32)
        m.d.comb += old.eq(Mux(shown.up, rams[-1].read_0.data, rams[0].read_0.data))
        scales_go = fire & layout(slot).scale if self.config.integer else None
        for row in range(rows):
            weights = tile.word_select(row, len(tile) // rows)
            start = delay(m, Mux(shown.first, 0, old.word_select(row, 32)), registers, f"before_{row}")
            if self.config.integer:
                total = self._row_int8(m, row, weights, start, add, scales_go)
            else:
                total = self._row_bf16(m, row, weights, start)
            for ram in rams:
                m.d.comb += ram.write.data.word_select(row, 32).eq(total)
        return m

    def _memory(self, depth: int, num_read_ports: int):
        """Return a memory of rows that are read while they are written; in a deep pipeline they are not."""
        return Ram(
            width=self.config.routed.rows * 32,
            depth=depth,
            num_read_ports=num_read_ports,
            transparent=not self.config.deep,
            apart=self.config.deep,
        )

    def _accumulators(self, m, read, valid_read, write, valid_write):
        """Return the accumulators of each set, with all but their new contents."""
        rows = self.config.routed.rows
        rams = []
        for index, name in enumerate(("gate", "up")[: self.sets]):
            ram = m.submodules[name] = self._memory(self.depth, 2)
            width = rows * 32
            m.d.comb += [
                ram.read_0.addr.eq(read.token),
                ram.read_0.addr[-1].eq(read.parity),
                ram.read_0.en.eq(valid_read if self.config.deep else 1),
                ram.write.addr.eq(write.token),
                ram.write.addr[-1].eq(write.parity),
                ram.write.en.eq(valid_write & (write.up == index)),
                ram.read_1.addr.eq(self.drain.addr),
                ram.read_1.en.eq(self.drain.en),
                self.drain.data[index * width : (index + 1) * width].eq(ram.read_1.data),
            ]
            rams.append(ram)
        return rams

    def _elaborate_grouped(self, m) -> None:
        config = self.config
        routed = config.routed
        rows, layout = routed.rows, slot_layout(config)
        registers, cycles = self.registers, config.accumulate_latency
        assert 1 + registers + cycles + config.deep <= config.array_distance
        assert self.sum_latency <= config.scale_distance
        slot, fire, tile = self._slot(m)
        scales_come = fire & layout(slot).scale
        before = config.burst_latency - 1 - registers
        valid_read = delay(m, fire & ~layout(slot).scale, before, "valid_read", control=True)
        slot_read = delay(m, slot, before, "slot_read")
        slot_add = delay(m, slot_read, 1, "slot_add")
        slot_group = delay(m, slot_add, registers + cycles, "slot_group")
        valid_group = delay(m, valid_read, 1 + registers + cycles, "valid_group", control=True)
        read, add, group = layout(slot_read), layout(slot_add), layout(slot_group)

        # Groups: sums of one tile need not be kept.
        sums = Signal(rows * 32)
        old_sums = Const(0, rows * 32)
        if routed.group_tiles > 1:
            group_ram = m.submodules.group = self._memory(1 << bits_for(config.max_tokens), 1)
            m.d.comb += [
                group_ram.read_0.addr.eq(read.token),
                group_ram.read_0.en.eq(valid_read if config.deep else 1),
                group_ram.write.addr.eq(group.token),
                group_ram.write.data.eq(sums),
                group_ram.write.en.eq(valid_group & ~group.group_last),
            ]
            old_sums = group_ram.read_0.data

        # Totals. The slot before the scaled sum's arrival reads them.
        slot_total = delay(m, slot_group, self.scaled_latency - 1 - registers, "slot_total")
        slot_scaled = delay(m, slot_total, 1, "slot_scaled")
        valid_total = valid_group & group.group_last
        if config.deep:
            valid_total = delay(
                m, valid_total, self.scaled_latency - 1 - registers, "valid_total", control=True
            )
        total, scaled = layout(slot_total), layout(slot_scaled)
        write = layout(delay(m, slot_scaled, registers + cycles, "slot_write"))
        valid_write = delay(
            m,
            valid_group & group.group_last,
            self.scaled_latency + cycles,
            "valid_write",
            control=True,
        )
        m.d.comb += self.unit_ready.eq(valid_write & write.unit_done)
        rams = self._accumulators(m, total, valid_total, write, valid_write)
        old = Signal(rows * 32)
        m.d.comb += old.eq(Mux(scaled.up, rams[-1].read_0.data, rams[0].read_0.data))

        # Scales: of the tile that has fired, then of the slots that reach the multiplication.
        scales_go = delay(m, scales_come, self.sum_latency, "scales_go", control=True)
        group_done = Signal()
        m.d.comb += group_done.eq(valid_group & group.group_done)
        row_bits = routed.cols * routed.format.bits
        # Scales of a tile.
        scale_bits = routed.tile_groups * routed.format.scale_bits
        for row in range(rows):
            waiting = Signal(row_bits, name=f"waiting_{row}", reset_less=True)
            scales = Signal(row_bits - routed.bias_bits, name=f"scales_{row}", reset_less=True)
            with m.If(scales_come):
                m.d.sync += waiting.eq(tile.word_select(row, row_bits))
            with m.If(scales_go):
                m.d.sync += scales.eq(waiting[routed.bias_bits :])
            with m.Elif(group_done):
                m.d.sync += scales.eq(scales >> scale_bits)
            start = Const(0, 32)
            if routed.bias_bits:
                bias = Signal(16, name=f"bias_{row}", reset_less=True)
                with m.If(scales_go):
                    m.d.sync += bias.eq(waiting)
                start = f32_of_bf16(delay(m, bias, self.scaled_latency - registers, f"bias_{row}"))
            old_total = Mux(scaled.first_group, start, old.word_select(row, 32))
            old_total = delay(m, old_total, registers, f"old_total_{row}")
            weights = tile.word_select(row, row_bits)
            if routed.tile_groups > 1:
                result = self._row_of_groups(m, row, weights, scales[:scale_bits], old_total)
            else:
                result = self._row_grouped(
                    m,
                    row,
                    weights,
                    delay(m, Mux(add.group_first, 0, old_sums.word_select(row, 32)), registers, f"old_{row}"),
                    sums.word_select(row, 32),
                    scales[:scale_bits],
                    old_total,
                )
            for ram in rams:
                m.d.comb += ram.write.data.word_select(row, 32).eq(result)

    def _row_grouped(self, m, row, weights, old_sum, new_sum, scale, old_total):
        """Return a row's total, ``latency`` cycles after its slot fired; drive its group's ``new_sum``."""
        cols, number_format = self.config.routed.cols, self.config.routed.format
        pipeline = self.config.pipeline
        decode = m.submodules[f"decode_{row}"] = DecodeElements(number_format, cols)
        x, w, products = self._burst_grouped(m, row)
        accumulate = m.submodules[f"accumulate_{row}"] = Accumulate(cols, pipeline)
        scaling = m.submodules[f"scale_{row}"] = ScaleSum(number_format, pipeline)
        add = m.submodules[f"add_{row}"] = Accumulate(1, pipeline)
        m.d.comb += [
            decode.i.eq(weights),
            x.eq(self.x),
            w.eq(decode.o),
            accumulate.acc.eq(old_sum),
            accumulate.addend.eq(products),
            new_sum.eq(accumulate.o),
            scaling.i.eq(accumulate.o),
            scaling.factor.eq(factor_of(m, number_format, scale, f"factor_{row}")),
            add.acc.eq(old_total),
            add.addend.eq(scaling.o),
        ]
        return add.o

    def _row_of_groups(self, m, row, weights, scales, old_total):
        """Return a row's total, ``latency`` cycles after its slot fired; a tile holds several groups."""
        routed, number_format = self.config.routed, self.config.routed.format
        group, pipeline = routed.group, self.config.pipeline
        decode = m.submodules[f"decode_{row}"] = DecodeElements(number_format, routed.cols)
        m.d.comb += decode.i.eq(weights)
        addends = []
        for number in range(routed.tile_groups):
            name = f"{row}_{number}"
            burst = m.submodules[f"burst_{name}"] = Burst(group, pipeline)
            accumulate = m.submodules[f"accumulate_{name}"] = Accumulate(group, pipeline)
            scaling = m.submodules[f"scale_{name}"] = ScaleSum(number_format, pipeline)
            scale = scales.word_select(number, number_format.scale_bits)
            m.d.comb += [
                burst.x.eq(self.x.word_select(number, group * 16)),
                burst.w.eq(decode.o.word_select(number, group * 16)),
                # The burst's sum, rounded to fp32.
                accumulate.acc.eq(0),
                accumulate.addend.eq(burst.o),
                scaling.i.eq(accumulate.o),
                scaling.factor.eq(factor_of(m, number_format, scale, f"factor_{name}")),
            ]
            addends.append(scaling.o.as_value())
        pairs = m.submodules[f"pairs_{row}"] = SumInPairs(routed.tile_groups, pipeline)
        add = m.submodules[f"add_{row}"] = Accumulate(1, pipeline)
        m.d.comb += [pairs.i.eq(Cat(*addends)), add.acc.eq(old_total), add.addend.eq(pairs.o)]
        return add.o

    def _burst_grouped(self, m, row):
        """Return inputs, weights and sum of a row's burst, which may be that of two rows."""
        cols, pipeline = self.config.routed.cols, self.config.pipeline
        if self.config.multiplier is Multiplier.SINGLE:
            burst = m.submodules[f"burst_{row}"] = Burst(cols, pipeline)
            return burst.x, burst.w, burst.o
        pair, place = divmod(row, 2)
        if place == 0:
            m.submodules[f"burst_{pair}"] = DualBurst(cols, pipeline)
        burst = m.submodules[f"burst_{pair}"]
        return burst.x, getattr(burst, f"w_{place}"), getattr(burst, f"o_{place}")

    def _row_bf16(self, m, row, weights, old):
        """Return a row's sum, ``latency`` cycles after its slot fired."""
        cols, pipeline = self.config.routed.cols, self.config.pipeline
        burst = m.submodules[f"burst_{row}"] = Burst(cols, pipeline)
        accumulate = m.submodules[f"accumulate_{row}"] = Accumulate(cols, pipeline)
        m.d.comb += [
            burst.x.eq(self.x),
            burst.w.eq(weights),
            accumulate.acc.eq(old),
            accumulate.addend.eq(burst.o),
        ]
        return accumulate.o

    def _row_int8(self, m, row, weights, old, add, scales_go):
        """Return a row's sum or scaled result, ``latency`` cycles after its slot fired."""
        products = self._burst_int8(m, row, weights)
        accumulate = m.submodules[f"accumulate_{row}"] = IntegerAccumulate(self.config.pipeline)
        # Kept from the slot's firing to its addition. The next scale tile comes at least
        # array_distance + 1 cycles after this one's last slot: a tile of weights lies between.
        assert self.config.burst_latency <= self.config.array_distance + 1
        channel = Signal(8 * self.config.scale_bytes, name=f"channel_{row}", reset_less=True)
        with m.If(scales_go):
            m.d.sync += channel.eq(weights[: len(channel)])
        addend = Signal(signed(32), name=f"addend_{row}")
        bias = channel[8 * SCALE_BYTES :].as_signed() if self.config.scale_bytes > SCALE_BYTES else 0
        m.d.comb += [
            addend.eq(Mux(add.scale, bias, products)),
            accumulate.acc.eq(old),
            accumulate.addend.eq(addend),
            accumulate.finish.eq(add.scale),
            accumulate.scale.eq(scale_of(channel)),
        ]
        return accumulate.o

    def _burst_int8(self, m, row, weights):
        """Return the sum of a row's products, ``config.burst_latency`` cycles after its slot came."""
        routed = self.config.routed
        # In a deep pipeline the multipliers have registers of their own.
        x = delay(m, self.x, self.registers, f"x_{row}")
        weights = delay(m, weights, self.registers, f"weights_{row}")
        if self.config.multiplier is Multiplier.SINGLE:
            burst = m.submodules[f"burst_{row}"] = IntegerBurst(routed.cols, routed.format)
            m.d.comb += [burst.x.eq(x), burst.w.eq(weights)]
            return burst.o
        pair, place = divmod(row, 2)
        if place == 0:
            m.submodules[f"burst_{pair}"] = DualIntegerBurst(routed.cols, routed.format)
            m.d.comb += m.submodules[f"burst_{pair}"].x.eq(x)
        burst = m.submodules[f"burst_{pair}"]
        m.d.comb += getattr(burst, f"w_{place}").eq(weights)
        return getattr(burst, f"o_{place}")
