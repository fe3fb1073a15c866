"""The page of the mutants: what the benches see of them, and what they do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PAGE = """# mutation

Would the benches see it if the hardware were wrong? Yosys changes the netlist of a block in many places,
one at a time (a bit of a cell's port inverted, constant, or another one's; `mutate`; clocks left out), and
the block's bench (`tests/bench/`: every handshake's cycle and every payload against model and golden) runs on
each. All mutants of a block are one build, whose port says which of them it is: one costs the runs that
it takes to see it, from a second to half a minute, and those that nobody sees all runs of two seeds.

`make mutate` (`MUTANTS=`, `SEED=`) writes this page and fails below {goal:.0%}. A row is of the commit that
it names: `python -m tests.mutation.run --only BLOCK --out docs/mutation.md` measures a block alone (with
`--seed` other mutants of it, under scenarios of that seed, in a row of their own). A survivor whose reason
nobody has found says so, here and at the end of the run. Blocks named `_deep` are those of deep pipelines
(`deep` in a design), `expert_w4a8` has int4 weights, int8 inputs and a multiplier for the products of two
rows, `gating_sigmoid` has DeepSeek-V3's rule, `gating_softmax` gpt-oss' (a softmax of the largest logits).
Seconds are those of one process beside other work, builds included. Blocks named `axi_` are what lies between
the ports and the core of a top, under the bench of those tops (somebody else's masters, sinks and memory),
with counts of ten places, all of which a bench reaches, where products have 32 (`count_bits`);
`layer_glue` is what lies between the blocks of a layer: intake, router loader, memory port, probe, events;
`pim_layer_glue` that of a near-memory layer of two channels with its router in the banks; `registers` the
core's registers and counters. In them the blocks themselves have no mutants, and what they owe their
surroundings is part of the proofs below. `merge` is the merger of several channels. `program_` are channels
that run command programs, of our schedule with check bits and tokens that share a burst, and of the published
kernel's, there under any groups of accesses too; no stream of theirs can be refused, so what is drawn is
programs, loops, operands, flipped bits, and when they start. In which cycle a word of a program is read is
the hardware's affair, and not compared; in which order is. Programs that come too late (`late`) are not drawn
(`tests/test_gemv_rtl.py` has them). `crossing` is a queue between two clocks, whose handshakes the bench
compares at every edge of either, at eight ratios and in any order; the proofs below know one clock, so that
none of its mutants counts as equivalent.

Not every module of `rtl/` is in one of these configurations. **Without mutants** are: a softmax over all
experts (its exponentials and weights are those of the chosen ones'), the router in the banks, the formats
with groups (`grouped.py`, its dual multiplier), the dual multiplier of int8 (all of its products are computed
by `test_every_product_of_the_dual_multiplier`), gated and clamped activations other than ReLU's, a gated
shared expert, the combiner's norm and bias, AXI shells of the two layers (their parts are those of
`axi_gate`, but for bursts in flight) and tops on two clocks as a whole. What they have are benches that
compare every bit and cycle (`tests/test_*.py`), and coverage of the shells ([coverage.md](coverage.md)).

| block | mutants | seed | detected | equivalent | neither | score | scenarios | seconds | commit |
|---|---|---|---|---|---|---|---|---|---|
{rows}

The *score* is the share detected of those that are not proved equivalent. *Equivalent* is proved, never
explained: from any power-up, the same of both, after a cycle of reset, for ever and for all inputs that the
block is owed, outputs are the same (payloads while they are valid). Either the change of one cycle leaves no
trace a few cycles later and no output shows it (`tests/mutation/perturbed.py`; what a reset gives no value
may hold anything after it, the same in both; what nothing depends on at that time, proved of each mutant,
is no trace; cycles count in which the change is passed on at all, where much is constant), or the bits of
registers that stay the same on both sides follow from themselves, and the outputs from them
(`tests/mutation/equivalence.py`). What the original's state always fulfils, and what the block is owed, is
stated in `tests/mutation/invariants/`; invariants are proved by induction before they are used, and a false
one ends the run (Yices). What hangs on a relation that no rule states is not among them, nor what {seconds}
seconds of a processor are too few for in a block, for either kind of proof. The scenarios are the bench's
and those that only mutants need (`tests/mutation/*_scenarios.py`: sums that take each other back, ties,
limits, far rows, restarts), of the seed, and for what survives them those of the next one too.

## The netlist itself

Before any mutant the netlist runs unchanged: the exported Verilog, flattened and optimised by Yosys' coarse
`synth`, word-level cells, written as Verilog again. The bench runs on it with several different random
contents of all registers and memories at power-up, and all of it has to agree (`make mutate`, or
`python -m tests.mutation.run --netlist --out docs/mutation.md`, which has the layer too).

| netlist | scenarios | power-ups | agree | seconds | commit |
|---|---|---|---|---|---|
{netlists}

## Survivors

Neither detected nor proved equivalent, as Yosys names them.

{survivors}

"""
SURVIVOR = re.compile(r"^(- (\S+) \d+ of seed (\d+): `(.*)`: )(.*)\.$")
UNEXPLAINED = "not explained"

DRAINED = (
    r"\\gate\.\\?copy_1\.|of core\.array\.gate\.copy_1\.",
    "bypass of the port that drains the accumulators; they are drained when nothing is added to them",
)
"""What short arrays of any format have: pattern and reason."""
# Why a place is not seen: pattern of the mutant, what is behind it.
EXPLAINED: tuple[tuple[str, str, str], ...] = (
    (
        "program_streamed",
        r"const1 .*\\planner\.\$eq\$\S+:1713\$200 A\[1\]",
        "whether the row command eight before wants the same cycle; it is always earlier",
    ),
    (
        "program_streamed",
        r"cnot1 .*\\planner\.\$procmux\$8385 B\[2\]",
        "a place of a row of results, turned from the 1,025th on; the banks have 1,024 rows",
    ),
    (
        "program_streamed",
        r"cnot1 .*\\planner\.\$procmux\$9104 Y\[8\]",
        "a place of a row of weights, turned from row 65,536 on; the banks have 1,024 rows",
    ),
    (
        "program_streamed",
        r"const1 .*\\burst_1\.\$ternary\$\S+:8219\$",
        "significand of a zero; its exponent is 0: shifted out, or in a burst below all that is not flushed",
    ),
    (
        "program_barrier",
        r"const0 .*\\engine\.\$gt\$\S+:1130\$401 A\[3\]",
        "an opened row's wait against what is left of the one before: nothing, ACTs are 47 cycles apart",
    ),
    (
        "program_barrier",
        r"const0 .*\\sequencer\.\$procmux\$2377 B\[71\]",
        "the place of 2^23 in the turns that a loop has left",
    ),
    (
        "axi_dispatch",
        r"^const1 .* Y\[0\] of core\.saw_loaded$",
        "the first look at what was loaded, without one; the dispatcher loads nothing, as that would say",
    ),
    (
        "axi_dispatch",
        r"^inv .* of core\.packets\._net_36$",
        "a limit that is compared while a packet is open, and not before; it counts from the second beat on",
    ),
    (
        "axi_dispatch",
        r"^cnot1 .* A\[1\] of core\._net_86$",
        "how many tokens are inside, turned where there are 8; there are 4 at most",
    ),
    (
        "axi_dispatch",
        r"\$and\$\S+:491\$67 B\[0\]$",
        "that a load is under way; the dispatcher's has ended before a register can be read",
    ),
    (
        "axi_gate",
        r"\\read_guard\.\$sub\$\S+ A\[2\] of core\.read_guard\._net_1$",
        "room for an address, told in every other cycle: the next burst of a load begins a cycle later",
    ),
    (
        "pim_layer_glue",
        r"\\job_merge\.\$ternary\$\S+ B\[10\]",
        "the weight of a job with the router, which nobody reads",
    ),
    (
        "pim_layer_glue",
        r"\\loader\.\$lt\$\S+ B\[1\]|Q\[1\] of core\.loader\.taken$",
        "a padding beat behind the biases goes on to the gate, which has all of them and takes no more",
    ),
    (
        "pim_layer_glue",
        r"reg_rdata\[26\] of reg_rdata$",
        "a bit of what is read, turned where another one is set; no register here has that one, nor a count",
    ),
    (
        "layer_glue",
        r"const1 core\.combine i__ready\[0\]",
        "the combiner's readiness, told where it is not; it is wherever a result is offered",
    ),
    (
        "layer_glue",
        r"const1 .*\\loader\.\$lt\$\S+:15227\$",
        "a padding beat behind the router goes on to the gate, which has all of it and takes no more",
    ),
    (
        "dispatch",
        r"combine_resets\$1260 ",
        "reset of an entry's place in its token; before anybody reads it an entry has come",
    ),
    (
        "dispatch",
        r"const1 .*make_patterns_logic\$1246 A\[1\]",
        "last slot of a window, taken of each entry: the last one's stays; none comes while it is served",
    ),
    (
        "dispatch",
        r"(inv|cnot\d) .*slice\$1300 Q\[0\]",
        "which of its token's two places an entry takes: all that name it name the other one, too",
    ),
    (
        "dispatch",
        r"const1 .*slice\$1295 SRST",
        "reset of what an entry says of its window's end; before anybody reads it an entry has come",
    ),
    (
        "dispatch_deep",
        r"slice\$1483 SRST",
        "reset of the job that comes next; it counts with a bit of its own, which is reset",
    ),
    (
        "dispatch_deep",
        r"cnot1 .*:818\$26 A\[0\]",
        "where two assignments of a token were kept before its last one, which are all that there are",
    ),
    (
        "dispatch_deep",
        r"\\picker\.\$add\$\S+:1636\$133 Y\[0\]",
        "even numbers of jobs left: none is not among them beside a shared expert, and no other is one",
    ),
    (
        "dispatch_deep",
        r"inv .*slice\$1439 Q\[1\]",
        "how many of a token were kept; turned by its first assignment, turned back by the second, its last",
    ),
    (
        "dispatch_deep",
        r"\\picker\.\$procmux\$(980 A\[0\]|981 S)",
        "end of a window without a queue; each has the shared expert's",
    ),
    (
        "dispatch_deep",
        r" of core\.tables\.tails\.copy_0\.bypass\.data_q$",
        "bypass of the port that jobs read tails by; a window that is served gets no entries",
    ),
    (
        "dispatch_units",
        r"\\least\.\$gt\$\S+:3818\$435 A\[1\]",
        "a last unit with a window's entries; no unit that can take a job has more, and it is not preferred",
    ),
    (
        "dispatch_units",
        r"tables\.weights\.copy_0\.mem WR_EN",
        "a write while nothing is pushed: the last one once more, or of an entry that is dropped",
    ),
    (
        "dispatch_units",
        r"keeps\.\\?copy_0\.",
        "bypass of the store of decisions; they are read when the window is decided, and not written then",
    ),
    (
        "dispatch_units",
        r"\\priority_\.\$(or|gt)\$\S+:189[89]\$",
        "comparison with the last place of the row; a window's last token comes when that place is empty",
    ),
    (
        "dispatch_units",
        r"\\token_ranks\.\$(gt|and)\$\S+:27(60|67)\$",
        "comparison with a token's last assignment, behind which no other one comes",
    ),
    (
        "dispatch_units",
        r"const1 .*\\picker\.\$eq\$\S+:2758\$350 A\[0\]",
        "that one job is left, told where none is, too; while one is served there is one at least",
    ),
    (
        "dispatch_units",
        r"const0 .*\\picker\.\$shr\$\S+:2752\$343 Y",
        "end of a window without a queue; each has the shared expert's",
    ),
    (
        "gating_sigmoid",
        r"\\weights\.\$and\$\S+:6814\$",
        "when the inverse of a token's sum is taken: the sum stays what it is until the next token's begins",
    ),
    (
        "gating_sigmoid",
        r"\\accumulators\.\\?copy_0\.",
        "bypass of the accumulators; a row's sum is read six cycles after the one before, written four after",
    ),
    (
        "gating_softmax",
        r"\\accumulators\.\\?copy_0\.",
        "bypass of the accumulators; a row's sum is read six cycles after the one before, written four after",
    ),
    (
        "gating_softmax",
        r"^const0 .*\\weights\.\$add\$\S+:3685\$\d+ Y\[7\] ",
        "the exponent's place of weights of 2 and more, which a share of 1 is not",
    ),
    (
        "gating_softmax",
        r"\\inverse\.\$ternary\$\S+:4325\$\d+ B\[[0-9]\]$",
        "a place of the sum below its mantissa: the largest score is 1, so that a sum is 2^30 at least",
    ),
    (
        "gating_softmax",
        r"\\inverse\.\$ternary\$\S+:4333\$\d+ B\[\d+\]$",
        "a sum of 2^32, which four scores of 1 have, has no other place",
    ),
    (
        "gating_sigmoid",
        r"\\burst_\d\.\$or\$\S+:1781\$",
        "infinities of both signs; without NaN it is the negative one, which is chosen last, like NaN",
    ),
    (
        "gating_sigmoid",
        r"\\rank\.\$ternary\$\S+:3729\$",
        "second best of a group's first expert, which has none: any later key is larger",
    ),
    (
        "gating_sigmoid",
        r"\\inverse\.\$procdff\$4177 Q",
        "that a token's sum is 0; all its scores are 0 then, and so is their product with any inverse",
    ),
    (
        "gating_sigmoid",
        r"\\groups\.\\walk\.\$procmux\$3310 A\[2\]",
        "end of a token's rows in the walk over groups; its group and the place there come back to 0 alone",
    ),
    (
        "gating_sigmoid",
        r"\\accumulate_\d\.\$procmux\$4078 B\[0\]",
        "fraction of a sum that is 0; by its exponent all that read it take it for zero",
    ),
    (
        "gating_sigmoid",
        r"\\rank\.\\walk\.\$procmux\$3409 S",
        "a place in a group after the last row; 12 experts are whole rows and groups, so it is 0 by itself",
    ),
    (
        "gating_deep",
        r" of core\.selection\.groups\.walk\.last_row",
        "end of a token's rows in the walk over groups; its group and the place there come back to 0 alone",
    ),
    (
        "gating_deep",
        r" of core\.product\.place_read_q",
        "a row's place among the sums, exchanged with another one's; it is read and written there alike",
    ),
    (
        "gating_deep",
        r"\\weights\.\$(not\$\S+:(7778|7802)|ternary\$\S+:7807)\$",
        "leading place below 2^10 of a score times an inverse; it is 0, which stays so, or 2^20 at least",
    ),
    (
        "gating_deep",
        r"const1 .* D\[6\] of core\.selection\.weights\.weight_power_q\d$",
        "the place of 64 in a weight's power of two: set in all from -54 to -20, and no token has others",
    ),
    (
        "expert_w4a8",
        r"B\[(7[2-9]|[89]\d|1[01]\d|12[0-7])\] of core\.hidden_read_0__data$",
        "a hidden value beyond the last one (of nine at most), which weights of zero meet",
    ),
    ("expert_w4a8", *DRAINED),
    (
        "expert_w4a8",
        r"cnot0 .* Q\[1\] of core\.tokens\.beat$",
        "counts a token's ten beats in another order, which comes to the last one in as many",
    ),
    (
        "expert_relu",
        r"inv .*slice\$2006 Q\[0\] of core\.sequencer\.since$",
        "two values of a count of cycles, exchanged with two others; it comes to its end in the same cycle",
    ),
    (
        "expert_relu",
        r"\\drain\.\$and\$\S+:2779\$",
        "a write of hidden activations while none come; it is where the next ones will be written",
    ),
    (
        "expert_relu",
        r"\\accumulate_\d\.\$reduce_or\$\S+:1625\$",
        "lower places of a NaN; the adder's only one has the topmost, and sums come from the adder",
    ),
    ("expert_relu", *DRAINED),
    (
        "expert_relu",
        r"\\lane_\d\.\$reduce_and\$\S+:3035\$",
        "NaN on its way out; the adder's only one is rounded to the same by the arithmetic for numbers",
    ),
    (
        "expert_relu",
        r"\\mask\.\$(gt\$\S+:3882\$790 A|procmux\$1182 B)",
        "inputs of a fourth tile; of a token there are three, of hidden activations at most as many",
    ),
    (
        "expert_deep",
        r"const0 .* of core\.array\.burst_\d\.s1_zero_",
        "significand of a zero; its exponent is 0: shifted out, or in a burst below all that is not flushed",
    ),
    (
        "expert_deep",
        r"const0 .*\\accumulate_\d\.\$and\$\S+:1424\$",
        "last two places of a sum with zeros in front; operands so close have nothing in them",
    ),
    (
        "expert_deep",
        r"const0 .* Y\[9\] of core\.array\.accumulate_\d\.s0_distance_\d$",
        "512 in a difference of exponents; none is so large, and below 0 the places above it are set, too",
    ),
    (
        "expert_deep",
        r"const0 .* Q\[1\] of core\.sequencer\.walk\.jobs\.count$",
        "that two jobs wait; there are two at most, and the walk takes one as soon as it has none",
    ),
    (
        "expert_deep",
        r"\\mask\.\$(procmux\$2159 B|eq\$\S+:4771\$\d+ A)",
        "inputs of a fourth tile; of a token there are three, of hidden activations at most as many",
    ),
    (
        "pim_bank",
        r"cnot1 .*\\accumulate_1\.\$shl\$\S+:1992\$167 B\[0\]",
        "topmost lost place at odd distances, alone beside a tie; `tied by burst`, after this row, shows it",
    ),
    (
        "pim_bank",
        r"const0 .*\\readout\.\$reduce_and\$\S+:4216\$",
        "NaN on its way out; the adder's only one is rounded to the same by the arithmetic for numbers",
    ),
    (
        "pim_bank",
        r"inv .*combine_resets\$5090 A\[1\]",
        "a burst's second token a cycle later; bursts are four cycles apart, and results are read later",
    ),
    (
        "pim_bank",
        r"const0 .*create_not\$5343 Y",
        "the row beside a request for no weights, which is 0 otherwise",
    ),
    (
        "pim_bank",
        r"inv .*slice\$5338 SRST",
        "two bits of a count, always 0; what they hold after a reset is gone a cycle later, before any read",
    ),
    (
        "pim_bank",
        r"const1 .* of core\.readout\._net_39$",
        "the part of a result behind its last one; the next result begins with its first",
    ),
    (
        "pim_bank",
        r"\\lane_\d\.\$(ternary\$\S+:6634\$|reduce_or\$\S+:5244\$1001 A\[0\])",
        "a place far below a tie; of all products with a sigmoid none is rounded otherwise without it",
    ),
    (
        "combine",
        r"sums\.\\?copy_1\.|slice\$1214 ",
        "bypass of the port that sums leave by; of three words none is read while it is written",
    ),
    (
        "combine",
        r"\\product_\d\.\$ternary\$\S+:(1344\$92|(1050|1062)\$86) A",
        "significand of a zero; by its exponent it is the sticky place of a sum that is rounded to itself",
    ),
    (
        "combine_ordered",
        r"\\sum_\d\.\$ternary\$\S+:(2611\$300 A\[1[67]\]|2613\$303 A\[[89]\])",
        "last two places of a sum with eight zeros in front; operands so close have nothing in them",
    ),
    (
        "combine_deep",
        r"\\product_\d\.\$(not|and)\$\S+:(1556|1558|1949)\$",
        "leading zeros of a product, which has one at most, or is 0: its exponent says nothing then",
    ),
    (
        "combine_ordered",
        r"const1 .*\\product_\d\.\$reduce_or\$\S+:1078\$",
        "leading zeros of a product, which has one at most, or is 0 and stays so",
    ),
    (
        "combine_ordered",
        r"(slice\$1150 D|\\product_\d\.\$ternary\$\S+:1081\$117 A)\[[0-6]\]",
        "the low places of a product's 24: it has 16 bits, the first or the second of which is set",
    ),
    (
        "combine_ordered",
        r"cnot0 .*\\sum_\d\.\$ternary\$\S+:2627\$320 Y\[22\]",
        "significand of a zero where both operands are; its exponent makes the sum a zero again",
    ),
    (
        "combine",
        r"\\emitter\.\$(and|reduce_or)\$\S+:228[45]\$",
        "NaN on its way out; the adder's only one is rounded to the same by the arithmetic for numbers",
    ),
)


def explanation(block: str, text: str) -> str:
    """Return what is known of a survivor, ``UNEXPLAINED`` if nothing."""
    for name, pattern, reason in EXPLAINED:
        if block == name and re.search(pattern, text):
            return reason
    return UNEXPLAINED


def survivors_of(outcome: Any) -> list[str]:
    """Return the lines of the mutants that are neither detected nor proved equivalent, with the reason."""
    found = []
    for number, text in sorted(outcome.left.items()):
        place = _short(text)
        reason = explanation(outcome.name, place)
        found.append(f"- {outcome.name} {number} of seed {outcome.seed}: `{place}`: {reason}.")
    return found


def unexplained(lines: Iterable[str]) -> list[str]:
    """Return which of these lines are of survivors without a reason, without their places."""
    return [
        line[2 : line.index(":")]
        for line in lines
        if (found := SURVIVOR.match(line)) and found[5] == UNEXPLAINED
    ]


def page(
    outcomes: Sequence[Any], netlists: Sequence[Any], commit: str, goal: float, seconds: int, before: str = ""
) -> str:
    """Return the page of what was measured, with the rest as it stands on the page ``before``.

    Parameters
    ----------
    outcomes, netlists : :class:`tests.mutation.run.Outcome` and ``NetlistRun``.
    commit : at which they were measured.
    seconds : that a block's survivors have for their proofs.
    """
    rows = {
        (
            one.name,
            str(one.seed),
        ): f"| {one.name} | {one.total} | {one.seed} | {one.total - len(one.survivors)}"
        f" | {len(one.proved)} | {len(one.left)} | {one.score:.1%} | {one.scenarios} | {one.seconds:.0f}"
        f" | {commit} |"
        for one in outcomes
    }
    runs = {
        (one.name,): f"| {one.name} | {one.scenarios} | {one.power_ups} | {'yes' if one.agrees else '**NO**'}"
        f" | {one.seconds:.0f} | {commit} |"
        for one in netlists
    }
    survivors = [line for one in outcomes for line in survivors_of(one)]
    head, _, tail = before.partition("## The netlist itself")
    # What became known since counts for those measured before, too.
    kept = [
        f"{found[1]}{explanation(found[2], found[4])}."
        for line in tail.splitlines()
        if (found := SURVIVOR.match(line)) and (found[2], found[3]) not in rows
    ]
    measured = _merged(head, rows, (BLOCK, SEED))
    return PAGE.format(
        goal=goal,
        seconds=seconds,
        rows="\n".join(measured[key] for key in sorted(measured, key=lambda key: int(key[1]))),
        netlists="\n".join(_merged(tail, runs, (BLOCK,)).values()) or "| | | | | | |",
        survivors="\n".join([*kept, *survivors]) or "None.",
    )


BLOCK, SEED = 1, 3
"""Cells of a row that say of what it is."""
Key = tuple[str, ...]


def _merged(before: str, rows: Mapping[Key, str], cells: Sequence[int]) -> dict[Key, str]:
    """Return a table's rows by some of their cells: those of ``before``, the new ones in their places."""
    lines = [
        line
        for line in before.splitlines()
        if line.startswith("| ") and not line.startswith(("| block |", "| netlist |", "| | "))
    ]
    known = {tuple(line.split("|")[cell].strip() for cell in cells): line for line in lines}
    return {**known, **rows}


def _short(text: str) -> str:
    """Return the change and its place without the rest of Yosys' names."""
    mode = re.search(r"-mode (\S+)", text)
    cell = re.search(r"-cell (\S+)", text)
    port = re.search(r"-port (\S+) -portbit (\d+)", text)
    wire = re.search(r"-wire (\S+)", text)
    where = f"{cell[1]} {port[1]}[{port[2]}]" if cell and port else ""
    return f"{mode[1] if mode else ''} {where}" + (f" of {wire[1]}" if wire else "")
