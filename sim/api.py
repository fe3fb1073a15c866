"""The package from Python: what ``sim``, ``system``, ``serve``, ``policies`` run, as dataclasses, arrays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golden.weights import check_seed
from sim.accelerator import Report
from sim.request import Request
from spec.design import DesignSpec
from spec.errors import require
from spec.load import load_backbone, load_design, load_engine, load_link, load_model, load_system
from spec.system import SystemSpec

if TYPE_CHECKING:
    from sim.serving.run import ServingRun
    from sim.system.comparison import Comparison
    from sim.system.report import SystemRun


__all__ = [
    "compare_policies",
    "load_design",
    "load_model",
    "load_system",
    "serve",
    "simulate",
    "simulate_system",
]


def simulate(
    model: str | Path,
    design: str | Path | DesignSpec = "fpga",
    *,
    engine: str = "model",
    tokens: int | None = None,
    scale: int | str | None = None,
    number_format: str | None = None,
    phase: str | None = None,
    routing: str | None = None,
    routing_layer: int | None = None,
    seed: int = 0,
    experts: int | None = None,
    layout: Path | None = None,
    layer: str | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Run one MoE layer, or a step of all of them, and return its report.

    Parameters are the options of ``expertbank sim``, of the same meaning and with the same defaults but for
    ``engine``, which is ``model``.

    Parameters
    ----------
    model : preset, TOML, ``config.json``, vector ``.npz`` or folder with weights.
    design : preset, TOML, or a design.
    engine : ``model``, ``rtl`` or ``both``.
    scale : ``full`` or a divisor of ``d_model`` and the widths of the experts.
    number_format : of the experts, by default the design's; only where ``design`` is a name.
    progress : is told in a few words what takes long.

    Returns
    -------
    The report: ``cycles``, ``blocks``, ``seconds``, ``energy``, ... as in the JSON of the command, and
    ``activity`` (:class:`sim.activity.Activity`): spans of blocks and jobs (int64 arrays of cycles), tokens
    of each expert (layers, experts), commands of each channel. It is None with ``experts``, where beats of
    the Verilog are missing, and for ``rtl`` on a ``pim`` design.

    Raises :class:`spec.errors.InputError` for bad input, before anything runs.
    """
    chosen = design if isinstance(design, DesignSpec) else load_design(str(design), number_format)
    request = Request.of(
        str(model),
        engine=engine,
        tokens=tokens,
        scale=None if scale is None else str(scale),
        phase=phase,
        routing=routing,
        routing_layer=routing_layer,
        seed=seed,
        experts=experts,
        layout=layout,
        layer=layer,
        record=experts is None,
    )
    return request.prepare(chosen, progress)()


def simulate_system(
    system: str | Path | SystemSpec,
    model: str | Path,
    *,
    tokens: int = 16,
    scale: int | str = "full",
    only_experts: bool = False,
    routing: str = "uniform",
    routing_layer: int | None = None,
    phase: str | None = None,
    seed: int = 0,
    policy: str | None = None,
    host: str | Path | None = None,
) -> SystemRun:
    """Run one step of a model on a system, under every policy.

    Parameters are the options of ``expertbank system``, of the same meaning and with the same defaults.

    Parameters
    ----------
    system : preset, TOML, or a system.
    scale : ``full`` or a divisor of the experts' sizes; attention and dense layers are then left out.
    only_experts : leave out attention, dense layers and shared experts.
    policy : the one that is reported, by default the system's: a name, or a Python file of one's own.
    host : another host: a preset of ``spec/engines`` or a TOML file.

    Returns
    -------
    The run: ``steps`` by policy, each with ``seconds``, ``bounds`` (no policy is faster), ``costs`` and
    ``schedule``: (layers, experts) and (layers, units) arrays, and spans of every expert.

    Raises :class:`spec.errors.InputError` for bad input.
    """
    from sim.routing import parse_routing, shape_of
    from sim.system.plugins import blamed, plugged
    from sim.system.report import run_system
    from sim.workload import parse_scale

    chosen = None if policy is None else plugged("split", policy)
    spec = system if isinstance(system, SystemSpec) else load_system(str(system))
    if host is not None:
        require(spec.host is not None, f"system {spec.name} has none", key="host")
        spec = replace(spec, host=load_engine(str(host)))
    if only_experts:
        spec = replace(spec, outside=None)
    divisor = parse_scale(str(scale), 1, vector=False)
    of = load_model(str(model)).scaled(divisor)
    # Attention is not scaled: sizes of heads are not.
    backbone = load_backbone(str(model)) if divisor == 1 else None
    check_seed(seed)
    shape = shape_of(of)
    drawn = parse_routing(routing, shape, layer=routing_layer)
    with blamed(chosen):
        return run_system(
            spec, of.name, of, tokens, drawn, seed, policy=chosen, phase=phase, backbone=backbone
        )


