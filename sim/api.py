"""The package from Python: what ``sim``, ``system`` and ``policies`` run, as plain dataclasses and arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golden.weights import check_seed
from sim.accelerator import Report
from sim.request import Request
from spec.design import DesignSpec
from spec.errors import require
from spec.load import load_backbone, load_design, load_engine, load_model, load_system
from spec.system import SystemSpec

if TYPE_CHECKING:
    from sim.system.comparison import Comparison
    from sim.system.report import SystemRun


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
    shape = replace(shape_of(of), num_experts=of.gating.num_experts)
    drawn = parse_routing(routing, shape, layer=routing_layer)
    with blamed(chosen):
        return run_system(
            spec, of.name, of, tokens, drawn, seed, policy=chosen, phase=phase, backbone=backbone
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
