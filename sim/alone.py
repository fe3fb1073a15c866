"""The expert engine alone, the gate bypassed: the first N experts of a model, at any size."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.expert import ffn
from golden.expert_int8 import ActivationScales, hidden_peak, scale_for
from golden.formats import BF16_ONE, Bits16, bf16_decode, bf16_encode
from golden.layer_bf16 import pack_expert
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.accelerator import Report, float_error, token_beats
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.expert import EngineShape, expert_cycles
from sim.rtlsim import DEFAULT_ROOT, ReadMemory, RunSpec, Sink, Source, Trace, build, expert_component
from sim.workload import is_vector, scaled_model
from spec.design import DesignSpec, Format
from spec.errors import require
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.model import ModelSpec


def _load(
    name: str, num_experts: int, num_tokens: int | None, divisor: int, seed: int, window: int
) -> tuple[ModelSpec, LayerWeights, Bits16]:
    if is_vector(name):
        vector = read_vector(Path(name))
        model, weights, tokens = vector.model, vector.weights, bf16_encode(vector.flat_tokens)
        default = min(window, len(tokens))
    else:
        model, default = scaled_model(name, divisor), 1
        tokens = np.zeros((window, 0), np.uint16)
    limit = model.gating.num_experts
    require(1 <= num_experts <= limit, f"must be in 1..{limit}, not {num_experts}", key="experts")
    count = default if num_tokens is None else num_tokens
    most = min(window, len(tokens))
    require(
        1 <= count <= most, f"must be in 1..{most} (one window) with --experts, not {count}", key="tokens"
    )
    if is_vector(name):
        return model, weights, tokens[:count]
    weights = random_weights(model, seed, experts=range(num_experts))
    return model, weights, bf16_encode(random_tokens(model, count, seed))


def run_experts(
    name: str,
    design: DesignSpec,
    num_experts: int,
    num_tokens: int | None,
    divisor: int,
    *,
    engine: str,
    seed: int,
    root: Path = DEFAULT_ROOT,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Run every token through each of the first ``num_experts`` experts, one job per expert."""
    if engine == "model" and not is_vector(name):
        model = scaled_model(name, divisor)
        limit = model.gating.num_experts
        require(1 <= num_experts <= limit, f"must be in 1..{limit}, not {num_experts}", key="experts")
        count = 1 if num_tokens is None else num_tokens
        require(
            1 <= count <= design.window_tokens,
            f"must be in 1..{design.window_tokens} (one window) with --experts, not {count}",
            key="tokens",
        )
        weights = tokens = None
    else:
        progress("drawing weights and tokens")
        model, weights, tokens = _load(name, num_experts, num_tokens, divisor, seed, design.window_tokens)
        count = len(tokens)
    image = ImageGeometry.of(model, design)
    shape = EngineShape.of_design(image, design)
    entries = num_experts * count
    arrivals = np.full(entries, count * image.gate.input_beats + 2, dtype=np.int64)
    last = np.arange(entries) % count == count - 1
    started = time.perf_counter()
    times = expert_cycles(
        shape, np.zeros(entries, dtype=bool), last, arrivals, latency=design.memory.latency_cycles
    )
    cycles = int(times.o[-1] - times.i[0]) + 1
    wall = time.perf_counter() - started
    report = Report(
        model=model.name,
        design=design.name,
        format=design.format,
        engine=engine,
        tokens=count,
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles={"model": None if engine == "rtl" else cycles, "rtl": None},
        blocks={"expert": {"model": None if engine == "rtl" else cycles, "rtl": None}},
        mismatches=None,
        seconds=cycles / design.clock_hz,
        energy_j=None,
        utilisation={"mac": times.fires / cycles, "bandwidth": len(times.r) / cycles},
        dropped=0,
        wall_s=wall,
        routing={"requested": "all tokens to each expert", "experts_used": num_experts, "max_load": count},
        notes=[
            "the gate, the dispatcher and the combiner are bypassed; cycles from first entry to last beat"
        ],
    )
    if engine == "model" or weights is None or tokens is None:
        return report

    lanes = design.tile.act_lanes
    memory = np.zeros(image.expert_page(num_experts) * PAGE_BYTES, dtype=np.uint8)
    expected = np.zeros((num_experts, count, shape.words * lanes), dtype=np.uint16)
    reference = np.zeros((num_experts, count, model.d_model))
    progress("computing golden results")
    scales = _calibrate(model, weights, tokens, num_experts) if design.format is Format.INT8 else None
    for expert in range(num_experts):
        packed = pack_expert(image, weights, expert, scales)
        tiles = packed.image()
        start = image.expert_page(expert) * PAGE_BYTES
        memory[start : start + tiles.size] = tiles
        expected[expert, :, : model.d_model] = packed.outputs(tokens)
        reference[expert] = ffn(model.ffn, x=bf16_decode(tokens), **vars(weights.expert(expert)))
    progress("exporting Verilog and building its simulation (cached by content)")
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    nameless = dataclasses.replace(design, name="design")

    rtl = build("expert", expert_component(model, design), config=("expert", anonymous, nameless), root=root)
    entry_payloads = _entries(image, design, num_experts, count)
    spec = RunSpec(
        sources={
            "i_token": Source(token_beats(image, design, tokens, [count])),
            "i": Source(entry_payloads, arrivals),
        },
        sinks={"o": Sink(num_experts * count * shape.words)},
        memories={"o_ar": ReadMemory(memory, latency=design.memory.latency_cycles, max_outstanding=256)},
        statics={} if scales is None else {"scale_x": scales.x.word, "scale_h": scales.hidden.word},
        max_cycles=1 << 40,
    )
    progress(f"running {count} tokens through {num_experts} experts in Verilog")
    started = time.perf_counter()
    result = rtl.run(spec)
    report.wall_s = time.perf_counter() - started
    report.simulated_cycles_per_second = result.cycles_per_second
    seen = result.streams["o"]
    payloads = _results(image, design, shape, expected)
    checks = [
        PortCheck("expert", "o", seen, payloads=payloads),
        PortCheck("expert", "o_ar", _as_trace(result.memories["o_ar"].ar_cycles), cycles=times.ar),
        PortCheck("expert", "i_r", _as_trace(result.memories["o_ar"].r_cycles), cycles=times.r),
        PortCheck("expert", "o", _as_trace(seen.cycles), cycles=times.o),
    ]
    common = min(len(payloads), len(seen.payloads))
    report.mismatches = int(np.bitwise_count(payloads[:common] ^ seen.payloads[:common]).sum())
    report.mismatches += 64 * abs(len(payloads) - len(seen.payloads))
    if result.timeout is None and len(seen.cycles):
        rtl_cycles = int(seen.cycles[-1] - result.streams["i"].cycles[0]) + 1
        report.cycles["rtl"] = report.blocks["expert"]["rtl"] = rtl_cycles
    report.reference = {
        "name": "float golden",
        "tokens_with_same_experts": count,
        **float_error(expected[..., : model.d_model], reference, scales),
    }
    found = first_divergence(checks if engine == "both" else checks[:1])
    problems = [*result.violations, *([result.timeout] if result.timeout else [])]
    if found is not None:
        report.divergence = with_waveform(found, rtl, spec, root / "waves")
    elif problems:
        report.divergence = "; ".join(problems)
    return report


