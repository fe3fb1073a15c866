# amaranth: UnusedElaboratable=no
# (components that the constructors refuse are never elaborated)
"""Streams between clocks: nothing lost, doubled or reordered; a core with its ports on another clock."""

import random
import re
import subprocess

import pytest
from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from rtl.crossing import StreamCrossing, TwoClocks
from rtl.export import export
from rtl.stream import StreamRegister
from tests.harness_designs import Reader
from tests.verilog2005 import faults_of_export, icarus

# Periods of both clocks and how far the second is behind: odd ratios, near-equal clocks that drift
# through all phases, very slow and very fast ones.
RATIOS = [
    (3000, 7000, 500),
    (7000, 3000, 0),
    (10000, 10010, 3),
    (9990, 10000, 0),
    (1000, 17000, 0),
    (17000, 1000, 1),
]
UNIT = 1e-14


def run_crossing(periods, seed, *, beats=120, stall=0.4, depth=8, dut=None):
    """Return the payloads that came out, and in how many periods of each clock."""
    dut = dut or StreamCrossing(16, depth, from_domain="left", to_domain="right")
    simulator = Simulator(dut)
    for domain, period, phase in (("left", periods[0], 0), ("right", periods[1], periods[2])):
        simulator.add_clock(period * UNIT, phase=(period / 2 + phase) * UNIT, domain=domain)
    rng = random.Random(seed)
    payloads = [rng.randrange(1 << 16) for _ in range(beats)]
    seen = []
    held = []

    async def source(ctx):
        for payload in payloads:
            while rng.random() < stall:
                ctx.set(dut.i.valid, 0)
                await ctx.tick("left")
            ctx.set(dut.i.payload, payload)
            ctx.set(dut.i.valid, 1)
            await ctx.tick("left").until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def sink(ctx):
        waited = None
        while len(seen) < beats:
            ready = rng.random() >= stall
            ctx.set(dut.o.ready, ready)
            _, _, valid, payload = await ctx.tick("right").sample(dut.o.valid, dut.o.payload)
            if waited is not None and (not valid or payload != waited):
                held.append((waited, valid, payload))
            waited = payload if valid and not ready else None
            if valid and ready:
                seen.append(payload)

    simulator.add_testbench(source)
    simulator.add_testbench(sink)
    simulator.run()
    assert held == []
    return payloads, seen


@pytest.mark.parametrize("periods", RATIOS)
def test_nothing_is_lost_at_any_ratio(periods):
    for seed in range(2):
        print("seed", seed)
        sent, seen = run_crossing(periods, seed)
        assert seen == sent


@pytest.mark.long
@pytest.mark.parametrize("periods", [*RATIOS, (7919, 7907, 11), (10000, 10001, 0), (3, 10, 1)])
def test_nothing_is_lost_at_any_ratio_for_long(periods):
    for seed in range(20):
        for stall in (0, 0.3, 0.8):
            print("seed", seed, "stall", stall)
            sent, seen = run_crossing(periods, seed, beats=1000, stall=stall, depth=4 << seed % 3)
            assert seen == sent


