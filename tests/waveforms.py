"""The waveforms of the blocks' pages: drawn from runs of the hardware.

``python -m tests.waveforms`` writes them between the marks of each page; a test compares them.
A row is a stream or a pulse, a column a cycle: a character where a beat passes, a dot where none does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from amaranth import unsigned

from rtl.combine import CombineConfig
from rtl.combine_ordered import OrderedConfig
from rtl.dispatch import DispatchConfig
from rtl.merge import ContributionMerge
from sim import accelerator
from sim.accelerator import token_beats
from sim.dram_check import COMMANDS, MAC, REF
from sim.marked import with_marked
from sim.pim_layer import PimRun, pim_job, seen_times
from sim.pim_report import build_pim_layer
from sim.rtlsim import DEFAULT_ROOT
from sim.toolchain import write_atomically
from sim.workload import vector_workload
from spec.banks import BankGeometry
from spec.geometry import GateGeometry
from spec.model import GatingSpec
from tests import (
    test_combine,
    test_combine_ordered,
    test_dispatch,
    test_expert,
    test_gating,
    test_layer,
    test_pim,
    test_pim_layer,
)
from tests.bfm import Sink, Source, run_streams
from tests.test_pim import PIM

DOCS = Path(__file__).parent.parent / "docs"
VECTOR = "tests/data/deepseek_v3_s0.npz"
LAYER_TOKENS = 4
FPGA_COLUMN, PIM_COLUMN = 64, 40
"""Cycles of a column in the layers' waveforms."""
MERGE_UNITS = 3
WIDTH = 96
Marks = Sequence[tuple[int, str]]
"""Cycle and character of each beat."""


def drawing(rows: Mapping[str, Marks], *, cycles: int = 1) -> list[str]:
    """Return the lines of a waveform, cycles above it, in parts of ``WIDTH`` columns of ``cycles`` each."""
    end = 1 + max(cycle for marks in rows.values() for cycle, _ in marks) // cycles
    label = max(map(len, [*rows, "cycle"])) + 2
    lines = ["```"]
    for first in range(0, end, WIDTH):
        count = min(WIDTH, end - first)
        tens = "".join(f"{cycles * column:<10}" for column in range(first, first + count, 10))
        lines += [f"{'cycle':{label}}{tens}".rstrip()]
        for name, marks in rows.items():
            cells = ["."] * count
            for cycle, character in marks:
                column = cycle // cycles - first
                if 0 <= column < count:
                    cells[column] = character
            lines.append(f"{name:{label}}{''.join(cells)}")
        lines.append("")
    return [*lines[:-1], "```"]


def fields(trace, layout, name: str) -> list[tuple[int, str]]:
    """Return the transfers of a stream, each as one field of its payload."""
    values = [getattr(layout.from_bits(payload), name) for payload in trace.payloads]
    return [(int(cycle), str(int(value))) for cycle, value in zip(trace.cycles, values, strict=True)]


