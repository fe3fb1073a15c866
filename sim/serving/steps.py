"""How long a step of some tokens takes on a system: the system's own model at some sizes, and between them.

A step's time is that of :mod:`sim.system` without attention's products, which depend on what every request
holds and are added step by step. It is computed for sizes that grow by a quarter, each with several
routings, layer by layer; steps take the routings in turn. Between two sizes it is linear: a roofline is, and
so is an expert's time in its tokens; how far off that is, is measured at sizes in between (``off``).

Of an accelerator without a host the first ``LAYERS_ALONE`` layers stand for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim.progress import track
from sim.routing import Routing
from sim.routing.trace import NO_EXPERT, TraceShape, make_trace
from sim.serving.batching import FloatArray, StepCosts
from sim.system.costs import BYTES, Roofline
from sim.system.outside import attention_sizes
from sim.system.report import plan_step, run_policies
from sim.system.step import BITS, run_step
from spec.catalogue import Backbone
from spec.errors import InputError, require_range
from spec.model import ModelSpec
from spec.system import AttentionPlace, SystemSpec, nominal

GROWTH = 1.25
EXACT = 16
"""Sizes up to this one are all computed."""
LAYERS_ALONE = 2
PLACES = {AttentionPlace.HOST: 0, AttentionPlace.NEAR: 1, AttentionPlace.FASTER: 2}


@dataclass(frozen=True)
class StepTable:
    """The costs of steps, and how good they are.

    Attributes
    ----------
    costs : for the loop.
    off : largest relative difference to the system's model at the sizes between that were tried.
    kv_bytes : of a token's keys and values in all layers; 0 where attention is not known.
    notes : what is not counted.
    missing : figures without which there is no energy.
    """

    costs: StepCosts
    off: float
    kv_bytes: float
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def sizes(most: int) -> list[int]:
    """Return the tokens of the steps that are computed, from 1 to ``most``."""
    found = list(range(1, min(EXACT, most) + 1))
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, int(found[-1] * GROWTH))))
    return found


def step_table(
    system: SystemSpec,
    model: ModelSpec,
    backbone: Backbone | None,
    routing: Routing,
    seed: int,
    *,
    most: int,
    draws: int,
    policy: str | None = None,
) -> StepTable:
    """Return the costs of steps of up to ``most`` tokens.

    Parameters
    ----------
    routing : synthetic, drawn anew for each of ``draws``; of a trace each begins further on, in a circle.
    """
    require_range("draws", draws, 1, 64)
    routing.check_layers(model.num_moe_layers)
    grid = sizes(most)
    seconds, joules, dropped = np.zeros((3, draws, len(grid)))
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for column, tokens in enumerate(track(grid, lambda tokens: f"steps of {tokens} tokens")):
        for draw in range(draws):
            one = _step(system, model, backbone, routing, seed, draw, tokens, policy)
            seconds[draw, column], joules[draw, column] = one.seconds, one.joules
            dropped[draw, column], missing, notes = one.dropped, one.missing, one.notes
    off = 0.0
    for column in range(EXACT, len(grid) - 1, 4):
        tokens = (grid[column] + grid[column + 1]) // 2
        exact = _step(system, model, backbone, routing, seed, 0, tokens, policy).seconds
        between = np.interp(tokens, grid[column : column + 2], seconds[0, column : column + 2])
        off = max(off, abs(float(between) / exact - 1))
    attention, kv_bytes = _attention(system, backbone, missing)
    costs = StepCosts(np.array(grid, dtype=np.float64), seconds, joules, attention, dropped)
    return StepTable(costs, off, kv_bytes, notes, missing)


@dataclass(frozen=True)
class _Cost:
    """Seconds, joules and dropped assignments of a step without attention's products.

    ``missing``, ``notes``: as of :class:`StepTable`.
    """

    seconds: float
    joules: float
    dropped: float
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def _step(
    system: SystemSpec,
    model: ModelSpec,
    backbone: Backbone | None,
    routing: Routing,
    seed: int,
    draw: int,
    tokens: int,
    policy: str | None,
) -> _Cost:
    if routing.trace is None:
        drawn, own = routing, seed + 1000 * (1 + draw)
    else:
        drawn, own = turned(routing, tokens, draw * tokens), seed
    if system.host is None:
        layers = min(LAYERS_ALONE, model.num_moe_layers)
        few = replace(model, num_moe_layers=layers)
        chosen = policy or system.policy
        runs = run_policies(system, few, tokens, drawn, own, [chosen])
        step, energy = runs.steps[chosen], runs.energies[chosen]
        scale = model.num_moe_layers / layers
        total = np.nan if energy.total is None else energy.total
        note = f"{layers} of {model.num_moe_layers} layers stand for all; no attention, no dense layers"
        return _Cost(scale * step.seconds, scale * total, scale * runs.dropped, energy.missing, (note,))
    planned = plan_step(system, model, tokens, drawn, own, backbone=backbone)
    step = run_step(planned.costs, policy or system.policy)
    energy, seconds = planned.energy(system, step), step.seconds
    joules = np.nan if energy.total is None else energy.total
    if "attention" in planned.outside.parts:
        place, part = planned.outside.parts["attention"]
        seconds -= part.times * float(Roofline.of(planned.values, place).seconds(part.num_bytes, part.flops))
        names = (f"{place}.memory_j_per_bit", f"{place}.flop_j")
        of_byte, of_flop = (planned.values.get(name, np.nan) for name in names)
        joules -= part.times * (BITS * part.all_bytes * of_byte + part.all_flops * of_flop)
    return _Cost(seconds, joules, 0.0, energy.missing, planned.outside.notes)


def turned(routing: Routing, tokens: int, first: int) -> Routing:
    """Return a trace's routing of so many tokens from the first one on; behind its end it begins again."""
    trace = routing.trace
    assert trace is not None
    layers = range(trace.num_layers) if routing.layer is None else (trace.index_of(routing.layer),)
    rows = []
    for layer in layers:
        kept = trace.ids[layer][(trace.ids[layer] != NO_EXPERT).all(axis=1)]
        if not len(kept):
            raise InputError("has no token with all its experts", file=routing.name, key=f"layer {layer}")
        rows.append(kept[(first + np.arange(tokens)) % len(kept)])
    turned = make_trace(trace.source, np.stack(rows), TraceShape(num_experts=trace.num_experts))
    return Routing(routing.name, trace=turned)


