"""The dispatcher's exported Verilog under cocotb: every stream bit for bit and cycle for cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from golden.dispatch_streams import dispatch_streams
from rtl.dispatch import Dispatch, DispatchConfig
from sim.dispatch import Units, dispatch_cycles
from sim.rtlsim import RunSpec, Set, Sink, Source
from spec.design import Policy
from spec.model import CapacityRule
from spec.registers import POLICIES
from tests.bench.runner import CocotbBuild, build
from tests.bench.scenarios import MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import PATTERN_CYCLES, bits_of
from tests.coverage.points import dispatch_points, not_met

CONFIG = DispatchConfig(num_experts=5, top_k=2, window_tokens=4, shared=True, capacity_bits=4)
UNITS = DispatchConfig(
    num_experts=5,
    top_k=2,
    window_tokens=4,
    num_units=3,
    shared=True,
    capacity_bits=4,
    capacity_rule=CapacityRule.BATCH_PRIORITY,
    longest_queue=True,
    ranks=True,
)
DEEP = replace(CONFIG, deep=True)


def bench() -> CocotbBuild:
    """Return the bench of this file's one build."""
    return build("dispatch", lambda: Dispatch(CONFIG), config=CONFIG)


@dataclass(frozen=True)
class Load:
    """Tokens of a scenario: (tokens, top_k) experts, tokens of each batch, capacity; where they may go.

    ``near``: weights differ in one bit, any one, or in none, so that each bit decides which is larger.
    """

    ids: np.ndarray
    batches: list[int]
    capacity: int = 0
    policy: Policy = Policy.QUEUE_ORDER
    placement: tuple[int, ...] = ()
    retire_rate: float = 0.2
    near: bool = False

    def weights(self, rng: np.random.Generator) -> np.ndarray:
        """Return bf16 bits for all assignments."""
        shape = self.ids.shape
        if not self.near:
            return rng.integers(0, 1 << 16, size=shape, dtype=np.uint16)
        flipped = np.int64(1) << rng.integers(0, 17, size=shape)
        return (rng.integers(1 << 16) ^ flipped & 0xFFFF).astype(np.uint16)


def random_load(rng: np.random.Generator) -> Load:
    """Return batches of random lengths that choose distinct experts, evenly or not."""
    batches = rng.integers(1, 12, size=int(rng.integers(1, 5))).tolist()
    skew = rng.choice([0, 1, 3]) * np.arange(CONFIG.num_experts) / CONFIG.num_experts
    keys = rng.random((sum(batches), CONFIG.num_experts)) + skew
    ids = np.argsort(keys, axis=1)[:, : CONFIG.top_k]
    return Load(ids, batches, capacity=int(rng.choice([0, 1, 2, 5])))


def corner(ids: list[list[int]], *, batches: list[int] | None = None, capacity: int = 0) -> Load:
    """Return tokens that choose exactly these experts."""
    return Load(np.array(ids), batches or [len(ids)], capacity)


CORNERS = {
    "all tokens to one expert": corner([[2, 2]] * 11),
    "an expert with none": corner([[0, 4]] * 9),
    "capacity overflow": corner([[1, 0], [1, 2], [1, 3]] * 5, capacity=2, batches=[4, 11]),
    "capacity reached in every batch": corner([[1, 3]] * 12, capacity=1, batches=[1, 1, 3, 7]),
    "batches of one token": corner([[0, 1], [1, 2], [3, 1]] * 4, batches=[1] * 12),
    "last window partial": corner([[0, 1], [1, 2], [3, 1]] * 3),
    "highest expert only": corner([[4, 4]] * 5),
    # What one batch has counted of any expert counts for nothing in the next one.
    "every expert full in every batch": corner(
        [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4], [4, 3], [2, 1], [0, 4], [3, 2], [1, 0]] * 2,
        capacity=1,
        batches=[5, 5, 5, 5],
    ),
    "largest capacity": corner([[4, 0]] * 20, capacity=15),
}


def scenario(name: str, load: Load, traffic: Traffic, config: DispatchConfig = CONFIG) -> Scenario:
    """Return the run of a load under this traffic, with what golden and model say about it."""
    num_tokens, top_k = load.ids.shape
    weights = load.weights(traffic.rng)
    streams = dispatch_streams(
        load.ids,
        weights,
        num_experts=config.num_experts,
        window_tokens=config.window_tokens,
        batch_lengths=load.batches,
        capacity=load.capacity,
        capacity_rule=config.capacity_rule,
        shared=config.shared,
        policy=load.policy,
    )
    beats = [
        bits_of(
            config.assignment,
            expert=load.ids[token, j],
            weight=weights[token, j],
            last=j == top_k - 1,
            # Only the last beat's flag counts; the others carry noise.
            last_token=streams.last_token[token] if j == top_k - 1 else traffic.rng.integers(2),
        )
        for token in range(num_tokens)
        for j in range(top_k)
    ]
    expects = [
        bits_of(config.expect, slot=slot, count=count, last_token=last)
        for slot, count, last in zip(
            streams.expect_slot, streams.expect_count, streams.last_token, strict=True
        )
    ]
    fields = (
        ("expert", "slot", "rank", "weight", "last") if config.ranks else ("expert", "slot", "weight", "last")
    )
    entries = [
        bits_of(config.entry, **{field: getattr(streams, f"entry_{field}")[n] for field in fields})
        for n in range(len(streams.entry_expert))
    ]
    arrivals = traffic.arrivals(len(beats))
    expect_pattern, expect_ready = traffic.ready()
    ready = {name: traffic.ready() for name in config.outputs()}
    pulses = traffic.rng.random((PATTERN_CYCLES, config.num_units)) < load.retire_rate
    pulses[-1] = True  # and so it stays
    several = config.num_units > 1
    model = dispatch_cycles(
        streams,
        arrivals,
        expect_ready=expect_ready,
        unit_ready=[model_ready for _, model_ready in ready.values()],
        units=Units(config.num_units, np.array(load.placement), config.unit_jobs) if several else None,
        retired=[np.append(np.flatnonzero(column), range(PATTERN_CYCLES, MOST_CYCLES)) for column in pulses.T]
        if several
        else (),
        pipeline=config.pipeline,
    )
    outputs = {
        name: ([entries[n] for n in numbers], cycles)
        for name, numbers, cycles in zip(config.outputs(), model.unit_entries, model.units, strict=True)
    }
    return Scenario(
        name,
        RunSpec(
            sources={"i": Source(beats, arrivals)},
            sinks={
                "o_expect": Sink(len(expects), expect_pattern),
                **{name: Sink(len(payloads), ready[name][0]) for name, (payloads, _) in outputs.items()},
            },
            statics={"capacity": load.capacity, "policy": POLICIES.index(load.policy)},
            writes=[
                (int(cycle), name, int(column[cycle]))
                for name, column in zip(config.retirements(), pulses.T, strict=False)
                for cycle in np.flatnonzero(np.diff(column, prepend=False))
            ],
            prologue=[
                Set({"place_we": 1, "place_addr": expert, "place_units": units})
                for expert, units in enumerate(load.placement)
            ],
            probes=["dropped"],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i": Expected(beats, model.i, config.assignment),
            "o_expect": Expected(expects, model.o_expect, config.expect),
            **{name: Expected(*wanted, config.entry) for name, wanted in outputs.items()},
        },
        {"dropped": streams.dropped},
    )


