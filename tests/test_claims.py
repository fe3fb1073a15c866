"""The claims page: up to date, honest about what fails, and README repeats nothing that it does not say."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.claims.links
import sim.claims.numbers
import sim.claims.throughput
from golden.formats import bf16_decode, bf16_encode
from sim.accelerator import Report, layer_job, run_model, token_beats
from sim.claims import memory, programs
from sim.claims.builds import build_all
from sim.claims.hardware import blocks_link, dram_link, layer_link, rtl_link
from sim.claims.links import LINKS, Producer
from sim.claims.measurement import EACH_FFN, PRESETS, STORED, SUITES, Measurement, Planned, Run
from sim.claims.numbers import formats_link, int8_link
from sim.claims.page import HEADER, Claim, Link, Table, headlines, page, section, summary_rows
from sim.claims.programs import Program
from sim.claims.throughput import ChannelUse, needed_interval, throughput_link
from sim.cli import main
from sim.dram_check import COMMANDS
from sim.gemv.commands import Product
from sim.gemv.program import Job, RtlRun
from sim.gemv.report import Options
from sim.layer import layer_cycles
from sim.marked import marked
from sim.pim_layer import PimShape, first_refreshes, pim_cycles, pim_job
from sim.pim_slots import SLOTS
from sim.rtlsim import DEFAULT_ROOT
from spec.banks import BankGeometry
from spec.design import INTEGER_FORMATS, PLAIN_FORMATS, DeepBlock, Engine, Format
from spec.geometry import GateGeometry, ImageGeometry
from spec.hardware import lacking_terms
from spec.load import load_design, load_device, load_model

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "claims.md"
STALE = "docs/claims.md is stale: run `make claims` and commit the page"


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return Measurement(Path("tests/data"), DEFAULT_ROOT, lambda _text: None)


@pytest.fixture(scope="module")
def measured(measurement: Measurement) -> dict[str, Link]:
    """The links that need no Verilog."""
    with contextlib.chdir(ROOT):
        return {one.name: one.measure(measurement) for one in LINKS if not one.needs_verilog}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on the page name files as seen from the repository's root."""
    monkeypatch.chdir(ROOT)


# The committed page.


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in LINKS if not one.needs_verilog])
def test_page_has_what_is_measured_now(measured: dict[str, Link], name: str) -> None:
    link, text = measured[name], PAGE.read_text()
    assert section(link) in text, STALE
    assert all(row in text for row in summary_rows(link)), STALE
    assert [claim.text for claim in link.claims if not claim.ok] == []


