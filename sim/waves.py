"""Views of a waveform: what GTKWave and Surfer show of a VCD, tokens, experts and commands by name.

Beside a run's ``<run>.vcd`` lie (:func:`write_views`)::

    <run>.gtkw                           GTKWave's save file: gtkwave <run>.gtkw
    <run>.gtkw.names/<kind>.txt          its translate files: what a value of that kind is called
    <run>.sucl                           Surfer's commands: surfer --command-file <run>.sucl <run>.vcd
    .surfer/mappings/<run>_<kind>.txt    its mapping translators, which it reads where it is started
    <run>.fst                            the same waveform for both, where GTKWave's vcd2fst is installed

A view is a group of signals for each stream between the blocks (:func:`ports_of`), in the order of a token's
way; of a top with AXI ports (:mod:`rtl.axi`) its ports and errors stand before these. The VCD has a variable
for every field of a payload, and a block's port has its name in the block's scope (:mod:`rtl.text.owners`).
What a waveform does not have is not shown, so that every name of a view is one of the VCD.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vcd.gtkw import GTKWSave, make_translation_filter
from vcd.reader import TokenKind, tokenize

from sim.dram_check import COMMANDS
from sim.toolchain import write_atomically
from spec.design import DesignSpec, RouterPlace
from spec.errors import InputWarning
from spec.geometry import ImageGeometry
from spec.model import ModelSpec
from spec.registers import (
    BUS_REGISTERS,
    COUNTERS,
    POLICIES,
    REGISTERS,
    Top,
    counter_address,
    counters_of,
)

Scope = tuple[str, ...]
Names = Mapping[str, Mapping[int, str]]
"""What the values of each kind are called."""


@dataclass(frozen=True)
class Variable:
    """A variable of a VCD: scope, name, bits, and the identifier that it shares with those of its values."""

    scope: Scope
    name: str
    width: int
    code: str

    @property
    def path(self) -> str:
        """Name from the root on, without bits, as Surfer has it."""
        return ".".join((*self.scope, self.name))

    @property
    def gtkwave(self) -> str:
        """The same as GTKWave has it, bits included."""
        return self.path if self.width == 1 else f"{self.path}[{self.width - 1}:0]"


@dataclass(frozen=True)
class Field:
    """What is shown of a port: a payload's field, or the port itself (no name).

    ``kind``: of which kind its values are, for their names; ``decimal`` where they are counted.
    """

    name: str
    kind: str | None = None
    decimal: bool = False


@dataclass(frozen=True)
class Port:
    """A group of a view: a port of a block.

    ``block``: its scope below ``core``, none for the core's own port. A ``stream`` is shown with its valid
    and ready.
    """

    title: str
    block: str
    member: str
    fields: tuple[Field, ...]
    stream: bool = True


SLOT = Field("slot", "slot")
DATA = Field("data")
LAST = Field("last")
ENTRY = (Field("expert", "served"), SLOT, Field("rank", decimal=True), Field("weight"), LAST)
CONTRIBUTION = (SLOT, Field("rank", decimal=True), Field("word", decimal=True), Field("weight"), DATA, LAST)
PLACE = (Field("side", decimal=True), Field("unit", decimal=True))
ROW = (Field("kind", "row_command"), *PLACE, Field("row", decimal=True))
COLUMN = (Field("kind", "column_command"), *PLACE, Field("column", decimal=True))
WHOLE = (Field(""),)

BEFORE = (
    Port("registers", "registers", "reg_we", WHOLE, stream=False),
    Port("registers", "registers", "reg_addr", (Field("", "register"),), stream=False),
    Port("registers", "registers", "reg_wdata", WHOLE, stream=False),
    Port("registers", "registers", "reg_rdata", WHOLE, stream=False),
    Port("tokens", "intake", "i", (DATA, LAST)),
    Port("assignments", "gate", "o", (Field("expert", "routed"), Field("weight"), LAST, Field("last_token"))),
    Port("dispatch", "dispatch", "policy", (Field("", "policy"),), stream=False),
    Port("expects", "dispatch", "o_expect", (SLOT, Field("count", decimal=True), Field("last_token"))),
)
AFTER = (
    Port("output", "combine", "o", (DATA, Field("token_last"), LAST)),
    *(
        Port("counters", "registers", f"count_{name}", (Field("", decimal=True),), stream=False)
        for name in COUNTERS
    ),
)
ARRAY = (
    Port("addresses", "expert", "o_ar", (Field("addr"),)),
    Port("beats", "expert", "i_r", (Field("resp", "response"), LAST)),
    Port("array", "expert", "fire", WHOLE, stream=False),
    Port("array", "expert", "wait_tile", WHOLE, stream=False),
    Port("array", "expert", "wait_accumulators", WHOLE, stream=False),
    Port("array", "expert", "wait_hidden", WHOLE, stream=False),
    Port("contributions", "expert", "o", CONTRIBUTION),
)
CHANNEL = (
    Port("row_bus", "channel", "o_row", ROW, stream=False),
    Port("column_bus", "channel", "o_column", COLUMN, stream=False),
    Port("contributions", "channel", "o", CONTRIBUTION),
)


AXI_PORTS: tuple[tuple[str, tuple[Field, ...]], ...] = (
    (
        "axi_writes",
        (
            Field("s_axi_awvalid"),
            Field("s_axi_awready"),
            Field("s_axi_awaddr", "register"),
            Field("s_axi_wvalid"),
            Field("s_axi_wready"),
            Field("s_axi_wdata"),
            Field("s_axi_wstrb"),
            Field("s_axi_bvalid"),
            Field("s_axi_bready"),
            Field("s_axi_bresp", "response"),
        ),
    ),
    (
        "axi_reads",
        (
            Field("s_axi_arvalid"),
            Field("s_axi_arready"),
            Field("s_axi_araddr", "register"),
            Field("s_axi_rvalid"),
            Field("s_axi_rready"),
            Field("s_axi_rdata"),
            Field("s_axi_rresp", "response"),
        ),
    ),
    (
        "axi_packets_in",
        tuple(Field(f"s_axis_{name}") for name in ("tvalid", "tready", "tdata", "tlast")),
    ),
    (
        "axi_packets_out",
        tuple(Field(f"m_axis_{name}") for name in ("tvalid", "tready", "tdata", "tlast", "tuser")),
    ),
    (
        "axi_expectations",
        tuple(Field(f"m_axis_expect_{name}") for name in ("tvalid", "tready", "tdata")),
    ),
    (
        "axi_bursts",
        (
            Field("m_axi_arvalid"),
            Field("m_axi_arready"),
            Field("m_axi_araddr"),
            Field("m_axi_arlen", decimal=True),
            Field("m_axi_arsize", "bytes"),
            Field("m_axi_arburst", "burst"),
            Field("m_axi_rvalid"),
            Field("m_axi_rready"),
            Field("m_axi_rdata"),
            Field("m_axi_rresp", "response"),
            Field("m_axi_rlast"),
        ),
    ),
    ("interrupt", (Field("irq"),)),
)
"""Groups of a top's AXI ports, each port by its name."""
BUS_SHOWN = ("IRQ_STATUS", "BUS_STATUS", "ERRORS")
"""Registers of the bus' page whose fields are shown, each a signal of the register block."""
BUS_FIELDS = tuple(
    Field(f"{register.name}_{field.name}".lower(), decimal=field.width > 1)
    for name in BUS_SHOWN
    for register in BUS_REGISTERS
    if register.name == name
    for field in register.fields
)
GATE_ALONE = tuple(replace(port, block="gate") for port in BEFORE if port.title == "assignments")
DISPATCH_ALONE = (
    *(port for port in BEFORE if port.block == "dispatch"),
    Port("entries", "dispatch", "o_0", ENTRY),
)


