# amaranth: UnusedElaboratable=no
"""The generated Verilog reads as if written by hand, and is the circuit that Amaranth's own text is."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from amaranth import Array, Cat, Module, Mux, Signal, signed
from amaranth.back import verilog
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import rtl
from rtl.export import export
from rtl.stream import StreamRegister, connect_stream, handshake
from rtl.text import readable
from rtl.text.owners import named_by_owner
from sim.rtlsim import layer_component, top_component
from spec.load import load_design, load_model
from spec.registers import Top
from tests.bench.axi_cores import CORES
from tests.gates import YOSYS

WORD = data.StructLayout({"value": 6, "last": 1})
OTHER = data.StructLayout({"last": 1, "value": 6})


class Operators(wiring.Component):
    """Every operator beside others of its width and beside wider ones, as a condition and as a value."""

    def __init__(self) -> None:
        super().__init__({"a": In(1), "b": In(1), "c": In(1), "x": In(4), "y": In(signed(4)), "o": Out(36)})

    def elaborate(self, platform):
        m = Module()
        a, b, c, x, y = self.a, self.b, self.c, self.x, self.y
        held = Signal(3)
        toggle = Signal()
        taken = Signal()
        m.d.sync += toggle.eq(~toggle ^ (a & ~b))
        m.d.sync += taken.eq((a | ~c) & (x == held))
        with m.If((a & ~b) | (x[3] & ~(c ^ toggle))):
            m.d.sync += held.eq(held + (a & ~b))
        with m.Elif(~(x < y) | (x.all() & ~y.any())):
            m.d.sync += held.eq(~(a & b))
        m.d.comb += self.o.eq(
            Cat(
                # Of one bit, of more, and of one where more are asked for.
                [a & b & c, a & (b & c), a | b ^ c, ~(a & ~b), ~a, x.xor() ^ a, ~x.any() & b],
                [(x == y) & a, (x < 3) | ~c, Mux(a & ~b, x, y)[:2], Mux(~a, b & c, c)],
                (~(a & b) + x)[:5],
                (Cat(~a, b) - ~c)[:4],
                (~Cat(a & b, c))[:2],
                [Array([a, b, c, toggle])[x[:2]], held, toggle, taken],
            )
        )
        return m


class Leaf(wiring.Component):
    """A register of a word; what it tells of itself is called as in others."""

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(WORD)),
                "o": Out(stream.Signature(WORD)),
                "count": Out(2),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.register = register = StreamRegister(WORD)
        connect_stream(m, wiring.flipped(self.i), register.i)
        connect_stream(m, register.o, wiring.flipped(self.o))
        count = Signal(2)
        with m.If(register.o.valid & register.o.ready):
            m.d.sync += count.eq(count + 1)
        m.d.comb += [self.count.eq(count), self.done.eq(register.o.payload.last & (count == 2))]
        return m


class Nest(wiring.Component):
    """Blocks with ports of one name one behind the other, two ways in, and a word seen by another layout."""

    def __init__(self) -> None:
        super().__init__(
            {
                **{"i": In(stream.Signature(WORD)), "i_other": In(stream.Signature(OTHER))},
                **{"o": Out(stream.Signature(WORD)), "o_other": Out(stream.Signature(OTHER))},
                **{"counts": Out(8), "done": Out(3)},
            }
        )

    def elaborate(self, platform):
        m = Module()
        leaves = [Leaf() for _ in range(4)]
        for number, leaf in enumerate(leaves):
            m.submodules[f"leaf_{number}"] = leaf
        for before, after in pairwise(leaves[:3]):
            connect_stream(m, before.o, after.i)
        connect_stream(m, wiring.flipped(self.i), leaves[0].i)
        connect_stream(m, leaves[2].o, wiring.flipped(self.o))
        m.d.comb += [
            Cat(leaves[3].i.payload).eq(self.i_other.payload),
            leaves[3].i.valid.eq(self.i_other.valid & ~leaves[0].done),
            self.i_other.ready.eq(leaves[3].i.ready & ~leaves[0].done),
            Cat(self.o_other.payload).eq(leaves[3].o.payload),
            self.o_other.valid.eq(leaves[3].o.valid),
            leaves[3].o.ready.eq(self.o_other.ready),
            self.counts.eq(Cat(leaf.count for leaf in leaves)),
            self.done.eq(Cat(*handshake(m, "first", leaves[0].o), leaves[1].done & leaves[2].done)),
        ]
        return m


COMPONENTS = {"operators": Operators, "nest": Nest, "leaf": Leaf}

TINY = Path(__file__).parent / "tiny.toml"


def raw(component):
    """Return Amaranth's own text, before any of ours."""
    return verilog.convert(component, name="gold", emit_src=False, strip_internal_attrs=True)


