"""Names for the nets between blocks: ``gate_o__valid`` is what block ``gate`` drives at port ``o__valid``.

Amaranth numbers the signals of one name that meet in a module: of five blocks with a port ``i__valid``, the
module around them has ``i__valid``, ``i__valid$3``, ``i__valid$17``, in order of their appearance in the
Python, and of its own ports any may be the numbered one. Here

- a module's port has its name without a number, or that of the interface member it is connected to;
- a net that an instance drives, or else feeds, is called after the instance and its port;
- a numbered second name of one net goes.

Names that carry no number and belong to no interface (``freed``, ``loading``) stay as they are.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, count, islice

Modules = Mapping[str, tuple[list[str], str]]
"""Of each module's name, without a backslash: its ports, as written there, and its body."""

_DECLARATION = re.compile(r"^  (input|output|wire|reg) (\[\d+:0\] )?(\\\S+ |\w+);$")
_ALIAS = re.compile(r"^  assign (\\\S+ |\w+) ?= (\\\S+ |\w+);$")
_ASSIGN = re.compile(r"^  assign (\\\S+ |\w+) ?= (.*);$")
_INSTANCE = re.compile(r"^  (\\\S+ |\w+) +(?:#\(.*\) )?(\\\S+ |\w+) ?\($")
_CONNECTION = re.compile(r"^    \.(\\\S+ |\w+)\((.*)\),?$")
# A number's base and a port behind its point are no names of nets.
_NAME = re.compile(r"(?<![\w'$.\\])(?:\\(\S+) (?=([;),(\[ ])?)|([A-Za-z_]\w*))")
_NUMBER = re.compile(r"\$\d+$")


def named_by_owner(modules: Modules) -> dict[str, tuple[list[str], str]]:
    """Return the modules with other names for their ports and nets, and the same connections."""
    named: dict[str, tuple[list[str], str]] = {}
    blocks: dict[str, _Ports] = {}
    # Keywords; all other names that are escaped have signs in them.
    keywords = {
        match[1]
        for ports, body in modules.values()
        for match in _NAME.finditer(" ".join(ports) + "\n" + body)
        if match[1] and re.fullmatch(r"\w+", match[1])
    }
    # Children first: what a net is called depends on the names of their ports.
    for name in sorted(modules, key=lambda name: (-name.count("."), name)):
        module = _Module(*modules[name], blocks, keywords)
        named[name] = module.written()
        blocks[name] = module.ports
    return {name: named[name] for name in modules}


@dataclass
class _Ports:
    """A module's ports as its instances have to know them."""

    new_names: dict[str, str] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    """By their new names."""


@dataclass
class _Net:
    """Names of one net, which whole assignments connect; ``root`` is the one that is driven or a port."""

    root: str
    names: list[str]
    drivers: list[tuple[str, str]] = field(default_factory=list)
    """Instances that drive it, and the port of each."""
    sinks: list[tuple[str, str]] = field(default_factory=list)
    """Instances that it feeds, and the port of each."""
    final: str = ""
    beside: set[str] = field(default_factory=set)
    """Names that stay beside the final one."""
    is_unread: bool = False
    """Another block's side of what this one connects, which nothing reads."""

    @property
    def plain(self) -> set[str]:
        """Names that a designer gave."""
        return {name for name in self.names if "$" not in name}


def bare(identifier: str) -> str:
    """Return an identifier without the backslash and the space of an escaped one."""
    return identifier.strip().removeprefix("\\")


def _stem(name: str) -> str:
    return _NUMBER.sub("", name)


def _alternatives(name: str) -> Iterator[str]:
    """Yield names like it, for where another net has it."""
    return (f"{name}_v{number}" for number in count(2))


def _free(name: str, taken: Set[str]) -> str:
    """Return a name, or one like it that nothing has."""
    return next(new for new in chain([name], _alternatives(_stem(name))) if new not in taken)


def _is_numbered(name: str) -> bool:
    return _stem(name) != name


