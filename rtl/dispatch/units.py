"""What each unit has to do: how many jobs, how many entries; who takes the next job."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.dispatch.first import FirstOf
from rtl.dispatch.layouts import DispatchConfig


class Unit(wiring.Component):
    """Count the jobs and the entries that one unit was given and has not finished.

    A unit finishes its jobs in the order in which it was given them; the length of each is remembered.
    After reset there is none. ``retired`` without a job does nothing.

    Members
    -------
    give, length : In, a job of so many entries is given to the unit in this cycle.
    retired : In(1), the unit has finished its oldest job.
    available : Out(1), it can take a job.
    entries : Out(entry_bits), entries of all its unfinished jobs.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        self.entry_bits = (config.unit_jobs * config.window_tokens).bit_length()
        super().__init__(
            {
                "give": In(1),
                "length": In(config.queue_length),
                "retired": In(1),
                "available": Out(1),
                "entries": Out(self.entry_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        jobs = Signal(range(config.unit_jobs + 1))
        retire = Signal()
        after = Signal(range(config.unit_jobs + 1))
        m.d.comb += [
            retire.eq(self.retired & (jobs != 0)),
            after.eq(jobs - retire),
            self.available.eq(jobs != config.unit_jobs),
        ]
        lengths = [Signal(config.queue_length, name=f"length_{n}") for n in range(config.unit_jobs)]
        m.d.sync += [
            jobs.eq(after + self.give),
            self.entries.eq(self.entries + Mux(self.give, self.length, 0) - Mux(retire, lengths[0], 0)),
        ]
        for n, length in enumerate(lengths):
            if n + 1 < config.unit_jobs:
                with m.If(retire):
                    m.d.sync += length.eq(lengths[n + 1])
            with m.If(self.give & (after == n)):
                m.d.sync += length.eq(self.length)
        return m


class Units(wiring.Component):
    """All units: which can take a job, and which of those that may take one has the least to do.

    Members
    -------
    available : Out(num_units), as in :class:`Unit`.
    retired : In(num_units)
    replicas : In(num_units), units that may serve the job.
    unit : Out, of those available the one with the fewest entries, the lowest of equals.
    give, length : In, a job of so many entries is given to ``unit`` in this cycle.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "available": Out(config.num_units),
                "retired": In(config.num_units),
                "replicas": In(config.num_units),
                "unit": Out(range(config.num_units)),
                "give": In(1),
                "length": In(config.queue_length),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        units = [Unit(config) for _ in range(config.num_units)]
        m.submodules.least = least = FirstOf(config.num_units, units[0].entry_bits)
        m.d.comb += [least.bits.eq(self.replicas & self.available), least.by_key.eq(1)]
        for n, unit in enumerate(units):
            m.submodules[f"unit_{n}"] = unit
            m.d.comb += [
                self.available[n].eq(unit.available),
                unit.retired.eq(self.retired[n]),
                unit.give.eq(self.give & (self.unit == n)),
                unit.length.eq(self.length),
                # The largest complement is that of the fewest entries.
                least.keys[n].eq(~unit.entries),
            ]
        m.d.comb += self.unit.eq(least.index)
        return m
