"""``expertbank sim``: a layer on an accelerator, by the cycle model, the Verilog, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json, print_table
from spec.design import Engine, Format
from spec.errors import InputError, require, require_range
from spec.registers import COUNTERS

if TYPE_CHECKING:
    # At run time it is imported in the command, which --help and the others do not wait for.
    from sim.accelerator import Report

RTL_SCALE = 64


@click.command("sim")
@click.option("--model", "model_name", required=True, help="Preset, TOML, config.json or vector .npz.")
@click.option("--design", "design_name", default="fpga", show_default=True, help="Preset or TOML.")
@click.option("--engine", type=click.Choice(["model", "rtl", "both"]), default="both", show_default=True)
@click.option("--tokens", type=int, help="Tokens (default: 16, or all of a vector).")
@click.option("--scale", help="'full' or a divisor of d_model and FFN widths (default: full; rtl: 64).")
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
@click.option("--sim", "simulator", type=click.Choice(["verilator"]), default="verilator", show_default=True)
@click.option("--waves", is_flag=True, help="Leave a VCD of the first 10,000 cycles in build/waves.")
@json_option
def command(
    model_name: str,
    design_name: str,
    engine: str,
    tokens: int | None,
    scale: str | None,
    experts: int | None,
    number_format: str | None,
    phase: str | None,
    routing_name: str | None,
    routing_layer: int | None,
    given_seed: int | None,
    simulator: str,
    waves: bool,
    as_json: bool,
) -> int:
    """Run one MoE layer and print cycles, differences, utilisation and stalls.

    Exit status 1 if the Verilog differs from golden in a bit, a block from its model in a cycle, or
    the layer from its model by more than 1 %.
    """
    from sim import accelerator, alone, pim_report, step, workload
    from sim.routing import draw_ids, parse_routing, shape_of
    from sim.rtlsim import DEFAULT_ROOT, check_ready
    from spec.geometry import ImageGeometry
    from spec.load import load_design, load_model

    def progress(text: str) -> None:
        click.echo(f"[{model_name}] {text}", err=True)

    design = load_design(design_name, number_format)
    seed = given_seed or 0
    vector = workload.is_vector(model_name)
    shape = None if vector else shape_of(load_model(model_name))
    distribution = parse_routing(routing_name or "uniform", shape, layer=routing_layer)
    routing = distribution.layer_name()
    divisor = workload.parse_scale(scale, 1 if engine == "model" else RTL_SCALE, vector=vector)
    require(seed >= 0, f"must be at least 0, not {seed}", key="seed")
    if tokens is not None:
        require_range("tokens", tokens, 1, 1 << 20)
    require(not waves or engine != "model", "needs --engine rtl or both", key="waves")
    require(phase is None or experts is None, "cannot be combined with --phase", key="experts")
    if engine != "model":
        check_ready()
    count = tokens or workload.DEFAULT_TOKENS
    waves_dir = DEFAULT_ROOT / "waves" if waves else None

    pim = design.engine is Engine.PIM
    run_model = pim_report.run_pim_model if pim else accelerator.run_model
    run_layer = pim_report.run_pim_layer if pim else accelerator.run_layer
    if experts is not None:
        if pim:
            raise InputError(f"runs on engine fpga only, not on design {design.name}", key="experts")
        report = alone.run_experts(
            model_name,
            design,
            experts,
            tokens,
            divisor,
            engine=engine,
            seed=seed,
            waves=waves_dir,
            progress=progress,
        )
    elif phase is not None:
        if engine != "model" or vector:
            raise InputError("runs with --engine model and a model of many layers only", key="phase")
        report = step.run_step(
            workload.scaled_model(model_name, divisor), design, count, distribution, seed, phase
        )
    elif vector:
        work = workload.vector_workload(model_name, tokens)
        if engine == "model":
            report = run_model(work.model, design, work.reference_ids, "vector", work.batch_lengths)
        else:
            report = run_layer(
                work,
                design,
                engine=engine,
                routing="vector",
                waves=waves_dir,
                progress=progress,
            )
    else:
        model = workload.scaled_model(model_name, divisor)
        image = ImageGeometry.of(model, design)
        if engine == "model":
            ids = draw_ids(model.gating, distribution, count, seed)
            report = run_model(model, design, ids, routing)
        else:
            workload.check_image(image.num_bytes)
            progress("drawing weights and tokens")
            work = workload.random_workload(model, count, distribution, seed, design.window_tokens)
            report = run_layer(
                work,
                design,
                engine=engine,
                routing=routing,
                waves=waves_dir,
                progress=progress,
            )
    if distribution.synthetic and not vector and experts is None:
        report.routing["seed"] = seed
    if vector and (routing_name is not None or given_seed is not None):
        report.notes.append("--routing and --seed change nothing: a vector has its own")
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)
    return 0 if report.agreed else 1


def _print(report: Report) -> None:
    click.echo(
        f"\n{report.model} on {report.design} in {report.format}: {report.tokens} tokens,"
        f" d_model {report.d_model},"
        f" d_expert {report.d_expert}, {report.experts} experts, top {report.top_k}"
    )

    def row(name: str, pair: dict[str, int | None]) -> tuple[object, ...]:
        model, rtl = pair["model"], pair["rtl"]
        difference = "-" if model is None or rtl is None else model - rtl
        return (name, "-" if rtl is None else rtl, "-" if model is None else model, difference)

    print_table(
        ("cycles", "RTL", "model", "difference"),
        [row(name, pair) for name, pair in report.blocks.items()]
        + ([row("layer", report.cycles)] if len(report.blocks) > 1 else []),
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
        if reference["scales"] is not None:
            lines.append(
                "int8: 127 stands for "
                + ", ".join(f"{name} = {127 / value:.4g}" for name, value in reference["scales"].items())
                + ", the largest magnitudes of these tokens in float"
            )
    use = report.utilisation
    port = "column slots for MACs" if "pim" in report.blocks else "weight port"
    lines.append(f"MAC utilisation {use['mac']:.1%}, {port} {use['bandwidth']:.1%}")
    if report.counters is not None:
        stalls = [f"{name[6:]} {report.counters[name]}" for name in COUNTERS if name.startswith("stall_")]
        lines.append("cycles stalled by: " + ", ".join(stalls))
    routing = report.routing
    seed = f", seed {routing['seed']}" if "seed" in routing else ""
    lines.append(
        f"routing {routing['requested']}{seed}: {routing['experts_used']} experts used,"
        f" at most {routing['max_load']} tokens on one; {report.dropped} assignments dropped"
    )
    if report.simulated_cycles_per_second is not None:
        lines.append(
            f"simulated {report.simulated_cycles_per_second:,.0f} cycles/s; {report.wall_s:.2f} s in all"
        )
    lines.append(f"modelled time {report.seconds * 1e6:,.1f} us")
    lines += [f"waveform {report.waveform}"] if report.waveform else []
    lines += report.notes
    if report.divergence:
        lines.append(f"DIFFERS: {report.divergence}")
    elif report.mismatches is not None:
        lines.append("all agree" if report.agreed else "DIFFERS")
    click.echo("\n".join(lines))
