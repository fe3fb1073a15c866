"""The MAC units at a channel's banks: registers of inputs, products, sums, results."""

from itertools import chain

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import Accumulate, Burst, delay
from rtl.gemv.layouts import INPUT_BITS, ChannelConfig, weights_layout, work_layout
from rtl.ram import Ram
from rtl.secded import CorrectWord, check_bits, correct_bursts
from spec.geometry import ACCUMULATE_DISTANCE

COUNTER_BITS = 32


def result_layout(config: ChannelConfig):
    """Return a burst of results as it is written to the banks: of each unit one fp32 sum."""
    return data.StructLayout(
        {
            "address": weights_layout(config),
            "data": data.ArrayLayout(config.result_bits, config.device.units),
        }
    )


class MacUnits(wiring.Component):
    """Multiply each unit's burst with an input that all units share, and add to one of its sums.

    The format is that of :class:`rtl.expert.array.MacArray` in bf16: a burst's products are aligned and added
    exactly, then rounded once into an fp32 sum; a result is one number, not one for each lane.
    A command takes effect ``fire_cycles`` after it was on the bus, be it a MAC or an input, so that
    commands take effect in their order. Results leave ``result_cycles`` + 1 after their write.

    Members
    -------
    i : In(work_layout(config)), mac : In(1), address : In(weights_layout(config))
        The column command on the bus.
    x_en : Out(1), x_addr : Out(INPUT_BITS), x_data : In(16 * lanes)
        The memory of inputs; data one cycle later.
    mem_data : In(units * burst_bits)
        Of the MAC of ``storage_cycles`` before.
    o : Out(stream.Signature(result_layout(config)))
        Writes of results to the banks; never refused.
    corrected, uncorrected : Out(COUNTER_BITS), with SECDED
        Words with one flipped bit, with two.
    """

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        counters = dict.fromkeys(("corrected", "uncorrected"), Out(COUNTER_BITS)) if config.secded else {}
        super().__init__(
            {
                "i": In(work_layout(config)),
                "mac": In(1),
                "address": In(weights_layout(config)),
                "x_en": Out(1),
                "x_addr": Out(INPUT_BITS),
                "x_data": In(16 * config.device.lanes),
                "mem_data": In(config.device.units * config.burst_bits),
                "o": Out(stream.Signature(result_layout(config))),
                **counters,
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        device = config.device
        assert 1 + Accumulate.LATENCY <= ACCUMULATE_DISTANCE <= config.dram.timing.ccd_l
        fire = config.fire_cycles

        # Inputs are fetched in time to come with the bursts of the MACs around them.
        x_work = delay(m, self.i.as_value(), fire - 1, "x_work")
        x_request = data.View(work_layout(config), x_work)
        x_valid = delay(m, self.i.input, fire - 1, "x_valid", control=True)
        m.d.comb += [self.x_en.eq(x_valid), self.x_addr.eq(x_request.address)]
        x_write = delay(m, x_valid, 1, "x_write", control=True)
        x_register = delay(m, x_request.register, 1, "x_register")
        registers = Array(
            Signal(16 * device.lanes, name=f"input_{n}", reset_less=True)
            for n in range(device.input_registers)
        )
        with m.If(x_write):
            m.d.sync += registers[x_register].eq(self.x_data)

        # Tokens that share a burst fire one behind the other.
        work = data.View(work_layout(config), delay(m, self.i.as_value(), fire, "work"))
        arrives = delay(m, self.mac, fire, "arrives", control=True)
        weights = self._weights(m)
        fires, register, of_sum = arrives, work.register, work.sum
        first = work.first
        if device.tokens_per_burst > 1:
            fires, register, of_sum, first, weights = self._tokens(m, arrives, work, weights)
        x = Signal(16 * device.lanes)
        m.d.comb += x.eq(registers[register])

        before = Burst.LATENCY - 1
        sum_read = delay(m, of_sum, before, "sum_read")
        valid_add = delay(m, fires, Burst.LATENCY, "valid_add", control=True)
        first_add = delay(m, first, Burst.LATENCY, "first_add")
        sum_add = delay(m, sum_read, 1, "sum_add")
        m.submodules.sums = sums = Ram(
            width=32 * device.units, depth=device.output_registers, num_read_ports=2, transparent=True
        )
        result = self._results(m, sums)
        m.d.comb += [
            sums.read_0.addr.eq(sum_read),
            sums.read_0.en.eq(1),
            sums.write.addr.eq(delay(m, sum_add, Accumulate.LATENCY, "sum_write")),
            sums.write.en.eq(delay(m, valid_add, Accumulate.LATENCY, "valid_write", control=True)),
        ]
        for unit in range(device.units):
            burst = m.submodules[f"burst_{unit}"] = Burst(device.lanes)
            accumulate = m.submodules[f"accumulate_{unit}"] = Accumulate(device.lanes)
            value = result.word_select(unit, 32)
            checks = check_bits(m, value, f"result_{unit}") if config.secded else ()
            m.d.comb += [
                burst.x.eq(x),
                burst.w.eq(weights.word_select(unit, 16 * device.lanes)),
                accumulate.acc.eq(Mux(first_add, 0, sums.read_0.data.word_select(unit, 32))),
                accumulate.addend.eq(burst.o),
                sums.write.data.word_select(unit, 32).eq(accumulate.o),
                self.o.payload.data[unit].eq(Cat(value, *checks)),
            ]
        return m

    def _results(self, m, sums):
        """Read the sums that are written to the banks; return them."""
        wait = self.config.result_cycles
        writes = delay(m, self.i.result, wait, "writes", control=True)
        of_sum = delay(m, self.i.sum, wait, "result_sum")
        m.d.comb += [
            sums.read_1.addr.eq(of_sum),
            sums.read_1.en.eq(writes),
            self.o.payload.address.eq(delay(m, self.address.as_value(), wait + 1, "result_address")),
            self.o.valid.eq(delay(m, writes, 1, "result_valid", control=True)),
        ]
        return sums.read_1.data

    def _tokens(self, m, arrives, work, weights):
        """Repeat a burst for each of its tokens; return the slots' signals."""
        config = self.config
        device = config.device
        left = Signal.like(work.last_token, name="tokens_left")
        wait = Signal(range(device.mac_cycles + 1), name="token_wait")
        held = Signal.like(weights, name="held_weights", reset_less=True)
        kept = Signal.like(work)
        again = Signal()
        fires = Signal()
        register = Signal.like(work.register, name="token_register")
        of_sum = Signal.like(work.sum, name="token_sum")
        m.d.comb += [
            again.eq((left != 0) & (wait == 0)),
            fires.eq(arrives | again),
            register.eq(Mux(arrives, work.register, kept.register)),
            of_sum.eq(Mux(arrives, work.sum, kept.sum)),
        ]
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.If(arrives):
            m.d.sync += [kept.eq(work), held.eq(weights), left.eq(work.last_token)]
        with m.Elif(again):
            m.d.sync += left.eq(left - 1)
        with m.If(fires):
            m.d.sync += [
                kept.register.eq(register + 1),
                kept.sum.eq(of_sum + 1),
                wait.eq(device.mac_cycles - 1),
            ]
        return fires, register, of_sum, Mux(arrives, work.first, kept.first), Mux(arrives, weights, held)

    def _weights(self, m):
        """Return the units' bursts, corrected where the banks hold check bits."""
        config = self.config
        if not config.secded:
            return self.mem_data
        comes = delay(m, self.mac, config.storage_cycles, "comes", control=True)
        corrected, single, double = correct_bursts(
            m, self.mem_data, units=config.device.units, burst_bits=16 * config.device.lanes
        )
        seen = delay(m, comes, CorrectWord.LATENCY, "seen", control=True)
        with m.If(seen):
            m.d.sync += [
                self.corrected.eq(self.corrected + _count(chain.from_iterable(single))),
                self.uncorrected.eq(self.uncorrected + _count(chain.from_iterable(double))),
            ]
        return corrected


def _count(bits):
    """Return how many of some bits are set."""
    items = list(bits)
    while len(items) > 1:
        items = [sum(items[n + 1 : n + 2], items[n]) for n in range(0, len(items), 2)]
    return items[0]
