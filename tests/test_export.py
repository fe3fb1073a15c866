# amaranth: UnusedElaboratable=no
# (components that the exporter refuses are never elaborated)
"""The Verilog: AXI ports, one module per distinct block, the same bytes, lint-clean."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.crossing import TwoClocks
from rtl.dispatch import Dispatch
from rtl.export import LINT_WAIVERS, ExportError, export
from rtl.ram import Ram
from rtl.stream import StreamRegister, connect_stream
from sim.rtlsim import block_component, layer_component
from sim.toolchain import verilator_command
from spec.load import load_design, load_model
from tests.bench.test_dispatch_bench import UNITS
from tests.harness_designs import PACKET, RamBench, Reader
from tests.verilog2005 import faults, faults_of_export, icarus

ROOT = Path(__file__).parent.parent


class Chain(wiring.Component):
    """Three equal registers and one of another width, in two levels of hierarchy."""

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8)), "odd": Out(1)})

    def elaborate(self, platform):
        m = Module()
        link = wiring.flipped(self.i)
        for index in range(3):
            m.submodules[f"stage_{index}"] = stage = StreamRegister(8)
            connect_stream(m, link, stage.i)
            link = stage.o
        connect_stream(m, link, wiring.flipped(self.o))
        m.submodules.narrow = narrow = StreamRegister(2)
        m.d.comb += [
            narrow.i.valid.eq(self.i.valid),
            narrow.i.payload.eq(self.i.payload),
            narrow.o.ready.eq(1),
            self.odd.eq(narrow.o.payload[0]),
        ]
        return m


class Parity(wiring.Component):
    """Registered parity of a value."""

    def __init__(self) -> None:
        super().__init__({"i": In(16), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i.xor())
        return m


class Parities(wiring.Component):
    """Four equal parities of bytes with zeros below; one of another byte that is tied in part."""

    def __init__(self) -> None:
        super().__init__({"data": In(32), "parities": Out(5)})

    def elaborate(self, platform):
        m = Module()
        flipped = Signal(32)
        m.d.comb += flipped.eq(~self.data)
        values = [Cat(Const(0, 8), flipped[8 * n : 8 * n + 8]) for n in range(4)]
        for n, value in enumerate([*values, Cat(Const(1, 8), flipped[:8])]):
            m.submodules[f"parity_{n}"] = parity = Parity()
            m.d.comb += [parity.i.eq(value), self.parities[n].eq(parity.o)]
        return m


def modules_of(text):
    return re.findall(r"^module (\S+)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def reader_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reader")
    export(Reader(), "reader", directory)
    return directory


def test_ports_have_axi_names_and_byte_widths(reader_dir):
    text = (reader_dir / "eb_reader.v").read_text()
    top = text[: text.index("endmodule")]
    found = {
        name: int(high or 0) + 1
        for high, name in re.findall(r"^  (?:input|output) (?:\[(\d+):0\] )?(\w+);$", top, re.MULTILINE)
    }
    expected = {
        **{"aclk": 1, "aresetn": 1},
        **{"s_axis_tdata": 16, "s_axis_tlast": 1, "s_axis_tvalid": 1, "s_axis_tready": 1},
        **{"m_axis_tdata": 16, "m_axis_tlast": 1, "m_axis_tvalid": 1, "m_axis_tready": 1},
        **{"m_axis_words_tdata": 80, "m_axis_words_tvalid": 1, "m_axis_words_tready": 1},
        **{"m_axi_araddr": 32, "m_axi_arlen": 8, "m_axi_arsize": 3, "m_axi_arburst": 2},
        **{"m_axi_arvalid": 1, "m_axi_arready": 1, "m_axi_rdata": 64, "m_axi_rresp": 2},
        **{"m_axi_rlast": 1, "m_axi_rvalid": 1, "m_axi_rready": 1},
        **{"reg_addr": 2, "reg_wdata": 32, "reg_we": 1, "reg_rdata": 32},
        **{"bug": 3, "busy": 1, "wide": 100, "wide_parity": 1},
    }
    assert found == expected
    described = json.loads((reader_dir / "reader.ports.json").read_text())
    assert {port["name"]: port["width"] for port in described["ports"]} == expected
    # A payload's width is not that of its port, which has whole bytes.
    streams = {entry["prefix"]: (entry["data_bits"], entry["port_bits"]) for entry in described["streams"]}
    assert streams["s_axis"] == (13, 16)
    assert {prefix: bits for prefix, (_, bits) in streams.items()} == {
        prefix: expected[f"{prefix}_tdata"] for prefix in streams
    }


def test_axi_constants_state_the_burst(reader_dir):
    text = (reader_dir / "eb_reader.v").read_text()
    for port, value in (("arlen", "8'h03"), ("arsize", "3'h3"), ("arburst", "2'h1")):
        assert f"assign m_axi_{port} = {value};" in text


def test_equal_blocks_are_one_module(tmp_path):
    export(Chain(), "chain", tmp_path)
    text = (tmp_path / "eb_chain.v").read_text()
    assert modules_of(text) == ["eb_chain", "eb_chain_core", "eb_chain_narrow", "eb_chain_stage"]
    assert re.findall(r"^  eb_chain_stage (\w+) \(", text, re.MULTILINE) == ["stage_0", "stage_1", "stage_2"]


def test_values_in_part_constant_are_named_ports_of_one_module(tmp_path):
    """Amaranth numbers such ports through the design, which made each instance a module of its own."""
    bytes_ = [f"flipped[{8 * n + 7}:{8 * n}]" for n in range(4)]
    text = export(Parities(), "parities", tmp_path)[0].read_text()
    assert modules_of(text) == [
        "eb_parities",
        "eb_parities_core",
        "eb_parities_parity",
        "eb_parities_parity_4",
    ]
    assert re.findall(r"\.in_0\((\S+)\)", text) == [*bytes_, bytes_[0]]
    assert "port_" not in text


def test_names_are_plain_and_registers_undefined(reader_dir):
    text = (reader_dir / "eb_reader.v").read_text()
    assert "\\" not in text
    assert "$" not in text
    initial = re.findall(r"^ *reg .* = .*$", text, re.MULTILINE)
    assert initial == []


class Truncated(wiring.Component):
    """Bits that are chosen at run time, of a whole value and of a part, and a test for zero."""

    def __init__(self) -> None:
        super().__init__({"value": In(16), "by": In(4), "low": Out(4), "part": Out(3), "zero": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.low.eq(self.value.bit_select(self.by, 4)),
            self.part.eq(self.value[4:12].bit_select(self.by, 3)),
            self.zero.eq(self.value[3:9] == 0),
        ]
        return m


def test_low_bits_of_a_shift_are_said(tmp_path):
    """A linter sees no truncation that is not written down."""
    text = export(Truncated(), "truncated", tmp_path)[0].read_text()
    assert "lint_off" not in text
    assert lint(tmp_path, "truncated") == ""
    assert re.search(
        r"^  wire \[15:0\] (\w+)_whole = value >> by;\n  assign \1 = \1_whole\[3:0\];$", text, re.M
    )


class Compared(wiring.Component):
    """Comparisons, one of them with 0."""

    def __init__(self) -> None:
        super().__init__({"compare": In(8), "least": In(4), "above": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.above.eq((Const(0, 8) > self.compare) | (self.least > self.compare))
        return m


class Hiding(wiring.Component):
    """An instance ``compare`` in which a signal is called so, by the port of what is inside it."""

    def __init__(self) -> None:
        super().__init__({"value": In(8), "least": In(4), "above": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.compare = outer = HidingInside()
        m.d.comb += [outer.value.eq(self.value), outer.least.eq(self.least), self.above.eq(outer.above)]
        return m


class HidingInside(Hiding):
    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Compared()
        m.d.comb += [
            inner.compare.eq(self.value + self.least),
            inner.least.eq(self.least),
            self.above.eq(inner.above),
        ]
        return m


def test_no_signal_hides_an_instance_and_nothing_is_compared_in_vain(tmp_path):
    text = export(Hiding(), "hiding", tmp_path)[0].read_text()
    assert lint(tmp_path, "hiding") == ""
    assert "  wire [7:0] compare_v2;\n" in text
    assert re.search(
        r"^    \.compare\((\w+\[7:0\])\),\n(.*\n)*  assign compare_v2 = \1;$", text, re.MULTILINE
    )
    assert re.search(r"^  eb_hiding_compare compare \($", text, re.MULTILINE)
    assert re.search(r"^  assign \w+ = 1'h0;$", text, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["nllb-moe-54b", "gshard-150b"])
def test_dispatchers_that_decide_on_windows_are_lint_clean(preset, tmp_path):
    """A port ``decide`` names a signal of the submodule ``decide``."""
    design = load_design(str(ROOT / "tests" / "tiny.toml"))
    export(block_component(load_model(preset).scaled(64), design, "dispatch")(), "odd", tmp_path)
    assert lint(tmp_path, "odd") == ""


@pytest.mark.slow
def test_a_dispatcher_of_units_by_their_lengths_is_lint_clean(tmp_path):
    """The parity, expert and unit of a job hang on each other: in one signal they looked like a loop."""
    export(Dispatch(UNITS), "units", tmp_path)
    assert lint(tmp_path, "units") == ""


@pytest.mark.long
def test_a_layer_with_stored_weights_and_odd_sizes_is_lint_clean(tmp_path):
    """Sums of groups begin with 0, with which an addend is compared."""
    design = load_design("pim-small", "int4")
    export(layer_component(load_model("qwen2-57b-a14b").scaled(97), design)(), "odd", tmp_path)
    assert lint(tmp_path, "odd") == ""


@pytest.mark.long
def test_a_layer_on_two_clocks_is_lint_clean(tmp_path):
    """No net resets some flip-flops asynchronously and others not: none does so."""
    layer = layer_component(load_model("gpt-oss-20b").scaled(113), load_design("pim-small"))
    files = export(TwoClocks(layer()), "two", tmp_path)
    assert lint(tmp_path, "two") == ""
    assert not re.search(r"always @\(.*,|always @\(.* or ", files[0].read_text())


@icarus
def test_reset_from_the_beginning_is_seen(tmp_path):
    """In a four-valued simulator, where nothing changes at time 0 but what is initialised."""
    export(Chain(), "chain", tmp_path)
    bench = tmp_path / "bench.sv"
    bench.write_text(
        "module bench; reg aclk = 0, aresetn = 0; always #5 aclk = ~aclk; wire v, r, odd; wire [7:0] d;\n"
        "eb_chain dut(.aclk(aclk), .aresetn(aresetn), .s_axis_tdata(8'd0), .s_axis_tvalid(1'b0), .odd(odd),\n"
        ".s_axis_tready(r), .m_axis_tdata(d), .m_axis_tvalid(v), .m_axis_tready(1'b1));\n"
        'initial begin #40 aresetn = 1; #40 $display("%b %b", v, r); $finish; end endmodule\n'
    )
    command = ["iverilog", "-g2012", "-s", "bench", "-o", "bench.vvp", "bench.sv", "-f", "chain.f"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        ["vvp", "-n", "bench.vvp"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == "0 1"


def test_file_list_names_what_is_needed(tmp_path):
    files = export(RamBench(), "ram_bench", tmp_path)
    assert [file.name for file in files] == [
        "eb_ram_bench.v",
        "eb_ram.v",
        "ram_bench.f",
        "ram_bench.ports.json",
    ]
    assert (tmp_path / "ram_bench.f").read_text() == "eb_ram_bench.v\neb_ram.v\n"
    assert sorted(tmp_path.iterdir()) == sorted(files)


class ApartBench(wiring.Component):
    """A RAM whose rows are never read while they are written."""

    def __init__(self):
        super().__init__({"addr": In(3), "en": In(1), "value": In(8), "row": In(3), "data": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(width=8, depth=8, apart=True)
        m.d.comb += [
            ram.write.addr.eq(self.addr),
            ram.write.data.eq(self.value),
            ram.write.en.eq(self.en),
            ram.read_0.addr.eq(self.row),
            ram.read_0.en.eq(1),
            self.data.eq(ram.read_0.data),
        ]
        return m


def test_a_ram_of_rows_apart_has_a_file_of_its_own(tmp_path):
    files = export(ApartBench(), "apart", tmp_path)
    assert [file.name for file in files] == ["eb_apart.v", "eb_ram_apart.v", "apart.f", "apart.ports.json"]
    assert "TRANSPARENT" not in files[0].read_text()
    assert lint(tmp_path, "apart") == ""


DATA = ROOT / "tests" / "data" / "mixtral_s0.npz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "num_files"),
    [
        pytest.param(["--model", DATA, "--design", ROOT / "tests" / "tiny.toml"], 24, id="array"),
        pytest.param(
            ["--model", DATA, "--design", ROOT / "tests" / "tiny_pim.toml"],
            25,
            id="pim",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["--bus", "axi", "--design", "gate", "--two-clocks"],
            29,
            id="gate on two clocks",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_layer_has_the_same_bytes_in_any_process(options, num_files, tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "sim.cli", "verilog", *map(str, options), "--out", tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        for seed in ("1", "2")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    files, others = (
        sorted(file.relative_to(tmp_path / seed) for file in (tmp_path / seed).rglob("*") if file.is_file())
        for seed in ("1", "2")
    )
    assert files == others
    assert len(files) == num_files
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


SMALL = pytest.mark.parametrize(
    ("component", "name"), [(Reader, "reader"), (RamBench, "ram_bench"), (Chain, "chain")]
)


@SMALL
def test_other_compilers_read_the_files_as_verilog_2005(component, name, tmp_path):
    export(component(), name, tmp_path)
    assert faults_of_export(tmp_path, name) == []


VERILOG = """module t (clk, a, y);
  input clk;
  input [3:0] a;
  output [3:0] y;
  reg [3:0] r;
{}
endmodule
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("  always @(posedge clk) r <= a; assign y = r;", None),
        ("  logic [3:0] x; assign y = a;", "undeclared identifier 'logic'"),
        ("  always_comb r = a; assign y = r;", "undeclared identifier 'always_comb'"),
        ("  assign y = '0;", "UnbasedUnsizedLiteralExpression is not of Verilog-2005: '0"),
        ("  assign y = 4'(a + 4'd1);", "CastExpression is not of Verilog-2005: 4'(a + 4'd1)"),
        ("  always @(posedge clk) r++; assign y = r;", "PostincrementExpression is not of Verilog-2005: r++"),
        ("  always @(posedge clk) r += a; assign y = r;", "AddAssignmentExpression is not of Verilog-2005"),
        ("  assign r = a; assign y = r;", "a variable is driven like a net: r"),
        ("  assign {r[3:1], y} = {a, a[3:1]};", "a variable is driven like a net: r"),
        ("  eb u (.o(r)); assign y = r;", "a variable is driven like a net: r"),
        ("  wire [3:0] q = a[5:2]; assign y = q;", "cannot select range of [5:2]"),
        ("  wire [2:0] q = a; assign y = {1'b0, q};", "implicit conversion truncates"),
        ("  assign y = nothing;", "undeclared identifier 'nothing'"),
    ],
)
def test_what_is_not_verilog_2005_is_told(text, fault, tmp_path):
    other = "module eb (o); output [3:0] o; assign o = 4'd1; endmodule\n"
    (tmp_path / "t.v").write_text(VERILOG.format(text) + other)
    found = faults(tmp_path, ["t.v"], "t")
    assert found == [] if fault is None else any(fault in line for line in found), found


