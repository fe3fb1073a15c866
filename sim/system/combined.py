"""Policies of all families at once, on devices that are each a system: a host, an engine near memory, a link.

One policy of each family: ``placement`` says where experts and their copies lie, ``formats`` how wide their
weights are, ``dispatch`` how many rows they compute, ``cache`` what each device's host holds or fetches
ahead, ``split`` what it computes, and ``exchange`` how tokens travel and what hides it. Each expert's place
becomes an expert of its own with its share of the tokens; then the families' own functions apply. A
device's layer is that of :mod:`sim.system.schedule`, and never shorter than what its link moves.

Placement and formats know the first half of the steps, and all are judged by the second. Ways that work in
chunks read, and move, an expert's weights for each. On one device nothing is exchanged.

Beside a near engine that is an accelerator of this project its block model says how long experts take, in the
hardware's formats (:mod:`sim.system.stored`). Such accelerators may be devices without a host, too: then each
computes all experts in its places, whole in its units, and what would divide them or move weights is refused.
Each routes a window of its tokens at a time, as its layer does: a step with more is computed, and exchanged,
window by window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from sim.system import caches, execution, placement, widths
from sim.system.blocks import num_units
from sim.system.comparison import Comparison, Result, Steps, halves
from sim.system.costs import BYTES, BoolArray, Costs, ExpertTimes, FloatArray, IntArray, Roofline
from sim.system.exchange import OVERLAPS, WAYS, Cluster, Exchange
from sim.system.placement import Placing, copy_of_each
from sim.system.policies import POLICIES as SPLITS
from sim.system.policies import split
from sim.system.schedule import bounds, schedule
from sim.system.step import BITS, check_capacity, load_counts
from sim.system.stored import OneUnit, StoredJobs
from spec.errors import InputError, require, require_range
from spec.system import ALONE, Sharding, SystemSpec, WeightPlace, nominal

BASELINE = "baseline"
TOGETHER = "together"
BOUND = (
    "rows of tokens alone in the narrowest format, cut anywhere between hosts and near engines and even over"
    " the devices, nothing moved"
)
BOUND_BESIDE_BLOCK = f"{BOUND}; on the accelerator each token in its best job of any format"
BOUND_ALONE = (
    "rows of tokens alone, each in its best job of any format, even over all units of all accelerators,"
    " nothing moved"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy of each family, by name; the defaults are the families' baselines."""

    placement: str = placement.BASELINE
    split: str = "all-host"
    cache: str = caches.BASELINE
    exchange: str = "direct"
    dispatch: str = "grouped"
    formats: str = widths.BASELINE

    def __post_init__(self) -> None:
        for key, registries in FAMILIES.items():
            known = [name for registry in registries for name in registry if name not in execution.SPECIAL]
            name = getattr(self, key)
            if name not in known:
                raise InputError(f"must be one of {', '.join(known)}, not {name!r}", key=key)


FAMILIES: dict[str, tuple[Mapping[str, object], ...]] = {
    "placement": (placement.PLACEMENTS,),
    "split": (SPLITS,),
    "cache": ({caches.BASELINE: None}, caches.CACHES, caches.PREFETCHERS),
    "exchange": (WAYS, OVERLAPS),
    "dispatch": (execution.EXECUTIONS,),
    "formats": (widths.WIDTHS,),
}
"""What can be combined, by the names of :class:`Plan`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind, and the numbers that policies take.

    Attributes
    ----------
    places : for experts and copies, on all devices.
    groups : of the gate.
    entries : experts of a layer that each device's host holds.
    jobs : of a near engine that is an accelerator; without a host it must be one.
    """

    system: SystemSpec
    cluster: Cluster
    places: int
    groups: int = 1
    entries: int = 1
    capacity_factor: float = 1.25
    block: int = 128
    wide_share: float = 0.25
    jobs: StoredJobs | None = None

    @property
    def alone(self) -> bool:
        """Whether devices are accelerators without a host."""
        return self.system.host is None

    @property
    def engine(self) -> ExpertTimes:
        """What computes an expert that a device has beside those in its places."""
        if self.alone:
            assert self.jobs is not None
            return OneUnit(self.jobs)
        return Roofline.of(nominal(self.system), "host")

    @property
    def baseline(self) -> Plan:
        """A plan of the families' baselines; without a host nothing is divided."""
        return Plan(split=ALONE) if self.alone else Plan()


