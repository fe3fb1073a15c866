"""Views of waveforms: every name is one of the VCD, everything is there, values have names."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import pywellen

from golden.vectors import read_vector
from sim.rtlsim import exported, file_list, top_component
from sim.rtlsim import ports_of as ports_of_top
from sim.waves import (
    AXI_PORTS,
    BUS_FIELDS,
    Port,
    Scope,
    Shown,
    Variable,
    names_of,
    ports_of,
    variables,
    view,
    write_views,
)
from spec.design import DesignSpec, RouterPlace
from spec.errors import InputWarning
from spec.load import load_design, load_model
from spec.model import ModelSpec
from spec.registers import BUS_REGISTERS, COUNTERS, Top
from tests.bench.axi_cores import CORES

TESTS = Path(__file__).parent
TINY, TINY_PIM = load_design(str(TESTS / "tiny.toml")), load_design(str(TESTS / "tiny_pim.toml"))
MODEL = read_vector(TESTS / "data/deepseek_v3_s0.npz").model
# Names as an export has them: of the gate's two experts one is of a block inside it, its ready is not there,
# and of dispatch.o_0 there is nothing but valid.
VCD = """$timescale 1ns $end
$scope module TOP $end
 $var wire 1 # aclk $end
 $scope module eb_layer $end
  $var wire 1 # aclk $end
  $scope module core $end
   $var wire 4 $ gate_o__payload_expert [3:0] $end
   $var wire 1 % gate_o__valid $end
   $var wire 1 ! o__ready $end
   $var wire 8 ' reg_addr [7:0] $end
   $var wire 8 ) memory[0] [7:0] $end
   $scope module gate $end
    $var wire 4 $ o__payload_expert [3:0] $end
    $var wire 4 ( topk_o__payload_expert [3:0] $end
    $var wire 1 % o__valid $end
    $var wire 1 & topk_o__valid $end
   $upscope $end
   $scope module dispatch $end
    $var wire 1 % o_0__valid $end
   $upscope $end
   $scope module registers $end
    $var wire 8 ' reg_addr [7:0] $end
    $var wire 64 + count_cycles [63:0] $end
   $upscope $end
  $upscope $end
 $upscope $end
$upscope $end
$enddefinitions $end
#0
b0000 $
"""


def shown_by_gtkwave(path: Path) -> list[tuple[str, str, str | None]]:
    """Return label, name and translate file of each line of GTKWave's view."""
    lines, translate = [], None
    flags, files = 0, {}
    for line in path.with_suffix(".gtkw").read_text().splitlines():
        if line.startswith("@"):
            flags = int(line[1:], 16)
        elif match := re.fullmatch(r"\^(\d+) (.*)", line):
            files[match[1]] = translate = match[2]
        elif match := re.fullmatch(r"\+\{(\w+)\} (\S+)", line):
            # A file is asked for by flag 0x2000, f of GTKWave's TR_FTRANSLATED.
            lines.append((match[1], match[2], translate if flags & 0x2000 else None))
    return lines


def shown_by_surfer(path: Path) -> list[tuple[str, str | None]]:
    """Return name and format of each line of Surfer's view, its items counted as Surfer does."""
    items: list[list[str | None]] = []
    focus = None
    for line in path.with_suffix(".sucl").read_text().splitlines():
        command, _, what = line.partition(" ")
        if command in ("divider_add", "variable_add"):
            assert focus is None, "would be added behind the item in focus"
            assert re.fullmatch(r"[\w.]+", what)
            items.append([what if command == "variable_add" else None, None])
        elif command == "item_focus":
            focus = int(what.translate(str.maketrans("abcdefghijklmnop", "0123456789abcdef")), 16)
        elif command == "item_set_format":
            items[focus][1] = what
        elif command == "item_unfocus":
            focus = None
        else:
            assert command == "zoom_fit"
    return [(name, shape) for name, shape in items if name is not None]


def check_ports(lines: Sequence[Shown], ports: Sequence[Port]) -> None:
    """Check that all of the ports of blocks is shown, the clock first."""
    assert lines[0].group == "clock"
    # Ports and fields that the design has not: ranks are of several channels.
    optional = {"rank", "unit"}
    seen = {(line.group, line.field.name) for line in lines}
    for port in ports:
        wanted = {field.name for field in port.fields} | ({"valid", "ready"} if port.stream else set())
        assert {(port.title, name) for name in wanted - optional} <= seen, port
        # A port without fields goes by its own name.
        labels = {line.label for line in lines if line.group == port.title}
        assert labels & {port.member, *wanted}, port


def check_axi(lines: Sequence[Shown], ports: Sequence[Port], *, without: set[str]) -> None:
    """Check that all of a top's AXI ports is shown but for the groups that it has not, and what is inside."""
    check_ports(lines, ports)
    for title, fields in (*AXI_PORTS, ("bus", BUS_FIELDS)):
        wanted = [] if title in without else [field.name for field in fields]
        assert [line.label for line in lines if line.group == title] == wanted
    assert {line.field.kind for line in lines if line.label.endswith(("awaddr", "s_axi_araddr"))} == {
        "register"
    }


def check_views(path: Path, model: ModelSpec, design: DesignSpec) -> None:
    """Check the views beside a waveform of a whole layer, or of an engine: all is there and nothing else."""
    declared = variables(path)
    bits = {one.path: one.width for scope in declared.values() for one in scope}
    with_bits = {name if width == 1 else f"{name}[{width - 1}:0]" for name, width in bits.items()}
    gtkwave, surfer = shown_by_gtkwave(path), shown_by_surfer(path)
    assert {name for _, name, _ in gtkwave} <= with_bits
    assert {name for name, _ in surfer} <= set(bits)
    assert [name.partition("[")[0] for _, name, _ in gtkwave] == [name for name, _ in surfer]
    # Surfer finds a variable by its whole name: of each there has to be one.
    read = Counter(one.full_name for one in pywellen.Waveform(str(path)).all_vars())
    assert {read[name] for name, _ in surfer} <= {1}
    lines = view(declared, design)
    axi = any(scope[2:] == ("core", "lite") for scope in declared)
    alone = not any(scope[2:] in {("core", "dispatch"), ("core", "layer", "dispatch")} for scope in declared)
    ports = ports_of(design, alone=alone)
    if axi:
        check_axi(lines, ports, without={"axi_expectations"})
    else:
        check_ports(lines, ports)
    names = names_of(model, design)
    mappings = {
        re.match(r"Name = (.*)", text)[1]: text
        for text in (file.read_text() for file in (path.parent / ".surfer" / "mappings").glob("*.txt"))
    }
    for line, (_, _, translate), (_, shape) in zip(lines, gtkwave, surfer, strict=True):
        if line.field.kind is None:
            assert translate is None
            assert shape == ("Unsigned" if line.field.decimal else None)
            continue
        width = line.variable.width
        table = {n: text for n, text in names[line.field.kind].items() if n < 1 << width}
        rows = [f"{n} {text}" for n, text in sorted(table.items())]
        assert Path(translate).read_text().splitlines() == rows
        assert mappings[shape].splitlines() == [f"Name = {shape}", f"Bits = {width}", *rows]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "run.1.vcd"
    path.write_text(VCD)
    return path


def test_a_port_is_shown_by_its_own_name(small, monkeypatch):
    """And what is not there is not shown; no name is made up."""
    monkeypatch.setenv("PATH", "")
    files = write_views(small, MODEL, TINY)
    assert {file.name for file in files if file.suffix != ".txt"} == {"run.1.gtkw", "run.1.sucl"}
    assert [(line.group, line.label, line.variable.path) for line in view(variables(small), TINY)] == [
        ("clock", "aclk", "TOP.eb_layer.aclk"),
        ("registers", "reg_addr", "TOP.eb_layer.core.registers.reg_addr"),
        ("assignments", "valid", "TOP.eb_layer.core.gate.o__valid"),
        ("assignments", "expert", "TOP.eb_layer.core.gate.o__payload_expert"),
        ("counters", "count_cycles", "TOP.eb_layer.core.registers.count_cycles"),
    ]
    assert [(label, name) for label, name, _ in shown_by_gtkwave(small)] == [
        ("aclk", "TOP.eb_layer.aclk"),
        ("reg_addr", "TOP.eb_layer.core.registers.reg_addr[7:0]"),
        ("valid", "TOP.eb_layer.core.gate.o__valid"),
        ("expert", "TOP.eb_layer.core.gate.o__payload_expert[3:0]"),
        ("count_cycles", "TOP.eb_layer.core.registers.count_cycles[63:0]"),
    ]
    assert [shape for _, shape in shown_by_surfer(small)] == [
        None,
        "run_1_register_8",
        None,
        "run_1_routed_4",
        "Unsigned",
    ]


def test_the_check_of_views_sees_what_is_not_in_the_waveform(small):
    write_views(small, MODEL, TINY)
    for suffix, there, other in ((".gtkw", "gate.o__valid", "gate.o__valid_16"), (".sucl", ".aclk", ".bclk")):
        file = small.with_suffix(suffix)
        text = file.read_text()
        file.write_text(text.replace(there, other))
        with pytest.raises(AssertionError, match="<="):
            check_views(small, MODEL, TINY)
        file.write_text(text)
    # All names are there; what else a layer has is not.
    with pytest.raises(AssertionError, match=r"^Port.*reg_we"):
        check_views(small, MODEL, TINY)


MODULE = re.compile(r"^module (\w+) \(.*?\);\n(.*?)^endmodule", re.MULTILINE | re.DOTALL)
DECLARED = re.compile(r"^  (?:input |output )?(?:wire|reg) (?:\[(\d+):0\] )?(\w+);", re.MULTILINE)
INSTANCE = re.compile(r"^  (\w+) (\w+) \(\n((?:    \..*\n)*)  \);", re.MULTILINE)
CONNECTED = re.compile(r"\.(\w+)\((\w+)(\[[\d:]+\])?\)")
SAME = re.compile(r"^  assign (\w+) = (\w+)(\[[\d:]+\])?;", re.MULTILINE)


def declared_by(text: str, top: str) -> dict[Scope, list[Variable]]:
    """Return what a waveform of exported Verilog would declare.

    Nets of ports that meet, and what is assigned the same bits of a net, share a code.
    """
    bodies = dict(MODULE.findall(text))
    found: dict[Scope, list[Variable]] = {("TOP",): []}
    codes = map(str, itertools.count())

    def walk(module: str, scope: Scope, outside: Mapping[str, str]) -> None:
        body = bodies[module]
        widths = {name: int(high or 0) + 1 for high, name in DECLARED.findall(body)}
        same = {name: (net, bits) for name, net, bits in SAME.findall(body) if net in widths}
        nets = dict(outside)

        def code(name: str) -> str:
            if name not in nets:
                net, bits = same.get(name, (None, ""))
                nets[name] = next(codes) if net is None else code(net) + bits
            return nets[name]

        found[scope] = [Variable(scope, name, width, code(name)) for name, width in widths.items()]
        for child, name, pins in INSTANCE.findall(body):
            if child in bodies:
                met = {pin: code(net) + bits for pin, net, bits in CONNECTED.findall(pins) if net in widths}
                walk(child, (*scope, name), met)

    walk(top, ("TOP", top), {})
    return found


@pytest.mark.parametrize(
    ("name", "two_clocks"),
    [
        pytest.param(Top.FPGA, False, marks=pytest.mark.slow),
        (Top.DISPATCH, False),
        pytest.param(Top.GATE, False, marks=pytest.mark.long),
        pytest.param(Top.PIM, False, marks=pytest.mark.long),
        *(pytest.param(top, True, marks=pytest.mark.long) for top in Top),
    ],
)
def test_a_top_with_axi_ports_shows_them_and_what_is_inside(name, two_clocks):
    """By the names of its exported Verilog, which a waveform has too."""
    model, design, block = CORES[name]
    component = top_component(model, design, block, two_clocks=two_clocks)
    config = (model, design, block, *((two_clocks,) if two_clocks else ()))
    stem = f"{name}_axi{'_two_clocks' if two_clocks else ''}"
    folder = exported(stem, component, config=config)
    text = "".join(file.read_text() for file in file_list(folder, stem))
    lines = view(declared_by(text, f"eb_{stem}"), design)
    without = {"axi_bursts" if name is Top.DISPATCH else "axi_expectations"}
    check_axi(lines, ports_of(design, alone=False, block=block), without=without)
    # Every port of AXI is shown but for what is constant, or not read.
    ports = {one["name"] for one in ports_of_top(folder, stem)["ports"]}
    wanted = {name for name in ports if re.match(r"[sm]_axis?_|irq$", name)}
    shown = {line.label for line in lines if line.group.startswith("axi_") or line.group == "interrupt"}
    assert shown == {name for name in wanted if not re.search(r"prot$|cache$|_[ar]+id$", name)}
    clocks = [line.label for line in lines if line.group == "clock"]
    assert clocks == (["aclk", "bus_aclk"] if two_clocks else ["aclk"])


def test_the_check_of_axi_ports_sees_what_is_missing():
    model, design, block = CORES[Top.DISPATCH]
    folder = exported("dispatch_axi", top_component(model, design, block), config=(model, design, block))
    text = (folder / "eb_dispatch_axi.v").read_text()
    for there, other, error in (
        ("s_axi_bresp", "s_axi_answer", "s_axi_bresp"),
        ("errors_short_token", "errors_short_one", "errors_short_token"),
        ("o_expect__payload", "o_expected__payload", "o_expect"),
    ):
        lines = view(declared_by(text.replace(there, other), "eb_dispatch_axi"), design)
        with pytest.raises(AssertionError, match=error):
            check_axi(lines, ports_of(design, alone=False, block=block), without={"axi_bursts"})


def test_a_waveform_of_something_else_has_an_empty_view(tmp_path):
    path = tmp_path / "x.vcd"
    path.write_text("$scope module TOP $end\n$var wire 1 # a $end\n$upscope $end\n$enddefinitions $end\n")
    write_views(path, MODEL, TINY)
    assert shown_by_gtkwave(path) == shown_by_surfer(path) == []


def test_values_have_names():
    names = names_of(MODEL, TINY)
    experts = MODEL.gating.num_experts
    assert names["routed"] == {n: f"expert {n}" for n in range(experts)}
    assert names["served"] == names["routed"] | {experts: "shared expert"}
    assert names["slot"][3] == f"token {2 * TINY.window_tokens}n+3"
    assert len(names["slot"]) == 2 * TINY.window_tokens
    assert names["row_command"] == {0: "-", 1: "ACT", 2: "PRE", 3: "PREA", 4: "REF"}
    assert names["column_command"] == {0: "-", 1: "MAC", 2: "WR", 3: "RD"}
    assert names["policy"] == {0: "queue_order", 1: "longest_queue"}
    assert names["register"][0x0C] == "IMAGE_PAGE"
    assert names["register"][0x40] == "cycles (low)"
    assert names["register"][0x4C] == "tokens_in (high)"
    assert names["register"][0x100] == "BUS_ID"
    assert len(names["register"]) == 11 + 2 * len(COUNTERS) + len(BUS_REGISTERS)
    assert names["burst"][1] == "INCR"
    assert names["bytes"][5] == "32 bytes"
    banked = replace(TINY_PIM, pim=replace(TINY_PIM.pim, router=RouterPlace.BANKS))
    assert names_of(MODEL, banked)["served"][experts + 1] == "router"
    longcat = load_model("longcat-flash").scaled(64)
    gating = replace(longcat.gating, num_experts=24, num_identity_experts=8, top_k=2)
    identity = replace(longcat, gating=gating)
    named = names_of(identity, TINY)
    ffns = identity.gating.num_ffn_experts
    assert named["routed"][ffns] == f"identity {ffns}"
    assert ffns not in named["served"]


def test_every_channel_has_its_groups():
    ports: tuple[Port, ...] = ports_of(TINY_PIM, alone=False)
    channels = TINY_PIM.pim.channels
    for name, block in (("row_bus", "channel_{}"), ("entries", "dispatch"), ("contributions", "channel_{}")):
        found = [(port.title, port.block) for port in ports if port.title.startswith(f"{name}_")]
        assert found == [(f"{name}_{n}", block.format(n)) for n in range(channels)]


@pytest.mark.parametrize("works", [True, False])
def test_fst_where_the_program_is(small, monkeypatch, works):
    """It is called with both files; where it fails the VCD and the views are there all the same."""
    program = small.parent / "vcd2fst"
    program.write_text('#!/bin/sh\necho "$1" > "$2"\n' + ("" if works else "exit 3\n"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(small.parent))
    fst = small.with_suffix(".fst")
    if works:
        assert write_views(small, MODEL, TINY)[-1] == fst
        assert fst.read_text() == f"{small}\n"
        return
    with pytest.warns(InputWarning, match=rf"^{re.escape(str(fst))}: not written: vcd2fst failed \(3\)$"):
        files = write_views(small, MODEL, TINY)
    assert fst not in files
    assert not fst.exists()
    assert small.with_suffix(".gtkw") in files
