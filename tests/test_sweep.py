"""Sweeps: the same rows with any workers, however often they end; spaces, fields, bad input, the page."""

from __future__ import annotations

import dataclasses
import errno
import gc
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.cli import main
from sim.processes import start_processes
from sim.results.sweep_page import sweep_page_text
from sim.sweep import run, store
from sim.sweep.chunks import Row, point_key, run_chunk, run_point
from sim.sweep.evaluators import EVALUATORS
from sim.sweep.findings import Spread, find, not_beaten
from sim.sweep.run import Interrupted, Summary, collect, run_sweep
from sim.sweep.space import Space, load_space, read_space, shuffled
from sim.sweep.store import Store, about_file
from sim.sweep.version import models_version, sources, version_of
from sim.sweep.workers import LOST, Job, LocalWorkers
from spec.design import Format
from spec.dram import DramSpec
from spec.errors import InputError
from spec.expression import parse
from spec.fields import field_type, with_fields
from spec.files import preset_names
from spec.load import load_design, load_dram, load_system
from tests.test_results import check_page

ROOT = Path(__file__).parent.parent
PRODUCTS = {
    "evaluate": "gemv",
    "fixed": {"device": "hbm2-pim-samsung", "channels": 2},
    "axes": {
        "rows": {"from": 64, "to": 1024, "factor": 2},
        "cols": [64, 128],
        "batch": {"from": 1, "to": 6},
    },
}
LAYERS = {
    "fixed": {"model": "mixtral-8x7b", "scale": 64, "tokens": 4},
    "axes": {"design": ["fpga", "pim"], "design.gate.lanes": [64, 128], "routing": ["uniform", "zipf:1"]},
}


class Silent:
    """Counts what a sweep tells."""

    def __init__(self) -> None:
        self.computed = self.points = 0
        self.said: list[str] = []

    def begin(self, points: int) -> None:
        pass

    def done(self, points: int, *, computed: int) -> None:
        self.points += points
        self.computed += computed

    def say(self, text: str) -> None:
        self.said.append(text)


class Here:
    """Workers of this process: some of what they are given comes back, in another order; some is lost.

    ``ends`` says of a job whether the process would end with it; ``most`` interrupts after so many chunks.
    """

    def __init__(
        self, count: int = 3, *, most: int | None = None, ends: Callable[[Job], bool] = lambda _job: False
    ) -> None:
        self.name, self.capacity = "here", count
        self.ends, self.most = ends, most
        self.given: list[tuple[int, Job]] = []
        self.keys: list[str] = []
        self.closed = 0

    def give(self, chunk: int, job: Job) -> None:
        self.given.append((chunk, job))

    def take(self) -> list[tuple[int, list[Row] | None]]:
        if self.most is not None:
            if not self.most:
                raise KeyboardInterrupt
            self.most -= 1
        chunk, job = self.given.pop()
        if self.ends(job):
            # As a pool of processes: all that is out goes.
            lost = [(other, LOST) for other, _ in self.given]
            self.given.clear()
            return [(chunk, LOST), *lost]
        rows = run_chunk(*job)
        self.keys += [row.key for row in rows]
        return [(chunk, rows)]

    def close(self) -> None:
        self.closed += 1


def space(table: dict[str, object], **changes: object) -> Space:
    return read_space({**table, **changes}, "space")


def swept(of: Space, file: Path, workers: object = None) -> tuple[Summary, pa.Table]:
    summary = run_sweep(of, file, lambda: workers or Here(), Silent())
    return summary, pq.read_table(file)


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> tuple[Space, Path]:
    file = tmp_path_factory.mktemp("products") / "p.parquet"
    of = space(PRODUCTS)
    swept(of, file)
    return of, file


# Spaces.


def axis(**given: object) -> list[object]:
    table = {**PRODUCTS, "axes": {"rows": given, "cols": [64]}}
    return [shown for (shown,) in space(table).axes[0].shown]


def test_ranges() -> None:
    assert axis(**{"from": 1, "to": 4}) == [1, 2, 3, 4]
    assert axis(**{"from": 1, "to": 8, "step": 3}) == [1, 4, 7]
    assert axis(**{"from": 1, "to": 100, "factor": 3}) == [1, 3, 9, 27, 81]
    assert axis(**{"from": 1, "to": 1000, "points": 4, "log": True}) == [1, 10, 100, 1000]
    assert axis(**{"from": 1, "to": 4, "points": 9, "log": True}) == [1, 2, 3, 4]  # whole, each once
    table = {**LAYERS, "axes": {"routing.S": {"from": 0.0, "to": 1.0, "step": 0.25}}}
    table["fixed"] = {**LAYERS["fixed"], "design": "fpga", "routing": "zipf"}
    assert [shown for (shown,) in space(table).axes[0].shown] == [0, 0.25, 0.5, 0.75, 1]


def test_the_last_axis_runs_fastest_and_linked_fields_change_together() -> None:
    of = space(
        {
            "evaluate": "gemv",
            "fixed": {"device": "hbm2-pim", "channels": 1},
            "axes": {"batch": [1, 2]},
            "linked": [{"rows": [8, 16], "cols": [32, 64]}],
        }
    )
    points = [of.shown(choices) for choices in of.candidates()]
    assert points == [
        {"batch": batch, "rows": rows, "cols": cols} for batch in (1, 2) for rows, cols in ((8, 32), (16, 64))
    ]


def test_constraints_see_axes_defaults_and_the_specs_own_fields() -> None:
    of = space(
        LAYERS,
        constraints=[
            "design.gate.lanes > 64 or design == 'fpga'",
            "design.window_tokens == 32 and seed == 0",
            "model.gating.top_k in [2, 4]",
        ],
    )
    points = [of.shown(choices) for choices in of.candidates()]
    assert len(points) == 6
    assert {"design": "pim", "design.gate.lanes": 64, "routing": "uniform"} not in points


def test_a_grid_of_ten_thousand_million_points_is_drawn_from_without_being_made() -> None:
    of = space(
        PRODUCTS,
        axes={"rows": {"from": 1, "to": 100_000}, "cols": {"from": 1, "to": 100_000}},
        method="random",
        points=3000,
    )
    assert of.grid_size == 10**10
    tracemalloc.start()
    some = set(of.candidates())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(some) == 3000
    assert most < 4e6
    rows = np.array([row for row, _ in some])
    assert abs(rows.mean() / 50_000 - 1) < 0.05


def test_constraints_that_refuse_all_of_a_huge_grid_end_it(monkeypatch) -> None:
    monkeypatch.setattr("sim.sweep.space.MAX_REJECTED_GRID", 500)
    line = r"^constraints: leave no point among 500 drawn in a row \(0 found\)$"
    with pytest.raises(InputError, match=line):
        space(
            PRODUCTS,
            axes={"rows": {"from": 1, "to": 100_000}, "cols": {"from": 1, "to": 100_000}},
            method="random",
            points=10,
            constraints=["rows < 1"],
        )


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_shuffled_numbers_are_each_there_once(size) -> None:
    for seed in (0, 1):
        numbers = list(shuffled(size, seed))
        assert sorted(numbers) == list(range(size))
    if size > 100:
        assert list(shuffled(size, 0)) != numbers != sorted(numbers)