def lint(folder, name):
    """Return what Verilator says of an export, but for the stated classes."""
    waivers = [f"-Wno-{kind}" for kind in LINT_WAIVERS]
    command, environment = verilator_command("--lint-only", "-Wall", *waivers, "--top-module", f"eb_{name}")
    done = subprocess.run(
        [*command, "--default-language", "1364-2005", "-f", f"{name}.f"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr


@SMALL
def test_lint_clean_but_for_the_stated_classes(component, name, tmp_path):
    export(component(), name, tmp_path)
    assert lint(tmp_path, name) == ""


class Custom(wiring.Component):
    """A component with the given members and, if any, submodules; nothing connected."""

    def __init__(self, members, submodules=(), axi_read=None) -> None:
        self.anonymous = submodules
        if axi_read is not None:
            self.axi_read = axi_read
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        for name, value in self.signature.members.items():
            if value.is_port and value.flow == Out:
                m.d.sync += getattr(self, name).eq(1)
        m.submodules += self.anonymous
        return m


AR = Out(stream.Signature(data.StructLayout({"addr": 32})))
R = In(stream.Signature(data.StructLayout({"data": 24, "last": 1})))
NO_LAST = In(stream.Signature(data.StructLayout({"data": 32})))


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (
            Custom({"words": In(stream.Signature(8))}),
            "words: a stream into a component is named i or i_*, one out of it o or o_*",
        ),
        (
            Custom({"i": In(stream.Signature(8, always_valid=True))}),
            "i: a stream that is always valid or always ready has no AXI4-Stream form",
        ),
        (Custom({"nothing": Out(0)}), "port nothing has no bits"),
        (
            Custom({"i": In(stream.Signature(0))}),
            "i: a stream without data has no AXI4-Stream form",
        ),
        (Custom({"aclk": In(1)}), "two members become port aclk"),
        (Custom({}, axi_read=("o_ar", "i_r", 4)), "axi_read names o_ar, which is no member"),
        (
            Custom({"o_ar": AR, "i_r": R}, axi_read=("o_ar", "i_r", 4)),
            "i_r: AXI4 data must have a power of two of bytes, not 24 bits",
        ),
        (
            Custom({"o_ar": AR, "i_r": NO_LAST}, axi_read=("o_ar", "i_r", 4)),
            "i_r: fields must be data, last, optionally resp, not data",
        ),
        (Custom({"o": Out(1)}, submodules=[StreamRegister(8)]), "name the submodule: U$0"),
        (Custom({"double": Out(1)}), "rename the signal: double is a keyword of C++"),
    ],
)
def test_what_has_no_faithful_form_is_refused(component, message, tmp_path):
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export(component, "custom", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_signals_of_no_bits_disappear(tmp_path):
    class Narrow(wiring.Component):
        i: In(stream.Signature(8))
        o: Out(stream.Signature(8))

        def elaborate(self, platform):
            m = Module()
            connect_stream(m, wiring.flipped(self.i), wiring.flipped(self.o))
            nothing = Signal(range(1))
            m.d.sync += nothing.eq(self.i.payload)
            with m.If(nothing == 1):
                m.d.comb += self.o.payload.eq(0)
            return m

    export(Narrow(), "narrow", tmp_path)
    assert "[-1:0]" not in (tmp_path / "eb_narrow.v").read_text()


def test_name_must_be_an_identifier(tmp_path):
    with pytest.raises(ExportError, match=r"^name must be a lower-case identifier, not 'a-b'$"):
        export(StreamRegister(PACKET), "a-b", tmp_path)


def test_nested_members_are_flattened(tmp_path):
    inner = wiring.Signature({"count": Out(4), "clear": In(1)})

    class Nested(wiring.Component):
        def __init__(self) -> None:
            super().__init__({"stats": Out(inner), "taps": Out(2).array(3)})

        def elaborate(self, platform):
            m = Module()
            total = Signal(4)
            with m.If(self.stats.clear):
                m.d.sync += total.eq(0)
            with m.Else():
                m.d.sync += total.eq(total + 1)
            m.d.comb += self.stats.count.eq(total)
            m.d.comb += [tap.eq(total) for tap in self.taps]
            return m

    export(Nested(), "nested", tmp_path)
    described = json.loads((tmp_path / "nested.ports.json").read_text())
    assert [(port["name"], port["direction"], port["bits"]) for port in described["plain"]] == [
        ("stats_count", "out", 4),
        ("stats_clear", "in", 1),
        ("taps_0", "out", 2),
        ("taps_1", "out", 2),
        ("taps_2", "out", 2),
    ]
