"""What a run leaves in files, the page, the timeline, the table, and what it gives to Python."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sim import accelerator, simulate
from sim.accelerator import Report
from sim.activity import ROUTER, Jobs
from sim.cli import main
from sim.pim_layer import bank_reads
from sim.results.charts import BINS, LEVELS, error_bars, shares, strip
from sim.results.comparison import Run, compared, read_runs
from sim.results.page import CYCLES_CLAIM, claim_rows, page_text, trust_bars
from sim.results.roofline import Roofline
from sim.results.rows import COLUMNS, csv_text
from sim.results.timeline import FIRST_UNIT, timeline_text
from sim.streams import common, expanded, size, spans_of, train_spans, union, without_gaps
from spec.banks import BankGeometry
from spec.design import BankMode, DesignSpec, RouterPlace
from spec.errors import InputError
from spec.load import load_design, load_model

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
VECTOR = str(DATA / "mixtral_s0.npz")
TINY, TINY_PIM = (Path(__file__).parent / name for name in ("tiny.toml", "tiny_pim.toml"))
SIM = ["sim", "--model", "deepseek-v3", "--scale", "64", "--tokens", "24", "--engine", "model"]
BOTH = ["--design", "fpga", "--design", "pim"]
VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"script", "img", "link", "iframe", "object", "embed", "image", "use", "base", "audio", "video"}
SECTIONS = ("asked", "headlines", "roofline", "time", "maps", "timeline", "energy", "trust")


class Page(HTMLParser):
    """A page: its text, its tags, and whatever is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in LOADING:
            self.wrong.append(f"<{tag}> loads something")
        for name, value in attrs:
            if name.split(":")[-1] in ("src", "href", "srcset", "action", "data") or name.startswith("on"):
                self.wrong.append(f"{name}={value}")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "style":
            self.wrong += re.findall(r"url\(|@import|http", data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_page(text: str) -> Page:
    """Parse a page; it is whole and needs nothing beside itself."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.wrong == []
    return page


@pytest.fixture(scope="module")
def runs() -> list[tuple[Report, object]]:
    return [
        (simulate("deepseek-v3", design, scale=64, tokens=24, routing="zipf:1", seed=3), load_design(design))
        for design in ("fpga", "pim")
    ]


def test_the_page_holds_the_run(tmp_path, capsys) -> None:
    file = tmp_path / "out.html"
    assert main([*SIM, *BOTH, "--report", str(file), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["designs"]
    page = check_page(file.read_text())
    assert tuple(id for id in page.ids if id in SECTIONS) == SECTIONS
    assert "http" not in file.read_text()
    for result in results:
        assert f"{result['cycles']['model']:,}" in page.text
        for name, pair in result["blocks"].items():
            assert re.search(rf"{name}: |{name}", page.text)
            assert f"{pair['model']:,}" in page.text
        for component in result["energy"]["components_j"]:
            assert component in page.text
        assert f"{result['utilisation']['mac']:.1%}" in page.text
    for option in ("--model deepseek-v3", "--design fpga, pim", "--scale 64", "--tokens 24"):
        assert option in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]


def test_tokens_and_commands_are_in_the_maps(runs) -> None:
    report, _ = runs[1]
    page = check_page(page_text(runs, {}))
    for expert, tokens in enumerate(report.activity.tokens[0][:-1].tolist()):
        assert f"expert {expert}: {tokens} tokens" in page.text
    for channel, count in enumerate(report.activity.commands["MAC"].tolist()):
        assert f"channel {channel}: {count:,} MAC" in page.text
    for channel, reads in enumerate(report.activity.bank_reads.tolist()):
        for bank, count in enumerate(reads):
            assert (
                f"channel {channel}, bank group {bank % 4}, bank {bank // 4}: {count:,} bursts" in page.text
            )


def check_drawings(text: str) -> int:
    """Rectangles lie in their picture, coordinates are numbers; return how many there are."""
    view = [0.0, 0.0]
    count = 0
    for tag, attributes in Page(text).tags:
        if tag == "svg":
            view = [float(number) for number in str(attributes["viewbox"]).split()[2:]]
        numbers = {
            name: float(str(attributes[name])) for name in ("x", "y", "cx", "cy") if name in attributes
        }
        assert all(number >= 0 for number in numbers.values()), attributes
        if tag == "rect":
            count += 1
            width, height = float(str(attributes["width"])), float(str(attributes["height"]))
            assert 0 <= width <= view[0] * 1.001 - numbers["x"], attributes
            assert 0 <= height <= view[1] * 1.001 - numbers["y"], attributes
        elif tag == "circle":
            assert numbers["cx"] <= view[0] and numbers["cy"] <= view[1]
        elif tag == "polyline":
            points = [tuple(map(float, point.split(","))) for point in str(attributes["points"]).split()]
            assert all(0 <= x <= view[0] and 0 <= y <= view[1] for x, y in points)
    return count


def test_drawings_stay_in_their_pictures(runs) -> None:
    text = page_text(runs, {})
    assert check_drawings(text) > 2 * (256 + 2 * 6)
    planted = {
        'width="1" height="1"': 'width="1000" height="1"',
        'x="0" y="0"': 'x="-1" y="0"',
        'cx="': 'cx="9999',
        'points="': 'points="nan,0 ',
    }
    for whole, broken in planted.items():
        assert whole in text
        with pytest.raises(AssertionError):
            check_drawings(text.replace(whole, broken, 1))


def test_comparison_of_runs(tmp_path, capsys) -> None:
    """An earlier run is the one that ratios are over; of blocks it has others, and no ratio."""
    earlier, file = tmp_path / "earlier.json", tmp_path / "out.html"
    assert main([*SIM, "--design", "fpga", "--json"]) == 0
    earlier.write_text(capsys.readouterr().out)
    before = json.loads(earlier.read_text())
    arguments = [*SIM, "--design", "pim", "--report", str(file), "--compare", str(earlier), "--json"]
    assert main(arguments) == 0
    now = json.loads(capsys.readouterr().out)
    page = check_page(file.read_text())
    ratio = now["cycles"]["model"] / before["cycles"]["model"]
    assert f"{before['cycles']['model']:,} {now['cycles']['model']:,} (x {ratio:.3g})" in page.text
    assert f"cycles of expert {before['blocks']['expert']['model']:,} - cycles of pim - " in page.text
    assert "earlier: fpga (bf16): deepseek-v3, 24 tokens, routing uniform" in page.text
    # Several runs of an earlier file, and a single run that has none beside it.
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"designs": [before, now]}))
    assert [run.figures["cycles, model"] for run in read_runs(both)] == [
        run["cycles"]["model"] for run in (before, now)
    ]
    assert main([*SIM, "--report", str(file)]) == 0
    assert 'id="comparison"' not in file.read_text()
    assert compared([Run("a", {})]) == []


def test_error_bars_are_of_what_is_known(runs) -> None:
    """Verilog's own cycles are exact; the model's may be off by what the claims say, energy by its table."""
    report, _ = runs[0]
    low, high = (bound / report.energy.total - 1 for bound in (report.energy.low, report.energy.high))
    modelled, joules = trust_bars([report], [["", CYCLES_CLAIM, "0.25%", "1%"]])
    assert (modelled.low, modelled.high, joules.low, joules.high) == (-0.01, 0.01, low, high)
    assert modelled.text.startswith("model against Verilog: 0.25% at most over all measured runs;")
    assert "in no run here" in trust_bars([report], [])[0].text
    seen = replace(report, cycles={"model": 101, "rtl": 100})
    assert trust_bars([seen], [])[0].text.endswith("the model's differ by +1.00%")
    assert CYCLES_CLAIM in {row[1] for row in claim_rows(ROOT / "docs" / "claims.md")}
    bars = error_bars([modelled, joules])
    assert all(0 <= bars.place(end) <= 100 for end in (low, high, 0.01))
    assert bars.place(0.0) == 50


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"


def test_hostile_names_are_text(runs) -> None:
    report, design = runs[0]
    hostile = replace(
        report, model=HOSTILE, design=HOSTILE, notes=[HOSTILE], divergence=HOSTILE, mismatches=1
    )
    page = check_page(page_text([(hostile, design)], {"--model": HOSTILE}))
    assert page.text.count(HOSTILE) >= 5


def test_pages_that_load_something_are_found(runs) -> None:
    text = page_text(runs, {})
    planted = {
        '<script src="http://x">': ["<script> loads something", "src=http://x"],
        '<p style="x" onclick="y">': ["onclick=y"],
        "<b>": ["</body> closes nothing", "</html> closes nothing"],
        "<style>@import 'x'</style>": ["@import"],
    }
    for added, expected in planted.items():
        wrong = Page(text.replace("</h1>", f"</h1>{added}", 1)).wrong
        assert [what for what in expected if what not in wrong] == []


def test_runs_without_activity_have_a_page(tmp_path) -> None:
    """An engine alone: no timeline, no maps; the rest is there."""
    file = tmp_path / "out.html"
    arguments = ["--design", "pim", "--experts", "2", "--report", str(file)]
    assert main([*SIM, *arguments]) == 0
    page = check_page(file.read_text())
    assert "Not recorded for this run." in page.text


def test_a_step_of_all_layers(tmp_path) -> None:
    """The map has the layers down, the timeline one run behind the other."""
    report = simulate("mixtral-8x7b", scale=64, tokens=5, phase="decode")
    activity = report.activity
    assert activity.tokens.shape == (32, 8)
    assert (activity.tokens.sum(axis=1) == 10).all()
    check_activity(report)
    assert np.array_equal(np.unique(activity.jobs.layer), np.arange(32))
    page = check_page(page_text([(report, load_design("fpga"))], {}))
    assert f"layer 31, expert 7: {activity.tokens[31, 7]} tokens" in page.text


def check_activity(report: Report) -> None:
    """Busy, stalled and idle cycles are the run's; jobs are when engines hold work; all lies in the run."""
    activity = report.activity
    assert activity.cycles == report.cycles[activity.source]
    whole = np.array([[activity.start, activity.start + activity.cycles]])
    for name, block in activity.blocks.items():
        assert block.busy == report.blocks[name][activity.source]
        assert common(block.spans, whole) == size(block.spans)
        assert min(block.busy, block.weights, block.gaps, block.blocked, activity.idle(name)) >= 0
        assert block.gaps == 0 or activity.cycles >= 1 << 16
        assert len(block.spans) <= 1 << 16
        assert (block.spans[1:, 0] - block.spans[:-1, 1] > activity.cycles >> 16).all()
    jobs = activity.jobs
    for unit, spans in enumerate(activity.units):
        mine = jobs.unit == unit
        assert np.array_equal(union(jobs.start[mine], jobs.end[mine]), spans)
        assert (jobs.end - jobs.start)[mine].sum() == size(spans)
        assert common(spans, whole) == size(spans)
    routed = activity.tokens[:, : report.experts].sum()
    assert routed + report.dropped == len(activity.tokens) * report.tokens * report.top_k
    of_experts = jobs.expert != ROUTER
    assert jobs.tokens[of_experts].sum() == activity.tokens.sum()
    assert (activity.bank_reads.size > 0) == ("pim" in report.blocks)


def check_banks(report: Report, design: DesignSpec) -> None:
    """A MAC command reads a burst from a bank, or from each of a side; and no bank is read otherwise."""
    reads, pim = report.activity.bank_reads, design.pim
    assert reads.shape == (pim.channels, pim.dram.num_banks)
    together = 1 if pim.bank_mode is BankMode.SINGLE_BANK else pim.units
    assert np.array_equal(reads.sum(axis=1), report.activity.commands["MAC"] * together)
    sides = reads.reshape(pim.channels, pim.banks_per_unit, pim.units)
    assert (sides == sides[:, :, :1]).all()


@pytest.mark.parametrize("mode", BankMode)
@pytest.mark.parametrize("per_unit", [1, 2, 4])
@pytest.mark.parametrize("router", RouterPlace)
def test_bursts_read_from_banks(mode, per_unit, router) -> None:
    tiny = load_design(str(TINY_PIM))
    pim = replace(tiny.pim, channels=2, act_lanes=1, banks_per_unit=per_unit, bank_mode=mode, router=router)
    design = replace(tiny, pim=pim)
    report = simulate(VECTOR, design)
    check_banks(report, design)
    wrong = replace(report.activity, bank_reads=report.activity.bank_reads + 1)
    with pytest.raises(AssertionError):
        check_banks(replace(report, activity=wrong), design)


def test_sides_of_banks_are_read_in_turn(runs) -> None:
    """Against the tiles one by one: tile t is in visit t // tiles of a visit, visits take turns."""
    _, design = runs[1]
    for sides, tokens in ((2, 3), (4, 9)):
        pim = replace(design.pim, banks_per_unit=sides)
        banks = BankGeometry.unplaced(load_model("deepseek-v3").scaled(64), replace(design, pim=pim))
        job = Jobs(*(np.array([value]) for value in (0, 0, 3, tokens, 0, 1)))
        expected = [0] * sides
        for tile in range(banks.image.routed.num_tiles):
            expected[tile // banks.bursts_per_row % sides] += -(-tokens // pim.tokens_per_burst)
        assert bank_reads(banks, [job])[0, :: pim.units].tolist() == expected


def test_activity_adds_up(runs) -> None:
    for report, _ in runs:
        check_activity(report)
        assert report.activity.source == "model"


def test_activity_that_does_not_add_up_is_found(runs) -> None:
    report, _ = runs[0]
    activity = report.activity
    expert = activity.blocks["expert"]
    for broken in (
        replace(activity, cycles=activity.cycles - 1),
        replace(activity, start=activity.start + 100),
        replace(activity, blocks=dict(activity.blocks) | {"expert": replace(expert, weights=0)}),
        replace(activity, jobs=replace(activity.jobs, end=activity.jobs.end + 1)),
        replace(activity, tokens=activity.tokens + 1),
    ):
        with pytest.raises(AssertionError):
            check_activity(replace(report, activity=broken))


def test_with_the_router_in_the_banks(tmp_path) -> None:
    """Its jobs are the channel's, too."""
    design = load_design(str(TINY_PIM))
    banked = replace(design, pim=replace(design.pim, router=type(design.pim.router).BANKS, channels=2))
    report = simulate(VECTOR, banked)
    check_activity(report)
    assert (report.activity.jobs.expert == ROUTER).any()
    assert "expert router" in page_text([(report, banked)], {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "design", [TINY, pytest.param(TINY_PIM, marks=pytest.mark.long)], ids=["fpga", "pim"]
)
def test_activity_of_the_verilog_is_that_of_the_model(monkeypatch, design) -> None:
    """What the probes show is span for span what the model says."""
    real = accelerator.build_layer
    # The layer's other tests have built it with waveforms already.
    monkeypatch.setattr(accelerator, "build_layer", lambda *shape, trace: real(*shape, trace=True))
    vector = str(DATA / "deepseek_v3_s0.npz")
    seen, modelled = (simulate(vector, design, engine=engine) for engine in ("both", "model"))
    assert seen.agreed
    assert (seen.activity.source, modelled.activity.source) == ("rtl", "model")
    check_activity(seen)
    check_activity(modelled)
    for name, block in seen.activity.blocks.items():
        assert np.array_equal(block.spans, modelled.activity.blocks[name].spans), name
        assert (block.weights, block.blocked) == (
            modelled.activity.blocks[name].weights,
            modelled.activity.blocks[name].blocked,
        )
    for mine, its in zip(
        vars(seen.activity.jobs).values(), vars(modelled.activity.jobs).values(), strict=True
    ):
        assert np.array_equal(mine, its)
    if design is TINY_PIM:
        # The Verilog's commands, on a design of one bank a unit.
        check_banks(seen, load_design(str(design)))
    for name in ("ACT", "MAC", "WR", "RD") if design is TINY_PIM else ():
        assert np.array_equal(seen.activity.commands[name], modelled.activity.commands[name]), name


def test_jobs_of_a_unit_share_its_time() -> None:
    """In whatever order jobs come and end, their times do not overlap and are when any of them is there."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        number = int(rng.integers(0, 8))
        given = rng.integers(0, 40, number)
        done = given + rng.integers(1, 20, number)
        jobs = Jobs.of_unit(0, np.arange(number), np.ones(number, dtype=np.int64), given, done)
        assert (jobs.start <= jobs.end).all(), seed
        assert (jobs.start[1:] >= jobs.end[:-1]).all(), seed
        assert np.array_equal(union(jobs.start, jobs.end), union(given + 1, done + 1)), seed


@pytest.mark.parametrize(
    ("model", "design", "tokens"), [("deepseek-v3", "fpga", 64), ("olmoe-1b-7b", "pim", 64)]
)
def test_gaps_of_long_runs_are_closed(model, design, tokens) -> None:
    """Few spans are kept of a long run; no cycle is lost, and a strip's shades are as dark as without."""
    report = simulate(model, design, tokens=tokens)
    check_activity(report)
    activity = report.activity
    combine = activity.blocks["combine"]
    assert combine.gaps > 0
    text = timeline_text([(report, load_design(design))])
    assert f'"combine, gaps of up to {activity.cycles >> 16} cycles closed"' in text
    check_timeline(text, [report])
    spans = np.array([[0, BINS]])
    assert [cell.level for cell in strip("", spans, 0, BINS).cells] == [LEVELS]
    assert [cell.level for cell in strip("", spans, 0, BINS, gaps=BINS * 7 // 10).cells] == [3]


def test_spans_of_trains() -> None:
    """Against cycle by cycle: all cycles, and what is closed."""
    train = np.array([[7, 2, 5, 4]])
    assert [len(train_spans(train, closed)) for closed in (2, 3)] == [4, 1]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        length = rng.integers(1, 5, 6)
        period, count = length + rng.integers(0, 4, 6), rng.integers(0, 5, 6)
        start = np.cumsum(period * count + rng.integers(0, 9, 6)) - period * count
        trains = np.stack([start, length, period, count], axis=1)
        cycles = np.unique(expanded(trains))
        assert np.array_equal(train_spans(trains), spans_of(cycles)), seed
        closed = int(rng.integers(0, 4))
        filled = without_gaps(train_spans(trains, closed), closed)
        assert np.array_equal(filled, without_gaps(spans_of(cycles), closed)), seed
        assert (filled[1:, 0] - filled[:-1, 1] > closed).all(), seed
        assert common(filled, spans_of(cycles)) == len(cycles), seed


def test_shares_of_a_strip() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        cycles = int(rng.integers(1, 4)) * BINS
        busy = rng.random(cycles) < 0.3
        expected = busy.reshape(BINS, -1).mean(axis=1)
        found = shares(spans_of(np.flatnonzero(busy) + 7), 7, cycles)
        assert np.allclose(found, expected, atol=1e-12), seed


def check_timeline(text: str, reports: list[Report]) -> None:
    """Spans lie within their run and sum to busy cycles, those of a thread do not overlap."""
    events = json.loads(text)["traceEvents"]
    for process, report in enumerate(reports, 1):
        activity = report.activity
        mine = [event for event in events if event["pid"] == process and event["ph"] == "X"]
        threads: dict[int, list[tuple[int, int]]] = {}
        for event in mine:
            start, cycles = event["args"]["start_cycle"], event["args"]["cycles"]
            assert start >= 0 and start + cycles <= activity.cycles
            second = activity.cycles / (report.seconds * 1e6)
            assert event["ts"] * second == pytest.approx(start)
            assert event["dur"] * second == pytest.approx(cycles)
            threads.setdefault(event["tid"], []).append((start, start + cycles))
        for thread, (name, block) in enumerate(activity.blocks.items(), 1):
            busy = sum(end - start for start, end in threads.pop(thread))
            assert busy - block.weights - block.gaps == report.blocks[name][activity.source]
        for unit, spans in enumerate(activity.units):
            of_unit = sorted(threads.pop(FIRST_UNIT + unit))
            assert sum(end - start for start, end in of_unit) == size(spans)
            assert all(end <= start for (_, end), (start, _) in pairwise(of_unit))
        assert threads == {}


def test_timeline(tmp_path, capsys, runs) -> None:
    check_timeline(timeline_text(runs), [report for report, _ in runs])
    file = tmp_path / "out.json"
    arguments = ["--routing", "zipf:1", "--seed", "3", "--timeline", str(file)]
    assert main([*SIM, *BOTH, *arguments]) == 0
    assert file.read_text() == timeline_text(runs)
    names = {
        event["args"]["name"] for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "M"
    }
    assert {"deepseek-v3 on pim (model)", "gating", "channel 1, jobs", "engine, jobs"} <= names


def test_a_timeline_starts_with_the_run(runs) -> None:
    """Whatever cycle that is."""
    report, design = runs[1]
    activity, later = report.activity, 50
    blocks = {name: replace(block, spans=block.spans + later) for name, block in activity.blocks.items()}
    moved = replace(
        activity,
        start=activity.start + later,
        blocks=blocks,
        units=[spans + later for spans in activity.units],
        jobs=activity.jobs.later(later, 0),
    )
    shifted = [(replace(report, activity=moved), design)]
    assert timeline_text(shifted) == timeline_text(runs[1:])
    assert page_text(shifted, {}) == page_text(runs[1:], {})


def test_a_timeline_that_is_wrong_is_found(runs) -> None:
    reports = [report for report, _ in runs]
    for change in ("start_cycle", "cycles"):
        whole = json.loads(timeline_text(runs))
        event = next(event for event in whole["traceEvents"] if event.get("cat") == "job")
        event["args"][change] += reports[0].activity.cycles
        with pytest.raises(AssertionError):
            check_timeline(json.dumps(whole), reports)


def test_a_timeline_has_an_end(monkeypatch, runs) -> None:
    monkeypatch.setattr("sim.results.timeline.MAX_SPANS", 10)
    spans = sum(
        sum(len(block.spans) for block in report.activity.blocks.values()) + len(report.activity.jobs.unit)
        for report, _ in runs
    )
    with pytest.raises(InputError) as caught:
        timeline_text(runs)
    expected = f"timeline: would have {spans} spans, more than 10; take fewer tokens or a higher --scale"
    assert str(caught.value) == expected


def test_a_file_that_cannot_be_made_leaves_none(tmp_path, monkeypatch, capsys) -> None:
    """All texts are made before the first is written."""
    monkeypatch.setattr("sim.results.timeline.MAX_SPANS", 10)
    files = [part for name in ("report", "timeline", "csv") for part in (f"--{name}", str(tmp_path / name))]
    assert main([*SIM, *files]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    rule = r"timeline: would have \d+ spans, more than 10; take fewer tokens or a higher --scale"
    assert re.fullmatch(f"expertbank: {rule}\n", err)
    assert list(tmp_path.iterdir()) == []


def test_table(tmp_path, runs) -> None:
    """Read back, every number is what it was."""
    file = tmp_path / "out.csv"
    assert main([*SIM, *BOTH, "--routing", "zipf:1", "--seed", "3", "--csv", str(file)]) == 0
    assert file.read_text() == csv_text([report for report, _ in runs])
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert tuple(rows[0]) == COLUMNS
    for report, _ in runs:
        value = {
            (row["section"], row["layer"], row["name"], row["quantity"]): float(row["value"])
            for row in rows
            if row["design"] == report.design
        }
        assert value["run", "", "layer", "model"] == report.cycles["model"]
        assert value["run", "", "layer", "time"] == report.seconds
        for name, pair in report.blocks.items():
            parts = ("model", "waits for weights", "held up", "idle")
            assert value["block", "", name, "model"] == pair["model"]
            assert sum(value["block", "", name, part] for part in parts) == report.cycles["model"]
        experts = [value["expert", "0", str(expert), "load"] for expert in range(report.experts)]
        assert experts == report.activity.tokens[0, : report.experts].tolist()
        assert value["expert", "0", "shared", "load"] == report.tokens
        for channel, reads in enumerate(report.activity.bank_reads.tolist()):
            of = [value["bank", "", f"{channel}.{bank}", "reads by MACs"] for bank in range(len(reads))]
            assert of == reads
        energies = {name: value["energy", "", name, "energy"] for name in report.energy.components}
        assert energies == report.energy.components
        assert value["energy", "", "total", "energy"] == report.energy.total


def test_hostile_names_in_the_table(runs) -> None:
    report, _ = runs[0]
    name = 'a,"b"\n=c'
    rows = list(csv.DictReader(csv_text([replace(report, model=name)]).splitlines(keepends=True)))
    assert {row["model"] for row in rows} == {name}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--report", "{tmp}/no/x.html"], "{tmp}/no/x.html: report: is in a folder that does not exist"),
        (["--timeline", "{tmp}"], "{tmp}: timeline: is a folder"),
        (["--csv", "{tmp}/no/x.csv"], "{tmp}/no/x.csv: csv: is in a folder that does not exist"),
        (
            ["--report", "{tmp}/x", "--csv", "{tmp}/./x"],
            "csv: must be another file than that of --report, not {tmp}/x",
        ),
        (["--timeline", "{tmp}/x", "--experts", "1"], "timeline: cannot be combined with --experts"),
        (
            ["--timeline", "{tmp}/x", "--design", "pim", "--engine", "rtl"],
            "timeline: needs --engine model or both for a pim design",
        ),
        (["--compare", "{tmp}/y"], "compare: needs --report, which shows it"),
        (
            ["--report", "{tmp}/x", "--compare", "{tmp}/./x"],
            "report: must be another file than that of --compare, not {tmp}/x",
        ),
        (
            ["--report", "{tmp}/x", "--compare", "{tmp}/no.json"],
            "{tmp}/no.json: compare: cannot be read: No such file or directory",
        ),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, arguments, line) -> None:
    """Nothing runs and nothing is left, also of the file that could have been written."""
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main([*SIM, "--csv", str(tmp_path / "y"), *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"expertbank: {line.format(tmp=tmp_path)}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be what 'sim --json' printed: one JSON object"),
        ("[]", "must be what 'sim --json' printed: one JSON object"),
        ("3", "must be what 'sim --json' printed: one JSON object"),
        ('{"designs": [1]}', "must be what 'sim --json' printed: one JSON object"),
        ('{"designs": []}', "holds no run"),
        ("\x00", "must be what 'sim --json' printed: one JSON object"),
        ("[" * 100_000, "must be what 'sim --json' printed: one JSON object"),
        ("{seconds}", "must be what 'sim --json' printed: one JSON object"),
    ],
)
def test_bad_earlier_runs_are_one_line(tmp_path, capsys, text, rule) -> None:
    file = tmp_path / "earlier.json"
    if text == "{seconds}":
        assert main([*SIM, "--json"]) == 0
        run = json.loads(capsys.readouterr().out)
        for value in ("1", -1.0, float("nan"), True, 1e400, [1]):
            file.write_text(json.dumps(run | {"seconds": value}))
            with pytest.raises(InputError) as caught:
                read_runs(file)
            assert str(caught.value) == f"{file}: compare: {rule}"
        text = json.dumps(run | {"blocks": None})
    file.write_text(text)
    assert main([*SIM, "--report", str(tmp_path / "x.html"), "--compare", str(file)]) == 2
    assert capsys.readouterr() == ("", f"expertbank: {file}: compare: {rule}\n")
    assert list(tmp_path.iterdir()) == [file]


def test_the_report_is_the_same_with_files(tmp_path, capsys) -> None:
    """What is recorded changes no figure, and is no part of the JSON."""
    results = []
    for more in ([], ["--report", str(tmp_path / "x.html")]):
        assert main([*SIM, "--design", "pim", *more, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
        assert results[-1].pop("wall_s") >= 0
    assert results[0] == results[1]
    assert "activity" not in results[0]


@pytest.mark.parametrize(("name", "bits"), [("fpga", "memory_bit"), ("pim", "dram_cell_bit")])
def test_roofline(name, bits) -> None:
    """MACs and bytes are those that cost energy: in int8 all such MACs are the experts'."""
    design = load_design(name, "int8")
    report = simulate("mixtral-8x7b", design, scale=64, tokens=24)
    roofline = Roofline.of(report, design)
    counts = report.energy.counts
    assert roofline.macs * report.seconds == pytest.approx(counts["mac_int8"])
    assert roofline.bytes * report.seconds == pytest.approx(counts[bits] / 8)
    assert roofline.bound_share <= 1
    assert roofline.macs <= min(roofline.peak_macs, roofline.peak_bytes * roofline.intensity) * (1 + 1e-9)


def test_claims_are_those_of_their_page(tmp_path, runs) -> None:
    rows = claim_rows(ROOT / "docs" / "claims.md")
    text = (ROOT / "docs" / "claims.md").read_text()
    assert len(rows) > 20
    assert all(f"| {' | '.join(row)} |" in text for row in rows)
    page = check_page(page_text(runs, {}))
    assert all(" ".join(row[1].split()) in page.text for row in rows)
    assert claim_rows(tmp_path / "none.md") == []
    absent = check_page(page_text(runs, {}, claims=tmp_path / "none.md"))
    assert "docs/claims.md of the repository" in absent.text


def test_example_of_the_readme(capsys) -> None:
    """It runs, and prints what the page says that it prints."""
    (code, printed) = re.search(
        r"```python\n(from sim import simulate\n.*?)```\n\n```\n(.*?)```",
        (ROOT / "README.md").read_text(),
        re.S,
    ).groups()
    exec(code, {})
    assert capsys.readouterr().out == printed


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, sim; print({'numpy', 'numba', 'click', 'jinja2', 'sim.api'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
    import sim

    with pytest.raises(AttributeError, match=r"^module 'sim' has no attribute 'simulated'$"):
        _ = sim.simulated


def test_pages_are_only_imported_where_one_is_written() -> None:
    code = (
        "import sys\nfrom sim.cli import main\n"
        f"main({[*SIM, '--json']!r})\n"
        "print({'jinja2', 'matplotlib', 'amaranth', 'sim.results'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()"