def test_random_points_are_different_ones_of_the_grid() -> None:
    grid = set(space(PRODUCTS).candidates())
    some = list(space(PRODUCTS, method="random", points=30, seed=3).candidates())
    assert len(set(some)) == 30 and set(some) < grid
    assert some == list(space(PRODUCTS, method="random", points=30, seed=3).candidates())
    assert some != list(space(PRODUCTS, method="random", points=30, seed=4).candidates())
    assert some[:10] == list(space(PRODUCTS, method="random", points=10, seed=3).candidates())
    assert set(space(PRODUCTS, method="random", points=10_000).candidates()) == grid


def test_continuous_axes_are_drawn_between_their_ends() -> None:
    table = {
        "method": "random",
        "points": 200,
        "evaluate": "system",
        "fixed": {"system": "duplex", "model": "mixtral-8x7b"},
        "axes": {"system.near.bytes_per_s": {"from": 1e11, "to": 1e13, "log": True}, "tokens": [1, 2, 4]},
        "constraints": ["system.near.bytes_per_s < 5e12"],
    }
    of = space(table)
    points = [of.shown(choices) for choices in of.candidates()]
    values = np.array([point["system.near.bytes_per_s"] for point in points])
    assert len(values) == 200 and values.min() > 1e11 and values.max() < 5e12
    assert 0.45 < (values < 10**12).mean() / (np.log10(10) / np.log10(50)) < 1.2
    assert {point["tokens"] for point in points} == {1, 2, 4}
    refused = r"constraints: leave no point among 1000 drawn in a row \(0 found\)"
    with pytest.raises(InputError, match=rf"^{refused}$"):
        space(table, constraints=["system.near.bytes_per_s < 1e11"])


# Fields and expressions.


def test_fields_of_specs() -> None:
    design = load_design("pim")
    changed = with_fields(
        design,
        {
            "pim.dram": load_dram("hbm3-6400"),
            "pim.dram.timing.cl": 30,
            "pim.channels": 8,
            "clock_hz": 1e12 / load_dram("hbm3-6400").clock_ps,
            "format": Format.INT8,
            "pim.banks_per_unit": 4,
        },
        "design",
    )
    assert isinstance(changed.pim.dram, DramSpec)
    assert (changed.pim.dram.timing.cl, changed.pim.channels, changed.format) == (30, 8, "int8")
    assert field_type(type(design), "pim.dram.timing.cl", "k") is int
    system = with_fields(load_system("duplex"), {"near.bytes_per_s": 1e15}, "system")
    quantity = system.near.bytes_per_s
    assert quantity.value == quantity.most == 1e15 and quantity.least < 1e15
    with pytest.raises(InputError, match=r"^design\.array: is a table that 'pim' has not$"):
        with_fields(design, {"array.rows": 8}, "design")
    with pytest.raises(InputError, match=r"^design\.pim\.channels: must be in 1\.\.64, not 65$"):
        with_fields(design, {"pim.channels": 65}, "design")


def test_every_field_of_a_design_can_be_an_axis() -> None:
    """A value that it has already makes a point that is the design."""

    def leaves(spec: object, prefix: str) -> Iterator[tuple[str, object]]:
        for one in dataclasses.fields(spec):
            value = getattr(spec, one.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, f"{prefix}{one.name}.")
            elif value is not None and not isinstance(value, dict | tuple):
                yield f"{prefix}{one.name}", value

    for name in ("fpga", "pim"):
        design = load_design(name)
        found = [one for one in leaves(design, "") if "energy" not in one[0]]
        assert len(found) > 15
        for dotted, value in found:
            given = str(value) if isinstance(value, str) else value
            table = {
                "fixed": {"model": "mixtral-8x7b", "design": name},
                "axes": {f"design.{dotted}": [given]},
            }
            of = space(table)
            specs, _ = of.resolve(of.taken((0,)))
            assert specs["design"] == design, dotted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b * 2 + 1", 7),
        ("a.b ** 2 - -1", 10),
        ("1 < a.b <= 3 and not x == 'y'", True),
        ("x in ['x', 'z'] or 1 / 0", True),
        ("max(a.b, 10) if a.b > 5 else min(a.b, log2(16))", 3),
        ("ceil(a.b / 2) % 2 == 0", True),
    ],
)
def test_expressions(text, value) -> None:
    expression = parse(text)
    assert expression({"a.b": 3, "x": "x"}) == value
    assert pickle.loads(pickle.dumps(expression))({"a.b": 3, "x": "x"}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.__class__()",
        "(1).real",
        "[x for x in y]",
        "lambda: 1",
        "f'{a}'",
        "a[0]",
        "x := 1",
        "max",
        "",
        "1 +",
        "a; b",
        "max(a, key=b)",
        "max(*a)",
        "1j",
        "None",
        "((" * 300,
        "-" * 900 + "1",
        "9" * 2000,
    ],
)
def test_expressions_can_do_nothing_else(text) -> None:
    if text != "max":  # a name like any other
        with pytest.raises(InputError):
            parse(text)
    with pytest.raises(InputError):
        read_space({**PRODUCTS, "constraints": [text]}, "space")


@pytest.mark.parametrize(
    "text", ["1 / 0", "'a' * 1000000000", "9 ** 9 ** 9 ** 9", "a < 'x'", "log2(0)", "10 ** 400"]
)
def test_expressions_that_cannot_be_computed(text) -> None:
    with pytest.raises(InputError, match=r"^['\"].*['\"] cannot be computed: .*$"):
        parse(text)({"a": 1})


# Rows.


def test_rows_are_what_the_commands_say(tmp_path, capsys) -> None:
    _, table = swept(space(LAYERS), tmp_path / "l.parquet")
    assert table.num_rows == 8
    for row in table.to_pylist()[::3]:
        design = tmp_path / "d.toml"
        text = (ROOT / "spec" / "designs" / f"{row['design']}.toml").read_text()
        design.write_text(text.replace("lanes = 64\nlogits", f"lanes = {row['design.gate.lanes']}\nlogits"))
        arguments = ["--model", "mixtral-8x7b", "--scale", "64", "--tokens", "4", "--engine", "model"]
        given = ["sim", *arguments, "--design", str(design), "--routing", row["routing"], "--json"]
        assert main(given) == 0
        report = json.loads(capsys.readouterr().out)
        assert row["cycles"] == report["cycles"]["model"]
        assert row["energy_j"] == report["energy_j"]
        assert row["seconds"] == report["seconds"]
        assert row["mac_utilisation"] == report["utilisation"]["mac"]
        assert row["gating_cycles"] == report["blocks"]["gating"]["model"]
    of = space(
        {
            "evaluate": "system",
            "fixed": {"system": "duplex", "model": "olmoe-1b-7b"},
            "axes": {"policy": ["faster"]},
        }
    )
    _, table = swept(of, tmp_path / "s.parquet")
    system = ["system", "--system", "duplex", "--model", "olmoe-1b-7b", "--policy", "faster", "--json"]
    assert main(system) == 0
    report = json.loads(capsys.readouterr().out)
    assert table["seconds"].to_pylist() == [report["seconds"]]
    assert table["bound_s"].to_pylist() == [max(report["bounds_s"].values())]


