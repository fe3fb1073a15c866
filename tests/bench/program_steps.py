"""What the column commands of a program do, step by step: registers, sums, results. Written anew, slowly.

The order of the commands is the cycle model's; what a command stands for follows from the program
(:mod:`spec.program`). Registers and sums hold *which* burst met which word of inputs; golden adds up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from golden.formats import F32, Bits16, dot
from spec.device import PimDevice, Schedule
from spec.program import FIELDS, LOOP_DEPTH, OP_BITS, Op, Program, Role, word

Fields = dict[str, int]
Meeting = tuple[int, int]
"""A burst's number in the banks, and a word of inputs."""
NOTHING = -1


@dataclass(frozen=True)
class Step:
    """A column command beside its cycle, kind, bank and row.

    ``word`` of the inputs goes to ``register``; a MAC adds ``tokens`` registers from ``register`` on to as
    many sums from ``sum`` on, or to nothing with ``first``; a write of results leaves ``sum``.
    """

    column: int = 0
    register: int = NOTHING
    word: int = NOTHING
    sum: int = NOTHING
    tokens: int = 1
    first: bool = False


def fields_of_word(word: int) -> tuple[Op, Fields]:
    """Return a word's operation and its fields."""
    op, rest = Op(word & (1 << OP_BITS) - 1), word >> OP_BITS
    found = {}
    for name, width in FIELDS[op]:
        value, rest = rest & (1 << width) - 1, rest >> width
        signed = name == "row"
        found[name] = value - (1 << width) if signed and value >> (width - 1) else value
    return op, found


def places_read(program: Program) -> list[int]:
    """Return the places of the words in the order in which they are read: STOP is the last."""
    found, loops, place = [], [], 0
    while True:
        op, fields = fields_of_word(program[place])
        found.append(place)
        place += 1
        if op is Op.STOP:
            return found
        if op is Op.LOOP:
            loops.append([place, fields["count"] - 1])
        elif op is Op.END and loops[-1][1]:
            loops[-1][1] -= 1
            place = loops[-1][0]
        elif op is Op.END:
            loops.pop()


def unrolled(program: Program) -> Iterator[tuple[Op, Fields]]:
    """Yield the operations without the loops."""
    for place in places_read(program):
        op, fields = fields_of_word(program[place])
        if op not in (Op.LOOP, Op.END):
            yield op, fields


Tree = list["int | tuple[int, Tree]"]
"""Words and loops: how often, and what."""


def nested(program: Program, rng: np.random.Generator, times: int = 8) -> Program:
    """Return a program that says the same with other loops, some of them of a single turn.

    The first words stay, which an engine has little time for.
    """
    tree, place = _tree(program, 0)
    head, body = tree[:HEAD], tree[HEAD:-1]
    for _ in range(times):
        changed = _changed(body, rng)
        body = changed if _depth(changed) <= LOOP_DEPTH else body
    return [*_flat(head), *_flat(body), *program[place - 1 :]]


HEAD = 2


def _tree(program: Program, place: int) -> tuple[Tree, int]:
    found: Tree = []
    while True:
        op, fields = fields_of_word(program[place])
        place += 1
        if op is Op.LOOP:
            inside, place = _tree(program, place)
            found.append((fields["count"], inside))
        elif op is Op.END:
            return found, place
        else:
            found.append(program[place - 1])
            if op is Op.STOP:
                return found, place


