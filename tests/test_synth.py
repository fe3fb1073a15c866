"""Synthesis: cells counted right, a routed clock frequency, and a top that leaves no port out."""

import json
import re

import pytest
from amaranth import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.export import export
from rtl.grouped import DualSignificandMultiplier
from rtl.int8 import DualInt4Multiplier, DualMultiplier
from rtl.ram import Ram
from sim.cli import main
from sim.synth import FAMILIES, PLACERS, count_cells, pin_top, read_report, synthesise
from spec.errors import InputError

STAGES, WIDTH = 3, 16


class Known(wiring.Component):
    """A design whose registers, multipliers and memories can be counted by hand.

    ``STAGES`` registers of ``WIDTH`` bits behind each other and one registered 16 x 16 product; with
    ``memory``, 512 rows of 32 bits, which fit a block RAM of 18 kbit (with what orders a read and a write
    of the same row around it).
    """

    def __init__(self, *, memory=False):
        super().__init__(
            {"a": In(WIDTH), "b": In(WIDTH), "late": Out(WIDTH), "product": Out(32), "row": Out(32)}
        )
        self.memory = memory

    def elaborate(self, platform):
        m = Module()
        value = self.a
        for index in range(STAGES):
            later = Signal(WIDTH, name=f"stage_{index}")
            m.d.sync += later.eq(value)
            value = later
        m.d.sync += self.product.eq(self.a * self.b)
        m.d.comb += self.late.eq(value)
        if self.memory:
            m.submodules.ram = ram = Ram(width=32, depth=512)
            m.d.comb += [
                ram.write.addr.eq(self.a),
                ram.write.data.eq(Cat(self.a, self.b)),
                ram.write.en.eq(self.b[0]),
                ram.read_0.addr.eq(self.b),
                ram.read_0.en.eq(1),
                self.row.eq(ram.read_0.data),
            ]
        return m


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    export(Known(), "known", folder / "verilog")
    export(Known(memory=True), "stored", folder / "verilog")
    return folder


@pytest.mark.slow
def test_counts_what_is_there_and_routes_it(known):
    result = synthesise(known / "verilog", "known", root=known)
    assert (result.dsp, result.bram) == (1, 0)
    # The product is registered behind its multiplier: Yosys keeps those outside.
    assert result.ff == STAGES * WIDTH + 32
    assert 10 < result.fmax_mhz < 1000
    assert result.fmax_of_seeds == (result.fmax_mhz,)
    assert result.critical.delay_ns == pytest.approx(1e3 / result.fmax_mhz, rel=0.02)
    assert 0 < result.critical.logic_ns < result.critical.delay_ns


@pytest.mark.long
def test_each_placer_has_its_result(known):
    """Kept apart: what one placer gave is not told as the other's."""
    by_placer = [synthesise(known / "verilog", "known", placer=placer, root=known) for placer in PLACERS]
    heap, static = [result.critical for result in by_placer]
    assert heap != static
    assert synthesise(known / "verilog", "known", root=known) == by_placer[0]


@pytest.mark.slow
def test_a_memory_is_a_block_ram(known):
    assert synthesise(known / "verilog", "stored", route=False, root=known).bram == 1


@pytest.mark.slow
def test_seven_series_is_counted(known):
    result = synthesise(known / "verilog", "stored", family="xc7", root=known)
    assert (result.dsp, result.bram, result.fmax_mhz) == (1, 1, None)


PAIRS = {DualMultiplier: {"ecp5": 2, "xc7": 1}, DualInt4Multiplier: {"ecp5": 1, "xc7": 1}}
PAIRS |= {DualSignificandMultiplier: PAIRS[DualInt4Multiplier]}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ecp5", pytest.param("xc7", marks=pytest.mark.long)])
@pytest.mark.parametrize("multiplier", PAIRS)
def test_two_products_take_one_multiplier_of_the_device(multiplier, family, tmp_path):
    """But for int8 on ECP5, whose multipliers are too narrow: what the page says of each file."""
    export(multiplier(), "pair", tmp_path)
    found = synthesise(tmp_path, "pair", family=family, route=False, root=tmp_path)
    assert found.dsp == PAIRS[multiplier][family]


def test_every_port_is_reached_once():
    ports = [
        {"name": "aclk", "width": 1, "direction": "input"},
        {"name": "aresetn", "width": 1, "direction": "input"},
        {"name": "x", "width": 5, "direction": "input"},
        {"name": "y", "width": 3, "direction": "output"},
        {"name": "z", "width": 1, "direction": "output"},
    ]
    text = pin_top(ports, "eb_thing")
    assert re.findall(r"\.(\w+)\((\w+)(?:\[(\d+):(\d+)\])?\)", text) == [
        ("aclk", "aclk", "", ""),
        ("aresetn", "i", "0", "0"),
        ("x", "i", "5", "1"),
        ("y", "w", "2", "0"),
        ("z", "w", "3", "3"),
    ]
    assert "reg [5:0] i;" in text
    assert "reg [3:0] o;" in text