@pytest.mark.slow
def test_page_has_the_cycles_that_the_model_says_now(measurement: Measurement) -> None:
    """The Verilog is not run here, but its runs are as many, and the model's column is made anew."""
    found = re.search(r"^## layer: .*?(?=^## )", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    rows = [cells(line) for line in found[0].splitlines() if line.startswith("|")]
    column = rows[0].index("model")
    written = {(row[0], row[1]): row[column] for row in rows[2:]}
    now = {(plan.name, plan.on): f"{modelled_cycles(plan):,}" for plan in measurement.planned}
    assert written == now, STALE


def modelled_cycles(plan: Planned) -> int:
    """Return the layer model's cycles of what is planned, as its run has them."""
    work, design = plan.work, plan.design
    arrivals = np.zeros(len(work.tokens), dtype=np.int64)
    if design.engine is Engine.FPGA:
        return layer_cycles(layer_job(work, design)[0], arrivals).cycles
    beats = token_beats(BankGeometry.of(work.model, design).image, design, work.tokens, work.batch_lengths)
    banks, golden, _ = pim_job(work, design, beats)
    shape = PimShape(banks, design, golden.streams, banks.round_robin())
    return pim_cycles(shape, np.zeros(len(beats), dtype=np.int64), first_refreshes(banks))[0].cycles


def test_stored_weights_run_on_both_engines() -> None:
    """Each format once on `fpga` and once near memory."""
    on = [(suite.design, suite.format) for suite in SUITES if suite.format not in (Format.BF16, Format.INT8)]
    stored = [one for one in Format if one not in (Format.BF16, Format.INT8)]
    assert sorted(on) == sorted((design, one) for design in ("fpga", "pim-small") for one in stored)
    assert all(len(suite.random) == 1 for suite in SUITES if suite.format in stored)


@pytest.mark.long
@pytest.mark.parametrize(("number_format", "model"), [(str(one), model) for one, model in STORED])
def test_stored_weights_near_memory_through_the_verilog(
    capsys: pytest.CaptureFixture[str], number_format: str, model: str
) -> None:
    options = ["--model", model, "--tokens", "24", "--design", "pim-small", "--format", number_format]
    assert main(["sim", *options, "--engine", "both", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mismatches"], report["dram"]["violations"]) == (0, [])
    assert report["cycles"]["model"] == report["cycles"]["rtl"] > 0
    assert all(pair["model"] == pair["rtl"] for pair in report["blocks"].values())


def test_page_is_whole_and_everything_on_it_holds() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEADER), STALE
    assert re.findall(r"^## (\w+): ", text, re.MULTILINE) == [producer.name for producer in LINKS], STALE
    assert "**NO**" not in text


@pytest.mark.long
def test_page_is_what_the_verilog_says_now(tmp_path: Path) -> None:
    out = tmp_path / "claims.md"
    assert main(["claims", "--out", str(out)]) == 0
    assert out.read_text() == PAGE.read_text(), STALE


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows_of_readme(mark: str) -> list[list[str]]:
    path = ROOT / "README.md"
    between = marked(path.read_text(), mark, file=path)[1]
    return [cells(line) for line in between.splitlines() if line.startswith("|")][2:]


@pytest.mark.slow
def test_readme_has_the_headlines(measured: dict[str, Link]) -> None:
    """README's rows are the page's; of the links that need no Verilog, those that are measured now."""
    rows = rows_of_readme("claims")
    on_page = [cells(line)[1:4] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert [row for row in rows if row not in on_page] == [], STALE
    now = [cells(line) for line in headlines(list(measured.values())) if line][2:]
    assert [row for row in now if row not in rows] == [], STALE
    assert len(rows) > len(now)


def test_readme_has_the_speeds_of_the_page() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    on_page = [cells(line)[:3] for line in text.splitlines() if line.startswith("|")]
    rows = rows_of_readme("benchmarks")
    assert rows
    assert [row for row in rows if row not in on_page] == []


# What fails is said to fail.


ATTACC_CLAIM = "cycles of an all-bank MAC more on AttAcc, against its simulator"
BROKEN_CLAIM = "DRAM rules broken in 12 streams and products, by independent checkers"


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """A folder with copies of the reference simulators' figures."""
    for name in (memory.STREAMS, memory.PRODUCTS, memory.ATTENTIONS):
        (tmp_path / name).write_text((ROOT / "tests" / "data" / name).read_text())
    return tmp_path


def failed_of_memory(folder: Path) -> list[str]:
    link = memory.memory_link(Measurement(folder, DEFAULT_ROOT, lambda _text: None))
    return [claim.text.split(":")[0] for claim in link.claims if not claim.ok]


@pytest.mark.parametrize(
    ("name", "key", "by", "claim"),
    [
        (memory.STREAMS, "cycles", 1, "read streams of Ramulator 2.1"),
        (memory.STREAMS, "served", 1, "read streams of Ramulator 2.1"),
        (memory.PRODUCTS, "cycles", -1, "products of Samsung's PIMSimulator"),
        (
            memory.ATTENTIONS,
            "cycles",
            -2000,
            "cycles of an all-bank MAC more on AttAcc, against its simulator",
        ),
    ],
)
def test_another_figure_of_a_reference_is_told(figures, name, key, by, claim) -> None:
    path = figures / name
    data = json.loads(path.read_text())
    data["points"][-1][key] += by
    # One stream and one product are enough to tell.
    data["points"] = data["points"] if name == memory.ATTENTIONS else data["points"][-1:]
    path.write_text(json.dumps(data))
    assert failed_of_memory(figures) == [claim]


def test_a_broken_rule_of_a_product_is_told(figures, monkeypatch) -> None:
    for name in (memory.STREAMS, memory.PRODUCTS):
        data = json.loads((figures / name).read_text())
        (figures / name).write_text(json.dumps({**data, "points": data["points"][:1]}))
    assert failed_of_memory(figures) == []
    honest = memory.run_gemv

    def spoiled(device, product, **options):
        run = honest(device, product, **options)
        if device.name == "duplex" and len(run.log):
            run.log[-100, 0] -= 1
        return run

    monkeypatch.setattr(memory, "run_gemv", spoiled)
    assert failed_of_memory(figures) == [
        "DRAM rules broken in 12 streams and products, by independent checkers"
    ]


def program(*, cycles: int = 0, late: bool = False, mismatches: int = 0, row: int = 0) -> Program:
    """Return a product that the Verilog ran like the model, but for what is given."""
    device, product = load_device("hbm2-pim"), Product(rows=64, cols=256, channels=1)
    model = memory.run_gemv(device, product, log=True)
    log = model.log.copy()
    log[7, 3] += row
    job = Job(model, np.zeros((8, 8), np.float32), None, None)
    run = RtlRun(model, model.cycles + cycles, late, mismatches, log, [], None, job)
    return Program(device.name, product, Options(), run)


@pytest.mark.parametrize(
    ("spoiled", "failed"),
    [
        ({}, []),
        ({"row": 1}, [0]),
        ({"cycles": 1}, [1]),
        ({"late": True}, [1]),
        ({"mismatches": 3}, [2]),
    ],
    ids=str,
)
def test_a_program_that_differs_is_told(spoiled: dict[str, Any], failed: list[int]) -> None:
    link = programs.link_of([program(), program(**spoiled)])
    assert [number for number, claim in enumerate(link.claims) if not claim.ok] == failed
    commands = 2 * len(program().run.model.log)
    assert link.claims[0].measured == f"{int('row' in spoiled)} of {commands}"
    assert [claim.ok for claim in programs.link_of([]).claims] == [False] * 3


def test_random_programs_are_the_same_every_time() -> None:
    found = programs.random_products()
    assert found == programs.random_products()
    assert len({product for product, _ in found}) == programs.NUM_RANDOM
    assert {options.limits.hot for _, options in found} == {False, True}


def test_figures_that_cannot_be_read_end_in_a_line(tmp_path, capsys) -> None:
    (tmp_path / "a.npz").touch()  # a folder without layers is refused before
    assert main(["claims", "--only", "memory", "--vectors", str(tmp_path)]) == 2
    path = tmp_path / memory.STREAMS
    assert f"expertbank: {path}: cannot be read: " in capsys.readouterr().err
    path.write_text("{")
    assert main(["claims", "--only", "memory", "--vectors", str(tmp_path)]) == 2
    assert f"expertbank: {path}: cannot be read: Expecting" in capsys.readouterr().err


def run_of(report: Report) -> Run:
    return Run("a run", "expertbank sim", report)


@pytest.fixture
def agreed() -> Report:
    """A layer's report as of a run in which everything agreed."""
    model = load_model("mixtral-8x7b").scaled(64)
    report = run_model(model, load_design("fpga"), np.tile([0, 1], (8, 1)), "given")
    for pair in (report.cycles, *report.blocks.values()):
        pair["rtl"] = pair["model"]
    return dataclasses.replace(report, mismatches=0)


@dataclasses.dataclass(frozen=True)
class Ran:
    """A measurement whose runs are given."""

    layers: list[Run]
    experts: list[Run]
    refused: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def failing(link: Link) -> list[tuple[str, str]]:
    return [(claim.text, claim.measured) for claim in link.claims if not claim.ok]


def test_agreeing_runs_hold(agreed: Report) -> None:
    ran = Ran([dataclasses.replace(run_of(agreed), system_cycles=agreed.cycles["model"])], [])
    for make in (rtl_link, blocks_link, layer_link):
        assert failing(make(ran)) == []
    assert run_of(agreed).bits == 8 * (64 * 16 + 2 * 25)


@pytest.mark.parametrize(("mismatches", "measured"), [(3, "3 of 8,592"), (None, "8,592 of 8,592")])
def test_bits_that_differ_or_were_not_compared_fail(
    agreed: Report, mismatches: int | None, measured: str
) -> None:
    ran = Ran([run_of(dataclasses.replace(agreed, mismatches=mismatches))], [])
    text = "Verilog against golden, 1 run on fpga bf16: bits that differ"
    assert failing(rtl_link(ran)) == [(text, measured)]


def test_a_divergence_fails_and_is_in_the_table(agreed: Report) -> None:
    wrong = dataclasses.replace(agreed, divergence="gating.o: transfer 0: cycle model 7, rtl 8")
    link = blocks_link(Ran([run_of(agreed), run_of(wrong)], []))
    assert failing(link) == [("runs with a handshake in another cycle than its block's model says", "1 of 2")]
    assert link.tables[0].rows[1][-1] == "NO: gating.o: transfer 0: cycle model 7, rtl 8"


def test_a_block_that_differs_or_never_ended_fails(agreed: Report) -> None:
    blocks = {name: dict(pair) for name, pair in agreed.blocks.items()}
    blocks["expert"]["rtl"] -= 2
    blocks["combine"]["rtl"] = None
    link = blocks_link(Ran([run_of(dataclasses.replace(agreed, blocks=blocks))], []))
    assert failing(link) == [("largest difference of a block's cycles", "2, 1 unknown")]
    assert "?" in link.tables[0].rows[0]
    assert f"{blocks['expert']['rtl']:,} (+2)" in link.tables[0].rows[0]


@pytest.mark.parametrize(("rtl", "measured"), [(1000, "1.10%"), (None, "inf%")])
def test_a_layer_beyond_one_percent_fails(agreed: Report, rtl: int | None, measured: str) -> None:
    ran = Ran([run_of(dataclasses.replace(agreed, cycles={"model": 1011, "rtl": rtl}))], [])
    assert failing(layer_link(ran))[0] == (
        "largest difference of a layer's cycles, Verilog against model",
        measured,
    )


@pytest.mark.parametrize(
    ("cycles", "rtl", "measured"),
    [(None, 1000, "inf%"), (1011, 1000, "1.10%"), (1009, 1000, None), (1000, None, "inf%")],
)
def test_a_system_beyond_one_percent_fails(
    agreed: Report, cycles: int | None, rtl: int | None, measured: str | None
) -> None:
    """Or one that was not run; its cycles are in the table."""
    report = dataclasses.replace(agreed, cycles={"model": rtl, "rtl": rtl})
    link = layer_link(Ran([dataclasses.replace(run_of(report), system_cycles=cycles)], []))
    claim = link.claims[1]
    assert (claim.ok, claim.bound) == (measured is None, "1%")
    if measured:
        assert claim.measured == measured
    assert link.tables[0].rows[0][6] == ("-" if cycles is None else f"{cycles:,}")


@pytest.mark.slow
def test_systems_of_the_planned_layers(measurement: Measurement) -> None:
    """Presets in bf16 on both accelerators, nothing else; some against the page's RTL cycles."""
    plans = [plan for plan in measurement.planned if plan.is_system]
    assert len(plans) == 14
    assert {plan.on for plan in plans} == {"fpga bf16", "pim bf16"}
    assert {plan.system_cycles() for plan in measurement.planned if not plan.is_system} == {None}
    found = re.search(r"^## layer: .*?(?=^## )", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    rows = [cells(line) for line in found[0].splitlines() if line.startswith("|")]
    rtl = {(row[0], row[1]): int(row[rows[0].index("RTL")].replace(",", "")) for row in rows[2:]}
    # Of Qwen3 the gate chooses others than were asked for, which take 2 % longer.
    for plan in plans:
        if plan.name in ("qwen3-30b-a3b / 64, 16 tokens", "switch-base-128 / 64, 16 tokens"):
            assert plan.system_cycles() == pytest.approx(rtl[plan.name, plan.on], rel=0.01)


def test_runs_are_counted_by_accelerator_and_format(agreed: Report) -> None:
    reports = [agreed, agreed, dataclasses.replace(agreed, design="pim", format="int8")]
    (claim,) = rtl_link(Ran([run_of(report) for report in reports], [])).claims
    assert claim.text == "Verilog against golden, 2 runs on fpga bf16, 1 on pim int8: bits that differ"


def test_every_family_that_the_hardware_has_runs_in_verilog(measurement: Measurement) -> None:
    """On one accelerator at least; the layers that it has not are named with what is lacking."""
    running = {plan.name for plan in measurement.planned}
    families = {name: vector.family for name, vector in measurement.folder.items()}
    run = {families[name] for name in running if name in families}
    assert run == {families[name] for name in measurement.recorded}
    assert set(measurement.recorded) | set(measurement.refused) == set(measurement.folder)
    for name, vector in measurement.folder.items():
        assert measurement.refused.get(name, []) == lacking_terms(vector.model)
    assert {"afmoe_s0", "dbrx_s0", "hunyuan_v1_moe_s0"} <= running
    on = {(plan.name, plan.on) for plan in measurement.planned}
    assert {(name, f"{design} bf16") for name in EACH_FFN for design in ("fpga", "pim")} <= on
    deep = [plan for plan in measurement.planned if plan.design.deep]
    assert len(deep) == len(PRESETS) and all(plan.design.deep == tuple(DeepBlock) for plan in deep)


def test_layers_that_are_not_run_are_named(agreed: Report) -> None:
    link = rtl_link(Ran([run_of(agreed)], [], {"phimoe_s0": ["gating.selection", "gating.score"]}))
    assert link.tables[1].rows == [("phimoe_s0", "`gating.selection`, `gating.score`")]


def test_equal_hardware_is_built_once(measurement: Measurement) -> None:
    """Names do not matter to it: layers of several families share a build."""
    plans = {(plan.name, plan.on): plan for plan in measurement.planned}
    one, other = (plans[name, "fpga bf16"] for name in ("mixtral_s0", "granitemoe_s0"))
    assert one.hardware == other.hardware
    assert one.hardware != plans["mixtral_s0", "pim bf16"].hardware
    assert one.hardware != plans["dbrx_s0", "fpga bf16"].hardware
    assert len({plan.hardware for plan in measurement.planned}) < len(plans)


def touch(path: Path) -> None:
    if path.exists():
        raise RuntimeError(f"{path.name} is there")
    path.write_text("built")


@pytest.mark.slow
def test_builds_run_in_processes_of_their_own(tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [(name, (tmp_path / name,)) for name in ("a", "b", "c")]
    build_all(touch, jobs, said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert sorted(text.partition(": ")[2] for text in said) == ["a", "b", "c"]
    assert [text.partition(":")[0] for text in said] == [f"built {n} of 3" for n in (1, 2, 3)]
    with pytest.raises(RuntimeError, match=r"^a is there$"):
        build_all(touch, jobs[:1], said.append)


def seen_dram(
    agreed: Report, *, refs: int = 2, due: int = 2, in_time: int = 2, violations: Sequence[str] = ()
) -> Ran:
    """Return a run of which a DRAM saw so much."""
    commands = dict.fromkeys(COMMANDS, 10) | {"REF": refs}
    dram = {
        "commands": commands,
        "refreshes": {"due": due, "in_time": in_time},
        "violations": list(violations),
    }
    return Ran([run_of(agreed), run_of(dataclasses.replace(agreed, dram=dram))], [])


REFRESHES = "refreshes in the very cycle in which they fall due"


def test_dram_rules_are_counted(agreed: Report) -> None:
    link = dram_link(seen_dram(agreed))
    assert failing(link) == []
    assert [claim.measured for claim in link.claims] == ["0 in 62 commands", "2 of 2 due, 2 issued"]
    assert len(link.tables[0].rows) == 1
    broken = dram_link(seen_dram(agreed, violations=["channel 0: tRP: 3 cycles before cycle 9, at least 4"]))
    rules = "DRAM rules broken in 1 near-memory runs, by an independent checker"
    assert failing(broken) == [(rules, "1 in 62 commands")]
    assert broken.tables[0].rows[0][-1].startswith("channel 0: tRP")


@pytest.mark.parametrize(
    ("refs", "due", "in_time"), [(2, 3, 2), (3, 2, 2), (2, 2, 1), (0, 0, 0)], ids=str
)  # skipped, one too many, late, none at all: then nothing is shown
def test_refreshes_that_are_not_in_time_fail(agreed: Report, refs: int, due: int, in_time: int) -> None:
    link = dram_link(seen_dram(agreed, refs=refs, due=due, in_time=in_time))
    assert failing(link) == [(REFRESHES, f"{in_time} of {due} due, {refs} issued")]


@pytest.mark.parametrize("link", ["formats", "int8"])
def test_wrong_numbers_fail(measurement: Measurement, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    """Outputs that are too large are beyond the derived bound of the formats; int8's bound is farther."""
    correct = sim.claims.numbers.layer_bf16
    factor = 1.03 if link == "formats" else 2.0

    def scaled(*arguments, **options):
        result = correct(*arguments, **options)
        return dataclasses.replace(result, output=bf16_encode(bf16_decode(result.output) * factor))

    monkeypatch.setattr(sim.claims.numbers, "layer_bf16", scaled)
    few = Measurement(Path("tests/data"), DEFAULT_ROOT, lambda _text: None)
    few.__dict__["workloads"] = dict(list(measurement.recorded.items())[:3])
    make, form = {
        "formats": (formats_link, "{} against float: largest error of an output over its derived bound"),
        "int8": (int8_link, "{} against float: largest error of a layer's output over its derived bound"),
    }[link]
    formats = [Format.BF16] if link == "formats" else INTEGER_FORMATS
    assert [text for text, _ in failing(make(few))] == [form.format(one) for one in formats]


def test_both_accelerators_have_the_same_numbers() -> None:
    """The pages of numbers are of one design: products are added in bursts of the same length."""
    for number_format in PLAIN_FORMATS:
        first, second = (
            ImageGeometry.of(load_model("mixtral-8x7b"), load_design(name, number_format))
            for name in ("fpga", "pim")
        )
        assert number_format.integer or first.routed.cols == second.routed.cols
        assert first.gate.cols == second.gate.cols


@pytest.mark.parametrize(("other", "rows"), [(112, 8), (0, 7)])
def test_a_channel_that_waits_or_is_too_small_fails(
    measurement: Measurement, monkeypatch: pytest.MonkeyPatch, other: int, rows: int
) -> None:
    slots = dict.fromkeys(SLOTS, 0) | {"mac": 1000, "refresh": 50, "row": 200, "results": other}
    use = ChannelUse(sum(slots.values()), slots, rows)
    monkeypatch.setattr(sim.claims.throughput, "channel_use", lambda *_: use)
    ((text, measured),) = failing(throughput_link(measurement))
    assert text.startswith("MAC slots used by a channel of banks")
    assert measured == f"at least {1000 / (1000 + other):.1%}"


def test_needed_interval_is_the_largest_of_four() -> None:
    design = load_design("fpga")
    model = load_model("deepseek-v3")
    assert needed_interval(GateGeometry.of(model, design), design) == 256 * 7168 // 64
    tiny = dataclasses.replace(model.gating, num_experts=8, num_groups=1, topk_groups=1, top_k=8)
    small = dataclasses.replace(model, gating=tiny, d_model=16)
    assert needed_interval(GateGeometry.of(small, design), design) == 8
    shared = dataclasses.replace(small, shared_expert_gate=True)
    assert needed_interval(GateGeometry.of(shared, design), design) == 8
    wide = dataclasses.replace(shared, d_model=64)
    assert needed_interval(GateGeometry.of(wide, design), design) == 9
    long = dataclasses.replace(small, gating=dataclasses.replace(tiny, num_experts=2, top_k=1), d_model=256)
    assert needed_interval(GateGeometry.of(long, design), design) == 256 // 16


# The command.


def link_of(*, ok: bool) -> Link:
    claim = Claim(text="bits", measured="1 of 2", bound="0", command="make x", ok=ok, headline=True)
    return Link(name="first", title="a against b", how="By looking.", claims=[claim], tables=[])


def test_page_of_a_link() -> None:
    link = dataclasses.replace(link_of(ok=False), tables=[Table(("run", "bits"), [("a", "1")])])
    assert page([link]) == HEADER + (
        "| link | claim | measured | bound | holds | reproduce with |\n"
        "|---|---|---|---|---|---|\n"
        "| first | bits | 1 of 2 | 0 | **NO** | `make x` |\n"
        "\n"
        "## first: a against b\n\nBy looking.\n\n| run | bits |\n|---|---|\n| a | 1 |\n"
    )


@pytest.mark.parametrize("ok", [True, False])
def test_status_page_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ok: bool
) -> None:
    calls = []

    def unwanted(_measurement: Measurement) -> Link:
        calls.append("verilog")
        return link_of(ok=True)

    links = (Producer("first", lambda _: link_of(ok=ok)), Producer("second", unwanted, needs_verilog=True))
    monkeypatch.setattr(sim.claims.links, "LINKS", links)
    status = 0 if ok else 1
    assert main(["claims", "--no-verilog", "--json"]) == status
    assert json.loads(capsys.readouterr().out) == {
        "failed": status,
        "claims": [
            {
                "link": "first",
                "text": "bits",
                "measured": "1 of 2",
                "bound": "0",
                "command": "make x",
                "ok": ok,
                "headline": True,
            }
        ],
        "page": None,
    }
    assert main(["claims", "--only", "first"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == f"{1 - status} hold, {status} do not"
    assert calls == []
    out = tmp_path / "page.md"
    assert main(["claims", "--out", str(out)]) == status
    links = [link_of(ok=ok), link_of(ok=True)]
    assert out.read_text() == page(links)
    assert calls == ["verilog"]
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- claims -->\nold\n<!-- /claims -->\nb\n")
    assert main(["claims", "--out", str(out), "--headlines", str(readme)]) == status
    table = "\n".join(headlines(links))
    assert readme.read_text() == f"a\n<!-- claims -->\n{table}\n<!-- /claims -->\nb\n"
    assert f"| bits | 1 of 2{'' if ok else ' (**NO**)'} | 0 |\n" in table


def test_one_link_is_measured_anew_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On the page, in any place of it, and in README; what lacks the link is refused and stays."""

    def links_of(numbers: dict[str, int]) -> list[Link]:
        [claim] = link_of(ok=True).claims
        return [
            dataclasses.replace(
                link_of(ok=True),
                name=name,
                claims=[dataclasses.replace(claim, text=f"bits of {name}", measured=f"{number}")],
                tables=[Table(("run", "bits"), [(name, f"{number}")])],
            )
            for name, number in numbers.items()
        ]

    before = {"first": 1, "second": 2, "third": 3}
    old = links_of(before)
    out, readme = tmp_path / "page.md", tmp_path / "README.md"
    for name in before:
        new = links_of({**before, name: 7})
        producers = tuple(Producer(link.name, lambda _, link=link: link) for link in new)
        monkeypatch.setattr(sim.claims.links, "LINKS", producers)
        out.write_text(page(old))
        table = "\n".join(headlines(old))
        readme.write_text(f"a\n<!-- claims -->\n{table}\n<!-- /claims -->\nb\n")
        assert main(["claims", "--only", name, "--out", str(out), "--headlines", str(readme)]) == 0
        assert out.read_text() == page(new)
        table = "\n".join(headlines(new))
        assert readme.read_text() == f"a\n<!-- claims -->\n{table}\n<!-- /claims -->\nb\n"
    capsys.readouterr()
    text = page(old[:2])
    out.write_text(text)
    assert main(["claims", "--only", "third", "--out", str(out)]) == 2
    # Before anything is measured.
    assert capsys.readouterr().err == "expertbank: only: must be on the page: 'third'\n"
    assert out.read_text() == text
    # README's table is another one's: neither file is written.
    both = readme.read_text().replace("| bits of first |", "| bits of none |")
    readme.write_text(both)
    assert main(["claims", "--only", "first", "--out", str(out), "--headlines", str(readme)]) == 2
    message = "expertbank: headlines: must have the rows of 'first' that its page has"
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert (out.read_text(), readme.read_text()) == (text, both)


MISTAKES = {
    "unknown link": (
        ["--only", "colour"],
        (
            "only: must be one of float, formats, int8, families, rtl, blocks, layer, dram, memory,"
            " programs, throughput, benches, not 'colour'"
        ),
    ),
    "page without Verilog": (
        ["--out", "x.md", "--no-verilog"],
        "out: writes what Verilog says, too; leave out --no-verilog",
    ),
    "part of no page": (["--out", "x.md", "--only", "float"], "x.md: no such file"),
    "no folder": (
        ["--out", "nowhere/at/all/x.md"],
        "nowhere/at/all/x.md: out: is in a folder that does not exist",
    ),
    "headlines alone": (["--headlines", "README.md"], "headlines: needs --out"),
    "no marks": (
        ["--out", "x.md", "--headlines", "LICENSE"],
        "LICENSE: must have the marks <!-- claims --> and <!-- /claims --> once, in order",
    ),
    "no file with marks": (["--out", "x.md", "--headlines", "nowhere"], "nowhere: no such file"),
    "no vectors": (["--only", "formats", "--vectors", "rtl"], "rtl: holds no .npz file"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[claims]")]
    assert lines == [f"expertbank: {message}"]
