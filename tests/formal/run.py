"""Prove everything, plant every bug, write the page: ``python -m tests.formal.run`` (``make formal``)."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pytest

from sim.bench import commit_of_sources
from sim.toolchain import write_atomically
from tests.block_bench import plant_bug
from tests.formal.model import Checker, names
from tests.formal.properties import PROOFS, Bug, Proof
from tests.formal.prove import Verdict, prove

PAGE = """# formal

What is proved of the blocks' control, for any inputs, not only those of a test: `make formal` (yosys-smtbmc
and Yices from wheels; all of it at once took {seconds} s in {jobs} when it was run so last, at {commit}).
Each row is of the commit that it names. The checkers are Amaranth modules around the blocks, which are
elaborated unchanged (`tests/formal/`).

Time begins in any state of all registers and memories, with one cycle of reset: what holds after it holds
after every reset of the block and of all that is around it, also one in the middle of work. A recovery is
another kind ([axi.md](axi.md#recovery)): the DRAM of a `pim` is not reset with the engines, so theirs may be
reset in any cycle and for any time while the checker's banks stay as they are. The row engine keeps every
rule through that. The column engine forgets its distances: they are proved where nothing is asked of it in
the cycles behind a recovery that its row says, which is assumed ([pim.md](pim.md)), not proved.

*Induction* n: whatever state fulfils all assertions (the invariants too) in n cycles fulfils them in the
next one: for all time. *Bounded* n: no assertion fails in the first n cycles, that of reset among them. All
of it is for the small parameters in the table; that it does not depend on them is not claimed. For every
property of every proof a bug is planted that breaks it (`test_every_property_has_a_bug`), and found: from
reset, as a trace in which that property fails, or (*) where its output is too many cycles away for a search,
as a proof that fails. There is none without.

| block | property | parameters | method | assertions | seconds | bugs found | commit |
|---|---|---|---|---|---|---|---|
{rows}

Assumed of what is around a block: offered beats stay; what its documentation says that it is owed (slots
announced in order and used again when freed; contributions announced before they come, one after the other;
MACs in rows that are ready; memory bursts that were asked for); inputs that are constant while it works do
not change. The combiners' sums, and all other arithmetic, are not part of it: those are compared bit for
bit with golden by the benches.

Not proved, and left to benches and mutants ([mutation.md](mutation.md)):

* order and conservation in a dispatcher with several units, with a shared expert, or that decides window by
  window: of those the rules of streams alone;
* progress of anything but a dispatcher of one unit with short pipelines, queues, the intake, the crossing,
  and what the table says (a combiner's: from a token's last contribution on);
* the read addresses of a layer as a whole (its loaders' are proved), and the streams of tops with AXI ports
  as a whole (their parts' are);
* flip-flops between two clocks that have not settled after a cycle; that one which samples a count while it
  changes shows the old one or the new one is proved (one bit of it changes), and both are orders of edges;
* `rtl/gemv` (command programs); its commands are checked in every run ([pim-gemv.md](pim-gemv.md));
* that a channel's operands and results are those of its commands; check bits (`rtl/secded.py`).

Of the crossing between two clocks a cycle is one in which either clock rises, or both or none: the solver
chooses. Both sides are in reset together for 6 cycles of the slower clock, and leave it in any order. With 4,
as its documentation asks for, a search of 16 cycles finds nothing, with 3 it does
(`test_a_crossing_after_the_shortest_reset`).

The AXI rules are those of IHI 0022 and IHI 0051, of the parts that stand at a top's ports ([axi.md](axi.md)).
Behind the read port a memory may do anything: what comes unasked, ends early or late, or is in error is part
of the proof. Of a core behind it is assumed that it waits for at most so many bursts, which is proved of the
two masters. Lengths and sizes of bursts are constants of the export. That no input of a top reaches an output
in the same cycle is asked of Yosys on the exported Verilog, not of a solver (gate and dispatcher:
`test_no_input_of_a_top_reaches_an_output_at_once`; `make test-long`: both accelerators).
A top as a whole is not proved: others' masters and memories test it under random pauses.

A property that is new: an entry of `PROOFS` in `tests/formal/properties.py` with its bugs.
"""


def prove_one(name: str) -> tuple[str, int, Verdict]:
    """Return a proof's name, how many assertions it has, and what the solver found."""
    proof = proof_named(name)
    return name, len(proof.make().properties), prove(proof.make, depth=proof.depth, induction=proof.induction)


def processes(jobs: int) -> str:
    """Return how many processes, in words."""
    return "one process" if jobs == 1 else f"{jobs} processes"


def find_bug(name: str, index: int) -> tuple[str, int, str]:
    """Plant a bug; return "" if the property that it breaks fails, else what was seen."""
    proof = proof_named(name)
    bug = proof.bugs[index]
    return name, index, missed(proof, bug)


def missed(proof: Proof, bug: Bug) -> str:
    """Return "" if the bug breaks the property that it should, else what was seen."""
    patch = pytest.MonkeyPatch()
    try:
        plant_bug(patch, importlib.import_module(bug.module), bug.old, bug.new)
        make = bug.make or proof.make
        patch.setattr(Checker, "with_invariants", bug.induction > 0)
        # From reset the property has to fail by itself, not only one that fails before it.
        patch.setattr(Checker, "only", "" if bug.induction else bug.fails)
        verdict = prove(make, depth=bug.depth or proof.depth, induction=bug.induction)
    finally:
        patch.undo()
    fails = any(names(bug.fails, name) for name in verdict.failed)
    if fails and verdict.holds == (bug.induction > 0):
        return ""
    return f"{bug.fails} holds; failed: {', '.join(verdict.failed) or 'nothing'}"


def proof_named(name: str) -> Proof:
    """Return a proof by its name."""
    return next(proof for proof in PROOFS if proof.name == name)


def main() -> int:
    """Run all; return 1 if a proof fails or a bug is not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the page; with --only: their rows of it")
    parser.add_argument("--only", default="", help="proofs whose name has this in it")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    proofs = [proof for proof in PROOFS if arguments.only in proof.name]
    start = time.perf_counter()
    failures = 0
    rows = {}
    found = {proof.name: 0 for proof in proofs}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        # The long ones first.
        order = sorted(proofs, key=lambda proof: -(proof.depth + 1000 * (len(proof.bugs) > 5)))
        verdicts = [pool.submit(prove_one, proof.name) for proof in order]
        bugs = [pool.submit(find_bug, proof.name, n) for proof in proofs for n in range(len(proof.bugs))]
        for future in as_completed(verdicts):
            name, assertions, verdict = future.result()
            proof = proof_named(name)
            proved = verdict.holds and verdict.induction == proof.induction
            failures += not proved
            said = "holds" if proved else f"FAILS: {', '.join(verdict.failed)}"
            print(f"{name}: {said}, {verdict.seconds:.1f} s", flush=True)
            rows[name] = (assertions, verdict)
        for future in as_completed(bugs):
            name, index, seen = future.result()
            found[name] += not seen
            failures += bool(seen)
            bug = proof_named(name).bugs[index]
            print(f"{name}, bug in {bug.module} ({bug.fails}): {seen or 'found'}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{len(proofs)} proofs, {sum(found.values())} bugs found, {failures} failures, {seconds:.0f} s")
    if arguments.out and not failures:
        lines = {proof.name: _row(proof, *rows[proof.name], found[proof.name]) for proof in proofs}
        whole = PAGE.format(
            seconds=round(seconds),
            jobs=processes(arguments.jobs),
            commit=commit_of_sources(),
            rows="\n".join(lines.values()),
        )
        text = page_with(arguments.out.read_text(), lines) if arguments.only else whole
        write_atomically(arguments.out, text)
    return int(failures > 0)


def page_with(page: str, rows: dict[str, str]) -> str:
    """Return a page with the rows of these proofs instead of its own, in the order of ``PROOFS``."""
    (took,) = re.findall(r"took (\d+) s in (.+) when it was run so last, at (.+)\)\.", page)
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line[:1] == "|"}
    rows = {**kept, **rows}
    lines = [rows[proof.name] for proof in PROOFS if proof.name in rows]
    return PAGE.format(seconds=took[0], jobs=took[1], commit=took[2], rows="\n".join(lines))


def _row(proof: Proof, assertions: int, verdict: Verdict, found: int) -> str:
    method = f"induction {proof.induction}" if proof.induction else f"bounded {proof.depth}"
    star = " (*)" if any(bug.induction for bug in proof.bugs) else ""
    cells = [
        proof.name,
        proof.says,
        proof.parameters,
        method,
        str(assertions),
        f"{verdict.seconds:.1f}",
        f"{found} of {len(proof.bugs)}{star}",
        commit_of_sources(),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
