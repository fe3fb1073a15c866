"""The MAC array: rows x cols products per cycle into fp32 or int32 accumulators."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.expert.layouts import EngineConfig, bits_for
from rtl.expert.sequencer import slot_layout
from rtl.int8 import IntegerAccumulate, IntegerBurst, scale_of
from rtl.ram import Ram, ReadSignature
from spec.geometry import ACCUMULATE_DISTANCE, SCALE_BYTES


class MacArray(wiring.Component):
    """Multiply a tile with a token's inputs and add the sums to that token's accumulators.

    A slot fired in cycle c is written in c + ``LATENCY``; ``unit_ready`` follows a slot that is marked
    ``unit_done`` by ``LATENCY`` cycles. Two sets of accumulators (gate, up) of ``max_tokens`` tokens,
    each twice (parity), so that one unit is drained while the next is computed.

    In int8 the sums are integers until a token meets the scale tile: that slot adds the bias, scales
    the sum and leaves it in the accumulator as the fp32 pattern of a bf16 number.

    Members
    -------
    fire : In(1), slot : In(slot_layout(config)), x : In(cols * element_bits)
    tile : In(rows * cols * element_bits)
    unit_ready : Out(1)
    drain : In(ReadSignature)
        Address = parity and token; gate results in the low half of the data, up in the high half
        (two-matrix FFNs have the low half only).
    """

    LATENCY = Burst.LATENCY + Accumulate.LATENCY

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

    def elaborate(self, platform):
        m = Module()
        rows = self.config.routed.rows
        assert 1 + Accumulate.LATENCY <= ACCUMULATE_DISTANCE
        before = Burst.LATENCY - 1
        valid_read = delay(m, self.fire, before, "valid_read", control=True)
        slot_read = delay(m, self.slot.as_value(), before, "slot_read")
        slot_add = delay(m, slot_read, 1, "slot_add")
        layout = slot_layout(self.config)
        read, add = layout(slot_read), layout(slot_add)
        write = layout(delay(m, slot_add, Accumulate.LATENCY, "slot_write"))
        valid_write = delay(m, valid_read, 1 + Accumulate.LATENCY, "valid_write", control=True)
        m.d.comb += self.unit_ready.eq(valid_write & write.unit_done)

        rams = []
        for index, name in enumerate(("gate", "up")[: self.sets]):
            ram = m.submodules[name] = Ram(
                width=rows * 32, depth=self.depth, num_read_ports=2, transparent=True
            )
            width = rows * 32
            m.d.comb += [
                ram.read_0.addr.eq(read.token),
                ram.read_0.addr[-1].eq(read.parity),
                ram.read_0.en.eq(1),
                ram.write.addr.eq(write.token),
                ram.write.addr[-1].eq(write.parity),
                ram.write.en.eq(valid_write & (write.up == index)),
                ram.read_1.addr.eq(self.drain.addr),
                ram.read_1.en.eq(self.drain.en),
                self.drain.data[index * width : (index + 1) * width].eq(ram.read_1.data),
            ]
            rams.append(ram)
        old = Signal(rows * 32)
        m.d.comb += old.eq(Mux(add.up, rams[-1].read_0.data, rams[0].read_0.data))
        row_sum = self._row_int8 if self.config.int8 else self._row_bf16
        for row in range(rows):
            weights = self.tile.word_select(row, len(self.tile) // rows)
            total = row_sum(m, row, weights, Mux(add.first, 0, old.word_select(row, 32)), add)
            for ram in rams:
                m.d.comb += ram.write.data.word_select(row, 32).eq(total)
        return m

    def _row_bf16(self, m, row, weights, old, add):
        """Return a row's sum, ``LATENCY`` cycles after its slot fired."""
        cols = self.config.routed.cols
        burst = m.submodules[f"burst_{row}"] = Burst(cols)
        accumulate = m.submodules[f"accumulate_{row}"] = Accumulate(cols)
        m.d.comb += [
            burst.x.eq(self.x),
            burst.w.eq(weights),
            accumulate.acc.eq(old),
            accumulate.addend.eq(burst.o),
        ]
        return accumulate.o

    def _row_int8(self, m, row, weights, old, add):
        """Return a row's sum or scaled result, ``LATENCY`` cycles after its slot fired."""
        burst = m.submodules[f"burst_{row}"] = IntegerBurst(self.config.routed.cols)
        accumulate = m.submodules[f"accumulate_{row}"] = IntegerAccumulate()
        # Kept from the slot's firing to its addition. The next scale tile comes at least
        # ACCUMULATE_DISTANCE + 1 cycles after this one's last slot: a tile of weights lies between.
        assert Burst.LATENCY <= ACCUMULATE_DISTANCE + 1
        channel = Signal(8 * self.config.scale_bytes, name=f"channel_{row}", reset_less=True)
        with m.If(self.fire & self.slot.scale):
            m.d.sync += channel.eq(weights[: len(channel)])
        addend = Signal(signed(32), name=f"addend_{row}")
        bias = channel[8 * SCALE_BYTES :].as_signed() if self.config.scale_bytes > SCALE_BYTES else 0
        m.d.comb += [
            burst.x.eq(self.x),
            burst.w.eq(weights),
            addend.eq(Mux(add.scale, bias, burst.o)),
            accumulate.acc.eq(old),
            accumulate.addend.eq(addend),
            accumulate.finish.eq(add.scale),
            accumulate.scale.eq(scale_of(channel)),
        ]
        return accumulate.o
