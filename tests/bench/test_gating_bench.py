"""The gate's exported Verilog under cocotb: every stream bit for bit and cycle for cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pytest

from golden.formats import bf16_encode
from golden.gating_bf16 import RoutingBf16, route_bf16
from golden.image import router_image
from rtl.gating import Gate, assignment_layout, token_layout
from sim.divergence import PortCheck
from sim.gating import gate_cycles
from sim.rtlsim import RunResult, RunSpec, Sink, Source, Trace
from spec.geometry import GateGeometry
from spec.model import GatingSpec, Normalise, Score
from tests.bench.runner import build
from tests.bench.scenarios import EXTREMES, MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import bits_of
from tests.coverage.points import gating_points, not_met

SIZES = {"lanes": 8, "logits_per_cycle": 2, "stream_lanes": 2, "load_elements": 4}
GEOMETRIES = {
    # Switch: k = 1, biased logits, softmax over all experts; the last row and the last beat are partial.
    "softmax": GateGeometry(
        gating=GatingSpec(num_experts=5, top_k=1, logit_bias=True, normalise=Normalise.NONE),
        d_model=9,
        **SIZES,
    ),
    # DeepSeek-V3: sigmoid, selection bias, two of four groups, normalised and scaled weights.
    "sigmoid": GateGeometry(
        gating=GatingSpec(
            num_experts=12,
            top_k=4,
            score=Score.SIGMOID,
            selection_bias=True,
            num_groups=4,
            topk_groups=2,
            epsilon=1e-20,
            scale=2.5,
        ),
        d_model=12,
        **SIZES,
    ),
    # gpt-oss with k = E: everything is chosen, and only order and weights tell.
    "all": GateGeometry(gating=GatingSpec(num_experts=3, top_k=3, logit_bias=True), d_model=5, **SIZES),
}


@dataclass(frozen=True)
class Load:
    """A router, its bias, and (tokens, d_model) tokens as bf16 patterns."""

    router: np.ndarray
    bias: np.ndarray
    tokens: np.ndarray


def random_load(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Return a router and up to 12 tokens."""
    num_experts, d_model = geometry.gating.num_experts, geometry.d_model
    return Load(
        bf16_encode(rng.standard_normal((num_experts, d_model))),
        rng.standard_normal(num_experts).astype(np.float32),
        bf16_encode(2 * rng.standard_normal((int(rng.integers(1, 13)), d_model))),
    )


