"""``expertbank policies``: families of policies, each beside its baseline and its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.commands.output import json_option, print_json, print_table
from spec.errors import InputError

if TYPE_CHECKING:
    from sim.system.comparison import Comparison, Steps
    from sim.system.costs import Roofline
    from spec.model import ModelSpec


@click.group("policies")
def command() -> None:
    """Policies of caches, placement, exchange and dispatch on a model's experts; docs/policies.md."""


@command.command("page")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def page_command(file: Path, as_json: bool) -> int:
    """Write FILE: the survey's systems, the policies that carry their ideas, what they gain."""
    from sim import policies_page

    text = policies_page.page()
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=file, key="page") from None
    if as_json:
        print_json({"systems": [row.system for row in policies_page.ROWS]})
    return 0


def _drawn(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say what is run, and how it is printed."""
    options = (
        click.option("--model", "model_name", required=True, help="Preset, TOML or config.json."),
        click.option("--tokens", type=int, default=16, show_default=True, help="Of a step."),
        click.option("--steps", type=int, default=32, show_default=True, help="One after another."),
        click.option(
            "--routing", "routing_name", default="zipf:1", show_default=True, help="docs/routing.md."
        ),
        click.option("--routing-layer", type=int, help="The trace's layer to take, by its number."),
        click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Tokens of a trace to take."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the routing."),
        click.option("--policy", help="Print this one and the baseline alone."),
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _steps(given: dict[str, Any]) -> tuple[ModelSpec, Steps, str]:
    """Return the model, its steps, and both in words."""
    from dataclasses import replace

    from golden.weights import check_seed
    from sim.routing import parse_routing, shape_of
    from sim.system.comparison import drawn_steps
    from spec.load import load_model

    model = load_model(given["model_name"])
    check_seed(given["seed"])
    shape = replace(shape_of(model), num_experts=model.gating.num_experts)
    routing = parse_routing(given["routing_name"], shape, layer=given["routing_layer"])
    steps = drawn_steps(model, given["steps"], given["tokens"], routing, given["seed"], given["phase"])
    words = f"{model.num_moe_layers} MoE layers, {given['steps']} x {given['tokens']} tokens, {routing.name}"
    return model, steps, f"{model.name}: {words}"


def _engine(name: str) -> Roofline:
    from sim.system.costs import Roofline
    from spec.load import load_engine
    from spec.system import quantities

    values = {key: quantity.value for key, quantity in quantities(load_engine(name), "engine")}
    return Roofline.of(values, "engine")


def _check(policy: str | None, known: Sequence[str]) -> None:
    """Raise :class:`InputError` for a policy that a family does not have, before anything runs."""
    if policy is not None and policy not in known:
        raise InputError(f"must be one of {', '.join(known)}, not {policy!r}", key="policy")


def _print(result: Comparison, policy: str | None, as_json: bool) -> int:
    from dataclasses import replace

    if policy is not None:
        kept = {name: result.results[name] for name in dict.fromkeys((policy, result.baseline))}
        result = replace(result, results=kept)
    if as_json:
        print_json(result.as_json())
        return 0
    print(result.title)
    print_table(result.columns, result.rows())
    print(f"speed is over {result.baseline}; no policy is faster than: {result.bound}")
    return 0


@command.command("cache")
@click.option("--system", "system_name", default="dynande", show_default=True, help="Of spec/systems.")
@click.option("--entries", type=int, default=8, show_default=True, help="Experts of a layer that are held.")
@_drawn
def cache_command(system_name: str, entries: int, policy: str | None, as_json: bool, **given: Any) -> int:
    """Caches and prefetch of experts whose weights lie behind a link: LRU, LFU, Belady, Pre-gated, FLAME."""
    from sim.system.caches import POLICIES, compare
    from sim.system.step import check_capacity
    from spec.load import load_system

    _check(policy, POLICIES)
    system = load_system(system_name)
    model, steps, title = _steps(given)
    check_capacity(system, model.num_moe_layers * model.gating.num_ffn_experts * steps.expert.weight_bytes)
    return _print(compare(system, f"{title}, on {system.name}", steps, entries), policy, as_json)


@command.command("placement")
@click.option("--engine", "engine_name", default="h100", show_default=True, help="Device: of spec/engines.")
@click.option("--devices", type=int, default=8, show_default=True, help="Of that kind.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--places", type=int, help="For experts and copies, on all devices (default: the experts).")
@_drawn
def placement_command(
    engine_name: str,
    devices: int,
    nodes: int,
    places: int | None,
    policy: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Experts over devices: round robin, popularity, EPLB (hierarchical, global), each cut over all."""
    from sim.system.placement import POLICIES, compare

    _check(policy, POLICIES)
    engine = _engine(engine_name)
    model, steps, title = _steps(given)
    result = compare(
        engine,
        f"{title}, on {devices} x {engine_name}",
        steps,
        model.gating.num_ffn_experts,
        devices=devices,
        nodes=nodes,
        groups=model.gating.num_groups,
        places=places,
    )
    return _print(result, policy, as_json)


@command.command("exchange")
@click.option("--engine", "engine_name", default="h100", show_default=True, help="Device: of spec/engines.")
@click.option("--devices", type=int, default=8, show_default=True, help="Of that kind.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--link", "link_name", default="nvlink4", show_default=True, help="In a node: of spec/links.")
@click.option("--between", "between_name", default="rdma-cx7", show_default=True, help="Between nodes.")
@_drawn
def exchange_command(
    engine_name: str,
    devices: int,
    nodes: int,
    link_name: str,
    between_name: str,
    policy: str | None,
    as_json: bool,
    **given: Any,
) -> int:
    """All-to-all of tokens: ways (DeepEP), chunks (FasterMoE, Tutel), tiles (Flux), shadowed experts."""
    from sim.system.exchange import POLICIES, Cluster, Exchange, Link, compare
    from spec.load import load_link

    _check(policy, POLICIES)
    links = (Link.of(load_link(name)) for name in (link_name, between_name))
    cluster = Cluster(devices, nodes, *links)
    model, steps, title = _steps(given)
    exchange = Exchange(cluster, _engine(engine_name), steps, model.gating.num_ffn_experts)
    over = f"{nodes} x {devices // nodes} {engine_name}, {link_name} and {between_name}"
    return _print(compare(exchange, f"{title}, on {over}"), policy, as_json)


@command.command("dispatch")
@click.option("--engine", "engine_name", default="h100", show_default=True, help="Of spec/engines.")
@click.option("--capacity-factor", type=float, default=1.25, show_default=True, help="Over an even share.")
@click.option("--block", type=int, default=128, show_default=True, help="Rows that are computed together.")
@_drawn
def dispatch_command(
    engine_name: str, capacity_factor: float, block: int, policy: str | None, as_json: bool, **given: Any
) -> int:
    """Rows of experts: capacity with drop, as the largest, whole blocks (MegaBlocks, vLLM), grouped."""
    from sim.system.execution import POLICIES, compare

    _check(policy, POLICIES)
    engine = _engine(engine_name)
    model, steps, title = _steps(given)
    result = compare(
        engine,
        f"{title}, on {engine_name}",
        steps,
        model.gating.num_ffn_experts,
        capacity_factor=capacity_factor,
        block=block,
    )
    return _print(result, policy, as_json)


@command.command("formats")
@click.option("--engine", "engine_name", default="h100", show_default=True, help="Of spec/engines.")
@click.option("--wide-share", type=float, default=0.25, show_default=True, help="Of experts in bf16: mixed.")
@_drawn
def formats_command(
    engine_name: str, wide_share: float, policy: str | None, as_json: bool, **given: Any
) -> int:
    """Formats of weights: bf16, fp8, int4 (LMDeploy), MXFP4, mixed by popularity: bytes and time alone."""
    from sim.system.widths import POLICIES, compare

    _check(policy, POLICIES)
    engine = _engine(engine_name)
    model, steps, title = _steps(given)
    result = compare(engine, f"{title}, on {engine_name}", steps, model.gating.num_ffn_experts, wide_share)
    return _print(result, policy, as_json)
