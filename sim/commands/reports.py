"""Reports of ``expertbank sim`` for people: of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sim.commands.output import print_table
from spec.registers import COUNTERS

if TYPE_CHECKING:
    # At run time commands import it in their functions, which --help does not wait for.
    from sim.accelerator import Report
    from sim.energy import Energy

SLOTS = ("mac", "refresh", "row", "jobs", "lanes", "results", "inputs", "other")
"""As :data:`sim.pim_slots.SLOTS`, which --help does not wait for either."""
STALLS = [name for name in COUNTERS if name.startswith("stall_")]
NOTHING = "-"


def print_report(report: Report) -> None:
    """Print one run: a table of cycles, then lines."""
    click.echo(
        f"\n{report.model} on {report.design} in {report.format}: {report.tokens} tokens,"
        f" d_model {report.d_model},"
        f" d_expert {report.d_expert}, {report.experts} experts, top {report.top_k}"
    )

    print_table(
        ("cycles", "RTL", "model", "difference"),
        [(name, *_cycles(pair)) for name, pair in report.blocks.items()]
        + ([("layer", *_cycles(report.cycles))] if len(report.blocks) > 1 else []),
    )
    lines = []
    if report.mismatches is not None:
        lines.append(f"mismatching bits against golden   {report.mismatches}")
    if report.reference is not None:
        reference = report.reference
        if reference["tokens_with_same_experts"] is not None:
            lines.append(
                f"experts as in {reference['name']}   {reference['tokens_with_same_experts']} of"
                f" {report.tokens} tokens"
            )
        if reference["relative_error"] is not None:
            lines.append(
                f"error against {reference['name']}   max {reference['max_error_over_std']:.4f},"
                f" mean {reference['mean_error_over_std']:.4f} of the output's deviation;"
                f" relative {reference['relative_error']:.4f}"
            )
        else:
            lines.append(f"error against {reference['name']}   no finite number")
        if reference["scales"] is not None:
            lines.append(
                "int8: 127 stands for "
                + ", ".join(f"{name} = {127 / value:.4g}" for name, value in reference["scales"].items())
                + ", the largest magnitudes of these tokens in float"
            )
    use = report.utilisation
    port = "column slots for MACs" if "pim" in report.blocks else "weight port"
    lines.append(f"MAC utilisation {use['mac']:.1%}, {port} {use['bandwidth']:.1%}")
    if report.mac_slots is not None:
        all_cycles = sum(report.mac_slots.values())
        shares = [f"{name} {count / all_cycles:.1%}" for name, count in report.mac_slots.items() if count]
        lines.append(
            f"the channels' time: {', '.join(shares)};"
            f" MACs {_share_of_what_is_left(report.mac_slots)} of what refresh and rows leave"
        )
    if report.counters is not None:
        stalls = [f"{name.removeprefix('stall_')} {report.counters[name]}" for name in STALLS]
        lines.append("cycles stalled by: " + ", ".join(stalls))
    lines.append(f"{_routing(report)}; {report.dropped} assignments dropped")
    if report.simulated_cycles_per_second is not None:
        lines.append(
            f"simulated {report.simulated_cycles_per_second:,.0f} cycles/s; {report.wall_s:.2f} s in all"
        )
    lines.append(f"modelled time {report.seconds * 1e6:,.1f} us")
    if report.energy is not None:
        lines.append(_energy(report.energy))
    lines += [f"waveform {report.waveform}"] if report.waveform else []
    if report.layout is not None:
        lines.append(_layout(report.layout))
    if report.dram_rules_broken is not None:
        lines.append(f"DRAM rules broken: {report.dram_rules_broken}")
    if report.secded is not None:
        lines.append(
            f"words with flipped bits: {report.secded['corrected']} corrected,"
            f" {report.secded['uncorrected']} uncorrected"
        )
    lines += report.notes
    if report.difference_from_reference:
        lines.append(f"NOTE: {report.difference_from_reference}")
    if report.divergence:
        lines.append(f"DIFFERS: {report.divergence}")
    elif report.mismatches is not None:
        lines.append("all agree" if report.agreed else "DIFFERS")
    click.echo("\n".join(lines))


def _routing(report: Report) -> str:
    routing = report.routing
    seed = f", seed {routing['seed']}" if "seed" in routing else ""
    return (
        f"routing {routing['requested']}{seed}: {routing['experts_used']} experts used,"
        f" at most {routing['max_load']} tokens on one"
    )


def _energy(energy: Energy) -> str:
    """Return an energy with its uncertainty, and its parts in descending order."""
    from sim.energy import joules_text

    parts = sorted(energy.components.items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {joules / energy.total:.1%}" for name, joules in parts)
    return (
        f"energy {joules_text(energy.total)} by table {energy.table} ({joules_text(energy.low)} to"
        f" {joules_text(energy.high)} over its figures' ranges): {shares}"
    )


def _layout(layout: dict[str, Any]) -> str:
    """Return where the experts lie, and what each channel holds and did."""
    of_channels = {
        name: ", ".join(map(str, layout[name])) for name in ("experts", "rows", "assignments", "jobs")
    }
    return (
        f"layout {layout['file'] or 'round robin'}; per channel: experts {of_channels['experts']}"
        f" in rows {of_channels['rows']} of {layout['rows_per_bank']},"
        f" assignments {of_channels['assignments']} in jobs {of_channels['jobs']}"
    )


def _cycles(pair: dict[str, int | None]) -> tuple[str, str, str]:
    """Return RTL, model and their difference; what was not run is a dash."""
    model, rtl = pair["model"], pair["rtl"]
    difference = None if model is None or rtl is None else model - rtl
    return _text(rtl), _text(model), _text(difference)


def _text(value: object) -> str:
    return NOTHING if value is None else str(value)


def print_side_by_side(reports: Sequence[Report]) -> None:
    """Print one table of runs of the same tokens on several designs."""
    first = reports[0]
    click.echo(
        f"\n{first.model}: {first.tokens} tokens, d_model {first.d_model}, d_expert {first.d_expert},"
        f" {first.experts} experts, top {first.top_k}\n{_routing(first)}"
    )
    blocks = [list(report.blocks) for report in reports]
    cycles = [
        (
            " / ".join(dict.fromkeys(names)),
            [_cycles(report.blocks[name]) for report, name in zip(reports, names, strict=True)],
        )
        for names in zip(*blocks, strict=True)
    ]
    if len(cycles) > 1:
        cycles.insert(0, ("layer", [_cycles(report.cycles) for report in reports]))
    reference = "" if first.reference is None else first.reference["name"]
    facts = [(label.format(reference=reference), [of(one) for one in reports]) for label, of in FACTS.items()]
    facts = [(label, values) for label, values in facts if any(value != NOTHING for value in values)]
    _print_columns([f"{report.design} ({report.format})" for report in reports], cycles, facts)
    for report in reports:
        notes = [_layout(report.layout)] if report.layout else []
        notes += [f"waveform {report.waveform}"] if report.waveform else []
        for note in [*notes, *report.notes]:
            click.echo(f"{report.design}: {note}")
    for report in reports:
        if report.difference_from_reference:
            click.echo(f"NOTE on {report.design}: {report.difference_from_reference}")
        if report.divergence:
            click.echo(f"DIFFERS on {report.design}: {report.divergence}")


def _print_columns(
    titles: Sequence[str],
    cycles: Sequence[tuple[str, Sequence[tuple[str, str, str]]]],
    facts: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Print a column of labels and one per title: three numbers wide for cycles, one value for facts."""
    head = ("RTL", "model", "difference")
    label_width = max(len(label) for label, _ in [*cycles, *facts])
    lines = [[label] for label in ("", "cycles", *(label for label, _ in [*cycles, *facts]))]
    for number, title in enumerate(titles):
        triples = [head, *(values[number] for _, values in cycles)]
        widths = [max(map(len, column)) for column in zip(*triples, strict=True)]
        cells = [title]
        cells += ["  ".join(map(str.rjust, triple, widths)) for triple in triples]
        cells += [values[number] for _, values in facts]
        width = max(map(len, cells))
        for line, cell in zip(lines, cells, strict=True):
            line.append(cell.rjust(width))
    for label, *values in lines:
        click.echo("   ".join([label.ljust(label_width), *values]).rstrip())


