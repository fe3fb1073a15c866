"""Pages say what the sources say: ports, registers, counters, timing; links and figures lead somewhere."""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from golden.dispatch_streams import dispatch_streams
from rtl.combine import Combine, CombineConfig
from rtl.dispatch import Dispatch, DispatchConfig
from rtl.expert import ExpertEngine
from rtl.export import describe_ports
from rtl.gating import BankedGate, Gate
from rtl.layer import FpgaLayer, PimLayer, expert_config, pim_config
from rtl.pim import PimChannel
from rtl.registers import ADDRESS_BITS, RegisterFile
from sim.expert import expert_cycles
from sim.gating import latency
from sim.layer import LayerShape, layer_cycles
from sim.marked import marked
from sim.rtlsim import top_component
from spec import registers
from spec.design import RouterPlace
from spec.geometry import GateGeometry, ImageGeometry
from spec.load import load_design, load_model
from tests.waveforms import OF_LAYERS, WAVEFORMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DESIGN = load_design("fpga")
MODEL = load_model("mixtral-8x7b").scaled(64)
PAGES = sorted(path.name for path in DOCS.glob("*.md"))

# Components are looked at here, not elaborated.
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left():
    """What was never elaborated goes here, and not in a test that takes its warning for an error."""
    yield
    gc.collect()


