"""The near-memory layer's exported Verilog: bits, every block's cycles, DRAM commands, every counter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from golden.layer_bf16 import LayerBf16
from golden.weights import LayerWeights, random_tokens, random_weights, to_bf16_values
from rtl.layer import PimLayer
from sim.accelerator import token_beats
from sim.divergence import PortCheck
from sim.pim_layer import PimRun, PimShape, PimTimes, bits_at, block_checks, pim_job, seen_times
from sim.pim_report import payload_checks
from sim.rtlsim import RunResult, Set, Step, Trace, Wait, reg_read, reg_write
from sim.streams import size
from sim.workload import Workload
from spec.banks import BankGeometry
from spec.design import Policy, RouterPlace
from spec.geometry import PAGE_BYTES
from spec.model import ModelSpec
from spec.registers import (
    CAPACITY_BITS,
    COUNTERS,
    PROBE,
    REGISTERS,
    STATUS_LOADED,
    STATUS_READ_ERROR,
    STATUS_REFRESHING,
)
from tests.bench.axi_cores import PIM_DESIGN
from tests.bench.runner import build
from tests.bench.scenarios import EXTREMES, Scenario, Traffic, mixes, run_scenarios
from tests.bench.test_layer_bench import MODEL, any_page, bf16_bits, load_again, policy_word

MOST_CYCLES, LONGEST_WAIT = 60_000, 3_000
WITHIN = 600
"""Cycles within which the first tokens are inside and not out yet."""
assert PIM_DESIGN.pim is not None
CHANNELS = 2
DESIGN = replace(
    PIM_DESIGN,
    policy=Policy.LONGEST_QUEUE,
    pim=replace(PIM_DESIGN.pim, channels=CHANNELS, router=RouterPlace.BANKS),
)
"""Two channels, the router in the banks: all that a near-memory layer can have between its blocks."""
CONFIG = (MODEL, DESIGN)
STORAGE = ("mem_0_en", "mem_1_en")
NEVER = (
    ("contributions that wait", 2 * PROBE.index("contributions") + 1),
    *((f"{name}, transfers", 2 * PROBE.index(name)) for name in ("addresses", "beats")),
    *((f"{name} that wait", 2 * PROBE.index(name) + 1) for name in ("addresses", "beats")),
)
"""Bits of the probe that are 0 once tokens come."""


def scenario(
    name: str,
    weights: LayerWeights,
    tokens: np.ndarray,
    batches: list[int],
    capacity: int,
    traffic: Traffic,
    *,
    response: int = 0,
) -> Scenario:
    """Return the run of batches of tokens under this traffic, with what golden and the models say about it.

    Where experts and image lie and the order of service are drawn. ``response``: to a beat of what is loaded.
    """
    rng = traffic.rng
    design = replace(DESIGN, policy=list(Policy)[rng.integers(len(Policy))])
    work = _workload(replace(MODEL, expert_capacity=capacity), weights, tokens, batches)
    choices: list[list[int]] = [[0], [1], [0, 1]]
    placement = [choices[n] for n in rng.integers(len(choices), size=MODEL.gating.num_experts + 1)]
    image = BankGeometry.of(MODEL, design, placement).image
    beats = token_beats(image, design, tokens, batches)
    # Only a token's last beat says whether it ends a batch; the others carry noise.
    inner = np.arange(len(beats)) % image.gate.input_beats != image.gate.input_beats - 1
    beats[inner, design.stream_lanes // 4] = rng.integers(2, size=int(inner.sum()))
    pattern, _ = traffic.ready()
    arrivals = traffic.arrivals(len(beats))
    banks, golden, spec = pim_job(
        work, design, beats, placement=placement, arrivals=arrivals, output_ready=pattern
    )
    page = any_page(rng, image)
    responses = np.zeros(1 << 10, dtype=np.uint8)
    responses[rng.integers(image.load_beats)] = response
    written = {REGISTERS["IMAGE_PAGE"]: page, REGISTERS["POLICY"]: policy_word(rng, design.policy)}
    # Loading again forgets an error.
    again = load_again(LONGEST_WAIT) if response else []
    memory = replace(spec.memories["o_ar"], base=page * PAGE_BYTES, responses=responses)
    spec = replace(
        spec,
        prologue=[
            reg_read(REGISTERS["STATUS"]),
            *(
                _changed(step, written, rng)
                for step in [*spec.prologue[:2], *_elsewhere(rng), *spec.prologue[2:]]
            ),
        ],
        memories={"o_ar": memory},
        epilogue=[*spec.epilogue, *again],
        probes=[*spec.probes, *STORAGE],
        max_cycles=MOST_CYCLES,
    )
    loads = 2 if response else 1
    loaded = 1 << STATUS_LOADED
    statuses = [loaded | 1 << STATUS_READ_ERROR, loaded] if response else [loaded]
    shape = PimShape(banks, design, golden.streams, placement)

    def of(result: RunResult) -> PimRun:
        return PimRun(
            work, design, banks, golden, spec, replace(result, reads=result.reads[1 : 2 + 2 * len(COUNTERS)])
        )

    def blocks(result: RunResult) -> list[PortCheck]:
        run = of(result)
        seen = seen_times(run)
        found, _ = block_checks(run, shape, seen)
        # A beat is there when it has arrived and the one before it has gone.
        behind = np.concatenate([[-1], seen.tokens.taken[:-1]]) + 1
        offered = np.maximum(arrivals[: len(behind)], behind)
        there = PortCheck("layer", "i offered", Trace.of_cycles(seen.tokens.offered), cycles=offered)
        return [*payload_checks(run, golden), *found, there]

    def rules(result: RunResult) -> list[str]:
        run = of(result)
        if result.timeout:
            return []  # It is told.
        wrong = [f"channel {channel}: {one}" for channel, one in run.violations()]
        # Units read together. Nothing waits for the combiner, and memory is read before tokens come.
        everyone = (1 << banks.pim.units) - 1
        wrong += [
            f"{port} for some units" for port in STORAGE if not set(result.probes[port][1]) <= {everyone}
        ]
        asked = result.memories["o_ar"].ar_addrs.tolist()
        if set(asked) != {page * PAGE_BYTES} or len(asked) != loads:
            wrong.append(f"reads of {asked}, {loads} of {page * PAGE_BYTES} expected")
        cycles, values = result.probes["probe"]
        wrong += [
            f"the probe shows {name}"
            for name, bit in NEVER
            if bits_at(cycles, values, bit).max(initial=-1) >= 0
        ]
        for told, status in zip(result.reads[1 + 2 * len(COUNTERS) :], statuses, strict=True):
            if told & ~(1 << STATUS_REFRESHING) != status:
                wrong.append(f"STATUS {told:#x}, {status:#x} expected")
        return wrong + _counters_apart(run, shape, golden, seen_times(run))

    words: dict[str, int | None] = {f"{name}{half}": None for name in COUNTERS for half in ("", ", high")}
    words |= {"dropped": golden.streams.dropped, "dropped, high": 0, "STATUS": None}
    if response:
        words["STATUS after loading"] = None
    return Scenario(name, spec, reads={"STATUS before loading": 0, **words}, derived=blocks, rules=rules)


def _elsewhere(rng: np.random.Generator) -> list[Step]:
    """Return steps that place experts in channels that there are not: nothing follows."""
    steps = []
    for bit in range(1, 8):
        channel = int(rng.integers(2)) | 1 << bit
        expert = int(rng.integers(MODEL.gating.num_experts + 1))
        steps.append(reg_write(REGISTERS["PLACE_EXPERT"], expert | channel << 16))
        steps.append(reg_write(REGISTERS["PLACE_ROW"], int(rng.integers(1, 64))))
    return steps


def _changed(step: Step, values: dict[int, int], rng: np.random.Generator) -> Step:
    """Return a step that writes another value to one of these registers or waits not too long, or itself.

    Of an expert's number nobody reads more bits than experts have.
    """
    if isinstance(step, Wait):
        return replace(step, timeout=min(step.timeout, LONGEST_WAIT))
    if not isinstance(step, Set) or not step.values.get("reg_we"):
        return step
    address = step.values["reg_addr"]
    if address == REGISTERS["PLACE_EXPERT"]:
        return reg_write(address, step.values["reg_wdata"] | int(rng.integers(1 << 12)) << 4)
    return reg_write(address, values[address]) if address in values else step


def _workload(model: ModelSpec, weights: LayerWeights, tokens: np.ndarray, batches: list[int]) -> Workload:
    """Return tokens without a reference: golden is compared with one elsewhere."""
    nobody = np.zeros((len(tokens), model.gating.top_k), dtype=np.int64)
    return Workload(
        model=model,
        weights=weights,
        tokens=tokens,
        batch_lengths=batches,
        target_ids=None,
        reference=np.zeros(tokens.shape),
        reference_ids=nobody,
        reference_kept=nobody == 0,
        reference_name="nobody",
    )


def _counters_apart(run: PimRun, shape: PimShape, golden: LayerBf16, seen: PimTimes) -> list[str]:
    """Return the counters that are not what the streams and command buses of the run show."""
    streams, image = golden.streams, shape.banks.image
    tokens = len(streams.window)
    assert image.router is not None
    assert image.shared is not None
    shared = int((streams.entry_expert == MODEL.gating.num_experts).sum())
    fires = (len(streams.entry_expert) - shared) * image.routed.num_met_tiles
    fires += shared * image.shared.num_met_tiles + tokens * image.router.num_tiles
    commands = run.commands_by_name()
    wanted = {
        "cycles": int(seen.output.taken[-1] - seen.tokens.taken[0]) + 1,
        "tokens_in": tokens,
        "tokens_out": tokens,
        "assignments": golden.routing.ids.size,
        "dropped": streams.dropped,
        "mac_active": fires,
        "stall_input": size(seen.tokens.waits),
        "stall_dispatch": sum(size(entries.waits) for entries in seen.entries),
        "stall_combine": sum(size(contributions.waits) for contributions in seen.contributions),
        "stall_output": size(seen.output.waits),
        "activates": int(commands["ACT"].sum()),
        "mac_commands": int(commands["MAC"].sum()),
        "register_writes": int(commands["WR"].sum()),
        "register_reads": int(commands["RD"].sum()),
    }
    # What the array of an FPGA counts, or what is read from memory when tokens are inside.
    wanted |= dict.fromkeys(
        ("weight_beats", "read_beats", "stall_weights", "stall_accumulators", "stall_hidden"), 0
    )
    told = run.counters
    wrong = [
        f"{name} {told[name]}, {count} expected" for name, count in wanted.items() if told[name] != count
    ]
    # Another refresh of each channel may fall due while counters are read.
    refreshes = int(commands["REF"].sum())
    if not refreshes <= told["refreshes"] <= refreshes + shape.banks.pim.channels:
        wrong.append(f"refreshes {told['refreshes']}, {refreshes} seen")
    return wrong


def scenarios(seed: int) -> list[Scenario]:
    """Return batches of random lengths and corners by name, under all mixes of traffic."""
    found = []
    for index, traffic in enumerate(mixes(seed)):
        rng, label = traffic.rng, traffic.label
        weights = random_weights(MODEL, 100 * seed + index)
        # Logits near each other and so far apart that the second expert's weight is next to nothing.
        weights = replace(weights, router=weights.router * np.float32((1, 8, 64)[index % 3]))
        batches = rng.integers(1, 8, size=int(rng.integers(1, 4))).tolist()
        tokens = bf16_bits(random_tokens(MODEL, sum(batches), 100 * seed + index))
        whole = scenario(f"random, {label}", weights, tokens, batches, 0, traffic)
        found.append(whole)
        preferred = np.zeros(8, np.float32)
        preferred[[2, 3]] = 4
        few = replace(weights, selection_bias=preferred)
        # Experts that score the same, chosen by a few last places of their biases.
        places = rng.integers(0, 2, size=8) << rng.integers(0, 20, size=8)
        near = (np.float32(1.5).view(np.uint32) + places).astype(np.uint32).view(np.float32)
        ties = replace(weights, router=np.zeros_like(weights.router), selection_bias=near)
        found.append(scenario(f"near ties, {label}", ties, tokens[:2], [min(2, len(tokens))], 0, traffic))
        found.append(whole.cut(np.random.default_rng([seed, index]), last=WITHIN))
        if traffic.gaps != traffic.stalls:
            continue
        beyond = 1 + (1 << int(rng.integers(4, CAPACITY_BITS)))
        # Weights of any exponent.
        scale = np.ldexp(1.0, rng.integers(-20, 20, size=weights.up.shape)).astype(np.float32)
        wild = replace(weights, up=to_bf16_values(weights.up * scale))
        cases = [
            ("weights of any exponent", wild, tokens, batches, 0, 0),
            ("extreme values", weights, rng.choice(EXTREMES, tokens.shape), batches, 0, 0),
            ("all tokens to one pair of experts", few, tokens, batches, 0, 0),
            ("capacity overflow", few, tokens, batches, 1, 0),
            ("capacity that nobody reaches", few, tokens, batches, beyond, 0),
            ("one token", weights, tokens[:1], [1], 0, 0),
            ("memory error", weights, tokens[:1], [1], 0, 1 + index // 4),
        ]
        found += [
            scenario(f"{name}, {label}", *case, traffic, response=response) for name, *case, response in cases
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6)])
def test_near_memory_layer(seed):
    rtl = build("pim_layer", lambda: PimLayer(*CONFIG), config=CONFIG)
    run_scenarios(rtl, "pim_layer", scenarios(seed), seed=seed)


def test_corners_are_reached():
    runs = {run.name.partition(",")[0]: run for run in scenarios(1)}
    assert runs["capacity overflow"].reads["dropped"] > 0
    assert runs["capacity that nobody reaches"].reads["dropped"] == 0
    assert runs["all tokens to one pair of experts"].reads["dropped"] == 0
