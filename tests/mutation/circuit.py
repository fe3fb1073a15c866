"""A netlist of single bits, evaluated into a graph that keeps equal logic once; questions to a SAT solver.

Two copies of a circuit that read the same registers share all logic but what a change can reach, which is
what makes questions about their difference small.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.formal.prove import PROGRAMS

FALSE, TRUE = 0, 1


class Graph:
    """And- and exclusive-or nodes over free variables; a literal is twice its node, plus 1 if negated.

    A node is made once: the same function of the same literals is the same literal.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, int, int]] = [("free", 0, 0)]  # node 0 is "false"
        self._known: dict[tuple[str, int, int], int] = {}
        self._readers: list[list[int]] = []

    def free(self) -> int:
        """Return a new variable."""
        self.nodes.append(("free", 0, 0))
        return 2 * (len(self.nodes) - 1)

    def both(self, a: int, b: int) -> int:
        """Return "a and b"."""
        if a > b:
            a, b = b, a
        if a == FALSE or a ^ b == 1:
            return FALSE
        if a in (TRUE, b):
            return b
        return self._node("and", a, b)

    def either(self, a: int, b: int) -> int:
        """Return "a or b"."""
        return self.both(a ^ 1, b ^ 1) ^ 1

    def differ(self, a: int, b: int) -> int:
        """Return "a is not b"."""
        sign = (a ^ b) & 1
        a, b = sorted((a & ~1, b & ~1))
        if a == b:
            return sign
        if a == FALSE:
            return b ^ sign
        return self._node("xor", a, b) ^ sign

    def choose(self, select: int, one: int, zero: int) -> int:
        """Return "one if select, else zero"."""
        if one == zero:
            return one
        if one ^ zero == 1:
            return self.differ(select, zero)
        return self.either(self.both(select, one), self.both(select ^ 1, zero))

    def consequences(self, literals: Iterable[int]) -> dict[int, bool] | None:
        """Return what follows for single nodes where all of ``literals`` hold; None: they never do.

        Of each node by itself (unit propagation): what only several of them say together is not found.
        """
        for node in range(len(self._readers), len(self.nodes)):
            self._readers.append([])
            kind, a, b = self.nodes[node]
            if kind != "free":
                self._readers[a >> 1].append(node)
                self._readers[b >> 1].append(node)
        known = {0: False}
        todo: list[int] = []

        def holds(literal: int) -> bool:
            node, value = literal >> 1, not literal & 1
            if node not in known:
                known[node] = value
                todo.append(node)
            return known[node] == value

        def settled(node: int) -> bool:
            kind, a, b = self.nodes[node]
            if kind == "free":
                return True
            out, one, other = (known.get(place) for place in (node, a >> 1, b >> 1))
            one = None if one is None else one ^ bool(a & 1)
            other = None if other is None else other ^ bool(b & 1)
            if kind == "xor":
                if out is None and one is not None and other is not None:
                    return holds(2 * node | (one == other))
                if out is not None and one is not None:
                    return holds(b ^ (out == one))
                return out is None or other is None or holds(a ^ (out == other))
            if out is None:
                if one is False or other is False:
                    return holds(2 * node | 1)
                return not (one and other) or holds(2 * node)
            if out:
                return holds(a) and holds(b)
            if one and other is not False:
                return holds(b ^ 1)
            return not other or holds(a ^ 1)

        if not all(holds(literal) for literal in literals):
            return None
        while todo:
            node = todo.pop()
            if not all(settled(place) for place in (node, *self._readers[node])):
                return None
        return known

    def _node(self, kind: str, a: int, b: int) -> int:
        key = (kind, a, b)
        literal = self._known.get(key)
        if literal is None:
            self.nodes.append(key)
            literal = self._known[key] = 2 * (len(self.nodes) - 1)
        return literal

    def satisfied(
        self, constraints: Iterable[int], some: Sequence[int], *, seconds: float
    ) -> list[bool] | None:
        """Return which of ``some`` hold where all constraints and one of these hold; None: nowhere.

        Raises
        ------
        TimeoutError
            Where ``seconds`` are too few for an answer.
        """
        constraints = [literal for literal in constraints if literal != TRUE]
        some_left = [literal for literal in some if literal != FALSE]
        if FALSE in constraints or not some_left:
            return None
        clauses = [[literal] for literal in constraints]
        if TRUE not in some_left:
            clauses.append(some_left)
        numbers: dict[int, int] = {}
        todo = sorted({literal >> 1 for literal in (*constraints, *some_left)} - {0})
        while todo:
            node = todo.pop()
            if node in numbers:
                continue
            numbers[node] = len(numbers) + 1
            kind, a, b = self.nodes[node]
            if kind == "free":
                continue
            out = 2 * node
            if kind == "and":
                clauses += [[out ^ 1, a], [out ^ 1, b], [out, a ^ 1, b ^ 1]]
            else:
                clauses += [[out ^ 1, a, b], [out ^ 1, a ^ 1, b ^ 1], [out, a ^ 1, b], [out, a, b ^ 1]]
            todo += [node for node in (a >> 1, b >> 1) if node not in numbers]

        def number(literal: int) -> str:
            return f"-{numbers[literal >> 1]}" if literal & 1 else str(numbers[literal >> 1])

        lines = [f"p cnf {max(1, len(numbers))} {len(clauses)}"]
        lines += [f"{' '.join(map(number, clause))} 0" for clause in clauses]
        model = answer("\n".join(lines), seconds)
        if model is None:
            return None
        true = {abs(value): value > 0 for value in model}

        def value(literal: int) -> bool:
            if literal >> 1 == 0:
                return literal == TRUE
            return true[numbers[literal >> 1]] ^ bool(literal & 1)

        return [value(literal) for literal in some]


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it waited for.

    A limit in it gives the same proofs on a machine that has other work.
    """
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def answer(text: str, seconds: float) -> list[int] | None:
    """Return the solver's values of a formula's variables, None if it has none.

    Raises
    ------
    TimeoutError
        Where it takes more than so many seconds of a processor, in whole ones.
    """
    if seconds <= 0:
        raise TimeoutError("no time left")
    whole = math.ceil(seconds)
    with tempfile.NamedTemporaryFile("w", suffix=".cnf", prefix="expertbank-") as file:
        file.write(text + "\n")
        file.flush()
        done = subprocess.run(
            [PROGRAMS / "yices-sat", "-m", file.name],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (whole, whole)),
        )
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise TimeoutError(f"no answer in {whole} s")
    words = done.stdout.split()
    if not words or words[0] not in ("sat", "unsat"):
        raise RuntimeError(f"no verdict: {done.stdout[-500:]}{done.stderr[-500:]}")
    return None if words[0] == "unsat" else [int(word) for word in words[1:] if word != "0"]


@dataclass(frozen=True)
class Frame:
    """A circuit in one cycle: the literal of each of its bits, and of each register in the next cycle."""

    circuit: Circuit
    values: Mapping[int | str, int]

    def of(self, name: str) -> list[int]:
        """Return the literals of a wire."""
        return [self.values[bit] for bit in self.circuit.wires[name]]

    @property
    def following(self) -> list[int]:
        """Return what the registers hold in the next cycle."""
        return [self.values[bit] for bit in self.circuit.following]


@dataclass(frozen=True)
class Circuit:
    """A module of gates and registers of one clock.

    Attributes
    ----------
    inputs, outputs : names of ports, without the clock.
    wires : bits of every wire that has a name.
    gates : (kind, output, inputs), each after those that it reads.
    registers, following : the bit that a register drives, the one that it takes.
    undefined : bits that nothing drives, and each place that reads "x": any value, in each cycle another.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    wires: Mapping[str, list[int | str]]
    gates: list[tuple[str, int, tuple[int | str, ...]]]
    registers: list[int]
    following: list[int | str]
    undefined: list[int | str]

    @staticmethod
    def read(path: Path, clock: str = "aclk") -> Circuit:
        """Read the one module of what Yosys' ``write_json`` wrote, of single-bit gates and ``$_DFF_P_``."""
        (module,) = json.loads(path.read_text())["modules"].values()
        places = itertools.count()

        def known(bit: int | str) -> int | str:
            # Each place that reads "x" may see another value.
            return f"x{next(places)}" if bit in ("x", "z") else bit

        drivers, registers, following = {}, [], []
        for cell in module["cells"].values():
            pins = {name: known(bits[0]) for name, bits in cell["connections"].items()}
            if cell["type"] == "$_DFF_P_":
                registers.append(pins["Q"])
                following.append(pins["D"])
            else:
                kind = cell["type"].removeprefix("$_").removesuffix("_")
                if kind not in GATES:
                    raise ValueError(f"{cell['type']} is no gate of {', '.join(GATES)}")
                drivers[pins["Y"]] = (kind, pins["Y"], tuple(pins[pin] for pin in GATES[kind]))
        ports = {name: port for name, port in module["ports"].items() if name != clock}
        inputs = tuple(name for name, port in ports.items() if port["direction"] == "input")
        wires = {name: [known(bit) for bit in wire["bits"]] for name, wire in module["netnames"].items()}
        driven = {"0", "1", *drivers, *registers, *(bit for name in inputs for bit in wires[name])}
        read = [pin for _, _, pins in drivers.values() for pin in pins]
        read += [*following, *(bit for bits in wires.values() for bit in bits)]
        return Circuit(
            inputs,
            tuple(name for name, port in ports.items() if port["direction"] == "output"),
            wires,
            _in_order(drivers),
            registers,
            following,
            [bit for bit in dict.fromkeys(read) if bit not in driven],
        )

    def frame(
        self,
        graph: Graph,
        registers: Sequence[int],
        inputs: Mapping[str, Sequence[int]],
        undefined: Sequence[int],
    ) -> Frame:
        """Evaluate a cycle of these registers and inputs."""
        values: dict[int | str, int] = {"0": FALSE, "1": TRUE}
        values |= zip(self.undefined, undefined, strict=True)
        values |= zip(self.registers, registers, strict=True)
        for name, literals in inputs.items():
            values |= zip(self.wires[name], literals, strict=True)
        _evaluate(graph, values, self.gates)
        return Frame(self, values)

    def beside(
        self, graph: Graph, frame: Frame, registers: Sequence[int], inputs: Mapping[str, Sequence[int]]
    ) -> Frame:
        """Evaluate a frame's cycle with other registers and inputs: what reads none that differ stays."""
        given = dict(zip(self.registers, registers, strict=True))
        for name, literals in inputs.items():
            given |= zip(self.wires[name], literals, strict=True)
        other = {bit: literal for bit, literal in given.items() if frame.values[bit] != literal}
        values = {**frame.values, **other}
        todo, reached = list(other), set()
        while todo:
            for number in self.readers.get(todo.pop(), ()):
                if number not in reached:
                    reached.add(number)
                    todo.append(self.gates[number][1])
        _evaluate(graph, values, [self.gates[number] for number in sorted(reached)])
        return Frame(self, values)

    @cached_property
    def readers(self) -> dict[int | str, list[int]]:
        """Numbers of the gates that read a bit."""
        found: dict[int | str, list[int]] = {}
        for number, (_, _, pins) in enumerate(self.gates):
            for pin in pins:
                found.setdefault(pin, []).append(number)
        return found

    def free_inputs(self, graph: Graph, **fixed: int) -> dict[str, list[int]]:
        """Return variables for all inputs, constants for ``fixed`` ones."""
        return {
            name: [
                (fixed[name] >> n & 1) if name in fixed else graph.free()
                for n in range(len(self.wires[name]))
            ]
            for name in self.inputs
        }