def _changed(tree: Tree, rng: np.random.Generator) -> Tree:
    """Return a tree with one loop split into two or into one of loops, or a part made a loop of one turn."""
    loops = [n for n, one in enumerate(tree) if isinstance(one, tuple)]
    if loops and rng.random() < 0.7:
        n = int(rng.choice(loops))
        count, inside = tree[n]  # type: ignore[misc]
        divisors = [one for one in range(2, count) if count % one == 0]
        choice = rng.random()
        if choice < 0.3 and count > 1:
            first = int(rng.integers(1, count))
            return [*tree[:n], (first, inside), (count - first, inside), *tree[n + 1 :]]
        if choice < 0.5 and divisors:
            outer = int(rng.choice(divisors))
            return [*tree[:n], (outer, [(count // outer, inside)]), *tree[n + 1 :]]
        return [*tree[:n], (count, _changed(inside, rng)), *tree[n + 1 :]]
    first, last = sorted(rng.integers(0, len(tree) + 1, 2).tolist())
    return [*tree[:first], (1, tree[first:last]), *tree[last:]] if last > first else tree


def _depth(tree: Tree) -> int:
    return max((1 + _depth(one[1]) for one in tree if isinstance(one, tuple)), default=0)


def _flat(tree: Tree) -> Program:
    found: Program = []
    for one in tree:
        found += (
            [word(Op.LOOP, count=one[0]), *_flat(one[1]), word(Op.END)] if isinstance(one, tuple) else [one]
        )
    return found


@dataclass
class Steps:
    """Steps of a program by what they are, each list in the order in which they come."""

    macs: list[Step] = field(default_factory=list)
    registers: list[Step] = field(default_factory=list)
    writes: list[Step] = field(default_factory=list)
    every: list[Step] = field(default_factory=list)
    """Of the published kernel, whose commands keep the order of the program."""


def steps_of(device: PimDevice, program: Program) -> Steps:
    """Return the steps of a program."""
    return (_barrier if device.schedule is Schedule.BARRIER else _streamed)(device, program)


def _streamed(device: PimDevice, program: Program) -> Steps:
    steps = Steps()
    row_bursts = device.timed.bursts_per_row
    column = base = behind = bursts = words = tokens = used = side = 0
    result_column = [0, 0]
    for op, fields in unrolled(program):
        if op is Op.MODE or op is Op.WRITE:
            steps.writes.append(Step())
        elif op is Op.REGISTERS:
            steps.registers += [Step()] * fields["count"]
        elif op is Op.INPUTS:
            bursts, words = fields["bursts"], fields["words"]
            base, behind = behind, behind + words
        elif op is Op.GROUP:
            tokens, used, column, side = fields["tokens"], fields["registers"], 0, 0
        elif op is Op.PASS:
            steps.registers += [Step(register=n % used, word=base + n) for n in range(words)]
            for burst in range(bursts):
                for output in range(fields["outputs"]):
                    steps.macs.append(
                        Step(column, burst * tokens % used, NOTHING, output * tokens, tokens, burst == 0)
                    )
                    column = (column + 1) % row_bursts
                    last = burst == bursts - 1 and output == fields["outputs"] - 1
                    side ^= column == 0 and not last
        elif op is Op.RESULTS:
            place = int(bool(fields["even_next"]) or not side)
            count = fields["count"]
            first = result_column[place] if result_column[place] + count <= row_bursts else 0
            steps.writes += [Step(first + n, sum=n) for n in range(count)]
            result_column[place] = (first + count) % row_bursts
    return steps


def _barrier(device: PimDevice, program: Program) -> Steps:
    steps = Steps()
    sums = device.output_registers
    address = in_group = 0
    fresh: set[int] = set()
    for op, fields in unrolled(program):
        if op is Op.ADVANCE:
            address = 0
        if op is not Op.ACCESS:
            continue
        role, count = Role(fields["role"]), fields["count"]
        for n in range(in_group, in_group + count):
            if role is Role.MAC:
                of_sum = n % sums
                register = fields["register"] + n // sums
                steps.every.append(Step(n, register, NOTHING, of_sum, first=of_sum in fresh))
                fresh.discard(of_sum)
            elif role is Role.INPUT:
                steps.every.append(Step(n, n, address + n))
            else:
                steps.every.append(Step(n, sum=n if role is Role.RESULT else NOTHING))
            if role is Role.CLEAR:
                fresh = set(range(sums))
        address += count if role is Role.INPUT else 0
        in_group = 0 if fields["fence"] else in_group + count
    return steps


def results_of(sums: list[list[Meeting]], banks: Bits16, inputs: Bits16) -> F32:
    """Return (results, units) float32 of what met in each sum.

    banks : (bursts, units, lanes) bf16 patterns. inputs : (words, lanes) bf16 patterns.
    """
    units, lanes = banks.shape[1:]
    out = np.zeros((len(sums), units), dtype=np.float32)
    for result, met in zip(out, sums, strict=True):
        bursts, words = np.array(met).T
        x = inputs[words].reshape(1, -1)
        result[:] = dot(x, banks[bursts].transpose(1, 0, 2).reshape(units, -1), lanes)[0]
    return out