def tables(text: str, heading: str) -> list[list[list[str]]]:
    """Return the tables of a section, each as rows of cells, without the lines of dashes."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading!r}"
    blocks = re.findall(r"(?:^\|.*\n)+", found[1], re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]
        for lines in (block.strip().splitlines() for block in blocks)
    ]


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


PIM = load_design("pim")
BANKED = replace(PIM, pim=replace(PIM.pim, router=RouterPlace.BANKS))

# In int8 the engines have the ports of bf16 and more.
COMPONENTS = {
    "gating": lambda: Gate(GateGeometry.of(MODEL, DESIGN)),
    "dispatch": lambda: Dispatch(DispatchConfig(num_experts=8, top_k=2, window_tokens=32, num_units=2)),
    "expert": lambda: ExpertEngine(expert_config(MODEL, load_design("fpga", "int8"))),
    "combine": lambda: Combine(CombineConfig(num_slots=8, d_model=64, lanes=4, max_count=2)),
    "pim": lambda: PimChannel(pim_config(MODEL, load_design("pim", "int8"))),
    "layer": lambda: FpgaLayer(MODEL, DESIGN),
}


@pytest.mark.parametrize("block", COMPONENTS)
def test_every_port_is_in_its_table(block):
    """The first column names every member of the component and nothing else; streams have a payload."""
    component = COMPONENTS[block]()
    header, *rows = tables(page(block), "Ports")[0]
    assert header[0] == "port"
    members = dict(component.signature.members)
    if block == "pim":
        # And with the router in its banks, and with check bits.
        for design in (BANKED, PIM.with_secded()):
            members |= PimChannel(pim_config(MODEL, design)).signature.members
    check_ports(block, header, rows, members)


def test_every_port_of_the_gate_behind_the_banks_is_in_its_table():
    config = pim_config(load_model("deepseek-v3").scaled(64), BANKED)
    header, *rows = tables(page("gating"), "Behind the banks")[0]
    check_ports("gating", header, rows, BankedGate(config.router, 4).signature.members)


def check_ports(block, header, rows, members):
    """Compare the first column with the members; a stream's, or structure's, fields are named."""
    listed = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(listed) == set(members)
    payload = header.index("payload")
    for name, member in members.items():
        if not member.is_signature and block == "gating" and isinstance(member.shape, data.StructLayout):
            for key in member.shape.members:
                assert re.search(rf"\b{key}\b", listed[name][payload]), f"{block}: {name} carries {key}"
        if member.is_signature and isinstance(member.signature, stream.Signature):
            shape = member.signature.members["payload"].shape
            for key in shape.members if isinstance(shape, data.StructLayout) else ():
                assert re.search(rf"\b{key}\b", listed[name][payload]), f"{block}: {name} carries {key}"


def test_ports_of_the_near_memory_layer():
    """Those that the other layer has too, and a table of its own, whose names hold an n for each channel."""
    model, design = MODEL, load_design("pim")
    members = PimLayer(model, design).signature.members
    rows = tables(page("layer"), "The near-memory layer")[1][1:]
    listed = {name for row in rows for name in re.findall(r"`([\w<>]+)`", row[0])}
    shared = set(COMPONENTS["layer"]().signature.members)
    own = {re.sub(r"_\d+(?=_|$)", "_<n>", name) for name in set(members) - shared}
    assert listed == own
    assert shared <= set(members)


def test_verilog_ports_of_the_layer():
    header, *rows = tables(page("layer"), "Ports")[0]
    column = header.index("Verilog")
    listed = {name: int(bits) for row in rows for name, bits in re.findall(r"`(\w+)` (\d+)", row[column])}
    described = describe_ports(COMPONENTS["layer"](), "eb_layer")
    ports = {port["name"]: port["width"] for port in described["ports"]}
    assert listed == {name: bits for name, bits in ports.items() if name not in ("aclk", "aresetn")}


def test_registers_and_counters_of_the_layer():
    register_table, counter_table = tables(page("layer"), "Registers")
    assert {row[1]: int(row[0], 16) for row in register_table[1:]} == registers.REGISTERS
    meanings = {row[1]: row[3] for row in register_table[1:]}
    assert f"{registers.IDENTITY:#x}" in meanings["IDENTITY"].lower()
    bits = {
        "CONTROL": {"load": registers.CONTROL_LOAD, "clear": registers.CONTROL_CLEAR},
        "STATUS": {
            "loaded": registers.STATUS_LOADED,
            "busy": registers.STATUS_BUSY,
            "read_error": registers.STATUS_READ_ERROR,
            "refreshing": registers.STATUS_REFRESHING,
            "uncorrected": registers.STATUS_UNCORRECTED,
        },
    }
    for name, expected in bits.items():
        found = re.findall(r"bit (\d+) `(\w+)`", meanings[name])
        assert {bit: int(number) for number, bit in found} == expected
    assert counter_table[1:] == [
        [f"{registers.counter_address(name):#04x}", name, meaning]
        for name, meaning in (registers.COUNTERS | registers.ECC_COUNTERS).items()
    ]
    assert max(map(registers.counter_address, registers.ECC_COUNTERS)) + 8 <= 1 << ADDRESS_BITS


def test_words_with_flipped_bits_are_counted_and_told():
    """Two in one cycle, one in another; STATUS tells of those that were not corrected, until ``clear``."""
    file = RegisterFile(flips=4)
    seen = []

    async def read(ctx, address):
        ctx.set(file.reg_addr, address)
        await ctx.tick().repeat(2)
        return ctx.get(file.reg_rdata)

    async def tell(ctx):
        names = registers.ECC_COUNTERS
        counts = [await read(ctx, registers.counter_address(name)) for name in names]
        seen.append((*counts, await read(ctx, registers.REGISTERS["STATUS"])))

    async def bench(ctx):
        ctx.set(file.status, 1)
        for corrected, uncorrected in ((4, 0), (1, 2), (0, 1)):
            ctx.set(file.corrected, corrected)
            ctx.set(file.uncorrected, uncorrected)
            await ctx.tick()
            ctx.set(file.corrected, 0)
            ctx.set(file.uncorrected, 0)
            await tell(ctx)
        ctx.set(file.reg_addr, registers.REGISTERS["CONTROL"])
        ctx.set(file.reg_wdata, 1 << registers.CONTROL_CLEAR)
        ctx.set(file.reg_we, 1)
        await ctx.tick()
        ctx.set(file.reg_we, 0)
        await tell(ctx)

    simulator = Simulator(file)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    error = 1 | 1 << registers.STATUS_UNCORRECTED
    assert seen == [(4, 0, 1), (5, 2, error), (5, 3, error), (0, 0, 1)]


def test_access_of_registers_is_what_the_hardware_does():
    """Write every register, then read it: what is marked so keeps the value, nothing else does."""
    table = {row[1]: row[2] for row in tables(page("layer"), "Registers")[0][1:]}
    kept, driven = set(), set()
    file = RegisterFile(scales=True)
    outputs = {
        name: Value.cast(getattr(file, name))
        for name, member in file.signature.members.items()
        if member.flow != In and name != "reg_rdata"
    }

    async def bench(ctx):
        for name, address in registers.REGISTERS.items():
            before = {output: ctx.get(value) for output, value in outputs.items()}
            ctx.set(file.reg_addr, address)
            ctx.set(file.reg_wdata, 0x5A5A5A5B)
            ctx.set(file.reg_we, 1)
            await ctx.tick()
            if any(ctx.get(value) != before[output] for output, value in outputs.items()):
                driven.add(name)
            ctx.set(file.reg_we, 0)
            await ctx.tick().repeat(2)
            if ctx.get(file.reg_rdata) == 0x5A5A5A5B:
                kept.add(name)

    simulator = Simulator(file)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert {name for name, access in table.items() if "write" in access} == driven
    assert {name for name, access in table.items() if access == "read, write"} == kept


def test_probe_of_the_layer():
    text = " ".join(page("layer").split())
    names = ", ".join(f"`{name}`" for name in registers.PROBE)
    assert f"from bit 0 on for {names}; bit {registers.PROBE_WAIT_TILE} the array waits" in text
    expert = f"bits {registers.PROBE_EXPERT} to {registers.PROBE_WEIGHT - 1} the expert"
    weight = f"bits {registers.PROBE_WEIGHT} to {registers.PROBE_BITS - 1} the bf16 weight"
    assert f"{expert} and {weight}" in text


def layer_of(name: str, num_tokens: int) -> tuple[LayerShape, dict[str, np.ndarray]]:
    """Return a layer and when its streams' beats pass, all tokens waiting and all to the same experts."""
    model = load_model(name).scaled(64)
    image = ImageGeometry.of(model, DESIGN)
    ids = np.tile(np.arange(model.gating.top_k), (num_tokens, 1))
    streams = dispatch_streams(
        ids,
        np.zeros_like(ids),
        num_experts=model.gating.num_experts,
        window_tokens=DESIGN.window_tokens,
        shared=image.shared is not None,
    )
    shape = LayerShape(image, DESIGN, streams)
    times = layer_cycles(shape, np.zeros(num_tokens, dtype=np.int64))
    expert = expert_cycles(
        shape.engine,
        shape.entry_shared,
        streams.entry_last,
        times.entries.taken,
        latency=DESIGN.memory.latency_cycles,
    )
    # The gate gives a token's first assignment so many cycles after it took the last beat.
    first_assignments = times.assignments.offered[:: model.gating.top_k]
    last_beats = first_assignments - (1 + latency(image.gate))
    beats = last_beats[:, None] + np.arange(1 - image.gate.input_beats, 1)
    outputs = times.outputs[:, None] + np.arange(shape.engine.words)
    return shape, {
        "tokens": beats.ravel(),
        "assignments": times.assignments.taken,
        "entries": times.entries.taken,
        "addresses": expert.ar,
        "beats": expert.r,
        "contributions": expert.o,
        "output": outputs.ravel(),
    }


