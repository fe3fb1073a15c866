"""Small expressions in a user's file: arithmetic, comparisons and logic over named values.

Python's syntax, and only that part of it that cannot do anything else: numbers, texts, names with dots,
``+ - * / // % **``, comparisons, ``in``, ``and or not``, ``a if c else b``, lists, and the functions of
:data:`FUNCTIONS`. Texts are compared and nothing else.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spec.errors import InputError, require

MAX_CHARACTERS = 1000
MAX_DEPTH = 50
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    # Of whole numbers a power may have more digits than there is memory.
    ast.Pow: lambda a, b: math.pow(a, b),
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
Values = Mapping[str, Any]
Part = Callable[[Values], Any]


@dataclass(frozen=True)
class Expression:
    """An expression, and the names that it reads; calling it with their values gives its own.

    Raises :class:`InputError` for what cannot be computed: a division by 0, a text where a number belongs.
    """

    text: str
    names: tuple[str, ...]
    part: Part

    def __call__(self, values: Values) -> Any:
        """Return the expression's value."""
        try:
            return self.part(values)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise InputError(f"{self.text!r} cannot be computed: {error}") from None

    def __reduce__(self) -> tuple[Callable[[str], Expression], tuple[str]]:
        """Travel to another process as text."""
        return parse, (self.text,)


def parse(text: str) -> Expression:
    """Return a text's expression; :class:`InputError` if it is none."""
    require(len(text) <= MAX_CHARACTERS, f"must have at most {MAX_CHARACTERS} characters, not {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"is no expression: {text!r}") from None
    names: dict[str, None] = {}
    part = _part(tree, text, names, 0)
    return Expression(text, tuple(names), part)


def _part(node: ast.expr, text: str, names: dict[str, None], depth: int) -> Part:
    """Return what computes a node; its names are added to ``names``."""
    require(depth < MAX_DEPTH, f"is nested too deeply: {text!r}")

    def below(inner: ast.expr) -> Part:
        return _part(inner, text, names, depth + 1)

    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float, str):
        value = node.value
        return lambda values: value
    name = _dotted(node)
    if name is not None:
        names[name] = None
        return lambda values: values[name]
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        compute, left, right = ARITHMETIC[type(node.op)], below(node.left), below(node.right)
        return lambda values: compute(_number(left(values)), _number(right(values)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        inner = below(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda values: not inner(values)
        return lambda values: -_number(inner(values))
    if isinstance(node, ast.BoolOp):
        parts = [below(one) for one in node.values]
        join = all if isinstance(node.op, ast.And) else any
        return lambda values: join(bool(one(values)) for one in parts)
    if isinstance(node, ast.Compare) and all(type(op) in COMPARISONS for op in node.ops):
        sides = [below(one) for one in (node.left, *node.comparators)]
        tests = [COMPARISONS[type(op)] for op in node.ops]

        def compare(values: Values) -> bool:
            given = [side(values) for side in sides]
            return all(test(a, b) for test, a, b in zip(tests, given, given[1:], strict=False))

        return compare
    if isinstance(node, ast.IfExp):
        test, then, other = below(node.test), below(node.body), below(node.orelse)
        return lambda values: then(values) if test(values) else other(values)
    if isinstance(node, ast.List | ast.Tuple):
        entries = [below(one) for one in node.elts]
        return lambda values: [one(values) for one in entries]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = FUNCTIONS.get(node.func.id)
        if function is not None and node.args:
            arguments = [below(one) for one in node.args]
            return lambda values: function(*(_number(one(values)) for one in arguments))
        known = ", ".join(FUNCTIONS)
        raise InputError(f"has a function that is none of {known}: {ast.unparse(node.func)!r}")
    raise InputError(f"must be arithmetic, comparisons and logic over names, not {text!r}")


def _dotted(node: ast.expr) -> str | None:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def _number(value: Any) -> Any:
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{value!r} is no number")
    return value
