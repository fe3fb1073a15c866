"""A run, or several side by side, as one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sim.accelerator import Report
from sim.energy import joules_text
from sim.results.charts import (
    BINS,
    LEVELS,
    ErrorBar,
    HeatMap,
    Strip,
    bank_map,
    command_map,
    error_bars,
    expert_map,
    roofline_chart,
    timeline,
)
from sim.results.comparison import Run, compared
from sim.results.roofline import Roofline
from spec.design import DesignSpec
from spec.registers import COUNTERS

TEMPLATE = "page.html"
CLAIMS = Path(__file__).parents[2] / "docs" / "claims.md"
"""The measured claims, where the package lies in its repository."""
NOTHING = "-"
GIGA = 1e9


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar: name, text of its value, share of the bar, number of its colour."""

    name: str
    value: str
    share: float
    colour: int


@dataclass(frozen=True)
class Bar:
    """A stacked bar and what it is of."""

    name: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class View:
    """What the page shows of one run beside the common tables; what is not known is empty or None."""

    title: str
    source: str
    cycles: str
    blocks: Sequence[Bar]
    slots: Bar | None
    energy: Bar | None
    energy_range: str
    timeline: Sequence[Strip]
    experts: HeatMap | None
    commands: HeatMap | None
    banks: HeatMap | None
    notes: Sequence[str]


@dataclass(frozen=True)
class Line:
    """A row of a table: what, and a text for each run."""

    name: str
    values: Sequence[str]