def test_one_beat_per_cycle_of_the_slower_clock():
    """With nothing stalled the slower side is never idle once the first beat is there."""
    for periods in ((3000, 7000, 0), (7000, 3000, 0)):
        dut = StreamCrossing(16, 16, from_domain="left", to_domain="right")
        simulator = Simulator(dut)
        simulator.add_clock(periods[0] * UNIT, domain="left")
        simulator.add_clock(periods[1] * UNIT, domain="right")
        taken = []

        async def source(ctx, dut=dut):
            ctx.set(dut.i.valid, 1)
            await ctx.tick("left").repeat(2000)

        async def sink(ctx, dut=dut, taken=taken, periods=periods):
            ctx.set(dut.o.ready, 1)
            for _ in range(300 * 7000 // periods[1]):
                _, _, valid = await ctx.tick("right").sample(dut.o.valid)
                taken.append(valid)

        simulator.add_testbench(source)
        simulator.add_testbench(sink)
        simulator.run()
        steady = taken[len(taken) // 4 :]
        share = sum(steady) / len(steady)
        assert share == pytest.approx(min(1, periods[1] / periods[0]), abs=0.02)


class Broken(StreamCrossing):
    """A crossing that takes the other side's full flag a beat late: two registers, no pointers compared."""

    def elaborate(self, platform):
        m = Module()
        store = Signal(16)
        full_left, full_right = Signal(), Signal()
        m.d.comb += [self.i.ready.eq(~full_left), self.o.valid.eq(full_right), self.o.payload.eq(store)]
        m.d[self.from_domain] += full_left.eq(self.i.valid & ~full_left)
        with m.If(self.i.valid & ~full_left):
            m.d[self.from_domain] += store.eq(self.i.payload)
        m.d[self.to_domain] += full_right.eq(full_left & ~(full_right & self.o.ready))
        return m


def test_a_crossing_that_loses_beats_is_seen():
    broken = Broken(16, 4, from_domain="left", to_domain="right")
    # Its sink may wait for ever for what was lost.
    dut_sent, dut_seen = [], []
    simulator = Simulator(broken)
    simulator.add_clock(3000 * UNIT, domain="left")
    simulator.add_clock(7000 * UNIT, domain="right")

    async def source(ctx):
        for payload in range(50):
            ctx.set(broken.i.payload, payload)
            ctx.set(broken.i.valid, 1)
            await ctx.tick("left").until(broken.i.ready)
            dut_sent.append(payload)

    async def sink(ctx):
        ctx.set(broken.o.ready, 1)
        for _ in range(100):
            _, _, valid, payload = await ctx.tick("right").sample(broken.o.valid, broken.o.payload)
            if valid:
                dut_seen.append(payload)

    simulator.add_testbench(source)
    simulator.add_testbench(sink)
    simulator.run()
    assert dut_seen != dut_sent


class Adder(wiring.Component):
    """A core with a stream through a register and plain members, one of them a counter of beats."""

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": 8, "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": 8, "last": 1}))),
                "plus": In(8),
                "count": Out(8),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.register = register = StreamRegister(self.i.payload.shape())
        m.d.comb += [
            register.i.payload.data.eq(self.i.payload.data + self.plus),
            register.i.payload.last.eq(self.i.payload.last),
            register.i.valid.eq(self.i.valid),
            self.i.ready.eq(register.i.ready),
            self.o.payload.eq(register.o.payload),
            self.o.valid.eq(register.o.valid),
            register.o.ready.eq(self.o.ready),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += self.count.eq(self.count + 1)
        return m


@pytest.mark.parametrize("periods", RATIOS[:3])
def test_a_core_works_with_its_streams_on_another_clock(periods):
    dut = TwoClocks(Adder(), depth=8)
    simulator = Simulator(dut)
    simulator.add_clock(periods[0] * UNIT, domain="sync")
    simulator.add_clock(periods[1] * UNIT, phase=(periods[1] / 2 + periods[2]) * UNIT, domain="bus")
    seed = 3
    print("seed", seed)
    rng = random.Random(seed)
    beats = [(rng.randrange(256), rng.random() < 0.2) for _ in range(100)]
    seen = []

    async def source(ctx):
        ctx.set(dut.plus, 7)
        for value, last in beats:
            while rng.random() < 0.3:
                ctx.set(dut.i.valid, 0)
                await ctx.tick("bus")
            ctx.set(dut.i.payload, {"data": value, "last": last})
            ctx.set(dut.i.valid, 1)
            await ctx.tick("bus").until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def sink(ctx):
        while len(seen) < len(beats):
            ready = rng.random() < 0.7
            ctx.set(dut.o.ready, ready)
            _, _, valid, payload = await ctx.tick("bus").sample(dut.o.valid, dut.o.payload)
            if valid and ready:
                seen.append((payload.data, bool(payload.last)))
        assert ctx.get(dut.count) == len(beats)

    simulator.add_testbench(source)
    simulator.add_testbench(sink)
    simulator.run()
    assert seen == [((value + 7) % 256, last) for value, last in beats]


def test_the_ports_of_both_clocks(tmp_path):
    text = export(TwoClocks(Reader()), "reader", tmp_path / "two")[0].read_text()
    # Reset crosses through flip-flops that sample it.
    assert "posedge" in text
    assert not re.search(r"always @\([^)]*,", text)
    top = text[: text.index("endmodule")]
    for port in (
        "aclk",
        "aresetn",
        "bus_aclk",
        "bus_aresetn",
        "m_axi_araddr",
        "m_axi_rdata",
        "s_axis_tdata",
        "reg_addr",
    ):
        assert re.search(rf"^  (?:input|output) (?:\[\d+:0\] )?{port};$", top, re.MULTILINE)
    assert re.search(r"^module eb_reader_cross_o_ar \(", text, re.MULTILINE)
    assert faults_of_export(tmp_path / "two", "reader") == []


@pytest.mark.parametrize(
    ("depth", "domains", "message"),
    [
        (6, ("a", "b"), "depth must be a power of two, at least 4, not 6"),
        (2, ("a", "b"), "depth must be a power of two, at least 4, not 2"),
        (8, ("a", "a"), "from_domain and to_domain must differ, not both be 'a'"),
    ],
)
def test_bad_parameters_are_refused(depth, domains, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        StreamCrossing(8, depth, from_domain=domains[0], to_domain=domains[1])


RESET_BENCH = """`timescale 1ns / 1ps
module bench;
    reg aclk = 0, bus_aclk = 0, resetn = 0, tvalid = 0, tready = 0;
    reg [7:0] tdata = 0;
    wire in_ready, out_valid, out_last;
    wire [7:0] out, count;
    integer n, wrong = 0;
    always #3 aclk = ~aclk;
    always #7 bus_aclk = ~bus_aclk;
    eb_adder dut (
        .aclk(aclk), .aresetn(resetn), .bus_aclk(bus_aclk), .bus_aresetn(resetn), .plus(8'd7), .count(count),
        .s_axis_tdata(tdata), .s_axis_tlast(1'b1), .s_axis_tvalid(tvalid), .s_axis_tready(in_ready),
        .m_axis_tdata(out), .m_axis_tlast(out_last), .m_axis_tvalid(out_valid), .m_axis_tready(tready)
    );
    always @(posedge bus_aclk) if (!resetn && out_valid !== 0) wrong = wrong + 1;
    task send; input [7:0] value; begin
        tdata <= value; tvalid <= 1; @(posedge bus_aclk);
        while (!in_ready) @(posedge bus_aclk);
        tvalid <= 0;
    end endtask
    initial begin
        repeat (4) @(posedge bus_aclk);
        resetn <= 1; @(posedge bus_aclk);
        send(1); send(2); send(3);
        while (!out_valid) @(posedge bus_aclk);
        resetn <= 0;
        repeat (4) @(posedge bus_aclk);
        resetn <= 1;
        repeat (20) @(posedge bus_aclk) if (resetn && out_valid) wrong = wrong + 1;
        send(30); tready <= 1; @(posedge bus_aclk);
        while (!out_valid) @(posedge bus_aclk);
        $display("%0d wrong, then %0d", wrong, out);
        $finish;
    end
endmodule
"""


@icarus
@pytest.mark.parametrize("gated", [True, False])
def test_in_reset_nothing_is_offered_and_nothing_is_left(gated, tmp_path):
    """Also in the cycles before the FIFO knows of it: that is seen where valid is that of the FIFO alone."""
    file = export(TwoClocks(Adder(), depth=8), "adder", tmp_path)[0]
    if not gated:
        gate, alone = r"assign o__valid = r_rdy & \w+;", "assign o__valid = r_rdy;"
        changed, count = re.subn(gate, alone, file.read_text())
        assert count == 2
        file.write_text(changed)
    (tmp_path / "bench.v").write_text(RESET_BENCH)
    command = ["iverilog", "-g2005", "-s", "bench", "-o", "bench.vvp", "bench.v", "-f", "adder.f"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        ["vvp", "-n", "bench.vvp"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert (done.stdout.splitlines()[0] == "0 wrong, then 37") == gated
