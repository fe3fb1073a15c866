"""Families of policies by name: what ``expertbank policies`` and :func:`sim.compare_policies` run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from golden.weights import check_seed
from sim.routing import parse_routing, shape_of
from sim.system import caches, combined, execution, parallel, placement, widths
from sim.system import exchange as exchanges
from sim.system.blocks import num_units
from sim.system.comparison import Comparison, Steps, drawn_steps
from sim.system.costs import Roofline
from sim.system.exchange import Cluster, Exchange, Link
from sim.system.plugins import blamed, plugged
from sim.system.step import check_capacity
from sim.system.stored import StoredJobs
from spec.errors import InputError, require
from spec.load import load_engine, load_link, load_model, load_system
from spec.model import ModelSpec
from spec.system import ALONE, SystemSpec, quantities

ENTRIES = 8
"""Experts of a layer that a cache holds where nothing else is said."""


@dataclass(frozen=True)
class Drawn:
    """Steps of a model, and both in words."""

    model: ModelSpec
    steps: Steps
    title: str

    @property
    def experts(self) -> int:
        """Experts that compute something."""
        return self.model.gating.num_ffn_experts


def drawn(
    model_name: str,
    *,
    tokens: int = 16,
    steps: int = 32,
    routing: str = "zipf:1",
    routing_layer: int | None = None,
    phase: str | None = None,
    seed: int = 0,
) -> Drawn:
    """Return steps of a model's MoE layers under a routing; :class:`InputError` for bad input."""
    model = load_model(model_name)
    check_seed(seed)
    shape = shape_of(model)
    parsed = parse_routing(routing, shape, layer=routing_layer)
    found = drawn_steps(model, steps, tokens, parsed, seed, phase)
    words = f"{model.num_moe_layers} MoE layers, {steps} x {tokens} tokens, {parsed.name}"
    return Drawn(model, found, f"{model.name}: {words}")


def _roofline(name: str) -> Roofline:
    spec = load_engine(name)
    require(spec.block is None, f"must have a roofline, not a block as {spec.name}", key="engine")
    values = {key: quantity.value for key, quantity in quantities(spec, "engine")}
    return Roofline.of(values, "engine")


def _cluster(devices: int, nodes: int, link: str, between: str) -> Cluster:
    return Cluster(devices, nodes, Link.of(load_link(link)), Link.of(load_link(between)))


def _system(name: str) -> SystemSpec:
    """Return a system of one device whose experts are all that it computes."""
    return replace(load_system(name), outside=None, exchange=None)


def cache(of: Drawn, *, system: str = "dynande", entries: int = ENTRIES) -> Comparison:
    """Caches and prefetch of experts whose weights lie behind a link."""
    spec = _system(system)
    if spec.host is None:
        raise InputError(
            f"must have a host beside its engine near memory, which {spec.name} has not", key="system"
        )
    check_capacity(spec, of.model.num_moe_layers * of.experts * of.steps.expert.weight_bytes)
    return caches.compare(spec, f"{of.title}, on {spec.name}", of.steps, entries)


def place(
    of: Drawn, *, engine: str = "h100", devices: int = 8, nodes: int = 1, places: int | None = None
) -> Comparison:
    """Experts over devices."""
    return placement.compare(
        _roofline(engine),
        f"{of.title}, on {devices} x {engine}",
        of.steps,
        of.experts,
        devices=devices,
        nodes=nodes,
        groups=of.model.gating.num_groups,
        places=places,
    )


def mix(
    of: Drawn,
    *,
    engine: str = "h100",
    devices: int = 8,
    nodes: int = 1,
    link: str = "nvlink4",
    between: str = "rdma-cx7",
    cut: int | None = None,
    groups: int | None = None,
) -> Comparison:
    """Mixes of tensor, expert and data parallelism; ``cut`` and ``groups`` are one of the caller's own."""
    cluster = _cluster(devices, nodes, link, between)
    given = None
    if cut is not None or groups is not None:
        parts = (1 if number is None else number for number in (cut, groups))
        given = parallel.given_mix(cluster, of.experts, *parts)
    capacity = load_engine(engine).capacity_bytes
    return parallel.compare(
        Exchange(cluster, _roofline(engine), of.steps, of.experts, even=False),
        f"{of.title}, on {nodes} x {devices // nodes} {engine}, {link} and {between}",
        capacity_bytes=None if capacity is None else capacity.value,
        given=given,
    )


def exchange(
    of: Drawn,
    *,
    engine: str = "h100",
    devices: int = 8,
    nodes: int = 1,
    link: str = "nvlink4",
    between: str = "rdma-cx7",
) -> Comparison:
    """All-to-all of tokens, and what hides it."""
    cluster = _cluster(devices, nodes, link, between)
    found = Exchange(cluster, _roofline(engine), of.steps, of.experts)
    over = f"{nodes} x {devices // nodes} {engine}, {link} and {between}"
    return exchanges.compare(found, f"{of.title}, on {over}")