def page_text(
    runs: Sequence[tuple[Report, DesignSpec]],
    asked: Mapping[str, str],
    claims: Path = CLAIMS,
    earlier: Sequence[Run] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    runs : reports, with ``activity`` where timelines and maps are to be shown, and their designs.
    asked : options by their names.
    claims : page of the measured claims; the report says where to find them if it is not there.
    earlier : runs to compare with, the first of them the one that ratios are over.
    """
    reports = [report for report, _ in runs]
    rooflines = [Roofline.of(report, design) for report, design in runs]
    first = reports[0]
    measured = claim_rows(claims)
    side_by_side = [*earlier, *map(Run.of, reports)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=f"{first.model} on {', '.join(report.design for report in reports)}",
        subject=(
            f"{first.tokens} tokens, d_model {first.d_model}, d_expert {first.d_expert},"
            f" {first.experts} experts, top {first.top_k}"
        ),
        asked=asked,
        names=[f"{report.design} ({report.format})" for report in reports],
        headlines=headlines(reports, rooflines),
        roofline=roofline_chart(rooflines),
        roofs=[
            f"{report.design}: {one.peak_macs / GIGA:,.4g} GMAC/s,"
            f" {one.peak_bytes / GIGA:,.4g} GB/s of weights"
            for report, one in zip(reports, rooflines, strict=True)
        ],
        stalls=stall_lines(reports),
        views=[view(report, design) for report, design in runs],
        trust=trust_lines(reports),
        errors=error_bars(trust_bars(reports, measured)),
        claims=measured,
        compared_names=[run.name for run in side_by_side],
        compared=[Line(*row) for row in compared(side_by_side)],
        bins=BINS,
        levels=LEVELS,
    )


def headlines(reports: Sequence[Report], rooflines: Sequence[Roofline]) -> list[Line]:
    """Return the figures at the top."""
    lines = [Line(name, [of(report) for report in reports]) for name, of in HEADLINES.items()]
    lines.append(
        Line(
            "roofline's time over the run's",
            [f"{one.bound_share:.1%}, by {one.limit}" for one in rooflines],
        )
    )
    return [line for line in lines if any(value != NOTHING for value in line.values)]


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _verdict(report: Report) -> str:
    if report.mismatches is None:
        return NOTHING
    return "yes" if report.agreed else f"NO: {report.divergence or 'bits differ'}"


def _energy(report: Report) -> str:
    return NOTHING if report.energy_j is None else joules_text(report.energy_j)


def _energy_per_token(report: Report) -> str:
    return NOTHING if report.energy_j is None else joules_text(report.energy_j / report.tokens)


HEADLINES: dict[str, Callable[[Report], str]] = {
    "cycles, Verilog": lambda report: _count(report.cycles["rtl"]),
    "cycles, model": lambda report: _count(report.cycles["model"]),
    "time": lambda report: f"{report.seconds * 1e6:,.1f} us",
    "tokens per second": lambda report: (
        f"{report.tokens / report.seconds:,.0f}" if report.seconds else NOTHING
    ),
    "energy": _energy,
    "energy per token": _energy_per_token,
    "MAC utilisation": lambda report: f"{report.utilisation['mac']:.1%}",
    "bandwidth of weights used": lambda report: f"{report.utilisation['bandwidth']:.1%}",
    "experts used": lambda report: _count(report.routing["experts_used"]),
    "tokens on the busiest expert": lambda report: _count(report.routing["max_load"]),
    "assignments dropped": lambda report: _count(report.dropped),
    "all agree": _verdict,
}


def stall_lines(reports: Sequence[Report]) -> list[Line]:
    """Return the Verilog's counters of stalls; none where no Verilog ran."""
    lines = []
    for name in COUNTERS:
        if name.startswith("stall_"):
            values = [_count(report.counters[name]) if report.counters else NOTHING for report in reports]
            lines.append(Line(name.removeprefix("stall_"), values))
    return lines if any(report.counters for report in reports) else []


def view(report: Report, design: DesignSpec) -> View:
    """Return what is shown of a single run."""
    activity, energy = report.activity, report.energy
    unit = "engine" if design.pim is None else "channel"
    return View(
        title=f"{report.design} ({report.format})",
        source=""
        if activity is None
        else {"rtl": "the Verilog", "model": "the cycle model"}[activity.source],
        cycles="" if activity is None else f"{activity.cycles:,}",
        blocks=block_bars(report),
        slots=None if report.mac_slots is None else _bar("the channels' time", report.mac_slots),
        energy=None
        if energy is None
        else Bar(
            "energy",
            [
                Part(name, joules_text(joules), joules / energy.total if energy.total else 0.0, place)
                for place, (name, joules) in enumerate(
                    sorted(energy.components.items(), key=lambda part: -part[1])
                )
            ],
        ),
        energy_range=""
        if energy is None
        else f"{joules_text(energy.total)} by table {energy.table}, {joules_text(energy.low)} to"
        f" {joules_text(energy.high)} over the ranges of its figures",
        timeline=[] if activity is None else timeline(activity, report.experts, unit),
        experts=None if activity is None else expert_map(activity.tokens, report.experts),
        commands=None if activity is None else command_map(dict(activity.commands)),
        banks=None
        if activity is None or design.pim is None
        else bank_map(activity.bank_reads, design.pim.dram.bank_groups),
        notes=[note for note in (*report.notes, report.difference_from_reference) if note],
    )


def block_bars(report: Report) -> list[Bar]:
    """Return where each block's time went: its parts add up to the run's cycles."""
    activity = report.activity
    if activity is None:
        return []
    return [
        _bar(
            name,
            {
                "busy": block.busy,
                "waits for weights": block.weights,
                "held up by the next block": block.blocked,
                "idle": activity.idle(name),
            },
        )
        for name, block in activity.blocks.items()
    ]


def _bar(name: str, counts: Mapping[str, int]) -> Bar:
    whole = sum(counts.values())
    return Bar(
        name,
        [
            Part(part, f"{count:,}", count / whole if whole else 0.0, place)
            for place, (part, count) in enumerate(counts.items())
        ],
    )


def trust_lines(reports: Sequence[Report]) -> list[Line]:
    """Return what these very runs compared, link by link; a dash where a run did not."""

    def apart(pair: Mapping[str, int | None]) -> str:
        model, rtl = pair["model"], pair["rtl"]
        return NOTHING if model is None or rtl is None else f"{model - rtl} of {rtl:,}"

    def blocks(report: Report) -> str:
        pairs = [
            abs(pair["model"] - pair["rtl"])
            for pair in report.blocks.values()
            if pair["model"] is not None and pair["rtl"] is not None
        ]
        return str(max(pairs)) if pairs else NOTHING

    def error(report: Report) -> str:
        value = None if report.reference is None else report.reference["max_error_over_std"]
        return NOTHING if value is None else f"{value:.4f}"

    def energy(report: Report) -> str:
        if report.energy is None or not report.energy.total:
            return NOTHING
        low, high = (bound / report.energy.total - 1 for bound in (report.energy.low, report.energy.high))
        return f"{low:+.0%} to {high:+.0%}"

    rows: dict[str, Callable[[Report], str]] = {
        "float reference: largest error over its deviation": error,
        "golden: bits of the Verilog that differ": lambda report: _count(report.mismatches),
        "block models: largest difference of a block's cycles": blocks,
        "layer's model: cycles more than in Verilog": lambda report: apart(report.cycles),
        "DRAM rules broken, by a checker": lambda report: _count(report.dram_rules_broken),
        "energy: range of the table's figures": energy,
    }
    return [Line(name, [of(report) for report in reports]) for name, of in rows.items()]


CYCLES_CLAIM = "largest difference of a layer's cycles, Verilog against model"
ALLOWED = 0.01
"""Of a layer's cycles: what the model may be off by before a run fails."""


def trust_bars(reports: Sequence[Report], claims: Sequence[Sequence[str]]) -> list[ErrorBar]:
    """Return by how much each run's time and energy may be off: as measured in it, else as claimed."""
    claimed = next((row[2] for row in claims if row[1] == CYCLES_CLAIM), None)
    bars = []
    for report in reports:
        name = f"{report.design} ({report.format})"
        model, rtl = report.cycles["model"], report.cycles["rtl"]
        if rtl is not None:
            text = "cycles are the Verilog's own"
            if model is not None:
                text += f"; the model's differ by {(model - rtl) / rtl:+.2%}"
            bars.append(ErrorBar(f"{name}: time", text, 0.0, 0.0))
        else:
            known = "in no run here" if claimed is None else f"{claimed} at most over all measured runs"
            text = f"model against Verilog: {known}; a run fails beyond {ALLOWED:.0%}, which is drawn"
            bars.append(ErrorBar(f"{name}: time", text, -ALLOWED, ALLOWED))
        energy = report.energy
        if energy is not None and energy.total:
            low, high = (bound / energy.total - 1 for bound in (energy.low, energy.high))
            text = f"{low:+.0%} to {high:+.0%} over the ranges of the table's figures"
            bars.append(ErrorBar(f"{name}: energy", text, low, high))
    return bars


def claim_rows(path: Path) -> list[list[str]]:
    """Return link, claim, measured, bound of each measured claim; none where their page is not there."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n\n| link | ", 1)[-1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")][:4] for line in lines[2:]]