def placed(rng: np.random.Generator, load: Load, *, placement: tuple[int, ...] = ()) -> Load:
    """Return the load with a policy, units for each expert and how fast they are, drawn."""
    everything = (1 << UNITS.num_units) - 1
    drawn = rng.integers(1, everything + 1, size=UNITS.num_experts + 1)
    return replace(
        load,
        policy=list(Policy)[rng.integers(len(Policy))],
        placement=placement or tuple(int(units) for units in drawn),
        retire_rate=float(rng.choice([0.02, 0.2, 0.7])),
        near=load.near or bool(rng.integers(2)),
    )


ALL_UNITS = ((1 << UNITS.num_units) - 1,) * (UNITS.num_experts + 1)
UNIT_CORNERS = {
    "all replicas full": placed(
        np.random.default_rng(1), corner([[t % 5, (t + 1) % 5] for t in range(16)]), placement=ALL_UNITS
    ),
    "one busy, others idle": placed(
        np.random.default_rng(2), corner([[0, t % 4 + 1] for t in range(16)]), placement=(1, 2, 4, 6, 6, 6)
    ),
    "one unit for all": placed(np.random.default_rng(3), corner([[3, 1]] * 9), placement=(2,) * 6),
    "places for the first choices": placed(
        np.random.default_rng(4), corner([[1, 0], [2, 0], [0, 1], [0, 2]] * 4, capacity=2, batches=[4, 12])
    ),
    "largest weight first": placed(
        np.random.default_rng(5), corner([[3, 4], [4, 3]] * 7, capacity=1, batches=[3, 4, 4, 3])
    ),
    # Each place of a window of four decides who is kept.
    **{
        f"weights that differ in a bit, {capacity} places": placed(
            np.random.default_rng(5 + capacity),
            replace(
                corner([[3, 4], [4, 3]] * 16, capacity=capacity, batches=[4, 3, 4, 2, 4, 4, 3, 4, 4]),
                near=True,
            ),
        )
        for capacity in (1, 2, 3)
    },
}


def unit_scenarios(seed: int) -> list[Scenario]:
    """Return random loads and every corner of several units, each under all mixes, and resets."""
    found = []
    for traffic in mixes(seed):
        rng = traffic.rng
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        random = scenario(f"random, {label}", placed(rng, random_load(rng)), traffic, UNITS)
        found += [random.cut(rng), random]
        found += [scenario(f"{name}, {label}", load, traffic, UNITS) for name, load in UNIT_CORNERS.items()]
    return found


def scenarios(seed: int, config: DispatchConfig = CONFIG) -> list[Scenario]:
    """Return random loads and every corner, each under all mixes of gaps and stalls, and resets."""
    found = []
    for traffic in mixes(seed):
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        found.append(scenario(f"random, {label}", random_load(traffic.rng), traffic, config))
        found.append(scenario(f"random, {label}", random_load(traffic.rng), traffic, config).cut(traffic.rng))
        found += [scenario(f"{name}, {label}", load, traffic, config) for name, load in CORNERS.items()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_dispatch(seed):
    runs = scenarios(seed)
    results = run_scenarios(bench(), "dispatch", runs, seed=seed)
    if seed == 1:
        assert not_met(dispatch_points(CONFIG), runs, results) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_dispatch_to_several_units(seed):
    bench = build("dispatch_units", lambda: Dispatch(UNITS), config=UNITS)
    run_scenarios(bench, "dispatch", unit_scenarios(seed), seed=seed)


@pytest.mark.long
def test_deep_dispatch():
    run_scenarios(
        build("dispatch_deep", lambda: Dispatch(DEEP), config=DEEP), "dispatch", scenarios(1, DEEP), seed=1
    )


def test_corners_are_reached():
    runs = {run.name.partition(",")[0]: run for run in scenarios(1)}
    for name, load in CORNERS.items():
        dropped = runs[name].pulses["dropped"]
        assert (dropped > 0) == (load.capacity > 0), name
    assert "reset in the middle of random" in runs
