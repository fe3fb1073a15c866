"""Jobs of the expert engine: whose tokens, how many, which expert. Two at a time."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.formats import BF16_ONE
from rtl.expert.layouts import EngineConfig, bits_for, job_layout, rank_member
from rtl.ram import Ram, ReadSignature


def job_record_layout(config: EngineConfig):
    """Return what the rest of the engine knows of a job: expert, whether it is shared, last token.

    ``router`` is there where an engine has it: no expert, but a product with the router.
    """
    return data.StructLayout(
        {
            "expert": unsigned(config.expert_bits),
            "shared": unsigned(1),
            **({"router": unsigned(1)} if config.router else {}),
            "last_token": unsigned(bits_for(config.max_tokens)),
        }
    )


def list_layout(config: EngineConfig):
    """Return a list entry: what of a job's entry is kept for each token.

    ``weight`` goes with the result; ``input_weight``, where there is one, multiplies the inputs.
    """
    return data.StructLayout(
        {
            "weight": unsigned(16),
            "slot": unsigned(bits_for(config.num_slots)),
            **rank_member(config.ranks),
            **({"input_weight": unsigned(16)} if config.weighted_inputs else {}),
        }
    )


def list_bits(config: EngineConfig):
    """Bits of a list entry."""
    return list_layout(config).size


class JobLists(wiring.Component):
    """Take the entries of a job into one of two banks, hand complete jobs on, in order.

    ``i`` is ready while the bank to be filled is free. A job is complete with its last entry;
    ``complete`` tells in that cycle. A bank is free again the cycle after ``retire``.

    Members
    -------
    i : In(stream.Signature(job_layout(config)))
    complete : Out(1)
    records : Out(ArrayLayout(job_record_layout(config), 2))
        Per bank, from the cycle after ``complete`` until ``retire``.
    retire : In(1)
        The older job is done with.
    read_mac, read_drain : In(ReadSignature)
        Two read ports of the lists: address = bank and token.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.depth = 2 << bits_for(config.max_tokens)
        read = ReadSignature(list_bits(config), self.depth)
        super().__init__(
            {
                "i": In(stream.Signature(job_layout(config))),
                "complete": Out(1),
                "records": Out(data.ArrayLayout(job_record_layout(config), 2)),
                "retire": In(1),
                "read_mac": In(read),
                "read_drain": In(read),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.lists = lists = Ram(width=list_bits(config), depth=self.depth, num_read_ports=2)
        for port, read in zip((self.read_mac, self.read_drain), lists.reads, strict=True):
            m.d.comb += [read.addr.eq(port.addr), read.en.eq(port.en), port.data.eq(read.data)]
        busy = Signal(2)
        write_bank = Signal()
        retire_bank = Signal()
        token = Signal(bits_for(config.max_tokens))
        take = Signal()
        entry = self.i.payload
        kept = Signal(list_layout(config))
        if config.ranks:
            m.d.comb += kept.rank.eq(entry.rank)
        # A shared expert's weight, where it has one, is its output's in any case.
        weighted, routed = config.weighted_inputs, entry.expert < config.num_experts
        if weighted:
            m.d.comb += kept.input_weight.eq(Mux(routed, entry.weight, BF16_ONE))
        m.d.comb += [
            self.i.ready.eq(~busy.bit_select(write_bank, 1)),
            take.eq(self.i.valid & self.i.ready),
            self.complete.eq(take & entry.last),
            lists.write.addr[:-1].eq(token),
            lists.write.addr[-1].eq(write_bank),
            kept.weight.eq(Mux(routed, BF16_ONE, entry.weight) if weighted else entry.weight),
            kept.slot.eq(entry.slot),
            lists.write.data.eq(kept),
            lists.write.en.eq(take),
        ]
        with m.If(self.retire):
            m.d.sync += [busy.bit_select(retire_bank, 1).eq(0), retire_bank.eq(~retire_bank)]
        with m.If(take):
            m.d.sync += token.eq(Mux(entry.last, 0, token + 1))
        for bank in range(2):
            with m.If(self.complete & (write_bank == bank)):
                record = self.records[bank]
                m.d.sync += [
                    record.expert.eq(entry.expert),
                    record.shared.eq(entry.expert == config.num_experts),
                    record.last_token.eq(token),
                ]
                if config.router:
                    m.d.sync += record.router.eq(entry.expert == config.num_experts + 1)
        with m.If(self.complete):
            m.d.sync += [write_bank.eq(~write_bank), busy.bit_select(write_bank, 1).eq(1)]
        return m


class JobPointer(wiring.Component):
    """Which job is next for one user of the lists: a bank and whether a complete job waits there.

    Members
    -------
    complete : In(1), next : In(1)
        A job has become complete; the user goes on from the waiting one.
    waiting : Out(1), bank : Out(1)
    """

    def __init__(self) -> None:
        super().__init__({"complete": In(1), "next": In(1), "waiting": Out(1), "bank": Out(1)})

    def elaborate(self, platform):
        m = Module()
        count = Signal(range(3))
        m.d.sync += count.eq(count + self.complete - self.next)
        m.d.comb += self.waiting.eq(count != 0)
        with m.If(self.next):
            m.d.sync += self.bank.eq(~self.bank)
        return m