def all_to_one(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """The bias of the last expert outweighs everything."""
    load = random_load(geometry, rng)
    load.bias[-1] = 100
    return load


def never_chosen(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """No token wants expert 1."""
    load = random_load(geometry, rng)
    load.bias[1] = -100
    return load


def ties(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Experts with equal rows and biases: the lowest index wins."""
    load = random_load(geometry, rng)
    same = rng.integers(0, 2, size=len(load.router))
    return Load(load.router[same], load.bias[same], load.tokens)


def all_equal(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """A router of zeros: every score is the same."""
    load = random_load(geometry, rng)
    return Load(np.zeros_like(load.router), np.zeros_like(load.bias), load.tokens)


def extreme_values(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Tokens and a router of limits of the format, infinities and NaN among them."""
    load = random_load(geometry, rng)
    return Load(rng.choice(EXTREMES, load.router.shape), load.bias, rng.choice(EXTREMES, load.tokens.shape))


def any_pattern(geometry: GateGeometry, rng: np.random.Generator) -> Load:
    """Any 16 bits at all."""
    load = random_load(geometry, rng)
    anything = rng.integers(0, 1 << 16, load.tokens.shape, dtype=np.uint16)
    return Load(load.router, 1000 * load.bias, anything)


LOADS = (random_load, all_to_one, never_chosen, ties, all_equal, extreme_values, any_pattern)


def routing_of(geometry: GateGeometry, load: Load) -> RoutingBf16:
    """Return golden's choice of a load."""
    gating = geometry.gating
    bias = {"logit_bias": load.bias} if gating.logit_bias else {"selection_bias": load.bias}
    return route_bf16(gating, load.router, load.tokens, geometry.cols, **bias)


def assignments(geometry: GateGeometry, load: Load, last_token: np.ndarray) -> list[int]:
    """Return golden's beats of ``o``."""
    gating, routing = geometry.gating, routing_of(geometry, load)
    return [
        bits_of(
            assignment_layout(gating.num_experts),
            expert=routing.ids[token, slot],
            weight=routing.weights[token, slot],
            last=slot == gating.top_k - 1,
            last_token=last_token[token],
        )
        for token in range(len(load.tokens))
        for slot in range(gating.top_k)
    ]


def input_beats(
    geometry: GateGeometry, load: Load, last_token: np.ndarray, rng: np.random.Generator
) -> list[int]:
    """Return the beats of ``i``; elements beyond a token and flags that do not count are noise."""
    count, lanes = geometry.input_beats, geometry.stream_lanes
    padded = rng.integers(0, 1 << 16, (len(load.tokens), count * lanes), dtype=np.uint16)
    padded[:, : geometry.d_model] = load.tokens
    flags = rng.integers(0, 2, (len(load.tokens), count))
    flags[:, -1] = last_token
    return [
        bits_of(token_layout(lanes), data=elements, last=flag)
        for elements, flag in zip(padded.reshape(-1, lanes), flags.ravel(), strict=True)
    ]


def image_beats(geometry: GateGeometry, load: Load) -> list[int]:
    """Return the beats of ``i_load``."""
    words = router_image(geometry, load.router, load.bias, load.bias).reshape(-1, geometry.load_elements)
    return [int.from_bytes(word.tobytes(), "little") for word in words]


def scenario(
    name: str,
    geometry: GateGeometry,
    loads: list[Load],
    traffic: Traffic,
    *,
    early: bool = False,
    begun: Sequence[int] = (),
) -> Scenario:
    """Return the run of loads after each other, a router each; ``early`` tokens come before the router.

    A router is taken as it comes, one beat a cycle. The next is loaded when the block is empty. ``begun``:
    so many beats of the first one come, each time, before it is begun anew.
    """
    rng = traffic.rng
    pattern, ready = traffic.ready()
    gating = geometry.gating
    layout = assignment_layout(gating.num_experts)
    image: list[int] = []
    image_arrivals: list[int] = []
    beats: list[int] = []
    arrivals: list[int] = []
    expected: list[int] = []
    writes = []
    rises: list[int] = []  # of ``loaded``
    falls: list[int] = []
    start = 0
    for number, load in enumerate(loads):
        words = image_beats(geometry, load)
        for count in (*begun, len(words)) if number == 0 else (len(words),):
            if image:
                writes += [(start, "load_start", 1), (start + 1, "load_start", 0)]
                falls += [start + 1] * (len(rises) - len(falls))
                start += 2
            image += words[:count]
            image_arrivals += traffic.arrivals(count, after=start).tolist()
            start = max(start + count, image_arrivals[-1] + 1)
            rises += [start] * (count == len(words))
        last_token = rng.random(len(load.tokens)) < 0.3
        token_beats = input_beats(geometry, load, last_token, rng)
        beats += token_beats
        arrivals += traffic.arrivals(len(token_beats), after=0 if early else start + 1).tolist()
        expected += assignments(geometry, load, last_token)
        model = gate_cycles(geometry, np.array(arrivals), ready)
        start = int(model.o[-1]) + 2

    def loaded(result: RunResult) -> list[PortCheck]:
        end = result.cycles + spec.settle
        cycles = [np.arange(*span) for span in zip_longest(rises, falls, fillvalue=end)]
        seen = Trace.of_cycles(result.probes["loaded"][0])
        return [PortCheck("gating", "loaded", seen, cycles=np.concatenate(cycles))]

    spec = RunSpec(
        sources={"i_load": Source(image, image_arrivals), "i": Source(beats, arrivals)},
        sinks={"o": Sink(len(expected), pattern)},
        writes=writes,
        probes=["loaded"],
        max_cycles=MOST_CYCLES,
    )
    taken = np.maximum.accumulate(np.array(image_arrivals) - np.arange(len(image))) + np.arange(len(image))
    return Scenario(
        name,
        spec,
        {
            "i_load": Expected(image, taken),
            "i": Expected(beats, None if early else model.i, token_layout(geometry.stream_lanes)),
            "o": Expected(expected, None if early else model.o, layout),
        },
        derived=loaded,
    )


def scenarios(geometry: GateGeometry, seed: int) -> list[Scenario]:
    """Return every kind of load under all mixes of gaps and stalls, resets and reloads among them."""
    found = []
    for traffic in mixes(seed):
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        rng = traffic.rng
        for load in LOADS:
            name = f"{load.__name__.replace('_', ' ')}, {label}"
            found.append(scenario(name, geometry, [load(geometry, rng)], traffic))
        whole = scenario(f"random load, {label}", geometry, [random_load(geometry, rng)], traffic)
        found.append(whole.cut(rng))
        both = [random_load(geometry, rng), random_load(geometry, rng)]
        found.append(scenario(f"two routers, {label}", geometry, both, traffic))
        early = [random_load(geometry, rng)]
        found.append(scenario(f"tokens before the router, {label}", geometry, early, traffic, early=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", ["sigmoid", *(pytest.param(name, marks=pytest.mark.long) for name in ("softmax", "all"))]
)
def test_gating(name, seed):
    geometry = GEOMETRIES[name]
    rtl = build(f"gating_{name}", lambda: Gate(geometry), config=geometry)
    runs = scenarios(geometry, seed)
    results = run_scenarios(rtl, "gating", runs, seed=seed)
    if (name, seed) == ("sigmoid", 1):
        assert not_met(gating_points(geometry), runs, results) == []


@pytest.mark.parametrize("name", GEOMETRIES)
def test_corners_are_reached(name):
    geometry = GEOMETRIES[name]
    layout = assignment_layout(geometry.gating.num_experts)
    mask = (1 << layout["expert"].width) - 1
    chosen = {
        run.name.partition(",")[0]: [payload & mask for payload in run.ports["o"].payloads]
        for run in scenarios(geometry, 1)
    }
    last, top_k = geometry.gating.num_experts - 1, geometry.gating.top_k
    assert set(chosen["all to one"][::top_k]) == {last}
    if top_k == geometry.gating.num_experts:
        assert set(chosen["never chosen"][top_k - 1 :: top_k]) == {1}
    else:
        assert 1 not in chosen["never chosen"]
    assert chosen["all equal"][:top_k] == list(range(top_k))
