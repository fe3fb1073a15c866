"""``expertbank system``: a model's MoE layers on a host with an engine near memory, under every policy."""

from __future__ import annotations

import click

from sim.commands.output import json_option, print_json, print_table


@click.command("system")
@click.option("--system", "system_name", required=True, help="Preset of spec/systems or a TOML file.")
@click.option("--model", "model_name", required=True, help="Preset, TOML or config.json.")
@click.option("--tokens", type=int, default=16, show_default=True, help="Of the step.")
@click.option("--policy", help="What is reported (default: the system's), or FILE.py; all are compared.")
@click.option("--host", "host_name", help="Another host: a preset of spec/engines or a TOML file.")
@click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Tokens of a trace to take.")
@click.option(
    "--routing", "routing_name", default="uniform", help="uniform, zipf:S, ... or a trace: docs/routing.md."
)
@click.option("--routing-layer", type=int, help="The trace's layer to take, by its number.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the routing.")
@json_option
def command(
    system_name: str,
    model_name: str,
    tokens: int,
    policy: str | None,
    host_name: str | None,
    phase: str | None,
    routing_name: str,
    routing_layer: int | None,
    seed: int,
    as_json: bool,
) -> int:
    """Run one step of a model's routed experts on a system, by rooflines; docs/reproduce.md.

    Attention, dense layers and shared experts are not part of it.
    """
    from sim.api import simulate_system
    from sim.system.report import COLUMNS

    result = simulate_system(
        system_name,
        model_name,
        tokens=tokens,
        routing=routing_name,
        routing_layer=routing_layer,
        phase=phase,
        seed=seed,
        policy=policy,
        host=host_name,
    )
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
    return 0