def test_a_product_and_columns(products, capsys, tmp_path) -> None:
    of = space(PRODUCTS, columns={"macs_per_cycle": "macs / cycles", "doubled": "2 * macs_per_cycle + batch"})
    _, table = swept(of, tmp_path / "p.parquet")
    row = table.to_pylist()[17]
    given = [*("--rows", str(row["rows"]), "--cols", str(row["cols"]), "--batch", str(row["batch"]))]
    assert main(["pim", "gemv", "--design", "hbm2-pim-samsung", "--channels", "2", *given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (row["cycles"], row["energy_j"]) == (report["cycles"], report["energy_j"])
    assert row["commands_MAC"] == report["commands"]["MAC"]
    assert row["macs_per_cycle"] == row["macs"] / row["cycles"]
    assert row["doubled"] == 2 * row["macs_per_cycle"] + row["batch"]


def test_a_failing_point_is_a_row_with_its_error(tmp_path) -> None:
    of = space(LAYERS, axes={"design": ["fpga", "pim"], "design.array.rows": [8, 7], "seed": [1, -1]})
    summary, table = swept(of, tmp_path / "l.parquet")
    assert summary.points == table.num_rows == 8
    errors = table["error"].to_pylist()
    power = "design.array.rows: must be a power of two in 1..256, not 7"
    assert errors == [
        None,
        "seed: must be at least 0, not -1",
        power,
        power,
        *["design.array: is a table that 'pim' has not"] * 4,
    ]
    assert table["cycles"].null_count == 7
    assert len(set(table["key"].to_pylist())) == 8


def test_whatever_else_goes_wrong_is_of_its_point_alone(tmp_path, monkeypatch) -> None:
    of = space(PRODUCTS, columns={"inverse": "1 / (batch - 2)"})
    table = swept(of, tmp_path / "p.parquet")[1]
    wrong = [row for row in table.to_pylist() if row["error"]]
    assert {row["batch"] for row in wrong} == {2} and len(wrong) == 10
    said = "columns.inverse: '1 / (batch - 2)' cannot be computed: division by zero"
    assert {row["error"] for row in wrong} == {said}
    # Empty figures, as the page says: the fast ones of them would else stand on the front.
    assert {(row["cycles"], row["seconds"], row["inverse"]) for row in wrong} == {(None, None, None)}
    found = find(of, tmp_path / "p.parquet")
    assert (found.failed, len(found.front)) == (10, 1)
    assert found.front[0]["batch"] != 2
    for text, value in {"1e308 * 10 * batch": "inf", "0 * (1e308 * 10)": "nan"}.items():
        endless = space(PRODUCTS, columns={"price": text}, objectives={"price": "min"})
        row = run_point(endless, next(endless.candidates()))
        assert row.error == f"columns.price: {text!r} must be finite, not {value}"
        assert set(row.figures) == {None}

    def broken(*_: object) -> None:
        raise MemoryError("no\nmore")

    monkeypatch.setattr("sim.sweep.evaluators.run_gemv", broken)
    choices = next(of.candidates())
    assert run_point(of, choices).error == "MemoryError: no more"


# Any workers, any end.


def test_processes_give_the_same_file(products, tmp_path) -> None:
    of, file = products
    for count in (1, 8):
        other = tmp_path / f"{count}.parquet"
        summary = run_sweep(of, other, lambda count=count: LocalWorkers(count), Silent())
        assert summary.computed == 60
        assert other.read_bytes() == file.read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["1.parquet", "8.parquet"]


def test_processes_leave_what_they_are_forked_with_to_the_fork_server() -> None:
    """Imports and compiled models are no garbage: a collection in a process would copy the pages of all."""
    with start_processes(1) as pool:
        assert pool.submit(gc.get_freeze_count).result() > 100_000
        assert pool.submit(gc.isenabled).result()
        # (Ctrl-C while it imports: a traceback of its own, found by a judge.)
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()


def test_parts_are_removed_many_at_a_time(products, tmp_path, monkeypatch) -> None:
    """A disk waits for each that it removes: two wait together, or neither goes on."""
    of, whole = products
    together, unlink, waited = threading.Barrier(2, timeout=30), Path.unlink, []

    def removed(path: Path, **given: bool) -> None:
        if path.name.startswith("part-"):
            waited.append(together.wait())
        unlink(path, **given)

    monkeypatch.setattr(Path, "unlink", removed)
    swept(of, tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "p.parquet.parts").exists()
    assert len(waited) == 60


def test_a_finished_sweep_starts_nothing(products) -> None:
    of, file = products
    before = file.read_bytes()

    def start() -> Here:
        raise AssertionError("nothing is left to do")

    summary = run_sweep(of, file, start, Silent())
    assert (summary.computed, summary.found, summary.points) == (0, 60, 60)
    assert file.read_bytes() == before
    assert not file.with_name("p.parquet.parts").exists()


def test_an_interrupted_sweep_goes_on_and_computes_nothing_twice(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    keys: list[str] = []
    for _ in range(4):
        workers = Here(int(rng.integers(1, 9)), most=int(rng.integers(0, 14)))
        with pytest.raises(
            Interrupted, match=r"^interrupted with \d+ points in .*p\.parquet; the same command"
        ):
            swept(of, file, workers)
        keys += workers.keys
        assert workers.closed
        table = pq.read_table(file)
        assert table.num_rows == len(keys)
        assert not about_file(file)["complete"]
        # The parts are a table, too, to those who read the folder as one.
        if len(keys):
            assert pq.read_table(tmp_path / "p.parquet.parts").num_rows == len(keys)
    last = Here()
    swept(of, file, last)
    keys += last.keys
    assert len(keys) == len(set(keys)) == 60
    assert file.read_bytes() == whole.read_bytes()


def test_rows_of_an_end_without_notice_are_collected(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    with Store(file, of, models_version()) as kept:
        runner = run.Runner(of, kept, Here(), Silent(), Summary(file, models_version(), ""))
        runner.run(itertools.islice(run.chunks_of(of, of.candidates()), 1, 9, 2))
    # What an end in the middle of writing leaves is no part.
    (tmp_path / "p.parquet.parts" / "_tmp-abc").write_bytes(b"PAR1")
    assert not file.exists()
    assert collect(of, file) == 4
    numbers = pq.read_table(file)["point"].to_pylist()
    assert numbers == [1, 3, 5, 7]
    workers = Here()
    assert swept(of, file, workers)[0].found == 4
    assert file.read_bytes() == whole.read_bytes()


def test_a_part_that_is_damaged_is_computed_again(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=20))
    parts = sorted((tmp_path / "p.parquet.parts").glob("part-*"))
    parts[3].write_bytes(parts[3].read_bytes()[:-9])
    parts[4].write_bytes(b"")
    workers = Here()
    swept(of, file, workers)
    assert len(workers.keys) == 60 - 20 + 2
    assert file.read_bytes() == whole.read_bytes()


def spoil(path: Path, rng: np.random.Generator) -> None:
    """Flip a bit of the data of a column."""
    group = pq.read_metadata(path).row_group(0)
    column = group.column(int(rng.integers(group.num_columns)))
    first = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[first + column.total_compressed_size - 1] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def test_a_part_with_a_flipped_bit_is_computed_again(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=20))
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for path in sorted((tmp_path / "p.parquet.parts").glob("part-*"))[:12]:
        spoil(path, rng)
    workers = Here()
    swept(of, file, workers)
    assert len(workers.keys) == 60 - 20 + 12
    assert file.read_bytes() == whole.read_bytes()


def test_what_was_half_written_is_removed_by_the_next_run(products, tmp_path) -> None:
    of, _ = products
    file = tmp_path / "p.parquet"
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=3))
    left = tmp_path / "p.parquet.parts" / "_tmp-abc"
    left.write_bytes(b"PAR1")
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=0))
    assert not left.exists()