def _of_interface(name: str) -> bool:
    """Tell the member of an interface from a signal of a block's own: ``o__valid`` from ``valid``."""
    return "__" in name


def _suits(name: str, is_output: bool) -> int:
    """Return 0 for a port's name that tells its direction, 2 for one that tells the other: ``i`` are in."""
    match = re.fullmatch(r"([io])(?:_\w+)?__(payload|valid|ready)", name)
    if match is None:
        return 1
    return 0 if is_output == ((match[1] == "o") != (match[2] == "ready")) else 2


def _split(name: str) -> tuple[str, str]:
    """Return a signal's name, and the field or element of it with its point or bracket."""
    end = re.match(r"[^.\[]*", name).end()  # type: ignore[union-attr] - it matches nothing too
    return name[:end], name[end:]


class _Module:
    """One module's text, and the new names of what it declares."""

    def __init__(self, ports: list[str], body: str, blocks: Mapping[str, _Ports], keywords: Set[str]) -> None:
        self._port_list = ports
        self._keywords = keywords
        self._lines = body.split("\n")
        self._blocks = blocks
        self._widths: dict[str, str] = {}
        self._kinds: dict[str, set[str]] = {}
        self._attributed: set[str] = set()
        self._read_declarations()
        self._values = {
            bare(match[1]): match[2] for line in self._lines if (match := _ASSIGN.match(line)) is not None
        }
        self._read = self._what_is_read()
        self._new: dict[str, str] = {}
        self._gone: set[str] = set()
        nets = self._nets()
        self._choose(nets)
        for net in nets:
            for name in net.names:
                if net.is_unread:
                    self._gone.add(name)
                elif name not in net.beside:
                    self._new[name] = net.final
                    if name != net.root:
                        self._gone.add(name)
        self._name_fields()
        outputs = (name for name, kinds in self._kinds.items() if "output" in kinds)
        self.ports = _Ports(
            {port: self._of(port) for port in map(bare, ports)}, {self._of(name) for name in outputs}
        )

    def _of(self, name: str) -> str:
        return self._new.get(name, name)

    def _read_declarations(self) -> None:
        attributes = False
        for line in self._lines:
            if match := _DECLARATION.match(line):
                name = bare(match[3])
                self._widths[name] = match[2] or ""
                self._kinds.setdefault(name, set()).add(match[1])
                if attributes:
                    self._attributed.add(name)
            attributes = line.startswith("  (*")

    def _is_port(self, name: str) -> bool:
        return bool(self._kinds[name] & {"input", "output"})

    def _nets(self) -> list[_Net]:
        """Return the nets of the module, without the fields and elements of signals."""
        source = {
            name: bare(value) for name, value in self._values.items() if self._is_alias(name, bare(value))
        }
        first_with: dict[str, str] = {}
        for name in sorted(self._values, key=lambda name: (_is_numbered(name), name)):
            if re.match(r"\d+'", self._values[name]):
                # What is tied to the same constant has nothing else in common.
                continue
            first = first_with.setdefault(self._values[name], name)
            if (
                _stem(name) not in ("", name)
                and name not in source
                and name != first
                and self._is_alias(name, first)
            ):
                source[name] = first

        def root(name: str) -> str:
            while name in source:
                name = source[name]
            return name

        nets: dict[str, _Net] = {}
        for name in self._widths:
            if not _split(name)[1]:
                nets.setdefault(root(name), _Net(root(name), [])).names.append(name)
        for instance, port, is_output, name in self._connections():
            net = nets.get(root(name))
            if net is not None:
                (net.drivers if is_output else net.sinks).append((instance, port))
        return list(nets.values())

    def _what_is_read(self) -> set[str]:
        """Return signals, fields and elements that are read, other than by fields of the same signal."""
        read: set[str] = set()
        for line in self._lines:
            if line.startswith("  (*") or _DECLARATION.match(line):
                continue
            match = _ASSIGN.match(line)
            target, _ = _split(bare(match[1])) if match else ("", "")
            for word in _NAME.finditer(match[2] if match else line):
                name = word[1] or word[3]
                base, _ = _split(name)
                if base != target:
                    read |= {name, base}
        return read

    def _is_alias(self, name: str, source: str) -> bool:
        return (
            self._widths.get(name) == self._widths.get(source, "undeclared")
            and self._kinds[name] == {"wire"}
            and name not in self._attributed
            and not _split(name)[1]
            and not _split(source)[1]
        )

    def _connections(self) -> Iterator[tuple[str, str, bool, str]]:
        """Yield each whole net at an instance: instance, port, whether it is an output, the net's name."""
        for line, block, instance in self._with_instances():
            if match := _CONNECTION.match(line):
                port = block.new_names.get(bare(match[1]))
                if port is not None and bare(match[2]) in self._widths:
                    yield instance, port, port in block.outputs, bare(match[2])

    def _with_instances(self) -> Iterator[tuple[str, _Ports, str]]:
        """Yield each line with the ports and the name of the instance that it belongs to."""
        block, instance = _Ports(), ""
        for line in self._lines:
            if match := _INSTANCE.match(line):
                block, instance = (
                    self._blocks.get(bare(match[1]), _Ports()),
                    re.sub(r"\W", "_", bare(match[2])),
                )
            elif not line.startswith("    "):
                block, instance = _Ports(), ""
            yield line, block, instance

    def _choose(self, nets: Sequence[_Net]) -> None:
        """Choose each net's name, unique in the module."""
        words = {match[1] or match[3] for line in self._lines for match in _NAME.finditer(line)}
        taken = words - self._widths.keys()
        of_ports = {_stem(net.root) for net in nets if self._is_port(net.root)}
        # A stream's payload, valid and ready are called after the same: the member that has most of them.
        self._members = Counter(
            name.split("__")[0]
            for net in nets
            if self._is_port(net.root)
            for name in net.names
            if _of_interface(name) and not _is_numbered(name)
        )
        numbered = Counter(stem for name in self._widths if (stem := _stem(name)) != name)
        # What is called after others, once all that has a name of its own has it: ports first, those of one
        # name before those that another name is left for; what is called as one and is none gives way.
        later: list[tuple[int, _Net, list[str]]] = []
        unread = []
        for net in nets:
            is_port = self._is_port(net.root)
            own = {
                name
                for name in net.plain
                if not (_of_interface(name) or self._is_first_of_many(name, net, numbered))
                and (is_port or name not in of_ports)
            }
            if is_port and (_of_interface(net.root) or _is_numbered(net.root)):
                choices, wanted = self._wanted_by_port(net)
                net.beside = own - set(wanted)
                taken |= net.beside
                later.append((choices, net, wanted))
            elif is_port or own:
                kept = is_port or net.root in own
                net.final = net.root if kept else min(own, key=lambda name: (len(name), name))
                net.beside = (net.plain if is_port else own) - {net.final}
                taken |= {net.final, *net.beside}
            elif net.drivers or net.sinks or self._read.intersection(net.names):
                later.append((len(self._widths) + 1, net, self._wanted_between(net)))
            else:
                unread.append(net)
        for _, net, wanted in sorted(later, key=lambda entry: (entry[0], entry[1].root)):
            net.final = next((name for name in wanted if name not in taken), "") or _free(net.root, taken)
            taken.add(net.final)
        for net in unread:
            # A payload of its own that passes in parts is shown whole.
            net.is_unread = net.root in taken or not self._is_own_payload(net.root)
            net.final = net.root

    def _wanted_by_port(self, net: _Net) -> tuple[int, list[str]]:
        """Return how many members of interfaces a port is called as, and these names, the best one first."""
        members = {stem for name in net.names if _of_interface(stem := _stem(name))}
        is_output = "output" in self._kinds[net.root]

        def rank(stem: str) -> tuple[object, ...]:
            often = self._members[stem.split("__")[0]]
            return _suits(stem, is_output), -often, stem != _stem(net.root), stem

        return len(members), sorted(members, key=rank) or [_stem(net.root)]

    def _wanted_between(self, net: _Net) -> list[str]:
        """Return names of a net between instances, the best one first: what drives it, else what it feeds."""
        stem = _stem(net.root)
        named = [f"{instance}_{port}" for instance, port in sorted(net.drivers or net.sinks)]
        # Another net may be called so: of instance a_b at port c, of a at b_c.
        named += islice(_alternatives(named[0]), 7) if named else []
        return [*named, *sorted(net.plain), *([stem] if _of_interface(stem) else [])]

    def _is_first_of_many(self, name: str, net: _Net, numbered: Mapping[str, int]) -> bool:
        """Tell whether a name without a number is that of a port that other instances have too.

        ``numbered``: how many names there are with a number behind that.
        """
        mine = sum(_is_numbered(other) and _stem(other) == name for other in net.names)
        return any(port == name for _, port in net.drivers) and numbered.get(name, 0) > mine

    def _is_own_payload(self, name: str) -> bool:
        """Tell whether a name is that of the payload of a stream of this module, which passes in parts."""
        member, _, kind = name.partition("__")  # (A numbered one's kind is not that.)
        return kind == "payload" and member in self._members

    def _name_fields(self) -> None:
        """Name the fields of signals after these; of several that are the same, one stays."""
        meant: dict[str, list[str]] = {}
        for name in self._widths:
            base, part = _split(name)
            if part and base in self._gone and base not in self._new and name not in self._read:
                self._gone.add(name)
            elif part and not self._is_port(name):
                meant.setdefault(self._of(base) + part, []).append(name)
        for new, names in meant.items():
            names.sort(key=lambda name: (name not in self._attributed, name != new, name))
            first = names[0]
            for name in names:
                if name == first or self._same(name, first):
                    self._new[name] = new
                    if name != first:
                        self._gone.add(name)
                elif name not in self._read:
                    # Of another layout, by which this module does not look at the signal.
                    self._gone.add(name)
                elif name == new:
                    self._new[first] = first

    def _same(self, name: str, other: str) -> bool:
        return (
            self._widths[name] == self._widths[other]
            and name in self._values
            and other in self._values
            and self._renamed(self._values[name]) == self._renamed(self._values[other])
        )

    def _renamed(self, text: str) -> str:
        def of_net(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            new = self._new.get(name)
            if new is None or match[3] in self._keywords:
                return match[0]
            written = self._identifier(new)
            # An escaped one ended with a space; a plain one needs it before a word or an operator only.
            return written + (" " if match[1] and not match[2] and written == new else "")

        return _NAME.sub(of_net, text)

    def _identifier(self, name: str) -> str:
        return f"\\{name} " if name in self._keywords or not re.fullmatch(r"\w+", name) else name

    def written(self) -> tuple[list[str], str]:
        """Return the ports and the body by their new names."""
        lines: list[str] = []
        attributes: list[str] = []
        for line, block, _ in self._with_instances():
            if line.startswith("  (*"):
                attributes.append(line)
                continue
            declared, assigned = _DECLARATION.match(line), _ASSIGN.match(line)
            match = (declared and declared[3]) or (assigned and assigned[1])
            if match and bare(match) in self._gone:
                attributes.clear()
                continue
            lines += attributes
            attributes.clear()
            if _INSTANCE.match(line):
                lines.append(line)
            elif (match_port := _CONNECTION.match(line)) and (
                new := block.new_names.get(bare(match_port[1]))
            ):
                lines.append(f"    .{self._identifier(new)}({self._renamed(line[match_port.start(2) :])}")
            else:
                lines.append(self._renamed(line))
        ports = [self._renamed(port).strip() for port in self._port_list]
        return sorted(port + (" " if port.startswith("\\") else "") for port in ports), "\n".join(lines)
