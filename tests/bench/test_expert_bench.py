"""The expert engine's exported Verilog under cocotb: every stream bit for bit and cycle for cycle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from golden.expert_int8 import ActivationScales, ExpertInt8
from golden.experts import ExpertBits, PackedExpert
from golden.formats import Bits16, bf16_encode
from golden.int8 import FixedScale, MatrixInt8
from rtl.expert import ExpertConfig, ExpertEngine
from rtl.expert.layouts import EngineConfig, contribution_layout, job_layout
from rtl.gating import token_layout
from sim.expert import EngineShape, expert_cycles
from sim.rtlsim import ReadMemory, RunSpec, Sink, Source
from spec.design import Format, Multiplier
from spec.geometry import PAGE_BYTES, FfnGeometry, GateGeometry, ImageGeometry
from spec.model import Activation, FfnSpec, GatingSpec
from tests.bench.runner import build
from tests.bench.scenarios import EXTREMES, MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.block_bench import bits_of
from tests.coverage.points import expert_points, not_met

NUM_EXPERTS = 3
IMAGE_PAGE = 2


def config_of(
    ffn: FfnSpec,
    *,
    d_model: int,
    d_shared: int,
    rows: int,
    cols: int,
    lanes: int,
    outstanding: int,
    number_format: Format = Format.BF16,
) -> ExpertConfig:
    """Return an engine with three experts, windows of four tokens, beats of 8 bytes, bursts of 2.

    In an integer format a multiplier makes the products of two rows.
    """
    gating = GatingSpec(num_experts=NUM_EXPERTS, top_k=1)
    gate = GateGeometry(
        gating=gating, d_model=d_model, lanes=8, logits_per_cycle=1, stream_lanes=2, load_elements=4
    )

    def geometry(d_hidden: int) -> FfnGeometry:
        return FfnGeometry(
            ffn=ffn, d_model=d_model, d_hidden=d_hidden, rows=rows, cols=cols, format=number_format
        )

    image = ImageGeometry(
        gate=gate,
        routed=geometry(ffn.d_expert),
        shared=geometry(d_shared) if d_shared else None,
        burst_bytes=16,
    )
    return ExpertConfig(
        image=image,
        num_slots=8,
        max_tokens=4,
        act_lanes=lanes,
        stream_lanes=2,
        beat_bits=64,
        burst_beats=2,
        max_outstanding=outstanding,
        multiplier=Multiplier.DUAL if number_format.integer else Multiplier.SINGLE,
    )


# No size is a multiple of the array's: the last tiles, blocks and beats are partial. The layer's bench
# has SiLU.
CONFIGS = {
    "relu": config_of(
        FfnSpec(d_expert=6, activation=Activation.RELU),
        d_model=10, d_shared=9, rows=4, cols=4, lanes=2, outstanding=3,
    ),
    "clamped": config_of(
        FfnSpec(d_expert=5, activation=Activation.CLAMPED_SWIGLU, bias=True),
        d_model=7, d_shared=0, rows=2, cols=4, lanes=2, outstanding=4,
    ),
    "w4a8": config_of(
        FfnSpec(d_expert=6, activation=Activation.LINEAR, gate_matrix=False, bias=True),
        d_model=19, d_shared=9, rows=4, cols=16, lanes=2, outstanding=3, number_format=Format.W4A8,
    ),
}  # fmt: skip

Job = tuple[int, list[int]]
"""An expert and the slots of its tokens."""


@dataclass(frozen=True)
class Load:
    """Tokens, all experts (the shared one last), and jobs; ``scales``: in an integer format."""

    tokens: Bits16
    experts: list[PackedExpert]
    jobs: list[Job]
    scales: ActivationScales | None = None


def kinds_of(config: EngineConfig) -> list[FfnGeometry]:
    """Return the geometry of each expert, the shared one last."""
    return [config.routed] * NUM_EXPERTS + config.kinds[1:]


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return bf16_encode(rng.standard_normal(shape))


def extreme(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), normal(rng, *shape))


def load_of(config: EngineConfig, rng: np.random.Generator, jobs: list[Job], values=normal) -> Load:
    """Return random tokens and weights for these jobs."""
    if config.integer:
        return integer_load(config, rng, jobs, values)
    ffn, d_model = config.routed.ffn, config.d_model
    experts = []
    for kind in kinds_of(config):
        width = kind.d_hidden
        bits = ExpertBits(
            values(rng, width, d_model) if ffn.gated else None,
            values(rng, width, d_model),
            values(rng, d_model, width),
            values(rng, width) if ffn.bias and ffn.gated else None,
            values(rng, width) if ffn.bias else None,
            values(rng, d_model) if ffn.bias else None,
        )
        experts.append(PackedExpert(kind, bits, None))
    return Load(values(rng, config.num_slots, d_model), experts, jobs)


def integer_load(config: EngineConfig, rng: np.random.Generator, jobs: list[Job], values=normal) -> Load:
    """Return the same in an integer format: any weight, results of any size, most of order 1."""
    scales = ActivationScales(*(FixedScale.of(127 / size) for size in np.exp2(rng.uniform(-4, 4, 2))))

    def matrix(rows: int, inputs: int, biased: bool) -> MatrixInt8:
        top = 1 << (config.routed.format.bits - 1)
        few = rng.random((rows, inputs)) < rng.choice([0.1, 1.0])
        wild = rng.random(rows) < 0.2
        return MatrixInt8(
            values=np.where(few, rng.integers(-top, top, (rows, inputs)), 0).astype(np.int8),
            mantissa=np.where(rng.random(rows) < 0.05, 0, rng.integers(1 << 15, 1 << 16, rows)),
            shift=np.where(wild, rng.integers(-180, 130, rows), rng.integers(-28, -20, rows)),
            bias=rng.integers(-(1 << 31) + 1, 1 << 31, rows) >> rng.integers(10, 32, rows)
            if biased
            else None,
        )

    experts = []
    for kind in kinds_of(config):
        width, d_model, ffn = kind.d_hidden, config.d_model, kind.ffn
        numbers = ExpertInt8(
            matrix(width, d_model, ffn.bias) if ffn.gated else None,
            matrix(width, d_model, ffn.bias),
            matrix(d_model, width, ffn.bias),
        )
        experts.append(PackedExpert(kind, numbers, scales))
    return Load(values(rng, config.num_slots, config.d_model), experts, jobs, scales)


def random_jobs(config: EngineConfig, rng: np.random.Generator) -> list[Job]:
    """Return one to six jobs of one to four tokens."""
    num_kinds = len(kinds_of(config))
    jobs = []
    for _ in range(int(rng.integers(1, 7))):
        count = int(rng.integers(1, config.max_tokens + 1))
        slots = np.sort(rng.permutation(config.num_slots)[:count])
        jobs.append((int(rng.integers(num_kinds)), slots.tolist()))
    return jobs


CORNERS = {
    "all tokens to one expert": [(1, [0, 1, 2, 3]), (1, [4, 5, 6, 7])],
    "an expert with none": [(0, [0, 2]), (2, [1, 2, 3])],
    "one token per expert": [(0, [0]), (1, [1]), (2, [2])],
    "one token": [(2, [7])],
    "one token, then a full window": [(0, [3]), (1, [4, 5, 6, 7]), (2, [5])],
    "highest index": [(-1, [0, 1]), (-1, [4])],  # the shared expert, if there is one
}


def image_of(config: ExpertConfig, load: Load, rng: np.random.Generator) -> np.ndarray:
    """Return the memory: ``IMAGE_PAGE`` pages of noise, then the image, noise wherever no expert lies."""
    size = IMAGE_PAGE * PAGE_BYTES + config.image.num_bytes
    memory = rng.integers(0, 1 << 16, size // 2, dtype=np.uint16)
    for number, expert in enumerate(load.experts):
        tiles = expert.image().view(np.uint16)
        start = (IMAGE_PAGE + config.image.expert_page(number)) * PAGE_BYTES // 2
        memory[start : start + tiles.size] = tiles
    return memory.view(np.uint8)


def addresses(config: ExpertConfig, jobs, image_page: int) -> list[int]:
    """Return the burst addresses: each job's expert from its page on, whole bursts."""
    found = []
    for expert, _ in jobs:
        start = (image_page + config.image.expert_page(expert)) * PAGE_BYTES
        size = config.kinds[expert == NUM_EXPERTS].num_bytes
        found += range(start, start + size, config.image.burst_bytes)
    return found