def admission_after_output(name: str) -> int:
    """Return the cycles from a token's last output beat to the first beat of the token that gets its slot."""
    slots = 2 * DESIGN.window_tokens
    shape, taken = layer_of(name, slots + 1)
    beat = slots * shape.image.gate.input_beats
    freed = taken["output"][shape.engine.words - 1]
    assert taken["tokens"][beat - 1] + 1 < freed, "the token did not wait for a slot"
    return int(taken["tokens"][beat] - freed)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b"])
def test_documented_timing(name):
    """The rows of docs/layer.md's table of timing, by the layer's model, which the Verilog equals."""
    rows = tables(page("layer"), "Timing")[0][1:]
    shape, taken = layer_of(name, 1)
    first_job = int(np.flatnonzero(shape.streams.entry_last)[0])
    measured = [
        taken["tokens"][0],
        taken["assignments"][0] - taken["tokens"][-1],
        taken["entries"][0] - taken["assignments"][-1],
        taken["addresses"][0] - taken["entries"][first_job],
        taken["beats"][0] - taken["addresses"][0],
        taken["output"][0] - taken["contributions"][-1],
        admission_after_output(name),
    ]
    words = {"memory latency": DESIGN.memory.latency_cycles}
    gate = "1 + `Gate.latency` ([gating.md](gating.md))"
    words[gate] = 1 + latency(shape.image.gate)
    assert measured == [words[row[2]] if row[2] in words else int(row[2]) for row in rows]


