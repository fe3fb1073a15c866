"""Dispatcher: token-expert assignments in, one queue per expert and window, whole queues out.

Tokens are collected in windows. While one window is being filled the one before is served, expert by
expert, so that an expert's weights are fetched once for all the tokens of a window that chose it.
The queues are linked lists over one entry store: an assignment's place in it is ``{slot, j}`` (the
token's slot, its j-th expert), so nothing is allocated and nothing can overflow.

::

    i --> (decide) --> enqueue --push--> tables (head, tail, next, weight) <--read-- walker --> o_0, o_1, ...
                          |                 ^ nonempty, lengths                         ^
                          +--> o_expect     +---------------- picker -----jobs----------+
                                                                ^ placement, retired_0, retired_1, ...

References: :func:`golden.dispatch_streams.dispatch_streams` (what), :mod:`sim.dispatch` (when, where).
"""

from amaranth import Cat, Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.dispatch.decide import Decide
from rtl.dispatch.enqueue import Enqueue
from rtl.dispatch.layouts import DispatchConfig, ServicePolicy, place_members
from rtl.dispatch.picker import Picker
from rtl.dispatch.tables import QueueTables
from rtl.dispatch.walker import Walker
from rtl.stream import StreamPair, StreamRegister, connect_stream


class Dispatch(wiring.Component):
    """Queue assignments per expert; serve a window's queues one after the other, each completely.

    ::

        i.payload.expert      0   3   0   1   2   3      two tokens of three assignments
        i.payload.last        0   0   1   0   0   1
        i.payload.last_token  0   0   0   1   1   1      matters on the last beat only
        o_0.payload.expert    0   0   1   2   3   3      (LATENCY cycles after the close)
        o_0.payload.slot      0   0   1   1   0   1
        o_0.payload.last      0   1   1   1   0   1

    A window closes with its ``window_tokens``-th token or with a token that has ``last_token``. Where
    both windows are closed, ``i`` waits for the older one to be served. Within a window: the shared
    expert (weight 1.0, every token), then each expert that has an entry, in the order of the policy;
    inside an expert in order of arrival. An expert takes ``capacity`` assignments of a batch (tokens up
    to ``last_token``); later ones, by the capacity's rule, are dropped. With ``kept_gating`` the weights are
    made here, of the kept assignments' scores.

    With several units a queue is served by one of those that the placement table names: of those that
    hold fewer than ``unit_jobs`` unfinished jobs the one with the fewest unfinished entries. A queue all
    of whose units are full lets others go first, those of the younger window too. A unit takes every
    entry of a job at once: it has the room that it told of with ``retired_<unit>``. Inside an expert the
    jobs of successive windows keep their order; they may go to different units.

    Latency: EXPECT_LATENCY cycles from a token's last beat to ``o_expect``, LATENCY (deep: DEEP_LATENCY) from
    the beat that closes a window to its first entry; nothing else intervenes when the outputs are ready, a
    unit is available and the window before is served. One assignment in and one entry out per cycle, no
    bubble between experts or between windows that are already closed. Where windows are decided all of
    that holds from the beats that :class:`rtl.dispatch.decide.Decide` gives. Every output is a register,
    and so is ``i.ready`` but for gates.

    After reset all queues are empty, no unit has a job and token 0 has slot 0; the placement table is
    not reset.

    Members
    -------
    i : In(stream.Signature(config.assignment)): expert, weight (bf16 bits), last (assignment of its
        token), last_token (the token ends its batch). First choice first.
    o_expect : Out(stream.Signature(config.expect)): per token, in order: its slot (token number modulo
        num_slots), how many entries of it will be served, whether it ends its batch.
    o_0, o_1, ... : Out(stream.Signature(config.entry)): per unit: expert (num_experts: the shared one),
        slot, rank (if the configuration asks for it), weight, last (entry of this job).
    capacity : In(capacity_bits), 0 for no limit. Constant while tokens are inside.
    policy : In(ServicePolicy). Constant while tokens are inside.
    dropped : Out(1), one cycle per dropped assignment.
    retired_0, retired_1, ... : In(1), with several units only: the unit has finished its oldest job.
    place_addr, place_units, place_we : In, placement table expert -> set of units, with several units
        only. Every expert (and ``num_experts``, if shared) must be given a unit before it is used.
    """

    EXPECT_LATENCY = 1 + StreamRegister.LATENCY
    LATENCY = 5 + StreamRegister.LATENCY
    DEEP_LATENCY = LATENCY + 2
    """A register before the queues, a pair of them behind the walk."""

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config
        members = {
            "i": In(stream.Signature(config.assignment)),
            "o_expect": Out(stream.Signature(config.expect)),
            "capacity": In(config.capacity_bits),
            "policy": In(ServicePolicy),
            "dropped": Out(1),
        }
        members |= {name: Out(stream.Signature(config.entry)) for name in config.outputs()}
        if config.num_units > 1:
            members |= {name: In(1) for name in config.retirements()}
            members |= place_members(config)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.enqueue = enqueue = Enqueue(config)
        m.submodules.tables = tables = QueueTables(config)
        m.submodules.picker = picker = Picker(config)
        m.submodules.walker = walker = Walker(config)

        if config.decides:
            m.submodules.decide = first = Decide(config)
            connect_stream(m, first.o, enqueue.i)
        else:
            first = enqueue
        connect_stream(m, wiring.flipped(self.i), first.i)
        m.d.comb += first.capacity.eq(self.capacity)
        connect_stream(m, enqueue.o_expect, wiring.flipped(self.o_expect))
        wiring.connect(m, enqueue.lookup, tables.lookup)
        wiring.connect(m, enqueue.push, tables.push)
        if config.ranks:
            wiring.connect(m, enqueue.ranks, tables.ranks)
        if config.shared_gate:
            wiring.connect(m, enqueue.shared_weight, tables.shared_weight)
            wiring.connect(m, walker.shared_read, tables.shared_read)
        wiring.connect(m, picker.clear, tables.clear)
        connect_stream(m, picker.o, walker.i)
        wiring.connect(m, walker.queue, tables.queue)
        wiring.connect(m, walker.entry, tables.entry)
        for user in (picker, walker):
            m.d.comb += [
                user.close.valid.eq(enqueue.close.valid),
                user.close.parity.eq(enqueue.close.parity),
                user.close.last_slot.eq(enqueue.close.last_slot),
                user.close.tokens.eq(enqueue.close.tokens),
            ]
        m.d.comb += [
            enqueue.full.eq(picker.full),
            picker.policy.eq(self.policy),
            picker.nonempty.eq(tables.nonempty),
            picker.num_queues.eq(tables.num_queues),
            picker.drained.eq(walker.drained),
            picker.drained_parity.eq(walker.drained_parity),
            self.dropped.eq(enqueue.dropped),
        ]
        if config.counted:
            m.d.comb += picker.lengths.eq(tables.lengths)
        if config.num_units > 1:
            m.d.comb += [
                tables.place_addr.eq(self.place_addr),
                tables.place_units.eq(self.place_units),
                tables.place_we.eq(self.place_we),
                picker.placement.eq(tables.placement),
                picker.retired.eq(Cat(getattr(self, name) for name in config.retirements())),
            ]
        entry, unit = self._staged(m, walker) if config.deep else (walker.o, walker.o_unit)
        self._to_units(m, entry, unit)
        return m

    def _staged(self, m, walker):
        """Return the walk's entries and their units from registers: their weights come late out of a RAM."""
        config = self.config
        shape = data.StructLayout({"entry": config.entry, "unit": range(config.num_units)})
        m.submodules.staged = staged = StreamPair(shape)
        entry = stream.Signature(config.entry).create(path=("staged_entry",))
        m.d.comb += [
            staged.i.valid.eq(walker.o.valid),
            staged.i.payload.entry.eq(walker.o.payload),
            staged.i.payload.unit.eq(walker.o_unit),
            walker.o.ready.eq(staged.i.ready),
            entry.valid.eq(staged.o.valid),
            entry.payload.eq(staged.o.payload.entry),
            staged.o.ready.eq(entry.ready),
        ]
        return entry, staged.o.payload.unit

    def _to_units(self, m, entry, unit_of_entry):
        """Give each entry to the register of its unit."""
        config = self.config
        outputs = []
        for unit, name in enumerate(config.outputs()):
            m.submodules[f"output_{unit}"] = output = StreamRegister(config.entry)
            connect_stream(m, output.o, wiring.flipped(getattr(self, name)))
            m.d.comb += output.i.payload.eq(entry.payload)
            outputs.append(output)
        with m.Switch(unit_of_entry):
            for unit, output in enumerate(outputs):
                with m.Case(unit) if unit + 1 < config.num_units else m.Default():
                    m.d.comb += [output.i.valid.eq(entry.valid), entry.ready.eq(output.i.ready)]
