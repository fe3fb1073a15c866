"""``expertbank policies``: families of policies, each beside its baseline and its bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sim.commands.output import json_option, print_json, print_table, write_page


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
    write_page(file, text)
    if as_json:
        print_json({"systems": [row.system for row in policies_page.ROWS]})
    return 0


def _drawn(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say what is run, and how it is printed."""
    options = (
        click.option("--model", "model_name", required=True, help="Preset, TOML or config.json."),
        click.option("--tokens", type=int, default=16, show_default=True, help="Of a step."),
        click.option("--steps", type=int, default=32, show_default=True, help="One after another."),
        click.option("--routing", default="zipf:1", show_default=True, help="docs/routing.md."),
        click.option("--routing-layer", type=int, help="The trace's layer to take, by its number."),
        click.option("--phase", type=click.Choice(["prefill", "decode"]), help="Tokens of a trace to take."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the routing."),
        click.option("--policy", help="Print this one and the baseline alone; or FILE.py."),
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _run(family: str, model_name: str, policy: str | None, as_json: bool, given: dict[str, Any]) -> int:
    """Compare a family's policies, and print them."""
    from sim.system.families import compare

    result = compare(family, model_name, given, policy)
    if as_json:
        print_json(result.as_json())
        return 0
    print(result.title)
    print_table(result.columns, result.rows())
    print(f"speed is over {result.baseline}; no policy is faster than: {result.bound}")
    return 0


@command.command("cache")
@click.option("--system", default="dynande", show_default=True, help="Of spec/systems.")
@click.option("--entries", type=int, default=8, show_default=True, help="Experts of a layer that are held.")
@_drawn
def cache_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Caches and prefetch of experts whose weights lie behind a link: LRU, LFU, Belady, Pre-gated, FLAME."""
    return _run("cache", model_name, policy, as_json, given)


@command.command("placement")
@click.option("--engine", default="h100", show_default=True, help="Device: of spec/engines.")
@click.option("--devices", type=int, default=8, show_default=True, help="Of that kind.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--places", type=int, help="For experts and copies, on all devices (default: the experts).")
@_drawn
def placement_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Experts over devices: round robin, popularity, EPLB (hierarchical, global), each cut over all."""
    return _run("placement", model_name, policy, as_json, given)


@command.command("exchange")
@click.option("--engine", default="h100", show_default=True, help="Device: of spec/engines.")
@click.option("--devices", type=int, default=8, show_default=True, help="Of that kind.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--link", default="nvlink4", show_default=True, help="In a node: of spec/links.")
@click.option("--between", default="rdma-cx7", show_default=True, help="Between nodes.")
@_drawn
def exchange_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """All-to-all of tokens: ways (DeepEP), chunks (FasterMoE, Tutel), tiles (Flux), shadowed experts."""
    return _run("exchange", model_name, policy, as_json, given)


@command.command("dispatch")
@click.option("--engine", default="h100", show_default=True, help="Of spec/engines.")
@click.option("--capacity-factor", type=float, default=1.25, show_default=True, help="Over an even share.")
@click.option("--block", type=int, default=128, show_default=True, help="Rows that are computed together.")
@_drawn
def dispatch_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Rows of experts: capacity with drop, as the largest, whole blocks (MegaBlocks, vLLM), grouped."""
    return _run("dispatch", model_name, policy, as_json, given)


@command.command("formats")
@click.option("--engine", default="h100", show_default=True, help="Of spec/engines.")
@click.option("--wide-share", type=float, default=0.25, show_default=True, help="Of experts in bf16: mixed.")
@_drawn
def formats_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Formats of weights, each alone or mixed by popularity: bytes and time alone."""
    return _run("formats", model_name, policy, as_json, given)


@command.command("parallel")
@click.option("--engine", default="h100", show_default=True, help="Device: of spec/engines.")
@click.option("--devices", type=int, default=8, show_default=True, help="Of that kind.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--link", default="nvlink4", show_default=True, help="In a node: of spec/links.")
@click.option("--between", default="rdma-cx7", show_default=True, help="Between nodes.")
@click.option("--cut", type=int, help="A mix of your own: devices that each expert is cut over.")
@click.option("--groups", type=int, help="Its groups that the experts are dealt over; the rest is copies.")
@_drawn
def parallel_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Mixes of tensor, expert and data parallelism: Megatron-LM, DeepSpeed-MoE, TensorRT-LLM, Tutel."""
    return _run("parallel", model_name, policy, as_json, given)


@command.command("combined")
@click.option("--system", default="dynande", show_default=True, help="Of spec/systems.")
@click.option("--devices", type=int, default=1, show_default=True, help="Each such a system.")
@click.option("--nodes", type=int, default=1, show_default=True, help="That the devices are in.")
@click.option("--link", default="nvlink4", show_default=True, help="In a node: of spec/links.")
@click.option("--between", default="rdma-cx7", show_default=True, help="Between nodes.")
@click.option("--places", type=int, help="For experts and copies, on all devices (default: the experts).")
@click.option("--entries", type=int, help="Of a layer, held by each device (default: 8, or all).")
@click.option("--capacity-factor", type=float, default=1.25, show_default=True, help="Over an even share.")
@click.option("--block", type=int, default=128, show_default=True, help="Rows that are computed together.")
@click.option("--wide-share", type=float, default=0.25, show_default=True, help="Of experts in bf16: mixed.")
@click.option("--placement", help="A policy of this family, or FILE.py.")
@click.option("--split", help="As of 'system'.")
@click.option("--cache", help="As of 'policies cache'.")
@click.option("--exchange", help="As of 'policies exchange'.")
@click.option("--dispatch", help="As of 'policies dispatch'; without it: grouped.")
@click.option("--formats", help="As of 'policies formats'.")
@_drawn
def combined_command(model_name: str, policy: str | None, as_json: bool, **given: Any) -> int:
    """Policies of several families at once on one design: each alone, and all together."""
    return _run("combined", model_name, policy, as_json, given)
