"""Yosys' text of a design as Verilog that reads as if written by hand: modules, names, expressions.

Each step is a substitution over the text, so that names stay consistent between a module and its instances;
:func:`readable` puts them in order. What they change is names and how expressions are split into nets: the
cells that a synthesizer finds are those of the text before (tests/test_text.py proves it of small designs).
"""

import itertools
import re

from rtl.text.inline import with_inlined
from rtl.text.owners import bare, named_by_owner

WAKE = "_run_at_time_zero"
"""The register that makes every ``always @*`` of a module run once at time 0."""
HAND_WRITTEN = (
    "eb_ram",
    "eb_ram_apart",
    "eb_dual_multiplier",
    "eb_dual_int4_multiplier",
    "eb_dual_significand_multiplier",
)
"""Modules that are instantiated only; each is a file of its own beside this one."""

CPP_KEYWORDS = frozenset(
    """
    alignas alignof and_eq asm auto bitand bitor bool catch char char16_t char32_t char8_t co_await
    co_return co_yield compl concept const_cast consteval constexpr constinit decltype delete double
    dynamic_cast explicit false float friend goto inline long mutable namespace noexcept not_eq nullptr
    operator or_eq private public register reinterpret_cast requires short sizeof static_assert
    static_cast switch template thread_local throw true try typeid typename using volatile wchar_t xor_eq
    """.split()  # noqa: SIM905 - words to read, not a column of strings
)
"""What Verilator refuses as names. (Yosys escapes keywords of Verilog and SystemVerilog itself.)"""


class ExportError(TypeError):
    """A component that has no faithful Verilog form; says which member or module, and why."""


_MODULE = re.compile(r"^module (\\\S+ |\w+) *\((.*?)\);\n(.*?)^endmodule\n", re.MULTILINE | re.DOTALL)
_ESCAPED = re.compile(r"\\(\S+) (?=([;),(\[ ])?)")


def readable(text: str, top: str) -> str:
    """Return Yosys' ``text`` with one module per distinct block, plain names, and no initial values.

    Raises
    ------
    ExportError
        An unnamed submodule, or a signal that is called as one of :data:`CPP_KEYWORDS`.
    """
    text = _without_initial_values(text)
    # Signals of no bits, which nothing reads; the text would give them two.
    text = re.sub(r"^ *wire \[-1:0\] (\\\S+|\w+) ?;\n", "", text, flags=re.MULTILINE)
    # Numbered through the file by Yosys.
    text = re.sub(r"\\\$auto\$verilog_backend\S* ( |(?=\)))", rf"{WAKE}\1", text)
    # "!" of several bits is no logic value for a linter; "~|" is the same bit.
    text = re.sub(r"(?<== )! (?=[\\\w$(])", "~| ", text)
    # Nothing unsigned is below 0: a comparison with a constant that a configuration makes so.
    text = re.sub(r"(?<== )\d+'h0+ > (?:\\\S+ |\w+) ?(?:\[[\d:]+\])?;", "1'h0;", text)
    modules = {}
    for name, ports, body in _MODULE.findall(text):
        modules[bare(name)] = (sorted(_split_ports(ports)), body)
    if top not in modules:
        raise ExportError(f"no module {top} in the Verilog")  # Yosys changed its output format
    for name in modules:
        if "U$" in name:
            raise ExportError(f"name the submodule: {name.removeprefix(f'{top}.core.')}")
    modules = named_by_owner(_with_named_ports(modules))
    names = _representatives(modules, top)
    plain = _plain_identifiers(modules)
    written = set()
    parts = []
    for name, (ports, body) in modules.items():
        if names[name] in written:
            continue
        written.add(names[name])
        body = _ESCAPED.sub(
            lambda match: (names.get(match[1]) or plain[match[1]]) + ("" if match[2] else " "), body
        )
        ports = sorted(plain[bare(port)] if port.startswith("\\") else port for port in ports)
        body = _in_order(with_inlined(_woken_last(_with_whole_shifts(body))))
        parts.append((names[name], ports, body))
    instances = {}
    for _, _, body in parts:
        for module, instance in _PLAIN_INSTANCE.findall(body):
            instances.setdefault(module, set()).add(instance)
    whole = "\n".join(
        f"module {name} (\n    "
        + ",\n    ".join(ports)
        + f"\n);\n{_unhidden(body, instances.get(name, ()), ports)}endmodule\n"
        for name, ports, body in parts
    )
    _check_names(whole)
    return whole