def serve(
    system: str | Path | SystemSpec,
    model: str | Path,
    *,
    trace: str | Path | None = None,
    limit: int | None = None,
    speed: float = 1.0,
    skip_odd: bool = False,
    arrivals: str | None = None,
    requests: int | None = None,
    prompt: str | int | None = None,
    output: str | int | None = None,
    batching: str = "chunked",
    decode_system: str | Path | SystemSpec | None = None,
    kv_link: str | Path | None = None,
    max_batch: int = 64,
    step_tokens: int = 2048,
    kv_tokens: int | None = None,
    policy: str | None = None,
    routing: str = "uniform",
    routing_layer: int | None = None,
    draws: int = 4,
    seed: int = 0,
    requests_csv: str | Path | None = None,
) -> ServingRun:
    """Serve requests that come over time, batched step by step on a system.

    Parameters are the options of ``expertbank serve``, of the same meaning and with the same defaults: a
    trace, or drawn arrivals.

    Parameters
    ----------
    system, decode_system : preset, TOML, or a system.
    trace : a file in one of the formats of docs/serving.md.
    prompt, output : tokens of drawn requests: a number, or as on the command line.
    batching : ``chunked``, ``prefill-first`` or ``split``.
    requests_csv : gets a row for each request.

    Returns
    -------
    The run: ``latencies``, ``energy_j``, ``bins`` (sums over time), ``queue`` and ``batch`` (points,),
    ``load`` (points, experts); ``as_json()`` has what the command prints.

    Raises :class:`spec.errors.InputError` for bad input, before anything is written.
    """
    from sim.routing import parse_routing, shape_of
    from sim.serving.requests import Skipped, asked_requests
    from sim.serving.run import limits_of, run_service, service_of
    from sim.toolchain import check_parent

    started = time.perf_counter()
    split = batching == "split"
    for name, value in (("decode_system", decode_system), ("kv_link", kv_link)):
        require(split or value is None, "needs --batching split", key=name)
    check_seed(seed)
    limits = limits_of(max_batch, step_tokens, kv_tokens)
    csv_file = None if requests_csv is None else Path(requests_csv)
    if csv_file is not None:
        check_parent(csv_file, "requests_csv")
    skipped = Skipped()
    # Reads the first requests, before anything is computed.
    source = asked_requests(
        trace=None if trace is None else Path(trace),
        limit=limit,
        speed=speed,
        skip_odd=skip_odd,
        skipped=skipped,
        arrivals=arrivals,
        requests=requests,
        prompt=None if prompt is None else str(prompt),
        output=None if output is None else str(output),
        seed=seed,
    )
    of, backbone = load_model(str(model)), load_backbone(str(model))
    shape = shape_of(of)
    drawn = parse_routing(routing, shape, layer=routing_layer)
    named = [system] + ([decode_system or system] if split else [])
    systems = [one if isinstance(one, SystemSpec) else load_system(str(one)) for one in named]
    link = load_link(str(kv_link or "rdma-cx7")) if split else None
    service, tables = service_of(
        systems,
        of,
        backbone,
        drawn,
        seed,
        batching=batching,
        limits=limits,
        link=link,
        policy=policy,
        draws=draws,
    )
    return run_service(
        service,
        source,
        of,
        tables,
        drawn,
        seed,
        system=" and ".join(dict.fromkeys(one.name for one in systems)),
        batching=batching,
        skipped=skipped,
        csv_file=csv_file,
        started=started,
    )


def compare_policies(
    family: str, model: str | Path, *, policy: str | None = None, **given: Any
) -> Comparison:
    """Run all policies of a family on the same steps, beside their baseline and their bound.

    Parameters
    ----------
    family : ``cache``, ``placement``, ``parallel``, ``exchange``, ``dispatch``, ``formats`` or ``combined``.
    policy : the only one that is kept, beside the baseline: a name, or a Python file of one's own.
    given : options of ``expertbank policies FAMILY``, by their names with underscores.

    Returns
    -------
    The comparison: ``results`` by policy, each with ``seconds``, ``bound_s`` and ``measures``.

    Raises :class:`spec.errors.InputError` for bad input.
    """
    from sim.system.families import compare

    return compare(family, str(model), given, policy)
