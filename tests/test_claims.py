"""The claims page: up to date, honest about what fails, and README repeats nothing that it does not say."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import sim.claims.links
from golden.formats import bf16_decode, bf16_encode
from sim.accelerator import Report, layer_job, run_model
from sim.claims.links import LINKS, Producer, blocks_link, formats_link, layer_link, needed_interval, rtl_link
from sim.claims.measurement import Measurement, Run
from sim.claims.page import HEADER, Claim, Link, Table, headlines, page, section, summary_rows
from sim.cli import main
from sim.layer import layer_cycles
from sim.marked import marked
from sim.rtlsim import DEFAULT_ROOT
from spec.geometry import GateGeometry
from spec.load import load_design, load_model

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
    written = {row[0]: row[column] for row in rows[2:]}
    now = {}
    for name, _, work in measurement.workloads:
        shape = layer_job(work, measurement.design)[0]
        arrivals = np.zeros(len(work.tokens), dtype=np.int64)
        now[name] = f"{layer_cycles(shape, arrivals).cycles:,}"
    assert written == now, STALE


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


def failing(link: Link) -> list[tuple[str, str]]:
    return [(claim.text, claim.measured) for claim in link.claims if not claim.ok]


def test_agreeing_runs_hold(agreed: Report) -> None:
    ran = Ran([run_of(agreed)], [])
    for make in (rtl_link, blocks_link, layer_link):
        assert failing(make(ran)) == []
    assert run_of(agreed).bits == 8 * (64 * 16 + 2 * 25)


@pytest.mark.parametrize(("mismatches", "measured"), [(3, "3 of 8,592"), (None, "8,592 of 8,592")])
def test_bits_that_differ_or_were_not_compared_fail(
    agreed: Report, mismatches: int | None, measured: str
) -> None:
    ran = Ran([run_of(dataclasses.replace(agreed, mismatches=mismatches))], [])
    assert failing(rtl_link(ran)) == [("Verilog against bf16 golden, 1 runs: bits that differ", measured)]


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
    assert failing(layer_link(ran)) == [
        ("largest difference of a layer's cycles, Verilog against model", measured)
    ]


def test_wrong_numbers_fail(measurement: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs 3 % too large are beyond the derived bound of the formats."""
    correct = sim.claims.links.layer_bf16

    def scaled(*arguments, **options):
        result = correct(*arguments, **options)
        return dataclasses.replace(result, output=bf16_encode(bf16_decode(result.output) * 1.03))

    monkeypatch.setattr(sim.claims.links, "layer_bf16", scaled)
    few = Measurement(Path("tests/data"), DEFAULT_ROOT, lambda _text: None)
    few.__dict__["workloads"] = measurement.workloads[:3]
    texts = [text for text, _ in failing(formats_link(few))]
    assert texts == ["bf16 against float: largest error of an output over its derived bound"]


def test_needed_interval_is_the_largest_of_four() -> None:
    design = load_design("fpga")
    model = load_model("deepseek-v3")
    assert needed_interval(GateGeometry.of(model, design), design) == 256 * 7168 // 64
    tiny = dataclasses.replace(model.gating, num_experts=8, num_groups=1, topk_groups=1, top_k=8)
    small = dataclasses.replace(model, gating=tiny, d_model=16)
    assert needed_interval(GateGeometry.of(small, design), design) == 8
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


MISTAKES = {
    "unknown link": (
        ["--only", "colour"],
        "only: must be one of float, formats, rtl, blocks, layer, throughput, not 'colour'",
    ),
    "part of a page": (
        ["--out", "x.md", "--only", "float"],
        "out: writes the whole page; leave out --only and --no-verilog",
    ),
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