def test_parts_without_their_manifest_are_taken_over(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=20))
    file.unlink()
    parts = tmp_path / "p.parquet.parts"
    (parts / "_sweep.json").write_bytes(b'{"format": 1, "spa')
    first = sorted(parts.glob("part-*"))[0]
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    workers = Here()
    summary = swept(of, file, workers)[0]
    assert (summary.computed, summary.found) == (60 - 19, 19)
    assert file.read_bytes() == whole.read_bytes()


def test_a_damaged_file_beside_is_passed_over(products, tmp_path) -> None:
    of, whole = products
    (tmp_path / "p.before-1.parquet").write_bytes(b"PAR1")
    shutil.copy(whole, tmp_path / "p.before-2.parquet")
    spoil(tmp_path / "p.before-2.parquet", np.random.default_rng(0))
    summary = swept(of, tmp_path / "p.parquet")[0]
    assert summary.found == 0
    assert (tmp_path / "p.parquet").read_bytes() == whole.read_bytes()


def test_damaged_results_are_one_line(tmp_path, capsys) -> None:
    small, file = write(tmp_path / "s.toml", SMALL), tmp_path / "s.parquet"
    swept(load_space(small), file)
    group = pq.read_metadata(file).row_group(0).column(3)  # the first objective: it is read for certain
    content = bytearray(file.read_bytes())
    first = group.dictionary_page_offset or group.data_page_offset
    content[first + group.total_compressed_size - 1] ^= 1
    file.write_bytes(content)
    assert main(["sweep", small, "--out", str(file)]) == 2
    said = capsys.readouterr().err
    line = rf"{re.escape(str(file))}: is damaged; without it the same command computes it again \(.*\)"
    assert re.fullmatch(rf"expertbank: {line}\n", said), said