def ports_of(design: DesignSpec, *, alone: bool, block: Top | None = None) -> tuple[Port, ...]:
    """Return what is shown of a design's layer, or of its engine ``alone``, in order.

    ``block``: of the top of the gate or of the dispatcher, what is shown inside it.
    """
    if block is not None:
        return {Top.GATE: GATE_ALONE, Top.DISPATCH: DISPATCH_ALONE}[block]
    if alone:
        engine = ARRAY if design.pim is None else CHANNEL
        return tuple(replace(port, block="") for port in (Port("entries", "", "i", ENTRY), *engine))
    if design.pim is None:
        return (*BEFORE, Port("entries", "dispatch", "o_0", ENTRY), *ARRAY, *AFTER)
    channels = [
        replace(port, title=f"{port.title}_{n}")
        for n in range(design.pim.channels)
        for port in (
            Port("entries", "dispatch", f"o_{n}", ENTRY),
            *(replace(port, block=f"channel_{n}") for port in CHANNEL),
        )
    ]
    return (*BEFORE, *channels, *AFTER)


def names_of(model: ModelSpec, design: DesignSpec) -> Names:
    """Return what values are called: ``routed`` and ``served`` experts, slots, commands, registers, ...

    A slot of the token store is named after the tokens that are in it one after the other: with 8 slots
    slot 3 holds tokens 3, 11, 19 since reset, ``token 8n+3``.
    """
    image = ImageGeometry.of(model, design)
    routed = {expert: f"expert {expert}" for expert in range(image.num_experts)}
    served = dict(routed)
    if image.shared is not None:
        served[image.num_experts] = "shared expert"
    if design.pim is not None and design.pim.router is RouterPlace.BANKS:
        served[image.num_experts + 1] = "router"
    identity = range(image.num_experts, model.gating.num_experts)
    routed |= {expert: f"identity {expert}" for expert in identity}
    slots = 2 * design.window_tokens
    words = {counter_address(name): name for name in counters_of(design)}
    return {
        "routed": routed,
        "served": served,
        "slot": {slot: f"token {slots}n+{slot}" for slot in range(slots)},
        "row_command": {0: "-"} | {kind: name for name, (kind, column) in COMMANDS.items() if not column},
        "column_command": {0: "-"} | {kind: name for name, (kind, column) in COMMANDS.items() if column},
        "response": {0: "OKAY", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR"},
        "burst": {0: "FIXED", 1: "INCR", 2: "WRAP"},
        "bytes": {size: f"{1 << size} bytes" for size in range(8)},
        "policy": {value: str(policy) for value, policy in enumerate(POLICIES)},
        "register": {address: name for name, address in REGISTERS.items()}
        | {register.address: register.name for register in BUS_REGISTERS}
        | {address: f"{name} (low)" for address, name in words.items()}
        | {address + 4: f"{name} (high)" for address, name in words.items()},
    }


def variables(path: Path) -> dict[Scope, list[Variable]]:
    """Return the variables that a VCD declares, by scope, in its order; its changes are not read."""
    found: dict[Scope, list[Variable]] = {}
    scope: Scope = ()
    with path.open("rb") as file:
        for token in tokenize(file):
            if token.kind is TokenKind.SCOPE:
                scope = (*scope, token.scope.ident)
                found.setdefault(scope, [])
            elif token.kind is TokenKind.UPSCOPE:
                scope = scope[:-1]
            elif token.kind is TokenKind.VAR:
                declared = token.var
                # A row of a memory, name[3], is none of ours.
                found[scope].append(Variable(scope, declared.reference, declared.size, declared.id_code))
            elif token.kind is TokenKind.ENDDEFINITIONS:
                break
    return found


@dataclass(frozen=True)
class Shown:
    """A line of a view: its group, what it is called there, the variable, and the field that it is of."""

    group: str
    label: str
    variable: Variable
    field: Field


def view(declared: Mapping[Scope, Sequence[Variable]], design: DesignSpec) -> list[Shown]:
    """Return what is shown of a waveform with these variables, the clock first.

    A port of which nothing but its handshake is there is not shown.
    """
    core = next((scope for scope in declared if scope[2:] == ("core",)), None)
    if core is None:
        return []
    top = core[:2]
    lines = _named_so(declared[top], "clock", (Field("aclk"), Field("bus_aclk")))
    axi = (*core, "axi") if (*core, "axi") in declared else core  # behind a crossing of clocks
    base: Scope = core
    block: Top | None = None
    if (*axi, "lite") in declared:
        for title, pins in AXI_PORTS:
            lines += _named_so(declared[top], title, pins)
        lines += _named_so(declared[(*axi, "block")], "bus", BUS_FIELDS)
        base, block = _inside_axi(declared, axi)
    for port in ports_of(design, alone=(*base, "dispatch") not in declared, block=block):
        scope = (*base, port.block) if port.block else base
        named = {one.name: one for one in declared.get(scope, ())}
        payload = f"{port.member}__payload" if port.stream else port.member
        fields = [
            (field, named.get(f"{payload}_{field.name}" if field.name else payload)) for field in port.fields
        ]
        if all(found is None for _, found in fields):
            continue
        handshake = [
            (Field(name), named.get(f"{port.member}__{name}"))
            for name in (("valid", "ready") if port.stream else ())
        ]
        for field, found in [*handshake, *fields]:
            if found is not None:
                lines.append(Shown(port.title, field.name or port.member, found, field))
    return lines


def _named_so(found: Sequence[Variable], group: str, fields: Sequence[Field]) -> list[Shown]:
    """Return the lines of a group of plain ports or signals, of those that there are."""
    named = {one.name: one for one in found}
    return [Shown(group, field.name, named[field.name], field) for field in fields if field.name in named]


def _inside_axi(declared: Mapping[Scope, Sequence[Variable]], axi: Scope) -> tuple[Scope, Top | None]:
    """Return the scope of what is inside a top with AXI ports, and which block that is, None for a layer."""
    for block in (Top.GATE, Top.DISPATCH):
        if (*axi, str(block)) in declared:
            return (*axi, str(block)), block
    return (*axi, "layer"), None


def write_views(path: Path, model: ModelSpec, design: DesignSpec) -> list[Path]:
    """Write the views of a run's waveform beside it; return the files.

    Parameters
    ----------
    path : a VCD of a layer of ``model`` on ``design``, or of its engine alone, traced by Verilator.
    """
    lines = view(variables(path), design)
    texts = dict(_gtkwave(path, lines, names_of(model, design)))
    texts |= dict(_surfer(path, lines, names_of(model, design)))
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    return [*texts, *_fst(path)]


def _named(line: Shown, names: Names) -> tuple[str, dict[int, str]] | None:
    """Return what a line's values are called, and a name for that, which holds its width; None: numbers."""
    if line.field.kind is None:
        return None
    width = line.variable.width
    table = {value: text for value, text in names[line.field.kind].items() if value < 1 << width}
    return f"{line.field.kind}_{width}", table


def _gtkwave(path: Path, lines: Sequence[Shown], names: Names) -> Iterator[tuple[Path, str]]:
    """Yield GTKWave's save file and the translate files that it names, by whole paths: it knows no others."""
    file = path.with_suffix(".gtkw")
    text = io.StringIO()
    save = GTKWSave(text)
    save.dumpfile(str(path))
    save.savefile(str(file))
    save.sst_expanded(True)
    group = ""
    for line in lines:
        if line.group != group:
            group = line.group
            save.blank(group)
        named = _named(line, names)
        translate = None
        if named is not None:
            kind, table = named
            place = file.with_suffix(".gtkw.names") / f"{kind}.txt"
            translate = str(place.resolve())
            yield place, make_translation_filter(sorted(table.items()), "dec") + "\n"
        save.trace(
            line.variable.gtkwave,
            alias=line.label,
            datafmt="dec" if named or line.field.decimal else "hex",
            translate_filter_file=translate,
        )
    yield file, text.getvalue()


def _surfer(path: Path, lines: Sequence[Shown], names: Names) -> Iterator[tuple[Path, str]]:
    """Yield Surfer's commands and the mappings that they name, each of which says what it is called."""
    run = re.sub(r"\W", "_", path.stem)
    commands: list[str] = []
    items = 0
    group = ""
    for line in lines:
        if line.group != group:
            group = line.group
            commands.append(f"divider_add {group}")
            items += 1
        commands.append(f"variable_add {line.variable.path}")
        named = _named(line, names)
        shape = "Unsigned" if line.field.decimal else None
        if named is not None:
            kind, table = named
            shape = f"{run}_{kind}"
            header = f"Name = {shape}\nBits = {line.variable.width}\n"
            rows = "".join(f"{value} {text}\n" for value, text in sorted(table.items()))
            yield path.parent / ".surfer" / "mappings" / f"{shape}.txt", header + rows
        if shape is not None:
            # What is added next goes behind the item in focus, and to the end where there is none.
            commands += [f"item_focus {_letters(items)}", f"item_set_format {shape}", "item_unfocus"]
        items += 1
    commands.append("zoom_fit")
    yield path.with_suffix(".sucl"), "".join(f"{command}\n" for command in commands)


def _letters(number: int) -> str:
    """Return an item's number as Surfer's commands take it: hexadecimal, its digits the letters a to p."""
    return "".join("abcdefghijklmnop"[int(digit, 16)] for digit in f"{number:x}")


def _fst(path: Path) -> list[Path]:
    """Write the waveform as FST too where the program that does it is there; return the file.

    Where it fails a line is said, and the VCD is there.
    """
    program = shutil.which("vcd2fst")
    if program is None:
        return []
    fst = path.with_suffix(".fst")
    done = subprocess.run([program, str(path), str(fst)], capture_output=True, text=True)
    if done.returncode != 0:
        fst.unlink(missing_ok=True)
        warnings.warn(InputWarning(f"{fst}: not written: vcd2fst failed ({done.returncode})"), stacklevel=2)
        return []
    return [fst]