def dispatch(
    of: Drawn, *, engine: str = "h100", capacity_factor: float = 1.25, block: int = 128
) -> Comparison:
    """Rows that experts compute."""
    return execution.compare(
        _roofline(engine),
        f"{of.title}, on {engine}",
        of.steps,
        of.experts,
        capacity_factor=capacity_factor,
        block=block,
    )


def formats(of: Drawn, *, engine: str = "h100", wide_share: float = 0.25) -> Comparison:
    """Formats of weights: bytes and time alone."""
    return widths.compare(_roofline(engine), f"{of.title}, on {engine}", of.steps, of.experts, wide_share)


def together(
    of: Drawn,
    *,
    system: str = "dynande",
    devices: int = 1,
    nodes: int = 1,
    link: str = "nvlink4",
    between: str = "rdma-cx7",
    places: int | None = None,
    entries: int | None = None,
    capacity_factor: float = 1.25,
    block: int = 128,
    wide_share: float = 0.25,
    **policies: str | None,
) -> Comparison:
    """Policies of several families at once, by their families' names: each alone, and all together.

    ``entries``: by default 8, or all experts that a device has.
    """
    spec = _system(system)
    names = {"split": ALONE} if spec.host is None else {}
    for family, policy in policies.items():
        if family not in combined.FAMILIES:
            raise InputError(f"must be one of {', '.join(combined.FAMILIES)}, not {family!r}", key="family")
        if policy is not None:
            names[family] = plugged(family, policy)
    plan = combined.Plan(**names)
    cluster, places = _cluster(devices, nodes, link, between), of.experts if places is None else places
    jobs = None
    if spec.near.block is not None:
        own = num_units(spec.near.block) if spec.units is None else int(spec.units.value)
        # Beside a host every layer's experts lie there; an accelerator alone holds a layer at a time.
        layers = 1 if spec.host is None else of.model.num_moe_layers
        jobs = StoredJobs(of.model, spec.near.block, layers * -(-places // (devices * own)))
    machine = combined.Machine(
        system=spec,
        cluster=cluster,
        places=places,
        groups=of.model.gating.num_groups,
        entries=max(1, min(ENTRIES, places // devices)) if entries is None else entries,
        capacity_factor=capacity_factor,
        block=block,
        wide_share=wide_share,
        jobs=jobs,
    )
    with blamed(*names.values()):
        return combined.compare(
            machine, f"{of.title}, on {devices} x {spec.name}", of.steps, of.experts, plan
        )


FAMILIES: Mapping[str, Callable[..., Comparison]] = {
    "cache": cache,
    "placement": place,
    "parallel": mix,
    "exchange": exchange,
    "dispatch": dispatch,
    "formats": formats,
    "combined": together,
}
"""Steps and a family's options to its policies beside each other."""

KNOWN: Mapping[str, tuple[str, ...]] = {
    "cache": caches.POLICIES,
    "placement": placement.POLICIES,
    "parallel": (*parallel.POLICIES, parallel.GIVEN),
    "exchange": exchanges.POLICIES,
    "dispatch": execution.POLICIES,
    "formats": widths.POLICIES,
}


def compare(family: str, model: str, given: Mapping[str, Any], policy: str | None = None) -> Comparison:
    """Run a family's policies on steps of a model.

    Parameters
    ----------
    given : options of :func:`drawn` and of the family.
    policy : the only one that is kept, beside the baseline: a name, or a file (:mod:`sim.system.plugins`).
    """
    if family not in FAMILIES:
        raise InputError(f"must be one of {', '.join(FAMILIES)}, not {family!r}", key="family")
    require(
        policy is None or family != "combined",
        "is named by its family here: --placement, --split, ...",
        key="policy",
    )
    own = {key: value for key, value in given.items() if key not in DRAWN}
    chosen = None if policy is None else plugged(family, policy)
    if chosen is not None and chosen == policy:
        mixed = family != "parallel" or own.get("cut") is not None or own.get("groups") is not None
        known = [name for name in KNOWN[family] if mixed or name != parallel.GIVEN]
        if chosen not in known:
            raise InputError(f"must be one of {', '.join(known)}, not {chosen!r}", key="policy")
    of = drawn(model, **{key: value for key, value in given.items() if key in DRAWN})
    with blamed(chosen):
        result = FAMILIES[family](of, **own)
    if chosen is None:
        return result
    kept = {name: result.results[name] for name in dict.fromkeys((chosen, result.baseline))}
    return replace(result, results=kept)


DRAWN = ("tokens", "steps", "routing", "routing_layer", "phase", "seed")
"""Options of :func:`drawn`."""
