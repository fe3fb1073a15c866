"""Conditions in one expression, and names for what registers take next.

Amaranth's text has a net for the result of every operator. Here a net of one bit that has no name of its own
and is read once stands where it is read, in parentheses: as an operand of one bit beside others of one bit,
as a condition, or as the whole of what a bit takes. There no operand is extended, so that the value is the
same (IEEE 1364-2005, 5.4.1: an operator's width is that of its context).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 72
"""Characters of an expression beyond which it keeps a net of its own."""

_DECLARATION = re.compile(r"^  (?:(?:input|output) )?(wire|reg) (\[\d+:0\] )?(\w+);$")
_WORD = re.compile(r"(?<![\w'$.])[A-Za-z_]\w*")
_ASSIGN = re.compile(r"^  assign (\w+) = (.*);$")
_UNNAMED = re.compile(r"_net_\d+$")
_ATOM = r"(?:\$signed\([\w\[\]:]+\)|[\w']+(?:\[[\d:]+\])?)"
_UNARY = re.compile(rf"(~\||[~|&^]) ({_ATOM})")
_BINARY = re.compile(rf"({_ATOM}) (&|\||\^|==|!=|<|>|<=|>=) ({_ATOM})")
_CHOICE = re.compile(rf"({_ATOM}) \? ({_ATOM}) : ({_ATOM})")
_BITWISE = ("&", "|", "^", "~")
_CONDITION = re.compile(r"^ +(?:end else )?if \((\w+)\) begin$")
_TAKEN = re.compile(r"^ +(\w+) <?= (\w+);$")


def with_inlined(body: str) -> str:
    """Return a module's body, of plain identifiers, with conditions in one expression."""
    return _Body(_with_next_names(body)).written()


def _with_next_names(body: str) -> str:
    """Return a module's body with ``<register>_next`` for an unnamed value that the register takes."""
    words = set(_WORD.findall(body))
    registers = set(re.findall(r"^  reg (?:\[\d+:0\] )?(_net_\d+);$", body, re.MULTILINE))
    new = {}
    for register, unnamed in re.findall(r"^    (\w+) <= (_net_\d+);$", body, re.MULTILINE):
        # A keyword has "_" behind it.
        name = f"{register.rstrip('_')}_next"
        if name not in words and unnamed in registers and unnamed not in new:
            new[unnamed] = name
            words.add(name)
    return _WORD.sub(lambda match: new.get(match[0], match[0]), body) if new else body


@dataclass(frozen=True)
class _Expression:
    """One operator and its operands, or a single operand."""

    operator: str
    operands: tuple[str, ...]


def _parsed(text: str) -> _Expression | None:
    if re.fullmatch(_ATOM, text):
        return _Expression("", (text,))
    if match := _UNARY.fullmatch(text):
        return _Expression(match[1], (match[2],))
    if match := _BINARY.fullmatch(text):
        return _Expression(match[2], (match[1], match[3]))
    if match := _CHOICE.fullmatch(text):
        return _Expression("?", (match[1], match[2], match[3]))
    return None