def _attention(
    system: SystemSpec, backbone: Backbone | None, missing: tuple[str, ...]
) -> tuple[FloatArray, float]:
    """Return what the loop needs of attention, and the bytes of a token's keys and values in all layers."""
    attention = np.ones(13)
    attention[6] = 0
    kv_bytes = 0.0
    if backbone is not None and backbone.attention_layers:
        of_token, of_pair = attention_sizes(backbone)
        kv_bytes = float(of_token * backbone.attention_layers)
        if system.outside is not None:
            values = nominal(system)
            host = Roofline.of(values, "host")
            near = Roofline.of(values, "near") if "near.bytes_per_s" in values else host
            figures = [
                values.get(f"{place}.{name}", np.nan) * factor
                for place in ("host", "near")
                for name, factor in (("memory_j_per_bit", BITS), ("flop_j", 1))
            ]
            attention[:] = [
                *(host.bytes_per_s, host.flops, near.bytes_per_s, near.flops),
                *(of_token, of_pair, backbone.attention_layers),
                values.get("exchange.devices", 1.0),
                *figures,
                PLACES[system.outside.attention],
            ]
    return attention, kv_bytes


def kv_room(system: SystemSpec, model: ModelSpec, kv_bytes: float) -> int | None:
    """Return the tokens whose keys and values fit beside the weights; None where no capacity is known."""
    capacity = system.near.capacity_bytes
    if capacity is None or not kv_bytes:
        return None
    devices = 1 if system.exchange is None else int(system.exchange.devices.value)
    weights = BYTES * model.num_moe_layers * model.expert_params
    room = int((devices * capacity.value - weights) / kv_bytes)
    if room < 1:
        raise InputError(
            "must hold the experts and a token's keys and values",
            file=f"system {system.name}",
            key="near.capacity_bytes",
        )
    return room