@pytest.mark.parametrize(("block", "mark"), WAVEFORMS)
def test_waveforms_are_those_of_a_run(block, mark):
    file = DOCS / f"{block}.md"
    shown = marked(file.read_text(), mark, file=file)[1]
    assert shown.splitlines() == WAVEFORMS[block, mark](), "run python -m tests.waveforms"


@pytest.mark.long
@pytest.mark.parametrize(("block", "mark"), OF_LAYERS)
def test_waveforms_of_layers_are_those_of_a_run(block, mark):
    file = DOCS / f"{block}.md"
    shown = marked(file.read_text(), mark, file=file)[1]
    assert shown.splitlines() == OF_LAYERS[block, mark](), "run python -m tests.waveforms"


@pytest.mark.parametrize("block", COMPONENTS)
def test_page_of_a_block_has_what_its_reader_needs(block):
    """A diagram, ports, latencies and a waveform."""
    text = page(block)
    diagram = re.search(r"^```\n(.*?)^```", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    assert diagram
    assert "-->" in diagram[1]
    assert tables(text, "Ports")
    assert next(header for header, *_ in tables(text, "Timing"))[-1] in ("cycles", "when")
    assert (block, "waveform") in WAVEFORMS | OF_LAYERS


@pytest.mark.parametrize("name", [*(f"docs/{page}" for page in PAGES), "README.md", "CONTRIBUTING.md"])
def test_links_and_paths_lead_somewhere(name):
    """Relative links, and paths of sources in code marks, exist."""
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for path in re.findall(r"`((?:spec|golden|rtl|sim|tests|docs)/[\w/]+\.(?:py|md|toml))`", text):
        if not re.search(r"(\b|_)X\b", path):
            assert (ROOT / path).exists(), path


@functools.cache
def defined_tests() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for text in sources for name in re.findall(r"^ *def (test_\w+)\(", text, re.MULTILINE)}


@pytest.mark.parametrize("name", PAGES)
def test_named_tests_exist(name):
    """A page that names a test as its proof names one that is there."""
    for test in re.findall(r"`(test_\w+)`", (DOCS / name).read_text()):
        assert test in defined_tests(), test


CLASSES = {
    name
    for path in (ROOT / "rtl").rglob("*.py")
    for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)
}
ARROWS = {
    # What stands left and right of a port's name, and where the port then leads.
    r"(?<!, )\b{name} ?-+>": In,
    r"<-+ ?{name}\b": In,
    r"-> ?{name}\b": Out,
    r"(?<!, )\b{name} ?<-": Out,
}


def diagram_of(text: str) -> str:
    """Return the first diagram of a page or section: blocks and arrows, not a waveform."""
    found = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return next(one for one in found if "->" in one)


def check_diagram(text: str, members: Mapping) -> None:
    """Compare a diagram with a component's ports and with the classes of the hardware.

    Every stream is there; every port that is there is the component's (``reg_*``: several), and leads where
    its arrow does; every block in it is a class, by its name or the last words of it.
    """
    streams = {
        name
        for name, member in members.items()
        if member.is_signature and isinstance(member.signature, stream.Signature)
    }
    # Further ones of several alike: o_0, o_1 ...
    assert {re.sub(r"_\d+$", "_0", name) for name in streams} <= set(re.findall(r"\b\w+\b", text))
    # i, o, i_token; reg_*; and any other word that has an index or a further part as ports have.
    for name in re.findall(r"\b[io](?:_[a-z0-9_]+)?\b(?!\*)|\b[a-z]+_\*|\b[a-z]+_[a-z0-9_]+\b(?!\*)", text):
        if name in SIGNALS:
            continue
        # mem_0 stands for mem_0_en and the others.
        pattern = name.replace("*", r"\w+") + (r"(?:_\w+)?" if re.search(r"_\d$", name) else "")
        known = {one for one in members if re.fullmatch(pattern, one)}
        assert known, name
        for arrow, flow in ARROWS.items():
            if name in members and re.search(arrow.format(name=name), text):
                assert members[name].flow == flow, name
    check_blocks(text)