def test_finished_results_are_read_where_nothing_can_be_written(products, tmp_path, monkeypatch) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    file.write_bytes(whole.read_bytes())

    def refused(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert swept(of, file)[0].found == 60
    assert collect(of, file) == 60
    file.unlink()
    line = rf"^{re.escape(str(file))}\.parts: cannot be written: Read-only file system$"
    with pytest.raises(InputError, match=line):
        swept(of, file)


def test_a_folder_that_goes_with_a_sweep_that_ends_is_made_again(products, tmp_path, monkeypatch) -> None:
    """Between opening the lock and holding it another sweep may end, and remove all."""
    of, whole = products
    file = tmp_path / "p.parquet"
    holds = store.fcntl.flock
    folders = [tmp_path / "p.parquet.parts"]

    def flock(lock: object, how: int) -> None:
        holds(lock, how)
        if folders:
            shutil.rmtree(folders.pop())

    monkeypatch.setattr(store.fcntl, "flock", flock)
    swept(of, file)
    assert file.read_bytes() == whole.read_bytes()


def test_no_room_for_the_whole_file_leaves_the_parts(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = max(path.stat().st_size for path in _parts_of(of, tmp_path / "other.parquet"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most + 500, limits[1]))
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: cannot be written: File too large$"):
            swept(of, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not file.exists()
    assert swept(of, file)[0].found == 60
    assert file.read_bytes() == whole.read_bytes()


def _parts_of(of: Space, file: Path) -> list[Path]:
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=5))
    return sorted(file.with_name(file.name + ".parts").glob("part-*"))


def test_other_spaces_take_over_points_of_the_same_content(products, tmp_path) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    file.write_bytes(whole.read_bytes())
    wider = space(PRODUCTS, axes={**PRODUCTS["axes"], "batch": {"from": 1, "to": 10}})
    workers, watch = Here(), Silent()
    summary = run_sweep(wider, file, lambda: workers, watch)
    assert (summary.computed, summary.found) == (40, 60)
    aside = tmp_path / "p.before-1.parquet"
    assert watch.said == [f"{aside} holds what was in {file}, of another space or of other models"]
    assert aside.read_bytes() == whole.read_bytes()
    assert file.read_bytes() == swept(wider, tmp_path / "fresh.parquet")[0].file.read_bytes()
    # Fixed or an axis, in this order or another: the content counts.
    turned = space(
        PRODUCTS,
        axes={"batch": [3, 1], "device": ["hbm2-pim-samsung"], "cols": [128], "rows": [64, 128]},
        fixed={"channels": 2},
    )
    assert swept(turned, file)[0].found == 4
    # Back again: nothing is computed at all.
    summary, table = swept(of, file)
    assert (summary.computed, summary.found) == (0, 60)
    assert table.equals(pq.read_table(whole))


def test_other_models_compute_everything_again(products, tmp_path, monkeypatch) -> None:
    of, whole = products
    file = tmp_path / "p.parquet"
    with pytest.raises(Interrupted):
        swept(of, file, Here(most=10))
    for module in ("sim.sweep.run", "sim.sweep.chunks"):
        monkeypatch.setattr(f"{module}.models_version", lambda: "other")
    workers = Here()
    summary, table = swept(of, file, workers)
    assert (summary.computed, summary.found) == (60, 0)
    assert set(table["models"].to_pylist()) == {"other"}
    assert not set(table["key"].to_pylist()) & set(pq.read_table(whole)["key"].to_pylist())
    assert table["cycles"].equals(pq.read_table(whole)["cycles"])
    monkeypatch.setattr("sim.sweep.run.models_version", models_version)
    line = r"^scheduler: a worker's models are of version other, these of [0-9a-f]{16}: install the same$"
    with pytest.raises(InputError, match=line):
        swept(of, tmp_path / "q.parquet")


def test_the_version_is_of_all_that_decides_and_of_nothing_else(tmp_path) -> None:
    """Every module of ours that a worker imports is in it, but for those that only distribute."""
    files = "getattr(m, '__file__', None) or '' for m in list(sys.modules.values())"
    script = f"import sys, sim.sweep.warm; print(*({files}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {
        Path(name) for name in done.stdout.split() if name.startswith(str(ROOT)) and ".venv" not in name
    }
    assert len(loaded) > 40
    left_out = {path.relative_to(ROOT).as_posix() for path in loaded - set(sources(ROOT))}
    assert left_out == {"sim/processes.py", "sim/sweep/warm.py"}
    for package in ("spec", "golden", "sim"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of(tmp_path) == models_version()
    for name, counts in {
        "sim/expert.py": True,
        "spec/energy/ecp5-ddr4.toml": True,
        "golden/gating.py": True,
        "sim/cli.py": False,
        "sim/sweep/store.py": False,
    }.items():
        file = tmp_path / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n# other\n")
        assert (version_of(tmp_path) != models_version()) is counts, name
        file.write_bytes(before)


def test_content_of_files_is_in_the_key(tmp_path) -> None:
    design = tmp_path / "d.toml"
    text = (ROOT / "spec" / "designs" / "fpga.toml").read_text()
    keys, identities = [], []
    for latency in (100, 101, 100):
        design.write_text(text.replace("latency_cycles = 100", f"latency_cycles = {latency}"))
        of = space({**LAYERS, "axes": {"design": [str(design)]}})
        keys.append(point_key(of, (0,)))
        identities.append(of.identity)
    assert keys[0] == keys[2] != keys[1]
    assert identities[0] == identities[2] != identities[1]


def test_a_point_that_ends_its_process_is_a_row(products, tmp_path) -> None:
    of, whole = products
    fatal = list(of.candidates())[25]
    given: list[int] = []

    def ends(job: Job) -> bool:
        given.extend([1] * (fatal in job[2]))
        return fatal in job[2]

    workers = Here(6, ends=ends)
    _, table = swept(of, tmp_path / "p.parquet", workers)
    errors = {row["point"]: row["error"] for row in table.to_pylist() if row["error"]}
    assert errors == {25: "the process that computed this point ended 3 times"}
    assert len(given) == 5  # among others, its chunk alone, then itself three times
    good = pq.read_table(whole)
    assert table.drop_columns(["error"]).slice(26).equals(good.drop_columns(["error"]).slice(26))
    assert table["key"].equals(good["key"])


def test_processes_that_cannot_begin_end_the_sweep(tmp_path, monkeypatch) -> None:
    """No point is to blame, and none becomes a row: a worker without imports ends as this one."""
    monkeypatch.setattr("sim.processes._begin", divmod)  # a TypeError: it is given nothing
    line = "workers: a process of this machine ended 5 times before its first point"
    file = tmp_path / "p.parquet"
    with pytest.raises(InputError, match=f"^{line}$"):
        run_sweep(space(PRODUCTS), file, lambda: LocalWorkers(1), Silent())
    assert not file.exists()
    assert not list(tmp_path.glob("*.parts/part-*"))


def test_processes_that_end_at_random_lose_nothing(products, tmp_path) -> None:
    of, whole = products
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    ends = iter((rng.random(1000) < 0.1).tolist())
    workers = Here(6, ends=lambda _job: next(ends))
    swept(of, tmp_path / "p.parquet", workers)
    assert (tmp_path / "p.parquet").read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_killed_processes_lose_nothing(products, tmp_path) -> None:
    of, whole = products
    killed = []

    class Killed(LocalWorkers):
        def give(self, chunk: int, job: Job) -> None:
            super().give(chunk, job)
            processes = list(self._pool._processes)
            if chunk in (5, 30) and chunk not in killed:
                killed.append(chunk)
                os.kill(processes[0], signal.SIGKILL)
            if chunk == 20 and chunk not in killed:
                # What they are forked from, and both of them.
                killed.append(chunk)
                for process in (forkserver._forkserver._forkserver_pid, *processes):
                    os.kill(process, signal.SIGKILL)
            if chunk == 45 and chunk not in killed:
                # It ends while it forks.
                killed.append(chunk)

                def submit(*_: object) -> None:
                    raise EOFError

                self._pool.submit = submit

    run_sweep(of, tmp_path / "p.parquet", lambda: Killed(2), Silent())
    assert killed == [5, 20, 30, 45]
    assert (tmp_path / "p.parquet").read_bytes() == whole.read_bytes()


KILLED_EVERYWHERE = """
import os, random, signal, sys
from pathlib import Path

import pyarrow.parquet as pq

from sim.sweep import store
from tests.test_sweep import PRODUCTS, Here, space, swept

file, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
of = space(PRODUCTS, axes={"rows": [64, 128, 256], "cols": [64, 128]})


def killed_at(calls: int) -> None:
    left = [calls]

    def counted() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def kills(function):
        def called(*given, **named):
            counted()  # before it, and behind it
            result = function(*given, **named)
            counted()
            return result

        return called

    names = ((Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (os, "fsync"), (store.shutil, "rmtree"))
    for owner, name in names:
        setattr(owner, name, kills(getattr(owner, name)))


kills = 0
while True:
    calls = rng.randint(1, 16)
    child = os.fork()
    if not child:
        if file.exists():
            pq.read_table(file)
        for part in store.part_files(file.with_name(file.name + ".parts")):
            pq.read_table(part)
        killed_at(calls)
        summary, _ = swept(of, file, Here())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        print(kills, os.waitstatus_to_exitcode(status))
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
"""


@pytest.mark.slow
def test_a_client_that_is_killed_around_every_step_on_disk_loses_nothing(tmp_path) -> None:
    """Before and behind making, writing, renaming and removing files, at random, until one run ends."""
    file = tmp_path / "p.parquet"
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    given = [sys.executable, "-c", KILLED_EVERYWHERE, str(file), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    kills, status = map(int, done.stdout.split())
    assert kills >= 1 and status == 0, done.stderr
    of = space(PRODUCTS, axes={"rows": [64, 128, 256], "cols": [64, 128]})
    swept(of, tmp_path / "q.parquet")
    assert file.read_bytes() == (tmp_path / "q.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "q.parquet"]


def test_one_sweep_at_a_time_writes_a_file(products, tmp_path) -> None:
    of, _ = products
    file = tmp_path / "p.parquet"
    with Store(file, of, models_version()):
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: is being written by another sweep$"):
            swept(of, file)


# A search.


@pytest.mark.parametrize("sampler", ["nsga2", pytest.param("tpe", marks=pytest.mark.long)])
def test_a_search_is_the_same_with_any_workers_and_interruptions(tmp_path, sampler) -> None:
    table = {
        **PRODUCTS,
        "method": "search",
        "points": 40,
        "search": {"population": 10, "sampler": sampler},
        "constraints": ["batch != 3"],
        "objectives": {"cycles": "min", "mac_utilisation": "max"},
    }
    of = space(table)
    first = Here(1)
    summary, rows = swept(of, tmp_path / "a.parquet", first)
    assert summary.computed == rows.num_rows == 40
    assert len(set(rows["key"].to_pylist())) == 40
    assert 3 not in rows["batch"].to_pylist()
    swept(of, tmp_path / "b.parquet", Here(7))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    file, keys = tmp_path / "c.parquet", []
    for most in (13, 9):
        workers = Here(4, most=most)
        with pytest.raises(Interrupted):
            swept(of, file, workers)
        keys += workers.keys
    last = Here()
    swept(of, file, last)
    assert file.read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert len([*keys, *last.keys]) == len({*keys, *last.keys}) == 40


@pytest.mark.long
def test_a_search_finds_better_points_than_chance(tmp_path) -> None:
    """Of a thousand points the best one is found in a tenth of them, more often than by drawing them."""
    table = {
        **PRODUCTS,
        "axes": {"rows": {"from": 16, "to": 512, "step": 16}, "cols": {"from": 16, "to": 512, "step": 16}},
        "columns": {"miss": "abs(rows - 304) + abs(cols - 96)"},
        "objectives": {"miss": "min"},
        "points": 100,
        "search": {"population": 20},
        "method": "search",
    }
    _, rows = swept(space(table), tmp_path / "s.parquet")
    miss = np.array(rows["miss"].to_pylist())
    assert miss[60:].mean() < 0.6 * miss[:20].mean()


# What is found.


def test_the_front_is_what_no_point_beats() -> None:
    rng = np.random.default_rng(5)
    for objectives in (1, 2, 3):
        values = rng.integers(0, 12, (300, objectives)).astype(float)
        expected = {
            tuple(one)
            for one in values
            if not any((other <= one).all() and (other < one).any() for other in values)
        }
        front = np.zeros((0, objectives))
        for some in np.array_split(values, 7):
            front, _, _ = not_beaten(front, some)
        assert {tuple(one) for one in front} == expected
        assert len(front) == len(expected)


def test_findings_are_those_of_the_whole_table(products, monkeypatch) -> None:
    of, file = products
    monkeypatch.setattr(store, "READ_ROWS", 7)
    found = find(of, file)
    table = pq.read_table(file)
    cycles = np.array(table["seconds"].to_pylist())
    logs = np.log(cycles)
    assert (found.points, found.failed) == (60, 0)
    assert found.spreads["seconds"].mean == pytest.approx(logs.mean())
    assert found.spreads["seconds"].squares == pytest.approx(((logs - logs.mean()) ** 2).sum())
    for axis, name in enumerate(("rows", "cols", "batch")):
        column = np.array(table[name].to_pylist())
        means = {value: logs[column == value].mean() for value in np.unique(column)}
        assert found.means[axis, "seconds"].tolist() == pytest.approx(list(means.values()))
        between = sum((column == value).sum() * (mean - logs.mean()) ** 2 for value, mean in means.items())
        assert found.shares[axis, 0] == pytest.approx(between / ((logs - logs.mean()) ** 2).sum())
    one = found.maps[0]
    rows, batch = np.array(table[one.down.column].to_pylist()), np.array(table[one.across.column].to_pylist())
    for i, a in enumerate(np.unique(rows)):
        for j, b in enumerate(np.unique(batch)):
            assert one.best[i, j] == cycles[(rows == a) & (batch == b)].min()
    assert found.densities[0].counts.sum() == 60
    assert [row["point"] for row in found.front] == [0]


def test_a_spread_of_equal_values_is_no_logarithm() -> None:
    spread = Spread("min")
    spread.add(np.array([2.0, 2.0]))
    assert not spread.log


def test_the_page(products, tmp_path, monkeypatch) -> None:
    of = space(
        PRODUCTS,
        columns={"price": "rows * 0.5 - 100"},
        objectives={"seconds": "min", "price": "min", "mac_utilisation": "max"},
        constraints=["rows < 1000"],
    )
    file = tmp_path / "p.parquet"
    swept(of, file)
    page = check_page(sweep_page_text(find(of, file), {"space": "<script>"}))
    for text in (
        "price over seconds",
        "rows: ",
        "seconds, min over all else",
        "48 points, 0 of them failed",
        "<script>",
    ):
        assert text in page.text, text
    assert page.ids == ["asked", "front", "sensitivity", "maps"]


def test_a_page_of_points_that_all_failed(tmp_path) -> None:
    of = space({**LAYERS, "axes": {"design": ["pim"], "design.array.rows": [8, 16]}})
    file = tmp_path / "l.parquet"
    swept(of, file)
    page = check_page(sweep_page_text(find(of, file), {}))
    assert "2 points, 2 of them failed" in page.text
    assert "design.array: is a table that 'pim' has not" in page.text


# The command.


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


SMALL = """
evaluate = "gemv"
[fixed]
device = "hbm2-pim"
channels = 1
[axes]
rows = [16, 32]
cols = {from = 16, to = 64, factor = 2}
"""


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["sweep", write(tmp_path / "small.toml", SMALL), "--workers", "1", "--report", "small.html"]
    assert main([*given, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["points"], result["computed"], result["found"], result["failed"]) == (6, 6, 0, 0)
    assert result["out"] == "small.parquet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.html", "small.parquet", "small.toml"]
    check_page((tmp_path / "small.html").read_text())
    assert main(given) == 0
    assert "6 points in small.parquet; 0 computed by none" in capsys.readouterr().out
    assert main([*given[:2], "--collect"]) == 0
    assert capsys.readouterr().err == "6 points in small.parquet\n"
    assert main([*given[:2], "--collect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"space": "small", "out": "small.parquet", "points": 6}


def test_presets_of_spaces_are_sound() -> None:
    names = preset_names("sweeps")
    assert names
    for name in names:
        of = load_space(name)
        assert run_point(of, next(of.candidates())).error is None


def test_the_page_shows_the_preset() -> None:
    text = (ROOT / "docs" / "sweep.md").read_text()
    shown = text.partition("<!-- space -->\n\n```toml\n")[2].partition("```\n\n<!-- /space -->")[0]
    assert shown == (ROOT / "spec" / "sweeps" / "array-and-memory.toml").read_text()
    for name, kind in EVALUATORS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | "))
        specs, options = row.split(" | ")[1:3]
        assert re.findall(r"`(\w+)`", specs) == list(kind.roots)
        assert re.findall(r"`(\w+)`", re.sub(r" \(.*\)", "", options)) == list(kind.options)


# What is in the file -> the line behind the file's name.
BAD_SPACES = {
    "no TOML": ("[axes\n", r"is not valid TOML: .*"),
    "unknown key": ("colour = 1\n" + SMALL, r"colour: unknown key; known are axes, columns, .*"),
    "no axes": (SMALL.partition("[axes]")[0], r"axes: must have at least one axis"),
    "axes no table": ("axes = 3\n" + SMALL.partition("[axes]")[0], r"axes: must be a table, not 3"),
    "an axis that names no field": (
        SMALL + "colour = [1]\n",
        r"axes\.colour: names no field of evaluate = 'gemv'; there are device, device\.FIELD, .*",
    ),
    "a field of no table": (
        SMALL + '"device.timed.cl" = [1]\n',
        r"axes\.device\.timed\.cl: names no field: 'timed' is none; in PimDevice there are banks_per_mac, .*",
    ),
    "a field below a number": (
        SMALL + '"device.lanes.x" = [1]\n',
        r"axes\.device\.lanes\.x: names no field: 'x' is none",
    ),
    "a value of another type": (
        SMALL + '"device.lanes" = [8, "many"]\n',
        r"axes\.device\.lanes: must be of type int, not 'many'",
    ),
    "a name that is none": (
        SMALL.replace('"hbm2-pim"', '"ddr9"'),
        r"design: is neither a preset \(.*\) nor a \.toml file: 'ddr9'",
    ),
    "an option of another type": (
        SMALL.replace("[16, 32]", "[16, 3.5]"),
        r"axes\.rows: must be a whole number, not 3\.5",
    ),
    "an empty axis": (SMALL.replace("[16, 32]", "[]"), r"axes\.rows: must have at least one value"),
    "a value twice": (
        SMALL.replace("[16, 32]", "[16, 16]"),
        r"axes\.rows: must hold each value once, not 16 again",
    ),
    "not a number": (
        'evaluate = "system"\n[fixed]\nmodel = "mixtral-8x7b"\n[axes]\n"routing.S" = [0.5, nan]\n',
        r"axes\.routing\.S: must be a finite number, not nan",
    ),
    "a bandwidth that is not a number": (
        'evaluate = "system"\n[axes]\n"system.near.bytes_per_s" = [nan]\n',
        r"axes\.system\.near\.bytes_per_s: must be finite, not nan",
    ),
    "no list": (
        SMALL.replace("[16, 32]", "16"),
        r"axes\.rows: must be a list or a range \{from, to\}, not 16",
    ),
    "no end": (SMALL.replace("to = 64, ", ""), r"axes\.cols\.to: is missing"),
    "ends the other way": (
        SMALL.replace("to = 64", "to = 6"),
        r"axes\.cols\.to: must be at least from=16, not 6",
    ),
    "no factor": (SMALL.replace("factor = 2", "factor = 1"), r"axes\.cols\.factor: must be above 1, not 1"),
    "unknown key of a range": (
        SMALL.replace("factor = 2", "by = 2"),
        r"axes\.cols\.by: unknown key; known are from, to, step, factor, points, log",
    ),
    "two ways": (
        SMALL.replace("factor = 2", "factor = 2, step = 3"),
        r"axes\.cols: must have one of step, factor and points, not step and factor",
    ),
    "infinite": (
        SMALL.replace("to = 64", "to = inf"),
        r"axes\.cols\.to: must be a finite number, not inf",
    ),
    "too many values": (
        SMALL.replace("to = 64, factor = 2", "to = 10000000"),
        r"axes\.cols\.step: must make at most 100000 values, not 9999985",
    ),
    "too many points": (
        SMALL.replace("to = 64, factor = 2", "to = 90000").replace("[16, 32]", "{from = 1, to = 1000}"),
        r"axes: must make at most 10000000 points, not 89985000; method random takes some",
    ),
    "a field twice": (SMALL + "channels = [1, 2]\n", r"axes\.channels: is given already in fixed"),
    "missing": (
        SMALL.replace("channels = 1\n", ""),
        r"fixed\.channels: is missing: channels must be there or in axes",
    ),
    "a space without a point": (
        'constraints = ["rows > cols"]\n' + SMALL.replace("[16, 32]", "[1]"),
        r"constraints: leave none of 3 points",
    ),
    "a constraint over no field": (
        'constraints = ["rows > size"]\n' + SMALL,
        r"constraints\.0: names no field of evaluate = 'gemv'; .*",
    ),
    "a constraint that is none": (
        'constraints = ["rows >"]\n' + SMALL,
        r"constraints\.0: is no expression: 'rows >'",
    ),
    "a constraint of a text": (
        "constraints = [\"rows > 'x'\"]\n" + SMALL,
        r"constraints\.0: \"rows > 'x'\" cannot be computed: .*",
    ),
    "linked of other lengths": (
        SMALL + '[[linked]]\nbatch = [1, 2]\n"device.lanes" = [8]\n',
        r"linked\.0: must be lists of the same length, not \[1, 2\]",
    ),
    "a column of a figure's name": (
        SMALL + '[columns]\ncycles = "1"\n',
        r"columns\.cycles: must be a new name of letters, digits and _, not 'cycles'",
    ),
    "an objective that is none": (
        SMALL + '[objectives]\nprice = "min"\n',
        r"objectives\.price: is no figure; there are seconds, cycles, .*",
    ),
    "an objective's sense": (
        SMALL + '[objectives]\ncycles = "least"\n',
        r"objectives\.cycles: must be min or max, not 'least'",
    ),
    "points of a grid": ("points = 4\n" + SMALL, r"points: is for methods random and search, not for grid"),
    "no points": ('method = "random"\n' + SMALL, r"points: is missing with method random"),
    "a method": ('method = "guess"\n' + SMALL, r"method: must be one of grid, random, search, not 'guess'"),
    "search of a grid": (
        SMALL + "[search]\npopulation = 4\n",
        r"search: is for method search, not for grid",
    ),
}


@pytest.mark.parametrize(("text", "line"), BAD_SPACES.values(), ids=BAD_SPACES.keys())
def test_bad_spaces(tmp_path, capsys, text, line) -> None:
    file = tmp_path / "s.toml"
    assert main(["sweep", write(file, text), "--out", str(tmp_path / "o.parquet")]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(rf"expertbank: {re.escape(str(file))}: {line}\n", said.err), said.err
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_bad_options(tmp_path, capsys) -> None:
    small, out = write(tmp_path / "s.toml", SMALL), tmp_path / "o.parquet"
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [1]}), table)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    for given, line in {
        ("--workers", "0"): r"workers: must be in 1\.\.1024, not 0",
        ("--workers", "2", "--scheduler", address): r"workers: cannot be combined with --scheduler",
        ("--scheduler", "nowhere"): r"scheduler: must be tcp://HOST:PORT, PORT at most 65535, not 'nowhere'",
        (
            "--scheduler",
            "tcp://localhost:65536",
        ): r"scheduler: must be tcp://HOST:PORT, PORT at most 65535, not 'tcp://localhost:65536'",
        ("--scheduler", address): rf"scheduler: {address} cannot be reached: Connection refused",
        (
            "--out",
            f"{tmp_path}/no/o.parquet",
        ): rf"{tmp_path}/no/o\.parquet: out: is in a folder that does not exist",
        (
            "--report",
            f"{tmp_path}/no/o.html",
        ): rf"{tmp_path}/no/o\.html: report: is in a folder that does not exist",
        ("--report", str(out)): rf"report: must be another file than that of --out, not {out}",
        ("--out", str(notes)): rf"{notes}: out: is there already and holds no results of a sweep",
        ("--out", str(table)): rf"{table}: out: is there already and holds no results of a sweep",
    }.items():
        assert main(["sweep", small, "--out", str(out), *given]) == 2, given
        assert re.fullmatch(rf"expertbank: {line}\n", capsys.readouterr().err)
    assert notes.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "s.toml", "t.parquet"]


def test_a_full_disk(products, tmp_path) -> None:
    """One line; what is written stays readable, and the sweep goes on where there is room again."""
    of, whole = products
    file = tmp_path / "p.parquet"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Here):
        def take(self) -> list[tuple[int, list[Row] | None]]:
            answer = super().take()
            if len(self.keys) == 25:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            return answer

    workers = Filling()
    line = rf"^{re.escape(str(file))}\.parts/part-\d+\.parquet: cannot be written: File too large$"
    try:
        with pytest.raises(InputError, match=line):
            swept(of, file, workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert workers.closed
    assert collect(of, file) == 24
    assert pq.read_table(file).num_rows == 24
    again = Here()
    swept(of, file, again)
    assert len(again.keys) == 36
    assert file.read_bytes() == whole.read_bytes()


# A cluster.


class Cluster:
    """A scheduler and workers, processes of their own on the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        log = (self.folder / f"{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log
        )
        log.close()
        self.processes.append(process)
        return process

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        process = self._start(
            "distributed.cli.dask_scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--no-dashboard",
            "--no-show",
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.05)
        raise AssertionError("no scheduler")

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "distributed.cli.dask_worker",
            self.address,
            *("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.folder)),
        )

    def sweep(self, name: str, file: Path) -> subprocess.Popen[bytes]:
        return self._start(
            "sim.cli", "sweep", name, "--out", str(file), "--scheduler", self.address, "--json"
        )

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


def parts(file: Path) -> int:
    return len(list(file.with_name(file.name + ".parts").glob("part-*")))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


CLUSTER_SPACE = """
[fixed]
model = "mixtral-8x7b"
scale = 16
routing = "zipf"
[axes]
design = ["fpga", "pim"]
"routing.S" = {from = 0.0, to = 2.0, points = SIZE}
tokens = [4, 32]
seed = [0, 1]
"""


@pytest.mark.slow
def test_a_cluster_loses_a_worker_and_no_point(cluster, tmp_path) -> None:
    small = write(tmp_path / "s.toml", CLUSTER_SPACE.replace("SIZE", "12"))
    file = tmp_path / "c.parquet"
    workers = [cluster.start_worker() for _ in range(2)]
    client = cluster.sweep(small, file)
    wait_for(lambda: parts(file) >= 3)
    workers[0].kill()
    assert client.wait(timeout=60) == 0
    of = load_space(small)
    swept(of, tmp_path / "h.parquet")
    assert file.read_bytes() == (tmp_path / "h.parquet").read_bytes()


@pytest.mark.long
def test_a_cluster_loses_workers_scheduler_and_client_and_no_point(cluster, tmp_path) -> None:
    small = write(tmp_path / "s.toml", CLUSTER_SPACE.replace("SIZE", "200"))
    file = tmp_path / "c.parquet"
    of = load_space(small)
    workers = [cluster.start_worker() for _ in range(2)]
    client = cluster.sweep(small, file)
    wait_for(lambda: parts(file) >= 2)
    workers[0].kill()
    wait_for(lambda: parts(file) >= 6)
    # The scheduler goes with all that it knew, and comes back.
    cluster.scheduler.kill()
    cluster.scheduler.wait()
    time.sleep(2)
    assert client.poll() is None
    cluster.start_scheduler()
    workers = [cluster.start_worker() for _ in range(2)]
    before = parts(file)
    wait_for(lambda: parts(file) > before + 4)
    # The client is told to end; then a second one without notice.
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=30) == 130
    done = pq.read_table(file)
    assert 0 < done.num_rows < of.grid_size
    client = cluster.sweep(small, file)
    before = parts(file)
    wait_for(lambda: parts(file) > before + 2)
    client.kill()
    client.wait()
    # Both workers go, new ones come.
    client = cluster.sweep(small, file)
    wait_for(lambda: parts(file) > before + 6)
    for worker in workers:
        worker.kill()
    time.sleep(1)
    cluster.start_worker()
    assert client.wait(timeout=200) == 0
    result = json.loads((tmp_path / f"{len(cluster.processes) - 2}.log").read_text().splitlines()[-1])
    assert result["points"] == of.grid_size == result["computed"] + result["found"]
    run_sweep(of, tmp_path / "h.parquet", lambda: LocalWorkers(2), Silent())
    assert file.read_bytes() == (tmp_path / "h.parquet").read_bytes()
    table = pq.read_table(file)
    assert len(set(table["key"].to_pylist())) == table.num_rows
    assert table.take(done["point"].to_pylist()).equals(done)


@pytest.mark.long
def test_clients_that_are_killed_at_random_lose_nothing(tmp_path) -> None:
    small = write(tmp_path / "s.toml", CLUSTER_SPACE.replace("SIZE", "120"))
    file = tmp_path / "c.parquet"
    of = load_space(small)
    seed = int(np.random.default_rng().integers(1 << 30))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    command = [
        sys.executable,
        "-m",
        "sim.cli",
        "sweep",
        small,
        "--out",
        str(file),
        "--workers",
        "2",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for number in range(20):
        client = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            client.wait(timeout=3 + 4 * rng.random() if number < 19 else 200)
            break
        except subprocess.TimeoutExpired:
            client.send_signal([signal.SIGKILL, signal.SIGTERM, signal.SIGINT][number % 3])
            client.wait()
    assert client.returncode == 0
    run_sweep(of, tmp_path / "h.parquet", lambda: LocalWorkers(2), Silent())
    assert file.read_bytes() == (tmp_path / "h.parquet").read_bytes()
