"""``expertbank routing``: statistics of a routing trace, a picture of it, and its conversion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json, print_table
from spec.errors import InputError, require, require_range

if TYPE_CHECKING:
    from sim.routing import Trace

DEFAULT_MODEL = "mixtral-8x7b"
DEFAULT_TOKENS = 1024
FORMATS = "canonical", "vllm", "sglang", "megatron", "llama-cpp", "llama-cpp-tokens", "dynande", "loads"


@click.command("routing")
@click.argument("routings", metavar="FILE...|NAME", nargs=-1, required=True)
@click.option(
    "--model",
    "model_name",
    help=f"Whose gate a NAME is drawn for (default: {DEFAULT_MODEL}); what a FILE leaves open.",
)
@click.option("--tokens", type=int, help=f"Tokens to draw for a NAME (default: {DEFAULT_TOKENS}).")
@click.option("--layers", type=int, help="Layers to draw for a NAME (default: 1), or those of a FILE.")
@click.option("--seed", type=int, help="Of a NAME (default: 0).")
@click.option("--top-k", type=int, help="Experts of a token, for a FILE that does not say.")
@click.option(
    "--experts", type=int, help="Routed experts, for a FILE that does not say (default: used ones)."
)
@click.option(
    "--npy",
    type=click.Choice(["loads", "vllm"]),
    default="loads",
    show_default=True,
    help="A .npy holds loads (layers, batches, experts), or ids as of vLLM (tokens, layers, k).",
)
@click.option("--layer", type=int, help="Statistics of this layer only, by its number.")
@click.option("--batch", type=int, default=16, show_default=True, help="Tokens of a batch.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw a .png.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Convert: write this file.")
@click.option(
    "--to", "form", type=click.Choice(FORMATS), help="Format of --out (default: canonical, a .npz)."
)
@json_option
def command(
    routings: tuple[str, ...],
    model_name: str | None,
    tokens: int | None,
    layers: int | None,
    seed: int | None,
    top_k: int | None,
    experts: int | None,
    npy: str,
    layer: int | None,
    batch: int,
    picture: Path | None,
    out: Path | None,
    form: str | None,
    as_json: bool,
) -> int:
    """Print what a routing trace, or a synthetic routing, is like; draw it; convert it.

    Several files are the layers of one trace.

    Load of each expert, entropy, coefficient of variation, different experts of a batch and reuse distance,
    for each layer. docs/routing.md has the names and the formats.
    """
    from sim.routing.statistics import as_json as layer_as_json
    from sim.routing.statistics import expected_unique, statistics_of
    from sim.toolchain import write_atomically

    require_range("batch", batch, 1, 1 << 20)
    require(form is None or out is not None, "needs --out", key="to")
    _check_target(picture, "picture", (".png",))
    trace, name, used_seed = _load(routings, model_name, tokens, layers, seed, top_k, experts, npy)
    converted = _converted(trace, name, out, form)
    indices = range(trace.num_layers)
    if layer is not None:
        try:
            indices = range(index := trace.index_of(layer), index + 1)
        except InputError as error:
            raise error.at(file=name) from None
    found = [statistics_of(trace, index, batch) for index in indices]
    if picture is not None:
        from sim.routing.picture import picture as drawn

        write_atomically(picture, drawn(trace, found, name))
    if out is not None and converted is not None:
        write_atomically(out, converted)
    expected = expected_unique(trace.num_experts, trace.top_k, batch)
    if as_json:
        print_json(
            {
                "routing": name,
                "seed": used_seed,
                "source": trace.source,
                "tokens": trace.num_tokens,
                "experts": trace.num_experts,
                "top_k": trace.top_k,
                "requests": len(set(trace.request.tolist())),
                "aligned": trace.aligned,
                "batch": batch,
                "expected_unique_uniform": expected,
                "layers": [layer_as_json(one, trace.num_experts) for one in found],
                "picture": str(picture) if picture else None,
                "out": str(out) if out else None,
            }
        )
        return 0
    click.echo(
        name
        + ("" if used_seed is None else f", seed {used_seed}")
        + f" ({trace.source}): {trace.num_tokens} tokens, {trace.num_layers} layers,"
        + f" {trace.num_experts} experts, top {trace.top_k}"
        + ("" if trace.aligned else "; row t is not the same token in every layer")
    )
    rows = []
    for one in found:
        values = layer_as_json(one, trace.num_experts)
        unique, reuse = values["unique_experts"], values["reuse_distance"]
        assert isinstance(unique, dict)
        assert isinstance(reuse, dict)
        ratio = values["max_over_mean"]
        rows.append(
            (
                one.layer,
                values["experts_used"],
                int(one.load.min()),
                int(one.load.max()),
                "-" if ratio is None else f"{ratio:.2f}",
                f"{one.entropy_bits:.3f}",
                f"{one.variation:.3f}",
                f"{unique['mean']:.2f}",
                _or_dash(reuse["median"]),
                _or_dash(reuse["p90"]),
                one.first_uses,
            )
        )
    print_table(
        (
            "layer",
            "used",
            "min load",
            "max load",
            "max/mean",
            "entropy (bits)",
            "variation",
            f"unique of {batch}",
            "reuse median",
            "reuse p90",
            "first uses",
        ),
        rows,
    )
    click.echo(
        f"equal loads: entropy {math.log2(trace.num_experts):.3f} bits, variation 0; uniform routing:"
        f" {expected:.2f} different experts expected of {batch} tokens"
    )
    for path in (picture, out):
        if path is not None:
            click.echo(f"wrote {path}")
    return 0


def _load(
    routings: tuple[str, ...],
    model_name: str | None,
    tokens: int | None,
    layers: int | None,
    seed: int | None,
    top_k: int | None,
    experts: int | None,
    npy: str,
) -> tuple[Trace, str, int | None]:
    """Return the trace of a file or a name, how it is called, and the seed that it was drawn with."""
    from golden.weights import check_seed
    from sim.routing import TraceShape, parse_routing, shape_of, synthetic_trace
    from sim.routing.trace import stacked
    from spec.load import load_model

    model = load_model(model_name) if model_name is not None else None
    stated = layers is not None
    shape = TraceShape(top_k=top_k, num_layers=layers, num_experts=experts, exact_layers=stated)
    if model is not None:
        of_model = shape_of(model)
        shape = TraceShape(
            top_k=of_model.top_k if top_k is None else top_k,
            num_layers=of_model.num_layers if layers is None else layers,
            num_experts=model.gating.num_experts if experts is None else experts,
            exact_layers=stated,
        )
    given = parse_routing(routings[0], shape, npy=npy)
    if given.trace is not None:
        traces = [given.trace]
        for key, value in (("tokens", tokens), ("seed", seed)):
            require(value is None, "is for a synthetic routing, not for a file", key=key)
        for routing in routings[1:]:
            trace = parse_routing(routing, shape, npy=npy).trace
            if trace is None:
                raise InputError(f"must all be files, not {routing!r}", key="routing")
            traces.append(trace)
        return stacked(traces), " ".join(routings), None
    require(len(routings) == 1, f"must be one name, not {len(routings)}", key="routing")
    for key, value in (("top-k", top_k), ("experts", experts)):
        require(value is None, "is for a file; a synthetic routing has its --model's", key=key)
    seed = seed or 0
    check_seed(seed)
    count = DEFAULT_TOKENS if tokens is None else tokens
    require_range("tokens", count, 1, 1 << 20)
    gating = (model or load_model(DEFAULT_MODEL)).gating
    return synthetic_trace(gating, given, count, seed, 1 if layers is None else layers), given.name, seed


def _converted(trace: Trace, name: str, out: Path | None, form: str | None) -> str | bytes | None:
    """Return what is to be written to ``out``, before anything is."""
    from sim.routing.formats import FORMATS as KNOWN

    if out is None:
        return None
    target = KNOWN[form or "canonical"]
    _check_target(out, "out", (target.suffix,))
    try:
        return target.write(trace)
    except InputError as error:
        raise error.at(file=name) from None


def _check_target(path: Path | None, key: str, suffixes: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"must end in {' or '.join(suffixes)}, not {path.name!r}", key=key)
    if not path.resolve().parent.is_dir():
        raise InputError("is in a folder that does not exist", file=path, key=key)


def _or_dash(value: object) -> object:
    return "-" if value is None else value