def _evaluate(graph: Graph, values: dict[int | str, int], gates: Iterable[tuple]) -> None:
    """Set the values of gates' outputs."""
    both, either, differ, choose = graph.both, graph.either, graph.differ, graph.choose
    for kind, out, pins in gates:
        if kind == "AND":
            value = both(values[pins[0]], values[pins[1]])
        elif kind == "OR":
            value = either(values[pins[0]], values[pins[1]])
        elif kind == "NOT":
            value = values[pins[0]] ^ 1
        elif kind == "MUX":
            value = choose(values[pins[2]], values[pins[1]], values[pins[0]])
        elif kind == "XOR":
            value = differ(values[pins[0]], values[pins[1]])
        else:
            value = differ(values[pins[0]], values[pins[1]]) ^ 1
        values[out] = value


GATES = {"AND": "AB", "OR": "AB", "XOR": "AB", "XNOR": "AB", "NOT": "A", "MUX": "ABS"}


def _in_order(drivers: Mapping[int | str, tuple]) -> list[tuple]:
    """Return gates so that each comes after those that it reads."""
    ordered, state = [], dict.fromkeys(drivers, 0)
    for start in drivers:
        stack = [start]
        while stack:
            bit = stack[-1]
            if state.get(bit, 2) == 2:
                stack.pop()
                continue
            below = [pin for pin in drivers[bit][2] if state.get(pin, 2) != 2]
            if any(state[pin] == 1 for pin in below):
                raise ValueError("the gates have a loop")
            state[bit] = 1
            if below:
                stack += below
            else:
                ordered.append(drivers[bit])
                state[bit] = 2
                stack.pop()
    return ordered


NAME = re.compile(r"\b[A-Za-z_]\w*(?:\.\w+)+")


def with_wires(verilog: str, wires: Mapping[str, str]) -> str:
    """Return a flat module's text with named wires of Verilog expressions, where ``a.b`` is a wire's name."""
    lines = [f"  (* keep *) wire \\{name} = |({_escaped(text)});" for name, text in wires.items()]
    head, end, tail = verilog.rpartition("endmodule")
    return "\n".join([head, *lines, end]) + tail


def _escaped(expression: str) -> str:
    return NAME.sub(lambda found: f"\\{found[0]} ", expression)