def _without_initial_values(text):
    text = re.sub(r"^ *\(\* init = \S+ \*\)\n", "", text, flags=re.MULTILINE)
    register = r"^( *reg (?:\[\d+:\d+\] )?(?:\\\S+ |[a-zA-Z_]\w*)) = \d+'\S+;$"
    return re.sub(register, r"\1;", text, flags=re.MULTILINE)


_DECLARED = re.compile(r"^  (?:input |output )?(?:wire|reg) (?:\[(\d+):0\] )?(\w+);$", re.MULTILINE)
_SHIFT = re.compile(
    r"^  assign (\w+) = (\$signed\()?(\w+)(?:\[(\d+):(\d+)\])?(\))? (>>>?) (\w+(?:\[[\d:]+\])?);$",
    re.MULTILINE,
)


def _with_whole_shifts(body):
    """Return a module's body with a wire for all bits of a shift of which Yosys takes the low ones.

    It does so by assigning the shift to a narrower wire; Amaranth never truncates unasked, and a linter
    tells of it.
    """
    widths = {name: int(high or 0) + 1 for high, name in _DECLARED.findall(body)}

    def whole(match):
        to, value, high, low = match[1], match[3], match[4], match[5]
        width = widths[value] if high is None else int(high) - int(low) + 1
        if width <= widths[to]:
            return match[0]
        shift = match[0].split(" = ", 1)[1]
        return f"  wire [{width - 1}:0] {to}_whole = {shift}\n  assign {to} = {to}_whole[{widths[to] - 1}:0];"

    return _SHIFT.sub(whole, body)


def _check_names(text):
    """Refuse a signal whose name Verilator would not take."""
    for _, name in _DECLARED.findall(text):
        if name in CPP_KEYWORDS:
            raise ExportError(f"rename the signal: {name} is a keyword of C++")


_DECLARATION = re.compile(
    r"(?:^  \(\*.*\*\)\n)*(?:^  (?P<port>input|output) .*;\n)?"
    r"^  (?P<kind>wire|reg) (?:\[\d+:0\] )?(?P<name>\w+);\n",
    re.MULTILINE,
)


def _in_order(body):
    """Return a module's body with its declarations by their names: ports, registers, nets, unnamed ones."""
    found = []
    end = 0
    while match := _DECLARATION.match(body, end):
        found.append(match)
        end = match.end()

    def place(match):
        name = match["name"]
        kinds = (match["port"] is None, name.startswith("_net_"), match["kind"] == "wire")
        return (
            *kinds,
            [(len(part), part) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)],
        )

    return "".join(match[0] for match in sorted(found, key=place)) + body[end:]


_PLAIN_INSTANCE = re.compile(r"^  (\w+) (\w+) \($", re.MULTILINE)


def _unhidden(body, instances, ports):
    """Return a module's body with other names for inner signals that are called as the module's instances.

    To a linter they hide the instance. A submodule's port names such a signal.
    """
    declared = {name for _, name in _DECLARED.findall(body)}
    for name in sorted(declared & set(instances) - set(ports)):
        number = 2
        while f"{name}_v{number}" in declared:
            number += 1
        # Not a port of an instance, which stands behind a point.
        body = re.sub(rf"(?<![.\w]){name}(?!\w)", f"{name}_v{number}", body)
    return body


def _woken_last(body):
    """Return a module's body with :data:`WAKE` set by its last statement.

    A block that starts to wait after the register was set would never run where nothing else changes: with
    reset asserted from time 0, four-valued simulators would see unknown registers for ever.
    """
    declared = f"  reg {WAKE} = 0;\n"
    if declared not in body:
        return body
    return body.replace(declared, f"  reg {WAKE};\n") + f"  initial {WAKE} = 1'b0;\n"


_NUMBERED_PORT = re.compile(r"\\port\$\d+\$\d+ ")
_INSTANCE = re.compile(r"^  (\\\S+ |\w+) +(?:\\\S+ |\w+) +\(\n(?:    \..*\n)*", re.MULTILINE)


