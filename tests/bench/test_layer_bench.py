"""The layer's exported Verilog under cocotb, from the registers to the last output bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from golden.formats import Bits16
from golden.layer_bf16 import layer_bf16, layer_image
from golden.weights import LayerWeights, random_tokens, random_weights, to_bf16_values
from rtl.expert.layouts import PAGE_BITS
from rtl.gating import token_layout
from rtl.layer import FpgaLayer
from sim.accelerator import cycle_checks, seen_assignments, seen_times
from sim.divergence import PortCheck
from sim.layer import LayerShape, layer_cycles
from sim.rtlsim import (
    ReadMemory,
    RunResult,
    RunSpec,
    Sink,
    Source,
    Step,
    Trace,
    reg_read,
    reg_wait,
    reg_write,
)
from sim.streams import size
from spec.design import ArrayDesign, DesignSpec, Engine, GateDesign, MemoryDesign, Policy
from spec.geometry import PAGE_BYTES, ImageGeometry, ceil_div
from spec.model import FfnSpec, GatingSpec, ModelSpec, Score
from spec.registers import (
    CAPACITY_BITS,
    CONTROL_CLEAR,
    CONTROL_LOAD,
    COUNTERS,
    EXPERT_BITS,
    IDENTITY,
    POLICIES,
    PROBE,
    REGISTERS,
    STATUS_LOADED,
    STATUS_READ_ERROR,
    counter_address,
)
from tests.bench.runner import build
from tests.bench.scenarios import EXTREMES, MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import bits_of
from tests.layer_beats import beat_by_beat, late

# DeepSeek-V3 in small: groups, selection bias, scale, shared expert. No size divides the array's.
MODEL = ModelSpec(
    name="bench",
    d_model=10,
    gating=GatingSpec(
        num_experts=8,
        top_k=2,
        score=Score.SIGMOID,
        selection_bias=True,
        num_groups=4,
        topk_groups=2,
        epsilon=1e-20,
        scale=2.5,
    ),
    ffn=FfnSpec(d_expert=6),
    d_shared=9,
)
DESIGN = DesignSpec(
    name="bench",
    engine=Engine.FPGA,
    gate=GateDesign(lanes=8, logits_per_cycle=2),
    array=ArrayDesign(rows=4, cols=4, act_lanes=2),
    memory=MemoryDesign(width_bits=64, latency_cycles=10, burst_beats=2, max_outstanding=4),
    stream_lanes=2,
    window_tokens=4,
)
RULED = replace(
    DESIGN, policy=Policy.LONGEST_QUEUE, memory=replace(DESIGN.memory, burst_beats=8, max_outstanding=2)
)
"""Which serves in the order of experts, too, as its register says; what is loaded fills no whole bursts."""
IMAGE = ImageGeometry.of(MODEL, RULED)
VALIDS = {"output": "m_axis_tvalid", "addresses": "m_axi_arvalid"}
"""Streams of the probe that go out, and what offers their beats."""
TIMED = ("cycles", "stall_")
"""Counters that depend on the memory's times begin so."""
ROUTER_BEATS = ceil_div(IMAGE.gate.load_beats, RULED.memory.burst_beats) * RULED.memory.burst_beats


