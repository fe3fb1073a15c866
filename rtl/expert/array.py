"""The MAC array: rows x cols products per cycle into fp32 accumulators."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.expert.layouts import EngineConfig, bits_for
from rtl.expert.sequencer import slot_layout
from rtl.ram import Ram, ReadSignature
from spec.geometry import ACCUMULATE_DISTANCE


class MacArray(wiring.Component):
    """Multiply a tile with a token's inputs and add the sums to that token's accumulators.

    A slot fired in cycle c is written in c + ``LATENCY``; ``unit_ready`` follows a slot that is marked
    ``unit_done`` by ``LATENCY`` cycles. Two sets of accumulators (gate, up) of ``max_tokens`` tokens,
    each twice (parity), so that one unit is drained while the next is computed.

    Members
    -------
    fire : In(1), slot : In(slot_layout(config)), x : In(cols * 16), tile : In(rows * cols * 16)
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
                "x": In(config.routed.cols * 16),
                "tile": In(config.routed.rows * config.routed.cols * 16),
                "unit_ready": Out(1),
                "drain": In(ReadSignature(width * self.sets, self.depth)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows, cols = self.config.routed.rows, self.config.routed.cols
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
        for row in range(rows):
            burst = m.submodules[f"burst_{row}"] = Burst(cols)
            accumulate = m.submodules[f"accumulate_{row}"] = Accumulate(cols)
            m.d.comb += [
                burst.x.eq(self.x),
                burst.w.eq(self.tile.word_select(row, cols * 16)),
                accumulate.acc.eq(Mux(add.first, 0, old.word_select(row, 32))),
                accumulate.addend.eq(burst.o),
            ]
            for ram in rams:
                m.d.comb += ram.write.data.word_select(row, 32).eq(accumulate.o)
        return m
