"""The layer's exported Verilog under cocotb, from the registers to the last output bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from golden.formats import Bits16
from golden.layer_bf16 import layer_bf16, layer_image
from golden.weights import LayerWeights, random_tokens, random_weights, to_bf16_values
from rtl.gating import token_layout
from rtl.layer import FpgaLayer
from sim.accelerator import cycle_checks, seen_times
from sim.divergence import PortCheck
from sim.layer import LayerShape, layer_cycles
from sim.rtlsim import ReadMemory, RunResult, RunSpec, Sink, Source, reg_read, reg_wait, reg_write
from spec.design import ArrayDesign, DesignSpec, Engine, GateDesign, MemoryDesign
from spec.geometry import ImageGeometry, ceil_div
from spec.model import FfnSpec, GatingSpec, ModelSpec, Score
from spec.registers import (
    CONTROL_CLEAR,
    CONTROL_LOAD,
    IDENTITY,
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
IMAGE = ImageGeometry.of(MODEL, DESIGN)
IMAGE_PAGE = 1
ROUTER_BEATS = ceil_div(IMAGE.gate.load_beats, DESIGN.memory.burst_beats) * DESIGN.memory.burst_beats


def bf16_bits(values: np.ndarray) -> Bits16:
    """Return float32 values that are bf16 numbers as patterns."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def scenario(
    name: str, weights: LayerWeights, tokens: Bits16, batches: list[int], capacity: int, traffic: Traffic
) -> Scenario:
    """Return the run of batches of tokens under this traffic, with what golden and models say about it.

    The memory has the design's latency, no gaps and always takes addresses, as the models assume.
    """
    rng = traffic.rng
    lanes, words = DESIGN.array.act_lanes, MODEL.d_model // DESIGN.array.act_lanes
    golden = layer_bf16(
        replace(MODEL, expert_capacity=capacity),
        IMAGE,
        weights,
        tokens,
        window_tokens=DESIGN.window_tokens,
        batch_lengths=batches,
    )
    ends_batch = np.isin(np.arange(len(tokens)), np.cumsum(batches) - 1)
    per_token = IMAGE.gate.input_beats
    beats = [
        bits_of(
            token_layout(DESIGN.stream_lanes),
            data=elements,
            # Only a token's last beat counts; the others carry noise.
            last=ends_batch[n // per_token] if n % per_token == per_token - 1 else rng.integers(2),
        )
        for n, elements in enumerate(tokens.reshape(-1, DESIGN.stream_lanes))
    ]
    outputs = [
        int.from_bytes(elements.tobytes(), "little")
        | int(ends_batch[n // words] and n % words == words - 1) << 16 * lanes
        for n, elements in enumerate(golden.output.reshape(-1, lanes))
    ]
    pattern, ready = traffic.ready()
    arrivals = traffic.arrivals(len(beats))
    shape = LayerShape(IMAGE, DESIGN, golden.streams)
    modelled = layer_cycles(shape, late(shape, arrivals), ready)
    times = beat_by_beat(shape, modelled, arrivals, ready).streams
    memory = ReadMemory(
        np.concatenate([np.zeros(IMAGE_PAGE * 4096, np.uint8), layer_image(MODEL, IMAGE, weights)]),
        DESIGN.memory.latency_cycles,
    )

    def blocks(result: RunResult) -> list[PortCheck]:
        return cycle_checks(shape, seen_times(*result.probes["probe"]))

    counts = {
        "tokens_in": len(tokens),
        "tokens_out": len(tokens),
        "assignments": golden.routing.ids.size,
        "dropped": golden.streams.dropped,
    }
    return Scenario(
        name,
        RunSpec(
            sources={"i": Source(beats, arrivals)},
            sinks={"o": Sink(len(outputs), pattern)},
            memories={"o_ar": memory},
            prologue=[
                reg_read(REGISTERS["IDENTITY"]),
                reg_write(REGISTERS["IMAGE_PAGE"], IMAGE_PAGE),
                reg_write(REGISTERS["CAPACITY"], capacity),
                reg_write(REGISTERS["CONTROL"], 1 << CONTROL_LOAD | 1 << CONTROL_CLEAR),
                reg_wait(REGISTERS["STATUS"], 1 << STATUS_LOADED, 1 << STATUS_LOADED),
            ],
            epilogue=[
                *(reg_read(counter_address(counter)) for counter in counts),
                reg_read(REGISTERS["STATUS"]),
            ],
            probes=["probe"],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i": Expected(beats, times["tokens"].taken),
            "o": Expected(outputs, times["output"].taken),
        },
        reads={"IDENTITY": IDENTITY, **counts, "STATUS": 1 << STATUS_LOADED},
        derived=blocks,
    )


def with_memory(whole: Scenario, name: str, **changes: Any) -> Scenario:
    """Return the scenario with another memory, of whose cycles the models say nothing."""
    memory = replace(whole.spec.memories["o_ar"], **changes)
    ports = {port: replace(expected, cycles=None) for port, expected in whole.ports.items()}
    spec = replace(whole.spec, memories={"o_ar": memory})
    return Scenario(f"{name}, {whole.name}", spec, ports, reads=whole.reads)


def hesitant(whole: Scenario, traffic: Traffic) -> Scenario:
    """Return the scenario with a memory that pauses between beats and does not always take addresses."""
    rng = traffic.rng
    extra, gaps = rng.integers(0, 9, size=13), rng.integers(0, 3, size=17)
    return with_memory(whole, "memory with gaps", extra=extra, gaps=gaps, ready=traffic.ready()[0])


def failing(whole: Scenario, name: str, beat: int) -> Scenario:
    """Return the scenario with an error response to one beat: the data counts, STATUS tells.

    Loading the router anew forgets it.
    """
    responses = np.zeros(1 << 16, dtype=np.uint8)
    responses[beat] = 2
    changed = with_memory(whole, name, responses=responses)
    status = whole.reads["STATUS"]
    again = [
        reg_write(REGISTERS["CONTROL"], 1 << CONTROL_LOAD),
        reg_wait(REGISTERS["STATUS"], status, status),
        reg_read(REGISTERS["STATUS"]),
    ]
    spec = replace(changed.spec, epilogue=[*whole.spec.epilogue, *again])
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
        found += [scenario(f"{name}, {label}", *case, traffic) for name, *case in cases]
        found.append(failing(random, "memory error in the router", int(rng.integers(IMAGE.gate.load_beats))))
        found.append(failing(random, "memory error in an expert", ROUTER_BEATS + int(rng.integers(20))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_layer(seed):
    rtl = build("layer", lambda: FpgaLayer(MODEL, DESIGN), config=(MODEL, DESIGN))
    run_scenarios(rtl, "layer", scenarios(seed), seed=seed)


def test_corners_are_reached():
    runs = {run.name.partition(",")[0]: run for run in scenarios(1)}
    assert runs["capacity overflow"].reads["dropped"] > 0
    assert runs["all tokens to one pair of experts"].reads["dropped"] == 0
    assert runs["one token"].reads["tokens_in"] == 1