def prove_equal(gold, gate, folder):
    """Prove two texts the same circuit, each with a top called gold, registers and ports by their names."""
    (folder / "gold.v").write_text(gold)
    (folder / "gate.v").write_text(gate)
    read = "read_verilog -nomem2reg {}.v; hierarchy -check -top gold; proc; flatten; opt_clean"
    script = (
        f"{read.format('gold')}; design -stash gold; {read.format('gate')}; rename gold gate;"
        " design -copy-from gold -as gold gold; equiv_make gold gate both; hierarchy -top both;"
        " equiv_struct; equiv_simple -undef; equiv_induct -undef; equiv_status -assert"
    )
    return subprocess.run(
        [sys.executable, "-c", YOSYS, "-q", "-p", script], cwd=folder, capture_output=True, text=True
    )


def without_initial_values(text):
    """Return Amaranth's text with registers that reset alone defines, as in ours."""
    text = re.sub(r"^ *\(\* init = \S+ \*\)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^( *reg .*) = \d+'\S+;$", r"\1;", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", COMPONENTS)
def test_names_and_expressions_leave_the_circuit_as_it_is(name, tmp_path):
    text = raw(COMPONENTS[name]())
    done = prove_equal(without_initial_values(text), readable(text, "gold"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG = {
    "a condition of another precedence": ("operators", "(a & ~b) | (x[3] &", "a & (~b | x[3] &"),
    "an operand that its context extends": (
        "operators",
        "assign _net_48 = a & ~b;",
        "assign _net_48 = a & b;",
    ),
    "a bit that is another's": ("nest", ".i__valid(leaf_0_o__valid)", ".i__valid(leaf_1_o__valid)"),
    "a word of another block": ("nest", ".i__payload(leaf_1_o__payload)", ".i__payload(leaf_0_o__payload)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_circuit_is_told(wrong, tmp_path):
    name, ours, other = WRONG[wrong]
    text = raw(COMPONENTS[name]())
    gate = readable(text, "gold")
    assert ours in gate
    assert prove_equal(without_initial_values(text), gate.replace(ours, other, 1), tmp_path).returncode != 0


def body_of(text, module):
    return re.search(rf"^module {module} \(.*?^endmodule", text, re.MULTILINE | re.DOTALL)[0]


def test_nets_between_blocks_are_called_after_them():
    body = body_of(readable(raw(Nest()), "gold"), "gold")
    assert ".i__valid(leaf_0_o__valid)" in body
    assert ".o__ready(leaf_1_i__ready)" in body
    # Ports have their own names, also where the signal that Amaranth names them after is numbered.
    assert ".i__payload(i_other__payload)" in body
    # Of equal blocks none keeps the name that they have in common.
    assert "{ leaf_3_count, leaf_2_count, leaf_1_count, leaf_0_count }" in body
    # What a block calls so itself stays.
    assert "assign first_moves = leaf_0_o__valid & leaf_1_i__ready;" in body
    assert re.findall(r"^  wire .*_\d+(?:_value|_last)?;$", body, re.MULTILINE) == ["  wire _net_4;"]


def test_conditions_are_expressions_and_values_to_come_have_names():
    body = body_of(readable(raw(Operators()), "gold"), "gold")
    assert "toggle <= toggle_next;" in body
    assert "toggle_next = ~toggle ^ (a & ~b);" in body
    assert "taken_next = (a | ~c) & (x == held);" in body
    assert "if ((a & ~b) | (x[3] & ~(c ^ toggle))) begin" in body
    # "held + (a & ~b)" would be three bits of "~b".
    assert "_net_24 = held + _net_23;" in body


def elaborated(members, build):
    """Return a component with these members whose module is what ``build`` makes of it."""

    class Built(wiring.Component):
        def __init__(self) -> None:
            super().__init__(members)

        def elaborate(self, platform):
            m = Module()
            build(m, self)
            return m

    return Built()


def test_registers_that_differ_by_a_last_sign_have_values_of_their_own(tmp_path):
    """``x`` and ``x_`` both had ``x_next``."""

    def build(m, top):
        x, other = [Signal(name=name) for name in ("x", "x_")]
        m.d.sync += [x.eq(top.i), other.eq(x ^ other)]
        m.d.comb += top.o.eq(Cat(x, other))

    def made():
        return raw(elaborated({"i": In(1), "o": Out(2)}, build))

    text = readable(made(), "gold")
    assert len(re.findall(r"^  reg x_next;$", text, re.MULTILINE)) == 1
    done = prove_equal(without_initial_values(made()), text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_driven_net_is_never_called_after_what_it_feeds(tmp_path):
    """Instance ``a`` at port ``b_o__valid`` and instance ``a_b`` at ``o__valid`` have one name in common."""

    def source(member):
        def build(m, block):
            m.d.sync += getattr(block, member).valid.eq(block.i)

        return elaborated({"i": In(1), member: Out(stream.Signature(1))}, build)

    def sink(m, block):
        m.d.sync += block.taken.eq(block.p__valid)

    def build(m, top):
        m.submodules.a = a = source("b_o")
        m.submodules.a_b = a_b = source("o")
        for name, other in (("c", a.b_o), ("d", a_b.o)):
            m.submodules[name] = last = elaborated({"p__valid": In(1), "taken": Out(1)}, sink)
            m.d.comb += [last.p__valid.eq(other.valid), getattr(top, name).eq(last.taken)]
        m.d.comb += [a.i.eq(top.i), a_b.i.eq(~top.i)]

    def made():
        return raw(elaborated({"i": In(1), "c": Out(1), "d": Out(1)}, build))

    text = readable(made(), "gold")
    fed = re.findall(r"\.p__valid\((\w+)\)", text)
    assert sorted(fed) == ["a_b_o__valid", "a_b_o__valid_v2"]
    assert prove_equal(without_initial_values(made()), text, tmp_path).returncode == 0


def test_what_is_tied_to_one_constant_has_names_of_its_own():
    """Of three ports tied to 1 two were called after the first one's block."""
    block = (["p"], "  input p;\n  wire p;\n")
    names = {"c": "o__valid", "d": "\\o__valid$3 ", "e": "\\i__ready$5 "}
    body = "".join(f"  wire {net};\n" for net in names.values())
    body += "".join(f"  \\gold.leaf  {name} (\n    .p({net})\n  );\n" for name, net in names.items())
    body += "".join(f"  assign {net} = 1'h1;\n" for net in names.values())
    _, text = named_by_owner({"gold": ([], body), "gold.leaf": block})["gold"]
    for name in names:
        assert f"  {name} (\n    .p({name}_p)\n" in text
        assert f"  assign {name}_p = 1'h1;\n" in text


def test_words_of_a_keyword_are_left_to_the_language(tmp_path):
    """A signal that is called as a keyword is renamed, the keyword is not."""

    def build(m, top):
        end, begin = [Signal(name=name) for name in ("end", "begin")]
        m.d.sync += end.eq(begin)
        m.d.comb += [begin.eq(top.i), top.o.eq(Cat(end, begin))]

    def made():
        return raw(elaborated({"i": In(1), "o": Out(2)}, build))

    text = readable(made(), "gold")
    assert "end_ <= end_next;" in text
    assert prove_equal(without_initial_values(made()), text, tmp_path).returncode == 0


def test_a_layer_has_no_numbers_where_its_blocks_meet(tmp_path):
    """What a reader sees first: the blocks of a layer and the nets between them."""
    layer = layer_component(load_model("mixtral-8x7b").scaled(64), load_design(str(TINY)))
    [file, *_] = export(layer(), "fpga", tmp_path)
    body = body_of(file.read_text(), "eb_fpga_core")
    assert "i__payload(gate_o__payload)" in body
    ports = re.findall(r"^    (\w+),?$", body.split(");")[0], re.MULTILINE)
    assert [port for port in ports if re.search(r"\d$", port)] == []


@pytest.mark.parametrize(
    ("top", "two_clocks"),
    [
        (Top.PIM, False),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((Top.FPGA, False), (Top.GATE, True))),
    ],
)
def test_an_instance_never_has_a_number_because_a_signal_has_its_name(top, two_clocks, tmp_path):
    """Numbers of instances count from 0: ``read_guard``, ``lane_0``, ``lane_1``."""
    [file, *_] = export(top_component(*CORES[top], two_clocks=two_clocks)(), "top", tmp_path)
    odd = []
    for body in file.read_text().split("endmodule"):
        names = re.findall(r"^  eb_\w+ (\w+) \($", body, re.MULTILINE)
        numbered = [match for name in names if (match := re.fullmatch(r"(.*_)(\d+)", name))]
        odd += [
            found[0]
            for found in numbered
            if not {f"{found[1]}{n}" for n in range(int(found[2]))} <= set(names)
        ]
    assert odd == []


def test_each_signal_is_made_in_a_statement_of_its_own():
    """Amaranth names a signal after what it is assigned to; of several in one statement one at most."""
    found = []
    for file in sorted(Path(rtl.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                made = [call for call in node.value.elts if isinstance(call, ast.Call)]
                if any(ast.unparse(call.func) in ("Signal", "Signal.like") for call in made):
                    found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