def check_blocks(text: str) -> None:
    """Look for the class of each block of a diagram."""
    for block in re.findall(r"\b(?:[A-Z][a-z]+)+\b", text):
        assert any(name.endswith(block) for name in CLASSES), block


SIGNALS = {"may_launch"}
"""Signals between the parts of a block that a diagram names."""


@pytest.mark.parametrize("block", COMPONENTS)
def test_diagrams_have_the_ports(block):
    check_diagram(diagram_of(page(block)), COMPONENTS[block]().signature.members)


def test_further_diagrams_have_the_ports():
    """Of the near-memory layer and of the gate behind the banks; of the router there the blocks."""
    layer, gating = page("layer"), page("gating")
    two = replace(PIM, pim=replace(PIM.pim, channels=2))
    check_diagram(
        diagram_of(layer.partition("## The near-memory layer")[2]), PimLayer(MODEL, two).signature.members
    )
    config = pim_config(load_model("deepseek-v3").scaled(64), BANKED)
    behind = diagram_of(gating.partition("## Behind the banks")[2])
    check_diagram(behind, BankedGate(config.router, 4).signature.members)
    check_blocks(diagram_of(layer.partition("## The router in the banks")[2]))


def test_the_check_of_diagrams_sees_what_is_wrong():
    text = diagram_of(page("expert"))
    members = COMPONENTS["expert"]().signature.members
    for there, other in (
        ("i_token", "i_tokens"),
        ("o_ar <----", "o_ar ---->"),
        ("o_ar <", "     <"),
        ("TokenStore", "TokenStorage"),
        ("JobLists", "Lists x_y"),
    ):
        assert there in text
        with pytest.raises(AssertionError):
            check_diagram(text.replace(there, other), members)


AXI_TOPS = {
    registers.Top.FPGA: (DESIGN, None),
    registers.Top.PIM: (PIM, None),
    registers.Top.GATE: (DESIGN, registers.Top.GATE),
    registers.Top.DISPATCH: (DESIGN, registers.Top.DISPATCH),
}


def axi_top(top: registers.Top):
    """Return a top with AXI ports and what its exported Verilog has."""
    design, block = AXI_TOPS[top]
    component = top_component(MODEL, design, block)()
    ports = describe_ports(component, "eb_x")
    clock = ("aclk", "aresetn")
    return component, ports, {port["name"]: port for port in ports["ports"] if port["name"] not in clock}


def axi_patterns(cell: str) -> list[str]:
    """Return patterns of ports' names: ``aw*`` has the prefix of the name before it; <n> is a channel's."""
    found, prefix = [], ""
    for name in re.findall(r"`([\w<>*]+)`", cell):
        whole = re.match(r"[sm]_axi[s]?_|mem_|row_|column_|irq", name)
        prefix = whole[0] if whole else prefix
        text = name if whole else prefix + name
        found.append(text.replace("<n>", r"\d+").replace("*", r"\w*"))
    return found


def check_axi_ports(top: registers.Top, rows: list[list[str]], ports: Mapping) -> None:
    """Compare the first column with a top's ports, one for one; the widths that the table has are real."""
    own = r"`pim`" if top is not registers.Top.PIM else "$^"
    patterns = [
        pattern
        for cell, what in rows
        for pattern in axi_patterns(cell)
        if not re.match(own, what) and (top is not registers.Top.DISPATCH or "m_axi_" not in pattern)
    ]
    for name in ports:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) == 1, f"{top}: {name}"
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in ports), f"{top}: {pattern}"


def axi_rows() -> list[list[str]]:
    return tables(page("axi"), "Ports")[0][1:]


