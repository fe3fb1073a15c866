"""``expertbank sim``: a layer on an accelerator, by the cycle model, the Verilog, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json
from sim.commands.reports import print_report, print_side_by_side
from sim.progress import tell, track
from sim.toolchain import check_parent, write_atomically
from spec.design import DesignSpec, Format
from spec.errors import require

if TYPE_CHECKING:
    # At run time the command imports it in its function, which --help does not wait for.
    from sim.accelerator import Report
    from sim.results.comparison import Run


@click.command("sim")
@click.option(
    "--model", "model_name", required=True, help="Preset, TOML, config.json, vector .npz or folder."
)
@click.option(
    "--design",
    "design_names",
    multiple=True,
    default=["fpga"],
    show_default=True,
    help="Preset or TOML; several, side by side, if repeated.",
)
@click.option(
    "--engine",
    "given_engine",
    type=click.Choice(["model", "rtl", "both"]),
    help="Default: both; model with --phase.",
)
@click.option("--tokens", type=int, help="Tokens (default: 16, all of a vector, or 1 with --experts).")
@click.option("--scale", help="'full' or a divisor of d_model and FFN widths (default: full; rtl: 64).")
@click.option("--layer", help="A folder's layer whose weights are run, by its number; see docs/weights.md.")
@click.option("--experts", type=int, help="Run the first N experts alone, the gate bypassed.")
@click.option(
    "--format",
    "number_format",
    type=click.Choice([kind.value for kind in Format]),
    help="Of the experts (default: design's).",
)
@click.option("--phase", type=click.Choice(["prefill", "decode"]), help="One step over all MoE layers.")
@click.option(
    "--routing", "routing_name", help="uniform (default), zipf:S, ... or a trace's file: docs/routing.md."
)
@click.option("--routing-layer", type=int, help="The trace's layer to take, by its number.")
@click.option("--seed", "given_seed", type=int, help="Weights, tokens, routing (default: 0).")
@click.option(
    "--layout",
    type=click.Path(path_type=Path),
    help="TOML of where experts lie in a pim design; see 'layout' (default: round robin).",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Write every DRAM command of a pim design's run to this CSV; see 'dram check'.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    help="Write a page with figures, roofline, maps, timeline and energy to this HTML file.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    help="JSON file of an earlier run (sim --json), beside which --report shows this one.",
)
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    help="Write when blocks and jobs work to this JSON file, for Perfetto or chrome://tracing.",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    help="Write figures of the run, its blocks, experts and energy to this CSV file.",
)
@click.option("--secded", is_flag=True, help="The banks of a pim design hold 8 check bits with 64 of data.")
@click.option("--flips", type=int, help="Words that are read in which a bit is flipped; needs check bits.")
@click.option("--double-flips", type=int, help="Words that are read in which two are; needs check bits.")
@click.option(
    "--bus",
    type=click.Choice(["plain", "axi"]),
    default="plain",
    show_default=True,
    help="The Verilog's ports; axi: AXI4-Lite registers and packets, outputs against golden (--engine rtl).",
)
@click.option("--sim", "simulator", type=click.Choice(["verilator"]), default="verilator", show_default=True)
@click.option(
    "--waves",
    is_flag=True,
    help="Leave a VCD of the first 10,000 cycles, with views for GTKWave and Surfer, in build/waves.",
)
@json_option
def command(
    model_name: str,
    design_names: tuple[str, ...],
    given_engine: str | None,
    tokens: int | None,
    scale: str | None,
    layer: str | None,
    experts: int | None,
    number_format: str | None,
    phase: str | None,
    routing_name: str | None,
    routing_layer: int | None,
    given_seed: int | None,
    layout: Path | None,
    trace: Path | None,
    page: Path | None,
    compare: Path | None,
    timeline: Path | None,
    table: Path | None,
    secded: bool,
    flips: int | None,
    double_flips: int | None,
    bus: str,
    simulator: str,
    waves: bool,
    as_json: bool,
) -> int:
    """Run one MoE layer and print cycles, differences, utilisation and stalls.

    Exit status 1 if the Verilog differs from golden in a bit, a block from its model in a cycle, or
    the layer from its model by more than 1 %. With several designs the JSON object is
    {"designs": [one object for each]}.
    """
    from sim.flips import Flips
    from sim.request import Request
    from sim.rtlsim import DEFAULT_ROOT, check_ready
    from sim.workload import is_vector
    from spec.load import load_design

    designs = [load_design(name, number_format) for name in design_names]
    if secded:
        designs = [design.with_secded() for design in designs]
    for number, name in enumerate(design_names):
        require(
            name not in design_names[:number], f"must name each design once, not {name!r} again", key="design"
        )
    files = {"report": page, "timeline": timeline, "csv": table}
    _check_files(files)
    require(compare is None or page is not None, "needs --report, which shows it", key="compare")
    for key, path in files.items():
        same = compare is not None and path is not None and path.resolve() == compare.resolve()
        require(not same, f"must be another file than that of --compare, not {path}", key=key)
    earlier = [] if compare is None else _earlier(compare)
    request = Request.of(
        model_name,
        engine=given_engine,
        tokens=tokens,
        scale=scale,
        experts=experts,
        phase=phase,
        routing=routing_name,
        routing_layer=routing_layer,
        seed=given_seed,
        waves=DEFAULT_ROOT / "waves" if waves else None,
        trace=trace,
        layout=layout,
        layer=layer,
        record=any(files.values()),
        flips=Flips(single=flips or 0, double=double_flips or 0),
        axi=bus == "axi",
    )
    engine, vector = request.engine, is_vector(model_name)
    require(trace is None or len(designs) == 1, "needs a single --design", key="trace")
    if timeline is not None:
        require(experts is None, "cannot be combined with --experts", key="timeline")
        require(
            engine != "rtl" or all(design.pim is None for design in designs),
            "needs --engine model or both for a pim design",
            key="timeline",
        )
    if engine != "model":
        check_ready()

    def progress_of(design: DesignSpec) -> Callable[[str], None]:
        label = model_name if len(designs) == 1 else f"{model_name}, {design.name}"
        return tell(label)

    # Whatever one of the designs refuses is refused before anything runs.
    runs = [request.prepare(design, progress_of(design)) for design in designs]
    reports = [run() for run in (track(runs, lambda _run: model_name) if len(runs) > 1 else runs)]
    for report in reports:
        if engine != "model" and request.own_layer is not None:
            note = f"weights of {request.own_layer.label} in {model_name}, read as float32"
            if Format(report.format).grouped:
                note += f"; what is stored as {report.format} stores it is kept bit for bit"
            report.notes.append(note)
        if vector and (routing_name is not None or given_seed is not None):
            report.notes.append("--routing and --seed change nothing: a vector has its own")
        elif experts is not None and routing_name is not None:
            report.notes.append("--routing changes nothing: with --experts every token meets every expert")
    if request.record:
        _write_files(files, list(zip(reports, designs, strict=True)), _asked(), earlier)
    if as_json:
        results = [report.as_json() for report in reports]
        print_json(results[0] if len(results) == 1 else {"designs": results})
    elif len(reports) == 1:
        print_report(reports[0])
    else:
        print_side_by_side(reports)
    return 0 if all(report.agreed for report in reports) else 1


def _check_files(files: Mapping[str, Path | None]) -> None:
    """Raise :class:`InputError` unless each file can be written beside the others."""
    seen: dict[Path, str] = {}
    for key, path in files.items():
        if path is not None:
            check_parent(path, key)
            same = seen.setdefault(path.resolve(), key)
            require(same == key, f"must be another file than that of --{same}, not {path}", key=key)


def _earlier(path: Path) -> list[Run]:
    from sim.results.comparison import read_runs

    return read_runs(path)


def _asked() -> dict[str, str]:
    """Return the options that were given, or have a default, as a user would write them."""
    context = click.get_current_context()
    asked = {}
    for parameter in context.command.params:
        value = context.params[str(parameter.name)]
        if value is None or value is False or value == ():
            continue
        values = value if isinstance(value, tuple) else (value,)
        asked[parameter.opts[0]] = "yes" if value is True else ", ".join(map(str, values))
    return asked


def _write_files(
    files: Mapping[str, Path | None],
    runs: Sequence[tuple[Report, DesignSpec]],
    asked: Mapping[str, str],
    earlier: Sequence[Run],
) -> None:
    """Write what was asked for: all texts are there before the first file is written."""
    from sim.results.page import page_text
    from sim.results.rows import csv_text
    from sim.results.timeline import timeline_text

    made = {
        "report": lambda: page_text(runs, asked, earlier=earlier),
        "timeline": lambda: timeline_text(runs),
        "csv": lambda: csv_text([report for report, _ in runs]),
    }
    texts = [(path, made[key]()) for key, path in files.items() if path is not None]
    for path, text in texts:
        write_atomically(path, text)
