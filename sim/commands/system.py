"""``expertbank system``: a step of a model on a system, under every policy."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table


@click.command("system")
@click.option("--system", "system_name", required=True, help="Preset of spec/systems or a TOML file.")
@click.option("--model", "model_name", required=True, help="Preset, TOML or config.json.")
@click.option("--tokens", type=int, default=16, show_default=True, help="Of the step.")
@click.option("--policy", help="What is reported (default: the system's), or FILE.py; all are compared.")
@click.option("--host", "host_name", help="Another host: a preset of spec/engines or a TOML file.")
@click.option("--scale", default="full", show_default=True, help="full, or divide the model's sizes by N.")
@click.option(
    "--phase",
    type=click.Choice(["prefill", "decode"]),
    help="One prompt of --tokens, or (default) a token of each request; tokens of a trace to take.",
)
@click.option("--only-experts", is_flag=True, help="Leave out attention, dense layers and shared experts.")
@click.option(
    "--routing", "routing_name", default="uniform", help="uniform, zipf:S, ... or a trace: docs/routing.md."
)
@click.option("--routing-layer", type=int, help="The trace's layer to take, by its number.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the routing.")
@click.option("--timeline", type=click.Path(path_type=Path), help="Write all spans for Perfetto.")
@json_option
def command(
    system_name: str,
    model_name: str,
    tokens: int,
    policy: str | None,
    host_name: str | None,
    scale: str,
    phase: str | None,
    only_experts: bool,
    routing_name: str,
    routing_layer: int | None,
    seed: int,
    timeline: Path | None,
    as_json: bool,
) -> int:
    """Run one step of a model on a system: hosts, engines near memory, devices; docs/system.md."""
    from sim.api import simulate_system
    from sim.system.report import COLUMNS
    from sim.system.timeline import timeline_text
    from sim.toolchain import check_parent, write_atomically

    if timeline is not None:
        check_parent(timeline, "timeline")
    result = simulate_system(
        system_name,
        model_name,
        tokens=tokens,
        scale=scale,
        only_experts=only_experts,
        routing=routing_name,
        routing_layer=routing_layer,
        phase=phase,
        seed=seed,
        policy=policy,
        host=host_name,
    )
    if timeline is not None:
        write_atomically(timeline, timeline_text(result))
    if as_json:
        print_json(result.as_json())
        return 0
    layers = len(result.steps[result.policy].schedule.layer_s)
    words = f"{layers} MoE layers, {tokens} tokens, routing {result.routing}"
    print(f"{result.model} on {result.system.name}: {words}")
    print_table(COLUMNS, result.rows())
    bounds = ", ".join(
        f"{name} {seconds * 1e6:.2f} us" for name, seconds in result.steps[result.policy].bounds.items()
    )
    print(f"no policy is faster than: {bounds}")
    energy = result.energies[result.policy]
    if energy.missing:
        print(f"no energy: nothing says {', '.join(energy.missing)}")
    area = result.area.total
    if area is None:
        print(f"no area: nothing says {', '.join(result.area.missing)}")
    else:
        print(f"silicon {area.total:.4g} mm2 ({area.low:.4g} to {area.high:.4g})")
    for note in result.notes:
        print(note)
    return 0