class _Body:
    def __init__(self, body: str) -> None:
        self._lines = body.split("\n")
        self._bits: set[str] = set()
        self._vectors: set[str] = set()
        self._wires: set[str] = set()
        self._value_at: dict[str, int] = {}
        self._uses: dict[str, list[int]] = {}
        attributed = False
        for number, line in enumerate(self._lines):
            if line.startswith("  (*"):
                attributed = True
                continue
            had_attribute, attributed = attributed, False
            if match := _DECLARATION.match(line):
                (self._vectors if match[2] else self._bits).add(match[3])
                if match[1] == "wire" and not had_attribute:
                    self._wires.add(match[3])
                continue
            for word in _WORD.findall(line):
                self._uses.setdefault(word, []).append(number)
            if match := _ASSIGN.match(line):
                self._value_at[match[1]] = number
        self._texts: dict[str, tuple[str, str]] = {}
        """Of each net that goes, its operator and its expression."""
        for name in self._in_order():
            self._consider(name)

    def _in_order(self) -> Iterator[str]:
        """Yield the unnamed bits that are read once, those first that others are made of."""
        waiting = {
            name
            for name in self._value_at
            if _UNNAMED.match(name) and name in self._bits & self._wires and len(self._uses[name]) == 2
        }
        seen: set[str] = set()
        for first in sorted(waiting):
            stack = [first]
            entered = {first}
            while stack:
                name = stack[-1]
                inner = [
                    word
                    for word in _WORD.findall(self._value(name))
                    if word in waiting and word not in seen and word not in entered
                ]
                if inner:
                    stack.append(inner[0])
                    entered.add(inner[0])
                    continue
                stack.pop()
                if name not in seen:
                    seen.add(name)
                    yield name

    def _value(self, name: str) -> str:
        return self._lines[self._value_at[name]].split(" = ", 1)[1].removesuffix(";")

    def _is_bit(self, operand: str) -> bool:
        return (
            operand in self._bits
            or ((match := re.fullmatch(r"(\w+)\[\d+\]", operand)) is not None and match[1] in self._vectors)
            or re.fullmatch(r"1'h\w", operand) is not None
        )

    def _of_bits(self, expression: _Expression) -> bool:
        """Tell whether all operands of a bitwise operator, or of none, are bits."""
        return expression.operator in (*_BITWISE, "") and all(map(self._is_bit, expression.operands))

    def _consider(self, name: str) -> None:
        expression = _parsed(self._value(name))
        if expression is None or expression.operator in ("", "?"):
            return
        # "& x" and "| x" of several bits are one bit, whatever is around.
        of_context = len(expression.operands) > 1 or expression.operator == "~"
        if expression.operator in _BITWISE and of_context and not self._of_bits(expression):
            return
        text = self._text(expression)
        readers = [number for number in self._uses[name] if number != self._value_at[name]]
        # (None where a bit hangs on itself.)
        if readers and len(text) <= LONGEST and self._may_stand(name, self._lines[readers[0]]):
            self._texts[name] = (expression.operator, text)

    def _may_stand(self, name: str, line: str) -> bool:
        """Tell whether an expression may stand for ``name`` in a line that reads it."""
        if match := _CONDITION.match(line):
            return match[1] == name
        if match := _ASSIGN.match(line):
            expression = _parsed(match[2])
            if expression is None or match[1] not in self._bits:
                return (
                    expression is not None and expression.operator == "?" and expression.operands[0] == name
                )
            if expression.operator == "?":
                return expression.operands[0] == name or all(map(self._is_bit, expression.operands))
            return self._of_bits(expression)
        match = _TAKEN.match(line)
        return match is not None and match[1] in self._bits and match[2] == name

    def _text(self, expression: _Expression) -> str:
        """Return an expression with its operands' expressions in it."""
        operator = expression.operator
        operands = []
        for number, operand in enumerate(expression.operands):
            inner, text = self._texts.get(operand, ("", operand))
            # "a & b & c" is the first two first; "~" binds before what has two operands.
            of_two = len(expression.operands) == 2
            bare = not inner or (of_two and (inner == "~" or (number == 0 and inner == operator)))
            operands.append(text if bare else f"({text})")
        if operator == "?":
            return f"{operands[0]} ? {operands[1]} : {operands[2]}"
        if len(operands) == 2:
            return f"{operands[0]} {operator} {operands[1]}"
        return f"{operator}{operands[0]}"

    def written(self) -> str:
        lines = []
        for line in self._lines:
            declared, assigned = _DECLARATION.match(line), _ASSIGN.match(line)
            if (declared and declared[3] in self._texts) or (assigned and assigned[1] in self._texts):
                continue
            if assigned and (expression := _parsed(assigned[2])) is not None:
                value = self._text(expression) if expression.operator else self._alone(assigned[2])
                line = f"  assign {assigned[1]} = {value};"
            elif taken := _CONDITION.match(line) or _TAKEN.match(line):
                start, end = taken.span(taken.re.groups)
                line = line[:start] + self._alone(line[start:end]) + line[end:]
            lines.append(line)
        return "\n".join(lines)

    def _alone(self, operand: str) -> str:
        return self._texts.get(operand, ("", operand))[1]
