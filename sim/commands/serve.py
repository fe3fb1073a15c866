"""``expertbank serve``: requests over time, batched step by step on a system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from sim.serving.run import ServingRun

COLUMNS = ("ms", "mean", "p50", "p90", "p95", "p99", "max")
WORDS = {
    "wait": "until let in",
    "ttft": "first token",
    "tpot": "per token",
    "between": "between tokens",
    "e2e": "end to end",
}


@click.command("serve")
@click.option("--system", "system_name", required=True, help="Preset of spec/systems or a TOML file.")
@click.option("--model", "model_name", required=True, help="Preset, TOML or config.json.")
@click.option("--trace", type=click.Path(path_type=Path), help="Azure, BurstGPT, Mooncake, LLMServingSim.")
@click.option("--limit", type=int, help="Requests of the trace to take.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="The trace's arrivals, faster.")
@click.option("--skip-odd", is_flag=True, help="Leave out and count rows of the trace that break a rule.")
@click.option(
    "--arrivals", help="fixed:RATE, poisson:RATE, gamma:RATE:CV or on-off:RATE:ON_S:OFF_S, per second."
)
@click.option("--requests", type=int, help="To draw. [default: 1000]")
@click.option("--prompt", help="Tokens: N, uniform:A:B or lognormal:MEDIAN:SIGMA. [default: 512]")
@click.option("--output", help="The same. [default: 128]")
@click.option(
    "--batching",
    type=click.Choice(["chunked", "prefill-first", "split"]),
    default="chunked",
    show_default=True,
    help="How prompts and decoding share steps; split: a system each.",
)
@click.option("--decode-system", help="Of a split service; by default the same as --system.")
@click.option("--kv-link", help="Of a split service: a preset of spec/links. [default: rdma-cx7]")
@click.option("--max-batch", type=int, default=64, show_default=True, help="Requests in a step.")
@click.option("--step-tokens", type=int, default=2048, show_default=True, help="Tokens in a step.")
@click.option("--kv-tokens", type=int, help="Held at a time. [default: what the memory has room for]")
@click.option("--policy", help="Who computes which expert. [default: the system's]")
@click.option("--routing", "routing_name", default="uniform", help="As in 'system'.")
@click.option("--routing-layer", type=int, help="The trace's layer to take, by its number.")
@click.option("--draws", type=int, default=4, show_default=True, help="Routings that steps take in turn.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of requests and routing.")
@click.option("--requests-csv", type=click.Path(path_type=Path), help="Write a row for each request.")
@click.option("--picture", type=click.Path(path_type=Path), help="Write a PNG of everything over time.")
@json_option
def command(
    system_name: str,
    model_name: str,
    trace: Path | None,
    limit: int | None,
    speed: float,
    skip_odd: bool,
    arrivals: str | None,
    requests: int | None,
    prompt: str | None,
    output: str | None,
    batching: str,
    decode_system: str | None,
    kv_link: str | None,
    max_batch: int,
    step_tokens: int,
    kv_tokens: int | None,
    policy: str | None,
    routing_name: str,
    routing_layer: int | None,
    draws: int,
    seed: int,
    requests_csv: Path | None,
    picture: Path | None,
    as_json: bool,
) -> int:
    """Serve requests of a trace, or drawn ones, with continuous batching; docs/serving.md."""
    from sim.api import serve
    from sim.toolchain import check_parent, write_atomically

    if picture is not None:
        check_parent(picture, "picture")
    run = serve(
        system_name,
        model_name,
        trace=trace,
        limit=limit,
        speed=speed,
        skip_odd=skip_odd,
        arrivals=arrivals,
        requests=requests,
        prompt=prompt,
        output=output,
        batching=batching,
        decode_system=decode_system,
        kv_link=kv_link,
        max_batch=max_batch,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        policy=policy,
        routing=routing_name,
        routing_layer=routing_layer,
        draws=draws,
        seed=seed,
        requests_csv=requests_csv,
    )
    if picture is not None:
        from sim.serving.picture import picture as drawn

        write_atomically(picture, drawn(run))
    if as_json:
        print_json(run.as_json())
    else:
        _print(run)
    return 0


def _print(run: ServingRun) -> None:
    found = run.as_json()
    print(
        f"{run.model} on {run.system}, {run.batching}: {run.finished:,} of {run.requests:,} requests in"
        f" {run.seconds:,.1f} s, {found['requests_per_s']:.3f} requests/s,"
        f" {found['output_tokens_per_s']:.1f} output tokens/s"
    )
    rows = []
    for name, values in run.latencies.items():
        if values is not None:
            rows.append((WORDS[name], *(f"{values[column] * 1e3:,.3f}" for column in COLUMNS[1:])))
    print_table(COLUMNS, rows)
    print(
        f"{run.steps:,} steps, busy {found['busy']:.1%}, {found['mean_batch']:.1f} requests in a step,"
        f" at most {run.queue.max():.0f} waiting at the end of {run.width_s:g} s"
    )
    if run.energy_j is not None and run.finished:
        print(f"energy {run.energy_j:,.1f} J, {found['joules_per_token']:.4g} J per token, prompts' too")
    if run.dropped:
        print(f"{run.dropped:,.0f} assignments found no place, {found['dropped_per_step']:,.2f} a step")
    if run.refused:
        print(f"{run.refused} requests refused: more tokens than the memory holds")
    if run.skipped.failed or run.skipped.odd:
        print(f"rows left out: {run.skipped.failed} failed requests, {run.skipped.odd} odd")
    print(f"times of steps are interpolated, off by at most {run.off:.1%} where that was tried")
    for note in run.notes:
        print(note)
