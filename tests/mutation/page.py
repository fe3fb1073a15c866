"""The page of the mutants: what the benches see of them, and what they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.mutation.mutants import WARM_UP

PAGE = """# mutation

Would the benches see it if the hardware were wrong? Yosys changes the netlist of a block in {count} places,
one at a time (a bit of a cell's port inverted, constant, or another one's; `mutate`, seed {seed}; clocks
left out), and the block's bench (`tests/bench/`: every handshake's cycle and every payload against model
and golden) runs on each. `make mutate` (`MUTANTS=`, `SEED=`) writes this page; it took {seconds:.0f} s
beside other work when this one was written, builds included, and fails below {goal:.0%}.

First the netlist itself runs: the exported Verilog, flattened and optimised by Yosys' coarse `synth`,
word-level cells, written as Verilog again, with three different random contents of all registers and
memories at power-up: all agrees.

| block | mutants | detected | equivalent | neither | detected of those not equivalent | scenarios | seconds |
|---|---|---|---|---|---|---|---|
{rows}

*Equivalent* is proved: from any state that {warm_up} cycles of the original lead to, with any inputs, the
same outputs and the same next state (Yices). That is a narrow meaning: a mutant that differs only in a
register that nobody reads then, or in states that cannot be reached for another reason, is not among them.
The scenarios are those of seed {seed}, for what survives them those of the next one too.

## Survivors

Neither detected nor proved equivalent, as Yosys names them.

{survivors}

"""

# Why a place is not seen: pattern of the mutant, what is behind it.
EXPLAINED: tuple[tuple[str, str, str], ...] = (
    (
        "dispatch",
        r"tails\.\\?copy_0\.",
        "bypass of the tails' first read port; a job reads of a closed window, which is not written any more",
    ),
)


def explanation(block: str, text: str) -> str:
    """Return what is known of a survivor, "not explained" if nothing."""
    for name, pattern, reason in EXPLAINED:
        if block.startswith(name) and re.search(pattern, text):
            return reason
    return "not explained"


def page(outcomes: Sequence[Any], seed: int, goal: float) -> str:
    """Return the page of the :class:`tests.mutation.run.Outcome` of all blocks."""
    rows = [
        f"| {one.name} | {one.total} | {one.total - len(one.survivors)} | {len(one.proved)} | {len(one.left)}"
        f" | {one.score:.1%} | {one.scenarios} | {one.seconds:.0f} |"
        for one in outcomes
    ]
    survivors = [
        f"- {one.name} {number}: `{_short(text)}`: {explanation(one.name, text)}."
        for one in outcomes
        for number, text in _items(one.left)
    ]
    return PAGE.format(
        warm_up=WARM_UP,
        count=max(one.total for one in outcomes),
        seed=seed,
        seconds=sum(one.seconds for one in outcomes),
        goal=goal,
        rows="\n".join(rows),
        survivors="\n".join(survivors) or "None.",
    )


def _items(left: Mapping[int, str]) -> list[tuple[int, str]]:
    return sorted(left.items())


def _short(text: str) -> str:
    """Return the change and its place without the rest of Yosys' names."""
    mode = re.search(r"-mode (\S+)", text)
    cell = re.search(r"-cell (\S+)", text)
    port = re.search(r"-port (\S+) -portbit (\d+)", text)
    wire = re.search(r"-wire (\S+)", text)
    where = f"{cell[1]} {port[1]}[{port[2]}]" if cell and port else ""
    return f"{mode[1] if mode else ''} {where}" + (f" of {wire[1]}" if wire else "")