def _with_named_ports(modules):
    """Return the modules with names for the ports that Amaranth only numbers.

    Such a port is a value of the surrounding module that has no name in this one. Amaranth numbers
    them through the whole design, so that equal modules would differ.
    """
    names = {}
    for name, (ports, body) in modules.items():
        numbered = [port for port in ports if _NUMBERED_PORT.fullmatch(port)]
        taken = set(re.findall(r"[A-Za-z_]\w*", body))
        counts = {"input": itertools.count(), "output": itertools.count()}
        names[name] = {}
        # In order of appearance: the order of their numbers depends on the design around.
        for port in sorted(numbered, key=body.index):
            direction = re.search(rf"^  (input|output) .*{re.escape(port)};", body, re.MULTILINE)[1]
            stem = direction.removesuffix("put")
            names[name][port] = next(new for n in counts[direction] if (new := f"{stem}_{n}") not in taken)
    return {
        name: (sorted(names[name].get(port, port) for port in ports), _renamed(body, name, names))
        for name, (ports, body) in modules.items()
    }


def _renamed(body, module, names):
    """Return a module's body with the new ``names[module]`` of its ports and of those of its instances."""

    def of_instance(match):
        text = match[0]
        for old, new in names.get(bare(match[1]), {}).items():
            text = text.replace(f".{old}(", f".{new}(")
        return text

    body = _INSTANCE.sub(of_instance, body)
    mine = names[module]
    # An escaped identifier ends with a space; a plain one needs it before a word or an operator only.
    return re.sub(
        _NUMBERED_PORT.pattern + r"(?=([;),(\[ ])?)",
        lambda match: mine[match[0]] + ("" if match[1] else " "),
        body,
    )


def _split_ports(ports):
    return re.findall(r"\\\S+ |\w+", ports)


def _representatives(modules, top):
    """Return the final name of each module; equal modules get one name."""
    # Children first: a module's text names its children, and only final names compare.
    order = sorted(modules, key=lambda name: (-name.count("."), name))
    first_of = {}  # module -> the first module equal to it
    by_text = {}
    for name in order:
        ports, body = modules[name]
        text = _ESCAPED.sub(lambda match: f"\\{first_of.get(match[1], match[1])} ", body)
        first_of[name] = by_text.setdefault((tuple(ports), text) if name != top else name, name)
    groups = {}
    for name in sorted(modules):
        groups.setdefault(first_of[name], []).append(name)
    names, taken = {top: top}, {top, *HAND_WRITTEN}
    for group in groups.values():
        if group == [top]:
            continue
        # "$29" tells a submodule from a signal of the same name.
        paths = [re.sub(r"\$\d+", "", path).removeprefix(f"{top}.").removeprefix("core.") for path in group]
        paths = [re.sub(r"\W", "_", path) for path in paths]
        stems = {re.sub(r"_\d+(?=_|$)", "", path) for path in paths}
        # Equal instances that differ by a number give the name without it.
        shared = len(paths) > 1 and len(stems) == 1
        base = f"{top}_{stems.pop() if shared else min(paths, key=lambda path: (len(path), path))}"
        final, number = base, 1
        while final in taken:
            number += 1
            final = f"{base}_v{number}"
        taken.add(final)
        names.update(dict.fromkeys(group, final))
    return names


def _plain_identifiers(modules):
    """Return an unescaped name, unique in the whole file, for each escaped identifier."""
    escaped, taken = set(), set()
    for ports, body in modules.values():
        text = " ".join(ports) + " " + body
        escaped.update(match[1] for match in _ESCAPED.finditer(text) if match[1] not in modules)
        taken.update(re.findall(r"[A-Za-z_]\w*", _ESCAPED.sub(" ", text)))
    plain = {}
    for identifier in sorted(escaped):
        base = re.sub(r"\W", "_", identifier).strip("_") or "net"
        # "$5" is a value without a name: Verilator leaves what begins with "_" out of waveforms.
        base = f"_net_{base}" if base[0].isdigit() else base
        # A keyword ("reg") stays readable with a trailing underscore.
        base = f"{base}_" if base == identifier else base
        final, number = base, 1
        while final in taken:
            number += 1
            final = f"{base}_v{number}"
        taken.add(final)
        plain[identifier] = final
    return plain