@pytest.mark.parametrize("top", registers.Top)
def test_ports_of_the_tops_with_axi_are_in_their_table(top):
    _, described, ports = axi_top(top)
    ports = dict(ports)
    _, *beats = tables(page("axi"), "Ports")[1]
    if top is registers.Top.DISPATCH:
        # Its second output is in the table of beats.
        assert "`m_axis_expect`" in beats[2][2]
        ports = {name: port for name, port in ports.items() if not name.startswith("m_axis_expect_")}
    check_axi_ports(top, axi_rows(), ports)
    # Fields in the order named.
    order = {"gate": ["expert", "weight"], "dispatch": ["expert", "slot", "weight"]}.get(top)
    [row] = [row for row in beats if f"`{top}`" in row[0]]
    if order:
        [output] = [entry for entry in described["streams"] if entry["prefix"] == "m_axis"]
        assert [field["name"] for field in output["fields"]][: len(order)] == order
        assert re.findall(r"expert|slot|weight", row[2])[: len(order)] == order


def test_widths_of_the_tops_with_axi_are_those_of_the_page():
    """Those of ``fpga``, as the page says, and its bursts."""
    component, _, ports = axi_top(registers.Top.FPGA)
    text = " ".join(cell for row in axi_rows() for cell in row)
    lite, master = (
        next(row[1] for row in axi_rows() if row[0].startswith(f"`{name}"))
        for name in ("s_axi_aw", "m_axi_ar")
    )
    for name, bits in re.findall(r"`(\w+)` (\d+)", text):
        assert ports[name]["width"] == int(bits), name
    assert re.findall(r"(\d+) (address|data) bits", lite) == [
        (str(ports["s_axi_awaddr"]["width"]), "address"),
        (str(ports["s_axi_wdata"]["width"]), "data"),
    ]
    assert re.findall(r"(\d+) (address|data) bits", master) == [
        (str(ports["m_axi_araddr"]["width"]), "address"),
        (str(ports["m_axi_rdata"]["width"]), "data"),
    ]
    assert axi_top(registers.Top.GATE)[0].max_outstanding == 1
    assert f"`max_outstanding` ({component.max_outstanding}; `pim` and `gate`: 1)" in master
    assert f"`burst_beats` ({component.burst_beats})" in master


def test_the_check_of_axi_ports_sees_what_is_wrong():
    ports = axi_top(registers.Top.FPGA)[2]
    rows = axi_rows()
    check_axi_ports(registers.Top.FPGA, rows, ports)
    with pytest.raises(AssertionError):
        check_axi_ports(registers.Top.FPGA, rows[:-2], ports)
    with pytest.raises(AssertionError):
        check_axi_ports(registers.Top.FPGA, [*rows, ["`s_axi_x*`", ""]], ports)


def check_axi_diagram(text: str, ports: Mapping) -> None:
    """Each port of the diagram is there and leads where its arrow does; its blocks are parts of the top.

    A stream's direction is its data's, a slave's that of its addresses.
    """
    shown = set(re.findall(r"\b(?:[sm]_axis?_|irq\b)", text))
    assert shown == {found[0] for name in ports if (found := re.match(r"[sm]_axis?_|irq$", name))}
    signals = {"s_axi_": "awaddr", "s_axis_": "tdata", "m_axis_": "tdata", "irq": ""}
    for prefix, signal in signals.items():
        arrow = rf"{prefix}\*? +-->" if ports[prefix + signal]["direction"] == "input" else rf"--> {prefix}"
        assert re.search(arrow, text), prefix
    if "m_axi_araddr" in ports:
        assert re.search(r"m_axi_\* +<->", text)
    check_blocks(text)
    sources = "".join(path.read_text() for path in (ROOT / "rtl" / "axi").glob("*.py"))
    for block in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", text):
        assert f"= {block}(" in sources, block


def test_diagram_of_the_tops_with_axi_has_their_ports():
    text = diagram_of(page("axi"))
    ports = axi_top(registers.Top.FPGA)[2]
    check_axi_diagram(text, ports)
    for there, other in (
        ("--> irq", "<-- irq"),
        ("s_axis_*  -->", "s_axis_*  <--"),
        ("--> m_axis_*", "<-- m_axis_*"),
        ("m_axi_*   <->", "         <->"),
        ("ReadGuard", "ReadGuardian"),
        ("PacketMarker", "RouterLoad"),
    ):
        assert there in text
        with pytest.raises(AssertionError):
            check_axi_diagram(text.replace(there, other), ports)