def numbered(cycles: Sequence[int], per: int = 1) -> list[tuple[int, str]]:
    """Return transfers as the number of what they are part of, ``per`` transfers each, modulo 10."""
    return [(int(cycle), str(n // per % 10)) for n, cycle in enumerate(cycles)]


def gating() -> list[str]:
    """Three tokens through a gate of 8 experts, the best 2 of them."""
    geometry = GateGeometry(
        gating=GatingSpec(num_experts=8, top_k=2),
        d_model=16,
        lanes=8,
        logits_per_cycle=2,
        stream_lanes=4,
        load_elements=4,
    )
    run = test_gating.run_case(test_gating.Case(geometry, num_tokens=3))
    layout = run.gate.o.payload.shape()
    return drawing(
        {
            "i: token": numbered(run.traces["i"].cycles, geometry.input_beats),
            "o: expert": fields(run.traces["o"], layout, "expert"),
            "o: last": fields(run.traces["o"], layout, "last"),
        }
    )


def dispatch() -> list[str]:
    """Two windows of four tokens, two experts each, for one unit."""
    config = DispatchConfig(num_experts=4, top_k=2, window_tokens=4)
    ids = np.array([[0, 1], [1, 2], [1, 0], [3, 1], [2, 3], [2, 0], [3, 2], [0, 2]])
    run = test_dispatch.run_case(test_dispatch.Case(config, ids, [8]))
    (name,) = config.outputs()
    traces = run.traces
    return drawing(
        {
            "i: expert": fields(traces["i"], config.assignment, "expert"),
            "o_expect: slot": fields(traces["o_expect"], config.expect, "slot"),
            f"{name}: expert": fields(traces[name], config.entry, "expert"),
            f"{name}: slot": fields(traces[name], config.entry, "slot"),
            f"{name}: last": fields(traces[name], config.entry, "last"),
        }
    )


def expert() -> list[str]:
    """A job of two tokens: expert of 4 x 2 on an array of 2 x 2, memory latency of 5 cycles."""
    config = test_expert.config_of(d_model=4, d_hidden=2)
    run = test_expert.run_case(test_expert.Case(config, ((0, 2),), num_tokens=2))
    tile_beats = config.routed.tile_bytes * 8 // config.beat_bits
    layout = config.contribution
    results = [layout.from_bits(payload) for payload in run.got["o"]]
    return drawing(
        {
            "i: entry": numbered(run.cycles["i"]),
            "o_ar: burst": numbered(run.cycles["ar"]),
            "i_r: tile": numbered(run.cycles["r"], tile_beats),
            "o: word": [
                (int(cycle), str(int(beat.word)))
                for cycle, beat in zip(run.cycles["o"], results, strict=True)
            ],
        }
    )


ROW_LETTERS = {1: "A", 2: "P", 3: "X", 4: "R"}
COLUMN_LETTERS = {1: "M", 2: "W", 3: "R"}


def pim() -> list[str]:
    """A job of two tokens in a channel of two banks a unit, a refresh in the middle."""
    assert [kind for kind, _ in COMMANDS.values()] == [*ROW_LETTERS, *COLUMN_LETTERS]
    config = test_pim.config_of(replace(PIM, banks_per_unit=1), d_model=8, d_hidden=4)
    run = test_pim.run_case(test_pim.Case(config, ((0, 2),), num_tokens=2, first_refresh=36))
    rows, columns = (run.cycles[name] for name in ("rows", "columns"))
    end = int(run.cycles["o"][-1])

    def letters(commands, names) -> list[tuple[int, str]]:
        return [(int(cycle), names[kind]) for cycle, kind, *_ in commands.tolist() if cycle <= end]

    layout = config.contribution
    words = [layout.from_bits(payload).word for payload in run.got]
    return drawing(
        {
            "i: entry": numbered(run.cycles["i"]),
            "o_row": letters(rows, ROW_LETTERS),
            "o_column": letters(columns, COLUMN_LETTERS),
            "o: word": [
                (int(cycle), str(int(word))) for cycle, word in zip(run.cycles["o"], words, strict=True)
            ],
        }
    )


def combine() -> list[str]:
    """Three tokens of four words with two, one and no contributions."""
    config = CombineConfig(num_slots=4, d_model=8, lanes=2, max_count=2)
    case = test_combine.Case(config, np.array([2, 1, 0]), order="contributions", seed=1)
    run = test_combine.run_case(case)
    return _combine_drawing(run, config)


def combine_ordered() -> list[str]:
    """The same tokens behind several units: beats of both contributions interleave."""
    config = OrderedConfig(num_slots=4, d_model=8, lanes=2, max_count=2)
    case = test_combine_ordered.Case(config, np.array([2, 1, 0]), order="beats", seed=1)
    run = test_combine_ordered.run_case(case)
    return _combine_drawing(run, config, rank=True)


def _combine_drawing(run, config, *, rank: bool = False) -> list[str]:
    traces, layout = run.traces, config.contribution
    return drawing(
        {
            "i: slot": fields(traces["i"], layout, "slot"),
            **({"i: rank": fields(traces["i"], layout, "rank")} if rank else {}),
            "i: word": fields(traces["i"], layout, "word"),
            "i_expect: count": fields(traces["i_expect"], config.expect, "count"),
            "o: token": numbered(traces["o"].cycles, config.words),
            "freed": [(cycle, "1") for cycle in run.freed],
        }
    )


def fpga_layer() -> list[str]:
    """Four tokens of a recorded layer through the exported Verilog of a small `fpga`."""
    work = vector_workload(VECTOR, LAYER_TOKENS)
    rtl = accelerator.build_layer(work.model, test_layer.TINY, trace=True)
    run = accelerator.run_rtl(rtl, work, test_layer.TINY)
    names = ("tokens", "assignments", "entries", "addresses", "beats", "contributions", "output")
    rows = {name: [(int(cycle), "#") for cycle in run.seen.streams[name].taken] for name in names}
    return drawing(rows, cycles=FPGA_COLUMN)


def pim_layer() -> list[str]:
    """The same tokens through a small `pim` with two channels."""
    design = test_pim_layer.TWO
    work = vector_workload(VECTOR, LAYER_TOKENS)
    rtl = build_pim_layer(work.model, design, DEFAULT_ROOT)
    beats = token_beats(BankGeometry.of(work.model, design).image, design, work.tokens, work.batch_lengths)
    banks, golden, spec = pim_job(work, design, beats)
    run = PimRun(work, design, banks, golden, spec, rtl.run(spec))
    seen = seen_times(run)
    rows = {
        "tokens": [(int(cycle), "#") for cycle in seen.tokens.taken],
        "assignments": [(int(cycle), "#") for cycle in seen.assignments.taken],
    }
    end = int(seen.output.taken[-1])
    for channel, (entries, commands) in enumerate(zip(seen.entries, run.commands, strict=True)):
        rows[f"entries {channel}"] = [(int(cycle), "#") for cycle in entries.taken]
        for name, kind, column in (("MACs", MAC, True), ("refreshes", REF, False)):
            cycles = commands.of(kind, column=column)[:, 0]
            rows[f"{name} {channel}"] = [(int(cycle), "#") for cycle in cycles if 0 <= cycle <= end]
    rows["output"] = [(int(cycle), "#") for cycle in seen.output.taken]
    return drawing(rows, cycles=PIM_COLUMN)


def merge() -> list[str]:
    """Three units send four beats each at once."""
    dut = ContributionMerge(unsigned(8), MERGE_UNITS)
    payloads = [[unit << 4 | beat for beat in range(4)] for unit in range(MERGE_UNITS)]
    traces = run_streams(
        dut,
        {name: Source(beats, [0] * len(beats)) for name, beats in zip(dut.inputs(), payloads, strict=True)},
        {"o": Sink(4 * MERGE_UNITS)},
    )

    def digits(name: str, shift: int) -> Marks:
        trace = traces[name]
        return [
            (int(cycle), str(payload >> shift & 15))
            for cycle, payload in zip(trace.cycles, trace.payloads, strict=True)
        ]

    inputs = {f"{name}: beat": digits(name, 0) for name in dut.inputs()}
    return drawing(inputs | {"o: unit": digits("o", 4), "o: beat": digits("o", 0)})


WAVEFORMS: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("gating", "waveform"): gating,
    ("dispatch", "waveform"): dispatch,
    ("expert", "waveform"): expert,
    ("pim", "waveform"): pim,
    ("combine", "waveform"): combine,
    ("combine", "waveform of ranks"): combine_ordered,
    ("combine", "waveform of merge"): merge,
}
OF_LAYERS: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("layer", "waveform"): fpga_layer,
    ("layer", "waveform of pim"): pim_layer,
}
"""The same; of Verilog that the layers' tests build too."""
"""Page, mark, and what draws it."""


def main() -> None:
    """Write every waveform into its page."""
    for (page, mark), draw in (WAVEFORMS | OF_LAYERS).items():
        file = DOCS / f"{page}.md"
        write_atomically(file, with_marked(file, mark, draw()))


if __name__ == "__main__":
    main()