def contributions(config: ExpertConfig, load: Load, jobs, job_weights) -> list[int]:
    """Return golden's beats of ``o``: per job and block of rows, all tokens' words."""
    lanes, words = config.act_lanes, config.words
    layout = contribution_layout(config.num_slots, words, lanes)
    parts = config.routed.rows // lanes
    beats = []
    for (expert, slots), weights in zip(jobs, job_weights, strict=True):
        results = load.experts[expert].outputs(load.tokens[slots])
        # Lanes beyond d_model are zero.
        results = np.pad(results, [(0, 0), (0, words * lanes - config.d_model)])
        for block in range(config.routed.out_blocks):
            for row, slot in enumerate(slots):
                beats += [
                    bits_of(
                        layout,
                        slot=slot,
                        word=word,
                        weight=weights[row],
                        data=results[row, word * lanes : (word + 1) * lanes],
                        last=word == words - 1,
                    )
                    for word in range(block * parts, min((block + 1) * parts, words))
                ]
    return beats


def token_beats(config: ExpertConfig, load: Load, rng: np.random.Generator) -> list[int]:
    """Return the beats of ``i_token``; what lies beyond a token, and ``last``, is noise."""
    lanes = config.stream_lanes
    count = -(-config.d_model // lanes)
    padded = rng.integers(0, 1 << 16, (len(load.tokens), count * lanes), dtype=np.uint16)
    padded[:, : config.d_model] = load.tokens
    return [
        bits_of(token_layout(lanes), data=elements, last=rng.integers(2))
        for elements in padded.reshape(-1, lanes)
    ]


def scale_ports(load: Load) -> dict[str, int]:
    """Return what stands at the ports of an integer format's scales."""
    scales = load.scales
    return {} if scales is None else {"scale_x": scales.x.word, "scale_h": scales.hidden.word}


def scenario(
    name: str, config: ExpertConfig, load: Load, traffic: Traffic, image_page: int = IMAGE_PAGE
) -> Scenario:
    """Return the run of a load under this traffic, with what golden and model say about it."""
    rng = traffic.rng
    jobs = [(expert % len(load.experts), slots) for expert, slots in load.jobs]
    job_weights = [rng.integers(0, 1 << 16, len(slots), dtype=np.uint16) for _, slots in jobs]
    entries = [
        bits_of(job_layout(config), expert=expert, slot=slot, weight=weight, last=row == len(slots) - 1)
        for (expert, slots), weights in zip(jobs, job_weights, strict=True)
        for row, (slot, weight) in enumerate(zip(slots, weights, strict=True))
    ]
    beats = token_beats(config, load, rng)
    beat_arrivals = traffic.arrivals(len(beats))
    beats_taken = np.maximum.accumulate(beat_arrivals - np.arange(len(beats))) + np.arange(len(beats))
    arrivals = traffic.arrivals(len(entries), after=int(beats_taken[-1]) + 2)
    pattern, ready = traffic.ready()
    ar_pattern, ar_ready = traffic.ready()
    latency = int(rng.integers(1, 30))
    extra = None if traffic.gaps == "none" else rng.integers(0, 12, size=31) * (rng.random(31) < 0.3)
    model = expert_cycles(
        EngineShape.of(
            config.image,
            act_lanes=config.act_lanes,
            beat_bits=config.beat_bits,
            burst_beats=config.burst_beats,
            max_outstanding=config.max_outstanding,
            pipeline=config.pipeline,
        ),
        np.array([expert == NUM_EXPERTS for expert, slots in jobs for _ in slots]),
        np.array([slot == slots[-1] for _, slots in jobs for slot in slots]),
        arrivals,
        latency=latency,
        extra=extra,
        ready=ready,
        ar_ready=ar_ready,
    )
    layout = contribution_layout(config.num_slots, config.words, config.act_lanes)
    outputs = contributions(config, load, jobs, job_weights)
    memory = ReadMemory(
        image_of(config, load, rng),
        latency,
        extra=extra,
        ready=ar_pattern,
        base=(image_page - IMAGE_PAGE) * PAGE_BYTES,
    )
    return Scenario(
        name,
        RunSpec(
            sources={"i_token": Source(beats, beat_arrivals), "i": Source(entries, arrivals)},
            sinks={"o": Sink(len(outputs), pattern)},
            memories={"o_ar": memory},
            statics={"image_page": image_page, **scale_ports(load)},
            probes=["fire", "beat", "read_error"],
            max_cycles=MOST_CYCLES,
        ),
        {
            "i_token": Expected(beats, beats_taken),
            "i": Expected(entries, model.i, job_layout(config)),
            "o_ar": Expected(addresses(config, jobs, image_page), model.ar),
            "i_r": Expected(cycles=model.r),
            "o": Expected(outputs, model.o, layout),
        },
        {"fire": model.fires, "beat": model.tile_beats, "read_error": 0},
    )


def hesitant(whole: Scenario, rng: np.random.Generator) -> Scenario:
    """Return the scenario with gaps between the memory's beats, which the cycle model does not know."""
    memory = replace(whole.spec.memories["o_ar"], gaps=rng.integers(0, 4, size=17))
    ports = {name: replace(port, cycles=None) for name, port in whole.ports.items() if name != "i_r"}
    spec = replace(whole.spec, memories={"o_ar": memory})
    return replace(whole, name=f"memory with gaps, {whole.name}", spec=spec, ports=ports)


def failing(whole: Scenario, rng: np.random.Generator) -> Scenario:
    """Return the scenario with error responses: each is told, the data counts, no time is lost."""
    num_beats = len(whole.ports["i_r"].cycles)
    responses = np.where(rng.random(num_beats) < 0.2, rng.integers(2, 4, num_beats), 0)
    memory = replace(whole.spec.memories["o_ar"], responses=responses)
    spec = replace(whole.spec, memories={"o_ar": memory})
    pulses = {**whole.pulses, "read_error": np.count_nonzero(responses)}
    return replace(whole, name=f"memory with errors, {whole.name}", spec=spec, pulses=pulses)


def scenarios(config: ExpertConfig, seed: int) -> list[Scenario]:
    """Return random jobs, every corner and extreme values under all mixes, and resets."""
    found = []
    for traffic in mixes(seed):
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        rng = traffic.rng
        for name, jobs in CORNERS.items():
            found.append(scenario(f"{name}, {label}", config, load_of(config, rng, jobs), traffic))
        load = load_of(config, rng, random_jobs(config, rng), extreme)
        found.append(scenario(f"extreme values, {label}", config, load, traffic))
        load = load_of(config, rng, random_jobs(config, rng))
        whole = scenario(f"random jobs, {label}", config, load, traffic)
        found += [whole.cut(rng), whole, hesitant(whole, rng), failing(whole, rng)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize(
    "name", ["relu", *(pytest.param(name, marks=pytest.mark.long) for name in ("clamped", "w4a8"))]
)
def test_expert(name, seed):
    config = CONFIGS[name]
    rtl = build(f"expert_{name}", lambda: ExpertEngine(config), config=config)
    runs = scenarios(config, seed)
    results = run_scenarios(rtl, "expert", runs, seed=seed)
    if name == "relu":
        assert not_met(expert_points(config), runs, results) == []