def test_cells_add_up():
    cells = {"LUT4": 10, "CCU2C": 3, "TRELLIS_DPR16X4": 2, "PFUMX": 7, "TRELLIS_FF": 5, "MULT18X18D": 1}
    result = count_cells(cells, "ecp5")
    assert (result.lut, result.ff, result.dsp, result.bram) == (10 + 2 * 3 + 4 * 2, 5, 1, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_of_unknown_size_is_refused(family):
    with pytest.raises(InputError, match=f"^{family}: cells of unknown size: MYSTERY$"):
        count_cells({"MYSTERY": 1}, family)


def test_the_paths_of_pins_are_left_out():
    def path(source, sink, *delays):
        ends = {"from": {"cell": "p"}, "to": {"cell": "q"}}
        steps = [{"delay": delay, "type": kind, **ends} for delay, kind in delays]
        return {"from": source, "to": sink, "path": steps}

    edge = "posedge clk"
    report = {
        "fmax": {"clk": {"achieved": 250.0, "constraint": 100.0}},
        "critical_paths": [
            path("<async>", edge, (9.0, "routing")),
            path(edge, edge, (0.5, "clk-to-q"), (2.5, "routing"), (0.75, "logic"), (0.25, "setup")),
        ],
    }
    read = read_report(report)
    assert read["fmax_mhz"] == 250.0
    assert (read["critical"]["delay_ns"], read["critical"]["logic_ns"]) == (4.0, 1.5)
    assert read["critical"]["cells"] == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--design", "gate", "--seeds", "0"], "seeds: must be in 1..100, not 0"),
        (["--design", "gate", "--clock", "nan"], "clock: must be above 0 and at most 1000 MHz, not nan"),
        (["--design", "gate", "--placer", "sa"], "placer: must be one of heap, static, not 'sa'"),
        (["--design", "gate", "--family", "ice40"], "family: must be one of ecp5, xc7, not 'ice40'"),
        (["--design", "gate", "--block", "gate"], "block: is for a whole design, not for 'gate', a block"),
        (["--design", "gate", "--format", "int8"], "format: must be bf16 for 'gate', not int8"),
        (["--design", "gate", "--scale", "8"], "scale: needs a model: 'gate' has a size of its own"),
        (["--design", "fpga", "--block", "channel"], "block: 'channel' is none of engine 'fpga'"),
        (["--design", "fpga", "--set", "array.rows"], "set: must be FIELD=VALUE, not 'array.rows'"),
        (["--design", "fpga", "--set", "array.rows=12"],
         "set.array.rows: must be a power of two in 1..256, not 12"),
        (["--design", "fpga", "--set", "array.rows=many"],
         "array.rows: must be of type int, not 'many'"),
        (["--design", "fpga", "--set", "array.rows=8", "--set", "array.rows=4"],
         "set: sets 'array.rows' twice"),
        (["--design", "fpga", "--set", "array.multiplier=dual"],
         ("set.array.multiplier: must be single with format bf16 (a dual one multiplies with weights of at"
          " most 8 bits), not dual")),
        (["--design", "hbm2-pim", "--set", "array.rows=8"],
         "set: needs an accelerator, not 'hbm2-pim', a device"),
        (["--design", "gate", "--experts", "1"], "experts: must be in 2..512, not 1"),
        (["--design", "selection", "--experts", "8", "--top-k", "9"], "top-k: must be in 1..8, not 9"),
        (["--design", "fpga", "--experts", "8"],
         "experts: is for gate, dispatch, selection, not for 'fpga'"),
        (["--design", "hbm2-pim", "--top-k", "8"],
         "top-k: is for gate, dispatch, selection, not for 'hbm2-pim'"),
        (["--design", "fpga", "--pipeline", "deep"],
         "pipeline: is for gate, dispatch, selection, not for 'fpga'"),
        (["--design", "fpga", "--block", "x"],
         "block: must be one of gate, dispatch, combine, expert, channel, not 'x'"),
        (["--design", "hbm2-pim", "--block", "gate"],
         "block: needs an accelerator, not 'hbm2-pim', a device"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, line, capsys):
    assert main(["synth", *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"expertbank: {line}\n"


@pytest.mark.long
def test_the_selection_grows_with_its_choices(capsys):
    """One sorted list of one lane: k entries, nothing for each expert but an index's bits."""
    counts = {}
    for experts, top_k in ((16, 2), (16, 4)):
        options = ["--experts", str(experts), "--top-k", str(top_k)]
        assert main(["synth", "--design", "selection", *options, "--no-route", "--json"]) == 0
        counts[top_k] = json.loads(capsys.readouterr().out)
    assert counts[2]["lut"] < counts[4]["lut"] < 3 * counts[2]["lut"]
    assert counts[2]["ff"] < counts[4]["ff"]


@pytest.mark.long
def test_the_command_counts_the_dispatcher(capsys):
    assert main(["synth", "--design", "dispatch", "--no-route", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["fmax_mhz"] is None
    assert result["dsp"] == 0
    # At least the two windows' queue state and the entry registers; no array of multipliers.
    assert 100 < result["ff"] < 2000
    assert 100 < result["lut"] < 4000