def _reference(key: str) -> Callable[[Report], str]:
    def of(report: Report) -> str:
        value = None if report.reference is None else report.reference[key]
        return NOTHING if value is None else f"{value:.4f}"

    return of


def _scale(name: str) -> Callable[[Report], str]:
    def of(report: Report) -> str:
        scales = None if report.reference is None else report.reference["scales"]
        return NOTHING if scales is None else f"{127 / scales[name]:.4g}"

    return of


def _same_experts(report: Report) -> str:
    same = None if report.reference is None else report.reference["tokens_with_same_experts"]
    return NOTHING if same is None else f"{same} of {report.tokens} tokens"


def _counter(name: str) -> Callable[[Report], str]:
    return lambda report: NOTHING if report.counters is None else str(report.counters[name])


def _port(engine_block: str) -> Callable[[Report], str]:
    return lambda report: (
        f"{report.utilisation['bandwidth']:.1%}" if engine_block in report.blocks else NOTHING
    )


def _slot(name: str) -> Callable[[Report], str]:
    def of(report: Report) -> str:
        slots = report.mac_slots
        return NOTHING if not slots or not slots[name] else f"{slots[name] / sum(slots.values()):.1%}"

    return of


def _share_of_what_is_left(slots: dict[str, int]) -> str:
    """Return how much of the time that refresh and rows leave is MACs."""
    left = sum(slots.values()) - slots["refresh"] - slots["row"]
    return f"{slots['mac'] / left:.1%}" if left else NOTHING


def _speed(report: Report) -> str:
    speed = report.simulated_cycles_per_second
    return NOTHING if speed is None else f"{speed:,.0f} cycles/s"


def _verdict(report: Report) -> str:
    if report.mismatches is None:
        return NOTHING
    return "yes" if report.agreed else "NO"


FACTS: dict[str, Callable[[Report], str]] = {
    "mismatching bits against golden": lambda report: _text(report.mismatches),
    "experts as in {reference}": _same_experts,
    "error against {reference}: max": _reference("max_error_over_std"),
    "  mean (both of the output's deviation)": _reference("mean_error_over_std"),
    "  relative": _reference("relative_error"),
    "int8: 127 stands for x =": _scale("x"),
    "int8: 127 stands for hidden =": _scale("hidden"),
    "MAC utilisation": lambda report: f"{report.utilisation['mac']:.1%}",
    "weight port": _port("expert"),
    "column slots for MACs": _port("pim"),
    **{f"channels' time, {name}": _slot(name) for name in SLOTS},
    "MACs of what refresh and rows leave": lambda report: (
        NOTHING if not report.mac_slots else _share_of_what_is_left(report.mac_slots)
    ),
    **{f"cycles stalled by {name.removeprefix('stall_')}": _counter(name) for name in STALLS},
    "DRAM rules broken": lambda report: _text(report.dram_rules_broken),
    "assignments dropped": lambda report: str(report.dropped),
    "simulation speed": _speed,
    "run and models took": lambda report: f"{report.wall_s:.2f} s",
    "modelled time": lambda report: f"{report.seconds * 1e6:,.1f} us",
    "all agree": _verdict,
}
"""Lines of the table of several runs; one that no run has is left out."""