def _calibrate(model: ModelSpec, weights: LayerWeights, tokens: Bits16, num_experts: int) -> ActivationScales:
    """Return the scales of the first experts, each of which meets all tokens."""
    x = bf16_decode(tokens)
    peak = max(hidden_peak(model.ffn, weights.expert(expert), x) for expert in range(num_experts))
    return ActivationScales(scale_for(float(np.abs(x).max())), scale_for(peak))


def _as_trace(cycles: NDArray[np.int64]) -> Trace:
    return Trace(cycles, np.zeros((len(cycles), 1), dtype=np.uint64))


def _fields(columns: list[tuple[NDArray[np.int64], int]], words: int) -> NDArray[np.uint64]:
    """Return payloads of the (values, width) columns, lowest bits first; no column spans two words."""
    out = np.zeros((len(columns[0][0]), words), dtype=np.uint64)
    position = 0
    for values, width in columns:
        word, bit = divmod(position, 64)
        out[:, word] |= values.astype(np.uint64) << np.uint64(bit)
        if bit + width > 64:
            out[:, word + 1] |= values.astype(np.uint64) >> np.uint64(64 - bit)
        position += width
    return out


def _slot_bits(design: DesignSpec) -> int:
    return max(1, (2 * design.window_tokens - 1).bit_length())


def _entries(image: ImageGeometry, design: DesignSpec, num_experts: int, count: int) -> NDArray[np.uint64]:
    """Payloads of ``rtl.expert.layouts.job_layout``: expert, slot, weight 1.0, last."""
    expert = np.repeat(np.arange(num_experts), count)
    token = np.tile(np.arange(count), num_experts)
    expert_bits_ = max(1, image.gate.gating.num_experts.bit_length())
    return _fields(
        [
            (expert, expert_bits_),
            (token, _slot_bits(design)),
            (np.full(len(expert), BF16_ONE), 16),
            ((token == count - 1).astype(np.int64), 1),
        ],
        1,
    )


def _results(
    image: ImageGeometry, design: DesignSpec, shape: EngineShape, expected: NDArray[np.uint16]
) -> NDArray[np.uint64]:
    """Payloads of ``contribution_layout``, in order: per expert and output block all tokens."""
    num_experts, count, _ = expected.shape
    lanes, words = design.tile.act_lanes, shape.words
    parts = image.routed.rows // lanes
    order = [
        (token, word)
        for block in range(image.routed.out_blocks)
        for token in range(count)
        for word in range(block * parts, min((block + 1) * parts, words))
    ]
    token = np.array([pair[0] for pair in order])
    word = np.array([pair[1] for pair in order])
    word_bits = max(1, (words - 1).bit_length())
    bits = _slot_bits(design) + word_bits + 16 + 16 * lanes + 1
    data = expected.reshape(num_experts, count, words, lanes)
    payloads = []
    for expert in range(num_experts):
        columns = [(token, _slot_bits(design)), (word, word_bits), (np.full(len(word), BF16_ONE), 16)]
        columns += [(data[expert, token, word, lane].astype(np.int64), 16) for lane in range(lanes)]
        columns.append(((word == words - 1).astype(np.int64), 1))
        payloads.append(_fields(columns, -(-bits // 64)))
    return np.concatenate(payloads)