@dataclass(frozen=True)
class Placed(Exchange):
    """Layers whose experts are places; computing is that of each device's system under a plan.

    Attributes
    ----------
    whose : (layers of all steps, places), the expert in each place.
    bits : (layers of all steps, places), of a weight.
    hit : (layers of all steps, places), what is held when a layer begins.
    tiered : (layers of all steps, places), what of it lies in the hosts' tiers.
    ahead : (layers of all steps, places), what is fetched for a layer while the one before runs.
    num_layers : of the model; the layers of all steps are layer by layer.
    """

    machine: Machine = field(kw_only=True)
    plan: Plan = field(kw_only=True)
    whose: IntArray = field(kw_only=True)
    bits: FloatArray = field(kw_only=True)
    hit: BoolArray = field(kw_only=True)
    tiered: BoolArray = field(kw_only=True)
    ahead: BoolArray = field(kw_only=True)
    num_layers: int = field(kw_only=True)

    @cached_property
    def values(self) -> dict[str, float]:
        """Numbers of the system."""
        return nominal(self.machine.system)

    @property
    def units(self) -> int:
        """Units of a near engine that have whole experts; 1 where each expert is cut over all."""
        system = self.machine.system
        if self.machine.alone:
            assert system.near.block is not None
            return num_units(system.near.block)
        return int(self.values["units"]) if system.sharding is Sharding.EXPERT else 1

    def stored_bytes(self, bits: FloatArray) -> FloatArray:
        """Return the bytes of an expert's weights of so many bits each."""
        stored: FloatArray = self.steps.expert.weight_bytes / BYTES * bits / BITS
        return stored

    def roofline_s(self, engine: Roofline, rows: IntArray, bits: FloatArray) -> FloatArray:
        """Return seconds of experts with weights of so many bits on an engine, 0 without rows."""
        expert = self.steps.expert
        traffic = expert.traffic(rows) - expert.weight_bytes + self.stored_bytes(bits)
        seconds = engine.seconds(traffic, expert.flops(rows)) + engine.expert_s
        return np.where(rows > 0, seconds, 0.0)

    def costs(self, rows: IntArray, bits: FloatArray, hit: BoolArray, units: int, tiered: BoolArray) -> Costs:
        """Return the costs of (layers, experts) rows of experts of so many bits a weight."""
        values, expert, system = self.values, self.steps.expert, self.machine.system
        unit = np.arange(rows.shape[1]) % units
        if self.machine.jobs is None:
            near = Roofline.of(values, "near")
            near = replace(near, bytes_per_s=near.bytes_per_s / units, flops=near.flops / units)
            near_s, near_bytes_per_s = self.roofline_s(near, rows, bits), values["near.bytes_per_s"]
        else:
            near_s = self.machine.jobs.experts(rows, bits)
            near_bytes_per_s = units * self.machine.jobs.bytes_per_s
        if self.machine.alone:
            none = np.zeros(rows.shape)
            return Costs(rows, none, near_s, none, none, unit, units)
        link, latency = values["link.bytes_per_s"] * values["link.efficiency"], values["link.latency_s"]
        moved = (rows > 0) & ~hit & (system.weights is WeightPlace.NEAR)
        host_s = self.roofline_s(Roofline.of(values, "host"), rows, bits)
        tier = Roofline.of_tier(values, "host")
        if tier is not None:
            host_s = np.where(tiered, self.roofline_s(tier, rows, bits), host_s)
        return Costs(
            rows,
            host_s,
            near_s,
            np.where(moved, self.stored_bytes(bits) / link + latency, 0.0),
            BYTES * expert.d_model * rows.astype(np.float64) / link,
            unit,
            units,
            latency_s=latency,
            link_share=values["link.bytes_per_s"] / (values["link.bytes_per_s"] + near_bytes_per_s),
            alpha=values.get("alpha", 1.0),
            spaces=int(values.get("spaces", 0)),
        )

    def rows(self, counts: IntArray) -> IntArray:
        """Return the rows that experts compute for their tokens."""
        machine = self.machine
        given = execution.Rows(counts, machine.capacity_factor, machine.block)
        return execution.EXECUTIONS[self.plan.dispatch](given)

    def device_s(self, counts: IntArray) -> FloatArray:
        """Return (layers, devices) seconds of (layers, places) tokens."""
        devices = self.cluster.devices
        # A device's layer is a layer of its own.
        shape = (len(counts) * devices, -1)
        rows, bits = self.rows(counts).reshape(shape), self.bits.reshape(shape)
        hit, tiered = self.hit.reshape(shape), self.tiered.reshape(shape)
        costs = self.costs(rows, bits, hit, self.units, tiered)
        result = schedule(costs, split(self.plan.split, costs))
        link = result.busy_s["link"].sum(axis=1) + self._fetched_s
        of_device: FloatArray = np.maximum(result.layer_s, link).reshape(len(counts), devices)
        return of_device

    def copied_bytes(self, experts: IntArray) -> FloatArray:
        """Return the bytes of (layers, n) experts' weights in their formats."""
        return self.stored_bytes(np.take_along_axis(self.bits, experts, axis=1))

    def local_s(self, local: IntArray, experts: IntArray) -> FloatArray:
        """Return (layers, devices) seconds of copies of (layers, n) experts with (layers, devices, n) tokens.

        The host computes them one after another; without a host they are dealt over the units.
        """
        bits = np.take_along_axis(self.bits, experts, axis=1)[:, None, :]
        bits = np.broadcast_to(bits, local.shape)
        if not self.machine.alone:
            host = Roofline.of(self.values, "host")
            one_by_one: FloatArray = self.roofline_s(host, local, bits).sum(axis=2)
            return one_by_one
        assert self.machine.jobs is not None
        dealt = np.arange(local.shape[2])[:, None] % self.units == np.arange(self.units)
        of_units = self.machine.jobs.experts(local, bits) @ dealt.astype(np.float64)
        busiest: FloatArray = of_units.max(axis=2)
        return busiest

    @cached_property
    def _fetching_s(self) -> FloatArray:
        """(steps x layers, devices), in time: what a device's link moves ahead for each layer."""
        devices = self.cluster.devices
        if self.machine.alone:
            return np.zeros((len(self.ahead), devices))
        link = self.values["link.bytes_per_s"] * self.values["link.efficiency"]
        start = self.values["link.latency_s"]
        each = np.where(self.ahead, self.stored_bytes(self.bits) / link + start, 0.0)
        of_device = each.reshape(self.num_layers, -1, devices, each.shape[1] // devices)
        in_time: FloatArray = of_device.sum(axis=3).swapaxes(0, 1).reshape(-1, devices)
        return in_time

    @cached_property
    def _fetched_s(self) -> FloatArray:
        """(layers of all steps x devices,): what a device's link moves for its next layer while one runs."""
        behind = np.concatenate([self._fetching_s[1:], np.zeros((1, self.cluster.devices))])
        by_layer = behind.reshape(-1, self.num_layers, self.cluster.devices).swapaxes(0, 1)
        return by_layer.reshape(-1)

    @property
    def first_s(self) -> float:
        """What is fetched before the first layer begins, on the slowest device."""
        return float(self._fetching_s[0].max())


def placed_steps(steps: Steps, placed: IntArray, num_ffn: int) -> Steps:
    """Return steps whose experts are places: an expert's tokens in turn to each of its copies.

    Parameters
    ----------
    placed : (layers, places), the expert in each. Ids from ``num_ffn`` on become ids from ``places`` on.
    """
    layers, _, tokens, k = steps.ids.shape
    places = placed.shape[1]
    flat = steps.ids.reshape(layers, -1)
    real = flat < num_ffn
    chosen = np.where(real, flat, 0)
    # Which of its expert's assignments in its step this one is.
    step = np.arange(flat.shape[1]) // (tokens * k)
    key = np.where(real, chosen, num_ffn) + (num_ffn + 1) * step
    order = np.argsort(key, axis=1, kind="stable")
    ordered = np.take_along_axis(key, order, axis=1)
    number = np.arange(flat.shape[1])
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    turn = np.empty_like(flat)
    first = np.maximum.accumulate(np.where(new, number, 0), axis=1)
    np.put_along_axis(turn, order, number - first, axis=1)
    target = copy_of_each(placed, chosen, turn, num_ffn)
    ids = np.where(real, target, flat - num_ffn + places).reshape(steps.ids.shape)
    counts = load_counts(ids.reshape(-1, tokens, k), places + steps.counts.shape[2] - num_ffn)
    counts[:, places:] = 0
    return Steps(ids, counts.reshape(layers, -1, counts.shape[1]), steps.expert)


def in_windows(steps: Steps, tokens: int) -> Steps:
    """Return steps of so many tokens; behind a step's last ones there are some that compute nothing."""
    layers, number, given, k = steps.ids.shape
    if given <= tokens:
        return steps
    windows = -(-given // tokens)
    nobody = steps.counts.shape[2]
    ids = np.full((layers, number, windows * tokens, k), nobody)
    ids[:, :, :given] = steps.ids
    ids = ids.reshape(layers, -1, tokens, k)
    counts = load_counts(ids.reshape(-1, tokens, k), nobody + 1).reshape(layers, -1, nobody + 1)
    # What computed nothing before has no tokens.
    counts[:, :, :nobody] *= np.repeat(steps.counts > 0, windows, axis=1)
    counts[:, :, nobody] = 0
    return Steps(ids, counts, steps.expert)


def build(machine: Machine, steps: Steps, num_ffn: int, plan: Plan) -> Placed:
    """Return the second half of the steps under a plan."""
    learned, _ = halves(steps.counts[:, :, :num_ffn])
    load = learned.sum(axis=1).astype(np.float64)
    cluster, devices = machine.cluster, machine.cluster.devices
    placing = Placing(load, machine.places, devices, cluster.nodes, machine.groups)
    placed = placement.PLACEMENTS[plan.placement](placing)
    half = steps.ids.shape[1] - learned.shape[1]
    judged = Steps(steps.ids[:, -half:], steps.counts[:, -half:], steps.expert)
    if machine.alone:
        assert machine.jobs is not None
        judged = in_windows(judged, devices * machine.jobs.design.window_tokens)
        half = judged.ids.shape[1]
    mine = placed_steps(judged, placed, num_ffn)
    # (layers, experts) to (layers x steps, places).
    bits = np.take_along_axis(widths.WIDTHS[plan.formats](load, machine.wide_share), placed, axis=1)
    hit, tiered, ahead = held(machine, mine, plan.cache)
    return Placed(
        cluster,
        machine.engine,
        mine,
        machine.places,
        machine=machine,
        plan=plan,
        whose=np.repeat(placed, half, axis=0),
        bits=np.repeat(bits, half, axis=0),
        hit=hit.reshape(-1, machine.places),
        tiered=tiered.reshape(-1, machine.places),
        ahead=ahead.reshape(-1, machine.places),
        num_layers=len(steps.ids),
    )


def held(machine: Machine, steps: Steps, name: str) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return what hosts hold as a layer begins, what of it is in tiers, and what was fetched for it.

    Each is (layers, steps, places) bool.
    """
    devices, places = machine.cluster.devices, machine.places
    counts = steps.counts[:, :, :places]
    nothing = np.zeros(counts.shape, bool)
    if name == caches.BASELINE:
        return nothing, nothing, nothing
    layers, number = counts.shape[:2]
    each = counts.reshape(layers, number, devices, -1).swapaxes(1, 2).reshape(layers * devices, number, -1)

    def together(of_devices: BoolArray) -> BoolArray:
        split_up = of_devices.reshape(layers, devices, number, -1).swapaxes(1, 2)
        return split_up.reshape(counts.shape)

    if name in caches.CACHES:
        value = caches.CACHES[name](each > 0)
        hit = together(caches.held(each > 0, value, machine.entries))
        tier = caches.tier_entries(machine.system, layers, steps.expert.weight_bytes, machine.entries)
        if tier is None:
            return hit, nothing, nothing
        # As in caches: a copy of what the host does not hold any more is of no use.
        return hit, together(caches.held(each > 0, value, np.repeat(tier, devices))) & hit, nothing
    fetched = caches.PREFETCHERS[name](steps, machine.entries * devices)[:, :, :places]
    asked = fetched.reshape(layers, number, devices, -1).swapaxes(1, 2).reshape(each.shape)
    # A device has room for so many: of what was predicted the most used up to now.
    past = np.cumsum(each, axis=1) - each + 1.0
    fetched = together(caches.largest(np.where(asked, past, 0.0), machine.entries))
    return fetched, nothing, fetched


def least_seconds(placed: Placed, kept: IntArray, num_ffn: int) -> float:
    """Return the time that no combination is below, of (layers of all steps, places) tokens that are kept."""
    of_experts = np.zeros((len(kept), num_ffn), np.int64)
    np.add.at(of_experts, (np.arange(len(kept))[:, None], placed.whose), kept)
    jobs = placed.machine.jobs
    if placed.machine.alone:
        assert jobs is not None
        return float(jobs.least(of_experts).sum()) / (placed.units * placed.cluster.devices)
    bits, units = np.full(of_experts.shape, widths.narrowest()), 1 if jobs is None else placed.units
    # Without a single expert in a tier none was faster for it; with one, as if all were there.
    everything = np.ones(of_experts.shape, bool)
    costs = placed.costs(of_experts, bits, everything, units, everything & placed.tiered.any())
    if jobs is not None:
        costs = replace(costs, near_s=jobs.least(of_experts))
    return bounds(costs)["balance"] / placed.cluster.devices


def check_plan(machine: Machine, plan: Plan) -> None:
    """Raise :class:`InputError` for a policy that has nothing to do on a machine."""
    if machine.alone:
        require(
            plan.split == ALONE,
            f"must be {ALONE!r} without a host to divide experts with, not {plan.split!r}",
            key="split",
        )
        require(
            plan.cache == caches.BASELINE,
            f"must be {caches.BASELINE!r} without a host to move weights to, not {plan.cache!r}",
            key="cache",
        )
    require(
        plan.cache == caches.BASELINE or machine.system.weights is WeightPlace.NEAR,
        f"must be {caches.BASELINE!r} where weights are shared and nothing is moved, not {plan.cache!r}",
        key="cache",
    )


def run(machine: Machine, steps: Steps, num_ffn: int, plan: Plan) -> Result:
    """Return what a plan takes, and the bound of the rows that it keeps."""
    check_plan(machine, plan)
    placed = build(machine, steps, num_ffn, plan)
    counts, rows = placed.counts, placed.rows(placed.counts)
    kept = np.minimum(counts, rows)
    if plan.exchange in WAYS:
        layers = 2 * WAYS[plan.exchange](placed, True) + placed.device_s(counts).max(axis=1)
    else:
        layers = OVERLAPS[plan.exchange](placed)
    of_devices = counts.reshape(len(counts), machine.cluster.devices, -1).sum(axis=2)
    even = of_devices.mean(axis=1)
    measures = {
        "imbalance": float((of_devices.max(axis=1) / np.maximum(even, 1e-300))[even > 0].mean()),
        "hit_rate": float((placed.hit & (counts > 0)).sum() / (counts > 0).sum()),
        "padding_share": float(1 - kept.sum() / rows.sum()),
        "dropped_share": float(1 - kept.sum() / counts.sum()),
        "held_GB": float(_held_bytes(placed) / 1e9),
    }
    bound = least_seconds(placed, kept, num_ffn)
    return Result(float(layers.sum()) + placed.first_s, bound, measures)


def _held_bytes(placed: Placed) -> float:
    steps = len(placed.bits) // placed.num_layers
    return float(placed.stored_bytes(placed.bits[::steps]).sum())


def alone_and_together(plan: Plan, base: Plan) -> dict[str, Plan]:
    """Return the baseline, each policy of a plan alone where it is another one, and all together."""
    plans = {BASELINE: base}
    for one in fields(Plan):
        name = getattr(plan, one.name)
        if name != getattr(base, one.name):
            plans[f"{one.name}: {name}"] = replace(base, **{one.name: name})
    if len(plans) > 2:
        plans[TOGETHER] = plan
    return plans


def compare(machine: Machine, title: str, steps: Steps, num_ffn: int, plan: Plan) -> Comparison:
    """Run a plan's policies one by one and together, beside a baseline without any."""
    require_range("entries", machine.entries, 1, max(1, machine.places // machine.cluster.devices))
    execution.Rows(np.ones((1, 1), np.int64), machine.capacity_factor, machine.block)
    require(0 <= machine.wide_share <= 1, f"must be in 0..1, not {machine.wide_share:g}", key="wide-share")
    share = -(-machine.places // machine.cluster.devices)
    check_capacity(machine.system, len(steps.ids) * share * steps.expert.weight_bytes)
    plans: Mapping[str, Plan] = alone_and_together(plan, machine.baseline)
    results = {name: run(machine, steps, num_ffn, one) for name, one in plans.items()}
    beside = BOUND if machine.jobs is None else BOUND_BESIDE_BLOCK
    return Comparison("combined", title, BASELINE, results, BOUND_ALONE if machine.alone else beside)
