"""The exported files read as Verilog-2005 by compilers that are neither Yosys nor Verilator.

slang (Pascal; a wheel) always, Icarus Verilog where it is installed. slang knows the keywords of IEEE
1364-2005, but takes operators, literals and drivers of SystemVerilog with them; what Verilog-2005 does not
have among those is told here, by the kinds of syntax in the files and by what drives a variable.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyslang import TextDiagnosticClient, ast, driver, syntax

from sim.rtlsim import file_list

icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="no wheel has Icarus Verilog; it is not installed"
)
SYNTAX = """
CompilationUnit ModuleDeclaration ModuleHeader
AnsiPortList ImplicitAnsiPort NonAnsiPortList ImplicitNonAnsiPort PortReference PortDeclaration
NetPortHeader VariablePortHeader ParameterPortList ParameterDeclaration ParameterDeclarationStatement
NetDeclaration DataDeclaration GenvarDeclaration ImplicitType RegType IntegerType Declarator
EqualsValueClause VariableDimension RangeDimensionSpecifier AttributeInstance AttributeSpec
HierarchyInstantiation HierarchicalInstance InstanceName NamedPortConnection EmptyPortConnection
ParameterValueAssignment NamedParamAssignment SimplePropertyExpr SimpleSequenceExpr
GenerateRegion GenerateBlock IfGenerate LoopGenerate NamedBlockClause
ContinuousAssign InitialBlock AlwaysBlock TimingControlStatement SequentialBlockStatement
EventControlWithExpression ParenthesizedEventExpression SignalEventExpression ImplicitEventControl
ConditionalStatement ConditionalPredicate ConditionalPattern ElseClause CaseStatement StandardCaseItem
DefaultCaseItem ForLoopStatement ExpressionStatement EmptyStatement
AssignmentExpression NonblockingAssignmentExpression InvocationExpression SystemName ArgumentList
OrderedArgument IdentifierName IdentifierSelectName ElementSelect BitSelect SimpleRangeSelect
AscendingRangeSelect IntegerLiteralExpression IntegerVectorExpression StringLiteralExpression
ParenthesizedExpression ConcatenationExpression MultipleConcatenationExpression ConditionalExpression
AddExpression SubtractExpression MultiplyExpression DivideExpression ModExpression
BinaryAndExpression BinaryOrExpression BinaryXorExpression LogicalAndExpression LogicalOrExpression
EqualityExpression InequalityExpression CaseEqualityExpression CaseInequalityExpression
LessThanExpression LessThanEqualExpression GreaterThanExpression GreaterThanEqualExpression
LogicalShiftLeftExpression LogicalShiftRightExpression ArithmeticShiftRightExpression
UnaryPlusExpression UnaryMinusExpression UnaryBitwiseNotExpression UnaryLogicalNotExpression
UnaryBitwiseAndExpression UnaryBitwiseOrExpression UnaryBitwiseXorExpression
UnaryBitwiseNandExpression UnaryBitwiseNorExpression UnaryBitwiseXnorExpression
"""
"""What the exports consist of, by slang's names; IEEE 1364-2005 has each of them (its annex A)."""
KINDS = frozenset(SYNTAX.split())
WARNINGS = ["-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Wno-case-incomplete"]
"""Widths that do not fit are faults. How Yosys writes is not: that a number changes its sign; what
:data:`sim.rtlsim.LINT_WAIVERS` calls CASEINCOMPLETE."""


def _variables(target: Any) -> list[str]:
    """Return which variables an assignment's left side names."""
    if target.kind == ast.ExpressionKind.Concatenation:
        return [name for part in target.operands for name in _variables(part)]
    while target.kind in (ast.ExpressionKind.ElementSelect, ast.ExpressionKind.RangeSelect):
        target = target.value
    return [target.symbol.name] if target.symbol.kind == ast.SymbolKind.Variable else []


def _driven_like_nets(node: Any) -> list[str]:
    """Return the variables that are driven by this continuous assignment, or by outputs of this instance."""
    kind = getattr(node, "kind", None)
    if kind == ast.SymbolKind.ContinuousAssign:
        return _variables(node.assignment.left)
    if kind == ast.SymbolKind.Instance:
        outputs = [port for port in node.portConnections if port.port.direction == ast.ArgumentDirection.Out]
        return [name for port in outputs if port.expression for name in _variables(port.expression.left)]
    return []


def faults(folder: Path, files: Sequence[str], top: str) -> list[str]:
    """Return what slang says of these files, and what in them is not of Verilog-2005, each once."""
    compiler = driver.Driver()
    compiler.addStandardArgs()
    arguments = ["slang", "--std", "1364-2005", *WARNINGS, "--top", top]
    assert compiler.parseCommandLine(" ".join([*arguments, *(f'"{folder / file}"' for file in files)]))
    assert compiler.processOptions()
    said = TextDiagnosticClient()
    compiler.diagEngine.clearClients()
    compiler.diagEngine.addClient(said)
    compiler.parseAllSources()
    compilation = compiler.createCompilation()
    compiler.reportCompilation(compilation, True)
    compiler.runAnalysis(compilation)
    found = re.findall("^.*: (?:error|warning): .*", said.getString(), re.M)

    def read(node: Any) -> None:
        if isinstance(node, syntax.SyntaxNode) and node.kind.name not in KINDS:
            found.append(f"{node.kind.name} is not of Verilog-2005: {str(node).strip()}")

    for tree in compilation.getSyntaxTrees():
        tree.root.visit(read)
    if not compiler.diagEngine.numErrors:

        def see(node: Any) -> None:
            found.extend(f"a variable is driven like a net: {name}" for name in _driven_like_nets(node))

        compilation.getRoot().visit(see)
    return sorted(set(found))


def faults_of_export(folder: Path, name: str) -> list[str]:
    """Return what there is to say of ``folder / <name>.f`` as Verilog-2005, by both compilers."""
    found = faults(folder, [file.name for file in file_list(folder, name)], f"eb_{name}")
    if shutil.which("iverilog"):
        command = ["iverilog", "-g2005", "-Wall", "-Wno-timescale", "-s", f"eb_{name}", "-o", f"{name}.vvp"]
        done = subprocess.run(
            [*command, "-f", f"{name}.f"], cwd=folder, capture_output=True, text=True, check=False
        )
        found += (done.stdout + done.stderr).splitlines()
        assert found or done.returncode == 0
    return found