def bf16_bits(values: np.ndarray) -> Bits16:
    """Return float32 values that are bf16 numbers as patterns."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def policy_word(rng: np.random.Generator, policy: Policy) -> int:
    """Return a value of POLICY: those that name none are the first one, and nobody reads bits beyond."""
    word = rng.choice([n for n in range(4) if (n == 1) == (policy is POLICIES[1])])
    return int(word | rng.integers(1 << 30) << 2)


def any_page(rng: np.random.Generator, image: ImageGeometry) -> int:
    """Return where in memory an image may lie."""
    return int(rng.integers((1 << PAGE_BITS) - ceil_div(image.num_bytes, PAGE_BYTES)))


def load_again(timeout: int = 100_000) -> list[Step]:
    """Return the steps that load a router again, which is not done before it has begun, and read STATUS."""
    loaded = 1 << STATUS_LOADED
    return [
        reg_write(REGISTERS["CONTROL"], 1 << CONTROL_LOAD),
        reg_wait(REGISTERS["STATUS"], loaded, loaded, timeout),
        reg_read(REGISTERS["STATUS"]),
    ]


def scenario(
    name: str, weights: LayerWeights, tokens: Bits16, batches: list[int], capacity: int, traffic: Traffic
) -> Scenario:
    """Return the run of batches of tokens under this traffic, with what golden and models say about it.

    The memory has the design's latency, no gaps and always takes addresses, as the models assume. Where the
    image lies and the order of service are drawn.
    """
    rng = traffic.rng
    design = replace(RULED, policy=list(Policy)[rng.integers(len(Policy))])
    policy = policy_word(rng, design.policy)
    page = any_page(rng, IMAGE)
    lanes, words = design.array.act_lanes, MODEL.d_model // design.array.act_lanes
    golden = layer_bf16(
        replace(MODEL, expert_capacity=capacity),
        IMAGE,
        weights,
        tokens,
        window_tokens=design.window_tokens,
        batch_lengths=batches,
        policy=design.policy,
    )
    ends_batch = np.isin(np.arange(len(tokens)), np.cumsum(batches) - 1)
    per_token = IMAGE.gate.input_beats
    beats = [
        bits_of(
            token_layout(design.stream_lanes),
            data=elements,
            # Only a token's last beat counts; the others carry noise.
            last=ends_batch[n // per_token] if n % per_token == per_token - 1 else rng.integers(2),
        )
        for n, elements in enumerate(tokens.reshape(-1, design.stream_lanes))
    ]
    outputs = [
        int.from_bytes(elements.tobytes(), "little")
        | int(ends_batch[n // words] and n % words == words - 1) << 16 * lanes
        for n, elements in enumerate(golden.output.reshape(-1, lanes))
    ]
    pattern, ready = traffic.ready()
    arrivals = traffic.arrivals(len(beats))
    shape = LayerShape(IMAGE, design, golden.streams)
    modelled = layer_cycles(shape, late(shape, arrivals), ready)
    times = beat_by_beat(shape, modelled, arrivals, ready).streams
    memory = ReadMemory(
        layer_image(MODEL, IMAGE, weights), design.memory.latency_cycles, base=page * PAGE_BYTES
    )

    def blocks(result: RunResult) -> list[PortCheck]:
        seen = seen_times(*result.probes["probe"])
        found = cycle_checks(shape, seen)
        for stream, model in times.items():
            # The model has no beats that wait in the memory.
            for what in ("taken",) if stream == "beats" else ("taken", "offered"):
                cycles = getattr(seen.streams[stream], what)
                trace = Trace(cycles, np.zeros((len(cycles), 1), np.uint64))
                found.append(PortCheck("probe", f"{stream} {what}", trace, None, getattr(model, what)))
        passed = seen_assignments(*result.probes["probe"])
        wanted = golden.routing.ids.astype(np.uint64) | golden.routing.weights.astype(np.uint64) << np.uint64(
            EXPERT_BITS
        )
        found.append(PortCheck("probe", "assignment", passed, wanted.reshape(-1, 1), passed.cycles))
        return found

    def sums(result: RunResult) -> list[str]:
        cycles, values = result.probes["probe"]
        told = {stream: values >> np.uint64(2 * n) & np.uint64(3) for n, stream in enumerate(PROBE)}
        wrong = [f"{stream} moves and waits" for stream, bits in told.items() if (bits == 3).any()]
        # The combiner has room and time for whatever the other blocks give it.
        wrong += [f"{stream} waits" for stream in ("expects", "contributions") if (told[stream] & 2).any()]
        wrong += [
            f"{stream} neither moves nor waits in each cycle of {valid}"
            for stream, valid in VALIDS.items()
            if not np.array_equal(result.probes[valid][0], cycles[told[stream] != 0])
        ]
        # The model does not say which of both the array waits for; in a cycle it does one thing.
        read = dict(zip(COUNTERS, result.reads[2:], strict=False))
        if read.keys() != COUNTERS.keys():
            return wrong  # It ended before; that is told.
        does = ("mac_active", "stall_weights", "stall_accumulators", "stall_hidden")
        busy = sum(read[count] for count in does)
        if busy > read["cycles"]:
            wrong.append(f"{busy} MAC slots, used or waiting, in {read['cycles']} cycles")
        return wrong

    # A beat is there when the one before it has gone.
    behind = np.concatenate([[-1], times["tokens"].taken[:-1]]) + 1
    times["tokens"] = replace(times["tokens"], offered=np.maximum(arrivals, behind))
    waits = {name: size(times[name].waits) for name in ("tokens", "entries", "contributions", "output")}
    counts = {
        "tokens_in": len(tokens),
        "tokens_out": len(tokens),
        "assignments": golden.routing.ids.size,
        "dropped": golden.streams.dropped,
        "mac_active": modelled.fires,
        "weight_beats": modelled.tiles * shape.engine.tile_beats,
        "read_beats": modelled.read_beats,
        **dict.fromkeys(("activates", "refreshes", "mac_commands", "register_writes", "register_reads"), 0),
    }
    timed = {
        "cycles": int(times["output"].taken[-1] - times["tokens"].taken[0]) + 1,
        "stall_input": waits["tokens"],
        "stall_dispatch": waits["entries"],
        "stall_weights": modelled.wait_tile,
        "stall_combine": waits["contributions"],
        "stall_output": waits["output"],
    }
    counted = {name: {**counts, **timed}.get(name) for name in COUNTERS}
    return Scenario(
        name,
        RunSpec(
            sources={"i": Source(beats, arrivals)},
            sinks={"o": Sink(len(outputs), pattern)},
            memories={"o_ar": memory},
            prologue=[
                reg_read(REGISTERS["IDENTITY"]),
                reg_read(REGISTERS["STATUS"]),
                reg_write(REGISTERS["IMAGE_PAGE"], page),
                reg_write(REGISTERS["CAPACITY"], capacity),
                reg_write(REGISTERS["POLICY"], policy),
                reg_write(REGISTERS["CONTROL"], 1 << CONTROL_LOAD | 1 << CONTROL_CLEAR),
                reg_wait(REGISTERS["STATUS"], 1 << STATUS_LOADED, 1 << STATUS_LOADED),
            ],
            epilogue=[
                *(reg_read(counter_address(counter)) for counter in COUNTERS),
                reg_read(REGISTERS["STATUS"]),
            ],
            probes=["probe", *VALIDS.values()],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i": Expected(beats, times["tokens"].taken),
            "o": Expected(outputs, times["output"].taken),
        },
        reads={"IDENTITY": IDENTITY, "STATUS before loading": 0, **counted, "STATUS": 1 << STATUS_LOADED},
        derived=blocks,
        rules=sums,
    )


def with_memory(whole: Scenario, name: str, **changes: Any) -> Scenario:
    """Return the scenario with another memory, of whose cycles the models say nothing."""
    memory = replace(whole.spec.memories["o_ar"], **changes)
    ports = {port: replace(expected, cycles=None) for port, expected in whole.ports.items()}
    spec = replace(whole.spec, memories={"o_ar": memory})
    untimed = {read: None if read.startswith(TIMED) else wanted for read, wanted in whole.reads.items()}
    return Scenario(f"{name}, {whole.name}", spec, ports, reads=untimed, rules=whole.rules)


def hesitant(whole: Scenario, traffic: Traffic) -> Scenario:
    """Return the scenario with a memory that pauses between beats and does not always take addresses."""
    rng = traffic.rng
    extra, gaps = rng.integers(0, 9, size=13), rng.integers(0, 3, size=17)
    return with_memory(whole, "memory with gaps", extra=extra, gaps=gaps, ready=traffic.ready()[0])


def failing(whole: Scenario, name: str, beat: int, *, response: int) -> Scenario:
    """Return the scenario with an error response to one beat: the data counts, STATUS tells.

    Loading the router anew forgets it.
    """
    responses = np.zeros(1 << 16, dtype=np.uint8)
    responses[beat] = response
    changed = with_memory(whole, name, responses=responses)
    status = whole.reads["STATUS"]
    spec = replace(changed.spec, epilogue=[*whole.spec.epilogue, *load_again()])
    reads = {**whole.reads, "STATUS": status | 1 << STATUS_READ_ERROR, "STATUS after loading": status}
    # An error costs no time.
    return replace(whole, name=changed.name, spec=spec, reads=reads)


def scenarios(seed: int) -> list[Scenario]:
    """Return batches of random lengths, corners by name and resets, under all mixes of traffic."""
    found = []
    for index, traffic in enumerate(mixes(seed)):
        rng = traffic.rng
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        weights = random_weights(MODEL, 100 * seed + index)
        batches = rng.integers(1, 8, size=int(rng.integers(1, 4))).tolist()
        tokens = bf16_bits(random_tokens(MODEL, sum(batches), 100 * seed + index))
        random = scenario(f"random, {label}", weights, tokens, batches, 0, traffic)
        found += [random.cut(rng), random, hesitant(random, traffic)]
        if traffic.gaps != traffic.stalls:
            continue
        preferred = np.zeros(8, np.float32)
        preferred[[2, 3]] = 4
        few = replace(weights, selection_bias=preferred)
        none = np.zeros(8, np.float32)
        same = replace(weights, router=np.zeros_like(weights.router), selection_bias=none)
        limits = rng.choice(np.array([0, -0.0, 1e-38, 3e38, -3e38], np.float32), weights.up.shape)
        wild = replace(weights, up=to_bf16_values(limits))
        cases = [
            ("all tokens to one pair of experts", few, tokens, batches, 0),
            ("capacity overflow", few, tokens, batches, 1),
            ("ties", same, tokens, batches, 0),
            ("one token", weights, tokens[:1], [1], 0),
            ("extreme values", wild, rng.choice(EXTREMES, tokens.shape), batches, 0),
        ]
        # All bits of the register count.
        beyond = [1 + (1 << bit) for bit in range(4 + index // 4, CAPACITY_BITS, 3)]
        cases += [("capacity that nobody reaches", few, tokens, batches, capacity) for capacity in beyond]
        found += [scenario(f"{name}, {label}", *case, traffic) for name, *case in cases]
        of_router, of_expert = int(rng.integers(IMAGE.gate.load_beats)), ROUTER_BEATS + int(rng.integers(20))
        found.append(failing(random, "memory error in the router", of_router, response=2))
        found.append(failing(random, "memory error in an expert", of_expert, response=3))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_layer(seed):
    rtl = build("layer", lambda: FpgaLayer(MODEL, RULED), config=(MODEL, RULED))
    run_scenarios(rtl, "layer", scenarios(seed), seed=seed)


def test_corners_are_reached():
    runs = {run.name.partition(",")[0]: run for run in scenarios(1)}
    assert runs["capacity overflow"].reads["dropped"] > 0
    assert runs["capacity that nobody reaches"].reads["dropped"] == 0
    assert runs["all tokens to one pair of experts"].reads["dropped"] == 0
    assert runs["one token"].reads["tokens_in"] == 1
